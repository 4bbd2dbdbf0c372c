# SPDX-License-Identifier: MIT
"""apply_layout() and restore_layout(): give a VM a layout in one transaction.

Both compare the slots of the VM with the wanted ones, and change.  No lock is held in between.  The change names the
generation of the state that was compared.  If another thread has changed the address space since then, both begin
again.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from .._memslots import Snapshot, _backings_in
from ..errors import MemslotsError
from .differences import Difference, Places, difference_of
from .planning import Plan, table_of
from .steps import CREATE, Memory, changes
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
    wanted = table_of(layout, coalesce, max_slots, as_id)
    for _ in range(ATTEMPTS):
        gone, numbers, ids, generation = vm._compare(wanted.rows, not keep_ids, as_id)
        difference = difference_of(gone, ids, wanted, keep_ids)
        steps = changes(difference, Memory(numbers, None))
        if not len(steps) or vm._change_many(steps, as_id, generation):
            return Plan(difference)
    raise _changed_too_often(as_id)


def restore_layout(vm: Any, snapshot: Snapshot) -> Plan:
    """Give a VM exactly the slots of a Snapshot, with its buffers if it has some.  The body of ``VM.restore``."""
    as_id, held = snapshot.as_id, _backings_in(snapshot)
    wanted, buffers = Table(snapshot.array, has_ids=True), held.numbers()
    for _ in range(ATTEMPTS):
        gone, numbers, ids, generation = vm._compare(wanted.rows, True, as_id, held)
        difference = difference_of(gone, ids, wanted, keep_ids=False)
        new_buffers = None if buffers is None else buffers[difference.places()]
        steps = changes(difference, Memory(numbers, new_buffers))
        if not len(steps) or _carried_out(vm, snapshot, difference, steps, generation, held):
            return Plan(difference)
    raise _changed_too_often(as_id)


def _carried_out(
    vm: Any, snapshot: Snapshot, difference: Difference, steps: Rows, generation: int, held: Any
) -> bool:
    if len(difference.new) == len(difference.wanted) and not len(difference.gone):
        return bool(vm._load_into_empty(snapshot, generation))
    places = _places_of_creates(steps, difference) if held.numbers() is not None else None
    return bool(vm._change_many(steps, snapshot.as_id, generation, held, places))


def _places_of_creates(steps: Rows, difference: Difference) -> Places:
    """For each step that creates a slot the place of its id in `wanted`; -1 for other steps."""
    ids = difference.new["id"]
    order = np.argsort(ids)
    places = np.full(len(steps), -1)
    creates = np.flatnonzero(steps["kind"] == CREATE)
    found = order[np.searchsorted(ids, steps["slot"][creates], sorter=order)]
    places[creates] = difference.places()[found]
    return places


def _changed_too_often(as_id: int) -> MemslotsError:
    return MemslotsError(
        errno.EAGAIN,
        f"other threads changed address space {as_id} during each of {ATTEMPTS} attempts; nothing was changed",
    )
