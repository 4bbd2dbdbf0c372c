/* SPDX-License-Identifier: MIT */
/*
 * test_flat_index.c - an index compared with the entries that it was made from, with every SIMD kernel that this CPU
 * has.
 *
 * The layouts are extreme: dense, with holes of all sizes, terabytes apart, one page each, one slot of 2^31 - 1 pages,
 * aligned to gigabytes or just not, crowded next to a large slot.  The lookups are at edges, inside, in holes, and
 * anywhere in 64 bits.  The end of the test proves that every kind of bucket was there.
 */
#include "test.h"

#include <errno.h>

#include "flat_many.h"
#include "include/memslots.h"

#define NR_MAX 5000
#define NR_HUGE 2200000 /* with a hole after each slot: more pieces than a segment can have */
#define QUERIES 1000
#define END_GFN ((uint64_t)1 << 52)

static struct memory memory;
static struct flat_entry *entries; /* room for NR_HUGE, or for NR_MAX */
static size_t nr;
static struct rng rng;

/* ---- layouts ---- */

enum style { DENSE, HOLES, FAR, PAGES, CLUSTERS, HUGE, LONG, ALIGNED, UNALIGNED, CROWDED, NR_STYLES };

#define UNIT ((uint64_t)1 << 18) /* a gigabyte */
#define CROWD 40

static uint64_t hole(enum style style, size_t i)
{
	switch (style) {
	case HOLES:
		return rng_below(&rng, 3) ? 0 : rng_below(&rng, (uint64_t)1 << rng_below(&rng, 40));
	case FAR:
		return (uint64_t)1 << 33;
	case PAGES:
		return 1u << 20;
	case ALIGNED:
		return rng_below(&rng, 3) * UNIT;
	case UNALIGNED:
		return rng_below(&rng, 3) * (UNIT + rng_below(&rng, 2));
	case CROWDED:
		return i % CROWD ? rng_below(&rng, 2) : 0;
	case CLUSTERS:
		return i % 50 ? rng_below(&rng, 3) : (uint64_t)1 << (20 + i / 50 % 20);
	default:
		return 0;
	}
}

/* LONG: all the frames that a segment can have. */
static uint32_t npages(enum style style, size_t wanted)
{
	if (style == LONG)
		return (uint32_t)(UINT32_MAX / (wanted + 1) - rng_below(&rng, 9));
	if (style == ALIGNED || style == UNALIGNED)
		return (uint32_t)((1 + rng_below(&rng, 8)) * UNIT + (style == UNALIGNED ? rng_below(&rng, 2) : 0));
	if (style == CROWDED)
		return rng_below(&rng, CROWD) ? 1 : 1u << (10 + rng_below(&rng, 8));
	if (style == HUGE)
		return rng_below(&rng, 4) ? 1 + (uint32_t)rng_below(&rng, 9) : (uint32_t)MS_MEM_MAX_NR_PAGES;
	return style == PAGES ? 1 : 1 + (uint32_t)rng_below(&rng, rng_below(&rng, 2) ? 4 : 600);
}

/* The widths of the ids of a layout.  MIXED: a few are wide. */
enum ids { NARROW, WIDE, MIXED, NR_IDS };

static uint32_t draw_id(enum ids ids)
{
	bool wide = ids == WIDE || (ids == MIXED && !rng_below(&rng, 16));

	return (uint32_t)rng_below(&rng, wide ? 0x7ffffff0 : 0x10000);
}

static void draw_layout(enum style style, size_t wanted, bool from_zero)
{
	enum ids ids = (enum ids)rng_below(&rng, NR_IDS);
	uint64_t gfn = from_zero ? 0 : style == ALIGNED ? (1 + rng_below(&rng, 9)) * UNIT : rng_below(&rng, 1000);

	for (nr = 0; nr < wanted; nr++) {
		struct flat_entry e = { .base_gfn = gfn + (nr ? hole(style, nr) : 0), .npages = npages(style, wanted) };

		if (e.base_gfn + e.npages > END_GFN)
			break;
		e.id = draw_id(ids);
		e.hva = rng_below(&rng, (uint64_t)1 << 35) << MS_PAGE_SHIFT | rng_below(&rng, 2);
		gfn = e.base_gfn + e.npages;
		entries[nr] = e;
	}
}

static uint64_t draw_gfn(void)
{
	const struct flat_entry *e = nr ? &entries[rng_below(&rng, nr)] : NULL;

	if (!e || !rng_below(&rng, 8))
		return rng_below(&rng, 8) ? rng_below(&rng, END_GFN) : ~(uint64_t)0 - rng_below(&rng, 3);
	switch (rng_below(&rng, 5)) {
	case 0:
		return e->base_gfn - 1 - rng_below(&rng, 2);
	case 1:
		return e->base_gfn + e->npages + rng_below(&rng, 2);
	case 2:
		return e->base_gfn;
	case 3:
		return e->base_gfn + e->npages - 1;
	default:
		return e->base_gfn + rng_below(&rng, e->npages);
	}
}

/* ---- answers without an index ---- */

static const struct flat_entry *find(uint64_t gfn)
{
	size_t low = 0, high = nr;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (entries[middle].base_gfn <= gfn)
			low = middle + 1;
		else
			high = middle;
	}
	return low && gfn - entries[low - 1].base_gfn < entries[low - 1].npages ? &entries[low - 1] : NULL;
}

static uint64_t hva(uint64_t gfn, bool write)
{
	const struct flat_entry *e = find(gfn);

	if (!e)
		return MS_HVA_ERR_BAD;
	if (write && e->hva & FLAT_READONLY)
		return MS_HVA_ERR_RO_BAD;
	return (e->hva & ~FLAT_READONLY) + ((gfn - e->base_gfn) << MS_PAGE_SHIFT);
}

/* ---- checks ---- */

static void check_finds(const struct flat_index *f)
{
	for (int i = 0; i < QUERIES; i++) {
		uint64_t gfn = draw_gfn(), address = gfn << MS_PAGE_SHIFT, delta;
		const struct flat_entry *want = find(gfn);
		uint32_t piece;

		delta = flat_word(f, gfn, &piece);
		CHECK_EQ(delta & FLAT_HOLE, want ? 0 : FLAT_HOLE);
		CHECK_EQ(flat_answer(delta, address, 0), hva(gfn, false));
		CHECK_EQ(flat_answer(delta, address, FLAT_READONLY), hva(gfn, true));
		if (want)
			CHECK_EQ(flat_id(f, flat_slot(f, delta, piece)), want->id);
	}
}

#define BEYOND 70 /* more than a block: nothing is written behind the last answer */

static uint64_t in[QUERIES], out[QUERIES + BEYOND];
static int32_t ids[QUERIES + BEYOND];

/* Each length up to two blocks, because whole blocks and the rest have different code. */
static size_t draw_length(void)
{
	return rng_below(&rng, 2) ? QUERIES - rng_below(&rng, 70) : rng_below(&rng, 130);
}

/* The output may be the input. */
static void check_hvas(const struct flat_index *f, bool write)
{
	size_t n = draw_length();

	for (size_t i = 0; i < n; i++)
		in[i] = draw_gfn();
	for (size_t i = n; i < n + BEYOND; i++)
		out[i] = i;
	flat_hvas(f, in, out, n, 0, write);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(out[i], hva(in[i], write));
	for (size_t i = n; i < n + BEYOND; i++)
		CHECK_EQ(out[i], i);
	for (size_t i = 0; i < n; i++)
		in[i] = out[i] = in[i] << MS_PAGE_SHIFT | rng_below(&rng, MS_PAGE_SIZE);
	flat_hvas(f, out, out, n, MS_PAGE_SHIFT, write);
	for (size_t i = 0; i < n; i++) {
		uint64_t want = hva(in[i] >> MS_PAGE_SHIFT, write);

		CHECK_EQ(out[i], want < MS_HVA_ERR_MIN ? want + in[i] % MS_PAGE_SIZE : want);
	}
}

static void check_ids(const struct flat_index *f)
{
	size_t n = draw_length();

	for (size_t i = 0; i < n; i++)
		in[i] = draw_gfn();
	for (size_t i = n; i < n + BEYOND; i++)
		ids[i] = (int32_t)i;
	flat_ids(f, in, ids, n);
	for (size_t i = n; i < n + BEYOND; i++)
		CHECK_EQ(ids[i], (int32_t)i);
	for (size_t i = 0; i < n; i++) {
		const struct flat_entry *want = find(in[i]);

		CHECK_EQ(ids[i], want ? (int32_t)want->id : -1);
	}
}

static void check_entries(const struct flat_index *f)
{
	struct flat_cursor cursor = { .index = f };
	struct flat_entry e;

	for (size_t i = 0; i < nr; i++) {
		CHECK(flat_next(&cursor, &e));
		CHECK(flat_same(&e, &entries[i]));
	}
	CHECK(!flat_next(&cursor, &e));
}

/* More than 32 bytes a slot only if buckets are wide, because there may be twice as many, or segments are many. */
static void check_size(const struct flat_index *f)
{
	CHECK(f->size <= 1024 + 64 * nr + 64 * (size_t)f->nr_segments);
}

/* The kinds of buckets and segments of all indexes of this run. */
static struct {
	uint64_t listed, inexact, wide, moved, some_segments, two_tables, many_segments;
} seen;

/* In a layout of gigabytes every begin has an exact position, if a bucket has any for gigabytes. */
static void note_buckets(const struct flat_index *f, const struct flat_segment *segment, enum style style)
{
	uint64_t last = flat_scaled(segment, segment->extent) >> 32;

	seen.moved += f->deltas[segment->piece] == FLAT_HOLE && nr;
	for (uint64_t i = 0; i <= last; i++) {
		uint64_t word = f->buckets[segment->bucket + i];
		bool overfull = flat_overfull(word);
		uint32_t begins = overfull ? *flat_list(f, word) : 0;

		CHECK(!overfull || begins > FLAT_BEGINS || style != ALIGNED || segment->scale == 1);
		seen.listed += begins > FLAT_BEGINS;
		seen.inexact += overfull && begins <= FLAT_BEGINS;
		seen.wide += !overfull && word > FLAT_PIECE_MASK && segment->scale < 1u << FLAT_POSITION_SHIFT;
	}
}

static void note_kinds(const struct flat_index *f, enum style style)
{
	seen.some_segments += f->nr_segments > 1 && f->nr_segments <= 32;
	seen.two_tables += f->nr_segments > 16 && f->nr_segments <= 32;
	seen.many_segments += f->nr_segments > 32;
	for (uint32_t i = 0; i < f->nr_segments; i++)
		note_buckets(f, &f->segments[i], style);
}

/* A short run need not have all of them. */
static void check_kinds(void)
{
	if (test_times(60) < 60) {
		puts("flat_index: NOT tested in a short run: that every kind of bucket was there");
		return;
	}
	CHECK(seen.listed && seen.inexact && seen.wide && seen.moved);
	CHECK(seen.some_segments && seen.two_tables && seen.many_segments);
}

static void check_kernels(const struct flat_index *f)
{
	for (size_t i = 0; ms_simd_name(i); i++) {
		CHECK_EQ(ms_set_simd(ms_simd_name(i)), 0);
		check_hvas(f, false);
		check_hvas(f, true);
		check_ids(f);
	}
}

static void check_index(enum style style, size_t wanted)
{
	struct flat_index *f;

	draw_layout(style, wanted, rng_below(&rng, 2));
	f = flat_create(&memory, entries, nr);
	CHECK(f);
	CHECK_EQ(flat_check(f), 0);
	check_entries(f);
	check_finds(f);
	check_size(f);
	note_kinds(f, style);
	check_kernels(f);
	flat_put(f);
	CHECK_EQ(atomic_load(&memory.blocks), 0);
}

/* Few and many slots in turn, so that a short run tests the code for each. */
static size_t draw_nr(uint64_t i)
{
	if (i % 2 == 0 && i / 2 <= FLAT_FEW + 1)
		return i / 2;
	return rng_below(&rng, i % 10 ? 70 : NR_MAX);
}

static uint64_t test_layouts(void)
{
	uint64_t rounds = test_times(60), made = 0;

	for (int style = 0; style < NR_STYLES; style++)
		for (uint64_t i = 0; i < rounds; i++, made++)
			check_index(style, draw_nr(i));
	return made;
}

/* ---- kernels ---- */

static void test_kernels(void)
{
	CHECK(!strcmp(ms_simd_name(0), "portable"));
	CHECK_EQ(ms_set_simd("abacus"), -ENOSYS);
	CHECK_EQ(ms_set_simd("portable"), 0);
	CHECK(!strcmp(ms_simd(), "portable"));
}

/* ---- large layouts ---- */

/* A hole after one of `every` slots, as small or as large as a slot. */
static void draw_holed_layout(size_t wanted, size_t every)
{
	uint64_t gfn = 0;

	for (nr = 0; nr < wanted; nr++) {
		entries[nr] = (struct flat_entry){ gfn, (uint64_t)nr << 40, 1 + (uint32_t)rng_below(&rng, 512),
						   (uint32_t)nr };
		gfn += entries[nr].npages + (nr % every ? 0 : 1 + rng_below(&rng, 512));
	}
}

/* Up to 32 bytes a slot, with the arrays that every index has.  A small segment has as many buckets as are useful. */
#define SMALL_MORE 256

static void test_bytes(void)
{
	static const size_t sizes[] = { 64, 200, 509, 3000, 4096, 32764, 1000000 };

	for (size_t i = 0; i < ARRAY_SIZE(sizes) - test_slow; i++) {
		struct flat_index *f;

		draw_holed_layout(sizes[i], sizes[i] == 64 ? 2 : 1);
		f = flat_create(&memory, entries, nr);
		CHECK(f->size <= 32 * nr + (nr < 128 ? SMALL_MORE : 0));
		flat_put(f);
	}
}

/* The pieces of the layout need more bits than a bucket has for their numbers. */
static void test_many_pieces(void)
{
	struct flat_index *f;

	if (test_slow)
		return;
	draw_holed_layout(NR_HUGE, 1);
	f = flat_create(&memory, entries, nr);
	CHECK_EQ(f->nr_segments, 2);
	CHECK(f->segments[0].pieces > FLAT_PIECE_MASK - 3);
	CHECK_EQ(flat_check(f), 0);
	check_entries(f);
	check_finds(f);
	check_kernels(f);
	flat_put(f);
}

/* ---- the builder ---- */

static struct flat_builder *new_builder(void)
{
	struct flat_builder *b = flat_builder_create(&memory, nr);

	for (size_t i = 0; b && i < nr; i++)
		flat_builder_add(b, &entries[i]);
	return b;
}

/* Returns the number of steps. */
static uint64_t run_builder(struct flat_builder *b, size_t slots, struct flat_index **f)
{
	enum flat_built built;
	uint64_t steps = 0;

	do {
		*f = NULL;
		built = flat_builder_step(b, slots, f);
		CHECK_EQ(!*f, built != FLAT_BUILD_DONE);
		steps++;
	} while (built == FLAT_BUILD_MORE);
	return steps;
}

static void check_same(const struct flat_index *a, const struct flat_index *b)
{
	const struct flat_segment *last = &a->segments[a->nr_segments - 1];
	size_t buckets = last->bucket + (flat_scaled(last, last->extent) >> 32) + 1;

	CHECK_EQ(a->size, b->size);
	CHECK_EQ(a->nr_segments, b->nr_segments);
	CHECK(!memcmp(a->segments, b->segments, a->nr_segments * sizeof(*last)));
	CHECK(!memcmp(a->buckets, b->buckets, buckets * sizeof(*a->buckets)));
	CHECK(!memcmp(a->deltas, b->deltas, (last->piece + last->pieces) * sizeof(*a->deltas)));
	CHECK(!memcmp(a->ids, b->ids, (nr + 1) * sizeof(*a->ids)));
}

/* Steps of any size make the same index.  Two phases take a step for so many slots.  The two others take a step for so
 * many pieces and buckets, of which there may be more or fewer. */
static void check_builder(size_t slots)
{
	struct flat_index *whole = flat_create(&memory, entries, nr), *f;
	struct flat_builder *b = new_builder();
	uint64_t steps = run_builder(b, slots, &f);

	CHECK(steps >= 5 * (nr / slots) / 2);
	CHECK(steps <= 8 * (nr / slots + 2));
	flat_builder_destroy(b);
	CHECK_EQ(flat_check(f), 0);
	check_same(f, whole);
	flat_put(f);
	flat_put(whole);
	CHECK_EQ(atomic_load(&memory.blocks), 0);
}

/* A builder that is destroyed after any step frees everything. */
static void drop_builder(size_t slots)
{
	struct flat_builder *b = new_builder();
	struct flat_index *f = NULL;

	for (uint64_t k = rng_below(&rng, nr + 4); k; k--)
		if (flat_builder_step(b, slots, &f) != FLAT_BUILD_MORE)
			break;
	flat_builder_destroy(b);
	flat_put(f);
	CHECK_EQ(atomic_load(&memory.blocks), 0);
}

static void test_builder(void)
{
	uint64_t rounds = test_times(30);

	for (int style = 0; style < NR_STYLES; style++)
		for (uint64_t i = 0; i < rounds; i++) {
			draw_layout((enum style)style, i % 2 ? i / 2 : rng_below(&rng, 300), rng_below(&rng, 2));
			check_builder(1);
			check_builder(1 + rng_below(&rng, 100));
			drop_builder(1 + rng_below(&rng, 9));
		}
	flat_builder_destroy(NULL);
}

/* ---- no memory ---- */

/* Each allocation of an index fails once, in a layout with enough segments for an allocation of them. */
static void test_no_memory(void)
{
	uint64_t nth = 0;
	struct flat_index *f;

	draw_layout(FAR, 100, false);
	do {
		memory_fail(&memory, ++nth, false);
		f = flat_create(&memory, entries, nr);
		CHECK_EQ(atomic_load(&memory.blocks), !!f);
	} while (!f);
	flat_put(f);
	CHECK(nth >= 5);
	memory_fail(&memory, 0, false);
}

static void test_no_memory_in_steps(void)
{
	struct flat_builder *b;
	struct flat_index *f;
	uint64_t nth = 0;

	draw_layout(FAR, 100, false);
	do {
		memory_fail(&memory, ++nth, false);
		f = NULL;
		b = new_builder();
		CHECK_EQ(!b, nth == 1);
		if (b)
			run_builder(b, 10, &f);
		flat_builder_destroy(b);
		CHECK_EQ(atomic_load(&memory.blocks), !!f);
	} while (!f);
	flat_put(f);
	CHECK(nth >= 5);
	memory_fail(&memory, 0, false);
}

/* ---- a broken index ---- */

#define BREAK(at, by, number) \
	do { \
		__typeof__((at) + 0) *broken = (void *)(uintptr_t)&(at), whole = *broken; \
\
		*broken += (by); \
		CHECK_EQ(flat_check(f), number); \
		*broken = whole; \
		CHECK_EQ(flat_check(f), 0); \
	} while (0)

/* The number of the first bucket with a begin, or of the first over-full one. */
static uint32_t bucket_with(const struct flat_index *f, bool overfull)
{
	uint32_t i = 0;

	while (flat_overfull(f->buckets[i]) != overfull || f->buckets[i] <= FLAT_PIECE_MASK)
		i++;
	return i;
}

/* The number of a bucket grows by 2: with 1 it may be the index of another layout, whose next piece begins earlier. */
static void break_buckets(struct flat_index *f)
{
	uint32_t i = bucket_with(f, false), list = bucket_with(f, true);
	const uint32_t *begins = flat_list(f, f->buckets[list]);

	BREAK(f->buckets[i], 2, 2);
	BREAK(f->buckets[i], -(f->buckets[i] & (FLAT_BEGUN - 1) << FLAT_PIECE_BITS), 2);
	BREAK(f->buckets[i], -(FLAT_BEGUN << FLAT_PIECE_BITS), 2);
	BREAK(f->buckets[i + 1], 2, 2);
	BREAK(f->buckets[list], 2, 2);
	BREAK(begins[0], -2u, 2);
	BREAK(begins[2], -100000u, 2);
	BREAK(begins[1], 100000u, 2);
}

static void break_segments(struct flat_index *f)
{
	BREAK(f->only.first, 1, 1);
	BREAK(f->segments[1].first, -f->segments[1].first, 1);
	BREAK(f->segments[1].piece, 1, 1);
	BREAK(f->segments[1].bucket, 1, 1);
	BREAK(f->segments[1].pieces, 1u, 1);
	BREAK(f->firsts[1], 1, 1);
	BREAK(flat_shapes(f)[1], 1, 1);
	BREAK(flat_places(f)[1], 1, 1);
}

static void break_deltas(struct flat_index *f)
{
	uint32_t slot = 0, hole = 0;

	while (f->deltas[slot] & FLAT_HOLE)
		slot++;
	while (!(f->deltas[hole] & FLAT_HOLE))
		hole++;
	BREAK(f->deltas[slot], (uint64_t)1 << FLAT_RANK_SHIFT, 3);
	BREAK(f->deltas[hole], (uint64_t)1 << MS_PAGE_SHIFT, 3);
	BREAK(f->deltas[hole], -FLAT_HOLE, 3);
	BREAK(f->deltas[hole + 1], FLAT_HOLE - f->deltas[hole + 1], 1);
	BREAK(f->ranks[0], 1, 3);
	BREAK(f->nr, 1u, 3);
}

/* Slots of one page each, side by side, in the middle of a layout with several segments. */
static void draw_crowd_in_clusters(void)
{
	do
		draw_layout(CLUSTERS, 200, false);
	while (nr < 200);
	for (size_t i = 101; i < 113; i++) {
		entries[i].base_gfn = entries[i - 1].base_gfn + entries[i - 1].npages;
		entries[i].npages = 1;
	}
}

static bool has_overfull(const struct flat_index *f)
{
	const uint64_t *end = f->deltas; /* the array behind the buckets */

	for (const uint64_t *word = f->buckets; word < end; word++)
		if (flat_overfull(*word))
			return true;
	return false;
}

static void test_check_finds(void)
{
	struct flat_index *f = NULL;

	do { /* in narrow buckets even such slots need no list */
		flat_put(f);
		draw_crowd_in_clusters();
		f = flat_create(&memory, entries, nr);
	} while (!has_overfull(f));
	CHECK(f->nr_segments > 1);
	break_buckets(f);
	break_segments(f);
	break_deltas(f);
	flat_put(f);
}

/* ---- lists of every length ---- */

#define LONGEST_LIST 20u

/* Wide slots with holes, and in the middle, behind a hole of `gap` frames, `run` slots of one page, side by side. */
static void put_run(uint32_t run, uint32_t gap)
{
	uint64_t gfn = 0;

	for (nr = 0; nr < 100 + run; nr++) {
		bool in_run = nr >= 50 && nr < 50 + run;

		entries[nr] = (struct flat_entry){ .base_gfn = gfn,
						   .hva = rng_below(&rng, 1 << 20) << 30,
						   .npages = in_run ? 1 : 600,
						   .id = (uint32_t)nr };
		gfn += in_run ? 1 : nr == 49 ? 600 + gap : 700;
	}
}

static void note_lists(const struct flat_index *f, bool *seen_length)
{
	CHECK_EQ(f->nr_segments, 1);
	for (uint64_t i = 0; i <= flat_scaled(&f->only, f->only.extent) >> 32; i++)
		if (flat_overfull(f->buckets[i]) && *flat_list(f, f->buckets[i]) <= LONGEST_LIST)
			seen_length[*flat_list(f, f->buckets[i])] = true;
}

/* One lookup of each frame of the run and around it. */
static void look_up_run(const struct flat_index *f)
{
	size_t n = 64;

	for (size_t i = 0; i < n; i++)
		in[i] = entries[50].base_gfn - 16 + i;
	flat_hvas(f, in, out, n, 0, true);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(out[i], hva(in[i], true));
}

/* A kernel compares a short list at once, and searches a longer one. */
static void test_lists(void)
{
	bool seen_length[LONGEST_LIST + 1] = { false };

	for (uint32_t i = 0; i < 32 * LONGEST_LIST; i++) {
		struct flat_index *f;

		put_run(1 + i / 16, 1 + i % 16 * 60);
		f = flat_create(&memory, entries, nr);
		note_lists(f, seen_length);
		for (size_t k = 0; ms_simd_name(k); k++) {
			CHECK_EQ(ms_set_simd(ms_simd_name(k)), 0);
			look_up_run(f);
		}
		flat_put(f);
	}
	for (uint32_t length = FLAT_BEGINS + 1; length <= LONGEST_LIST; length++)
		CHECK(seen_length[length]);
}

int main(int argc, char **argv)
{
	uint64_t made;

	test_init(argc, argv, 60);
	memory_init(&memory);
	rng = rng_stream(1);
	entries = malloc(NR_HUGE * sizeof(*entries));
	test_kernels();
	test_no_memory();
	test_no_memory_in_steps();
	test_check_finds();
	test_lists();
	made = test_layouts();
	check_kinds();
	test_builder();
	test_bytes();
	test_many_pieces();
	free(entries);
	return test_done("flat_index", made, "indexes");
}
