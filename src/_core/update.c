/* SPDX-License-Identifier: MIT */
/*
 * update.c - the steps of a change one by one, for those who study the two sets.
 *
 * region.c makes these steps in the one order that is right.  Here the caller orders them, and may be wrong: each
 * step checks that its slots are where they must be, every replace is noted before it is made, and what would be left
 * different is taken back.  Slots that a step removed are kept until the end, because taking back needs them.
 *
 * Invariants
 *   U1  the log, read backwards for one set, leads that set back to where it was at begin: the two sets' entries do
 *       not depend on each other;
 *   U2  every slot that is not in both sets, or was not at begin, is in `touched`, once.
 *
 *   U3  whoever may have a pointer to an update can ask it whose it is: one whose thread has ended stays, as a husk,
 *       until it is given up or the VM goes.  Thread numbers are not used again, so no step ever enters a husk.
 *
 * Locking: slots_lock from begin to end, by the thread that began.  ends_lock (thread.h) decides who gives an update
 * up, its thread's end or somebody else.
 * Cost: as region.c for each step; taking back O(steps log n), at most one swap, no memory.
 */
#include <errno.h>
#include <string.h>

#include "rules.h"
#include "vm_index.h"

struct edit {
	struct memslot *old, *new_slot;
	uint32_t node_idx;
};

struct touched {
	struct memslot *slot;
	bool was_member; /* at begin */
};

struct list {
	void *items;
	size_t nr, room;
};

struct ms_update {
	struct vm_husk husk;
	struct thread_end end; /* with the thread that began, the only one that makes steps */
	struct ms_vm *vm;
	uint32_t as_id;
	bool in_step;   /* the owner's step is inside a flush hook, or waits for readers and may be reporting one */
	bool abandoned; /* ... which has given the update up */
	bool lost;      /* its thread has ended: a husk stays (U3) */
	bool returning; /* abandoned: the set of the beginning is published, the grace period is still to come */
	struct list edits, touched;
};

/* Membership bit of slots that are in update->touched. */
#define TOUCHED ((uint8_t)0x80)

#define LIST_ROOM_MIN 8

static struct memslot *slot_of(const struct ms_slot *handle)
{
	return (struct memslot *)(uintptr_t)handle;
}

static struct ms_slot *handle_of(struct memslot *slot)
{
	return (struct ms_slot *)(void *)slot;
}

/* ---- lists ---- */

static bool list_reserve(struct memory *memory, struct list *list, size_t item)
{
	size_t room = list->room ? 2 * list->room : LIST_ROOM_MIN;
	void *items;

	if (list->nr < list->room)
		return true;
	items = memory_zalloc(memory, room * item);
	if (!items)
		return false;
	if (list->nr)
		memcpy(items, list->items, list->nr * item);
	memory_free(memory, list->items, list->room * item);
	list->items = items;
	list->room = room;
	return true;
}

static struct edit *edit_at(const struct ms_update *u, size_t i)
{
	return (struct edit *)u->edits.items + i;
}

static struct touched *touched_at(const struct ms_update *u, size_t i)
{
	return (struct touched *)u->touched.items + i;
}

static bool touch(struct ms_update *u, struct memslot *slot)
{
	if (!slot || slot->sets & TOUCHED)
		return true;
	if (!list_reserve(&u->vm->memory, &u->touched, sizeof(struct touched)))
		return false;
	*touched_at(u, u->touched.nr++) = (struct touched){ slot, slot->sets == 3 };
	slot->sets |= TOUCHED;
	return true;
}

/* ---- what each step checks ---- */

static int no_memory(struct ms_error *err)
{
	return vm_refuse(err, ENOMEM, MS_RULE_NO_MEMORY, 0, NULL);
}

static bool is_own(const struct ms_update *u)
{
	return u->end.owner == thread_number();
}

static int check_caller(const struct ms_update *u, struct ms_error *err)
{
	if (u->vm->forks != process_forks())
		return vm_refuse(err, EIO, MS_RULE_FORKED, 0, NULL);
	if (!is_own(u))
		return vm_refuse(err, EBUSY, MS_RULE_UPDATE, 0, NULL);
	if (thread_self.sections)
		return vm_refuse(err, EDEADLK, MS_RULE_READ_SECTION, 0, NULL);
	return thread_self.hooks ? vm_refuse(err, EDEADLK, MS_RULE_HOOK, 0, NULL) : 0;
}

static bool is_in(const struct memslot *slot, const struct memslot_set *set)
{
	return slot->sets >> set->node_idx & 1;
}

static int check_place(const struct ms_update *u, const struct memslot_set *set, const struct memslot *old,
		       const struct memslot *new_slot, struct ms_error *err)
{
	const struct memslot *same = u->vm->design->find(set, new_slot->id);

	if (same && same != old)
		return vm_refuse(err, EEXIST, MS_RULE_DUPLICATE_ID, 0, same);
	return rules_overlap(u->vm, set, new_slot->base_gfn, new_slot->npages, old ? old->id : new_slot->id, err);
}

/* Whether `set` can have new_slot in the place of old. */
static int check_replace(const struct ms_update *u, const struct memslot_set *set, const struct memslot *old,
			 const struct memslot *new_slot, struct ms_error *err)
{
	int r = check_caller(u, err);

	if (r)
		return r;
	if ((!old && !new_slot) || (old && !is_in(old, set)) || (new_slot && is_in(new_slot, set)))
		return vm_refuse(err, EINVAL, MS_RULE_HANDLE, 0, old ? old : new_slot);
	return new_slot ? check_place(u, set, old, new_slot, err) : 0;
}

/* ---- the steps ---- */

static struct memslot_set *inactive(const struct ms_update *u)
{
	return vm_inactive_set(u->vm, u->as_id);
}

static bool note_edit(struct ms_update *u, struct memslot *old, struct memslot *new_slot)
{
	return touch(u, old) && touch(u, new_slot) && list_reserve(&u->vm->memory, &u->edits, sizeof(struct edit));
}

/* Checked and noted; cannot fail. */
static void edit_inactive(struct ms_update *u, struct memslot *old, struct memslot *new_slot)
{
	struct memslot_set *set = inactive(u);
	struct address_space *as = &u->vm->as[u->as_id];

	u->vm->design->begin(&u->vm->memory, as, set, 1); /* never fails in design "tree" */
	u->vm->design->end(&u->vm->memory, as, set);
	vm_replace(u->vm, set, old, new_slot);
	*edit_at(u, u->edits.nr++) = (struct edit){ old, new_slot, set->node_idx };
}

int ms_update_replace(struct ms_update *u, struct ms_slot *old, struct ms_slot *new_slot, struct ms_error *err)
{
	int r = check_replace(u, inactive(u), slot_of(old), slot_of(new_slot), err);

	if (r)
		return r;
	if (!note_edit(u, slot_of(old), slot_of(new_slot)))
		return no_memory(err);
	edit_inactive(u, slot_of(old), slot_of(new_slot));
	return 0;
}

static void finish_orphan(struct ms_vm *vm);

/* Around whatever calls the user's code: who gives the update up in there gets his wish once the step is over; then
 * no handle is left. */
static void step_begin(struct ms_update *u)
{
	u->in_step = true;
}

static bool step_end(struct ms_update *u)
{
	u->in_step = false;
	if (u->abandoned)
		vm_orphan(u->vm, finish_orphan);
	return !u->abandoned;
}

int ms_update_swap(struct ms_update *u, struct ms_error *err)
{
	int r = check_caller(u, err);

	if (r)
		return r;
	step_begin(u);
	vm_swap(u->vm, u->as_id);
	step_end(u);
	return 0;
}

int ms_update_activate(struct ms_update *u, struct ms_slot *old, struct ms_slot *new_slot, struct ms_error *err)
{
	int r = check_replace(u, vm_active_set(u->vm, u->as_id), slot_of(old), slot_of(new_slot), err);

	if (r)
		return r;
	if (!note_edit(u, slot_of(old), slot_of(new_slot)))
		return no_memory(err);
	step_begin(u);
	vm_swap(u->vm, u->as_id);
	edit_inactive(u, slot_of(old), slot_of(new_slot));
	step_end(u);
	return 0;
}

static struct memslot *alloc_draft(struct ms_update *u, struct ms_error *err)
{
	struct memslot *draft = u->vm->design->alloc_slot(&u->vm->memory);

	if (draft && touch(u, draft))
		return draft;
	memslot_free(u->vm->design, &u->vm->memory, draft);
	no_memory(err);
	return NULL;
}


int ms_update_invalidate(struct ms_update *u, struct ms_slot *handle, struct ms_slot **out, struct ms_error *err)
{
	struct memslot *slot = slot_of(handle), *inv;
	int r = check_caller(u, err);

	if (!r && (!slot || (slot->sets & 3) != 3))
		r = vm_refuse(err, EINVAL, MS_RULE_HANDLE, 0, slot);
	if (r)
		return r;
	inv = alloc_draft(u, err);
	if (!inv)
		return -ENOMEM;
	memslot_copy(inv, slot);
	inv->flags |= MS_MEMSLOT_INVALID;
	if (!note_edit(u, slot, inv))
		return no_memory(err); /* the draft stays one, and goes at the end */
	edit_inactive(u, slot, inv);
	step_begin(u);
	vm_swap(u->vm, u->as_id);
	vm_flush(u->vm, inv, slot);
	*out = step_end(u) ? handle_of(inv) : NULL;
	return 0;
}

static int check_values(const struct ms_update *u, const struct ms_memslot *v, struct ms_error *err)
{
	struct ms_userspace_memory_region region = {
		.slot = v->id, .as_id = u->as_id, .flags = v->flags, .guest_phys_addr = v->base_gfn << MS_PAGE_SHIFT,
		.memory_size = v->npages << MS_PAGE_SHIFT, .userspace_addr = v->userspace_addr,
	};

	if (v->base_gfn >> (64 - MS_PAGE_SHIFT))
		return vm_refuse(err, EINVAL, MS_RULE_GPA_WRAP, 0, NULL);
	if (!v->npages || v->npages > MS_MEM_MAX_NR_PAGES)
		return vm_refuse(err, EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, NULL);
	if (v->flags & MS_MEM_GUEST_MEMFD)
		return vm_refuse(err, EBADF, MS_RULE_GMEM_FD, 0, NULL);
	return rules_request(u->vm, &region, 0, u->vm->config.user_mem_slots, err);
}

/* As region.c: logging that goes on keeps its log. */
static bool give_dirty_log(struct ms_update *u, struct memslot *draft, const struct memslot *old)
{
	bool initially_set = ms_manual_dirty_log_protect(u->vm) & MS_DIRTY_LOG_INITIALLY_SET;

	if (!(draft->flags & MS_MEM_LOG_DIRTY_PAGES))
		return true;
	if (old && old->dirty && old->npages == draft->npages)
		draft->dirty = dirty_log_get(old->dirty);
	else
		draft->dirty = dirty_log_create(&u->vm->memory, draft->npages, initially_set);
	return draft->dirty;
}

static void fill_draft(struct memslot *draft, const struct ms_memslot *v, uint32_t as_id)
{
	draft->base_gfn = v->base_gfn;
	draft->npages = v->npages;
	draft->hva = (struct interval){ v->userspace_addr, v->userspace_addr + (v->npages << MS_PAGE_SHIFT) - 1 };
	draft->id = v->id;
	draft->flags = v->flags;
	draft->as_id = (uint16_t)as_id;
}

int ms_update_copy(struct ms_update *u, struct ms_slot *old, const struct ms_memslot *values, struct ms_slot **out,
		   struct ms_error *err)
{
	struct ms_memslot v = *values;
	struct memslot *draft;
	int r = check_caller(u, err);

	if (old)
		v.id = slot_of(old)->id;
	if (!r)
		r = check_values(u, &v, err);
	if (r)
		return r;
	draft = alloc_draft(u, err);
	if (!draft)
		return -ENOMEM;
	fill_draft(draft, &v, u->as_id);
	r = rules_gpa_limit(u->vm, draft, err);
	if (r)
		return r; /* a draft that nobody was told of goes at the end */
	if (!give_dirty_log(u, draft, slot_of(old)))
		return no_memory(err);
	*out = handle_of(draft);
	return 0;
}

/* ---- looking around ---- */

static struct memslot_set *set_of(struct ms_update *u, bool active)
{
	return active ? vm_active_set(u->vm, u->as_id) : inactive(u);
}

size_t ms_update_slots(struct ms_update *u, bool active, struct ms_slot **out, size_t room)
{
	const struct memslot_set *set = set_of(u, active);
	struct memslot *slot;
	size_t nr = 0;

	if (!is_own(u))
		return 0;
	slot = u->vm->design->first_from(set, 0);
	for (; slot; slot = u->vm->design->next(set, slot), nr++)
		if (nr < room)
			out[nr] = handle_of(slot);
	return nr;
}

struct ms_slot *ms_update_find(struct ms_update *u, bool active, uint32_t id)
{
	return is_own(u) ? handle_of(u->vm->design->find(set_of(u, active), id)) : NULL;
}

int ms_update_value(struct ms_update *u, const struct ms_slot *slot, struct ms_memslot *out)
{
	if (!is_own(u))
		return -EBUSY;
	if (!slot)
		return -EINVAL;
	*out = memslot_value(slot_of(slot));
	return 0;
}

/* ---- begin and end ---- */

static void thread_ended(struct thread_end *end);

/* The caller's until its thread ends. */
static struct ms_update *alloc_update(struct ms_vm *vm)
{
	struct ms_update *u = memory_zalloc(&vm->memory, sizeof(*u));

	if (u && thread_end_add(&u->end, thread_ended))
		return u;
	memory_free(&vm->memory, u, sizeof(*u));
	return NULL;
}

int ms_update_begin(struct ms_vm *vm, uint32_t as_id, struct ms_update **out, struct ms_error *err)
{
	struct ms_update *u;
	int r;

	*out = NULL;
	if (as_id >= vm->config.address_spaces)
		return vm_refuse(err, EINVAL, MS_RULE_AS_ID, vm->config.address_spaces, NULL);
	if (vm->design != &DESIGN_OF(tree))
		return vm_refuse(err, ENOSYS, MS_RULE_BACKEND, 0, NULL);
	r = vm_lock(vm, err);
	if (r)
		return r;
	if (thread_self.hooks) { /* of another VM: no step could be made in there, and the end could not come */
		vm_unlock(vm);
		return vm_refuse(err, EBUSY, MS_RULE_HOOK, 0, NULL);
	}
	vm_free_husks(vm, false);
	u = alloc_update(vm);
	if (!u) {
		vm_unlock(vm);
		return no_memory(err);
	}
	u->vm = vm;
	u->as_id = as_id;
	vm_index_share(vm, as_id);
	atomic_store_explicit(&vm->update, u, memory_order_relaxed);
	*out = u;
	return 0;
}

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

/* U1: first all of the inactive set's edits, then, where there are some, the other set's after a swap. */
static void take_back_inactive(struct ms_update *u)
{
	struct memslot_set *set = inactive(u);

	for (size_t i = u->edits.nr; i-- > 0;) {
		struct edit *edit = edit_at(u, i);

		if (edit->node_idx == set->node_idx)
			vm_replace(u->vm, set, edit->new_slot, edit->old);
	}
}

static bool edited(const struct ms_update *u, const struct memslot_set *set)
{
	for (size_t i = 0; i < u->edits.nr; i++)
		if (edit_at(u, i)->node_idx == set->node_idx)
			return true;
	return false;
}

static void take_back(struct ms_update *u)
{
	take_back_inactive(u);
	if (edited(u, vm_active_set(u->vm, u->as_id))) {
		vm_swap(u->vm, u->as_id);
		take_back_inactive(u);
	}
	u->edits.nr = 0;
}

/* U2: totals follow from the touched slots alone. */
static void settle(struct ms_update *u)
{
	struct ms_vm *vm = u->vm;

	for (size_t i = 0; i < u->touched.nr; i++) {
		struct touched *t = touched_at(u, i);
		bool is_member;

		t->slot->sets &= (uint8_t)~TOUCHED;
		is_member = t->slot->sets;
		count_add(&vm->counts.nr_memslots, (uint64_t)is_member - (uint64_t)t->was_member);
		count_add(&vm->counts.nr_memslot_pages,
			  ((uint64_t)is_member - (uint64_t)t->was_member) * t->slot->npages);
		if (!is_member)
			memslot_free(vm->design, &vm->memory, t->slot);
	}
}

static void free_update(struct ms_update *u)
{
	struct ms_vm *vm = u->vm;

	memory_free(&vm->memory, u->edits.items, u->edits.room * sizeof(struct edit));
	memory_free(&vm->memory, u->touched.items, u->touched.room * sizeof(struct touched));
	atomic_store_explicit(&vm->update, NULL, memory_order_relaxed);
	if (!u->lost) {
		memory_free(&vm->memory, u, sizeof(*u));
		return;
	}
	u->husk.size = sizeof(*u);
	u->husk.next = vm->husks;
	vm->husks = &u->husk;
}

/* Everything but the lock. */
static bool finish(struct ms_update *u, bool keep)
{
	bool alike = at_rest(u);

	if (!alike || !keep)
		take_back(u);
	settle(u);
	free_update(u);
	return alike;
}

/* A thread inside a read section would wait for itself, one inside a hook might pull the update from under a step. */
static int may_end(const struct ms_update *u, struct ms_error *err)
{
	if (u->vm->forks != process_forks())
		return vm_refuse(err, EIO, MS_RULE_FORKED, 0, NULL);
	if (thread_self.sections)
		return vm_refuse(err, EDEADLK, MS_RULE_READ_SECTION, 0, NULL);
	return thread_self.hooks ? vm_refuse(err, EDEADLK, MS_RULE_HOOK, 0, NULL) : 0;
}

int ms_update_end(struct ms_update *u, bool keep, struct ms_error *err)
{
	struct ms_vm *vm = u->vm;
	int r = check_caller(u, err);
	bool alike;

	if (r)
		return r;
	thread_end_remove(&u->end);
	u->in_step = true; /* there is nothing left to give up */
	alike = finish(u, keep);
	vm_unlock(vm);
	return alike || !keep ? 0 : vm_refuse(err, EINVAL, MS_RULE_SETS_DIFFER, 0, NULL);
}

/* What ms_update_abandon() left to whoever wants the lock next. */
static void finish_orphan(struct ms_vm *vm)
{
	struct ms_update *u = atomic_load_explicit(&vm->update, memory_order_relaxed);

	if (u->in_step) /* its thread has ended in a hook of a swap, whose readers it may not have waited for */
		vm_swap_end(vm, u->as_id);
	if (!u->returning) {
		finish(u, false);
		return;
	}
	vm_swap_end(vm, u->as_id);
	take_back_inactive(u);
	settle(u);
	free_update(u);
}

static bool inside_own_step(const struct ms_update *u)
{
	return is_own(u) && u->in_step;
}

/* All that needs no waiting: readers see the set of the beginning again. */
static void go_back(struct ms_update *u)
{
	take_back_inactive(u);
	vm_swap_begin(u->vm, u->as_id);
	u->returning = true;
}

/* Waits for nobody: a reader might wait for what a collector's thread holds, and a thread that ends for neither. */
static void give_up(struct ms_update *u)
{
	struct ms_vm *vm = u->vm;
	int r = may_end(u, NULL);

	if (r == -EIO) /* a child has no writer that could wait for the lock */
		return;
	if (!r && !edited(u, vm_active_set(vm, u->as_id))) {
		finish(u, false);
		vm_unlock(vm);
		return;
	}
	if (!r)
		go_back(u);
	vm_orphan(vm, finish_orphan);
}

static void thread_ended(struct thread_end *end)
{
	struct ms_update *u = container_of(end, struct ms_update, end);

	u->lost = true;
	give_up(u);
}

/* A collector calls this, anywhere. */
void ms_update_abandon(struct ms_update *u)
{
	if (!thread_end_remove(&u->end))
		atomic_store_explicit(&u->husk.given_back, 1, memory_order_release); /* whose thread has ended */
	else if (inside_own_step(u))
		u->abandoned = true;
	else
		give_up(u);
}
