"""Pixelwise feature vector normalisation, of progressive GANs and of StyleGAN's latents."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating


def pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Divide by the root of the mean square along one dimension: `x / sqrt(mean(x^2, dim) + eps)`.

    Args:
        x: any shape with that dimension, as [batch, channels, height, width] or [batch, channels].
        dim: over which the mean is.
        eps: added to it.

    Returns:
        The shape and dtype of `x`; the mean is taken in float32 at least.

    Raises:
        ValueError: a dimension that `x` has not, or an eps that is negative.
        TypeError: a dtype that is not floating.

    Gradients of every order, by PyTorch: plain operations, in generators on vectors so short that a kernel would win
    nothing.

    Source: Karras et al., "Progressive Growing of GANs" (2018), section 4.2.
    """
    check_floating("x", x)
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim: expected a dimension of x, {tuple(x.shape)}, got {dim}")
    if not eps >= 0:
        raise ValueError(f"eps: expected at least 0, got {eps}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(dim, keepdim=True) + eps)).to(x.dtype)
