# SPDX-License-Identifier: MIT
# Arguments that are numbers or flags.  A number has __index__ and is in range; otherwise the exception names the argument.

cdef extern from *:
    """
    /* The value of a non-negative int of at most two digits (below 2^60), as most frame numbers and addresses are.
     * Otherwise negative.  Python's function for it takes 140 instructions for two digits.  Versions after 3.14 may
     * store digits in another way, so there only one digit is read. */
    #if PY_VERSION_HEX >= 0x030C0000
    static inline int64_t memslots_small(PyObject *value)
    {
        PyLongObject *number = (PyLongObject *)value;
    #if PY_VERSION_HEX < 0x030F0000 && PyLong_SHIFT == 30
        if (number->long_value.lv_tag == 2 << _PyLong_NON_SIZE_BITS) /* two digits, and the sign + */
            return (int64_t)number->long_value.ob_digit[1] << 30 | number->long_value.ob_digit[0];
    #endif
        return PyUnstable_Long_IsCompact(number) ? PyUnstable_Long_CompactValue(number) : -1;
    }
    #else
    static inline int64_t memslots_small(PyObject *value)
    {
        const digit *digits = ((PyLongObject *)value)->ob_digit;

        switch (Py_SIZE(value)) {
        case 0:
            return 0;
        case 1:
            return digits[0];
    #if PyLong_SHIFT == 30
        case 2:
            return (int64_t)digits[1] << 30 | digits[0];
    #endif
        default:
            return -1;
        }
    }
    #endif
    """
    int64_t _small "memslots_small"(object value) noexcept


cdef extern from "Python.h":
    # Declared without Cython's check for an exception, which would cost a try block at every call.
    unsigned long long _as_unsigned "PyLong_AsUnsignedLongLong"(object value) noexcept


cdef object _index(object value, str name):
    """The int of an object with __index__.  TypeError for a bool, since True is no frame number, and for a masked
    element, which has no value."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an int, not a masked array; use {name}.item(), which is None if it is masked")
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an int: {error}") from error


cdef bint _flag_slow(object value, str name) except -1:
    if not isinstance(value, np.bool_):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    return bool(value)


cdef inline bint _flag(object value, str name) except -1:
    """The value of a bool.  TypeError for other types: the text "False" would count as true."""
    return value is True or (value is not False and _flag_slow(value, name))


cdef object _in_words(object number):
    """A text for an int in a message: Python refuses to print an int of more than 4,300 digits."""
    cdef object bits = number.bit_length()
    return str(number) if bits <= 256 else f"a {'negative ' if number < 0 else ''}number of {bits} bits"


cdef uint64_t _number_slow(object value, str name, uint64_t maximum) except? 0xDEAD:
    cdef object number = _index(value, name)
    if not 0 <= number <= maximum:
        raise OverflowError(f"{name} must be 0 to {maximum:#x}, not {_in_words(number)}")
    return number


cdef inline uint64_t _number(object value, str name, uint64_t maximum) except? 0xDEAD:
    """The argument as an integer from 0 to maximum.  The usual case, an exact int in range, costs one conversion."""
    cdef uint64_t number
    cdef int64_t small
    if PyLong_CheckExact(value):
        small = _small(value)
        if small >= 0 and <uint64_t>small <= maximum:
            return <uint64_t>small
        number = _as_unsigned(value)
        if number == 0xFFFFFFFFFFFFFFFF and PyErr_Occurred() is not NULL:
            PyErr_Clear()
        elif number <= maximum:
            return number
    return _number_slow(value, name, maximum)


cdef inline uint64_t _u64(object value, str name) except? 0xDEAD:
    return _number(value, name, 0xFFFFFFFFFFFFFFFF)


cdef inline uint32_t _u32(object value, str name) except? 0xDEAD:
    return <uint32_t>_number(value, name, 0xFFFFFFFF)


cdef int32_t _fd(object value, str name) except? -7777:
    """A file descriptor, or -1.  The test with `is` is fast for the default: CPython has only one object for -1."""
    if value is -1:
        return -1
    cdef object number = _index(value, name)
    if not -2147483648 <= number <= 2147483647:
        raise OverflowError(f"{name} must fit a C int, not {_in_words(number)}")
    return number


cdef object _out_of_memory():
    return OutOfMemoryError(errno.ENOMEM, "out of memory; nothing was changed", rule="NO_MEMORY")
