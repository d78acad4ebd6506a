"""`fastgen restore`: images that a diffusion model makes of a measurement of one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen.cli.options import add_checkpoint, add_device, check_at_least, check_out, use_device

if TYPE_CHECKING:
    from torch import Tensor

    from fastgen.models import Diffusion

HELP = "restore an image with a trained diffusion model"
EXAMPLES = """tasks:
  super-resolution   from means of 2x2 pixels
  denoise            from an image with noise (--noise, default: 0.3)
  inpaint            the middle, from what is around it
  uncrop             the right half, from the left
  deblur             from an image blurred by a normal kernel of 3x3
  colourise          from grey
  hdr                from an exposure twice too long, which clips

examples:
  fastgen restore runs/ddpm-digits 3 --task inpaint            the fourth validation image of the run
  fastgen restore runs/edm-digits photo.png --task deblur --noise 0.05
  fastgen restore runs/ddpm-digits 3 --task inpaint --method repaint -n 6

The picture shows the measurement, what it was restored to, and the truth."""


def add_arguments(parser: ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("image", metavar="IMAGE", help="a picture, or the number of a validation image")
    parser.add_argument("--task", required=True, metavar="TASK", help="one of those below")
    parser.add_argument("-n", type=int, default=4, metavar="N", help="how many restorations (default: 4)")
    parser.add_argument("--method", choices=("ddnm", "repaint", "dps"), help="default: ddnm, and dps for hdr")
    parser.add_argument("--steps", type=int, metavar="N", help="levels of noise (default: 100)")
    parser.add_argument("--label", metavar="L", help="the class of the image")
    parser.add_argument("--noise", type=float, metavar="S", help="of the measurement, data in [-1, 1]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--out", default="restored.png", metavar="FILE", help="a .png (default: restored.png)")
    add_device(parser)


def run(args: Namespace) -> int:
    import torch

    from fastgen.inverse import operator_of, solve
    from fastgen.models import Diffusion
    from fastgen.train.load import load_model
    from fastgen.train.matching import chosen_class
    from fastgen.train.pictures import save_grid

    check_at_least("-n", args.n, 1)
    out = check_out(args.out, ".png")
    model, config = load_model(args.checkpoint, device=use_device(args.device))
    if not isinstance(model, Diffusion) or model.levels is None:
        raise ValueError(f"{args.checkpoint} holds a {type(model).__name__}, expected a diffusion model of images")
    truth = _read_image(args.image, model, config)
    operator = operator_of(args.task, model.shape, args.noise)
    generator = torch.Generator().manual_seed(args.seed)
    x = model.normalize(truth.to(model.device))
    measurement = operator.measure(x, generator).repeat(args.n, 1, 1, 1)
    label = chosen_class(model, args.label, config.get("dataset", {}))
    options = {"method": args.method, "steps": args.steps, "labels": label}
    given = {name: value for name, value in options.items() if value is not None}
    restored = solve(model, measurement, operator, generator=generator, **given)
    seen = model.quantize(operator.pseudo_inverse(measurement[:1]).expand(1, *model.shape))
    save_grid(out, torch.cat([seen, restored, truth.to(seen)]).cpu(), model.levels, columns=args.n + 2)
    error = (restored.double() - truth.to(restored).double()).square().mean().item() ** 0.5
    print(f"measurement, {args.n} restored and truth in {out}; off by {error:.2f} of {model.levels} levels")
    return 0


def _read_image(text: str, model: Diffusion, config: Mapping[str, Any]) -> Tensor:
    """One image, uint8 levels [1, channels, height, width]: a picture's file, or a number of the run's validation part.

    Raises:
        ValueError: no such file or number, or data that are no longer there.
    """
    from fastgen.data.folder import WHITE, read_image
    from fastgen.train.load import load_data

    if text.isdigit():
        try:
            images = load_data(config).validation
        except KeyError:
            raise ValueError(f"IMAGE is {text}: the checkpoint does not say what it was trained on") from None
        if int(text) >= len(images):
            raise ValueError(f"IMAGE is {text}, expected 0 to {len(images) - 1} of the validation part")
        return images.values[int(text) : int(text) + 1]
    try:
        return read_image(Path(text), model.shape, model.levels, config.get("data", {}).get("background", WHITE))
    except ValueError as error:
        raise ValueError(f"IMAGE is {text}, expected a picture or the number of a validation image: {error}") from error
