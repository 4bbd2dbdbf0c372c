/* SPDX-License-Identifier: MIT */
/*
 * update.h - an update: the steps of one change, which the caller makes one by one.
 *
 * writer.c makes these steps in the one order that is right.  In an update the caller chooses the order, and may choose
 * a wrong one.  So each step (update_steps.c) checks that its slots are where they must be, and notes each replace
 * before it makes it.  The end (update.c) rolls back if the two sets would differ.  The roll-back needs the slots that
 * steps removed, so they are kept until the end.
 *
 * Invariants
 *   U1  undoing the edits of one set, the last one first, restores that set as it was at begin.  It does not depend on
 *       the edits of the other set.  An undone edit is marked, so that another thread can continue a roll-back;
 *   U2  every slot that is not in both sets now, or was not at begin, is in `touched`, once;
 *   U3  a caller may keep a pointer to an update whose thread has ended.  Then the free is deferred: the update stays
 *       until a caller gives it up or the VM is destroyed.  Each of its steps fails, because thread numbers are never
 *       used again;
 *   U4  a handle is a pointer from the caller, and may have any value.  No step reads through it before has_slot() has
 *       found it among the VM's slots, and U2 or the id hash has found it among the slots of this update.
 *
 * Locking: the thread that began the update holds slots_lock from begin to end.  ends_lock (thread.h) decides which one
 * ends an update: the end of its thread or another caller.
 * Cost: as writer.h for each step.  A roll-back is O(steps log n), with at most one swap, and allocates nothing.
 */
#ifndef MS_UPDATE_H
#define MS_UPDATE_H

#include <errno.h>

#include "list.h"
#include "vm.h"

struct edit {
	struct memslot *old, *new_slot;
	uint32_t node_idx; /* of the set, or EDIT_UNDONE */
};

#define EDIT_UNDONE 2u

struct touched {
	struct memslot *slot;
	bool was_member; /* at begin */
	bool was_seen;   /* by readers, at begin or after a swap */
};

struct slot_pair {
	struct memslot *old, *new_slot;
};

struct ms_update {
	struct deferred_free deferred;
	struct thread_end end; /* of the thread that began the update; only this thread makes steps */
	struct ms_vm *vm;
	uint32_t as_id;
	bool in_step;      /* a step of the owner calls a flush hook, or waits for readers and may report a stall */
	bool abandoned;    /* that hook or report has given the update up, or ms_update_end() is running */
	bool owner_ended;  /* the owner's thread has ended: the free is deferred (U3) */
	bool kept;         /* the end is accepted: there is no way back */
	struct list edits, touched;
	/* At the end: the changes, and the slots of each (update_changes.c). */
	struct ms_change *changes;
	struct slot_pair *pairs;
	size_t nr_changes, changes_room;
};

/* Membership bits of slots: the slot is in update->touched; its flush hooks have run after
 * readers saw it last. */
#define TOUCHED ((uint8_t)0x80)
#define FLUSHED ((uint8_t)0x40)

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

/* vm_swap().  Afterwards it copies the bits that readers marked in the former set to the related logs (D4 of
 * dirty_log.h), so that the next step, or the end, may remove either slot. */
void update_swap_sets(struct ms_update *u);

/* The end of an update that is kept, when both sets hold the same slots (update_changes.c).  prepare makes the list of
 * the changes and calls the prepare hooks; after an error the abort hooks have run.  commit calls the flush and the
 * commit hooks.  The update keeps the list until update_free_changes(). */
int update_prepare(struct ms_update *u, struct ms_error *err);
void update_commit(struct ms_update *u);
void update_free_changes(struct ms_update *u);

/* Makes room for the list, after `touched` has grown.  Returns false without memory. */
bool update_reserve_changes(struct ms_update *u);

/* Refuses a step or the end if u is NULL, in a forked child, by a thread that did not begin the update, inside a read
 * section, or inside a hook. */
int update_check_caller(const struct ms_update *u, struct ms_error *err);

/* Before and after each step that calls the user's code.  If the user's code abandons the update, the update ends when
 * the step is over, or when the thread ends inside it. */
static inline void update_step_begin(struct ms_update *u)
{
	u->in_step = true;
}

/* Returns false if the update was abandoned.  Then the caller must not use *u any more. */
bool update_step_end(struct ms_update *u);

#endif
