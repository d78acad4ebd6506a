"""`fastgen demo`: a PixelCNN learns digits, is set beside the mark it had to beat, and samples in both ways."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from fastgen.cli.options import add_device, add_quiet, given, use_device

HELP = "learn handwritten digits in two minutes and draw 64 new ones"
MODEL = "gated-pixelcnn"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="passes over the digits (default: what two minutes take)"
    )
    parser.add_argument("--out", default="runs/demo", metavar="FOLDER", help="where to write (default: runs/demo)")
    add_device(parser, default="cpu")
    add_quiet(parser)


def run(args: Namespace) -> int:
    import torch

    use_device(args.device)
    threads = torch.get_num_threads()
    # Layers this small gain little from a second thread, and lose much where another program wants its core.
    torch.set_num_threads(1)
    try:
        return _demonstrate(args)
    finally:
        torch.set_num_threads(threads)


def _demonstrate(args: Namespace) -> int:
    from fastgen.train.baseline import independent_pixels_bits_per_dim
    from fastgen.train.comparison import compare_sampling
    from fastgen.train.launch import finish_training, trainer_of
    from fastgen.train.load import load_model
    from fastgen.train.recipe import NUM_SAMPLES

    with trainer_of({"model": MODEL, "data": "digits", "overwrite": True, **given(args)}) as trainer:
        if status := finish_training(trainer):
            return status
    independent = independent_pixels_bits_per_dim(trainer.dataset.train, trainer.dataset.validation)
    print(f"{'independent pixels':24} {independent:.4f} validation bits per dimension, the best without dependence")
    model, _ = load_model(trainer.out)
    print(compare_sampling(model, NUM_SAMPLES))
    return 0
