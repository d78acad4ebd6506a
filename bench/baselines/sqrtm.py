"""Roots of covariances as libraries of metrics take them, written from their formulas: their packages want torchvision.

None of them uses that the matrices are symmetric, but for FD-loss, which is `trace_sqrtm`'s `eager`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sqrtm_eager(a: Tensor) -> Tensor:
    eigenvalues, basis = torch.linalg.eigh(a.double())
    return ((basis * eigenvalues.clamp(min=0).sqrt().unsqueeze(-2)) @ basis.mT).to(a.dtype)


def sqrtm_scipy(a: Tensor) -> Tensor:
    import numpy as np
    from scipy.linalg import sqrtm

    _only_values(a)
    if a.dim() > 2 or len(a) > 512:
        raise NotImplementedError("one matrix of at most 512 rows, or it would take many seconds")
    return torch.from_numpy(np.real(sqrtm(a.double().numpy()))).to(a.dtype)


def trace_sqrtm_eager(a: Tensor, b: Tensor) -> Tensor:
    """FD-loss (2026): symmetric eigenvalues between the root of one side."""
    root = sqrtm_eager(a.double())
    product = root @ b.double() @ root
    product = (product + product.mT) / 2
    return torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum(-1).to(a.dtype)


def trace_sqrtm_torchmetrics(a: Tensor, b: Tensor) -> Tensor:
    """Eigenvalues of the product, which is not symmetric: complex numbers, of which the real part is taken."""
    return torch.linalg.eigvals(a.double() @ b.double()).sqrt().real.sum(-1).to(a.dtype)


def trace_sqrtm_torch_fidelity(a: Tensor, b: Tensor) -> Tensor:
    import numpy as np

    _only_values(a, b)
    eigenvalues = np.linalg.eigvals(a.double().numpy() @ b.double().numpy()).astype(np.complex128)
    return torch.as_tensor(np.sqrt(eigenvalues).real.sum(-1)).to(a.dtype)


def trace_sqrtm_pytorch_fid(a: Tensor, b: Tensor) -> Tensor:
    """Also clean-fid's: Schur's form of the product, and 1e-6 added to both diagonals where that has no root."""
    import numpy as np
    from scipy.linalg import sqrtm

    _only_values(a, b)
    if a.dim() > 2:
        raise NotImplementedError("one pair of matrices")
    a, b, eps = a.double().numpy(), b.double().numpy(), 1e-6 * np.eye(len(a))
    root = sqrtm(a @ b)
    if not np.isfinite(root).all():
        root = sqrtm((a + eps) @ (b + eps))
    return torch.tensor(np.trace(root).real)


def _only_values(*tensors: Tensor) -> None:
    if any(t.requires_grad for t in tensors):
        raise NotImplementedError("it has no gradient")
