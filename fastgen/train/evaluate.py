"""Scores of a model on a set of images."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from fastgen.data import Images
from fastgen.train.recipe import Batch, Recipe


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Images,
    recipe: Recipe | None = None,
    *,
    batch_size: int = 256,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """The mean over `images` of each of the recipe's scores (bits per dimension, by default).

    Each process of `accelerator` scores its share of the batches and all return the same means.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    recipe, accelerator = recipe or Recipe(), accelerator or Accelerator()
    was_training = model.training
    model.eval()
    totals: dict[str, float] = {}
    stride = batch_size * accelerator.num_processes
    for start in range(batch_size * accelerator.process_index, len(images), stride):
        batch = Batch.of(images[start : start + batch_size], model, accelerator.device)
        for name, scores in recipe.evaluate(model, batch).items():
            totals[name] = totals.get(name, 0.0) + scores.cpu().double().sum().item()
    model.train(was_training)
    shares = gather_object([totals])
    # The first process always has a share, so its names are all names.
    return {name: math.fsum(share.get(name, 0.0) for share in shares) / len(images) for name in shares[0]}
