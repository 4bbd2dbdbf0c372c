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
int slot_alloc(struct ms_vm *vm, struct memslot **out, struct ms_error *err);

/* A slot with these values, in address space as_id, without a dirty log. */
int slot_create(struct ms_vm *vm, const struct ms_memslot *value, uint32_t as_id, struct memslot **out,
		struct ms_error *err);

/* The INVALID copy of a slot, with the same log. */
int slot_create_invalid(struct ms_vm *vm, const struct memslot *slot, struct memslot **out, struct ms_error *err);

/* Gives a new slot its dirty log, if it has LOG_DIRTY_PAGES.  The slot takes the place of `old`; NULL: of no slot. */
int slot_give_log(struct ms_vm *vm, struct memslot *slot, const struct memslot *old, struct ms_error *err);

#endif
