/* SPDX-License-Identifier: MIT */
/*
 * holds.h - keeps the host memory and the dirty logs of all slots that a call has seen, while it is in no read section.
 *
 *   a call                                           a change
 *   begins a section and translates addresses        publishes another state, and waits for the sections
 *   hold_begin(): notes the epoch in its record      holds_retire(): if a record has a hold, puts the old slot into a
 *   ends the section                                   list, with the epoch, and counts the epoch up.  If no record
 *   copies; nothing waits for it                       has one, drops the references of the old slot
 *   hold_end(): takes its note back, and drops the
 *     references that no other hold needs
 *
 * A hold costs the same for any number of slots.  A change never waits for a hold, and allocates nothing for it: a slot
 * that is retired is the node of the list.  The references of a slot that has no backing and no log need no hold: a
 * hold does not keep the slot itself, and it does not keep raw memory.
 *
 * Invariants
 *   E1  a retired slot has the epoch of its retirement.  Each holder that may use its references has a hold that is not
 *       greater;
 *   E2  a slot in `retired` has one reference to its backing, and the last pin of the slots of its dirty log, or NULL;
 *   E3  if no thread is inside holds_release() or a retirement, each slot in `retired` is one that some hold needs,
 *       unless a thread has ended in the middle of its call.  Then the next call under slots_lock drops the references;
 *   E4  a slot in `emptied` has no references, and is in no set.
 *
 * E1 holds because the hold begins inside the section that sees the slot.  The grace period of the change that removes
 * the slot waits for this section, so the writer sees the hold, and the epoch that the holder has loaded is not greater
 * than the one of the retirement.  A hold that begins later has another state.  If it has a smaller epoch, because it
 * loaded it just before, then it delays the drop of references that it does not need.  So holds that overlap delay no
 * drop for ever: only those count that were there at the retirement.
 *
 * Ordering (row "holds" of docs/locking.md): a holder stores 0 into its record, then loads `retired`.  A thread that
 * stores `retired` then loads the records.  All four are seq_cst, so one of the two sees the other.
 * Locking: hold_begin() inside a section, in the calling thread's own record.  holds_retire(), holds_tidy() and
 * holds_retire_set() under slots_lock, after the grace period.  Any thread calls hold_end(), outside of locks.
 * Cost: a hold is two stores and two loads.  A retirement without a hold is one load if no call has ever held anything
 * in this VM, and reads the records otherwise.
 */
#ifndef MS_HOLDS_H
#define MS_HOLDS_H

#include "memslot_set.h"
#include "srcu.h"

struct holds {
	cache_aligned _Atomic uint64_t epoch;  /* of the next retirement; 0: no call has held anything yet */
	_Atomic(struct memslot *) retired;     /* a list */
	_Atomic(struct memslot *) emptied;     /* a list */
	_Atomic uint64_t nr_kept;              /* the slots of holds_retire_set() that have references */
	struct srcu *srcu;
	struct memory *memory;
	const struct memslot_design *design;
};

void holds_init(struct holds *h, struct srcu *srcu, struct memory *memory, const struct memslot_design *design);

/* No call may be in progress.  Drops all references. */
void holds_deinit(struct holds *h);

/* ---- calls ---- */

struct hold {
	struct srcu_reader *reader; /* the record that has it, or NULL: there is none */
};

uint64_t holds_first(struct holds *h);

/* Inside a section, whose reader is not the shared one.  If the thread has a hold already, that one stays. */
static inline struct hold hold_begin(struct holds *h, struct srcu_reader *reader)
{
	uint64_t epoch = atomic_load_explicit(&h->epoch, memory_order_relaxed);

	if (unlikely(atomic_load_explicit(&reader->hold, memory_order_relaxed)))
		return (struct hold){ NULL };
	if (unlikely(!epoch))
		epoch = holds_first(h);
	atomic_store_explicit(&reader->hold, epoch, memory_order_relaxed);
	return (struct hold){ reader };
}

/* Drops the references that no hold needs. */
void holds_release(struct holds *h);

/* It may call a release function of the user. */
static inline void hold_end(struct holds *h, struct hold *hold)
{
	if (!hold->reader)
		return;
	atomic_store_explicit(&hold->reader->hold, 0, memory_order_seq_cst);
	hold->reader = NULL;
	point(READER_HOLD_OVER);
	if (unlikely(atomic_load_explicit(&h->retired, memory_order_seq_cst)))
		holds_release(h);
	thread_flush_tasks();
}

/* ---- changes ---- */

void holds_keep(struct holds *h, struct memslot *slot);

/* memslot_free() for a slot that a section may have seen.  The slot is in no set.  NULL: does nothing. */
static inline void holds_retire(struct holds *h, struct memslot *slot)
{
	if (unlikely(atomic_load_explicit(&h->epoch, memory_order_relaxed)) && slot)
		holds_keep(h, slot);
	else
		memslot_free(h->design, h->memory, slot);
}

/* Retires all slots of a set that is never used again, when the VM is closed.  Returns false if no hold needs them.
 * Otherwise the slots stay in the set, and the caller frees them when holds_have_kept() is false. */
bool holds_retire_set(struct holds *h, const struct memslot_set *set);

static inline bool holds_have_kept(const struct holds *h)
{
	return atomic_load_explicit(&h->nr_kept, memory_order_acquire);
}

void holds_tidy_up(struct holds *h);

/* At the begin of a call under slots_lock: frees the slots without references. */
static inline void holds_tidy(struct holds *h)
{
	if (unlikely(atomic_load_explicit(&h->epoch, memory_order_relaxed)))
		holds_tidy_up(h);
}

#endif
