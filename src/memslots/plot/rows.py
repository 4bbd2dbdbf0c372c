# SPDX-License-Identifier: MIT
"""The rows of a report: the measured ones, the missing ones with the reasons, and numbers as text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from math import ceil, floor, log10
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from ..measure.duel import DESIGNS
from ..measure.noise import any_busy, is_busy
from .style import LOOKS, Look, looks

Row = dict[str, Any]
Cases = dict[str, dict[str, Row]]  # case -> backend -> row
Missing = dict[tuple[str, int | None], list[str]]  # case, slots -> backends that were not run

MARKER = 6.5  # points
TIMES = "\N{MULTIPLICATION SIGN}"
PALE = 0.35  # the opacity of a figure that other work has disturbed
LONGEST_NAME = 24  # characters of a backend's name

#: Operations in a sentence.
OPERATIONS = {
    "change/create": "a create",
    "change/delete": "a delete",
    "change/move": "a move",
    "change/log on": "a start of dirty logging",
    "move active area": "a move",
    "move inactive area": "a move",
    "unmap": "an unmap of a page",
    "lookup/random/vm": "a random lookup",
    "lookup/misses/vm": "a lookup with misses",
    "lookup/hot/vm": "a repeated lookup",
}

#: Backends that do not take part in all operations.
SCOPES = {
    "tree+index": "tree+index differs from the tree in lookups by gfn only",
    "kvm": "kvm has changes only, as its lookups stay inside the kernel",
    "numpy": "numpy has batches only",
    "numpy argsort": "numpy argsort has batches only",
}


def time_text(ns: float) -> str:
    """A time in the unit that leaves one to three digits before the point."""
    for unit, size in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)):
        if ns < 999.5 * size or unit == "s":
            break
    return f"{ns / size:.{0 if ns >= 9.95 * size or unit == 'ns' else 1}f} {unit}"


def factor_text(ratio: float) -> str:
    """A multiple with two significant digits or more."""
    digits = 0 if ratio >= 9.95 else 1 if ratio >= 0.995 else 2
    return f"{ratio:.{digits}f}{TIMES}"


def slots_text(n: int | None) -> str:
    return "real QEMU traces" if n is None else f"{n:,} slots"


def with_slots(n: int | None) -> str:
    """The number of slots, as the beginning of a sentence."""
    return "In real QEMU traces" if n is None else f"With {n:,} slots"


def short(name: str, most: int = LONGEST_NAME) -> str:
    """A backend's name, without the middle if it has more than `most` characters."""
    half = most // 2
    return name if len(name) <= most else f"{name[: half - 1]}…{name[-half:]}"


# ---- rows ---------------------------------------------------------------------------------------


def measured(report: Row) -> list[Row]:
    """The rows that have a measured time."""
    return [row for row in report["results"] if row.get("median")]


def by_size(rows: Iterable[Row]) -> dict[int | None, Cases]:
    """Number of slots -> case -> backend -> row, by ascending number.  None, for the traces, comes last."""
    found: dict[int | None, Cases] = {}
    for row in rows:
        found.setdefault(row["n_slots"], {}).setdefault(row["case"], {})[row["backend"]] = row
    return dict(sorted(found.items(), key=lambda item: (item[0] is None, item[0] or 0)))


def backends_of(rows: Iterable[Row]) -> list[str]:
    """The names in order: DESIGNS, the designs of the user, then the index, the kernel and the peers."""
    names = list(dict.fromkeys(row["backend"] for row in rows))
    own = [name for name in names if name not in LOOKS]
    last = [name for name in LOOKS if name not in DESIGNS]
    return [name for name in (*DESIGNS, *own, *last) if name in names]


def looks_of(report: Row, rows: Iterable[Row]) -> dict[str, Look]:
    """The looks of the backends of these rows.  A backend has the same look for every choice of rows."""
    everywhere = report["results"] + report.get("selftest", []) + report.get("not_run", [])
    found = looks(backends_of(everywhere))
    return {name: found[name] for name in backends_of(rows)}


def not_run(report: Row, cells: Collection[tuple[str, int | None]] | None = None) -> Missing:
    """The backends that would have taken too long, for all cells or for these."""
    found: Missing = {}
    for row in report.get("not_run", []):
        cell = row["case"], row["n_slots"]
        if cells is None or cell in cells:
            found.setdefault(cell, []).append(row["backend"])
    return found


def backend_rows(missing: Missing) -> list[Row]:
    """Rows with only a name, for the backends that were not run."""
    return [{"backend": name} for names in missing.values() for name in names]


# ---- notes --------------------------------------------------------------------------------------


def absence_notes(report: Row, missing: Missing, backends: Iterable[str]) -> Iterator[str]:
    """Notes that say why a backend is missing from a picture, or from the cells in `missing`."""
    reported = report.get("not_run", [])
    yield from _not_run_notes(row for row in reported if (row["case"], row["n_slots"]) in missing)
    if scopes := [SCOPES[name] for name in backends if name in SCOPES]:
        yield f"Not offered: {'; '.join(scopes)}."
    for reason in report.get("skipped", []):
        if not reason.startswith("peer "):  # peers are in tables only
            yield f"Not here: {reason}."


def _not_run_notes(rows: Iterable[Row]) -> Iterator[str]:
    """One line for each reason with its cases and sizes.  The line names all backends that it applies to."""
    missing: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        missing.setdefault((row["backend"], row["reason"]), []).append(row)
    backends: dict[tuple[str, str], list[str]] = {}
    for (backend, reason), found in missing.items():
        backends.setdefault((_where(found), reason), []).append(short(backend))
    for (where, reason), names in backends.items():
        yield f"Not run: {', '.join(names)}, {where}: {reason}."


def _where(rows: list[Row]) -> str:
    names = list(dict.fromkeys(row["case"] for row in rows))
    sizes = sorted({row["n_slots"] for row in rows})
    cases = label(names[0]) if len(names) == 1 else f"{len(names)} operations"
    return f"{cases} at {' and '.join(f'{n:,}' for n in sizes)} slots"


def wrong_notes(rows: Iterable[Row]) -> Iterator[str]:
    """A note that names the rows with wrong answers."""
    wrong = dict.fromkeys(
        (row["backend"], row["case"]) for row in rows if not row.get("checked", True)
    )
    if wrong:
        names = ", ".join(f"{short(backend)} in {label(case)}" for backend, case in wrong)
        yield f"WRONG ANSWERS, so these times mean nothing: {names}."


def busy_mark(*rows: Row) -> str:
    """The mark of a figure that other work of the machine has disturbed."""
    return "!" if any_busy(rows) else ""


def busy_notes(rows: Iterable[Row]) -> Iterator[str]:
    """A note that the machine was busy, and how many of these rows that affects."""
    found = list(rows)
    busy = sum(map(is_busy, found))
    if busy:
        yield (
            f"THE MACHINE WAS BUSY: other work disturbed {busy} of these {len(found)} figures.  They are pale or have "
            "the mark !, and the title does not use them."
        )


# ---- axes and labels ----------------------------------------------------------------------------


def decades(low: float, high: float, most: int = 99) -> list[float]:
    """The powers of ten from low to high.  If there are more than `most`, only every second, third and so on.

    1 is always among them if it is in the range.  If the range has no power of ten, returns other round numbers.
    """
    exponents = range(ceil(log10(low) - 1e-9), floor(log10(high) + 1e-9) + 1)
    step = max(1, ceil(len(exponents) / most))
    return [10.0**e for e in exponents if e % step == 0] or _round_numbers(low, high)


def _round_numbers(low: float, high: float) -> list[float]:
    """2 and 5 times a power of ten, if between low and high.  Else 2 to 9 times, else one number in between."""
    power = 10.0 ** floor(log10(low))
    for factors in ((2, 5), range(2, 10)):
        if found := [factor * power for factor in factors if low <= factor * power <= high]:
            return found
    return [float(f"{(low * high) ** 0.5:.2g}")]


def log_axis(axis: Any, ticks: list[float], text: Any) -> None:
    """Sets labelled ticks, and short ticks between them: at 2 to 9 times each, or at powers of ten without a label."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_ticklabels([text(tick) for tick in ticks])
    exponent = log10(ticks[0])
    if abs(exponent - round(exponent)) > 1e-9:  # no power of ten: the axis is short
        axis.set_minor_locator(NullLocator())
        return
    step = ticks[1] / ticks[0] if len(ticks) > 1 else 10
    inner = decades(10, step / 5) if step > 11 else np.arange(2, 10)
    between = np.outer([ticks[0] / step, *ticks], inner).ravel().tolist()
    axis.set_minor_locator(FixedLocator(between))
    axis.set_minor_formatter(NullFormatter())


def tick_time(ns: float) -> str:
    return time_text(ns).replace(".0", "") if ns >= 1 else f"{ns:g} ns"


def label(case: str) -> str:
    """The name of a case, as the label at an axis."""
    kind, _, what = case.removesuffix("/vm").partition("/")
    return f"{kind}: {what.replace('/', ', ')}" if what else kind


def in_title(case: str) -> str:
    """The name of a case, as part of a sentence."""
    return OPERATIONS.get(case, f'"{label(case)}"')


def marker(name: str, look: Look, face: str) -> Any:
    """An entry of the legend."""
    return Line2D(
        [],
        [],
        linestyle="none",
        color=look.color,
        marker=look.marker,
        markerfacecolor=face,
        markeredgewidth=2.0 if look.marker == "|" else 1.0,
        markersize=MARKER,
        label=short(name),
    )
