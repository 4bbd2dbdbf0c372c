# SPDX-License-Identifier: MIT
"""Layouts whose slots cannot be joined, and the same layouts with a few differences.

bench/reload.py also uses them with the package of another commit, so this file imports only names that 339614a has.
"""

from typing import Any

import numpy as np

from memslots import MEMSLOT_DTYPE, MemFlag

GAP = 8  # frames from one slot to the next; a slot has 4
DIFFERENCES = 10


def spread(n: int) -> np.ndarray[Any, Any]:
    """Slots of four pages with gaps, none of which continues its neighbour in host memory."""
    rows = np.zeros(n, MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"] = np.arange(n), np.arange(n) * GAP, 4
    rows["userspace_addr"] = np.random.default_rng(n).permutation(n).astype(np.uint64) << np.uint64(
        16
    )
    return rows


def changed(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same layout with DIFFERENCES slots that differ: some move, some change their logging, some their memory."""
    other = rows.copy()
    places = np.linspace(0, len(rows) - 1, DIFFERENCES).astype(int)
    other["base_gfn"][places[::3]] += 4
    other["flags"][places[1::3]] = MemFlag.LOG_DIRTY_PAGES
    other["userspace_addr"][places[2::3]] += 1 << 40
    return other
