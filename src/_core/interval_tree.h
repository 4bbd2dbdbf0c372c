/* SPDX-License-Identifier: MIT */
/*
 * interval_tree.h - every interval that touches a range, in ascending order of start.
 *
 * Intervals are closed: [start, last].  They may overlap and may be equal.  A hook links its struct into one tree;
 * the interval itself lies at a fixed distance from the hook, so that a struct with one interval and two hooks can
 * be in two trees.
 *
 * Invariants (those of rbtree.h, and)
 *   T1  subtree_last is the largest `last` of the hook's subtree;
 *   T2  in-order, the intervals ascend by start, equal starts by tie_before.
 *
 * Locking: as rbtree.h.
 * Cost: add and del O(log n), replace O(1) where `last` stays; the first hit O(log n), each further one O(log n) at
 * worst, O(1) for dense hits.
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

/* Orders two intervals of equal start; NULL: the one that was added later comes later. */
typedef bool interval_tie_fn(const struct interval *a, const struct interval *b);

struct interval_tree {
	struct rb_root root;
	ptrdiff_t distance; /* from a hook to its interval, in bytes */
	interval_tie_fn *tie_before;
};

void interval_tree_init(struct interval_tree *tree, ptrdiff_t distance, interval_tie_fn *tie_before);
void interval_tree_add(struct interval_tree *tree, struct interval_hook *hook);
void interval_tree_del(struct interval_tree *tree, struct interval_hook *hook);

/* Puts new_hook where old is; both must have the same place in the order. */
void interval_tree_replace(struct interval_tree *tree, struct interval_hook *old, struct interval_hook *new_hook);

/* The first hook in order whose interval touches [start, last], and the one after `hook`; NULL when there is none.
 * An empty range (start > last) touches nothing. */
struct interval_hook *interval_tree_first(const struct interval_tree *tree, uint64_t start, uint64_t last);
struct interval_hook *interval_tree_next(const struct interval_tree *tree, const struct interval_hook *hook,
					 uint64_t start, uint64_t last);

static inline struct interval *interval_of(const struct interval_tree *tree, const struct interval_hook *hook)
{
	return (struct interval *)(void *)((char *)(uintptr_t)hook + tree->distance);
}

/* Broken invariants of the tree underneath as rb_check() numbers them; 11 is T1, 12 is T2; 0: all hold. */
#define INTERVAL_TREE_BROKEN_T1 11
#define INTERVAL_TREE_BROKEN_T2 12
int interval_tree_check(const struct interval_tree *tree);

#endif
