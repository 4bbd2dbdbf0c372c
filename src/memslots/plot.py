# SPDX-License-Identifier: MIT
"""Pictures of what `memslots perf`, `memslots scale` and vector files hold, as PNG or SVG by the suffix of the path.

The first three take the object that `--json` prints.  Colours are Okabe and Ito's, which colour-blind readers tell
apart; every series has a marker of its own too, and its name beside it.  Sizes are for a page 800 pixels wide.
Needs matplotlib; no display, no global state of pyplot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from . import map as memory_map
from .vectors import VectorFile

WIDTH = 8.0  # inches; at 100 dots an inch the page's 800 pixels, at DPI sharp on fine screens
DPI = 160

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "memslots",  # the same report gives the same file
}

BLACK, GREY, LIGHT = "#000000", "#666666", "#dddddd"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

BASE = "tree"  # what the others are compared with


class Look(NamedTuple):
    """How a backend is drawn, in every picture."""

    color: str
    marker: str


LOOKS = {
    "tree": Look(BLUE, "o"),
    "array": Look(VERMILLION, "s"),
    "list": Look(GREEN, "^"),
    "kvm": Look(BLACK, "D"),
}
FURTHER_LOOKS = (
    Look(PURPLE, "v"),
    Look(ORANGE, "P"),
    Look(SKY, "X"),
    Look(GREY, "<"),
    Look(GREY, ">"),
)


def looks(backends: Iterable[str]) -> dict[str, Look]:
    """A look for each; peers beyond the known ones get what is left, in order."""
    spare = iter(FURTHER_LOOKS)
    return {name: LOOKS.get(name) or next(spare, Look(GREY, "*")) for name in backends}


@contextmanager
def _picture(path: str | Path, height: float, title: str) -> Iterator[Figure]:
    """A figure that is written when the block ends."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        yield figure
        stamp = {"Date": None} if str(path).endswith(".svg") else None
        figure.savefig(path, dpi=DPI, metadata=stamp)


# ---- reports ------------------------------------------------------------------------------------

Row = dict[str, Any]
Cases = dict[str, dict[str, Row]]  # case -> backend -> row

MARKER = 6.5  # points
BAR = 0.5  # of a row


def _time(ns: float) -> str:
    """In the unit that leaves one to three digits before the point."""
    for unit, size in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)):
        if ns < 999.5 * size or unit == "s":
            break
    return f"{ns / size:.{0 if ns >= 9.95 * size or unit == 'ns' else 1}f} {unit}"


def _factor(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×" if ratio >= 0.995 else f"{ratio:.2f}×"


def _slots(n: int | None) -> str:
    return "real QEMU traces" if n is None else f"{n:,} slots"


def _measured(report: Row) -> list[Row]:
    """The rows that have figures; what was not run has none."""
    return [row for row in report["results"] if row.get("median")]


def _by_size(rows: Iterable[Row]) -> dict[int | None, Cases]:
    """Slots, the smallest number first and none last -> case -> backend -> row."""
    found: dict[int | None, Cases] = {}
    for row in rows:
        found.setdefault(row["n_slots"], {}).setdefault(row["case"], {})[row["backend"]] = row
    return dict(sorted(found.items(), key=lambda item: (item[0] is None, item[0] or 0)))


def _backends_of(rows: Iterable[Row]) -> list[str]:
    """As they come, those with a look of their own first."""
    names = dict.fromkeys(row["backend"] for row in rows)
    return sorted(names, key=lambda name: name not in LOOKS)


def _log_time_axis(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda ns, _: _time(ns)))
    axis.set_minor_formatter(NullFormatter())


# ---- perf: what the others cost beside the tree -------------------------------------------------

MAX_COLUMNS = 3
ROW = 0.25  # inches
LEFT_OUT = ("/vcpu", "/batch", "/python")  # ways to ask for the same lookup; the table has them


def perf_picture(report: Row, path: str | Path) -> None:
    """A row a case, a column a number of slots: what the others cost as multiples of what the tree costs."""
    rows = [row for row in _measured(report) if not row["case"].endswith(LEFT_OUT)]
    sizes = {n: found for n, cases in _by_size(rows).items() if (found := _compared(cases))}
    replays = sizes.pop(None, {})
    columns = _columns(sizes)
    if not columns and not replays:
        raise ValueError(f"nothing to compare: no case has both {BASE} and another backend")
    styles = looks(_backends_of(rows))
    names = list(dict.fromkeys(case for cases in columns.values() for case in cases))
    heights = [ROW * (2 + len(cases)) for cases in (names, replays) if cases]
    with _picture(path, 1.2 + sum(heights), _perf_title(sizes)) as figure:
        parts = iter(np.atleast_1d(figure.subfigures(len(heights), height_ratios=heights)))
        if columns:
            _draw_columns(next(parts), columns, names, styles)
        if replays:
            _draw_columns(next(parts), {None: replays}, list(replays), styles)
        handles = [_legend_entry(name, styles[name]) for name in styles if name != BASE]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)


def _compared(cases: Cases) -> Cases:
    """The cases that the tree and another backend ran."""
    return {case: rows for case, rows in cases.items() if BASE in rows and len(rows) > 1}


def _columns(sizes: dict[int | None, Cases]) -> dict[int | None, Cases]:
    """The smallest, a middle and the largest number of slots; a case with a limit of its own joins the next."""
    most = max(map(len, sizes.values()), default=0)
    full = [n for n, cases in sizes.items() if 2 * len(cases) > most]
    picks = sorted({0, len(full) // 2, len(full) - 1}) if len(full) > MAX_COLUMNS else range(len(full))
    columns = {full[i]: dict(sizes[full[i]]) for i in picks}
    for n, cases in sizes.items():
        above = next((column for column in columns if (column or 0) >= (n or 0)), None)
        if n not in full and above is not None:
            columns[above] = {**cases, **columns[above]}
    return columns


def _ratio(rows: dict[str, Row], backend: str) -> float:
    return float(rows[backend]["median"] / rows[BASE]["median"])


def _perf_title(sizes: dict[int | None, Cases]) -> str:
    """Where the array loses most and where it wins most."""
    found = [
        (_ratio(rows, "array"), f"{case} at {_slots(n)}")
        for n, cases in sizes.items()
        for case, rows in cases.items()
        if "array" in rows
    ]
    if not found:
        return f"What others cost beside the {BASE}"
    (most, worst), (least, best) = max(found), min(found)
    title = f"The array costs up to {_factor(most)} the {BASE}: {worst}"
    return title if least >= 1 else title + f",\nand as little as {_factor(least)}: {best}"


def _draw_columns(
    part: Any, columns: dict[int | None, Cases], names: list[str], styles: dict[str, Look]
) -> None:
    axes = part.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (n, cases) in zip(axes, columns.items(), strict=True):
        ax.set_title(_slots(n), loc="left", fontweight="bold")
        _draw_factors(ax, cases, names, n, styles)
    labels = [name.removesuffix("/vm").replace("/", ": ") for name in names]
    axes[0].set_yticks(range(len(names)), labels, fontsize=8.5)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    part.supxlabel(
        f"cost as a multiple of the {BASE}'s, which stands in blue; right of 1 the {BASE} is faster",
        fontsize=9,
    )


def _draw_factors(
    ax: Any, cases: Cases, names: list[str], n: int | None, styles: dict[str, Look]
) -> None:
    ax.set_xscale("log")
    ax.axvline(1, color=styles[BASE].color, linewidth=2)
    for case, rows in cases.items():
        y = names.index(case)
        if "array" in rows:
            _draw_bar(ax, y, rows, n, styles["array"].color)
        for name in rows.keys() - {BASE, "array"}:
            look = styles[name]
            ax.plot(_ratio(rows, name), y, look.marker, color=look.color, markersize=5, zorder=3)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}×"))
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", color=LIGHT)
    _tell_base(ax, cases, names, styles[BASE].color)


def _draw_bar(ax: Any, y: int, rows: dict[str, Row], n: int | None, color: str) -> None:
    """From 1 to the factor, which stands inside the row on the other side, where nothing else is."""
    ratio, own = _ratio(rows, "array"), rows["array"]["n_slots"]
    ax.barh(y, ratio - 1, BAR, left=1, color=color, alpha=0.85)
    side, offset = ("right", -4) if ratio >= 1 else ("left", 4)
    text = _factor(ratio) + ("" if own == n else f" ({_slots(own)})")
    where = {"xytext": (offset, 0), "textcoords": "offset points", "ha": side, "va": "center"}
    ax.annotate(text, (1, y), fontsize=8, color=color, fontweight="bold", **where)


def _tell_base(ax: Any, cases: Cases, names: list[str], color: str) -> None:
    """The tree's own cost, at the right edge."""
    right = ax.secondary_yaxis("right")
    places = [names.index(case) for case in cases]
    right.set_yticks(places, [_time(rows[BASE]["median"]) for rows in cases.values()])
    right.tick_params(length=0, labelsize=8, labelcolor=color, pad=1)
    right.spines["right"].set_visible(False)


def _legend_entry(name: str, look: Look) -> Any:
    if name == "array":
        return Patch(color=look.color, alpha=0.85, label=name)
    return _marker(name, look, look.color)


def _marker(label: str, look: Look, face: str) -> Any:
    line = {"linestyle": "none", "markersize": MARKER, "markerfacecolor": face}
    return Line2D([], [], color=look.color, marker=look.marker, label=label, **line)


# ---- latency: the tail --------------------------------------------------------------------------

PERCENTILES = ("p50", "p99", "p999")
LATENCY_CASES = (
    "unmap",
    "lookup/hot/vm",
    "lookup/random/vm",
    "lookup/misses/vm",
    "change/create",
    "change/delete",
    "change/move",
    "change/log on",
)
LINE = 0.15  # inches a backend


def latency_picture(report: Row, path: str | Path) -> None:
    """p50, p99 and p99.9 of single operations, a row a case, at the fewest and the most slots."""
    rows = [row for row in _measured(report) if row.get("group", 1) == 1 and row.get("p999")]
    rows = [row for row in rows if row["case"] in LATENCY_CASES] or rows
    sizes = _by_size(rows)
    if not sizes:
        raise ValueError("no percentiles of single operations to draw")
    ends = {n: sizes[n] for n in (min(sizes, key=_rank), max(sizes, key=_rank))}
    names = list(dict.fromkeys(case for cases in ends.values() for case in cases))
    styles = looks(_backends_of(rows))
    height = 1.6 + (LINE * len(styles) + 0.1) * len(names)
    with _picture(path, height, _latency_title(ends)) as figure:
        axes = figure.subplots(1, len(ends), sharey=True, sharex=True, squeeze=False)[0]
        for ax, (n, cases) in zip(axes, ends.items(), strict=True):
            ax.set_title(_slots(n), loc="left", fontweight="bold")
            _draw_tails(ax, cases, names, styles)
        labels = [name.removesuffix("/vm").replace("/", ": ") for name in names]
        axes[0].set_yticks(range(len(names)), labels, fontsize=9)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        figure.supxlabel("time of one operation", fontsize=10)
        _tails_legend(figure, styles)


def _rank(n: int | None) -> int:
    """Numbers of slots in order; the replays, which have none, between them all and nothing."""
    return -1 if n is None else n


def _latency_title(sizes: dict[int | None, Cases]) -> str:
    """How far the tail of the tree's lookups and of its changes is from the median."""
    tails = [
        (rows[BASE]["p999"] / rows[BASE]["p50"], f"{case.removesuffix('/vm')} at {_slots(n)}")
        for n, cases in sizes.items()
        for case, rows in cases.items()
        if BASE in rows
    ]
    if not tails:
        return "Latency of single operations"
    tail, case = max(tails)
    return f"One {BASE} operation in 1,000 takes up to {_factor(tail)} the median: {case}"


def _draw_tails(ax: Any, cases: Cases, names: list[str], styles: dict[str, Look]) -> None:
    """Backends of a case lie under each other within its row."""
    ax.set_xscale("log")
    step = 0.8 / len(styles)
    for case, rows in cases.items():
        for i, name in enumerate(styles):
            if name in rows:
                y = names.index(case) + (i - (len(styles) - 1) / 2) * step
                _draw_tail(ax, y, rows[name], styles[name])
    for y in range(1, len(names)):
        ax.axhline(y - 0.5, color=LIGHT, linewidth=0.8)
    ax.grid(axis="x", color=LIGHT)
    _log_time_axis(ax.xaxis)
    ax.tick_params(axis="y", length=0)


def _draw_tail(ax: Any, y: float, row: Row, look: Look) -> None:
    p50, p99, p999 = (row[p] for p in PERCENTILES)
    ax.plot([p50, p999], [y, y], color=look.color, linewidth=1.4, alpha=0.6, zorder=2)
    ax.plot(p99, y, "|", color=look.color, markersize=7, markeredgewidth=2, zorder=3)
    for p, face in ((p999, "white"), (p50, look.color)):
        ax.plot(
            p, y, look.marker, color=look.color, markerfacecolor=face, markersize=5, zorder=4
        )


def _tails_legend(figure: Figure, styles: dict[str, Look]) -> None:
    grey = Look(GREY, "o")
    handles = [_marker(name, look, look.color) for name, look in styles.items()]
    handles += [_marker("p50", grey, GREY), _marker("p99", Look(GREY, "|"), GREY)]
    handles += [_marker("p99.9", grey, "white")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)


# ---- the memory map over the time of a boot -----------------------------------------------------

KIND_COLORS = dict(zip(memory_map.KINDS, (SKY, ORANGE, GREEN, PURPLE), strict=True))
KIND_HATCHES = dict(zip(memory_map.KINDS, ("", "..", "//", "xx"), strict=True))
KIND_NOTES = dict(zip(memory_map.KINDS, ("", "logged", "ROM", "ROM, logged"), strict=True))

DOUBLING = 0.15  # a slot of one page has height 1, each doubling adds this
HOLE_SHARE, HOLES_SHARE = 0.045, 0.4  # of the height of all slots: for one hole, for all at most

EVENT_COLORS = {
    "create": BLUE,
    "delete": VERMILLION,
    "move": GREEN,
    "flags": PURPLE,
    "dirty log": BLACK,
}
DIRTY_LOG_OPS = ("get_dirty", "clear_dirty")

MAP_HEIGHT, EVENTS_HEIGHT = 4.6, 1.3  # inches
FINE_EDGES = 400  # rectangles; beyond it edges would hide the colours
MIN_TICK_GAP = 0.035  # of the axis, so that labels do not touch
MIN_PAUSE = 0.04  # of the whole time: what counts as a pause in the changes


class _Scale:
    """Guest addresses -> heights: what slots ever held takes room by its order of magnitude, holes hardly any."""

    def __init__(self, lives: list[memory_map.Life]) -> None:
        edges = sorted({edge for life in lives for edge in (life.gpa, life.end_gpa)})
        self.edges = edges
        self.holes = _uncovered(edges, lives)
        heights = self._heights(np.diff(np.array(edges, dtype=object)).astype(float))
        self._at = dict(zip(edges, np.concatenate([[0], np.cumsum(heights)]), strict=True))
        self.top = float(self._at[edges[-1]])

    def _heights(self, sizes: Any) -> Any:
        """Of the stretches between neighbouring edges."""
        heights = 1 + DOUBLING * np.log2(np.maximum(sizes / 4096, 1))
        heights[self.holes] = 0
        share = min(HOLE_SHARE, HOLES_SHARE / max(len(self.holes), 1))
        heights[self.holes] = share * heights.sum()
        self.tick_gap = MIN_TICK_GAP * float(heights.sum())
        return heights

    def __call__(self, gpa: int) -> float:
        return float(self._at[gpa])

    def ticks(self) -> list[int]:
        """Edges to label: those beside the tallest first, as many as fit."""
        chosen: list[int] = []
        heights = [self(edge) for edge in self.edges]
        room = np.diff([heights[0], *heights, heights[-1]])
        for i in np.argsort(-np.maximum(room[:-1], room[1:]), kind="stable"):
            if all(abs(heights[i] - self(other)) >= self.tick_gap for other in chosen):
                chosen.append(self.edges[i])
        return chosen


def _uncovered(edges: list[int], lives: list[memory_map.Life]) -> list[int]:
    """Which stretches between two neighbouring edges no slot ever had."""
    place = {edge: i for i, edge in enumerate(edges)}
    steps = np.zeros(len(edges), dtype=int)
    for life in lives:
        steps[place[life.gpa]] += 1
        steps[place[life.end_gpa]] -= 1
    return [int(i) for i in np.flatnonzero(np.cumsum(steps)[:-1] == 0)]


def memory_map_picture(file: VectorFile, path: str | Path, at: int | None = None) -> None:
    """The slots of a vector file: over all its operations, or as they are after `at` of them."""
    lives = memory_map.lives(file)
    shown = lives if at is None else memory_map.slots_at(lives, at)
    if not shown:
        raise ValueError(f"{file.path}: no slots to draw")
    if at is None:
        _draw_map_over_time(file, lives, path)
    else:
        _draw_map_at(file, shown, at, path)


def _draw_map_over_time(file: VectorFile, lives: list[memory_map.Life], path: str | Path) -> None:
    spaces = sorted({life.as_id for life in lives})
    events = _events(file, lives)
    most = memory_map.most_slots(lives)
    total = sum(len(numbers) for kind, numbers in events.items() if kind != "dirty log")
    title = f"{memory_map.name_of(file)}: {total} changes, never more than {most} slots"
    height = MAP_HEIGHT * len(spaces) + EVENTS_HEIGHT
    with _picture(path, height, title) as figure:
        ratios = [MAP_HEIGHT] * len(spaces) + [EVENTS_HEIGHT]
        axes = figure.subplots(len(ratios), sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        for ax, space in zip(axes, spaces, strict=False):
            _draw_space(ax, [life for life in lives if life.as_id == space], len(file.ops))
            ax.set_ylabel("guest physical address" + (f", space {space}" if space else ""))
        _draw_clock(axes[0], file)
        about = shorten(str(file.header.get("about", "")), 110)
        axes[0].set_title(about, loc="left", fontsize=9, color=GREY)
        _draw_events(axes[-1], events)
        _kind_legend(figure, lives)


def _draw_space(ax: Any, lives: list[memory_map.Life], ops: int) -> None:
    scale = _Scale(lives)
    boxes = [(n.begin, scale(n.gpa), n.end, scale(n.end_gpa)) for n in lives]
    _draw_boxes(ax, lives, boxes, 0.6 if len(lives) <= FINE_EDGES else 0)
    for low, high in _draw_holes(ax, scale, ops + 1):
        if scale(high) - scale(low) >= scale.tick_gap:
            text = f"{memory_map.size_text(high - low)} that no slot ever has"
            middle = (scale(low) + scale(high)) / 2
            ax.text(ops / 2, middle, text, ha="center", va="center", fontsize=7.5, color=GREY)
    _label_lives(ax, lives, scale, ops)
    ax.set_xlim(0, ops + 1)
    _address_axis(ax, scale)


Box = tuple[float, float, float, float]  # left, bottom, right, top


def _draw_boxes(ax: Any, lives: list[memory_map.Life], boxes: list[Box], edge: float) -> None:
    """One collection a kind: there may be 32,764 lives and more."""
    for kind in memory_map.KINDS:
        of_kind = [box for life, box in zip(lives, boxes, strict=True) if life.kind == kind]
        look = {"facecolor": KIND_COLORS[kind], "hatch": KIND_HATCHES[kind]}
        _add_boxes(ax, of_kind, edgecolor="white", linewidth=edge, zorder=1, **look)


def _add_boxes(ax: Any, boxes: list[Box], **look: Any) -> None:
    corners = [[(l, b), (r, b), (r, t), (l, t)] for l, b, r, t in boxes]
    ax.add_collection(PolyCollection(corners, **look))


def _draw_holes(ax: Any, scale: _Scale, right: float) -> list[tuple[int, int]]:
    """Grey bands: there the axis is cut.  Gives the ranges."""
    holes = [(scale.edges[i], scale.edges[i + 1]) for i in scale.holes]
    boxes = [(0.0, scale(low), right, scale(high)) for low, high in holes]
    _add_boxes(ax, boxes, facecolor=LIGHT, alpha=0.6, linewidth=0, zorder=0)
    return holes


def _address_axis(ax: Any, scale: _Scale) -> None:
    ticks = sorted(scale.ticks())
    ax.set_yticks([scale(gpa) for gpa in ticks], [f"{gpa:#x}" for gpa in ticks])
    ax.tick_params(axis="y", labelsize=8)
    ax.set_ylim(0, scale.top)


def _label_lives(ax: Any, lives: list[memory_map.Life], scale: _Scale, ops: int) -> None:
    """What there is room for says its size; each range once, where it lasts longest."""
    longest: dict[tuple[int, int, str], memory_map.Life] = {}
    for life in sorted(lives, key=lambda life: life.begin - life.end, reverse=True):
        longest[life.gpa, life.size, life.kind] = life
    for life in longest.values():
        text = " ".join(filter(None, [memory_map.size_text(life.size), KIND_NOTES[life.kind]]))
        low, high = scale(life.gpa), scale(life.end_gpa)
        if life.end - life.begin < 0.011 * len(text) * ops or high - low < 0.03 * scale.top:
            continue
        middle = ((life.begin + life.end) / 2, (low + high) / 2)
        box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.8}
        ax.text(*middle, text, ha="center", va="center", fontsize=7.5, bbox=box, zorder=4)


def _kind_legend(figure: Figure, lives: list[memory_map.Life]) -> None:
    """Below the axes, where it hides nothing."""
    used = [kind for kind in memory_map.KINDS if any(life.kind == kind for life in lives)]
    patches = [
        Patch(
            facecolor=KIND_COLORS[kind], hatch=KIND_HATCHES[kind], edgecolor="white", label=kind
        )
        for kind in used
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(used), fontsize=9)


def _events(file: VectorFile, lives: list[memory_map.Life]) -> dict[str, list[int]]:
    """Operation numbers by what they do.  An operation is about one slot: it begins a life, ends one, or both."""
    begun = {life.begin: life.gpa for life in lives}
    ended = {life.end: life.gpa for life in lives if life.end <= len(file.ops)}
    both = begun.keys() & ended.keys()
    return {
        "create": sorted(begun.keys() - both),
        "delete": sorted(ended.keys() - both),
        "move": sorted(n for n in both if begun[n] != ended[n]),
        "flags": sorted(n for n in both if begun[n] == ended[n]),
        "dirty log": [n for n, op in enumerate(file.ops, 1) if op.kind in DIRTY_LOG_OPS],
    }


def _draw_events(ax: Any, events: dict[str, list[int]]) -> None:
    """One row a kind, one stroke an operation."""
    rows = [(kind, numbers) for kind, numbers in events.items() if numbers]
    for y, (kind, numbers) in enumerate(reversed(rows)):
        width = 1.2 if len(numbers) <= FINE_EDGES else 0.2
        ax.vlines(numbers, y - 0.36, y + 0.36, color=EVENT_COLORS[kind], linewidth=width)
    ax.set_yticks(
        range(len(rows)), [f"{len(numbers)} × {kind}" for kind, numbers in reversed(rows)]
    )
    ax.tick_params(axis="y", length=0, labelsize=9)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("operations so far")


def _draw_clock(ax: Any, file: VectorFile) -> None:
    """Where nothing happened for long, a line through the map, and the time at which it went on."""
    times = np.array([op.fields.get("t_us", -1) for op in file.ops], dtype=float) / 1e6
    if times.min(initial=0) < 0 or len(times) < 2:
        return
    gaps = np.diff(times, prepend=0)
    marks: list[int] = []
    for i in np.argsort(-gaps):
        apart = all(abs(i - other) > 0.07 * len(times) for other in marks)
        if gaps[i] >= MIN_PAUSE * times[-1] and apart:
            marks.append(int(i))
    top = ax.secondary_xaxis("top")
    top.set_xticks([m + 1 for m in marks], [f"{times[m]:.1f} s" for m in marks])
    top.tick_params(labelsize=8, length=3)
    top.set_xlabel("time since QEMU started, where it had paused", fontsize=8)
    for m in marks:
        ax.axvline(m + 1, color=BLACK, linewidth=0.7, linestyle=(0, (4, 3)))


# ---- the memory map at one moment ---------------------------------------------------------------

LABELLED_ROWS = 160  # with more, a picture of the whole instead of a list
ROW_HEIGHT = 0.17  # inches: a line of text


class _Rows(_Scale):
    """Here a slot needs a line of text, a larger one a little more; a hole needs a line too."""

    def _heights(self, sizes: Any) -> Any:
        heights = 1.2 + 0.05 * np.log2(np.maximum(sizes / 4096, 1))
        heights[self.holes] = 1
        self.labelled = len(sizes) <= LABELLED_ROWS
        self.tick_gap = 0.95 if self.labelled else MIN_TICK_GAP * float(heights.sum())
        return heights


def _draw_map_at(
    file: VectorFile, slots: list[memory_map.Life], at: int, path: str | Path
) -> None:
    """One column a space, each slot with its numbers beside it."""
    spaces = sorted({life.as_id for life in slots})
    title = f"{memory_map.name_of(file)} after {at} of {len(file.ops)} operations: {len(slots)} slots"
    scales = [_Rows([s for s in slots if s.as_id == space]) for space in spaces]
    height = max(ROW_HEIGHT * scale.top if scale.labelled else MAP_HEIGHT for scale in scales)
    with _picture(path, 1.2 + height, title) as figure:
        axes = figure.subplots(1, len(spaces), squeeze=False)[0]
        for ax, space, scale in zip(axes, spaces, scales, strict=True):
            _draw_column(ax, [life for life in slots if life.as_id == space], scale)
            ax.set_ylabel("guest physical address" + (f", space {space}" if space else ""))
        _kind_legend(figure, slots)


def _draw_column(ax: Any, slots: list[memory_map.Life], scale: _Rows) -> None:
    boxes = [(0.0, scale(n.gpa), 1.0, scale(n.end_gpa)) for n in slots]
    _draw_boxes(ax, slots, boxes, 0.8 if scale.labelled else 0)
    for life in slots:
        text = f"slot {life.id}: {memory_map.size_text(life.size)}, {life.kind}, at {life.hva}"
        _label_row(ax, scale, life.gpa, life.end_gpa, text, BLACK)
    right = 4 if scale.labelled else 1
    for low, high in _draw_holes(ax, scale, right):
        _label_row(ax, scale, low, high, f"hole of {memory_map.size_text(high - low)}", GREY)
    ax.set_xlim(0, right)
    ax.xaxis.set_major_locator(NullLocator())
    ax.spines["bottom"].set_visible(False)
    _address_axis(ax, scale)


def _label_row(ax: Any, scale: _Rows, low: int, high: int, text: str, color: str) -> None:
    if scale.labelled:
        middle = (scale(low) + scale(high)) / 2
        ax.text(1.05, middle, text, va="center", fontsize=8, color=color)
