/* SPDX-License-Identifier: MIT */
/*
 * memory.c - see memory.h for the invariants P1 to P5.
 */
#define _DEFAULT_SOURCE /* madvise(), MAP_ANONYMOUS */
#include "memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if MS_ADDRESS_SANITIZED
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
#endif

#define HUGE_PAGE ((size_t)2 << 20)

void memory_init(struct memory *m)
{
	memset(m, 0, sizeof(*m));
}

void memory_fail(struct memory *m, uint64_t nth, bool onward)
{
	atomic_store_explicit(&m->attempts, 0, memory_order_relaxed);
	m->fail_from = nth;
	m->fail_onward = onward;
}

static bool must_fail(struct memory *m)
{
	uint64_t nth;

	if (likely(!m->fail_from))
		return false;
	nth = atomic_fetch_add_explicit(&m->attempts, 1, memory_order_relaxed) + 1;
	return m->fail_onward ? nth >= m->fail_from : nth == m->fail_from;
}

static void *count_in(struct memory *m, void *block, size_t size)
{
	if (block) {
		atomic_fetch_add_explicit(&m->bytes, size, memory_order_relaxed);
		atomic_fetch_add_explicit(&m->blocks, 1, memory_order_relaxed);
	}
	return block;
}

/* Random lookups in small pages also wait for address translations.  The rest that does not fill a huge page stays in
 * small pages. */
static void *alloc_huge(size_t size)
{
	void *block = size <= SIZE_MAX - HUGE_PAGE ? aligned_alloc(HUGE_PAGE, whole(size, HUGE_PAGE)) : NULL;

#ifdef MADV_HUGEPAGE
	if (block)
		madvise(block, size & ~(HUGE_PAGE - 1), MADV_HUGEPAGE); /* may fail: small pages are only slower */
#endif
	return block;
}

static void *alloc_lines(size_t size)
{
	return size < HUGE_PAGE ? aligned_alloc(CACHE_LINE, size) : alloc_huge(size);
}

/* calloc() does not touch the pages of a large bitmap, so they take no memory until a bit is set. */
void *memory_zalloc(struct memory *m, size_t size)
{
	return must_fail(m) ? NULL : count_in(m, calloc(1, size), size);
}

void *memory_alloc_lines(struct memory *m, size_t size)
{
	if (size > whole_lines(size)) /* the rounded size wraps */
		return NULL;
	size = whole_lines(size);
	return count_in(m, must_fail(m) ? NULL : alloc_lines(size), size);
}

/* From this size on a block has its own mapping.  calloc() promises neither the alignment nor fresh pages. */
#define LAZY_MIN ((size_t)64 << 10)

static void *map(size_t size)
{
	void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return block == MAP_FAILED ? NULL : block;
}

void *memory_zalloc_lazy(struct memory *m, size_t size)
{
	if (size < LAZY_MIN)
		return memory_zalloc_lines(m, size);
	return count_in(m, must_fail(m) ? NULL : map(size), size);
}

void *memory_zalloc_lines(struct memory *m, size_t size)
{
	void *block = memory_alloc_lines(m, size);

	if (block)
		memset(block, 0, whole_lines(size));
	return block;
}

#define POISON 0xDB

/* For tests: a late reader of a free block finds no plausible value.  Without the empty asm a compiler that knows
 * free() would drop the memset. */
static void fill_with_poison(void *block, size_t size)
{
	if (MEMORY_POISONS) {
		memset(block, POISON, size);
		__asm__ volatile("" : : "r"(block) : "memory");
	}
}

static void count_out(struct memory *m, size_t size)
{
	atomic_fetch_sub_explicit(&m->bytes, size, memory_order_relaxed);
	atomic_fetch_sub_explicit(&m->blocks, 1, memory_order_relaxed);
}

void memory_free(struct memory *m, void *block, size_t size)
{
	if (!block)
		return;
	count_out(m, size);
	fill_with_poison(block, size);
	free(block);
}

/* A late reader of a block that had its own mapping ends in a fault, so it needs no poison. */
void memory_free_lazy(struct memory *m, void *block, size_t size)
{
	if (block && size >= LAZY_MIN) {
		count_out(m, size);
		munmap(block, size);
	} else {
		memory_free_lines(m, block, size);
	}
}

void memory_free_lines(struct memory *m, void *block, size_t size)
{
	memory_free(m, block, whole_lines(size));
}

/* ---- the pool ---- */

struct memory_chunk {
	cache_aligned struct rb_node node;    /* in `chunks` */
	struct memory_chunk *next, *previous; /* in `open` */
	void *free;                           /* free blocks, linked by their last words */
	uint32_t fresh, used, room;           /* in blocks; room counts all */
	uint32_t size;                        /* of a block, in bytes */
};

_Static_assert(sizeof(struct memory_chunk) == CACHE_LINE, "the head of a chunk is one line");

/* The last word of a block: its chunk while the block is in use, the next free block while it is in the free list. */
static void **word_of(void *block, size_t size)
{
	return (void **)(void *)((char *)block + size - MEMORY_POOL_WORD);
}

/* A free block keeps the poison until it is allocated again.  ThreadSanitizer sees the memset, and so reports the race
 * with a late reader. */
static void poison_block(void *block, size_t size)
{
	fill_with_poison(block, size - MEMORY_POOL_WORD);
	ASAN_POISON_MEMORY_REGION(block, size - MEMORY_POOL_WORD);
}

static void unpoison_block(void *block, size_t size)
{
	ASAN_UNPOISON_MEMORY_REGION(block, size - MEMORY_POOL_WORD);
	if (MEMORY_POISONS)
		for (size_t i = 0; i < size - MEMORY_POOL_WORD; i++)
			if (((unsigned char *)block)[i] != POISON)
				abort(); /* a write to a free block */
}

/*
 * If the nodes of a tree are allocated in its order, the nodes of its upper levels lie at equal distances.  With most
 * distances they share a few sets of a cache.  A spare line after each SCATTER blocks spreads them over more sets.
 */
#define SCATTER 64

static size_t offset_of_block(size_t size, size_t i)
{
	return sizeof(struct memory_chunk) + i * size + i / SCATTER * CACHE_LINE;
}

static void *block_at(struct memory_chunk *chunk, size_t size, size_t i)
{
	return (char *)chunk + offset_of_block(size, i);
}

static size_t chunk_size(size_t size, size_t room)
{
	return offset_of_block(size, room);
}

/* The number of the block at the offset, or of one near it where none is. */
static size_t block_near(size_t size, size_t offset)
{
	size_t row = SCATTER * size + CACHE_LINE, from = offset - sizeof(struct memory_chunk);

	return from / row * SCATTER + from % row / size;
}

/* ---- chunks by address ---- */

static struct memory_chunk *chunk_of_node(struct rb_node *node)
{
	return container_of(node, struct memory_chunk, node);
}

static void hang_chunk(struct memory_pool *pool, struct memory_chunk *chunk)
{
	struct rb_node *parent = NULL, *node = pool->chunks.node;
	int dir = 0;

	while (node) {
		parent = node;
		dir = (uintptr_t)node < (uintptr_t)&chunk->node;
		node = node->child[dir];
	}
	rb_insert(&pool->chunks, parent, dir, &chunk->node);
}

/* The last chunk that begins before the address, or NULL. */
static const struct memory_chunk *chunk_before(const struct memory_pool *pool, uintptr_t address)
{
	struct rb_node *node = pool->chunks.node, *before = NULL;

	while (node) {
		bool right = (uintptr_t)node < address;

		before = right ? node : before;
		node = node->child[right];
	}
	return before ? chunk_of_node(before) : NULL;
}

bool memory_pool_has(const struct memory *m, const void *block, size_t size)
{
	const struct memory_chunk *chunk = chunk_before(&m->pool, (uintptr_t)block);
	size_t offset = chunk ? (uintptr_t)block - (uintptr_t)chunk : 0, i;

	if (offset < sizeof(*chunk) || offset >= chunk_size(size, chunk->room))
		return false;
	i = block_near(size, offset);
	return i >= chunk->fresh && i < chunk->room && offset_of_block(size, i) == offset &&
	       *word_of((char *)chunk + offset, size) == chunk; /* P5 */
}

/* ---- chunks with a free block ---- */

static void open_chunk(struct memory_pool *pool, struct memory_chunk *chunk)
{
	chunk->previous = NULL;
	chunk->next = pool->open;
	if (pool->open)
		pool->open->previous = chunk;
	pool->open = chunk;
}

static void close_chunk(struct memory_pool *pool, struct memory_chunk *chunk)
{
	if (chunk->next)
		chunk->next->previous = chunk->previous;
	if (chunk->previous)
		chunk->previous->next = chunk->next;
	else
		pool->open = chunk->next;
}

static void count_chunk(struct memory *m, size_t size, size_t room, bool more)
{
	uint64_t bytes = chunk_size(size, room);

	atomic_fetch_add_explicit(&m->bytes, more ? bytes : -bytes, memory_order_relaxed);
	m->pool.bytes += more ? bytes : -bytes;
	m->pool.room += more ? room : -room;
}

static struct memory_chunk *add_chunk(struct memory *m, size_t size, size_t room)
{
	struct memory_chunk *chunk = NULL;

	/* The spare lines are at most a byte a block. */
	if (room <= UINT32_MAX && room <= (SIZE_MAX - sizeof(*chunk)) / (size + 1))
		chunk = alloc_lines(chunk_size(size, room));
	if (!chunk)
		return NULL;
	*chunk = (struct memory_chunk){
		.fresh = (uint32_t)room,
		.room = (uint32_t)room,
		.size = (uint32_t)size,
	};
	for (size_t i = 0; MEMORY_POISONS && i < room; i++)
		poison_block(block_at(chunk, size, i), size);
	count_chunk(m, size, room, true);
	hang_chunk(&m->pool, chunk);
	open_chunk(&m->pool, chunk);
	return chunk;
}

static void drop_chunk(struct memory *m, struct memory_chunk *chunk)
{
	count_chunk(m, chunk->size, chunk->room, false);
	close_chunk(&m->pool, chunk);
	rb_erase(&m->pool.chunks, &chunk->node);
	ASAN_UNPOISON_MEMORY_REGION(chunk, chunk_size(chunk->size, chunk->room));
	free(chunk);
}

static size_t clamp(uint64_t n, size_t least, size_t most)
{
	return n < least ? least : n > most ? most : n;
}

/* A small pool grows by 4, 8 or 16 blocks, so that the heads of chunks cost little memory.  From 64 blocks on a new
 * chunk is at most a sixteenth of the pool. */
static size_t next_room(const struct memory_pool *pool)
{
	if (pool->room < 64)
		return pool->room < 16 ? MEMORY_POOL_CHUNK_MIN : pool->room < 32 ? 8 : 16;
	return clamp(pool->room / 16, MEMORY_POOL_CHUNK_MIN, MEMORY_POOL_CHUNK_MAX);
}

static void *take_block(struct memory_chunk *chunk, size_t size)
{
	void *block = chunk->free;

	if (block)
		chunk->free = *word_of(block, size);
	else
		block = block_at(chunk, size, --chunk->fresh);
	chunk->used++;
	*word_of(block, size) = chunk;
	return block;
}

/* If the chunk of the reserved size cannot be allocated, a smaller one is tried. */
static struct memory_chunk *chunk_for_next(struct memory *m, size_t size)
{
	struct memory_pool *pool = &m->pool;
	size_t wanted = pool->wanted;

	pool->wanted = 0;
	if (unlikely(wanted > pool->room - atomic_load_explicit(&pool->blocks, memory_order_relaxed)))
		add_chunk(m, size, wanted);
	return likely(pool->open) ? pool->open : add_chunk(m, size, next_room(pool));
}

void *memory_pool_alloc(struct memory *m, size_t size)
{
	struct memory_pool *pool = &m->pool;
	struct memory_chunk *chunk = must_fail(m) ? NULL : chunk_for_next(m, size);
	void *block;

	if (unlikely(!chunk))
		return NULL;
	block = take_block(chunk, size);
	if (chunk->used == chunk->room)
		close_chunk(pool, chunk);
	if (chunk == pool->idle)
		pool->idle = NULL;
	count_add(&pool->blocks, 1);
	unpoison_block(block, size);
	return block;
}

static void drop_idle(struct memory *m)
{
	drop_chunk(m, m->pool.idle);
	m->pool.idle = NULL;
}

/* Keeps P3. */
static void chunk_is_idle(struct memory *m, struct memory_chunk *chunk)
{
	struct memory_pool *pool = &m->pool;

	if (pool->idle && pool->idle->room <= chunk->room) {
		drop_chunk(m, chunk);
	} else {
		if (pool->idle)
			drop_idle(m);
		pool->idle = chunk;
	}
	if (!atomic_load_explicit(&pool->blocks, memory_order_relaxed))
		drop_idle(m);
}

void memory_pool_trim(struct memory *m)
{
	if (m->pool.idle && !m->pool.had_idle)
		drop_idle(m);
}

void memory_pool_free(struct memory *m, void *block, size_t size)
{
	struct memory_chunk *chunk;

	if (!block)
		return;
	chunk = *word_of(block, size);
	if (chunk->used-- == chunk->room)
		open_chunk(&m->pool, chunk);
	*word_of(block, size) = chunk->free;
	chunk->free = block;
	poison_block(block, size);
	count_add(&m->pool.blocks, -(uint64_t)1);
	if (unlikely(!chunk->used))
		chunk_is_idle(m, chunk);
}
