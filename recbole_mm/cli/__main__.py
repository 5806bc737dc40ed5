"""`python -m recbole_mm.cli`."""

import sys

from recbole_mm.cli import main

if __name__ == "__main__":
    sys.exit(main())
