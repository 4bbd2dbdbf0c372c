# SPDX-License-Identifier: MIT
"""P10: the time of a program that imports memslots, compared with one that imports numpy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from .scorecard import Scorecard
from .timing import WALL, turns
from .work import Settings

MOST = 1.3


def start(card: Scorecard, settings: Settings) -> None:
    def program(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    calls = {"numpy": program("import numpy"), "memslots": program("import memslots")}
    times = turns(calls, 2 if settings.quick else 3 * settings.rounds, WALL)
    what = "import memslots / import numpy"
    card.ratio("P10", what, "a new process", times["memslots"], times["numpy"], "<=", MOST)
