"""StyleGAN2 (2020) at small resolutions, after its papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from fastgen.gan import path_lengths
from fastgen.models.adversarial import AdversarialModel, check_image_arguments, halvings
from fastgen.nn.arguments import is_number, pair, positive
from fastgen.nn.module_state import RunningAverages
from fastgen.nn.stylegan import TAPS, EqualizedConv2d, EqualizedLinear, Resample2d, StyledConv2d, ToImage
from fastgen.ops import minibatch_stddev, pixel_norm

# Decay of the running means of styles and of path lengths.
_STYLE_DECAY, _PATH_DECAY = 0.995, 0.99
# Images of a group whose standard deviation the discriminator sees.
_GROUP = 4
_MAPPING_LR = 0.01
# Activations of the last layer.
OUTPUTS = ("linear", "tanh")


class StyleGAN2(RunningAverages, AdversarialModel):
    """A network that maps noise to styles, a generator that styles modulate layer by layer, a residual discriminator.

    Args:
        image_size: an int, or `(height, width)`; halved down to at least 4 pixels.
        image_channels: colours.
        levels: values of a colour, 2 to 256.
        num_classes: labels are 0 to `num_classes - 1`; unconditional where None. The mapping takes them beside the
            noise, the discriminator by projection.
        latent_size: noise variables.
        style_size: numbers of a style.
        mapping_layers: of the mapping network.
        channels: of the layers at the full resolution, doubled at each halving.
        max_channels: that there are at most.
        output: `"linear"` as in the paper, or `"tanh"`, which can keep to the ends of the range where much of an image
            is exactly black or white; of the pixels.
        style_mixing: share of images in training with two styles, one up to a layer drawn at random and one from there
            on.
        path_length: weight of the path-length penalty, `E (|J_w^T y| - a)^2` with `a` the running mean of the lengths;
            0 for none.
        path_length_every: applied in every so-manieth generator step, times as strongly, on half of the batch.

    The other arguments are the game's rules, see `AdversarialModel`. `sample`'s truncation is that of styles here,
    `w' = mean + truncation (w - mean)`: 1 or None leaves them, 0 gives the mean style's one image.

    Raises:
        ValueError: an image that cannot be halved, sizes that are not positive, shares outside [0, 1], and what
            `AdversarialModel` raises.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), figure 2, section 3.2 and
    appendix B; "A Style-Based Generator Architecture for Generative Adversarial Networks" (2019), sections 2 and 3.1
    and appendix B, for the mapping, mixing and truncation.
    """

    averages: ClassVar[tuple[str, ...]] = ("path_mean",)

    # Karras et al. (2019), appendix C: Adam without momentum.
    recipe: ClassVar = {"lr": 2e-3, "betas": (0.0, 0.99)}
    presets: ClassVar = {
        "digits": {
            **{"latent_size": 64, "style_size": 64, "mapping_layers": 4, "channels": 32, "max_channels": 64},
            # Half of a digit is exactly black. At this size mixing and path lengths cost more than they give.
            **{"output": "tanh", "style_mixing": 0.0, "path_length": 0.0, "r1": 1.0, "augment": "translation"},
            **{"epochs": 80, "batch_size": 32, "ema_decay": 0.998},
        }
    }

    def __init__(
        self,
        image_size: int | Sequence[int] = 64,
        image_channels: int = 3,
        levels: int = 256,
        *,
        num_classes: int | None = None,
        latent_size: int = 512,
        style_size: int = 512,
        mapping_layers: int = 8,
        channels: int = 32,
        max_channels: int = 512,
        output: str = "linear",
        style_mixing: float = 0.9,
        path_length: float = 2.0,
        path_length_every: int = 4,
        r1: float = 10.0,
        regularize_every: int = 16,
        **rules: Any,
    ) -> None:
        check_image_arguments(image_size, image_channels, levels)
        positive(latent_size=latent_size, style_size=style_size, mapping_layers=mapping_layers)
        positive(channels=channels, max_channels=max_channels, path_length_every=path_length_every)
        if num_classes is not None:
            positive(num_classes=num_classes)
        if output not in OUTPUTS:
            raise ValueError(f"output: expected one of {', '.join(OUTPUTS)}, got {output!r}")
        if not 0 <= style_mixing <= 1:
            raise ValueError(f"style_mixing: expected a share in [0, 1], got {style_mixing!r}")
        if not 0 <= path_length < math.inf:
            raise ValueError(f"path_length: expected a number of at least 0, got {path_length!r}")
        if path_length == 0:
            self.without_effect("with path_length=0", "path_length_every")
        stages = halvings(image_size)
        if stages == 0:
            raise ValueError(f"image_size: expected sides that can be halved to 4 or more, got {image_size!r}")
        height, width = pair("image_size", image_size)
        # From the inner end outwards.
        sizes = [(height >> stage, width >> stage) for stage in range(stages, -1, -1)]
        widths = [min(channels << stage, max_channels) for stage in range(stages, -1, -1)]
        mapping = MappingNetwork(latent_size, style_size, mapping_layers, num_classes)
        super().__init__(
            StyleGenerator(mapping, sizes, widths, image_channels, style_mixing, output),
            StyleDiscriminator(sizes[::-1], widths[::-1], image_channels, num_classes),
            (image_channels, height, width),
            levels,
            **{"num_classes": num_classes, "latent_size": latent_size, "r1": r1},
            **{"regularize_every": regularize_every, **rules},
        )
        self.path_length, self.path_length_every = path_length, path_length_every
        self.register_buffer("path_mean", torch.zeros(()))

    def regularizes(self, player: str, update: int) -> bool:
        if player == "generator":
            return update % self.path_length_every == 0
        return super().regularizes(player, update)

    def generator_loss(
        self, n: int, labels: Tensor | None, *, regularize: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, told = super().generator_loss(n, labels)
        if not (regularize and self.path_length):
            return loss, told
        half = max(1, n // 2)
        penalty, lengths = self.path_length_penalty(half, None if labels is None else labels[:half])
        told |= {"path_length": lengths.detach().mean()}
        return loss + self.path_length_every * self.path_length * penalty, told

    def path_length_penalty(self, n: int, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """`E (|J_w^T y| - a)^2` of `n` images, and the lengths [n]; moves `a` towards them."""
        with torch.enable_grad():
            styles = self.generator.styles(self.latents(n), labels)
            lengths = path_lengths(styles, self.generator.synthesize(styles))
        if self.training:
            self.path_mean.lerp_(lengths.detach().mean().to(self.path_mean.dtype), 1 - _PATH_DECAY)
        return (lengths - self.path_mean).square().mean(), lengths

    def draw(self, n: int, labels: Tensor | None, truncation: float | None, generator: Generator | None) -> Tensor:
        if truncation is not None and not (is_number(truncation) and math.isfinite(truncation)):
            raise ValueError(f"truncation: expected a finite number or None, got {truncation!r}")
        z = self.latents(n, generator)
        return self.generator.synthesize(self.generator.styles(z, labels, truncation))


class MappingNetwork(RunningAverages):
    """Noise [batch, latent_size] to styles [batch, style_size], with the running mean of the styles.

    Source: Karras et al. (2019), section 2 and appendix B and C.
    """

    averages: ClassVar[tuple[str, ...]] = ("mean",)

    def __init__(self, latent_size: int, style_size: int, layers: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, latent_size)
        sizes = [latent_size * (1 if num_classes is None else 2)] + [style_size] * layers
        self.layers = nn.ModuleList(
            EqualizedLinear(size, style_size, "lrelu", lr_multiplier=_MAPPING_LR) for size in sizes[:-1]
        )
        self.register_buffer("mean", torch.zeros(style_size))

    def forward(self, z: Tensor, labels: Tensor | None = None, truncation: float | None = None) -> Tensor:
        w = pixel_norm(z)
        if self.embedding is not None:
            w = torch.cat([w, pixel_norm(self.embedding(labels))], 1)
        for layer in self.layers:
            w = layer(w)
        if self.training:
            self.mean.lerp_(w.detach().to(self.mean.dtype).mean(0), 1 - _STYLE_DECAY)
        return w if truncation is None else torch.lerp(self.mean.to(w.dtype), w, truncation)


class StyleGenerator(nn.Module):
    """Noise to images, by way of a style for each layer; an image is the sum of those of all resolutions.

    Args:
        mapping: noise to styles.
        sizes: heights and widths, from the inner end outwards; each twice the one before.
        widths: channels at each.
        image_channels: colours.
        style_mixing: share of images with two styles, in training.
        output: one of `OUTPUTS`.
    """

    def __init__(
        self,
        mapping: MappingNetwork,
        sizes: Sequence[tuple[int, int]],
        widths: Sequence[int],
        image_channels: int,
        style_mixing: float,
        output: str = "linear",
    ) -> None:
        super().__init__()
        style_size = len(mapping.mean)
        self.mapping, self.style_mixing, self.output = mapping, style_mixing, output
        self.start = nn.Parameter(torch.randn(1, widths[0], *sizes[0]))
        self.first = StyledConv2d(widths[0], widths[0], style_size, sizes[0])
        self.blocks = nn.ModuleList()
        self.images = nn.ModuleList([ToImage(widths[0], image_channels, style_size)])
        for inner, outer, size in zip(widths, widths[1:], sizes[1:], strict=False):
            up = StyledConv2d(inner, outer, style_size, size, up=2)
            self.blocks.append(nn.ModuleList([up, StyledConv2d(outer, outer, style_size, size)]))
            self.images.append(ToImage(outer, image_channels, style_size))
        # The image of the last resolution has its own style; the others share the style of the layer that follows.
        self.num_styles = 2 * len(sizes)
        self.upsample = Resample2d(up=2, taps=TAPS)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.synthesize(self.styles(z, labels))

    def styles(self, z: Tensor, labels: Tensor | None = None, truncation: float | None = None) -> Tensor:
        """A style for each layer, [batch, num_styles, style_size]; mixed in training."""
        w = self.mapping(z, labels, truncation).unsqueeze(1).expand(-1, self.num_styles, -1)
        if not (self.training and self.style_mixing):
            return w
        other = self.mapping(torch.randn_like(z), labels).unsqueeze(1)
        # Where it crosses over is drawn for each image; the first layer's style is always the first.
        crossing = torch.randint(1, self.num_styles, (z.shape[0], 1), device=z.device)
        mixed = torch.rand(z.shape[0], 1, device=z.device) < self.style_mixing
        later = (torch.arange(self.num_styles, device=z.device) >= crossing) & mixed
        return torch.where(later.unsqueeze(2), other, w)

    def synthesize(self, styles: Tensor) -> Tensor:
        """Images of styles [batch, num_styles, style_size]."""
        style = iter(styles.unbind(1))
        h = self.first(self.start.expand(styles.shape[0], -1, -1, -1), next(style))
        following = next(style)
        image = self.images[0](h, following)
        for (up, convolution), to_image in zip(self.blocks, self.images[1:], strict=True):
            h = convolution(up(h, following), next(style))
            following = next(style)
            image = self.upsample(image) + to_image(h, following)
        return image.tanh() if self.output == "tanh" else image


class StyleDiscriminator(nn.Module):
    """Images to outputs [batch], by residual blocks that halve them and the deviation within the batch.

    Args:
        sizes: heights and widths, from the image inwards; each half the one before.
        widths: channels at each.
        image_channels: colours.
        num_classes: of the projection; None without.

    Source: Karras et al. (2020), section 4.1 and figure 7; Karras et al. (2018), section 3, for the deviation.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        widths: Sequence[int],
        image_channels: int,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.from_image = EqualizedConv2d(image_channels, widths[0], 1)
        self.blocks = nn.ModuleList(ResidualDown(outer, inner) for outer, inner in pairwise(widths))
        features = widths[-1]
        self.convolution = EqualizedConv2d(features + 1, features)
        self.dense = EqualizedLinear(features * sizes[-1][0] * sizes[-1][1], features, "lrelu")
        self.last = EqualizedLinear(features, 1)
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, features)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.from_image(x)
        for block in self.blocks:
            h = block(h)
        group = max(size for size in range(1, _GROUP + 1) if x.shape[0] % size == 0)
        h = self.convolution(minibatch_stddev(h, group))
        h = self.dense(h.flatten(1))
        outputs = self.last(h).squeeze(1)
        if self.embedding is None:
            return outputs
        return outputs + (self.embedding(labels) * h).sum(1) / math.sqrt(h.shape[1])


class ResidualDown(nn.Module):
    """Two convolutions beside a shortcut, both halving the image; their sum has the variance of one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution_1 = EqualizedConv2d(in_channels, in_channels)
        self.convolution_2 = EqualizedConv2d(in_channels, out_channels, down=2)
        self.shortcut = EqualizedConv2d(in_channels, out_channels, 1, "linear", down=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        half = math.sqrt(0.5)
        return self.shortcut(x, half) + self.convolution_2(self.convolution_1(x), half)
