"""Diffusion in any latent space: scale, layout, learning, refusals."""

import pytest
import torch
from torch import nn

from fastgen.models import DDPM, EDM, FlowMatching, LatentDiffusion, RealNVP
from tests.models.diffusion_cases import TINY, knowing


class Halves(nn.Module):
    """Latents are halves of data that are shuffled to half the size, and moved."""

    def __init__(self, as_distribution=False):
        super().__init__()
        self.as_distribution = as_distribution

    def encode(self, x):
        z = nn.functional.pixel_unshuffle(x, 2) / 2 + 3
        return torch.distributions.Normal(z, 1e-6) if self.as_distribution else z

    def decode(self, z):
        return nn.functional.pixel_shuffle((z - 3) * 2, 2)


def diffusion(cls=DDPM, size=2, channels=4, **options):
    return cls(size, channels, None, **{**TINY, **options})


@pytest.mark.parametrize("as_distribution", [False, True])
def test_latents_have_unit_scale_and_come_back(as_distribution):
    model = LatentDiffusion(Halves(as_distribution), diffusion())
    x = torch.randn(500, 1, 4, 4) * 5 + 1
    model.fit_scale(x)
    z = model.encode(x)
    assert z.shape == (500, 4, 2, 2)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(model.decode(z), x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("cls", [EDM, FlowMatching])
def test_draws_have_the_distribution_of_the_data(cls):
    model = LatentDiffusion(Halves(), diffusion(cls))
    model.fit_scale(torch.randn(4000, 1, 4, 4) * 5 + 1)
    knowing(model.diffusion, 0.0, 1.0)
    x = model.sample(2000, generator=torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(1.0, abs=0.1) and x.std().item() == pytest.approx(5.0, rel=0.05)


def test_of_a_flow_whose_latents_are_vectors():
    flow = RealNVP(image_size=[4, 4], image_channels=1, levels=17, channels=8, num_blocks=1)
    model = LatentDiffusion(flow, diffusion(size=4, channels=1))
    images = torch.randint(0, 17, (20, 1, 4, 4))
    model.fit_scale(images)
    torch.testing.assert_close(model.decode(model.encode(images)).floor().long(), images)
    again = LatentDiffusion(flow, diffusion(size=4, channels=1))
    again.load_state_dict(model.state_dict())
    assert again.sample(2, steps=2).shape == (2, 1, 4, 4)


def test_only_the_diffusion_learns():
    model = LatentDiffusion(RealNVP(image_size=[4, 4], image_channels=1, levels=17, channels=8, num_blocks=1),
                            diffusion(size=4, channels=1)).train()  # fmt: skip
    assert not model.autoencoder.training
    model.loss(torch.randint(0, 17, (4, 1, 4, 4))).backward()
    assert all(parameter.grad is None for parameter in model.autoencoder.parameters())
    assert any(parameter.grad is not None for parameter in model.diffusion.parameters())


def test_what_does_not_go_together():
    with pytest.raises(TypeError, match="autoencoder: expected a model with encode"):
        LatentDiffusion(nn.Linear(2, 2), diffusion())
    with pytest.raises(TypeError, match="diffusion: expected a diffusion model"):
        LatentDiffusion(Halves(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="expected levels None, got 17"):
        LatentDiffusion(Halves(), DDPM(2, 4, 17, **TINY))
    with pytest.raises(ValueError, match=r"expected one of the latents' shape \[4, 2, 2\]"):
        LatentDiffusion(Halves(), diffusion(size=4, channels=1)).loss(torch.randn(2, 1, 4, 4))
    with pytest.raises(ValueError, match="a channel that never changes"):
        LatentDiffusion(Halves(), diffusion()).fit_scale(torch.ones(3, 1, 4, 4))
