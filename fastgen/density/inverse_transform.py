"""Samples of any distribution by the inverse of its cumulative, found by bisection and Newton's method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.density.arrays import as_points
from fastgen.density.random_state import RandomState, as_generator, number_of_samples
from fastgen.nn.arguments import positive

Function = Callable[[Tensor], Tensor]

# Of the inversion: halvings before the first Newton step, which has to start near, and steps in all.
_HALVINGS, _STEPS = 12, 1000


class InverseTransform:
    """Samples `x = F^-1(u)`, u uniform on (0, 1), of a distribution given by its cumulative F.

    In several dimensions each is drawn in turn, by the cumulative of its conditional distribution given those before:
    `x_i = F_i^-1(u_i; x_1 ... x_{i-1})`. A cumulative with jumps or flat pieces has its generalised inverse
    `inf {x : F(x) >= u}`. All samples are inverted at once: about 60 calls of F, or 30 where the density helps.

    The distribution is the caller's, so there is nothing to fit or to save.

    Args:
        cdf: takes x, a tensor [n], to F(x), a tensor or a NumPy array [n] (SciPy's will do). For d dimensions, d such
            functions, the i-th of `(x [n], before [n, i])`.
        pdf: the derivatives of `cdf` in x, of the same arguments: for Newton's method and `score_samples`.
        support: `(low, high)`, outside of which the density is zero; may be infinite; for d dimensions, one pair for
            all or one for each.
        table_size: number of quantiles in a table that is made once. Levels between `1 / (2 table_size)` and one less
            that are interpolated in it, at others F is inverted. For a slow F, in one dimension.
        dtype: to compute in.
        device: to compute on.

    Raises:
        TypeError: `cdf` or `pdf` cannot be called.
        ValueError: another number of `pdf` or `support` than of `cdf`, a `table_size` in several dimensions; on
            sampling, an F with NaN, outside [0, 1], of another shape, or that does not reach a level.

    Source: Devroye, "Non-Uniform Random Variate Generation" (1986), sections II.2 and XI.1.
    """

    def __init__(
        self,
        cdf: Callable[..., Any] | Sequence[Callable[..., Any]],
        *,
        pdf: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        support: Sequence[float] | Sequence[Sequence[float]] = (-math.inf, math.inf),
        table_size: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self._cdfs = _functions("cdf", cdf)
        self._pdfs = None if pdf is None else _functions("pdf", pdf)
        if self._pdfs is not None and len(self._pdfs) != len(self._cdfs):
            raise ValueError(f"pdf: expected {len(self._cdfs)}, as many as cdf, got {len(self._pdfs)}")
        self._support = _pairs(support, len(self._cdfs))
        if table_size is not None:
            positive(table_size=table_size)
            if len(self._cdfs) > 1:
                raise ValueError("table_size: expected None in several dimensions, where no two samples share an F")
        self._dtype, self._device = dtype, torch.device(device)
        self._numpy = False
        self._table = None
        if table_size is not None:
            self._table = self.quantile((torch.arange(table_size, dtype=dtype) + 0.5) / table_size)

    @torch.no_grad()
    def quantile(self, levels: Any) -> Tensor:
        """`F^-1` of levels [n] in (0, 1), [n], for one dimension.

        Raises:
            ValueError: several dimensions, levels that are not in (0, 1), and as on sampling.
        """
        if len(self._cdfs) > 1:
            raise ValueError(f"levels: expected one dimension, where quantiles are numbers, this has {len(self._cdfs)}")
        levels = torch.as_tensor(levels, dtype=self._dtype, device=self._device)
        if levels.dim() != 1 or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"levels: expected [n] in (0, 1), got {tuple(levels.shape)} {levels.tolist()[:3]}")
        return self._invert(0, levels, ())

    @torch.no_grad()
    def sample(self, n: int | None = None, random_state: RandomState = None, *, n_samples: int | None = None) -> Any:
        """Points [n, d], a tensor, or an array where `cdf` gives arrays.

        Args:
            n: number of points; None for 1.
            random_state: a seed, a generator on the device or NumPy's, or None for PyTorch's own.
            n_samples: scikit-learn's name of `n`.

        Raises:
            TypeError: `random_state` is something else.
            ValueError: `n` is not a positive int; an F that is no cumulative.
        """
        n = number_of_samples(n, n_samples)
        generator = as_generator(random_state, self._device)
        columns: list[Tensor] = []
        for index in range(len(self._cdfs)):
            uniform = torch.rand(n, generator=generator, dtype=self._dtype, device=self._device)
            # A zero, once in 2^24 or 2^53 draws, would be at the end of the support.
            levels = uniform.clamp(min=torch.finfo(self._dtype).tiny)
            before = (torch.stack(columns, 1),) if columns else (levels.new_zeros(n, 0),) * (len(self._cdfs) > 1)
            columns.append(self._invert(index, levels, before) if self._table is None else self._look_up(levels))
        samples = torch.stack(columns, 1)
        return samples.cpu().numpy() if self._numpy else samples

    def score_samples(self, X: Any) -> Any:
        """`log p(x)` in nats [M] of points [M, d], the sum of the logarithms of `pdf`.

        Raises:
            TypeError, ValueError: as the estimators, and made without `pdf`.
        """
        if self._pdfs is None:
            raise ValueError("pdf: made without it, and there is no density")
        x, kind = as_points(X, features=len(self._cdfs), owner=type(self).__name__)
        x = x.to(self._dtype)
        log_density = torch.zeros(len(x), dtype=self._dtype, device=x.device)
        for index, pdf in enumerate(self._pdfs):
            before = (x[:, :index],) if len(self._pdfs) > 1 else ()
            log_density = log_density + self._call(pdf, x[:, index], before).log()
        return kind.restore(log_density)

    def _invert(self, index: int, levels: Tensor, before: tuple[Tensor, ...]) -> Tensor:
        def cdf(x: Tensor) -> Tensor:
            value = self._call(self._cdfs[index], x, before)
            rounding = 1e-6
            if not ((value >= -rounding) & (value <= 1 + rounding)).all():
                raise ValueError(f"cdf: expected values in [0, 1], got {value.min().item()} to {value.max().item()}")
            return value

        pdf = None if self._pdfs is None else lambda x: self._call(self._pdfs[index], x, before)
        low, high = (torch.full_like(levels, end) for end in self._support[index])
        return invert_cdf(cdf, levels, low, high, pdf)

    def _look_up(self, levels: Tensor) -> Tensor:
        size = len(self._table)
        place = levels * size - 0.5
        below = place.long().clamp(0, max(size - 2, 0))
        inside = (place >= 0) & (place <= size - 1)
        above = (below + 1).clamp(max=size - 1)
        x = torch.lerp(self._table[below], self._table[above], (place - below).clamp(0, 1))
        if not inside.all():
            x[~inside] = self._invert(0, levels[~inside], ())
        return x

    def _call(self, function: Callable[..., Any], x: Tensor, before: tuple[Tensor, ...]) -> Tensor:
        value = function(x, *before)
        self._numpy = isinstance(value, np.ndarray | np.generic)
        value = torch.as_tensor(value, dtype=self._dtype, device=self._device)
        if value.shape != x.shape:
            raise ValueError(f"cdf, pdf: expected a value for each x {tuple(x.shape)}, got {tuple(value.shape)}")
        return value


def invert_cdf(cdf: Function, levels: Tensor, low: Tensor, high: Tensor, pdf: Function | None = None) -> Tensor:
    """`inf {x : cdf(x) >= level}` for every level [n], to the resolution of the dtype.

    By bisection, and by Newton's method where there is a `pdf`. The search ends when its bracket has closed, and Newton
    steps give way to halvings after a while: a wrong or rough `pdf` costs time, never the answer.

    Args:
        cdf: never falls, [n] to [n], one function for each level.
        levels: [n], in (0, 1).
        low, high: [n], ends of the intervals with the answers; may be infinite.
        pdf: the derivative of `cdf`.

    Raises:
        ValueError: `cdf` does not reach a level.
    """
    low, high = _bracket(cdf, levels, low.clone(), high.clone())
    number = torch.finfo(levels.dtype)
    x = low + (high - low) / 2
    for step in range(_STEPS):
        value = cdf(x)
        below = value < levels
        low, high = torch.where(below, x, low), torch.where(below, high, x)
        middle = low + (high - low) / 2
        # Without a least width, a bracket around zero would be halved for ever.
        resolution = (number.eps * middle.abs()).clamp(min=number.tiny ** (1 / 3))
        closed = high - low <= 2 * resolution
        if closed.all():
            break
        x, before = middle, x
        if pdf is not None and step >= _HALVINGS:
            # The least length of a step grows fourfold each time. So the first step after convergence oversteps the
            # answer, by no more than the rounding of cdf, and closes the bracket; later steps leave the bracket.
            shortest = resolution * 4.0 ** (step - _HALVINGS)
            length = ((value - levels) / pdf(before)).abs().maximum(shortest)
            newton = torch.where(below, before + length, before - length)
            x = torch.where((newton > low) & (newton < high) & ~closed, newton, middle)
    return middle


def _bracket(cdf: Function, levels: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Ends with `cdf(low) < level <= cdf(high)`: finite ends as given, infinite ones found by doubling a distance."""
    open_low, open_high = low.isinf(), high.isinf()
    anchor = torch.where(open_low, torch.where(open_high, 0.0, high), low)
    reach = torch.ones_like(levels)
    low, high = torch.where(open_low, anchor - reach, low), torch.where(open_high, anchor + reach, high)
    while True:
        short_low = open_low & (cdf(low) >= levels)
        short_high = open_high & (cdf(high) < levels)
        if not (short_low | short_high).any():
            break
        reach = 2 * reach
        low = torch.where(short_low, anchor - reach, low)
        high = torch.where(short_high, anchor + reach, high)
        if reach.isinf().any():
            raise ValueError("cdf: expected to go from 0 to 1, it stays on one side of a level in between")
    if (cdf(high) < levels).any():
        raise ValueError("cdf: expected to reach 1 at the upper end of support")
    return low, high


def _functions(name: str, given: Any) -> list[Callable[..., Any]]:
    functions = list(given) if isinstance(given, Sequence) else [given]
    if not functions or not all(map(callable, functions)):
        raise TypeError(f"{name}: expected a function or a sequence of them, got {given!r}")
    return functions


def _pairs(support: Any, d: int) -> list[tuple[float, float]]:
    """The support of each of d dimensions."""
    one_for_all = isinstance(support, Sequence) and not any(isinstance(end, Sequence) for end in support)
    pairs = [support] * d if one_for_all else list(support)
    if len(pairs) != d or not all(len(pair) == 2 and pair[0] < pair[1] for pair in pairs):
        raise ValueError(f"support: expected (low, high) with low < high, or {d} such pairs, got {support!r}")
    return [(float(low), float(high)) for low, high in pairs]
