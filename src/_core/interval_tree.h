/* SPDX-License-Identifier: MIT */
/*
 * interval_tree.h - finds all intervals that intersect a range, in ascending order of start.
 *
 * Intervals are closed: [start, last].  They may overlap and may be equal.  A hook links its struct into one tree.  The
 * interval lies at a fixed distance from the hook, so that a struct with one interval and two hooks can be in two
 * trees.
 *
 * Invariants, in addition to those of rbtree.h
 *   T1  subtree_last is the largest `last` in the subtree of the hook;
 *   T2  in-order, the intervals ascend by start, and those of equal start by tie_before.
 *
 * Locking: as rbtree.h.
 * Cost: add and del O(log n); replace O(1) if `last` stays the same.  The first hit O(log n); each further hit O(log n)
 * at worst, O(1) if hits are dense.
 */
#ifndef MS_INTERVAL_TREE_H
#define MS_INTERVAL_TREE_H

#include "rbtree.h"

struct interval {
	uint64_t start;
	uint64_t last;
};

struct interval_hook {
	struct rb_node rb;
	uint64_t subtree_last;
};

/* Orders two intervals of equal start.  Without this function they are in the order in which they were added. */
typedef bool interval_tie_fn(const struct interval *a, const struct interval *b);

struct interval_tree {
	struct rb_root root;
	ptrdiff_t distance; /* from a hook to its interval, in bytes */
	interval_tie_fn *tie_before;
};

void interval_tree_init(struct interval_tree *tree, ptrdiff_t distance, interval_tie_fn *tie_before);
void interval_tree_add(struct interval_tree *tree, struct interval_hook *hook);
void interval_tree_del(struct interval_tree *tree, struct interval_hook *hook);

/* Makes a tree of n intervals, which node_at() returns in ascending order.  O(n). */
static inline void interval_tree_build(struct interval_tree *tree, size_t n, rb_node_at_fn *node_at,
				       const void *context)
{
	rb_build(&tree->root, n, node_at, context);
}

/* `to` becomes in its tree what `from` is in its own; see rb_mirror(). */
static inline void interval_tree_mirror(struct interval_hook *to, const struct interval_hook *from)
{
	rb_mirror(&to->rb, &from->rb);
	to->subtree_last = from->subtree_last;
}

/* Puts new_hook at the position of old.  Both must have the same place in the order. */
void interval_tree_replace(struct interval_tree *tree, struct interval_hook *old, struct interval_hook *new_hook);

/* Return the first hook in order whose interval intersects [start, last], and the next one after `hook`, or NULL.  An
 * empty range (start > last) intersects nothing. */
struct interval_hook *interval_tree_first(const struct interval_tree *tree, uint64_t start, uint64_t last);
struct interval_hook *interval_tree_next(const struct interval_tree *tree, const struct interval_hook *hook,
					 uint64_t start, uint64_t last);

static inline struct interval *interval_of(const struct interval_tree *tree, const struct interval_hook *hook)
{
	return (struct interval *)(void *)((char *)(uintptr_t)hook + tree->distance);
}

/* Returns the number of the first violated invariant, or 0: 11 for T1, 12 for T2, else as rb_check(). */
#define INTERVAL_TREE_BROKEN_T1 11
#define INTERVAL_TREE_BROKEN_T2 12
int interval_tree_check(const struct interval_tree *tree);

#endif
