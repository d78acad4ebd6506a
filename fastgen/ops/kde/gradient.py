"""The logarithm of a sum of kernels and its gradient, recomputed from that logarithm: nothing of size M x N is kept.

Gaussians are summed by matrix products. Other kernels take direct differences, and their gradient is one pass over the
pairs for the queries and one for the points.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgen.ops.kde.kernels import KERNELS
from fastgen.ops.kde.problem import Problem
from fastgen.ops.kde.reference import log_sum
from fastgen.ops.registry import REGISTRY, differentiable, needs_gradient


def log_sums(problem: Problem, kernel: str, leave_one_out: bool, backend: str) -> Tensor:
    """log sum_j exp(o_j) K(s_j^(1/2) |q_i - x_j|), [B, M], recorded by autograd where it must be."""
    tensors = problem.tensors
    settings = leave_one_out, kernel, backend
    if kernel != "gaussian":
        return _direct(*tensors, *settings)
    # Where only the queries need a gradient, the forward pass computes it as well.
    if needs_gradient(tensors[0]) and not needs_gradient(*tensors[1:]):
        return _gaussian_of_queries(*tensors, *settings)
    return _gaussian(*tensors, *settings)


def score(problem: Problem, kernel: str, leave_one_out: bool, backend: str) -> Tensor:
    """The gradient of `log_sums` in the problem's queries, [B, M, d]."""
    tensors = problem.tensors
    if kernel == "gaussian":
        return REGISTRY["kde_score"].call[backend]["kde_score"](*tensors, leave_one_out)[1]
    found, _ = _run_direct(*tensors, leave_one_out, kernel, backend)
    return _direct_gradients(torch.ones_like(found), found, tensors, leave_one_out, kernel, backend, False)[0]


def _call(backend: str, name: str) -> Any:
    return REGISTRY["kde_log_density"].call[backend][name]


def _run_gaussian(queries, points, offsets, precisions, leave_one_out: bool, kernel: str, backend: str):
    return _call(backend, "kde_log_density")(queries, points, offsets, precisions, leave_one_out)


def _gradient_of_gaussian(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    (*tensors, inner), (leave_one_out, _, backend) = ctx.saved_tensors, ctx.settings
    found = _call(backend, "kde_log_density_backward")(grad.contiguous(), inner, *tensors, leave_one_out)
    return _needed(ctx, found)


def _run_of_queries(queries, points, offsets, precisions, leave_one_out: bool, kernel: str, backend: str):
    return REGISTRY["kde_score"].call[backend]["kde_score"](queries, points, offsets, precisions, leave_one_out)


def _gradient_of_queries(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad.unsqueeze(-1) * ctx.saved_tensors[4], None, None, None


def _run_direct(queries, points, offsets, precisions, leave_one_out: bool, kernel: str, backend: str):
    call = _call(backend, "kde_direct_log_sums")
    log_sums = call(queries, points, offsets, precisions, leave_one_out, KERNELS.index(kernel))
    return log_sums, log_sums


def _gradient_of_direct(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, log_sums = ctx.saved_tensors
    of_points = any(ctx.needs_input_grad[1:4])
    return _needed(ctx, _direct_gradients(grad.contiguous(), log_sums, tensors, *ctx.settings, of_points))


def _direct_gradients(grad, log_sums, tensors, leave_one_out: bool, kernel: str, backend: str, of_points: bool):
    call = _call(backend, "kde_direct_backward")
    return call(grad, log_sums, *tensors, leave_one_out, KERNELS.index(kernel), of_points)


def _needed(ctx, found: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    return tuple(g if need else None for g, need in zip(found, ctx.needs_input_grad[:4], strict=True))


_RECORDED = {"inputs": 4, "settings": ("leave_one_out", "kernel"), "kept": 1}
_gaussian = differentiable(_run_gaussian, _gradient_of_gaussian, log_sum, **_RECORDED)
_gaussian_of_queries = differentiable(_run_of_queries, _gradient_of_queries, log_sum, **_RECORDED)
_direct = differentiable(_run_direct, _gradient_of_direct, log_sum, **_RECORDED)
