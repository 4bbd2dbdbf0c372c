/* SPDX-License-Identifier: MIT */
/*
 * flat_index.c - see flat_index.h for the invariants F1 to F3; flat_builder.c makes an index.
 */
#include "flat_index.h"

void flat_put(struct flat_index *f)
{
	if (f && atomic_fetch_sub_explicit(&f->refs, 1, memory_order_acq_rel) == 1)
		memory_free_lines(f->memory, f, f->size);
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

/* The number of begins at or before x. */
static uint32_t search_begins(const uint32_t *begins, uint32_t nr, uint32_t x)
{
	uint32_t low = 0, high = nr;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (begins[middle] <= x)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The same, without a branch that depends on x. */
static uint32_t count_begins(const uint32_t *begins, uint32_t nr, uint32_t x)
{
	uint32_t before = 0;

	for (uint32_t k = 0; k < nr; k++)
		before += begins[k] <= x;
	return before;
}

/* Nearly all lists are this short. */
#define SHORT_LIST 8

/* The first piece of the bucket, plus the number of begins at or before x. */
uint32_t flat_piece_in_list(const struct flat_index *f, uint64_t word, uint32_t x)
{
	const uint32_t *list = flat_list(f, word);
	uint32_t before =
		likely(*list <= SHORT_LIST) ? count_begins(list + 1, *list, x) : search_begins(list + 1, *list, x);

	return (uint32_t)(word & FLAT_PIECE_MASK) + before;
}

/* ---- walking ---- */

/* The first x with a scaled value of at least `scaled`. */
static uint32_t x_of(const struct flat_segment *segment, uint64_t scaled)
{
	return (uint32_t)((scaled + segment->scale - 1) / segment->scale);
}

static uint32_t first_of_bucket(const struct flat_segment *segment, uint32_t bucket)
{
	return x_of(segment, (uint64_t)bucket << 32);
}

/* The k-th begin of a word; its highest bit is FLAT_BEGUN. */
static uint64_t begin_in(uint64_t word, uint32_t k)
{
	return word >> (FLAT_PIECE_BITS + k * FLAT_BEGIN_BITS) & (2 * FLAT_BEGUN - 1);
}

static uint32_t nr_begins(const struct flat_index *f, uint64_t word)
{
	uint32_t nr = 0;

	if (flat_overfull(word))
		return *flat_list(f, word);
	while (nr < FLAT_BEGINS && begin_in(word, nr) & FLAT_BEGUN)
		nr++;
	return nr;
}

/* The x of the k-th begin in a bucket with this word. */
static uint32_t x_of_begin(const struct flat_index *f, const struct flat_segment *segment, uint32_t bucket,
			   uint64_t word, uint32_t k)
{
	if (flat_overfull(word))
		return flat_list(f, word)[1 + k];
	return x_of(segment, (uint64_t)bucket << 32 | (begin_in(word, k) - FLAT_BEGUN) << FLAT_POSITION_SHIFT);
}

/* Moves to the next piece of the segment.  The present piece must not be the last one. */
static void advance(struct flat_cursor *c, const struct flat_segment *segment)
{
	for (;; c->bucket++) {
		uint64_t word = c->index->buckets[segment->bucket + c->bucket];
		uint32_t first = word & FLAT_PIECE_MASK;

		if (first > c->piece) {
			c->x = first_of_bucket(segment, c->bucket);
			break;
		}
		if (c->piece - first < nr_begins(c->index, word)) {
			c->x = x_of_begin(c->index, segment, c->bucket, word, c->piece - first);
			break;
		}
	}
	c->piece++;
}

/* The slot that begins at one cursor and ends at the other. */
static struct flat_entry entry_between(const struct flat_cursor *from, const struct flat_cursor *to)
{
	const struct flat_segment *segment = &from->index->segments[from->segment];
	uint64_t base = segment->first + from->x, delta = from->index->deltas[segment->piece + from->piece];

	return (struct flat_entry){
		.base_gfn = base,
		.hva = ((delta & ~FLAT_DELTA_FLAGS) + (base << MS_PAGE_SHIFT)) | (delta & FLAT_READONLY),
		.npages = to->x - from->x,
		.id = flat_id(from->index, from->slot),
	};
}

bool flat_next(struct flat_cursor *c, struct flat_entry *entry)
{
	const struct flat_index *f = c->index;

	while (c->segment < f->nr_segments) {
		const struct flat_segment *segment = &f->segments[c->segment];
		struct flat_cursor from = *c;

		if (c->piece + 1 == segment->pieces) {
			*c = (struct flat_cursor){ .index = f, .segment = c->segment + 1, .slot = c->slot };
			continue;
		}
		advance(c, segment);
		if (f->deltas[segment->piece + from.piece] & FLAT_HOLE)
			continue;
		*entry = entry_between(&from, c);
		c->slot++;
		return true;
	}
	return false;
}

/* ---- check ---- */

/* The part of a segment that is checked: the number of its pieces; the last one begins at x. */
struct seen {
	uint32_t pieces, x;
};

/* A piece begins at x, which must be behind the begin of the last one. */
static bool see(struct seen *seen, uint64_t x)
{
	bool ascends = !seen->pieces || x > seen->x;

	seen->pieces++;
	seen->x = (uint32_t)x;
	return ascends;
}

/* F2 for one begin of a bucket. */
static bool begin_is_valid(const struct flat_segment *segment, uint32_t bucket, uint64_t word, uint32_t k, uint32_t x)
{
	uint64_t scaled = flat_scaled(segment, x);

	if (scaled >> 32 != bucket || x > segment->extent || x == first_of_bucket(segment, bucket))
		return false;
	return flat_overfull(word) || begin_in(word, k) == (FLAT_BEGUN | (uint32_t)scaled >> FLAT_POSITION_SHIFT);
}

static bool bucket_is_valid(const struct flat_index *f, const struct flat_segment *segment, uint32_t bucket,
			    struct seen *seen)
{
	uint64_t word = f->buckets[segment->bucket + bucket];
	uint32_t first = word & FLAT_PIECE_MASK, nr = nr_begins(f, word);

	if (first == seen->pieces && !see(seen, first_of_bucket(segment, bucket)))
		return false;
	if (first + 1 != seen->pieces)
		return false;
	for (uint32_t k = 0; k < nr; k++) {
		uint32_t x = x_of_begin(f, segment, bucket, word, k);

		if (!begin_is_valid(segment, bucket, word, k, x) || !see(seen, x))
			return false;
	}
	for (uint32_t k = nr; k < FLAT_BEGINS; k++)
		if (!flat_overfull(word) && begin_in(word, k))
			return false;
	return true;
}

static bool buckets_are_valid(const struct flat_index *f, const struct flat_segment *segment, struct seen *seen)
{
	uint64_t last = flat_scaled(segment, segment->extent) >> 32;

	for (uint32_t i = 0; i <= last; i++)
		if (!bucket_is_valid(f, segment, i, seen))
			return false;
	return true;
}

/* F3 for one piece behind `slots` slots. */
static bool rank_is_valid(const struct flat_index *f, uint32_t piece, uint32_t slots)
{
	uint64_t delta = f->deltas[piece];

	if (piece % FLAT_GROUP == 0 && f->ranks[piece / FLAT_GROUP] != slots)
		return false;
	return delta & FLAT_HOLE ? delta == FLAT_HOLE : flat_slot(f, delta, piece) == slots;
}

/* F1 and F3 for the deltas of a segment. */
static int check_deltas(const struct flat_index *f, const struct flat_segment *segment, uint32_t *slots)
{
	bool hole = false;

	for (uint32_t i = segment->piece; i < segment->piece + segment->pieces; i++) {
		bool after_hole = hole;

		hole = f->deltas[i] & FLAT_HOLE;
		if (hole && after_hole)
			return 1;
		if (!rank_is_valid(f, i, *slots))
			return 3;
		*slots += !hole;
	}
	return hole ? 0 : 1;
}

static int check_segment(const struct flat_index *f, const struct flat_segment *segment, uint32_t *slots)
{
	struct seen seen = { 0 };

	if (!segment->scale)
		return 1;
	if (!buckets_are_valid(f, segment, &seen))
		return 2;
	if (seen.pieces != segment->pieces || seen.x != segment->extent)
		return 1;
	return check_deltas(f, segment, slots);
}

/* Whether a segment begins where the one before it ends. */
static bool follows(const struct flat_segment *segment, const struct flat_segment *before)
{
	return segment->first >= before->first + before->extent && segment->piece == before->piece + before->pieces &&
	       segment->bucket == before->bucket + (flat_scaled(before, before->extent) >> 32) + 1;
}

static bool same_segment(const struct flat_segment *a, const struct flat_segment *b)
{
	return a->first == b->first && a->scale == b->scale && a->extent == b->extent && a->piece == b->piece &&
	       a->bucket == b->bucket && a->pieces == b->pieces;
}

static bool words_are_valid(const struct flat_index *f, uint32_t i)
{
	const struct flat_segment *segment = &f->segments[i];

	return f->firsts[i] == segment->first &&
	       flat_shapes(f)[i] == ((uint64_t)segment->extent << 32 | segment->scale) &&
	       flat_places(f)[i] == ((uint64_t)segment->bucket << 32 | segment->piece);
}

int flat_check(const struct flat_index *f)
{
	uint32_t slots = 0;

	if (!same_segment(&f->only, f->segments) || f->only.piece || f->only.bucket)
		return 1;
	for (uint32_t i = 0; i < f->nr_segments; i++) {
		const struct flat_segment *segment = &f->segments[i];
		int r;

		if (!words_are_valid(f, i) || (i && !follows(segment, segment - 1)))
			return 1;
		r = check_segment(f, segment, &slots);
		if (r)
			return r;
	}
	return slots == f->nr ? 0 : 3;
}
