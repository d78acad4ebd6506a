"""The square root of a positive semi-definite matrix by its eigenvalues, differentiable to any order.

PyTorch's own derivative of eigenvectors divides by differences of eigenvalues, and is infinite where two agree. The
root's derivative X solves `S X + X S = G` and needs no eigenvectors' derivative; what differentiates that equation is
another one with the same S, so all orders are of one kind.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sqrtm(a: Tensor) -> Tensor:
    return _Root.apply((a + a.mT) / 2)[0]


def trace_sqrtm(a: Tensor, b: Tensor) -> Tensor:
    root = sqrtm(a)
    return sqrtm(root @ b @ root).diagonal(dim1=-2, dim2=-1).sum(-1)


def roots_of(eigenvalues: Tensor) -> Tensor:
    """Of ascending eigenvalues [..., d]: zero for those that are lost in the rounding of the largest."""
    if not eigenvalues.numel():
        return eigenvalues
    d, eps = eigenvalues.shape[-1], torch.finfo(eigenvalues.dtype).eps
    kept = eigenvalues > d * eps * eigenvalues[..., -1:]
    # NaN stays NaN.
    return torch.where(kept | eigenvalues.isnan(), eigenvalues, 0).sqrt()


def solve_sylvester(g: Tensor, basis: Tensor, roots: Tensor) -> Tensor:
    """X of `S X + X S = G` for `S = V diag(s) V^T`; zero where two roots are zero, and the equation says nothing."""
    sums = roots.unsqueeze(-1) + roots.unsqueeze(-2)
    inverse = torch.where(sums > 0, 1 / torch.where(sums > 0, sums, 1), 0)
    return basis @ ((basis.mT @ g @ basis) * inverse) @ basis.mT


class _Root(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eigenvalues, basis = torch.linalg.eigh(a)
        roots = roots_of(eigenvalues)
        return (basis * roots.unsqueeze(-2)) @ basis.mT, basis, roots

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx, grad: Tensor, *of_others: Tensor) -> Tensor:
        return _Sylvester.apply(grad, *ctx.saved_tensors)


class _Sylvester(torch.autograd.Function):
    """X of `S X + X S = G`, a function of G and of S, whose eigenvectors and eigenvalues are at hand."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, root: Tensor, basis: Tensor, roots: Tensor) -> Tensor:
        return solve_sylvester(grad, basis, roots)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[1:], output)

    @staticmethod
    def backward(ctx, grad: Tensor):
        root, basis, roots, x = ctx.saved_tensors
        y = _Sylvester.apply(grad, root, basis, roots)
        return y, -(y @ x.mT + x.mT @ y), None, None
