"""The running mean of a model's weights, which is what gets evaluated and sampled."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage:
    """A copy of `model` whose weights trail it: `ema = d_t ema + (1 - d_t) weight`.

    The decay warms up, `d_t = min(decay, (1 + t) / (10 + t))` at update `t`, so that a short run is not dominated by
    its initial weights. Buffers, and weights that are whole numbers, are copied. `model` is the averaged copy: always
    in eval mode, without gradients, in at least float32, since half precision rounds away what a step adds.

    Source: B. Polyak, A. Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the warm-up is
    TensorFlow's `ExponentialMovingAverage(num_updates=...)`.

    Raises:
        ValueError: `decay` is not in `[0, 1)`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected a number in [0, 1)")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)._apply(_in_full)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model`'s weights after its update number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        averaged = [(mine, theirs.to(mine.dtype)) for mine, theirs in pairs if not _is_whole(mine)]
        if averaged:
            get_ema_multi_avg_fn(decay)(*map(list, zip(*averaged, strict=True)), None)
        buffers = zip(self.model.buffers(), model.buffers(), strict=True)
        for mine, theirs in [pair for pair in pairs if _is_whole(pair[0])] + list(buffers):
            mine.copy_(theirs)


def _in_full(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is of whole numbers, which have no average."""
    return not (tensor.is_floating_point() or tensor.is_complex())
