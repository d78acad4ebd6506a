"""Progress for people, on stderr: results alone go to stdout."""

import sys


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
