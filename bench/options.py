"""What a run of `fastgen bench` was asked to do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

AGAINST = ("eager", "compile", "peers")


@dataclass(frozen=True)
class Options:
    """Attributes:
    device: `cpu` or `cuda`.
    dtypes: of the ops' cases.
    passes: those to measure; None for all.
    backends: `auto` or the name of a backend, one row each.
    against: which baselines: some of `AGAINST`.
    threads: on a CPU.
    quick: one case per op and short measurements.
    case: only cases whose names contain this.
    """

    device: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    passes: tuple[str, ...] | None = None
    backends: tuple[str, ...] = ("auto",)
    against: tuple[str, ...] = AGAINST
    threads: int = 1
    quick: bool = False
    case: str = ""

    @property
    def budget_s(self) -> float:
        """Seconds of timing per row."""
        return 0.5 if self.quick else 1.5
