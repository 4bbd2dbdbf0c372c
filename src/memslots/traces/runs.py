# SPDX-License-Identifier: MIT
"""Dirty pages as runs, `[[first page, count], ...]` ascending, as in a vector file, and as a bitmap of uint64 words.

Both conversions use edges, the pages at which a run begins or ends: bit p of the edges is bit p XOR bit p - 1 of the
bitmap.  Cost: O(words + runs) in time and memory; no step expands each bit of the bitmap to a byte.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

BITS_PER_WORD = 64

Runs = list[list[int]]


def nr_words(npages: int) -> int:
    """Return the number of words in a bitmap of `npages` pages."""
    return (npages + BITS_PER_WORD - 1) // BITS_PER_WORD


def runs_to_words(runs: Sequence[Sequence[int]], npages: int) -> np.ndarray:
    """Return the bitmap of `npages` pages.  Words after the last run are never written."""
    words = np.zeros(nr_words(npages), np.uint64)
    if runs:
        pages = np.array(runs, np.int64)
        ends = pages.sum(axis=1)
        used = nr_words(int(ends[-1]))
        words[:used] = _filled(np.concatenate((pages[:, 0], ends)), used)
    return words


def _filled(edges: np.ndarray, used: int) -> np.ndarray:
    """Return words with all bits set between the first and the second edge, the third and the fourth, and so on."""
    words = np.zeros(used + 1, np.uint64)  # an end may be the first page of the next word
    np.bitwise_xor.at(words, edges >> 6, np.uint64(1) << (edges & 63).astype(np.uint64))
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words << np.uint64(shift)
    carried = np.bitwise_xor.accumulate(words >> np.uint64(63))
    words[1:] ^= -carried[:-1]
    return words[:used]


def words_to_runs(words: np.ndarray, most: int | None = None) -> Runs:
    """Return the maximal runs of set bits in ascending order, at most `most` of them."""
    edges = _edges(np.ascontiguousarray(words, np.uint64))
    pages = _bits_of(edges, None if most is None else 2 * most)
    return [[first, end - first] for first, end in pages.reshape(-1, 2)[:most].tolist()]


def _edges(words: np.ndarray) -> np.ndarray:
    before = np.zeros(words.size + 1, np.uint64)
    before[1:] = words >> np.uint64(63)
    edges = before
    edges[:-1] ^= words ^ (words << np.uint64(1))
    return edges


def _bits_of(words: np.ndarray, most: int | None) -> np.ndarray:
    """Return the numbers of the set bits, at most `most` of them."""
    used = np.flatnonzero(words)[:most]  # each of these words has at least one bit
    raw = words[used].astype("<u8").view(np.uint8).reshape(-1, 8)
    row, bit = np.nonzero(np.unpackbits(raw, axis=1, bitorder="little"))
    pages = used[row] * BITS_PER_WORD + bit
    return pages if most is None else pages[:most]


def pages_of(runs: Iterable[Sequence[int]], most: int = 1 << 16) -> Iterator[np.ndarray]:
    """Yield every page number, as uint64, in arrays of about `most` numbers."""
    batch: list[np.ndarray] = []
    held = 0
    for first, count in runs:
        for start in range(first, first + count, most):
            batch.append(np.arange(start, min(start + most, first + count), dtype=np.uint64))
            held += len(batch[-1])
            if held >= most:
                yield np.concatenate(batch)
                batch, held = [], 0
    if batch:
        yield np.concatenate(batch)
