"""The overlap of features recorded by autograd; its gradients come with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops.frechet.reference import factor_of_features
from fastgen.ops.registry import REGISTRY, differentiates_again, needs_gradient, reference_gradient
from fastgen.ops.sqrtm.factor import factor_of


def overlap(x: Tensor, y: Tensor) -> Tensor:
    """Of centred rows [N, d] and [M, d]."""
    if needs_gradient(x, y):
        return _OfRows.apply(x, y, needs_gradient(x), needs_gradient(y))
    return _call("frechet_overlap_of_rows")(x, y, False, False)[0]


def overlap_with(x: Tensor, sigma: Tensor) -> Tensor:
    """Of centred rows [N, d] and a covariance [d, d], which has no gradient here."""
    if needs_gradient(x):
        return _WithCovariance.apply(x, sigma, True)
    return _call("frechet_overlap_with_covariance")(x, sigma, False)[0]


class _OfRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, of_x, of_y):
        overlap, in_x, in_y = _call("frechet_overlap_of_rows")(x, y, of_x, of_y)
        ctx.save_for_backward(x, y, in_x, in_y)
        return overlap

    @staticmethod
    def backward(ctx, grad):
        x, y, in_x, in_y = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if differentiates_again():
            return *reference_gradient(_nuclear_norm, (x, y), needed, grad), None, None
        return *(grad * g if need else None for g, need in zip((in_x, in_y), needed, strict=True)), None, None


class _WithCovariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, s, of_x):
        overlap, in_x = _call("frechet_overlap_with_covariance")(x, s, of_x)
        ctx.save_for_backward(x, s, in_x)
        return overlap

    @staticmethod
    def backward(ctx, grad):
        x, s, in_x = ctx.saved_tensors
        if differentiates_again():
            factor = factor_of("sigma", s.detach()).matrix
            return *reference_gradient(_nuclear_norm, (x, factor.mT), (True, False), grad), None, None
        return grad * in_x, None, None


def _nuclear_norm(x: Tensor, y: Tensor) -> Tensor:
    """|x y^T|_* of rows that add up to zero, one of which can be left out: differentiable to any order."""
    n, m = len(x), len(y)
    x = factor_of_features(x) * math.sqrt(n - 1)
    y = factor_of_features(y) * math.sqrt(m - 1)
    return torch.linalg.svdvals(x @ y.mT).sum()


def _call(name: str):
    return REGISTRY["frechet_distance_from_features"].call["library"][name]
