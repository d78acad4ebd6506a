"""Counter-based random numbers (Philox 4x32-10): what every kernel draws, in plain PyTorch with integers in int64."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW_32 = 0xFFFFFFFF


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words for every 128-bit counter under a 64-bit key; all words are int64 in [0, 2^32).

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), section 3.3.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_32, (k1 + _KEY_STEPS[1]) & _LOW_32
    return c0, c1, c2, c3


def philox_uniform(index: Tensor, *, seed: int, offset: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four uniform numbers for every index: float64, the middles `(word + 1/2) / 2^32` of 2^32 equal parts of (0, 1).

    The counter is (index, offset) and the key is the seed, 64 bits each, low half first. So numbers depend on the index
    alone, never on the shape, the device or the number of threads, and every (seed, offset) is a stream of its own.
    """
    offset_words = (torch.full_like(index, offset & _LOW_32), torch.full_like(index, offset >> 32))
    words = philox((index & _LOW_32, index >> 32, *offset_words), (seed & _LOW_32, seed >> 32))
    w0, w1, w2, w3 = ((word.double() + 0.5) * 2.0**-32 for word in words)
    return w0, w1, w2, w3


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of 32-bit numbers; int64 cannot hold it, so `b` comes in halves of 16 bits."""
    low = a * (b & 0xFFFF)
    middle = a * (b >> 16) + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
