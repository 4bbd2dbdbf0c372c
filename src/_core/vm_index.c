/* SPDX-License-Identifier: MIT */
/*
 * vm_index.c - see vm_index.h; the index itself is in flat_index.h, its marks are in overlay.h.
 */
#include "vm_index.h"

/* A brief batch makes an index of at most this many slots at once, and otherwise advances it by one step. */
#define SMALL_SET 4096

/* The cost of the allocations of any index, in lookups that an index makes cheaper. */
#define FIXED_COST 64

/* The cost of a slot that is searched or copied, in lookups that an index makes cheaper.  Measured (docs/benchmarks.md,
 * "When an index pays"). */
#define LOOKUPS_PER_WALKED_SLOT 2
#define LOOKUPS_PER_COPIED_SLOT 1

/* The number of single lookups to come is unknown.  So only one in this many counts towards the cost of an index: a
 * fifth of the time is lost at most if no lookup follows. */
#define SINGLE_LOOKUPS 4

/* So many lookups pay for one step of bounded work. */
#define LOOKUPS_PER_STEP (SEARCHES_PER_REPORT / SINGLE_LOOKUPS)

/* An index that has answered fewer lookups than it cost doubles the price of the next one, at most this many times. */
#define PATIENCE_MAX 10

/* An overlay that waited for memory serves again with at most this many edited ranges. */
#define MARKS_MAX 64

/* So many slots show how far apart slots are. */
#define SAMPLE 64

struct flat_entry vm_index_entry(const struct memslot *slot)
{
	return (struct flat_entry){
		.base_gfn = slot->base_gfn,
		.hva = slot->hva.start | (slot->flags & MS_MEM_READONLY ? FLAT_READONLY : 0),
		.npages = slot->npages,
		.id = slot->id,
	};
}

/* ---- the writer ---- */

/* An INVALID slot and no slot have the same answers. */
static void note_edit(struct overlays *overlays, uint32_t set, const struct memslot *slot, bool gone)
{
	struct flat_entry entry;

	if (!is_indexed(slot))
		return;
	entry = vm_index_entry(slot);
	overlays_edit(overlays, set, &entry, gone);
}

static out_of_line void note_replace(struct overlays *overlays, uint32_t set, const struct memslot *old,
				     const struct memslot *new_slot)
{
	note_edit(overlays, set, old, true);
	note_edit(overlays, set, new_slot, false);
}

static void count_edit(struct memslot_set *set, const struct memslot *old, const struct memslot *new_slot)
{
	if (old)
		memslot_count(set, old, -1u);
	if (new_slot)
		memslot_count(set, new_slot, 1);
}

/* The call of the design comes last, so that it can be a jump: four calls of a MOVE then save no registers. */
void vm_replace(struct ms_vm *vm, struct memslot_set *set, struct memslot *old, struct memslot *new_slot)
{
	struct overlays *overlays = &as_of(set)->overlays;

	if (unlikely(overlays_exist(overlays)))
		note_replace(overlays, set->node_idx, old, new_slot);
	count_edit(set, old, new_slot);
	vm->design->replace(set, old, new_slot);
}

bool vm_exchange(struct ms_vm *vm, struct memslot_set *set, struct memslot *old, struct memslot *new_slot)
{
	if (!vm->design->exchange || !vm->design->exchange(set, old, new_slot))
		return false;
	count_edit(set, old, new_slot);
	return true;
}

void vm_replace_by_gfn(struct ms_vm *vm, struct memslot_set *set, struct memslot *old, struct memslot *new_slot)
{
	struct overlays *overlays = &as_of(set)->overlays;

	if (unlikely(overlays_exist(overlays)))
		note_replace(overlays, set->node_idx, old, new_slot);
	vm->design->replace_by_gfn(set, old, new_slot);
}

static void mark_slot(struct overlays *overlays, const struct memslot *slot)
{
	overlays_mark(overlays, slot->base_gfn, slot->base_gfn + slot->npages);
}

static void mark_new(const struct memslot_set *set, struct overlays *overlays, const struct sort_item *items, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!memslot_is_in(items[i].item, set))
			mark_slot(overlays, items[i].item);
}

bool vm_fill(struct ms_vm *vm, struct memslot_set *set, const struct sort_item *by_gfn, const struct sort_item *by_hva,
	     size_t n)
{
	struct overlays *overlays = &as_of(set)->overlays;

	if (unlikely(overlays_exist(overlays))) {
		overlays_lose_edits(overlays);
		mark_new(set, overlays, by_gfn, n);
	}
	return vm->design->build(set, by_gfn, by_hva, n);
}

/* ---- gather ---- */

/* The slots of a state, for the reader that has set `busy`, inside a section. */
struct gathering {
	const struct ms_vm *vm;
	const struct memslot_set *set;
	struct index_build *build;
	struct overlay *coming;
	size_t left; /* slots that may still be visited */
};

static const struct overlay_edits *edits_of(const struct gathering *g)
{
	return overlay_edits(g->coming, g->set->node_idx);
}

/* An edited slot may differ in another state, so the index leaves it out.  If only its neighbours were edited, all its
 * blocks may be marked too. */
static bool may_be_edited(struct overlay *coming, uint64_t begin, uint64_t end)
{
	if (!overlay_all_marked(coming, begin, end) || !overlay_may_be_edited(coming, begin, end))
		return false;
	coming->incomplete |= overlay_list_is_long(coming);
	return true;
}

/* With the lists, the index has the state in which the overlay was begun. */
static bool is_edited(const struct gathering *g, const struct flat_entry *entry)
{
	const struct overlay_edits *edits = edits_of(g);

	if (edits)
		return overlay_has_edit(edits, entry, false);
	return may_be_edited(g->coming, entry->base_gfn, entry->base_gfn + entry->npages);
}

static void add_entry(struct index_build *b, const struct flat_entry *entry)
{
	b->next_gfn = entry->base_gfn + entry->npages;
	flat_builder_add(b->builder, entry);
}

/* The first slot between next_gfn and `end` that the set has lost since the overlay was begun, or NULL. */
static const struct flat_entry *next_gone(const struct gathering *g, uint64_t end)
{
	const struct overlay_edits *edits = edits_of(g);
	const struct flat_entry *first = NULL;

	for (uint32_t i = 0; edits && i < edits->nr; i++) {
		const struct flat_entry *e = &edits->entry[i];

		if (overlay_edit_is_gone(edits, i) && e->base_gfn >= g->build->next_gfn && e->base_gfn < end &&
		    (!first || e->base_gfn < first->base_gfn))
			first = e;
	}
	return first;
}

static void gather_gone(const struct gathering *g, uint64_t end)
{
	for (const struct flat_entry *e; (e = next_gone(g, end));)
		add_entry(g->build, e);
}

static void gather_one(struct gathering *g, const struct flat_entry *entry)
{
	g->left--;
	if (is_edited(g, entry)) {
		if (!edits_of(g))
			g->build->next_gfn = entry->base_gfn + entry->npages;
		return;
	}
	gather_gone(g, entry->base_gfn);
	add_entry(g->build, entry);
}

/* The slots of the set before `end`.  Returns false if the work of this piece is done before. */
static bool gather_from_set(struct gathering *g, uint64_t end)
{
	const struct memslot_design *design = g->vm->design;
	const struct memslot *slot = design->first_from(g->set, g->build->next_gfn);

	for (; slot && slot->base_gfn < end; slot = design->next(g->set, slot)) {
		struct flat_entry entry = vm_index_entry(slot);

		if (!g->left)
			return false;
		if (is_indexed(slot))
			gather_one(g, &entry);
	}
	return true;
}

static bool is_marked_in_base(const struct index_build *b)
{
	return overlay_all_marked(b->base, b->next.base_gfn, b->next.base_gfn + b->next.npages);
}

/* Moves to the next slot of the base that is the same in all states.  The writer may have marked it since the last
 * piece, or removed its marks. */
static bool skip_marked(struct gathering *g)
{
	struct index_build *b = g->build;

	while (b->more && is_marked_in_base(b)) {
		if (!g->left)
			return false;
		g->left--;
		b->skipped = true;
		b->more = flat_next(&b->cursor, &b->next);
	}
	return true;
}

/* Whether the set may have slots between next_gfn and `end` that the base does not show.  The present marks alone do
 * not answer this: a skipped slot that came back has lost its marks, and the cursor has passed it. */
static bool must_search_set(const struct index_build *b, uint64_t end)
{
	return b->next_gfn < end && (b->skipped || overlay_any_marked(b->base, b->next_gfn, end));
}

static void copy_next(struct gathering *g)
{
	struct index_build *b = g->build;

	gather_one(g, &b->next);
	b->skipped = false;
	b->more = flat_next(&b->cursor, &b->next);
}

/* The slots of the base that are not edited, and between them, where slots may differ, the slots of the set. */
static bool gather_from_base(struct gathering *g)
{
	struct index_build *b = g->build;

	while (skip_marked(g)) {
		uint64_t end = b->more ? b->next.base_gfn : ~(uint64_t)0;

		if (must_search_set(b, end) && !gather_from_set(g, end))
			return false;
		if (!b->more)
			return true;
		if (!g->left)
			return false;
		copy_next(g);
	}
	return false;
}

static void gather_piece(struct ms_vm *vm, uint32_t as_id, struct index_build *b)
{
	struct look look = look_begin(vm, as_id);
	struct overlays *overlays = &vm->as[as_id].overlays;
	struct gathering g = {
		.vm = vm,
		.set = look.set,
		.build = b,
		.coming = atomic_load_explicit(&overlays->coming, memory_order_relaxed),
		.left = VM_INDEX_PIECE,
	};

	b->gathered = b->base ? gather_from_base(&g) : gather_from_set(&g, ~(uint64_t)0);
	if (b->gathered)
		gather_gone(&g, ~(uint64_t)0);
	look_end(vm, look);
	point(READER_INDEX_GATHERED);
}

/* ---- when it pays ---- */

/* Whether it pays to copy slots from this overlay. */
static bool is_base(const struct overlay *o)
{
	return o && overlay_has_few_marks(o, 2);
}

static uint64_t cost_of_index(const struct memslot_set *set)
{
	bool copied = is_base(set_index(set));

	return FIXED_COST + (uint64_t)set->nr * (copied ? LOOKUPS_PER_COPIED_SLOT : LOOKUPS_PER_WALKED_SLOT);
}

/* Lookups that use the current index are not counted where they are made, so the count is that of the whole VM. */
static bool has_served(struct ms_vm *vm, const struct memslot_set *set)
{
	uint64_t before = atomic_load_explicit(&as_of(set)->build.indexed, memory_order_relaxed);

	return srcu_total(&vm->srcu, SRCU_INDEXED) - before >= cost_of_index(set);
}

static bool has_paid(struct ms_vm *vm, const struct memslot_set *set, uint64_t walked)
{
	const struct index_build *b = &as_of(set)->build;
	uint64_t cost = cost_of_index(set);

	if (atomic_load_explicit(&b->running, memory_order_relaxed))
		return true;
	return walked >= cost &&
	       (walked >> atomic_load_explicit(&b->patience, memory_order_relaxed) >= cost || has_served(vm, set));
}

/* An index without marks leaves no lookup to walk, except after the hints of vCPUs.  Few lookups at a time pay for a
 * step together. */
bool vm_index_is_due(struct ms_vm *vm, struct memslot_set *set, size_t lookups)
{
	const struct overlay *o = set_index(set);
	uint64_t before, walked;

	if (!lookups || !set->nr || !may_index(vm) || (o && overlay_answers_all(o, set->node_idx)))
		return false;
	before = atomic_fetch_add_explicit(&as_of(set)->walked, lookups, memory_order_relaxed);
	walked = before + lookups;
	if (atomic_load_explicit(&vm->index_policy, memory_order_relaxed) == MS_INDEX_EAGER)
		return true;
	return before / LOOKUPS_PER_STEP != walked / LOOKUPS_PER_STEP && has_paid(vm, set, walked);
}

/* Before the next index is made: sets its price by the use of the current one. */
static void set_patience(struct ms_vm *vm, const struct memslot_set *set)
{
	_Atomic uint32_t *patience = &as_of(set)->build.patience;
	uint32_t now = atomic_load_explicit(patience, memory_order_relaxed);

	if (!set_index(set) || has_served(vm, set))
		now = 0;
	else if (now < PATIENCE_MAX)
		now++;
	atomic_store_explicit(patience, now, memory_order_relaxed);
}

/* ---- make ---- */

/* How far apart slots are, as the exponent of two: the mean of the first ones. */
static uint32_t typical_distance(const struct ms_vm *vm, const struct memslot_set *set)
{
	const struct memslot *slot = vm->design->first_from(set, 0), *next;
	uint32_t sum = 0, nr = 0;

	for (; slot && nr < SAMPLE; slot = next, nr++) {
		next = vm->design->next(set, slot);
		sum += 63u - (uint32_t)__builtin_clzll(next ? next->base_gfn - slot->base_gfn : slot->npages);
	}
	return nr ? sum / nr : 0;
}

/* Installs the coming overlay, so that the writer marks its edits there. */
static bool begin(struct ms_vm *vm, uint32_t as_id, struct address_space *as)
{
	struct look look = look_begin(vm, as_id);
	struct overlay *o = NULL;
	size_t nr = look.set->nr;
	uint32_t shift = typical_distance(vm, look.set);
	uint64_t change;

	look_end(vm, look);
	if (nr)
		o = overlay_create(&vm->memory, nr, shift);
	if (!o)
		return false;
	atomic_store_explicit(&as->overlays.coming, o, memory_order_seq_cst);
	point(READER_INDEX_BEGUN);
	change = atomic_load_explicit(&as->overlays.change, memory_order_seq_cst);
	as->build.not_during = change & 1 ? change : 0;
	return true;
}

static void drop_coming(struct address_space *as, struct overlay *o)
{
	atomic_store_explicit(&as->overlays.coming, NULL, memory_order_seq_cst);
	overlays_retire(&as->overlays, o);
}

/* After an index that could not be made for lack of memory, its overlay serves again, unless it has many marks. */
static bool has_begun(struct address_space *as)
{
	struct overlay *o = atomic_load_explicit(&as->overlays.coming, memory_order_relaxed);
	bool running = atomic_load_explicit(&as->build.running, memory_order_relaxed);

	if (!o || running || overlay_nr_ranges(o) <= MARKS_MAX)
		return o;
	drop_coming(as, o);
	return false;
}

/* Whether every edit since the coming overlay was begun is marked there, or is in all states that are still visible. */
static bool may_gather(struct address_space *as)
{
	struct index_build *b = &as->build;

	if (b->not_during && atomic_load_explicit(&as->overlays.change, memory_order_seq_cst) == b->not_during)
		return false;
	b->not_during = 0;
	return true;
}

/* Inside a section.  The index has slots of the state of begin() only.  This set has them too, except for at most
 * OVERLAY_EDITS_MAX gone ones; if the lists are lost, the index has no edited slot.  So the set's number of slots and
 * OVERLAY_EDITS_MAX more are enough room. */
static out_of_line void look_at_set(struct ms_vm *vm, const struct memslot_set *set, struct index_build *b)
{
	struct overlay *current = set_index(set);

	b->nr = set->nr;
	if (is_base(current))
		b->base = overlay_get(current);
	set_patience(vm, set);
}

static bool start_gathering(struct ms_vm *vm, uint32_t as_id, struct index_build *b)
{
	struct look look = look_begin(vm, as_id);

	look_at_set(vm, look.set, b);
	look_end(vm, look);
	b->builder = flat_builder_create(&vm->memory, b->nr + OVERLAY_EDITS_MAX);
	b->next_gfn = 0;
	b->gathered = b->skipped = false;
	if (b->base) {
		b->cursor = (struct flat_cursor){ .index = b->base->index };
		b->more = flat_next(&b->cursor, &b->next);
	}
	return b->builder;
}

static void end_build(struct address_space *as)
{
	struct index_build *b = &as->build;

	flat_builder_destroy(b->builder);
	overlay_put(b->base);
	b->builder = NULL;
	b->base = NULL;
	atomic_store_explicit(&b->running, 0, memory_order_relaxed);
	atomic_store_explicit(&as->walked, 0, memory_order_relaxed);
}

static bool start(struct ms_vm *vm, uint32_t as_id)
{
	struct address_space *as = &vm->as[as_id];

	if (!has_begun(as) && !begin(vm, as_id, as)) {
		end_build(as);
		return false;
	}
	atomic_store_explicit(&as->build.running, 1, memory_order_relaxed);
	if (!may_gather(as))
		return false;
	if (start_gathering(vm, as_id, &as->build))
		return true;
	end_build(as);
	return false;
}

/* Lookups use the overlay before it leaves `coming`, and the writer marks it in one place or the other at any time. */
static void publish(struct address_space *as, struct overlay *o)
{
	struct overlay *former;

	for (int i = 0; i < 2; i++)
		atomic_store_explicit(&as->set[i].index, o, memory_order_release);
	point(READER_INDEX_OFFERED);
	former = atomic_exchange_explicit(&as->overlays.current, o, memory_order_seq_cst);
	point(READER_INDEX_MOVED);
	atomic_store_explicit(&as->overlays.coming, NULL, memory_order_seq_cst);
	overlays_retire(&as->overlays, former);
}

static void finish(struct ms_vm *vm, struct address_space *as, struct flat_index *index)
{
	struct overlay *o = atomic_load_explicit(&as->overlays.coming, memory_order_relaxed);
	_Atomic uint64_t *count = as->build.base ? &vm->index_patches : &vm->index_builds;

	point(READER_INDEX_MADE);
	o->index = index;
	o->for_one = index->for_one;
	atomic_fetch_add_explicit(count, 1, memory_order_relaxed);
	if (atomic_load_explicit(&o->spent, memory_order_relaxed))
		drop_coming(as, o);
	else
		publish(as, o);
	atomic_store_explicit(&as->build.indexed, srcu_total(&vm->srcu, SRCU_INDEXED), memory_order_relaxed);
	end_build(as);
}

enum progress { STOPPED, MORE, DONE };

/* One step: the work of at most VM_INDEX_PIECE slots. */
static enum progress advance(struct ms_vm *vm, uint32_t as_id)
{
	struct address_space *as = &vm->as[as_id];
	struct index_build *b = &as->build;
	enum flat_built built;
	struct flat_index *index;

	if (!b->builder && !start(vm, as_id))
		return STOPPED;
	if (!b->gathered) {
		gather_piece(vm, as_id, b);
		return MORE;
	}
	built = flat_builder_step(b->builder, VM_INDEX_PIECE, &index);
	point(READER_INDEX_STEPPED);
	if (built == FLAT_BUILD_MORE)
		return MORE;
	if (built == FLAT_BUILD_DONE)
		finish(vm, as, index);
	else
		end_build(as);
	return built == FLAT_BUILD_DONE ? DONE : STOPPED;
}

static bool try_busy(struct index_build *b)
{
	return !atomic_exchange_explicit(&b->busy, 1, memory_order_acquire);
}

static void leave_busy(struct index_build *b)
{
	atomic_store_explicit(&b->busy, 0, memory_order_release);
}

/* Advances the build as far as the work of VM_INDEX_PIECE slots goes, counting every slot in each step. */
static void advance_briefly(struct ms_vm *vm, uint32_t as_id)
{
	const struct index_build *b = &vm->as[as_id].build;
	enum progress progress;
	size_t work = 0;

	do {
		progress = advance(vm, as_id);
		work += b->nr;
	} while (progress == MORE && work + b->nr <= VM_INDEX_PIECE);
}

static void advance_to_the_end(struct ms_vm *vm, uint32_t as_id)
{
	while (advance(vm, as_id) == MORE)
		;
}

static bool is_small(const struct address_space *as)
{
	const struct index_build *b = &as->build;

	return b->builder && b->nr <= SMALL_SET;
}

void vm_index_make(struct ms_vm *vm, uint32_t as_id, bool brief)
{
	struct address_space *as = &vm->as[as_id];

	if (!may_index(vm) || !try_busy(&as->build))
		return;
	if (brief)
		advance_briefly(vm, as_id);
	if (!brief || is_small(as))
		advance_to_the_end(vm, as_id);
	leave_busy(&as->build);
}

static void make_briefly(struct ms_vm *vm, uint32_t as_id)
{
	struct index_build *b = &vm->as[as_id].build;

	if (!try_busy(b))
		return;
	advance_briefly(vm, as_id);
	leave_busy(b);
}

/* Whether an index of this set probably has for_one.  The current index, unless most slots have changed since, is the
 * best estimate. */
static bool serves_single_lookups(const struct memslot_set *set)
{
	const struct overlay *o = set_index(set);

	return set->nr > FLAT_FEW && !(o && !o->for_one && is_base(o));
}

void vm_index_report_searches(struct ms_vm *vm, uint32_t as_id)
{
	struct look look = look_begin(vm, as_id);
	bool due = look.set && serves_single_lookups(look.set) && vm_index_is_due(vm, look.set, LOOKUPS_PER_STEP);

	look_end(vm, look);
	if (due)
		make_briefly(vm, as_id);
}

struct flat_index *vm_index_make_private(struct ms_vm *vm, uint32_t as_id)
{
	struct look look = look_begin(vm, as_id);
	struct flat_builder *builder = may_index(vm) ? flat_builder_create(&vm->memory, look.set->nr) : NULL;
	const struct memslot *slot = builder ? vm->design->first_from(look.set, 0) : NULL;
	struct flat_index *index = NULL;

	for (; slot; slot = vm->design->next(look.set, slot))
		if (is_indexed(slot)) {
			struct flat_entry entry = vm_index_entry(slot);

			flat_builder_add(builder, &entry);
		}
	look_end(vm, look);
	while (builder && flat_builder_step(builder, SIZE_MAX, &index) == FLAT_BUILD_MORE)
		;
	flat_builder_destroy(builder);
	if (index)
		atomic_fetch_add_explicit(&vm->index_builds, 1, memory_order_relaxed);
	return index;
}

/* ---- check ---- */

/* Whether a slot that is only in the index (gone), or only in the set, is against O1 to O3. */
static bool is_same_in_index(const struct overlay *o, uint32_t set, const struct flat_entry *entry, bool gone)
{
	const struct overlay_edits *edits = overlay_edits(o, set);
	uint64_t begin = entry->base_gfn, end = begin + entry->npages;

	if (edits)
		return !overlay_has_edit(edits, entry, gone);
	return !overlay_all_marked(o, begin, end) ||
	       (overlay_has_all_ranges(o) && !overlay_may_be_edited(o, begin, end));
}

static const struct memslot *next_slot_in_index(const struct ms_vm *vm, const struct memslot_set *set,
						const struct overlay *o, const struct memslot *slot)
{
	for (; slot; slot = vm->design->next(set, slot)) {
		struct flat_entry entry = vm_index_entry(slot);

		if (is_indexed(slot) && is_same_in_index(o, set->node_idx, &entry, false))
			break;
	}
	return slot;
}

static bool next_entry_in_set(const struct overlay *o, uint32_t set, struct flat_cursor *cursor,
			      struct flat_entry *entry)
{
	bool more;

	do
		more = flat_next(cursor, entry);
	while (more && !is_same_in_index(o, set, entry, true));
	return more;
}

bool set_index_is_valid(const struct ms_vm *vm, const struct memslot_set *set)
{
	const struct overlay *o = set_index(set);
	const struct memslot *slot = o ? next_slot_in_index(vm, set, o, vm->design->first_from(set, 0)) : NULL;
	struct flat_cursor cursor = { 0 };
	struct flat_entry entry, own;

	if (!o)
		return true;
	if (flat_check(o->index) || !overlay_is_valid(o))
		return false;
	cursor.index = o->index;
	for (; slot; slot = next_slot_in_index(vm, set, o, vm->design->next(set, slot))) {
		own = vm_index_entry(slot);
		if (!next_entry_in_set(o, set->node_idx, &cursor, &entry) || !flat_same(&entry, &own))
			return false;
	}
	return !next_entry_in_set(o, set->node_idx, &cursor, &entry);
}
