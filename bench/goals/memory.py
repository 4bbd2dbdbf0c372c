# SPDX-License-Identifier: MIT
"""P8: the memory of a slot, and the memory that the index adds, from the engine's count of its allocations."""

from __future__ import annotations

from .scorecard import Scorecard
from .work import AUTO, Settings, slots_of, stage

SLOT, INDEX = 256, 32


def memory(card: Scorecard, settings: Settings) -> None:
    for n in settings.sizes:
        on = stage(n, settings)
        vm = on.new_vm(AUTO)  # a new VM, because others had changes
        bare = vm.stats()["bytes"] / n
        card.value(
            "P8", "memory of a slot without an index", slots_of(n), bare, "bytes", "<=", SLOT
        )
        while not vm.stats()["index_builds"]:
            vm.gfn_to_hva_many(on.gfns)
        more = vm.stats()["bytes"] / n - bare
        card.value("P8", "memory of a slot in the index", slots_of(n), more, "bytes", "<=", INDEX)
