/* SPDX-License-Identifier: MIT */
/*
 * list.c - see list.h.
 */
#include "list.h"

#include <string.h>

#define LIST_ROOM_MIN 8

static void free_items(struct memory *memory, const struct list *list, size_t size)
{
	if (!list->borrows)
		memory_free(memory, list->items, list->room * size);
}

bool list_reserve(struct memory *memory, struct list *list, size_t size, size_t more)
{
	size_t room = list->room ? 2 * list->room : LIST_ROOM_MIN;
	void *items;

	if (list->nr + more <= list->room)
		return true;
	if (room < list->nr + more)
		room = list->nr + more;
	items = memory_zalloc(memory, room * size);
	if (!items)
		return false;
	if (list->nr)
		memcpy(items, list->items, list->nr * size);
	free_items(memory, list, size);
	list->items = items;
	list->room = room;
	list->borrows = false;
	return true;
}

void list_free(struct memory *memory, struct list *list, size_t size)
{
	free_items(memory, list, size);
	*list = (struct list){ 0 };
}
