/* SPDX-License-Identifier: MIT */
/*
 * flat_builder.c - makes an index in steps of bounded work; see flat_index.h for the parts of an index.
 *
 *   HOLES   finds the largest holes
 *   PLAN    cuts the entries into segments and computes the size of each
 *   FILL    writes the arrays
 *
 * Each phase goes over all entries.  The size of the lists of over-full buckets is an estimate.  If they take more,
 * FILL counts how much, and there is a second FILL with a new index.
 */
#include "flat_index.h"

#include <string.h>

/* Only this many of the largest holes may separate segments. */
#define HOLES_MAX 31

/* A hole separates two segments if it is at least 1 / HOLE_SHARE of the frames that buckets would otherwise cover. */
#define HOLE_SHARE 4

/* The origin of a segment moves by less than ORIGIN_MAX frames.  Every x fits 32 bits. */
#define ORIGIN_MAX ((uint64_t)1 << 19)
#define EXTENT_MAX (UINT32_MAX - 1 - ORIGIN_MAX)

/* The number of a piece fits its bits in a bucket. */
#define PIECES_MAX ((size_t)1 << FLAT_PIECE_BITS)

/* A bucket of four frames is never over-full.  From SCALE_EXACT on each frame of a bucket has a position of its own. */
#define SCALE_MAX ((uint64_t)1 << 30)
#define SCALE_EXACT ((uint64_t)1 << FLAT_POSITION_SHIFT)

/* The number of buckets for three pieces; fewer if a slot would take more than SLOT_BYTES.  An index without slots and
 * the record of its first reader take about HEAD_BYTES.  With the overlay a slot takes up to 32 bytes. */
#define BUCKETS_FOR_3_PIECES 4
#define SLOT_BYTES 30
#define HEAD_BYTES 1024

/* A segment of fewer slots has as many buckets as are useful. */
#define SMALL_SEGMENT 128

/* The estimate: one word of a list for so many pieces. */
#define PIECES_FOR_LIST 8

/* An index is faster for single lookups if it has at least this many slots for each segment.  A step of the search for
 * the segment costs as much as a level of the tree. */
#define FOR_ONE 8

/* A slot is at most so many pieces, with its hole. */
#define PIECES_OF_SLOT 2

/* FILL writes so many words behind the present bucket.  Most buckets are among them, and need no step of their own. */
#define AHEAD 2

#define SEGMENTS_BUILT_IN (HOLES_MAX + 1)

enum phase { HOLES, PLAN, FILL };

struct hole {
	uint64_t length;
	size_t entry; /* the first entry behind the hole */
};

/* A segment that PLAN has begun. */
struct draft {
	uint64_t first, end; /* gfns */
	size_t slots, pieces;
};

/* Where FILL is: in a bucket of a segment. */
struct filler {
	size_t segment, entry;
	uint64_t end;    /* the gfn behind the last slot */
	uint32_t slots;  /* behind the filler */
	uint32_t pieces; /* that have begun in the segment */
	uint32_t bucket; /* counted from segment.bucket */
	uint32_t begins; /* in the bucket */
	uint64_t word;   /* of the bucket so far */
	uint32_t overfull;   /* the bucket needs a list */
	size_t spill;    /* the place of its list */
};

/* The arrays of an index. */
struct arrays {
	struct flat_segment *segments;
	uint64_t *firsts, *buckets, *deltas; /* `firsts` has shapes and places too */
	uint32_t *ranks, *spill;
	uint16_t *ids, *high; /* `high` is NULL without wide ids */
};

struct flat_builder {
	struct memory *memory;
	size_t room, nr; /* of entries */
	bool wide_ids; /* an id has more than 16 bits */
	enum phase phase;
	size_t at;           /* HOLES, PLAN: the next entry */
	struct hole holes[HOLES_MAX];
	size_t nr_holes;
	size_t hole;         /* PLAN: the next hole */
	struct draft draft;
	struct flat_segment *segments;
	struct flat_segment built_in[SEGMENTS_BUILT_IN];
	size_t nr_segments, room_segments;
	uint64_t pieces, buckets, spill; /* the sizes of the arrays; `spill` is an estimate at first */
	struct filler filler;
	struct flat_index *index; /* FILL; before that NULL */
	struct arrays to;         /* those of the index */
	struct flat_entry entries[];
};

/* FILL reads an entry behind the last one. */
static size_t size_of_builder(size_t room)
{
	return sizeof(struct flat_builder) + (room + 1) * sizeof(struct flat_entry);
}

static uint64_t end_of(const struct flat_entry *entry)
{
	return entry->base_gfn + entry->npages;
}

/* ---- holes ---- */

/* A hole is kept if it is larger. */
static uint64_t least_hole(const struct flat_builder *b)
{
	return b->nr_holes == HOLES_MAX ? b->holes[HOLES_MAX - 1].length : 0;
}

/* `holes` keeps the largest ones, by descending length. */
static void keep_hole(struct flat_builder *b, struct hole hole)
{
	size_t i;

	if (b->nr_holes < HOLES_MAX)
		b->nr_holes++;
	for (i = b->nr_holes - 1; i && b->holes[i - 1].length < hole.length; i--)
		b->holes[i] = b->holes[i - 1];
	b->holes[i] = hole;
}

static void sort_by_entry(struct hole *holes, size_t nr)
{
	for (size_t i = 1; i < nr; i++) {
		struct hole hole = holes[i];
		size_t k = i;

		for (; k && holes[k - 1].entry > hole.entry; k--)
			holes[k] = holes[k - 1];
		holes[k] = hole;
	}
}

/* Chooses the holes between segments, largest first.  `left` is the number of frames that buckets must cover without
 * the holes chosen so far. */
static void choose_holes(struct flat_builder *b)
{
	uint64_t left = end_of(&b->entries[b->nr - 1]) - b->entries[0].base_gfn;
	size_t chosen = 0;

	while (chosen < b->nr_holes && b->holes[chosen].length >= left / HOLE_SHARE)
		left -= b->holes[chosen++].length;
	b->nr_holes = chosen;
	sort_by_entry(b->holes, chosen);
}

/* Returns whether the phase is over. */
static bool find_holes(struct flat_builder *b, size_t slots)
{
	for (; b->at < b->nr && slots; b->at++, slots--) {
		uint64_t length = b->at ? b->entries[b->at].base_gfn - end_of(&b->entries[b->at - 1]) : 0;

		if (length > least_hole(b))
			keep_hole(b, (struct hole){ length, b->at });
	}
	if (b->at < b->nr)
		return false;
	if (b->nr)
		choose_holes(b);
	return true;
}

/* ---- plan ---- */

static size_t size_of_id(const struct flat_builder *b)
{
	return b->wide_ids ? 2 * sizeof(uint16_t) : sizeof(uint16_t);
}

static bool reserve_segment(struct flat_builder *b)
{
	size_t room = 2 * b->room_segments;
	struct flat_segment *more;

	if (b->nr_segments < b->room_segments)
		return true;
	more = memory_zalloc(b->memory, room * sizeof(*more));
	if (!more)
		return false;
	memcpy(more, b->segments, b->nr_segments * sizeof(*more));
	if (b->segments != b->built_in)
		memory_free(b->memory, b->segments, b->room_segments * sizeof(*more));
	b->segments = more;
	b->room_segments = room;
	return true;
}

/* As many as the bytes of the slots permit, but one for two pieces at least.  `id` is the size of an id. */
static uint64_t wanted_buckets(const struct draft *d, size_t id)
{
	uint64_t wanted = (uint64_t)d->pieces * BUCKETS_FOR_3_PIECES / 3 + 1, least = d->pieces / 2 + 1;
	uint64_t bytes = (uint64_t)d->slots * SLOT_BYTES;
	uint64_t taken = HEAD_BYTES + d->slots * id + d->pieces * sizeof(uint64_t) +
			 d->pieces / PIECES_FOR_LIST * sizeof(uint32_t);
	uint64_t room = bytes > taken ? (bytes - taken) / sizeof(uint64_t) : 0;

	if (d->slots < SMALL_SEGMENT || wanted <= room)
		return wanted;
	return room > least ? room : least;
}

/* With fewer positions than frames in a bucket, the bucket has a power of two of frames: begins are often multiples of
 * such a number. */
static uint32_t scale_for(uint64_t extent, uint64_t buckets)
{
	uint64_t scale = (buckets << 32) / (extent + 1);

	if (scale > SCALE_MAX)
		return (uint32_t)SCALE_MAX;
	if (scale >= SCALE_EXACT)
		return (uint32_t)scale;
	return scale > 1 ? (uint32_t)((uint64_t)2 << (63 - __builtin_clzll(scale - 1))) : 1;
}

/* In wide buckets only multiples of a power of two have a position.  If the origin is one too, the begins are those of
 * gfns.  `free_from` is the end of the segment before. */
static uint64_t origin_for(const struct draft *d, uint32_t scale, uint64_t free_from)
{
	uint64_t unit = scale < SCALE_EXACT ? SCALE_EXACT / scale : 1, origin = d->first & ~(unit - 1);

	return origin >= free_from ? origin : d->first;
}

/* Appends the segment of the draft. */
static void end_draft(struct flat_builder *b)
{
	struct draft *d = &b->draft;
	const struct flat_segment *before = b->nr_segments ? &b->segments[b->nr_segments - 1] : NULL;
	uint32_t scale = scale_for(d->end - d->first, wanted_buckets(d, size_of_id(b)));
	uint64_t origin = origin_for(d, scale, before ? before->first + before->extent : 0);
	struct flat_segment *segment = &b->segments[b->nr_segments++];

	*segment = (struct flat_segment){
		.first = origin,
		.scale = scale,
		.extent = (uint32_t)(d->end - origin),
		.piece = (uint32_t)b->pieces,
		.bucket = (uint32_t)b->buckets,
		.pieces = (uint32_t)(d->pieces + 1 + (origin < d->first)),
	};
	b->pieces += segment->pieces;
	b->buckets += (flat_scaled(segment, segment->extent) >> 32) + 1;
	*d = (struct draft){ 0 };
}

/* Whether the next entry begins another segment than the draft.  There must be room for a hole before the entry, and
 * for those at both ends of the segment. */
static bool leaves_draft(struct flat_builder *b)
{
	bool behind_hole = b->hole < b->nr_holes && b->holes[b->hole].entry == b->at;

	b->hole += behind_hole;
	return behind_hole || end_of(&b->entries[b->at]) - b->draft.first > EXTENT_MAX ||
	       b->draft.pieces + 4 > PIECES_MAX;
}

static void add_to_draft(struct draft *d, const struct flat_entry *entry)
{
	if (!d->pieces)
		d->first = d->end = entry->base_gfn;
	d->pieces += 1 + (entry->base_gfn > d->end);
	d->slots++;
	d->end = end_of(entry);
}

/* An index without slots has one segment with one piece, which is a hole. */
static enum flat_built plan(struct flat_builder *b, size_t slots)
{
	for (; b->at < b->nr && slots; b->at++, slots--) {
		if (b->at && leaves_draft(b))
			end_draft(b);
		if (!reserve_segment(b))
			return FLAT_BUILD_NO_MEMORY;
		add_to_draft(&b->draft, &b->entries[b->at]);
	}
	if (b->at < b->nr)
		return FLAT_BUILD_MORE;
	end_draft(b);
	return FLAT_BUILD_DONE;
}

/* ---- fill ---- */

/* An over-full bucket ends: its word refers to its list.  If the list has no room, there is another FILL. */
static void end_list(struct flat_builder *b, const struct flat_segment *segment)
{
	struct filler *t = &b->filler;
	uint64_t first = t->word & FLAT_PIECE_MASK;

	b->to.buckets[segment->bucket + t->bucket] = FLAT_OVERFULL | (uint64_t)t->spill << FLAT_PIECE_BITS | first;
	if (t->spill < b->spill)
		b->to.spill[t->spill] = t->begins;
	t->spill += 1 + t->begins;
	t->overfull = false;
}

static void end_bucket(struct flat_builder *b, const struct flat_segment *segment)
{
	if (unlikely(b->filler.overfull))
		end_list(b, segment);
}

/* Moves to the next bucket, in which no piece has begun. */
static void skip_bucket(struct flat_builder *b, const struct flat_segment *segment)
{
	struct filler *t = &b->filler;

	end_bucket(b, segment);
	t->bucket++;
	t->begins = 0;
	t->word = t->pieces - 1;
	b->to.buckets[segment->bucket + t->bucket + AHEAD] = t->word;
}

/* Writes the present word, and words for the next buckets, in which no piece has begun so far.  They may belong to the
 * next segment, which writes its own words later. */
static void write_words(struct flat_builder *b, const struct flat_segment *segment)
{
	struct filler *t = &b->filler;
	uint64_t *at = &b->to.buckets[segment->bucket + t->bucket];

	at[0] = t->word;
	for (int i = 1; i <= AHEAD; i++)
		at[i] = t->pieces - 1;
}

/*
 * The next piece begins at x.  The code has no branch on whether x is in the present bucket, which no branch predictor
 * foresees.  The x of every begin goes behind the lists: if the bucket becomes over-full, this is its list.
 */
static void begin_piece(struct flat_builder *b, const struct flat_segment *segment, uint32_t x)
{
	struct filler *t = &b->filler;
	uint64_t scaled = flat_scaled(segment, x), before = scaled - segment->scale; /* of x - 1; wraps for 0 */
	uint32_t bucket = (uint32_t)(scaled >> 32), position = (uint32_t)scaled >> FLAT_POSITION_SHIFT;
	uint64_t other = -(uint64_t)(bucket != t->bucket), inside = before >> 32 == bucket;
	uint32_t inexact = (uint32_t)before >> FLAT_POSITION_SHIFT == position;

	opaque(other);
	opaque(inside);
	if (unlikely(t->overfull && other))
		end_list(b, segment);
	t->bucket = bucket;
	t->begins &= (uint32_t)~other;
	t->word = (t->word & ~other) | ((t->pieces - 1) & other);
	if (likely(t->begins < FLAT_BEGINS))
		t->word |= (FLAT_BEGUN | position) * inside << (FLAT_PIECE_BITS + t->begins * FLAT_BEGIN_BITS);
	t->word += 1 - inside; /* at its first frame the bucket has the number of this piece */
	t->begins += (uint32_t)inside;
	t->overfull |= (t->begins > FLAT_BEGINS) | (inexact & (uint32_t)inside);
	t->pieces++;
	write_words(b, segment);
	if (likely(t->spill + t->begins < b->spill))
		b->to.spill[t->spill + t->begins] = x;
}

/* Writes the delta of the next piece, and the id of its slot.  A hole writes the id of the next slot, which writes it
 * again. */
static void write_delta(struct flat_builder *b, const struct flat_segment *segment, const struct flat_entry *entry,
			uint64_t slot)
{
	struct filler *t = &b->filler;
	uint32_t piece = segment->piece + t->pieces, *rank = &b->to.ranks[piece / FLAT_GROUP];
	uint64_t delta = entry->hva - (entry->base_gfn << MS_PAGE_SHIFT);

	if (unlikely(piece % FLAT_GROUP == 0))
		*rank = t->slots;
	delta += (uint64_t)(t->slots - *rank) << FLAT_RANK_SHIFT;
	b->to.deltas[piece] = (delta & -slot) | (FLAT_HOLE & (slot - 1));
	b->to.ids[t->slots] = (uint16_t)entry->id;
	if (unlikely(b->to.high))
		b->to.high[t->slots] = (uint16_t)(entry->id >> 16);
}

static void begin_segment(struct flat_builder *b, size_t segment)
{
	struct filler *t = &b->filler;

	*t = (struct filler){ .segment = segment, .entry = t->entry, .slots = t->slots, .spill = t->spill };
	t->word = ~(uint64_t)0; /* one less than the number of the first piece */
	if (segment < b->nr_segments)
		t->end = b->segments[segment].first;
}

/* A piece begins at t->end: the next slot, or the hole before it, or the hole behind the last slot of the segment.
 * There is no branch on whether it is a slot, because no branch predictor foresees it. */
static void fill_piece(struct flat_builder *b, const struct flat_segment *segment)
{
	struct filler *t = &b->filler;
	const struct flat_entry *entry = &b->entries[t->entry];
	uint32_t x = (uint32_t)(t->end - segment->first);
	uint64_t slot = (entry->base_gfn == t->end) & (x != segment->extent);

	opaque(slot);
	write_delta(b, segment, entry, slot);
	begin_piece(b, segment, x);
	t->end = entry->base_gfn + (entry->npages & -slot);
	t->entry += slot;
	t->slots += (uint32_t)slot;
	if (unlikely(x == segment->extent)) {
		end_bucket(b, segment);
		begin_segment(b, t->segment + 1);
	}
}

/* Whether the next piece begins behind the words that are written. */
static bool is_far(const struct filler *t, const struct flat_segment *segment)
{
	return flat_scaled(segment, t->end - segment->first) >> 32 > t->bucket + AHEAD;
}

/* One step is a piece, or a bucket in which no piece begins.  Returns whether the phase is over. */
static bool fill(struct flat_builder *b, size_t slots)
{
	struct filler *t = &b->filler;
	size_t work = slots < SIZE_MAX / PIECES_OF_SLOT ? slots * PIECES_OF_SLOT : SIZE_MAX;

	for (; t->segment < b->nr_segments && work; work--) {
		const struct flat_segment *segment = &b->segments[t->segment];

		if (unlikely(is_far(t, segment)))
			skip_bucket(b, segment);
		else
			fill_piece(b, segment);
	}
	return t->segment == b->nr_segments;
}

/* ---- the index ---- */

/* Reserves room for an array in a block that has `*size` bytes so far, and returns its place. */
static size_t reserve(size_t *size, uint64_t nr, size_t each)
{
	size_t at = *size;

	*size += (size_t)nr * each;
	return at;
}

/* The arrays with the largest members come first. */
static struct flat_index *alloc_index(struct flat_builder *b)
{
	size_t segments = b->nr_segments, copies = segments > 1 ? segments : 0, nr = b->nr;
	size_t size = sizeof(struct flat_index);
	size_t at_segments = reserve(&size, copies, sizeof(struct flat_segment));
	size_t at_few = reserve(&size, nr <= FLAT_FEW, sizeof(struct flat_few));
	size_t at_firsts = reserve(&size, 3 * segments, sizeof(uint64_t));
	size_t at_buckets = reserve(&size, b->buckets + AHEAD, sizeof(uint64_t));
	size_t at_deltas = reserve(&size, b->pieces, sizeof(uint64_t));
	size_t at_ranks = reserve(&size, b->pieces / FLAT_GROUP + 1, sizeof(uint32_t));
	size_t at_spill = reserve(&size, b->spill, sizeof(uint32_t));
	size_t at_ids = reserve(&size, nr + 1, sizeof(uint16_t));
	size_t at_high = reserve(&size, b->wide_ids ? nr + 1 : 0, sizeof(uint16_t));
	char *block = memory_alloc_lines(b->memory, size);
	struct flat_index *f = (struct flat_index *)(void *)block;

	if (!f)
		return NULL;
	b->to = (struct arrays){
		.segments = copies ? (struct flat_segment *)(void *)(block + at_segments) : &f->only,
		.firsts = (uint64_t *)(void *)(block + at_firsts),
		.buckets = (uint64_t *)(void *)(block + at_buckets),
		.deltas = (uint64_t *)(void *)(block + at_deltas),
		.ranks = (uint32_t *)(void *)(block + at_ranks),
		.spill = (uint32_t *)(void *)(block + at_spill),
		.ids = (uint16_t *)(void *)(block + at_ids),
		.high = b->wide_ids ? (uint16_t *)(void *)(block + at_high) : NULL,
	};
	*f = (struct flat_index){
		.only = b->segments[0],
		.buckets = b->to.buckets,
		.deltas = b->to.deltas,
		.nr_segments = (uint32_t)segments,
		.nr = (uint32_t)nr,
		.for_one = nr > FLAT_FEW && nr / segments >= FOR_ONE,
		.spill = b->to.spill,
		.segments = b->to.segments,
		.firsts = b->to.firsts,
		.ids = b->to.ids,
		.high = b->to.high,
		.ranks = b->to.ranks,
		.few = nr <= FLAT_FEW ? (struct flat_few *)(void *)(block + at_few) : NULL,
		.memory = b->memory,
		.size = size,
	};
	atomic_store_explicit(&f->refs, 1, memory_order_relaxed);
	return f;
}

static void fill_few(struct flat_few *few, const struct flat_entry *entries, size_t nr)
{
	for (size_t i = 0; i < FLAT_FEW; i++) {
		few->base[i] = i < nr ? entries[i].base_gfn : ~(uint64_t)0;
		few->npages[i] = i < nr ? entries[i].npages : 0;
		few->delta[i] = i < nr ? entries[i].hva - (entries[i].base_gfn << MS_PAGE_SHIFT) : 0;
	}
}

static void write_segment(const struct flat_builder *b, size_t i)
{
	const struct flat_segment *segment = &b->segments[i];

	b->to.segments[i] = *segment;
	b->to.firsts[i] = segment->first;
	b->to.firsts[b->nr_segments + i] = (uint64_t)segment->extent << 32 | segment->scale;
	b->to.firsts[2 * b->nr_segments + i] = (uint64_t)segment->bucket << 32 | segment->piece;
}

/* Allocates the index, writes everything that needs no walk over the entries, and begins to fill the rest. */
static enum flat_built begin_index(struct flat_builder *b)
{
	b->index = b->spill <= UINT32_MAX ? alloc_index(b) : NULL;
	if (!b->index)
		return FLAT_BUILD_NO_MEMORY;
	for (size_t i = 0; i < b->nr_segments; i++)
		write_segment(b, i);
	b->to.ids[b->nr] = 0; /* the place of the holes behind the last slot */
	if (b->to.high)
		b->to.high[b->nr] = 0;
	if (b->index->few)
		fill_few(b->index->few, b->entries, b->nr);
	b->filler = (struct filler){ 0 };
	begin_segment(b, 0);
	return FLAT_BUILD_MORE;
}

/* The lists took more room than there was.  Now it is known how much they take. */
static enum flat_built begin_index_again(struct flat_builder *b)
{
	flat_put(b->index);
	b->spill = b->filler.spill;
	return begin_index(b);
}

/* ---- the builder ---- */

/* The phase PLAN is over. */
static enum flat_built end_plan(struct flat_builder *b)
{
	b->spill = b->pieces / PIECES_FOR_LIST + FLAT_BEGINS;
	return b->pieces > UINT32_MAX || b->buckets > UINT32_MAX ? FLAT_BUILD_NO_MEMORY : begin_index(b);
}

static enum flat_built end_fill(struct flat_builder *b, struct flat_index **out)
{
	if (b->filler.spill > b->spill)
		return begin_index_again(b);
	*out = b->index;
	b->index = NULL;
	return FLAT_BUILD_DONE;
}

/* Works on the present phase.  FLAT_BUILD_DONE: the phase is over. */
static enum flat_built run_phase(struct flat_builder *b, size_t slots)
{
	if (b->phase == PLAN)
		return plan(b, slots);
	return (b->phase == HOLES ? find_holes(b, slots) : fill(b, slots)) ? FLAT_BUILD_DONE : FLAT_BUILD_MORE;
}

enum flat_built flat_builder_step(struct flat_builder *b, size_t slots, struct flat_index **out)
{
	enum flat_built built = run_phase(b, slots ? slots : 1);

	if (built != FLAT_BUILD_DONE)
		return built;
	if (b->phase == FILL)
		return end_fill(b, out);
	b->at = 0;
	return ++b->phase == FILL ? end_plan(b) : FLAT_BUILD_MORE;
}

struct flat_builder *flat_builder_create(struct memory *memory, size_t room)
{
	struct flat_builder *b = memory_zalloc(memory, size_of_builder(room));

	if (!b)
		return NULL;
	b->memory = memory;
	b->room = room;
	b->segments = b->built_in;
	b->room_segments = SEGMENTS_BUILT_IN;
	return b;
}

void flat_builder_add(struct flat_builder *b, const struct flat_entry *entry)
{
	ms_assert(b->nr < b->room && b->phase == HOLES && !b->at);
	b->entries[b->nr++] = *entry;
	b->wide_ids |= entry->id > UINT16_MAX;
}

void flat_builder_destroy(struct flat_builder *b)
{
	if (!b)
		return;
	if (b->segments != b->built_in)
		memory_free(b->memory, b->segments, b->room_segments * sizeof(*b->segments));
	flat_put(b->index);
	memory_free(b->memory, b, size_of_builder(b->room));
}

struct flat_index *flat_create(struct memory *memory, const struct flat_entry *entries, size_t nr)
{
	struct flat_builder *b = flat_builder_create(memory, nr);
	struct flat_index *index = NULL;

	if (!b)
		return NULL;
	for (size_t i = 0; i < nr; i++)
		flat_builder_add(b, &entries[i]);
	while (flat_builder_step(b, SIZE_MAX, &index) == FLAT_BUILD_MORE)
		continue;
	flat_builder_destroy(b);
	return index;
}
