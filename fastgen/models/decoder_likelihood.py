"""Likelihoods of an image given a decoder's output: Bernoulli, Gaussian or discretised logistic, pixels independent."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from fastgen.models.model import drawn, normalize_levels
from fastgen.nn.arguments import is_number
from fastgen.nn.module_state import Constants
from fastgen.ops.reconstruction import bernoulli_log_prob, discretized_logistic_log_prob, gaussian_log_prob


class DecoderLikelihood(nn.Module):
    """`p(x | z)` of images, given the decoder's output at `z`, [batch, image_channels * outputs, height, width].

    Args:
        levels: of integer images; None for floating ones, which are taken as they are.
    """

    # The decoder's outputs for each channel of the image.
    outputs: ClassVar[int] = 1

    def __init__(self, levels: int | None) -> None:
        super().__init__()
        self.levels = levels

    def log_prob(self, images: Tensor, output: Tensor) -> Tensor:
        """`log p(images | output)` in nats, [batch]; for floating images a density."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """The mean image, as networks see images."""
        raise NotImplementedError

    def draw(self, output: Tensor, generator: Generator | None = None) -> Tensor:
        """An image of `p(x | z)`, as networks see images: of levels, exactly at one."""
        raise NotImplementedError

    def _seen(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        return images.to(dtype) if self.levels is None else normalize_levels(images, self.levels, dtype)

    def _to_level(self, x: Tensor) -> Tensor:
        """The nearest level, as networks see it."""
        if self.levels is None:
            return x
        half = (self.levels - 1) / 2
        return ((x + 1) * half).round().clamp(0, self.levels - 1) / half - 1


class BernoulliLikelihood(DecoderLikelihood):
    """`p(x | l) = prod_i s(l_i)^x_i (1 - s(l_i))^(1 - x_i)`, `s` the sigmoid.

    Of more than two levels, or floating images in [0, 1], grey is the probability of white, and `log_prob` the mean
    over images that are black and white at random: bounds are those of their likelihood.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), appendix C.1; Salakhutdinov and Murray, "On
    the quantitative analysis of deep belief networks" (2008), for the images at random.
    """

    def log_prob(self, images: Tensor, output: Tensor) -> Tensor:
        target = images.to(output.dtype) if self.levels is None else images.to(output.dtype) / (self.levels - 1)
        return bernoulli_log_prob(output, target)

    def mean(self, output: Tensor) -> Tensor:
        probability = output.sigmoid()
        return probability if self.levels is None else 2 * probability - 1

    def draw(self, output: Tensor, generator: Generator | None = None) -> Tensor:
        white = (_uniform(output, generator) < output.sigmoid()).to(output.dtype)
        return white if self.levels is None else 2 * white - 1


class GaussianLikelihood(Constants, DecoderLikelihood):
    """`p(x | mean) = N(x; mean, sigma^2)`, one sigma for all pixels of all images, of images in [-1, 1].

    Of integer levels it is a bound in closed form on the probability that the density gives a level's bin, of width
    `w = 2 / (levels - 1)`: `log P(x) >= E_u log N(x + u; mean, sigma^2) + log w`, `u` uniform in the bin, which is the
    density at `x` with `w^2 / 12` added to the square.

    Args:
        sigma: None learns it.

    Raises:
        ValueError: a sigma that is not a positive number.

    Source: Rybkin, Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated Decoders" (2021), for
    sigma; Theis et al., "A note on the evaluation of generative models" (2016), section 3.1, for the bound.
    """

    def __init__(self, levels: int | None, sigma: float | None = None) -> None:
        super().__init__(levels)
        if sigma is not None and not (is_number(sigma) and 0 < sigma < math.inf):
            raise ValueError(f"sigma: expected a positive number or None, got {sigma!r}")
        self.sigma = sigma
        if sigma is None:
            self.logvar = nn.Parameter(torch.zeros(()))
        else:
            self._register_constants()

    def _constants(self) -> dict[str, Tensor]:
        return {} if self.sigma is None else {"logvar": torch.tensor(2 * math.log(self.sigma))}

    def log_prob(self, images: Tensor, output: Tensor) -> Tensor:
        logvar = self.logvar.to(output.dtype)
        density = gaussian_log_prob(output, logvar, self._seen(images, output.dtype))
        if self.levels is None:
            return density
        width, pixels = 2 / (self.levels - 1), images[0].numel()
        return density + pixels * (math.log(width) - width**2 / 24 * (-logvar.to(density.dtype)).exp())

    def mean(self, output: Tensor) -> Tensor:
        return output

    def draw(self, output: Tensor, generator: Generator | None = None) -> Tensor:
        noise = drawn(torch.randn, output.shape, output, generator)
        return self._to_level(output + (self.logvar / 2).exp() * noise)


class DiscretizedLogisticLikelihood(DecoderLikelihood):
    """`P(level) = F((x + w / 2 - mean) / s) - F((x - w / 2 - mean) / s)`, `F` the logistic distribution, `w` a bin.

    The decoder says the mean and `log s` of every pixel.

    Raises:
        ValueError: floating images.

    Source: Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow" (2016), section 5.2.
    """

    outputs = 2

    def __init__(self, levels: int | None) -> None:
        super().__init__(levels)
        if levels is None:
            raise ValueError("likelihood: discretized_logistic is of integer levels, and levels is None")

    def log_prob(self, images: Tensor, output: Tensor) -> Tensor:
        mean, log_scale = output.chunk(2, 1)
        return discretized_logistic_log_prob(mean, log_scale, self._seen(images, output.dtype), levels=self.levels)

    def mean(self, output: Tensor) -> Tensor:
        # The clipped location: the mean of a logistic cut off at the ends of the range has no closed form.
        return output.chunk(2, 1)[0].clamp(-1, 1)

    def draw(self, output: Tensor, generator: Generator | None = None) -> Tensor:
        mean, log_scale = output.chunk(2, 1)
        uniform = _uniform(mean, generator)
        return self._to_level(mean + log_scale.exp() * (uniform.log() - (-uniform).log1p()))


LIKELIHOODS: dict[str, type[DecoderLikelihood]] = {
    "bernoulli": BernoulliLikelihood,
    "gaussian": GaussianLikelihood,
    "discretized_logistic": DiscretizedLogisticLikelihood,
}


def make_likelihood(name: str, levels: int | None, sigma: float | None = None) -> DecoderLikelihood:
    """The likelihood of that name, of images of `levels`.

    Raises:
        ValueError: another name, a `sigma` for another than the Gaussian, what the class refuses.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood: expected one of {', '.join(LIKELIHOODS)}, got {name!r}")
    if name == "gaussian":
        return GaussianLikelihood(levels, sigma)
    if sigma is not None:
        raise ValueError(f"sigma: {name} has none, expected None, got {sigma!r}")
    return LIKELIHOODS[name](levels)


def _uniform(like: Tensor, generator: Generator | None) -> Tensor:
    """In (0, 1), never at an end."""
    return drawn(torch.rand, like.shape, like, generator).clamp(min=torch.finfo(like.dtype).eps / 2)
