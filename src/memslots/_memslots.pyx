# SPDX-License-Identifier: MIT
# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""The Cython binding: checks arguments, releases the GIL, and turns an errno into an exception.  It has no policy.

Every call that takes slots_lock or may wait runs without the GIL.  A hook needs the GIL to finish, so a waiter that
kept the GIL would never return.  A single lookup keeps the GIL: it cannot wait, and it costs less than a release.
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

import atexit
import errno
import inspect
import operator
import sys
import threading
import warnings
from mmap import mmap

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear, PyErr_Occurred, PyErr_WarnEx
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport Py_TYPE, PyTypeObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset
from posix.unistd cimport getpid
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from ._calls cimport *
from ._comparison cimport *
from ._measure cimport *
from ._preview cimport *
from ._snapshot cimport *
from .libmemslots cimport *


cdef extern from "<errno.h>" nogil:
    enum:
        ECANCELED
        EINTR
        ENOBUFS
        ENOENT
        EUCLEAN

from .constants import HVA_ERR_BAD, HVA_ERR_MIN, HVA_ERR_RO_BAD, MEM_MAX_NR_PAGES, MEMSLOT_DTYPE, MemFlag
from .diff import diff_rows
from .errors import (
    ClosedError,
    GfnNotMappedError,
    InvalidRegionError,
    InvariantError,
    NoSuchSlotError,
    OutOfMemoryError,
    ReadOnlySlotError,
    Request,
    UpdateError,
    from_errno,
    reader_stall,
    refused,
)
from .listener import Change, ChangeKind, check_hooks, has_own
from .memory import HostRanges, HostRangesMany, PinnedBy, SlotsOfRanges
from .snapshot_file import encode as encode_snapshot, load as load_snapshot, save as save_snapshot

cnp.import_array()
ms_simd()  # reads the environment at import: a later call runs without the GIL, while another thread may change it

__version__ = MS_VERSION.decode()

# The number of slots that the first try of a range query has room for.
cdef enum: FIRST_ROOM = 64

# The number of ranges that the first try of a harvest has room for.
cdef enum: FIRST_RANGES = 1024

# From the number of a rule to its name.
_RULES = {number: ms_rule_name(<ms_rule>number).decode() for number in range(MS_RULE_NONE + 1, MS_RULE_NR)}

_POLICIES = ("auto", "off", "eager", "walk")  # in the order of enum ms_index_policy

# The rules that refuse a call before it has the VM's lock.
_NOT_LOCKED = frozenset((MS_RULE_READ_SECTION, MS_RULE_HOOK, MS_RULE_HOOK_BUSY, MS_RULE_UPDATE, MS_RULE_UPDATE_OWNER,
                         MS_RULE_FORKED, MS_RULE_CLOSED, MS_RULE_INTERRUPTED))


def build_info() -> dict:
    """Describes the build of the C core: compiler, whether asserts are on, sanitizer.

    The key "simd" gives the vector instructions that batches use on this CPU.  The environment variable MEMSLOTS_SIMD
    can choose another level of ``simd_levels()``."""
    info = dict(item.split("=", 1) for item in ms_build_info().decode().split("; "))
    return info | {"simd": ms_simd().decode()}


def simd_levels() -> tuple:
    """The names of the vector levels that batches can use on this CPU, "portable" first.  All give the same answers."""
    cdef list names = []
    while ms_simd_name(len(names)) is not NULL:
        names.append(ms_simd_name(len(names)).decode())
    return tuple(names)


def set_simd(name):
    """Makes all batches of this process use another level of ``simd_levels()``, for tests and measurements.

    NotSupportedError (ENOSYS): this CPU has no level of that name."""
    if name not in simd_levels():
        raise from_errno(errno.ENOSYS, f"this CPU has no level {name!r}; it has {', '.join(simd_levels())}")
    ms_set_simd(name.encode())


def backends() -> tuple:
    """The names of the designs in this build; each is valid as ``VM(backend=...)``."""
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
include "_mapping.pxi"
include "_guest.pxi"


# ---- functions that the methods of VM share ------------------------------------------------------------------------

cdef const ms_config *_config(VM vm) except NULL:
    """The limits of an open or a closed VM.  ClosedError if a subclass has not created the VM yet."""
    if vm._vm is NULL:
        _check_open(vm)
    return ms_vm_config(vm._vm)


cdef int _check_open(VM vm) except -1:
    if vm._closed and vm._vm is NULL:
        raise ClosedError(errno.EBADF, f"{type(vm).__name__}.__init__() has not called super().__init__(), which "
                          "creates the VM", rule="CLOSED")
    if vm._closed:
        raise ClosedError(errno.EBADF, "the VM is closed", rule="CLOSED")
    return 0


cdef uint32_t _as_id_slow(VM vm, object value) except? 0xDEAD:
    cdef uint32_t as_id
    if vm._closed:
        _check_open(vm)
    as_id = _u32(value, "as_id")
    if as_id >= vm._address_spaces:
        raise refused(errno.EINVAL, "AS_ID", vm._address_spaces, None, Request(as_id=as_id))
    return as_id


cdef inline uint32_t _as_id(VM vm, object value) except? 0xDEAD:
    """The number of an address space of this VM.  Checks too that the VM is open.

    The test with `is` is fast for the default: CPython has only one object for 0."""
    if vm._closed or value is not 0:
        return _as_id_slow(vm, value)
    return 0


cdef list _raised_by(VM vm, const ms_error *err):
    """Takes the exceptions that the hooks of a refused call raised.

    A call that did not get the lock ran no hook.  Exceptions that are kept for this thread then belong to the outer
    change whose hook made the call, and stay where they are."""
    return [] if err.rule in _NOT_LOCKED else _take_raised(vm) or []


cdef object _refusal(VM vm, int r, const ms_error *err, object request, str where="", list raised=None):
    """The exception for a call that the core refused.  If a prepare hook refused the change, its own exception."""
    if err.rule == MS_RULE_INTERRUPTED:
        return _interrupt()
    if raised is None:
        raised = _raised_by(vm, err)
    _drain_released()
    if err.rule == MS_RULE_LISTENER_REFUSED and r == -ECANCELED:
        return _with_notes(raised.pop(0), raised) if raised else _out_of_memory()
    other = _slot_or_none(&err.other)
    return _with_notes(refused(-r, _RULES[err.rule], err.limit, other, request, where), raised)


cdef object _slot_refusal(VM vm, int r, const ms_error *err, uint32_t as_id, uint32_t id, object gpa=None,
                          uint32_t set=0, uint32_t clear=0):
    """The exception for a refused short form, whose request has the other values of the present slot."""
    cdef list raised = _raised_by(vm, err)  # taken first, as in _load_refusal()
    cdef ms_memslot slot
    if ms_id_to_memslot(vm._vm, as_id, id, &slot):
        return _refusal(vm, r, err, Request(id, as_id), "", raised)
    return _refusal(vm, r, err, Request(
        id, as_id, slot.base_gfn << 12 if gpa is None else gpa, slot.npages << 12, slot.userspace_addr,
        slot.flags & ~clear | set), "", raised)


cdef list _take_raised(VM vm):
    cdef list raised = None
    if vm._raised:
        try:
            raised = vm._raised.pop(PyThread_get_thread_ident(), None)
        except MemoryError:
            vm._raised.clear()  # a lost exception is better than one that a later, unrelated call raises
            raise
    return raised


cdef object _with_notes(object error, list raised):
    """Adds a note to the exception of a change for each further exception of its hooks."""
    for other in raised:
        try:
            words = repr(other)
        except Exception:
            words = f"an exception of type {type(other).__name__}, whose repr() failed"
        error.add_note(f"a hook of the same change raised {words}")
    return error


cdef int _report_hooks(VM vm) except -1:
    """The end of a successful call: raises the exceptions of flush and commit, and warnings that are errors.

    Nothing else may fail after the change, so that the caller gets them."""
    cdef list raised = _take_raised(vm)
    _drain_released()
    if raised:
        error = raised.pop(0)
        source = "as a warning" if isinstance(error, Warning) else "by a hook"
        error.add_note(f"raised {source}; the change itself is complete")
        raise _with_notes(error, raised)
    return 0


cdef int _report_harvest(VM vm, cnp.ndarray words) except -1:
    """As _report_hooks().  The exception carries the bits that the call took out of the log, so that none is lost."""
    try:
        _report_hooks(vm)
    except BaseException as error:
        error.dirty_log = words
        raise
    return 0


cdef size_t _log_into(VM vm, uint32_t id, uint32_t space, cnp.ndarray words) except? 0:
    """Fills words with the log, and returns its number of words.  If words has fewer, the log is unchanged."""
    cdef uint64_t *data = <uint64_t *>cnp.PyArray_DATA(words)
    cdef size_t room = cnp.PyArray_SIZE(words), n = 0
    cdef ms_error err
    cdef int r
    _check_open(vm)
    with nogil:
        r = ms_get_dirty_log(vm._vm, space, id, data, room, &n, &err)
    if r and r != -ENOBUFS:
        raise _refusal(vm, r, &err, Request(id, space))
    return n


cdef cnp.ndarray _whole_log(VM vm, uint32_t id, uint32_t space):
    """The slot may change its size between two tries."""
    cdef size_t room = 1, n
    cdef cnp.ndarray words
    while True:
        words = np.zeros(room, dtype=np.uint64)
        n = _log_into(vm, id, space, words)
        if n <= room:
            return words if n == room else words[:n].copy()
        room = n


cdef size_t _harvest_into(VM vm, uint32_t space, bint clear, uint64_t *gfn, cnp.ndarray out) except? 0:
    """Fills out from *gfn on, and returns the number of ranges.  *gfn becomes the next page, or MS_GFN_END."""
    cdef ms_gfn_range *ranges = <ms_gfn_range *>cnp.PyArray_DATA(out)
    cdef size_t room = cnp.PyArray_DIM(out, 0), n = 0
    cdef ms_error err
    cdef int r
    with nogil:
        r = ms_harvest_dirty(vm._vm, space, clear, gfn, ranges, room, &n, &err)
    if r:
        raise _refusal(vm, r, &err, Request(as_id=space))
    return n


cdef int _harvest_parts(VM vm, uint32_t space, bint clear, uint64_t gfn, list parts) except -1:
    """Appends arrays of ranges until no dirty page is left.  Each has room for more ranges than the one before."""
    cdef size_t room = FIRST_RANGES, n
    while True:
        part = np.zeros((room, 2), dtype=np.uint64)  # if memory runs out below, the rows that are not used say 0 pages
        parts.append(part)
        try:
            n = _harvest_into(vm, space, clear, &gfn, part)
        except BaseException:
            parts.pop()
            raise
        parts[len(parts) - 1] = part[:n].copy() if n < room // 2 else part[:n]
        if gfn >= MS_GFN_END:
            return 0
        room *= 4


cdef cnp.ndarray _rows_to_load(VM vm, object array, uint32_t as_id):
    """The rows as the engine reads them.  The length is checked before the copy: an array with a stride of 0 can have
    any length without the memory for it."""
    cdef cnp.ndarray table = _table(array, "load_memslots")
    if cnp.PyArray_SIZE(table) > _config(vm).user_mem_slots:
        raise ValueError(f"load_memslots takes at most user_mem_slots = {_config(vm).user_mem_slots} entries, "
                         f"not {cnp.PyArray_SIZE(table)}")
    return _rows_of(table, as_id)


cdef object _load_refusal(VM vm, int r, const ms_error *err, object rows):
    # Taken first: if memory runs out below, a later call must not raise these exceptions.
    cdef list raised = _raised_by(vm, err)
    if err.rule in (MS_RULE_NO_MEMORY, MS_RULE_LISTENER_REFUSED) or err.rule in _NOT_LOCKED:
        return _refusal(vm, r, err, Request(), "", raised)
    if err.rule == MS_RULE_DUPLICATE_ID:
        first = np.flatnonzero(rows["id"] == rows[err.index]["id"])[0]
        if first < err.index:
            return _with_notes(_duplicate_id_error(rows, first, err.index, _slot_or_none(&err.other), -r), raised)
    return _refusal(vm, r, err, _row_request(rows, err.index), f"entry {err.index}: ", raised)


cdef _Hook _hook_of(VM vm, object listener):
    """The hook of a listener that was added, or None.  The caller is in the VM's critical section."""
    for hook in vm._hooks:
        if (<_Hook>hook).listener is listener:
            return hook
    return None


cdef bint _append_hook(VM vm, _Hook hook) except -1:
    """Returns False if the listener was added already.  If two threads add it at once, one of them gets False, also on
    a Python without a GIL."""
    cdef bint is_new
    with cython.critical_section(vm):
        is_new = _hook_of(vm, hook.listener) is None
        if is_new:
            vm._hooks.append(hook)
    return is_new


# ---- the end of a VM that nobody has closed ------------------------------------------------------------------------

cdef bint _has_closed_hooks(VM vm) noexcept:
    for hook in vm._hooks or ():  # None: there was no memory for the VM
        if (<_Hook>hook).c.closed is not NULL:
            return True
    return False


cdef void _close_at_end(VM vm) noexcept:
    """While the interpreter exits, no hook is called: see close().  Nor if a thread that goes on has an open read section
    without a reference to the VM: a close would wait for the end of that thread."""
    if _exiting or _is_finalizing() or vm._has_lost_section:
        return
    if _is_last_reference(<void *>vm) and ms_thread_may_change():
        _close_ended(vm)
    else:
        try:
            _ended.append(vm)
        except MemoryError:
            return
        _add_pending()


cdef void _close_ended(VM vm) noexcept:
    cdef ms_error err
    cdef int r
    if vm._closed or vm._has_lost_section:
        return
    with nogil:
        r = ms_vm_close(vm._vm, &err)
    if r:
        return
    vm._closed = True
    _report_unraisable(vm)


cdef void _report_unraisable(VM vm) noexcept:
    _report_hooks(vm)  # an exception goes to sys.unraisablehook


cdef void _close_all_ended() noexcept:
    cdef VM vm
    while _ended and not _exiting and ms_thread_may_change():
        try:
            vm = _ended.pop()
        except IndexError:
            return
        _close_ended(vm)


cdef int _close_pending(void *unused) noexcept with gil:
    _close_all_ended()
    return 0


_closing = _close_pending


cdef object _hva_error(uint64_t hva, str unit, uint64_t number, object as_id):
    """The exception for an error value in place of a host address.  unit: "gfn" or "gpa"."""
    if hva == MS_HVA_ERR_RO_BAD:
        return ReadOnlySlotError(errno.EFAULT, f"{unit} {number:#x} of address space {as_id} is in a READONLY "
                                 "slot; gfn_to_hva_prot() gives the address for reading")
    return GfnNotMappedError(errno.EFAULT, f"{unit} {number:#x} is in no slot of address space {as_id}, or in "
                             "one that is being deleted or moved")


cdef object _many(VM vm, _Many what, object numbers, str name, object out, int type_num, object as_id, bint write):
    # as_id comes first: its __index__ is code of the caller, which must not run after the checks of the arrays.
    cdef uint32_t space = _as_id(vm, as_id)
    cdef cnp.ndarray array = _numbers(numbers, name)
    cdef cnp.ndarray result = _result(out, array, type_num)
    cdef cnp.ndarray target = result
    if not _in_step(array, result):
        array = np.ascontiguousarray(array)  # no copy if only the result lacks a single stride
        if not _in_step(array, result):
            target = _contiguous_like(result, what)
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


cdef cnp.ndarray _contiguous_like(cnp.ndarray result, _Many what):
    """A contiguous array for the answers.  A long call may be interrupted, and a read of guest memory may be refused.  So it
    starts with the caller's values: they are copied back for the elements that were not answered."""
    if what == READ_U64 or cnp.PyArray_SIZE(result) > <cnp.npy_intp>MS_BATCH_PIECE:
        return result.copy(order="C")
    return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(result), cnp.PyArray_DIMS(result), cnp.PyArray_TYPE(result), 0)


cdef int _look_up(VM vm, _Many what, cnp.ndarray numbers, cnp.ndarray result, uint32_t as_id,
                  bint write) except -1:
    """Runs one batch.  result is None for MARK, which has no answers.  For WRITE_U64 it has the values to write."""
    cdef ms_batch batch
    cdef _PollClock clock
    cdef ms_error err
    cdef int r
    batch.in_ = cnp.PyArray_DATA(numbers)
    batch.in_stride = _stride(numbers)
    batch.out = NULL if result is None else cnp.PyArray_DATA(result)
    batch.out_stride = 0 if result is None else _stride(result)
    batch.n = cnp.PyArray_SIZE(numbers)
    batch.poll = NULL
    if batch.n <= MS_BATCH_BRIEF:  # a release of the GIL costs more than so few lookups
        r = _run_batch(vm._vm, what, as_id, &batch, write, &err)
        _drain_released()
        return _end_batch(vm, r, &err, as_id) if r else 0
    if batch.n > MS_BATCH_PIECE and _start_poll_clock(&clock):
        batch.poll = _poll_signals
        batch.opaque = &clock
    with nogil:
        r = _run_batch(vm._vm, what, as_id, &batch, write, &err)
    _drain_released()
    return _end_batch(vm, r, &err, as_id) if r else 0


cdef int _end_batch(VM vm, int r, const ms_error *err, uint32_t as_id) except -1:
    """Raises the exception of a batch that ended early."""
    if r == -EINTR:
        return _raise_pending()
    raise _guest_refusal(vm, r, err, as_id)


cdef enum _Range:
    ALL_SLOTS
    GFN_RANGE
    HVA_RANGE


cdef size_t _fill(VM vm, _Range what, uint64_t start, uint64_t end, uint32_t as_id, ms_memslot *out,
                  size_t room) noexcept nogil:
    if what == GFN_RANGE:
        return ms_memslots_in_gfn_range(vm._vm, as_id, start, end, out, room)
    if what == HVA_RANGE:
        return ms_memslots_in_hva_range(vm._vm, as_id, start, end, out, room)
    return ms_memslots(vm._vm, as_id, out, room)


cdef list _range(VM vm, _Range what, uint64_t start, uint64_t end, uint32_t as_id):
    """Repeats the query with more room until all slots fit.  Each try is a read section of its own."""
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

_VM_KEYWORDS = ("address_spaces", "user_mem_slots", "gpa_bits", "hva_end_max", "backend", "dereference_raw_addresses")


cdef int _check_keywords(tuple args, dict limits) except -1:
    """Checks the arguments of VM().  The messages are those of Python for a function of this name."""
    if args:
        raise TypeError(f"VM() takes keyword arguments only ({', '.join(_VM_KEYWORDS)}), but got {len(args)} without a "
                        "keyword")
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


cdef int _create(VM vm, tuple args, dict limits) except -1:
    """Creates the VM.  The limits are read before that: their __index__ is code of the caller, which may itself call
    __init__()."""
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
    config.dereference_raw_addresses = _flag(
        limits.get("dereference_raw_addresses", False), "dereference_raw_addresses")
    config.report_stall = _stalled
    config.stall_opaque = <void *>vm._raised
    with cython.critical_section(vm):
        if vm._vm is not NULL:
            raise TypeError("the VM was made by another __init__() call during this one")
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


cdef bint _have_same_objects(dict a, dict b) noexcept:
    """Whether the dicts hold the same objects.  Compares by identity, so that no code of the caller runs."""
    if len(a) != len(b):
        return False
    for name, value in a.items():
        if b.get(name, a) is not value:
            return False
    return True


cdef int _check_unchanged(VM vm, tuple args, dict limits) except -1:
    """__init__() of a VM that exists: the limits never change, so TypeError if one of them differs."""
    _check_keywords(args, limits)
    for name, value in limits.items():
        current = getattr(VM, name).__get__(vm)
        if (_index(value, name) if type(current) is int else value) != current:
            raise TypeError(f"the VM was made already, with {name}={current!r}: its limits never change.  Give them to "
                            f"VM(), or to super().__init__() in the subclass's __init__()")
    return 0


cdef list _out_of_range(const ms_config *config):
    """A text for each argument that ms_vm_create() refused, with its value and its limits."""
    cdef list limits = [
        ("address_spaces", config.address_spaces, 1, MS_ADDRESS_SPACES_MAX),
        ("user_mem_slots", config.user_mem_slots, 1, MS_USER_MEM_SLOTS_MAX),
        ("gpa_bits", config.gpa_bits, 13, 64), ("hva_end_max", config.hva_end_max, 4096, HVA_ERR_MIN - 1),
    ]
    return [f"{name} must be {low} to {high if high < 2**32 else hex(high)}, not {value if value < 2**32 else hex(value)}"
            for name, value, low, high in limits if not low <= value <= high]


@cython.no_gc_clear
cdef class VM:
    """VM(*, address_spaces=1, user_mem_slots=32764, gpa_bits=52, hva_end_max=0x7FFFFFFFF000, backend='tree', dereference_raw_addresses=False)
--

A virtual machine's memory slots (the part of struct kvm that concerns slots).

    address_spaces: how many address spaces, 1 to 64.
    user_mem_slots: slot ids are below this number, 1 to 2**31 - 16.
    gpa_bits: a slot ends at or below 2**gpa_bits bytes of guest memory, 13 to 64.
    hva_end_max: a slot's host range ends at or below this address (bytes), at least one page.
    backend: the design of the engine, one of ``memslots.backends()``.
    dereference_raw_addresses: whether read_guest(), write_guest() and their relatives use the userspace_addr of a slot
    that set_user_memory_region() or load_memslots() made.  Then the caller keeps that memory alive.  Slots that
    map_buffer() made do not need it.

    A limit out of range raises InvalidRegionError (a ValueError).  An unknown backend raises NotSupportedError.
    MemslotsError (EAGAIN): the process has no free pthread key.

    A number is an int or an object with __index__.  A bool raises TypeError.  In every call a number that its argument
    cannot hold, such as -1 or 2**64, raises OverflowError; so does address_spaces=-1.  No number is ever truncated.

    A subclass with its own __init__() passes the limits to ``super().__init__()``, which creates the VM.  Until then
    every call raises ClosedError.  A subclass that has only __new__() passes them to ``super().__new__()``.

    Any number of threads may use a VM.  Lookups never wait.  A change waits for other changes, and for the lookups that
    may still use the set of slots that it replaces.  Call close() at the end, or use ``with``.  A VM that was not
    closed is freed with its last reference.
    """

    def __cinit__(self, *args, **limits):
        """Creates the VM if the class inherits __init__().  Otherwise the class's own __init__() does so, when it calls
        super().__init__()."""
        cdef PyTypeObject *type = Py_TYPE(self)
        self._closed = True  # until the VM exists: an __index__ or a subclass's __del__ may use the object before
        self._raised = {}
        self._hooks = []
        self._pins = _Pin.__new__(_Pin)
        if not _own_init(type, <PyTypeObject *>VM):
            _create(self, args, limits)
            self._given = limits
        elif _own_new(type, <PyTypeObject *>VM) and not args and set(limits).issubset(_VM_KEYWORDS):
            self._given = limits  # otherwise they are arguments for the subclass

    @cython.embedsignature(False)  # the class shows the signature
    def __init__(self, *args, **limits):
        """Creates the VM of a subclass that has its own __init__(), with these limits.

        Does nothing if the VM exists.  TypeError if a limit differs then: limits never change.
        """
        cdef dict given = self._given
        self._given = None
        if self._vm is NULL:
            _create(self, args, limits if given is None else given | limits)
        elif given is None:
            _check_unchanged(self, args, limits)
        elif not (_own_new(Py_TYPE(self), <PyTypeObject *>VM) or (not args and _have_same_objects(given, limits))):
            _check_unchanged(self, args, limits)  # otherwise type.__call__() repeats the arguments of __new__()

    def __del__(self):
        """Calls the closed hooks of a VM that ends without close()."""
        if not self._closed and _has_closed_hooks(self):
            _close_at_end(self)

    def __dealloc__(self):
        # The closed hooks were called already, or never: code of the user must not get this object any more.  The garbage
        # collector may have freed the hooks before this object.
        ms_forget_listeners(self._vm)
        ms_vm_destroy(self._vm)
        self._vm = NULL
        _drain_released()
        _forget_pins(self)

    def __reduce__(self):
        raise TypeError("a VM cannot be pickled or copied; vm.snapshot() can")

    def __enter__(self):
        _check_open(self)
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __len__(self):
        """The number of slots in all address spaces."""
        return 0 if self._closed else ms_nr_memslots(self._vm)

    def __bool__(self):
        return True

    def __iter__(self):
        """Iterates over the slots of all address spaces, by (as_id, base_gfn).

        The slots of one address space come from one published state."""
        cdef list slots = []
        for as_id in range(_config(self).address_spaces):
            slots += _range(self, ALL_SLOTS, 0, 0, _as_id(self, as_id))
        return iter(slots)

    def __repr__(self):
        if self._closed:
            return "<VM closed>" if self._vm is not NULL else "<VM not made: __init__() was not called>"
        return (f"<VM {self.backend}: {len(self)} slots, {self.nr_memslot_pages} pages, "
                f"{self._address_spaces} address space{'s' if self._address_spaces > 1 else ''}>")

    # Before a subclass has created the VM, these find no slot.

    cdef uint64_t c_gfn_to_hva(self, uint32_t as_id, uint64_t gfn) noexcept nogil:
        return MS_HVA_ERR_BAD if self._vm is NULL else ms_gfn_to_hva(self._vm, as_id, gfn)

    cdef int c_gfn_to_memslot(self, uint32_t as_id, uint64_t gfn, ms_memslot *out) noexcept nogil:
        return -ENOENT if self._vm is NULL else ms_gfn_to_memslot(self._vm, as_id, gfn, out)

    # -- limits and life cycle

    def close(self):
        """Deletes every slot, after the readers that may see one have left.  The only hook that it calls is closed().

        An exception of closed() is raised when the VM is closed.  A second call does nothing.  A lookup of another thread that overlaps with close() gets the answer from before
        or from after it.  While the interpreter shuts down, close() only marks the VM closed: a reader may be a thread
        that never runs again, so a wait for it would not end.

        Raises ReentrantChangeError inside a read section, a hook or an update of this thread, and ForkedError in a
        forked child.
        """
        cdef ms_error err
        cdef int r
        if self._closed:
            return
        if _is_finalizing():
            self._closed = True  # does not wait: a reader may be a thread that never runs again
            return
        with nogil:
            r = ms_vm_close(self._vm, &err)
        if r:
            raise _refusal(self, r, &err, Request())
        self._closed = True
        _report_hooks(self)

    @property
    def closed(self):
        """True if calls raise ClosedError: after close(), and in a subclass before super().__init__()."""
        return self._closed

    @property
    def address_spaces(self):
        """The number of address spaces (KVM_CAP_MULTI_ADDRESS_SPACE)."""
        return _config(self).address_spaces

    @property
    def user_mem_slots(self):
        """Slot ids are below this number (KVM_CAP_NR_MEMSLOTS)."""
        return _config(self).user_mem_slots

    @property
    def gpa_bits(self):
        """A slot ends at or below 2**gpa_bits bytes of guest memory."""
        return _config(self).gpa_bits

    @property
    def hva_end_max(self):
        """A slot's host range ends at or below this address (bytes)."""
        return _config(self).hva_end_max

    @property
    def backend(self):
        """The name of the design, one of ``memslots.backends()``."""
        return _config(self).backend.decode()

    @property
    def dereference_raw_addresses(self):
        """Whether guest reads and writes use the address of a slot without a buffer."""
        return bool(_config(self).dereference_raw_addresses)

    @property
    def index_policy(self):
        """When lookups build and use an index instead of the tree.  An index is a copy of a set in flat arrays.

        "auto": build an index when the lookups that had to walk pay for it.
        "eager": the first batch builds an index, and each batch that had to walk builds a new one.  With more than
        4,096 slots a batch of up to 64 gfns does only a part of this work.
        "off": no index; a batch walks the tree with many lookups in parallel.
        "walk": no index, one lookup after the other: the yardstick for measurements.

        The answers do not depend on the policy.  Backends other than "tree" have no index.  Lookups build an index, and
        changes never do.  After a change lookups walk in the slots that have changed, and use the index for all others.
        An index takes up to 33 bytes per slot, and more if slots lie terabytes apart.  The policy may be set at any
        time.  ValueError: no policy has this name.
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
        """The number of pages of all slots in all address spaces."""
        return 0 if self._closed else ms_nr_memslot_pages(self._vm)

    # -- changes

    def set_user_memory_region(self, slot, *, guest_phys_addr, memory_size, userspace_addr=0, flags=0, as_id=0,
                               guest_memfd=-1, guest_memfd_offset=0):
        """KVM_SET_USER_MEMORY_REGION2: creates a slot, deletes it (memory_size 0), moves it or changes its flags.

        slot is the id.  Addresses, sizes and the offset are in bytes and multiples of 4096.  flags: bits of MemFlag.
        The checks are KVM's, in KVM's order.

        InvalidRegionError (EINVAL): a rule refused the arguments.
        RegionOverlapError (EEXIST): another slot has some of these frames; ``.other`` is that slot.
        GuestMemfdError (EBADF, EINVAL): guest_memfd is not open, or not a guest_memfd.
        OutOfMemoryError (ENOMEM): an allocation failed.
        The exception of a listener's prepare, which refuses the change.

        A refused change leaves slots, bitmaps and totals as they were.  A refused delete or move can still increase the
        generation.  Cost: O(log n), and one or two grace periods.

        While the call waits for another change, Ctrl-C (or a signal handler that raises) ends the call, and nothing has
        changed.  A change that has begun completes, even if it has to wait for a reader.  The exception follows it.
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
            raised = _raised_by(self, &err)  # taken first, as in _load_refusal()
            raise _refusal(self, r, &err, Request(
                region.slot, region.as_id, region.guest_phys_addr, region.memory_size, region.userspace_addr,
                region.flags, region.guest_memfd, region.guest_memfd_offset), "", raised)
        _report_hooks(self)

    def load_memslots(self, array, as_id=0):
        """Creates all slots of an array in one change with one swap, or none of them.

        array: a structured array of shape (n,), such as one of MEMSLOT_DTYPE.  The integer fields id, base_gfn (pages),
        npages and userspace_addr (bytes) are required.  flags and as_id are optional.

        Errors are those of set_user_memory_region.  RegionOverlapError also stands for an id that exists or occurs
        twice.  The message names the place of the first bad entry.  ValueError: more than user_mem_slots entries, a
        missing field, or an as_id that is not the argument's.  Cost: O(m + n) with m present slots if
        m <= 8 n, and O(n log m) otherwise.
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
        _report_hooks(self)

    def delete(self, slot, as_id=0):
        """Deletes a slot: set_user_memory_region(slot, memory_size=0) without the other arguments.

        InvalidRegionError (EINVAL): there is no such slot."""
        cdef uint32_t id = _u32(slot, "slot"), space = _u32(as_id, "as_id")
        cdef ms_error err
        cdef int r
        _check_open(self)
        with nogil:
            r = ms_delete_memslot(self._vm, space, id, &err)
        if r:
            raise _slot_refusal(self, r, &err, space, id)
        _report_hooks(self)

    def move(self, slot, gpa, as_id=0):
        """Moves a slot to another guest physical address.  Its size, host address, flags and dirty bits stay.

        Errors are those of set_user_memory_region.  InvalidRegionError (EINVAL) too if there is no such slot."""
        cdef uint32_t id = _u32(slot, "slot"), space = _u32(as_id, "as_id")
        cdef uint64_t address = _u64(gpa, "gpa")
        cdef ms_error err
        cdef int r
        _check_open(self)
        with nogil:
            r = ms_move_memslot(self._vm, space, id, address, &err)
        if r:
            raise _slot_refusal(self, r, &err, space, id, address)
        _report_hooks(self)

    def set_flags(self, slot, *, set=0, clear=0, as_id=0):
        """Clears the flags ``clear`` of a slot and then sets the flags ``set``: bits of MemFlag.

        Errors are those of set_user_memory_region.  InvalidRegionError (EINVAL) too if there is no such slot."""
        cdef uint32_t id = _u32(slot, "slot"), space = _u32(as_id, "as_id")
        cdef uint32_t new = _u32(set, "set"), old = _u32(clear, "clear")
        cdef ms_error err
        cdef int r
        _check_open(self)
        with nogil:
            r = ms_set_memslot_flags(self._vm, space, id, new, old, &err)
        if r:
            raise _slot_refusal(self, r, &err, space, id, None, new, old)
        _report_hooks(self)

    def free_slot_id(self, as_id=0):
        """The lowest slot id that is not in use.  MemslotsError (ENOSPC): there is none.

        Another thread can take it.  map_buffer(slot=None) chooses the id inside of its change."""
        cdef uint32_t space = _u32(as_id, "as_id"), id = 0
        cdef ms_error err
        cdef int r
        _check_open(self)
        with nogil:
            r = ms_free_slot_id(self._vm, space, &id, &err)
        if r:
            raise _refusal(self, r, &err, Request(as_id=space))
        _report_hooks(self)
        return id

    def map_buffer(self, gpa, buffer, *, slot=None, as_id=0, readonly=False, log_dirty=False):
        """Creates a slot of the memory of a buffer, and returns a Mapping.  The slot keeps the buffer alive.

        gpa: the guest physical address, a multiple of 4096.
        buffer: whole pages of host memory with the buffer protocol: memslots.alloc(), mmap, shared_memory, a numpy array
        that begins at a page.  It must be writable, unless readonly is true.
        slot: the id, or None for the lowest free one.
        readonly, log_dirty: the flags READONLY and LOG_DIRTY_PAGES.

        InvalidRegionError (EINVAL): the buffer is empty, read-only or not made of whole pages, or a rule of
        set_user_memory_region refuses the slot.  RegionOverlapError (EEXIST): another slot has some of these frames, or
        the id.  MemslotsError (ENOSPC): no id is free.  ValueError: the buffer is not contiguous.
        TypeError: it is no buffer, or has Python objects.  Both flags are bools.
        If a hook raises an exception after the change, the slot exists, and the exception has the Mapping as ``.mapping``.

        The buffer is in use until the slot has ended and no reader, call or view can reach it.  Then it is released
        outside of all locks, read sections and hooks.  Until then mmap.close() raises BufferError; pinned_by() names
        the slots and counts the other holders.
        """
        cdef ms_userspace_memory_region region
        cdef _Pin pin
        _check_open(self)
        region.guest_phys_addr = _u64(gpa, "gpa")
        region.slot = _slot_or_any(self, slot)
        region.as_id = _u32(as_id, "as_id")
        region.flags = MS_MEM_READONLY if _flag(readonly, "readonly") else 0
        region.flags |= MS_MEM_LOG_DIRTY_PAGES if _flag(log_dirty, "log_dirty") else 0
        region.guest_memfd = -1
        region.guest_memfd_offset = 0
        pin = _pin(buffer, region.flags & MS_MEM_READONLY)
        region.memory_size = pin.buffer.len
        region.userspace_addr = <uint64_t>pin.buffer.buf
        return _map(self, &region, pin)

    def pinned_by(self, buffer):
        """The objects that keep a buffer in use: PinnedBy(slots, views, snapshots, others).  False if there are none.

        slots: a list of the MemorySlots of this VM that map some of its memory, also those that come from a Snapshot.
        views: the number of memoryviews of Mapping.view() that are alive, also of slots that have ended.
        snapshots: the number of Snapshots of this VM that are alive and not closed.
        others: the number of map_buffer() calls of this VM whose buffer none of these slots and Snapshots has, and which
        something else holds: a VM that from_snapshot() or restore() has given it to, whose pinned_by() names the slots; a
        transaction that has not ended; an update; a call in progress.

        A closed VM has no slots, and counts the others.

        ValueError: the buffer is a closed mmap, which has no address any more."""
        return _pinned_by(self, buffer)

    def add_listener(self, listener, *, last=False):
        """Adds a Listener after the present ones.  ListenerError (EEXIST) if it was added before.

        last: the listener stays behind all others, also behind those that are added later.  After its prepare no
        listener can refuse the change.  A VM has at most one such listener: ListenerError (EEXIST) for a second one.

        TypeError: the object lacks prepare, abort, flush or commit, a hook is a coroutine or generator function, or a
        method has a misspelled hook's name, such as prepaer.  prepare_many and closed are optional; the VM looks at this
        moment whether the listener has them."""
        cdef _Hook hook = _Hook.__new__(_Hook)
        cdef ms_error err
        cdef bint is_last
        cdef int r
        _check_open(self)
        is_last = _flag(last, "last")
        check_hooks(listener)
        _set_hooks(hook, listener, self._raised)
        if not _append_hook(self, hook):
            raise refused(errno.EEXIST, "LISTENER_EXISTS", 0, None, Request())
        with nogil:
            r = ms_add_listener_last(self._vm, &hook.c, &err) if is_last else ms_add_listener(self._vm, &hook.c, &err)
        if r:
            self._hooks.remove(hook)
            raise _refusal(self, r, &err, Request())
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
        _report_hooks(self)

    # -- whole layouts

    def transaction(self, as_id=0):
        """A Transaction: a context manager whose steps take effect as one change with one swap, or not at all."""
        cdef Transaction t = Transaction.__new__(Transaction)
        _make_transaction(t, self, as_id)
        return t

    def apply(self, layout, *, coalesce=True, max_slots=None, keep_ids=True, as_id=0):
        """Gives the address space a layout in one transaction, and returns the Plan.

        layout: a Snapshot, a structured array, or runs (gfn, npages, hva, flags); see docs/layouts.md.
        coalesce: joins the neighbours whose guest frames and host addresses are contiguous and whose flags are equal.
        max_slots: the most slots that the layout may need; more raise InvalidRegionError.
        keep_ids: a slot whose memory is in the layout keeps its id.  False: the ids are those of the layout.

        Slots that are equal before and afterwards are not touched.  If nothing differs, nothing is done.  If another
        thread changes the address space between the comparison and the change, the call compares again, up to 100 times;
        then it raises MemslotsError (EAGAIN).  Errors are those of a transaction.  Cost: O(n), and O(log n) for each
        difference."""
        return _apply_layout(self, layout, coalesce=coalesce, max_slots=max_slots, keep_ids=keep_ids,
                             as_id=_as_id(self, as_id))

    def restore(self, snapshot):
        """Gives the address space of a Snapshot exactly its slots again, with one swap, and returns the Plan.

        A snapshot with buffers restores them: a slot with the same values and another buffer becomes a new slot.  For a
        snapshot without buffers, a slot that the VM has keeps its own, and a slot that is created has none.  Slots that
        are equal keep their dirty logs; new ones have new logs.

        InvalidRegionError (EINVAL): a slot of the snapshot is INVALID, or a slot of guest_memfd is gone.  Errors are those
        of apply()."""
        if type(snapshot) is not Snapshot:
            raise TypeError(f"snapshot must be a Snapshot, not {type(snapshot).__name__}")
        _as_id(self, (<Snapshot>snapshot).as_id)
        _refuse_invalid(snapshot)
        return _restore_layout(self, snapshot)

    @classmethod
    def from_snapshot(cls, snapshot, **limits):
        """A new VM with the slots of a Snapshot, and with its buffers if it has some.

        limits: as for VM().  Without them they are the defaults, or larger where the slots need it.
        InvalidRegionError (EINVAL): a slot of the snapshot is INVALID.  Errors are those of load_memslots()."""
        if type(snapshot) is not Snapshot:
            raise TypeError(f"snapshot must be a Snapshot, not {type(snapshot).__name__}")
        _refuse_invalid(snapshot)
        vm = cls(**_limits_of(snapshot, limits))
        as_id = _as_id(vm, (<Snapshot>snapshot).as_id)
        _load_snapshot(vm, snapshot, VM.generation(vm, as_id))
        return vm

    def _load_into_empty(self, Snapshot snapshot not None, generation):
        """Loads the slots of a Snapshot.  False, and nothing has changed, if the address space has another generation."""
        _as_id(self, snapshot.as_id)
        return bool(_load_snapshot(self, snapshot, _u64(generation, "generation")))

    def _change_many(self, steps, as_id=0, generation=None, backings=None, places=None):
        """Carries out an array of layout.STEP_DTYPE as one change.

        False, and nothing has changed, if the address space has another generation.  places[k] is the place of the backing
        of step k in backings, which _backings_in() made, or -1."""
        cdef uint32_t space = _as_id(self, as_id)
        cdef _Backings source = _Backings.__new__(_Backings) if backings is None else backings
        cdef _Steps list_of_steps
        cdef bint done
        list_of_steps.array, list_of_steps.n = NULL, 0
        try:
            _add_rows(&list_of_steps, steps, source, places)
            done = _carry_out(self, space, &list_of_steps, generation)
        finally:
            _drop_steps(&list_of_steps)
        if done:
            _report_hooks(self)
        return bool(done)

    def _compare(self, wanted, with_ids, as_id=0, backings=None):
        """Compares the slots of one published state with an array of MEMSLOT_DTYPE by ascending base_gfn.

        Returns (the slots that are not in `wanted`, a number for the backing of each of them, ids, the generation).  The
        numbers are those of _Backings.numbers().  ids has for each row of `wanted` the id of the equal slot, or NO_ID.
        Rows are equal as for compare_rows().  With `backings`, which _backings_in() made, slot and row have one backing."""
        cdef uint32_t space = _as_id(self, as_id)
        return _compare_state(self, space, wanted, with_ids, backings)

    def begin_update(self, as_id=0):
        """An Update: a context manager that gives the steps of a change one by one, for the study of the two sets."""
        return Update(self, as_id)

    # -- lookups

    def gfn_to_memslot(self, gfn, as_id=0):
        """The MemorySlot that maps this guest frame, or None (gfn_to_memslot()).  INVALID slots are returned too."""
        cdef ms_memslot found
        cdef uint32_t space = _as_id(self, as_id)
        if ms_gfn_to_memslot(self._vm, space, _u64(gfn, "gfn"), &found):
            return None
        return _slot(&found)

    def id_to_memslot(self, id, as_id=0):
        """The MemorySlot with this id, or None (id_to_memslot()).  INVALID slots are returned too.  O(1)."""
        cdef ms_memslot found
        cdef uint32_t space = _as_id(self, as_id)
        if ms_id_to_memslot(self._vm, space, _u32(id, "id"), &found):
            return None
        return _slot(&found)

    def gfn_to_hva(self, gfn, as_id=0):
        """The host address (bytes) of a guest frame, for writing (gfn_to_hva()).

        GfnNotMappedError (EFAULT): the frame is in a hole or in an INVALID slot.
        ReadOnlySlotError (EFAULT): the frame is in a READONLY slot.
        """
        cdef uint64_t frame = _u64(gfn, "gfn"), hva
        cdef uint32_t space = _as_id(self, as_id)
        hva = ms_gfn_to_hva(self._vm, space, frame)
        if hva >= MS_HVA_ERR_MIN:
            raise _hva_error(hva, "gfn", frame, space)
        return hva

    def gpa_to_hva(self, gpa, as_id=0, *, write=True):
        """The host address (bytes) of a guest physical address (bytes).  Errors as for gfn_to_hva.

        write: true for an address to write to, which READONLY slots do not have."""
        cdef uint64_t address = _u64(gpa, "gpa"), hva
        cdef uint32_t space = _as_id(self, as_id)
        hva = (ms_gfn_to_hva(self._vm, space, address >> 12) if _flag(write, "write")
               else ms_gfn_to_hva_prot(self._vm, space, address >> 12, NULL))
        if hva >= MS_HVA_ERR_MIN:
            raise _hva_error(hva, "gpa", address, space)
        return hva + (address & 4095)

    def gfn_to_hva_prot(self, gfn, as_id=0):
        """The pair (host address in bytes, whether it may be written), for reading (gfn_to_hva_prot()).

        READONLY slots have an address here.  GfnNotMappedError (EFAULT): a hole or an INVALID slot.
        """
        cdef uint32_t space = _as_id(self, as_id)
        cdef uint64_t frame = _u64(gfn, "gfn"), hva
        cdef c_bool writable = False
        hva = ms_gfn_to_hva_prot(self._vm, space, frame, &writable)
        if hva >= MS_HVA_ERR_MIN:
            raise _hva_error(hva, "gfn", frame, space)
        return hva, bool(writable)

    def is_visible_gfn(self, gfn, as_id=0):
        """Whether a slot of the user that is not INVALID maps this guest frame (kvm_is_visible_gfn())."""
        cdef uint32_t space = _as_id(self, as_id)
        return bool(ms_is_visible_gfn(self._vm, space, _u64(gfn, "gfn")))

    def gfn_to_hva_many(self, gfns, out=None, as_id=0, write=True):
        """The host addresses (bytes) of many guest frames: a uint64 array of the shape of gfns.

        gfns: integers of any shape, none negative: an ndarray, a buffer, an object with __array__ (a pandas Series, an
        Arrow array) or a list.  Aligned uint64 and int64 in the machine's byte order are read without a copy.  Other
        integers are converted first.  Floats, bools and masked arrays raise TypeError, whose message says how to
        convert them.
        out: None, or a writable uint64 ndarray of the same shape, which receives the answers and is returned.
        write: true for addresses to write to, which READONLY slots do not have.

        The answer is HVA_ERR_BAD in holes and INVALID slots, and HVA_ERR_RO_BAD in READONLY slots if write is true.
        Test for both with ``>= HVA_ERR_MIN``.  All answers of a call come from one published state.  A change normally
        waits for at most one piece of a long call, 4,096 values; memslots.h lists the exceptions.

        TypeError and ValueError come before anything is written.  Ctrl-C ends a long call of the main thread within
        some ten milliseconds.  A call that is building an index ends after the build (0.1 s for a million slots).
        After Ctrl-C, out contains the answers so far.
        """
        return _many(self, GFN_TO_HVA, gfns, "gfns", out, cnp.NPY_UINT64, as_id, _flag(write, "write"))

    def gpa_to_hva_many(self, gpas, out=None, as_id=0, write=True):
        """As gfn_to_hva_many, but gpas are guest physical addresses in bytes."""
        return _many(self, GPA_TO_HVA, gpas, "gpas", out, cnp.NPY_UINT64, as_id, _flag(write, "write"))

    def gfn_to_slot_id_many(self, gfns, out=None, as_id=0):
        """The slot ids of many guest frames: an int32 array of the shape of gfns, with -1 in holes and INVALID slots.

        gfns is as for gfn_to_hva_many, and out is an int32 ndarray."""
        return _many(self, GFN_TO_ID, gfns, "gfns", out, cnp.NPY_INT32, as_id, False)

    def memslots_in_gfn_range(self, start, end, as_id=0):
        """A list of the MemorySlots with a guest frame in [start, end), by ascending gfn.  Empty if start >= end."""
        return _range(self, GFN_RANGE, _u64(start, "start"), _u64(end, "end"), _as_id(self, as_id))

    def memslots_in_hva_range(self, start, last, as_id=0):
        """A list of the MemorySlots with a host byte in [start, last], by (userspace_addr, base_gfn).

        start and last are host addresses in bytes.  last belongs to the range.  Empty if start > last."""
        return _range(self, HVA_RANGE, _u64(start, "start"), _u64(last, "last"), _as_id(self, as_id))

    def memslots(self, as_id=0):
        """A list of all MemorySlots of an address space, by ascending gfn."""
        return _range(self, ALL_SLOTS, 0, 0, _as_id(self, as_id))

    def memslots_array(self, as_id=0):
        """All slots of an address space, by ascending gfn: a new array of MEMSLOT_DTYPE, one row per slot."""
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
        """A list of the pairs (MemorySlot, gfn) that the host byte at hva backs (kvm_handle_hva_range()).

        Covers all address spaces, in the order (as_id, userspace_addr, base_gfn).  There can be several pairs, since
        slots may share memory.  INVALID slots are included."""
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
        """The generation of an address space, without the bit for an update in progress.

        Each swap adds the number of address spaces to it."""
        return ms_generation(self._vm, _as_id(self, as_id)) & ~MS_GEN_UPDATE_IN_PROGRESS

    def read(self):
        """A context manager for one read section, in which all lookups answer from one published state.

        A section belongs to the thread that enters it.  Changes wait until the section ends.  A change inside the
        section raises ReentrantChangeError."""
        _check_open(self)
        return ReadSection(self)

    def snapshot(self, as_id=0):
        """A Snapshot: an immutable copy of the slots of an address space, with all lookups.  It can be pickled.

        It keeps the buffers of map_buffer() alive until it is closed or dropped."""
        return _snapshot(self, _as_id(self, as_id))

    def create_vcpu(self):
        """A new VCPU, whose lookups have a last_used_slot of their own."""
        return VCPU(self)

    # -- guest memory

    def read_guest(self, gpa, n, as_id=0):
        """The n bytes of guest memory at gpa, as bytes (kvm_read_guest()).

        The range may cross slots.  All bytes come from one published state.  READONLY slots can be read.

        GuestAccessError (EFAULT): a byte cannot be read.  It has ``.gpa``, the begin of the first piece that failed, and
        ``.done``, the number of bytes before it.  It is a GfnNotMappedError in a hole or an INVALID slot.  It is the base
        class itself if the slot has no buffer (see dereference_raw_addresses), or if the memory behind it is gone, such
        as that of a truncated file.

        From 16 KiB on the call releases the GIL.  A smaller one keeps it: a page that a Python thread of this process
        would have to serve by userfaultfd makes it wait for ever.
        """
        cdef uint64_t address = _u64(gpa, "gpa")
        cdef size_t size = _size(n, "n")
        cdef uint32_t space = _as_id(self, as_id)
        cdef bytes out = _new_bytes(size)
        cdef ms_error err
        cdef int r = _read(self._vm, space, address, PyBytes_AS_STRING(out), size, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)
        return out

    def readinto_guest(self, gpa, out, as_id=0):
        """Fills ``out`` with the guest memory at gpa.  Errors as for read_guest.

        out: a writable buffer of contiguous bytes, such as a bytearray or an array.  Its size says how many are read.
        TypeError if it has Python objects.
        After an error the bytes before ``.done`` are read, and later ones are unspecified."""
        cdef uint64_t address = _u64(gpa, "gpa")
        cdef uint32_t space = _as_id(self, as_id)
        cdef Py_buffer view
        cdef ms_error err
        cdef int r
        _take_bytes(out, &view, True, "out")
        r = _read(self._vm, space, address, view.buf, view.len, &err)
        PyBuffer_Release(&view)
        if r:
            raise _guest_refusal(self, r, &err, space)

    def write_guest(self, gpa, data, as_id=0):
        """Writes the bytes of data to guest memory at gpa, and marks the pages dirty (kvm_write_guest()).

        data: a buffer of contiguous bytes.  Errors as for read_guest; also ReadOnlySlotError (EFAULT) in a READONLY
        slot.  Nothing is rolled back: after an error the bytes before ``.done`` are written and marked.
        ForkedError (EIO): a slot with a dirty log in a forked child, because its marks would be lost."""
        cdef uint64_t address = _u64(gpa, "gpa")
        cdef uint32_t space = _as_id(self, as_id)
        cdef Py_buffer view
        cdef ms_error err
        cdef int r
        _take_bytes(data, &view, False, "data")
        r = _write(self._vm, space, address, view.buf, view.len, &err)
        PyBuffer_Release(&view)
        if r:
            raise _guest_refusal(self, r, &err, space)

    def read_u8(self, gpa, as_id=0):
        """The byte of guest memory at gpa.  Errors as for read_guest."""
        cdef uint64_t address = _u64(gpa, "gpa")
        cdef uint32_t space = _as_id(self, as_id)
        cdef uint8_t value
        cdef ms_error err
        cdef int r = ms_read_guest_u8(self._vm, space, address, &value, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)
        return value

    def read_u16(self, gpa, as_id=0):
        """The little-endian number of 16 bits in guest memory at gpa.  Errors as for read_guest."""
        cdef uint64_t address = _u64(gpa, "gpa")
        cdef uint32_t space = _as_id(self, as_id)
        cdef uint16_t value
        cdef ms_error err
        cdef int r = ms_read_guest_u16(self._vm, space, address, &value, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)
        return value

    def read_u32(self, gpa, as_id=0):
        """The little-endian number of 32 bits in guest memory at gpa.  Errors as for read_guest."""
        cdef uint64_t address = _u64(gpa, "gpa")
        cdef uint32_t space = _as_id(self, as_id)
        cdef uint32_t value
        cdef ms_error err
        cdef int r = ms_read_guest_u32(self._vm, space, address, &value, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)
        return value

    def read_u64(self, gpa, as_id=0):
        """The little-endian number of 64 bits in guest memory at gpa.  Errors as for read_guest.

        A naturally aligned number is read at once, with acquire order."""
        cdef uint64_t address = _u64(gpa, "gpa")
        cdef uint32_t space = _as_id(self, as_id)
        cdef uint64_t value
        cdef ms_error err
        cdef int r = ms_read_guest_u64(self._vm, space, address, &value, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)
        return value

    def write_u8(self, gpa, value, as_id=0):
        """Writes one byte to guest memory at gpa, and marks the page dirty.  Errors as for write_guest."""
        cdef uint64_t address = _u64(gpa, "gpa"), number = _number(value, "value", 0xFF)
        cdef uint32_t space = _as_id(self, as_id)
        cdef ms_error err
        cdef int r = ms_write_guest_u8(self._vm, space, address, <uint8_t>number, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)

    def write_u16(self, gpa, value, as_id=0):
        """Writes a little-endian number of 16 bits to guest memory at gpa.  Errors as for write_guest."""
        cdef uint64_t address = _u64(gpa, "gpa"), number = _number(value, "value", 0xFFFF)
        cdef uint32_t space = _as_id(self, as_id)
        cdef ms_error err
        cdef int r = ms_write_guest_u16(self._vm, space, address, <uint16_t>number, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)

    def write_u32(self, gpa, value, as_id=0):
        """Writes a little-endian number of 32 bits to guest memory at gpa.  Errors as for write_guest."""
        cdef uint64_t address = _u64(gpa, "gpa"), number = _number(value, "value", 0xFFFFFFFF)
        cdef uint32_t space = _as_id(self, as_id)
        cdef ms_error err
        cdef int r = ms_write_guest_u32(self._vm, space, address, <uint32_t>number, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)

    def write_u64(self, gpa, value, as_id=0):
        """Writes a little-endian number of 64 bits to guest memory at gpa.  Errors as for write_guest.

        A naturally aligned number is written at once, with release order."""
        cdef uint64_t address = _u64(gpa, "gpa"), number = _number(value, "value", 0xFFFFFFFFFFFFFFFF)
        cdef uint32_t space = _as_id(self, as_id)
        cdef ms_error err
        cdef int r = ms_write_guest_u64(self._vm, space, address, <uint64_t>number, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)

    def fill_guest(self, gpa, n, byte, as_id=0):
        """Writes n times the same byte to guest memory at gpa.  Errors as for write_guest."""
        cdef uint64_t address = _u64(gpa, "gpa")
        cdef size_t size = _size(n, "n")
        cdef uint8_t content = <uint8_t>_number(byte, "byte", 0xFF)
        cdef uint32_t space = _as_id(self, as_id)
        cdef ms_error err
        cdef int r = _fill_bytes(self._vm, space, address, size, content, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)

    def copy_guest(self, dst_gpa, src_gpa, n, as_id=0):
        """Copies n bytes from guest memory at src_gpa to dst_gpa.  The ranges may overlap.  Errors as for write_guest."""
        cdef uint64_t to = _u64(dst_gpa, "dst_gpa"), source = _u64(src_gpa, "src_gpa")
        cdef size_t size = _size(n, "n")
        cdef uint32_t space = _as_id(self, as_id)
        cdef ms_error err
        cdef int r = _copy(self._vm, space, to, source, size, &err)
        if r:
            raise _guest_refusal(self, r, &err, space)

    def read_u64_many(self, gpas, out=None, as_id=0):
        """The numbers of 64 bits at many guest physical addresses: a uint64 array of the shape of gpas.

        gpas and out are as for gpa_to_hva_many.  Any address may be unaligned.  Errors as for read_guest; after an error
        ``.done`` counts the bytes of the elements, in C order, that were read."""
        return _many(self, READ_U64, gpas, "gpas", out, cnp.NPY_UINT64, as_id, False)

    def write_u64_many(self, gpas, values, as_id=0):
        """Writes a number of 64 bits to each of many guest physical addresses, in C order, and marks the pages dirty.

        values: one number, or an array of integers that can be broadcast to the shape of gpas.  Errors as for
        write_guest; after an error ``.done`` counts the bytes of the elements that were written."""
        _write_many(self, gpas, values, as_id)

    def host_ranges(self, gpa, n, as_id=0, write=False):
        """The host memory of n bytes at gpa: HostRanges(ranges, hole), for one published state.

        ranges: pairs (host address, length) in bytes.  Neighbours in host memory are joined, also across slots.
        hole: the first guest physical address without a host address, or None.  The ranges end there.
        write: true for addresses to write to, which READONLY slots do not have.

        These are addresses, as of gpa_to_hva().  Use them only while the slots and their memory stay: in a read section,
        or with the buffers in hand."""
        cdef uint64_t address = _u64(gpa, "gpa"), size = _u64(n, "n")
        return _host_ranges(self, address, size, _as_id(self, as_id), _flag(write, "write"))

    def host_ranges_many(self, gpas, sizes, as_id=0, write=False):
        """host_ranges() of many guest ranges: HostRangesMany(ranges, offsets, holes), for one published state.

        gpas: an array as for gpa_to_hva_many.  sizes: one size in bytes, or an array that can be broadcast to the shape of
        gpas.  The elements are taken in C order.
        ranges: uint64 of shape (k, 2).  offsets: int64 of shape (n + 1,); those of element i are
        ranges[offsets[i]:offsets[i + 1]].  holes: uint64 of shape (n,), the first address without a host address, or
        gpa + size."""
        return _host_ranges_many(self, gpas, sizes, as_id, _flag(write, "write"))

    def memslots_in_gfn_range_many(self, starts, ends, as_id=0):
        """The slots of many ranges [start, end) of frames: SlotsOfRanges(slots, offsets), for one published state.

        starts: an array as for gfn_to_hva_many.  ends: one frame, or an array that can be broadcast to the shape of starts.
        slots: an array of MEMSLOT_DTYPE.  offsets: int64 of shape (n + 1,); those of element i in C order are
        slots[offsets[i]:offsets[i + 1]], by ascending gfn."""
        return _slots_of_ranges(self, starts, ends, as_id)

    # -- dirty log

    def mark_page_dirty(self, gfn, as_id=0):
        """Sets the bit of a guest frame in the dirty log of its slot (mark_page_dirty()).

        Does nothing in a hole or in a slot without logging.  READONLY does not matter."""
        cdef uint32_t space = _as_id(self, as_id)
        ms_mark_page_dirty(self._vm, space, _u64(gfn, "gfn"))

    def mark_page_dirty_many(self, gfns, as_id=0):
        """Calls mark_page_dirty for every element of gfns, an array as for gfn_to_hva_many.

        Each mark uses the slots of its own moment, so that a change may come in between."""
        cdef uint32_t space = _as_id(self, as_id)
        _look_up(self, MARK, _with_one_stride(_numbers(gfns, "gfns")), None, space, True)

    def get_dirty_log(self, slot, as_id=0, *, out=None):
        """KVM_GET_DIRTY_LOG: a uint64 array of shape (ceil(npages / 64),); bit i of word j is page 64 j + i.

        slot is the id.  The call clears the log, unless manual_dirty_log_protect is on.
        out: a uint64 array of one dimension with room for the words; the result is then out[:ceil(npages / 64)].

        NoSuchSlotError (ENOENT): there is no such slot, or it has no log.
        InvalidRegionError (EINVAL): the id or the address space is out of range.
        ValueError: out is too short, or is not contiguous; the log is unchanged.
        If warnings are errors, a ReaderStallWarning can be raised after the log was cleared.  The exception then has
        the array as ``.dirty_log``.
        """
        cdef uint32_t id = _u32(slot, "slot"), space = _u32(as_id, "as_id")
        cdef cnp.ndarray words
        cdef size_t n = 0
        if out is None:
            words = _whole_log(self, id, space)
        else:
            words = _contiguous_out(out, "(n,)")
            n = _log_into(self, id, space, words)
            if n > <size_t>cnp.PyArray_SIZE(words):
                raise ValueError(f"out has {cnp.PyArray_SIZE(words)} words, and slot {id} has {n}"
                                 f"; use np.empty(({n},), dtype=np.uint64)")
            words = out[:n]
        _report_harvest(self, words)
        return words

    def harvest_dirty(self, as_id=0, *, clear=True, out=None, start_gfn=0):
        """The dirty pages of all logged slots, as a uint64 array of shape (k, 2): ranges (gfn, npages) by ascending gfn.

        Neighbouring pages are one range, also across slots.  With clear, the bits that the call reports are cleared,
        whatever manual_dirty_log_protect is.  The time depends on the number of dirty pages, not on the size of memory.
        Without clear the pages stay dirty, so each call takes as long as the first.
        out: a contiguous uint64 array of shape (n, 2).  The result is then out[:k].  If out is full (k == n), there may
        be more dirty pages: they stay dirty for the next call.
        start_gfn: the first page to report.

        InvalidRegionError (EINVAL): the address space is out of range.
        ReentrantChangeError (EDEADLK): the thread is inside a read section, a hook or an update.  ForkedError (EIO): the
        process is a forked child.
        If the call fails after it has cleared bits (no memory, Ctrl-C, a warning that is an error), the exception has
        the ranges as ``.dirty_ranges``, a list of arrays.
        """
        cdef uint32_t space = _u32(as_id, "as_id")
        cdef uint64_t gfn = _u64(start_gfn, "start_gfn")
        cdef bint clears = _flag(clear, "clear")
        cdef list parts = []
        cdef size_t n
        _check_open(self)
        if out is not None:
            _contiguous_out(out, "(n, 2)")
        try:
            if out is None:
                _harvest_parts(self, space, clears, gfn, parts)
                ranges = parts[0] if len(parts) == 1 else np.concatenate(parts)
            else:
                ranges = out[:_harvest_into(self, space, clears, &gfn, out)]
                parts.append(ranges)
            _report_hooks(self)
        except BaseException as error:
            if clears and parts:
                error.dirty_ranges = parts
            raise
        return ranges

    def _get_dirty_log_null(self, slot, as_id=0):
        """KVM_GET_DIRTY_LOG with a NULL bitmap: clears the log, loses the bits and raises EFAULT.  For replay."""
        cdef uint32_t id = _u32(slot, "slot"), space = _u32(as_id, "as_id")
        cdef size_t n
        cdef ms_error err
        cdef int r
        _check_open(self)
        with nogil:
            r = ms_get_dirty_log(self._vm, space, id, NULL, 0, &n, &err)
        raise _refusal(self, r, &err, Request(id, space, bits_lost=not self.manual_dirty_log_protect))

    def clear_dirty_log(self, slot, first_page, num_pages, bitmap, as_id=0):
        """KVM_CLEAR_DIRTY_LOG: clears the log's bit of each page whose bit in bitmap is set.

        slot is the id.  The pages are [first_page, first_page + num_pages) of the slot.  first_page is a multiple of
        64.  num_pages is one too, unless the range ends at the end of the slot.
        bitmap: uint64 words of shape (ceil(num_pages / 64),); bit 0 of word 0 is first_page.  int64 words stand for the
        same 64 bits.  None stands for an invalid pointer: GuestAccessError (EFAULT) where KVM would read the bitmap,
        and nothing is cleared.

        NoSuchSlotError (ENOENT): there is no such slot, or it has no log.
        InvalidRegionError (EINVAL): an argument is out of range, or bitmap has another number of words.
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
            if n == (<size_t>num + 63) // 64:  # otherwise the core refuses it unread, and a copy could be huge
                words = np.ascontiguousarray(words)
            data = <const uint64_t *>cnp.PyArray_DATA(words)
        with nogil:
            r = ms_clear_dirty_log(self._vm, space, id, first, num, data, n, &err)
        if r:
            raise _refusal(self, r, &err, Request(id, space, first_page=first, num_pages=num, value=n))
        _report_hooks(self)

    def merge_dirty_log(self, slot, words, as_id=0):
        """Sets the bits of words in the log of a slot, for example the bits of the kernel's own log.

        slot is the id.  words has the shape of get_dirty_log().  int64 words stand for the same 64 bits.  Bits beyond
        the last page are ignored.

        NoSuchSlotError (ENOENT): there is no such slot, or it has no log.
        InvalidRegionError (EINVAL): the id is out of range, or words has another number of words.
        ReentrantChangeError (EDEADLK): the thread is inside a read section, a hook or an update.  ForkedError (EIO): the
        process is a forked child.
        """
        cdef uint32_t id = _u32(slot, "slot"), space = _u32(as_id, "as_id")
        cdef cnp.ndarray array = _words(words, "words")
        cdef const uint64_t *data
        cdef size_t n
        cdef ms_error err
        cdef int r
        _check_open(self)
        if array.ndim != 1:
            raise ValueError(f"words must have one dimension, not {array.ndim}")
        n = cnp.PyArray_SIZE(array)
        if n <= (<size_t>MS_MEM_MAX_NR_PAGES + 63) // 64:  # otherwise the core refuses it unread
            array = np.ascontiguousarray(array)
        data = <const uint64_t *>cnp.PyArray_DATA(array)
        with nogil:
            r = ms_merge_dirty_log(self._vm, space, id, data, n, &err)
        if r:
            raise _refusal(self, r, &err, Request(id, space, value=n))
        _report_hooks(self)

    @property
    def manual_dirty_log_protect(self):
        """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 0, 1 or 3; any other value raises InvalidRegionError (EINVAL).

        0: get_dirty_log clears the log.  1: it does not; only clear_dirty_log does.  3: as 1, and a new log starts with
        all bits set."""
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
        _report_hooks(self)

    # -- warnings of long read sections

    @property
    def stall_warning_ms(self):
        """A change warns when it has waited this long (milliseconds) for one read section.  0: no warnings.

        The warning is a ReaderStallWarning that names the reader's thread.  It repeats each time the wait has about
        doubled.  The change goes on waiting.  If warnings are errors, the exception comes after the change is complete.
        To set this attribute is a change: it waits and raises exceptions as a change does.
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
        _report_hooks(self)

    # -- checks and counters

    def check(self):
        """Checks every invariant of both sets of every address space.

        InvariantError (EUCLEAN): an invariant does not hold; ``.invariant`` is its number, such as "T1"."""
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
        _report_hooks(self)

    def stats(self):
        """The counters since the creation of the VM, as a dict with the fields of struct ms_stats (see memslots.h).

        They count lookups by kind of hit, changes by kind, grace periods, warnings of long read sections, indexes that
        were built, and the memory in use.  Counting is always on.  It costs little: a lookup counts in a record that
        its thread writes anyway."""
        cdef ms_stats stats
        _check_open(self)
        ms_get_stats(self._vm, &stats)
        return dict(stats)

include "_vcpu.pxi"
include "_update.pxi"
include "_snapshot.pxi"
include "_pinned_by.pxi"
include "_transaction.pxi"
include "_comparison.pxi"
include "_measure.pxi"
