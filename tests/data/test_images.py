"""Images are checked, split, quantised and described without losing a picture or a label."""

import pytest
import torch

from fastgen.data import Dataset, Images, load


def some_images(n=20, levels=16):
    return Images(torch.arange(n * 12).remainder(levels).view(n, 1, 3, 4).to(torch.uint8), levels, torch.arange(n) % 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": torch.zeros(2, 1, 3, 3)}, TypeError, "images has dtype torch.float32, expected torch.uint8"),
        ({"images": torch.zeros(2, 3, 3, dtype=torch.uint8)}, ValueError, r"images has shape \[2, 3, 3\]"),
        ({"images": torch.zeros(2, 2, 3, 3, dtype=torch.uint8)}, ValueError, r"expected \[N, 1 or 3, H, W\]"),
        ({"images": torch.zeros(0, 1, 3, 3, dtype=torch.uint8)}, ValueError, "none of them 0"),
        (
            {"images": torch.full((1, 1, 2, 2), 16).byte(), "levels": 16},
            ValueError,
            "holds the value 16, expected 0 to 15",
        ),
        ({"images": torch.zeros(1, 1, 2, 2).byte(), "levels": 1}, ValueError, "levels is 1, expected 2 to 256"),
        (
            {"images": torch.zeros(2, 1, 2, 2).byte(), "labels": torch.zeros(3).long()},
            ValueError,
            r"labels has shape \[3\]",
        ),
        (
            {"images": torch.zeros(2, 1, 2, 2).byte(), "labels": torch.zeros(2)},
            TypeError,
            "labels has dtype torch.float32",
        ),
        (
            {"images": torch.zeros(2, 1, 2, 2).byte(), "labels": torch.tensor([0, 7]), "num_classes": 5},
            ValueError,
            "labels runs from 0 to 7, expected 0 to 4",
        ),
    ],
)
def test_images_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        Images(**arguments)


def test_split_divides_without_loss_and_repeats():
    images = some_images()
    rest, held_out = images.split(0.25, seed=3)
    assert (len(rest), len(held_out)) == (15, 5)
    first_pixels = torch.cat((rest.images, held_out.images)).flatten(1)
    assert sorted(map(tuple, first_pixels.tolist())) == sorted(map(tuple, images.images.flatten(1).tolist()))
    again = images.split(0.25, seed=3)[1]
    assert torch.equal(again.images, held_out.images)
    assert torch.equal(again.labels, held_out.labels)
    assert not torch.equal(images.split(0.25, seed=4)[1].images, held_out.images)


def test_labels_follow_their_images():
    images = Images(torch.arange(10).view(10, 1, 1, 1).byte(), 16, torch.arange(10))
    for part in images.split(0.3, seed=1):
        assert torch.equal(part.images.flatten().long(), part.labels)
        assert part.num_classes == 10


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_split_refuses_fractions_that_leave_nothing(fraction):
    with pytest.raises(ValueError, match="fraction is"):
        some_images().split(fraction)


def test_split_refuses_too_few_images():
    with pytest.raises(ValueError, match="too few"):
        some_images(n=1).split(0.5)


@pytest.mark.parametrize("levels", [2, 3, 16])
def test_quantized_is_even_and_monotone(levels):
    every = Images(torch.arange(16).view(16, 1, 1, 1).byte(), 16)
    values = every.quantized(levels).images.flatten().tolist()
    assert values == [v * levels // 16 for v in range(16)]
    assert every.quantized(levels).levels == levels


@pytest.mark.parametrize("levels", [1, 17])
def test_quantized_refuses_levels_it_cannot_give(levels):
    with pytest.raises(ValueError, match=f"levels is {levels}, expected 2 to 16"):
        some_images().quantized(levels)


def test_digits():
    data = load("digits")
    assert (len(data.train), len(data.validation), data.test) == (1617, 180, None)
    assert (data.shape, data.levels, data.num_classes) == ((1, 8, 8), 17, 10)
    assert int(data.train.images.max()) == 16


def test_parts_and_summary_tell_data_sets_apart():
    images = some_images()
    data = Dataset("some", *images.split(0.2, seed=0))
    other = Dataset("some", *images.split(0.2, seed=1))
    assert data.part("train") is data.train
    with pytest.raises(ValueError, match="no part 'test', expected one of: train, validation"):
        data.part("test")
    assert data.summary() == Dataset("some", *images.split(0.2, seed=0)).summary()
    assert data.summary() != other.summary()
