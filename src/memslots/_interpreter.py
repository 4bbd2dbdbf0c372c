# SPDX-License-Identifier: MIT
"""Refuses to be imported in a sub-interpreter.

What the core knows of threads and forks belongs to the process, and the extension cannot be loaded twice: the first
interpreter that loaded it would lock out all others, the main one too.  So this is asked before it is loaded.
"""

from __future__ import annotations

import importlib


def is_main() -> bool:
    """Whether this is the main interpreter; also where this Python has no word for it."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # from 3.13 on, and before
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() == interpreters.get_main())
    return True


if not is_main():
    raise ImportError("memslots cannot be used in a sub-interpreter: import it in the main one")
