# SPDX-License-Identifier: MIT
"""Dirty pages as a vector file writes them, `[[first page, count], ...]` ascending, and as a bitmap of uint64 words.

Both directions use the edges, the pages at which a run begins or ends: bit p of the edges is bit p of the bitmap,
exclusive or bit p - 1.  Cost: O(words + runs) in time and memory; no step expands a bit to a byte.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

BITS_PER_WORD = 64

Runs = list[list[int]]


def nr_words(npages: int) -> int:
    """How many words a bitmap of this many pages has."""
    return (npages + BITS_PER_WORD - 1) // BITS_PER_WORD


def runs_to_words(runs: Sequence[Sequence[int]], npages: int) -> np.ndarray:
    """The bitmap of `npages` pages.  Words behind the last run are never touched."""
    words = np.zeros(nr_words(npages), np.uint64)
    if runs:
        pages = np.array(runs, np.int64)
        ends = pages.sum(axis=1)
        used = nr_words(int(ends[-1]))
        words[:used] = _filled(np.concatenate((pages[:, 0], ends)), used)
    return words


def _filled(edges: np.ndarray, used: int) -> np.ndarray:
    """The words between each odd edge and the next even one."""
    words = np.zeros(used + 1, np.uint64)  # an end may lie on the first page behind
    np.bitwise_xor.at(words, edges >> 6, np.uint64(1) << (edges & 63).astype(np.uint64))
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words << np.uint64(shift)
    carried = np.bitwise_xor.accumulate(words >> np.uint64(63))
    words[1:] ^= -carried[:-1]
    return words[:used]


def words_to_runs(words: np.ndarray, most: int | None = None) -> Runs:
    """The maximal runs of set bits, ascending; the first `most` of them."""
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
    """The numbers of the set bits, or of the first `most` of them."""
    used = np.flatnonzero(words)[:most]  # each has one bit at least
    raw = words[used].astype("<u8").view(np.uint8).reshape(-1, 8)
    row, bit = np.nonzero(np.unpackbits(raw, axis=1, bitorder="little"))
    pages = used[row] * BITS_PER_WORD + bit
    return pages if most is None else pages[:most]


def pages_of(runs: Iterable[Sequence[int]], most: int = 1 << 16) -> Iterator[np.ndarray]:
    """Every page number, uint64, in arrays of about `most`."""
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
