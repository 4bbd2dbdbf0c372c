/* SPDX-License-Identifier: MIT */
/*
 * slot_make.h - makes the slots of a change: their fields, their dirty logs and their INVALID copies.
 *
 * Every kind of change uses these functions: the writer (writer.c) and the steps of an update (update_steps.c).
 *
 * Logging that stays on keeps its bits.  The host address identifies a page of a slot.  A new slot with exactly the
 * pages of the old one shares the log of the old one.  A slot with other pages gets a log that is related to the old
 * one (dirty_log.h).  If logging was off, the slot gets a new log.
 *
 * Each function that can fail returns 0, or -ENOMEM with the rule in *err.
 *
 * Locking: slots_lock.
 * Cost: O(1), and O(npages / 64) for a new or related log.
 */
#ifndef MS_SLOT_MAKE_H
#define MS_SLOT_MAKE_H

#include "vm.h"

/* A zeroed slot. */
static inline int slot_alloc(struct ms_vm *vm, struct memslot **out, struct ms_error *err)
{
	*out = vm->design->alloc_slot(&vm->memory);
	return likely(*out) ? 0 : no_memory(err);
}

/* A slot with these values, in address space as_id, without a dirty log or a backing. */
static inline int slot_create(struct ms_vm *vm, const struct ms_memslot *value, uint32_t as_id, struct memslot **out,
			      struct ms_error *err)
{
	uint64_t size = value->npages << MS_PAGE_SHIFT;
	int r = slot_alloc(vm, out, err);

	if (r)
		return r;
	(*out)->base_gfn = value->base_gfn;
	(*out)->npages = (uint32_t)value->npages;
	(*out)->hva = (struct interval){ value->userspace_addr, value->userspace_addr + size - 1 };
	(*out)->id = value->id;
	(*out)->flags = value->flags;
	(*out)->as_id = (uint16_t)as_id;
	return 0;
}

/* The INVALID copy of a slot, with the same log and backing. */
static inline int slot_create_invalid(struct ms_vm *vm, const struct memslot *slot, struct memslot **out,
				      struct ms_error *err)
{
	int r = slot_alloc(vm, out, err);

	if (r)
		return r;
	memslot_copy(*out, slot);
	(*out)->flags |= MS_MEMSLOT_INVALID;
	return 0;
}

/* slot_give_log() for a slot with LOG_DIRTY_PAGES. */
int slot_make_log(struct ms_vm *vm, struct memslot *slot, const struct memslot *old, struct ms_error *err);

/* Gives a new slot its dirty log, if it has LOG_DIRTY_PAGES.  The slot takes the place of `old`; NULL: of no slot. */
static inline int slot_give_log(struct ms_vm *vm, struct memslot *slot, const struct memslot *old, struct ms_error *err)
{
	return slot->flags & MS_MEM_LOG_DIRTY_PAGES ? slot_make_log(vm, slot, old, err) : 0;
}

#endif
