# SPDX-License-Identifier: MIT
"""The text of `memslots scale`."""

from __future__ import annotations

from collections.abc import Iterator

from ..lab.schema import Row, ScaleReport
from ..measure import duel, published
from . import show, tables
from .tables import Part, Table
from .words import plural


def text(report: ScaleReport, width: int | None = None) -> str:
    """Return the report for a terminal of `width` columns.  None: lines may have any length."""
    closing = tables.paragraphs(_closing(report), width)
    busy = tables.paragraphs(show.busy_note(report), width)
    return tables.page([busy, _costs(report), _published(report), closing], width)


def _costs(report: ScaleReport) -> Part:
    """A table with a line for each operation and backend, and a column for each number of slots."""
    sizes = report["slots"]
    rows = {(r["case"], r["backend"], r["n_slots"]): r for r in report["results"]}
    not_run = {(r["case"], r["backend"], r["n_slots"]) for r in report["not_run"]}
    body: list[list[str]] = []
    for case in dict.fromkeys(row["case"] for row in report["results"]):
        body.append([case])
        of_case = [row for row in report["results"] if row["case"] == case]
        for name in show.columns(of_case):
            keys = [(case, name, n) for n in sizes]
            cells = [_cell(rows.get(key), key in not_run) for key in keys]
            body.append([f"  {name}", *cells, _exponent(report, case, name)])
        body += _ratios(of_case, sizes)
    return Table(body, ["slots", *(f"{n:,}" for n in sizes), "~ n^x"]) if body else ""


def _cell(row: Row | None, not_run: bool) -> str:
    if row is None:
        return "not run" if not_run else "-"
    return show.busy_mark(row) + show.time(row["median"]) + show.wrong_mark(row)


def _ratios(of_case: list[Row], sizes: list[int]) -> list[list[str]]:
    """Return a line for each new design: its cost as a multiple of the tree's, and the winner."""
    by_size = {n: both for (_, n), both in show.by_case_and_size(of_case).items()}
    rivals = show.new_designs(of_case)
    return [
        [f"  {title}", *(show.verdict(by_size.get(n, {}), rival).strip() or "-" for n in sizes), ""]
        for rival, title in zip(rivals, show.ratio_headers(rivals), strict=True)
    ]


def _exponent(report: ScaleReport, case: str, backend: str) -> str:
    for fit in report["fits"]:
        if (fit["case"], fit["backend"]) == (case, backend):
            return f"{fit['exponent']:.2f}"
    return ""


# ---- the comparison with the published table ----------------------------------------------------


def _published(report: ScaleReport) -> Part:
    """A table of array / tree for memslot_perf_test's cases: measured here, and published with the patch series."""
    cases = show.by_case_and_size(report["selftest"])
    sizes = sorted({n for _, n in published.TABLE if n != published.MAP_SLOTS})
    body = [[f"{n:,}", *(_both(cases, case, n) for case in published.CASES)] for n in sizes]
    title = "slots: array / tree (published)"
    return Table(body, [title, *published.CASES]) if report["selftest"] else ""


def _both(cases: dict[tuple[str, int], dict[str, Row]], case: str, n: int) -> str:
    key = published.key(case, n)
    by_backend = cases.get(key, {})
    if not duel.has_both(by_backend):
        return "-"
    mark = show.BUSY_MARK if duel.winner(by_backend) == duel.BUSY else ""
    here = show.factor(duel.factor(by_backend))
    return f"{mark}{here} ({show.factor(published.TABLE[key].factor)})"


# ---- the closing notes --------------------------------------------------------------------------


def _closing(report: ScaleReport) -> Iterator[str]:
    yield (
        f"Times are per operation (setup: per slot), medians of up to {plural(report['rounds'], 'round')}.  n^x is "
        "fitted to the upper half of the measured sizes.  VMs have no more ids than slots, so the array copies the "
        "shortest possible table of ids with each change.  The VMs of `memslots perf` have 32,764 ids, as in Linux."
    )
    yield from show.index_note(report["results"])
    yield from show.new_design_notes(report["results"])
    if report["selftest"]:
        yield f"Published: {published.SOURCE}; map at 32,764 has {published.MAP_SLOTS:,} slots."
    yield from show.not_run(report["not_run"])
    yield from show.skipped(report)
    yield from show.busy_note(report)
    yield show.checked(report, report["results"] + report["selftest"])
