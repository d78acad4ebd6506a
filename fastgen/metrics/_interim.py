"""Stands in for ops that are being built."""

import torch

from fastgen.ops import trace_sqrtm


def frechet_distance(mu1, sigma1, mu2, sigma2):
    found = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * trace_sqrtm(sigma1, sigma2)
    return found.clamp_min(0)


def _mmd(kxx, kyy, kxy, biased):
    n, m = len(kxx), len(kyy)
    if biased:
        return kxx.mean() + kyy.mean() - 2 * kxy.mean()
    return (kxx.sum() - kxx.trace()) / (n * (n - 1)) + (kyy.sum() - kyy.trace()) / (m * (m - 1)) - 2 * kxy.mean()


def polynomial_mmd(x, y, *, degree=3, gamma=None, coef=1.0):
    g = 1 / x.shape[1] if gamma is None else gamma
    x, y = x.double(), y.double()
    return _mmd(*((g * a @ b.T + coef) ** degree for a, b in ((x, x), (y, y), (x, y))), False)


def rbf_mmd(x, y, sigma, *, biased=False):
    return _mmd(*(torch.exp(-(torch.cdist(a, b) ** 2) / (2 * sigma**2)) for a, b in ((x, x), (y, y), (x, y))), biased)
