# SPDX-License-Identifier: MIT
"""Dirty logs: marking pages among n slots, harvesting and clearing the log of one slot."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from conftest import LOOKUPS, layouts
from pytest_benchmark.fixture import BenchmarkFixture

from memslots import DIRTY_LOG_MANUAL_PROTECT_ENABLE, PAGE_SIZE, VM, MemFlag

HARVESTS = 20  # rounds; pages are marked dirty again before each


@pytest.mark.benchmark(group="mark_page_dirty_many")
def test_mark_many(
    benchmark: BenchmarkFixture,
    filled_vm: Callable[..., VM],
    backend: str,
    n_slots: int,
    slots: np.ndarray,
) -> None:
    vm = filled_vm(backend, n_slots, int(MemFlag.LOG_DIRTY_PAGES))
    gfns = layouts.random(slots, LOOKUPS)
    benchmark(vm.mark_page_dirty_many, gfns)
    assert harvest(vm, slots, gfns) == set(gfns.tolist())


def harvest(vm: VM, slots: np.ndarray, gfns: np.ndarray) -> set[int]:
    """Return the dirty gfns of every slot that contains one of `gfns`."""
    by_gfn = np.sort(slots, order="base_gfn")
    touched = np.unique(np.searchsorted(by_gfn["base_gfn"], gfns, side="right") - 1)
    return {
        int(slot["base_gfn"]) + int(page)
        for slot in by_gfn[touched]
        for page in pages_of(vm.get_dirty_log(int(slot["id"])))
    }


def pages_of(words: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))


@pytest.fixture(params=[1 << 12, 1 << 18, 1 << 22], ids=["16-MiB", "1-GiB", "16-GiB"])
def npages(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def logged(backend: str, npages: int) -> Iterator[VM]:
    """A VM with one slot under dirty logging."""
    with VM(backend=backend) as vm:
        vm.set_user_memory_region(
            0,
            guest_phys_addr=0,
            memory_size=npages * PAGE_SIZE,
            userspace_addr=layouts.HOST_BASE,
            flags=MemFlag.LOG_DIRTY_PAGES,
        )
        yield vm


@pytest.fixture
def dirty(npages: int) -> np.ndarray:
    """Every hundredth page, shuffled."""
    return np.random.default_rng(layouts.SEED).permutation(np.arange(0, npages, 100, np.uint64))


@pytest.mark.benchmark(group="get_dirty_log, one page in 100 dirty")
def test_get_dirty_log(benchmark: BenchmarkFixture, logged: VM, dirty: np.ndarray) -> None:
    def setup() -> None:
        logged.mark_page_dirty_many(dirty)

    words = benchmark.pedantic(logged.get_dirty_log, args=(0,), setup=setup, rounds=HARVESTS)
    np.testing.assert_array_equal(pages_of(words), np.sort(dirty))
    assert not logged.get_dirty_log(0).any()


@pytest.mark.benchmark(group="clear_dirty_log of the whole slot, one page in 100 dirty")
def test_clear_dirty_log(
    benchmark: BenchmarkFixture, logged: VM, dirty: np.ndarray, npages: int
) -> None:
    logged.manual_dirty_log_protect = DIRTY_LOG_MANUAL_PROTECT_ENABLE
    all_pages = np.full(npages // 64, 2**64 - 1, dtype=np.uint64)

    def setup() -> None:
        logged.mark_page_dirty_many(dirty)

    args = (0, 0, npages, all_pages)
    benchmark.pedantic(logged.clear_dirty_log, args=args, setup=setup, rounds=HARVESTS)
    assert not logged.get_dirty_log(0).any()
    logged.mark_page_dirty_many(dirty)
    np.testing.assert_array_equal(pages_of(logged.get_dirty_log(0)), np.sort(dirty))
