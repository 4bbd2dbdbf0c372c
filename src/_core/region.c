/* SPDX-License-Identifier: MIT */
/*
 * region.c - one change of one slot: KVM_SET_USER_MEMORY_REGION, its short forms, and the map of a backing.
 *
 * This file checks the request alone, with rules.h.  The rest is writer.h, with a list of one change.  The short forms
 * read the slot under the same slots_lock, and make the request of it.
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

/* The request is checked.  A new slot gets the backing, which may be NULL. */
static int make_change(struct ms_vm *vm, const struct ms_userspace_memory_region *region, struct ms_backing *backing,
		       struct ms_error *err)
{
	struct ms_memslot value = value_of(region);
	struct writer *w = writer_of(vm, region->as_id, err);

	w->nr = 1;
	w->change->guest_memfd = region->guest_memfd;
	w->change->backing = backing;
	return set_region_locked(w, &value);
}

static int change_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region, uint32_t first_id,
			 uint32_t end_id, struct ms_error *err)
{
	int r = check_region(vm, region, first_id, end_id, err);

	return r ? r : make_change(vm, region, NULL, err);
}

/* The begin and the end of each change of this file. */
static int enter(struct ms_vm *vm, struct ms_error *err)
{
	int r = vm_lock(vm, err);

	if (!r)
		memory_pool_mark(&vm->memory);
	return r;
}

static int leave(struct ms_vm *vm, int r)
{
	if (r)
		writer_refused(vm);
	vm_unlock(vm);
	return r;
}

static int set_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region, uint32_t first_id,
		      uint32_t end_id, struct ms_error *err)
{
	int r = region ? enter(vm, err) : null_buffer(err);

	return r ? r : leave(vm, change_region(vm, region, first_id, end_id, err));
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

/* ---- the short forms ---- */

int ms_delete_memslot(struct ms_vm *vm, uint32_t as_id, uint32_t slot, struct ms_error *err)
{
	struct ms_userspace_memory_region region = { .slot = slot, .as_id = as_id, .guest_memfd = -1 };

	return ms_set_user_memory_region(vm, &region, err);
}

/* The request that would change nothing in the slot.  The slot has the backing `only`, if that is not NULL. */
static int present_region(const struct ms_vm *vm, uint32_t as_id, uint32_t id, const struct ms_backing *only,
			  struct ms_userspace_memory_region *region, struct ms_error *err)
{
	const struct memslot *slot;
	int r;

	if (id >= vm->config.user_mem_slots)
		return vm_refuse(err, EINVAL, MS_RULE_SLOT_ID, vm->config.user_mem_slots, NULL);
	r = rules_as_id(vm, as_id, err);
	if (r)
		return r;
	slot = vm->design->find(vm_active_set(vm, as_id), id);
	if (!slot || (only && slot->backing != only))
		return vm_refuse(err, EINVAL, MS_RULE_NO_SUCH_SLOT, 0, NULL);
	*region = (struct ms_userspace_memory_region){
		.slot = id,
		.as_id = as_id,
		.flags = slot->flags,
		.guest_memfd = -1,
		.guest_phys_addr = slot->base_gfn << MS_PAGE_SHIFT,
		.memory_size = memslot_bytes(slot),
		.userspace_addr = slot->hva.start,
	};
	return 0;
}

static int move(struct ms_vm *vm, uint32_t as_id, uint32_t slot, const struct ms_backing *only,
		uint64_t guest_phys_addr, struct ms_error *err)
{
	struct ms_userspace_memory_region region = { 0 };
	int r = enter(vm, err);

	if (r)
		return r;
	r = present_region(vm, as_id, slot, only, &region, err);
	region.guest_phys_addr = guest_phys_addr;
	return leave(vm, r ? r : change_region(vm, &region, 0, vm->config.user_mem_slots, err));
}

int ms_move_memslot(struct ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t guest_phys_addr, struct ms_error *err)
{
	return move(vm, as_id, slot, NULL, guest_phys_addr, err);
}

static int set_flags(struct ms_vm *vm, uint32_t as_id, uint32_t slot, const struct ms_backing *only, uint32_t set,
		     uint32_t clear, struct ms_error *err)
{
	struct ms_userspace_memory_region region = { 0 };
	int r = enter(vm, err);

	if (r)
		return r;
	r = present_region(vm, as_id, slot, only, &region, err);
	if (!r)
		region.flags = (region.flags & ~clear) | set;
	return leave(vm, r ? r : change_region(vm, &region, 0, vm->config.user_mem_slots, err));
}

int ms_set_memslot_flags(struct ms_vm *vm, uint32_t as_id, uint32_t slot, uint32_t set, uint32_t clear,
			 struct ms_error *err)
{
	return set_flags(vm, as_id, slot, NULL, set, clear, err);
}

int ms_free_slot_id(struct ms_vm *vm, uint32_t as_id, uint32_t *slot, struct ms_error *err)
{
	uint32_t id;
	int r = slot ? vm_lock(vm, err) : null_buffer(err);

	if (r)
		return r;
	r = rules_as_id(vm, as_id, err);
	if (!r)
		r = rules_free_id(vm, as_id, &id, err);
	if (!r)
		*slot = id;
	vm_unlock(vm);
	return r;
}

/* ---- the map of a backing ---- */

static int check_map(const struct ms_vm *vm, const struct ms_userspace_memory_region *region,
		     const struct ms_backing *backing, struct ms_error *err)
{
	struct ms_memslot value = value_of(region);
	int r = rules_request(vm, region, 0, vm->config.user_mem_slots, err);

	if (!r && !value.npages)
		r = vm_refuse(err, EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, NULL);
	if (!r)
		r = rules_backing(backing, &value, err);
	return r ? r : rules_unused_id(vm, vm_active_set(vm, region->as_id), region->slot, NULL, err);
}

static int map_locked(struct ms_vm *vm, struct ms_userspace_memory_region *region, struct ms_backing *backing,
		      struct ms_error *err)
{
	int r = rules_as_id(vm, region->as_id, err);

	if (!r && region->slot == MS_SLOT_ANY)
		r = rules_free_id(vm, region->as_id, &region->slot, err);
	if (!r)
		r = check_map(vm, region, backing, err);
	return r ? r : make_change(vm, region, backing, err);
}

int ms_map_backing(struct ms_vm *vm, const struct ms_userspace_memory_region *wanted, struct ms_backing *backing,
		   uint32_t *slot, struct ms_error *err)
{
	struct ms_userspace_memory_region region;
	int r = wanted && backing ? enter(vm, err) : null_buffer(err);

	if (r)
		return r;
	region = *wanted;
	r = leave(vm, map_locked(vm, &region, backing, err));
	if (!r && slot)
		*slot = region.slot;
	return r;
}

/* ---- the same short forms for the slot of a backing ---- */

int ms_unmap_backing(struct ms_vm *vm, uint32_t as_id, uint32_t slot, const struct ms_backing *backing,
		     struct ms_error *err)
{
	struct ms_userspace_memory_region region = { 0 };
	int r = backing ? enter(vm, err) : null_buffer(err);

	if (r)
		return r;
	r = present_region(vm, as_id, slot, backing, &region, err);
	region.memory_size = 0;
	return leave(vm, r ? r : change_region(vm, &region, 0, vm->config.user_mem_slots, err));
}

int ms_move_backing(struct ms_vm *vm, uint32_t as_id, uint32_t slot, const struct ms_backing *backing,
		    uint64_t guest_phys_addr, struct ms_error *err)
{
	return backing ? move(vm, as_id, slot, backing, guest_phys_addr, err) : null_buffer(err);
}

int ms_set_backing_flags(struct ms_vm *vm, uint32_t as_id, uint32_t slot, const struct ms_backing *backing,
			 uint32_t set, uint32_t clear, struct ms_error *err)
{
	return backing ? set_flags(vm, as_id, slot, backing, set, clear, err) : null_buffer(err);
}
