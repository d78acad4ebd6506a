"""Counter-based random numbers (Philox 4x32-10): what every kernel draws, in plain PyTorch with integers in int64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW_32 = 0xFFFFFFFF


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
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


def philox_normal(
    shape: Sequence[int], *, seed: int | Tensor, offset: int, device: torch.device | None = None
) -> Tensor:
    """Normal numbers, float32, whose bits are the same on every backend.

    Flat element `64 b + 16 j + l` is number `j` of the four that the counter (16 b + l, offset) gives: a word for the
    radius and a word for the angle make two of them (Box and Muller 1958). The radius has 31 bits, so the largest
    magnitude is 6.66. Every multiplication and addition rounds by itself.
    """
    count = math.prod(shape)
    index = torch.arange((count + 63) // 64 * 16, device=device)
    offset_words = (torch.full_like(index, offset & _LOW_32), torch.full_like(index, offset >> 32))
    w0, w1, w2, w3 = philox((index & _LOW_32, index >> 32, *offset_words), (seed & _LOW_32, seed >> 32))
    normals = torch.stack([*_normal_pair(w0, w1), *_normal_pair(w2, w3)])
    return normals.view(4, -1, 16).transpose(0, 1).reshape(-1)[:count].view(shape)


def _normal_pair(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    uniform = (radius_word >> 1).float() * 2.0**-31 + 2.0**-32
    # PyTorch's float32 square root is not always correctly rounded; that of float64, rounded to float32, is.
    radius = (_log(uniform) * -2.0).double().sqrt().float()
    # The upper two bits are the quadrant of the angle, the next 24 its place within the quadrant.
    g = (((angle_word & 0x3FFFFFFF) >> 6).float() * 2.0**-24 - 0.5) * 1.57079632679
    z = g * g
    sine = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z + -1.6666654611e-1) * z * g + g
    cosine = ((z * 2.443315711809948e-5 + -1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - z * 0.5 + 1.0
    odd = (angle_word >> 30) % 2 == 1
    radius = torch.where(angle_word >> 31 == 1, -radius, radius)
    return radius * torch.where(odd, -sine, cosine), radius * torch.where(odd, cosine, sine)


def _log(x: Tensor) -> Tensor:
    """The logarithm of float32 numbers in (0, 1], by the polynomial of `csrc/math/log.h`."""
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    m, e = (bits - (exponent << 23)).view(torch.float32) - 1.0, exponent.float()
    z = m * m
    p = m * 7.0376836292e-2 + -1.1514610310e-1
    for coefficient in _LOG_SERIES:
        p = p * m + coefficient
    y = p * m * z + e * -2.12194440e-4 - z * 0.5
    return m + y + e * 0.693359375


_LOG_SERIES = (
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of 32-bit numbers; int64 cannot hold it, so `b` comes in halves of 16 bits."""
    low = a * (b & 0xFFFF)
    middle = a * (b >> 16) + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
