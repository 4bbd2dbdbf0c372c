# SPDX-License-Identifier: MIT
"""Readers and writers in threads.  Their loops run in C without the GIL.  Each answer is checked.

The writer deletes and creates one slot.  For a frame of that slot a reader gets the address or a hole.  Within one
batch all frames of the slot have an address, or all are holes, because all answers of a batch come from one set.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter_ns
from typing import Any

import numpy as np

from memslots import HVA_ERR_BAD, VM
from memslots._memslots import time_changes, time_lookups
from memslots.lab import layouts
from memslots.lab.layouts import Layout, Numbers
from memslots.lab.subjects import alternating, regions

BATCH = 10_000
SCALAR = 50_000  # lookups in one call of the loop in C: a millisecond or more
#: Changes in one call of the loop in C.  Few enough that a writer next to long read sections stops soon.
CHUNK = 64
SECTION = 0.001  # seconds of one read section of a Sections reader


class Background:
    """A thread that repeats step() until the end of the `with` block, which then raises an exception of the thread.

    A step counts if it began between start_counting() and stop_counting(), while all other threads were running too.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._started = threading.Event()
        self._counted = threading.Event()
        self._counting = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def step(self, counting: bool) -> None:
        raise NotImplementedError

    def start_counting(self) -> None:
        self._counting = True

    def stop_counting(self) -> None:
        """Stop counting, after at least one step has counted."""
        self._counted.wait()
        self._counting = False

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                counting = self._counting
                self.step(counting)
                self._started.set()
                if counting:
                    self._counted.set()
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()
            self._counted.set()

    def __enter__(self) -> Any:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error


class Writer(Background):
    """Deletes and creates a slot without a break, or with a pause in seconds before each pair of changes."""

    def __init__(self, vm: VM, victim: np.void, pause: float = 0) -> None:
        super().__init__()
        row = np.array([victim], victim.dtype)
        pairs = np.repeat(regions(row), CHUNK // 2)
        self.vm, self.pause = vm, pause
        self.rows = alternating(np.repeat(regions(row, memory_size=0), CHUNK // 2), pairs)
        self.times: list[Numbers] = []
        self.refused = 0

    def step(self, counting: bool) -> None:
        if self.pause:
            time.sleep(self.pause)
        ns, results = time_changes(self.vm, self.rows[:2] if self.pause else self.rows)
        self.refused += int(np.count_nonzero(results))
        if counting:
            self.times.append(ns)

    @property
    def latencies(self) -> Numbers:
        """The nanoseconds of every change."""
        return np.concatenate(self.times)


class Reader(Background):
    """Looks up the same gfns again and again; `per_second` is its rate."""

    def __init__(self, vm: VM, slots: Layout, gfns: Numbers, victim: np.void) -> None:
        super().__init__()
        self.vm, self.gfns = vm, gfns
        self.expected = layouts.expected_hvas(slots, gfns)
        self.in_victim = gfns - victim["base_gfn"] < victim["npages"]
        self.at_victim = np.flatnonzero(self.in_victim)
        self.out = np.empty_like(gfns)
        self.ns = self.lookups = self.wrong = 0

    def look_up(self) -> int:
        """Fill self.out; return the nanoseconds."""
        raise NotImplementedError

    def step(self, counting: bool) -> None:
        ns = self.look_up()
        if counting:
            self.ns += ns
            self.lookups += len(self.gfns)
        self.wrong += self.count_wrong()

    def count_wrong(self) -> int:
        """Count wrong answers.  This is cheap if all are right, because it holds the GIL, for which the others wait."""
        other = self.out != self.expected
        if not other.any():
            return 0
        return int(np.count_nonzero(other & ~(self.in_victim & (self.out == HVA_ERR_BAD))))

    @property
    def per_second(self) -> float:
        return self.lookups / self.ns * 1e9


class Scalar(Reader):
    """Single lookups in a loop in C, each with its own read section."""

    def __init__(self, *args: Any, vcpu: bool = False) -> None:
        super().__init__(*args)
        self.vcpu = self.vm.create_vcpu() if vcpu else None

    def look_up(self) -> int:
        n = len(self.gfns)
        ns, self.out = time_lookups(self.vm, "gfn_to_hva", self.gfns, group=n, vcpu=self.vcpu)
        return int(ns[0])


class Batches(Reader):
    def look_up(self) -> int:
        start = perf_counter_ns()
        self.vm.gfn_to_hva_many(self.gfns, out=self.out)
        return perf_counter_ns() - start

    def count_wrong(self) -> int:
        holes = self.out[self.at_victim] == HVA_ERR_BAD
        return super().count_wrong() + int(holes.any() and not holes.all())


class Sections(Reader):
    """Stays in a read section for SECTION seconds, looks up its gfns at the end, and begins again."""

    def look_up(self) -> int:
        start = perf_counter_ns()
        with self.vm.read():
            time.sleep(SECTION)
            self.vm.gfn_to_hva_many(self.gfns, out=self.out)
        return perf_counter_ns() - start


def run_for(seconds: float, threads: Sequence[Background]) -> None:
    """Start all threads, let them count for `seconds`, and stop them."""
    with ExitStack() as stack:
        for thread in threads:
            stack.enter_context(thread)
        for thread in threads:
            thread.start_counting()
        time.sleep(seconds)
        for thread in threads:
            thread.stop_counting()
