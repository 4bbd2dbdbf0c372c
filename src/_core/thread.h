/* SPDX-License-Identifier: MIT */
/*
 * thread.h - the identity of the calling thread, its tasks, functions that run when it ends, and waits for a word.
 *
 * `thread_self` has the data of the calling thread that the engine reads without a search: a number that is never used
 * again (a pthread_t can be), the number of read sections and hooks that the thread is inside of, and its innermost
 * hook.  In a forked child the numbers go on.  process_forks() shows a VM that it was copied into a child.
 *
 * The caller limits the time of each wait.  A wait may end early, so the caller tests its condition again.
 *
 * Locking: ends_lock (thread.c) protects the list of thread_end functions, and is held while they run.  It is a leaf:
 * these functions release slots_lock and take no lock.
 */
#ifndef MS_THREAD_H
#define MS_THREAD_H

#include <stdatomic.h>

#include "compiler.h"

struct thread_hook;
struct thread_task;

struct thread {
	uint64_t number;    /* from 1; 0: no number yet */
	uint32_t sections;  /* read sections of all VMs, nested ones counted */
	uint32_t hooks;     /* hooks of all VMs, stall reports included */
	struct thread_hook *hook; /* the innermost hook of a change; NULL: none */
	bool watched; /* the end of the thread runs its hooks' functions, its thread_end functions and its tasks */
	bool keeps_tasks; /* no task may begin: one is running, or the thread is ending */
	struct thread_task *tasks;
};

/* initial-exec: in a shared object an access is one instruction instead of a call.  The C library
 * reserves little space for such variables of modules that are loaded later.  This one uses 40 bytes of it, srcu_cache
 * (srcu.h) 64 bytes, and guest_guard (guest_fault.c) 8 bytes. */
extern _Thread_local struct thread thread_self __attribute__((tls_model("initial-exec")));

uint64_t thread_new_number(void);

static inline uint64_t thread_number(void)
{
	if (unlikely(!thread_self.number))
		thread_self.number = thread_new_number();
	return thread_self.number;
}

/* A call of the user's code under a lock.  If the thread ends inside it, the thread calls run(hook) at its end. */
typedef void thread_hook_fn(struct thread_hook *hook);

struct thread_hook {
	struct thread_hook *outer;
	thread_hook_fn *run;
};

/* Prepares the calling thread for thread_hook_enter().  Returns false without memory. */
bool thread_watch(void);

/* Hooks nest.  The thread is watched already. */
static inline void thread_hook_enter(struct thread_hook *hook, thread_hook_fn *run)
{
	*hook = (struct thread_hook){ thread_self.hook, run };
	thread_self.hook = hook;
}

static inline void thread_hook_leave(const struct thread_hook *hook)
{
	thread_self.hook = hook->outer;
}

/*
 * Work that must wait until the calling thread has left all read sections, hooks and updates, because it calls the
 * user's code.  Only the thread itself uses the list, so adding a task needs no memory and cannot fail.  Tasks run in
 * any order.  The end of the thread runs those that are left.  In a forked child the tasks of the thread that forked
 * are copies: each process runs its own.
 */
typedef void thread_task_fn(struct thread_task *task);

struct thread_task {
	struct thread_task *next;
	thread_task_fn *run;
};

/* The caller flushes the tasks after it has left its lock, section or hook. */
void thread_task_add(struct thread_task *task, thread_task_fn *run);

/* Runs the tasks, unless the thread is inside a read section, a hook or an update, or is running a task. */
void thread_run_tasks(void);

static inline void thread_flush_tasks(void)
{
	if (unlikely(thread_self.tasks))
		thread_run_tasks();
}

/* A function that runs when its thread ends. */
struct thread_end;
typedef void thread_end_fn(struct thread_end *end);

struct thread_end {
	uint64_t owner; /* its thread_number(); stays after the removal */
	thread_end_fn *run;
	struct thread_end *next, **link; /* under ends_lock; link NULL: in no list */
};

/* Prepares the process for the functions of this file.  The first call here; call it again after a failure.  Returns 0,
 * -EAGAIN if the process has no pthread key left, or -ENOMEM. */
int thread_prepare(void);

/* From now on the calling thread calls run(end) when it ends, under ends_lock.  Returns false without memory. */
bool thread_end_add(struct thread_end *end, thread_end_fn *run);

/* Any thread may call it.  Returns true if run(end) will not be called any more.  Returns false if run(end) was called,
 * or `end` was removed, before.  In both cases run(end) does not use *end later, so the caller may free it. */
bool thread_end_remove(struct thread_end *end);

/* The number of forks, since the library was loaded, between the process that loaded it and this one. */
uint64_t process_forks(void);

/* The number of the calling thread for the system, debuggers and Python's native_id (gettid); 0: there is none. */
uint32_t thread_os_id(void);

/* Nanoseconds of a monotonic clock. */
uint64_t thread_clock_ns(void);

/* Sleeps while *word == value, for at most `us` microseconds.  Returns true if the sleep ended without a wake-up: by
 * the time limit or a signal. */
bool thread_wait(_Atomic uint32_t *word, uint32_t value, unsigned us);
void thread_wake_all(_Atomic uint32_t *word);

#endif
