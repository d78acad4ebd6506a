"""The log of a sum of Gaussians and its gradient, recomputed from that logarithm: nothing of size M x N is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.kde.problem import Problem
from fastgen.ops.kde.reference import log_sum
from fastgen.ops.registry import REGISTRY, differentiates_again, needs_gradient, reference_gradient


def log_sums(problem: Problem, leave_one_out: bool, backend: str) -> Tensor:
    """What a kernel answers to a problem, [B, M], recorded by autograd where it must be."""
    tensors = problem.tensors
    if not needs_gradient(*tensors):
        return _call(backend, "kde_log_density")(*tensors, leave_one_out)[0]
    if needs_gradient(*tensors[1:]):
        return _LogSum.apply(*tensors, leave_one_out, backend)
    return _LogSumOfQueries.apply(*tensors, leave_one_out, backend)


def _call(backend: str, name: str):
    return REGISTRY["kde_score" if name == "kde_score" else "kde_log_density"].call[backend][name]


class _LogSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, points, offsets, precisions, leave_one_out, backend):
        log_sum, inner = _call(backend, "kde_log_density")(queries, points, offsets, precisions, leave_one_out)
        ctx.save_for_backward(queries, points, offsets, precisions, inner)
        ctx.leave_one_out, ctx.backend = leave_one_out, backend
        return log_sum

    @staticmethod
    def backward(ctx, grad):
        *tensors, inner = ctx.saved_tensors
        if differentiates_again():
            return *_reference_gradient(tensors, ctx, grad), None, None
        call = _call(ctx.backend, "kde_log_density_backward")
        found = call(grad.contiguous(), inner, *tensors, ctx.leave_one_out)
        return *(g if need else None for g, need in zip(found, ctx.needs_input_grad, strict=False)), None, None


class _LogSumOfQueries(torch.autograd.Function):
    """Where only the queries need a gradient, which the forward pass has at hand."""

    @staticmethod
    def forward(ctx, queries, points, offsets, precisions, leave_one_out, backend):
        log_sum, score = _call(backend, "kde_score")(queries, points, offsets, precisions, leave_one_out)
        ctx.save_for_backward(queries, points, offsets, precisions, score)
        ctx.leave_one_out = leave_one_out
        return log_sum

    @staticmethod
    def backward(ctx, grad):
        *tensors, score = ctx.saved_tensors
        if differentiates_again():
            return *_reference_gradient(tensors, ctx, grad), None, None
        return grad.unsqueeze(-1) * score, None, None, None, None, None


def _reference_gradient(tensors: list[Tensor | None], ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    def reference(*tensors: Tensor | None) -> Tensor:
        return log_sum(*tensors, "gaussian", ctx.leave_one_out)

    return reference_gradient(reference, tensors, ctx.needs_input_grad[:4], grad)
