"""The autoencoder: images through a bottleneck, and draws from a mixture that is fitted to their latents."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from fastgen.models.encoder_decoder import EncoderDecoder
from fastgen.models.model import evaluating
from fastgen.nn.arguments import positive

# Images that the mixture is fitted to at most.
MOST_FITTED = 10_000


class Autoencoder(EncoderDecoder, without=("num_classes",)):
    """`x -> z -> x`: an encoder to few numbers, and a decoder that makes the image of them again.

    The loss is `-log p(x | z)`, in nats; with the Gaussian likelihood a squared error. With `layers=0` and a dense
    network both ways are linear, and the best latents span the subspace of the first principal components (Baldi and
    Hornik 1989). It is no density of images: `sample` decodes draws from a mixture of normal densities that
    `fit_latents` learns from the latents of data, which training does after every epoch.

    Args:
        components: of the mixture that `sample` draws latents from.

    The other arguments are as in `EncoderDecoder`.

    Raises:
        ValueError: sizes that are not positive, another network or likelihood.

    Source: Rumelhart, Hinton and Williams (1986); Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with
    Neural Networks" (2006); Ghosh et al., "From Variational to Deterministic Autoencoders" (2020), section 4, for
    draws.
    """

    validation_score = "loss"
    presets: ClassVar = {
        "digits": {
            **{"network": "convolutional", "channels": 32, "layers": 2, "latent_size": 8},
            **EncoderDecoder.digits,
            "epochs": 100,
        }
    }

    def __init__(self, *images: Any, components: int = 10, **options: Any) -> None:
        super().__init__(*images, **options)
        positive(components=components)
        size = self._standard_normal(1, torch.Generator()).numel()
        # Buffers, saved with the weights: a loaded model draws the same samples as the saved one.
        self.register_buffer("mixture_weights", torch.zeros(components))
        self.register_buffer("mixture_means", torch.zeros(components, size))
        self.register_buffer("mixture_factors", torch.zeros(components, size, size))

    def errors(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """`-log p(x | encode(x))` in nats, [batch]; arguments and errors as in `encode`."""
        return -self.log_likelihood(images, self.encode(images, labels), labels)

    def loss(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of `errors`, a scalar."""
        return self.errors(images, labels).mean()

    def validation_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        return {"loss": self.errors(x, labels)}

    def test_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        # The mean squared error of a pixel, in levels.
        difference = self.reconstruct(x, labels).float() - x.float()
        return {**self.validation_scores(x, labels, generator), "mse": difference.square().flatten(1).mean(1)}

    def end_epoch(self, x: Tensor) -> None:
        self.fit_latents(x[:MOST_FITTED].to(self.device))

    @torch.no_grad()
    def fit_latents(self, images: Tensor, seed: int = 0) -> None:
        """Learn the mixture that `sample` draws from, from the latents of images (the first 10,000 of them).

        Raises:
            ValueError: fewer images than the mixture has components, what `encode` refuses.
        """
        from fastgen.density import GaussianMixture

        with evaluating(self):
            codes = torch.cat([self.encode(part) for part in images[:MOST_FITTED].split(1000)]).flatten(1).double()
        # At least a hundredth of the overall variance in every direction: a component of few images would be flat.
        floor = 1e-2 * codes.var(0, correction=0).mean().item() + 1e-12
        mixture = GaussianMixture(len(self.mixture_weights), reg_covar=floor, tol=0.05, max_iter=30, random_state=seed)
        with warnings.catch_warnings():
            # For sampling, the fit after a few steps is good enough.
            warnings.filterwarnings("ignore", message="GaussianMixture did not converge")
            mixture.fit(codes)
        self.mixture_weights.copy_(mixture.weights_)
        self.mixture_means.copy_(mixture.means_)
        self.mixture_factors.copy_(torch.linalg.cholesky(mixture.covariances_))

    def draw_latents(self, n: int, generator: Generator | None = None) -> Tensor:
        """Latents [n, *latent_shape] of the mixture.

        Raises:
            ValueError: `n` is not a positive int, no mixture was fitted.
        """
        positive(n=n)
        if not bool(self.mixture_weights.any()):
            raise ValueError("draw_latents: no density of latents was fitted, expected a call of fit_latents before")
        device = self.device if generator is None else generator.device
        weights = self.mixture_weights.to(device)
        component = torch.multinomial(weights, n, replacement=True, generator=generator).to(self.device)
        noise = self._standard_normal(n, generator).flatten(1)
        z = self.mixture_means[component] + (self.mixture_factors[component] @ noise[:, :, None])[:, :, 0]
        return z.view(n, *self.latent_shape)
