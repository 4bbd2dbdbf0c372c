# SPDX-License-Identifier: MIT
"""The error rates of verdicts for docs/how-we-know.md, from rates.json of a recorded pool.

A figure is `pool COLUMN` or `SIZE COLUMN`.  SIZE is a number of pairs, or `needed`: the pairs that the spread of the
noisiest row requires, or `least`: the fewest pairs in the file that keep both promises.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

LONG = 120  # seconds; more are shown as minutes


@cache
def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def derived(file: Path, what: str) -> str:
    size, column = what.split(" ", 1)
    recorded = read(file)
    row = recorded["pool"] if size == "pool" else rate_of(recorded, size)
    return COLUMNS[column](row)


def rate_of(recorded: dict[str, Any], size: str) -> dict[str, Any]:
    """Return the rates of a number of pairs."""
    by_pairs = {row["pairs"]: row for row in recorded["rates"]}
    if size == "needed":
        size = str(max(spread["pairs"] for spread in recorded["spreads"]))
    if size == "least":
        good = [pairs for pairs, row in by_pairs.items() if row["kept"]]
        if not good:
            raise ValueError("no number of pairs in the file keeps both promises")
        return dict(by_pairs[min(good)])
    if int(size) not in by_pairs:
        raise ValueError(f"the file has no rates for {size} pairs; write it without --pairs")
    return dict(by_pairs[int(size)])


def duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= LONG else f"{seconds:.0f} s"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "pairs": lambda row: f"{row['pairs']:,}",
    "processes": lambda row: f"{row['processes']:,}",
    "link orders": lambda row: f"{row['orders']:,}",
    "spread": lambda row: f"{row['spread']:.1%}",
    "experiments": lambda row: f"{row['experiments']:,}",
    "duration": lambda row: duration(row["seconds"]),
    "false alarms": lambda row: f"{row['false_alarms']:.2%}",
    "upper bound": lambda row: f"{row['upper']:.2%}",
    "found, worst row": lambda row: f"{min(row['found']):.1%}",
    "found, all rows": lambda row: f"{mean(row['found']):.1%}",
    "equivalent": lambda row: f"{row['equivalent']:.1%}",
}
