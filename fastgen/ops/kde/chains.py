"""Bandwidths in chains, each with 1 / h^2 twice that of the one before: of a chain only the first takes an exponential,
the others are its squares. A geometric grid of ratio 2^(1 / 2 k) is k chains.
"""

from __future__ import annotations

import torch
from torch import Tensor

# How far from 2 the ratio of two 1 / h^2 may be, relatively: less than float32 rounds a bandwidth to.
CLOSE = 3e-7


def chains_of(bandwidths: list[float], close: float) -> tuple[Tensor, list[int]]:
    """The bandwidths chain by chain, [S] in float64: 1 / h^2 where one starts a chain, zero where it has twice that of
    the one before. And for each bandwidth its place among them.
    """
    ascending = sorted(range(len(bandwidths)), key=lambda i: -bandwidths[i])
    chains: list[list[int]] = []
    for i in ascending:
        for chain in chains:
            # Measured from the chain's first, so that what is off does not add up.
            expected = bandwidths[chain[0]] ** -2 * 2 ** len(chain)
            if abs(bandwidths[i] ** -2 - expected) <= close * expected:
                chain.append(i)
                break
        else:
            chains.append([i])
    place = {i: at for at, i in enumerate(i for chain in chains for i in chain)}
    starts = [0.0 if k else bandwidths[i] ** -2 for chain in chains for k, i in enumerate(chain)]
    return torch.tensor(starts, dtype=torch.float64), [place[i] for i in range(len(bandwidths))]
