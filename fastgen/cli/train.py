"""`fastgen train`: a model learns data."""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser, Namespace

from fastgen.cli.options import add_data, add_device, add_quiet, given, use_device
from fastgen.models.index import INDEX

HELP = "train a model"
USAGE = "fastgen train MODEL --data DATA [option ...]"


def _models_of(kind: str) -> str:
    """The names of the models that learn images, or vectors, in lines beside a margin."""
    names = ", ".join(name for name, entry in INDEX.items() if kind in entry.learns)
    return f"\n{'':20}".join(textwrap.wrap(names, 62, break_on_hyphens=False))


EXAMPLES = f"""models of images:   {_models_of("images")}
models of vectors:  {_models_of("vectors")}

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


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="one of those below")
    data = add_data(parser)
    data.add_argument("--validation-fraction", type=float, metavar="F", help="share set aside (default: 0.1)")
    data.add_argument("--split-seed", type=int, metavar="N", help="of what is set aside (default: that of --seed)")

    model = parser.add_argument_group("model (defaults: the paper's; for named data, what learns in minutes)")
    model.add_argument("--channels", type=int, metavar="N", help="width of the network")
    model.add_argument("--layers", type=int, metavar="N", help="depth of the network")
    model.add_argument("--transforms", type=int, metavar="N", help="layers of a flow of vectors")
    model.add_argument("--hidden-features", type=int, metavar="N", help="width of a flow's networks")
    model.add_argument("--dropout", type=float, metavar="P", help="probability of dropping an activation")
    model.add_argument("--class-conditional", action="store_true", help="learn each class of the data apart")
    model.add_argument("--set", action="append", metavar="KEY=VALUE", help="any other argument of the model's class")

    learning = parser.add_argument_group("learning")
    learning.add_argument("--epochs", type=int, metavar="N", help="passes over the data (default: 50)")
    learning.add_argument("--batch-size", type=int, metavar="N", help="examples in a step (default: 64)")
    learning.add_argument("--lr", type=float, help="peak learning rate (default: 1e-3)")
    learning.add_argument("--discriminator-lr", type=float, metavar="LR", help="of a GAN's (default: as --lr)")
    learning.add_argument("--warmup", type=int, metavar="N", help="steps of rising learning rate (default: 100)")
    learning.add_argument("--weight-decay", type=float, metavar="W", help="AdamW's (default: 0)")
    learning.add_argument("--max-grad-norm", type=float, metavar="G", help="clip gradients to this norm (default: 1)")
    learning.add_argument("--ema-decay", type=float, metavar="D", help="of the averaged weights (default: 0.999)")
    learning.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")

    run = parser.add_argument_group("run")
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
    add_quiet(run)


def run(args: Namespace) -> int:
    from fastgen.train.launch import finish_training, trainer_of

    use_device(args.device)
    options = given(args)
    with trainer_of(options) as trainer:
        return finish_training(trainer, resume="resume" in options)
