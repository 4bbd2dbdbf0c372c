# SPDX-License-Identifier: MIT
"""`python -m memslots` is the command line."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
