# SPDX-License-Identifier: MIT
# VCPU: lookups with a last_used_slot of their own.

@cython.final
@cython.no_gc_clear
cdef class VCPU:
    """The lookups of a virtual CPU (struct kvm_vcpu, the part that concerns slots).  ``VM.create_vcpu()`` makes one.

    A VCPU has a last_used_slot of its own as a hint.  It drops the hint when the generation changes.  Threads may share
    a VCPU, but then they replace each other's hint.
    """

    def __cinit__(self, VM vm not None):
        cdef ms_error err
        cdef int r
        _check_open(vm)
        self.vm = vm
        with nogil:
            r = ms_vcpu_create(vm._vm, &self._vcpu, &err)
        if r:
            raise _refusal(vm, r, &err, Request())
        _report_hooks(vm)

    def __dealloc__(self):
        ms_vcpu_destroy(self._vcpu)

    def __reduce__(self):
        raise TypeError("a VCPU cannot be pickled or copied")

    def __repr__(self):
        return f"<VCPU in address space {self.as_id} of {self.vm!r}>"

    @property
    def as_id(self):
        """The number of the address space that lookups use.  On x86, KVM uses 0, and 1 in SMM.

        To set a number out of range raises InvalidRegionError (EINVAL)."""
        return ms_vcpu_as_id(self._vcpu)

    @as_id.setter
    def as_id(self, value):
        ms_vcpu_set_as_id(self._vcpu, _as_id(self.vm, value))

    def gfn_to_memslot(self, gfn):
        """As VM.gfn_to_memslot, in the address space as_id (kvm_vcpu_gfn_to_memslot())."""
        cdef ms_memslot found
        cdef uint64_t frame = _u64(gfn, "gfn")
        _check_open(self.vm)
        if ms_vcpu_gfn_to_memslot(self._vcpu, frame, &found):
            return None
        return _slot(&found)

    def gfn_to_hva(self, gfn):
        """As VM.gfn_to_hva, in the address space as_id (kvm_vcpu_gfn_to_hva())."""
        cdef uint64_t frame = _u64(gfn, "gfn"), hva
        if self.vm._closed:
            _check_open(self.vm)
        hva = ms_vcpu_gfn_to_hva(self._vcpu, frame)
        if hva >= MS_HVA_ERR_MIN:
            raise _hva_error(hva, "gfn", frame, self.as_id)
        return hva

    def gpa_to_hva(self, gpa):
        """As VM.gpa_to_hva, in the address space as_id."""
        cdef uint64_t address = _u64(gpa, "gpa"), hva
        if self.vm._closed:
            _check_open(self.vm)
        hva = ms_vcpu_gfn_to_hva(self._vcpu, address >> 12)
        if hva >= MS_HVA_ERR_MIN:
            raise _hva_error(hva, "gpa", address, self.as_id)
        return hva + (address & 4095)
