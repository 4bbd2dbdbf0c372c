/* SPDX-License-Identifier: MIT */
/*
 * dirty_log.h - records which pages of a slot were written.
 *
 * Bit i of word j stands for page 64 j + i.  As in KVM there are two halves: the live bitmap, in which readers mark
 * pages, and a scratch bitmap of the same size, which receives a harvest before it is copied to the caller.  A change
 * copies a slot; all copies share one log, so that no mark is lost.
 *
 * Invariants
 *   D1  bits from npages on are 0;
 *   D2  refs is the number of slots that hold the log.
 *
 * Ordering (row "dirty bits"): a mark is a fetch_or, release, after the write to the page.  A harvest is an exchange,
 * acq_rel, of each word.  So the thread that harvests a bit sees the write, and no bit is lost.
 * Locking: a mark is made inside a read section.  Everything else, including refs and the scratch bitmap, is under
 * slots_lock.
 * Cost: mark O(1); the others O(words).
 */
#ifndef MS_DIRTY_LOG_H
#define MS_DIRTY_LOG_H

#include "memory.h"

struct dirty_log {
	uint64_t npages;
	size_t nwords;
	size_t refs;
	uint64_t *scratch;      /* nwords, behind `live` */
	_Atomic uint64_t live[];
};

static inline size_t dirty_log_words(uint64_t npages)
{
	return (size_t)((npages + 63) / 64);
}

/* Returns a log with one reference and all bits clear, or set if initially_set.  NULL: no memory. */
struct dirty_log *dirty_log_create(struct memory *memory, uint64_t npages, bool initially_set);
struct dirty_log *dirty_log_get(struct dirty_log *log);             /* NULL gives NULL */
void dirty_log_put(struct memory *memory, struct dirty_log *log);   /* NULL is fine */

static inline void dirty_log_mark(struct dirty_log *log, uint64_t page)
{
	/* Do not test the bit first: a set bit may be one whose harvest does not see the write of this mark. */
	atomic_fetch_or_explicit(&log->live[page / 64], (uint64_t)1 << (page % 64), memory_order_release);
}

/* harvest moves the live bits to the scratch bitmap; peek copies them there. */
void dirty_log_harvest(struct dirty_log *log);
void dirty_log_peek(struct dirty_log *log);

/* Clears the live bits, from page 64 first_word on, that are set in the first nwords words of the scratch bitmap. */
void dirty_log_clear(struct dirty_log *log, size_t first_word, size_t nwords);

/* Returns 1 if D1 does not hold, or 0. */
int dirty_log_check(const struct dirty_log *log);

#endif
