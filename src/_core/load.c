/* SPDX-License-Identifier: MIT */
/*
 * load.c - many new slots in one change: validate all, put them into the private set, publish them with one swap.
 *
 * Either every entry is created or none.  An entry is validated against the slots of the VM and the entries before it
 * in the list; the error names the first entry that is refused.
 *
 * There are two ways into the private set:
 *
 *   build   creates all slots, sorts them by gfn and by host address, finds overlaps between neighbours, and lets the
 *           design build the set from the sorted slots.  For a design with build(), and if the load is not small
 *           against the set.  Such a load finds that some entries conflict, but not which of them is the first.
 *   stage   validates and adds one slot after the other.
 *
 * The slots are created from the highest gfn down.  Then slots with neighbouring gfns have neighbouring addresses
 * (memory.h), and design "array" adds each slot at its end.  A refused load is staged a second time, in the order of
 * the list, to find the first entry that is refused.
 *
 * Locking: slots_lock throughout. Cost: with n entries and m slots O(m + n) if the entries are sorted by gfn and by
 * host address, and O(n) more for each byte in which their keys differ.  Staging is O(n log (m + n)).  One grace
 * period.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "private/preview.h"
#include "private/snapshot.h"
#include "rules.h"
#include "slot_make.h"
#include "vm_index.h"
#include "writer.h"

/* The list of a load. */
struct load {
	const struct ms_memslot *slots;
	struct ms_backing *const *backings; /* for each slot its backing or NULL; or NULL */
	size_t n;
	bool builds;
	struct sort_item *by_gfn, *by_hva, *spare; /* each has room for all slots of the set and the new ones */
	size_t nr; /* of these slots that are in by_gfn and by_hva */
};

/* Returned when two slots conflict and nothing is known about the first conflict of the list. */
#define SOME_CONFLICT 1

/* ---- stage ---- */

static struct ms_backing *backing_of(const struct load *load, uint32_t entry)
{
	return load->backings ? load->backings[entry] : NULL;
}

/* Validates the entry against the private set, which has all entries that were staged before, and adds it there.  An id
 * that is in use is an error: a load only creates. */
static int stage(struct writer *w, const struct load *load, uint32_t entry)
{
	const struct memslot_set *set = vm_inactive_set(w->vm, w->as_id);
	const struct ms_memslot *slot = &load->slots[entry];
	struct change *c = &w->change[w->nr];
	int r = rules_unused_id(w->vm, set, slot->id, NULL, w->err);

	c->guest_memfd = -1;
	c->backing = backing_of(load, entry);
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

static int check_entries(const struct writer *w, const struct load *load)
{
	int r = 0;

	for (size_t i = 0; !r && i < load->n; i++)
		r = at_entry(w, rules_value(w->vm, &load->slots[i], w->as_id, w->err), (uint32_t)i);
	return r;
}

/* ---- build ---- */

static int complete(const struct writer *w, struct memslot *slot)
{
	int r = rules_guest_memfd(slot->flags, -1, w->err);

	if (!r)
		r = slot_give_log(w->vm, slot, NULL, w->err);
	return r ? r : rules_gpa_limit(w->vm, slot, w->err);
}

/* Creates the slot of an entry, which no set has yet. */
static int create_entry(struct writer *w, const struct load *load, uint32_t entry)
{
	struct change *c = &w->change[w->nr];
	int r = slot_create(w->vm, &load->slots[entry], w->as_id, &c->new_slot, w->err);

	c->entry = entry;
	if (!r)
		c->new_slot->backing = backing_get(backing_of(load, entry));
	if (!r && !w->vm->frozen)
		r = complete(w, c->new_slot);
	if (r)
		writer_discard(w, c);
	else
		w->nr++;
	return r;
}

/* The next one of two slots in the order of gfn.  At least one is not NULL. */
static bool comes_first(const struct memslot *a, const struct memslot *b)
{
	return a && (!b || a->base_gfn < b->base_gfn);
}

/* Merges the slots of the set and the new ones, which the list of changes has from the highest gfn down.  Returns false
 * if some of them overlap: then two neighbours do. */
static bool merge_with_set(const struct writer *w, struct load *load, const struct memslot_set *set)
{
	const struct memslot_design *design = w->vm->design;
	const struct memslot *slot = design->first_from(set, 0);
	uint64_t end = 0;

	for (size_t i = w->nr; slot || i; load->nr++) {
		const struct memslot *new_slot = i ? w->change[i - 1].new_slot : NULL, *next = slot;

		if (comes_first(slot, new_slot)) {
			slot = design->next(set, slot);
		} else {
			next = new_slot;
			i--;
		}
		if (next->base_gfn < end)
			return false;
		end = next->base_gfn + next->npages;
		load->by_gfn[load->nr] = (struct sort_item){ next->base_gfn, next };
		load->by_hva[load->nr] = (struct sort_item){ next->hva.start, next };
	}
	return true;
}

/* The sort keeps the order of equal keys, so slots at one host address stay in the order of their gfns. */
static int build(struct writer *w, struct load *load)
{
	struct memslot_set *set = vm_inactive_set(w->vm, w->as_id);

	if (!merge_with_set(w, load, set))
		return SOME_CONFLICT;
	sort_by_key(load->by_hva, load->spare, load->nr);
	if (!vm_fill(w->vm, set, load->by_gfn, load->by_hva, load->nr))
		return SOME_CONFLICT;
	for (size_t i = 0; i < w->nr; i++)
		w->change[i].staged = true;
	w->built = load->by_gfn;
	w->nr_built = load->nr;
	return 0;
}

/* ---- the load ---- */

static int stage_all(struct writer *w, struct load *load)
{
	int r = writer_begin(w, load->n);

	for (size_t i = 0; i < load->n; i++)
		load->by_gfn[i] = (struct sort_item){ load->slots[i].base_gfn, &load->slots[i] };
	sort_by_key(load->by_gfn, load->spare, load->n);
	while (!r && w->nr < load->n) {
		const struct ms_memslot *slot = load->by_gfn[load->n - 1 - w->nr].item;
		uint32_t entry = (uint32_t)(slot - load->slots);

		r = at_entry(w, load->builds ? create_entry(w, load, entry) : stage(w, load, entry), entry);
	}
	return r || !load->builds ? r : build(w, load);
}

/* Stages the first n entries again, now in the order of the list, and rolls them back.  If one is refused, it comes
 * before the entry that *w->err names, and replaces it there.  Otherwise r and *w->err stay. */
static int find_first_refused(struct writer *w, const struct load *load, size_t n, int r)
{
	struct ms_error known = *w->err;
	int first;

	memset(w->change, 0, n * sizeof(*w->change));
	w->nr = 0;
	first = writer_begin(w, n);
	while (!first && w->nr < n) {
		uint32_t entry = (uint32_t)w->nr;

		first = at_entry(w, stage(w, load, entry), entry);
	}
	writer_roll_back(w);
	writer_end(w);
	if (first && (first != -ENOMEM || r == SOME_CONFLICT))
		return first;
	*w->err = known;
	return r;
}

static int load_locked(struct writer *w, struct load *load)
{
	int r = w->vm->frozen ? 0 : check_entries(w, load);

	if (r)
		return find_first_refused(w, load, w->err->index, r);
	r = stage_all(w, load);
	if (!r) {
		r = writer_carry_out(w);
		writer_end(w);
		return r;
	}
	writer_roll_back(w);
	writer_end(w);
	return r == -ENOMEM ? r : find_first_refused(w, load, load->n, r);
}

/* To build a set costs 0.2 to 0.3 us for each of its slots.  To add a slot costs 4 us in a set of a million slots.  So
 * a build pays if there are no more than about BUILD_SHARE slots for each new one. */
#define BUILD_SHARE 8

static bool can_build(const struct writer *w, size_t n)
{
	return w->vm->design->build && vm_inactive_set(w->vm, w->as_id)->nr / BUILD_SHARE <= n;
}

static int alloc_lists(struct writer *w, struct load *load)
{
	struct memory *memory = &w->vm->memory;
	size_t n = load->n, all = n + (load->builds ? vm_inactive_set(w->vm, w->as_id)->nr : 0);
	struct change *change = NULL;
	struct sort_item *items;

	if (n <= SIZE_MAX / sizeof(*change) / 2) /* a larger n would overflow the sizes */
		change = memory_zalloc(memory, n * sizeof(*change));
	if (change) {
		w->change = change;
		w->room = n;
		w->entries = (uint32_t)n;
		w->scratch_size = 3 * all * sizeof(*items);
		w->scratch = memory_zalloc(memory, w->scratch_size);
	}
	items = w->scratch;
	if (!items)
		return no_memory(w->err);
	load->by_gfn = items;
	load->by_hva = items + all;
	load->spare = items + 2 * all;
	return 0;
}

static int load_list(struct writer *w, struct load *load)
{
	int r = rules_as_id(w->vm, w->as_id, w->err);

	if (r || !load->n)
		return r;
	load->builds = can_build(w, load->n);
	r = alloc_lists(w, load);
	if (!r)
		r = load_locked(w, load);
	writer_release(w);
	return r;
}

/* Loads the list and releases the lock. */
static int load(struct ms_vm *vm, uint32_t as_id, struct load *load, struct ms_error *err)
{
	struct ms_error local_err = { 0 };
	int r;

	memory_pool_mark(&vm->memory);
	r = load_list(writer_of(vm, as_id, err ? err : &local_err), load);
	if (r)
		writer_refused(vm);
	vm_unlock(vm);
	return r;
}

int ms_load_memslots(struct ms_vm *vm, uint32_t as_id, const struct ms_memslot *slots, size_t n, struct ms_error *err)
{
	int r = slots || !n ? vm_lock(vm, err) : null_buffer(err);

	return r ? r : load(vm, as_id, &(struct load){ .slots = slots, .n = n }, err);
}

int ms_load_backed(struct ms_vm *vm, uint32_t as_id, uint64_t generation, const struct ms_memslot *slots,
		   struct ms_backing *const *backings, size_t n, struct ms_error *err)
{
	int r = slots || !n ? vm_lock(vm, err) : null_buffer(err);

	if (r)
		return r;
	if (vm_is_at(vm, as_id, generation))
		return load(vm, as_id, &(struct load){ .slots = slots, .backings = backings, .n = n }, err);
	vm_unlock(vm);
	return -EAGAIN;
}

/* The VM has no readers, so nothing waits, also if the caller is inside a hook or a read section of another VM. */
int ms_load_snapshot(struct ms_vm *vm, uint32_t as_id, const struct ms_memslot *slots,
		     struct ms_backing *const *backings, size_t n, struct ms_error *err)
{
	bool taken = slots_lock_try(&vm->slots_lock);

	ms_assert(taken); /* no other thread knows the VM */
	(void)taken;
	vm->frozen = true;
	return load(vm, as_id, &(struct load){ .slots = slots, .backings = backings, .n = n }, err);
}
