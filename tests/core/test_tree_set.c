/* SPDX-License-Identifier: MIT */
/*
 * test_tree_set.c - searches by gfn, single and in lanes, compared with a walk over all slots; replacement of slots.
 */
#include "test.h"

#include "tree_set.h"

#define SLOTS_MAX 3000u

static struct memory memory;
static struct address_space space;
static struct memslot_set *const sets = space.set;
static struct memslot *slots[SLOTS_MAX]; /* by gfn */
static uint64_t searches;

static struct memslot *new_slot(uint32_t id, uint64_t base, uint64_t npages)
{
	struct memslot *slot = DESIGN_OF(tree).alloc_slot(&memory);

	CHECK(slot);
	slot->base_gfn = base;
	slot->npages = npages;
	slot->hva = (struct interval){ base << MS_PAGE_SHIFT, ((base + npages) << MS_PAGE_SHIFT) - 1 };
	slot->id = id;
	return slot;
}

/* n slots in random order of creation; a third of them are adjacent to the slot before. */
static void fill(struct rng *rng, uint32_t n)
{
	uint32_t order[SLOTS_MAX];
	uint64_t gfn = rng_below(rng, 2); /* gfn 0 is sometimes in a slot */

	for (uint32_t i = 0; i < n; i++) {
		slots[i] = new_slot(i, gfn, 1 + rng_below(rng, 4));
		gfn += slots[i]->npages + rng_below(rng, 3);
		order[i] = i;
	}
	for (uint32_t i = 0; i < n; i++) {
		uint32_t j = i + (uint32_t)rng_below(rng, n - i), at = order[j];

		order[j] = order[i];
		for (int k = 0; k < 2; k++)
			DESIGN_OF(tree).replace(&sets[k], NULL, slots[at]);
	}
}

static const struct memslot *walk(uint32_t n, uint64_t gfn)
{
	for (uint32_t i = 0; i < n; i++)
		if (gfn >= slots[i]->base_gfn && gfn - slots[i]->base_gfn < slots[i]->npages)
			return slots[i];
	return NULL;
}

/* A gfn at or next to an edge of a slot. */
static uint64_t some_gfn(struct rng *rng, uint32_t n)
{
	const struct memslot *slot = n ? slots[rng_below(rng, n)] : NULL;

	if (!slot || rng_below(rng, 16) == 0)
		return (uint64_t[]){ 0, UINT64_MAX, UINT64_MAX - 1, (uint64_t)1 << 63 }[rng_below(rng, 4)];
	return slot->base_gfn - 1 + rng_below(rng, slot->npages + 2);
}

static void check_lanes(struct rng *rng, const struct memslot_set *set, uint32_t n, size_t lanes)
{
	uint64_t gfns[SEARCH_LANES];
	struct memslot *found[SEARCH_LANES], *unchanged = (struct memslot *)(void *)gfns;

	for (size_t i = 0; i < SEARCH_LANES; i++) {
		gfns[i] = some_gfn(rng, n);
		found[i] = unchanged;
	}
	DESIGN_OF(tree).search_many(set, gfns, found, lanes);
	for (size_t i = 0; i < SEARCH_LANES; i++) {
		const struct memslot *want = walk(n, gfns[i]);

		CHECK(found[i] == (i < lanes ? want : unchanged));
		CHECK(tree_search(set, gfns[i]) == want);
		CHECK(DESIGN_OF(tree).search(set, gfns[i]) == want);
		searches++;
	}
}

static void check_search(struct rng *rng, uint32_t n)
{
	fill(rng, n);
	for (size_t lanes = 0; lanes <= SEARCH_LANES; lanes++)
		for (int k = 0; k < 2; k++)
			check_lanes(rng, &sets[k], n, lanes);
	DESIGN_OF(tree).empty(&memory, &sets[0], false);
	DESIGN_OF(tree).empty(&memory, &sets[1], true);
	CHECK_EQ(memory_blocks(&memory), 0);
}

/* ---- replace ---- */

enum { OTHER_GFN = 1, OTHER_HVA = 2, OTHER_ID = 4, OTHER_SIZE = 8 };

static void check_sets(void)
{
	char letter;

	for (int k = 0; k < 2; k++)
		CHECK_EQ(DESIGN_OF(tree).check(&sets[k], &letter), 0);
}

static void replace_both(struct memslot *old, struct memslot *new_slot)
{
	for (int k = 0; k < 2; k++)
		DESIGN_OF(tree).replace(&sets[k], old, new_slot);
	check_sets();
	searches++;
}

/* The new slot differs in any combination of fields: it takes the old one's place where it can. */
static void check_replace(uint32_t n, uint32_t at, unsigned what)
{
	struct memslot *old = slots[at], *other;

	other = new_slot(old->id + (what & OTHER_ID ? 1000 : 0), old->base_gfn, what & OTHER_SIZE ? 1 : old->npages);
	if (what & OTHER_GFN)
		other->base_gfn = slots[n - 1]->base_gfn + 100;
	if (what & OTHER_HVA)
		other->hva.start -= (uint64_t)1 << 16;
	other->hva.last = other->hva.start + (other->npages << MS_PAGE_SHIFT) - 1;
	replace_both(old, other);
	for (int k = 0; k < 2; k++) {
		CHECK(DESIGN_OF(tree).find(&sets[k], other->id) == other);
		CHECK(tree_search(&sets[k], other->base_gfn) == other);
		CHECK_EQ(sets[k].nr, n);
	}
	replace_both(other, old);
	DESIGN_OF(tree).free_slot(&memory, other);
}

static void test_replace(struct rng *rng)
{
	enum { NR = 40 };

	fill(rng, NR);
	for (uint32_t at = 0; at < NR; at++)
		for (unsigned what = 0; what < 16; what++)
			check_replace(NR, at, what);
	DESIGN_OF(tree).empty(&memory, &sets[0], false);
	DESIGN_OF(tree).empty(&memory, &sets[1], true);
}

/* A change does not use memory that a refused load had reserved. */
static void test_load_refused(void)
{
	struct memslot *slot;

	CHECK_EQ(DESIGN_OF(tree).begin(&memory, &space, &sets[0], 500), 0);
	DESIGN_OF(tree).end(&memory, &space, &sets[0]);
	slot = new_slot(0, 0, 1);
	CHECK_EQ(memory.pool.room, MEMORY_POOL_CHUNK_MIN);
	DESIGN_OF(tree).free_slot(&memory, slot);
	DESIGN_OF(tree).empty(&memory, &sets[0], false);
	CHECK_EQ(memory_blocks(&memory), 0);
}

int main(int argc, char **argv)
{
	static const uint32_t sizes[] = {
		0, 1, 2, 3, 4, 5, 8, 16, 31, 64, 100, 255, 256, 257, 300, 511, 700, SLOTS_MAX
	};
	struct rng rng;

	test_init(argc, argv, 60);
	rng = rng_stream(0);
	memory_init(&memory);
	for (uint32_t k = 0; k < 2; k++) {
		sets[k].node_idx = k;
		DESIGN_OF(tree).init(&sets[k]);
	}
	for (uint64_t round = test_times(10); round; round--)
		for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
			check_search(&rng, sizes[i]);
	test_replace(&rng);
	test_load_refused();
	return test_done("tree_set", searches, "searches");
}
