"""Sums and products of rows about a shift near their mean, chunk by chunk: products in the rows' dtype, totals in
float64.

About their mean, rows are as small as their deviations, so float32 products round those and not the mean's square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops._symmetric import blocks, mirror_

# Rows and numbers of a chunk at most: float32 adds up so many products, and float64 the chunks.
_MOST_ROWS = 4096
_MOST_NUMBERS = 2**23
# Libraries add up products of large matrices in parts, and of matrices with fewer columns than this one after the
# other, which rounds more; there the chunks are small, and float64 has little to add.
_COLUMNS = 256
_FEWEST_ROWS = 512


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
    """About which to take sums, in their dtype."""
    return rows.mean(0)


def check_finite(name: str, x: Tensor) -> None:
    """That all rows of `x` [N, d] are finite, at the price of one sum.

    Raises:
        ValueError: with the number of rows that are not.
    """
    # A sum of finite numbers may overflow: then they are looked at one by one.
    if x.numel() and not x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).isfinite():
        bad = int((~x.isfinite()).any(1).sum())
        if bad:
            raise ValueError(f"{name}: expected finite features, got NaN or infinity in {bad} of {len(x)} rows")
