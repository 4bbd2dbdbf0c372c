# SPDX-License-Identifier: MIT
"""apply_layout() and restore_layout(): give a VM a layout in one transaction.

Both read the slots of the VM, compare, and change.  No lock is held in between.  The change names the generation of the
state that was read.  If another thread has changed the address space since then, both begin again.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from .._memslots import Snapshot, _backings_in
from ..errors import MemslotsError
from .differences import Difference, Pairs, difference_of, equal_rows
from .planning import Plan, between
from .steps import CREATE, Memory, Places, changes
from .tables import Layout, Rows, Table

#: So often a call begins again.
ATTEMPTS = 100


def apply_layout(
    vm: Any,
    layout: Layout,
    *,
    coalesce: bool = True,
    max_slots: int | None = None,
    keep_ids: bool = True,
    as_id: int = 0,
) -> Plan:
    """Give a VM this layout in one transaction, and return the plan.  The body of ``VM.apply``.

    No step is made where nothing differs.  The arguments are those of `plan`."""
    for _ in range(ATTEMPTS):
        rows, generation, backings = vm._state(as_id)
        now = Table(rows, has_ids=True)
        result = between(now, layout, coalesce, max_slots, keep_ids, as_id, search=False)
        numbers = backings.numbers()
        memory = None if numbers is None else Memory(numbers[_gone_places(result._difference)], None)
        steps = changes(result._difference, memory)
        if not len(steps) or vm._change_many(steps, as_id, generation):
            return result
    raise _changed_too_often(as_id)


def restore_layout(vm: Any, snapshot: Snapshot) -> Plan:
    """Give a VM exactly the slots of a Snapshot, with its buffers if it has some.  The body of ``VM.restore``."""
    as_id, wanted, held = snapshot.as_id, snapshot.array, _backings_in(snapshot)
    kept = held.numbers()
    for _ in range(ATTEMPTS):
        rows, generation, backings = vm._state(as_id)
        difference, memory = _compare_all(rows, wanted, backings.numbers(), kept)
        steps = changes(difference, memory)
        if not len(steps) or _carried_out(vm, snapshot, difference, steps, generation, held):
            return Plan(difference)
    raise _changed_too_often(as_id)


def _compare_all(rows: Rows, wanted: Rows, now: Rows | None, then: Rows | None) -> tuple[Difference, Memory | None]:
    """Compare slots and, if the snapshot has buffers, these too."""
    equal: Pairs = equal_rows(rows, wanted, with_ids=True)
    if then is None:
        difference = difference_of(rows, wanted, equal)
        return difference, None if now is None else Memory(now[_gone_places(difference)], None)
    if now is None:
        now = np.zeros(len(rows), np.uint64)
    a, b = equal
    same = now[a] == then[b]
    a, b = a[same], b[same]
    difference = difference_of(rows, wanted, (a, b))
    return difference, Memory(np.delete(now, a), np.delete(then, b))


def _gone_places(difference: Difference) -> Places:
    return np.delete(np.arange(len(difference.current)), difference.kept)


def _carried_out(
    vm: Any, snapshot: Snapshot, difference: Difference, steps: Rows, generation: int, held: Any
) -> bool:
    if not len(difference.current):
        return bool(vm._load_into_empty(snapshot, generation))
    places = _places_of_creates(steps, snapshot.array["id"]) if held.numbers() is not None else None
    return bool(vm._change_many(steps, snapshot.as_id, generation, held, places))


def _places_of_creates(steps: Rows, ids: Rows) -> Places:
    """For each step that creates a slot the place of its id; -1 for other steps."""
    order = np.argsort(ids)
    places = np.full(len(steps), -1)
    creates = np.flatnonzero(steps["kind"] == CREATE)
    places[creates] = order[np.searchsorted(ids, steps["slot"][creates], sorter=order)]
    return places


def _changed_too_often(as_id: int) -> MemslotsError:
    return MemslotsError(
        errno.EAGAIN,
        f"other threads changed address space {as_id} during each of {ATTEMPTS} attempts; nothing was changed",
    )
