/* SPDX-License-Identifier: MIT */
/*
 * interval_tree.c - see interval_tree.h for the invariants T1 and T2.
 */
#include "interval_tree.h"

static struct interval_hook *hook_of(const struct rb_node *node)
{
	return node ? container_of(node, struct interval_hook, rb) : NULL;
}

static uint64_t subtree_last(const struct interval_tree *tree, const struct interval_hook *hook)
{
	uint64_t last = interval_of(tree, hook)->last;

	for (int dir = 0; dir < 2; dir++) {
		const struct interval_hook *child = hook_of(hook->rb.child[dir]);

		if (child && child->subtree_last > last)
			last = child->subtree_last;
	}
	return last;
}

static bool update(const struct rb_root *root, struct rb_node *node)
{
	struct interval_hook *hook = hook_of(node);
	uint64_t before = hook->subtree_last;

	hook->subtree_last = subtree_last(container_of(root, struct interval_tree, root), hook);
	return hook->subtree_last != before;
}

void interval_tree_init(struct interval_tree *tree, ptrdiff_t distance, interval_tie_fn *tie_before)
{
	tree->root = (struct rb_root){ .update = update };
	tree->distance = distance;
	tree->tie_before = tie_before;
}

static bool before(const struct interval_tree *tree, const struct interval *a, const struct interval *b)
{
	if (a->start != b->start)
		return a->start < b->start;
	return tree->tie_before && tree->tie_before(a, b);
}

void interval_tree_add(struct interval_tree *tree, struct interval_hook *hook)
{
	const struct interval *interval = interval_of(tree, hook);
	struct rb_node *parent = NULL, *node = tree->root.node;
	int dir = 0;

	while (node) {
		parent = node;
		dir = !before(tree, interval, interval_of(tree, hook_of(node)));
		node = rb_child(node, dir);
	}
	rb_insert(&tree->root, parent, dir, &hook->rb);
}

void interval_tree_replace(struct interval_tree *tree, struct interval_hook *old, struct interval_hook *new_hook)
{
	rb_replace(&tree->root, &old->rb, &new_hook->rb);
}

void interval_tree_del(struct interval_tree *tree, struct interval_hook *hook)
{
	rb_erase(&tree->root, &hook->rb);
}

/* Whether some interval of the subtree ends at or after start. */
static bool reaches(const struct interval_hook *subtree, uint64_t start)
{
	return subtree && subtree->subtree_last >= start;
}

/*
 * The first hit in the subtree of hook, which contains an interval that ends at or after start.  If the left subtree
 * contains such an interval, the first hit is there, or there is none: if the interval is no hit, it starts after last,
 * and so do all that follow it.
 */
static struct interval_hook *first_below(const struct interval_tree *tree, struct interval_hook *hook, uint64_t start,
					 uint64_t last)
{
	for (;;) {
		struct interval_hook *left = hook_of(hook->rb.child[0]), *right = hook_of(hook->rb.child[1]);
		const struct interval *interval = interval_of(tree, hook);

		if (reaches(left, start)) {
			hook = left;
			continue;
		}
		if (interval->start > last)
			return NULL;
		if (interval->last >= start)
			return hook;
		hook = right; /* by T1 an interval that ends at subtree_last >= start is there */
	}
}

struct interval_hook *interval_tree_first(const struct interval_tree *tree, uint64_t start, uint64_t last)
{
	struct interval_hook *top = hook_of(tree->root.node);

	return start <= last && reaches(top, start) ? first_below(tree, top, start, last) : NULL;
}

struct interval_hook *interval_tree_next(const struct interval_tree *tree, const struct interval_hook *hook,
					 uint64_t start, uint64_t last)
{
	const struct rb_node *node = &hook->rb, *child;

	if (start > last)
		return NULL;
	for (;;) {
		struct interval_hook *right = hook_of(node->child[1]);

		if (reaches(right, start))
			return first_below(tree, right, start, last);
		do {
			child = node;
			node = rb_parent(node);
			if (!node)
				return NULL;
		} while (child == node->child[1]);
		if (interval_of(tree, hook_of(node))->start > last)
			return NULL;
		if (interval_of(tree, hook_of(node))->last >= start)
			return hook_of(node);
	}
}

static bool in_order(const struct rb_root *root, const struct rb_node *a, const struct rb_node *b)
{
	const struct interval_tree *tree = container_of(root, struct interval_tree, root);

	return !before(tree, interval_of(tree, hook_of(b)), interval_of(tree, hook_of(a)));
}

int interval_tree_check(const struct interval_tree *tree)
{
	int broken = rb_check(&tree->root, in_order);
	const struct rb_node *node;

	if (broken)
		return broken == 5 ? INTERVAL_TREE_BROKEN_T2 : broken;
	for (node = rb_first(&tree->root); node; node = rb_next(node))
		if (hook_of(node)->subtree_last != subtree_last(tree, hook_of(node)))
			return INTERVAL_TREE_BROKEN_T1;
	return 0;
}
