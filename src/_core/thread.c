/* SPDX-License-Identifier: MIT */
/*
 * thread.c - see thread.h.
 */
#define _GNU_SOURCE
#include "thread.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "include/memslots.h"

#ifdef __linux__
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

_Thread_local struct thread thread_self;

static _Atomic uint64_t last_number; /* row "thread numbers": relaxed, only uniqueness counts */
static _Atomic uint64_t forks;       /* row "forks": written by the only thread of a new child */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int atfork_failed; /* written by `once` */

static pthread_mutex_t ends_lock = PTHREAD_MUTEX_INITIALIZER;
static struct thread_end *ends; /* of all threads; a short list, since each belongs to an open update */
static pthread_key_t ending; /* created under ends_lock; constant if has_ending */
static bool has_ending;

uint64_t thread_new_number(void)
{
	return atomic_fetch_add_explicit(&last_number, 1, memory_order_relaxed) + 1;
}

uint64_t ms_thread_number(void)
{
	return thread_number();
}

static void before_fork(void)
{
	pthread_mutex_lock(&ends_lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&ends_lock);
}

static void in_child(void)
{
	atomic_fetch_add_explicit(&forks, 1, memory_order_relaxed);
	pthread_mutex_unlock(&ends_lock);
}

static void unlink_end(struct thread_end *end)
{
	*end->link = end->next;
	if (end->next)
		end->next->link = end->link;
	end->link = NULL;
}

/* Innermost first.  Each function leaves its slots_lock, held, to the next thread that wants it. */
static void run_hooks(void)
{
	while (thread_self.hook) {
		struct thread_hook *hook = thread_self.hook;

		thread_self.hook = hook->outer;
		hook->run(hook);
	}
}

void thread_task_add(struct thread_task *task, thread_task_fn *run)
{
	*task = (struct thread_task){ thread_self.tasks, run };
	thread_self.tasks = task;
}

/* Whether the thread has an open update, and so holds a slots_lock between its calls. */
static bool has_end(void)
{
	struct thread_end *end;

	pthread_mutex_lock(&ends_lock);
	end = ends;
	while (end && end->owner != thread_number())
		end = end->next;
	pthread_mutex_unlock(&ends_lock);
	return end;
}

bool ms_thread_may_change(void)
{
	return !thread_self.sections && !thread_self.hooks && !has_end();
}

/* A task may call the library, which comes back here.  keeps_tasks limits the depth of the calls.  If the tasks must
 * wait, the thread may end before it flushes them again. */
void thread_run_tasks(void)
{
	if (thread_self.keeps_tasks)
		return;
	thread_self.keeps_tasks = true;
	while (thread_self.tasks && ms_thread_may_change()) {
		struct thread_task *task = thread_self.tasks;

		thread_self.tasks = task->next;
		task->run(task);
	}
	thread_self.keeps_tasks = false;
	if (thread_self.tasks)
		thread_watch();
}

/* The functions of ends run under ends_lock, where no task may begin.  After them the thread is inside no hook and no
 * update.  If it has left a read section open, the destructor of srcu.c ends it.  Then this one runs again, because
 * thread_run_tasks() has found tasks that must wait. */
static void run_ends(void *number)
{
	struct thread_end *next;

	thread_self.watched = false; /* if another destructor uses a VM later, this one must run again */
	thread_self.keeps_tasks = true;
	run_hooks();
	pthread_mutex_lock(&ends_lock);
	for (struct thread_end *end = ends; end; end = next) {
		next = end->next;
		if (end->owner != (uint64_t)(uintptr_t)number)
			continue;
		unlink_end(end);
		end->run(end);
	}
	pthread_mutex_unlock(&ends_lock);
	thread_self.hooks = 0;
	thread_self.keeps_tasks = false;
	thread_flush_tasks();
}

static void register_forks(void)
{
	atfork_failed = pthread_atfork(before_fork, after_fork, in_child);
}

int thread_prepare(void)
{
	int r;

	pthread_once(&once, register_forks);
	if (atfork_failed)
		return -atfork_failed;
	pthread_mutex_lock(&ends_lock);
	r = has_ending ? 0 : pthread_key_create(&ending, run_ends);
	has_ending = !r;
	pthread_mutex_unlock(&ends_lock);
	return -r;
}

uint64_t process_forks(void)
{
	return atomic_load_explicit(&forks, memory_order_relaxed);
}

bool thread_watch(void)
{
	if (unlikely(!thread_self.watched))
		thread_self.watched = !pthread_setspecific(ending, (void *)(uintptr_t)thread_number());
	return thread_self.watched;
}

bool thread_end_add(struct thread_end *end, thread_end_fn *run)
{
	end->owner = thread_number();
	end->run = run;
	if (!thread_watch())
		return false;
	pthread_mutex_lock(&ends_lock);
	end->next = ends;
	end->link = &ends;
	if (ends)
		ends->link = &end->next;
	ends = end;
	pthread_mutex_unlock(&ends_lock);
	return true;
}

bool thread_end_remove(struct thread_end *end)
{
	bool was_in;

	pthread_mutex_lock(&ends_lock);
	was_in = end->link;
	if (was_in)
		unlink_end(end);
	pthread_mutex_unlock(&ends_lock);
	return was_in;
}

uint64_t thread_clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#ifdef __linux__
uint32_t thread_os_id(void)
{
	return (uint32_t)syscall(SYS_gettid);
}

bool thread_wait(_Atomic uint32_t *word, uint32_t value, unsigned us)
{
	struct timespec limit = { .tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000 };

	return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &limit, NULL, 0) && errno != EAGAIN;
}

void thread_wake_all(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
#else
uint32_t thread_os_id(void)
{
	return 0;
}

/* Without a futex a waiter polls.  This is correct on every system, but slow. */
bool thread_wait(_Atomic uint32_t *word, uint32_t value, unsigned us)
{
	struct timespec sleep_time = { .tv_nsec = (long)(us < 50 ? us : 50) * 1000 };

	if (atomic_load_explicit(word, memory_order_relaxed) == value)
		nanosleep(&sleep_time, NULL);
	return atomic_load_explicit(word, memory_order_relaxed) == value;
}

void thread_wake_all(_Atomic uint32_t *word)
{
	(void)word;
}
#endif
