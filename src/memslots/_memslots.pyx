# SPDX-License-Identifier: MIT
# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""The binding: checks arguments, gives the GIL away, turns an errno into an exception.  No policy lives here.

Whatever takes slots_lock or may wait runs without the GIL: a hook needs the GIL to finish, and a waiter that held it
would wait for ever.  One lookup keeps it, since it cannot wait and costs less than giving it away.
"""

cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030D0000
    #define memslots_is_finalizing Py_IsFinalizing
    #else
    #define memslots_is_finalizing _Py_IsFinalizing
    #endif
    """
    bint _is_finalizing "memslots_is_finalizing"()

import errno
import inspect
import operator
import sys
import threading
import warnings

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyObject_CheckBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear, PyErr_Occurred, PyErr_WarnEx
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport Py_TYPE, PyTypeObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from ._calls cimport *
from ._measure cimport *
from .libmemslots cimport *


cdef extern from "<errno.h>" nogil:
    enum:
        ECANCELED
        ENOBUFS
        ENOENT
        EUCLEAN

from .constants import HVA_ERR_BAD, HVA_ERR_MIN, HVA_ERR_RO_BAD, MEM_MAX_NR_PAGES, MEMSLOT_DTYPE, MemFlag
from .errors import (
    ClosedError,
    GfnNotMappedError,
    InvalidRegionError,
    InvariantError,
    OutOfMemoryError,
    ReadOnlySlotError,
    Request,
    UpdateError,
    from_errno,
    reader_stall,
    refused,
)
from .listener import Change, ChangeKind, check_hooks

cnp.import_array()
ms_simd()  # reads the environment now: later, without the GIL, another thread may be writing it

__version__ = MS_VERSION.decode()

# Ranges are asked for with room for so many slots first.
cdef enum: FIRST_ROOM = 64

# From the number of a rule to its name.
_RULES = {number: ms_rule_name(<ms_rule>number).decode() for number in range(MS_RULE_NONE + 1, MS_RULE_NR)}

_POLICIES = ("auto", "off", "eager", "walk")  # in the order of enum ms_index_policy

# Of calls that never got the VM's lock.
_NOT_LOCKED = frozenset((MS_RULE_READ_SECTION, MS_RULE_HOOK, MS_RULE_HOOK_BUSY, MS_RULE_UPDATE, MS_RULE_UPDATE_OWNER,
                         MS_RULE_FORKED, MS_RULE_CLOSED, MS_RULE_INTERRUPTED))


def build_info() -> dict:
    """What the C core was built with (compiler, whether asserts are on, sanitizer), and what batches use on this CPU
    (simd; the environment variable MEMSLOTS_SIMD may name another level of ``simd_levels()``)."""
    info = dict(item.split("=", 1) for item in ms_build_info().decode().split("; "))
    return info | {"simd": ms_simd().decode()}


def simd_levels() -> tuple:
    """What batches can use on this CPU, "portable" first.  All give the same answers."""
    cdef list names = []
    while ms_simd_name(len(names)) is not NULL:
        names.append(ms_simd_name(len(names)).decode())
    return tuple(names)


def set_simd(name):
    """Makes batches of this process use another one of ``simd_levels()``, for tests and measurements."""
    if name not in simd_levels():
        raise from_errno(errno.ENOSYS, f"this CPU has no level {name!r}; it has {', '.join(simd_levels())}")
    ms_set_simd(name.encode())


def backends() -> tuple:
    """The names of the designs that ``VM(backend=...)`` can have in this build."""
    cdef list names = []
    while ms_backend_name(len(names)) is not NULL:
        names.append(ms_backend_name(len(names)).decode())
    return tuple(names)

include "_integers.pxi"
include "_memory_slot.pxi"
include "_hooks.pxi"
include "_arrays.pxi"
include "_rows.pxi"
include "_interrupts.pxi"


# ---- what the calls of VM share ------------------------------------------------------------------------------------

cdef const ms_config *_config(VM vm) except NULL:
    """The limits; also of a closed VM, but not of one that was never made."""
    if vm._vm is NULL:
        _check_open(vm)
    return ms_vm_config(vm._vm)


cdef int _check_open(VM vm) except -1:
    if vm._closed and vm._vm is NULL:
        raise ClosedError(errno.EBADF, f"{type(vm).__name__}.__init__() has not called super().__init__(), which makes "
                          "the VM", rule="CLOSED")
    if vm._closed:
        raise ClosedError(errno.EBADF, "the VM is closed", rule="CLOSED")
    return 0


cdef uint32_t _as_id(VM vm, object value) except? 0xDEAD:
    """An address space of this VM, open."""
    cdef uint32_t as_id
    if vm._closed:
        _check_open(vm)
    as_id = _u32(value, "as_id")
    if as_id >= vm._address_spaces:
        raise refused(errno.EINVAL, "AS_ID", vm._address_spaces, None, Request(as_id=as_id))
    return as_id


cdef list _raised_by(VM vm, const ms_error *err):
    """What the hooks of a refused call raised.  One that got no lock ran none: what this thread's hooks raised belongs
    to the change that runs them."""
    return [] if err.rule in _NOT_LOCKED else _take_raised(vm) or []


cdef object _refusal(VM vm, int r, const ms_error *err, object request, str where="", list raised=None):
    """The exception for what C refused: what prepare raised, where that is why."""
    if err.rule == MS_RULE_INTERRUPTED:
        return _interrupt()
    if raised is None:
        raised = _raised_by(vm, err)
    if err.rule == MS_RULE_LISTENER_REFUSED and r == -ECANCELED:
        return _with_notes(raised.pop(0), raised) if raised else _out_of_memory()
    other = _slot_or_none(&err.other)
    return _with_notes(refused(-r, _RULES[err.rule], err.limit, other, request, where), raised)


cdef list _take_raised(VM vm):
    cdef list raised = None
    if vm._raised:
        try:
            raised = vm._raised.pop(PyThread_get_thread_ident(), None)
        except MemoryError:
            vm._raised.clear()  # rather lost than told to a later call
            raise
    return raised


cdef object _with_notes(object error, list raised):
    """The exception of a change, told what else its hooks raised."""
    for other in raised:
        try:
            words = repr(other)
        except Exception:
            words = f"a {type(other).__name__} that cannot be printed"
        error.add_note(f"a hook of the same change raised {words}")
    return error


cdef int _report_hooks(VM vm) except -1:
    """After a call that did what it was asked: what flush and commit raised, and warnings that are errors."""
    raised = _take_raised(vm)
    if raised:
        error = raised.pop(0)
        source = "as a warning" if isinstance(error, Warning) else "by a hook"
        error.add_note(f"raised {source}; the change itself is complete")
        raise _with_notes(error, raised)
    return 0


cdef int _report_harvest(VM vm, cnp.ndarray words) except -1:
    """Bits that have been taken out of the log are not lost by an exception."""
    try:
        _report_hooks(vm)
    except BaseException as error:
        error.dirty_log = words
        raise
    return 0


cdef cnp.ndarray _rows_to_load(VM vm, object array, uint32_t as_id):
    """Counted before they are copied: an array may be no more than a claim to be large."""
    cdef cnp.ndarray table = _table(array, "load_memslots")
    if cnp.PyArray_SIZE(table) > _config(vm).user_mem_slots:
        raise ValueError(f"load_memslots takes at most user_mem_slots = {_config(vm).user_mem_slots} entries, "
                         f"not {cnp.PyArray_SIZE(table)}")
    return _rows_of(table, as_id)


cdef object _load_refusal(VM vm, int r, const ms_error *err, object rows):
    cdef list raised = _raised_by(vm, err)  # first: without memory for the rest it must not be told to a later call
    if err.rule in (MS_RULE_NO_MEMORY, MS_RULE_LISTENER_REFUSED) or err.rule in _NOT_LOCKED:
        return _refusal(vm, r, err, Request(), "", raised)
    if err.rule == MS_RULE_DUPLICATE_ID:
        first = np.flatnonzero(rows["id"] == rows[err.index]["id"])[0]
        if first < err.index:
            return _with_notes(_same_id(rows, first, err.index, _slot_or_none(&err.other), -r), raised)
    return _refusal(vm, r, err, _row_request(rows, err.index), f"entry {err.index}: ", raised)


cdef _Hook _hook_of(VM vm, object listener):
    """Of a listener that is there, or None.  The caller has the VM's critical section."""
    for hook in vm._hooks:
        if (<_Hook>hook).listener is listener:
            return hook
    return None


cdef bint _append_hook(VM vm, _Hook hook) except -1:
    """False where its listener has one: of two threads that add it one is told so, without a GIL too."""
    cdef bint is_new
    with cython.critical_section(vm):
        is_new = _hook_of(vm, hook.listener) is None
        if is_new:
            vm._hooks.append(hook)
    return is_new


cdef object _no_hva(VM vm, uint64_t hva, object what, uint64_t number, object as_id):
    if hva == MS_HVA_ERR_RO_BAD:
        return ReadOnlySlotError(errno.EFAULT, f"{what} {number:#x} of address space {as_id} is in a READONLY "
                                 "slot; gfn_to_hva_prot() gives the address for reading")
    return GfnNotMappedError(errno.EFAULT, f"{what} {number:#x} is in no slot of address space {as_id}, or in "
                             "one that is being deleted or moved")


cdef object _many(VM vm, _Many what, object numbers, str name, object out, int type_num, object as_id, bint write):
    # as_id first: its __index__ is the caller's code, which must not run once the arrays have been looked at.
    cdef uint32_t space = _as_id(vm, as_id) if vm._closed or as_id is not 0 else 0
    cdef cnp.ndarray array = _numbers(numbers, name)
    cdef cnp.ndarray result = _result(out, array, type_num)
    cdef cnp.ndarray target = result
    if not _in_step(array, result):
        array = np.ascontiguousarray(array)  # a copy, unless it is the result that has no one stride
        if not _in_step(array, result):
            target = _beside(result)
    elif out is not None and _clash(array, result):
        array = array.copy()
    if target is result:
        _look_up(vm, what, array, target, space, write)
    else:
        try:
            _look_up(vm, what, array, target, space, write)
        finally:
            result[...] = target
    return result if out is None else out


cdef cnp.ndarray _beside(cnp.ndarray result):
    """Contiguous room for the answers; with what the caller's array has, where a call that is ended leaves it."""
    if cnp.PyArray_SIZE(result) > <cnp.npy_intp>MS_BATCH_PIECE:
        return result.copy(order="C")
    return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(result), cnp.PyArray_DIMS(result), cnp.PyArray_TYPE(result), 0)


cdef int _look_up(VM vm, _Many what, cnp.ndarray numbers, cnp.ndarray result, uint32_t as_id,
                  bint write) except -1:
    """result: None for marks."""
    cdef ms_batch batch
    cdef _Patience patience
    cdef int r
    batch.in_ = cnp.PyArray_DATA(numbers)
    batch.in_stride = _stride(numbers)
    batch.out = NULL if result is None else cnp.PyArray_DATA(result)
    batch.out_stride = 0 if result is None else _stride(result)
    batch.n = cnp.PyArray_SIZE(numbers)
    batch.poll = NULL
    if batch.n <= MS_BATCH_BRIEF:  # giving the GIL away costs more than they do
        _run_batch(vm._vm, what, as_id, &batch, write)
        return 0
    if batch.n > MS_BATCH_PIECE and _handles_signals(&patience):
        batch.poll = _ask_for_signals
        batch.opaque = &patience
    with nogil:
        r = _run_batch(vm._vm, what, as_id, &batch, write)
    return _raise_pending() if r else 0


cdef size_t _fill(VM vm, int what, uint64_t start, uint64_t end, uint32_t as_id, ms_memslot *out,
                  size_t room) noexcept nogil:
    if what == 1:
        return ms_memslots_in_gfn_range(vm._vm, as_id, start, end, out, room)
    if what == 2:
        return ms_memslots_in_hva_range(vm._vm, as_id, start, end, out, room)
    return ms_memslots(vm._vm, as_id, out, room)


cdef list _range(VM vm, int what, uint64_t start, uint64_t end, uint32_t as_id):
    """Asks with more room until everything fits: each try is a read section of its own."""
    cdef size_t room = FIRST_ROOM, n
    cdef ms_memslot *found
    while True:
        found = <ms_memslot *>malloc(room * sizeof(ms_memslot))
        if found is NULL:
            raise _out_of_memory()
        try:
            with nogil:
                n = _fill(vm, what, start, end, as_id, found, room)
            if n <= room:
                return _slots(found, n)
            room = n
        finally:
            free(found)


# ---- VM ------------------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    /* Whether a subclass has an __init__ or a __new__ of its own. */
    static inline int memslots_own_init(PyTypeObject *type, PyTypeObject *base)
    {
        return type->tp_init != base->tp_init;
    }
    static inline int memslots_own_new(PyTypeObject *type, PyTypeObject *base)
    {
        return type->tp_new != base->tp_new;
    }
    """
    bint _own_init "memslots_own_init"(PyTypeObject *type, PyTypeObject *base) noexcept
    bint _own_new "memslots_own_new"(PyTypeObject *type, PyTypeObject *base) noexcept

_VM_KEYWORDS = ("address_spaces", "user_mem_slots", "gpa_bits", "hva_end_max", "backend")


cdef int _check_keywords(tuple args, dict limits) except -1:
    """Of VM(), in the words that Python has for a function of its name."""
    if args:
        raise TypeError(f"VM() takes keyword arguments only ({', '.join(_VM_KEYWORDS)}), but got {len(args)} without one")
    for name in limits:
        if name not in _VM_KEYWORDS:
            raise TypeError(f"VM() got an unexpected keyword argument {name!r}; it has {', '.join(_VM_KEYWORDS)}")
    return 0


cdef object _backend_name(object backend):
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a str, not {type(backend).__name__}")
    if backend not in backends():
        raise from_errno(errno.ENOSYS, f"this build has no backend {backend!r}; it has {', '.join(backends())}")
    return backend.encode()


cdef int _make(VM vm, tuple args, dict limits) except -1:
    """Makes the VM.  The limits are read first: their __index__ is the caller's code, which may call __init__() too."""
    cdef ms_config config
    cdef int r = 0
    _check_keywords(args, limits)
    ms_config_init(&config)
    name = _backend_name(limits.get("backend", config.backend.decode()))
    config.address_spaces = _u32(limits.get("address_spaces", config.address_spaces), "address_spaces")
    config.user_mem_slots = _u32(limits.get("user_mem_slots", config.user_mem_slots), "user_mem_slots")
    config.gpa_bits = _u32(limits.get("gpa_bits", config.gpa_bits), "gpa_bits")
    config.hva_end_max = _u64(limits.get("hva_end_max", config.hva_end_max), "hva_end_max")
    config.backend = name
    config.report_stall = _stalled
    config.stall_opaque = <void *>vm._raised
    with cython.critical_section(vm):
        if vm._vm is not NULL:
            raise TypeError("the VM was made by another __init__() meanwhile")
        r = ms_vm_create(&config, &vm._vm)
        if r == 0:
            vm._address_spaces = config.address_spaces
            vm._stall_warning_ms = MS_STALL_AFTER_MS_DEFAULT
            vm._closed = False
    if r == -errno.EINVAL:
        raise InvalidRegionError(errno.EINVAL, "; ".join(_out_of_range(&config)))
    if r == -errno.EAGAIN:
        raise from_errno(errno.EAGAIN, "this process has no pthread key left (PTHREAD_KEYS_MAX); memslots needs two: "
                         "create a VM before other libraries take all keys")
    if r:
        raise _out_of_memory()
    return 0


cdef bint _are_the_same(dict a, dict b) noexcept:
    """Whether the dicts hold the same objects: compared by identity, so that no caller's code runs."""
    if len(a) != len(b):
        return False
    for name, value in a.items():
        if b.get(name, a) is not value:
            return False
    return True


cdef int _check_again(VM vm, tuple args, dict limits) except -1:
    """__init__() of a VM that is there: its limits stay, so it may name no others."""
    _check_keywords(args, limits)
    for name, value in limits.items():
        is_now = getattr(VM, name).__get__(vm)
        if (value if name == "backend" else _index(value, name)) != is_now:
            raise TypeError(f"the VM is made already, with {name}={is_now!r}: its limits never change.  Give them to "
                            f"VM(), or to super().__init__() in the subclass's __init__()")
    return 0


cdef list _out_of_range(const ms_config *config):
    """What ms_vm_create() refused: each argument with its value and limits."""
    cdef list limits = [
        ("address_spaces", config.address_spaces, 1, 64), ("user_mem_slots", config.user_mem_slots, 1, 2**31 - 16),
        ("gpa_bits", config.gpa_bits, 13, 64), ("hva_end_max", config.hva_end_max, 4096, HVA_ERR_MIN - 1),
    ]
    return [f"{name} must be {low} to {high if high < 2**32 else hex(high)}, not {value if value < 2**32 else hex(value)}"
            for name, value, low, high in limits if not low <= value <= high]


@cython.no_gc_clear
cdef class VM:
    """VM(*, address_spaces=1, user_mem_slots=32764, gpa_bits=52, hva_end_max=0x7FFFFFFFF000, backend='tree')
--

A virtual machine's memory slots (struct kvm, as far as slots go).

    address_spaces: 1 to 64; user_mem_slots: ids are below it, 1 to 2**31 - 16; gpa_bits: a slot ends at or below
    2**gpa_bits bytes, 13 to 64; hva_end_max: a slot's host range ends at or below it (bytes), one page at least;
    backend: one of ``memslots.backends()``.  Limits out of range raise ValueError, an unknown backend
    NotSupportedError.

    Numbers are ints, or whatever has __index__, but no bool (TypeError).  In every call, one that its argument cannot
    hold, as -1 or 2**64, raises OverflowError and is never cut off; so address_spaces=-1 does too.

    A subclass with its own __init__() gives the limits to ``super().__init__()``, which makes the VM: until then every
    call raises ClosedError.  One that has only __new__() gives them to ``super().__new__()``.

    Use from any number of threads: lookups never wait, changes wait for each other and for the lookups that may
    still see what they take away.  Close it, or use ``with``; a forgotten one is freed with its last reference.
    """

    def __cinit__(self, *args, **limits):
        """A class that inherits __init__() has a VM from here on; one with its own when that calls super().__init__()."""
        cdef PyTypeObject *type = Py_TYPE(self)
        self._closed = True  # until it is made: an __index__ or a subclass's __del__ may look
        self._raised = {}
        self._hooks = []
        if not _own_init(type, <PyTypeObject *>VM):
            _make(self, args, limits)
            self._given = limits
        elif _own_new(type, <PyTypeObject *>VM) and not args and set(limits).issubset(_VM_KEYWORDS):
            self._given = limits  # else they are arguments of the subclass's own

    @cython.embedsignature(False)  # the class has it
    def __init__(self, *args, **limits):
        """Makes the VM of a subclass that has its own __init__(), with these limits.

        On a VM that is there it does nothing, and raises TypeError if a limit differs: limits never change.
        """
        cdef dict given = self._given
        self._given = None
        if self._vm is NULL:
            _make(self, args, limits if given is None else given | limits)
        elif given is None:
            _check_again(self, args, limits)
        elif not (_own_new(Py_TYPE(self), <PyTypeObject *>VM) or (not args and _are_the_same(given, limits))):
            _check_again(self, args, limits)  # else type.__call__() only repeats what __new__() has had

    def __dealloc__(self):
        ms_vm_destroy(self._vm)

    def __reduce__(self):
        raise TypeError("a VM cannot be pickled or copied; vm.snapshot() can")

    def __enter__(self):
        _check_open(self)
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __len__(self):
        """How many slots there are, in all address spaces."""
        return 0 if self._closed else ms_nr_memslots(self._vm)

    def __bool__(self):
        return True

    def __iter__(self):
        """The slots of all address spaces, by (as_id, base_gfn); one published state of each."""
        cdef list slots = []
        for as_id in range(_config(self).address_spaces):
            slots += _range(self, 0, 0, 0, _as_id(self, as_id))
        return iter(slots)

    def __repr__(self):
        if self._closed:
            return "<VM closed>" if self._vm is not NULL else "<VM not made: __init__() was not called>"
        return (f"<VM {self.backend}: {len(self)} slots, {self.nr_memslot_pages} pages, "
                f"{self._address_spaces} address space{'s' if self._address_spaces > 1 else ''}>")

    # A VM that a subclass has not made yet has no slots.

    cdef uint64_t c_gfn_to_hva(self, uint32_t as_id, uint64_t gfn) noexcept nogil:
        return MS_HVA_ERR_BAD if self._vm is NULL else ms_gfn_to_hva(self._vm, as_id, gfn)

    cdef int c_gfn_to_memslot(self, uint32_t as_id, uint64_t gfn, ms_memslot *out) noexcept nogil:
        return -ENOENT if self._vm is NULL else ms_gfn_to_memslot(self._vm, as_id, gfn, out)

    # -- life

    def close(self):
        """Deletes every slot, without hooks, once no reader can see one.  Idempotent.

        Calls of other threads that are under way answer as if the slots were there or as if they were not.
        While the interpreter ends it only marks the VM closed: who would have to be waited for may be gone.
        Raises ReentrantChangeError inside a read section, a hook or an update of this thread, ForkedError in a child.
        """
        cdef ms_error err
        cdef int r
        if self._closed:
            return
        if _is_finalizing():
            self._closed = True  # a reader may be a thread that never runs again; the process takes the memory
            return
        with nogil:
            r = ms_vm_close(self._vm, &err)
        if r:
            raise _refusal(self, r, &err, Request())
        self._closed = True
        if self._raised:
            _report_hooks(self)

    @property
    def closed(self):
        """Whether calls raise ClosedError: after close(), and in a subclass before super().__init__()."""
        return self._closed

    @property
    def address_spaces(self):
        """How many address spaces (KVM_CAP_MULTI_ADDRESS_SPACE)."""
        return _config(self).address_spaces

    @property
    def user_mem_slots(self):
        """Ids are below this (KVM_CAP_NR_MEMSLOTS)."""
        return _config(self).user_mem_slots

    @property
    def gpa_bits(self):
        """A slot ends at or below 2**gpa_bits bytes."""
        return _config(self).gpa_bits

    @property
    def hva_end_max(self):
        """A slot's host range ends at or below this (bytes)."""
        return _config(self).hva_end_max

    @property
    def backend(self):
        """The design of the sets."""
        return _config(self).backend.decode()

    @property
    def index_policy(self):
        """When lookups may use an index, a copy of a set in flat arrays, in place of the tree (backend "tree" only).

        "auto": when the lookups since the last change pay for making it; "eager": a batch makes one at once (of up to
        64 gfns only where there are up to 4,096 slots); "off": never, batches walk the tree with many lookups side by
        side; "walk": never, one lookup after the other, as a yardstick.  Answers are the same.  Lookups make an index,
        changes never do; it takes up to 26 bytes a slot, more where slots are terabytes apart, and the one before it
        is kept for the next to be derived from.  May be set at any time; ValueError for another word.
        """
        _config(self)
        return _POLICIES[get_index_policy(self._vm)]

    @index_policy.setter
    def index_policy(self, value):
        if not isinstance(value, str):
            raise TypeError(f"index_policy must be a str, not {type(value).__name__}")
        if value not in _POLICIES:
            raise ValueError(f"index_policy must be one of {', '.join(_POLICIES)}, not {value!r}")
        _check_open(self)
        ms_set_index_policy(self._vm, _POLICIES.index(value))

    @property
    def nr_memslot_pages(self):
        """The pages of all slots in all address spaces."""
        return 0 if self._closed else ms_nr_memslot_pages(self._vm)

    # -- changes

    def set_user_memory_region(self, slot, *, guest_phys_addr, memory_size, userspace_addr=0, flags=0, as_id=0,
                               guest_memfd=-1, guest_memfd_offset=0):
        """KVM_SET_USER_MEMORY_REGION2: creates a slot, deletes it (memory_size 0), moves it or changes its flags.

        Addresses and sizes are bytes and multiples of 4096.  KVM's rules decide, in KVM's order:
        InvalidRegionError (EINVAL), RegionOverlapError (EEXIST; ``.other`` is the slot in the way), GuestMemfdError
        (EBADF), OutOfMemoryError (ENOMEM), or what a listener's prepare raised.  Then slots, bitmaps and totals are
        as before; a refused delete or move has moved the generation.  O(log n), and one or two grace periods.

        Ctrl-C, as whatever else a signal handler raises, ends the wait for another change, and nothing has happened.
        A change that has begun is completed, though it has to wait for a reader; the exception comes after it.
        """
        cdef ms_userspace_memory_region region
        cdef ms_error err
        cdef list raised
        cdef int r
        _check_open(self)
        region.slot = _u32(slot, "slot")
        region.guest_phys_addr = _u64(guest_phys_addr, "guest_phys_addr")
        region.memory_size = _u64(memory_size, "memory_size")
        region.userspace_addr = _u64(userspace_addr, "userspace_addr")
        region.flags = _u32(flags, "flags")
        region.as_id = _u32(as_id, "as_id")
        region.guest_memfd = _fd(guest_memfd, "guest_memfd")
        region.guest_memfd_offset = _u64(guest_memfd_offset, "guest_memfd_offset")
        with nogil:
            r = ms_set_user_memory_region(self._vm, &region, &err)
        if r:
            raised = _raised_by(self, &err)  # first, as in _load_refusal()
            raise _refusal(self, r, &err, Request(
                region.slot, region.as_id, region.guest_phys_addr, region.memory_size, region.userspace_addr,
                region.flags, region.guest_memfd, region.guest_memfd_offset), "", raised)
        if self._raised:
            _report_hooks(self)

    def load_memslots(self, array, as_id=0):
        """Creates many slots in one change: validated together, one swap, all or none.

        array: one dimension, structured, with integer fields id, base_gfn, npages, userspace_addr and, if there,
        flags and as_id (as MEMSLOT_DTYPE).  An entry that is refused is named by its place; errors as for
        set_user_memory_region, RegionOverlapError also for an id that exists.  O((m + n) log (m + n)).
        """
        cdef uint32_t space = _as_id(self, as_id)
        cdef cnp.ndarray rows = _rows_to_load(self, array, space)
        cdef const ms_memslot *slots = <const ms_memslot *>cnp.PyArray_DATA(rows)
        cdef size_t n = rows.size
        cdef ms_error err
        cdef int r
        err.index = 0
        with nogil:
            r = ms_load_memslots(self._vm, space, slots, n, &err)
        if r:
            raise _load_refusal(self, r, &err, rows)
        if self._raised:
            _report_hooks(self)

    def add_listener(self, listener):
        """Adds a Listener behind those there are.  ListenerError (EEXIST) if it was added before.

        TypeError for an object without the four hooks, for a hook that is a coroutine or a generator, and for a method
        whose name is nearly that of a hook, such as prepaer."""
        cdef _Hook hook = _Hook.__new__(_Hook)
        cdef ms_error err
        cdef int r
        _check_open(self)
        check_hooks(listener)
        hook.listener = listener
        hook.raised = self._raised
        hook.c.opaque = <void *>hook
        hook.c.prepare = _prepare
        hook.c.abort = _abort
        hook.c.flush = _flush
        hook.c.commit = _commit
        if not _append_hook(self, hook):
            raise refused(errno.EEXIST, "LISTENER_EXISTS", 0, None, Request())
        with nogil:
            r = ms_add_listener(self._vm, &hook.c, &err)
        if r:
            self._hooks.remove(hook)
            raise _refusal(self, r, &err, Request())
        if self._raised:
            _report_hooks(self)

    def remove_listener(self, listener):
        """Removes a Listener.  ListenerError (ENOENT) if it was not added, or was removed."""
        cdef _Hook hook = None
        cdef ms_error err
        cdef int r
        _check_open(self)
        with cython.critical_section(self):
            hook = _hook_of(self, listener)
        if hook is None:
            raise refused(errno.ENOENT, "NO_SUCH_LISTENER", 0, None, Request())
        with nogil:
            r = ms_remove_listener(self._vm, &hook.c, &err)
        if r:
            raise _refusal(self, r, &err, Request())
        self._hooks.remove(hook)
        if self._raised:
            _report_hooks(self)

    def begin_update(self, as_id=0):
        """The dual-set steps one by one, for those who study them: a context manager, see Update."""
        return Update(self, as_id)

    # -- lookups

    def gfn_to_memslot(self, gfn, as_id=0):
        """The MemorySlot that has this guest frame, an INVALID one too, or None (gfn_to_memslot())."""
        cdef ms_memslot found
        cdef uint32_t space = _as_id(self, as_id)
        if ms_gfn_to_memslot(self._vm, space, _u64(gfn, "gfn"), &found):
            return None
        return _slot(&found)

    def id_to_memslot(self, id, as_id=0):
        """The MemorySlot with this id, an INVALID one too, or None (id_to_memslot()).  O(1)."""
        cdef ms_memslot found
        cdef uint32_t space = _as_id(self, as_id)
        if ms_id_to_memslot(self._vm, space, _u32(id, "id"), &found):
            return None
        return _slot(&found)

    def gfn_to_hva(self, gfn, as_id=0):
        """The host address (bytes) of a guest frame, for writing (gfn_to_hva()).

        GfnNotMappedError in a hole or INVALID slot, ReadOnlySlotError in a READONLY one.
        """
        cdef uint32_t space = 0
        cdef uint64_t frame = _u64(gfn, "gfn"), hva
        if self._closed or as_id is not 0:
            space = _as_id(self, as_id)
        hva = ms_gfn_to_hva(self._vm, space, frame)
        if hva >= MS_HVA_ERR_MIN:
            raise _no_hva(self, hva, "gfn", frame, as_id)
        return hva

    def gpa_to_hva(self, gpa, as_id=0):
        """The host address (bytes) of a guest physical address (bytes), for writing; errors as gfn_to_hva."""
        cdef uint32_t space = 0
        cdef uint64_t address = _u64(gpa, "gpa"), hva
        if self._closed or as_id is not 0:
            space = _as_id(self, as_id)
        hva = ms_gfn_to_hva(self._vm, space, address >> 12)
        if hva >= MS_HVA_ERR_MIN:
            raise _no_hva(self, hva, "gpa", address, as_id)
        return hva + (address & 4095)

    def gfn_to_hva_prot(self, gfn, as_id=0):
        """(host address, writable): as gfn_to_hva, but READONLY slots answer too (gfn_to_hva_prot())."""
        cdef uint32_t space = _as_id(self, as_id)
        cdef uint64_t frame = _u64(gfn, "gfn"), hva
        cdef c_bool writable = False
        hva = ms_gfn_to_hva_prot(self._vm, space, frame, &writable)
        if hva >= MS_HVA_ERR_MIN:
            raise _no_hva(self, hva, "gfn", frame, as_id)
        return hva, bool(writable)

    def is_visible_gfn(self, gfn, as_id=0):
        """Whether a user's slot that is not INVALID has this guest frame (kvm_is_visible_gfn())."""
        cdef uint32_t space = _as_id(self, as_id)
        return bool(ms_is_visible_gfn(self._vm, space, _u64(gfn, "gfn")))

    def gfn_to_hva_many(self, gfns, out=None, as_id=0, bint write=True):
        """Host addresses (uint64, bytes) of guest frames: an array of the same shape.

        gfns: integers that are not negative, of any shape: an ndarray, a buffer, an object with __array__ (a pandas
        Series, an Arrow array), a list.  uint64 and int64 in the machine's byte order are read where they lie; others
        are converted first.  Floats, bools and masked arrays raise TypeError, which says how to convert them.
        out: a writable ndarray of uint64 of that shape.  HVA_ERR_BAD stands in holes and INVALID slots, HVA_ERR_RO_BAD
        in READONLY slots when write is true; test with ``>= HVA_ERR_MIN``.
        All answers come from one published state, and no change waits for a long call (``index_policy`` says how).
        TypeError and ValueError before anything is written; Ctrl-C ends a long call of the main thread within some
        ten milliseconds (while it makes an index, when that is done: 0.1 s for a million slots), and what was answered
        until then stands in out.
        """
        return _many(self, GFN_TO_HVA, gfns, "gfns", out, cnp.NPY_UINT64, as_id, write)

    def gpa_to_hva_many(self, gpas, out=None, as_id=0, bint write=True):
        """As gfn_to_hva_many, from guest physical addresses in bytes."""
        return _many(self, GPA_TO_HVA, gpas, "gpas", out, cnp.NPY_UINT64, as_id, write)

    def gfn_to_slot_id_many(self, gfns, out=None, as_id=0):
        """The ids (int32) of the slots of guest frames, -1 in holes and INVALID slots; arrays as gfn_to_hva_many."""
        return _many(self, GFN_TO_ID, gfns, "gfns", out, cnp.NPY_INT32, as_id, False)

    def memslots_in_gfn_range(self, start, end, as_id=0):
        """The slots that have a frame in [start, end), by ascending gfn; none when start >= end."""
        return _range(self, 1, _u64(start, "start"), _u64(end, "end"), _as_id(self, as_id))

    def memslots_in_hva_range(self, start, last, as_id=0):
        """The slots that have a host byte in [start, last], by (userspace_addr, base_gfn); none when start > last."""
        return _range(self, 2, _u64(start, "start"), _u64(last, "last"), _as_id(self, as_id))

    def memslots(self, as_id=0):
        """All slots of an address space, by ascending gfn."""
        return _range(self, 0, 0, 0, _as_id(self, as_id))

    def memslots_array(self, as_id=0):
        """All slots of an address space by ascending gfn: a structured array of MEMSLOT_DTYPE, owned by the caller."""
        cdef uint32_t space = _as_id(self, as_id)
        cdef size_t room = ms_nr_memslots(self._vm), n
        cdef cnp.ndarray rows
        cdef ms_memslot *found
        while True:
            rows = np.zeros(room, dtype=MEMSLOT_DTYPE)
            found = <ms_memslot *>cnp.PyArray_DATA(rows)
            with nogil:
                n = ms_memslots(self._vm, space, found, room)
            if n <= room:
                return rows[:n].copy() if n < room else rows
            room = n

    def hva_to_gfns(self, hva):
        """Every (MemorySlot, gfn) of every address space that the host byte at hva backs: slots may share memory.

        By (as_id, userspace_addr, base_gfn); INVALID slots are among them (kvm_handle_hva_range())."""
        cdef uint64_t address = _u64(hva, "hva")
        cdef size_t room = FIRST_ROOM, n, i
        cdef ms_hva_hit *found
        _check_open(self)
        while True:
            found = <ms_hva_hit *>malloc(room * sizeof(ms_hva_hit))
            if found is NULL:
                raise _out_of_memory()
            try:
                with nogil:
                    n = ms_hva_to_gfns(self._vm, address, found, room)
                if n <= room:
                    return [(_slot(&found[i].slot), found[i].gfn) for i in range(n)]
                room = n
            finally:
                free(found)

    def generation(self, as_id=0):
        """The settled generation of an address space: each swap adds the number of address spaces."""
        return ms_generation(self._vm, _as_id(self, as_id)) & ~MS_GEN_UPDATE_IN_PROGRESS

    def read(self):
        """A context manager: one read section, in which everything answers from one published state.

        It belongs to the thread that enters it, and holds up changes until it ends; a change inside it raises
        ReentrantChangeError."""
        _check_open(self)
        return ReadSection(self)

    def snapshot(self, as_id=0):
        """An immutable, picklable copy of the slots of an address space."""
        return _snapshot(self, _as_id(self, as_id))

    def create_vcpu(self):
        """A VCPU, which has a last_used_slot of its own."""
        return VCPU(self)

    # -- dirty log

    def mark_page_dirty(self, gfn, as_id=0):
        """Sets the page's bit where logging is on; nothing in holes; READONLY is ignored (mark_page_dirty())."""
        cdef uint32_t space = _as_id(self, as_id)
        ms_mark_page_dirty(self._vm, space, _u64(gfn, "gfn"))

    def mark_page_dirty_many(self, gfns, as_id=0):
        """mark_page_dirty for an array of gfns, as gfn_to_hva_many takes them; each finds the slots of its moment."""
        cdef uint32_t space = _as_id(self, as_id)
        _look_up(self, MARK, _in_a_line(_numbers(gfns, "gfns")), None, space, True)

    def get_dirty_log(self, slot, as_id=0):
        """KVM_GET_DIRTY_LOG: ceil(npages / 64) uint64 words, bit i of word j is page 64 j + i; an array of your own.

        Clears the log, unless manual_dirty_log_protect is on.  NoSuchSlotError (ENOENT) without slot or log,
        InvalidRegionError (EINVAL) for an id or address space out of range.  Where a ReaderStallWarning is an error,
        what is raised has the words as ``.dirty_log``: they are gone from the log.
        """
        cdef uint32_t id = _u32(slot, "slot"), space = _u32(as_id, "as_id")
        cdef size_t room = 1, n = 0
        cdef cnp.ndarray words
        cdef uint64_t *data
        cdef ms_error err
        cdef int r
        _check_open(self)
        while True:
            words = np.zeros(room, dtype=np.uint64)
            data = <uint64_t *>cnp.PyArray_DATA(words)
            with nogil:
                r = ms_get_dirty_log(self._vm, space, id, data, room, &n, &err)
            if r == 0:
                break
            if r != -ENOBUFS:
                raise _refusal(self, r, &err, Request(id, space))
            room = n
        if n < room:
            words = words[:n].copy()
        if self._raised:
            _report_harvest(self, words)
        return words

    def _get_dirty_log_null(self, slot, as_id=0):
        """KVM_GET_DIRTY_LOG with a NULL bitmap: harvests, loses the bits, raises EFAULT.  For replay."""
        cdef uint32_t id = _u32(slot, "slot"), space = _u32(as_id, "as_id")
        cdef size_t n
        cdef ms_error err
        cdef int r
        _check_open(self)
        with nogil:
            r = ms_get_dirty_log(self._vm, space, id, NULL, 0, &n, &err)
        raise _refusal(self, r, &err, Request(id, space, bits_lost=not self.manual_dirty_log_protect))

    def clear_dirty_log(self, slot, first_page, num_pages, bitmap, as_id=0):
        """KVM_CLEAR_DIRTY_LOG: clears, of pages [first_page, first_page + num_pages), those whose bit is set.

        bitmap: ceil(num_pages / 64) uint64 words, bit 0 is first_page; int64 stands for the same 64 bits.  first_page
        is a multiple of 64, num_pages too unless it ends where the slot ends.  None is KVM's bad pointer: EFAULT where
        KVM looks at it, and nothing is cleared.
        """
        cdef uint32_t id = _u32(slot, "slot"), space = _u32(as_id, "as_id")
        cdef uint64_t first = _u64(first_page, "first_page")
        cdef uint32_t num = _u32(num_pages, "num_pages")
        cdef cnp.ndarray words = None
        cdef const uint64_t *data = NULL
        cdef size_t n = 0
        cdef ms_error err
        cdef int r
        _check_open(self)
        if bitmap is not None:
            words = _words(bitmap, "bitmap")
            if words.ndim != 1:
                raise ValueError(f"bitmap must have one dimension, not {words.ndim}")
            n = cnp.PyArray_SIZE(words)
            if n == (<size_t>num + 63) // 64:  # else it is refused unread, and may be no more than a claim to be large
                words = np.ascontiguousarray(words)
            data = <const uint64_t *>cnp.PyArray_DATA(words)
        with nogil:
            r = ms_clear_dirty_log(self._vm, space, id, first, num, data, n, &err)
        if r:
            raise _refusal(self, r, &err, Request(id, space, first_page=first, num_pages=num, value=n))
        if self._raised:
            _report_hooks(self)

    @property
    def manual_dirty_log_protect(self):
        """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 0; 1, get_dirty_log does not clear; 3, new logs start all set too."""
        return ms_manual_dirty_log_protect(self._vm) if self._vm is not NULL else 0

    @manual_dirty_log_protect.setter
    def manual_dirty_log_protect(self, value):
        cdef uint64_t bits = _u64(value, "manual_dirty_log_protect")
        cdef ms_error err
        cdef int r
        _check_open(self)
        with nogil:
            r = ms_set_manual_dirty_log_protect(self._vm, bits, &err)
        if r:
            raise _refusal(self, r, &err, Request(value=bits))
        if self._raised:
            _report_hooks(self)

    # -- readers that stay

    @property
    def stall_warning_ms(self):
        """A change that has waited so long (milliseconds) for one read section warns of it; 0: never.

        The warning is a ReaderStallWarning that names the reader's thread.  It comes again when the wait has
        doubled, and so on; the change goes on waiting.  Where warnings are errors it is raised when the change is
        complete.  Setting it waits as a change does, and raises what a change raises.
        """
        return self._stall_warning_ms

    @stall_warning_ms.setter
    def stall_warning_ms(self, value):
        cdef uint32_t ms = _u32(value, "stall_warning_ms")
        cdef ms_error err
        cdef int r
        _check_open(self)
        with nogil:
            r = ms_set_stall_report(self._vm, ms, _stalled, <void *>self._raised, &err)
        if r:
            raise _refusal(self, r, &err, Request())
        self._stall_warning_ms = ms
        if self._raised:
            _report_hooks(self)

    # -- judges

    def check(self):
        """Walks every invariant of both sets; InvariantError names the first that does not hold by its number."""
        cdef ms_violation violation
        cdef ms_error err
        cdef int r
        _check_open(self)
        with nogil:
            r = ms_check(self._vm, &violation, &err)
        if r == -EUCLEAN:
            number = violation.invariant.decode()
            error = InvariantError(EUCLEAN, f"{number}: {violation.text.decode()}")
            error.invariant = number
            raise error
        if r:
            raise _refusal(self, r, &err, Request())
        if self._raised:
            _report_hooks(self)

    def stats(self):
        """Counters since the VM was made, as a dict: lookups by kind of hit, changes by kind, swaps, those that
        waited for a reader, readers that were warned of, memory held.  Always on: a lookup counts where its thread writes anyway."""
        cdef ms_stats stats
        _check_open(self)
        ms_get_stats(self._vm, &stats)
        return dict(stats)

include "_vcpu.pxi"
include "_update.pxi"
include "_snapshot.pxi"
include "_measure.pxi"
