/* SPDX-License-Identifier: MIT */
/*
 * points.h - named places in the code where a test stops a thread or slows it down.
 *
 * Points exist only if MEMSLOTS_POINTS is defined: in the library of the tests, not in the one that is installed.  A
 * thread that reaches a point calls the hook with the number of the point.  The hook may wait, yield or sleep.
 * docs/locking.md says where each point lies.
 *
 * Ordering (row "points"): relaxed.  A test installs the hook before it starts the threads that call it.
 */
#ifndef MS_POINTS_H
#define MS_POINTS_H

#include "compiler.h"

#define POINTS(POINT) \
	POINT(READER_BANK_LOADED) \
	POINT(READER_VIEW_LOADED) \
	POINT(READER_SLOT_FOUND) \
	POINT(READER_WALKS) \
	POINT(READER_MARKS) \
	POINT(READER_NOTES_LOWER) \
	POINT(READER_NOTES_UPPER) \
	POINT(READER_INDEX_FOUND) \
	POINT(READER_INDEX_HELD) \
	POINT(READER_INDEX_BEGUN) \
	POINT(READER_INDEX_GATHERED) \
	POINT(READER_INDEX_STEPPED) \
	POINT(READER_INDEX_MADE) \
	POINT(READER_INDEX_OFFERED) \
	POINT(READER_INDEX_MOVED) \
	POINT(READER_PIECE_OVER) \
	POINT(READER_PINNED) \
	POINT(READER_HELD) \
	POINT(READER_HOLD_OVER) \
	POINT(READER_PUTS_BACK) \
	POINT(READER_LEAVES) \
	POINT(READER_LEFT) \
	POINT(VCPU_GENERATION_LOADED) \
	POINT(VCPU_HINT_MATCHES) \
	POINT(VCPU_HINT_LOADED) \
	POINT(VCPU_HINT_HALF_STORED) \
	POINT(WRITER_PUBLISHES) \
	POINT(WRITER_PUBLISHED) \
	POINT(WRITER_READS_COUNTS) \
	POINT(WRITER_FLIPS) \
	POINT(WRITER_FLIPPED) \
	POINT(WRITER_SLEEPS) \
	POINT(WRITER_GRACE_OVER) \
	POINT(WRITER_MARKS) \
	POINT(WRITER_UNMARKS) \
	POINT(WRITER_INVALIDATED) \
	POINT(WRITER_APPLIED) \
	POINT(WRITER_PROPAGATED) \
	POINT(WRITER_FREES) \
	POINT(WRITER_RETIRED) \
	POINT(WRITER_TAKES_LINES) \
	POINT(WRITER_HARVESTS) \
	POINT(WRITER_DROPS_LINE)

enum point {
#define POINT(name) POINT_##name,
	POINTS(POINT)
#undef POINT
		NR_POINTS
};

#ifdef MEMSLOTS_POINTS
typedef void point_hook_fn(enum point point);

/* NULL: no hook. */
void point_set_hook(point_hook_fn *hook);
void point_reached(enum point point);

#define point(name) point_reached(POINT_##name)
#else
#define point(name) ((void)0)
#endif

#endif
