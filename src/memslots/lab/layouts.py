# SPDX-License-Identifier: MIT
"""Seeded slots, streams of lookups on them, and the answers, computed by numpy and not by the engine.

A layout is an array of MEMSLOT_DTYPE, in the order of creation, which is shuffled.  `layout["id"]` holds the ids 0 to
n - 1.  Ids and gfns have no common order, except in "selftest".  The same name, number and seed give the same array on
every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..constants import HVA_ERR_BAD, MEMSLOT_DTYPE, PAGE_SHIFT, PAGE_SIZE

Layout = NDArray[Any]  # the dtype is MEMSLOT_DTYPE
Numbers = NDArray[np.uint64]

SEED = 20211206  # the date of the merge of tree-based memslots into Linux

HOST_BASE = 0x1000_0000_0000
MAX_NPAGES = 512
NO_ADDRESS = 2**64 - 1  # the result of time_lookups() for an id without a slot

#: The places of the test memory and of the code in memslot_perf_test.
TEST_GFN, CODE_GFN, CODE_NPAGES = 0x10000000 >> PAGE_SHIFT, 0, 512
TEST_NPAGES = (512 << 20 >> PAGE_SHIFT) + 1

#: In "adversarial" one cluster begins at each of these powers of two.
EXPONENTS = range(20, 37)
MAX_ADVERSARIAL = 2_000_000  # with more slots a cluster would overlap the next one

HOT_RUN = 64  # lookups in one slot before the stream changes to another slot


# ---- layouts ------------------------------------------------------------------------------------


def uniform(n: int, seed: int = SEED) -> Layout:
    """Slots of 1 to 512 pages.  On average every other slot is followed by a hole; a fifth of all frames are holes."""
    rng = np.random.default_rng(seed)
    npages = rng.integers(1, MAX_NPAGES + 1, n, dtype=np.uint64)
    holes = rng.integers(1, MAX_NPAGES // 2, n, dtype=np.uint64) * (rng.random(n) < 0.5)
    steps = npages + holes.astype(np.uint64)
    return _shuffled(np.cumsum(steps) - steps, npages, rng)


def adversarial(n: int, seed: int = SEED) -> Layout:
    """Small slots in 17 clusters that begin at powers of two up to 2^36: a bad case for an index by high bits."""
    if n > MAX_ADVERSARIAL:
        raise ValueError(f"the adversarial layout has room for {MAX_ADVERSARIAL} slots, not {n}")
    rng = np.random.default_rng(seed)
    npages = rng.integers(1, 4, n, dtype=np.uint64)
    steps = npages + rng.integers(0, 3, n, dtype=np.uint64)
    cluster = np.arange(n) * len(EXPONENTS) // n
    ends = np.cumsum(steps)
    first = np.searchsorted(cluster, np.arange(len(EXPONENTS)))
    offsets = ends - steps
    offsets -= offsets[np.minimum(first, n - 1)][cluster]
    return _shuffled((np.uint64(1) << _starts()[cluster]) + offsets, npages, rng)


def _starts() -> Numbers:
    return np.array(EXPONENTS, dtype=np.uint64)


def selftest(n: int, seed: int = SEED, total_pages: int = TEST_NPAGES) -> Layout:
    """The slots of memslot_perf_test: one for code, then n - 1 that share `total_pages` evenly.

    The last slot gets the remainder too.  Ids rise with gfns, as in the test; only the order of the rows is shuffled.
    """
    if not 2 <= n <= total_pages + 1:
        raise ValueError(f"{total_pages} pages make 2 to {total_pages + 1} slots, not {n}")
    npages = np.full(n - 1, total_pages // (n - 1), dtype=np.uint64)
    npages[-1] += total_pages % (n - 1)
    bases = TEST_GFN + np.concatenate([[0], np.cumsum(npages[:-1])]).astype(np.uint64)
    rng = np.random.default_rng(seed)
    all_bases = np.concatenate([[CODE_GFN], bases]).astype(np.uint64)
    rows = _rows(all_bases, np.concatenate([[CODE_NPAGES], npages]).astype(np.uint64), rng)
    return rng.permutation(rows)


def _shuffled(bases: Numbers, npages: Numbers, rng: np.random.Generator) -> Layout:
    """Rows in ascending order of id, with gfns in random order."""
    rows = _rows(bases, npages, rng)[rng.permutation(len(bases))]
    rows["id"] = np.arange(len(rows))
    return rows


def _rows(bases: Numbers, npages: Numbers, rng: np.random.Generator) -> Layout:
    """Slots in ascending order of gfn.  Their host memory has another order, with a gap of one page between slots."""
    rows = np.zeros(len(bases), dtype=MEMSLOT_DTYPE)
    rows["id"] = np.arange(len(bases))
    rows["base_gfn"], rows["npages"] = bases, npages
    order = rng.permutation(len(bases))
    ends = np.cumsum((npages[order] + np.uint64(1)) * np.uint64(PAGE_SIZE))
    rows["userspace_addr"][order] = HOST_BASE + np.concatenate([[0], ends[:-1]]).astype(np.uint64)
    return rows


def sorted_by(slots: Layout, name: str) -> Layout:
    """Return the rows in ascending order of one field."""
    return slots[np.argsort(slots[name], kind="stable")]


LAYOUTS: dict[str, Callable[[int, int], Layout]] = {
    "uniform": uniform,
    "selftest": selftest,
    "adversarial": adversarial,
}


def layout(name: str, n: int, seed: int = SEED) -> Layout:
    """Return the layout of this name with n slots."""
    if name not in LAYOUTS:
        raise ValueError(f"unknown layout {name!r}; known: {', '.join(LAYOUTS)}")
    return LAYOUTS[name](n, seed)


# ---- streams of gfns ----------------------------------------------------------------------------


def _stream_rng(seed: int) -> np.random.Generator:
    """A generator whose numbers differ from those of the layout with the same seed."""
    return np.random.default_rng((seed, 1))


def hot(slots: Layout, count: int, seed: int = SEED) -> Numbers:
    """64 random frames of one random slot, then 64 of another random slot, and so on."""
    rng = _stream_rng(seed)
    chosen = slots[np.repeat(rng.integers(0, len(slots), count // HOT_RUN + 1), HOT_RUN)[:count]]
    return _frames_in(chosen, rng)


def _frames_in(chosen: Layout, rng: np.random.Generator) -> Numbers:
    """One random frame of each row."""
    offsets = rng.integers(0, chosen["npages"], dtype=np.uint64)
    return np.asarray(chosen["base_gfn"] + offsets, dtype=np.uint64)


def sequential(slots: Layout, count: int, seed: int = SEED) -> Numbers:
    """Every mapped frame in ascending order, from a random start; after the last frame comes the first."""
    by_gfn = sorted_by(slots, "base_gfn")
    ends = np.cumsum(by_gfn["npages"])
    start = int(_stream_rng(seed).integers(0, int(ends[-1])))
    frames = (np.arange(count, dtype=np.uint64) + np.uint64(start)) % ends[-1]
    i = np.searchsorted(ends, frames, side="right")
    return np.asarray(by_gfn["base_gfn"][i] + by_gfn["npages"][i] - (ends[i] - frames))


def random(slots: Layout, count: int, seed: int = SEED) -> Numbers:
    """Independent random frames, each in a random slot."""
    rng = _stream_rng(seed)
    return _frames_in(slots[rng.integers(0, len(slots), count)], rng)


def misses(slots: Layout, count: int, seed: int = SEED) -> Numbers:
    """Independent random frames from the whole span; the share of misses is the share of holes."""
    end = int((slots["base_gfn"] + slots["npages"]).max())
    first = int(slots["base_gfn"].min())
    return _stream_rng(seed).integers(first, end, count, dtype=np.uint64)


STREAMS: dict[str, Callable[[Layout, int, int], Numbers]] = {
    "hot": hot,
    "sequential": sequential,
    "random": random,
    "misses": misses,
}


def ids(slots: Layout, count: int, seed: int = SEED) -> Numbers:
    """Random ids of slots that exist."""
    return _stream_rng(seed).choice(slots["id"], count).astype(np.uint64)


# ---- answers ------------------------------------------------------------------------------------


def expected_hvas(slots: Layout, gfns: Numbers) -> Numbers:
    """Return the right result of gfn_to_hva_many()."""
    by_gfn = sorted_by(slots, "base_gfn")
    i = np.searchsorted(by_gfn["base_gfn"], gfns, side="right") - 1
    row = by_gfn[np.maximum(i, 0)]
    offset = gfns - row["base_gfn"]
    hit = (i >= 0) & (offset < row["npages"])
    hvas = row["userspace_addr"] + (offset << np.uint64(PAGE_SHIFT))
    return np.where(hit, hvas, np.uint64(HVA_ERR_BAD))


def expected_addresses(slots: Layout, numbers: Numbers) -> Numbers:
    """Return the right result of time_lookups() for ids: userspace_addr, or NO_ADDRESS for an id without a slot."""
    by_id = sorted_by(slots, "id")
    i = np.minimum(np.searchsorted(by_id["id"], numbers), len(by_id) - 1)
    known = by_id["id"][i] == numbers
    return np.where(known, by_id["userspace_addr"][i], np.uint64(NO_ADDRESS))


def expected_counts(slots: Layout, starts: Numbers, lasts: Numbers) -> Numbers:
    """Return how many slots have a byte in each [start, last].  Slots must not share host memory."""
    begins = np.sort(slots["userspace_addr"])
    ends = np.sort(slots["userspace_addr"] + (slots["npages"] << np.uint64(PAGE_SHIFT)))
    begun = np.searchsorted(begins, lasts, side="right")
    ended = np.searchsorted(ends, starts, side="right")
    return (begun - ended).astype(np.uint64)
