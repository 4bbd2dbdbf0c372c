# SPDX-License-Identifier: MIT
"""The common parts of both pictures of a memory map: a scale for guest addresses, and boxes by kind of slot."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch

from ..traces import history
from .style import GREEN, LIGHT, ORANGE, PURPLE, SKY, SMALL

KIND_COLORS = dict(zip(history.KINDS, (SKY, ORANGE, GREEN, PURPLE), strict=True))
KIND_HATCHES = dict(zip(history.KINDS, ("", "..", "//", "xx"), strict=True))
KIND_NOTES = dict(zip(history.KINDS, ("", "logged", "READONLY", "READONLY, logged"), strict=True))

DOUBLING = 0.15  # a slot of one page has height 1, and each doubling of the size adds this
# As shares of the height of all slots: one hole, and the limit for all holes.
HOLE_SHARE, HOLES_SHARE = 0.045, 0.4
NOT_TO_SCALE = (
    "Addresses are not to scale: a range of one page has some height and each doubling adds a little.  "
    "Grey bands are ranges without a slot, cut to the same height."
)

MAP_HEIGHT = 4.6  # inches
FINE_EDGES = 400  # rectangles; the edges of more would hide the colours
MIN_TICK_GAP = 0.035  # as a share of the axis, so that labels do not touch
LABELLED_ROWS = 160  # with more rows, the picture has no labels


class Scale:
    """Maps guest addresses to heights.  A range that a slot had is as high as its order of magnitude, a hole is low."""

    def __init__(self, lives: list[history.Life]) -> None:
        edges = sorted({edge for life in lives for edge in (life.gpa, life.end_gpa)})
        self.edges = edges
        self.holes = _uncovered(edges, lives)
        heights = self._heights(np.diff(np.array(edges, dtype=object)).astype(float))
        self._at = dict(zip(edges, np.concatenate([[0], np.cumsum(heights)]), strict=True))
        self.top = float(self._at[edges[-1]])

    def _heights(self, sizes: Any) -> Any:
        """The heights of the ranges between neighbouring edges."""
        heights = 1 + DOUBLING * np.log2(np.maximum(sizes / 4096, 1))
        heights[self.holes] = 0
        share = min(HOLE_SHARE, HOLES_SHARE / max(len(self.holes), 1))
        heights[self.holes] = share * heights.sum()
        self.tick_gap = MIN_TICK_GAP * float(heights.sum())
        return heights

    def __call__(self, gpa: int) -> float:
        return float(self._at[gpa])

    def ticks(self) -> list[int]:
        """The edges to label: as many as fit, and first the edges of the tallest ranges."""
        chosen: list[int] = []
        heights = [self(edge) for edge in self.edges]
        room = np.diff([heights[0], *heights, heights[-1]])
        for i in np.argsort(-np.maximum(room[:-1], room[1:]), kind="stable"):
            if all(abs(heights[i] - self(other)) >= self.tick_gap for other in chosen):
                chosen.append(self.edges[i])
        return chosen


def _uncovered(edges: list[int], lives: list[history.Life]) -> list[int]:
    """The indices of the ranges between neighbouring edges that no slot ever had."""
    place = {edge: i for i, edge in enumerate(edges)}
    steps = np.zeros(len(edges), dtype=int)
    for life in lives:
        steps[place[life.gpa]] += 1
        steps[place[life.end_gpa]] -= 1
    return [int(i) for i in np.flatnonzero(np.cumsum(steps)[:-1] == 0)]


class Rows(Scale):
    """A scale for a list: each slot and each hole has room for a line of text, and a larger slot a little more."""

    def _heights(self, sizes: Any) -> Any:
        heights = 1.2 + 0.05 * np.log2(np.maximum(sizes / 4096, 1))
        heights[self.holes] = 1
        self.labelled = len(sizes) <= LABELLED_ROWS
        self.tick_gap = 0.95 if self.labelled else MIN_TICK_GAP * float(heights.sum())
        return heights


Box = tuple[float, float, float, float]  # left, bottom, right, top


def draw_boxes(ax: Any, lives: list[history.Life], boxes: list[Box], edge: float) -> None:
    """Adds one collection of boxes per kind of slot: there may be more than 32,764 lives, too many for single boxes."""
    for kind in history.KINDS:
        of_kind = [box for life, box in zip(lives, boxes, strict=True) if life.kind == kind]
        look = {"facecolor": KIND_COLORS[kind], "hatch": KIND_HATCHES[kind]}
        _add_boxes(ax, of_kind, edgecolor="white", linewidth=edge, zorder=1, **look)


def _add_boxes(ax: Any, boxes: list[Box], **look: Any) -> None:
    corners = [[(x, y), (right, y), (right, top), (x, top)] for x, y, right, top in boxes]
    ax.add_collection(PolyCollection(corners, **look))


def draw_holes(ax: Any, scale: Scale, right: float) -> list[tuple[int, int]]:
    """Draws grey bands over the holes, where the axis is cut.  Returns the ranges of the holes."""
    holes = [(scale.edges[i], scale.edges[i + 1]) for i in scale.holes]
    boxes = [(0.0, scale(low), right, scale(high)) for low, high in holes]
    _add_boxes(ax, boxes, facecolor=LIGHT, alpha=0.6, linewidth=0, zorder=0)
    return holes


def address_axis(ax: Any, scale: Scale) -> None:
    ticks = sorted(scale.ticks())
    ax.set_yticks([scale(gpa) for gpa in ticks], [address_text(gpa) for gpa in ticks])
    ax.tick_params(axis="y", labelsize=SMALL)
    ax.set_ylim(0, scale.top)


def address_label(space: int) -> str:
    """The label of the axis, in two lines because a picture of a few slots is not high."""
    return f"guest physical address\n(not to scale{f', space {space}' if space else ''})"


def address_text(gpa: int) -> str:
    """The address in hexadecimal, and as a size if that is short: 0x100000000 and 0x10000000 look too similar."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        hundredths, rest = divmod(100 * gpa, 1 << shift)
        if not rest and 100 <= hundredths < 1_000_000:
            return f"{gpa:#x} ({hundredths / 100:g} {unit})"
    return f"{gpa:#x}"


def kind_handles(lives: list[history.Life]) -> list[Patch]:
    """The entries of the legend, one for each kind of slot that occurs."""
    used = [kind for kind in history.KINDS if any(life.kind == kind for life in lives)]
    return [
        Patch(facecolor=KIND_COLORS[kind], hatch=KIND_HATCHES[kind], edgecolor="white", label=kind)
        for kind in used
    ]
