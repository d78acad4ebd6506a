"""A transform run backwards."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.nn.frozen import Freezable


class Inverse(Freezable):
    """Swaps the directions of a transform: `forward` is its `inverse`, and `inverse` its `forward`.

    Around a `MaskedAutoregressive` this is an inverse autoregressive flow: sampling is one pass of the network.

    Args:
        transform: with `forward(x, context)` and `inverse(y, context)`, each with its log-determinant.

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
