# SPDX-License-Identifier: MIT
"""A progress bar for long commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[..., object]  # takes how many more units are done, 1 where none is given


@contextmanager
def progress_bar(total: Callable[[], int], unit: str) -> Iterator[Progress]:
    """A bar on a terminal after one second; no bar elsewhere, or without tqdm.  Only a terminal calls `total`."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda n=1: None
        return
    terminal = sys.stderr.isatty()
    shown = total() if terminal else None
    with tqdm(total=shown, unit=unit, delay=1, disable=not terminal, leave=False) as bar:
        yield bar.update
