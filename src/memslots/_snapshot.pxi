# SPDX-License-Identifier: MIT
# Snapshot: an immutable copy of the slots of one address space, to keep, compare or send.

@cython.final
cdef class Snapshot:
    """Snapshot(array, as_id, generation)
--

The slots of one address space as one read section saw them.  Immutable.  ``VM.snapshot()`` makes one.

    ``array`` has the slots by ascending base_gfn, as a read-only array of MEMSLOT_DTYPE.
    ``as_id`` and ``generation`` are those of the address space.

    The constructor, which pickle uses too, takes a structured array as ``VM.load_memslots`` does, with rows in any
    order.  It refuses rows that no VM could hold, with the exceptions of ``VM.load_memslots``.  The flags of a row may
    include INVALID.
    """

    cdef bytes _rows  # of struct ms_memslot, padding zero
    cdef readonly uint32_t as_id
    cdef readonly uint64_t generation
    cdef bint _made

    def __cinit__(self, *args, **kwargs):
        self._rows = b""

    def __init__(self, array, as_id, generation):
        cdef uint32_t space = _u32(as_id, "as_id")
        cdef uint64_t number = _u64(generation, "generation")
        cdef cnp.ndarray rows = _checked_rows(array, space)
        if self._made:
            raise TypeError("a Snapshot never changes: create a new one")
        _fill_snapshot(self, rows, space, number)

    def __reduce__(self):
        return Snapshot, (self.array, self.as_id, self.generation)

    @property
    def array(self):
        """The slots by ascending base_gfn: an array of MEMSLOT_DTYPE with shape (len(self),).

        Each access gives a new view.  It is read-only, and setflags() cannot make it writable."""
        return np.ndarray(len(self), dtype=MEMSLOT_DTYPE, buffer=self._rows)

    def __len__(self):
        return len(self._rows) // sizeof(ms_memslot)

    def __iter__(self):
        return iter(_slots(<const ms_memslot *>PyBytes_AS_STRING(self._rows), len(self)))

    def __eq__(self, other):
        """True for equal slots in the same address space.  The generations may differ."""
        if type(other) is not Snapshot:
            return NotImplemented
        return self.as_id == (<Snapshot>other).as_id and self._rows == (<Snapshot>other)._rows

    def __hash__(self):
        return hash((self.as_id, self._rows))

    def __repr__(self):
        return f"<Snapshot of address space {self.as_id}: {len(self)} slots, generation {self.generation}>"

    def gfn_to_hva_many(self, gfns, out=None, bint write=True):
        """As ``VM.gfn_to_hva_many``, with the same arguments, answers and exceptions.  O(log n) for each gfn.

        The answers are host addresses in bytes, uint64, HVA_ERR_BAD in holes and INVALID slots, and HVA_ERR_RO_BAD in
        READONLY slots if write is true."""
        cdef object wanted = _numbers(gfns, "gfns")
        cdef object result = _result(out, wanted, cnp.NPY_UINT64)
        hvas = _translate(self.array, wanted.astype(np.uint64).reshape(-1), write)
        result[...] = hvas.reshape(wanted.shape)
        return result if out is None else out

    def diff(self, Snapshot other not None):
        """The Diff from these slots to those of another Snapshot of the same address space.

        Slots are compared by id.  ValueError: the address spaces differ."""
        if self.as_id != other.as_id:
            raise ValueError(f"the snapshots are of address spaces {self.as_id} and {other.as_id}; a Diff compares two "
                             "layouts of one address space")
        return diff_rows(self.array, other.array)


cdef int _fill_snapshot(Snapshot snapshot, object rows, uint32_t as_id, uint64_t generation) except -1:
    """Copies the rows field by field, so that the padding is zero: in rows from the engine it can have any value."""
    clean = np.zeros(len(rows), dtype=MEMSLOT_DTYPE)
    for name in MEMSLOT_DTYPE.names:
        clean[name] = rows[name]
    snapshot._rows = clean.tobytes()
    snapshot.as_id = as_id
    snapshot.generation = generation
    snapshot._made = True
    return 0


cdef Snapshot _snapshot(VM vm, uint32_t as_id):
    """A Snapshot of the engine's own rows, which need no check."""
    cdef Snapshot snapshot = Snapshot.__new__(Snapshot)
    with ReadSection(vm):
        rows, generation = VM.memslots_array(vm, as_id), VM.generation(vm, as_id)
    _fill_snapshot(snapshot, rows, as_id, generation)
    return snapshot


cdef object _translate(object rows, object gfns, bint write):
    hvas = np.full(gfns.shape, HVA_ERR_BAD, dtype=np.uint64)
    if not len(rows):
        return hvas
    at = np.searchsorted(np.ascontiguousarray(rows["base_gfn"]), gfns, side="right") - 1
    slot = rows[np.maximum(at, 0)]
    page = gfns - slot["base_gfn"]
    hit = (at >= 0) & (page < slot["npages"]) & (slot["flags"] & np.uint32(MemFlag.INVALID) == 0)
    np.copyto(hvas, slot["userspace_addr"] + (page << np.uint64(12)), where=hit)
    if write:
        np.copyto(hvas, np.uint64(HVA_ERR_RO_BAD), where=hit & (slot["flags"] & np.uint32(MemFlag.READONLY) != 0))
    return hvas
