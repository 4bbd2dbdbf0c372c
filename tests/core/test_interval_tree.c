/* SPDX-License-Identifier: MIT */
/*
 * test_interval_tree.c - interval trees compared with a sorted array.
 *
 * A coordinate of a short axis stands for an address at the bottom or at the top of the 64-bit space, so that few
 * coordinates make many equal, touching and nested intervals and reach both ends of the space.
 */
#include "test.h"

#include "interval_tree.h"

/* An interval with two hooks, so that it can be in two trees at once. */
struct item {
	struct interval_hook front;
	struct interval interval;
	struct interval_hook rear;
	uint64_t tie;
};

#define ITEMS_MAX 4096

struct model {
	struct interval_tree tree;
	bool rear;
	bool ties;
	struct item *item[ITEMS_MAX]; /* in the order of the tree */
	size_t nr;
};

static struct item pool[ITEMS_MAX];
static struct model models[2];
static uint64_t queries;

static bool tie_before(const struct interval *a, const struct interval *b)
{
	return container_of(a, struct item, interval)->tie < container_of(b, struct item, interval)->tie;
}

static void model_init(struct model *m, bool rear, bool ties)
{
	ptrdiff_t hook = rear ? offsetof(struct item, rear) : offsetof(struct item, front);

	m->rear = rear;
	m->ties = ties;
	m->nr = 0;
	interval_tree_init(&m->tree, (ptrdiff_t)offsetof(struct item, interval) - hook, ties ? tie_before : NULL);
}

static struct interval_hook *hook_of(const struct model *m, struct item *item)
{
	return m->rear ? &item->rear : &item->front;
}

static bool item_before(const struct model *m, const struct item *a, const struct item *b)
{
	if (a->interval.start != b->interval.start)
		return a->interval.start < b->interval.start;
	return m->ties && a->tie < b->tie;
}

static void add(struct model *m, struct item *item)
{
	size_t at = m->nr;

	interval_tree_add(&m->tree, hook_of(m, item));
	while (at && item_before(m, item, m->item[at - 1]))
		at--;
	memmove(&m->item[at + 1], &m->item[at], (m->nr++ - at) * sizeof(*m->item));
	m->item[at] = item;
}

static void del_at(struct model *m, size_t at)
{
	interval_tree_del(&m->tree, hook_of(m, m->item[at]));
	memmove(&m->item[at], &m->item[at + 1], (--m->nr - at) * sizeof(*m->item));
}

static void del(struct model *m, const struct item *item)
{
	size_t at = 0;

	while (m->item[at] != item)
		at++;
	del_at(m, at);
}

/* All hits in order, and nothing after them. */
static void check_query(const struct model *m, uint64_t start, uint64_t last)
{
	struct interval_hook *hook = interval_tree_first(&m->tree, start, last);

	queries++;
	for (size_t i = 0; i < m->nr && start <= last; i++) {
		const struct interval *interval = &m->item[i]->interval;

		if (interval->start > last || interval->last < start)
			continue;
		CHECK_EQ(hook, hook_of(m, m->item[i]));
		CHECK_EQ(interval_of(&m->tree, hook), interval);
		hook = interval_tree_next(&m->tree, hook, start, last);
	}
	CHECK_EQ(hook, NULL);
}

static void check_tree(const struct model *m)
{
	CHECK_EQ(interval_tree_check(&m->tree), 0);
	check_query(m, 0, UINT64_MAX);
}

/* The address of a coordinate: the lower half of the axis starts at 0, the upper half ends at 2^64 - 1. */
static uint64_t address(uint64_t coordinate, uint64_t axis)
{
	return coordinate < axis / 2 ? coordinate : UINT64_MAX - (axis - 1 - coordinate);
}

/* ---- all trees of a few intervals on a short axis, with all queries ---- */

#define AXIS 4

static unsigned depth_max;

static void every_query(const struct model *m)
{
	for (uint64_t start = 0; start < AXIS; start++)
		for (uint64_t last = 0; last < AXIS; last++)
			check_query(m, address(start, AXIS), address(last, AXIS));
}

/* Deletes each item in turn, and adds it again behind its equals. */
static void every_deletion(struct model *m)
{
	struct item *order[ITEMS_MAX];
	size_t nr = m->nr;

	for (size_t i = 0; i < nr; i++)
		order[i] = &pool[i];
	for (size_t i = 0; i < nr; i++) {
		del(m, order[i]);
		CHECK_EQ(interval_tree_check(&m->tree), 0);
		every_query(m);
		add(m, order[i]);
	}
}

static void every_sequence(struct model *m, unsigned depth)
{
	struct item *item = &pool[depth];

	CHECK_EQ(interval_tree_check(&m->tree), 0);
	every_query(m);
	if (depth == depth_max) {
		every_deletion(m);
		return;
	}
	for (uint64_t start = 0; start < AXIS; start++)
		for (uint64_t last = start; last < AXIS; last++) {
			item->interval = (struct interval){ address(start, AXIS), address(last, AXIS) };
			item->tie = depth ^ 1; /* neither the order of addition nor its reverse */
			add(m, item);
			every_sequence(m, depth + 1);
			del(m, item);
		}
}

static void exhaustive(void)
{
	depth_max = test_slow ? 3 : 4;
	for (int ties = 0; ties < 2; ties++) {
		model_init(&models[0], ties, ties);
		every_sequence(&models[0], 0);
		CHECK(!models[0].nr && !models[0].tree.root.node);
	}
}

/* ---- random: both trees, short and long axes ---- */

static uint64_t random_address(struct rng *rng, uint64_t axis)
{
	return axis ? address(rng_below(rng, axis), axis) : rng_next(rng);
}

static void random_interval(struct rng *rng, struct item *item, uint64_t axis)
{
	uint64_t a = random_address(rng, axis), b = random_address(rng, axis);

	if (rng_below(rng, 2)) /* short ones too, or else most intervals touch */
		b = a > UINT64_MAX - 2 ? a : a + rng_below(rng, 3);
	item->interval.start = a < b ? a : b;
	item->interval.last = a < b ? b : a;
	item->tie = rng_below(rng, 4);
}

static bool is_in[2][ITEMS_MAX];

static void random_step(struct model *m, struct rng *rng, size_t items, uint64_t axis)
{
	size_t i = rng_below(rng, items), tree = (size_t)(m - models);

	if (is_in[tree][i])
		del(m, &pool[i]);
	else {
		if (!is_in[!tree][i]) /* an interval in a tree must not change */
			random_interval(rng, &pool[i], axis);
		add(m, &pool[i]);
	}
	is_in[tree][i] ^= 1;
}

static void check_ends(const struct model *m, const struct interval *interval)
{
	uint64_t start = interval->start, last = interval->last;

	check_query(m, start, start);
	check_query(m, last, last);
	check_query(m, start, last);
	if (start)
		check_query(m, start - 1, start - 1);
	if (last != UINT64_MAX)
		check_query(m, last + 1, UINT64_MAX);
	if (start < last)
		check_query(m, last, start); /* an empty range */
}

static void random_queries(const struct model *m, struct rng *rng, uint64_t axis)
{
	for (int i = 0; i < 4; i++)
		check_query(m, random_address(rng, axis), random_address(rng, axis));
	if (m->nr)
		check_ends(m, &m->item[rng_below(rng, m->nr)]->interval);
}

static void random_trees(uint64_t stream, size_t items, uint64_t axis, uint64_t times)
{
	struct rng rng = rng_stream(stream);

	model_init(&models[0], false, stream % 2);
	model_init(&models[1], true, stream / 2 % 2);
	for (uint64_t i = 0; i < times; i++) {
		struct model *m = &models[rng_below(&rng, 2)];

		random_step(m, &rng, items, axis);
		random_queries(&models[i % 2], &rng, axis);
		if (i % (items / 4 + 1) == 0)
			check_tree(&models[i % 2]);
	}
	for (size_t tree = 0; tree < 2; tree++)
		while (models[tree].nr)
			del_at(&models[tree], rng_below(&rng, models[tree].nr));
	memset(is_in, 0, sizeof(is_in));
	CHECK(!models[0].tree.root.node && !models[1].tree.root.node);
}

static void random_mixtures(void)
{
	static const uint64_t axes[] = { 6, 40, 1000, 0 };

	for (uint64_t i = 0; i < 4 * ARRAY_SIZE(axes); i++) {
		random_trees(i, 10, axes[i / 4], test_times(20000));
		random_trees(i + 100, 200, axes[i / 4], test_times(6000));
	}
	random_trees(200, ITEMS_MAX, 0, test_times(20000));
	random_trees(201, ITEMS_MAX, 20000, test_times(20000));
}

/* ---- special cases ---- */

static void fill(struct model *m, size_t nr, uint64_t start, uint64_t step, uint64_t length)
{
	for (size_t i = 0; i < nr; i++) {
		pool[i].interval.start = start + i * step;
		pool[i].interval.last = pool[i].interval.start + length - 1;
		pool[i].tie = nr - i;
		add(m, &pool[i]);
	}
}

static void empty_tree(void)
{
	model_init(&models[0], false, false);
	CHECK(!interval_tree_first(&models[0].tree, 0, UINT64_MAX));
	CHECK(!interval_tree_first(&models[0].tree, 5, 4));
	check_tree(&models[0]);
}

/* Neighbours that touch at their ends: each point is in exactly one. */
static void touching(void)
{
	struct interval_hook *hook;

	model_init(&models[0], false, false);
	fill(&models[0], 100, 0, 10, 10);
	for (uint64_t point = 0; point < 1000; point++) {
		hook = interval_tree_first(&models[0].tree, point, point);
		CHECK_EQ(hook, &pool[point / 10].front);
		CHECK(!interval_tree_next(&models[0].tree, hook, point, point));
	}
	CHECK(!interval_tree_first(&models[0].tree, 1000, UINT64_MAX));
}

/* Aliases: equal intervals come in order of addition, or of their ties. */
static void aliases(bool ties)
{
	struct interval_hook *hook;

	model_init(&models[0], true, ties);
	fill(&models[0], 100, 7, 0, 3);
	hook = interval_tree_first(&models[0].tree, 9, 9);
	for (size_t i = 0; i < 100; i++) {
		CHECK_EQ(hook, &pool[ties ? 99 - i : i].rear);
		hook = interval_tree_next(&models[0].tree, hook, 9, 9);
	}
	CHECK(!hook && !interval_tree_first(&models[0].tree, 10, 10) && !interval_tree_first(&models[0].tree, 6, 6));
}

/* A long interval first, then short ones: a hit far to the left of the others. */
static void long_shadow(void)
{
	model_init(&models[0], false, false);
	fill(&models[0], 1000, 100, 100, 1);
	pool[1000].interval = (struct interval){ 0, UINT64_MAX };
	add(&models[0], &pool[1000]);
	for (uint64_t point = 0; point < 101000; point += 50)
		check_query(&models[0], point, point + 60);
	check_query(&models[0], UINT64_MAX, UINT64_MAX);
	check_tree(&models[0]);
}

/* ---- broken invariants ---- */

static void break_t1(struct model *m, struct interval_hook *hook)
{
	uint64_t sound = hook->subtree_last;

	hook->subtree_last = sound + 1;
	CHECK_EQ(interval_tree_check(&m->tree), INTERVAL_TREE_BROKEN_T1);
	hook->subtree_last = sound - 1;
	CHECK_EQ(interval_tree_check(&m->tree), INTERVAL_TREE_BROKEN_T1);
	hook->subtree_last = sound;
	CHECK_EQ(interval_tree_check(&m->tree), 0);
}

static void break_t2(struct model *m, size_t at)
{
	uint64_t sound = m->item[at]->interval.start;

	m->item[at]->interval.start = m->item[at + 1]->interval.start + 1;
	CHECK_EQ(interval_tree_check(&m->tree), INTERVAL_TREE_BROKEN_T2);
	m->item[at]->interval.start = sound;
	CHECK_EQ(interval_tree_check(&m->tree), 0);
}

static void break_tie(struct model *m, size_t at)
{
	uint64_t sound = m->item[at]->tie;

	m->item[at]->tie = m->item[at + 1]->tie + 1;
	CHECK_EQ(interval_tree_check(&m->tree), INTERVAL_TREE_BROKEN_T2);
	m->item[at]->tie = sound;
	CHECK_EQ(interval_tree_check(&m->tree), 0);
}

/* A defect of the red-black tree is reported with its own number. */
static void break_r1(struct model *m)
{
	m->tree.root.node->parent_color &= ~RB_BLACK;
	CHECK_EQ(interval_tree_check(&m->tree), 1);
	m->tree.root.node->parent_color |= RB_BLACK;
}

static void empty_range_after_a_hit(void)
{
	struct model *m = &models[0];

	model_init(m, false, true);
	fill(m, 7, 1, 0, 25); /* each contains 5 and 10 */
	for (size_t at = 0; at < m->nr; at++)
		CHECK(!interval_tree_next(&m->tree, hook_of(m, m->item[at]), 10, 5));
}

/* An interval with the same start and tie, but another end, replaces an item, and the item replaces it again. */
static void replacements(bool rear)
{
	struct model *m = &models[0];
	struct rng rng = rng_stream(5);

	model_init(m, rear, true);
	fill(m, 200, 10, 5, 25);
	for (size_t at = 0; at < m->nr; at++) {
		struct item *item = m->item[at], twin = { .interval = item->interval, .tie = item->tie };

		twin.interval.last = twin.interval.start + rng_below(&rng, 2000);
		interval_tree_replace(&m->tree, hook_of(m, item), hook_of(m, &twin));
		m->item[at] = &twin;
		check_tree(m);
		interval_tree_replace(&m->tree, hook_of(m, &twin), hook_of(m, item));
		m->item[at] = item;
		check_tree(m);
	}
}

static void planted_defects(void)
{
	model_init(&models[0], false, true);
	fill(&models[0], 100, 10, 10, 25);
	for (size_t i = 0; i < 100; i++)
		break_t1(&models[0], hook_of(&models[0], models[0].item[i]));
	for (size_t i = 0; i < 99; i++)
		break_t2(&models[0], i);
	break_r1(&models[0]);

	model_init(&models[0], false, true);
	fill(&models[0], 100, 10, 0, 25);
	for (size_t i = 0; i < 99; i++)
		break_tie(&models[0], i);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 120);
	empty_tree();
	empty_range_after_a_hit();
	touching();
	aliases(false);
	aliases(true);
	long_shadow();
	exhaustive();
	random_mixtures();
	replacements(false);
	replacements(true);
	planted_defects();
	return test_done("interval_tree", queries, "queries");
}
