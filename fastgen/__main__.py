"""`python -m fastgen`: the command line."""

import sys

from fastgen.cli import main

sys.exit(main())
