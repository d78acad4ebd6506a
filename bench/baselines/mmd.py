"""Maximum mean discrepancies as people write them: all pairs at once, in PyTorch and (KID) in NumPy."""

from __future__ import annotations

import torch
from torch import Tensor


def eager(x: Tensor, y: Tensor) -> Tensor:
    """One subset of KID, as torchmetrics computes it, for a batch of them."""
    m, n = x.shape[-2], y.shape[-2]
    xx, yy, xy = (((a @ b.mT) / x.shape[-1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (_total(xx) - _trace(xx)) / (m * (m - 1)) + (_total(yy) - _trace(yy)) / (n * (n - 1))
    return within - 2 * _total(xy) / (m * n)


def numpy(x: Tensor, y: Tensor) -> Tensor:
    """As torch-fidelity computes it, one subset after another."""
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        raise NotImplementedError("no gradients")
    m, n, d = x.shape[-2], y.shape[-2], x.shape[-1]
    found = []
    pairs = zip(x.reshape(-1, m, d).numpy(), y.reshape(-1, n, d).numpy(), strict=True)
    for a, b in pairs:
        xx, yy, xy = (a @ a.T / d + 1) ** 3, (b @ b.T / d + 1) ** 3, (a @ b.T / d + 1) ** 3
        within = (xx.sum() - xx.trace()) / (m * (m - 1)) + (yy.sum() - yy.trace()) / (n * (n - 1))
        found.append(float(within - 2 * xy.sum() / (m * n)))
    return torch.tensor(found, dtype=x.dtype).view(x.shape[:-2])


def rbf_mmd_eager(x: Tensor, y: Tensor, gamma: float) -> Tensor:
    """As the PyTorch port of CMMD computes it."""
    norms_x, norms_y = x.square().sum(-1), y.square().sum(-1)

    def mean(a: Tensor, b: Tensor, norms_a: Tensor, norms_b: Tensor) -> Tensor:
        squared = norms_a.unsqueeze(-1) + norms_b.unsqueeze(-2) - 2 * (a @ b.mT)
        return (-gamma * squared).exp().mean((-2, -1))

    within = mean(x, x, norms_x, norms_x) + mean(y, y, norms_y, norms_y)
    return within - 2 * mean(x, y, norms_x, norms_y)


def _total(values: Tensor) -> Tensor:
    return values.sum((-2, -1))


def _trace(values: Tensor) -> Tensor:
    return values.diagonal(dim1=-2, dim2=-1).sum(-1)
