# SPDX-License-Identifier: MIT
# Reads and writes of guest memory.
#
# A copy of less than GIL_BYTES keeps the GIL: to release it and to take it back costs more than the copy.

# The size from which on a copy releases the GIL.
cdef enum: GIL_BYTES = 16384

cdef extern from "Python.h":
    # Declared without Cython's check for an exception, so that a call needs no try block.
    int _get_buffer "PyObject_GetBuffer"(object buffer, Py_buffer *view, int flags) noexcept


cdef size_t _size(object value, str name) except? 0xDEAD:
    return _number(value, name, 0x7FFFFFFFFFFFFFFF)


cdef bytes _new_bytes(size_t n):
    """n bytes for a call to fill."""
    if n <= GIL_BYTES:
        return PyBytes_FromStringAndSize(NULL, n)
    try:
        return PyBytes_FromStringAndSize(NULL, n)
    except (MemoryError, OverflowError):
        raise OutOfMemoryError(errno.ENOMEM, f"there is no memory for {n:#x} bytes; nothing was read",
                               rule="NO_MEMORY") from None


cdef int _take_bytes(object buffer, Py_buffer *view, bint write, str name) except -1:
    """The contiguous bytes of an argument.  The caller releases them."""
    if write:
        _refuse_objects(buffer, name)
    if _get_buffer(buffer, view, PyBUF_WRITABLE if write else PyBUF_SIMPLE) == 0:
        return 0
    return _refuse_bytes(buffer, write, name)


cdef int _refuse_bytes(object buffer, bint write, str name) except -1:
    """Raises an exception that names the argument in place of the one of PyObject_GetBuffer()."""
    try:
        _raise_pending()
    except (BufferError, TypeError, ValueError) as error:
        cause = error
    if not PyObject_CheckBuffer(buffer):
        raise TypeError(f"{name} must have the buffer protocol, as {'bytearray' if write else 'bytes'} and numpy arrays "
                        f"have, but is {type(buffer).__name__}") from cause
    try:
        view = memoryview(buffer)
    except Exception:
        raise cause  # such as that of a closed mmap
    if write and view.readonly:
        raise ValueError(f"{name} ({type(buffer).__name__}) is read-only; use a bytearray, or a copy that can be "
                         "written") from cause
    if not view.c_contiguous:
        raise ValueError(f"{name} ({type(buffer).__name__}) is not C-contiguous; use "
                         f"{'a bytearray' if write else f'bytes({name})'}, or a contiguous array") from cause
    raise cause


cdef object _guest_refusal(VM vm, int r, const ms_error *err, uint32_t as_id):
    """The exception for an access that the core refused.  It has run no hook, but may come from one."""
    return _refusal(vm, r, err, Request(as_id=as_id, gpa=err.gpa, done=err.done, in_snapshot=vm._of_snapshot), "", [])


cdef int _read(ms_vm *vm, uint32_t as_id, uint64_t gpa, void *out, size_t n, ms_error *err) noexcept:
    cdef int r
    if n < GIL_BYTES:
        return ms_read_guest(vm, as_id, gpa, out, n, err)
    with nogil:
        r = ms_read_guest(vm, as_id, gpa, out, n, err)
    _drain_released()
    return r


cdef int _write(ms_vm *vm, uint32_t as_id, uint64_t gpa, const void *data, size_t n, ms_error *err) noexcept:
    cdef int r
    if n < GIL_BYTES:
        return ms_write_guest(vm, as_id, gpa, data, n, err)
    with nogil:
        r = ms_write_guest(vm, as_id, gpa, data, n, err)
    _drain_released()
    return r


cdef int _fill_bytes(ms_vm *vm, uint32_t as_id, uint64_t gpa, size_t n, uint8_t byte, ms_error *err) noexcept:
    cdef int r
    if n < GIL_BYTES:
        return ms_fill_guest(vm, as_id, gpa, n, byte, err)
    with nogil:
        r = ms_fill_guest(vm, as_id, gpa, n, byte, err)
    _drain_released()
    return r


cdef int _copy(ms_vm *vm, uint32_t as_id, uint64_t to, uint64_t source, size_t n, ms_error *err) noexcept:
    cdef int r
    if n < GIL_BYTES:
        return ms_copy_guest(vm, as_id, to, source, n, err)
    with nogil:
        r = ms_copy_guest(vm, as_id, to, source, n, err)
    _drain_released()
    return r


# ---- many addresses ------------------------------------------------------------------------------------------------

cdef int _write_many(VM vm, object gpas, object values, object as_id) except -1:
    cdef uint32_t space = _as_id(vm, as_id)
    cdef cnp.ndarray array = _numbers(gpas, "gpas")
    cdef cnp.ndarray data = _one_for_each(values, "values", array, "gpas")
    if not _in_step(array, data):
        array, data = np.ascontiguousarray(array), np.ascontiguousarray(data)
    return _look_up(vm, WRITE_U64, array, data, space, True)


cdef cnp.ndarray _one_for_each(object values, str name, cnp.ndarray others, str other_name):
    """The values as an array of the shape of the others.  One value stands for all.

    The conversion may run code of the caller, which may resize the others.  So take views of them only afterwards."""
    cdef object array, shape
    if not isinstance(values, np.ndarray) and hasattr(type(values), "__index__"):
        values = np.array(_u64(values, name), dtype=np.uint64)
    array = _numbers(values, name)
    shape = (<object>others).shape
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {array.shape}, but {other_name} has {shape}") from None


cdef cnp.ndarray _flat(cnp.ndarray array):
    """The elements in C order."""
    return np.ascontiguousarray(array).reshape(-1)


# ---- ranges --------------------------------------------------------------------------------------------------------

cdef object _host_ranges(VM vm, uint64_t gpa, uint64_t n, uint32_t as_id, bint write):
    """Repeats the query with more room until all ranges fit."""
    cdef size_t room = FIRST_ROOM, count, i
    cdef uint64_t hole = 0
    cdef ms_host_range *found
    while True:
        found = <ms_host_range *>malloc(room * sizeof(ms_host_range))
        if found is NULL:
            raise _out_of_memory()
        try:
            with nogil:
                count = ms_host_ranges(vm._vm, as_id, gpa, n, write, found, room, &hole)
            if count <= room:
                return HostRanges([(found[i].hva, found[i].length) for i in range(count)],
                                  None if hole - gpa == n else hole)
            room = count
        finally:
            free(found)


cdef cnp.ndarray _cut(cnp.ndarray found, size_t count):
    """The rows that were found.  A copy if they are a small part of the array."""
    return found[:count].copy() if count < <size_t>cnp.PyArray_DIM(found, 0) // 2 else found[:count]


cdef object _host_ranges_many(VM vm, object gpas, object sizes, object as_id, bint write):
    cdef uint32_t space = _as_id(vm, as_id)
    cdef cnp.ndarray array = _numbers(gpas, "gpas")
    cdef cnp.ndarray lengths = _flat(_one_for_each(sizes, "sizes", array, "gpas")), starts = _flat(array)
    cdef size_t n = cnp.PyArray_SIZE(starts), room = n + FIRST_ROOM, count
    cdef cnp.ndarray offsets = np.zeros(n + 1, np.int64), holes = np.zeros(n, np.uint64), found
    cdef const uint64_t *first = <const uint64_t *>cnp.PyArray_DATA(starts)
    cdef const uint64_t *second = <const uint64_t *>cnp.PyArray_DATA(lengths)
    cdef uint64_t *bounds = <uint64_t *>cnp.PyArray_DATA(offsets)
    cdef uint64_t *ends = <uint64_t *>cnp.PyArray_DATA(holes)
    cdef ms_host_range *out
    while True:
        found = np.empty((room, 2), np.uint64)
        out = <ms_host_range *>cnp.PyArray_DATA(found)
        with nogil:
            count = ms_host_ranges_many(vm._vm, space, first, second, n, write, out, room, bounds, ends)
        if count <= room:
            return HostRangesMany(_cut(found, count), offsets, holes)
        room = count


cdef object _slots_of_ranges(VM vm, object starts, object ends, object as_id):
    cdef uint32_t space = _as_id(vm, as_id)
    cdef cnp.ndarray array = _numbers(starts, "starts")
    cdef cnp.ndarray highs = _flat(_one_for_each(ends, "ends", array, "starts")), lows = _flat(array)
    cdef size_t n = cnp.PyArray_SIZE(lows), room = n + FIRST_ROOM, count
    cdef cnp.ndarray offsets = np.zeros(n + 1, np.int64), found
    cdef const uint64_t *first = <const uint64_t *>cnp.PyArray_DATA(lows)
    cdef const uint64_t *second = <const uint64_t *>cnp.PyArray_DATA(highs)
    cdef uint64_t *bounds = <uint64_t *>cnp.PyArray_DATA(offsets)
    cdef ms_memslot *out
    while True:
        found = np.zeros(room, MEMSLOT_DTYPE)
        out = <ms_memslot *>cnp.PyArray_DATA(found)
        with nogil:
            count = ms_memslots_in_gfn_range_many(vm._vm, space, first, second, n, out, room, bounds)
        if count <= room:
            return SlotsOfRanges(_cut(found, count), offsets)
        room = count
