"""Defaults for pairs of a model and a named data set that the paper's sizes do not suit."""

from __future__ import annotations

from typing import Any

from fastgen.data import POINTS

# Scikit-learn's digits are few and small: narrow networks, much dropout, two minutes on two cores.
_DIGITS = {
    "recipe": {"lr": 3e-3, "weight_decay": 0.05},
    "settings": {"epochs": 28, "batch_size": 32, "ema_decay": 0.998},
}

# A plane takes a small network: a minute on two cores.
_POINTS = {"recipe": {"lr": 3e-3}, "settings": {"epochs": 30, "batch_size": 256, "ema_decay": 0.995}}
# Rows are many and small.
_TABLE = {"settings": {"batch_size": 256}}
_FLOWS_OF_POINTS = {
    "nsf": {"transforms": 6, "hidden_features": 64},
    "realnvp": {"transforms": 12, "hidden_features": 64},
    "maf": {"transforms": 10, "hidden_features": 64},
    "iaf": {"transforms": 6, "hidden_features": 64},
}

# 8x8 takes two resolutions. A million weights see the digits sixty times in about six minutes of one core.
_DIFFUSION_OF_DIGITS = {
    "model": {"config": {"channels": 32, "channel_multipliers": [1, 2], "layers": 2, "groups": 8, "dropout": 0.1}},
    "recipe": {"lr": 2e-3},
    "settings": {"epochs": 60, "batch_size": 64, "ema_decay": 0.998},
}


# Small networks, many passes: two to four minutes.
def _autoencoder_of_digits(epochs: int, **config: Any) -> dict[str, Any]:
    return {
        "model": {"config": config},
        "recipe": {"lr": 2e-3, "weight_decay": 0.05},
        "settings": {"epochs": epochs, "batch_size": 64, "ema_decay": 0.998},
    }


_VAE_OF_DIGITS = {
    "network": "convolutional",
    "channels": 32,
    "layers": 2,
    "latent_size": 16,
    "dropout": 0.1,
    "likelihood": "discretized_logistic",
}


def _diffusion_of_digits(**config: Any) -> dict[str, Any]:
    return {**_DIFFUSION_OF_DIGITS, "model": {"config": {**_DIFFUSION_OF_DIGITS["model"]["config"], **config}}}


# Pairs of networks this small see the digits about a hundred times in a few minutes of two cores.
_GANS_OF_DIGITS = {
    "gan": {
        "model": {"config": {"latent_size": 32, "hidden_features": 256, "layers": 2, "r1": 0.5}},
        "recipe": {"lr": 5e-4},
        "settings": {"epochs": 110, "batch_size": 64, "ema_decay": 0.998},
    },
    "dcgan": {
        "model": {"config": {"latent_size": 32, "channels": 64, "stages": 2, "augment": "translation"}},
        "recipe": {"lr": 5e-4},
        "settings": {"epochs": 80, "batch_size": 64, "ema_decay": 0.998},
    },
    "wgan-gp": {
        "model": {"config": {"latent_size": 32, "channels": 64, "stages": 2, "discriminator_steps": 2}},
        "recipe": {"lr": 5e-4},
        "settings": {"epochs": 110, "batch_size": 64, "ema_decay": 0.998},
    },
    "stylegan2": {
        "model": {
            "config": {
                **{"latent_size": 64, "style_size": 64, "mapping_layers": 4, "channels": 32, "max_channels": 64},
                # Half of a digit is exactly black. At this size mixing and path lengths cost more than they give.
                **{"output": "tanh", "style_mixing": 0.0, "path_length": 0.0, "r1": 1.0, "augment": "translation"},
            }
        },
        "settings": {"epochs": 80, "batch_size": 32, "ema_decay": 0.998},
    },
}

# As a run's configuration: what is missing is left to the classes' own defaults.
PRESETS: dict[tuple[str, str | None], dict[str, Any]] = {
    ("pixelcnn", "digits"): {
        "model": {"config": {"channels": 96, "layers": 5, "first_kernel_size": 5, "dropout": 0.4}},
        **_DIGITS,
    },
    ("gated-pixelcnn", "digits"): {
        "model": {"config": {"channels": 48, "layers": 5, "first_kernel_size": 5, "dropout": 0.4}},
        **_DIGITS,
    },
    ("pixelcnnpp", "digits"): {
        "model": {"config": {"channels": 32, "resnets": 2, "scales": 2, "num_mixtures": 5, "dropout": 0.3}},
        **_DIGITS,
    },
    ("realnvp", "digits"): {
        "model": {"config": {"channels": 32, "num_blocks": 1}},
        **_DIGITS,
    },
    ("glow", "digits"): {
        "model": {"config": {"channels": 96, "scales": 2, "steps": 8}},
        "recipe": {"lr": 2e-3},
        "settings": {"epochs": 40, "batch_size": 32},
    },
    ("ddpm", "digits"): _diffusion_of_digits(beta_schedule="cosine"),
    ("diffusion-2015", "digits"): _diffusion_of_digits(beta_schedule="cosine", num_train_timesteps=200),
    ("score-sde", "digits"): _diffusion_of_digits(sde="vp"),
    ("edm", "digits"): _diffusion_of_digits(sigma_data=0.75),
    ("flow-matching", "digits"): _diffusion_of_digits(),
    ("ae", "digits"): _autoencoder_of_digits(100, network="convolutional", channels=32, layers=2, latent_size=8),
    ("dae", "digits"): _autoencoder_of_digits(100, channels=512, layers=2, latent_size=256, noise=0.6, walkback=0.5),
    ("vae", "digits"): _autoencoder_of_digits(150, **_VAE_OF_DIGITS),
    ("cvae", "digits"): _autoencoder_of_digits(150, **_VAE_OF_DIGITS),
    ("vqvae", "digits"): _autoencoder_of_digits(
        60,
        num_codes=32,
        latent_size=16,
        channels=32,
        layers=1,
        likelihood="discretized_logistic",
        prior_channels=64,
        prior_layers=4,
        prior_dropout=0.4,
    ),
    **{(model, "digits"): defaults for model, defaults in _GANS_OF_DIGITS.items()},
    **{
        (model, data): {"model": {"config": config}, **_POINTS}
        for model, config in _FLOWS_OF_POINTS.items()
        for data in POINTS
    },
    **{(model, None): _TABLE for model in ("nsf", "maf", "iaf")},
}


def preset(model: str, data: str) -> dict[str, Any]:
    """The defaults for a model on a data set, by their names: those for all its data where these have none."""
    return PRESETS.get((model, data)) or PRESETS.get((model, None), {})
