/* SPDX-License-Identifier: MIT */
/*
 * test_rbtree.c - all small trees, and large random ones compared with a sorted array.
 *
 * Exhaustive in two ways: each order of insertion with each order of erasure; and each tree that any mixture of
 * insertions and erasures can reach, with each step from it.  A step depends on the nodes' bytes alone, so the second
 * way covers sequences of any length.
 */
#include "test.h"

#include "rbtree.h"

struct item {
	uint32_t key;
	uint32_t size;  /* of the subtree: the summary */
	uint64_t sum;   /* of its keys */
	struct rb_node rb;
};

static uint64_t steps;

static struct item *item_of(const struct rb_node *node)
{
	return node ? container_of(node, struct item, rb) : NULL;
}

static bool before(const struct rb_root *root, const struct rb_node *a, const struct rb_node *b)
{
	(void)root;
	return item_of(a)->key < item_of(b)->key;
}

/* ---- a summary, and whether the tree updates it ---- */

/* One summary changes up to the root, the other one stops early: the largest of values that are spread over the
 * keys. */
static bool by_largest;

static uint64_t spread(uint32_t key)
{
	return (key + 1) * 0x9E3779B97F4A7C15u >> 40;
}

static void find_largest(const struct rb_node *node, uint64_t *largest)
{
	*largest = spread(item_of(node)->key);
	for (int dir = 0; dir < 2; dir++)
		if (node->child[dir] && item_of(node->child[dir])->sum > *largest)
			*largest = item_of(node->child[dir])->sum;
}

static void summarise(const struct rb_node *node, uint32_t *size, uint64_t *sum)
{
	*size = 1;
	if (by_largest) {
		find_largest(node, sum);
		return;
	}
	*sum = item_of(node)->key;
	for (int dir = 0; dir < 2; dir++)
		if (node->child[dir]) {
			*size += item_of(node->child[dir])->size;
			*sum += item_of(node->child[dir])->sum;
		}
}

static bool update(const struct rb_root *root, struct rb_node *node)
{
	struct item was = *item_of(node);

	(void)root;
	summarise(node, &item_of(node)->size, &item_of(node)->sum);
	return item_of(node)->size != was.size || item_of(node)->sum != was.sum;
}

static void check_summaries(const struct rb_node *node)
{
	uint32_t size;
	uint64_t sum;

	if (!node)
		return;
	check_summaries(node->child[0]);
	check_summaries(node->child[1]);
	summarise(node, &size, &sum);
	CHECK_EQ(item_of(node)->size, size);
	CHECK_EQ(item_of(node)->sum, sum);
}

static void check_tree(const struct rb_root *root)
{
	CHECK_EQ(rb_check(root, before), 0);
	if (root->update)
		check_summaries(root->node);
	steps++;
}

static void insert(struct rb_root *root, struct item *item)
{
	struct rb_node *parent = NULL;
	int dir = 0;

	for (struct rb_node *node = root->node; node; node = node->child[dir]) {
		parent = node;
		dir = item_of(node)->key < item->key;
	}
	rb_insert(root, parent, dir, &item->rb);
}

/* ---- each order of insertion with each order of erasure ---- */

#define ORDERS_MAX 7

struct small {
	struct rb_root root;
	struct item item[ORDERS_MAX];
};

static struct small small;
static unsigned small_nr;

static void check_small(unsigned present)
{
	CHECK_EQ(rb_check(&small.root, before), 0);
	CHECK_EQ(!small.root.node, !present);
	steps++;
}

static uint64_t erase_orders(unsigned present)
{
	struct small saved = small;
	uint64_t orders = 0;

	if (!present)
		return 1;
	for (unsigned i = 0; i < small_nr; i++)
		if (present & 1u << i) {
			rb_erase(&small.root, &small.item[i].rb);
			check_small(present & ~(1u << i));
			orders += erase_orders(present & ~(1u << i));
			small = saved;
		}
	return orders;
}

static uint64_t insert_orders(unsigned present)
{
	struct small saved = small;
	uint64_t orders = 0;

	if (present == (1u << small_nr) - 1)
		return erase_orders(present);
	for (unsigned i = 0; i < small_nr; i++)
		if (!(present & 1u << i)) {
			insert(&small.root, &small.item[i]);
			check_small(present | 1u << i);
			orders += insert_orders(present | 1u << i);
			small = saved;
		}
	return orders;
}

static uint64_t every_order(unsigned nr)
{
	uint64_t orders, factorial = 1;

	for (uint32_t i = 0; i < nr; i++) {
		small.item[i].key = i;
		factorial *= i + 1;
	}
	small_nr = nr;
	orders = insert_orders(0);
	CHECK_EQ(orders, factorial * factorial);
	return orders;
}

/* ---- all trees that can be reached, and each step from them ---- */

#define REACH_MAX 12

struct state {
	uint64_t hash;
	unsigned present;
	struct rb_root root;
	struct item item[REACH_MAX];
};

static struct state *states;
static uint32_t *state_slots; /* open addressing; 0 is free, else a state's index + 1 */
static size_t nr_states, max_states;
static unsigned reach_nr;
static struct rb_root reach_root; /* the current tree: the pointers of all states refer to it */
static struct item reach_item[REACH_MAX];

static uint64_t hash_bytes(const void *bytes, size_t size)
{
	const unsigned char *byte = bytes;
	uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a */

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ byte[i]) * 0x100000001B3u;
	return hash ^ hash >> 29;
}

static void load(const struct state *state)
{
	reach_root = state->root;
	memcpy(reach_item, state->item, sizeof(reach_item));
}

/* Stores the current tree unless it is known.  The bytes of an absent node have no meaning. */
static void keep(unsigned present)
{
	struct state *state = &states[nr_states];
	size_t slot;

	for (unsigned i = 0; i < reach_nr; i++)
		if (!(present & 1u << i))
			reach_item[i] = (struct item){ .key = i };
	state->present = present;
	state->root = reach_root;
	memcpy(state->item, reach_item, sizeof(reach_item));
	state->hash = hash_bytes(state->item, sizeof(state->item));
	for (slot = state->hash % (2 * max_states); state_slots[slot]; slot = (slot + 1) % (2 * max_states))
		if (states[state_slots[slot] - 1].hash == state->hash &&
		    !memcmp(states[state_slots[slot] - 1].item, state->item, sizeof(state->item)))
			return;
	CHECK(nr_states + 1 < max_states);
	state_slots[slot] = (uint32_t)++nr_states;
}

static void step(const struct state *from, unsigned i)
{
	load(from);
	if (from->present & 1u << i)
		rb_erase(&reach_root, &reach_item[i].rb);
	else
		insert(&reach_root, &reach_item[i]);
	check_tree(&reach_root);
	CHECK_EQ(reach_root.node ? item_of(reach_root.node)->size : 0, __builtin_popcount(from->present ^ 1u << i));
	keep(from->present ^ 1u << i);
}

static void replace_each(const struct state *from)
{
	struct item twin;

	for (unsigned i = 0; i < reach_nr; i++)
		if (from->present & 1u << i) {
			load(from);
			memset(&twin, 0xA5, sizeof(twin));
			twin.key = i;
			rb_replace(&reach_root, &reach_item[i].rb, &twin.rb);
			check_tree(&reach_root);
			rb_replace(&reach_root, &twin.rb, &reach_item[i].rb);
			check_tree(&reach_root);
			CHECK_EQ(memcmp(reach_item, from->item, sizeof(reach_item)), 0); /* the shape is unchanged */
		}
}

static void walk_each(const struct state *from)
{
	const struct rb_node *up, *down;
	unsigned first, last;

	load(from);
	up = rb_first(&reach_root);
	down = rb_last(&reach_root);
	for (first = 0; first < reach_nr; first++)
		if (from->present & 1u << first) {
			CHECK_EQ(up, &reach_item[first].rb);
			up = rb_next(up);
		}
	for (last = reach_nr; last-- > 0;)
		if (from->present & 1u << last) {
			CHECK_EQ(down, &reach_item[last].rb);
			down = rb_prev(down);
		}
	CHECK(!up && !down);
}

static uint64_t every_tree(unsigned nr, size_t max)
{
	size_t full = 0;

	reach_nr = nr;
	max_states = max;
	nr_states = 0;
	states = calloc(max, sizeof(*states));
	state_slots = calloc(2 * max, sizeof(*state_slots));
	CHECK(states && state_slots);
	reach_root = (struct rb_root){ .update = update };
	keep(0);
	for (size_t at = 0; at < nr_states; at++) {
		for (unsigned i = 0; i < nr; i++)
			step(&states[at], i);
		replace_each(&states[at]);
		walk_each(&states[at]);
		full += states[at].present == (1u << nr) - 1;
	}
	printf("  %zu trees over %u keys can be reached, %zu of them with every key\n", nr_states, nr, full);
	free(states);
	free(state_slots);
	return nr_states;
}

/* ---- large trees compared with a sorted array ---- */

#define KEYS_MAX 32768

static struct item pool[2][KEYS_MAX]; /* a key's item and its twin */
static uint8_t which[KEYS_MAX];       /* which of them is linked */
static uint32_t sorted[KEYS_MAX];     /* the keys in the tree */
static size_t nr_sorted;

static size_t position(uint32_t key)
{
	size_t low = 0, high = nr_sorted, middle;

	while (low < high) {
		middle = (low + high) / 2;
		if (sorted[middle] < key)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static struct item *linked(uint32_t key)
{
	return &pool[which[key]][key];
}

static void toggle(struct rb_root *root, uint32_t key)
{
	size_t at = position(key);

	if (at < nr_sorted && sorted[at] == key) {
		rb_erase(root, &linked(key)->rb);
		memmove(&sorted[at], &sorted[at + 1], (--nr_sorted - at) * sizeof(*sorted));
	} else {
		linked(key)->key = key;
		insert(root, linked(key));
		memmove(&sorted[at + 1], &sorted[at], (nr_sorted++ - at) * sizeof(*sorted));
		sorted[at] = key;
	}
}

static void replace(struct rb_root *root, uint32_t key)
{
	struct item *old = linked(key);

	which[key] ^= 1;
	linked(key)->key = key;
	rb_replace(root, &old->rb, &linked(key)->rb);
	memset(old, 0xA5, sizeof(*old));
}

static void check_neighbours(const struct rb_root *root, size_t at)
{
	struct item *item = linked(sorted[at]);

	CHECK_EQ(rb_first(root), &linked(sorted[0])->rb);
	CHECK_EQ(rb_last(root), &linked(sorted[nr_sorted - 1])->rb);
	CHECK_EQ(rb_prev(&item->rb), at ? &linked(sorted[at - 1])->rb : NULL);
	CHECK_EQ(rb_next(&item->rb), at + 1 < nr_sorted ? &linked(sorted[at + 1])->rb : NULL);
}

static void check_whole(const struct rb_root *root)
{
	struct rb_node *node = rb_first(root);

	check_tree(root);
	for (size_t i = 0; i < nr_sorted; i++, node = rb_next(node))
		CHECK_EQ(node, &linked(sorted[i])->rb);
	CHECK(!node);
}

/* After each step the path from the changed node to the root is right; from time to time the whole tree is checked. */
static void check_path(const struct rb_root *root, const struct rb_node *node)
{
	uint32_t size;
	uint64_t sum;

	for (; root->update && node; node = rb_parent(node)) {
		summarise(node, &size, &sum);
		CHECK_EQ(item_of(node)->size, size);
		CHECK_EQ(item_of(node)->sum, sum);
	}
}

static void random_step(struct rb_root *root, struct rng *rng, uint32_t keys, bool grow)
{
	uint32_t key = (uint32_t)rng_below(rng, keys);
	size_t at = position(key);
	bool is_in = at < nr_sorted && sorted[at] == key;

	if (is_in && rng_below(rng, 4) == 0)
		replace(root, key);
	else if (is_in != grow || rng_below(rng, 4) == 0)
		toggle(root, key);
	if (nr_sorted) {
		at = position(key);
		at = at < nr_sorted ? at : nr_sorted - 1;
		check_path(root, &linked(sorted[at])->rb);
		check_neighbours(root, at);
	}
	steps++;
}

static void random_tree(uint64_t stream, uint32_t keys, rb_update_fn *fn)
{
	struct rb_root root = { .update = fn };
	struct rng rng = rng_stream(stream);
	uint64_t times = test_times(10 * (uint64_t)keys);
	uint64_t every = times / 16 + 1;

	nr_sorted = 0;
	for (uint64_t i = 0; i < times; i++) {
		random_step(&root, &rng, keys, i < times * 6 / 10);
		if (keys <= 64 || i % every == 0)
			check_whole(&root);
	}
	while (nr_sorted)
		toggle(&root, sorted[rng_below(&rng, nr_sorted)]);
	CHECK(!root.node);
}

/* Ascending, descending, and all keys: the depth is at most 2 log2(n + 1). */
static void check_depth(const struct rb_root *root, uint32_t keys)
{
	int depth, limit = 2 * (32 - __builtin_clz(keys));

	for (size_t i = 0; i < nr_sorted; i++) {
		depth = 0;
		for (const struct rb_node *node = &linked(sorted[i])->rb; node; node = rb_parent(node))
			depth++;
		CHECK(depth <= limit);
	}
	check_whole(root);
}

static void ordered_tree(uint32_t keys, bool up)
{
	struct rb_root root = { .update = update };

	for (uint32_t i = 0; i < keys; i++)
		toggle(&root, up ? i : keys - 1 - i);
	check_depth(&root, keys);
	for (uint32_t i = 0; i < keys; i++)
		toggle(&root, up ? i : keys - 1 - i);
	CHECK(!root.node);
}

/* ---- trees that are built from sorted nodes ---- */

static struct rb_node *node_at(const void *context, size_t i)
{
	CHECK_EQ(context, pool[0]);
	return &pool[0][i].rb;
}

/* The least depth of a tree of n nodes. */
static void check_least_depth(const struct rb_root *root, uint32_t n)
{
	int depth, most = 0;

	for (size_t i = 0; i < n; i++) {
		depth = 0;
		for (const struct rb_node *node = &pool[0][i].rb; node; node = rb_parent(node))
			depth++;
		most = depth > most ? depth : most;
	}
	CHECK_EQ(most, n ? 32 - __builtin_clz(n) : 0);
	check_tree(root);
}

/* The twin has the shape and the colours of the tree. */
static void check_mirror(const struct rb_root *root, uint32_t n)
{
	struct rb_root twin = { .node = rb_shifted(root->node, sizeof(pool[0])) };

	for (uint32_t i = 0; i < n; i++) {
		pool[1][i].key = i;
		rb_mirror(&pool[1][i].rb, &pool[0][i].rb);
		CHECK_EQ(pool[1][i].rb.parent_color & RB_BLACK, pool[0][i].rb.parent_color & RB_BLACK);
	}
	check_tree(&twin);
	CHECK_EQ(rb_first(&twin), n ? &pool[1][0].rb : NULL);
	CHECK_EQ(rb_last(&twin), n ? &pool[1][n - 1].rb : NULL);
}

/* Links and a root that are not initialized do not matter. */
static void built_tree(uint32_t n, rb_update_fn *fn)
{
	struct rb_root root = { .node = &pool[0][KEYS_MAX - 1].rb, .update = fn };

	memset(pool, 0xA5, n * sizeof(pool[0][0]));
	memset(which, 0, sizeof(which));
	for (uint32_t i = 0; i < n; i++) {
		pool[0][i].key = i;
		sorted[i] = i;
	}
	rb_build(&root, n, node_at, pool[0]);
	nr_sorted = n;
	check_least_depth(&root, n);
	check_whole(&root);
	check_mirror(&root, n);
	for (uint32_t i = 0; i < n && n <= 64; i++) {
		toggle(&root, i);
		check_whole(&root);
		toggle(&root, i);
		check_whole(&root);
	}
}

static void built_trees(void)
{
	for (uint32_t n = 0; n <= 260; n++)
		built_tree(n, n % 2 ? update : NULL);
	built_tree(KEYS_MAX - 1, update);
	built_tree(KEYS_MAX - 2, NULL);
}

/* ---- broken invariants ---- */

#define PLANTED 64

static struct item planted[PLANTED];

static void plant_tree(struct rb_root *root, struct rng *rng)
{
	uint32_t order[PLANTED];

	*root = (struct rb_root){ 0 };
	for (uint32_t i = 0; i < PLANTED; i++) {
		uint32_t j = (uint32_t)rng_below(rng, i + 1);

		order[i] = order[j];
		order[j] = i;
		planted[i].key = 2 * i;
	}
	for (uint32_t i = 0; i < PLANTED; i++)
		insert(root, &planted[order[i]]);
	CHECK_EQ(rb_check(root, before), 0);
}

static bool is_red(const struct rb_node *node)
{
	return !(node->parent_color & RB_BLACK);
}

static void break_r1(struct rb_root *root)
{
	struct rb_node *top = root->node;

	top->parent_color &= ~RB_BLACK;
	CHECK_EQ(rb_check(root, before), 1);
	top->parent_color = (uintptr_t)top->child[0] | RB_BLACK;
	CHECK_EQ(rb_check(root, before), 1);
	top->parent_color = RB_BLACK;
}

/* A black node under a red one turns red: R3 breaks with R2, and the check finds R2 first. */
static void break_r2(struct rb_root *root, struct rb_node *node)
{
	if (is_red(node) || node == root->node || !is_red(rb_parent(node)))
		return;
	node->parent_color &= ~RB_BLACK;
	CHECK_EQ(rb_check(root, before), 2);
	node->parent_color |= RB_BLACK;
}

/* A red node turns black: one path is longer, and nothing else is wrong. */
static void break_r3(struct rb_root *root, struct rb_node *node)
{
	if (!is_red(node))
		return;
	node->parent_color |= RB_BLACK;
	CHECK_EQ(rb_check(root, before), 3);
	node->parent_color &= ~RB_BLACK;
}

static void break_r4(struct rb_root *root, struct rb_node *node)
{
	uintptr_t sound = node->parent_color;
	struct rb_node *grand = rb_parent(node) ? rb_parent(rb_parent(node)) : NULL;

	if (node == root->node)
		return;
	node->parent_color = (uintptr_t)grand | (sound & RB_BLACK);
	CHECK_EQ(rb_check(root, before), 4);
	node->parent_color = (uintptr_t)node | (sound & RB_BLACK);
	CHECK_EQ(rb_check(root, before), 4);
	node->parent_color = sound;
}

/* The check must end on a subtree that is its own child. */
static void break_r4_ring(struct rb_root *root, struct rb_node *node)
{
	struct rb_node *sound = node->child[1];

	if (node == root->node)
		return;
	node->child[1] = rb_parent(node);
	CHECK_EQ(rb_check(root, before), 4);
	node->child[1] = sound;
}

static void break_r5(struct rb_root *root, struct item *item)
{
	uint32_t sound = item->key;

	if (&item->rb != rb_last(root)) {
		item->key = sound + 2; /* equal to the next key: not ascending */
		CHECK_EQ(rb_check(root, before), 5);
		item->key = sound + 3;
		CHECK_EQ(rb_check(root, before), 5);
	}
	if (&item->rb != rb_first(root)) {
		item->key = sound - 2;
		CHECK_EQ(rb_check(root, before), 5);
	}
	item->key = sound;
}

/* The check recurses, so it must stop in a chain that is too deep for a tree, before its stack ends. */
static void deep_chain(int dir)
{
	enum { DEEP = 1 << 20 };
	struct item *chain = calloc(DEEP, sizeof(*chain));
	struct rb_root root = { .node = &chain[0].rb };

	for (uint32_t i = 0; i < DEEP; i++) {
		chain[i].key = dir ? i : DEEP - i;
		chain[i].rb.parent_color = (uintptr_t)(i ? &chain[i - 1].rb : NULL) | RB_BLACK;
		chain[i].rb.child[dir] = i + 1 < DEEP ? &chain[i + 1].rb : NULL;
	}
	CHECK_EQ(rb_check(&root, before), 3);
	free(chain);
}

static void planted_defects(void)
{
	struct rng rng = rng_stream(99);
	struct rb_root root;

	for (uint64_t round = test_times(200); round; round--) {
		plant_tree(&root, &rng);
		break_r1(&root);
		for (unsigned i = 0; i < PLANTED; i++) {
			break_r2(&root, &planted[i].rb);
			break_r3(&root, &planted[i].rb);
			break_r4(&root, &planted[i].rb);
			break_r4_ring(&root, &planted[i].rb);
			break_r5(&root, &planted[i]);
		}
		check_tree(&root);
	}
}

static void empty_tree(void)
{
	struct rb_root root = { 0 };

	CHECK_EQ(rb_check(&root, before), 0);
	CHECK(!rb_first(&root) && !rb_last(&root));
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 120);
	empty_tree();
	planted_defects();
	deep_chain(0);
	deep_chain(1);
	printf("  %" PRIu64 " orders of insertion and erasure\n", every_order(test_slow ? 6 : ORDERS_MAX));
	if (test_slow)
		every_tree(9, 16384);
	else
		every_tree(REACH_MAX, 1 << 18);
	for (uint32_t keys = 1; keys <= KEYS_MAX; keys *= 2) {
		random_tree(keys, keys, NULL);
		random_tree(keys + 1, keys, update);
		by_largest = true;
		random_tree(keys + 2, keys, update);
		by_largest = false;
	}
	ordered_tree(KEYS_MAX, true);
	ordered_tree(KEYS_MAX, false);
	ordered_tree(1000, true);
	built_trees();
	return test_done("rbtree", steps, "steps");
}
