/* SPDX-License-Identifier: MIT */
/*
 * test_memory.c - blocks are zeroed, aligned and counted, and fail on request; the blocks of a pool are adjacent.
 */
#include "test.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory.h"

static struct memory memory;
static uint64_t blocks;

static uint64_t bytes_now(void)
{
	return atomic_load(&memory.bytes);
}

static uint64_t blocks_now(void)
{
	return atomic_load(&memory.blocks);
}

static void check_zero(const unsigned char *block, size_t size)
{
	for (size_t i = 0; i < size; i++)
		CHECK_EQ(block[i], 0);
	blocks++;
}

static size_t rounded(size_t size)
{
	return (size + 63) / 64 * 64;
}

/* Fills the block and frees it, so that the next block of this size would show the bytes. */
static void one_block(size_t size, bool lines)
{
	void *block = lines ? memory_zalloc_lines(&memory, size) : memory_zalloc(&memory, size);
	size_t counted = lines ? rounded(size) : size;

	CHECK(block);
	CHECK_EQ(bytes_now(), counted);
	CHECK_EQ(blocks_now(), 1);
	CHECK(!lines || (uintptr_t)block % CACHE_LINE == 0);
	check_zero(block, counted);
	memset(block, 0xA5, counted);
	if (lines)
		memory_free_lines(&memory, block, size);
	else
		memory_free(&memory, block, size);
	CHECK_EQ(bytes_now() + blocks_now(), 0);
}

static void every_size(void)
{
	CHECK_EQ(CACHE_LINE, 64);
	for (size_t size = 1; size <= 300; size++)
		for (int round = 0; round < 4; round++)
			one_block(size, round & 1);
	one_block(1 << 20, false);
	one_block((1 << 20) + 1, true);
	for (int past = -CACHE_LINE; past <= 1; past++) { /* where huge pages begin */
		one_block((size_t)((2 << 20) + past), true);
		one_block((size_t)((5 << 20) + past), true);
	}
	for (size_t short_of_all = 0; short_of_all < (2 << 20); short_of_all += 4096)
		CHECK(!memory_zalloc_lines(&memory, SIZE_MAX - short_of_all));
	CHECK_EQ(bytes_now() + blocks_now(), 0);
}

/* The pages of a large block take no memory before they are used. */
static void check_untouched(void *block, size_t size)
{
	unsigned char resident[64];

	CHECK(size <= sizeof(resident) * 4096);
	CHECK_EQ(mincore(block, size, resident), 0);
	for (size_t i = 0; i < (size + 4095) / 4096; i++)
		CHECK_EQ(resident[i] & 1, 0);
}

static void one_lazy_block(size_t size, size_t counted)
{
	unsigned char *block = memory_zalloc_lazy(&memory, size);

	CHECK(block);
	CHECK_EQ((uintptr_t)block % CACHE_LINE, 0);
	CHECK_EQ(bytes_now(), counted);
	CHECK_EQ(blocks_now(), 1);
	if (size >= 64 << 10)
		check_untouched(block, size);
	check_zero(block, size);
	memset(block, 0xA5, size);
	memory_free_lazy(&memory, block, size);
	CHECK_EQ(bytes_now() + blocks_now(), 0);
}

static void lazy_blocks(void)
{
	size_t limit = 64 << 10;

	for (size_t size = 1; size <= 300; size++)
		one_lazy_block(size, rounded(size));
	for (int round = 0; round < 20; round++) {
		one_lazy_block(limit - 65, limit - 64);
		one_lazy_block(limit, limit);
		one_lazy_block(limit + 1, limit + 1);
		one_lazy_block(3 * limit + 100, 3 * limit + 100);
	}
	memory_free_lazy(&memory, NULL, 1);
	memory_free_lazy(&memory, NULL, limit);
	CHECK(!memory_zalloc_lazy(&memory, SIZE_MAX));
	for (size_t size = 100; size <= limit; size += limit - 100) {
		memory_fail(&memory, 1, false);
		CHECK(!memory_zalloc_lazy(&memory, size));
		memory_fail(&memory, 0, false);
	}
	CHECK_EQ(bytes_now() + blocks_now(), 0);
}

static void counters(void)
{
	enum { NR = 100 };
	void *block[NR];
	size_t sum = 0;

	for (size_t i = 0; i < NR; i++) {
		block[i] = i % 2 ? memory_zalloc(&memory, i + 1) : memory_zalloc_lines(&memory, i + 1);
		sum += i % 2 ? i + 1 : rounded(i + 1);
		CHECK_EQ(bytes_now(), sum);
		CHECK_EQ(blocks_now(), i + 1);
	}
	for (size_t i = 0; i < NR; i += 2) {
		memory_free_lines(&memory, block[i], i + 1);
		memory_free(&memory, block[i + 1], i + 2);
		sum -= rounded(i + 1) + i + 2;
		CHECK_EQ(bytes_now(), sum);
	}
	CHECK_EQ(sum + blocks_now(), 0);
	memory_free(&memory, NULL, 100);
	memory_free_lines(&memory, NULL, 100);
	CHECK_EQ(bytes_now() + blocks_now(), 0);
}

/* True if the i-th allocation succeeds; both kinds take turns. */
static bool succeeds(unsigned i)
{
	void *block = i % 2 ? memory_zalloc(&memory, 10) : memory_zalloc_lines(&memory, 10);

	CHECK_EQ(blocks_now(), block != NULL);
	if (i % 2)
		memory_free(&memory, block, 10);
	else
		memory_free_lines(&memory, block, 10);
	CHECK_EQ(bytes_now() + blocks_now(), 0);
	blocks++;
	return block != NULL;
}

static void failures(void)
{
	enum { NR = 20 };

	for (unsigned nth = 0; nth <= NR; nth++)
		for (int onward = 0; onward < 2; onward++) {
			memory_fail(&memory, nth, onward);
			for (unsigned i = 1; i <= NR; i++)
				CHECK_EQ(succeeds(i), !nth || (onward ? i < nth : i != nth));
			CHECK_EQ(atomic_load(&memory.attempts), nth ? NR : 0);
		}
	memory_fail(&memory, 1, true);
	CHECK(!succeeds(1));
	memory_fail(&memory, 0, false);
	CHECK(succeeds(1));
}

/* Sizes that would overflow when rounded up to cache lines. */
static void too_large(void)
{
	CHECK(!memory_zalloc_lines(&memory, SIZE_MAX));
	CHECK(!memory_zalloc_lines(&memory, SIZE_MAX - CACHE_LINE + 2));
	CHECK_EQ(bytes_now() + blocks_now(), 0);
}

/* ---- the pool ---- */

#define BLOCK 192
#define POOL_MAX 3000

static unsigned char *pooled[POOL_MAX];
static size_t nr_pooled;

static const struct memory_pool *pool = &memory.pool;

/* Fills the block with bytes of its own, except for the pool's word. */
static void mark(unsigned char *block)
{
	CHECK_EQ((uintptr_t)block % CACHE_LINE, 0);
	for (size_t i = 0; i + sizeof(block) <= BLOCK - MEMORY_POOL_WORD; i += sizeof(block))
		memcpy(block + i, &block, sizeof(block));
}

static void check_mark(const unsigned char *block)
{
	for (size_t i = 0; i + sizeof(block) <= BLOCK - MEMORY_POOL_WORD; i += sizeof(block))
		CHECK(!memcmp(block + i, &block, sizeof(block)));
	blocks++;
}

static void check_pool(void)
{
	CHECK_EQ(atomic_load(&pool->blocks), nr_pooled);
	CHECK_EQ(memory_blocks(&memory), nr_pooled);
	CHECK_EQ(bytes_now(), pool->bytes);
	CHECK(pool->room >= nr_pooled);
	CHECK(pool->bytes >= pool->room * BLOCK);
	CHECK(!nr_pooled == !pool->bytes);
	CHECK(nr_pooled || !pool->open);
}

static bool has(const void *block)
{
	return memory_pool_has(&memory, block, BLOCK);
}

static void pool_take(void)
{
	unsigned char *block = memory_pool_alloc(&memory, BLOCK);

	CHECK(block);
	CHECK(has(block));
	mark(block);
	pooled[nr_pooled++] = block;
}

static void pool_give(size_t i)
{
	check_mark(pooled[i]);
	memory_pool_free(&memory, pooled[i], BLOCK);
	CHECK(!has(pooled[i]));
	pooled[i] = pooled[--nr_pooled];
}

/* Takes and gives blocks at random, starting and ending with none: no two blocks overlap, and none leaks. */
static void pool_at_random(void)
{
	struct rng rng = rng_stream(7);

	for (uint64_t round = test_times(60); round; round--) {
		size_t target = rng_below(&rng, 3) ? rng_below(&rng, 40) : rng_below(&rng, POOL_MAX);

		if (rng_below(&rng, 2))
			memory_pool_reserve(&memory, rng_below(&rng, 50));
		while (nr_pooled != target) {
			bool more = rng_below(&rng, 8) ? nr_pooled < target : nr_pooled == 0;

			if (more && nr_pooled < POOL_MAX)
				pool_take();
			else if (nr_pooled)
				pool_give(rng_below(&rng, nr_pooled));
			check_pool();
		}
	}
	while (nr_pooled)
		pool_give(0);
	check_pool();
}

/* Addresses descend: the blocks of a chunk are adjacent, with a cache line between some. */
static bool is_below(const unsigned char *block, const unsigned char *before)
{
	return block == before - BLOCK || block == before - BLOCK - CACHE_LINE;
}

/* A reserve is one chunk without spare room. */
static void pool_reserved(void)
{
	size_t spare = 0;

	memory_pool_reserve(&memory, POOL_MAX - 1);
	for (size_t i = 0; i < POOL_MAX - 1; i++) {
		pool_take();
		CHECK(!i || is_below(pooled[i], pooled[i - 1]));
		spare += i && pooled[i] != pooled[i - 1] - BLOCK;
		CHECK_EQ(pool->room, POOL_MAX - 1);
	}
	CHECK(spare > POOL_MAX / 100 && spare < POOL_MAX / 20);
	pool_take();
	CHECK(pool->room > POOL_MAX && pool->room <= POOL_MAX + MEMORY_POOL_CHUNK_MAX);
	pool_give(nr_pooled - 1); /* the chunk with one block becomes idle, and serves the reserve */
	memory_pool_reserve(&memory, 3);
	pool_take();
	CHECK(pool->room <= POOL_MAX + MEMORY_POOL_CHUNK_MAX);
	while (nr_pooled)
		pool_give(nr_pooled / 2);
	check_pool();
	memory_pool_reserve(&memory, 1000);
	memory_pool_reserve(&memory, 0);
	pool_take();
	CHECK_EQ(pool->room, MEMORY_POOL_CHUNK_MIN);
	pool_give(0);
	memory_pool_free(&memory, NULL, BLOCK);
	check_pool();
}

/* Chunks grow with the pool; each is freed with its last block, except for one. */
static void pool_shrinks(void)
{
	uint64_t full;

	while (nr_pooled < POOL_MAX)
		pool_take();
	full = pool->room;
	CHECK(full <= POOL_MAX + POOL_MAX / 8);
	for (size_t left = POOL_MAX / 2; nr_pooled > left;)
		pool_give(nr_pooled - 1); /* the newest blocks, which fill their chunks */
	CHECK(pool->room <= full - POOL_MAX / 2 + 2 * MEMORY_POOL_CHUNK_MAX);
	while (nr_pooled)
		pool_give(nr_pooled - 1);
	check_pool();
}

/* Freed blocks of full chunks are reused before a chunk is added. */
static void pool_reuses(void)
{
	struct rng rng = rng_stream(8);
	uint64_t full;

	while (nr_pooled < POOL_MAX)
		pool_take();
	full = pool->room;
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 300; i++)
			pool_give(rng_below(&rng, nr_pooled));
		for (int i = 0; i < 300; i++)
			pool_take();
		CHECK_EQ(pool->room, full);
	}
	while (nr_pooled)
		pool_give(0);
	check_pool();
}

/* ---- which addresses are blocks in use ---- */

static bool is_pooled(const unsigned char *address)
{
	for (size_t i = 0; i < nr_pooled; i++)
		if (pooled[i] == address)
			return true;
	return false;
}

/* All of them as numbers: most point to nothing. */
static void check_around(const unsigned char *block)
{
	for (intptr_t away = -3 * BLOCK; away <= 3 * BLOCK; away += 8) {
		const unsigned char *address = (const unsigned char *)((intptr_t)block + away);

		CHECK_EQ(has(address), is_pooled(address));
	}
}

static bool is_below_in_memory(const struct rb_root *root, const struct rb_node *a, const struct rb_node *b)
{
	(void)root;
	return (uintptr_t)a < (uintptr_t)b;
}

/* Blocks in use, blocks that were freed, blocks that were never handed out, and what is around the chunks. */
static void pool_membership(void)
{
	struct rng rng = rng_stream(9);
	struct memory other;
	void *apart = malloc(BLOCK), *theirs;

	memory_init(&other);
	theirs = memory_pool_alloc(&other, BLOCK);
	CHECK(!has(theirs) && !has(NULL)); /* of an empty pool */
	memory_pool_reserve(&memory, 200);
	while (nr_pooled < 700)
		pool_take();
	for (int i = 0; i < 350; i++)
		pool_give(rng_below(&rng, nr_pooled));
	CHECK_EQ(rb_check(&pool->chunks, is_below_in_memory), 0);
	for (size_t i = 0; i < nr_pooled; i += 7)
		check_around(pooled[i]);
	CHECK(!has(NULL) && !has((void *)1) && !has((void *)UINTPTR_MAX) && !has(&memory) && !has(apart));
	CHECK(!has(theirs) && memory_pool_has(&other, theirs, BLOCK));
	memory_pool_free(&other, theirs, BLOCK);
	CHECK(!memory_pool_has(&other, theirs, BLOCK));
	free(apart);
	while (nr_pooled)
		pool_give(0);
	CHECK(!pool->chunks.node);
}

/* A block of the pool fails by number like other allocations; so does a block without memory for its chunk. */
static void pool_failures(void)
{
	memory_fail(&memory, 3, false);
	pool_take();
	memory_free(&memory, memory_zalloc(&memory, 1), 1);
	CHECK(!memory_pool_alloc(&memory, BLOCK));
	pool_take();
	CHECK_EQ(atomic_load(&memory.attempts), 4);
	memory_fail(&memory, 0, false);
	memory_pool_reserve(&memory, SIZE_MAX / BLOCK); /* overflows with its header */
	pool_take();
	CHECK_EQ(pool->room, MEMORY_POOL_CHUNK_MIN);
	while (nr_pooled)
		pool_give(0);
	check_pool();
}

#if MEMORY_POISONS
/* Ends the child in the way in which this build detects the access. */
static void misuse(bool write)
{
	volatile unsigned char *block = memory_pool_alloc(&memory, BLOCK), *other = memory_pool_alloc(&memory, BLOCK);

	memory_pool_free(&memory, (void *)(uintptr_t)block, BLOCK);
	if (write)
		block[BLOCK / 2] = 0;
	else
		blocks += block[BLOCK / 2];
	memory_pool_alloc(&memory, BLOCK);
	blocks += other[0] & 0;
}

static void pool_poison(bool write)
{
	int status;
	pid_t child = fork();

	if (!child) {
		CHECK(freopen("/dev/null", "w", stderr));
		misuse(write);
		_exit(0);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK(!WIFEXITED(status) || WEXITSTATUS(status));
}
#endif

static void test_pool(void)
{
	pool_at_random();
	pool_reserved();
	pool_shrinks();
	pool_reuses();
	pool_membership();
	pool_failures();
#if MEMORY_POISONS
	pool_poison(true);
#if MS_ADDRESS_SANITIZED
	pool_poison(false);
#endif
#endif
}

/* ---- threads ---- */

#define THREADS 4
#define THREAD_TIMES test_times(1500000) /* enough for the threads to overlap */

static pthread_barrier_t together;

static void *allocate_much(void *unused)
{
	pthread_barrier_wait(&together);
	for (uint64_t i = THREAD_TIMES; i; i--)
		memory_free(&memory, memory_zalloc(&memory, 32), 32);
	return unused;
}

/* The counters lose nothing. */
static void threads(void)
{
	pthread_t thread[THREADS];

	memory_fail(&memory, UINT64_MAX, false);
	CHECK_EQ(pthread_barrier_init(&together, NULL, THREADS), 0);
	for (int i = 0; i < THREADS; i++)
		CHECK_EQ(pthread_create(&thread[i], NULL, allocate_much, NULL), 0);
	for (int i = 0; i < THREADS; i++)
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
	CHECK_EQ(atomic_load(&memory.attempts), THREADS * THREAD_TIMES);
	CHECK_EQ(bytes_now() + blocks_now(), 0);
	CHECK_EQ(pthread_barrier_destroy(&together), 0);
	blocks += atomic_load(&memory.attempts);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	memset(&memory, 0xA5, sizeof(memory));
	memory_init(&memory);
	CHECK_EQ(bytes_now() + blocks_now() + atomic_load(&memory.attempts), 0);
	every_size();
	lazy_blocks();
	counters();
	failures();
	too_large();
	test_pool();
	threads();
	return test_done("memory", blocks, "blocks");
}
