# SPDX-License-Identifier: MIT
"""Layouts, streams and expected answers: their properties, and that the engine gives these answers."""

import numpy as np
import pytest

from memslots import HVA_ERR_BAD, VM, backends
from memslots.constants import MEMSLOT_DTYPE, PAGE_SIZE
from memslots.lab import layouts

NAMES = tuple(layouts.LAYOUTS)
STREAMS = tuple(layouts.STREAMS)
SIZES = (2, 8, 100, 509)


def naive_hva(slots: np.ndarray, gfn: int) -> int:
    for slot in slots:
        base, npages, addr = (int(slot[f]) for f in ("base_gfn", "npages", "userspace_addr"))
        if base <= gfn < base + npages:
            return addr + (gfn - base) * PAGE_SIZE
    return HVA_ERR_BAD


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", SIZES)
def test_layout_is_valid(name: str, n: int) -> None:
    slots = layouts.layout(name, n)
    assert slots.dtype == MEMSLOT_DTYPE
    assert len(slots) == n
    assert sorted(slots["id"]) == list(range(n))
    with VM() as vm:
        vm.load_memslots(slots)
        vm.check()


@pytest.mark.parametrize("name", NAMES)
def test_seed_determines_the_layout(name: str) -> None:
    one, same, other = (layouts.layout(name, 100, seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_not_in_the_order_of_gfns(name: str) -> None:
    assert (np.diff(layouts.layout(name, 100)["base_gfn"].astype(np.int64)) < 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_slots_share_no_host_memory(name: str) -> None:
    slots = layouts.sorted_by(layouts.layout(name, 509), "userspace_addr")
    ends = slots["userspace_addr"] + slots["npages"] * np.uint64(PAGE_SIZE)
    assert (ends[:-1] < slots["userspace_addr"][1:]).all()


def test_a_fifth_of_the_uniform_layout_is_holes() -> None:
    slots = layouts.uniform(5000)
    assert slots["npages"].min() >= 1
    assert slots["npages"].max() <= layouts.MAX_NPAGES
    answers = layouts.expected_hvas(slots, layouts.misses(slots, 20_000))
    assert 0.18 < np.mean(answers == HVA_ERR_BAD) < 0.22


def test_the_selftest_layout_is_that_of_memslot_perf_test() -> None:
    slots = layouts.sorted_by(layouts.selftest(32_764), "id")
    data = slots[1:]
    assert (data["npages"][:-1] == 4).all()
    assert data["npages"][-1] == 25
    assert data["base_gfn"][0] == 0x10000
    assert (np.diff(data["base_gfn"].astype(np.int64)) == 4).all()
    assert data["npages"].sum() == (512 << 20) // PAGE_SIZE + 1


def test_the_adversarial_layout_reaches_from_2_20_to_2_37() -> None:
    slots = layouts.layout("adversarial", 509)
    bases = set(slots["base_gfn"].tolist())
    assert {1 << e for e in layouts.EXPONENTS} <= bases
    assert int(slots["base_gfn"].max()) < 2**37


def test_impossible_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="2 to 5 slots"):
        layouts.selftest(6, total_pages=4)
    with pytest.raises(ValueError, match="2000000"):
        layouts.adversarial(layouts.MAX_ADVERSARIAL + 1)
    with pytest.raises(ValueError, match="uniform, selftest, adversarial"):
        layouts.layout("no such", 8)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", NAMES)
def test_stream_depends_on_the_seed_and_has_expected_answers(name: str, stream: str) -> None:
    slots = layouts.layout(name, 40)
    make = layouts.STREAMS[stream]
    gfns = make(slots, 300, 5)
    assert gfns.dtype == np.uint64
    assert (gfns == make(slots, 300, 5)).all()
    assert (gfns != make(slots, 300, 6)).any()
    answers = layouts.expected_hvas(slots, gfns)
    assert answers.tolist() == [naive_hva(slots, int(gfn)) for gfn in gfns]
    assert stream == "misses" or (answers != HVA_ERR_BAD).all()


def test_hot_stream_stays_in_a_slot_and_sequential_visits_every_page() -> None:
    slots = layouts.uniform(100)
    by_gfn = layouts.sorted_by(slots, "base_gfn")
    owners = np.searchsorted(by_gfn["base_gfn"], layouts.hot(slots, 640), side="right")
    runs = owners.reshape(10, 64)
    assert (runs == runs[:, :1]).all()
    every = int(slots["npages"].sum())
    gfns = layouts.sequential(slots, every)
    assert len(set(gfns.tolist())) == every
    assert (np.diff(gfns.astype(np.int64)) < 0).sum() <= 1


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("name", NAMES)
def test_every_design_gives_the_expected_answers(name: str, backend: str) -> None:
    slots = layouts.layout(name, 100)
    with VM(backend=backend) as vm:
        vm.load_memslots(slots)
        for make in layouts.STREAMS.values():
            gfns = make(slots, 500, 3)
            assert (vm.gfn_to_hva_many(gfns) == layouts.expected_hvas(slots, gfns)).all()


def test_expected_addresses_and_counts() -> None:
    slots = layouts.uniform(20)
    numbers = np.array([0, 19, 20, 7], dtype=np.uint64)
    by_id = {int(s["id"]): int(s["userspace_addr"]) for s in slots}
    wanted = [by_id[0], by_id[19], layouts.NO_ADDRESS, by_id[7]]
    assert layouts.expected_addresses(slots, numbers).tolist() == wanted
    begin = slots["userspace_addr"][0]
    end = begin + slots["npages"][0] * np.uint64(PAGE_SIZE)
    starts = np.array([begin - 1, begin, end - 1, end, 0], dtype=np.uint64)
    lasts = np.array([begin - 1, begin, end - 1, end, 2**63], dtype=np.uint64)
    assert layouts.expected_counts(slots, starts, lasts).tolist() == [0, 1, 1, 0, 20]
