/* SPDX-License-Identifier: MIT */
/*
 * memory.h - allocates the memory of one VM, counts it, and lets tests make allocations fail.
 *
 * Every block of the engine comes from here, so that a test can prove that nothing leaks and can make the n-th
 * allocation fail.  The caller that frees a block passes its size.
 *
 * The pool allocates blocks of one size.  They lie side by side in chunks, with a spare cache line here and there.  So
 * a walk over a million blocks has good locality.  A block of the pool is counted, and can be made to fail, like any
 * other block.  A chunk adds only its bytes to the counters; if it cannot be allocated, the block that needs it
 * fails.  At most one chunk without a used block is kept, and none when no block is in use.  The chunks are also in a
 * tree by address, for memory_pool_has().
 *
 * Invariants of a pool
 *   P1  `open` lists each chunk that has a free block, once, and no other chunk;
 *   P2  the first `fresh` blocks of a chunk were never in use; `used` of the others are in use; `free` lists the rest;
 *   P3  `idle` is the only chunk without a block in use, or NULL; no chunk is left when `blocks` is 0.  Of two
 *       chunks without a block in use, the smaller one stays;
 *   P4  `chunks` holds each chunk once, by ascending address;
 *   P5  the last word of a block is its chunk while the block is in use, and never otherwise.
 *
 * Locking: a pool has one user at a time (slots_lock); any thread may make the other calls.
 * Ordering: the counters are statistics, relaxed (row "counters" of docs/locking.md).
 */
#ifndef MS_MEMORY_H
#define MS_MEMORY_H

#include <stdatomic.h>

#include "rbtree.h"

/* If 1, free blocks are overwritten.  An allocation from the pool checks that nobody has written to its block since. */
#if defined(MEMSLOTS_POISON) || MS_SANITIZED
#define MEMORY_POISONS 1
#else
#define MEMORY_POISONS 0
#endif

/* Adds to a counter that one thread at a time changes, so no read-modify-write is needed.  Row "counters". */
static inline void count_add(_Atomic uint64_t *count, uint64_t n)
{
	atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + n, memory_order_relaxed);
}

struct memory_chunk;

struct memory_pool {
	struct memory_chunk *open; /* the next block comes from the first chunk of this list */
	struct memory_chunk *idle;
	bool had_idle;             /* memory_pool_mark() */
	struct rb_root chunks;     /* by address */
	uint64_t room;             /* the sum over all chunks, in blocks */
	uint64_t bytes;            /* the sum over all chunks */
	size_t wanted;             /* memory_pool_reserve() */
	_Atomic uint64_t blocks;   /* in use; row "counters" */
};

struct memory {
	_Atomic uint64_t bytes;
	_Atomic uint64_t blocks;   /* without those of the pool, which counts its own */
	_Atomic uint64_t attempts; /* allocations since memory_fail(), while fail_from is not 0 */
	uint64_t fail_from;        /* the fail_from-th allocation fails, counted from 1; 0: none */
	bool fail_onward;          /* every later allocation fails too */
	struct memory_pool pool;
};

void memory_init(struct memory *m);

/* Makes the nth allocation from now on fail, and all later ones too if `onward`.  No other thread may allocate during
 * the call. */
void memory_fail(struct memory *m, uint64_t nth, bool onward);

/* The block is zeroed.  NULL: no memory. */
void *memory_zalloc(struct memory *m, size_t size);
void *memory_zalloc_lines(struct memory *m, size_t size); /* starts on a cache line; size is rounded up to lines */
void *memory_alloc_lines(struct memory *m, size_t size); /* the same, but the block is not zeroed */
/* Zeroed, on a cache line.  A large block is not touched, so its pages take no memory until they are used. */
void *memory_zalloc_lazy(struct memory *m, size_t size);
void memory_free(struct memory *m, void *block, size_t size);
void memory_free_lazy(struct memory *m, void *block, size_t size);
void memory_free_lines(struct memory *m, void *block, size_t size);

/* The last word of a block of the pool belongs to the pool. */
#define MEMORY_POOL_WORD sizeof(void *)

/* The number of blocks of a chunk. */
#define MEMORY_POOL_CHUNK_MIN 4
#define MEMORY_POOL_CHUNK_MAX 256

/* The size rounded up to a multiple of `part`, a power of two; and to whole cache lines.  It wraps near SIZE_MAX. */
static inline size_t whole(size_t size, size_t part)
{
	return (size + part - 1) & ~(part - 1);
}

static inline size_t whole_lines(size_t size)
{
	return whole(size, CACHE_LINE);
}

/* The block starts on a cache line and is not zeroed.  `size` is the same in all calls: a multiple of CACHE_LINE. */
void *memory_pool_alloc(struct memory *m, size_t size);
void memory_pool_free(struct memory *m, void *block, size_t size);

/* Returns whether `block` is a block of the pool that is in use.  `block` may be any number: the function reads nothing
 * through a pointer that is no block.  O(log chunks). */
bool memory_pool_has(const struct memory *m, const void *block, size_t size);

/* If fewer than n blocks are free, the next allocation first tries to add a chunk of n blocks.  Without memory for it,
 * blocks come from smaller chunks.  A new chunk is used from its last block to its first.  n = 0 cancels. */
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
