"""The training loop of every model family."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from fastgen.data import Dataset
from fastgen.files import write_json
from fastgen.models.model import declared
from fastgen.train.checkpoint import BEST, LAST, Checkpoint, held_run, load_weights, remove_folder, set_weights, settled
from fastgen.train.ema import ExponentialMovingAverage
from fastgen.train.evaluate import evaluate
from fastgen.train.recipe import Batch, Network, Recipe
from fastgen.train.schedule import epoch_order, seed_step, warmup_cosine
from fastgen.train.settings import Settings, State, recipe_of
from fastgen.train.terminal import Interruption, Progress, TrainingInterrupted

# Reading a scalar back from an accelerator stops its queue, so there it is done for this many steps at a time.
STEPS_PER_READING = 50
# Settings that may differ when a run is resumed. With other epochs, the learning rate follows the new schedule.
MAY_CHANGE = {"settings.epochs", "settings.save_every", "settings.sample_every"}


class TrainingDiverged(RuntimeError):
    """A training scalar or a score is no longer finite."""


class Trainer:
    """Trains `model` on `dataset` and writes to the folder `out`.

    Written are the checkpoints `last/` and `best/`, `metrics.json` and `samples.png`. Runs in one process or,
    under `accelerate launch`, in several: each takes an equal share of every batch, gradients and scalars are averaged,
    and the numbers are those of one process up to the rounding of sums (dropout excepted: each process draws its own).

    A run that is killed and resumed gives bit for bit the numbers of one that was not, on a CPU with the same number of
    threads: order and randomness depend on the seed and the step alone. `fit` seeds the global generators.

    Args:
        model: the model; `num_classes`, where it has one that is not None, says that it takes labels.
        dataset: what to learn.
        out: the run's folder.
        recipe: the way of learning; None takes that of the model's family.
        settings: how long and in what order.
        config: JSON-able facts about the run, kept in its checkpoints.
        accelerator: placement, precision and processes.
        quiet: no progress bar.

    Raises:
        ValueError: the batch does not divide by the number of processes, or fp16 on a CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        out: str | Path,
        *,
        recipe: Recipe | None = None,
        settings: Settings | None = None,
        config: Mapping[str, Any] | None = None,
        accelerator: Accelerator | None = None,
        quiet: bool = False,
    ) -> None:
        self.model, self.dataset, self.out = model, dataset, Path(out)
        self.recipe, self.settings = recipe or recipe_of(model), settings or Settings()
        self.accelerator = accelerator or Accelerator()
        self.quiet = quiet
        if self.accelerator.mixed_precision == "fp16" and self.accelerator.device.type == "cpu":
            # Accelerate would silently train in float32.
            raise ValueError("precision is fp16, expected no or bf16 on a CPU")
        self.batch_size = min(self.settings.batch_size, len(dataset.train))
        if self.batch_size % self.accelerator.num_processes:
            processes = self.accelerator.num_processes
            raise ValueError(f"batch_size is {self.batch_size}, expected a multiple of the {processes} processes")
        self.steps_per_epoch = len(dataset.train) // self.batch_size
        self.steps = self.steps_per_epoch * self.settings.epochs
        described = {
            **(config or {}),
            "dataset": dataset.summary(),
            "recipe": asdict(self.recipe),
            "settings": asdict(self.settings),
        }
        # As it will be read back: tuples become lists.
        self.config: dict[str, Any] = json.loads(json.dumps(described))

    def fit(self, resume: bool = False) -> dict[str, Any]:
        """Train to the end. Returns what `metrics.json` holds.

        Args:
            resume: go on from the `last` checkpoint in `out`, where there is one.

        Raises:
            ValueError: `out` cannot be written, or another run trains in it; a checkpoint is damaged or of another run.
            TrainingDiverged: the loss, the gradient or a score is not finite; the checkpoints stay as they are.
            TrainingInterrupted: SIGINT or SIGTERM came; the run was saved first.
            OSError: a file could not be written; the checkpoint before is whole.
        """
        with held_run(self.out):
            return self._fit(resume)

    def _fit(self, resume: bool) -> dict[str, Any]:
        self._prepare()
        resume = resume and settled(self.out / LAST).exists()
        if resume:
            self._restore(Checkpoint.load(self.out / LAST))
        self._clock = time.perf_counter() - self.state.seconds
        if not resume:
            self._begin()
        self._progress = Progress(self.steps, self.state.step, quiet=self.quiet, shown=self.accelerator.is_main_process)
        try:
            with Interruption() as interruption:
                while self.state.step < self.steps:
                    self._train_step(interruption)
        finally:
            self._progress.close()
        return self._finish()

    def _prepare(self) -> None:
        """Place the model and make what goes with it, for a run at its beginning."""
        self.model.to(self.accelerator.device)
        seed_step(self.settings.seed, 0, 0)
        self.recipe.initialize(
            self.model, Batch.of(self.dataset.train[: self.batch_size], self.model, self.accelerator.device)
        )
        self.networks = {
            name: self.accelerator.prepare(Network(network))
            for name, network in self.recipe.networks(self.model).items()
        }
        self.optimizers = {
            name: self.accelerator.prepare(optimizer) for name, optimizer in self.recipe.optimizers(self.model).items()
        }
        self._peak_lrs = {name: [group["lr"] for group in o.param_groups] for name, o in self.optimizers.items()}
        # After `prepare`, which gives all processes the weights of the first.
        self.ema = ExponentialMovingAverage(self.model, self.settings.ema_decay)
        self.state = State()
        self._order_of = (-1, torch.empty(0))
        self._unread: list[dict[str, torch.Tensor]] = []

    def _begin(self) -> None:
        """Leave a checkpoint of the beginning, so that a run can be resumed from its first moment."""
        self._save(LAST)
        if self.accelerator.is_main_process:
            # The best checkpoint of an earlier run in this folder would pass for this run's.
            remove_folder(self.out / BEST)

    def _train_step(self, interruption: Interruption) -> None:
        """One step, and all that falls due after it."""
        state, step = self.state, self.state.step
        seed_step(self.settings.seed, step, self.accelerator.process_index)
        factor = warmup_cosine(step, self.steps, self.settings.warmup)
        for name, optimizer in self.optimizers.items():
            for group, lr in zip(optimizer.param_groups, self._peak_lrs[name], strict=True):
                group["lr"] = lr * factor
        self.model.train()
        batch = self._batch(step)
        self._unread.append(self.recipe.step(step, batch, self.networks, self.optimizers, self.accelerator))
        self.ema.update(self.model, step)
        state.step = step + 1

        epoch_ends = state.step % self.steps_per_epoch == 0
        save_due = self.settings.save_every is not None and state.step % self.settings.save_every == 0
        reading = 1 if self.accelerator.device.type == "cpu" else STEPS_PER_READING
        if not (epoch_ends or save_due or len(self._unread) >= reading):
            return
        stop = self._read_scalars(interruption.signum)
        if epoch_ends:
            self._end_epoch()
        elif save_due or stop:
            self._save(LAST)
        if stop:
            raise TrainingInterrupted(stop, self.out / LAST)

    def _batch(self, step: int) -> Batch:
        """This process' share of the batch of `step`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order_of[0] != epoch:
            self._order_of = (epoch, epoch_order(self.settings.seed, epoch, len(self.dataset.train)))
        start = position * self.batch_size
        mine = slice(start + self.accelerator.process_index, start + self.batch_size, self.accelerator.num_processes)
        return Batch.of(self.dataset.train[self._order_of[1][mine]], self.model, self.accelerator.device)

    def _read_scalars(self, signum: int) -> int:
        """Add the unread steps' scalars, averaged over the processes, to the epoch's sums.

        The signal travels with them, so that all processes stop at the same step. Returns the largest any has had.
        """
        steps, processes = len(self._unread), self.accelerator.num_processes
        # A step need not have the scalars of the one before: networks that take turns do not.
        names = [(step, name) for step, scalars in enumerate(self._unread, 1) for name in scalars]
        values = torch.stack([scalars[name].float() for scalars in self._unread for name in scalars])
        self._unread.clear()
        signs = torch.full((1,), float(signum), device=values.device)
        gathered = self.accelerator.gather(torch.cat([values, signs])).view(processes, -1).tolist()
        for column, (step, name) in enumerate(names):
            mean = math.fsum(values[column] for values in gathered) / processes
            self._check_finite(f"train {name}", mean, self.state.step - steps + step)
            self.state.sums[name] = self.state.sums.get(name, 0.0) + mean
            self.state.counts[name] = self.state.counts.get(name, 0) + 1
        self._progress.advance(steps, self._epoch_title(), self._means())
        return int(max(values[-1] for values in gathered))

    def _check_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            kept = f"; the last good checkpoint is {self.out / LAST}" if settled(self.out / LAST).exists() else ""
            raise TrainingDiverged(
                f"{what} is {value} after step {step}: try a lower learning rate or more warm-up{kept}"
            )

    def _means(self) -> dict[str, float]:
        return {name: total / self.state.counts[name] for name, total in self.state.sums.items()}

    def _epoch_title(self) -> str:
        return f"epoch {(self.state.step - 1) // self.steps_per_epoch + 1}/{self.settings.epochs}"

    def _end_epoch(self) -> None:
        """Score the averaged weights, and save."""
        state, epoch = self.state, self.state.step // self.steps_per_epoch
        declared(self.ema.model, "end_epoch")(self.dataset.train.values)
        scores = evaluate(self.ema.model, self.dataset.validation, self.recipe, accelerator=self.accelerator)
        for name, value in scores.items():
            self._check_finite(f"validation {name}", value, state.step)
        record = {
            "epoch": epoch,
            "step": state.step,
            **{f"train_{name}": mean for name, mean in self._means().items()},
            **{f"validation_{name}": value for name, value in scores.items()},
        }
        state.history.append(record)
        state.sums, state.counts = {}, {}
        chooses = declared(self.model, "validation_score")
        score = scores.get(chooses)
        if score is not None and (state.best is None or score < state.best[f"validation_{chooses}"]):
            state.best = record
            # Before `last`: a kill in between repeats this epoch and saves the same again.
            self._save(BEST)
        self._save(LAST)
        self._write_metrics()
        self._progress.end_epoch(f"epoch {epoch}/{self.settings.epochs}", record)
        self._warn()
        if self.settings.sample_every is not None and epoch % self.settings.sample_every == 0:
            self._draw_samples()

    def _warn(self) -> None:
        """Tell of what has become a concern in the epoch that ended."""
        before = self.state.history[:-1]
        # Compared by their number, since their texts change with every epoch.
        known = len(self.recipe.concerns(self.model, before)) if before else 0
        if len(concerns := self.recipe.concerns(self.model, self.state.history)) > known:
            for concern in concerns:
                self._progress.warn(concern)

    def _save(self, name: str) -> None:
        self.state.seconds = time.perf_counter() - self._clock
        scaler = self.accelerator.scaler
        self.state.scaler = None if scaler is None else scaler.state_dict()
        if self.accelerator.is_main_process:
            Checkpoint.of(self.config, self.model, self.ema.model, self.optimizers, asdict(self.state)).save(
                self.out / name
            )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Set the run to where `checkpoint` left it."""
        source = str(self.out / LAST)
        self._check_same_run(checkpoint.config, source)
        set_weights(self.model, checkpoint.model, source)
        set_weights(self.ema.model, checkpoint.ema, source)
        try:
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(checkpoint.optimizers[name])
                _lay_out_like_parameters(optimizer)
            self.state = State(**checkpoint.state)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source} holds the state of another training: {error}") from error
        if self.state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.state.scaler)

    def _check_same_run(self, theirs: Mapping[str, Any], source: str) -> None:
        mine, theirs = _flat(self.config), _flat(theirs)
        for key in sorted((mine.keys() | theirs.keys()) - MAY_CHANGE):
            if mine.get(key) != theirs.get(key):
                raise ValueError(
                    f"{source} is of another run: its {key} is {theirs.get(key)}, this run's is {mine.get(key)}"
                )

    def _finish(self) -> dict[str, Any]:
        """Score and sample the best averaged weights."""
        self.accelerator.wait_for_everyone()
        if self.state.best is not None:
            load_weights(self.ema.model, self.out / BEST)
        final: dict[str, Any] = {"epoch": self.state.best["epoch"] if self.state.best else self.settings.epochs}
        for part in ("train", "validation", "test"):
            if (examples := getattr(self.dataset, part)) is not None:
                scores = evaluate(self.ema.model, examples, self.recipe, accelerator=self.accelerator)
                final |= {f"{part}_{name}": value for name, value in scores.items()}
        metrics = self._write_metrics(final)
        self._draw_samples()
        return metrics

    def _write_metrics(self, final: dict[str, Any] | None = None) -> dict[str, Any]:
        metrics = {
            "config": self.config,
            "history": self.state.history,
            "best": self.state.best,
            "final": final,
            "seconds": round(time.perf_counter() - self._clock, 1),
        }
        if self.accelerator.is_main_process:
            write_json(self.out / "metrics.json", metrics)
        return metrics

    def _draw_samples(self) -> None:
        if self.accelerator.is_main_process:
            generator = torch.Generator().manual_seed(self.settings.seed)
            self.recipe.draw(self.out / "samples.png", self.ema.model, generator, self.dataset.train)
        self.accelerator.wait_for_everyone()


def _lay_out_like_parameters(optimizer: Optimizer) -> None:
    """Files hold tensors in one layout; an optimiser that goes over memory needs its state in the parameters' own."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
