"""Small autoencoders of every kind, and images and labels to go with them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.models import VAE, VQVAE, Autoencoder, ConditionalVAE, DenoisingAutoencoder
from fastgen.models.encoder_decoder import EncoderDecoder

CONV = {"network": "convolutional", "channels": 4, "layers": 2}
SPATIAL = {"network": "spatial", "channels": 4, "layers": 1}
SMALL = {"channels": 8, "latent_size": 4}
BERNOULLI, LOGISTIC = {"likelihood": "bernoulli"}, {"likelihood": "discretized_logistic"}

EVERY = {
    "ae": (Autoencoder, 8, 1, 5, {**SMALL, "components": 2}),
    "ae-conv": (Autoencoder, (5, 6), 3, 5, {**SMALL, **CONV, "components": 2, "likelihood": "bernoulli"}),
    "ae-spatial": (Autoencoder, (5, 6), 1, None, {**SPATIAL, "latent_size": 2, "components": 2, "sigma": 0.3}),
    "dae": (DenoisingAutoencoder, 8, 1, 5, {**SMALL, "layers": 2, "walkback": 0.6}),
    "dae-pepper": (DenoisingAutoencoder, 6, 1, 2, {**SMALL, **BERNOULLI, "corruption": "salt-and-pepper"}),
    "dae-mask": (DenoisingAutoencoder, 6, 1, 5, {**SMALL, **LOGISTIC, "corruption": "masking"}),
    "vae": (VAE, 8, 1, 2, SMALL),
    "vae-conv": (VAE, (5, 6), 3, 256, {**SMALL, **CONV, "likelihood": "discretized_logistic", "beta": 2.0}),
    "vae-classes": (VAE, 8, 1, 5, {**SMALL, "num_classes": 3, "likelihood": "gaussian", "dropout": 0.2}),
    "iwae": (VAE, 8, 1, None, {**SMALL, "likelihood": "gaussian", "importance_samples": 3}),
    "cvae": (ConditionalVAE, 8, 1, 5, {**SMALL, **SPATIAL, "num_classes": 3}),
    "vqvae": (
        VQVAE, 8, 1, 5,
        {**SMALL, "layers": 1, "num_codes": 6, "prior_channels": 8, "prior_layers": 1, "likelihood": "gaussian"},
    ),
}  # fmt: skip


def make(name: str) -> EncoderDecoder:
    """The model, in float64 and in eval mode."""
    kind, size, channels, levels, options = EVERY[name]
    model = kind(size, channels, levels, **options).double().eval()
    if isinstance(model, Autoencoder):
        model.fit_latents(data_for(model, 20)[0])
    return model


def data_for(model: EncoderDecoder, n: int) -> tuple[Tensor, Tensor | None]:
    """Random images and labels, as the model takes them."""
    if model.levels is None:
        images = torch.rand(n, *model.shape, dtype=model.dtype)
    else:
        images = torch.randint(model.levels, (n, *model.shape))
    return images, None if model.num_classes is None else torch.randint(model.num_classes, (n,))


def learn(model: EncoderDecoder, examples: tuple[Tensor, ...], steps: int, batch_size: int | None = None) -> None:
    """Adam on batches of the examples, as training does it: clipped gradients, half a cosine."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randperm(len(examples[0]))[:batch_size]
        optimizer.zero_grad()
        model.loss(*(part[chosen] for part in examples)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
