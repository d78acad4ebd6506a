"""Differentiable augmentation: what the discriminator sees of real and of generated images is changed in the same way.

With few examples a discriminator learns them by heart; one that never sees them twice alike cannot. The generator's
gradient passes through, so that it is not taught to draw what is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fastgen.nn.arguments import plain_numbers
from fastgen.nn.module_state import RunningAverages

# How far images are moved, and how much of their side is cut out; Zhao et al. (2020), section 3.2.
_MOVED, _CUT = 1 / 8, 1 / 2


class Augment(RunningAverages):
    """Changes each image by each of `policies` with a probability, which may adapt itself to overfitting.

    Args:
        policies: some of `POLICIES`, or their names with commas between them, in the order in which they act.
        probability: of each, for each image, at the start.
        target: of `r_t = E sign D(real)`. Where it is given the probability moves so that this is held: real images
            that the discriminator is too sure of call for more. None leaves the probability as it is.
        kimg: thousands of images in which the probability would go from 0 to 1.

    Shape: images [batch, channels, height, width], both ways.

    Raises:
        ValueError: another policy, a probability outside [0, 1], a target outside (-1, 1).

    Source: Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training" (2020), for the policies; Karras
    et al., "Training Generative Adversarial Networks with Limited Data" (2020), section 3, for the probability.
    """

    averages: ClassVar[tuple[str, ...]] = ("probability",)

    @plain_numbers
    def __init__(
        self,
        policies: str | Sequence[str],
        *,
        probability: float = 1.0,
        target: float | None = None,
        kimg: float = 500.0,
    ) -> None:
        super().__init__()
        names = [name.strip() for name in policies.split(",")] if isinstance(policies, str) else list(policies)
        self.policies = tuple(name for name in names if name)
        for name in self.policies:
            if name not in POLICIES:
                raise ValueError(f"augment: expected some of {', '.join(POLICIES)}, got {name!r}")
        if not 0 <= probability <= 1:
            raise ValueError(f"augment_probability: expected a number in [0, 1], got {probability!r}")
        if target is not None and not -1 < target < 1:
            raise ValueError(f"augment_target: expected a number between -1 and 1, or None, got {target!r}")
        self.target, self.kimg = target, kimg
        # In checkpoints: a resumed run goes on with the probability it had.
        self.register_buffer("probability", torch.tensor(float(probability)))

    def forward(self, images: Tensor) -> Tensor:
        for name in self.policies:
            chosen = torch.rand(images.shape[0], 1, 1, 1, device=images.device) < self.probability
            images = torch.where(chosen, POLICIES[name](images), images)
        return images

    @torch.no_grad()
    def adapt(self, real_outputs: Tensor) -> None:
        """Moves the probability by what the discriminator said of real images, [batch]."""
        if self.target is None:
            return
        direction = (real_outputs.sign().mean() - self.target).sign()
        self.probability.add_(direction * (len(real_outputs) / (self.kimg * 1000))).clamp_(0, 1)


def brightness(images: Tensor) -> Tensor:
    """Adds one number from [-1/2, 1/2] to an image."""
    return images + (_uniform(images) - 0.5)


def saturation(images: Tensor) -> Tensor:
    """Scales the distance of the colours from their mean by a number from [0, 2]."""
    mean = images.mean(1, keepdim=True)
    return mean + (images - mean) * (2 * _uniform(images))


def contrast(images: Tensor) -> Tensor:
    """Scales the distance of all values from their mean by a number from [1/2, 3/2]."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (_uniform(images) + 0.5)


def translation(images: Tensor) -> Tensor:
    """Moves an image by up to an eighth of its side, but at least one pixel, each way; 0 comes in from outside."""
    n, _, height, width = images.shape
    rows, columns = (
        torch.arange(side, device=images.device).view(shape) + _whole(n, max(1, round(side * _MOVED)), images.device)
        for side, shape in ((height, (1, -1, 1)), (width, (1, 1, -1)))
    )
    inside = ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)).unsqueeze(1)
    index = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).view(n, 1, -1)
    moved = images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view_as(images)
    return moved * inside


def cutout(images: Tensor) -> Tensor:
    """Sets a square of half the side to 0, its middle anywhere in the image."""
    n, _, height, width = images.shape
    outside = torch.zeros(n, height, width, dtype=torch.bool, device=images.device)
    for side, shape in ((height, (1, -1, 1)), (width, (1, 1, -1))):
        cut = max(1, round(side * _CUT))
        first = torch.randint(1 - cut // 2, side - cut // 2 + 1, (n, 1, 1), device=images.device)
        place = torch.arange(side, device=images.device).view(shape)
        outside = outside | (place < first) | (place >= first + cut)
    return images * outside.unsqueeze(1)


def flip(images: Tensor) -> Tensor:
    """Mirrors left and right. Not for digits."""
    return images.flip(3)


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": brightness,
    "saturation": saturation,
    "contrast": contrast,
    "translation": translation,
    "cutout": cutout,
    "flip": flip,
}


def _uniform(images: Tensor) -> Tensor:
    """A number from [0, 1) for each image, [batch, 1, 1, 1]."""
    return torch.rand(images.shape[0], 1, 1, 1, device=images.device, dtype=images.dtype)


def _whole(n: int, most: int, device: torch.device) -> Tensor:
    """Whole numbers from -most to most, [n, 1, 1]."""
    return torch.randint(-most, most + 1, (n, 1, 1), device=device)
