# SPDX-License-Identifier: MIT
# Times calls in C, so that the interpreter has no part in a measured time.

#: One change in an array for time_changes(): the layout of struct ms_userspace_memory_region.
REGION_DTYPE = np.dtype([
    ("slot", "u4"), ("as_id", "u4"), ("flags", "u4"), ("guest_memfd", "i4"), ("guest_phys_addr", "u8"),
    ("memory_size", "u8"), ("userspace_addr", "u8"), ("guest_memfd_offset", "u8"),
])


cdef cnp.ndarray _one_dimension(object values, str name):
    """A contiguous uint64 array of one dimension."""
    cdef cnp.ndarray array = _numbers(values, name)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not {array.ndim}")
    return np.ascontiguousarray(array).view(np.uint64)


cdef size_t _group(object value) except 0:
    cdef uint64_t group = _number(value, "group", 0x7FFFFFFF)
    if not group:
        raise ValueError("group must be at least 1")
    return group


def time_lookups(VM vm not None, what, numbers, lasts=None, group=1, as_id=0, VCPU vcpu=None):
    """Times n calls in C.  Returns (times, answers), two uint64 arrays.

    times: the nanoseconds of each group of calls, shape (ceil(n / group),).  answers: one per call, shape (n,).
    what: "gfn_to_hva" looks up gfns, through vcpu if it is given.  The answers are host addresses.
    "id_to_memslot" looks up ids.  The answers are userspace_addr, or 2**64 - 1 if there is no such slot.
    "hva_range" finds slots with a host byte in [numbers[i], lasts[i]].  The answers are the numbers of these slots.
    The function does not check the answers.
    """
    cdef uint32_t space = _as_id(vm, as_id)
    cdef cnp.ndarray first = _one_dimension(numbers, "numbers")
    cdef cnp.ndarray last = first if lasts is None else _one_dimension(lasts, "lasts")
    cdef size_t n = first.size, per = _group(group)
    cdef cnp.ndarray answers = np.zeros(n, dtype=np.uint64)
    cdef cnp.ndarray times = np.zeros((n + per - 1) // per, dtype=np.uint64)
    cdef const uint64_t *a = <const uint64_t *>cnp.PyArray_DATA(first)
    cdef const uint64_t *b = <const uint64_t *>cnp.PyArray_DATA(last)
    cdef uint64_t *out = <uint64_t *>cnp.PyArray_DATA(answers)
    cdef uint64_t *ns = <uint64_t *>cnp.PyArray_DATA(times)
    if <size_t>last.size != n:
        raise ValueError(f"lasts has {last.size} entries, but numbers has {n}")
    if vcpu is not None and vcpu.vm is not vm:
        raise ValueError("the vCPU belongs to another VM")
    if what == "gfn_to_hva" and vcpu is not None:
        with nogil:
            ms_time_vcpu_gfn_to_hva(vcpu._vcpu, a, n, per, out, ns)
    elif what == "gfn_to_hva":
        with nogil:
            ms_time_gfn_to_hva(vm._vm, space, a, n, per, out, ns)
    elif what == "id_to_memslot":
        with nogil:
            ms_time_id_to_memslot(vm._vm, space, a, n, per, out, ns)
    elif what == "hva_range":
        with nogil:
            ms_time_hva_range(vm._vm, space, a, b, n, per, out, ns)
    else:
        raise ValueError(f"what must be gfn_to_hva, id_to_memslot or hva_range, not {what!r}")
    return times, answers


def time_changes(VM vm not None, regions, group=1):
    """Times n calls of set_user_memory_region in C.  Returns (times, results).

    regions: an array of REGION_DTYPE, shape (n,).  times: uint64, the nanoseconds of each group of calls.
    results: int32 of shape (n,), 0 or a negative errno."""
    cdef cnp.ndarray rows
    cdef size_t n, per = _group(group)
    cdef cnp.ndarray results, times
    cdef const ms_userspace_memory_region *r
    cdef int32_t *out
    cdef uint64_t *ns
    _check_open(vm)
    _refuse_mask(regions, "regions")
    if not isinstance(regions, np.ndarray) or regions.dtype != REGION_DTYPE or regions.ndim != 1:
        raise TypeError("regions must be an array of REGION_DTYPE with one dimension")
    rows = np.array(regions, subok=False)  # a copy, which no other thread can change during the calls
    n = rows.size
    results = np.zeros(n, dtype=np.int32)
    times = np.zeros((n + per - 1) // per, dtype=np.uint64)
    r = <const ms_userspace_memory_region *>cnp.PyArray_DATA(rows)
    out = <int32_t *>cnp.PyArray_DATA(results)
    ns = <uint64_t *>cnp.PyArray_DATA(times)
    with nogil:
        ms_time_changes(vm._vm, r, n, per, out, ns)
    if _interrupts and PyThread_get_thread_ident() in _interrupts:
        raise _interrupt()
    _report_hooks(vm)
    return times, results


def time_nothing(n=1000):
    """Times nothing, n times: uint64 nanoseconds of shape (n,).  Each measured time includes such a time."""
    cdef cnp.ndarray times = np.zeros(_number(n, "n", 0x7FFFFFFF), dtype=np.uint64)
    cdef size_t size = cnp.PyArray_SIZE(times)
    cdef uint64_t *ns = <uint64_t *>cnp.PyArray_DATA(times)
    with nogil:
        ms_time_nothing(size, ns)
    return times


def time_chase(cnp.ndarray chain not None, steps=1000, start=0):
    """Follows chain from `start` for `steps` steps: place = chain[place].  Returns (ns of all steps, the last place).

    chain: a contiguous uint32 array of one dimension.  Its length is a power of two; an entry counts modulo it.
    Each load needs the result of the one before, so the time of a step is the latency of the memory of the chain.
    """
    cdef size_t size = chain.size, n = _number(steps, "steps", 0x7FFFFFFF)
    cdef uint64_t begin = _number(start, "start", 0xFFFFFFFFFFFFFFFF)
    cdef uint32_t place
    cdef const uint32_t *entries
    cdef uint64_t ns
    if chain.dtype != np.uint32 or chain.ndim != 1 or not chain.flags.c_contiguous:
        raise TypeError("chain must be a contiguous uint32 array of one dimension")
    if not size or size & (size - 1):
        raise ValueError(f"the length of chain must be a power of two, not {size}")
    entries = <const uint32_t *>cnp.PyArray_DATA(chain)
    place = <uint32_t>(begin & (size - 1))
    with nogil:
        ns = ms_time_chase(entries, size, n, &place)
    return ns, place


def design_costs():
    """How the cost of operations grows with the number of slots, as each design declares it.

    Returns {"tree": {"gfn": "log", "id": ..., "hva": ..., "change": ...}, ...}.
    "walk": in proportion to the number of slots, along pointers.  "scan": in proportion, through an array.
    "log": with the logarithm of the number, or not at all.
    """
    cdef int costs[4]
    cdef size_t i
    found = {}
    for i, name in enumerate(backends()):
        ms_design_costs(i, costs)
        found[name] = {
            kind: ("walk", "scan", "log")[cost] for kind, cost in zip(("gfn", "id", "hva", "change"), costs)
        }
    return found
