/* SPDX-License-Identifier: MIT */
/*
 * load.c - many new slots in one change: validate all, stage them in the private set, publish them with one swap.
 *
 * Either every entry is created or none.  An entry is validated against the slots of the VM and the entries before it
 * in the list; the error names the first entry that is refused.  Entries are staged in another order, because this is
 * faster.  So a refused load is staged a second time, in the order of the list, to find that entry.
 *
 * Locking: slots_lock throughout.
 * Cost: O(n log n) for n entries, one grace period.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rules.h"
#include "writer.h"

/* Validates the entry against the private set, which has all entries that were staged before, and adds it there.  An id
 * that is in use is an error: a load only creates. */
static int stage(struct writer *w, const struct ms_memslot *slot, uint32_t entry)
{
	const struct memslot_set *set = vm_inactive_set(w->vm, w->as_id);
	struct change *c = &w->change[w->nr];
	int r = rules_unused_id(w->vm, set, slot->id, NULL, w->err);

	c->guest_memfd = -1;
	if (!r)
		r = writer_admit(w, c, set, slot);
	if (!r)
		r = writer_stage(w, c);
	if (r)
		return r;
	c->entry = entry;
	w->nr++;
	return 0;
}

static int check_entries(const struct writer *w, const struct ms_memslot *slots, size_t n)
{
	int r = 0;

	for (size_t i = 0; !r && i < n; i++)
		r = at_entry(w, rules_value(w->vm, &slots[i], w->as_id, w->err), (uint32_t)i);
	return r;
}

struct place {
	uint64_t base_gfn;
	uint32_t entry;
};

static int by_falling_gfn(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	if (x->base_gfn != y->base_gfn)
		return x->base_gfn < y->base_gfn ? 1 : -1;
	return x->entry < y->entry ? -1 : 1;
}

/* Stages from the highest gfn down.  Then design "array" adds each slot at its end, and slots with neighbouring gfns
 * have neighbouring addresses. */
static int stage_all(struct writer *w, const struct ms_memslot *slots, struct place *places, size_t n)
{
	int r = writer_begin(w, n);

	for (size_t i = 0; i < n; i++)
		places[i] = (struct place){ slots[i].base_gfn, (uint32_t)i };
	qsort(places, n, sizeof(*places), by_falling_gfn);
	while (!r && w->nr < n) {
		uint32_t entry = places[w->nr].entry;

		r = at_entry(w, stage(w, &slots[entry], entry), entry);
	}
	return r;
}

/* Stages the first n entries again, now in the order of the list, and rolls them back.  If one is refused, it comes
 * before the entry that *w->err names, and replaces it there.  Otherwise r and *w->err stay. */
static int find_first_refused(struct writer *w, const struct ms_memslot *slots, size_t n, int r)
{
	struct ms_error known = *w->err;
	int first;

	memset(w->change, 0, n * sizeof(*w->change));
	w->nr = 0;
	first = writer_begin(w, n);
	while (!first && w->nr < n) {
		uint32_t entry = (uint32_t)w->nr;

		first = at_entry(w, stage(w, &slots[entry], entry), entry);
	}
	writer_roll_back(w);
	writer_end(w);
	if (first && first != -ENOMEM)
		return first;
	*w->err = known;
	return r;
}

static int load_locked(struct writer *w, const struct ms_memslot *slots, struct place *places, size_t n)
{
	int r = check_entries(w, slots, n);

	if (r)
		return find_first_refused(w, slots, w->err->index, r);
	r = stage_all(w, slots, places, n);
	if (r)
		writer_roll_back(w);
	else
		r = writer_carry_out(w);
	writer_end(w);
	if (r && w->nr < n && r != -ENOMEM)
		return find_first_refused(w, slots, n, r);
	return r;
}

static int alloc_lists(struct writer *w, size_t n)
{
	struct memory *memory = &w->vm->memory;
	struct change *change = NULL;

	if (n <= SIZE_MAX / sizeof(*change)) /* a larger n would overflow the size */
		change = memory_zalloc(memory, n * sizeof(*change));
	if (change) {
		w->change = change;
		w->room = n;
		w->entries = (uint32_t)n;
		w->scratch_size = n * sizeof(struct place);
		w->scratch = memory_zalloc(memory, w->scratch_size);
	}
	return w->scratch ? 0 : no_memory(w->err);
}

static int load(struct writer *w, const struct ms_memslot *slots, size_t n)
{
	int r = rules_as_id(w->vm, w->as_id, w->err);

	if (r || !n)
		return r;
	r = alloc_lists(w, n);
	if (!r)
		r = load_locked(w, slots, w->scratch, n);
	writer_release(w);
	return r;
}

int ms_load_memslots(struct ms_vm *vm, uint32_t as_id, const struct ms_memslot *slots, size_t n, struct ms_error *err)
{
	struct ms_error local_err = { 0 };
	int r = slots || !n ? vm_lock(vm, err) : null_buffer(err);

	if (r)
		return r;
	memory_pool_mark(&vm->memory);
	r = load(writer_of(vm, as_id, err ? err : &local_err), slots, n);
	if (r)
		writer_refused(vm);
	vm_unlock(vm);
	return r;
}
