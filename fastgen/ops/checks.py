"""The seed and the offset of an op that draws its own random numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.nn import Parameter


def checked_seed(x: Tensor, seed: int | Tensor | None, offset: int) -> tuple[int | None, Tensor | None]:
    """The seed as a number or as a tensor, whichever it is."""
    if not 0 <= offset < 2**63:
        raise ValueError(f"offset: expected 0 to 2^63 - 1, got {offset}")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.device != x.device:
            raise TypeError(f"seed: expected int64 on {x.device}, got {seed.dtype} on {seed.device}")
        if seed.numel() != 1:
            raise ValueError(f"seed: expected one number, got {tuple(seed.shape)}")
        return None, seed
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected 0 to 2^63 - 1, got {seed}")
    return seed, None


def is_visible(tensor: Tensor) -> bool:
    """Whether its values can be looked at without waiting for a device or breaking a graph."""
    plain = tensor.is_cpu and type(tensor) in (Tensor, Parameter)
    if not plain or torch.compiler.is_compiling() or maybe_current_level() is not None:
        return False
    # What intercepts operators may stand for another device.
    return not torch._C._len_torch_dispatch_stack()
