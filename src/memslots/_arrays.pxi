# SPDX-License-Identifier: MIT
# Arguments that are arrays: layout, type and overlap are looked at before anything is written.

cdef cnp.ndarray _as_ndarray(object values, str name):
    """An ndarray without a copy: of an ndarray itself, or of whatever offers its buffer."""
    if isinstance(values, np.ndarray):
        return _plain(values)
    if isinstance(values, (str, bytes, bytearray)) or not PyObject_CheckBuffer(values):
        raise TypeError(f"{name} must be an array of uint64 or int64, not {type(values).__name__}"
                        f"{_how_to_convert(name) if isinstance(values, (list, tuple, range)) else ''}")
    return np.asarray(values)


cdef str _how_to_convert(str name):
    return f"; use np.asarray({name}, dtype=np.uint64)"


cdef cnp.ndarray _plain(cnp.ndarray array):
    """The same memory without a subclass's own ideas of shape, copy or min."""
    return array if type(array) is np.ndarray else np.asarray(array)


cdef int _check_layout(cnp.ndarray array, str name) except -1:
    if not cnp.PyArray_ISNOTSWAPPED(array):
        raise TypeError(f"{name} must have the machine's byte order, not {array.dtype.byteorder}")
    if not cnp.PyArray_ISALIGNED(array):
        raise ValueError(f"{name} is not aligned to 8 bytes")
    return 0


# ---- signals during a long scan or batch ---------------------------------------------------------------------------

cdef extern from "Python.h":
    int _check_signals "PyErr_CheckSignals"() noexcept

# The GIL is asked for no more often than this, since other threads may be slow to give it.
cdef enum: SIGNALS_MS = 8

cdef struct _Patience:
    int64_t asked


cdef int64_t _milliseconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef bint _handles_signals(_Patience *patience):
    """Whether this thread is the one in which Python handles signals; it begins to count."""
    patience.asked = _milliseconds()
    return PyThread_get_thread_ident() == threading.main_thread().ident


cdef int _ask_with_gil() noexcept with gil:
    return _check_signals()


cdef int _ask_for_signals(void *opaque) noexcept nogil:
    """The poll of a scan or a batch in the main thread, where Python handles signals."""
    cdef _Patience *patience = <_Patience *>opaque
    cdef int64_t now = _milliseconds()
    if now - patience.asked < SIGNALS_MS:
        return 0
    patience.asked = now
    return _ask_with_gil()


cdef int _raise_pending() except -1:
    """To the caller, what a handler of signals raised."""
    return -1


# ---- int64 that must not be negative -------------------------------------------------------------------------------

cdef enum _Found:
    ENDED = -1  # by a signal handler
    NOTHING
    NEGATIVE

cdef struct _Scan:
    int64_t negative     # the one that was found
    size_t unasked       # elements since the last poll
    _Patience *patience  # or NULL: no poll


cdef int64_t _signs(const char *at, size_t n, ptrdiff_t stride) noexcept nogil:
    """Negative if one of them is; vector code where they lie side by side."""
    cdef int64_t signs = 0
    cdef size_t i
    if stride == sizeof(int64_t):
        for i in range(n):
            signs |= (<const int64_t *>at)[i]
    else:
        for i in range(n):
            signs |= (<const int64_t *>(at + <ptrdiff_t>i * stride))[0]
    return signs


cdef bint _find_negative(const char *at, size_t n, ptrdiff_t stride, _Scan *scan) noexcept nogil:
    """Which one it is: a second look, since the first one goes without branches."""
    cdef int64_t value
    cdef size_t i
    for i in range(n):
        value = (<const int64_t *>(at + <ptrdiff_t>i * stride))[0]
        if value < 0:
            scan.negative = value
            return True
    return False  # another thread has written since


cdef _Found _scan_line(const char *at, size_t n, ptrdiff_t stride, _Scan *scan) noexcept nogil:
    """In pieces; where every element is the same one, that one."""
    cdef size_t piece
    if not stride and n:
        n = 1
    while n:
        piece = n if n < MS_BATCH_PIECE else MS_BATCH_PIECE
        if _signs(at, piece, stride) < 0 and _find_negative(at, piece, stride, scan):
            return NEGATIVE
        at += <ptrdiff_t>piece * stride
        n -= piece
        scan.unasked += piece
        if scan.patience is not NULL and scan.unasked >= MS_BATCH_POLL:
            scan.unasked = 0
            if _ask_for_signals(scan.patience):
                return ENDED
    return NOTHING


cdef _Found _scan_lines(const char *at, int ndim, const cnp.npy_intp *dims, const cnp.npy_intp *strides,
                        _Scan *scan) noexcept nogil:
    """Of an array of any strides that is not empty, axis by axis; an axis of stride 0 has one place to look at."""
    cdef cnp.npy_intp i
    cdef _Found found = NOTHING
    if ndim <= 1:
        return _scan_line(at, dims[0] if ndim else 1, strides[0] if ndim else 0, scan)
    for i in range(dims[0] if strides[0] else 1):
        found = _scan_lines(at + i * strides[0], ndim - 1, dims + 1, strides + 1, scan)
        if found != NOTHING:
            break
    return found


cdef _Found _scan_array(cnp.ndarray array, _Scan *scan) noexcept nogil:
    if _in_step(array, array):
        return _scan_line(<const char *>cnp.PyArray_DATA(array), cnp.PyArray_SIZE(array), _stride(array), scan)
    return _scan_lines(<const char *>cnp.PyArray_DATA(array), cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array),
                       cnp.PyArray_STRIDES(array), scan)


cdef cnp.ndarray _as_it_lies(cnp.ndarray array):
    """The axes with the longest strides first: what is transposed is read in the order of memory."""
    if _in_step(array, array):
        return array
    return np.transpose(array, np.argsort(np.abs((<object>array).strides))[::-1])


cdef int _refuse_negative(cnp.ndarray array, str name) except -1:
    """Of int64.  Small arrays cost no more than they are; large ones keep neither threads nor signals waiting."""
    cdef _Patience patience
    cdef _Scan scan
    cdef _Found found
    cdef size_t n = cnp.PyArray_SIZE(array)
    if n <= MS_BATCH_PIECE and _in_step(array, array) and _signs(
            <const char *>cnp.PyArray_DATA(array), n, _stride(array)) >= 0:
        return 0
    scan.unasked = 0
    scan.patience = NULL
    if n <= MS_BATCH_PIECE:
        found = _scan_array(array, &scan) if n else NOTHING
    else:
        if _handles_signals(&patience):
            scan.patience = &patience
        array = _as_it_lies(array)
        with nogil:
            found = _scan_array(array, &scan)
    if found == ENDED:
        return _raise_pending()
    if found == NEGATIVE:
        raise ValueError(f"{name} must not be negative, but has {scan.negative}")
    return 0


cdef cnp.ndarray _numbers(object values, str name):
    """gfns or gpas: uint64, or int64 that are not negative."""
    cdef cnp.ndarray array = values if type(values) is np.ndarray else _as_ndarray(values, name)
    cdef bint is_signed = cnp.PyArray_ISSIGNED(array)
    if not (is_signed or cnp.PyArray_ISUNSIGNED(array)) or cnp.PyArray_ITEMSIZE(array) != 8:
        raise TypeError(f"{name} must be an array of uint64 or int64, not {array.dtype}"
                        f"{_how_to_convert(name) if array.dtype.kind in 'ui' else ''}")
    _check_layout(array, name)
    if is_signed:
        _refuse_negative(array, name)
    return array


cdef cnp.ndarray _result(object out, cnp.ndarray numbers, int type_num):
    """The array to write to: a new one, or the caller's after a look at its type, shape and flags."""
    cdef cnp.ndarray array
    if out is None:
        return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(numbers), cnp.PyArray_DIMS(numbers), type_num, 0)
    if not cnp.PyArray_Check(out):
        raise TypeError(f"out must be an ndarray, not {type(out).__name__}")
    array = _plain(out)
    if not cnp.PyArray_EquivTypenums(cnp.PyArray_TYPE(array), type_num):
        raise TypeError(f"out must be an array of {'int32' if type_num == cnp.NPY_INT32 else 'uint64'}, not {array.dtype}")
    if not cnp.PyArray_SAMESHAPE(array, numbers):
        raise ValueError(f"out has shape {(<object>array).shape}, not {(<object>numbers).shape}")
    if not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError("out is read-only")
    _check_layout(array, "out")
    return array


def check_numbers(values, name):
    """For Snapshot: the array of gfns as VM's calls accept it, or their exception."""
    return _numbers(values, name)


def check_result(out, numbers):
    """For Snapshot: `out`, or a new array, as VM's calls accept it."""
    return _result(out, numbers, cnp.NPY_UINT64)


cdef bint _in_step(cnp.ndarray a, cnp.ndarray b) noexcept nogil:
    """Whether one stride leads through both: flat arrays, or single lines of any stride."""
    if cnp.PyArray_NDIM(a) == 1:
        return True
    return cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_IS_C_CONTIGUOUS(b)


cdef void _bounds(cnp.ndarray array, char **low, char **high) noexcept:
    """The bytes that a flat array or a line touches: [low, high)."""
    cdef ptrdiff_t reach = _stride(array) * (cnp.PyArray_SIZE(array) - 1)
    cdef char *first = <char *>cnp.PyArray_DATA(array)
    low[0] = first if reach >= 0 else first + reach
    high[0] = (first + reach if reach >= 0 else first) + cnp.PyArray_ITEMSIZE(array)


cdef bint _clash(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether writing b, which is in step with a, could spoil parts of a that are still to be read."""
    cdef char *low_a
    cdef char *high_a
    cdef char *low_b
    cdef char *high_b
    if not cnp.PyArray_SIZE(a) or (cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b) and _stride(a) == _stride(b)):
        return False
    _bounds(a, &low_a, &high_a)
    _bounds(b, &low_b, &high_b)
    return low_a < high_b and low_b < high_a


cdef ptrdiff_t _stride(cnp.ndarray array) noexcept nogil:
    return cnp.PyArray_STRIDE(array, 0) if cnp.PyArray_NDIM(array) == 1 else cnp.PyArray_ITEMSIZE(array)


cdef cnp.ndarray _in_a_line(cnp.ndarray array):
    """What the array has, in step with itself: values that only a stride of 0 repeats are there once."""
    if _in_step(array, array):
        return array
    return np.ascontiguousarray(array[tuple([slice(None) if stride else slice(1) for stride in (<object>array).strides])])


cdef enum _Many:
    GFN_TO_HVA
    GPA_TO_HVA
    GFN_TO_ID
    MARK


cdef int _run_batch(ms_vm *vm, _Many what, uint32_t as_id, const ms_batch *batch, bint write) noexcept nogil:
    if what == GFN_TO_HVA:
        return ms_gfn_to_hva_many(vm, as_id, batch, write)
    if what == GPA_TO_HVA:
        return ms_gpa_to_hva_many(vm, as_id, batch, write)
    if what == GFN_TO_ID:
        return ms_gfn_to_slot_id_many(vm, as_id, batch)
    return ms_mark_page_dirty_many(vm, as_id, batch)


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
