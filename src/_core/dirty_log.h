/* SPDX-License-Identifier: MIT */
/*
 * dirty_log.h - which pages of a slot were written.
 *
 * Bit i of word j is page 64 j + i.  As in KVM there are two halves: the live bitmap, which readers mark, and a
 * scratch of the same size, into which a harvest goes before it is handed on.  The copies that a change makes of a
 * slot share one log: marks made through any of them are kept.
 *
 * Invariants
 *   D1  bits from npages on are 0;
 *   D2  refs is the number of slots that hold the log.
 *
 * Ordering (row "dirty bits"): a mark is a fetch_or, release, after the write that it stands for; a harvest is an
 * exchange, acq_rel, per word: who harvests a bit sees the write, and no bit is lost.
 * Locking: marks come from read sections; everything else is under slots_lock, refs and the scratch too.
 * Cost: mark O(1); the others O(words).
 */
#ifndef MS_DIRTY_LOG_H
#define MS_DIRTY_LOG_H

#include "memory.h"

struct dirty_log {
	uint64_t npages;
	size_t nwords;
	size_t refs;
	uint64_t *scratch;      /* nwords, behind the live ones */
	_Atomic uint64_t live[];
};

static inline size_t dirty_log_words(uint64_t npages)
{
	return (size_t)((npages + 63) / 64);
}

/* One reference; every bit clear, or every bit below npages set.  NULL without memory. */
struct dirty_log *dirty_log_create(struct memory *memory, uint64_t npages, bool initially_set);
struct dirty_log *dirty_log_get(struct dirty_log *log);             /* NULL gives NULL */
void dirty_log_put(struct memory *memory, struct dirty_log *log);   /* NULL is fine */

static inline void dirty_log_mark(struct dirty_log *log, uint64_t page)
{
	/* Unconditional: a look first could see a bit whose harvest misses the write that this mark is for. */
	atomic_fetch_or_explicit(&log->live[page / 64], (uint64_t)1 << (page % 64), memory_order_release);
}

/* Moves the live bits to the scratch, or copies them there. */
void dirty_log_harvest(struct dirty_log *log);
void dirty_log_peek(struct dirty_log *log);

/* Clears the bits that are set in the first `nwords` words of the scratch, from page 64 first_word on. */
void dirty_log_clear(struct dirty_log *log, size_t first_word, size_t nwords);

/* 0, or the number of the invariant D1 that does not hold. */
int dirty_log_check(const struct dirty_log *log);

#endif
