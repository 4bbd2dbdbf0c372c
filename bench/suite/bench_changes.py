# SPDX-License-Identifier: MIT
"""Changes of single slots among n, from Python and from C, and filling a VM.  A round of changes restores the slots."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import layouts
from pytest_benchmark.fixture import BenchmarkFixture

from memslots import PAGE_SIZE, VM, MemFlag, RegionOverlapError, _memslots

VICTIMS = 16  # slots that are changed and restored in a round, so 32 changes
REPEATS_IN_C = 8  # of these changes in one loop in C, so that the call from Python costs little
MOST_TO_FILL_ONE_BY_ONE = 4096  # the array is copied for each slot

time_changes: Callable[..., Any] | None = getattr(_memslots, "time_changes", None)

AssertSlots = Callable[[VM, np.ndarray], None]
Row = tuple[int, int, int, int]  # id, gpa, bytes, userspace_addr


@pytest.fixture
def victims(slots: np.ndarray) -> list[Row]:
    rng = np.random.default_rng(layouts.SEED)
    return [row_of(slot) for slot in rng.choice(slots, VICTIMS)]


def row_of(slot: np.void) -> Row:
    gpa, size = int(slot["base_gfn"]) * PAGE_SIZE, int(slot["npages"]) * PAGE_SIZE
    return int(slot["id"]), gpa, size, int(slot["userspace_addr"])


def set_slot(vm: VM, row: Row, flags: int = 0) -> None:
    slot, gpa, size, hva = row
    vm.set_user_memory_region(
        slot, guest_phys_addr=gpa, memory_size=size, userspace_addr=hva, flags=flags
    )


@pytest.mark.benchmark(group="delete and create")
def test_delete_and_create(
    benchmark: BenchmarkFixture,
    vm: VM,
    slots: np.ndarray,
    victims: list[Row],
    assert_slots: AssertSlots,
) -> None:
    def replug() -> int:
        for row in victims:
            vm.set_user_memory_region(row[0], guest_phys_addr=0, memory_size=0)
            set_slot(vm, row)
        return len(vm)

    assert benchmark(replug) == len(slots)
    assert_slots(vm, slots)


def in_c(victims: list[Row]) -> np.ndarray:
    """Return the calls that delete and create each of the slots."""
    rows = np.zeros((len(victims), 2), dtype=_memslots.REGION_DTYPE)
    rows["guest_memfd"] = -1
    for pair, (slot, gpa, size, hva) in zip(rows, victims, strict=True):
        pair["slot"] = slot
        create = pair[1]
        create["guest_phys_addr"], create["memory_size"] = gpa, size
        create["userspace_addr"] = hva
    return np.tile(rows.ravel(), REPEATS_IN_C)


@pytest.mark.skipif(time_changes is None, reason="this version cannot time changes from C")
@pytest.mark.benchmark(group="delete and create, from C")
def test_delete_and_create_from_c(
    benchmark: BenchmarkFixture,
    vm: VM,
    slots: np.ndarray,
    victims: list[Row],
    assert_slots: AssertSlots,
) -> None:
    calls = in_c(victims)

    def replug() -> np.ndarray:
        assert time_changes
        return time_changes(vm, calls, group=len(calls))[1]

    assert not benchmark(replug).any()
    assert_slots(vm, slots)


@pytest.mark.benchmark(group="move away and back")
def test_move(
    benchmark: BenchmarkFixture,
    vm: VM,
    slots: np.ndarray,
    victims: list[Row],
    assert_slots: AssertSlots,
) -> None:
    beyond = int((slots["base_gfn"] + slots["npages"]).max()) * PAGE_SIZE

    def move() -> None:
        for slot, gpa, size, hva in victims:
            set_slot(vm, (slot, beyond, size, hva))
            set_slot(vm, (slot, gpa, size, hva))

    benchmark(move)
    assert_slots(vm, slots)


@pytest.mark.benchmark(group="dirty logging on and off")
def test_log_on_and_off(
    benchmark: BenchmarkFixture,
    vm: VM,
    slots: np.ndarray,
    victims: list[Row],
    assert_slots: AssertSlots,
) -> None:
    def toggle() -> None:
        for row in victims:
            set_slot(vm, row, MemFlag.LOG_DIRTY_PAGES)
            set_slot(vm, row)

    benchmark(toggle)
    assert_slots(vm, slots)


@pytest.mark.benchmark(group="a create that is refused")
def test_refused(
    benchmark: BenchmarkFixture, vm: VM, slots: np.ndarray, victims: list[Row]
) -> None:
    """The range overlaps another slot; the error names it.  The id is free."""

    def try_all() -> list[int]:
        others = []
        for _, gpa, _, hva in victims:
            try:
                set_slot(vm, (len(slots), gpa, PAGE_SIZE, hva))
            except RegionOverlapError as e:
                others.append(e.other.id)
        return others

    assert benchmark(try_all) == [row[0] for row in victims]


@pytest.mark.benchmark(group="load_memslots into a new VM")
def test_load(
    benchmark: BenchmarkFixture, backend: str, slots: np.ndarray, assert_slots: AssertSlots
) -> None:
    def load() -> VM:
        vm = VM(backend=backend)
        vm.load_memslots(slots)
        return vm

    assert_slots(benchmark(load), slots)


@pytest.mark.benchmark(group="create one by one in a new VM")
def test_fill(
    benchmark: BenchmarkFixture, backend: str, slots: np.ndarray, assert_slots: AssertSlots
) -> None:
    if len(slots) > MOST_TO_FILL_ONE_BY_ONE and backend != "tree":
        pytest.skip("takes seconds a round: see memslots scale")
    rows = [row_of(slot) for slot in slots]

    def fill() -> VM:
        vm = VM(backend=backend)
        for row in rows:
            set_slot(vm, row)
        return vm

    assert_slots(benchmark(fill), slots)
