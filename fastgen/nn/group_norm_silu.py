"""Group normalisation with the scale and shift of a condition and SiLU, as one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers
from fastgen.ops.group_norm_silu import group_norm_silu


class GroupNormSiLU(nn.GroupNorm):
    """`silu(group_norm(x) * (1 + scale) + shift)`: an `nn.GroupNorm` and the SiLU behind it in one pass.

    Drop-in for `nn.Sequential(nn.GroupNorm(...), nn.SiLU())`: the arguments and the state-dict keys of `nn.GroupNorm`.

    Args:
        num_groups: divides `num_channels`.
        num_channels: of the input.
        eps: added to the variance.
        affine: whether there are `weight` and `bias`, [num_channels].

    Shape: `x` [batch, num_channels, *spatial], contiguous or channels-last, which the result is too; `scale` and
        `shift` [batch, num_channels], or None.

    Raises:
        ValueError, TypeError: what `fastgen.ops.group_norm_silu` raises.

    Source: Wu and He, "Group Normalization" (2018); Perez et al., "FiLM" (2018).
    """

    @plain_numbers
    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"x: expected [batch, {self.num_channels}, ...], got {tuple(x.shape)}")
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, scale, shift, self.eps)
