"""Differentiable augmentation: what each policy does, its gradients, and a probability that follows its target."""

import pytest
import torch

from fastgen.gan import Augment
from fastgen.gan.augment import POLICIES


@pytest.fixture
def images():
    return torch.randn(64, 3, 8, 10, dtype=torch.float64)


@pytest.mark.parametrize("name", POLICIES)
def test_gradients_pass_through_twice(name):
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)

    def changed(x):
        torch.manual_seed(0)
        return POLICIES[name](x) ** 2

    assert torch.autograd.gradcheck(changed, x)
    assert torch.autograd.gradgradcheck(changed, x)


@pytest.mark.parametrize("name", POLICIES)
def test_probability_is_that_of_each_image(name, images):
    assert torch.equal(Augment(name, probability=0)(images), images)
    torch.manual_seed(0)
    changed = (Augment(name, probability=0.5)(images.repeat(8, 1, 1, 1)) != images.repeat(8, 1, 1, 1)).flatten(1).any(1)
    assert 0.3 < changed.double().mean() < 0.6


def test_brightness_saturation_and_contrast_are_affine(images):
    apart = POLICIES["brightness"](images) - images
    torch.testing.assert_close(apart, apart[:, :1, :1, :1].expand_as(apart))
    assert apart.abs().max() <= 0.5 and apart[:, 0, 0, 0].std() > 0.2
    saturated = POLICIES["saturation"](images)
    torch.testing.assert_close(saturated.mean(1), images.mean(1))
    contrasted = POLICIES["contrast"](images)
    torch.testing.assert_close(contrasted.mean((1, 2, 3)), images.mean((1, 2, 3)))


def test_translation_moves_by_whole_pixels(images):
    moved = POLICIES["translation"](images)
    found = set()
    for before, after in zip(images, moved, strict=True):
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                padded = torch.nn.functional.pad(before, (1, 1, 1, 1))
                if torch.equal(padded[:, 1 + down : 9 + down, 1 + right : 11 + right], after):
                    found.add((down, right))
                    break
            else:
                continue
            break
        else:
            pytest.fail("an image that is no translation")
    assert len(found) == 9


def test_cutout_cuts_a_rectangle_of_half_the_side():
    cut = POLICIES["cutout"](torch.ones(500, 1, 8, 8))
    holes = (cut == 0).flatten(1).sum(1)
    # Whole in the middle, less at the edges, where its own middle is still inside.
    assert holes.max() == 16 and holes.min() >= 4
    assert (cut == 0).float().mean(0).min() > 0


def test_probability_follows_the_sign_of_real_outputs():
    augment = Augment("translation", probability=0.5, target=0.6, kimg=1)
    augment.adapt(torch.ones(100))
    assert augment.probability.item() == pytest.approx(0.6)
    augment.adapt(-torch.ones(200))
    assert augment.probability.item() == pytest.approx(0.4)
    for _ in range(10):
        augment.adapt(-torch.ones(200))
    assert augment.probability.item() == 0
    fixed = Augment("translation")
    fixed.adapt(torch.ones(100))
    assert fixed.probability.item() == 1
    assert "probability" in augment.state_dict()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"policies": "translation,cutot"}, "augment: expected some of brightness, .*, got 'cutot'"),
        ({"policies": "cutout", "probability": 1.5}, "augment_probability: expected a number in"),
        ({"policies": "cutout", "target": 1.0}, "augment_target: expected a number between -1 and 1"),
    ],
)
def test_refuses(arguments, match):
    with pytest.raises(ValueError, match=match):
        Augment(**arguments)
