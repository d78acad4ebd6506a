"""`fastgen evaluate`: the scores of a trained model on data, and of its samples beside them."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from fastgen.cli.options import add_checkpoint, add_data, add_device, check_at_least, given, use_device

if TYPE_CHECKING:
    from torch import nn

    from fastgen.data import Dataset, Examples

HELP = "score a trained model and its samples"
EXAMPLES = """examples:
  fastgen evaluate runs/pixelcnn-digits                  the validation images of the run itself
  fastgen evaluate runs/gated-pixelcnn-mnist --part test
  fastgen evaluate runs/pixelcnn-digits --data more.npz --part train
  fastgen evaluate runs/nsf-table --data other.csv --part train
  fastgen evaluate runs/pixelcnn-digits --samples 5000 --metrics fid,prdc,modes
  fastgen evaluate runs/glow-cifar --features inception --metrics fid,kid,is
  fastgen evaluate runs/pixelcnn-digits --metrics none   likelihoods alone, without drawing samples"""


def add_arguments(parser: ArgumentParser) -> None:
    add_checkpoint(parser)
    add_data(parser)
    parser.add_argument(
        "--part", choices=("train", "validation", "test"), default="validation", help="default: validation"
    )
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="examples at a time (default: 256)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    samples = parser.add_argument_group("samples")
    samples.add_argument(
        "--metrics",
        metavar="M,M,...",
        help="of samples, as `fastgen score --help` lists them, or none (default: what suits the data)",
    )
    samples.add_argument("--samples", type=int, metavar="N", help="how many (default: up to 1000)")
    samples.add_argument("--features", metavar="NAME", help="digits, pixels, inception, timm:NAME, ...")
    samples.add_argument("--weights", metavar="FILE", help="of Inception")
    samples.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (default: 0)")
    add_device(parser)


def run(args: Namespace) -> int:
    from accelerate import Accelerator

    from fastgen.data import load
    from fastgen.train.evaluate import evaluate
    from fastgen.train.launch import data_options
    from fastgen.train.load import load_model
    from fastgen.train.matching import matched

    use_device(args.device)
    accelerator = Accelerator(cpu=args.device == "cpu")
    model, config = load_model(args.checkpoint, device=accelerator.device)
    recorded, changed = config.get("data", {}), data_options(given(args))
    # Other data have nothing of the run's own but their number of levels.
    data = {"levels": recorded.get("levels"), **changed} if args.data is not None else {**recorded, **changed}
    if "name_or_path" not in data:
        raise ValueError(f"{args.checkpoint} does not say what it was trained on: expected --data")
    dataset = load(**{"seed": config.get("settings", {}).get("seed", 0), **data})
    if args.data is not None:
        dataset = matched(dataset, model, config.get("dataset", {}))
    _check_fits(model, dataset)
    examples = dataset.part(args.part)
    scores = evaluate(model, examples, batch_size=args.batch_size, all_scores=True, accelerator=accelerator)
    # Samples are few and cheap beside what processes would have to tell each other.
    if accelerator.is_main_process:
        about_samples = _score_samples(args, model, examples)
        if args.json:
            facts = {"data": dataset.name, "part": args.part, dataset.kind: len(examples)}
            print(json.dumps(facts | scores | about_samples))
        else:
            numbers = ", ".join(f"{key} {value:.4f}" for key, value in scores.items())
            print(f"{dataset.name}, {len(examples)} {args.part} {dataset.kind}: {numbers}")
            if about_samples:
                n, speed, features = (about_samples.pop(key) for key in ("samples", "samples_per_second", "features"))
                print(f"{n} samples, {speed:.4g} a second, by {features} features:")
                print("  " + ", ".join(f"{key} {value:.4g}" for key, value in about_samples.items()))
    return 0


def _check_fits(model: nn.Module, dataset: Dataset) -> None:
    if (model.shape, model.levels) != (dataset.shape, dataset.levels):
        of_levels, of_model_levels = (f" of {n} levels" if n else "" for n in (dataset.levels, model.levels))
        raise ValueError(
            f"{dataset.name} has {dataset.kind} {list(dataset.shape)}{of_levels}, "
            f"the model was trained on {list(model.shape)}{of_model_levels}"
        )


def _score_samples(args: Namespace, model: nn.Module, examples: Examples) -> dict[str, Any]:
    """What `--metrics` asks about samples of the model, with their number and the features they are compared by."""
    if args.metrics == "none":
        return {}
    try:
        from fastgen.metrics.scores import choose_scores
        from fastgen.train.sample_scores import MOST_SAMPLES, Yardstick, draw
    except ModuleNotFoundError as error:
        if args.metrics is not None:
            raise
        # Likelihoods need no more than training does.
        print(f"fastgen: samples are not scored: {error}", file=sys.stderr)
        return {}
    check_at_least("--samples", args.samples, 1)
    n = args.samples or min(MOST_SAMPLES, max(2, len(examples)))
    device = next(model.parameters()).device
    yardstick = Yardstick(examples, features=args.features, weights=args.weights, device=device)
    if args.metrics is None:
        names = yardstick.default_scores(n)
    else:
        names = choose_scores([name.strip() for name in args.metrics.split(",")], classes=yardstick.has_classes)
    if not names:
        return {}
    drawn = draw(model, n, args.seed)
    found = yardstick.score(drawn.samples, names, args.seed)
    return {"samples": n, "samples_per_second": drawn.per_second, "features": yardstick.features, **found}
