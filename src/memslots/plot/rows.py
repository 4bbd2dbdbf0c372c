# SPDX-License-Identifier: MIT
"""Rows of a report: which there are, and their numbers as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from .style import LOOKS, Look

Row = dict[str, Any]
Cases = dict[str, dict[str, Row]]  # case -> backend -> row

MARKER = 6.5  # points
TIMES = "\N{MULTIPLICATION SIGN}"


def time_text(ns: float) -> str:
    """In the unit that leaves one to three digits before the point."""
    for unit, size in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)):
        if ns < 999.5 * size or unit == "s":
            break
    return f"{ns / size:.{0 if ns >= 9.95 * size or unit == 'ns' else 1}f} {unit}"


def factor_text(ratio: float) -> str:
    """Two or more digits that count."""
    digits = 0 if ratio >= 9.95 else 1 if ratio >= 0.995 else 2
    return f"{ratio:.{digits}f}{TIMES}"


def slots_text(n: int | None) -> str:
    return "real QEMU traces" if n is None else f"{n:,} slots"


def measured(report: Row) -> list[Row]:
    """The rows that have figures; what was not run has none."""
    return [row for row in report["results"] if row.get("median")]


def by_size(rows: Iterable[Row]) -> dict[int | None, Cases]:
    """Slots, the smallest number first and none last -> case -> backend -> row."""
    found: dict[int | None, Cases] = {}
    for row in rows:
        found.setdefault(row["n_slots"], {}).setdefault(row["case"], {})[row["backend"]] = row
    return dict(sorted(found.items(), key=lambda item: (item[0] is None, item[0] or 0)))


def backends_of(rows: Iterable[Row]) -> list[str]:
    """Those with a look of their own first, in the order of the looks; the others as they come."""
    names = list(dict.fromkeys(row["backend"] for row in rows))
    return [n for n in LOOKS if n in names] + [n for n in names if n not in LOOKS]


def log_time_axis(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda ns, _: time_text(ns).replace(".0", "")))
    axis.set_minor_formatter(NullFormatter())


def label(case: str) -> str:
    """As it stands beside an axis."""
    kind, _, what = case.removesuffix("/vm").partition("/")
    return f"{kind}: {what.replace('/', ', ')}" if what else kind


def in_title(case: str) -> str:
    """As it stands in a sentence."""
    return case.removesuffix("/vm")


def marker(name: str, look: Look, face: str) -> Any:
    """A legend's entry."""
    edge = 2.0 if look.marker == "|" else 1.0
    return Line2D(
        [],
        [],
        linestyle="none",
        color=look.color,
        marker=look.marker,
        markerfacecolor=face,
        markeredgewidth=edge,
        markersize=MARKER,
        label=name,
    )
