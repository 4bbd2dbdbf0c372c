/* SPDX-License-Identifier: MIT */
/*
 * flat_index.h - the slots of one set as values in flat arrays, for many lookups by gfn.
 *
 * A change of a tree costs O(log n), but a lookup in it waits for memory at each level.  An index is derived from a set
 * and answers faster.  It never changes and contains no pointer into the set.  It has a reference count: the holder of
 * a reference needs no read section.
 *
 *   gfn ─> segment: a stretch of frames between two of the largest holes; most layouts have one segment
 *       ─> bucket:  the high bits of x = gfn - segment.first select it; it contains the place of a record
 *       ─> record:  the one at this place, or one of the next few; it contains the gfn if x - rel < npages
 *
 * The low bits of a bucket are a place.  The high bits say where in the bucket the record after this place begins, so
 * that the first comparison reads no record.  The frames of a segment are relative to its first frame and fit 32 bits.
 * Each segment ends with a sentinel, a record that no x reaches.  An index has no INVALID slots, because lookups of
 * addresses and ids treat them as holes.
 *
 * Invariants
 *   F1  records ascend by rel within a segment, segments by first, and do not overlap;
 *   F2  the low bits of a bucket are the place of the last record that begins at or before the first frame of the
 *       bucket; the high bits are the last frame of the bucket before the next record begins, as by flat_within();
 *   F3  the records without the sentinels are the slots of the set that are not INVALID.
 *
 * Ordering: immutable once published (row "index" of docs/locking.md); references are row "index references".
 * Cost: find O(1) if the slots between the largest holes are spread evenly, O(log n) at worst; building O(n); at most
 * 26 bytes for each slot, about 60 for each segment, and a few cache lines.
 */
#ifndef MS_FLAT_INDEX_H
#define MS_FLAT_INDEX_H

#include "include/memslots.h"
#include "memory.h"

/* One slot: the input of flat_create() and the output of flat_next(). */
struct flat_entry {
	uint64_t base_gfn;
	uint64_t hva; /* userspace_addr | FLAT_READONLY */
	uint32_t npages;
	uint32_t id;
};

static inline bool flat_same(const struct flat_entry *a, const struct flat_entry *b)
{
	return a->base_gfn == b->base_gfn && a->hva == b->hva && a->npages == b->npages && a->id == b->id;
}

struct flat_record {
	uint32_t rel; /* base_gfn - first of its segment */
	uint32_t npages;
	uint64_t delta; /* userspace_addr - (base_gfn << 12); bit 0 is FLAT_READONLY */
};

#define FLAT_READONLY ((uint64_t)1)
#define FLAT_DELTA_FLAGS ((uint64_t)4095)
#define FLAT_SENTINEL UINT32_MAX /* the rel of a sentinel; every extent is smaller */

struct flat_segment {
	uint64_t first;  /* the gfn of x = 0 */
	uint64_t extent; /* the number of frames; x is at most this */
	uint32_t bucket; /* the bucket of x = 0 */
	uint32_t last;   /* the place of the last record; the sentinel follows */
	uint32_t shift;  /* a bucket covers 1 << shift frames */
};

/* In an index of up to this many slots a lookup compares the gfn with all of them at once, without a bucket. */
#define FLAT_FEW 8

struct flat_few {
	uint64_t base[FLAT_FEW], npages[FLAT_FEW], delta[FLAT_FEW];
};

struct flat_index {
	cache_aligned const uint32_t *buckets;
	const struct flat_record *records;
	const struct flat_segment *segments;
	const uint64_t *firsts; /* copies of segments[].first */
	const uint32_t *ids; /* by the place of the record */
	uint32_t nr_segments;
	uint32_t nr; /* slots */
	uint32_t place_mask; /* the bits of a bucket that are a place */
	bool large;  /* does not fit the caches of one core: prefetching helps */
	bool larger; /* most of it is in memory: prefetching needs a longer distance */
	bool for_one; /* single lookups use it; with few slots, or few for each segment, a walk is as fast */
	struct flat_few *few; /* NULL if there are more than FLAT_FEW slots */

	cache_aligned _Atomic uint64_t refs; /* on a line of its own: every holder writes it */
	struct memory *memory;
	size_t size; /* of the allocation, in bytes */
};

/* Makes an index, with one reference, of entries that ascend and do not overlap.  NULL: no memory. */
struct flat_index *flat_create(struct memory *memory, const struct flat_entry *entries, size_t nr);

/* Walks the slots of an index by ascending gfn.  Begin with { .index = f }; flat_next() returns false at the end. */
struct flat_cursor {
	const struct flat_index *index;
	uint32_t segment, place;
};

bool flat_next(struct flat_cursor *cursor, struct flat_entry *entry);

static inline struct flat_index *flat_get(struct flat_index *f)
{
	atomic_fetch_add_explicit(&f->refs, 1, memory_order_relaxed);
	return f;
}

void flat_put(struct flat_index *f); /* NULL is fine */

/* Returns the number of the first of F1 and F2 that does not hold, or 0. */
int flat_check(const struct flat_index *f);

const struct flat_segment *flat_find_segment(const struct flat_index *f, uint64_t gfn);

static inline const struct flat_segment *flat_segment_of(const struct flat_index *f, uint64_t gfn)
{
	return likely(f->nr_segments == 1) ? f->segments : flat_find_segment(f, gfn);
}

/* For frames outside of the segment, also those before it, x is the end of the segment, which is in no slot. */
static inline uint32_t flat_x(const struct flat_segment *segment, uint64_t gfn)
{
	uint64_t x = gfn - segment->first;

	return (uint32_t)(x < segment->extent ? x : segment->extent);
}

/* The place of the last record of a segment that begins at or before x, if the one at `place` does.  O(log n). */
uint32_t flat_search_from(const struct flat_index *f, uint32_t place, uint32_t x);

/* The position of x in its bucket: the low `shift` bits of x, moved to the top of the word, rounded down to the bits
 * that are not part of the place. */
static inline uint32_t flat_within(uint64_t x, uint32_t shift, uint32_t place_mask)
{
	return (uint32_t)(x << (32 - shift)) & ~place_mask;
}

/*
 * The first two steps from the place in the bucket have no branch.  A third is rare if slots are spread evenly.
 * flat_step() makes the first step only if the next record certainly begins at or before x: both the position of x and
 * the one in the bucket are rounded down.  flat_settle() compares exact values.
 */
static inline uint32_t flat_step(uint32_t bucket, uint32_t within, uint32_t place_mask)
{
	uint32_t next = bucket < within;

	opaque(next);
	return (bucket & place_mask) + next;
}

static inline uint32_t flat_settle(const struct flat_index *f, const struct flat_record *records, uint32_t place,
				   uint32_t x)
{
	uint32_t next = records[place + 1].rel <= x;

	opaque(next);
	place += next;
	return unlikely(records[place + 1].rel <= x) ? flat_search_from(f, place, x) : place;
}

/* __gfn_to_hva_many() for one page of a record; NULL is a hole.  `deny` is FLAT_READONLY if the caller will write. */
static inline uint64_t flat_hva(const struct flat_record *record, uint64_t address, uint64_t deny)
{
	if (!record)
		return MS_HVA_ERR_BAD;
	if (record->delta & deny)
		return MS_HVA_ERR_RO_BAD;
	return (record->delta & ~FLAT_DELTA_FLAGS) + address;
}

/* The record that contains gfn, or NULL. */
static inline const struct flat_record *flat_find(const struct flat_index *f, uint64_t gfn)
{
	const struct flat_segment *segment = flat_segment_of(f, gfn);
	uint32_t x = flat_x(segment, gfn);
	uint32_t place = flat_step(f->buckets[segment->bucket + (x >> segment->shift)],
				   flat_within(x, segment->shift, f->place_mask), f->place_mask);
	const struct flat_record *record = &f->records[flat_settle(f, f->records, place, x)];

	return x - record->rel < record->npages ? record : NULL;
}

#endif
