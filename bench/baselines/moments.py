"""Means and covariances as libraries of metrics accumulate them."""

from __future__ import annotations

import torch
from torch import Tensor

# What an extractor of features puts out at a time; smaller batches take torchmetrics longer, larger ones little less.
_BATCH = 500


def eager(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double()
    return x.mean(0), torch.cov(x.mT)


def torchmetrics(x: Tensor) -> tuple[Tensor, Tensor]:
    """The update of its FID: sums and products of each batch in float64."""
    if x.requires_grad:
        raise NotImplementedError("it has no gradient")
    n, d = x.shape
    sums, products = x.new_zeros(d, dtype=torch.float64), x.new_zeros(d, d, dtype=torch.float64)
    for batch in x.split(_BATCH):
        batch = batch.double()
        sums += batch.sum(0)
        products += batch.mT @ batch
    mean = sums / n
    return mean, (products - n * torch.outer(mean, mean)) / (n - 1)


def numpy_cov(x: Tensor) -> tuple[Tensor, Tensor]:
    """pytorch-fid, clean-fid and torch-fidelity."""
    import numpy as np

    if x.requires_grad:
        raise NotImplementedError("it has no gradient")
    return torch.from_numpy(x.numpy().mean(0, dtype=np.float64)), torch.from_numpy(np.cov(x.numpy(), rowvar=False))


def float32_shifted(x: Tensor) -> tuple[Tensor, Tensor]:
    """The quickest in plain PyTorch: products of centred rows in float32, both halves."""
    if x.requires_grad:
        raise NotImplementedError("written for the forward pass")
    mean = x.mean(0)
    centred = x - mean
    return mean.double(), (centred.mT @ centred).double() / (len(x) - 1)
