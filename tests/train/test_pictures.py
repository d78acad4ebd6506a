"""Grids of samples show every pixel of every image."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.train.pictures import grid, save_grid


def test_grid_shows_every_pixel_enlarged():
    images = torch.arange(5 * 64).remainder(17).view(5, 1, 8, 8)
    picture = np.asarray(grid(images, levels=17))
    # 6x makes 48 pixels of 8; 3 columns and 2 rows, with gaps of 3 between and around them.
    assert picture.shape == (2 * 51 + 3, 3 * 51 + 3)
    for index, image in enumerate(images):
        top, left = 3 + index // 3 * 51, 3 + index % 3 * 51
        cell = picture[top : top + 48, left : left + 48].reshape(8, 6, 8, 6)
        assert (cell == cell[:, :1, :, :1]).all()
        assert np.array_equal(cell[:, 0, :, 0], np.rint(image[0].numpy() * 255 / 16))


def test_grid_of_colours_and_columns():
    images = torch.randint(0, 256, (4, 3, 64, 50), dtype=torch.uint8)
    picture = np.asarray(grid(images, levels=256, columns=4))
    assert picture.shape == (64 + 4, 4 * 52 + 2, 3)
    assert np.array_equal(picture[2:66, 2:52], images[0].permute(1, 2, 0))


def test_save_grid(tmp_path):
    images = torch.randint(0, 2, (9, 1, 4, 4))
    save_grid(tmp_path / "x.png", images, levels=2)
    assert Image.open(tmp_path / "x.png").size == grid(images, 2).size
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 2, 4, 4), (4, 4)])
def test_grid_refuses_what_is_no_set_of_images(shape):
    with pytest.raises(ValueError, match="images has shape"):
        grid(torch.zeros(shape, dtype=torch.uint8), levels=2)
