/* SPDX-License-Identifier: MIT */
/*
 * snapshot.h - what the binding needs to make a Snapshot of a VM and to look things up in it.  It is not installed.
 *
 * A snapshot is looked up in a VM of its own.  That VM is frozen: ms_load_snapshot() fills it, and nothing changes it
 * afterwards.  It may have INVALID slots, and no slot has a dirty log.
 */
#ifndef MS_SNAPSHOT_H
#define MS_SNAPSHOT_H

#include <memslots.h>

/* The backings of all slots of an address space, in the order of ms_memslots(): one reference for each slot that has
 * one, and NULL for each other slot.  Returns the number of slots with a backing, or 0 if there are more than `room`
 * slots; then no reference is taken.  Inside a read section the slots are those of ms_memslots(). */
size_t ms_memslots_backings(struct ms_vm *vm, uint32_t as_id, struct ms_backing **out, size_t room);

/*
 * Fills an empty VM of the design "tree", which no other thread knows, with rows that its limits allow, and freezes it.
 * It may be called inside a hook or a read section of another VM.
 *
 * No rule is checked except those of places and ids: the rows come from a VM, or the caller has checked them.
 * backings[i], or NULL, is the backing of slots[i]; backings may be NULL.  The VM takes references of its own.
 */
int ms_load_snapshot(struct ms_vm *vm, uint32_t as_id, const struct ms_memslot *slots,
		     struct ms_backing *const *backings, size_t n, struct ms_error *err);

#endif
