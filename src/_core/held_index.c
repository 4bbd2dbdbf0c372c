/* SPDX-License-Identifier: MIT */
/*
 * held_index.c - see held_index.h for the invariant L1.
 */
#include "held_index.h"

#include <stdlib.h>
#include <string.h>

/* The room for parts: this many for each edited range, and some more. */
#define PARTS_PER_RANGE 4
#define PARTS_MIN 64

static void put_parts(struct held_index *held)
{
	memory_free(held->memory, held->parts, held->room * sizeof(*held->parts));
	memory_free(held->memory, held->marks, held->nr_words * sizeof(*held->marks));
	held->parts = NULL;
	held->marks = NULL;
	held->nr = held->room = held->nr_words = 0;
}

void held_index_put(struct held_index *held)
{
	put_parts(held);
	if (held->overlay)
		overlay_put(held->overlay);
	else
		flat_put(held->index);
}

const struct held_part *held_index_find(const struct held_index *held, uint64_t gfn)
{
	size_t place = 0;

	for (size_t nr = held->nr, half; nr > 1; nr -= half) {
		half = nr / 2;
		place += held->parts[place + half].entry.base_gfn <= gfn ? half : 0;
	}
	return held->nr && gfn >= held->parts[place].entry.base_gfn && gfn < held->parts[place].end ?
		       &held->parts[place] :
		       NULL;
}

/* ---- copying, inside a section ---- */

static int by_begin(const void *a, const void *b)
{
	const struct gfn_range *x = a, *y = b;

	return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static bool add_part(struct held_index *held, struct held_part part)
{
	if (held->nr == held->room)
		return false;
	held->parts[held->nr++] = part;
	return true;
}

static bool add_hole(struct held_index *held, uint64_t begin, uint64_t end)
{
	return begin >= end || add_part(held, (struct held_part){ { .base_gfn = begin }, end, true });
}

/* The whole slots in the range and the holes between them, from `from` on.  Returns the end of the last one, or 0 if
 * there is no room. */
static uint64_t copy_range(const struct ms_vm *vm, const struct memslot_set *set, struct held_index *held,
			   uint64_t from, uint64_t end)
{
	const struct memslot *slot = vm->design->first_from(set, from);

	for (; slot && slot->base_gfn < end; slot = vm->design->next(set, slot)) {
		uint64_t slot_end = slot->base_gfn + slot->npages;

		if (!is_indexed(slot))
			continue;
		ms_assert(slot->base_gfn >= from);
		if (!add_hole(held, from, slot->base_gfn) ||
		    !add_part(held, (struct held_part){ vm_index_entry(slot), slot_end, false }))
			return 0;
		from = slot_end;
	}
	if (!add_hole(held, from, end))
		return 0;
	return from > end ? from : end;
}

/* A slot may begin before its range, if another range has its first part: then that one has copied it. */
static bool copy_ranges(const struct ms_vm *vm, const struct memslot_set *set, struct held_index *held,
			struct gfn_range *ranges, uint32_t nr)
{
	uint64_t done = 0;

	qsort(ranges, nr, sizeof(*ranges), by_begin);
	for (uint32_t i = 0; i < nr; i++) {
		uint64_t from = ranges[i].begin > done ? ranges[i].begin : done;

		if (from < ranges[i].end)
			done = copy_range(vm, set, held, from, ranges[i].end);
		if (from < ranges[i].end && !done)
			return false;
	}
	return true;
}

/* ---- taking ---- */

/* The sizes of the copies of a batch. */
struct sizes {
	int64_t ranges; /* -1: there is no overlay, or its edited ranges are not known */
	size_t nr_words; /* of marks */
};

/* Looks at the present overlay.  Counts the slots that must be copied, and sets *due. */
static struct sizes look_at_index(struct ms_vm *vm, uint32_t as_id, size_t n, bool *due)
{
	struct look look = look_begin(vm, as_id);
	const struct overlay *o = set_index(look.set);
	struct sizes sizes = { -1, o ? overlay_nr_words(o) : 0 };

	if (o)
		sizes.ranges = overlay_unknown(o, look.set->node_idx, NULL, SIZE_MAX);
	*due = vm_index_is_due(vm, look.set, sizes.ranges < 0 ? n : (size_t)sizes.ranges);
	look_end(vm, look);
	return sizes;
}

static void copy_marks(const struct overlay *o, struct held_index *held)
{
	for (size_t i = 0; i < held->nr_words; i++)
		atomic_store_explicit(&held->marks[i], atomic_load_explicit(&o->marks[i], memory_order_relaxed),
				      memory_order_relaxed);
}

/* With room for the parts of `ranges` ranges, and with `scratch` for the ranges themselves. */
static bool take(struct ms_vm *vm, uint32_t as_id, struct held_index *held, struct gfn_range *scratch, size_t ranges)
{
	struct look look = look_begin(vm, as_id);
	struct overlay *o = set_index(look.set);
	int64_t nr = o ? overlay_unknown(o, look.set->node_idx, scratch, ranges) : -1;
	bool taken = nr >= 0;

	if (nr > 0) {
		taken = overlay_nr_words(o) == held->nr_words && copy_ranges(vm, look.set, held, scratch, (uint32_t)nr);
		if (taken)
			copy_marks(o, held);
	}
	if (taken) {
		held->overlay = overlay_get(o);
		held->index = o->index;
	}
	look_end(vm, look);
	return taken;
}

/* Holds the index if it has about this size.  A writer may add some more ranges meanwhile. */
static bool hold(struct ms_vm *vm, uint32_t as_id, struct held_index *held, struct sizes sizes)
{
	size_t ranges = (size_t)sizes.ranges, most = ranges + PARTS_MIN / PARTS_PER_RANGE;
	struct gfn_range *scratch = NULL;
	size_t size = most * sizeof(*scratch);
	bool held_now;

	*held = (struct held_index){ .memory = &vm->memory };
	if (take(vm, as_id, held, NULL, 0))
		return true;
	scratch = memory_zalloc(&vm->memory, size);
	held->room = PARTS_PER_RANGE * ranges + PARTS_MIN;
	held->parts = memory_zalloc(&vm->memory, held->room * sizeof(*held->parts));
	held->nr_words = sizes.nr_words;
	held->marks = memory_zalloc(&vm->memory, held->nr_words * sizeof(*held->marks));
	held_now = scratch && held->parts && held->marks && take(vm, as_id, held, scratch, most);
	memory_free(&vm->memory, scratch, size);
	if (!held_now)
		put_parts(held);
	return held_now;
}

bool held_index_get(struct ms_vm *vm, uint32_t as_id, size_t n, struct held_index *held)
{
	struct sizes sizes;
	bool due;

	if (!may_index(vm))
		return false;
	sizes = look_at_index(vm, as_id, n, &due);
	if (due) {
		vm_index_make(vm, as_id, false);
		sizes = look_at_index(vm, as_id, 0, &due);
	}
	return sizes.ranges >= 0 && hold(vm, as_id, held, sizes);
}

bool held_index_make(struct ms_vm *vm, uint32_t as_id, struct held_index *held)
{
	struct flat_index *index;
	struct sizes sizes;
	bool due;

	if (!may_index(vm))
		return false;
	vm_index_make(vm, as_id, false);
	sizes = look_at_index(vm, as_id, 0, &due);
	if (sizes.ranges >= 0 && hold(vm, as_id, held, sizes))
		return true;
	index = vm_index_make_private(vm, as_id);
	*held = (struct held_index){ .index = index, .memory = &vm->memory };
	return index;
}
