"""A density as a sum of cosines on a box."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from fastgen.density.arrays import check_varying
from fastgen.density.estimator import DensityEstimator
from fastgen.nn.arguments import is_number, positive

# Without `max_order`, the largest order with no more terms than this, and at most this order.
_MOST_TERMS, _HIGHEST_ORDER = 512, 64

# More terms than this are refused.
_TERMS_LIMIT = 2**18

# The basis functions are held for chunks of points with about this many numbers.
_CHUNK_NUMBERS = 2**21

# Points per axis of the grid that integrates, by the number of dimensions; Sobol points in more dimensions.
_GRID = {1: 2**14, 2: 2**10, 3: 2**7}
_SOBOL_POINTS = 2**15


@dataclass(eq=False, repr=False)
class OrthogonalSeries(DensityEstimator):
    """The basis estimator: `f(u) = sum_a theta_a phi_a(u)` on a box mapped to [0, 1]^d, `theta_a = mean_i phi_a(u_i)`.

    `phi_a(u) = prod_j phi_{a_j}(u_j)` with `phi_0 = 1` and `phi_k(u) = sqrt(2) cos(pi k u)`, orthonormal; the terms are
    those of total degree `a_1 + ... + a_d` up to `order`. Such a sum may dip below zero, which no density does: what is
    below `floor` (times the uniform density) is raised to it, and the whole divided by its integral Z, so
    `p(x) = max(f(u), floor) / (Z volume)`. Z is exact to about 1e-6 for d <= 3 (a grid) and 1e-3 above (Sobol points).
    Outside the box the density is zero.

    The order, unless given, is the one of least cross-validated risk, `J = sum_a (2 mean_i phi_a(u_i)^2 -
    (N + 1) theta_a^2) / (N - 1)`: the integrated squared error of f up to a constant, each point predicted from others.

    Learned: `order_`, `terms_` [T, d] (the indices a), `coefficients_` [T], `low_` and `high_` [d] (the box),
    `low_rest_` [d] (what rounding to the dtype took from `low_`) and `width_` [d] (the sides of the box), `integral_`
    (Z).

    Args:
        order: total degree; "cv" chooses it.
        max_order: the largest that "cv" tries; None takes the largest with at most 512 terms, and at most 64.
        box: `(low, high)`, each a number or one per feature; None takes the range of the points, widened on either
            side by range / (N - 1), as is unbiased for the ends of a uniform density.
        floor: the least density within the box, in units of the uniform density there.

    Raises:
        ValueError: an argument out of range; on fitting, an order of more than 2^18 terms, a point outside of `box`, or
            without one a constant column; fewer than 2 points.

    Source: Cencov, "Evaluation of an unknown distribution density from observations" (1962); Hart, "On the choice of a
    truncation point in Fourier series density estimation" (1985), for the risk.
    """

    order: int | str = "cv"
    _: KW_ONLY
    max_order: int | None = None
    box: tuple[float | Sequence[float], float | Sequence[float]] | None = None
    floor: float = 1e-4

    def _check_arguments(self) -> None:
        if self.order != "cv":
            positive(order=self.order)
        if self.max_order is not None:
            positive(max_order=self.max_order)
        if not is_number(self.floor) or not 0 < self.floor < 1:
            raise ValueError(f"floor: expected a number in (0, 1), got {self.floor!r}")
        if self.box is not None and not _is_box(self.box):
            raise ValueError(f"box: expected (low, high) or None, got {self.box!r}")

    def _at_least(self, features: int) -> int:
        return 2

    def _fit(self, x: Tensor) -> None:
        low, high = self._box(x)
        self.low_, self.high_, self.width_ = (end.to(x.dtype) for end in (low, high, high - low))
        self.low_rest_ = (low - self.low_.double()).to(x.dtype)
        u = self._in_unit_cube(x)
        d = x.shape[1]
        order = self._largest_order(d) if self.order == "cv" else int(self.order)
        if (number := math.comb(order + d, d)) > _TERMS_LIMIT:
            name = "max_order" if self.order == "cv" else "order"
            raise ValueError(f"{name}: {order} in {d} dimensions makes {number} terms, expected {_TERMS_LIMIT} at most")
        terms = terms_of_degree(d, order, x.device)
        total, squares = (torch.zeros(len(terms), dtype=x.dtype, device=x.device) for _ in range(2))
        for rows in u.split(self._rows_at_once(terms)):
            values = cosines(rows, terms)
            total += values.sum(0)
            squares += values.square().sum(0)
        theta = total / len(x)
        if self.order == "cv":
            order = int(risks_by_order(terms.sum(1), theta, squares / len(x), len(x)).argmin())
        kept = terms.sum(1) <= order
        self.order_, self.terms_, self.coefficients_ = order, terms[kept], theta[kept]
        self.integral_ = integral_of_clipped(self.terms_, self.coefficients_, self.floor)

    def _box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the box [d], in float64: far from zero its sides would be rounded with them."""
        if self.box is None:
            check_varying(x, "and there is no range to put a box around: expected box=(low, high)")
            low, high = x.amin(0).double(), x.amax(0).double()
            margin = (high - low) / (len(x) - 1)
            return low - margin, high + margin
        low, high = (torch.as_tensor(end, dtype=torch.float64, device=x.device) for end in self.box)
        if any(end.dim() > 1 or end.numel() not in (1, x.shape[1]) for end in (low, high)):
            raise ValueError(f"box: expected a number or {x.shape[1]} for low and for high, got {self.box!r}")
        low, high = low.expand(x.shape[1]).clone(), high.expand(x.shape[1]).clone()
        if not (low.to(x.dtype) < high.to(x.dtype)).all() or not (high - low).isfinite().all():
            raise ValueError(f"box: expected finite low below high, got {self.box!r}")
        # A point at an end of the box is within it, though the dtype of the points has rounded it.
        if outside := int(((x < low.to(x.dtype)) | (x > high.to(x.dtype))).any(1).sum()):
            raise ValueError(f"X: expected points within box, {outside} of {len(x)} rows are outside")
        return low, high

    def _largest_order(self, d: int) -> int:
        if self.max_order is not None:
            return int(self.max_order)
        orders = itertools.takewhile(lambda m: math.comb(m + d, d) <= _MOST_TERMS, range(1, _HIGHEST_ORDER + 1))
        return max(orders, default=1)

    def _log_density(self, x: Tensor) -> Tensor:
        inside = ((x >= self.low_) & (x <= self.high_)).all(1)
        u = torch.where(inside[:, None], self._in_unit_cube(x), 0.5)
        log_volume = self._width.log().sum() + math.log(self.integral_)
        return (self._series(u).clamp(min=self.floor).log() - log_volume).where(inside, -math.inf)

    @property
    def _width(self) -> Tensor:
        # Files of older versions have neither the sides nor the rest.
        return getattr(self, "width_", self.high_ - self.low_)

    def _in_unit_cube(self, x: Tensor) -> Tensor:
        return ((x - self.low_ - getattr(self, "low_rest_", 0)) / self._width).clamp(0, 1)

    def _series(self, u: Tensor) -> Tensor:
        chunks = u.split(self._rows_at_once(self.terms_))
        return torch.cat([cosines(rows, self.terms_) @ self.coefficients_ for rows in chunks])

    def _sample(self, n: int, generator: Generator | None) -> Tensor:
        """By rejection from the uniform density, under the bound `sum_a |theta_a| max |phi_a|`: exact."""
        bound = float((self.coefficients_.abs() * 2 ** (0.5 * (self.terms_ > 0).sum(1))).sum())
        drawn: list[Tensor] = []
        missing, d = n, len(self.low_)
        while missing > 0:
            proposals = min(math.ceil(1.1 * missing * bound / self.integral_) + 16, _CHUNK_NUMBERS)
            u = torch.rand(proposals, d + 1, generator=generator, dtype=self.low_.dtype, device=self.low_.device)
            accepted = u[:, d] * bound < self._series(u[:, :d]).clamp(min=self.floor)
            drawn.append(u[accepted, :d])
            missing -= len(drawn[-1])
        x = self.low_ + (torch.cat(drawn)[:n] * self._width + getattr(self, "low_rest_", 0))
        # Rounding must not put a sample outside of the box.
        return x.clamp(self.low_, self.high_)

    def _rows_at_once(self, terms: Tensor) -> int:
        return max(1, _CHUNK_NUMBERS // len(terms))


def _is_box(box: object) -> bool:
    try:
        low, high = box
        return all(np.asarray(end, dtype=np.float64).ndim < 2 for end in (low, high))
    except (TypeError, ValueError):
        return False


def risks_by_order(degrees: Tensor, theta: Tensor, squares: Tensor, n: int) -> Tensor:
    """The integral of `f^2` less twice the mean of f at each of n points by the others, for orders from 0.

    Args:
        degrees: of the terms, [T].
        theta: their means over the points, [T].
        squares: the means of their squares, [T].
    """
    risks = (2 * squares - (n + 1) * theta.square()) / (n - 1)
    return theta.new_zeros(int(degrees.max()) + 1).index_add_(0, degrees, risks).cumsum(0)


def terms_of_degree(d: int, order: int, device: torch.device) -> Tensor:
    """Indices [T, d] of the products of total degree up to `order`, `T = (order + d choose d)`."""
    # Stars and bars: d dividers among order + d places leave d + 1 gaps, of which the first d are the indices.
    dividers = torch.tensor(list(itertools.combinations(range(order + d), d)), device=device)
    return torch.diff(dividers, dim=1, prepend=dividers.new_full((len(dividers), 1), -1)) - 1


def cosines(u: Tensor, terms: Tensor) -> Tensor:
    """The basis functions [n, T] at points [n, d] of the unit cube: products of `phi_k(u)` over the axes."""
    tables = cosine_tables(u, int(terms.max()))
    values = tables[:, 0, terms[:, 0]]
    for axis in range(1, u.shape[1]):
        values = values * tables[:, axis, terms[:, axis]]
    return values


def cosine_tables(u: Tensor, order: int) -> Tensor:
    """`phi_0 = 1` and `phi_k(u) = sqrt(2) cos(pi k u)` for k up to `order`, of the shape of u and one axis more."""
    k = torch.arange(order + 1, dtype=u.dtype, device=u.device)
    # sqrt(1) for k = 0, sqrt(2) for the others.
    return (math.pi * k * u[..., None]).cos() * k.clamp(max=1).add(1).sqrt()


def integral_of_clipped(terms: Tensor, coefficients: Tensor, floor: float) -> float:
    """The integral of `max(sum_a coefficients_a phi_a, floor)` over the unit cube."""
    d = terms.shape[1]
    if d in _GRID:
        values = _on_grid(terms, coefficients, _GRID[d])
    else:
        sobol = torch.quasirandom.SobolEngine(d, scramble=True, seed=0)
        u = sobol.draw(_SOBOL_POINTS, dtype=coefficients.dtype).to(coefficients.device)
        values = torch.cat([cosines(rows, terms) @ coefficients for rows in u.split(2**12)])
    return values.clamp(min=floor).double().mean().item()


def _on_grid(terms: Tensor, coefficients: Tensor, steps: int) -> Tensor:
    """The series at the middles of `steps`^d cells: one small matrix product for each axis."""
    order = int(terms.max())
    middles = (torch.arange(steps, dtype=coefficients.dtype, device=coefficients.device) + 0.5) / steps
    table = cosine_tables(middles, order)
    values = coefficients.new_zeros((order + 1,) * terms.shape[1])
    values[tuple(terms.T)] = coefficients
    for _ in range(terms.shape[1]):
        # This removes the first axis, of coefficients, and appends an axis of values: after d turns all are values.
        values = torch.tensordot(values, table, dims=([0], [1]))
    return values
