"""Noise is normal and the same on every backend; targets, updates and gradients are the papers' and diffusers'."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastgen import conformance as c
from fastgen.ops import diffusion_update, q_sample
from fastgen.ops.diffusion.cases import ddpm_coefficients, linear_alphas_cumprod
from fastgen.ops.extensions import UNUSABLE
from fastgen.ops.philox import philox_normal
from fastgen.ops.registry import use_backend

ALPHAS = linear_alphas_cumprod()
NOISE_ALONE = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
COMPILED = sorted({variant for op, variant in c.variants("cpu") if op.name == "diffusion_update"})
SEED, OFFSET = 2**62 + 2**33 + 5, 2**40 + 3


def drawn(shape: tuple, dtype: torch.dtype = torch.float32, **kwargs) -> Tensor:
    zeros = torch.zeros(shape, dtype=dtype)
    return diffusion_update(zeros, zeros, NOISE_ALONE, **{"seed": SEED, "offset": OFFSET, **kwargs})


@pytest.mark.parametrize("shape", [(1, 64), (3, 1000), (5, 2, 7, 11), (2,), (3, 4097)])
@pytest.mark.parametrize("variant", COMPILED)
def test_every_backend_draws_the_same_bits(variant: str, shape: tuple):
    expected = philox_normal(shape, seed=SEED, offset=OFFSET)
    with c.running_on(variant):
        assert torch.equal(drawn(shape), expected)
        assert torch.equal(drawn(shape, seed=torch.tensor(SEED)), expected)
        _, target = q_sample(torch.zeros(shape), torch.zeros(shape[0]).long(), ALPHAS, seed=SEED, offset=OFFSET)
        assert torch.equal(target, expected)
        assert not torch.equal(drawn(shape, offset=OFFSET + 1), expected)


def test_known_answer_of_philox():
    """Its authors' test vector: the words of counter 0 under key 0, through the method of Box and Muller."""
    words = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    found = philox_normal((64,), seed=0, offset=0)[::16]
    for j, (radius, angle) in enumerate((words[:2], words[:2], words[2:], words[2:])):
        r = math.sqrt(-2 * math.log((radius >> 1) * 2.0**-31 + 2.0**-32))
        turn = (angle >> 30) + ((angle & 0x3FFFFFFF) >> 6) * 2.0**-24 - 0.5
        expected = r * (math.sin if j % 2 else math.cos)(turn * math.pi / 2)
        assert abs(float(found[j]) - expected) < 1e-6


def test_what_is_drawn_is_normal():
    z = drawn((1, 1 << 20)).double()
    error = 1 / math.sqrt(z.numel())
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(float((z**power).mean()) - moment) < 4.5 * math.sqrt(spread) * error, power
    # Neighbours, pairs of one radius and words of one counter are independent, squares too.
    for lag in (1, 16, 32, 48, 64):
        for a, b in ((z[0, :-lag], z[0, lag:]), (z[0, :-lag] ** 2 - 1, z[0, lag:] ** 2 - 1)):
            assert abs(float((a * b).mean())) < 4.5 * float(a.std() * b.std()) * error, lag
    beyond = (z.abs() > 3.5).double().mean()
    assert abs(float(beyond) - math.erfc(3.5 / math.sqrt(2))) < 4.5 * math.sqrt(4.65e-4) * error


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_q_sample_with_given_noise_is_with_drawn(kind: str):
    x0, t = torch.randn(4, 3, 5, 5), torch.tensor([0, 10, 500, 999])
    noise = philox_normal(x0.shape, seed=SEED, offset=0)
    given = q_sample(x0, t, ALPHAS, noise=noise, prediction_type=kind)
    for value, expected in zip(q_sample(x0, t, ALPHAS, seed=SEED, prediction_type=kind), given, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


def test_targets_lead_back_to_x0():
    x0, t = torch.randn(4, 7, dtype=torch.float64), torch.tensor([0, 10, 500, 999])
    a = ALPHAS[t][:, None]
    x_t, noise = q_sample(x0, t, ALPHAS, seed=1)
    torch.testing.assert_close((x_t - (1 - a).sqrt() * noise) / a.sqrt(), x0)
    _, v = q_sample(x0, t, ALPHAS, seed=1, prediction_type="v_prediction")
    torch.testing.assert_close(a.sqrt() * x_t - (1 - a).sqrt() * v, x0)
    target = q_sample(x0, t, ALPHAS, seed=1, prediction_type="sample")[1]
    assert torch.equal(target, x0) and target is not x0


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_gradient_of_q_sample(kind: str):
    x0, t = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 500, 999])

    def call(x0: Tensor) -> tuple[Tensor, ...]:
        outputs = q_sample(x0, t, ALPHAS, seed=1, prediction_type=kind)
        return tuple(output for output in outputs if output.requires_grad)

    assert torch.autograd.gradcheck(call, x0)
    assert torch.autograd.gradgradcheck(lambda x0: call(x0)[0] ** 2, x0)


def test_gradient_of_the_update():
    x, eps, eps_prev = torch.randn(3, 2, 9, dtype=torch.float64).requires_grad_().unbind()
    kwargs = {"seed": 3, "offset": 2, "clip": 1.0, "return_x0": True}
    assert torch.autograd.gradcheck(
        lambda *tensors: diffusion_update(*tensors[:2], ddpm_coefficients(500), tensors[2], **kwargs),
        (x, eps, eps_prev),
    )
    with_gradient = diffusion_update(x, eps, ddpm_coefficients(500), eps_prev, **kwargs)
    without = diffusion_update(*(t.detach() for t in (x, eps)), ddpm_coefficients(500), eps_prev.detach(), **kwargs)
    for one, other in zip(with_gradient, without, strict=True):
        torch.testing.assert_close(one.detach(), other)


def test_ancestral_sampling_inverts_the_forward_process():
    """With the noise that was added as its output, the network's loop ends at x0 however it began."""
    x0 = torch.rand(8, 3, 4, 4, dtype=torch.float64) * 2 - 1
    x, _ = q_sample(x0, torch.full((8,), 999), ALPHAS, seed=1)
    for t in range(999, -1, -1):
        eps = (x - ALPHAS[t].sqrt() * x0) / (1 - ALPHAS[t]).sqrt()
        x = diffusion_update(x, eps, ddpm_coefficients(t), seed=2, offset=t, clip=1.0)
    torch.testing.assert_close(x, x0)


def test_posterior_variance_is_what_is_drawn():
    """From x_t of many samples of one x0, a step gives the mean and variance of the forward process a step before."""
    t, x0 = 400, torch.full((1, 1 << 18), 0.3, dtype=torch.float64)
    x, eps = q_sample(x0, torch.tensor([t]), ALPHAS, seed=5)
    before = diffusion_update(x, eps, ddpm_coefficients(t), seed=6)
    assert abs(float(before.mean()) - float(ALPHAS[t - 1].sqrt()) * 0.3) < 0.01
    assert abs(float(before.var()) / float(1 - ALPHAS[t - 1]) - 1) < 0.015


@pytest.mark.parametrize("t", [999, 700])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"clip_sample": True}, {"clip": 1.0}),
        ({"clip_sample": False}, {}),
        ({"clip_sample": False, "thresholding": True, "sample_max_value": 1.5}, {"dynamic_threshold": 0.995}),
    ],
)
def test_numbers_of_diffusers(t: int, theirs: dict, ours: dict):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(num_train_timesteps=1000, **theirs)
    x, eps = torch.randn(2, 4, 3, 16, 16)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    expected = scheduler.step(eps, t, x, generator=torch.Generator().manual_seed(3))
    largest = theirs.get("sample_max_value", math.inf)
    found = diffusion_update(
        x, eps, ddpm_coefficients(t), noise=noise, sample_max_value=largest, return_x0=True, **ours
    )
    for ours, theirs in zip(found, (expected.prev_sample, expected.pred_original_sample), strict=True):
        # At t = 999 x0 is a difference of numbers a hundred times its own size.
        torch.testing.assert_close(ours, theirs, rtol=3e-6, atol=3e-5 if t == 999 else 3e-6)


@pytest.mark.parametrize("quantile", [0.25, 0.9, 0.995, 1.0])
def test_dynamic_threshold_is_torchs_quantile(quantile: float):
    x, eps = torch.randn(2, 5, 3, 8, 9, dtype=torch.float64) * 2
    row = torch.tensor([0, 0, 0, 0, 1, 1.5, -0.5], dtype=torch.float64)
    x0 = (1.5 * x - 0.5 * eps).flatten(1)
    limit = torch.quantile(x0.abs(), quantile, dim=1).clamp(1, 2.5)[:, None]
    expected = (torch.maximum(torch.minimum(x0, limit), -limit) / limit).view_as(x)
    found = diffusion_update(x, eps, row, dynamic_threshold=quantile, sample_max_value=2.5)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize("bound", [{"clip": 1.0}, {"dynamic_threshold": 0.5}, {"dynamic_threshold": 1.0}])
def test_nan_goes_where_the_reference_sends_it(variant: str, bound: dict):
    x, eps = torch.randn(2, 3, 40)
    x[1, 3], eps[2, 5], x[0, 7] = float("nan"), float("inf"), float("-inf")
    row = torch.tensor([0.5, 0.5, 0, 0, 1, 1.5, -0.5])
    with use_backend("reference"):
        expected = diffusion_update(x, eps, row, **bound)
    with c.running_on(variant):
        found = diffusion_update(x, eps, row, **bound)
    assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.skipif(bool(UNUSABLE["cpp"]), reason="needs the CPU kernel")
def test_number_of_threads_changes_nothing():
    x, eps = torch.randn(2, 7, 3, 61, 67)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            found.append(diffusion_update(x, eps, ddpm_coefficients(300), seed=1, dynamic_threshold=0.9))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


X, T = torch.zeros(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x0": X.int()}, TypeError, "x0: expected a floating dtype"),
        ({"x0": torch.tensor(1.0)}, ValueError, r"x0: expected \[batch, \.\.\.\]"),
        ({"t": T[:1]}, ValueError, r"t: expected \[batch\], \(2,\), got \(1,\)"),
        ({"t": T.int()}, TypeError, "t: expected int64 on cpu, got torch.int32"),
        ({"t": T + 999}, ValueError, "t: expected steps of the schedule, 0 to 999, got 999 to 1000"),
        ({"t": T - 1}, ValueError, "t: expected steps of the schedule, 0 to 999, got -1 to 0"),
        ({"alphas_cumprod": ALPHAS[None]}, ValueError, r"alphas_cumprod: expected \[steps\], got \(1, 1000\)"),
        ({"noise": X}, ValueError, "noise: expected either noise or a seed"),
        ({"seed": None}, ValueError, "noise: expected either noise or a seed"),
        ({"seed": None, "noise": X[:1]}, ValueError, r"noise: expected the shape of x0, \(2, 3\), got \(1, 3\)"),
        ({"seed": -1}, ValueError, r"seed: expected 0 to 2\^63 - 1, got -1"),
        ({"seed": torch.zeros(2).long()}, ValueError, r"seed: expected one number, got \(2,\)"),
        ({"seed": torch.zeros(1)}, TypeError, "seed: expected int64 on cpu, got torch.float32"),
        ({"offset": 2**63}, ValueError, r"offset: expected 0 to 2\^63 - 1"),
        ({"prediction_type": "eps"}, ValueError, "prediction_type: expected one of epsilon, sample, v_prediction"),
    ],
)
def test_bad_arguments_of_q_sample(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        q_sample(**{"x0": X, "t": T, "alphas_cumprod": ALPHAS, "seed": 0, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X.int()}, TypeError, "x: expected a floating dtype"),
        ({"eps": X[:1]}, ValueError, r"eps: expected the shape of x, \(2, 3\), got \(1, 3\)"),
        ({"eps_prev": X.double()}, TypeError, "eps_prev: expected torch.float32 on cpu, got torch.float64"),
        ({"coefficients": torch.zeros(5)}, ValueError, r"coefficients: expected \[4\] or \[7\]"),
        ({"coefficients": torch.zeros(3, 7)}, ValueError, r"a row of them for each of 2, got \(3, 7\)"),
        ({"coefficients": torch.zeros(7).long()}, TypeError, "coefficients: expected a floating dtype"),
        ({"coefficients": torch.zeros(4), "clip": 1.0}, ValueError, "coefficients: expected 7 columns"),
        ({"coefficients": torch.zeros(4), "return_x0": True}, ValueError, "coefficients: expected 7 columns"),
        ({"noise": X, "seed": 1}, ValueError, "noise: expected noise or a seed, got both"),
        ({"clip": 0.0}, ValueError, "clip: expected a positive number, got 0.0"),
        ({"clip": 1.0, "dynamic_threshold": 0.9}, ValueError, "clip: expected clip or dynamic_threshold, got both"),
        ({"dynamic_threshold": 1.5}, ValueError, r"dynamic_threshold: expected a quantile in \(0, 1\], got 1.5"),
        ({"dynamic_threshold": 0.9, "sample_max_value": 0.5}, ValueError, "sample_max_value: expected at least 1"),
    ],
)
def test_bad_arguments_of_the_update(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        diffusion_update(**{"x": X, "eps": X, "coefficients": torch.zeros(7), **change})
