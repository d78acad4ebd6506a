"""What the command line's `sample` does with the arguments of `fastgen.cli`."""

from __future__ import annotations

import csv
import inspect
import io
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgen.data import Vectors, load
from fastgen.device import use_device
from fastgen.models.adversarial import AdversarialModel
from fastgen.models.diffusion import Diffusion
from fastgen.models.flow import Flow
from fastgen.train.comparison import compare_sampling
from fastgen.train.figures import save_figure
from fastgen.train.files import check_writable
from fastgen.train.load import load_model
from fastgen.train.matching import class_names, class_number
from fastgen.train.pictures import save_grid
from fastgen.train.recipe import NUM_SAMPLES, num_classes
from fastgen.whole_file import check_output, write_whole

# Points show a density where they are many.
NUM_VECTORS = 5000


def run_sample(args: Namespace) -> int:
    """`fastgen sample`. Returns the exit status."""
    if args.n is not None and args.n < 1:
        raise ValueError(f"-n is {args.n}, expected at least 1")
    out = Path(args.out)
    if out.suffix.lower() not in (".png", ".npy", ".csv"):
        raise ValueError(f"--out is {out}, expected a name ending in .png, .npy or .csv")
    check_writable(out.parent)
    check_output(out)
    model, config = load_model(args.checkpoint, device=use_device(args.device))
    _check_options(model, args)
    n = args.n or (NUM_VECTORS if _is_of_vectors(model) else NUM_SAMPLES)
    labels = _labels(model, args.labels, n, config.get("dataset", {}))
    if args.compare:
        comparison = compare_sampling(model, n, labels, args.seed)
        samples = comparison.images
        print(comparison)
    else:
        names = ("method", "temperature", "sampler", "steps", "eta", "guidance", "truncation")
        options = {name: getattr(args, name) for name in names}
        given = {key: value for key, value in options.items() if value is not None}
        samples = model.sample(n, labels=labels, generator=torch.Generator().manual_seed(args.seed), **given)
    _write(out, samples, model, config)
    print(f"{n} {'vectors' if _is_of_vectors(model) else 'images'} in {out}")
    return 0


def _write(out: Path, samples: Tensor, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write `samples` in the way that the name of the file asks for."""
    if out.suffix.lower() == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, samples.cpu().numpy())
        write_whole(out, buffer.getvalue())
    elif out.suffix.lower() == ".csv":
        write_whole(out, _table(samples, config.get("dataset", {}).get("columns")))
    elif _is_of_vectors(model):
        save_figure(out, samples, getattr(model, "log_prob", None), _learned_from(config, model))
    else:
        save_grid(out, samples, model.levels)


def _is_of_vectors(model: nn.Module) -> bool:
    return len(model.shape) == 1


def _check_options(model: nn.Module, args: Namespace) -> None:
    taken = inspect.signature(model.sample).parameters
    kind = "flow" if isinstance(model, Flow) else "diffusion model" if isinstance(model, Diffusion) else None
    kind = kind or ("GAN" if isinstance(model, AdversarialModel) else type(model).__name__)
    if "method" not in taken and (args.compare or args.method is not None):
        raise ValueError(f"--compare and --method are for models that draw pixel by pixel, this one is a {kind}")
    whose = {"temperature": "flows and VAEs", "steps": "diffusion models and chains", "truncation": "GANs"}
    # A diffusion model's samplers have options of their own, of which it tells itself.
    taken = {*taken, "eta"} if isinstance(model, Diffusion) else taken
    for name in ("temperature", "sampler", "steps", "eta", "guidance", "truncation"):
        if name not in taken and getattr(args, name) is not None:
            raise ValueError(f"--{name} is for {whose.get(name, 'diffusion models')}, this one is a {kind}")
    if args.out.lower().endswith(".csv") and not _is_of_vectors(model):
        raise ValueError(f"--out is {args.out}, expected .png or .npy for images")


def _labels(model: nn.Module, text: str | None, n: int, learned: Mapping[str, Any]) -> Tensor | None:
    classes = num_classes(model)
    if classes is None:
        if text is not None:
            raise ValueError("--labels: this model was not trained with --class-conditional")
        return None
    chosen = list(range(classes)) if text is None else _chosen(text, model, learned)
    labels = torch.tensor(chosen, device=next(model.parameters()).device)
    return labels.repeat(-(-n // len(labels)))[:n]


def _chosen(text: str, model: nn.Module, learned: Mapping[str, Any]) -> list[int]:
    """The classes that `--labels` names."""
    if "classes" in learned:
        names = class_names(model, learned)
        return [class_number("--labels", part.strip(), names) for part in text.split(",")]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--labels is {text}, expected whole numbers with commas between them") from None


def _learned_from(config: Mapping[str, Any], model: nn.Module) -> Vectors | None:
    """The vectors that a run learned from, None where they are no longer there."""
    try:
        train = load(**{"seed": config["settings"]["seed"], **config["data"]}).train
    except (KeyError, ValueError, OSError):
        return None
    return train if isinstance(train, Vectors) and train.shape == model.shape else None


def _table(vectors: Tensor, columns: Iterable[str] | None) -> bytes:
    """A `.csv` file of `vectors`, under the names of their columns where they have some."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([columns] if columns else [])
    writer.writerows(vectors.tolist())
    return buffer.getvalue().encode()
