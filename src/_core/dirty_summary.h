/* SPDX-License-Identifier: MIT */
/*
 * dirty_summary.h - finds the lines of a large dirty log that may have dirty bits, without reading the others.
 *
 * A line is a cache line of the log's bits.  Bit i of the lower words stands for line i; bit j of the upper words
 * stands for lower word j.  So a clean log of 8 TiB costs a look at 8 KiB.
 *
 * Invariant
 *   DS1 a line that is not 0 has its lower bit, and a lower word that is not 0 has its upper bit, except for marks that
 *       are under way and for the lines that a walk has taken out.  The opposite does not hold: a bit may stay set for
 *       a clean line, which costs one redundant look.
 *
 * Ordering (row "dirty summary"): all seq_cst, and the bits of the log too.  A mark sets its bit, then tests the lower
 * and the upper bit, and sets those that it finds clear.  A walk takes out the upper bits, then the lower bits, and
 * then its caller reads the line.  If a mark finds a bit set, this test comes before the walk takes the bit out.  So
 * the walk comes to the line after the mark, and finds its bit.  If the mark finds the bit clear, it sets it for the
 * next walk. Each mark tests both levels: a mark that finds the lower bit set may not rely on the thread that set it,
 * which may not have come to the upper bit yet.  A drop of one line has the same order: it takes the lower bit out, and
 * then its caller reads the line.
 * Locking: one walk or drop at a time, under slots_lock.  Any thread may call dirty_summary_note().
 * Cost: note O(1); a walk O(lines / 4096 + lower words with an upper bit + lines in the summary).
 */
#ifndef MS_DIRTY_SUMMARY_H
#define MS_DIRTY_SUMMARY_H

#include <stdatomic.h>

#include "compiler.h"

/* Part of the log's memory. */
struct dirty_summary {
	_Atomic uint64_t *upper; /* nr_upper words, and behind them the lower ones */
	size_t nr_upper;
};

static inline size_t dirty_summary_lower(size_t nr_lines)
{
	return (nr_lines + 63) / 64;
}

static inline size_t dirty_summary_upper(size_t nr_lines)
{
	return (dirty_summary_lower(nr_lines) + 63) / 64;
}

static inline bool dirty_summary_bit(const _Atomic uint64_t *words, size_t i)
{
	return atomic_load_explicit(&words[i / 64], memory_order_seq_cst) >> (i % 64) & 1;
}

/* Whether DS1 holds for a line that is not 0, when no mark is under way. */
static inline bool dirty_summary_has(struct dirty_summary summary, size_t line)
{
	return dirty_summary_bit(summary.upper + summary.nr_upper, line) && dirty_summary_bit(summary.upper, line / 64);
}

void dirty_summary_set(struct dirty_summary summary, size_t line);

/* Call it after bits of the line were set.  Most marks find both bits set, and cost two loads. */
static inline void dirty_summary_note(struct dirty_summary summary, size_t line)
{
	if (unlikely(!dirty_summary_has(summary, line)))
		dirty_summary_set(summary, line);
}

/* Takes a clean line out.  The caller then reads the line again, and notes it if a mark has come. */
void dirty_summary_drop(struct dirty_summary summary, size_t line);

struct dirty_walk {
	struct dirty_summary summary;
	bool clear;          /* takes the bits out of the summary */
	size_t next;         /* the next upper word */
	size_t lower;        /* the lower word of lower_bits */
	uint64_t upper_bits; /* those of upper word next - 1 that are left */
	uint64_t lower_bits;
};

/* Begins at `line`, which may be one behind the last.  The bits of the lines before it stay. */
struct dirty_walk dirty_walk_begin(struct dirty_summary summary, size_t line, bool clear);

/* Writes up to `room` lines in ascending order, and returns their number.  0: there are no more. */
size_t dirty_walk_next(struct dirty_walk *walk, uint32_t *lines, size_t room);

/* Puts the bits back that the walk has taken out for lines that it has not returned. */
void dirty_walk_end(const struct dirty_walk *walk);

#endif
