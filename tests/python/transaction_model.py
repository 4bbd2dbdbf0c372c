# SPDX-License-Identifier: MIT
"""Transactions of the naive VM: the reference for the engine's lists of steps.

A step is a tuple (name, arguments).  The steps are applied, in order, to a copy of the slots; then the final state is
checked.  Each slot of the copy knows the slots that had its pages before (`sources`), from which it takes dirty bits.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from model import LOG_DIRTY_PAGES, MAX_NR_PAGES, PAGE_SIZE, READONLY, U64, ModelError, ModelVM, Slot

Step = tuple[Any, ...]


class StepRefused(ModelError):
    """`found` has (step, id of the other slot or None) for each reason that the engine may name first."""

    def __init__(self, number: int, rule: str, found: set[tuple[int, int | None]]) -> None:
        super().__init__(number, rule)
        self.found = found


@dataclass
class Part:
    slot: Slot
    step: int = -1  # the one that gave it its place
    sources: set[Slot] = field(default_factory=set)


class Steps:
    def __init__(self, vm: ModelVM, as_id: int) -> None:
        self.vm, self.as_id = vm, as_id
        self.parts = {s.id: Part(s, -1, {s}) for s in vm.memslots(as_id)}
        self.step = 0

    def refuse(self, rule: str, number: int = errno.EINVAL, other: int | None = None) -> None:
        raise StepRefused(number, rule, {(self.step, other)})

    def find(self, id: int) -> Part:
        if id >= self.vm.user_mem_slots:
            self.refuse("SLOT_ID")
        if id not in self.parts:
            self.refuse("NO_SUCH_SLOT")
        return self.parts[id]

    def free(self, id: int) -> None:
        if id >= self.vm.user_mem_slots:
            self.refuse("SLOT_ID")
        if id in self.parts:
            self.refuse("DUPLICATE_ID", errno.EEXIST, id)

    def check(self, id: int, gpa: int, size: int, hva: int, flags: int) -> None:
        try:
            self.vm._check_request(id, gpa, size, hva, flags, self.as_id, 0)
        except ModelError as error:
            self.refuse(error.rule or "")
        if size == 0:
            self.refuse("NPAGES")

    def place(self, part: Part, **values: int) -> None:
        part.slot, part.step = replace(part.slot, **values), self.step

    # ---- the steps ----

    def create(self, id: int, gpa: int, size: int, hva: int, flags: int) -> None:
        self.check(id, gpa, size, hva, flags)
        self.free(id)
        slot = Slot(id, self.as_id, gpa // PAGE_SIZE, size // PAGE_SIZE, hva, flags)
        self.parts[id] = Part(slot, self.step)

    def delete(self, id: int) -> None:
        self.find(id)
        del self.parts[id]

    def move(self, id: int, gpa: int) -> None:
        s = self.find(id).slot
        self.check(id, gpa, s.size, s.userspace_addr, s.flags)
        self.place(self.parts[id], base_gfn=gpa // PAGE_SIZE)

    def set_flags(self, id: int, set: int, clear: int) -> None:
        s = self.find(id).slot
        flags = s.flags & ~clear | set
        self.check(id, s.gpa, s.size, s.userspace_addr, flags)
        if flags & 4:
            self.refuse("GMEM_EXISTING", other=id)
        if (flags ^ s.flags) & READONLY:
            self.refuse("FLAGS_TOGGLE", other=id)
        self.parts[id].slot = replace(s, flags=flags)

    def resize(self, id: int, npages: int) -> None:
        s = self.find(id).slot
        self.check(id, s.gpa, npages * PAGE_SIZE, s.userspace_addr, s.flags)
        self.place(self.parts[id], npages=npages)

    def split(self, id: int, gpa: int, new_id: int) -> None:
        s = self.find(id).slot
        if gpa % PAGE_SIZE:
            self.refuse("GPA_ALIGN")
        if not s.gpa < gpa < s.gpa + s.size:
            self.refuse("SPLIT", other=id)
        self.free(new_id)
        self.cut_in_two(self.parts[id], gpa // PAGE_SIZE, gpa // PAGE_SIZE, new_id)

    def cut_in_two(self, part: Part, end: int, start: int, new_id: int) -> None:
        s = part.slot
        upper = replace(
            s, id=new_id, base_gfn=start, npages=s.end_gfn - start, userspace_addr=s.hva_of(start)
        )
        self.parts[new_id] = Part(upper, self.step, set(part.sources))
        self.place(part, npages=end - s.base_gfn)

    def merge(self, id: int, other: int) -> None:
        first, second = self.find(id), self.find(other)
        a, b = first.slot, second.slot
        if a.end_gfn != b.base_gfn:
            a, b = b, a
        if a.end_gfn != b.base_gfn:
            self.refuse("MERGE_PLACE", other=other)
        if a.userspace_addr + a.size != b.userspace_addr:
            self.refuse("MERGE_HVA", other=other)
        if a.flags != b.flags:
            self.refuse("MERGE_FLAGS", other=other)
        if a.npages + b.npages > MAX_NR_PAGES:
            self.refuse("NPAGES", other=other)
        self.place(
            first, base_gfn=a.base_gfn, npages=a.npages + b.npages, userspace_addr=a.userspace_addr
        )
        first.sources |= second.sources
        del self.parts[other]

    def punch(self, gpa: int, n: int) -> None:
        if n % PAGE_SIZE:
            self.refuse("SIZE_ALIGN")
        if gpa % PAGE_SIZE:
            self.refuse("GPA_ALIGN")
        if gpa + n >= U64 or not n:
            self.refuse("NPAGES" if not n else "GPA_WRAP")
        start, end = gpa // PAGE_SIZE, (gpa + n) // PAGE_SIZE
        for part in list(self.parts.values()):
            s = part.slot
            if s.base_gfn >= end or s.end_gfn <= start:
                continue
            below, above = s.base_gfn < start, s.end_gfn > end
            if below and above:
                self.cut_in_two(part, start, end, self.lowest())
            elif below:
                self.place(part, npages=start - s.base_gfn)
            elif above:
                self.place(part, base_gfn=end, npages=s.end_gfn - end, userspace_addr=s.hva_of(end))
            else:
                del self.parts[s.id]

    def lowest(self) -> int:
        for id in range(self.vm.user_mem_slots):
            if id not in self.parts:
                return id
        self.refuse("NO_FREE_SLOT", errno.ENOSPC)
        raise AssertionError

    # ---- the end ----

    def check_final(self) -> None:
        """The engine may name any of the slots that are wrong, but checks the limit of addresses first."""
        beyond = [p for p in self.parts.values() if p.slot.end_gfn * PAGE_SIZE > 2**self.vm.gpa_bits]
        if beyond:
            raise StepRefused(errno.EINVAL, "GPA_LIMIT", {(p.step, None) for p in beyond})
        found: set[tuple[int, int | None]] = set()
        for p, q in combinations(self.parts.values(), 2):
            a, b = p.slot, q.slot
            if a.base_gfn < b.end_gfn and b.base_gfn < a.end_gfn:
                later, other = (p, b) if p.step > q.step else (q, a)
                found.add((later.step, other.id))
        if found:
            raise StepRefused(errno.EEXIST, "OVERLAP", found)

    def bits(self, part: Part) -> int:
        """A page takes the bits of all logs that had it.  A page of none has the bit of a new log."""
        new = part.slot
        logged = [s for s in part.sources if (self.as_id, s.id) in self.vm._dirty]
        bits = 0
        for page in range(new.npages):
            hva = new.userspace_addr + page * PAGE_SIZE
            had = [
                self.vm._dirty[self.as_id, s.id] >> (hva - s.userspace_addr) // PAGE_SIZE & 1
                for s in logged
                if s.userspace_addr <= hva <= s.last_hva
            ]
            bits |= (max(had) if had else int(self.vm._manual == 3)) << page
        return bits


def change_many(vm: ModelVM, steps: Sequence[Step], as_id: int = 0) -> None:
    """All steps or none."""
    work = Steps(vm, as_id)
    for number, (name, *arguments) in enumerate(steps):
        work.step = number
        getattr(work, name)(*arguments)
    work.check_final()
    parts = work.parts.values()
    logs = {p.slot.id: work.bits(p) for p in parts if p.slot.flags & LOG_DIRTY_PAGES}
    before, space = vm.memslots(as_id), vm._spaces[as_id]
    is_new = any(p.slot not in p.sources for p in parts)
    for slot in before:
        space.remove(slot)
        vm._dirty.pop((as_id, slot.id), None)
    for part in parts:
        space.add(part.slot)
    vm._dirty.update({(as_id, id): bits for id, bits in logs.items()})
    if vm.memslots(as_id) != before or is_new:
        vm._swap(as_id)
