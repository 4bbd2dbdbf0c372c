/* SPDX-License-Identifier: MIT */
/*
 * memory.h - the allocations of one VM: counted, and made to fail where a test wants it.
 *
 * Every block of the engine comes from here, so that "nothing leaked" and "the n-th allocation fails" are facts
 * that a test can set up and a user can ask for.  Blocks come zeroed; whoever frees one knows its size.
 *
 * Ordering: the counters are statistics, relaxed (row "counters" of docs/locking.md).
 */
#ifndef MS_MEMORY_H
#define MS_MEMORY_H

#include <stdatomic.h>

#include "compiler.h"

struct memory {
	_Atomic uint64_t bytes;
	_Atomic uint64_t blocks;
	_Atomic uint64_t asked;  /* allocations since memory_init() or memory_fail() */
	uint64_t fail_from;      /* the fail_from-th allocation fails, counted from 1; 0: none */
	bool fail_onward;        /* ... and every later one */
};

void memory_init(struct memory *m);

/* Arms the failure; only while nobody else allocates. */
void memory_fail(struct memory *m, uint64_t nth, bool onward);

void *memory_zalloc(struct memory *m, size_t size);
void *memory_zalloc_lines(struct memory *m, size_t size); /* starts on a cache line; size is rounded up to lines */
void memory_free(struct memory *m, void *block, size_t size);
void memory_free_lines(struct memory *m, void *block, size_t size);

#endif
