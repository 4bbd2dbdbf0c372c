/* SPDX-License-Identifier: MIT */
/*
 * test_memory.c - blocks are zeroed, aligned and counted, and fail when they are told to.
 */
#include "test.h"

#include <pthread.h>

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

/* Dirtied and freed, so that the next block of the size would show it. */
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

/* -> does the i-th of a row of allocations, of both kinds in turn, succeed? */
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
			CHECK_EQ(atomic_load(&memory.asked), NR);
		}
	memory_fail(&memory, 1, true);
	CHECK(!succeeds(1));
	memory_fail(&memory, 0, false);
	CHECK(succeeds(1));
}

/* Sizes that would wrap in whole lines. */
static void too_large(void)
{
	CHECK(!memory_zalloc_lines(&memory, SIZE_MAX));
	CHECK(!memory_zalloc_lines(&memory, SIZE_MAX - CACHE_LINE + 2));
	CHECK_EQ(bytes_now() + blocks_now(), 0);
}

#define THREADS 4
#define THREAD_TIMES test_times(1500000) /* long enough for the threads to meet */

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

	memory_fail(&memory, 0, false);
	CHECK_EQ(pthread_barrier_init(&together, NULL, THREADS), 0);
	for (int i = 0; i < THREADS; i++)
		CHECK_EQ(pthread_create(&thread[i], NULL, allocate_much, NULL), 0);
	for (int i = 0; i < THREADS; i++)
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
	CHECK_EQ(atomic_load(&memory.asked), THREADS * THREAD_TIMES);
	CHECK_EQ(bytes_now() + blocks_now(), 0);
	CHECK_EQ(pthread_barrier_destroy(&together), 0);
	blocks += atomic_load(&memory.asked);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	memset(&memory, 0xA5, sizeof(memory));
	memory_init(&memory);
	CHECK_EQ(bytes_now() + blocks_now() + atomic_load(&memory.asked), 0);
	every_size();
	counters();
	failures();
	too_large();
	threads();
	return test_done("memory", blocks, "blocks");
}
