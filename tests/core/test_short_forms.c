/* SPDX-License-Identifier: MIT */
/*
 * test_short_forms.c - the short forms of KVM_SET_USER_MEMORY_REGION, and the lowest free id.
 *
 * A short form and the whole request, made in two VMs, give the same result and the same slots.
 */
#include "fixture.h"

#include "backing.h"

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define READONLY MS_MEM_READONLY
#define IDS 40u

static uint64_t requests;

static struct ms_vm *vm, *twin;

static bool same_error(const struct ms_error *a, const struct ms_error *b)
{
	return a->rule == b->rule && a->limit == b->limit && same_slot(&a->other, &b->other);
}

/* The request that ms_move_memslot() and ms_set_memslot_flags() make of the present slot. */
static region_t present(uint32_t as_id, uint32_t id)
{
	struct ms_memslot slot = { .as_id = as_id, .id = id };
	bool exists = !ms_id_to_memslot(twin, as_id, id, &slot);

	return (region_t){
		.slot = id,
		.as_id = as_id,
		.flags = slot.flags,
		.guest_memfd = -1,
		.guest_phys_addr = slot.base_gfn * PAGE,
		.memory_size = exists ? slot.npages * PAGE : 0, /* a delete: refused too */
		.userspace_addr = slot.userspace_addr,
	};
}

static void check_same(int r, const struct ms_error *err, const region_t *whole)
{
	struct ms_error other = { 0 };
	struct picture a, b;

	CHECK_EQ(r, ms_set_user_memory_region(twin, whole, &other));
	if (r)
		CHECK(same_error(err, &other));
	a = picture_of(vm);
	b = picture_of(twin);
	CHECK(same_picture(&a, &b));
	requests++;
}

static void delete_both(uint32_t as_id, uint32_t id)
{
	region_t whole = { .slot = id, .as_id = as_id, .guest_memfd = -1 };
	struct ms_error err = { 0 };

	check_same(ms_delete_memslot(vm, as_id, id, &err), &err, &whole);
}

static void move_both(uint32_t as_id, uint32_t id, uint64_t gpa)
{
	region_t whole = present(as_id, id);
	struct ms_error err = { 0 };

	if (whole.memory_size)
		whole.guest_phys_addr = gpa;
	check_same(ms_move_memslot(vm, as_id, id, gpa, &err), &err, &whole);
}

static void set_both(uint32_t as_id, uint32_t id, uint32_t flags_on, uint32_t flags_off)
{
	region_t whole = present(as_id, id);
	struct ms_error err = { 0 };

	if (whole.memory_size)
		whole.flags = (whole.flags & ~flags_off) | flags_on;
	check_same(ms_set_memslot_flags(vm, as_id, id, flags_on, flags_off, &err), &err, &whole);
}

static void create_both(uint32_t as_id, uint32_t id, uint64_t gfn, uint32_t flags)
{
	CHECK_EQ(set(vm, as_id, id, gfn, 16, flags), set(twin, as_id, id, gfn, 16, flags));
}

static void make_both(void)
{
	struct ms_config config = default_config(2);

	config.user_mem_slots = IDS;
	vm = vm_with(&config);
	twin = vm_with(&config);
	create_both(0, 1, 0x100, 0);
	create_both(0, 2, 0x200, LOG);
	create_both(0, 3, 0x300, READONLY);
	create_both(1, 1, 0x100, 0);
}

static void end_both(void)
{
	check_sound(vm);
	CHECK_EQ(stats_of(vm).refused, stats_of(twin).refused);
	CHECK_EQ(stats_of(vm).noops, stats_of(twin).noops);
	end_vm(vm);
	end_vm(twin);
}

static void test_each(void)
{
	make_both();
	move_both(0, 1, 0x800 * PAGE);
	move_both(0, 1, 0x800 * PAGE); /* no change */
	move_both(0, 2, 0x800 * PAGE + 1);
	move_both(0, 2, 0x80f * PAGE); /* overlaps */
	move_both(0, 2, (uint64_t)1 << 52);
	move_both(0, 2, 0 - PAGE);
	move_both(1, 1, 0x800 * PAGE);
	move_both(0, 9, 0x900 * PAGE);
	set_both(0, 1, LOG, 0);
	set_both(0, 1, LOG, LOG); /* the flag stays */
	set_both(0, 1, 0, LOG);
	set_both(0, 1, READONLY, 0);
	set_both(0, 3, 0, READONLY);
	set_both(0, 3, LOG, ~READONLY);
	set_both(0, 1, 8, 0);
	set_both(0, 1, MS_MEM_GUEST_MEMFD, 0);
	set_both(0, 9, LOG, 0);
	delete_both(0, 9);
	delete_both(0, IDS);
	delete_both(2, 1);
	delete_both(0, 1);
	delete_both(0, 1);
	delete_both(1, 1);
	end_both();
}

static void check_refused(int r, const struct ms_error *err, int code, enum ms_rule rule)
{
	CHECK_EQ(r, code);
	CHECK_EQ(err->rule, rule);
}

/* Here the whole request has no counterpart. */
static void test_no_slot(void)
{
	struct ms_error err;
	uint64_t refused;

	make_both();
	refused = stats_of(vm).refused;
	check_refused(ms_move_memslot(vm, 2, 1, 0, &err), &err, -EINVAL, MS_RULE_AS_ID);
	check_refused(ms_move_memslot(vm, 0, IDS, 0, &err), &err, -EINVAL, MS_RULE_SLOT_ID);
	check_refused(ms_set_memslot_flags(vm, 2, 1, LOG, 0, &err), &err, -EINVAL, MS_RULE_AS_ID);
	check_refused(ms_set_memslot_flags(vm, 0, ~0u, LOG, 0, &err), &err, -EINVAL, MS_RULE_SLOT_ID);
	CHECK_EQ(stats_of(vm).refused, refused + 4);
	for (int i = 0; i < 4; i++) { /* the twin has the same counts */
		CHECK_EQ(ms_delete_memslot(twin, 2, 1, NULL), -EINVAL);
	}
	end_both();
}

/* The short forms do not change internal slots. */
static void test_internal_slots(void)
{
	region_t r = region(0, IDS, 0x900, 4, 0);

	make_both();
	CHECK_EQ(ms_set_internal_memory_region(vm, &r, NULL), 0);
	CHECK_EQ(ms_set_internal_memory_region(twin, &r, NULL), 0);
	delete_both(0, IDS);
	CHECK_EQ(ms_move_memslot(vm, 0, IDS, 0, NULL), -EINVAL);
	CHECK_EQ(ms_move_memslot(twin, 0, IDS, 0, NULL), -EINVAL);
	end_both();
}

/* ---- the lowest free id ---- */

static bool used[IDS];

static uint32_t lowest(void)
{
	uint32_t id = 0;

	while (id < IDS && used[id])
		id++;
	return id;
}

static void check_lowest(void)
{
	uint32_t id = 12345;
	struct ms_error err;
	int r = ms_free_slot_id(vm, 0, &id, &err);

	CHECK_EQ(r, lowest() < IDS ? 0 : -ENOSPC);
	CHECK_EQ(id, lowest() < IDS ? lowest() : 12345);
	CHECK(!r || (err.rule == MS_RULE_NO_FREE_SLOT && err.limit == IDS));
	requests++;
}

static uint64_t gfn_of(uint32_t id)
{
	return 0x100 * (id + 1);
}

static void map_any(struct ms_backing *backing)
{
	region_t r = region(0, 0, gfn_of(lowest()), 1, 0);
	uint32_t want = lowest(), id = 12345;
	struct ms_error err;
	int result;

	r.slot = MS_SLOT_ANY;
	r.userspace_addr = HVA_BASE;
	result = ms_map_backing(vm, &r, backing, &id, &err);
	CHECK_EQ(result, want < IDS ? 0 : -ENOSPC);
	CHECK_EQ(id, want < IDS ? want : 12345);
	if (!result)
		used[id] = true;
}

static void change_one(uint32_t id)
{
	int r = used[id] ? ms_delete_memslot(vm, 0, id, NULL) : set(vm, 0, id, gfn_of(id), 1, 0);

	CHECK_EQ(r, 0);
	used[id] = !used[id];
}

/* Deletes or replaces the slot in an update, which may be rolled back. */
static void update_one(uint32_t id, bool keep)
{
	struct ms_memslot v = { gfn_of(id), 1, hva_for(0, id), id, 0, 0, 0 };
	struct ms_update *u;
	struct ms_slot *old, *draft;

	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	old = ms_update_find(u, true, id);
	CHECK_EQ(old != NULL, used[id]);
	if (old) {
		CHECK_EQ(ms_update_replace(u, old, NULL, NULL), 0);
		CHECK_EQ(ms_update_activate(u, old, NULL, NULL), 0);
	} else {
		CHECK_EQ(ms_update_copy(u, NULL, &v, &draft, NULL), 0);
		CHECK_EQ(ms_update_replace(u, NULL, draft, NULL), 0);
		CHECK_EQ(ms_update_activate(u, NULL, draft, NULL), 0);
	}
	CHECK_EQ(ms_update_end(u, keep, NULL), 0);
	if (keep)
		used[id] = !used[id];
}

static int refuse(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	return -EPERM;
}

static void change_is_refused(uint32_t id)
{
	static const struct ms_listener refuses = { LISTENER_SIZE, .prepare = refuse };

	CHECK_EQ(ms_add_listener(vm, &refuses, NULL), 0);
	CHECK_EQ(used[id] ? ms_delete_memslot(vm, 0, id, NULL) : set(vm, 0, id, gfn_of(id), 1, 0), -EPERM);
	CHECK_EQ(ms_remove_listener(vm, &refuses, NULL), 0);
}

static void load_two(uint32_t id)
{
	struct ms_memslot two[2] = { { gfn_of(id), 1, HVA_BASE, id, 0, 0, 0 },
				     { gfn_of(id + 1), 1, HVA_BASE, id + 1, 0, 0, 0 } };
	bool free = id + 1 < IDS && !used[id] && !used[id + 1];

	CHECK_EQ(ms_load_memslots(vm, 0, two, 2, NULL) == 0, free);
	if (free)
		used[id] = used[id + 1] = true;
}

static void test_lowest(uint64_t steps)
{
	struct ms_config config = default_config(1);
	struct ms_backing *backing;
	struct rng rng = rng_stream(1);

	CHECK_EQ(ms_backing_create((void *)(uintptr_t)HVA_BASE, PAGE, 0, NULL, NULL, &backing), 0);
	memset(used, 0, sizeof(used));
	config.user_mem_slots = IDS;
	vm = vm_with(&config);
	for (uint64_t i = 0; i < steps; i++) {
		uint32_t id = (uint32_t)rng_below(&rng, IDS);
		uint64_t what = rng_below(&rng, 12);

		if (what < 6)
			map_any(backing);
		else if (what < 8)
			change_one(id);
		else if (what < 9)
			change_is_refused(id);
		else if (what < 10)
			load_two(id);
		else if (design_is("tree"))
			update_one(id, what == 11);
		if (i % 3 == 0)
			check_lowest();
		check_sound(vm);
	}
	for (uint32_t id = 0; id < IDS; id++)
		map_any(backing);
	check_lowest();
	end_vm(vm);
	ms_backing_put(backing);
}

static void test_lowest_refused(void)
{
	struct ms_error err;
	uint32_t id;

	make_both();
	check_refused(ms_free_slot_id(vm, 2, &id, &err), &err, -EINVAL, MS_RULE_AS_ID);
	CHECK_EQ(ms_free_slot_id(vm, 1, &id, NULL), 0);
	CHECK_EQ(id, 0);
	end_both();
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		test_each();
		test_no_slot();
		test_internal_slots();
		test_lowest(test_times(20000));
		test_lowest_refused();
	}
	return test_done("short forms", requests, "requests");
}
