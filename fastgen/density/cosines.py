"""The cosine basis of [0, 1]^d."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

# Points per axis of the grid that integrates, by the number of dimensions; Sobol points beyond.
_GRID = {1: 2**14, 2: 2**10, 3: 2**7}
_SOBOL_POINTS = 2**15


def terms_of_degree(d: int, order: int, device: torch.device) -> Tensor:
    """Indices [T, d] of the products of total degree up to `order`, `T = (order + d choose d)`."""
    # A bar among stars: d dividers among order + d places leave d + 1 gaps, the last of them unused.
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
        # Takes the first axis of coefficients, gives the last axis of values: after d turns all are done, in order.
        values = torch.tensordot(values, table, dims=([0], [1]))
    return values
