"""Permutations of features, between couplings that transform the same part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import floating, plain_numbers, positive
from fastgen.nn.transform import zero_logabsdet


class Permutation(nn.Module):
    """Put the features, or the channels of an image, into another order: `y[:, i] = x[:, permutation[i]]`.

    State-dict key `_permutation`, as nflows'.

    Args:
        permutation: the numbers 0 .. features - 1 in any order.
        dim: the dimension that is permuted.

    Shape: any with `features` in dimension `dim`; logabsdet [batch], zeros.

    Raises:
        TypeError: in `forward` and `inverse`, a dtype that is not floating.
        ValueError: not a permutation; in `forward` and `inverse`, another number of features.

    Source: Dinh et al., "NICE" (2015), section 3.2, for why couplings need one.
    """

    @plain_numbers
    def __init__(self, permutation: Tensor | Sequence[int], dim: int = 1) -> None:
        super().__init__()
        positive(dim=dim)
        permutation = torch.as_tensor(permutation)
        # On the meta device there are no numbers to look at: a checkpoint brings them.
        is_order = permutation.is_meta or sorted(permutation.flatten().tolist()) == list(range(len(permutation)))
        if permutation.dim() != 1 or not is_order:
            raise ValueError(f"permutation: expected the numbers 0 .. features - 1 in any order, got {permutation}")
        self.dim = dim
        self.register_buffer("_permutation", permutation.long())

    @property
    def permutation(self) -> Tensor:
        """Which feature of the input each feature of the output is, [features]."""
        return self._permutation

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._permute(x, self._permutation)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._permute(y, self._permutation.sort().indices)

    def _permute(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        floating(x)
        if x.dim() <= self.dim or x.shape[self.dim] != len(order):
            raise ValueError(f"x: expected {len(order)} features in dimension {self.dim}, got {tuple(x.shape)}")
        return x.index_select(self.dim, order), zero_logabsdet(x)

    def extra_repr(self) -> str:
        return f"features={len(self._permutation)}"


class ReversePermutation(Permutation):
    """Put the features in reverse order.

    Args:
        features: how many there are.
        dim: the dimension that is permuted.

    Shape, errors and source as of `Permutation`.
    """

    @plain_numbers
    def __init__(self, features: int, dim: int = 1) -> None:
        positive(features=features)
        super().__init__(torch.arange(features - 1, -1, -1), dim)


class RandomPermutation(Permutation):
    """Put the features in an order drawn once, at construction, from PyTorch's default generator.

    Args:
        features: how many there are.
        dim: the dimension that is permuted.

    Shape, errors and source as of `Permutation`.
    """

    @plain_numbers
    def __init__(self, features: int, dim: int = 1) -> None:
        positive(features=features)
        super().__init__(torch.randperm(features), dim)
