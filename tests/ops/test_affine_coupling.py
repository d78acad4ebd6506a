"""Affine and additive couplings are invertible, exact far out, and have nflows' numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.ops.affine_coupling import additive_coupling, affine_coupling

MAPS = [("exp", {}), ("tanh", {"bound": 1.5}), ("sigmoid", {}), ("sigmoid", {"min_scale": 1e-3})]


def arguments(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(*shape, dtype=dtype) for _ in range(3))


@pytest.mark.parametrize(("scale_map", "options"), MAPS)
@pytest.mark.parametrize("shape", [(7, 1), (5, 3), (4, 40), (2, 3, 5, 4)])
def test_inverse_undoes_it(scale_map: str, options: dict, shape: tuple):
    x, shift, log_scale = arguments(*shape)
    y, logabsdet = affine_coupling(x, shift, log_scale, scale_map=scale_map, **options)
    back, opposite = affine_coupling(y, shift, log_scale, inverse=True, scale_map=scale_map, **options)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(opposite, -logabsdet, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scale_map", "options"), MAPS)
@pytest.mark.parametrize("inverse", [False, True])
def test_logabsdet_is_that_of_the_jacobian(scale_map: str, options: dict, inverse: bool):
    x, shift, log_scale = arguments(1, 6)
    options = {"scale_map": scale_map, "inverse": inverse, **options}
    jacobian = torch.autograd.functional.jacobian(lambda x: affine_coupling(x, shift, log_scale, **options)[0], x)
    _, logabsdet = affine_coupling(x, shift, log_scale, **options)
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(jacobian.view(6, 6)).logabsdet.view(1))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(9, 6), (2, 4, 3, 3)])
def test_numbers_of_nflows(inverse: bool, shape: tuple):
    transforms = pytest.importorskip("nflows.transforms")
    x, *halves = arguments(*shape)
    layer = transforms.AffineCouplingTransform(torch.ones(shape[1]), lambda *_: None)
    theirs = layer._coupling_transform_inverse if inverse else layer._coupling_transform_forward
    expected = theirs(x, torch.cat(halves, 1))
    found = affine_coupling(x, *halves, inverse=inverse, scale_map="sigmoid", min_scale=1e-3)
    for value, their in zip(found, expected, strict=True):
        torch.testing.assert_close(value, their, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_far_out_logarithms_are_exact(capability: str):
    """log sigmoid(a + 2) is a + 2 far below zero and -exp(-a - 2) far above, where sigmoid has rounded to 0 or 1."""
    if capability == "AVX512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this CPU has no AVX-512")
    # Whole numbers, to which 2 is added without rounding.
    raw = torch.cat([torch.arange(-1000.0, -80.0, 23), torch.arange(10.0, 80.0, 2)]).unsqueeze(1)
    zero = torch.zeros_like(raw)
    with fastgen.ops.registry.use_backend("cpp"), fastgen.ops.extensions.use_cpu_capability(capability):
        _, logabsdet = affine_coupling(zero, zero, raw, scale_map="sigmoid")
    expected = torch.nn.functional.logsigmoid(raw.double() + 2).sum(1)
    torch.testing.assert_close(logabsdet.double(), expected, rtol=1e-6, atol=1e-37)


def test_scales_reach_zero_and_infinity():
    raw = torch.tensor([[-200.0, 200.0, 0.0]])
    y, logabsdet = affine_coupling(torch.ones(1, 3), torch.zeros(1, 3), raw)
    assert y.tolist() == [[0.0, float("inf"), 1.0]] and logabsdet.tolist() == [0.0]


def test_nan_stays_in_its_row():
    for scale_map, options in MAPS:
        for shape in ((6, 2), (6, 33)):
            x, shift, log_scale = arguments(*shape, dtype=torch.float32)
            x[1, 0], shift[2, 1], log_scale[4, -1] = float("nan"), float("nan"), float("nan")
            y, logabsdet = affine_coupling(x, shift, log_scale, scale_map=scale_map, **options)
            assert y.isnan().nonzero().tolist() == [[1, 0], [2, 1], [4, shape[1] - 1]]
            assert logabsdet.isnan().nonzero().tolist() == [[4]]


@pytest.mark.parametrize("inverse", [False, True])
def test_saves_two_tensors_and_copies_no_half(inverse: bool):
    x, params = torch.randn(4, 6, requires_grad=True), torch.randn(4, 12, requires_grad=True)
    shift, log_scale = params.chunk(2, 1)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y, _ = affine_coupling(x, shift, log_scale, inverse=inverse)
    assert {t.data_ptr() for t in saved} == {(y if inverse else x).data_ptr(), log_scale.data_ptr()}


def test_narrower_parameters_are_promoted():
    x, shift, log_scale = arguments(3, 4, dtype=torch.float32)
    y, logabsdet = affine_coupling(x, shift.bfloat16(), log_scale.bfloat16())
    assert y.dtype == logabsdet.dtype == torch.float32
    expected, _ = affine_coupling(x, shift.bfloat16().float(), log_scale.bfloat16().float())
    assert torch.equal(y, expected)


def test_half_types_sum_in_float32():
    x, shift, log_scale = arguments(3, 300, dtype=torch.bfloat16)
    y, logabsdet = affine_coupling(x, shift, log_scale)
    assert y.dtype == torch.bfloat16 and logabsdet.dtype == torch.float32
    torch.testing.assert_close(logabsdet, log_scale.float().sum(1))


def test_long_rows_do_not_depend_on_the_number_of_threads():
    args = arguments(2, 40000, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(affine_coupling(*args, scale_map="sigmoid", min_scale=1e-3)[1])
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_results_beyond_the_cache():
    """They are written past it, by other instructions."""
    x, shift, log_scale = arguments(150_000, 32, dtype=torch.float32)
    for inverse in (False, True):
        found = affine_coupling(x, shift, log_scale, inverse=inverse)
        expected = affine_coupling(x[-9:], shift[-9:], log_scale[-9:], inverse=inverse)
        for value, small in zip(found, expected, strict=True):
            assert torch.equal(value[-9:], small)


def test_additive_coupling():
    x, shift, _ = arguments(3, 4, 2, 2)
    y, logabsdet = additive_coupling(x, shift)
    torch.testing.assert_close(y, x + shift)
    assert logabsdet.tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(additive_coupling(y, shift, inverse=True)[0], x)
    assert additive_coupling(x.bfloat16(), shift.bfloat16())[1].dtype == torch.float32
    with pytest.raises(ValueError, match=r"shift: expected the shape of x, \(3, 4, 2, 2\), got \(3, 4\)"):
        additive_coupling(x, shift[:, :, 0, 0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4)}, ValueError, r"x: expected \[batch, \.\.\.\]"),
        ({"x": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "x: expected a floating dtype"),
        ({"shift": torch.zeros(2, 4)}, ValueError, r"shift: expected the shape of x, \(2, 3\), got \(2, 4\)"),
        ({"log_scale": torch.zeros(1, 3)}, ValueError, r"log_scale: expected the shape of x, \(2, 3\), got \(1, 3\)"),
        ({"log_scale": torch.zeros(2, 3, dtype=torch.bool)}, TypeError, "log_scale: expected a floating dtype"),
        ({"scale_map": "softplus"}, ValueError, "scale_map: expected one of exp, tanh, sigmoid, got 'softplus'"),
        ({"bound": 0.0}, ValueError, "bound: expected a positive number"),
        ({"min_scale": -1e-3}, ValueError, "min_scale: expected a number that is not negative"),
    ],
)
def test_bad_arguments(change: dict, error: type, message: str):
    arguments = {"x": torch.zeros(2, 3), "shift": torch.zeros(2, 3), "log_scale": torch.zeros(2, 3), **change}
    with pytest.raises(error, match=message):
        affine_coupling(**arguments)


def test_the_inverse_in_float16_is_differentiated_twice():
    found = []
    for backend in ("reference", "triton"):
        x, shift, log_scale = (torch.tensor([[v]], dtype=torch.float16, requires_grad=True) for v in (1.5, 0.5, 0.25))
        with fastgen.use_backend(backend):
            y, logabsdet = affine_coupling(x, shift, log_scale, inverse=True)
            first = torch.autograd.grad(y.float().square().sum() + logabsdet.sum(), (x, log_scale), create_graph=True)
            found.append(torch.autograd.grad(sum(g.float().square().sum() for g in first), (x, shift, log_scale)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=1e-3)
