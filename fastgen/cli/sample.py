"""`fastgen sample`: new images or vectors from a trained model, as a picture, an array or a table."""

from __future__ import annotations

import csv
import inspect
import io
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen.cli.options import add_checkpoint, add_device, check_at_least, check_out, use_device, whole_numbers
from fastgen.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

HELP = "draw from a trained model"
EXAMPLES = """examples:
  fastgen sample runs/pixelcnn-digits -n 100 --seed 7 --out digits.png
  fastgen sample runs/pixelcnn-digits --compare             time the cached sampler against one pass for each pixel
  fastgen sample runs/gated-pixelcnn-mnist --labels 3,1,4   classes take turns
  fastgen sample runs/pixelcnn-digits/last --out raw.npy    the last checkpoint instead of the best, as numbers
  fastgen sample runs/nsf-two-moons                         data, samples and learned density in one picture
  fastgen sample runs/nsf-table -n 10000 --out new.csv      rows of a table, in the units of the data
  fastgen sample runs/glow-digits --temperature 0.7         likelier images that vary less
  fastgen sample runs/ddpm-digits --sampler dpm++ --steps 20
  fastgen sample runs/ddpm-digits --steps 50 --eta 1        with the noise that ddpm adds
  fastgen sample runs/dcgan-digits --truncation 0.7         more typical images that vary less
  fastgen sample runs/ddpm-digits --label 7 --guidance 2    one class, exaggerated (after train --class-conditional)"""
# Unasked: points show a density where they are many.
NUM_VECTORS = 5000
# Options that are handed on to a model's `sample`.
_SAMPLING = ("method", "temperature", "sampler", "steps", "eta", "guidance", "truncation")


def add_arguments(parser: ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("-n", type=int, metavar="N", help="how many (default: 64 images, 5000 vectors)")
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--labels", metavar="L,L,...", help="classes to draw, in turn (default: all)")
    classes.add_argument("--label", dest="labels", metavar="L", help="the one class to draw")
    parser.add_argument("--method", choices=("cached", "naive"), help="of PixelCNNs (default: cached)")
    parser.add_argument("--compare", action="store_true", help="time both methods")
    parser.add_argument("--temperature", type=float, metavar="T", help="of flows and VAEs (default: 1)")
    samplers = "ddim (default), ddpm, dpm++, euler or heun; pc, em or ode; heun, euler, midpoint or ode"
    parser.add_argument("--sampler", metavar="NAME", help=f"of diffusion: {samplers}")
    parser.add_argument("--steps", type=int, metavar="N", help="of diffusion, of a chain (default: what suits)")
    parser.add_argument(
        "--eta", type=float, metavar="E", help="of ddim: 0 (default) adds no noise, 1 as much as ddpm does"
    )
    parser.add_argument("--guidance", type=float, metavar="G", help="of diffusion: above 1 exaggerates classes")
    parser.add_argument("--truncation", type=float, metavar="T", help="of GANs: the smaller, the more typical")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--out", default="samples.png", metavar="FILE", help="a .png, .npy or .csv (default: samples.png)"
    )
    add_device(parser)


def run(args: Namespace) -> int:
    import torch

    from fastgen.train.comparison import compare_sampling
    from fastgen.train.load import load_model
    from fastgen.train.recipe import NUM_SAMPLES

    check_at_least("-n", args.n, 1)
    out = check_out(args.out, ".png", ".npy", ".csv")
    model, config = load_model(args.checkpoint, device=use_device(args.device))
    _check_options(model, args)
    of_vectors = _is_of_vectors(model)
    n = args.n or (NUM_VECTORS if of_vectors else NUM_SAMPLES)
    labels = _labels(model, args.labels, n, config.get("dataset", {}))
    if args.compare:
        comparison = compare_sampling(model, n, labels, args.seed)
        samples = comparison.images
        print(comparison)
    else:
        options = {name: value for name in _SAMPLING if (value := getattr(args, name)) is not None}
        samples = model.sample(n, labels=labels, generator=torch.Generator().manual_seed(args.seed), **options)
    _write(out, samples, model, config)
    print(f"{n} {'vectors' if of_vectors else 'images'} in {out}")
    return 0


def _write(out: Path, samples: Tensor, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write `samples` in the way that the name of the file asks for."""
    import numpy as np

    from fastgen.train.load import learned_data
    from fastgen.train.pictures import save_figure, save_grid

    if out.suffix.lower() == ".npy":
        array = io.BytesIO()
        np.save(array, samples.cpu().numpy())
        write_whole(out, array.getvalue())
    elif out.suffix.lower() == ".csv":
        table, columns = io.StringIO(), config.get("dataset", {}).get("columns")
        csv.writer(table, lineterminator="\n").writerows([*([columns] if columns else []), *samples.tolist()])
        write_whole(out, table.getvalue().encode())
    elif _is_of_vectors(model):
        data = learned_data(config, model)
        save_figure(out, samples, getattr(model, "log_prob", None), data and data.train)
    else:
        save_grid(out, samples, model.levels)


def _is_of_vectors(model: nn.Module) -> bool:
    return len(model.shape) == 1


def _check_options(model: nn.Module, args: Namespace) -> None:
    """Raises ValueError for an option that the model does not have."""
    from fastgen.models import AdversarialModel, Diffusion, Flow

    kinds = {Flow: "flow", Diffusion: "diffusion model", AdversarialModel: "GAN"}
    kind = next((name for base, name in kinds.items() if isinstance(model, base)), type(model).__name__)
    # A diffusion model's samplers have options of their own, of which it tells itself.
    taken = {*inspect.signature(model.sample).parameters, *(["eta"] if isinstance(model, Diffusion) else [])}
    if "method" not in taken and (args.compare or args.method is not None):
        raise ValueError(f"--compare and --method are for models that draw pixel by pixel, this one is a {kind}")
    whose = {"temperature": "flows and VAEs", "steps": "diffusion models and chains", "truncation": "GANs"}
    for name in _SAMPLING[1:]:
        if name not in taken and getattr(args, name) is not None:
            raise ValueError(f"--{name} is for {whose.get(name, 'diffusion models')}, this one is a {kind}")
    if args.out.lower().endswith(".csv") and not _is_of_vectors(model):
        raise ValueError(f"--out is {args.out}, expected .png or .npy for images")


def _labels(model: nn.Module, text: str | None, n: int, learned: Mapping[str, Any]) -> Tensor | None:
    """The classes [n] to draw, which take turns: those that `--labels` names, or all; None for a model of none."""
    import torch

    from fastgen.train.matching import class_names, class_number
    from fastgen.train.recipe import num_classes

    classes = num_classes(model)
    if classes is None:
        if text is not None:
            raise ValueError("--labels: this model was not trained with --class-conditional")
        return None
    if text is None:
        chosen = list(range(classes))
    elif "classes" in learned:
        names = class_names(model, learned)
        chosen = [class_number("--labels", part.strip(), names) for part in text.split(",")]
    else:
        chosen = whole_numbers("--labels", text)
    labels = torch.tensor(chosen, device=next(model.parameters()).device)
    return labels.repeat(-(-n // len(labels)))[:n]
