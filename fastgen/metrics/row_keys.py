"""An order of examples that depends on what they are, and not on the order or the process they came in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def row_keys(x: Tensor) -> Tensor:
    """A 64-bit number for each row of [B, ...], int64 [B], from the bits of its values: a sum of their products with
    odd random numbers, modulo 2^64. Sums of integers are the same in every order, so a row has one key everywhere.
    """
    # What is widened for the extractor has the keys of what it becomes.
    rows = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    rows = rows.contiguous().flatten(1) if x.dim() > 1 else rows.contiguous()[:, None]
    bits = rows.view(_INTEGERS[rows.element_size()]).to(torch.int64)
    # NumPy's generator gives the same numbers everywhere; as signed integers they wrap around, modulo 2^64.
    factors = np.random.default_rng(20170818).integers(0, 2**63, bits.shape[1], dtype=np.int64) * 2 + 1
    return (bits * torch.from_numpy(factors).to(bits.device)).sum(1)


def checked_keys(keys: Tensor, n: int) -> Tensor:
    """Keys that were handed in.

    Raises:
        ValueError: other than int64 [n].
    """
    if keys.shape != (n,) or keys.dtype != torch.int64:
        raise ValueError(f"keys: expected int64 [{n}], got {keys.dtype} {list(keys.shape)}")
    return keys


def order_of(keys: Tensor) -> Tensor:
    """Indices that put rows in the order of their keys; those of equal keys are equal and may be in any order."""
    return keys.argsort(stable=True)
