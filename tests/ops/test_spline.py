"""Rational-quadratic splines equal nflows', normflows' and zuko's, and are exact at ends and knots."""

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen import conformance
from fastgen.ops.extensions import UNUSABLE
from fastgen.ops.spline import (
    rational_quadratic_coupling,
    rational_quadratic_coupling_reference,
    rational_quadratic_spline,
    rational_quadratic_spline_reference,
)

DOUBLE = torch.float64
EXTRA = {"linear": -1, "circular": 0, None: 1}
KERNELS = [] if UNUSABLE["cpp"] else ["cpp/AVX2"] + ["cpp/AVX512"] * (conformance.best_capability() == "AVX512")
BACKENDS = ["reference", *KERNELS]
# In its interpreter, and so for a few elements.
TRITON = [] if UNUSABLE["triton"] else ["triton"]


def running_on(backend: str):
    return fastgen.use_backend(backend) if backend == "reference" else conformance.running_on(backend)


def draw(n: int, bins: int, tails: str | None = "linear", spread: float = 1.0, bound: float = 1.0, dtype=DOUBLE):
    x = (torch.rand(n, dtype=dtype) * 2 - 1) * bound * (1.2 if tails else 1)
    return x, *(torch.randn(n, size, dtype=dtype) * spread for size in (bins, bins, bins + EXTRA[tails]))


def needs(library: str):
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 1e-10) -> None:
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=tolerance)


@needs("nflows")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("bins", "inverse"), list(itertools.product((2, 3, 8, 64), (False, True))))
def test_equals_nflows(backend: str, bins: int, inverse: bool):
    from nflows.transforms import splines

    minima = {"min_bin_width": 2e-3, "min_bin_height": 1e-3, "min_derivative": 5e-3}
    args = draw(500, bins, bound=3.0)
    with running_on(backend):
        found = rational_quadratic_spline(*args, inverse, tail_bound=3.0, **minima)
    # nflows' root cancels: its own float64 is not exact to more than this.
    expected = splines.unconstrained_rational_quadratic_spline(*args, inverse, tail_bound=3.0, **minima)
    assert_same(found, expected)
    args = draw(500, bins, None)
    with running_on(backend):
        found = rational_quadratic_spline(*args, inverse, None, **minima)
    box = {"left": -1.0, "right": 1.0, "bottom": -1.0, "top": 1.0}
    assert_same(found, splines.rational_quadratic_spline(*args, inverse, **box, **minima))


@needs("nflows")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(6, 7), (3, 2, 5, 4)])
def test_coupling_equals_nflows(backend: str, shape: tuple[int, ...]):
    from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform

    channels, bins = 2 * shape[1], 5
    params = torch.randn(shape[0], shape[1] * (3 * bins - 1), *shape[2:], dtype=DOUBLE)
    x = torch.randn(shape[0], channels, *shape[2:], dtype=DOUBLE)

    class Conditioner(torch.nn.Module):
        hidden_features = 9

        def forward(self, inputs: Tensor, context: Tensor | None) -> Tensor:
            return params.clone()

    mask = torch.arange(channels) % 2
    layer = PiecewiseRationalQuadraticCouplingTransform(
        mask, lambda inputs, outputs: Conditioner(), num_bins=bins, tails="linear", tail_bound=2.0
    )
    for inverse in (False, True):
        expected, expected_logabsdet = (layer.inverse if inverse else layer)(x)
        with running_on(backend):
            y, logabsdet = rational_quadratic_coupling(
                x[:, 1::2], params, inverse=inverse, num_bins=bins, tail_bound=2.0, softmax_scale=9**-0.5
            )
        assert_same((y, logabsdet), (expected[:, 1::2], expected_logabsdet))


@needs("normflows")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_circular_tails_equal_normflows(backend: str, inverse: bool):
    from normflows.utils.splines import unconstrained_rational_quadratic_spline

    args = draw(500, 6, "circular", bound=3.1)
    with running_on(backend):
        found = rational_quadratic_spline(*args, inverse, "circular", 3.1)
    assert_same(found, unconstrained_rational_quadratic_spline(*args, inverse, "circular", 3.1))


@needs("zuko")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_equals_zuko(backend: str, inverse: bool):
    from zuko.transforms import MonotonicRQSTransform

    x, *raw = draw(500, 8, spread=4.0, bound=5.0)
    transform = MonotonicRQSTransform(*raw, bound=5.0, slope=1e-2)
    with running_on(backend):
        found = rational_quadratic_spline(
            x, *raw, inverse, tail_bound=5.0, min_derivative=1e-2, parameterization="zuko"
        )
    assert_same(found, (transform.inv if inverse else transform).call_and_ladj(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tails", [None, "linear", "circular"])
@pytest.mark.parametrize("inverse", [False, True])
def test_logabsdet_is_the_jacobian(backend: str, tails: str | None, inverse: bool):
    x, *raw = draw(200, 6, tails)
    x.requires_grad_()
    with running_on(backend):
        y, logabsdet = rational_quadratic_spline(x, *raw, inverse, tails)
        (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope.log(), logabsdet, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("bins", [2, 5, 8, 64])
@pytest.mark.parametrize("parameterization", ["nflows", "zuko"])
def test_inverse_then_forward_over_the_whole_domain(backend: str, dtype: torch.dtype, bins: int, parameterization: str):
    y, *raw = draw(20_000, bins, spread=10.0, dtype=dtype)
    kind = {"parameterization": parameterization}
    with running_on(backend):
        x, inverse_logabsdet = rational_quadratic_spline(y, *raw, True, **kind)
        again, logabsdet = rational_quadratic_spline(x, *raw, **kind)
    assert x.isfinite().all() and inverse_logabsdet.isfinite().all() and logabsdet.isfinite().all()
    eps = 1e-6 if dtype == torch.float32 else 1e-14
    assert ((again - y).abs() <= eps * (1 + logabsdet.exp())).all()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_errors_are_those_of_the_reference(backend: str, inverse: bool, spread: float):
    """By quantiles, which say more than one norm: the largest errors are conditioning, and chance."""

    def results(fn, dtype: torch.dtype) -> list[Tensor]:
        args = tuple(t.to(dtype).requires_grad_() for t in tensors)
        outputs = fn(*args, inverse)
        found = torch.autograd.grad(outputs, args, [g.to(dtype) for g in grads])
        return [t.detach().double() for t in (*outputs, *found)]

    tensors = draw(30_000, 8, spread=spread, dtype=torch.float32)
    grads = torch.randn(2, 30_000, dtype=DOUBLE)
    exact = results(rational_quadratic_spline_reference, DOUBLE)
    usual = results(rational_quadratic_spline_reference, torch.float32)
    with running_on(backend):
        found = results(rational_quadratic_spline, torch.float32)
    for i, (value, other, true) in enumerate(zip(found, usual, exact, strict=True)):
        ours, theirs = ((v - true).abs().flatten() for v in (value, other))
        for q in (0.5, 0.9, 0.99):
            bound = 1.25 * theirs.kthvalue(int(q * theirs.numel())).values + 2e-8
            error = ours.kthvalue(int(q * ours.numel())).values
            assert error <= bound, f"result {i}, quantile {q}: {error:.2e}, the reference's {bound:.2e}"


def without_assertions(module: ModuleType) -> ModuleType:
    """nflows' inverse asserts that rounding leaves no discriminant below zero, for all elements at once."""
    spec = importlib.util.spec_from_file_location("unasserting", module.__file__)
    found = importlib.util.module_from_spec(spec)
    exec(compile(Path(module.__file__).read_text(), module.__file__, "exec", optimize=1), found.__dict__)
    return found


def inputs_of(place: str, raw: list[Tensor], inverse: bool) -> Tensor:
    """Float32 inputs on [-1, 1]: anywhere, at its ends, within a hundredth of them, or within an ulp of a knot."""
    count, bins = raw[0].shape
    sign = torch.randint(0, 2, (count,)) * 2.0 - 1
    if place == "anywhere":
        return torch.rand(count) * 2 - 1
    if place == "ends":
        return sign
    if place == "near the ends":
        return sign * (1 - torch.rand(count) ** 8 / 100)
    sizes = 1e-3 + (1 - 1e-3 * bins) * torch.softmax(raw[inverse].double(), -1)
    knots = (sizes.cumsum(-1)[:, :-1] * 2 - 1).gather(1, torch.randint(0, bins - 1, (count, 1)))[:, 0].float()
    return torch.nextafter(knots, knots + torch.randint(-1, 2, (count,)))


@needs("nflows")
@pytest.mark.parametrize("place", ["anywhere", "ends", "near the ends", "near knots"])
@pytest.mark.parametrize("inverse", [False, True])
def test_no_percentile_of_the_errors_is_above_those_of_nflows(place: str, inverse: bool):
    """Errors in float32 for the same inputs, from raw parameters of several scales on."""
    from nflows.transforms.splines import rational_quadratic

    nflows = without_assertions(rational_quadratic)
    ranks = torch.tensor([0.5, 0.9, 0.99, 0.999])
    for bins, scale in itertools.product((2, 8, 32), (0.5, 2.0, 6.0)):
        raw = [torch.randn(6000, size) * scale for size in (bins, bins, bins - 1)]
        args = inputs_of(place, raw, inverse), *raw, inverse
        exact = rational_quadratic_spline_reference(*(a.double() for a in args[:4]), inverse)

        def percentiles(found: tuple[Tensor, Tensor], exact=exact) -> list[Tensor]:
            errors = ((value - true).abs().nan_to_num(torch.inf) for value, true in zip(found, exact, strict=True))
            return [error.sort().values[(ranks * len(error)).long()] for error in errors]

        theirs = percentiles(nflows.unconstrained_rational_quadratic_spline(*args, "linear", 1.0))
        for backend in BACKENDS:
            with running_on(backend):
                ours = percentiles(rational_quadratic_spline(*args))
            for kind, errors, allowed in zip(("outputs", "logabsdet"), ours, theirs, strict=True):
                what = f"{backend}, {bins} bins, scale {scale}, {kind}: {errors.tolist()}, nflows {allowed.tolist()}"
                assert (errors <= 1.5 * allowed + 2e-8).all(), what
            if place == "anywhere" and bins == 8 and scale == 6:
                assert ours[1][0] < theirs[1][0] / 10


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tails", ["linear", "circular", None])
@pytest.mark.parametrize("parameterization", ["nflows", "zuko"])
def test_ends_are_exact(dtype: torch.dtype, tails: str | None, parameterization: str):
    """The ends map to themselves, with the very derivatives of the ends, whatever the other knots' rounding."""
    for bound, bins in ((1.0, 2), (3.0, 8), (5.0, 32), (2.0**-10, 3), (1000.0, 5)):
        size = 60 if bins < 9 else 20
        x = torch.tensor([bound, -bound], dtype=dtype).repeat_interleave(size)
        raw = [(torch.randn(size, n) * 6).to(dtype).repeat(2, 1) for n in (bins, bins, bins + EXTRA[tails])]
        settings = {"tails": tails, "tail_bound": bound, "parameterization": parameterization}
        for backend, inverse in itertools.product((*BACKENDS, *TRITON), (False, True)):
            if (backend == "triton" and dtype == DOUBLE) or (backend in KERNELS and dtype == torch.float16):
                continue
            with running_on(backend):
                y, logabsdet = rational_quadratic_spline(x, *raw, inverse, **settings)
            assert torch.equal(y, x), f"{backend}, {bound}, {inverse}"
            high, low = logabsdet.split(size)
            if tails == "linear":
                assert not logabsdet.any(), f"{backend}, {bound}, {inverse}: {logabsdet.abs().max()}"
            elif tails == "circular":
                assert torch.equal(high, low)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_without_tails_the_outputs_stay_in_the_box(backend: str, dtype: torch.dtype):
    """Or the way back would refuse them."""
    for bound in (0.1, 0.7, 3.1, 1e3):
        x, *raw = draw(4000, 5, None, 6.0, bound, dtype)
        x[:1000] = bound
        x[1000:2000] = torch.nextafter(x[:1000], torch.zeros(()).to(x))
        for inverse in (False, True):
            with running_on(backend):
                y, _ = rational_quadratic_spline(x, *raw, inverse, None, bound)
                again, _ = rational_quadratic_spline(y, *raw, not inverse, None, bound)
            assert again.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_at_the_right_end_are_as_exact_as_at_the_left(backend: str, inverse: bool):
    raw = [torch.randn(2000, n) * 3 for n in (8, 8, 7)]
    x = 1 - torch.rand(2000) ** 8 / 100
    x[:100] = 1.0
    grads = torch.randn(2, 2000)

    def errors(x: Tensor, raw: list[Tensor], grads: tuple[Tensor, Tensor]) -> list[Tensor]:
        results = []
        for function, dtype in ((rational_quadratic_spline, x.dtype), (rational_quadratic_spline_reference, DOUBLE)):
            inputs = [t.to(dtype).requires_grad_() for t in (x, *raw)]
            results.append(torch.autograd.grad(function(*inputs, inverse), inputs, [g.to(dtype) for g in grads]))
        return [(value - true).abs().flatten() for value, true in zip(*results, strict=True)]

    with running_on(backend):
        right = errors(x, raw, (grads[0], grads[1]))
        # The same spline turned around.
        left = errors(-x, [t.flip(-1) for t in raw], (-grads[0], grads[1]))
    for i, (of_right, of_left) in enumerate(zip(right, left, strict=True)):
        for quantile in (0.5, 0.9, 0.99):
            rank = int(quantile * len(of_left))
            assert of_right.sort().values[rank] <= 1.25 * of_left.sort().values[rank] + 1e-7, f"{i}, {quantile}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_edges(backend: str, inverse: bool):
    infinity, nan = float("inf"), float("nan")
    x = torch.tensor([1.0, -1.0, 0.0, -0.0, 1.0000001, infinity, -infinity, 3e38, nan, 0.5])
    raw = [torch.randn(1, n).expand(len(x), n).contiguous() for n in (4, 4, 3)]
    raw[0][9, 2] = nan
    with running_on(backend):
        y, logabsdet = rational_quadratic_spline(x, *raw, inverse)
    outside = x.abs() > 1
    assert torch.equal(y[outside], x[outside]) and not logabsdet[outside].any()
    torch.testing.assert_close(y[:2], x[:2])
    torch.testing.assert_close(logabsdet[:2], torch.zeros(2), rtol=0, atol=1e-5)
    assert y[8:].isnan().all() and logabsdet[8:].isnan().all()
    assert y[:8].isnan().sum() == 0 and logabsdet[:8].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_continuous_across_knots(backend: str, inverse: bool):
    """An input exactly on a knot gives the knot, from whichever bin it is taken."""
    raw = [torch.randn(1, n, dtype=DOUBLE) for n in (7, 7, 6)]
    widths, heights = (1e-3 + (1 - 7e-3) * torch.softmax(a, -1) for a in raw[:2])
    x, y = ((2 * sizes.cumsum(-1)[0, :-1] - 1) for sizes in (widths, heights))
    source, target = (y, x) if inverse else (x, y)
    derivatives = 1e-3 + torch.nn.functional.softplus(raw[2][0])
    with running_on(backend):
        found, logabsdet = rational_quadratic_spline(source, *(a.expand(6, -1) for a in raw), inverse)
    assert_same((found, logabsdet), (target, derivatives.log() * (-1 if inverse else 1)), 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_parameters_without_limits(backend: str, dtype: torch.dtype):
    """Zero and minus infinity, derivatives near zero and huge, near-double roots (nflows issue 87)."""
    y = torch.linspace(-0.999, 0.999, 2000, dtype=dtype)
    flat = torch.zeros(2000, 4, dtype=dtype)
    some = flat.clone()
    some[:, 1] = -torch.inf
    steep = torch.tensor([-100.0, 80.0, -100.0], dtype=dtype).expand(2000, -1)
    huge = 1e30 * torch.randn(2000, 4, dtype=dtype)
    for widths, heights in ((flat, flat), (some, flat), (flat, some), (huge, flat), (some, huge)):
        for derivatives in (flat[:, :3], steep, -steep, torch.full_like(flat[:, :3], -0.46)):
            args = tuple(t.clone().requires_grad_() for t in (y, widths, heights, derivatives))
            with running_on(backend):
                x, logabsdet = rational_quadratic_spline(*args, True, min_derivative=1e-9)
                found = torch.autograd.grad((x.sum(), logabsdet.sum()), args)
                again, slope = rational_quadratic_spline(x.detach(), *args[1:], min_derivative=1e-9)
            assert all(t.isfinite().all() for t in (x, logabsdet, slope))
            assert all(t.isfinite().all() for t in found[:2])
            eps = 2e-6 if dtype == torch.float32 else 1e-13
            assert ((again - y).abs() <= eps * (1 + slope.exp())).all()


@pytest.mark.parametrize("backend", KERNELS)
def test_gradients_of_one_output_alone(backend: str):
    x, *raw = draw(37, 5)
    for pick in (0, 1):
        args = tuple(t.clone().requires_grad_() for t in (x, *raw))
        exact = torch.autograd.grad(rational_quadratic_spline_reference(*args)[pick].sum(), args)
        with running_on(backend):
            found = torch.autograd.grad(rational_quadratic_spline(*args)[pick].sum(), args)
        assert_same(found, exact)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("count", [1, 7, 8, 15, 16, 17, 33])
def test_reads_and_writes_nothing_beyond_the_elements(backend: str, count: int):
    """Elements in the middle of a larger memory, which is NaN before and behind them."""
    x, *raw = draw(count, 3, dtype=torch.float32)
    inside = []
    for tensor in (x, *raw):
        memory = torch.full((tensor.numel() + 128,), torch.nan)
        memory[64:-64] = tensor.flatten()
        inside.append(memory[64:-64].view(tensor.shape).requires_grad_())
    with running_on(backend):
        outputs = rational_quadratic_spline(*inside)
        found = torch.autograd.grad(sum(o.sum() for o in outputs), inside)
    exact = rational_quadratic_spline_reference(*inside)
    assert all(t.isfinite().all() for t in (*outputs, *found))
    assert_same(tuple(o.detach() for o in outputs), tuple(e.detach() for e in exact), 1e-4)


def test_half_precision_sums_in_float32():
    x, params = torch.randn(4, 64).bfloat16(), torch.randn(4, 64 * 23).bfloat16()
    y, logabsdet = rational_quadratic_coupling(x, params, num_bins=8)
    exact, exact_logabsdet = rational_quadratic_coupling_reference(x.double(), params.double(), num_bins=8)
    assert y.dtype == torch.bfloat16 and logabsdet.dtype == torch.float32
    torch.testing.assert_close(logabsdet.double(), exact_logabsdet, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-2)


def test_mixed_dtypes_are_promoted():
    x, params = torch.randn(3, 4), torch.randn(3, 4 * 8).bfloat16()
    y, logabsdet = rational_quadratic_coupling(x, params, num_bins=3)
    expected = rational_quadratic_coupling(x, params.float(), num_bins=3)
    assert torch.equal(y, expected[0]) and torch.equal(logabsdet, expected[1])


@pytest.mark.parametrize("backend", KERNELS)
def test_saves_nothing_beyond_its_inputs(backend: str):
    x, params = torch.randn(8, 4, requires_grad=True), torch.randn(8, 4 * 23, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t), running_on(backend):
        rational_quadratic_coupling(x, params, num_bins=8)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), params.data_ptr()}
    assert sum(t.numel() * t.element_size() for t in saved) <= 100 * x.numel()


@pytest.mark.parametrize("backend", KERNELS)
def test_one_pass_however_many_threads(backend: str):
    x, params = torch.randn(3000, 5), torch.randn(3000, 5 * 11)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with running_on(backend):
                results.append(rational_quadratic_coupling(x, params, num_bins=4))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


X, W, D = torch.zeros(5), torch.zeros(5, 4), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((X, W, W[:, :3], D), {}, ValueError, r"unnormalized_heights: expected \(5, 4\).* got \(5, 3\)"),
        ((X, W, W, W), {}, ValueError, r"unnormalized_derivatives: expected \(5, 3\).*tails='linear', got \(5, 4\)"),
        ((X, W, W, D), {"tails": "circular"}, ValueError, r"unnormalized_derivatives: expected \(5, 4\)"),
        ((X[:4], W, W, D), {}, ValueError, r"unnormalized_widths: expected \(4, 4\)"),
        ((X, W, W, D), {"tails": "constant"}, ValueError, "tails: expected 'linear', 'circular' or None"),
        ((X, W, W, D), {"min_bin_width": 0.25}, ValueError, r"min_bin_width: expected a number in \[0, 1 / 4\)"),
        ((X, W, W, D), {"min_bin_height": -0.1}, ValueError, "min_bin_height: expected"),
        ((X, W, W, D), {"min_derivative": 1.0}, ValueError, r"min_derivative: expected a number in \[0, 1\)"),
        ((X, W, W, D), {"tail_bound": 0.0}, ValueError, "tail_bound: expected a positive number, got 0.0"),
        ((X, W, W, D), {"parameterization": "raw"}, ValueError, "parameterization: expected 'nflows' or 'zuko'"),
        ((X.long(), W, W, D), {}, TypeError, "inputs: expected a floating dtype, got torch.int64"),
        ((X.to("meta"), W, W, D), {}, TypeError, "unnormalized_widths: expected meta as inputs, got cpu"),
        ((X + 1.5, W, W, torch.zeros(5, 5)), {"tails": None}, ValueError, r"inputs: expected values in \[-1.0, 1.0\]"),
        (
            tuple(t.bfloat16() for t in (X + 0.1, W, W, torch.zeros(5, 5))),
            {"tails": None, "tail_bound": 0.1},
            ValueError,
            "inputs: expected values in .* got 0.10009765625",
        ),
    ],
)
def test_bad_arguments(args: tuple, kwargs: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        rational_quadratic_spline(*args, **kwargs)


@pytest.mark.parametrize(
    ("x", "params", "kwargs", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 32), {}, r"params: expected \(2, 33\) or \(2, 3, 11\).*got \(2, 32\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, 11), {}, r"params: expected \(2, 33, 4, 4\), 11 for each"),
        (torch.zeros(3), torch.zeros(33), {}, "x: expected .batch, features. or"),
        (torch.zeros(2, 3), torch.zeros(2, 33), {"num_bins": 0}, "num_bins: expected at least 1"),
        (torch.zeros(2, 3), torch.zeros(2, 33), {"softmax_scale": 0.0}, "softmax_scale: expected a positive number"),
        (torch.full((2, 3), 2.0), torch.zeros(2, 39), {"tails": None}, r"x: expected values in \[-1.0, 1.0\]"),
    ],
)
def test_bad_couplings(x: Tensor, params: Tensor, kwargs: dict, message: str):
    with pytest.raises(ValueError, match=message):
        rational_quadratic_coupling(x, params, **{"num_bins": 4, **kwargs})


def test_without_tails_compiled_code_answers_nan_outside():
    x = torch.tensor([0.5, 1.5])
    raw = [torch.randn(2, n) for n in (3, 3, 4)]
    compiled = torch.compile(rational_quadratic_spline, fullgraph=True, backend="aot_eager")
    y, logabsdet = compiled(x, *raw, False, None)
    assert y.isnan().tolist() == logabsdet.isnan().tolist() == [False, True]


def test_kernels_refuse_more_bins_than_they_hold():
    args = draw(3, 65)
    assert "64 bins" in str(fastgen.explain(rational_quadratic_spline, *args))


@pytest.mark.parametrize("backend", KERNELS)
def test_gradients_too_large_for_the_caches_are_those_of_their_parts(backend: str):
    # Large gradients are written past the caches, from 8 MiB on; an odd number of elements leaves a part of a tile.
    torch.manual_seed(0)
    x, params = torch.randn(1501, 77), torch.randn(1501, 77 * 23)
    with conformance.running_on(backend):
        found = coupling_gradients(x, params)
        parts = [coupling_gradients(a, b) for a, b in zip(x.split(300), params.split(300), strict=True)]
    assert params.nbytes > 8 * 2**20 > params[:300].nbytes
    for whole, pieces in zip(found, zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def coupling_gradients(x: Tensor, params: Tensor) -> tuple[Tensor, ...]:
    inputs = [t.clone().requires_grad_() for t in (x, params)]
    outputs = rational_quadratic_coupling(*inputs, num_bins=8)
    return torch.autograd.grad([o.sum() for o in outputs], inputs)
