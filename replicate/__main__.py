"""`python -m replicate COMMAND`."""

import sys

from replicate.cli import main

if __name__ == "__main__":
    sys.exit(main())
