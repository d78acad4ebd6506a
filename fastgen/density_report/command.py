"""What `fastgen density` does with the arguments of `fastgen.cli`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastgen.data import Vectors, read_rows
from fastgen.density import outliers
from fastgen.density_report import table
from fastgen.density_report.comparison import Result, Standardized, as_json, compare, fit_whole, standardize, subset
from fastgen.density_report.methods import METHODS, Settings, choose_methods, parse_bandwidth
from fastgen.density_report.picture import FORMATS, save_picture
from fastgen.device import use_device
from fastgen.whole_file import check_output, write_whole


def run(args: Namespace) -> int:
    """`fastgen density`. Returns the exit status."""
    _check(args)
    device = use_device(args.device)
    if device.type == "mps":
        raise ValueError("--device mps: it has no double precision, which densities are computed in")
    data = read_rows(args.file)
    names = choose_methods(args.method, data.vectors.shape[1])
    everything = standardize(data, device)
    compared = subset(len(data), args.max_rows, args.seed)
    part = data if len(compared) == len(data) else data[compared]
    standardized = standardize(part, device)
    settings = Settings(parse_bandwidth(args.bandwidth, standardized.deviation), args.seed)
    results, failed = compare(standardized, names, settings, args.folds, strict=args.method is not None)
    print(report(args, data, len(part), results, failed))
    if args.json:
        content = {
            "file": args.file,
            "rows": len(data),
            "compared_rows": len(part),
            "columns": list(data.columns) if data.columns else data.vectors.shape[1],
            "folds": args.folds,
            "seed": args.seed,
            "bandwidth": args.bandwidth,
            "unit": "nats per row, in the units of the data",
            "methods": as_json(results, data.vectors.shape[1]),
            "failed": failed,
        }
        write_whole(Path(args.json), (json.dumps(content, indent=1) + "\n").encode())
    if args.picture:
        save_picture(Path(args.picture), part, results, _log_densities(standardized, results, settings))
    if args.outliers is not None:
        _write_outliers(args, everything, compared, results[0].name)
    written = {"picture": args.picture, "JSON": args.json, "outliers": args.output}
    if any(written.values()):
        print("\n" + "\n".join(f"{what:9} {path}" for what, path in written.items() if path))
    return 0


def report(args: Namespace, data: Vectors, compared: int, results: Sequence[Result], failed: dict[str, str]) -> str:
    """All that is printed of a comparison."""
    rows, columns = data.vectors.shape
    sizes = results[0].held_out.sizes
    drawn = f", {compared} of them drawn (--max-rows)" if compared < rows else ""
    parts = [
        f"{args.file}: {rows} rows{drawn}, {columns} column{'s' * (columns > 1)}; {args.folds} folds, so that "
        f"{sizes[-1]} rows are learned from\nand the others held out. Nats per row, +- the standard error over rows.",
        table.ranking(results),
        table.convergence(results, columns),
    ]
    notes = [f"{name} could not learn these rows: {reason}" for name, reason in failed.items()]
    if filled := [result.name for result in results if METHODS[result.name].filled]:
        notes.append(
            f"{' and '.join(filled)}: zero in places, so 1/(n+1) is taken from it and spread as a wide normal density"
        )
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _check(args: Namespace) -> None:
    """Raises ValueError for what makes no sense, before anything long is done."""
    if args.picture and Path(args.picture).suffix.lower() not in FORMATS:
        raise ValueError(f"--picture {args.picture}: expected a file that ends with one of: {', '.join(FORMATS)}")
    if (args.outliers is None) != (args.output is None):
        raise ValueError("--outliers and --output go together: which share of the rows, and where to")
    if args.outliers is not None and not 0 < args.outliers <= 0.5:
        raise ValueError(f"--outliers {args.outliers:g}: expected a share above 0 and up to 0.5")
    if args.max_rows < 1:
        raise ValueError(f"--max-rows {args.max_rows}: expected at least 1")
    for path in (args.picture, args.json, args.output):
        if path:
            check_output(path)


def _log_densities(
    data: Standardized, results: Sequence[Result], settings: Settings
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The log-densities that a picture shows, of estimators of all rows."""
    columns = data.rows.shape[1]
    shown = results if columns == 1 else results[: int(columns == 2)]
    return {result.name: partial(data.log_density, fit_whole(data, result.name, settings)) for result in shown}


def _write_outliers(args: Namespace, data: Standardized, compared: Tensor, name: str) -> None:
    """Write the numbers, counted from 1, of the unlikeliest rows, one in a line and in order."""
    settings = Settings(parse_bandwidth(args.bandwidth, data.deviation), args.seed)
    model = METHODS[name].fit(data.rows[compared], settings)
    with torch.no_grad():
        flagged = outliers(model, data.rows, args.outliers)
    numbers = (flagged.nonzero()[:, 0] + 1).tolist()
    write_whole(Path(args.output), "".join(f"{number}\n" for number in numbers).encode())
