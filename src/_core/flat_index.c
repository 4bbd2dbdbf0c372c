/* SPDX-License-Identifier: MIT */
/*
 * flat_index.c - see flat_index.h for the invariants F1 to F3.
 */
#include "flat_index.h"

#include <string.h>

/* Only this many of the largest holes may separate segments. */
#define HOLES_MAX 31

/* A hole separates two segments if it is at least 1 / HOLE_SHARE of the frames that buckets would otherwise cover. */
#define HOLE_SHARE 4

/* Every extent is below the sentinel. */
#define EXTENT_MAX ((uint64_t)FLAT_SENTINEL - 1)

/* An index beyond half a megabyte gets too little of the second-level cache.  Beyond eight megabytes it gets too little
 * of the third, which other cores share. */
#define LARGE_BYTES ((size_t)512 << 10)
#define LARGER_BYTES ((size_t)8 << 20)

/* An index is faster for single lookups if it has at least this many slots for each segment.  A step of the search for
 * the segment costs as much as a level of the tree. */
#define FOR_ONE 8

struct hole {
	uint64_t length;
	size_t entry; /* the first entry behind the hole */
};

static uint64_t end_of(const struct flat_entry *entry)
{
	return entry->base_gfn + entry->npages;
}

/* ---- segments ---- */

/* `holes` keeps the largest ones, by descending length. */
static void keep_hole(struct hole *holes, size_t *nr, struct hole hole)
{
	size_t i;

	if (*nr == HOLES_MAX && hole.length <= holes[HOLES_MAX - 1].length)
		return;
	if (*nr < HOLES_MAX)
		(*nr)++;
	for (i = *nr - 1; i && holes[i - 1].length < hole.length; i--)
		holes[i] = holes[i - 1];
	holes[i] = hole;
}

/* Chooses the holes between segments, largest first, and returns their number.  `left` is the number of frames that
 * buckets must cover without the holes chosen so far. */
static size_t choose_holes(const struct flat_entry *entries, size_t nr, struct hole *holes)
{
	uint64_t left = end_of(&entries[nr - 1]) - entries[0].base_gfn;
	size_t nr_holes = 0, chosen = 0;

	for (size_t i = 1; i < nr; i++) {
		uint64_t length = entries[i].base_gfn - end_of(&entries[i - 1]);

		if (length)
			keep_hole(holes, &nr_holes, (struct hole){ length, i });
	}
	while (chosen < nr_holes && holes[chosen].length >= left / HOLE_SHARE)
		left -= holes[chosen++].length;
	return chosen;
}

static bool behind_hole(const struct hole *holes, size_t nr, size_t entry)
{
	for (size_t i = 0; i < nr; i++)
		if (holes[i].entry == entry)
			return true;
	return false;
}

/* Whether entry i begins a new segment.  The present segment begins at the gfn `first`. */
static bool begins_segment(const struct flat_entry *entries, size_t i, uint64_t first, const struct hole *holes,
			   size_t nr_holes)
{
	return end_of(&entries[i]) - first > EXTENT_MAX || behind_hole(holes, nr_holes, i);
}

/* ---- layout ---- */

/* The smallest shift with at most three buckets for two slots, and one more. */
static uint32_t bucket_shift(uint64_t extent, size_t nr)
{
	uint32_t shift = 0;

	while ((extent >> shift) + 1 > nr + nr / 2 + 1)
		shift++;
	return shift;
}

static size_t nr_buckets(uint64_t extent, uint32_t shift)
{
	return (size_t)(extent >> shift) + 1;
}

/* The sizes of the arrays of an index. */
struct shape {
	size_t nr, segments, buckets;
};

typedef void segment_fn(void *context, const struct flat_entry *entries, size_t nr);

/* Calls found() for each segment, with its entries. */
static void each_segment(const struct flat_entry *entries, size_t nr, const struct hole *holes, size_t nr_holes,
			 segment_fn *found, void *context)
{
	size_t begin = 0;

	for (size_t i = 1; i <= nr; i++)
		if (i == nr || begins_segment(entries, i, entries[begin].base_gfn, holes, nr_holes)) {
			found(context, entries + begin, i - begin);
			begin = i;
		}
}

static uint64_t extent_of(const struct flat_entry *entries, size_t nr)
{
	return end_of(&entries[nr - 1]) - entries[0].base_gfn;
}

static void add_to_shape(void *context, const struct flat_entry *entries, size_t nr)
{
	struct shape *shape = context;
	uint64_t extent = extent_of(entries, nr);

	shape->segments++;
	shape->buckets += nr_buckets(extent, bucket_shift(extent, nr));
}

static size_t lines(size_t size)
{
	return (size + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
}

/* A mask of enough low bits for all numbers up to n. */
static uint32_t mask_of(uint64_t n)
{
	return (uint32_t)(((uint64_t)2 << (63 - __builtin_clzll(n))) - 1);
}

/* There is room for one sentinel for each segment. */
static struct flat_index *alloc_index(struct memory *memory, const struct shape *shape)
{
	size_t nr = shape->nr, segments = shape->segments;
	size_t at_segments = lines(sizeof(struct flat_index));
	size_t at_firsts = at_segments + segments * sizeof(struct flat_segment);
	size_t at_few = lines(at_firsts + segments * sizeof(uint64_t));
	size_t at_buckets = at_few + (nr <= FLAT_FEW ? lines(sizeof(struct flat_few)) : 0);
	size_t at_records = at_buckets + lines(shape->buckets * sizeof(uint32_t));
	size_t at_ids = at_records + (nr + segments + !nr) * sizeof(struct flat_record);
	size_t size = at_ids + (nr + segments) * sizeof(uint32_t);
	char *block = memory_zalloc_lines(memory, size);
	struct flat_index *f = (struct flat_index *)(void *)block;

	if (!f)
		return NULL;
	f->segments = (struct flat_segment *)(void *)(block + at_segments);
	f->firsts = (uint64_t *)(void *)(block + at_firsts);
	f->few = nr <= FLAT_FEW ? (struct flat_few *)(void *)(block + at_few) : NULL;
	f->buckets = (uint32_t *)(void *)(block + at_buckets);
	f->records = (struct flat_record *)(void *)(block + at_records);
	f->ids = (uint32_t *)(void *)(block + at_ids);
	f->nr_segments = (uint32_t)segments;
	f->nr = (uint32_t)nr;
	f->place_mask = mask_of(nr + segments);
	f->large = size > LARGE_BYTES;
	f->larger = size > LARGER_BYTES;
	f->for_one = nr > FLAT_FEW && nr / segments >= FOR_ONE;
	f->memory = memory;
	f->size = size;
	atomic_store_explicit(&f->refs, 1, memory_order_relaxed);
	return f;
}

/* ---- filling ---- */

static uint64_t delta_of(const struct flat_entry *entry)
{
	return entry->hva - (entry->base_gfn << MS_PAGE_SHIFT);
}

static void fill_records(struct flat_record *records, uint32_t *ids, const struct flat_entry *entries, size_t nr,
			 uint64_t first)
{
	for (size_t i = 0; i < nr; i++) {
		records[i] = (struct flat_record){ (uint32_t)(entries[i].base_gfn - first), entries[i].npages,
						   delta_of(&entries[i]) };
		ids[i] = entries[i].id;
	}
	records[nr] = (struct flat_record){ .rel = FLAT_SENTINEL };
}

/* The bucket that begins at frame `first`, by F2. */
static uint32_t bucket_of(const struct flat_index *f, const struct flat_segment *segment, uint64_t first,
			  uint32_t place)
{
	uint64_t last = ((uint64_t)1 << segment->shift) - 1, before_next = f->records[place + 1].rel - 1 - first;

	return flat_within(before_next < last ? before_next : last, segment->shift, f->place_mask) | place;
}

/* Returns the number of buckets. */
static size_t fill_buckets(uint32_t *buckets, const struct flat_index *f, const struct flat_segment *segment,
			   uint32_t place)
{
	size_t nr = nr_buckets(segment->extent, segment->shift);

	for (uint64_t i = 0; i < nr; i++) {
		while (f->records[place + 1].rel <= i << segment->shift)
			place++;
		buckets[i] = bucket_of(f, segment, i << segment->shift, place);
	}
	return nr;
}

static void fill_few(struct flat_few *few, const struct flat_entry *entries, size_t nr)
{
	for (size_t i = 0; i < FLAT_FEW; i++) {
		few->base[i] = i < nr ? entries[i].base_gfn : ~(uint64_t)0;
		few->npages[i] = i < nr ? entries[i].npages : 0;
		few->delta[i] = i < nr ? delta_of(&entries[i]) : 0;
	}
}

struct filler {
	struct flat_index *index;
	struct flat_segment *segment; /* the next one to fill */
	size_t bucket, record;        /* its first ones */
};

static void fill_segment(void *context, const struct flat_entry *entries, size_t nr)
{
	struct filler *to = context;
	struct flat_index *f = to->index;
	uint64_t first = entries[0].base_gfn, extent = extent_of(entries, nr);
	struct flat_record *records = (struct flat_record *)(uintptr_t)f->records;
	uint32_t *buckets = (uint32_t *)(uintptr_t)f->buckets;

	*to->segment = (struct flat_segment){
		.first = first,
		.extent = extent,
		.bucket = (uint32_t)to->bucket,
		.last = (uint32_t)(to->record + nr - 1),
		.shift = bucket_shift(extent, nr),
	};
	((uint64_t *)(uintptr_t)f->firsts)[to->segment - f->segments] = first;
	fill_records(records + to->record, (uint32_t *)(uintptr_t)f->ids + to->record, entries, nr, first);
	to->bucket += fill_buckets(buckets + to->bucket, f, to->segment, (uint32_t)to->record);
	to->record += nr + 1;
	to->segment++;
}

/* An index without slots has one segment with one bucket, whose record has no pages. */
static void fill_empty(struct flat_index *f)
{
	struct flat_record *records = (struct flat_record *)(uintptr_t)f->records;

	records[0] = records[1] = (struct flat_record){ .rel = FLAT_SENTINEL };
	*(uint32_t *)(uintptr_t)f->buckets = 0; /* place 0; extent is 0, so every x is 0 */
}

struct flat_index *flat_create(struct memory *memory, const struct flat_entry *entries, size_t nr)
{
	struct hole holes[HOLES_MAX];
	size_t nr_holes = nr ? choose_holes(entries, nr, holes) : 0;
	struct shape shape = { .nr = nr, .segments = !nr, .buckets = !nr };
	struct filler to = { 0 };

	each_segment(entries, nr, holes, nr_holes, add_to_shape, &shape);
	to.index = alloc_index(memory, &shape);
	if (!to.index)
		return NULL;
	to.segment = (struct flat_segment *)(uintptr_t)to.index->segments;
	each_segment(entries, nr, holes, nr_holes, fill_segment, &to);
	if (!nr)
		fill_empty(to.index);
	if (to.index->few)
		fill_few(to.index->few, entries, nr);
	return to.index;
}

void flat_put(struct flat_index *f)
{
	if (f && atomic_fetch_sub_explicit(&f->refs, 1, memory_order_acq_rel) == 1)
		memory_free_lines(f->memory, f, f->size);
}

bool flat_next(struct flat_cursor *c, struct flat_entry *entry)
{
	const struct flat_index *f = c->index;
	const struct flat_record *record = &f->records[c->place];
	uint64_t base;

	if (c->segment == f->nr_segments || !f->nr)
		return false;
	base = f->segments[c->segment].first + record->rel;
	*entry = (struct flat_entry){ base, record->delta + (base << MS_PAGE_SHIFT), record->npages, f->ids[c->place] };
	if (c->place++ == f->segments[c->segment].last) {
		c->segment++;
		c->place++; /* the sentinel */
	}
	return true;
}

/* ---- finding ---- */

/* The last segment that begins at or before gfn, or the first. */
const struct flat_segment *flat_find_segment(const struct flat_index *f, uint64_t gfn)
{
	size_t place = 0;

	for (size_t nr = f->nr_segments, half; nr > 1; nr -= half) {
		half = nr / 2;
		place += half & -(size_t)(f->firsts[place + half] <= gfn);
	}
	return &f->segments[place];
}

static const struct flat_segment *segment_of_place(const struct flat_index *f, uint32_t place)
{
	size_t low = 0, high = f->nr_segments - 1;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (place <= f->segments[middle].last)
			high = middle;
		else
			low = middle + 1;
	}
	return &f->segments[low];
}

uint32_t flat_search_from(const struct flat_index *f, uint32_t place, uint32_t x)
{
	uint32_t last = segment_of_place(f, place)->last;

	while (place < last) {
		uint32_t middle = place + (last - place + 1) / 2;

		if (f->records[middle].rel <= x)
			place = middle;
		else
			last = middle - 1;
	}
	return place;
}

/* ---- check ---- */

static bool records_ascend(const struct flat_index *f, const struct flat_segment *segment, uint32_t place)
{
	const struct flat_record *r = f->records;
	uint64_t end = 0;

	for (; place <= segment->last; place++) {
		if (r[place].rel < end || !r[place].npages)
			return false;
		end = (uint64_t)r[place].rel + r[place].npages;
	}
	return end == segment->extent && r[place].rel == FLAT_SENTINEL;
}

static bool buckets_are_valid(const struct flat_index *f, const struct flat_segment *segment, uint32_t place)
{
	for (uint64_t i = 0; i <= segment->extent >> segment->shift; i++) {
		uint32_t bucket = f->buckets[segment->bucket + i], at = bucket & f->place_mask;
		uint64_t first = i << segment->shift;

		if (at < place || at > segment->last || f->records[at].rel > first || f->records[at + 1].rel <= first ||
		    bucket != bucket_of(f, segment, first, at))
			return false;
	}
	return true;
}

int flat_check(const struct flat_index *f)
{
	uint64_t end = 0;
	uint32_t place = 0;

	for (uint32_t i = 0; f->nr && i < f->nr_segments; place = f->segments[i++].last + 2) {
		const struct flat_segment *segment = &f->segments[i];

		if (segment->first < end || !records_ascend(f, segment, place))
			return 1;
		if (!buckets_are_valid(f, segment, place))
			return 2;
		end = segment->first + segment->extent;
	}
	return place == f->nr + (f->nr ? f->nr_segments : 0) ? 0 : 1;
}
