"""Densities of flows integrate to one, and samples fall where they are."""

import math

import pytest
import torch

from fastgen.models import MAF, NeuralSplineFlow, RealNVP
from fastgen.models.preprocessing import Center, Logit, Standardize
from tests.models.flow_cases import make


def density_mass(flow, context=None, low=-8.0, high=8.0, steps=400):
    """The integral of the density over the square [low, high]^2, at the middles of `steps` x `steps` cells."""
    cell = (high - low) / steps
    axis = low + cell * (torch.arange(steps, dtype=flow.dtype) + 0.5)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_prob = flow.log_prob(grid, None if context is None else context.expand(len(grid), *context.shape[1:]))
    return log_prob.double().exp().sum().item() * cell**2


PLANE = {
    "nsf": (NeuralSplineFlow, {}),
    "nsf-lu": (NeuralSplineFlow, {"linear": "lu", "mean": [0.5, 0.0], "std": [1.0, 0.5]}),
    "nsf-autoregressive": (NeuralSplineFlow, {"autoregressive": True}),
    "realnvp": (RealNVP, {}),
    "maf": (MAF, {}),
}


@pytest.mark.parametrize("name", PLANE)
def test_samples_fall_where_the_density_is(name):
    """The mass of a square is the share of samples in it, also for densities that reach far."""
    kind, config = PLANE[name]
    flow = kind(features=2, transforms=3, hidden_features=16, num_blocks=1, **config)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    n = 40000
    share = ((flow.sample(n) - 1.5).abs() < 1.5).all(1).double().mean().item()
    assert 0.02 < share < 0.98
    noise = math.sqrt(share * (1 - share) / n)
    assert density_mass(flow, low=0.0, high=3.0) == pytest.approx(share, abs=4 * noise + 1e-3)


@pytest.mark.parametrize("name", PLANE)
def test_a_trained_density_integrates_to_one(name):
    kind, config = PLANE[name]
    flow = kind(features=2, transforms=4, hidden_features=16, num_blocks=1, **config)
    # A ring: far from the normal that it starts as.
    angle = 2 * math.pi * torch.rand(2000)
    ring = torch.stack((angle.cos(), angle.sin()), 1) * 2 + 0.2 * torch.randn(2000, 2)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    with torch.no_grad():
        before = flow.loss(ring)
    for batch in ring.split(200) * 6:
        optimizer.zero_grad()
        flow.loss(batch).backward()
        optimizer.step()
    with torch.no_grad():
        assert flow.loss(ring) < before - 0.3
    assert density_mass(flow) == pytest.approx(1.0, abs=5e-3)


def test_a_density_given_a_context_integrates_to_one():
    flow = make("realnvp-classes")
    for label in range(3):
        assert density_mass(flow, torch.tensor([label]), low=-12.0, high=12.0) == pytest.approx(1.0, abs=2e-3)


def test_preprocessing_inverts_and_has_its_jacobian():
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64) * 9
    for preprocess in (Center(9), Logit(9, 0.05)):
        y, logabsdet = preprocess(x)
        back, inverse_logabsdet = preprocess.inverse(y)
        torch.testing.assert_close(back, x)
        slopes = torch.autograd.functional.jacobian(lambda v, f=preprocess: f(v)[0].sum(), x)
        expected = slopes.log().flatten(1).sum(1)
        torch.testing.assert_close(torch.as_tensor(logabsdet, dtype=torch.float64).expand(3), expected)
        torch.testing.assert_close(torch.as_tensor(inverse_logabsdet, dtype=torch.float64).expand(3), -expected)
    # The ends of the range are at a finite distance.
    assert Logit(9, 0.05)(torch.tensor([0.0, 9.0]).view(2, 1, 1, 1))[0].isfinite().all()
    v = torch.randn(4, 2)
    y, logabsdet = Standardize(2, [1, 2], [2, 0.25])(v)
    torch.testing.assert_close(y, (v - torch.tensor([1.0, 2.0])) / torch.tensor([2.0, 0.25]))
    assert logabsdet == pytest.approx(-math.log(0.5))


def test_the_logit_keeps_its_digits_at_both_ends_of_the_range():
    """With the least alpha in use, at the ends and within an ulp of them."""
    ends = torch.tensor([0.0, 1e-6, 1e-3, 1.0, 128.0, 255.0, 255.999])
    x = torch.cat([ends, torch.nextafter(torch.tensor([256.0]), ends[:1]), torch.tensor([256.0])]).view(-1, 1, 1, 1)
    logit = Logit(256, 1e-6)
    for found, exact in zip(logit(x), logit(x.double()), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=3e-7, atol=3e-7)
    y, _ = logit(x[[0, -1]])
    assert torch.equal(y[0], -y[1])
    beyond = torch.tensor([-1.0, 257.0]).view(-1, 1, 1, 1)
    assert logit(beyond)[0].isnan().all()


def test_bound_is_below_the_probability_of_the_levels():
    """Averaged over noise, the bound is below the logarithm of the averaged density, which is the probability."""
    flow = make("glow-grey")
    images = torch.randint(5, (1, *flow.shape)).expand(512, *flow.shape)
    bounds = flow.log_prob_bound(images, generator=torch.Generator().manual_seed(0))
    assert bounds.std() > 0
    assert bounds.mean() < bounds.logsumexp(0) - math.log(len(bounds))
