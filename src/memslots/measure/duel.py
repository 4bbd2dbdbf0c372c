# SPDX-License-Identifier: MIT
"""A rival against the tree, from their rows: the factor, and the winner if the difference is clear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..lab.schema import Row

BASE = "tree"  # all others are compared with this backend
RIVAL = "array"  # has the comparison in every table, and bars in pictures
DESIGNS = (BASE, RIVAL, "list")  # of this project, in the order of tables and pictures

EVENLY = "even"
#: Factors in this range count as equal, because other processes disturb the machine.
EVEN = (0.9, 1.1)

Rows = Mapping[str, Row | dict[str, Any]]  # by backend; pictures are drawn from JSON


def has_both(rows: Rows, rival: str = RIVAL) -> bool:
    return BASE in rows and rival in rows


def factor(rows: Rows, rival: str = RIVAL) -> float:
    """Return the rival's cost as a multiple of the tree's."""
    return float(rows[rival]["median"] / rows[BASE]["median"])


def winner(rows: Rows, rival: str = RIVAL) -> str:
    """Return the faster one, or "even" if medians are close or the middle halves of the rounds overlap."""
    low, high = EVEN
    ratio = factor(rows, rival)
    if ratio > high and rows[rival]["low"] > rows[BASE]["high"]:
        return BASE
    if ratio < low and rows[rival]["high"] < rows[BASE]["low"]:
        return rival
    return EVENLY
