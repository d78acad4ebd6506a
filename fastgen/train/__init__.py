"""Training for every model family: the loop, its checkpoints, and what a family brings to it."""

from fastgen.train.adversarial import AdversarialRecipe
from fastgen.train.checkpoint import Checkpoint
from fastgen.train.evaluate import evaluate
from fastgen.train.interruption import TrainingInterrupted
from fastgen.train.load import load_model
from fastgen.train.recipe import Batch, Network, Recipe
from fastgen.train.recipes import DequantizedRecipe, FlowRecipe, VectorRecipe
from fastgen.train.settings import Settings
from fastgen.train.trainer import Trainer, TrainingDiverged

__all__ = [
    "AdversarialRecipe",
    "Batch",
    "Checkpoint",
    "DequantizedRecipe",
    "FlowRecipe",
    "Network",
    "Recipe",
    "Settings",
    "Trainer",
    "TrainingDiverged",
    "TrainingInterrupted",
    "VectorRecipe",
    "evaluate",
    "load_model",
]
