"""VAEs with the weights of ours: pythae's, and one written from the paper as one writes it today."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.vae import VAE


class PlainVAE(nn.Module):
    """Encoder, decoder and bound in plain PyTorch: Kingma and Welling (2014), appendices B and C.1."""

    def __init__(self, ours: VAE) -> None:
        super().__init__()
        self.encoder, self.decoder = _sequential(ours.encoder), _sequential(ours.decoder)

    def loss(self, x: Tensor) -> Tensor:
        mu, logvar = self.encoder(x.flatten(1)).chunk(2, 1)
        z = mu + (0.5 * logvar).exp() * self.noise(mu)
        logits = self.decoder(z)
        reconstruction = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="none").sum(1)
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
        return (reconstruction + kl).mean()

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)


class PythaeVAE(nn.Module):
    """pythae's VAE with its own default networks, which have one hidden layer of 512.

    Raises:
        ImportError: pythae is not installed.
    """

    def __init__(self, ours: VAE) -> None:
        super().__init__()
        from pythae.models import VAE as Theirs
        from pythae.models import VAEConfig

        config = VAEConfig(input_dim=ours.shape, latent_dim=ours.latent_size, reconstruction_loss="bce")
        self.vae = Theirs(config).to(ours.device)
        hidden, both = (layer for layer in _sequential(ours.encoder) if isinstance(layer, nn.Linear))
        first, last = (layer for layer in _sequential(ours.decoder) if isinstance(layer, nn.Linear))
        encoder, decoder = self.vae.encoder, self.vae.decoder
        pairs = {encoder.layers[0][0]: hidden, decoder.layers[0][0]: first, decoder.layers[1][0]: last}
        with torch.no_grad():
            for theirs, own in pairs.items():
                theirs.weight.copy_(own.weight)
                theirs.bias.copy_(own.bias)
            for theirs, part in ((encoder.embedding, 0), (encoder.log_var, 1)):
                theirs.weight.copy_(both.weight.chunk(2)[part])
                theirs.bias.copy_(both.bias.chunk(2)[part])
        self.vae._sample_gauss = self._sample_gauss

    def loss(self, x: Tensor) -> Tensor:
        return self.vae({"data": x}).loss

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)

    def _sample_gauss(self, mu: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        # As theirs, but for where the noise comes from.
        eps = self.noise(std)
        return mu + eps * std, eps


def _sequential(network: nn.Module) -> nn.Sequential:
    """A copy of the layers of a dense network."""
    return copy.deepcopy(network.layers)
