"""Features without a network."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.metrics.features.images import unit_images


class Pixels(nn.Module):
    """The pixels themselves, in [0, 1]: [B, C, H, W] to [B, C H W]."""

    def forward(self, images: Tensor) -> Tensor:
        return unit_images(images).flatten(1)


class Given(nn.Module):
    """Rows that are features already: [B, d] to themselves.

    Raises:
        ValueError: another shape.
    """

    def forward(self, features: Tensor) -> Tensor:
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] == 0:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"features: expected rows [B, d], got {got}")
        return features if features.is_floating_point() else features.double()

    def logits(self, logits: Tensor) -> Tensor:
        """The rows as logits [B, classes]."""
        return self(logits)
