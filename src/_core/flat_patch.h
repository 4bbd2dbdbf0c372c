/* SPDX-License-Identifier: MIT */
/*
 * flat_patch.h - an index that a set had, and the few slots that have changed since.
 *
 * Walking a tree for a new index costs a cache miss a slot; copying the old one with a few slots exchanged costs next
 * to nothing.  So the writer notes what it does to a set, up to a number of changes beyond which a walk is as good.
 *
 * Invariants
 *   X1  the slots of base, without those that are gone and with those that were added, are the set's that are not
 *       INVALID;
 *   X2  no two changes are about one base_gfn, but for a slot of base that is gone and another one in its place.
 *
 * Locking: the writer's; readers of the set that it belongs to may read it, since a set that has readers is not edited.
 * Cost: noting O(PATCH_MAX); walking O(n).
 */
#ifndef MS_FLAT_PATCH_H
#define MS_FLAT_PATCH_H

#include "flat_index.h"

/* A MOVE notes three changes to a set, all others fewer: some changes in a row can go without a lookup. */
#define PATCH_MAX 16

struct flat_patch {
	struct flat_index *base; /* one reference */
	uint32_t nr_gone, nr_added;
	uint64_t gone[PATCH_MAX]; /* base_gfn, ascending */
	struct flat_entry added[PATCH_MAX]; /* ascending */
};

/* Of base as it is, whose reference it takes over, or of what another one is; NULL: no memory, the reference is given
 * back. */
struct flat_patch *patch_create(struct flat_index *base);
struct flat_patch *patch_clone(const struct flat_patch *from);
void patch_destroy(struct flat_patch *patch); /* NULL is fine */

/* False: there is no room for another change, and the patch is no longer true. */
bool patch_remove(struct flat_patch *patch, uint64_t base_gfn);
bool patch_add(struct flat_patch *patch, const struct flat_entry *entry);

/* How many slots base and the changes make. */
static inline size_t patch_nr(const struct flat_patch *patch)
{
	return patch->base->nr - patch->nr_gone + patch->nr_added;
}

/* Walks them by ascending gfn: start from patch_begin(). */
struct patch_cursor {
	const struct flat_patch *patch;
	struct flat_cursor flat;
	struct flat_entry next; /* of base */
	bool more;              /* there is one */
	uint32_t gone, added;   /* passed */
};

struct patch_cursor patch_begin(const struct flat_patch *patch);
bool patch_next(struct patch_cursor *cursor, struct flat_entry *entry);

#endif
