/* SPDX-License-Identifier: MIT */
/*
 * update_steps.c - the steps of an update, and a look at its slots.  See update.h.
 */
#include <errno.h>
#include <string.h>

#include "listeners.h"
#include "rules.h"
#include "slot_make.h"
#include "update.h"
#include "vm_index.h"

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

static bool is_in(const struct memslot *slot, const struct memslot_set *set)
{
	return slot->sets >> set->node_idx & 1;
}

static int check_place(const struct ms_update *u, const struct memslot_set *set, const struct memslot *old,
		       const struct memslot *new_slot, struct ms_error *err)
{
	int r = rules_unused_id(u->vm, set, new_slot->id, old, err);

	if (r)
		return r;
	return rules_overlap(u->vm, set, new_slot->base_gfn, new_slot->npages, old ? old->id : new_slot->id, err);
}

/* Whether `set` can have new_slot in the place of old. */
static int check_replace(const struct ms_update *u, const struct memslot_set *set, const struct memslot *old,
			 const struct memslot *new_slot, struct ms_error *err)
{
	int r = update_check_caller(u, err);

	if (r)
		return r;
	if ((!old && !new_slot) || (old && !is_in(old, set)) || (new_slot && is_in(new_slot, set)))
		return vm_refuse(err, EINVAL, MS_RULE_HANDLE, 0, old ? old : new_slot);
	return new_slot ? check_place(u, set, old, new_slot, err) : 0;
}

/* ---- the steps ---- */

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
	u->vm->design->follow(&u->vm->memory, as, set);   /* keeps the buckets that begin() has added */
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
	int r = check_replace(u, vm_active_set(u->vm, u->as_id), slot_of(old), slot_of(new_slot), err);

	if (r)
		return r;
	if (!note_edit(u, slot_of(old), slot_of(new_slot)))
		return no_memory(err);
	update_step_begin(u);
	update_swap_sets(u);
	edit_inactive(u, slot_of(old), slot_of(new_slot));
	update_step_end(u);
	return 0;
}

/* From here on the draft goes at the end, if no set has it then. */
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

int ms_update_invalidate(struct ms_update *u, struct ms_slot *handle, struct ms_slot **out, struct ms_error *err)
{
	struct memslot *slot = slot_of(handle), *inv;
	int r = update_check_caller(u, err);

	if (!r && (!slot || (slot->sets & 3) != 3))
		r = vm_refuse(err, EINVAL, MS_RULE_HANDLE, 0, slot);
	if (!r)
		r = make_invalid(u, slot, &inv, err);
	if (r)
		return r;
	if (!note_edit(u, slot, inv))
		return no_memory(err); /* the draft stays one, and goes at the end */
	edit_inactive(u, slot, inv);
	update_step_begin(u);
	update_swap_sets(u);
	vm_flush(u->vm, inv, slot);
	*out = update_step_end(u) ? handle_of(inv) : NULL;
	return 0;
}

static int check_values(const struct ms_update *u, const struct ms_memslot *v, struct ms_error *err)
{
	int r = rules_value(u->vm, v, u->as_id, err);

	return r ? r : rules_guest_memfd(v->flags, -1, err);
}

/* A draft that is refused after add_draft() goes at the end of the update. */
static int make_draft(struct ms_update *u, const struct memslot *old, const struct ms_memslot *v,
		      struct memslot **draft, struct ms_error *err)
{
	int r = slot_create(u->vm, v, u->as_id, draft, err);

	if (!r)
		r = add_draft(u, *draft, err);
	if (!r)
		r = rules_gpa_limit(u->vm, *draft, err);
	if (!r)
		r = slot_give_log(u->vm, *draft, old, err);
	return r;
}

int ms_update_copy(struct ms_update *u, struct ms_slot *old, const struct ms_memslot *values, struct ms_slot **out,
		   struct ms_error *err)
{
	struct ms_memslot v = *values;
	struct memslot *draft;
	int r = update_check_caller(u, err);

	if (old)
		v.id = slot_of(old)->id;
	if (!r)
		r = check_values(u, &v, err);
	if (!r)
		r = make_draft(u, slot_of(old), &v, &draft, err);
	if (!r)
		*out = handle_of(draft);
	return r;
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
