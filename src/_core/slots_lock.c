/* SPDX-License-Identifier: MIT */
/*
 * slots_lock.c - see slots_lock.h.
 */
#include "slots_lock.h"

/* The longest sleep of a waiter.  It limits the delay after a missed wake-up or an interrupt. */
#define LOCK_SLEEP_US 10000

static _Atomic(ms_poll_fn *) poll_fn; /* row "poll" */

static bool lock_try(struct slots_lock *lock)
{
	uint32_t free_state = 0;

	return atomic_compare_exchange_strong_explicit(&lock->state, &free_state, 1, memory_order_acquire,
						       memory_order_relaxed);
}

static bool become_owner(struct slots_lock *lock)
{
	atomic_store_explicit(&lock->owner, thread_number(), memory_order_relaxed);
	return true;
}

bool slots_lock_run_pending_end(struct slots_lock *lock)
{
	slots_lock_end_fn *end = NULL;

	if (atomic_load_explicit(&lock->pending_end, memory_order_relaxed))
		end = atomic_exchange_explicit(&lock->pending_end, NULL, memory_order_acquire);
	if (!end)
		return false;
	become_owner(lock); /* `end` may report a stall: then this thread is inside its own call */
	lock->finish = end; /* if this thread ends in that report, the next thread runs it again */
	end(lock);
	return true;
}

bool slots_lock_try(struct slots_lock *lock)
{
	return (lock_try(lock) && become_owner(lock)) || slots_lock_run_pending_end(lock);
}

void ms_set_poll(ms_poll_fn *poll)
{
	atomic_store_explicit(&poll_fn, poll, memory_order_relaxed);
}

static bool wait_interrupted(void)
{
	ms_poll_fn *poll = atomic_load_explicit(&poll_fn, memory_order_relaxed);

	return poll && poll();
}

/* A waiter that gives up leaves state at 2.  This costs at most one wake-up call without a waiter. */
bool slots_lock_wait(struct slots_lock *lock)
{
	while (atomic_exchange_explicit(&lock->state, 2, memory_order_acquire)) {
		if (slots_lock_run_pending_end(lock))
			return true;
		if (thread_wait(&lock->state, 2, LOCK_SLEEP_US) && wait_interrupted())
			return false;
	}
	return become_owner(lock);
}

void slots_lock_release(struct slots_lock *lock)
{
	atomic_store_explicit(&lock->owner, 0, memory_order_relaxed);
	if (atomic_exchange_explicit(&lock->state, 0, memory_order_release) == 2)
		thread_wake_all(&lock->state);
}

void slots_lock_seize(struct slots_lock *lock)
{
	atomic_store_explicit(&lock->state, 1, memory_order_relaxed);
	become_owner(lock);
}

void slots_lock_defer_end(struct slots_lock *lock, slots_lock_end_fn *end)
{
	atomic_store_explicit(&lock->owner, 0, memory_order_relaxed);
	atomic_store_explicit(&lock->pending_end, end, memory_order_release);
	thread_wake_all(&lock->state);
}

static void thread_ended_in_hook(struct thread_hook *hook)
{
	struct slots_lock *lock = container_of(hook, struct slots_lock, hook);

	slots_lock_defer_end(lock, lock->finish);
}

void slots_lock_enter_hook(struct slots_lock *lock)
{
	thread_self.hooks++;
	if (!lock->has_end)
		thread_hook_enter(&lock->hook, thread_ended_in_hook);
}

void slots_lock_leave_hook(struct slots_lock *lock)
{
	if (!lock->has_end)
		thread_hook_leave(&lock->hook);
	thread_self.hooks--;
}
