/* SPDX-License-Identifier: MIT */
/*
 * array_set.c - KVM's sets before Linux 5.17: one array of slots by falling gfn.  Each change copies the whole array.
 *
 * The tree is measured against this design.  A set is one allocation: a header, a table from id to index, the slots.  A
 * lookup by gfn is a binary search.  A lookup by host address reads all slots.  CREATE and FLAGS_ONLY copy the set
 * once.  DELETE and MOVE copy it twice: for the INVALID slot, and again after the swap.
 *
 * Invariants
 *   A1  slots fall by base_gfn;
 *   A2  the table has the index of each slot's id, and -1 for every other id.
 *
 * A slot has 88 bytes in Linux and 56 here.  An id in the table has 16 bits in Linux; it has 32 here if the VM has more
 * than NARROW_IDS ids.
 *
 * Locking: as memslot_set.h.
 * Cost: search O(log n), find O(1), hva_range O(n), any change O(n + user_mem_slots).
 */
#include <errno.h>
#include <string.h>

#include "memslot_set.h"

struct store {
	size_t size; /* of the allocation, in bytes */
	size_t used, room;
	struct memslot *slots; /* behind the table */
	uint32_t nr_ids;
	bool wide; /* an entry of the table has 32 bits */
};

/* The largest number of ids for entries of 16 bits, in which -1 means none: SHRT_MAX, as in Linux. */
#define NARROW_IDS 32767u

static struct store *store_of(const struct memslot_set *set)
{
	return set->store;
}

static void *table_of(const struct store *s)
{
	return (char *)(uintptr_t)s + sizeof(*s);
}

static int32_t get_index(const struct store *s, uint32_t id)
{
	return s->wide ? ((int32_t *)table_of(s))[id] : ((int16_t *)table_of(s))[id];
}

static void put_index(struct store *s, uint32_t id, int32_t index)
{
	if (s->wide)
		((int32_t *)table_of(s))[id] = index;
	else
		((int16_t *)table_of(s))[id] = (int16_t)index;
}

static size_t table_size(uint32_t nr_ids, bool wide)
{
	size_t size = nr_ids * (wide ? sizeof(int32_t) : sizeof(int16_t));

	return (size + sizeof(uint64_t) - 1) & ~(sizeof(uint64_t) - 1);
}

static struct store *alloc_store(struct memory *memory, const struct ms_config *config, size_t room)
{
	uint32_t nr_ids = config->user_mem_slots + MS_INTERNAL_MEM_SLOTS;
	bool wide = nr_ids > NARROW_IDS;
	size_t head = sizeof(struct store) + table_size(nr_ids, wide), size = head + room * sizeof(struct memslot);
	struct store *s = memory_zalloc(memory, size);

	if (!s)
		return NULL;
	*s = (struct store){ .size = size, .room = room, .nr_ids = nr_ids, .wide = wide };
	s->slots = (struct memslot *)(void *)((char *)s + head);
	return s;
}

static void free_store(struct memory *memory, struct memslot_set *set)
{
	if (set->store)
		memory_free(memory, set->store, store_of(set)->size);
	set->store = NULL;
	set->nr = set->nr_raw = set->nr_logged = 0;
	atomic_store_explicit(&set->last_used_slot, NULL, memory_order_relaxed);
}

static struct memslot *array_alloc_slot(struct memory *memory)
{
	return memory_zalloc(memory, sizeof(struct memslot));
}

static void array_free_slot(struct memory *memory, struct memslot *slot)
{
	memory_free(memory, slot, sizeof(*slot));
}

/* ---- lookups ---- */

/* The index of the slot with the largest base_gfn <= gfn, or s->used if there is none. */
static size_t floor_of(const struct store *s, uint64_t gfn)
{
	size_t low = 0, high = s->used;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (gfn >= s->slots[middle].base_gfn)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

static struct memslot *array_search(const struct memslot_set *set, uint64_t gfn)
{
	const struct store *s = store_of(set);
	size_t i = s ? floor_of(s, gfn) : 0;

	return s && i < s->used && memslot_contains(&s->slots[i], gfn) ? &s->slots[i] : NULL;
}

static struct memslot *array_find(const struct memslot_set *set, uint32_t id)
{
	const struct store *s = store_of(set);
	int32_t index = s && id < s->nr_ids ? get_index(s, id) : -1;

	return index < 0 ? NULL : &s->slots[index];
}

static struct memslot *array_next(const struct memslot_set *set, const struct memslot *slot)
{
	const struct store *s = store_of(set);
	size_t i = (size_t)(slot - s->slots);

	return i ? &s->slots[i - 1] : NULL;
}

static struct memslot *array_first_from(const struct memslot_set *set, uint64_t gfn)
{
	const struct store *s = store_of(set);
	size_t i = s ? floor_of(s, gfn) : 0;

	if (s && i < s->used && memslot_contains(&s->slots[i], gfn))
		return &s->slots[i];
	return i ? &s->slots[i - 1] : NULL;
}

static bool array_hva_range(const struct memslot_set *set, uint64_t start, uint64_t last, memslot_visit_fn *visit,
			    void *context)
{
	const struct store *s = store_of(set);

	for (size_t i = 0; s && i < s->used; i++)
		if (s->slots[i].hva.start <= last && s->slots[i].hva.last >= start)
			visit(context, &s->slots[i]);
	return false;
}

/* ---- changes ---- */

static void copy_store(struct store *to, const struct store *from)
{
	memcpy(table_of(to), table_of(from), table_size(from->nr_ids, from->wide));
	memcpy(to->slots, from->slots, from->used * sizeof(*from->slots));
	to->used = from->used;
}

/* The hint is an index, as in Linux.  After an edit another slot may be there: readers compare gfns. */
static void copy_hint(struct memslot_set *to, const struct memslot_set *from)
{
	const struct memslot *hint = atomic_load_explicit(&from->last_used_slot, memory_order_relaxed);

	atomic_store_explicit(&to->last_used_slot, hint ? store_of(to)->slots + (hint - store_of(from)->slots) : NULL,
			      memory_order_relaxed);
}

static void array_resync(struct memslot_set *private, const struct memslot_set *active)
{
	copy_store(private->store, active->store);
	copy_hint(private, active);
	private->nr = active->nr;
	private->nr_raw = active->nr_raw;
	private->nr_logged = active->nr_logged;
}

static int array_begin(struct memory *memory, struct address_space *as, struct memslot_set *private, size_t more)
{
	const struct memslot_set *active = &as->set[!private->node_idx];
	struct store *s = alloc_store(memory, as->config, active->nr + more);

	if (!s)
		return -ENOMEM;
	private->store = s;
	if (active->store)
		array_resync(private, active);
	else
		memset(table_of(s), -1, table_size(s->nr_ids, s->wide));
	return 0;
}

static void put(struct store *s, size_t i, const struct memslot *slot)
{
	s->slots[i] = *slot;
	put_index(s, slot->id, (int32_t)i);
}

/* Place i is free.  Shift the slots between it and the place for new_slot's gfn, then store new_slot there. */
static void place(struct store *s, size_t i, const struct memslot *new_slot)
{
	for (; i + 1 < s->used && new_slot->base_gfn <= s->slots[i + 1].base_gfn; i++)
		put(s, i, &s->slots[i + 1]);
	for (; i > 0 && new_slot->base_gfn >= s->slots[i - 1].base_gfn; i--)
		put(s, i, &s->slots[i - 1]);
	put(s, i, new_slot);
}

static void take_out(struct memslot_set *private, uint32_t id)
{
	struct store *s = store_of(private);
	const struct memslot *hint = atomic_load_explicit(&private->last_used_slot, memory_order_relaxed);

	for (size_t i = (size_t)get_index(s, id); i + 1 < s->used; i++)
		put(s, i, &s->slots[i + 1]);
	put_index(s, id, -1);
	s->used--;
	if (hint && (size_t)(hint - s->slots) >= s->used)
		atomic_store_explicit(&private->last_used_slot, NULL, memory_order_relaxed);
}

static void array_replace(struct memslot_set *private, struct memslot *old, struct memslot *new_slot)
{
	struct store *s = store_of(private);

	if (!new_slot)
		take_out(private, old->id);
	else if (old)
		place(s, (size_t)get_index(s, old->id), new_slot);
	else
		place(s, s->used++, new_slot);
	private->nr = s->used;
}

static void array_end(struct memory *memory, struct address_space *as, struct memslot_set *private)
{
	(void)as;
	free_store(memory, private);
}

/* At rest only one set stores slots, so each reference is dropped once. */
static void array_empty(struct memory *memory, struct memslot_set *set, bool free_slots)
{
	const struct store *s = store_of(set);

	(void)free_slots;
	for (size_t i = 0; s && i < s->used; i++) {
		dirty_log_put(memory, s->slots[i].dirty);
		backing_put(s->slots[i].backing);
	}
	free_store(memory, set);
}

static size_t count_ids(const struct store *s)
{
	size_t nr = 0;

	for (uint32_t id = 0; id < s->nr_ids; id++)
		nr += get_index(s, id) >= 0;
	return nr;
}

static int array_check(const struct memslot_set *set, char *letter)
{
	const struct store *s = store_of(set);

	*letter = 'A';
	for (size_t i = 0; s && i < s->used; i++) {
		if (i && s->slots[i - 1].base_gfn <= s->slots[i].base_gfn)
			return 1;
		if (get_index(s, s->slots[i].id) != (int32_t)i)
			return 2;
	}
	return s && count_ids(s) != s->used ? 2 : 0;
}

const struct memslot_design DESIGN_OF(array) = {
	.name = "array",
	.costs = { .gfn = COST_LOG, .id = COST_LOG, .hva = COST_SCAN, .change = COST_SCAN },
	.alloc_slot = array_alloc_slot,
	.free_slot = array_free_slot,
	.search = array_search,
	.find = array_find,
	.first_from = array_first_from,
	.next = array_next,
	.hva_range = array_hva_range,
	.begin = array_begin,
	.replace = array_replace,
	.resync = array_resync,
	.end = array_end,
	.empty = array_empty,
	.check = array_check,
};
