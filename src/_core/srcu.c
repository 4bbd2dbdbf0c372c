/* SPDX-License-Identifier: MIT */
#include "srcu.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

_Thread_local struct srcu_cache srcu_cache[SRCU_CACHED];

/* Yields before a writer goes to sleep: most sections are shorter than falling asleep is. */
#ifndef YIELDS /* a test has its own */
#define YIELDS 8
#endif

/* A sleep ends by itself after so long: a reader may look at `waiting` just before it is set. */
#define NAP_US 1000

static _Atomic uint64_t last_domain; /* row "thread numbers" */

/* Protects the list of domains, and each domain's hand-out and take-back of records. */
static pthread_mutex_t domains_lock = PTHREAD_MUTEX_INITIALIZER;
static struct srcu *domains;

static pthread_key_t thread_end;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Of a record in which nobody counts any more: what is open there is over. */
static void complete(struct srcu_reader *r)
{
	for (int bank = 0; bank < 2; bank++)
		atomic_store_explicit(&r->unlock[bank], atomic_load_explicit(&r->lock[bank], memory_order_relaxed),
				      memory_order_release); /* B */
}

/* A thread that dies inside a section has seen its last slot: its count is completed (S3), the record is free. */
static void take_back(struct srcu_reader *r)
{
	complete(r);
	r->depth = 0;
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
}

static void before_fork(void)
{
	pthread_mutex_lock(&domains_lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&domains_lock);
}

/* Only the thread that forked is in the child: a change that it is in the middle of must not wait for the others, and
 * no reader need wake a writer that is not there.  It forked outside of lookups, so no section of the shared record is
 * its own. */
static void in_child(void)
{
	for (struct srcu *s = domains; s; s = s->next_domain) {
		atomic_store_explicit(&s->waiting, 0, memory_order_relaxed);
		complete(&s->shared);
		for (struct srcu_reader *r = atomic_load(&s->readers); r; r = r->next)
			if (r != &s->shared && atomic_load_explicit(&r->owner, memory_order_relaxed) != thread_number())
				take_back(r);
	}
	pthread_mutex_unlock(&domains_lock);
}

static void prepare_process(void)
{
	pthread_key_create(&thread_end, take_back_all);
	pthread_atfork(before_fork, after_fork, in_child);
}

/* The name goes with the record; a writer reads it after a count of the new owner, which orders it. */
static void hand_out(struct srcu_reader *r, uint64_t owner, uint32_t os_id)
{
	atomic_store_explicit(&r->os_id, os_id, memory_order_relaxed);
	atomic_store_explicit(&r->owner, owner, memory_order_relaxed);
}

static void init_reader(struct srcu_reader *r, struct srcu *s, uint64_t owner, uint32_t os_id)
{
	r->domain = s;
	hand_out(r, owner, os_id);
}

void srcu_init(struct srcu *s, struct memory *memory)
{
	pthread_once(&once, prepare_process);
	memset(s, 0, sizeof(*s));
	s->number = atomic_fetch_add_explicit(&last_domain, 1, memory_order_relaxed) + 1;
	s->memory = memory;
	init_reader(&s->shared, s, SRCU_SHARED, 0);
	atomic_store_explicit(&s->readers, &s->shared, memory_order_release);

	pthread_mutex_lock(&domains_lock);
	s->next_domain = domains;
	if (domains)
		domains->previous_domain = s;
	domains = s;
	pthread_mutex_unlock(&domains_lock);
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

void srcu_end_sections(struct srcu *s)
{
	for (struct srcu_reader *r = atomic_load(&s->readers); r; r = r->next)
		complete(r);
}

static bool is_owned_by(const struct srcu_reader *r, uint64_t owner)
{
	return r && atomic_load_explicit(&r->owner, memory_order_relaxed) == owner;
}

/* The record whose owner is the given one, of those that the calling thread can see. */
static struct srcu_reader *find_owned_by(const struct srcu *s, uint64_t owner)
{
	struct srcu_reader *r = atomic_load_explicit(&s->readers, memory_order_acquire);

	while (r && !is_owned_by(r, owner))
		r = r->next;
	return r;
}

static _Atomic(struct srcu_reader *) *met_by(struct srcu *s, uint64_t owner)
{
	return &s->met[owner % SRCU_MET];
}

/* The calling thread's record, without the lock: it alone writes its number into an owner, and takes it out.  What was
 * met last is a hint, any record of this domain; with a stale one all of them are looked at. */
static struct srcu_reader *find_own_reader(struct srcu *s, uint64_t owner)
{
	struct srcu_reader *r = atomic_load_explicit(met_by(s, owner), memory_order_acquire);

	if (likely(is_owned_by(r, owner)))
		return r;
	r = find_owned_by(s, owner);
	if (r)
		atomic_store_explicit(met_by(s, owner), r, memory_order_release);
	return r;
}

/* A free record; under domains_lock. */
static struct srcu_reader *reuse_reader(struct srcu *s, uint64_t owner)
{
	struct srcu_reader *free_one = find_owned_by(s, SRCU_FREE);

	if (free_one)
		hand_out(free_one, owner, thread_os_id());
	return free_one;
}

/* The list only grows, at its head; a writer that scans it may miss a record whose thread has counted nothing yet
 * and that will, by A, see what the writer published. */
static struct srcu_reader *add_reader(struct srcu *s, uint64_t owner)
{
	struct srcu_reader *r = memory_zalloc_lines(s->memory, sizeof(*r));

	if (!r)
		return NULL;
	init_reader(r, s, owner, thread_os_id());
	r->next = atomic_load(&s->readers);
	atomic_store_explicit(&s->readers, r, memory_order_seq_cst); /* A */
	return r;
}

/* The destructor that takes the record back is asked for before there is one. */
static struct srcu_reader *obtain_reader(struct srcu *s, uint64_t owner)
{
	struct srcu_reader *r;

	pthread_setspecific(thread_end, (void *)(uintptr_t)owner);
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
		return &s->shared; /* not cached: the next section asks for memory again */
	entry->domain = s->number;
	entry->reader = r;
	return r;
}

void srcu_wake_writer(struct srcu *s)
{
	atomic_fetch_add_explicit(&s->left, 1, memory_order_relaxed);
	thread_wake_all(&s->left);
}

static bool reader_is_dry(struct srcu_reader *r, uint32_t bank)
{
	uint64_t out = atomic_load_explicit(&r->unlock[bank], memory_order_acquire); /* B, and S2: first */

	point(WRITER_READS_COUNTS);
	return atomic_load_explicit(&r->lock[bank], memory_order_seq_cst) == out;    /* A */
}

/* A drain's: whoever it still waits for was inside when it began, or before. */
struct wait {
	uint64_t since_ns; /* 0: has waited for nobody */
	bool waited;
};

/* One reader's. */
struct patience {
	uint64_t until_ns; /* of the wait, not of the clock */
	uint32_t reports;
};

static void report_stall(struct srcu *s, const struct srcu_reader *r, uint64_t waited_ns, struct patience *patience)
{
	if (!patience->reports++)
		atomic_fetch_add_explicit(&s->stalls, 1, memory_order_relaxed);
	while (patience->until_ns <= waited_ns)
		patience->until_ns *= 2;
	s->stall.report(s->stall.opaque, atomic_load_explicit(&r->os_id, memory_order_relaxed), waited_ns,
			patience->reports);
}

static void look_at_clock(struct srcu *s, const struct srcu_reader *r, struct wait *wait, struct patience *patience)
{
	uint64_t now = thread_clock_ns();

	if (!wait->since_ns)
		wait->since_ns = now;
	if (now - wait->since_ns >= patience->until_ns)
		report_stall(s, r, now - wait->since_ns, patience);
}

/* A report comes from in here: it may read in this domain, for it has left again before the next look. */
static void sleep_for_reader(struct srcu *s, struct srcu_reader *r, uint32_t bank, struct wait *wait)
{
	struct patience patience = { .until_ns = s->stall.after_ns };

	for (;;) {
		uint32_t left = atomic_load_explicit(&s->left, memory_order_relaxed);

		if (reader_is_dry(r, bank))
			return;
		if (patience.until_ns)
			look_at_clock(s, r, wait, &patience);
		point(WRITER_SLEEPS);
		thread_wait(&s->left, left, NAP_US);
	}
}

static void wait_for_reader(struct srcu *s, struct srcu_reader *r, uint32_t bank, struct wait *wait)
{
	wait->waited = true;
	for (int i = 0; i < YIELDS; i++) {
		sched_yield();
		if (reader_is_dry(r, bank))
			return;
	}
	atomic_store_explicit(&s->waiting, 1, memory_order_seq_cst);
	sleep_for_reader(s, r, bank, wait);
	atomic_store_explicit(&s->waiting, 0, memory_order_relaxed);
}

/* Each record only needs to be dry once: who enters it later sees what was published before. */
static bool drain(struct srcu *s, uint32_t bank, const struct srcu_reader *own)
{
	struct wait wait = { 0 };

	for (struct srcu_reader *r = atomic_load_explicit(&s->readers, memory_order_seq_cst); r; r = r->next)
		if (r != own && !reader_is_dry(r, bank))
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

uint64_t srcu_total(struct srcu *s, enum srcu_count which)
{
	uint64_t total = 0;

	for (struct srcu_reader *r = atomic_load_explicit(&s->readers, memory_order_seq_cst); r; r = r->next)
		total += atomic_load_explicit(&r->count[which], memory_order_relaxed);
	return total;
}
