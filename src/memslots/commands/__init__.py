# SPDX-License-Identifier: MIT
"""The command line `memslots`.  Each command is a module, which cli.py finds by its name."""

from .cli import main

__all__ = ["main"]
