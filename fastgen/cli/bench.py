"""`fastgen bench`: operations, models and samplers against a clock and their rivals."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from fastgen.cli.options import add_device, use_device

HELP = "time operations against their references and rivals"
DESCRIPTION = "Time ops, models and samplers against what people run today, correctness first."
EXAMPLES = """examples:
  fastgen bench                                     every op and suite
  fastgen bench gated_activation --pass forward     one op
  fastgen bench sampling --json results.json        one suite; its rows are added to the file, or replace older ones
  fastgen bench masked_conv2d --backend cpp,library --against eager,compile --plot bars.png

The columns eager, compile and peers say how many times slower these are; all methods of a row are interleaved in one
run. "limit" is the share of the copy bandwidth (or of the matrix product's rate) that is reached. A kernel that is
wrong on the inputs to be timed is not timed, and the exit status is 1."""
# Written out, since what has them imports PyTorch; a test compares them.
AGAINST, DTYPES = "eager,compile,peers", "float32,float64,bfloat16,float16"
BACKENDS = "auto,cuda,triton,cpp,library,reference"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="OP", help="ops and suites; all by default (--list shows them)")
    parser.add_argument("--against", default=AGAINST, help=f"baselines: some of {AGAINST} (all)")
    add_device(parser)
    parser.add_argument("--dtype", default="float32", help=f"some of {DTYPES} (float32)")
    parser.add_argument("--pass", dest="passes", help="forward, forward_backward, ...: only these")
    parser.add_argument("--backend", default="auto", help=f"a row for each of {BACKENDS} (auto)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: OMP_NUM_THREADS, or 2)")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose names contain this")
    parser.add_argument("--quick", action="store_true", help="one case per op, short measurements")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="add the rows to this file, replacing older ones; a folder gets <machine>.json",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a bar chart (.png, .svg, .pdf)")
    parser.add_argument("--list", action="store_true", help="list ops, cases and suites, and stop")


def run(args: Namespace) -> int:
    from fastgen.bench import command

    try:
        options = command.checked(args, use_device(args.device).type)
    except ValueError as error:
        print(f"fastgen bench: {error}", file=sys.stderr)
        return 2
    return command.run(args, options)
