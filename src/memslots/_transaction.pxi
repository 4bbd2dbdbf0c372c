# SPDX-License-Identifier: MIT
# Transactions: any changes of one address space as one.  VM.transaction() collects steps; apply() and restore() make
# them of a comparison (layout/).  All end in ms_change_memslots().

_STEP_NAMES = ("create", "delete", "move", "set_flags", "resize", "split", "merge", "punch", "set_flags")


# ---- lists of steps: each step has a reference to its backing ---------------------------------------------------------

cdef enum: FEW_STEPS = 4

cdef struct _Steps:
    ms_step few[FEW_STEPS]  # the steps, while there is no array: a short list needs no allocation
    ms_step *array          # or NULL
    size_t n
    size_t room             # of the array


cdef inline ms_step *_items(_Steps *steps) noexcept:
    return &steps.few[0] if steps.array is NULL else steps.array


cdef inline size_t _room(const _Steps *steps) noexcept:
    return FEW_STEPS if steps.array is NULL else steps.room


cdef int _reserve_steps(_Steps *steps, size_t more) except -1:
    """Makes room for `more` steps.  Pointers to steps are invalid afterwards."""
    cdef size_t room = max(2 * _room(steps), steps.n + more, <size_t>16)
    cdef ms_step *array
    if steps.n + more <= _room(steps):
        return 0
    array = <ms_step *>realloc(steps.array, room * sizeof(ms_step))
    if array is NULL:
        raise _out_of_memory()
    if steps.array is NULL:
        memcpy(array, steps.few, steps.n * sizeof(ms_step))
    steps.array, steps.room = array, room
    return 0


cdef int _add_step(_Steps *steps, const ms_step *step) except -1:
    """Takes over the caller's reference to the backing, also if it fails."""
    if steps.n == _room(steps):
        try:
            _reserve_steps(steps, 1)
        except BaseException:
            ms_backing_put(step.backing)
            raise
    _items(steps)[steps.n] = step[0]
    steps.n += 1
    return 0


cdef void _drop_steps(_Steps *steps) noexcept:
    """Afterwards the list is empty, and can be dropped again."""
    cdef ms_step *items = _items(steps)
    cdef size_t i
    for i in range(steps.n):
        if items[i].backing is not NULL:
            ms_backing_put(items[i].backing)
    free(steps.array)
    steps.array, steps.n = NULL, 0
    _drain_released()


# ---- the slots that steps name -------------------------------------------------------------------------------------

cdef list _resolved(VM vm, uint32_t as_id, const ms_step *steps, size_t n, ms_error *err, int *result):
    """A list of (MemorySlot, its last step) for each slot that the steps name.  An ended slot has 0 pages.

    None if the engine refuses: *result is its errno then."""
    cdef size_t room = n + 16, nr = 0, i
    cdef ms_resolved *found
    while True:
        found = <ms_resolved *>malloc(room * sizeof(ms_resolved))
        if found is NULL:
            raise _out_of_memory()
        try:
            with nogil:
                result[0] = ms_resolve_steps(vm._vm, as_id, steps, n, found, room, &nr, err)
            if result[0]:
                return None
            if nr <= room:
                return [(_slot(&found[i].value), found[i].step) for i in range(nr)]
            room = nr
        finally:
            free(found)


# ---- refusals ------------------------------------------------------------------------------------------------------

cdef object _values_request(MemorySlot slot):
    return Request(slot.id, slot.as_id, slot.gpa, slot.size, slot.userspace_addr, slot._value.flags)


cdef object _placed_request(list resolved, size_t index, const ms_memslot *other):
    """The slot to which step `index` has given its place: the one that overlaps `other`, or the highest one.  Or None."""
    cdef list placed = [slot for slot, step in resolved if step == index and slot.npages]
    cdef list hit = [slot for slot in placed if slot.id != other.id and slot.base_gfn < other.base_gfn + other.npages
                     and other.base_gfn < slot.base_gfn + slot.npages]
    return _values_request(max(hit or placed)) if placed else None


cdef object _newest(VM vm, uint32_t as_id, list resolved, uint32_t id):
    """The slot that has the id after the resolved steps, or None."""
    for slot, _ in reversed(resolved):
        if slot.id == id:
            return slot if slot.npages else None
    return VM.id_to_memslot(vm, id, as_id)


cdef object _value_request(VM vm, uint32_t as_id, const ms_step *step, list before):
    """The arguments of a step that is refused for its values.  An argument that the step does not have is that of its slot."""
    cdef object slot = _newest(vm, as_id, before, step.slot) if step.kind != MS_STEP_PUNCH else None
    cdef object id = step.slot
    cdef bint has_place = step.kind in (MS_STEP_CREATE, MS_STEP_MOVE, MS_STEP_SPLIT, MS_STEP_PUNCH)
    cdef bint has_size = step.kind in (MS_STEP_CREATE, MS_STEP_RESIZE, MS_STEP_PUNCH)
    cdef object gpa = 0, size = 0, hva = step.userspace_addr if step.kind == MS_STEP_CREATE else 0
    cdef object flags = step.flags
    if slot is not None and step.kind != MS_STEP_CREATE:
        gpa, size, hva = slot.gpa, slot.size, slot.userspace_addr
        if step.kind == MS_STEP_CHANGE_FLAGS:
            flags = slot.flags & ~step.other | step.flags
        elif step.kind != MS_STEP_SET_FLAGS:
            flags = slot.flags
    if step.kind == MS_STEP_PUNCH or id == MS_SLOT_ANY:
        id = None
    return Request(id, as_id, step.guest_phys_addr if has_place else gpa, step.memory_size if has_size else size, hva,
                   int(flags), value=step.kind, is_hole=step.kind == MS_STEP_PUNCH)


cdef object _other_request(VM vm, uint32_t as_id, const ms_step *step, ms_rule rule, object request):
    """The same request for the other id of a step, if the rule refuses that one."""
    cdef bint makes = step.kind == MS_STEP_SPLIT or step.kind == MS_STEP_PUNCH
    cdef bint is_other = False
    if rule == MS_RULE_DUPLICATE_ID:
        is_other = makes
    elif rule == MS_RULE_NO_SUCH_SLOT:
        is_other = step.kind == MS_STEP_MERGE and bool(request.memory_size)
    elif rule == MS_RULE_SLOT_ID:
        is_other = makes or step.kind == MS_STEP_MERGE and step.slot < _config(vm).user_mem_slots
    return request._replace(slot=step.other, is_hole=False) if is_other else request


cdef object _step_request(VM vm, uint32_t as_id, _Steps *steps, const ms_error *err):
    """The slot of a refused step as the step would make it.

    The engine looks again, so another thread's change in between can lead to numbers of that change."""
    cdef ms_error unused
    cdef int r = 0
    cdef size_t index = err.index
    cdef const ms_step *items = _items(steps)
    cdef list resolved = _resolved(vm, as_id, items, steps.n, &unused, &r)
    cdef object request = None
    if resolved is not None:
        request = _placed_request(resolved, index, &err.other)
    if request is None:
        resolved = _resolved(vm, as_id, items, index, &unused, &r)
        request = _value_request(vm, as_id, &items[index], resolved or [])
        request = _other_request(vm, as_id, &items[index], err.rule, request)
    return request


cdef object _steps_refusal(VM vm, int r, const ms_error *err, uint32_t as_id, _Steps *steps):
    """The exception for a refused list of steps.  It names the step."""
    cdef list raised = _raised_by(vm, err)  # taken first, as in _load_refusal()
    cdef object error, where = ""
    cdef uint32_t kind
    if err.rule in _NOT_LOCKED or err.index >= steps.n:
        return _refusal(vm, r, err, Request(as_id=as_id), "", raised)
    kind = _items(steps)[err.index].kind
    if kind < len(_STEP_NAMES):
        where = f" ({_STEP_NAMES[kind]})"
    where = f"step {err.index}{where}: "
    if err.rule == MS_RULE_LISTENER_REFUSED and r == -ECANCELED:
        error = _refusal(vm, r, err, Request(), where, raised)
        error.add_note(f"{where}a listener refused this change; nothing was changed")
        return error
    error = _refusal(vm, r, err, _step_request(vm, as_id, steps, err), where, raised)
    error.step = err.index
    return error


# ---- changes by comparison: for layout/ ------------------------------------------------------------------------------

cdef object _apply_layout = None, _restore_layout = None


def _use_layout(apply_layout, restore_layout):
    """The package calls it at its import: the functions are of a higher layer."""
    global _apply_layout, _restore_layout
    _apply_layout, _restore_layout = apply_layout, restore_layout


@cython.final
cdef class _Backings:
    """References to the backings of the slots of a Snapshot, in the order of their rows."""
    cdef ms_backing **items  # NULL: no row has one
    cdef size_t n

    def __dealloc__(self):
        _put_backings(self.items, self.n if self.items is not NULL else 0)

    def numbers(self):
        """A number for each row, equal for equal backings; 0: none.  None if no row has a backing."""
        cdef cnp.ndarray result
        if self.items is NULL:
            return None
        result = np.empty(self.n, dtype=np.uint64)
        memcpy(cnp.PyArray_DATA(result), self.items, self.n * sizeof(ms_backing *))
        return result


cdef _Backings _backings_of_snapshot(Snapshot snapshot):
    """References of their own: another thread may close the snapshot."""
    cdef _Backings backings = _Backings.__new__(_Backings)
    cdef ms_backing **items
    cdef size_t i, n
    with _build_lock(snapshot):
        if snapshot._pinned is NULL:
            return backings
        n = snapshot._nr_pinned
        items = <ms_backing **>malloc(max(n, 1) * sizeof(ms_backing *))
        if items is NULL:
            raise _out_of_memory()
        for i in range(n):
            items[i] = snapshot._pinned[i]
            if items[i] is not NULL:
                ms_backing_get(items[i])
    backings.items, backings.n = items, n
    return backings


def _backings_in(Snapshot snapshot not None):
    """The _Backings of a Snapshot."""
    return _backings_of_snapshot(snapshot)


cdef int _add_rows(_Steps *steps, object rows, _Backings backings, object places) except -1:
    """Adds the steps of an array of STEP_DTYPE.  A step k with places[k] >= 0 gets that backing."""
    cdef const uint64_t[:] gpa = rows["guest_phys_addr"], size = rows["memory_size"], hva = rows["userspace_addr"]
    cdef const uint32_t[:] kind = rows["kind"], slot = rows["slot"], other = rows["other"], flags = rows["flags"]
    cdef const int64_t[:] place = np.full(len(rows), -1) if places is None else np.asarray(places, dtype=np.int64)
    cdef ms_step step
    cdef size_t i
    _reserve_steps(steps, len(rows))
    for i in range(<size_t>len(rows)):
        step = ms_step(kind[i], slot[i], other[i], flags[i], gpa[i], size[i], hva[i], NULL)
        if 0 <= place[i] < <int64_t>backings.n and backings.items[place[i]] is not NULL:
            step.backing = ms_backing_get(backings.items[place[i]])
        _add_step(steps, &step)
    return 0


cdef bint _carry_out(VM vm, uint32_t as_id, _Steps *steps, object generation) except -1:
    """Carries out steps.  False if the address space has another generation; nothing has changed then."""
    cdef ms_error err
    cdef uint64_t wanted = 0 if generation is None else generation
    cdef bint any_generation = generation is None
    cdef const ms_step *items = _items(steps)
    cdef int r
    err.index = 0xFFFFFFFF
    err.rule = MS_RULE_NONE
    with nogil:
        if any_generation:
            r = ms_change_memslots(vm._vm, as_id, items, steps.n, &err)
        else:
            r = ms_change_memslots_at(vm._vm, as_id, wanted, items, steps.n, &err)
    if r == -errno.EAGAIN and err.rule == MS_RULE_NONE:
        return False
    if r:
        raise _steps_refusal(vm, r, &err, as_id, steps)
    return True


# ---- Transaction ---------------------------------------------------------------------------------------------------

cdef enum _Stage:
    NOT_MADE
    NOT_BEGUN
    COLLECTS
    HAS_ENDED


@cython.final
@cython.no_gc_clear
@cython.freelist(8)
cdef class Transaction:
    """Changes that take effect as one, in the block of ``with vm.transaction() as t:``.  ``VM.transaction()`` makes it.

    The methods collect steps; nothing happens before the end of the block.  The end carries all of them out with one swap:
    readers see the state before or the state after, never an INVALID slot, and no hole that neither state has.  If a step
    is refused, nothing changes, and the exception has the number of the step as ``.step``.  An exception inside the block
    drops all steps.

    A step finds the slot that has its id after the steps before it.  Places are checked for the final state only: two
    slots may trade places, and a slot may take the place of one that a step deletes.

    No lock is held inside the block.  Changes of other threads go on, also other transactions, and the end checks the
    steps against the state at that moment.  The end waits and raises exceptions as a change does: not inside a read
    section, a hook or an update.

    A transaction runs once.  Only one thread at a time may use it.
    """
    cdef readonly VM vm
    cdef readonly uint32_t as_id
    cdef _Steps _steps  # after the end only its call reads them
    cdef dict _used     # or None; whether an id is in use after the steps; for other ids the VM knows
    cdef object _low    # no id below it is free after the steps; None: the VM has not been looked at
    cdef _Stage _stage
    cdef bint _in_call  # a call reads the steps without the GIL

    def __init__(self, VM vm not None, as_id=0):
        _make_transaction(self, vm, as_id)

    def __dealloc__(self):
        _drop_steps(&self._steps)

    def __reduce__(self):
        raise TypeError("a Transaction cannot be pickled or copied")

    def __enter__(self):
        if self._stage == NOT_MADE:
            raise RuntimeError("the transaction has no VM: Transaction.__init__() was not called; vm.transaction() makes one")
        if self._stage != NOT_BEGUN:
            raise RuntimeError("a transaction runs once; vm.transaction() makes a new one")
        _check_open(self.vm)
        self._stage = COLLECTS
        return self

    def __exit__(self, exc_type=None, exc=None, traceback=None):
        with cython.critical_section(self):
            if self._stage != COLLECTS:
                raise RuntimeError("the transaction has ended, or has not begun")
            self._check()
            self._stage = HAS_ENDED
        try:
            if exc_type is None:
                _carry_out(self.vm, self.as_id, &self._steps, None)
        finally:
            _drop_steps(&self._steps)
        if exc_type is None:
            _report_hooks(self.vm)

    def __len__(self):
        """The number of steps that are collected; 0 after the end."""
        return 0 if self._stage == HAS_ENDED else self._steps.n

    def __bool__(self):
        return True

    def __repr__(self):
        state = ("not made", "not begun", "collects", "ended")[self._stage]
        return f"<Transaction in address space {self.as_id}: {state}, {len(self)} steps>"

    cdef int _append(self, const ms_step *step) except -1:
        """Takes over the caller's reference to the backing."""
        with cython.critical_section(self):
            if self._stage != COLLECTS or self._in_call:
                ms_backing_put(step.backing)
                self._check()
            _add_step(&self._steps, step)
        return 0

    cdef int _begin_use(self) except -1:
        """Before a call that reads the steps without the GIL."""
        with cython.critical_section(self):
            self._check()
            self._in_call = True
        return 0

    cdef int _check(self) except -1:
        if self._in_call:
            raise RuntimeError("another thread uses the transaction")
        if self._stage != COLLECTS:
            raise RuntimeError("the transaction has ended" if self._stage == HAS_ENDED else
                               "steps are collected inside of `with vm.transaction() as t:`")
        return 0

    cdef bint _in_use(self, uint32_t id) except -1:
        cdef ms_memslot unused
        known = None if self._used is None else self._used.get(id)
        if known is not None:
            return known
        return ms_id_to_memslot(self.vm._vm, self.as_id, id, &unused) == 0

    cdef uint32_t _lowest_free(self) except? 0xDEAD:
        """The lowest id that is free after the steps, as far as the VM is known now."""
        cdef uint32_t end = _config(self.vm).user_mem_slots, low = 0
        low = 0 if self._low is None else self._low
        while low < end and self._in_use(low):
            low += 1
        self._low = low
        if low >= end:
            error = refused(errno.ENOSPC, "NO_FREE_SLOT", end, None, Request(as_id=self.as_id),
                            f"step {self._steps.n}: ")
            error.step = self._steps.n
            raise error
        return low

    cdef uint32_t _new_id(self, object slot, str name) except? 0xDEAD:
        cdef uint32_t id
        if slot is None:
            return self._lowest_free()
        id = _u32(slot, name)
        if id == MS_SLOT_ANY:
            raise refused(errno.EINVAL, "SLOT_ID", _config(self.vm).user_mem_slots, None, Request(id, self.as_id))
        return id

    cdef int _use_id(self, uint32_t id, bint used) except -1:
        if self._used is None:
            self._used = {}
        self._used[id] = used
        if not used and self._low is not None and id < self._low:
            self._low = id
        return 0

    def create(self, slot=None, *, guest_phys_addr, memory_size, userspace_addr=0, flags=0):
        """Creates a slot, as set_user_memory_region() does, and returns its id.

        slot: an id that is free after the steps so far, or None for the lowest one.  After a delete of the same id it is
        a new slot with a new dirty log.  There is no guest_memfd in a transaction."""
        cdef ms_step step = ms_step(MS_STEP_CREATE, 0, 0, _u32(flags, "flags"), _u64(guest_phys_addr, "guest_phys_addr"),
                                    _u64(memory_size, "memory_size"), _u64(userspace_addr, "userspace_addr"), NULL)
        self._check()
        step.slot = self._new_id(slot, "slot")
        self._check()  # the argument's __index__ may have ended the transaction
        self._append(&step)
        self._use_id(step.slot, True)
        return step.slot

    def map_buffer(self, gpa, buffer, *, slot=None, readonly=False, log_dirty=False):
        """Creates a slot of the memory of a buffer, as VM.map_buffer(), and returns its Mapping.

        The Mapping is valid from the end of the transaction on.  The buffer is in use from this call on; if the
        transaction does not take effect, it is released at its end."""
        cdef ms_step step = ms_step(MS_STEP_CREATE, 0, 0, 0, _u64(gpa, "gpa"), 0, 0, NULL)
        cdef Mapping mapping = Mapping.__new__(Mapping, _maker)
        cdef _Pin pin
        step.flags = MS_MEM_READONLY if _flag(readonly, "readonly") else 0
        step.flags |= MS_MEM_LOG_DIRTY_PAGES if _flag(log_dirty, "log_dirty") else 0
        self._check()
        pin = _pin(buffer, step.flags & MS_MEM_READONLY)
        step.slot = self._new_id(slot, "slot")
        self._check()
        step.memory_size = pin.buffer.len
        step.userspace_addr = <uint64_t>pin.buffer.buf
        if ms_backing_create(pin.buffer.buf, pin.buffer.len, MS_BACKING_READONLY if pin.buffer.readonly else 0, _released,
                             &pin.release, &step.backing):
            raise _out_of_memory()
        _add_pin(self.vm, pin)
        self._append(&step)
        self._use_id(step.slot, True)
        mapping.vm, mapping.as_id, mapping.slot = self.vm, self.as_id, step.slot
        mapping._release, mapping._serial = &pin.release, pin.release.serial
        return mapping

    def delete(self, slot):
        """Deletes a slot."""
        cdef ms_step step = ms_step(MS_STEP_DELETE, _u32(slot, "slot"), 0, 0, 0, 0, 0, NULL)
        self._append(&step)
        self._use_id(step.slot, False)

    def move(self, slot, gpa):
        """Moves a slot to another guest physical address."""
        cdef ms_step step = ms_step(MS_STEP_MOVE, _u32(slot, "slot"), 0, 0, _u64(gpa, "gpa"), 0, 0, NULL)
        self._append(&step)

    def set_flags(self, slot, *, set=0, clear=0):
        """Clears the flags ``clear`` of a slot and then sets the flags ``set``, as VM.set_flags().

        The other flags are those that the slot has at the end of the block."""
        cdef ms_step step = ms_step(MS_STEP_CHANGE_FLAGS, _u32(slot, "slot"), _u32(clear, "clear"), _u32(set, "set"), 0, 0,
                                    0, NULL)
        self._append(&step)

    def resize(self, slot, npages):
        """Gives a slot another number of pages.  It gains or loses them at its end; all else stays.

        The pages that stay keep their dirty bits.  A slot of map_buffer() cannot exceed its buffer."""
        cdef ms_step step = ms_step(MS_STEP_RESIZE, _u32(slot, "slot"), 0, 0, 0, 0, 0, NULL)
        cdef uint64_t pages = _u64(npages, "npages")
        self._check()
        if pages > MS_MEM_MAX_NR_PAGES:
            raise refused(errno.EINVAL, "NPAGES", MS_MEM_MAX_NR_PAGES, None,
                          Request(step.slot, self.as_id, memory_size=pages << 12 if pages < 2**52 else int(pages) * 4096))
        step.memory_size = pages << 12
        self._append(&step)

    def split(self, slot, gpa, new_id=None):
        """Splits a slot in two at the guest physical address gpa, and returns the id of the second part.

        The first part keeps the id.  new_id: an id that is free after the steps so far, or None for the lowest one.  Dirty
        bits and the buffer follow the pages."""
        cdef ms_step step = ms_step(MS_STEP_SPLIT, _u32(slot, "slot"), 0, 0, _u64(gpa, "gpa"), 0, 0, NULL)
        self._check()
        step.other = self._new_id(new_id, "new_id")
        self._check()
        self._append(&step)
        self._use_id(step.other, True)
        return step.other

    def merge(self, slot, other):
        """Joins two neighbours: slot keeps its id and gets the pages of other, which ends.

        They must be neighbours in guest and in host memory, in the same order, with the same flags and the same buffer, or
        none.  Dirty bits follow their pages."""
        cdef ms_step step = ms_step(MS_STEP_MERGE, _u32(slot, "slot"), _u32(other, "other"), 0, 0, 0, 0, NULL)
        self._append(&step)
        if step.slot != step.other:
            self._use_id(step.other, False)

    def punch(self, gpa, n):
        """Removes n bytes from gpa on from each slot that has some of them.  Returns the ids of the new slots.

        The pages below the hole keep the id of their slot; so do those above it, if none are below.  If the hole is inside
        of a slot, the pages above it become a new slot with the lowest free id."""
        cdef ms_step step = ms_step(MS_STEP_PUNCH, 0, MS_SLOT_ANY, 0, _u64(gpa, "gpa"), _u64(n, "n"), 0, NULL)
        cdef ms_error err
        cdef int r = 0
        cdef list resolved, new
        self._check()
        self._append(&step)
        self._begin_use()
        try:
            err.index, err.rule = 0xFFFFFFFF, MS_RULE_NONE
            resolved = _resolved(self.vm, self.as_id, _items(&self._steps), self._steps.n, &err, &r)
            if resolved is None:
                raise _steps_refusal(self.vm, r, &err, self.as_id, &self._steps)
            new = [slot.id for slot, at in resolved
                   if at == self._steps.n - 1 and slot.npages and not self._in_use(slot.id)]
        except BaseException:
            self._steps.n -= 1
            raise
        finally:
            self._in_call = False
        if len(new) == 1:
            _items(&self._steps)[self._steps.n - 1].other = new[0]
        for slot, _ in resolved:
            self._use_id(slot.id, slot.npages > 0)
        return new

    def preview(self):
        """The Snapshot that the end would publish now.  It refuses what the end would refuse, except for listeners."""
        self._begin_use()
        try:
            return _preview(self.vm, self.as_id, &self._steps)
        finally:
            self._in_call = False

    def diff(self):
        """The Diff from the present slots of the VM to preview()."""
        cdef Snapshot now, then
        self._check()
        while True:
            now, then = _snapshot(self.vm, self.as_id), self.preview()
            if now.generation == then.generation:
                return now.diff(then)


cdef int _make_transaction(Transaction t, VM vm, object as_id) except -1:
    cdef uint32_t space = _as_id(vm, as_id)
    with cython.critical_section(t):
        if t._stage != NOT_MADE:
            raise RuntimeError("a transaction is made once; vm.transaction() makes a new one")
        t.vm, t.as_id, t._stage = vm, space, NOT_BEGUN
    return 0


cdef Snapshot _preview(VM vm, uint32_t as_id, _Steps *steps):
    cdef const ms_step *items = _items(steps)
    cdef ms_preview preview
    cdef ms_error err
    cdef int r
    preview.room = ms_nr_memslots(vm._vm) + 2 * steps.n
    while True:
        rows = np.zeros(preview.room, dtype=MEMSLOT_DTYPE)
        preview.rows = <ms_memslot *>cnp.PyArray_DATA(rows)
        preview.backings = <ms_backing **>malloc(max(preview.room, 1) * sizeof(ms_backing *))
        if preview.backings is NULL:
            raise _out_of_memory()
        err.index, err.rule, preview.nr = 0xFFFFFFFF, MS_RULE_NONE, 0
        with nogil:
            r = ms_preview_memslots(vm._vm, as_id, items, steps.n, &preview, &err)
        if r == 0 and preview.nr <= preview.room:
            return _snapshot_of(vm, as_id, rows, &preview)
        free(preview.backings)
        if r:
            raise _steps_refusal(vm, r, &err, as_id, steps)
        preview.room = preview.nr


cdef Snapshot _snapshot_of(VM vm, uint32_t as_id, object rows, ms_preview *preview):
    """Takes over the references."""
    cdef Snapshot snapshot
    cdef _Backings backings = None
    cdef size_t i
    try:
        backings = _Backings.__new__(_Backings)
    finally:
        if backings is None:
            _put_backings(preview.backings, preview.nr)
    backings.items, backings.n = preview.backings, preview.nr
    snapshot = Snapshot.__new__(Snapshot)
    _fill_snapshot(snapshot, rows[:preview.nr], as_id, preview.generation)
    for i in range(backings.n):
        if backings.items[i] is not NULL:
            snapshot._pinned, snapshot._nr_pinned, backings.items = backings.items, backings.n, NULL
            _list_snapshot(snapshot, vm)
            break
    return snapshot


# ---- a VM of a snapshot --------------------------------------------------------------------------------------------

cdef int _refuse_invalid(Snapshot snapshot) except -1:
    """A snapshot of the middle of a change, which a hook or another thread has taken, has INVALID slots."""
    rows = snapshot.array
    invalid = np.flatnonzero(rows["flags"] & np.uint32(MemFlag.INVALID))
    if invalid.size:
        row = rows[invalid[0]]
        raise InvalidRegionError(errno.EINVAL, f"slot {row['id']} of the snapshot is INVALID: the snapshot is of the middle "
                                 "of a change, perhaps of another thread; take another one, outside of hooks and updates",
                                 int(row["id"]), None, "FLAGS")
    return 0


cdef bint _load_snapshot(VM vm, Snapshot snapshot, uint64_t generation) except -1:
    """Loads the slots of a snapshot, with their buffers, into an empty address space.

    False, and nothing has changed, if it has another generation."""
    cdef _Backings backings = _backings_of_snapshot(snapshot)
    cdef const ms_memslot *rows = _values(snapshot)
    cdef size_t n = _nr_rows(snapshot)
    cdef ms_error err
    cdef int r
    err.index, err.rule = 0, MS_RULE_NONE
    with nogil:
        r = ms_load_backed(vm._vm, snapshot.as_id, generation, rows, backings.items, n, &err)
    if r == -errno.EAGAIN and err.rule == MS_RULE_NONE:
        return False
    if r:
        raise _load_refusal(vm, r, &err, snapshot.array)
    _report_hooks(vm)
    return True


cdef dict _limits_of(Snapshot snapshot, dict limits):
    """The limits of a VM for the slots of a snapshot: those of VM(), or larger ones where the slots need them."""
    cdef object rows = snapshot.array, config
    cdef dict needed = {"address_spaces": snapshot.as_id + 1}
    if len(rows):
        config = VM()
        needed["user_mem_slots"] = max(config.user_mem_slots, int(rows["id"].max()) + 1)
        needed["gpa_bits"] = max(config.gpa_bits, int((rows["base_gfn"] + rows["npages"]).max() - 1).bit_length() + 12)
        needed["hva_end_max"] = max(config.hva_end_max,
                                    int((rows["userspace_addr"] + (rows["npages"] << np.uint64(12))).max()))
    return needed | limits
