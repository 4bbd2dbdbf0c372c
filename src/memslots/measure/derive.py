# SPDX-License-Identifier: MIT
"""Derives a whole report from its raw samples.  A new measurement and `--verify` use the same functions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, cast

from ..lab.record import Part, PerfRecord, Record, ScaleRecord
from ..lab.schema import FitRow, PerfReport, Row, ScaleReport
from . import fit, noise, published
from .crossover import rows_of
from .rounds import Results


def perf_report(record: PerfRecord) -> PerfReport:
    parts = [record.raw.results, *record.raw.crossover]
    level = _level(parts)
    results, *others = (Results.of_part(part).rows(level=level) for part in parts)
    by_room = {part.user_mem_slots: rows for part, rows in zip(parts[1:], others, strict=True)}
    derived = {
        "results": results,
        "crossover": rows_of(by_room, results),
        "published": published.rows(),
        "noise": noise.summary(parts, [row for rows in (results, *others) for row in rows]),
    }
    return cast(PerfReport, _in_order(record, derived))


def scale_report(record: ScaleRecord) -> ScaleReport:
    parts = [record.raw.results, record.raw.selftest]
    level = _level(parts)
    results, selftest = (Results.of_part(part).rows(level=level) for part in parts)
    derived = {
        "results": results,
        "fits": list(fits(results)),
        "selftest": selftest,
        "published": published.rows(),
        "noise": noise.summary(parts, results + selftest),
    }
    return cast(ScaleReport, _in_order(record, derived))


def _level(parts: Iterable[Part]) -> float | None:
    rounds = (found for part in parts for cell in part.cells for found in cell.rounds)
    return noise.typical_level(found.reference_ns for found in rounds)


def _in_order(record: Record, derived: dict[str, Any]) -> dict[str, Any]:
    """Return all keys; those of the record come first, but the raw samples last."""
    found = asdict(record)
    raw = found.pop("raw")
    return {**found, **derived, "raw": raw}


def fits(results: Iterable[Row]) -> Iterator[FitRow]:
    """Yield the exponent with which the cost of each case on each backend grows with the number of slots."""
    series: dict[tuple[str, str], dict[int, float]] = {}
    for row in results:
        if row["n_slots"] is not None:
            series.setdefault((row["case"], row["backend"]), {})[row["n_slots"]] = row["median"]
    for (case, backend), costs in series.items():
        x = fit.exponent(list(costs), list(costs.values()))
        if x is not None:
            yield {"case": case, "backend": backend, "exponent": round(x, 3), "sizes": len(costs)}


def differences(report: object, again: object, at: str = "") -> Iterator[str]:
    """Yield one line for each place where the JSON values differ."""
    report, again = (json.loads(json.dumps(value)) for value in (report, again))
    yield from _differences(report, again, at)


def _differences(a: Any, b: Any, at: str) -> Iterator[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from _differences(a.get(key), b.get(key), f"{at}.{key}" if at else key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, f"{at}[{i}]")
    elif a != b:
        yield f"{at} is {_short(a)} in the file, but the raw samples give {_short(b)}"


def _short(value: Any) -> str:
    text = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
    return text if len(text) < 60 else text[:57] + "..."
