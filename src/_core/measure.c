/* SPDX-License-Identifier: MIT */
/*
 * measure.c - see private/measure.h.
 */
#define _POSIX_C_SOURCE 199309L /* clock_gettime() */
#include <errno.h>
#include <time.h>

#include "private/measure.h"
#include "vm.h"

/* thread_clock_ns(), but inline: a call would add more than a nanosecond to each time. */
static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

typedef void call_fn(void *context, size_t i);

/* Calls call(context, i) for each i below n.  Writes the time of each `group` of calls to ns. */
static inline void time_calls(call_fn *call, void *context, size_t n, size_t group, uint64_t *ns)
{
	for (size_t i = 0; i < n;) {
		size_t end = n - i < group ? n : i + group;
		uint64_t start = now();

		for (; i < end; i++)
			call(context, i);
		*ns++ = now() - start;
	}
}

struct lookups {
	struct ms_vm *vm;
	struct ms_vcpu *vcpu;
	uint32_t as_id;
	const uint64_t *in, *last;
	uint64_t *out;
};

static inline void look_up(void *context, size_t i)
{
	struct lookups *l = context;

	l->out[i] = ms_gfn_to_hva(l->vm, l->as_id, l->in[i]);
}

static inline void look_up_vcpu(void *context, size_t i)
{
	struct lookups *l = context;

	l->out[i] = ms_vcpu_gfn_to_hva(l->vcpu, l->in[i]);
}

static inline void look_up_id(void *context, size_t i)
{
	struct lookups *l = context;
	struct ms_memslot slot;

	l->out[i] = ms_id_to_memslot(l->vm, l->as_id, (uint32_t)l->in[i], &slot) ? ~(uint64_t)0 : slot.userspace_addr;
}

static inline void count_range(void *context, size_t i)
{
	struct lookups *l = context;

	l->out[i] = ms_memslots_in_hva_range(l->vm, l->as_id, l->in[i], l->last[i], NULL, 0);
}

void ms_time_gfn_to_hva(struct ms_vm *vm, uint32_t as_id, const uint64_t *gfns, size_t n, size_t group, uint64_t *hvas,
			uint64_t *ns)
{
	struct lookups l = { .vm = vm, .as_id = as_id, .in = gfns, .out = hvas };

	time_calls(look_up, &l, n, group, ns);
}

void ms_time_vcpu_gfn_to_hva(struct ms_vcpu *vcpu, const uint64_t *gfns, size_t n, size_t group, uint64_t *hvas,
			     uint64_t *ns)
{
	struct lookups l = { .vcpu = vcpu, .in = gfns, .out = hvas };

	time_calls(look_up_vcpu, &l, n, group, ns);
}

void ms_time_id_to_memslot(struct ms_vm *vm, uint32_t as_id, const uint64_t *ids, size_t n, size_t group,
			   uint64_t *addrs, uint64_t *ns)
{
	struct lookups l = { .vm = vm, .as_id = as_id, .in = ids, .out = addrs };

	time_calls(look_up_id, &l, n, group, ns);
}

void ms_time_hva_range(struct ms_vm *vm, uint32_t as_id, const uint64_t *starts, const uint64_t *lasts, size_t n,
		       size_t group, uint64_t *counts, uint64_t *ns)
{
	struct lookups l = { .vm = vm, .as_id = as_id, .in = starts, .last = lasts, .out = counts };

	time_calls(count_range, &l, n, group, ns);
}

struct changes {
	struct ms_vm *vm;
	const struct ms_userspace_memory_region *region;
	int32_t *result;
	bool interrupted; /* one change returned -EINTR; all later ones get it without a call */
};

static inline void change(void *context, size_t i)
{
	struct changes *c = context;

	c->result[i] = c->interrupted ? -EINTR : ms_set_user_memory_region(c->vm, &c->region[i], NULL);
	c->interrupted = c->result[i] == -EINTR;
}

void ms_time_changes(struct ms_vm *vm, const struct ms_userspace_memory_region *regions, size_t n, size_t group,
		     int32_t *results, uint64_t *ns)
{
	struct changes c = { .vm = vm, .region = regions, .result = results };

	time_calls(change, &c, n, group, ns);
}

static inline void nothing(void *context, size_t i)
{
	(void)context;
	(void)i;
}

void ms_time_nothing(size_t n, uint64_t *ns)
{
	time_calls(nothing, NULL, n, 1, ns);
}

uint64_t ms_time_chase(const uint32_t *chain, size_t size, size_t steps, uint32_t *at)
{
	size_t mask = size - 1;
	uint64_t start = now();
	uint32_t place = *at;

	for (size_t i = 0; i < steps; i++)
		place = chain[place & mask];
	*at = place;
	return now() - start;
}

void ms_design_costs(size_t i, int costs[4])
{
	const struct memslot_design *design = vm_design(i);

	costs[0] = (int)design->costs.gfn;
	costs[1] = (int)design->costs.id;
	costs[2] = (int)design->costs.hva;
	costs[3] = (int)design->costs.change;
}
