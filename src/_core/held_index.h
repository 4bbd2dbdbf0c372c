/* SPDX-License-Identifier: MIT */
/*
 * held_index.h - an index, and the answers in its edited ranges, as they are in one state, for a batch that leaves its
 * section.
 *
 * In a section, a lookup of a marked frame walks the set.  Outside, the set may already be another one, and the writer
 * may have removed marks since.  So a long batch takes a reference to the overlay, and copies its marks and the slots
 * in its edited ranges.  It needs no section from then on.
 *
 * Invariants
 *   L1  the parts are disjoint and ascend; in the state of the copy, each frame of a part has the part's answer, and
 *       each other frame has the answer of the index;
 *   L2  each frame of which the part and the index have different answers is marked in the copy.
 *
 * Locking: none; the copies are made in one section.
 * Cost: making O(r log n) for r edited ranges, and one pass over the marks; a lookup of a marked frame O(log r).
 */
#ifndef MS_HELD_INDEX_H
#define MS_HELD_INDEX_H

#include "vm_index.h"

/* The answer of some frames: a slot, or a hole. */
struct held_part {
	struct flat_entry entry; /* of a slot: the whole slot; of a hole: base_gfn */
	uint64_t end;
	bool is_hole;
};

struct held_index {
	struct flat_index *index; /* without overlay: one reference */
	struct overlay *overlay;  /* one reference, or NULL: the index has no marks */
	struct memory *memory;
	struct held_part *parts;
	size_t nr, room;
	_Atomic uint64_t *marks; /* of the overlay, in the state of the copy */
	size_t nr_words;
};

/* Outside of sections of the caller's own call: holds the index of the present state for n lookups, and makes it first
 * if it pays.  False: there is none, or it has too many edited ranges. */
bool held_index_get(struct ms_vm *vm, uint32_t as_id, size_t n, struct held_index *held);

/* The same, even if it does not pay.  If the shared index cannot be made now, it is one for the caller alone. */
bool held_index_make(struct ms_vm *vm, uint32_t as_id, struct held_index *held);

void held_index_put(struct held_index *held);

/* Whether a lookup must look at the parts first. */
static inline bool held_index_has_parts(const struct held_index *held)
{
	return held->nr;
}

/* NULL: the answer of the index is right. */
const struct held_part *held_index_find(const struct held_index *held, uint64_t gfn);

#endif
