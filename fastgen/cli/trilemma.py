"""`fastgen trilemma`: quality, diversity and speed of trained models, as a table and a picture."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen.cli.options import add_device, check_at_least, check_report, use_device
from fastgen.cli.reports.tables import print_written
from fastgen.files import write_json

if TYPE_CHECKING:
    from fastgen.cli.reports.trilemma import Corner

HELP = "draw quality, diversity and speed of trained models"
EXAMPLES = """Each RUN is the folder of a run or of a checkpoint, all of the same data. Of each model as many
samples are drawn as there are held-out examples, on one clock, and three things are measured:

  quality          precision: the share of samples that lie among real examples (and density, Fréchet distance)
  diversity        coverage: the share of real examples that have a sample nearby (and recall)
  speed            samples a second, drawn one batch after another, after a first one that does not count

The picture has a triangle for each model with these three as its corners, and the numbers beside it. What is real is
drawn along: the training set itself, of which no model can have more quality and diversity than chance allows.

examples:
  fastgen trilemma runs/pixelcnn-digits runs/glow-digits runs/realnvp-digits
  fastgen trilemma runs/* --picture trilemma.png --json trilemma.json
  fastgen trilemma runs/nsf-two-moons runs/maf-two-moons -n 2000"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs or checkpoints of the same data")
    add_measures(parser, "trilemma.png")


def add_measures(parser: ArgumentParser, picture: str) -> None:
    """The options of `fastgen trilemma` and `compare`: how samples are measured, and where that is written."""
    parser.add_argument("-n", type=int, metavar="N", help="samples of each (default: up to 1000)")
    parser.add_argument("--features", metavar="NAME", help="as for score (default: what suits the data)")
    parser.add_argument("--weights", metavar="FILE", help="of Inception")
    parser.add_argument("--picture", default=picture, metavar="FILE", help=f".png, .pdf or .svg (default: {picture})")
    parser.add_argument("--json", metavar="FILE", help="write all numbers")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (default: 0)")
    add_device(parser)


def check_measures(args: Namespace) -> None:
    """Raises ValueError where what `add_measures` added makes no sense, before anything long is done."""
    from fastgen.cli.reports.trilemma import FEWEST

    check_report(args.picture, args.json)
    check_at_least("-n", args.n, FEWEST)


def run(args: Namespace) -> int:
    from fastgen.cli.reports.trilemma import headline, measure, table

    check_measures(args)
    corners, ideal, about = measure(args.runs, args.n, args.features, args.weights, args.seed, use_device(args.device))
    print(f"{headline(about)}\n\n{table(corners, ideal)}")
    write_measures(args, corners, ideal, about, models=[asdict(corner) for corner in corners])
    return 0


def write_measures(
    args: Namespace, corners: Sequence[Corner], ideal: Corner, about: Mapping[str, Any], **found: Any
) -> None:
    """Write the picture, and the JSON of `about` and `found` where it was asked for, and tell so."""
    from fastgen.cli.reports.trilemma_picture import save_picture

    if args.json:
        write_json(Path(args.json), {**about, **found, "training_data": asdict(ideal)})
    title = f"{about['data']}: {about['samples']} samples, {about['features']} features"
    save_picture(Path(args.picture), corners, ideal, title)
    print_written(picture=args.picture, JSON=args.json)
