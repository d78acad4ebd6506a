"""Training of every model: the loop, its checkpoints, and how a model learns."""

from fastgen.train.adversarial import AdversarialRecipe
from fastgen.train.checkpoint import Checkpoint
from fastgen.train.evaluate import evaluate
from fastgen.train.load import load_model
from fastgen.train.recipe import Batch, Network, Recipe
from fastgen.train.settings import Settings
from fastgen.train.terminal import TrainingInterrupted
from fastgen.train.trainer import Trainer, TrainingDiverged

__all__ = [
    "AdversarialRecipe",
    "Batch",
    "Checkpoint",
    "Network",
    "Recipe",
    "Settings",
    "Trainer",
    "TrainingDiverged",
    "TrainingInterrupted",
    "evaluate",
    "load_model",
]
