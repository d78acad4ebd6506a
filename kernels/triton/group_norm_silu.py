"""Group normalisation, scale and shift and SiLU for both layouts, forward and backward.

A program has a piece of the positions of some channels of one sample, [BLOCK_C, BLOCK_P] at a time. How many pieces
there are depends on the shape alone: the reduction is split until a GPU is full, however few groups there are. Each
piece leaves its sums by channel, a small kernel puts those of a group together, and a last one writes the result, so
nothing but x and the output's gradient is read twice, and nothing is kept in between but sums.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.pointwise import sigmoid

# Elements of a program's tile, the most tiles of a piece, and how many programs keep a GPU busy.
TILE, MOST_TILES, PROGRAMS = 2048, 8, 1024
# Partial sums of a group that are loaded together, and channels of a program of the parameters' gradients.
PARTIALS, CHANNELS = 256, 64


@triton.jit
def piece_of(positions, piece_positions, BLOCK_C: tl.constexpr):
    """The sample and the channels of this program, its piece, and the positions at which that begins and ends."""
    piece, sample = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = piece * piece_positions
    return sample, channel, piece, first, tl.minimum(first + piece_positions, positions)


@triton.jit
def tile_of(
    start, end, sample, channel, channels, positions, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    """Where the elements of a tile [channels, positions from `start` on] are, and which of them are real."""
    position = start + tl.arange(0, BLOCK_P)
    mask = (channel < channels)[:, None] & (position < end)[None, :]
    if CHANNELS_LAST:
        at = position[None, :] * channels + channel[:, None]
    else:
        at = channel[:, None] * positions + position[None, :]
    return sample * channels * positions + at, mask


@triton.jit
def load_channels(mean, rstd, weight, bias, scale, shift, sample, channel, mask, channels, groups, FILM: tl.constexpr):
    """Centre, factor and offset of some channels of a sample, z = (x - centre) factor + offset; and 1 / std."""
    group = sample * groups + channel // (channels // groups)
    centre = tl.load(mean + group, mask=mask, other=0.0)
    inverse_std = tl.load(rstd + group, mask=mask, other=0.0)
    gain = tl.load(weight + channel, mask=mask, other=0.0)
    offset = tl.load(bias + channel, mask=mask, other=0.0)
    if FILM:
        film = 1.0 + tl.load(scale + sample * channels + channel, mask=mask, other=0.0)
        gain = gain * film
        offset = offset * film + tl.load(shift + sample * channels + channel, mask=mask, other=0.0)
    return centre, inverse_std * gain, offset, inverse_std


@triton.jit
def load_gradient(grad, x, at, mask, centre, factor, offset):
    """x less its centre, and the gradient of what goes into the SiLU."""
    centred = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - centre[:, None]
    z = centred * factor[:, None] + offset[:, None]
    s = sigmoid(z)
    return centred, tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * (s * (1.0 + z * (1.0 - s)))


@triton.jit
def statistics_kernel(
    x, means, squares, channels, positions, piece_positions, pieces,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of every channel over a piece, tile after tile (Chan et al. 1983)."""
    sample, channel, piece, first, end = piece_of(positions, piece_positions, BLOCK_C)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    square = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(first, end, BLOCK_P):
        at, mask = tile_of(start, end, sample, channel, channels, positions, CHANNELS_LAST, BLOCK_P)
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(end - start, BLOCK_P).to(tl.float32)
        tile_mean = tl.sum(value, 1) / count
        deviation = tl.where(mask, value - tile_mean[:, None], 0.0)
        before = (start - first).to(tl.float32)
        part = count / (before + count)
        step = tile_mean - mean
        square += tl.sum(deviation * deviation, 1) + step * step * before * part
        mean += step * part
    out = (sample * channels + channel) * pieces + piece
    tl.store(means + out, mean, mask=channel < channels)
    tl.store(squares + out, square, mask=channel < channels)


@triton.jit
def group_statistics_kernel(
    means, squares, mean, rstd, group_channels, positions, piece_positions, pieces, eps, BLOCK: tl.constexpr
):
    """Those of one group, whose partial ones lie together."""
    group = tl.program_id(0).to(tl.int64)
    number = group_channels * pieces
    weighted = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, number, BLOCK):
        i = start + tl.arange(0, BLOCK)
        count = tl.minimum(piece_positions, positions - i % pieces * piece_positions).to(tl.float32)
        weighted += count * tl.load(means + group * number + i, mask=i < number, other=0.0)
    # Written so that sizes of 1, which are constants, make a tensor too.
    total = tl.full((), 1.0, tl.float32) * group_channels * positions
    centre = tl.sum(weighted, 0) / total
    deviations = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, number, BLOCK):
        i = start + tl.arange(0, BLOCK)
        count = tl.minimum(piece_positions, positions - i % pieces * piece_positions).to(tl.float32)
        step = tl.load(means + group * number + i, mask=i < number, other=0.0) - centre
        square = tl.load(squares + group * number + i, mask=i < number, other=0.0)
        deviations += tl.where(i < number, square + count * step * step, 0.0)
    tl.store(mean + group, centre)
    tl.store(rstd + group, 1.0 / tl.sqrt(tl.sum(deviations, 0) / total + eps))


@triton.jit
def forward_kernel(
    x, mean, rstd, weight, bias, scale, shift, y, channels, positions, piece_positions, groups,
    FILM: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, channel, _, first, end = piece_of(positions, piece_positions, BLOCK_C)
    centre, factor, offset, _ = load_channels(
        mean, rstd, weight, bias, scale, shift, sample, channel, channel < channels, channels, groups, FILM
    )
    for start in range(first, end, BLOCK_P):
        at, mask = tile_of(start, end, sample, channel, channels, positions, CHANNELS_LAST, BLOCK_P)
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        z = (value - centre[:, None]) * factor[:, None] + offset[:, None]
        tl.store(y + at, (z * sigmoid(z)).to(y.dtype.element_ty), mask=mask)


@triton.jit
def backward_sums_kernel(
    grad, x, mean, rstd, weight, bias, scale, shift, sums, products, channels, positions, piece_positions, pieces,
    groups, FILM: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Of every channel over a piece: dz, and dz times the normalised x."""
    sample, channel, piece, first, end = piece_of(positions, piece_positions, BLOCK_C)
    centre, factor, offset, inverse_std = load_channels(
        mean, rstd, weight, bias, scale, shift, sample, channel, channel < channels, channels, groups, FILM
    )
    total = tl.zeros((BLOCK_C,), tl.float32)
    product = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(first, end, BLOCK_P):
        at, mask = tile_of(start, end, sample, channel, channels, positions, CHANNELS_LAST, BLOCK_P)
        centred, dz = load_gradient(grad, x, at, mask, centre, factor, offset)
        total += tl.sum(dz, 1)
        product += tl.sum(dz * centred, 1)
    out = (sample * channels + channel) * pieces + piece
    tl.store(sums + out, total, mask=channel < channels)
    tl.store(products + out, product * inverse_std, mask=channel < channels)


@triton.jit
def group_sums_kernel(
    sums, products, rstd, weight, scale, channel_sums, channel_products, slopes, constants, channels, positions, pieces,
    groups, FILM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Puts the pieces of every channel of a group together, and what the gradient in x needs of the group."""
    group = tl.program_id(0).to(tl.int64)
    sample = group // groups
    group_channels = channels // groups
    total = tl.zeros((BLOCK,), tl.float32)
    product_total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, group_channels, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < group_channels
        channel = group % groups * group_channels + i
        at = sample * channels + channel
        s = tl.zeros((BLOCK,), tl.float32)
        p = tl.zeros((BLOCK,), tl.float32)
        for piece in range(0, pieces):
            s += tl.load(sums + at * pieces + piece, mask=mask, other=0.0)
            p += tl.load(products + at * pieces + piece, mask=mask, other=0.0)
        tl.store(channel_sums + at, s, mask=mask)
        tl.store(channel_products + at, p, mask=mask)
        gain = tl.load(weight + channel, mask=mask, other=0.0)
        if FILM:
            gain = gain * (1.0 + tl.load(scale + at, mask=mask, other=0.0))
        total += gain * s
        product_total += gain * p
    count = tl.full((), 1.0, tl.float32) * group_channels * positions
    inverse_std = tl.load(rstd + group)
    tl.store(constants + group, -inverse_std * tl.sum(total, 0) / count)
    tl.store(slopes + group, -inverse_std * inverse_std * tl.sum(product_total, 0) / count)


@triton.jit
def backward_kernel(
    grad, x, mean, rstd, weight, bias, scale, shift, slopes, constants, grad_x, channels, positions, piece_positions,
    groups, FILM: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, channel, _, first, end = piece_of(positions, piece_positions, BLOCK_C)
    centre, factor, offset, _ = load_channels(
        mean, rstd, weight, bias, scale, shift, sample, channel, channel < channels, channels, groups, FILM
    )
    group = sample * groups + channel // (channels // groups)
    slope = tl.load(slopes + group, mask=channel < channels, other=0.0)
    constant = tl.load(constants + group, mask=channel < channels, other=0.0)
    for start in range(first, end, BLOCK_P):
        at, mask = tile_of(start, end, sample, channel, channels, positions, CHANNELS_LAST, BLOCK_P)
        centred, dz = load_gradient(grad, x, at, mask, centre, factor, offset)
        dx = dz * factor[:, None] + (centred * slope[:, None] + constant[:, None])
        tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def parameter_gradients_kernel(
    sums, products, weight, bias, scale, grad_weight, grad_bias, grad_scale, grad_shift, batch, channels,
    FILM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    gain = tl.load(weight + channel, mask=mask, other=0.0)
    offset = tl.load(bias + channel, mask=mask, other=0.0)
    of_weight = tl.zeros((BLOCK,), tl.float32)
    of_bias = tl.zeros((BLOCK,), tl.float32)
    for sample in range(0, batch):
        at = sample * channels + channel
        s = tl.load(sums + at, mask=mask, other=0.0)
        p = tl.load(products + at, mask=mask, other=0.0)
        if FILM:
            film = 1.0 + tl.load(scale + at, mask=mask, other=0.0)
            tl.store(grad_scale + at, gain * p + offset * s, mask=mask)
            tl.store(grad_shift + at, s, mask=mask)
            of_weight += film * p
            of_bias += film * s
        else:
            of_weight += p
            of_bias += s
    tl.store(grad_weight + channel, of_weight, mask=mask)
    tl.store(grad_bias + channel, of_bias, mask=mask)


class Tiles:
    """How a shape is cut into programs."""

    def __init__(self, x: Tensor, channels_last: bool) -> None:
        self.batch, self.channels, self.positions = x.shape[0], x.shape[1], x.shape[2:].numel()
        channels, positions = triton.next_power_of_2(self.channels), triton.next_power_of_2(max(1, self.positions))
        if channels_last:
            self.block_c = min(64, channels)
            self.block_p = min(TILE // self.block_c, positions)
        else:
            self.block_p = min(TILE, positions)
            self.block_c = min(TILE // self.block_p, channels)
        tiles = MOST_TILES
        while tiles > 1 and self.batch * self.blocks * self._pieces(tiles) < PROGRAMS:
            tiles //= 2
        self.piece_positions, self.pieces = tiles * self.block_p, self._pieces(tiles)

    @property
    def blocks(self) -> int:
        return triton.cdiv(self.channels, self.block_c)

    def _pieces(self, tiles: int) -> int:
        return triton.cdiv(self.positions, tiles * self.block_p)

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.pieces, self.blocks, self.batch


def _film(x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """Scale and shift, both where one is given; the weight stands in for what is not read."""
    if scale is None and shift is None:
        return weight, weight, False
    zeros = weight.new_zeros(x.shape[:2])
    return zeros if scale is None else scale, zeros if shift is None else shift, True


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, eps: float,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y = x.new_empty_strided(x.shape, x.stride())
    mean, rstd = (weight.new_zeros((x.shape[0], groups)) for _ in range(2))
    if x.numel() == 0:
        return y, mean, rstd
    t = Tiles(x, channels_last)
    means, squares = weight.new_empty((2, t.batch, t.channels, t.pieces))
    sizes = (t.channels, t.positions, t.piece_positions)
    statistics_kernel[t.grid](x, means, squares, *sizes, t.pieces, channels_last, t.block_c, t.block_p)
    group_statistics_kernel[(t.batch * groups,)](
        means, squares, mean, rstd, t.channels // groups, *sizes[1:], t.pieces, eps, PARTIALS
    )
    scales, shifts, film = _film(x, weight, scale, shift)
    forward_kernel[t.grid](
        x, mean, rstd, weight, bias, scales, shifts, y, *sizes, groups, film, channels_last, t.block_c, t.block_p
    )
    return y, mean, rstd


def group_norm_silu_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
    shift: Tensor | None, groups: int, channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x = x.new_empty_strided(x.shape, x.stride())
    scales, shifts, film = _film(x, weight, scale, shift)
    grad_weight, grad_bias = weight.new_zeros(x.shape[1]), weight.new_zeros(x.shape[1])
    grad_scale, grad_shift = (weight.new_zeros(x.shape[:2] if film else 0) for _ in range(2))
    if x.numel():
        t = Tiles(x, channels_last)
        sums, products = weight.new_empty((2, t.batch, t.channels, t.pieces))
        channel_sums, channel_products = weight.new_empty((2, t.batch, t.channels))
        slopes, constants = weight.new_empty((2, t.batch, groups))
        sizes = (t.channels, t.positions, t.piece_positions)
        layout = (film, channels_last, t.block_c, t.block_p)
        given = (grad, x, mean, rstd, weight, bias, scales, shifts)
        backward_sums_kernel[t.grid](*given, sums, products, *sizes, t.pieces, groups, *layout)
        together = min(PARTIALS, triton.next_power_of_2(t.channels // groups))
        group_sums_kernel[(t.batch * groups,)](
            sums, products, rstd, weight, scales, channel_sums, channel_products, slopes, constants,
            t.channels, t.positions, t.pieces, groups, film, together,
        )  # fmt: skip
        backward_kernel[t.grid](*given, slopes, constants, grad_x, *sizes, groups, *layout)
        parameter_gradients_kernel[(triton.cdiv(t.channels, CHANNELS),)](
            channel_sums, channel_products, weight, bias, scales, grad_weight, grad_bias, grad_scale, grad_shift,
            t.batch, t.channels, film, CHANNELS,
        )  # fmt: skip
    optional = (weight.new_empty(0) if t is None else g for t, g in ((scale, grad_scale), (shift, grad_shift)))
    return grad_x, grad_weight, grad_bias, *optional


# What each kernel is compiled for without a GPU.
_KERNELS = {
    statistics_kernel: 0, group_statistics_kernel: PARTIALS, forward_kernel: 0, backward_sums_kernel: 0,
    group_sums_kernel: PARTIALS, backward_kernel: 0, parameter_gradients_kernel: CHANNELS,
}  # fmt: skip
_KINDS = {
    "i64": "batch channels group_channels positions piece_positions pieces groups",
    "fp32": "eps",
    "*fp32": "mean means squares rstd weight bias scale shift sums products channel_sums channel_products slopes "
    "constants grad_weight grad_bias grad_scale grad_shift",
}
COMPILE = {
    kernel: variants(
        kernel,
        _KINDS,
        ("*fp32", {"CHANNELS_LAST": False, "BLOCK_C": 1, "BLOCK_P": TILE, "FILM": True, "BLOCK": block}),
        ("*bf16", {"CHANNELS_LAST": True, "BLOCK_C": 64, "BLOCK_P": TILE // 64, "FILM": True, "BLOCK": block}),
        ("*fp16", {"CHANNELS_LAST": True, "BLOCK_C": 64, "BLOCK_P": TILE // 64, "FILM": False, "BLOCK": block}),
    )
    for kernel, block in _KERNELS.items()
}
