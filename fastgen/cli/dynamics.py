"""`fastgen dynamics`: games of two numbers as a picture, and how fast each way to play them converges."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from pathlib import Path

from fastgen.cli.options import PICTURES
from fastgen.files import check_output

HELP = "draw how two players of a min-max game move"
EXAMPLES = """x descends on f(x, y) and y climbs it, as the networks of a GAN do. The games, each by
simultaneous and alternating gradient steps, by extragradient and by optimistic steps:

  a x y                    what a Wasserstein GAN plays near its equilibrium
  a x y + p x^2 - q y^2    the same with a pull towards it
  Dirac-GAN                data at a point, a generator that is one, a straight line as the discriminator
  Dirac-GAN with R1        and the gradient penalty that makes it converge

examples:
  fastgen dynamics                              what "GANs oscillate" means, in one picture
  fastgen dynamics -a 1 --step 0.3 --out slow.png"""


def add_arguments(parser: ArgumentParser) -> None:
    for name, default, text in (("a", 10.0, "a x y"), ("p", 1.0, "p x^2"), ("q", 1.0, "-q y^2")):
        parser.add_argument(f"-{name}", type=float, default=default, help=f"of {text} (default: {default:g})")
    parser.add_argument("--step", type=float, default=0.05, metavar="H", help="size of a step (default: 0.05)")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="how many (default: 400)")
    parser.add_argument(
        "--out", default="dynamics.png", metavar="FILE", help="a .png, .pdf or .svg (default: dynamics.png)"
    )


def run(args: Namespace) -> int:
    from fastgen.cli.reports.dynamics_picture import save_dynamics
    from fastgen.gan.dynamics import METHODS, dirac_gan, quadratic, spectral_radius

    out = Path(args.out)
    if out.suffix.lower() not in PICTURES:
        raise ValueError(f"--out is {out}, expected a name ending in one of: {', '.join(PICTURES)}")
    check_output(out)
    if not all(map(math.isfinite, (args.a, args.p, args.q, args.step))):
        raise ValueError(f"-a, -p, -q, --step: expected finite numbers, got {args.a}, {args.p}, {args.q}, {args.step}")
    games = [quadratic(args.a), quadratic(args.a, args.p, args.q), dirac_gan(), dirac_gan(r1=1.0)]
    save_dynamics(out, games, args.step, args.steps)
    print(f"{'spectral radius of a step of ' + format(args.step, 'g'):36}" + "".join(f"{m:>15}" for m in METHODS))
    for game in games:
        print(f"{game.name:36}" + "".join(f"{spectral_radius(game, m, args.step):15.6f}" for m in METHODS))
    print(f"below 1 it converges, at 1 it circles, above 1 it runs away: drawn in {out}")
    return 0
