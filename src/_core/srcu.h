/* SPDX-License-Identifier: MIT */
/*
 * srcu.h - read sections without locks, and grace periods in which a writer waits for them (sleepable RCU).
 *
 *   reader:  section = srcu_read_lock(s);  ... read ...  srcu_read_unlock(s, section);
 *   writer:  make the old object unreachable;  synchronize_srcu(s);  free the object.
 *
 * synchronize_srcu() waits until every section has ended that may have seen the old object.  It does not wait for
 * sections that start later, so a steady stream of readers cannot delay a writer for ever.
 *
 * A domain is one `struct srcu`.  In each domain each reading thread has a record with two banks of counters.  New
 * sections count in the bank that `bank` names.  Threads that get no record, for lack of memory, share one.
 *
 * Invariants
 *   S1  a section is counted out of the bank into which it was counted; nested sections may end in any order;
 *   S2  a bank of a record is empty if its unlock count, read first, equals its lock count, read afterwards;
 *   S3  only its owner counts in a record, except in the shared one; both banks of a record without owner are empty,
 *       and it has no hold.
 *
 * Ordering (rows of docs/locking.md)
 *   A  a reader counts itself in, then loads the protected pointer; a writer publishes, then reads the counts: four
 *      seq_cst operations;
 *   B  a reader counts itself out with release; a writer reads that count with acquire.
 * One drain and one flip of the banks are not enough.  A reader may load `bank` before a flip and count itself in after
 * the drain that follows the flip.  Then it is in the bank that new readers should not use.  So each grace period
 * drains that bank, flips, and drains the other bank.
 *
 * The writer reports a reader that it has waited for longer than stall.after_ns, by the os_id in the record, and again
 * each time the wait has doubled.  The report contains the time that the writer has waited.  The section is at least
 * that old; its exact age is unknown, because readers do not read a clock.
 *
 * Locking: one synchronize_srcu() at a time in each domain.  Sections nest.  Inside a section a thread must not wait
 * for its own domain, neither directly nor by waiting for a lock whose holder does.  slots_lock is such a lock.
 * Cost: the outermost lock is one seq_cst add, its unlock one store, both on cache lines of the thread's own record.
 * A thread finds its record by one compare in its cache, or by one in the table of the domain, or by a scan.  It takes
 * a lock only to get a new record.
 */
#ifndef MS_SRCU_H
#define MS_SRCU_H

#include "memory.h"
#include "points.h"
#include "thread.h"

/* How lookups were answered.  Each thread counts in its record, on a line that it writes anyway. */
enum srcu_count { SRCU_HIT_LAST_USED, SRCU_HIT_SEARCH, SRCU_INDEXED, SRCU_MISS, SRCU_VCPU_BYPASS, SRCU_NR_COUNTS };

struct srcu_reader {
	/* A writer reads this line. */
	cache_aligned _Atomic uint64_t lock[2];
	_Atomic uint64_t unlock[2];
	struct srcu_reader *next;     /* immutable once published */
	_Atomic uint64_t hold;        /* of the owner, see holds.h; 0: none */
	_Atomic uint64_t owner;       /* a thread_number(), SRCU_FREE or SRCU_SHARED */
	_Atomic uint32_t os_id;       /* the owner's thread_os_id(); 0 in the shared record */

	/* Only the owner uses these; all users of the shared record use the atomic ones. */
	cache_aligned uint32_t depth; /* open sections of this domain */
	uint32_t bank;                /* the bank of the outermost section */
	uint64_t view;                /* the active word that the outermost section saw, see look.h */
	_Atomic(const void *) last_found; /* the result of the last lookup, see search.h; only compared */
	_Atomic uint64_t count[SRCU_NR_COUNTS];
};

#define SRCU_FREE ((uint64_t)0)
#define SRCU_SHARED (~(uint64_t)0)

/* Called by a writer that waits: the reader's thread_os_id() (0: unknown), how long the wait has lasted, and the number
 * of this report in the wait for this reader, from 1. */
typedef void srcu_stall_fn(void *opaque, uint32_t os_id, uint64_t waited_ns, uint32_t report);

struct srcu_stall {
	uint64_t after_ns; /* 0: never */
	srcu_stall_fn *report;
	void *opaque;
};

/* This many threads with consecutive numbers find their records without a search. */
#define SRCU_RECENT 64

struct srcu {
	cache_aligned _Atomic uint32_t bank;
	_Atomic uint32_t waiting; /* a writer sleeps on `wakeups` */
	uint64_t number;          /* of the domain; no other domain ever has it */
	_Atomic(struct srcu_reader *) readers;

	/* Writers change this part; readers only wake a writer here. */
	cache_aligned struct memory *memory;
	_Atomic uint32_t wakeups; /* incremented when a section ends while a writer sleeps */
	struct srcu *next_domain, *previous_domain; /* all domains, for threads that end; under domains_lock */
	_Atomic uint64_t periods; /* grace periods */
	_Atomic uint64_t waits;   /* grace periods that had to wait for a reader */
	_Atomic uint64_t stalls;  /* waits for one reader that lasted longer than stall.after_ns */
	struct srcu_stall stall;  /* protected by the lock that serialises synchronize_srcu() */
	struct srcu_reader shared;

	/* By thread_number(), modulo SRCU_RECENT: the record that such a thread found last.  A thread that reads many
	 * domains in turn finds its records here. */
	cache_aligned _Atomic(struct srcu_reader *) recent[SRCU_RECENT];
};

_Static_assert(offsetof(struct srcu, readers) < CACHE_LINE && offsetof(struct srcu, memory) == CACHE_LINE,
	       "a section reads one line of the domain; the members that writers change are on other lines");
_Static_assert(offsetof(struct srcu_reader, depth) == CACHE_LINE, "a writer reads one line of a reader's record");

/* Returns 0, -EAGAIN if the process has no pthread key left, or -ENOMEM. */
int srcu_init(struct srcu *s, struct memory *memory);

/* Before the end of a domain: ends every open section of every thread.  No thread may be inside a lookup or a mark, and
 * none may begin one later.  thread_self.sections of other threads still counts their sections. */
void srcu_end_sections(struct srcu *s);

/* No section may be open, and none may be opened later. */
void srcu_deinit(struct srcu *s);

void synchronize_srcu(struct srcu *s);

/* Does not wait for `own`: the record of the calling thread (never the shared one), or NULL.  Its open sections go on.
 * A stall report of this wait may end them, or open nested ones. */
void synchronize_srcu_others(struct srcu *s, const struct srcu_reader *own);

/* The slow path of srcu_reader().  Finds the record of the calling thread without a lock.  If there is none, takes one
 * under domains_lock.  Without memory returns the shared record. */
struct srcu_reader *srcu_find_reader(struct srcu *s);

/* The records that a thread used last, by domain.  There are four, so that a thread can use a few VMs in turn. */
#define SRCU_CACHED 4
struct srcu_cache {
	uint64_t domain;
	struct srcu_reader *reader;
};
extern _Thread_local struct srcu_cache srcu_cache[SRCU_CACHED] __attribute__((tls_model("initial-exec")));

/* The record of the calling thread if it is in the cache, or NULL. */
static inline struct srcu_reader *srcu_cached_reader(const struct srcu *s)
{
	const struct srcu_cache *entry = &srcu_cache[s->number % SRCU_CACHED];

	return likely(entry->domain == s->number) ? entry->reader : NULL;
}

static inline struct srcu_reader *srcu_reader(struct srcu *s)
{
	struct srcu_reader *r = srcu_cached_reader(s);

	return likely(r) ? r : srcu_find_reader(s);
}

static inline bool srcu_is_shared(const struct srcu_reader *r)
{
	return atomic_load_explicit(&r->owner, memory_order_relaxed) == SRCU_SHARED;
}

/* The least number in `hold` of all records, or SRCU_NO_HOLD.  Row "holds". */
uint64_t srcu_oldest_hold(const struct srcu *s);

#define SRCU_NO_HOLD (~(uint64_t)0)

/* Whether this is the record of the calling thread.  It may be any record of the domain. */
static inline bool srcu_is_own(const struct srcu_reader *r)
{
	uint64_t self = thread_self.number; /* 0, which is SRCU_FREE too, if the thread has no record anywhere */

	return likely(self && atomic_load_explicit(&r->owner, memory_order_relaxed) == self);
}

/* Counts in the record of the calling thread. */
static inline void srcu_count_own(struct srcu_reader *r, enum srcu_count which, uint64_t n)
{
	count_add(&r->count[which], n);
}

static inline void srcu_count(struct srcu_reader *r, enum srcu_count which, uint64_t n)
{
	if (unlikely(srcu_is_shared(r)))
		atomic_fetch_add_explicit(&r->count[which], n, memory_order_relaxed);
	else
		srcu_count_own(r, which, n);
}

uint64_t srcu_total(struct srcu *s, enum srcu_count which);

/* Opens an outermost section in the calling thread's own record.  Nearly every lookup does this. */
static inline void srcu_enter(struct srcu *s, struct srcu_reader *r)
{
	uint32_t bank = atomic_load_explicit(&s->bank, memory_order_seq_cst);

	point(READER_BANK_LOADED);
	thread_self.sections++;
	r->depth = 1;
	r->bank = bank;
	atomic_fetch_add_explicit(&r->lock[bank], 1, memory_order_seq_cst); /* A */
}

void srcu_wake_writer(struct srcu *s);

/* Only the owner of the record counts here, so no read-modify-write is needed. */
static inline void srcu_count_out(_Atomic uint64_t *unlock)
{
	uint64_t out = atomic_load_explicit(unlock, memory_order_relaxed);

	atomic_store_explicit(unlock, out + 1, memory_order_release); /* B */
}

/* The result may be stale: the writer's sleep is bounded. */
static inline bool srcu_writer_sleeps(const struct srcu *s)
{
	return unlikely(atomic_load_explicit(&s->waiting, memory_order_relaxed));
}

static inline void srcu_look_for_writer(struct srcu *s)
{
	if (srcu_writer_sleeps(s))
		srcu_wake_writer(s);
}

static inline void srcu_end_outermost(struct srcu_reader *r)
{
	thread_self.sections--;
	r->depth = 0;
	srcu_count_out(&r->unlock[r->bank]);
}

static inline void srcu_leave(struct srcu *s, struct srcu_reader *r)
{
	srcu_end_outermost(r);
	srcu_look_for_writer(s);
}

/* The shared record has no depth and no view.  Each section there is an outermost one, and only the caller knows its
 * bank. */
struct srcu_section {
	struct srcu_reader *reader;
	uint32_t bank; /* of an outermost section */
	bool outermost;
};

/* Opens a section of any kind: an outermost one, a nested one, or one in the shared record. */
static inline struct srcu_section srcu_read_lock(struct srcu *s)
{
	struct srcu_reader *r = srcu_reader(s);
	struct srcu_section section = { .reader = r, .outermost = true };

	if (unlikely(srcu_is_shared(r))) {
		section.bank = atomic_load_explicit(&s->bank, memory_order_seq_cst);
		point(READER_BANK_LOADED);
		thread_self.sections++;
		atomic_fetch_add_explicit(&r->lock[section.bank], 1, memory_order_seq_cst); /* A */
	} else if (r->depth) {
		thread_self.sections++;
		r->depth++;
		section.outermost = false;
	} else {
		srcu_enter(s, r);
		section.bank = r->bank;
	}
	return section;
}

static inline void srcu_read_unlock(struct srcu *s, struct srcu_section section)
{
	struct srcu_reader *r = section.reader;

	if (unlikely(srcu_is_shared(r))) {
		thread_self.sections--;
		atomic_fetch_add_explicit(&r->unlock[section.bank], 1, memory_order_release); /* B */
		srcu_look_for_writer(s);
	} else if (r->depth > 1) {
		thread_self.sections--;
		r->depth--;
	} else {
		ms_assert(r->depth);
		srcu_leave(s, r);
	}
}

#endif
