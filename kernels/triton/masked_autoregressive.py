"""One pass over the weights of a masked network that solves for its inputs, feature by feature in order of level.

A program has a block of samples and goes through the levels alone. What it knows of them it keeps in rows of its own
part of `scratch`, [feature or unit][sample]; a barrier stands between writing a row and reading it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.pointwise import log1p_positive, sigmoid, tanh

BLOCK = 32
CHUNK = 16
# Rows of packed weights are padded to this many numbers.
ROW_ALIGNMENT = tl.constexpr(16)


@triton.jit
def expm1(x):
    """Of a number that is not positive: the rounding of exp(x) is undone by its logarithm."""
    x = tl.where(x < -80.0, -80.0, x)
    power = tl.exp(x)
    logarithm = tl.log(power)
    return tl.where(logarithm == 0.0, x, (power - 1.0) * (x / tl.where(logarithm == 0.0, 1.0, logarithm)))


@triton.jit
def softplus(x):
    value = tl.where(x > 0, x, 0.0) + log1p_positive(tl.exp(-tl.abs(x)))
    return tl.where(x > 20.0, x, value)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """In the order of ACTIVATIONS in fastgen/ops/masked_autoregressive/activations.py."""
    if ACTIVATION == 0:
        return tl.where(x < 0, 0.0, x)
    elif ACTIVATION == 1:
        return tl.where(x > 0, x, 0.01 * x)
    elif ACTIVATION == 2:
        return tl.where(x > 0, x, expm1(tl.where(x > 0, 0.0, x)))
    elif ACTIVATION == 3:
        return tanh(x)
    elif ACTIVATION == 4:
        return sigmoid(x)
    elif ACTIVATION == 5:
        return x * sigmoid(x)
    elif ACTIVATION == 6:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        return softplus(x)


@triton.jit
def log_scale(raw, bound, min_scale, SCALE: tl.constexpr):
    """In the order of SCALE_MAPS in fastgen/ops/masked_autoregressive/elements.py."""
    if SCALE == 0:
        return raw
    elif SCALE == 1:
        return bound * tanh(raw / bound)
    elif SCALE == 2:
        a = raw + 2.0
        small = tl.exp(-tl.abs(a))
        alone = tl.where(a < 0, a, 0.0) - log1p_positive(small)
        value = tl.log(tl.where(a < 0, small, 1.0) / (1.0 + small) + min_scale)
        return tl.where(min_scale == 0.0, alone, value)
    elif SCALE == 3:
        return tl.log(softplus(raw) + min_scale)
    else:
        return raw / (1.0 + tl.abs(raw) / bound)


@triton.jit
def dot(weight, bias, rows, prefix, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """One unit: its bias and its weights times the first `prefix` rows."""
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32) + tl.load(bias)
    for k in range(0, prefix, CHUNK):
        place = k + tl.arange(0, CHUNK)
        live = place < prefix
        w = tl.load(weight + place, mask=live, other=0.0)
        value = tl.load(rows + place[:, None] * BLOCK + lanes[None, :], mask=live[:, None], other=0.0)
        total += tl.sum(w[:, None] * value, 0)
    return total


@triton.jit
def grow(
    weights, context, context_width, starts, known, stream, features, levels, degree, sample, batch,
    LAYERS: tl.constexpr, RESIDUAL: tl.constexpr, CONTEXT: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The hidden units whose degree is the one before `degree`, where the first call has those that see no feature.

    `stream` is what the blocks of a residual network add to: the rows of its last hidden layer.
    """
    lanes = tl.arange(0, BLOCK)
    columns = features.to(tl.int64)
    # Not unrolled: the places of every layer at once would not fit a GPU's scalar registers.
    for i in range(LAYERS):
        start = starts + (1 + i) * (levels + 1)
        width = tl.load(start + levels)
        first = tl.load(start + degree - 1, mask=degree > 0, other=0)
        last = tl.load(start + degree)
        prefix = tl.load(starts + i * (levels + 1) + degree)
        stride = (columns + ROW_ALIGNMENT - 1) // ROW_ALIGNMENT * ROW_ALIGNMENT
        hidden = known + columns * BLOCK
        for unit in range(first, last):
            value = dot(weights + unit * stride, weights + width * stride + unit, known, prefix, BLOCK, CHUNK)
            if CONTEXT:
                taken = (sample < batch) & ((i == 0) | (RESIDUAL and i % 2 == 1))
                value += tl.load(context + sample * context_width + unit, mask=taken, other=0.0)
            if RESIDUAL:
                place = stream + unit * BLOCK + lanes
                streams = lanes >= (i % 2) * BLOCK
                value += tl.load(place, mask=streams & (i > 0), other=0.0)
                tl.store(place, value, mask=streams)
            # The last layer of a residual network is the stream as it is, and has been stored.
            if not RESIDUAL or i < LAYERS - 1:
                tl.store(hidden + unit * BLOCK + lanes, activate(value, ACTIVATION))
        tl.debug_barrier()
        if CONTEXT:
            context += tl.where((i == 0) | (RESIDUAL and i % 2 == 1), width, 0)
        known = hidden
        weights += width * (stride + 1)
        columns = width


@triton.jit
def masked_autoregressive_inverse_affine_kernel(
    y, weights, last_weights, context, context_width, order, starts, x, logabsdet, scratch, last_row,
    last_width, features, levels, batch, bound, min_scale,
    LAYERS: tl.constexpr, RESIDUAL: tl.constexpr, CONTEXT: tl.constexpr, ACTIVATION: tl.constexpr, SCALE: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    sample = program * BLOCK + lanes
    live = sample < batch
    known = scratch + program * (last_row + last_width) * BLOCK
    last_known = known + last_row * BLOCK
    stride = (last_width + ROW_ALIGNMENT - 1) // ROW_ALIGNMENT * ROW_ALIGNMENT
    biases = last_weights + 2 * features * stride
    total = tl.zeros([BLOCK], tl.float32)
    for level in range(levels + 1):
        grow(
            weights, context, context_width, starts, known, last_known, features, levels, level, sample, batch,
            LAYERS, RESIDUAL, CONTEXT, ACTIVATION, BLOCK, CHUNK,
        )  # fmt: skip
        prefix = tl.load(starts + LAYERS * (levels + 1) + level)
        # Behind the last level there are units, and no feature.
        last = tl.load(starts + level + 1, mask=level < levels, other=0)
        for f in range(tl.load(starts + level), last):
            raw = dot(last_weights + 2 * f * stride, biases + 2 * f, last_known, prefix, BLOCK, CHUNK)
            shift = dot(last_weights + (2 * f + 1) * stride, biases + 2 * f + 1, last_known, prefix, BLOCK, CHUNK)
            place = sample * features + tl.load(order + f)
            logarithm = log_scale(raw, bound, min_scale, SCALE)
            solved = (tl.load(y + place, mask=live, other=0.0) - shift) * tl.exp(-logarithm)
            total -= logarithm
            tl.store(known + f * BLOCK + lanes, solved)
            tl.store(x + place, solved, mask=live)
        tl.debug_barrier()
    tl.store(logabsdet + sample, total, mask=live)


def masked_autoregressive_inverse_affine(
    y: Tensor,
    weights: Tensor,
    context: Tensor | None,
    order: Tensor,
    starts: Tensor,
    units: int,
    last_width: int,
    residual: bool,
    activation: int,
    scale_map: int,
    bound: float,
    min_scale: float,
) -> tuple[Tensor, Tensor]:
    batch, features = y.shape
    x, logabsdet = torch.empty_like(y), y.new_empty(batch)
    if batch == 0:
        return x, logabsdet
    programs, last_row = triton.cdiv(batch, BLOCK), features + units - last_width
    last_weights = weights[weights.numel() - 2 * features * (last_width + -last_width % ROW_ALIGNMENT.value + 1) :]
    masked_autoregressive_inverse_affine_kernel[(programs,)](
        y, weights, last_weights, context, 0 if context is None else context.shape[1], order, starts, x, logabsdet,
        y.new_empty(programs * (last_row + last_width) * BLOCK), last_row, last_width, features, starts.shape[1] - 1,
        batch, bound, min_scale, starts.shape[0] - 1, residual, context is not None, activation, scale_map, BLOCK,
        CHUNK,
    )  # fmt: skip
    return x, logabsdet


# What the kernel is compiled for without a GPU; the launch passes sizes in 32 bits where they fit.
COMPILE = {
    masked_autoregressive_inverse_affine_kernel: variants(
        masked_autoregressive_inverse_affine_kernel,
        {
            "*i64": "order starts", "i64": "batch", "i32": "context_width last_row last_width features levels",
            "fp32": "bound min_scale",
        },
        *(
            ("*fp32", {"LAYERS": layers, "RESIDUAL": residual, "CONTEXT": context, "ACTIVATION": activation,
                       "SCALE": scale, "BLOCK": BLOCK, "CHUNK": CHUNK})
            for layers, residual, context, activation, scale in (
                (2, False, False, 0, 3), (3, True, True, 2, 1), (1, False, False, 6, 2), (1, False, True, 7, 4),
            )
        ),
    )
}  # fmt: skip
