"""`python -m fastgen.bench`, which is also how the command starts itself with its own memory settings."""

import sys

from fastgen.bench.cli import main

sys.exit(main(sys.argv[1:]))
