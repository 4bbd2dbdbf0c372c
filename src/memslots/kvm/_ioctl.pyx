# SPDX-License-Identifier: MIT
# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""System calls of the KVM classes that Python's own modules do not make well.

* fcntl.ioctl() takes an int argument as a C int.  An address above 2^31 does not fit.
* signal.signal() works in the main thread only, and its handler wakes that thread.  KVM_RUN needs a handler in C that
  does nothing: a signal must end KVM_RUN in one thread and must have no other effect.

Invariants
  S1  The kick signal has the handler `_nothing` from `kick_signal()` on.  So a signal that comes late is harmless.
  S2  The kick signal is not blocked while KVM_RUN runs, also in a thread that blocks all signals.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.long cimport PyLong_Check

cdef extern from "<errno.h>" nogil:
    int errno

cdef extern from "<sys/ioctl.h>" nogil:
    int c_ioctl "ioctl"(int fd, unsigned long request, ...)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    ctypedef void (*handler_t)(int) noexcept nogil
    struct c_sigaction "sigaction":
        handler_t sa_handler
        sigset_t sa_mask
        int sa_flags
    handler_t SIG_DFL
    int SIGRTMIN, SIGRTMAX, SA_RESTART, SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK
    int sigaction(int number, const c_sigaction *new, c_sigaction *old)
    int sigemptyset(sigset_t *set)
    int sigaddset(sigset_t *set, int number)
    int sigismember(const sigset_t *set, int number)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)

cdef unsigned long KVM_RUN = 0xAE80

cdef int _signal = 0  # the kick signal; 0 before kick_signal()
cdef sigset_t _signal_set


cdef void _nothing(int number) noexcept nogil:
    pass


def call(int fd, unsigned long request, argument=0) -> int:
    """Makes an ioctl without the GIL and returns its result.  OSError: the kernel refused it.

    argument: an int of 64 bits, or a writable buffer, whose address the kernel gets."""
    cdef Py_buffer buffer
    if PyLong_Check(argument) or not _is_writable(argument, &buffer):
        return _call(fd, request, argument)
    try:
        return _call(fd, request, <unsigned long>buffer.buf)
    finally:
        PyBuffer_Release(&buffer)


cdef bint _is_writable(object argument, Py_buffer *buffer) except -1:
    """Gets the buffer of an object.  False for an integer of numpy, which is a buffer too, but not writable."""
    try:
        PyObject_GetBuffer(argument, buffer, PyBUF_WRITABLE)
    except (TypeError, BufferError):
        if not hasattr(argument, "__index__"):
            raise
        return False
    return True


cdef int _call(int fd, unsigned long request, unsigned long word) except -1:
    cdef int result, number
    with nogil:
        result = c_ioctl(fd, request, word)
        number = errno
    if result < 0:
        raise OSError(number, "ioctl")
    return result


def run(int fd) -> int:
    """Makes the ioctl KVM_RUN without the GIL.  Returns 0 or the errno.  Call kick_signal() before."""
    cdef int result
    cdef sigset_t before
    with nogil:
        pthread_sigmask(SIG_UNBLOCK, &_signal_set, &before)  # S2
        result = errno if c_ioctl(fd, KVM_RUN, <unsigned long>0) < 0 else 0
        if sigismember(&before, _signal):
            pthread_sigmask(SIG_SETMASK, &before, NULL)
    return result


def kick_signal() -> int:
    """Returns the number of the signal that ends KVM_RUN.  The first call installs its handler (S1).

    It is the highest real-time signal that has no handler yet.  OSError: all have one."""
    global _signal
    cdef c_sigaction action, old
    cdef int number
    if _signal:
        return _signal
    for number in range(SIGRTMAX, SIGRTMIN - 1, -1):
        if sigaction(number, NULL, &old) == 0 and old.sa_handler == SIG_DFL:
            action.sa_handler = _nothing
            action.sa_flags = SA_RESTART
            sigemptyset(&action.sa_mask)
            if sigaction(number, &action, NULL) < 0:
                raise OSError(errno, "sigaction")
            sigemptyset(&_signal_set)
            sigaddset(&_signal_set, number)
            _signal = number
            return number
    raise OSError(0, "all real-time signals have a handler; a vCPU needs one of them")
