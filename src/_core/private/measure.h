/* SPDX-License-Identifier: MIT */
/*
 * measure.h - times calls of the engine from C, for the binding and the benchmarks.  It is not installed.
 *
 * A call from an interpreter costs more than the call itself, and hides the slowest calls.
 *
 * Each function makes n calls.  It writes the nanoseconds of each `group` of calls (>= 1) to ns, an array of
 * ceil(n / group) numbers, and every answer to the array parameter before ns.  The caller computes percentiles and
 * compares the answers.
 *
 * Locking: as the calls that are timed.
 * Cost: two reads of the clock for each group.  With groups of 1 the times show the slowest calls.  With large groups
 * they show the cost of a call without the clock.  ms_time_nothing() measures the clock itself.
 */
#ifndef MS_MEASURE_H
#define MS_MEASURE_H

#include <memslots.h>

void ms_time_gfn_to_hva(struct ms_vm *vm, uint32_t as_id, const uint64_t *gfns, size_t n, size_t group, uint64_t *hvas,
			uint64_t *ns);
void ms_time_vcpu_gfn_to_hva(struct ms_vcpu *vcpu, const uint64_t *gfns, size_t n, size_t group, uint64_t *hvas,
			     uint64_t *ns);
void ms_time_id_to_memslot(struct ms_vm *vm, uint32_t as_id, const uint64_t *ids, size_t n, size_t group,
			   uint64_t *addrs, uint64_t *ns); /* userspace_addr, or 2^64 - 1 */
void ms_time_hva_range(struct ms_vm *vm, uint32_t as_id, const uint64_t *starts, const uint64_t *lasts, size_t n,
		       size_t group, uint64_t *counts, uint64_t *ns); /* how many slots have a byte in each range */
void ms_time_changes(struct ms_vm *vm, const struct ms_userspace_memory_region *regions, size_t n, size_t group,
		     int32_t *results, uint64_t *ns); /* [lock] each result is 0 or a negative errno */
void ms_time_nothing(size_t n, uint64_t *ns);

/*
 * Follows `chain` from *at for `steps` steps, and writes the last place to *at.  Each load needs the result of the load
 * before, so the time of a step is the latency of the caches that hold the chain.  `size` is a power of two; an entry
 * counts modulo `size`.  Returns the nanoseconds of all steps.
 */
uint64_t ms_time_chase(const uint32_t *chain, size_t size, size_t steps, uint32_t *at);

/* Copies the costs that the i-th design declares (enum design_cost of memslot_set.h): gfn, id, hva, change. */
void ms_design_costs(size_t i, int costs[4]);

#endif
