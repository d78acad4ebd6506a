"""What `fastgen fid` and `fastgen score` do with the arguments of `fastgen.cli`."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastgen.device import use_device
from fastgen.metrics import FrechetInceptionDistance, feature_extractor, write_statistics
from fastgen.metrics.scores import FeatureSet, choose_scores, extract, score, warn_of_bias
from fastgen.metrics.statistics_file import Statistics
from fastgen.metrics_report.sources import Array, Source, align_columns, align_levels, open_source
from fastgen.whole_file import check_output


def run(args: Namespace) -> int:
    """Run the command in `args`. Returns the exit status."""
    return {"fid": run_fid, "score": run_score}[args.command](args)


def run_fid(args: Namespace) -> int:
    """`fastgen fid`."""
    _check(args)
    if args.save is not None and not args.save.lower().endswith(".npz"):
        raise ValueError(f"--save {args.save}: expected a file that ends with .npz")
    if args.save is not None and not Path(args.save).parent.is_dir():
        raise ValueError(f"--save {args.save}: {Path(args.save).parent} is no folder")
    if args.save is not None:
        check_output(args.save)
    if args.b is None and args.save is None:
        raise ValueError("B is missing: expected samples to compare A with, or --save to keep A's statistics")
    sources = [_open(name, args) for name in (args.a, args.b) if name is not None]
    extractor = None if all(isinstance(s, Statistics) for s in sources) else _extractor(args, sources)
    if len(sources) == 2:
        align_levels(*sources)
        align_columns(*sources)
    statistics = [_statistics(source, extractor, args) for source in sources]
    if args.save is not None:
        write_statistics(args.save, statistics[0].mu, statistics[0].sigma)
    fid = math.nan
    if len(statistics) == 2:
        metric = FrechetInceptionDistance("given", reference=statistics[0])
        fid = metric.distance_to(statistics[1]).item()
        warn_of_bias(len(statistics[0].mu), (_used(s) for s in sources if not isinstance(s, Statistics)))
    if args.json:
        found = {"fid": fid} if args.b is not None else {}
        print(json.dumps(_described(args, sources) | {"metrics": found, "saved": args.save}))
    else:
        if args.b is not None:
            print(f"fid {fid:.6g}  ({_features_of(args, sources)}; {_counted(sources)})")
        if args.save is not None:
            print(f"statistics of {args.a} in {args.save}")
    return 0


def run_score(args: Namespace) -> int:
    """`fastgen score`."""
    _check(args)
    # A misspelt name should not wait for features.
    names = choose_scores([name.strip() for name in args.metrics.split(",") if name.strip()], classes=True)
    sources = [_open(name, args) for name in (args.a, args.b)]
    for source in sources:
        if isinstance(source, Statistics):
            raise ValueError(f"{source.name} holds statistics, which only `fastgen fid` can compare: expected examples")
    align_levels(*sources)
    align_columns(*sources)
    extractor = _extractor(args, sources)
    choose_scores(names, classes=hasattr(extractor, "logits_of_features"))
    real, fake = (_extracted(source, extractor, args) for source in sources)
    found = score(real, fake, names, args.seed)
    if args.json:
        print(json.dumps(_described(args, sources) | {"seed": args.seed, "metrics": found}))
    else:
        print(f"{_features_of(args, sources)}; {_counted(sources)}; seed {args.seed}")
        print(table(found))
    return 0


def table(found: dict[str, float]) -> str:
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


def _check(args: Namespace) -> None:
    """Raises ValueError for what makes no sense, before anything long is done."""
    for option in ("batch_size", "image_size"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} is {value}, expected at least 1")
    if args.levels is not None and not 2 <= args.levels <= 256:
        raise ValueError(f"--levels is {args.levels}, expected 2 to 256")
    use_device(args.device)
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}, expected 0 or more")


def _open(name: str, args: Namespace) -> Source:
    pictures = {"image_size": args.image_size, "background": args.background, "skip_bad": args.skip_bad}
    return open_source(name, **pictures, levels=args.levels)


def _extractor(args: Namespace, sources: list[Source]) -> nn.Module:
    """The module that the options name; features that are there already need none."""
    with_images = [source for source in sources if not _is_of_features(source)]
    if not with_images:
        return feature_extractor("given")
    if len(with_images) < len([source for source in sources if not isinstance(source, Statistics)]):
        raise ValueError(f"{sources[0].name} and {sources[1].name}: one holds images and the other features")
    return feature_extractor(args.features, weights=args.weights, preprocessing=args.resize).to(use_device(args.device))


def _is_of_features(source: Source) -> bool:
    return isinstance(source, Statistics) or (isinstance(source, Array) and source.are_features)


def _statistics(source: Source, extractor: nn.Module | None, args: Namespace) -> Statistics:
    if isinstance(source, Statistics):
        return source
    metric = FrechetInceptionDistance(extractor)
    device = _device_of(extractor)
    for batch in _progress(source, args):
        metric.update(batch.to(device), real=False)
    found = metric.statistics(real=False)
    return Statistics(source.name, found.mu.cpu(), found.sigma.cpu())


def _extracted(source: Source, extractor: nn.Module, args: Namespace) -> FeatureSet:
    found = extract(extractor, _progress(source, args), _device_of(extractor))
    return found


def _device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _progress(source: Source, args: Namespace) -> Iterator[Tensor]:
    """The batches of a source, with a bar on a terminal."""
    with tqdm(total=len(source), desc=Path(source.name).name, unit="image", disable=None, leave=False) as bar:
        for batch in source.batches(args.batch_size):
            yield batch
            bar.update(len(batch))


def _counted(sources: list[Source]) -> str:
    counts = []
    for source in sources:
        if isinstance(source, Statistics):
            counts.append(f"{source.name}: statistics")
        else:
            counts.append(f"{source.name}: {_used(source)} {'rows' if _is_of_features(source) else 'images'}")
    return ", ".join(counts)


def _used(source: Source) -> int:
    return len(source) - len(getattr(source, "bad", ()))


def _features_of(args: Namespace, sources: list[Source]) -> str:
    if all(_is_of_features(source) for source in sources):
        return "features as given"
    resized = f", {args.resize} resize" if args.features == "inception" else ""
    return f"{args.features} features{resized}"


def _described(args: Namespace, sources: list[Source]) -> dict[str, object]:
    given = all(_is_of_features(source) for source in sources)
    counts = {
        name: None if isinstance(source, Statistics) else _used(source)
        for name, source in zip(("reference_count", "sample_count"), sources, strict=False)
    }
    return {
        "reference": args.a,
        "samples": args.b,
        **counts,
        "features": "given" if given else args.features,
        "resize": args.resize if args.features == "inception" and not given else None,
    }
