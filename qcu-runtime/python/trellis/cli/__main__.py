"""`python -m trellis.cli` is the command `trellis`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
