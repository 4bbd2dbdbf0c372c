# SPDX-License-Identifier: MIT
# Reads and writes of guest memory.
#
# A copy of less than GIL_BYTES keeps the GIL: to release it and to take it back costs more than the copy.

# The size from which on a copy releases the GIL.
cdef enum: GIL_BYTES = 16384

cdef extern from *:
    """
    static int memslots_u64_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write,
                                 struct ms_error *err)
    {
        for (size_t i = 0; i < batch->n; i++) {
            char *value = (char *)batch->out + (ptrdiff_t)i * batch->out_stride;
            uint64_t gpa, number;
            int r;

            memcpy(&gpa, (const char *)batch->in + (ptrdiff_t)i * batch->in_stride, 8);
            memcpy(&number, value, 8);
            r = write ? ms_write_guest_u64(vm, as_id, gpa, number, err) : ms_read_guest_u64(vm, as_id, gpa, &number, err);
            if (r) {
                err->done += 8 * i;
                return r;
            }
            if (!write)
                memcpy(value, &number, 8);
            if (batch->poll && i % MS_BATCH_POLL == MS_BATCH_POLL - 1 && batch->poll(batch->opaque))
                return -EINTR;
        }
        return 0;
    }
    """
    int _u64_many "memslots_u64_many"(ms_vm *vm, uint32_t as_id, const ms_batch *batch, bint write,
                                      ms_error *err) noexcept nogil


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
        raise ValueError(f"{name} ({type(buffer).__name__}) is read-only") from cause
    if not view.c_contiguous:
        raise ValueError(f"{name} ({type(buffer).__name__}) is not C-contiguous") from cause
    raise cause


cdef object _guest_refusal(VM vm, int r, const ms_error *err, uint32_t as_id):
    """The exception for an access that the core refused.  It has run no hook, but may come from one."""
    return _refusal(vm, r, err, Request(as_id=as_id, gpa=err.gpa, done=err.done), "", [])


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


# ---- values of many addresses --------------------------------------------------------------------------------------

cdef object _write_many(VM vm, object gpas, object values, object as_id):
    cdef uint32_t space = _as_id(vm, as_id)
    cdef cnp.ndarray array = _numbers(gpas, "gpas")
    cdef cnp.ndarray data = _values_for(values, array)
    if not (_in_step(array, data) and _in_step(data, array)):
        array, data = np.ascontiguousarray(array), np.ascontiguousarray(data)
    _look_up(vm, WRITE_U64, array, data, space, True)


cdef cnp.ndarray _values_for(object values, cnp.ndarray gpas):
    """The values as an array of the shape of gpas.  One value stands for all."""
    if not isinstance(values, np.ndarray) and hasattr(type(values), "__index__"):
        values = np.array(_u64(values, "values"), dtype=np.uint64)
    array = _numbers(values, "values")
    try:
        return np.broadcast_to(array, (<object>gpas).shape)
    except ValueError:
        raise ValueError(f"values has shape {(<object>array).shape}, but gpas has {(<object>gpas).shape}") from None


# ---- ranges --------------------------------------------------------------------------------------------------------
