/* SPDX-License-Identifier: MIT */
/*
 * test_hva_cache.c - KVM's gfn_to_hva_cache: its states, its errors, and changes of the slots between two accesses.
 */
#include "guest.h"

#define GPA(page, offset) ((uint64_t)(page) * PAGE + (uint64_t)(offset))

static struct ms_vm *vm;
static uint64_t accesses;

static int init(struct ms_gfn_to_hva_cache *cache, uint64_t gpa, uint64_t len, struct ms_error *err)
{
	return ms_gfn_to_hva_cache_init(vm, 0, cache, gpa, len, err);
}

/* Pages 16 to 19 are slot 1, logged; 20 and 21 are slot 2; 22 is slot 3, READONLY; 23 is a hole; 24 is slot 4, raw. */
static struct guest *g1, *g2, *g3;

static void open_layout(void)
{
	vm = new_vm(1);
	g1 = guest_slot(vm, 1, 16, 4, LOG);
	g2 = guest_slot(vm, 2, 20, 2, 0);
	g3 = guest_slot(vm, 3, 22, 1, READONLY);
	CHECK_EQ(set(vm, 0, 4, 24, 1, 0), 0);
}

static void check_access(struct ms_gfn_to_hva_cache *cache, const struct guest *g, size_t at, uint64_t offset, size_t n)
{
	unsigned char out[3 * PAGE], data[3 * PAGE];

	CHECK_EQ(ms_read_guest_cached(vm, cache, offset, out, n, NULL), 0);
	CHECK(!memcmp(out, g->at + at + offset, n));
	for (size_t i = 0; i < n; i++)
		data[i] = (unsigned char)(accesses + i);
	CHECK_EQ(ms_write_guest_cached(vm, cache, offset, data, n, NULL), 0);
	CHECK(!memcmp(g->at + at + offset, data, n));
	accesses += 2;
}

static void test_one_page(void)
{
	struct ms_gfn_to_hva_cache cache;
	struct ms_error err;
	char out[64];

	CHECK_EQ(init(&cache, GPA(17, 100), 64, NULL), 0);
	CHECK(cache.slot && cache.hva == (uintptr_t)g1->at + PAGE + 100);
	check_access(&cache, g1, PAGE + 100, 0, 64);
	check_access(&cache, g1, PAGE + 100, 60, 4);
	check_access(&cache, g1, PAGE + 100, 64, 0);
	CHECK_EQ(guest_dirty(vm, 1), 2);
	for (int write = 0; write < 2; write++)
		for (uint64_t offset = 61; offset < 70; offset++) {
			int r = write ? ms_write_guest_cached(vm, &cache, offset, out, 4, &err) :
					ms_read_guest_cached(vm, &cache, offset, out, 4, &err);

			CHECK_EQ(r, -EINVAL);
			CHECK_EQ(err.rule, MS_RULE_CACHE_RANGE);
			CHECK_EQ(err.limit, 64);
		}
	CHECK_EQ(ms_read_guest_cached(vm, &cache, ~(uint64_t)0, out, 2, NULL), -EINVAL); /* offset + n wraps */
	CHECK_EQ(ms_read_guest_cached(vm, &cache, 0, NULL, 2, &err), -EFAULT);
	CHECK_EQ(err.rule, MS_RULE_NULL_BUFFER);
	CHECK_EQ(guest_dirty(vm, 1), 0);
}

static void test_several_pages(void)
{
	struct ms_gfn_to_hva_cache cache;

	CHECK_EQ(init(&cache, GPA(17, 4000), 200, NULL), 0);
	CHECK(!cache.slot); /* also inside one slot */
	check_access(&cache, g1, PAGE + 4000, 0, 200);
	CHECK_EQ(guest_dirty(vm, 1), 6);
	CHECK_EQ(init(&cache, GPA(19, 8), PAGE, NULL), 0); /* two slots */
	CHECK(!cache.slot);
	check_access(&cache, g1, 3 * PAGE + 8, 0, PAGE - 8);
	CHECK_EQ(init(&cache, GPA(17, 0), PAGE, NULL), 0);
	CHECK(cache.slot);
}

static void test_refused_init(void)
{
	struct ms_gfn_to_hva_cache cache;
	struct ms_error err;
	char out[8];

	CHECK_EQ(init(&cache, GPA(17, 0), 8, NULL), 0);
	CHECK_EQ(init(&cache, GPA(17, 0), 0, &err), -EINVAL);
	CHECK_EQ(err.rule, MS_RULE_CACHE_RANGE);
	CHECK(cache.hva == MS_HVA_ERR_BAD && cache.gpa == GPA(17, 0) && !cache.len && !cache.slot);
	CHECK_EQ(ms_read_guest_cached(vm, &cache, 0, out, 8, NULL), -EINVAL);
	CHECK_EQ(ms_read_guest_cached(vm, &cache, 0, out, 0, NULL), -EFAULT);
	CHECK_EQ(init(&cache, 0, 0, &err), -EINVAL); /* also where gpa + len - 1 is the last byte of all */
	CHECK_EQ(err.rule, MS_RULE_CACHE_RANGE);
	CHECK_EQ(init(&cache, GPA(17, 3), 0, NULL), 0); /* no byte, but one page */
	CHECK_EQ(init(&cache, ~(uint64_t)0 - 9, 100, &err), -EINVAL);
	CHECK_EQ(init(&cache, GPA(23, 0), 8, &err), -EFAULT);
	CHECK_EQ(err.rule, MS_RULE_GUEST_HOLE);
	CHECK(cache.hva == MS_HVA_ERR_BAD && !cache.slot && cache.gpa == GPA(23, 0) && cache.len == 8);
	CHECK_EQ(init(&cache, GPA(21, 0), 2 * PAGE, &err), -EFAULT); /* its second page is READONLY */
	CHECK_EQ(err.rule, MS_RULE_GUEST_READONLY);
	CHECK_EQ(cache.hva, MS_HVA_ERR_RO_BAD);
	CHECK_EQ(ms_gfn_to_hva_cache_init(vm, 1, &cache, GPA(17, 0), 8, &err), -EINVAL);
	CHECK_EQ(err.rule, MS_RULE_AS_ID);
}

/* The end of the range wraps, but its page does not come before the first one. */
static void test_wrapping_length(void)
{
	struct ms_gfn_to_hva_cache cache;
	struct ms_error err;
	char out[8], outside[8] = "outside";
	uint64_t offset = (uint64_t)(uintptr_t)outside - (uint64_t)(uintptr_t)g1->at - 2048;

	for (uint64_t less = 1; less <= 1024; less *= 2) {
		CHECK_EQ(init(&cache, GPA(16, 2048), -less, &err), -EINVAL);
		CHECK_EQ(err.rule, MS_RULE_CACHE_RANGE);
		CHECK(ms_read_guest_cached(vm, &cache, offset, out, 8, NULL) < 0);
		CHECK(ms_write_guest_cached(vm, &cache, offset, "changed", 8, NULL) < 0);
		CHECK(!memcmp(outside, "outside", 8));
	}
}

/* The first init of a cache fails: no member stays as it was. */
static void test_uninitialised(uint32_t as_id, uint64_t gpa, uint64_t len)
{
	struct ms_gfn_to_hva_cache cache;
	char out[8];

	memset(&cache, 0xFE, sizeof(cache));
	CHECK(ms_gfn_to_hva_cache_init(vm, as_id, &cache, gpa, len, NULL) < 0);
	for (int changes = 0; changes < 2; changes++) {
		CHECK(ms_read_guest_cached(vm, &cache, 0, out, 8, NULL) < 0);
		CHECK(ms_write_guest_cached(vm, &cache, 0, out, 8, NULL) < 0);
		CHECK(ms_read_guest_cached(vm, &cache, 0, out, 0, NULL) <= 0);
		CHECK_EQ(ms_move_memslot(vm, 0, 4, GPA(30 - 6 * changes, 0), NULL), 0);
	}
}

/* The slot of the former init is freed before the next one fails. */
static void test_slot_of_a_former_init(void)
{
	const uint64_t lens[] = { 0, -(uint64_t)64, 8 };
	char out[8];

	for (size_t i = 0; i < ARRAY_SIZE(lens); i++) {
		struct ms_gfn_to_hva_cache cache;
		struct ms_error err = { .rule = MS_RULE_NONE };

		guest_slot(vm, 9, 60, 1, 0);
		CHECK_EQ(init(&cache, GPA(60, 0), 8, NULL), 0);
		CHECK_EQ(ms_delete_memslot(vm, 0, 9, NULL), 0);
		CHECK(init(&cache, GPA(60, 0), lens[i], NULL) < 0);
		CHECK(!cache.slot);
		CHECK(ms_read_guest_cached(vm, &cache, 0, out, 8, &err) < 0);
		CHECK_EQ(err.other.npages, 0);
	}
}

/* A failed init of another range: after a change the cache has this range, not the former one. */
static void test_range_of_a_failed_init(void)
{
	struct ms_gfn_to_hva_cache cache;

	CHECK_EQ(init(&cache, GPA(17, 0), 8, NULL), 0);
	CHECK_EQ(init(&cache, GPA(60, 16), 32, NULL), -EFAULT);
	struct guest *g = guest_slot(vm, 9, 60, 1, 0);
	check_access(&cache, g, 16, 8, 24);
	CHECK_EQ(ms_delete_memslot(vm, 0, 9, NULL), 0);
}

/* As in KVM the address is one for writing, so reads from a READONLY slot fail.  A raw slot has an address. */
static void test_readonly_and_raw(void)
{
	struct ms_gfn_to_hva_cache cache;
	struct ms_error err;
	char out[8];

	CHECK_EQ(init(&cache, GPA(21, 0), 8, NULL), 0);
	CHECK_EQ(init(&cache, GPA(22, 0), 8, &err), -EFAULT);
	CHECK_EQ(ms_read_guest_cached(vm, &cache, 0, out, 8, &err), -EFAULT);
	CHECK_EQ(err.rule, MS_RULE_GUEST_READONLY);
	CHECK_EQ(init(&cache, GPA(24, 16), 8, NULL), 0);
	check_refused(ms_read_guest_cached(vm, &cache, 4, out, 4, &err), &err, MS_RULE_GUEST_RAW, GPA(24, 20), 0);
}

static void test_changes(void)
{
	struct ms_gfn_to_hva_cache cache;
	struct ms_error err;
	char out[8];

	CHECK_EQ(init(&cache, GPA(20, 40), 8, NULL), 0);
	CHECK_EQ(ms_delete_memslot(vm, 0, 2, NULL), 0);
	check_refused(ms_read_guest_cached(vm, &cache, 0, out, 8, &err), &err, MS_RULE_GUEST_HOLE, GPA(20, 40), 0);
	CHECK_EQ(ms_read_guest_cached(vm, &cache, 0, out, 8, NULL), -EFAULT); /* fast, with the same generation */
	g2 = guest_slot(vm, 7, 19 + 1, 3, LOG | 0);
	check_access(&cache, g2, 40, 0, 8);
	CHECK_EQ(guest_dirty(vm, 7), 1);
	CHECK_EQ(ms_move_memslot(vm, 0, 7, GPA(100, 0), NULL), 0);
	CHECK_EQ(ms_write_guest_cached(vm, &cache, 0, out, 8, NULL), -EFAULT);
	CHECK_EQ(ms_move_memslot(vm, 0, 7, GPA(20, 0), NULL), 0);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 7, 0, LOG, NULL), 0);
	check_access(&cache, g2, 40, 4, 4);
	CHECK_EQ(ftruncate(g2->fd, 0), 0);
	check_refused(ms_read_guest_cached(vm, &cache, 4, out, 4, &err), &err, MS_RULE_GUEST_FAULT, GPA(20, 44), 0);
	check_refused(ms_write_guest_cached(vm, &cache, 4, out, 4, &err), &err, MS_RULE_GUEST_FAULT, GPA(20, 44), 0);
}

static unsigned flushes;

/* The generation is in flight: it is stored, and dropped after the change. */
static void access_in_flight(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	struct ms_gfn_to_hva_cache *cache = opaque;
	char out[8];

	(void)active;
	(void)old;
	CHECK_EQ(ms_read_guest_cached(vm, cache, 0, out, 8, NULL), -EFAULT);
	flushes++;
}

static void test_in_flight(void)
{
	struct ms_gfn_to_hva_cache cache;
	struct ms_listener listener = { .size = sizeof(listener), .opaque = &cache, .flush = access_in_flight };

	flushes = 0;
	CHECK_EQ(init(&cache, GPA(17, 0), 8, NULL), 0);
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	CHECK_EQ(ms_move_memslot(vm, 0, 1, GPA(200, 0), NULL), 0);
	CHECK_EQ(ms_move_memslot(vm, 0, 1, GPA(16, 0), NULL), 0);
	CHECK_EQ(flushes, 2);
	check_access(&cache, g1, PAGE, 0, 8);
	CHECK_EQ(ms_remove_listener(vm, &listener, NULL), 0);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		open_layout();
		test_one_page();
		test_several_pages();
		test_refused_init();
		test_wrapping_length();
		test_uninitialised(9, GPA(17, 0), 8);
		test_uninitialised(0, GPA(17, 0), 0);
		test_uninitialised(0, GPA(17, 0), -(uint64_t)64);
		test_uninitialised(0, GPA(23, 0), 8);
		test_slot_of_a_former_init();
		test_range_of_a_failed_init();
		test_readonly_and_raw();
		test_in_flight();
		CHECK_EQ(ms_delete_memslot(vm, 0, 3, NULL), 0);
		test_changes();
		check_sound(vm);
		end_vm(vm);
	}
	return test_done("hva cache", accesses, "accesses");
}
