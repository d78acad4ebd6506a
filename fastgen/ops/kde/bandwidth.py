"""The four forms of a bandwidth, and what each does to distances and volumes.

A number h for each problem, one for each dimension, one for each point, or a covariance H: u^2 is |q - x|^2 / h^2,
the sum of (q - x)_k^2 / h_k^2, |q - x|^2 / h_j^2 or (q - x)^T H^-1 (q - x), and a kernel's volume grows by h^d, the
product of h_k, h_j^d or the root of det H.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Bandwidth(NamedTuple):
    """A bandwidth of a form, its tensor in the dtype of the computation.

    Attributes:
        value: a number, or [...], [..., d], [..., N]; of a covariance its lower Cholesky factor, [..., d, d].
        form: "scalar", "diagonal", "adaptive" or "full".
    """

    value: float | Tensor
    form: str

    def log_volume(self, d: int) -> float | Tensor:
        """log of the factor by which a kernel's volume grows: a number, [...], or [..., N] where adaptive."""
        if not isinstance(self.value, Tensor):
            return d * math.log(self.value)
        if self.form == "diagonal":
            return self.value.log().sum(-1)
        if self.form == "full":
            return self.value.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return d * self.value.log()

    def scale(self, rows: Tensor) -> Tensor:
        """Rows [..., R, d] so scaled that their distances are u; as they are where adaptive."""
        if self.form == "adaptive":
            return rows
        if self.form == "full":
            return torch.linalg.solve_triangular(self.value, rows.mT, upper=False).mT
        if self.form == "diagonal":
            return rows / self.value.unsqueeze(-2)
        return rows / (self.value[..., None, None] if isinstance(self.value, Tensor) else self.value)

    def of_pairs(self) -> Bandwidth:
        """For rows that lie in a batch of their own each, [..., M, R, d]; not of an adaptive one."""
        if not isinstance(self.value, Tensor):
            return self
        return self._replace(value=self.value.unsqueeze({"scalar": -1, "diagonal": -2, "full": -3}[self.form]))

    def scale_gradient(self, rows: Tensor) -> Tensor:
        """A gradient in scaled rows as the gradient in the rows."""
        if self.form == "full":
            return torch.linalg.solve_triangular(self.value.mT, rows.mT, upper=True).mT
        return self.scale(rows)


def bandwidth_of(value: float | Tensor, form: str, dtype: torch.dtype) -> Bandwidth:
    """The bandwidth in a dtype; NaN where a covariance is not positive definite and no check could see it."""
    if not isinstance(value, Tensor):
        return Bandwidth(float(value), form)
    value = value.to(dtype)
    if form != "full":
        return Bandwidth(value, form)
    factor, failed = torch.linalg.cholesky_ex(value)
    return Bandwidth(torch.where((failed == 0)[..., None, None], factor, torch.nan), form)
