"""A causal convolution is a masked one on an image of one row, all of whose taps are live: the same kernels."""

from torch import Tensor

from fastgen._triton.masked_conv2d import compile_table, masked_conv2d, masked_conv2d_weight_gradient


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    kernel_size, time = weight.shape[2], x.shape[2]
    reach = (kernel_size - 1) * dilation
    return masked_conv2d(
        x.unsqueeze(2), weight, bias, kernel_size, kernel_size, 1, time, 0, -reach, 1, dilation
    ).squeeze(2)


def causal_conv1d_input_gradient(grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
    kernel_size, time = weight.shape[2], grad.shape[2]
    reach = (kernel_size - 1) * dilation
    return masked_conv2d(
        grad.unsqueeze(2), weight.transpose(0, 1), None, kernel_size, kernel_size, 1, time, 0, reach, 1, -dilation
    ).squeeze(2)


def causal_conv1d_weight_gradient(grad: Tensor, x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    reach = (kernel_size - 1) * dilation
    return masked_conv2d_weight_gradient(
        grad.unsqueeze(2), x.unsqueeze(2), kernel_size, kernel_size, 0, -reach, 1, dilation
    )


COMPILE = compile_table(taps=2, kernel_width=2)
