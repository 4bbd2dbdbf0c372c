# SPDX-License-Identifier: MIT
"""The progress of long commands on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

Progress = Callable[..., object]  # its argument is the number of further units done, 1 by default

LINE_EVERY = 5.0  # seconds


@contextmanager
def progress_bar(total: Callable[[], int], unit: str) -> Iterator[Progress]:
    """Yield a function that counts units.  Commands that end within a second show nothing.

    `total` may be slow: it is called only when something is shown.
    """
    bar = _bar() if _is_terminal() else None
    if bar is None:
        yield _Lines(total, unit).update
        return
    with bar(total=total(), unit=unit, delay=1, leave=False) as shown:
        yield shown.update


def _bar() -> Any:
    """Return the class of tqdm, or None if it is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


def _is_terminal() -> bool:
    """Whether stderr is a terminal that can overwrite a line.  stderr is None when the process has none."""
    if sys.stderr is None or os.environ.get("TERM") == "dumb":
        return False
    return sys.stderr.isatty()


class _Lines:
    """The progress as lines of a log."""

    def __init__(self, total: Callable[[], int], unit: str) -> None:
        self._total, self._unit = total, unit
        self._known: int | None = None
        self._done = 0
        self._begin = self._last = monotonic()

    def update(self, n: int = 1) -> None:
        self._done += n
        now = monotonic()
        if now - self._last >= LINE_EVERY:
            self._last = now
            self._print(now - self._begin)

    def _print(self, seconds: float) -> None:
        if self._known is None:
            self._known = self._total()
        line = f"memslots: {self._done:,} of {self._known:,} {self._unit}s after {seconds:.0f} s"
        if sys.stderr is not None:
            with suppress(OSError):  # a closed or full stderr does not stop the work
                print(line, file=sys.stderr, flush=True)
