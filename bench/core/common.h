/* SPDX-License-Identifier: MIT */
/* common.h - shared by the programs of bench/core: a clock, seeded numbers, seeded slots, streams of gfns. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "include/memslots.h"

#define HOT_RUN 64 /* lookups in one slot before the stream changes to another, as in memslots.lab.layouts */
#define NPAGES_MAX 512
#define HOLE_MAX 128 /* holes are on average a fifth of all frames */

/* splitmix64; its quality is good enough for a remainder. */
static inline uint64_t random_of(uint64_t *state)
{
	uint64_t x = *state += 0x9E3779B97F4A7C15u;

	x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
	x = (x ^ x >> 27) * 0x94D049BB133111EBu;
	return x ^ x >> 31;
}

static uint64_t random_state = 20211206; /* of the main thread */

static inline uint64_t random_below(uint64_t n)
{
	return random_of(&random_state) % n;
}

/* Processor time of this thread: no code here waits, and the time of other processes does not count. */
static inline double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static inline void *must(void *p)
{
	if (!p) {
		fputs("out of memory\n", stderr);
		exit(1);
	}
	return p;
}

/* End the program at a wrong answer, because the times are then worthless. */
static inline void check(bool right, const char *what)
{
	if (!right) {
		fprintf(stderr, "wrong answer: %s\n", what);
		exit(1);
	}
}

static inline void shuffle(void **items, size_t n)
{
	for (size_t i = n; i > 1; i--) {
		size_t j = random_below(i);
		void *item = items[i - 1];

		items[i - 1] = items[j];
		items[j] = item;
	}
}

/* Slots of 1 to NPAGES_MAX pages with holes, in order of gfn, with shuffled ids.  Returns the end of the last slot. */
static inline uint64_t make_slots(struct ms_memslot *slots, size_t n)
{
	uint64_t gfn = 0;

	for (size_t i = 0; i < n; i++) {
		size_t j = random_below(i + 1);

		slots[i] = (struct ms_memslot){ .base_gfn = gfn,
						.npages = 1 + random_below(NPAGES_MAX),
						.userspace_addr = gfn << 12 };
		gfn += slots[i].npages + random_below(HOLE_MAX);
		slots[i].id = slots[j].id;
		slots[j].id = (uint32_t)i;
	}
	return gfn;
}

/* The slot that contains the gfn, or NULL.  The slots are in order of gfn. */
static inline const struct ms_memslot *slot_of_gfn(const struct ms_memslot *slots, size_t n, uint64_t gfn)
{
	size_t low = 0, high = n;

	while (high - low > 1) {
		size_t middle = (low + high) / 2;

		*(slots[middle].base_gfn <= gfn ? &low : &high) = middle;
	}
	return gfn - slots[low].base_gfn < slots[low].npages ? &slots[low] : NULL;
}

static inline uint64_t right_hva(const struct ms_memslot *slots, size_t n, uint64_t gfn)
{
	const struct ms_memslot *slot = slot_of_gfn(slots, n, gfn);

	return slot ? slot->userspace_addr + ((gfn - slot->base_gfn) << 12) : MS_HVA_ERR_BAD;
}

static inline void random_gfns(uint64_t *gfns, size_t count, uint64_t end)
{
	for (size_t i = 0; i < count; i++)
		gfns[i] = random_below(end);
}

static inline void hot_gfns(uint64_t *gfns, size_t count, const struct ms_memslot *slots, size_t n)
{
	const struct ms_memslot *slot = slots;

	for (size_t i = 0; i < count; i++) {
		if (i % HOT_RUN == 0)
			slot = &slots[random_below(n)];
		gfns[i] = slot->base_gfn + random_below(slot->npages);
	}
}

static inline struct ms_vm *make_vm(const struct ms_memslot *slots, size_t n)
{
	struct ms_config config;
	struct ms_vm *vm;

	ms_config_init(&config);
	if (n > config.user_mem_slots)
		config.user_mem_slots = (uint32_t)n;
	check(!ms_vm_create(&config, &vm) && !ms_load_memslots(vm, 0, slots, n, NULL), "a VM and its slots");
	return vm;
}

#endif
