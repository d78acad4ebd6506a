"""Deep convolutional GANs (2016), and the Wasserstein GAN with gradient penalty (2017) on the same networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.adversarial import AdversarialModel, check_image_arguments, halvings
from fastgen.nn import BatchNormLeakyReLU, ConditionalBatchNorm, ProjectionHead
from fastgen.nn.arguments import is_int, pair, positive
from fastgen.ops import bias_act

# Standard deviation of the initial weights, and slope of the discriminator's rectifiers; Radford et al., section 4.
_STD, _SLOPE = 0.02, 0.2
# The widest layer is as many times wider than the narrowest.
_WIDEST = 8


class DCGAN(AdversarialModel):
    """Transposed convolutions from noise to images, strided ones from images to a number, batch normalisation in both.

    Args:
        image_size: an int, or `(height, width)`.
        image_channels: colours.
        levels: values of a colour, 2 to 256.
        num_classes: labels are 0 to `num_classes - 1`; unconditional where None. The generator's normalisations have
            gains and biases for each class, the discriminator sees classes by projection.
        latent_size: noise variables.
        channels: of the layers next to the images; doubled at each halving of the image, up to eightfold.
        stages: halvings from the image to the networks' inner end; None leaves at least 4 pixels.
        discriminator_norm: of its layers but the first: `"batch"` or None.

    The other arguments are the game's rules, see `AdversarialModel`.

    Raises:
        ValueError: an image that cannot be halved that often, another norm, and what `AdversarialModel` raises.

    Source: Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
    Adversarial Networks" (2016), section 3 and figure 1; Miyato and Koyama, "cGANs with Projection Discriminator"
    (2018), for the classes.
    """

    presets: ClassVar = {
        "digits": {
            **{"latent_size": 32, "channels": 64, "stages": 2, "augment": "translation"},
            **{"lr": 5e-4, "epochs": 80, "batch_size": 64, "ema_decay": 0.998},
        }
    }

    def __init__(
        self,
        image_size: int | Sequence[int] = 64,
        image_channels: int = 3,
        levels: int = 256,
        *,
        num_classes: int | None = None,
        latent_size: int = 100,
        channels: int = 128,
        stages: int | None = None,
        discriminator_norm: str | None = "batch",
        **rules: Any,
    ) -> None:
        check_image_arguments(image_size, image_channels, levels)
        positive(latent_size=latent_size, channels=channels)
        if num_classes is not None:
            positive(num_classes=num_classes)
        if discriminator_norm not in ("batch", None):
            raise ValueError(f"discriminator_norm: expected 'batch' or None, got {discriminator_norm!r}")
        most = halvings(image_size, at_least=1)
        stages = halvings(image_size) if stages is None else stages
        if not is_int(stages) or not 1 <= stages <= most:
            raise ValueError(
                f"stages: expected 1 to {most}, as often as an image of {image_size} halves, got {stages!r}"
            )
        if stages == 1:
            self.without_effect("with one stage, whose discriminator has none", "discriminator_norm")
        height, width = (side >> stages for side in pair("image_size", image_size))
        widths = [channels * min(2**stage, _WIDEST) for stage in range(stages)]
        super().__init__(
            DCGANGenerator(latent_size, image_channels, widths[::-1], (height, width), num_classes),
            DCGANDiscriminator(image_channels, widths, (height, width), num_classes, discriminator_norm == "batch"),
            (image_channels, *pair("image_size", image_size)),
            levels,
            num_classes=num_classes,
            latent_size=latent_size,
            **rules,
        )


class WGANGP(DCGAN):
    """The Wasserstein GAN whose critic is held to slopes of 1 by a penalty, on DCGAN's networks.

    The critic has no batch normalisation: its gradient has to be that of each example. It learns five times for one
    step of the generator. The other arguments and errors are as in `DCGAN`. Adam has no momentum.

    Source: Gulrajani et al., "Improved Training of Wasserstein GANs" (2017), algorithm 1 and section 4.
    """

    recipe: ClassVar = {"lr": 1e-4, "betas": (0.0, 0.9)}
    presets: ClassVar = {
        "digits": {
            **{"latent_size": 32, "channels": 64, "stages": 2, "discriminator_steps": 2},
            **{"lr": 5e-4, "epochs": 110, "batch_size": 64, "ema_decay": 0.998},
        }
    }

    def __init__(
        self,
        *images: Any,
        latent_size: int = 128,
        discriminator_norm: str | None = None,
        loss: str = "wasserstein",
        discriminator_steps: int = 5,
        gradient_penalty: float = 10.0,
        **options: Any,
    ) -> None:
        own = {"latent_size": latent_size, "discriminator_norm": discriminator_norm, "loss": loss}
        options |= {"discriminator_steps": discriminator_steps, "gradient_penalty": gradient_penalty}
        super().__init__(*images, **own, **options)


class DCGANGenerator(nn.Module):
    """Noise [batch, latent_size] to images in (-1, 1).

    Args:
        latent_size: noise variables.
        image_channels: colours.
        widths: channels of the layers, from the inner end outwards; each doubles the image.
        inner_size: height and width at the inner end.
        num_classes: of the normalisations.
    """

    def __init__(
        self,
        latent_size: int,
        image_channels: int,
        widths: Sequence[int],
        inner_size: tuple[int, int],
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.inner_size = inner_size
        # A convolution that is followed by a normalisation needs no bias.
        self.project = nn.Linear(latent_size, widths[0] * inner_size[0] * inner_size[1], bias=False)
        self.num_classes = num_classes
        self.norms = nn.ModuleList(
            BatchNormLeakyReLU(width)
            if num_classes is None
            else ConditionalBatchNorm(width, num_classes, negative_slope=0.0)
            for width in widths
        )
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False) for a, b in pairwise(widths)
        )
        self.last = nn.ConvTranspose2d(widths[-1], image_channels, 4, stride=2, padding=1)
        initialize(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.project(z).view(z.shape[0], -1, *self.inner_size)
        condition = () if self.num_classes is None else (labels.long(),)
        h = self.norms[0](h, *condition)
        for convolution, norm in zip(self.convolutions, self.norms[1:], strict=True):
            h = norm(convolution(h), *condition)
        return self.last(h).tanh()


class DCGANDiscriminator(nn.Module):
    """Images [batch, image_channels, height, width] to outputs [batch]; arguments as in `DCGANGenerator`.

    Args:
        widths: channels of the layers, from the image inwards; each halves the image.
        batch_norm: whether there is any, after each convolution but the first.
    """

    def __init__(
        self,
        image_channels: int,
        widths: Sequence[int],
        inner_size: tuple[int, int],
        num_classes: int | None = None,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        channels = [image_channels, *widths]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1, bias=not batch_norm or index == 0)
            for index, (a, b) in enumerate(pairwise(channels))
        )
        self.norms = nn.ModuleList(BatchNormLeakyReLU(width, _SLOPE) for width in widths[1:] if batch_norm)
        self.head = ProjectionHead(widths[-1] * inner_size[0] * inner_size[1], num_classes)
        initialize(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = x
        for index, convolution in enumerate(self.convolutions):
            h = F.conv2d(h, convolution.weight, stride=2, padding=1)
            if index and self.norms:
                h = self.norms[index - 1](h)
            else:
                h = bias_act(h, convolution.bias, act="lrelu", alpha=_SLOPE, gain=1)
        return self.head(h.flatten(1), labels)


def initialize(network: nn.Module) -> None:
    """Weights from a normal distribution of deviation 0.02, biases 0; Radford et al. (2016), section 4."""
    of_classes = [module.modulation for module in network.modules() if isinstance(module, ConditionalBatchNorm)]
    for module in network.modules():
        if module in of_classes:
            # Starts where all classes are scaled alike.
            continue
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
            nn.init.normal_(module.weight, std=_STD)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
