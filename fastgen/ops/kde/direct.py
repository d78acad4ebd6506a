"""The log of a sum of kernels other than the Gaussian and its gradient, by direct differences.

The gradient is recomputed from that logarithm, in one pass over the pairs for the queries and one for the points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.kde.kernels import KERNELS
from fastgen.ops.kde.problem import Problem
from fastgen.ops.kde.reference import log_sum
from fastgen.ops.registry import REGISTRY, differentiates_again, needs_gradient, reference_gradient


def direct_log_sums(problem: Problem, kernel: str, leave_one_out: bool, backend: str) -> Tensor:
    """log sum_j exp(o_j) K(s_j^(1/2) |q_i - x_j|), [B, M], recorded by autograd where it must be."""
    tensors, settings = problem.tensors, (leave_one_out, kernel, backend)
    if needs_gradient(*tensors):
        return _LogSum.apply(*tensors, *settings)
    return _log_sums(tensors, *settings)


def direct_score(problem: Problem, kernel: str, leave_one_out: bool, backend: str) -> Tensor:
    """The gradient of `direct_log_sums` in the problem's queries, [B, M, d]."""
    tensors, settings = problem.tensors, (leave_one_out, kernel, backend)
    log_sums = _log_sums(tensors, *settings)
    return _gradients(torch.ones_like(log_sums), log_sums, tensors, *settings, False)[0]


def _log_sums(tensors: tuple[Tensor | None, ...], leave_one_out: bool, kernel: str, backend: str) -> Tensor:
    call = REGISTRY["kde_log_density"].call[backend]["kde_direct_log_sums"]
    return call(*tensors, leave_one_out, KERNELS.index(kernel))


def _gradients(grad, log_sums, tensors, leave_one_out: bool, kernel: str, backend: str, of_points: bool):
    call = REGISTRY["kde_log_density"].call[backend]["kde_direct_backward"]
    return call(grad, log_sums, *tensors, leave_one_out, KERNELS.index(kernel), of_points)


class _LogSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, points, offsets, precisions, *settings):
        tensors = queries, points, offsets, precisions
        log_sums = _log_sums(tensors, *settings)
        ctx.save_for_backward(*tensors, log_sums)
        ctx.settings = settings
        return log_sums

    @staticmethod
    def backward(ctx, grad):
        *tensors, log_sums = ctx.saved_tensors
        needed = ctx.needs_input_grad[:4]
        if differentiates_again():
            leave_one_out, kernel, _ = ctx.settings

            def reference(*tensors: Tensor | None) -> Tensor:
                return log_sum(*tensors, kernel, leave_one_out)

            return *reference_gradient(reference, tensors, needed, grad), None, None, None
        found = _gradients(grad.contiguous(), log_sums, tensors, *ctx.settings, any(needed[1:]))
        return *(g if need else None for g, need in zip(found, needed, strict=True)), None, None, None
