# SPDX-License-Identifier: MIT
"""flatten() against a model that looks at every page, and normalise() on its own."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memslots import HVA_ERR_BAD, MEM_MAX_NR_PAGES, MEMSLOT_DTYPE, VM, flatten, plan
from memslots.layout import REGION_DTYPE, RUN_DTYPE, Region, normalise

PAGE = 4096
A, B = 0x10000, 0x20000000


def pages_of(runs) -> dict[int, tuple[int, int]]:
    """The host address and the flags of each page."""
    return {
        gfn + k: (hva + k * PAGE, flags)
        for gfn, npages, hva, flags in runs.tolist()
        for k in range(npages)
    }


def painted(regions) -> dict[int, tuple[int, int]]:
    """The pages after painting the regions one over the other, by ascending priority."""
    pages: dict[int, tuple[int, int]] = {}
    for region in sorted(regions, key=lambda region: region.priority):  # stable
        for k in range(region.npages):
            pages.pop(region.gfn + k, None)
            if region.hva is not None:
                pages[region.gfn + k] = (region.hva + k * PAGE, region.flags)
    return pages


def check(regions) -> np.ndarray:
    runs = flatten(regions)
    assert runs.dtype == RUN_DTYPE
    pages = pages_of(runs)
    assert len(pages) == runs["npages"].sum(), "runs overlap"
    assert pages == painted(regions)
    assert (np.diff(runs["gfn"].astype(np.int64)) > 0).all()
    left, right = runs[:-1], runs[1:]
    could_join = (
        (left["gfn"] + left["npages"] == right["gfn"])
        & (left["hva"] + left["npages"] * np.uint64(PAGE) == right["hva"])
        & (left["flags"] == right["flags"])
    )
    assert not could_join.any()
    return runs


regions = st.builds(
    Region,
    gfn=st.integers(0, 24),
    npages=st.integers(1, 12),
    hva=st.none() | st.integers(0, 3).map(lambda k: A + 4 * k * PAGE),
    flags=st.sampled_from((0, 0, 1, 2)),
    priority=st.integers(-1, 2),
)


@given(st.lists(regions, max_size=12))
@settings(max_examples=150)
def test_against_painting_page_by_page(some) -> None:
    check(some)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=30))
@settings(max_examples=80)
def test_last_one_wins_among_equal_priorities(spans) -> None:
    """Windows of one RAM, as aliases in a flat view: equal parts of two windows are joined."""
    check([Region(gfn, npages, A + gfn * PAGE, 0) for gfn, npages in spans])


def test_pc_memory_map() -> None:
    """RAM, the VGA window over it, a ROM with a higher priority, and MMIO that hides RAM."""
    ram, rom = 0x7F00_0000_0000, 0x7E00_0000_0000
    runs = check(
        [
            Region(0, 0x1000, ram),
            Region(0xA0, 0x20, None, priority=1),
            Region(0xC0, 0x20, rom, 2, priority=1),
            Region(0xFD, 1, None, priority=2),
        ]
    )
    assert runs.tolist() == [
        (0, 0xA0, ram, 0),
        (0xC0, 0x20, rom, 2),
        (0xE0, 0x1D, ram + 0xE0 * PAGE, 0),
        (0xFE, 0xF02, ram + 0xFE * PAGE, 0),
    ]
    with VM() as vm:
        for step in plan([], runs):
            vm.set_user_memory_region(**step)
        assert vm.gfn_to_hva_prot(0xC1) == (rom + PAGE, False)
        assert vm.gfn_to_memslot(0xFD) is None


def test_a_hole_splits_and_a_joint_of_equal_memory_joins() -> None:
    assert check([Region(0, 4, A), Region(4, 4, A + 4 * PAGE)]).tolist() == [(0, 8, A, 0)]
    assert len(check([Region(0, 9, A), Region(4, 1)])) == 2
    assert len(check([Region(0, 9, A), Region(4, 1, A + 4 * PAGE)])) == 1
    assert len(check([Region(0, 9, A), Region(4, 1, A + 4 * PAGE, 1)])) == 3
    assert len(check([])) == 0


def test_all_forms_of_regions() -> None:
    @dataclass
    class Window:
        gfn: int
        npages: int
        hva: int | None
        flags: int = 0
        priority: int = 0

    some = [(0, 16, A, 0, 0), (4, 2, None, 0, 1), (8, 2, B, 2, -1), (10, 2, B, 2, 0)]
    want = flatten([Region(*r) for r in some])
    table = np.array(
        [(g, n, HVA_ERR_BAD if h is None else h, f, p) for g, n, h, f, p in some], REGION_DTYPE
    )
    for form in (
        some,
        tuple(some),
        iter(some),
        [Window(*r) for r in some],
        [SimpleNamespace(gfn=g, npages=n, hva=h, flags=f, priority=p) for g, n, h, f, p in some],
        table,
        table[["priority", "hva", "gfn", "npages", "flags"]],
    ):
        np.testing.assert_array_equal(flatten(form), want)
    short = np.array([(0, 4, A), (2, 4, B)], [("gfn", "i8"), ("npages", "i8"), ("hva", "i8")])
    assert flatten(short).tolist() == [(0, 2, A, 0), (2, 4, B, 0)]
    assert flatten([(0, 4, A), (2, 4, B)]).tolist() == [(0, 2, A, 0), (2, 4, B, 0)]


@pytest.mark.parametrize(
    ("region", "error", "message"),
    [
        ((0, 0, A), ValueError, "has no pages"),
        ((2**52 - 1, 2, None), ValueError, "ends beyond gfn"),
        ((0, 2**52 + 1, None), ValueError, "ends beyond gfn"),
        ((0, 1, A + 1), ValueError, "not a multiple of 4096"),
        ((0, 3, HVA_ERR_BAD - 2 * PAGE), ValueError, "host memory beyond"),
        ((-1, 1, A), OverflowError, "gfn must be 0x0"),
        ((0, 1, A, 2**32), OverflowError, "flags"),
        ((0, 1, A, 0, 2**63), OverflowError, "priority"),
        ((0,), TypeError, "region 1 must be"),
        (5, TypeError, "region 1 must be"),
        ((0, "x", A), TypeError, "region 1"),
    ],
)
def test_wrong_regions_are_named(region, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        flatten([(0, 1, A), region])
    assert "region 1" in str(caught.value)


def test_wrong_tables_of_regions() -> None:
    with pytest.raises(ValueError, match="no field hva"):
        flatten(np.zeros(1, [("gfn", "u8"), ("npages", "u8")]))
    with pytest.raises(TypeError, match="float64"):
        flatten(np.ones(1, [("gfn", "f8"), ("npages", "u8"), ("hva", "u8")]))
    with pytest.raises(OverflowError, match="gfn"):
        flatten(np.array([(-1, 1, A)], [("gfn", "i8"), ("npages", "u8"), ("hva", "u8")]))


def test_a_run_has_at_most_the_pages_of_a_slot() -> None:
    """12 TiB of RAM, as one region and as two that touch."""
    for some in ([(0, 3 << 30, 0)], [(0, 1 << 30, 0), (1 << 30, 2 << 30, 1 << 42)]):
        runs = flatten(some)
        assert runs["npages"].sum() == 3 << 30
        assert runs["npages"].max() <= MEM_MAX_NR_PAGES
        assert len(runs) == 2
        assert runs["hva"].tolist() == [int(gfn) * PAGE for gfn in runs["gfn"]]


def test_cost_grows_with_n_log_n() -> None:
    """2^16 regions nest in each other: any algorithm that looks at pairs would take hours."""
    n = 1 << 16
    table = np.zeros(n, REGION_DTYPE)
    table["gfn"] = np.arange(n)
    table["npages"] = 2 * (n - np.arange(n)) - 1
    table["hva"] = np.arange(n) * np.uint64(1 << 24)
    runs = flatten(table)
    assert len(runs) == 2 * n - 1
    assert runs["hva"][n - 1] == table["hva"][-1]


# ---- normalise ---------------------------------------------------------------------------------------


def table_of(runs) -> list[tuple[int, ...]]:
    rows = normalise(runs).rows
    return rows[["base_gfn", "npages", "userspace_addr", "flags"]].tolist()


def test_normalise_sorts_and_joins() -> None:
    a, b, c = (0, 4, A, 0), (4, 4, A + 4 * PAGE, 0), (8, 2, A + 8 * PAGE, 1)
    assert table_of([c, b, a]) == [(0, 8, A, 0), c]
    assert table_of([a, (5, 1, A + 4 * PAGE, 0)]) == [a, (5, 1, A + 4 * PAGE, 0)]
    assert table_of([a, (4, 1, A + 5 * PAGE, 0)]) == [a, (4, 1, A + 5 * PAGE, 0)]
    assert [r[:2] for r in normalise([c, b, a], coalesce=False).rows.tolist()] == [
        (0, 4),
        (4, 4),
        (8, 2),
    ]


def test_a_joined_run_has_the_id_of_its_first_row() -> None:
    rows = np.zeros(3, MEMSLOT_DTYPE)
    rows["base_gfn"], rows["npages"], rows["id"] = [4, 0, 9], [4, 4, 1], [7, 3, 5]
    rows["userspace_addr"] = A + rows["base_gfn"] * np.uint64(PAGE)
    table = normalise(rows)
    assert table.has_ids
    assert table.rows["id"].tolist() == [3, 5]
    assert rows["id"].tolist() == [7, 3, 5], "the argument does not change"


def test_runs_of_guest_memfd_are_not_joined() -> None:
    assert len(table_of([(0, 4, A, 4), (4, 4, A + 4 * PAGE, 4)])) == 2


def test_a_joined_run_has_at_most_the_pages_of_a_slot() -> None:
    part = 1 << 30
    runs = [(k * part, part, k * part * PAGE, 0) for k in range(5)]
    assert [r[1] for r in table_of(runs)] == [part] * 5
    half = part // 2
    runs = [(k * half, half, k * half * PAGE, 0) for k in range(5)]
    assert [r[1] for r in table_of(runs)] == [3 * half, 2 * half]
