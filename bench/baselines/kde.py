"""Kernel density estimates as people write them in PyTorch, and as scipy and scikit-learn evaluate them.

The strongest PyTorch by hand is one matrix product per chunk of queries that fits the cache, all in place, with
exponents clamped: an exponential whose result is denormal takes fifty times as long as any other. Under torch.compile
the same in place would be unrolled, so there it is the plain formula; `compiled_chunks` compiles a clamped chunk.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

CHUNK = 32
CLAMP = -80.0
# Pairs of a query and a point that a library in one thread and float64 takes seconds for.
MOST_PAIRS = 100_000_000


def eager(queries: Tensor, points: Tensor, bandwidth: float, *, kernel: str = "gaussian", **options) -> Tensor:
    _only_scalar(bandwidth, options)
    if kernel != "gaussian":
        return _eager_of_kernel(queries, points, bandwidth, kernel)
    if torch.compiler.is_compiling() or queries.dim() > 2:
        return _plain(queries, points, bandwidth)
    if torch.is_grad_enabled() and (queries.requires_grad or points.requires_grad):
        return _Chunked.apply(queries, points, bandwidth)
    return _log_sums(queries, points, bandwidth) - _log_constant(points, bandwidth)


def _eager_of_kernel(queries: Tensor, points: Tensor, bandwidth: float, kernel: str) -> Tensor:
    """In chunks that fit the cache where autograd keeps nothing of them; under torch.compile all at once."""
    whole = torch.compiler.is_compiling() or torch.is_grad_enabled()
    found = []
    for part in [queries] if whole else queries.split(CHUNK):
        u = torch.cdist(part, points) / bandwidth
        if kernel == "exponential":
            found.append(torch.logsumexp(-u, -1))
        else:
            found.append((1 - u.square()).clamp(min=0).sum(-1).log())
    return torch.cat(found) - math.log(len(points)) - _log_volume(points, bandwidth, kernel)


def _log_volume(points: Tensor, bandwidth: float, kernel: str) -> float:
    d = points.shape[-1]
    log_ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1) + d * math.log(bandwidth)
    if kernel == "exponential":
        return log_ball + math.lgamma(d + 1)
    if kernel == "epanechnikov":
        return log_ball + math.log(2 / (d + 2))
    raise NotImplementedError(f"not written for {kernel!r}")


def compiled_chunks(queries: Tensor, points: Tensor, bandwidth: float, **options) -> Tensor:
    _only_scalar(bandwidth, options)
    if queries.dim() > 2:
        raise NotImplementedError("written for one problem")
    if torch.is_grad_enabled() and (queries.requires_grad or points.requires_grad):
        raise NotImplementedError("written for the forward pass")
    halves = points.square().sum(-1) / (-2 * bandwidth**2)
    chunk = _compiled_chunk()
    found = [chunk(part, points, halves, bandwidth) for part in queries.split(40)]
    return torch.cat(found) - queries.square().sum(-1) / (2 * bandwidth**2) - _log_constant(points, bandwidth)


def keops(queries: Tensor, points: Tensor, bandwidth: float, **options) -> Tensor:
    from pykeops.torch import LazyTensor

    _only_scalar(bandwidth, options)
    if queries.dim() > 2:
        raise NotImplementedError("written for one problem")
    scaled = LazyTensor((queries / bandwidth).unsqueeze(1)) - LazyTensor((points / bandwidth).unsqueeze(0))
    return (scaled.square().sum(-1) / -2).logsumexp(dim=1)[:, 0] - _log_constant(points, bandwidth)


def scipy(queries: Tensor, points: Tensor, bandwidth: float, **options) -> Tensor:
    import numpy as np
    from scipy.stats import gaussian_kde

    class Isotropic(gaussian_kde):
        """With a bandwidth of its own in place of the data's covariance."""

        def _compute_covariance(self) -> None:
            self.covariance = bandwidth**2 * np.eye(self.d)
            self.cho_cov = bandwidth * np.eye(self.d)
            self.log_det = 2 * self.d * math.log(bandwidth * math.sqrt(2 * math.pi))

    _only_small(queries, points, bandwidth, options)
    return torch.from_numpy(Isotropic(points.double().T.numpy()).logpdf(queries.double().T.numpy())).to(queries.dtype)


def scikit_learn(queries: Tensor, points: Tensor, bandwidth: float, *, kernel: str = "gaussian", **options) -> Tensor:
    from sklearn.neighbors import KernelDensity

    _only_small(queries, points, bandwidth, options)
    density = KernelDensity(bandwidth=bandwidth, kernel=kernel).fit(points.double().numpy())
    return torch.from_numpy(density.score_samples(queries.double().numpy())).to(queries.dtype)


def loop(queries: Tensor, points: Tensor, bandwidth: float, **options) -> Tensor:
    """A batch one problem at a time."""
    if queries.dim() != 3 or torch.is_grad_enabled():
        raise NotImplementedError("for a batch's forward pass only")
    return torch.stack([eager(q, x, bandwidth, **options) for q, x in zip(queries, points, strict=True)])


def kde_score_eager(queries: Tensor, points: Tensor, bandwidth: float, **options) -> Tensor:
    _only_scalar(bandwidth, options)
    if torch.compiler.is_compiling() or queries.dim() > 2:
        shares = torch.softmax(_exponents(queries, points, bandwidth), -1)
        return (shares @ points - queries) / bandwidth**2
    score, _, _ = _chunked_gradient(queries, points, bandwidth, None)
    return score


def kde_log_densities_eager(
    queries: Tensor, points: Tensor, bandwidths: Tensor, *, leave_one_out: bool = False
) -> Tensor:
    """Distances once, then a sum of exponentials for each bandwidth."""
    exponents = torch.cdist(queries, points).square() / -2
    n, d = points.shape
    if leave_one_out:
        exponents.fill_diagonal_(-torch.inf)
    sums = []
    for h in bandwidths.unbind():
        scaled = exponents / h**2
        largest = scaled.amax(1, keepdim=True)
        sum_of = (scaled - largest).clamp(min=CLAMP).exp().sum(1)
        # The pair left out was clamped as well.
        sums.append((sum_of - leave_one_out * math.exp(CLAMP)).log() + largest[:, 0] - d * h.log())
    return torch.stack(sums) - math.log(n - leave_one_out) - d / 2 * math.log(2 * math.pi)


def _exponents(queries: Tensor, points: Tensor, bandwidth: float) -> Tensor:
    """Those of the Gaussians, short of -|q|^2 / 2 h^2."""
    halves = points.square().sum(-1).unsqueeze(-2) / (-2 * bandwidth**2)
    if queries.dim() == 2:
        return torch.addmm(halves, queries / bandwidth**2, points.mT)
    return torch.baddbmm(halves, queries, points.mT, alpha=1 / bandwidth**2)


def _plain(queries: Tensor, points: Tensor, bandwidth: float) -> Tensor:
    exponents = _exponents(queries, points, bandwidth)
    largest = exponents.amax(-1, keepdim=True).detach()
    sums = (exponents - largest).clamp(min=CLAMP).exp().sum(-1).log() + largest.squeeze(-1)
    return sums - queries.square().sum(-1) / (2 * bandwidth**2) - _log_constant(points, bandwidth)


def _log_sums(queries: Tensor, points: Tensor, bandwidth: float) -> Tensor:
    transposed, halves = (points / bandwidth**2).t().contiguous(), points.square().sum(-1) / (-2 * bandwidth**2)
    sums, buffer = queries.new_empty(queries.shape[0]), queries.new_empty(CHUNK, points.shape[0])
    for first in range(0, queries.shape[0], CHUNK):
        part = queries[first : first + CHUNK]
        exponents = buffer[: part.shape[0]]
        torch.addmm(halves, part, transposed, out=exponents)
        largest = exponents.amax(1, keepdim=True)
        exponents.sub_(largest).clamp_(min=CLAMP).exp_()
        sums[first : first + CHUNK] = exponents.sum(1).log_() + largest[:, 0]
    return sums - queries.square().sum(-1) / (2 * bandwidth**2)


def _chunked_gradient(queries: Tensor, points: Tensor, bandwidth: float, grad: Tensor | None):
    """The gradients in queries (the score where grad is None) and points, and the log-sums, a chunk at a time."""
    chunk = 250
    transposed, halves = (points / bandwidth**2).t().contiguous(), points.square().sum(-1) / (-2 * bandwidth**2)
    of_queries, of_points = torch.empty_like(queries), torch.zeros_like(points)
    shares_of_points, buffer = points.new_zeros(points.shape[0]), queries.new_empty(chunk, points.shape[0])
    for first in range(0, queries.shape[0], chunk):
        part = queries[first : first + chunk]
        shares = buffer[: part.shape[0]]
        torch.addmm(halves, part, transposed, out=shares)
        shares.sub_(shares.amax(1, keepdim=True)).clamp_(min=CLAMP).exp_()
        shares.div_(shares.sum(1, keepdim=True))
        pulled = shares @ points - part
        of_queries[first : first + chunk] = pulled
        if grad is not None:
            weight = grad[first : first + chunk, None]
            of_queries[first : first + chunk] *= weight
            of_points.addmm_(shares.t(), part * weight)
            shares_of_points.addmv_(shares.t(), weight[:, 0])
    of_points -= shares_of_points.unsqueeze(-1) * points
    return of_queries / bandwidth**2, of_points / bandwidth**2, shares_of_points


class _Chunked(torch.autograd.Function):
    """The gradient by hand, too: what autograd keeps of a chunk is larger than any cache."""

    @staticmethod
    def forward(ctx, queries, points, bandwidth):
        ctx.save_for_backward(queries, points)
        ctx.bandwidth = bandwidth
        return _log_sums(queries, points, bandwidth) - _log_constant(points, bandwidth)

    @staticmethod
    def backward(ctx, grad):
        of_queries, of_points, _ = _chunked_gradient(*ctx.saved_tensors, ctx.bandwidth, grad)
        return of_queries, of_points, None


@functools.cache
def _compiled_chunk():
    def chunk(queries: Tensor, points: Tensor, halves: Tensor, bandwidth: float) -> Tensor:
        exponents = torch.addmm(halves, queries / bandwidth**2, points.t())
        largest = exponents.amax(1, keepdim=True)
        return (exponents - largest).clamp(min=CLAMP).exp().sum(1).log() + largest[:, 0]

    return torch.compile(chunk, dynamic=False)


def _log_constant(points: Tensor, bandwidth: float) -> float:
    n, d = points.shape[-2:]
    return math.log(n) + d * math.log(bandwidth * math.sqrt(2 * math.pi))


def _only_scalar(bandwidth: float, options: dict) -> None:
    if options or not isinstance(bandwidth, float):
        raise NotImplementedError("written for the Gaussian with one bandwidth, without weights")


def _only_small(queries: Tensor, points: Tensor, bandwidth: float, options: dict) -> None:
    _only_scalar(bandwidth, options)
    if queries.dim() > 2 or queries.requires_grad or points.requires_grad:
        raise NotImplementedError("no batches and no gradients")
    if queries.shape[0] * points.shape[0] > MOST_PAIRS:
        raise NotImplementedError("it would take many seconds for so many pairs")
