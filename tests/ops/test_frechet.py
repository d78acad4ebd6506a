"""The Frechet distance and its gradients equal an oracle's, for matrices of any rank and kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.ops import (
    FrechetReference,
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_from_features_reference,
    moments,
)
from fastgen.ops.frechet import overlap
from fastgen.ops.sqrtm import roots
from fastgen.ops.sqrtm.cases import inception_like

# Rows of both sides beside 60 features, by the algorithm they lead to.
SIZES = {
    "full rank": (200, 150),
    "barely full rank": (62, 61),
    "as many rows as features": (60, 60),
    "fewer rows": (40, 25),
    "fewer rows of the first": (25, 200),
    "fewer rows of the second": (200, 25),
    "two rows": (2, 3),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def features(n: int, d: int = 60, shift: float = 0.0) -> Tensor:
    """With the decay of Inception's features."""
    spread = (12 * torch.arange(1, d + 1, dtype=torch.float64) ** -1.25 + 2e-4).sqrt()
    return torch.randn(n, d, dtype=torch.float64) * spread + 0.4 + shift


def both(sizes: tuple[int, int], **options) -> tuple[Tensor, Tensor]:
    return features(sizes[0], **options), features(sizes[1], shift=0.05, **options)


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).detach().norm() / truth.detach().norm())


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_distance_of_features_is_the_oracle_s(sizes: tuple[int, int]):
    x, y = both(sizes)
    expected = frechet_distance_from_features_reference(x, y)
    error = 1e-9 if min(sizes) > 60 else 1e-7
    assert relative_error(frechet_distance_from_features(x, y), expected) < error
    assert relative_error(frechet_distance_from_features(y, x), expected) < error
    # A reference is a matrix of the rank that its features have.
    assert relative_error(frechet_distance_from_features(x, FrechetReference.from_features(y)), expected) < 1e-7


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_distance_of_statistics_is_the_oracle_s(sizes: tuple[int, int]):
    x, y = both(sizes)
    expected = frechet_distance_from_features_reference(x, y)
    found = frechet_distance(*moments(x), *moments(y))
    assert relative_error(found, expected) < (1e-9 if min(sizes) > 62 else 1e-6)


def test_the_oracle_is_scipy_s_root():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = both((300, 250), d=12)
    (mu1, sigma1), (mu2, sigma2) = moments(x), moments(y)
    root = linalg.sqrtm(sigma1.numpy() @ sigma2.numpy())
    expected = ((mu1 - mu2) ** 2).sum() + sigma1.trace() + sigma2.trace() - 2 * float(np.trace(root).real)
    assert relative_error(frechet_distance_from_features_reference(x, y), expected) < 1e-10
    assert relative_error(frechet_distance(mu1, sigma1, mu2, sigma2), expected) < 1e-10


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_set_is_at_no_distance_from_itself(sizes: tuple[int, int]):
    x = features(sizes[0])
    scale = x.var(0).sum()
    for found in (
        frechet_distance_from_features(x, x.flip(0)),
        frechet_distance_from_features(x, FrechetReference.from_features(x)),
        frechet_distance(*moments(x), *moments(x)),
    ):
        assert 0 <= found < 1e-11 * scale


def test_normal_distributions_with_known_distances():
    mu, sigma = torch.zeros(3, dtype=torch.float64), torch.diag(torch.tensor([1.0, 4, 9])).double()
    assert frechet_distance(mu, sigma, mu + 2, sigma) == pytest.approx(12)
    assert frechet_distance(mu, sigma, mu, 4 * sigma) == pytest.approx(14)
    assert frechet_distance(mu, sigma, mu, torch.zeros_like(sigma)) == pytest.approx(14)
    batch = frechet_distance(mu, torch.stack([sigma, 4 * sigma]), mu, sigma)
    torch.testing.assert_close(batch, torch.tensor([0, 14.0]).double(), atol=1e-12, rtol=1e-12)


def test_distance_does_not_see_rotations():
    x, y = both((200, 25))
    turn = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q
    found = frechet_distance_from_features(x @ turn, y @ turn)
    assert relative_error(found, frechet_distance_from_features(x, y)) < 1e-10


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("cached", [False, True])
def test_gradients_are_the_oracle_s(sizes: tuple[int, int], cached: bool):
    x, y = (t.requires_grad_() for t in both(sizes))
    other = FrechetReference.from_features(y.detach()) if cached else y
    found = torch.autograd.grad(frechet_distance_from_features(x, other), (x,) if cached else (x, y))
    expected = torch.autograd.grad(frechet_distance_from_features_reference(x, other), (x,) if cached else (x, y))
    for one, true in zip(found, expected, strict=True):
        assert relative_error(one, true) < 1e-6


@pytest.mark.parametrize("sizes", [(3, 59, 7), (7, 15, 8), (20, 30, 6)], ids=str)
@pytest.mark.parametrize("cached", [False, True])
def test_gradients_that_are_differentiated_again_are_the_same(sizes: tuple[int, int, int], cached: bool):
    n, m, d = sizes
    x, y = torch.randn(n, d, dtype=torch.float64, requires_grad=True), torch.randn(m, d, dtype=torch.float64) + 1
    value = frechet_distance_from_features(x, FrechetReference.from_features(y) if cached else y)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (again,) = torch.autograd.grad(value, x, create_graph=True)
    torch.testing.assert_close(again.detach(), first, rtol=1e-9, atol=1e-9)
    assert torch.autograd.grad(again.square().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("sizes", [(40, 25), (25, 200), (200, 150)])
def test_gradient_of_features_that_lack_rank_is_bounded(sizes: tuple[int, int]):
    """Rows twice, columns that are constant: the polar factor of what is left, and no more."""
    x, y = both(sizes)
    x[1], x[:, 5], y[:, 7] = x[0], 0.25, 0.0
    x.requires_grad_()
    for other in (y, FrechetReference.from_features(y)):
        gradient = torch.autograd.grad(frechet_distance_from_features(x, other), x)[0]
        assert gradient.isfinite().all()
        centred = [(t - t.mean(0)).detach() / math.sqrt(len(t) - 1) for t in (x, y)]
        left, singular, right = torch.linalg.svd(centred[0] @ centred[1].mT, full_matrices=False)
        kept = singular > 1e-9 * singular[0]
        overlap = left[:, kept] @ right[kept] @ centred[1] / math.sqrt(len(x) - 1)
        expected = 2 * (x.mean(0) - y.mean(0)) / len(x) + 2 * (centred[0] / math.sqrt(len(x) - 1) - overlap)
        assert relative_error(gradient, expected) < 1e-6


def test_training_on_the_distance_reaches_it():
    reference = FrechetReference.from_features(features(400, d=8))
    x = features(64, d=8, shift=1.0).requires_grad_()
    first = frechet_distance_from_features(x, reference)
    optimizer = torch.optim.SGD([x], lr=10)
    for _ in range(100):
        optimizer.zero_grad()
        loss = frechet_distance_from_features(x, reference)
        loss.backward()
        optimizer.step()
    assert first > 5 and loss < 1e-4


def test_float32_features_are_computed_in_float64():
    for sizes in SIZES.values():
        x, y = (t.float() for t in both(sizes))
        expected = frechet_distance_from_features_reference(x.double(), y.double())
        found = frechet_distance_from_features(x, y)
        assert found.dtype == torch.float32 and relative_error(found.double(), expected) < 1e-6


def test_half_precision_features():
    x, y = (t.bfloat16() for t in both((25, 200)))
    found = frechet_distance_from_features(x.requires_grad_(), y)
    assert found.dtype == torch.float32
    found.backward()
    assert x.grad.dtype == torch.bfloat16
    assert relative_error(found.double(), frechet_distance_from_features_reference(x.double(), y.double())) < 1e-6


@pytest.mark.parametrize("sizes", [(25, 40), (25, 200), (200, 150)])
def test_the_way_of_a_gpu_gives_the_same(sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    x, y = both(sizes)
    x.requires_grad_()
    expected = frechet_distance_from_features(x, y)
    gradient = torch.autograd.grad(expected, x)[0]
    for module in (overlap, roots):
        monkeypatch.setattr(module, "pays", lambda a: True)
    found = frechet_distance_from_features(x, y)
    assert relative_error(found, expected) < 1e-9
    assert relative_error(torch.autograd.grad(found, x)[0], gradient) < 1e-6


def test_cases_of_the_benchmark_are_covariances_of_inception_s_kind():
    a, b = inception_like(64)
    assert torch.equal(a, a.mT) and torch.linalg.eigvalsh(b).min() > 1e-5


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_features_that_are_not_finite_are_counted(backend: str):
    x, y = both((10, 9), d=4)
    y[2, 0] = y[2, 1] = y[5, 3] = float("nan")
    with fastgen.use_backend(backend):
        for call in (lambda: frechet_distance_from_features(x, y), lambda: frechet_distance_from_features(y, x)):
            with pytest.raises(ValueError, match=r"[xy]: .* NaN or infinity in 2 of 9 rows"):
                call()
        with pytest.raises(ValueError, match="NaN or infinity in 2 of 9 rows"):
            FrechetReference.from_features(y)


def test_bad_features():
    x = features(9, d=4)
    for bad in (x[:1], x[:0]):
        with pytest.raises(ValueError, match=r"y: expected at least two rows"):
            frechet_distance_from_features(x, bad)
    with pytest.raises(ValueError, match=r"expected features of width 5 as y has, got \(9, 4\)"):
        frechet_distance_from_features(x, features(9, d=5))
    with pytest.raises(ValueError, match=r"expected features of width 5 as y has, got \(9, 4\)"):
        frechet_distance_from_features(x, FrechetReference(torch.zeros(5), torch.eye(5)))
    with pytest.raises(ValueError, match=r"x: expected features \[N, d\], got \(4,\)"):
        frechet_distance_from_features(x[0], x)
    with pytest.raises(TypeError, match=r"x: expected a floating dtype, got torch\.int64"):
        frechet_distance_from_features(x.long(), x)


def test_bad_statistics():
    mu, sigma = torch.zeros(3), torch.eye(3)
    skewed = sigma.clone()
    skewed[0, 1] = 1
    for name, args in (("sigma1", (mu, skewed, mu, sigma)), ("sigma2", (mu, sigma, mu, skewed))):
        with pytest.raises(ValueError, match=f"{name}: expected symmetric matrices"):
            frechet_distance(*args)
    for name, args in (("sigma1", (mu, -sigma, mu, sigma)), ("sigma2", (mu, sigma, mu, -sigma))):
        with pytest.raises(ValueError, match=f"{name}: expected a positive semi-definite matrix"):
            frechet_distance(*args)
    with pytest.raises(ValueError, match=r"mu2: expected \[\.\.\., 3\] as sigma1 has, got \(4,\)"):
        frechet_distance(mu, sigma, torch.zeros(4), sigma)
    with pytest.raises(ValueError, match=r"sigma2: expected \[\.\.\., 3, 3\], got \(4, 4\)"):
        frechet_distance(mu, sigma, mu, torch.eye(4))
    with pytest.raises(ValueError, match="mu1: expected finite numbers, got NaN"):
        frechet_distance(mu / 0, sigma, mu, sigma)
    with pytest.raises(ValueError, match="mu1: its batch dimensions do not broadcast"):
        frechet_distance(mu.expand(4, 3), sigma.expand(2, 3, 3), mu, sigma)
    with pytest.raises(ValueError, match="sigma: expected symmetric matrices"):
        FrechetReference(mu, skewed)
    with pytest.raises(ValueError, match=r"sigma: expected \[d, d\], got \(2, 3, 3\)"):
        FrechetReference(mu, sigma.expand(2, 3, 3))
    with pytest.raises(TypeError, match=r"mu: expected float32 or float64, got torch\.int64"):
        FrechetReference(mu.long(), sigma)
