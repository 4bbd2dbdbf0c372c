/* SPDX-License-Identifier: MIT */
/*
 * slot_make.c - see slot_make.h.
 */
#include "slot_make.h"

int slot_alloc(struct ms_vm *vm, struct memslot **out, struct ms_error *err)
{
	*out = vm->design->alloc_slot(&vm->memory);
	return *out ? 0 : no_memory(err);
}

int slot_create(struct ms_vm *vm, const struct ms_memslot *value, uint32_t as_id, struct memslot **out,
		struct ms_error *err)
{
	uint64_t size = value->npages << MS_PAGE_SHIFT;
	int r = slot_alloc(vm, out, err);

	if (r)
		return r;
	(*out)->base_gfn = value->base_gfn;
	(*out)->npages = value->npages;
	(*out)->hva = (struct interval){ value->userspace_addr, value->userspace_addr + size - 1 };
	(*out)->id = value->id;
	(*out)->flags = value->flags & ((1u << MEMSLOT_FLAG_BITS) - 1);
	(*out)->as_id = as_id & ((1u << MEMSLOT_AS_ID_BITS) - 1);
	return 0;
}

int slot_create_invalid(struct ms_vm *vm, const struct memslot *slot, struct memslot **out, struct ms_error *err)
{
	int r = slot_alloc(vm, out, err);

	if (r)
		return r;
	memslot_copy(*out, slot);
	(*out)->flags |= MS_MEMSLOT_INVALID;
	return 0;
}

static bool same_pages(const struct memslot *a, const struct memslot *b)
{
	return a->hva.start == b->hva.start && a->npages == b->npages;
}

/* The page of `old` that has the host address of the slot's first page.  Negative if the slot begins below `old`. */
static int64_t first_in(const struct memslot *slot, const struct memslot *old)
{
	return ((int64_t)slot->hva.start - (int64_t)old->hva.start) / (int64_t)MS_PAGE_SIZE;
}

int slot_give_log(struct ms_vm *vm, struct memslot *slot, const struct memslot *old, struct ms_error *err)
{
	bool initially_set = ms_manual_dirty_log_protect(vm) & MS_DIRTY_LOG_INITIALLY_SET;

	if (!(slot->flags & MS_MEM_LOG_DIRTY_PAGES))
		return 0;
	if (!old || !old->dirty)
		slot->dirty = dirty_log_create(&vm->memory, slot->npages, initially_set);
	else if (same_pages(slot, old))
		slot->dirty = dirty_log_get(old->dirty);
	else
		slot->dirty =
			dirty_log_derive(&vm->memory, old->dirty, first_in(slot, old), slot->npages, initially_set);
	return slot->dirty ? 0 : no_memory(err);
}
