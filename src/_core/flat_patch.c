/* SPDX-License-Identifier: MIT */
/*
 * flat_patch.c - see flat_patch.h for the invariants X1 and X2.
 */
#include "flat_patch.h"

struct flat_patch *patch_create(struct flat_index *base)
{
	struct flat_patch *patch = memory_zalloc(base->memory, sizeof(*patch));

	if (patch)
		patch->base = base;
	else
		flat_put(base);
	return patch;
}

struct flat_patch *patch_clone(const struct flat_patch *from)
{
	struct flat_patch *patch = patch_create(flat_get(from->base));

	if (patch)
		*patch = *from;
	return patch;
}

void patch_destroy(struct flat_patch *patch)
{
	struct flat_index *base = patch ? patch->base : NULL;

	if (!patch)
		return;
	memory_free(base->memory, patch, sizeof(*patch));
	flat_put(base);
}

/* The position of base_gfn in `added`, or the one where it would be inserted. */
static uint32_t added_at(const struct flat_patch *patch, uint64_t base_gfn)
{
	uint32_t i = 0;

	while (i < patch->nr_added && patch->added[i].base_gfn < base_gfn)
		i++;
	return i;
}

static bool note_gone(struct flat_patch *patch, uint64_t base_gfn)
{
	uint32_t i = patch->nr_gone;

	if (i == PATCH_MAX)
		return false;
	for (; i && patch->gone[i - 1] > base_gfn; i--)
		patch->gone[i] = patch->gone[i - 1];
	patch->gone[i] = base_gfn;
	patch->nr_gone++;
	return true;
}

bool patch_remove(struct flat_patch *patch, uint64_t base_gfn)
{
	uint32_t i = added_at(patch, base_gfn);

	if (i == patch->nr_added || patch->added[i].base_gfn != base_gfn)
		return note_gone(patch, base_gfn);
	for (patch->nr_added--; i < patch->nr_added; i++)
		patch->added[i] = patch->added[i + 1];
	return true;
}

bool patch_add(struct flat_patch *patch, const struct flat_entry *entry)
{
	uint32_t at, i = patch->nr_added;

	if (i == PATCH_MAX)
		return false;
	for (at = added_at(patch, entry->base_gfn); i > at; i--)
		patch->added[i] = patch->added[i - 1];
	patch->added[at] = *entry;
	patch->nr_added++;
	return true;
}

/* Moves to the next slot of base that is not gone. */
static void advance(struct patch_cursor *c)
{
	const struct flat_patch *patch = c->patch;

	while ((c->more = flat_next(&c->flat, &c->next)) && c->gone < patch->nr_gone &&
	       c->next.base_gfn == patch->gone[c->gone])
		c->gone++;
}

struct patch_cursor patch_begin(const struct flat_patch *patch)
{
	struct patch_cursor c = { .patch = patch, .flat = { .index = patch->base } };

	advance(&c);
	return c;
}

bool patch_next(struct patch_cursor *c, struct flat_entry *entry)
{
	const struct flat_patch *patch = c->patch;
	const struct flat_entry *added = c->added < patch->nr_added ? &patch->added[c->added] : NULL;

	if (added && (!c->more || added->base_gfn < c->next.base_gfn)) {
		*entry = *added;
		c->added++;
		return true;
	}
	if (!c->more)
		return false;
	*entry = c->next;
	advance(c);
	return true;
}
