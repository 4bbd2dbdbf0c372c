/* SPDX-License-Identifier: MIT */
/*
 * srcu.h - readers without locks, and a writer who knows when they are gone.
 *
 *   reader:  r = srcu_read_lock(s);  ... look ...  srcu_read_unlock(r);
 *   writer:  make the old thing unreachable;  synchronize_srcu(s);  free it.
 *
 * synchronize_srcu() returns once every section has ended that might have seen the old thing.  Sections that start
 * later are not waited for, so a steady stream of readers cannot hold a writer up for ever.
 *
 * Each thread that reads has a record of its own in each domain, with two banks of counters, of which `bank` tells
 * newcomers the one to use.  A thread that cannot get a record (no memory) shares one with its like.
 *
 * Invariants
 *   S1  a section is counted out of the bank that it was counted into, whichever of nested ones ends last;
 *   S2  a bank of a record is dry when its unlocks, read first, equal its locks, read afterwards;
 *   S3  only its owner counts in a record, the shared one excepted; a record with a free owner is dry.
 *
 * Ordering (rows of docs/locking.md)
 *   A  "count in, then load what is protected" against "publish, then read the counts": four seq_cst operations;
 *   B  the count of an unlock (release) against its reading (acquire).
 * One drain and one flip are not enough: a reader may have loaded `bank` before a flip and count itself in after the
 * drain.  Hence drain the bank that nobody should use, flip, drain the other.
 *
 * A reader that stays is reported by the writer, by the name that its record keeps, after `stall.after_ns` and again
 * whenever the wait has doubled.  What is reported is how long the writer has waited, which the section is at least
 * old: no reader looks at a clock.
 *
 * Locking: one synchronize_srcu() at a time per domain.  Sections nest.  A section must not wait for its own domain,
 * neither directly nor through a lock whose holder does; slots_lock is such a lock.
 * Cost: the outermost lock is one seq_cst add, its unlock one store, both on lines of the thread's own.  Finding the
 * record is a compare in the thread's cache, else one in the domain's table, else a scan; a lock only to get one.
 */
#ifndef MS_SRCU_H
#define MS_SRCU_H

#include "memory.h"
#include "points.h"
#include "thread.h"

/* What a thread's lookups found; counted where the thread writes anyway. */
enum srcu_count {
	SRCU_HIT_LAST_USED,
	SRCU_HIT_SEARCH,
	SRCU_INDEXED,
	SRCU_MISS,
	SRCU_VCPU_BYPASS,
	SRCU_NR_COUNTS
};

struct srcu_reader {
	/* What a writer reads. */
	cache_aligned _Atomic uint64_t lock[2];
	_Atomic uint64_t unlock[2];
	struct srcu_reader *next;     /* immutable once published */
	struct srcu *domain;
	_Atomic uint64_t owner;       /* a thread_number(), SRCU_FREE or SRCU_SHARED */
	_Atomic uint32_t os_id;       /* the owner's thread_os_id(); 0 in the shared record */

	/* The owner's own. */
	cache_aligned uint32_t depth; /* sections of this domain */
	uint32_t bank;                /* of the outermost one */
	uint64_t view;                /* what the outermost one saw published: look.h's */
	_Atomic(const void *) last_met; /* where the last lookup ended: search.h's, only compared */
	_Atomic uint64_t count[SRCU_NR_COUNTS];
};

#define SRCU_FREE ((uint64_t)0)
#define SRCU_SHARED (~(uint64_t)0)

/* Told by a writer that waits: for whom (0: unknown), how long by now, and how often it has said so in this wait. */
typedef void srcu_stall_fn(void *opaque, uint32_t os_id, uint64_t waited_ns, uint32_t report);

struct srcu_stall {
	uint64_t after_ns; /* 0: never */
	srcu_stall_fn *report;
	void *opaque;
};

/* So many threads whose numbers follow each other find their records without a search. */
#define SRCU_MET 64

struct srcu {
	cache_aligned _Atomic uint32_t bank;
	_Atomic uint32_t waiting; /* a writer sleeps on `left` */
	uint64_t number;          /* of the domain, never used again */
	_Atomic(struct srcu_reader *) readers;

	/* What readers do not look at, and a writer moves. */
	cache_aligned struct memory *memory;
	_Atomic uint32_t left;    /* moves when a section ends while a writer sleeps */
	struct srcu *next_domain, *previous_domain; /* all domains, for threads that end; under domains_lock */
	_Atomic uint64_t periods; /* grace periods, and those that had to wait */
	_Atomic uint64_t waits;
	_Atomic uint64_t stalls;  /* ... and the readers that were waited for beyond stall.after_ns */
	struct srcu_stall stall;  /* the writer's: who sets it holds what serialises synchronize_srcu() */
	struct srcu_reader shared;

	/* By thread_number(): a record that such a thread has met; threads that read many domains in turn look here. */
	cache_aligned _Atomic(struct srcu_reader *) met[SRCU_MET];
};

_Static_assert(offsetof(struct srcu, readers) < CACHE_LINE && offsetof(struct srcu, memory) == CACHE_LINE,
	       "what a section looks at is one line, what only writers move is on another");
_Static_assert(offsetof(struct srcu_reader, depth) == CACHE_LINE, "what a writer reads of a reader is one line");

void srcu_init(struct srcu *s, struct memory *memory);

/* For the end of a domain: every section is over, of whatever thread, though it be open.  Nobody is in a call that looks
 * or marks, and nobody will be. */
void srcu_end_sections(struct srcu *s);

/* Only when no section is open and none will be. */
void srcu_deinit(struct srcu *s);

void synchronize_srcu(struct srcu *s);

/* The same, but for the calling thread's own record (not the shared one; NULL: none): sections that are open there go
 * on, and may be ended or nested by a report of this wait. */
void synchronize_srcu_others(struct srcu *s, const struct srcu_reader *own);

/* The slow half of srcu_reader(): finds the calling thread's record, without a lock; or takes one, under domains_lock;
 * or the shared one, without memory. */
struct srcu_reader *srcu_find_reader(struct srcu *s);

/* The records that a thread used last, found by domain: four, so that a few VMs can be used in turn. */
#define SRCU_CACHED 4
struct srcu_cache {
	uint64_t domain;
	struct srcu_reader *reader;
};
extern _Thread_local struct srcu_cache srcu_cache[SRCU_CACHED] __attribute__((tls_model("initial-exec")));

/* A record of the thread's own, where it was used lately, or NULL. */
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
	return r == &r->domain->shared;
}

/* In a record of one's own, where nobody else counts. */
static inline void srcu_count_own(struct srcu_reader *r, enum srcu_count which, uint64_t n)
{
	_Atomic uint64_t *count = &r->count[which];

	atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + n, memory_order_relaxed);
}

static inline void srcu_count(struct srcu_reader *r, enum srcu_count which, uint64_t n)
{
	if (unlikely(srcu_is_shared(r)))
		atomic_fetch_add_explicit(&r->count[which], n, memory_order_relaxed);
	else
		srcu_count_own(r, which, n);
}

uint64_t srcu_total(struct srcu *s, enum srcu_count which);

/* The outermost section of a record of one's own: what every lookup opens and closes. */
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

/* Only the owner counts here, so that no read-modify-write is needed. */
static inline void srcu_count_out(_Atomic uint64_t *unlock)
{
	uint64_t out = atomic_load_explicit(unlock, memory_order_relaxed);

	atomic_store_explicit(unlock, out + 1, memory_order_release); /* B */
}

static inline void srcu_look_for_writer(struct srcu *s)
{
	if (unlikely(atomic_load_explicit(&s->waiting, memory_order_relaxed))) /* hint: the writer's sleep is bounded */
		srcu_wake_writer(s);
}

static inline void srcu_leave(struct srcu *s, struct srcu_reader *r)
{
	thread_self.sections--;
	r->depth = 0;
	srcu_count_out(&r->unlock[r->bank]);
	srcu_look_for_writer(s);
}

/* Sections of the shared record have no depth and no view: each is an outermost one, and its bank is in its caller's
 * hands alone. */
struct srcu_section {
	struct srcu_reader *reader;
	uint32_t bank; /* of an outermost one */
	bool outermost;
};

/* Any section: nested ones, and those of threads that have to share a record. */
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
