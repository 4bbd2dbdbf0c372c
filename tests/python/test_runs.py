# SPDX-License-Identifier: MIT
"""Dirty pages as runs and as bitmaps, compared with a bitmap in one Python integer."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots.traces import runs

FULL = 2**64 - 1


def words_of(bits: int, npages: int) -> np.ndarray:
    return np.frombuffer(bits.to_bytes(8 * runs.nr_words(npages), "little"), "<u8").astype("u8")


def bits_of(some_runs: list[list[int]]) -> int:
    return sum(((1 << count) - 1) << first for first, count in some_runs)


def runs_of(bits: int) -> list[list[int]]:
    found, page = [], 0
    while bits >> page:
        page += ((bits >> page) & -(bits >> page)).bit_length() - 1
        count = (~(bits >> page) & (bits >> page) + 1).bit_length() - 1
        found.append([page, count])
        page += count
    return found


@pytest.mark.parametrize(
    ("some_runs", "npages", "words"),
    [
        ([], 0, []),
        ([], 65, [0, 0]),
        ([[0, 1]], 1, [1]),
        ([[63, 2]], 128, [1 << 63, 1]),
        ([[0, 64]], 64, [FULL]),
        ([[0, 128]], 128, [FULL, FULL]),
        ([[0, 64], [66, 1]], 130, [FULL, 4, 0]),
        ([[5, 3], [70, 2]], 72, [0b11100000, 0b11000000]),
        ([[127, 1]], 128, [0, 1 << 63]),
    ],
)
def test_runs_convert_to_words(some_runs: list, npages: int, words: list) -> None:
    bitmap = runs.runs_to_words(some_runs, npages)
    assert bitmap.dtype == np.uint64
    assert bitmap.tolist() == words
    assert runs.words_to_runs(bitmap) == some_runs


@given(bits=st.integers(0, 2**300 - 1), more=st.integers(0, 200))
def test_random_bitmap_converts_to_runs_and_back(bits: int, more: int) -> None:
    npages = bits.bit_length() + more
    words, expected = words_of(bits, npages), runs_of(bits)
    assert runs.words_to_runs(words) == expected
    assert runs.runs_to_words(expected, npages).tolist() == words.tolist()
    assert bits_of(expected) == bits


@given(bits=st.integers(0, 2**300 - 1), most=st.integers(0, 40))
def test_number_of_runs_is_limited(bits: int, most: int) -> None:
    assert runs.words_to_runs(words_of(bits, 300), most) == runs_of(bits)[:most]


def test_adjacent_runs_are_joined() -> None:
    words = runs.runs_to_words([[0, 3], [3, 61], [64, 1]], 128)
    assert words.tolist() == [FULL, 1]
    assert runs.words_to_runs(words) == [[0, 65]]
    assert runs.words_to_runs(np.array([0, 9, 6], np.uint64)[::2]) == [[65, 2]]


@given(counts=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40))), most=st.integers(1, 50))
def test_pages_in_pieces(counts: list[tuple[int, int]], most: int) -> None:
    some_runs, end = [], 0
    for gap, count in counts:
        some_runs.append([end + gap, count])
        end += gap + count
    pieces = list(runs.pages_of(some_runs, most))
    expected = [page for first, count in some_runs for page in range(first, first + count)]
    assert [int(page) for piece in pieces for page in piece] == expected
    assert all(piece.dtype == np.uint64 and 0 < len(piece) < 2 * most for piece in pieces)


def test_memory_does_not_grow_with_the_number_of_pages() -> None:
    """2^24 pages are 2 MiB of bits."""
    npages = 1 << 24
    tracemalloc.start()
    words = runs.runs_to_words([[0, npages - 1]], npages)
    assert runs.words_to_runs(words) == [[0, npages - 1]]
    alternating = np.full(runs.nr_words(npages), 0x5555555555555555, np.uint64)
    assert runs.words_to_runs(alternating, 3) == [[0, 1], [2, 1], [4, 1]]
    assert sum(len(piece) for piece in runs.pages_of([[0, npages]])) == npages
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
