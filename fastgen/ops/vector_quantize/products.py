"""Nearest codes by a matrix product, with PyTorch's own product and minimum.

GPUs run this. A product's rounding may put a code before the nearest: where a bound on it leaves more than one in
question, differences in float64 decide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.knn.products import rounding

# How many elements the product of one chunk has; on a CPU it fits into the second cache.
CHUNK, CPU_CHUNK = 2**24, 2**18


def quantize_by_products(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes [n, d], indices [n], counts [k] and sums [k, d] for x [n, d] and a codebook [k, d]."""
    indices = nearest(x, codebook)
    has_code = indices >= 0
    index = indices.clamp(min=0)
    quantized = torch.where(has_code.unsqueeze(1), codebook[index], torch.nan)
    counts = torch.zeros_like(codebook[:, 0], dtype=torch.int64).scatter_add_(0, index, has_code.long())
    rows = torch.where(has_code.unsqueeze(1), x, 0)
    # For an expanded index PyTorch's scatter_add_ sorts the rows first; index_add_ would add one row after another.
    sums = torch.zeros_like(codebook).scatter_add_(0, index.unsqueeze(1).expand_as(rows), rows)
    return quantized, indices, counts, sums


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """The lowest index of the nearest code to each row; -1 for a row that is not finite."""
    d = codebook.shape[1]
    centre = codebook.mean(0)
    codes = codebook - centre
    # Scaled, so that squares of numbers of any size neither vanish nor overflow.
    scale = codes.abs().amax()
    scale = torch.where(scale > 0, scale, 1)
    codes = codes / scale
    norms = codes.double().square().sum(1)
    longest, norms = norms.amax().sqrt(), norms.to(x.dtype)
    chunk = max(1, (CPU_CHUNK if x.is_cpu else CHUNK) // codebook.shape[0])
    found, doubts = [], []
    for rows in x.split(chunk):
        relative = (rows - centre) / scale
        scores = torch.addmm(norms, relative, codes.T, alpha=-2)
        least, index = scores.min(1)
        # A bound on the rounding of a score, which is a squared distance without the row's own square.
        error = (d + 8) * rounding(x) * (longest + relative.double().square().sum(1).sqrt()).square()
        limit = (least.double() + 2 * error).to(x.dtype)
        # The limit itself may have been rounded down.
        limit = limit + 4 * torch.finfo(x.dtype).eps * limit.abs()
        second = scores.scatter_(1, index.unsqueeze(1), torch.inf).amin(1)
        found.append(index)
        doubts.append(~(second > limit))
    indices = torch.cat(found)
    doubtful = torch.cat(doubts).nonzero().squeeze(1)
    if doubtful.numel():
        indices[doubtful] = _decide(x[doubtful], codebook)
    return indices


def _decide(x: Tensor, codebook: Tensor) -> Tensor:
    codes = codebook.double()
    chunk = max(1, (CPU_CHUNK if x.is_cpu else CHUNK) // codebook.numel())
    squared = ((rows.double().unsqueeze(1) - codes).square().sum(-1) for rows in x.split(chunk))
    return torch.where(x.isfinite().all(1), torch.cat([distances.argmin(1) for distances in squared]), -1)
