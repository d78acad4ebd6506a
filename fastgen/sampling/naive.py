"""Sampling by one full forward pass per step: slow, obvious, and the proof that the cached samplers are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastgen.sampling.draw import Draw
from fastgen.sampling.run.session import check_noise, check_partial_image


@torch.no_grad()
def naive_sample(
    forward: Callable[..., Tensor],
    shape: Sequence[int],
    noise: Tensor,
    *,
    draw: Draw,
    colors: int = 1,
    condition: Tensor | Sequence[Tensor] | None = None,
    given: Tensor | None = None,
    mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draws images pixel by pixel (and colour by colour) with a forward pass for each.

    Args:
        forward: `forward(x)` or `forward(x, *condition)`, in the mode it is to run in, from [batch, channels, height,
            width] to [batch, parameters, height, width], or with colours [batch, parameters, colors, height, width] or
            [batch, colors * parameters, height, width].
        shape: (channels, height, width).
        noise: float64 [steps, batch, draw.uniforms] in [0, 1); the same noise gives what the cached sampler draws.
        draw: how a step is drawn.
        colors: steps per pixel, 1 or the number of channels.
        given, mask: a partial image, levels int64 [batch, channels, height, width] and bool [batch, 1 or channels,
            height, width], true where known.
        dtype, device: of the image that `forward` gets.
        progress: called after every step with its number.

    Returns:
        Levels int64 [batch, channels, height, width].

    Raises:
        ValueError: noise or a partial image of another shape, or a draw of another number of channels.
    """
    channels, height, width = shape
    batch = noise.shape[1] if noise.dim() == 3 else 0
    check_noise(noise, (height * width * colors, batch, draw.uniforms))
    check_partial_image(given, mask, (batch, channels, height, width), draw, colors)
    if draw.channels != channels // colors:
        raise ValueError(f"draw: expected {channels // colors} values a step, the draw makes {draw.channels}")
    extra = () if condition is None else (condition,) if isinstance(condition, Tensor) else tuple(condition)
    levels = torch.zeros(batch, channels, height, width, dtype=torch.int64)
    x = torch.zeros(batch, channels, height, width, dtype=dtype, device=device)
    known = torch.zeros_like(levels, dtype=torch.bool) if mask is None else mask.expand_as(levels)
    for step in range(height * width * colors):
        pixel, color = divmod(step, colors)
        row, col = divmod(pixel, width)
        place = slice(None), slice(None) if colors == 1 else slice(color, color + 1), row, col
        output = forward(x, *extra)[..., row, col].cpu()
        if output.dim() == 2:
            output = output.unflatten(1, (colors, -1)).transpose(1, 2)
        drawn = draw(output[:, :, color], noise[step])
        if given is not None:
            drawn = torch.where(known[place], given[place], drawn)
        levels[place] = drawn
        x[place] = draw.table[drawn].to(device, dtype)
        if progress is not None:
            progress(step)
    return levels
