"""How two networks learn against each other: turns, two optimisers, and the watch on what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from torch.optim import AdamW, Optimizer

from fastgen.data import Examples
from fastgen.models.adversarial import AdversarialModel
from fastgen.train.modes import ModeWatch, lead
from fastgen.train.recipe import Batch, Network, Recipe, num_classes

# Examples that are scored at most, and samples at least.
_MOST, _LEAST = 1000, 500
# When to warn: epochs before modes count, and the lead that leaves the generator little to learn from.
_PATIENCE, _WON = 5, 0.98


class Player(nn.Module):
    """One side of the game: has the parameters of one network, and a loss that takes both."""

    def __init__(self, model: AdversarialModel, name: str) -> None:
        super().__init__()
        self.network = getattr(model, name)
        # In a tuple, so that it is no submodule: the opponent's parameters are not this player's.
        self._game = (model, name)

    @property
    def model(self) -> AdversarialModel:
        return self._game[0]

    def loss(self, x: Tensor, labels: Tensor | None, regularize: bool) -> tuple[Tensor, dict[str, Tensor]]:
        model, name = self._game
        return model.player_loss(name, x, labels, regularize=regularize)


@dataclass
class AdversarialRecipe(Recipe):
    """Turns of two players: the discriminator learns from every batch, the generator from every k-th.

    k is the model's `discriminator_steps`. Penalties that are lazy, applied in every n-th update, share that update
    with the loss, so there are as many updates as without them.

    The best checkpoint is that of the least energy distance `2 E|x - y| - E|x - x'| - E|y - y'|` between samples of
    the averaged generator and validation examples, in units of the root mean square of the examples' deviations.
    Samples, of which there are as many as examples but 500 at least, depend on the weights alone.

    Reported for each epoch, of the averaged networks: `modes` that samples reach of `modes_total`, `mode_kl` (see
    `ModeWatch`), and the discriminator's `lead` (see `fastgen.train.modes.lead`) on samples and validation examples;
    in training, the lead of the networks themselves on their batches.

    Args:
        lr: peak learning rate of the generator.
        discriminator_lr: of the discriminator; None is `lr` too.

    The other arguments are as in `Recipe`.

    Source: Goodfellow et al. (2014), algorithm 1; Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (2017),
    for two learning rates; Szekely and Rizzo, "Energy Statistics" (2013), for the distance.
    """

    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    max_grad_norm: float | None = None
    discriminator_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        other = self.discriminator_lr
        if other is not None and not (math.isfinite(other) and other > 0):
            raise ValueError(f"discriminator_lr is {other}, expected a positive number or None")

    def networks(self, model: nn.Module) -> dict[str, nn.Module]:
        return {name: Player(model, name) for name in model.players}

    def optimizers(self, model: nn.Module) -> dict[str, Optimizer]:
        rates = {"generator": self.lr, "discriminator": self.discriminator_lr or self.lr}
        return {name: self._optimizer(model, name, lr) for name, lr in rates.items()}

    def _optimizer(self, model: AdversarialModel, name: str, lr: float) -> Optimizer:
        parameters = [p for p in getattr(model, name).parameters() if p.requires_grad]
        return AdamW(parameters, lr=lr, betas=self.betas, weight_decay=self.weight_decay)

    def step(
        self,
        step: int,
        batch: Batch,
        networks: Mapping[str, Network],
        optimizers: Mapping[str, Optimizer],
        accelerator: Accelerator,
    ) -> dict[str, Tensor]:
        model = accelerator.unwrap_model(networks["discriminator"]).module.model
        told = self._turn("discriminator", step, batch, networks, optimizers, accelerator, model)
        outputs = told.pop("real_outputs"), told.pop("fake_outputs")
        told["lead"] = lead(*outputs)
        if step % model.discriminator_steps == model.discriminator_steps - 1:
            update = step // model.discriminator_steps
            told |= self._turn("generator", update, batch, networks, optimizers, accelerator, model)
        return told

    def _turn(
        self,
        name: str,
        update: int,
        batch: Batch,
        networks: Mapping[str, Network],
        optimizers: Mapping[str, Optimizer],
        accelerator: Accelerator,
        model: AdversarialModel,
    ) -> dict[str, Tensor]:
        """Update number `update` of a player, counted from 0."""
        loss, told = networks[name]("loss", batch.x, batch.labels, model.regularizes(name, update))
        norm = self.update(loss, networks[name], optimizers[name], accelerator)
        return {**told, f"{name}_grad_norm": norm}

    @torch.no_grad()
    def evaluate_together(self, model: nn.Module, examples: Examples, generator: Generator) -> dict[str, float]:
        real = examples[:_MOST]
        batch = Batch.of(real, model, model.device)
        n = max(_LEAST, len(real))
        labels = None
        if num_classes(model) is not None:
            # Classes as frequent as in the data.
            labels = batch.labels[torch.arange(n, device=model.device) % len(real)]
        samples = model.sample(n, labels=labels, generator=generator)
        modes = ModeWatch(real.values, real.labels)(samples)
        outputs = [model.discriminate(model.normalize(x), y) for x, y in ((batch.x, batch.labels), (samples, labels))]
        return {
            "energy": energy_distance(batch.x, samples),
            "modes": float(modes.covered),
            "modes_total": float(modes.total),
            "mode_kl": modes.kl,
            "lead": lead(*outputs).item(),
        }

    def concerns(self, model: nn.Module, history: Sequence[Mapping[str, Any]]) -> list[str]:
        last, found = history[-1], []
        if len(history) >= _PATIENCE and last["validation_modes"] <= last["validation_modes_total"] / 2:
            found.append(
                f"samples reach {last['validation_modes']:.0f} of {last['validation_modes_total']:.0f} modes of the "
                f"data: the generator may have collapsed"
            )
        # A Wasserstein critic is meant to win: its slope, not its verdict, is what the generator learns from.
        saturates = model.loss_name != "wasserstein"
        if saturates and len(history) >= _PATIENCE and all(r["train_lead"] > _WON for r in history[-3:]):
            found.append(
                f"the discriminator's lead is {last['train_lead']:.3f} of 1: the generator learns little from one that "
                f"always wins (a lower --discriminator-lr, --set r1=1 or --set augment=translation hold it back)"
            )
        return found


def energy_distance(x: Tensor, y: Tensor) -> float:
    """`2 E|x - y| - E|x - x'| - E|y - y'|` of two sets [N, ...] and [M, ...], in units of x's deviations.

    Without the pairs of a point with itself: its mean is 0 where the sets are of one distribution.
    """
    a, b = x.flatten(1).double(), y.flatten(1).double()
    unit = a.var(0, correction=0).sum().sqrt().clamp(min=1e-12)
    between = torch.cdist(a, b).mean()
    within = sum(torch.cdist(t, t).sum() / max(1, len(t) * (len(t) - 1)) for t in (a, b))
    return ((2 * between - within) / unit).item()
