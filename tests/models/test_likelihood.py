"""Probabilities of all images sum to one, in nats and bits, in any precision."""

import itertools
import math

import pytest
import torch

from fastgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP


def all_images(levels, shape):
    return torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape)))).view(-1, *shape)


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        (PixelCNN(image_size=2, levels=2, channels=4, layers=1), None),
        (PixelCNN(image_size=1, image_channels=3, levels=4, channels=6, layers=1), None),
        (PixelCNN(image_size=(1, 2), image_channels=3, levels=2, channels=6, layers=1), None),
        (GatedPixelCNN(image_size=2, levels=3, channels=4, layers=2), None),
        (GatedPixelCNN(image_size=1, image_channels=3, levels=5, channels=6, layers=2, num_classes=2), 1),
        (PixelCNNPP(image_size=2, image_channels=1, levels=3, channels=4, resnets=1, scales=2), None),
        (PixelCNNPP(image_size=1, image_channels=3, levels=6, channels=4, resnets=1, scales=1, num_classes=2), 0),
        (PixelCNNPP(image_size=(1, 2), image_channels=3, levels=2, channels=4, resnets=1, scales=1), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_probabilities_of_all_images_sum_to_one(model, labels):
    images = all_images(model.levels, model.shape)
    model = model.double().eval()
    with torch.no_grad():
        # Away from the initial, nearly uniform distribution.
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        log_prob = model.log_prob(images, None if labels is None else torch.full((len(images),), labels))
    assert log_prob.std() > 0.01
    assert abs(log_prob.exp().sum().item() - 1) < 1e-12


def test_categorical_log_prob_reads_the_logit_of_each_level():
    model = PixelCNN(image_size=3, image_channels=3, levels=4, channels=6, layers=1).double()
    images = torch.randint(4, (2, 3, 3, 3))
    logits = model(model.normalize(images))
    assert logits.shape == (2, 4, 3, 3, 3)
    expected = logits.log_softmax(1).gather(1, images[:, None]).sum((1, 2, 3, 4))
    torch.testing.assert_close(model.log_prob(images), expected)


def test_loss_is_nats_per_image_and_bits_are_per_dimension(model, images, labels):
    log_prob = model.log_prob(images, labels)
    assert log_prob.shape == (3,) and log_prob.dtype == torch.float64
    torch.testing.assert_close(model.loss(images, labels), -log_prob.mean())
    bits = -log_prob / math.log(2) / images[0].numel()
    torch.testing.assert_close(model.bits_per_dim(images, labels), bits)


def test_uint8_and_int64_images_are_the_same(model, images, labels):
    assert torch.equal(model.log_prob(images.to(torch.uint8), labels), model.log_prob(images, labels))


def test_levels_are_spread_evenly_from_minus_one_to_one():
    model = PixelCNN(image_size=1, levels=5, channels=2, layers=1)
    assert model.normalize(torch.arange(5)).tolist() == [-1, -0.5, 0, 0.5, 1]
    # A bfloat16 model sees the numbers that a float32 one sees, rounded once.
    model = PixelCNN(image_size=1, levels=256, channels=2, layers=1)
    levels = torch.arange(256, dtype=torch.uint8)
    seen = model.normalize(levels)
    assert torch.equal(model.bfloat16().normalize(levels), seen.bfloat16())


def test_half_precision_sums_in_float32(model, images, labels):
    expected = model.log_prob(images, labels)
    log_prob = model.bfloat16().log_prob(images, labels)
    assert log_prob.dtype == torch.float32
    assert ((log_prob - expected) / expected).abs().max() < 0.05


def test_autocast_scores_about_the_same_in_float32(model, images, labels):
    model = model.float()
    expected = model.log_prob(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        log_prob = model.log_prob(images, labels)
    assert log_prob.dtype == torch.float32 and not torch.equal(log_prob, expected)
    assert ((log_prob - expected) / expected).abs().max() < 0.05
    log_prob.sum().backward()


@pytest.mark.parametrize("model", ["gated-rgb", "pixelcnnpp"], indirect=True)
def test_labels_change_the_density(model, images, labels):
    other = (labels + 1) % model.num_classes
    assert (model.log_prob(images, labels) != model.log_prob(images, other)).all()
    mixed = torch.stack((labels[0], other[1], labels[2]))
    expected = torch.where(mixed == labels, model.log_prob(images, labels), model.log_prob(images, other))
    torch.testing.assert_close(model.log_prob(images, mixed), expected)
