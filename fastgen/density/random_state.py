"""The random numbers of an estimator: the caller's seed or generator, the number of samples, draws by weight."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from fastgen.nn.arguments import is_int, positive

RandomState = int | Generator | np.random.RandomState | np.random.Generator | None


def as_generator(random_state: RandomState, device: torch.device) -> Generator | None:
    """A generator on `device`: seeded by an int or by a draw of NumPy's, the caller's own, or None for PyTorch's.

    Raises:
        TypeError: something else, or a generator of another device.
    """
    if random_state is None:
        return None
    if isinstance(random_state, Generator):
        if random_state.device.type != device.type:
            raise TypeError(f"random_state: expected a generator on {device.type}, got one on {random_state.device}")
        return random_state
    if isinstance(random_state, np.random.RandomState):
        random_state = random_state.randint(2**31)
    elif isinstance(random_state, np.random.Generator):
        random_state = random_state.integers(2**31)
    if is_int(random_state):
        return Generator(device).manual_seed(int(random_state))
    raise TypeError(
        f"random_state: expected an int, a generator of PyTorch or NumPy, or None, got {type(random_state).__name__}"
    )


def number_of_samples(n: int | None, n_samples: int | None) -> int:
    """The number of samples by our name or scikit-learn's; 1 where neither is given.

    Raises:
        ValueError: both are given, or the number is not a positive int.
    """
    if n is not None and n_samples is not None:
        raise ValueError(f"n_samples: it is another name of n, expected one of them, got {n!r} and {n_samples!r}")
    number = n if n_samples is None else n_samples
    number = 1 if number is None else number
    positive(n=number)
    return int(number)


def draw(weights: Tensor, n: int, generator: Generator | None) -> Tensor:
    """`n` indices [n] with probabilities in proportion to non-negative `weights` [K].

    `torch.multinomial` stops at 2^24 categories and sums in float32: this inverts the cumulative sum, in float64.
    """
    cumulative = weights.double().cumsum(0)
    # A uniform number below 1, times the total, may round up to the total: that draws the last positive weight.
    last = int(weights.nonzero()[-1])
    level = torch.rand(n, generator=generator, dtype=torch.float64, device=weights.device) * cumulative[-1]
    return torch.searchsorted(cumulative, level, right=True).clamp_(max=last)
