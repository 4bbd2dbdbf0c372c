/* SPDX-License-Identifier: MIT */
/*
 * region.c - one change of one slot: KVM_SET_USER_MEMORY_REGION.
 *
 * This file checks the request alone, with rules.h.  The rest is writer.h, with a list of one change.
 *
 * Locking: slots_lock throughout.
 * Cost: see writer.h.
 */
#include <errno.h>

#include "rules.h"
#include "writer.h"

static struct ms_memslot value_of(const struct ms_userspace_memory_region *region)
{
	return (struct ms_memslot){
		.base_gfn = region->guest_phys_addr >> MS_PAGE_SHIFT,
		.npages = region->memory_size >> MS_PAGE_SHIFT,
		.userspace_addr = region->userspace_addr,
		.id = region->slot,
		.as_id = region->as_id,
		.flags = region->flags,
	};
}

static int set_region_locked(struct writer *w, const struct ms_memslot *value)
{
	struct change *c = w->change;
	int r = writer_admit(w, c, vm_active_set(w->vm, w->as_id), value);

	if (r)
		return r;
	if (c->noop) {
		count_add(&w->vm->counts.noops, 1);
		return 0;
	}
	r = writer_begin(w, c->kind == MS_CREATE);
	if (r)
		writer_discard(w, c);
	else
		r = writer_carry_out(w);
	writer_end(w);
	return r;
}

/* The call may use the ids [first_id, end_id).  A slot with an internal id (first_id > 0) has no flags. */
static int check_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region, uint32_t first_id,
			uint32_t end_id, struct ms_error *err)
{
	int r = rules_request(vm, region, first_id, end_id, err);

	if (!r && first_id && region->flags)
		r = vm_refuse(err, EINVAL, MS_RULE_FLAGS, 0, NULL);
	return r;
}

static int set_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region, uint32_t first_id,
		      uint32_t end_id, struct ms_error *err)
{
	struct ms_memslot value;
	struct writer *w;
	int r = region ? vm_lock(vm, err) : null_buffer(err);

	if (r)
		return r;
	value = value_of(region);
	w = writer_of(vm, region->as_id, err);
	w->nr = 1;
	w->change->guest_memfd = region->guest_memfd;
	memory_pool_mark(&vm->memory);
	r = check_region(vm, region, first_id, end_id, err);
	if (!r)
		r = set_region_locked(w, &value);
	if (r)
		writer_refused(vm);
	vm_unlock(vm);
	return r;
}

int ms_set_user_memory_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region, struct ms_error *err)
{
	return set_region(vm, region, 0, vm->config.user_mem_slots, err);
}

int ms_set_internal_memory_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region,
				  struct ms_error *err)
{
	uint32_t first_id = vm->config.user_mem_slots;

	return set_region(vm, region, first_id, first_id + MS_INTERNAL_MEM_SLOTS, err);
}
