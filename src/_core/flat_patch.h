/* SPDX-License-Identifier: MIT */
/*
 * flat_patch.h - a former index of a set, and the few slots that have changed since.
 *
 * To make an index from the tree costs a cache miss for each slot.  To copy the former index with a few slots exchanged
 * costs much less.  So the writer notes its edits of a set, at most PATCH_MAX.  With more, the index is made from the
 * tree.
 *
 * Invariants
 *   X1  the slots of base, without `gone` and with `added`, are the slots of the set that are not INVALID;
 *   X2  no two changes have the same base_gfn, except that an added slot may be at the place of a gone one.
 *
 * Locking: only the writer edits a patch.  Readers of its set may read it, because a set with readers is not edited.
 * Cost: noting an edit O(PATCH_MAX); walking the slots O(n).
 */
#ifndef MS_FLAT_PATCH_H
#define MS_FLAT_PATCH_H

#include "flat_index.h"

/* A MOVE notes three edits of a set, other changes fewer.  So there is room for several changes between two lookups. */
#define PATCH_MAX 16

struct flat_patch {
	struct flat_index *base; /* one reference */
	uint32_t nr_gone, nr_added;
	uint64_t gone[PATCH_MAX]; /* base_gfn, ascending */
	struct flat_entry added[PATCH_MAX]; /* ascending */
};

/* patch_create() makes a patch without edits and takes over the caller's reference to base.  patch_clone() copies a
 * patch.  NULL: no memory, and no reference is kept. */
struct flat_patch *patch_create(struct flat_index *base);
struct flat_patch *patch_clone(const struct flat_patch *from);
void patch_destroy(struct flat_patch *patch); /* NULL is fine */

/* Note one edit.  False: there is no room for it, and X1 no longer holds. */
bool patch_remove(struct flat_patch *patch, uint64_t base_gfn);
bool patch_add(struct flat_patch *patch, const struct flat_entry *entry);

/* The number of slots that patch_next() returns. */
static inline size_t patch_nr(const struct flat_patch *patch)
{
	return patch->base->nr - patch->nr_gone + patch->nr_added;
}

/* Walks the slots by ascending gfn.  Begin with patch_begin(). */
struct patch_cursor {
	const struct flat_patch *patch;
	struct flat_cursor flat;
	struct flat_entry next; /* the next slot of base */
	bool more;              /* `next` is valid */
	uint32_t gone, added;   /* the numbers of those behind the cursor */
};

struct patch_cursor patch_begin(const struct flat_patch *patch);
bool patch_next(struct patch_cursor *cursor, struct flat_entry *entry);

#endif
