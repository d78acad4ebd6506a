"""The two stacks of the Gated PixelCNN see what the paper says and no more."""

import pytest
import torch
import torch.nn.functional as F

from fastgen.nn import GatedPixelCNNLayer, HorizontalStackConv2d, VerticalStackConv2d

HEIGHT, WIDTH = 6, 7


def seen_by(layer, channels, row, column):
    """Which positions of the input the output at (row, column) reads, [height, width] bool."""
    x = torch.randn(1, channels, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(layer.double()(x)[0, :, row, column].sum(), x)
    return grad[0].abs().sum(0) > 0


def rectangle(rows, columns):
    seen = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    seen[rows, columns] = True
    return seen


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_vertical_stack_sees_this_row_and_the_rows_above(kernel_size):
    reach = kernel_size // 2
    seen = seen_by(VerticalStackConv2d(2, 4, kernel_size), 2, 3, 3)
    assert torch.equal(seen, rectangle(slice(3 - reach, 4), slice(3 - reach, 4 + reach)))


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize(("mask_type", "end"), [("A", 4), ("B", 5)])
def test_horizontal_stack_sees_the_pixels_to_the_left(kernel_size, mask_type, end):
    seen = seen_by(HorizontalStackConv2d(mask_type, 2, 4, kernel_size), 2, 3, 4)
    assert torch.equal(seen, rectangle(3, slice(4 - kernel_size // 2, end)))


def test_stacks_are_the_convolution_with_a_masked_kernel():
    x = torch.randn(2, 3, HEIGHT, WIDTH, dtype=torch.float64)
    vertical, horizontal = VerticalStackConv2d(3, 4, 5).double(), HorizontalStackConv2d("A", 3, 4, 5).double()
    full = torch.zeros(4, 3, 5, 5, dtype=torch.float64)
    full[:, :, :3] = vertical.weight.detach()
    torch.testing.assert_close(vertical(x), F.conv2d(x, full, vertical.bias, padding=2))
    full = torch.zeros(4, 3, 1, 5, dtype=torch.float64)
    full[:, :, :, :2] = horizontal.weight.detach()
    torch.testing.assert_close(horizontal(x), F.conv2d(x, full, horizontal.bias, padding=(0, 2)))


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_colours_of_the_pixel_are_seen_in_order(mask_type):
    layer = HorizontalStackConv2d(mask_type, 6, 12, 3, color_groups=3, out_parts=2).double()
    x = torch.randn(1, 6, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    for channel in range(12):
        color_out = channel % 6 // 2
        (grad,) = torch.autograd.grad(y[0, channel, 2, 2], x, retain_graph=True)
        seen = grad[0, :, 2, 2] != 0
        color_in = torch.arange(6) // 2
        assert torch.equal(seen, color_in < color_out if mask_type == "A" else color_in <= color_out)


def layer_pair(mask_type, **kwargs):
    channels = 1 if mask_type == "A" else 4
    return GatedPixelCNNLayer(mask_type, channels, 4, 3, **kwargs).double(), channels


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_layer_of_two_stacks_is_causal(mask_type):
    layer, channels = layer_pair(mask_type, skip_channels=3)
    v = torch.randn(1, channels, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    h = torch.randn(1, channels, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    out = layer(v, h)
    assert out.skip.shape == (1, 3, HEIGHT, WIDTH)
    from_v, from_h = torch.autograd.grad((out.horizontal + out.skip.sum(1, keepdim=True))[0, :, 3, 2].sum(), (v, h))
    # The vertical stack reaches the horizontal one from the row above, the horizontal one ends at the pixel.
    assert torch.equal(from_v[0].abs().sum(0) > 0, rectangle(slice(1, 3), slice(1, 4)))
    assert torch.equal(from_h[0].abs().sum(0) > 0, rectangle(3, slice(1, 2 if mask_type == "A" else 3)))


def test_layer_is_equation_4():
    layer, _ = layer_pair("B", condition_channels=5)
    v, h = torch.randn(2, 2, 4, HEIGHT, WIDTH, dtype=torch.float64)
    s = torch.randn(2, 5, dtype=torch.float64)
    a_v = layer.vertical(v)
    a_h = layer.horizontal(h) + layer.vertical_to_horizontal(F.pad(a_v, (0, 0, 1, 0))[:, :, :-1])
    from_s = (s @ layer.condition.weight.T)[:, :, None, None]
    f_v, g_v = (a_v + from_s[:, :8]).chunk(2, 1)
    f_h, g_h = (a_h + from_s[:, 8:]).chunk(2, 1)
    out = layer(v, h, s)
    torch.testing.assert_close(out.vertical, f_v.tanh() * g_v.sigmoid())
    torch.testing.assert_close(out.horizontal, layer.output(f_h.tanh() * g_h.sigmoid()) + h)
    assert out.skip is None


def test_condition_reaches_every_image_by_itself():
    layer, _ = layer_pair("B", condition_channels=2)
    x = torch.randn(1, 4, HEIGHT, WIDTH, dtype=torch.float64).expand(3, -1, -1, -1)
    out = layer(x, x, torch.tensor([[1.0, 0], [0, 1], [1, 0]], dtype=torch.float64))
    for y in out[:2]:
        assert torch.equal(y[0], y[2]) and not torch.allclose(y[0], y[1])


def test_refuses():
    with pytest.raises(ValueError, match=r"kernel_size: expected a positive odd int.*got 2"):
        VerticalStackConv2d(1, 1, 2)
    with pytest.raises(ValueError, match=r"kernel_size: expected a positive odd int.*got 4"):
        HorizontalStackConv2d("B", 1, 1, 4)
    with pytest.raises(ValueError, match="mask_type: expected 'A' or 'B', got 'b'"):
        HorizontalStackConv2d("b", 1, 1, 3)
    with pytest.raises(ValueError, match="reads nothing"):
        HorizontalStackConv2d("A", 1, 1, 1)
    with pytest.raises(ValueError, match=r"out_channels: expected a multiple of out_parts . color_groups = 6, got 9"):
        HorizontalStackConv2d("A", 3, 9, 3, color_groups=3, out_parts=2)
    with pytest.raises(ValueError, match="in_channels: expected channels=8 for the residual"):
        GatedPixelCNNLayer("B", 4, 8, 3)
    x = torch.randn(2, 4, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"condition: .*expected None"):
        GatedPixelCNNLayer("B", 4, 4, 3)(x, x, torch.randn(2, 3))
    for condition in (None, torch.randn(1, 3), torch.randn(2, 4)):
        with pytest.raises(ValueError, match=r"condition: expected \[batch, condition_channels\] = \(2, 3\), got"):
            GatedPixelCNNLayer("B", 4, 4, 3, condition_channels=3)(x, x, condition)
