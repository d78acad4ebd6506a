"""`masked_conv2d` is its definition, sees nothing later, and neither reads nor trains a dead weight."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import zeros

import fastgen
from fastgen.ops import masked_conv2d, masked_conv2d_live_weight, masked_conv2d_mask
from fastgen.ops.extensions import UNUSABLE

BACKENDS = ["library", "reference"] + ["cpp"] * (not UNUSABLE["cpp"])


def by_definition(x, weight, bias, *, mask_type, stride=1, padding="same", dilation=1, color_groups=1):
    """Every product of a weight and a pixel, with the mask written out as in the paper."""
    out_channels, in_channels, height, width = weight.shape
    live = torch.zeros_like(weight)
    for n in range(out_channels):
        for k in range(in_channels):
            color_out, color_in = n * color_groups // out_channels, k * color_groups // in_channels
            for i in range(height):
                for j in range(width):
                    before = i < height // 2 or (i == height // 2 and j < width // 2)
                    centre = i == height // 2 and j == width // 2
                    sees = color_in < color_out if mask_type == "A" else color_in <= color_out
                    live[n, k, i, j] = before or (centre and sees)
    if padding == "same":
        padding = (dilation * (height // 2), dilation * (width // 2))
    return F.conv2d(x, weight * live, bias, stride, padding, dilation), live


@settings(max_examples=40, deadline=None)
@given(
    mask_type=st.sampled_from("AB"),
    colors=st.sampled_from([1, 1, 3]),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 7)),
    kernel=st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5])),
    size=st.tuples(st.integers(1, 9), st.integers(1, 19)),
    dilation=st.integers(1, 3),
    stride=st.sampled_from([1, 1, 2]),
    extra_padding=st.sampled_from([None, 0, 3]),
)
# Narrower than the reach of the only live tap: more columns to cut on the right than the image has.
@example(
    mask_type="A",
    colors=1,
    channels=(1, 1),
    kernel=(1, 3),
    size=(1, 1),
    dilation=2,
    stride=1,
    extra_padding=None,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_definition(backend, mask_type, colors, channels, kernel, size, dilation, stride, extra_padding):
    in_channels, out_channels = (c * colors for c in channels)
    x = torch.randn(2, in_channels, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(out_channels, in_channels, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(out_channels, dtype=torch.float64, requires_grad=True)
    padding = "same" if extra_padding is None else tuple(dilation * (k // 2) + extra_padding for k in kernel)
    options = {
        "mask_type": mask_type,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "color_groups": colors,
    }
    expected, live = by_definition(x, weight, bias, **options)
    try:
        with fastgen.use_backend(backend):
            found = masked_conv2d(x, weight, bias, **options)
    except fastgen.ops.BackendError:
        assert (backend == "cpp" and stride > 1) or not live.any()
        return
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    inputs = (x, weight, bias)
    found, expected = (torch.autograd.grad(y, inputs, grad) for y in (found, expected))
    for value, true in zip(found, expected, strict=True):
        torch.testing.assert_close(value, true)


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sees_only_what_comes_before(backend, mask_type, colors):
    """The Jacobian in raster order, colours within a pixel, is lower triangular: strictly for type A."""
    size, per_color = (4, 5), 2
    x = torch.randn(1, colors * per_color, *size, dtype=torch.float64)
    weight = torch.rand(colors * per_color, colors * per_color, 5, 3, dtype=torch.float64) + 1
    with fastgen.use_backend(backend):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: masked_conv2d(x, weight, mask_type=mask_type, color_groups=colors), x
        )
    order = torch.arange(4 * 5).reshape(size) * colors + (torch.arange(colors * per_color) // per_color)[:, None, None]
    later = order.flatten()[None, :] > order.flatten()[:, None]
    same = order.flatten()[None, :] == order.flatten()[:, None]
    sees = jacobian.reshape(order.numel(), order.numel()) != 0
    assert not sees[later].any()
    assert sees[same].all() if mask_type == "B" else not sees[same].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_is_zero_exactly_where_the_mask_is(backend):
    x = torch.randn(2, 6, 5, 6)
    weight = torch.randn(9, 6, 5, 3, requires_grad=True)
    with fastgen.use_backend(backend):
        masked_conv2d(x, weight, mask_type="A", color_groups=3).square().sum().backward()
    mask = masked_conv2d_mask(9, 6, (5, 3), mask_type="A", color_groups=3)
    assert (weight.grad[~mask] == 0).all()
    assert (weight.grad[mask] != 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dead_weights_are_not_used(backend):
    x, weight = torch.randn(2, 3, 5, 6), torch.randn(3, 3, 3, 3)
    mask = masked_conv2d_mask(3, 3, (3, 3), mask_type="A", color_groups=3)
    with fastgen.use_backend(backend):
        found, poisoned = (
            masked_conv2d(x, w, mask_type="A", color_groups=3)
            for w in (weight, weight.masked_fill(~mask, float("nan")))
        )
    assert torch.equal(found, poisoned)


@pytest.mark.skipif(bool(UNUSABLE["cpp"]), reason="no CPU kernels here")
def test_the_kernel_does_not_read_dead_taps():
    x = torch.randn(1, 4, 6, 7)
    x[:, :, 3, 4:] = float("nan")
    x[:, :, 4:] = float("nan")
    with fastgen.use_backend("cpp"):
        y = masked_conv2d(x, torch.randn(5, 4, 7, 7), mask_type="A")
    assert y[:, :, :3].isfinite().all()
    assert y[:, :, 3, :5].isfinite().all()
    assert y[:, :, 3, 5:].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("colors", [1, 3])
def test_live_weight_stands_for_the_weight(backend, colors):
    x, weight, bias = torch.randn(2, 3, 5, 6), torch.randn(6, 3, 5, 5), torch.randn(6)
    options = {"mask_type": "B", "color_groups": colors}
    live = masked_conv2d_live_weight(weight, **options)
    assert live.shape == (6, 3, 3, 5)
    with fastgen.use_backend(backend):
        assert torch.equal(
            masked_conv2d(x, weight, bias, **options, live_weight=live), masked_conv2d(x, weight, bias, **options)
        )
    with pytest.raises(ValueError, match=r"live_weight: expected \(6, 3, 3, 5\), got \(6, 3, 5, 5\)"):
        masked_conv2d(x, weight, bias, **options, live_weight=weight)


def test_library_gradient_of_second_order():
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    with fastgen.use_backend("library"):
        assert torch.autograd.gradgradcheck(lambda x, w: masked_conv2d(x, w, mask_type="A"), (x, weight))


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_autocast_is_that_of_conv2d(backend):
    x, weight = torch.randn(2, 3, 5, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), fastgen.use_backend(backend):
        y = masked_conv2d(x, weight, mask_type="B")
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_saves_nothing_beyond_its_inputs(backend):
    x, weight = torch.randn(2, 40, 5, 6, requires_grad=True), torch.randn(4, 40, 3, 3, requires_grad=True)
    saved = []
    with fastgen.use_backend(backend), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, id):
        masked_conv2d(x, weight, mask_type="B")
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), weight.data_ptr()}


@pytest.mark.skipif(bool(UNUSABLE["cpp"]), reason="no CPU kernels here")
@pytest.mark.parametrize("threads", [1, 2])
def test_repeats_itself_bit_for_bit(threads):
    x, weight = torch.randn(3, 40, 11, 13), torch.randn(24, 40, 3, 3, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        grads = []
        for _ in range(3):
            with fastgen.use_backend("cpp"):
                (grad,) = torch.autograd.grad(masked_conv2d(x, weight, mask_type="B").square().sum(), weight)
            grads.append(grad)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_what_runs_where():
    def chosen(x, weight):
        return fastgen.explain(masked_conv2d, x, weight, mask_type="B")[0].backend

    many, weight = torch.randn(32, 64, 8, 8), torch.randn(64, 64, 3, 3)
    if not UNUSABLE["cpp"]:
        assert chosen(many, weight) == "cpp"
        assert chosen(torch.randn(1, 1, 8, 8), torch.randn(64, 1, 7, 7)) == "cpp"
    assert chosen(many.to(memory_format=torch.channels_last), weight) == "library"
    assert chosen(many.bfloat16(), weight.bfloat16()) == "library"
    assert chosen(torch.randn(64, 1, 28, 28), torch.randn(64, 1, 7, 7)) == "library"
    assert chosen(many[:1, :, :2, :2].bfloat16(), weight.bfloat16()) == "reference"


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "error", "message"),
    [
        (
            zeros(1, 2, 4, 4),
            zeros(3, 2, 4, 3),
            None,
            {},
            ValueError,
            r"weight: expected a kernel of odd .*\(4, 3\)",
        ),
        (zeros(1, 2, 4, 4), zeros(3, 2, 3, 3), None, {"mask_type": "C"}, ValueError, "mask_type: .*got 'C'"),
        (zeros(1, 2, 4, 4), zeros(3, 2, 3, 3), None, {"color_groups": 3}, ValueError, "in_channels: .*got 2"),
        (zeros(1, 3, 4, 4), zeros(4, 3, 3, 3), None, {"color_groups": 3}, ValueError, "out_channels: .*got 4"),
        (zeros(1, 2, 4, 4), zeros(3, 2, 3, 3), None, {"color_groups": 0}, ValueError, "color_groups: "),
        (
            zeros(1, 3, 4, 4),
            zeros(3, 2, 3, 3),
            None,
            {},
            ValueError,
            r"x: expected \[batch, 2, .*got \(1, 3, 4, 4\)",
        ),
        (zeros(2, 4, 4), zeros(3, 2, 3, 3), None, {}, ValueError, "x: expected"),
        (zeros(1, 2, 4, 4), zeros(3, 2, 3), None, {}, ValueError, "weight: expected"),
        (zeros(1, 2, 4, 4), zeros(3, 2, 3, 3), zeros(2), {}, ValueError, r"bias: expected \(3,\), got \(2,\)"),
        (zeros(1, 2, 4, 4), zeros(3, 2, 3, 3), None, {"stride": 0}, ValueError, "stride: "),
        (zeros(1, 2, 4, 4), zeros(3, 2, 3, 3), None, {"dilation": (1, 0)}, ValueError, "dilation: "),
        (zeros(1, 2, 4, 4), zeros(3, 2, 3, 3), None, {"padding": "valid"}, ValueError, "padding: .*'valid'"),
        (zeros(1, 2, 4, 2), zeros(3, 2, 3, 3), None, {"padding": 0}, ValueError, "x: too small"),
        (zeros(1, 2, 0, 4), zeros(3, 2, 3, 3), None, {}, ValueError, "x: too small"),
        (zeros(1, 2, 4, 4, dtype=torch.int64), zeros(3, 2, 3, 3), None, {}, TypeError, "x: expected a floating"),
        (
            zeros(1, 2, 4, 4),
            zeros(3, 2, 3, 3, dtype=torch.float64),
            None,
            {},
            TypeError,
            "weight: expected torch.f",
        ),
        (zeros(1, 2, 4, 4), zeros(3, 2, 3, 3, device="meta"), None, {}, TypeError, "weight: expected .* on cpu"),
        (zeros(1, 2, 4, 4), zeros(3, 2, 3, 3), zeros(3).half(), {}, TypeError, "bias: expected torch.float32"),
    ],
)
def test_bad_arguments(x, weight, bias, options, error, message):
    with pytest.raises(error, match=message):
        masked_conv2d(x, weight, bias, **{"mask_type": "A", **options})


def test_bad_masks():
    with pytest.raises(ValueError, match="odd"):
        masked_conv2d_mask(3, 3, (2, 3), mask_type="A")
    with pytest.raises(ValueError, match="in_channels"):
        masked_conv2d_mask(3, 2, (3, 3), mask_type="A", color_groups=3)
    with pytest.raises(ValueError, match="weight: expected"):
        masked_conv2d_live_weight(torch.zeros(3, 3), mask_type="A")
