# SPDX-License-Identifier: MIT
# Ctrl-C, or another exception of a signal handler, while a thread waits for slots_lock.

# By the ident of the thread: the exception that ended its wait.  It is kept here until the C call has returned.
cdef dict _interrupts = {}


cdef int _poll() noexcept with gil:
    """The function of ms_set_poll().  A thread that waits for slots_lock calls it every ten milliseconds, and after a
    signal.  1 ends the wait."""
    cdef int end = 1
    try:
        if not _is_finalizing():  # otherwise the owner of the lock may be a thread that never runs again
            PyErr_CheckSignals()
            end = 0
    except BaseException as error:  # no return in here: see _prepare()
        _interrupts[PyThread_get_thread_ident()] = error
    return end


cdef object _interrupt():
    """The exception that ended the wait.  A new one if the wait ended because the interpreter shuts down."""
    error = _interrupts.pop(PyThread_get_thread_ident(), None)
    return refused(errno.EINTR, "INTERRUPTED", 0, None, Request()) if error is None else error


ms_set_poll(_poll)
