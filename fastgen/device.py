"""The device that a person names on the command line."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any

import torch

CHOICES = "auto, cpu, cuda, cuda:N or mps"


def add_device(command: Any, default: str = "auto") -> None:
    """Give a command's parser the option `--device`."""
    command.add_argument(
        "--device",
        type=_name,
        default=default,
        metavar="NAME",
        help=f"{CHOICES}; auto is a GPU where there is one (default: {default})",
    )


def use_device(name: str) -> torch.device:
    """The device called `name`, made the one that `"cuda"` means from here on.

    Args:
        name: `"cpu"`, `"cuda"`, `"cuda:N"`, `"mps"`, or `"auto"`: CUDA's current device, else the CPU.

    Raises:
        ValueError: no such device here, or a number among processes that each have their own device.
    """
    kind, _, number = name.partition(":")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: there is no Metal device here")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ValueError(f"--device {name}: there is no CUDA device here")
        if number and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(f"--device {name}: each of several processes takes its own, expected --device cuda")
        if number and int(number) >= count:
            last = f" to cuda:{count - 1}" if count > 1 else ""
            raise ValueError(f"--device {name}: expected cuda:0{last}")
        if number:
            torch.cuda.set_device(int(number))
    return torch.device(name)


def _name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise argparse.ArgumentTypeError(f"invalid choice: '{text}' (choose from {CHOICES})")
    return text
