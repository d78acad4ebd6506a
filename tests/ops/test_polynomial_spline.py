"""Linear, quadratic and cubic splines have nflows' numbers and no larger errors, at knots, ends and empty bins."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen import conformance
from fastgen.ops.extensions import UNUSABLE
from fastgen.ops.polynomial_spline import linear_spline, quadratic_spline

SPLINES = [linear_spline, quadratic_spline]
KERNELS = [] if UNUSABLE["cpp"] else ["cpp/AVX2"] + ["cpp/AVX512"] * (conformance.best_capability() == "AVX512")
BACKENDS = ["reference", *KERNELS]
BOUND = 2.5


def running_on(backend: str):
    return fastgen.use_backend(backend) if backend == "reference" else conformance.running_on(backend)


def parameters(spline, shape: tuple, bins: int, tails: str | None, spread: float = 1.0) -> tuple[Tensor, ...]:
    sizes = (bins,) if spline is linear_spline else (bins, bins - 1 if tails else bins + 1)
    return tuple(spread * torch.randn(*shape, size, dtype=torch.float64) for size in sizes)


def grid(rows: int, columns: int) -> Tensor:
    return torch.linspace(-BOUND, BOUND, columns, dtype=torch.float64).repeat(rows, 1)


@pytest.mark.parametrize("spline", SPLINES)
@pytest.mark.parametrize("tails", ["linear", None])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 8, 64])
def test_numbers_of_nflows(spline, tails: str | None, inverse: bool, bins: int):
    splines = pytest.importorskip("nflows.transforms.splines")
    x = (torch.rand(200, dtype=torch.float64) * 2 - 1) * BOUND * (1.2 if tails else 1.0)
    raw = parameters(spline, (200,), bins, tails)
    if tails:
        theirs = getattr(splines, f"unconstrained_{spline.__name__}")
        expected = theirs(x, *raw, inverse=inverse, tails=tails, tail_bound=BOUND)
    else:
        box = {"left": -BOUND, "right": BOUND, "bottom": -BOUND, "top": BOUND}
        expected = getattr(splines, spline.__name__)(x, *raw, inverse=inverse, **box)
    found = spline(x, *raw, inverse, tails, BOUND)
    # nflows' search for a bin moves the last knot by 1e-6, from which its linear spline then takes the last slope.
    compared = found[0] < BOUND * (1 - 2 / bins) if inverse and spline is linear_spline else x == x
    assert compared.sum() > 80
    for value, their in zip(found, expected, strict=True):
        torch.testing.assert_close(value[compared], their[compared], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spline", SPLINES)
@pytest.mark.parametrize("tails", ["linear", None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_forward_undoes_the_inverse_everywhere(spline, tails: str | None, dtype: torch.dtype, tolerance: float):
    """Also where neighbouring densities differ by orders of magnitude, on the edges and at equal densities."""
    y = grid(40, 101).to(dtype)
    raw = tuple(p.to(dtype) for p in parameters(spline, (40, 101), 8, tails, spread=10.0))
    for each in (raw, tuple(torch.zeros_like(p) for p in raw)):
        x, logabsdet = spline(y, *each, True, tails, BOUND)
        back, opposite = spline(x, *each, False, tails, BOUND)
        assert x.isfinite().all() and logabsdet.isfinite().all()
        slope = opposite.exp()
        assert ((back - y).abs() / (1 + slope)).max() <= tolerance * BOUND


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spline", SPLINES)
@pytest.mark.parametrize("inverse", [False, True])
def test_no_percentile_of_the_errors_is_above_those_of_nflows(backend: str, spline, inverse: bool):
    """Errors in float32 anywhere, at the ends and near them; the ends map to themselves."""
    splines = pytest.importorskip("nflows.transforms.splines")
    theirs = getattr(splines, f"unconstrained_{spline.__name__}")
    count, ranks = 4000, torch.tensor([0.5, 0.9, 0.99, 0.999])
    sign = torch.randint(0, 2, (count,)) * 2.0 - 1
    places = torch.rand(count) * 2 - 1, sign, sign * (1 - torch.rand(count) ** 8 / 100)
    for bins, scale, x in itertools.product((2, 8, 32), (0.5, 6.0), places):
        raw = tuple(p.float() for p in parameters(spline, (count,), bins, "linear", scale))
        exact = spline(x.double(), *(p.double() for p in raw), inverse)
        with running_on(backend):
            found = spline(x, *raw, inverse)
        assert x is not sign or torch.equal(found[0], x)
        both = zip(found, theirs(x, *raw, inverse=inverse, tails="linear", tail_bound=1.0), exact, strict=True)
        for kind, (value, other, true) in zip(("outputs", "logabsdet"), both, strict=True):
            errors, allowed = (
                (v - true).abs().nan_to_num(torch.inf).sort().values[(ranks * count).long()] for v in (value, other)
            )
            what = f"{bins} bins, scale {scale}, {kind}: {errors.tolist()}, nflows {allowed.tolist()}"
            assert (errors <= 1.5 * allowed + 3e-8).all(), what


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_knot_belongs_to_the_bin_at_its_right(backend: str):
    x, raw = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]), torch.arange(4.0).repeat(5, 1).requires_grad_()
    with running_on(backend):
        _, logabsdet = linear_spline(x, raw)
        (grad,) = torch.autograd.grad(logabsdet.sum(), raw)
    mass, bins = torch.softmax(raw.detach(), -1), torch.tensor([0, 1, 2, 3, 3])
    torch.testing.assert_close(logabsdet, (4 * mass[0, bins]).log())
    torch.testing.assert_close(grad, torch.nn.functional.one_hot(bins, 4) - mass)


@pytest.mark.parametrize("spline", SPLINES)
@pytest.mark.parametrize("inverse", [False, True])
def test_logabsdet_is_the_slope_and_the_map_is_monotonic(spline, inverse: bool):
    x = grid(5, 201)[:, 1:-1].contiguous().requires_grad_()
    # One spline for a whole row.
    raw = tuple(p.expand(-1, 199, -1) for p in parameters(spline, (5, 1), 6, "linear"))
    y, logabsdet = spline(x, *raw, inverse, "linear", BOUND)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(logabsdet, slope.log())
    assert (y.diff(dim=1) > 0).all()


@pytest.mark.parametrize("spline", SPLINES)
def test_tails_are_the_identity_and_the_box_maps_onto_itself(spline):
    x = torch.tensor([-1e30, -3.0, -BOUND, BOUND, 3.0, torch.inf], dtype=torch.float64)
    for inverse in (False, True):
        y, logabsdet = spline(x, *parameters(spline, (6,), 5, "linear"), inverse, "linear", BOUND)
        torch.testing.assert_close(y, x)
        assert logabsdet[[0, 1, 4, 5]].tolist() == [0.0] * 4


def test_a_bin_without_mass_is_flat():
    raw = torch.tensor([0.0, -torch.inf, 0.0], dtype=torch.float64).repeat(3, 1)
    y, logabsdet = linear_spline(torch.tensor([-0.2, 0.0, 0.2], dtype=torch.float64), raw)
    torch.testing.assert_close(y, torch.zeros_like(y))
    assert (logabsdet == -torch.inf).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ends_of_bins_without_mass(backend: str):
    """Each belongs to the bin at its right: the left one maps to where mass begins, the right one to itself."""
    raw = torch.tensor([[-300.0, 0.0, 0.0], [0.0, 0.0, -300.0]], requires_grad=True)
    with running_on(backend):
        x, logabsdet = linear_spline(torch.tensor([-1.0, 1.0]), raw, True)
        (grad,) = torch.autograd.grad(logabsdet.sum() + x.sum(), raw)
    torch.testing.assert_close(x, torch.tensor([-1 / 3, 1.0]))
    torch.testing.assert_close(logabsdet, torch.tensor([0.0, 300.0]) + math.log(2 / 3))
    assert grad.isfinite().all()


@pytest.mark.parametrize("spline", SPLINES)
@pytest.mark.parametrize("inverse", [False, True])
def test_nan_stays_in_its_element(spline, inverse: bool):
    x = torch.rand(4, dtype=torch.float64)
    first, *rest = parameters(spline, (4,), 5, "linear")
    x[1], first[2, 0] = torch.nan, torch.nan
    for value in spline(x, first, *rest, inverse):
        assert value.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, w, h: linear_spline(x, w[0]), ValueError, r"unnormalized_pdf: expected \(2, 'bins'\), got \(4,\)"),
        (lambda x, w, h: linear_spline(x, w, tails="circular"), ValueError, "tails: expected 'linear' or None"),
        (lambda x, w, h: linear_spline(x, w, tail_bound=0.0), ValueError, "tail_bound: expected a positive number"),
        (lambda x, w, h: linear_spline(x.long(), w), TypeError, "inputs: expected a floating dtype"),
        (lambda x, w, h: linear_spline(x + 2, w, tails=None), ValueError, r"inputs: expected values in \[-1.0, 1.0\]"),
        (lambda x, w, h: quadratic_spline(x, w, w), ValueError, r"unnormalized_heights: expected \(2, 3\) for 4 bins"),
        (lambda x, w, h: quadratic_spline(x, w, h, min_bin_width=0.25), ValueError, r"min_bin_width: .* \[0, 1 / 4\)"),
        (lambda x, w, h: quadratic_spline(x, w, h, min_bin_height=1.0), ValueError, "min_bin_height: expected"),
        (lambda x, w, h: quadratic_spline(x, w[:, :1], h[:, :0]), ValueError, "two bins or more with linear tails"),
    ],
)
def test_bad_arguments(call, error: type, message: str):
    with pytest.raises(error, match=message):
        call(torch.zeros(2), torch.zeros(2, 4), torch.zeros(2, 3))
