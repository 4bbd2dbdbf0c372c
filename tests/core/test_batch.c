/* SPDX-License-Identifier: MIT */
/*
 * test_batch.c - batches of lookups, with and without an index, during changes.
 *
 * The poll of a batch makes the changes between two of its pieces, so the test chooses every order.
 */
#include "fixture.h"

#include "points.h"
#include "vm_index.h"

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define SPACES 2u
#define IDS 300u
#define SPAN 4000u /* the gfns of the slots */
#define QUERIES 9000 /* more than two pieces */

static struct rng rng;
static struct ms_vm *vm;
static uint64_t in[2 * QUERIES], out[2 * QUERIES];
static int32_t ids[2 * QUERIES];
static uint64_t answers;

static const enum ms_index_policy policies[] = { MS_INDEX_AUTO, MS_INDEX_OFF, MS_INDEX_EAGER, MS_INDEX_WALK };

/* ---- the right answers, from a copy of the slots ---- */

struct truth {
	struct ms_memslot slots[IDS];
	size_t nr;
};

static struct truth truth_of(uint32_t as_id)
{
	struct truth t;

	t.nr = ms_memslots(vm, as_id, t.slots, IDS);
	CHECK(t.nr <= IDS);
	return t;
}

static const struct ms_memslot *slot_at(const struct truth *t, uint64_t gfn)
{
	for (size_t i = 0; i < t->nr; i++)
		if (gfn - t->slots[i].base_gfn < t->slots[i].npages)
			return t->slots[i].flags & MS_MEMSLOT_INVALID ? NULL : &t->slots[i];
	return NULL;
}

static uint64_t right_hva(const struct truth *t, uint64_t gfn, bool write)
{
	const struct ms_memslot *slot = slot_at(t, gfn);

	if (!slot)
		return MS_HVA_ERR_BAD;
	if (write && slot->flags & MS_MEM_READONLY)
		return MS_HVA_ERR_RO_BAD;
	return slot->userspace_addr + (gfn - slot->base_gfn) * PAGE;
}

static uint64_t draw_gfn(void)
{
	return rng_below(&rng, 50) ? rng_below(&rng, SPAN + 100) : rng_next(&rng);
}

/* ---- batches of every shape ---- */

static struct ms_batch batch_of(size_t n, ptrdiff_t step)
{
	return (struct ms_batch){ .in = in, .in_stride = 8 * step, .out = out, .out_stride = 8 * step, .n = n };
}

static void check_hvas(const struct truth *t, uint32_t as_id, size_t n, ptrdiff_t step, bool write)
{
	struct ms_batch batch = batch_of(n, step);

	for (size_t i = 0; i < n; i++)
		in[i * step] = draw_gfn();
	CHECK_EQ(ms_gfn_to_hva_many(vm, as_id, &batch, write), 0);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(out[i * step], right_hva(t, in[i * step], write));
	for (size_t i = 0; i < n; i++)
		in[i * step] = in[i * step] << MS_PAGE_SHIFT | (i & 4095);
	CHECK_EQ(ms_gpa_to_hva_many(vm, as_id, &batch, write), 0);
	for (size_t i = 0; i < n; i++) {
		uint64_t hva = right_hva(t, in[i * step] >> MS_PAGE_SHIFT, write);

		CHECK_EQ(out[i * step], hva < MS_HVA_ERR_MIN ? hva + (i & 4095) : hva);
	}
	answers += 2 * n;
}

static void check_ids(const struct truth *t, uint32_t as_id, size_t n, ptrdiff_t step)
{
	struct ms_batch batch = batch_of(n, step);

	batch.out = ids;
	batch.out_stride = 4 * step;
	for (size_t i = 0; i < n; i++)
		in[i * step] = draw_gfn();
	CHECK_EQ(ms_gfn_to_slot_id_many(vm, as_id, &batch), 0);
	for (size_t i = 0; i < n; i++) {
		const struct ms_memslot *slot = slot_at(t, in[i * step]);

		CHECK_EQ(ids[i * step], slot ? (int32_t)slot->id : -1);
	}
	answers += n;
}

/* The output of a batch may be its input. */
static void check_in_place(const struct truth *t, uint32_t as_id, size_t n)
{
	struct ms_batch batch = batch_of(n, 1);

	for (size_t i = 0; i < n; i++)
		in[i] = out[i] = draw_gfn();
	batch.in = out;
	CHECK_EQ(ms_gfn_to_hva_many(vm, as_id, &batch, true), 0);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(out[i], right_hva(t, in[i], true));
	answers += n;
}

/* ---- values and results that lie anywhere ---- */

#define FURTHEST 17 /* bytes from one value to the next */

static unsigned char from_bytes[QUERIES * FURTHEST + FURTHEST], to_bytes[QUERIES * FURTHEST + FURTHEST];

/* The first of n values, `offset` bytes into the array, or into what is left of it where the stride leads back. */
static unsigned char *first_of(unsigned char *bytes, size_t n, ptrdiff_t stride, size_t offset)
{
	return bytes + offset + (stride < 0 ? (size_t)-stride * (n - 1) : 0);
}

static uint64_t read_hva(const struct ms_batch *batch, size_t i)
{
	uint64_t hva;

	memcpy(&hva, (const unsigned char *)batch->out + (ptrdiff_t)i * batch->out_stride, sizeof(hva));
	return hva;
}

static int32_t read_id(const struct ms_batch *batch, size_t i)
{
	int32_t id;

	memcpy(&id, (const unsigned char *)batch->out + (ptrdiff_t)i * batch->out_stride, sizeof(id));
	return id;
}

static struct ms_batch scattered(size_t n, ptrdiff_t stride, size_t offset)
{
	struct ms_batch batch = { .in = first_of(from_bytes, n, stride, offset), .in_stride = stride, .n = n };

	for (size_t i = 0; i < n; i++) {
		in[i] = draw_gfn();
		memcpy((unsigned char *)(uintptr_t)batch.in + (ptrdiff_t)i * stride, &in[i], sizeof(in[i]));
	}
	batch.out = first_of(to_bytes, n, stride, offset);
	batch.out_stride = stride;
	return batch;
}

static void check_scattered(const struct truth *t, size_t n, ptrdiff_t stride, size_t offset)
{
	struct ms_batch batch = scattered(n, stride, offset);
	const struct ms_memslot *slot;

	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(read_hva(&batch, i), right_hva(t, in[i], true));
	CHECK_EQ(ms_gfn_to_slot_id_many(vm, 0, &batch), 0);
	for (size_t i = 0; i < n; i++) {
		slot = slot_at(t, in[i]);
		CHECK_EQ(read_id(&batch, i), slot ? (int32_t)slot->id : -1);
	}
	CHECK_EQ(ms_mark_page_dirty_many(vm, 0, &batch), 0);
	batch.out = (void *)(uintptr_t)batch.in;
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, false), 0);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(read_hva(&batch, i), right_hva(t, in[i], false));
	answers += 3 * n;
}

/* UndefinedBehaviorSanitizer knows a load that is not aligned. */
static void test_alignments(void)
{
	static const ptrdiff_t strides[] = { 8, 9, 12, FURTHEST, -8, -9 };
	static const size_t sizes[] = { 1, 7, 70, MS_BATCH_PIECE + 100 };
	struct truth t;

	vm = new_vm(1);
	for (uint32_t id = 0; id < 60; id++)
		CHECK_EQ(set(vm, 0, id, 20 * id, 1 + id % 20, id % 3), 0);
	t = truth_of(0);
	for (size_t i = 0; i < ARRAY_SIZE(policies); i++) {
		CHECK_EQ(ms_set_index_policy(vm, policies[i]), 0);
		for (size_t k = 0; k < ARRAY_SIZE(strides) * ARRAY_SIZE(sizes); k++)
			for (size_t offset = 0; offset < 8; offset += 1 + (k % 3))
				check_scattered(&t, sizes[k / ARRAY_SIZE(strides)], strides[k % ARRAY_SIZE(strides)],
						offset);
	}
	end_vm(vm);
}

/* ---- batches that cannot be answered ---- */

static int poll_once(void *calls)
{
	return ++*(int *)calls;
}

static void check_no_batch(const struct ms_batch *batch, int code, int code_of_mark)
{
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, batch, true), code);
	CHECK_EQ(ms_gpa_to_hva_many(vm, 0, batch, true), code);
	CHECK_EQ(ms_gfn_to_slot_id_many(vm, 0, batch), code);
	CHECK_EQ(ms_gfn_to_slot_id_many(vm, 7, batch), code); /* where there is no address space, too */
	CHECK_EQ(ms_mark_page_dirty_many(vm, 0, batch), code_of_mark);
}

static void test_no_batches(void)
{
	struct ms_batch batch = batch_of(3, 1), endless = batch_of(SIZE_MAX / 8 + 2, 0);
	int polls = 0;

	vm = new_vm(1);
	CHECK_EQ(set(vm, 0, 1, 0, 10, LOG), 0);
	check_no_batch(NULL, -EFAULT, -EFAULT);
	batch.in = NULL;
	check_no_batch(&batch, -EFAULT, -EFAULT);
	batch = batch_of(3, 1);
	batch.out = NULL;
	check_no_batch(&batch, -EFAULT, 0);
	batch.n = 0;
	batch.in = NULL;
	check_no_batch(&batch, 0, 0);
	endless.in = out; /* one value, which is read and written so often that the size of a copy overflows */
	endless.poll = poll_once;
	endless.opaque = &polls;
	check_no_batch(&endless, -EINVAL, -EINVAL);
	CHECK_EQ(polls, 0);
	endless.n = MS_BATCH_PIECE; /* but it may be */
	out[0] = 3;
	CHECK_EQ(ms_gfn_to_slot_id_many(vm, 0, &endless), 0);
	check_sound(vm);
	end_vm(vm);
}

static void check_singles(const struct truth *t, uint32_t as_id, struct ms_vcpu *vcpu)
{
	for (int i = 0; i < 20; i++) {
		uint64_t gfn = draw_gfn(), runs = 1 + rng_below(&rng, 4);
		bool writable = false;

		CHECK_EQ(ms_vcpu_set_as_id(vcpu, as_id), 0);
		while (runs--) {
			CHECK_EQ(ms_gfn_to_hva(vm, as_id, gfn), right_hva(t, gfn, true));
			CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, gfn), right_hva(t, gfn, true));
		}
		CHECK_EQ(ms_gfn_to_hva_prot(vm, as_id, gfn, &writable), right_hva(t, gfn, false));
	}
}

static void check_all(uint32_t as_id, size_t n, struct ms_vcpu *vcpu)
{
	struct truth t = truth_of(as_id);
	ptrdiff_t step = 1 + (ptrdiff_t)rng_below(&rng, 2);

	check_hvas(&t, as_id, n, step, rng_below(&rng, 2));
	check_ids(&t, as_id, n, step);
	check_in_place(&t, as_id, n);
	check_singles(&t, as_id, vcpu);
}

/* ---- the policy changes during changes of slots ---- */

static void change_something(void)
{
	uint32_t as_id = (uint32_t)rng_below(&rng, SPACES), id = (uint32_t)rng_below(&rng, IDS);
	static const uint32_t flags[] = { 0, LOG, MS_MEM_READONLY, MS_MEM_READONLY | LOG };

	set(vm, as_id, id, rng_below(&rng, SPAN), rng_below(&rng, 4) ? 1 + rng_below(&rng, 30) : 0,
	    flags[rng_below(&rng, 4)]);
}

static uint64_t test_changing_policy(void)
{
	uint64_t rounds = test_times(4000);
	struct ms_vcpu *vcpu;
	struct ms_stats stats;

	vm = new_vm(SPACES);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	for (uint64_t i = 0; i < rounds; i++) {
		for (uint64_t k = rng_below(&rng, 20); k; k--)
			change_something();
		if (!rng_below(&rng, 4))
			ms_set_index_policy(vm, policies[rng_below(&rng, 4)]);
		if (!rng_below(&rng, 8) && ms_simd_name(rng_below(&rng, 3)))
			ms_set_simd(ms_simd_name(rng_below(&rng, 2)) ? ms_simd_name(0) : "portable");
		check_all((uint32_t)rng_below(&rng, SPACES), rng_below(&rng, 20) ? rng_below(&rng, 300) : 5000, vcpu);
		if (i % 16 == 0)
			check_sound(vm);
	}
	check_sound(vm);
	stats = stats_of(vm);
	if (design_is("tree"))
		CHECK(stats.index_builds && stats.index_patches && stats.indexed);
	else
		CHECK(!stats.index_builds && !stats.index_patches && !stats.indexed);
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
	return rounds;
}

/* ---- batches that hold an index and the changes since ---- */

#define HELD 17000 /* too many lookups for one section */

static uint64_t test_held_with_changes(void)
{
	static const enum ms_index_policy kinds[] = { MS_INDEX_EAGER, MS_INDEX_AUTO };
	uint64_t rounds = test_times(150), held = 0;
	struct ms_stats before, after;
	struct truth t;

	vm = new_vm(SPACES);
	for (uint64_t i = 0; i < rounds; i++) {
		ms_set_index_policy(vm, kinds[rng_below(&rng, 4) > 0]);
		for (uint64_t k = rng_below(&rng, 12); k; k--)
			change_something();
		for (uint32_t as_id = 0; as_id < SPACES; as_id++) {
			t = truth_of(as_id);
			before = stats_of(vm);
			check_hvas(&t, as_id, HELD, 1, rng_below(&rng, 2));
			after = stats_of(vm);
			held += after.indexed - before.indexed == 2 * HELD; /* gfns and gpas */
			if (i % 8)
				continue;
			check_ids(&t, as_id, HELD, 1);
			check_in_place(&t, as_id, HELD);
		}
		if (i % 16 == 0)
			check_sound(vm);
	}
	if (design_is("tree"))
		CHECK(held > rounds / 4);
	end_vm(vm);
	return rounds;
}

/* ---- when a batch makes an index, and from what ---- */

static void fill(uint32_t n)
{
	for (uint32_t id = 0; id < n; id++)
		CHECK_EQ(set(vm, 0, id, id * 10, 8, 0), 0);
}

static void run_batch(size_t n)
{
	struct ms_batch batch = batch_of(n, 1);
	struct truth t = truth_of(0);

	for (size_t i = 0; i < n; i++)
		in[i] = draw_gfn();
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(out[i], right_hva(&t, in[i], true));
	check_sound(vm);
}

static void check_made(uint64_t builds, uint64_t patches)
{
	struct ms_stats stats = stats_of(vm);

	CHECK_EQ(stats.index_builds, builds);
	CHECK_EQ(stats.index_patches, patches);
}

static void run_batches(int nr, size_t n)
{
	while (nr--)
		run_batch(n);
}

static void test_policy(void)
{
	vm = new_vm(1);
	fill(200);
	run_batch(100); /* too short for an index to pay */
	check_made(0, 0);
	run_batch(1000);
	check_made(1, 0);
	run_batch(4000);
	CHECK_EQ(stats_of(vm).indexed, 5000);
	check_made(1, 0);
	for (uint32_t id = 7; id < 67; id += 20)
		CHECK_EQ(set(vm, 0, id, id * 10 + 1, 8, 0), 0); /* a MOVE */
	run_batches(2, 4000); /* of 4,000 lookups, about 50 find a mark; some of them use the hint */
	check_made(1, 0);
	CHECK(stats_of(vm).indexed > 12500 && stats_of(vm).indexed < 13000);
	run_batches(100, 4000);
	check_made(1, 1);
	for (uint32_t id = 0; id < 120; id++) /* so many that it is not worth to copy the others */
		CHECK_EQ(set(vm, 0, id, 0, 0, 0), 0);
	run_batches(5, 4000);
	check_made(2, 1);
	ms_set_index_policy(vm, MS_INDEX_OFF);
	CHECK_EQ(ms_index_policy(vm), MS_INDEX_OFF);
	CHECK_EQ(set(vm, 0, 150, 0, 0, 0), 0);
	run_batches(3, 9000);
	check_made(2, 1);
	ms_set_index_policy(vm, MS_INDEX_EAGER);
	run_batch(4000);
	check_made(2, 2);
	end_vm(vm);
}

static struct ms_memslot *many_slots(uint32_t n)
{
	struct ms_memslot *slots = calloc(n, sizeof(*slots));

	CHECK(slots);
	for (uint32_t id = 0; id < n; id++)
		slots[id] = (struct ms_memslot){ .base_gfn = id, .npages = 1, .userspace_addr = HVA_BASE, .id = id };
	return slots;
}

static uint32_t steps; /* of the making of an index */

static void count_steps(enum point point)
{
	steps += point == POINT_READER_INDEX_GATHERED || point == POINT_READER_INDEX_STEPPED;
}

static void one_brief_batch(uint64_t i)
{
	struct ms_batch batch = batch_of(MS_BATCH_BRIEF, 1);

	(void)i;
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
}

static void one_lookup(uint64_t i)
{
	CHECK_EQ(ms_gfn_to_hva(vm, 0, i * 7 % 5000), HVA_BASE);
}

/* Neither a short batch nor a single lookup takes long, however many slots there are: each one advances the index by
 * one step at most, and in the end it is made. */
static void test_bounded_steps(void (*look_up)(uint64_t i), enum ms_index_policy policy)
{
	enum { MANY = 20000 };
	struct ms_memslot *slots = many_slots(MANY);
	uint32_t most = 0, all = 0;

	for (size_t i = 0; i < ARRAY_SIZE(in); i++)
		in[i] = i % MANY;
	vm = new_vm(1);
	CHECK_EQ(ms_load_memslots(vm, 0, slots, MANY, NULL), 0);
	ms_set_index_policy(vm, policy);
	point_set_hook(count_steps);
	for (uint64_t i = 0; i < 500000 && !stats_of(vm).index_builds; i++) {
		steps = 0;
		look_up(i);
		most = steps > most ? steps : most;
		all += steps;
	}
	point_set_hook(NULL);
	check_made(1, 0);
	CHECK_EQ(most, 1);
	CHECK(all > MANY / VM_INDEX_PIECE);
	check_sound(vm);
	end_vm(vm);
	free(slots);
}

/* After a refused change the set is the same one, with its index. */
static int refuse(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	return -EPERM;
}

static void test_roll_back(void)
{
	struct ms_listener refuses = { LISTENER_SIZE, .prepare = refuse };

	vm = new_vm(1);
	fill(100);
	run_batch(5000);
	CHECK_EQ(ms_add_listener(vm, &refuses, NULL), 0);
	CHECK_EQ(set(vm, 0, 7, 0, 0, 0), -EPERM);
	CHECK_EQ(set(vm, 0, 8, 2000, 8, 0), -EPERM);
	CHECK_EQ(set(vm, 0, 9, 90, 8, LOG), -EPERM);
	check_sound(vm);
	run_batch(5000);
	check_made(1, 0);
	CHECK_EQ(ms_remove_listener(vm, &refuses, NULL), 0);
	end_vm(vm);
}

/* Between the swaps of a DELETE, batches find a hole, with or without an index. */
static void batch_when_invalid(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)old;
	for (size_t i = 0; i < ARRAY_SIZE(policies); i++) {
		struct truth t = truth_of(0);
		struct ms_batch batch = batch_of(500, 1);

		ms_set_index_policy(vm, policies[i]);
		for (size_t k = 0; k < 500; k++)
			in[k] = k % 2 ? active->base_gfn : draw_gfn();
		CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
		for (size_t k = 0; k < 500; k++)
			CHECK_EQ(out[k], k % 2 ? MS_HVA_ERR_BAD : right_hva(&t, in[k], true));
		CHECK_EQ(ms_gfn_to_hva(vm, 0, active->base_gfn), MS_HVA_ERR_BAD);
	}
}

static void test_invalid(void)
{
	struct ms_listener runs_batch = { LISTENER_SIZE, .flush = batch_when_invalid };

	vm = new_vm(1);
	CHECK_EQ(ms_add_listener(vm, &runs_batch, NULL), 0);
	fill(50);
	run_batch(5000);
	for (uint32_t id = 0; id < 50; id++) {
		CHECK_EQ(set(vm, 0, id, id % 2 ? 2000 + id * 10 : 0, id % 2 ? 8 : 0, 0), 0);
		run_batch(100);
	}
	CHECK_EQ(ms_remove_listener(vm, &runs_batch, NULL), 0);
	end_vm(vm);
}

/* The states of an update: its steps need not come in the order of a change, and the two sets may differ. */
static void check_in_update(uint32_t gone, uint32_t end_gone)
{
	struct ms_batch batch = batch_of(200, 1);

	for (uint32_t i = 0; i < 200; i++)
		in[i] = i % 100 * 10;
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	for (uint32_t i = 0; i < 200; i++) {
		bool is_gone = i % 100 >= gone && i % 100 < end_gone;

		CHECK_EQ(out[i], is_gone ? MS_HVA_ERR_BAD : hva_for(0, i % 100));
		CHECK_EQ(ms_gfn_to_hva(vm, 0, in[i]), out[i]);
	}
}

static void remove_5_and_6(struct ms_update *u)
{
	for (uint32_t id = 5; id < 7; id++)
		CHECK_EQ(ms_update_replace(u, ms_update_find(u, false, id), NULL, NULL), 0);
}

static void test_update_with_an_index(bool keep)
{
	uint32_t end_gone = keep ? 7 : 5;
	struct ms_update *u;

	vm = new_vm(1);
	fill(100);
	run_batch(5000);
	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	remove_5_and_6(u);
	check_in_update(0, 0);
	CHECK_EQ(ms_update_swap(u, NULL), 0);
	check_in_update(5, 7);
	CHECK_EQ(ms_update_swap(u, NULL), 0); /* to the set that has the slots */
	check_in_update(0, 0);
	CHECK_EQ(ms_update_swap(u, NULL), 0);
	remove_5_and_6(u);
	check_in_update(5, 7);
	CHECK_EQ(ms_update_end(u, keep, NULL), 0);
	check_in_update(5, end_gone);
	check_sound(vm);
	CHECK_EQ(stats_of(vm).index_builds, 1);
	CHECK(stats_of(vm).indexed > 5000);
	ms_set_index_policy(vm, MS_INDEX_EAGER); /* the update has ended: a new index is made, if a slot has changed */
	check_in_update(5, end_gone);
	CHECK_EQ(stats_of(vm).index_patches, keep);
	check_in_update(5, end_gone);
	end_vm(vm);
}

/* ---- single lookups ---- */

static void test_singles_make_an_index(void)
{
	vm = new_vm(1);
	fill(100);
	for (uint32_t i = 0; i < 2000; i++)
		CHECK_EQ(ms_gfn_to_hva(vm, 0, i * 7 % 100 * 10), hva_for(0, i * 7 % 100));
	check_made(design_is("tree"), 0);
	end_vm(vm);
}

/* Makes n slots, so far apart that each is a segment if `far`; returns how many of the lookups an index answered. */
static uint64_t singles_indexed(uint32_t n, bool far)
{
	struct ms_vcpu *vcpu;
	uint64_t indexed;

	vm = new_vm(1);
	for (uint32_t id = 0; id < n; id++)
		CHECK_EQ(set(vm, 0, id, far ? (uint64_t)id << 33 : id * 10, 8, 0), 0);
	ms_set_index_policy(vm, MS_INDEX_EAGER);
	run_batch(5000);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	indexed = stats_of(vm).indexed;
	for (uint32_t i = 0; i < 2000; i++) {
		uint32_t id = i * 7 % n;
		uint64_t gfn = far ? (uint64_t)id << 33 : id * 10;

		CHECK_EQ(ms_gfn_to_hva(vm, 0, gfn), hva_for(0, id));
		CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, gfn), hva_for(0, id));
	}
	indexed = stats_of(vm).indexed - indexed;
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
	return indexed;
}

/* Batches of 400 lookups among 200 slots, each after the move of some slots. */
static struct ms_stats batches_after_changes(int rounds, uint32_t changes)
{
	vm = new_vm(1);
	fill(200);
	for (int i = 0; i < rounds; i++) {
		for (uint32_t id = 0; id < changes; id++)
			CHECK_EQ(set(vm, 0, id, id * 10 + (uint64_t)(i % 2), 8, 0), 0);
		run_batch(400);
	}
	return stats_of(vm);
}

/* An index serves later states.  The more slots change, the more often it is made again. */
static void test_index_lives_on(void)
{
	struct ms_stats s = batches_after_changes(100, 1);

	CHECK_EQ(s.index_builds, 1);
	CHECK(s.index_patches <= 2);
	CHECK(s.indexed > 97 * 400);
	end_vm(vm);
	s = batches_after_changes(200, 40);
	CHECK(s.index_builds + s.index_patches >= 5 && s.index_builds + s.index_patches <= 60);
	CHECK(s.indexed > 100 * 400);
	end_vm(vm);
}

#define BATCH_OF_A_SECTION 9000

/* A batch of a VM whose list of edited ranges has overflowed, and of whose slots so many have changed.  Returns how
 * many of the lookups used an index. */
static uint64_t indexed_after_changes(uint32_t changed)
{
	const uint32_t nr = 290, far = nr * 10;
	uint64_t before;

	vm = new_vm(1);
	fill(nr);
	run_batch(BATCH_OF_A_SECTION);
	for (uint32_t i = 0; i <= OVERLAY_EDITS_MAX; i++) /* more than the lists of differences have room for */
		CHECK_EQ(set(vm, 0, nr + 1 + i, far + 8 + i, 1, 0), 0);
	for (uint32_t i = 0; !overlay_has_overflowed(set_index(vm_active_set(vm, 0))); i++) {
		CHECK_EQ(set(vm, 0, nr, far + i % 8, 1, 0), 0); /* the same few blocks again and again */
		CHECK_EQ(set(vm, 0, nr, 0, 0, 0), 0);
	}
	for (uint32_t id = 0; id < changed; id++)
		CHECK_EQ(set(vm, 0, id, id * 10 + 1, 8, 0), 0);
	before = stats_of(vm).indexed;
	run_batch(BATCH_OF_A_SECTION);
	before = stats_of(vm).indexed - before;
	end_vm(vm);
	return before;
}

/* Marks suffice inside a section.  So a batch in one section uses an index after more edits than the list has room for.
 * If it would walk too often, a new index serves all of it. */
static void test_overflowed_list(void)
{
	uint64_t few = indexed_after_changes(5), many = indexed_after_changes(280);

	CHECK(few > BATCH_OF_A_SECTION * 9 / 10 && few < BATCH_OF_A_SECTION);
	CHECK_EQ(many, BATCH_OF_A_SECTION);
}

/* If all lookups are in slots that have just changed, each index answers too few of them.  Then the next ones are made
 * less and less often. */
static void test_useless_index(void)
{
	struct ms_batch batch = batch_of(400, 1);
	struct ms_stats s;

	vm = new_vm(1);
	fill(200);
	for (size_t i = 0; i < 400; i++)
		in[i] = i * 7 % 64 * 10 + 3;
	for (int i = 0; i < 400; i++) {
		for (uint32_t id = 0; id < 64; id++)
			CHECK_EQ(set(vm, 0, id, id * 10 + i % 2, 8, 0), 0);
		CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	}
	s = stats_of(vm);
	CHECK(s.index_builds + s.index_patches >= 3 && s.index_builds + s.index_patches <= 12);
	for (size_t i = 0; i < 400; i++)
		in[i] = 700 + i * 7 % 400;
	for (int i = 0; i < 100; i++)
		CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	for (int i = 0; i < 100; i++) { /* lookups elsewhere have used the index, so the next one is cheap again */
		for (uint32_t id = 70; id < 80; id++)
			CHECK_EQ(set(vm, 0, id, id * 10 + i % 2, 8, 0), 0);
		CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	}
	CHECK(stats_of(vm).index_patches + stats_of(vm).index_builds > s.index_builds + s.index_patches);
	end_vm(vm);
}

/* Without an index: the second lookup of a run searches for its slot immediately, the others use the hint. */
static void test_runs_of_a_walked_batch(void)
{
	uint64_t run[] = { 500, 507, 503, 501, 502, 506, 505, 504 };
	uint64_t hole[] = { 508, 509, 508, 509, 508, 509, 508, 509 };
	uint64_t hvas[8];
	struct ms_batch batch = { run, 8, hvas, 8, 8, NULL, NULL };
	struct ms_stats s;

	vm = new_vm(1);
	fill(1000);
	ms_set_index_policy(vm, MS_INDEX_OFF);
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	s = stats_of(vm);
	CHECK_EQ(s.misses, 0);
	for (int i = 0; i < 8; i++)
		CHECK_EQ(hvas[i], hva_for(0, 50) + (run[i] - 500) * PAGE);
	CHECK_EQ(s.hits_search, design_is("tree") ? 2 : 1);
	CHECK_EQ(s.hits_last_used, design_is("tree") ? 6 : 7);
	batch.in = hole;
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	for (int i = 0; i < 8; i++)
		CHECK_EQ(hvas[i], MS_HVA_ERR_BAD);
	CHECK_EQ(stats_of(vm).misses, 8);
	end_vm(vm);
}

/* The index of the batches makes no single lookup slower: among few slots, and among many segments, single lookups
 * walk. */
static void test_singles_that_walk(void)
{
	CHECK_EQ(singles_indexed(8, false), 0);
	CHECK_EQ(singles_indexed(50, true), 0);
	CHECK(singles_indexed(50, false) > 3000);
	vm = new_vm(1);
	fill(8);
	for (uint32_t i = 0; i < 10000; i++)
		CHECK_EQ(ms_gfn_to_hva(vm, 0, i * 5 % 8 * 10), hva_for(0, i * 5 % 8));
	CHECK_EQ(stats_of(vm).index_builds, 0); /* single lookups must not make it */
	end_vm(vm);
}

/* The second lookup of a slot in a row finds it by search, the third by the hint. */
static void test_hint_and_index(void)
{
	struct ms_vcpu *vcpu;
	struct ms_stats before, after;

	vm = new_vm(1);
	fill(100);
	run_batch(5000);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	ms_gfn_to_hva(vm, 0, 990); /* another slot than the batch's last one */
	ms_gfn_to_hva(vm, 0, 990);
	before = stats_of(vm);
	for (int i = 0; i < 10; i++) {
		CHECK_EQ(ms_gfn_to_hva(vm, 0, 500), hva_for(0, 50));
		CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, 500), hva_for(0, 50));
	}
	after = stats_of(vm);
	CHECK_EQ(after.indexed - before.indexed, 3); /* two of the VM, one of the vCPU */
	CHECK_EQ(after.hits_search - before.hits_search, 1); /* the second one of the vCPU */
	CHECK_EQ(after.hits_last_used - before.hits_last_used, 16);
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
}

/* ---- polls ---- */

struct poller {
	unsigned polls, stop_at, change_from, change_until;
};

/* It runs outside of sections, so it can make a change: it moves one slot back and forth. */
static int poll_and_change(void *opaque)
{
	struct poller *p = opaque;

	CHECK_EQ(thread_self.sections, 0);
	p->polls++;
	if (p->polls >= p->change_from && p->polls < p->change_until)
		CHECK_EQ(set(vm, 0, 5, p->polls % 2 ? 55 : 50, 5, 0), 0);
	return p->polls == p->stop_at;
}

#define LONG 300000

static uint64_t *long_in, *long_out;

/* All frames are the first one of the moving slot, at its old or at its new place. */
static int run_long_batch(struct poller *p, bool in_place)
{
	struct ms_batch batch = { in_place ? long_out : long_in, 8, long_out, 8, LONG, poll_and_change, p };

	CHECK_EQ(set(vm, 0, 5, 50, 5, 0), 0);
	for (size_t i = 0; i < LONG; i++)
		long_in[i] = i % 2 ? 50 : 55;
	memcpy(long_out, long_in, LONG * sizeof(*long_out));
	return ms_gfn_to_hva_many(vm, 0, &batch, true);
}

static void check_one_state(void)
{
	bool moved = long_out[0] != MS_HVA_ERR_BAD;

	for (size_t i = 0; i < LONG; i++)
		CHECK_EQ(long_out[i], (i % 2 == 0) == moved ? hva_for(0, 5) : MS_HVA_ERR_BAD);
	answers += LONG;
}

static void test_one_state(enum ms_index_policy policy, unsigned from, unsigned until, bool in_place)
{
	struct poller p = { .change_from = from, .change_until = until };

	vm = new_vm(1);
	fill(100);
	CHECK_EQ(set(vm, 0, 5, 50, 5, 0), -EINVAL); /* a change of size is refused */
	CHECK_EQ(set(vm, 0, 5, 0, 0, 0), 0);
	ms_set_index_policy(vm, policy);
	CHECK_EQ(run_long_batch(&p, in_place), 0);
	check_one_state();
	CHECK(p.polls || policy == MS_INDEX_AUTO || policy == MS_INDEX_EAGER);
	end_vm(vm);
}

/* With expensive answers the first pieces are as good as any. */
static void test_states(void)
{
	unsigned last = test_slow ? 2 : 4;

	for (size_t i = 0; i < ARRAY_SIZE(policies); i++)
		for (int in_place = 0; in_place < 2; in_place++) {
			test_one_state(policies[i], 0, 0, in_place);
			for (unsigned from = 1; from <= last; from++) {
				test_one_state(policies[i], from, from + 1, in_place);
				test_one_state(policies[i], from, ~0u, in_place); /* a new state each time */
			}
		}
}

static void test_interrupt(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(policies); i++)
		for (unsigned at = 1; at < 4; at++) {
			struct poller p = { .stop_at = at };

			vm = new_vm(1);
			fill(100);
			CHECK_EQ(set(vm, 0, 5, 0, 0, 0), 0);
			ms_set_index_policy(vm, policies[i]);
			CHECK_EQ(run_long_batch(&p, false), -EINTR);
			CHECK_EQ(p.polls, at);
			CHECK_EQ(long_out[0], MS_HVA_ERR_BAD); /* the poll keeps the answers before it */
			CHECK_EQ(long_out[1], hva_for(0, 5));
			CHECK_EQ(long_out[LONG - 1], long_in[LONG - 1]); /* and leaves the rest unchanged */
			CHECK_EQ(thread_self.sections, 0);
			end_vm(vm);
		}
}

static struct ms_update *update_of_poll; /* NULL: the poll does nothing */

static void invalidate_5(struct ms_update *u)
{
	struct ms_slot *inv;

	CHECK_EQ(ms_update_invalidate(u, ms_update_find(u, true, 5), &inv, NULL), 0);
}

/* Between the first two pieces of a batch. */
static int poll_and_invalidate(void *opaque)
{
	(void)opaque;
	if (update_of_poll)
		invalidate_5(update_of_poll);
	update_of_poll = NULL;
	return 0;
}

/* A long batch answers outside of sections: from an index and a copy of the edited slots, or from an index of its own
 * if no index can be made now.  An INVALID slot is a hole in both. */
static void test_long_batch_with_an_invalid_slot(bool with_index)
{
	struct ms_batch batch = { long_in, 8, long_out, 8, LONG, poll_and_invalidate, NULL };
	struct ms_update *u;
	struct truth t;

	vm = new_vm(1);
	fill(100);
	if (with_index)
		run_batch(5000);
	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	update_of_poll = with_index ? NULL : u;
	if (with_index)
		invalidate_5(u);
	for (size_t i = 0; i < LONG; i++)
		long_in[i] = i % 100 * 10;
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	t = truth_of(0);
	CHECK(!slot_at(&t, 50) && slot_at(&t, 60));
	for (size_t i = 0; i < LONG; i++)
		CHECK_EQ(long_out[i], right_hva(&t, long_in[i], true));
	CHECK(!update_of_poll);
	CHECK(stats_of(vm).indexed >= LONG);
	answers += LONG;
	CHECK_EQ(ms_update_end(u, false, NULL), 0);
	end_vm(vm);
}

static void test_marks_are_polled(void)
{
	struct poller p = { .stop_at = 2 };
	struct ms_batch batch = { .in = long_in, .in_stride = 8, .n = LONG, .poll = poll_and_change, .opaque = &p };

	vm = new_vm(1);
	CHECK_EQ(ms_mark_page_dirty_many(vm, 0, &batch), -EINTR);
	CHECK_EQ(p.polls, 2);
	end_vm(vm);
}

/* ---- sections ---- */

/* A batch inside a section answers from the section's state, and publishes an index of the section's set. */
static void test_inside_a_section(void)
{
	vm = new_vm(1);
	fill(100);
	CHECK_EQ(ms_read_lock(vm), 0);
	for (size_t i = 0; i < ARRAY_SIZE(policies); i++) {
		ms_set_index_policy(vm, policies[i]);
		check_hvas(&(struct truth){ .nr = 0 }, SPACES, 10, 1, true); /* the address space does not exist */
		struct truth t = truth_of(0);
		check_hvas(&t, 0, QUERIES, 1, true);
	}
	ms_read_unlock(vm);
	CHECK_EQ(set(vm, 0, 3, 0, 0, 0), 0);
	run_batch(QUERIES);
	end_vm(vm);
}

/* ---- no memory ---- */

static void test_no_memory(void)
{
	for (uint64_t nth = 1; nth < 8; nth++)
		for (int onward = 0; onward < 2; onward++)
			for (int changed = 0; changed < 2; changed++) {
				vm = new_vm(1);
				fill(100);
				if (changed) {
					run_batch(5000);
					CHECK_EQ(set(vm, 0, 3, 0, 0, 0), 0);
				}
				memory_fail(&vm->memory, nth, onward);
				run_batch(100);
				run_batch(4000);
				run_batch(QUERIES);
				memory_fail(&vm->memory, 0, false);
				run_batch(QUERIES);
				CHECK(stats_of(vm).index_builds);
				end_vm(vm);
			}
}

/* ---- a broken index ---- */

static void check_m11(void)
{
	struct ms_violation violation;

	CHECK_EQ(ms_check(vm, &violation, NULL), -EUCLEAN);
	CHECK(!strcmp(violation.invariant, "M11"));
}

/* Returns the new mark of the block. */
static bool flip_mark(const struct overlay *o, uint64_t block)
{
	uint64_t bit = (uint64_t)1 << block % 64;

	return ~atomic_fetch_xor(&o->marks[block / 64], bit) & bit;
}

static void test_check_finds(void)
{
	struct memslot_set *set_;
	const struct overlay *o;
	uint64_t *delta;
	size_t found = 0;

	vm = new_vm(1);
	fill(100);
	run_batch(5000);
	set_ = vm_active_set(vm, 0);
	delta = (uint64_t *)(uintptr_t)set_index(set_)->index->deltas;
	while (*delta & FLAT_HOLE)
		delta++;
	*delta += PAGE;
	check_m11();
	*delta -= PAGE;
	check_sound(vm);
	CHECK_EQ(set(vm, 0, 3, 0, 0, 0), 0);
	o = set_index(vm_active_set(vm, 0));
	for (uint64_t block = 0; block <= o->block_mask; block++) {
		if (!flip_mark(o, block))
			check_m11(); /* an edit without its mark */
		found += !flip_mark(o, block);
	}
	CHECK(found > 0 && found <= o->block_mask);
	check_sound(vm);
	for (uint32_t i = 0; i < OVERLAY_EDITS_MAX; i++) /* with slot 3 more than the lists of differences hold */
		CHECK_EQ(set(vm, 0, 300 + i, 5000 + i, 1, 0), 0);
	CHECK_EQ(set(vm, 0, 200, 3000, 1, 0), 0); /* a hole again: only the list shows the missing mark */
	CHECK_EQ(set(vm, 0, 200, 0, 0, 0), 0);
	CHECK(!flip_mark(o, 3000 >> o->shift & o->block_mask));
	check_m11();
	CHECK(flip_mark(o, 3000 >> o->shift & o->block_mask));
	check_sound(vm);
	end_vm(vm);
}

int main(int argc, char **argv)
{
	uint64_t rounds = 0;

	test_init(argc, argv, 120);
	rng = rng_stream(1);
	long_in = malloc(LONG * sizeof(*long_in));
	long_out = malloc(LONG * sizeof(*long_out));
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		rounds += test_changing_policy();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		rounds += test_held_with_changes();
		test_singles_make_an_index();
		test_runs_of_a_walked_batch();
		test_states();
		test_interrupt();
		test_marks_are_polled();
		test_inside_a_section();
		test_alignments();
		test_no_batches();
	}
	design_name = "tree";
	test_policy();
	test_index_lives_on();
	test_useless_index();
	test_bounded_steps(one_brief_batch, MS_INDEX_AUTO);
	test_bounded_steps(one_brief_batch, MS_INDEX_EAGER);
	test_bounded_steps(one_lookup, MS_INDEX_AUTO);
	test_bounded_steps(one_lookup, MS_INDEX_EAGER);
	test_roll_back();
	test_invalid();
	test_update_with_an_index(false);
	test_update_with_an_index(true);
	test_long_batch_with_an_invalid_slot(false);
	test_long_batch_with_an_invalid_slot(true);
	test_overflowed_list();
	test_singles_that_walk();
	test_hint_and_index();
	test_no_memory();
	test_check_finds();
	free(long_in);
	free(long_out);
	return test_done("batch", answers, "answers");
}
