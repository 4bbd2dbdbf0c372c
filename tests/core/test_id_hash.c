/* SPDX-License-Identifier: MIT */
/*
 * test_id_hash.c - id hashes compared with an array of their items, with and without growth.
 */
#include "test.h"

#include "id_hash.h"

/* An id with two links, so that it can be in two hashes at once. */
struct item {
	struct id_link front;
	uint32_t id;
	struct id_link rear;
	bool is_in[2];
};

#define ITEMS_MAX 32764 /* KVM's number of user slots, for which chains would be longest */

static struct item pool[ITEMS_MAX];
static struct id_hash hashes[2];
static size_t nr_in[2];
static uint64_t steps;

static struct id_link *link_of(int which, struct item *item)
{
	return which ? &item->rear : &item->front;
}

static void init(int which)
{
	ptrdiff_t link = which ? offsetof(struct item, rear) : offsetof(struct item, front);

	id_hash_init(&hashes[which], (ptrdiff_t)offsetof(struct item, id) - link);
	nr_in[which] = 0;
	CHECK_EQ(id_hash_check(&hashes[which]), 0);
	CHECK_EQ(hashes[which].bits, ID_HASH_BITS_MIN);
}

static void rehash(int which, unsigned bits)
{
	struct id_hash *hash = &hashes[which];
	struct id_link **buckets = calloc(1, id_hash_size(bits)), **old;
	unsigned had = hash->bits, old_bits = 0;

	CHECK(buckets);
	old = id_hash_rehash(hash, buckets, bits, &old_bits);
	CHECK_EQ(old_bits, had);
	CHECK_EQ(!old, had == ID_HASH_BITS_MIN);
	CHECK_EQ(hash->bits, bits);
	CHECK_EQ(hash->buckets, buckets);
	free(old);
}

static void deinit(int which)
{
	if (hashes[which].buckets != hashes[which].built_in)
		free(hashes[which].buckets);
}

static void grow(int which)
{
	unsigned bits = id_hash_bits_for(&hashes[which], hashes[which].nr + 1);

	if (bits != hashes[which].bits)
		rehash(which, bits);
}

static void toggle(int which, struct item *item)
{
	if (item->is_in[which]) {
		id_hash_del(&hashes[which], link_of(which, item));
		nr_in[which]--;
	} else {
		id_hash_add(&hashes[which], link_of(which, item));
		nr_in[which]++;
	}
	item->is_in[which] ^= 1;
	CHECK_EQ(hashes[which].nr, nr_in[which]);
	steps++;
}

static void check_find(int which, struct item *item)
{
	CHECK_EQ(id_hash_find(&hashes[which], item->id), item->is_in[which] ? link_of(which, item) : NULL);
}

static void check_all(int which, size_t items)
{
	CHECK_EQ(id_hash_check(&hashes[which]), 0);
	for (size_t i = 0; i < items; i++)
		check_find(which, &pool[i]);
}

static void empty(int which, size_t items)
{
	for (size_t i = 0; i < items; i++)
		if (pool[i].is_in[which])
			toggle(which, &pool[i]);
	CHECK_EQ(hashes[which].nr, 0);
	CHECK_EQ(id_hash_check(&hashes[which]), 0);
	deinit(which);
}

/* ---- replacements ---- */

static void replacements(int which)
{
	enum { NR = 100 };

	for (size_t i = 0; i < NR; i++)
		pool[i] = (struct item){ .id = (uint32_t)(i * 7) };
	init(which);
	for (size_t i = 0; i < NR; i++)
		toggle(which, &pool[i]);
	for (size_t i = 0; i < NR; i++) {
		struct item twin = { .id = pool[i].id };

		id_hash_replace(&hashes[which], link_of(which, &pool[i]), link_of(which, &twin));
		CHECK_EQ(id_hash_find(&hashes[which], twin.id), link_of(which, &twin));
		CHECK_EQ(id_hash_check(&hashes[which]), 0);
		id_hash_replace(&hashes[which], link_of(which, &twin), link_of(which, &pool[i]));
		check_all(which, NR);
	}
	empty(which, NR);
}

/* ---- the wanted size ---- */

static void wanted_sizes(void)
{
	struct id_hash *hash = &hashes[0];

	init(0);
	for (unsigned bits = ID_HASH_BITS_MIN; bits < ID_HASH_BITS_MAX; bits++) {
		CHECK_EQ(id_hash_bits_for(hash, (size_t)1 << bits), bits);
		CHECK_EQ(id_hash_bits_for(hash, ((size_t)1 << bits) + 1), bits + 1);
	}
	CHECK_EQ(id_hash_bits_for(hash, 0), ID_HASH_BITS_MIN);
	CHECK_EQ(id_hash_bits_for(hash, ((size_t)1 << ID_HASH_BITS_MAX) + 1), ID_HASH_BITS_MAX);
	CHECK_EQ(id_hash_bits_for(hash, SIZE_MAX), ID_HASH_BITS_MAX);
	CHECK_EQ(id_hash_size(5), 32 * sizeof(void *));
	rehash(0, 9);
	CHECK_EQ(id_hash_bits_for(hash, 3), 9); /* it never shrinks */
	CHECK_EQ(id_hash_bits_for(hash, 513), 10);
	deinit(0);
}

/* ---- ids in a row: growth at each boundary, and the length of chains ---- */

static size_t longest_chain(const struct id_hash *hash)
{
	size_t longest = 0;

	for (size_t i = 0; i < (size_t)1 << hash->bits; i++) {
		size_t length = 0;

		for (const struct id_link *link = hash->buckets[i]; link; link = link->next)
			length++;
		longest = length > longest ? length : longest;
	}
	return longest;
}

static void number_items(uint32_t first, uint32_t stride)
{
	for (uint32_t i = 0; i < ITEMS_MAX; i++)
		pool[i] = (struct item){ .id = first + i * stride };
}

/* The golden ratio spreads n neighbouring ids over 2^b >= n buckets with at most two in one. */
#define CHAIN_MAX 2

static void ids_in_a_row(uint32_t first)
{
	size_t longest = 0, chain;

	number_items(first, 1);
	init(0);
	for (size_t i = 0; i < ITEMS_MAX; i++) {
		unsigned bits = hashes[0].bits;

		grow(0);
		toggle(0, &pool[i]);
		if (hashes[0].bits != bits || i + 1 == ITEMS_MAX) {
			check_all(0, ITEMS_MAX);
			CHECK(hashes[0].nr <= (size_t)1 << hashes[0].bits);
			chain = longest_chain(&hashes[0]);
			longest = chain > longest ? chain : longest;
		}
	}
	chain = longest_chain(&hashes[0]);
	printf("  ids %" PRIu32 " to %" PRIu32 ": longest chain %zu, %zu while it grew\n", first, first + ITEMS_MAX - 1,
	       chain, longest);
	CHECK(longest <= CHAIN_MAX);
	empty(0, ITEMS_MAX);
}

/* Growth is optional: without it the chains are long and the answers the same. */
static void never_grown(void)
{
	size_t items = test_slow ? 4000 : ITEMS_MAX;

	number_items(0, 1);
	init(0);
	for (size_t i = 0; i < items; i++)
		toggle(0, &pool[i]);
	CHECK_EQ(hashes[0].bits, ID_HASH_BITS_MIN);
	CHECK(longest_chain(&hashes[0]) >= items >> ID_HASH_BITS_MIN);
	check_all(0, items);
	rehash(0, 15); /* late growth, by several steps at once */
	check_all(0, items);
	rehash(0, 16);
	check_all(0, items);
	empty(0, items);
}

/* ---- random: two hashes, one of which grows ---- */

static uint32_t random_id(struct rng *rng, size_t i)
{
	static const uint32_t ends[] = { 0, UINT32_MAX, 1, UINT32_MAX - 1, 0x80000000u, 0x7FFFFFFFu };

	/* The upper half keeps the ids distinct; the mask keeps them away from the ends. */
	if (i < ARRAY_SIZE(ends))
		return ends[i];
	return (uint32_t)(((i + 2) << 16) | rng_below(rng, 1 << 16)) & 0x7FFFFFFEu;
}

static void random_step(struct rng *rng, size_t items)
{
	struct item *item = &pool[rng_below(rng, items)];
	int which = (int)rng_below(rng, 2);

	if (!which)
		grow(which);
	toggle(which, item);
	check_find(0, item);
	check_find(1, item);
	item = &pool[rng_below(rng, items)];
	check_find(which, item);
}

static void random_ids(uint64_t stream, size_t items, uint64_t times)
{
	struct rng rng = rng_stream(stream);

	for (size_t i = 0; i < items; i++)
		pool[i] = (struct item){ .id = random_id(&rng, i) };
	init(0);
	init(1);
	for (uint64_t i = 0; i < times; i++) {
		random_step(&rng, items);
		if (i % (times / 16 + 1) == 0) {
			check_all(0, items);
			check_all(1, items);
		}
	}
	CHECK_EQ(hashes[1].bits, ID_HASH_BITS_MIN);
	empty(0, items);
	empty(1, items);
}

/* All ids fall into one bucket: head, middle and tail leave the chain in every order. */
static void one_chain(void)
{
	static const int orders[6][3] = {
		{ 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 }
	};
	size_t nr = 0;

	init(0);
	for (uint32_t id = 0; nr < 3; id++)
		if (id_hash_bucket(&hashes[0], id) == &hashes[0].buckets[7])
			pool[nr++] = (struct item){ .id = id };
	for (int order = 0; order < 6; order++) {
		for (int i = 0; i < 3; i++)
			toggle(0, &pool[i]);
		for (int i = 0; i < 3; i++) {
			toggle(0, &pool[orders[order][i]]);
			check_all(0, 3);
		}
	}
	empty(0, 3);
}

/* ---- broken invariants ---- */

static void break_i1(struct item *item)
{
	uint32_t sound = item->id;
	struct id_link **bucket = id_hash_bucket(&hashes[0], sound);

	do
		item->id += ITEMS_MAX;
	while (id_hash_bucket(&hashes[0], item->id) == bucket);
	CHECK_EQ(id_hash_check(&hashes[0]), 1);
	item->id = sound;
	CHECK_EQ(id_hash_check(&hashes[0]), 0);
}

static void break_i2(const struct item *item)
{
	struct item twin = { .id = item->id };

	id_hash_add(&hashes[0], &twin.front);
	CHECK_EQ(id_hash_check(&hashes[0]), 2);
	id_hash_del(&hashes[0], &twin.front);
	CHECK_EQ(id_hash_check(&hashes[0]), 0);
}

static void break_i3(struct item *item)
{
	struct id_link **at = id_hash_bucket(&hashes[0], item->id);

	hashes[0].nr++;
	CHECK_EQ(id_hash_check(&hashes[0]), 3);
	hashes[0].nr -= 2;
	CHECK_EQ(id_hash_check(&hashes[0]), 3);
	hashes[0].nr++;

	while (*at != &item->front)
		at = &(*at)->next;
	*at = item->front.next; /* unlinked, but still counted */
	CHECK_EQ(id_hash_check(&hashes[0]), 3);
	*at = &item->front;
	CHECK_EQ(id_hash_check(&hashes[0]), 0);
}

/* The check must end on a chain whose last link leads to a middle one. */
static void break_i3_by_a_ring(void)
{
	struct id_link *a, *b, *c;

	number_items(0, 1);
	init(0);
	for (size_t i = 0; i < 200; i++)
		toggle(0, &pool[i]);
	a = hashes[0].buckets[0];
	b = a->next;
	c = b->next;
	CHECK(c && !id_hash_check(&hashes[0]));
	a = c->next;
	c->next = b;
	CHECK_EQ(id_hash_check(&hashes[0]), 3);
	c->next = a;
	empty(0, 200);
}

static void planted_defects(void)
{
	break_i3_by_a_ring();
	number_items(0, 1);
	init(0);
	for (size_t i = 0; i < 100; i++) {
		if (i < 50)
			grow(0);
		toggle(0, &pool[i]);
	}
	for (size_t i = 0; i < 100; i++) {
		break_i1(&pool[i]);
		break_i2(&pool[i]);
		break_i3(&pool[i]);
	}
	empty(0, 100);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 120);
	replacements(0);
	replacements(1);
	wanted_sizes();
	one_chain();
	ids_in_a_row(0);
	ids_in_a_row(UINT32_MAX - ITEMS_MAX + 1);
	never_grown();
	random_ids(1, 40, test_times(100000));
	random_ids(2, 3000, test_times(100000));
	random_ids(3, 30000, test_times(40000));
	planted_defects();
	return test_done("id_hash", steps, "steps");
}
