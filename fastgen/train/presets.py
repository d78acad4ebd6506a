"""Defaults for pairs of a model and a named data set that the paper's sizes do not suit."""

from __future__ import annotations

from typing import Any

# Scikit-learn's digits are few and small: narrow networks, much dropout, two minutes on two cores.
_DIGITS = {
    "recipe": {"lr": 3e-3, "weight_decay": 0.05},
    "settings": {"epochs": 28, "batch_size": 32, "ema_decay": 0.998},
}

# As a run's configuration: what is missing is left to the classes' own defaults.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
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
}
