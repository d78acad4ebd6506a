"""The resampling that the arguments of `upfirdn2d` ask for, and the resampling that its gradient is."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating, check_floating_on


class Resampling(NamedTuple):
    """Factors are (x, y), the padding (left, right, top, bottom)."""

    up: tuple[int, int]
    down: tuple[int, int]
    padding: tuple[int, int, int, int]
    flip_filter: bool
    gain: float

    @property
    def of_kernel(self) -> tuple:
        return *self.up, *self.down, *self.padding, self.flip_filter, self.gain

    def output_size(self, size: Sequence[int], f: Tensor) -> tuple[int, int]:
        """(height, width) of the result for an image of this (height, width)."""
        (taps_y, taps_x), (left, right, top, bottom) = _taps(f), self.padding
        height = (size[0] * self.up[1] + top + bottom - taps_y) // self.down[1] + 1
        return height, (size[1] * self.up[0] + left + right - taps_x) // self.down[0] + 1

    def adjoint(self, size: Sequence[int], output_size: Sequence[int], f: Tensor) -> Resampling:
        """What takes the gradient of the result to that of an image of this (height, width).

        `y[o] = sum_t g[t] u[o down + t - p]` makes the gradient of `u[j]` the sum over all `o` of
        `g[j + p - o down] dy[o]`: the filter reversed, over `dy` with `down - 1` zeros between, of which every
        `up`-th is the gradient of an x.
        """
        padding = []
        for axis, taps in ((0, _taps(f)[1]), (1, _taps(f)[0])):
            before = self.padding[2 * axis]
            length, output_length = size[1 - axis], output_size[1 - axis]
            after = (length - 1) * self.up[axis] + 1 - output_length * self.down[axis] + before
            padding += [taps - 1 - before, after]
        return Resampling(self.down, self.up, tuple(padding), not self.flip_filter, self.gain)


def _taps(f: Tensor) -> tuple[int, int]:
    return f.shape[0], f.shape[-1]


def checked_resampling(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int],
    down: int | Sequence[int],
    padding: int | Sequence[int],
    flip_filter: bool,
    gain: float,
) -> Resampling:
    check_floating("x", x)
    if x.dim() != 4:
        raise ValueError(f"x: expected [batch, channels, height, width], got {tuple(x.shape)}")
    if f is not None:
        check_floating_on("f", f, x)
        if f.dim() not in (1, 2) or f.numel() == 0:
            raise ValueError(f"f: expected [taps] or [taps_y, taps_x], got {tuple(f.shape)}")
    # Compared and not tested with isfinite, so that torch.compile accepts a number that is not a constant.
    if not -math.inf < gain < math.inf:
        raise ValueError(f"gain: expected a finite number, got {gain}")
    pads = _integers("padding", padding, (1, 2, 4))
    if len(pads) < 4:
        pads = (pads[0], pads[0], pads[-1], pads[-1])
    how = Resampling(_factors("up", up), _factors("down", down), pads, bool(flip_filter), float(gain))
    for name, axis, taps in (
        ("width", 0, 1 if f is None else f.shape[-1]),
        ("height", 1, 1 if f is None else f.shape[0]),
    ):
        padded = x.shape[3 - axis] * how.up[axis] + pads[2 * axis] + pads[2 * axis + 1]
        if padded < 1:
            raise ValueError(
                f"padding: {pads[2 * axis : 2 * axis + 2]} leaves nothing of the upsampled {name} "
                f"{x.shape[3 - axis] * how.up[axis]}"
            )
        if padded < taps:
            raise ValueError(f"f: {taps} taps are more than the {name} of the padded image, {padded}")
    return how


def _integers(name: str, value: int | Sequence[int], lengths: tuple[int, ...]) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    try:
        # `index` takes NumPy's integers too, and sizes under torch.jit.trace, which are tensors.
        values = tuple(v if isinstance(v, (int, torch.SymInt)) else operator.index(v) for v in values)
    except TypeError:
        values = ()
    if len(values) not in lengths:
        raise ValueError(f"{name}: expected {' or '.join(map(str, lengths))} integers, got {value!r}")
    return values


def _factors(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    factors = _integers(name, value, (1, 2))
    if min(factors) < 1:
        raise ValueError(f"{name}: expected at least 1, got {value!r}")
    return factors[0], factors[-1]
