/* SPDX-License-Identifier: MIT */
/*
 * tree_set.h - KVM's sets since Linux 5.17: a slot is one object that both sets of its address space share.
 *
 * A slot has two nodes for each structure (gfn tree, hva tree, id hash): a set uses those of its node_idx.  So the
 * writer can edit the inactive set while readers use the active one.  A search by gfn reads one cache line at each
 * level: the gfn nodes of both sets, base_gfn, npages and id fill exactly one line.
 *
 * Cost: replace O(log n), or O(1) if gfn, host address and id stay the same; search O(log n); find O(1); 192 bytes for
 * each slot.
 */
#ifndef MS_TREE_SET_H
#define MS_TREE_SET_H

#include "memslot_set.h"

struct tree_slot {
	cache_aligned struct rb_node gfn_node[2];
	struct memslot slot;
	struct id_link id_link[2];
	struct interval_hook hva_hook[2];
	void *word; /* belongs to the pool, see memory.h */
};

_Static_assert(offsetof(struct tree_slot, slot.id) + sizeof(uint32_t) == CACHE_LINE,
	       "a search by gfn reads one cache line of each slot");
_Static_assert(sizeof(struct tree_slot) == 3 * CACHE_LINE, "a slot is three cache lines");
_Static_assert(offsetof(struct tree_slot, word) + MEMORY_POOL_WORD == sizeof(struct tree_slot),
	       "the pool uses the last word");

static inline struct tree_slot *tree_slot_of(const struct memslot *slot)
{
	return container_of((uintptr_t)slot, struct tree_slot, slot);
}

static inline struct memslot *slot_of_gfn_node(const struct rb_node *node, uint32_t idx)
{
	return &container_of((uintptr_t)(node - idx), struct tree_slot, gfn_node[0])->slot;
}

/* Whether the searches use conditional moves in assembly. */
#if defined(__x86_64__) && defined(__LP64__) && defined(__GNUC__) && !MS_SANITIZED
#define TREE_BY_HAND 1
#else
#define TREE_BY_HAND 0
#endif

/*
 * One step down: returns the child of node on the side of gfn.  *floor becomes node if its base_gfn <= gfn.  There is
 * no branch on the keys, because a random lookup would mispredict half of them.  From C code compilers make such a
 * branch, or load the child only after the comparison.  Hence the two conditional moves.
 */
static inline const struct rb_node *tree_step(const struct rb_node *node, uint32_t idx, uint64_t gfn,
					      const struct rb_node **floor)
{
	const struct memslot *slot = slot_of_gfn_node(node, idx);

#if TREE_BY_HAND
	const struct rb_node *next = node->child[0];

	__asm__("cmpq %[base], %[gfn]\n\t"
		"cmovae %[node], %[floor]\n\t"
		"cmovae %[right], %[next]"
		: [floor] "+r"(*floor), [next] "+&r"(next)
		: [gfn] "r"(gfn), [base] "m"(slot->base_gfn), [node] "r"(node), [right] "m"(node->child[1])
		: "cc");
	return next;
#else
	uintptr_t keep = (uintptr_t)(gfn >= slot->base_gfn) - 1;

	opaque(keep);
	*floor = (const struct rb_node *)(((uintptr_t)*floor & keep) | ((uintptr_t)node & ~keep));
	return node->child[keep + 1];
#endif
}

/* The slot with the largest base_gfn <= gfn, or NULL. */
static inline struct memslot *tree_floor(const struct memslot_set *set, uint64_t gfn)
{
	const struct rb_node *node = set->gfn_tree.node, *floor = NULL;
	uint32_t idx = set->node_idx;

	while (node)
		node = tree_step(node, idx, gfn, &floor);
	return floor ? slot_of_gfn_node(floor, idx) : NULL;
}

static inline struct memslot *tree_search(const struct memslot_set *set, uint64_t gfn)
{
	struct memslot *slot = tree_floor(set, gfn);

	return slot && memslot_contains(slot, gfn) ? slot : NULL;
}

#endif
