"""Partial images: which pixels are known before sampling."""

from __future__ import annotations

import torch
from torch import Tensor


def known_pixels(
    conditioned_on: Tensor | None, n: int, shape: tuple[int, int, int], levels: int, colors: int
) -> tuple[Tensor | None, Tensor | None]:
    """Levels int64 and mask bool (true where known) of a partial image, [n, *shape] on the CPU; None, None without one.

    Args:
        conditioned_on: integer levels [n or 1, *shape], -1 where unknown.
        colors: draws per pixel; with 1, all colours of a pixel must be known or none.

    Raises:
        TypeError: not an integer tensor.
        ValueError: another shape, levels below -1 or beyond `levels - 1`, a pixel that is known in part.
    """
    if conditioned_on is None:
        return None, None
    if not isinstance(conditioned_on, Tensor):
        raise TypeError(f"conditioned_on: expected an integer tensor, got {type(conditioned_on).__name__}")
    if conditioned_on.is_floating_point() or conditioned_on.dtype == torch.bool:
        raise TypeError(f"conditioned_on: expected an integer dtype, got {conditioned_on.dtype}")
    if conditioned_on.dim() != 4 or conditioned_on.shape[1:] != shape or len(conditioned_on) not in (1, n):
        expected = ", ".join(str(size) for size in shape)
        raise ValueError(f"conditioned_on: expected [{n} or 1, {expected}], got {tuple(conditioned_on.shape)}")
    given = conditioned_on.to("cpu", torch.int64).expand(n, *shape)
    if given.min() < -1 or given.max() >= levels:
        raise ValueError(
            f"conditioned_on: expected levels 0 to {levels - 1}, or -1 where unknown, "
            f"got {given.min()} to {given.max()}"
        )
    mask = given >= 0
    if colors == 1 and not (mask == mask[:, :1]).all():
        raise ValueError(
            "conditioned_on: this model draws all colours of a pixel at once, "
            "expected each pixel known in all of them or in none"
        )
    return given.clamp(min=0), mask
