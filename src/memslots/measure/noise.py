# SPDX-License-Identifier: MIT
"""Decides from recorded readings in which rounds the machine was busy with other work, and which cells that affects.

A round of a cell is disturbed if one of these holds:

- Other processes used more than OTHERS processors during the round of all cells.
- The hypervisor gave more than STOLEN processors to other machines.
- Another program took the processor more than SWITCHES times while the cell ran, and more than SWITCHES_A_SECOND.  A
  program that competes for the processor does so 150 to 300 times a second; the deferred work of the kernel, after
  changes in KVM, up to 60 times.
- The reference loop next to the case took more than SLOWER times as long as it typically does in this run.  On a host
  with other machines it takes a half to three times as long all the time.

A cell is busy if more than a quarter of its rounds are disturbed.  The median copes with fewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..lab.record import Part, Window
from ..lab.sample import Sample
from ..lab.schema import NoiseRow, Row

OTHERS = 0.25
STOLEN = 0.05
SWITCHES = 4
SWITCHES_A_SECOND = 100
SLOWER = 5.0
SHARE = 0.25  # of the rounds of a cell


def typical_level(readings: Iterable[float | None]) -> float | None:
    """Return the typical time of a step of the reference loop: the median."""
    known = [ns for ns in readings if ns is not None]
    return float(np.median(known)) if known else None


def window_is_busy(window: Window) -> bool:
    return above(window.others, OTHERS) or above(window.stolen, STOLEN)


def above(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def is_disturbed(sample: Sample, windows: Sequence[Window], level: float | None) -> bool:
    """Whether the machine was busy during this run."""
    if sample.window is not None and window_is_busy(windows[sample.window]):
        return True
    if above(sample.switches, max(SWITCHES, SWITCHES_A_SECOND * (sample.seconds or 0.0))):
        return True
    return level is not None and above(sample.reference_ns, SLOWER * level)


def disturbed(samples: Iterable[Sample], windows: Sequence[Window], level: float | None) -> int:
    """Return the number of disturbed rounds."""
    return sum(is_disturbed(sample, windows, level) for sample in samples)


def is_busy(row: Mapping[str, Any]) -> bool:
    """Whether the figure of this row is disturbed.  Such a figure decides nothing."""
    return bool(row.get("disturbed", 0) > SHARE * row.get("rounds", 1))


def any_busy(rows: Iterable[Mapping[str, Any]]) -> bool:
    return any(map(is_busy, rows))


def summary(parts: Sequence[Part], rows: Sequence[Row]) -> NoiseRow:
    """Return the noise of a whole report: its worst readings, and the number of busy cells."""
    windows = [window for part in parts for window in part.windows]
    rounds = [found for part in parts for cell in part.cells for found in cell.rounds]
    readings = [found.reference_ns for found in rounds]
    level = typical_level(readings)
    known = [ns for ns in readings if ns is not None]
    return {
        "cells": len(rows),
        "busy_cells": sum(map(is_busy, rows)),
        "load": most(window.load for window in windows),
        "others": most(window.others for window in windows),
        "stolen": most(window.stolen for window in windows),
        "switches": sum(window.switches or 0 for window in windows),
        "reference_ns": level,
        "slower": max(known) / level if level else None,
    }


def most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
