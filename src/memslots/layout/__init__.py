# SPDX-License-Identifier: MIT
"""Whole layouts: from one set of slots to another.

tables       a layout in any of its forms as sorted and checked rows
differences  the rows that differ, and their ids
steps        the steps of one transaction
feedback     the order of moves that wait for each other
matching     the moves, and the choice between slots of the same memory
planning     plan() and Plan: one ioctl at a time
applying     apply_layout() and restore_layout(): one transaction
flat_view    flatten(): overlapping regions with priorities become a layout
"""

from .applying import apply_layout, restore_layout
from .differences import Difference, compare
from .flat_view import REGION_DTYPE, Region, flatten
from .planning import Plan, Step, plan
from .steps import STEP_DTYPE, changes
from .tables import RUN_DTYPE, Layout, Table, normalise

__all__ = [
    "REGION_DTYPE",
    "RUN_DTYPE",
    "STEP_DTYPE",
    "Difference",
    "Layout",
    "Plan",
    "Region",
    "Step",
    "Table",
    "apply_layout",
    "changes",
    "compare",
    "flatten",
    "normalise",
    "plan",
    "restore_layout",
]
