# SPDX-License-Identifier: MIT
# Arguments that are arrays: layout, type and overlap are looked at before anything is written.

cdef cnp.ndarray _as_ndarray(object values, str name):
    """An ndarray without a copy: of an ndarray itself, or of whatever offers its buffer."""
    if isinstance(values, np.ndarray):
        return _plain(values)
    if isinstance(values, (str, bytes, bytearray)) or not PyObject_CheckBuffer(values):
        raise TypeError(f"{name} must be an array of uint64 or int64, not {type(values).__name__}")
    return np.asarray(values)


cdef cnp.ndarray _plain(cnp.ndarray array):
    """The same memory without a subclass's own ideas of shape, copy or min."""
    return array if type(array) is np.ndarray else np.asarray(array)


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
    array = _plain(out)
    if array.dtype.kind != dtype.kind or array.dtype.itemsize != dtype.itemsize:
        raise TypeError(f"out must be an array of {dtype}, not {array.dtype}")
    if (<object>array).shape != (<object>numbers).shape:
        raise ValueError(f"out has shape {(<object>array).shape}, not {(<object>numbers).shape}")
    if not array.flags.writeable:
        raise ValueError("out is read-only")
    _check_layout(array, "out")
    return array


def check_numbers(values, name):
    """For Snapshot: the array of gfns as VM's calls accept it, or their exception."""
    return _numbers(values, name)


def check_result(out, numbers):
    """For Snapshot: `out`, or a new array, as VM's calls accept it."""
    return _result(out, numbers, _UINT64)


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
