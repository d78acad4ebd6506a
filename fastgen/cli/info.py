"""`fastgen info`: what is installed here."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

HELP = "show what was built and which kernels can run here"
DESCRIPTION = "Versions, what was built, and every op with every backend's state and the reason for it."


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: Namespace) -> int:
    from fastgen.cli.reports.installation import report, text

    found = report()
    print(json.dumps(found, indent=2) if args.json else text(found))
    return 0
