"""`fastgen score`: generated images or features beside real ones, by any of the metrics."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from fastgen.cli.fid import FEATURES, SOURCES, add_sources, check_sources

HELP = "compare generated images or features with real ones"
EXAMPLES = f"""metrics (--metrics, with commas between):
  fid              Fréchet distance of the features; lower is better
  kid              kernel distance over 100 subsets, unbiased for few images; lower is better
  is               Inception Score of B: sure of each image, unsure of all (needs classes); higher is better
  prdc             precision (do samples look real), recall (is the real set covered), and their robust kin, density
                   and coverage, with 5 neighbours; higher is better
  cmmd             Gaussian kernel distance times 1000; CMMD where the features are CLIP's; lower is better
  swd              sliced Wasserstein distance; lower is better
  parzen           log-likelihood of A under kernels on B, nats; higher is better
  modes            how many classes of A appear in B, and how unevenly (needs classes)

{SOURCES}

{FEATURES}

examples:
  fastgen score data/ samples/
  fastgen score data/ samples/ --metrics fid,kid,prdc,is --json
  fastgen score digits samples.npy --features digits --metrics fid,prdc,modes
  fastgen score real.npy generated.npy --metrics prdc     rows of features, made elsewhere

The same seed gives the same numbers, in whatever order the images come."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="the reference: a folder, a file, or digits")
    parser.add_argument("b", metavar="B", help="the samples")
    parser.add_argument(
        "--metrics", default="fid,kid,prdc", metavar="M,M,...", help="of those below (default: fid,kid,prdc)"
    )
    add_sources(parser)


def run(args: Namespace) -> int:
    from fastgen.cli.reports.sources import Comparison
    from fastgen.metrics.moments import Statistics
    from fastgen.metrics.scores import choose_scores, score

    check_sources(args)
    # A misspelt name should not wait for features.
    names = choose_scores([name.strip() for name in args.metrics.split(",") if name.strip()], classes=True)
    comparison = Comparison.of(args)
    for source in comparison.sources:
        if isinstance(source, Statistics):
            raise ValueError(f"{source.name} holds statistics, which only `fastgen fid` can compare: expected examples")
    choose_scores(names, classes=hasattr(comparison.extractor, "logits_of_features"))
    real, fake = map(comparison.features_of, comparison.sources)
    found = score(real, fake, names, args.seed)
    if args.json:
        print(json.dumps(comparison.facts() | {"seed": args.seed, "metrics": found}))
    else:
        print(f"{comparison}; seed {args.seed}")
        print(_table(found))
    return 0


def _table(found: dict[str, float]) -> str:
    """Numbers by name, a line each; a deviation stands behind what it is of."""
    width = max(map(len, found))
    lines = []
    for name, value in found.items():
        if name.endswith("_std") and name.removesuffix("_std") in found:
            continue
        deviation = found.get(f"{name}_std")
        number = f"{value:d}" if isinstance(value, int) else f"{value:.6g}"
        spread = "" if deviation is None else f" +- {deviation:.2g}"
        lines.append(f"{name:{width}}  {number}{spread}")
    return "\n".join(lines)
