"""The executor for GPUs, run here without being captured: the same operations, on CPU tensors."""

from __future__ import annotations

import pytest
import torch

from fastgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP
from fastgen.sampling import CachedSampler, uniform_noise
from fastgen.sampling.run.captured import CapturedSession
from tests.sampling.exactness import LEVELS, assert_draws_as_naive, draw_of_levels
from tests.sampling.random_networks import RandomNetwork

MODELS = {
    "PixelCNN": lambda: PixelCNN(image_size=6, levels=5, channels=8, layers=2),
    "PixelCNN, RGB": lambda: PixelCNN(image_size=4, image_channels=3, levels=5, channels=6, layers=1),
    "GatedPixelCNN, labels": lambda: GatedPixelCNN(image_size=6, levels=5, channels=8, layers=2, num_classes=3),
    "PixelCNNPP, RGB": lambda: PixelCNNPP(image_size=8, image_channels=3, channels=6, resnets=1, num_mixtures=2),
}


def captured(model, device: str = "cpu", labels=None) -> CachedSampler:
    draw, colors = model.likelihood.draw, model.likelihood.colors
    forward = model._drawn_from
    return CachedSampler(
        model, model.shape, draw=draw, colors=colors, condition=labels, forward=forward, method="captured"
    )


@pytest.mark.parametrize("name", MODELS)
def test_draws_what_naive_sampling_draws(name: str):
    model = MODELS[name]().double().eval()
    labels = torch.tensor([0, 2, 1]) if model.num_classes else None
    noise = uniform_noise(captured(model, labels=labels).steps, 3, model.likelihood.draw)
    images = captured(model, labels=labels).sample(3, noise=noise, labels=labels)
    generated = CachedSampler(
        model,
        model.shape,
        draw=model.likelihood.draw,
        colors=model.likelihood.colors,
        condition=labels,
        forward=model._drawn_from,
        method="reference",
    ).sample(3, noise=noise, labels=labels)
    assert torch.equal(images, generated)


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed: int):
    model = RandomNetwork(seed, LEVELS).double().eval()
    sampler = CachedSampler(model, (1, 8, 8), draw=draw_of_levels(), method="captured")
    assert_draws_as_naive(sampler, model, n=2)


def test_completes_a_partial_image():
    model = MODELS["PixelCNN"]().double().eval()
    sampler = captured(model)
    given = torch.randint(0, 5, (2, 1, 6, 6))
    mask = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    mask[:, :, :3] = True
    images = sampler.sample(2, given=given, mask=mask)
    assert torch.equal(images[:, :, :3], given[:, :, :3])
    assert not torch.equal(images[:, :, 3:], given[:, :, 3:])


def test_steps_share_few_kinds():
    """A graph per kind of step is captured on a GPU: there must be a handful, however many pixels there are."""
    sampler = captured(PixelCNNPP(image_size=16, image_channels=3, channels=6, resnets=1, num_mixtures=2))
    session = CapturedSession(sampler.program, 1, torch.float64, sampler.draw, device="cpu")
    assert len(session._plan.kinds) <= 16 < sampler.steps


def test_a_distribution_of_nan_is_an_error():
    model = MODELS["PixelCNN"]().double().eval()
    sampler = captured(model)
    noise = uniform_noise(sampler.steps, 2, sampler.draw)
    for node in sampler.program.nodes:
        if node.bias is not None:
            node.bias.fill_(float("nan"))
    broken = CapturedSession(sampler.program, 2, torch.float64, sampler.draw, device="cpu")
    with pytest.raises(ValueError, match="no distribution to draw from"):
        broken.run(noise)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_on_a_gpu_draws_what_the_cpu_draws(name: str):
    model = MODELS[name]().double().eval()
    labels = torch.tensor([0, 2, 1]) if model.num_classes else None
    seeded = [torch.Generator().manual_seed(0) for _ in range(3)]
    on_cpu = model.sample(3, labels=labels, generator=seeded[0])
    model.cuda()
    labels = None if labels is None else labels.cuda()
    first = model.sample(3, labels=labels, generator=seeded[1])
    again = model.sample(3, labels=labels, generator=seeded[2])
    assert torch.equal(first, again) and torch.equal(first.cpu(), on_cpu)
