/* SPDX-License-Identifier: MIT */
/*
 * stats.c - copies the counters of a VM for the caller.
 *
 * Locking: none.  Each counter is loaded separately, so they may belong to different moments (row "counters").
 */
#include <errno.h>
#include <string.h>

#include "vm.h"

static uint64_t hash_grows(const struct ms_vm *vm)
{
	uint64_t total = 0;

	for (uint32_t i = 0; i < vm->config.address_spaces; i++)
		total += atomic_load_explicit(&vm->as[i].hash_grows, memory_order_relaxed);
	return total;
}

static struct ms_stats stats_of(struct ms_vm *vm)
{
	struct vm_counts *c = &vm->counts;

	return (struct ms_stats){
		.hits_last_used = srcu_total(&vm->srcu, SRCU_HIT_LAST_USED),
		.hits_search = srcu_total(&vm->srcu, SRCU_HIT_SEARCH),
		.indexed = srcu_total(&vm->srcu, SRCU_INDEXED),
		.misses = srcu_total(&vm->srcu, SRCU_MISS),
		.vcpu_bypasses = srcu_total(&vm->srcu, SRCU_VCPU_BYPASS),
		.creates = atomic_load_explicit(&c->change[MS_CREATE], memory_order_relaxed),
		.deletes = atomic_load_explicit(&c->change[MS_DELETE], memory_order_relaxed),
		.moves = atomic_load_explicit(&c->change[MS_MOVE], memory_order_relaxed),
		.flag_changes = atomic_load_explicit(&c->change[MS_FLAGS_ONLY], memory_order_relaxed),
		.noops = atomic_load_explicit(&c->noops, memory_order_relaxed),
		.refused = atomic_load_explicit(&c->refused, memory_order_relaxed),
		.swaps = atomic_load_explicit(&vm->srcu.periods, memory_order_relaxed),
		.grace_waits = atomic_load_explicit(&vm->srcu.waits, memory_order_relaxed),
		.stalls = atomic_load_explicit(&vm->srcu.stalls, memory_order_relaxed),
		.hash_grows = hash_grows(vm),
		.index_builds = atomic_load_explicit(&vm->index_builds, memory_order_relaxed),
		.index_patches = atomic_load_explicit(&vm->index_patches, memory_order_relaxed),
		.bytes = atomic_load_explicit(&vm->memory.bytes, memory_order_relaxed),
		.blocks = memory_blocks(&vm->memory),
		.resizes = atomic_load_explicit(&c->change[MS_RESIZE], memory_order_relaxed),
	};
}

/* The size of struct ms_stats in the first version that had a size. */
#define STATS_SIZE_MIN SIZE_UP_TO(struct ms_stats, blocks)

int ms_get_stats_sized(struct ms_vm *vm, struct ms_stats *out, size_t size)
{
	struct ms_stats stats;

	if (!out)
		return -EFAULT;
	if (size < STATS_SIZE_MIN)
		return -EINVAL;
	stats = stats_of(vm);
	stats.size = size < sizeof(stats) ? size : sizeof(stats);
	memcpy(out, &stats, stats.size);
	return 0;
}
