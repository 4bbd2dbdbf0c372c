/* SPDX-License-Identifier: MIT */
/*
 * thread.h - who am I, and sleeping until a word changes.
 *
 * `self` is what the engine must know of the calling thread without looking it up: a number that is never used
 * again (a pthread_t is), how many read sections and hooks it is inside of, and what to do if it ends in a hook.  In a forked child the numbers go on,
 * but process_forks() differs from the one that a VM remembers.
 *
 * A wait is always bounded by its caller and may end early; the caller looks at its condition again.
 *
 * Locking: ends_lock (thread.c) for the list of what is to be done when threads end; a leaf, but for what that does.
 */
#ifndef MS_THREAD_H
#define MS_THREAD_H

#include <stdatomic.h>

#include "compiler.h"

struct thread_hook;

struct thread {
	uint64_t number;    /* from 1; 0: not yet asked */
	uint32_t sections;  /* read sections of all VMs, nested ones counted */
	uint32_t hooks;     /* hooks of all VMs */
	struct thread_hook *hook; /* the innermost one that a VM's change runs */
	bool watched;       /* the end of the thread runs what this file promises */
};

/* initial-exec: one instruction instead of a call in a shared object; it takes 32 bytes of the space that the
 * C library sets aside for modules loaded later. */
extern _Thread_local struct thread thread_self __attribute__((tls_model("initial-exec")));

uint64_t thread_new_number(void);

static inline uint64_t thread_number(void)
{
	if (unlikely(!thread_self.number))
		thread_self.number = thread_new_number();
	return thread_self.number;
}

/* The user's code, called under a lock.  If the thread ends in there, run(hook) comes, in that thread. */
struct thread_hook;
typedef void thread_hook_fn(struct thread_hook *hook);

struct thread_hook {
	struct thread_hook *outer;
	thread_hook_fn *run;
};

/* Prepares the calling thread for thread_hook_enter().  false: no memory. */
bool thread_watch(void);

/* Hooks nest.  After thread_watch(). */
static inline void thread_hook_enter(struct thread_hook *hook, thread_hook_fn *run)
{
	*hook = (struct thread_hook){ thread_self.hook, run };
	thread_self.hook = hook;
}

static inline void thread_hook_leave(const struct thread_hook *hook)
{
	thread_self.hook = hook->outer;
}

/* What is to be done when the thread that asked for it ends. */
struct thread_end;
typedef void thread_end_fn(struct thread_end *end);

struct thread_end {
	uint64_t owner; /* a thread_number(), for ever */
	thread_end_fn *run;
	struct thread_end *next, **link; /* under ends_lock; link NULL: in no list */
};

/* Prepares the process for all that follows here.  Before anything else; again after a failure.  -> 0, -EAGAIN: it has
 * no pthread key to spare, or -ENOMEM. */
int thread_prepare(void);

/* From here on run(end) comes when the calling thread ends, in that thread and under ends_lock -> false: no memory. */
bool thread_end_add(struct thread_end *end, thread_end_fn *run);

/* By any thread -> whether it was still to come.  If not, it is over: *end and what it led to may go. */
bool thread_end_remove(struct thread_end *end);

/* How often this process and its ancestors have forked since the library was loaded. */
uint64_t process_forks(void);

/* The calling thread as the system, a debugger and Python's native_id know it (gettid); 0 where there is none. */
uint32_t thread_os_id(void);

/* Nanoseconds of a clock that only runs forwards. */
uint64_t thread_clock_ns(void);

/* Sleeps while *word == value, for at most `us` microseconds -> whether it was for want of a wake-up that it ended:
 * the time was over, or a signal came. */
bool thread_wait(_Atomic uint32_t *word, uint32_t value, unsigned us);
void thread_wake_all(_Atomic uint32_t *word);

#endif
