"""The command line, `fastgen COMMAND ...`: a file of this folder for each command.

A command's file has a line about it (`HELP`), the end of its `--help` (`EXAMPLES`), its arguments (`add_arguments`) and
what it does (`run`, which returns the exit status). It imports PyTorch, and all that needs it, within `run`, so that
every help answers at once. `options` holds what several commands share, `reports` what they compute and draw.
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
from fastgen.remark import hold_remarks, pop_remarks, print_remarks

# In the order of the help.
COMMANDS = (
    *("train", "sample", "evaluate", "restore", "interpolate", "demo", "density"),
    *("fid", "score", "trilemma", "compare", "dynamics", "info", "bench"),
)

# The extra that brings a package, where it is not `train`.
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


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and refuse what a command does not know within that command, so that the error points to its help."""
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            close = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print, and raise where that fails, which argparse would pass over."""
        print(message, end="", file=file or sys.stderr)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser(prog="fastgen", description="The classic deep generative models, fast.", epilog=EXAMPLES)
    top.add_argument("--version", action="version", version=f"fastgen {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"fastgen.cli.{name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            usage=getattr(module, "USAGE", None),
            description=getattr(module, "DESCRIPTION", module.HELP),
            epilog=getattr(module, "EXAMPLES", None),
        )
        command.add_argument("--debug", action="store_true", help="show where an error came from")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (the process' own arguments by default). Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):
        # A file's name need not be text of the terminal's encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            with hold_remarks():
                args = parser().parse_args(argv, argparse.Namespace(argv=argv))
                status = args.run(args)
            print_remarks()
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
        remarks = "".join(f" ({remark})" for remark in pop_remarks())
        print(f"fastgen: error: {describe(error)}{remarks}", file=sys.stderr)
        _drop_stdout()
        return 2


def _flush() -> None:
    """Write what stdout still holds while a full disk or a closed pipe can be told of."""
    # It is None where the program was started without one.
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
