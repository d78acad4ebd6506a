"""Training for every model family: the loop, its checkpoints, and what a family brings to it."""

from fastgen.train.checkpoint import Checkpoint
from fastgen.train.evaluate import evaluate
from fastgen.train.interruption import TrainingInterrupted
from fastgen.train.load import load_model
from fastgen.train.recipe import Batch, Network, Recipe
from fastgen.train.settings import Settings
from fastgen.train.trainer import Trainer, TrainingDiverged

__all__ = [
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
