"""`fastgen fid`: the Fréchet inception distance of two sets of images, as papers quote it."""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser, Namespace
from pathlib import Path

from fastgen.cli.options import add_device, check_at_least, use_device
from fastgen.files import check_output

SOURCES = """A and B are, A the reference (real) and B the samples (generated):
  a folder         of pictures (its subfolders too), read a batch at a time
  an .npz file     statistics of pytorch-fid or clean-fid (mu, sigma), for fid alone; or an array named images,
                   features, x or arr_0, and optionally levels, how many intensities its integers have
  an .npy file     images, [N, H, W], [N, C, H, W] or [N, H, W, C]: integers 0 to 255, or floats in [0, 1];
                   or features, numbers [N, d], which are compared as they are
  IDX files        MNIST's, or a folder with them, of which the training images are taken
  a table          .csv, .tsv, .txt or .dat, of features; of two with names, the columns are matched by them
  digits           scikit-learn's handwritten digits"""

FEATURES = """features (--features):
  inception        FID's Inception network: what papers quote. Weights are downloaded once, or named by --weights
  digits           a classifier of scikit-learn's 8x8 digits, trained in seconds and kept
  pixels           the pixels themselves
  timm:NAME        any network of timm, or torchvision:NAME, where installed"""

HELP = "the Fréchet inception distance of two sets of images"
EXAMPLES = f"""{SOURCES}

{FEATURES}

examples:
  fastgen fid data/ samples/                              FID proper, with Inception
  fastgen fid cifar10.npz samples/                        against statistics that pytorch-fid or clean-fid saved
  fastgen fid data/ --save data.npz                       save the statistics of A for the next time
  fastgen fid data/ samples/ --resize pytorch-fid         pytorch-fid's numbers instead of clean-fid's
  fastgen fid digits samples.npy --features digits        samples of `fastgen sample RUN --out samples.npy`

FID falls as the number of samples rises, even for a perfect model: compare numbers of the same number of images, 50,000
of them where you compare with papers."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="the reference: a folder, a file, or digits")
    parser.add_argument("b", metavar="B", nargs="?", help="the samples; not needed with --save")
    parser.add_argument("--save", metavar="FILE", help="write the statistics of A to this .npz")
    add_sources(parser)


def add_sources(parser: ArgumentParser) -> None:
    """The options of `fastgen fid` and `score`: how A and B are read, and which features they are compared by."""
    parser.add_argument("--features", default="inception", metavar="NAME", help="default: inception")
    parser.add_argument("--weights", metavar="FILE", help="of Inception (default: downloaded once)")
    parser.add_argument(
        "--resize",
        choices=("clean-fid", "pytorch-fid"),
        default="clean-fid",
        help="how images get Inception's size: antialiased (clean-fid, default) or not (pytorch-fid)",
    )
    parser.add_argument("--image-size", type=int, metavar="N", help="scale and crop pictures first")
    parser.add_argument("--background", metavar="COLOR", help="of transparent pictures (default: white)")
    parser.add_argument("--levels", type=int, metavar="N", help="intensities of an array's integers")
    parser.add_argument("--skip-bad", action="store_true", help="pass over pictures that are no good")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what metrics draw (default: 0)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_device(parser)


def check_sources(args: Namespace) -> None:
    """Raises ValueError where what `add_sources` added makes no sense, before anything long is done."""
    check_at_least("--batch-size", args.batch_size, 1)
    check_at_least("--image-size", args.image_size, 1)
    if args.levels is not None and not 2 <= args.levels <= 256:
        raise ValueError(f"--levels is {args.levels}, expected 2 to 256")
    use_device(args.device)
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}, expected 0 or more")


def run(args: Namespace) -> int:
    from fastgen.cli.reports.sources import Comparison
    from fastgen.metrics import FrechetInceptionDistance, write_statistics
    from fastgen.metrics.moments import Statistics
    from fastgen.metrics.scores import warn_of_bias

    check_sources(args)
    if args.save is not None:
        if not args.save.lower().endswith(".npz"):
            raise ValueError(f"--save {args.save}: expected a file that ends with .npz")
        if not Path(args.save).parent.is_dir():
            raise ValueError(f"--save {args.save}: {Path(args.save).parent} is no folder")
        check_output(args.save)
    if args.b is None and args.save is None:
        raise ValueError("B is missing: expected samples to compare A with, or --save to keep A's statistics")
    comparison = Comparison.of(args)
    statistics = [comparison.statistics(source) for source in comparison.sources]
    if args.save is not None:
        write_statistics(args.save, statistics[0].mu, statistics[0].sigma)
    fid = math.nan
    if args.b is not None:
        metric = FrechetInceptionDistance("given", reference=statistics[0])
        fid = metric.distance_to(statistics[1]).item()
        counted = (source for source in comparison.sources if not isinstance(source, Statistics))
        warn_of_bias(len(statistics[0].mu), map(comparison.count, counted))
    if args.json:
        found = {"fid": fid} if args.b is not None else {}
        print(json.dumps(comparison.facts() | {"metrics": found, "saved": args.save}))
    else:
        if args.b is not None:
            print(f"fid {fid:.6g}  ({comparison})")
        if args.save is not None:
            print(f"statistics of {args.a} in {args.save}")
    return 0
