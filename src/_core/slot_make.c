/* SPDX-License-Identifier: MIT */
/*
 * slot_make.c - see slot_make.h.
 */
#include "slot_make.h"

static bool same_pages(const struct memslot *a, const struct memslot *b)
{
	return a->hva.start == b->hva.start && a->npages == b->npages;
}

/* The page of `old` that has the host address of the slot's first page.  Negative if the slot begins below `old`. */
static int64_t first_in(const struct memslot *slot, const struct memslot *old)
{
	return (int64_t)(slot->hva.start >> MS_PAGE_SHIFT) - (int64_t)(old->hva.start >> MS_PAGE_SHIFT);
}

int slot_make_log(struct ms_vm *vm, struct memslot *slot, const struct memslot *old, struct ms_error *err)
{
	bool initially_set = ms_manual_dirty_log_protect(vm) & MS_DIRTY_LOG_INITIALLY_SET;

	if (!old || !old->dirty)
		slot->dirty = dirty_log_create(&vm->memory, slot->npages, initially_set);
	else if (same_pages(slot, old))
		slot->dirty = dirty_log_get(old->dirty);
	else
		slot->dirty =
			dirty_log_derive(&vm->memory, old->dirty, first_in(slot, old), slot->npages, initially_set);
	return slot->dirty ? 0 : no_memory(err);
}
