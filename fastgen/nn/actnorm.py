"""Activation normalisation: a scale and a shift for each channel, set by the first batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgen.nn.arguments import features_of, plain_numbers, positive
from fastgen.nn.frozen import Kept
from fastgen.ops.actnorm import actnorm


class ActNorm(nn.Module):
    """Scale and shift every channel, `y = exp(log_scale) * x + shift`, so that the first batch comes out normalised.

    The first batch in training mode sets the parameters: each channel of `y` has mean 0 and standard deviation 1 on
    it, over all ranks where `torch.distributed` is in use (every rank must then see its first batch in the same
    step). Numbers that are not finite are left out. Nothing of that waits for a device: whether a checkpoint has been
    initialised is decided where it lies. Eval mode and the inverse never initialise.

    Drop-in for nflows' `ActNorm`: numbers and state-dict keys.

    Args:
        features: channels of images, or features of vectors.

    Attributes:
        log_scale, shift: [features].
        initialized: a bool, as a buffer.

    Shape: [batch, features] or [batch, features, height, width]; logabsdet [batch], nats, of the direction run:
        `height * width * sum(log_scale)`.

    Raises:
        TypeError: in `forward` and `inverse`, a dtype that is not floating.
        ValueError: `features` that is not a positive int; in `forward` and `inverse`, another shape.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.1.
    """

    @plain_numbers
    def __init__(self, features: int) -> None:
        super().__init__()
        positive(features=features)
        self.features = features
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("initialized", torch.tensor(False))
        # Whether it is still False, without reading it from a device at every call; the second for torch.compile.
        self._known, self._has_seen_batch = Kept(indices=True), False

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features_of(x, self.features)
        # An empty batch says nothing, but the other ranks wait for it.
        if self.training and self._may_need_batch() and (x.shape[0] or _is_distributed()):
            self._initialize(x)
        return actnorm(x, self.shift, self.log_scale)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features_of(y, self.features)
        return actnorm(y, self.shift, self.log_scale, inverse=True)

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        """Sets the parameters from this batch, unless a checkpoint already has."""
        shift, log_scale = _statistics(x)
        self.shift.copy_(torch.where(self.initialized, self.shift, shift))
        self.log_scale.copy_(torch.where(self.initialized, self.log_scale, log_scale))
        self.initialized.fill_(True)
        self._has_seen_batch = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._has_seen_batch = False

    def _may_need_batch(self) -> bool:
        if torch.compiler.is_compiling():
            return not self._has_seen_batch
        return self._known.get(self._needs_batch, [self.initialized]) is not False

    def _needs_batch(self) -> bool:
        return not self.initialized

    def extra_repr(self) -> str:
        return f"features={self.features}"


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """`shift` and `log_scale` that normalise the finite numbers of this batch, of all ranks together."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).flatten(1)
    finite = x.isfinite()
    count = _sum_over_ranks(finite.sum(1, dtype=x.dtype))
    mean = _sum_over_ranks(torch.where(finite, x, 0.0).sum(1)) / count.clamp_min(1)
    squares = _sum_over_ranks(torch.where(finite, x - mean[:, None], 0.0).square().sum(1))
    std = (squares / (count - 1).clamp_min(1)).sqrt()
    # A channel that is constant on this batch says nothing about its scale.
    log_scale = torch.where(std > torch.finfo(x.dtype).eps * mean.abs(), -std.log(), 0.0)
    return -mean * log_scale.exp(), log_scale


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _sum_over_ranks(value: Tensor) -> Tensor:
    if _is_distributed():
        dist.all_reduce(value)
    return value
