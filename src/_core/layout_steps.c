/* SPDX-License-Identifier: MIT */
/*
 * layout_steps.c - see layout_steps.h.
 */
#include "layout_steps.h"

#include <errno.h>
#include <string.h>

#include "rules.h"

_Static_assert(1 << LAYOUT_FEW_BITS >= 2 * LAYOUT_FEW, "at least half of the entries are empty");

/* ---- items and their ids ---- */

static int refuse(const struct layout *l, int code, enum ms_rule rule, uint64_t limit, const struct layout_item *other)
{
	vm_refuse(l->err, code, rule, limit, NULL);
	if (l->err && other)
		l->err->other = other->value;
	return -code;
}

static size_t table_size(const struct layout *l)
{
	return (size_t)1 << l->table_bits;
}

/* The entry of the id: its newest item, or an empty entry in which to put one.  The product spreads ids as in
 * id_hash.h; at least half of the entries are empty. */
static uint32_t *entry_of(const struct layout *l, uint32_t id)
{
	size_t i = (uint32_t)(id * 0x61C88647u) >> (32 - l->table_bits);

	for (;; i++) {
		uint32_t *entry = &l->by_id[i & (table_size(l) - 1)];

		if (!*entry || layout_item(l, *entry - 1)->value.id == id)
			return entry;
	}
}

static void free_table(struct layout *l)
{
	if (l->by_id != l->few_by_id)
		memory_free(&l->vm->memory, l->by_id, table_size(l) * sizeof(*l->by_id));
}

static bool grow_table(struct layout *l)
{
	unsigned bits = l->table_bits;
	uint32_t *table;

	while ((size_t)1 << bits < 2 * l->items.room)
		bits++;
	table = memory_zalloc(&l->vm->memory, sizeof(*table) << bits);
	if (!table)
		return false;
	free_table(l);
	l->by_id = table;
	l->table_bits = bits;
	for (size_t i = 0; i < l->items.nr; i++)
		*entry_of(l, layout_item(l, i)->value.id) = (uint32_t)i + 1;
	return true;
}

/* Makes room for `more` items.  Pointers to items are invalid afterwards. */
static int reserve(struct layout *l, size_t more)
{
	if (!list_reserve(&l->vm->memory, &l->items, sizeof(struct layout_item), more))
		return no_memory(l->err);
	if (table_size(l) < 2 * l->items.room && !grow_table(l))
		return no_memory(l->err);
	return 0;
}

/* There is room.  The id has no item that exists. */
static struct layout_item *add_item(struct layout *l, const struct ms_memslot *value, struct ms_backing *backing,
				    struct memslot *old)
{
	struct layout_item *item = layout_item(l, l->items.nr++);

	*item = (struct layout_item){
		.value = *value,
		.backing = backing,
		.old = old,
		.step = l->step,
		.exists = true,
		.placed = !old,
	};
	*entry_of(l, value->id) = (uint32_t)l->items.nr;
	return item;
}

static struct layout_item *load(struct layout *l, struct memslot *slot)
{
	struct ms_memslot value = memslot_value(slot);

	return add_item(l, &value, slot->backing, slot);
}

/* The item that has the id after the steps so far, or NULL.  There is room for one. */
static struct layout_item *find(struct layout *l, uint32_t id)
{
	uint32_t entry = *entry_of(l, id);
	struct memslot *slot;

	if (entry)
		return layout_item(l, entry - 1)->exists ? layout_item(l, entry - 1) : NULL;
	slot = l->vm->design->find(vm_active_set(l->vm, l->as_id), id);
	return slot ? load(l, slot) : NULL;
}

static int find_user(struct layout *l, uint32_t id, struct layout_item **item)
{
	uint32_t end = l->vm->config.user_mem_slots;

	if (id >= end)
		return refuse(l, EINVAL, MS_RULE_SLOT_ID, end, NULL);
	*item = find(l, id);
	return *item ? 0 : refuse(l, EINVAL, MS_RULE_NO_SUCH_SLOT, 0, NULL);
}

static bool in_use(const struct layout *l, uint32_t id)
{
	uint32_t entry = *entry_of(l, id);

	if (entry)
		return layout_item(l, entry - 1)->exists;
	return l->vm->design->find(vm_active_set(l->vm, l->as_id), id);
}

static int pick_id(struct layout *l, uint32_t *id)
{
	uint32_t end = l->vm->config.user_mem_slots, first;

	if (!l->knows_free_id) {
		rules_free_id(l->vm, l->as_id, &first, NULL);
		if (l->free_id > first)
			l->free_id = first;
		l->knows_free_id = true;
	}
	while (l->free_id < end && in_use(l, l->free_id))
		l->free_id++;
	*id = l->free_id;
	return *id < end ? 0 : refuse(l, ENOSPC, MS_RULE_NO_FREE_SLOT, end, NULL);
}

/* The id of a new slot: a number, or MS_SLOT_ANY. */
static int new_id(struct layout *l, uint32_t *id)
{
	uint32_t end = l->vm->config.user_mem_slots;

	if (*id == MS_SLOT_ANY)
		return pick_id(l, id);
	if (*id >= end)
		return refuse(l, EINVAL, MS_RULE_SLOT_ID, end, NULL);
	return in_use(l, *id) ? refuse(l, EEXIST, MS_RULE_DUPLICATE_ID, 0, find(l, *id)) : 0;
}

static void placed(const struct layout *l, struct layout_item *item)
{
	item->step = l->step;
	item->placed = true;
}

static void end_item(struct layout *l, struct layout_item *item)
{
	placed(l, item);
	item->exists = false;
	if (item->value.id < l->free_id)
		l->free_id = item->value.id;
}

/* ---- sources ---- */

static int add_source(struct layout *l, uint32_t to, uint32_t source)
{
	if (!list_reserve(&l->vm->memory, &l->sources, sizeof(struct layout_source), 1))
		return no_memory(l->err);
	*layout_source(l, l->sources.nr++) = (struct layout_source){ source, layout_item(l, to)->sources };
	layout_item(l, to)->sources = (uint32_t)l->sources.nr;
	return 0;
}

/* Gives each source of the item, and the item itself, a new number. */
static void note_sources(struct layout *l, struct layout_item *item)
{
	item->noted = ++l->notes;
	for (uint32_t chain = item->sources; chain; chain = layout_source(l, chain - 1)->next)
		layout_item(l, layout_source(l, chain - 1)->item)->noted = l->notes;
}

/* Adds the source if it has a slot, and is not noted. */
static int add_other_source(struct layout *l, uint32_t to, uint32_t source)
{
	const struct layout_item *item = layout_item(l, source);

	return item->old && item->noted != l->notes ? add_source(l, to, source) : 0;
}

/* `to` gets the sources of `from`, both by their numbers.  Only the item `from` itself may come into the chain twice.
 * If all of its sources could, then a SPLIT and a MERGE of the same slot would double the chain. */
static int share_sources(struct layout *l, uint32_t to, uint32_t from)
{
	uint32_t chain = layout_item(l, from)->sources;
	int r = layout_item(l, from)->old ? add_source(l, to, from) : 0;

	if (chain)
		note_sources(l, layout_item(l, to));
	for (; !r && chain; chain = layout_source(l, chain - 1)->next)
		r = add_other_source(l, to, layout_source(l, chain - 1)->item);
	return r;
}

static uint32_t number_of(const struct layout *l, const struct layout_item *item)
{
	return (uint32_t)(item - layout_item(l, 0));
}

/* ---- values ---- */

static uint64_t end_of(const struct ms_memslot *v)
{
	return v->base_gfn + v->npages;
}

static uint64_t bytes(uint64_t npages)
{
	return npages << MS_PAGE_SHIFT;
}

static struct ms_userspace_memory_region region_of(const struct layout *l, const struct ms_memslot *v)
{
	return (struct ms_userspace_memory_region){
		.slot = v->id,
		.as_id = l->as_id,
		.flags = v->flags,
		.guest_memfd = -1,
		.guest_phys_addr = bytes(v->base_gfn),
		.memory_size = bytes(v->npages),
		.userspace_addr = v->userspace_addr,
	};
}

/* The rules for the values of a slot, which has pages. */
static int check_region(const struct layout *l, const struct ms_userspace_memory_region *region)
{
	int r = rules_request(l->vm, region, 0, l->vm->config.user_mem_slots, l->err);

	return r || region->memory_size ? r : refuse(l, EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, NULL);
}

static int check_backing(const struct layout *l, const struct ms_backing *backing, const struct ms_memslot *value)
{
	return backing ? rules_backing(backing, value, l->err) : 0;
}

/* ---- the steps ---- */

static int create(struct layout *l, const struct ms_step *step)
{
	struct ms_memslot value = { .id = step->slot };
	struct ms_userspace_memory_region region;
	int r = value.id == MS_SLOT_ANY ? pick_id(l, &value.id) : 0;

	value.as_id = l->as_id;
	value.flags = step->flags;
	value.userspace_addr = step->userspace_addr;
	region = region_of(l, &value);
	region.guest_phys_addr = step->guest_phys_addr;
	region.memory_size = step->memory_size;
	value.base_gfn = step->guest_phys_addr >> MS_PAGE_SHIFT;
	value.npages = step->memory_size >> MS_PAGE_SHIFT;
	if (!r)
		r = check_region(l, &region);
	if (!r)
		r = rules_guest_memfd(value.flags, region.guest_memfd, l->err);
	if (!r)
		r = check_backing(l, step->backing, &value);
	if (!r)
		r = new_id(l, &value.id);
	if (!r)
		add_item(l, &value, step->backing, NULL);
	return r;
}

static int delete(struct layout *l, const struct ms_step *step)
{
	struct layout_item *item;
	int r = find_user(l, step->slot, &item);

	if (!r)
		end_item(l, item);
	return r;
}

static int move(struct layout *l, const struct ms_step *step)
{
	struct ms_userspace_memory_region region;
	struct layout_item *item;
	int r = find_user(l, step->slot, &item);

	if (r)
		return r;
	region = region_of(l, &item->value);
	region.guest_phys_addr = step->guest_phys_addr;
	r = check_region(l, &region);
	if (r)
		return r;
	item->value.base_gfn = step->guest_phys_addr >> MS_PAGE_SHIFT;
	placed(l, item);
	return 0;
}

/* Checks 13 and 14. */
static int give_flags(const struct layout *l, struct layout_item *item, uint32_t flags)
{
	struct ms_userspace_memory_region region = region_of(l, &item->value);
	int r;

	region.flags = flags;
	r = check_region(l, &region);
	if (r)
		return r;
	if (flags & MS_MEM_GUEST_MEMFD)
		return refuse(l, EINVAL, MS_RULE_GMEM_EXISTING, 0, item);
	if ((flags ^ item->value.flags) & MS_MEM_READONLY)
		return refuse(l, EINVAL, MS_RULE_FLAGS_TOGGLE, 0, item);
	item->value.flags = flags;
	if (!item->placed)
		item->step = l->step;
	return 0;
}

static int set_flags(struct layout *l, const struct ms_step *step)
{
	struct layout_item *item;
	int r = find_user(l, step->slot, &item);

	return r ? r : give_flags(l, item, step->flags);
}

static int change_flags(struct layout *l, const struct ms_step *step)
{
	struct layout_item *item;
	int r = find_user(l, step->slot, &item);

	return r ? r : give_flags(l, item, (item->value.flags & ~step->other) | step->flags);
}

static int resize(struct layout *l, const struct ms_step *step)
{
	struct ms_userspace_memory_region region;
	struct ms_memslot value;
	struct layout_item *item;
	int r = find_user(l, step->slot, &item);

	if (r)
		return r;
	region = region_of(l, &item->value);
	region.memory_size = step->memory_size;
	r = check_region(l, &region);
	value = item->value;
	value.npages = step->memory_size >> MS_PAGE_SHIFT;
	if (!r)
		r = check_backing(l, item->backing, &value);
	if (r)
		return r;
	item->value = value;
	placed(l, item);
	return 0;
}

/* Removes the first n pages. */
static void cut_head(struct ms_memslot *v, uint64_t n)
{
	v->base_gfn += n;
	v->npages -= n;
	v->userspace_addr += bytes(n);
}

/* The pages of the item from `gfn` on become a new item with this id, except for those before `from`. */
static int make_second_part(struct layout *l, struct layout_item *item, uint64_t gfn, uint64_t from, uint32_t id)
{
	struct ms_memslot value = item->value;
	uint32_t first = number_of(l, item);
	int r = new_id(l, &id);

	if (r)
		return r;
	cut_head(&value, from - value.base_gfn);
	value.id = id;
	item->value.npages = gfn - item->value.base_gfn;
	placed(l, item);
	return share_sources(l, number_of(l, add_item(l, &value, item->backing, NULL)), first);
}

static int split(struct layout *l, const struct ms_step *step)
{
	uint64_t gfn = step->guest_phys_addr >> MS_PAGE_SHIFT;
	struct layout_item *item;
	int r = find_user(l, step->slot, &item);

	if (r)
		return r;
	if (step->guest_phys_addr % MS_PAGE_SIZE)
		return refuse(l, EINVAL, MS_RULE_GPA_ALIGN, 0, NULL);
	if (gfn <= item->value.base_gfn || gfn >= end_of(&item->value))
		return refuse(l, EINVAL, MS_RULE_SPLIT, 0, item);
	return make_second_part(l, item, gfn, gfn, step->other);
}

/* `lower` and `upper` are neighbours in guest memory. */
static int check_merge(const struct layout *l, const struct layout_item *lower, const struct layout_item *upper,
		       const struct layout_item *other)
{
	const struct ms_memslot *a = &lower->value, *b = &upper->value;

	if (a->userspace_addr + bytes(a->npages) != b->userspace_addr)
		return refuse(l, EINVAL, MS_RULE_MERGE_HVA, 0, other);
	if (a->flags != b->flags)
		return refuse(l, EINVAL, MS_RULE_MERGE_FLAGS, 0, other);
	if (lower->backing != upper->backing)
		return refuse(l, EINVAL, MS_RULE_MERGE_BACKING, 0, other);
	if (a->npages + b->npages > MS_MEM_MAX_NR_PAGES)
		return refuse(l, EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, other);
	return 0;
}

static int merge_neighbours(struct layout *l, struct layout_item *item, struct layout_item *other)
{
	bool below = end_of(&item->value) == other->value.base_gfn; /* the item is the lower one */
	struct layout_item *lower = below ? item : other, *upper = below ? other : item;
	uint64_t base_gfn = lower->value.base_gfn, hva = lower->value.userspace_addr;
	int r;

	if (end_of(&lower->value) != upper->value.base_gfn)
		return refuse(l, EINVAL, MS_RULE_MERGE_PLACE, 0, other);
	r = check_merge(l, lower, upper, other);
	if (r)
		return r;
	item->value.npages += other->value.npages;
	item->value.base_gfn = base_gfn;
	item->value.userspace_addr = hva;
	placed(l, item);
	end_item(l, other);
	return share_sources(l, number_of(l, item), number_of(l, other));
}

static int merge_slots(struct layout *l, const struct ms_step *step)
{
	struct layout_item *item, *other;
	int r = find_user(l, step->slot, &item);

	if (!r)
		r = find_user(l, step->other, &other);
	return r ? r : merge_neighbours(l, item, other);
}

/* ---- punch ---- */

static int check_hole(const struct layout *l, const struct ms_step *step)
{
	uint64_t gpa = step->guest_phys_addr, size = step->memory_size;

	if (size % MS_PAGE_SIZE)
		return refuse(l, EINVAL, MS_RULE_SIZE_ALIGN, 0, NULL);
	if (gpa % MS_PAGE_SIZE)
		return refuse(l, EINVAL, MS_RULE_GPA_ALIGN, 0, NULL);
	if (gpa + size < gpa)
		return refuse(l, EINVAL, MS_RULE_GPA_WRAP, 0, NULL);
	return size ? 0 : refuse(l, EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, NULL);
}

/* Makes an item for each slot of the active set in [gfn, end) that no step has named.  An internal slot is not the
 * user's to cut. */
static int load_range(struct layout *l, uint64_t gfn, uint64_t end)
{
	const struct memslot_design *design = l->vm->design;
	const struct memslot_set *set = vm_active_set(l->vm, l->as_id);
	uint32_t end_id = l->vm->config.user_mem_slots;
	struct memslot *slot = design->first_from(set, gfn);
	int r = 0;

	for (; !r && slot && slot->base_gfn < end; slot = design->next(set, slot)) {
		if (slot->id >= end_id)
			return vm_refuse(l->err, EINVAL, MS_RULE_SLOT_ID, end_id, slot);
		r = reserve(l, 1);
		if (!r && !*entry_of(l, slot->id))
			load(l, slot);
	}
	return r;
}

/* Removes the pages [gfn, end), of which the item has some.  There is room for one more item. */
static int cut(struct layout *l, struct layout_item *item, uint64_t gfn, uint64_t end, uint32_t other)
{
	struct ms_memslot *v = &item->value;
	bool below = v->base_gfn<gfn, above = end_of(v)> end;

	if (below && above)
		return make_second_part(l, item, gfn, end, other);
	if (below)
		v->npages = gfn - v->base_gfn;
	else if (above)
		cut_head(v, end - v->base_gfn);
	else
		end_item(l, item);
	placed(l, item);
	return 0;
}

/* A second part is no longer in the hole, so the items that are added here need no look. */
static int punch(struct layout *l, const struct ms_step *step)
{
	uint64_t gfn = step->guest_phys_addr >> MS_PAGE_SHIFT, end = gfn + (step->memory_size >> MS_PAGE_SHIFT);
	int r = check_hole(l, step);

	if (!r)
		r = load_range(l, gfn, end);
	for (size_t i = 0, nr = l->items.nr; !r && i < nr; i++) {
		const struct layout_item *item = layout_item(l, i);

		if (!item->exists || item->value.base_gfn >= end || end_of(&item->value) <= gfn)
			continue;
		r = reserve(l, 1);
		if (!r)
			r = cut(l, layout_item(l, i), gfn, end, step->other);
	}
	return r;
}

/* ---- all steps ---- */

typedef int apply_fn(struct layout *l, const struct ms_step *step);

static apply_fn *const apply[] = {
	[MS_STEP_CREATE] = create,       [MS_STEP_DELETE] = delete, [MS_STEP_MOVE] = move,
	[MS_STEP_SET_FLAGS] = set_flags, [MS_STEP_RESIZE] = resize, [MS_STEP_SPLIT] = split,
	[MS_STEP_MERGE] = merge_slots,   [MS_STEP_PUNCH] = punch,   [MS_STEP_CHANGE_FLAGS] = change_flags,
};

/* A step adds at most two items, except PUNCH, which makes room itself. */
#define ITEMS_OF_STEP 2

static int apply_step(struct layout *l, const struct ms_step *step)
{
	int r = reserve(l, ITEMS_OF_STEP);

	if (r)
		return r;
	if (step->kind >= ARRAY_SIZE(apply))
		return refuse(l, EINVAL, MS_RULE_STEP_KIND, ARRAY_SIZE(apply) - 1, NULL);
	return apply[step->kind](l, step);
}

/* Without an assignment of the whole struct, which would clear `few` too. */
static void begin(struct layout *l, const struct writer *w)
{
	l->vm = w->vm;
	l->err = w->err;
	l->as_id = w->as_id;
	l->step = 0;
	l->items = list_in(l->few, LAYOUT_FEW);
	l->sources = (struct list){ 0 };
	l->by_id = l->few_by_id;
	l->table_bits = LAYOUT_FEW_BITS;
	l->free_id = UINT32_MAX;
	l->notes = 0;
	l->knows_free_id = false;
	memset(l->few_by_id, 0, sizeof(l->few_by_id));
}

int layout_resolve(struct layout *l, const struct writer *w, const struct ms_step *steps, size_t n)
{
	int r = 0;

	begin(l, w);
	for (size_t i = 0; !r && i < n; i++) {
		l->step = (uint32_t)i;
		r = apply_step(l, &steps[i]);
	}
	if (r && l->err)
		l->err->index = l->step;
	return r;
}

void layout_free(struct layout *l)
{
	struct memory *memory = &l->vm->memory;

	list_free(memory, &l->items, sizeof(struct layout_item));
	list_free(memory, &l->sources, sizeof(struct layout_source));
	free_table(l);
}
