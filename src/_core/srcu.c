/* SPDX-License-Identifier: MIT */
/*
 * srcu.c - see srcu.h for the invariants S1 to S3 and the orderings A and B.
 */
#include "srcu.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

_Thread_local struct srcu_cache srcu_cache[SRCU_CACHED];

/* A writer yields this often before it sleeps.  That takes as long as a batch of 10,000 lookups by index.  The wake-up
 * of a writer that sleeps costs the reader of such a batch much of its time. */
#ifndef YIELDS /* a test defines its own */
#define YIELDS 64
#endif

/* The longest sleep.  A reader may load `waiting` just before the writer sets it, and then wakes nobody. */
#define NAP_US 1000

static _Atomic uint64_t last_domain; /* row "thread numbers" */

/* Protects the list of domains, and in each domain the owners of records. */
static pthread_mutex_t domains_lock = PTHREAD_MUTEX_INITIALIZER;
static struct srcu *domains;

static pthread_key_t thread_end; /* with has_thread_end under domains_lock; constant once it is created */
static bool has_thread_end;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int atfork_failed; /* written by `once` */

/* Ends the open sections of a record in which no thread counts any more. */
static void end_sections_of(struct srcu_reader *r)
{
	for (int bank = 0; bank < 2; bank++)
		atomic_store_explicit(&r->unlock[bank], atomic_load_explicit(&r->lock[bank], memory_order_relaxed),
				      memory_order_release); /* B */
}

/* The owner has ended and uses no slot any more, so its open sections end too (S3). */
static void take_back(struct srcu_reader *r)
{
	end_sections_of(r);
	r->depth = 0;
	atomic_store_explicit(&r->hold, 0, memory_order_release);
	atomic_store_explicit(&r->owner, SRCU_FREE, memory_order_relaxed);
}

static void take_back_all(void *number)
{
	uint64_t owner = (uint64_t)(uintptr_t)number;

	memset(srcu_cache, 0, sizeof(srcu_cache));
	pthread_mutex_lock(&domains_lock);
	for (struct srcu *s = domains; s; s = s->next_domain)
		for (struct srcu_reader *r = atomic_load(&s->readers); r; r = r->next)
			if (atomic_load_explicit(&r->owner, memory_order_relaxed) == owner)
				take_back(r);
	pthread_mutex_unlock(&domains_lock);
	thread_self.sections = 0;
}

static void before_fork(void)
{
	pthread_mutex_lock(&domains_lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&domains_lock);
}

/* The child process has only the thread that forked.  If that thread is inside a change, the change must not wait for
 * threads that do not exist here.  Nor need a reader wake a writer that does not exist.  The thread forked outside of
 * lookups, so no section in the shared record is its own. */
static void in_child(void)
{
	for (struct srcu *s = domains; s; s = s->next_domain) {
		atomic_store_explicit(&s->waiting, 0, memory_order_relaxed);
		end_sections_of(&s->shared);
		for (struct srcu_reader *r = atomic_load(&s->readers); r; r = r->next)
			if (r != &s->shared && atomic_load_explicit(&r->owner, memory_order_relaxed) != thread_number())
				take_back(r);
	}
	pthread_mutex_unlock(&domains_lock);
}

static void register_forks(void)
{
	atfork_failed = pthread_atfork(before_fork, after_fork, in_child);
}

static int prepare_process(void)
{
	int r;

	pthread_once(&once, register_forks);
	if (atfork_failed)
		return -atfork_failed;
	pthread_mutex_lock(&domains_lock);
	r = has_thread_end ? 0 : pthread_key_create(&thread_end, take_back_all);
	has_thread_end = !r;
	pthread_mutex_unlock(&domains_lock);
	return -r;
}

/* A writer reads os_id after it has read a count of the new owner, so it reads the os_id of the same owner (A). */
static void hand_out(struct srcu_reader *r, uint64_t owner, uint32_t os_id)
{
	atomic_store_explicit(&r->os_id, os_id, memory_order_relaxed);
	atomic_store_explicit(&r->owner, owner, memory_order_relaxed);
}

int srcu_init(struct srcu *s, struct memory *memory)
{
	int r = prepare_process();

	if (r)
		return r;
	memset(s, 0, sizeof(*s));
	s->number = atomic_fetch_add_explicit(&last_domain, 1, memory_order_relaxed) + 1;
	s->memory = memory;
	hand_out(&s->shared, SRCU_SHARED, 0);
	atomic_store_explicit(&s->readers, &s->shared, memory_order_release);

	pthread_mutex_lock(&domains_lock);
	s->next_domain = domains;
	if (domains)
		domains->previous_domain = s;
	domains = s;
	pthread_mutex_unlock(&domains_lock);
	return 0;
}

void srcu_deinit(struct srcu *s)
{
	struct srcu_reader *r = atomic_load(&s->readers), *next;

	pthread_mutex_lock(&domains_lock);
	if (s->next_domain)
		s->next_domain->previous_domain = s->previous_domain;
	if (s->previous_domain)
		s->previous_domain->next_domain = s->next_domain;
	else
		domains = s->next_domain;
	pthread_mutex_unlock(&domains_lock);

	for (; r; r = next) {
		next = r->next;
		if (r != &s->shared)
			memory_free_lines(s->memory, r, sizeof(*r));
	}
}

static bool is_owned_by(const struct srcu_reader *r, uint64_t owner)
{
	return r && atomic_load_explicit(&r->owner, memory_order_relaxed) == owner;
}

/* Searches all records that the calling thread can see. */
static struct srcu_reader *find_owned_by(const struct srcu *s, uint64_t owner)
{
	struct srcu_reader *r = atomic_load_explicit(&s->readers, memory_order_acquire);

	while (r && !is_owned_by(r, owner))
		r = r->next;
	return r;
}

void srcu_end_sections(struct srcu *s)
{
	struct srcu_reader *own = find_owned_by(s, thread_number());

	for (struct srcu_reader *r = atomic_load(&s->readers); r; r = r->next)
		end_sections_of(r);
	if (own) {
		thread_self.sections -= own->depth;
		own->depth = 0;
	}
}

static _Atomic(struct srcu_reader *) *recent_of(struct srcu *s, uint64_t owner)
{
	return &s->recent[owner % SRCU_RECENT];
}

/* Finds the record of the calling thread without the lock: no other thread writes this number into an owner, or removes
 * it.  The entry of `recent` is a hint: it may be any record of this domain.  A stale one costs a search. */
static struct srcu_reader *find_own_reader(struct srcu *s, uint64_t owner)
{
	struct srcu_reader *r = atomic_load_explicit(recent_of(s, owner), memory_order_acquire);

	if (likely(is_owned_by(r, owner)))
		return r;
	r = find_owned_by(s, owner);
	if (r)
		atomic_store_explicit(recent_of(s, owner), r, memory_order_release);
	return r;
}

/* Takes a record without owner, or returns NULL.  Under domains_lock. */
static struct srcu_reader *reuse_reader(struct srcu *s, uint64_t owner)
{
	struct srcu_reader *free_one = find_owned_by(s, SRCU_FREE);

	if (free_one)
		hand_out(free_one, owner, thread_os_id());
	return free_one;
}

/* The list only grows, at its head.  A writer that scans the list may miss the new record.  Then its thread has not
 * counted yet, and by A it will see what the writer has published.  Under domains_lock. */
static struct srcu_reader *add_reader(struct srcu *s, uint64_t owner)
{
	struct srcu_reader *r = memory_zalloc_lines(s->memory, sizeof(*r));

	if (!r)
		return NULL;
	hand_out(r, owner, thread_os_id());
	r->next = atomic_load(&s->readers);
	atomic_store_explicit(&s->readers, r, memory_order_seq_cst); /* A */
	return r;
}

/* The destructor, which takes the record back, must be registered before the thread owns a record.  If it cannot be,
 * the thread gets no record. */
static struct srcu_reader *obtain_reader(struct srcu *s, uint64_t owner)
{
	struct srcu_reader *r;

	if (pthread_setspecific(thread_end, (void *)(uintptr_t)owner))
		return NULL;
	pthread_mutex_lock(&domains_lock);
	r = reuse_reader(s, owner);
	if (!r)
		r = add_reader(s, owner);
	pthread_mutex_unlock(&domains_lock);
	return r;
}

struct srcu_reader *srcu_find_reader(struct srcu *s)
{
	uint64_t owner = thread_number();
	struct srcu_cache *entry = &srcu_cache[s->number % SRCU_CACHED];
	struct srcu_reader *r = find_own_reader(s, owner);

	if (!r)
		r = obtain_reader(s, owner);
	if (!r)
		return &s->shared; /* not cached: the next section tries to allocate again */
	entry->domain = s->number;
	entry->reader = r;
	return r;
}

/* One reader wakes the writer.  Until the writer runs again, the next sections end without a system call. */
void srcu_wake_writer(struct srcu *s)
{
	if (!atomic_exchange_explicit(&s->waiting, 0, memory_order_relaxed))
		return;
	atomic_fetch_add_explicit(&s->wakeups, 1, memory_order_relaxed);
	thread_wake_all(&s->wakeups);
}

static bool bank_is_empty(struct srcu_reader *r, uint32_t bank)
{
	uint64_t out = atomic_load_explicit(&r->unlock[bank], memory_order_acquire); /* B; by S2 before `lock` */

	point(WRITER_READS_COUNTS);
	return atomic_load_explicit(&r->lock[bank], memory_order_seq_cst) == out;    /* A */
}

/* The wait of one drain for all its readers.  Each of them had loaded `bank` before the drain began, so its section is
 * at least as old as the wait. */
struct wait {
	uint64_t since_ns; /* 0: the clock has not been read yet */
	bool waited;
};

/* The reports about one reader. */
struct stall_timer {
	uint64_t next_ns; /* the next report comes when the wait has lasted this long */
	uint32_t reports;
};

static void report_stall(struct srcu *s, const struct srcu_reader *r, uint64_t waited_ns, struct stall_timer *timer)
{
	if (!timer->reports++)
		atomic_fetch_add_explicit(&s->stalls, 1, memory_order_relaxed);
	while (timer->next_ns <= waited_ns)
		timer->next_ns *= 2;
	s->stall.report(s->stall.opaque, atomic_load_explicit(&r->os_id, memory_order_relaxed), waited_ns,
			timer->reports);
}

static void check_stall_timer(struct srcu *s, const struct srcu_reader *r, struct wait *wait, struct stall_timer *timer)
{
	uint64_t now = thread_clock_ns();

	if (!wait->since_ns)
		wait->since_ns = now;
	if (now - wait->since_ns >= timer->next_ns)
		report_stall(s, r, now - wait->since_ns, timer);
}

/* Stall reports run in here.  A report may open sections of this domain: it ends them before it returns, and only then
 * the counts are read again. */
static void sleep_for_reader(struct srcu *s, struct srcu_reader *r, uint32_t bank, struct wait *wait)
{
	struct stall_timer timer = { .next_ns = s->stall.after_ns };

	for (;;) {
		uint32_t wakeups = atomic_load_explicit(&s->wakeups, memory_order_relaxed);

		atomic_store_explicit(&s->waiting, 1, memory_order_seq_cst);
		if (bank_is_empty(r, bank))
			return;
		if (timer.next_ns)
			check_stall_timer(s, r, wait, &timer);
		point(WRITER_SLEEPS);
		thread_wait(&s->wakeups, wakeups, NAP_US);
	}
}

static void wait_for_reader(struct srcu *s, struct srcu_reader *r, uint32_t bank, struct wait *wait)
{
	wait->waited = true;
	for (int i = 0; i < YIELDS; i++) {
		sched_yield();
		if (bank_is_empty(r, bank))
			return;
	}
	sleep_for_reader(s, r, bank, wait);
	atomic_store_explicit(&s->waiting, 0, memory_order_relaxed);
}

/* Each record needs to be empty only once: a section that begins later sees what was published before.  Returns whether
 * it had to wait. */
static bool drain(struct srcu *s, uint32_t bank, const struct srcu_reader *own)
{
	struct wait wait = { 0 };

	for (struct srcu_reader *r = atomic_load_explicit(&s->readers, memory_order_seq_cst); r; r = r->next)
		if (r != own && !bank_is_empty(r, bank))
			wait_for_reader(s, r, bank, &wait);
	return wait.waited;
}

void synchronize_srcu_others(struct srcu *s, const struct srcu_reader *own)
{
	uint32_t bank = atomic_load_explicit(&s->bank, memory_order_relaxed);
	bool waited = drain(s, !bank, own);

	point(WRITER_FLIPS);
	atomic_store_explicit(&s->bank, !bank, memory_order_seq_cst);
	point(WRITER_FLIPPED);
	waited |= drain(s, bank, own);
	atomic_fetch_add_explicit(&s->periods, 1, memory_order_relaxed);
	if (waited)
		atomic_fetch_add_explicit(&s->waits, 1, memory_order_relaxed);
}

void synchronize_srcu(struct srcu *s)
{
	synchronize_srcu_others(s, NULL);
}

uint64_t srcu_oldest_hold(const struct srcu *s)
{
	uint64_t oldest = SRCU_NO_HOLD, hold;

	for (struct srcu_reader *r = atomic_load_explicit(&s->readers, memory_order_seq_cst); r; r = r->next) {
		hold = atomic_load_explicit(&r->hold, memory_order_seq_cst);
		if (hold && hold < oldest)
			oldest = hold;
	}
	return oldest;
}

uint64_t srcu_total(struct srcu *s, enum srcu_count which)
{
	uint64_t total = 0;

	for (struct srcu_reader *r = atomic_load_explicit(&s->readers, memory_order_seq_cst); r; r = r->next)
		total += atomic_load_explicit(&r->count[which], memory_order_relaxed);
	return total;
}
