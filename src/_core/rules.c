/* SPDX-License-Identifier: MIT */
#include "rules.h"

#include <errno.h>

#define USER_FLAGS (MS_MEM_LOG_DIRTY_PAGES | MS_MEM_READONLY)

/* A memfd takes neither logging nor READONLY. */
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

/* The first that fails decides. */
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
	if (r->as_id >= config->address_spaces)
		return vm_refuse(err, EINVAL, MS_RULE_AS_ID, config->address_spaces, NULL);
	if (r->guest_phys_addr + r->memory_size < r->guest_phys_addr)
		return vm_refuse(err, EINVAL, MS_RULE_GPA_WRAP, 0, NULL);
	if (r->memory_size >> MS_PAGE_SHIFT > MS_MEM_MAX_NR_PAGES)
		return vm_refuse(err, EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, NULL);
	return 0;
}

/* Slots do not overlap one another, so only the first two from base can be in the way. */
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

int rules_gpa_limit(const struct ms_vm *vm, const struct memslot *slot, struct ms_error *err)
{
	uint64_t end_gfn = (uint64_t)1 << (vm->config.gpa_bits - MS_PAGE_SHIFT);

	if (slot->base_gfn + slot->npages <= end_gfn)
		return 0;
	return vm_refuse(err, EINVAL, MS_RULE_GPA_LIMIT, end_gfn << MS_PAGE_SHIFT, NULL);
}
