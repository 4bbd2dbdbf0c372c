/* SPDX-License-Identifier: MIT */
/*
 * test_guest_many.c - many values of guest memory in one call, against single calls.
 *
 * The lengths lie around every boundary of the implementation: chunks, sections, the poll function.  The sets have raw
 * slots or none, logged slots or none, an index or none.
 */
#include "guest.h"

#define FIRST 0x100u
#define SLOT_PAGES 4u
#define SLOTS 24u
#define GPA(offset) (FIRST * PAGE + (uint64_t)(offset))
#define BYTES (SLOTS * SLOT_PAGES * PAGE)

static struct ms_vm *vm;
static uint64_t values;

enum kind { PLAIN, LOGGED, WITH_RAW, KINDS };

/* The address of a raw slot is one of memory, so that a use of it does not fail by itself. */
static void raw_slot(uint32_t id, uint64_t gfn)
{
	static _Alignas(4096) unsigned char memory[SLOT_PAGES * PAGE];
	region_t r = region(0, id, gfn, SLOT_PAGES, 0);

	r.userspace_addr = (uint64_t)(uintptr_t)memory;
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
}

/* Slot 5 is READONLY and slot 9 is missing; with WITH_RAW, slot 7 is raw; with LOGGED, each third slot is logged. */
static void open_layout(enum kind kind, enum ms_index_policy policy)
{
	vm = new_vm(1);
	CHECK_EQ(ms_set_index_policy(vm, policy), 0);
	for (uint32_t id = 0; id < SLOTS; id++) {
		uint64_t gfn = FIRST + id * SLOT_PAGES;

		if (id == 7 && kind == WITH_RAW)
			raw_slot(id, gfn);
		else if (id != 9)
			guest_slot(vm, id, gfn, SLOT_PAGES, id == 5 ? READONLY : id % 3 || kind != LOGGED ? 0 : LOG);
	}
}

#define MOST (3 * MS_BATCH_PIECE + 9)

static uint64_t gpas[MOST], got[2 * MOST], want[MOST];

static struct ms_batch batch_of(size_t n)
{
	return (struct ms_batch){ gpas, sizeof(*gpas), got, sizeof(*got), n, NULL, NULL };
}

/* A gpa in one of the slots that can be read and written. */
static uint64_t good_gpa(struct rng *rng, bool aligned)
{
	uint64_t slot = rng_below(rng, SLOTS), at = rng_below(rng, SLOT_PAGES * PAGE - 7);

	while (slot == 5 || slot == 7 || slot == 9)
		slot = rng_below(rng, SLOTS);
	return GPA(slot * SLOT_PAGES * PAGE + (aligned ? at & ~(uint64_t)7 : at));
}

static void choose(struct rng *rng, size_t n, bool aligned)
{
	for (size_t i = 0; i < n; i++) {
		gpas[i] = good_gpa(rng, aligned);
		CHECK_EQ(ms_read_guest_u64(vm, 0, gpas[i], &want[i], NULL), 0);
	}
	memset(got, 0xEE, sizeof(got));
}

/* ---- reads ---- */

static void check_read(struct rng *rng, size_t n, bool aligned)
{
	struct ms_batch batch = batch_of(n);

	choose(rng, n, aligned);
	CHECK_EQ(ms_read_guest_u64_many(vm, 0, &batch, NULL), 0);
	CHECK(!memcmp(got, want, n * sizeof(*got)));
	CHECK_EQ(got[n], 0xEEEEEEEEEEEEEEEE);
	values += n;
}

static void check_strides(struct rng *rng, size_t n)
{
	struct ms_batch batch = { gpas + n - 1, -8, (char *)got + 5, 16, n, NULL, NULL };

	choose(rng, n, false);
	CHECK_EQ(ms_read_guest_u64_many(vm, 0, &batch, NULL), 0);
	for (size_t i = 0; i < n; i++)
		CHECK(!memcmp((char *)got + 5 + 16 * i, &want[n - 1 - i], 8));
}

/* The values overwrite the gpas. */
static void check_in_place(struct rng *rng, size_t n)
{
	struct ms_batch batch = { gpas, 8, gpas, 8, n, NULL, NULL };

	choose(rng, n, true);
	CHECK_EQ(ms_read_guest_u64_many(vm, 0, &batch, NULL), 0);
	CHECK(!memcmp(gpas, want, n * sizeof(*gpas)));
}

static const size_t lengths[] = { 1, 2, 63, 511, 512, 513, 1024, MS_BATCH_PIECE, MS_BATCH_PIECE + 1, MOST - 1 };

static void test_reads(struct rng *rng)
{
	struct ms_batch none = { NULL, 8, NULL, 8, 0, NULL, NULL };

	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		check_read(rng, lengths[i], true);
		check_read(rng, lengths[i], false);
		check_strides(rng, lengths[i]);
		check_in_place(rng, lengths[i]);
	}
	CHECK_EQ(ms_read_guest_u64_many(vm, 0, &none, NULL), 0);
}

/* ---- refusals ---- */

/* Value number `at` is refused; the values before are complete. */
static void check_refused_at(size_t n, size_t at, uint64_t gpa, enum ms_rule rule, uint64_t bytes, bool write)
{
	struct ms_batch batch = batch_of(n);
	struct ms_error err;
	uint64_t good = gpas[at], value;
	int r;

	memcpy(got, want, n * sizeof(*got));
	if (!write)
		memset(got, 0xEE, sizeof(got));
	gpas[at] = gpa;
	r = write ? ms_write_guest_u64_many(vm, 0, &batch, &err) : ms_read_guest_u64_many(vm, 0, &batch, &err);
	check_refused(r, &err, rule, gpa + bytes, 8 * at + bytes);
	CHECK_EQ(err.index, at);
	CHECK(!memcmp(got, want, at * sizeof(*got)));
	CHECK_EQ(write ? ms_write_guest_u64_many(vm, 0, &batch, NULL) : ms_read_guest_u64_many(vm, 0, &batch, NULL), r);
	gpas[at] = good;
	for (size_t i = 0; i < at && write; i++) {
		CHECK_EQ(ms_read_guest_u64(vm, 0, gpas[i], &value, NULL), 0);
		CHECK_EQ(value, want[i]);
	}
}

static void test_refusals(struct rng *rng, enum kind kind)
{
	const size_t n = MS_BATCH_PIECE + 700, places[] = { 0, 511, 512, 600, MS_BATCH_PIECE - 1, n - 1 };
	const uint64_t hole = GPA(9 * SLOT_PAGES * PAGE), readonly = GPA(5 * SLOT_PAGES * PAGE);

	choose(rng, n, true);
	for (size_t i = 0; i < ARRAY_SIZE(places); i++)
		for (size_t length = places[i] + 1; length <= n; length += n - places[i] - 1 ? n - places[i] - 1 : n) {
			check_refused_at(length, places[i], hole, MS_RULE_GUEST_HOLE, 0, false);
			check_refused_at(length, places[i], hole - 5, MS_RULE_GUEST_HOLE, 5, false);
			check_refused_at(length, places[i], readonly + 8, MS_RULE_GUEST_READONLY, 0, true);
			if (kind == WITH_RAW)
				check_refused_at(length, places[i], GPA(7 * SLOT_PAGES * PAGE + 16), MS_RULE_GUEST_RAW,
						 0, i % 2);
		}
}

static void test_arguments(void)
{
	struct ms_batch batch = batch_of(1);
	struct ms_error err;

	CHECK_EQ(ms_read_guest_u64_many(vm, 0, NULL, &err), -EFAULT);
	CHECK_EQ(err.rule, MS_RULE_NULL_BUFFER);
	batch.in = NULL;
	CHECK_EQ(ms_read_guest_u64_many(vm, 0, &batch, &err), -EFAULT);
	batch = batch_of(1);
	batch.out = NULL;
	CHECK_EQ(ms_write_guest_u64_many(vm, 0, &batch, &err), -EFAULT);
	batch = batch_of(SIZE_MAX / 8 + 1);
	err = (struct ms_error){ .rule = MS_RULE_AS_ID, .gpa = 1, .index = 1 };
	CHECK_EQ(ms_read_guest_u64_many(vm, 0, &batch, &err), -EINVAL);
	CHECK(err.rule == MS_RULE_NONE && !err.gpa && !err.index);
	batch = batch_of(3);
	gpas[0] = GPA(8);
	check_refused(ms_read_guest_u64_many(vm, 4, &batch, &err), &err, MS_RULE_GUEST_HOLE, GPA(8), 0);
}

/* ---- writes ---- */

static void clear_logs(void)
{
	for (uint32_t id = 0; id < SLOTS; id++)
		guest_dirty(vm, id);
}

static void check_write(struct rng *rng, size_t n, enum kind kind)
{
	struct ms_batch batch = batch_of(n);
	uint64_t dirty[SLOTS] = { 0 }, value;

	choose(rng, n, true);
	clear_logs();
	for (size_t i = 0; i < n; i++) {
		uint64_t page = gpas[i] / PAGE - FIRST;

		got[i] = rng_next(rng);
		dirty[page / SLOT_PAGES] |= (uint64_t)1 << page % SLOT_PAGES;
	}
	CHECK_EQ(ms_write_guest_u64_many(vm, 0, &batch, NULL), 0);
	for (size_t i = n; i-- > 0;) { /* the last value of each place remains */
		CHECK_EQ(ms_read_guest_u64(vm, 0, gpas[i], &value, NULL), 0);
		if (value != got[i]) {
			size_t later = i + 1;

			while (later < n && !(gpas[later] == gpas[i] && got[later] == value))
				later++;
			CHECK(later < n);
		}
	}
	for (uint32_t id = 0; id < SLOTS && kind == LOGGED; id += 3)
		if (id != 9)
			CHECK_EQ(guest_dirty(vm, id), dirty[id]);
	values += n;
}

/* ---- an index with marks ---- */

/* The slot gets other memory; the index still has the address of the former one, which somebody holds. */
static void test_replaced_memory(void)
{
	struct guest *former = guest_slot(vm, 9, FIRST + 9 * SLOT_PAGES, SLOT_PAGES, 0), *present;
	struct ms_batch batch = batch_of(1000);

	for (size_t i = 0; i < 1000; i++)
		gpas[i] = GPA(9 * SLOT_PAGES * PAGE + 8 * i);
	for (int i = 0; i < 3; i++) /* makes an index of the slot, if the policy allows one */
		CHECK_EQ(ms_gpa_to_hva_many(vm, 0, &batch, false), 0);
	CHECK_EQ(ms_read_guest_u64_many(vm, 0, &batch, NULL), 0);
	CHECK(!memcmp(got, former->at, 8000));
	ms_backing_get(former->backing);
	CHECK_EQ(ms_delete_memslot(vm, 0, 9, NULL), 0);
	present = guest_new(77, SLOT_PAGES);
	guest_map(vm, present, 9, FIRST + 9 * SLOT_PAGES, 0);
	CHECK_EQ(ms_read_guest_u64_many(vm, 0, &batch, NULL), 0);
	CHECK(!memcmp(got, present->at, 8000));
	memset(got, 0x77, sizeof(got));
	CHECK_EQ(ms_write_guest_u64_many(vm, 0, &batch, NULL), 0);
	CHECK(!memcmp(got, present->at, 8000));
	CHECK_EQ(former->at[0], guest_byte(9, 0));
	CHECK_EQ(ms_delete_memslot(vm, 0, 9, NULL), 0);
	ms_backing_put(present->backing);
	ms_backing_put(former->backing);
}

/* ---- poll ---- */

struct polls {
	unsigned calls, end_at;
};

static int count_polls(void *opaque)
{
	struct polls *p = opaque;

	CHECK_EQ(thread_self.sections, 0);
	CHECK_EQ(srcu_oldest_hold(&vm->srcu), SRCU_NO_HOLD);
	return ++p->calls == p->end_at;
}

static void test_poll(struct rng *rng)
{
	struct ms_error err = { .rule = MS_RULE_AS_ID, .gpa = 1, .index = 1 };
	struct polls polls = { 0, 2 };
	struct ms_batch batch = batch_of(MOST - 1);

	choose(rng, MOST - 1, true);
	batch.poll = count_polls;
	batch.opaque = &polls;
	CHECK_EQ(ms_read_guest_u64_many(vm, 0, &batch, &err), -EINTR);
	CHECK(err.rule == MS_RULE_NONE && !err.gpa && !err.index);
	CHECK_EQ(polls.calls, 2);
	CHECK(!memcmp(got, want, 2 * MS_BATCH_PIECE * sizeof(*got)));
	polls = (struct polls){ 0, 0 };
	CHECK_EQ(ms_read_guest_u64_many(vm, 0, &batch, NULL), 0);
	CHECK_EQ(polls.calls, 3);
}

/* ---- memory that is gone ---- */

static void test_lost(struct rng *rng)
{
	const size_t n = MS_BATCH_PIECE + 5, at = MS_BATCH_PIECE + 1;
	struct guest *g = guest_slot(vm, 9, FIRST + 9 * SLOT_PAGES, SLOT_PAGES, LOG);

	choose(rng, n, true);
	CHECK_EQ(ftruncate(g->fd, PAGE), 0);
	check_refused_at(n, at, GPA((9 * SLOT_PAGES + 2) * PAGE), MS_RULE_GUEST_FAULT, 0, false);
	check_refused_at(n, at, GPA((9 * SLOT_PAGES + 2) * PAGE), MS_RULE_GUEST_FAULT, 0, true);
	check_refused_at(n, 3, GPA((9 * SLOT_PAGES + 1) * PAGE) - 3, MS_RULE_GUEST_FAULT, 3, true);
	CHECK_EQ(guest_dirty(vm, 9), 7); /* the pages that are gone too */
	CHECK_EQ(ms_delete_memslot(vm, 0, 9, NULL), 0);
}

/* ---- ranges ---- */

static void test_host_ranges(void)
{
	struct ms_host_range out[SLOTS];
	uint64_t hole, size = SLOT_PAGES * PAGE;

	CHECK_EQ(ms_host_ranges(vm, 0, GPA(5), 3 * PAGE, false, out, SLOTS, &hole), 1);
	CHECK_EQ(out[0].hva, ms_gfn_to_hva(vm, 0, FIRST) + 5);
	CHECK_EQ(out[0].length, 3 * PAGE);
	CHECK_EQ(hole, GPA(5) + 3 * PAGE);
	CHECK_EQ(ms_host_ranges(vm, 0, GPA(PAGE), BYTES, true, out, SLOTS, &hole), 5); /* up to the READONLY slot */
	CHECK_EQ(hole, GPA(5 * size));
	CHECK_EQ(out[4].hva, ms_gfn_to_hva(vm, 0, FIRST + 4 * SLOT_PAGES));
	CHECK_EQ(out[4].length, size);
	CHECK_EQ(ms_host_ranges(vm, 0, GPA(PAGE), BYTES, false, out, 3, &hole), 9);
	CHECK_EQ(hole, GPA(9 * size));
	CHECK_EQ(ms_host_ranges(vm, 0, GPA(0), 0, false, NULL, 0, &hole), 0);
	CHECK_EQ(hole, GPA(0));
	CHECK_EQ(ms_host_ranges(vm, 0, GPA(9 * size), 1, false, NULL, 0, &hole), 0);
	CHECK_EQ(hole, GPA(9 * size));
	CHECK_EQ(ms_host_ranges(vm, 3, GPA(0), 1, false, out, SLOTS, NULL), 0);
	CHECK_EQ(ms_host_ranges(vm, 0, ~(uint64_t)0, ~(uint64_t)0, false, NULL, 0, &hole), 0);
	CHECK_EQ(hole, ~(uint64_t)0);
}

/* Two slots whose host memory is one range. */
static void test_joined_ranges(void)
{
	struct guest *g = guest_new(77, 6);
	struct ms_host_range out[4];

	CHECK_EQ(guest_map_part(vm, g, 100, 0x9000, 0, 2, 0), 0);
	CHECK_EQ(guest_map_part(vm, g, 101, 0x9002, 2, 3, LOG), 0);
	CHECK_EQ(guest_map_part(vm, g, 102, 0x9005, 0, 1, 0), 0);
	CHECK_EQ(ms_host_ranges(vm, 0, 0x9000 * PAGE + 9, 6 * PAGE - 9, true, out, 4, NULL), 2);
	CHECK_EQ(out[0].hva, (uintptr_t)g->at + 9);
	CHECK_EQ(out[0].length, 5 * PAGE - 9);
	CHECK_EQ(out[1].hva, (uintptr_t)g->at);
	CHECK_EQ(out[1].length, PAGE);
	for (uint32_t id = 100; id <= 102; id++)
		CHECK_EQ(ms_delete_memslot(vm, 0, id, NULL), 0);
	ms_backing_put(g->backing);
}

#define RANGES 3000u

static void test_many_ranges(struct rng *rng)
{
	static uint64_t first[RANGES], second[RANGES], offsets[RANGES + 1], holes[RANGES];
	static struct ms_host_range out[RANGES * SLOTS], one[SLOTS];
	static struct ms_memslot slots[RANGES * SLOTS], few[SLOTS];
	size_t n;
	uint64_t hole;

	for (size_t i = 0; i < RANGES; i++) {
		first[i] = GPA(rng_below(rng, BYTES)) - 3 * PAGE;
		second[i] = rng_below(rng, 3) ? rng_below(rng, BYTES / 3) : 0;
	}
	n = ms_host_ranges_many(vm, 0, first, second, RANGES, false, out, ARRAY_SIZE(out), offsets, holes);
	CHECK_EQ(offsets[0], 0);
	CHECK_EQ(offsets[RANGES], n);
	for (size_t i = 0; i < RANGES; i++) {
		CHECK_EQ(ms_host_ranges(vm, 0, first[i], second[i], false, one, SLOTS, &hole),
			 offsets[i + 1] - offsets[i]);
		CHECK_EQ(hole, holes[i]);
		CHECK(!memcmp(one, out + offsets[i], (offsets[i + 1] - offsets[i]) * sizeof(*one)));
	}
	CHECK_EQ(ms_host_ranges_many(vm, 0, first, second, RANGES, false, NULL, 0, offsets, NULL), n);
	for (size_t i = 0; i < RANGES; i++) {
		first[i] /= PAGE;
		second[i] = first[i] + second[i] / PAGE;
	}
	n = ms_memslots_in_gfn_range_many(vm, 0, first, second, RANGES, slots, ARRAY_SIZE(slots), offsets);
	CHECK_EQ(offsets[RANGES], n);
	for (size_t i = 0; i < RANGES; i++) {
		CHECK_EQ(ms_memslots_in_gfn_range(vm, 0, first[i], second[i], few, SLOTS), offsets[i + 1] - offsets[i]);
		CHECK(!memcmp(few, slots + offsets[i], (offsets[i + 1] - offsets[i]) * sizeof(*few)));
	}
	CHECK_EQ(ms_memslots_in_gfn_range_many(vm, 0, first, second, RANGES, NULL, 0, NULL), n);
	CHECK_EQ(ms_memslots_in_gfn_range_many(vm, 0, first, second, 0, NULL, 0, offsets), 0);
	CHECK_EQ(offsets[0], 0);
	offsets[0] = 7;
	CHECK_EQ(ms_memslots_in_gfn_range_many(vm, 0, first, NULL, RANGES, NULL, 0, offsets), 0);
	CHECK_EQ(offsets[0], 0);
	CHECK_EQ(ms_host_ranges_many(vm, 0, NULL, second, RANGES, false, NULL, 0, NULL, NULL), 0);
}

static void test_all(enum kind kind, enum ms_index_policy policy)
{
	struct rng rng = rng_stream(kind * 8 + policy);

	open_layout(kind, policy);
	test_arguments();
	test_reads(&rng);
	test_refusals(&rng, kind);
	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++)
		check_write(&rng, lengths[i], kind);
	CHECK_EQ(ms_move_memslot(vm, 0, 11, GPA(BYTES), NULL), 0); /* marks in the index */
	CHECK_EQ(ms_move_memslot(vm, 0, 11, GPA(11 * SLOT_PAGES * PAGE), NULL), 0);
	test_reads(&rng);
	check_write(&rng, 3000, kind);
	test_replaced_memory();
	test_poll(&rng);
	test_lost(&rng);
	test_host_ranges();
	test_joined_ranges();
	test_many_ranges(&rng);
	check_sound(vm);
	end_vm(vm);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		for (enum kind kind = PLAIN; kind < KINDS; kind++) {
			test_all(kind, MS_INDEX_AUTO);
			if (design_is("tree")) {
				test_all(kind, MS_INDEX_EAGER);
				test_all(kind, MS_INDEX_OFF);
				test_all(kind, MS_INDEX_WALK);
			}
		}
	return test_done("guest many", values, "values");
}
