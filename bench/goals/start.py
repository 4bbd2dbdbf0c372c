# SPDX-License-Identifier: MIT
"""P10: how long a program that imports memslots takes, against one that imports numpy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from .book import Book
from .timing import WALL, turns
from .work import Effort

MOST = 1.3


def start(book: Book, effort: Effort) -> None:
    def program(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    calls = {"numpy": program("import numpy"), "memslots": program("import memslots")}
    times = turns(calls, 2 if effort.quick else 3 * effort.rounds, WALL)
    what = "import memslots / import numpy"
    book.ratio("P10", what, "a new process", times["memslots"], times["numpy"], "<=", MOST)
