/* SPDX-License-Identifier: MIT */
/*
 * list_set.c - the plainest design: a linked list by rising gfn, walked for everything.
 *
 * KVM began with an array that every lookup walked.  This is its counterpart among the designs that share slots, and
 * the shortest example of one: two sets, one link in a slot for each, no other index.
 *
 * Invariants
 *   L1  slots rise by base_gfn.
 *
 * Locking: as memslot_set.h.
 * Cost: O(n) for every lookup and change; 72 bytes a slot.
 */
#include "memslot_set.h"

struct list_slot {
	struct memslot slot;
	struct list_slot *next[2]; /* by node_idx */
};

static struct list_slot *list_slot_of(const struct memslot *slot)
{
	return container_of((uintptr_t)slot, struct list_slot, slot);
}

static struct memslot *slot_or_null(struct list_slot *l)
{
	return l ? &l->slot : NULL;
}

static struct list_slot *first_of(const struct memslot_set *set)
{
	return set->store;
}

static void list_init(struct memslot_set *set)
{
	set->store = NULL;
	set->nr = 0;
}

static struct memslot *list_alloc_slot(struct memory *memory)
{
	return slot_or_null(memory_zalloc(memory, sizeof(struct list_slot)));
}

static void list_free_slot(struct memory *memory, struct memslot *slot)
{
	memory_free(memory, list_slot_of(slot), sizeof(struct list_slot));
}

static struct memslot *list_first_from(const struct memslot_set *set, uint64_t gfn)
{
	struct list_slot *l = first_of(set);

	while (l && l->slot.base_gfn + l->slot.npages <= gfn)
		l = l->next[set->node_idx];
	return slot_or_null(l);
}

static struct memslot *list_search(const struct memslot_set *set, uint64_t gfn)
{
	struct memslot *slot = list_first_from(set, gfn);

	return slot && memslot_contains(slot, gfn) ? slot : NULL;
}

static struct memslot *list_find(const struct memslot_set *set, uint32_t id)
{
	struct list_slot *l = first_of(set);

	while (l && l->slot.id != id)
		l = l->next[set->node_idx];
	return slot_or_null(l);
}

static struct memslot *list_next(const struct memslot_set *set, const struct memslot *slot)
{
	return slot_or_null(list_slot_of(slot)->next[set->node_idx]);
}

static bool list_hva_range(const struct memslot_set *set, uint64_t start, uint64_t last, memslot_visit_fn *visit,
			   void *context)
{
	for (struct list_slot *l = first_of(set); l; l = l->next[set->node_idx])
		if (l->slot.hva.start <= last && l->slot.hva.last >= start)
			visit(context, &l->slot);
	return false;
}

/* Needs nothing beyond the slots themselves. */
static int list_begin(struct memory *memory, struct address_space *as, struct memslot_set *private, size_t more)
{
	(void)memory;
	(void)as;
	(void)private;
	(void)more;
	return 0;
}

static void take_out(struct memslot_set *private, struct list_slot *old)
{
	uint32_t idx = private->node_idx;
	struct list_slot *l = first_of(private), *before = NULL;

	for (; l != old; l = l->next[idx])
		before = l;
	if (before)
		before->next[idx] = old->next[idx];
	else
		private->store = old->next[idx];
	old->slot.sets &= (uint8_t)~(1u << idx);
	private->nr--;
}

static void put_in(struct memslot_set *private, struct list_slot *new_slot)
{
	uint32_t idx = private->node_idx;
	struct list_slot *l = first_of(private), *before = NULL;

	for (; l && l->slot.base_gfn < new_slot->slot.base_gfn; l = l->next[idx])
		before = l;
	new_slot->next[idx] = l;
	if (before)
		before->next[idx] = new_slot;
	else
		private->store = new_slot;
	new_slot->slot.sets |= (uint8_t)(1u << idx);
	private->nr++;
}

static void list_replace(struct memslot_set *private, struct memslot *old, struct memslot *new_slot)
{
	struct memslot *expected = old;

	if (old) {
		take_out(private, list_slot_of(old));
		atomic_compare_exchange_strong_explicit(&private->last_used_slot, &expected, new_slot,
							memory_order_relaxed, memory_order_relaxed);
	}
	if (new_slot)
		put_in(private, list_slot_of(new_slot));
}

static void list_empty(struct memory *memory, struct memslot_set *set, bool free_slots)
{
	for (struct list_slot *l = first_of(set), *next; free_slots && l; l = next) {
		next = l->next[set->node_idx];
		memslot_free(&DESIGN_OF(list), memory, &l->slot);
	}
	atomic_store_explicit(&set->last_used_slot, NULL, memory_order_relaxed);
	list_init(set);
}

static int list_check(const struct memslot_set *set, char *letter)
{
	struct list_slot *l = first_of(set);
	size_t nr = 0; /* ends a list that has become a ring */

	*letter = 'L';
	for (; l && l->next[set->node_idx] && nr <= set->nr; l = l->next[set->node_idx], nr++)
		if (l->slot.base_gfn >= l->next[set->node_idx]->slot.base_gfn)
			return 1;
	return nr > set->nr ? 1 : 0;
}

const struct memslot_design DESIGN_OF(list) = {
	.name = "list",
	.shares_slots = true,
	.init = list_init,
	.alloc_slot = list_alloc_slot,
	.free_slot = list_free_slot,
	.search = list_search,
	.find = list_find,
	.first_from = list_first_from,
	.next = list_next,
	.hva_range = list_hva_range,
	.begin = list_begin,
	.replace = list_replace,
	.empty = list_empty,
	.check = list_check,
};
