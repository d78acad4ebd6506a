"""A discretised mixture of logistics sums to one, is exact at every width, and its draws follow it on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

import fastgen
from fastgen.conformance import best_capability, relative_error
from fastgen.ops import (
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_log_prob_reference,
    discretized_logistic_mixture_sample,
    discretized_logistic_mixture_sample_reference,
)
from fastgen.ops.extensions import use_cpu_capability
from fastgen.ops.philox import philox

CAPABILITIES = ["AVX2", "AVX512"] if best_capability() == "AVX512" else ["AVX2"]


def grid(levels: int) -> Tensor:
    return torch.arange(levels, dtype=torch.float64) * 2 / (levels - 1) - 1


def network_output(channels: int, mixtures: int, positions: int, spread: float = 1.0) -> Tensor:
    """[1, planes, 1, positions] with log-scales around -2."""
    planes = 10 if channels == 3 else 3
    parameters = spread * torch.randn(1, planes, mixtures, 1, positions, dtype=torch.float64)
    parameters[:, 2::3] -= 2
    return parameters.flatten(1, 2)


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_channel_sums_to_one(levels: int, dtype: torch.dtype):
    parameters = network_output(1, 4, 9, spread=3).to(dtype).expand(levels, -1, -1, -1)
    x = grid(levels).to(dtype).view(levels, 1, 1, 1).expand(-1, -1, 1, 9)
    total = discretized_logistic_mixture_log_prob(x, parameters, levels=levels).double().exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12 if dtype == torch.float64 else 2e-6, atol=0)


@pytest.mark.parametrize("levels", [2, 7])
def test_three_channels_sum_to_one(levels: int):
    colours = torch.cartesian_prod(*[grid(levels)] * 3).view(-1, 3, 1, 1).expand(-1, -1, 1, 5)
    parameters = network_output(3, 3, 5, spread=2).expand(len(colours), -1, -1, -1)
    total = discretized_logistic_mixture_log_prob(colours, parameters, levels=levels).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)


def test_is_the_formula_of_the_paper():
    """Equation 2 and 3 written out for one pixel and two mixtures, as a difference of sigmoids."""
    x = grid(256)[[150, 40, 255]]
    parameters = network_output(3, 2, 1)
    logits, rest = parameters.flatten()[:2], parameters.flatten()[2:].view(3, 3, 2)
    mean, scale, k = rest[:, 0], rest[:, 1].exp(), rest[:, 2].tanh()
    mean = torch.stack([mean[0], mean[1] + k[0] * x[0], mean[2] + k[1] * x[0] + k[2] * x[1]])
    upper = torch.sigmoid((x[:, None] + 1 / 255 - mean) / scale)
    lower = torch.sigmoid((x[:, None] - 1 / 255 - mean) / scale)
    upper[2] = 1.0
    expected = (torch.softmax(logits, 0) * (upper - lower).prod(0)).sum().log()
    found = discretized_logistic_mixture_log_prob(x.view(1, 3, 1, 1), parameters)
    torch.testing.assert_close(found.squeeze(), expected, rtol=1e-9, atol=0)


def pixelcnnpp_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """One channel, one mixture as PixelCNN++'s code has it: a difference of sigmoids, and the density below 1e-5."""
    scale = torch.exp(-log_scale)
    middle, upper, lower = (x - mean) * scale, (x - mean + 1 / 255) * scale, (x - mean - 1 / 255) * scale
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    density = middle - log_scale - 2 * softplus(middle) - math.log(127.5)
    inner = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    edges = torch.where(x > 0.999, -softplus(lower), inner)
    return torch.where(x < -0.999, upper - softplus(upper), edges)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("log_scale", [-7, -5, -2, 0, 2, 5, 12, 30])
@pytest.mark.parametrize("distance", [0.0, 0.3, 30.0, 3000.0])
def test_exact_at_every_width(capability: str, log_scale: int, distance: float):
    x = grid(256).view(1, 1, 1, 256)
    parameters = torch.stack([torch.zeros(256), x.flatten() + distance, torch.full((256,), log_scale)]).double()
    parameters = parameters.view(1, 3, 1, 256).float()
    x = x.float()
    truth = discretized_logistic_mixture_log_prob_reference(x.double(), parameters.double())
    with use_cpu_capability(capability), fastgen.use_backend("cpp"):
        found = discretized_logistic_mixture_log_prob(x, parameters)
    usual = pixelcnnpp_log_prob(x, parameters[:, 1:2], parameters[:, 2:3])[:, 0]
    error, usual_error = relative_error(found, truth), relative_error(usual, truth)
    assert error < 3e-6 if truth.abs().max() < 0.1 else error < 2e-7
    assert error <= 2 * usual_error + 1e-7
    assert (found <= 0).all()


def test_more_exact_than_pixelcnnpp():
    """Wide scales are where the difference of sigmoids cancels and the switch at 1e-5 jumps."""
    x = grid(256).view(1, 1, 1, 256)
    parameters = torch.stack([torch.zeros(256), 0.1 * torch.randn(256), torch.linspace(-7, 5, 256)]).double()
    x, parameters = x.float(), parameters.view(1, 3, 1, 256).float()
    truth = discretized_logistic_mixture_log_prob_reference(x.double(), parameters.double())
    found = discretized_logistic_mixture_log_prob(x, parameters)
    usual = pixelcnnpp_log_prob(x, parameters[:, 1:2], parameters[:, 2:3])[:, 0]
    assert relative_error(usual, truth) > 20 * relative_error(found, truth)


def test_saves_nothing_beyond_its_inputs():
    x, parameters = torch.rand(2, 3, 4, 4, requires_grad=True), torch.randn(2, 20, 4, 4, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        discretized_logistic_mixture_log_prob(x, parameters)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), parameters.data_ptr()}


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_of_first_and_second_order(channels: int):
    x = grid(17)[torch.randint(17, (2, channels, 1, 3))].requires_grad_()
    parameters = network_output(channels, 2, 3).expand(2, -1, -1, -1).clone().requires_grad_()

    def log_prob(*inputs: Tensor) -> Tensor:
        return discretized_logistic_mixture_log_prob(*inputs, levels=17)

    with fastgen.use_backend("cpp"):
        assert torch.autograd.gradcheck(log_prob, (x, parameters))
        assert torch.autograd.gradgradcheck(log_prob, (x, parameters), fast_mode=True)


@pytest.mark.parametrize("log_scale", [50.0, 90.0, 110.0, 200.0])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_width_that_underflows_has_a_probability_and_a_gradient(backend: str, log_scale: float):
    parameters = torch.zeros(1, 3, 1, 1)
    parameters[:, 2] = log_scale
    parameters.requires_grad_()
    with fastgen.use_backend(backend):
        log_prob = discretized_logistic_mixture_log_prob(torch.full((1, 1, 1, 1), 0.1), parameters)
    log_prob.sum().backward()
    # Far below its scale the logistic density is flat: scale^-1 / 4 over a bin of 2 / 255.
    torch.testing.assert_close(log_prob.flatten()[0].item(), math.log(0.5 / 255) - log_scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(parameters.grad.flatten(), torch.tensor([0.0, 0.0, -1.0]))


def test_log_scale_below_the_clamp_has_no_gradient():
    x, parameters = torch.zeros(1, 1, 1, 1), torch.tensor([0.0, 0.001, -8.0]).view(1, 3, 1, 1).requires_grad_()
    discretized_logistic_mixture_log_prob(x, parameters).sum().backward()
    assert parameters.grad.flatten()[2] == 0 and parameters.grad.flatten()[1] != 0


@pytest.mark.parametrize("mixtures", [1, 10, 64, 65])
def test_any_number_of_mixtures(mixtures: int):
    x, parameters = grid(256)[torch.randint(256, (2, 3, 3, 5))].float(), torch.randn(2, 10 * mixtures, 3, 5)
    found = discretized_logistic_mixture_log_prob(x, parameters)
    torch.testing.assert_close(
        found, discretized_logistic_mixture_log_prob_reference(x, parameters), rtol=1e-5, atol=1e-5
    )
    explanation = fastgen.explain(discretized_logistic_mixture_log_prob, x, parameters)
    if mixtures > 64 and explanation[0].backend == "reference":
        assert "more than 64 mixtures" in str(explanation)


@pytest.mark.parametrize("plane", range(20))
def test_nan_stays_in_its_position(plane: int):
    x, parameters = torch.rand(2, 3, 9, 9), torch.randn(2, 20, 9, 9)
    parameters[1, plane, 4, 5] = torch.nan
    # A mixture so unlikely that its NaN could get lost.
    parameters[1, :2, 4, 5] += torch.tensor([0.0, -500.0]) if plane % 2 else torch.tensor([-500.0, 0.0])
    parameters.requires_grad_()
    found = discretized_logistic_mixture_log_prob(x, parameters)
    found.sum().backward()
    here = torch.zeros(2, 9, 9, dtype=torch.bool)
    here[1, 4, 5] = True
    assert torch.equal(found.isnan(), here)
    assert torch.equal(parameters.grad.isnan().any(1), here)


def test_minus_infinity_is_a_mixture_that_is_never_there():
    x, parameters = torch.rand(1, 3, 2, 2), torch.randn(1, 20, 2, 2)
    parameters[:, 1] = -torch.inf
    alone = parameters[:, ::2]
    found, expected = (discretized_logistic_mixture_log_prob(x, p) for p in (parameters, alone))
    torch.testing.assert_close(found, expected)


def frequencies(parameters: Tensor, channels: int, levels: int, draws: int) -> Tensor:
    """How often each combination of levels was drawn from one pixel's parameters."""
    many = parameters.expand(-1, -1, 1, draws)
    x = discretized_logistic_mixture_sample(many, channels=channels, levels=levels, seed=11)
    level = ((x.double() + 1) * (levels - 1) / 2).round().long()[0, :, 0]
    index = sum(level[c] * levels ** (channels - 1 - c) for c in range(channels))
    return torch.bincount(index, minlength=levels**channels)


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 17), (3, 4)])
def test_draws_follow_the_probabilities(channels: int, levels: int):
    """Pearson's chi-square of 200,000 draws, over the outcomes expected at least ten times."""
    draws, parameters = 200_000, network_output(channels, 3, 1)
    outcomes = torch.cartesian_prod(*[grid(levels)] * channels).view(-1, channels, 1, 1)
    log_prob = discretized_logistic_mixture_log_prob(
        outcomes, parameters.expand(len(outcomes), -1, 1, 1), levels=levels
    )
    expected = draws * log_prob.exp().flatten()
    found = frequencies(parameters, channels, levels, draws)
    usual = expected >= 10
    chi_square = ((found - expected).square() / expected)[usual].sum()
    degrees = int(usual.sum()) - 1
    assert degrees >= 1
    # The mean is `degrees`, the standard deviation sqrt(2 degrees): five of them, at a fixed seed.
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees) + 5


@pytest.mark.parametrize("variant", ["reference", "triton", *(f"cpp/{c}" for c in CAPABILITIES)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_backend_draws_the_same(variant: str, channels: int):
    parameters = network_output(channels, 3, 300).float().view(1, -1, 15, 20).expand(2, -1, -1, -1)
    arguments = {"channels": channels, "levels": 64, "seed": 2**62 + 12345, "offset": 2**33}
    expected = discretized_logistic_mixture_sample_reference(parameters, **arguments)
    backend, _, capability = variant.partition("/")
    with use_cpu_capability(capability or best_capability()), fastgen.use_backend(backend):
        found = discretized_logistic_mixture_sample(parameters, **arguments)
    assert torch.equal(found, expected)


def test_draws_are_the_sampler_s():
    """The sampler draws the same levels from the same uniform numbers."""
    from fastgen.ops.philox import philox_uniform
    from fastgen.sampling.draw import LogisticMixture

    parameters = network_output(3, 5, 400)
    uniforms = torch.stack(philox_uniform(torch.arange(400), seed=3, offset=0), 1)
    levels = LogisticMixture(3, 5, 256)(parameters[0, :, 0].t(), uniforms)
    found = discretized_logistic_mixture_sample(parameters, channels=3, seed=3)
    assert torch.equal(((found + 1) * 127.5).round().long()[0, :, 0], levels.t())


def test_draws_are_levels_and_depend_on_seed_and_offset_alone():
    parameters = torch.randn(2, 40, 6, 7)
    draw = discretized_logistic_mixture_sample(parameters, channels=3, levels=17, seed=5)
    nearest = ((draw + 1) * 8).round()
    assert torch.equal(draw, (nearest / 8 - 1)) and nearest.min() >= 0 and nearest.max() <= 16
    assert torch.equal(draw, discretized_logistic_mixture_sample(parameters, channels=3, levels=17, seed=5))
    for other in ({"seed": 6}, {"seed": 5, "offset": 1}):
        assert not torch.equal(draw, discretized_logistic_mixture_sample(parameters, channels=3, levels=17, **other))


@pytest.mark.parametrize("variant", ["reference", "triton", "cpp"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("plane", [0, 1, 4, 5, 16])
def test_what_cannot_be_drawn_is_nan(variant: str, value: float, plane: int):
    parameters = torch.randn(1, 20, 3, 3)
    parameters[0, 1] = -100.0
    parameters[0, plane, 1, 2] = value
    with fastgen.use_backend(variant):
        draw = discretized_logistic_mixture_sample(parameters, channels=3, seed=0)
    lost = draw.isnan().any(1)
    # The second mixture is never drawn, so a log-scale that is not finite there, plane 5, does no harm; its logit does.
    assert lost.nonzero().tolist() == ([] if plane == 5 else [[0, 1, 2]])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    """The known-answer vectors of the authors' Random123 library for philox4x32-10."""
    found = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in found) == words


@pytest.mark.parametrize(
    ("x", "parameters", "arguments", "error", "message"),
    [
        (
            (2, 3, 4, 4),
            (2, 25, 4, 4),
            {},
            ValueError,
            r"parameters: expected \[batch, 10 \* mixtures.* got \(2, 25, 4, 4\)",
        ),
        ((2, 1, 4, 4), (2, 10, 4, 4), {}, ValueError, r"parameters: expected \[batch, 3 \* mixtures"),
        ((2, 1, 4, 4), (2, 0, 4, 4), {}, ValueError, "parameters: expected"),
        (
            (2, 2, 4, 4),
            (2, 20, 4, 4),
            {},
            ValueError,
            r"x: expected \[batch, 1 or 3, height, width\], got \(2, 2, 4, 4\)",
        ),
        ((2, 3, 4), (2, 10, 4), {}, ValueError, "x: expected"),
        ((2, 3, 4, 4), (1, 10, 4, 4), {}, ValueError, "x: expected the batch, height and width of parameters"),
        ((2, 3, 4, 4), (2, 10, 4, 5), {}, ValueError, "x: expected the batch, height and width of parameters"),
        ((2, 3, 4, 4), (2, 10, 4, 4), {"levels": 1}, ValueError, "levels: expected 2 to 65536, got 1"),
    ],
)
def test_bad_shapes(x, parameters, arguments, error, message):
    with pytest.raises(error, match=message):
        discretized_logistic_mixture_log_prob(torch.zeros(x), torch.zeros(parameters), **arguments)


def test_bad_dtypes():
    with pytest.raises(TypeError, match=r"parameters: expected a floating dtype, got torch.int64"):
        discretized_logistic_mixture_log_prob(torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"x: expected torch.float32 on cpu, got torch.float64 on cpu"):
        discretized_logistic_mixture_log_prob(torch.zeros(1, 1, 2, 2).double(), torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2, "seed": 0}, "channels: expected 1 or 3, got 2"),
        ({"channels": 3, "seed": 0}, r"parameters: expected \[batch, 10 \* mixtures"),
        ({"channels": 1, "seed": -1}, r"seed: expected 0 to 2\^63 - 1, got -1"),
        ({"channels": 1, "seed": 0, "offset": 2**63}, r"offset: expected 0 to 2\^63 - 1"),
        ({"channels": 1, "seed": 0, "levels": 2**17}, "levels: expected 2 to 65536"),
    ],
)
def test_bad_draws(arguments, message):
    with pytest.raises(ValueError, match=message):
        discretized_logistic_mixture_sample(torch.zeros(1, 3, 2, 2), **arguments)
