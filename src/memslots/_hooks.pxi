# SPDX-License-Identifier: MIT
# From the core's hooks to a Python Listener, from its stall reports to warnings, and what either raises back to the
# caller of the change.

# What hooks raised is kept in their VM's dict, by the thread that runs the change.  Where there is no memory to keep it,
# a refusal is still one: see _refusal().
cdef void _keep(dict raised, object error) noexcept:
    try:
        raised.setdefault(PyThread_get_thread_ident(), []).append(error)
    except MemoryError:
        pass


cdef void _keep_refusal(dict raised, object error) noexcept:
    """First in the list: it is the reason why the change fails."""
    try:
        raised.setdefault(PyThread_get_thread_ident(), []).insert(0, error)
    except MemoryError:
        pass


@cython.final
cdef class _Hook:
    """One listener of one VM, and the C struct that leads to it."""
    cdef ms_listener c
    cdef object listener
    cdef dict raised  # the VM's


cdef object _change(const ms_change *change):
    return Change(ChangeKind(<int>change.kind), _slot_or_none(&change.old_slot), _slot_or_none(&change.new_slot))


cdef int _check_none(str name, _Hook hook, object result) except -1:
    """A hook returns None.  Any other value may be meant as a refusal, as KVM's -ENOMEM, or is a coroutine that has not
    run: TypeError, which refuses the change where prepare returned it."""
    if result is None:
        return 0
    if inspect.iscoroutine(result):
        result.close()  # else Python warns that it was never awaited
    if name == "prepare":
        way = "to refuse the change, raise an exception"
    else:
        way = "the change is not affected"
    raise TypeError(f"{name}() of {type(hook.listener).__name__} must return None, not {_brief(result)}; {way}")


cdef str _brief(object value):
    """An int is shown, since it may be an errno; of anything else the type."""
    if type(value) is int and -4096 < value < 4096:
        return f"{value}"
    return f"a value of type {type(value).__name__}"


cdef int _prepare(void *opaque, const ms_change *change) noexcept with gil:
    cdef _Hook hook = <_Hook>opaque
    cdef int r = -ECANCELED
    try:
        _check_none("prepare", hook, hook.listener.prepare(_change(change)))
        r = 0
    except BaseException as error:  # no return in here: Cython's crashes where there was no memory for a traceback
        _keep_refusal(hook.raised, error)
    return r


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


cdef void _stalled(void *opaque, const ms_stall *stall) noexcept with gil:
    """opaque is the VM's dict of what hooks raised.  A signal handler that raises does not swallow the warning."""
    cdef dict raised = <dict>opaque
    try:
        PyErr_CheckSignals()  # what is pending would come up inside of what follows
    except BaseException as error:
        _keep(raised, error)
    if not _warned_or_kept(raised, stall, False):
        _warned_or_kept(raised, stall, True)


cdef bint _warned_or_kept(dict raised, const ms_stall *stall, bint again) noexcept:
    """False if it ended in what is no Exception, as Ctrl-C: then nobody may have heard of the reader."""
    cdef bint done = True
    try:
        warnings.warn(reader_stall(stall.thread_id, stall.waited_ns, again), stacklevel=1)
    except Exception as error:
        _keep(raised, error)
    except BaseException as error:
        _keep(raised, error)
        done = False
    return done
