/* SPDX-License-Identifier: MIT */
/*
 * test_change_lists.c - the refusals of transactions, one for each rule, and the order in which listeners get lists.
 *
 * A refusal names the step, the rule and the other party, and changes nothing.  A list of changes reaches the first
 * listener as a whole, then the second one.  Each call of a hook may refuse; the abort follows in the reverse order.
 */
#include "fixture.h"

#include <stdlib.h>

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define READONLY MS_MEM_READONLY
#define IDS 12u
#define NPAGES 16u
#define SPACES 2u
#define GFN(id) (0x100u * (id))

static struct ms_vm *vm;
static uint64_t refusals, orders;
static bool has_refused[MS_RULE_NR];
static struct ms_backing *backing, *readonly_backing; /* nobody reads the memory */

/* Slots 1 to 5 at gfn 0x100 times their id: 2 logs, 3 is READONLY, 4 and 5 have a backing.  6 is the host neighbour of
 * 5, without a backing, and 7 is the host neighbour of 6 with a log.  8 ends at the limit. */
static void begin(void)
{
	struct ms_config config = default_config(SPACES);
	region_t r;

	config.user_mem_slots = IDS;
	config.gpa_bits = 24;
	vm = vm_with(&config);
	CHECK_EQ(set(vm, 0, 1, GFN(1), NPAGES, 0), 0);
	CHECK_EQ(set(vm, 0, 2, GFN(2), NPAGES, LOG), 0);
	CHECK_EQ(set(vm, 0, 3, GFN(3), NPAGES, READONLY), 0);
	for (uint32_t id = 4; id < 6; id++) {
		r = region(0, id, GFN(id), NPAGES, 0);
		r.userspace_addr = hva_for(0, 4) + (id - 4) * NPAGES * PAGE;
		CHECK_EQ(ms_map_backing(vm, &r, backing, NULL, NULL), 0);
	}
	for (uint32_t id = 6; id < 8; id++) {
		r = region(0, id, GFN(5) + (id - 5) * NPAGES, NPAGES, id == 7 ? LOG : 0);
		r.userspace_addr = hva_for(0, 4) + (id - 4) * NPAGES * PAGE;
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	}
	r = region(0, IDS, GFN(10), 1, 0);
	CHECK_EQ(ms_set_internal_memory_region(vm, &r, NULL), 0);
	ms_mark_page_dirty(vm, 0, GFN(2) + 3);
}

static void end(void)
{
	check_sound(vm);
	end_vm(vm);
}

/* ---- a refusal for each rule ---- */

static struct ms_step create(uint32_t id, uint64_t gfn, uint32_t flags)
{
	return (struct ms_step){ .kind = MS_STEP_CREATE,
				 .slot = id,
				 .flags = flags,
				 .guest_phys_addr = gfn * PAGE,
				 .memory_size = NPAGES * PAGE,
				 .userspace_addr = HVA_BASE };
}

static struct ms_step delete(uint32_t id)
{
	return (struct ms_step){ .kind = MS_STEP_DELETE, .slot = id };
}

static struct ms_step move(uint32_t id, uint64_t gpa)
{
	return (struct ms_step){ .kind = MS_STEP_MOVE, .slot = id, .guest_phys_addr = gpa };
}

static struct ms_step flags(uint32_t id, uint32_t value)
{
	return (struct ms_step){ .kind = MS_STEP_SET_FLAGS, .slot = id, .flags = value };
}

static struct ms_step resize(uint32_t id, uint64_t size)
{
	return (struct ms_step){ .kind = MS_STEP_RESIZE, .slot = id, .memory_size = size };
}

static struct ms_step split(uint32_t id, uint64_t gpa, uint32_t other)
{
	return (struct ms_step){ .kind = MS_STEP_SPLIT, .slot = id, .other = other, .guest_phys_addr = gpa };
}

static struct ms_step merge(uint32_t id, uint32_t other)
{
	return (struct ms_step){ .kind = MS_STEP_MERGE, .slot = id, .other = other };
}

static struct ms_step punch(uint64_t gpa, uint64_t size, uint32_t other)
{
	return (struct ms_step){ .kind = MS_STEP_PUNCH, .other = other, .guest_phys_addr = gpa, .memory_size = size };
}

static struct ms_step with(struct ms_step step, size_t offset, uint64_t value)
{
	memcpy((char *)&step + offset, &value, sizeof(value));
	return step;
}

static void note_refusal(enum ms_rule rule)
{
	has_refused[rule] = true;
	refusals++;
}

#define WITH(step, member, value) with(step, offsetof(struct ms_step, member), value)
#define NOBODY UINT32_MAX

/* The list is `first`, one step that is right, the step that is refused, and one that is right. */
static void refuse(const struct ms_step *first, size_t nr_first, struct ms_step bad, int code, enum ms_rule rule,
		   uint64_t limit, uint32_t other)
{
	struct ms_step steps[8];
	struct ms_error err = { 0 };
	struct picture before;
	struct ms_stats held;

	for (size_t i = 0; i < nr_first; i++)
		steps[i] = first[i];
	steps[nr_first] = create(9, 0x900, LOG);
	steps[nr_first + 1] = bad;
	steps[nr_first + 2] = flags(9, 0);
	ms_generation(vm, 0);
	before = picture_of(vm);
	held = held_by(vm);
	CHECK_EQ(ms_change_memslots(vm, 0, steps, nr_first + 3, &err), code);
	CHECK_EQ(err.rule, rule);
	CHECK_EQ(err.index, nr_first + 1);
	CHECK_EQ(err.limit, limit);
	CHECK(other == NOBODY ? no_slot(&err.other) : err.other.id == other && err.other.npages);
	check_only_refused(vm, &before, &held);
	CHECK_EQ(ms_change_memslots(vm, 0, steps, nr_first + 3, NULL), code);
	note_refusal(rule);
}

#define REFUSE(bad, code, rule, limit, other) refuse(NULL, 0, bad, code, MS_RULE_##rule, limit, other)
#define REFUSE_AFTER(first, bad, code, rule, limit, other) \
	refuse(&(struct ms_step[]){ first }[0], 1, bad, code, MS_RULE_##rule, limit, other)

static void refuse_create(void)
{
	const struct ms_step good = create(10, 0xA00, 0);

	REFUSE(WITH(create(IDS, 0xA00, 0), memory_size, PAGE), -EINVAL, SLOT_ID, IDS, NOBODY);
	REFUSE(create(10, 0xA00, 8), -EINVAL, FLAGS, LOG | READONLY | MS_MEM_GUEST_MEMFD, NOBODY);
	REFUSE(WITH(good, memory_size, PAGE + 1), -EINVAL, SIZE_ALIGN, 0, NOBODY);
	REFUSE(WITH(good, memory_size, 0), -EINVAL, NPAGES, MS_MEM_MAX_NR_PAGES, NOBODY);
	REFUSE(WITH(good, memory_size, (MS_MEM_MAX_NR_PAGES + 1) * PAGE), -EINVAL, NPAGES, MS_MEM_MAX_NR_PAGES, NOBODY);
	REFUSE(WITH(good, guest_phys_addr, 1), -EINVAL, GPA_ALIGN, 0, NOBODY);
	REFUSE(WITH(good, guest_phys_addr, 0 - PAGE), -EINVAL, GPA_WRAP, 0, NOBODY);
	REFUSE(WITH(good, guest_phys_addr, (uint64_t)1 << 24), -EINVAL, GPA_LIMIT, 1 << 24, NOBODY);
	REFUSE(WITH(good, userspace_addr, 1), -EINVAL, HVA_ALIGN, 0, NOBODY);
	REFUSE(WITH(good, userspace_addr, MS_HVA_END_MAX_DEFAULT), -EINVAL, HVA_RANGE, MS_HVA_END_MAX_DEFAULT, NOBODY);
	REFUSE(create(10, 0xA00, MS_MEM_GUEST_MEMFD), -EBADF, GMEM_FD, 0, NOBODY);
	REFUSE(create(4, 0xA00, 0), -EEXIST, DUPLICATE_ID, 0, 4);
	REFUSE(create(9, 0xA00, 0), -EEXIST, DUPLICATE_ID, 0, 9);
	REFUSE(create(10, GFN(2) + 15, 0), -EEXIST, OVERLAP, 0, 2);
	REFUSE(create(10, 0x90f, 0), -EEXIST, OVERLAP, 0, 9);
	REFUSE(create(10, GFN(10), 0), -EEXIST, OVERLAP, 0, IDS);
	REFUSE(WITH(good, backing, (uintptr_t)backing), -EINVAL, BACKING_RANGE, hva_for(0, 4) + 2 * NPAGES * PAGE,
	       NOBODY);
	REFUSE(WITH(WITH(good, backing, (uintptr_t)readonly_backing), userspace_addr, hva_for(0, 4)), -EINVAL,
	       BACKING_READONLY, 0, NOBODY);
}

static void refuse_values(void)
{
	const struct ms_step unknown = WITH(delete(1), kind, MS_STEP_CHANGE_FLAGS + 1);

	REFUSE(unknown, -EINVAL, STEP_KIND, MS_STEP_CHANGE_FLAGS, NOBODY);
	REFUSE(delete(IDS), -EINVAL, SLOT_ID, IDS, NOBODY);
	REFUSE(delete(11), -EINVAL, NO_SUCH_SLOT, 0, NOBODY);
	REFUSE_AFTER(delete(1), delete(1), -EINVAL, NO_SUCH_SLOT, 0, NOBODY);
	REFUSE(move(11, 0), -EINVAL, NO_SUCH_SLOT, 0, NOBODY);
	REFUSE(move(1, 1), -EINVAL, GPA_ALIGN, 0, NOBODY);
	REFUSE(move(1, 0 - PAGE), -EINVAL, GPA_WRAP, 0, NOBODY);
	REFUSE(move(1, ((uint64_t)1 << 24) - PAGE), -EINVAL, GPA_LIMIT, 1 << 24, NOBODY);
	REFUSE(move(1, GFN(2) * PAGE), -EEXIST, OVERLAP, 0, 2);
	REFUSE(flags(11, 0), -EINVAL, NO_SUCH_SLOT, 0, NOBODY);
	REFUSE(flags(1, 8), -EINVAL, FLAGS, LOG | READONLY | MS_MEM_GUEST_MEMFD, NOBODY);
	REFUSE(flags(1, MS_MEM_GUEST_MEMFD), -EINVAL, GMEM_EXISTING, 0, 1);
	REFUSE(flags(1, READONLY), -EINVAL, FLAGS_TOGGLE, 0, 1);
	REFUSE(flags(3, LOG), -EINVAL, FLAGS_TOGGLE, 0, 3);
	REFUSE(flags(9, READONLY), -EINVAL, FLAGS_TOGGLE, 0, 9);
	REFUSE(resize(11, PAGE), -EINVAL, NO_SUCH_SLOT, 0, NOBODY);
	REFUSE(resize(1, 0), -EINVAL, NPAGES, MS_MEM_MAX_NR_PAGES, NOBODY);
	REFUSE(resize(1, 1), -EINVAL, SIZE_ALIGN, 0, NOBODY);
	REFUSE(resize(1, (uint64_t)1 << 50), -EINVAL, HVA_RANGE, MS_HVA_END_MAX_DEFAULT, NOBODY);
	REFUSE(resize(1, 0x101 * PAGE), -EEXIST, OVERLAP, 0, 2);
	REFUSE(resize(5, (NPAGES + 1) * PAGE), -EINVAL, BACKING_RANGE, hva_for(0, 4) + 2 * NPAGES * PAGE, NOBODY);
}

static void refuse_parts(void)
{
	REFUSE(split(11, 0, 10), -EINVAL, NO_SUCH_SLOT, 0, NOBODY);
	REFUSE(split(1, GFN(1) * PAGE + 1, 10), -EINVAL, GPA_ALIGN, 0, NOBODY);
	REFUSE(split(1, GFN(1) * PAGE, 10), -EINVAL, SPLIT, 0, 1);
	REFUSE(split(1, (GFN(1) + NPAGES) * PAGE, 10), -EINVAL, SPLIT, 0, 1);
	REFUSE(split(1, (GFN(1) + 1) * PAGE, IDS), -EINVAL, SLOT_ID, IDS, NOBODY);
	REFUSE(split(1, (GFN(1) + 1) * PAGE, 2), -EEXIST, DUPLICATE_ID, 0, 2);
	REFUSE(split(1, (GFN(1) + 1) * PAGE, 1), -EEXIST, DUPLICATE_ID, 0, 1);
	REFUSE(merge(11, 1), -EINVAL, NO_SUCH_SLOT, 0, NOBODY);
	REFUSE(merge(1, 11), -EINVAL, NO_SUCH_SLOT, 0, NOBODY);
	REFUSE(merge(1, 1), -EINVAL, MERGE_PLACE, 0, 1);
	REFUSE(merge(1, 2), -EINVAL, MERGE_PLACE, 0, 2);
	REFUSE_AFTER(move(4, (GFN(1) + NPAGES) * PAGE), merge(1, 4), -EINVAL, MERGE_HVA, 0, 4);
	REFUSE(merge(5, 6), -EINVAL, MERGE_BACKING, 0, 6);
	REFUSE(merge(6, 5), -EINVAL, MERGE_BACKING, 0, 5);
	REFUSE(merge(6, 7), -EINVAL, MERGE_FLAGS, 0, 7);
	REFUSE(punch(1, PAGE, 10), -EINVAL, GPA_ALIGN, 0, NOBODY);
	REFUSE(punch(0, 1, 10), -EINVAL, SIZE_ALIGN, 0, NOBODY);
	REFUSE(punch(0, 0, 10), -EINVAL, NPAGES, MS_MEM_MAX_NR_PAGES, NOBODY);
	REFUSE(punch(0 - PAGE, 2 * PAGE, 10), -EINVAL, GPA_WRAP, 0, NOBODY);
	REFUSE(punch((GFN(1) + 1) * PAGE, PAGE, 2), -EEXIST, DUPLICATE_ID, 0, 2);
	REFUSE(punch(GFN(10) * PAGE, PAGE, 10), -EINVAL, SLOT_ID, IDS, IDS);
}

/* Of two steps that give two slots the same frames, the later one is refused, whichever slot was named first. */
static void refuse_the_later(void)
{
	struct ms_step steps[4] = { move(1, 0xB00 * PAGE), move(2, 0xB08 * PAGE), flags(1, LOG) };
	struct ms_error err;

	CHECK_EQ(ms_change_memslots(vm, 0, steps, 3, &err), -EEXIST);
	CHECK(err.rule == MS_RULE_OVERLAP && err.index == 1 && err.other.id == 1);
	steps[3] = move(1, 0xB01 * PAGE); /* slot 1 has its place from here now */
	CHECK_EQ(ms_change_memslots(vm, 0, steps, 4, &err), -EEXIST);
	CHECK(err.rule == MS_RULE_OVERLAP && err.index == 3 && err.other.id == 2);
	steps[0] = resize(1, 0x108 * PAGE); /* in place, over a slot that a later step moves there */
	steps[1] = move(2, (GFN(1) + 0x101) * PAGE);
	CHECK_EQ(ms_change_memslots(vm, 0, steps, 2, &err), -EEXIST);
	CHECK(err.rule == MS_RULE_OVERLAP && err.index == 1 && err.other.id == 1);
	note_refusal(err.rule);
}

static void refuse_ids(void)
{
	struct ms_step steps[IDS];
	struct ms_error err;
	size_t n = 0;

	for (; n < IDS - 7; n++) /* 7 of the ids are in use */
		steps[n] = create(MS_SLOT_ANY, 0x900 + 0x20 * n, 0);
	steps[n] = split(1, (GFN(1) + 1) * PAGE, MS_SLOT_ANY);
	CHECK_EQ(ms_change_memslots(vm, 0, steps, n + 1, &err), -ENOSPC);
	CHECK(err.rule == MS_RULE_NO_FREE_SLOT && err.index == n && err.limit == IDS);
	note_refusal(err.rule);
}

/* The call is refused before its first step. */
static void refuse_call(uint32_t as_id, const struct ms_step *steps, int code, enum ms_rule rule)
{
	struct ms_error err;

	CHECK_EQ(ms_change_memslots(vm, as_id, steps, 1, &err), code);
	CHECK_EQ(err.rule, rule);
	note_refusal(rule);
}

static void refuse_calls(void)
{
	struct ms_step step = delete(1);
	struct ms_update *u;

	refuse_call(SPACES, &step, -EINVAL, MS_RULE_AS_ID);
	refuse_call(0, NULL, -EFAULT, MS_RULE_NULL_BUFFER);
	CHECK_EQ(ms_change_memslots(vm, 0, NULL, 0, NULL), 0);
	CHECK_EQ(ms_read_lock(vm), 0);
	refuse_call(0, &step, -EDEADLK, MS_RULE_READ_SECTION);
	ms_read_unlock(vm);
	if (design_is("tree")) {
		CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
		refuse_call(0, &step, -EDEADLK, MS_RULE_UPDATE);
		CHECK_EQ(ms_update_end(u, true, NULL), 0);
	}
}

/* A hook of the VM, and a VM that is closed. */
static int change_in_hook(void *opaque, const struct ms_change *change)
{
	struct ms_step step = delete(2);

	(void)opaque;
	(void)change;
	refuse_call(0, &step, -EDEADLK, MS_RULE_HOOK);
	return 0;
}

static void refuse_places(void)
{
	static const struct ms_listener changer = { LISTENER_SIZE, .prepare = change_in_hook };
	struct ms_step step = delete(4);

	CHECK_EQ(ms_add_listener(vm, &changer, NULL), 0);
	CHECK_EQ(ms_change_memslots(vm, 0, &step, 1, NULL), 0);
	CHECK_EQ(ms_remove_listener(vm, &changer, NULL), 0);
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	refuse_call(0, &step, -EBADF, MS_RULE_CLOSED);
}

/* The sum of pages cannot wrap with real slots, so the test changes the sum. */
static void refuse_total(void)
{
	struct ms_step steps[] = { resize(1, PAGE), create(10, 0xC00, 0) };
	uint64_t pages = ms_nr_memslot_pages(vm);
	struct ms_error err;

	atomic_store(&vm->counts.nr_memslot_pages, ~(uint64_t)0);
	CHECK_EQ(ms_change_memslots(vm, 0, steps, 2, &err), -EINVAL);
	CHECK(err.rule == MS_RULE_TOTAL_PAGES && err.index == 1);
	note_refusal(err.rule);
	steps[0] = delete(1); /* a new slot may have the pages of one that ends */
	CHECK_EQ(ms_change_memslots(vm, 0, steps, 2, &err), 0);
	CHECK_EQ(ms_nr_memslot_pages(vm), ~(uint64_t)0);
	atomic_store(&vm->counts.nr_memslot_pages, pages);
}

/* Two slots of 2^30 pages: one page too many for one slot. */
static void test_merge_of_large_slots(void)
{
	struct ms_config config = default_config(1);
	uint64_t half = (MS_MEM_MAX_NR_PAGES + 1) / 2;
	struct ms_step steps[] = { create(1, 0, 0), create(2, half, 0), merge(1, 2) };
	struct ms_error err;

	config.hva_end_max = MS_HVA_ERR_MIN - 1;
	vm = vm_with(&config);
	steps[0].memory_size = steps[1].memory_size = half * PAGE;
	steps[1].userspace_addr += half * PAGE;
	CHECK_EQ(ms_change_memslots(vm, 0, steps, 3, &err), -EINVAL);
	CHECK(err.rule == MS_RULE_NPAGES && err.index == 2 && err.limit == MS_MEM_MAX_NR_PAGES && err.other.id == 2);
	steps[1].memory_size -= PAGE;
	CHECK_EQ(ms_change_memslots(vm, 0, steps, 3, NULL), 0);
	note_refusal(MS_RULE_NPAGES);
	end();
}

/* A hole may end where an internal slot begins. */
static void test_hole_below_internal_slot(void)
{
	struct ms_step step = punch((GFN(10) - 4) * PAGE, 4 * PAGE, MS_SLOT_ANY);

	begin();
	CHECK_EQ(ms_change_memslots(vm, 0, &step, 1, NULL), 0);
	end();
}

static void test_refusals(void)
{
	begin();
	refuse_create();
	refuse_values();
	refuse_parts();
	refuse_the_later();
	refuse_ids();
	refuse_calls();
	refuse_total();
	check_sound(vm);
	refuse_places();
	ms_vm_destroy(vm);
}

/* Rules that do not refuse a step, or that other tests have. */
static const enum ms_rule other_rules[] = {
	/* No step has the value: an offset, the size or the host address of a slot that stays. */
	MS_RULE_GMEM_OFFSET, MS_RULE_HVA_CHANGE, MS_RULE_SIZE_CHANGE,
	/* Of other calls. */
	MS_RULE_LISTENER_EXISTS, MS_RULE_NO_SUCH_LISTENER, MS_RULE_LAST_LISTENER, MS_RULE_NO_DIRTY_LOG,
	MS_RULE_FIRST_PAGE, MS_RULE_CLEAR_RANGE, MS_RULE_BITMAP_SIZE, MS_RULE_MANUAL_PROTECT, MS_RULE_UPDATE_OWNER,
	MS_RULE_HANDLE, MS_RULE_SETS_DIFFER, MS_RULE_BACKEND, MS_RULE_STRUCT_SIZE, MS_RULE_GUEST_HOLE,
	MS_RULE_GUEST_READONLY, MS_RULE_GUEST_RAW, MS_RULE_GUEST_FAULT, MS_RULE_CACHE_RANGE,
	/* Of every call that takes the lock: test_hooks, test_threads.py, test_vm. */
	MS_RULE_HOOK_BUSY, MS_RULE_FORKED, MS_RULE_INTERRUPTED,
	/* At every allocation: test_faults, test_transaction. */
	MS_RULE_NO_MEMORY
};

static bool is_other(enum ms_rule rule)
{
	for (size_t i = 0; i < ARRAY_SIZE(other_rules); i++)
		if (other_rules[i] == rule)
			return true;
	return false;
}

/* A new rule needs a refusal above, or a place in the list. */
static void check_rules(void)
{
	for (int i = 1; i < MS_RULE_NR; i++)
		if (has_refused[i] == is_other((enum ms_rule)i)) {
			fprintf(stderr, "%s: a test and the list of other rules do not agree\n",
				ms_rule_name((enum ms_rule)i));
			test_fail();
		}
}

/* ---- the order of hooks ---- */

enum call { PREPARE, PREPARE_MANY, ABORT, FLUSH, COMMIT };

static struct {
	enum call call;
	uint32_t listener, id;
} calls[128];
static size_t nr_calls;
static size_t refuse_at; /* the call of prepare or prepare_many that refuses */

static int note(enum call call, const void *opaque, uint32_t id)
{
	CHECK(nr_calls < ARRAY_SIZE(calls));
	calls[nr_calls].call = call;
	calls[nr_calls].listener = (uint32_t)(uintptr_t)opaque;
	calls[nr_calls].id = id;
	return nr_calls++ == refuse_at ? -EPERM : 0;
}

static uint32_t id_of_change(const struct ms_change *change)
{
	return change->kind == MS_DELETE ? change->old_slot.id : change->new_slot.id;
}

static int on_prepare(void *opaque, const struct ms_change *change)
{
	return note(PREPARE, opaque, id_of_change(change));
}

static int on_prepare_many(void *opaque, const struct ms_change *changes, size_t n)
{
	(void)changes;
	return note(PREPARE_MANY, opaque, (uint32_t)n);
}

static void on_abort(void *opaque, const struct ms_change *change)
{
	note(ABORT, opaque, id_of_change(change));
}

static void on_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	CHECK_EQ(active->id, old->id);
	note(FLUSH, opaque, old->id);
}

static void on_commit(void *opaque, const struct ms_change *change)
{
	note(COMMIT, opaque, id_of_change(change));
}

/* The second one prepares lists.  The last one has the size of the first version: the engine must not read behind
 * it. */
#define LISTENERS 3u
static const struct ms_listener listeners[LISTENERS] = {
	{ LISTENER_SIZE, (void *)0, on_prepare, on_abort, on_flush, on_commit, NULL, NULL },
	{ LISTENER_SIZE, (void *)1, on_prepare, on_abort, on_flush, on_commit, on_prepare_many, NULL },
	{ offsetof(struct ms_listener, prepare_many), (void *)2, on_prepare, on_abort, on_flush, on_commit,
	  on_prepare_many, NULL },
};

#define LISTED 4u
/* A DELETE, a CREATE of the same id, a MOVE and a change of flags. */
static const uint32_t listed[LISTED] = { 1, 1, 2, 4 };

static int change_some(struct ms_error *err)
{
	struct ms_step steps[] = { delete(1), create(1, GFN(2), LOG), move(2, GFN(1) * PAGE), flags(4, LOG) };

	return ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), err);
}

static size_t expect(size_t at, enum call call, uint32_t listener, uint32_t id)
{
	CHECK(at < nr_calls);
	CHECK_EQ(calls[at].call, call);
	CHECK_EQ(calls[at].listener, listener);
	CHECK_EQ(calls[at].id, id);
	return at + 1;
}

static size_t prepares_of(uint32_t listener)
{
	return listener == 1 ? 1 : LISTED;
}

/* The calls of prepare up to number `n`, where all of them would be 2 LISTED + 1. */
static size_t expect_prepares(size_t n)
{
	size_t at = 0;

	for (uint32_t i = 0; i < LISTENERS; i++)
		for (size_t k = 0; k < prepares_of(i) && at < n; k++)
			at = i == 1 ? expect(at, PREPARE_MANY, i, LISTED) : expect(at, PREPARE, i, listed[k]);
	return at;
}

/* After `n` calls of prepare, of which the last one refused. */
static void expect_aborts(size_t n)
{
	size_t at = expect_prepares(n), first[LISTENERS] = { 0, LISTED, LISTED + 1 };

	for (uint32_t i = LISTENERS; i-- > 0;) {
		size_t done = n - 1 < first[i] ? 0 : n - 1 - first[i];
		size_t changes = done >= prepares_of(i) ? LISTED : i == 1 ? 0 : done;

		for (size_t k = changes; k-- > 0;)
			at = expect(at, ABORT, i, listed[k]);
	}
	CHECK_EQ(at, nr_calls);
}

static void expect_all(void)
{
	size_t at = expect_prepares(SIZE_MAX);

	for (uint32_t i = 0; i < LISTENERS; i++) {
		at = expect(at, FLUSH, i, 1);
		at = expect(at, FLUSH, i, 2);
	}
	for (uint32_t i = 0; i < LISTENERS; i++)
		for (size_t k = 0; k < LISTED; k++)
			at = expect(at, COMMIT, i, listed[k]);
	CHECK_EQ(at, nr_calls);
}

static uint32_t index_of_refusal(size_t n)
{
	return n < LISTED ? (uint32_t)n : n == LISTED ? LISTED : (uint32_t)n - LISTED - 1;
}

static void refuse_hook(size_t n)
{
	struct picture before = picture_of(vm);
	struct ms_stats held = held_by(vm);
	struct ms_error err;

	nr_calls = 0;
	refuse_at = n;
	CHECK_EQ(change_some(&err), -EPERM);
	CHECK_EQ(err.rule, MS_RULE_LISTENER_REFUSED);
	note_refusal(err.rule);
	CHECK_EQ(err.index, index_of_refusal(n));
	expect_aborts(n + 1);
	check_only_refused(vm, &before, &held);
	orders++;
}

static void test_order(void)
{
	begin();
	ms_generation(vm, 0);
	for (uint32_t i = 0; i < LISTENERS; i++)
		CHECK_EQ(ms_add_listener(vm, &listeners[i], NULL), 0);
	for (size_t n = 0; n < 2 * LISTED + 1; n++)
		refuse_hook(n);
	nr_calls = 0;
	refuse_at = SIZE_MAX;
	CHECK_EQ(change_some(NULL), 0);
	expect_all();
	orders++;
	end();
}

/* A single change reaches prepare_many as a list of one, and its refusal names change 0. */
static void test_single(void)
{
	struct ms_error err = { .index = 7 };
	region_t r = region(0, 10, 0xC00, 1, 0);

	begin();
	CHECK_EQ(ms_add_listener(vm, &listeners[1], NULL), 0);
	nr_calls = refuse_at = 0;
	CHECK_EQ(ms_set_user_memory_region(vm, &r, &err), -EPERM);
	CHECK_EQ(err.index, 0);
	CHECK_EQ(expect(0, PREPARE_MANY, 1, 1), nr_calls);
	refuse_at = SIZE_MAX;
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	CHECK_EQ(expect(2, COMMIT, 1, 10), nr_calls);
	orders++;
	end();
}

/* Of two steps that change only flags, a refusal names the last one. */
static void test_flags_twice(void)
{
	struct ms_step steps[] = { flags(4, LOG), flags(1, LOG), flags(4, LOG) };
	struct ms_error err;

	begin();
	CHECK_EQ(ms_add_listener(vm, &listeners[0], NULL), 0);
	nr_calls = refuse_at = 0;
	CHECK_EQ(ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), &err), -EPERM);
	CHECK_EQ(expect(0, PREPARE, 0, 4), nr_calls);
	CHECK_EQ(err.index, 2);
	orders++;
	end();
}

/* ---- pages of two slots ---- */

static uint64_t log_of(uint32_t id)
{
	uint64_t word;

	CHECK_EQ(ms_get_dirty_log(vm, 0, id, &word, 1, NULL, NULL), 0);
	return word;
}

/* Slot 2 has all its pages in the end, so it keeps its log.  Slot 10 has the upper ones too, and takes their bits. */
static void test_pages_of_two_slots(bool moves)
{
	struct ms_step steps[] = { split(2, (GFN(2) + 8) * PAGE, 10), resize(2, NPAGES * PAGE), move(10, 0xC00 * PAGE),
				   move(2, 0xD00 * PAGE) };

	begin();
	ms_mark_page_dirty(vm, 0, GFN(2) + 12);
	CHECK_EQ(ms_change_memslots(vm, 0, steps, moves ? 4 : 3, NULL), 0);
	CHECK_EQ(log_of(2), 1 << 3 | 1 << 12);
	CHECK_EQ(log_of(10), 1 << (12 - 8));
	end();
}

/* Slot 1 joins the upper part of slot 6, whose memory is that of the pages from 8 on of slot 1, and loses it again.  So
 * it keeps its log and its bits, and takes those of slot 6. */
static void test_bits_of_an_alias(uint64_t protect)
{
	struct ms_step steps[] = { punch(GFN(6) * PAGE, 8 * PAGE, MS_SLOT_ANY), move(6, (GFN(1) + NPAGES) * PAGE),
				   merge(1, 6), resize(1, NPAGES * PAGE), move(1, 0xD00 * PAGE) };
	region_t r = region(0, 6, GFN(6), NPAGES, LOG);

	vm = new_vm(1);
	CHECK_EQ(set(vm, 0, 1, GFN(1), NPAGES, LOG), 0);
	r.userspace_addr = hva_for(0, 1) + 8 * PAGE;
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	ms_mark_page_dirty(vm, 0, GFN(1) + 10);
	ms_mark_page_dirty(vm, 0, GFN(6) + 4);
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, protect, NULL), 0);
	CHECK_EQ(ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), NULL), 0);
	CHECK_EQ(log_of(1), 1 << 10 | 1 << 12);
	end();
}

/* ---- no memory ---- */

/* The list of items is full when the hole has so many slots, so the first cut needs memory. */
#define IN_HOLE 8u

static void fill_hole(void)
{
	vm = new_vm(1);
	for (uint32_t id = 0; id < IN_HOLE; id++)
		CHECK_EQ(set(vm, 0, id, 16 * id, 16, LOG), 0);
	ms_generation(vm, 0);
}

static bool punch_without_memory(uint64_t nth)
{
	struct ms_step step = punch(8 * PAGE, (16 * IN_HOLE - 16) * PAGE, MS_SLOT_ANY);
	struct picture before = picture_of(vm);
	uint64_t attempts;
	int r;

	memory_fail(&vm->memory, nth, false);
	r = ms_change_memslots(vm, 0, &step, 1, NULL);
	attempts = atomic_load(&vm->memory.attempts);
	memory_fail(&vm->memory, 0, false);
	if (r) {
		struct picture after = picture_of(vm);

		CHECK_EQ(r, -ENOMEM);
		CHECK(same_picture(&before, &after));
		return false;
	}
	CHECK(attempts < nth); /* none has failed */
	return true;
}

static void test_hole_without_memory(void)
{
	uint64_t nth = 1;

	fill_hole();
	while (!punch_without_memory(nth))
		nth++;
	CHECK(nth > 4);
	end();
}

/* The last step adds the items that fill the list, so a sanitizer sees a read behind them. */
static void test_full_list(void)
{
	struct ms_step steps[IN_HOLE - 1];

	fill_hole();
	for (uint32_t id = 0; id < IN_HOLE - 2; id++)
		steps[id] = flags(id, 0);
	steps[IN_HOLE - 2] = split(IN_HOLE - 2, (16 * (IN_HOLE - 2) + 1) * PAGE, MS_SLOT_ANY);
	CHECK_EQ(ms_change_memslots(vm, 0, steps, IN_HOLE - 1, NULL), 0);
	CHECK_EQ(ms_nr_memslots(vm), IN_HOLE + 1);
	end();
}

/* ---- many steps at once ---- */

/* Each of n slots takes the place of the next one, with one swap. */
static void test_rotation(uint32_t n)
{
	struct ms_config config = default_config(1);
	struct ms_step *steps = calloc(n, sizeof(*steps));
	struct ms_memslot slot;
	uint64_t swaps;

	CHECK(steps);
	config.user_mem_slots = n;
	vm = vm_with(&config);
	for (uint32_t id = 0; id < n; id++) {
		CHECK_EQ(set(vm, 0, id, 16 * id, 16, LOG), 0);
		ms_mark_page_dirty(vm, 0, 16 * id + id % 16);
		steps[id] = move(id, (uint64_t)16 * ((id + 1) % n) * PAGE);
	}
	swaps = stats_of(vm).swaps;
	CHECK_EQ(ms_change_memslots(vm, 0, steps, n, NULL), 0);
	CHECK_EQ(stats_of(vm).swaps, swaps + 1);
	CHECK_EQ(stats_of(vm).moves, n);
	CHECK_EQ(stats_of(vm).refused, 0);
	for (uint32_t id = 0; id < n; id++) {
		uint64_t word;

		CHECK_EQ(ms_gfn_to_memslot(vm, 0, 16 * ((id + 1) % n), &slot), 0);
		CHECK(slot.id == id && slot.userspace_addr == hva_for(0, id));
		CHECK_EQ(ms_get_dirty_log(vm, 0, id, &word, 1, NULL, NULL), 0);
		CHECK_EQ(word, (uint64_t)1 << id % 16);
	}
	free(steps);
	end();
}

/* Its roll-back has nothing to do with the list before it. */
static void refuse_single_change(void)
{
	struct picture before = picture_of(vm);
	struct ms_stats held = held_by(vm);

	nr_calls = refuse_at = 0;
	CHECK_EQ(set(vm, 0, 1, GFN(1), NPAGES, LOG), -EPERM);
	check_only_refused(vm, &before, &held);
	refuse_at = SIZE_MAX;
}

/* A hook refuses a list that moves two slots in a circle: every lookup finds the former slots. */
static void test_refused_rotation(void)
{
	struct ms_step steps[] = { move(4, GFN(5) * PAGE), move(5, GFN(4) * PAGE) };
	struct picture before;
	struct ms_stats held;

	begin();
	CHECK_EQ(ms_add_listener(vm, &listeners[0], NULL), 0);
	ms_generation(vm, 0);
	before = picture_of(vm);
	for (size_t n = 0; n < ARRAY_SIZE(steps); n++) {
		held = held_by(vm);
		nr_calls = 0;
		refuse_at = n;
		CHECK_EQ(ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), NULL), -EPERM);
		check_only_refused(vm, &before, &held);
	}
	refuse_at = SIZE_MAX;
	CHECK_EQ(ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), NULL), 0);
	refuse_single_change();
	end();
}

/* ---- the trees keep their shape ---- */

#define SHAPED 60u

static uint64_t shape(const struct rb_node *node)
{
	if (!node)
		return 1;
	return (5 * shape(node->child[0]) + 3 * shape(node->child[1])) ^ (node->parent_color & RB_BLACK) << 40;
}

static uint64_t shape_by_gfn(size_t i)
{
	return shape(vm->as[0].set[i].gfn_tree.node);
}

static uint64_t shape_by_hva(size_t i)
{
	return shape(vm->as[0].set[i].hva_tree.root.node);
}

/* One of the changes that find the new place of a slot without a walk from the root. */
static void change_in_place(uint32_t kind)
{
	static const uint32_t ids[WRITER_FEW] = { 3, 50, 27, 14 };
	struct ms_step steps[WRITER_FEW];

	for (uint32_t i = 0; i < kind; i++)
		steps[i] = move(ids[i], 16 * ids[(i + 1) % kind] * PAGE);
	if (kind < 2)
		CHECK_EQ(set(vm, 0, 9, 16 * (kind ? SHAPED : 9), 16, kind ? 0 : LOG), 0);
	else
		CHECK_EQ(ms_change_memslots(vm, 0, steps, kind, NULL), 0);
}

/* 0: other flags; 1: a MOVE, which changes the tree by gfn; 2 and more: so many slots that move in a circle. */
static void test_shapes(uint32_t kind)
{
	uint64_t by_gfn[2], by_hva[2];

	vm = new_vm(1);
	for (uint32_t id = 0; id < SHAPED; id++)
		CHECK_EQ(set(vm, 0, id, 16 * id, 16, 0), 0);
	for (size_t i = 0; i < 2; i++) {
		by_gfn[i] = shape_by_gfn(i);
		by_hva[i] = shape_by_hva(i);
	}
	change_in_place(kind);
	for (size_t i = 0; i < 2; i++) {
		CHECK(kind == 1 || shape_by_gfn(i) == by_gfn[i]);
		CHECK_EQ(shape_by_hva(i), by_hva[i]);
	}
	end();
}

/* The second of two slots that move to the place of a third one is in the way of the first. */
static void test_two_to_one_place(void)
{
	struct ms_step steps[] = { move(1, GFN(2) * PAGE), move(4, GFN(1) * PAGE), move(2, GFN(1) * PAGE) };
	struct picture before;
	struct ms_stats held;
	struct ms_error err;

	begin();
	ms_generation(vm, 0);
	before = picture_of(vm);
	held = held_by(vm);
	CHECK_EQ(ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), &err), -EEXIST);
	CHECK_EQ(err.rule, MS_RULE_OVERLAP);
	CHECK_EQ(err.index, 2);
	CHECK_EQ(err.other.id, 4);
	check_only_refused(vm, &before, &held);
	end();
}

int main(int argc, char **argv)
{
	void *start = (void *)(uintptr_t)hva_for(0, 4);

	test_init(argc, argv, 60);
	CHECK_EQ(ms_backing_create(start, 2 * NPAGES * PAGE, 0, NULL, NULL, &backing), 0);
	CHECK_EQ(ms_backing_create(start, 2 * NPAGES * PAGE, MS_BACKING_READONLY, NULL, NULL, &readonly_backing), 0);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		test_refusals();
		test_order();
		test_single();
		test_flags_twice();
		test_merge_of_large_slots();
		test_hole_below_internal_slot();
		test_pages_of_two_slots(false);
		test_pages_of_two_slots(true);
		test_bits_of_an_alias(0);
		test_bits_of_an_alias(MS_DIRTY_LOG_MANUAL_PROTECT_ENABLE | MS_DIRTY_LOG_INITIALLY_SET);
		test_hole_without_memory();
		test_full_list();
		for (uint32_t n = 2; n < 6; n++)
			test_rotation(n);
		test_refused_rotation();
		test_two_to_one_place();
		test_rotation(design_walks() ? 50 : 1000);
	}
	design_name = "tree";
	for (uint32_t kind = 0; kind <= WRITER_FEW; kind++)
		test_shapes(kind);
	check_rules();
	ms_backing_put(backing);
	ms_backing_put(readonly_backing);
	printf("change lists: %" PRIu64 " refusals\n", refusals);
	return test_done("change lists", orders, "orders of hooks");
}
