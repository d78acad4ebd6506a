"""`MaskedConv2d` reads no later pixel or colour, and is a `Conv2d` in everything else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.nn import MaskedConv2d


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize(
    ("kernel_size", "kwargs"),
    [
        (1, {}),
        (7, {}),
        ((3, 5), {"dilation": (2, 1)}),
        (3, {"stride": 2}),
        (5, {"padding": 2, "bias": False}),
        (3, {"padding": 0}),
        (3, {"color_groups": 3}),
        (1, {"color_groups": 3}),
    ],
)
def test_is_the_convolution_with_masked_weights(mask_type, kernel_size, kwargs):
    layer = MaskedConv2d(mask_type, 6, 9, kernel_size, **kwargs, dtype=torch.float64)
    x = torch.randn(2, 6, 8, 7, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.detach().clone().requires_grad_()
    expected = F.conv2d(x, weight * layer.mask, layer.bias, layer.stride, layer.padding, layer.dilation)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    grad_x, grad_weight = torch.autograd.grad(y, (x, layer.weight), grad)
    expected_x, expected_weight = torch.autograd.grad(expected, (x, weight), grad)
    torch.testing.assert_close(grad_x, expected_x)
    torch.testing.assert_close(grad_weight, expected_weight)
    assert not grad_weight[layer.mask == 0].any()


@pytest.mark.parametrize(
    ("mask_type", "seen"), [("A", [[1, 1, 1], [1, 0, 0], [0, 0, 0]]), ("B", [[1, 1, 1], [1, 1, 0], [0, 0, 0]])]
)
def test_mask_of_one_colour(mask_type, seen):
    assert MaskedConv2d(mask_type, 1, 1, 3).mask[0, 0].tolist() == seen


def test_mask_orders_the_colours_at_the_centre():
    assert MaskedConv2d("A", 3, 3, 1, color_groups=3).mask[:, :, 0, 0].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    expected = [[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert MaskedConv2d("B", 3, 6, 1, color_groups=3).mask[:, :, 0, 0].tolist() == expected


def test_reads_no_pixel_from_its_own_on():
    layer = MaskedConv2d("A", 2, 3, 5, dtype=torch.float64)
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x)[:, :, 3, 2].sum(), x)
    assert not grad.flatten(2)[:, :, 3 * 6 + 2 :].any()
    assert grad[0, :, 1:3, 0:5].all() and grad[0, :, 3, 0:2].all()


def test_is_a_conv2d_with_its_state_dict():
    layer, plain = MaskedConv2d("B", 4, 8, 3), nn.Conv2d(4, 8, 3)
    assert isinstance(layer, nn.Conv2d)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer.weight, plain.weight)


def test_loads_a_checkpoint_with_the_usual_mask_buffer():
    layer, other = MaskedConv2d("A", 2, 4, 3), MaskedConv2d("A", 2, 4, 3)
    network = nn.Sequential(layer)
    saved = {f"0.{k}": v for k, v in other.state_dict().items()} | {"0.mask": other.mask}
    network.load_state_dict(saved)
    torch.testing.assert_close(layer.weight, other.weight)
    with pytest.raises(RuntimeError, match=r"0.mask: the checkpoint masks other taps than type 'A'"):
        network.load_state_dict(saved | {"0.mask": MaskedConv2d("B", 2, 4, 3).mask})


def test_takes_arguments_in_the_order_of_conv2d():
    layer = MaskedConv2d("A", 4, 6, 3, 2, 1, 1, 1, False)
    assert (layer.stride, layer.padding, layer.dilation, layer.bias) == ((2, 2), (1, 1), (1, 1), None)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}),
        lambda layer: setattr(layer, "weight", nn.Parameter(-layer.weight)),
        lambda layer: (layer.weight.data.mul_(2), layer.train(layer.training)),
        lambda layer: layer.double().float(),
    ],
    ids=["in place", "loaded", "replaced", "through data", "converted"],
)
def test_follows_its_weight_in_both_modes(training, change):
    layer = MaskedConv2d("B", 4, 4, 3).train(training)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight * layer.mask, layer.bias, padding=1))
            change(layer)
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight * layer.mask, layer.bias, padding=1))


def test_packs_the_live_taps_once_where_it_is_frozen():
    layer, x = MaskedConv2d("B", 4, 4, 3), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        assert layer.eval()._kept_live_weight() is None
        layer.freeze()
        assert layer._kept_live_weight() is layer._kept_live_weight()
        assert layer._kept_live_weight().shape == (4, 4, 2, 3)
        assert layer.train()._kept_live_weight() is None
    assert layer.freeze()._kept_live_weight() is None
    # With gradients, nothing that was packed is used.
    layer(x).sum().backward()
    assert layer.weight.grad.any() and not layer.weight.grad[layer.mask == 0].any()


@pytest.mark.parametrize(
    ("args", "kwargs", "match"),
    [
        (("C", 1, 1, 3), {}, "mask_type: expected 'A' or 'B', got 'C'"),
        (("A", 1, 1, 4), {}, "kernel_size: expected a positive odd int.*got 4"),
        (("A", 1, 1, (3, 2)), {}, "kernel_size: .*got 2"),
        (("A", 0, 1, 3), {}, "in_channels: expected a positive int, got 0"),
        (("A", 3, 4, 3), {"color_groups": 3}, "out_channels: expected a multiple of color_groups=3, got 4"),
        (("A", 4, 3, 3), {"color_groups": 3}, "in_channels: expected a multiple of color_groups=3, got 4"),
        (("A", 4, 4, 3), {"color_groups": 2}, "color_groups: expected 1 or 3, got 2"),
        (("A", 4, 4, 3), {"groups": 2}, "groups: "),
        (("A", 4, 4, 3), {"padding": "valid"}, "padding: expected 'same'"),
        (("A", 4, 4, 3), {"padding": -1}, "padding: expected an int or a pair of ints, each at least 0"),
        (("A", 4, 4, 3), {"stride": 0}, "stride: expected an int or a pair"),
    ],
)
def test_refuses(args, kwargs, match):
    with pytest.raises(ValueError, match=match):
        MaskedConv2d(*args, **kwargs)
