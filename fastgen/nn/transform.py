"""Parts of flows' transforms: log-determinants that are the same for every example, and a transform run backwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.frozen import Freezable


class Inverse(Freezable):
    """Swaps the directions of a transform: `forward` is its `inverse`, and `inverse` its `forward`.

    Around a `MaskedAutoregressive` this is an inverse autoregressive flow: sampling is one pass of the network.

    Args:
        transform: with `forward(x, context)` and `inverse(y, context)`, each with its log-determinant.

    Shape: that of the transform; logabsdet [batch], nats, of the direction run.

    Raises:
        TypeError: a module without `inverse`.

    Source: Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow" (2016), section 3.
    """

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        if not callable(getattr(transform, "inverse", None)):
            raise TypeError(f"transform: expected a module with an inverse, got {type(transform).__name__}")
        self.transform = transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform(y, context)


def zero_logabsdet(x: Tensor) -> Tensor:
    """The log-determinant of a transform that keeps volumes: zeros, [batch], in at least float32."""
    return x.new_zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))


def constant_logabsdet(value: Tensor, x: Tensor) -> Tensor:
    """The log-determinant of a transform whose Jacobian does not depend on `x`: `value` (a scalar, nats) for each
    example, [batch], in at least float32.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, value.dtype), torch.float32)
    # A tensor of its own and no expanded view, so that it can be added to in place.
    return value.to(dtype).repeat(x.shape[0])
