"""The denoising autoencoder, and the Markov chain that draws from what it has learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from fastgen.models.encoder_decoder import EncoderDecoder
from fastgen.models.model import drawn, evaluating
from fastgen.nn.arguments import is_number, positive, probability

CORRUPTIONS = ("gaussian", "masking", "salt-and-pepper")
# Corruptions of each image that is scored: one alone would hide what an epoch changed.
VALIDATION_DRAWS = 2
# The most steps of a walk back.
LONGEST_WALK = 50


class DenoisingAutoencoder(EncoderDecoder, without=("num_classes",)):
    """Learns `P(x | x~)`, images behind their corruption `x~ ~ C(x~ | x)`: the loss is `-log P(x | x~)`, in nats.

    The chain `x~_t ~ C(x~ | x_t)`, `x_{t+1} ~ P(x | x~_t)` has the distribution of the data as its stationary one,
    where `P` is right and the chain is ergodic (theorem 1); `sample` runs it. With `walkback`, training also sees where
    the chain goes from each image: it takes a further step with that probability, and from wherever it got to, the
    image is what should be found. This moves mass away from modes far from data, and leaves the stationary distribution
    as it is (proposition 1).

    Args:
        corruption: `"gaussian"` adds noise of deviation `noise` (images are in [-1, 1]), `"masking"` makes a share of
            `noise` of the pixels black (0 of floating data), `"salt-and-pepper"` makes them black or white.
        noise: how much.
        walkback: probability of a further step, in [0, 1).

    The other arguments are as in `EncoderDecoder`; `latent_size` may well exceed the number of pixels.

    Raises:
        ValueError: another corruption, noise that is no positive number or no share, what `EncoderDecoder` refuses.

    Source: Bengio, Yao, Alain and Vincent, "Generalized Denoising Auto-Encoders as Generative Models" (2013),
    algorithms 1 and 2; Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders" (2008).
    """

    validation_score = "loss"
    presets: ClassVar = {
        "digits": {
            **{"channels": 512, "layers": 2, "latent_size": 256, "noise": 0.6, "walkback": 0.5},
            **EncoderDecoder.digits,
            "epochs": 100,
        }
    }

    def __init__(
        self,
        *images: Any,
        latent_size: int = 512,
        corruption: str = "gaussian",
        noise: float = 0.5,
        walkback: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*images, latent_size=latent_size, **options)
        if corruption not in CORRUPTIONS:
            raise ValueError(f"corruption: expected one of {', '.join(CORRUPTIONS)}, got {corruption!r}")
        if not (is_number(noise) and 0 < noise < math.inf) or (corruption != "gaussian" and noise > 1):
            wanted = "a positive number" if corruption == "gaussian" else "a share of pixels in (0, 1]"
            raise ValueError(f"noise: expected {wanted}, got {noise!r}")
        probability(walkback=walkback)
        self.corruption, self.noise, self.walkback = corruption, noise, walkback

    def validation_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        draws = [self.errors(x, labels, generator=generator) for _ in range(VALIDATION_DRAWS)]
        return {"loss": sum(draws) / VALIDATION_DRAWS}

    def corrupt(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """A draw of `C(x~ | x)`, of images as the network sees them."""
        if self.corruption == "gaussian":
            return x + self.noise * drawn(torch.randn, x.shape, x, generator)
        black, hit = (0.0 if self.levels is None else -1.0), drawn(torch.rand, x.shape, x, generator) < self.noise
        if self.corruption == "masking":
            return torch.where(hit, black, x)
        return torch.where(hit, torch.where(drawn(torch.rand, x.shape, x, generator) < 0.5, black, 1.0), x)

    def denoise(self, corrupted: Tensor) -> Tensor:
        """The decoder's output for corrupted images as the network sees them: `P(x | x~)`, as `likelihood` takes it."""
        return self.decoder(self.encoder(corrupted, None), None)

    def errors(self, images: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """`-log P(x | x~)` in nats with one corruption of each image, [batch]; arguments and errors as in `encode`."""
        self.check_labels(labels, images.shape[0])
        return -self.likelihood.log_prob(images, self.denoise(self.corrupt(self.normalize(images), generator)))

    def loss(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of `-log P(x | x~)` over the corrupted images of each one's walk back, a scalar."""
        self.check_labels(labels, images.shape[0])
        corrupted = self.corrupt(self.normalize(images))
        outputs = [self.denoise(corrupted)]
        walkers = [torch.arange(images.shape[0], device=images.device)]
        while self.training and self.walkback and len(outputs) < LONGEST_WALK:
            on = (torch.rand(len(walkers[-1])) < self.walkback).nonzero()[:, 0].to(images.device)
            if not len(on):
                break
            with torch.no_grad():
                corrupted = self.corrupt(self.likelihood.draw(outputs[-1][on]))
            outputs.append(self.denoise(corrupted))
            walkers.append(walkers[-1][on])
        # Each pair of an image and a corrupted version of it counts as one example.
        return -self.likelihood.log_prob(images[torch.cat(walkers)], torch.cat(outputs)).mean()

    @torch.no_grad()
    def chain(self, x: Tensor, generator: Generator | None = None) -> Iterator[Tensor]:
        """The decoder's outputs along the chain that starts at images as the network sees them, without end.

        The state after a step is a draw of what was yielded, `likelihood.draw`.
        """
        while True:
            output = self.denoise(self.corrupt(x, generator))
            yield output
            x = self.likelihood.draw(output, generator)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        steps: int = 100,
        start: Tensor | None = None,
        mean: bool = True,
        generator: Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """The ends of `n` chains: uint8 levels [n, *shape], floating where `levels` is None.

        Args:
            labels: None, this model has no classes.
            steps: of each chain.
            start: images [n, *shape] that the chains start at; None starts at noise, uniform over the range (standard
                normal, for floating data).
            mean: of the last step, the mean of `P(x | x~)`, as pictures show it; False gives the chain's state.
            generator: on any device; all noise is drawn there.
            progress: called as `progress(done, total)`.

        Raises:
            TypeError, ValueError: `n` or steps that are no positive int, labels, images that are not this model's.

        Source: Bengio et al. (2013), section 3.
        """
        positive(n=n, steps=steps)
        self.check_labels(labels, n)
        x = self._noise(n, generator) if start is None else self.normalize(start)
        if x.shape[0] != n:
            raise ValueError(f"start: expected {n} images, got {x.shape[0]}")
        with evaluating(self):
            for step, output in enumerate(self.chain(x, generator)):
                if progress is not None:
                    progress(step + 1, steps)
                if step + 1 == steps:
                    return self._image(output, mean, generator)
        raise AssertionError("a chain has no end")

    @torch.no_grad()
    def draw_latents(self, n: int, generator: Generator | None = None) -> Tensor:
        """The latents [n, *latent_shape] of drawn images."""
        return self.encode(self.sample(n, generator=generator))

    def _noise(self, n: int, generator: Generator | None) -> Tensor:
        noise = drawn(torch.randn if self.levels is None else torch.rand, (n, *self.shape), self, generator)
        return noise if self.levels is None else 2 * noise - 1
