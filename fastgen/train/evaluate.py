"""Scores of a model on a set of examples."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from fastgen.data import Examples
from fastgen.train.recipe import Batch, Recipe
from fastgen.train.settings import recipe_of


@torch.no_grad()
def evaluate(
    model: nn.Module,
    examples: Examples,
    recipe: Recipe | None = None,
    *,
    batch_size: int = 256,
    all_scores: bool = False,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """The mean over `examples` of each of the recipe's scores (the one of the model's family, by default).

    Each process of `accelerator` scores its share of the batches and all return the same means. A score that takes
    noise draws it from the place of the batch: the same for every call, every checkpoint and any number of processes.
    `all_scores` are those that take more time than training has after every epoch, too.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    recipe, accelerator = recipe or recipe_of(model), accelerator or Accelerator()
    was_training = model.training
    model.eval()
    scores_of = recipe.evaluate_all if all_scores else recipe.evaluate
    totals: dict[str, float] = {}
    stride = batch_size * accelerator.num_processes
    for start in range(batch_size * accelerator.process_index, len(examples), stride):
        batch = Batch.of(examples[start : start + batch_size], model, accelerator.device)
        generator = torch.Generator().manual_seed(start)
        for name, scores in scores_of(model, batch, generator).items():
            totals[name] = totals.get(name, 0.0) + scores.cpu().double().sum().item()
    together = recipe.evaluate_together(model, examples, torch.Generator().manual_seed(0))
    model.train(was_training)
    shares = gather_object([totals])
    # The first process always has a share, so it has the names of all scores.
    means = {name: math.fsum(share.get(name, 0.0) for share in shares) / len(examples) for name in shares[0]}
    return means | together
