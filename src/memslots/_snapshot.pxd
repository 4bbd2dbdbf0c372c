# SPDX-License-Identifier: MIT
# The declarations of private/snapshot.h of the core.  The header is not installed: only the binding can use it.
from libc.stdint cimport uint32_t

from .libmemslots cimport ms_backing, ms_error, ms_memslot, ms_vm


cdef extern from "snapshot.h" nogil:
    size_t ms_memslots_backings(ms_vm *vm, uint32_t as_id, ms_backing **out, size_t room)
    int ms_load_snapshot(ms_vm *vm, uint32_t as_id, const ms_memslot *slots, ms_backing **backings, size_t n,
                         ms_error *err)
