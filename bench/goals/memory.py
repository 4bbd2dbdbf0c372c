# SPDX-License-Identifier: MIT
"""P8: what a slot takes, and what the index adds, as the engine counts its own allocations."""

from __future__ import annotations

from .book import Book
from .work import AUTO, Effort, has_switch, slots_of, stage

SLOT, INDEX = 256, 32


def memory(book: Book, effort: Effort) -> None:
    for n in effort.sizes:
        on = stage(n, effort)
        vm = on.new_vm(AUTO)  # of its own: the others have seen changes
        bare = vm.stats()["bytes"] / n
        book.value(
            "P8", "memory of a slot without an index", slots_of(n), bare, "bytes", "<=", SLOT
        )
        if has_switch():
            while not vm.stats()["index_builds"]:
                vm.gfn_to_hva_many(on.gfns)
            more = vm.stats()["bytes"] / n - bare
            book.value("P8", "what the index adds", slots_of(n), more, "bytes", "<=", INDEX)
    if not has_switch():
        book.skip("P8", "what the index adds", "this build has no index")
