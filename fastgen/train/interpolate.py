"""What the command line's `interpolate` does with the arguments of `fastgen.cli`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgen.data import Images, load
from fastgen.device import use_device
from fastgen.models.latent import LatentSpace
from fastgen.train.files import check_writable
from fastgen.train.latent_panels import (
    arithmetic,
    class_directions,
    classes_of_latents,
    ends_of,
    map_of,
    save_panels,
    walks,
)
from fastgen.train.load import load_model
from fastgen.train.matching import class_names, class_number
from fastgen.train.recipe import num_classes
from fastgen.whole_file import check_output

KINDS = ("walk", "arithmetic", "map")


def run_interpolate(args: Namespace) -> int:
    """`fastgen interpolate`. Returns the exit status."""
    if args.n < 1:
        raise ValueError(f"-n is {args.n}, expected at least 1")
    if args.steps < 2:
        raise ValueError(f"--steps is {args.steps}, expected at least 2")
    out = Path(args.out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out is {out}, expected a name ending in .png")
    check_writable(out.parent)
    check_output(out)
    model, config = load_model(args.checkpoint, device=use_device(args.device))
    if not isinstance(model, LatentSpace) or model.levels is None:
        kind = type(model).__name__
        raise ValueError(f"{args.checkpoint} holds a {kind}, expected a model that decodes latents to images")
    label = _checked_label(model, args.label, config.get("dataset", {}))
    kinds = args.kind or KINDS
    known, held_out = _examples(model, config)
    chosen = _chosen(args.images, held_out)
    generator = torch.Generator().manual_seed(args.seed)
    panels = []
    if "walk" in kinds:
        ends = ends_of(model, held_out, chosen, 2 * args.n, generator)
        ends = ends[: len(ends.z) // 2 * 2]
        panels += [walks(model, ends, args.steps, how) for how in ("linear", "spherical")]
    if "arithmetic" in kinds:
        ends = ends_of(model, held_out, chosen, 3 * args.n, generator)
        if len(ends.z) >= 3:
            panels.append(arithmetic(model, ends[: len(ends.z) // 3 * 3]))
        if num_classes(model) is not None:
            panels.append(classes_of_latents(model, ends[: args.n]))
        elif known is not None and known.labels is not None and len(known.labels.unique()) > 1:
            panels.append(class_directions(model, known, args.steps, args.n, generator))
    if "map" in kinds:
        panels += map_of(model, known, label, generator)
    save_panels(out, panels, model.levels)
    print(f"{', '.join(panel.title for panel in panels)}: {out}")
    return 0


def _checked_label(model: nn.Module, label: str | None, learned: Mapping[str, Any]) -> int:
    if label is None:
        return 0
    if num_classes(model) is None:
        raise ValueError("--label: this model was not trained with --class-conditional")
    return class_number("--label", label, class_names(model, learned))


def _examples(model: nn.Module, config: Mapping[str, Any]) -> tuple[Images | None, Images | None]:
    """What the run learned from and what it held out; None where the model takes none, or they are no longer there."""
    if not hasattr(model, "encode"):
        return None, None
    try:
        data = load(**{"seed": config["settings"]["seed"], **config["data"]})
    except (KeyError, ValueError, OSError):
        return None, None
    fits = isinstance(data.train, Images) and data.shape == model.shape and data.levels == model.levels
    return (data.train, data.validation) if fits else (None, None)


def _chosen(text: str | None, examples: Images | None) -> list[int]:
    """The numbers of images that `--images` names."""
    if text is None:
        return []
    if examples is None:
        raise ValueError("--images: there are no images to take latents of")
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--images is {text}, expected whole numbers with commas between them") from None
    if len(numbers) < 2 or min(numbers) < 0 or max(numbers) >= len(examples):
        raise ValueError(f"--images is {text}, expected two or more, 0 to {len(examples) - 1}")
    return numbers
