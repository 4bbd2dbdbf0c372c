# SPDX-License-Identifier: MIT
"""Lookups and changes at several slot counts; each benchmark checks the answer that it timed."""

from random import Random

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from memslots import HVA_ERR_BAD, VM

PAGE = 4096
SEED = 20211206
HOST = 0x7F00_0000_0000
NPAGES = 16  # of every slot, with a hole of as many pages behind it


def hva_of(gfn: int) -> int:
    return HOST + gfn * PAGE


def add_slot(vm: VM, n: int) -> None:
    gpa = 2 * NPAGES * n * PAGE
    vm.set_user_memory_region(
        n, guest_phys_addr=gpa, memory_size=NPAGES * PAGE, userspace_addr=HOST + gpa
    )


@pytest.fixture(params=[8, 512, 32_000], ids="{}-slots".format)
def n_slots(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def vm(n_slots: int) -> VM:
    vm = VM()
    order = list(range(n_slots))
    Random(SEED).shuffle(order)
    for n in order:
        add_slot(vm, n)
    return vm


@pytest.fixture
def gfns(n_slots: int) -> np.ndarray:
    """Of slots and of holes, half each, in no order."""
    return np.random.default_rng(SEED).integers(0, 2 * NPAGES * n_slots, 10_000, dtype=np.uint64)


def test_lookup_same_slot(benchmark: BenchmarkFixture, vm: VM, n_slots: int) -> None:
    gfn = 2 * NPAGES * (n_slots // 2)
    assert benchmark(vm.gfn_to_hva, gfn) == hva_of(gfn)


def test_lookup_two_slots_in_turn(benchmark: BenchmarkFixture, vm: VM, n_slots: int) -> None:
    first, second = 0, 2 * NPAGES * (n_slots - 1)

    def both() -> tuple[int, int]:
        return vm.gfn_to_hva(first), vm.gfn_to_hva(second)

    assert benchmark(both) == (hva_of(first), hva_of(second))


def test_lookup_many(benchmark: BenchmarkFixture, vm: VM, gfns: np.ndarray) -> None:
    out = np.empty_like(gfns)
    benchmark(vm.gfn_to_hva_many, gfns, out=out)
    holes = gfns % (2 * NPAGES) >= NPAGES
    expected = np.where(holes, np.uint64(HVA_ERR_BAD), np.uint64(HOST) + gfns * np.uint64(PAGE))
    np.testing.assert_array_equal(out, expected)


def test_delete_and_create(benchmark: BenchmarkFixture, vm: VM, n_slots: int) -> None:
    victim = n_slots // 2

    def replug() -> None:
        vm.set_user_memory_region(victim, guest_phys_addr=0, memory_size=0)
        add_slot(vm, victim)

    before = vm.memslots()
    benchmark(replug)
    assert vm.memslots() == before
    vm.check()
