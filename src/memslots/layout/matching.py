# SPDX-License-Identifier: MIT
"""The slots that move, the places that they wait for, and the choice between slots of the same memory.

Two slots of the same memory (npages, userspace_addr, flags without LOG_DIRTY_PAGES) are interchangeable.  Which of them
moves where decides whether the moves wait in a circle.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .differences import FIXED, MEMORY, Difference, Pairs, join_rows
from .feedback import Graph, smallest_cut
from .tables import Rows

#: The most ways to pair slots of the same memory that are tried.
PAIRINGS_LIMIT = 6000


class Moves(NamedTuple):
    """Rows of `gone` that move to rows of `new`, and which of them are deleted and created again instead."""

    target: dict[int, int]
    waits: Graph  # without the rows of `cut`
    cut: set[int]
    proven: bool  # no smaller cut exists for these targets


def moves_of(difference: Difference) -> Moves:
    """Return the moves of a difference whose rows have their final ids."""
    gone, new = difference.gone, difference.new
    a, b = difference.pairs()
    old, now = gone[a], new[b]
    moving = can_stay(old, now) & (old["base_gfn"] != now["base_gfn"])
    return _moves(gone, new, dict(zip(a[moving].tolist(), b[moving].tolist(), strict=True)))


def can_stay(old: Rows, now: Rows) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each slot can reach its new row by one call: KVM keeps npages, userspace_addr and READONLY of a slot."""
    result: np.ndarray[tuple[int], np.dtype[np.bool_]] = (
        (old["npages"] == now["npages"])
        & (old["userspace_addr"] == now["userspace_addr"])
        & (old["flags"] & FIXED == now["flags"] & FIXED)
    )
    return result


def _moves(gone: Rows, new: Rows, target: dict[int, int]) -> Moves:
    blockers = _blockers(gone, new, list(target), list(target.values()))
    waits = _waits(blockers, target)
    cut, proven = smallest_cut(waits)
    left = {node: others - cut for node, others in waits.items() if node not in cut}
    return Moves(target, left, cut, proven)


def _blockers(gone: Rows, new: Rows, olds: list[int], news: list[int]) -> dict[int, set[int]]:
    """Return, for each row in `news`, the rows of `olds` that overlap it.

    Both sets are free of overlap.  So all blockers together are fewer than the rows."""
    olds = sorted(olds)  # by base_gfn, as gone is
    base = gone["base_gfn"][olds]
    ends = base + gone["npages"][olds]
    first = np.searchsorted(ends, new["base_gfn"][news], side="right").tolist()
    last = np.searchsorted(base, (new["base_gfn"] + new["npages"])[news], side="left").tolist()
    return {n: set(olds[i:j]) for n, i, j in zip(news, first, last, strict=True)}


def _waits(blockers: dict[int, set[int]], target: dict[int, int]) -> Graph:
    """A slot may overlap its own old place, and a slot that is deleted leaves before all moves."""
    return {a: (blockers[b] & target.keys()) - {a} for a, b in target.items()}


# ---- slots of the same memory ----------------------------------------------------------------------------------------


class _Class(NamedTuple):
    """Rows of the same memory, of which slots in `gone` may move to places in `new`."""

    gone: list[int]
    new: list[int]

    def choices(self) -> int:
        return math.perm(*sorted((len(self.gone), len(self.new)), reverse=True))

    def pairings(self) -> Iterator[dict[int, int]]:
        few, many = sorted((self.gone, self.new), key=len)
        for choice in itertools.permutations(many, len(few)):
            pairs = (
                zip(few, choice, strict=True) if few is self.gone else zip(choice, few, strict=True)
            )
            yield dict(pairs)


def best_moves(difference: Difference) -> tuple[Pairs | None, bool]:
    """Return pairs of `gone` and `new` with fewer deletes than the pairs of equal ids, or None if none were found; and
    whether it is proven that no pairs have fewer.

    A slot whose place and memory are wanted stays there.  Another choice never needs fewer deletes: the slot that would
    move to this place can make the other move instead."""
    moves = moves_of(difference)
    if not moves.cut:
        return None, True
    classes = _classes(difference)
    if all(c.choices() == 1 for c in classes):
        return None, moves.proven
    if math.prod(c.choices() for c in classes) > PAIRINGS_LIMIT:
        return None, False
    best, proven = _best(difference, classes, len(moves.cut))
    pairs = None if best is None else (np.array(list(best)), np.array(list(best.values())))
    return pairs, proven and moves.proven


def _classes(difference: Difference) -> list[_Class]:
    gone, new = difference.gone, difference.new
    a, b = np.arange(len(gone)), np.arange(len(new))
    stay, kept = join_rows(gone, new, a, b, ("base_gfn", *MEMORY))
    found: dict[tuple[int, ...], _Class] = {}
    for rows, staying, side in ((gone, stay, 0), (new, kept, 1)):
        for at in np.setdiff1d(np.arange(len(rows)), staying).tolist():
            row = rows[at]
            key = (int(row["npages"]), int(row["userspace_addr"]), int(row["flags"] & FIXED))
            found.setdefault(key, _Class([], []))[side].append(at)
    return [c for c in found.values() if c.gone and c.new]


def _best(
    difference: Difference, classes: list[_Class], fewest: int
) -> tuple[dict[int, int] | None, bool]:
    """Try all pairings until one needs no delete.  Return the first one with the fewest, below `fewest`."""
    olds = [at for c in classes for at in c.gone]
    news = [at for c in classes for at in c.new]
    blockers = _blockers(difference.gone, difference.new, olds, news)
    best, proven = None, True
    for parts in itertools.product(*(c.pairings() for c in classes)):
        target = {a: b for part in parts for a, b in part.items()}
        cut, exact = smallest_cut(_waits(blockers, target))
        proven &= exact
        if len(cut) < fewest:
            best, fewest = target, len(cut)
            if not fewest:
                return best, True
    return best, proven
