/* SPDX-License-Identifier: MIT */
/*
 * guest_run.h - translates a range of guest addresses into runs of host memory, inside a read section.
 *
 * A run is the part of the range in one slot.  KVM translates each page; the pages of one slot in one state have the
 * same answer.
 *
 * Locking: none.  The caller is in a read section.
 * Cost: a lookup for the first run, one step in the set for each later one.
 */
#ifndef MS_GUEST_RUN_H
#define MS_GUEST_RUN_H

#include "search.h"

struct guest_run {
	const struct memslot *slot;
	uint64_t gpa;
	char *host;
	size_t bytes; /* not 0 */
};

/* Whether marks are lost: this process is a forked child. */
static inline bool guest_marks_are_lost(const struct ms_vm *vm)
{
	return unlikely(vm->forks != process_forks());
}

/* The rule that refuses an access of a slot with these flags, or 0.  `logged` is for a write. */
static inline enum ms_rule guest_rule(const struct ms_vm *vm, uint32_t flags, bool raw, bool logged, bool write)
{
	if (unlikely(flags & MS_MEMSLOT_INVALID))
		return MS_RULE_GUEST_HOLE;
	if (write && unlikely(flags & MS_MEM_READONLY))
		return MS_RULE_GUEST_READONLY;
	if (unlikely(raw && !vm->config.dereference_raw_addresses))
		return MS_RULE_GUEST_RAW;
	return write && logged && guest_marks_are_lost(vm) ? MS_RULE_FORKED : MS_RULE_NONE;
}

/* NULL is a hole. */
static inline enum ms_rule guest_rule_for(const struct ms_vm *vm, const struct memslot *slot, bool write)
{
	if (unlikely(!slot))
		return MS_RULE_GUEST_HOLE;
	return guest_rule(vm, slot->flags, !slot->backing, slot->dirty, write);
}

/* The bytes from gpa to the end of the slot that contains it, but at most n. */
static inline size_t guest_bytes_in(const struct memslot *slot, uint64_t gpa, size_t n)
{
	uint64_t rest = ((slot->base_gfn + slot->npages) << MS_PAGE_SHIFT) - gpa; /* modulo 2^64 */

	return rest && rest < n ? (size_t)rest : n;
}

/* The host address of a gpa in the slot. */
static inline char *guest_host(const struct memslot *slot, uint64_t gpa)
{
	return (char *)(uintptr_t)(slot->hva.start + (gpa - (slot->base_gfn << MS_PAGE_SHIFT)));
}

static inline const struct memslot *guest_find(const struct ms_vm *vm, const struct look *look, uint64_t gfn)
{
	enum srcu_count found = SRCU_MISS;
	const struct memslot *slot = look->set ? find_hinted(vm, look->set, look->section.reader, gfn, &found) : NULL;

	srcu_count(look->section.reader, found, 1);
	return slot;
}

/* The slot that begins where `slot` ends, or NULL. */
static inline const struct memslot *guest_next(const struct ms_vm *vm, const struct look *look,
					       const struct memslot *slot)
{
	const struct memslot *next = vm->design->next(look->set, slot);

	return next && next->base_gfn == slot->base_gfn + slot->npages ? next : NULL;
}

/* The run at gpa in `slot`, of at most n bytes, n > 0.  Returns the rule that refuses it, or 0.  run->slot is the slot
 * in both cases. */
static inline enum ms_rule guest_run_in(const struct ms_vm *vm, const struct memslot *slot, uint64_t gpa, size_t n,
					bool write, struct guest_run *run)
{
	enum ms_rule rule = guest_rule_for(vm, slot, write);

	*run = (struct guest_run){ .slot = slot, .gpa = gpa };
	if (likely(!rule)) {
		run->host = guest_host(slot, gpa);
		run->bytes = guest_bytes_in(slot, gpa, n);
	}
	return rule;
}

/* The first run of a range. */
static inline enum ms_rule guest_run_first(const struct ms_vm *vm, const struct look *look, uint64_t gpa, size_t n,
					   bool write, struct guest_run *run)
{
	return guest_run_in(vm, guest_find(vm, look, gpa >> MS_PAGE_SHIFT), gpa, n, write, run);
}

/* The run behind *run; n bytes are left. */
static inline enum ms_rule guest_run_next(const struct ms_vm *vm, const struct look *look, size_t n, bool write,
					  struct guest_run *run)
{
	return guest_run_in(vm, guest_next(vm, look, run->slot), run->gpa + run->bytes, n, write, run);
}

/* The bytes of a run of n bytes that may have changed after a write has completed `done` of them: a fault may leave a
 * part of its page changed. */
static inline size_t guest_touched(size_t done, size_t n)
{
	return done < n ? done + 1 : n;
}

/* Marks the pages of the first `done` bytes of the run, after these bytes were written. */
static inline void guest_mark(const struct guest_run *run, size_t done)
{
	uint64_t first = (run->gpa >> MS_PAGE_SHIFT) - run->slot->base_gfn;
	uint64_t n = (run->gpa % MS_PAGE_SIZE + done + MS_PAGE_SIZE - 1) >> MS_PAGE_SHIFT;

	point(READER_MARKS);
	if (run->slot->dirty && done)
		dirty_log_mark_range(run->slot->dirty, first, n);
}

static inline struct ms_memslot guest_value(const struct memslot *slot)
{
	return slot ? memslot_value(slot) : (struct ms_memslot){ 0 };
}

/* Fills *err, which may be NULL, and returns a negative errno.  `slot` is all 0 in a hole. */
int guest_refuse(struct ms_error *err, enum ms_rule rule, struct ms_memslot slot, uint64_t gpa, size_t done);

#endif
