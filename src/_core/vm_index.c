/* SPDX-License-Identifier: MIT */
/*
 * vm_index.c - see vm_index.h; the index itself is in flat_index.h, the noted edits are in flat_patch.h.
 */
#include "vm_index.h"

/* The number of slots that one section walks: some tens of microseconds. */
#define PIECE 2048

/* How often vm_index_make() tries to walk a state in pieces before it walks it in one section. */
#define TRIES 2

/* A single lookup or a brief batch makes an index of at most this many slots. */
#define SMALL_SET 4096

/* The cost of the two allocations of any index, in lookups that an index makes cheaper. */
#define FIXED_COST 64

/* The cost of a slot that is walked or copied, in lookups that an index makes cheaper.  Measured (docs/benchmarks.md,
 * "When an index pays"). */
#define LOOKUPS_PER_WALKED_SLOT 3
#define LOOKUPS_PER_COPIED_SLOT 1

/* The number of single lookups to come is unknown.  So only one in this many counts towards the cost of an index: less
 * than a tenth of the time is lost if no lookup follows. */
#define SINGLE_LOOKUPS 4

/* Each walk that no copy follows doubles the number of states until the next walk, at most this many times. */
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
	if (atomic_load_explicit(&set->walked, memory_order_relaxed)) /* readers use this line: no needless store */
		atomic_store_explicit(&set->walked, 0, memory_order_relaxed);
}

/* After too many edits the set has no patch. */
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

/* The slots of a state, collected one piece at a time. */
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

/* Inside a section of the state.  By M3 a set has `nr` slots, so the entries fit. */
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

/* Returns false if the state changed before all its slots were collected. */
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

/* Publishes the index if its state is still the present one and has no index. */
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

/* Makes the index of the collected entries, and frees them. */
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

/* How to get an index. */
enum method { NONE, FOUND, PATCH, WALK };

/* Copied from the set inside a section, to be used outside of it. */
struct plan {
	enum method method;
	struct state state;
	size_t nr;
	struct flat_index *index; /* FOUND: with a reference */
	struct flat_patch patch;  /* PATCH: with a reference to its base */
};

static uint64_t cost_of_copy(const struct memslot_set *set)
{
	return FIXED_COST + (uint64_t)set->nr * LOOKUPS_PER_COPIED_SLOT;
}

static uint64_t cost_of_walk(const struct memslot_set *set)
{
	return FIXED_COST + (uint64_t)set->nr * LOOKUPS_PER_WALKED_SLOT;
}

/* Adds to the number of lookups that have walked this set since it was published, and returns it. */
static uint64_t count_walked(struct memslot_set *set, uint64_t lookups)
{
	uint64_t before = atomic_fetch_add_explicit(&set->walked, lookups, memory_order_relaxed);

	if (before < cost_of_copy(set) && before + lookups >= cost_of_copy(set))
		atomic_fetch_add_explicit(&set->worth_copy, 1, memory_order_relaxed);
	return before + lookups;
}

/*
 * If each state has enough lookups for a copy, but none has enough for a walk, one walk pays nevertheless: the indexes
 * of later states are copied from it.  If there are too many edits for a copy, the walks back off: the next one waits
 * for twice as many states.
 */
static bool walk_pays_later(const struct memslot_set *set)
{
	uint32_t backoff = atomic_load_explicit(&set->walk_backoff, memory_order_relaxed);
	uint32_t states = atomic_load_explicit(&set->worth_copy, memory_order_relaxed);

	if (backoff > WALK_BACKOFF_MAX)
		backoff = WALK_BACKOFF_MAX;
	return states >> backoff >= LOOKUPS_PER_WALKED_SLOT / LOOKUPS_PER_COPIED_SLOT;
}

static enum method method_that_pays(const struct ms_vm *vm, const struct memslot_set *set, uint64_t lookups)
{
	bool any = atomic_load_explicit(&vm->index_policy, memory_order_relaxed) == MS_INDEX_EAGER;
	bool copied = any || lookups >= cost_of_copy(set);

	if (copied && set->patch)
		return PATCH;
	return any || lookups >= cost_of_walk(set) || (copied && walk_pays_later(set)) ? WALK : NONE;
}

/* A walk raises the back-off; a copy resets it. */
static void note_method(struct memslot_set *set, enum method method)
{
	if (method != WALK && method != PATCH)
		return;
	atomic_store_explicit(&set->worth_copy, 0, memory_order_relaxed);
	if (method == WALK)
		atomic_fetch_add_explicit(&set->walk_backoff, 1, memory_order_relaxed);
	else
		atomic_store_explicit(&set->walk_backoff, 0, memory_order_relaxed);
}

bool vm_index_pays(const struct ms_vm *vm, struct memslot_set *set, size_t lookups, bool brief)
{
	return may_index(vm) && method_that_pays(vm, set, count_walked(set, lookups)) != NONE &&
	       !(brief && set->nr > SMALL_SET);
}

/* If the set has an index, the method is FOUND.  Inside a section. */
static void make_plan(struct memslot_set *set, enum method method, struct plan *plan)
{
	*plan = (struct plan){ .method = method, .state = state_of(set), .nr = set->nr, .index = set_index(set) };
	if (plan->index) {
		plan->method = FOUND;
		flat_get(plan->index);
	} else if (method == PATCH) {
		plan->patch = *set->patch;
		flat_get(plan->patch.base);
	}
}

static struct flat_index *carry_out(struct ms_vm *vm, uint32_t as_id, struct plan *plan)
{
	point(READER_INDEX_PLANNED);
	switch (plan->method) {
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

static void reset_walked(struct ms_vm *vm, uint32_t as_id)
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
	make_plan(look.set, method_that_pays(vm, look.set, lookups), &plan);
	note_method(look.set, plan.method);
	look_end(vm, look);
	index = carry_out(vm, as_id, &plan);
	if (!index && plan.method != NONE)
		reset_walked(vm, as_id); /* no memory, or the state has changed: do not retry immediately */
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

/* Whether an index of this set probably has for_one.  The former index, if known, is the best estimate. */
static bool serves_single_lookups(const struct memslot_set *set)
{
	return set->nr > FLAT_FEW && set->nr <= SMALL_SET && !(set->patch && !set->patch->base->for_one);
}

static bool pays_for_single_lookups(const struct ms_vm *vm, struct memslot_set *set)
{
	uint64_t walked = count_walked(set, SEARCHES_PER_REPORT);

	return may_index(vm) && !set_index(set) && serves_single_lookups(set) &&
	       method_that_pays(vm, set, walked / SINGLE_LOOKUPS) != NONE;
}

void vm_index_report_searches(struct ms_vm *vm, uint32_t as_id)
{
	struct look look = look_begin(vm, as_id);
	bool pays = look.set && pays_for_single_lookups(vm, look.set);

	look_end(vm, look);
	if (pays) /* otherwise the searches stay counted, for later calls */
		flat_put(vm_index_get(vm, as_id, 0));
}

/* ---- check ---- */

typedef bool next_fn(void *cursor, struct flat_entry *entry);

/* Whether the entries that `next` returns are the slots of the set that are not INVALID. */
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
