"""Pictures of points and densities show them where they are."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.data import Vectors
from fastgen.train.pictures import axis_limits, density, grid_points, save_figure


def normal_log_prob(x):
    return -x.square().sum(1) / 2 - x.shape[1] / 2 * math.log(2 * math.pi)


def test_density_on_the_grid_of_a_picture_integrates_to_one():
    points = np.random.default_rng(0).standard_normal((20_000, 2))
    limits = axis_limits(points)
    grid = grid_points(limits, 200)
    area = math.prod(high - low for low, high in limits) / 200**2
    total = density(grid, normal_log_prob, torch.zeros(1)).sum() * area
    # What the limits leave out on purpose is a thousandth at each of four sides, less the margin.
    assert total == pytest.approx(1, abs=2e-3)


def test_limits_do_not_follow_strays():
    points = np.concatenate((np.random.default_rng(0).uniform(0, 1, (5000, 2)), [[1e6, -1e6]]))
    for low, high in axis_limits(points):
        assert low == pytest.approx(-0.1, abs=0.02) and high == pytest.approx(1.1, abs=0.02)


def test_grid_goes_row_by_row_upwards():
    grid = grid_points(((0, 2), (10, 14)), 2)
    assert grid.tolist() == [[0.5, 11], [1.5, 11], [0.5, 13], [1.5, 13]]


@pytest.fixture
def saved(tmp_path):
    def save(samples, data=None, log_prob=normal_log_prob):
        path = tmp_path / "x.png"
        save_figure(path, samples, log_prob, data)
        assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
        return np.asarray(Image.open(path).convert("RGB"), dtype=int)

    return save


def is_bright(picture):
    """Where a picture is neither dark nor the white around a panel."""
    brightness = picture.sum(2)
    return (brightness > 400) & (brightness < 700)


def test_the_plane_has_its_density_where_it_is(saved):
    samples = torch.randn(500, 2)
    data = Vectors(torch.randn(500, 2, dtype=torch.float64))
    with_data, without = saved(samples, data), saved(samples)
    assert with_data.shape[1] > 1.3 * without.shape[1], "a panel less"
    shifted = saved(samples, data, lambda x: normal_log_prob(x - torch.tensor([2.0, 0.0])))
    third = with_data.shape[1] // 3
    bright = [np.argwhere(is_bright(picture[60:-70, 50 - third :])) for picture in (with_data, shifted)]
    assert bright[1][:, 1].mean() > bright[0][:, 1].mean() + 20


@pytest.mark.parametrize("features", [1, 3, 9])
def test_margins_of_any_number_of_columns(saved, features):
    samples = torch.randn(300, features)
    data = Vectors(torch.randn(300, features, dtype=torch.float64) * 2)
    with_data, without = saved(samples, data), saved(samples)
    assert with_data.shape == without.shape and (with_data != without).any()
    assert with_data.shape[0] == with_data.shape[1], "as many rows as columns"


def test_a_density_that_is_zero_everywhere_is_a_picture_too(saved):
    saved(torch.randn(100, 2), None, lambda x: torch.full((len(x),), -math.inf))


@pytest.mark.parametrize("features", [2, 3])
def test_samples_that_are_not_finite_are_left_out(saved, features):
    finite = torch.randn(100, features)
    broken = torch.tensor([[math.nan] * features, [math.inf] * features, [0.0] * (features - 1) + [-math.inf]])
    assert (saved(torch.cat((broken, finite))) == saved(finite)).all()
    with pytest.raises(ValueError, match="no vector in it is finite"):
        saved(broken)
    saved(broken, Vectors(finite.double()), lambda x: torch.full((len(x),), math.nan))
