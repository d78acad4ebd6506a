"""Group normalisation with the scale and shift of a condition and SiLU, as one layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GroupNormSiLU(nn.GroupNorm):
    """`silu(group_norm(x) * (1 + scale) + shift)`, with `scale` and `shift` [batch, num_channels], or None."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        if scale is not None:
            y = y * (1 + scale[:, :, None, None])
        if shift is not None:
            y = y + shift[:, :, None, None]
        return F.silu(y)
