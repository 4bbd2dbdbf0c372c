/* SPDX-License-Identifier: MIT */
/*
 * rbtree.h - a red-black tree whose nodes are members of the caller's structs.
 *
 * The caller walks down in its own order and passes the position to rb_insert(), which keeps the tree balanced.  A tree
 * with an `update` function keeps a summary of each subtree in its nodes.  update(root, node) computes the summary of
 * node from those of its children, and returns whether it has changed.  It is called for every node whose subtree
 * changes, children first.  The walk up ends where a summary stays the same.
 *
 * One code serves both directions: child[0] is left, child[1] is right, and a direction is an int.
 *
 * Invariants
 *   R1  the root is black and has no parent;
 *   R2  a red node has no red child;
 *   R3  every path from the root to a missing child has the same number of black nodes;
 *   R4  the parent pointer of a child is the node whose child it is;
 *   R5  in-order, the nodes ascend in the caller's order.
 *
 * Locking: none, and nothing is atomic.  A tree has one writer and no reader, or readers and no writer.
 * Cost: insert and erase are amortised O(1) after the caller's walk down, with at most three rotations.  In addition
 * erase may walk to the next node, and an update function is called upwards while summaries change.  Replace is O(1)
 * and keeps the shape of the tree.  Build is O(n) and makes the lowest tree of n nodes.
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

/* The child of node on side dir, without a branch: with random keys half of the branches would be mispredicted. */
static inline struct rb_node *rb_child(const struct rb_node *node, bool dir)
{
	uintptr_t side = dir;

	opaque(side);
	return node->child[side];
}

/* Makes node the child of parent on side dir, where there must be none, and rebalances.  parent is NULL if and only if
 * the tree is empty. */
void rb_insert(struct rb_root *root, struct rb_node *parent, int dir, struct rb_node *node);

void rb_erase(struct rb_root *root, struct rb_node *node);

/* Puts new_node at the position of old.  Both must have the same place in the caller's order. */
void rb_replace(struct rb_root *root, struct rb_node *old, struct rb_node *new_node);

/* The i-th node of a tree that is built, in the caller's order. */
typedef struct rb_node *rb_node_at_fn(const void *context, size_t i);

/* Makes a tree of n nodes.  Former links of the nodes, and a former tree of the root, are overwritten. */
void rb_build(struct rb_root *root, size_t n, rb_node_at_fn *node_at, const void *context);

static inline void *rb_shifted(const void *node, ptrdiff_t distance)
{
	return node ? (char *)(uintptr_t)node + distance : NULL;
}

/* `to` becomes in its tree what `from` is in its own.  Every node of that tree has its twin at the same distance.  The
 * summary of the node and the root of the tree are left to the caller. */
static inline void rb_mirror(struct rb_node *to, const struct rb_node *from)
{
	ptrdiff_t distance = (const char *)to - (const char *)from;

	to->child[0] = rb_shifted(from->child[0], distance);
	to->child[1] = rb_shifted(from->child[1], distance);
	to->parent_color = (uintptr_t)rb_shifted(rb_parent(from), distance) | (from->parent_color & RB_BLACK);
}

/* The outermost node on side dir, or NULL. */
struct rb_node *rb_edge(const struct rb_root *root, int dir);

/* The in-order neighbour on side dir, or NULL. */
struct rb_node *rb_neighbour(const struct rb_node *node, int dir);

#define rb_first(root) rb_edge(root, 0)
#define rb_last(root) rb_edge(root, 1)
#define rb_next(node) rb_neighbour(node, 1)
#define rb_prev(node) rb_neighbour(node, 0)

/* Returns the number of the first invariant that does not hold, or 0.  O(n). */
int rb_check(const struct rb_root *root, rb_before_fn *before);

#endif
