/* SPDX-License-Identifier: MIT */
/*
 * list_set.c - the simplest design: a linked list by rising gfn.  Each operation walks it.
 *
 * This is the file to copy for a new design (CONTRIBUTING.md, "Try your own idea").  Both sets hold the same slots; a
 * slot has a link for each set.
 *
 * Invariants
 *   L1  slots rise by base_gfn.
 *
 * Locking: as memslot_set.h.
 * Cost: O(n) for each lookup and change; 72 bytes for a slot.
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

/* The slot after l; after NULL comes the first one. */
static struct list_slot *after(const struct memslot_set *set, const struct list_slot *l)
{
	return l ? l->next[set->node_idx] : set->store;
}

static void link_after(struct memslot_set *set, struct list_slot *l, struct list_slot *next)
{
	if (l)
		l->next[set->node_idx] = next;
	else
		set->store = next;
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
	struct list_slot *l = after(set, NULL);

	while (l && l->slot.base_gfn + l->slot.npages <= gfn)
		l = after(set, l);
	return slot_or_null(l);
}

static struct memslot *list_search(const struct memslot_set *set, uint64_t gfn)
{
	struct memslot *slot = list_first_from(set, gfn);

	return slot && memslot_contains(slot, gfn) ? slot : NULL;
}

static struct memslot *list_find(const struct memslot_set *set, uint32_t id)
{
	struct list_slot *l = after(set, NULL);

	while (l && l->slot.id != id)
		l = after(set, l);
	return slot_or_null(l);
}

static struct memslot *list_next(const struct memslot_set *set, const struct memslot *slot)
{
	return slot_or_null(after(set, list_slot_of(slot)));
}

static bool list_hva_range(const struct memslot_set *set, uint64_t start, uint64_t last, memslot_visit_fn *visit,
			   void *context)
{
	for (struct list_slot *l = after(set, NULL); l; l = after(set, l))
		if (l->slot.hva.start <= last && l->slot.hva.last >= start)
			visit(context, &l->slot);
	return false;
}

static void list_replace(struct memslot_set *private, struct memslot *old, struct memslot *new_slot)
{
	struct list_slot *before = NULL, *l;

	if (old) {
		while ((l = after(private, before)) != list_slot_of(old))
			before = l;
		link_after(private, before, after(private, l));
		memslot_leaves(private, old);
		carry_last_used_slot(private, old, new_slot);
	}
	if (new_slot) {
		for (before = NULL; (l = after(private, before)) && l->slot.base_gfn < new_slot->base_gfn;)
			before = l;
		link_after(private, list_slot_of(new_slot), l);
		link_after(private, before, list_slot_of(new_slot));
		memslot_joins(private, new_slot);
	}
}

static void list_empty(struct memory *memory, struct memslot_set *set, bool free_slots)
{
	for (struct list_slot *l = after(set, NULL), *next; free_slots && l; l = next) {
		next = after(set, l);
		memslot_free(&DESIGN_OF(list), memory, &l->slot);
	}
	set->store = NULL;
	set->nr = set->nr_raw = set->nr_logged = 0;
}

static int list_check(const struct memslot_set *set, char *letter)
{
	struct list_slot *l = after(set, NULL), *next;
	size_t nr = 0; /* ends the walk if a broken list has a circle */

	*letter = 'L';
	for (; l && (next = after(set, l)) && nr <= set->nr; l = next, nr++)
		if (l->slot.base_gfn >= next->slot.base_gfn)
			return 1;
	return nr > set->nr ? 1 : 0;
}

const struct memslot_design DESIGN_OF(list) = {
	.name = "list",
	.shares_slots = true,
	.costs = { .gfn = COST_WALK, .id = COST_WALK, .hva = COST_WALK, .change = COST_WALK },
	.alloc_slot = list_alloc_slot,
	.free_slot = list_free_slot,
	.search = list_search,
	.find = list_find,
	.first_from = list_first_from,
	.next = list_next,
	.hva_range = list_hva_range,
	.replace = list_replace,
	.empty = list_empty,
	.check = list_check,
};
