# SPDX-License-Identifier: MIT
"""The command line `memslots`: cli.py finds the command, and each command is a module."""

from .cli import main

__all__ = ["main"]
