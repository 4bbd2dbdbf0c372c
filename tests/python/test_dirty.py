# SPDX-License-Identifier: MIT
"""harvest_dirty, merge_dirty_log, get_dirty_log(out=) and Change.dirty.  test_vm.py has the other calls."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from pair import Pair
from scene import put

import memslots
from memslots import (
    VM,
    Change,
    ChangeKind,
    InvalidRegionError,
    Listener,
    MemFlag,
    NoSuchSlotError,
)

LOG = MemFlag.LOG_DIRTY_PAGES
LARGE = 1 << 18  # pages of a log with a summary
BACKENDS = memslots.backends()


@pytest.fixture
def vm() -> Iterator[VM]:
    with VM(address_spaces=2) as vm:
        yield vm


def ranges(rows: np.ndarray) -> list[tuple[int, int]]:
    assert (rows.dtype, rows.ndim, rows.shape[1]) == (np.uint64, 2, 2)
    return [(int(gfn), int(npages)) for gfn, npages in rows]


# ---- harvest_dirty --------------------------------------------------------------------------------


def test_ranges_of_all_slots(vm: VM) -> None:
    """Neighbours are one range, also across slots; a slot without a log has no dirty pages."""
    put(vm, 5, 100, 64, LOG)
    put(vm, 3, 164, LARGE, LOG)
    put(vm, 1, 164 + LARGE, 64)
    put(vm, 2, 1 << 20, 10, LOG)
    put(vm, 2, 100, 64, LOG, as_id=1)
    for gfn in (100, 162, 163, 164, 165, 167, 163 + LARGE, 164 + LARGE, (1 << 20) + 9):
        vm.mark_page_dirty(gfn)
    vm.mark_page_dirty(130, 1)
    want = [(100, 1), (162, 4), (167, 1), (163 + LARGE, 1), ((1 << 20) + 9, 1)]
    assert ranges(vm.harvest_dirty(clear=False)) == want
    assert ranges(vm.harvest_dirty(start_gfn=163, clear=False)) == [(163, 3), *want[2:]]
    assert ranges(vm.harvest_dirty()) == want
    assert ranges(vm.harvest_dirty()) == []
    assert ranges(vm.harvest_dirty(1)) == [(130, 1)]
    vm.check()


def test_manual_protect_does_not_matter(vm: VM) -> None:
    put(vm, 0, 0, 100, LOG)
    vm.manual_dirty_log_protect = 1
    vm.mark_page_dirty(3)
    assert vm.get_dirty_log(0).tolist() == [8, 0]
    assert ranges(vm.harvest_dirty()) == [(3, 1)]
    assert vm.get_dirty_log(0).tolist() == [0, 0]


@pytest.mark.parametrize("npages", [64, LARGE])
def test_full_out_leaves_the_rest_dirty(vm: VM, npages: int) -> None:
    put(vm, 0, 1000, npages, LOG)
    vm.mark_page_dirty_many(np.arange(1000, 1060, 2, dtype=np.uint64))
    out = np.full((8, 2), 7, np.uint64)
    seen = []
    while len(found := vm.harvest_dirty(out=out)):
        assert np.shares_memory(found, out)
        seen += ranges(found)
    assert seen == [(gfn, 1) for gfn in range(1000, 1060, 2)]
    assert len(vm.harvest_dirty(out=np.empty((0, 2), np.uint64))) == 0


def test_many_ranges(vm: VM) -> None:
    """More than the first array has room for."""
    put(vm, 0, 0, 1 << 20, LOG)
    gfns = np.arange(0, 1 << 20, 3, dtype=np.uint64)
    vm.mark_page_dirty_many(gfns)
    for clear in (False, True):
        found = vm.harvest_dirty(clear=clear)
        assert (found[:, 0] == gfns).all()
        assert (found[:, 1] == 1).all()
    assert len(vm.harvest_dirty()) == 0


def test_large_page_numbers() -> None:
    with VM(gpa_bits=64) as vm:
        put(vm, 0, 2**52 - 70, 69, LOG, hva=0)
        vm.mark_page_dirty(2**52 - 2)
        assert ranges(vm.harvest_dirty(start_gfn=2**52)) == []
        assert ranges(vm.harvest_dirty(start_gfn=2**64 - 1)) == []
        assert ranges(vm.harvest_dirty()) == [(2**52 - 2, 1)]


@pytest.mark.parametrize("as_id", [2, 2**32 - 1])
@pytest.mark.parametrize("start", [0, 2**64 - 1])
def test_address_space_out_of_range(vm: VM, as_id: int, start: int) -> None:
    for out in (None, np.empty((4, 2), np.uint64)):
        with pytest.raises(InvalidRegionError, match="address space"):
            vm.harvest_dirty(as_id, out=out, start_gfn=start)


def wrong_outs(shape: tuple[int, ...]) -> dict[str, Any]:
    good = np.zeros(shape, np.uint64)
    frozen = good.copy()
    frozen.flags.writeable = False
    return {
        "a list": good.tolist(),
        "int64": good.astype(np.int64),
        "big endian": good.astype(">u8"),
        "three dimensions": good.reshape(1, *shape, 1)[..., 0]
        if len(shape) == 2
        else good[None, None],
        "no dimensions": np.zeros((), np.uint64),
        "read-only": frozen,
        "strided": np.zeros((2 * shape[0], *shape[1:]), np.uint64)[::2],
        "unaligned": np.zeros(good.nbytes + 1, np.uint8)[1:].view(np.uint64).reshape(shape),
        "masked": np.ma.masked_array(good),
    }


@pytest.mark.parametrize("name", wrong_outs((4, 2)))
def test_wrong_out(vm: VM, name: str) -> None:
    """The message says how to make the array, and the bits stay."""
    put(vm, 0, 0, 130, LOG)
    vm.mark_page_dirty(3)
    way = "out.data" if name == "masked" else "use np.empty"
    with pytest.raises((TypeError, ValueError), match=way):
        vm.harvest_dirty(out=wrong_outs((4, 2))[name])
    with pytest.raises((TypeError, ValueError), match=way):
        vm.get_dirty_log(0, out=wrong_outs((4,))[name])
    assert vm.get_dirty_log(0).tolist() == [8, 0, 0]


def test_out_with_other_columns(vm: VM) -> None:
    for shape in ((4,), (4, 1), (4, 3), (2, 4)):
        with pytest.raises(ValueError, match=r"must have the shape \(n, 2\)"):
            vm.harvest_dirty(out=np.zeros(shape, np.uint64))


# ---- get_dirty_log(out=) --------------------------------------------------------------------------


@pytest.mark.parametrize("npages", [1, 64, 130, LARGE + 1])
def test_log_into_an_array(vm: VM, npages: int) -> None:
    put(vm, 0, 0, npages, LOG)
    words = -(-npages // 64)
    for room in (words, words + 3):
        vm.mark_page_dirty(npages - 1)
        out = np.full(room, 7, np.uint64)
        log = vm.get_dirty_log(0, out=out)
        assert np.shares_memory(log, out)
        assert log.shape == (words,)
        assert log[-1] == 1 << (npages - 1) % 64
        assert not log[:-1].any()
        assert (out[words:] == 7).all()


def test_short_array_leaves_the_log(vm: VM) -> None:
    put(vm, 7, 0, 130, LOG)
    vm.mark_page_dirty(5)
    for room in (0, 2):
        with pytest.raises(
            ValueError, match=rf"out has {room} words, and slot 7 has 3.*np\.empty\(\(3,\)"
        ):
            vm.get_dirty_log(7, out=np.zeros(room, np.uint64))
    assert vm.get_dirty_log(7).tolist() == [32, 0, 0]
    with pytest.raises(NoSuchSlotError):
        vm.get_dirty_log(8, out=np.zeros(3, np.uint64))


# ---- merge_dirty_log ------------------------------------------------------------------------------


def test_merge(vm: VM) -> None:
    """The union of two logs; bits beyond the last page are ignored."""
    put(vm, 0, 0, 70, LOG)
    vm.mark_page_dirty(1)
    kernel = np.array([4, 2**64 - 1], np.uint64)
    vm.merge_dirty_log(0, kernel)
    vm.merge_dirty_log(0, kernel.view(np.int64))
    vm.merge_dirty_log(0, np.repeat(kernel, 2)[::2])
    vm.merge_dirty_log(0, [8, 0])
    assert vm.get_dirty_log(0).tolist() == [2 | 4 | 8, 63]
    vm.check()


@pytest.mark.parametrize("words", [0, 1, 3, 2**20])
def test_merge_of_another_size(vm: VM, words: int) -> None:
    put(vm, 0, 0, 70, LOG)
    with pytest.raises(InvalidRegionError, match="words, not 2"):
        vm.merge_dirty_log(0, np.full(words, 1, np.uint64))
    with pytest.raises(InvalidRegionError, match="words, not 2"):
        vm.merge_dirty_log(0, np.broadcast_to(np.uint64(1), 2**50))
    with pytest.raises(ValueError, match="one dimension"):
        vm.merge_dirty_log(0, np.zeros((1, 2), np.uint64))
    with pytest.raises(NoSuchSlotError):
        vm.merge_dirty_log(1, np.zeros(2, np.uint64))


# ---- Change.dirty ---------------------------------------------------------------------------------


class Bits(Listener):
    """Keeps the change of each commit, and checks that no other hook gets bits."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def prepare(self, change: Change) -> None:
        assert change.dirty is None

    def commit(self, change: Change) -> None:
        self.changes.append(change)

    def last(self) -> Any:
        dirty = self.changes[-1].dirty
        return None if dirty is None else dirty.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_last_bits(backend: str) -> None:
    with VM(backend=backend) as vm:
        vm.add_listener(bits := Bits())
        put(vm, 0, 0, 70, LOG)
        vm.mark_page_dirty(69)
        put(vm, 0, 100, 70, LOG)  # a move keeps the log
        assert bits.last() is None
        vm.mark_page_dirty(100)
        put(vm, 0, 100, 0)
        assert bits.last() == [1, 32]
        put(vm, 0, 0, 70, LOG)
        vm.mark_page_dirty(2)
        put(vm, 0, 0, 70)
        assert bits.last() == [4, 0]
        put(vm, 0, 0, 70, LOG)
        vm.mark_page_dirty(3)
        put(vm, 0, 200, 70)  # a move that switches logging off
        assert bits.last() == [8, 0]
        put(vm, 0, 200, 0)
        assert bits.last() is None
        assert len(bits.changes) == 8


def test_change_stays_a_tuple_of_three(vm: VM) -> None:
    """The bits take no part in comparisons, and a copy has them."""
    vm.add_listener(bits := Bits())
    put(vm, 0, 0, 70, LOG)
    put(vm, 0, 0, 0)
    change = bits.changes[-1]
    kind, old, new = change
    assert (kind, new) == (ChangeKind.DELETE, None)
    assert change == Change(ChangeKind.DELETE, old, None)
    assert hash(change) == hash(Change(kind, old, new))
    for same in (copy.copy(change), copy.deepcopy(change), pickle.loads(pickle.dumps(change))):
        assert same == change
        assert same.dirty is not None
        assert same.dirty.tolist() == [0, 0]
    for same in (change._replace(kind=kind), Change._make(change)):
        assert same == change
        assert same.dirty is None


# ---- compared with the model ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logs_agree_with_the_model(backend: str) -> None:
    """Random marks, harvests, merges, moves and deletes of slots that have a summary."""
    rng, pair = Random(5), Pair(backend, user_mem_slots=8)
    sizes = (LARGE - 1, LARGE, LARGE + 1, 9 * LARGE + 77)  # the last has a second upper word
    for step in range(600):
        id = rng.randrange(3)
        slot = pair.model.id_to_memslot(id)
        kind = rng.randrange(12)
        base = rng.choice((0, 1, 2, 3)) * 100 * LARGE
        if slot is None:
            size = rng.choice(sizes) * memslots.PAGE_SIZE
            pair.call(
                "set_user_memory_region", id, guest_phys_addr=base * memslots.PAGE_SIZE, memory_size=size,
                userspace_addr=id << 40, flags=1,
            )  # fmt: skip
        elif kind < 5:
            run = rng.choice((1, 1, 3, 64, 700))
            first = rng.choice((slot.npages - run, rng.randrange(slot.npages - run)))
            pages = np.arange(first, first + run, dtype=np.uint64) + np.uint64(slot.base_gfn)
            pair.call("mark_page_dirty_many", pages)
        elif kind < 9:
            start = rng.choice((0, 0, slot.base_gfn + rng.randrange(slot.npages)))
            pair.harvest(0, rng.random() < 0.7, start, rng.choice((None, 1, 3, 50)))
        elif kind == 9:
            pair.call("get_dirty_log", id)
        elif kind == 10:
            words = np.zeros(-(-slot.npages // 64), np.uint64)
            words[rng.randrange(len(words))] = rng.getrandbits(64)
            pair.call("merge_dirty_log", id, words)
        else:
            size = rng.choice((0, slot.size, slot.size))
            pair.call(
                "set_user_memory_region", id, guest_phys_addr=base * memslots.PAGE_SIZE, memory_size=size,
                userspace_addr=id << 40, flags=1,
            )  # fmt: skip
        if step % 50 == 0:
            pair.agree()
    pair.logs_agree()
