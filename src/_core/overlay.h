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
 * The edited ranges of frames are also listed, for a batch that leaves its section (held_index.h).  Inside a section
 * the marks suffice.
 *
 * An address space has at most two overlays that the writer marks: the current one, which lookups use, and the coming
 * one, whose index is being made.  A reader that has made an index replaces the current overlay.  The former one is
 * retired: the writer frees it after its next grace period.
 *
 * Invariants
 *   O1  in every state that a section can see since the overlay was begun, a frame of a block without mark has the
 *       answer of the index;
 *   O2  the blocks of each range in the list are marked.  If the list has not overflowed and the index is not
 *       incomplete, a frame outside of the ranges has the answer of the index in the states of O1;
 *   O3  an overlay in reach of lookups is the current one, or it was retired after the last grace period began.
 *
 * Locking: the holder of slots_lock sets marks, captures and frees retired overlays.  Any thread retires one.
 * Ordering (rows of docs/locking.md)
 *   "edit marks"    relaxed: the store of `active` that publishes an edit comes after its marks;
 *   "edited ranges" the number of ranges: store release, load acquire;
 *   "overlays"      coming and current: seq_cst.  A reader stores coming before it removes it from there, and current
 *                   before it clears coming.  The writer loads them in the other order, so it misses none.
 * Cost: marking an edit O(1) for a slot of a few blocks, never more than O(blocks); a test one load.
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
	_Atomic uint32_t nr_ranges; /* room + 1: the list has overflowed */
	_Atomic uint32_t nr_marked; /* blocks */
	_Atomic uint32_t spent; /* every block is marked for ever: the VM is closed */
	struct overlay *next; /* in a list of retired overlays */
	struct memory *memory;
	size_t size; /* of the allocation, in bytes */
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

/* Whether a block, or each block, of [begin, end) is marked.  The range is not empty.  A slot is the same in all states
 * since the overlay was begun if one of its blocks is not marked, because an edit marks all of them. */
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

/* Whether an edit of [begin, end) is in the list.  Also true if the list has overflowed or is long. */
bool overlay_may_be_edited(const struct overlay *o, uint64_t begin, uint64_t end);

/* Whether O2 says something: the edited ranges are all that the index does not know. */
static inline bool overlay_has_all_ranges(const struct overlay *o)
{
	return !o->incomplete && !overlay_has_overflowed(o);
}

/* If there are at most OVERLAY_HULL_MAX edited ranges, they are all that the index does not know, and they are near to
 * each other: the range from the first to the last of them.  Otherwise returns false. */
#define OVERLAY_HULL_MAX 4u
#define OVERLAY_HULL_SHARE 64u /* it has at most this part of the blocks */
bool overlay_hull(const struct overlay *o, struct gfn_range *hull);

/* Whether an edit was marked since the overlay was begun. */
static inline bool overlay_has_marks(const struct overlay *o)
{
	return overlay_nr_ranges(o) != 0;
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

/* Around a change, for the writer.  With the store of `coming` and the load of `change` by the reader that begins an
 * overlay: either the writer sees that overlay at each edit of this change, or the reader sees that a change is under
 * way.  A close never ends. */
static inline void overlays_begin_change(struct overlays *all)
{
	uint64_t now = atomic_load_explicit(&all->change, memory_order_relaxed);

	atomic_store_explicit(&all->change, now | 1, memory_order_seq_cst);
}

static inline void overlays_end_change(struct overlays *all)
{
	uint64_t now = atomic_load_explicit(&all->change, memory_order_relaxed);

	if (now & 1)
		atomic_store_explicit(&all->change, now + 1, memory_order_release);
}

/* Whether the writer must mark its edits.  A reader moves an overlay from coming to current.  To find it in one of
 * them, look at coming first. */
static inline bool overlays_exist(const struct overlays *all)
{
	return atomic_load_explicit(&all->coming, memory_order_seq_cst) ||
	       atomic_load_explicit(&all->current, memory_order_seq_cst);
}

/* For the writer, before the edit of slots with these frames is published. */
void overlays_mark(struct overlays *all, uint64_t begin, uint64_t end);

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
