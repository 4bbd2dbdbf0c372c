# SPDX-License-Identifier: MIT
# VM.pinned_by(): the objects that keep a buffer in use.
#
#   - Slots: those of the published state of each address space.  A slot of a Snapshot has the buffer of the VM that the
#     Snapshot comes from.  So the search goes through the slots, and not through the pins of this VM.
#   - Views and Snapshots: those of this VM, from its lists (_mapping.pxi, _snapshot.pxi).
#   - Others: the pins of this VM to which the core has a reference, and which are in none of these slots and Snapshots.
#
# So the answer is false only if no slot of this VM has the buffer, and nothing uses a buffer that this VM has pinned.
#
# The search is one read section, in which each slot keeps its backing.  A change waits for the section, and the buffer of
# a slot that it deletes is released when the change returns.
# Cost: O(n) for n slots, and O(n) for each Snapshot with n slots.


cdef object _pinned_by(VM vm, object buffer):
    cdef Py_buffer range
    cdef uint64_t start, end
    _config(vm)  # ClosedError for a VM that was never made.  A closed one still has views and snapshots.
    _drain_released()
    PyObject_GetBuffer(buffer, &range, PyBUF_SIMPLE)
    start, end = <uint64_t>range.buf, <uint64_t>range.buf + <uint64_t>range.len
    PyBuffer_Release(&range)
    if vm._closed:
        return _holders_of(vm, [], start, end)
    with ReadSection(vm):
        return _holders_of(vm, _states(vm), start, end)


cdef list _states(VM vm):
    """A Snapshot of each address space."""
    cdef uint32_t as_id
    return [_state(vm, as_id) for as_id in range(vm._address_spaces)]


cdef object _holders_of(VM vm, list states, uint64_t start, uint64_t end):
    cdef list slots = []
    cdef Py_ssize_t views, snapshots, others
    cdef uint64_t call = _new_serial()
    for state in states:
        slots += _slots_over(state, start, end)
    with cython.critical_section(_lists):  # runs no code of the user, so no other call comes in between
        for state in states:
            _name_pins(state, start, end, call)
        snapshots = _snapshots_over(vm, start, end, call)
        others = _others_over(vm, start, end, call)
        views = _views_over(vm, start, end)
    return PinnedBy(slots, views, snapshots, others)


cdef list _slots_over(Snapshot state, uint64_t start, uint64_t end):
    """The slots of a state whose buffer has a byte in [start, end)."""
    cdef const ms_memslot *rows = _values(state)
    cdef list slots = []
    cdef size_t i
    if state._pinned is not NULL:
        for i in range(state._nr_pinned):
            if _has_pin_over(state._pinned[i], start, end):
                slots.append(_slot(&rows[i]))
    return slots


# ---- lists: the caller has the lock --------------------------------------------------------------------------------
#
# A Snapshot, and a pin of the list of late ones, may be about to be freed: nothing here takes a reference to it.

cdef bint _is_over(const Py_buffer *buffer, uint64_t start, uint64_t end) noexcept:
    return <uint64_t>buffer.buf < end and start < <uint64_t>buffer.buf + <uint64_t>buffer.len


cdef void *_pin_of(ms_backing *backing) noexcept:
    return (<_Release *>ms_backing_opaque(backing)).pin


cdef bint _has_pin_over(ms_backing *backing, uint64_t start, uint64_t end) noexcept:
    return backing is not NULL and _is_over((<_Pin>_pin_of(backing)).buffer, start, end)


cdef bint _name_pins(Snapshot snapshot, uint64_t start, uint64_t end, uint64_t call) noexcept:
    """Notes the call in the pins with a byte in [start, end) that a snapshot holds.  Whether there are some."""
    cdef bint found = False
    cdef size_t i
    if snapshot._pinned is not NULL:
        for i in range(snapshot._nr_pinned):
            if _has_pin_over(snapshot._pinned[i], start, end):
                (<_Pin>_pin_of(snapshot._pinned[i])).named = call
                found = True
    return found


cdef Py_ssize_t _snapshots_over(VM vm, uint64_t start, uint64_t end, uint64_t call) noexcept:
    """The number of Snapshots of a VM that hold a buffer with a byte in [start, end).  Notes the call in their pins."""
    cdef Py_ssize_t found = 0
    cdef void *one = (<_Pin>vm._pins).snapshots
    while one is not NULL:
        found += _name_pins(<Snapshot>one, start, end, call)
        one = (<Snapshot>one)._after
    return found


cdef Py_ssize_t _others_over(VM vm, uint64_t start, uint64_t end, uint64_t call) noexcept:
    """The number of pins with a byte in [start, end) to which the core has a reference, and in which no note is."""
    cdef Py_ssize_t found = 0
    cdef _Pin pin = (<_Pin>vm._pins).next
    while pin is not None:
        found += pin.named != call and _is_over(pin.buffer, start, end)
        pin = pin.next
    return found


cdef Py_ssize_t _views_over(VM vm, uint64_t start, uint64_t end) noexcept:
    """The number of views with a byte in [start, end), also of slots that have ended."""
    cdef Py_ssize_t views = 0
    cdef _Pin pin = (<_Pin>vm._pins).next
    cdef void *late = (<_Pin>vm._pins).late_next
    while pin is not None:
        views += pin.views if _is_over(pin.buffer, start, end) else 0
        pin = pin.next
    while late is not NULL:
        views += (<_Pin>late).views if _is_over((<_Pin>late).buffer, start, end) else 0
        late = (<_Pin>late).late_next
    return views
