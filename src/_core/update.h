/* SPDX-License-Identifier: MIT */
/*
 * update.h - an update: the steps of one change, made one by one by the caller.
 *
 * writer.c makes these steps in the one order that is right.  Here the caller orders them, and may be wrong: each
 * step (update_steps.c) checks that its slots are where they must be, and every replace is noted before it is made.
 * The end (update.c) takes back whatever would leave the two sets different.  Slots that a step removed are kept until
 * the end, because the roll-back needs them.
 *
 * Invariants
 *   U1  the log, read backwards for one set, leads that set back to where it was at begin: the two sets' entries do
 *       not depend on each other.  What is undone is marked, so that another thread can go on with a roll-back;
 *   U2  every slot that is not in both sets, or was not at begin, is in `touched`, once;
 *   U3  whoever may have a pointer to an update can ask it whose it is.  One whose thread has ended is a deferred
 *       free: it stays until it is given up or the VM is destroyed.  Thread numbers are not used again, so no step
 *       of it can succeed;
 *   U4  a handle is a pointer that a caller gives: any number at all.  No step reads through it before has_slot() has
 *       found it among the VM's slots, and U2 or the id hash among those of this update.
 *
 * Locking: slots_lock from begin to end, by the thread that began.  ends_lock (thread.h) decides who gives an update
 * up: the end of its thread or another caller.
 * Cost: as writer.h for each step; the roll-back O(steps log n), at most one swap, no memory.
 */
#ifndef MS_UPDATE_H
#define MS_UPDATE_H

#include <errno.h>

#include "vm.h"

struct edit {
	struct memslot *old, *new_slot;
	uint32_t node_idx; /* of the set, or EDIT_UNDONE */
};

#define EDIT_UNDONE 2u

struct touched {
	struct memslot *slot;
	bool was_member; /* at begin */
};

struct list {
	void *items;
	size_t nr, room;
};

struct ms_update {
	struct deferred_free deferred;
	struct thread_end end; /* with the thread that began, the only one that makes steps */
	struct ms_vm *vm;
	uint32_t as_id;
	bool in_step;      /* the owner's step is inside a flush hook, or waits for readers and may be reporting one */
	bool abandoned;    /* ... which has given the update up */
	bool owner_ended;  /* its thread has ended: the free is deferred (U3) */
	struct list edits, touched;
};

/* Membership bit of slots that are in update->touched. */
#define TOUCHED ((uint8_t)0x80)

static inline struct edit *edit_at(const struct ms_update *u, size_t i)
{
	return (struct edit *)u->edits.items + i;
}

static inline struct touched *touched_at(const struct ms_update *u, size_t i)
{
	return (struct touched *)u->touched.items + i;
}

static inline bool is_own(const struct ms_update *u)
{
	return u && u->end.owner == thread_number();
}

static inline struct memslot_set *inactive(const struct ms_update *u)
{
	return vm_inactive_set(u->vm, u->as_id);
}

/* vm_swap(), or its end.  Then the bits that readers marked in the set that they have left are passed on to the related
 * logs (D4 of dirty_log.h), so that the step that follows, or the end, may take either slot out. */
void update_swap_sets(struct ms_update *u);
void update_swap_sets_end(struct ms_update *u);

/* Refuses a step, or the end, without an update, by another thread than the owner, inside a read section or inside a
 * hook. */
int update_check_caller(const struct ms_update *u, struct ms_error *err);

/* Around each step that calls the user's code.  An abandon from there is carried out when the step is over, or when the
 * thread ends in there. */
static inline void update_step_begin(struct ms_update *u)
{
	u->in_step = true;
}

/* Whether the update is still the caller's. */
bool update_step_end(struct ms_update *u);

#endif
