"""The square root of a positive semi-definite matrix by its eigenvalues, differentiable to any order.

PyTorch's own derivative of eigenvectors divides by differences of eigenvalues, and is infinite where two agree. The
root's derivative X solves `S X + X S = G` and needs no eigenvectors' derivative; what differentiates that equation is
another one with the same S, so all orders are of one kind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.registry import full_precision


@full_precision
def sqrtm_reference(a: Tensor) -> Tensor:
    return _Root.apply((a + a.mT) / 2)[0]


@full_precision
def trace_sqrtm_reference(a: Tensor, b: Tensor) -> Tensor:
    dtype = torch.promote_types(a.dtype, b.dtype)
    root = sqrtm_reference(a.to(dtype))
    return sqrtm_reference(root @ b.to(dtype) @ root).diagonal(dim1=-2, dim2=-1).sum(-1)


def roots_of(eigenvalues: Tensor) -> Tensor:
    """The roots of ascending eigenvalues [..., d]; zero for eigenvalues lost in the rounding of the largest."""
    if not eigenvalues.numel():
        return eigenvalues
    d, eps = eigenvalues.shape[-1], torch.finfo(eigenvalues.dtype).eps
    kept = eigenvalues > d * eps * eigenvalues[..., -1:]
    # NaN stays NaN.
    return torch.where(kept | eigenvalues.isnan(), eigenvalues, 0).sqrt()


def solve_sylvester(g: Tensor, basis: Tensor, roots: Tensor) -> Tensor:
    """X of `S X + X S = G` for `S = V diag(s) V^T`; zero between roots of zero, where it is not determined."""
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
    """X of `S X + X S = G` as a function of G and of S, whose eigenvectors and eigenvalues are given."""

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
