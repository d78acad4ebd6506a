"""How flows, diffusion models and autoencoders learn, and which recipe a model learns by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from fastgen.data import Examples
from fastgen.models.adversarial import AdversarialModel
from fastgen.models.autoencoder import Autoencoder
from fastgen.models.dcgan import WGANGP
from fastgen.models.denoising_autoencoder import DenoisingAutoencoder
from fastgen.models.diffusion import Diffusion
from fastgen.models.flow import Flow
from fastgen.models.stylegan2 import StyleGAN2
from fastgen.models.vae import VAE
from fastgen.models.variational_bound import BoundedByVariation
from fastgen.models.vqvae import VQVAE
from fastgen.train.adversarial import AdversarialRecipe, StyleRecipe, WassersteinRecipe
from fastgen.train.figures import MOST_POINTS, save_figure
from fastgen.train.recipe import Batch, Network, Recipe


@dataclass
class FlowRecipe(Recipe):
    """How a flow learns: as any density; layers that start from data see the first batch before training."""

    def initialize(self, model: nn.Module, batch: Batch) -> None:
        model.initialize(batch.x, batch.labels)


@dataclass
class VectorRecipe(FlowRecipe):
    """A flow of vectors is scored by its mean negative log-likelihood in nats, in units of the data."""

    score = "nats"

    def nats_per_score(self, x: Tensor) -> float:
        return 1.0

    def draw(self, path: Path, model: nn.Module, generator: Generator, examples: Examples) -> None:
        samples = self.sample(model, min(len(examples), MOST_POINTS), generator)
        save_figure(path, samples, model.log_prob, examples)


@dataclass
class DequantizedRecipe(FlowRecipe):
    """A flow of images of integer levels is scored by a bound, with noise that makes them continuous."""

    def evaluate(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        return {self.score: model.bits_per_dim(batch.x, batch.labels, generator=generator)}


# Draws of time and noise for each image that is scored: one alone would hide what an epoch changed.
_DRAWS = 2
# Of the sum over timesteps that bounds a likelihood, for each image.
_BOUND_TIMESTEPS = 50


@dataclass
class DiffusionRecipe(Recipe):
    """A diffusion model learns by its own loss, and is scored by it."""

    score = "loss"

    def initialize(self, model: nn.Module, batch: Batch) -> None:
        pass

    def nats_per_score(self, x: Tensor) -> float:
        return 1.0

    def evaluate(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        return {self.score: model.validation_errors(batch.x, batch.labels, generator=generator)}


@dataclass
class DiffusionLikelihood(DiffusionRecipe):
    """Also scored by a bound of its likelihood, which takes many more calls of the network."""

    def evaluate(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        options = {"timesteps": _BOUND_TIMESTEPS} if isinstance(model, BoundedByVariation) else {}
        bits = model.bits_per_dim(batch.x, batch.labels, generator=generator, **options)
        return {**super().evaluate(model, batch, generator), "bits_per_dim": bits}


@dataclass
class AutoencoderRecipe(Recipe):
    """An autoencoder learns by its loss, and is scored by it; what it draws latents from is fitted after an epoch."""

    score = "loss"

    def nats_per_score(self, x: Tensor) -> float:
        return 1.0

    def end_epoch(self, model: nn.Module, examples: Examples) -> None:
        model.fit_latents(examples.values.to(model.device))

    def evaluate(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        return {self.score: model.errors(batch.x, batch.labels)}


@dataclass
class AutoencoderScores(AutoencoderRecipe):
    """Also scored by the mean squared error of a pixel, in levels."""

    def evaluate(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        difference = model.reconstruct(batch.x, batch.labels).float() - batch.x.float()
        return {**super().evaluate(model, batch, generator), "mse": difference.square().flatten(1).mean(1)}


@dataclass
class DenoisingRecipe(Recipe):
    """A denoising autoencoder learns by its loss; it is scored by that of a few corruptions of each image."""

    score = "loss"

    def nats_per_score(self, x: Tensor) -> float:
        return 1.0

    def evaluate(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        draws = [model.errors(batch.x, batch.labels, generator=generator) for _ in range(_DRAWS)]
        return {self.score: sum(draws) / _DRAWS}


@dataclass
class VariationalRecipe(Recipe):
    """A model learns by its loss in nats, and is scored by its bound on the likelihood."""

    def step(
        self,
        step: int,
        batch: Batch,
        networks: Mapping[str, Network],
        optimizers: Mapping[str, Optimizer],
        accelerator: Accelerator,
    ) -> dict[str, Tensor]:
        # Not the score: it may weigh the terms of the bound, or have more of them.
        nats = networks["model"]("loss", batch.x, batch.labels)
        grad_norm = self.update(nats, networks["model"], optimizers["model"], accelerator)
        return {"loss": nats.detach(), "grad_norm": grad_norm}

    def evaluate(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        return {self.score: model.bits_per_dim(batch.x, batch.labels, generator=generator)}


@dataclass
class CodesRecipe(VariationalRecipe):
    """A model of codes that start from data."""

    def initialize(self, model: nn.Module, batch: Batch) -> None:
        model.initialize(batch.x, batch.labels)


# Of the importance-weighted bound.
_IMPORTANCE_SAMPLES = 100


@dataclass
class ImportanceWeighted(VariationalRecipe):
    """Also scored by a bound that is tighter, of many weighted samples."""

    def evaluate(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        options = {"samples": _IMPORTANCE_SAMPLES, "generator": generator}
        bits = model.bits_per_dim(batch.x, batch.labels, **options)
        return {**super().evaluate(model, batch, generator), f"iwae{_IMPORTANCE_SAMPLES}_bits_per_dim": bits}


# By the first class that a model is of.
_RECIPES: dict[type[nn.Module], type[Recipe]] = {
    Diffusion: DiffusionRecipe,
    Autoencoder: AutoencoderRecipe,
    DenoisingAutoencoder: DenoisingRecipe,
    VAE: VariationalRecipe,
    VQVAE: CodesRecipe,
}
# Where scoring takes more than training wants to wait for.
_SCORING: dict[type[nn.Module], type[Recipe]] = {
    Diffusion: DiffusionLikelihood,
    Autoencoder: AutoencoderScores,
    VAE: ImportanceWeighted,
}
_GANS: dict[type[AdversarialModel], type[AdversarialRecipe]] = {WGANGP: WassersteinRecipe, StyleGAN2: StyleRecipe}


def recipe_class(model: nn.Module) -> type[Recipe]:
    """The recipe that `model` learns by."""
    if isinstance(model, Flow):
        return VectorRecipe if model.levels is None else DequantizedRecipe
    if isinstance(model, AdversarialModel):
        return _GANS.get(type(model), AdversarialRecipe)
    return next((recipe for kind, recipe in _RECIPES.items() if isinstance(model, kind)), Recipe)


def scoring_recipe(model: nn.Module) -> Recipe:
    """The recipe whose scores `fastgen evaluate` prints."""
    return next((recipe() for kind, recipe in _SCORING.items() if isinstance(model, kind)), recipe_class(model)())
