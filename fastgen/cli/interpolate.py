"""`fastgen interpolate`: pictures of a model's latents, as walks between images, arithmetic with them and a map."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from fastgen.cli.options import (
    add_checkpoint,
    add_device,
    check_at_least,
    check_out,
    use_device,
    whole_numbers,
)

if TYPE_CHECKING:
    from fastgen.data import Images

HELP = "draw walks, arithmetic and a map of a model's latents"
EXAMPLES = """The picture shows

  walk         images on the way between two, along the line between their latents and along the arc
  arithmetic   b - a + c of three images; what moves an image from its class to another, or, of a model that knows
               classes, the same latents as each class
  map          what a plane of latents decodes to, and where the data lie in it

examples:
  fastgen interpolate runs/vae-digits
  fastgen interpolate runs/vae-digits --kind map --out map.png
  fastgen interpolate runs/cvae-digits --kind walk --images 3,17,4,20 --steps 12
  fastgen interpolate runs/glow-digits

Images are those that the run held out; a model without an encoder walks between latents that it draws."""
KINDS = ("walk", "arithmetic", "map")


def add_arguments(parser: ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all of them")
    parser.add_argument("-n", type=int, default=6, metavar="N", help="rows of a panel (default: 6)")
    parser.add_argument("--steps", type=int, default=9, metavar="N", help="images of a walk (default: 9)")
    parser.add_argument("--images", metavar="I,I,...", help="numbers of held-out images, in pairs (default: random)")
    parser.add_argument("--label", metavar="L", help="the class of the map (default: 0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--out", default="interpolation.png", metavar="FILE", help="a .png (default: interpolation.png)"
    )
    add_device(parser)


def run(args: Namespace) -> int:
    import torch

    from fastgen.models.latent import LatentSpace
    from fastgen.train import latent_panels
    from fastgen.train.load import learned_data, load_model
    from fastgen.train.matching import chosen_class
    from fastgen.train.recipe import num_classes

    check_at_least("-n", args.n, 1)
    check_at_least("--steps", args.steps, 2)
    out = check_out(args.out, ".png")
    model, config = load_model(args.checkpoint, device=use_device(args.device))
    if not isinstance(model, LatentSpace) or model.levels is None:
        kind = type(model).__name__
        raise ValueError(f"{args.checkpoint} holds a {kind}, expected a model that decodes latents to images")
    label = chosen_class(model, args.label, config.get("dataset", {})) or 0
    kinds = args.kind or KINDS
    # A model without an encoder takes no images.
    data = learned_data(config, model) if hasattr(model, "encode") else None
    known, held_out = (data.train, data.validation) if data else (None, None)
    chosen = _chosen(args.images, held_out)
    generator = torch.Generator().manual_seed(args.seed)
    panels = []
    if "walk" in kinds:
        ends = latent_panels.ends_of(model, held_out, chosen, 2 * args.n, generator)
        ends = ends[: len(ends.z) // 2 * 2]
        panels += [latent_panels.walks(model, ends, args.steps, how) for how in ("linear", "spherical")]
    if "arithmetic" in kinds:
        ends = latent_panels.ends_of(model, held_out, chosen, 3 * args.n, generator)
        if len(ends.z) >= 3:
            panels.append(latent_panels.arithmetic(model, ends[: len(ends.z) // 3 * 3]))
        if num_classes(model) is not None:
            panels.append(latent_panels.classes_of_latents(model, ends[: args.n]))
        elif known is not None and known.labels is not None and len(known.labels.unique()) > 1:
            panels.append(latent_panels.class_directions(model, known, args.steps, args.n, generator))
    if "map" in kinds:
        panels += latent_panels.map_of(model, known, label, generator)
    latent_panels.save_panels(out, panels, model.levels)
    print(f"{', '.join(panel.title for panel in panels)}: {out}")
    return 0


def _chosen(text: str | None, examples: Images | None) -> list[int]:
    """The numbers of images that `--images` names."""
    if text is None:
        return []
    if examples is None:
        raise ValueError("--images: there are no images to take latents of")
    numbers = whole_numbers("--images", text)
    if len(numbers) < 2 or min(numbers) < 0 or max(numbers) >= len(examples):
        raise ValueError(f"--images is {text}, expected two or more, 0 to {len(examples) - 1}")
    return numbers
