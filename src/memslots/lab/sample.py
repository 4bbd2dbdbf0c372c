# SPDX-License-Identifier: MIT
"""The result of one run of a case, and the row of the report that summarizes all its runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .schema import More, Row

Times = NDArray[np.float64]  # nanoseconds of one operation each


@dataclass
class Sample:
    """One run: the typical time of an operation, the times for percentiles, and the first wrong answer."""

    case: str
    value: float  # ns per operation
    singles: Times  # ns per operation, of groups of `group` operations
    group: int
    ops: int  # timed in this run
    digest: str  # of the answers
    wrong: str | None = None
    extra: More = field(default_factory=More)  # further keys of the row, the same in each round
    iteration_ops: int | None = None  # operations of one iteration of the case
    window: int | None = None  # the readings next to this run: see record.Round
    seconds: float | None = None
    switches: int | None = None
    reference_ns: float | None = None


def per_operation(ns: NDArray[Any], ops: int, group: int) -> Times:
    """Convert times of groups to times of one operation.  The last group may be smaller."""
    times = np.asarray(ns, dtype=np.float64)
    sizes = np.full(len(times), group, dtype=np.float64)
    if ops % group:
        sizes[-1] = ops % group
    return np.asarray(times / sizes)


def typical(times: Times) -> float:
    """Return the median: a busy moment of the machine changes some groups, but not the result."""
    return float(np.median(times))


def digest(*answers: NDArray[Any]) -> str:
    """Return a hash that is the same for the same answers of any backend.

    The bytes between the fields of a slot have no value, so the fields are hashed one by one.
    """
    sha = hashlib.sha256()
    for answer in answers:
        for column in [answer[name] for name in answer.dtype.names or ()] or [answer]:
            sha.update(str(column.dtype).encode())
            sha.update(np.ascontiguousarray(column).tobytes())
    return sha.hexdigest()[:16]


def difference(got: NDArray[Any], expected: NDArray[Any], what: str) -> str | None:
    """Return None if both are equal, otherwise a text with the number of differences and the first one."""
    if got.shape != expected.shape:
        return f"{what}: {got.shape} answers, {expected.shape} expected"
    wrong = np.flatnonzero(got != expected)
    if not len(wrong):
        return None
    i = int(wrong[0])
    return (
        f"{len(wrong)} of {len(got)} {what} are wrong: number {i} is {_text(got[i])}, "
        f"not {_text(expected[i])}"
    )


def _text(value: Any) -> str:
    return hex(value) if isinstance(value, np.unsignedinteger) else str(value)


def first(wrongs: Iterable[str | None]) -> str | None:
    """Return the first error, or None."""
    return next((wrong for wrong in wrongs if wrong), None)


def row(samples: Sequence[Sample], backend: str, n_slots: int | None) -> Row:
    """Summarize all runs of one case on one backend, as `--json` prints them.

    The caller sets `disturbed`, because it needs the readings of all cells.
    """
    values = np.array([s.value for s in samples])
    singles = np.concatenate([s.singles for s in samples])
    p50, p99, p999 = (float(p) for p in np.percentile(singles, [50, 99, 99.9]))
    low, high = (float(q) for q in np.percentile(values, [25, 75]))
    found: Row = {
        "case": samples[0].case,
        "backend": backend,
        "n_slots": n_slots,
        "unit": "ns",
        "median": float(np.median(values)),
        "low": low,
        "high": high,
        "p50": p50,
        "p99": p99,
        "p999": p999,
        "group": samples[0].group,
        "ops": sum(s.ops for s in samples),
        "rounds": len(samples),
        "values": values.tolist(),
        "disturbed": 0,
        "checked": not any(s.wrong for s in samples),
        "digest": samples[0].digest,
        **samples[0].extra,
    }
    if (n := samples[0].iteration_ops) is not None:
        found["iteration_ns"], found["iteration_ops"] = found["median"] * n, n
    return found
