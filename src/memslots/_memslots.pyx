# SPDX-License-Identifier: MIT
# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""The binding: checks arguments, gives the GIL away, turns an errno into an exception.  No policy lives here.

Whatever takes slots_lock or may wait runs without the GIL: a hook needs the GIL to finish, and a waiter that held it
would wait for ever.  One lookup keeps it, since it cannot wait and costs less than giving it away.
"""

import errno
import operator

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyObject_CheckBuffer
from cpython.long cimport PyLong_AsUnsignedLongLong, PyLong_CheckExact
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from .libmemslots cimport *


cdef extern from "<errno.h>" nogil:
    enum:
        ECANCELED
        ENOBUFS
        EUCLEAN

from .constants import HVA_ERR_MIN, HVA_ERR_RO_BAD, MEMSLOT_DTYPE, MemFlag
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
    refused,
)
from .listener import Change, ChangeKind
from .snapshot import Snapshot

cnp.import_array()

__version__ = MS_VERSION.decode()

# Batches of at most so many keep the GIL: giving it away costs more than looking them up.
cdef enum: SMALL_BATCH = 64

# Ranges are asked for with room for so many slots first.
cdef enum: FIRST_ROOM = 64

_RULES = {
    MS_RULE_SLOT_ID: "SLOT_ID",
    MS_RULE_FLAGS: "FLAGS",
    MS_RULE_SIZE_ALIGN: "SIZE_ALIGN",
    MS_RULE_GPA_ALIGN: "GPA_ALIGN",
    MS_RULE_HVA_ALIGN: "HVA_ALIGN",
    MS_RULE_HVA_RANGE: "HVA_RANGE",
    MS_RULE_GMEM_OFFSET: "GMEM_OFFSET",
    MS_RULE_AS_ID: "AS_ID",
    MS_RULE_GPA_WRAP: "GPA_WRAP",
    MS_RULE_NPAGES: "NPAGES",
    MS_RULE_NO_SUCH_SLOT: "NO_SUCH_SLOT",
    MS_RULE_TOTAL_PAGES: "TOTAL_PAGES",
    MS_RULE_GMEM_EXISTING: "GMEM_EXISTING",
    MS_RULE_HVA_CHANGE: "HVA_CHANGE",
    MS_RULE_SIZE_CHANGE: "SIZE_CHANGE",
    MS_RULE_FLAGS_TOGGLE: "FLAGS_TOGGLE",
    MS_RULE_OVERLAP: "OVERLAP",
    MS_RULE_GMEM_FD: "GMEM_FD",
    MS_RULE_GPA_LIMIT: "GPA_LIMIT",
    MS_RULE_NO_MEMORY: "NO_MEMORY",
    MS_RULE_LISTENER: "LISTENER",
    MS_RULE_NO_DIRTY_LOG: "NO_DIRTY_LOG",
    MS_RULE_FIRST_PAGE: "FIRST_PAGE",
    MS_RULE_CLEAR_RANGE: "CLEAR_RANGE",
    MS_RULE_BITMAP_SIZE: "BITMAP_SIZE",
    MS_RULE_NULL_BUFFER: "NULL_BUFFER",
    MS_RULE_DUPLICATE_ID: "DUPLICATE_ID",
    MS_RULE_MANUAL_PROTECT: "MANUAL_PROTECT",
    MS_RULE_READ_SECTION: "READ_SECTION",
    MS_RULE_HOOK: "HOOK",
    MS_RULE_UPDATE: "UPDATE",
    MS_RULE_FORKED: "FORKED",
    MS_RULE_CLOSED: "CLOSED",
    MS_RULE_HANDLE: "HANDLE",
    MS_RULE_SETS_DIFFER: "SETS_DIFFER",
    MS_RULE_BACKEND: "BACKEND",
}


def build_info() -> dict:
    """What the C core was built with: compiler, whether asserts are on, sanitizer."""
    return dict(item.split("=", 1) for item in ms_build_info().decode().split("; "))


def backends() -> tuple:
    """The names of the designs that ``VM(backend=...)`` can have in this build."""
    cdef list names = []
    while ms_backend_name(len(names)) is not NULL:
        names.append(ms_backend_name(len(names)).decode())
    return tuple(names)


# ---- integers ------------------------------------------------------------------------------------------------------

cdef object _index(object value, str name):
    """An int from what has __index__; bool is refused, since True is no frame number."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    return operator.index(value)


cdef uint64_t _number_slow(object value, str name, uint64_t maximum) except? 0xDEAD:
    cdef object number = _index(value, name)
    if not 0 <= number <= maximum:
        raise OverflowError(f"{name} must be 0 to {maximum:#x}, not {number}")
    return number


cdef inline uint64_t _u64(object value, str name) except? 0xDEAD:
    cdef uint64_t number
    if PyLong_CheckExact(value):
        try:
            return PyLong_AsUnsignedLongLong(value)
        except OverflowError:
            pass
    return _number_slow(value, name, 0xFFFFFFFFFFFFFFFF)


cdef inline uint32_t _u32(object value, str name) except? 0xDEAD:
    return <uint32_t>_number_slow(value, name, 0xFFFFFFFF)


cdef int32_t _fd(object value, str name) except? -7777:
    cdef object number = _index(value, name)
    if not -2147483648 <= number <= 2147483647:
        raise OverflowError(f"{name} must fit a C int, not {number}")
    return number


cdef object _out_of_memory():
    return OutOfMemoryError(errno.ENOMEM, "out of memory; nothing was changed", rule="NO_MEMORY")


# ---- slots by value ------------------------------------------------------------------------------------------------

@cython.final
@cython.freelist(64)
cdef class MemorySlot:
    """A slot as it was when asked for: a value, equal to its equals, that never changes.

    base_gfn and npages count pages; userspace_addr, gpa and size are bytes (struct kvm_memory_slot).
    """

    __match_args__ = ("id", "as_id", "base_gfn", "npages", "userspace_addr", "flags")

    cdef ms_memslot _value

    def __init__(self, id, as_id, base_gfn, npages, userspace_addr, flags=0):
        self._value.id = _u32(id, "id")
        self._value.as_id = _u32(as_id, "as_id")
        self._value.base_gfn = _u64(base_gfn, "base_gfn")
        self._value.npages = _u64(npages, "npages")
        self._value.userspace_addr = _u64(userspace_addr, "userspace_addr")
        self._value.flags = _u32(flags, "flags")

    @property
    def id(self):
        """The slot's number within its address space."""
        return self._value.id

    @property
    def as_id(self):
        """The address space."""
        return self._value.as_id

    @property
    def base_gfn(self):
        """The first guest frame."""
        return self._value.base_gfn

    @property
    def npages(self):
        """How many pages."""
        return self._value.npages

    @property
    def userspace_addr(self):
        """The host address of the first page, in bytes."""
        return self._value.userspace_addr

    @property
    def flags(self):
        """MemFlag."""
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

    def __eq__(self, other):
        if type(other) is not MemorySlot:
            return NotImplemented
        return self._key() == (<MemorySlot>other)._key()

    def __hash__(self):
        return hash(self._key())

    def __reduce__(self):
        return MemorySlot, self._key()

    def __repr__(self):
        cdef ms_memslot *v = &self._value
        return (
            f"MemorySlot(id={v.id}, as_id={v.as_id}, base_gfn={v.base_gfn:#x}, npages={v.npages:#x}, "
            f"userspace_addr={v.userspace_addr:#x}, flags={v.flags:#x})"
        )


cdef MemorySlot _slot(const ms_memslot *value):
    cdef MemorySlot slot = MemorySlot.__new__(MemorySlot)
    slot._value = value[0]
    return slot


cdef object _slot_or_none(const ms_memslot *value):
    return _slot(value) if value.npages else None


cdef list _slots(const ms_memslot *values, size_t n):
    cdef size_t i
    return [_slot(&values[i]) for i in range(n)]


# ---- listeners -----------------------------------------------------------------------------------------------------

@cython.final
cdef class _Hook:
    """One listener of one VM, and the C struct that leads to it."""
    cdef ms_listener c
    cdef object listener
    cdef dict raised  # the VM's: what hooks raised, by the thread that runs the change

    cdef void keep(self, object error):
        self.raised.setdefault(PyThread_get_thread_ident(), []).append(error)

    cdef void keep_refusal(self, object error):
        """First in the list: it is the reason why the change fails."""
        self.raised.setdefault(PyThread_get_thread_ident(), []).insert(0, error)


cdef object _change(const ms_change *change):
    return Change(ChangeKind(<int>change.kind), _slot_or_none(&change.old_slot), _slot_or_none(&change.new_slot))


cdef int _prepare(void *opaque, const ms_change *change) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    try:
        hook.listener.prepare(_change(change))
        return 0
    except BaseException as error:
        hook.keep_refusal(error)
        return -ECANCELED


cdef void _abort(void *opaque, const ms_change *change) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    try:
        hook.listener.abort(_change(change))
    except BaseException as error:
        hook.keep(error)


cdef void _flush(void *opaque, const ms_memslot *active, const ms_memslot *old) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    try:
        hook.listener.flush(_slot(active), _slot(old))
    except BaseException as error:
        hook.keep(error)


cdef void _commit(void *opaque, const ms_change *change) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    try:
        hook.listener.commit(_change(change))
    except BaseException as error:
        hook.keep(error)


# ---- arrays --------------------------------------------------------------------------------------------------------

cdef cnp.ndarray _as_ndarray(object values, str name):
    """An ndarray without a copy: of an ndarray itself, or of whatever offers its buffer."""
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, (str, bytes, bytearray)) or not PyObject_CheckBuffer(values):
        raise TypeError(f"{name} must be an array of uint64 or int64, not {type(values).__name__}")
    return np.asarray(values)


cdef int _check_layout(cnp.ndarray array, str name) except -1:
    if not cnp.PyArray_ISNOTSWAPPED(array):
        raise TypeError(f"{name} must have the machine's byte order, not {array.dtype.byteorder}")
    if not cnp.PyArray_ISALIGNED(array):
        raise ValueError(f"{name} is not aligned to 8 bytes")
    return 0


cdef cnp.ndarray _numbers(object values, str name):
    """gfns or gpas: uint64, or int64 that are not negative."""
    cdef cnp.ndarray array = _as_ndarray(values, name)
    if array.dtype.kind not in "ui" or array.dtype.itemsize != 8:
        raise TypeError(f"{name} must be an array of uint64 or int64, not {array.dtype}")
    _check_layout(array, name)
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise ValueError(f"{name} must not be negative, but has {array.min()}")
    return array


cdef cnp.ndarray _result(object out, cnp.ndarray numbers, object dtype):
    """The array to write to: a new one, or the caller's after a look at its type, shape and flags."""
    cdef cnp.ndarray array
    if out is None:
        return np.empty((<object>numbers).shape, dtype=dtype)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an ndarray, not {type(out).__name__}")
    array = out
    if array.dtype.kind != dtype.kind or array.dtype.itemsize != dtype.itemsize:
        raise TypeError(f"out must be an array of {dtype}, not {array.dtype}")
    if (<object>array).shape != (<object>numbers).shape:
        raise ValueError(f"out has shape {(<object>array).shape}, not {(<object>numbers).shape}")
    if not array.flags.writeable:
        raise ValueError("out is read-only")
    _check_layout(array, "out")
    return array


cdef bint _in_step(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether one stride leads through both: flat arrays, or single lines of any stride."""
    if cnp.PyArray_NDIM(a) == 1:
        return True
    return cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_IS_C_CONTIGUOUS(b)


cdef bint _clash(cnp.ndarray a, cnp.ndarray b) except -1:
    """Whether writing b could spoil parts of a that are still to be read."""
    if cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b) and (<object>a).strides == (<object>b).strides:
        return False
    return np.may_share_memory(a, b)


cdef ptrdiff_t _stride(cnp.ndarray array) noexcept:
    return cnp.PyArray_STRIDE(array, 0) if cnp.PyArray_NDIM(array) == 1 else cnp.PyArray_ITEMSIZE(array)


cdef enum _Many:
    GFN_TO_HVA
    GPA_TO_HVA
    GFN_TO_ID


cdef void _run_batch(ms_vm *vm, _Many what, uint32_t as_id, const ms_batch *batch, bint write) noexcept nogil:
    if what == GFN_TO_HVA:
        ms_gfn_to_hva_many(vm, as_id, batch, write)
    elif what == GPA_TO_HVA:
        ms_gpa_to_hva_many(vm, as_id, batch, write)
    else:
        ms_gfn_to_slot_id_many(vm, as_id, batch)


cdef object _UINT64 = np.dtype(np.uint64)
cdef object _INT32 = np.dtype(np.int32)


cdef object _column(object rows, str name, object dtype, object default):
    """One field of a structured array, as the engine wants it; a value that does not fit is named."""
    cdef object info = np.iinfo(dtype)
    if name not in (rows.dtype.names or ()):
        if default is None:
            raise ValueError(f"the array has no field {name!r}")
        return default
    column = rows[name]
    if column.dtype.kind not in "ui":
        raise TypeError(f"field {name!r} must be integers, not {column.dtype}")
    if column.size and (column.min() < 0 or column.max() > info.max):
        raise OverflowError(f"field {name!r} must be 0 to {info.max:#x}, but has {column.min()} to {column.max()}")
    return column


cdef cnp.ndarray _rows_to_load(object array, uint32_t as_id):
    if not isinstance(array, np.ndarray) or array.dtype.names is None:
        raise TypeError("load_memslots takes a structured array with the fields of MEMSLOT_DTYPE")
    if array.ndim != 1:
        raise ValueError(f"load_memslots takes one dimension, not {array.ndim}")
    rows = np.zeros(array.shape, dtype=MEMSLOT_DTYPE)
    for name, default in (("id", None), ("base_gfn", None), ("npages", None), ("userspace_addr", None),
                          ("flags", 0), ("as_id", as_id)):
        rows[name] = _column(array, name, MEMSLOT_DTYPE[name], default)
    strangers = rows["as_id"] != as_id
    if strangers.any():
        raise ValueError(f"entry {strangers.argmax()} has as_id {rows['as_id'][strangers][0]}, not {as_id}")
    return rows


# ---- what the calls of VM share ------------------------------------------------------------------------------------

cdef int _check_open(VM vm) except -1:
    if vm._closed:
        raise ClosedError(errno.EBADF, "the VM is closed", rule="CLOSED")
    return 0


cdef uint32_t _as_id(VM vm, object value) except? 0xDEAD:
    """An address space of this VM, open."""
    cdef uint32_t as_id
    if vm._closed:
        _check_open(vm)
    as_id = <uint32_t>_number_slow(value, "as_id", 0xFFFFFFFF)
    if as_id >= vm._address_spaces:
        raise refused(errno.EINVAL, "AS_ID", vm._address_spaces, None, Request(as_id=as_id))
    return as_id


cdef object _refusal(VM vm, int r, const ms_error *err, object request, str where=""):
    """The exception for what C refused: what prepare raised, where that is why."""
    raised = _take_raised(vm) or []
    if err.rule == MS_RULE_LISTENER and r == -ECANCELED and raised:
        return _with_notes(raised.pop(0), raised)
    other = _slot_or_none(&err.other)
    return _with_notes(refused(-r, _RULES[err.rule], err.limit, other, request, where), raised)


cdef list _take_raised(VM vm):
    return vm._raised.pop(PyThread_get_thread_ident(), None) if vm._raised else None


cdef object _with_notes(object error, list raised):
    """The exception of a change, told what else its hooks raised."""
    for other in raised:
        error.add_note(f"a hook of the same change raised {other!r}")
    return error


cdef int _report_hooks(VM vm) except -1:
    """After a change that was made: what flush and commit raised."""
    raised = _take_raised(vm)
    if raised:
        error = raised.pop(0)
        error.add_note("raised by a hook; the change itself is complete")
        raise _with_notes(error, raised)
    return 0


cdef object _load_refusal(VM vm, int r, const ms_error *err, object rows):
    if err.rule in (MS_RULE_NO_MEMORY, MS_RULE_LISTENER, MS_RULE_READ_SECTION, MS_RULE_HOOK, MS_RULE_UPDATE,
                    MS_RULE_FORKED, MS_RULE_CLOSED):
        return _refusal(vm, r, err, Request())
    row = {name: int(rows[err.index][name]) for name in rows.dtype.names}
    return _refusal(vm, r, err, Request(
        row["id"], row["as_id"], row["base_gfn"] << 12, row["npages"] << 12, row["userspace_addr"], row["flags"],
    ), f"entry {err.index}: ")


cdef object _no_hva(VM vm, uint64_t hva, object what, uint64_t number, object as_id):
    if hva == MS_HVA_ERR_RO_BAD:
        return ReadOnlySlotError(errno.EFAULT, f"{what} {number:#x} of address space {as_id} is in a READONLY "
                                 "slot; gfn_to_hva_prot() gives the address for reading")
    return GfnNotMappedError(errno.EFAULT, f"{what} {number:#x} is in no slot of address space {as_id}, or in "
                             "one that is being deleted or moved")


cdef object _many(VM vm, _Many what, object numbers, str name, object out, object dtype, object as_id, bint write):
    cdef uint32_t space = _as_id(vm, as_id)
    cdef cnp.ndarray array = _numbers(numbers, name)
    cdef cnp.ndarray result = _result(out, array, dtype)
    cdef cnp.ndarray target = result
    if not _in_step(array, result):
        array = np.ascontiguousarray(array)
        target = np.empty((<object>array).shape, dtype=dtype)
    elif _clash(array, result):
        array = array.copy()
    _look_up(vm, what, array, target, space, write)
    if target is not result:
        result[...] = target
    return result


cdef int _look_up(VM vm, _Many what, cnp.ndarray numbers, cnp.ndarray result, uint32_t as_id,
                  bint write) except -1:
    cdef ms_batch batch
    batch.in_ = cnp.PyArray_DATA(numbers)
    batch.in_stride = _stride(numbers)
    batch.out = cnp.PyArray_DATA(result)
    batch.out_stride = _stride(result)
    batch.n = cnp.PyArray_SIZE(numbers)
    if batch.n <= SMALL_BATCH:
        _run_batch(vm._vm, what, as_id, &batch, write)
    else:
        with nogil:
            _run_batch(vm._vm, what, as_id, &batch, write)
    return 0


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

@cython.no_gc_clear
cdef class VM:
    """A virtual machine's memory slots (struct kvm, as far as slots go).

    address_spaces: 1 to 64; user_mem_slots: ids are below it, 1 to 2**31 - 16; gpa_bits: a slot ends at or below
    2**gpa_bits bytes, 13 to 64; hva_end_max: a slot's host range ends at or below it (bytes); backend: one of
    ``memslots.backends()``.  Limits out of range raise ValueError, an unknown backend NotSupportedError.

    Use from any number of threads: lookups never wait, changes wait for each other and for the lookups that may
    still see what they take away.  Close it, or use ``with``; a forgotten one is freed with its last reference.
    """

    def __cinit__(self, *, address_spaces=1, user_mem_slots=32764, gpa_bits=52, hva_end_max=0x7FFFFFFFF000,
                  backend="tree"):
        cdef ms_config config
        cdef int r
        if not isinstance(backend, str):
            raise TypeError(f"backend must be a str, not {type(backend).__name__}")
        name = backend.encode()
        ms_config_init(&config)
        config.address_spaces = _u32(address_spaces, "address_spaces")
        config.user_mem_slots = _u32(user_mem_slots, "user_mem_slots")
        config.gpa_bits = _u32(gpa_bits, "gpa_bits")
        config.hva_end_max = _u64(hva_end_max, "hva_end_max")
        config.backend = name
        r = ms_vm_create(&config, &self._vm)
        if r == -errno.EINVAL:
            raise InvalidRegionError(
                errno.EINVAL,
                f"a limit is out of range: address_spaces {address_spaces} (1 to 64), user_mem_slots "
                f"{user_mem_slots} (1 to {2**31 - 16}), gpa_bits {gpa_bits} (13 to 64), "
                f"hva_end_max {hva_end_max:#x} (below {HVA_ERR_MIN:#x})",
            )
        if r == -errno.ENOSYS:
            raise from_errno(errno.ENOSYS, f"this build has no backend {backend!r}; it has {', '.join(backends())}")
        if r:
            raise _out_of_memory()
        self._address_spaces = config.address_spaces
        self._hooks = []
        self._raised = {}

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
        return ms_nr_memslots(self._vm)

    def __bool__(self):
        return True

    def __repr__(self):
        if self._closed:
            return "<VM closed>"
        return (f"<VM {self.backend}: {len(self)} slots, {self.nr_memslot_pages} pages, "
                f"{self._address_spaces} address space{'s' if self._address_spaces > 1 else ''}>")

    cdef uint64_t c_gfn_to_hva(self, uint32_t as_id, uint64_t gfn) noexcept nogil:
        return ms_gfn_to_hva(self._vm, as_id, gfn)

    cdef int c_gfn_to_memslot(self, uint32_t as_id, uint64_t gfn, ms_memslot *out) noexcept nogil:
        return ms_gfn_to_memslot(self._vm, as_id, gfn, out)

    # -- life

    def close(self):
        """Deletes every slot, without hooks, once no reader can see one.  Idempotent.

        Calls of other threads that are under way answer as if the slots were there or as if they were not.
        Raises ReentrantChangeError inside a read section, a hook or an update of this thread, ForkedError in a child.
        """
        cdef ms_error err
        cdef int r
        if self._closed:
            return
        with nogil:
            r = ms_vm_close(self._vm, &err)
        if r:
            raise _refusal(self, r, &err, Request())
        self._closed = True

    @property
    def closed(self):
        """Whether close() has been called."""
        return self._closed

    @property
    def address_spaces(self):
        """How many address spaces (KVM_CAP_MULTI_ADDRESS_SPACE)."""
        return self._address_spaces

    @property
    def user_mem_slots(self):
        """Ids are below this (KVM_CAP_NR_MEMSLOTS)."""
        return ms_vm_config(self._vm).user_mem_slots

    @property
    def gpa_bits(self):
        """A slot ends at or below 2**gpa_bits bytes."""
        return ms_vm_config(self._vm).gpa_bits

    @property
    def hva_end_max(self):
        """A slot's host range ends at or below this (bytes)."""
        return ms_vm_config(self._vm).hva_end_max

    @property
    def backend(self):
        """The design of the sets."""
        return ms_vm_config(self._vm).backend.decode()

    @property
    def nr_memslot_pages(self):
        """The pages of all slots in all address spaces."""
        return ms_nr_memslot_pages(self._vm)

    # -- changes

    def set_user_memory_region(self, slot, *, guest_phys_addr, memory_size, userspace_addr=0, flags=0, as_id=0,
                               guest_memfd=-1, guest_memfd_offset=0):
        """KVM_SET_USER_MEMORY_REGION2: creates a slot, deletes it (memory_size 0), moves it or changes its flags.

        Addresses and sizes are bytes and multiples of 4096.  KVM's rules decide, in KVM's order:
        InvalidRegionError (EINVAL), RegionOverlapError (EEXIST; ``.other`` is the slot in the way), GuestMemfdError
        (EBADF), OutOfMemoryError (ENOMEM), or what a listener's prepare raised.  Then slots, bitmaps and totals are
        as before; a refused delete or move has moved the generation.  O(log n), and one or two grace periods.
        """
        cdef ms_userspace_memory_region region
        cdef ms_error err
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
            raise _refusal(self, r, &err, Request(
                region.slot, region.as_id, region.guest_phys_addr, region.memory_size, region.userspace_addr,
                region.flags, region.guest_memfd, region.guest_memfd_offset))
        if self._raised:
            _report_hooks(self)

    def load_memslots(self, array, as_id=0):
        """Creates many slots in one change: validated together, one swap, all or none.

        array: one dimension, structured, with integer fields id, base_gfn, npages, userspace_addr and, if there,
        flags and as_id (as MEMSLOT_DTYPE).  An entry that is refused is named by its place; errors as for
        set_user_memory_region, RegionOverlapError also for an id that exists.  O((m + n) log (m + n)).
        """
        cdef uint32_t space = _as_id(self, as_id)
        cdef cnp.ndarray rows = _rows_to_load(array, space)
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
        """Adds a Listener behind those there are.  RegionOverlapError if it is there already."""
        cdef _Hook hook = _Hook.__new__(_Hook)
        cdef ms_error err
        cdef int r
        _check_open(self)
        for name in ("prepare", "abort", "flush", "commit"):
            if not callable(getattr(listener, name, None)):
                raise TypeError(f"a listener has prepare, abort, flush and commit; {name} of "
                                f"{type(listener).__name__} is not callable")
        if any((<_Hook>other).listener is listener for other in self._hooks):
            raise from_errno(errno.EEXIST, "the listener is there already", rule="LISTENER")
        hook.listener = listener
        hook.raised = self._raised
        hook.c.opaque = <void *>hook
        hook.c.prepare = _prepare
        hook.c.abort = _abort
        hook.c.flush = _flush
        hook.c.commit = _commit
        self._hooks.append(hook)
        with nogil:
            r = ms_add_listener(self._vm, &hook.c, &err)
        if r:
            self._hooks.remove(hook)
            raise _refusal(self, r, &err, Request())

    def remove_listener(self, listener):
        """Removes a Listener; NoSuchSlotError if it is not there."""
        cdef _Hook hook = None
        cdef ms_error err
        cdef int r
        _check_open(self)
        for other in self._hooks:
            if (<_Hook>other).listener is listener:
                hook = other
        if hook is None:
            raise from_errno(errno.ENOENT, "the listener is not there", rule="LISTENER")
        with nogil:
            r = ms_remove_listener(self._vm, &hook.c, &err)
        if r:
            raise _refusal(self, r, &err, Request())
        self._hooks.remove(hook)

    def begin_update(self, as_id=0):
        """The dual-set steps one by one, for those who study them: a context manager, see Update."""
        return Update(self, _as_id(self, as_id))

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

    def gfn_to_hva_many(self, gfns, out=None, as_id=0, write=True):
        """Host addresses (uint64, bytes) of guest frames: an array of the same shape.

        gfns: uint64, or int64 without negatives, any shape and strides, the machine's byte order, aligned; an
        ndarray or anything with a buffer.  out: a writable uint64 array of that shape.  HVA_ERR_BAD stands in holes
        and INVALID slots, HVA_ERR_RO_BAD in READONLY slots when write is true; test with ``>= HVA_ERR_MIN``.
        All answers come from one set.  TypeError and ValueError before anything is written.
        """
        return _many(self, GFN_TO_HVA, gfns, "gfns", out, _UINT64, as_id, bool(write))

    def gpa_to_hva_many(self, gpas, out=None, as_id=0, write=True):
        """As gfn_to_hva_many, from guest physical addresses in bytes."""
        return _many(self, GPA_TO_HVA, gpas, "gpas", out, _UINT64, as_id, bool(write))

    def gfn_to_slot_id_many(self, gfns, out=None, as_id=0):
        """The ids (int32) of the slots of guest frames, -1 in holes and INVALID slots; arrays as gfn_to_hva_many."""
        return _many(self, GFN_TO_ID, gfns, "gfns", out, _INT32, as_id, False)

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
        with ReadSection(self):
            return Snapshot(self.memslots_array(as_id), operator.index(as_id), self.generation(as_id))

    def create_vcpu(self):
        """A VCPU, which has a last_used_slot of its own."""
        return VCPU(self)

    # -- dirty log

    def mark_page_dirty(self, gfn, as_id=0):
        """Sets the page's bit where logging is on; nothing in holes; READONLY is ignored (mark_page_dirty())."""
        cdef uint32_t space = _as_id(self, as_id)
        ms_mark_page_dirty(self._vm, space, _u64(gfn, "gfn"))

    def mark_page_dirty_many(self, gfns, as_id=0):
        """mark_page_dirty for an array of gfns, as gfn_to_hva_many takes them."""
        cdef uint32_t space = _as_id(self, as_id)
        cdef cnp.ndarray array = _numbers(gfns, "gfns")
        cdef const void *data
        cdef ptrdiff_t stride
        cdef size_t n
        if not _in_step(array, array):
            array = np.ascontiguousarray(array)
        data = cnp.PyArray_DATA(array)
        stride = _stride(array)
        n = cnp.PyArray_SIZE(array)
        with nogil:
            ms_mark_page_dirty_many(self._vm, space, data, stride, n)

    def get_dirty_log(self, slot, as_id=0):
        """KVM_GET_DIRTY_LOG: ceil(npages / 64) uint64 words, bit i of word j is page 64 j + i; an array of your own.

        Clears the log, unless manual_dirty_log_protect is on.  NoSuchSlotError (ENOENT) without slot or log,
        InvalidRegionError (EINVAL) for an id or address space out of range.
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
                return words[:n].copy() if n < room else words
            if r != -ENOBUFS:
                raise _refusal(self, r, &err, Request(id, space))
            room = n

    def _get_dirty_log_null(self, slot, as_id=0):
        """KVM_GET_DIRTY_LOG with a NULL bitmap: harvests, loses the bits, raises EFAULT.  For replay."""
        cdef uint32_t id = _u32(slot, "slot"), space = _u32(as_id, "as_id")
        cdef size_t n
        cdef ms_error err
        cdef int r
        _check_open(self)
        with nogil:
            r = ms_get_dirty_log(self._vm, space, id, NULL, 0, &n, &err)
        raise _refusal(self, r, &err, Request(id, space))

    def clear_dirty_log(self, slot, first_page, num_pages, bitmap, as_id=0):
        """KVM_CLEAR_DIRTY_LOG: clears, of pages [first_page, first_page + num_pages), those whose bit is set.

        bitmap: ceil(num_pages / 64) uint64 words, bit 0 is first_page.  first_page is a multiple of 64, num_pages
        too unless it ends where the slot ends.  None is KVM's bad pointer: EFAULT where KVM looks at it.
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
            words = np.ascontiguousarray(_numbers(bitmap, "bitmap"))
            if words.ndim != 1:
                raise ValueError(f"bitmap must have one dimension, not {words.ndim}")
            data = <const uint64_t *>cnp.PyArray_DATA(words)
            n = cnp.PyArray_SIZE(words)
        with nogil:
            r = ms_clear_dirty_log(self._vm, space, id, first, num, data, n, &err)
        if r:
            raise _refusal(self, r, &err, Request(id, space, first_page=first, num_pages=num, value=n))

    @property
    def manual_dirty_log_protect(self):
        """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 0; 1, get_dirty_log does not clear; 3, new logs start all set too."""
        return ms_manual_dirty_log_protect(self._vm)

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

    def stats(self):
        """Counters since the VM was made, as a dict: lookups by kind of hit, changes by kind, swaps and those that
        waited for a reader, memory held.  Always on: a lookup counts where its thread writes anyway."""
        cdef ms_stats stats
        _check_open(self)
        ms_get_stats(self._vm, &stats)
        return dict(stats)


# ---- vCPU ----------------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc_clear
cdef class VCPU:
    """A virtual CPU's view: lookups with a last_used_slot of its own, dropped when the generation moved.

    Meant for one thread at a time; a second one that comes meanwhile gets right answers without the hint.
    Made by ``VM.create_vcpu()``.
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

    def __dealloc__(self):
        ms_vcpu_destroy(self._vcpu)

    def __reduce__(self):
        raise TypeError("a VCPU cannot be pickled or copied")

    def __repr__(self):
        return f"<VCPU in address space {self.as_id} of {self.vm!r}>"

    @property
    def as_id(self):
        """The address space that lookups use: 0, or 1 as when entering SMM."""
        return ms_vcpu_as_id(self._vcpu)

    @as_id.setter
    def as_id(self, value):
        ms_vcpu_set_as_id(self._vcpu, _as_id(self.vm, value))

    def gfn_to_memslot(self, gfn):
        """As VM.gfn_to_memslot (kvm_vcpu_gfn_to_memslot())."""
        cdef ms_memslot found
        cdef uint64_t frame = _u64(gfn, "gfn")
        _check_open(self.vm)
        if ms_vcpu_gfn_to_memslot(self._vcpu, frame, &found):
            return None
        return _slot(&found)

    def gfn_to_hva(self, gfn):
        """As VM.gfn_to_hva (kvm_vcpu_gfn_to_hva())."""
        cdef uint64_t frame = _u64(gfn, "gfn"), hva
        if self.vm._closed:
            _check_open(self.vm)
        hva = ms_vcpu_gfn_to_hva(self._vcpu, frame)
        if hva >= MS_HVA_ERR_MIN:
            raise _no_hva(self.vm, hva, "gfn", frame, self.as_id)
        return hva

    def gpa_to_hva(self, gpa):
        """As VM.gpa_to_hva."""
        cdef uint64_t address = _u64(gpa, "gpa"), hva
        if self.vm._closed:
            _check_open(self.vm)
        hva = ms_vcpu_gfn_to_hva(self._vcpu, address >> 12)
        if hva >= MS_HVA_ERR_MIN:
            raise _no_hva(self.vm, hva, "gpa", address, self.as_id)
        return hva + (address & 4095)


# ---- sections and updates ------------------------------------------------------------------------------------------

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


# ---- times from C --------------------------------------------------------------------------------------------------

#: One change in an array: the layout of struct ms_userspace_memory_region, for time_changes().
REGION_DTYPE = np.dtype([
    ("slot", "u4"), ("as_id", "u4"), ("flags", "u4"), ("guest_memfd", "i4"), ("guest_phys_addr", "u8"),
    ("memory_size", "u8"), ("userspace_addr", "u8"), ("guest_memfd_offset", "u8"),
])


cdef cnp.ndarray _line(object values, str name):
    """A contiguous uint64 array of one dimension."""
    cdef cnp.ndarray array = np.ascontiguousarray(_numbers(values, name)).view(np.uint64)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not {array.ndim}")
    return array


cdef size_t _group(object value) except 0:
    cdef uint64_t group = _number_slow(value, "group", 0x7FFFFFFF)
    if not group:
        raise ValueError("group must be at least 1")
    return group


def time_lookups(VM vm not None, what, numbers, lasts=None, group=1, as_id=0, VCPU vcpu=None):
    """Times n calls from C: (nanoseconds of each group of calls, the n answers), both uint64.

    what: "gfn_to_hva" of gfns (through vcpu if given), "id_to_memslot" of ids (userspace_addr, 2**64 - 1 for none),
    or "hva_range" of [numbers, lasts] (how many slots have a byte there).  The caller checks the answers.
    """
    cdef uint32_t space = _as_id(vm, as_id)
    cdef cnp.ndarray first = _line(numbers, "numbers")
    cdef cnp.ndarray last = first if lasts is None else _line(lasts, "lasts")
    cdef size_t n = first.size, per = _group(group)
    cdef cnp.ndarray answers = np.zeros(n, dtype=np.uint64)
    cdef cnp.ndarray times = np.zeros((n + per - 1) // per, dtype=np.uint64)
    cdef const uint64_t *a = <const uint64_t *>cnp.PyArray_DATA(first)
    cdef const uint64_t *b = <const uint64_t *>cnp.PyArray_DATA(last)
    cdef uint64_t *out = <uint64_t *>cnp.PyArray_DATA(answers)
    cdef uint64_t *ns = <uint64_t *>cnp.PyArray_DATA(times)
    if <size_t>last.size != n:
        raise ValueError(f"lasts has {last.size} entries, numbers {n}")
    if vcpu is not None and vcpu.vm is not vm:
        raise ValueError("the vCPU belongs to another VM")
    if what == "gfn_to_hva" and vcpu is not None:
        with nogil:
            ms_time_vcpu_gfn_to_hva(vcpu._vcpu, a, n, per, out, ns)
    elif what == "gfn_to_hva":
        with nogil:
            ms_time_gfn_to_hva(vm._vm, space, a, n, per, out, ns)
    elif what == "id_to_memslot":
        with nogil:
            ms_time_id_to_memslot(vm._vm, space, a, n, per, out, ns)
    elif what == "hva_range":
        with nogil:
            ms_time_hva_range(vm._vm, space, a, b, n, per, out, ns)
    else:
        raise ValueError(f"what must be gfn_to_hva, id_to_memslot or hva_range, not {what!r}")
    return times, answers


def time_changes(VM vm not None, regions, group=1):
    """Times n calls of set_user_memory_region from C: (uint64 nanoseconds of each group, int32 results: 0 or a
    negative errno).  regions: an array of REGION_DTYPE."""
    cdef cnp.ndarray rows
    cdef size_t n, per = _group(group)
    cdef cnp.ndarray results, times
    cdef const ms_userspace_memory_region *r
    cdef int32_t *out
    cdef uint64_t *ns
    _check_open(vm)
    if not isinstance(regions, np.ndarray) or regions.dtype != REGION_DTYPE or regions.ndim != 1:
        raise TypeError("regions must be an array of REGION_DTYPE with one dimension")
    rows = np.ascontiguousarray(regions)
    n = rows.size
    results = np.zeros(n, dtype=np.int32)
    times = np.zeros((n + per - 1) // per, dtype=np.uint64)
    r = <const ms_userspace_memory_region *>cnp.PyArray_DATA(rows)
    out = <int32_t *>cnp.PyArray_DATA(results)
    ns = <uint64_t *>cnp.PyArray_DATA(times)
    with nogil:
        ms_time_changes(vm._vm, r, n, per, out, ns)
    if vm._raised:
        _report_hooks(vm)
    return times, results


def time_nothing(n=1000):
    """The clock's own share of each time: n times of no call at all, uint64 nanoseconds."""
    cdef cnp.ndarray times = np.zeros(_number_slow(n, "n", 0x7FFFFFFF), dtype=np.uint64)
    ms_time_nothing(times.size, <uint64_t *>cnp.PyArray_DATA(times))
    return times
