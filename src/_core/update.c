/* SPDX-License-Identifier: MIT */
/*
 * update.c - the owner of an update, its begin and its end.  See update.h for the invariants.
 */
#include "update.h"

#include "rules.h"
#include "vm_index.h"

/* ---- the owner ---- */

int update_check_caller(const struct ms_update *u, struct ms_error *err)
{
	if (!u)
		return vm_refuse(err, EINVAL, MS_RULE_HANDLE, 0, NULL);
	if (u->vm->forks != process_forks())
		return vm_refuse(err, EIO, MS_RULE_FORKED, 0, NULL);
	if (!is_own(u))
		return vm_refuse(err, EBUSY, MS_RULE_UPDATE_OWNER, 0, NULL);
	if (thread_self.sections)
		return vm_refuse(err, EDEADLK, MS_RULE_READ_SECTION, 0, NULL);
	return thread_self.hooks ? vm_refuse(err, EDEADLK, MS_RULE_HOOK, 0, NULL) : 0;
}

/* ---- the swap ---- */

/* Only touched slots can have a log with related logs.  Slots outside of the set that was left have new marks too:
 * those of a long write, which pins their log. */
static void pass_on_marks(struct ms_update *u)
{
	for (size_t i = 0; i < u->touched.nr; i++) {
		const struct memslot *slot = touched_at(u, i)->slot;

		if (slot->dirty)
			dirty_log_pass_on(slot->dirty);
	}
}

/* Readers can see each slot of the active set now, and derive values from it. */
static void note_seen(struct ms_update *u)
{
	uint32_t idx = vm_active_set(u->vm, u->as_id)->node_idx;

	for (size_t i = 0; i < u->touched.nr; i++) {
		struct touched *t = touched_at(u, i);

		if (!(t->slot->sets >> idx & 1))
			continue;
		t->was_seen = true;
		t->slot->sets &= (uint8_t)~FLUSHED;
	}
}

/* The second half of update_swap_sets(). */
static void update_swap_sets_end(struct ms_update *u)
{
	vm_swap_end(u->vm, u->as_id);
	pass_on_marks(u);
	note_seen(u);
}

void update_swap_sets(struct ms_update *u)
{
	vm_swap_begin(u->vm, u->as_id);
	update_swap_sets_end(u);
}

static void finish_deferred(struct slots_lock *lock);

/* Removes the thread_end of the update.  Returns true if the caller must end the update now, and false if the end of
 * the owner's thread has ended it. */
static bool claim_end(struct ms_update *u)
{
	if (!thread_end_remove(&u->end))
		return false;
	u->vm->slots_lock.has_end = false;
	return true;
}

/* After slots_lock_defer_end() the next owner of the lock may free *u. */
bool update_step_end(struct ms_update *u)
{
	u->in_step = false;
	if (!u->abandoned)
		return true;
	claim_end(u);
	slots_lock_defer_end(&u->vm->slots_lock, finish_deferred);
	thread_flush_tasks();
	return false;
}

/* ---- begin ---- */

static void thread_ended(struct thread_end *end);

/* The calling thread becomes the owner. */
static struct ms_update *alloc_update(struct ms_vm *vm)
{
	struct ms_update *u = memory_zalloc(&vm->memory, sizeof(*u));

	if (u && thread_end_add(&u->end, thread_ended))
		return u;
	memory_free(&vm->memory, u, sizeof(*u));
	return NULL;
}

static int check_begin(const struct ms_vm *vm, uint32_t as_id, struct ms_error *err)
{
	if (rules_as_id(vm, as_id, err))
		return -EINVAL;
	return vm->design == &DESIGN_OF(tree) ? 0 : vm_refuse(err, ENOSYS, MS_RULE_BACKEND, 0, NULL);
}

/* Under slots_lock, which the update keeps.  Inside a hook of another VM each step and the end would be refused. */
static int begin(struct ms_vm *vm, uint32_t as_id, struct ms_update **out, struct ms_error *err)
{
	struct ms_update *u;

	if (thread_self.hooks)
		return vm_refuse(err, EBUSY, MS_RULE_HOOK_BUSY, 0, NULL);
	vm_free_deferred(vm, false);
	memory_pool_mark(&vm->memory);
	u = alloc_update(vm);
	if (!u)
		return no_memory(err);
	u->vm = vm;
	u->as_id = as_id;
	vm_index_begin_change(vm, as_id);
	vm->slots_lock.has_end = true;
	atomic_store_explicit(&vm->update, u, memory_order_relaxed);
	*out = u;
	return 0;
}

int ms_update_begin(struct ms_vm *vm, uint32_t as_id, struct ms_update **out, struct ms_error *err)
{
	int r;

	if (!out)
		return null_buffer(err);
	*out = NULL;
	r = check_begin(vm, as_id, err);
	if (!r)
		r = vm_lock(vm, err);
	if (r)
		return r;
	r = begin(vm, as_id, out, err);
	if (r)
		vm_unlock(vm);
	return r;
}

/* ---- end and roll-back ---- */

static bool at_rest(const struct ms_update *u)
{
	for (size_t i = 0; i < u->touched.nr; i++) {
		const struct memslot *slot = touched_at(u, i)->slot;
		uint8_t sets = slot->sets & 3;

		if ((sets != 0 && sets != 3) || (sets && slot->flags & MS_MEMSLOT_INVALID))
			return false;
	}
	return true;
}

/* Undoes the edits of the inactive set that are not undone yet, the last one first (U1). */
static void roll_back_inactive(struct ms_update *u)
{
	struct memslot_set *set = inactive(u);

	for (size_t i = u->edits.nr; i-- > 0;) {
		struct edit *edit = edit_at(u, i);

		if (edit->node_idx != set->node_idx)
			continue;
		vm_replace(u->vm, set, edit->new_slot, edit->old);
		edit->node_idx = EDIT_UNDONE;
	}
}

static bool edited(const struct ms_update *u, const struct memslot_set *set)
{
	for (size_t i = 0; i < u->edits.nr; i++)
		if (edit_at(u, i)->node_idx == set->node_idx)
			return true;
	return false;
}

/* Undoes the edits of the inactive set.  If edits of the active set are left, swaps and undoes those too.  A roll-back
 * that another thread has begun continues where it was: the marks of U1 show which edits are left.  An update that is
 * kept only has hooks left, which no other thread runs. */
static void roll_back(struct ms_update *u)
{
	if (u->kept)
		return;
	roll_back_inactive(u);
	if (edited(u, vm_active_set(u->vm, u->as_id))) {
		update_swap_sets(u);
		roll_back_inactive(u);
	}
}

/* By U2 the touched slots are enough for the totals.  A roll-back does not change them. */
static void count_touched(struct ms_update *u)
{
	struct vm_counts *counts = &u->vm->counts;

	for (size_t i = 0; i < u->touched.nr; i++) {
		const struct touched *t = touched_at(u, i);
		uint64_t more = (uint64_t)((t->slot->sets & 3) != 0) - (uint64_t)t->was_member;

		count_add(&counts->nr_memslots, more);
		count_add(&counts->nr_memslot_pages, more * t->slot->npages);
	}
}

/* Frees the slots that are in no set; by U2 all of them were touched. */
static void free_touched(struct ms_update *u)
{
	struct ms_vm *vm = u->vm;

	for (size_t i = 0; i < u->touched.nr; i++) {
		struct memslot *slot = touched_at(u, i)->slot;

		slot->sets &= 3;
		if (slot->sets)
			continue;
		id_is_free(&vm->as[u->as_id], slot->id);
		holds_retire(&vm->holds, slot);
	}
}

static void free_update(struct ms_update *u)
{
	struct ms_vm *vm = u->vm;

	vm_index_end_change(vm, u->as_id);
	update_free_changes(u);
	list_free(&vm->memory, &u->edits, sizeof(struct edit));
	list_free(&vm->memory, &u->touched, sizeof(struct touched));
	atomic_store_explicit(&vm->update, NULL, memory_order_relaxed);
	if (!u->owner_ended) {
		memory_free(&vm->memory, u, sizeof(*u));
		return;
	}
	u->deferred.size = sizeof(*u);
	u->deferred.next = vm->deferred_frees;
	vm->deferred_frees = &u->deferred;
}

/* Ends the update, but does not release slots_lock. */
static void release(struct ms_update *u)
{
	free_touched(u);
	if (!u->kept)
		memory_pool_trim(&u->vm->memory);
	free_update(u);
}

static void roll_back_and_free(struct ms_update *u)
{
	roll_back(u);
	release(u);
}

static int accept(struct ms_update *u, struct ms_error *err)
{
	return at_rest(u) ? update_prepare(u, err) : vm_refuse(err, EINVAL, MS_RULE_SETS_DIFFER, 0, NULL);
}

static void complete(struct ms_update *u)
{
	u->kept = true;
	count_touched(u);
	update_commit(u);
}

int ms_update_end(struct ms_update *u, bool keep, struct ms_error *err)
{
	int r = update_check_caller(u, err);
	struct ms_vm *vm;

	if (r)
		return r;
	vm = u->vm;
	update_step_begin(u);
	u->abandoned = true; /* if the thread ends in a stall report or a hook, no caller uses *u any more */
	r = keep ? accept(u, err) : 0;
	if (keep && !r)
		complete(u);
	else
		roll_back(u);
	claim_end(u);
	release(u);
	vm_unlock(vm);
	return r;
}

/* Runs in the next thread that takes the lock.  Completes the work that ms_update_abandon(), or the end of a thread,
 * left to it.  An update that is kept stays so, but gets no further hooks. */
static void finish_deferred(struct slots_lock *lock)
{
	struct ms_vm *vm = container_of(lock, struct ms_vm, slots_lock);
	struct ms_update *u = atomic_load_explicit(&vm->update, memory_order_relaxed);

	update_step_begin(u); /* a stall report from here is inside a call of this thread */
	if (vm_is_swapping(vm, u->as_id)) /* for a roll-back, or a step whose thread has ended in a stall report */
		update_swap_sets_end(u);
	roll_back_and_free(u);
}

static bool inside_own_step(const struct ms_update *u)
{
	return is_own(u) && u->in_step;
}

/* The part of the roll-back that needs no wait.  After it readers see the slots from before the update again. */
static void begin_roll_back(struct ms_update *u)
{
	roll_back_inactive(u);
	vm_swap_begin(u->vm, u->as_id);
}

/* Never waits: the calling thread is ending, or a garbage collector runs in it.  A collector's thread may hold a lock
 * for which a reader waits. */
static void abandon(struct ms_update *u)
{
	struct ms_vm *vm = u->vm;
	/* Inside a read section a roll-back could wait for its own thread.  Inside a hook a step may be using *u. */
	bool may_roll_back = !thread_self.sections && !thread_self.hooks;

	if (vm->forks != process_forks()) /* in a forked child no writer waits for the lock */
		return;
	if (may_roll_back && !edited(u, vm_active_set(vm, u->as_id))) {
		roll_back_and_free(u);
		vm_unlock(vm);
		return;
	}
	if (may_roll_back)
		begin_roll_back(u);
	slots_lock_defer_end(&vm->slots_lock, finish_deferred);
}

static void thread_ended(struct thread_end *end)
{
	struct ms_update *u = container_of(end, struct ms_update, end);

	u->owner_ended = true;
	u->vm->slots_lock.has_end = false;
	if (u->abandoned) /* in the same step, or by ms_update_end(): no caller uses *u any more */
		atomic_store_explicit(&u->deferred.given_back, 1, memory_order_release);
	abandon(u);
}

/* A garbage collector may call this in any place.  Inside a step it keeps the thread_end, because the thread may end
 * before the step is over. */
void ms_update_abandon(struct ms_update *u)
{
	if (!u)
		return;
	if (inside_own_step(u))
		u->abandoned = true;
	else if (!claim_end(u)) /* the owner's thread has ended */
		atomic_store_explicit(&u->deferred.given_back, 1, memory_order_release);
	else
		abandon(u);
	thread_flush_tasks();
}

/* ms_vm_destroy() has ended all read sections, so the roll-back does not wait. */
void vm_end_update(struct ms_vm *vm)
{
	struct ms_update *u = atomic_load_explicit(&vm->update, memory_order_relaxed);

	if (u && claim_end(u))
		roll_back_and_free(u);
}

bool vm_is_in_step(const struct ms_vm *vm)
{
	const struct ms_update *u = atomic_load_explicit(&vm->update, memory_order_relaxed);

	return !u || u->in_step;
}
