"""The table of speeds in README.md, written from a result file: `python -m fastgen.bench.readme [--check]`.

No number reaches the README by hand: the table between the two markers is this module's, and a test compares them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastgen.bench.results import read
from fastgen.bench.table import seconds, times

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results" / "intel-xeon-2c.json"
_PEERS = ("nflows", "zuko")
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"

# One row for each thing a reader may want to know, and what it is called there: (op, start of the case, pass).
_NSF = "8 couplings, D=16, 2x128, K=8"
SHOWN = {
    ("rational_quadratic_spline", "4096x32, 8 bins", "forward"): "`rational_quadratic_spline`, 4096 x 32, 8 bins",
    ("rational_quadratic_spline", "4096x32, 8 bins", "inverse"): "its inverse",
    ("rational_quadratic_spline", "4096x32, 8 bins", "forward_backward"): "`rational_quadratic_spline`, with gradient",
    ("flows/NeuralSplineFlow", f"{_NSF}, batch 1", "log_prob"): "density of 1 point, neural spline flow 8 x 16",
    ("flows/NeuralSplineFlow", f"{_NSF}, batch 64", "sample"): "draw 64 points, the same flow",
    ("flows/NeuralSplineFlow", f"{_NSF}, batch 4096", "log_prob"): "density of 4096 points, the same flow",
    ("flows/NeuralSplineFlow", f"{_NSF}, batch 4096", "step"): "a training step of that flow, batch 4096",
    ("flows/MAF", "3 MLPs, D=64, 2x128, batch 256", "sample"): "draw 256 points, masked autoregressive flow 3 x 64",
    ("kde_log_density", "10000x10000, d=8", "forward"): "`kde_log_density`, 10,000 queries and points in 8 dimensions",
    ("kde_log_density", "10000x10000, d=8", "forward_backward"): "`kde_log_density`, with gradient in both",
    ("sampling/GatedPixelCNN", "10x64, 28x28, batch 1", "sample"): "draw 1 image, Gated PixelCNN 10 x 64, 28x28",
    ("sampling/GatedPixelCNN", "10x64, 28x28, batch 64", "sample"): "draw 64 images, the same network",
    ("sampling/PixelCNNPP", "2x2x160, 32x32, batch 1", "sample"): "draw 1 image, PixelCNN++ 160 channels, 32x32",
    ("masked_conv2d", "64x64x28x28 to 64, 7x7 B", "forward_backward"): "`masked_conv2d` 7x7, with gradient",
    ("masked_conv2d", "64x64x28x28 to 64, 3x3 B", "forward_backward"): "`masked_conv2d` 3x3, with gradient",
    ("discretized_logistic_mixture_log_prob", "16x3x32x32, 10 mixtures", "forward_backward"): (
        "`discretized_logistic_mixture_log_prob`, with gradient"
    ),
    ("discretized_logistic_mixture_sample", "16x3x32x32, 10 mixtures", "forward"): (
        "`discretized_logistic_mixture_sample`"
    ),
    ("gated_activation", "64x128x28x28", "forward"): "`gated_activation`",
    ("gated_activation", "64x128x28x28", "forward_backward"): "`gated_activation`, with gradient",
    ("causal_conv1d", "4x64x4096 to 128, 2 taps, dilation 16", "forward_backward"): "`causal_conv1d`, with gradient",
    ("training/GatedPixelCNN", "10x64, 28x28, batch 4", "step"): "a training step of that Gated PixelCNN",
}


def render(rows: Sequence[Mapping]) -> str:
    """The table in Markdown: time, and how many times slower others are at the same job: eager and compiled PyTorch,
    and the library that people use for it.
    """
    found = {(row["op"], row["case"], row["pass"]): row for row in rows if row["device"] == "cpu"}
    lines = ["| what | fastgen | eager PyTorch | `torch.compile` | library |", "|---|---|---|---|---|"]
    for key, name in SHOWN.items():
        if key in found:
            row = found[key]
            eager = row["ratios"].get("eager", row["ratios"].get("naive"))
            compiled = row["ratios"].get("compile", row["ratios"].get("naive_compiled"))
            library = next((f"{peer} {_slower(row['ratios'][peer])}" for peer in _PEERS if peer in row["ratios"]), "")
            cells = [name, seconds(row["median_s"]), *(_slower(ratio) for ratio in (eager, compiled)), library]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _slower(ratio: float | None) -> str:
    return "" if ratio is None else f"{times(ratio)}x"


def updated(text: str, rows: Sequence[Mapping]) -> str:
    """`text` with the table between its markers made again."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{render(rows)}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where the table is not that of the results")
    options = parser.parse_args()
    text = README.read_text()
    made = updated(text, read(RESULTS))
    if options.check:
        return int(made != text)
    README.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
