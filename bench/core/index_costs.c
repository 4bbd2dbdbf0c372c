/* SPDX-License-Identifier: MIT */
/*
 * index_costs.c - the cost of making an index, and of the lookups that it replaces, for bench/index_costs.py.
 *
 *   walked     the first index of a VM, made by a walk of the tree; the slots were loaded by one call
 *   scattered  the same where the slots were created one by one, in random order
 *   copied     the second index of a VM, copied from the first one
 *   by_walk    a lookup of a batch without an index
 *   by_index   a lookup of a batch by the index
 *
 * The first three are nanoseconds of one slot: the time of an index, divided by the number of slots.  All answers are
 * checked, and so are the numbers of indexes that were made by a walk and by a copy.
 *
 * index_costs ROUNDS N...: all numbers of slots take turns in each round, and each round makes new VMs.  Prints one
 * JSON object: for each number of slots and each figure an array with its value in each round.
 */
#define _POSIX_C_SOURCE 199309L
#include <string.h>

#include "vm_index.h"

#include "common.h"

#define BATCH 10000   /* lookups; longer batches of the index copy its marks first */
#define BATCHES 64    /* in each round, of all VMs together */
#define TOGETHER 4096 /* slots of all VMs of a round, which then fit into the second-level cache, or one VM */
#define VMS_MAX BATCHES

enum figure { WALKED, SCATTERED, COPIED, BY_WALK, BY_INDEX, NR_FIGURES };

static const char *const figure_name[NR_FIGURES] = { "walked", "scattered", "copied", "by_walk", "by_index" };

struct bench {
	size_t n, nr_vms;
	struct ms_memslot *slots;    /* by gfn */
	const struct ms_memslot **shuffled; /* the order of creation of a scattered VM */
	struct ms_vm *vms[VMS_MAX];
	uint64_t gfns[BATCH], hvas[BATCH], answers[BATCH];
	double *ns[NR_FIGURES];
};

/* ---- VMs ---- */

static void create(struct ms_vm *vm, const struct ms_memslot *slot)
{
	struct ms_userspace_memory_region region = { .slot = slot->id,
						     .guest_memfd = -1,
						     .guest_phys_addr = slot->base_gfn << 12,
						     .memory_size = slot->npages << 12,
						     .userspace_addr = slot->userspace_addr };

	check(!ms_set_user_memory_region(vm, &region, NULL), "a new slot");
}

static struct ms_vm *make_scattered_vm(const struct bench *b)
{
	struct ms_config config;
	struct ms_vm *vm;

	ms_config_init(&config);
	if (b->n > config.user_mem_slots)
		config.user_mem_slots = (uint32_t)b->n;
	check(!ms_vm_create(&config, &vm), "a VM");
	for (size_t i = 0; i < b->n; i++)
		create(vm, b->shuffled[i]);
	return vm;
}

static void make_vms(struct bench *b, bool scattered)
{
	for (size_t i = 0; i < b->nr_vms; i++)
		b->vms[i] = scattered ? make_scattered_vm(b) : make_vm(b->slots, b->n);
}

static void destroy_vms(struct bench *b)
{
	for (size_t i = 0; i < b->nr_vms; i++)
		ms_vm_destroy(b->vms[i]);
}

/* ---- figures ---- */

static void set_policy(const struct bench *b, enum ms_index_policy policy)
{
	for (size_t i = 0; i < b->nr_vms; i++)
		check(!ms_set_index_policy(b->vms[i], policy), "a policy");
}

static void look_up(struct bench *b, struct ms_vm *vm)
{
	struct ms_batch batch = { b->gfns, sizeof(*b->gfns), b->answers, sizeof(*b->answers), BATCH, NULL, NULL };

	check(!ms_gfn_to_hva_many(vm, 0, &batch, true), "a batch");
}

/* Returns the nanoseconds of a lookup. */
static double time_lookups(struct bench *b)
{
	double start = now_ns();

	for (size_t i = 0; i < BATCHES; i++)
		look_up(b, b->vms[i % b->nr_vms]);
	start = (now_ns() - start) / BATCHES / BATCH;
	for (size_t i = 0; i < b->nr_vms; i++) {
		memset(b->answers, 0, sizeof(b->answers));
		look_up(b, b->vms[i]);
		check(!memcmp(b->answers, b->hvas, sizeof(b->hvas)), "the answers of a batch");
	}
	return start;
}

/* Makes an index of each VM, which must have so many walked and copied ones afterwards.  Returns the nanoseconds of a
 * slot. */
static double time_indexes(const struct bench *b, uint64_t walked, uint64_t copied)
{
	struct ms_stats stats;
	double start = now_ns();

	for (size_t i = 0; i < b->nr_vms; i++)
		vm_index_make(b->vms[i], 0, false);
	start = (now_ns() - start) / (double)(b->nr_vms * b->n);
	for (size_t i = 0; i < b->nr_vms; i++) {
		ms_get_stats(b->vms[i], &stats);
		check(stats.index_builds == walked && stats.index_patches == copied, "an index");
	}
	return start;
}

/* The lookups by walk come first, so that the tree is in the caches as far as it fits. */
static double begin_vms(struct bench *b, bool scattered)
{
	double by_walk;

	make_vms(b, scattered);
	set_policy(b, MS_INDEX_OFF);
	by_walk = time_lookups(b);
	set_policy(b, MS_INDEX_AUTO);
	return by_walk;
}

static void run_round(struct bench *b, size_t round)
{
	b->ns[BY_WALK][round] = begin_vms(b, false);
	b->ns[WALKED][round] = time_indexes(b, 1, 0);
	b->ns[COPIED][round] = time_indexes(b, 1, 1);
	b->ns[BY_INDEX][round] = time_lookups(b);
	destroy_vms(b);

	begin_vms(b, true);
	b->ns[SCATTERED][round] = time_indexes(b, 1, 0);
	destroy_vms(b);
}

/* ---- the program ---- */

static struct bench *make_bench(size_t n, size_t rounds)
{
	struct bench *b = must(calloc(1, sizeof(*b)));
	uint64_t end;

	b->n = n;
	b->nr_vms = n < TOGETHER / VMS_MAX ? VMS_MAX : n < TOGETHER ? TOGETHER / n : 1;
	b->slots = must(calloc(n, sizeof(*b->slots)));
	b->shuffled = must(calloc(n, sizeof(*b->shuffled)));
	end = make_slots(b->slots, n);
	for (size_t i = 0; i < n; i++)
		b->shuffled[i] = &b->slots[i];
	shuffle((void **)b->shuffled, n);
	random_gfns(b->gfns, BATCH, end);
	for (size_t i = 0; i < BATCH; i++)
		b->hvas[i] = right_hva(b->slots, n, b->gfns[i]);
	for (int f = 0; f < NR_FIGURES; f++)
		b->ns[f] = must(calloc(rounds, sizeof(double)));
	return b;
}

#include "rounds.h"

int main(int argc, char **argv)
{
	return run_rounds(argc, argv, "index_costs", SIZE_MAX, "a number of slots above 0");
}
