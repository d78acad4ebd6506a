"""How flows and diffusion models learn, and which recipe a model learns by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Generator, Tensor, nn

from fastgen.data import Examples
from fastgen.models.adversarial import AdversarialModel
from fastgen.models.dcgan import WGANGP
from fastgen.models.diffusion import Diffusion
from fastgen.models.flow import Flow
from fastgen.models.stylegan2 import StyleGAN2
from fastgen.models.variational_bound import BoundedByVariation
from fastgen.train.adversarial import AdversarialRecipe, StyleRecipe, WassersteinRecipe
from fastgen.train.figures import MOST_POINTS, save_figure
from fastgen.train.recipe import Batch, Recipe


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
        draws = [model.errors(batch.x, batch.labels, generator=generator) for _ in range(_DRAWS)]
        return {self.score: sum(draws) / _DRAWS}


@dataclass
class DiffusionLikelihood(DiffusionRecipe):
    """Also scored by a bound of its likelihood, which takes many more calls of the network."""

    def evaluate(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        options = {"timesteps": _BOUND_TIMESTEPS} if isinstance(model, BoundedByVariation) else {}
        bits = model.bits_per_dim(batch.x, batch.labels, generator=generator, **options)
        return {**super().evaluate(model, batch, generator), "bits_per_dim": bits}


_GANS: dict[type[AdversarialModel], type[AdversarialRecipe]] = {WGANGP: WassersteinRecipe, StyleGAN2: StyleRecipe}


def recipe_class(model: nn.Module) -> type[Recipe]:
    """The recipe that `model` learns by."""
    if isinstance(model, Diffusion):
        return DiffusionRecipe
    if isinstance(model, AdversarialModel):
        return _GANS.get(type(model), AdversarialRecipe)
    if not isinstance(model, Flow):
        return Recipe
    return VectorRecipe if model.levels is None else DequantizedRecipe


def scoring_recipe(model: nn.Module) -> Recipe:
    """The recipe whose scores `fastgen evaluate` prints."""
    return DiffusionLikelihood() if isinstance(model, Diffusion) else recipe_class(model)()
