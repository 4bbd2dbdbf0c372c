/* SPDX-License-Identifier: MIT */
/*
 * dirty_log.h - records which pages of a slot were written.
 *
 * Bit i of word j stands for page 64 j + i.  As in KVM there are two halves: the live bitmap, in which readers mark
 * pages, and a scratch bitmap of the same size, which receives a harvest before it is copied to the caller.  A change
 * copies a slot; all copies share one log, so that no mark is lost.
 *
 * A copy of a slot that has another size, or begins at another host address, needs a log of its own.  Such logs are
 * related: they form a ring, and each knows where its first page lies in the others.  Readers mark one of them at a time,
 * the one whose slot they see.  dirty_log_pass_on() copies its bits to the others after the grace period that ends this
 * time, so that no bit is lost, whichever of the slots remains.
 *
 * Invariants
 *   D1  bits from npages on are 0;
 *   D2  refs is the number of slots that hold the log;
 *   D3  page i of a log is page i + first - other->first of every log in its ring that has this page;
 *   D4  a bit that is set in one log of a ring is set in each of the others that has the page, except for marks that
 *       were made since dirty_log_pass_on();
 *   D5  at rest a log is alone in its ring.
 *
 * Ordering (row "dirty bits"): a mark is a fetch_or, release, after the write to the page.  A harvest is an exchange,
 * acq_rel, of each word.  So the thread that harvests a bit sees the write, and no bit is lost.  dirty_log_pass_on()
 * loads a bit with acquire and sets it with release, so a harvest of the other log sees the write too.
 * Locking: a mark is made inside a read section.  Everything else, including refs, the ring and the scratch bitmap, is
 * under slots_lock.
 * Cost: mark O(1); the others O(words), in dirty_log_derive() and dirty_log_pass_on() of all related logs.
 */
#ifndef MS_DIRTY_LOG_H
#define MS_DIRTY_LOG_H

#include "memory.h"

struct dirty_log {
	uint64_t npages;
	size_t nwords;
	size_t refs;
	struct dirty_log *related; /* the next one of its ring; the log itself if there is no other */
	int64_t first;             /* D3; 0 in a log that was created */
	uint64_t *scratch;         /* nwords, behind `live` */
	_Atomic uint64_t live[];
};

static inline size_t dirty_log_words(uint64_t npages)
{
	return (size_t)((npages + 63) / 64);
}

/* Returns a log with one reference and all bits clear, or set if initially_set.  NULL: no memory. */
struct dirty_log *dirty_log_create(struct memory *memory, uint64_t npages, bool initially_set);

/*
 * A related log for the pages [first, first + npages) of `from`; first may be negative.  One reference.  A page that
 * `from` or a log related to it has keeps its bit.  The others are clear, or set.  NULL without memory.
 */
struct dirty_log *dirty_log_derive(struct memory *memory, struct dirty_log *from, int64_t first, uint64_t npages,
				   bool initially_set);

/* Sets every bit of `log` in the logs that are related to it, where they have the page (D4). */
void dirty_log_pass_on(const struct dirty_log *log);

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
