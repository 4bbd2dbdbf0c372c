/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c - the backings of all slots of a state.  See private/snapshot.h; load.c fills the VM of a snapshot.
 *
 * Locking: none; one read section.  Cost: O(n).
 */
#include "private/snapshot.h"

#include "look.h"

static void put_backings(struct ms_backing **backings, size_t n)
{
	for (size_t i = 0; i < n; i++)
		ms_backing_put(backings[i]);
}

/* Inside the section each slot holds its reference. */
size_t ms_memslots_backings(struct ms_vm *vm, uint32_t as_id, struct ms_backing **out, size_t room)
{
	struct look look = look_begin(vm, as_id);
	const struct memslot *slot = look.set ? vm->design->first_from(look.set, 0) : NULL;
	size_t nr = 0, backed = 0;

	if (slot && look.set->nr == look.set->nr_raw)
		slot = NULL; /* no slot has a backing */
	for (; slot && nr < room; slot = vm->design->next(look.set, slot), nr++) {
		out[nr] = backing_get(slot->backing);
		backed += out[nr] != NULL;
	}
	look_end(vm, look);
	if (!slot)
		return backed;
	put_backings(out, nr);
	return 0;
}
