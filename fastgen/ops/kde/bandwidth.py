"""The four forms of a bandwidth with their distances and volumes, and chains of bandwidths.

A number h for each problem, one for each dimension, one for each point, or a covariance H: u^2 is |q - x|^2 / h^2,
the sum of (q - x)_k^2 / h_k^2, |q - x|^2 / h_j^2 or (q - x)^T H^-1 (q - x), and a kernel's volume grows by h^d, the
product of h_k, h_j^d or the root of det H.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# The relative difference from 2 that the ratio of two 1 / h^2 may have: less than the rounding of float32.
CLOSE = 3e-7


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
        """Scale rows [..., R, d] so that their distances are u; unchanged where adaptive."""
        if self.form == "adaptive":
            return rows
        if self.form == "full":
            return torch.linalg.solve_triangular(self.value, rows.mT, upper=False).mT
        if self.form == "diagonal":
            return rows / self.value.unsqueeze(-2)
        return rows / (self.value[..., None, None] if isinstance(self.value, Tensor) else self.value)

    def of_pairs(self) -> Bandwidth:
        """The bandwidth for rows [..., M, R, d], with a batch dimension more; not for an adaptive one."""
        if not isinstance(self.value, Tensor):
            return self
        return self._replace(value=self.value.unsqueeze({"scalar": -1, "diagonal": -2, "full": -3}[self.form]))

    def scale_gradient(self, rows: Tensor) -> Tensor:
        """The gradient in the rows from that in the scaled rows."""
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


def chains_of(bandwidths: list[float], close: float) -> tuple[Tensor, list[int]]:
    """Bandwidths in chains, each with 1 / h^2 twice that of the one before: only the first of a chain takes an
    exponential, the others are its squares. A geometric grid of ratio 2^(1 / 2 k) is k chains.

    Returns:
        The bandwidths chain by chain, [S] in float64: 1 / h^2 where one starts a chain, zero where it has twice that of
        the one before; and for each bandwidth its place among them.
    """
    ascending = sorted(range(len(bandwidths)), key=lambda i: -bandwidths[i])
    chains: list[list[int]] = []
    for i in ascending:
        for chain in chains:
            # Measured from the first of the chain, so that differences do not add up.
            expected = bandwidths[chain[0]] ** -2 * 2 ** len(chain)
            if abs(bandwidths[i] ** -2 - expected) <= close * expected:
                chain.append(i)
                break
        else:
            chains.append([i])
    place = {i: at for at, i in enumerate(i for chain in chains for i in chain)}
    starts = [0.0 if k else bandwidths[i] ** -2 for chain in chains for k, i in enumerate(chain)]
    return torch.tensor(starts, dtype=torch.float64), [place[i] for i in range(len(bandwidths))]
