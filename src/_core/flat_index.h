/* SPDX-License-Identifier: MIT */
/*
 * flat_index.h - the slots of one set as values in flat arrays, for many lookups by gfn.
 *
 * A tree is the right authority and the wrong thing to walk a million times.  This index is derived from a set, never
 * changes, holds no pointer into it, and is counted by reference: who holds it needs no read section.
 *
 *   gfn ─> segment: the runs of slots between the largest holes; most layouts are one
 *       ─> bucket:  the high bits of x = gfn - segment.first say after which record to look, and where the next begins
 *       ─> record:  that one, or one of the next few; x - rel < npages decides between a hit and a hole
 *
 * A bucket has a place in its lower bits, and in those above how far into the bucket the record after that place
 * begins, so that the first compare needs no record.  Frames are relative to their segment and fit 32 bits; a sentinel
 * that no x reaches ends each segment.  INVALID slots are left out: to those who ask for addresses or ids they are holes.
 *
 * Invariants
 *   F1  records ascend by rel within a segment, segments by first, and do not overlap;
 *   F2  a bucket's place is that of the last record that begins at or before the bucket's first frame; above it stands
 *       the last frame of the bucket that the next record leaves, as flat_within() has it;
 *   F3  records, sentinels left out, are the slots of the set that are not INVALID.
 *
 * Ordering: immutable once published (row "index" of docs/locking.md); references are row "index references".
 * Cost: find O(1) where slots spread evenly between the largest holes, O(log n) at worst; building O(n); at most 26
 * bytes a slot, and a few lines of its own; about 60 more a segment.
 */
#ifndef MS_FLAT_INDEX_H
#define MS_FLAT_INDEX_H

#include "include/memslots.h"
#include "memory.h"

/* One slot, on the way into an index or out of it. */
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
	uint64_t delta; /* userspace_addr - (base_gfn << 12), and FLAT_READONLY below the page bits */
};

#define FLAT_READONLY ((uint64_t)1)
#define FLAT_DELTA_FLAGS ((uint64_t)4095)
#define FLAT_SENTINEL UINT32_MAX /* a rel that no x reaches: extents are smaller */

struct flat_segment {
	uint64_t first;  /* gfn of x = 0 */
	uint64_t extent; /* x is at most this: one past the last frame */
	uint32_t bucket; /* of x = 0 */
	uint32_t last;   /* the last record's place; the sentinel follows */
	uint32_t shift;  /* frames of a bucket, as bits */
};

/* Up to so many slots are compared all at once, without a bucket. */
#define FLAT_FEW 8

struct flat_few {
	uint64_t base[FLAT_FEW], npages[FLAT_FEW], delta[FLAT_FEW];
};

struct flat_index {
	cache_aligned const uint32_t *buckets;
	const struct flat_record *records;
	const struct flat_segment *segments;
	const uint64_t *firsts; /* of the segments, side by side */
	const uint32_t *ids; /* by the place of the record */
	uint32_t nr_segments;
	uint32_t nr; /* slots */
	uint32_t place_mask; /* the bits of a bucket that are a place */
	bool large;  /* beyond the caches next to a core: prefetching pays */
	bool larger; /* most of it is in memory: more so */
	bool for_one; /* a single lookup takes it; a walk among so few slots, or of so many segments, is as quick */
	struct flat_few *few; /* NULL: more than FLAT_FEW slots */

	cache_aligned _Atomic uint64_t refs; /* written by whoever holds it, so away from the rest */
	struct memory *memory;
	size_t size; /* of the allocation, in bytes */
};

/* From entries that ascend and do not overlap; with one reference.  NULL: no memory. */
struct flat_index *flat_create(struct memory *memory, const struct flat_entry *entries, size_t nr);

/* Walks the slots of an index by ascending gfn: start from { .index = f }; false at the end. */
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

/* The number of the first of F1, F2 that does not hold, 0 when both do. */
int flat_check(const struct flat_index *f);

const struct flat_segment *flat_find_segment(const struct flat_index *f, uint64_t gfn);

static inline const struct flat_segment *flat_segment_of(const struct flat_index *f, uint64_t gfn)
{
	return likely(f->nr_segments == 1) ? f->segments : flat_find_segment(f, gfn);
}

/* Frames outside of the segment, before it too, are taken to its end, which is in no slot. */
static inline uint32_t flat_x(const struct flat_segment *segment, uint64_t gfn)
{
	uint64_t x = gfn - segment->first;

	return (uint32_t)(x < segment->extent ? x : segment->extent);
}

/* From a place whose record begins at or before x to the last one of its segment that does.  O(log n). */
uint32_t flat_far(const struct flat_index *f, uint32_t place, uint32_t x);

/* How far x is into its bucket: its bits there, from the top down, as many of them as a bucket has room for. */
static inline uint32_t flat_within(uint64_t x, uint32_t shift, uint32_t place_mask)
{
	return (uint32_t)(x << (32 - shift)) & ~place_mask;
}

/*
 * The first two steps without a branch; a third is rare where slots spread evenly.  This one is made where the next
 * record is certain to begin at or before x: what a bucket has no room for is rounded down in x and in what the record
 * leaves.
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
	return unlikely(records[place + 1].rel <= x) ? flat_far(f, place, x) : place;
}

/* __gfn_to_hva_many() for one page of a record, NULL being a hole: `deny` is FLAT_READONLY for those who will write. */
static inline uint64_t flat_hva(const struct flat_record *record, uint64_t address, uint64_t deny)
{
	if (!record)
		return MS_HVA_ERR_BAD;
	if (record->delta & deny)
		return MS_HVA_ERR_RO_BAD;
	return (record->delta & ~FLAT_DELTA_FLAGS) + address;
}

/* The record that has gfn, or NULL. */
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
