# SPDX-License-Identifier: MIT
"""The groups of cases in tables and pictures."""

#: The headings, and the beginnings of the names of their cases.
GROUPS = {
    "memslot_perf_test": ("map", "unmap", "move a", "move i", "RW", "slot s"),
    "changes": ("change/",),
    "lookups": ("lookup/",),
}
