# SPDX-License-Identifier: MIT
"""Makes `python -m memslots` run the command line."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
