"""The rational-quadratic spline, its inverse and its gradient, each in one pass.

A program has ROWS x COLUMNS elements of x, seen as [rows, n]. Their widths and heights are tiles [elements, BINS], K
bins padded to a power of two; of the derivatives an element reads the two of its bin. The parameters of element e begin
at `e // positions * stride + e % positions` and lie `positions` apart: 1 for splines and vectors, the number of pixels
for images. Sums of log-determinants are made per program, without atomics.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.rational_quadratic import (
    bin_of,
    bin_order,
    knot_column,
    knot_derivative,
    softmax_gradient,
    softmax_terms,
    solve,
    sum_where,
)

# Elements times padded bins of one program: four tiles of these must fit in its registers.
TILE = 1024
LINEAR, CIRCULAR, NONE = -1, 0, 1


@triton.jit
def element_of(rows, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The elements of this program, which of them are real, their rows, and the program's part of those rows."""
    parts = tl.cdiv(n, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, ROWS * COLUMNS)
    row = program // parts * ROWS + i // COLUMNS
    column = program % parts * COLUMNS + i % COLUMNS
    return row * n + column, (row < rows) & (column < n), row, program % parts


@triton.jit
def located(
    x, widths, heights, derivatives, e, inside, positions, width_stride, height_stride, derivative_stride,
    bound, min_width, min_height, min_derivative, scale, clip_bins, clip_derivatives,
    INVERSE: tl.constexpr, TAILS: tl.constexpr, ZUKO: tl.constexpr, K: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Where elements lie in their bins, for both kernels.

    Returns the elements; which are turned around; their bins: the index, which column that is, and which come before;
    of widths and of heights the softmax's terms, sum, clip's slope, factor, sum before the bin and the bin's term; the
    bin's left, width, bottom and height; the derivatives at its ends, and their slopes; and the place within the bin.
    """
    group, pixel = e // positions, e % positions
    value = tl.load(x + e, mask=inside, other=0.0).to(tl.float32)
    # The right half is turned around, so that positions keep their digits near either end.
    turned = value > 0.0
    position = (bound - tl.abs(value)) / (2.0 * bound)
    order = bin_order(turned, K, BINS)
    w, w_sum, w_clip = softmax_terms(
        widths, group * width_stride + pixel, positions, inside, scale, clip_bins, ZUKO, K, BINS
    )
    h, h_sum, h_clip = softmax_terms(
        heights, group * height_stride + pixel, positions, inside, scale, clip_bins, ZUKO, K, BINS
    )
    w_factor, h_factor = (1.0 - K * min_width) / w_sum, (1.0 - K * min_height) / h_sum
    if INVERSE:
        index = bin_of(position, h, h_factor, min_height, turned, order, K)
    else:
        index = bin_of(position, w, w_factor, min_width, turned, order, K)
    at, earlier = order == index[:, None], order < index[:, None]
    w_before, w_term = sum_where(w, earlier), sum_where(w, at)
    h_before, h_term = sum_where(h, earlier), sum_where(h, at)
    # A size is never the difference of two knots, which would cancel.
    left, width = w_before * w_factor + index * min_width, w_term * w_factor + min_width
    bottom, height = h_before * h_factor + index * min_height, h_term * h_factor + min_height
    offset = group * derivative_stride + pixel
    d0, d0_slope = knot_derivative(
        derivatives, offset, positions, inside, index, turned, min_derivative, clip_derivatives, TAILS, ZUKO, K
    )
    d1, d1_slope = knot_derivative(
        derivatives, offset, positions, inside, index + 1, turned, min_derivative, clip_derivatives, TAILS, ZUKO, K
    )
    slope = height / width
    if INVERSE:
        theta, phi = solve(position, bottom, height, d0 / slope, d1 / slope, True)
    else:
        theta, phi = solve(position, left, width, d0 / slope, d1 / slope, False)
    of_widths = (w, w_sum, w_clip, w_factor, w_before, w_term)
    of_heights = (h, h_sum, h_clip, h_factor, h_before, h_term)
    box = (left, width, bottom, height)
    return value, turned, (index, at, earlier), of_widths, of_heights, box, (d0, d1, d0_slope, d1_slope), (theta, phi)


@triton.jit
def spline_kernel(
    x, widths, heights, derivatives, y, logabsdet, rows, n, positions, width_stride, height_stride, derivative_stride,
    bound, min_width, min_height, min_derivative, scale, clip_bins, clip_derivatives,
    INVERSE: tl.constexpr, TAILS: tl.constexpr, ZUKO: tl.constexpr, SUM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    e, inside, _, part = element_of(rows, n, ROWS, COLUMNS)
    value, turned, _, _, _, box, ends, place = located(
        x, widths, heights, derivatives, e, inside, positions, width_stride, height_stride, derivative_stride,
        bound, min_width, min_height, min_derivative, scale, clip_bins, clip_derivatives,
        INVERSE, TAILS, ZUKO, K, BINS,
    )  # fmt: skip
    left, width, bottom, height = box
    d0, d1, _, _ = ends
    theta, phi = place
    slope = height / width
    D0, D1 = d0 / slope, d1 / slope
    product = theta * phi
    inverse_denominator = 1.0 / (theta * theta + phi * phi + (D0 + D1) * product)
    # The slope enters where d0 and d1 are not divided by it: at the ends of a bin, the result is the very derivative's.
    numerator = d1 * theta * theta + 2.0 * slope * product + d0 * phi * phi
    log_slope = tl.log(numerator * inverse_denominator * inverse_denominator)
    if INVERSE:
        log_slope = -log_slope
        result = left + width * theta
    else:
        result = bottom + height * ((theta * theta + D0 * product) * inverse_denominator)
    # Rounding may put it beyond the end that it is far from.
    result = tl.where(result > 1.0, 1.0, result) * (2.0 * bound) - bound
    result = tl.where(turned, -result, result)
    beyond = tl.abs(value) > bound
    result = tl.where(beyond, float("nan") if TAILS == 1 else value, result)
    log_slope = tl.where(beyond, float("nan") if TAILS == 1 else 0.0, log_slope)
    tl.store(y + e, result.to(y.dtype.element_ty), mask=inside)
    if SUM:
        total = tl.sum(tl.reshape(tl.where(inside, log_slope, 0.0), (ROWS, COLUMNS)), 1)
        first = tl.program_id(0).to(tl.int64) // tl.cdiv(n, COLUMNS) * ROWS
        summed = first + tl.arange(0, ROWS)
        tl.store(logabsdet + summed * tl.cdiv(n, COLUMNS) + part, total, mask=summed < rows)
    else:
        tl.store(logabsdet + e, log_slope.to(logabsdet.dtype.element_ty), mask=inside)


@triton.jit
def spline_backward_kernel(
    grad, grad_logabsdet, x, widths, heights, derivatives, grad_x, grad_parameters, rows, n, positions, width_stride,
    height_stride, derivative_stride, bound, min_width, min_height, min_derivative, scale, clip_bins,
    clip_derivatives,
    HAS_GRAD: tl.constexpr, HAS_LOGABSDET: tl.constexpr, INVERSE: tl.constexpr, TAILS: tl.constexpr, ZUKO: tl.constexpr,
    SUM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, BINS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
):  # fmt: skip
    e, inside, row, _ = element_of(rows, n, ROWS, COLUMNS)
    value, turned, found, of_widths, of_heights, box, ends, place = located(
        x, widths, heights, derivatives, e, inside, positions, width_stride, height_stride, derivative_stride,
        bound, min_width, min_height, min_derivative, scale, clip_bins, clip_derivatives,
        INVERSE, TAILS, ZUKO, K, BINS,
    )  # fmt: skip
    index, at, earlier = found
    w, w_sum, w_clip, w_factor, w_before, w_term = of_widths
    h, h_sum, h_clip, h_factor, h_before, h_term = of_heights
    _, width, _, height = box
    d0, d1, d0_slope, d1_slope = ends
    theta, phi = place
    slope = height / width
    D0, D1 = d0 / slope, d1 / slope

    # Upstream gradients in unit coordinates; none beyond the spline.
    beyond = tl.abs(value) > bound
    given = tl.zeros_like(value)
    if HAS_GRAD:
        given = tl.load(grad + e, mask=inside, other=0.0).to(tl.float32)
    grad_log = tl.zeros_like(value)
    if HAS_LOGABSDET:
        grad_log = tl.load(grad_logabsdet + (row if SUM else e), mask=inside, other=0.0).to(tl.float32)
    # A turned element's input and output have the other sign.
    side = tl.where(turned, -2.0, 2.0) * bound
    grad_unit = tl.where(beyond, 0.0, given * side)
    grad_log = tl.where(beyond, 0.0, grad_log)

    product = theta * phi
    inverse_denominator = 1.0 / (theta * theta + phi * phi + (D0 + D1) * product)
    inverse_numerator = 1.0 / (D1 * theta * theta + 2.0 * product + D0 * phi * phi)
    rise = inverse_denominator * inverse_denominator / inverse_numerator
    # d logabsdet / d theta, of the forward map.
    log_rise = 2.0 * (
        (D1 * theta + phi - (D0 * phi + theta)) * inverse_numerator
        - (D0 + D1 - 2.0) * (phi - theta) * inverse_denominator
    )
    if INVERSE:
        # The inverse is differentiated as the forward map at the solution.
        solution = (grad_unit - grad_log * log_rise / width) / (slope * rise)
        grad_inside = solution / side
        grad_position = -grad_unit
        grad_unit = -solution
        grad_log = -grad_log
    else:
        grad_position = (grad_unit * height * rise + grad_log * log_rise) / width
        grad_inside = grad_position / side
    grad_x_value = tl.where(beyond, 0.0 if TAILS == 1 else given, grad_inside)
    tl.store(grad_x + e, grad_x_value.to(grad_x.dtype.element_ty), mask=inside)

    product *= inverse_denominator
    eta = theta * theta * inverse_denominator + D0 * product
    rest = phi * phi * inverse_denominator + D1 * product
    by_height = grad_unit * height * product
    grad_D0 = by_height * rest + grad_log * (phi * phi * inverse_numerator - 2.0 * product)
    grad_D1 = grad_log * (theta * theta * inverse_numerator - 2.0 * product) - by_height * eta
    # The slope enters the log-determinant itself, and D0 and D1 inversely; this is its gradient times the slope.
    grad_slope = grad_log - grad_D0 * D0 - grad_D1 * D1
    grad_width = -(grad_slope / width + grad_position * theta)
    grad_height = grad_unit * eta + grad_slope / height

    k = tl.arange(0, BINS)[None, :]
    mask = inside[:, None] & (k < K)
    out = grad_parameters + (e // positions * (3 * K + TAILS) * positions + e % positions)[:, None]
    on_widths = softmax_gradient(w, w_sum, w_before, w_term, at, earlier, -grad_position, grad_width, w_factor * scale)
    tl.store(out + k * positions, (on_widths * w_clip).to(grad_parameters.dtype.element_ty), mask=mask)
    on_heights = softmax_gradient(h, h_sum, h_before, h_term, at, earlier, grad_unit, grad_height, h_factor * scale)
    tl.store(out + (K + k) * positions, (on_heights * h_clip).to(grad_parameters.dtype.element_ty), mask=mask)
    j = tl.arange(0, DERIVATIVES)[None, :]
    first = knot_column(index, turned, K, TAILS)[:, None]
    second = knot_column(index + 1, turned, K, TAILS)[:, None]
    of_derivatives = tl.where(j == first, (grad_D0 / slope * d0_slope)[:, None], 0.0)
    of_derivatives += tl.where(j == second, (grad_D1 / slope * d1_slope)[:, None], 0.0)
    tl.store(
        out + (2 * K + j) * positions,
        of_derivatives.to(grad_parameters.dtype.element_ty),
        mask=inside[:, None] & (j < K + TAILS),
    )


class _Call(NamedTuple):
    """What both kernels need of a call, and how its elements are dealt out to programs."""

    tensors: tuple[Tensor, Tensor, Tensor]
    numbers: tuple
    tails: int
    zuko: bool
    sums: bool
    grid: tuple[int]
    tiles: tuple[int, int, int, int]
    parts: int


def _call(
    parameters: tuple[Tensor, Tensor, Tensor],
    strides: tuple[int, int, int],
    shape: tuple[int, int, int, int],
    sums: bool,
    softmax_scale: float,
    settings: tuple,
) -> _Call:
    rows, n, positions, bins = shape
    tail_bound, min_bin_width, min_bin_height, min_derivative, zuko = settings
    clip = abs(1 / math.log(min_derivative)) if zuko else 0.0
    minima = (0.0, 0.0, min_derivative) if zuko else (min_bin_width, min_bin_height, min_derivative)
    padded = triton.next_power_of_2(bins)
    elements = max(16, TILE // padded)
    columns = min(elements, triton.next_power_of_2(n)) if sums else elements
    rows_at_once = elements // columns if sums else 1
    parts = triton.cdiv(n, columns)
    numbers = (rows, n, positions, *strides, tail_bound, *minima, softmax_scale, 2 * clip, clip)
    grid = (triton.cdiv(rows, rows_at_once) * parts,)
    return _Call(parameters, numbers, 0, zuko, sums, grid, (rows_at_once, columns, bins, padded), parts)


def _spline_call(x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, settings: tuple) -> _Call:
    parameters = (widths, heights, derivatives)
    shape = (1, x.numel(), 1, widths.shape[1])
    call = _call(parameters, tuple(p.stride(0) for p in parameters), shape, False, 1.0, settings)
    return call._replace(tails=derivatives.shape[1] - widths.shape[1])


def _coupling_call(x: Tensor, params: Tensor, bins: int, softmax_scale: float, settings: tuple) -> _Call:
    positions = x.shape[2:].numel()
    each = params.numel() // x.numel()
    flat = params.view(-1)
    parameters = (flat, flat[bins * positions :], flat[2 * bins * positions :])
    shape = (x.shape[0], x.shape[1:].numel(), positions, bins)
    call = _call(parameters, (each * positions,) * 3, shape, True, softmax_scale, settings)
    return call._replace(tails=each - 3 * bins)


def _forward(call: _Call, x: Tensor, y: Tensor, logabsdet: Tensor, inverse: bool) -> None:
    constants = (inverse, call.tails, call.zuko, call.sums, *call.tiles)
    spline_kernel[call.grid](x, *call.tensors, y, logabsdet, *call.numbers, *constants)


def _backward(
    call: _Call, grad: Tensor | None, grad_logabsdet: Tensor | None, x: Tensor, grad_params: Tensor, inverse: bool
) -> Tensor:
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    given = (grad is not None, grad_logabsdet is not None)
    upstream = (x if grad is None else grad, x if grad_logabsdet is None else grad_logabsdet)
    derivatives = triton.next_power_of_2(call.tiles[2] + call.tails)
    constants = (*given, inverse, call.tails, call.zuko, call.sums, *call.tiles, derivatives)
    spline_backward_kernel[call.grid](*upstream, x, *call.tensors, grad_x, grad_params, *call.numbers, *constants)
    return grad_x


def rational_quadratic_spline(
    x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, inverse: bool, *settings
) -> tuple[Tensor, Tensor]:
    y, logabsdet = x.new_empty(x.shape), x.new_empty(x.shape)
    if x.numel():
        _forward(_spline_call(x, widths, heights, derivatives, settings), x, y, logabsdet, inverse)
    return y, logabsdet


def rational_quadratic_spline_backward(
    grad: Tensor | None,
    grad_logabsdet: Tensor | None,
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    inverse: bool,
    *settings,
) -> tuple[Tensor, Tensor]:
    columns = widths.shape[1] + heights.shape[1] + derivatives.shape[1]
    grad_parameters = x.new_empty((x.numel(), columns))
    if not x.numel():
        return x.new_empty(x.shape), grad_parameters
    call = _spline_call(x, widths, heights, derivatives, settings)
    return _backward(call, grad, grad_logabsdet, x, grad_parameters, inverse), grad_parameters


def rational_quadratic_coupling(
    x: Tensor, params: Tensor, bins: int, softmax_scale: float, inverse: bool, *settings
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape)
    if not x.numel():
        return y, x.new_zeros(x.shape[:1], dtype=torch.float32)
    call = _coupling_call(x, params, bins, softmax_scale, settings)
    rows = x.shape[0]
    sums = x.new_empty(rows if call.parts == 1 else (rows, call.parts), dtype=torch.float32)
    _forward(call, x, y, sums, inverse)
    return y, sums if call.parts == 1 else sums.sum(1)


def rational_quadratic_coupling_backward(
    grad: Tensor | None,
    grad_logabsdet: Tensor | None,
    x: Tensor,
    params: Tensor,
    bins: int,
    softmax_scale: float,
    inverse: bool,
    *settings,
) -> tuple[Tensor, Tensor]:
    grad_params = params.new_empty(params.shape)
    if not x.numel():
        return x.new_empty(x.shape), grad_params
    call = _coupling_call(x, params, bins, softmax_scale, settings)
    return _backward(call, grad, grad_logabsdet, x, grad_params, inverse), grad_params


# What each kernel is compiled for without a GPU.
_KINDS = {
    "i64": "rows n positions width_stride height_stride derivative_stride",
    "fp32": "bound min_width min_height min_derivative scale clip_bins clip_derivatives",
}


def _variants(kernel: triton.JITFunction) -> list:
    """The dtypes, directions, tails and numbers of bins between them, not their product."""
    rows = []
    for dtype, inverse, tails, zuko, summed, bins in (
        ("*fp32", False, LINEAR, False, True, 8),
        ("*fp32", True, LINEAR, False, True, 8),
        ("*bf16", False, CIRCULAR, True, False, 16),
        ("*fp16", True, NONE, False, False, 64),
    ):
        at_once = 8 if summed else 1
        constants = {
            "HAS_GRAD": True, "HAS_LOGABSDET": True, "INVERSE": inverse, "TAILS": tails, "ZUKO": zuko, "SUM": summed,
            "ROWS": at_once, "COLUMNS": TILE // bins // at_once, "K": bins, "BINS": bins,
            "DERIVATIVES": 2 * bins if tails == NONE else bins,
        }  # fmt: skip
        sums = {"*fp32": "logabsdet grad_logabsdet"} if summed else {}
        rows += variants(kernel, {**_KINDS, **sums}, (dtype, constants))
    return rows


COMPILE = {kernel: _variants(kernel) for kernel in (spline_kernel, spline_backward_kernel)}
