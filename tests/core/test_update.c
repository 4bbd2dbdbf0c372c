/* SPDX-License-Identifier: MIT */
/*
 * test_update.c - the steps of an update one by one: the effects of each, the callers that may not make it, how an
 * update ends.
 *
 * The right steps in the right order must give the same result as writer.c.  Then come the refusals, each of which
 * changes nothing; ends by other threads, and ends that are deferred to the next lock; and the failure of each
 * allocation of each step.  test_update_model.c makes steps in any order.
 */
#include "fixture.h"

#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define SPACES 2u
#define SPACE 1u
#define GFN 0x100u
#define NPAGES 70u
#define ID 3u

static struct ms_vm *vm;
static struct ms_update *update;
static uint64_t steps;

/* ---- helpers ---- */

static struct memslot *slot_of(struct ms_slot *handle)
{
	return (struct memslot *)(void *)handle;
}

static struct ms_memslot value_of(uint32_t id, uint64_t gfn, uint64_t npages, uint32_t flags)
{
	return (struct ms_memslot){ gfn, npages, hva_for(SPACE, id), id, SPACE, flags, 0 };
}

/* Slot ID in space SPACE, with a log and a dirty bit, and neighbours. */
static struct ms_vm *vm_with_slots(uint32_t spaces)
{
	struct ms_vm *of = new_vm(spaces);

	for (uint32_t id = 0; id < 6; id++)
		CHECK_EQ(set(of, spaces - 1, id, GFN + (id - ID) * NPAGES, NPAGES, id % 2 ? LOG : 0), 0);
	ms_mark_page_dirty(of, spaces - 1, GFN + 66);
	ms_gfn_to_hva(of, spaces - 1, GFN);
	return of;
}

static struct ms_update *begun(struct ms_vm *of, uint32_t as_id)
{
	struct ms_update *u = NULL;

	CHECK_EQ(ms_update_begin(of, as_id, &u, NULL), 0);
	CHECK(u != NULL);
	return u;
}

static void make_vm(void)
{
	vm = vm_with_slots(SPACES);
	update = begun(vm, SPACE);
}

static struct ms_slot *found(bool active, uint32_t id)
{
	return ms_update_find(update, active, id);
}

static struct ms_slot *copied(struct ms_slot *old, struct ms_memslot value)
{
	struct ms_slot *draft = NULL;

	CHECK_EQ(ms_update_copy(update, old, &value, &draft, NULL), 0);
	steps++;
	return draft;
}

static struct ms_slot *invalidated(struct ms_slot *slot)
{
	struct ms_slot *inv = NULL;

	CHECK_EQ(ms_update_invalidate(update, slot, &inv, NULL), 0);
	steps++;
	return inv;
}

static void replaced(struct ms_slot *old, struct ms_slot *new_slot)
{
	CHECK_EQ(ms_update_replace(update, old, new_slot, NULL), 0);
	steps++;
}

static void activated(struct ms_slot *old, struct ms_slot *new_slot)
{
	CHECK_EQ(ms_update_activate(update, old, new_slot, NULL), 0);
	steps++;
}

static void swapped(void)
{
	CHECK_EQ(ms_update_swap(update, NULL), 0);
	steps++;
}

static void ended(bool keep)
{
	CHECK_EQ(ms_update_end(update, keep, NULL), 0);
	check_sound(vm);
}

static void done(void)
{
	end_vm(vm);
}

static pthread_t started(void *(*fn)(void *), void *arg)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, fn, arg), 0);
	return thread;
}

static void joined(pthread_t thread)
{
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

/* ---- the right steps in the right order ---- */

/* The sets that have the slot: bit 0 the active one, bit 1 the inactive one. */
static void check_where(struct ms_slot *handle, unsigned where)
{
	uint32_t idx = active_idx(vm, SPACE);
	unsigned sets = slot_of(handle)->sets & 3;

	CHECK_EQ((sets >> idx & 1) | (sets >> !idx & 1) << 1, where);
}

static void check_seen(uint64_t gfn, uint64_t hva, uint64_t generation)
{
	CHECK_EQ(ms_gfn_to_hva(vm, SPACE, gfn), hva);
	CHECK_EQ(ms_generation(vm, SPACE), generation);
}

static void steps_of_create(void)
{
	struct ms_slot *new_slot = copied(NULL, value_of(9, 0x800, NPAGES, LOG));
	uint64_t gen = ms_generation(vm, SPACE);

	check_where(new_slot, 0);
	CHECK_EQ(slot_of(new_slot)->as_id, SPACE);
	replaced(NULL, new_slot);
	check_where(new_slot, 2);
	check_seen(0x800, MS_HVA_ERR_BAD, gen);
	activated(NULL, new_slot);
	check_where(new_slot, 3);
	check_seen(0x800, hva_for(SPACE, 9), gen + SPACES);
}

static void steps_of_delete(void)
{
	struct ms_slot *old = found(true, ID), *inv;
	uint64_t gen = ms_generation(vm, SPACE);

	check_where(old, 3);
	check_seen(GFN, hva_for(SPACE, ID), gen);
	inv = invalidated(old);
	check_where(old, 2);
	check_where(inv, 1);
	check_seen(GFN, MS_HVA_ERR_BAD, gen + SPACES);
	CHECK_EQ(found(true, ID), inv);
	CHECK_EQ(found(false, ID), old);
	replaced(old, NULL);
	check_where(old, 0);
	activated(inv, NULL);
	check_where(inv, 0);
	check_seen(GFN, MS_HVA_ERR_BAD, gen + 2 * SPACES);
	CHECK_EQ(found(true, ID), NULL);
}

static void steps_of_move(void)
{
	struct ms_slot *old = found(true, ID), *inv = invalidated(old);
	struct ms_slot *new_slot = copied(old, value_of(ID, 0x900, NPAGES, LOG));

	CHECK_EQ(slot_of(new_slot)->dirty, slot_of(old)->dirty);
	replaced(old, new_slot);
	check_where(new_slot, 2);
	check_seen(0x900, MS_HVA_ERR_BAD, SPACE + 7 * SPACES);
	activated(inv, new_slot);
	check_where(new_slot, 3);
	check_seen(0x900, hva_for(SPACE, ID), SPACE + 8 * SPACES);
	check_seen(GFN, MS_HVA_ERR_BAD, SPACE + 8 * SPACES);
}

static void steps_of_flags_off(void)
{
	struct ms_slot *old = found(true, ID), *new_slot = copied(old, value_of(ID, GFN, NPAGES, 0));

	CHECK_EQ(slot_of(new_slot)->dirty, NULL);
	replaced(old, new_slot);
	CHECK_EQ(found(true, ID), old);
	CHECK_EQ(found(false, ID), new_slot);
	activated(old, new_slot);
}

/* The hint of a set becomes the slot that replaces the old one. */
static void steps_of_flags_on(void)
{
	struct ms_slot *old = found(true, 2), *new_slot = copied(old, value_of(2, GFN - NPAGES, NPAGES, LOG));
	struct memslot_set *inactive = vm_inactive_set(vm, SPACE);

	atomic_store(&inactive->last_used_slot, slot_of(old));
	replaced(old, new_slot);
	CHECK_EQ(atomic_load(&inactive->last_used_slot), slot_of(new_slot));
	activated(old, new_slot);
}

static const struct {
	void (*steps)(void);
	uint32_t id, flags;
	uint64_t gfn, npages;
} changes[] = {
	{ steps_of_create, 9, LOG, 0x800, NPAGES },          { steps_of_delete, ID, 0, 0, 0 },
	{ steps_of_move, ID, LOG, 0x900, NPAGES },           { steps_of_flags_off, ID, 0, GFN, NPAGES },
	{ steps_of_flags_on, 2, LOG, GFN - NPAGES, NPAGES },
};

/* Steps and writer.c give the same slots, bits and generations. */
static void test_changes(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
		struct ms_vm *twin = vm_with_slots(SPACES);
		struct picture by_steps, by_region;

		make_vm();
		changes[i].steps();
		ended(true);
		CHECK_EQ(set(twin, SPACE, changes[i].id, changes[i].gfn, changes[i].npages, changes[i].flags), 0);
		by_steps = picture_of(vm);
		by_region = picture_of(twin);
		CHECK(same_picture(&by_steps, &by_region));
		CHECK_EQ(by_steps.generations, by_region.generations);
		CHECK_EQ(stats_of(vm).blocks, stats_of(twin).blocks);
		CHECK_EQ(held_by(vm).bytes, held_by(twin).bytes);
		CHECK_EQ(stats_of(vm).creates, 6); /* steps are not counted as changes */
		done();
		end_vm(twin);
	}
}

static void test_dirty_logs(void)
{
	struct ms_slot *old, *same, *smaller, *inv;

	for (uint64_t protect = 0; protect <= 3; protect += 3) {
		vm = vm_with_slots(SPACES);
		CHECK_EQ(ms_set_manual_dirty_log_protect(vm, protect, NULL), 0);
		update = begun(vm, SPACE);
		old = found(true, ID);
		same = copied(old, value_of(ID, 0x900, NPAGES, LOG));
		smaller = copied(old, value_of(77, 0x900, NPAGES - 1, LOG));
		CHECK_EQ(slot_of(smaller)->id, ID); /* the id of the old slot, not that of the values */
		CHECK_EQ(slot_of(same)->dirty, slot_of(old)->dirty);
		CHECK_EQ(slot_of(old)->dirty->refs, 2);
		CHECK(slot_of(smaller)->dirty != slot_of(old)->dirty);
		CHECK_EQ(slot_of(smaller)->dirty->npages, NPAGES - 1);
		CHECK_EQ(atomic_load(&slot_of(smaller)->dirty->live[1]), protect ? 31 : 0);
		inv = invalidated(old);
		ms_mark_page_dirty(vm, SPACE, GFN + 1); /* a mark on the INVALID copy is kept */
		CHECK_EQ(atomic_load(&slot_of(old)->dirty->live[0]), 2);
		CHECK_EQ(slot_of(inv)->dirty->refs, 3);
		CHECK_EQ(ms_update_end(update, true, NULL), -EINVAL);
		CHECK_EQ(slot_of(old)->dirty->refs, 1);
		CHECK_EQ(atomic_load(&slot_of(old)->dirty->live[0]), 2);
		CHECK_EQ(atomic_load(&slot_of(old)->dirty->live[1]), 4);
		done();
	}
}

/* The words of the dirty log that ID has after an update. */
static void check_log_of_id(uint64_t low, uint64_t high)
{
	const struct memslot *slot = vm->design->find(vm_active_set(vm, SPACE), ID);

	CHECK_EQ(atomic_load(&slot->dirty->live[0]), low);
	CHECK_EQ(atomic_load(&slot->dirty->live[1]), high);
}

/* A copy of ID at 0x900.  It begins `lower` pages below, in the guest and in the host. */
static struct ms_slot *resized(struct ms_slot *old, uint64_t lower, uint64_t npages)
{
	struct ms_memslot value = value_of(ID, 0x900 - lower, npages, LOG);

	value.userspace_addr -= lower * PAGE;
	return copied(old, value);
}

/* Page 66 of ID is dirty at the beginning: bit 2 of word 1.  Pages of the larger slot are new: 0, 1 and 72. */
static void test_resized_logs(void)
{
	struct ms_slot *old, *larger, *smaller;

	for (int way = 0; way < 3; way++) {
		bool keep = way == 1;

		vm = vm_with_slots(SPACES);
		CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 3, NULL), 0);
		update = begun(vm, SPACE);
		old = found(true, ID);
		larger = resized(old, 2, NPAGES + 3);
		smaller = resized(larger, 0, 68);
		ms_mark_page_dirty(vm, SPACE, GFN + 10); /* in the log of old, after the copies were made */
		replaced(found(false, ID), larger);
		swapped();
		ms_mark_page_dirty(vm, SPACE, 0x900 + 20);
		ms_mark_page_dirty(vm, SPACE, 0x900 + 69); /* smaller does not have this page */
		if (keep)
			replaced(old, larger);
		else if (way == 2)
			activated(larger, smaller);
		ended(keep);
		if (keep)
			check_log_of_id(3 | 1 << 12 | 1 << 22, 1 << 4 | 1 << 7 | 1 << 8);
		else
			check_log_of_id(1 << 10 | 1 << 20, 1 << 2 | 1 << 5);
		done();
	}
}

/* If an update switches logging off and on, the new log has no page of the former one: all bits are set here. */
static void test_log_off_and_on(void)
{
	struct ms_slot *old, *off, *on;
	struct ms_memslot value = value_of(ID, GFN, NPAGES, 0);

	vm = vm_with_slots(SPACES);
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 3, NULL), 0);
	update = begun(vm, SPACE);
	old = found(true, ID);
	off = copied(old, value);
	value.flags = LOG;
	on = copied(off, value);
	replaced(old, off);
	activated(old, on);
	activated(off, on);
	ended(true);
	check_log_of_id(~(uint64_t)0, 63);
	done();
}

static void test_looking(void)
{
	struct ms_slot *slots[8] = { NULL }, *guard = (struct ms_slot *)(void *)&guard;
	struct ms_memslot value;

	make_vm();
	slots[2] = guard;
	CHECK_EQ(ms_update_slots(update, true, NULL, 0), 6);
	CHECK_EQ(ms_update_slots(update, false, slots, 2), 6); /* as many as fit */
	CHECK_EQ(slots[2], guard);
	CHECK_EQ(ms_update_slots(update, true, slots, 8), 6);
	for (uint32_t id = 0; id < 6; id++) {
		CHECK_EQ(slots[id], found(false, id));
		CHECK_EQ(ms_update_value(update, slots[id], &value), 0);
		CHECK(same_slot(&value, &(struct ms_memslot){ GFN + (id - ID) * NPAGES, NPAGES, hva_for(SPACE, id), id,
							      SPACE, id % 2 ? LOG : 0, 0 }));
	}
	CHECK_EQ(found(true, 6), NULL);
	CHECK_EQ(ms_update_value(update, NULL, &value), -EINVAL);
	ended(true); /* the sets differ in every slot */
	done();
}

/* ---- ends ---- */

static void half_nothing(void)
{
}

static void half_draft(void)
{
	copied(found(true, ID), value_of(ID, 0x900, NPAGES, LOG));
	copied(NULL, value_of(20, 0x900, NPAGES, LOG));
}

static void half_inactive(void)
{
	replaced(found(false, ID), NULL);
	replaced(NULL, copied(NULL, value_of(20, 0x900, NPAGES, LOG)));
}

static void half_published(void)
{
	half_inactive();
	swapped();
}

static void half_invalid(void)
{
	invalidated(found(true, ID));
}

/* The sets are alike, but have a slot that users must not find. */
static void half_invalid_twice(void)
{
	struct ms_slot *old = found(true, ID), *inv = invalidated(old);

	replaced(old, inv);
}

/* Steps and their opposites: the sets are alike, but their steps are remembered. */
static void half_reverted(void)
{
	struct ms_slot *old = found(true, ID);

	replaced(old, NULL);
	swapped();
	swapped();
	replaced(NULL, old);
}

static void half_both(void)
{
	half_invalid();
	half_inactive();
	swapped();
	replaced(found(false, 5), copied(NULL, value_of(21, 0xa00, 1, 0)));
}

/* Two slots change places: both have to be deleted for a moment. */
static void half_exchanged(void)
{
	struct ms_slot *a = found(true, 1), *b = found(true, 2), *a2, *b2;

	a2 = copied(a, value_of(1, slot_of(b)->base_gfn, NPAGES, LOG));
	b2 = copied(b, value_of(2, slot_of(a)->base_gfn, NPAGES, 0));
	for (int i = 0; i < 2; i++) {
		replaced(a, NULL);
		replaced(b, a2);
		replaced(NULL, b2);
		swapped();
	}
}

static const struct half {
	void (*steps)(void);
	bool alike;
	uint64_t swaps, more; /* its own swaps, and those of the roll-back */
} halves[] = {
	{ half_nothing, true, 0, 0 },    { half_draft, true, 0, 0 },    { half_inactive, false, 0, 0 },
	{ half_published, false, 1, 1 }, { half_invalid, false, 1, 1 }, { half_invalid_twice, false, 1, 1 },
	{ half_reverted, true, 2, 0 },   { half_both, false, 2, 1 },    { half_exchanged, true, 2, 1 },
};

static void test_ends(void)
{
	for (size_t i = 0; i < 2 * ARRAY_SIZE(halves); i++) {
		const struct half *half = &halves[i / 2];
		struct picture before, after;
		struct ms_error err;
		bool keep = i % 2, kept = keep && half->alike;
		uint64_t blocks, swaps;

		vm = vm_with_slots(SPACES);
		before = picture_of(vm);
		blocks = stats_of(vm).blocks;
		swaps = stats_of(vm).swaps;
		update = begun(vm, SPACE);
		half->steps();
		CHECK_EQ(stats_of(vm).swaps - swaps, half->swaps);
		CHECK_EQ(ms_update_end(update, keep, &err), keep && !half->alike ? -EINVAL : 0);
		CHECK(!keep || half->alike || err.rule == MS_RULE_SETS_DIFFER);
		CHECK_EQ(stats_of(vm).swaps - swaps, half->swaps + (kept ? 0 : half->more));
		after = picture_of(vm);
		CHECK(same_picture(&before, &after) || (kept && half->steps == half_exchanged));
		CHECK_EQ(stats_of(vm).blocks, blocks);
		check_sound(vm);
		CHECK_EQ(set(vm, SPACE, 30, 0x900, 1, LOG), 0); /* the lock is free */
		done();
	}
}

/* The totals follow the slots that were kept. */
static void test_totals(void)
{
	make_vm();
	for (int i = 0; i < 2; i++, swapped()) {
		struct ms_slot *new_slot = i ? found(true, 20) : copied(NULL, value_of(20, 0x900, 1000, 0));

		replaced(found(false, 1), NULL);
		replaced(found(false, 2), NULL);
		replaced(NULL, new_slot);
	}
	CHECK_EQ(ms_nr_memslots(vm), 6);
	ended(true);
	CHECK_EQ(ms_nr_memslots(vm), 5);
	CHECK_EQ(ms_nr_memslot_pages(vm), 4 * NPAGES + 1000);
	done();
}

/* ---- the values of drafts ---- */

static const struct {
	uint64_t gfn, npages, hva;
	uint32_t id, flags;
	int code;
	enum ms_rule rule;
	uint64_t limit;
} drafts[] = {
	{ 0xfff, 1, HVA_BASE, 31, 0, 0, MS_RULE_NONE, 0 },
	{ 0xfff, 2, HVA_BASE, 31, 0, -EINVAL, MS_RULE_GPA_LIMIT, 0x1000 * PAGE },
	{ 0x1000, 1, HVA_BASE, 31, LOG, -EINVAL, MS_RULE_GPA_LIMIT, 0x1000 * PAGE },
	{ (uint64_t)1 << 52, 1, HVA_BASE, 1, 0, -EINVAL, MS_RULE_GPA_WRAP, 0 },
	{ ((uint64_t)1 << 52) + 5, 1, HVA_BASE, 1, 0, -EINVAL, MS_RULE_GPA_WRAP, 0 },
	{ ~(uint64_t)0, 1, HVA_BASE, 1, 0, -EINVAL, MS_RULE_GPA_WRAP, 0 },
	{ ((uint64_t)1 << 52) - 1, 1, HVA_BASE, 1, 0, -EINVAL, MS_RULE_GPA_WRAP, 0 },
	{ ((uint64_t)1 << 52) - 1, 5, HVA_BASE, 1, 0, -EINVAL, MS_RULE_GPA_WRAP, 0 },
	{ ((uint64_t)1 << 52) - 2, 1, HVA_BASE, 1, 0, -EINVAL, MS_RULE_GPA_LIMIT, 0x1000 * PAGE },
	{ 1, 0, HVA_BASE, 1, 0, -EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES },
	{ 1, MS_MEM_MAX_NR_PAGES + 1, HVA_BASE, 1, 0, -EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES },
	{ 1, ~(uint64_t)0, HVA_BASE, 1, 0, -EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES },
	{ 1, (uint64_t)1 << 52, HVA_BASE, 1, 0, -EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES },
	{ 1, MS_MEM_MAX_NR_PAGES, HVA_BASE, 1, 0, -EINVAL, MS_RULE_GPA_LIMIT, 0x1000 * PAGE },
	{ 1, 1, HVA_BASE, 32, 0, -EINVAL, MS_RULE_SLOT_ID, 32 },
	{ 1, 1, HVA_BASE, ~0u, 0, -EINVAL, MS_RULE_SLOT_ID, 32 },
	{ 1, 1, HVA_BASE, 1, 8, -EINVAL, MS_RULE_FLAGS, 7 },
	{ 1, 1, HVA_BASE, 1, MS_MEMSLOT_INVALID, -EINVAL, MS_RULE_FLAGS, 7 },
	{ 1, 1, HVA_BASE, 1, MS_MEM_GUEST_MEMFD, -EBADF, MS_RULE_GMEM_FD, 0 },
	{ 1, 1, HVA_BASE, 1, MS_MEM_GUEST_MEMFD | LOG, -EINVAL, MS_RULE_FLAGS, MS_MEM_GUEST_MEMFD },
	{ 1, 1, HVA_BASE + 1, 1, 0, -EINVAL, MS_RULE_HVA_ALIGN, 0 },
	{ 1, 1, HVA_BASE + PAGE - 1, 1, 0, -EINVAL, MS_RULE_HVA_ALIGN, 0 },
	{ 1, 1, MS_HVA_END_MAX_DEFAULT - PAGE, 1, 0, 0, MS_RULE_NONE, 0 },
	{ 1, 2, MS_HVA_END_MAX_DEFAULT - PAGE, 1, 0, -EINVAL, MS_RULE_HVA_RANGE, MS_HVA_END_MAX_DEFAULT },
	{ 1, 1, ~(uint64_t)0 - PAGE + 1, 1, 0, -EINVAL, MS_RULE_HVA_RANGE, MS_HVA_END_MAX_DEFAULT },
	{ 1, 1, 0, 1, LOG | MS_MEM_READONLY, 0, MS_RULE_NONE, 0 },
};

static struct ms_vm *small_vm(void)
{
	struct ms_config config = default_config(SPACES);

	config.user_mem_slots = 32;
	config.gpa_bits = 24;
	return vm_with(&config);
}

static void test_values(void)
{
	struct ms_slot *none = NULL;
	struct ms_error err;
	region_t internal = region(SPACE, 32, 0x700, 1, 0);

	vm = small_vm();
	CHECK_EQ(ms_set_internal_memory_region(vm, &internal, NULL), 0);
	update = begun(vm, SPACE);
	for (size_t i = 0; i < ARRAY_SIZE(drafts); i++) {
		struct ms_memslot value = {
			drafts[i].gfn, drafts[i].npages, drafts[i].hva, drafts[i].id, 99, drafts[i].flags, 0
		};
		struct ms_slot *draft = NULL;
		int r = ms_update_copy(update, NULL, &value, &draft, &err);

		if (r != drafts[i].code)
			fprintf(stderr, "draft %zu\n", i);
		CHECK_EQ(r, drafts[i].code);
		CHECK_EQ(draft != NULL, !r);
		CHECK(!r || (err.rule == drafts[i].rule && err.limit == drafts[i].limit));
		CHECK(!r || no_slot(&err.other));
	}
	/* Users may not copy an internal slot, but may delete it. */
	CHECK_EQ(ms_update_copy(update, found(true, 32), &(struct ms_memslot){ 1, 1, HVA_BASE, 1, 0, 0, 0 }, &none,
				&err),
		 -EINVAL);
	CHECK_EQ(err.rule, MS_RULE_SLOT_ID);
	CHECK_EQ(none, NULL);
	replaced(found(true, 32), NULL);
	activated(found(true, 32), NULL);
	ended(true);
	CHECK_EQ(ms_nr_memslots(vm), 0);
	done();
}

/* ---- the place of a slot ---- */

static void check_refused(int r, const struct ms_error *err, int code, enum ms_rule rule, struct ms_slot *other)
{
	CHECK_EQ(r, code);
	CHECK_EQ(err->rule, rule);
	CHECK_EQ(err->other.id, other ? slot_of(other)->id : 0);
	CHECK_EQ(err->other.base_gfn, other ? slot_of(other)->base_gfn : 0);
	CHECK_EQ(err->other.flags, other ? slot_of(other)->flags : 0);
}

static void refuses(struct ms_slot *old, struct ms_slot *new_slot, int code, enum ms_rule rule, struct ms_slot *other)
{
	struct ms_error err = { .rule = MS_RULE_NONE };

	check_refused(ms_update_replace(update, old, new_slot, &err), &err, code, rule, other);
}

/* The same for the set that ms_update_activate() would edit. */
static void refuses_active(struct ms_slot *old, struct ms_slot *new_slot, int code, enum ms_rule rule,
			   struct ms_slot *other)
{
	struct ms_error err = { .rule = MS_RULE_NONE };

	check_refused(ms_update_activate(update, old, new_slot, &err), &err, code, rule, other);
}

static void refuses_invalidate(struct ms_slot *slot)
{
	struct ms_error err = { .rule = MS_RULE_NONE };
	struct ms_slot *inv = NULL;

	check_refused(ms_update_invalidate(update, slot, &inv, &err), &err, -EINVAL, MS_RULE_HANDLE, slot);
	CHECK_EQ(inv, NULL);
}

typedef void refuses_fn(struct ms_slot *old, struct ms_slot *new_slot, int code, enum ms_rule rule,
			struct ms_slot *other);

static void check_places(refuses_fn *no, bool active)
{
	struct ms_slot *a = found(active, 1), *b = found(active, 2), *c = found(active, 4), *out = found(active, 5);
	struct ms_slot *b2 = copied(b, value_of(2, 0x900, 1, 0)), *wide, *low, *high;

	no(NULL, NULL, -EINVAL, MS_RULE_HANDLE, NULL);
	no(a, b, -EINVAL, MS_RULE_HANDLE, a);
	no(a, a, -EINVAL, MS_RULE_HANDLE, a);
	no(NULL, a, -EINVAL, MS_RULE_HANDLE, a);
	no(b2, NULL, -EINVAL, MS_RULE_HANDLE, b2);
	no(b2, b2, -EINVAL, MS_RULE_HANDLE, b2);
	no(NULL, b2, -EEXIST, MS_RULE_DUPLICATE_ID, b);
	no(a, b2, -EEXIST, MS_RULE_DUPLICATE_ID, b);
	wide = copied(a, value_of(1, slot_of(a)->base_gfn + 1, NPAGES, 0));
	no(a, wide, -EEXIST, MS_RULE_OVERLAP, b);
	low = copied(NULL, value_of(30, slot_of(c)->base_gfn + NPAGES - 1, 1, 0));
	no(NULL, low, -EEXIST, MS_RULE_OVERLAP, c);
	high = copied(NULL, value_of(31, 0, GFN - ID * NPAGES + 1, 0));
	no(NULL, high, -EEXIST, MS_RULE_OVERLAP, found(active, 0));
	no(out, high, -EEXIST, MS_RULE_OVERLAP, found(active, 0));
	CHECK_EQ(ms_update_slots(update, active, NULL, 0), 6);
}

static void test_places(void)
{
	struct ms_slot *a, *inv, *draft;

	make_vm();
	check_places(refuses, false);
	check_places(refuses_active, true);
	CHECK_EQ(ms_generation(vm, SPACE), SPACE + 6 * SPACES);
	a = found(true, 1);
	draft = copied(a, value_of(1, 0x900, NPAGES, LOG));
	refuses_invalidate(NULL);
	refuses_invalidate(draft);
	replaced(a, NULL);
	refuses(a, NULL, -EINVAL, MS_RULE_HANDLE, a); /* not in this set any more */
	refuses(a, draft, -EINVAL, MS_RULE_HANDLE, a);
	refuses_active(NULL, a, -EINVAL, MS_RULE_HANDLE, a); /* still in this set */
	refuses_invalidate(a); /* it is in one set only */
	replaced(NULL, a);
	inv = invalidated(a);
	refuses_invalidate(a);
	refuses_invalidate(inv);
	replaced(a, inv);
	inv = invalidated(inv); /* only once in each set, INVALID or not */
	CHECK_EQ(found(true, 1), inv);
	ended(false);
	done();
}

/* ---- callers that are refused ---- */

enum { NR_STEPS = 6 };

/* Without a call of the update, which only its own thread may make. */
static struct ms_slot *in_active_set(uint32_t id)
{
	return (struct ms_slot *)(void *)vm->design->find(vm_active_set(vm, SPACE), id);
}

/* Each step would succeed now in the right thread. */
static int step(unsigned i, struct ms_error *err)
{
	struct ms_memslot value = value_of(20, 0x900, 1, LOG);
	struct ms_slot *out = NULL, *slot = in_active_set(4);
	int r;

	switch (i) {
	case 0:
		return ms_update_replace(update, slot, NULL, err);
	case 1:
		return ms_update_activate(update, slot, NULL, err);
	case 2:
		return ms_update_swap(update, err);
	case 3:
		r = ms_update_invalidate(update, slot, &out, err);
		break;
	case 4:
		r = ms_update_copy(update, NULL, &value, &out, err);
		break;
	default:
		r = ms_update_copy(update, slot, &value, &out, err);
	}
	CHECK_EQ(!out, r != 0);
	return r;
}

static void check_steps(int code, enum ms_rule rule)
{
	struct picture before = picture_of(vm), after;
	uint64_t blocks = stats_of(vm).blocks;

	for (unsigned i = 0; i < NR_STEPS; i++, steps++) {
		struct ms_error err = { .rule = MS_RULE_NONE };

		CHECK_EQ(step(i, &err), code);
		CHECK_EQ(err.rule, rule);
		CHECK_EQ(step(i, NULL), code);
	}
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	CHECK_EQ(before.generations, after.generations);
	CHECK_EQ(stats_of(vm).blocks, blocks);
}

static void check_end(int code, enum ms_rule rule)
{
	for (int keep = 0; keep < 2; keep++) {
		struct ms_error err = { .rule = MS_RULE_NONE };

		CHECK_EQ(ms_update_end(update, keep, &err), code);
		CHECK_EQ(err.rule, rule);
		CHECK_EQ(vm->update, update);
	}
}

/* Calls that take the lock. */
static void check_locked(struct ms_vm *of, int code, enum ms_rule rule)
{
	region_t r = region(0, 50, 0x5000, 1, 0);
	struct ms_update *u = update;
	struct ms_vcpu *vcpu;
	struct ms_error err[6];
	uint64_t word;
	size_t nwords;

	CHECK_EQ(ms_set_user_memory_region(of, &r, &err[0]), code);
	CHECK_EQ(ms_check(of, NULL, &err[1]), code);
	CHECK_EQ(ms_vcpu_create(of, &vcpu, &err[2]), code);
	CHECK_EQ(ms_get_dirty_log(of, 0, 1, &word, 1, &nwords, &err[3]), code);
	CHECK_EQ(ms_vm_close(of, &err[4]), code);
	CHECK_EQ(ms_update_begin(of, 0, &u, &err[5]), code);
	CHECK_EQ(u, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(err); i++)
		CHECK_EQ(err[i].rule, rule);
}

static void check_looks(void)
{
	struct ms_slot *out[8], *in = in_active_set(4);
	struct ms_memslot value;

	CHECK_EQ(ms_update_slots(update, true, out, 8) + ms_update_slots(update, false, out, 8), 0);
	CHECK(!ms_update_find(update, true, 0) && !ms_update_find(update, false, 0));
	CHECK_EQ(ms_update_value(update, in, &value), -EBUSY);
}

static void *try_steps(void *unused)
{
	check_steps(-EBUSY, MS_RULE_UPDATE_OWNER);
	check_end(-EBUSY, MS_RULE_UPDATE_OWNER);
	check_looks();
	CHECK_EQ(ms_read_lock(vm), 0);
	check_steps(-EBUSY, MS_RULE_UPDATE_OWNER); /* the first reason is reported */
	check_end(-EBUSY, MS_RULE_UPDATE_OWNER);
	ms_read_unlock(vm);
	return unused;
}

static void check_callers(void)
{
	struct ms_vm *other = new_vm(1);

	check_locked(vm, -EDEADLK, MS_RULE_UPDATE);
	by_another_thread(try_steps, NULL);
	for (int own = 0; own < 2; own++) {
		CHECK_EQ(ms_read_lock(own ? vm : other), 0);
		check_steps(-EDEADLK, MS_RULE_READ_SECTION);
		check_end(-EDEADLK, MS_RULE_READ_SECTION);
		check_locked(vm, -EDEADLK, MS_RULE_READ_SECTION);
		ms_read_unlock(own ? vm : other);
	}
	CHECK_EQ(set(other, 0, 1, 1, 1, 0), 0); /* another VM is free */
	check_sound(other);
	end_vm(other);
}

static void test_callers(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(halves); i++) {
		make_vm();
		halves[i].steps();
		check_callers();
		ended(false);
		done();
	}
}

static void test_begin(void)
{
	struct ms_update *u = (struct ms_update *)(void *)&vm;
	struct ms_error err;

	vm = vm_with_slots(SPACES);
	CHECK_EQ(ms_update_begin(vm, SPACES, &u, &err), -EINVAL);
	CHECK_EQ(err.rule, MS_RULE_AS_ID);
	CHECK_EQ(err.limit, SPACES);
	CHECK_EQ(u, NULL);
	CHECK_EQ(ms_update_begin(vm, ~0u, &u, NULL), -EINVAL);
	for (uint32_t as_id = 0; as_id < SPACES; as_id++) {
		update = begun(vm, as_id);
		ended(as_id);
	}
	memory_fail(&vm->memory, 1, false);
	CHECK_EQ(ms_update_begin(vm, SPACE, &u, &err), -ENOMEM);
	CHECK_EQ(err.rule, MS_RULE_NO_MEMORY);
	memory_fail(&vm->memory, 0, false);
	check_sound(vm); /* the lock is free */
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	CHECK_EQ(ms_update_begin(vm, SPACE, &u, &err), -EBADF);
	CHECK_EQ(err.rule, MS_RULE_CLOSED);
	CHECK_EQ(u, NULL);
	done();
}

static void test_other_designs(void)
{
	struct ms_error err;

	for (size_t i = 1; (design_name = ms_backend_name(i)); i++) {
		vm = new_vm(1);
		CHECK_EQ(ms_update_begin(vm, 0, &update, &err), -ENOSYS);
		CHECK_EQ(err.rule, MS_RULE_BACKEND);
		CHECK_EQ(update, NULL);
		CHECK_EQ(ms_update_begin(vm, 1, &update, &err), -EINVAL);
		CHECK_EQ(err.rule, MS_RULE_AS_ID);
		CHECK_EQ(set(vm, 0, 1, 1, 1, 0), 0);
		done();
	}
	design_name = "tree";
}

/* ---- hooks ---- */

static unsigned flushes;

static void try_in_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	struct ms_memslot seen;

	(void)opaque;
	CHECK_EQ(active->flags, old->flags | MS_MEMSLOT_INVALID);
	CHECK_EQ(ms_gfn_to_memslot(vm, SPACE, old->base_gfn, &seen), 0);
	CHECK(same_slot(&seen, active));
	check_steps(-EDEADLK, MS_RULE_HOOK);
	check_end(-EDEADLK, MS_RULE_HOOK);
	check_locked(vm, -EDEADLK, MS_RULE_UPDATE);
	flushes++;
}

/* A hook of the update's own VM may not end the update, whose step is still running. */
static void test_own_hook(void)
{
	static const struct ms_listener l[2] = { { LISTENER_SIZE, .flush = try_in_flush },
						 { LISTENER_SIZE, .flush = try_in_flush } };

	vm = vm_with_slots(SPACES);
	CHECK_EQ(ms_add_listener(vm, &l[0], NULL), 0);
	CHECK_EQ(ms_add_listener(vm, &l[1], NULL), 0);
	update = begun(vm, SPACE);
	half_invalid();
	CHECK_EQ(flushes, 2);
	ended(false);
	CHECK_EQ(flushes, 2); /* a roll-back calls no hooks */
	done();
}

static int try_in_prepare(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	check_steps(-EDEADLK, MS_RULE_HOOK);
	check_end(-EDEADLK, MS_RULE_HOOK);
	check_locked(vm, -EDEADLK, MS_RULE_UPDATE);
	return 0;
}

static int begin_in_prepare(void *opaque, const struct ms_change *change)
{
	struct ms_update *u = update;
	struct ms_error err;

	(void)change;
	CHECK_EQ(ms_update_begin(opaque, 0, &u, &err), -EDEADLK);
	CHECK_EQ(err.rule, MS_RULE_HOOK);
	CHECK_EQ(u, NULL);
	return 0;
}

static void *try_in_other_hook(void *other)
{
	static const struct ms_listener busy = { LISTENER_SIZE, .prepare = try_in_prepare };

	CHECK_EQ(ms_add_listener(other, &busy, NULL), 0);
	CHECK_EQ(set(other, 0, 2, 2, 1, 0), 0);
	CHECK_EQ(ms_remove_listener(other, &busy, NULL), 0);
	return NULL;
}

static int find_busy(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	check_locked(vm, -EBUSY, MS_RULE_HOOK_BUSY);
	return 0;
}

static void *find_busy_in_hook(void *other)
{
	static const struct ms_listener busy = { LISTENER_SIZE, .prepare = find_busy };

	CHECK_EQ(ms_add_listener(other, &busy, NULL), 0);
	CHECK_EQ(set(other, 0, 3, 3, 1, 0), 0);
	CHECK_EQ(ms_remove_listener(other, &busy, NULL), 0);
	return NULL;
}

static void test_other_hook(void)
{
	struct ms_vm *other = new_vm(1);
	struct ms_listener begins = { LISTENER_SIZE, .opaque = other, .prepare = begin_in_prepare };

	CHECK_EQ(ms_add_listener(other, &begins, NULL), 0);
	CHECK_EQ(set(other, 0, 1, 1, 1, 0), 0);
	CHECK_EQ(ms_remove_listener(other, &begins, NULL), 0);
	make_vm();
	try_in_other_hook(other);
	by_another_thread(find_busy_in_hook, other);
	ended(true);
	done();
	end_vm(other);
}

/* ---- other threads ---- */

static _Atomic int progress;

/* A change that waits for the update to end. */
static void *change(void *id)
{
	atomic_fetch_add(&progress, 1);
	CHECK_EQ(set(vm, SPACE, (uint32_t)(uintptr_t)id, 0x1000 + 16 * (uint64_t)(uintptr_t)id, 16, LOG), 0);
	atomic_fetch_add(&progress, 1);
	return NULL;
}

static pthread_t waiting_change(void)
{
	pthread_t thread;

	atomic_store(&progress, 0);
	thread = started(change, (void *)40);
	while (!atomic_load(&progress))
		usleep(100);
	usleep(15000); /* longer than one nap */
	CHECK_EQ(atomic_load(&progress), 1);
	return thread;
}

static void test_waiting(void)
{
	pthread_t thread;

	make_vm();
	half_published();
	thread = waiting_change();
	CHECK_EQ(ms_update_end(update, true, NULL), -EINVAL);
	joined(thread);
	CHECK_EQ(ms_nr_memslots(vm), 7);
	done();
}

static void *abandon_it(void *unused)
{
	ms_update_abandon(update);
	return unused;
}

/* A thread that did not begin an update may only abandon it. */
static void test_end_elsewhere(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(halves); i++) {
		struct picture before, after;

		vm = vm_with_slots(SPACES);
		before = picture_of(vm);
		update = begun(vm, SPACE);
		halves[i].steps();
		by_another_thread(abandon_it, NULL);
		check_sound(vm); /* takes the lock and so runs the deferred end */
		CHECK_EQ(vm->update, NULL);
		after = picture_of(vm);
		CHECK(same_picture(&before, &after));
		check_sound(vm);
		done();
	}
}

/* ---- abandoned in a place that must not wait ---- */

/* The call that takes the lock next. */
enum taker { BY_SET, BY_CHECK, BY_BEGIN, BY_CLOSE, BY_DESTROY, BY_VCPU, BY_REFUSED, NR_TAKERS };

static void take(enum taker taker)
{
	struct ms_vcpu *vcpu;

	if (taker == BY_SET)
		CHECK_EQ(set(vm, SPACE, 40, 0x1000, 1, LOG), 0);
	else if (taker == BY_CHECK)
		check_sound(vm);
	else if (taker == BY_BEGIN)
		CHECK_EQ(ms_update_end(begun(vm, 0), true, NULL), 0);
	else if (taker == BY_CLOSE)
		CHECK_EQ(ms_vm_close(vm, NULL), 0);
	else if (taker == BY_VCPU)
		CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	else if (taker == BY_REFUSED)
		CHECK_EQ(set(vm, SPACE, 40, 0x1000, 1, 8), -EINVAL);
	else
		ms_vm_destroy(vm);
}

static void *take_it(void *taker)
{
	take((enum taker)(uintptr_t)taker);
	return NULL;
}

static int abandon_in_prepare(void *opaque, const struct ms_change *to)
{
	(void)opaque;
	(void)to;
	ms_update_abandon(update);
	return 0;
}

enum where { IN_SECTION, IN_OTHER_SECTION, IN_OTHER_HOOK, NR_WHERES };

/* The update stays as it is until the lock is taken. */
static void abandon(enum where where)
{
	static const struct ms_listener abandons = { LISTENER_SIZE, .prepare = abandon_in_prepare };
	struct ms_vm *other = new_vm(1), *in = where == IN_SECTION ? vm : other;
	struct picture before = picture_of(vm), after;

	if (where == IN_OTHER_HOOK) {
		CHECK_EQ(ms_add_listener(other, &abandons, NULL), 0);
		CHECK_EQ(set(other, 0, 1, 1, 1, 0), 0);
	} else {
		CHECK_EQ(ms_read_lock(in), 0);
		ms_update_abandon(update);
		check_locked(vm, -EDEADLK, MS_RULE_READ_SECTION);
		ms_read_unlock(in);
	}
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	CHECK_EQ(before.generations, after.generations);
	ms_vm_destroy(other);
}

static void check_rolled_back(enum taker taker, const struct picture *before)
{
	struct picture after;

	if (taker == BY_SET)
		CHECK_EQ(set(vm, SPACE, 40, 0, 0, 0), 0);
	CHECK_EQ(vm->update, NULL);
	after = picture_of(vm);
	CHECK(taker == BY_CLOSE || same_picture(before, &after));
	if (taker != BY_CLOSE)
		check_sound(vm);
	done();
}

static void test_deferred_ends(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(halves); i++)
		for (unsigned j = 0; j < 2 * NR_WHERES * NR_TAKERS; j++) {
			enum where where = j / 2 / NR_TAKERS;
			enum taker taker = j / 2 % NR_TAKERS;
			struct picture before;

			vm = vm_with_slots(SPACES);
			before = picture_of(vm);
			update = begun(vm, SPACE);
			halves[i].steps();
			abandon(where);
			if (j % 2)
				by_another_thread(take_it, (void *)(uintptr_t)taker);
			else
				take(taker);
			if (taker != BY_DESTROY)
				check_rolled_back(taker, &before);
		}
}

/* The thread that had the update takes the lock first, in a hook of another VM: it need not wait. */
static int take_in_prepare(void *opaque, const struct ms_change *to)
{
	(void)opaque;
	(void)to;
	ms_update_abandon(update);
	CHECK_EQ(set(vm, SPACE, 40, 0x1000, 1, LOG), 0);
	CHECK_EQ(set(vm, SPACE, 40, 0, 0, 0), 0);
	return 0;
}

static void test_deferred_end_in_hook(void)
{
	static const struct ms_listener l = { LISTENER_SIZE, .prepare = take_in_prepare };
	struct ms_vm *other = new_vm(1);

	CHECK_EQ(ms_add_listener(other, &l, NULL), 0);
	make_vm();
	half_both();
	CHECK_EQ(set(other, 0, 1, 1, 1, 0), 0);
	check_sound(vm);
	CHECK_EQ(ms_nr_memslots(vm), 6);
	done();
	end_vm(other);
}

static void abandon_in_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)active;
	(void)old;
	ms_update_abandon(update);
}

/* In a hook of the update's own VM: the step completes first. */
static void test_deferred_end_in_own_hook(void)
{
	static const struct ms_listener l = { LISTENER_SIZE, .flush = abandon_in_flush };
	struct picture before, after;

	vm = vm_with_slots(SPACES);
	CHECK_EQ(ms_add_listener(vm, &l, NULL), 0);
	before = picture_of(vm);
	update = begun(vm, SPACE);
	half_invalid();
	check_sound(vm);
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	CHECK_EQ(ms_remove_listener(vm, &l, NULL), 0);
	done();
}

/* Several threads want the lock of an abandoned update.  Some sleep already, some come later, one runs the deferred
 * end, and all get the lock. */
#define RACERS 4

static void race_for_deferred_end(const struct half *half, int early)
{
	pthread_t thread[RACERS];

	make_vm();
	half->steps();
	CHECK_EQ(ms_read_lock(vm), 0);
	for (int i = 0; i < early; i++)
		thread[i] = started(change, (void *)(uintptr_t)(40 + i));
	if (early)
		usleep(200);
	ms_update_abandon(update);
	for (int i = early; i < RACERS; i++)
		thread[i] = started(change, (void *)(uintptr_t)(40 + i));
	ms_gfn_to_hva(vm, SPACE, GFN);
	ms_read_unlock(vm); /* the thread that ran the deferred end has waited for this section, if there was a swap */
	for (int i = 0; i < RACERS; i++)
		joined(thread[i]);
	CHECK_EQ(ms_nr_memslots(vm), 6 + RACERS);
	CHECK_EQ(ms_gfn_to_hva(vm, SPACE, GFN), hva_for(SPACE, ID));
	check_sound(vm);
	done();
}

static void test_races(void)
{
	for (uint64_t i = 0; i < test_times(200); i++)
		race_for_deferred_end(&halves[i % ARRAY_SIZE(halves)], (int)(i % (RACERS + 1)));
}

/* A thread that sleeps on the lock notices the deferred end by itself. */
static void test_deferred_end_by_a_sleeper(void)
{
	pthread_t thread;

	make_vm();
	half_both();
	thread = waiting_change();
	CHECK_EQ(ms_read_lock(vm), 0);
	ms_update_abandon(update);
	ms_read_unlock(vm);
	joined(thread);
	CHECK_EQ(ms_nr_memslots(vm), 7);
	done();
}

/* No call has run the deferred end before the VM is closed: as if there had been no update. */
static void test_deferred_end_and_close(void)
{
	struct ms_update *u;

	make_vm();
	half_both();
	abandon(IN_SECTION);
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	CHECK_EQ(ms_update_begin(vm, SPACE, &u, NULL), -EBADF);
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	done();
}

/* ---- a child process ---- */

/* exit(), so that the lines that ran here are counted for coverage. */
static void in_child(void)
{
	struct picture before = picture_of(vm), after;
	struct ms_vm *own;

	check_steps(-EIO, MS_RULE_FORKED);
	check_end(-EIO, MS_RULE_FORKED);
	check_locked(vm, -EIO, MS_RULE_FORKED);
	CHECK_EQ(ms_gfn_to_hva(vm, SPACE, GFN), MS_HVA_ERR_BAD); /* the published set */
	ms_update_abandon(update);
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	CHECK(!atomic_load(&vm->slots_lock.pending_end));
	check_locked(vm, -EIO, MS_RULE_FORKED);
	own = vm_with_slots(SPACES);
	update = begun(own, SPACE);
	CHECK_EQ(ms_update_swap(update, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	ms_vm_destroy(own);
	exit(0);
}

static void test_fork(void)
{
	int status = -1;
	pid_t child;

	make_vm();
	half_both();
	fflush(NULL);
	child = fork();
	if (!child)
		in_child();
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	ended(false); /* the parent goes on */
	CHECK_EQ(ms_nr_memslots(vm), 6);
	done();
}

/* ---- each allocation of each step fails ---- */

static uint64_t injections, silent;

static struct ms_slot *made[4];
enum { CREATED, INVALIDATED, MOVED, SPARE };

static int begin_step(struct ms_error *err)
{
	return ms_update_begin(vm, SPACE, &update, err);
}

static int copy_to(size_t to, struct ms_slot *old, struct ms_memslot value, struct ms_error *err)
{
	struct ms_slot *draft = NULL;
	int r = ms_update_copy(update, old, &value, &draft, err);

	CHECK_EQ(!draft, r != 0);
	if (draft)
		made[to] = draft;
	return r;
}

static int copy_new(struct ms_error *err)
{
	return copy_to(CREATED, NULL, value_of(30, 0x3000, NPAGES, LOG), err);
}

static int replace_new(struct ms_error *err)
{
	return ms_update_replace(update, NULL, made[CREATED], err);
}

static int activate_new(struct ms_error *err)
{
	return ms_update_activate(update, NULL, made[CREATED], err);
}

static int invalidate_old(struct ms_error *err)
{
	struct ms_slot *inv = NULL;
	int r = ms_update_invalidate(update, found(true, ID), &inv, err);

	CHECK_EQ(!inv, r != 0);
	made[INVALIDATED] = inv;
	return r;
}

static int copy_smaller(struct ms_error *err)
{
	return copy_to(SPARE, found(false, ID), value_of(ID, 0x4000, 1, LOG), err);
}

static int copy_old(struct ms_error *err)
{
	return copy_to(MOVED, found(false, ID), value_of(ID, 0x4000, NPAGES, LOG), err);
}

static int replace_old(struct ms_error *err)
{
	return ms_update_replace(update, found(false, ID), made[MOVED], err);
}

static int activate_moved(struct ms_error *err)
{
	return ms_update_activate(update, made[INVALIDATED], made[MOVED], err);
}

static int delete_one(struct ms_error *err)
{
	return ms_update_replace(update, found(false, 7), NULL, err);
}

static int delete_two(struct ms_error *err)
{
	return ms_update_activate(update, found(true, 7), NULL, err);
}

static int swap_back(struct ms_error *err)
{
	return ms_update_swap(update, err);
}

typedef int step_fn(struct ms_error *err);

/* Enough drafts for the lists to grow. */
static step_fn *const script[] = {
	begin_step,     copy_new,     replace_new,  activate_new, invalidate_old, copy_smaller, copy_old,   replace_old,
	activate_moved, copy_smaller, copy_smaller, copy_smaller, copy_smaller,   delete_one,   delete_two, swap_back,
};

struct held {
	uint64_t bytes, blocks;
};

/* Buckets are optional, and stay. */
static struct held held_now(void)
{
	struct ms_stats stats = held_by(vm);
	struct held held = { stats.bytes, stats.blocks };

	for (int i = 0; i < 2; i++) {
		struct id_hash *ids = &vm->as[SPACE].set[i].ids;

		if (ids->buckets != ids->built_in) {
			held.bytes -= id_hash_size(ids->bits);
			held.blocks--;
		}
	}
	return held;
}

/* As many slots as the hash has buckets, so that it wants to grow. */
static void make_full_vm(void)
{
	vm = new_vm(SPACES);
	for (uint32_t id = 0; id < 1 << ID_HASH_BITS_MIN; id++)
		CHECK_EQ(set(vm, SPACE, id, GFN + id * NPAGES, NPAGES, id % 2 ? LOG : 0), 0);
	ms_mark_page_dirty(vm, SPACE, GFN + ID * NPAGES + 3);
}

/* Returns whether there was an nth allocation.  If it fails, the step fails, or succeeds without buckets; a failed step
 * can be repeated. */
static bool fail_step(step_fn *fn, uint64_t nth)
{
	struct picture before = picture_of(vm), after;
	struct ms_error err;
	bool reached;
	int r;

	memory_fail(&vm->memory, nth, false);
	r = fn(&err);
	reached = atomic_load(&vm->memory.attempts) >= nth;
	memory_fail(&vm->memory, 0, false);
	if (!r) {
		silent += reached;
		CHECK(!reached || fn == replace_new || fn == activate_new);
		return reached;
	}
	CHECK(reached);
	CHECK_EQ(r, -ENOMEM);
	CHECK_EQ(err.rule, MS_RULE_NO_MEMORY);
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	CHECK_EQ(before.generations, after.generations);
	CHECK_EQ(fn(NULL), 0);
	return true;
}

/* The nth allocation of step k fails; the update ends after that step or after all steps. */
static bool fail_script(size_t k, uint64_t nth, bool go_on, const struct picture *want)
{
	size_t nr = go_on ? ARRAY_SIZE(script) : k + 1;
	struct picture before, after;
	struct held held;
	bool reached = false;

	make_full_vm();
	before = picture_of(vm);
	held = held_now();
	for (size_t i = 0; i < nr; i++) {
		if (i == k)
			reached = fail_step(script[i], nth);
		else
			CHECK_EQ(script[i](NULL), 0);
		steps++;
	}
	memory_fail(&vm->memory, 1, true);
	CHECK_EQ(ms_update_end(update, go_on, NULL), 0);
	memory_fail(&vm->memory, 0, false);
	after = picture_of(vm);
	CHECK(same_picture(&after, go_on ? want : &before));
	CHECK(!go_on || after.generations == want->generations);
	if (!go_on) { /* the failed step has done nothing */
		CHECK_EQ(held_now().blocks, held.blocks);
		CHECK_EQ(held_now().bytes, held.bytes);
	}
	check_sound(vm);
	done();
	return reached;
}

static struct picture unfailed(void)
{
	struct picture picture;

	make_full_vm();
	for (size_t i = 0; i < ARRAY_SIZE(script); i++)
		CHECK_EQ(script[i](NULL), 0);
	ended(true);
	CHECK(stats_of(vm).hash_grows > 0);
	picture = picture_of(vm);
	done();
	return picture;
}

static void test_faults(void)
{
	struct picture want = unfailed();

	for (size_t k = 0; k < ARRAY_SIZE(script); k++)
		for (int go_on = 0; go_on < 2; go_on++) {
			uint64_t nth = 1;

			while (fail_script(k, nth, go_on, &want))
				nth++;
			injections += nth - 1;
			if (script[k] == begin_step || script[k] == invalidate_old)
				CHECK(nth > 1);
			if (script[k] == copy_new || script[k] == copy_smaller) /* a slot, a log, and a longer list */
				CHECK(nth > 2);
		}
	CHECK(silent > 0);
}

/* The thread that had the update changes the VM while another thread ends the update. */
static void test_end_during_change(void)
{
	for (uint64_t i = 0; i < test_times(300); i++) {
		region_t r = region(SPACE, 40, 0x1000, 1, 0);
		struct ms_error err;
		pthread_t thread;

		make_vm();
		thread = started(abandon_it, NULL);
		while (ms_set_user_memory_region(vm, &r, &err))
			CHECK_EQ(err.rule, MS_RULE_UPDATE);
		joined(thread);
		done();
	}
}

static void abandon_and_change(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	struct ms_error err = { .rule = MS_RULE_NONE };
	region_t r = region(SPACE, 40, 0x1000, 1, 0);

	(void)active;
	(void)old;
	if (!opaque)
		ms_update_abandon(update);
	CHECK_EQ(ms_set_user_memory_region(vm, &r, &err), -EDEADLK); /* inside a hook of the same VM */
}

static void test_change_after_abandon_in_own_hook(void)
{
	static const struct ms_listener l[2] = { { LISTENER_SIZE, .flush = abandon_and_change },
						 { LISTENER_SIZE, .opaque = &vm, .flush = abandon_and_change } };

	vm = vm_with_slots(SPACES);
	CHECK_EQ(ms_add_listener(vm, &l[0], NULL), 0);
	CHECK_EQ(ms_add_listener(vm, &l[1], NULL), 0);
	update = begun(vm, SPACE);
	half_invalid();
	check_sound(vm);
	done();
}

static void destroy_in_child(bool abandoned)
{
	int status = -1;
	uint64_t blocks;
	pid_t child;

	make_vm();
	half_invalid();
	CHECK_EQ(ms_read_lock(vm), 0);
	if (abandoned)
		ms_update_abandon(update);
	fflush(NULL);
	child = fork();
	if (!child) {
		alarm(30);
		if (!abandoned)
			ms_update_abandon(update);
		blocks = stats_of(vm).blocks;
		ms_vm_destroy(vm);
		CHECK_EQ(stats_of(vm).blocks, blocks); /* the child leaves half a change as it is */
		exit(0);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	ms_read_unlock(vm);
	if (!abandoned)
		ended(false);
	done();
}

static void begin_in_commit(void *other, const struct ms_change *change)
{
	struct ms_update *theirs;
	struct ms_error err;

	(void)change;
	CHECK_EQ(ms_update_begin(other, 0, &theirs, &err), -EBUSY); /* no step could be made in a hook */
	CHECK_EQ(err.rule, MS_RULE_HOOK_BUSY);
	CHECK(!theirs);
}

static void test_begin_in_hook_of_another(void)
{
	struct ms_vm *one = new_vm(1), *other = new_vm(1);
	struct ms_listener l = { LISTENER_SIZE, .opaque = other, .commit = begin_in_commit };

	CHECK_EQ(ms_add_listener(one, &l, NULL), 0);
	CHECK_EQ(set(one, 0, 1, 1, 1, 0), 0);
	CHECK_EQ(set(other, 0, 1, 1, 1, 0), 0); /* the VM is not locked */
	end_vm(one);
	end_vm(other);
}

/* ---- a thread that ends inside an update ---- */

enum end { PLAINLY, INSIDE_A_SECTION, NR_ENDS };

struct dying {
	const struct half *half;
	enum end end;
};

static void *end_inside(void *arg)
{
	const struct dying *how = arg;

	update = begun(vm, SPACE);
	how->half->steps();
	if (how->end == INSIDE_A_SECTION)
		CHECK_EQ(ms_read_lock(vm), 0);
	return NULL;
}

/* In a thread that was not there before, which makes the next update of the same VM. */
static void check_lost(void)
{
	struct ms_update *lost = update, *next = begun(vm, SPACE);

	CHECK(next != lost);
	for (unsigned i = 0; i < NR_STEPS; i++) {
		struct ms_error err = { .rule = MS_RULE_NONE };

		CHECK_EQ(step(i, &err), -EBUSY);
		CHECK_EQ(err.rule, MS_RULE_UPDATE_OWNER);
	}
	CHECK_EQ(ms_update_end(lost, true, NULL), -EBUSY);
	CHECK_EQ(ms_update_end(lost, false, NULL), -EBUSY);
	check_looks();
	CHECK_EQ(vm->update, next);
	CHECK_EQ(ms_update_swap(next, NULL), 0);
	CHECK_EQ(ms_update_end(next, true, NULL), 0);
}

/* The end of its thread has done everything: to abandon the update then changes nothing. */
static void abandon_ended(void)
{
	uint64_t active = atomic_load(&vm->active);
	slots_lock_end_fn *pending_end = atomic_load(&vm->slots_lock.pending_end);

	ms_update_abandon(update);
	CHECK_EQ(atomic_load(&vm->active), active);
	CHECK(atomic_load(&vm->slots_lock.pending_end) == pending_end);
	CHECK(!vm->deferred_frees || !vm->deferred_frees->next);
}

/* Like an abandoned update: the next call that takes the lock runs the deferred end.  Its handle may be abandoned
 * before that, after it, or never. */
static void end_thread_inside(const struct half *half, enum end end, enum taker taker, unsigned abandoned_at)
{
	struct dying how = { half, end };
	struct picture before;

	vm = vm_with_slots(SPACES);
	before = picture_of(vm);
	by_another_thread(end_inside, &how);
	CHECK(!vm->update || atomic_load(&vm->slots_lock.pending_end)); /* else the next call would wait for ever */
	if (abandoned_at == 1)
		abandon_ended();
	take(taker);
	steps++;
	if (taker == BY_DESTROY)
		return;
	if (taker == BY_CHECK) {
		if (!abandoned_at)
			check_lost();
		if (abandoned_at != 1)
			abandon_ended();
		CHECK_EQ(ms_update_end(begun(vm, SPACE), true, NULL), 0);
		CHECK(!vm->deferred_frees); /* no deferred frees */
	} else if (abandoned_at == 2) {
		abandon_ended();
	}
	check_rolled_back(taker, &before);
}

static void test_ending_threads(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(halves); i++)
		for (unsigned j = 0; j < NR_ENDS * NR_TAKERS * 3; j++)
			end_thread_inside(&halves[i], j / 3 / NR_TAKERS, j / 3 % NR_TAKERS, j % 3);
}

/* Two updates of one thread, and one of a thread that goes on. */
static void *end_inside_two(void *vms)
{
	struct ms_vm **of = vms;

	begun(of[0], 0);
	begun(of[1], 0);
	return NULL;
}

static void test_ending_inside_two(void)
{
	struct ms_vm *vms[3] = { vm_with_slots(SPACES), vm_with_slots(SPACES), vm_with_slots(SPACES) };
	struct ms_update *own = begun(vms[2], 0);

	by_another_thread(end_inside_two, vms);
	CHECK_EQ(set(vms[0], 0, 40, 0x1000, 1, 0), 0);
	CHECK_EQ(set(vms[1], 0, 40, 0x1000, 1, 0), 0);
	CHECK_EQ(vms[2]->update, own);
	CHECK_EQ(ms_update_swap(own, NULL), 0);
	CHECK_EQ(ms_update_end(own, true, NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(vms); i++) {
		check_sound(vms[i]);
		ms_vm_destroy(vms[i]);
	}
}

/* A thread ends in a hook of its own step: in flush, or in the report that a reader delays its swap. */
static _Thread_local bool may_end; /* false in the main thread, whose end would end the test with status 0 */

static void end_here(void)
{
	if (may_end)
		pthread_exit(NULL);
}

static void end_in_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)active;
	(void)old;
	end_here();
}

static void end_in_report(void *opaque, const struct ms_stall *stall)
{
	(void)opaque;
	(void)stall;
	end_here();
}

static void *invalidate_and_end(void *unused)
{
	struct ms_slot *out;

	may_end = true;
	update = begun(vm, SPACE);
	ms_update_invalidate(update, found(true, 1), &out, NULL);
	CHECK(false);
	return unused;
}

static void test_ending_in_flush(void)
{
	static const struct ms_listener ends = { LISTENER_SIZE, .flush = end_in_flush };
	struct picture before, after;

	vm = vm_with_slots(SPACES);
	CHECK_EQ(ms_add_listener(vm, &ends, NULL), 0);
	before = picture_of(vm);
	by_another_thread(invalidate_and_end, NULL);
	check_sound(vm);
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	ms_update_abandon(update);
	done();
}

static void abandon_and_end(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	if (may_end)
		abandon_in_flush(opaque, active, old);
	end_here();
}

static void abandon_and_end_in_report(void *opaque, const struct ms_stall *stall)
{
	(void)opaque;
	(void)stall;
	if (may_end)
		ms_update_abandon(update);
	end_here();
}

/* The update was abandoned inside the step in which its thread has ended.  The next call rolls it back and frees it. */
static void check_abandoned(enum taker taker, const struct picture *before)
{
	CHECK(atomic_load(&vm->slots_lock.pending_end)); /* else the next call would wait forever */
	take(taker);
	if (taker == BY_DESTROY)
		return;
	if (taker != BY_CLOSE)
		CHECK_EQ(ms_update_end(begun(vm, 0), true, NULL), 0);
	CHECK(taker == BY_CLOSE || !vm->deferred_frees); /* a begin frees updates that were given back */
	check_rolled_back(taker, before);
}

static void test_ending_after_abandon_in_flush(void)
{
	static const struct ms_listener ends = { LISTENER_SIZE, .flush = abandon_and_end };

	for (enum taker taker = 0; taker < NR_TAKERS; taker++) {
		struct picture before;

		vm = vm_with_slots(SPACES);
		CHECK_EQ(ms_add_listener(vm, &ends, NULL), 0);
		before = picture_of(vm);
		by_another_thread(invalidate_and_end, NULL);
		check_abandoned(taker, &before);
	}
}

static void test_ending_after_abandon_in_report(void)
{
	for (enum taker taker = 0; taker < NR_TAKERS; taker++) {
		struct picture before;

		vm = vm_with_slots(SPACES);
		before = picture_of(vm);
		CHECK_EQ(ms_set_stall_report(vm, 1, abandon_and_end_in_report, NULL, NULL), 0);
		CHECK_EQ(ms_read_lock(vm), 0);
		by_another_thread(invalidate_and_end, NULL);
		ms_read_unlock(vm);
		check_abandoned(taker, &before);
	}
}

static _Atomic bool reader_is_in;

/* The reader is there when the end swaps back, not before. */
static void *end_and_end(void *unused)
{
	may_end = true;
	update = begun(vm, SPACE);
	half_both();
	atomic_store(&progress, 1);
	while (!atomic_load(&reader_is_in))
		sched_yield();
	ms_update_end(update, true, NULL);
	CHECK(false);
	return unused;
}

static void *check_and_end(void *unused)
{
	may_end = true;
	check_sound(vm);
	CHECK(false);
	return unused;
}

/* The thread ends in the report of its ms_update_end(), and so do `more_ends` threads that finish the update. */
static void end_in_report_of_end(enum taker taker, int more_ends)
{
	struct picture before;
	pthread_t thread;

	vm = vm_with_slots(SPACES);
	before = picture_of(vm);
	CHECK_EQ(ms_set_stall_report(vm, 1, end_in_report, NULL, NULL), 0);
	atomic_store(&progress, 0);
	atomic_store(&reader_is_in, false);
	thread = started(end_and_end, NULL);
	while (!atomic_load(&progress))
		sched_yield();
	CHECK_EQ(ms_read_lock(vm), 0);
	atomic_store(&reader_is_in, true);
	joined(thread);
	while (more_ends--)
		by_another_thread(check_and_end, NULL);
	ms_read_unlock(vm);
	check_abandoned(taker, &before);
}

static void test_ending_in_report_of_end(void)
{
	for (enum taker taker = 0; taker < NR_TAKERS; taker++)
		for (int more_ends = 0; more_ends < 3; more_ends++)
			end_in_report_of_end(taker, more_ends);
}

/* ---- the end of a VM with an open update ---- */

static void *destroy_it(void *unused)
{
	ms_vm_destroy(vm);
	return unused;
}

static void *begin_and_destroy(void *arg)
{
	const struct half *half = arg;

	update = begun(vm, SPACE);
	half->steps();
	ms_vm_destroy(vm);
	return NULL; /* the end of the thread finds no update */
}

/* By the thread that began it, which goes on or ends; or by another one. */
static void test_destroy_with_open_update(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(halves); i++) {
		vm = vm_with_slots(SPACES);
		by_another_thread(begin_and_destroy, (void *)(uintptr_t)&halves[i]);
		make_vm();
		halves[i].steps();
		by_another_thread(destroy_it, NULL);
		make_vm();
		halves[i].steps();
		CHECK_EQ(ms_read_lock(vm), 0); /* destroy does not wait for it */
		ms_vm_destroy(vm);
		CHECK_EQ(thread_self.sections, 0);
		make_vm(); /* this thread makes changes as before */
		ended(true);
		done();
	}
}

static void destroy_in_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)active;
	(void)old;
	ms_vm_destroy(vm);
}

static int destroy_in_prepare(void *opaque, const struct ms_change *to)
{
	(void)to;
	ms_vm_destroy(opaque);
	return 0;
}

/* In a hook of the same VM, destroy does nothing: the step or the change goes on with the VM.  A hook of another VM may
 * destroy it. */
static void test_destroy_in_hooks(void)
{
	static const struct ms_listener own = { LISTENER_SIZE, .flush = destroy_in_flush };
	struct ms_vm *other = new_vm(1);
	struct ms_listener theirs = { LISTENER_SIZE, .prepare = destroy_in_prepare };

	vm = vm_with_slots(SPACES);
	theirs.opaque = vm;
	CHECK_EQ(ms_add_listener(vm, &own, NULL), 0);
	CHECK_EQ(ms_add_listener(vm, &theirs, NULL), 0);
	CHECK_EQ(set(vm, SPACE, ID, 0xc00, NPAGES, LOG), 0);
	update = begun(vm, SPACE);
	half_invalid();
	ended(false);
	CHECK_EQ(ms_add_listener(other, &theirs, NULL), 0);
	update = begun(vm, SPACE);
	half_both();
	CHECK_EQ(set(other, 0, 1, 1, 1, 0), 0);
	ms_vm_destroy(other);
}

static void destroy_in_report(void *opaque, const struct ms_stall *stall)
{
	(void)opaque;
	ms_vm_destroy(vm);
	atomic_store(&progress, (int)stall->report);
}

static void *stalled_change(void *unused)
{
	CHECK_EQ(set(vm, SPACE, 30, 0xc00, 1, LOG), 0);
	return unused;
}

/* This thread is the reader that the call waits for. */
static void let_report(void *(*call)(void *))
{
	pthread_t thread;

	atomic_store(&progress, 0);
	CHECK_EQ(ms_read_lock(vm), 0);
	thread = started(call, NULL);
	while (!atomic_load(&progress))
		usleep(100);
	ms_read_unlock(vm);
	joined(thread);
}

static void *take_over_and_check(void *unused)
{
	check_sound(vm);
	return unused;
}

/* A report during a change, and one during a pending end that the thread runs. */
static void test_destroy_in_reports(void)
{
	vm = vm_with_slots(SPACES);
	CHECK_EQ(ms_set_stall_report(vm, 1, destroy_in_report, NULL, NULL), 0);
	let_report(stalled_change);
	update = begun(vm, SPACE);
	half_published();
	ms_update_abandon(update); /* the grace period is still to come */
	let_report(take_over_and_check);
	done();
}

/* The next call waits for the reader that the ended thread was waiting for. */
static void test_ending_in_report(void)
{
	struct picture before, after;
	uint64_t periods;

	vm = vm_with_slots(SPACES);
	before = picture_of(vm);
	CHECK_EQ(ms_set_stall_report(vm, 1, end_in_report, NULL, NULL), 0);
	CHECK_EQ(ms_read_lock(vm), 0);
	by_another_thread(invalidate_and_end, NULL);
	periods = atomic_load(&vm->srcu.periods);
	CHECK_EQ(ms_generation(vm, SPACE) >> 63, 0); /* the generation of this section */
	ms_read_unlock(vm);
	check_sound(vm);
	CHECK_EQ(atomic_load(&vm->srcu.periods), periods + 2); /* those of the ended thread and of the roll-back */
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	ms_update_abandon(update);
	done();
}

/* The thread ends in the swap after which the marks of the larger slot go into the log of the slot that stays. */
static pthread_barrier_t larger_is_seen;

static void *swap_back_and_end(void *unused)
{
	may_end = true;
	update = begun(vm, SPACE);
	replaced(found(false, ID), copied(found(true, ID), value_of(ID, GFN, NPAGES + 1, LOG)));
	swapped();
	pthread_barrier_wait(&larger_is_seen);
	pthread_barrier_wait(&larger_is_seen);
	ms_update_swap(update, NULL);
	CHECK(false);
	return unused;
}

static void test_marks_of_an_ended_thread(void)
{
	pthread_t thread;

	vm = vm_with_slots(SPACES);
	CHECK_EQ(set(vm, SPACE, ID + 1, 0, 0, 0), 0); /* room for one page more */
	CHECK_EQ(ms_set_stall_report(vm, 1, end_in_report, NULL, NULL), 0);
	CHECK_EQ(pthread_barrier_init(&larger_is_seen, NULL, 2), 0);
	thread = started(swap_back_and_end, NULL);
	pthread_barrier_wait(&larger_is_seen);
	CHECK_EQ(ms_read_lock(vm), 0);
	ms_mark_page_dirty(vm, SPACE, GFN + 5);
	pthread_barrier_wait(&larger_is_seen);
	joined(thread);
	ms_read_unlock(vm);
	check_sound(vm);
	check_log_of_id(1 << 5, 1 << 2);
	CHECK_EQ(pthread_barrier_destroy(&larger_is_seen), 0);
	ms_update_abandon(update);
	done();
}

/* A thread ends while another one abandons its update and a third waits for the lock. */
static _Atomic int has_begun;

static void *begin_and_end(void *unused)
{
	update = begun(vm, SPACE);
	half_invalid();
	atomic_store(&has_begun, 1);
	return unused;
}

static void test_ending_during_abandon(void)
{
	for (uint64_t i = 0; i < test_times(300); i++) {
		pthread_t dying, waiting;

		vm = vm_with_slots(SPACES);
		atomic_store(&has_begun, 0);
		dying = started(begin_and_end, NULL);
		while (!atomic_load(&has_begun))
			;
		waiting = started(take_it, (void *)(uintptr_t)BY_CHECK);
		ms_update_abandon(update);
		joined(waiting);
		ms_vm_destroy(vm); /* though the thread may still be ending */
		joined(dying);
	}
}

/* A thread ends while another one destroys the VM of its update. */
static void test_ending_during_destroy(void)
{
	for (uint64_t i = 0; i < test_times(300); i++) {
		pthread_t dying;

		vm = vm_with_slots(SPACES);
		atomic_store(&has_begun, 0);
		dying = started(begin_and_end, NULL);
		while (!atomic_load(&has_begun))
			;
		ms_vm_destroy(vm);
		joined(dying);
	}
}

static void *begin_and_leave(void *unused)
{
	CHECK_EQ(ms_update_end(begun(vm, 0), true, NULL), 0);
	return unused;
}

/* A fork finds the list of ends complete; in the child only its own thread can end. */
static void test_ending_during_fork(void)
{
	vm = vm_with_slots(SPACES);
	for (uint64_t i = 0; i < test_times(60); i++) {
		struct dying how = { &halves[i % ARRAY_SIZE(halves)], PLAINLY };
		pthread_t thread = started(begin_and_leave, NULL);
		pid_t child = fork();
		int status = -1;

		if (!child) {
			alarm(60);
			vm = vm_with_slots(SPACES);
			by_another_thread(end_inside, &how);
			check_sound(vm);
			ms_vm_destroy(vm);
			_exit(0);
		}
		CHECK_EQ(waitpid(child, &status, 0), child);
		CHECK_EQ(status, 0);
		joined(thread);
	}
	done();
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	test_changes();
	test_dirty_logs();
	test_resized_logs();
	test_log_off_and_on();
	test_looking();
	test_ends();
	test_totals();
	test_values();
	test_places();
	test_begin();
	test_other_designs();
	test_callers();
	test_own_hook();
	test_other_hook();
	test_waiting();
	test_end_elsewhere();
	test_begin_in_hook_of_another();
	test_deferred_ends();
	test_deferred_end_in_hook();
	test_deferred_end_in_own_hook();
	test_deferred_end_and_close();
	test_deferred_end_by_a_sleeper();
	test_races();
	test_fork();
	test_faults();
	test_end_during_change();
	test_change_after_abandon_in_own_hook();
	destroy_in_child(false);
	destroy_in_child(true);
	test_ending_threads();
	test_ending_inside_two();
	test_ending_in_flush();
	test_ending_in_report();
	test_marks_of_an_ended_thread();
	test_ending_after_abandon_in_flush();
	test_ending_after_abandon_in_report();
	test_ending_in_report_of_end();
	test_destroy_with_open_update();
	test_destroy_in_hooks();
	test_destroy_in_reports();
	test_ending_during_destroy();
	test_ending_during_abandon();
	if (TEST_SANITIZED) /* the ending thread may hold its allocator's lock, for which the child would wait */
		printf("update: skips the fork next to an ending thread: a sanitizer's locks do not survive a fork\n");
	else
		test_ending_during_fork();
	printf("update: %" PRIu64 " allocations failed, %" PRIu64 " of them silent\n", injections, silent);
	return test_done("update", steps, "steps");
}
