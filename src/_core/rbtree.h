/* SPDX-License-Identifier: MIT */
/*
 * rbtree.h - a balanced binary tree whose nodes live inside your structs.
 *
 * The caller walks down by its own order and hands the place to rb_insert(); the tree keeps itself balanced.  A tree
 * with an `update` function keeps a summary of each subtree in its nodes: update(root, node) computes node's summary
 * from its children's and says whether that is news.  It is called for every node whose subtree changed, children
 * first, and no further up than there is news.
 *
 * Both directions are one code: child[0] is left, child[1] is right, and a direction is an int.
 *
 * Invariants
 *   R1  the root is black and has no parent;
 *   R2  a red node has no red child;
 *   R3  every path from the root to a missing child has the same number of black nodes;
 *   R4  a child's parent is the node that it hangs from;
 *   R5  in-order, the nodes ascend in the caller's order.
 *
 * Locking: none.  A tree has one writer, or readers and no writer: nothing here is atomic.
 * Cost: insert and erase O(1) after the caller's walk down, but for erase's walk to the next node, with at most three
 * rotations; with an update function the walk up while there is news.  Replace O(1), and the tree keeps its shape.
 */
#ifndef MS_RBTREE_H
#define MS_RBTREE_H

#include "compiler.h"

struct rb_node {
	struct rb_node *child[2];
	uintptr_t parent_color; /* the parent's address | RB_BLACK; nodes are at least 2-aligned */
};

struct rb_root;
typedef bool rb_update_fn(const struct rb_root *root, struct rb_node *node);
typedef bool rb_before_fn(const struct rb_root *root, const struct rb_node *a, const struct rb_node *b);

struct rb_root {
	struct rb_node *node;
	rb_update_fn *update; /* or NULL */
};

#define RB_RED ((uintptr_t)0)
#define RB_BLACK ((uintptr_t)1)

static inline struct rb_node *rb_parent(const struct rb_node *node)
{
	return (struct rb_node *)(node->parent_color & ~RB_BLACK);
}

/* node's child on side dir, without a branch: a random key would mispredict half of them. */
static inline struct rb_node *rb_child(const struct rb_node *node, bool dir)
{
	uintptr_t side = dir;

	opaque(side);
	return node->child[side];
}

/* Hangs node below parent (NULL: the tree is empty) on side dir, where no child may be, and rebalances. */
void rb_insert(struct rb_root *root, struct rb_node *parent, int dir, struct rb_node *node);

void rb_erase(struct rb_root *root, struct rb_node *node);

/* Puts new_node where old is; both must have the same place in the order. */
void rb_replace(struct rb_root *root, struct rb_node *old, struct rb_node *new_node);

/* The outermost node on side dir, or NULL. */
struct rb_node *rb_edge(const struct rb_root *root, int dir);

/* The in-order neighbour on side dir, or NULL. */
struct rb_node *rb_neighbour(const struct rb_node *node, int dir);

#define rb_first(root) rb_edge(root, 0)
#define rb_last(root) rb_edge(root, 1)
#define rb_next(node) rb_neighbour(node, 1)
#define rb_prev(node) rb_neighbour(node, 0)

/* The number of the first invariant that does not hold, 0 when all do.  O(n). */
int rb_check(const struct rb_root *root, rb_before_fn *before);

#endif
