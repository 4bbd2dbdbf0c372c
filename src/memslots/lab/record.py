# SPDX-License-Identifier: MIT
"""The raw samples of a measurement: `perf` and `scale` derive every row, table and picture from such a record.

These dataclasses are the schema of the files.  docs/perf-json.md describes each field.  The key "raw" of a report has
the samples; the other fields of a record are keys of the report itself.  `from_report` reads a report again, and
refuses a value of another type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from .fingerprint import Machine
from .sample import Sample, Times
from .schema import More, NotRun, WrongAnswer

Key = tuple[str, str, int | None]  # case, backend, n_slots


@dataclass(frozen=True)
class Round:
    """One run of a case on one backend."""

    value: float  # ns of one operation
    ops: int
    times: list[tuple[float, int]]  # for percentiles: each time that was seen, and how often
    digest: str
    wrong: str | None
    window: int | None  # index into the windows of the part
    seconds: float | None  # of this run, with its untimed passes
    switches: int | None  # involuntary context switches during this run
    reference_ns: (
        float | None
    )  # a step of the reference loop: the slower reading before and after this case


@dataclass(frozen=True)
class CellRecord:
    """All rounds of one case on one backend at one number of slots."""

    case: str
    backend: str
    n_slots: int | None
    group: int
    iteration_ops: int | None
    extra: dict[str, str]
    rounds: list[Round]


@dataclass(frozen=True)
class Window:
    """The other work of the machine during one round of all cells with the same number of slots.

    If the round takes less than a second, the window begins before it.
    """

    n_slots: int | None
    round: int
    seconds: float
    load: float | None  # the average of one minute, at the end
    others: float | None  # processors that other processes used, on average
    stolen: float | None  # processors that the hypervisor gave to other machines
    switches: int | None  # involuntary context switches of this process


@dataclass(frozen=True)
class Part:
    """The cells of one table, in VMs with `user_mem_slots` ids."""

    user_mem_slots: int
    cells: list[CellRecord]
    windows: list[Window]


@dataclass(frozen=True)
class PerfRaw:
    results: Part
    crossover: list[Part]


@dataclass(frozen=True)
class ScaleRaw:
    results: Part
    selftest: Part


@dataclass(frozen=True)
class Record:
    """The fields that both records share."""

    memslots: str
    command: str
    mode: str
    machine: Machine
    seed: int
    slots: list[int]
    rounds: int
    seconds: float
    clock_ns: float
    not_run: list[NotRun]
    skipped: list[str]
    wrong: list[WrongAnswer]


@dataclass(frozen=True)
class PerfRecord(Record):
    floor_ns: float
    kvm_refused_ns: float | None
    raw: PerfRaw


@dataclass(frozen=True)
class ScaleRecord(Record):
    raw: ScaleRaw


R = TypeVar("R", bound=Record)


class RecordError(ValueError):
    """The file has no raw samples, or they do not follow the schema."""


# ---- samples --------------------------------------------------------------------------------------


def cell_record(key: Key, samples: Sequence[Sample]) -> CellRecord:
    """Record the samples of all rounds of one cell."""
    first = samples[0]
    extra = {name: str(value) for name, value in first.extra.items()}
    rounds = [_round(sample) for sample in samples]
    return CellRecord(*key, first.group, first.iteration_ops, extra, rounds)


def _round(sample: Sample) -> Round:
    return Round(
        float(sample.value),
        sample.ops,
        counted(sample.singles),
        sample.digest,
        sample.wrong,
        sample.window,
        sample.seconds,
        sample.switches,
        sample.reference_ns,
    )


def counted(times: Times) -> list[tuple[float, int]]:
    """Return each different time and how often it occurs.  Percentiles do not depend on the order of times."""
    values, counts = np.unique(np.asarray(times, dtype=np.float64), return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def samples_of(cell: CellRecord) -> list[Sample]:
    """Return the samples that `cell_record` recorded."""
    return [_sample(cell, found) for found in cell.rounds]


def _sample(cell: CellRecord, found: Round) -> Sample:
    times = np.array([ns for ns, _ in found.times], dtype=np.float64)
    singles = np.repeat(times, [count for _, count in found.times])
    extra = More(**cell.extra)  # type: ignore[typeddict-item]
    return Sample(
        cell.case,
        found.value,
        singles,
        cell.group,
        found.ops,
        found.digest,
        found.wrong,
        extra,
        cell.iteration_ops,
        found.window,
        found.seconds,
        found.switches,
        found.reference_ns,
    )


# ---- files ----------------------------------------------------------------------------------------


def from_report(report: object, kind: type[R]) -> R:
    """Return the record in a report.  Raises RecordError."""
    if not isinstance(report, Mapping):
        raise RecordError("the file has no JSON object")
    if "raw" not in report:
        raise RecordError(
            "the file has no raw samples (key raw): an earlier version of memslots wrote it, so its tables cannot be "
            "derived again; measure again to record them"
        )
    names = {field.name for field in fields(kind)}
    return _converted({name: report[name] for name in report if name in names}, kind)


def _converted(values: dict[str, Any], kind: type[R]) -> R:
    import msgspec

    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as e:
        raise RecordError(f"the file does not follow the schema: {e}") from e


def json_schema(kinds: Iterable[type[Record]] = (PerfRecord, ScaleRecord)) -> dict[str, Any]:
    """Return the JSON schema of the records."""
    import msgspec

    kinds = list(kinds)
    shown, components = msgspec.json.schema_components(kinds)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "anyOf": list(shown),
        "$defs": components,
    }
