/* SPDX-License-Identifier: MIT */
/*
 * test_flat_index.c - an index compared with the entries that it was made from, with every SIMD kernel that this CPU
 * has.
 *
 * The layouts are extreme: dense, with holes of all sizes, terabytes apart, one page each, one slot of 2^31 - 1 pages.
 * The lookups are at edges, inside, in holes, and anywhere in 64 bits.
 */
#include "test.h"

#include <errno.h>

#include "flat_many.h"
#include "flat_patch.h"
#include "include/memslots.h"

#define NR_MAX 5000
#define QUERIES 1000
#define END_GFN ((uint64_t)1 << 52)

static struct memory memory;
static struct flat_entry entries[NR_MAX + PATCH_MAX];
static size_t nr;
static struct rng rng;

/* ---- layouts ---- */

enum style { DENSE, HOLES, FAR, PAGES, CLUSTERS, HUGE, LONG, NR_STYLES };

static uint64_t hole(enum style style, size_t i)
{
	switch (style) {
	case HOLES:
		return rng_below(&rng, 3) ? 0 : rng_below(&rng, (uint64_t)1 << rng_below(&rng, 40));
	case FAR:
		return (uint64_t)1 << 33;
	case PAGES:
		return 1u << 20;
	case CLUSTERS:
		return i % 50 ? rng_below(&rng, 3) : (uint64_t)1 << (20 + i / 50 % 20);
	default:
		return 0;
	}
}

/* LONG: as few buckets as possible for so many slots, so that the bits of a bucket do not suffice for one frame
 * each. */
static uint32_t npages(enum style style, size_t wanted)
{
	if (style == LONG)
		return (uint32_t)(UINT32_MAX / (wanted + 1) - rng_below(&rng, 9));
	if (style == HUGE)
		return rng_below(&rng, 4) ? 1 + (uint32_t)rng_below(&rng, 9) : (uint32_t)MS_MEM_MAX_NR_PAGES;
	return style == PAGES ? 1 : 1 + (uint32_t)rng_below(&rng, rng_below(&rng, 2) ? 4 : 600);
}

static void draw_layout(enum style style, size_t wanted, bool from_zero)
{
	uint64_t gfn = from_zero ? 0 : rng_below(&rng, 1000);

	for (nr = 0; nr < wanted; nr++) {
		struct flat_entry e = { .base_gfn = gfn + (nr ? hole(style, nr) : 0), .npages = npages(style, wanted) };

		if (e.base_gfn + e.npages > END_GFN)
			break;
		e.id = (uint32_t)rng_below(&rng, 0x7ffffff0);
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
		uint64_t gfn = draw_gfn();
		const struct flat_entry *want = find(gfn);
		const struct flat_record *got = flat_find(f, gfn);

		CHECK_EQ(!got, !want);
		if (want)
			CHECK_EQ(f->ids[got - f->records], want->id);
	}
}

#define BEYOND 40 /* more than a block: nothing is written behind the last answer */

static uint64_t in[QUERIES], out[QUERIES + BEYOND];
static int32_t ids[QUERIES];

/* Each length, because whole blocks and the rest have different code; the output may be the input. */
static void check_hvas(const struct flat_index *f, bool write)
{
	size_t n = rng_below(&rng, 2) ? QUERIES : rng_below(&rng, 100);

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
	size_t n = rng_below(&rng, 2) ? QUERIES : rng_below(&rng, 100);

	for (size_t i = 0; i < n; i++)
		in[i] = draw_gfn();
	flat_ids(f, in, ids, n);
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

/* A few cache lines, 26 bytes a slot, and more than twice that only if slots are terabytes apart. */
static void check_size(const struct flat_index *f, enum style style)
{
	CHECK(f->size <= 1024 + (style == FAR || style == HUGE ? 96 : 32) * nr + 64 * (size_t)f->nr_segments);
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
	check_size(f, style);
	for (size_t i = 0; ms_simd_name(i); i++) {
		CHECK_EQ(ms_set_simd(ms_simd_name(i)), 0);
		for (int size = 0; size < 3; size++) { /* an index of more slots answers in larger blocks */
			f->large = size >= 1;
			f->larger = size == 2;
			check_hvas(f, false);
			check_hvas(f, true);
			check_ids(f);
		}
	}
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

/* ---- no memory ---- */

static void test_no_memory(void)
{
	draw_layout(HOLES, 100, false);
	memory_fail(&memory, 1, false);
	CHECK(!flat_create(&memory, entries, nr));
	memory_fail(&memory, 0, false);
	CHECK_EQ(atomic_load(&memory.blocks), 0);
}

/* ---- a broken index ---- */

static void test_check_finds(void)
{
	struct flat_index *f;
	struct flat_record *records;
	struct flat_segment *segments;
	uint32_t *buckets;

	do
		draw_layout(CLUSTERS, 200, false);
	while (nr < 200);
	f = flat_create(&memory, entries, nr);
	records = (struct flat_record *)(uintptr_t)f->records;
	segments = (struct flat_segment *)(uintptr_t)f->segments;
	buckets = (uint32_t *)(uintptr_t)f->buckets;
#define BREAK(at, by, number) \
	do { \
		__typeof__(at) whole = at; \
\
		at += by; \
		CHECK_EQ(flat_check(f), number); \
		at = whole; \
		CHECK_EQ(flat_check(f), 0); \
	} while (0)
	BREAK(records[10].rel, 100000, 1);
	BREAK(records[10].npages, 100000, 1);
	BREAK(segments[1].first, -segments[1].first, 1);
	BREAK(segments[0].extent, 1, 1);
	BREAK(segments[0].last, 1, 1);
	BREAK(f->nr, 1u, 1);
	BREAK(buckets[3], 1, 2);
	BREAK(buckets[3], f->place_mask + 1, 2);
	flat_put(f);
}

/* ---- patches ---- */

static size_t index_of(uint64_t base_gfn)
{
	size_t i = 0;

	while (i < nr && entries[i].base_gfn < base_gfn)
		i++;
	return i;
}

static bool drop_entry(struct flat_patch *patch)
{
	size_t i = rng_below(&rng, nr);
	bool noted = patch_remove(patch, entries[i].base_gfn);

	memmove(&entries[i], &entries[i + 1], (nr - i - 1) * sizeof(*entries));
	nr--;
	return noted;
}

/* Adds an entry if there is a hole for it. */
static bool add_entry(struct flat_patch *patch)
{
	struct flat_entry e = { draw_gfn() % END_GFN, rng_below(&rng, 1u << 20) << MS_PAGE_SHIFT, 1,
				(uint32_t)rng_below(&rng, 1000) };
	size_t i = index_of(e.base_gfn);

	if (find(e.base_gfn))
		return true;
	memmove(&entries[i + 1], &entries[i], (nr - i) * sizeof(*entries));
	entries[i] = e;
	nr++;
	return patch_add(patch, &e);
}

static void check_patch(const struct flat_patch *patch)
{
	struct patch_cursor cursor = patch_begin(patch);
	struct flat_entry e;

	CHECK_EQ(patch_nr(patch), nr);
	for (size_t i = 0; i < nr; i++) {
		CHECK(patch_next(&cursor, &e));
		CHECK(flat_same(&e, &entries[i]));
	}
	CHECK(!patch_next(&cursor, &e));
}

static uint64_t test_patches(void)
{
	uint64_t rounds = test_times(3000), changes = 0, overflowed = 0;

	for (uint64_t i = 0; i < rounds; i++) {
		struct flat_patch *patch, *clone;
		bool noted = true;

		draw_layout((enum style)(i % NR_STYLES), rng_below(&rng, 40), false);
		patch = patch_create(flat_create(&memory, entries, nr));
		for (uint64_t k = rng_below(&rng, 90); k && noted; k--, changes++) {
			noted = nr && rng_below(&rng, 2) ? drop_entry(patch) : add_entry(patch);
			if (noted)
				check_patch(patch);
		}
		overflowed += !noted;
		clone = patch_clone(patch);
		CHECK_EQ(atomic_load(&patch->base->refs), 2);
		patch_destroy(patch);
		if (noted)
			check_patch(clone);
		patch_destroy(clone);
		patch_destroy(NULL);
		CHECK_EQ(atomic_load(&memory.blocks), 0);
	}
	CHECK(overflowed); /* more changes than a patch can hold */
	return changes;
}

/* Without memory for a patch, its reference to the base is dropped. */
static void test_no_patch(void)
{
	struct flat_index *f;

	draw_layout(HOLES, 10, false);
	f = flat_create(&memory, entries, nr);
	memory_fail(&memory, 1, false);
	CHECK(!patch_create(flat_get(f)));
	memory_fail(&memory, 0, false);
	CHECK_EQ(atomic_load(&f->refs), 1);
	flat_put(f);
}

int main(int argc, char **argv)
{
	uint64_t made;

	test_init(argc, argv, 60);
	memory_init(&memory);
	rng = rng_stream(1);
	test_kernels();
	test_no_memory();
	test_no_patch();
	test_check_finds();
	made = test_layouts();
	return test_done("flat_index", made + test_patches(), "indexes and patches");
}
