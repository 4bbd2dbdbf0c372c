# SPDX-License-Identifier: MIT
# What other Cython modules may cimport; they compile with get_include() and link with nothing.
from libc.stdint cimport uint32_t, uint64_t

from .libmemslots cimport ms_memslot, ms_update, ms_vcpu, ms_vm


cdef class VM:
    cdef ms_vm *_vm
    cdef bint _closed
    cdef uint32_t _address_spaces
    cdef list _hooks
    cdef dict _raised
    cdef dict _given
    cdef uint32_t _stall_warning_ms
    cdef object __weakref__

    # The calls of memslots.h for Cython callers, GIL or not.
    cdef uint64_t c_gfn_to_hva(self, uint32_t as_id, uint64_t gfn) noexcept nogil
    cdef int c_gfn_to_memslot(self, uint32_t as_id, uint64_t gfn, ms_memslot *out) noexcept nogil


cdef class VCPU:
    cdef readonly VM vm
    cdef ms_vcpu *_vcpu
