/* SPDX-License-Identifier: MIT */
/*
 * test_update_model.c - steps of updates in any order, compared with two plain lists of slots.
 *
 * The model has for each slot its values, the sets that have it, and its dirty host pages.  It predicts the result of
 * each step, the content of both sets after it, the answers of lookups, and the state after the update's end: kept,
 * rolled back, or abandoned in a place that must not wait.  Sometimes an allocation fails, which must change nothing
 * but that result.  Sometimes a step gets a pointer that is no handle of the update: a handle of an earlier update,
 * whose memory may be freed, a handle of another VM, or a number.  The step must refuse it and change nothing.
 *
 * A listener compares the changes that it gets at the end with the model, and their last dirty bits.  A second listener
 * sometimes refuses.
 */
#include "fixture.h"

#include "tree_set.h"
#include "vm_index.h"

#define SPACES 2u
#define USER_SLOTS 24u /* more than the buckets of an empty set's hash */
#define GPA_BITS 21u
#define END_GFN ((uint64_t)1 << (GPA_BITS - MS_PAGE_SHIFT))
#define PAGES_MAX 100u
#define HVAS 64u /* of the first pages of slots */
#define KNOWN_MAX 96u
#define NONE KNOWN_MAX /* no slot, no family */
#define LOG MS_MEM_LOG_DIRTY_PAGES

/* ---- the model ---- */

struct log {
	uint64_t bits[2];
};

/* A slot that logs and the copies of it that log, in one update: a host page that two of them have has one bit. */
struct family {
	bool known[HVAS + PAGES_MAX], dirty[HVAS + PAGES_MAX];
};

struct known {
	struct ms_memslot value;
	struct memslot *slot;
	size_t family; /* an index of families, or NONE */
	bool in[2], was_there;
	bool seen; /* readers have seen it since its last flush */
};

/* An address space between updates. */
struct rest {
	struct {
		struct ms_memslot value;
		struct log log;
	} slot[USER_SLOTS];
	size_t nr;
	uint64_t generation;
	uint32_t active;
};

static struct rest rest[SPACES];
static struct known known[KNOWN_MAX + 1]; /* the last one stands for no slot */
static struct family families[KNOWN_MAX];
static size_t nr_known, edits[2];
static uint64_t empty_bytes, empty_blocks;

static struct ms_vm *vm, *other_vm, *foreign_vm;
static struct ms_update *foreign_update; /* open all the time */
static struct ms_vcpu *vcpu;
static struct ms_update *update;
static uint32_t space;
static size_t crowd; /* the approximate number of slots of an address space */
static struct rng rng;
static uint64_t answers[64], kept, rolled_back, without_memory, flushes, bad_handles, reused_addresses;
static uint64_t flushes_of_ends, changes_heard, refused_ends, last_bits;

static struct rest *here(void)
{
	return &rest[space];
}

static uint32_t idx_of(bool active)
{
	return here()->active ^ !active;
}

static struct ms_slot *handle(size_t i)
{
	return (struct ms_slot *)(void *)known[i].slot;
}

static size_t by_id(uint32_t idx, uint32_t id)
{
	for (size_t i = 0; i < nr_known; i++)
		if (known[i].in[idx] && known[i].value.id == id)
			return i;
	return NONE;
}

static bool overlap(const struct ms_memslot *a, const struct ms_memslot *b)
{
	return a->base_gfn < b->base_gfn + b->npages && b->base_gfn < a->base_gfn + a->npages;
}

/* The lowest slot of the set that new_slot would overlap, except for old. */
static size_t in_the_way(uint32_t idx, size_t old, size_t new_slot)
{
	size_t found = NONE;

	for (size_t i = 0; i < nr_known; i++)
		if (known[i].in[idx] && i != old && overlap(&known[i].value, &known[new_slot].value) &&
		    (found == NONE || known[i].value.base_gfn < known[found].value.base_gfn))
			found = i;
	return found;
}

static size_t by_gfn(uint32_t idx, uint64_t gfn)
{
	for (size_t i = 0; i < nr_known; i++)
		if (known[i].in[idx] && gfn - known[i].value.base_gfn < known[i].value.npages)
			return i;
	return NONE;
}

static uint64_t hva_at(size_t i, uint64_t gfn)
{
	const struct ms_memslot *v = &known[i].value;

	if (i == NONE || v->flags & MS_MEMSLOT_INVALID)
		return MS_HVA_ERR_BAD;
	return v->flags & MS_MEM_READONLY ? MS_HVA_ERR_RO_BAD : v->userspace_addr + (gfn - v->base_gfn) * PAGE;
}

/* ---- the expected result of a step ---- */

static int refusal(struct ms_error *want, int code, enum ms_rule rule, size_t other)
{
	*want = (struct ms_error){ .rule = rule };
	if (other != NONE)
		want->other = known[other].value;
	return code;
}

static int want_replace(struct ms_error *want, uint32_t idx, size_t old, size_t new_slot)
{
	size_t same, blocker;

	if ((old == NONE && new_slot == NONE) || (old != NONE && !known[old].in[idx]) ||
	    (new_slot != NONE && known[new_slot].in[idx]))
		return refusal(want, -EINVAL, MS_RULE_HANDLE, old != NONE ? old : new_slot);
	if (new_slot == NONE)
		return refusal(want, 0, MS_RULE_NONE, NONE);
	same = by_id(idx, known[new_slot].value.id);
	if (same != NONE && same != old)
		return refusal(want, -EEXIST, MS_RULE_DUPLICATE_ID, same);
	blocker = in_the_way(idx, old, new_slot);
	return blocker == NONE ? refusal(want, 0, MS_RULE_NONE, NONE) :
				 refusal(want, -EEXIST, MS_RULE_OVERLAP, blocker);
}

static void apply_edit(uint32_t idx, size_t old, size_t new_slot)
{
	if (old != NONE)
		known[old].in[idx] = false;
	if (new_slot != NONE)
		known[new_slot].in[idx] = true;
	edits[idx]++;
}

static void apply_swap(void)
{
	here()->active ^= 1;
	here()->generation += SPACES;
	for (size_t i = 0; i < nr_known; i++)
		known[i].seen |= known[i].in[here()->active];
}

static uint64_t armed; /* the number of the allocation of the step that fails, 0: none */

static void arm(void)
{
	armed = rng_below(&rng, 24) ? 0 : 1 + rng_below(&rng, 4);
	memory_fail(&vm->memory, armed, rng_below(&rng, 2));
}

/* Returns whether the step had no memory; else its result was the expected one. */
static bool lacked_memory(int r, const struct ms_error *err, int want, const struct ms_error *rule)
{
	bool failed = armed && atomic_load(&vm->memory.attempts) >= armed;

	memory_fail(&vm->memory, 0, false);
	if (failed && r == -ENOMEM) {
		CHECK(rule->rule == MS_RULE_NONE || rule->rule == MS_RULE_GPA_LIMIT);
		CHECK_EQ(err->rule, MS_RULE_NO_MEMORY);
		without_memory++;
		return true;
	}
	CHECK_EQ(r, want);
	CHECK(r < 0 || !r);
	if (r) {
		CHECK_EQ(err->rule, rule->rule);
		CHECK_EQ(err->limit, rule->limit);
		CHECK(same_slot(&err->other, &rule->other));
	}
	answers[r ? rule->rule : MS_RULE_NONE]++;
	return false;
}

/* ---- both sets, and the answers of lookups ---- */

static size_t sorted(uint32_t idx, size_t *list)
{
	size_t nr = 0;

	for (size_t i = 0; i < nr_known; i++)
		if (known[i].in[idx]) {
			size_t at = nr++;

			for (; at > 0 && known[list[at - 1]].value.base_gfn > known[i].value.base_gfn; at--)
				list[at] = list[at - 1];
			list[at] = i;
		}
	return nr;
}

static void check_set(bool active)
{
	struct ms_slot *found[USER_SLOTS];
	size_t list[KNOWN_MAX], nr = sorted(idx_of(active), list);
	uint32_t id = (uint32_t)rng_below(&rng, USER_SLOTS);
	struct ms_memslot value;

	CHECK_EQ(ms_update_slots(update, active, found, USER_SLOTS), nr);
	for (size_t i = 0; i < nr; i++) {
		CHECK_EQ(found[i], handle(list[i]));
		CHECK_EQ(ms_update_value(update, found[i], &value), 0);
		CHECK(same_slot(&value, &known[list[i]].value));
	}
	CHECK_EQ(ms_update_find(update, active, id), handle(by_id(idx_of(active), id)));
}

static void check_membership(void)
{
	for (size_t i = 0; i < nr_known; i++)
		CHECK_EQ(known[i].slot->sets & 3, known[i].in[0] | known[i].in[1] << 1);
}

static void check_gfn(uint64_t gfn)
{
	size_t i = by_gfn(here()->active, gfn);
	struct ms_memslot slot;

	CHECK_EQ(ms_gfn_to_hva(vm, space, gfn), hva_at(i, gfn));
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, gfn), hva_at(i, gfn));
	CHECK_EQ(ms_gfn_to_memslot(vm, space, gfn, &slot), i == NONE ? -ENOENT : 0);
	CHECK(i == NONE || same_slot(&slot, &known[i].value));
	CHECK_EQ(vm->design->search(vm_active_set(vm, space), gfn), known[i].slot);
}

static void check_id(uint32_t id)
{
	size_t i = by_id(here()->active, id);
	struct ms_memslot slot;

	CHECK_EQ(ms_id_to_memslot(vm, space, id, &slot), i == NONE ? -ENOENT : 0);
	CHECK(i == NONE || same_slot(&slot, &known[i].value));
}

static void check_step(void)
{
	check_set(true);
	check_set(false);
	check_membership();
	check_gfn(rng_below(&rng, END_GFN));
	check_id((uint32_t)rng_below(&rng, USER_SLOTS));
	CHECK_EQ(ms_generation(vm, space), here()->generation);
	CHECK_EQ(active_idx(vm, space), here()->active);
}

/* ---- the steps ---- */

static void replace(size_t old, size_t new_slot)
{
	uint32_t idx = idx_of(false);
	struct ms_error want, err;
	int code = want_replace(&want, idx, old, new_slot), r;

	arm();
	r = ms_update_replace(update, handle(old), handle(new_slot), &err);
	if (!lacked_memory(r, &err, code, &want) && !r)
		apply_edit(idx, old, new_slot);
}

static void activate(size_t old, size_t new_slot)
{
	uint32_t idx = idx_of(true);
	struct ms_error want, err;
	int code = want_replace(&want, idx, old, new_slot), r;

	arm();
	r = ms_update_activate(update, handle(old), handle(new_slot), &err);
	if (lacked_memory(r, &err, code, &want) || r)
		return;
	apply_swap();
	apply_edit(idx, old, new_slot);
}

static void swap(void)
{
	arm();
	CHECK_EQ(ms_update_swap(update, NULL), 0);
	memory_fail(&vm->memory, 0, false);
	apply_swap();
}

/* ---- pointers that are no handles ---- */

#define OLD_HANDLES 256u

static struct ms_slot *old_handles[OLD_HANDLES]; /* handles of all updates and VMs, the last ones */
static uint64_t nr_old_handles;

static void keep_old_handle(struct ms_slot *slot)
{
	old_handles[nr_old_handles++ % OLD_HANDLES] = slot;
}

static struct ms_slot *foreign_handle(void)
{
	struct ms_slot *draft = NULL;
	struct ms_memslot value = { 5, 1, HVA_BASE, 1, 0, 0, 0 };

	if (rng_below(&rng, 2))
		return ms_update_find(foreign_update, rng_below(&rng, 2), (uint32_t)rng_below(&rng, USER_SLOTS));
	CHECK_EQ(ms_update_copy(foreign_update, NULL, &value, &draft, NULL), 0);
	return draft;
}

static struct ms_slot *any_pointer(void)
{
	uint64_t i = nr_old_handles ? rng_below(&rng, OLD_HANDLES) % nr_old_handles : 0;
	uintptr_t slot = (uintptr_t)old_handles[i];

	switch (rng_below(&rng, 8)) {
	case 0:
		return foreign_handle();
	case 1:
		return (struct ms_slot *)(slot + 8 * (uintptr_t)rng_below(&rng, 50) - 200);
	case 2:
		return (struct ms_slot *)(uintptr_t)rng_next(&rng);
	default:
		return (struct ms_slot *)slot;
	}
}

/* An address that was freed may be a slot's again: then it is a handle. */
static bool is_known(const struct ms_slot *slot)
{
	for (size_t i = 0; i < nr_known; i++)
		if (handle(i) == slot)
			return true;
	return !slot;
}

static int call_with_bad_handle(uint64_t which, struct ms_slot *bad, struct ms_slot *own, struct ms_error *err)
{
	struct ms_memslot value = { 5, 1, HVA_BASE, 1, 0, 0, 0 };
	struct ms_slot *out;

	switch (which) {
	case 0:
		return ms_update_replace(update, bad, NULL, err);
	case 1:
		return ms_update_replace(update, bad, own, err);
	case 2:
		return ms_update_replace(update, own, bad, err);
	case 3:
		return ms_update_activate(update, bad, own, err);
	case 4:
		return ms_update_activate(update, own, bad, err);
	case 5:
		return ms_update_invalidate(update, bad, &out, err);
	case 6:
		return ms_update_copy(update, bad, &value, &out, err);
	default:
		*err = (struct ms_error){ .rule = MS_RULE_HANDLE };
		return ms_update_value(update, bad, &value);
	}
}

static void step_with_bad_handle(void)
{
	struct ms_slot *bad = any_pointer(), *own = handle(nr_known ? rng_below(&rng, nr_known) : NONE);
	struct ms_error err = { .rule = MS_RULE_NONE };
	uint64_t which = rng_below(&rng, 8); /* drawn in any case: addresses differ from run to run */

	if (is_known(bad)) {
		reused_addresses++;
		return;
	}
	CHECK_EQ(call_with_bad_handle(which, bad, own, &err), -EINVAL);
	CHECK_EQ(err.rule, MS_RULE_HANDLE);
	CHECK(no_slot(&err.other));
	bad_handles++;
}

static size_t remember(struct ms_slot *slot, const struct ms_memslot *value, size_t family)
{
	known[nr_known] = (struct known){ .value = *value, .slot = (struct memslot *)(void *)slot, .family = family };
	keep_old_handle(slot);
	return nr_known++;
}

static struct ms_memslot flushed_active, flushed_old;

static void invalidate(size_t i)
{
	bool in_both = known[i].in[0] && known[i].in[1];
	struct ms_memslot value = known[i].value;
	uint32_t idx = idx_of(false);
	struct ms_slot *inv = NULL;
	struct ms_error want, err;
	int code = refusal(&want, in_both ? 0 : -EINVAL, in_both ? MS_RULE_NONE : MS_RULE_HANDLE, i), r;
	uint64_t before = flushes;

	arm();
	r = ms_update_invalidate(update, handle(i), &inv, &err);
	CHECK_EQ(flushes - before, !r);
	if (lacked_memory(r, &err, code, &want) || r) {
		CHECK(!inv);
		return;
	}
	value.flags |= MS_MEMSLOT_INVALID;
	CHECK(same_slot(&flushed_active, &value) && same_slot(&flushed_old, &known[i].value));
	apply_edit(idx, i, remember(inv, &value, known[i].family));
	apply_swap();
	known[i].seen = false;
}

static bool ending;

static bool same_translation(const struct ms_memslot *a, const struct ms_memslot *b)
{
	return a->base_gfn == b->base_gfn && a->npages == b->npages && a->userspace_addr == b->userspace_addr &&
	       !((a->flags ^ b->flags) & MS_MEM_READONLY);
}

/* Whether a value that readers derived from the slot is not right any more after the update, and was not flushed. */
static bool needs_flush(size_t i)
{
	size_t next = by_id(0, known[i].value.id);

	return known[i].seen && !known[i].in[0] && !(known[i].value.flags & MS_MEMSLOT_INVALID) &&
	       (next == NONE || !same_translation(&known[i].value, &known[next].value));
}

static void check_flush_of_end(const struct ms_memslot *active, const struct ms_memslot *old)
{
	size_t next = by_id(0, old->id), i = 0;
	struct ms_memslot invalid = *old;

	invalid.flags |= MS_MEMSLOT_INVALID;
	CHECK(same_slot(active, next == NONE ? &invalid : &known[next].value));
	while (i < nr_known && !(needs_flush(i) && same_slot(old, &known[i].value)))
		i++;
	CHECK(i < nr_known);
	known[i].seen = false;
}

/* After a step lookups find the INVALID copy. */
static void on_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	struct ms_memslot slot;

	(void)opaque;
	if (ending) {
		check_flush_of_end(active, old);
		flushes_of_ends++;
		return;
	}
	CHECK_EQ(ms_gfn_to_memslot(vm, space, old->base_gfn + old->npages - 1, &slot), 0);
	CHECK(same_slot(&slot, active));
	flushed_active = *active;
	flushed_old = *old;
	flushes++;
}

/* The number of a slot's first page in a family. */
static uint64_t first_page(const struct ms_memslot *value)
{
	return (value->userspace_addr - HVA_BASE) / PAGE;
}

static void add_page(struct family *family, uint64_t page, bool dirty)
{
	if (!family->known[page])
		family->dirty[page] = dirty;
	family->known[page] = true;
}

/* That of old, if old and the new slot log. */
static size_t family_of(const struct ms_memslot *value, size_t old)
{
	size_t family = old != NONE && known[old].family != NONE ? known[old].family : nr_known;

	if (!(value->flags & LOG))
		return NONE;
	if (family == nr_known) /* a slot begins at most one */
		families[family] = (struct family){ 0 };
	for (uint64_t page = 0; page < value->npages; page++)
		add_page(&families[family], first_page(value) + page,
			 ms_manual_dirty_log_protect(vm) & MS_DIRTY_LOG_INITIALLY_SET);
	return family;
}

static struct ms_memslot random_value(size_t old)
{
	struct ms_memslot value = {
		.base_gfn = rng_below(&rng, END_GFN),
		.npages = 1 + rng_below(&rng, rng_below(&rng, 2 + crowd) ? 8 : PAGES_MAX),
		.userspace_addr = HVA_BASE + rng_below(&rng, HVAS) * PAGE,
		.id = (uint32_t)rng_below(&rng, USER_SLOTS),
		.as_id = 77, /* ignored */
		.flags = (uint32_t)rng_below(&rng, 4),
	};

	if (old != NONE && rng_below(&rng, 2))
		value.npages = known[old].value.npages;
	if (old != NONE && rng_below(&rng, 2))
		value.userspace_addr = known[old].value.userspace_addr;
	if (old != NONE && rng_below(&rng, 4) == 0)
		value.base_gfn = known[old].value.base_gfn;
	return value;
}

static size_t copy(size_t old)
{
	struct ms_memslot value = random_value(old);
	bool beyond = value.base_gfn + value.npages > END_GFN;
	struct ms_slot *draft = NULL;
	struct ms_error want, err;
	int code = refusal(&want, beyond ? -EINVAL : 0, beyond ? MS_RULE_GPA_LIMIT : MS_RULE_NONE, NONE), r;

	want.limit = beyond ? END_GFN * PAGE : 0;
	arm();
	r = ms_update_copy(update, handle(old), &value, &draft, &err);
	if (lacked_memory(r, &err, code, &want) || r) {
		CHECK(!draft);
		return NONE;
	}
	value.as_id = space;
	if (old != NONE)
		value.id = known[old].value.id;
	CHECK_EQ(((struct memslot *)(void *)draft)->dirty != NULL, value.flags & LOG);
	return remember(draft, &value, family_of(&value, old));
}

static void mark(void)
{
	uint64_t gfn = rng_below(&rng, END_GFN);
	size_t i = by_gfn(here()->active, gfn);

	ms_mark_page_dirty(vm, space, gfn);
	if (i != NONE && known[i].family != NONE)
		families[known[i].family].dirty[first_page(&known[i].value) + gfn - known[i].value.base_gfn] = true;
}

/* ---- a random step, mostly a valid one ---- */

static size_t any(void)
{
	return rng_below(&rng, 8) && nr_known ? rng_below(&rng, nr_known) : NONE;
}

static size_t any_in(uint32_t idx, bool in)
{
	size_t i = any();

	for (int tries = 0; tries < 5 && i != NONE && known[i].in[idx] != in; tries++)
		i = any();
	return i;
}

static size_t candidate(uint32_t idx, size_t old)
{
	size_t i = any_in(idx, false);

	for (int tries = 0; tries < 5 && old != NONE && i != NONE && known[i].value.id != known[old].value.id; tries++)
		i = any_in(idx, false);
	return i;
}

static void any_step(void)
{
	uint64_t which = rng_below(&rng, 20);
	uint32_t idx = idx_of(which >= 11); /* the set that the step would edit */
	size_t old = any_in(idx, true), draft;

	if (!rng_below(&rng, 6))
		step_with_bad_handle();
	if (nr_known == KNOWN_MAX && which >= 13)
		which -= 13;
	if (which < 8)
		replace(old, candidate(idx, old));
	else if (which < 10)
		mark();
	else if (which < 11)
		swap();
	else if (which < 13)
		activate(old, candidate(idx, old));
	else if (which < 15)
		invalidate(any_in(idx_of(false), true));
	else if (which < 17)
		copy(any());
	else if ((draft = copy(NONE)) != NONE)
		replace(NONE, draft);
}

static void fill(void)
{
	for (size_t i = here()->nr; i < crowd; i++) {
		size_t draft = copy(NONE);

		if (draft != NONE)
			replace(NONE, draft);
	}
}

/* Makes both sets like the active one, without its INVALID slots.  Only while there is memory. */
static void make_alike(void)
{
	for (size_t i = 0; i < nr_known; i++)
		while (known[i].in[idx_of(false)] &&
		       (!known[i].in[idx_of(true)] || known[i].value.flags & MS_MEMSLOT_INVALID))
			replace(i, NONE);
	for (size_t i = 0; i < nr_known; i++)
		while (known[i].in[idx_of(true)] && !known[i].in[idx_of(false)] &&
		       !(known[i].value.flags & MS_MEMSLOT_INVALID))
			replace(NONE, i);
	swap();
	for (size_t i = 0; i < nr_known; i++)
		while (known[i].in[idx_of(false)] && !known[i].in[idx_of(true)])
			replace(i, NONE);
}

/* ---- between updates ---- */

static void check_dirty(const struct memslot *slot, const struct log *log)
{
	CHECK_EQ(slot->dirty != NULL, slot->flags & LOG);
	for (size_t word = 0; slot->dirty && word < nwords_of(slot->dirty); word++)
		CHECK_EQ(atomic_load(&slot->dirty->live[word]), log->bits[word]);
}

static uint64_t log_bytes(uint64_t npages)
{
	return sizeof(struct dirty_log) + ((npages + 63) / 64) * sizeof(uint64_t);
}

static void check_space(uint32_t as_id, struct ms_stats *want)
{
	const struct rest *r = &rest[as_id];
	struct ms_memslot slots[USER_SLOTS];

	CHECK_EQ(ms_memslots(vm, as_id, slots, USER_SLOTS), r->nr);
	CHECK_EQ(ms_generation(vm, as_id), r->generation);
	CHECK_EQ(active_idx(vm, as_id), r->active);
	for (size_t i = 0; i < r->nr; i++) {
		const struct ms_memslot *value = &r->slot[i].value;

		CHECK(same_slot(&slots[i], value));
		check_dirty(vm->design->find(vm_active_set(vm, as_id), value->id), &r->slot[i].log);
		want->blocks += 1 + !!(value->flags & LOG);
		want->bytes += sizeof(struct tree_slot) + (value->flags & LOG ? log_bytes(value->npages) : 0);
	}
	for (int idx = 0; idx < 2; idx++) {
		const struct id_hash *ids = &vm->as[as_id].set[idx].ids;

		want->blocks += ids->buckets != ids->built_in;
		want->bytes += ids->buckets != ids->built_in ? id_hash_size(ids->bits) : 0;
	}
}

static void check_rest(void)
{
	struct ms_stats want = { .blocks = empty_blocks, .bytes = empty_bytes }, stats;
	uint64_t pages = 0;

	check_sound(vm); /* takes the lock and so runs the deferred end */
	for (uint32_t as_id = 0; as_id < SPACES; as_id++) {
		check_space(as_id, &want);
		if (vm->as[as_id].build.builder) /* single lookups have begun an index */
			vm_index_make(vm, as_id, false);
		count_overlays(&vm->as[as_id], &want.blocks, &want.bytes);
		for (size_t i = 0; i < rest[as_id].nr; i++)
			pages += rest[as_id].slot[i].value.npages;
	}
	stats = held_by(vm);
	CHECK_EQ(stats.blocks, want.blocks);
	CHECK_EQ(stats.bytes, want.bytes);
	CHECK_EQ(ms_nr_memslots(vm), rest[0].nr + rest[1].nr);
	CHECK_EQ(ms_nr_memslot_pages(vm), pages);
	CHECK_EQ(stats.creates + stats.deletes + stats.moves + stats.flag_changes + stats.refused, 0);
}

/* ---- begin and end ---- */

static struct family family_at_rest(const struct ms_memslot *value, const struct log *log)
{
	struct family family = { 0 };

	for (uint64_t page = 0; page < value->npages; page++)
		add_page(&family, first_page(value) + page, log->bits[page / 64] >> page % 64 & 1);
	return family;
}

static struct log log_at_rest(const struct known *k)
{
	struct log log = { 0 };

	for (uint64_t page = 0; k->family != NONE && page < k->value.npages; page++)
		if (families[k->family].dirty[first_page(&k->value) + page])
			log.bits[page / 64] |= (uint64_t)1 << page % 64;
	return log;
}

static void begin(void)
{
	struct rest *r = &rest[space = (uint32_t)rng_below(&rng, SPACES)];
	struct ms_slot *found[USER_SLOTS];

	CHECK_EQ(ms_vcpu_set_as_id(vcpu, space), 0);
	CHECK_EQ(ms_update_begin(vm, space, &update, NULL), 0);
	CHECK_EQ(ms_update_slots(update, true, found, USER_SLOTS), r->nr);
	edits[0] = edits[1] = nr_known = 0;
	for (size_t i = 0; i < r->nr; i++) {
		const struct ms_memslot *value = &r->slot[i].value;
		size_t n = remember(found[i], value, value->flags & LOG ? i : NONE);

		families[n] = family_at_rest(value, &r->slot[i].log);
		known[n].was_there = known[n].seen = known[n].in[0] = known[n].in[1] = true;
	}
	check_step();
}

static bool alike(void)
{
	for (size_t i = 0; i < nr_known; i++)
		if (known[i].in[0] != known[i].in[1] || (known[i].in[0] && known[i].value.flags & MS_MEMSLOT_INVALID))
			return false;
	return true;
}

/* ---- the changes that the listeners get at the end ---- */

static struct ms_change heard[2 * USER_SLOTS];
static size_t nr_heard, nr_committed, nr_aborted;
static bool refuse_end;

static size_t former(uint32_t id)
{
	for (size_t i = 0; i < nr_known; i++)
		if (known[i].was_there && known[i].value.id == id)
			return i;
	return NONE;
}

static enum ms_change_kind kind_of(const struct ms_memslot *old, const struct ms_memslot *new_slot)
{
	if (old->npages != new_slot->npages || old->userspace_addr != new_slot->userspace_addr ||
	    (old->flags ^ new_slot->flags) & MS_MEM_READONLY)
		return MS_RESIZE;
	return old->base_gfn != new_slot->base_gfn ? MS_MOVE : MS_FLAGS_ONLY;
}

/* The changes of one id: 0, 1, or a DELETE and a CREATE. */
static size_t want_changes(uint32_t id, struct ms_change want[2])
{
	static const struct ms_memslot none;
	size_t old = former(id), new_slot = by_id(0, id);
	const struct ms_memslot *from = old == NONE ? &none : &known[old].value;
	const struct ms_memslot *to = new_slot == NONE ? &none : &known[new_slot].value;
	bool same = old != NONE && new_slot != NONE && same_slot(from, to);

	if (old == new_slot || (same && known[old].family == known[new_slot].family))
		return 0;
	if (old != NONE && new_slot != NONE && !same) {
		want[0] = (struct ms_change){ kind_of(from, to), *from, *to, NULL, 0 };
		return 1;
	}
	if (old != NONE)
		want[0] = (struct ms_change){ MS_DELETE, *from, none, NULL, 0 };
	if (new_slot != NONE)
		want[old != NONE] = (struct ms_change){ MS_CREATE, none, *to, NULL, 0 };
	return (size_t)(old != NONE) + (new_slot != NONE);
}

static bool same_change(const struct ms_change *a, const struct ms_change *b)
{
	return a->kind == b->kind && same_slot(&a->old_slot, &b->old_slot) && same_slot(&a->new_slot, &b->new_slot);
}

static bool was_heard(const struct ms_change *change)
{
	size_t i = 0;

	while (i < nr_heard && !same_change(&heard[i], change))
		i++;
	return i < nr_heard;
}

/* Deletes, then changes of slots that stay, then creates. */
static int part_of_list(const struct ms_change *change)
{
	return change->kind == MS_DELETE ? 0 : change->kind == MS_CREATE ? 2 : 1;
}

static int on_prepare_many(void *opaque, const struct ms_change *changes, size_t n)
{
	struct ms_change want[2];
	size_t nr = 0, nr_want;

	(void)opaque;
	CHECK(ending && alike() && !nr_heard && n && n <= ARRAY_SIZE(heard));
	memcpy(heard, changes, n * sizeof(*changes));
	nr_heard = n;
	for (uint32_t id = 0; id < USER_SLOTS; id++, nr += nr_want) {
		nr_want = want_changes(id, want);
		for (size_t i = 0; i < nr_want; i++)
			CHECK(was_heard(&want[i]));
	}
	CHECK_EQ(nr, n);
	for (size_t i = 0; i < n; i++) {
		CHECK(!changes[i].dirty && !changes[i].nr_dirty_words);
		CHECK(!i || part_of_list(&changes[i - 1]) <= part_of_list(&changes[i]));
	}
	changes_heard += n;
	return 0;
}

/* Without the pages that the log of the new slot has. */
static struct log log_that_ends(size_t old, size_t new_slot)
{
	struct log log = log_at_rest(&known[old]);

	if (new_slot == NONE || known[new_slot].family != known[old].family)
		return log;
	for (uint64_t page = 0; page < known[old].value.npages; page++) {
		uint64_t at = first_page(&known[old].value) + page - first_page(&known[new_slot].value);

		if (at < known[new_slot].value.npages)
			log.bits[page / 64] &= ~((uint64_t)1 << page % 64);
	}
	return log;
}

static void check_last_bits(const struct ms_change *change)
{
	size_t old = former(change->old_slot.id), new_slot = by_id(0, change->old_slot.id);
	bool ends = change->kind != MS_CREATE && known[old].family != NONE;
	struct log log = { 0 };

	if (change->kind == MS_DELETE)
		new_slot = NONE;
	if (ends)
		log = log_that_ends(old, new_slot);
	if (ends && new_slot != NONE && known[new_slot].family == known[old].family)
		ends = log.bits[0] || log.bits[1];
	CHECK_EQ(change->dirty != NULL, ends);
	CHECK_EQ(change->nr_dirty_words, ends ? (known[old].value.npages + 63) / 64 : 0);
	for (size_t i = 0; i < change->nr_dirty_words; i++)
		CHECK_EQ(change->dirty[i], log.bits[i]);
	last_bits += ends && (log.bits[0] || log.bits[1]);
}

static void on_commit(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	CHECK(ending && !refuse_end && nr_committed < nr_heard && same_change(change, &heard[nr_committed]));
	nr_committed++;
	for (size_t i = 0; i < nr_known; i++)
		CHECK(!needs_flush(i));
	check_last_bits(change);
	CHECK_EQ(ms_nr_memslots(vm), ms_memslots(vm, 0, NULL, 0) + ms_memslots(vm, 1, NULL, 0));
}

static void on_abort(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	CHECK(ending && refuse_end && nr_aborted < nr_heard);
	CHECK(same_change(change, &heard[nr_heard - ++nr_aborted]));
}

static int maybe_refuse(void *opaque, const struct ms_change *changes, size_t n)
{
	(void)opaque;
	(void)changes;
	CHECK_EQ(n, nr_heard);
	return refuse_end ? -EPERM : 0;
}

static const struct ms_listener listener = { LISTENER_SIZE,   NULL, NULL, on_abort, on_flush, on_commit,
					     on_prepare_many, NULL };
static const struct ms_listener last = { LISTENER_SIZE, .prepare_many = maybe_refuse };

static void begin_to_end(bool refuse)
{
	ending = true;
	refuse_end = refuse;
	nr_heard = nr_committed = nr_aborted = 0;
}

/* Without a change there is nothing to refuse. */
static bool check_heard(bool end_is_kept)
{
	bool is_refused = nr_heard && refuse_end;

	ending = false;
	CHECK(end_is_kept || !nr_heard);
	CHECK_EQ(nr_committed, refuse_end ? 0 : nr_heard);
	CHECK_EQ(nr_aborted, refuse_end ? nr_heard : 0);
	for (size_t i = 0; i < nr_known; i++)
		CHECK(!end_is_kept || is_refused || !needs_flush(i));
	refused_ends += is_refused;
	return is_refused;
}

/* The slots of both sets, or those from before the update, with the bits that their logs have now. */
static void settle(bool keep)
{
	struct rest *r = here();
	size_t list[KNOWN_MAX], nr;

	for (size_t i = 0; i < nr_known && !keep; i++)
		known[i].in[0] = known[i].was_there;
	if (!keep && edits[r->active])
		apply_swap();
	nr = sorted(0, list);
	for (r->nr = 0; r->nr < nr; r->nr++) {
		const struct known *k = &known[list[r->nr]];

		r->slot[r->nr].value = k->value;
		r->slot[r->nr].log = log_at_rest(k);
	}
}

/* Inside a section the end is deferred; in a hook as well. */
static void abandon_in_section(struct ms_vm *of)
{
	CHECK_EQ(ms_read_lock(of), 0);
	ms_update_abandon(update);
	check_gfn(rng_below(&rng, END_GFN));
	ms_read_unlock(of);
}

static int abandon_in_prepare(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	ms_update_abandon(update);
	check_gfn(rng_below(&rng, END_GFN));
	return -EPERM;
}

static void abandon_in_hook(void)
{
	static const struct ms_listener abandons = { LISTENER_SIZE, .prepare = abandon_in_prepare };

	CHECK_EQ(ms_add_listener(other_vm, &abandons, NULL), 0);
	CHECK_EQ(set(other_vm, 0, 1, 1, 1, 0), -EPERM);
	CHECK_EQ(ms_remove_listener(other_vm, &abandons, NULL), 0);
}

static void end(void)
{
	bool same = alike(), keep = rng_below(&rng, 2);
	uint64_t way = keep ? 0 : rng_below(&rng, 6);
	struct ms_error err = { .rule = MS_RULE_NONE };
	bool is_refused;
	int r = 0;

	memory_fail(&vm->memory, 1, true); /* an end needs no memory */
	begin_to_end(keep && !rng_below(&rng, 4));
	if (way < 2)
		r = ms_update_end(update, keep, &err);
	else if (way < 3)
		ms_update_abandon(update);
	else if (way < 5)
		abandon_in_section(way == 3 ? vm : other_vm);
	else
		abandon_in_hook();
	is_refused = check_heard(keep && same);
	CHECK_EQ(r, is_refused ? -EPERM : keep && !same ? -EINVAL : 0);
	CHECK_EQ(err.rule, is_refused ? MS_RULE_LISTENER_REFUSED : r ? MS_RULE_SETS_DIFFER : MS_RULE_NONE);
	keep &= same && !is_refused;
	settle(keep);
	kept += keep && edits[0];
	rolled_back += !keep && edits[0] + edits[1];
	check_rest();
	memory_fail(&vm->memory, 0, false);
}

static uint64_t one_update(void)
{
	uint64_t nr = 1 + rng_below(&rng, rng_below(&rng, 50) ? 60 : 1000);

	begin();
	fill();
	for (uint64_t i = 0; i < nr; i++) {
		any_step();
		check_step();
	}
	if (rng_below(&rng, 2)) {
		make_alike();
		check_step();
		CHECK(alike());
	}
	end();
	return nr;
}

static void make_vm(void)
{
	struct ms_config config = default_config(SPACES);
	struct ms_stats stats;

	config.user_mem_slots = USER_SLOTS;
	config.gpa_bits = GPA_BITS;
	vm = vm_with(&config);
	other_vm = new_vm(1);
	foreign_vm = vm_with(&config);
	for (uint32_t id = 0; id < USER_SLOTS; id++)
		CHECK_EQ(set(foreign_vm, 0, id, id, 1, 0), 0);
	CHECK_EQ(ms_update_begin(foreign_vm, 0, &foreign_update, NULL), 0);
	nr_old_handles = 0;
	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		rest[as_id] = (struct rest){ .generation = as_id };
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	CHECK_EQ(ms_add_listener_last(vm, &last, NULL), 0);
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 0), MS_HVA_ERR_BAD); /* makes this thread's record */
	stats = stats_of(vm);
	empty_bytes = stats.bytes;
	empty_blocks = stats.blocks;
}

/* A new VM, so that each run starts again from time to time. */
static uint64_t one_vm(uint64_t number)
{
	uint64_t steps = 0;

	rng = rng_stream(number);
	make_vm();
	crowd = rng_below(&rng, USER_SLOTS);
	while (steps < 5000) {
		uint64_t protect = rng_below(&rng, 3);

		CHECK_EQ(ms_set_manual_dirty_log_protect(vm, protect == 2 ? 3 : protect, NULL), 0);
		steps += one_update();
	}
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
	end_vm(other_vm);
	ms_vm_destroy(foreign_vm); /* with its update */
	return steps;
}

int main(int argc, char **argv)
{
	uint64_t steps = 0;

	test_init(argc, argv, 60);
	for (uint64_t i = 0; i < test_times(100); i++)
		steps += one_vm(i);
	printf("update: %" PRIu64 " kept, %" PRIu64 " rolled back, %" PRIu64 " steps without memory\n", kept,
	       rolled_back, without_memory);
	printf("update: %" PRIu64 " pointers refused that are no handles, %" PRIu64 " were handles again\n",
	       bad_handles, reused_addresses);
	printf("update: %" PRIu64 " changes passed to listeners, %" PRIu64 " ends refused, %" PRIu64
	       " flushes by ends, %" PRIu64 " changes with last bits\n",
	       changes_heard, refused_ends, flushes_of_ends, last_bits);
	CHECK(changes_heard && refused_ends && flushes_of_ends && last_bits);
	CHECK(kept && rolled_back && without_memory && flushes && bad_handles && reused_addresses);
	CHECK(answers[MS_RULE_NONE] && answers[MS_RULE_HANDLE] && answers[MS_RULE_DUPLICATE_ID] &&
	      answers[MS_RULE_OVERLAP] && answers[MS_RULE_GPA_LIMIT]);
	return test_done("update model", steps, "steps");
}
