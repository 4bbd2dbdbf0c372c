# SPDX-License-Identifier: MIT
# The declarations of private/preview.h of the core.  The header is not installed: only the binding can use it.
from libc.stdint cimport uint32_t, uint64_t

from .libmemslots cimport ms_backing, ms_error, ms_memslot, ms_step, ms_vm


cdef extern from "preview.h" nogil:
    struct ms_resolved:
        ms_memslot value
        uint32_t step

    struct ms_preview:
        ms_memslot *rows
        ms_backing **backings
        size_t room
        size_t nr
        uint64_t generation

    int ms_resolve_steps(ms_vm *vm, uint32_t as_id, const ms_step *steps, size_t n, ms_resolved *out, size_t room,
                         size_t *nr, ms_error *err)
    int ms_preview_memslots(ms_vm *vm, uint32_t as_id, const ms_step *steps, size_t n, ms_preview *preview,
                            ms_error *err)
    int ms_change_memslots_at(ms_vm *vm, uint32_t as_id, uint64_t generation, const ms_step *steps, size_t n,
                              ms_error *err)
    int ms_load_backed(ms_vm *vm, uint32_t as_id, uint64_t generation, const ms_memslot *slots, ms_backing **backings,
                       size_t n, ms_error *err)
