"""Distances to chosen points, and their gradient one neighbour at a time."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastgen.ops.registry import differentiates_again, reference_gradient


def distances_to(queries: Tensor, points: Tensor, indices: Tensor) -> Tensor:
    """|q_i - x_(indices_im)|, [..., M, k], in plain PyTorch: all differences [..., M, k, d] at once."""
    m, k = indices.shape[-2:]
    chosen = indices.clamp(min=0).reshape(*indices.shape[:-2], m * k, 1).expand(*indices.shape[:-2], m * k, 1)
    chosen = points.gather(-2, chosen.expand(*chosen.shape[:-1], points.shape[-1]))
    squared = (queries.unsqueeze(-2) - chosen.view(*indices.shape, points.shape[-1])).square().sum(-1)
    # The root has no slope at zero.
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


class Distances(torch.autograd.Function):
    """Distances that a kernel found, with their gradient: d|q - x| / dq = (q - x) / |q - x|.

    One neighbour of every query at a time, which holds M differences and not M k.
    """

    @staticmethod
    def forward(ctx, queries, points, indices, distances):
        ctx.save_for_backward(queries, points, indices, distances)
        return distances.clone()

    @staticmethod
    def backward(ctx, grad):
        queries, points, indices, distances = ctx.saved_tensors
        if differentiates_again():
            reference = partial(distances_to, indices=indices)
            return *reference_gradient(reference, (queries, points), ctx.needs_input_grad[:2], grad), None, None
        of_queries, of_points = torch.zeros_like(queries), torch.zeros_like(points)
        pull = torch.where(distances == 0, 0.0, grad / distances)
        d = queries.shape[-1]
        for index, weight in zip(indices.unbind(-1), pull.unbind(-1), strict=True):
            index = index.clamp(min=0).unsqueeze(-1).expand(-1, -1, d)
            along = (queries - points.gather(1, index)) * weight.unsqueeze(-1)
            of_queries += along
            of_points.scatter_add_(1, index, -along)
        return of_queries, of_points, None, None
