"""How a model learns: its optimisers, its training step, its scores, its samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from torch.optim import AdamW, Optimizer

from fastgen.data import Examples, Images
from fastgen.models.model import declared
from fastgen.train.pictures import MOST_POINTS, save_figure, save_grid

# Samples in a picture.
NUM_SAMPLES = 64


@dataclass(frozen=True)
class Batch:
    """Examples `[B, ...]` as a model takes them, images as integer levels, and their labels `[B]`, or None."""

    x: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(cls, examples: Examples, model: nn.Module, device: torch.device) -> Batch:
        """`examples` on `device`, real ones in the dtype of `model`, with their labels if it takes any.

        Raises:
            ValueError: the model takes labels and there are none.
        """
        labels = None
        if num_classes(model) is not None:
            if examples.labels is None:
                raise ValueError(
                    f"this {type(model).__name__} is class-conditional (num_classes), but the data has no labels"
                )
            labels = examples.labels.to(device, non_blocking=True)
        x = examples.values
        dtype = next(model.parameters()).dtype if x.is_floating_point() else x.dtype
        return cls(x.to(device, dtype, non_blocking=True), labels)


def num_classes(model: nn.Module) -> int | None:
    """The number of classes `model` is conditioned on, or None."""
    return getattr(model, "num_classes", None)


class Network(nn.Module):
    """A network whose methods are called through `forward`: `network("loss", x)` is `network.module.loss(x)`.

    Gradient synchronisation and mixed precision act on `forward` alone, and a recipe calls other methods.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, method)(*args, **kwargs)


@dataclass
class Recipe:
    """How a model with a `loss` learns: one AdamW. What it is scored by and what it starts from, the model declares.

    For what that is, and what holds for a module that declares nothing, see `fastgen.models.model.Model`. Models that
    learn otherwise have a recipe of their own: see `fastgen.train.adversarial` for two networks, two optimisers and
    turns.

    Source: I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", 2019.

    Args:
        lr: peak learning rate.
        weight_decay: AdamW's, on tensors with two axes or more (not on biases and gains).
        betas: AdamW's.
        max_grad_norm: gradients are scaled down to this L2 norm at most; None leaves them.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr is {self.lr}, expected a positive number")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay}, expected 0 or more")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}, expected a positive number or None")

    def initialize(self, model: nn.Module, batch: Batch) -> None:
        """Set weights that depend on the data, once, before training."""
        if declared(model, "starts_from_data"):
            model.initialize(batch.x, batch.labels)

    def networks(self, model: nn.Module) -> dict[str, nn.Module]:
        """The parts of `model` whose gradients are synchronised separately."""
        return {"model": model}

    def optimizers(self, model: nn.Module) -> dict[str, Optimizer]:
        """Fresh optimisers by name. The trainer scales each group's `lr` by its schedule."""
        decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
        others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        # In one pass over all weights: on a small network the loop over tensors costs a tenth of a step.
        return {"model": AdamW(groups, lr=self.lr, betas=self.betas, fused=True)}

    def step(
        self,
        step: int,
        batch: Batch,
        networks: Mapping[str, Network],
        optimizers: Mapping[str, Optimizer],
        accelerator: Accelerator,
    ) -> dict[str, Tensor]:
        """Update number `step`, counted from 0.

        Whatever else it depends on is lost when a run is killed: a recipe keeps no state of its own.

        Returns:
            Scalars to be averaged over those steps of the epoch that have them, the same steps in all processes; any
            that is not finite stops the run.
        """
        loss = networks["model"]("loss", batch.x, batch.labels)
        grad_norm = self.update(loss, networks["model"], optimizers["model"], accelerator)
        model = accelerator.unwrap_model(networks["model"]).module
        return {**declared(model, "training_scores")(loss.detach(), batch.x), "grad_norm": grad_norm}

    def update(self, loss: Tensor, network: Network, optimizer: Optimizer, accelerator: Accelerator) -> Tensor:
        """Descend on `loss` by one step of `optimizer`. Returns the gradient's L2 norm before clipping."""
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        max_norm = math.inf if self.max_grad_norm is None else self.max_grad_norm
        grad_norm = accelerator.clip_grad_norm_(network.parameters(), max_norm)
        optimizer.step()
        # A loss scaler skips the steps that overflowed: they say nothing about the run's health.
        return torch.zeros_like(grad_norm) if accelerator.optimizer_step_was_skipped else grad_norm.detach()

    def evaluate(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Scores `[B]` of each example, to be averaged over a data set; what is random in them is `generator`'s."""
        return declared(model, "validation_scores")(batch.x, batch.labels, generator)

    def evaluate_all(self, model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """As `evaluate`, with the scores that take more time than training has after every epoch."""
        return declared(model, "test_scores")(batch.x, batch.labels, generator)

    def evaluate_together(self, model: nn.Module, examples: Examples, generator: Generator) -> dict[str, float]:
        """Scores of all examples together, such as a distance to samples; every process computes all of it."""
        return {}

    def concerns(self, model: nn.Module, history: Sequence[Mapping[str, Any]]) -> list[str]:
        """Warnings for a person, given the records of all epochs so far."""
        return []

    def sample(self, model: nn.Module, n: int, generator: Generator) -> Tensor:
        """`n` examples `[n, ...]`, images as integer levels; the classes, where there are any, take turns."""
        classes = num_classes(model)
        labels = None if classes is None else torch.arange(n, device=next(model.parameters()).device) % classes
        return model.sample(n, labels=labels, generator=generator)

    def draw(self, path: Path, model: nn.Module, generator: Generator, examples: Examples) -> None:
        """Write a picture of samples; `examples` are those that the model learned from."""
        if isinstance(examples, Images):
            save_grid(path, self.sample(model, NUM_SAMPLES, generator), examples.levels)
            return
        samples = self.sample(model, min(len(examples), MOST_POINTS), generator)
        save_figure(path, samples, getattr(model, "log_prob", None), examples)
