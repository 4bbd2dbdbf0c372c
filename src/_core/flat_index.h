/* SPDX-License-Identifier: MIT */
/*
 * flat_index.h - the slots of one set as values in flat arrays, for many lookups by gfn.
 *
 * A change of a tree costs O(log n), but a lookup in it waits for memory at each level.  An index is derived from a set
 * and answers with two loads.  It never changes and contains no pointer into the set.  It has a reference count: the
 * holder of a reference needs no read section.
 *
 *   gfn ─> segment: a stretch of frames between two of the largest holes; most layouts have one segment
 *       ─> bucket:  the high bits of (gfn - segment.first) * scale select it; it contains the number of the piece at
 *                   its first frame, and where up to three more pieces begin
 *       ─> piece:   a slot or a hole; its delta is the difference of host address and guest address
 *
 * The pieces of a segment are its slots and its holes, in the order of gfns.  The first piece begins at x = 0, the last
 * one is a hole that begins at x = extent.  Every frame outside of the segment counts as x = extent.  So a lookup needs
 * no comparison with a slot: the piece is the answer.
 *
 * A bucket is a word:
 *
 *   bits 63-50  49-36  35-22   21-0
 *   begin       begin  begin   number of the first piece, counted from segment.piece
 *
 * A begin is FLAT_BEGUN plus the position in the bucket at which the next piece begins; 0 is no begin.  A position has
 * 13 bits: (x * scale) modulo 2^32, without its low 19 bits.  A bucket of at most 2^13 frames gives each of its frames
 * another position.  A wider bucket has a power of two of frames, so that a piece whose begin is a multiple of
 * bucket / 2^13 has an exact position.  A bucket with more than three begins, or with one that has no exact position,
 * is over-full.  Its word has FLAT_OVERFULL and the place of a list in `spill`: the number of begins, then the x of
 * each of them.
 *
 * An index has no INVALID slots, because lookups of addresses and ids treat them as holes.
 *
 * Invariants
 *   F1  segments ascend by first and do not overlap; the pieces of a segment ascend; no two holes are neighbours; the
 *       last piece is a hole that begins at x = extent;
 *   F2  a bucket has the number of the last piece that begins at or before its first frame, and the begin of each other
 *       piece that begins in it, ascending from the low bits; for each begin the position of x - 1 is another one;
 *   F3  the pieces that are not holes are the slots of the set that are not INVALID; the deltas of slots count them.
 *
 * Ordering: immutable once published (row "index" of docs/locking.md); references are row "index references".
 * Cost: find O(1) if the slots between the largest holes are spread evenly, O(log n) at worst; building O(n); at most
 * 32 bytes for each slot with its hole, up to 100 for each segment, and a few cache lines.
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

/* The delta of a slot is userspace_addr - (base_gfn << 12).  Its low 12 bits are flags and a rank: the number of slots
 * before this one among the pieces with the same number / FLAT_GROUP.  The delta of a hole is FLAT_HOLE. */
#define FLAT_READONLY ((uint64_t)1)
#define FLAT_HOLE ((uint64_t)2)
#define FLAT_RANK_SHIFT 2
#define FLAT_GROUP ((uint32_t)1024)
#define FLAT_DELTA_FLAGS ((uint64_t)4095)

struct flat_segment {
	uint64_t first;   /* the gfn of x = 0 */
	uint32_t scale;   /* 2^32 / frames of a bucket */
	uint32_t extent;  /* the number of frames; x is at most this */
	uint32_t piece;   /* the number of the first piece */
	uint32_t bucket;  /* the bucket of x = 0 */
	uint32_t pieces;  /* the number of pieces */
	uint32_t unused;  /* a segment is half a cache line */
};

/* In an index of up to this many slots a batch compares the gfn with all of them at once, without a bucket. */
#define FLAT_FEW 8

struct flat_few {
	uint64_t base[FLAT_FEW], npages[FLAT_FEW], delta[FLAT_FEW];
};

struct flat_index {
	/* A lookup in one segment reads this line, a bucket and a delta. */
	cache_aligned struct flat_segment only; /* a copy of segments[0] */
	const uint64_t *buckets;
	const uint64_t *deltas; /* of pieces */
	uint32_t nr_segments;
	uint32_t nr;  /* slots */
	bool for_one; /* single lookups use it; with few slots, or few for each segment, a walk is as fast */

	const uint32_t *spill;
	const struct flat_segment *segments;
	const uint64_t *firsts; /* those of the segments; then come flat_shapes() and flat_places() */
	const uint16_t *ids;    /* of slots: the low half of each */
	const uint16_t *high;   /* the high halves, or NULL if all are 0 */
	const uint32_t *ranks;  /* by the number of a piece / FLAT_GROUP: the number of slots before these pieces */
	struct flat_few *few;   /* NULL if there are more than FLAT_FEW slots */

	cache_aligned _Atomic uint64_t refs; /* on a line of its own: every holder writes it */
	struct memory *memory;
	size_t size; /* of the allocation, in bytes */
};

/* The id of a slot by its number. */
static inline uint32_t flat_id(const struct flat_index *f, uint32_t slot)
{
	return f->ids[slot] | (f->high ? (uint32_t)f->high[slot] << 16 : 0);
}

/* For vectors: extent << 32 | scale of each segment, and bucket << 32 | piece. */
static inline const uint64_t *flat_shapes(const struct flat_index *f)
{
	return f->firsts + f->nr_segments;
}

static inline const uint64_t *flat_places(const struct flat_index *f)
{
	return f->firsts + 2 * (size_t)f->nr_segments;
}

/* ---- making ---- */

/* Makes an index, with one reference, of entries that ascend and do not overlap.  NULL: no memory. */
struct flat_index *flat_create(struct memory *memory, const struct flat_entry *entries, size_t nr);

/*
 * The same in steps of bounded work.  Add at most `room` entries that ascend and do not overlap, then call
 * flat_builder_step() until it does not return FLAT_BUILD_MORE.  A step does the work of about `slots` slots; each slot
 * is work for several steps.  FLAT_BUILD_DONE stores an index with one reference in *out.
 */
struct flat_builder;

enum flat_built { FLAT_BUILD_MORE, FLAT_BUILD_DONE, FLAT_BUILD_NO_MEMORY };

struct flat_builder *flat_builder_create(struct memory *memory, size_t room); /* NULL: no memory */
void flat_builder_add(struct flat_builder *b, const struct flat_entry *entry);
enum flat_built flat_builder_step(struct flat_builder *b, size_t slots, struct flat_index **out);
void flat_builder_destroy(struct flat_builder *b); /* NULL is fine */

static inline struct flat_index *flat_get(struct flat_index *f)
{
	atomic_fetch_add_explicit(&f->refs, 1, memory_order_relaxed);
	return f;
}

void flat_put(struct flat_index *f); /* NULL is fine */

/* ---- walking ---- */

/* Walks the slots of an index by ascending gfn.  Begin with { .index = f }; flat_next() returns false at the end. */
struct flat_cursor {
	const struct flat_index *index;
	uint32_t segment;
	uint32_t piece, bucket; /* counted from those of the segment; the piece begins at `x` */
	uint32_t x;
	uint32_t slot; /* the number of slots behind the cursor */
};

bool flat_next(struct flat_cursor *cursor, struct flat_entry *entry);

/* Returns the number of the first of F1 to F3 that does not hold, or 0. */
int flat_check(const struct flat_index *f);

/* ---- buckets ---- */

#define FLAT_PIECE_BITS 22
#define FLAT_PIECE_MASK (((uint64_t)1 << FLAT_PIECE_BITS) - 1)
#define FLAT_BEGIN_BITS 14
#define FLAT_BEGINS 3
#define FLAT_BEGUN ((uint64_t)1 << 13)
#define FLAT_POSITION_SHIFT 19
/* No other word is positive and as large: the highest bits of a word are FLAT_BEGUN and a position, or 0. */
#define FLAT_OVERFULL ((uint64_t)1 << 62)

/* For frames outside of the segment, also those before it, x is the end of the segment, which is in no slot. */
static inline uint64_t flat_x(const struct flat_segment *segment, uint64_t gfn)
{
	uint64_t x = gfn - segment->first;

	return x < segment->extent ? x : segment->extent;
}

/* High half: the number of the bucket, counted from segment.bucket.  Low half: how far x is in it, in 1 / 2^32. */
static inline uint64_t flat_scaled(const struct flat_segment *segment, uint64_t x)
{
	return x * segment->scale;
}

/*
 * The position of x, to be compared with a word, whose high bits are a begin: the position is at least the word if the
 * piece begins at or before x.  The low bits of the word do not count, because those of the position are all set.  The
 * numbers are signed: a position is negative, a word with a begin is negative, a word without one is positive.
 */
#define FLAT_AT_SHIFT 31
#define FLAT_AT_BITS ((uint64_t)1 << 63 | (((uint64_t)1 << 50) - 1))

static inline int64_t flat_at(uint64_t scaled)
{
	return (int64_t)(scaled << FLAT_AT_SHIFT | FLAT_AT_BITS);
}

static inline bool flat_overfull(uint64_t word)
{
	return (int64_t)word >= (int64_t)FLAT_OVERFULL;
}

/* The number of the piece that contains x, counted from segment.piece.  The word must not be over-full. */
static inline uint32_t flat_piece_in(uint64_t word, uint64_t scaled)
{
	int64_t at = flat_at(scaled);

	return (uint32_t)(word & FLAT_PIECE_MASK) + (at >= (int64_t)word) + (at >= (int64_t)(word << FLAT_BEGIN_BITS)) +
	       (at >= (int64_t)(word << 2 * FLAT_BEGIN_BITS));
}

/* The list of an over-full bucket: the number of begins, then the x of each of them. */
static inline const uint32_t *flat_list(const struct flat_index *f, uint64_t word)
{
	return &f->spill[(uint32_t)(word >> FLAT_PIECE_BITS)];
}

/* The same as flat_piece_in() for an over-full bucket.  O(log n). */
uint32_t flat_piece_in_list(const struct flat_index *f, uint64_t word, uint32_t x);

/* ---- finding ---- */

const struct flat_segment *flat_find_segment(const struct flat_index *f, uint64_t gfn);

static inline const struct flat_segment *flat_segment_of(const struct flat_index *f, uint64_t gfn)
{
	return likely(f->nr_segments == 1) ? &f->only : flat_find_segment(f, gfn);
}

/* The number of the piece that contains gfn. */
static inline uint32_t flat_piece(const struct flat_index *f, uint64_t gfn)
{
	const struct flat_segment *segment = flat_segment_of(f, gfn);
	uint64_t x = flat_x(segment, gfn), scaled = flat_scaled(segment, x);
	uint64_t word = f->buckets[segment->bucket + (scaled >> 32)];

	if (unlikely(flat_overfull(word)))
		return segment->piece + flat_piece_in_list(f, word, (uint32_t)x);
	return segment->piece + flat_piece_in(word, scaled);
}

/* The delta of the piece that contains gfn, and its number. */
static inline uint64_t flat_word(const struct flat_index *f, uint64_t gfn, uint32_t *piece)
{
	*piece = flat_piece(f, gfn);
	return f->deltas[*piece];
}

/* __gfn_to_hva_many() for one page.  `word` is a delta; `deny` is FLAT_READONLY if the caller will write, else 0. */
static inline uint64_t flat_answer(uint64_t word, uint64_t address, uint64_t deny)
{
	if (word & FLAT_HOLE)
		return MS_HVA_ERR_BAD;
	if (word & deny)
		return MS_HVA_ERR_RO_BAD;
	return (word & ~FLAT_DELTA_FLAGS) + address;
}

/* The place in f->ids of the slot that is this piece, and any place in a hole. */
static inline uint32_t flat_slot(const struct flat_index *f, uint64_t word, uint32_t piece)
{
	return f->ranks[piece / FLAT_GROUP] + (uint32_t)(word & FLAT_DELTA_FLAGS) / (1u << FLAT_RANK_SHIFT);
}

#endif
