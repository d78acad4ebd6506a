"""`fastgen density`: classical densities of a table, compared by the likelihood of rows held out."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastgen.cli.options import add_device, check_report, use_device
from fastgen.cli.reports.tables import aligned, print_written
from fastgen.files import write_json, write_whole

if TYPE_CHECKING:
    from fastgen.cli.reports.densities import Result
    from fastgen.data import Vectors

HELP = "compare classical density estimators on a table"
EXAMPLES = """methods:
  gaussian         one normal density
  mixture          1 to 8 normal densities, their number by BIC
  histogram        bins of cross-validated width (unasked up to 3 columns)
  kde              a kernel on every row
  kde-adaptive     kernels as wide as the sqrt(n)-th neighbour is far
  kde-debiased     kernels on rows that were moved along the estimated score (SD-KDE)
  series           cosines, as many as cross-validation wants (unasked up to 3 columns)
  neural           networks that learn the cumulative distribution (unasked up to 3 columns)

examples:
  fastgen density table.csv                                    all that suit the number of columns
  fastgen density table.csv --picture table.png                ... with the densities and their convergence drawn
  fastgen density x.npy --method kde gaussian --bandwidth cv   two of them; the bandwidth of greatest likelihood
  fastgen density x.npy --method kde --bandwidth 0.3           a bandwidth in the units of the data
  fastgen density table.csv --outliers 0.01 --output odd.txt   the rows that the best method finds unlikeliest

Every row is held out once (--folds) and scored by estimators that learned from n others, n from about 10 to all. What a
log-likelihood lacks is as the square of the density's error: where that falls like a power of n, the power is fitted
and stands beside the textbook's. A .csv may start with a line of names; an .npy is [rows, columns] or [rows]."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a table (.csv, .tsv, .txt, .dat), or an .npy or .npz array")
    parser.add_argument("--method", nargs="+", action="extend", metavar="NAME", help="of those below (default: all)")
    parser.add_argument(
        "--bandwidth",
        default="cv",
        metavar="RULE|NUMBER",
        help="of the kernels: cv (default), scott, silverman, isj, lscv, or a number in the units of the data",
    )
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="of the cross-validation (default: 5)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of folds and fits (default: 0)")
    parser.add_argument(
        "--max-rows", type=int, default=5000, metavar="N", help="compare on so many, drawn (default: 5000)"
    )
    add_device(parser)
    parser.add_argument("--picture", metavar="FILE", help="draw it: .png, .pdf or .svg")
    parser.add_argument("--json", metavar="FILE", help="write all numbers")
    parser.add_argument("--outliers", type=float, metavar="F", help="share of rows that are unlikely")
    parser.add_argument("--output", metavar="FILE", help="where their numbers go, counted from 1")


def _check(args: Namespace) -> None:
    """Raises ValueError for what makes no sense, before anything long is done."""
    check_report(args.picture, args.json, args.output)
    if (args.outliers is None) != (args.output is None):
        raise ValueError("--outliers and --output go together: which share of the rows, and where to")
    if args.outliers is not None and not 0 < args.outliers <= 0.5:
        raise ValueError(f"--outliers {args.outliers:g}: expected a share above 0 and up to 0.5")
    if args.max_rows < 1:
        raise ValueError(f"--max-rows {args.max_rows}: expected at least 1")


def run(args: Namespace) -> int:
    import torch

    from fastgen.cli.reports import densities
    from fastgen.data import read_rows
    from fastgen.density import outliers

    _check(args)
    device = use_device(args.device)
    if device.type == "mps":
        raise ValueError("--device mps: it has no double precision, which densities are computed in")
    data = read_rows(args.file)
    columns = data.vectors.shape[1]
    names = densities.choose_methods(args.method, columns)
    everything = densities.standardize(data, device)
    compared = densities.subset(len(data), args.max_rows, args.seed)
    part = data if len(compared) == len(data) else data[compared]
    standardized = densities.standardize(part, device)
    bandwidth = densities.parse_bandwidth(args.bandwidth, standardized.deviation)
    strict = args.method is not None
    results, failed = densities.compare(standardized, names, bandwidth, args.seed, args.folds, strict=strict)
    print(_report(args, data, len(part), results, failed))
    if args.json:
        content = {
            "file": args.file,
            "rows": len(data),
            "compared_rows": len(part),
            "columns": list(data.columns) if data.columns else columns,
            "folds": args.folds,
            "seed": args.seed,
            "bandwidth": args.bandwidth,
            "unit": "nats per row, in the units of the data",
            "methods": densities.as_json(results, columns),
            "failed": failed,
        }
        write_json(Path(args.json), content)
    if args.picture:
        from fastgen.cli.reports.densities_picture import save_picture

        # All of them over one column, the best over two.
        shown = results if columns == 1 else results[: int(columns == 2)]
        drawn = {result.name: standardized.fitted(result.name, bandwidth, args.seed) for result in shown}
        save_picture(Path(args.picture), part, results, drawn)
    if args.outliers is not None:
        bandwidth = densities.parse_bandwidth(args.bandwidth, everything.deviation)
        model = results[0].method.fit(everything.rows[compared], bandwidth, args.seed)
        with torch.no_grad():
            unlikely = outliers(model, everything.rows, args.outliers).nonzero()[:, 0].tolist()
        write_whole(Path(args.output), "".join(f"{row + 1}\n" for row in unlikely).encode())
    print_written(picture=args.picture, JSON=args.json, outliers=args.output)
    return 0


def _report(args: Namespace, data: Vectors, compared: int, results: Sequence[Result], failed: dict[str, str]) -> str:
    """All that is printed of a comparison."""
    rows, columns = data.vectors.shape
    sizes = results[0].held_out.sizes
    drawn = f", {compared} of them drawn (--max-rows)" if compared < rows else ""
    parts = [
        f"{args.file}: {rows} rows{drawn}, {columns} column{'s' * (columns > 1)}; {args.folds} folds, so that "
        f"{sizes[-1]} rows are learned from\nand the others held out. Nats per row, +- the standard error over rows.",
        _ranking(results),
        _convergence(results, columns),
    ]
    notes = [f"{name} could not learn these rows: {reason}" for name, reason in failed.items()]
    if filled := [result.name for result in results if result.method.filled]:
        notes.append(
            f"{' and '.join(filled)}: zero in places, so 1/(n+1) is taken from it and spread as a wide normal density"
        )
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _ranking(results: Sequence[Result]) -> str:
    """The methods, best first, by what each is worth on rows it has not seen."""
    rows = [("method", "held-out log-likelihood", "behind the best", "")]
    for result in results:
        worth = f"{result.held_out.mean[-1]:.3f} +- {result.held_out.standard_error[-1]:.3f}"
        behind = "{:.3f} +- {:.3f}".format(*result.held_out.behind(results[0].held_out))
        rows.append((result.name, worth, "" if result is results[0] else behind, result.method.what))
    return aligned(rows, left={0, 3})


def _convergence(results: Sequence[Result], columns: int) -> str:
    """Held-out log-likelihood by the number of rows learned from, and how fast the error falls, beside the textbook."""
    sizes = results[0].held_out.sizes
    rows = [("method", *(f"n = {n}" for n in sizes), "error falls as", "textbook")]
    for result in results:
        means = ("" if mean != mean else f"{mean:.3f}" for mean in result.held_out.mean.tolist())
        rate, textbook = result.rate, result.method.rate
        falls = rate if isinstance(rate, str) else f"n^-{rate.rate:.2f} +- {rate.standard_error:.2f}"
        rows.append((result.name, *means, falls, f"n^-{textbook(columns)}" if textbook else ""))
    return aligned(rows, left={0, len(sizes) + 1, len(sizes) + 2})
