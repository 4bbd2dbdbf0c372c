/* SPDX-License-Identifier: MIT */
/*
 * vm_index.h - the index that hangs off a set: who makes it, who holds it, who takes it away.
 *
 *   readers                                              the writer, under slots_lock
 *   find one in the set: use it inside the section,      at the begin of a change: the inactive set may derive from
 *     or take a reference and leave the section            what the active one has (they hold the same slots)
 *   find none: walk, and count what was walked           before its first edit of a set: takes the index off, keeps
 *   when an index pays: copy what the set knows of an      it as what to derive from, and notes each edit
 *     older one, or walk the set in pieces, a section    never makes one
 *     each; publish it while the set is still the same
 *
 * A reference keeps an index when it is taken off.  An index never outlives its truth in a set: a set that is edited
 * has no readers and no index.
 *
 * When it pays: lookups since the set was published, weighed against its slots.  Copying a slot costs what an index
 * saves in a lookup, walking it about three times that.  A set that changes before every small batch is walked as ever;
 * where each state has lookups enough for a copy, one walk is invested in the copies.
 *
 * Ordering (row "index"): published by compare-exchange, release; found by load, acquire; taken off after the grace
 * period, relaxed.
 * Cost: nothing without lookups; one load for a lookup that its hint does not answer.
 */
#ifndef MS_VM_INDEX_H
#define MS_VM_INDEX_H

#include "look.h"

/* Whether the VM's design and policy know indexes. */
static inline bool may_index(const struct ms_vm *vm)
{
	return vm->design->indexed &&
	       !(atomic_load_explicit(&vm->index_policy, memory_order_relaxed) & VM_INDEX_NEVER);
}

/* ---- readers ---- */

/* Inside a section of the set. */
static inline struct flat_index *set_index(const struct memslot_set *set)
{
	return atomic_load_explicit(&set->index, memory_order_acquire);
}

/* Inside a section: counts lookups that are about to walk; whether an index would pay by now.  A brief caller makes
 * only small ones: a tenth of a millisecond. */
bool vm_index_pays(const struct ms_vm *vm, struct memslot_set *set, size_t lookups, bool brief);

/* Outside of sections: an index of the present state with a reference, where one is there or `lookups` more make it
 * pay; else NULL. */
struct flat_index *vm_index_get(struct ms_vm *vm, uint32_t as_id, size_t lookups);

/* An index of a state that was published during the call, whatever it costs; NULL: no memory, or the policy is against
 * it.  When states move faster than pieces are walked, it is walked in one section. */
struct flat_index *vm_index_make(struct ms_vm *vm, uint32_t as_id);

/* After so many searches a thread adds them to the count of the set, and makes the index where that pays and is quick:
 * the one lookup that does it takes well below a millisecond. */
#define SEARCHES_PER_REPORT 256
void vm_index_report_searches(struct ms_vm *vm, uint32_t as_id);

/* ---- the writer ---- */

/* At the begin of a change, while both sets of the address space are alike. */
void vm_index_share(struct ms_vm *vm, uint32_t as_id);

/* design->replace(), noted. */
void vm_replace(struct ms_vm *vm, struct memslot_set *set, struct memslot *old, struct memslot *new_slot);

/* M11: the index, and what the next would be derived from, are the slots of the set. */
bool set_index_is_valid(const struct ms_vm *vm, const struct memslot_set *set);

#endif
