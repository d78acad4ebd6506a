"""Examples changed by way of their latents: interpolation, arithmetic, attribute vectors."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from fastgen.models.preprocessing import quantize
from fastgen.nn.arguments import is_int

INTERPOLATIONS = ("linear", "spherical")


@runtime_checkable
class LatentSpace(Protocol):
    """The methods that drawing from a latent space needs of a model: a flow, an autoencoder, the generator of a GAN.

    A model that also has `encode(x, context)`, giving latents [batch, *latent_shape], can start from examples.
    """

    latent_shape: tuple[int, ...]
    num_classes: int | None

    def draw_latents(self, n: int, generator: Generator | None = None) -> Tensor:
        """Latents [n, *latent_shape] such as `sample` decodes."""
        ...

    def render(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The examples of latents, as `sample` gives them."""
        ...


class LatentManipulation:
    """The part of a model that moves examples in the space of their latents.

    The model has `latent_shape`, `decode(z, context)` and, but for `render`, `encode(x, context)`; a context is what
    its `log_prob` or its `loss` take, classes for one.

    Source: Kingma and Dhariwal, "Glow" (2018), section 6; Radford et al., "DCGAN" (2016), section 6.3.
    """

    @torch.no_grad()
    def render(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The examples of latents [batch, *latent_shape], as `sample` gives them: images as uint8 levels."""
        with self._evaluating():
            return self._presentable(self.decode(z, context))

    @torch.no_grad()
    def interpolate(
        self, a: Tensor, b: Tensor, steps: int, context: Tensor | None = None, *, how: str = "linear"
    ) -> Tensor:
        """Examples on the way from `a` to `b`, in equal steps between their latents.

        Args:
            a, b: data as in `encode`, [batch, *shape].
            steps: how many, both ends included; at least 2.
            context: as in `encode`, for both.
            how: `"linear"`, or `"spherical"` as in `latent_path`.

        Returns:
            [steps, batch, *shape]; uint8 levels where the model has `levels`.

        Source: Kingma and Dhariwal, "Glow" (2018), section 6, "Synthesis and interpolation".
        """
        if a.shape != b.shape:
            raise ValueError(f"b: expected the shape of a, {tuple(a.shape)}, got {tuple(b.shape)}")
        _check_path(steps, how)
        with self._evaluating():
            path = latent_path(self.encode(a, context), self.encode(b, context), steps, how)
            return torch.stack([self.render(z, context) for z in path])

    @torch.no_grad()
    def analogy(
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        contexts: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    ) -> Tensor:
        """`a` is to `b` as `c` is to what comes back: the example of `encode(b) - encode(a) + encode(c)`.

        Args:
            a, b, c: data as in `encode`, [batch, *shape].
            contexts: of each of the three; the result has that of `c`.

        Source: Radford et al., "DCGAN" (2016), section 6.3.2.
        """
        for name, x in (("b", b), ("c", c)):
            if x.shape != a.shape:
                raise ValueError(f"{name}: expected the shape of a, {tuple(a.shape)}, got {tuple(x.shape)}")
        with self._evaluating():
            za, zb, zc = (self.encode(x, context) for x, context in zip((a, b, c), contexts, strict=True))
            return self.render(zb - za + zc, contexts[2])

    @torch.no_grad()
    def attribute_vector(self, x: Tensor, attribute: Tensor, context: Tensor | None = None) -> Tensor:
        """The direction [*latent_shape] of an attribute: mean latent of the examples with it, less that of the others.

        Args:
            x: data as in `encode`.
            attribute: bool [batch].
            context: as in `encode`.

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
        """`x` moved by `alpha` times an attribute's `vector` [*latent_shape]: [batch, *shape], as `sample` gives."""
        if vector.shape != self.latent_shape:
            expected = ", ".join(map(str, self.latent_shape))
            raise ValueError(f"vector: expected [{expected}], got {tuple(vector.shape)}")
        with self._evaluating():
            return self.render(self.encode(x, context) + alpha * vector, context)

    def _presentable(self, x: Tensor) -> Tensor:
        """Converts the output of `decode` to that of `sample`: images as levels."""
        return x if self.levels is None else quantize(x, self.levels)


def latent_path(a: Tensor, b: Tensor, steps: int, how: str = "linear") -> Tensor:
    """Latents from `a` to `b` in equal steps: [steps, batch, ...].

    `"linear"` is `(1 - t) a + t b`. `"spherical"` is `sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b`, `w` the angle
    between them: all latents drawn from a normal density in many dimensions are about as long, those half way along a
    line are shorter. Where `a` and `b` point the same way or opposite ways the path is the line.

    Args:
        a, b: [batch, ...].
        steps: both ends included; at least 2.

    Raises:
        ValueError: fewer steps, shapes that differ, another `how`.

    Source: Shoemake, "Animating rotation with quaternion curves" (1985); White, "Sampling Generative Networks" (2016).
    """
    _check_path(steps, how)
    if a.shape != b.shape:
        raise ValueError(f"b: expected the shape of a, {tuple(a.shape)}, got {tuple(b.shape)}")
    times = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype).view(-1, *(1,) * a.dim())
    line = torch.lerp(a, b, times)
    if how == "linear":
        return line
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    lengths = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    cosine = ((flat_a * flat_b).sum(1) / lengths.clamp(min=torch.finfo(a.dtype).tiny)).clamp(-1, 1)
    angle = cosine.arccos().view(-1, *(1,) * (a.dim() - 1))
    sine = angle.sin()
    arc = (((1 - times) * angle).sin() * a + (times * angle).sin() * b) / sine
    return torch.where(sine.abs() > 1e-4, arc, line)


def latent_map(codes: Tensor, resolution: int) -> Tensor:
    """A square of latents [resolution^2, ...] in a plane, row by row from the top, for a picture of what they become.

    The plane lies through the mean of `codes` along the two directions in which they vary most (the whole space where
    latents have two numbers). Along each, the latents stand at the quantiles `(i + 1/2) / resolution` of a normal
    density with the mean and the variance of the codes.

    Args:
        codes: latents of data, or drawn ones, [n, ...], n at least 3.
        resolution: latents along a side.

    Raises:
        ValueError: fewer codes, latents of one number, no positive resolution.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), figure 4.
    """
    if not is_int(resolution) or resolution < 1:
        raise ValueError(f"resolution: expected a positive int, got {resolution!r}")
    mean, axes = latent_plane(codes)
    quantiles = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    places = (math.sqrt(2) * torch.erfinv(2 * quantiles - 1)).to(codes)
    grid = torch.stack([places.expand(resolution, -1), places.flip(0)[:, None].expand(-1, resolution)], -1)
    return (mean + grid.view(-1, 2) @ axes).view(-1, *codes.shape[1:])


def latent_plane(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] of codes [n, ..., d numbers in all], and two directions [2, d] as long as the codes deviate along them.

    They are the two first principal components; of codes of two numbers, the axes.
    """
    flat = codes.flatten(1)
    if len(flat) < 3 or flat.shape[1] < 2:
        raise ValueError(f"codes: expected at least 3 of at least 2 numbers each, got {tuple(codes.shape)}")
    mean = flat.mean(0)
    if flat.shape[1] == 2:
        return mean, torch.diag(flat.std(0))
    _, lengths, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    return mean, directions[:2] * (lengths[:2] / math.sqrt(len(flat) - 1))[:, None]


def _check_path(steps: int, how: str) -> None:
    if not is_int(steps) or steps < 2:
        raise ValueError(f"steps: expected an int of at least 2, got {steps!r}")
    if how not in INTERPOLATIONS:
        raise ValueError(f"how: expected 'linear' or 'spherical', got {how!r}")
