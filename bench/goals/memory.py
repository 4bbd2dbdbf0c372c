# SPDX-License-Identifier: MIT
"""P8: the memory of a slot, and the memory that the index adds, from the engine's count of its allocations."""

from __future__ import annotations

from .scorecard import Scorecard
from .work import AUTO, Settings, Stage, slots_of, stage

SLOT, INDEX = 256, 32
#: Sets with a reader's record, and an index, have cache lines of their own, about 1 KB each for a VM.
#: With fewer slots than this these lines decide the figure, so it has no bound.
FROM = 509


def memory(card: Scorecard, settings: Settings) -> None:
    for n in settings.sizes:
        one_layout(card, stage(n, settings), slots_of(n))
        one_layout(card, stage(n, settings, "holes"), f"{slots_of(n)}, a hole after each")


def one_layout(card: Scorecard, on: Stage, at: str) -> None:
    n = len(on.slots)
    slot, index = (SLOT, INDEX) if n >= FROM else (None, None)
    vm = on.new_vm(AUTO)  # a new VM, because others had changes
    bare = vm.stats()["bytes"] / n
    card.value("P8", "memory of a slot without an index", at, bare, "bytes", "<=", slot)
    while not vm.stats()["index_builds"]:
        vm.gfn_to_hva_many(on.gfns)
    more = vm.stats()["bytes"] / n - bare
    card.value("P8", "memory of a slot in the index", at, more, "bytes", "<=", index)
