/* SPDX-License-Identifier: MIT */
/*
 * rbtree.c - see rbtree.h for the invariants R1 to R5.
 */
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

/* The side of parent on which its child node is. */
static int side(const struct rb_node *parent, const struct rb_node *node)
{
	return node == parent->child[1];
}

static void update(const struct rb_root *root, struct rb_node *node)
{
	if (root->update)
		root->update(root, node);
}

/* Updates the summaries from node upwards until one stays the same.  `moved` is NULL, or a node on this way that has a
 * new position.  Its old summary is that of its former position, or not initialized.  So the walk always reaches
 * `moved`, and always goes on above it. */
static void update_up(const struct rb_root *root, struct rb_node *node, const struct rb_node *moved)
{
	bool go_on = true;

	if (!root->update)
		return;
	for (; node && (go_on || moved); node = rb_parent(node)) {
		bool changed = root->update(root, node); /* meaningless for `moved` */

		go_on = node == moved || changed;
		if (node == moved)
			moved = NULL;
	}
}

/* parent is NULL if old is the root. */
static void replace_child(struct rb_root *root, struct rb_node *parent, struct rb_node *old, struct rb_node *new_child)
{
	if (parent)
		parent->child[side(parent, old)] = new_child;
	else
		root->node = new_child;
}

static void set_child(struct rb_node *parent, int dir, struct rb_node *child)
{
	parent->child[dir] = child;
	if (child)
		set_parent(child, parent);
}

/* The child of node on the side !dir takes its position, and node becomes the child of that one on side dir.  The order
 * stays. */
static void rotate(struct rb_root *root, struct rb_node *node, int dir)
{
	struct rb_node *child = node->child[!dir], *parent = rb_parent(node);

	set_child(node, !dir, child->child[dir]);
	replace_child(root, parent, node, child);
	set_parent(child, parent);
	set_child(child, dir, node);
	update(root, node);
	update(root, child);
}

/* node is red.  R2 may be violated between it and its parent, and nowhere else. */
static void rebalance_red(struct rb_root *root, struct rb_node *node)
{
	struct rb_node *parent, *grand, *uncle;
	int dir;

	while ((parent = rb_parent(node)) && is_red(parent)) {
		grand = rb_parent(parent); /* not NULL: by R1 the red parent is not the root */
		dir = side(grand, parent);
		uncle = grand->child[!dir];
		if (is_red(uncle)) {
			paint(parent, RB_BLACK);
			paint(uncle, RB_BLACK);
			paint(grand, RB_RED);
			node = grand; /* R2 may be violated there now */
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
 * The paths through parent->child[dir] have one black node too few (R3).  If the sibling or one of its children is red,
 * rotations repair this.  Otherwise the sibling becomes red, both sides lack one, and the loop goes on one level up.
 */
static void rebalance_black(struct rb_root *root, struct rb_node *parent, int dir)
{
	struct rb_node *node, *sibling;

	for (;;) {
		sibling = parent->child[!dir]; /* not NULL: its side has more black nodes */
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

/* Exchanges the positions and colours of node and its in-order successor, and returns the successor.  Afterwards node
 * has at most one child. */
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
	if (child) /* by R3 the child is red and node is black */
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

struct build {
	struct rb_root *root;
	rb_node_at_fn *node_at;
	const void *context;
	size_t n;
	int red; /* the depth of the red nodes */
};

/* A subtree of so many nodes is built while the nodes behind it are loaded. */
#define AHEAD 24

static void prefetch(const struct build *b, size_t i)
{
	const char *node;

	if (i >= b->n)
		return;
	node = (const char *)b->node_at(b->context, i);
	__builtin_prefetch(node, 1);
	__builtin_prefetch(node + sizeof(struct rb_node), 1); /* it may lie across two cache lines */
}

/* The halves of a subtree differ by at most one node.  So each level of the tree is full, except perhaps the last one.
 * The nodes of the last level are red (R3). */
static struct rb_node *build_subtree(const struct build *b, size_t begin, size_t end, struct rb_node *parent, int depth)
{
	size_t middle = begin + (end - begin) / 2;
	struct rb_node *node;

	if (begin == end)
		return NULL;
	prefetch(b, middle + AHEAD);
	node = b->node_at(b->context, middle);
	node->parent_color = (uintptr_t)parent | (depth == b->red ? RB_RED : RB_BLACK);
	node->child[0] = build_subtree(b, begin, middle, node, depth + 1);
	node->child[1] = build_subtree(b, middle + 1, end, node, depth + 1);
	update(b->root, node);
	return node;
}

void rb_build(struct rb_root *root, size_t n, rb_node_at_fn *node_at, const void *context)
{
	struct build b = { .root = root, .node_at = node_at, .context = context, .n = n, .red = -1 };

	for (size_t full = n; full > 1; full /= 2) /* a single node is black (R1) */
		b.red = b.red < 0 ? 1 : b.red + 1;
	root->node = build_subtree(&b, 0, n, NULL, 0);
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

/* By R2 and R3 a tree of 2^64 nodes is at most this deep. */
#define DEPTH_MAX 128

/* Returns the black height of the subtree.  c->broken becomes the number of the first violated invariant. */
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
