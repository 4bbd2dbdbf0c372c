# SPDX-License-Identifier: MIT
# Snapshot: an immutable copy of the slots of one address space, to look up, keep, compare, save or send.
#
# A Snapshot has its rows.  Its lookups are those of a private VM, the index, which the first lookup fills with the rows
# and which never changes afterwards.
#
# A Snapshot of a VM holds a reference to the backing of each slot.  So it keeps the buffers alive, and the index can read
# them.  A list of the VM links the Snapshots with buffers, for VM.pinned_by() (_pinned_by.pxi).
#
# To make a VM of a Snapshot, take _values() and `_pinned`: row i has the backing _pinned[i], or none.


@cython.final
@cython.no_gc_clear  # __dealloc__ needs the head of the list
cdef class Snapshot:
    """Snapshot(array, as_id, generation)
--

The slots of one address space as one read section saw them.  Immutable.  ``VM.snapshot()`` makes one.

    ``array`` has the slots by ascending base_gfn, as a read-only array of MEMSLOT_DTYPE.
    ``as_id`` and ``generation`` are those of the address space.

    The constructor, which pickle uses too, takes a structured array as ``VM.load_memslots`` does, with rows in any
    order.  It refuses rows that no VM could hold, with the exceptions of ``VM.load_memslots``.  The flags of a row may
    include INVALID.

    The lookups are those of VM without as_id, with the same answers and exceptions.  The first one builds an index: 0.4 us
    per slot, once, also with many threads.

    A Snapshot of ``VM.snapshot()`` keeps the buffers of ``VM.map_buffer()`` alive, also after their slots have ended:
    read_guest() and its relatives read them.  These are the bytes of the memory now, not those at the time of the
    snapshot.  ``close()``, or the end of ``with``, lets the buffers go.  A Snapshot from a pickle, a file or a table has
    no buffers.
    """

    cdef bytes _rows  # of struct ms_memslot, padding zero
    cdef readonly uint32_t as_id
    cdef readonly uint64_t generation
    cdef bint _made
    cdef VM _index             # or None; `_lock` serialises its build
    cdef object _lock          # or None; of the process _lock_pid
    cdef int _lock_pid
    cdef ms_backing **_pinned  # for each row a reference to its backing or NULL; NULL: there are none.  Under `_lock`
    cdef size_t _nr_pinned
    cdef _Pin _head            # of the lists of the VM, or None
    cdef void *_before         # in the list of the VM, which has no reference; NULL: the first one, or not in the list
    cdef void *_after

    def __cinit__(self, *args, **kwargs):
        self._rows = b""

    def __init__(self, array, as_id, generation):
        cdef uint32_t space = _u32(as_id, "as_id")
        cdef uint64_t number = _u64(generation, "generation")
        cdef cnp.ndarray rows
        if space >= MS_ADDRESS_SPACES_MAX:
            raise refused(errno.EINVAL, "AS_ID", MS_ADDRESS_SPACES_MAX, None, Request(as_id=space))
        rows = _checked_rows(array, space)
        if self._made:
            raise TypeError("a Snapshot never changes: create a new one")
        _fill_snapshot(self, rows, space, number)

    def __dealloc__(self):
        if self._pinned is not NULL:
            _unlist_snapshot(self)
            _put_backings(self._pinned, self._nr_pinned)

    def __reduce__(self):
        return Snapshot, (self.array, self.as_id, self.generation)

    @staticmethod
    def load(file):
        """The Snapshot that ``save()`` has written.  file: a path, or a binary file object that is read up to its end.

        ValueError: the file is no snapshot, is truncated or corrupt, or has a newer version of the format.  The slots are
        checked as by the constructor."""
        return Snapshot(*load_snapshot(file))

    def save(self, file):
        """Writes the slots to a file.  file: a path, or a binary file object.

        A file at the path is replaced in one step.  docs/snapshots.md describes the format.  Memory is not saved."""
        save_snapshot(file, encode_snapshot(self.array, self.as_id, self.generation))

    def close(self):
        """Lets the buffers go.  Lookups go on; reads of memory then raise GuestAccessError.

        A read of another thread that is in progress keeps its buffers until it ends.  A second call does nothing."""
        _unpin(self)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @property
    def pinned(self):
        """Whether the snapshot keeps buffers alive, so that their memory can be read."""
        return self._pinned is not NULL

    @property
    def array(self):
        """The slots by ascending base_gfn: an array of MEMSLOT_DTYPE with shape (len(self),).

        Each access gives a new view.  It is read-only, and setflags() cannot make it writable."""
        return np.ndarray(_nr_rows(self), dtype=MEMSLOT_DTYPE, buffer=self._rows)

    @property
    def nr_memslot_pages(self):
        """The number of pages of all slots."""
        return int(self.array["npages"].sum())

    def __len__(self):
        return _nr_rows(self)

    def __iter__(self):
        return iter(self.memslots())

    def __eq__(self, other):
        """True for equal slots in the same address space.  The generations may differ."""
        if type(other) is not Snapshot:
            return NotImplemented
        return self.as_id == (<Snapshot>other).as_id and self._rows == (<Snapshot>other)._rows

    def __hash__(self):
        return hash((self.as_id, self._rows))

    def __repr__(self):
        return f"<Snapshot of address space {self.as_id}: {len(self)} slots, generation {self.generation}>"

    def diff(self, Snapshot other not None):
        """The Diff from these slots to those of another Snapshot of the same address space.

        Slots are compared by id.  ValueError: the address spaces differ."""
        if self.as_id != other.as_id:
            raise ValueError(f"the snapshots are of address spaces {self.as_id} and {other.as_id}; a Diff compares two "
                             "layouts of one address space")
        return diff_rows(self.array, other.array, slots_of_rows)

    # -- all slots

    def memslots(self):
        """A list of all MemorySlots, by ascending gfn."""
        return _slots(_values(self), _nr_rows(self))

    def memslots_array(self):
        """All slots as a new array, which may be changed."""
        return self.array.copy()

    # -- the lookups of VM

    def gfn_to_memslot(self, gfn):
        """As VM.gfn_to_memslot."""
        return VM.gfn_to_memslot(_index_of(self), gfn, self.as_id)

    def id_to_memslot(self, id):
        """As VM.id_to_memslot."""
        return VM.id_to_memslot(_index_of(self), id, self.as_id)

    def gfn_to_hva(self, gfn):
        """As VM.gfn_to_hva."""
        return VM.gfn_to_hva(_index_of(self), gfn, self.as_id)

    def gpa_to_hva(self, gpa, *, write=True):
        """As VM.gpa_to_hva."""
        return VM.gpa_to_hva(_index_of(self), gpa, self.as_id, write=write)

    def gfn_to_hva_prot(self, gfn):
        """As VM.gfn_to_hva_prot."""
        return VM.gfn_to_hva_prot(_index_of(self), gfn, self.as_id)

    def is_visible_gfn(self, gfn):
        """As VM.is_visible_gfn."""
        return VM.is_visible_gfn(_index_of(self), gfn, self.as_id)

    def gfn_to_hva_many(self, gfns, out=None, write=True):
        """As VM.gfn_to_hva_many."""
        return VM.gfn_to_hva_many(_index_of(self), gfns, out, self.as_id, write)

    def gpa_to_hva_many(self, gpas, out=None, write=True):
        """As VM.gpa_to_hva_many."""
        return VM.gpa_to_hva_many(_index_of(self), gpas, out, self.as_id, write)

    def gfn_to_slot_id_many(self, gfns, out=None):
        """As VM.gfn_to_slot_id_many."""
        return VM.gfn_to_slot_id_many(_index_of(self), gfns, out, self.as_id)

    def memslots_in_gfn_range(self, start, end):
        """As VM.memslots_in_gfn_range."""
        return VM.memslots_in_gfn_range(_index_of(self), start, end, self.as_id)

    def memslots_in_gfn_range_many(self, starts, ends):
        """As VM.memslots_in_gfn_range_many."""
        return VM.memslots_in_gfn_range_many(_index_of(self), starts, ends, self.as_id)

    def memslots_in_hva_range(self, start, last):
        """As VM.memslots_in_hva_range."""
        return VM.memslots_in_hva_range(_index_of(self), start, last, self.as_id)

    def hva_to_gfns(self, hva):
        """As VM.hva_to_gfns, in this address space."""
        return VM.hva_to_gfns(_index_of(self), hva)

    def host_ranges(self, gpa, n, write=False):
        """As VM.host_ranges."""
        return VM.host_ranges(_index_of(self), gpa, n, self.as_id, write)

    def host_ranges_many(self, gpas, sizes, write=False):
        """As VM.host_ranges_many."""
        return VM.host_ranges_many(_index_of(self), gpas, sizes, self.as_id, write)

    # -- the memory of the buffers

    def read_guest(self, gpa, n):
        """As VM.read_guest.  GuestAccessError (EFAULT) too if the snapshot has no buffer of the slot."""
        return VM.read_guest(_index_of(self), gpa, n, self.as_id)

    def readinto_guest(self, gpa, out):
        """As VM.readinto_guest.  Errors as for read_guest."""
        VM.readinto_guest(_index_of(self), gpa, out, self.as_id)

    def read_u8(self, gpa):
        """As VM.read_u8.  Errors as for read_guest."""
        return VM.read_u8(_index_of(self), gpa, self.as_id)

    def read_u16(self, gpa):
        """As VM.read_u16.  Errors as for read_guest."""
        return VM.read_u16(_index_of(self), gpa, self.as_id)

    def read_u32(self, gpa):
        """As VM.read_u32.  Errors as for read_guest."""
        return VM.read_u32(_index_of(self), gpa, self.as_id)

    def read_u64(self, gpa):
        """As VM.read_u64.  Errors as for read_guest."""
        return VM.read_u64(_index_of(self), gpa, self.as_id)

    def read_u64_many(self, gpas, out=None):
        """As VM.read_u64_many.  Errors as for read_guest."""
        return VM.read_u64_many(_index_of(self), gpas, out, self.as_id)


cdef inline Py_ssize_t _nr_rows(Snapshot snapshot) noexcept:
    return len(snapshot._rows) // sizeof(ms_memslot)


cdef inline const ms_memslot *_values(Snapshot snapshot) noexcept:
    return <const ms_memslot *>PyBytes_AS_STRING(snapshot._rows)


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
    cdef Snapshot snapshot = _state(vm, as_id)
    if snapshot._pinned is not NULL:
        _list_snapshot(snapshot, vm)
    return snapshot


cdef Snapshot _state(VM vm, uint32_t as_id):
    """A Snapshot of the engine's own rows, which need no check, and of their backings.  It is in no list."""
    cdef Snapshot snapshot = Snapshot.__new__(Snapshot)
    with ReadSection(vm):
        rows, generation = VM.memslots_array(vm, as_id), VM.generation(vm, as_id)
        _pin_backings(snapshot, vm, as_id, len(rows))
    _fill_snapshot(snapshot, rows, as_id, generation)
    return snapshot


# ---- the index -----------------------------------------------------------------------------------------------------

cdef inline VM _index_of(Snapshot snapshot):
    cdef VM index
    with cython.critical_section(snapshot):
        index = snapshot._index
    return _build_index(snapshot) if index is None else index


cdef object _build_lock(Snapshot snapshot):
    """A thread of the parent may hold the lock during a fork, so a forked child takes a new one.

    The lock is reentrant: the garbage collector can run a finalizer that uses the snapshot during its build.  Then two
    indexes are built, and one is dropped."""
    cdef object lock
    with cython.critical_section(snapshot):
        if snapshot._lock is None or snapshot._lock_pid != getpid():
            snapshot._lock, snapshot._lock_pid = threading.RLock(), getpid()
        lock = snapshot._lock
    return lock


cdef VM _build_index(Snapshot snapshot):
    """One thread builds the index, without the GIL; the others wait."""
    cdef VM index
    with _build_lock(snapshot):
        with cython.critical_section(snapshot):
            index = snapshot._index
        if index is None:
            index = _new_index(snapshot)
            with cython.critical_section(snapshot):
                snapshot._index = index
    return index


cdef VM _new_index(Snapshot snapshot):
    cdef VM index = VM(address_spaces=snapshot.as_id + 1, user_mem_slots=MS_USER_MEM_SLOTS_MAX, gpa_bits=64,
                       hva_end_max=HVA_ERR_MIN - 1)
    cdef const ms_memslot *rows = _values(snapshot)
    cdef size_t n = _nr_rows(snapshot)
    cdef ms_error err
    cdef int r
    index._of_snapshot = True
    index.index_policy = "eager"
    with nogil:
        r = ms_load_snapshot(index._vm, snapshot.as_id, rows, snapshot._pinned, n, &err)
    if r:
        raise _refusal(index, r, &err, Request())
    return index


# ---- the buffers ---------------------------------------------------------------------------------------------------

cdef int _pin_backings(Snapshot snapshot, VM vm, uint32_t as_id, size_t n) except -1:
    """Takes a reference to the backing of each of the n slots, inside the read section that has found them."""
    cdef ms_backing **backings = <ms_backing **>malloc(max(n, 1) * sizeof(ms_backing *))
    if backings is NULL:
        raise _out_of_memory()
    if ms_memslots_backings(vm._vm, as_id, backings, n) == 0:
        free(backings)
        return 0
    snapshot._pinned, snapshot._nr_pinned = backings, n
    return 0


cdef void _list_snapshot(Snapshot snapshot, VM vm) noexcept:
    """Adds a snapshot to the list of its VM.  The list has no reference to it."""
    cdef _Pin head = vm._pins
    with cython.critical_section(_lists):
        snapshot._head = head
        snapshot._after = head.snapshots
        if snapshot._after is not NULL:
            (<Snapshot>snapshot._after)._before = <void *>snapshot
        head.snapshots = <void *>snapshot


cdef void _unlist_snapshot(Snapshot snapshot) noexcept:
    with cython.critical_section(_lists):
        if snapshot._before is not NULL:
            (<Snapshot>snapshot._before)._after = snapshot._after
        elif snapshot._head is not None:
            snapshot._head.snapshots = snapshot._after
        if snapshot._after is not NULL:
            (<Snapshot>snapshot._after)._before = snapshot._before
        snapshot._before = snapshot._after = NULL


cdef void _put_backings(ms_backing **backings, size_t n) noexcept:
    cdef size_t i
    for i in range(n):
        ms_backing_put(backings[i])
    free(backings)
    _drain_released()


cdef int _unpin(Snapshot snapshot) except -1:
    """Drops the references, and the index, whose slots have references too."""
    cdef ms_backing **backings
    cdef VM index = None
    with _build_lock(snapshot):
        _unlist_snapshot(snapshot)
        with cython.critical_section(snapshot):
            backings, snapshot._pinned = snapshot._pinned, NULL
            if backings is not NULL:
                index, snapshot._index = snapshot._index, None
    if backings is not NULL:
        _put_backings(backings, snapshot._nr_pinned)
    return 0
