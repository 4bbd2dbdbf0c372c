/* SPDX-License-Identifier: MIT */
/*
 * writer.c - see writer.h.
 */
#include "writer.h"

#include <errno.h>

#include "listeners.h"
#include "rules.h"
#include "slot_make.h"
#include "vm_index.h"

/* ---- admit ---- */

static int refuse(const struct writer *w, enum ms_rule rule, uint64_t limit, const struct memslot *other)
{
	return vm_refuse(w->err, EINVAL, rule, limit, other);
}

/* Checks 13, 14 and 14b: the fields of an existing slot that cannot change. */
static int check_existing(const struct writer *w, const struct ms_memslot *value, const struct memslot *old)
{
	if (value->flags & MS_MEM_GUEST_MEMFD)
		return refuse(w, MS_RULE_GMEM_EXISTING, 0, old);
	if (value->userspace_addr != old->hva.start)
		return refuse(w, MS_RULE_HVA_CHANGE, 0, old);
	if (value->npages != old->npages)
		return refuse(w, MS_RULE_SIZE_CHANGE, 0, old);
	if ((value->flags ^ old->flags) & (MS_MEM_READONLY | MS_MEM_GUEST_MEMFD))
		return refuse(w, MS_RULE_FLAGS_TOGGLE, 0, old);
	return 0;
}

static void classify_existing(struct change *c, const struct ms_memslot *value)
{
	const struct memslot *old = c->old;

	if (value->base_gfn != old->base_gfn)
		c->kind = MS_MOVE;
	else if (value->flags != old->flags)
		c->kind = MS_FLAGS_ONLY;
	else
		c->noop = true;
}

/* Checks 10 to 15 against `set`; sets c->old, c->kind and c->noop. */
static int classify(const struct writer *w, struct change *c, const struct memslot_set *set,
		    const struct ms_memslot *value)
{
	uint64_t npages = value->npages;
	int refused = 0;

	c->old = w->vm->design->find(set, value->id);
	if (!npages) {
		c->kind = MS_DELETE;
		return c->old ? 0 : refuse(w, MS_RULE_NO_SUCH_SLOT, 0, NULL);
	}
	c->kind = MS_CREATE;
	if (c->old) {
		refused = check_existing(w, value, c->old);
		classify_existing(c, value);
	} else if (ms_nr_memslot_pages(w->vm) + npages < npages) {
		refused = refuse(w, MS_RULE_TOTAL_PAGES, 0, NULL);
	}
	if (!refused && (c->kind == MS_CREATE || c->kind == MS_MOVE))
		refused = rules_overlap(w->vm, set, value->base_gfn, npages, value->id, w->err);
	return refused;
}

static void free_slot(const struct writer *w, struct memslot *slot)
{
	memslot_free(w->vm->design, &w->vm->memory, slot);
}

/* Where each set stores copies, the writer makes its own copy of the old slot: the set's copy is freed with the set. */
static int keep_old(const struct writer *w, struct change *c)
{
	const struct memslot *old = c->old;
	int r;

	if (!old || w->vm->design->shares_slots)
		return 0;
	r = slot_alloc(w->vm, &c->old, w->err);
	if (!r)
		*c->old = *old;
	return r;
}

int writer_make(const struct writer *w, struct change *c, const struct ms_memslot *value)
{
	int r = keep_old(w, c);

	if (!r && c->kind != MS_DELETE)
		r = slot_create(w->vm, value, w->as_id, &c->new_slot, w->err);
	if (!r && c->new_slot)
		c->new_slot->backing = backing_get(c->backing);
	return r;
}

/* Checks 16 to 18: allocates everything that the change needs, except the dirty log.  Code that binds a guest_memfd
 * belongs to check 17, between the slot's allocation and the first swap; writer_discard() would undo it. */
static int allocate(const struct writer *w, struct change *c, const struct ms_memslot *value)
{
	int r;

	if (c->old)
		c->backing = c->old->backing;
	r = writer_make(w, c, value);
	if (!r && c->new_slot)
		r = rules_guest_memfd(value->flags, c->guest_memfd, w->err);
	if (!r && (c->kind == MS_DELETE || c->kind == MS_MOVE))
		r = slot_create_invalid(w->vm, c->old, &c->inv, w->err);
	return r;
}

/* Frees the writer's copy of a slot, if there is one.  The set's copy keeps the references. */
static void drop_copy(const struct writer *w, struct memslot *copy)
{
	if (copy && !w->vm->design->shares_slots)
		w->vm->design->free_slot(&w->vm->memory, copy);
}

/* Frees everything that allocate() and complete_slot() have made. */
void writer_discard(const struct writer *w, struct change *c)
{
	free_slot(w, c->inv);
	free_slot(w, c->new_slot);
	drop_copy(w, c->old);
}

int writer_admit(const struct writer *w, struct change *c, const struct memslot_set *set,
		 const struct ms_memslot *value)
{
	int r = classify(w, c, set, value);

	if (r || c->noop)
		return r;
	r = allocate(w, c, value);
	if (r)
		writer_discard(w, c);
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

static struct ms_change change_value(const struct change *c)
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

/* After the swap no reader can derive a new value from the old slots.  The flush hooks drop the values that callers
 * derived before. */
static void invalidate(struct writer *w)
{
	for (size_t i = 0; i < w->nr; i++)
		if (w->change[i].inv)
			replace(w, w->change[i].old, w->change[i].inv);
	w->invalidated = true;
	vm_swap(w->vm, w->as_id);
	point(WRITER_INVALIDATED);
	for (size_t i = 0; i < w->nr; i++)
		if (w->change[i].inv)
			listeners_flush(w->vm, w->change[i].inv, w->change[i].old);
}

/* Gives the new slot its dirty log, then checks the limit of guest addresses.  KVM checks it as late: a MOVE is INVALID
 * then. */
static int complete_slot(const struct writer *w, const struct change *c)
{
	int r = slot_give_log(w->vm, c->new_slot, c->old, w->err);

	if (!r && (c->kind == MS_CREATE || c->kind == MS_MOVE))
		r = rules_gpa_limit(w->vm, c->new_slot, w->err);
	return r;
}

/* The values of the changes stay valid until writer_release(): abort and commit use them too. */
static int make_values(struct writer *w)
{
	w->values = &w->vm->single_value;
	if (w->nr > 1)
		w->values = memory_zalloc(&w->vm->memory, w->nr * sizeof(*w->values));
	if (!w->values)
		return no_memory(w->err);
	for (size_t i = 0; i < w->nr; i++)
		w->values[i] = change_value(&w->change[i]);
	return 0;
}

/* The number of the entry of a change; `nr` stands for the whole list. */
static uint32_t entry_of(const struct writer *w, size_t i)
{
	return i < w->nr ? w->change[i].entry : w->entries;
}

static int prepare_listeners(struct writer *w)
{
	size_t refused = 0;
	int r;

	if (likely(!w->vm->nr_listeners))
		return 0;
	r = make_values(w);
	if (r)
		return at_entry(w, r, w->entries);
	r = listeners_prepare(w->vm, w->values, w->nr, &w->prepared, &refused, w->err);
	return at_entry(w, r, entry_of(w, refused));
}

static int prepare(struct writer *w)
{
	int r = 0;

	for (size_t i = 0; !r && i < w->nr; i++) {
		const struct change *c = &w->change[i];

		if (c->new_slot && !c->staged)
			r = at_entry(w, complete_slot(w, c), c->entry);
	}
	return r ? r : prepare_listeners(w);
}

static void abort_listeners(struct writer *w)
{
	if (w->values && !w->without_hooks)
		listeners_abort(w->vm, w->values, w->nr, &w->prepared);
}

/* Whether the new slot has the position of the old one in each structure of a set, and needs no other frames.  Then one
 * exchanges them at once, without a check.  A slot that grows is checked before it enters: until then its place must
 * not be noted as edited, see overlay.h. */
static bool in_place(const struct change *c)
{
	return c->old && c->new_slot && c->old->base_gfn == c->new_slot->base_gfn &&
	       c->old->hva.start == c->new_slot->hva.start && c->new_slot->npages <= c->old->npages;
}

/* In each order except that by gfn, in which neither slot moves here.  It saves the walks down the other trees. */
static bool exchange(const struct writer *w, struct memslot *old, struct memslot *new_slot)
{
	return new_slot && old->hva.start == new_slot->hva.start && vm_exchange(w->vm, inactive(w), old, new_slot);
}

static void replace_by_gfn(const struct writer *w, struct memslot *old, struct memslot *new_slot)
{
	vm_replace_by_gfn(w->vm, inactive(w), old, new_slot);
}

/* Makes one edit of a change.  exchange() has made it already in each order except that by gfn. */
static void edit(const struct writer *w, const struct change *c, struct memslot *old, struct memslot *new_slot)
{
	if (c->exchanged)
		replace_by_gfn(w, old, new_slot);
	else
		replace(w, old, new_slot);
}

static void remove_old_slot(const struct writer *w, struct change *c)
{
	bool stays = in_place(c);

	c->exchanged = !stays && exchange(w, c->old, c->new_slot);
	edit(w, c, c->old, stays ? c->new_slot : NULL);
}

/* The first half of the edits of a list: the old slots leave the private set, except those that are exchanged at once.
 * Only then there is room for the new slots: a slot may take the place or the id of another. */
static void remove_old_slots(const struct writer *w)
{
	for (size_t i = 0; i < w->nr; i++)
		if (w->change[i].old)
			remove_old_slot(w, &w->change[i]);
}

static void add_new_slot(const struct writer *w, const struct change *c)
{
	if (c->new_slot && !in_place(c))
		edit(w, c, NULL, c->new_slot);
}

static void add_new_slots(const struct writer *w)
{
	for (size_t i = 0; i < w->nr; i++)
		add_new_slot(w, &w->change[i]);
}

static void undo_add(const struct writer *w, const struct change *c)
{
	if (c->staged && c->new_slot && !in_place(c))
		edit(w, c, c->new_slot, NULL);
}

/* The neighbours by hva are those that the exchange has seen, so it is possible in the other direction too. */
static void undo_remove(const struct writer *w, const struct change *c)
{
	if (!c->old)
		return;
	if (c->exchanged)
		exchange(w, c->new_slot, c->old);
	edit(w, c, in_place(c) ? c->new_slot : NULL, c->old);
}

/* ---- a list that permutes its slots ---- */

static bool takes_place(const struct change *c, const struct memslot *new_slot)
{
	return c->kind == MS_MOVE && c->old->base_gfn == new_slot->base_gfn && c->old->npages == new_slot->npages;
}

/* The number of the change that moves a slot away from where this new slot will be, or w->nr. */
static size_t place_of(const struct writer *w, const struct memslot *new_slot)
{
	size_t i = 0;

	while (i < w->nr && !takes_place(&w->change[i], new_slot))
		i++;
	return i;
}

/* Whether each slot moves to the place of another one, and no two to the same place.  O(nr^2): short lists only. */
static bool permutes(const struct writer *w)
{
	unsigned taken = 0;

	if (w->nr > WRITER_FEW)
		return false;
	for (size_t i = 0; i < w->nr; i++) {
		if (w->change[i].kind != MS_MOVE)
			return false;
		taken |= 1u << place_of(w, w->change[i].new_slot);
	}
	return taken == (1u << w->nr) - 1;
}

/* All changes, or none. */
static bool exchange_all(const struct writer *w)
{
	size_t i = 0;

	while (i < w->nr && exchange(w, w->change[i].old, w->change[i].new_slot))
		i++;
	if (i == w->nr)
		return true;
	while (i-- > 0)
		exchange(w, w->change[i].new_slot, w->change[i].old);
	return false;
}

/* Makes all edits of such a list at once.  The places of the set stay the same ones, so no place needs a check, and the
 * tree by gfn keeps its shape.  O(1) for each slot.  Returns false, and has done nothing, for another list. */
static bool permute(const struct writer *w)
{
	if (!permutes(w) || !exchange_all(w))
		return false;
	for (size_t i = 0; i < w->nr; i++)
		replace_by_gfn(w, w->change[place_of(w, w->change[i].new_slot)].old, w->change[i].new_slot);
	return true;
}

static void undo_permute(const struct writer *w)
{
	for (size_t i = w->nr; i-- > 0;)
		replace_by_gfn(w, w->change[i].new_slot, w->change[place_of(w, w->change[i].new_slot)].old);
	for (size_t i = w->nr; i-- > 0;)
		exchange(w, w->change[i].new_slot, w->change[i].old);
}

/* Undoes both halves, as far as they have come. */
static void restore_list(const struct writer *w)
{
	if (w->permuted) {
		undo_permute(w);
		return;
	}
	for (size_t i = w->nr; i-- > 0;)
		undo_add(w, &w->change[i]);
	for (size_t i = w->nr; w->removed && i-- > 0;)
		undo_remove(w, &w->change[i]);
}

/* Undoes the edits of the private set: removes the staged slots and puts the former ones back.  A change that fails
 * before invalidate() has an INVALID copy already, but no set has it.  A set that stores copies needs no undo, because
 * writer_end() frees it as a whole. */
static void restore_private_set(const struct writer *w)
{
	if (!w->vm->design->shares_slots)
		return;
	if (!w->invalidated)
		restore_list(w);
	for (size_t i = w->nr; w->invalidated && i-- > 0;)
		if (w->change[i].inv)
			replace(w, w->change[i].inv, w->change[i].old);
}

static void discard_all(const struct writer *w)
{
	restore_private_set(w);
	for (size_t i = 0; i < w->nr; i++)
		writer_discard(w, &w->change[i]);
}

/* After invalidate() the inactive set is the one without INVALID copies.  Publishes it, then restores the other one. */
void writer_roll_back(struct writer *w)
{
	abort_listeners(w);
	w->step = WRITER_ROLLS_BACK;
	if (w->invalidated)
		vm_swap(w->vm, w->as_id);
	discard_all(w);
}

static void apply(struct writer *w)
{
	const struct memslot_design *design = w->vm->design;

	if (w->invalidated && design->resync)
		design->resync(inactive(w), vm_active_set(w->vm, w->as_id));
	for (size_t i = 0; i < w->nr; i++)
		if (!w->change[i].staged)
			replace(w, w->change[i].old, w->change[i].new_slot);
	w->step = WRITER_APPLIES;
	vm_swap(w->vm, w->as_id);
}

static void propagate(const struct writer *w)
{
	struct ms_vm *vm = w->vm;

	if (vm->design->follow)
		vm->design->follow(&vm->memory, &vm->as[w->as_id], inactive(w));
	if (w->built) {
		vm->design->mirror(inactive(w), vm_active_set(vm, w->as_id), w->built, w->nr_built);
		return;
	}
	if (!vm->design->shares_slots)
		return;
	if (likely(w->nr == 1)) {
		replace(w, w->change->inv ? w->change->inv : w->change->old, w->change->new_slot);
		return;
	}
	if (permute(w))
		return;
	remove_old_slots(w);
	add_new_slots(w);
}

/* The grace period is over: no reader marks an old log any more, and readers mark the new ones since the swap.  First
 * every new log takes its bits, then the old logs forget what was taken: two new logs may have the same page. */
static void pass_on_bits(const struct writer *w)
{
	for (size_t i = 0; i < w->nr_takes; i++)
		dirty_log_take(w->takes[i].to, w->takes[i].from, w->takes[i].page);
	for (size_t i = 0; i < w->nr_takes; i++)
		if (w->takes[i].from_ends)
			dirty_log_forget(w->takes[i].from, w->takes[i].first, w->takes[i].n);
}

static uint64_t npages_or_0(const struct memslot *slot)
{
	return slot ? slot->npages : 0;
}

static void count_change(const struct writer *w, const struct change *c)
{
	struct vm_counts *counts = &w->vm->counts;

	if (!c->new_slot)
		id_is_free(&w->vm->as[w->as_id], c->old->id);
	count_add(&counts->change[c->kind], 1);
	count_add(&counts->nr_memslots, (uint64_t)!c->old - (uint64_t)!c->new_slot);
	count_add(&counts->nr_memslot_pages, npages_or_0(c->new_slot) - npages_or_0(c->old));
}

/* No reader can find the log any more. */
static void add_last_bits(struct ms_change *change, const struct change *c)
{
	const struct dirty_log *log = c->old ? c->old->dirty : NULL;

	if (!log || (c->new_slot && c->new_slot->dirty == log) || (c->shared_bits && dirty_log_is_clean(log)))
		return;
	change->dirty = (const uint64_t *)(const void *)log->live;
	change->nr_dirty_words = nwords_of(log);
}

/* For single changes invalidate() has done this. */
static void flush_list(const struct writer *w)
{
	if (w->removed && w->values && !w->without_hooks)
		listeners_flush_list(w->vm, w->values, w->nr);
}

static void commit_listeners(const struct writer *w)
{
	if (likely(!w->values) || w->without_hooks)
		return;
	for (size_t i = 0; i < w->nr; i++)
		add_last_bits(&w->values[i], &w->change[i]);
	listeners_commit(w->vm, w->values, w->nr);
}

/* No reader can see inv and old any more, but a call may hold the memory of old.  Where each set stores copies, the
 * set's copy of the new slot holds the references now, so only the writer's copy is freed. */
static void free_former(const struct writer *w, const struct change *c)
{
	point(WRITER_FREES);
	free_slot(w, c->inv);
	holds_retire(&w->vm->holds, c->old);
	drop_copy(w, c->new_slot);
}

static void commit(struct writer *w)
{
	w->step = WRITER_COMMITS;
	flush_list(w);
	commit_listeners(w);
	for (size_t i = 0; i < w->nr; i++)
		free_former(w, &w->change[i]);
}

/* The steps after the swap of apply(). */
static void complete(struct writer *w)
{
	point(WRITER_APPLIED);
	pass_on_bits(w);
	propagate(w);
	point(WRITER_PROPAGATED);
	for (size_t i = 0; i < w->nr; i++)
		count_change(w, &w->change[i]);
	commit(w);
}

/* Without listeners only a stall report calls the user's code, and stall_report.c watches the thread itself. */
static int watch_thread(const struct writer *w)
{
	if (likely(!w->vm->nr_listeners) || thread_watch())
		return 0;
	return at_entry(w, no_memory(w->err), w->entries);
}

static void finish_change(struct slots_lock *lock);

int writer_carry_out(struct writer *w)
{
	int r = watch_thread(w);

	w->vm->slots_lock.finish = finish_change;
	if (!r && invalidates(w))
		invalidate(w);
	if (!r)
		r = prepare(w);
	if (r) {
		writer_roll_back(w);
	} else {
		apply(w);
		complete(w);
	}
	return r;
}

/* ---- a change whose thread has ended in a hook or in a report ---- */

static void finish_roll_back(struct writer *w)
{
	if (w->step == WRITER_PREPARES)
		writer_roll_back(w);
	else
		discard_all(w);
}

/* If its own thread ends in a stall report, the next thread runs it again; w->step says which part is left. */
static void finish_change(struct slots_lock *lock)
{
	struct ms_vm *vm = container_of(lock, struct ms_vm, slots_lock);
	struct writer *w = &vm->writer;
	bool refused = w->step == WRITER_PREPARES || w->step == WRITER_ROLLS_BACK;

	w->without_hooks = true;
	w->err = NULL; /* it was on the stack of that thread */
	if (vm_is_swapping(vm, w->as_id))
		vm_swap_end(vm, w->as_id);
	if (w->step == WRITER_APPLIES)
		complete(w);
	else if (w->step == WRITER_COMMITS)
		commit(w);
	else
		finish_roll_back(w);
	writer_end(w);
	writer_release(w);
	if (refused)
		writer_refused(vm);
}

int writer_stage(const struct writer *w, struct change *c)
{
	int r = complete_slot(w, c);

	if (r) {
		writer_discard(w, c);
		return r;
	}
	replace(w, c->old, c->new_slot);
	c->staged = true;
	return 0;
}

/* ---- the edits of a transaction ---- */

/* The change of the list whose new slot has this id, or NULL. */
static const struct change *change_of_id(const struct writer *w, uint32_t id)
{
	for (size_t i = 0; i < w->nr; i++)
		if (w->change[i].new_slot && w->change[i].new_slot->id == id)
			return &w->change[i];
	return NULL;
}

/* w->err has the slot that is in the way.  If a later step of the list gave it its place, that step is refused. */
static int refuse_later(const struct writer *w, const struct change *c, int r)
{
	const struct change *other = change_of_id(w, w->err->other.id);

	if (!other || other->kind == MS_FLAGS_ONLY || other->entry <= c->entry)
		return at_entry(w, r, c->entry);
	w->err->other = memslot_value(c->new_slot);
	return at_entry(w, r, other->entry);
}

/* A slot that keeps its place is in the private set already. */
static int stage_new_slot(const struct writer *w, const struct change *c)
{
	const struct memslot *slot = c->new_slot;
	int r = 0;

	if (slot && !in_place(c))
		r = rules_overlap(w->vm, inactive(w), slot->base_gfn, slot->npages, slot->id, w->err);
	if (r)
		return refuse_later(w, c, r);
	add_new_slot(w, c);
	return 0;
}

/* The slots of permute() are in the private set already. */
static int stage_new_slots(const struct writer *w)
{
	int r = 0;

	for (size_t i = 0; !r && i < w->nr; i++) {
		r = w->permuted ? 0 : stage_new_slot(w, &w->change[i]);
		w->change[i].staged = !r;
	}
	return r;
}

int writer_stage_list(struct writer *w)
{
	w->removed = true;
	w->permuted = permute(w);
	if (!w->permuted)
		remove_old_slots(w);
	return stage_new_slots(w);
}

int writer_begin(const struct writer *w, size_t more)
{
	struct ms_vm *vm = w->vm;
	int r = vm->design->begin ? vm->design->begin(&vm->memory, &vm->as[w->as_id], inactive(w), more) : 0;

	vm_index_begin_change(vm, w->as_id);
	return r ? no_memory(w->err) : 0;
}

void writer_end(const struct writer *w)
{
	struct ms_vm *vm = w->vm;

	if (vm->design->end)
		vm->design->end(&vm->memory, &vm->as[w->as_id], inactive(w));
	vm_index_end_change(vm, w->as_id);
}

void writer_release(struct writer *w)
{
	struct memory *memory = &w->vm->memory;

	memory_free(memory, w->scratch, w->scratch_size);
	memory_free(memory, w->takes, w->takes_room * sizeof(*w->takes));
	if (w->values != &w->vm->single_value)
		memory_free(memory, w->values, w->nr * sizeof(*w->values));
	if (w->change != w->few)
		memory_free(memory, w->change, w->room * sizeof(*w->change));
}
