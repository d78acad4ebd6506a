"""The deviation within a minibatch as a channel of its own, by which a discriminator sees a lack of variety."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating


def minibatch_stddev(x: Tensor, group_size: int | None = 4, num_channels: int = 1, eps: float = 1e-8) -> Tensor:
    """Append the mean standard deviation over groups of samples as constant channels.

    The deviation over the samples of a group is taken at every position of every channel, and averaged over all
    positions of all channels (or of each of `num_channels` runs of neighbouring channels).

    Args:
        x: [batch, channels, height, width].
        group_size: neighbouring samples that make a group, divides the batch unless it is larger; None is the batch.
        num_channels: appended, divides the channels.
        eps: added to the variance, so that equal samples have a gradient.

    Returns:
        [batch, channels + num_channels, height, width].

    Raises:
        ValueError: another shape, or a number that does not divide what it should.
        TypeError: a dtype that is not floating.

    Gradients of every order, by PyTorch, without a kernel: a sum over few small images, once in a discriminator.

    Source: Karras et al., "Progressive Growing of GANs" (2018), section 3.
    """
    check_floating("x", x)
    if x.dim() != 4:
        raise ValueError(f"x: expected [batch, channels, height, width], got {tuple(x.shape)}")
    batch, channels, height, width = x.shape
    if num_channels < 1 or channels % num_channels:
        raise ValueError(f"num_channels: expected a divisor of the {channels} channels of x, got {num_channels}")
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size: expected at least 1, got {group_size}")
    if not eps >= 0:
        raise ValueError(f"eps: expected at least 0, got {eps}")
    size = batch if group_size is None else min(group_size, batch)
    if batch == 0:
        return x.new_empty(0, channels + num_channels, height, width)
    if batch % size:
        raise ValueError(f"group_size: expected a divisor of the batch of {batch}, got {group_size}")
    groups = x.to(torch.promote_types(x.dtype, torch.float32))
    groups = groups.reshape(batch // size, size, num_channels, -1)
    # Not torch.var, which is 20 times slower over few elements that lie apart.
    variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)
    deviation = (variance + eps).sqrt().mean(2)
    added = deviation.repeat_interleave(size, 0).to(x.dtype)[:, :, None, None]
    return torch.cat([x, added.expand(-1, -1, height, width)], 1)
