"""The tables of speeds in README.md, written from result files: `python -m fastgen.bench.readme [--check]`.

No number reaches the README by hand: a table between two markers is this module's, and a test compares them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastgen.bench.results import read
from fastgen.bench.table import seconds, times

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"

# One row for each thing a reader may want to know, and what it is called there: (op, case, pass).
_NSF = "8 couplings, D=16, 2x128, K=8"
_SEQUENCES = {
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
    ("knn", "10000x10000, d=8, k=5", "forward"): "`knn`, 5 neighbours of 10,000 queries in 8 dimensions",
    ("group_norm_silu", "16x128x32x32, 32 groups, scale and shift", "forward_backward"): (
        "`group_norm_silu` with scale and shift, with gradient"
    ),
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


_SCORES = {
    ("trace_sqrtm", "d=2048", "forward"): "`trace_sqrtm`, what FID waits for, 2048 x 2048",
    (
        "frechet_distance_from_features",
        "1000 and 1000, d=2048",
        "forward",
    ): "FID of the features of 1000 and 1000 images",
    ("frechet_distance_from_features", "1024 and a reference, d=2048", "forward_backward"): (
        "FID as a loss, of 1024 features, with gradient"
    ),
    ("moments", "50000x2048", "forward"): "`moments`, mean and covariance of 50,000 x 2048 features",
    ("kde_log_density", "10000x10000, d=2", "forward"): "`kde_log_density`, 10,000 queries and points in the plane",
    ("kde_log_density", "10000x10000, d=8", "forward"): "the same in 8 dimensions",
    ("kde_log_density", "10000x10000, d=8", "forward_backward"): "the same, with gradient in both",
    ("q_sample", "64x3x64x64, epsilon", "forward"): "`q_sample`, noise and its addition, 64 x 3 x 64 x 64",
    (
        "diffusion_update",
        "64x3x64x64, clipped, with noise",
        "forward",
    ): "`diffusion_update`, a sampler's step, the same",
    ("gaussian_reparameterize_kl", "4096x256", "forward_backward"): "`gaussian_reparameterize_kl`, with gradient",
    ("diffusion/likelihood", "UNet of 1M, 8x8, batch 8", "log_prob"): "likelihood of 8 digits by a score network",
    ("bias_act", "16x64x64x64, lrelu", "double_backward"): "`bias_act`, leaky ReLU, with second derivatives",
    ("norm_modulate", "8x64x64x64, SPADE, batch", "forward_backward"): "`norm_modulate` as in SPADE, with gradient",
    ("upfirdn2d", "16x64x32x32, 4 taps, 2x up", "forward_backward"): "`upfirdn2d`, twice as large, with gradient",
}


@dataclass(frozen=True)
class SpeedTable:
    """A table of the README.

    Args:
        name: of its markers.
        results: the file that its numbers are of.
        shown: (op, case, pass) of each row, and what it is called there.
        peers: libraries that people use today; of those that a row has, the first two are shown.
    """

    name: str
    results: Path
    shown: Mapping[tuple[str, str, str], str]
    peers: tuple[str, ...]

    @property
    def markers(self) -> tuple[str, str]:
        return f"<!-- {self.name} -->", f"<!-- /{self.name} -->"

    def render(self) -> str:
        """The table in Markdown: time, and how many times slower others are at the same job: eager and compiled
        PyTorch, and the libraries that people use for it.
        """
        found = {(row["op"], row["case"], row["pass"]): row for row in read(self.results) if row["device"] == "cpu"}
        lines = ["| what | fastgen | eager PyTorch | `torch.compile` | library |", "|---|---|---|---|---|"]
        for key, name in self.shown.items():
            row = found[key]
            eager = row["ratios"].get("eager", row["ratios"].get("naive"))
            compiled = row["ratios"].get("compile", row["ratios"].get("naive_compiled"))
            peers = [peer for peer in self.peers if peer in row["ratios"]][:2]
            library = ", ".join(f"{_PEERS.get(peer, peer)} {_slower(row['ratios'][peer])}" for peer in peers)
            lines.append(
                f"| {name} | {seconds(row['median_s'])} | {_slower(eager)} | {_slower(compiled)} | {library} |"
            )
        return "\n".join(lines)

    def updated(self, text: str) -> str:
        """`text` with the table between its markers made again."""
        begin, end = self.markers
        before, rest = text.split(begin)
        _, after = rest.split(end)
        return f"{before}{begin}\n{self.render()}\n{end}{after}"


# How a peer is called where its name in the results is another.
_PEERS = {"pytorch_fid": "pytorch-fid", "scikit_learn": "scikit-learn", "keops": "KeOps", "faiss": "FAISS"}
TABLES = (
    SpeedTable("speed", RESULTS / "intel-xeon-2c.json", _SEQUENCES, ("nflows", "zuko", "faiss")),
    SpeedTable(
        "scores",
        RESULTS / "amd-epyc-2c.json",
        _SCORES,
        ("pytorch_fid", "torchmetrics", "faiss", "keops", "scipy", "diffusers"),
    ),
)


def _slower(ratio: float | None) -> str:
    return "" if ratio is None else f"{times(ratio)}x"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a table is not that of its results")
    options = parser.parse_args()
    text = made = README.read_text()
    for table in TABLES:
        made = table.updated(made)
    if options.check:
        return int(made != text)
    README.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
