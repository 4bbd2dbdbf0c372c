/* SPDX-License-Identifier: MIT */
#include "rbtree.h"

static bool is_black(const struct rb_node *node)
{
	return !node || (node->parent_color & RB_BLACK);
}

static bool is_red(const struct rb_node *node)
{
	return !is_black(node);
}

static uintptr_t color(const struct rb_node *node)
{
	return node->parent_color & RB_BLACK;
}

static void paint(struct rb_node *node, uintptr_t c)
{
	node->parent_color = (node->parent_color & ~RB_BLACK) | c;
}

static void set_parent(struct rb_node *node, struct rb_node *parent)
{
	node->parent_color = (uintptr_t)parent | color(node);
}

/* The side of parent on which node hangs. */
static int side(const struct rb_node *parent, const struct rb_node *node)
{
	return node == parent->child[1];
}

static void update(const struct rb_root *root, struct rb_node *node)
{
	if (root->update)
		root->update(root, node);
}

/* From node up while a summary changes.  The summary of `moved`, a node on that way or NULL, is of the place that it
 * came from, and says nothing about whether it is news above. */
static void update_up(const struct rb_root *root, struct rb_node *node, const struct rb_node *moved)
{
	bool news = true;

	if (!root->update)
		return;
	for (; node && (news || moved); node = rb_parent(node)) {
		bool changed = root->update(root, node); /* of a moved node it compares with what may be nothing */

		news = node == moved || changed;
		if (node == moved)
			moved = NULL;
	}
}

/* Whoever pointed down to old points down to heir. */
static void replace_child(struct rb_root *root, struct rb_node *parent, struct rb_node *old, struct rb_node *heir)
{
	if (parent)
		parent->child[side(parent, old)] = heir;
	else
		root->node = heir;
}

static void set_child(struct rb_node *parent, int dir, struct rb_node *child)
{
	parent->child[dir] = child;
	if (child)
		set_parent(child, parent);
}

/* node sinks to side dir, its other child rises into its place; the order stays. */
static void rotate(struct rb_root *root, struct rb_node *node, int dir)
{
	struct rb_node *riser = node->child[!dir], *parent = rb_parent(node);

	set_child(node, !dir, riser->child[dir]);
	replace_child(root, parent, node, riser);
	set_parent(riser, parent);
	set_child(riser, dir, node);
	update(root, node);
	update(root, riser);
}

/* node is red; R2 may be broken between it and its parent, and nowhere else. */
static void rebalance_red(struct rb_root *root, struct rb_node *node)
{
	struct rb_node *parent, *grand, *uncle;
	int dir;

	while ((parent = rb_parent(node)) && is_red(parent)) {
		grand = rb_parent(parent); /* a red parent is not the root: R1 */
		dir = side(grand, parent);
		uncle = grand->child[!dir];
		if (is_red(uncle)) {
			paint(parent, RB_BLACK);
			paint(uncle, RB_BLACK);
			paint(grand, RB_RED);
			node = grand; /* R2 may be broken there now */
			continue;
		}
		if (node == parent->child[!dir]) {
			rotate(root, parent, dir);
			parent = node;
		}
		paint(parent, RB_BLACK);
		paint(grand, RB_RED);
		rotate(root, grand, !dir);
		break;
	}
	paint(root->node, RB_BLACK);
}

void rb_insert(struct rb_root *root, struct rb_node *parent, int dir, struct rb_node *node)
{
	node->child[0] = node->child[1] = NULL;
	node->parent_color = (uintptr_t)parent | RB_RED;
	if (parent)
		parent->child[dir] = node;
	else
		root->node = node;
	if (root->update) {
		root->update(root, node);
		update_up(root, parent, NULL);
	}
	rebalance_red(root, node);
}

/*
 * The paths through parent->child[dir] have one black node too few (R3).  Either the sibling's side can spare one,
 * or both sides are made equally short and the question moves up.
 */
static void rebalance_black(struct rb_root *root, struct rb_node *parent, int dir)
{
	struct rb_node *node, *sibling;

	for (;;) {
		sibling = parent->child[!dir]; /* there is one: its side is longer */
		if (is_red(sibling)) {
			paint(sibling, RB_BLACK);
			paint(parent, RB_RED);
			rotate(root, parent, dir);
			sibling = parent->child[!dir];
		}
		if (is_red(sibling->child[0]) || is_red(sibling->child[1]))
			break;
		paint(sibling, RB_RED);
		node = parent;
		parent = rb_parent(node);
		if (is_red(node) || !parent) {
			paint(node, RB_BLACK);
			return;
		}
		dir = side(parent, node);
	}
	if (is_black(sibling->child[!dir])) {
		paint(sibling->child[dir], RB_BLACK);
		paint(sibling, RB_RED);
		rotate(root, sibling, !dir);
		sibling = parent->child[!dir];
	}
	paint(sibling, color(parent));
	paint(parent, RB_BLACK);
	paint(sibling->child[!dir], RB_BLACK);
	rotate(root, parent, dir);
}

/* node and the next one in order, which is returned, change places and colours, so that node has at most one child. */
static struct rb_node *swap_with_next(struct rb_root *root, struct rb_node *node)
{
	struct rb_node *next = node->child[1], *next_parent, *next_right;
	uintptr_t next_color;

	while (next->child[0])
		next = next->child[0];
	next_parent = rb_parent(next);
	next_right = next->child[1];
	next_color = color(next);

	replace_child(root, rb_parent(node), node, next);
	next->parent_color = node->parent_color;
	set_child(next, 0, node->child[0]);
	if (next_parent == node) {
		next_parent = next;
		next->child[1] = node;
	} else {
		set_child(next, 1, node->child[1]);
		next_parent->child[0] = node;
	}
	node->parent_color = (uintptr_t)next_parent | next_color;
	node->child[0] = NULL;
	set_child(node, 1, next_right);
	return next;
}

void rb_erase(struct rb_root *root, struct rb_node *node)
{
	struct rb_node *parent, *child, *moved = NULL;
	int dir;

	if (node->child[0] && node->child[1])
		moved = swap_with_next(root, node);
	parent = rb_parent(node);
	child = node->child[0] ? node->child[0] : node->child[1];
	dir = parent ? side(parent, node) : 0;
	replace_child(root, parent, node, child);
	if (child) /* red, and node black: R3 */
		child->parent_color = (uintptr_t)parent | RB_BLACK;
	update_up(root, parent, moved);
	if (!child && is_black(node) && parent)
		rebalance_black(root, parent, dir);
}

void rb_replace(struct rb_root *root, struct rb_node *old, struct rb_node *new_node)
{
	struct rb_node *parent = rb_parent(old);

	replace_child(root, parent, old, new_node);
	new_node->parent_color = old->parent_color;
	set_child(new_node, 0, old->child[0]);
	set_child(new_node, 1, old->child[1]);
	update_up(root, new_node, new_node);
}

struct rb_node *rb_edge(const struct rb_root *root, int dir)
{
	struct rb_node *node = root->node;

	while (node && node->child[dir])
		node = node->child[dir];
	return node;
}

struct rb_node *rb_neighbour(const struct rb_node *node, int dir)
{
	struct rb_node *parent, *next = node->child[dir];

	if (next) {
		while (next->child[!dir])
			next = next->child[!dir];
		return next;
	}
	while ((parent = rb_parent(node)) && node == parent->child[dir])
		node = parent;
	return parent;
}

struct check {
	const struct rb_root *root;
	rb_before_fn *before;
	const struct rb_node *previous;
	int broken;
};

/* R2 and R3 bound the depth of a tree of 2^64 nodes by 128. */
#define DEPTH_MAX 128

/* -> the black height of the subtree; the first broken invariant is in c->broken. */
static int check_subtree(struct check *c, const struct rb_node *node, const struct rb_node *parent, int depth)
{
	int left, right;

	if (!node || c->broken)
		return 0;
	if (rb_parent(node) != parent || depth > DEPTH_MAX) {
		c->broken = rb_parent(node) != parent ? 4 : 3;
		return 0;
	}
	if (is_red(node) && is_red(parent) && parent)
		c->broken = 2;
	left = check_subtree(c, node->child[0], node, depth + 1);
	if (!c->broken && c->previous && !c->before(c->root, c->previous, node))
		c->broken = 5;
	c->previous = node;
	right = check_subtree(c, node->child[1], node, depth + 1);
	if (!c->broken && left != right)
		c->broken = 3;
	return left + (int)color(node);
}

int rb_check(const struct rb_root *root, rb_before_fn *before)
{
	struct check c = { .root = root, .before = before };

	if (root->node && (rb_parent(root->node) || is_red(root->node)))
		return 1;
	check_subtree(&c, root->node, NULL, 0);
	return c.broken;
}
