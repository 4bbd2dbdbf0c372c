/* SPDX-License-Identifier: MIT */
/*
 * transaction.c - any changes of one address space as one: all with one swap, or none.
 *
 *   resolve    the steps give the final state, as items of a model (layout_steps.h); here a step is refused for its
 *              values
 *   make       a change for each item that differs from the set: its slot and its dirty log; the total of pages and the
 *              gpa limit
 *   stage      the edits in the private set; here a step is refused for its place
 *   carry out  listeners prepare, swap, bits into the new logs, propagate, flush, commit (writer.h)
 *
 * The model is freed before the first hook runs.
 *
 * Dirty logs.  A slot with the same pages as before keeps its log.  Every other new slot with LOG_DIRTY_PAGES gets a
 * new log, and takes the bits of its pages from the logs of its sources after the grace period: a reader may mark an
 * old log until then.  No call reads a log in between, because slots_lock is held.
 *
 * Locking: slots_lock throughout.
 * Cost: O(log m) for each change with m slots, O(words) for each new log, one grace period.
 */
#include <errno.h>
#include <string.h>

#include "layout_steps.h"
#include "private/preview.h"
#include "rules.h"
#include "slot_make.h"
#include "writer.h"

/* ---- make: slots ---- */

static bool keeps_pages(const struct layout_item *item)
{
	return item->old && item->old->npages == item->value.npages &&
	       item->old->hva.start == item->value.userspace_addr;
}

/* Returns false if the item is as the set has it. */
static bool classify_item(const struct layout_item *item, struct change *c)
{
	const struct ms_memslot *v = &item->value;
	const struct memslot *old = item->old;

	if (!item->exists)
		c->kind = MS_DELETE;
	else if (!old)
		c->kind = MS_CREATE;
	else if (!keeps_pages(item))
		c->kind = MS_RESIZE;
	else if (v->base_gfn != old->base_gfn)
		c->kind = MS_MOVE;
	else if (v->flags != old->flags)
		c->kind = MS_FLAGS_ONLY;
	else
		return false;
	return item->exists || old;
}

static int make_slot(const struct writer *w, struct change *c, const struct layout_item *item)
{
	int r = writer_make(w, c, &item->value);

	if (!r && c->new_slot)
		r = slot_give_log(w->vm, c->new_slot, keeps_pages(item) ? item->old : NULL, w->err);
	if (!r && c->new_slot)
		r = rules_gpa_limit(w->vm, c->new_slot, w->err);
	return r;
}

static int make_change(struct writer *w, struct layout_item *item)
{
	struct change *c = &w->change[w->nr];
	int r;

	if (!classify_item(item, c))
		return 0;
	c->entry = item->step;
	c->old = item->old;
	c->backing = item->backing;
	item->change = (uint32_t)++w->nr;
	r = make_slot(w, c, item);
	return at_entry(w, r, c->entry);
}

/* Check 12, for the final state. */
static int check_total(const struct writer *w, const struct layout *l)
{
	uint64_t total = ms_nr_memslot_pages(w->vm);

	for (size_t i = 0; i < l->items.nr; i++)
		if (layout_item(l, i)->old)
			total -= layout_item(l, i)->old->npages;
	for (size_t i = 0; i < l->items.nr; i++) {
		const struct layout_item *item = layout_item(l, i);
		uint64_t npages = item->exists ? item->value.npages : 0;

		total += npages;
		if (total < npages)
			return at_entry(w, vm_refuse(w->err, EINVAL, MS_RULE_TOTAL_PAGES, 0, NULL), item->step);
	}
	return 0;
}

static int alloc_changes(struct writer *w, size_t n)
{
	struct change *change = w->few;

	if (n <= WRITER_FEW)
		memset(change, 0, n * sizeof(*change));
	else
		change = memory_zalloc(&w->vm->memory, n * sizeof(*change));
	if (change) {
		w->change = change;
		w->room = n;
		return 0;
	}
	return at_entry(w, no_memory(w->err), w->entries);
}

static int make_changes(struct writer *w, const struct layout *l)
{
	int r = check_total(w, l);

	if (!r && l->items.nr)
		r = alloc_changes(w, l->items.nr);
	for (size_t i = 0; !r && i < l->items.nr; i++)
		r = make_change(w, layout_item(l, i));
	return r;
}

/* ---- make: the bits that new logs take ---- */

static struct change *change_of(const struct writer *w, const struct layout_item *item)
{
	return item->change ? &w->change[item->change - 1] : NULL;
}

static bool initially_set(const struct writer *w)
{
	return ms_manual_dirty_log_protect(w->vm) & MS_DIRTY_LOG_INITIALLY_SET;
}

/* The slot of `source` has pages of the new slot of c.  The new log has no bits of them yet, also if
 * new logs begin with all bits. */
static void add_take(struct writer *w, const struct change *c, const struct layout_item *source)
{
	const struct interval *to = &c->new_slot->hva, *from = &source->old->hva;
	uint64_t start = to->start > from->start ? to->start : from->start;
	uint64_t last = to->last < from->last ? to->last : from->last;
	uint64_t n = ((last - start) >> MS_PAGE_SHIFT) + 1;
	struct change *of_source = change_of(w, source);
	bool ends = of_source && !(of_source->new_slot && of_source->new_slot->dirty == source->old->dirty);

	w->takes[w->nr_takes++] = (struct log_take){
		.to = c->new_slot->dirty,
		.from = source->old->dirty,
		.page = (int64_t)(to->start >> MS_PAGE_SHIFT) - (int64_t)(from->start >> MS_PAGE_SHIFT),
		.first = (start - from->start) >> MS_PAGE_SHIFT,
		.n = n,
		.from_ends = ends,
	};
	if (ends)
		of_source->shared_bits = true;
	if (initially_set(w) && !(c->old && c->old->dirty == c->new_slot->dirty))
		dirty_log_forget(c->new_slot->dirty, (start - to->start) >> MS_PAGE_SHIFT, n);
}

static bool has_pages_of(const struct change *c, const struct layout_item *source)
{
	const struct memslot *to = c->new_slot, *from = source->old;

	return from && from->dirty && from->dirty != to->dirty && to->hva.start <= from->hva.last &&
	       from->hva.start <= to->hva.last;
}

/* With add_to NULL, only counts them. */
static size_t take_from_sources(struct writer *add_to, const struct change *c, const struct layout *l,
				const struct layout_item *item)
{
	const struct layout_item *source = item;
	uint32_t chain = item->sources;
	size_t nr = 0;

	for (;;) {
		if (has_pages_of(c, source)) {
			nr++;
			if (add_to)
				add_take(add_to, c, source);
		}
		if (!chain)
			return nr;
		source = layout_item(l, layout_source(l, chain - 1)->item);
		chain = layout_source(l, chain - 1)->next;
	}
}

static size_t take_all(const struct writer *w, struct writer *add_to, const struct layout *l)
{
	size_t nr = 0;

	for (size_t i = 0; i < l->items.nr; i++) {
		const struct change *c = change_of(w, layout_item(l, i));

		if (c && c->new_slot && c->new_slot->dirty)
			nr += take_from_sources(add_to, c, l, layout_item(l, i));
	}
	return nr;
}

static int make_takes(struct writer *w, const struct layout *l)
{
	size_t nr = take_all(w, NULL, l);

	if (!nr)
		return 0;
	w->takes = memory_zalloc(&w->vm->memory, nr * sizeof(*w->takes));
	if (!w->takes)
		return at_entry(w, no_memory(w->err), w->entries);
	w->takes_room = nr;
	take_all(w, w, l);
	return 0;
}

/* ---- all ---- */

static int make(struct writer *w, const struct ms_step *steps, size_t n)
{
	struct layout layout;
	int r = layout_resolve(&layout, w, steps, n);

	if (!r)
		r = make_changes(w, &layout);
	if (!r)
		r = make_takes(w, &layout);
	layout_free(&layout);
	return r;
}

/* By how much the set grows. */
static size_t growth(const struct writer *w)
{
	size_t created = 0, deleted = 0;

	for (size_t i = 0; i < w->nr; i++) {
		created += w->change[i].kind == MS_CREATE;
		deleted += w->change[i].kind == MS_DELETE;
	}
	return created > deleted ? created - deleted : 0;
}

/* writer_end() must follow, also after a failure. */
static int stage(struct writer *w)
{
	int r = at_entry(w, writer_begin(w, growth(w)), w->entries);

	return r ? r : writer_stage_list(w);
}

static int publish(struct writer *w)
{
	int r = stage(w);

	if (r)
		writer_roll_back(w);
	else
		r = writer_carry_out(w);
	writer_end(w);
	return r;
}

static void discard(struct writer *w)
{
	for (size_t i = 0; i < w->nr; i++)
		writer_discard(w, &w->change[i]);
}

static int change_memslots(struct writer *w, const struct ms_step *steps, size_t n)
{
	int r = rules_as_id(w->vm, w->as_id, w->err);

	if (r || !n)
		return r;
	w->entries = (uint32_t)n;
	r = make(w, steps, n);
	if (r)
		discard(w);
	else if (w->nr)
		r = publish(w);
	else
		count_add(&w->vm->counts.noops, 1);
	writer_release(w);
	return r;
}

/* Takes the lock and the VM's writer. */
static int begin(struct ms_vm *vm, uint32_t as_id, const struct ms_step *steps, size_t n, struct ms_error *err)
{
	int r = steps || !n ? vm_lock(vm, err) : null_buffer(err);

	if (r)
		return r;
	memory_pool_mark(&vm->memory);
	writer_of(vm, as_id, err);
	return 0;
}

static int end(struct ms_vm *vm, int r)
{
	if (r)
		writer_refused(vm);
	vm_unlock(vm);
	return r;
}

int ms_change_memslots(struct ms_vm *vm, uint32_t as_id, const struct ms_step *steps, size_t n, struct ms_error *err)
{
	struct ms_error local_err = { 0 };
	int r = begin(vm, as_id, steps, n, err ? err : &local_err);

	return r ? r : end(vm, change_memslots(&vm->writer, steps, n));
}

/* ---- for the binding: private/preview.h ---- */

int ms_change_memslots_at(struct ms_vm *vm, uint32_t as_id, uint64_t generation, const struct ms_step *steps, size_t n,
			  struct ms_error *err)
{
	struct ms_error local_err = { 0 };
	int r = begin(vm, as_id, steps, n, err ? err : &local_err);

	if (r)
		return r;
	if (vm_is_at(vm, as_id, generation))
		return end(vm, change_memslots(&vm->writer, steps, n));
	vm_unlock(vm);
	return -EAGAIN;
}

static void copy_resolved(const struct layout *l, struct ms_resolved *out, size_t room)
{
	for (size_t i = 0; i < l->items.nr && i < room; i++) {
		const struct layout_item *item = layout_item(l, i);

		out[i] = (struct ms_resolved){ item->value, item->step };
		if (!item->exists)
			out[i].value.npages = 0;
	}
}

static int resolve(struct writer *w, const struct ms_step *steps, size_t n, struct ms_resolved *out, size_t room,
		   size_t *nr)
{
	struct layout layout;
	int r = rules_as_id(w->vm, w->as_id, w->err);

	if (r)
		return r;
	r = layout_resolve(&layout, w, steps, n);
	copy_resolved(&layout, out, room);
	*nr = layout.items.nr;
	layout_free(&layout);
	return r;
}

/* Releases the lock after a call that has changed nothing and refused nothing. */
static void unlock_unchanged(struct ms_vm *vm)
{
	memory_pool_trim(&vm->memory);
	vm_unlock(vm);
}

int ms_resolve_steps(struct ms_vm *vm, uint32_t as_id, const struct ms_step *steps, size_t n, struct ms_resolved *out,
		     size_t room, size_t *nr, struct ms_error *err)
{
	struct ms_error local_err = { 0 };
	int r = begin(vm, as_id, steps, n, err ? err : &local_err);

	if (r)
		return r;
	r = resolve(&vm->writer, steps, n, out, room, nr);
	unlock_unchanged(vm);
	return r;
}

static void copy_set(const struct writer *w, const struct memslot_set *set, struct ms_preview *out)
{
	const struct memslot_design *design = w->vm->design;
	const struct memslot *slot;
	size_t i = 0;

	out->generation = vm_generation(w->vm, w->as_id);
	out->nr = set->nr;
	if (out->nr > out->room)
		return;
	for (slot = design->first_from(set, 0); slot; slot = design->next(set, slot), i++) {
		out->rows[i] = memslot_value(slot);
		out->backings[i] = backing_get(slot->backing);
	}
}

/* The private set has the final state between its edits and their roll-back. */
static int preview_changes(struct writer *w, struct ms_preview *out)
{
	int r = stage(w);

	if (!r)
		copy_set(w, vm_inactive_set(w->vm, w->as_id), out);
	writer_roll_back(w);
	writer_end(w);
	return r;
}

static int preview(struct writer *w, const struct ms_step *steps, size_t n, struct ms_preview *out)
{
	int r = rules_as_id(w->vm, w->as_id, w->err);

	if (r)
		return r;
	w->entries = (uint32_t)n;
	r = make(w, steps, n);
	if (r)
		discard(w);
	else if (w->nr)
		r = preview_changes(w, out);
	else
		copy_set(w, vm_active_set(w->vm, w->as_id), out);
	writer_release(w);
	return r;
}

int ms_preview_memslots(struct ms_vm *vm, uint32_t as_id, const struct ms_step *steps, size_t n, struct ms_preview *out,
			struct ms_error *err)
{
	struct ms_error local_err = { 0 };
	int r = begin(vm, as_id, steps, n, err ? err : &local_err);

	if (r)
		return r;
	r = preview(&vm->writer, steps, n, out);
	unlock_unchanged(vm);
	return r;
}
