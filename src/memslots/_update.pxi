# SPDX-License-Identifier: MIT
# Read sections, and the steps of a change one by one.

# The rules that refuse the end of an update before it has begun.  After any other error the update has ended.
_STILL_RUNNING = frozenset((MS_RULE_HANDLE, MS_RULE_FORKED, MS_RULE_UPDATE_OWNER, MS_RULE_READ_SECTION, MS_RULE_HOOK))


@cython.final
@cython.no_gc_clear
cdef class ReadSection:
    """One read section of a VM, made by ``VM.read()``.  Its thread may enter it again before it has left."""
    cdef VM vm
    cdef uint32_t depth
    cdef uint64_t owner         # ms_thread_number() of the thread that entered; Python can reuse an ident
    cdef unsigned long thread   # the same thread's ident, to find out whether it still runs

    def __cinit__(self, VM vm not None):
        self.vm = vm

    @cython.critical_section
    def __enter__(self):
        cdef uint64_t me = ms_thread_number()
        _check_open(self.vm)
        if self.depth and self.owner != me:
            raise RuntimeError("this read section belongs to another thread; each needs its own vm.read()")
        if ms_read_lock(self.vm._vm):
            raise _out_of_memory()
        self.owner = me
        self.thread = PyThread_get_thread_ident()
        self.depth += 1
        return self.vm

    @cython.critical_section
    def __exit__(self, *exc_info):
        if not self.depth or self.owner != ms_thread_number():
            raise RuntimeError("a read section is left once, by the thread that entered it")
        self.depth -= 1
        ms_read_unlock(self.vm._vm)
        _drain_released()

    def __repr__(self):
        state = "not entered" if not self.depth else "entered once" if self.depth == 1 else f"entered {self.depth} times"
        return f"<ReadSection of {self.vm!r}: {state}>"

    def __dealloc__(self):
        if self.owner == ms_thread_number():
            for _ in range(self.depth):
                ms_read_unlock(self.vm._vm)
        elif (self.depth and self.thread != PyThread_get_thread_ident() and not _is_finalizing()
              and self.thread in sys._current_frames()):  # otherwise the thread, and with it the section, has ended
            self.vm._has_lost_section = True
            PyErr_WarnEx(ResourceWarning, b"a read section was dropped by another thread than the one that entered "
                         b"it: changes wait until the end of the thread that entered it", 1)


@cython.final
@cython.no_gc_clear
cdef class SlotHandle:
    """A slot inside an update: a member of one or both sets, or a draft.

    A handle stands for the engine's slot object, which both sets can share.  ``memslot`` copies its values."""
    cdef readonly Update update
    cdef ms_slot *_slot
    cdef uint64_t _run

    def __init__(self):
        raise TypeError("handles come from an Update")

    cdef ms_slot *_use(self, Update update) except NULL:
        """The slot, for a step of `update`.  UpdateError unless the handle comes from the present run of `update`."""
        if update is None or self.update is not update:
            raise UpdateError(errno.EINVAL, "the slot belongs to another update", rule="HANDLE")
        update._check_running()
        if self._run != update._run:
            raise UpdateError(errno.EINVAL, "the slot belongs to an earlier run of the update", rule="HANDLE")
        return self._slot

    @property
    def memslot(self):
        """The values of the slot, as a MemorySlot."""
        cdef ms_slot *slot = self._use(self.update)
        cdef ms_memslot value
        if ms_update_value(self.update._u, slot, &value):
            raise self.update._wrong_thread()
        return _slot(&value)

    def __eq__(self, other):
        cdef SlotHandle handle
        if type(other) is not SlotHandle:
            return NotImplemented
        handle = other
        return self._slot == handle._slot and self.update is handle.update and self._run == handle._run

    def __hash__(self):
        return hash((<size_t>self._slot, self._run))

    def __repr__(self):
        try:
            return f"<SlotHandle {self.memslot!r}>"
        except OSError:
            return "<SlotHandle of an update that has ended or that another thread runs>"


@cython.final
@cython.no_gc_clear
cdef class Update:
    """The steps of a change one by one, in the block of ``with vm.begin_update() as u:``.

    ``u.active`` and ``u.inactive`` are the slots of the two sets, as handles.  ``u.copy(old, **fields)`` makes a draft.
    replace, invalidate, swap and activate are the steps of KVM.

    The thread that enters the block holds the VM's lock until the end of the block.  A step in another thread raises
    ReentrantChangeError.  If the thread ends inside the block, the update is rolled back and may be entered again.

    At the end of the block the two sets must hold the same slots, none of them INVALID.  Otherwise the update is rolled
    back and raises UpdateError.  An exception in the block also rolls back, and then leaves the block.

    Only the backend "tree" has updates; others raise NotSupportedError (ENOSYS).
    """
    cdef readonly VM vm
    cdef readonly uint32_t as_id
    cdef ms_update *_u
    cdef uint64_t _run    # the number of the present `with` block; handles of an earlier block are refused
    cdef uint64_t _owner  # ms_thread_number() of the thread that entered, 0: none.  Only that thread uses _u.

    def __cinit__(self, VM vm not None, as_id=0):
        self.vm = vm
        self.as_id = _as_id(vm, as_id)

    def __repr__(self):
        state = "running" if self._owner else "not running"
        return f"<Update of address space {self.as_id} of {self.vm!r}: {state}>"

    def __dealloc__(self):
        cdef ms_update *u = self._u
        self._u = NULL
        if u is not NULL:
            with nogil:
                ms_update_abandon(u)

    cdef object _wrong_thread(self):
        return refused(errno.EBUSY, "UPDATE_OWNER", 0, None, Request(as_id=self.as_id))

    cdef int _check_running(self) except -1:
        if self._owner and self._owner != ms_thread_number():
            raise self._wrong_thread()
        if self._u is NULL:
            raise UpdateError(errno.EINVAL, "the update is not running: use it inside its with block", rule="HANDLE")
        return 0

    def __enter__(self):
        cdef ms_update *u = NULL
        cdef ms_update *abandoned
        cdef ms_error err
        cdef int r
        cdef uint32_t as_id = self.as_id
        _check_open(self.vm)
        if self._owner == ms_thread_number():
            raise UpdateError(errno.EINVAL, "the update is running already", rule="HANDLE")
        with nogil:
            r = ms_update_begin(self.vm._vm, as_id, &u, &err)
        if r:
            raise _refusal(self.vm, r, &err, Request(as_id=as_id))
        abandoned = self._u  # not NULL if its thread ended inside the block: only then could this thread get the lock
        self._u = u
        self._run += 1
        self._owner = ms_thread_number()
        if abandoned is not NULL:
            ms_update_abandon(abandoned)
        return self

    def __exit__(self, exc_type, exc, traceback):
        cdef ms_update *u
        cdef bint keep = exc_type is None
        cdef ms_error err
        cdef int r
        self._check_running()
        u = self._u
        # Cleared while this thread holds the GIL and the lock: no other thread may reach u, and as soon as the lock is
        # free, the next thread may enter this update and set both.
        self._u = NULL
        self._owner = 0
        with nogil:
            r = ms_update_end(u, keep, &err)
        if r and err.rule in _STILL_RUNNING:  # the lock is still this thread's
            self._u = u
            self._owner = ms_thread_number()
        if r:
            raise _refusal(self.vm, r, &err, Request())
        _report_hooks(self.vm)

    cdef SlotHandle _handle(self):
        """A handle without a slot.  Make it before the search for the slot: its allocation can start the garbage
        collector, which runs arbitrary code, and that code may end this run and begin another."""
        cdef SlotHandle handle = SlotHandle.__new__(SlotHandle)
        handle.update = self
        return handle

    cdef tuple _handles(self, bint active):
        cdef size_t room, i
        cdef ms_slot **slots
        cdef uint64_t run
        cdef SlotHandle handle
        cdef list handles = []
        self._check_running()
        run = self._run  # the run of the slots: the allocation of handles may run code that begins another run
        room = ms_update_slots(self._u, active, NULL, 0)
        slots = <ms_slot **>malloc((room + 1) * sizeof(ms_slot *))
        if slots is NULL:
            raise _out_of_memory()
        try:
            ms_update_slots(self._u, active, slots, room)
            for i in range(room):
                handle = self._handle()
                handle._slot = slots[i]
                handle._run = run
                handles.append(handle)
            return tuple(handles)
        finally:
            free(slots)

    @property
    def active(self):
        """The slots of the set that readers see: a tuple of handles, by ascending gfn."""
        return self._handles(True)

    @property
    def inactive(self):
        """The slots of the set that replace edits: a tuple of handles, by ascending gfn."""
        return self._handles(False)

    def find(self, id, active=True):
        """The handle of the slot with this id in the active (or inactive) set, or None."""
        cdef uint32_t number = _u32(id, "id")
        cdef bint in_active = bool(active)
        cdef SlotHandle handle = self._handle()
        self._check_running()
        handle._slot = ms_update_find(self._u, in_active, number)
        handle._run = self._run
        return handle if handle._slot is not NULL else None

    def copy(self, SlotHandle old, **fields):
        """A draft with the values of old, except for the given fields (kvm_copy_memslot()).

        fields: base_gfn and npages (pages), userspace_addr (bytes), flags, and id if old is None.  If the slot maps a buffer,
        a userspace_addr and npages outside of the buffer end the mapping.

        Logging that stays on keeps its dirty bits, also those that readers set later.  A page is identified by its host
        address: if npages or userspace_addr differ, the pages that both slots have keep their bits, and the other pages
        begin as in a new slot.  A slot without logging in between begins with a new log."""
        cdef _Draft draft
        cdef ms_slot *slot = NULL
        cdef SlotHandle handle
        cdef ms_memslot value
        cdef ms_error err
        cdef int r
        _read_draft(fields, old is None, &draft)
        handle = self._handle()
        self._check_running()
        memset(&value, 0, sizeof(value))
        if old is not None:
            slot = old._use(self)
            ms_update_value(self._u, slot, &value)
            value.flags &= 0xFFFF
        _fill_draft(&draft, &value)
        with nogil:
            r = ms_update_copy(self._u, slot, &value, &handle._slot, &err)
        if r:
            raise _refusal(self.vm, r, &err, self._request(&value))
        handle._run = self._run
        return handle

    cdef object _request(self, const ms_memslot *value):
        return Request(value.id, self.as_id, value.base_gfn << 12, value.npages << 12, value.userspace_addr,
                       value.flags)

    cdef object _place_request(self, ms_slot *new_slot):
        cdef ms_memslot value
        if new_slot is NULL or ms_update_value(self._u, new_slot, &value):
            return Request(as_id=self.as_id)
        return self._request(&value)

    cdef ms_slot *_slot_of(self, SlotHandle handle) except? NULL:
        """The slot of a handle, for a step of this update.  NULL for None."""
        return handle._use(self) if handle is not None else NULL

    def replace(self, SlotHandle old, SlotHandle new):
        """Replaces old by new in the inactive set (kvm_replace_memslot()).  old=None adds new, new=None removes old.

        UpdateError: old is not in the inactive set, or new cannot be put there.  RegionOverlapError: new overlaps
        another slot of the set."""
        cdef ms_slot *old_slot = self._slot_of(old)
        cdef ms_slot *new_slot = self._slot_of(new)
        cdef ms_error err
        cdef int r
        self._check_running()
        with nogil:
            r = ms_update_replace(self._u, old_slot, new_slot, &err)
        if r:
            raise _refusal(self.vm, r, &err, self._place_request(new_slot))
        _report_hooks(self.vm)

    def invalidate(self, SlotHandle slot not None):
        """Replaces slot by an INVALID copy in the inactive set, swaps, and runs the flush hooks
        (kvm_invalidate_memslot()).  Returns the handle of the copy, which is in the active set then.

        UpdateError: slot is not in both sets."""
        cdef SlotHandle handle = self._handle()
        cdef ms_slot *old_slot = slot._use(self)
        cdef ms_error err
        cdef int r
        with nogil:
            r = ms_update_invalidate(self._u, old_slot, &handle._slot, &err)
        if r:
            raise _refusal(self.vm, r, &err, Request())
        handle._run = self._run
        _report_hooks(self.vm)
        return handle

    def swap(self):
        """Publishes the inactive set, and waits until no reader uses the former active set
        (kvm_swap_active_memslots())."""
        cdef ms_error err
        cdef int r
        self._check_running()
        with nogil:
            r = ms_update_swap(self._u, &err)
        if r:
            raise _refusal(self.vm, r, &err, Request())
        _report_hooks(self.vm)

    def activate(self, SlotHandle old, SlotHandle new):
        """Calls swap(), and then replace(old, new) in the set that has become inactive (kvm_activate_memslot())."""
        cdef ms_slot *old_slot = self._slot_of(old)
        cdef ms_slot *new_slot = self._slot_of(new)
        cdef ms_error err
        cdef int r
        self._check_running()
        with nogil:
            r = ms_update_activate(self._u, old_slot, new_slot, &err)
        if r:
            raise _refusal(self.vm, r, &err, self._place_request(new_slot))
        _report_hooks(self.vm)


cdef struct _Draft:  # the given fields of a draft
    bint has_id, has_base_gfn, has_npages, has_userspace_addr, has_flags
    ms_memslot value


cdef int _read_draft(dict fields, bint with_id, _Draft *draft) except -1:
    """Reads the fields.  Call it before any use of the update: an __index__ is code of the caller, which may end it."""
    memset(draft, 0, sizeof(_Draft))
    for name, number in fields.items():
        if name == "base_gfn":
            draft.value.base_gfn, draft.has_base_gfn = _u64(number, name), True
        elif name == "npages":
            draft.value.npages, draft.has_npages = _u64(number, name), True
        elif name == "userspace_addr":
            draft.value.userspace_addr, draft.has_userspace_addr = _u64(number, name), True
        elif name == "flags":
            draft.value.flags, draft.has_flags = _u32(number, name), True
        elif name == "id" and with_id:
            draft.value.id, draft.has_id = _u32(number, name), True
        else:
            raise TypeError(f"copy() got an unexpected field {name!r}")
    return 0


cdef void _fill_draft(const _Draft *draft, ms_memslot *value) noexcept:
    """Copies the given fields to *value.  Creates no Python object: no garbage collection may run between the checks of
    the update and the step."""
    if draft.has_id:
        value.id = draft.value.id
    if draft.has_base_gfn:
        value.base_gfn = draft.value.base_gfn
    if draft.has_npages:
        value.npages = draft.value.npages
    if draft.has_userspace_addr:
        value.userspace_addr = draft.value.userspace_addr
    if draft.has_flags:
        value.flags = draft.value.flags
