/* SPDX-License-Identifier: MIT */
/*
 * vm_index.h - the index of a set: readers make it, publish it and use it; the writer detaches it.
 *
 *   a reader                                           the writer, under slots_lock
 *   uses the index of the set inside its section, or   at the beginning of a change: gives the inactive set the index
 *     takes a reference and leaves the section           of the active set as a base; both have the same slots
 *   without an index: walks the set, and counts these  before its first edit of a set: detaches the index, keeps it as
 *     lookups in the set                                 the base of the next one, and notes each edit (flat_patch.h)
 *   when an index pays: makes one, from the base and   never makes an index
 *     the noted edits, or by a walk of the set in
 *     pieces of one section each; publishes it if the
 *     state of the set is still the same
 *
 * The index of a set always has the slots of this set (M11), because a set that is edited has no readers and no index.
 * A detached index lives as long as somebody holds a reference.
 *
 * An index pays if there are enough lookups for its cost.  To copy a slot from the base costs as much as an index saves
 * in one lookup; to walk to a slot costs about three times as much.  If a set changes before every small batch, no
 * index is made.  If each state has enough lookups for a copy but not for a walk, one walk is made as a base for
 * copies.
 *
 * Locking: readers take no lock.
 * Ordering (row "index"): published by compare-exchange, release; found by load, acquire; detached after the grace
 * period, relaxed.
 * Cost: nothing without lookups; one load for a lookup that its hint does not answer.
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
static inline struct flat_index *set_index(const struct memslot_set *set)
{
	return atomic_load_explicit(&set->index, memory_order_acquire);
}

/* Inside a section: counts lookups that are about to walk the set, and returns whether an index pays by now.  For a
 * brief caller only a small index pays, which takes about a tenth of a millisecond. */
bool vm_index_pays(const struct ms_vm *vm, struct memslot_set *set, size_t lookups, bool brief);

/* Outside of sections: returns the index of the present state, with a reference, or makes it if `lookups` more make it
 * pay.  NULL: there is none and it does not pay, no memory, or a writer has published another state meanwhile. */
struct flat_index *vm_index_get(struct ms_vm *vm, uint32_t as_id, size_t lookups);

/* Returns an index of a state that was published during the call, even if it does not pay.  If the state changes faster
 * than it can be walked in pieces, it is walked in one section.  NULL: no memory, or may_index() is false. */
struct flat_index *vm_index_make(struct ms_vm *vm, uint32_t as_id);

/* After this many searches a thread adds them to the count of the set, and makes the index if it pays and is small.
 * The lookup that does this takes well below a millisecond. */
#define SEARCHES_PER_REPORT 256
void vm_index_report_searches(struct ms_vm *vm, uint32_t as_id);

/* ---- the writer ---- */

/* At the beginning of a change, while both sets of the address space have the same slots. */
void vm_index_share(struct ms_vm *vm, uint32_t as_id);

/* design->replace(); also detaches the index of the set, and notes the edit. */
void vm_replace(struct ms_vm *vm, struct memslot_set *set, struct memslot *old, struct memslot *new_slot);

/* Whether M11 holds: the index, or the patch for the next one, has the slots of the set. */
bool set_index_is_valid(const struct ms_vm *vm, const struct memslot_set *set);

#endif
