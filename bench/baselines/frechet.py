"""Fréchet distances of statistics and of features, by the formulas of the libraries that people use."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.bench.baselines import sqrtm
from fastgen.ops import FrechetReference


def _of_statistics(overlap: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensor:
        return _distance(mu1, sigma1, mu2, sigma2, overlap(sigma1.double(), sigma2.double()))

    return distance


frechet_distance_eager = _of_statistics(sqrtm.trace_sqrtm_eager)
frechet_distance_torchmetrics = _of_statistics(sqrtm.trace_sqrtm_torchmetrics)
frechet_distance_torch_fidelity = _of_statistics(sqrtm.trace_sqrtm_torch_fidelity)


def frechet_distance_from_features_eager(x: Tensor, y: Tensor | FrechetReference) -> Tensor:
    """FD-loss (2026): the root of the reference is kept, and autograd goes through eigenvalues of d x d."""
    mu, sigma = _moments(x)
    if isinstance(y, FrechetReference):
        other_mu, other_sigma, root = y.mu, y.sigma, _root_of(y)
    else:
        other_mu, other_sigma = _moments(y)
        root = sqrtm.sqrtm_eager(other_sigma)
    product = root @ sigma @ root
    overlap = torch.linalg.eigvalsh((product + product.mT) / 2).clamp(min=0).sqrt().sum()
    return _distance(mu, sigma, other_mu, other_sigma, overlap).to(x.dtype)


def frechet_distance_from_features_torchmetrics(x: Tensor, y: Tensor | FrechetReference) -> Tensor:
    mu, sigma = _moments(x)
    other_mu, other_sigma = (y.mu, y.sigma) if isinstance(y, FrechetReference) else _moments(y)
    overlap = sqrtm.trace_sqrtm_torchmetrics(sigma, other_sigma)
    return _distance(mu, sigma, other_mu, other_sigma, overlap).to(x.dtype)


def frechet_distance_from_features_torch_fidelity(x: Tensor, y: Tensor | FrechetReference) -> Tensor:
    import numpy as np

    if x.requires_grad:
        raise NotImplementedError("it has no gradient")
    mu, sigma = x.double().mean(0), torch.from_numpy(np.cov(x.numpy(), rowvar=False))
    if isinstance(y, FrechetReference):
        other_mu, other_sigma = y.mu, y.sigma
    else:
        other_mu, other_sigma = y.double().mean(0), torch.from_numpy(np.cov(y.numpy(), rowvar=False))
    overlap = sqrtm.trace_sqrtm_torch_fidelity(sigma, other_sigma)
    return _distance(mu, sigma, other_mu, other_sigma, overlap).to(x.dtype)


def frechet_distance_from_features_singular_values(x: Tensor, y: Tensor | FrechetReference) -> Tensor:
    """FastFID's idea (2020), the strongest where rows are few: autograd through the singular values of X Y^T."""
    if len(x) > x.shape[1]:
        raise NotImplementedError("for fewer rows than features")
    rows = _rows(x)
    if isinstance(y, FrechetReference):
        other_mu, other_rows = y.mu, _root_of(y)
    else:
        other_mu, other_rows = y.double().mean(0), _rows(y)
    overlap = torch.linalg.svdvals(rows @ other_rows.mT).sum()
    traces = rows.square().sum() + other_rows.square().sum()
    return ((x.double().mean(0) - other_mu).square().sum() + traces - 2 * overlap).to(x.dtype)


@functools.lru_cache(maxsize=1)
def _root_of(y: FrechetReference) -> Tensor:
    return sqrtm.sqrtm_eager(y.sigma)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(x)
    return x.double().mean(0), rows.mT @ rows


def _rows(x: Tensor) -> Tensor:
    x = x.double()
    return (x - x.mean(0)) / (len(x) - 1) ** 0.5


def _distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor, overlap: Tensor) -> Tensor:
    traces = sigma1.double().trace() + sigma2.double().trace()
    return ((mu1.double() - mu2.double()).square().sum() + traces - 2 * overlap).to(sigma1.dtype)
