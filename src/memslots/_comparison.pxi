# SPDX-License-Identifier: MIT
# Comparisons for layout/: the rows of a layout with the slots of a VM or with other rows.  Only slots that differ are
# copied.

cdef const ms_memslot *_row_data(cnp.ndarray rows) except NULL:
    """The rows of a contiguous array of MEMSLOT_DTYPE with one dimension."""
    if rows.ndim != 1 or rows.dtype != MEMSLOT_DTYPE or not cnp.PyArray_IS_C_CONTIGUOUS(rows) or not cnp.PyArray_ISALIGNED(rows):
        raise TypeError(f"rows must be a contiguous array of MEMSLOT_DTYPE with one dimension, not of {rows.dtype} with "
                        f"{rows.ndim}")
    return <const ms_memslot *>cnp.PyArray_DATA(rows)


@cython.final
cdef class _Comparison:
    """A comparison, and its arrays.  The caller keeps `wanted` and `backings` alive."""
    cdef ms_comparison c
    cdef cnp.ndarray ids

    def __cinit__(self, cnp.ndarray wanted not None, bint with_ids, _Backings backings):
        self.c.wanted, self.c.nr_wanted, self.c.with_ids = _row_data(wanted), len(wanted), with_ids
        if backings is not None and backings.items is not NULL:
            if backings.n != self.c.nr_wanted:
                raise ValueError(f"there are {backings.n} backings for {self.c.nr_wanted} rows")
            self.c.backings = backings.items
        self.ids = np.empty(len(wanted), dtype=np.uint32)
        self.c.ids = <uint32_t *>cnp.PyArray_DATA(self.ids)

    def __dealloc__(self):
        free(self.c.gone)
        free(self.c.gone_backings)

    cdef int reserve(self, size_t room) except -1:
        """Room for `room` slots that differ.  Memory that the comparison does not write costs nothing."""
        free(self.c.gone)
        free(self.c.gone_backings)
        self.c.gone = <ms_memslot *>malloc(max(room, 1) * sizeof(ms_memslot))
        self.c.gone_backings = <ms_backing **>malloc(max(room, 1) * sizeof(ms_backing *))
        if self.c.gone is NULL or self.c.gone_backings is NULL:
            raise _out_of_memory()
        self.c.room = room
        return 0

    cdef object gone(self):
        """The slots that differ."""
        cdef cnp.ndarray rows = np.empty(self.c.nr_gone, dtype=MEMSLOT_DTYPE)
        if self.c.nr_gone:
            memcpy(cnp.PyArray_DATA(rows), self.c.gone, self.c.nr_gone * sizeof(ms_memslot))
        return rows

    cdef object gone_numbers(self):
        """A number for each slot that differs, equal for equal backings; 0: none."""
        cdef cnp.ndarray numbers = np.empty(self.c.nr_gone, dtype=np.uint64)
        if self.c.nr_gone:
            memcpy(cnp.PyArray_DATA(numbers), self.c.gone_backings, self.c.nr_gone * sizeof(ms_backing *))
        return numbers


def compare_rows(rows, wanted, with_ids):
    """Compares two arrays of MEMSLOT_DTYPE by ascending base_gfn: (the rows that are not in `wanted`, ids).

    ids has for each row of `wanted` the id of the equal row, or NO_ID.  Rows are equal if base_gfn, npages,
    userspace_addr and flags are equal, and with `with_ids` the ids too.  Cost: O(n)."""
    cdef _Comparison comparison = _Comparison.__new__(_Comparison, wanted, with_ids, None)
    cdef const ms_memslot *first = _row_data(rows)
    cdef size_t n = len(rows)
    comparison.reserve(n)
    with nogil:
        ms_compare_rows(first, n, &comparison.c)
    return comparison.gone(), comparison.ids


cdef tuple _compare_state(VM vm, uint32_t as_id, object wanted, bint with_ids, _Backings backings):
    """The body of VM._compare()."""
    cdef _Comparison comparison = _Comparison.__new__(_Comparison, wanted, with_ids, backings)
    cdef size_t nr
    with ReadSection(vm):
        while True:
            with nogil:
                nr = ms_compare_memslots(vm._vm, as_id, &comparison.c)
            if nr <= comparison.c.room:
                break
            comparison.reserve(nr)
        generation = VM.generation(vm, as_id)
    return comparison.gone(), comparison.gone_numbers(), comparison.ids, generation


# ---- the look at a table ---------------------------------------------------------------------------------------------

cdef enum _Look:
    UNSORTED = 1  # a row begins before the row in front of it
    BROKEN = 2    # no VM could hold these rows, if they are sorted
    JOINS = 4     # two neighbours could be one slot


cdef inline bint _is_broken(const ms_memslot *row, uint32_t flags) noexcept nogil:
    """Whether a row breaks a rule for one row.  See _broken_rules()."""
    return (row.npages - 1 >= MS_MEM_MAX_NR_PAGES or row.base_gfn >= MS_GFN_END - row.npages
            or row.userspace_addr & 4095 != 0
            or row.userspace_addr > MS_HVA_ERR_MIN - 1 - (row.npages << 12) or row.flags & ~flags != 0)


cdef int _look_at(const ms_memslot *row, size_t n, uint32_t flags, uint32_t alone) noexcept nogil:
    cdef int found = 0
    cdef uint64_t base = 0, end = 0, hva_end = 0
    cdef uint32_t last_flags = alone
    cdef size_t i
    for i in range(n):
        if row.base_gfn < base:
            found |= UNSORTED
        if row.base_gfn < end or _is_broken(row, flags):
            found |= BROKEN
        if row.base_gfn == end and row.userspace_addr == hva_end and row.flags == last_flags and not last_flags & alone:
            found |= JOINS
        base, end, hva_end = row.base_gfn, row.base_gfn + row.npages, row.userspace_addr + (row.npages << 12)
        last_flags = row.flags
        row += 1
    return found


def look_at_rows(rows, flags, alone):
    """One look at each row of an array of MEMSLOT_DTYPE: a sum of UNSORTED = 1, BROKEN = 2 and JOINS = 4.

    flags: those that a row may have.  alone: rows with one of these flags are never joined.  Ids are not checked."""
    cdef const ms_memslot *first = _row_data(rows)
    cdef size_t n = len(rows)
    cdef uint32_t allowed = flags, apart = alone
    cdef int found
    with nogil:
        found = _look_at(first, n, allowed, apart)
    return found


def rows_of_runs(const uint64_t[:] gfn, const uint64_t[:] npages, const uint64_t[:] hva, const uint32_t[:] flags,
                 as_id):
    """An array of MEMSLOT_DTYPE with these columns of one length, and the ids 0, 1, 2, ..."""
    cdef size_t n = gfn.shape[0], i
    cdef uint32_t space = as_id
    cdef cnp.ndarray rows = np.empty(n, dtype=MEMSLOT_DTYPE)
    cdef ms_memslot *row = <ms_memslot *>cnp.PyArray_DATA(rows)
    if not n == <size_t>npages.shape[0] == <size_t>hva.shape[0] == <size_t>flags.shape[0]:
        raise ValueError("the columns have different lengths")
    with nogil:
        for i in range(n):
            memset(row, 0, sizeof(ms_memslot))  # its padding too
            row.base_gfn, row.npages, row.userspace_addr = gfn[i], npages[i], hva[i]
            row.id, row.as_id, row.flags = <uint32_t>i, space, flags[i]
            row += 1
    return rows


# ---- ids ---------------------------------------------------------------------------------------------------------------

def mark_ids(unsigned char[::1] table, const uint32_t[:] ids):
    """Sets the entries of a table at these ids.  Ids beyond the table have none."""
    cdef size_t i, n = ids.shape[0]
    cdef uint32_t end = min(table.shape[0], 2**32 - 1), id
    with nogil:
        for i in range(n):
            id = ids[i]  # read once: another thread may write the array
            if id < end:
                table[id] = 1
