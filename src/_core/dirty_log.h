/* SPDX-License-Identifier: MIT */
/*
 * dirty_log.h - records which pages of a slot were written.
 *
 * Bit i of word j stands for page 64 j + i.  A change copies a slot; all copies share one log, so that no mark is lost.
 * KVM has a second bitmap, which receives a harvest before it is copied to user space.  Here a harvest writes to the
 * caller's bitmap.
 *
 * A copy of a slot that has another size, or begins at another host address, needs a log of its own.  Such logs are
 * related.  They form a ring, and each has the position of its first page in the others.  At any time readers mark only
 * one of them: the log of the slot that they see.  After the grace period that ends this time, dirty_log_pass_on()
 * copies its bits to the others.  So no bit is lost, whichever of the slots remains.
 *
 * Invariants
 *   D1  bits from npages on are 0;
 *   D2  refs is the number of slots that hold the log; pins is the number of calls that hold it, plus 1 while refs is
 *       not 0, or while a retired slot (holds.h) has the log;
 *   D3  page i of a log is page i + first - other->first of every log in its ring that has this page;
 *   D4  a bit that is set in one log of a ring is set in each of the others that has the page, except for marks that
 *       were made since dirty_log_pass_on();
 *   D5  at rest a log is alone in its ring;
 *   D6  a log of DIRTY_SUMMARY_MIN pages or more has a summary, for which DS1 of dirty_summary.h holds.
 *
 * A line of a log is a cache line of its words.  The header takes the first half of line 0.  A large log begins on a
 * cache line; behind its lines comes the summary.  A small log has no summary, because a harvest reads all its lines in
 * two microseconds, and a summary makes marks slower.
 *
 * Ordering (row "dirty bits"): a mark is a fetch_or, release, after the write to the page.  A harvest is an exchange,
 * seq_cst, of each word that is not 0.  So the thread that harvests a bit sees the write, and no bit is lost.
 * dirty_log_pass_on() loads a bit with acquire and sets it with release, so a harvest of the other log sees the write
 * too.  In a large log the marks and the looks of a harvest are seq_cst, see dirty_summary.h.
 * Ordering (row "dirty log pins"): a pin is taken inside the read section that finds the log, or under slots_lock.  The
 * slots' own pin is dropped after the grace period, so a reader never takes the first one.
 * Locking: a mark is made inside a read section.  Everything else, including refs and the ring, is under slots_lock,
 * except for pins: any thread drops its own.
 * Cost: mark O(1); the others O(words), where a harvest reads only the lines that the summary names.
 * dirty_log_derive() and dirty_log_pass_on() read all related logs.
 */
#ifndef MS_DIRTY_LOG_H
#define MS_DIRTY_LOG_H

#include "dirty_summary.h"
#include "include/memslots.h"
#include "memory.h"

/* 1 GiB of guest memory, 512 lines.  A harvest reads so many lines in 2 us.  A hot mark takes 2.9 ns in a small log and
 * 4.2 ns in a large one. */
#define DIRTY_SUMMARY_MIN ((uint64_t)1 << 18)

/* The members before `live` fill half a cache line, so that a small log shares a line with its bits. */
struct dirty_log {
	uint32_t npages;
	uint32_t refs;             /* under slots_lock */
	struct dirty_log *related; /* the next one of its ring; the log itself if there is no other */
	int64_t first;             /* see D3; 0 in a log of dirty_log_create() */
	_Atomic uint32_t pins;     /* the last one frees the log */
	_Atomic uint64_t live[];
};

_Static_assert(sizeof(struct dirty_log) <= CACHE_LINE / 2 && MS_MEM_MAX_NR_PAGES <= UINT32_MAX,
	       "a log begins with half a cache line, and 32 bits hold the pages of every slot");

static inline size_t dirty_log_words(uint64_t npages)
{
	return (size_t)((npages + 63) / 64);
}

static inline size_t nwords_of(const struct dirty_log *log)
{
	return dirty_log_words(log->npages);
}

/* Returns a log with one reference, or NULL without memory.  All bits are clear; with initially_set they are set. */
struct dirty_log *dirty_log_create(struct memory *memory, uint64_t npages, bool initially_set);

/*
 * Returns a related log with one reference, or NULL without memory.  It is for the pages [first, first + npages) of
 * `from`; first may be negative.  A page that `from` or one of its related logs has keeps its bit.  The bits of the
 * other pages are clear; with initially_set they are set.
 */
struct dirty_log *dirty_log_derive(struct memory *memory, struct dirty_log *from, int64_t first, uint64_t npages,
				   bool initially_set);

/* Sets every bit of `log` in the logs that are related to it, where they have the page (D4). */
void dirty_log_pass_on(const struct dirty_log *log);

/*
 * A transaction (transaction.c) needs no ring, because it never goes back after its only swap.  Its new logs have no
 * bits of old ones until the grace period is over.  Then it calls these functions.  No reader can reach the old log.
 *   take      sets every bit of `from` in `to`, where `to` has the page.  Page 0 of `to` is page `page` of `from`; it
 *             may be negative.
 *   forget    clears the bits of the pages [first, first + n).  Also for a new log that readers cannot reach yet.
 *   is_clean  whether no bit is set.
 */
void dirty_log_take(struct dirty_log *to, const struct dirty_log *from, int64_t page);
void dirty_log_forget(struct dirty_log *log, uint64_t first, uint64_t n);
bool dirty_log_is_clean(const struct dirty_log *log);

/* Adds a slot's reference; drops one.  log may be NULL.  The last put takes the log off its ring (D5). */
struct dirty_log *dirty_log_get(struct dirty_log *log);
void dirty_log_put(struct memory *memory, struct dirty_log *log);

/* The first half of dirty_log_put().  Returns whether it was the last reference: then the caller must call
 * dirty_log_unpin() for the slots' own pin.  log may be NULL. */
bool dirty_log_leave(struct dirty_log *log);

/* A call that goes on without a read section pins the logs that it is going to mark.  After the last slot is gone, the
 * marks of such a call reach no harvest. */
void dirty_log_pin(struct dirty_log *log);
void dirty_log_unpin(struct memory *memory, struct dirty_log *log);

void dirty_log_mark_large(struct dirty_log *log, uint64_t page);

/* npages is that of the log.  A slot has it, too: a mark in a slot's log need not load the header, whose cache line may
 * be another one than that of the bit. */
static inline void dirty_log_mark_sized(struct dirty_log *log, uint64_t npages, uint64_t page)
{
	if (npages >= DIRTY_SUMMARY_MIN)
		dirty_log_mark_large(log, page);
	else
		/* Do not test the bit first: the harvest of a bit that is set already may not see the write of this
		 * mark. */
		atomic_fetch_or_explicit(&log->live[page / 64], (uint64_t)1 << (page % 64), memory_order_release);
}

static inline void dirty_log_mark(struct dirty_log *log, uint64_t page)
{
	dirty_log_mark_sized(log, log->npages, page);
}

/* Marks the pages [first, first + n), 64 of them at once. */
void dirty_log_mark_range(struct dirty_log *log, uint64_t first, uint64_t n);

/* Sets the bits of the nwords_of(log) words, without those from npages on (D1). */
void dirty_log_merge(struct dirty_log *log, const uint64_t *words);

/* Both write the live bits to `bitmap`, which has room for nwords_of(log) words.  dirty_log_harvest() clears them; with
 * a NULL bitmap the bits are lost. */
void dirty_log_harvest(struct dirty_log *log, uint64_t *bitmap);
void dirty_log_peek(const struct dirty_log *log, uint64_t *bitmap);

/* Clears the live bits, from page 64 first_word on, that are set in the nwords words of the bitmap.  Lines that become
 * clean leave the summary, so that no later harvest reads them. */
void dirty_log_clear(struct dirty_log *log, size_t first_word, const uint64_t *bitmap, size_t nwords);

/* ---- line by line ---- */

#define DIRTY_LINE_WORDS (CACHE_LINE / sizeof(uint64_t))

static inline size_t dirty_line_of(size_t word)
{
	return (word + offsetof(struct dirty_log, live) / sizeof(uint64_t)) / DIRTY_LINE_WORDS;
}

/* The first word of a line.  Line 0 begins with word 0. */
static inline size_t dirty_line_start(size_t line)
{
	return line ? line * DIRTY_LINE_WORDS - offsetof(struct dirty_log, live) / sizeof(uint64_t) : 0;
}

/* The number of lines that dirty_lines_next() returns at most.  It prefetches them.  Measured: 8 and 32 are slower. */
#define DIRTY_LINES 16

/* Finds the lines that may have dirty bits, in ascending order. */
struct dirty_lines {
	struct dirty_log *log;
	size_t next;            /* without a summary: the next line */
	struct dirty_walk walk; /* with a summary */
};

/* From `line` on.  With `clear` the lines are taken out of the summary, so the caller must take all their bits, or note
 * them again. */
struct dirty_lines dirty_lines_begin(struct dirty_log *log, size_t line, bool clear);
size_t dirty_lines_next(struct dirty_lines *lines, uint32_t *out);

/* Call it if lines are left that dirty_lines_next() has not returned. */
void dirty_lines_end(const struct dirty_lines *lines);

/* Reads the words of a line, and sets them to 0 if `clear`.  Bit i of the result: bits[i] is not 0, and bits[i] is
 * undefined otherwise. */
uint32_t dirty_line_take(struct dirty_log *log, size_t line, bool clear, uint64_t *bits);

/* Sets bits of a word again that dirty_line_take() has returned.  Without bits: notes the line. */
void dirty_log_give_back(struct dirty_log *log, size_t word, uint64_t bits);

/* ---- check ---- */

/* Returns 1 if D1 does not hold, or 0. */
int dirty_log_check(const struct dirty_log *log);

/* Returns the first word from `word` on for which D6 does not hold, or a number from nwords_of() on.  A mark that is
 * under way looks alike: wait until the read sections of now are over, and look at the same word again. */
size_t dirty_log_unnoted(const struct dirty_log *log, size_t word);

#endif
