# SPDX-License-Identifier: MIT
"""Published figures of the tree-based memslots: seconds for one iteration of memslot_perf_test, arrays and trees.

From the cover letter of "KVM: Scalable memslots implementation", v2 to v4 (Maciej S. Szmigiero, 2021): Xeon 8167M, TDP
MMU off.  "32k" is 32,764 slots, for map 8,194.
"""

from __future__ import annotations

from typing import NamedTuple

from ..lab.schema import PublishedRow

SOURCE = "KVM: Scalable memslots implementation, v4, 2021-08-13, Xeon 8167M"


class Published(NamedTuple):
    before: float  # seconds, arrays
    after: float  # seconds, trees

    @property
    def factor(self) -> float:
        return self.before / self.after


CASES = (
    "map",
    "unmap",
    "unmap chunked",
    "move active area",
    "move inactive area",
    "slot setup",
)

_BEFORE = {
    10: (0.0192, 0.0313, 0.000348, 0.000110, 0.000111, 0.000342),
    30: (0.0192, 0.0325, 0.000373, 0.000100, 0.000106, 0.000989),
    50: (0.0192, 0.0339, 0.000399, 0.0000999, 0.0000992, 0.00141),
    100: (0.0195, 0.0374, 0.000470, 0.0000956, 0.000101, 0.00260),
    509: (0.0232, 0.0724, 0.00155, 0.000101, 0.000108, 0.0135),
    32764: (0.200, 3.88, 3.88, 0.00142, 0.00148, 16.1),
}
_AFTER = {
    10: (0.0186, 0.0310, 0.000351, 0.0000948, 0.0000933, 0.000283),
    30: (0.0190, 0.0310, 0.000373, 0.0000865, 0.0000918, 0.000775),
    50: (0.0190, 0.0311, 0.000395, 0.0000854, 0.0000826, 0.000990),
    100: (0.0191, 0.0312, 0.000447, 0.0000800, 0.0000840, 0.00174),
    509: (0.0223, 0.0315, 0.000869, 0.0000792, 0.0000847, 0.00803),
    32764: (0.0541, 0.0351, 0.0348, 0.0000786, 0.0000880, 0.59),
}
MAP_SLOTS = 8194  # the largest number of slots of "map"; it takes the place of 32,764


def key(case: str, n_slots: int) -> tuple[str, int]:
    """Return the key of this case in TABLE."""
    return case, MAP_SLOTS if case == "map" and n_slots > MAP_SLOTS else n_slots


TABLE = {
    key(case, n): Published(before, after)
    for n in _BEFORE
    for case, before, after in zip(CASES, _BEFORE[n], _AFTER[n], strict=True)
}


def rows() -> list[PublishedRow]:
    """Return the table as `--json` prints it."""
    return [
        {
            "case": case,
            "n_slots": n,
            "before_s": p.before,
            "after_s": p.after,
            "factor": round(p.factor, 2),
        }
        for (case, n), p in TABLE.items()
    ]
