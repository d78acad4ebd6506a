"""Small diffusion models of every family, and networks that know the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.models import DDPM, EDM, DiffusionProbabilisticModel, FlowMatching, ScoreSDE
from fastgen.models.diffusion import Diffusion, along

TINY = {"channels": 8, "channel_multipliers": (1, 2), "layers": 1, "attention_levels": (), "groups": 4}
COSINE = {"beta_schedule": "cosine", "beta_start": 1e-4, "beta_end": 0.02}
FAMILIES = {
    "ddpm": (DDPM, {"num_train_timesteps": 100, "beta_end": 0.2, "beta_start": 1e-3}),
    "ddpm-v": (DDPM, {"prediction_type": "v_prediction", "beta_schedule": "cosine", "weighting": "min_snr"}),
    "ddpm-x0": (DDPM, {"prediction_type": "sample", "beta_schedule": "sigmoid", "weighting": "p2"}),
    "2015": (DiffusionProbabilisticModel, {"num_train_timesteps": 50, "beta_end": 0.3, "beta_start": 1e-3}),
    "edm": (EDM, {}),
    "flow-matching": (FlowMatching, {"times": "logit_normal"}),
    "ve": (ScoreSDE, {"sde": "ve", "sigma_max": 20.0}),
    "vp": (ScoreSDE, {"sde": "vp"}),
    "subvp": (ScoreSDE, {"sde": "subvp"}),
}
CONTINUOUS = ("edm", "flow-matching", "ve", "vp", "subvp")


def make(family: str, image_size: int = 4, levels: int | None = 17, **changed) -> Diffusion:
    """A model of that family whose network is random and says something."""
    cls, options = FAMILIES[family]
    model = cls(image_size, 1, levels, **{**TINY, **options, **changed})
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def knowing(model: Diffusion, mean: float, variance: float) -> Diffusion:
    """`model`, whose network says what is true of data that are normal in every pixel."""

    def output(x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        alpha, sigma = (along(value.double(), x.double()) for value in model.alpha_sigma(time))
        x0 = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        said = {
            "sample": lambda: x0,
            "epsilon": lambda: (x - alpha * x0) / sigma,
            "v_prediction": lambda: (alpha * x - x0) / sigma,
            "velocity": lambda: (x - x0) / sigma.clamp(min=1e-9),
        }[model.prediction_type]()
        return said.to(x.dtype)

    model.output = output
    return model
