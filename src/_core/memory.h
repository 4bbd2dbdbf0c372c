/* SPDX-License-Identifier: MIT */
/*
 * memory.h - the allocations of one VM: counted, and made to fail where a test wants it.
 *
 * Every block of the engine comes from here, so that "nothing leaked" and "the n-th allocation fails" are facts
 * that a test can set up and a user can ask for.  Whoever frees a block knows its size.
 *
 * The pool hands out blocks of one size that lie side by side in chunks, but for a spare line now and then: a walk over a
 * million of them finds neighbours in neighbouring pages.  A pool's block counts and fails as any other; its chunk counts with its bytes alone, and
 * fails with the block that wanted it.  Of chunks without a used block one stays, and none when no block is in use.
 *
 * Invariants of a pool
 *   P1  `open` has each chunk that has a free block, once, and no other;
 *   P2  a chunk's first `fresh` blocks were never handed out, the used ones are `used`, the others hang off `free`;
 *   P3  `idle` is the only chunk of which no block is in use, or NULL; no chunk is left when `blocks` is 0.  Of two such
 *       chunks the smaller one stays.
 *
 * Locking: a pool has one user at a time (slots_lock); all else is for any thread.
 * Ordering: the counters are statistics, relaxed (row "counters" of docs/locking.md).
 */
#ifndef MS_MEMORY_H
#define MS_MEMORY_H

#include <stdatomic.h>

#include "compiler.h"

/* What is free is written over, and what is allocated is looked at for late writes. */
#if defined(MEMSLOTS_POISON) || MS_SANITIZED
#define MEMORY_POISONS 1
#else
#define MEMORY_POISONS 0
#endif

struct memory_chunk;

struct memory_pool {
	struct memory_chunk *open; /* the next block comes from the first of them */
	struct memory_chunk *idle;
	bool had_idle;             /* memory_pool_mark() */
	uint64_t room;             /* of all chunks, in blocks */
	uint64_t bytes;            /* of all chunks */
	size_t wanted;             /* memory_pool_reserve() */
	_Atomic uint64_t blocks;   /* in use; row "counters" */
};

struct memory {
	_Atomic uint64_t bytes;
	_Atomic uint64_t blocks; /* the pool's are counted there */
	_Atomic uint64_t asked;  /* allocations since memory_fail(), while it is armed */
	uint64_t fail_from;      /* the fail_from-th allocation fails, counted from 1; 0: none */
	bool fail_onward;        /* ... and every later one */
	struct memory_pool pool;
};

void memory_init(struct memory *m);

/* Arms the failure; only while nobody else allocates. */
void memory_fail(struct memory *m, uint64_t nth, bool onward);

/* Zeroed. */
void *memory_zalloc(struct memory *m, size_t size);
void *memory_zalloc_lines(struct memory *m, size_t size); /* starts on a cache line; size is rounded up to lines */
void memory_free(struct memory *m, void *block, size_t size);
void memory_free_lines(struct memory *m, void *block, size_t size);

/* The last word of a pool's block belongs to the pool. */
#define MEMORY_POOL_WORD sizeof(void *)

/* Blocks of a chunk. */
#define MEMORY_POOL_CHUNK_MIN 4
#define MEMORY_POOL_CHUNK_MAX 256

/* Not zeroed.  `size` is the same for all blocks of a pool: whole cache lines, on which they start. */
void *memory_pool_alloc(struct memory *m, size_t size);
void memory_pool_free(struct memory *m, void *block, size_t size);

/* The next block comes from a chunk for n of them, if so many are not free: what is allocated first lies last.  An
 * offer: without memory for it there may be some for less.  0 takes it back. */
static inline void memory_pool_reserve(struct memory *m, size_t n)
{
	m->pool.wanted = n;
}

/* A change begins with memory_pool_mark().  If it is refused, and has freed its blocks, memory_pool_trim() frees the
 * chunk that it has added: the pool is no larger than at the mark. */
static inline void memory_pool_mark(struct memory *m)
{
	m->pool.had_idle = m->pool.idle;
}

void memory_pool_trim(struct memory *m);

static inline uint64_t memory_blocks(const struct memory *m)
{
	return atomic_load_explicit(&m->blocks, memory_order_relaxed) +
	       atomic_load_explicit(&m->pool.blocks, memory_order_relaxed);
}

#endif
