"""Small adversarial models of every family."""

from __future__ import annotations

from fastgen.models import DCGAN, GAN, WGANGP, StyleGAN2
from fastgen.models.adversarial import AdversarialModel

_CONVOLUTIONAL = {"channels": 4, "latent_size": 6}
_STYLED = {"channels": 4, "latent_size": 6, "style_size": 8, "mapping_layers": 2, "regularize_every": 2}
FAMILIES = {
    "gan": (GAN, {"image_size": 8, "hidden_features": 16, "latent_size": 6}),
    "gan-vectors": (
        GAN,
        {"features": 2, "mean": [1.0, -2.0], "std": [0.5, 3.0], "hidden_features": 16, "latent_size": 6},
    ),
    "gan-spectral": (GAN, {"image_size": 8, "hidden_features": 16, "latent_size": 6, "spectral_norm": True}),
    "dcgan": (DCGAN, {"image_size": 8, "image_channels": 1, **_CONVOLUTIONAL}),
    "dcgan-rgb": (
        DCGAN,
        {"image_size": (8, 12), "stages": 2, "augment": "brightness,translation", "r1": 1.0, **_CONVOLUTIONAL},
    ),
    "dcgan-conditional": (
        DCGAN,
        {"image_size": 8, "image_channels": 1, "num_classes": 3, "loss": "hinge", "r2": 0.5, **_CONVOLUTIONAL},
    ),
    "wgan-gp": (WGANGP, {"image_size": 8, "image_channels": 1, "discriminator_steps": 2, **_CONVOLUTIONAL}),
    "stylegan2": (StyleGAN2, {"image_size": 8, "image_channels": 1, **_STYLED}),
    "stylegan2-conditional": (StyleGAN2, {"image_size": (14, 28), "num_classes": 3, **_STYLED}),
}


def make(family: str, **changed) -> AdversarialModel:
    """A model of that family; images have 17 levels."""
    cls, options = FAMILIES[family]
    levels = {} if "features" in options else {"levels": 17}
    return cls(**{**levels, **options, **changed})
