"""Mean and covariance of features in float64, by half of the products.

Rows are summed chunk by chunk about a shift near their mean, with products in the rows' dtype and totals in float64.
About their mean, rows are as small as their deviations, so float32 products round those and not the square of the mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating, is_visible
from fastgen.ops.drawing import normals
from fastgen.ops.linalg import blocks, mirror_
from fastgen.ops.registry import Cost, Op, Sample, Tolerance, always, differentiable, full_precision

# The most rows and numbers in a chunk, within which float32 adds up products; float64 adds up the chunks.
_MOST_ROWS = 4096
_MOST_NUMBERS = 2**23
# With fewer columns than this, libraries add up all products of a sum one after another, which rounds more than the
# parts that they take of large matrices. Chunks are small there, and adding them in float64 costs little.
_COLUMNS = 256
_FEWEST_ROWS = 512


def moments(x: Tensor, *, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """The mean and the covariance of the rows of a matrix.

        m = 1/N sum_i x_i    C = 1/(N - 1) sum_i (x_i - m) (x_i - m)^T

    Args:
        x: features [N, d], of any floating dtype.
        dtype: in which products are computed, float32 or float64; None: float64 for float64, else float32. Totals of
            some thousand rows are float64 always, and rows are shifted by about their mean before they are multiplied.

    Returns:
        [d] and [d, d], exactly symmetric, both in float64: the small eigenvalues of a covariance, which a distance
        takes roots of, would be lost in float32. With float32 products an entry is off by about 1e-7 of the product of
        its two deviations (5e-6 where the rows repeat a few values, which all round alike), with float64 by 1e-15.

    Raises:
        ValueError: fewer than two rows, another number of dimensions, or rows that are not finite, with their number.
        TypeError: a dtype that is not floating, or products in another than float32 or float64.

    Gradients of every order. For features that come in batches or on several machines: `fastgen.metrics.Moments`.

    Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983), section 3.
    """
    dtype = _check(x, dtype)
    if MOMENTS.choose((x,)) == "reference":
        if is_visible(x, waiting=True):
            check_finite("x", x.detach())
        return moments_reference(x)
    return _moments(x, dtype == torch.float64)


def moments_reference(x: Tensor, *, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    x = x.double()
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.mT @ centred / (len(x) - 1)


def _run(x: Tensor, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    mean, covariance = MOMENTS.call["library"]["moments"](x, exact)
    return mean, covariance, mean


def _gradient(ctx, of_mean: Tensor, of_covariance: Tensor) -> tuple[Tensor]:
    x, mean = ctx.saved_tensors
    # The centred rows add up to zero, so that no gradient comes through their mean.
    grad = (x - mean) @ ((of_covariance + of_covariance.mT) / (len(x) - 1))
    return (grad.add_(of_mean / len(x)).to(x.dtype),)


_moments = differentiable(_run, _gradient, moments_reference, inputs=1, kept=1)


@full_precision
def _library(x: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    check_finite("x", x)
    n, d = x.shape
    dtype, size = torch.float64 if exact else torch.float32, rows_of_chunk(d)
    sums, products = (torch.zeros(*shape, dtype=torch.float64, device=x.device) for shape in ((d,), (d, d)))
    shift = mean_of_rows(x[:size].to(dtype))
    for rows in x.split(size):
        add_chunk_(sums, products, rows.to(dtype) - shift)
    mean, scatter = about_mean(n, shift, sums, products)
    return mean, scatter.div_(n - 1)


def rows_of_chunk(d: int) -> int:
    if d < _COLUMNS:
        return _FEWEST_ROWS
    return max(_FEWEST_ROWS, min(_MOST_ROWS, _MOST_NUMBERS // d))


def add_chunk_(sums: Tensor, products: Tensor, rows: Tensor) -> None:
    """Add the sum of rows [n, d] to `sums` [d], and the lower half of `rows^T rows` to `products` [d, d], both float64.

    Above the diagonal of `products` are other numbers.
    """
    sums += rows.sum(0)
    for block in blocks(products):
        columns, before = rows[:, block].mT, rows[:, : block.stop]
        if rows.dtype == torch.float64:
            products[block, : block.stop].addmm_(columns, before)
        else:
            products[block, : block.stop] += columns @ before


def about_mean(n: int, shift: Tensor, sums: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of n rows and the sum of their products about it, from sums about a shift; `products` is overwritten."""
    offset = sums / n
    return shift + offset, mirror_(products.addr_(offset, sums, alpha=-1))


def mean_of_rows(rows: Tensor) -> Tensor:
    """The shift about which sums are taken, in the dtype of the rows."""
    return rows.mean(0)


def check_finite(name: str, x: Tensor) -> None:
    """Check that all rows of `x` [N, d] are finite, at the price of one sum.

    Raises:
        ValueError: with the number of rows that are not.
    """
    # A sum of finite numbers may overflow, so the numbers themselves decide.
    if x.numel() and not x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).isfinite():
        bad = int((~x.isfinite()).any(1).sum())
        if bad:
            raise ValueError(f"{name}: expected finite features, got NaN or infinity in {bad} of {len(x)} rows")


def _check(x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    check_floating("x", x)
    if dtype not in (None, torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    if x.dim() != 2:
        raise ValueError(f"x: expected features [N, d], got {tuple(x.shape)}")
    if len(x) < 2:
        raise ValueError(f"x: expected at least two rows, got {tuple(x.shape)}")
    return dtype or torch.promote_types(x.dtype, torch.float32)


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)
    yield Sample("more rows than columns", (randn(17, 5),))
    yield Sample("fewer rows than columns", (randn(3, 7),))
    yield Sample("one column", (randn(9, 1),))
    yield Sample("two rows", (randn(2, 4),))
    yield Sample("no columns", (randn(3, 0),))
    yield Sample("not contiguous", (randn(6, 9).mT,))
    yield Sample("expanded", (randn(1, 4).expand(5, 4),))
    yield Sample("extreme: more than a block of columns", (randn(90, 300),))
    yield Sample("extreme: more than a chunk of rows", (randn(9000, 3) + 100,))


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for n, d in ((5_000, 2048), (50_000, 2048), (50_000, 64)):
        spread = (12 * torch.arange(1, d + 1) ** -1.25 + 2e-4).sqrt()
        x = torch.randn(n, d, generator=generator).mul_(spread).add_(0.5)
        yield Sample(f"{n}x{d}", (x.to(device, dtype),))


def _cost(pass_: str, x: Tensor) -> Cost:
    """The cost of half of the products of columns; the gradient multiplies the rows by a whole matrix."""
    n, d = x.shape
    backward = pass_.endswith("_backward")
    moved = x.numel() * x.element_size() * (3 if backward else 1) + 8 * (d * d + d)
    return Cost(moved, n * d * (d + 1) + (2 * n * d * d if backward else 0) + 1)


def _fake(x: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    d = x.shape[1]
    return x.new_empty(d, dtype=torch.float64), x.new_empty(d, d, dtype=torch.float64)


_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

MOMENTS = Op(
    "moments",
    schema=("moments(Tensor x, bool exact) -> (Tensor, Tensor)",),
    fake=(_fake,),
    library=(_library,),
    reference=moments_reference,
    supports={"library": always},
    dtypes={"library": _DTYPES},
    samples=_samples,
    cases=_cases,
    # The reference computes in float64 for every dtype, so that its own error is that of float64.
    tolerance={dtype: Tolerance(2, 1e-12 if dtype == torch.float64 else 3e-6) for dtype in _DTYPES},
    cost=_cost,
)
