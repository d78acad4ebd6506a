"""What the command line's `restore` does with the arguments of `fastgen.cli`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastgen.data import load
from fastgen.data.folder import WHITE, parse_color, read_picture
from fastgen.device import use_device
from fastgen.inverse import (
    Colourisation,
    Deblurring,
    Denoising,
    Inpainting,
    Operator,
    SingleImageHDR,
    SuperResolution,
    Uncropping,
    solve,
)
from fastgen.models.diffusion import Diffusion
from fastgen.train.files import check_writable
from fastgen.train.load import load_model
from fastgen.train.matching import class_names, class_number
from fastgen.train.pictures import save_grid
from fastgen.train.recipe import num_classes
from fastgen.whole_file import check_output

TASKS = ("super-resolution", "denoise", "inpaint", "uncrop", "deblur", "colourise", "hdr")


def run_restore(args: Namespace) -> int:
    """`fastgen restore`. Returns the exit status."""
    if args.n < 1:
        raise ValueError(f"-n is {args.n}, expected at least 1")
    out = Path(args.out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out is {out}, expected a name ending in .png")
    check_writable(out.parent)
    check_output(out)
    model, config = load_model(args.checkpoint, device=use_device(args.device))
    if not isinstance(model, Diffusion) or model.levels is None:
        raise ValueError(f"{args.checkpoint} holds a {type(model).__name__}, expected a diffusion model of images")
    truth = read_image(args.image, model, config)
    operator = make_operator(args.task, model.shape, args.noise)
    generator = torch.Generator().manual_seed(args.seed)
    x = model.normalize(truth.to(model.device))
    measurement = operator.measure(x, generator).repeat(args.n, 1, 1, 1)
    label = None
    if args.label is not None and num_classes(model) is not None:
        label = class_number("--label", args.label, class_names(model, config.get("dataset", {})))
    elif args.label is not None:
        raise ValueError("--label: this model was not trained with --class-conditional")
    options = {"method": args.method, "steps": args.steps, "labels": label}
    given = {name: value for name, value in options.items() if value is not None}
    restored = solve(model, measurement, operator, generator=generator, **given)
    seen = model.quantize(operator.pseudo_inverse(measurement[:1]).expand(1, *model.shape))
    save_grid(out, torch.cat([seen, restored, truth.to(seen)]).cpu(), model.levels, columns=args.n + 2)
    error = (restored.double() - truth.to(restored).double()).square().mean().item() ** 0.5
    print(f"measurement, {args.n} restored and truth in {out}; off by {error:.2f} of {model.levels} levels")
    return 0


def make_operator(task: str, shape: tuple[int, int, int], noise: float | None) -> Operator:
    """The operator that a task's name means for images of this shape.

    Raises:
        ValueError: no such task, a noise that is negative, an operator that does not fit the image.
    """
    if task not in TASKS:
        raise ValueError(f"--task is {task}, expected one of: {', '.join(TASKS)}")
    height, width = shape[1:]
    options: dict[str, Any] = {} if noise is None else {"noise_std": noise}
    middle = torch.ones(height, width, dtype=torch.bool)
    middle[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    operator = {
        "super-resolution": lambda: SuperResolution(2, **options),
        "denoise": lambda: Denoising(**options),
        "inpaint": lambda: Inpainting(middle, **options),
        # The left half is left of it.
        "uncrop": lambda: Uncropping((height, width), 0, 0, height, max(width // 2, 1), **options),
        "deblur": lambda: Deblurring.gaussian(3, 1.0, **options),
        "colourise": lambda: Colourisation(**options),
        "hdr": lambda: SingleImageHDR(2.0, **options),
    }[task]()
    operator.check(shape)
    return operator


def read_image(text: str, model: Diffusion, config: Mapping[str, Any]) -> Tensor:
    """One image, uint8 levels [1, channels, height, width]: a picture's file, or a number of the run's validation part.

    Raises:
        ValueError: no such file or number, or data that are no longer there.
    """
    if text.isdigit():
        try:
            images = load(**{"seed": config["settings"]["seed"], **config["data"]}).validation
        except KeyError:
            raise ValueError(f"IMAGE is {text}: the checkpoint does not say what it was trained on") from None
        if int(text) >= len(images):
            raise ValueError(f"IMAGE is {text}, expected 0 to {len(images) - 1} of the validation part")
        return images.values[int(text) : int(text) + 1]
    channels, height, width = model.shape
    try:
        picture = read_picture(Path(text), parse_color(config.get("data", {}).get("background", WHITE)))
    except ValueError as error:
        raise ValueError(f"IMAGE is {text}, expected a picture or the number of a validation image: {error}") from error
    resized = picture.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(resized)).view(height, width, channels).permute(2, 0, 1)
    return (pixels.float() * ((model.levels - 1) / 255)).round().to(torch.uint8).unsqueeze(0)
