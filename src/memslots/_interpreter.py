# SPDX-License-Identifier: MIT
"""Refuses the import of memslots in a sub-interpreter.

The core keeps its state of threads and forks once per process, and the extension can be loaded only once.  If a
sub-interpreter loaded it first, all others could not, not even the main one.  So the check comes before the load.
"""

from __future__ import annotations

import importlib


def is_main() -> bool:
    """Whether this is the main interpreter.  True too if this Python has no module to find out."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # Python 3.13 and later; earlier
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() == interpreters.get_main())
    return True


if not is_main():
    raise ImportError("memslots cannot be used in a sub-interpreter: import it in the main one")
