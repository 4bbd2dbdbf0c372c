# SPDX-License-Identifier: MIT
# MemorySlot: the values of a slot.

@cython.final
@cython.freelist(64)
@cython.total_ordering
cdef class MemorySlot:
    """MemorySlot(*, id, as_id, base_gfn, npages, userspace_addr, flags=0)
--

The values of a slot at the moment of the call that returned it (struct kvm_memory_slot).  Immutable.

    base_gfn and npages count pages.  userspace_addr, gpa and size are in bytes.  Slots are equal if all fields are.
    They are ordered by (as_id, base_gfn).  The arguments are keywords only, because the order of the fields in
    MEMSLOT_DTYPE differs.  ``MemorySlot(**dict(zip(row.dtype.names, row.item())))`` makes a slot of a row.
    """

    cdef ms_memslot _value
    cdef bint _made

    @cython.embedsignature(False)  # the class shows the signature
    def __init__(self, *args, id=None, as_id=None, base_gfn=None, npages=None, userspace_addr=None, flags=0):
        if args:
            raise TypeError("a MemorySlot takes keywords only: id, as_id, base_gfn, npages, userspace_addr, flags; for "
                            "a row of MEMSLOT_DTYPE use MemorySlot(**dict(zip(row.dtype.names, row.item())))")
        if self._made:
            raise TypeError("a MemorySlot never changes: create a new one")
        self._value.id = _u32(id, "id")
        self._value.as_id = _u32(as_id, "as_id")
        self._value.base_gfn = _u64(base_gfn, "base_gfn")
        self._value.npages = _u64(npages, "npages")
        self._value.userspace_addr = _u64(userspace_addr, "userspace_addr")
        self._value.flags = _u32(flags, "flags")
        self._made = True

    @property
    def id(self):
        """The id of the slot within its address space."""
        return self._value.id

    @property
    def as_id(self):
        """The number of the address space."""
        return self._value.as_id

    @property
    def base_gfn(self):
        """The first guest frame."""
        return self._value.base_gfn

    @property
    def npages(self):
        """The number of pages."""
        return self._value.npages

    @property
    def userspace_addr(self):
        """The host address of the first page, in bytes."""
        return self._value.userspace_addr

    @property
    def flags(self):
        """The flags, a MemFlag."""
        return MemFlag(self._value.flags)

    @property
    def gpa(self):
        """The guest physical address of the first page, in bytes."""
        return self._value.base_gfn << 12

    @property
    def size(self):
        """The size in bytes."""
        return self._value.npages << 12

    @property
    def is_invalid(self):
        """Whether the slot was being deleted or moved (KVM_MEMSLOT_INVALID)."""
        return bool(self._value.flags & (1 << 16))

    cdef tuple _key(self):
        cdef ms_memslot *v = &self._value
        return (v.id, v.as_id, v.base_gfn, v.npages, v.userspace_addr, v.flags)

    cdef tuple _sort_key(self):
        """The order of slots in a list.  The fields after base_gfn make the order total."""
        cdef ms_memslot *v = &self._value
        return (v.as_id, v.base_gfn, v.id, v.npages, v.userspace_addr, v.flags)

    def __eq__(self, other):
        if type(other) is not MemorySlot:
            return NotImplemented
        return self._key() == (<MemorySlot>other)._key()

    def __lt__(self, other):
        if type(other) is not MemorySlot:
            return NotImplemented
        return (<MemorySlot>self)._sort_key() < (<MemorySlot>other)._sort_key()

    def __hash__(self):
        return hash(self._key())

    def __reduce__(self):
        return _memory_slot, self._key()

    def __repr__(self):
        cdef ms_memslot *v = &self._value
        return (
            f"MemorySlot(id={v.id}, as_id={v.as_id}, base_gfn={v.base_gfn:#x}, npages={v.npages:#x}, "
            f"userspace_addr={v.userspace_addr:#x}, flags={v.flags:#x})"
        )


def _memory_slot(id, as_id, base_gfn, npages, userspace_addr, flags):
    """The constructor for pickle, with positional arguments."""
    return MemorySlot(id=id, as_id=as_id, base_gfn=base_gfn, npages=npages, userspace_addr=userspace_addr, flags=flags)


cdef MemorySlot _slot(const ms_memslot *value):
    cdef MemorySlot slot = MemorySlot.__new__(MemorySlot)
    slot._value = value[0]
    slot._made = True
    return slot


cdef object _slot_or_none(const ms_memslot *value):
    return _slot(value) if value.npages else None


cdef list _slots(const ms_memslot *values, size_t n):
    cdef size_t i
    return [_slot(&values[i]) for i in range(n)]


def slots_of_rows(rows):
    """A list of the MemorySlots of an array of MEMSLOT_DTYPE."""
    cdef cnp.ndarray values = np.ascontiguousarray(rows, dtype=MEMSLOT_DTYPE)
    return _slots(<const ms_memslot *>cnp.PyArray_DATA(values), cnp.PyArray_SIZE(values))
