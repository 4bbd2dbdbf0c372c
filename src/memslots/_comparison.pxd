# SPDX-License-Identifier: MIT
# The declarations of private/comparison.h of the core.  The header is not installed: only the binding can use it.
from libc.stdint cimport uint32_t

from .libmemslots cimport ms_backing, ms_memslot, ms_vm


cdef extern from "comparison.h" nogil:
    struct ms_comparison:
        const ms_memslot *wanted
        ms_backing **backings
        size_t nr_wanted
        bint with_ids
        uint32_t *ids
        ms_memslot *gone
        ms_backing **gone_backings
        size_t room
        size_t nr_gone

    size_t ms_compare_memslots(ms_vm *vm, uint32_t as_id, ms_comparison *c)
    void ms_compare_rows(const ms_memslot *slots, size_t n, ms_comparison *c)
