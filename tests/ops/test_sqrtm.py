"""Matrix roots and traces of roots, and their gradients, for any rank, condition and scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.ops import sqrtm, sqrtm_reference, trace_sqrtm, trace_sqrtm_reference
from fastgen.ops.sqrtm import polar, roots, trace_sqrtm_of_factor
from fastgen.ops.sqrtm.cases import inception_like
from fastgen.ops.sqrtm.factor import factor_of

RANKS = {"full rank": (40, 50), "a of rank 7": (7, 50), "b of rank 7": (50, 7), "ranks 9 and 7": (9, 7)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def covariance(rank: int, d: int, *batch: int) -> Tensor:
    points = torch.randn(*batch, rank, d, dtype=torch.float64)
    return points.mT @ points / rank


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q


def nuclear_norm(a: Tensor, b: Tensor) -> Tensor:
    """tr (ab)^1/2 from eigenvectors, without any product's eigenvalues."""
    roots = []
    for matrix in (a, b):
        eigenvalues, basis = torch.linalg.eigh(matrix)
        kept = eigenvalues > 1e-13 * eigenvalues[-1]
        roots.append(basis[:, kept] * eigenvalues[kept].sqrt())
    return torch.linalg.svdvals(roots[0].mT @ roots[1]).sum()


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).norm() / truth.norm())


@pytest.mark.parametrize("rank", [20, 5])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_root_times_itself_is_the_matrix(rank: int, batch: tuple[int, ...]):
    a = covariance(rank, 12, *batch)
    root = sqrtm(a)
    assert relative_error(root @ root, a) < 1e-14
    assert torch.equal(root, root.mT) and torch.linalg.eigvalsh(root).min() > -1e-14


def test_root_of_a_matrix_larger_than_a_block():
    a = covariance(500, 300)
    root = sqrtm(a)
    assert relative_error(root @ root, a) < 1e-14 and torch.equal(root, root.mT)


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("d", [16, 150])
def test_trace_is_the_nuclear_norm_of_the_factors(ranks: tuple[int, int], d: int):
    scale = d // 16
    a, b = (covariance(rank * scale, d) for rank in ranks)
    expected = nuclear_norm(a, b)
    assert abs(trace_sqrtm(a, b) - expected) < 1e-12 * expected
    assert abs(trace_sqrtm(b, a) - expected) < 1e-12 * expected


@pytest.mark.parametrize("rank", [20, 5])
def test_trace_of_a_matrix_with_itself_and_with_the_identity(rank: int):
    a = covariance(rank, 12)
    torch.testing.assert_close(trace_sqrtm(a, a), a.trace(), rtol=1e-12, atol=0)
    torch.testing.assert_close(trace_sqrtm(a, torch.eye(12).double()), sqrtm(a).trace(), rtol=1e-12, atol=0)


def test_trace_does_not_see_rotations_and_scales():
    a, b, q = covariance(30, 12), covariance(9, 12), rotation(12)
    expected = trace_sqrtm(a, b)
    torch.testing.assert_close(trace_sqrtm(q @ a @ q.mT, q @ b @ q.mT), expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(trace_sqrtm(1e-20 * a, 1e12 * b), 1e-4 * expected, rtol=1e-12, atol=0)


def test_matrices_that_commute():
    q, x, y = rotation(20), torch.rand(20).double(), torch.rand(20).double()
    found = trace_sqrtm((q * x) @ q.mT, (q * y) @ q.mT)
    torch.testing.assert_close(found, (x * y).sqrt().sum(), rtol=1e-12, atol=0)


def test_ill_conditioned_pairs_keep_their_small_eigenvalues():
    q, x = rotation(20), 10 ** torch.linspace(-11, 0, 20).double()
    a = (q * x) @ q.mT
    # A matrix product rounds an eigenvalue of 1e-11 by 1e-16: its share of the trace by 1e-5 of itself.
    torch.testing.assert_close(trace_sqrtm(a, a), x.sum(), rtol=1e-12, atol=0)


def test_orthogonal_ranges_have_no_overlap():
    a, b = torch.diag(torch.tensor([1.0, 2, 0, 0])), torch.diag(torch.tensor([0.0, 0, 3, 4]))
    zero = torch.zeros(4, 4)
    for one, other in ((a, b), (a, zero), (zero, a), (zero, zero)):
        one, other = one.clone().requires_grad_(), other.clone().requires_grad_()
        found = trace_sqrtm(one, other)
        found.backward()
        assert found == 0 and one.grad.isfinite().all() and other.grad.isfinite().all()


def test_float32_is_computed_in_float64():
    a, b = (m.float() for m in inception_like(96))
    exact = trace_sqrtm(a.double(), b.double())
    assert trace_sqrtm(a, b) == exact.float() and trace_sqrtm(a, b).dtype == torch.float32
    assert trace_sqrtm(a, b.double()).dtype == torch.float64
    assert torch.equal(sqrtm(a), sqrtm(a.double()).float())


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("d", [16, 150])
def test_gradients_below_full_rank_are_the_reference_s(ranks: tuple[int, int], d: int):
    a, b = (covariance(rank * (d // 16), d).requires_grad_() for rank in ranks)
    found = torch.autograd.grad(trace_sqrtm(a, b), (a, b))
    expected = torch.autograd.grad(trace_sqrtm_reference(a, b), (a, b))
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-9


def test_gradient_is_the_change_of_the_trace_within_the_range():
    """Below full rank there is a derivative where the null space stays: in the points behind a covariance."""
    points, b = torch.randn(4, 9, dtype=torch.float64, requires_grad=True), covariance(20, 9)
    assert torch.autograd.gradcheck(lambda p: trace_sqrtm(p.mT @ p, b), points)
    assert torch.autograd.gradcheck(lambda p: trace_sqrtm(b, p.mT @ p), points)


def test_gradient_of_a_root_below_full_rank_is_bounded():
    a = covariance(3, 6).requires_grad_()
    sqrtm(a).trace().backward()
    smallest = torch.linalg.eigvalsh(a.detach())[3].sqrt()
    assert torch.linalg.matrix_norm(a.grad, 2) <= 0.5 / smallest * (1 + 1e-9)
    expected = torch.autograd.grad(sqrtm_reference(a).trace(), a)[0]
    assert relative_error(a.grad, expected) < 1e-10


def test_equal_eigenvalues_have_a_gradient():
    a = torch.eye(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sqrtm, a) and torch.autograd.gradgradcheck(sqrtm, a)
    assert torch.autograd.gradcheck(lambda a: trace_sqrtm(a, 4 * torch.eye(5).double()), a)


def test_a_kept_factor_gives_the_same():
    for rank in (30, 5):
        a, b = covariance(rank, 12), covariance(40, 12).requires_grad_()
        factor = factor_of("a", a).matrix
        found, expected = trace_sqrtm_of_factor(a, b, factor), trace_sqrtm(a, b)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(torch.autograd.grad(found, b), torch.autograd.grad(expected, b))


def test_polar_factor_is_that_of_the_singular_values():
    for shape in ((30, 20), (20, 30), (300, 300)):
        a = torch.randn(*shape, dtype=torch.float64)
        left, _, right = torch.linalg.svd(a, full_matrices=False)
        assert relative_error(polar.polar_factor(a), left @ right) < 1e-11
    assert torch.equal(polar.polar_factor(torch.zeros(3, 2).double()), torch.zeros(3, 2).double())


def test_polar_steps_take_every_singular_value_to_one():
    x = torch.logspace(-7, 0, 10_000, dtype=torch.float64)
    for a, b, c in polar.coefficients(polar.SMALLEST):
        x = a * x + b * x**3 + c * x**5
    assert (x - 1).abs().max() < 1e-14
    # The best quintics of the paper's table begin so, and end in Newton and Schulz's of degree five.
    assert len(polar.coefficients(1e-3)) == 8
    assert polar.coefficients(1e-3)[0] == pytest.approx((8.4703, -25.1081, 18.6293), abs=1e-4)
    assert polar.coefficients(1e-3)[-1] == pytest.approx((1.875, -1.25, 0.375), abs=1e-6)


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
def test_the_way_of_a_gpu_gives_the_same(ranks: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    a, b = (covariance(4 * rank, 64).requires_grad_() for rank in ranks)
    expected = trace_sqrtm(a, b)
    gradients = torch.autograd.grad(expected, (a, b))
    taken = []
    monkeypatch.setattr(roots, "pays", lambda a: True)
    monkeypatch.setattr(roots, "polar_trace", lambda *args: taken.append(1) or polar.polar_trace(*args))
    found = trace_sqrtm(a, b)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for one, other in zip(torch.autograd.grad(found, (a, b)), gradients, strict=True):
        assert relative_error(one, other) < 1e-9
    assert bool(taken) == (min(ranks) > 16)


def test_root_by_the_way_of_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roots, "pays", lambda a: True)
    for rank in (90, 20):
        a = covariance(rank, 64, 2)
        root = sqrtm(a)
        assert relative_error(root @ root, a) < 1e-13 and torch.equal(root, root.mT)


@pytest.mark.parametrize("call", [sqrtm, lambda a: trace_sqrtm(a, a), lambda a: trace_sqrtm(torch.eye(3), a)])
@pytest.mark.parametrize("backend", ["library", "reference"])
@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 0, 0], [0.5, 1, 0], [0, 0, 1]], "expected symmetric matrices"),
        ([[1, 0, 0], [0, float("nan"), 0], [0, 0, 1]], "expected finite numbers, got NaN"),
        ([[1, float("inf"), 0], [0, 1, 0], [0, 0, 1]], "expected finite numbers, got NaN or infinity"),
        ([[1, 0, 0], [0, -0.1, 0], [0, 0, 1]], r"positive semi-definite matrix, got eigenvalues from -0\.1 to 1"),
        ([[-1, 0, 0], [0, -1, 0], [0, 0, -1]], "positive semi-definite matrix, got eigenvalues from -1 to -1"),
    ],
)
def test_matrices_that_are_no_covariances(call, backend: str, matrix: list, message: str):
    with fastgen.use_backend(backend), pytest.raises(ValueError, match=message):
        call(torch.tensor(matrix, dtype=torch.float32))


def test_rounding_passes():
    a = covariance(5, 12)
    noise = 1e-7 * torch.randn(12, 12).double() * a.abs().max()
    torch.testing.assert_close(trace_sqrtm(a + noise, a), a.trace(), rtol=1e-2, atol=0)
    assert trace_sqrtm(a + noise, a + noise.mT) > 0


def test_shapes_and_dtypes():
    a = torch.eye(3)
    for call in (lambda m: sqrtm(m), lambda m: trace_sqrtm(m, a), lambda m: trace_sqrtm(a, m)):
        with pytest.raises(ValueError, match=r"expected square matrices .*\(3, 4\)"):
            call(torch.ones(3, 4))
        with pytest.raises(ValueError, match=r"expected square matrices .*\(3,\)"):
            call(torch.ones(3))
        with pytest.raises(TypeError, match=r"expected float32 or float64, got torch\.float16"):
            call(torch.eye(3).half())
    with pytest.raises(ValueError, match=r"b: expected \[\.\.\., 3, 3\], got \(4, 4\)"):
        trace_sqrtm(a, torch.eye(4))
    with pytest.raises(ValueError, match="b: its batch dimensions do not broadcast"):
        trace_sqrtm(a.expand(2, 3, 3), a.expand(4, 3, 3))
