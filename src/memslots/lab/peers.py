# SPDX-License-Identifier: MIT
"""Other ways to look up addresses in Python, measured with the same slots and numbers as the engine."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from ..constants import HVA_ERR_BAD, PAGE_SHIFT
from .case import Budget, Run
from .layouts import Layout, Numbers, sorted_by
from .lookups import GfnLookup, time_batches, time_calls
from .sample import Sample

One = Callable[[int], int]
Many = Callable[[Numbers, Numbers], Any]

BAD = np.uint64(HVA_ERR_BAD)
SHIFT = np.uint64(PAGE_SHIFT)


class Peer(NamedTuple):
    level: str  # one of lookups.LEVELS
    needs: str | None  # the name of a module
    make: Callable[[Layout], Any]  # returns a One or a Many


def _sorted_columns(slots: Layout) -> tuple[Numbers, Numbers, Numbers]:
    by_gfn = sorted_by(slots, "base_gfn")
    columns = (by_gfn["base_gfn"], by_gfn["npages"], by_gfn["userspace_addr"])
    base, npages, addr = (np.ascontiguousarray(column) for column in columns)
    return base, npages, addr


def numpy_searchsorted(slots: Layout) -> Many:
    base, npages, addr = _sorted_columns(slots)

    def many(gfns: Numbers, out: Numbers) -> None:
        i = np.searchsorted(base, gfns, side="right") - 1
        # Below the first slot i is -1, and the offset wraps to a huge number.
        offset = gfns - base[i]
        out[:] = np.where(offset < npages[i], addr[i] + (offset << SHIFT), BAD)

    return many


def numpy_argsort(slots: Layout) -> Many:
    """Sort the gfns first.  Sorting costs less than the cache misses that it avoids."""
    search = numpy_searchsorted(slots)

    def many(gfns: Numbers, out: Numbers) -> None:
        order = np.argsort(gfns)
        answers = np.empty_like(gfns)
        search(gfns[order], answers)
        out[order] = answers

    return many


def bisect_list(slots: Layout) -> One:
    base, npages, addr = (column.tolist() for column in _sorted_columns(slots))

    def one(gfn: int) -> int:
        i = bisect_right(base, gfn) - 1
        offset = gfn - base[i]
        if i >= 0 and offset < npages[i]:
            return int(addr[i] + (offset << PAGE_SHIFT))
        return HVA_ERR_BAD

    return one


def sorted_dict(slots: Layout) -> One:
    from sortedcontainers import SortedDict

    rows = [column.tolist() for column in _sorted_columns(slots)]
    by_base = SortedDict({b: (b, n, a) for b, n, a in zip(*rows, strict=True)})
    find, at = by_base.bisect_right, by_base.peekitem

    def one(gfn: int) -> int:
        i = find(gfn) - 1
        if i < 0:
            return HVA_ERR_BAD
        base, npages, addr = at(i)[1]
        return addr + (gfn - base << PAGE_SHIFT) if gfn - base < npages else HVA_ERR_BAD

    return one


def interval_tree(slots: Layout) -> One:
    from intervaltree import Interval, IntervalTree

    rows = [column.tolist() for column in _sorted_columns(slots)]
    tree = IntervalTree(Interval(b, b + n, (b, a)) for b, n, a in zip(*rows, strict=True))

    def one(gfn: int) -> int:
        for found in tree[gfn]:
            base, addr = found.data
            return int(addr + (gfn - base << PAGE_SHIFT))
        return HVA_ERR_BAD

    return one


PEERS = {
    "numpy": Peer("batch", None, numpy_searchsorted),
    "numpy argsort": Peer("batch", None, numpy_argsort),
    "bisect": Peer("python", None, bisect_list),
    "SortedDict": Peer("python", "sortedcontainers", sorted_dict),
    "intervaltree": Peer("python", "intervaltree", interval_tree),
}


def available() -> tuple[list[str], list[str]]:
    """Return the names of the available peers, and a reason for each missing one."""
    names, skipped = [], []
    for name, peer in PEERS.items():
        if peer.needs is None or find_spec(peer.needs):
            names.append(name)
        else:
            skipped.append(f"peer {name}: {peer.needs} is not installed")
    return names, skipped


class PeerLookup(GfnLookup):
    """The lookups of one level, by all peers of that level.  The rows have the same case name as the engine's rows."""

    def backends(self, available: Any) -> list[str]:
        return [name for name in available if name in PEERS and PEERS[name].level == self.level]

    def refusal(self, backend: str, budget: Budget) -> str | None:
        return None

    def setup(self, run: Run) -> None:
        self.made = getattr(self, "made", {})
        self.made[run.backend] = PEERS[run.backend].make(self.slots)

    def run(self, run: Run) -> Sequence[Sample]:
        peer, wanted = self.made[run.backend], run.budget.lookups
        numbers, expected = self.stream(wanted, wanted)
        if self.level == "batch":
            return [self.batches(expected, *time_batches(peer, numbers))]
        latencies = run.budget.latencies
        both = np.concatenate([expected, expected[:latencies]])
        return [self.sample(both, *time_calls(peer, numbers, latencies), 1)]


def all_peers(n_slots: int, seed: int) -> list[PeerLookup]:
    return [PeerLookup("misses", level, n_slots, seed) for level in ("batch", "python")]
