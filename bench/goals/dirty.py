# SPDX-License-Identifier: MIT
"""P12: the dirty pages of 12 TiB as ranges, in milliseconds and compared with one plain pass over the bitmaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memslots import PAGE_SIZE, VM, MemFlag
from memslots.lab.layouts import Numbers

from .scorecard import Scorecard
from .timing import quartiles, turns
from .work import Settings

SLOTS = 2  # a slot has less than 8 TiB
PAGES, QUICK_PAGES = 6 << 28, 1 << 18  # of each slot
ROUNDS = 5


@dataclass(frozen=True)
class Density:
    """The part of all pages that is dirty, in random runs, and the largest time in milliseconds."""

    what: str
    part: float
    run: int
    most: float | None


DENSITIES = (
    Density("no dirty page", 0, 1, 0.1),
    Density("0.001 % dirty", 0.00001, 1, 3),
    Density("0.1 % dirty", 0.001, 1, 80),
    Density("1 % dirty", 0.01, 1, 350),
    Density("0.001 % dirty, runs of 64", 0.00001, 64, None),
    Density("0.1 % dirty, runs of 64", 0.001, 64, None),
    Density("1 % dirty, runs of 64", 0.01, 64, None),
)


def dirty(card: Scorecard, settings: Settings) -> None:
    pages = QUICK_PAGES if settings.quick else PAGES
    bitmaps = [np.full(pages // 64, 1, np.uint64) for _ in range(SLOTS)]
    with VM() as vm:
        for slot in range(SLOTS):
            vm.set_user_memory_region(
                slot,
                guest_phys_addr=slot * pages * PAGE_SIZE,
                memory_size=pages * PAGE_SIZE,
                userspace_addr=slot * pages * PAGE_SIZE,
                flags=MemFlag.LOG_DIRTY_PAGES,
            )
        for density in DENSITIES:
            one_density(card, vm, density, bitmaps, min(settings.rounds, ROUNDS))


def one_density(
    card: Scorecard, vm: VM, density: Density, bitmaps: list[Numbers], rounds: int
) -> None:
    """`out` is reused: its pages are in memory before the first round."""
    pages = vm.nr_memslot_pages
    firsts = random_firsts(pages, density)
    out = np.ones((len(firsts) + 1, 2), np.uint64)
    found: list[np.ndarray] = []
    times = turns(
        {
            "harvest": lambda: found.append(vm.harvest_dirty(out=out)),
            "pass": lambda: [np.bitwise_or.reduce(words) for words in bitmaps],
        },
        rounds,
        before={"harvest": lambda: mark(vm, firsts, density.run), "pass": lambda: None},
    )
    card.check(same_pages(found[-1], firsts, density.run), f"P12, {density.what}")
    card.check(not len(vm.harvest_dirty(out=out)), f"P12, {density.what}: a page is left")
    low, middle, high = quartiles(times["harvest"])
    at = f"{pages * PAGE_SIZE / 2**40:g} TiB, {density.what}"
    card.value("P12", "harvest_dirty", at, middle / 1e6, "ms", "<=", bound_of(density, pages))
    card.note(f"harvest_dirty, {at}: quartiles {low / 1e6:.3g} to {high / 1e6:.3g} ms")
    what = "harvest_dirty / one pass over the bitmaps"
    card.ratio("P12", what, at, times["harvest"], times["pass"], "<=")


def bound_of(density: Density, pages: int) -> float | None:
    return density.most if pages == SLOTS * PAGES else None


def random_firsts(pages: int, density: Density) -> Numbers:
    """Return the first pages of the runs, ascending, each once.  A run begins at a multiple of its length."""
    runs = int(pages * density.part) // density.run
    firsts = np.random.default_rng(12).integers(0, pages // density.run, runs, dtype=np.uint64)
    return np.unique(firsts) * np.uint64(density.run)


def mark(vm: VM, firsts: Numbers, run: int) -> None:
    for page in range(run):
        vm.mark_page_dirty_many(firsts + np.uint64(page))


def same_pages(ranges: np.ndarray, firsts: Numbers, run: int) -> bool:
    """Whether the ranges are exactly the runs, joined where one follows another."""
    begins = np.ones(len(firsts), bool)
    begins[1:] = firsts[1:] != firsts[:-1] + np.uint64(run)
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, len(firsts))) * run
    return np.array_equal(ranges, np.column_stack((firsts[starts], lengths.astype(np.uint64))))
