/* SPDX-License-Identifier: MIT */
/*
 * update_changes.c - the changes of an update between its begin and its end, for the listeners.
 *
 * A slot that was a member at begin and is none at the end has gone.  A slot of the other kind is new.  One slot of
 * each kind with the same id are one change; any other is a DELETE or a CREATE.  The list has the deletes first, then
 * the changes of two slots, then the creates.  Each part has the order in which steps have touched the slots.
 *
 * The listeners get the list as that of a transaction (listeners.h).  A slot that readers saw only between two swaps of
 * the update is in no change, but it is flushed.
 *
 * If the thread ends in one of these hooks, finish_deferred() of update.c rolls the update back before `kept` is set,
 * and completes it afterwards.
 *
 * Each change has a touched slot of its own.  So there is room for the list since the slots were touched, and the end
 * of an update needs no memory.
 *
 * Locking: as update.h.
 * Cost: O(n log m) for n touched slots of m.
 */
#include "listeners.h"
#include "update.h"

/* ---- the memory of the list ---- */

void update_free_changes(struct ms_update *u)
{
	memory_free(&u->vm->memory, u->changes, u->changes_room * sizeof(*u->changes));
	memory_free(&u->vm->memory, u->pairs, u->changes_room * sizeof(*u->pairs));
}

bool update_reserve_changes(struct ms_update *u)
{
	struct memory *memory = &u->vm->memory;
	size_t room = u->touched.room;
	struct ms_change *changes;
	struct slot_pair *pairs;

	if (!u->vm->nr_listeners || room <= u->changes_room)
		return true;
	changes = memory_zalloc(memory, room * sizeof(*changes));
	pairs = memory_zalloc(memory, room * sizeof(*pairs));
	if (!changes || !pairs) {
		memory_free(memory, changes, room * sizeof(*changes));
		memory_free(memory, pairs, room * sizeof(*pairs));
		return false;
	}
	update_free_changes(u);
	u->changes = changes;
	u->pairs = pairs;
	u->changes_room = room;
	return true;
}

/* ---- the list ---- */

#define PAIRED ((uint8_t)0x20) /* a membership bit of new slots that are in the list already */

static bool is_member(const struct memslot *slot)
{
	return slot->sets & 3;
}

static bool has_gone(const struct touched *t)
{
	return t->was_member && !is_member(t->slot);
}

static bool is_new(const struct touched *t)
{
	return !t->was_member && is_member(t->slot);
}

/* The slot that has the id of this one now, or NULL. */
static struct memslot *successor_of(const struct ms_update *u, const struct memslot *slot)
{
	return u->vm->design->find(inactive(u), slot->id);
}

/* Whether a value that was derived from `old` is right for new_slot too. */
static bool same_translation(const struct memslot *old, const struct memslot *new_slot)
{
	return old->base_gfn == new_slot->base_gfn && old->npages == new_slot->npages &&
	       old->hva.start == new_slot->hva.start && !((old->flags ^ new_slot->flags) & MS_MEM_READONLY);
}

static bool same_values(const struct memslot *old, const struct memslot *new_slot)
{
	return same_translation(old, new_slot) && old->flags == new_slot->flags;
}

/* A slot with the values of the former one that is another slot, because it has a log or a backing of its own. */
static bool is_recreated(const struct memslot *old, const struct memslot *new_slot)
{
	return same_values(old, new_slot) && (old->dirty != new_slot->dirty || old->backing != new_slot->backing);
}

static enum ms_change_kind kind_of(const struct memslot *old, const struct memslot *new_slot)
{
	if (!old)
		return MS_CREATE;
	if (!new_slot)
		return MS_DELETE;
	if (old->npages != new_slot->npages || old->hva.start != new_slot->hva.start ||
	    (old->flags ^ new_slot->flags) & MS_MEM_READONLY)
		return MS_RESIZE;
	return old->base_gfn != new_slot->base_gfn ? MS_MOVE : MS_FLAGS_ONLY;
}

static void add_change(struct ms_update *u, struct memslot *old, struct memslot *new_slot)
{
	struct ms_change *change = &u->changes[u->nr_changes];

	u->pairs[u->nr_changes++] = (struct slot_pair){ old, new_slot };
	change->kind = kind_of(old, new_slot);
	if (old)
		change->old_slot = memslot_value(old);
	if (!new_slot)
		return;
	change->new_slot = memslot_value(new_slot);
	new_slot->sets |= PAIRED;
}

static void add_deletes(struct ms_update *u)
{
	for (size_t i = 0; i < u->touched.nr; i++) {
		struct memslot *old = touched_at(u, i)->slot, *new_slot;

		if (!has_gone(touched_at(u, i)))
			continue;
		new_slot = successor_of(u, old);
		if (!new_slot || is_recreated(old, new_slot))
			add_change(u, old, NULL);
		else if (same_values(old, new_slot))
			new_slot->sets |= PAIRED; /* nothing has changed */
	}
}

static void add_pairs(struct ms_update *u)
{
	for (size_t i = 0; i < u->touched.nr; i++) {
		struct memslot *old = touched_at(u, i)->slot, *new_slot;

		if (!has_gone(touched_at(u, i)))
			continue;
		new_slot = successor_of(u, old);
		if (new_slot && !same_values(old, new_slot))
			add_change(u, old, new_slot);
	}
}

static void add_creates(struct ms_update *u)
{
	for (size_t i = 0; i < u->touched.nr; i++) {
		struct memslot *new_slot = touched_at(u, i)->slot;

		if (is_new(touched_at(u, i)) && !(new_slot->sets & PAIRED))
			add_change(u, NULL, new_slot);
	}
}

static void list_changes(struct ms_update *u)
{
	add_deletes(u);
	add_pairs(u);
	add_creates(u);
	for (size_t i = 0; i < u->touched.nr; i++)
		touched_at(u, i)->slot->sets &= (uint8_t)~PAIRED;
}

int update_prepare(struct ms_update *u, struct ms_error *err)
{
	struct prepared done = { 0 };
	size_t refused = 0;
	int r;

	if (!u->vm->nr_listeners)
		return 0;
	list_changes(u);
	if (!u->nr_changes)
		return 0;
	r = listeners_prepare(u->vm, u->changes, u->nr_changes, &done, &refused, err);
	if (r)
		listeners_abort(u->vm, u->changes, u->nr_changes, &done);
	return r;
}

/* ---- after the update is kept ---- */

static bool needs_flush(const struct touched *t)
{
	return t->was_seen && !is_member(t->slot) && !(t->slot->flags & MS_MEMSLOT_INVALID) &&
	       !(t->slot->sets & FLUSHED);
}

/* In place of a slot that has no successor the listeners get an INVALID copy. */
static void flush(const struct ms_update *u, const struct memslot *old)
{
	const struct memslot *new_slot = successor_of(u, old);
	struct memslot invalid = *old;

	invalid.flags |= MS_MEMSLOT_INVALID;
	if (!new_slot)
		listeners_flush(u->vm, &invalid, old);
	else if (!same_translation(old, new_slot))
		listeners_flush(u->vm, new_slot, old);
}

static bool are_related(const struct dirty_log *a, const struct dirty_log *b)
{
	const struct dirty_log *log = a->related;

	while (log != a && log != b)
		log = log->related;
	return log == b;
}

/* Clears the bits of the pages of `to`, which has them too (D3 and D4 of dirty_log.h). */
static void forget_pages_of(struct dirty_log *from, const struct dirty_log *to)
{
	int64_t page = to->first - from->first, end = page + (int64_t)to->npages;

	if (end > (int64_t)from->npages)
		end = (int64_t)from->npages;
	if (page < 0)
		page = 0;
	if (page < end)
		dirty_log_forget(from, (uint64_t)page, (uint64_t)(end - page));
}

/* No reader can find the log of the old slot any more, unless it is that of the new one too. */
static void note_last_bits(struct ms_change *change, const struct slot_pair *pair)
{
	struct dirty_log *log = pair->old ? pair->old->dirty : NULL;
	const struct dirty_log *next = pair->new_slot ? pair->new_slot->dirty : NULL;

	if (!log || log == next)
		return;
	if (next && are_related(log, next)) {
		forget_pages_of(log, next);
		if (dirty_log_is_clean(log))
			return;
	}
	change->dirty = (const uint64_t *)(const void *)log->live;
	change->nr_dirty_words = nwords_of(log);
}

void update_commit(struct ms_update *u)
{
	if (!u->vm->nr_listeners)
		return;
	for (size_t i = 0; i < u->touched.nr; i++)
		if (needs_flush(touched_at(u, i)))
			flush(u, touched_at(u, i)->slot);
	for (size_t i = 0; i < u->nr_changes; i++)
		note_last_bits(&u->changes[i], &u->pairs[i]);
	if (u->nr_changes)
		listeners_commit(u->vm, u->changes, u->nr_changes);
}
