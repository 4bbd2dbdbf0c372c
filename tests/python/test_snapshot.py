# SPDX-License-Identifier: MIT
"""Snapshots made from a user's table: which rows are refused, and that a snapshot is immutable."""

from __future__ import annotations

import copy
import pickle
import warnings
from random import Random
from typing import Any

import numpy as np
import pytest
from model import ModelError, ModelVM
from scene import memslot, put

from memslots import (
    HVA_ERR_BAD,
    HVA_ERR_MIN,
    MEMSLOT_DTYPE,
    VM,
    Change,
    InvalidRegionError,
    Listener,
    MemFlag,
    MemslotsError,
    RegionOverlapError,
    Snapshot,
)

Row = tuple[int, int, int, int, int, int]
FIELDS = ("base_gfn", "npages", "userspace_addr", "id", "as_id", "flags")
GOOD: list[Row] = [
    (0x100, 16, 0x7F0000000000, 1, 0, 0),
    (0x300, 1, 0x7F0000100000, 2, 0, 2),
    (0x10, 4, 0x7F0000200000, 0, 0, 1),
    (0x110, 1, 0, 7, 0, 1 << 16),
]


def table(rows: list[Row]) -> np.ndarray:
    return np.array(rows, dtype=MEMSLOT_DTYPE)


def test_rows_in_any_order_give_the_same_snapshot() -> None:
    """The snapshot equals that of a VM with the same slots."""
    rng = Random(1)
    rows = GOOD[:3]
    with VM() as vm:
        vm.load_memslots(table(rows))
        want = vm.snapshot()
        gfns = np.array([n + d for n, *_ in GOOD for d in (-1, 0, 1, 5, 16)], np.uint64)
        hvas = vm.gfn_to_hva_many(gfns).tolist()
    for _ in range(20):
        rng.shuffle(rows)
        snapshot = Snapshot(table(rows), 0, want.generation)
        assert snapshot == want
        assert hash(snapshot) == hash(want)
        assert list(snapshot) == list(want)
        assert snapshot.gfn_to_hva_many(gfns).tolist() == hvas


def test_invalid_slot_is_looked_up_as_a_hole() -> None:
    """A table may contain INVALID slots, because a snapshot inside a hook does."""
    snapshot = Snapshot(table(GOOD), 0, 0)
    assert [slot.is_invalid for slot in snapshot] == [False, False, True, False]
    assert snapshot.gfn_to_hva_many([0x10F, 0x110]).tolist() == [0x7F000000F000, HVA_ERR_BAD]


BAD: dict[str, tuple[dict[str, int], type[Exception], str, str]] = {
    "no pages": (
        {"npages": 0},
        InvalidRegionError,
        "NPAGES",
        "0 pages; a slot has 1 to 2147483647",
    ),
    "many pages": ({"npages": 2**31}, InvalidRegionError, "NPAGES", "2147483648 pages"),
    "all pages": ({"npages": 2**64 - 1}, InvalidRegionError, "NPAGES", "pages"),
    "base": ({"base_gfn": 2**52}, InvalidRegionError, "GPA_WRAP", r"2\*\*64"),
    "last base": ({"base_gfn": 2**64 - 1}, InvalidRegionError, "GPA_WRAP", r"2\*\*64"),
    "end": ({"base_gfn": 2**52 - 1}, InvalidRegionError, "GPA_WRAP", r"2\*\*64"),
    "id": ({"id": 2**31}, InvalidRegionError, "SLOT_ID", "2147483648 is not below 2147483648"),
    "flag": ({"flags": 0x108}, InvalidRegionError, "FLAGS", r"0x108 is not allowed; .*INVALID\)$"),
    "hva": ({"userspace_addr": 8}, InvalidRegionError, "HVA_ALIGN", "0x8 of slot 9"),
    "hva end": ({"userspace_addr": HVA_ERR_MIN}, InvalidRegionError, "HVA_RANGE", "ends beyond"),
    "hva wraps": ({"userspace_addr": 2**64 - 4096}, InvalidRegionError, "HVA_RANGE", "ends beyond"),
    "id twice": ({"id": 2}, RegionOverlapError, "DUPLICATE_ID", "entries 1 and 4 both have id 2"),
    "same place": ({"base_gfn": 0x300}, RegionOverlapError, "OVERLAP", "slot 9 .* slot 2"),
    "over the end": ({"base_gfn": 0x10F}, RegionOverlapError, "OVERLAP", "slot 9 .* slot 1"),
    "over the start": (
        {"base_gfn": 0x2FF, "npages": 2},
        RegionOverlapError,
        "OVERLAP",
        "slot 9 .* slot 2",
    ),
    "over all": (
        {"base_gfn": 0, "npages": 0x1000},
        RegionOverlapError,
        "OVERLAP",
        "slot 9 .* slot",
    ),
    "over INVALID": ({"base_gfn": 0x110}, RegionOverlapError, "OVERLAP", "slot 9 .* slot 7"),
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_row_is_refused_and_named(kind: str) -> None:
    """The rules are those of a load; the message names the first bad row."""
    values, error, rule, words = BAD[kind]
    bad = dict(zip(FIELDS, (0x5000, 1, 0, 9, 0, 0), strict=True)) | values
    rows = table([*GOOD, tuple(bad.values()), (0x6000, 1, 0, 10, 0, 0), (0x6000, 1, 8, 10, 0, 8)])
    with pytest.raises(error, match=rf"entry 4: .*{words}") as caught:
        Snapshot(rows, 0, 0)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MemslotsError)
    assert (caught.value.rule, caught.value.slot) == (rule, bad["id"])


@pytest.mark.parametrize(
    ("array", "error"),
    [
        ([1], TypeError),
        (None, TypeError),
        (np.zeros(3), TypeError),
        (table(GOOD)[0], TypeError),
        (table(GOOD).reshape(2, 2), ValueError),
        (table(GOOD)[["base_gfn", "npages"]], ValueError),
        (table(GOOD).astype([(name, "f8") for name in FIELDS]), TypeError),
        (table(GOOD).astype([(name, "O") for name in FIELDS]), TypeError),
        (np.ma.array(table(GOOD)), TypeError),
        (np.lib.stride_tricks.as_strided(table(GOOD), (2**40,), (0,)), ValueError),
    ],
)
def test_array_that_is_not_a_table_is_refused(array: Any, error: type[Exception]) -> None:
    """A broadcast array of 2**40 rows is refused without a copy."""
    with pytest.raises(error, match=r"field|dimension|masked|entry 1"):
        Snapshot(array, 0, 0)


def test_other_widths_and_byte_orders_are_accepted() -> None:
    """The optional fields may be absent."""
    want = Snapshot(table(GOOD), 0, 5)
    for order in "<>":
        wide = table(GOOD).astype([(name, f"{order}i8") for name in FIELDS])
        assert Snapshot(wide, 0, 5) == want
    few = table([(*row[:5], 0) for row in GOOD])
    assert Snapshot(few[list(FIELDS[:4])], 3, 5) == Snapshot(with_as_id(few, 3), 3, 5)
    with pytest.raises(OverflowError, match=r"entry 3: field 'npages' must be .* not -1"):
        Snapshot(with_npages(wide, -1), 0, 0)


def with_as_id(rows: np.ndarray, as_id: int) -> np.ndarray:
    rows = rows.copy()
    rows["as_id"] = as_id
    return rows


def with_npages(rows: np.ndarray, npages: int) -> np.ndarray:
    rows = rows.copy()
    rows["npages"][3] = npages
    return rows


def test_bad_as_id_and_generation_are_refused() -> None:
    with pytest.raises(ValueError, match="entry 0 has as_id 0, not 1"):
        Snapshot(table(GOOD), 1, 0)
    for as_id, generation, name in ((-1, 0, "as_id"), (2**32, 0, "as_id"), (0, -1, "generation")):
        with pytest.raises(OverflowError, match=name):
            Snapshot(table([]), as_id, generation)
    for bad in (True, 1.0, None, "0"):
        with pytest.raises(TypeError, match="as_id must be an int"):
            Snapshot(table([]), bad, 0)
        with pytest.raises(TypeError, match="generation must be an int"):
            Snapshot(table([]), 0, bad)
    for as_id in (64, 2**32 - 1):
        with pytest.raises(InvalidRegionError, match=f"address space {as_id} is not below 64"):
            Snapshot(table([]), as_id, 0)
    assert Snapshot(table([]), 63, 2**64 - 1).generation == 2**64 - 1


def test_random_tables_are_accepted_or_refused_like_the_models_load() -> None:
    """Most tables are invalid.  The error has the rule of the model's error."""
    rng = Random(7)
    taken = refused = 0
    for _ in range(3000):
        rows = [
            (
                rng.choice((rng.randrange(60), 2**52 - rng.randrange(3), 2**52 + 1))
                if rng.random() < 0.1
                else rng.randrange(60),
                rng.choice((0, 2**31)) if rng.random() < 0.02 else 1 + rng.randrange(3),
                rng.randrange(9) * 4096 + (8 if rng.random() < 0.02 else 0),
                rng.randrange(20),
                0,
                8 if rng.random() < 0.02 else rng.randrange(4),
            )
            for _ in range(rng.randrange(7))
        ]
        model = ModelVM(gpa_bits=64, hva_end_max=HVA_ERR_MIN - 1)
        error = None
        try:
            model.load_memslots(table(rows))
        except ModelError as caught:
            error = caught
        if error is not None:
            refused += 1
            with pytest.raises(MemslotsError) as found:
                Snapshot(table(rows), 0, 0)
            assert (found.value.errno, found.value.rule) == (error.errno, error.rule)
        else:
            taken += 1
            assert [slot.base_gfn for slot in Snapshot(table(rows), 0, 0)] == [
                slot.base_gfn for slot in model.memslots()
            ]
    assert min(taken, refused) > 500


@pytest.mark.slow
def test_bad_row_in_a_million_is_named() -> None:
    """The check must not compare each pair of rows."""
    n = 1_000_000
    rows = np.zeros(n, MEMSLOT_DTYPE)
    rows["id"], rows["npages"] = np.arange(n), 1
    rows["base_gfn"] = np.random.default_rng(1).permutation(n) * 2
    assert len(Snapshot(rows, 0, 0)) == n
    at = int(rows["base_gfn"][700_000])
    rows["base_gfn"][900_000] = at
    with pytest.raises(
        RegionOverlapError, match=r"entry 900000: slot 900000 .* overlaps slot 700000"
    ):
        Snapshot(rows, 0, 0)


# ---- immutable -----------------------------------------------------------------------------------


def test_snapshot_is_immutable() -> None:
    """Its memory is an immutable bytes object; each array is a new view of it."""
    rows = table(GOOD)
    snapshot = Snapshot(rows, 0, 1)
    before = list(snapshot), hash(snapshot)
    rows["npages"] = 99  # the caller's table is copied
    array = snapshot.array
    assert array is not snapshot.array
    for change in (
        lambda: array.setflags(write=True),
        lambda: setattr(array.flags, "writeable", True),
        lambda: array.view(np.uint8).setflags(write=True),
        lambda: array.__setitem__(0, 0),
        lambda: np.copyto(array, rows),
        lambda: np.frombuffer(array, np.uint64).setflags(write=True),
        lambda: array.sort(order="id"),
        lambda: array.resize(1),
        lambda: np.asarray(memoryview(array)).setflags(write=True),
        lambda: setattr(snapshot, "generation", 4),
        lambda: setattr(snapshot, "array", rows),
        lambda: delattr(snapshot, "as_id"),
        lambda: setattr(snapshot, "more", 1),
        lambda: snapshot.__init__(rows, 0, 1),  # type: ignore[misc]
        lambda: snapshot.__setstate__({"as_id": 4}),  # type: ignore[attr-defined]
    ):
        with pytest.raises((ValueError, AttributeError, TypeError)):
            change()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy 2.5 and later
        array.shape = (2, 2)  # changes this view only
        array.dtype = np.dtype("V40")
    assert (list(snapshot), hash(snapshot)) == before
    base = array.base
    while isinstance(base, np.ndarray | memoryview):
        assert not base.flags.writeable if isinstance(base, np.ndarray) else base.readonly
        base = base.base if isinstance(base, np.ndarray) else base.obj
    assert isinstance(base, bytes)


def test_snapshot_without_init_is_empty() -> None:
    blank = Snapshot.__new__(Snapshot)
    assert (len(blank), list(blank), blank.array.size, blank.as_id) == (0, [], 0, 0)
    assert blank == Snapshot(table([]), 0, 9)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_snapshot_is_equal(protocol: int) -> None:
    snapshot = Snapshot(table(GOOD), 0, 7)
    other = pickle.loads(pickle.dumps(snapshot, protocol))
    assert other == snapshot == copy.copy(snapshot) == copy.deepcopy(snapshot)
    assert (other.generation, other.as_id) == (7, 0)
    assert not other.array.flags.writeable


def test_manipulated_pickle_is_refused() -> None:
    """Unpickling runs the checks of the constructor; no other way sets the state."""
    snapshot = Snapshot(table(GOOD), 0, 7)
    good = pickle.dumps(snapshot, 2)
    bad = table([*GOOD[:3], (0x100, 1, 0, 7, 0, 0)]).tobytes()
    doctored = good.replace(table(sorted(GOOD)).tobytes(), bad)
    assert doctored != good
    assert len(doctored) == len(good)
    with pytest.raises(RegionOverlapError, match="entry 3"):
        pickle.loads(doctored)
    # BUILD would call __setstate__() or fill __dict__: a Snapshot has neither.
    state = good[:-1] + b"}X\x05\x00\x00\x00as_idK\x05sb."
    with pytest.raises(AttributeError):
        pickle.loads(state)


def test_snapshot_of_a_vm_passes_the_checks_of_the_constructor() -> None:
    """Covers the INVALID slots of a snapshot inside a hook."""
    seen: list[Snapshot] = []

    class Looks(Listener):
        def prepare(self, change: Change) -> None:
            seen.append(vm.snapshot())

    with VM() as vm:
        vm.add_listener(Looks())
        for id in range(9):
            put(vm, id, 1000 - 16 * id, 4, flags=id % 4)
        for id in range(9):
            put(vm, id, 0, 0)
    assert any(slot.is_invalid for snapshot in seen for slot in snapshot)
    for snapshot in seen:
        assert Snapshot(snapshot.array[::-1], snapshot.as_id, snapshot.generation) == snapshot
    assert memslot(0, 0, 1000, 4, 0, MemFlag.INVALID) in list(seen[9])
