/* SPDX-License-Identifier: MIT */
/*
 * search.h - from a gfn to its slot or its address, inside a section.
 *
 * The set's last_used_slot is asked first, then its index, then the design.  The hint is written inside the section
 * only: the writer mends it after the grace period (row "last_used_slot" of docs/locking.md), and a late write would
 * name a slot that is gone.
 *
 * All threads share the hint, and a line that each of them writes at each lookup is one that all of them wait for.  So
 * it moves to a slot that a thread has met twice in a row, where a run of lookups seems to begin, or when there is none;
 * Linux moves it at each search.
 *
 * Cost: a hint one line; an index two or three; a tree one a level.
 */
#ifndef MS_SEARCH_H
#define MS_SEARCH_H

#include "tree_set.h"
#include "vm_index.h"

/* The tree is the design of nearly every VM: its search is inline, the others cost a call. */
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

/* Whether the thread's last lookup ended where this one does, at a slot or at a record of an index. */
static inline bool meets_again(struct srcu_reader *reader, const void *met)
{
	bool again = atomic_load_explicit(&reader->last_found, memory_order_relaxed) == met;

	if (!again)
		atomic_store_explicit(&reader->last_found, met, memory_order_relaxed);
	return again;
}

static inline struct memslot *search_and_hint(const struct ms_vm *vm, struct memslot_set *set,
					      struct srcu_reader *reader, uint64_t gfn)
{
	struct memslot *slot = search(vm, set, gfn);

	point(READER_SLOT_FOUND);
	if (slot && (meets_again(reader, slot) || !atomic_load_explicit(&set->last_used_slot, memory_order_relaxed)))
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

/* __gfn_to_hva_many() for one page: the rule of section "gfn to hva". */
static inline uint64_t translate(const struct memslot *slot, uint64_t gfn, bool write)
{
	if (!slot || unlikely(slot->flags & MS_MEMSLOT_INVALID))
		return MS_HVA_ERR_BAD;
	if (write && (slot->flags & MS_MEM_READONLY))
		return MS_HVA_ERR_RO_BAD;
	return hva_of(slot, gfn);
}

/* The same of a record of an index. */
static inline uint64_t translate_record(const struct flat_record *record, uint64_t gfn, bool write)
{
	return flat_hva(record, gfn << MS_PAGE_SHIFT, write ? FLAT_READONLY : 0);
}

#endif
