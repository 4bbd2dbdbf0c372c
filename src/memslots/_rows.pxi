# SPDX-License-Identifier: MIT
# Tables of slots for load_memslots() and Snapshot(): structured arrays with the fields of MEMSLOT_DTYPE.

_NEEDED = ("base_gfn", "npages", "userspace_addr", "id")
_OPTIONAL = ("flags", "as_id")


cdef cnp.ndarray _table(object array, str call):
    """The argument as a plain structured array of one dimension, without a copy.  TypeError or ValueError otherwise."""
    cdef cnp.ndarray table
    if isinstance(array, np.ndarray):
        _refuse_mask(array, "array")
    if not isinstance(array, np.ndarray) or _plain(array).dtype.names is None:
        raise TypeError(f"{call} takes a structured array with the integer fields {', '.join(_NEEDED)} and optional "
                        f"{' and '.join(_OPTIONAL)} (as MEMSLOT_DTYPE), not {_kind_of(array)}{_way_to_table(array)}")
    table = _plain(array)
    if cnp.PyArray_NDIM(table) != 1:
        raise ValueError(f"{call} takes one dimension, not {cnp.PyArray_NDIM(table)}; use array.ravel()")
    return table


cdef str _kind_of(object array):
    return f"an array of {_plain(array).dtype}" if isinstance(array, np.ndarray) else type(array).__name__


cdef str _way_to_table(object array):
    if hasattr(type(array), "to_records"):
        return "; use array.to_records(index=False)"
    if isinstance(array, (list, tuple)):
        return f"; use np.array(array, dtype=MEMSLOT_DTYPE), where each row is a tuple {MEMSLOT_DTYPE.names}"
    if isinstance(array, np.void):
        return "; use np.array([array])"
    return ""


cdef object _column(cnp.ndarray table, str name, object default):
    """One field of a table, or the default.  OverflowError names the first value that does not fit MEMSLOT_DTYPE."""
    cdef object info = np.iinfo(MEMSLOT_DTYPE[name])
    if name not in table.dtype.names:
        if default is None:
            raise ValueError(f"the array has no field {name!r}: it needs {', '.join(_NEEDED)}, and has "
                             f"{', '.join(table.dtype.names)}")
        return default
    column = table[name]
    if column.dtype.kind not in "ui" or column.ndim != 1:
        raise TypeError(f"field {name!r} must be one integer per row, not {table.dtype[name]}")
    if column.size and (column.min() < 0 or column.max() > info.max):
        at = int(((column < 0) | (column > info.max)).argmax())
        raise OverflowError(f"entry {at}: field {name!r} must be 0 to {info.max:#x}, not {column[at]}")
    return column


cdef cnp.ndarray _rows_of(cnp.ndarray table, uint32_t as_id):
    """A copy of MEMSLOT_DTYPE.  If a stride of 0 repeats one row, two rows are copied: that is enough for the error of
    a duplicate id."""
    cdef object rows
    if cnp.PyArray_STRIDE(table, 0) == 0:
        table = table[:2]
    rows = np.zeros(len(table), dtype=MEMSLOT_DTYPE)
    for name in _NEEDED:
        rows[name] = _column(table, name, None)
    rows["flags"] = _column(table, "flags", 0)
    rows["as_id"] = _column(table, "as_id", as_id)
    other = rows["as_id"] != as_id
    if other.any():
        raise ValueError(f"entry {other.argmax()} has as_id {rows['as_id'][other][0]}, not {as_id}")
    return rows


cdef object _row_request(object rows, size_t at):
    """The arguments that set_user_memory_region() would have for a row."""
    row = {name: int(rows[at][name]) for name in rows.dtype.names}
    return Request(row["id"], row["as_id"], row["base_gfn"] << 12, row["npages"] << 12, row["userspace_addr"],
                   row["flags"])


cdef object _duplicate_id_error(object rows, size_t first, size_t second, object other, int number):
    id = int(rows[second]["id"])
    return from_errno(number, f"entry {second}: entries {first} and {second} both have id {id}", id, other,
                      "DUPLICATE_ID")


# ---- the rules for a table without a VM ----------------------------------------------------------------------------

cdef list _broken_rules(object rows):
    """A list of (rule, the rows that break it as a bool array, the limit for the message).

    Lists the rules that a single row can break, in the order in which a load checks them."""
    base, npages, hva = rows["base_gfn"], rows["npages"], rows["userspace_addr"]
    size = np.minimum(npages, MEM_MAX_NR_PAGES) << np.uint64(12)
    flags = int(MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY | MemFlag.GUEST_MEMFD | MemFlag.INVALID)
    return [
        ("GPA_WRAP", base >> np.uint64(52) != 0, 0),
        ("NPAGES", (npages == 0) | (npages > MEM_MAX_NR_PAGES), MEM_MAX_NR_PAGES),
        ("SLOT_ID", rows["id"] >= 2**31, 2**31),
        ("FLAGS", rows["flags"] & ~np.uint32(flags) != 0, flags),
        ("HVA_ALIGN", hva & np.uint64(4095) != 0, 0),
        ("HVA_RANGE", hva > np.uint64(HVA_ERR_MIN - 1) - size, HVA_ERR_MIN - 1),
        ("GPA_WRAP", base + (size >> np.uint64(12)) >= np.uint64(2**52), 0),
    ]


cdef bint _has_duplicate_id(object rows):
    return bool((np.diff(np.sort(rows["id"])) == 0).any())


cdef bint _has_overlap(object rows):
    """Whether two rows overlap.  If some do, then two neighbours in the order of base_gfn do."""
    order = np.argsort(rows["base_gfn"], kind="stable")
    base, npages = rows["base_gfn"][order], rows["npages"][order]
    return bool((np.diff(base) < npages[:len(base) - 1]).any()) if len(base) else False


cdef bint _has_conflict(object rows):
    return _has_duplicate_id(rows) or _has_overlap(rows)


cdef size_t _first_conflict(object rows):
    """The first row that conflicts with an earlier one.  The rows have a conflict.

    Bisects for the shortest prefix of the rows with a conflict: rows[:good] has none, rows[:bad] has one."""
    cdef size_t good = 0, bad = len(rows), middle
    while bad - good > 1:
        middle = (good + bad) // 2
        if _has_conflict(rows[:middle]):
            bad = middle
        else:
            good = middle
    return bad - 1


cdef object _conflict_error(object rows, size_t at):
    """The exception for the conflict of row `at` with an earlier one."""
    cdef const ms_memslot *values = <const ms_memslot *>cnp.PyArray_DATA(rows)
    earlier, row = rows[:at], rows[at]
    same_id = np.flatnonzero(earlier["id"] == row["id"])
    if same_id.size:
        return _duplicate_id_error(rows, same_id[0], at, _slot(&values[<size_t>same_id[0]]), errno.EEXIST)
    first = np.flatnonzero((earlier["base_gfn"] < row["base_gfn"] + row["npages"])
                           & (row["base_gfn"] < earlier["base_gfn"] + earlier["npages"]))[0]
    return refused(errno.EEXIST, "OVERLAP", 0, _slot(&values[<size_t>first]), _row_request(rows, at), f"entry {at}: ")


cdef cnp.ndarray _checked_rows(object array, uint32_t as_id):
    """The rows of a Snapshot, by ascending base_gfn.  Raises the exception of a load for the first bad row."""
    cdef object rows = _rows_of(_table(array, "Snapshot"), as_id)
    cdef list broken = [(int(which.argmax()), rule, limit) for rule, which, limit in _broken_rules(rows) if which.any()]
    cdef size_t good = min(broken)[0] if broken else len(rows)
    if _has_conflict(rows[:good]):
        raise _conflict_error(rows, _first_conflict(rows[:good]))
    for at, rule, limit in broken:
        if at == good:
            raise refused(errno.EINVAL, rule, limit, None, _row_request(rows, at), f"entry {at}: ")
    return rows[np.argsort(rows["base_gfn"])]
