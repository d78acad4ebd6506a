"""Sets of real vectors: the rows of a table, the points of a plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastgen.data.examples import Examples


@dataclass(frozen=True)
class Vectors(Examples):
    """Vectors of finite real numbers, held in memory.

    Args:
        vectors: float64 `[N, D]`, since a column may be narrow and far from zero.
        columns: the names of the `D` columns, or None.

    Raises:
        TypeError: the tensor has another dtype.
        ValueError: it has another shape, or holds a value that is not finite; or not `D` names.
    """

    kind: ClassVar[str] = "vectors"
    vectors: Tensor
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        vectors, columns = self.vectors, self.columns
        if vectors.dtype != torch.float64:
            raise TypeError(f"vectors has dtype {vectors.dtype}, expected torch.float64")
        if vectors.ndim != 2 or vectors.numel() == 0:
            raise ValueError(f"vectors has shape {list(vectors.shape)}, expected [N, D], none of them 0")
        if columns is not None and len(columns) != vectors.shape[1]:
            raise ValueError(f"columns has {len(columns)} names, expected {vectors.shape[1]}, one for each column")
        if len(bad := (~vectors.isfinite()).nonzero()[:1]):
            row, column = bad[0].tolist()
            rows = int((~vectors.isfinite()).any(1).sum())
            raise ValueError(
                f"vectors holds {vectors[row, column]:g} in row {row + 1}, column {self.column(column)}: "
                f"expected finite numbers ({rows} of {len(vectors)} rows hold NaN or infinity)"
            )

    @property
    def values(self) -> Tensor:
        return self.vectors

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": list(self.shape), **({"columns": list(self.columns)} if self.columns else {})}

    def __getitem__(self, index: Tensor | slice) -> Vectors:
        """The vectors at `index` (a slice, or an int64 or bool tensor)."""
        return replace(self, vectors=self.vectors[index])

    def with_columns(self, names: Sequence[str]) -> Vectors:
        """The same vectors with the columns of these names, in their order.

        Raises:
            ValueError: no column of such a name, or no names at all.
        """
        if self.columns is None:
            raise ValueError(f"the columns have no names, expected {', '.join(names)}")
        if missing := [name for name in names if name not in self.columns]:
            raise ValueError(f"no column {missing[0]} among {', '.join(self.columns)}")
        order = [self.columns.index(name) for name in names]
        return replace(self, vectors=self.vectors[:, order], columns=tuple(names))

    def column(self, index: int) -> str:
        """The name of column `index` in messages: its number from 1, and its name where it has one."""
        return f"{index + 1} ({self.columns[index]})" if self.columns else f"{index + 1}"

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each column, float64 `[D]`.

        Raises:
            ValueError: a column is constant, so that it has no density, or varies too little or too much for a model in
                single precision.
        """
        mean, std = self.vectors.mean(0), self.vectors.std(0, correction=0)
        for index, (center, spread) in enumerate(zip(mean.tolist(), std.tolist(), strict=True)):
            what = f"column {self.column(index)}"
            # Rounding may give a constant column a spread above 0.
            if spread <= 1e-12 * abs(center):
                raise ValueError(f"{what} is always {center:g}, so it has no density: leave it out")
            if spread < 1e-5 * abs(center):
                raise ValueError(f"{what} is {center:g} with a spread of {spread:g} only: subtract a constant from it")
            if not 1e-30 < spread < 1e30:
                raise ValueError(f"{what} has a spread of {spread:g}, expected 1e-30 to 1e30: give it another unit")
        return mean, std
