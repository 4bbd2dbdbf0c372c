/* SPDX-License-Identifier: MIT */
/*
 * overlay.h - an index, and marks on the frames that the writer has edited since the index was begun.
 *
 * An index never changes, but the slots do.  So each index is published together with marks: one bit for each block of
 * frames.  Before the writer publishes an edit, it marks the blocks of the slots that it adds or removes.  A lookup of
 * a frame in a marked block walks the set, which is always right.  Every other lookup uses the index.  So an index
 * serves lookups through any number of changes, and the writer neither makes nor copies nor frees an index for an edit.
 *
 *   gfn ─> block: (gfn >> shift) modulo the number of blocks
 *       ─> its mark: 1: walk the set; 0: the answer of the index
 *
 * One mark stands for many distant blocks.  An edit in one of them costs lookups in the others a redundant walk.
 * An overlay also has a short list of *differences* for each of the two sets: the slots that only the index has, and
 * those that only the set has.  The writer edits the list of a set together with the set, when no reader is in it.  An
 * edit that restores a slot takes the entry out again.  When both lists lack it, the writer removes the marks of the
 * slot.  So slots that come and go leave nothing behind.  If a list is full, the lists are *lost*: from then on no mark
 * goes, and the edited ranges of frames are listed, as many as there is room for.
 *
 * A batch in a section compares its frames with the differences of its set, if they are near to each other, and
 * otherwise with the marks.  A batch that leaves its section copies what it needs (held_index.h).
 *
 * An address space has at most two overlays that the writer marks: the current one, which lookups use, and the coming
 * one, whose index is being made.  A reader that has made an index replaces the current overlay.  The former one is
 * retired: the writer frees it after its next grace period.
 *
 * Invariants
 *   O1  in every state that a section can see since the overlay was begun, a frame of a block without mark has the
 *       answer of the index;
 *   O2  if the lists are lost: the blocks of each edited range are marked.  Unless the list of ranges has overflowed
 *       or the index is incomplete, a frame outside of the ranges has the answer of the index in the states of O1.
 *       A slot that was edited lies in one of the ranges, so a new index leaves out the slots that do.  A slot that
 *       was not edited has no frame of a range, because the writer lists a place after the check that it is free;
 *   O3  an overlay in reach of lookups is the current one, or it was retired after the last grace period began;
 *   O4  if the lists are not lost: the slots of a set are those of the index, without the `gone` slots of its list and
 *       with the others.  The marked blocks are those of the slots in the two lists.
 *
 * Why the writer may remove marks: it edits a set without readers.  If the slot is in neither list afterwards, the
 * other set, which readers use, has had it as the index for some time, and this set has it again (O4).  So no state
 * that a reader can see needs the marks.  A reader that still sees them walks, and the walk is right.  A batch that
 * copies the marks in its section finds those of all differences of its set: the writer does not edit that list
 * meanwhile.  A reader that makes an index may find marks gone that it saw before (`skipped` of struct index_build).
 *
 * Until the index is made, "the index" of O4 is the state in which the overlay was begun.  The index is made of this
 * state: with the gone slots of the set in which a piece is gathered, and without its new ones.  A change that was
 * under way at that moment may have missed some of its edits.  At its end, when both sets are equal, it begins the
 * overlay again: without marks, differences and ranges.  Until then no reader uses the overlay.
 *
 * Locking: the holder of slots_lock sets and removes marks, captures and frees retired overlays.  Any thread retires
 * one.
 * Ordering (rows of docs/locking.md)
 *   "edit marks"    relaxed: the store of `active` that publishes an edit comes after its marks;
 *   "differences"   plain, as the links of a set; `lost`: store release, load acquire.  Its store comes before that of
 *                   `active`, so a section that sees an edit which is in no list sees `lost`;
 *   "edited ranges" the number of ranges: store release, load acquire;
 *   "overlays"      coming and current: seq_cst.  A reader stores coming before it removes it from there, and current
 *                   before it clears coming.  The writer loads them in the other order, so it misses none.
 * Cost: marking an edit O(1) for a slot of a few blocks, never more than O(blocks); removing the marks the same, with
 * one comparison for each word of marks and each difference; a search in a list at most OVERLAY_EDITS_MAX comparisons;
 * a test of a mark one load.
 */
#ifndef MS_OVERLAY_H
#define MS_OVERLAY_H

#include "flat_index.h"
#include "points.h"

/* The number of blocks, a power of two: at least so many for each slot, so that an edit marks few frames of other
 * slots, as long as the marks fit the first-level cache. */
#define OVERLAY_BLOCKS_PER_SLOT 4u
#define OVERLAY_BLOCKS_MIN 64u
#define OVERLAY_BLOCKS_MAX 131072u

struct gfn_range {
	uint64_t begin, end;
};

/* The differences between a set and the index.  The number of entries fills two cache lines. */
#define OVERLAY_EDITS_MAX 5u
struct overlay_edits {
	cache_aligned uint32_t nr;
	uint32_t gone; /* a bit for each entry: 1: only the index has the slot; 0: only the set has it */
	struct flat_entry entry[OVERLAY_EDITS_MAX];
};

struct overlay {
	cache_aligned struct flat_index *index; /* one reference; NULL until it is made */
	_Atomic uint64_t *marks; /* a bit for each block, 64 in a word */
	struct gfn_range *ranges;
	uint32_t room;       /* for ranges */
	uint32_t block_mask; /* the number of blocks - 1 */
	uint32_t shift;      /* a block has 1 << shift frames */
	bool for_one;        /* of the index */
	bool incomplete;     /* the index lacks slots that may be outside of the ranges: O2 says nothing */

	/* Holders and the writer write these. */
	cache_aligned _Atomic uint64_t refs;
	_Atomic uint32_t nr_ranges; /* 0 until the lists are lost; room + 1: the list has overflowed */
	_Atomic uint32_t nr_marked; /* blocks */
	_Atomic uint32_t spent; /* every block is marked for ever: the VM is closed */
	_Atomic uint32_t lost; /* the lists of differences are not kept any more */
	bool has_all_edits; /* a change has begun since the overlay is `coming`; for the writer */
	struct overlay *next; /* in a list of retired overlays */
	struct memory *memory;
	size_t size; /* of the allocation, in bytes */
	struct overlay_edits edits[2]; /* by set; the writer changes those of a set when no reader is in it */
};

/* Makes an overlay without marks and without an index, with one reference, for about nr slots that are typically
 * 1 << distance_shift frames apart.  NULL: no memory. */
struct overlay *overlay_create(struct memory *memory, size_t nr, uint32_t distance_shift);

static inline struct overlay *overlay_get(struct overlay *o)
{
	atomic_fetch_add_explicit(&o->refs, 1, memory_order_relaxed);
	return o;
}

void overlay_put(struct overlay *o); /* NULL is fine */

/* The marks, for values that are gfns shifted to the left by `shift` bits. */
struct overlay_marks {
	const _Atomic uint64_t *marks;
	uint64_t block_mask;
	unsigned shift;
};

static inline struct overlay_marks overlay_marks(const struct overlay *o, unsigned shift)
{
	return (struct overlay_marks){ o->marks, o->block_mask, o->shift + shift };
}

/* Bit 0 is the mark; the other bits are those of other blocks. */
static inline uint64_t overlay_mark_of(const struct overlay_marks *m, uint64_t value)
{
	uint64_t block = value >> m->shift & m->block_mask;

	return atomic_load_explicit(&m->marks[block / 64], memory_order_relaxed) >> block % 64;
}

static inline bool overlay_marked(const struct overlay *o, uint64_t gfn)
{
	struct overlay_marks marks = overlay_marks(o, 0);

	return overlay_mark_of(&marks, gfn) & 1;
}

/* Whether a block, or each block, of [begin, end) is marked.  The range is not empty.  A slot is the same in the index
 * and in all states that a section can still see if one of its blocks is not marked: the marks of an edit are all there
 * until the last state that needs them is out of sight. */
bool overlay_any_marked(const struct overlay *o, uint64_t begin, uint64_t end);
bool overlay_all_marked(const struct overlay *o, uint64_t begin, uint64_t end);

/* Whether at most one slot of so many has changed, as far as the number of marked blocks shows it: an edit of a typical
 * slot marks at least one block.  A stale number costs time only. */
static inline bool overlay_has_few_marks(const struct overlay *o, uint32_t of)
{
	uint64_t marked = atomic_load_explicit(&o->nr_marked, memory_order_relaxed);

	return marked * of <= ((uint64_t)o->block_mask + 1) / OVERLAY_BLOCKS_PER_SLOT;
}

static inline uint32_t overlay_nr_ranges(const struct overlay *o)
{
	return atomic_load_explicit(&o->nr_ranges, memory_order_acquire);
}

static inline bool overlay_has_overflowed(const struct overlay *o)
{
	return overlay_nr_ranges(o) > o->room;
}

/* A search in the list of ranges takes at most this many compares. */
#define OVERLAY_SEARCH_MAX 1024u

static inline bool overlay_list_is_long(const struct overlay *o)
{
	return overlay_has_overflowed(o) || overlay_nr_ranges(o) > OVERLAY_SEARCH_MAX;
}

/* Whether [begin, end) lies in one of the listed ranges.  Also true if the list has overflowed or is long. */
bool overlay_may_be_edited(const struct overlay *o, uint64_t begin, uint64_t end);

/* Whether O2 says something: the edited ranges are all that the index does not know. */
static inline bool overlay_has_all_ranges(const struct overlay *o)
{
	return !o->incomplete && !overlay_has_overflowed(o);
}

/* Inside a section of the set: if all that the index does not know is near to each other, the range from the first to
 * the last of it.  Otherwise, or if there are more than OVERLAY_HULL_MAX edited ranges, returns false. */
#define OVERLAY_HULL_MAX 4u
#define OVERLAY_HULL_SHARE 64u /* it has at most this part of the blocks */
bool overlay_hull(const struct overlay *o, uint32_t set, struct gfn_range *hull);

static inline bool overlay_is_narrow(const struct overlay *o, const struct gfn_range *hull)
{
	return (hull->end - hull->begin) >> o->shift <= o->block_mask / OVERLAY_HULL_SHARE;
}

/* Inside a section of the set, or for the writer: copies the ranges outside of which the index has the right answer.
 * Returns their number; or -1 if they are not known, or more than `room`.  With NULL it counts them. */
int64_t overlay_unknown(const struct overlay *o, uint32_t set, struct gfn_range *ranges, size_t room);

/* The number of words of marks. */
static inline size_t overlay_nr_words(const struct overlay *o)
{
	return ((size_t)o->block_mask + 1) / 64;
}

/* ---- the differences between a set and the index ---- */

/* Inside a section of the set, or for the writer: NULL if they are not known. */
static inline const struct overlay_edits *overlay_edits(const struct overlay *o, uint32_t set)
{
	return atomic_load_explicit(&o->lost, memory_order_acquire) ? NULL : &o->edits[set];
}

static inline bool overlay_edit_is_gone(const struct overlay_edits *edits, uint32_t i)
{
	return edits->gone >> i & 1;
}

/* Whether the list has this entry. */
bool overlay_has_edit(const struct overlay_edits *edits, const struct flat_entry *entry, bool gone);

/* Inside a section of the set: whether the index answers every frame. */
static inline bool overlay_answers_all(const struct overlay *o, uint32_t set)
{
	const struct overlay_edits *edits = overlay_edits(o, set);

	return edits && !edits->nr;
}

/* Whether O2 holds, as far as the overlay alone shows it. */
bool overlay_is_valid(const struct overlay *o);

/* ---- the overlays of one address space ---- */

struct overlays {
	cache_aligned _Atomic(struct overlay *) coming; /* one reference, or NULL */
	_Atomic(struct overlay *) current; /* one reference, or NULL */
	_Atomic(struct overlay *) retired; /* a list, with one reference to each */
	struct overlay *expiring; /* the retired ones that the next grace period covers; for the writer */
	_Atomic uint64_t change; /* 2n: n changes are complete; 2n + 1: another one is under way; row "change" */
};

/* For the writer, at the end of a change, for an overlay that was begun during this change: it begins again. */
void overlay_begin_lists(struct overlay *o);

/* Around a change, for the writer.  With the store of `coming` and the load of `change` by the reader that begins an
 * overlay: either the writer sees that overlay at each edit of this change, or the reader sees that a change is under
 * way.  A close never ends. */
static inline void overlays_begin_change(struct overlays *all)
{
	uint64_t now = atomic_load_explicit(&all->change, memory_order_relaxed);
	struct overlay *coming;

	atomic_store_explicit(&all->change, now | 1, memory_order_seq_cst);
	coming = atomic_load_explicit(&all->coming, memory_order_seq_cst);
	if (unlikely(coming))
		coming->has_all_edits = true;
}

static inline void overlays_end_change(struct overlays *all)
{
	uint64_t now = atomic_load_explicit(&all->change, memory_order_relaxed);
	struct overlay *coming = atomic_load_explicit(&all->coming, memory_order_seq_cst);

	if (!(now & 1))
		return;
	if (unlikely(coming && !coming->has_all_edits))
		overlay_begin_lists(coming);
	atomic_store_explicit(&all->change, now + 1, memory_order_release);
}

/* Whether the writer must mark its edits.  A reader moves an overlay from coming to current.  To find it in one of
 * them, look at coming first. */
static inline bool overlays_exist(const struct overlays *all)
{
	return atomic_load_explicit(&all->coming, memory_order_seq_cst) ||
	       atomic_load_explicit(&all->current, memory_order_seq_cst);
}

/* For the writer, before an edit of these frames is published. */
void overlays_mark(struct overlays *all, uint64_t begin, uint64_t end);

/* For the writer, while no reader is in the set: the set loses (gone) or gets this slot. */
void overlays_edit(struct overlays *all, uint32_t set, const struct flat_entry *slot, bool gone);

/* The same, if the writer edits a set in another way. */
void overlays_lose_edits(struct overlays *all);

/* For the writer, before it publishes a set without slots: marks every block for ever. */
void overlays_spend(struct overlays *all);

/* The overlay is neither current nor coming any more.  NULL is fine. */
void overlays_retire(struct overlays *all, struct overlay *o);

void overlays_capture_retired(struct overlays *all);
void overlays_free_captured(struct overlays *all);

/* For the writer, before it publishes: the grace period that follows covers the overlays that are retired by now. */
static inline void overlays_capture(struct overlays *all)
{
	if (unlikely(atomic_load_explicit(&all->retired, memory_order_relaxed)))
		overlays_capture_retired(all);
}

/* After that grace period. */
static inline void overlays_expire(struct overlays *all)
{
	if (unlikely(all->expiring))
		overlays_free_captured(all);
}

/* For a VM that no thread uses any more. */
void overlays_free(struct overlays *all);

#endif
