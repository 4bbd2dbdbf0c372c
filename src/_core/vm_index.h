/* SPDX-License-Identifier: MIT */
/*
 * vm_index.h - the index of an address space: readers make it and use it; the writer marks its edits.
 *
 *   a reader                                            the writer, under slots_lock
 *   uses the index for frames without marks, and walks  before and after a change: counts it in `change`
 *     the set for the others (overlay.h)                before each edit of a set: marks the slots of the edit in the
 *   counts the lookups that walk                          current and in the coming overlay
 *   when they have paid for an index: makes one, in     never makes an index
 *     steps, and lets all lookups use it
 *
 * An index is made in bounded steps, by any readers, one at a time:
 *
 *   begin     make the coming overlay.  From then on the writer marks its edits there.  A change that is under way may
 *             have made some edits before that.  If so, the walk waits until that change is over
 *   gather    collect the slots, VM_INDEX_PIECE of them in each section, from the state that is active then.  With the
 *             lists of differences: the slots of the state of begin, with those that are gone and without the new
 *             ones.  If the lists are lost: a slot with a block without mark, or outside of the edited ranges, is in
 *             all states since begin; all others are left out
 *   step      make the index of these slots (flat_index.h), without a section
 *   publish   the coming overlay becomes the current one
 *
 * So a running build is not disturbed by changes, and a change does not wait for it.  If there is a former index, its
 * slots are copied; the set is only searched where there are marks, or where there were marks when the copy passed.
 *
 * An index pays if the lookups that had to walk are as many as it costs (vm_index.c).
 *
 * Locking: readers take no lock.  `busy` of the build is only tried.
 * Ordering (rows "change", "overlays", "index" and "index build" of docs/locking.md).
 * Cost: nothing without lookups, except for one store before and after a change; two loads for a lookup that its hint
 * does not answer.
 */
#ifndef MS_VM_INDEX_H
#define MS_VM_INDEX_H

#include "look.h"

/* Whether the design and the policy of the VM allow an index. */
static inline bool may_index(const struct ms_vm *vm)
{
	return vm->design->indexed && !(atomic_load_explicit(&vm->index_policy, memory_order_relaxed) & VM_INDEX_NEVER);
}

/* ---- readers ---- */

/* Inside a section of the set. */
static inline struct overlay *set_index(const struct memslot_set *set)
{
	return atomic_load_explicit(&set->index, memory_order_acquire);
}

/* Inside a section: the index, if a single lookup of gfn can use it.  NULL: walk the set. */
static inline const struct flat_index *index_for_one(const struct ms_vm *vm, const struct memslot_set *set,
						     uint64_t gfn)
{
	const struct overlay *o = set_index(set);

	return o && likely(o->for_one) && likely(!overlay_marked(o, gfn)) && likely(may_index(vm)) ? o->index : NULL;
}

/* Inside a section: counts lookups that walk the set, and returns whether a new index pays by now, or whether one is
 * being made. */
bool vm_index_is_due(struct ms_vm *vm, struct memslot_set *set, size_t lookups);

/* Outside of sections of the caller's own call: makes the index.  If `brief` and if the set is large, does only the
 * work of VM_INDEX_PIECE slots; later calls continue.  Does nothing if there is no memory, if another thread advances
 * it, or if it must wait for the end of a change. */
void vm_index_make(struct ms_vm *vm, uint32_t as_id, bool brief);

/* After this many searches a thread adds them to the count of the set.  If an index is due, it does the work of at most
 * VM_INDEX_PIECE slots. */
#define SEARCHES_PER_REPORT 256
#define VM_INDEX_PIECE 2048
void vm_index_report_searches(struct ms_vm *vm, uint32_t as_id);

/* Makes an index of one state in one section, for one batch alone.  NULL: no memory, or may_index() is false. */
struct flat_index *vm_index_make_private(struct ms_vm *vm, uint32_t as_id);

/* The values of a slot, as an index holds them. */
struct flat_entry vm_index_entry(const struct memslot *slot);

/* A slot that an index holds: INVALID ones are holes. */
static inline bool is_indexed(const struct memslot *slot)
{
	return slot && !(slot->flags & MS_MEMSLOT_INVALID);
}

/* ---- the writer ---- */

/* Around each change, while both sets of the address space have the same slots. */
static inline void vm_index_begin_change(struct ms_vm *vm, uint32_t as_id)
{
	overlays_begin_change(&vm->as[as_id].overlays);
}

static inline void vm_index_end_change(struct ms_vm *vm, uint32_t as_id)
{
	overlays_end_change(&vm->as[as_id].overlays);
}

/* design->replace(); marks the slots before it. */
void vm_replace(struct ms_vm *vm, struct memslot_set *set, struct memslot *old, struct memslot *new_slot);

/* The same in two steps: exchange() of the design, which returns false if it is not possible, and replace_by_gfn().
 * Only the second one marks slots, so that a place is listed as edited only after it was checked. */
bool vm_exchange(struct ms_vm *vm, struct memslot_set *set, struct memslot *old, struct memslot *new_slot);
void vm_replace_by_gfn(struct ms_vm *vm, struct memslot_set *set, struct memslot *old, struct memslot *new_slot);

/* design->build(); marks the new slots before it. */
bool vm_fill(struct ms_vm *vm, struct memslot_set *set, const struct sort_item *by_gfn, const struct sort_item *by_hva,
	     size_t n);

/* Whether M11 holds: the index has the slots of the set, except for the differences in its list; if the lists are lost,
 * except in marked blocks. */
bool set_index_is_valid(const struct ms_vm *vm, const struct memslot_set *set);

#endif
