/* SPDX-License-Identifier: MIT */
/*
 * lookup_work.c - P4: how much work the dearest single lookup does, counted and not timed.
 *
 * The engine is compiled with -fsanitize-coverage=trace-pc, so that each basic block begins with a call of
 * __sanitizer_cov_trace_pc().  This file is compiled without it.  Blocks are not times: one of a vector loop does more
 * than one of a search.  But a lookup that makes an index, or a large part of one, needs thousands of them.
 *
 * lookup_work SLOTS LOOKUPS UNIT prints one JSON object with numbers of blocks:
 *   dearest   of the random single lookups in a new VM with the default policy
 *   median    of the same lookups
 *   unit      of a batch that makes the index of UNIT slots
 */
#include "common.h"

void __sanitizer_cov_trace_pc(void);

static uint64_t blocks;

void __sanitizer_cov_trace_pc(void)
{
	blocks++;
}

static struct ms_memslot *slots;
static uint64_t end;

static struct ms_vm *new_vm(size_t n)
{
	slots = must(calloc(n, sizeof(*slots)));
	end = make_slots(slots, n);
	return make_vm(slots, n);
}

static void end_vm(struct ms_vm *vm)
{
	ms_vm_destroy(vm);
	free(slots);
}

static uint64_t blocks_of_lookup(struct ms_vm *vm, size_t n)
{
	uint64_t gfn = random_below(end), before = blocks, hva = ms_gfn_to_hva(vm, 0, gfn), work = blocks - before;

	check(hva == right_hva(slots, n, gfn), "a lookup");
	return work;
}

#define FEW 65 /* lookups in the batch that makes an index: more than a brief batch has */

static uint64_t blocks_of_index(size_t n)
{
	struct ms_vm *vm = new_vm(n);
	uint64_t gfns[FEW], hvas[FEW], before;
	struct ms_batch batch = { gfns, sizeof(*gfns), hvas, sizeof(*hvas), FEW };
	struct ms_stats stats;

	ms_set_index_policy(vm, MS_INDEX_EAGER);
	random_gfns(gfns, FEW, end);
	before = blocks;
	ms_gfn_to_hva_many(vm, 0, &batch, true);
	before = blocks - before;
	for (size_t i = 0; i < FEW; i++)
		check(hvas[i] == right_hva(slots, n, gfns[i]), "a batch");
	ms_get_stats(vm, &stats);
	check(stats.index_builds == 1, "the batch makes an index");
	end_vm(vm);
	return before;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	size_t n = argc == 4 ? strtoul(argv[1], NULL, 10) : 0, lookups = argc == 4 ? strtoul(argv[2], NULL, 10) : 0;
	size_t unit = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;
	struct ms_vm *vm;
	uint64_t *work;

	if (!n || !lookups || !unit) {
		fputs("lookup_work SLOTS LOOKUPS UNIT\n", stderr);
		return 2;
	}
	work = must(calloc(lookups, sizeof(*work)));
	vm = new_vm(n);
	for (size_t i = 0; i < lookups; i++)
		work[i] = blocks_of_lookup(vm, n);
	end_vm(vm);
	qsort(work, lookups, sizeof(*work), by_value);
	check(work[0] > 0, "blocks are counted");
	printf("{\"dearest\": %llu, ", (unsigned long long)work[lookups - 1]);
	printf("\"median\": %llu, ", (unsigned long long)work[lookups / 2]);
	printf("\"unit\": %llu}\n", (unsigned long long)blocks_of_index(unit));
	free(work);
	return 0;
}
