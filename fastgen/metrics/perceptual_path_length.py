"""Perceptual path length, under any distance of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgen.metrics.arguments import seed_of
from fastgen.metrics.metric import Metric


def lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The point at `t` [B] of the straight line from `a` to `b`, both [B, d]."""
    return torch.lerp(a, b, t[:, None])


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The point at `t` [B] of the great circle through the directions of `a` and `b`, both [B, d]: of unit length.

    Source: Shoemake, "Animating Rotation with Quaternion Curves" (1985), section 3.3.
    """
    a, b = (v / v.norm(dim=1, keepdim=True) for v in (a, b))
    # From the sine and cosine of half the angle: an arc cosine loses all digits of small angles.
    angle = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))[:, None]
    t = t[:, None]
    # Directions that are nearly equal are joined by a straight line; opposite ones are not on one great circle.
    small = angle.sin() < 1e-6
    safe = torch.where(small, torch.ones_like(angle), angle)
    path = (((1 - t) * safe).sin() * a + (t * safe).sin() * b) / safe.sin()
    path = torch.where(small, torch.lerp(a, b, t), path)
    return path / path.norm(dim=1, keepdim=True)


INTERPOLATIONS = {"lerp": lerp, "slerp": slerp}


class PerceptualPathLength(Metric):
    """How far images move while the latent moves a little, on average over paths:

        PPL = E[ d(G(z(t)), G(z(t + eps))) / eps^2 ],    z(t) the interpolation between two latents

    without the distances below and above two quantiles. The distance is the caller's; none is included.

    Args:
        distance: of two batches of images, to [B]; one that grows like the square of a small displacement (LPIPS, a
            mean squared difference of features), else `eps` does not cancel.
        interpolation: "slerp" on the sphere, for Gaussian latents, or "lerp" for others.
        epsilon: how far the latent moves.
        quantiles: distances below the first and above the second are left out.
        seed: of the places `t`, in order of the updates.
        full: places along the whole path; False takes t = 0.
        kwargs: torchmetrics' own.

    Raises:
        TypeError: `distance` cannot be called.
        ValueError: other arguments out of range; on computing, fewer than 2 paths.

    Source: Karras et al., "A Style-Based Generator Architecture for Generative Adversarial Networks" (2019), section
    4.1 and equation 2 (the paper alone).
    """

    is_differentiable = False
    higher_is_better = False

    def __init__(
        self,
        distance: Callable[[Tensor, Tensor], Tensor],
        *,
        interpolation: str = "slerp",
        epsilon: float = 1e-4,
        quantiles: tuple[float, float] = (0.01, 0.99),
        full: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not callable(distance):
            raise TypeError(f"distance: expected a function of two batches of images, got {type(distance).__name__}")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation: expected one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon: expected a number between 0 and 1, got {epsilon!r}")
        low, high = quantiles
        if not 0 <= low < high <= 1:
            raise ValueError(f"quantiles: expected two rising numbers from 0 to 1, got {quantiles!r}")
        self.distance, self.full, self.seed = distance, bool(full), seed_of(seed)
        self.epsilon, self.quantiles = float(epsilon), (float(low), float(high))
        self.path = INTERPOLATIONS[interpolation]
        # The generator's state, before the next update.
        self.random = torch.Generator().manual_seed(self.seed).get_state()
        self.add_state("distances", default=[], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, generate: Callable[[Tensor], Tensor], start: Tensor, end: Tensor) -> None:
        """Take in paths.

        Args:
            generate: from latents [B, d] to images, deterministic. It gets float32, or float64 where the
                ends are: latents in half precision do not tell the two ends of a small step apart.
            start, end: the ends of the paths, [B, d]; float64 keeps the digits of a small step best.

        Raises:
            ValueError: shapes that differ, a distance that gives other than [B] numbers that are finite.
        """
        if start.dim() != 2 or start.shape != end.shape or not start.is_floating_point():
            raise ValueError(f"start, end: expected one shape [B, d], got {tuple(start.shape)} and {tuple(end.shape)}")
        if not len(start):
            return
        generator = torch.Generator()
        generator.set_state(self.random)
        t = torch.zeros(len(start), dtype=torch.float64)
        if self.full:
            t = torch.rand(len(start), generator=generator, dtype=torch.float64)
        t = t.to(start.device)
        dtype, ends = torch.promote_types(start.dtype, torch.float32), (start.double(), end.double())
        images = [generate(self.path(*ends, at).to(dtype)) for at in (t, t + self.epsilon)]
        found = self.distance(*images)
        if found.shape != (len(start),):
            raise ValueError(f"distance: expected [{len(start)}], got {tuple(found.shape)}")
        if bad := int((~found.isfinite()).sum()):
            raise ValueError(f"distance: {bad} of {len(found)} are NaN or infinite")
        self.keep("distances", found.double() / self.epsilon**2)
        self.random = generator.get_state()

    def compute(self) -> Tensor:
        """The mean over the paths that are kept."""
        found = self.rows("distances")
        self.check_enough(len(found), 2, "paths")
        found = found.sort().values
        # The ranks of the kept distances: nearest to the quantiles, on their inner side.
        low, high = (q * (len(found) - 1) for q in self.quantiles)
        return found[math.ceil(low - 1e-9) : math.floor(high + 1e-9) + 1].mean()

    def reset(self) -> None:
        super().reset()
        self.random = torch.Generator().manual_seed(self.seed).get_state()
