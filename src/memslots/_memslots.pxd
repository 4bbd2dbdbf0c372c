# SPDX-License-Identifier: MIT
# The part of the extension that other Cython modules may cimport.  They compile with memslots.get_include() as an
# include directory, and link with no library.
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
    cdef bint _has_lost_section  # a read section that its thread never left was dropped
    cdef bint _of_snapshot  # the private VM of a Snapshot
    cdef object _pins  # the head of the list in _mapping.pxi
    cdef object __weakref__

    # Calls of memslots.h for Cython code, with or without the GIL.
    cdef uint64_t c_gfn_to_hva(self, uint32_t as_id, uint64_t gfn) noexcept nogil
    cdef int c_gfn_to_memslot(self, uint32_t as_id, uint64_t gfn, ms_memslot *out) noexcept nogil


cdef class VCPU:
    cdef readonly VM vm
    cdef ms_vcpu *_vcpu
