"""The parts that the kernels of norm_modulate share: how planes are cut into pieces, and what is read of each pixel."""

import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants

BLOCK = 1024
# Blocks of a piece, fewer where that would leave the GPU without programs.
BLOCKS, PROGRAMS = 8, 1024


@triton.jit
def piece_of(positions, piece_positions, pieces):
    """Which plane, and from where to where in it."""
    program = tl.program_id(0).to(tl.int64)
    plane = program // pieces
    first = program % pieces * piece_positions
    return plane, plane * positions + first, tl.minimum(piece_positions, positions - first)


@triton.jit
def unit_of(plane, channels, unit_planes, BATCH: tl.constexpr):
    unit = plane // unit_planes
    if BATCH:
        unit = plane % channels
    return unit


@triton.jit
def modulation(values, plane, at, mask, KIND: tl.constexpr):
    """Nothing, a number of the plane, or one of each pixel."""
    if KIND == 0:
        value = 0.0
    elif KIND == 1:
        value = tl.load(values + plane).to(tl.float32)
    else:
        value = tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def loaded(
    x, grad, scale, y, centre, inverse, plane, at, mask, negative_slope, SCALE: tl.constexpr, LEAKY: tl.constexpr
):  # fmt: skip
    """Normalised x, 1 + scale, the activation's slope and the gradient of what goes into it."""
    normal = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - centre) * inverse
    normal = tl.where(mask, normal, 0.0)
    slope = tl.zeros_like(normal) + 1.0
    if LEAKY:
        slope = tl.where(tl.load(y + at, mask=mask, other=0.0).to(tl.float32) > 0, 1.0, slope * negative_slope)
    dz = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * slope
    return normal, 1.0 + modulation(scale, plane, at, mask, SCALE), slope, dz


class Plan:
    """How a shape is cut, and how what belongs to pieces is added up by unit."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.batch, self.channels, self.positions = x.shape[0], x.shape[1], x.shape[2:].numel()
        self.groups, self.planes = groups, x.shape[0] * x.shape[1]
        self.units = self.batch * groups if groups else self.channels
        self.unit_planes = self.channels // groups if groups else self.batch
        self.block = min(BLOCK, triton.next_power_of_2(max(1, self.positions)))
        blocks = BLOCKS
        while blocks > 1 and self.planes * triton.cdiv(self.positions, blocks * self.block) < PROGRAMS:
            blocks //= 2
        self.piece_positions = blocks * self.block
        self.pieces = triton.cdiv(self.positions, self.piece_positions)

    @property
    def grid(self) -> tuple[int]:
        return (self.planes * self.pieces,)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.positions, self.piece_positions, self.pieces

    def by_unit(self, values: Tensor) -> Tensor:
        """[planes, ...] as [units, planes of one, ...]."""
        if self.groups:
            return values.reshape(self.units, self.unit_planes, *values.shape[1:])
        return values.reshape(self.batch, self.channels, *values.shape[1:]).transpose(0, 1)

    def mean(self, sums: Tensor) -> Tensor:
        """[units], of sums by plane."""
        return self.by_unit(sums).sum(1) / (self.unit_planes * self.positions)


def kind_of(x: Tensor, modulation: Tensor | None, per_pixel: bool | None = None) -> int:
    if modulation is None:
        return 0
    if per_pixel is None:
        per_pixel = modulation.dim() == x.dim() and x.dim() > 2
    return 2 if per_pixel else 1


def compiled_for(kernels: tuple) -> dict:
    """The entries of a `COMPILE` table for these kernels, with modulations by pixel (kind 2) and by channel (1)."""
    pixels = "scale shift h_scale h_shift of_scale of_shift"
    chosen = (("*fp32", 2), ("*bf16", 2), ("*fp16", 1))
    return {
        kernel: [
            row
            for dtype, kind in chosen
            for row in variants(
                kernel,
                {
                    "i64": "channels unit_planes positions piece_positions pieces", "fp32": "negative_slope",
                    "*fp32": "means squares mean rstd sums unit_means " + (pixels if kind == 1 else ""),
                },
                (dtype, {
                    "BATCH": kind == 2, "SCALE": kind, "SHIFT": kind, "H_SCALE": kind, "H_SHIFT": kind,
                    "LEAKY": kind == 2, "OF_SCALE": kind == 2, "OF_SHIFT": kind == 2, "BLOCK": BLOCK,
                }),
            )
        ]
        for kernel in kernels
    }  # fmt: skip
