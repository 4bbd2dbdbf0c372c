/* SPDX-License-Identifier: MIT */
/*
 * backing.h - host memory that slots keep alive: a counted reference, and a function that releases the memory.
 *
 * A backing belongs to no VM.  Slots of several VMs, calls and callers may hold it.  The copies of a slot share it as
 * they share its dirty log (memslot_set.h): each copy that memslot_free() frees has one reference.
 *
 * The put of the last reference often runs under slots_lock, but the release function may call the VM.  So a put only
 * adds the release to the tasks of its thread (thread.h).  vm_unlock(), ms_read_unlock(), ms_backing_put(),
 * guest_pins_take(), guest_pins_put(), hold_end(), ms_vm_destroy() and ms_update_abandon() run the tasks when the
 * thread has left its locks, hooks and read sections.  So a long copy of guest memory may run a release function of the
 * user.  A slot is freed after the grace period, so no section that can find the slot is open then.
 *
 * Invariants
 *   B1  refs is the number of slots, calls and callers that hold the backing.  A retired slot (holds.h) counts too.
 *       release runs once, after refs is 0;
 *   B2  the pages of a slot lie inside its backing; a READONLY backing has only READONLY slots.
 *
 * Everything except refs and `seen` is constant.
 *
 * Ordering (row "backing references"): get is relaxed, by a holder of a reference or inside a section that finds the
 * slot.  put is acq_rel, so the thread that releases the memory comes after every use of it.
 * Locking: none.  check.c uses `seen` while `references_busy` is set.
 * Cost: O(1).
 */
#ifndef MS_BACKING_H
#define MS_BACKING_H

#include "include/memslots.h"
#include "memory.h"
#include "thread.h"

struct ms_backing {
	struct thread_task task; /* runs the release after the last put */
	_Atomic uint64_t refs;
	uint64_t start, size; /* in bytes */
	uint32_t flags;
	uint64_t seen; /* by check.c: the slots of one VM that hold it; 0 outside of a check */
	ms_release_fn *release;
	void *opaque;
};

/* The memory of all backings of the process: the place where a test makes the allocation of a backing fail. */
extern struct memory backing_memory;

/* Adds a reference.  backing may be NULL. */
static inline struct ms_backing *backing_get(struct ms_backing *backing)
{
	if (backing)
		atomic_fetch_add_explicit(&backing->refs, 1, memory_order_relaxed);
	return backing;
}

void backing_drop(struct ms_backing *backing);

/* Drops a reference.  The last put adds the release to the tasks of the thread.  backing may be NULL. */
static inline void backing_put(struct ms_backing *backing)
{
	if (unlikely(backing))
		backing_drop(backing);
}

/* Whether the bytes [start, start + size) lie inside the backing. */
static inline bool backing_has(const struct ms_backing *backing, uint64_t start, uint64_t size)
{
	uint64_t offset = start - backing->start;

	return offset <= backing->size && size <= backing->size - offset;
}

static inline uint64_t backing_end(const struct ms_backing *backing)
{
	return backing->start + backing->size;
}

static inline bool backing_is_readonly(const struct ms_backing *backing)
{
	return backing->flags & MS_BACKING_READONLY;
}

#endif
