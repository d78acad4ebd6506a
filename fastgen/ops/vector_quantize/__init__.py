"""The nearest code of a codebook to each vector, without the matrix of all distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.ops.checks import check_tensor
from fastgen.ops.drawing import normals
from fastgen.ops.pairs import check_finite
from fastgen.ops.registry import (
    CPU_DTYPES,
    Cost,
    Op,
    Sample,
    Tolerance,
    always,
    computing_dtype,
    needs_gradient,
    no_view,
)
from fastgen.ops.vector_quantize.products import quantize_by_products

# How many differences the reference holds at once.
CHUNK = 2**22
# How many vectors of a benchmark case are compared with the reference, which computes all differences.
_COMPARED = 512


class VectorQuantized(NamedTuple):
    """What `vector_quantize` returns.

    Attributes:
        quantized: [..., d], the code of each vector.
        indices: [...], int64, which one it is.
        counts: [k], int64, how many vectors have each code.
        sums: [k, d], the sum of those vectors: with `counts`, what a codebook of moving averages is fed with.
    """

    quantized: Tensor
    indices: Tensor
    counts: Tensor
    sums: Tensor


class ResidualVectorQuantized(NamedTuple):
    """What `residual_vector_quantize` returns, for q codebooks.

    Attributes:
        quantized: [..., d], the sum of a vector's codes.
        indices: [..., q], int64.
        counts: [q, k], int64, how many vectors have each code.
        sums: [q, k, d], the sum of the residuals that have each code.
    """

    quantized: Tensor
    indices: Tensor
    counts: Tensor
    sums: Tensor


def vector_quantize(x: Tensor, codebook: Tensor) -> VectorQuantized:
    """Replace every vector by the nearest code, `quantized = e_j` with `j = argmin_k |x - e_k|`.

    The gradient of `quantized` goes straight through to `x`, as if nothing had been replaced; the codebook gets none
    (moving averages train it, from `counts` and `sums`; or a loss between x and `embedding(indices, codebook)`).

    Args:
        x: [..., d].
        codebook: [k, d].

    Returns:
        quantized (the dtype of `x`), indices, counts and sums (at least float32). A vector with NaN or infinity has no
        nearest code: it becomes NaN, its index is -1, and it is neither counted nor summed.

    Raises:
        ValueError: a codebook of another width, without codes or, where it can be seen without waiting for a device (on
            a CPU outside torch.compile), with a number that is not finite.
        TypeError: a dtype that is not floating, or tensors on different devices.

    Codes are those of float64, of two at the same distance the one of lower index: where a product's rounding, by a
    bound on it, leaves more than one code in question, differences decide, summed in float64. Memory is O(n d + k d).
    On a GPU the library's product does the same, a chunk of vectors at a time, and the host waits once to see whether
    any is in question.

    Source: van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (2017), equations 1 and 2
    and appendix A.1.
    """
    _check(x, codebook)
    backend = VECTOR_QUANTIZE.choose((x, codebook))
    if backend == "reference":
        return vector_quantize_reference(x, codebook)
    dtype = computing_dtype(x, codebook)
    with torch.no_grad():
        rows = x.detach().to(dtype).reshape(-1, x.shape[-1]).contiguous()
        found = VECTOR_QUANTIZE.call[backend]["vector_quantize"](rows, codebook.detach().to(dtype).contiguous())
    quantized, indices, counts, sums = found
    quantized = quantized.to(x.dtype).view(x.shape)
    if needs_gradient(x):
        quantized = _StraightThrough.apply(x, quantized)
    return VectorQuantized(quantized, indices.view(x.shape[:-1]), counts, sums)


def vector_quantize_reference(x: Tensor, codebook: Tensor) -> VectorQuantized:
    dtype = computing_dtype(x, codebook)
    rows, codes = x.reshape(-1, x.shape[-1]), codebook.detach().to(dtype)
    indices = _nearest(rows.detach().double(), codes.double())
    has_code = (indices >= 0).unsqueeze(1)
    index = indices.clamp(min=0)
    quantized = torch.where(has_code, codes[index], torch.nan).to(x.dtype)
    # Adds zero, which has the gradient of x.
    quantized = quantized + (rows - rows.detach())
    counts = torch.zeros_like(codes[:, 0], dtype=torch.int64).index_add(0, index, has_code[:, 0].long())
    sums = torch.zeros_like(codes).index_add(0, index, torch.where(has_code, rows.detach().to(dtype), 0))
    return VectorQuantized(quantized.view(x.shape), indices.view(x.shape[:-1]), counts, sums)


def _nearest(rows: Tensor, codes: Tensor) -> Tensor:
    chunk = max(1, CHUNK // codes.numel())
    squared = [(part.unsqueeze(1) - codes).square().sum(-1) for part in rows.split(chunk)]
    indices = torch.cat([distances.argmin(1) for distances in squared])
    return torch.where(rows.isfinite().all(1), indices, -1)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, quantized: Tensor) -> Tensor:
        return no_view(quantized.view_as(quantized))

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


def residual_vector_quantize(x: Tensor, codebooks: Tensor | Sequence[Tensor]) -> ResidualVectorQuantized:
    """Replace every vector by a sum of codes: each codebook quantises what those before it have left.

        r_0 = x,  j_i = argmin_k |r_i - e_ik|,  r_(i+1) = r_i - e_i(j_i),  quantized = sum_i e_i(j_i)

    The gradient of `quantized` goes straight through to `x`.

    Args:
        x: [..., d].
        codebooks: [q, k, d], or q of them, [k, d] each.

    Returns:
        quantized, and of every codebook what `vector_quantize` returns.

    Raises:
        ValueError, TypeError: no codebooks, codebooks that differ in shape, or what `vector_quantize` raises.

    Source: Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec" (2021), section III.C, algorithm 1.
    """
    if len(codebooks) == 0:
        raise ValueError("codebooks: expected at least one, got none")
    if any(codebook.shape != codebooks[0].shape for codebook in codebooks):
        raise ValueError(f"codebooks: expected one shape, got {[tuple(codebook.shape) for codebook in codebooks]}")
    residual, total, found = x.detach(), None, []
    for codebook in codebooks:
        stage = vector_quantize(residual, codebook)
        residual = residual - stage.quantized
        total = stage.quantized if total is None else total + stage.quantized
        found.append(stage)
    _, indices, counts, sums = zip(*found, strict=True)
    quantized = total + (x - x.detach()) if needs_gradient(x) else total
    return ResidualVectorQuantized(quantized, torch.stack(indices, -1), torch.stack(counts), torch.stack(sums))


def code_perplexity(counts: Tensor) -> Tensor:
    """How many codes are in use, `exp(-sum_k p_k log p_k)` with `p = counts / sum(counts)`: from 1 to k.

    Args:
        counts: [..., k], at least 0.

    Returns:
        [...]: NaN where nothing was counted.
    """
    shares = counts / counts.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def _check(x: Tensor, codebook: Tensor) -> None:
    check_tensor("x", x)
    check_tensor("codebook", codebook, x, "x")
    if codebook.dim() != 2 or codebook.numel() == 0:
        raise ValueError(f"codebook: expected [k, d] with at least one code, got {tuple(codebook.shape)}")
    if x.dim() < 1 or x.shape[-1] != codebook.shape[1]:
        raise ValueError(
            f"x: expected [..., {codebook.shape[1]}] for codebook {tuple(codebook.shape)}, got {tuple(x.shape)}"
        )
    check_finite("codebook", codebook)


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)
    yield Sample("vectors", (randn(9, 5), randn(7, 5)))
    yield Sample("sequences", (randn(2, 6, 4), randn(8, 4)))
    yield Sample("images", (randn(2, 3, 5, 4), randn(11, 4)))
    yield Sample("one vector", (randn(3), randn(4, 3)))
    yield Sample("one code", (randn(6, 3), randn(1, 3)))
    yield Sample("one number", (randn(1, 1), randn(1, 1)))
    yield Sample("more codes than vectors", (randn(5, 3), randn(200, 3)))
    yield Sample("more than a tile", (randn(143, 8), randn(67, 8)))
    yield Sample("several depths of a tile", (randn(33, 300), randn(45, 300)))
    yield Sample("no vectors", (randn(0, 4), randn(3, 4)))
    yield Sample("codes twice", (randn(40, 3), randn(6, 3).repeat(2, 1)))
    yield Sample("between codes", (randn(8, 3).floor() + 0.5, torch.arange(24.0).view(8, 3).to(device, dtype) % 3))
    yield Sample("transposed", (randn(5, 8).t(), randn(5, 9).t()))
    yield Sample("expanded", (randn(1, 3).expand(8, 3), randn(1, 3).expand(9, 3)))
    yield Sample("far away", (randn(90, 4) - 1000, randn(50, 4) - 1000))
    yield Sample("extreme", (randn(9, 3) * 1e4, randn(20, 3) * 1e4))


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for n, k, d in ((16384, 1024, 64), (16384, 512, 64), (4096, 8192, 32)):
        x, codebook = torch.randn(n, d, device=device), torch.randn(k, d, device=device)
        yield Sample(f"{n}x{d}, {k} codes", (x.to(dtype), codebook.to(dtype)))


def _gate_part(case: Sample) -> Sample:
    x, codebook = case.args
    return case._replace(args=(x[:_COMPARED], codebook))


def _cost(pass_: str, x: Tensor, codebook: Tensor) -> Cost:
    """The cost of one matrix product; codes and indices are written."""
    rows, (codes, d) = x.numel() // x.shape[-1], codebook.shape
    moved = 2 * x.numel() + 2 * codebook.numel() + 2 * rows
    return Cost(moved * x.element_size(), 2 * rows * codes * d + 1)


def _fake(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    indices = x.new_empty(x.shape[0], dtype=torch.int64)
    return x.new_empty(x.shape), indices, indices.new_empty(codebook.shape[0]), x.new_empty(codebook.shape)


def _supports_cpp(x: Tensor, codebook: Tensor) -> str:
    return "" if codebook.shape[0] <= 2**24 else "more than 2^24 codes"


VECTOR_QUANTIZE = Op(
    "vector_quantize",
    schema=("vector_quantize(Tensor x, Tensor codebook) -> (Tensor, Tensor, Tensor, Tensor)",),
    fake=(_fake,),
    reference=vector_quantize_reference,
    library=(quantize_by_products,),
    supports={"cpp": _supports_cpp, "library": always},
    dtypes={
        "cpp": CPU_DTYPES,
        "library": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    },
    samples=_samples,
    cases=_cases,
    tolerance={
        torch.float64: Tolerance(2, 1e-14),
        torch.float32: Tolerance(2, 1e-7),
        torch.bfloat16: Tolerance(2, 1e-7),
        torch.float16: Tolerance(2, 1e-7),
    },
    cost=_cost,
    grad_order=0,
    passes=("forward",),
    gate_part=_gate_part,
)
