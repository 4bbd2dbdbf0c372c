/* SPDX-License-Identifier: MIT */
/*
 * oracle.h - the states that readers may see, and whether the answers of a call match one of them.
 *
 * Slots are incarnations: a CREATE makes a new one, and its host address contains its number, id and address space.
 * The words of its host memory, if it has a backing, contain these and the page.  Each of the first IDS ids has two
 * places of its own in the guest, so a MOVE never meets another slot.  The members of the group share their places:
 * transactions permute them (permute.c).
 *
 * Before each change the writer notes the states that readers may see from then on, in order; the generation of a set
 * gives the number of its state.  A reader
 *
 *	inside a section        knows the state by its generation, and each answer has one right value;
 *	outside of sections     gets answers that all match one state, from the last whose grace period was over before
 *	                        the call to the last that was noted after it.  This state is never older than one that
 *	                        an earlier call of the same thread has seen.
 *
 * A section in state s must end before the grace period after s ends: the record has a histogram of their ages.
 *
 * Ordering: the writer stores entries, then counts, with release; readers load them with acquire.
 */
#ifndef MS_TORTURE_ORACLE_H
#define MS_TORTURE_ORACLE_H

#include "memory.h"

#define IDS 24u
#define FEW_IDS 7u /* ids in play in every other round: few enough for an index that compares all at once */
#define PLACE_PAGES 64u

/* The members of the group have the first places of the guest.  One more id is the upper part of a member that a SPLIT
 * has cut, until a MERGE. */
#define MEMBERS 4u
#define GROUP IDS /* the id of the first member */
#define UPPER_PART (GROUP + MEMBERS)
#define GROUP_PLACES (MEMBERS + 1) /* one is free */
#define PART_BEGIN (PLACE_PAGES / 2) /* the first page of the upper part; a member has more pages, unless it is split */

#define PLACES (GROUP_PLACES + 2 * IDS)
#define NEAR_GFNS ((GROUP_PLACES + 4) * (uint64_t)PLACE_PAGES) /* the group and two ids */
#define GFNS ((uint64_t)PLACES * PLACE_PAGES)
#define BATCH_MAX (2 * MS_BATCH_POLL + 5000)

/* The keeper is one more slot, which keeps its log from the first state to the close: no mark in it may be lost.  Each
 * reader has a part of its pages (PART_WORDS of bits, more than a piece of a batch). */
#define KEEPER (UPPER_PART + 1)
#define KEEPER_SPACE 1u
#define KEEPER_GFN ((uint64_t)1 << 30)
#define KEEPER_HVA ((uint64_t)1 << 62)
#define RAW_HVA ((uint64_t)1 << 60) /* plus the stamp: the address of a slot without a backing, far from real memory */
#define PART_PAGES (PART_WORDS * 64)
#define KEEPER_WORDS (READERS_MAX * PART_WORDS)
#define KEEPER_PAGES (KEEPER_WORDS * 64)
#define KEEPER_GROWS 3u /* to at most so many times these pages */

/* ---- words: the slot with an id in one state; 0: there is none ---- */

#define PRESENT ((uint64_t)1)
#define LOGS ((uint64_t)2)
#define READONLY ((uint64_t)4)
#define INVALID ((uint64_t)8)
#define AT_SECOND ((uint64_t)16) /* at the second of its two places */
#define BACKED ((uint64_t)32) /* the slot has host memory; it was made by ms_map_backing() */
#define GROUPED ((uint64_t)64) /* a slot of the group, with the fields below */
#define INCARNATION_SHIFT 8
#define INCARNATION_BITS 36

/* The word of a slot of the group: its place, the member whose memory it has, and its pages of this memory. */
#define PLACE_AT 44
#define MEMBER_AT 47
#define FIRST_AT 49
#define LAST_AT 55

static inline uint64_t field_of(uint64_t word, unsigned at, unsigned bits)
{
	return word >> at & (((uint64_t)1 << bits) - 1);
}

static inline uint64_t with_field(uint64_t word, unsigned at, unsigned bits, uint64_t value)
{
	return (word & ~((((uint64_t)1 << bits) - 1) << at)) | value << at;
}

static inline uint64_t place_of_slot(uint64_t word)
{
	return field_of(word, PLACE_AT, 3);
}

static inline uint32_t member_of(uint64_t word)
{
	return (uint32_t)field_of(word, MEMBER_AT, 2);
}

static inline uint64_t first_of(uint64_t word)
{
	return field_of(word, FIRST_AT, 6);
}

static inline uint64_t last_of(uint64_t word)
{
	return field_of(word, LAST_AT, 6);
}

static inline uint64_t incarnation_of(uint64_t word)
{
	return field_of(word, INCARNATION_SHIFT, INCARNATION_BITS);
}

static inline uint64_t npages_of(uint64_t word)
{
	if (word & GROUPED)
		return last_of(word) - first_of(word) + 1;
	return incarnation_of(word) % 3 ? PLACE_PAGES : 1 + incarnation_of(word) % PLACE_PAGES;
}

static inline uint64_t base_of(uint32_t id, uint64_t word)
{
	if (word & GROUPED)
		return place_of_slot(word) * PLACE_PAGES + first_of(word);
	return (GROUP_PLACES + 2 * id + !!(word & AT_SECOND)) * (uint64_t)PLACE_PAGES;
}

#define INCARNATION_AT 24 /* of a stamp; the incarnations that share these bits of an address take turns */
#define SLOT_BYTES ((uint64_t)PLACE_PAGES * MS_PAGE_SIZE)

/* Names the incarnation.  Bits: offset in the slot from 0, id from 18, address space 23, incarnation from 24. */
static inline uint64_t stamp_for(uint32_t as_id, uint32_t id, uint64_t word)
{
	uint64_t owner = word & GROUPED ? GROUP + member_of(word) : id;

	return incarnation_of(word) << INCARNATION_AT | (uint64_t)as_id << 23 | owner << 18;
}

/*
 * Each aligned word of host memory is the stamp plus its offset in the slot.  Writes of the test change only the bits
 * TICKS.  The offset follows from the gpa, because the places of slots are aligned to SLOT_BYTES.
 */
#define TICKS ((uint64_t)7)
static_assert(SLOT_BYTES == 1 << 18 && KEEPER < 32 && SPACES == 2, "the parts of a stamp must not overlap");
static_assert(INCARNATION_SHIFT + INCARNATION_BITS <= PLACE_AT && INCARNATION_AT + INCARNATION_BITS <= 60,
	      "the parts of a word and of an address must not overlap");

static inline uint64_t hva_for(uint32_t as_id, uint32_t id, uint64_t word)
{
	uint64_t stamp = stamp_for(as_id, id, word), first = word & GROUPED ? first_of(word) * MS_PAGE_SIZE : 0;

	return (word & BACKED ? (uint64_t)(uintptr_t)memory_window + stamp % MEMORY_WINDOW : RAW_HVA + stamp) + first;
}

static inline uint32_t flags_of(uint64_t word)
{
	return (word & LOGS ? MS_MEM_LOG_DIRTY_PAGES : 0) | (word & READONLY ? MS_MEM_READONLY : 0) |
	       (word & INVALID ? MS_MEMSLOT_INVALID : 0);
}

/* ---- states ---- */

extern _Atomic uint64_t noted[SPACES]; /* the last state that readers may see */
extern _Atomic uint64_t over[SPACES]; /* the last one whose grace period is over: no reader sees an older one */

void oracle_reset(void);

/* The word of the id from this state on.  The writer calls it, and then publishes the state in noted[]. */
void note_word(uint32_t as_id, uint32_t id, uint64_t from, uint64_t word);

/* ---- calls ---- */

/* One call: its arguments and its answers. */
struct call {
	const char *what;
	uint32_t as_id;
	uint64_t lo, hi; /* the states that the answers may match */
	uint64_t begun; /* the last state that was noted when it began */
	bool write;
	bool writable; /* an answer of ms_gfn_to_hva_prot() */
	size_t n;
	uint64_t *in, *out; /* BATCH_MAX of each */
	int32_t *ids;
	ptrdiff_t step; /* of a batch: its first value is at place `at`, the next ones `step` places on */
	size_t at;
	uint64_t low; /* bits of an address below its frame */
	bool ended; /* by its poll */
	uint32_t sections; /* open when it was made */
	struct ms_memslot slot[PLACES + 1];
	uint64_t start, end;
	/* A copy: the bytes are in `out`, but a call for one value that fails stores none. */
	uint64_t gpa;
	size_t bytes;
	bool one_value;
	int result;
	struct ms_error err;
};

struct call *new_call(void);
void free_call(struct call *call);

/* The place of the batch's i-th value in `in`, `out` and `ids`. */
static inline size_t place_of(const struct call *c, size_t i)
{
	return c->at + (size_t)((ptrdiff_t)i * c->step);
}

enum verdict { MATCHES, DIFFERS, UNKNOWN };
typedef enum verdict match_fn(const struct call *call, uint64_t state);

match_fn match_hvas, match_prot, match_ids, match_visible;
match_fn match_slot, match_id; /* one slot, or none (n 0) */
match_fn match_gfn_range, match_hva_range; /* all slots in [start, end) by gfn, in [start, end] by host address */
match_fn match_preview; /* all slots of the state, with the members where the preview moves them */
match_fn match_copy, match_values; /* the bytes and the result of a copy; of a batch of values */

/* The steps of a preview move this member to this frame. */
static inline uint64_t preview_gfn(uint32_t id)
{
	return 3 * KEEPER_GFN + (id - GROUP) * (uint64_t)PLACE_PAGES;
}

#define NO_STATE (~(uint64_t)0)

/* Counts the answers of a call, and reports them if they match none of its states.  Returns the state that they match,
 * or NO_STATE. */
uint64_t check_call(const struct call *call, match_fn *match, uint64_t answers);

#endif
