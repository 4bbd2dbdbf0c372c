# SPDX-License-Identifier: MIT
# Calls a Python Listener from the core's hooks, and turns the core's stall reports into warnings.  Exceptions of both
# reach the caller of the change.

# The VM's dict keeps the exceptions of hooks until the change ends, by the ident of the thread that runs it.  If there
# is no memory to keep one, a refusal still refuses the change: see _refusal().
cdef void _keep(dict raised, object error) noexcept:
    try:
        raised.setdefault(PyThread_get_thread_ident(), []).append(error)
    except MemoryError:
        pass


cdef void _keep_refusal(dict raised, object error) noexcept:
    """Puts the exception first in the list, since it is the reason why the change fails."""
    try:
        raised.setdefault(PyThread_get_thread_ident(), []).insert(0, error)
    except MemoryError:
        pass


@cython.final
cdef class _Hook:
    """One listener of one VM, with the C struct that the core knows it by."""
    cdef ms_listener c
    cdef object listener
    cdef dict raised  # VM._raised of its VM


cdef object _change(const ms_change *change):
    return Change(ChangeKind(<int>change.kind), _slot_or_none(&change.old_slot), _slot_or_none(&change.new_slot),
                  None if change.dirty is NULL else _copied_words(change.dirty, change.nr_dirty_words))


cdef cnp.ndarray _copied_words(const uint64_t *words, size_t n):
    cdef cnp.npy_intp shape = n
    cdef cnp.ndarray copy = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_UINT64, 0)
    memcpy(cnp.PyArray_DATA(copy), words, n * sizeof(uint64_t))
    return copy


cdef int _check_none(str name, _Hook hook, object result) except -1:
    """TypeError if a hook returned a value other than None.  From prepare, this refuses the change.

    The value may be meant as a refusal, such as KVM's -ENOMEM, or it is a coroutine that has not run."""
    if result is None:
        return 0
    if inspect.iscoroutine(result):
        result.close()  # otherwise Python warns that it was never awaited
    if name in ("prepare", "prepare_many"):
        way = "to refuse the change, raise an exception"
    else:
        way = "the change is not affected"
    raise TypeError(f"{name}() of {type(hook.listener).__name__} must return None, not {_value_or_type(result)}; {way}")


cdef str _value_or_type(object value):
    """A small int as a number, since it may be an errno.  The type of any other value."""
    if type(value) is int and -4096 < value < 4096:
        return f"{value}"
    return f"a value of type {type(value).__name__}"


cdef int _prepare(void *opaque, const ms_change *change) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    cdef int r = -ECANCELED
    try:
        _check_none("prepare", hook, hook.listener.prepare(_change(change)))
        r = 0
    except BaseException as error:  # no return in here: Cython's code crashes if there was no memory for a traceback
        _keep_refusal(hook.raised, error)
    return r


cdef int _prepare_many(void *opaque, const ms_change *changes, size_t n) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    cdef int r = -ECANCELED
    try:
        _check_none("prepare_many", hook, hook.listener.prepare_many(_change_list(changes, n)))
        r = 0
    except BaseException as error:
        _keep_refusal(hook.raised, error)
    return r


cdef list _change_list(const ms_change *changes, size_t n):
    cdef size_t i
    cdef list result = []
    for i in range(n):
        result.append(_change(&changes[i]))
    return result


cdef void _abort(void *opaque, const ms_change *change) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    try:
        _check_none("abort", hook, hook.listener.abort(_change(change)))
    except BaseException as error:
        _keep(hook.raised, error)


cdef void _flush(void *opaque, const ms_memslot *active, const ms_memslot *old) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    try:
        _check_none("flush", hook, hook.listener.flush(_slot(active), _slot(old)))
    except BaseException as error:
        _keep(hook.raised, error)


cdef void _commit(void *opaque, const ms_change *change) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    try:
        _check_none("commit", hook, hook.listener.commit(_change(change)))
    except BaseException as error:
        _keep(hook.raised, error)


cdef void _closed(void *opaque) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    try:
        _check_none("closed", hook, hook.listener.closed())
    except BaseException as error:
        _keep(hook.raised, error)


cdef void _set_hooks(_Hook hook, object listener, dict raised):
    """The core calls prepare_many and closed only if the listener has its own."""
    hook.listener = listener
    hook.raised = raised
    hook.c.size = sizeof(hook.c)
    hook.c.opaque = <void *>hook
    hook.c.prepare = _prepare
    hook.c.abort = _abort
    hook.c.flush = _flush
    hook.c.commit = _commit
    if has_own(listener, "prepare_many"):
        hook.c.prepare_many = _prepare_many
    if has_own(listener, "closed"):
        hook.c.closed = _closed


cdef void _stalled(void *opaque, const ms_stall *stall) noexcept with gil:
    """The core's ms_stall_fn; opaque is VM._raised.  A signal handler that raises must not suppress the warning."""
    cdef dict raised = <dict>opaque
    try:
        PyErr_CheckSignals()  # otherwise the handler of a pending signal would run inside warnings.warn()
    except BaseException as error:
        _keep(raised, error)
    if not _warned_or_kept(raised, stall, False):
        _warned_or_kept(raised, stall, True)


cdef bint _warned_or_kept(dict raised, const ms_stall *stall, bint again) noexcept:
    """Warns.  Returns False if the warning ended in a BaseException that is no Exception, such as KeyboardInterrupt:
    then the warning may not have been shown."""
    cdef bint done = True
    try:
        warnings.warn(reader_stall(stall.thread_id, stall.waited_ns, again), stacklevel=1)
    except Exception as error:
        _keep(raised, error)
    except BaseException as error:
        _keep(raised, error)
        done = False
    return done
