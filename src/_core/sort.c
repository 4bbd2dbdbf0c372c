/* SPDX-License-Identifier: MIT */
/*
 * sort.c - see sort.h.  A radix sort: one pass for each byte of the keys, from the lowest byte to the highest one.
 */
#include "sort.h"

#include <string.h>

#define BITS 8
#define VALUES (1u << BITS)

/* Returns the bits in which some keys differ, or 0 if the items are sorted. */
static uint64_t bits_to_sort(const struct sort_item *items, size_t n)
{
	uint64_t differ = 0;
	bool falls = false;

	for (size_t i = 1; i < n; i++) {
		differ |= items[i].key ^ items[0].key;
		falls |= items[i].key < items[i - 1].key;
	}
	return falls ? differ : 0;
}

static inline size_t digit(uint64_t key, unsigned shift)
{
	return key >> shift & (VALUES - 1);
}

static void sort_by_digit(const struct sort_item *from, struct sort_item *to, size_t n, unsigned shift)
{
	size_t next[VALUES] = { 0 }, sum = 0;

	for (size_t i = 0; i < n; i++)
		next[digit(from[i].key, shift)]++;
	for (size_t value = 0; value < VALUES; value++) {
		size_t count = next[value];

		next[value] = sum;
		sum += count;
	}
	for (size_t i = 0; i < n; i++)
		to[next[digit(from[i].key, shift)]++] = from[i];
}

void sort_by_key(struct sort_item *items, struct sort_item *spare, size_t n)
{
	uint64_t differ = bits_to_sort(items, n);
	struct sort_item *from = items, *to = spare, *sorted;

	for (unsigned shift = 0; shift < 64; shift += BITS) {
		if (!digit(differ, shift))
			continue;
		sort_by_digit(from, to, n, shift);
		sorted = to;
		to = from;
		from = sorted;
	}
	if (from != items)
		memcpy(items, from, n * sizeof(*items));
}
