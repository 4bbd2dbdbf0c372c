/* SPDX-License-Identifier: MIT */
/*
 * test_overlay.c - marks and edited ranges compared with a plain list of all edits, and the life of retired overlays.
 */
#include "test.h"

#include "include/memslots.h"
#include "overlay.h"
#include "points.h"

#define EDITS_MAX 6000
#define END_GFN ((uint64_t)1 << 52)

static struct memory memory;
static struct overlays all;
static struct rng rng;

static struct gfn_range edits[EDITS_MAX];
static size_t nr_edits;

/* ---- marks ---- */

/* Whether an edit has a frame in the block of gfn, or in a block with the same bit. */
static bool is_edited_block(const struct overlay *o, uint64_t gfn)
{
	uint64_t block = gfn >> o->shift & o->block_mask;

	for (size_t i = 0; i < nr_edits; i++) {
		uint64_t first = edits[i].begin >> o->shift, nr = ((edits[i].end - 1) >> o->shift) - first;

		if (((block - first) & o->block_mask) <= nr)
			return true;
	}
	return false;
}

static bool is_edited(uint64_t gfn)
{
	for (size_t i = 0; i < nr_edits; i++)
		if (gfn >= edits[i].begin && gfn < edits[i].end)
			return true;
	return false;
}

static bool lies_in_an_edit(const struct gfn_range *range)
{
	for (size_t i = 0; i < nr_edits; i++)
		if (edits[i].begin <= range->begin && range->end <= edits[i].end)
			return true;
	return false;
}

/* The same as the two functions of overlay.h, one block after the other. */
static size_t marked_blocks(const struct overlay *o, const struct gfn_range *range, size_t *all_blocks)
{
	uint64_t first = range->begin >> o->shift, last = (range->end - 1) >> o->shift;
	size_t marked = 0;

	*all_blocks = 0;
	for (uint64_t block = first; block <= last && *all_blocks <= o->block_mask; block++, ++*all_blocks)
		marked += overlay_marked(o, block << o->shift);
	return marked;
}

static bool is_in_ranges(const struct overlay *o, uint64_t gfn)
{
	for (uint32_t i = 0; i < overlay_nr_ranges(o); i++)
		if (gfn >= o->ranges[i].begin && gfn < o->ranges[i].end)
			return true;
	return false;
}

static struct gfn_range draw_range(void)
{
	uint64_t span = (uint64_t)1 << rng_below(&rng, 40), begin = rng_below(&rng, span);
	uint64_t npages = 1 + rng_below(&rng, (uint64_t)1 << rng_below(&rng, 31));

	if (!rng_below(&rng, 20))
		begin = END_GFN - npages;
	return (struct gfn_range){ begin, begin + npages };
}

static uint64_t near(const struct gfn_range *range)
{
	static const int64_t offsets[] = { -1, 0, 1, 63, 64, -64, 1000 };
	uint64_t at = rng_below(&rng, 2) ? range->begin : range->end;

	return at + (uint64_t)offsets[rng_below(&rng, 7)];
}

/* With few ranges, the hull has all edits and no more at its ends. */
static void check_hull(const struct overlay *o)
{
	uint32_t nr = overlay_nr_ranges(o);
	bool begins = false, ends = false;
	struct gfn_range hull;
	bool is_hull = overlay_hull(o, 0, &hull);

	if (!nr || nr > OVERLAY_HULL_MAX) {
		CHECK(!is_hull);
		return;
	}
	CHECK_EQ(is_hull, (hull.end - hull.begin) >> o->shift <= o->block_mask / OVERLAY_HULL_SHARE);
	for (size_t i = 0; i < nr_edits; i++) {
		CHECK(edits[i].begin >= hull.begin && edits[i].end <= hull.end);
		begins |= edits[i].begin == hull.begin;
		ends |= edits[i].end == hull.end;
	}
	CHECK(begins && ends);
}

/* The number of marked blocks is that of the bits. */
static void check_count(const struct overlay *o)
{
	uint64_t blocks = (uint64_t)o->block_mask + 1, marked = 0;

	for (uint64_t block = 0; block < blocks; block++)
		marked += overlay_marked(o, block << o->shift);
	CHECK_EQ(atomic_load(&o->nr_marked), marked);
	for (uint32_t of = 1; of <= 64; of *= 2)
		CHECK_EQ(overlay_has_few_marks(o, of), marked * of <= blocks / 4);
}

static void check_marks(const struct overlay *o)
{
	size_t marked, blocks;

	CHECK(overlay_is_valid(o));
	check_count(o);
	CHECK_EQ(overlay_nr_ranges(o) > 0, nr_edits > 0);
	check_hull(o);
	for (size_t i = 0; i < 50 && nr_edits; i++) {
		struct gfn_range range = draw_range();
		uint64_t gfn = near(&edits[rng_below(&rng, nr_edits)]);

		CHECK_EQ(overlay_marked(o, gfn), is_edited_block(o, gfn));
		CHECK_EQ(overlay_any_marked(o, gfn, gfn + 1), overlay_marked(o, gfn));
		if (!overlay_has_overflowed(o))
			CHECK_EQ(is_in_ranges(o, gfn), is_edited(gfn));
		if (gfn < END_GFN && rng_below(&rng, 2))
			range = (struct gfn_range){ gfn, gfn + 1 + rng_below(&rng, (uint64_t)4 << o->shift) };
		marked = marked_blocks(o, &range, &blocks);
		CHECK_EQ(overlay_any_marked(o, range.begin, range.end), marked > 0);
		CHECK_EQ(overlay_all_marked(o, range.begin, range.end), marked == blocks);
		CHECK_EQ(overlay_may_be_edited(o, range.begin, range.end),
			 overlay_list_is_long(o) || lies_in_an_edit(&range));
	}
}

/* Every edit of the list is found, wherever its blocks lie in the words of bits. */
static void check_edits(const struct overlay *o)
{
	for (size_t i = 0; i < nr_edits; i++) {
		CHECK(overlay_any_marked(o, edits[i].begin, edits[i].end));
		CHECK(overlay_marked(o, edits[i].begin) && overlay_marked(o, edits[i].end - 1));
	}
}

static void mark(struct gfn_range range)
{
	CHECK(nr_edits < EDITS_MAX);
	edits[nr_edits++] = range;
	overlays_mark(&all, range.begin, range.end);
}

static struct overlay *new_overlay(size_t nr, uint32_t shift)
{
	struct overlay *o = overlay_create(&memory, nr, shift);

	CHECK(o);
	atomic_store(&o->lost, 1); /* the lists of differences have a test of their own */
	CHECK(!overlay_nr_ranges(o) && !overlay_any_marked(o, 0, END_GFN));
	return o;
}

static void test_marks(size_t edits_wanted)
{
	struct overlay *o = new_overlay(rng_below(&rng, 2) ? rng_below(&rng, 100) : rng_below(&rng, 40000),
					(uint32_t)rng_below(&rng, 40));

	nr_edits = 0;
	atomic_store(rng_below(&rng, 2) ? &all.current : &all.coming, o);
	for (size_t i = 0; i < edits_wanted; i++) {
		mark(nr_edits && rng_below(&rng, 2) ? edits[rng_below(&rng, nr_edits)] : draw_range());
		if (i < 8 || i % 8 == 0)
			check_marks(o);
	}
	check_edits(o);
	overlays_free(&all);
}

/* An edit that a recent one covers takes no room. */
static void test_repeated_edits(void)
{
	struct overlay *o = new_overlay(100, 3);

	nr_edits = 0;
	atomic_store(&all.current, o);
	for (int i = 0; i < 4000; i++)
		mark((struct gfn_range){ 100, 110 + (uint64_t)(i % 2) });
	CHECK_EQ(overlay_nr_ranges(o), 2);
	overlays_free(&all);
}

static void test_overflow(void)
{
	struct overlay *o = new_overlay(256, 3); /* the list ends at the end of the allocation */
	uint32_t room = o->room;

	nr_edits = 0;
	atomic_store(&all.current, o);
	for (uint64_t i = 0; i < room; i++)
		mark((struct gfn_range){ i * 100, i * 100 + 7 });
	CHECK_EQ(overlay_nr_ranges(o), room);
	CHECK(!overlay_has_overflowed(o));
	check_marks(o);
	mark((struct gfn_range){ 10000000, 10000007 });
	mark((struct gfn_range){ 20000000, 20000007 });
	CHECK(overlay_has_overflowed(o));
	check_marks(o);
	check_edits(o);
	overlays_free(&all);
}

/* ---- lists of differences ---- */

#define KINDS 12u

/* Slots that come and go in two sets, and the state of the index. */
static struct flat_entry slot_of[KINDS];
static bool is_there[2][KINDS], was_there[KINDS];

static bool differs(int set, uint32_t k)
{
	return is_there[set][k] != was_there[k];
}

static uint32_t nr_differences(int set)
{
	uint32_t nr = 0;

	for (uint32_t k = 0; k < KINDS; k++)
		nr += differs(set, k);
	return nr;
}

/* Slots of up to all blocks, next to each other or with blocks of the same bit. */
static void draw_slots(const struct overlay *o)
{
	uint64_t turn = ((uint64_t)o->block_mask + 1) << o->shift;

	for (uint32_t k = 0; k < KINDS; k++) {
		uint64_t npages = 1 + rng_below(&rng, (uint64_t)1 << (o->shift + rng_below(&rng, 11)));

		slot_of[k] = (struct flat_entry){ rng_below(&rng, 4 * turn), (uint64_t)k << 12, (uint32_t)npages, k };
		if (k && rng_below(&rng, 2))
			slot_of[k].base_gfn =
				slot_of[k - 1].base_gfn + slot_of[k - 1].npages + rng_below(&rng, 2) * turn;
		is_there[0][k] = is_there[1][k] = was_there[k] = rng_below(&rng, 2);
	}
}

static bool is_block_of(const struct overlay *o, uint32_t k, uint64_t gfn)
{
	uint64_t first = slot_of[k].base_gfn >> o->shift;
	uint64_t nr = ((slot_of[k].base_gfn + slot_of[k].npages - 1) >> o->shift) - first;

	return (((gfn >> o->shift) - first) & o->block_mask) <= nr;
}

static bool should_be_marked(const struct overlay *o, uint64_t gfn)
{
	for (uint32_t k = 0; k < KINDS; k++)
		if ((differs(0, k) || differs(1, k)) && is_block_of(o, k, gfn))
			return true;
	return false;
}

/* A block is marked if and only if a set has a difference there. */
static void check_differences(const struct overlay *o)
{
	for (int set = 0; set < 2; set++) {
		const struct overlay_edits *list = overlay_edits(o, (uint32_t)set);

		CHECK_EQ(list->nr, nr_differences(set));
		CHECK_EQ(overlay_answers_all(o, (uint32_t)set), !list->nr);
		for (uint32_t k = 0; k < KINDS; k++) {
			CHECK_EQ(overlay_has_edit(list, &slot_of[k], was_there[k]), differs(set, k));
			CHECK(!overlay_has_edit(list, &slot_of[k], !was_there[k]));
		}
	}
	for (uint64_t block = 0; block <= o->block_mask; block++)
		CHECK_EQ(overlay_marked(o, block << o->shift), should_be_marked(o, block << o->shift));
	check_count(o);
	CHECK(overlay_is_valid(o));
}

static void come_or_go(int set, uint32_t k)
{
	is_there[set][k] = !is_there[set][k];
	overlays_edit(&all, (uint32_t)set, &slot_of[k], !is_there[set][k]);
}

/* One that differs, so that the lists stay short; or any slot. */
static uint32_t draw_slot(int set)
{
	uint32_t k = (uint32_t)rng_below(&rng, KINDS);

	for (uint32_t i = 0; i < KINDS && rng_below(&rng, 8) && !differs(set, k); i++)
		k = (k + 1) % KINDS;
	return k;
}

static bool fits(void)
{
	return nr_differences(0) <= OVERLAY_EDITS_MAX && nr_differences(1) <= OVERLAY_EDITS_MAX;
}

static void test_differences(void)
{
	struct overlay *o = new_overlay(rng_below(&rng, 200), (uint32_t)rng_below(&rng, 12));

	atomic_store(&o->lost, 0);
	draw_slots(o);
	atomic_store(rng_below(&rng, 2) ? &all.current : &all.coming, o);
	for (int i = 0; i < 60 && fits(); i++) {
		int set = (int)rng_below(&rng, 2);

		check_differences(o);
		come_or_go(set, draw_slot(set));
	}
	CHECK_EQ(!overlay_edits(o, 0), !fits());
	CHECK_EQ(!overlay_edits(o, 1), !fits());
	for (int i = 0; i < 20 && !fits(); i++)
		come_or_go(i % 2, draw_slot(i % 2));
	CHECK(overlay_is_valid(o));
	for (uint32_t k = 0; k < KINDS; k++) { /* without lists, no mark of a difference ever goes */
		CHECK(!(differs(0, k) || differs(1, k)) || overlay_marked(o, slot_of[k].base_gfn));
		CHECK(!(differs(0, k) || differs(1, k)) || overlay_edits(o, 0) || overlay_has_overflowed(o) ||
		      is_in_ranges(o, slot_of[k].base_gfn));
	}
	overlays_free(&all);
}

static uint32_t comparisons; /* of a word of marks with a difference */

static void count_comparisons(enum point point)
{
	comparisons += point == POINT_WRITER_UNMARKS;
}

/* However large the slots are: the marks of one that comes back go, those of the others stay, and the writer compares
 * each word of the slot at most once with each difference. */
static void test_large_differences(void)
{
	struct overlay *o = new_overlay(30000, 3);
	uint64_t blocks = (uint64_t)o->block_mask + 1, words = 40;
	struct flat_entry slot = { .npages = (uint32_t)(words * 64) << o->shift };
	struct flat_entry large[OVERLAY_EDITS_MAX - 1];

	atomic_store(&o->lost, 0);
	atomic_store(&all.current, o);
	for (uint32_t i = 0; i < ARRAY_SIZE(large); i++) {
		large[i] = (struct flat_entry){ (((i + 1) * blocks) + blocks / 2) << o->shift, 0, 0, i };
		large[i].npages = (uint32_t)(blocks / 4) << o->shift;
		for (uint32_t set = 0; set < 2; set++)
			overlays_edit(&all, set, &large[i], true);
	}
	CHECK_EQ(atomic_load(&o->nr_marked), blocks / 4);
	overlays_edit(&all, 0, &slot, true);
	overlays_edit(&all, 1, &slot, true);
	CHECK_EQ(atomic_load(&o->nr_marked), blocks / 4 + words * 64);
	point_set_hook(count_comparisons);
	overlays_edit(&all, 0, &slot, false);
	overlays_edit(&all, 1, &slot, false);
	point_set_hook(NULL);
	CHECK(comparisons > 0 && comparisons <= 2 * words * 2 * OVERLAY_EDITS_MAX);
	CHECK(!overlay_any_marked(o, 0, slot.npages));
	for (uint32_t i = 0; i < ARRAY_SIZE(large); i++) {
		CHECK_EQ(atomic_load(&o->nr_marked), blocks / 4);
		for (uint32_t set = 0; set < 2; set++)
			overlays_edit(&all, set, &large[i], false);
	}
	CHECK(overlay_answers_all(o, 0) && overlay_answers_all(o, 1));
	check_count(o);
	CHECK_EQ(atomic_load(&o->nr_marked), 0);
	overlays_free(&all);
}

/* An overlay that a change has not seen from its beginning begins without marks and differences at its end. */
static void check_begun(const struct overlay *o)
{
	CHECK(overlay_answers_all(o, 0) && overlay_answers_all(o, 1));
	CHECK(!overlay_nr_ranges(o) && !overlay_any_marked(o, 0, END_GFN));
	CHECK_EQ(atomic_load(&o->nr_marked), 0);
}

static void test_start_of_lists(void)
{
	struct flat_entry slot = { .base_gfn = 1000, .npages = 5 };
	struct overlay *seen = new_overlay(100, 3), *late = new_overlay(100, 3);

	atomic_store(&seen->lost, 0);
	atomic_store(&late->lost, 0);
	atomic_store(&all.coming, seen);
	overlays_begin_change(&all);
	overlays_edit(&all, 1, &slot, true);
	overlays_end_change(&all);
	CHECK_EQ(overlay_edits(seen, 1)->nr, 1);
	overlays_begin_change(&all);
	atomic_store(&all.current, seen);
	atomic_store(&all.coming, late);
	overlays_edit(&all, 0, &slot, true);
	CHECK_EQ(overlay_edits(late, 0)->nr, 1);
	overlays_end_change(&all);
	check_begun(late);
	CHECK(!overlay_answers_all(seen, 0) && !overlay_answers_all(seen, 1));
	overlays_lose_edits(&all);
	CHECK(!overlay_edits(seen, 0) && !overlay_edits(late, 1) && !overlay_answers_all(late, 0));
	overlays_free(&all);
}

/* The same if the change has lost the lists. */
static void test_start_after_a_loss(void)
{
	struct flat_entry slot = { .base_gfn = 1000, .npages = 5 };
	struct overlay *late = new_overlay(100, 3);

	overlays_begin_change(&all);
	atomic_store(&all.coming, late);
	overlays_edit(&all, 1, &slot, true);
	CHECK(!overlay_edits(late, 1) && overlay_nr_ranges(late));
	overlays_end_change(&all);
	check_begun(late);
	overlays_begin_change(&all);
	overlays_edit(&all, 1, &slot, true);
	overlays_end_change(&all);
	CHECK_EQ(overlay_edits(late, 1)->nr, 1);
	CHECK(overlay_marked(late, 1000));
	overlays_free(&all);
}

/* The overlay that a change has seen at its beginning is freed, and a later one of the same change has its address. */
static void test_same_address(void)
{
	struct flat_entry slot = { .base_gfn = 1000, .npages = 5 };
	struct overlay *o = new_overlay(100, 3);
	void *fresh = malloc(o->size);

	CHECK(fresh);
	atomic_store(&o->lost, 0);
	memcpy(fresh, o, o->size);
	atomic_store(&all.coming, o);
	overlays_begin_change(&all);
	overlays_edit(&all, 1, &slot, true);
	memcpy(o, fresh, o->size);
	overlays_edit(&all, 0, &slot, true);
	CHECK_EQ(overlay_edits(o, 0)->nr + overlay_edits(o, 1)->nr, 1);
	overlays_end_change(&all);
	check_begun(o);
	overlays_free(&all);
	free(fresh);
}

/* ---- two overlays ---- */

/* The coming overlay has only the edits since it was begun, the current one has them too. */
static void test_coming(void)
{
	struct overlay *current = new_overlay(100, 3), *coming = new_overlay(100, 3);

	nr_edits = 0;
	atomic_store(&all.current, current);
	mark((struct gfn_range){ 1000, 1001 });
	atomic_store(&all.coming, coming);
	mark((struct gfn_range){ 2000, 2001 });
	CHECK(overlay_marked(current, 1000) && overlay_marked(current, 2000));
	CHECK(!overlay_marked(coming, 1000) && overlay_marked(coming, 2000));
	atomic_store(&all.current, coming); /* it moves, and is in both for a moment */
	mark((struct gfn_range){ 3000, 3001 });
	CHECK(overlay_marked(coming, 3000) && !overlay_marked(current, 3000));
	overlay_put(current);
	overlays_free(&all); /* frees it once */
	CHECK_EQ(memory_blocks(&memory), 0);
}

static void test_spent(void)
{
	struct overlay *current = new_overlay(100, 3), *coming = new_overlay(40000, 3);

	atomic_store(&all.current, current);
	atomic_store(&all.coming, coming);
	overlays_spend(&all);
	for (int i = 0; i < 1000; i++) {
		uint64_t gfn = rng_next(&rng);

		CHECK(overlay_marked(current, gfn) && overlay_marked(coming, gfn));
	}
	CHECK(overlay_has_overflowed(current) && overlay_has_overflowed(coming));
	CHECK(atomic_load(&coming->spent));
	overlays_mark(&all, 5, 6);
	overlays_begin_change(&all);
	atomic_store(&all.coming, coming);
	coming->has_all_edits = false;
	overlays_end_change(&all); /* it does not begin again */
	CHECK(overlay_all_marked(coming, 0, END_GFN));
	check_count(current);
	check_count(coming);
	overlays_free(&all);
}

/* ---- retired overlays ---- */

/* The writer frees the ones that were retired before its grace period began, and no others. */
static void test_retired(void)
{
	struct overlay *first = new_overlay(1, 0), *second = new_overlay(1, 0), *third = new_overlay(1, 0);

	overlays_retire(&all, NULL);
	overlays_expire(&all);
	overlays_retire(&all, first);
	overlays_retire(&all, overlay_get(second));
	overlays_expire(&all);
	CHECK_EQ(memory_blocks(&memory), 3);
	overlays_capture(&all);
	overlays_retire(&all, third);
	overlays_expire(&all);
	CHECK_EQ(memory_blocks(&memory), 2); /* the second one is held, the third one was late */
	overlay_put(second);
	CHECK_EQ(memory_blocks(&memory), 1);
	overlays_capture(&all);
	overlays_capture(&all); /* the thread of the first grace period has ended in it */
	overlays_expire(&all);
	CHECK_EQ(memory_blocks(&memory), 0);
}

/* A captured overlay stays captured when a second capture adds others. */
static void test_captured_twice(void)
{
	overlays_retire(&all, new_overlay(1, 0));
	overlays_capture(&all);
	overlays_retire(&all, new_overlay(1, 0));
	overlays_capture(&all);
	overlays_expire(&all);
	CHECK_EQ(memory_blocks(&memory), 0);
}

static void test_no_memory(void)
{
	memory_fail(&memory, 1, false);
	CHECK(!overlay_create(&memory, 1000, 3));
	memory_fail(&memory, 0, false);
	overlay_put(NULL);
	CHECK_EQ(memory_blocks(&memory), 0);
}

int main(int argc, char **argv)
{
	uint64_t rounds;

	test_init(argc, argv, 60);
	memory_init(&memory);
	rng = rng_stream(1);
	rounds = test_times(300);
	for (uint64_t i = 0; i < rounds; i++)
		test_marks(rng_below(&rng, 10) ? rng_below(&rng, 60) : rng_below(&rng, 500));
	for (uint64_t i = 0; i < rounds; i++)
		test_differences();
	test_large_differences();
	test_start_of_lists();
	test_start_after_a_loss();
	test_same_address();
	test_repeated_edits();
	test_overflow();
	test_coming();
	test_spent();
	test_retired();
	test_captured_twice();
	test_no_memory();
	CHECK_EQ(memory_blocks(&memory), 0);
	return test_done("overlay", rounds, "overlays");
}
