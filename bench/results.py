"""The rows of a benchmark, and the JSON file that keeps them.

The file is a list of objects, one per (op, case, pass, device, dtype, backend); a run replaces the rows it has measured
again and leaves the others. It is written beside and renamed, so a good file is never replaced by a partial one.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KEY = ("op", "case", "pass", "device", "dtype", "backend")


@dataclass(frozen=True)
class Row:
    """One measurement. Seconds are per call; a baseline's are from the same interleaved run.

    Attributes:
        op: the op's name, or `suite/subject` for what is not an op.
        pass_: `pass` in JSON.
        backend: the kernel that ran.
        cold_s, baseline_cold_s: medians of the first call after other methods have had the caches, where it was timed.
        baselines: median seconds by name.
        limit_s: what the ideal implementation would take on this machine, and in `limit_kind` what sets it; None where
            it is not known.
        rel_err: the largest relative L2 error of outputs and gradients against the reference in float64.
        peak_bytes: allocated during a call, at most, inputs not counted.
        baseline_errors, baseline_peak_bytes: the same for the baselines.
        metrics: what else a suite measures, named with its unit.
    """

    op: str
    case: str
    pass_: str
    device: str
    dtype: str
    backend: str
    median_s: float
    p20_s: float
    p80_s: float
    rounds: int
    cold_s: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    limit_s: float | None = None
    limit_kind: str | None = None
    rel_err: float | None = None
    peak_bytes: int | None = None
    baseline_cold_s: Mapping[str, float] = field(default_factory=dict)
    baseline_errors: Mapping[str, float] = field(default_factory=dict)
    baseline_peak_bytes: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        """How many times faster than each baseline."""
        return {name: seconds / self.median_s for name, seconds in self.baselines.items()}

    @property
    def limit_fraction(self) -> float | None:
        """The share of the limit that is reached; above one where caches serve the op better than the copy."""
        return None if self.limit_s is None else self.limit_s / self.median_s

    def to_json(self) -> dict[str, object]:
        found = {name.rstrip("_"): value for name, value in dataclasses.asdict(self).items()}
        return {**found, "ratios": self.ratios, "limit_fraction": self.limit_fraction}


def read(file: Path) -> list[dict]:
    """The rows of a result file; none where it does not exist. ValueError where it is something else."""
    if not file.exists():
        return []
    try:
        rows = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a result file ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= set(KEY) for row in rows):
        raise ValueError(f"{file}: not a result file (expected a list of objects with {', '.join(KEY)})")
    return rows


def upsert(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Replace the rows of `file` that have been measured again, and add the others at its end."""
    kept = {_key(row): row for row in read(file)}
    kept.update({_key(row): row for row in rows})
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        # A NaN is not JSON, and no measurement either.
        beside.write_text(json.dumps(list(kept.values()), indent=1, allow_nan=False) + "\n")
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def _key(row: Mapping[str, object]) -> tuple:
    return tuple(row[name] for name in KEY)
