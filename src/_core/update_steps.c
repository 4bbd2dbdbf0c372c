/* SPDX-License-Identifier: MIT */
/*
 * update_steps.c - the steps of an update, and the calls that read its slots.  See update.h for the invariants.
 */
#include <errno.h>

#include "listeners.h"
#include "rules.h"
#include "slot_make.h"
#include "update.h"
#include "vm_index.h"

static struct memslot *slot_of(const struct ms_slot *handle)
{
	return (struct memslot *)(uintptr_t)handle;
}

static struct ms_slot *handle_of(struct memslot *slot)
{
	return (struct ms_slot *)(void *)slot;
}

static bool touch(struct ms_update *u, struct memslot *slot)
{
	if (!slot || slot->sets & TOUCHED)
		return true;
	if (!list_reserve(&u->vm->memory, &u->touched, sizeof(struct touched), 1) || !update_reserve_changes(u))
		return false;
	*touched_at(u, u->touched.nr++) = (struct touched){ slot, slot->sets == 3, slot->sets == 3 };
	slot->sets |= TOUCHED;
	return true;
}

/* ---- checks ---- */

static struct memslot_set *set_of(const struct ms_update *u, bool active)
{
	return active ? vm_active_set(u->vm, u->as_id) : inactive(u);
}

static bool is_in(const struct memslot *slot, const struct memslot_set *set)
{
	return slot->sets >> set->node_idx & 1;
}

/* See U4.  A slot that no step has touched is in both sets (U2), so a search in one set is enough. */
static bool is_handle(const struct ms_update *u, const struct memslot *slot)
{
	const struct memslot_design *design = u->vm->design;

	return design->has_slot(&u->vm->memory, slot) &&
	       (slot->sets & TOUCHED || design->find(inactive(u), slot->id) == slot);
}

static int refuse_handle(const struct memslot *slot, struct ms_error *err)
{
	return vm_refuse(err, EINVAL, MS_RULE_HANDLE, 0, slot);
}

static int check_handle(const struct ms_update *u, const struct memslot *slot, struct ms_error *err)
{
	return !slot || is_handle(u, slot) ? 0 : refuse_handle(NULL, err);
}

static int check_place(const struct ms_update *u, const struct memslot_set *set, const struct memslot *old,
		       const struct memslot *new_slot, struct ms_error *err)
{
	int r = rules_unused_id(u->vm, set, new_slot->id, old, err);

	if (r)
		return r;
	return rules_overlap(u->vm, set, new_slot->base_gfn, new_slot->npages, old ? old->id : new_slot->id, err);
}

/* Checks that new_slot can take the place of old in the active or the inactive set. */
static int check_replace(const struct ms_update *u, bool active, const struct memslot *old,
			 const struct memslot *new_slot, struct ms_error *err)
{
	const struct memslot_set *set;
	int r = update_check_caller(u, err);

	if (!r)
		r = check_handle(u, old, err);
	if (!r)
		r = check_handle(u, new_slot, err);
	if (r)
		return r;
	set = set_of(u, active);
	if ((!old && !new_slot) || (old && !is_in(old, set)) || (new_slot && is_in(new_slot, set)))
		return refuse_handle(old ? old : new_slot, err);
	return new_slot ? check_place(u, set, old, new_slot, err) : 0;
}

/* Checks a pointer through which the step reads or writes. */
static int check_pointer(const void *pointer, struct ms_error *err)
{
	return pointer ? 0 : null_buffer(err);
}

/* ---- the steps ---- */

static bool note_edit(struct ms_update *u, struct memslot *old, struct memslot *new_slot)
{
	return touch(u, old) && touch(u, new_slot) && list_reserve(&u->vm->memory, &u->edits, sizeof(struct edit), 1);
}

/* Checks a step that makes an edit, and makes room to note it. */
static int admit_edit(struct ms_update *u, bool active, struct memslot *old, struct memslot *new_slot,
		      struct ms_error *err)
{
	int r = check_replace(u, active, old, new_slot, err);

	if (r)
		return r;
	return note_edit(u, old, new_slot) ? 0 : no_memory(err);
}

/* The step is checked and has room to note the edit, so this cannot fail. */
static void edit_inactive(struct ms_update *u, struct memslot *old, struct memslot *new_slot)
{
	struct memslot_set *set = inactive(u);
	struct address_space *as = &u->vm->as[u->as_id];

	u->vm->design->begin(&u->vm->memory, as, set, 1); /* never fails in design "tree" */
	u->vm->design->follow(&u->vm->memory, as, set);   /* keeps the buckets that begin() has added */
	u->vm->design->end(&u->vm->memory, as, set);
	vm_replace(u->vm, set, old, new_slot);
	*edit_at(u, u->edits.nr++) = (struct edit){ old, new_slot, set->node_idx };
}

int ms_update_replace(struct ms_update *u, struct ms_slot *old, struct ms_slot *new_slot, struct ms_error *err)
{
	int r = admit_edit(u, false, slot_of(old), slot_of(new_slot), err);

	if (r)
		return r;
	edit_inactive(u, slot_of(old), slot_of(new_slot));
	return 0;
}

int ms_update_swap(struct ms_update *u, struct ms_error *err)
{
	int r = update_check_caller(u, err);

	if (r)
		return r;
	update_step_begin(u);
	update_swap_sets(u);
	update_step_end(u);
	return 0;
}

int ms_update_activate(struct ms_update *u, struct ms_slot *old, struct ms_slot *new_slot, struct ms_error *err)
{
	int r = admit_edit(u, true, slot_of(old), slot_of(new_slot), err);

	if (r)
		return r;
	update_step_begin(u);
	update_swap_sets(u);
	edit_inactive(u, slot_of(old), slot_of(new_slot));
	update_step_end(u);
	return 0;
}

/* From now on the end of the update frees the draft if no set has it then. */
static int add_draft(struct ms_update *u, struct memslot *draft, struct ms_error *err)
{
	if (touch(u, draft))
		return 0;
	memslot_free(u->vm->design, &u->vm->memory, draft);
	return no_memory(err);
}

static int make_invalid(struct ms_update *u, const struct memslot *slot, struct memslot **inv, struct ms_error *err)
{
	int r = slot_create_invalid(u->vm, slot, inv, err);

	return r ? r : add_draft(u, *inv, err);
}

static int check_invalidate(const struct ms_update *u, const struct memslot *slot, struct ms_error *err)
{
	int r = update_check_caller(u, err);

	if (!r)
		r = check_handle(u, slot, err);
	if (!r && (!slot || (slot->sets & 3) != 3))
		r = refuse_handle(slot, err);
	return r;
}

int ms_update_invalidate(struct ms_update *u, struct ms_slot *handle, struct ms_slot **out, struct ms_error *err)
{
	struct memslot *slot = slot_of(handle), *inv;
	int r = check_invalidate(u, slot, err);

	if (!r)
		r = check_pointer(out, err);
	if (r)
		return r;
	if (!note_edit(u, slot, NULL))
		return no_memory(err);
	r = make_invalid(u, slot, &inv, err); /* last, because a later failure would leave a draft without a handle */
	if (r)
		return r;
	edit_inactive(u, slot, inv);
	update_step_begin(u);
	update_swap_sets(u);
	listeners_flush(u->vm, inv, slot);
	slot->sets |= FLUSHED;
	*out = update_step_end(u) ? handle_of(inv) : NULL;
	return 0;
}

static int check_values(const struct ms_update *u, const struct ms_memslot *v, struct ms_error *err)
{
	int r = rules_value(u->vm, v, u->as_id, err);

	return r ? r : rules_guest_memfd(v->flags, -1, err);
}

/* A draft with other host pages than the backing of `old` has is raw. */
static int give_backing(struct memslot *draft, const struct memslot *old, const struct ms_memslot *v,
			struct ms_error *err)
{
	if (!old || !old->backing || !backing_has(old->backing, v->userspace_addr, v->npages << MS_PAGE_SHIFT))
		return 0;
	draft->backing = backing_get(old->backing);
	return rules_backing(draft->backing, v, err);
}

/* A refused draft does not enter `touched`: its address may equal an old handle of the caller, and that handle would
 * become valid. */
static int make_draft(struct ms_update *u, const struct memslot *old, const struct ms_memslot *v,
		      struct memslot **draft, struct ms_error *err)
{
	int r = slot_create(u->vm, v, u->as_id, draft, err);

	if (r)
		return r;
	r = rules_gpa_limit(u->vm, *draft, err);
	if (!r)
		r = give_backing(*draft, old, v, err);
	if (!r)
		r = slot_give_log(u->vm, *draft, old, err);
	if (!r)
		return add_draft(u, *draft, err);
	memslot_free(u->vm->design, &u->vm->memory, *draft);
	return r;
}

static int check_copy(const struct ms_update *u, const struct memslot *old, const struct ms_memslot *values,
		      struct ms_slot **out, struct ms_error *err)
{
	int r = update_check_caller(u, err);

	if (!r)
		r = check_pointer(values, err);
	if (!r)
		r = check_pointer(out, err);
	return r ? r : check_handle(u, old, err);
}

int ms_update_copy(struct ms_update *u, struct ms_slot *old, const struct ms_memslot *values, struct ms_slot **out,
		   struct ms_error *err)
{
	struct ms_memslot v;
	struct memslot *draft;
	int r = check_copy(u, slot_of(old), values, out, err);

	if (r)
		return r;
	v = *values;
	if (old)
		v.id = slot_of(old)->id;
	r = check_values(u, &v, err);
	if (!r)
		r = make_draft(u, slot_of(old), &v, &draft, err);
	if (!r)
		*out = handle_of(draft);
	return r;
}

/* ---- reading the slots ---- */

size_t ms_update_slots(struct ms_update *u, bool active, struct ms_slot **out, size_t room)
{
	const struct memslot_set *set;
	struct memslot *slot;
	size_t nr = 0;

	if (!is_own(u))
		return 0;
	set = set_of(u, active);
	slot = u->vm->design->first_from(set, 0);
	for (; slot; slot = u->vm->design->next(set, slot), nr++)
		if (out && nr < room)
			out[nr] = handle_of(slot);
	return nr;
}

struct ms_slot *ms_update_find(struct ms_update *u, bool active, uint32_t id)
{
	return is_own(u) ? handle_of(u->vm->design->find(set_of(u, active), id)) : NULL;
}

int ms_update_value(struct ms_update *u, const struct ms_slot *slot, struct ms_memslot *out)
{
	if (u && !is_own(u))
		return -EBUSY;
	if (!u || !slot || !is_handle(u, slot_of(slot)))
		return -EINVAL;
	if (!out)
		return -EFAULT;
	*out = memslot_value(slot_of(slot));
	return 0;
}
