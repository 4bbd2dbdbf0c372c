/* SPDX-License-Identifier: MIT */
/*
 * overlay.c - see overlay.h for the invariants O1 to O4.
 */
#include "overlay.h"

/* An edit of one of the last few ranges needs no new range: a change edits a slot in both sets. */
#define RECENT 4

/* The list has room for this many ranges, and for a share of the slots.  With more edits it is cheaper to make an index
 * than to copy the edited slots. */
#define RANGES_MIN 7
#define RANGES_SHARE 256

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
	return RANGES_MIN + nr / RANGES_SHARE;
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

static void list_range(struct overlay *o, uint64_t begin, uint64_t end)
{
	uint32_t nr = atomic_load_explicit(&o->nr_ranges, memory_order_relaxed);

	if (nr > o->room || is_recent(o, nr, begin, end))
		return;
	if (nr < o->room)
		o->ranges[nr] = (struct gfn_range){ begin, end };
	atomic_store_explicit(&o->nr_ranges, nr + 1, memory_order_release);
}

static void overlay_mark(struct overlay *o, uint64_t begin, uint64_t end)
{
	mark_blocks(o, begin, end);
	if (!overlay_edits(o, 0))
		list_range(o, begin, end);
}

bool overlay_may_be_edited(const struct overlay *o, uint64_t begin, uint64_t end)
{
	uint32_t nr = overlay_nr_ranges(o);

	if (overlay_list_is_long(o))
		return true;
	for (uint32_t i = 0; i < nr; i++)
		if (o->ranges[i].begin <= begin && end <= o->ranges[i].end)
			return true;
	return false;
}

static void widen(struct gfn_range *hull, uint64_t begin, uint64_t end)
{
	if (begin < hull->begin)
		hull->begin = begin;
	if (end > hull->end)
		hull->end = end;
}

static struct gfn_range range_of(const struct flat_entry *entry)
{
	return (struct gfn_range){ entry->base_gfn, entry->base_gfn + entry->npages };
}

static bool hull_of_edits(const struct overlay *o, const struct overlay_edits *edits, struct gfn_range *hull)
{
	for (uint32_t i = 0; i < edits->nr; i++)
		widen(hull, edits->entry[i].base_gfn, edits->entry[i].base_gfn + edits->entry[i].npages);
	return edits->nr && overlay_is_narrow(o, hull);
}

int64_t overlay_unknown(const struct overlay *o, uint32_t set, struct gfn_range *ranges, size_t room)
{
	const struct overlay_edits *edits = overlay_edits(o, set);
	uint32_t nr = edits ? edits->nr : overlay_nr_ranges(o);

	if ((!edits && (o->incomplete || nr > o->room)) || nr > room)
		return -1;
	for (uint32_t i = 0; ranges && i < nr; i++)
		ranges[i] = edits ? range_of(&edits->entry[i]) : o->ranges[i];
	return nr;
}

bool overlay_hull(const struct overlay *o, uint32_t set, struct gfn_range *hull)
{
	const struct overlay_edits *edits = overlay_edits(o, set);
	uint32_t nr = overlay_nr_ranges(o);

	*hull = (struct gfn_range){ ~(uint64_t)0, 0 };
	if (edits)
		return hull_of_edits(o, edits, hull);
	if (!nr || nr > OVERLAY_HULL_MAX || !overlay_has_all_ranges(o))
		return false;
	for (uint32_t i = 0; i < nr; i++)
		widen(hull, o->ranges[i].begin, o->ranges[i].end);
	return overlay_is_narrow(o, hull);
}

static bool edits_are_marked(const struct overlay *o, const struct overlay_edits *edits)
{
	for (uint32_t i = 0; i < edits->nr; i++) {
		struct gfn_range range = range_of(&edits->entry[i]);

		if (!overlay_all_marked(o, range.begin, range.end))
			return false;
	}
	return true;
}

bool overlay_is_valid(const struct overlay *o)
{
	uint32_t nr = overlay_nr_ranges(o);

	if (overlay_edits(o, 0))
		return edits_are_marked(o, &o->edits[0]) && edits_are_marked(o, &o->edits[1]);
	for (uint32_t i = 0; i < nr && i < o->room; i++)
		if (!overlay_all_marked(o, o->ranges[i].begin, o->ranges[i].end))
			return false;
	return true;
}

/* ---- the overlays of one address space ---- */

/* Finds the overlays, in the same order as overlays_exist(), and returns their number. */
static int find_overlays(struct overlays *all, struct overlay *found[2])
{
	struct overlay *coming = atomic_load_explicit(&all->coming, memory_order_seq_cst), *current;
	int nr = 0;

	point(WRITER_MARKS);
	current = atomic_load_explicit(&all->current, memory_order_seq_cst);
	if (coming)
		found[nr++] = coming;
	if (current && current != coming)
		found[nr++] = current;
	return nr;
}

void overlays_mark(struct overlays *all, uint64_t begin, uint64_t end)
{
	struct overlay *found[2];
	int nr = find_overlays(all, found);

	for (int i = 0; i < nr; i++)
		overlay_mark(found[i], begin, end);
}

/* ---- differences ---- */

/* The place of an entry, or nr. */
static uint32_t place_of(const struct overlay_edits *edits, const struct flat_entry *entry, bool gone)
{
	uint32_t i = 0;

	while (i < edits->nr && !(overlay_edit_is_gone(edits, i) == gone && flat_same(&edits->entry[i], entry)))
		i++;
	return i;
}

bool overlay_has_edit(const struct overlay_edits *edits, const struct flat_entry *entry, bool gone)
{
	return place_of(edits, entry, gone) < edits->nr;
}

static uint64_t bits_below(uint64_t n)
{
	return n < 64 ? ((uint64_t)1 << n) - 1 : ~(uint64_t)0;
}

/* The bits of the blocks of a range in the word that begins with the block `first`.  The range may begin after that
 * block, and it may go on at block 0. */
static uint64_t bits_in_word(const struct overlay *o, uint64_t begin, uint64_t end, uint64_t first)
{
	uint64_t nr = nr_blocks(o, begin, end), passed = (first - (begin >> o->shift)) & o->block_mask;
	uint64_t to_begin = (uint64_t)o->block_mask + 1 - passed;

	point(WRITER_UNMARKS);
	return (passed < nr ? bits_below(nr - passed) : 0) | (bits_below(to_begin + nr) & ~bits_below(to_begin));
}

/* The bits of the blocks of all differences in this word of marks. */
static uint64_t bits_of_edits(const struct overlay *o, const struct overlay_edits *edits, const _Atomic uint64_t *word)
{
	uint64_t bits = 0, first = (uint64_t)(word - o->marks) * 64;

	for (uint32_t i = 0; i < edits->nr; i++) {
		struct gfn_range range = range_of(&edits->entry[i]);

		bits |= bits_in_word(o, range.begin, range.end, first);
	}
	return bits;
}

/* The slot has left a list.  Blocks that an entry of one of the two lists needs stay marked: if readers still use the
 * other set, in which the slot differs, then this slot is such an entry.  A mark without an entry would stay for ever,
 * and its lookups would walk without counting towards a new index. */
static void unmark(struct overlay *o, const struct flat_entry *entry)
{
	uint32_t marked = atomic_load_explicit(&o->nr_marked, memory_order_relaxed);
	uint64_t begin = entry->base_gfn, nr = nr_blocks(o, begin, begin + entry->npages);

	for (uint64_t i = 0; i < nr;) {
		struct part part = part_at(o, begin, i, nr);
		uint64_t marks = atomic_load_explicit(part.word, memory_order_relaxed);
		uint64_t keep = bits_of_edits(o, &o->edits[0], part.word) | bits_of_edits(o, &o->edits[1], part.word);
		uint64_t removed = marks & part.bits & ~keep;

		atomic_store_explicit(part.word, marks & ~removed, memory_order_relaxed);
		marked -= (uint32_t)__builtin_popcountll(removed);
		i += part.nr;
	}
	atomic_store_explicit(&o->nr_marked, marked, memory_order_relaxed);
}

static void take_out(struct overlay_edits *edits, uint32_t i)
{
	uint32_t last = --edits->nr, gone = edits->gone >> last & 1;

	edits->entry[i] = edits->entry[last];
	edits->gone = (edits->gone & ~(1u << i) & ~(1u << last)) | (i < last ? gone << i : 0);
}

/* The entries of the list of a set, without those that are in the other list too if that one comes before. */
static void list_edits(struct overlay *o, uint32_t set)
{
	const struct overlay_edits *edits = &o->edits[set];

	for (uint32_t i = 0; i < edits->nr; i++) {
		struct gfn_range range = range_of(&edits->entry[i]);

		if (!set || !overlay_has_edit(&o->edits[0], &edits->entry[i], overlay_edit_is_gone(edits, i)))
			list_range(o, range.begin, range.end);
	}
}

/* From now on the list of edited ranges has all that the index does not know. */
static void lose(struct overlay *o)
{
	if (!overlay_edits(o, 0))
		return;
	list_edits(o, 0);
	list_edits(o, 1);
	atomic_store_explicit(&o->lost, 1, memory_order_release);
}

/* If the set has lost a slot that it had got, or the other way round, it is again as the index. */
static void overlay_edit(struct overlay *o, uint32_t set, const struct flat_entry *slot, bool gone)
{
	struct overlay_edits *edits = &o->edits[set];
	uint32_t i;

	if (!overlay_edits(o, set))
		return;
	i = place_of(edits, slot, !gone);
	if (i < edits->nr) {
		take_out(edits, i);
		unmark(o, slot);
	} else if (i < OVERLAY_EDITS_MAX) {
		edits->entry[i] = *slot;
		edits->gone = (edits->gone & ~(1u << i)) | (uint32_t)gone << i;
		edits->nr++;
	} else {
		lose(o);
		list_range(o, slot->base_gfn, slot->base_gfn + slot->npages);
	}
}

static void spend(struct overlay *o)
{
	lose(o);
	atomic_store_explicit(&o->spent, 1, memory_order_relaxed);
	for (size_t i = 0; i < overlay_nr_words(o); i++)
		atomic_store_explicit(&o->marks[i], ~(uint64_t)0, memory_order_relaxed);
	atomic_store_explicit(&o->nr_marked, o->block_mask + 1, memory_order_relaxed);
	atomic_store_explicit(&o->nr_ranges, o->room + 1, memory_order_release);
}

void overlays_edit(struct overlays *all, uint32_t set, const struct flat_entry *slot, bool gone)
{
	struct overlay *found[2];
	int nr = find_overlays(all, found);

	for (int i = 0; i < nr; i++) {
		overlay_mark(found[i], slot->base_gfn, slot->base_gfn + slot->npages);
		overlay_edit(found[i], set, slot, gone);
	}
}

void overlays_lose_edits(struct overlays *all)
{
	struct overlay *found[2];
	int nr = find_overlays(all, found);

	for (int i = 0; i < nr; i++)
		lose(found[i]);
}

static void unmark_all(struct overlay *o)
{
	for (size_t i = 0; i < overlay_nr_words(o); i++)
		atomic_store_explicit(&o->marks[i], 0, memory_order_relaxed);
	atomic_store_explicit(&o->nr_marked, 0, memory_order_relaxed);
}

/* The overlay may have missed edits of the change that ends now.  Both sets are equal, and no reader has used the
 * overlay: a build that was begun during the change waits for its end.  So its index has the state of now, and no edit
 * that it knows is a difference. */
void overlay_begin_lists(struct overlay *o)
{
	if (atomic_load_explicit(&o->spent, memory_order_relaxed))
		return;
	o->edits[0].nr = o->edits[1].nr = 0;
	unmark_all(o);
	atomic_store_explicit(&o->nr_ranges, 0, memory_order_release);
	atomic_store_explicit(&o->lost, 0, memory_order_release);
}

void overlays_spend(struct overlays *all)
{
	struct overlay *found[2];
	int nr = find_overlays(all, found);

	for (int i = 0; i < nr; i++)
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
