/* SPDX-License-Identifier: MIT */
/*
 * slots_lock.h - the lock of a VM's writers.  It knows its owner, a waiter can give up, and any thread may release it.
 *
 * A garbage collector can collect an update object in any thread, and a collector must not wait.  So a thread can leave
 * the lock behind, held, with a function that completes the owner's work.  The next thread that wants the lock calls
 * this function, and then owns the lock.  The same happens if the owner's thread ends inside a hook or a stall report.
 *
 * Ordering (rows "slots_lock", "lock owner", "pending end" and "poll")
 *   an exchange with acquire takes the lock, an exchange with release releases it.  The function is stored with release
 *   and taken by an exchange with acquire.
 * Locking: vm.h says which threads may take the lock, and inside which other locks.
 * Cost: without a waiter one compare-exchange and one exchange.  A waiter sleeps for at most ten milliseconds, then it
 * looks again.
 */
#ifndef MS_SLOTS_LOCK_H
#define MS_SLOTS_LOCK_H

#include "include/memslots.h"
#include "thread.h"

struct slots_lock;
typedef void slots_lock_end_fn(struct slots_lock *lock);

struct slots_lock {
	_Atomic uint32_t state; /* 0: free; 1: held; 2: held, and a waiter may sleep */
	_Atomic uint64_t owner; /* a thread_number(), or 0; a thread only compares it with its own number */
	_Atomic(slots_lock_end_fn *) pending_end; /* completes the owner's work; NULL: the lock was not left behind */
	/* Only the owner uses these. */
	slots_lock_end_fn *finish; /* completes the present call if its thread ends in a hook or a stall report */
	struct thread_hook hook;
	bool has_end; /* an update is open: its thread_end (update.h) runs if the thread ends */
};

/* Whether the calling thread holds the lock. */
static inline bool slots_lock_is_own(const struct slots_lock *lock)
{
	return atomic_load_explicit(&lock->owner, memory_order_relaxed) == thread_number();
}

/* Takes the lock if this needs no wait. */
bool slots_lock_try(struct slots_lock *lock);

/* Waits for the lock and takes it.  Returns false if the function of ms_set_poll() ends the wait. */
bool slots_lock_wait(struct slots_lock *lock);

void slots_lock_release(struct slots_lock *lock);

/* Leaves the lock, held, to the next thread that wants it.  That thread calls end(), and then owns the lock. */
void slots_lock_defer_end(struct slots_lock *lock, slots_lock_end_fn *end);

/* The owner calls these before and after each call of the user's code.  Its thread is watched (thread.h) and `finish`
 * is set, or has_end is true. */
void slots_lock_enter_hook(struct slots_lock *lock);
void slots_lock_leave_hook(struct slots_lock *lock);

/* Makes the calling thread the owner, in place of any other.  At the end of a VM, when no other thread uses the lock.
 * */
void slots_lock_seize(struct slots_lock *lock);

/* Runs the pending end, if there is one, and returns whether there was.  If so, the caller owns the lock now. */
bool slots_lock_run_pending_end(struct slots_lock *lock);

#endif
