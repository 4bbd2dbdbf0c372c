/* SPDX-License-Identifier: MIT */
/*
 * sort.h - sorts many things by a number.
 *
 * A load sorts a million slots.  There qsort() takes 150 ns a slot, as long as everything else that the load does.
 *
 * Locking: none.
 * Cost: O(n) if the items are sorted already; otherwise O(n) for each byte in which the keys differ.
 */
#ifndef MS_SORT_H
#define MS_SORT_H

#include "compiler.h"

struct sort_item {
	uint64_t key;
	const void *item;
};

/* Sorts by ascending key.  Items of equal keys keep their order.  `spare` has room for n items. */
void sort_by_key(struct sort_item *items, struct sort_item *spare, size_t n);

#endif
