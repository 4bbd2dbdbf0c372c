# SPDX-License-Identifier: MIT
"""The cases of the kernel's memslot_perf_test, without a guest.

These cases have the test's operations on memslots: creates, moves, and lookups page by page.  A guest's fault is a
lookup by gfn.  An unmap by the host is a lookup by host address, as an MMU notifier does it.  They leave out the
guest, its page tables and faults, madvise(), TLB flushes, and the two threads that wait for each other.  Lookups and
unmaps run at the same time in the test, and one after the other here.  Sizes, places and numbers of operations are
those of the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..constants import PAGE_SHIFT, PAGE_SIZE
from . import layouts
from .case import Case, Run
from .changes import misplaced, refused
from .costs import RUN, affordable, spread
from .filling import Filling, created
from .layouts import Layout, Numbers
from .lookups import engine_with, time_loop
from .sample import Sample, Times, difference, digest, first, per_operation, typical
from .subjects import Engine, Kernel, alternating, regions

MIB = 1 << 20 >> PAGE_SHIFT  # pages
CHUNK = 2 * MIB
GUEST_PAGES = 50  # the pages that the guest writes in the move tests


class KernelTest(Case):
    """A test with memory of a fixed size in n - 1 slots.  Its first page is for messages of host and guest."""

    total_pages: ClassVar[int]

    def __init__(self, n_slots: int, seed: int) -> None:
        super().__init__(min(n_slots, self.total_pages + 1), seed)

    @cached_property
    def slots(self) -> Layout:
        """The slots in ascending order of gfn.  The first one holds code."""
        rows = layouts.selftest(self.n_slots or 2, self.seed, self.total_pages)
        return layouts.sorted_by(rows, "base_gfn")

    @property
    def key(self) -> str:
        return f"selftest {self.total_pages}"

    def engine(self, run: Run) -> Engine:
        return engine_with(run, self.key, self.slots)

    @cached_property
    def halves(self) -> tuple[Numbers, Numbers]:
        """The gfns of the two halves of the test area."""
        area = np.arange(1, self.total_pages, dtype=np.uint64) + np.uint64(layouts.TEST_GFN)
        return area[: len(area) // 2], area[len(area) // 2 :]

    def chunks(self, gfns: Numbers, npages: int) -> tuple[Numbers, Numbers]:
        """Return the host ranges [start, last] of chunks of `npages` ascending gfns.

        A chunk that spans several slots has one range for each slot.
        """
        owner = np.searchsorted(self.slots["base_gfn"], gfns, side="right") - 1
        chunk = (gfns - gfns[0]) // np.uint64(npages)
        begins = np.flatnonzero(np.r_[True, (np.diff(owner) != 0) | (np.diff(chunk) != 0)])
        sizes = np.diff(np.r_[begins, len(gfns)]).astype(np.uint64)
        starts = layouts.expected_hvas(self.slots, gfns[begins])
        return starts, starts + sizes * np.uint64(PAGE_SIZE) - np.uint64(1)


class Timed(NamedTuple):
    """The measured lookups of one kind, spread evenly over those of a whole iteration."""

    value: float  # ns per operation
    singles: Times
    ops: int
    answers: Numbers
    wrong: str | None


def time_ranges(case: KernelTest, run: Run, ranges: tuple[Numbers, Numbers]) -> Timed:
    """Time searches for the slots that have a byte in host ranges."""
    starts, lasts = ranges
    count = affordable("hva", run.backend, len(case.slots), len(starts), run.budget.seconds)
    chosen = spread(len(starts), count)
    starts, lasts = starts[chosen], lasts[chosen]
    hvas = case.engine(run).hvas
    hvas(starts, lasts, RUN)  # fills the caches, which still hold data of the backend before
    ns, answers = hvas(starts, lasts, RUN)
    few = slice(0, run.budget.latencies)
    single_ns, more = hvas(starts[few], lasts[few], 1)
    expected = layouts.expected_counts(case.slots, starts, lasts)
    wrong = first(
        [difference(answers, expected, "ranges"), difference(more, expected[few], "ranges")]
    )
    value = typical(per_operation(ns, len(starts), RUN))
    return Timed(value, single_ns.astype(float), len(starts) + len(more), answers, wrong)


def time_pages(case: KernelTest, run: Run, gfns: Numbers, by_vcpu: bool) -> Timed:
    """Time lookups of pages that the guest (by_vcpu) or the host accesses."""
    count = affordable("gfn", run.backend, len(case.slots), len(gfns), run.budget.seconds)
    gfns = gfns[spread(len(gfns), count)]
    engine = case.engine(run)
    latencies = min(run.budget.latencies, len(gfns))
    loop = engine.vcpu_gfns if by_vcpu else engine.gfns
    value, singles, answers = time_loop(loop, gfns, latencies)
    looked_up = np.concatenate([gfns, gfns[:latencies]])
    wrong = difference(answers, layouts.expected_hvas(case.slots, looked_up), "pages")
    return Timed(value, singles, len(looked_up), answers, wrong)


def combined(
    name: str, value: float, timed: list[Timed], latencies: list[Timed], iteration_ops: int
) -> Sample:
    """Return one sample of several kinds of lookups.  Its percentiles are those of `latencies`."""
    singles = np.concatenate([t.singles for t in latencies])
    ops, answers = sum(t.ops for t in timed), digest(*(t.answers for t in timed))
    wrong = first(t.wrong for t in timed)
    return Sample(name, value, singles, 1, ops, answers, wrong, iteration_ops=iteration_ops)


class Map(KernelTest):
    """The guest writes one half while the host unmaps the other half slot by slot; then they swap halves.

    One operation is a page, with its share of the unmaps.  At most 8,194 slots, as in the test.
    """

    names = ("map",)
    total_pages = 32 * MIB + 1

    def run(self, run: Run) -> Sequence[Sample]:
        one, other = self.halves
        written = [time_pages(self, run, half, True) for half in (one, other)]
        ranges = [self.chunks(half, self.total_pages) for half in (other, one)]
        unmapped = [time_ranges(self, run, r) for r in ranges]
        pages, calls = len(one) + len(other), sum(len(starts) for starts, _ in ranges)
        value = np.mean([t.value for t in written]) + (
            np.mean([t.value for t in unmapped]) * calls / pages
        )
        return [combined(self.names[0], float(value), [*written, *unmapped], written, pages)]


class Unmap(KernelTest):
    """The host unmaps both halves page by page.  One operation is a page."""

    names = ("unmap",)
    total_pages = 128 * MIB + 1
    unit = 1  # pages

    def run(self, run: Run) -> Sequence[Sample]:
        ranges = [self.chunks(half, self.unit) for half in self.halves]
        starts, lasts = (np.concatenate(part) for part in zip(*ranges, strict=True))
        t = time_ranges(self, run, (starts, lasts))
        name, made, n = self.names[0], digest(t.answers), len(starts)
        return [Sample(name, t.value, t.singles, 1, t.ops, made, t.wrong, iteration_ops=n)]


class UnmapChunked(Unmap):
    """The host unmaps both halves in chunks of 2 MiB.  One operation is the part of a chunk in one slot."""

    names = ("unmap chunked",)
    unit = CHUNK


class MoveArea(KernelTest):
    """The host moves the last slot away and back while the guest writes 50 pages near it.  One operation is a move.

    Between two moves the vCPU looks up its pages.  These lookups are checked, but not timed.
    """

    total_pages = 512 * MIB + 1
    with_kvm: ClassVar[bool] = True

    def guest_pages(self) -> Numbers:
        raise NotImplementedError

    def run(self, run: Run) -> Sequence[Sample]:
        subject = run.subjects.get(run.backend, self.key, lambda: self.slots)
        wanted = run.budget.changes
        count = affordable("change", run.backend, len(self.slots), wanted, run.budget.seconds) // 2
        if isinstance(subject, Engine):
            return [self.sample(*self.move_next_to_guest(subject, count))]
        return [self.sample(*self.move_alone(subject, count))]

    def steps(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the move away and the move back."""
        last = self.slots[-1:]
        away = (layouts.TEST_GFN + 512 * MIB + 1) << PAGE_SHIFT
        return regions(last, guest_phys_addr=away), regions(last)

    def move_alone(
        self, kernel: Kernel, pairs: int
    ) -> tuple[NDArray[Any], NDArray[Any], str | None]:
        away, back = self.steps()
        ns, results = kernel.changes(alternating(np.repeat(away, pairs), np.repeat(back, pairs)))
        return ns, results, None

    def move_next_to_guest(
        self, engine: Engine, pairs: int
    ) -> tuple[NDArray[Any], NDArray[Any], str | None]:
        pages = self.guest_pages()
        away_slots = self.slots.copy()
        away_slots["base_gfn"][-1] = layouts.TEST_GFN + 512 * MIB + 1
        expected = [layouts.expected_hvas(slots, pages) for slots in (away_slots, self.slots)]
        states = list(zip(self.steps(), expected, strict=True))
        done = [self.one_move(engine, *state, pages) for _ in range(pairs) for state in states]
        ns, results, wrongs = zip(*done, strict=True)
        wrong = first([*wrongs, misplaced(engine, self.slots)])
        return np.concatenate(ns), np.concatenate(results), wrong

    def one_move(
        self, engine: Engine, step: NDArray[Any], expected: Numbers, pages: Numbers
    ) -> tuple[NDArray[Any], NDArray[Any], str | None]:
        ns, results = engine.changes(step)
        answers = engine.vcpu_gfns(pages, len(pages))[1]
        return ns, results, difference(answers, expected, "the guest's pages")

    def sample(self, ns: NDArray[Any], results: NDArray[Any], wrong: str | None) -> Sample:
        times = ns.astype(np.float64)
        name, wrong = self.names[0], refused(results) or wrong
        return Sample(
            name, typical(times), times, 1, len(times), digest(results), wrong, iteration_ops=2
        )


class MoveActive(MoveArea):
    """25 of the guest's pages are below the moved slot and 25 in it.  The latter are unmapped while it is away."""

    names = ("move active area",)

    def guest_pages(self) -> Numbers:
        first_moved = int(self.slots[-1]["base_gfn"])
        inside = min(GUEST_PAGES // 2, int(self.slots[-1]["npages"]))
        return np.arange(first_moved - GUEST_PAGES // 2, first_moved + inside, dtype=np.uint64)


class MoveInactive(MoveArea):
    """All 50 pages of the guest are below the moved slot."""

    names = ("move inactive area",)

    def guest_pages(self) -> Numbers:
        first_moved = int(self.slots[-1]["base_gfn"])
        return np.arange(first_moved - GUEST_PAGES, first_moved, dtype=np.uint64)


class ReadWrite(KernelTest):
    """Host and guest write every page, then each reads the data of the other.  One operation is one access."""

    names = ("RW",)
    total_pages = 512 * MIB + 1

    def run(self, run: Run) -> Sequence[Sample]:
        pages = np.concatenate(self.halves)
        timed = [time_pages(self, run, pages, by_vcpu) for by_vcpu in (False, True)]
        value = float(np.mean([t.value for t in timed]))
        return [combined(self.names[0], value, timed, timed, 4 * len(pages))]


class SlotSetup(Filling, KernelTest):
    """Create all slots one by one in a new VM.  One operation is a slot."""

    names = ("slot setup",)
    total_pages = 512 * MIB + 1
    with_kvm: ClassVar[bool] = True

    def run(self, run: Run) -> Sequence[Sample]:
        ns, results, wrong = created(run, self.slots)
        times, n = ns.astype(np.float64), len(ns)
        value, name = float(times.sum()) / n, self.names[0]
        return [Sample(name, value, times, 1, n, digest(results), wrong, iteration_ops=n)]


KINDS = (Map, Unmap, UnmapChunked, MoveActive, MoveInactive, ReadWrite, SlotSetup)


def all_tests(n_slots: int, seed: int) -> list[Case]:
    return [kind(n_slots, seed) for kind in KINDS]
