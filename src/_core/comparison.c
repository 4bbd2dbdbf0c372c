/* SPDX-License-Identifier: MIT */
/*
 * comparison.c - compares the slots of a state with the rows of a layout.  See private/comparison.h.
 *
 * Locking: none; one read section.  Cost: O(n).
 */
#include "private/comparison.h"

#include "look.h"

/* In bytes.  Slots that were loaded together ascend in memory as in gfn.  So the lines of a slot arrive before the tree
 * leads to it: 100,000 slots take half the time.  Slots in another order lose little by it. */
#define FETCH_AHEAD 1536u

static void fetch_ahead(const struct memslot *slot)
{
	uintptr_t ahead = (uintptr_t)slot + FETCH_AHEAD;

	__builtin_prefetch((const void *)ahead);
	__builtin_prefetch((const void *)(ahead + CACHE_LINE));
}

/* The next slot is compared with the row `at`.  All rows before it have their ids. */
struct merge {
	struct ms_comparison *c;
	size_t at;
};

static struct merge merge_begin(struct ms_comparison *c)
{
	c->nr_gone = 0;
	return (struct merge){ c, 0 };
}

static bool is_equal(const struct ms_comparison *c, size_t at, const struct ms_memslot *slot,
		     const struct ms_backing *backing)
{
	const struct ms_memslot *row = &c->wanted[at];

	return row->base_gfn == slot->base_gfn && row->npages == slot->npages &&
	       row->userspace_addr == slot->userspace_addr && row->flags == slot->flags &&
	       (!c->with_ids || row->id == slot->id) && (!c->backings || c->backings[at] == backing);
}

static void put_gone(struct ms_comparison *c, const struct ms_memslot *slot, struct ms_backing *backing)
{
	c->gone[c->nr_gone] = *slot;
	c->gone_backings[c->nr_gone++] = backing;
}

static inline void merge_slot(struct merge *m, struct ms_memslot slot, struct ms_backing *backing)
{
	struct ms_comparison *c = m->c;

	while (m->at < c->nr_wanted && c->wanted[m->at].base_gfn < slot.base_gfn)
		c->ids[m->at++] = MS_SLOT_ANY;
	if (likely(m->at < c->nr_wanted && is_equal(c, m->at, &slot, backing)))
		c->ids[m->at++] = slot.id;
	else
		put_gone(c, &slot, backing);
}

static void merge_end(struct merge *m)
{
	while (m->at < m->c->nr_wanted)
		m->c->ids[m->at++] = MS_SLOT_ANY;
}

static void compare_set(const struct memslot_design *design, const struct memslot_set *set, struct ms_comparison *c)
{
	struct merge m = merge_begin(c);

	for (const struct memslot *slot = design->first_from(set, 0); slot; slot = design->next(set, slot)) {
		fetch_ahead(slot);
		merge_slot(&m, memslot_value(slot), slot->backing);
	}
	merge_end(&m);
}

size_t ms_compare_memslots(struct ms_vm *vm, uint32_t as_id, struct ms_comparison *c)
{
	struct look look = look_begin(vm, as_id);
	size_t nr = look.set ? look.set->nr : 0;

	if (!look.set)
		ms_compare_rows(NULL, 0, c);
	else if (nr <= c->room)
		compare_set(vm->design, look.set, c);
	look_end(vm, look);
	return nr;
}

void ms_compare_rows(const struct ms_memslot *slots, size_t n, struct ms_comparison *c)
{
	struct merge m = merge_begin(c);

	for (size_t i = 0; i < n; i++)
		merge_slot(&m, slots[i], NULL);
	merge_end(&m);
}
