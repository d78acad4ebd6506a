"""Discrepancies are their definitions and KID's, unbiased, exact far from the origin, in memory of the points' size."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.conformance import best_capability, running_on
from fastgen.ops import polynomial_mmd, polynomial_mmd_reference, rbf_mmd, rbf_mmd_reference
from fastgen.ops.pairs import features

VARIANTS = ["cpp/AVX2"] + ["cpp/AVX512"] * (best_capability() == "AVX512")


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


@pytest.fixture(params=["reference", *VARIANTS])
def backend(request):
    with running_on(request.param) if "/" in request.param else fastgen.use_backend(request.param):
        yield request.param


def kid_of_numpy(x: np.ndarray, y: np.ndarray) -> float:
    """As torch-fidelity and torchmetrics compute one subset, in float64."""
    m, n, d = len(x), len(y), x.shape[1]
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2 * xy.sum() / (m * n))


@pytest.mark.parametrize("d", [3, 600])
def test_is_the_kid_of_a_subset(backend, d: int):
    generator = torch.Generator().manual_seed(0)
    x, y = features(150, d, generator) + 0.3, features(130, d, generator) * 1.2
    expected = kid_of_numpy(x.double().numpy(), y.double().numpy())
    assert polynomial_mmd(x.double(), y.double()).item() == pytest.approx(expected, rel=1e-12)
    # Kernel values are a hundred times their difference.
    assert polynomial_mmd(x, y).item() == pytest.approx(expected, rel=1e-5 if backend == "reference" else 1e-6)


def test_subsets_of_kid_to_a_millionth():
    """Features whose spectrum decays as a network's, of distributions that are close."""
    generator = torch.Generator().manual_seed(1)
    x, y = features(3000, 512, generator).relu(), (features(3000, 512, generator) * 1.02).relu()
    subsets = torch.randperm(3000, generator=generator).view(6, 500)
    found = polynomial_mmd(x[subsets], y[subsets])
    expected = [kid_of_numpy(x[s].double().numpy(), y[s].double().numpy()) for s in subsets]
    assert np.mean(found.double().numpy()) == pytest.approx(np.mean(expected), rel=1e-6)


def test_rbf_is_its_definition(backend):
    x, y = randn(70, 5), randn(90, 5) + 0.4

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-0.3 * (a[:, None] - b).square().sum(-1)).exp()

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    expected = xx.mean() + yy.mean() - 2 * xy.mean()
    torch.testing.assert_close(rbf_mmd(x, y, 0.3), expected, rtol=1e-12, atol=0)
    off = (xx.sum() - 70) / (70 * 69) + (yy.sum() - 90) / (90 * 89) - 2 * xy.mean()
    torch.testing.assert_close(rbf_mmd(x, y, 0.3, unbiased=True), off, rtol=1e-11, atol=0)


def test_the_unbiased_estimate_has_mean_zero(backend):
    """Of two samples of one distribution, where the biased one is always positive."""
    x, y = randn(400, 20, 3), randn(400, 20, 3)
    for mmd, biased in (
        (polynomial_mmd(x, y), polynomial_mmd(x, y, unbiased=False)),
        (rbf_mmd(x, y, 0.4, unbiased=True), rbf_mmd(x, y, 0.4)),
    ):
        assert abs(mmd.mean()) < 4 * mmd.std() / 20
        assert (biased > 0).all()


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_far_from_the_origin(variant: str, offset: float):
    x, y = (offset + randn(200, 6, dtype=torch.float32) for _ in range(2))
    truth = rbf_mmd_reference(x.double(), y.double(), 0.2)
    with running_on(variant):
        assert rbf_mmd(x, y, 0.2).item() == pytest.approx(truth.item(), rel=1e-5)


def test_same_points_have_no_discrepancy(backend):
    x = randn(100, 4)
    assert abs(polynomial_mmd(x, x, unbiased=False)) < 1e-12
    assert abs(rbf_mmd(x, x, 0.5)) < 1e-14


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("chunk", [2**20, 8])
def test_gradients(backend, unbiased: bool, chunk: int, monkeypatch):
    monkeypatch.setattr("fastgen.ops.mmd.gradient.CHUNK", chunk)
    x, y = randn(6, 3).requires_grad_(), randn(8, 3).requires_grad_()
    for call in (
        lambda x, y: polynomial_mmd(x, y, unbiased=unbiased),
        lambda x, y: polynomial_mmd(x, y, degree=4, coef0=0.3, gamma=0.6, unbiased=unbiased),
        lambda x, y: polynomial_mmd(x, y, degree=1, unbiased=unbiased),
        lambda x, y: rbf_mmd(x, y, 0.4, unbiased=unbiased),
    ):
        assert torch.autograd.gradcheck(call, (x, y))
        assert torch.autograd.gradgradcheck(call, (x, y), fast_mode=True)


def test_can_be_trained_on():
    """A step along the gradient brings generated features nearer."""
    target = randn(300, 8, dtype=torch.float32)
    x = (randn(300, 8, dtype=torch.float32) * 0.5 + 1).requires_grad_()
    for loss in (lambda x: polynomial_mmd(x, target), lambda x: rbf_mmd(x, target, 0.1)):
        before = loss(x)
        (gradient,) = torch.autograd.grad(before, x)
        assert loss(x - 0.3 * gradient / gradient.abs().max()) < 0.9 * before


@pytest.mark.parametrize("shape", [(1, 1, 700, 3), (1, 1, 64, 3), (5, 1, 65, 2), (1, 1, 130, 5000)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pair_counts_once(variant: str, shape: tuple[int, ...]):
    """In whole tiles and the rest, in several panels, and of whatever problem a thread has."""
    x, y = randn(*shape) / 10, randn(*shape) / 10 + 0.1
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with running_on(variant):
            found = polynomial_mmd(x, y), rbf_mmd(x, y, 1 / shape[-1], unbiased=True)
        torch.testing.assert_close(found[0], polynomial_mmd_reference(x, y), rtol=1e-9, atol=1e-13)
        truth = rbf_mmd_reference(x, y, 1 / shape[-1], unbiased=True)
        torch.testing.assert_close(found[1], truth, rtol=1e-9, atol=1e-13)
    torch.set_num_threads(before)


def test_the_reference_goes_in_chunks(monkeypatch):
    x, y = randn(2, 40, 3).requires_grad_(), randn(2, 30, 3).requires_grad_()
    found = []
    for chunk in (2**22, 100):
        monkeypatch.setattr(sys.modules[polynomial_mmd.__module__], "CHUNK", chunk)
        value = polynomial_mmd_reference(x, y) + rbf_mmd_reference(x, y, 0.3)
        found.append((value.detach(), *torch.autograd.grad(value.sum(), (x, y))))
    for one, many in zip(*found, strict=True):
        torch.testing.assert_close(one, many)


def test_memory_is_that_of_the_points():
    x, y = torch.randn(4000, 16), torch.randn(4000, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        polynomial_mmd(x, y)
        rbf_mmd(x, y, 0.1)
    allocated = sum(max(0, e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    # All that was ever allocated; the values of all pairs are 250 times the points, of each of three matrices.
    assert allocated <= 12 * x.numel() * 4


BAD = [
    (polynomial_mmd, {"degree": 0}, ValueError, "degree: expected at least 1, got 0"),
    (polynomial_mmd, {"degree": 2.0}, TypeError, "degree: expected an int, got float"),
    (polynomial_mmd, {"coef0": torch.nan}, ValueError, "coef0: expected a finite number, got nan"),
    (polynomial_mmd, {"gamma": torch.inf}, ValueError, "gamma: expected a finite number or None, got inf"),
    (polynomial_mmd, {"x": torch.zeros(1, 2)}, ValueError, "x: expected at least two points where unbiased"),
    (rbf_mmd, {"gamma": 0.0}, ValueError, "gamma: expected a positive, finite number, got 0.0"),
    (rbf_mmd, {"gamma": torch.nan}, ValueError, "gamma: expected a positive, finite number, got nan"),
    (rbf_mmd, {"gamma": 1.0, "y": torch.zeros(0, 2)}, ValueError, r"y: expected at least one point, got \(0, 2\)"),
    (polynomial_mmd, {"y": torch.zeros(5, 3)}, ValueError, r"x: expected \[..., M, 3\] as y, got \(4, 2\)"),
    (polynomial_mmd, {"y": torch.full((5, 2), torch.nan)}, ValueError, r"y: expected finite .* in 5 rows"),
    (polynomial_mmd, {"x": torch.zeros(4, 2, dtype=torch.int32)}, TypeError, "x: expected a floating dtype"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "change", "error", "message"), BAD)
def test_bad_arguments(call, change: dict, error: type, message: str):
    arguments = {"x": torch.zeros(4, 2), "y": torch.zeros(5, 2), **change}
    with pytest.raises(error, match=message):
        call(**arguments)
