"""A small model of every family, with data and labels to go with it, for tests of what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fastgen import models
from fastgen.models.index import INDEX
from tests.models import adversarial_cases, autoencoder_cases, autoregressive_cases, diffusion_cases, flow_cases

# It draws in the steps that it learnt.
FEW = {"2015": {"num_train_timesteps": 4}}
# By name: the class and its arguments.
CONFIGURED: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    **{
        name: (kind, {**options, "image_size": 4 if name.startswith("pixelcnnpp") else 3})
        for name, (kind, options) in autoregressive_cases.SMALL.items()
    },
    **{name: (kind, dict(options)) for name, (kind, options) in flow_cases.EVERY.items()},
    **{
        name: (kind, {"image_size": size, "image_channels": channels, "levels": levels, **options})
        for name, (kind, size, channels, levels, options) in autoencoder_cases.EVERY.items()
    },
    **{
        name: (kind, {**({} if "features" in options else {"levels": 17}), **options})
        for name, (kind, options) in adversarial_cases.FAMILIES.items()
    },
    **{
        name: (
            kind,
            {
                "image_size": 4,
                "image_channels": 1,
                "levels": 17,
                **diffusion_cases.TINY,
                **options,
                **FEW.get(name, {}),
            },
        )
        for name, (kind, options) in diffusion_cases.FAMILIES.items()
    },
}
# A model that has no small case above is tried as it is, on small data.
CONFIGURED |= {
    name: (
        entry.load(),
        {"features": 3} if entry.learns == "vectors" else {"image_size": 4, "image_channels": 1, "levels": 5},
    )
    for name, entry in INDEX.items()
    if entry.load() not in {kind for kind, _ in CONFIGURED.values()}
}
UNET = {"in_channels": 2, **diffusion_cases.TINY, "attention_levels": (1,), "num_classes": 3}


def _latent_diffusion() -> nn.Module:
    autoencoder = models.Autoencoder(4, 1, 5, network="spatial", channels=4, layers=1, latent_size=2, components=2)
    return models.LatentDiffusion(autoencoder, models.DDPM(2, 2, None, num_train_timesteps=10, **diffusion_cases.TINY))


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda kind=kind, options=options: kind(**options) for name, (kind, options) in CONFIGURED.items()},
    "unet": lambda: models.UNet(**UNET),
    "latent-diffusion": _latent_diffusion,
    "flow": lambda: models.Flow(models.RealNVP(3, transforms=1, hidden_features=4).transform, (3,)),
}


def make(name: str) -> nn.Module:
    """The model away from its start, where networks say zero, in eval mode."""
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        if not parameter.is_meta:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    with torch.no_grad():
        if isinstance(model, models.Autoencoder):
            model.fit_latents(data_for(model, 8)[0])
    return model


@cache
def known(name: str) -> tuple[nn.Module, list[Tensor]]:
    """The model, to be left as it is, and what it says."""
    model = make(name)
    return model, says(model)


def data_for(model: nn.Module, n: int) -> tuple[Tensor, Tensor | None]:
    """Data as `loss` takes them, and labels or a context or None."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, models.UNet):
        return torch.randn(n, 2, 4, 4, generator=generator), torch.full((n,), 0.5)
    core = model.autoencoder if isinstance(model, models.LatentDiffusion) else model
    if core.levels is None:
        x = torch.randn(n, *core.shape, generator=generator).to(core.dtype)
    else:
        x = torch.randint(core.levels, (n, *core.shape), generator=generator)
    if model.num_classes is not None:
        return x, torch.arange(n) % model.num_classes
    features = getattr(model, "context_features", None)
    return x, None if features is None else torch.randn(n, features, generator=generator)


@torch.no_grad()
def says(model: nn.Module, n: int = 2) -> list[Tensor]:
    """What the model says of data and what it draws, with fixed random numbers."""
    x, labels = data_for(model, n)
    torch.manual_seed(4)
    if isinstance(model, models.UNet):
        return [model(x, labels)]
    return [model.loss(x, labels), draw(model, n, labels)]


def draw(model: nn.Module, n: int, labels: Tensor | None = None) -> Tensor:
    if isinstance(model, models.Flow):
        return model.sample(n, labels)
    stepwise = models.Diffusion | models.DenoisingAutoencoder | models.LatentDiffusion
    options = {"steps": 2} if isinstance(model, stepwise) else {}
    if isinstance(model, models.DiffusionProbabilisticModel):
        options = {"steps": model.config["num_train_timesteps"]}
    return model.sample(n, labels=labels, generator=torch.Generator().manual_seed(5), **options)
