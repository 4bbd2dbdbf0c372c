/* SPDX-License-Identifier: MIT */
/*
 * test_sort.c - sort_by_key() against a sort of the C library: the same order, with equal keys in their old order.
 */
#include "test.h"

#include "sort.h"

#define ITEMS_MAX 3000

static struct sort_item all_items[ITEMS_MAX], wanted[ITEMS_MAX], spare[ITEMS_MAX + 1];

static int by_key_and_place(const void *a, const void *b)
{
	const struct sort_item *x = a, *y = b;

	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	return x->item < y->item ? -1 : 1;
}

/* Keys that differ in some bytes only, keys with few values, sorted and falling keys. */
static uint64_t some_key(struct rng *rng, unsigned kind, size_t i, uint64_t mask)
{
	switch (kind) {
	case 0:
		return i / 2;
	case 1:
		return ITEMS_MAX - i / 3;
	case 2:
		return rng_below(rng, 3) << 60;
	default:
		return (rng_next(rng) & mask) | 0x5A0000005A000000u;
	}
}

static void sort_once(struct rng *rng, size_t n)
{
	uint64_t mask = rng_next(rng) & rng_next(rng);
	unsigned kind = (unsigned)rng_below(rng, 6);
	struct sort_item *items = &all_items[ITEMS_MAX - n]; /* a sanitizer sees a read behind them */

	for (size_t i = 0; i < n; i++)
		items[i] = (struct sort_item){ some_key(rng, kind, i, mask), &items[i] };
	memcpy(wanted, items, n * sizeof(*items));
	qsort(wanted, n, sizeof(*wanted), by_key_and_place);
	memset(&spare[n], 0x5A, sizeof(*spare));
	sort_by_key(items, spare, n);
	CHECK_EQ(spare[n].key, 0x5A5A5A5A5A5A5A5Au);
	for (size_t i = 0; i < n; i++) {
		CHECK_EQ(items[i].key, wanted[i].key);
		CHECK_EQ(items[i].item, wanted[i].item);
	}
}

int main(int argc, char **argv)
{
	struct rng rng;
	uint64_t times;

	test_init(argc, argv, 60);
	rng = rng_stream(1);
	times = test_times(2000);
	for (uint64_t i = 0; i < times; i++)
		sort_once(&rng, rng_below(&rng, i % 8 ? 40 : ITEMS_MAX));
	return test_done("sort", times, "lists");
}
