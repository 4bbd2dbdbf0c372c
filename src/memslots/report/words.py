# SPDX-License-Identifier: MIT
"""Functions for texts in messages and reports.

The module imports only the standard library, because the commands `replay`, `map` and `info` need no other library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from textwrap import fill

NO_BREAK = "\N{NO-BREAK SPACE}"


def plural(n: int, noun: str) -> str:
    """1 file, 2 files, 1,000 mismatches."""
    ending = "" if n == 1 else "es" if noun.endswith(("ch", "s")) else "s"
    return f"{n:,} {noun}{ending}"


def listed(names: Iterable[str], last: str = "and") -> str:
    """a; a and b; a, b and c."""
    *others, final = names
    return f"{', '.join(others)} {last} {final}" if others else final


def choices(name: str, names: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: similar names first, then all valid ones."""
    known = list(names)
    similar = _similar(name, known)
    question = f"; did you mean {listed(similar, 'or')}?" if similar else "."
    return f"{question}  The names are {listed(known)}."


def _similar(name: str, known: list[str]) -> list[str]:
    """Compare whole names, otherwise parts of names: `lookup/hto` and `hto` both find `lookup/hot`."""
    whole = get_close_matches(name, known)
    return whole or [k for k in known if get_close_matches(name, k.split("/"))][:3]


def wrapped(text: str, width: int, indent: str = "  ") -> str:
    """Wrap a text at spaces, but not between a number and its unit.  Numbers, names and options are never split."""
    joined = re.sub(r"(?<=\d) (?=[a-z])", NO_BREAK, text)
    lines = fill(
        joined, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return lines.replace(NO_BREAK, " ")
