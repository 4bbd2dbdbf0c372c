# SPDX-License-Identifier: MIT
"""The array against the tree, from their rows: by which factor, and who wins where that is beyond doubt."""

from __future__ import annotations

from collections.abc import Mapping

from ..lab.schema import Row

BASE, RIVAL = "tree", "array"
EVEN = (0.9, 1.1)  # factors between these are no difference on a machine that others use too

Rows = Mapping[str, Row]  # by backend


def has_both(rows: Rows) -> bool:
    return BASE in rows and RIVAL in rows


def factor(rows: Rows) -> float:
    """How many times the tree's cost the array's is."""
    return float(rows[RIVAL]["median"] / rows[BASE]["median"])


def winner(rows: Rows) -> str:
    """Who is faster: "even" where medians are close, or the middle halves of the rounds overlap."""
    low, high = EVEN
    ratio = factor(rows)
    if ratio > high and rows[RIVAL]["low"] > rows[BASE]["high"]:
        return BASE
    if ratio < low and rows[RIVAL]["high"] < rows[BASE]["low"]:
        return RIVAL
    return "even"
