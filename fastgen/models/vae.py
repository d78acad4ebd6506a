"""Variational autoencoders: a bound on the likelihood of images, by way of latents; with or without classes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from fastgen.models.encoder_decoder import EncoderDecoder
from fastgen.models.model import Bounded, evaluating
from fastgen.nn.arguments import is_int, is_number, positive
from fastgen.ops.importance_weighted_bound import importance_weighted_bound
from fastgen.ops.reparameterize import MAX_LOGVAR, gaussian_reparameterize_kl

# Latents that are decoded at once where a bound takes many.
MOST_DECODED = 4096
# Samples of the importance-weighted bound that a trained model is scored by.
TEST_SAMPLES = 100


class VAE(Bounded, EncoderDecoder):
    """`log p(x) >= E_{q(z|x)} log p(x|z) - KL(q(z|x) | p(z))`, with `p(z) = N(0, 1)` and `q(z|x) = N(mu(x), s(x)^2)`.

    Both sides of the bound are learnt: the decoder to make it large, the encoder to make it tight.

    Args:
        num_classes: encoder and decoder see labels too, see `ConditionalVAE`.
        beta: weight of the divergence in the loss; above 1 latents come apart, at the expense of detail.
        importance_samples: with k above 1 the loss is the bound of k weighted samples instead,
            `log 1/k sum_i p(x, z_i) / q(z_i | x)`.

    The other arguments are as in `EncoderDecoder`.

    Raises:
        ValueError: a beta that is no number of at least 0, both it and importance samples, what `EncoderDecoder`
            refuses.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), equation 10; Rezende, Mohamed and Wierstra
    (2014); Higgins et al., "beta-VAE" (2017), equation 4; Burda, Grosse and Salakhutdinov, "Importance Weighted
    Autoencoders" (2016), equation 8.
    """

    # The encoder outputs a mean and a log variance.
    numbers_per_latent = 2
    presets: ClassVar = {
        "digits": {
            **{"network": "convolutional", "channels": 32, "layers": 2, "latent_size": 16, "dropout": 0.1},
            "likelihood": "discretized_logistic",
            **EncoderDecoder.digits,
            "epochs": 150,
        }
    }

    def __init__(
        self,
        *images: Any,
        likelihood: str = "bernoulli",
        beta: float = 1.0,
        importance_samples: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(*images, likelihood=likelihood, **options)
        if not (is_number(beta) and 0 <= beta < math.inf):
            raise ValueError(f"beta: expected a number of at least 0, got {beta!r}")
        positive(importance_samples=importance_samples)
        if importance_samples > 1 and beta != 1:
            raise ValueError(f"beta: expected 1 with importance_samples, whose bound has no divergence, got {beta!r}")
        self.beta, self.importance_samples = beta, importance_samples

    def validation_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        return {"bits_per_dim": self.bits_per_dim(x, labels, generator=generator)}

    def test_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        # The bound of many weighted samples comes first: it takes the generator's first seed.
        tighter = self.bits_per_dim(x, labels, samples=TEST_SAMPLES, generator=generator)
        return {**self.validation_scores(x, labels, generator), f"iwae{TEST_SAMPLES}_bits_per_dim": tighter}

    def posterior(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of `q(z | images)`, each [batch, *latent_shape]; arguments as in `encode`."""
        return super().encode(images, labels).chunk(2, 1)

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.posterior(images, labels)[0]

    encode.__doc__ = EncoderDecoder.encode.__doc__

    def loss(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of `beta KL - log p(x|z)`, or of the negative bound of importance samples, in nats: a scalar."""
        if self.importance_samples > 1:
            return -self.log_prob_bound(images, labels, samples=self.importance_samples).mean()
        reconstruction, kl = self.bound_terms(images, labels)
        return (self.beta * kl - reconstruction).mean()

    def bound_terms(
        self, images: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """`log p(x|z)` at one draw of `z`, and the divergence of `q(z|x)` from `p(z)`: [batch] each, nats.

        Args:
            images, labels: as in `encode`.
            generator: of the seed of the draw.
        """
        mean, logvar = self.posterior(images, labels)
        z, kl = gaussian_reparameterize_kl(mean, logvar, seed=_seed(generator))
        return self.log_likelihood(images, z, labels), kl

    def log_prob_bound(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        samples: int = 1,
        generator: Generator | None = None,
    ) -> Tensor:
        """A lower bound of `log p(images | labels)` in nats, [batch], in expectation over its draws.

        Args:
            images, labels: as in `encode`.
            samples: 1 for the evidence's lower bound, its divergence in closed form; k for that of k weighted samples,
                which is no lower and goes to `log p` as k grows.
            generator: of the draws, so that an evaluation can be repeated.

        Raises:
            TypeError, ValueError: images or labels that are not this model's, samples that are no positive int.

        Source: Kingma and Welling (2014), equation 10; Burda et al. (2016), equation 8 and theorem 1.
        """
        positive(samples=samples)
        if samples == 1:
            reconstruction, kl = self.bound_terms(images, labels, generator=generator)
            return reconstruction - kl
        mean, logvar = self.posterior(images, labels)
        seed, at_once = _seed(generator), max(1, MOST_DECODED // images.shape[0])
        weights = []
        for start in range(0, samples, at_once):
            k = min(at_once, samples - start)
            weights.append(self._log_weights(images, labels, mean, logvar, k, seed=seed, offset=start))
        return importance_weighted_bound(torch.cat(weights))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | int | None = None,
        temperature: float = 1.0,
        mean: bool = True,
        generator: Generator | None = None,
    ) -> Tensor:
        """Decodes `n` latents of the prior: uint8 levels [n, *shape], floating where `levels` is None.

        Args:
            labels: integer classes [n], or one class for all, where the model has `num_classes`.
            temperature: deviation of the latents; below 1 images are likelier and vary less.
            mean: the mean image of each latent, as pictures show them; False draws the pixels too.
            generator: on any device; latents are drawn there.

        Raises:
            TypeError, ValueError: `n` is no positive int, labels that are not this model's, a temperature that is no
                number of at least 0.
        """
        positive(n=n)
        if not (is_number(temperature) and 0 <= temperature < math.inf):
            raise ValueError(f"temperature: expected a number of at least 0, got {temperature!r}")
        if is_int(labels):
            labels = torch.full((n,), labels, device=self.device)
        z = temperature * self.draw_latents(n, generator)
        with evaluating(self):
            return self._image(self.output(z, labels), mean, generator)

    def draw_latents(self, n: int, generator: Generator | None = None) -> Tensor:
        """Latents [n, *latent_shape] of the prior, standard normal."""
        return self._standard_normal(n, generator)

    def _log_weights(
        self, images: Tensor, labels: Tensor | None, mean: Tensor, logvar: Tensor, k: int, *, seed: int, offset: int
    ) -> Tensor:
        """`log p(x, z) - log q(z|x)` at k draws of `z`, [k, batch]."""
        repeated = (k, *(1,) * (mean.dim() - 1))
        means, logvars = mean.repeat(repeated), logvar.repeat(repeated)
        z, _ = gaussian_reparameterize_kl(means, logvars, seed=seed, offset=offset)
        found = self.log_likelihood(images.repeat(k, 1, 1, 1), z, None if labels is None else labels.repeat(k))
        # The constants of log N(z; 0, 1) - log N(z; mean, variance) cancel.
        variance = logvars.clamp(max=MAX_LOGVAR).exp()
        ratio = (z - means).square() / variance + logvars.clamp(max=MAX_LOGVAR) - z.square()
        return (found + 0.5 * ratio.flatten(1).sum(1)).view(k, -1)


class ConditionalVAE(VAE):
    """A `VAE` of images given their class: `log p(x|y) >= E_{q(z|x,y)} log p(x|z,y) - KL(q(z|x,y) | p(z))`.

    Encoder and decoder see the class one-hot, so that latents need not say it: `reconstruct` with another class than
    the image's own gives that class in the image's style, `sample` the class that is asked for.

    Args:
        num_classes: of the labels.

    The other arguments are as in `VAE`.

    Source: Sohn, Yan and Lee, "Learning Structured Output Representation using Deep Conditional Generative Models"
    (2015), section 3; Kingma et al., "Semi-supervised Learning with Deep Generative Models" (2014), model M2.
    """

    def __init__(self, *images: Any, num_classes: int, **options: Any) -> None:
        super().__init__(*images, num_classes=num_classes, **options)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, labels: Tensor | None = None, *, as_labels: Tensor | None = None) -> Tensor:
        """`decode(encode(images, labels), as_labels)`, in eval mode: the same latents as another class.

        Args:
            images, labels: as in `encode`.
            as_labels: integer classes [batch]; None keeps each image's own.
        """
        with evaluating(self):
            return self.decode(self.encode(images, labels), labels if as_labels is None else as_labels)


def _seed(generator: Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))
