"""Options that several commands take, and the checks of what they were given."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen.files import check_output, check_writable

if TYPE_CHECKING:
    import torch

# What figures can be written as.
PICTURES = (".png", ".pdf", ".svg")
_DEVICES = "auto, cpu, cuda, cuda:N or mps"


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The argument `CHECKPOINT`."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the folder of a run or of a checkpoint")


def add_data(parser: argparse.ArgumentParser) -> Any:
    """The options that say which data to read and how. Returns their group."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="DATA", help="a name, a folder, or a file")
    data.add_argument("--levels", type=int, metavar="N", help="quantise images to this many intensities")
    data.add_argument("--size", type=int, metavar="N", help="how many points of a named set (default: 20000)")
    data.add_argument("--image-size", type=int, metavar="N", help="scale and crop pictures to this square")
    data.add_argument("--color", choices=("grey", "rgb"), help="of pictures (default: as they are)")
    data.add_argument("--background", metavar="COLOR", help="of transparent pictures (default: white)")
    data.add_argument("--skip-bad", action="store_true", help="pass over pictures that cannot be read, and count them")
    data.add_argument("--label-file", metavar="FILE", help="IDX labels for one IDX file of images")
    return data


def add_quiet(parser: Any) -> None:
    """The option `--quiet` of what trains."""
    parser.add_argument("--quiet", action="store_true", help="a line for each epoch instead of a bar")


def add_device(parser: Any, default: str = "auto") -> None:
    """The option `--device`."""
    parser.add_argument(
        "--device",
        type=_device,
        default=default,
        metavar="NAME",
        help=f"{_DEVICES}; auto is a GPU where there is one (default: {default})",
    )


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise argparse.ArgumentTypeError(f"invalid choice: '{text}' (choose from {_DEVICES})")
    return text


def use_device(name: str) -> torch.device:
    """The device called `name`, made the one that `"cuda"` means from here on.

    Args:
        name: `"cpu"`, `"cuda"`, `"cuda:N"`, `"mps"`, or `"auto"`: CUDA's current device, else the CPU.

    Raises:
        ValueError: no such device here, or a number among processes that each have their own device.
    """
    import torch

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


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a person gave, or that have a default, by name."""
    return {name: value for name, value in vars(args).items() if value is not None and value is not False}


def check_at_least(option: str, value: int | None, least: int) -> None:
    """Raises ValueError where a number was given that is too small."""
    if value is not None and value < least:
        raise ValueError(f"{option} is {value}, expected at least {least}")


def check_out(out: str, *endings: str) -> Path:
    """The file that `--out` names; its folder is made. Raises ValueError for another ending, or where that fails."""
    path = Path(out)
    if path.suffix.lower() not in endings:
        listed = " or ".join(filter(None, (", ".join(endings[:-1]), endings[-1])))
        raise ValueError(f"--out is {path}, expected a name ending in {listed}")
    check_writable(path.parent)
    check_output(path)
    return path


def check_report(picture: str | None, *files: str | None) -> None:
    """Raises ValueError where the picture or another file of a report cannot be written."""
    if picture and Path(picture).suffix.lower() not in PICTURES:
        raise ValueError(f"--picture {picture}: expected a file that ends with one of: {', '.join(PICTURES)}")
    for path in filter(None, (picture, *files)):
        check_output(path)


def whole_numbers(option: str, text: str) -> list[int]:
    """The numbers in `3,1,4`. Raises ValueError where they are none."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} is {text}, expected whole numbers with commas between them") from None
