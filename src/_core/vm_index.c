/* SPDX-License-Identifier: MIT */
#include "vm_index.h"

/* Slots that are walked in one section: some tens of microseconds. */
#define PIECE 2048

/* Tries to walk a state in pieces before it is walked in one section. */
#define TRIES 2

/* A lookup may make the index of so many slots for others. */
#define SMALL_SET 4096

/* An index costs two allocations whatever its size; so many lookups pay for them. */
#define FIXED_COST 64

/* By measurement (docs/benchmarks.md, "When an index pays"): what a slot costs that is walked, or copied, in lookups
 * that an index makes cheaper. */
#define LOOKUPS_PER_WALKED_SLOT 3
#define LOOKUPS_PER_COPIED_SLOT 1

/* Nobody knows how many single lookups will follow: of so many one is worth the cost of an index, so that not a tenth is
 * lost when none does. */
#define SINGLE_LOOKUPS 4

/* Each walk without a copy doubles the wait for the next one, up to 2 to this power. */
#define WALK_BACKOFF_MAX 10

static struct flat_entry entry_of(const struct memslot *slot)
{
	return (struct flat_entry){
		.base_gfn = slot->base_gfn,
		.hva = slot->hva.start | (slot->flags & MS_MEM_READONLY ? FLAT_READONLY : 0),
		.npages = (uint32_t)slot->npages,
		.id = slot->id,
	};
}

static bool is_indexed(const struct memslot *slot)
{
	return slot && !(slot->flags & MS_MEMSLOT_INVALID);
}

/* ---- the writer ---- */

void vm_index_share(struct ms_vm *vm, uint32_t as_id)
{
	struct memslot_set *active = vm_active_set(vm, as_id), *inactive = vm_inactive_set(vm, as_id);
	struct flat_index *index = set_index(active);

	if (likely(!index && !active->patch && !inactive->patch && !set_index(inactive)))
		return;
	set_index_forget(inactive);
	if (index)
		inactive->patch = patch_create(flat_get(index));
	else if (active->patch)
		inactive->patch = patch_clone(active->patch);
}

/* Detaches the index and keeps it as the base of the next one (X1). */
static void detach_index(struct memslot_set *set)
{
	struct flat_index *index = atomic_load_explicit(&set->index, memory_order_relaxed);

	if (index) {
		point(WRITER_DETACHES_INDEX);
		patch_destroy(set->patch);
		set->patch = patch_create(index);
		atomic_store_explicit(&set->index, NULL, memory_order_relaxed);
	}
	if (atomic_load_explicit(&set->walked, memory_order_relaxed)) /* readers' line: not for nothing */
		atomic_store_explicit(&set->walked, 0, memory_order_relaxed);
}

/* Edits that are too many make no patch. */
static void note_edit(struct memslot_set *set, const struct memslot *old, const struct memslot *new_slot)
{
	bool noted = !is_indexed(old) || patch_remove(set->patch, old->base_gfn);

	if (noted && is_indexed(new_slot)) {
		struct flat_entry entry = entry_of(new_slot);

		noted = patch_add(set->patch, &entry);
	}
	if (!noted) {
		patch_destroy(set->patch);
		set->patch = NULL;
	}
}

void vm_replace(struct ms_vm *vm, struct memslot_set *set, struct memslot *old, struct memslot *new_slot)
{
	if (vm->design->indexed) {
		detach_index(set);
		if (set->patch)
			note_edit(set, old, new_slot);
	}
	vm->design->replace(set, old, new_slot);
}

/* ---- making ---- */

/* Entries of a state, gathered a piece at a time. */
struct gathering {
	struct flat_entry *entries;
	size_t nr, room;
	struct state state;
	uint64_t next_gfn;
	bool complete;
};

static bool gathering_begin(struct ms_vm *vm, struct gathering *g, struct state state, size_t room)
{
	*g = (struct gathering){ .state = state, .room = room };
	g->entries = memory_zalloc(&vm->memory, (room + 1) * sizeof(*g->entries));
	return g->entries;
}

static void gathering_end(struct ms_vm *vm, struct gathering *g)
{
	memory_free(&vm->memory, g->entries, (g->room + 1) * sizeof(*g->entries));
}

/* Inside a section of the state.  M3 bounds the entries. */
static void gather(const struct ms_vm *vm, struct gathering *g, size_t slots)
{
	const struct memslot_set *set = g->state.set;
	const struct memslot *slot = vm->design->first_from(set, g->next_gfn);

	for (; slot && slots--; slot = vm->design->next(set, slot)) {
		g->next_gfn = slot->base_gfn + slot->npages;
		if (is_indexed(slot))
			g->entries[g->nr++] = entry_of(slot);
	}
	g->complete = !slot;
}

/* Whether the whole state was seen. */
static bool gather_in_pieces(struct ms_vm *vm, uint32_t as_id, struct gathering *g)
{
	bool same = true;

	while (same && !g->complete) {
		struct look look = look_begin(vm, as_id);

		same = same_state(vm, g->state, state_of(look.set));
		if (same)
			gather(vm, g, PIECE);
		look_end(vm, look);
		point(READER_INDEX_GATHERED);
	}
	return same;
}

static void gather_patched(struct gathering *g, const struct flat_patch *patch)
{
	struct patch_cursor cursor = patch_begin(patch);

	while (g->nr < g->room && patch_next(&cursor, &g->entries[g->nr]))
		g->nr++;
}

/* Offers the index to everybody, if its state is still there. */
static void publish(struct ms_vm *vm, uint32_t as_id, struct state state, struct flat_index *index)
{
	struct look look = look_begin(vm, as_id);
	struct flat_index *none = NULL;

	if (same_state(vm, state, state_of(look.set))) {
		point(READER_INDEX_OFFERED);
		flat_get(index);
		if (!atomic_compare_exchange_strong_explicit(&look.set->index, &none, index, memory_order_release,
							     memory_order_relaxed))
			flat_put(index);
	}
	look_end(vm, look);
}

/* From what was gathered, which is freed. */
static struct flat_index *finish(struct ms_vm *vm, uint32_t as_id, struct gathering *g, _Atomic uint64_t *count)
{
	struct flat_index *index = flat_create(&vm->memory, g->entries, g->nr);

	gathering_end(vm, g);
	point(READER_INDEX_MADE);
	if (index) {
		publish(vm, as_id, g->state, index);
		atomic_fetch_add_explicit(count, 1, memory_order_relaxed);
	}
	return index;
}

static struct flat_index *make_patched(struct ms_vm *vm, uint32_t as_id, struct state state,
				       const struct flat_patch *patch)
{
	struct gathering g;
	struct flat_index *index = NULL;

	if (gathering_begin(vm, &g, state, patch_nr(patch))) {
		gather_patched(&g, patch);
		index = finish(vm, as_id, &g, &vm->index_patches);
	}
	flat_put(patch->base);
	return index;
}

static struct flat_index *make_walked(struct ms_vm *vm, uint32_t as_id, struct state state, size_t nr)
{
	struct gathering g;

	if (!gathering_begin(vm, &g, state, nr))
		return NULL;
	if (gather_in_pieces(vm, as_id, &g))
		return finish(vm, as_id, &g, &vm->index_builds);
	gathering_end(vm, &g);
	return NULL;
}

/* ---- when it pays ---- */

enum way { NO_WAY, FOUND, PATCH, WALK };

/* What a section saw of the set, to go by outside of it. */
struct plan {
	enum way way;
	struct state state;
	size_t nr;
	struct flat_index *index; /* FOUND: referenced */
	struct flat_patch patch;  /* PATCH: referenced */
};

static uint64_t cost_of_copy(const struct memslot_set *set)
{
	return FIXED_COST + (uint64_t)set->nr * LOOKUPS_PER_COPIED_SLOT;
}

static uint64_t cost_of_walk(const struct memslot_set *set)
{
	return FIXED_COST + (uint64_t)set->nr * LOOKUPS_PER_WALKED_SLOT;
}

/* Adds to what was walked in this set since it was published. */
static uint64_t count_walked(struct memslot_set *set, uint64_t lookups)
{
	uint64_t before = atomic_fetch_add_explicit(&set->walked, lookups, memory_order_relaxed);

	if (before < cost_of_copy(set) && before + lookups >= cost_of_copy(set))
		atomic_fetch_add_explicit(&set->worth_copy, 1, memory_order_relaxed);
	return before + lookups;
}

/*
 * Where each state has lookups enough for a copy, but never for a walk, one walk is an investment: the indexes of later
 * states are copied from it.  Where changes are too many for a copy the walk backs off: the next one waits for twice as
 * many states.
 */
static bool walk_is_invested(const struct memslot_set *set)
{
	uint32_t backoff = atomic_load_explicit(&set->walk_backoff, memory_order_relaxed);
	uint32_t states = atomic_load_explicit(&set->worth_copy, memory_order_relaxed);

	if (backoff > WALK_BACKOFF_MAX)
		backoff = WALK_BACKOFF_MAX;
	return states >> backoff >= LOOKUPS_PER_WALKED_SLOT / LOOKUPS_PER_COPIED_SLOT;
}

static enum way way_that_pays(const struct ms_vm *vm, const struct memslot_set *set, uint64_t lookups)
{
	bool any = atomic_load_explicit(&vm->index_policy, memory_order_relaxed) == MS_INDEX_EAGER;
	bool copied = any || lookups >= cost_of_copy(set);

	if (copied && set->patch)
		return PATCH;
	return any || lookups >= cost_of_walk(set) || (copied && walk_is_invested(set)) ? WALK : NO_WAY;
}

/* A walk raises the back-off; a copy resets it. */
static void note_way(struct memslot_set *set, enum way way)
{
	if (way != WALK && way != PATCH)
		return;
	atomic_store_explicit(&set->worth_copy, 0, memory_order_relaxed);
	if (way == WALK)
		atomic_fetch_add_explicit(&set->walk_backoff, 1, memory_order_relaxed);
	else
		atomic_store_explicit(&set->walk_backoff, 0, memory_order_relaxed);
}

bool vm_index_pays(const struct ms_vm *vm, struct memslot_set *set, size_t lookups, bool brief)
{
	return may_index(vm) && way_that_pays(vm, set, count_walked(set, lookups)) != NO_WAY &&
	       !(brief && set->nr > SMALL_SET);
}

/* By `way`, if there is no index already. */
static void make_plan(struct memslot_set *set, enum way way, struct plan *plan)
{
	*plan = (struct plan){ .way = way, .state = state_of(set), .nr = set->nr, .index = set_index(set) };
	if (plan->index) {
		plan->way = FOUND;
		flat_get(plan->index);
	} else if (way == PATCH) {
		plan->patch = *set->patch;
		flat_get(plan->patch.base);
	}
}

static struct flat_index *carry_out(struct ms_vm *vm, uint32_t as_id, struct plan *plan)
{
	point(READER_INDEX_PLANNED);
	switch (plan->way) {
	case FOUND:
		return plan->index;
	case PATCH:
		return make_patched(vm, as_id, plan->state, &plan->patch);
	case WALK:
		return make_walked(vm, as_id, plan->state, plan->nr);
	default:
		return NULL;
	}
}

static void forget_walked(struct ms_vm *vm, uint32_t as_id)
{
	struct look look = look_begin(vm, as_id);

	atomic_store_explicit(&look.set->walked, 0, memory_order_relaxed);
	look_end(vm, look);
}

struct flat_index *vm_index_get(struct ms_vm *vm, uint32_t as_id, size_t lookups)
{
	struct plan plan;
	struct look look;
	struct flat_index *index;

	if (!may_index(vm))
		return NULL;
	look = look_begin(vm, as_id);
	lookups = set_index(look.set) ? 0 : count_walked(look.set, lookups);
	make_plan(look.set, way_that_pays(vm, look.set, lookups), &plan);
	note_way(look.set, plan.way);
	look_end(vm, look);
	index = carry_out(vm, as_id, &plan);
	if (!index && plan.way != NO_WAY)
		forget_walked(vm, as_id); /* no memory, or the state has moved: not at once again */
	return index;
}

static struct flat_index *make_in_one_section(struct ms_vm *vm, uint32_t as_id)
{
	struct look look = look_begin(vm, as_id);
	struct gathering g;
	bool begun = gathering_begin(vm, &g, state_of(look.set), look.set->nr);

	if (begun)
		gather(vm, &g, g.room + 1);
	look_end(vm, look);
	return begun ? finish(vm, as_id, &g, &vm->index_builds) : NULL;
}

struct flat_index *vm_index_make(struct ms_vm *vm, uint32_t as_id)
{
	struct flat_index *index = NULL;

	if (!may_index(vm))
		return NULL;
	for (int i = 0; !index && i < TRIES; i++) {
		struct look look = look_begin(vm, as_id);
		struct plan plan;

		make_plan(look.set, look.set->patch ? PATCH : WALK, &plan);
		look_end(vm, look);
		index = carry_out(vm, as_id, &plan);
	}
	return index ? index : make_in_one_section(vm, as_id);
}

/* As far as the set knows: no single lookup would use an index of so few slots, or one like that before. */
static bool serves_single_lookups(const struct memslot_set *set)
{
	return set->nr > FLAT_FEW && set->nr <= SMALL_SET && !(set->patch && !set->patch->base->for_one);
}

static bool pays_for_single_lookups(const struct ms_vm *vm, struct memslot_set *set)
{
	uint64_t walked = count_walked(set, SEARCHES_PER_REPORT);

	return may_index(vm) && !set_index(set) && serves_single_lookups(set) &&
	       way_that_pays(vm, set, walked / SINGLE_LOOKUPS) != NO_WAY;
}

void vm_index_report_searches(struct ms_vm *vm, uint32_t as_id)
{
	struct look look = look_begin(vm, as_id);
	bool pays = look.set && pays_for_single_lookups(vm, look.set);

	look_end(vm, look);
	if (pays)
		flat_put(vm_index_get(vm, as_id, 0)); /* else a batch will find what was counted */
}

/* ---- check ---- */

/* Whether the entries that `next` gives are the slots of the set. */
typedef bool next_fn(void *cursor, struct flat_entry *entry);

static bool same_slots(const struct ms_vm *vm, const struct memslot_set *set, next_fn *next, void *cursor)
{
	const struct memslot *slot = vm->design->first_from(set, 0);
	struct flat_entry entry, own;

	for (; slot; slot = vm->design->next(set, slot)) {
		if (!is_indexed(slot))
			continue;
		own = entry_of(slot);
		if (!next(cursor, &entry) || !flat_same(&entry, &own))
			return false;
	}
	return !next(cursor, &entry);
}

static bool next_flat(void *cursor, struct flat_entry *entry)
{
	return flat_next(cursor, entry);
}

static bool next_patched(void *cursor, struct flat_entry *entry)
{
	return patch_next(cursor, entry);
}

bool set_index_is_valid(const struct ms_vm *vm, const struct memslot_set *set)
{
	struct flat_cursor flat = { .index = set_index(set) };
	struct patch_cursor patched;

	if (flat.index && (flat_check(flat.index) || !same_slots(vm, set, next_flat, &flat)))
		return false;
	if (flat.index || !set->patch)
		return true;
	patched = patch_begin(set->patch);
	return same_slots(vm, set, next_patched, &patched);
}
