/* SPDX-License-Identifier: MIT */
/*
 * layout_steps.h - the final state of a list of steps, which transaction.c then makes.
 *
 * The steps are applied, in order, to a private model of one address space.  An item of the model stands for one slot,
 * from the first step that names it on.  A slot that no step names has no item.  A DELETE ends an item; a later CREATE
 * of the same id makes a new one.  So each item has at most one slot of the active set (`old`), and each slot of the
 * set has at most one item.
 *
 * The sources of an item are the items whose slots had its pages: the item itself, and those from which a SPLIT or
 * PUNCH has made it, or which a MERGE has joined to it.  Host addresses say which page is which.  transaction.c derives
 * the dirty bits from them.
 *
 * The model checks the values of each step, but no places: those depend on the final state.
 *
 * The model of a few items needs no allocation: it lies in struct layout.
 *
 * Locking: slots_lock, from layout_resolve() to layout_free(): items point to slots of the active set.
 * Cost: O(1) on average for each step; PUNCH O(items + log m) with m slots, and O(1) for each slot in the hole; SPLIT,
 * PUNCH and MERGE O(sources).
 */
#ifndef MS_LAYOUT_STEPS_H
#define MS_LAYOUT_STEPS_H

#include "list.h"
#include "vm.h"

struct layout_item {
	struct ms_memslot value;
	struct ms_backing *backing; /* that of old, or of the CREATE */
	struct memslot *old; /* the slot of the active set that the item continues, or NULL */
	uint32_t step;    /* the last one that gave the item its place or ended it; without one, the last of all */
	uint32_t sources; /* the newest entry of its chain in layout.sources, + 1; 0: none except the item itself */
	uint32_t noted;   /* for share_sources(): the number of its last call that has noted the item */
	uint32_t change;  /* for transaction.c */
	bool exists; /* no step has ended it */
	bool placed; /* `step` has changed more than the flags */
};

struct layout_source {
	uint32_t item;
	uint32_t next; /* + 1 */
};

/* So many items, and a table for them, lie in struct layout. */
#define LAYOUT_FEW 8
#define LAYOUT_FEW_BITS 4

struct layout {
	struct ms_vm *vm;
	struct ms_error *err;
	uint32_t as_id;
	uint32_t step;     /* the present one */
	struct list items; /* struct layout_item; the order is that of the first steps that name them */
	struct list sources; /* struct layout_source */
	uint32_t *by_id;   /* a hash table: the newest item of each id, + 1; 0: none */
	unsigned table_bits; /* by_id has 1 << table_bits entries */
	uint32_t free_id;  /* every id below it is in use in the model; see knows_free_id */
	uint32_t notes;    /* the number of calls that have noted items */
	bool knows_free_id; /* false: only the ids that a step has ended are considered in free_id */
	uint32_t few_by_id[1 << LAYOUT_FEW_BITS];
	struct layout_item few[LAYOUT_FEW];
};

static inline struct layout_item *layout_item(const struct layout *l, size_t i)
{
	return (struct layout_item *)l->items.items + i;
}

static inline struct layout_source *layout_source(const struct layout *l, size_t i)
{
	return (struct layout_source *)l->sources.items + i;
}

/* Makes the model of the steps for a change of the writer.  A refusal has the number of the step in *err.
 * layout_free() must follow in any case. */
int layout_resolve(struct layout *l, const struct writer *w, const struct ms_step *steps, size_t n);
void layout_free(struct layout *l);

#endif
