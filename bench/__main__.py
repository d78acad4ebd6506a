"""`python -m fastgen.bench`, the same as `fastgen bench`."""

import sys

from fastgen.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
