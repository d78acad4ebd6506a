"""Where the randomness of an estimator comes from."""

from __future__ import annotations

import torch
from torch import Generator


def as_generator(random_state: int | Generator | None, device: torch.device) -> Generator | None:
    """A generator on `device`: seeded by an int, the caller's own, or None for PyTorch's.

    Raises:
        TypeError: something else, or a generator of another device.
    """
    if random_state is None:
        return None
    if isinstance(random_state, Generator):
        if random_state.device.type != device.type:
            raise TypeError(f"random_state: expected a generator on {device.type}, got one on {random_state.device}")
        return random_state
    if isinstance(random_state, int) and not isinstance(random_state, bool):
        return Generator(device).manual_seed(random_state)
    raise TypeError(f"random_state: expected an int, a torch.Generator or None, got {type(random_state).__name__}")
