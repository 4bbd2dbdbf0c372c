/* SPDX-License-Identifier: MIT */
/*
 * list.h - an array that grows.
 *
 * A zeroed struct list is empty.  list_reserve() makes room before the caller counts a new item in `nr`.  It may move
 * the items, so a pointer to an item is valid until then.  A list can begin in memory of its owner, so that a short
 * list allocates nothing.
 *
 * Locking: that of the owner of the list.
 * Cost: list_reserve() O(1) on average.
 */
#ifndef MS_LIST_H
#define MS_LIST_H

#include "memory.h"

struct list {
	void *items;
	size_t nr, room;
	bool borrows; /* items is memory of the owner */
};

/* An empty list that begins with this memory. */
static inline struct list list_in(void *items, size_t room)
{
	return (struct list){ .items = items, .room = room, .borrows = true };
}

/* Makes room for `more` items of this size.  They are zeroed, except in memory of the owner.  Returns false without
 * memory; the list is as before. */
bool list_reserve(struct memory *memory, struct list *list, size_t size, size_t more);

void list_free(struct memory *memory, struct list *list, size_t size);

#endif
