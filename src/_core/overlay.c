/* SPDX-License-Identifier: MIT */
/*
 * overlay.c - see overlay.h for the invariants O1 to O3.
 */
#include "overlay.h"

/* An edit of one of the last few ranges needs no new range: a change edits a slot in both sets. */
#define RECENT 4

/* The list has room for this many ranges, and for a share of the slots, which is smaller for many slots.  With more
 * edits it is cheaper to make an index than to copy the edited slots. */
#define RANGES_MIN 8
#define RANGES_SHARE 32
#define RANGES_SHARE_OF_MANY 64

static uint32_t blocks_for(size_t nr)
{
	uint32_t blocks = OVERLAY_BLOCKS_MIN;

	while (blocks < OVERLAY_BLOCKS_MAX && blocks < OVERLAY_BLOCKS_PER_SLOT * nr)
		blocks *= 2;
	return blocks;
}

/* With twice as many blocks as needed, or more, a block is smaller than the distance of two slots. */
static uint32_t shift_for(uint32_t blocks, size_t nr, uint32_t distance_shift)
{
	uint32_t shift = distance_shift;

	for (; shift && blocks >= 2 * OVERLAY_BLOCKS_PER_SLOT * nr; blocks /= 2)
		shift--;
	return shift;
}

static size_t room_for(size_t nr)
{
	size_t share = nr / RANGES_SHARE, of_many = nr / RANGES_SHARE_OF_MANY;

	if (share > OVERLAY_SEARCH_MAX)
		share = of_many > OVERLAY_SEARCH_MAX ? of_many : OVERLAY_SEARCH_MAX;
	return RANGES_MIN + share;
}

struct overlay *overlay_create(struct memory *memory, size_t nr, uint32_t distance_shift)
{
	uint32_t blocks = blocks_for(nr);
	size_t room = room_for(nr);
	size_t at_marks = whole_lines(sizeof(struct overlay)), at_ranges = at_marks + blocks / 8;
	size_t size = at_ranges + room * sizeof(struct gfn_range);
	char *block = memory_zalloc_lines(memory, size);
	struct overlay *o = (struct overlay *)(void *)block;

	if (!o)
		return NULL;
	o->marks = (_Atomic uint64_t *)(void *)(block + at_marks);
	o->ranges = (struct gfn_range *)(void *)(block + at_ranges);
	o->room = (uint32_t)room;
	o->block_mask = blocks - 1;
	o->shift = shift_for(blocks, nr ? nr : 1, distance_shift);
	o->memory = memory;
	o->size = size;
	atomic_store_explicit(&o->refs, 1, memory_order_relaxed);
	return o;
}

void overlay_put(struct overlay *o)
{
	if (!o || atomic_fetch_sub_explicit(&o->refs, 1, memory_order_acq_rel) != 1)
		return;
	flat_put(o->index);
	memory_free_lines(o->memory, o, o->size);
}

/* ---- marks ---- */

/* The number of blocks of a range, at most all of them.  The first one is that of `begin`. */
static uint64_t nr_blocks(const struct overlay *o, uint64_t begin, uint64_t end)
{
	uint64_t nr = ((end - 1) >> o->shift) - (begin >> o->shift);

	return (nr < o->block_mask ? nr : o->block_mask) + 1;
}

/* Some blocks of a range that lie in one word. */
struct part {
	_Atomic uint64_t *word;
	uint64_t bits; /* those of the blocks */
	uint64_t nr; /* blocks */
};

/* The blocks from the i-th of nr blocks to the end of its word. */
static struct part part_at(const struct overlay *o, uint64_t begin, uint64_t i, uint64_t nr)
{
	uint64_t block = ((begin >> o->shift) + i) & o->block_mask, to_end = 64 - block % 64;
	uint64_t n = nr - i < to_end ? nr - i : to_end;

	return (struct part){ &o->marks[block / 64], ~(uint64_t)0 >> (64 - n) << block % 64, n };
}

/* Whether a block of the range is marked, or is not marked. */
static bool has_mark(const struct overlay *o, uint64_t begin, uint64_t end, bool mark)
{
	uint64_t nr = nr_blocks(o, begin, end), i = 0;

	while (i < nr) {
		struct part part = part_at(o, begin, i, nr);
		uint64_t marks = atomic_load_explicit(part.word, memory_order_relaxed);

		if ((mark ? marks : ~marks) & part.bits)
			return true;
		i += part.nr;
	}
	return false;
}

bool overlay_any_marked(const struct overlay *o, uint64_t begin, uint64_t end)
{
	return has_mark(o, begin, end, true);
}

bool overlay_all_marked(const struct overlay *o, uint64_t begin, uint64_t end)
{
	return !has_mark(o, begin, end, false);
}

/* Returns the number of blocks that had no mark.  Only the holder of slots_lock stores marks, so that no other store
 * comes between the load and the store.  Marks that are there already cost readers no cache line. */
static uint32_t mark_part(struct part part)
{
	uint64_t marks = atomic_load_explicit(part.word, memory_order_relaxed), added = part.bits & ~marks;

	if (added)
		atomic_store_explicit(part.word, marks | added, memory_order_relaxed);
	return (uint32_t)__builtin_popcountll(added);
}

static void mark_blocks(struct overlay *o, uint64_t begin, uint64_t end)
{
	uint32_t before = atomic_load_explicit(&o->nr_marked, memory_order_relaxed), marked = before;
	uint64_t nr = nr_blocks(o, begin, end);

	for (uint64_t i = 0; i < nr;) {
		struct part part = part_at(o, begin, i, nr);

		marked += mark_part(part);
		i += part.nr;
	}
	if (marked != before)
		atomic_store_explicit(&o->nr_marked, marked, memory_order_relaxed);
}

/* ---- ranges ---- */

static bool is_recent(const struct overlay *o, uint32_t nr, uint64_t begin, uint64_t end)
{
	for (uint32_t i = nr; i-- > 0 && nr - i <= RECENT;)
		if (o->ranges[i].begin <= begin && end <= o->ranges[i].end)
			return true;
	return false;
}

static void overlay_mark(struct overlay *o, uint64_t begin, uint64_t end)
{
	uint32_t nr = atomic_load_explicit(&o->nr_ranges, memory_order_relaxed);

	if (nr <= o->room && is_recent(o, nr, begin, end))
		return;
	mark_blocks(o, begin, end);
	if (nr > o->room)
		return;
	if (nr < o->room)
		o->ranges[nr] = (struct gfn_range){ begin, end };
	atomic_store_explicit(&o->nr_ranges, nr + 1, memory_order_release);
}

bool overlay_may_be_edited(const struct overlay *o, uint64_t begin, uint64_t end)
{
	uint32_t nr = overlay_nr_ranges(o);

	if (overlay_list_is_long(o))
		return true;
	for (uint32_t i = 0; i < nr; i++)
		if (o->ranges[i].begin < end && begin < o->ranges[i].end)
			return true;
	return false;
}

bool overlay_hull(const struct overlay *o, struct gfn_range *hull)
{
	uint32_t nr = overlay_nr_ranges(o);

	*hull = (struct gfn_range){ ~(uint64_t)0, 0 };
	if (!nr || nr > OVERLAY_HULL_MAX || !overlay_has_all_ranges(o))
		return false;
	for (uint32_t i = 0; i < nr; i++) {
		if (o->ranges[i].begin < hull->begin)
			hull->begin = o->ranges[i].begin;
		if (o->ranges[i].end > hull->end)
			hull->end = o->ranges[i].end;
	}
	return (hull->end - hull->begin) >> o->shift <= o->block_mask / OVERLAY_HULL_SHARE;
}

bool overlay_is_valid(const struct overlay *o)
{
	uint32_t nr = overlay_nr_ranges(o);

	for (uint32_t i = 0; i < nr && i < o->room; i++)
		if (!overlay_all_marked(o, o->ranges[i].begin, o->ranges[i].end))
			return false;
	return true;
}

/* ---- the overlays of one address space ---- */

/* In the same order as overlays_exist(). */
static void each_overlay(struct overlays *all, struct overlay *found[2])
{
	found[0] = atomic_load_explicit(&all->coming, memory_order_seq_cst);
	point(WRITER_MARKS);
	found[1] = atomic_load_explicit(&all->current, memory_order_seq_cst);
	if (found[1] == found[0])
		found[1] = NULL;
}

void overlays_mark(struct overlays *all, uint64_t begin, uint64_t end)
{
	struct overlay *found[2];

	each_overlay(all, found);
	for (int i = 0; i < 2; i++)
		if (found[i])
			overlay_mark(found[i], begin, end);
}

static void spend(struct overlay *o)
{
	atomic_store_explicit(&o->spent, 1, memory_order_relaxed);
	for (uint32_t i = 0; i <= o->block_mask / 64; i++)
		atomic_store_explicit(&o->marks[i], ~(uint64_t)0, memory_order_relaxed);
	atomic_store_explicit(&o->nr_marked, o->block_mask + 1, memory_order_relaxed);
	atomic_store_explicit(&o->nr_ranges, o->room + 1, memory_order_release);
}

void overlays_spend(struct overlays *all)
{
	struct overlay *found[2];

	each_overlay(all, found);
	for (int i = 0; i < 2; i++)
		if (found[i])
			spend(found[i]);
}

void overlays_retire(struct overlays *all, struct overlay *o)
{
	struct overlay *first = atomic_load_explicit(&all->retired, memory_order_relaxed);

	if (!o)
		return;
	do
		o->next = first;
	while (!atomic_compare_exchange_weak_explicit(&all->retired, &first, o, memory_order_release,
						      memory_order_relaxed));
}

static void put_list(struct overlay *o)
{
	for (struct overlay *next; o; o = next) {
		next = o->next;
		overlay_put(o);
	}
}

/* If the thread of an earlier swap has ended in its grace period, those overlays are still there. */
void overlays_capture_retired(struct overlays *all)
{
	struct overlay **end = &all->expiring;

	while (*end)
		end = &(*end)->next;
	*end = atomic_exchange_explicit(&all->retired, NULL, memory_order_acquire);
}

void overlays_free_captured(struct overlays *all)
{
	put_list(all->expiring);
	all->expiring = NULL;
}

/* A fork may have copied an overlay that a reader of the parent was moving from coming to current: it is in both. */
void overlays_free(struct overlays *all)
{
	struct overlay *coming = atomic_exchange_explicit(&all->coming, NULL, memory_order_relaxed);
	struct overlay *current = atomic_exchange_explicit(&all->current, NULL, memory_order_relaxed);

	if (coming != current)
		overlay_put(coming);
	overlay_put(current);
	overlays_capture_retired(all);
	overlays_free_captured(all);
}
