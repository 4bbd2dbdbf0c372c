/* SPDX-License-Identifier: MIT */
/*
 * rules.c - see rules.h.
 */
#define _GNU_SOURCE
#include "rules.h"

#include <errno.h>
#include <fcntl.h>

#define USER_FLAGS (MS_MEM_LOG_DIRTY_PAGES | MS_MEM_READONLY)

/* A slot with a guest_memfd allows neither logging nor READONLY. */
static uint32_t allowed_flags(uint32_t flags)
{
	return flags & MS_MEM_GUEST_MEMFD ? MS_MEM_GUEST_MEMFD : USER_FLAGS | MS_MEM_GUEST_MEMFD;
}

static bool unaligned(uint64_t bytes)
{
	return bytes & (MS_PAGE_SIZE - 1);
}

static bool hva_range_ok(const struct ms_config *config, const struct ms_userspace_memory_region *r)
{
	uint64_t end = r->userspace_addr + r->memory_size;

	return end >= r->userspace_addr && end <= config->hva_end_max;
}

static bool gmem_offset_ok(const struct ms_userspace_memory_region *r)
{
	return !unaligned(r->guest_memfd_offset) && r->guest_memfd_offset + r->memory_size >= r->guest_memfd_offset;
}

/* The order is KVM's: the first check that fails gives the error. */
int rules_request(const struct ms_vm *vm, const struct ms_userspace_memory_region *r, uint32_t first_id,
		  uint32_t end_id, struct ms_error *err)
{
	const struct ms_config *config = &vm->config;

	if (r->slot < first_id || r->slot >= end_id)
		return vm_refuse(err, EINVAL, MS_RULE_SLOT_ID, end_id, NULL);
	if (r->flags & ~allowed_flags(r->flags))
		return vm_refuse(err, EINVAL, MS_RULE_FLAGS, allowed_flags(r->flags), NULL);
	if (unaligned(r->memory_size))
		return vm_refuse(err, EINVAL, MS_RULE_SIZE_ALIGN, 0, NULL);
	if (unaligned(r->guest_phys_addr))
		return vm_refuse(err, EINVAL, MS_RULE_GPA_ALIGN, 0, NULL);
	if (unaligned(r->userspace_addr))
		return vm_refuse(err, EINVAL, MS_RULE_HVA_ALIGN, 0, NULL);
	if (!hva_range_ok(config, r))
		return vm_refuse(err, EINVAL, MS_RULE_HVA_RANGE, config->hva_end_max, NULL);
	if ((r->flags & MS_MEM_GUEST_MEMFD) && !gmem_offset_ok(r))
		return vm_refuse(err, EINVAL, MS_RULE_GMEM_OFFSET, 0, NULL);
	if (rules_as_id(vm, r->as_id, err))
		return -EINVAL;
	if (r->guest_phys_addr + r->memory_size < r->guest_phys_addr)
		return vm_refuse(err, EINVAL, MS_RULE_GPA_WRAP, 0, NULL);
	if (r->memory_size >> MS_PAGE_SHIFT > MS_MEM_MAX_NR_PAGES)
		return vm_refuse(err, EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, NULL);
	return 0;
}

static struct ms_userspace_memory_region region_of(const struct ms_memslot *value, uint32_t as_id)
{
	return (struct ms_userspace_memory_region){
		.slot = value->id,
		.as_id = as_id,
		.flags = value->flags,
		.guest_memfd = -1,
		.guest_phys_addr = value->base_gfn << MS_PAGE_SHIFT,
		.memory_size = value->npages << MS_PAGE_SHIFT,
		.userspace_addr = value->userspace_addr,
	};
}

/* base_gfn and npages are checked first, because their sizes in bytes may not fit into 64 bits. */
int rules_value(const struct ms_vm *vm, const struct ms_memslot *value, uint32_t as_id, struct ms_error *err)
{
	struct ms_userspace_memory_region region = region_of(value, as_id);

	if (value->base_gfn >> (64 - MS_PAGE_SHIFT))
		return vm_refuse(err, EINVAL, MS_RULE_GPA_WRAP, 0, NULL);
	if (!value->npages || value->npages > MS_MEM_MAX_NR_PAGES)
		return vm_refuse(err, EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, NULL);
	return rules_request(vm, &region, 0, vm->config.user_mem_slots, err);
}

int rules_unused_id(const struct ms_vm *vm, const struct memslot_set *set, uint32_t id, const struct memslot *old,
		    struct ms_error *err)
{
	const struct memslot *same = vm->design->find(set, id);

	return same && same != old ? vm_refuse(err, EEXIST, MS_RULE_DUPLICATE_ID, 0, same) : 0;
}

/* Each id is passed once, until a slot below it is deleted. */
int rules_free_id(const struct ms_vm *vm, uint32_t as_id, uint32_t *id, struct ms_error *err)
{
	const struct memslot_set *set = vm_active_set(vm, as_id);
	struct address_space *as = &vm->as[as_id];
	uint32_t end = vm->config.user_mem_slots;

	while (as->used_below < end && vm->design->find(set, as->used_below))
		as->used_below++;
	*id = as->used_below;
	return *id < end ? 0 : vm_refuse(err, ENOSPC, MS_RULE_NO_FREE_SLOT, end, NULL);
}

/* The slots of the set do not overlap each other.  So only the first two slots from base can overlap the new one. */
int rules_overlap(const struct ms_vm *vm, const struct memslot_set *set, uint64_t base, uint64_t npages, uint32_t id,
		  struct ms_error *err)
{
	const struct memslot_design *design = vm->design;
	const struct memslot *slot = design->first_from(set, base);

	if (slot && slot->id == id)
		slot = design->next(set, slot);
	if (slot && slot->base_gfn < base + npages)
		return vm_refuse(err, EEXIST, MS_RULE_OVERLAP, 0, slot);
	return 0;
}

/* As fget() in KVM: a descriptor that was opened with O_PATH counts as closed. */
static bool is_open(int fd)
{
	int mode = fcntl(fd, F_GETFL);

	return mode >= 0 && !(mode & O_PATH);
}

int rules_guest_memfd(uint32_t flags, int32_t guest_memfd, struct ms_error *err)
{
	bool open;

	if (!(flags & MS_MEM_GUEST_MEMFD))
		return 0;
	open = is_open(guest_memfd);
	return vm_refuse(err, open ? EINVAL : EBADF, MS_RULE_GMEM_FD, open, NULL);
}

int rules_backing(const struct ms_backing *backing, const struct ms_memslot *value, struct ms_error *err)
{
	if (!backing_has(backing, value->userspace_addr, value->npages << MS_PAGE_SHIFT))
		return vm_refuse(err, EINVAL, MS_RULE_BACKING_RANGE, backing_end(backing), NULL);
	if (backing_is_readonly(backing) && !(value->flags & MS_MEM_READONLY))
		return vm_refuse(err, EINVAL, MS_RULE_BACKING_READONLY, 0, NULL);
	return 0;
}

int rules_gpa_limit(const struct ms_vm *vm, const struct memslot *slot, struct ms_error *err)
{
	uint64_t end_gfn = vm_end_gfn(&vm->config);

	if (slot->base_gfn + slot->npages <= end_gfn)
		return 0;
	return vm_refuse(err, EINVAL, MS_RULE_GPA_LIMIT, end_gfn << MS_PAGE_SHIFT, NULL);
}
