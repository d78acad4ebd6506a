"""Shifted convolutions see above and left alone, at every stride, and the gated block is its formula."""

import pytest
import torch

from fastgen.nn import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    GatedResnet,
    concat_elu,
    down_shift,
    right_shift,
)

HEIGHT, WIDTH = 6, 8


def seen_by(layer, row, column, channels=2):
    x = torch.randn(1, channels, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(layer.double()(x)[0, :, row, column].sum(), x)
    return {tuple(p) for p in grad[0].abs().sum(0).nonzero().tolist()}


def block(rows, columns):
    return {(r, c) for r in rows for c in columns}


def test_shifts():
    x = torch.arange(1.0, 5).view(1, 1, 2, 2)
    assert down_shift(x).tolist() == [[[[0, 0], [1, 2]]]]
    assert right_shift(x).tolist() == [[[[0, 1], [0, 3]]]]


@pytest.mark.parametrize(
    ("kernel_size", "rows", "columns"), [((2, 3), (2, 4), (3, 6)), ((1, 3), (3, 4), (3, 6)), ((3, 5), (1, 4), (2, 7))]
)
def test_down_shifted_sees_rows_above(kernel_size, rows, columns):
    assert seen_by(DownShiftedConv2d(2, 3, kernel_size), 3, 4) == block(range(*rows), range(*columns))


@pytest.mark.parametrize(
    ("kernel_size", "rows", "columns"), [((2, 2), (2, 4), (3, 5)), ((2, 1), (2, 4), (4, 5)), ((3, 4), (1, 4), (1, 5))]
)
def test_down_right_shifted_sees_above_and_left(kernel_size, rows, columns):
    assert seen_by(DownRightShiftedConv2d(2, 3, kernel_size), 3, 4) == block(range(*rows), range(*columns))


@pytest.mark.parametrize("conv", [DownShiftedConv2d, DownRightShiftedConv2d])
def test_stride_takes_every_second_position(conv):
    layer = conv(2, 3, stride=2).double()
    x = torch.randn(2, 2, HEIGHT, WIDTH, dtype=torch.float64)
    y = layer(x)
    layer.stride = (1, 1)
    torch.testing.assert_close(y, layer(x)[:, :, ::2, ::2])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("conv", "transposed", "kernel_size"),
    [
        (DownShiftedConv2d, DownShiftedConvTranspose2d, (2, 3)),
        (DownShiftedConv2d, DownShiftedConvTranspose2d, (1, 1)),
        (DownRightShiftedConv2d, DownRightShiftedConvTranspose2d, (2, 2)),
        (DownRightShiftedConv2d, DownRightShiftedConvTranspose2d, (3, 1)),
    ],
)
def test_halving_and_doubling_back_never_looks_ahead(conv, transposed, kernel_size, stride):
    down = conv(2, 2, kernel_size, stride).double()
    up = transposed(2, 2, kernel_size, stride).double()
    height, width = 6, 6
    x = torch.randn(1, 2, height, width, dtype=torch.float64, requires_grad=True)
    y = up(down(x))
    assert y.shape == x.shape
    for row in range(height):
        for column in range(width):
            (grad,) = torch.autograd.grad(y[0, :, row, column].sum(), x, retain_graph=True)
            seen = grad[0].abs().sum(0) > 0
            assert not seen[row + 1 :].any()
            if conv is DownRightShiftedConv2d:
                assert not seen[:, column + 1 :].any()


def test_transposed_is_the_sum_in_its_docstring():
    for layer, center in (
        (DownShiftedConvTranspose2d(1, 1, bias=False), 1),
        (DownRightShiftedConvTranspose2d(1, 1, bias=False), 0),
    ):
        x = torch.randn(1, 1, 3, 4)
        expected = torch.zeros(1, 1, 6, 8)
        rows, columns = layer.kernel_size
        for r in range(6):
            for c in range(8):
                for i in range(rows):
                    for j in range(columns):
                        (source_r, rest_r), (source_c, rest_c) = divmod(r - i, 2), divmod(c - j + center, 2)
                        if rest_r == rest_c == 0 and 0 <= source_r < 3 and 0 <= source_c < 4:
                            expected[0, 0, r, c] += x[0, 0, source_r, source_c] * layer.weight[0, 0, i, j].item()
        torch.testing.assert_close(layer(x), expected)


def test_concat_elu():
    x = torch.tensor([[2.0, -3.0]])
    expected = torch.tensor([[2.0, torch.expm1(torch.tensor(-3.0)), torch.expm1(torch.tensor(-2.0)), 3.0]])
    torch.testing.assert_close(concat_elu(x), expected)


def test_gated_resnet_is_its_formula():
    net = GatedResnet(DownShiftedConv2d, 4, shortcut_channels=2, condition_channels=3, dropout=0.5).double().eval()
    x, a = torch.randn(2, 4, HEIGHT, WIDTH, dtype=torch.float64), torch.randn(2, 2, HEIGHT, WIDTH, dtype=torch.float64)
    s = torch.randn(2, 3, dtype=torch.float64)
    y = net.input(concat_elu(x)) + net.shortcut(concat_elu(a))
    p, q = (net.output(concat_elu(y)) + (s @ net.condition.weight.T)[:, :, None, None]).chunk(2, 1)
    torch.testing.assert_close(net(x, a, s), x + p * q.sigmoid())
    assert not torch.equal(net.train()(x, a, s), net(x, a, s))


def test_refuses():
    with pytest.raises(ValueError, match=r"kernel_size\[1\]: expected a positive odd int.*got 2"):
        DownShiftedConv2d(1, 1, (2, 2))
    with pytest.raises(ValueError, match=r"kernel_size\[1\]: expected a positive odd int.*got 4"):
        DownShiftedConvTranspose2d(1, 1, (2, 4))
    with pytest.raises(ValueError, match="stride: expected an int or a pair of ints"):
        DownRightShiftedConv2d(1, 1, (2, 2), (1, 2, 3))
    x = torch.randn(1, 4, 4, 4)
    with pytest.raises(ValueError, match="a: expected None"):
        GatedResnet(DownShiftedConv2d, 4)(x, x)
    with pytest.raises(ValueError, match="a: expected a tensor"):
        GatedResnet(DownShiftedConv2d, 4, shortcut_channels=4)(x)
    with pytest.raises(ValueError, match="condition: expected a tensor"):
        GatedResnet(DownShiftedConv2d, 4, condition_channels=4)(x)
