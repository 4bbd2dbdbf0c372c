/* SPDX-License-Identifier: MIT */
/*
 * search.h - finds the slot of a gfn, or its host address, or marks its page, inside a read section.
 *
 * A lookup tries last_used_slot of the set first (the hint), then the index of the set, then the design.  A reader
 * writes the hint only inside its section.  The writer corrects the hint after the grace period (row "last_used_slot"
 * of docs/locking.md), so a later write could store a slot that has been freed.
 *
 * All threads share the hint.  If each of them wrote it at each lookup, all would wait for its cache line.  So the hint
 * moves only if a thread has found the same slot twice in a row, if a run of lookups in one slot seems to begin, or if
 * there is no hint.  Linux moves it at each search.
 *
 * Locking: none.  Cost: a hint reads one cache line, an index three, a tree one at each level.
 */
#ifndef MS_SEARCH_H
#define MS_SEARCH_H

#include "tree_set.h"
#include "vm_index.h"

/* Nearly every VM has the design "tree", whose search is inline.  Other designs cost a call. */
static inline struct memslot *search(const struct ms_vm *vm, const struct memslot_set *set, uint64_t gfn)
{
	return likely(vm->design == &DESIGN_OF(tree)) ? tree_search(set, gfn) : vm->design->search(set, gfn);
}

static inline struct memslot *hint_for(const struct memslot_set *set, uint64_t gfn)
{
	struct memslot *slot = atomic_load_explicit(&set->last_used_slot, memory_order_relaxed);

	return slot && memslot_contains(slot, gfn) ? slot : NULL;
}

static inline void move_hint(struct memslot_set *set, struct memslot *slot)
{
	atomic_store_explicit(&set->last_used_slot, slot, memory_order_relaxed);
}

/* Whether the last lookup found the same slot, or the same piece of an index.  A stale *last costs one redundant
 * search. */
static inline bool same_as_last(_Atomic(const void *) *last, const void *found)
{
	bool same = atomic_load_explicit(last, memory_order_relaxed) == found;

	if (!same)
		atomic_store_explicit(last, found, memory_order_relaxed);
	return same;
}

static inline bool found_again(struct srcu_reader *reader, const void *found)
{
	return same_as_last(&reader->last_found, found);
}

static inline struct memslot *search_and_hint(const struct ms_vm *vm, struct memslot_set *set,
					      struct srcu_reader *reader, uint64_t gfn)
{
	struct memslot *slot = search(vm, set, gfn);

	point(READER_SLOT_FOUND);
	if (slot && (found_again(reader, slot) || !atomic_load_explicit(&set->last_used_slot, memory_order_relaxed)))
		move_hint(set, slot);
	return slot;
}

static inline struct memslot *find_hinted(const struct ms_vm *vm, struct memslot_set *set, struct srcu_reader *reader,
					  uint64_t gfn, enum srcu_count *found)
{
	struct memslot *slot = hint_for(set, gfn);

	*found = SRCU_HIT_LAST_USED;
	if (slot)
		return slot;
	slot = search_and_hint(vm, set, reader, gfn);
	*found = slot ? SRCU_HIT_SEARCH : SRCU_MISS;
	return slot;
}

/* __gfn_to_hva_many() for one page.  NULL is a hole. */
static inline uint64_t translate(const struct memslot *slot, uint64_t gfn, bool write)
{
	uint32_t refusing = MS_MEMSLOT_INVALID | (write ? MS_MEM_READONLY : 0);

	if (likely(slot && !(slot->flags & refusing)))
		return hva_of(slot, gfn);
	return slot && !(slot->flags & MS_MEMSLOT_INVALID) ? MS_HVA_ERR_RO_BAD : MS_HVA_ERR_BAD;
}

/* The same for a delta of an index. */
static inline uint64_t translate_delta(uint64_t delta, uint64_t gfn, bool write)
{
	return flat_answer(delta, gfn << MS_PAGE_SHIFT, write ? FLAT_READONLY : 0);
}

/* mark_page_dirty().  NULL is a hole. */
static inline void mark(const struct memslot *slot, uint64_t gfn)
{
	point(READER_MARKS);
	if (slot && slot->dirty)
		dirty_log_mark_sized(slot->dirty, slot->npages, gfn - slot->base_gfn);
}

#endif
