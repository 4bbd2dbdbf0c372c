# SPDX-License-Identifier: MIT
"""plan(): the way from one layout to another, one ioctl at a time."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from .._memslots import slots_of_rows
from ..diff import Diff, diff_rows
from ..listener import ChangeKind
from . import feedback
from .differences import Difference, compare
from .matching import best_moves, can_stay, moves_of
from .steps import STEP_DTYPE, changes
from .tables import Layout, Rows, Table, check_count, joined, normalise, request_of

_ARGUMENTS = ("slot", "guest_phys_addr", "memory_size", "userspace_addr", "flags", "as_id")
_REGION = struct.Struct(
    "=HHIQQQ"
)  # kvm_userspace_memory_region: the id, the address space, flags, gpa, size, hva


@dataclass(frozen=True, slots=True)
class Step:
    """One call of set_user_memory_region().

    ``op`` is its kind.  The other attributes are the arguments, so ``vm.set_user_memory_region(**step)`` makes the
    call, and ``bytes(step)`` is the argument of the ioctl KVM_SET_USER_MEMORY_REGION.  A delete has memory_size 0."""

    op: ChangeKind
    slot: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    flags: int
    as_id: int

    def keys(self) -> tuple[str, ...]:
        """The names of the arguments, for ``**step``."""
        return _ARGUMENTS

    def __getitem__(self, name: str) -> int:
        if name not in _ARGUMENTS:
            raise KeyError(name)
        value: int = getattr(self, name)
        return value

    def __bytes__(self) -> bytes:
        return _REGION.pack(
            self.slot,
            self.as_id,
            self.flags,
            self.guest_phys_addr,
            self.memory_size,
            self.userspace_addr,
        )

    def __str__(self) -> str:
        name, gpa = f"{self.op.name.lower():10} slot {self.slot}", self.guest_phys_addr
        if self.op is ChangeKind.DELETE:
            return name
        where = f"{name} [{gpa:#x}, {gpa + self.memory_size:#x})"
        return f"{where} at host {self.userspace_addr:#x}, flags {self.flags:#x}"


class Plan(Sequence[Step]):
    """The steps from one layout to another.  A sequence of Step; immutable.  `plan` and `VM.apply` make it.

    Each step takes a slot to its final state, or deletes it.  KVM accepts the steps one by one in this order: no two
    slots overlap after any of them.  Deletes come first, then changes of flags, then moves, then creates."""

    def __init__(self, difference: Difference, searched: bool = False) -> None:
        self._difference = difference
        self._searched = searched
        self._steps: tuple[Step, ...] | None = None
        self._optimal = False
        for rows in difference:
            rows.flags.writeable = False

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, in their order."""
        if self._steps is None:
            moves = moves_of(self._difference)
            self._optimal = not moves.cut or (self._searched and moves.proven)
            self._steps = tuple(_ordered(self._difference, moves.waits))
        return self._steps

    @property
    def calls(self) -> int:
        """The number of steps."""
        return len(self.steps)

    @property
    def deletes(self) -> int:
        """The number of steps that delete a slot."""
        return sum(step.op is ChangeKind.DELETE for step in self.steps)

    @property
    def optimal(self) -> bool:
        """Whether it is proven that no plan has fewer deletes, or as many deletes and fewer calls."""
        return bool(self.steps is not None and self._optimal)

    @property
    def diff(self) -> Diff:
        """The differences of the two layouts."""
        return diff_rows(self._difference.gone, self._difference.new, slots_of_rows)

    @property
    def final(self) -> Rows:
        """The layout after the last step: a read-only array of MEMSLOT_DTYPE by ascending base_gfn."""
        rows = self._difference.final()
        rows.flags.writeable = False
        return rows

    @property
    def changes(self) -> Rows:
        """The steps of one transaction with the same result, an array of STEP_DTYPE.  Its cycles need no delete, and a
        slot may change its size."""
        return changes(self._difference)

    def as_array(self) -> Rows:
        """The steps as an array of STEP_DTYPE, one row for each call."""
        rows = [
            (s.op, s.slot, 0, s.flags, s.guest_phys_addr, s.memory_size, s.userspace_addr)
            for s in self.steps
        ]
        return np.array(rows, STEP_DTYPE)

    @overload
    def __getitem__(self, at: int) -> Step: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, at: int | slice) -> Step | tuple[Step, ...]:
        return self.steps[at]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __eq__(self, other: object) -> bool:
        return self.steps == other.steps if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.steps)

    def __repr__(self) -> str:
        return f"<Plan: {self._counts()}>"

    def __str__(self) -> str:
        width = len(str(self.calls))
        lines = [f"{number:{width}}  {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([self._counts(), *lines])

    def _counts(self) -> str:
        counts = ((self.deletes, "delete"), (self.calls, "call"))
        return ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for number, word in counts)


def plan(
    current: Layout,
    wanted: Layout,
    *,
    coalesce: bool = True,
    max_slots: int | None = None,
    keep_ids: bool = True,
) -> Plan:
    """Return the steps from one layout to another, for a VM that changes by one ioctl at a time.

    The plan has the fewest deletes, and among such plans the fewest calls.  `Plan.optimal` says whether that is proven.
    `current` and `wanted` are Snapshots, structured arrays, or runs (gfn, npages, hva, flags).  Runs without ids have
    the ids 0, 1, 2, ... by ascending gfn.

        coalesce   join the neighbours of `wanted` whose guest frames and host addresses are contiguous and whose flags
                   are equal
        max_slots  the most slots of the result; more raise InvalidRegionError
        keep_ids   a slot whose memory is also in `wanted` keeps its id, and other slots get their own id if it is free,
                   or the lowest free one.  Otherwise the ids are those of `wanted`."""
    now = normalise(current, coalesce=False)
    then = table_of(wanted, coalesce, max_slots, _as_id(now))
    difference = compare(now, then, keep_ids)
    if not keep_ids:
        return Plan(difference, searched=True)
    moves, proven = best_moves(difference)
    if moves is not None:
        difference = compare(now, then, keep_ids, moves)
    return Plan(difference, searched=proven)


def table_of(layout: Layout, coalesce: bool, max_slots: int | None, as_id: int | None) -> Table:
    """Return a wanted layout as a Table that respects max_slots."""
    wanted = normalise(layout, coalesce=coalesce, as_id=as_id)
    if max_slots is not None and len(wanted.rows) > max_slots:
        check_count(len(wanted.rows), max_slots, coalesce, len(joined(wanted.rows)))
    return wanted


def _as_id(table: Table) -> int | None:
    return int(table.rows["as_id"][0]) if len(table.rows) else None


# ---- the order of the steps ------------------------------------------------------------------------------------------


def _ordered(difference: Difference, waits: feedback.Graph) -> Iterator[Step]:
    """Deletes make room and wait for nothing.  Flags change in place.  Moves wait for moves, creates for all moves."""
    gone, new = difference.gone, difference.new
    a, b = difference.pairs()
    stays = can_stay(gone[a], new[b])
    target = dict(zip(a[stays].tolist(), b[stays].tolist(), strict=True))
    in_place = {i: j for i, j in target.items() if gone["base_gfn"][i] == new["base_gfn"][j]}
    kept = waits.keys() | in_place.keys()
    filled = {target[i] for i in kept}
    yield from (_step(ChangeKind.DELETE, gone[i]) for i in range(len(gone)) if i not in kept)
    yield from (_step(ChangeKind.FLAGS_ONLY, new[j]) for j in in_place.values())
    yield from (_step(ChangeKind.MOVE, new[target[i]]) for i in feedback.order(waits))
    yield from (_step(ChangeKind.CREATE, new[j]) for j in range(len(new)) if j not in filled)


def _step(op: ChangeKind, row: Any) -> Step:
    q = request_of(row)
    if op is ChangeKind.DELETE:
        return Step(op, q.slot or 0, q.guest_phys_addr, 0, q.userspace_addr, 0, q.as_id)
    return Step(
        op, q.slot or 0, q.guest_phys_addr, q.memory_size, q.userspace_addr, q.flags, q.as_id
    )
