# SPDX-License-Identifier: MIT
"""A model for plans: KVM's rules for one change, and a search for the cheapest way between two layouts.

It shares nothing with the package.  A slot is (base_gfn, npages, userspace_addr, flags) by its id.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from memslots import MEMSLOT_DTYPE

LOG, READONLY = 1, 2
NO_ID = 2**32 - 1


class Row(NamedTuple):
    base: int
    npages: int
    hva: int
    flags: int

    @property
    def end(self) -> int:
        return self.base + self.npages

    @property
    def memory(self) -> tuple[int, int, int]:
        return self.npages, self.hva, self.flags & ~LOG

    def overlaps(self, other: Row) -> bool:
        return self.base < other.end and other.base < self.end


Slots = dict[int, Row]


def apply(slots: Slots, step) -> None:
    """Make one step of a plan, with the checks of KVM_SET_USER_MEMORY_REGION in its order.  AssertionError: refused."""
    old = slots.get(step.slot)
    if step.memory_size == 0:
        assert old is not None, f"{step}: no such slot"
        del slots[step.slot]
        return
    new = Row(step.guest_phys_addr >> 12, step.memory_size >> 12, step.userspace_addr, step.flags)
    if old is not None:
        assert old.memory == new.memory, f"{step}: KVM keeps {old.memory}"
        assert old != new, f"{step}: changes nothing"
    for id, other in slots.items():
        assert id == step.slot or not new.overlaps(other), f"{step}: overlaps slot {id}"
    slots[step.slot] = new


def slots_of(rows: np.ndarray) -> Slots:
    names = ("id", "base_gfn", "npages", "userspace_addr", "flags")
    return {id: Row(*fields) for id, *fields in rows[list(names)].tolist()}


def rows_of(slots: Slots) -> np.ndarray:
    rows = [(row.base, row.npages, row.hva, id, 0, row.flags) for id, row in slots.items()]
    return np.array(rows, MEMSLOT_DTYPE)


def runs_of(slots: Slots) -> np.ndarray:
    return np.array(list(slots.values()), np.uint64).reshape(-1, 4)


def comparison(
    rows: np.ndarray, wanted: np.ndarray, with_ids: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are not in `wanted`, and for each row of `wanted` the id of the equal row or NO_ID."""
    names = ["base_gfn", "npages", "userspace_addr", "flags", *(["id"] if with_ids else [])]
    before, after = (table[names].tolist() for table in (rows, wanted))
    ids = dict(zip(before, rows["id"].tolist(), strict=True))
    kept = set(after)
    gone = rows[[row not in kept for row in before]] if before else rows
    return gone, np.array([ids.get(row, NO_ID) for row in after], np.uint32)


# ---- the cheapest plan -------------------------------------------------------------------------------


def cheapest(current: Slots, wanted: Slots, ids: bool) -> tuple[int, int]:
    """The fewest deletes, and the fewest calls with so many deletes, over all sequences of legal steps.

    Dijkstra's search.  A state says for each old slot whether it is at its old place, at a wanted place (a number) or
    deleted, and which wanted rows are there.  ids: a slot may only become the wanted row of its own id."""
    old = list(current.items())
    goal = list(wanted.items())
    fits = [
        [
            j
            for j, (other, new) in enumerate(goal)
            if new.memory == row.memory and (not ids or other == id)
        ]
        for id, row in old
    ]
    begin = tuple(
        next((j for j in fits[i] if goal[j][1] == row), OLD) for i, (id, row) in enumerate(old)
    )
    start = (begin, frozenset(j for j in begin if j >= 0))
    queue = [((0, 0), 0, start)]
    best = {start: (0, 0)}
    number = itertools.count(1)
    while queue:
        cost, _, state = heapq.heappop(queue)
        if cost > best[state]:
            continue
        if len(state[1]) == len(goal) and OLD not in state[0]:
            return cost
        for deletes, after in _steps(state, old, goal, fits, ids):
            price = (cost[0] + deletes, cost[1] + 1)
            if price < best.get(after, (1 << 30, 0)):
                best[after] = price
                heapq.heappush(queue, (price, next(number), after))
    raise AssertionError("no plan exists")


OLD, GONE = -1, -2
State = tuple[tuple[int, ...], frozenset[int]]


def _steps(state: State, old, goal, fits, ids: bool) -> Iterator[tuple[int, State]]:
    """All legal steps: delete a slot, take it to a wanted row, create a wanted row."""
    where, filled = state
    there = [row for (_, row), at in zip(old, where, strict=True) if at == OLD]
    for i, at in enumerate(where):
        if at != GONE:  # also a slot that is where it should be
            yield 1, (_put(where, i, GONE), filled - {at})
        if at == OLD:
            for j in fits[i]:
                row = goal[j][1]
                if j not in filled and not any(row.overlaps(r) for r in there if r != old[i][1]):
                    yield 0, (_put(where, i, j), filled | {j})
    taken = {id for (id, _), at in zip(old, where, strict=True) if at == OLD}
    for j, (id, row) in enumerate(goal):
        free = j not in filled and not (ids and id in taken)
        if free and not any(row.overlaps(r) for r in there):
            yield 0, (where, filled | {j})


def _put(where: tuple[int, ...], i: int, at: int) -> tuple[int, ...]:
    return (*where[:i], at, *where[i + 1 :])
