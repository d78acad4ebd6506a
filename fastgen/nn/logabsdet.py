"""Log-determinants that are the same for every example of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def zero_logabsdet(x: Tensor) -> Tensor:
    """Of a transform that keeps volumes: zeros, [batch], in at least float32."""
    return x.new_zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))


def constant_logabsdet(value: Tensor, x: Tensor) -> Tensor:
    """Of a transform whose Jacobian does not depend on `x`: the scalar `value` for each example, [batch], in at least
    float32.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, value.dtype), torch.float32)
    # Of its own, for whoever adds to it in place.
    return value.to(dtype).repeat(x.shape[0])
