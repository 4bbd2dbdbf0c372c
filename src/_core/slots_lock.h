/* SPDX-License-Identifier: MIT */
/*
 * slots_lock.h - the lock of a VM's writers: it knows its owner, a waiter can give up, and any thread may release it.
 *
 * An update object can be collected in any thread, and a collector may not wait.  So the lock can be left behind, held,
 * with a function that finishes what the owner began: the next thread that wants the lock calls it, and owns the lock.
 * The same happens if the owner's thread ends inside a hook or a stall report.
 *
 * Ordering (rows "slots_lock", "lock owner", "pending end" and "poll")
 *   taken by exchange, acquire; released by exchange, release; the function is stored with release, and taken over by
 *   exchange, acquire.
 * Locking: vm.h says who may take it, and inside of what.
 * Cost: one compare-exchange and one exchange without a waiter; a waiter sleeps for ten milliseconds at most, then it
 * looks again.
 */
#ifndef MS_SLOTS_LOCK_H
#define MS_SLOTS_LOCK_H

#include "include/memslots.h"
#include "thread.h"

struct slots_lock;
typedef void slots_lock_end_fn(struct slots_lock *lock);

struct slots_lock {
	_Atomic uint32_t state; /* 0 free, 1 held, 2 held and somebody may sleep */
	_Atomic uint64_t owner; /* thread_number(); only compared with one's own */
	_Atomic(slots_lock_end_fn *) pending_end; /* finishes an update that was dropped where nobody could wait */
	/* The owner's. */
	slots_lock_end_fn *finish; /* finishes the call under way if its thread ends in a hook */
	struct thread_hook hook;
	bool has_end; /* an update is open, which finishes itself when its thread ends */
};

/* Whether the calling thread holds it. */
static inline bool slots_lock_is_own(const struct slots_lock *lock)
{
	return atomic_load_explicit(&lock->owner, memory_order_relaxed) == thread_number();
}

/* Takes it if that needs no waiting. */
bool slots_lock_try(struct slots_lock *lock);

/* Takes it, or returns false when ms_set_poll()'s function ends the wait. */
bool slots_lock_wait(struct slots_lock *lock);

void slots_lock_release(struct slots_lock *lock);

/* Leaves the lock, held, to the next thread that wants it: that thread calls end, and then owns it. */
void slots_lock_defer_end(struct slots_lock *lock, slots_lock_end_fn *end);

/* Around the user's code, by the owner.  Its thread is watched (thread.h), and `finish` is set; or has_end is. */
void slots_lock_enter_hook(struct slots_lock *lock);
void slots_lock_leave_hook(struct slots_lock *lock);

/* Whether there was a pending end; then it has run, as the caller's, and the lock is the caller's now. */
bool slots_lock_run_pending_end(struct slots_lock *lock);

#endif
