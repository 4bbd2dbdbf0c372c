# SPDX-License-Identifier: MIT
"""A VM and a naive ModelVM: both get the same calls and must give the same answers.

`Pair` makes a call on both sides and compares; `Burst` draws seeded random calls of every kind, most
of them valid for the current slots.  A difference raises an AssertionError that names the call and both
answers.
"""

from __future__ import annotations

import copy
import errno
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from operator import attrgetter
from random import Random
from typing import Any

import numpy as np
from model import ModelError, ModelVM

from memslots import (
    MEMSLOT_DTYPE,
    VM,
    Change,
    Listener,
    MemslotsError,
    SlotHandle,
    Update,
    UpdateError,
)

PAGE = 4096
U64 = 2**64
LOG, READONLY, GUEST_MEMFD = 1, 2, 4
FIELDS = ("id", "as_id", "base_gfn", "npages", "userspace_addr", "flags")
SET = "set_user_memory_region"


POLICIES = ("eager", "auto", "walk", "eager", "off")


class RefusalError(Exception):
    """Raised by the listener of these tests to refuse a change."""


class Refuser(Listener):
    """Refuses every change while `armed` is set.  Otherwise it keeps the logs that the changes end."""

    armed = False

    def __init__(self) -> None:
        self.last_bits: list[np.ndarray] = []

    def prepare(self, change: Change) -> None:
        assert change.dirty is None
        if self.armed:
            raise RefusalError

    def commit(self, change: Change) -> None:
        if change.dirty is not None:
            self.last_bits.append(change.dirty)


# Reads the six values of a slot of either side; fast, since the state machine compares some ten million slots.
values_of: Callable[[Any], tuple[int, ...]] = attrgetter(*FIELDS)


def plain(answer: Any) -> Any:
    """An answer of either side in a form for comparison with ==."""
    if isinstance(answer, np.ndarray):
        return (answer.dtype.str, answer.shape, answer.tobytes())
    if isinstance(answer, list | tuple):
        return [plain(item) for item in answer]
    return values_of(answer) if hasattr(answer, "base_gfn") else answer


def answer_of(call: Callable[[], Any]) -> Any:
    """The answer of a call, or (errno, rule) of a refused call."""
    try:
        return plain(call())
    except (MemslotsError, ModelError) as error:
        kind = next(
            (k.__name__ for k in (LookupError, PermissionError) if isinstance(error, k)), ""
        )
        rule = (
            f"no address: {kind}" if error.errno == errno.EFAULT and not error.rule else error.rule
        )
        return ("refused", error.errno, str(rule).lower())
    except OverflowError:
        return ("overflow",)


def rows_of(slots: list[tuple[int, int, int, int, int]], as_id: int) -> np.ndarray:
    """Converts tuples (id, base_gfn, npages, userspace_addr, flags) to the rows of load_memslots."""
    rows = np.zeros(len(slots), MEMSLOT_DTYPE)
    rows["as_id"] = as_id
    for i, slot in enumerate(slots):
        for name, value in zip(
            ("id", "base_gfn", "npages", "userspace_addr", "flags"), slot, strict=True
        ):
            rows[i][name] = value
    return rows


class Pair:
    """One VM, its model, two vCPUs and a listener that can refuse changes."""

    def __init__(self, backend: str = "tree", **limits: int) -> None:
        self.vm, self.model = VM(backend=backend, **limits), ModelVM(**limits)
        self.vcpus = [self.vm.create_vcpu() for _ in range(2)]
        self.refuser = Refuser()
        self.vm.add_listener(self.refuser)
        self.tally: Counter[str] = Counter()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Makes a call on both sides and compares; returns the answer of both."""
        self.tally[method] += 1
        self.refuser.last_bits.clear()  # of updates, too
        other = self.other_party(method, args, kwargs)
        caught: list[MemslotsError] = []

        def engine() -> Any:
            try:
                return getattr(self.vm, method)(*args, **kwargs)
            except MemslotsError as error:
                caught.append(error)
                raise

        got = answer_of(engine)
        want = answer_of(lambda: getattr(self.model, method)(*args, **kwargs))
        assert got == want, f"{method}{args}{kwargs}: the VM says {got}, the model {want}"
        if caught and other is not None:
            self.compare_other(caught[0], other)
        if method == SET:
            self.compare_last_bits()
        return got

    def compare_last_bits(self) -> None:
        got, want = self.refuser.last_bits, self.model.last_bits
        assert plain(got) == plain(want), f"Change.dirty is {got}, not {want}"
        got.clear()

    def harvest(self, as_id: int, clear: bool, start_gfn: int, room: int | None) -> None:
        """harvest_dirty on both sides.  The rows of `out` behind the result must not change."""
        self.tally["harvest_dirty"] += 1
        out = None if room is None else np.full((room, 2), 7, np.uint64)
        how: dict[str, Any] = {"clear": clear, "start_gfn": start_gfn}
        got = answer_of(lambda: self.vm.harvest_dirty(as_id, **how, out=out))
        want = answer_of(lambda: self.model.harvest_dirty(as_id, **how, room=room))
        assert got == want, f"harvest_dirty({as_id}, {how}, {room}): {got}, not {want}"
        if out is not None and got[0] == "<u8":
            assert (out[got[1][0] :] == 7).all()

    def load(self, slots: list[tuple[int, int, int, int, int]], as_id: int) -> None:
        """load_memslots on both sides; the sides may name different entries if several are wrong."""
        self.tally["load_memslots"] += 1
        got = answer_of(lambda: self.vm.load_memslots(rows_of(slots, as_id), as_id))
        orders = list(permutations(slots)) if got else [slots]
        wants = []
        for order in orders:
            rows = rows_of(list(order), as_id)
            wants.append(answer_of(lambda rows=rows: self.model.load_memslots(rows, as_id)))
            if wants[-1] == got:
                return
        raise AssertionError(f"load_memslots({slots}, {as_id}): {got}, not one of {wants}")

    def other_party(
        self, method: str, args: tuple, kwargs: dict[str, Any]
    ) -> dict[str, Any] | None:
        """The expected `.other` for each rule whose other party the model knows."""
        as_id, numbers = kwargs.get("as_id", 0), [*args[:1], *kwargs.values()]
        if (
            method not in (SET, "get_dirty_log", "clear_dirty_log", "merge_dirty_log")
            or as_id >= self.model.address_spaces
        ):
            return None
        if any(not 0 <= number < U64 for number in numbers):
            return None
        old = self.model.id_to_memslot(args[0], as_id)
        known = dict.fromkeys(
            ("GMEM_EXISTING", "HVA_CHANGE", "SIZE_CHANGE", "FLAGS_TOGGLE", "NO_DIRTY_LOG"), old
        )
        if method == SET and kwargs["memory_size"]:
            base, npages = kwargs["guest_phys_addr"] // PAGE, kwargs["memory_size"] // PAGE
            hit = self.model.memslots_in_gfn_range(base, base + npages, as_id)
            known["OVERLAP"] = next((slot for slot in hit if slot.id != args[0]), None)
        return known

    def compare_other(self, error: MemslotsError, known: dict[str, Any]) -> None:
        """`.other` is the conflicting slot, or None if the rule has no other party."""
        want = known.get(error.rule or "")
        got = None if error.other is None else values_of(error.other)
        assert got == (None if want is None else values_of(want)), (
            f"{error.rule}: other is {got}, not {want}"
        )

    # ---- what is not one call --------------------------------------------------------------------

    def protect(self, value: int) -> None:
        """Sets manual_dirty_log_protect on both sides."""
        self.tally["manual_dirty_log_protect"] += 1
        sides = [
            answer_of(lambda side=side: setattr(side, "manual_dirty_log_protect", value))
            for side in (self.vm, self.model)
        ]
        assert sides[0] == sides[1], f"manual_dirty_log_protect = {value}: {sides}"
        assert self.vm.manual_dirty_log_protect == self.model.manual_dirty_log_protect

    def vcpu_looks(self, which: int, as_id: int, gfn: int) -> None:
        """Compares a vCPU in an address space with the model."""
        self.tally["vcpu"] += 1
        vcpu = self.vcpus[which]
        vcpu.as_id = as_id
        for method, number in (
            ("gfn_to_memslot", gfn),
            ("gfn_to_hva", gfn),
            ("gpa_to_hva", gfn % 2**52 * PAGE + 5),
        ):
            got = answer_of(lambda method=method, number=number: getattr(vcpu, method)(number))
            want = answer_of(
                lambda method=method, number=number: getattr(self.model, method)(number, as_id)
            )
            assert got == want, f"vCPU in {as_id}: {method}({number:#x}) is {got}, not {want}"

    def snapshot(self, as_id: int, gfns: np.ndarray, write: bool) -> None:
        """Compares the slots and translations of a snapshot with those of the VM."""
        self.tally["snapshot"] += 1
        snapshot = self.vm.snapshot(as_id)
        assert plain(list(snapshot)) == plain(self.model.memslots(as_id))
        assert (snapshot.as_id, snapshot.generation) == (as_id, self.model.generation(as_id))
        want = self.model.gfn_to_hva_many(gfns, None, as_id, write)
        assert np.array_equal(snapshot.gfn_to_hva_many(gfns, write=write), want)

    def array(self, as_id: int) -> None:
        """Compares memslots_array with the slots of the model."""
        self.tally["memslots_array"] += 1
        rows = self.vm.memslots_array(as_id)
        assert rows.dtype == MEMSLOT_DTYPE
        got = [[int(row[name]) for name in FIELDS] for row in rows]
        assert got == [list(values_of(slot)) for slot in self.model.memslots(as_id)]

    def many(self, method: str, numbers: np.ndarray, out: np.ndarray | None, **kwargs: Any) -> None:
        """A batch with or without `out`; the call must fill `out` and return it.

        The size of the batch and the number of the call select the index policy."""
        self.tally[method] += 1
        self.vm.index_policy = POLICIES[(self.tally[method] + numbers.size) % len(POLICIES)]
        want = getattr(self.model, method)(numbers.copy(), None, **kwargs)
        got = getattr(self.vm, method)(numbers, out, **kwargs)
        assert out is None or got is out
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert np.array_equal(got, want), f"{method}({numbers!r}, {kwargs}): {got!r}, not {want!r}"

    def refused_by_listener(self, method: str, *args: Any, **kwargs: Any) -> None:
        """A change that a listener refuses: it changes only the generation, and only for a DELETE or MOVE."""
        self.tally["refused_by_listener"] += 1
        trial, as_id = copy.deepcopy(self.model), kwargs.get("as_id", 0)
        verdict = answer_of(lambda: getattr(trial, method)(*args, **kwargs))
        swaps = (
            0
            if verdict
            else (trial.generation(as_id) - self.model.generation(as_id)) // trial.address_spaces
        )
        self.refuser.armed = True
        try:
            got = answer_of(lambda: getattr(self.vm, method)(*args, **kwargs))
        except RefusalError:
            got = "refused by the listener"
        finally:
            self.refuser.armed = False
        assert got == (verdict if verdict or not swaps else "refused by the listener"), (
            method,
            args,
            kwargs,
        )
        if verdict:
            # A MOVE that is refused because of the gpa limit swaps, too.
            self.model._generation = trial._generation
        elif swaps == 2:
            self.model._generation[as_id] += 2 * self.model.address_spaces

    # ---- the steps of begin_update ---------------------------------------------------------------

    def by_steps(self, slot: int, as_id: int, stop: int | None = None, **region: int) -> None:
        """Makes the change by the steps of begin_update; an exception ends it after `stop` steps."""
        self.tally["begin_update"] += 1
        trial = copy.deepcopy(self.model)
        if answer_of(lambda: trial.set_user_memory_region(slot, as_id=as_id, **region)) is not None:
            return  # the steps need a valid change
        before = self.vm.generation(as_id)
        try:
            with self.vm.begin_update(as_id) as update:
                for number, step in enumerate(steps_of(update, slot, region)):
                    if number == stop:
                        raise RefusalError
                    step()
                if stop is not None:
                    raise RefusalError
        except RefusalError:
            moved = self.vm.generation(as_id) - before
            assert moved % self.model.address_spaces == 0
            assert moved // self.model.address_spaces <= 3
            self.model._generation[as_id] += moved
            return
        self.model = trial

    def resize(
        self, slot: int, as_id: int, keep: bool, marks: tuple[int, int], **values: int
    ) -> None:
        """Changes size, position and host address by steps.  Marks a page of the old slot before the swap, and a page
        of the new slot after it.  Without `keep` an exception then ends the update."""
        self.tally["begin_update"] += 1
        old, trial = self.model.id_to_memslot(slot, as_id), copy.deepcopy(self.model)
        in_old = old.base_gfn + marks[0] % old.npages
        in_new = values["base_gfn"] + marks[1] % values["npages"]
        trial.mark_page_dirty(in_old, as_id)
        if answer_of(lambda: trial.resize(slot, as_id, **values)) is not None:
            return
        trial.mark_page_dirty(in_new, as_id)
        before = self.vm.generation(as_id)
        try:
            with self.vm.begin_update(as_id) as update:
                handle = update.find(slot)
                new = update.copy(handle, **values)
                self.vm.mark_page_dirty(in_old, as_id)
                update.replace(handle, new)
                update.swap()
                self.vm.mark_page_dirty(in_new, as_id)
                if not keep:
                    raise RefusalError
                update.replace(handle, new)
        except RefusalError:
            self.model.mark_page_dirty(in_old, as_id)
            hva = values["userspace_addr"] + (in_new - values["base_gfn"]) * PAGE
            page = (hva - old.userspace_addr) // PAGE
            if 0 <= page < old.npages:
                self.model.mark_page_dirty(old.base_gfn + page, as_id)
            self.model._generation[as_id] += self.vm.generation(as_id) - before
            return
        self.model = trial

    def ends_half_done(self, slot: int, as_id: int) -> None:
        """An update that ends with a slot in only one of the sets raises and rolls back."""
        self.tally["begin_update"] += 1
        if self.model.id_to_memslot(slot, as_id) is None:
            return
        left = None
        try:
            with self.vm.begin_update(as_id) as update:
                update.replace(update.find(slot, active=False), None)
        except UpdateError as error:
            left = error.rule
        assert left == "SETS_DIFFER"

    # ---- the whole state -------------------------------------------------------------------------

    def agree(self) -> None:
        """Compares every slot, the totals and the generations, and checks every invariant of the engine."""
        vm, model = self.vm, self.model
        vm.check()
        assert len(vm) == len(model)
        assert vm.nr_memslot_pages == model.nr_memslot_pages
        for as_id in range(model.address_spaces):
            assert vm.generation(as_id) == model.generation(as_id)
            assert plain(vm.memslots(as_id)) == plain(model.memslots(as_id))

    def logs_agree(self) -> None:
        """Compares every dirty log; reading clears the logs that KVM would clear."""
        for as_id in range(self.model.address_spaces):
            for slot in self.model.memslots(as_id):
                self.call("get_dirty_log", slot.id, as_id=as_id)


def steps_of(update: Update, slot: int, region: dict[str, int]) -> list[Callable[[], Any]]:
    """KVM's steps of a change as a list of calls; a step stores its handles in `made` for later steps."""
    old, made = update.find(slot), {}
    same = update.find(slot, active=False)

    def draft() -> SlotHandle:
        values = {
            "base_gfn": region["guest_phys_addr"] // PAGE,
            "npages": region["memory_size"] // PAGE,
            "userspace_addr": region["userspace_addr"],
            "flags": region["flags"],
        }
        return update.copy(old, **values) if old else update.copy(None, id=slot, **values)

    def make(name: str, call: Callable[[], SlotHandle]) -> Callable[[], Any]:
        return lambda: made.__setitem__(name, call())

    if not region["memory_size"]:
        return [
            make("inv", lambda: update.invalidate(old)),
            lambda: update.replace(same, None),
            lambda: update.activate(made["inv"], None),
        ]
    moves = old is not None and old.memslot.gpa != region["guest_phys_addr"]
    if old is not None and not moves and int(old.memslot.flags) == region["flags"]:
        return []
    first = [make("inv", lambda: update.invalidate(old))] if moves else []
    return [
        *first,
        make("new", draft),
        lambda: update.replace(old, made["new"]),
        lambda: update.activate(made["inv"] if moves else old, made["new"]),
    ]


# ---- seeded random calls --------------------------------------------------------------------------


class Burst:
    """Draws calls for a Pair from a seeded generator."""

    WEIGHTS = {  # noqa: RUF012 - a constant
        "create": 14,
        "delete": 6,
        "move": 6,
        "flags": 5,
        "noop": 2,
        "overlap": 3,
        "invalid": 8,
        "load": 3,
        "mark": 8,
        "mark_many": 2,
        "get_log": 5,
        "get_log_null": 1,
        "clear_log": 5,
        "harvest": 5,
        "merge_log": 3,
        "protect": 1,
        "scalar": 20,
        "many": 8,
        "ranges": 8,
        "everything": 3,
        "vcpu": 6,
        "refused": 3,
        "steps": 5,
        "resize": 3,
    }

    def __init__(
        self, pair: Pair, rng: Random, ids: int = 10, span: int = 400, pages: int = 150
    ) -> None:
        self.pair, self.rng = pair, rng
        self.span, self.pages_max = span, pages
        last = pair.model.user_mem_slots - 1
        self.ids = [*range(min(ids, last)), last]
        self.kinds = [
            getattr(self, kind) for kind, weight in self.WEIGHTS.items() for _ in range(weight)
        ]

    def play(self, count: int, check_every: int = 1) -> None:
        """Makes `count` calls; compares everything after every `check_every` of them."""
        for i in range(count):
            self.rng.choice(self.kinds)()
            if i % check_every == 0:
                self.pair.agree()
        self.pair.agree()

    # ---- draws ----

    def space(self) -> int:
        return self.rng.randrange(self.pair.model.address_spaces)

    def id(self) -> int:
        return self.rng.choice(self.ids)

    def pages(self) -> int:
        return self.rng.choice((1, 1, 2, 63, 64, 65, self.rng.randint(1, self.pages_max)))

    def hva(self) -> int:
        return self.rng.randrange(64) * 16 * PAGE

    def gfn(self) -> int:
        """Mostly a gfn at or next to an edge of a slot; sometimes any gfn."""
        slots = self.pair.model.memslots(self.space())
        if slots and self.rng.random() < 0.7:
            slot = self.rng.choice(slots)
            return max(
                0, self.rng.choice((slot.base_gfn, slot.end_gfn - 1)) + self.rng.randint(-1, 1)
            )
        return self.rng.choice((self.rng.randrange(self.span), U64 - 1, 2**52, 2**40, 0))

    def live(self) -> Any:
        slots = self.pair.model.memslots(self.space())
        return self.rng.choice(slots) if slots else None

    def region(self) -> tuple[int, dict[str, int]]:
        """A new slot; the engine may refuse it."""
        rng = self.rng
        return self.id(), {
            "guest_phys_addr": rng.randrange(self.span) * PAGE,
            "memory_size": self.pages() * PAGE,
            "userspace_addr": self.hva(),
            "flags": rng.choice((0, 0, LOG, LOG, LOG, READONLY, LOG | READONLY)),
            "as_id": self.space(),
        }

    @staticmethod
    def region_of(slot: Any) -> tuple[int, dict[str, int]]:
        return slot.id, {
            "guest_phys_addr": slot.gpa,
            "memory_size": slot.size,
            "userspace_addr": slot.userspace_addr,
            "flags": slot.flags,
            "as_id": slot.as_id,
        }

    def change(self) -> tuple[int, dict[str, int]]:
        """A change that the engine is likely to accept."""
        slot, kind = self.live(), self.rng.choice(("create", "delete", "move", "flags"))
        if slot is None or kind == "create":
            return self.region()
        id, region = self.region_of(slot)
        if kind == "delete":
            region["memory_size"] = 0
        elif kind == "move":
            region["guest_phys_addr"] = self.rng.randrange(self.span) * PAGE
            region["flags"] ^= self.rng.choice((0, 0, LOG))
        else:
            region["flags"] ^= LOG
        return id, region

    # ---- changes ----

    def set(self, id: int, region: dict[str, int]) -> None:
        self.pair.call(SET, id, **region)

    def create(self) -> None:
        self.set(*self.region())

    def delete(self) -> None:
        slot = self.live()
        id, region = self.region() if slot is None else self.region_of(slot)
        region["memory_size"] = 0
        self.set(id, region)

    def changed(self, **changes: int) -> None:
        """A live slot with some values changed."""
        slot = self.live()
        if slot is None:
            return self.create()
        id, region = self.region_of(slot)
        self.set(id, region | changes)

    def move(self) -> None:
        self.changed(guest_phys_addr=self.rng.randrange(self.span) * PAGE)

    def flags(self) -> None:
        self.changed(flags=self.rng.choice((0, LOG, READONLY, LOG | READONLY)))

    def noop(self) -> None:
        self.changed()

    def overlap(self) -> None:
        slot = self.live()
        id, region = self.region()
        if slot is not None:
            at = self.rng.choice((slot.base_gfn, slot.end_gfn - 1, slot.base_gfn - 1, slot.end_gfn))
            region["guest_phys_addr"] = max(0, at) * PAGE
        self.set(id, region)

    def invalid(self) -> None:
        """A valid call with one value replaced by an invalid one."""
        rng = self.rng
        slot = self.live()
        id, region = self.region() if slot is None or rng.random() < 0.5 else self.region_of(slot)
        name, bad = rng.choice(
            (
                ("guest_phys_addr", (1, U64 - PAGE, U64 - 1, 1 << 52, (1 << 52) - PAGE, U64, -1)),
                ("memory_size", (1, PAGE + 1, 1 << 43, U64 - PAGE, 2**31 * PAGE, PAGE, U64, -PAGE)),
                ("userspace_addr", (1, 2**47, 2**47 - PAGE, U64 - PAGE, U64 - 1, PAGE, -1)),
                ("flags", (4, 5, 6, 8, 1 << 16, 1 << 17, 2**32 - 1, 2**32, -1)),
                ("as_id", (self.pair.model.address_spaces, 63, 2**16, 2**32 - 1, 2**32, -1)),
                ("guest_memfd_offset", (1, PAGE, U64 - PAGE)),
                ("id", (self.pair.model.user_mem_slots, 2**31, 2**32 - 1, 2**32, -1)),
            )
        )
        value = rng.choice(bad)
        if name == "guest_memfd_offset":
            region["flags"] = GUEST_MEMFD
        if name == "id":
            id = value
        else:
            region[name] = value
        self.set(id, region)

    def load(self) -> None:
        as_id, slots = self.space(), []
        for _ in range(self.rng.randrange(5)):
            id, region = self.region()
            base = region["guest_phys_addr"] // PAGE
            npages = region["memory_size"] // PAGE // self.rng.choice((1, 1, 1, 200))
            flags = self.rng.choice((region["flags"],) * 6 + (8, GUEST_MEMFD))
            slots.append(
                (
                    id,
                    self.rng.choice((base,) * 12 + (2**52, 2**40)),
                    npages,
                    region["userspace_addr"],
                    flags,
                )
            )
        self.pair.load(slots, as_id)

    def refused(self) -> None:
        id, region = self.change()
        self.pair.refused_by_listener(SET, id, **region)

    def steps(self) -> None:
        """Only the tree supports begin_update(): it has two sets."""
        if self.pair.vm.backend != "tree":
            return self.create()
        id, region = self.change()
        if self.rng.random() < 0.2:
            return self.pair.ends_half_done(id, region["as_id"])
        stop = self.rng.choice((None, None, 0, 1, 2, 3, 4))
        self.pair.by_steps(id, region.pop("as_id"), stop, **region)

    def resize(self) -> None:
        """Mostly keeps some of the host pages; sometimes uses other host memory."""
        slot, rng = self.live(), self.rng
        if slot is None or self.pair.vm.backend != "tree":
            return self.create()
        hva = slot.userspace_addr + rng.randint(-70, 70) * PAGE
        self.pair.resize(
            slot.id,
            slot.as_id,
            rng.random() < 0.6,
            (rng.randrange(200), rng.randrange(200)),
            base_gfn=rng.choice((slot.base_gfn, rng.randrange(self.span))),
            npages=self.pages(),
            userspace_addr=rng.choice((slot.userspace_addr, max(0, hva), self.hva())),
        )

    # ---- dirty log ----

    def mark(self) -> None:
        self.pair.call("mark_page_dirty", self.gfn(), self.space())

    def mark_many(self) -> None:
        self.pair.call("mark_page_dirty_many", self.numbers(1), self.space())

    def log_id(self) -> int:
        return self.rng.choice((*self.ids * 3, self.pair.model.user_mem_slots, 2**32 - 1))

    def get_log(self) -> None:
        self.pair.call("get_dirty_log", self.log_id(), as_id=self.space())

    def get_log_null(self) -> None:
        self.pair.call("_get_dirty_log_null", self.log_id(), as_id=self.space())

    def harvest(self) -> None:
        rng = self.rng
        start = rng.choice((0, 0, 0, self.gfn()))
        room = rng.choice((None, None, 0, 1, 2, 5, 100))
        self.pair.harvest(self.space(), rng.random() < 0.7, start, room)

    def merge_log(self) -> None:
        rng, slot = self.rng, self.live()
        id, npages = (self.log_id(), 1) if slot is None else (slot.id, slot.npages)
        words = (npages + 63) // 64 + rng.choice((0, 0, 0, 0, 1))
        bits = [rng.choice((0, 0, rng.getrandbits(64), U64 - 1)) for _ in range(words)]
        as_id = self.space() if slot is None else slot.as_id
        self.pair.call("merge_dirty_log", id, np.array(bits, np.uint64), as_id=as_id)

    def clear_log(self) -> None:
        rng, slot = self.rng, self.live()
        npages = 1 if slot is None else slot.npages
        first = rng.choice((0, 0, 64, 128, 1, npages, npages // 64 * 64))
        num = rng.choice((npages - first, npages - first, 64, 1, 0, npages))
        num = max(0, num)
        words = (num + 63) // 64 + rng.choice((0, 0, 0, 0, 1))
        bitmap = np.array([rng.getrandbits(64) for _ in range(words)], np.uint64)
        as_id = self.space() if slot is None else slot.as_id
        id = self.log_id() if slot is None or rng.random() < 0.1 else slot.id
        given = None if rng.random() < 0.1 else bitmap
        self.pair.call("clear_dirty_log", id, first, num, given, as_id=as_id)

    def protect(self) -> None:
        self.pair.protect(self.rng.choice((0, 1, 3, 3, 2, 4, U64 - 1)))

    # ---- lookups ----

    def scalar(self) -> None:
        rng, as_id = self.rng, self.space()
        method = rng.choice(
            (
                "gfn_to_memslot",
                "id_to_memslot",
                "gfn_to_hva",
                "gpa_to_hva",
                "gfn_to_hva_prot",
                "is_visible_gfn",
            )
        )
        if method == "id_to_memslot":
            self.pair.call(method, self.id(), as_id)
        elif method == "gpa_to_hva":
            self.pair.call(method, self.gfn() % 2**52 * PAGE + rng.randrange(PAGE), as_id)
        else:
            self.pair.call(method, self.gfn(), as_id)

    def shape(self) -> tuple[int, ...]:
        return self.rng.choice(((), (0,), (1,), (7,), (3, 4), (2, 3, 2), (0, 3), (70,), (1, 1)))

    def laid_out(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array of that shape with a random numpy layout."""
        layout = self.rng.choice(("C", "F", "step", "reversed", "inner"))
        if layout in ("C", "F") or not shape:
            return np.zeros(shape, dtype, order="F" if layout == "F" else "C")
        if layout == "inner":
            return np.zeros((*shape, 3), dtype)[..., 1]
        wide = np.zeros((shape[0] * 2, *shape[1:]), dtype)[::2]
        return wide[::-1] if layout == "reversed" else wide

    def numbers(self, unit: int) -> np.ndarray:
        """gfns (unit 1) or gpas (unit PAGE), uint64 or int64."""
        signed = self.rng.random() < 0.3
        array = self.laid_out(self.shape(), np.int64 if signed else np.uint64)
        for index in np.ndindex(array.shape):
            value = (
                self.gfn() if unit == 1 else self.gfn() % 2**52 * unit + self.rng.randrange(unit)
            )
            array[index] = value % 2**63 if signed else value
        return array

    def many(self) -> None:
        rng = self.rng
        method = rng.choice(("gfn_to_hva_many", "gpa_to_hva_many", "gfn_to_slot_id_many"))
        numbers = self.numbers(PAGE if method == "gpa_to_hva_many" else 1)
        is_id = method == "gfn_to_slot_id_many"
        out = (
            self.laid_out(numbers.shape, np.int32 if is_id else np.uint64)
            if rng.random() < 0.5
            else None
        )
        if out is not None and not is_id and rng.random() < 0.3 and numbers.dtype == np.uint64:
            out = numbers  # in place
        extra = {} if is_id else {"write": rng.random() < 0.5}
        self.pair.many(method, numbers, out, as_id=self.space(), **extra)

    def ranges(self) -> None:
        rng, as_id = self.rng, self.space()
        if rng.random() < 0.4:
            start, length = self.gfn(), rng.choice((0, 1, 5, 100, 2**40))
            return self.pair.call(
                "memslots_in_gfn_range", start, min(start + length, U64 - 1), as_id
            )
        hva = max(0, self.hva() + rng.choice((-1, 0, 1, 5 * PAGE)))
        if rng.random() < 0.5:
            return self.pair.call("hva_to_gfns", hva)
        self.pair.call(
            "memslots_in_hva_range", hva, max(0, hva + rng.choice((-1, 0, PAGE, 2**20))), as_id
        )

    def everything(self) -> None:
        as_id = self.space()
        self.pair.array(as_id)
        gfns = np.array([self.gfn() for _ in range(9)], np.uint64)
        self.pair.snapshot(as_id, gfns, self.rng.random() < 0.5)

    def vcpu(self) -> None:
        self.pair.vcpu_looks(self.rng.randrange(2), self.space(), self.gfn())
