/* SPDX-License-Identifier: MIT */
/*
 * points.h - named points, where a test stops a thread or makes it slow.
 *
 * Compiled to nothing, unless MEMSLOTS_POINTS is defined: the tests' own library has them, the one that is installed
 * has not.  A thread that comes by a point calls the hook with the point's number; the hook may wait, yield or sleep.
 * docs/locking.md says where each point lies.
 *
 * Ordering (row "points"): relaxed; a hook is installed before the threads that will meet it are started.
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
	POINT(READER_INDEX_FOUND) \
	POINT(READER_INDEX_HELD) \
	POINT(READER_INDEX_PLANNED) \
	POINT(READER_INDEX_GATHERED) \
	POINT(READER_INDEX_MADE) \
	POINT(READER_INDEX_OFFERED) \
	POINT(READER_PIECE_OVER) \
	POINT(READER_LEAVES) \
	POINT(READER_LEFT) \
	POINT(VCPU_GENERATION_LOADED) \
	POINT(VCPU_HINT_LOADED) \
	POINT(WRITER_PUBLISHES) \
	POINT(WRITER_PUBLISHED) \
	POINT(WRITER_READS_COUNTS) \
	POINT(WRITER_FLIPS) \
	POINT(WRITER_FLIPPED) \
	POINT(WRITER_SLEEPS) \
	POINT(WRITER_GRACE_OVER) \
	POINT(WRITER_DETACHES_INDEX) \
	POINT(WRITER_INVALIDATED) \
	POINT(WRITER_APPLIED) \
	POINT(WRITER_PROPAGATED) \
	POINT(WRITER_FREES) \
	POINT(WRITER_HARVESTS)

enum point {
#define POINT(name) POINT_##name,
	POINTS(POINT)
#undef POINT
	NR_POINTS
};

#ifdef MEMSLOTS_POINTS
typedef void point_hook_fn(enum point point);

/* NULL: none. */
void point_set_hook(point_hook_fn *hook);
void point_reached(enum point point);

#define point(name) point_reached(POINT_##name)
#else
#define point(name) ((void)0)
#endif

#endif
