# SPDX-License-Identifier: MIT
# Arguments that are arrays.  Type, layout and overlap are checked before anything is written.  An ndarray of uint64 or
# int64 is read in place.  Other integers are converted if the conversion can change no value.

cdef cnp.ndarray _as_ndarray(object values, str name):
    """Converts an ndarray, a buffer, an object with __array__ (pandas, pyarrow) or a list to a plain ndarray."""
    if isinstance(values, np.ndarray):
        _refuse_mask(values, name)
        return _plain(values)
    if isinstance(values, (list, tuple)):
        return _from_list(values, name)
    if isinstance(values, range):
        return _from_range(values, name)
    if isinstance(values, (str, bytes, bytearray)) or not (
            PyObject_CheckBuffer(values) or hasattr(type(values), "__array__")):
        raise TypeError(f"{_must_be_array(name)}, not {type(values).__name__}{_way_to_convert(values, name)}")
    array = _via_asarray(values, name)
    if PyObject_CheckBuffer(values) and not isinstance(values, np.generic) and array.dtype == np.uint8:
        raise TypeError(f"{_must_be_array(name)}, not a buffer of bytes; use np.frombuffer({name}, dtype=np.uint64), "
                        f"or np.asarray({name}, dtype=np.uint64) if each byte is a number")
    return array


cdef str _must_be_array(str name):
    return f"{name} must be an array of integers"


cdef str _way_to_convert(object values, str name):
    """The expression that converts an object which holds numbers but is not an array.  Part of a message."""
    if isinstance(values, (bytes, bytearray)):
        return f"; use np.frombuffer({name}, dtype=np.uint64)"
    if isinstance(values, str):
        return ""
    if hasattr(type(values), "__index__"):
        return f"; use np.asarray([{name}], dtype=np.uint64)"
    if hasattr(type(values), "__iter__"):
        return f"; use np.fromiter({name}, dtype=np.uint64)"
    return ""


cdef cnp.ndarray _via_asarray(object values, str name):
    """The array that the object's own __array__ or buffer gives.  Its code is the caller's: an exception of it reaches
    the caller, with a note."""
    try:
        array = np.asanyarray(values)
    except Exception as error:
        error.add_note(f"raised by np.asarray({name}); the type of {name} is {type(values).__name__}")
        raise
    _refuse_mask(array, name)
    return _plain(array)


cdef int _refuse_mask(object array, str name) except -1:
    """TypeError for a masked array, since masked elements have no value.  Also if no element is masked: the content of
    an array must not decide whether a call works."""
    if not isinstance(array, np.ma.MaskedArray):
        return 0
    raise TypeError(f"{name} is a masked array; use {name}.compressed(), which leaves the masked elements out, or "
                    f"{name}.filled(value)")


cdef cnp.ndarray _from_range(object values, str name):
    """The elements of a range.  The step may be negative, because uint64 arithmetic wraps."""
    cdef object first = values.start, last
    if not values:
        return np.zeros(0, dtype=np.uint64)
    last = first + (values.stop - first - (1 if values.step > 0 else -1)) // values.step * values.step
    if min(first, last) < 0:
        raise ValueError(f"{name} must not be negative, but has {_in_words(min(first, last))}")
    _u64(max(first, last), name)
    return np.arange(len(values), dtype=np.uint64) * np.uint64(values.step % 2**64) + np.uint64(first)


cdef cnp.ndarray _from_list(object values, str name):
    """The array that numpy makes of a list, if it has integers.  Otherwise the elements as objects: numpy makes floats
    of [1, 2**63]."""
    cdef cnp.ndarray array
    _refuse_masks_inside(values, name)
    array = _via_asarray(values, name)
    if not cnp.PyArray_SIZE(array):
        return np.zeros((<object>array).shape, dtype=np.uint64)
    if array.dtype.kind in "ui":
        return array
    return _object_array(values, name)


cdef cnp.ndarray _object_array(object values, str name):
    try:
        return np.array(values, dtype=object)
    except ValueError as error:
        raise TypeError(f"{_must_be_array(name)}: {error}") from error


cdef int _refuse_masks_inside(object values, str name) except -1:
    """TypeError for a masked array inside a list: numpy would drop its mask.  Searches as deep as an array can have
    dimensions."""
    cdef list level = [values]
    for _ in range(64):
        level = [part for row in level for part in row if isinstance(part, (list, tuple, np.ndarray))]
        for part in level:
            if isinstance(part, np.ndarray):
                _refuse_mask(part, name)
        level = [part for part in level if not isinstance(part, np.ndarray)]
        if not level or len(level) > 1 << 20:  # numpy refuses a list that contains itself
            break
    return 0


cdef cnp.ndarray _plain(cnp.ndarray array):
    """The same memory as a plain ndarray, without the methods that a subclass overrides."""
    return array if type(array) is np.ndarray else np.asarray(array)


# ---- other kinds of integers ---------------------------------------------------------------------------------------

cdef bint _is_exact(cnp.ndarray array) noexcept:
    """Whether the engine can read the array in place: 64-bit integers, aligned, in the machine's byte order."""
    return ((cnp.PyArray_ISSIGNED(array) or cnp.PyArray_ISUNSIGNED(array)) and cnp.PyArray_ITEMSIZE(array) == 8
            and cnp.PyArray_ISALIGNED(array) and cnp.PyArray_ISNOTSWAPPED(array))


cdef cnp.ndarray _converted(cnp.ndarray array, str name):
    """The same integers in a form that the engine can read.  TypeError if a conversion could change a value."""
    kind = array.dtype.kind
    if kind in "ui":
        return _widened(array, np.int64 if kind == "i" else np.uint64)
    if kind == "O":
        return _from_objects(array, name)
    raise TypeError(f"{_must_be_array(name)}, not {array.dtype}{_way_from_dtype(array.dtype, name)}")


cdef str _way_from_dtype(object dtype, str name):
    if dtype.names:
        return f"; use {name}[{dtype.names[0]!r}], or another of its fields"
    if dtype.kind == "b":
        return f"; use np.flatnonzero({name})"
    if dtype.kind == "c":
        return f"; np.asarray({name}).real.astype(np.uint64) converts it, but drops all but whole numbers"
    if dtype.kind == "f":
        return f"; np.asarray({name}).astype(np.uint64) converts it, but drops fractions and makes garbage of NaN"
    if dtype.kind in "mMUST":
        return f"; use np.asarray({name}).astype(np.uint64) if these are frame numbers"
    return f"; use np.asarray({name}).view(np.uint64) if its memory holds 64-bit integers"


cdef cnp.ndarray _widened(cnp.ndarray array, object dtype):
    """Converts each element once.  An axis of stride 0 repeats one element: it is converted once and repeated again."""
    return np.broadcast_to(_without_repeats(array).astype(dtype), (<object>array).shape)


cdef cnp.ndarray _without_repeats(cnp.ndarray array):
    """A view in which each axis of stride 0 has one element.  The Ellipsis keeps an array of 0 dimensions an array."""
    return array[(*[slice(None) if stride else slice(1) for stride in (<object>array).strides], Ellipsis)]


cdef cnp.ndarray _from_objects(cnp.ndarray array, str name):
    """Converts Python objects one by one.  Each must be an int or have __index__.  Reads from a copy, because an
    __index__ may write to the array."""
    cdef object once = _without_repeats(array).copy()
    cdef object numbers = np.empty(once.shape, dtype=np.uint64)
    for place, value in enumerate(once.flat):
        numbers.flat[place] = _u64(value, f"element {place} of {name}")
    return np.broadcast_to(numbers, (<object>array).shape)


# ---- signals during a long scan or batch ---------------------------------------------------------------------------

cdef extern from "Python.h":
    int _check_signals "PyErr_CheckSignals"() noexcept

# The shortest time between two acquisitions of the GIL for signals: other threads may be slow to release it.
cdef enum: SIGNALS_MS = 8

cdef struct _PollClock:
    int64_t last_poll  # milliseconds


cdef int64_t _milliseconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef bint _start_poll_clock(_PollClock *clock):
    """Starts the clock.  Returns whether this is the main thread, the only one in which Python handles signals."""
    clock.last_poll = _milliseconds()
    return PyThread_get_thread_ident() == threading.main_thread().ident


cdef int _check_signals_with_gil() noexcept with gil:
    return _check_signals()


cdef int _poll_signals(void *opaque) noexcept nogil:
    """The poll function of a scan or a batch in the main thread.  Not 0 if a signal handler raised."""
    cdef _PollClock *clock = <_PollClock *>opaque
    cdef int64_t now = _milliseconds()
    if now - clock.last_poll < SIGNALS_MS:
        return 0
    clock.last_poll = now
    return _check_signals_with_gil()


cdef int _raise_pending() except -1:
    """Raises the exception of the signal handler, which PyErr_CheckSignals() has set."""
    return -1


# ---- int64 that must not be negative -------------------------------------------------------------------------------

cdef enum _Found:
    ENDED = -1  # a signal handler raised
    NOTHING
    NEGATIVE

cdef struct _Scan:
    int64_t negative    # the negative number, after NEGATIVE
    size_t since_poll   # the elements since the last poll
    _PollClock *clock   # NULL: no polls


cdef int64_t _signs(const char *at, size_t n, ptrdiff_t stride) noexcept nogil:
    """A negative number if one of the n elements is negative.  The compiler vectorizes the contiguous case."""
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
    """Finds the negative number after _signs(), which has no branches and so cannot say which one it is."""
    cdef int64_t value
    cdef size_t i
    for i in range(n):
        value = (<const int64_t *>(at + <ptrdiff_t>i * stride))[0]
        if value < 0:
            scan.negative = value
            return True
    return False  # another thread has overwritten the negative number


cdef _Found _scan_line(const char *at, size_t n, ptrdiff_t stride, _Scan *scan) noexcept nogil:
    """Scans n elements in pieces of MS_BATCH_PIECE.  With a stride of 0 all elements are one, which is scanned once."""
    cdef size_t piece
    if not stride and n:
        n = 1
    while n:
        piece = n if n < MS_BATCH_PIECE else MS_BATCH_PIECE
        if _signs(at, piece, stride) < 0 and _find_negative(at, piece, stride, scan):
            return NEGATIVE
        at += <ptrdiff_t>piece * stride
        n -= piece
        scan.since_poll += piece
        if scan.clock is not NULL and scan.since_poll >= MS_BATCH_POLL:
            scan.since_poll = 0
            if _poll_signals(scan.clock):
                return ENDED
    return NOTHING


cdef _Found _scan_lines(const char *at, int ndim, const cnp.npy_intp *dims, const cnp.npy_intp *strides,
                        _Scan *scan) noexcept nogil:
    """Scans a non-empty array of any strides, axis by axis.  An axis of stride 0 has one element."""
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


cdef cnp.ndarray _in_memory_order(cnp.ndarray array):
    """A view with the longest strides first, so that a transposed array is read in the order of memory."""
    if _in_step(array, array):
        return array
    return np.transpose(array, np.argsort(np.abs((<object>array).strides))[::-1])


cdef int _refuse_negative(cnp.ndarray array, str name) except -1:
    """ValueError if an int64 array has a negative number.  A small array is scanned at once.  The scan of a large one
    releases the GIL and polls for signals."""
    cdef _PollClock clock
    cdef _Scan scan
    cdef _Found found
    cdef size_t n = cnp.PyArray_SIZE(array)
    if n <= MS_BATCH_PIECE and _in_step(array, array) and _signs(
            <const char *>cnp.PyArray_DATA(array), n, _stride(array)) >= 0:
        return 0
    scan.since_poll = 0
    scan.clock = NULL
    if n <= MS_BATCH_PIECE:
        found = _scan_array(array, &scan) if n else NOTHING
    else:
        if _start_poll_clock(&clock):
            scan.clock = &clock
        array = _in_memory_order(array)
        with nogil:
            found = _scan_array(array, &scan)
    if found == ENDED:
        return _raise_pending()
    if found == NEGATIVE:
        raise ValueError(f"{name} must not be negative, but has {scan.negative}")
    return 0


cdef cnp.ndarray _numbers(object values, str name):
    """An argument of gfns or gpas: uint64, or int64 without negative numbers."""
    cdef cnp.ndarray array = values if type(values) is np.ndarray else _as_ndarray(values, name)
    if not _is_exact(array):
        array = _converted(array, name)
    if cnp.PyArray_ISSIGNED(array):
        _refuse_negative(array, name)
    return array


cdef cnp.ndarray _words(object values, str name):
    """The words of a bitmap, as uint64.  A 64-bit signed word stands for the same bits; with bit 63 set it is negative.
    A narrower negative number has no such bits and raises ValueError."""
    cdef cnp.ndarray array = values if type(values) is np.ndarray else _as_ndarray(values, name)
    cdef bint is_wide = cnp.PyArray_ITEMSIZE(array) == 8
    if not _is_exact(array):
        array = _converted(array, name)
    if not cnp.PyArray_ISSIGNED(array):
        return array
    if not is_wide:
        _refuse_negative(array, name)
    return array.view(np.uint64)


def bitmap_words(values, name):
    """_words() for a caller in Python: one contiguous array."""
    return np.ascontiguousarray(_words(values, name))


cdef cnp.ndarray _result(object out, cnp.ndarray numbers, int type_num):
    """The array to write to: a new one, or the caller's, whose type, shape and flags are checked."""
    cdef cnp.ndarray array
    if out is None:
        return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(numbers), cnp.PyArray_DIMS(numbers), type_num, 0)
    if not cnp.PyArray_Check(out):
        raise TypeError(f"out must be an ndarray, not {type(out).__name__}{_way_to_out(numbers, type_num)}")
    if not cnp.PyArray_CheckExact(out):
        _refuse_masked_out(out)
    array = _plain(out)
    if not cnp.PyArray_EquivTypenums(cnp.PyArray_TYPE(array), type_num):
        raise TypeError(f"out must be an array of {_type_name(type_num)}, not {array.dtype}{_way_to_out(numbers, type_num)}")
    if not cnp.PyArray_SAMESHAPE(array, numbers):
        raise ValueError(f"out has shape {(<object>array).shape}, not {(<object>numbers).shape}"
                         f"{_way_to_out(numbers, type_num)}")
    if not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError(f"out is read-only{_way_to_out(numbers, type_num)}")
    if not cnp.PyArray_ISNOTSWAPPED(array):
        raise TypeError(f"out must have the machine's byte order, not {array.dtype.byteorder}{_way_to_out(numbers, type_num)}")
    if not cnp.PyArray_ISALIGNED(array):
        raise ValueError(f"out is not aligned to {cnp.PyArray_ITEMSIZE(array)} bytes{_way_to_out(numbers, type_num)}")
    return array


cdef cnp.ndarray _contiguous_out(object out, str shape):
    """An array of uint64 words that the core fills as a whole.  shape: "(n,)" or "(n, 2)"."""
    cdef str way = f"; use np.empty({shape}, dtype=np.uint64)"
    cdef cnp.ndarray array
    cdef bint has_shape
    if not cnp.PyArray_Check(out):
        raise TypeError(f"out must be an ndarray, not {type(out).__name__}{way}")
    _refuse_masked_out(out)
    array = _plain(out)
    has_shape = array.ndim == 1 if shape == "(n,)" else array.ndim == 2 and cnp.PyArray_DIM(array, 1) == 2
    if array.dtype != np.uint64 or not cnp.PyArray_ISNOTSWAPPED(array):
        raise TypeError(f"out must be an array of uint64 in the machine's byte order, not {array.dtype.str}{way}")
    if not has_shape:
        raise ValueError(f"out must have the shape {shape}, not {(<object>array).shape}{way}")
    if not cnp.PyArray_IS_C_CONTIGUOUS(array) or not cnp.PyArray_ISALIGNED(array):
        raise ValueError(f"out must be contiguous and aligned{way}")
    if not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError(f"out is read-only{way}")
    return array


cdef int _refuse_masked_out(object out) except -1:
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError("out is a masked array; use out.data")
    return 0


cdef str _type_name(int type_num):
    return "int32" if type_num == cnp.NPY_INT32 else "uint64"


cdef str _way_to_out(cnp.ndarray numbers, int type_num):
    return f"; use np.empty({(<object>numbers).shape}, dtype=np.{_type_name(type_num)})"


cdef bint _in_step(cnp.ndarray a, cnp.ndarray b) noexcept nogil:
    """Whether the elements of each array, in C order, are one constant stride apart.  Both have one dimension, with any
    stride, or both are C-contiguous.  The two have the same shape."""
    if cnp.PyArray_NDIM(a) == 1:
        return True
    return cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_IS_C_CONTIGUOUS(b)


cdef void _bounds(cnp.ndarray array, char **low, char **high) noexcept:
    """The bytes [low, high) that an array of one stride covers.  It is not empty."""
    cdef ptrdiff_t reach = _stride(array) * (cnp.PyArray_SIZE(array) - 1)
    cdef char *first = <char *>cnp.PyArray_DATA(array)
    low[0] = first if reach >= 0 else first + reach
    high[0] = (first + reach if reach >= 0 else first) + cnp.PyArray_ITEMSIZE(array)


cdef bint _clash(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether writing to b could overwrite elements of a that are still to be read.  _in_step(a, b) is true."""
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


cdef cnp.ndarray _with_one_stride(cnp.ndarray array):
    """The elements of the array at one constant stride.  If the array is large, elements that a stride of 0 repeats
    occur once."""
    array = _without_repeats(array) if cnp.PyArray_SIZE(array) > <cnp.npy_intp>MS_BATCH_PIECE else array
    return array if _in_step(array, array) else np.ascontiguousarray(array)


cdef enum _Many:
    GFN_TO_HVA
    GPA_TO_HVA
    GFN_TO_ID
    MARK
    READ_U64
    WRITE_U64


cdef int _run_batch(ms_vm *vm, _Many what, uint32_t as_id, const ms_batch *batch, bint write,
                    ms_error *err) noexcept nogil:
    """0, -EINTR, or for READ_U64 and WRITE_U64 an error with *err."""
    if what == READ_U64:
        return ms_read_guest_u64_many(vm, as_id, batch, err)
    if what == WRITE_U64:
        return ms_write_guest_u64_many(vm, as_id, batch, err)
    if what == GFN_TO_HVA:
        return ms_gfn_to_hva_many(vm, as_id, batch, write)
    if what == GPA_TO_HVA:
        return ms_gpa_to_hva_many(vm, as_id, batch, write)
    if what == GFN_TO_ID:
        return ms_gfn_to_slot_id_many(vm, as_id, batch)
    return ms_mark_page_dirty_many(vm, as_id, batch)


