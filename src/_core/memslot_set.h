/* SPDX-License-Identifier: MIT */
/*
 * memslot_set.h - a memslot, a set of memslots, and struct memslot_design: the functions of one design of sets.
 *
 * An address space has two sets: readers use the active one, the writer edits the inactive one.  This header has the
 * fields that all designs share: the values of a slot, the generation and the hint of a set.  A design decides how a
 * set stores and finds its slots; tree_set.h is KVM's design since Linux 5.17.
 *
 * Invariants of a set at rest (check.c walks them)
 *   M1  slots ascend by base_gfn and do not overlap;
 *   M2  both sets of an address space hold the same slots (shares_slots), or the inactive one holds none;
 *   M3  a slot knows the sets it is in (`sets`), and each index of a set holds exactly its `nr` slots; `nr_raw` of them
 *       have no backing, and `nr_logged` have a dirty log;
 *   M4  nr_memslot_pages and nr_memslots of the VM are the sums over all slots;
 *   M5  no slot is INVALID, except in the VM of a snapshot;
 *   M6  last_used_slot is NULL or a slot of the set;
 *   M7  generations: settled, as_id modulo the number of address spaces, the inactive set's not the newer;
 *   M8  a slot has a dirty log if and only if LOG_DIRTY_PAGES is set, of its own npages; none has one in the VM of a
 *       snapshot;
 *   M9  a slot respects the limits of its VM and address space, and hva.last follows from npages;
 *   M10 a vCPU's hint of the current generation is a slot of the active set;
 *   M11 the index of a set has the slots of the set, except in marked blocks (O1 of overlay.h) or for the differences
 *       of the set (O4);
 *   M12 each id below used_below of an address space is in use.  So the search for a free id begins there.
 *
 * Locking: the writer edits a set under slots_lock while no reader can reach it.  A slot that readers can reach never
 * changes, except for its dirty bits and for the nodes of the other set.
 * Ordering (rows "generation" and "last_used_slot"): relaxed.  The active word of the VM publishes the slots that
 * readers reach through them.
 */
#ifndef MS_MEMSLOT_SET_H
#define MS_MEMSLOT_SET_H

#include "backing.h"
#include "dirty_log.h"
#include "id_hash.h"
#include "include/memslots.h"
#include "interval_tree.h"
#include "overlay.h"
#include "sort.h"

/* The fields of a slot in every design.  hva.start is userspace_addr.  Each member that a change writes apart from the
 * others has bytes of its own: a load that contains a younger, narrower store waits until that store is in the cache.
 * Bit-fields for flags and as_id next to `sets` cost 3 to 5 % of a change. */
struct memslot {
	uint64_t base_gfn;
	uint32_t npages; /* 32 bits: otherwise a slot of the tree would be longer than three cache lines */
	uint32_t id;
	struct interval hva;
	struct dirty_log *dirty; /* one reference, or NULL */
	struct ms_backing *backing; /* one reference, or NULL: the address may be any number */
	uint32_t flags;
	uint16_t as_id;
	uint8_t sets; /* bit node_idx: the slot is in that set; the others: update.h, update_changes.c and holds.c */
};

_Static_assert(MS_MEM_MAX_NR_PAGES <= UINT32_MAX && MS_ADDRESS_SPACES_MAX <= UINT16_MAX,
	       "npages and as_id fit into their members");

static inline uint64_t memslot_bytes(const struct memslot *slot)
{
	return (uint64_t)slot->npages << MS_PAGE_SHIFT;
}

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
	/* A lookup by gfn begins here.  An edit writes this line only if the root moves. */
	cache_aligned struct rb_root gfn_tree;
	_Atomic(struct overlay *) index; /* the current overlay of the address space, or NULL: vm_index.h */
	uint32_t node_idx; /* 0 or 1, constant: the set's index in the address space and in a slot's arrays of nodes */
	void *store; /* for the design; "tree" has fields of its own */

	/* Readers write these. */
	cache_aligned _Atomic(struct memslot *) last_used_slot;

	/* Each edit or swap writes these. */
	cache_aligned _Atomic uint64_t generation;
	uint32_t nr_raw; /* not next to nr_logged: compilers would update both by vector instructions, which are more */
	size_t nr;
	uint32_t nr_logged;
	struct interval_tree hva_tree;
	struct id_hash ids;
};

_Static_assert(offsetof(struct memslot_set, store) < CACHE_LINE &&
		       offsetof(struct memslot_set, last_used_slot) == CACHE_LINE &&
		       offsetof(struct memslot_set, generation) == 2 * CACHE_LINE,
	       "members that readers read, readers write and writers write are on different cache lines");

/*
 * The index that readers of an address space are making.  One reader at a time advances it by a bounded step; nobody
 * waits.  The reader that has set `busy` uses the other members (row "index build").
 */
struct index_build {
	_Atomic uint32_t busy;
	_Atomic uint32_t running; /* only compared, by all readers */
	uint64_t not_during; /* the change that may have missed the coming overlay; the walk begins after it */
	struct flat_builder *builder; /* the entries and the unfinished index, or NULL */
	uint64_t next_gfn; /* the slots that end at or before it are gathered */
	size_t nr; /* the slots of the set when the walk began */
	bool gathered; /* all slots are */
	struct overlay *base; /* one reference: unmarked slots are copied from it; or NULL */
	struct flat_cursor cursor; /* in the index of base */
	struct flat_entry next; /* the slot of base before the cursor */
	bool more; /* there is one */
	bool skipped; /* the cursor has passed marked slots of base that begin at or after next_gfn */
	_Atomic uint64_t indexed; /* lookups that indexes had answered when the last one was made; row "counters" */
	_Atomic uint32_t patience; /* see vm_index.c; row "counters" */
};

struct address_space {
	struct memslot_set set[2];
	const struct ms_config *config;
	void *spare; /* for the design, between begin() and end(): memory that a change may need; else NULL */
	_Atomic uint64_t hash_grows; /* row "counters" */

	/* The writer uses these at each edit, readers only when they make an index. */
	struct overlays overlays;
	uint32_t used_below; /* every id below it is in use at rest (M12); under slots_lock */
	bool kept; /* the VM is closed, and the inactive set has retired slots (holds.h); under slots_lock */

	/* Readers write these. */
	cache_aligned _Atomic uint64_t walked; /* lookups that a new index would answer; row "counters" */
	struct index_build build;
};

_Static_assert(offsetof(struct address_space, set) == 0, "as_of() needs it");

static inline struct address_space *as_of(const struct memslot_set *set)
{
	return (struct address_space *)(uintptr_t)(set - set->node_idx);
}

/* A change has removed the slot with this id. */
static inline void id_is_free(struct address_space *as, uint32_t id)
{
	if (id < as->used_below)
		as->used_below = id;
}

typedef void memslot_visit_fn(void *context, const struct memslot *slot);

/*
 * How the time of one operation grows with the number of slots.  The first is the slowest one, so that it holds for a
 * design that declares nothing.  The measuring commands give a slow design fewer operations.
 */
enum design_cost {
	COST_WALK, /* with n: follows a pointer to each slot */
	COST_SCAN, /* with n: reads or copies an array of all slots */
	COST_LOG, /* with log n, or not at all */
};

/* The largest number of searches in one call of search_many(). */
#define SEARCH_LANES 32

/*
 * A design of sets: how slots are stored and found.  There are two kinds:
 *
 *   shares_slots      Both sets hold the same objects.  The writer calls replace() for one set, and later for the other
 *                     set, with the same objects.
 *   no shares_slots   Each set stores copies.  At rest the inactive set stores none.  begin() makes it a copy of the
 *                     active set, resync() does so again, end() frees it.  replace() finds `old` by its id, and copies
 *                     new_slot.
 */
struct memslot_design {
	const char *name;
	bool shares_slots;
	bool indexed; /* its sets may have an index, see vm_index.h */
	struct {
		enum design_cost gfn, id, hva, change; /* search(), find(), hva_range(); a change in both sets */
	} costs;

	void (*init)(struct memslot_set *set); /* of a zeroed set; may be NULL */
	struct memslot *(*alloc_slot)(struct memory *memory); /* zeroed */
	void (*free_slot)(struct memory *memory, struct memslot *slot);
	/* Whether `slot`, which may be any pointer, is a slot of alloc_slot() that is not freed.  Reads through the
	 * pointer only if it is.  NULL in a design whose slots have no handles (update.h). */
	bool (*has_slot)(const struct memory *memory, const struct memslot *slot);

	/* Lookups, by readers in a section or by the writer.  Each returns NULL if there is no such slot. */
	struct memslot *(*search)(const struct memslot_set *set, uint64_t gfn); /* the one that contains gfn */
	/* search() for n gfns, n <= SEARCH_LANES.  May be NULL. */
	void (*search_many)(const struct memslot_set *set, const uint64_t *gfns, struct memslot **slots, size_t n);
	struct memslot *(*find)(const struct memslot_set *set, uint32_t id);
	struct memslot *(*first_from)(const struct memslot_set *set, uint64_t gfn); /* the first that ends beyond gfn */
	struct memslot *(*next)(const struct memslot_set *set, const struct memslot *slot); /* by gfn */
	/* Calls visit() for each slot that has a host byte in [start, last], start <= last, in any order.  Returns
	 * whether the order was that of (hva.start, base_gfn). */
	bool (*hva_range)(const struct memslot_set *set, uint64_t start, uint64_t last, memslot_visit_fn *visit,
			  void *context);

	/*
	 * The writer.  `private` is the inactive set.  begin(), resync(), follow() and end() may be NULL.
	 *
	 *   begin    before the first edit: allocates the memory that a change which adds up to `more` slots needs, for
	 *            both sets; 0 or -ENOMEM.  as->spare can hold it.
	 *   replace  old NULL: adds new_slot; new_slot NULL: removes old.  Cannot fail.  See memslot_joins(),
	 *            memslot_leaves() and carry_last_used_slot().
	 *   exchange may be NULL.  For two slots with the same id and hva.start: as replace(), but it leaves the order
	 *            by gfn as it is.  Returns false, and has done nothing, if the order by hva may depend on the gfn.
	 *   replace_by_gfn  not NULL if exchange is not.  The rest of an exchange: as replace(), in the order by gfn
	 *            alone.  If neither slot is NULL, new_slot takes the position of old; their ids may differ.
	 *   build    adds many slots at once.  May be NULL; then the writer adds them one by one.
	 *   mirror   makes the private set equal to the active one, which build() has made.
	 *   follow   only after the last swap of a change: `private` is the former set, and its edits follow.
	 *   end      after a change, also a refused one.  After a refused change, no more memory is in use than before
	 *            begin(), and as->spare is NULL.
	 */
	int (*begin)(struct memory *memory, struct address_space *as, struct memslot_set *private, size_t more);
	void (*replace)(struct memslot_set *private, struct memslot *old, struct memslot *new_slot);
	bool (*exchange)(struct memslot_set *private, struct memslot *old, struct memslot *new_slot);
	void (*replace_by_gfn)(struct memslot_set *private, struct memslot *old, struct memslot *new_slot);
	/* The items are the n slots of the set and the new ones, by gfn and by (hva.start, gfn).  Returns false if a
	 * new slot has the id of another one: nothing has changed then.  See memslot_count(). */
	bool (*build)(struct memslot_set *private, const struct sort_item *by_gfn, const struct sort_item *by_hva,
		      size_t n);
	void (*mirror)(struct memslot_set *private, const struct memslot_set *active, const struct sort_item *by_gfn,
		       size_t n);
	void (*resync)(struct memslot_set *private, const struct memslot_set *active);
	void (*follow)(struct memory *memory, struct address_space *as, struct memslot_set *private);
	void (*end)(struct memory *memory, struct address_space *as, struct memslot_set *private);

	/* Removes every slot from the set; with free_slots it also frees them, with memslot_free(). */
	void (*empty)(struct memory *memory, struct memslot_set *set, bool free_slots);

	/* Checks the design's own invariants: 0, or the letter and the number of a broken one. */
	int (*check)(const struct memslot_set *set, char *letter);
};

/* The name of the design that NAME_set.c defines. */
#define DESIGN_OF(name) ms_##name##_design

#define DESIGN(name) extern const struct memslot_design DESIGN_OF(name);
#include "designs.h"
#undef DESIGN

/* As kvm_copy_memslot(): copies the values and takes references to the log and the backing.  `to` is in no set. */
static inline void memslot_copy(struct memslot *to, const struct memslot *from)
{
	*to = *from;
	to->sets = 0;
	dirty_log_get(to->dirty);
	backing_get(to->backing);
}

static inline bool memslot_is_in(const struct memslot *slot, const struct memslot_set *set)
{
	return slot->sets >> set->node_idx & 1;
}

/* For replace() of a design whose sets share slots. */
static inline void memslot_joins(struct memslot_set *set, struct memslot *slot)
{
	slot->sets |= (uint8_t)(1u << set->node_idx);
	set->nr++;
}

static inline void memslot_leaves(struct memslot_set *set, struct memslot *slot)
{
	slot->sets &= (uint8_t)~(1u << set->node_idx);
	set->nr--;
}

/* `one` is 1 for a slot that is added, and -1 for one that is removed (M3). */
static inline void memslot_count(struct memslot_set *set, const struct memslot *slot, uint32_t one)
{
	set->nr_raw += slot->backing ? 0 : one;
	set->nr_logged += slot->dirty ? one : 0;
}

/*
 * If the hint is `old`, it becomes new_slot, which may be NULL.  Any other hint stays.  No other thread writes the hint
 * of a private set, so that the exchange need not be atomic; it is the shortest way to write the condition.
 */
static inline void carry_last_used_slot(struct memslot_set *set, struct memslot *old, struct memslot *new_slot)
{
	struct memslot *expected = old;

	if (atomic_load_explicit(&set->last_used_slot, memory_order_relaxed) != old)
		return;
	atomic_compare_exchange_strong_explicit(&set->last_used_slot, &expected, new_slot, memory_order_relaxed,
						memory_order_relaxed);
}

/* Frees the slot and drops its references. */
static inline void memslot_free(const struct memslot_design *design, struct memory *memory, struct memslot *slot)
{
	if (slot) {
		dirty_log_put(memory, slot->dirty);
		backing_put(slot->backing);
		design->free_slot(memory, slot);
	}
}

#endif
