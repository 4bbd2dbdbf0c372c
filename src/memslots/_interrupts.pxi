# SPDX-License-Identifier: MIT
# Ctrl-C, or what else a signal handler raises, while a thread waits for slots_lock.

# By thread: the exception, on its way past the C call that is given up for it.
cdef dict _interrupts = {}


cdef int _poll() noexcept with gil:
    """The core's ms_set_poll(): a waiter asks every ten milliseconds, and when a signal came."""
    cdef int away = 1
    try:
        if not _is_finalizing():  # else the lock's owner may be a thread that never runs again
            PyErr_CheckSignals()
            away = 0
    except BaseException as error:  # no return in here: see _prepare()
        _interrupts[PyThread_get_thread_ident()] = error
    return away


cdef object _interrupt():
    """What ended the wait; nothing is kept where it was the end of the interpreter."""
    error = _interrupts.pop(PyThread_get_thread_ident(), None)
    return refused(errno.EINTR, "INTERRUPTED", 0, None, Request()) if error is None else error


ms_set_poll(_poll)
