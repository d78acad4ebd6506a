"""Invertible linear layers are nflows' or rotations, and what they keep of their weights changes no number."""

import copy

import pytest
import torch
from torch import nn

from fastgen.nn import InvertibleConv1x1, LULinear
from tests.nn.transform_properties import PROPERTIES, Case

CASES = [
    Case("LU", lambda: LULinear(4), (4,)),
    Case("LU, one feature", lambda: LULinear(1), (1,)),
    Case("1x1 convolution", lambda: InvertibleConv1x1(3), (3, 2, 2)),
    Case("1x1 convolution, more channels than pixels", lambda: InvertibleConv1x1(3), (3, 1, 2)),
]


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_property(case, check):
    check(case)


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


@pytest.fixture(params=["LULinear", "InvertibleConv1x1"])
def layer_and_input(request):
    if request.param == "LULinear":
        return randomised(LULinear(5)), torch.randn(7, 5, dtype=torch.float64)
    return randomised(InvertibleConv1x1(5)), torch.randn(2, 5, 3, 4, dtype=torch.float64)


@pytest.mark.parametrize("identity_init", [False, True])
def test_lu_is_nflows(identity_init):
    lu = pytest.importorskip("nflows.transforms.lu")
    theirs = lu.LULinear(6, identity_init=identity_init, eps=0.02).double()
    if not identity_init:
        randomised(theirs)
    ours = LULinear(6, identity_init=identity_init, eps=0.02).double()
    if identity_init:
        for name, parameter in theirs.named_parameters():
            torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=1e-6, atol=1e-6)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(9, 6, dtype=torch.float64)
    expected, expected_logabsdet = theirs(x)
    for training in (True, False):
        ours.train(training)
        with torch.no_grad():
            y, logabsdet = ours(x)
            torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(logabsdet, expected_logabsdet, rtol=1e-12, atol=1e-12)
            # Their inverse calls a function that torch no longer has.
            back, logabsdet = ours.inverse(y)
            torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(logabsdet, -expected_logabsdet, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.weight(), theirs.weight(), rtol=1e-12, atol=1e-12)


def test_lu_starts_as_the_identity():
    x = torch.randn(3, 4)
    y, logabsdet = LULinear(4)(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(logabsdet, torch.zeros(3))


def test_convolution_starts_as_a_rotation():
    layer = InvertibleConv1x1(6)
    weight = layer.weight().double()
    torch.testing.assert_close(weight @ weight.T, torch.eye(6, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    _, logabsdet = layer(torch.randn(2, 6, 4, 5))
    torch.testing.assert_close(logabsdet, torch.zeros(2), rtol=0, atol=1e-4)


def test_convolution_keeps_a_given_weight():
    weight = torch.randn(5, 5, dtype=torch.float64)
    layer = InvertibleConv1x1(5, weight)
    torch.testing.assert_close(layer.weight(), weight)
    torch.testing.assert_close(layer.weight_inverse(), torch.linalg.inv(weight))
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    y, logabsdet = layer(x)
    torch.testing.assert_close(y, torch.einsum("oc,bchw->bohw", weight, x))
    torch.testing.assert_close(logabsdet, (12 * torch.linalg.slogdet(weight).logabsdet).expand(2))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1)])
def test_convolution_takes_any_layout(shape):
    layer, x = randomised(InvertibleConv1x1(3)), torch.randn(shape, dtype=torch.float64)
    expected = torch.einsum("oc,bchw->bohw", layer.weight(), x)
    columns_first = x.transpose(2, 3).contiguous().transpose(2, 3)
    for same in (x, x.to(memory_format=torch.channels_last), columns_first):
        torch.testing.assert_close(layer(same)[0], expected)


def test_kept_gives_the_same_numbers(layer_and_input):
    layer, x = layer_and_input
    layer.eval()
    plain = [layer(x), layer.inverse(x)]
    assert layer._kept.last("_forward") is None
    with torch.no_grad():
        kept = [layer(x), layer.inverse(x)]
        first = layer._kept.last("_forward")
        layer(x)
        assert layer._kept.last("_forward") is first is not None
    for found, expected in zip(kept, plain, strict=True):
        torch.testing.assert_close(found, tuple(t.detach() for t in expected), rtol=1e-10, atol=1e-10)


def test_kept_is_not_used_where_a_gradient_is_recorded(layer_and_input):
    layer, x = layer_and_input
    layer.freeze()
    with torch.no_grad():
        layer(x)
    for direction in (layer.forward, layer.inverse):
        y, logabsdet = direction(x)
        gradients = torch.autograd.grad(y.sum() + logabsdet.sum(), tuple(layer.parameters()))
        assert all(g.abs().sum() > 0 for g in gradients)


def test_kept_survives_inference_mode_and_copies(layer_and_input):
    layer, x = layer_and_input
    layer.eval()
    with torch.inference_mode():
        expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(layer)(x), tuple(t.clone() for t in expected))
        y, _ = layer(x.clone())
        y += 1
    y, _ = layer(x.clone().requires_grad_())
    y.sum().backward()


def test_using_cache_false_keeps_nothing():
    layer = LULinear(3, using_cache=False).eval()
    with torch.no_grad():
        layer(torch.randn(2, 3))
    assert layer._kept.last("_forward") is None


def test_refuses():
    for weight, message in (
        (torch.ones(3, 3), r"rank 1 of 3"),
        (torch.zeros(3, 3), r"rank 0 of 3"),
        (torch.full((3, 3), torch.nan), "finite"),
        (torch.eye(2), r"weight: expected \[channels, channels\] = \(3, 3\), got \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            InvertibleConv1x1(3, weight)
    for weight in (torch.eye(3, dtype=torch.int64), [[1.0, 0.0, 0.0]] * 3):
        with pytest.raises(TypeError, match="weight: expected a tensor of a floating dtype, got"):
            InvertibleConv1x1(3, weight)
    for make in (LULinear, InvertibleConv1x1):
        with pytest.raises(ValueError, match="expected a positive int, got 0"):
            make(0)
    for direction in (LULinear(3).forward, LULinear(3).inverse):
        with pytest.raises(ValueError, match=r"x: expected \[batch, 3\], got \(2, 4\)"):
            direction(torch.randn(2, 4))
    for direction in (InvertibleConv1x1(3).forward, InvertibleConv1x1(3).inverse):
        with pytest.raises(ValueError, match=r"x: expected \[batch, 3, height, width\], got \(2, 3\)"):
            direction(torch.randn(2, 3))
    with pytest.raises(TypeError, match="x: expected a floating dtype"):
        LULinear(3)(torch.zeros(2, 3, dtype=torch.int64))
