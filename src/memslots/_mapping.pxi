# SPDX-License-Identifier: MIT
# Buffers that slots map: map_buffer(), Mapping, and the release of buffers that no slot, call or view uses.
#
# A _Pin holds one buffer for one call of map_buffer().  The core knows it as the opaque pointer of a backing.
#   - References to a _Pin: one of the core, until the core releases the backing; one of each view.  The last one
#     releases the buffer.
#   - The core's reference is a link of the list that begins at VM._pins.  So the garbage collector finds a cycle of a VM
#     and a buffer without a look into the core.  A VM that ends takes its pins out of the list; the core's reference of
#     such a pin is counted, but the collector does not see it.
#   - A pin whose slot has ended can still have views.  So a second list of the VM links the pins that have left the first
#     one, without a reference.  A pin leaves it when it is freed.
#   - The core releases a backing in a thread that may not have the GIL.  So the release only adds the pin to a queue.
#     The end of each change and of each read section empties the queue, and so does a pending call of the interpreter.
#     The release of a buffer runs code of the user.  So no queue is emptied inside of a read section, a hook or an
#     update.  While the interpreter exits, nothing is released.

cdef extern from *:
    """
    struct memslots_release {
        struct memslots_release *next; /* in the queue */
        void *pin;
        uint64_t serial; /* never used again, unlike the address */
    };

    static struct memslots_release *memslots_queue; /* pushed with release, popped with acquire */
    static int (*memslots_pending)(void *);
    static bool memslots_exiting;                   /* relaxed: set once, before the interpreter ends */
    static uint64_t memslots_last_serial;
    static _Thread_local unsigned int memslots_drains; /* nested calls of _drain() in this thread */

    static uint64_t memslots_new_serial(void)
    {
        return __atomic_add_fetch(&memslots_last_serial, 1, __ATOMIC_RELAXED);
    }

    /* The ms_release_fn of all backings.  It needs no GIL, and runs in any thread. */
    static void memslots_release(void *opaque)
    {
        struct memslots_release *one = opaque, *first = __atomic_load_n(&memslots_queue, __ATOMIC_RELAXED);

        do
            one->next = first;
        while (!__atomic_compare_exchange_n(&memslots_queue, &first, one, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
        if (!first && !__atomic_load_n(&memslots_exiting, __ATOMIC_RELAXED))
            Py_AddPendingCall(memslots_pending, NULL); /* if it fails, the next call of the binding does the work */
    }

    static inline bool memslots_has_released(void)
    {
        return __atomic_load_n(&memslots_queue, __ATOMIC_RELAXED);
    }

    /* Only one thread at a time is in here.  So no other one removes `one`, and its `next` stays as it is. */
    static struct memslots_release *memslots_pop_released(void)
    {
        struct memslots_release *one = __atomic_load_n(&memslots_queue, __ATOMIC_ACQUIRE);

        while (one && !__atomic_compare_exchange_n(&memslots_queue, &one, one->next, true, __ATOMIC_ACQUIRE,
                                                   __ATOMIC_ACQUIRE))
            ;
        return one;
    }

    static int (*memslots_closing)(void *);

    /* If it fails, the next call of the same kind does the work. */
    static void memslots_add_pending(void)
    {
        Py_AddPendingCall(memslots_closing, NULL);
    }

    /* tp_finalize gets an object without a reference from the end of the last one.  A collector has references. */
    static inline bool memslots_is_last_reference(void *object)
    {
        return Py_REFCNT((PyObject *)object) == 1;
    }

    static void memslots_stop_releases(void)
    {
        __atomic_store_n(&memslots_exiting, true, __ATOMIC_RELAXED);
    }
    """
    struct _Release "memslots_release":
        _Release *next
        void *pin
        uint64_t serial

    int (*_pending "memslots_pending")(void *) noexcept
    bint _exiting "memslots_exiting"
    int (*_closing "memslots_closing")(void *) noexcept
    void _add_pending "memslots_add_pending"() noexcept
    bint _is_last_reference "memslots_is_last_reference"(void *object) noexcept
    unsigned int _drains "memslots_drains"
    uint64_t _new_serial "memslots_new_serial"() noexcept nogil
    void _released "memslots_release"(void *opaque) noexcept nogil
    bint _has_released "memslots_has_released"() noexcept nogil
    _Release *_pop_released "memslots_pop_released"() noexcept nogil
    void _stop_releases "memslots_stop_releases"() noexcept nogil


cdef class Mapping


cdef struct _Hidden:
    Py_buffer buffer


@cython.final
@cython.no_gc_clear
cdef class _Pin:
    """Holds a buffer that a slot maps.  It exports the buffer to the views of Mapping.view()."""
    cdef Py_buffer *buffer  # one of the next two
    cdef Py_buffer seen     # the garbage collector sees its object
    cdef _Hidden hidden     # the garbage collector does not; see _survives_clear()
    cdef bint held      # the buffer is to be released
    cdef bint readonly
    cdef Py_ssize_t views
    cdef uint64_t named   # the last call of pinned_by() that has found a slot or a snapshot with it (_pinned_by.pxi)
    cdef _Release release
    cdef void *head       # begins both lists of the VM; valid while the pin is in one of them
    cdef _Pin next        # in the list of the VM; the reference of the core
    cdef void *prev       # NULL: not in this list
    cdef void *late_next  # in the list of the pins whose slot has ended; no reference
    cdef void *late_prev  # NULL: not in this list
    cdef void *snapshots  # of the head of the lists: begins the list of the snapshots with buffers (_snapshot.pxi)

    def __cinit__(self):
        self.buffer = &self.seen

    def __getbuffer__(self, Py_buffer *out, int flags):
        if self.readonly and flags & PyBUF_WRITABLE:
            raise BufferError("the slot is READONLY, so the view is read-only")
        out.buf = self.buffer.buf
        out.obj = self
        out.len = self.buffer.len
        out.readonly = self.readonly
        out.itemsize = 1
        out.format = NULL
        if flags & PyBUF_FORMAT:
            out.format = b"B"
        out.ndim = 1
        out.shape = &out.len if flags & PyBUF_ND else NULL
        out.strides = &out.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        out.suboffsets = NULL
        out.internal = NULL
        with cython.critical_section(self):
            self.views += 1

    def __releasebuffer__(self, Py_buffer *out):
        with cython.critical_section(self):
            self.views -= 1

    def __dealloc__(self):
        _forget_late(self)
        if self.held:
            PyBuffer_Release(self.buffer)


# ---- the list of a VM and the queue --------------------------------------------------------------------------------

cdef object _lists = object()  # a lock for all lists and the queue on a Python without a GIL


cdef void _add_pin(VM vm, _Pin pin) noexcept:
    cdef _Pin head = vm._pins
    with cython.critical_section(_lists):
        pin.head = pin.prev = <void *>head
        pin.next = head.next
        if pin.next is not None:
            pin.next.prev = <void *>pin
        head.next = pin


cdef void _drop_pin(_Pin pin) noexcept:
    """Drops the reference of the core.  The caller has a reference."""
    with cython.critical_section(_lists):
        if pin.prev is NULL:
            Py_DECREF(pin)
        else:
            (<_Pin>pin.prev).next = pin.next
            if pin.next is not None:
                pin.next.prev = pin.prev
            pin.next = None
            pin.prev = NULL
            _link_late(pin)


cdef void _link_late(_Pin pin) noexcept:
    """Adds a pin to the list of the pins whose slot has ended.  The caller has the lock."""
    cdef void *first = (<_Pin>pin.head).late_next
    pin.late_prev = pin.head
    pin.late_next = first
    if first is not NULL:
        (<_Pin>first).late_prev = <void *>pin
    (<_Pin>pin.head).late_next = <void *>pin


cdef void _forget_late(_Pin pin) noexcept:
    """Takes a pin out of the list of the pins whose slot has ended, if it is there."""
    with cython.critical_section(_lists):
        if pin.late_prev is not NULL:
            (<_Pin>pin.late_prev).late_next = pin.late_next
            if pin.late_next is not NULL:
                (<_Pin>pin.late_next).late_prev = pin.late_prev
            pin.late_prev = pin.late_next = NULL


cdef void _forget_pins(VM vm) noexcept:
    """Takes the pins that are left out of the lists of a VM that ends.  The core still has its references to them."""
    cdef _Pin pin, head = vm._pins
    cdef void *late
    if head is None:
        return  # there was no memory for the VM
    with cython.critical_section(_lists):
        late = head.late_next
        while late is not NULL:
            (<_Pin>late).late_prev = NULL
            late = (<_Pin>late).late_next
        head.late_next = NULL
        pin = (<_Pin>vm._pins).next
        (<_Pin>vm._pins).next = None
        while pin is not None:
            Py_INCREF(pin)
            pin.prev = NULL
            pin.next, pin = None, pin.next


# VM.__del__() calls the closed hooks.  It runs at the last reference, or inside a garbage collection, where code of the
# user could wait for a lock that the interrupted code holds.  So a VM that the collector has found, or that ends inside
# of a read section, a hook or an update, goes to this list, which keeps it alive.  A pending call of the interpreter
# closes it, in the main thread and outside of the collection.  So does any call that empties the queue.
cdef list _ended = []


# So many finalizers of buffers can run inside each other in one thread.
cdef enum: DRAINS_MAX = 16


cdef void _drain() noexcept:
    """Drops the pins that the core has released.  This may run code of the user.

    A release that such code causes is done by a nested call.  From DRAINS_MAX nested calls on it waits for the loop of
    the innermost one, which limits the depth of the calls.  The loop takes one pin at a time: the others stay in the
    queue for other threads, however long the code of the user takes."""
    global _drains
    cdef _Release *one
    cdef _Pin pin
    if _drains == DRAINS_MAX or _exiting or not ms_thread_may_change():
        return
    _drains += 1
    one = _pop()
    while one is not NULL:
        pin = <_Pin>one.pin
        _drop_pin(pin)
        pin = None
        one = _pop()
    _drains -= 1


cdef _Release *_pop() noexcept:
    cdef _Release *one
    with cython.critical_section(_lists):
        one = _pop_released()
    return one


cdef inline void _drain_released() noexcept:
    if _has_released():
        _drain()
    if _ended:
        _close_all_ended()


cdef int _drain_pending(void *unused) noexcept with gil:
    _drain_released()
    return 0


_pending = _drain_pending


def _at_exit():
    _stop_releases()


atexit.register(_at_exit)


# ---- map a buffer --------------------------------------------------------------------------------------------------

cdef _Pin _pin(object buffer, bint readonly):
    """Pins a buffer that a slot can map.  Otherwise an exception with the way out."""
    cdef _Pin pin = _Pin.__new__(_Pin)
    cdef int flags = PyBUF_SIMPLE if readonly else PyBUF_WRITABLE
    if not PyObject_CheckBuffer(buffer):
        raise TypeError("buffer must have the buffer protocol, as memslots.alloc(size), mmap.mmap, SharedMemory.buf and "
                        f"numpy arrays have, but is {type(buffer).__name__}")
    _refuse_objects(buffer, "buffer")
    if not _survives_clear(buffer):
        pin.buffer = &pin.hidden.buffer
    try:
        PyObject_GetBuffer(buffer, pin.buffer, flags)
    except (BufferError, ValueError) as error:
        raise _buffer_error(buffer, readonly, error)
    pin.held = True
    pin.readonly = readonly
    pin.release.pin = <void *>pin
    pin.release.serial = _new_serial()
    _check_pages(pin.buffer)
    return pin


cdef bint _survives_clear(object buffer) except -1:
    """Whether the garbage collector may clear a buffer while a slot maps it.

    It clears the objects of a cycle in any order.  An mmap and an array of numpy keep their memory.  A memoryview does not,
    and then crashes at its release; a ctypes object does not either.  So the collector must not see such a buffer.  It does
    not find a cycle that leads through one."""
    return isinstance(buffer, (mmap, np.ndarray))


cdef int _refuse_objects(object buffer, str name) except -1:
    """TypeError for memory with references to Python objects.  Other bytes in their place would crash the interpreter."""
    cdef object view
    if type(buffer) is bytearray or type(buffer) is bytes:
        return 0
    if not cnp.PyArray_Check(buffer):
        try:
            view = memoryview(buffer)
        except MemoryError:
            raise  # the next attempt may succeed, and the objects would be accepted
        except Exception:
            return 0  # PyObject_GetBuffer() raises it again
        if not cnp.PyArray_Check(view.obj):
            return _refuse_object_format(view.format, name)
        buffer = view.obj
    if buffer.dtype.hasobject:
        raise TypeError(f"{name} is memory of an array of {buffer.dtype}, which contains Python objects; nothing else may "
                        "write them")
    return 0


cdef int _refuse_object_format(str format, str name) except -1:
    """The same for other memory, such as that of ctypes.  The format has names of fields between colons."""
    if "O" in "".join(format.split(":")[::2]):
        raise TypeError(f"{name} has the format {format!r}, which contains Python objects; nothing else may write them")
    return 0


cdef object _buffer_error(object buffer, bint readonly, object error):
    """The exception for a buffer that gives no such access."""
    try:
        view = memoryview(buffer)
    except Exception:
        return error  # such as a closed mmap
    if view.readonly and not readonly:
        return InvalidRegionError(errno.EINVAL, f"the buffer ({type(buffer).__name__}) is read-only; map it with "
                                  "readonly=True", rule="BACKING_READONLY")
    if not view.c_contiguous:
        return ValueError(f"the buffer ({type(buffer).__name__}) is not C-contiguous, so a slot cannot map it; "
                          f"memslots.alloc({_whole_pages(view.nbytes):#x}) gives contiguous memory for a copy")
    return error


cdef Py_ssize_t _whole_pages(Py_ssize_t size) noexcept:
    return (size + 4095) & ~<Py_ssize_t>4095


cdef int _check_pages(const Py_buffer *buffer) except -1:
    cdef uint64_t start = <uint64_t>buffer.buf
    if buffer.len == 0:
        raise InvalidRegionError(errno.EINVAL, "the buffer is empty; a slot has at least one page of 4096 bytes",
                                 rule="NPAGES")
    if start % 4096:
        raise InvalidRegionError(errno.EINVAL, f"the buffer begins at {start:#x}, which is not a multiple of the page size "
                                 f"4096; memslots.alloc({_whole_pages(buffer.len):#x}) gives page-aligned memory",
                                 rule="HVA_ALIGN")
    if buffer.len % 4096:
        raise InvalidRegionError(errno.EINVAL, f"the buffer has {buffer.len:#x} bytes, which is not a multiple of the page "
                                 f"size 4096; memslots.alloc({_whole_pages(buffer.len):#x}) gives whole pages",
                                 rule="SIZE_ALIGN")
    return 0


cdef uint32_t _slot_or_any(VM vm, object slot) except? 0xDEAD:
    cdef uint32_t id
    if slot is None:
        return MS_SLOT_ANY
    id = _u32(slot, "slot")
    if id == MS_SLOT_ANY:
        raise refused(errno.EINVAL, "SLOT_ID", _config(vm).user_mem_slots, None, Request(id))
    return id


cdef object _request_of(const ms_userspace_memory_region *region):
    return Request(None if region.slot == MS_SLOT_ANY else region.slot, region.as_id, region.guest_phys_addr,
                   region.memory_size, region.userspace_addr, region.flags)


cdef object _maker = object()  # only map_buffer() has it


cdef Mapping _map(VM vm, ms_userspace_memory_region *region, _Pin pin):
    """Creates the slot.  If a hook raises after the change, the exception has the Mapping as ``.mapping``."""
    cdef Mapping mapping = Mapping.__new__(Mapping, _maker)
    cdef ms_backing *backing = NULL
    cdef ms_error err
    cdef uint32_t id = 0
    cdef int r
    if ms_backing_create(pin.buffer.buf, pin.buffer.len, MS_BACKING_READONLY if pin.buffer.readonly else 0, _released,
                         &pin.release, &backing):
        raise _out_of_memory()
    _add_pin(vm, pin)
    with nogil:
        r = ms_map_backing(vm._vm, region, backing, &id, &err)
        ms_backing_put(backing)
    if r:
        raise _refusal(vm, r, &err, _request_of(region))
    mapping.vm, mapping.as_id, mapping.slot = vm, region.as_id, id
    mapping._release, mapping._serial = &pin.release, pin.release.serial
    try:
        _report_hooks(vm)
    except BaseException as error:
        error.mapping = mapping
        raise
    return mapping


cdef ms_backing *_backing_of(VM vm, uint32_t as_id, uint32_t id, ms_memslot *value, const _Release *release,
                             uint64_t serial) noexcept:
    """A reference to the backing of a slot if it is that of a pin.  Otherwise NULL.

    The address may be that of a newer pin, but the serial number is not."""
    cdef ms_backing *backing = NULL
    ms_id_to_backing(vm._vm, as_id, id, value, &backing)
    if backing is not NULL and (ms_backing_opaque(backing) != release or release.serial != serial):
        ms_backing_put(backing)
        backing = NULL
    return backing


# ---- Mapping -------------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc_clear
cdef class Mapping:
    """A slot that maps a buffer.  ``VM.map_buffer()`` makes it.

    The slot keeps the buffer alive, and the Mapping does not.  So a Mapping can be dropped while its slot goes on.  The
    slot ends by ``unmap()``, by the end of ``with``, by ``vm.delete(slot)`` or with the VM.  From then on the properties
    and methods raise NoSuchSlotError (ENOENT), except for ``mapped``, ``unmap()``, ``slot``, ``as_id`` and ``vm``.

    A Mapping never touches another slot that has got the same id later.
    """
    cdef readonly VM vm
    cdef readonly uint32_t as_id
    cdef readonly uint32_t slot
    cdef const _Release *_release
    cdef uint64_t _serial

    def __cinit__(self, object maker=None):
        if maker is not _maker:
            raise TypeError("a Mapping comes from VM.map_buffer()")

    def __reduce__(self):
        raise TypeError("a Mapping cannot be pickled or copied")

    cdef ms_backing *_find(self, ms_memslot *value) noexcept:
        """A reference to the backing, or NULL if the slot is gone."""
        if self.vm._closed:
            return NULL
        return _backing_of(self.vm, self.as_id, self.slot, value, self._release, self._serial)

    cdef ms_backing *_use(self, ms_memslot *value) except NULL:
        cdef ms_backing *backing
        _check_open(self.vm)
        backing = self._find(value)
        if backing is NULL:
            raise self._gone()
        return backing

    cdef object _gone(self):
        return NoSuchSlotError(errno.ENOENT, f"slot {self.slot} of address space {self.as_id} does not map this buffer "
                               "any more", self.slot, None, "NO_SUCH_SLOT")

    cdef ms_memslot _value(self) except *:
        cdef ms_memslot value
        ms_backing_put(self._use(&value))
        return value

    cdef int _end(self, int r, const ms_error *err, object gpa=None, uint32_t set=0, uint32_t clear=0) except -1:
        """The end of a change."""
        if r and err.rule == MS_RULE_NO_SUCH_SLOT:
            _drain_released()
            raise self._gone()
        if r:
            raise _slot_refusal(self.vm, r, err, self.as_id, self.slot, gpa, set, clear)
        return _report_hooks(self.vm)

    def __enter__(self):
        self._value()
        return self

    def __exit__(self, *exc_info):
        self.unmap()

    @property
    def mapped(self):
        """Whether the slot exists and maps the buffer."""
        cdef ms_memslot value
        cdef ms_backing *backing = self._find(&value)
        ms_backing_put(backing)
        return backing is not NULL

    @property
    def gpa(self):
        """The guest physical address of the first page."""
        return self._value().base_gfn << 12

    @property
    def size(self):
        """The size in bytes."""
        return self._value().npages << 12

    @property
    def readonly(self):
        """Whether the slot is READONLY."""
        return bool(self._value().flags & MS_MEM_READONLY)

    @property
    def log_dirty(self):
        """Whether the slot logs dirty pages.  To set it changes the slot, as vm.set_flags()."""
        return bool(self._value().flags & MS_MEM_LOG_DIRTY_PAGES)

    @log_dirty.setter
    def log_dirty(self, value):
        _check_open(self.vm)
        cdef bint on = _flag(value, "log_dirty")
        cdef ms_memslot slot
        cdef ms_error err
        cdef ms_backing *backing = self._use(&slot)
        cdef uint32_t set = MS_MEM_LOG_DIRTY_PAGES if on else 0, clear = MS_MEM_LOG_DIRTY_PAGES & ~set
        cdef int r
        with nogil:
            r = ms_set_backing_flags(self.vm._vm, self.as_id, self.slot, backing, set, clear, &err)
            ms_backing_put(backing)
        self._end(r, &err, None, set, clear)

    def move(self, gpa):
        """Moves the slot to another guest physical address.  Errors are those of set_user_memory_region."""
        cdef uint64_t address = _u64(gpa, "gpa")
        cdef ms_memslot slot
        cdef ms_error err
        cdef ms_backing *backing = self._use(&slot)
        cdef int r
        with nogil:
            r = ms_move_backing(self.vm._vm, self.as_id, self.slot, backing, address, &err)
            ms_backing_put(backing)
        self._end(r, &err, address)

    def unmap(self):
        """Deletes the slot.  Does nothing if the slot is gone.

        When the call returns, nothing of it holds the buffer any more, except for views and for calls of other
        threads that are still in progress."""
        cdef ms_memslot slot
        cdef ms_error err
        cdef ms_backing *backing = self._find(&slot)
        cdef int r
        if backing is NULL:
            return
        with nogil:
            r = ms_unmap_backing(self.vm._vm, self.as_id, self.slot, backing, &err)
            ms_backing_put(backing)
        if r and err.rule == MS_RULE_NO_SUCH_SLOT:
            _drain_released()
        else:
            self._end(r, &err)

    def view(self):
        """A memoryview of the pages of the slot.  It is read-only if the slot is READONLY.

        It keeps the buffer alive after the end of the slot and of the VM.  A write through it marks no page dirty.  If
        the memory behind it goes away (a truncated file), an access to the view ends the process; read_guest() and
        write_guest() raise GuestAccessError instead."""
        cdef ms_memslot slot
        cdef ms_backing *backing = self._use(&slot)
        cdef _Pin pin = <_Pin>(<_Release *>ms_backing_opaque(backing)).pin
        cdef uint64_t offset = slot.userspace_addr - <uint64_t>pin.buffer.buf
        ms_backing_put(backing)
        view = memoryview(pin)[offset:offset + (slot.npages << 12)]
        return view.toreadonly() if slot.flags & MS_MEM_READONLY else view

    def __repr__(self):
        cdef ms_memslot slot
        cdef ms_backing *backing = self._find(&slot)
        ms_backing_put(backing)
        where = "unmapped" if backing is NULL else f"[{slot.base_gfn << 12:#x}, {slot.base_gfn + slot.npages << 12:#x})"
        return f"<Mapping of slot {self.slot} in address space {self.as_id}: {where}>"
