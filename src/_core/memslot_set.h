/* SPDX-License-Identifier: MIT */
/*
 * memslot_set.h - one memslot, one set of them, and the table of calls that a design of sets is.
 *
 * An address space has two sets: readers use the active one, the writer edits the inactive one.  What every design
 * shares is here: the values of a slot, the generation and the hint of a set.  How a design finds its slots is its
 * own affair behind struct memslot_design; tree_set.h is KVM's since Linux 5.17.
 *
 * Invariants of a set at rest (check.c walks them)
 *   M1  slots ascend by base_gfn and do not overlap;
 *   M2  both sets of an address space hold the same slots, or the inactive one none, as the design stores them;
 *   M3  a slot knows the sets it is in (`sets`), and each index of a set holds exactly its `nr` slots;
 *   M4  nr_memslot_pages and nr_memslots of the VM are the sums over all slots;
 *   M5  no slot is INVALID;
 *   M6  last_used_slot is NULL or a slot of the set;
 *   M7  generations: settled, as_id modulo the number of address spaces, the inactive set's not the newer;
 *   M8  a slot has a dirty log if and only if LOG_DIRTY_PAGES is set, of its own npages;
 *   M9  a slot respects the limits of its VM and address space, and hva.last follows from npages;
 *   M10 a vCPU's hint of the current generation is NULL or a slot of the active set;
 *   M11 the index of a set, and what the next one would be derived from, are its slots.
 *
 * Locking: a set is edited under slots_lock while no reader can reach it; a slot that readers can reach never changes
 * but for its dirty bits and for the nodes that belong to the other set.
 * Ordering (rows "generation" and "last_used_slot"): relaxed; what is read through them was published by the active
 * word of the VM.
 */
#ifndef MS_MEMSLOT_SET_H
#define MS_MEMSLOT_SET_H

#include "dirty_log.h"
#include "flat_patch.h"
#include "id_hash.h"
#include "include/memslots.h"
#include "interval_tree.h"

/* What is known of a slot in every design.  hva.start is userspace_addr. */
struct memslot {
	uint64_t base_gfn;
	uint64_t npages;
	struct interval hva;
	struct dirty_log *dirty; /* one reference, or NULL */
	uint32_t id;
	uint32_t flags;
	uint16_t as_id;
	uint8_t sets; /* bit node_idx: it is in that set */
};

static inline bool memslot_contains(const struct memslot *slot, uint64_t gfn)
{
	return gfn - slot->base_gfn < slot->npages; /* one compare: below base_gfn it wraps to something large */
}

static inline uint64_t hva_of(const struct memslot *slot, uint64_t gfn)
{
	return slot->hva.start + ((gfn - slot->base_gfn) << MS_PAGE_SHIFT);
}

static inline struct ms_memslot memslot_value(const struct memslot *slot)
{
	return (struct ms_memslot){
		.base_gfn = slot->base_gfn,
		.npages = slot->npages,
		.userspace_addr = slot->hva.start,
		.id = slot->id,
		.as_id = slot->as_id,
		.flags = slot->flags,
	};
}

struct memslot_set {
	/* What a lookup by gfn begins with.  An edit leaves this line alone unless the root moves. */
	cache_aligned struct rb_root gfn_tree;
	_Atomic(struct flat_index *) index; /* one reference, or NULL: vm_index.h */
	uint32_t node_idx; /* 0 or 1 for ever: its place in the address space, and which nodes of a slot are its own */
	void *store;       /* of the designs other than "tree" */

	/* Readers write these. */
	cache_aligned _Atomic(struct memslot *) last_used_slot;
	_Atomic uint64_t walked; /* lookups without an index since the set was published; row "counters" */
	_Atomic uint32_t worth_copy;   /* states with lookups enough for a copy of an index; row "counters" */
	_Atomic uint32_t walk_backoff; /* walks for an index since the last copy of one; row "counters" */

	/* What each edit or swap writes. */
	cache_aligned _Atomic uint64_t generation;
	size_t nr;
	struct flat_patch *patch; /* the writer's: what the next index can be derived from, or NULL */
	struct interval_tree hva_tree;
	struct id_hash ids;
};

_Static_assert(offsetof(struct memslot_set, store) < CACHE_LINE &&
		       offsetof(struct memslot_set, last_used_slot) == CACHE_LINE &&
		       offsetof(struct memslot_set, generation) == 2 * CACHE_LINE,
	       "what readers read, what they write, and what writers write are lines of their own");

/* The writer's, of a set without readers: no index, and nothing to derive one from. */
static inline void set_index_forget(struct memslot_set *set)
{
	flat_put(atomic_load_explicit(&set->index, memory_order_relaxed));
	atomic_store_explicit(&set->index, NULL, memory_order_relaxed);
	patch_destroy(set->patch);
	set->patch = NULL;
}

struct address_space {
	struct memslot_set set[2];
	const struct ms_config *config;
	struct {
		struct id_link **buckets; /* for the set that is active when a change begins, see tree_begin() */
		unsigned bits;
	} spare;
	_Atomic uint64_t hash_grows; /* row "counters" */
};

typedef void memslot_visit_fn(void *context, const struct memslot *slot);

/*
 * A design of sets: how slots are stored and found.  Two ways are known to the writer:
 *
 *   shares_slots      a slot is one object in both sets, which are alike at rest; replace() is given such objects, and
 *                     the writer makes each edit in one set after the other;
 *   no shares_slots   a set stores copies of its own; at rest only the active one stores any.  begin() makes the
 *                     inactive one a copy, resync() makes it one again, end() takes what is left over; replace() goes
 *                     by the ids and copies what it is given.
 */
struct memslot_design {
	const char *name;
	bool shares_slots;
	bool indexed; /* its sets may have an index, see vm_index.h */

	void (*init)(struct memslot_set *set);
	struct memslot *(*alloc_slot)(struct memory *memory); /* zeroed */
	void (*free_slot)(struct memory *memory, struct memslot *slot);
	/* Whether `slot`, any pointer at all, is a slot of alloc_slot() that is not freed.  Reads nothing through a pointer
	 * that is not.  Only of a design whose slots have handles (update.h); else NULL. */
	bool (*has_slot)(const struct memory *memory, const struct memslot *slot);

	/* Lookups, by readers in a section or by the writer. */
	struct memslot *(*search)(const struct memslot_set *set, uint64_t gfn); /* the one that contains gfn */
	/* The same for n of them, as few as tree_set.h's TREE_LANES; NULL where it would be no faster. */
	void (*search_many)(const struct memslot_set *set, const uint64_t *gfns, struct memslot **slots, size_t n);
	struct memslot *(*find)(const struct memslot_set *set, uint32_t id);
	struct memslot *(*first_from)(const struct memslot_set *set, uint64_t gfn); /* the first that ends beyond gfn */
	struct memslot *(*next)(const struct memslot_set *set, const struct memslot *slot); /* by gfn */
	/* Shows each slot that has a host byte in [start, last], start <= last, in whatever order comes cheap; says
	 * whether that was the order of (hva.start, base_gfn). */
	bool (*hva_range)(const struct memslot_set *set, uint64_t start, uint64_t last, memslot_visit_fn *visit,
			  void *context);

	/* The writer.  `private` is the inactive set.  begin() allocates what `more` slots may want (-ENOMEM, or 0 and
	 * what could not be had is done without); replace() and resync() cannot fail; follow() is told when the twin
	 * has become the private one; resync, follow and end may be NULL. */
	int (*begin)(struct memory *memory, struct address_space *as, struct memslot_set *private, size_t more);
	void (*replace)(struct memslot_set *private, struct memslot *old, struct memslot *new_slot);
	void (*resync)(struct memslot_set *private, const struct memslot_set *active);
	void (*follow)(struct memory *memory, struct address_space *as, struct memslot_set *private);
	void (*end)(struct memory *memory, struct address_space *as, struct memslot_set *private);

	/* Forgets every slot; frees them too where both sets are forgotten. */
	void (*empty)(struct memory *memory, struct memslot_set *set, bool free_slots);

	/* The design's own invariants: a letter and a number, 0 when all hold. */
	int (*check)(const struct memslot_set *set, char *letter);
};

/* The definition of a design in its own file, under a name that the linker may see. */
#define DESIGN_OF(name) ms_##name##_design

#define DESIGN(name) extern const struct memslot_design DESIGN_OF(name);
#include "designs.h"
#undef DESIGN

/* kvm_copy_memslot(): the values and the log, not the membership. */
static inline void memslot_copy(struct memslot *to, const struct memslot *from)
{
	to->base_gfn = from->base_gfn;
	to->npages = from->npages;
	to->hva = from->hva;
	to->dirty = dirty_log_get(from->dirty);
	to->id = from->id;
	to->flags = from->flags;
	to->as_id = from->as_id;
}

/* A slot gives back its log with itself. */
static inline void memslot_free(const struct memslot_design *design, struct memory *memory, struct memslot *slot)
{
	if (slot) {
		dirty_log_put(memory, slot->dirty);
		design->free_slot(memory, slot);
	}
}

#endif
