/* SPDX-License-Identifier: MIT */
/*
 * region.c - the only writer: validates, creates, deletes, moves and changes the flags of slots.
 *
 * A change goes the same way in every design, and a list of changes goes it together:
 *
 *   admit       validate in KVM's order, classify, allocate        (errors: nothing has happened)
 *   invalidate  DELETE and MOVE: an INVALID copy into the inactive set, swap, flush
 *   prepare     dirty log, gpa limit, listeners                    (errors: abort, roll back)
 *   apply       the inactive set gets the new slots, swap
 *   propagate   the other set follows; both are alike again
 *   commit      totals, listeners, what nobody can see is freed
 *
 * Where old, inv (the INVALID copy) and new_slot are, A being active at the start:
 *
 *                     CREATE          DELETE            MOVE              FLAGS_ONLY
 *   invalidate        -               A: old  B: inv    A: old  B: inv    -
 *   apply             B: new          A: -              A: new            B: new
 *   propagate         A: new          B: -              B: new            A: new
 *   swaps             1               2                 2                 1
 *
 * Each swap moves the generation by the number of address spaces.  Roll-back allocates nothing: it swaps back and
 * puts old where inv was, so a refused DELETE or MOVE has made two swaps.
 *
 * That is where slots are shared by the sets.  Where each set stores copies of its own (see memslot_set.h), begin()
 * makes the inactive set a copy of the active one, the same edits are made in it, and nothing is propagated.
 *
 * Locking: slots_lock throughout.
 * Cost: O(log n) and one grace period a swap.
 */
#include <errno.h>
#include <stdlib.h>

#include "rules.h"
#include "vm_index.h"

struct change {
	struct memslot *old, *inv, *new_slot;
	uint32_t prepared; /* listeners that were told prepare */
	uint32_t entry;    /* of a load: which one, for the error */
	uint8_t kind;      /* enum ms_change_kind */
	bool staged;       /* new_slot is in the inactive set already */
	bool noop;
};

struct writer {
	struct ms_vm *vm;
	uint32_t as_id;
	struct change *change;
	size_t nr;
	struct ms_error *err;
};

/* ---- admit ---- */

static int refuse(const struct writer *w, enum ms_rule rule, uint64_t limit, const struct memslot *other)
{
	return vm_refuse(w->err, EINVAL, rule, limit, other);
}

/* Checks 13, 14 and 14b: what an existing slot cannot change. */
static int check_existing(const struct writer *w, const struct ms_userspace_memory_region *r, const struct memslot *old)
{
	if (r->flags & MS_MEM_GUEST_MEMFD)
		return refuse(w, MS_RULE_GMEM_EXISTING, 0, old);
	if (r->userspace_addr != old->hva.start)
		return refuse(w, MS_RULE_HVA_CHANGE, 0, old);
	if (r->memory_size >> MS_PAGE_SHIFT != old->npages)
		return refuse(w, MS_RULE_SIZE_CHANGE, 0, old);
	if ((r->flags ^ old->flags) & (MS_MEM_READONLY | MS_MEM_GUEST_MEMFD))
		return refuse(w, MS_RULE_FLAGS_TOGGLE, 0, old);
	return 0;
}

static void classify_existing(struct change *c, const struct ms_userspace_memory_region *r)
{
	const struct memslot *old = c->old;

	if (r->guest_phys_addr >> MS_PAGE_SHIFT != old->base_gfn)
		c->kind = MS_MOVE;
	else if (r->flags != old->flags)
		c->kind = MS_FLAGS_ONLY;
	else
		c->noop = true;
}

/* Checks 10 to 15 against `set`; sets what is to be done. */
static int classify(const struct writer *w, struct change *c, const struct memslot_set *set,
		    const struct ms_userspace_memory_region *r)
{
	uint64_t npages = r->memory_size >> MS_PAGE_SHIFT;
	int refused = 0;

	c->old = w->vm->design->find(set, r->slot);
	if (!npages) {
		c->kind = MS_DELETE;
		return c->old ? 0 : refuse(w, MS_RULE_NO_SUCH_SLOT, 0, NULL);
	}
	c->kind = MS_CREATE;
	if (c->old) {
		refused = check_existing(w, r, c->old);
		classify_existing(c, r);
	} else if (ms_nr_memslot_pages(w->vm) + npages < npages) {
		refused = refuse(w, MS_RULE_TOTAL_PAGES, 0, NULL);
	}
	if (!refused && (c->kind == MS_CREATE || c->kind == MS_MOVE))
		refused = rules_overlap(w->vm, set, r->guest_phys_addr >> MS_PAGE_SHIFT, npages, r->slot, w->err);
	return refused;
}

static void fill_slot(struct memslot *slot, const struct ms_userspace_memory_region *r)
{
	slot->base_gfn = r->guest_phys_addr >> MS_PAGE_SHIFT;
	slot->npages = r->memory_size >> MS_PAGE_SHIFT;
	slot->hva = (struct interval){ r->userspace_addr, r->userspace_addr + r->memory_size - 1 };
	slot->id = r->slot;
	slot->flags = r->flags;
	slot->as_id = (uint16_t)r->as_id;
}

/* Check 17.  Binding a guest_memfd belongs here: between the slot's allocation and the first swap, undone by
 * discard(). */
static int bind_guest_memfd(const struct writer *w, const struct memslot *slot)
{
	return slot->flags & MS_MEM_GUEST_MEMFD ? vm_refuse(w->err, EBADF, MS_RULE_GMEM_FD, 0, NULL) : 0;
}

static void free_slot(const struct writer *w, struct memslot *slot)
{
	memslot_free(w->vm->design, &w->vm->memory, slot);
}

static struct memslot *alloc_slot(const struct writer *w, int *r)
{
	struct memslot *slot = w->vm->design->alloc_slot(&w->vm->memory);

	if (!slot)
		*r = vm_refuse(w->err, ENOMEM, MS_RULE_NO_MEMORY, 0, NULL);
	return slot;
}

/* Where sets store copies of their own, the writer keeps one too: the set's goes with the set. */
static int keep_old(const struct writer *w, struct change *c)
{
	const struct memslot *old = c->old;
	int r = 0;

	if (!old || w->vm->design->shares_slots)
		return 0;
	c->old = alloc_slot(w, &r);
	if (c->old)
		*c->old = *old;
	return r;
}

/* Checks 16 to 18: everything that the change needs, except the dirty log. */
static int allocate(const struct writer *w, struct change *c, const struct ms_userspace_memory_region *region)
{
	int r = keep_old(w, c);

	if (!r && c->kind != MS_DELETE && (c->new_slot = alloc_slot(w, &r))) {
		fill_slot(c->new_slot, region);
		r = bind_guest_memfd(w, c->new_slot);
	}
	if (!r && (c->kind == MS_DELETE || c->kind == MS_MOVE) && (c->inv = alloc_slot(w, &r))) {
		memslot_copy(c->inv, c->old);
		c->inv->flags |= MS_MEMSLOT_INVALID;
	}
	return r;
}

/* The writer's copy goes, the slot and its log stay. */
static void drop_copy(const struct writer *w, struct memslot *copy)
{
	if (copy && !w->vm->design->shares_slots)
		w->vm->design->free_slot(&w->vm->memory, copy);
}

/* After a failure: what allocate() and prepare_dirty_log() made. */
static void discard(const struct writer *w, struct change *c)
{
	free_slot(w, c->inv);
	free_slot(w, c->new_slot);
	drop_copy(w, c->old);
}

/* Leaves nothing behind in *c when it fails. */
static int admit(const struct writer *w, struct change *c, const struct memslot_set *set,
		 const struct ms_userspace_memory_region *region)
{
	int r = classify(w, c, set, region);

	if (r || c->noop)
		return r;
	r = allocate(w, c, region);
	if (r)
		discard(w, c);
	return r;
}

/* ---- the steps ---- */

static struct memslot_set *inactive(const struct writer *w)
{
	return vm_inactive_set(w->vm, w->as_id);
}

static void replace(const struct writer *w, struct memslot *old, struct memslot *new_slot)
{
	vm_replace(w->vm, inactive(w), old, new_slot);
}

static struct ms_change told(const struct change *c)
{
	struct ms_change change = { .kind = c->kind };

	if (c->old)
		change.old_slot = memslot_value(c->old);
	if (c->new_slot)
		change.new_slot = memslot_value(c->new_slot);
	return change;
}

static bool invalidates(const struct writer *w)
{
	bool any = false;

	for (size_t i = 0; i < w->nr; i++)
		any |= w->change[i].inv != NULL;
	return any;
}

/* From the swap on no reader can derive anything new from the slots that go; flush says to drop what was. */
static void invalidate(const struct writer *w)
{
	for (size_t i = 0; i < w->nr; i++)
		if (w->change[i].inv)
			replace(w, w->change[i].old, w->change[i].inv);
	vm_swap(w->vm, w->as_id);
	point(WRITER_INVALIDATED);
	for (size_t i = 0; i < w->nr; i++)
		if (w->change[i].inv)
			vm_flush(w->vm, w->change[i].inv, w->change[i].old);
}

/* A bitmap lives as long as logging stays on, also across a MOVE; switched off and on it is a fresh one. */
static int prepare_dirty_log(const struct writer *w, struct change *c)
{
	struct memslot *slot = c->new_slot;
	bool initially_set = ms_manual_dirty_log_protect(w->vm) & MS_DIRTY_LOG_INITIALLY_SET;

	if (!(slot->flags & MS_MEM_LOG_DIRTY_PAGES))
		return 0;
	slot->dirty = c->old && c->old->dirty ? dirty_log_get(c->old->dirty)
					      : dirty_log_create(&w->vm->memory, slot->npages, initially_set);
	return slot->dirty ? 0 : vm_refuse(w->err, ENOMEM, MS_RULE_NO_MEMORY, 0, NULL);
}

static int prepare_listeners(const struct writer *w, struct change *c)
{
	struct ms_change change;

	if (likely(!w->vm->nr_listeners))
		return 0;
	change = told(c);
	for (; c->prepared < w->vm->nr_listeners; c->prepared++) {
		const struct ms_listener *l = w->vm->listeners[c->prepared];
		int r = l->prepare ? l->prepare(l->opaque, &change) : 0;

		if (r)
			return vm_refuse(w->err, r < 0 ? -r : EINVAL, MS_RULE_LISTENER, 0, NULL);
	}
	return 0;
}

static int at_entry(const struct writer *w, int r, uint32_t entry)
{
	if (r && w->err)
		w->err->index = entry;
	return r;
}

static int prepare(const struct writer *w)
{
	int r = 0;

	for (size_t i = 0; !r && i < w->nr; i++) {
		struct change *c = &w->change[i];

		if (c->new_slot && !c->staged)
			r = prepare_dirty_log(w, c);
		if (!r && (c->kind == MS_CREATE || c->kind == MS_MOVE))
			r = rules_gpa_limit(w->vm, c->new_slot, w->err); /* so late in KVM: a MOVE is INVALID by now */
		if (!r)
			r = prepare_listeners(w, c);
		at_entry(w, r, c->entry);
	}
	return r;
}

/* Those who had prepared hear of it in reverse order. */
static void abort_prepared(const struct writer *w, struct change *c)
{
	struct ms_change change = told(c);

	while (c->prepared > 0) {
		const struct ms_listener *l = w->vm->listeners[--c->prepared];

		if (l->abort)
			l->abort(l->opaque, &change);
	}
}

/* The private set was edited in vain: staged slots leave it, invalidated ones return.  Sets that store copies of
 * their own are thrown away as a whole. */
static void mend_private(const struct writer *w)
{
	if (!w->vm->design->shares_slots)
		return;
	for (size_t i = w->nr; i-- > 0;) {
		struct change *c = &w->change[i];

		if (c->inv)
			replace(w, c->inv, c->old);
		else if (c->staged)
			replace(w, c->new_slot, c->old);
	}
}

/* The inactive set is the one that never saw an INVALID copy: it is published again, then the other is mended. */
static void roll_back(const struct writer *w, bool invalidated)
{
	for (size_t i = w->nr; i-- > 0;)
		abort_prepared(w, &w->change[i]);
	if (invalidated)
		vm_swap(w->vm, w->as_id);
	mend_private(w);
	for (size_t i = 0; i < w->nr; i++)
		discard(w, &w->change[i]);
}

static void apply(const struct writer *w, bool invalidated)
{
	const struct memslot_design *design = w->vm->design;

	if (invalidated && design->resync)
		design->resync(inactive(w), vm_active_set(w->vm, w->as_id));
	for (size_t i = 0; i < w->nr; i++)
		if (!w->change[i].staged)
			replace(w, w->change[i].old, w->change[i].new_slot);
	vm_swap(w->vm, w->as_id);
}

static void propagate(const struct writer *w)
{
	struct ms_vm *vm = w->vm;

	if (vm->design->follow)
		vm->design->follow(&vm->memory, &vm->as[w->as_id], inactive(w));
	for (size_t i = 0; vm->design->shares_slots && i < w->nr; i++) {
		struct change *c = &w->change[i];

		replace(w, c->inv ? c->inv : c->old, c->new_slot);
	}
}

static uint64_t npages_or_0(const struct memslot *slot)
{
	return slot ? slot->npages : 0;
}

static void count_change(struct vm_counts *counts, const struct change *c)
{
	count_add(&counts->change[c->kind], 1);
	count_add(&counts->nr_memslots, (uint64_t)!c->old - (uint64_t)!c->new_slot);
	count_add(&counts->nr_memslot_pages, npages_or_0(c->new_slot) - npages_or_0(c->old));
}

static void commit_listeners(const struct writer *w, const struct change *c)
{
	struct ms_change change = told(c);

	for (size_t i = 0; i < w->vm->nr_listeners; i++) {
		const struct ms_listener *l = w->vm->listeners[i];

		if (l->commit)
			l->commit(l->opaque, &change);
	}
}

/* Nobody can see inv and old any more.  Where sets store copies of their own, the log of the new slot is theirs now
 * and the writer's copy of it goes. */
static void commit(const struct writer *w, struct change *c)
{
	if (w->vm->nr_listeners)
		commit_listeners(w, c);
	point(WRITER_FREES);
	free_slot(w, c->inv);
	free_slot(w, c->old);
	drop_copy(w, c->new_slot);
}

/* Admitted changes, and begin() done.  On error everything is as it was, but for the generation. */
static int carry_out(const struct writer *w)
{
	bool invalidated = invalidates(w);
	int r;

	thread_self.hooks++;
	if (invalidated)
		invalidate(w);
	r = prepare(w);
	if (r) {
		roll_back(w, invalidated);
	} else {
		apply(w, invalidated);
		point(WRITER_APPLIED);
		propagate(w);
		point(WRITER_PROPAGATED);
		for (size_t i = 0; i < w->nr; i++)
			count_change(&w->vm->counts, &w->change[i]);
		for (size_t i = 0; i < w->nr; i++)
			commit(w, &w->change[i]);
	}
	thread_self.hooks--;
	return r;
}

static int begin(const struct writer *w, size_t more)
{
	struct ms_vm *vm = w->vm;
	int r = vm->design->begin(&vm->memory, &vm->as[w->as_id], inactive(w), more);

	vm_index_share(vm, w->as_id);
	return r ? vm_refuse(w->err, -r, MS_RULE_NO_MEMORY, 0, NULL) : 0;
}

static void end(const struct writer *w)
{
	struct ms_vm *vm = w->vm;

	if (vm->design->end)
		vm->design->end(&vm->memory, &vm->as[w->as_id], inactive(w));
}

/* ---- set_user_memory_region ---- */

static int set_region_locked(struct writer *w, const struct ms_userspace_memory_region *region)
{
	struct change *c = w->change;
	int r = admit(w, c, vm_active_set(w->vm, w->as_id), region);

	if (r)
		return r;
	if (c->noop) {
		count_add(&w->vm->counts.noops, 1);
		return 0;
	}
	r = begin(w, c->kind == MS_CREATE);
	if (r)
		discard(w, c);
	else
		r = carry_out(w);
	end(w);
	return r;
}

/* Internal ids and no flags, or a user's; the caller's id range tells which. */
static int check_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region, uint32_t first_id,
			uint32_t end_id, struct ms_error *err)
{
	int r = rules_request(vm, region, first_id, end_id, err);

	if (!r && first_id && region->flags)
		r = vm_refuse(err, EINVAL, MS_RULE_FLAGS, 0, NULL);
	return r;
}

static int set_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region, uint32_t first_id,
		      uint32_t end_id, struct ms_error *err)
{
	struct change change = { 0 };
	struct writer w = { .vm = vm, .as_id = region->as_id, .change = &change, .nr = 1, .err = err };
	int r = vm_lock(vm, err);

	if (r)
		return r;
	r = check_region(vm, region, first_id, end_id, err);
	if (!r)
		r = set_region_locked(&w, region);
	if (r)
		count_add(&vm->counts.refused, 1);
	vm_unlock(vm);
	return r;
}

int ms_set_user_memory_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region, struct ms_error *err)
{
	return set_region(vm, region, 0, vm->config.user_mem_slots, err);
}

int ms_set_internal_memory_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region,
				  struct ms_error *err)
{
	uint32_t first_id = vm->config.user_mem_slots;

	return set_region(vm, region, first_id, first_id + MS_INTERNAL_MEM_SLOTS, err);
}

/* ---- load_memslots ---- */

static struct ms_userspace_memory_region region_of(const struct ms_memslot *slot, uint32_t as_id)
{
	return (struct ms_userspace_memory_region){
		.slot = slot->id,
		.as_id = as_id,
		.flags = slot->flags,
		.guest_memfd = -1,
		.guest_phys_addr = slot->base_gfn << MS_PAGE_SHIFT,
		.memory_size = slot->npages << MS_PAGE_SHIFT,
		.userspace_addr = slot->userspace_addr,
	};
}

/* What cannot be turned into bytes, and what would be a delete. */
static int check_pages(const struct writer *w, const struct ms_memslot *slot)
{
	if (slot->base_gfn >> (64 - MS_PAGE_SHIFT))
		return refuse(w, MS_RULE_GPA_WRAP, 0, NULL);
	if (!slot->npages || slot->npages > MS_MEM_MAX_NR_PAGES)
		return refuse(w, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, NULL);
	return 0;
}

/* A load creates and nothing else. */
static int check_new(const struct writer *w, const struct ms_memslot *slot)
{
	const struct memslot *same = w->vm->design->find(inactive(w), slot->id);

	return same ? vm_refuse(w->err, EEXIST, MS_RULE_DUPLICATE_ID, 0, same) : 0;
}

/* Validates the entry against the private set, which has all that were staged before it, and adds it there: with its
 * dirty log, since a set that stores copies will not look at the writer's slot again. */
static int stage(struct writer *w, const struct ms_memslot *slot, uint32_t entry)
{
	struct ms_userspace_memory_region region = region_of(slot, w->as_id);
	struct change *c = &w->change[w->nr];
	int r = check_new(w, slot);

	if (!r)
		r = admit(w, c, inactive(w), &region);
	if (r)
		return r;
	r = prepare_dirty_log(w, c);
	if (r) {
		discard(w, c);
		return r;
	}
	replace(w, NULL, c->new_slot);
	c->staged = true;
	c->entry = entry;
	w->nr++;
	return 0;
}

static int check_entries(const struct writer *w, const struct ms_memslot *slots, size_t n)
{
	int r = 0;

	for (size_t i = 0; !r && i < n; i++) {
		struct ms_userspace_memory_region region = region_of(&slots[i], w->as_id);

		r = check_pages(w, &slots[i]);
		if (!r)
			r = rules_request(w->vm, &region, 0, w->vm->config.user_mem_slots, w->err);
		at_entry(w, r, (uint32_t)i);
	}
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

/* From the highest gfn down: a sorted array takes each at its end, and neighbours are allocated side by side. */
static int stage_all(struct writer *w, const struct ms_memslot *slots, struct place *places, size_t n)
{
	int r = begin(w, n);

	for (size_t i = 0; i < n; i++)
		places[i] = (struct place){ slots[i].base_gfn, (uint32_t)i };
	qsort(places, n, sizeof(*places), by_falling_gfn);
	while (!r && w->nr < n) {
		uint32_t entry = places[w->nr].entry;

		r = at_entry(w, stage(w, &slots[entry], entry), entry);
	}
	return r;
}

static int load_locked(struct writer *w, const struct ms_memslot *slots, struct place *places, size_t n)
{
	int r = check_entries(w, slots, n);

	if (r)
		return r;
	r = stage_all(w, slots, places, n);
	if (r)
		roll_back(w, false);
	else
		r = carry_out(w);
	end(w);
	return r;
}

static int load(struct writer *w, const struct ms_memslot *slots, size_t n)
{
	struct memory *memory = &w->vm->memory;
	struct place *places;
	int r;

	if (w->as_id >= w->vm->config.address_spaces)
		return refuse(w, MS_RULE_AS_ID, w->vm->config.address_spaces, NULL);
	if (!n)
		return 0;
	w->change = memory_zalloc(memory, n * sizeof(*w->change));
	places = w->change ? memory_zalloc(memory, n * sizeof(*places)) : NULL;
	r = places ? load_locked(w, slots, places, n) : vm_refuse(w->err, ENOMEM, MS_RULE_NO_MEMORY, 0, NULL);
	memory_free(memory, places, n * sizeof(*places));
	memory_free(memory, w->change, n * sizeof(*w->change));
	return r;
}

int ms_load_memslots(struct ms_vm *vm, uint32_t as_id, const struct ms_memslot *slots, size_t n, struct ms_error *err)
{
	struct writer w = { .vm = vm, .as_id = as_id, .err = err };
	int r = vm_lock(vm, err);

	if (r)
		return r;
	r = load(&w, slots, n);
	if (r)
		count_add(&vm->counts.refused, 1);
	vm_unlock(vm);
	return r;
}
