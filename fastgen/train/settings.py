"""What a run is told, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """How long and in what order a model learns.

    Args:
        epochs: passes over the training examples.
        batch_size: examples in one step, over all processes. What is left over at an epoch's end is not seen in it.
        warmup: steps over which the learning rate rises linearly, before half a cosine takes it to 0.
        ema_decay: of the averaged weights, see `ExponentialMovingAverage`.
        seed: of the order of the examples and of the model's own randomness.
        save_every: steps between checkpoints; None saves at the end of each epoch only.
        sample_every: epochs between pictures of samples; None draws them at the end only.

    Raises:
        ValueError: a number is out of range.
    """

    epochs: int = 50
    batch_size: int = 64
    warmup: int = 100
    ema_decay: float = 0.999
    seed: int = 0
    save_every: int | None = None
    sample_every: int | None = None

    def __post_init__(self) -> None:
        for name, least in {
            "epochs": 1,
            "batch_size": 1,
            "warmup": 0,
            "seed": 0,
            "save_every": 1,
            "sample_every": 1,
        }.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, expected a number in [0, 1)")


@dataclass
class State:
    """Where a run stands, apart from its tensors."""

    step: int = 0
    seconds: float = 0.0
    # Over the steps of the present epoch, and how many steps had each.
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
