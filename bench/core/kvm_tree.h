/* SPDX-License-Identifier: MIT */
/*
 * kvm_tree.h - the yardstick of P5: a plain red-black tree.  Its slots have the layout of struct kvm_memory_slot.
 * As in KVM, a search has two branches for each node, and the test of last_used_slot has two branches.
 */
#ifndef BENCH_KVM_TREE_H
#define BENCH_KVM_TREE_H

#include "rbtree.h"

/* Order and sizes of the members as in KVM: chains, interval nodes, gfn nodes, then the frames; 264 bytes in all. */
struct kvm_slot {
	void *id_node[4];
	uint64_t hva_node[2][6];
	struct rb_node gfn_node[2];
	uint64_t base_gfn, npages;
	uint64_t rest[9];
};

struct kvm_set {
	struct rb_root tree;
	const struct kvm_slot *last_used_slot;
};

static inline void kvm_insert(struct kvm_set *set, struct kvm_slot *slot)
{
	struct rb_node *parent = NULL, *node = set->tree.node;
	int dir = 0;

	while (node) {
		parent = node;
		dir = slot->base_gfn >= container_of(node, struct kvm_slot, gfn_node[0])->base_gfn;
		node = node->child[dir];
	}
	rb_insert(&set->tree, parent, dir, &slot->gfn_node[0]);
}

static inline bool kvm_contains(const struct kvm_slot *slot, uint64_t gfn)
{
	return gfn >= slot->base_gfn && gfn < slot->base_gfn + slot->npages;
}

static inline const struct kvm_slot *kvm_search(const struct kvm_set *set, uint64_t gfn)
{
	const struct rb_node *node = set->tree.node;

	while (node) {
		const struct kvm_slot *slot = container_of((uintptr_t)node, struct kvm_slot, gfn_node[0]);

		if (gfn >= slot->base_gfn) {
			if (gfn < slot->base_gfn + slot->npages)
				return slot;
			node = node->child[1];
		} else {
			node = node->child[0];
		}
	}
	return NULL;
}

static inline const struct kvm_slot *kvm_find_hinted(struct kvm_set *set, uint64_t gfn)
{
	const struct kvm_slot *slot = *(const struct kvm_slot *volatile *)&set->last_used_slot;

	if (slot && kvm_contains(slot, gfn))
		return slot;
	slot = kvm_search(set, gfn);
	if (slot)
		*(const struct kvm_slot *volatile *)&set->last_used_slot = slot;
	return slot;
}

#endif
