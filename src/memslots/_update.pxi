# SPDX-License-Identifier: MIT
# Read sections, and the dual-set steps one by one.

@cython.final
@cython.no_gc_clear
cdef class ReadSection:
    """One read section of a VM, made by ``VM.read()``; may be entered again inside itself."""
    cdef VM vm
    cdef uint32_t depth
    cdef unsigned long thread

    def __cinit__(self, VM vm not None):
        self.vm = vm

    def __enter__(self):
        cdef unsigned long me = PyThread_get_thread_ident()
        _check_open(self.vm)
        if self.depth and self.thread != me:
            raise RuntimeError("this read section belongs to another thread; each needs its own vm.read()")
        if ms_read_lock(self.vm._vm):
            raise _out_of_memory()
        self.thread = me
        self.depth += 1
        return self.vm

    def __exit__(self, *exc_info):
        if not self.depth or self.thread != PyThread_get_thread_ident():
            raise RuntimeError("a read section is left once, by the thread that entered it")
        self.depth -= 1
        ms_read_unlock(self.vm._vm)

    def __dealloc__(self):
        if self.thread == PyThread_get_thread_ident():
            for _ in range(self.depth):
                ms_read_unlock(self.vm._vm)


@cython.final
@cython.no_gc_clear
cdef class SlotHandle:
    """A slot inside an update: one of a set, or a draft.  No MemorySlot: it is the object that the sets share."""
    cdef readonly Update update
    cdef ms_slot *_slot

    def __init__(self):
        raise TypeError("handles come from an Update")

    cdef ms_slot *_use(self, Update update) except NULL:
        if self.update is not update:
            raise UpdateError(errno.EINVAL, "the slot belongs to another update", rule="HANDLE")
        update._check_running()
        return self._slot

    @property
    def memslot(self):
        """The values, as a MemorySlot."""
        cdef ms_memslot value
        ms_update_value(self.update._u, self._use(self.update), &value)
        return _slot(&value)

    def __eq__(self, other):
        if type(other) is not SlotHandle:
            return NotImplemented
        return self._slot == (<SlotHandle>other)._slot and self.update is (<SlotHandle>other).update

    def __hash__(self):
        return hash(<size_t>self._slot)

    def __repr__(self):
        if self.update._u is NULL:
            return "<SlotHandle of an update that has ended>"
        return f"<SlotHandle {self.memslot!r}>"


@cython.final
@cython.no_gc_clear
cdef class Update:
    """The steps of a change one by one, between ``with vm.begin_update() as u:`` and its end.

    The VM's lock is held meanwhile, by the thread that entered.  ``u.active`` and ``u.inactive`` are the slots of the
    two sets, as handles; ``u.copy(old, **fields)`` makes a draft; replace, invalidate, swap and activate are KVM's.
    Leaving with the two sets alike keeps what was done; leaving with them different, or with an INVALID slot, or by
    an exception, rolls back, and raises UpdateError or lets the exception go on.  Tree backend only.
    """
    cdef readonly VM vm
    cdef readonly uint32_t as_id
    cdef ms_update *_u

    def __cinit__(self, VM vm not None, uint32_t as_id):
        self.vm = vm
        self.as_id = as_id

    def __dealloc__(self):
        cdef ms_error err
        if self._u is not NULL:
            with nogil:
                ms_update_end(self._u, False, &err)

    cdef int _check_running(self) except -1:
        if self._u is NULL:
            raise UpdateError(errno.EINVAL, "the update is not running: use it inside its with block", rule="HANDLE")
        return 0

    cdef int _raise(self, int r, const ms_error *err, object request) except -1:
        if r:
            raise _refusal(self.vm, r, err, request)
        if self.vm._raised:
            _report_hooks(self.vm)
        return 0

    def __enter__(self):
        cdef ms_error err
        cdef int r
        cdef uint32_t as_id = self.as_id
        _check_open(self.vm)
        if self._u is not NULL:
            raise UpdateError(errno.EINVAL, "the update is running already", rule="HANDLE")
        with nogil:
            r = ms_update_begin(self.vm._vm, as_id, &self._u, &err)
        self._raise(r, &err, Request(as_id=as_id))
        return self

    def __exit__(self, exc_type, exc, traceback):
        cdef ms_update *u = self._u
        cdef bint keep = exc_type is None
        cdef ms_error err
        cdef int r
        self._check_running()
        with nogil:
            r = ms_update_end(u, keep, &err)
        if r == 0 or err.rule == MS_RULE_SETS_DIFFER:
            self._u = NULL
        self._raise(r, &err, Request())

    cdef SlotHandle _handle(self, ms_slot *slot):
        cdef SlotHandle handle = SlotHandle.__new__(SlotHandle)
        handle.update = self
        handle._slot = slot
        return handle

    cdef tuple _handles(self, bint active):
        cdef size_t room, i
        cdef ms_slot **slots
        self._check_running()
        room = ms_update_slots(self._u, active, NULL, 0)
        slots = <ms_slot **>malloc((room + 1) * sizeof(ms_slot *))
        if slots is NULL:
            raise _out_of_memory()
        try:
            ms_update_slots(self._u, active, slots, room)
            return tuple([self._handle(slots[i]) for i in range(room)])
        finally:
            free(slots)

    @property
    def active(self):
        """The slots that readers see, as handles by ascending gfn."""
        return self._handles(True)

    @property
    def inactive(self):
        """The slots of the set that replace edits, as handles by ascending gfn."""
        return self._handles(False)

    def find(self, id, active=True):
        """The handle of the slot with this id in the active (or inactive) set, or None."""
        cdef ms_slot *slot
        self._check_running()
        slot = ms_update_find(self._u, bool(active), _u32(id, "id"))
        return self._handle(slot) if slot is not NULL else None

    def copy(self, SlotHandle old, **fields):
        """A draft with the values of old but for the fields given: base_gfn, npages, userspace_addr, flags, and id
        where old is None (kvm_copy_memslot()).  Logging that goes on keeps its bitmap."""
        cdef ms_memslot value
        cdef ms_slot *slot = NULL
        cdef ms_slot *draft
        cdef ms_error err
        cdef int r
        self._check_running()
        memset(&value, 0, sizeof(value))
        if old is not None:
            slot = old._use(self)
            ms_update_value(self._u, slot, &value)
            value.flags &= 0xFFFF
        self._take_fields(&value, fields, old is None)
        with nogil:
            r = ms_update_copy(self._u, slot, &value, &draft, &err)
        self._raise(r, &err, Request(value.id, self.as_id, value.base_gfn << 12, value.npages << 12,
                                     value.userspace_addr, value.flags))
        return self._handle(draft)

    cdef int _take_fields(self, ms_memslot *value, dict fields, bint with_id) except -1:
        for name, number in fields.items():
            if name == "base_gfn":
                value.base_gfn = _u64(number, name)
            elif name == "npages":
                value.npages = _u64(number, name)
            elif name == "userspace_addr":
                value.userspace_addr = _u64(number, name)
            elif name == "flags":
                value.flags = _u32(number, name)
            elif name == "id" and with_id:
                value.id = _u32(number, name)
            else:
                raise TypeError(f"copy() got an unexpected field {name!r}")
        return 0

    cdef object _request(self, SlotHandle new):
        cdef ms_memslot value
        if new is None:
            return Request(as_id=self.as_id)
        ms_update_value(self._u, new._slot, &value)
        return Request(value.id, self.as_id, value.base_gfn << 12, value.npages << 12, value.userspace_addr,
                       value.flags)

    def replace(self, SlotHandle old, SlotHandle new):
        """Puts new where old is in the inactive set; None for old adds, None for new removes
        (kvm_replace_memslot()).  UpdateError if a slot is not where it must be, RegionOverlapError."""
        cdef ms_slot *old_slot = old._use(self) if old is not None else NULL
        cdef ms_slot *new_slot = new._use(self) if new is not None else NULL
        cdef ms_error err
        cdef int r
        self._check_running()
        with nogil:
            r = ms_update_replace(self._u, old_slot, new_slot, &err)
        self._raise(r, &err, self._request(new))

    def invalidate(self, SlotHandle slot not None):
        """Replaces slot by an INVALID copy in the inactive set, swaps, runs flush; returns the copy, which is active
        now (kvm_invalidate_memslot())."""
        cdef ms_slot *old_slot = slot._use(self)
        cdef ms_slot *inv
        cdef ms_error err
        cdef int r
        with nogil:
            r = ms_update_invalidate(self._u, old_slot, &inv, &err)
        self._raise(r, &err, Request())
        return self._handle(inv)

    def swap(self):
        """Publishes the inactive set and waits until no reader uses the other (kvm_swap_active_memslots())."""
        cdef ms_error err
        cdef int r
        self._check_running()
        with nogil:
            r = ms_update_swap(self._u, &err)
        self._raise(r, &err, Request())

    def activate(self, SlotHandle old, SlotHandle new):
        """swap(), then replace(old, new) in the set that has become inactive (kvm_activate_memslot())."""
        cdef ms_slot *old_slot = old._use(self) if old is not None else NULL
        cdef ms_slot *new_slot = new._use(self) if new is not None else NULL
        cdef ms_error err
        cdef int r
        self._check_running()
        with nogil:
            r = ms_update_activate(self._u, old_slot, new_slot, &err)
        self._raise(r, &err, self._request(new))
