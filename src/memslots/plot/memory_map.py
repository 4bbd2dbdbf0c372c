# SPDX-License-Identifier: MIT
"""The picture of the slots of a vector file: over all its operations, or after some of them."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

from ..traces import history
from ..traces.vectors import VectorFile
from .addresses import (
    FINE_EDGES,
    KIND_NOTES,
    MAP_HEIGHT,
    NOT_TO_SCALE,
    Box,
    Rows,
    Scale,
    address_axis,
    address_label,
    draw_boxes,
    draw_holes,
    kind_handles,
)
from .files import written_path
from .rows import TIMES
from .style import BLACK, BLUE, GREEN, GREY, PURPLE, SMALL, VERMILLION, WINE, picture

EVENT_COLORS = {
    "create": BLUE,
    "delete": VERMILLION,
    "move": GREEN,
    "flags": PURPLE,
    "dirty log": BLACK,
    "refused": WINE,
    "no effect on slots": GREY,
}
CHANGES = ("create", "delete", "move", "flags")
DIRTY_LOG_OPS = ("get_dirty", "clear_dirty")

EVENT_ROW = 0.22  # inches
ROW_HEIGHT = 0.17  # inches: a line of text
LEAST_HEIGHT = 1.8  # inches: the label of the axis
MIN_PAUSE = 0.04  # as a share of the whole time: a longer gap between operations is a pause


def memory_map_picture(file: VectorFile, path: str | Path, at: int | None = None) -> Path:
    """Draws the slots of a vector file: over all its operations, or after `at` of them.

    Returns the path of the file that it wrote.
    """
    lives = history.lives(file)
    shown = lives if at is None else history.slots_at(lives, at)
    if not shown:
        raise ValueError(f"{file.path}: no slots to draw")
    if at is None:
        _draw_map_over_time(file, lives, path)
    else:
        _draw_map_at(file, shown, at, path)
    return written_path(path)


def _draw_map_over_time(file: VectorFile, lives: list[history.Life], path: str | Path) -> None:
    spaces = sorted({life.as_id for life in lives})
    events = _events(file, lives)
    most = history.most_slots(lives)
    changes = sum(len(events[kind]) for kind in CHANGES)
    name = history.name_of(file)
    title = f"{name}: {changes:,} changes, never more than {most:,} slots at a time"
    ratios = [MAP_HEIGHT] * len(spaces) + [EVENT_ROW * sum(map(bool, events.values())) + 0.1]
    with picture(path, sum(ratios) + 1, title, kind_handles(lives), [NOT_TO_SCALE]) as figure:
        axes = figure.subplots(len(ratios), sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        for ax, space in zip(axes, spaces, strict=False):
            _draw_space(ax, [life for life in lives if life.as_id == space], len(file.ops))
            ax.set_ylabel(address_label(space))
        _draw_clock(axes[0], file)
        about = shorten(str(file.header.get("about", "")), 96)
        axes[0].set_title(about, loc="left", fontsize=SMALL, color=GREY)
        _draw_events(axes[-1], events)


def _draw_space(ax: Any, lives: list[history.Life], ops: int) -> None:
    scale = Scale(lives)
    boxes: list[Box] = [(n.begin, scale(n.gpa), n.end, scale(n.end_gpa)) for n in lives]
    draw_boxes(ax, lives, boxes, 0.6 if len(lives) <= FINE_EDGES else 0)
    for low, high in draw_holes(ax, scale, ops + 1):
        if scale(high) - scale(low) >= scale.tick_gap:
            text = f"{history.size_text(high - low)} that no slot ever has"
            middle = (scale(low) + scale(high)) / 2
            ax.text(ops / 2, middle, text, ha="center", va="center", fontsize=SMALL, color=GREY)
    _label_lives(ax, lives, scale, ops)
    ax.set_xlim(0, ops + 1)
    address_axis(ax, scale)


def _label_lives(ax: Any, lives: list[history.Life], scale: Scale, ops: int) -> None:
    """Writes the size into the boxes that have room for it.  Of equal ranges only the longest-lived box has a label."""
    longest: dict[tuple[int, int, str], history.Life] = {}
    for life in sorted(lives, key=lambda life: life.begin - life.end, reverse=True):
        longest[life.gpa, life.size, life.kind] = life
    for life in longest.values():
        text = " ".join(filter(None, [history.size_text(life.size), KIND_NOTES[life.kind]]))
        low, high = scale(life.gpa), scale(life.end_gpa)
        if life.end - life.begin < 0.012 * len(text) * ops or high - low < 0.035 * scale.top:
            continue
        middle = ((life.begin + life.end) / 2, (low + high) / 2)
        box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.8}
        ax.text(*middle, text, ha="center", va="center", fontsize=SMALL, bbox=box, zorder=4)


def _events(file: VectorFile, lives: list[history.Life]) -> dict[str, list[int]]:
    """kind -> the numbers of its operations.  A change concerns one slot: it begins a life, ends one, or does both."""
    begun = {life.begin: life.gpa for life in lives}
    ended = {life.end: life.gpa for life in lives if life.end <= len(file.ops)}
    found: dict[str, list[int]] = {kind: [] for kind in EVENT_COLORS}
    for n, op in enumerate(file.ops, 1):
        if n in begun and n in ended:
            kind = "flags" if begun[n] == ended[n] else "move"
        elif n in begun or n in ended:
            kind = "create" if n in begun else "delete"
        elif isinstance(op.fields.get("ret"), str):  # the name of an errno
            kind = "refused"
        else:
            kind = "dirty log" if op.kind in DIRTY_LOG_OPS else "no effect on slots"
        found[kind].append(n)
    return found


def _draw_events(ax: Any, events: dict[str, list[int]]) -> None:
    """Draws one row per kind with one stroke per operation, so that every operation of the file has a stroke."""
    rows = [(kind, numbers) for kind, numbers in events.items() if numbers]
    for y, (kind, numbers) in enumerate(reversed(rows)):
        width = 1.2 if len(numbers) <= FINE_EDGES else 0.2
        ax.vlines(numbers, y - 0.36, y + 0.36, color=EVENT_COLORS[kind], linewidth=width)
    ax.set_yticks(
        range(len(rows)), [f"{len(numbers):,} {TIMES} {kind}" for kind, numbers in reversed(rows)]
    )
    ax.tick_params(axis="y", length=0, labelsize=9)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("operations so far")


def _draw_clock(ax: Any, file: VectorFile) -> None:
    """Draws a line at the end of each long pause, with its time."""
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
    top.tick_params(labelsize=SMALL, length=3)
    top.set_xlabel("dashed: end of a pause, in time since QEMU started", fontsize=SMALL)
    for m in marks:
        ax.axvline(m + 1, color=BLACK, linewidth=0.7, linestyle=(0, (4, 3)))


# ---- at one moment ------------------------------------------------------------------------------


def _draw_map_at(file: VectorFile, slots: list[history.Life], at: int, path: str | Path) -> None:
    """Draws one column per address space.  The numbers of each slot are next to its box."""
    spaces = sorted({life.as_id for life in slots})
    title = f"{history.name_of(file)} after {at} of {len(file.ops)} operations: {len(slots)} slots"
    scales = [Rows([s for s in slots if s.as_id == space]) for space in spaces]
    heights = [ROW_HEIGHT * scale.top if scale.labelled else MAP_HEIGHT for scale in scales]
    height = max(LEAST_HEIGHT, *heights)
    with picture(path, 0.7 + height, title, kind_handles(slots), [NOT_TO_SCALE]) as figure:
        axes = figure.subplots(1, len(spaces), squeeze=False)[0]
        for ax, space, scale in zip(axes, spaces, scales, strict=True):
            _draw_column(ax, [life for life in slots if life.as_id == space], scale)
            ax.set_ylabel(address_label(space))


def _draw_column(ax: Any, slots: list[history.Life], scale: Rows) -> None:
    boxes = [(0.0, scale(n.gpa), 1.0, scale(n.end_gpa)) for n in slots]
    draw_boxes(ax, slots, boxes, 0.8 if scale.labelled else 0)
    for life in slots:
        text = f"slot {life.id}: {history.size_text(life.size)}, {life.kind}, at {life.hva}"
        _label_row(ax, scale, life.gpa, life.end_gpa, text, BLACK)
    right = 4 if scale.labelled else 1
    for low, high in draw_holes(ax, scale, right):
        _label_row(ax, scale, low, high, f"hole of {history.size_text(high - low)}", GREY)
    ax.set_xlim(0, right)
    ax.xaxis.set_major_locator(NullLocator())
    ax.spines["bottom"].set_visible(False)
    address_axis(ax, scale)


def _label_row(ax: Any, scale: Rows, low: int, high: int, text: str, color: str) -> None:
    if scale.labelled:
        middle = (scale(low) + scale(high)) / 2
        ax.text(1.05, middle, text, va="center", fontsize=SMALL, color=color)
