"""The command line: `fastgen train`, `sample`, `evaluate`, `restore`, `interpolate`, `fid`, `score`, `trilemma`,
`compare`, `demo`, `density`, `dynamics`, `info` and `bench`.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from fastgen import __version__
from fastgen.device import add_device
from fastgen.metrics_report.arguments import (
    COMPARE_HELP,
    FID_HELP,
    SCORE_HELP,
    TRILEMMA_HELP,
    add_compare,
    add_fid,
    add_score,
    add_trilemma,
)
from fastgen.remark import kept, remarks_kept, tell

# Commands that read their own arguments.
FORWARDED = {"info": "fastgen.info", "bench": "fastgen.bench.cli"}

# Where the others are, if not in fastgen.train.commands.
ELSEWHERE = {
    "density": "fastgen.density_report.command",
    "fid": "fastgen.metrics_report.command",
    "score": "fastgen.metrics_report.command",
    "trilemma": "fastgen.metrics_report.trilemma",
    "compare": "fastgen.metrics_report.compare",
    "dynamics": "fastgen.gan.dynamics_picture",
}

# Packages by the extra that brings them, where it is not `train`.
EXTRAS = {"torchmetrics": "metrics", "lightning_utilities": "metrics", "timm": "features", "torchvision": "features"}

EXAMPLES = """examples:
  fastgen demo                                     learn digits in two minutes, draw 64 new ones
  fastgen train pixelcnn --data digits             the same step by step: learn, ...
  fastgen sample runs/pixelcnn-digits --compare    ... draw, ...
  fastgen evaluate runs/pixelcnn-digits            ... and score
  fastgen train nsf --data two-moons               a flow learns a density, in a minute, and paints it
  fastgen train vae --data digits                  a variational autoencoder; fastgen interpolate draws its latents
  fastgen fid data/ samples/                       how far samples are from data, as papers measure it
  fastgen trilemma runs/pixelcnn-digits runs/glow-digits   quality, diversity and speed in one picture
  fastgen compare ddpm pixelcnn --data digits      train both three times, and tabulate what their samples are worth
  fastgen density table.csv --picture table.png    which classical density tells a table best, and how fast
  fastgen bench gated_activation --quick           time an operation against its rivals
  fastgen info                                     what was built, and which kernels can run here

`fastgen COMMAND --help` explains a command."""

TRAIN_EXAMPLES = """models of images:   pixelcnn, gated-pixelcnn, pixelcnnpp, realnvp, glow,
                    ddpm, diffusion-2015, score-sde, edm, flow-matching,
                    ae, dae, vae, cvae, vqvae, gan, dcgan, wgan-gp, stylegan2
models of vectors:  nsf, realnvp, maf, iaf, gan

examples:
  fastgen train pixelcnn --data digits
  fastgen train gated-pixelcnn --data photos/ --image-size 32 --levels 16 --class-conditional
  fastgen train pixelcnnpp --data cifar.npz --channels 96 --set resnets=3 --set num_mixtures=5
  fastgen train nsf --data two-moons
  fastgen train maf --data table.csv --transforms 8 --epochs 100
  fastgen train glow --data digits --class-conditional
  fastgen train ddpm --data digits --class-conditional
  fastgen train score-sde --data digits --set sde=subvp
  fastgen train vae --data digits --set latent_size=2 --set beta=4
  fastgen train dcgan --data digits --set loss=hinge --set spectral_norm=true
  fastgen train gan --data eight-gaussians              does it find all eight?
  accelerate launch --num_processes 4 -m fastgen train pixelcnnpp --data cifar.npz

data:
  digits           scikit-learn's 1,797 handwritten digits, 8x8 with 17 levels
  points           two-moons, circles, s-curve, swiss-roll, checkerboard, eight-gaussians, spirals, pinwheel
  a folder         of pictures (its subfolders are classes), or with MNIST's IDX files
  a file           .npy, .npz (images, labels, levels), or IDX (train-images-idx3-ubyte[.gz])
  a table          .csv, .tsv, .txt, .dat, or .npy of numbers [rows, columns]: standardised, but scored and sampled in
                   its own units. Columns may have names in the first line, by which evaluate knows them again

A run that was stopped, by Ctrl-C or by a kill, goes on where it was with

  fastgen train --resume runs/pixelcnn-digits

and gives the same numbers as if it had never stopped. Options keep the run's values; only --epochs may grow."""

SAMPLE_EXAMPLES = """examples:
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

EVALUATE_EXAMPLES = """examples:
  fastgen evaluate runs/pixelcnn-digits                  the validation images of the run itself
  fastgen evaluate runs/gated-pixelcnn-mnist --part test
  fastgen evaluate runs/pixelcnn-digits --data more.npz --part train
  fastgen evaluate runs/nsf-table --data other.csv --part train
  fastgen evaluate runs/pixelcnn-digits --samples 5000 --metrics fid,prdc,modes
  fastgen evaluate runs/glow-cifar --features inception --metrics fid,kid,is
  fastgen evaluate runs/pixelcnn-digits --metrics none   likelihoods alone, without drawing samples"""

RESTORE_EXAMPLES = """tasks:
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

INTERPOLATE_EXAMPLES = """The picture shows

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

DENSITY_EXAMPLES = """methods:
  gaussian         one normal density
  mixture          1 to 8 normal densities, their number by BIC
  histogram        bins of cross-validated width (unasked up to 3 columns)
  kde              a kernel on every row
  kde-adaptive     kernels as wide as the sqrt(n)-th neighbour is far
  kde-debiased     kernels on rows that were moved along the estimated score (SD-KDE)
  series           cosines, as many as cross-validation wants (unasked up to 3 columns)
  neural           networks that learn the cumulative distribution (unasked up to 3 columns)

examples:
  fastgen density table.csv                                    all that suit the number of columns
  fastgen compare ddpm pixelcnn --data digits      train both three times, and tabulate what their samples are worth
  fastgen density table.csv --picture table.png                ... with the densities and their convergence drawn
  fastgen density x.npy --method kde gaussian --bandwidth cv   two of them; the bandwidth of greatest likelihood
  fastgen density x.npy --method kde --bandwidth 0.3           a bandwidth in the units of the data
  fastgen density table.csv --outliers 0.01 --output odd.txt   the rows that the best method finds unlikeliest

Every row is held out once (--folds) and scored by estimators that learned from n others, n from about 10 to all. What a
log-likelihood lacks is as the square of the density's error: where that falls like a power of n, the power is fitted
and stands beside the textbook's. A .csv may start with a line of names; an .npy is [rows, columns] or [rows]."""


DYNAMICS_EXAMPLES = """x descends on f(x, y) and y climbs it, as the networks of a GAN do. The games, each by
simultaneous and alternating gradient steps, by extragradient and by optimistic steps:

  a x y                    what a Wasserstein GAN plays near its equilibrium
  a x y + p x^2 - q y^2    the same with a pull towards it
  Dirac-GAN                data at a point, a generator that is one, a straight line as the discriminator
  Dirac-GAN with R1        and the gradient penalty that makes it converge

examples:
  fastgen dynamics                              what "GANs oscillate" means, in one picture
  fastgen dynamics -a 1 --step 0.3 --out slow.png"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """As it was, but a command refuses what it does not know itself, so that its own help is pointed to."""
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            close = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def _print_message(self, message: str, file: Any = None) -> None:
        """As it was, but where nothing can be written, that is an error."""
        print(message, end="", file=file or sys.stderr)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (the process' own arguments by default). Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):
        # A file's name need not be text of the terminal's encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            with remarks_kept():
                status = _run(argv)
            tell()
            return status
        finally:
            _flush()
    except KeyboardInterrupt:
        print("fastgen: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return 141
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        # How a file was read may be the reason.
        remarks = "".join(f" ({remark})" for remark in kept())
        print(f"fastgen: error: {describe(error)}{remarks}", file=sys.stderr)
        _drop_stdout()
        return 2


def _run(argv: Sequence[str]) -> int:
    """Run a command. Returns its exit status."""
    if argv and argv[0] in FORWARDED:
        return importlib.import_module(FORWARDED[argv[0]]).main(argv[1:]) or 0
    args = parser().parse_args(argv)
    room = ELSEWHERE.get(args.command, "fastgen.train.commands")
    # Imported late: `--help` answers at once, and `info` works where the training packages are missing.
    return importlib.import_module(room).run(args) or 0


def _flush() -> None:
    """Write what stdout still holds while a full disk or a closed pipe can be told of."""
    # None where a program is started without.
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_stdout() -> None:
    """Let what stdout still holds go nowhere, where it cannot be written: Python would complain of it at its end."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe(error: Exception) -> str:
    """What went wrong, in one line."""
    message = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("fastgen"):
        extra = EXTRAS.get(error.name.partition(".")[0], "train")
        return f"the package {error.name} is missing: pip install 'fastgen[{extra}]'"
    if isinstance(error, OSError) and error.strerror:
        # What is written to a file says which; what is printed does not.
        where = error.filename or ("standard output" if error.errno == errno.ENOSPC else None)
        return f"{where}: {error.strerror}" if where else error.strerror
    if isinstance(error, (ValueError, TypeError)) or type(error).__name__ == "TrainingDiverged":
        return message
    # Not one of ours: its message may fill pages.
    return f"{type(error).__name__}: {textwrap.shorten(message, 200)} (--debug shows where)"


def parser() -> Parser:
    """The parser of all commands. An option that was not given leaves no attribute, unless it says so."""
    top = Parser(prog="fastgen", description="The classic deep generative models, fast.", epilog=EXAMPLES)
    top.add_argument("--version", action="version", version=f"fastgen {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_sample(commands)
    _add_evaluate(commands)
    _add_restore(commands)
    _add_interpolate(commands)
    _add_demo(commands)
    _add_density(commands)
    add_fid(_add_command(commands, "fid", "the Fréchet inception distance of two sets of images", FID_HELP))
    add_score(_add_command(commands, "score", "compare generated images or features with real ones", SCORE_HELP))
    add_trilemma(
        _add_command(commands, "trilemma", "draw quality, diversity and speed of trained models", TRILEMMA_HELP)
    )
    add_compare(
        _add_command(commands, "compare", "train model families and set their samples side by side", COMPARE_HELP)
    )
    _add_dynamics(commands)
    commands.add_parser("info", help="show what was built and which kernels can run here")
    commands.add_parser("bench", help="time operations against their references and rivals")
    return top


def _add_command(
    commands: Any, name: str, description: str, epilog: str | None = None, usage: str | None = None
) -> Parser:
    command = commands.add_parser(
        name, help=description, description=description, epilog=epilog, usage=usage, argument_default=argparse.SUPPRESS
    )
    command.add_argument("--debug", action="store_true", default=False, help="show where an error came from")
    return command


def _add_train(commands: Any) -> None:
    train = _add_command(
        commands, "train", "train a model", TRAIN_EXAMPLES, "fastgen train MODEL --data DATA [option ...]"
    )
    train.add_argument("model", metavar="MODEL", nargs="?", help="one of those below")
    data = _add_data(train)
    data.add_argument("--validation-fraction", type=float, metavar="F", help="share set aside (default: 0.1)")
    data.add_argument("--split-seed", type=int, metavar="N", help="of what is set aside (default: that of --seed)")

    model = train.add_argument_group("model (defaults: the paper's; for named data, what learns in minutes)")
    model.add_argument("--channels", type=int, metavar="N", help="width of the network")
    model.add_argument("--layers", type=int, metavar="N", help="depth of the network")
    model.add_argument("--transforms", type=int, metavar="N", help="layers of a flow of vectors")
    model.add_argument("--hidden-features", type=int, metavar="N", help="width of a flow's networks")
    model.add_argument("--dropout", type=float, metavar="P", help="probability of dropping an activation")
    model.add_argument("--class-conditional", action="store_true", help="learn each class of the data apart")
    model.add_argument("--set", action="append", metavar="KEY=VALUE", help="any other argument of the model's class")

    learning = train.add_argument_group("learning")
    learning.add_argument("--epochs", type=int, metavar="N", help="passes over the data (default: 50)")
    learning.add_argument("--batch-size", type=int, metavar="N", help="examples in a step (default: 64)")
    learning.add_argument("--lr", type=float, help="peak learning rate (default: 1e-3)")
    learning.add_argument("--discriminator-lr", type=float, metavar="LR", help="of a GAN's (default: as --lr)")
    learning.add_argument("--warmup", type=int, metavar="N", help="steps of rising learning rate (default: 100)")
    learning.add_argument("--weight-decay", type=float, metavar="W", help="AdamW's (default: 0)")
    learning.add_argument("--max-grad-norm", type=float, metavar="G", help="clip gradients to this norm (default: 1)")
    learning.add_argument("--ema-decay", type=float, metavar="D", help="of the averaged weights (default: 0.999)")
    learning.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")

    run = train.add_argument_group("run")
    run.add_argument("--out", metavar="FOLDER", help="where to write (default: runs/MODEL-DATA)")
    run.add_argument(
        "--resume", nargs="?", const=True, metavar="RUN", help="go on with a run, or with the one in --out"
    )
    run.add_argument("--overwrite", action="store_true", help="start over in a folder that holds a run")
    run.add_argument("--save-every", type=int, metavar="STEPS", help="checkpoint within epochs too")
    run.add_argument("--sample-every", type=int, metavar="EPOCHS", help="draw samples.png while training too")
    run.add_argument(
        "--precision", choices=("no", "fp16", "bf16"), help="mixed precision (default: as launched, or no)"
    )
    add_device(run)
    run.add_argument("--quiet", action="store_true", default=False, help="a line for each epoch instead of a bar")


def _add_sample(commands: Any) -> None:
    sample = _add_command(commands, "sample", "draw from a trained model", SAMPLE_EXAMPLES)
    sample.add_argument("checkpoint", metavar="CHECKPOINT", help="the folder of a run or of a checkpoint")
    sample.add_argument("-n", type=int, default=None, metavar="N", help="how many (default: 64 images, 5000 vectors)")
    classes = sample.add_mutually_exclusive_group()
    classes.add_argument("--labels", default=None, metavar="L,L,...", help="classes to draw, in turn (default: all)")
    classes.add_argument("--label", default=None, dest="labels", metavar="L", help="the one class to draw")
    sample.add_argument("--method", choices=("cached", "naive"), default=None, help="of PixelCNNs (default: cached)")
    sample.add_argument("--compare", action="store_true", default=False, help="time both methods")
    sample.add_argument("--temperature", type=float, default=None, metavar="T", help="of flows and VAEs (default: 1)")
    sample.add_argument(
        "--sampler",
        default=None,
        metavar="NAME",
        help="of diffusion: ddim (default), ddpm, dpm++, euler or heun; pc, em or ode; heun, euler, midpoint or ode",
    )
    sample.add_argument(
        "--steps", type=int, default=None, metavar="N", help="of diffusion, of a chain (default: what suits)"
    )
    sample.add_argument(
        "--eta",
        type=float,
        default=None,
        metavar="E",
        help="of ddim: 0 (default) adds no noise, 1 as much as ddpm does",
    )
    sample.add_argument(
        "--guidance", type=float, default=None, metavar="G", help="of diffusion: above 1 exaggerates classes"
    )
    sample.add_argument(
        "--truncation", type=float, default=None, metavar="T", help="of GANs: the smaller, the more typical"
    )
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    sample.add_argument(
        "--out", default="samples.png", metavar="FILE", help="a .png, .npy or .csv (default: samples.png)"
    )
    add_device(sample)


def _add_evaluate(commands: Any) -> None:
    evaluate = _add_command(commands, "evaluate", "score a trained model and its samples", EVALUATE_EXAMPLES)
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="the folder of a run or of a checkpoint")
    _add_data(evaluate)
    evaluate.add_argument(
        "--part", choices=("train", "validation", "test"), default="validation", help="default: validation"
    )
    evaluate.add_argument("--batch-size", type=int, default=256, metavar="N", help="examples at a time (default: 256)")
    evaluate.add_argument("--json", action="store_true", default=False, help="print a JSON object")
    samples = evaluate.add_argument_group("samples")
    samples.add_argument(
        "--metrics",
        default=None,
        metavar="M,M,...",
        help="of samples, as `fastgen score --help` lists them, or none (default: what suits the data)",
    )
    samples.add_argument("--samples", type=int, default=None, metavar="N", help="how many (default: up to 1000)")
    samples.add_argument("--features", default=None, metavar="NAME", help="digits, pixels, inception, timm:NAME, ...")
    samples.add_argument("--weights", default=None, metavar="FILE", help="of Inception")
    samples.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (default: 0)")
    add_device(evaluate)


def _add_restore(commands: Any) -> None:
    restore = _add_command(commands, "restore", "restore an image with a trained diffusion model", RESTORE_EXAMPLES)
    restore.add_argument("checkpoint", metavar="CHECKPOINT", help="the folder of a run or of a checkpoint")
    restore.add_argument("image", metavar="IMAGE", help="a picture, or the number of a validation image")
    restore.add_argument("--task", required=True, metavar="TASK", help="one of those below")
    restore.add_argument("-n", type=int, default=4, metavar="N", help="how many restorations (default: 4)")
    restore.add_argument(
        "--method", choices=("ddnm", "repaint", "dps"), default=None, help="default: ddnm, and dps for hdr"
    )
    restore.add_argument("--steps", type=int, default=None, metavar="N", help="levels of noise (default: 100)")
    restore.add_argument("--label", default=None, metavar="L", help="the class of the image")
    restore.add_argument("--noise", type=float, default=None, metavar="S", help="of the measurement, data in [-1, 1]")
    restore.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    restore.add_argument("--out", default="restored.png", metavar="FILE", help="a .png (default: restored.png)")
    add_device(restore)


def _add_interpolate(commands: Any) -> None:
    walk = _add_command(
        commands, "interpolate", "draw walks, arithmetic and a map of a model's latents", INTERPOLATE_EXAMPLES
    )
    walk.add_argument("checkpoint", metavar="CHECKPOINT", help="the folder of a run or of a checkpoint")
    walk.add_argument(
        "--kind", action="append", choices=("walk", "arithmetic", "map"), default=None, help="default: all of them"
    )
    walk.add_argument("-n", type=int, default=6, metavar="N", help="rows of a panel (default: 6)")
    walk.add_argument("--steps", type=int, default=9, metavar="N", help="images of a walk (default: 9)")
    walk.add_argument(
        "--images", default=None, metavar="I,I,...", help="numbers of held-out images, in pairs (default: random)"
    )
    walk.add_argument("--label", default=None, metavar="L", help="the class of the map (default: 0)")
    walk.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    walk.add_argument("--out", default="interpolation.png", metavar="FILE", help="a .png (default: interpolation.png)")
    add_device(walk)


def _add_demo(commands: Any) -> None:
    demo = _add_command(commands, "demo", "learn handwritten digits in two minutes and draw 64 new ones")
    demo.add_argument("--epochs", type=int, metavar="N", help="passes over the digits (default: what two minutes take)")
    demo.add_argument("--out", default="runs/demo", metavar="FOLDER", help="where to write (default: runs/demo)")
    add_device(demo, default="cpu")
    demo.add_argument("--quiet", action="store_true", default=False, help="a line for each epoch instead of a bar")


def _add_density(commands: Any) -> None:
    density = _add_command(commands, "density", "compare classical density estimators on a table", DENSITY_EXAMPLES)
    density.add_argument("file", metavar="FILE", help="a table (.csv, .tsv, .txt, .dat), or an .npy or .npz array")
    density.add_argument(
        "--method", nargs="+", action="extend", default=None, metavar="NAME", help="of those below (default: all)"
    )
    density.add_argument(
        "--bandwidth",
        default="cv",
        metavar="RULE|NUMBER",
        help="of the kernels: cv (default), scott, silverman, isj, lscv, or a number in the units of the data",
    )
    density.add_argument("--folds", type=int, default=5, metavar="K", help="of the cross-validation (default: 5)")
    density.add_argument("--seed", type=int, default=0, metavar="N", help="of folds and fits (default: 0)")
    density.add_argument(
        "--max-rows", type=int, default=5000, metavar="N", help="compare on so many, drawn (default: 5000)"
    )
    add_device(density)
    density.add_argument("--picture", default=None, metavar="FILE", help="draw it: .png, .pdf or .svg")
    density.add_argument("--json", default=None, metavar="FILE", help="write all numbers")
    density.add_argument("--outliers", type=float, default=None, metavar="F", help="share of rows that are unlikely")
    density.add_argument("--output", default=None, metavar="FILE", help="where their numbers go, counted from 1")


def _add_dynamics(commands: Any) -> None:
    dynamics = _add_command(commands, "dynamics", "draw how two players of a min-max game move", DYNAMICS_EXAMPLES)
    for name, default, text in (("a", 10.0, "a x y"), ("p", 1.0, "p x^2"), ("q", 1.0, "-q y^2")):
        dynamics.add_argument(f"-{name}", type=float, default=default, help=f"of {text} (default: {default:g})")
    dynamics.add_argument("--step", type=float, default=0.05, metavar="H", help="size of a step (default: 0.05)")
    dynamics.add_argument("--steps", type=int, default=400, metavar="N", help="how many (default: 400)")
    dynamics.add_argument(
        "--out", default="dynamics.png", metavar="FILE", help="a .png, .pdf or .svg (default: dynamics.png)"
    )


def _add_data(command: Parser) -> Any:
    data = command.add_argument_group("data")
    data.add_argument("--data", metavar="DATA", help="a name, a folder, or a file")
    data.add_argument("--levels", type=int, metavar="N", help="quantise images to this many intensities")
    data.add_argument("--size", type=int, metavar="N", help="how many points of a named set (default: 20000)")
    data.add_argument("--image-size", type=int, metavar="N", help="scale and crop pictures to this square")
    data.add_argument("--color", choices=("grey", "rgb"), help="of pictures (default: as they are)")
    data.add_argument("--background", metavar="COLOR", help="of transparent pictures (default: white)")
    data.add_argument("--skip-bad", action="store_true", help="pass over pictures that cannot be read, and count them")
    data.add_argument("--label-file", metavar="FILE", help="IDX labels for one IDX file of images")
    return data
