"""What can be done to examples by way of their noise: interpolation, attribute vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.models.dequantization import quantize


class LatentManipulation:
    """The part of a `Flow` that moves examples in the space of their noise.

    Source: Kingma and Dhariwal, "Glow" (2018), section 6.
    """

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int, context: Tensor | None = None) -> Tensor:
        """Examples on the way from `a` to `b`, in equal steps along the line between their noises.

        Args:
            a, b: data as in `encode`, [batch, *shape].
            steps: how many, both ends included; at least 2.
            context: as in `log_prob`, for both.

        Returns:
            [steps, batch, *shape]; uint8 levels where the model has `levels`.

        Source: Kingma and Dhariwal, "Glow" (2018), section 6, "Synthesis and interpolation".
        """
        if not isinstance(steps, int) or steps < 2:
            raise ValueError(f"steps: expected an int of at least 2, got {steps!r}")
        if a.shape != b.shape:
            raise ValueError(f"b: expected the shape of a, {tuple(a.shape)}, got {tuple(b.shape)}")
        with self._evaluating():
            start, end = self.encode(a, context), self.encode(b, context)
            weights = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)
            path = torch.lerp(start, end, weights[:, None, None])
            return torch.stack([self._presentable(self.decode(z, context)) for z in path])

    @torch.no_grad()
    def attribute_vector(self, x: Tensor, attribute: Tensor, context: Tensor | None = None) -> Tensor:
        """The direction [prod(shape)] of an attribute: mean noise of the examples with it, less that of the others.

        Args:
            x: data as in `encode`.
            attribute: bool [batch].
            context: as in `log_prob`.

        Raises:
            ValueError: `attribute` of another shape or dtype, or the same for all examples.

        Source: Kingma and Dhariwal, "Glow" (2018), section 6, "Semantic manipulation".
        """
        if attribute.shape != (len(x),) or attribute.dtype != torch.bool:
            raise ValueError(
                f"attribute: expected a bool tensor [{len(x)}], got {attribute.dtype} {tuple(attribute.shape)}"
            )
        if attribute.all() or not attribute.any():
            raise ValueError("attribute: expected examples with it and examples without, got one kind alone")
        with self._evaluating():
            z = self.encode(x, context)
        return z[attribute].mean(0) - z[~attribute].mean(0)

    @torch.no_grad()
    def manipulate(self, x: Tensor, vector: Tensor, alpha: float = 1.0, context: Tensor | None = None) -> Tensor:
        """`x` moved by `alpha` times an attribute's `vector` [prod(shape)] in noise: [batch, *shape], as `sample`."""
        if vector.shape != (self.features,):
            raise ValueError(f"vector: expected [{self.features}], got {tuple(vector.shape)}")
        with self._evaluating():
            return self._presentable(self.decode(self.encode(x, context) + alpha * vector, context))

    def _presentable(self, x: Tensor) -> Tensor:
        """Data as `sample` gives them: images as levels."""
        return x if self.levels is None else quantize(x, self.levels)
