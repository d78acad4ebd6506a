"""The nearest code as people write it; all with the counts and sums that a codebook of moving averages needs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

# Rows of a chunk whose distances stay in the second cache.
_ROWS = 256


def eager(x: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
    """`cdist` and `argmin`."""
    return _looked_up(x, codebook, torch.cdist(x, codebook).argmin(1))


def chunked(x: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
    """One product and its minimum for every 256 rows."""
    norms, transposed = codebook.square().sum(1), codebook.T
    found = [torch.addmm(norms, rows, transposed, alpha=-2).argmin(1) for rows in x.split(_ROWS)]
    return _looked_up(x, codebook, torch.cat(found))


def one_hot_products(x: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
    """As VQ-VAE code commonly has it, pythae's too: codes, counts and sums by products of a one-hot matrix."""
    squared = x.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * x @ codebook.T
    indices = squared.argmin(1)
    chosen = one_hot(indices, codebook.shape[0]).to(x.dtype)
    return chosen @ codebook, indices, chosen.sum(0), chosen.T @ x


def _looked_up(x: Tensor, codebook: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    counts = torch.zeros(codebook.shape[0], dtype=torch.int64, device=x.device)
    counts = counts.scatter_add(0, indices, torch.ones_like(indices))
    sums = torch.zeros_like(codebook).scatter_add(0, indices.unsqueeze(1).expand_as(x), x)
    return codebook[indices], indices, counts, sums
