"""Run the command as ``python -m skad``."""

import sys

from skad._command import main

if __name__ == "__main__":
    sys.exit(main())
