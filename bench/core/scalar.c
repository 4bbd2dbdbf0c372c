/* SPDX-License-Identifier: MIT */
/*
 * scalar.c - single lookups, for callgrind.  bench/callgrind.py runs this program twice with different numbers of
 * lookups; the difference of the instructions is the cost of the lookups.
 *
 * scalar CASE SLOTS N
 *   nothing   the loop without a lookup
 *   hot       ms_gfn_to_hva() of 64 frames in one slot, then in another one
 *   random    ms_gfn_to_hva() of random frames, a fifth of them holes, without an index
 *   index     the same after a large batch, which builds the index
 *   vcpu      ms_vcpu_gfn_to_hva(), hot
 *
 * The program checks the answers of the last QUERIES lookups, at a cost that does not depend on N.
 */
#define _POSIX_C_SOURCE 199309L
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "common.h"

#define QUERIES 4096    /* a power of two; the loop repeats these gfns */
#define LARGE_BATCH 300000 /* costs many times more than to build the index of the largest VM */

static uint64_t gfns[QUERIES], hvas[QUERIES];

static void hot_or_random(struct ms_vm *vm, size_t n)
{
	for (size_t i = 0; i < n; i++)
		hvas[i % QUERIES] = ms_gfn_to_hva(vm, 0, gfns[i % QUERIES]);
}

static void by_vcpu(struct ms_vcpu *vcpu, size_t n)
{
	for (size_t i = 0; i < n; i++)
		hvas[i % QUERIES] = ms_vcpu_gfn_to_hva(vcpu, gfns[i % QUERIES]);
}

static void nothing(size_t n)
{
	for (size_t i = 0; i < n; i++)
		*(volatile uint64_t *)&hvas[i % QUERIES] = gfns[i % QUERIES];
}

/* Two batches, because a policy may build the index only after it has seen one. */
static void large_batches(struct ms_vm *vm, uint64_t end)
{
	uint64_t *many = must(calloc(LARGE_BATCH, sizeof(*many))), *out = must(calloc(LARGE_BATCH, sizeof(*out)));
	struct ms_batch batch = { many, sizeof(*many), out, sizeof(*out), LARGE_BATCH };

	random_gfns(many, LARGE_BATCH, end);
	ms_gfn_to_hva_many(vm, 0, &batch, true);
	ms_gfn_to_hva_many(vm, 0, &batch, true);
	free(many);
	free(out);
}

static bool run(const char *name, struct ms_vm *vm, uint64_t end, size_t n)
{
	struct ms_vcpu *vcpu;

	if (!strcmp(name, "index"))
		large_batches(vm, end);
	if (!strcmp(name, "random"))
		ms_set_index_policy(vm, MS_INDEX_OFF);
	if (!strcmp(name, "nothing")) {
		nothing(n);
	} else if (!strcmp(name, "vcpu")) {
		check(!ms_vcpu_create(vm, &vcpu, NULL), "a vCPU");
		by_vcpu(vcpu, n);
		ms_vcpu_destroy(vcpu);
	} else {
		hot_or_random(vm, n);
	}
	return strcmp(name, "nothing") != 0;
}

int main(int argc, char **argv)
{
	size_t n = argc == 4 ? strtoul(argv[2], NULL, 10) : 0, count = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;
	struct ms_memslot *slots;
	struct ms_vm *vm;
	uint64_t end;

	if (!n || count < QUERIES) {
		fprintf(stderr, "scalar nothing|hot|random|index|vcpu SLOTS N, N at least %d\n", QUERIES);
		return 2;
	}
	slots = must(calloc(n, sizeof(*slots)));
	end = make_slots(slots, n);
	vm = make_vm(slots, n);
	if (!strcmp(argv[1], "random") || !strcmp(argv[1], "index"))
		random_gfns(gfns, QUERIES, end);
	else
		hot_gfns(gfns, QUERIES, slots, n);
	if (run(argv[1], vm, end, count))
		for (size_t i = 0; i < QUERIES; i++)
			check(hvas[i] == right_hva(slots, n, gfns[i]), argv[1]);
	ms_vm_destroy(vm);
	free(slots);
	return 0;
}
