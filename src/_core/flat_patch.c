/* SPDX-License-Identifier: MIT */
#include "flat_patch.h"

#include <string.h>

void patch_start(struct flat_patch *patch, struct flat_index *base)
{
	flat_put(patch->base);
	patch->base = base;
	patch->nr_gone = patch->nr_added = 0;
}

void patch_copy(struct flat_patch *to, const struct flat_patch *from)
{
	patch_start(to, flat_get(from->base));
	to->nr_gone = from->nr_gone;
	to->nr_added = from->nr_added;
	memcpy(to->gone, from->gone, from->nr_gone * sizeof(*to->gone));
	memcpy(to->added, from->added, from->nr_added * sizeof(*to->added));
}

/* Where base_gfn is among the added ones, or would be. */
static uint32_t added_at(const struct flat_patch *patch, uint64_t base_gfn)
{
	uint32_t i = 0;

	while (i < patch->nr_added && patch->added[i].base_gfn < base_gfn)
		i++;
	return i;
}

static void note_gone(struct flat_patch *patch, uint64_t base_gfn)
{
	uint32_t i = patch->nr_gone;

	if (i == PATCH_MAX) {
		patch_start(patch, NULL);
		return;
	}
	for (; i && patch->gone[i - 1] > base_gfn; i--)
		patch->gone[i] = patch->gone[i - 1];
	patch->gone[i] = base_gfn;
	patch->nr_gone++;
}

void patch_remove(struct flat_patch *patch, uint64_t base_gfn)
{
	uint32_t i;

	if (!patch->base)
		return;
	i = added_at(patch, base_gfn);
	if (i == patch->nr_added || patch->added[i].base_gfn != base_gfn) {
		note_gone(patch, base_gfn);
		return;
	}
	for (patch->nr_added--; i < patch->nr_added; i++)
		patch->added[i] = patch->added[i + 1];
}

void patch_add(struct flat_patch *patch, const struct flat_entry *entry)
{
	uint32_t at, i = patch->nr_added;

	if (!patch->base)
		return;
	if (i == PATCH_MAX) {
		patch_start(patch, NULL);
		return;
	}
	for (at = added_at(patch, entry->base_gfn); i > at; i--)
		patch->added[i] = patch->added[i - 1];
	patch->added[at] = *entry;
	patch->nr_added++;
}

/* To the next slot of base that is not gone. */
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
