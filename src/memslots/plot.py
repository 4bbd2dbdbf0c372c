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

LABELLED_SLOTS = 160
ROW_HEIGHT = 0.17  # inches: a line of text
TALLEST = 30.0  # inches


class _Rows(_Scale):
    """Here a slot needs a line of text, a larger one a little more; a hole needs a line too."""

    def _heights(self, sizes: Any) -> Any:
        heights = 1.2 + 0.05 * np.log2(np.maximum(sizes / 4096, 1))
        heights[self.holes] = 1
        self.tick_gap = 0.95
        return heights


def _draw_map_at(
    file: VectorFile, slots: list[memory_map.Life], at: int, path: str | Path
) -> None:
    """One column a space, each slot with its numbers beside it."""
    spaces = sorted({life.as_id for life in slots})
    title = f"{memory_map.name_of(file)} after {at} of {len(file.ops)} operations: {len(slots)} slots"
    tallest = max(_Rows([s for s in slots if s.as_id == space]).top for space in spaces)
    with _picture(path, min(1.2 + ROW_HEIGHT * tallest, TALLEST), title) as figure:
        axes = figure.subplots(1, len(spaces), squeeze=False)[0]
        for ax, space in zip(axes, spaces, strict=True):
            _draw_column(ax, [life for life in slots if life.as_id == space])
            ax.set_ylabel("guest physical address" + (f", space {space}" if space else ""))
        _kind_legend(figure, slots)


def _draw_column(ax: Any, slots: list[memory_map.Life]) -> None:
    scale = _Rows(slots)
    _draw_boxes(ax, slots, [(0, scale(n.gpa), 1, scale(n.end_gpa)) for n in slots], 0.8)
    for life in slots:
        text = f"slot {life.id}: {memory_map.size_text(life.size)}, {life.kind}, at {life.hva}"
        _label_row(ax, scale, life.gpa, life.end_gpa, text, BLACK)
    for low, high in _draw_holes(ax, scale, 4):
        _label_row(ax, scale, low, high, f"hole of {memory_map.size_text(high - low)}", GREY)
    ax.set_xlim(0, 4)
    ax.xaxis.set_major_locator(NullLocator())
    ax.spines["bottom"].set_visible(False)
    _address_axis(ax, scale)


def _label_row(ax: Any, scale: _Scale, low: int, high: int, text: str, color: str) -> None:
    if len(scale.edges) <= LABELLED_SLOTS:
        middle = (scale(low) + scale(high)) / 2
        ax.text(1.05, middle, text, va="center", fontsize=8, color=color)
