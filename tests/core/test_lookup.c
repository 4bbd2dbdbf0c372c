/* SPDX-License-Identifier: MIT */
/*
 * test_lookup.c - each lookup compared with the slots that were created, the hints that answer it, and one state per
 * section.
 *
 * The layout is awkward: adjacent slots, holes of one page, host memory that several slots share, READONLY and internal
 * slots, the last page of the guest's addresses.
 */
#include "fixture.h"

#include <pthread.h>

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define RO MS_MEM_READONLY
#define USER_SLOTS 64u
#define TOP_GFN (((uint64_t)1 << 52) - 2)
#define SHARED HVA_BASE

static uint64_t answers; /* that were compared */

#define SAME(a, b) (answers++, CHECK_EQ(a, b))

/* By ascending gfn in each space; INTERNAL is an internal slot. */
#define INTERNAL (USER_SLOTS + 1)

static const struct ms_memslot layout[] = {
	{ 0x0, 1, SHARED + 0x8000, 9, 0, 0, 0 },
	{ 0x10, 16, SHARED, 3, 0, LOG, 0 },
	{ 0x20, 16, SHARED + 0x4000, 5, 0, RO, 0 },
	{ 0x31, 1, SHARED, 1, 0, RO | LOG, 0 },
	{ 0x100, 200, SHARED + 0x100000, 0, 0, LOG, 0 },
	{ 0x1000, 2, SHARED + 0x200000, INTERNAL, 0, 0, 0 },
	{ TOP_GFN, 1, SHARED, 63, 0, 0, 0 },
	{ 0x11, 16, SHARED, 3, 1, 0, 0 },
	{ 0x30, 3, SHARED + 0x8000, 4, 1, RO, 0 },
};

static struct ms_vm *laid_out(void)
{
	struct ms_config config = default_config(3); /* the last one is empty */
	struct ms_vm *vm;

	config.user_mem_slots = USER_SLOTS;
	config.gpa_bits = 64;
	vm = vm_with(&config);
	for (size_t i = ARRAY_SIZE(layout); i-- > 0;) {
		const struct ms_memslot *s = &layout[i];
		region_t r = region(s->as_id, s->id, s->base_gfn, s->npages, s->flags);
		bool user = s->id < USER_SLOTS;

		r.userspace_addr = s->userspace_addr;
		CHECK_EQ((user ? ms_set_user_memory_region : ms_set_internal_memory_region)(vm, &r, NULL), 0);
	}
	return vm;
}

static const struct ms_memslot *slot_at(uint32_t as_id, uint64_t gfn)
{
	for (size_t i = 0; i < ARRAY_SIZE(layout); i++)
		if (layout[i].as_id == as_id && gfn >= layout[i].base_gfn &&
		    gfn - layout[i].base_gfn < layout[i].npages)
			return &layout[i];
	return NULL;
}

static uint64_t hva_at(uint32_t as_id, uint64_t gfn, bool write)
{
	const struct ms_memslot *slot = slot_at(as_id, gfn);

	if (!slot)
		return MS_HVA_ERR_BAD;
	if (write && (slot->flags & RO))
		return MS_HVA_ERR_RO_BAD;
	return slot->userspace_addr + (gfn - slot->base_gfn) * PAGE;
}

/* ---- by gfn ---- */

static uint64_t gfns[4096];
static size_t nr_gfns;

static void gather_gfns(void)
{
	static const uint64_t odd[] = { (uint64_t)1 << 51, (uint64_t)1 << 52, (uint64_t)1 << 63, ~(uint64_t)0 };

	for (size_t i = 0; i < ARRAY_SIZE(layout); i++)
		for (uint64_t gfn = layout[i].base_gfn - 2; gfn != layout[i].base_gfn + layout[i].npages + 2; gfn++)
			gfns[nr_gfns++] = gfn;
	for (size_t i = 0; i < ARRAY_SIZE(odd); i++)
		gfns[nr_gfns++] = odd[i];
}

static void check_gfn(struct ms_vm *vm, struct ms_vcpu *vcpu, uint32_t as_id, uint64_t gfn)
{
	const struct ms_memslot *want = slot_at(as_id, gfn);
	struct ms_memslot got, untouched = { .reserved = 77 };
	bool writable = !want || (want->flags & RO);

	got = untouched;
	SAME(ms_gfn_to_memslot(vm, as_id, gfn, &got), want ? 0 : -ENOENT);
	CHECK(same_slot(&got, want ? want : &untouched));
	SAME(ms_gfn_to_hva(vm, as_id, gfn), hva_at(as_id, gfn, true));
	SAME(ms_gfn_to_hva_prot(vm, as_id, gfn, &writable), hva_at(as_id, gfn, false));
	SAME(writable, !want || !(want->flags & RO)); /* unchanged in a hole */
	SAME(ms_is_visible_gfn(vm, as_id, gfn), want && want->id < USER_SLOTS);
	if (ms_vcpu_set_as_id(vcpu, as_id))
		return;
	got = untouched;
	SAME(ms_vcpu_gfn_to_memslot(vcpu, gfn, &got), want ? 0 : -ENOENT);
	CHECK(same_slot(&got, want ? want : &untouched));
	SAME(ms_vcpu_gfn_to_hva(vcpu, gfn), hva_at(as_id, gfn, true));
}

/* In each order that matters for hints: ascending, descending, one space after the other, and mixed. */
static void test_gfn(struct ms_vm *vm)
{
	struct rng rng = rng_stream(1);
	struct ms_vcpu *vcpu;

	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	for (uint32_t as_id = 0; as_id < 5; as_id++) {
		for (size_t i = 0; i < nr_gfns; i++)
			check_gfn(vm, vcpu, as_id, gfns[i]);
		for (size_t i = nr_gfns; i-- > 0;)
			check_gfn(vm, vcpu, as_id, gfns[i]);
	}
	for (uint64_t i = 0; i < test_times(100000); i++)
		check_gfn(vm, vcpu, (uint32_t)rng_below(&rng, 4), gfns[rng_below(&rng, nr_gfns)]);
	SAME(ms_vcpu_set_as_id(vcpu, 3), -EINVAL);
	SAME(ms_vcpu_set_as_id(vcpu, ~0u), -EINVAL);
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, 2), 0);
	SAME(ms_vcpu_as_id(vcpu), 2);
	ms_vcpu_destroy(vcpu);
}

static void test_id(struct ms_vm *vm)
{
	for (uint32_t as_id = 0; as_id < 5; as_id++)
		for (uint32_t id = 0; id < USER_SLOTS + 5; id++) {
			const struct ms_memslot *want = NULL;
			struct ms_memslot got;

			for (size_t i = 0; i < ARRAY_SIZE(layout); i++)
				if (layout[i].as_id == as_id && layout[i].id == id)
					want = &layout[i];
			SAME(ms_id_to_memslot(vm, as_id, id, &got), want ? 0 : -ENOENT);
			CHECK(!want || same_slot(&got, want));
		}
	SAME(ms_id_to_memslot(vm, 0, ~0u, &(struct ms_memslot){ 0 }), -ENOENT);
	SAME(ms_id_to_memslot(vm, ~0u, 0, &(struct ms_memslot){ 0 }), -ENOENT);
}

/* ---- ranges ---- */

#define MANY 16

typedef size_t range_fn(struct ms_vm *vm, uint32_t as_id, uint64_t from, uint64_t to, struct ms_memslot *out,
			size_t room);

static bool is_one_of(const struct ms_memslot *slot, const struct ms_memslot *const *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (same_slot(slot, list[i]))
			return true;
	return false;
}

/* With too little room the design decides which slots are written; the tree writes the first ones. */
static void check_some(const struct ms_memslot *got, size_t room, const struct ms_memslot *const *want, size_t n)
{
	for (size_t i = 0; i < room; i++) {
		CHECK(is_one_of(&got[i], want, n));
		CHECK(!design_is("tree") || same_slot(&got[i], want[i]));
		for (size_t j = 0; j < i; j++)
			CHECK(!same_slot(&got[i], &got[j]));
	}
}

/* Calls with every room from none to enough: the count is the same, and nothing is written beyond the room. */
static void check_range(range_fn *list, struct ms_vm *vm, uint32_t as_id, uint64_t from, uint64_t to,
			const struct ms_memslot *const *want, size_t n)
{
	const struct ms_memslot untouched = { .reserved = 77 };

	for (size_t room = 0; room <= n + 1; room++) {
		struct ms_memslot got[MANY];

		for (size_t i = 0; i < MANY; i++)
			got[i] = untouched;
		SAME(list(vm, as_id, from, to, room ? got : NULL, room), n);
		for (size_t i = 0; room >= n && i < n; i++)
			CHECK(same_slot(&got[i], want[i]));
		if (room < n)
			check_some(got, room, want, n);
		for (size_t i = room < n ? room : n; i < MANY; i++)
			CHECK(same_slot(&got[i], &untouched));
	}
}

static void check_gfn_range(struct ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t end)
{
	const struct ms_memslot *want[MANY];
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(layout); i++)
		if (start < end && layout[i].as_id == as_id && layout[i].base_gfn < end &&
		    layout[i].base_gfn + layout[i].npages > start)
			want[n++] = &layout[i];
	check_range(ms_memslots_in_gfn_range, vm, as_id, start, end, want, n);
}

static bool before_by_hva(const struct ms_memslot *a, const struct ms_memslot *b)
{
	if (a->userspace_addr != b->userspace_addr)
		return a->userspace_addr < b->userspace_addr;
	return a->base_gfn < b->base_gfn;
}

static void insert_by_hva(const struct ms_memslot **list, size_t n, const struct ms_memslot *slot)
{
	for (; n > 0 && before_by_hva(slot, list[n - 1]); n--)
		list[n] = list[n - 1];
	list[n] = slot;
}

/* `last` is included. */
static void check_hva_range(struct ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t last)
{
	const struct ms_memslot *want[MANY];
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(layout); i++)
		if (start <= last && layout[i].as_id == as_id && layout[i].userspace_addr <= last &&
		    layout[i].userspace_addr + layout[i].npages * PAGE - 1 >= start)
			insert_by_hva(want, n++, &layout[i]);
	check_range(ms_memslots_in_hva_range, vm, as_id, start, last, want, n);
}

static uint64_t hvas[128];
static size_t nr_hvas;

static void gather_hvas(void)
{
	hvas[nr_hvas++] = 0;
	hvas[nr_hvas++] = ~(uint64_t)0;
	hvas[nr_hvas++] = SHARED + 0x5678;
	for (size_t i = 0; i < ARRAY_SIZE(layout); i++)
		for (int off = -1; off < 2; off++) {
			hvas[nr_hvas++] = layout[i].userspace_addr + (uint64_t)off;
			hvas[nr_hvas++] = layout[i].userspace_addr + layout[i].npages * PAGE + (uint64_t)off;
		}
}

static void test_ranges(struct ms_vm *vm)
{
	struct rng rng = rng_stream(2);

	for (uint32_t as_id = 0; as_id < 4; as_id++) {
		for (size_t i = 0; i < nr_hvas; i++)
			for (size_t j = 0; j < nr_hvas; j++) /* empty and reversed ranges too */
				check_hva_range(vm, as_id, hvas[i], hvas[j]);
		check_gfn_range(vm, as_id, 0, ~(uint64_t)0);
		check_gfn_range(vm, as_id, ~(uint64_t)0, ~(uint64_t)0);
		check_gfn_range(vm, as_id, TOP_GFN, ~(uint64_t)0);
		check_gfn_range(vm, as_id, TOP_GFN + 1, ~(uint64_t)0);
		check_gfn_range(vm, as_id, 0x18, 0x18); /* empty, though inside a slot */
	}
	for (uint64_t i = 0; i < test_times(20000); i++)
		check_gfn_range(vm, (uint32_t)rng_below(&rng, 4), gfns[rng_below(&rng, nr_gfns)],
				gfns[rng_below(&rng, nr_gfns)]);
}

static void test_all_slots(struct ms_vm *vm)
{
	static const size_t nr_of[] = { 7, 2, 0, 0 };
	struct ms_memslot got[MANY];

	for (uint32_t as_id = 0; as_id < 4; as_id++) {
		SAME(ms_memslots(vm, as_id, got, MANY), nr_of[as_id]);
		for (size_t i = 0, at = as_id ? 7 : 0; i < nr_of[as_id]; i++)
			CHECK(same_slot(&got[i], &layout[at + i]));
		SAME(ms_memslots(vm, as_id, NULL, 0), nr_of[as_id]);
	}
	SAME(ms_nr_memslots(vm), ARRAY_SIZE(layout));
}

/* All (slot, gfn) for a byte, by (as_id, userspace_addr, base_gfn). */
static void check_hits(struct ms_vm *vm, uint64_t hva)
{
	const struct ms_memslot *want[MANY];
	struct ms_hva_hit got[MANY];
	size_t n = 0, nr, none;

	for (uint32_t as_id = 0; as_id < 3; as_id++) {
		size_t first = n;

		for (size_t i = 0; i < ARRAY_SIZE(layout); i++)
			if (layout[i].as_id == as_id && hva >= layout[i].userspace_addr &&
			    hva - layout[i].userspace_addr < layout[i].npages * PAGE) {
				insert_by_hva(want + first, n - first, &layout[i]);
				n++;
			}
	}
	memset(got, 0x55, sizeof(got));
	nr = ms_hva_to_gfns(vm, hva, got, MANY);
	none = ms_hva_to_gfns(vm, hva, NULL, 0);
	SAME(nr, n);
	SAME(none, n);
	for (size_t i = 0; i < n; i++) {
		CHECK(same_slot(&got[i].slot, want[i]));
		SAME(got[i].gfn, want[i]->base_gfn + (hva - want[i]->userspace_addr) / PAGE);
	}
	memset(got, 0x55, sizeof(got));
	CHECK_EQ(ms_hva_to_gfns(vm, hva, got, n ? n - 1 : 0), n); /* too little room: some, and their number */
	for (size_t i = 0; i + 1 < n; i++)
		CHECK(is_one_of(&got[i].slot, want, n));
	CHECK_EQ(got[n ? n - 1 : 0].gfn, 0x5555555555555555);
}

static void test_hva(struct ms_vm *vm)
{
	for (size_t i = 0; i < nr_hvas; i++)
		check_hits(vm, hvas[i]);
	for (uint64_t hva = SHARED; hva < SHARED + 0x20000; hva += 0x7ff)
		check_hits(vm, hva);
}

/* ---- batches ---- */

struct record {
	uint64_t in;
	uint64_t before, hva, after;
	int32_t id, guard;
};

/* An input is its gfn shifted by `shift`, plus bytes within the page. */
static void check_record(const struct record *r, uint32_t as_id, bool write, unsigned shift)
{
	uint64_t gfn = r->in >> shift, hva = hva_at(as_id, gfn, write);
	const struct ms_memslot *slot = slot_at(as_id, gfn);

	SAME(r->hva, hva < MS_HVA_ERR_MIN && shift ? hva + r->in % PAGE : hva);
	if (!shift)
		SAME(r->id, slot ? (int32_t)slot->id : -1);
	CHECK_EQ(r->before, 1);
	CHECK_EQ(r->after, 2);
	CHECK_EQ(r->guard, 3);
}

static void run_batch(struct ms_vm *vm, uint32_t as_id, struct record *r, ptrdiff_t step, size_t n, bool write,
		      unsigned shift)
{
	ptrdiff_t stride = step * (ptrdiff_t)sizeof(*r);
	struct ms_batch batch = { .in = &r->in, .in_stride = stride, .out = &r->hva, .out_stride = stride, .n = n };
	struct ms_batch ids = { .in = &r->in, .in_stride = stride, .out = &r->id, .out_stride = stride, .n = n };

	if (shift)
		ms_gpa_to_hva_many(vm, as_id, &batch, write);
	else
		ms_gfn_to_hva_many(vm, as_id, &batch, write);
	if (!shift)
		ms_gfn_to_slot_id_many(vm, as_id, &ids);
}

static void check_batch(struct ms_vm *vm, uint32_t as_id, ptrdiff_t step, bool write, unsigned shift)
{
	static struct record records[2048];
	size_t n = nr_gfns < 512 ? nr_gfns : 512, width = (size_t)(step < 0 ? -step : step);
	struct record *first = step < 0 ? &records[(n - 1) * width] : records;

	for (size_t i = 0; i < n * width; i++)
		records[i] = (struct record){ gfns[i % nr_gfns] << shift | (shift ? i * 37 % PAGE : 0), 1, 0, 2, 0, 3 };
	run_batch(vm, as_id, first, step, n, write, shift);
	for (size_t i = 0; i < n * width; i++)
		if (i % width == 0)
			check_record(&records[i], as_id, write, shift);
		else
			CHECK_EQ(records[i].hva, 0);
}

static void test_batches(struct ms_vm *vm)
{
	static const ptrdiff_t steps[] = { 1, 3, -1, -2 };

	for (uint32_t as_id = 0; as_id < 4; as_id++)
		for (size_t i = 0; i < ARRAY_SIZE(steps); i++)
			for (int write = 0; write < 2; write++) {
				check_batch(vm, as_id, steps[i], write, 0);
				check_batch(vm, as_id, steps[i], write, MS_PAGE_SHIFT);
			}
}

static void test_odd_batches(struct ms_vm *vm)
{
	uint64_t in = 0x12, out[5], alone = 99;
	struct ms_batch same_input = { &in, 0, out, 8, 5, NULL, NULL },
			reversed = { &in, 0, &out[4], -8, 3, NULL, NULL };
	struct ms_batch empty = { NULL, 8, NULL, 8, 0, NULL, NULL }, same_output = { &in, 0, &alone, 0, 7, NULL, NULL };

	ms_gfn_to_hva_many(vm, 0, &same_input, true);
	for (int i = 0; i < 5; i++)
		SAME(out[i], SHARED + 2 * PAGE);
	memset(out, 0, sizeof(out));
	ms_gfn_to_hva_many(vm, 0, &reversed, true);
	SAME(out[1], 0);
	SAME(out[2], SHARED + 2 * PAGE);
	ms_gfn_to_hva_many(vm, 0, &empty, true);
	ms_gpa_to_hva_many(vm, 9, &empty, true);
	ms_gfn_to_slot_id_many(vm, 0, &empty);
	ms_gfn_to_hva_many(vm, 0, &same_output, true);
	SAME(alone, SHARED + 2 * PAGE);
	ms_gfn_to_hva_many(vm, 77, &same_output, true);
	SAME(alone, MS_HVA_ERR_BAD);
}

/* The output of a batch is its input: each value is read before its answer is written. */
static void test_batch_in_place(struct ms_vm *vm)
{
	uint64_t data[64];
	struct ms_batch batch = { data, 8, data, 8, 64, NULL, NULL };

	for (uint64_t i = 0; i < 64; i++)
		data[i] = i;
	ms_gfn_to_hva_many(vm, 0, &batch, false);
	for (uint64_t i = 0; i < 64; i++)
		SAME(data[i], hva_at(0, i, false));
}

/* ---- marks ---- */

static void take_log(struct ms_vm *vm, uint32_t id, uint64_t *words, size_t n)
{
	size_t nwords;

	CHECK_EQ(ms_get_dirty_log(vm, 0, id, words, n, &nwords, NULL), 0);
	SAME(nwords, n);
}

static void mark_many(struct ms_vm *vm, uint32_t as_id, const uint64_t *pages, ptrdiff_t stride, size_t n)
{
	struct ms_batch batch = { .in = pages, .in_stride = stride, .n = n };

	CHECK_EQ(ms_mark_page_dirty_many(vm, as_id, &batch), 0);
}

static void test_marks(struct ms_vm *vm)
{
	uint64_t words[4], marked[] = { 0x100, 0, 0x13f, 0, 0x140, 0, 0x1c7, 0, 0x1c8, 0, 0x31, 0 };

	ms_mark_page_dirty(vm, 0, 0x10);
	ms_mark_page_dirty(vm, 0, 0x1f);
	ms_mark_page_dirty(vm, 0, 0x20); /* READONLY, without a log */
	ms_mark_page_dirty(vm, 0, 0x30); /* a hole */
	ms_mark_page_dirty(vm, 9, 0x12);
	ms_mark_page_dirty(vm, 1, 0x12);
	ms_mark_page_dirty(vm, 0, ~(uint64_t)0);
	mark_many(vm, 0, marked, 16, ARRAY_SIZE(marked) / 2);
	mark_many(vm, 9, marked, 16, ARRAY_SIZE(marked) / 2);
	mark_many(vm, 0, NULL, 8, 0);
	take_log(vm, 3, words, 1);
	SAME(words[0], 1u << 15 | 1u);
	take_log(vm, 1, words, 1); /* marks ignore READONLY */
	SAME(words[0], 1);
	take_log(vm, 0, words, 4);
	SAME(words[0], (uint64_t)1 << 63 | 1);
	SAME(words[1], 1);
	SAME(words[2], 0);
	SAME(words[3], 1u << 7);
	mark_many(vm, 0, &marked[6], -16, 4); /* backwards */
	take_log(vm, 0, words, 4);
	SAME(words[0], (uint64_t)1 << 63 | 1);
	SAME(words[1], 1);
	SAME(words[3], 1u << 7);
	take_log(vm, 0, words, 4);
	SAME(words[0] | words[1] | words[2] | words[3], 0);
}

/* ---- hints ---- */

static struct memslot *hint(struct ms_vm *vm, uint32_t as_id, bool active)
{
	struct memslot_set *from = active ? vm_active_set(vm, as_id) : vm_inactive_set(vm, as_id);

	return atomic_load(&from->last_used_slot);
}

static struct memslot *member(struct ms_vm *vm, uint32_t as_id, uint32_t id)
{
	return vm->design->find(vm_active_set(vm, as_id), id);
}

/* Looks up a page and returns how it was answered: 'h' by the hint, 's' by a search, 'm' a miss. */
static char answer_of(struct ms_vm *vm, uint64_t gfn)
{
	struct ms_stats was = stats_of(vm), now;
	struct ms_memslot slot;

	ms_gfn_to_memslot(vm, 0, gfn, &slot);
	now = stats_of(vm);
	CHECK_EQ(now.hits_last_used + now.hits_search + now.misses,
		 was.hits_last_used + was.hits_search + was.misses + 1);
	return now.hits_last_used > was.hits_last_used ? 'h' : now.hits_search > was.hits_search ? 's' : 'm';
}

static struct ms_vm *two_slots(void)
{
	struct ms_vm *vm = new_vm(2);

	CHECK_EQ(set(vm, 0, 1, 0x100, 16, 0), 0);
	CHECK_EQ(set(vm, 0, 2, 0x200, 16, 0), 0);
	CHECK_EQ(set(vm, 1, 1, 0x100, 16, 0), 0);
	return vm;
}

static void test_set_hint(void)
{
	struct ms_vm *vm = two_slots();

	SAME(hint(vm, 0, true), 0);
	SAME(answer_of(vm, 0x10), 'm');
	SAME(hint(vm, 0, true), 0);
	SAME(answer_of(vm, 0x100), 's');
	SAME(hint(vm, 0, true), member(vm, 0, 1));
	SAME(answer_of(vm, 0x10f), 'h');
	SAME(answer_of(vm, 0x110), 'm'); /* a miss does not change it */
	SAME(answer_of(vm, 0x100), 'h');
	SAME(answer_of(vm, 0x200), 's'); /* the hint moves at the second lookup of another slot in a row */
	SAME(hint(vm, 0, true), member(vm, 0, 1));
	SAME(answer_of(vm, 0x30), 'm');
	SAME(answer_of(vm, 0x201), 's');
	SAME(hint(vm, 0, true), member(vm, 0, 2));
	SAME(answer_of(vm, 0x202), 'h');
	SAME(answer_of(vm, 0x100), 's');
	SAME(hint(vm, 0, true), member(vm, 0, 2));
	SAME(hint(vm, 0, false), 0); /* each set has its own hint, */
	SAME(hint(vm, 1, true), 0);  /* and so has each address space */
	end_vm(vm);
}

/* Gives each set of space 0 a hint by a lookup while the set is active.  Two changes of another slot make the first set
 * active again. */
static void give_hints(struct ms_vm *vm, uint64_t gfn_active, uint64_t gfn_inactive)
{
	CHECK_EQ(set(vm, 0, 30, 0x9000, 1, 0), 0);
	for (int i = 0; i < 2; i++)
		answer_of(vm, gfn_inactive);
	CHECK_EQ(set(vm, 0, 30, 0x9000, 1, LOG), 0);
	for (int i = 0; i < 2; i++)
		answer_of(vm, gfn_active);
}

/* After a change of slot 1, both sets' hints must be slot 1 as it is now, or NULL if it was deleted; a hint of slot 2
 * stays. */
static void check_hints(struct ms_vm *vm, uint32_t on_active, uint32_t on_inactive)
{
	SAME(hint(vm, 0, true), on_active ? member(vm, 0, on_active) : NULL);
	SAME(hint(vm, 0, false), on_inactive ? member(vm, 0, on_inactive) : NULL);
	check_sound(vm);
}

enum step { FLAGS, MOVE, DELETE, CREATE };

static void make_step(struct ms_vm *vm, enum step step)
{
	switch (step) {
	case FLAGS:
		CHECK_EQ(set(vm, 0, 1, 0x100, 16, LOG), 0);
		break;
	case MOVE:
		CHECK_EQ(set(vm, 0, 1, 0x108, 16, 0), 0);
		break;
	case DELETE:
		CHECK_EQ(set(vm, 0, 1, 0x100, 0, 0), 0);
		break;
	case CREATE:
		CHECK_EQ(set(vm, 0, 3, 0x300, 16, 0), 0);
		break;
	}
}

/* CREATE and FLAGS_ONLY swap the sets once, so their hints change places; DELETE and MOVE swap twice. */
static void test_set_hint_carried(void)
{
	for (enum step step = FLAGS; step <= CREATE; step++)
		for (uint32_t active = 1; active <= 2; active++)
			for (uint32_t inactive = 1; inactive <= 2; inactive++) {
				bool flips = step == FLAGS || step == CREATE, gone = step == DELETE;
				struct ms_vm *vm = two_slots();
				uint32_t a = flips ? inactive : active, b = flips ? active : inactive;

				give_hints(vm, active * 0x100, inactive * 0x100);
				check_hints(vm, active, inactive);
				make_step(vm, step);
				check_hints(vm, gone && a == 1 ? 0 : a, gone && b == 1 ? 0 : b);
				SAME(answer_of(vm, a == 1 ? 0x108 : 0x208), gone && a == 1 ? 'm' : 'h');
				end_vm(vm);
			}
}

/* A lookup between the two swaps stores the INVALID copy as the hint; the hint must not outlive the change. */
static bool refuse;

static int look_up_in_flush(void *opaque, const struct ms_change *change)
{
	struct ms_vm *vm = *(struct ms_vm **)opaque;

	if (change->old_slot.npages) {
		for (int i = 0; i < 2; i++)
			answer_of(vm, change->old_slot.base_gfn);
		CHECK(hint(vm, 0, true)->flags & MS_MEMSLOT_INVALID || change->kind == MS_FLAGS_ONLY);
	}
	return refuse ? -EPERM : 0;
}

static void test_set_hint_on_invalid(void)
{
	static struct ms_vm *vm;
	static const struct ms_listener l = { LISTENER_SIZE, .opaque = &vm, .prepare = look_up_in_flush };

	for (enum step step = MOVE; step <= DELETE; step++)
		for (int refused = 0; refused < 2; refused++) {
			vm = two_slots();
			CHECK_EQ(ms_add_listener(vm, &l, NULL), 0);
			answer_of(vm, 0x100);
			refuse = refused;
			SAME(step == MOVE ? set(vm, 0, 1, 0x108, 16, 0) : set(vm, 0, 1, 0, 0, 0), refused ? -EPERM : 0);
			refuse = false;
			check_hints(vm, refused || step == MOVE, refused || step == MOVE);
			SAME(answer_of(vm, 0x10f), step == DELETE && !refused ? 'm' : 'h');
			end_vm(vm);
		}
}

static char vcpu_answer_of(struct ms_vcpu *vcpu, uint64_t gfn)
{
	struct ms_stats was = stats_of(vcpu->vm), now;
	struct ms_memslot slot;

	ms_vcpu_gfn_to_memslot(vcpu, gfn, &slot);
	now = stats_of(vcpu->vm);
	if (now.vcpu_bypasses > was.vcpu_bypasses)
		return 'b';
	return now.hits_last_used > was.hits_last_used ? 'h' : now.hits_search > was.hits_search ? 's' : 'm';
}

static void test_vcpu_hint(void)
{
	struct ms_vm *vm = two_slots();
	struct ms_vcpu *vcpu, *second;

	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	CHECK_EQ(ms_vcpu_create(vm, &second, NULL), 0);
	SAME(vcpu_answer_of(vcpu, 0x10), 'm');
	SAME(vcpu_answer_of(vcpu, 0x100), 's');
	SAME(vcpu_answer_of(vcpu, 0x101), 'h');
	SAME(vcpu_answer_of(vcpu, 0x10), 'm');
	SAME(vcpu_answer_of(vcpu, 0x102), 'h'); /* a miss does not change it */
	SAME(vcpu_answer_of(second, 0x102), 's');
	SAME(hint(vm, 0, true), 0); /* the set's hint is neither read nor written */
	answer_of(vm, 0x200);
	SAME(vcpu_answer_of(vcpu, 0x200), 's');
	SAME(hint(vm, 0, true), member(vm, 0, 2));
	ms_vcpu_destroy(second);
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
}

/* A change drops the vCPU hints of its address space only; a refused or empty change drops none. */
static void test_vcpu_hint_dropped(void)
{
	for (enum step step = FLAGS; step <= CREATE; step++) {
		struct ms_vm *vm = two_slots();
		struct ms_vcpu *vcpu;

		CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
		vcpu_answer_of(vcpu, 0x200);
		CHECK_EQ(set(vm, 0, 1, 0x200, 16, 0), -EEXIST);
		CHECK_EQ(set(vm, 0, 1, 0x100, 16, 0), 0);
		CHECK_EQ(set(vm, 1, 7, 0x800, 1, 0), 0);
		SAME(vcpu_answer_of(vcpu, 0x200), 'h');
		make_step(vm, step);
		SAME(vcpu_answer_of(vcpu, 0x200), 's');
		SAME(vcpu->hint.slot, member(vm, 0, 2));
		SAME(vcpu->hint.generation, ms_generation(vm, 0));
		SAME(vcpu_answer_of(vcpu, 0x208), 'h');
		check_sound(vm);
		ms_vcpu_destroy(vcpu);
		end_vm(vm);
	}
}

/* Generations have 64 bits: two that differ only in the upper half are different. */
static void test_vcpu_hint_of_old_generation(void)
{
	struct ms_vm *vm = two_slots();
	struct ms_memslot slot;
	struct ms_vcpu *vcpu;
	uint64_t gen;

	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	vcpu_answer_of(vcpu, 0x100);
	gen = vcpu->hint.generation;
	make_step(vm, DELETE);
	atomic_store(&vm_active_set(vm, 0)->generation, gen + ((uint64_t)1 << 32));
	SAME(ms_vcpu_gfn_to_memslot(vcpu, 0x100, &slot), -ENOENT);
	SAME(vcpu_answer_of(vcpu, 0x200), 's');
	check_sound(vm);
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
}

/* A new vCPU reuses one that was destroyed. */
static void test_vcpus_are_reused(void)
{
	struct ms_vm *vm = two_slots();
	struct ms_vcpu *vcpu[3], *again;
	uint64_t blocks = stats_of(vm).blocks;

	for (int i = 0; i < 3; i++)
		CHECK_EQ(ms_vcpu_create(vm, &vcpu[i], NULL), 0);
	CHECK(vcpu[0] != vcpu[1] && vcpu[1] != vcpu[2] && vcpu[0] != vcpu[2]);
	for (int i = 0; i < 3; i++) {
		ms_vcpu_destroy(vcpu[i]);
		CHECK_EQ(ms_vcpu_create(vm, &again, NULL), 0);
		SAME(again, vcpu[i]);
	}
	SAME(stats_of(vm).blocks, blocks + 3);
	for (int i = 0; i < 3; i++)
		ms_vcpu_destroy(vcpu[i]);
	end_vm(vm);
}

/* Generations of address spaces always differ, so a switch of the space drops the hint. */
static void test_vcpu_switch(void)
{
	struct ms_vm *vm = two_slots();
	struct ms_vcpu *vcpu, *again;
	struct ms_memslot slot;

	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	for (int round = 0; round < 8; round++) {
		CHECK_EQ(ms_vcpu_set_as_id(vcpu, 0), 0);
		SAME(vcpu_answer_of(vcpu, 0x100), 's');
		CHECK_EQ(ms_vcpu_set_as_id(vcpu, 1), 0);
		SAME(ms_vcpu_gfn_to_memslot(vcpu, 0x100, &slot), 0);
		SAME(slot.as_id, 1);
		SAME(slot.userspace_addr, hva_for(1, 1));
		SAME(vcpu_answer_of(vcpu, 0x200), 'm');
		CHECK_EQ(set(vm, (uint32_t)round & 1, 9, 0x900 + (uint64_t)round, 1, 0), 0);
	}
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, 1), 0);
	vcpu_answer_of(vcpu, 0x100);
	ms_vcpu_destroy(vcpu);
	CHECK_EQ(ms_vcpu_create(vm, &again, NULL), 0); /* a reused vCPU starts like a new one */
	SAME(ms_vcpu_as_id(again), 0);
	SAME(vcpu_answer_of(again, 0x100), 's');
	ms_vcpu_destroy(again);
	end_vm(vm);
}

/* While another thread stores a hint, lookups search and store none. */
static void test_vcpu_hint_locked(void)
{
	struct ms_vm *vm = two_slots();
	struct ms_memslot slot;
	struct ms_vcpu *vcpu;

	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	vcpu_answer_of(vcpu, 0x100);
	atomic_fetch_add(&vcpu->hint.version, 1);
	SAME(vcpu_answer_of(vcpu, 0x100), 'b');
	SAME(vcpu_answer_of(vcpu, 0x200), 'b');
	SAME(vcpu_answer_of(vcpu, 0x300), 'm');
	SAME(ms_vcpu_gfn_to_memslot(vcpu, 0x201, &slot), 0);
	SAME(slot.id, 2);
	SAME(ms_vcpu_gfn_to_hva(vcpu, 0x201), hva_for(0, 2) + PAGE);
	SAME(vcpu->hint.slot, member(vm, 0, 1));
	atomic_fetch_add(&vcpu->hint.version, 1);
	SAME(vcpu_answer_of(vcpu, 0x101), 'h');
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
}

/* Each search stores a hint with a new version.  Hits and misses write nothing to the vCPU. */
static void test_vcpu_hit_only_reads(void)
{
	struct ms_vm *vm = two_slots();
	struct ms_vcpu *vcpu;

	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	SAME(ms_vcpu_gfn_to_hva(vcpu, 0x10), MS_HVA_ERR_BAD); /* stores the record of this thread */
	for (uint64_t version = 2; version <= 20; version += 2) {
		uint64_t gfn = version % 4 ? 0x100 : 0x200;
		struct ms_vcpu before;

		SAME(vcpu_answer_of(vcpu, gfn), 's');
		SAME(vcpu->hint.version, version);
		memcpy(&before, vcpu, sizeof(before));
		SAME(vcpu_answer_of(vcpu, gfn + 1), 'h');
		SAME(ms_vcpu_gfn_to_hva(vcpu, gfn + 2), hva_for(0, gfn >> 8) + 2 * PAGE);
		SAME(vcpu_answer_of(vcpu, 0x10), 'm');
		SAME(ms_vcpu_gfn_to_hva(vcpu, 0x10), MS_HVA_ERR_BAD);
		SAME(memcmp(&before, vcpu, sizeof(before)), 0);
	}
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
}

/* A vCPU that is older than every slot has no hint. */
static void test_vcpu_of_empty_vm(void)
{
	struct ms_vm *vm = new_vm(2);
	struct ms_vcpu *vcpu;

	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	SAME(vcpu_answer_of(vcpu, 0), 'm');
	SAME(ms_vcpu_gfn_to_hva(vcpu, 0), MS_HVA_ERR_BAD);
	check_sound(vm);
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
}

/* Two threads on one vCPU, with a writer: the answers are right, whichever has the hint. */
static struct ms_vcpu *crowded;
static _Atomic bool stop;

static void *crowd(void *arg)
{
	uint64_t n = 0;

	while (!atomic_load(&stop) || n < 1000) {
		uint64_t hva = ms_vcpu_gfn_to_hva(crowded, 0x200 + n % 16), at = hva_for(0, 2) + n % 16 * PAGE;

		CHECK_EQ(hva, at);
		hva = ms_vcpu_gfn_to_hva(crowded, 0x10f);
		CHECK(hva == hva_for(0, 1) + 15 * PAGE || hva == hva_for(0, 1) + 7 * PAGE || hva == MS_HVA_ERR_BAD);
		n++;
	}
	*(uint64_t *)arg = n;
	return NULL;
}

static void test_vcpu_crowd(void)
{
	struct ms_vm *vm = two_slots();
	uint64_t n[2];
	pthread_t thread[2];

	CHECK_EQ(ms_vcpu_create(vm, &crowded, NULL), 0);
	atomic_store(&stop, false);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&thread[i], NULL, crowd, &n[i]), 0);
	for (uint64_t i = 0; i < test_times(4000); i++)
		CHECK_EQ(set(vm, 0, 1, i % 2 ? 0x100 : 0x108, 16, i % 4 < 2 ? LOG : 0), 0);
	atomic_store(&stop, true);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
		answers += n[i];
	}
	check_sound(vm);
	ms_vcpu_destroy(crowded);
	end_vm(vm);
}

/* ---- one section, one state ---- */

static _Atomic int writer_done;

/* Three changes in two spaces; the first one waits while the section is open. */
static void *change_both(void *arg)
{
	struct ms_vm *vm = arg;

	CHECK_EQ(set(vm, 0, 1, 0x500, 16, LOG), 0);
	atomic_fetch_add(&writer_done, 1);
	CHECK_EQ(set(vm, 1, 1, 0x600, 16, LOG), 0);
	atomic_fetch_add(&writer_done, 1);
	CHECK_EQ(set(vm, 0, 2, 0, 0, 0), 0);
	atomic_fetch_add(&writer_done, 1);
	return NULL;
}

static void check_old_state(struct ms_vm *vm, struct ms_vcpu *vcpu, uint64_t gen)
{
	struct ms_memslot slot[4];
	struct ms_hva_hit hit[4];
	uint64_t in[2] = { 0x100, 0x500 }, out[2];
	struct ms_batch batch = { in, 8, out, 8, 2, NULL, NULL };

	SAME(ms_gfn_to_hva(vm, 0, 0x100), hva_for(0, 1));
	SAME(ms_gfn_to_hva(vm, 0, 0x500), MS_HVA_ERR_BAD);
	SAME(ms_gfn_to_hva(vm, 1, 0x100), hva_for(1, 1));
	SAME(ms_gfn_to_memslot(vm, 0, 0x100, slot), 0);
	SAME(slot[0].flags, 0);
	SAME(ms_id_to_memslot(vm, 0, 1, slot), 0);
	SAME(slot[0].base_gfn, 0x100);
	SAME(ms_memslots(vm, 0, slot, 4), 2);
	SAME(slot[0].base_gfn, 0x100);
	SAME(ms_memslots_in_hva_range(vm, 0, hva_for(0, 1), hva_for(0, 1), slot, 4), 1);
	SAME(slot[0].base_gfn, 0x100);
	SAME(ms_hva_to_gfns(vm, hva_for(0, 1) + PAGE, hit, 4), 1);
	SAME(hit[0].gfn, 0x101);
	ms_gfn_to_hva_many(vm, 0, &batch, true);
	SAME(out[0], hva_for(0, 1));
	SAME(out[1], MS_HVA_ERR_BAD);
	SAME(ms_vcpu_gfn_to_hva(vcpu, 0x100), hva_for(0, 1));
	SAME(ms_generation(vm, 0), gen);
}

static void test_one_state(void)
{
	struct ms_vm *vm = two_slots();
	uint64_t was = atomic_load(&vm->active), gen = ms_generation(vm, 0);
	struct ms_vcpu *vcpu;
	pthread_t writer;

	atomic_store(&writer_done, 0);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(pthread_create(&writer, NULL, change_both, vm), 0);
	while (atomic_load(&vm->active) == was)
		usleep(100);
	for (int i = 0; i < 3; i++) { /* a new state is published, but this section and its nested ones do not see it */
		check_old_state(vm, vcpu, gen);
		CHECK_EQ(ms_read_lock(vm), 0);
		check_old_state(vm, vcpu, gen);
		ms_read_unlock(vm);
		usleep(5000);
	}
	SAME(atomic_load(&writer_done), 0); /* the writer waits for this section */
	ms_read_unlock(vm);
	CHECK_EQ(pthread_join(writer, NULL), 0);
	SAME(atomic_load(&writer_done), 3);
	SAME(ms_gfn_to_hva(vm, 0, 0x500), hva_for(0, 1));
	SAME(ms_gfn_to_hva(vm, 0, 0x100), MS_HVA_ERR_BAD);
	SAME(ms_gfn_to_hva(vm, 1, 0x600), hva_for(1, 1));
	check_sound(vm);
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
}

/* Any section sees a moving slot at one place: at the old one, INVALID there, or at the new one. */
static void *move_back_and_forth(void *arg)
{
	struct ms_vm *vm = arg;

	for (uint64_t i = 1; i <= test_times(4000); i++)
		CHECK_EQ(set(vm, 0, 1, i & 1 ? 0x110 : 0x100, 16, 0), 0);
	atomic_store(&stop, true);
	return NULL;
}

static void check_one_place(struct ms_vm *vm)
{
	uint64_t in[2] = { 0x100, 0x110 }, out[2], valid;
	struct ms_batch batch = { in, 8, out, 8, 2, NULL, NULL };
	struct ms_memslot slot[3];

	ms_gfn_to_hva_many(vm, 0, &batch, true);
	valid = (out[0] == hva_for(0, 1)) + (out[1] == hva_for(0, 1));
	CHECK(valid <= 1);
	CHECK_EQ((out[0] == MS_HVA_ERR_BAD) + (out[1] == MS_HVA_ERR_BAD), 2 - valid);
	SAME(ms_memslots(vm, 0, slot, 3), 2);
	SAME(slot[0].id, 1);
	SAME(slot[0].userspace_addr, hva_for(0, 1));
	SAME(ms_hva_to_gfns(vm, hva_for(0, 1), NULL, 0), 1);
}

static void test_one_place(void)
{
	struct ms_vm *vm = two_slots();
	pthread_t writer;

	atomic_store(&stop, false);
	CHECK_EQ(pthread_create(&writer, NULL, move_back_and_forth, vm), 0);
	for (uint64_t i = 0; !atomic_load(&stop) || i < 100; i++)
		check_one_place(vm);
	CHECK_EQ(pthread_join(writer, NULL), 0);
	check_sound(vm);
	end_vm(vm);
}

/* The writer changes space 0, then space 1, always in this order.  In no section space 1 is ahead, nor behind by more
 * than one change, whichever space is read first; and the flags match the generation. */
static void *flip_flags(void *arg)
{
	struct ms_vm *vm = arg;

	for (uint64_t i = 1; i <= test_times(6000); i++)
		for (uint32_t as_id = 0; as_id < 2; as_id++)
			CHECK_EQ(set(vm, as_id, 1, 0x100, 16, i & 1 ? LOG : 0), 0);
	atomic_store(&stop, true);
	return NULL;
}

static void test_spaces_in_step(void)
{
	struct ms_vm *vm = two_slots();
	uint64_t base[2] = { ms_generation(vm, 0), ms_generation(vm, 1) }, sections = 0;
	pthread_t writer;

	atomic_store(&stop, false);
	CHECK_EQ(pthread_create(&writer, NULL, flip_flags, vm), 0);
	for (; !atomic_load(&stop) || sections < 100; sections++) {
		uint32_t first = sections & 1;
		struct ms_memslot slot[2];
		uint64_t n[2];

		CHECK_EQ(ms_read_lock(vm), 0);
		CHECK_EQ(ms_gfn_to_memslot(vm, first, 0x100, &slot[first]), 0);
		CHECK_EQ(ms_gfn_to_memslot(vm, !first, 0x100, &slot[!first]), 0);
		for (uint32_t i = 0; i < 2; i++) {
			uint64_t gen = ms_generation(vm, i);

			/* the number of changes of this space that the section sees */
			n[i] = (gen & ~MS_GEN_UPDATE_IN_PROGRESS) - base[i];
			n[i] = n[i] / 2 + (gen >> 63);
		}
		ms_read_unlock(vm);
		CHECK(n[0] == n[1] || n[0] == n[1] + 1);
		CHECK_EQ(slot[0].flags, n[0] & 1 ? LOG : 0);
		CHECK_EQ(slot[1].flags, n[1] & 1 ? LOG : 0);
		answers++;
	}
	CHECK_EQ(pthread_join(writer, NULL), 0);
	check_sound(vm);
	end_vm(vm);
}

/* ---- close and destroy ---- */

static _Atomic int closing;

static void *close_it(void *vm)
{
	atomic_store(&closing, 1);
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	atomic_store(&closing, 2);
	return NULL;
}

/* Close waits for a section, which sees all slots until its end. */
static void test_close_during_a_section(void)
{
	struct ms_vm *vm = two_slots();
	struct ms_memslot slot;
	pthread_t thread;

	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(pthread_create(&thread, NULL, close_it, vm), 0);
	while (!atomic_load(&closing))
		sched_yield();
	for (int i = 0; i < 100; i++) {
		SAME(ms_gfn_to_hva(vm, 0, 0x207), hva_for(0, 2) + 7 * PAGE);
		SAME(ms_id_to_memslot(vm, 0, 1, &slot), 0);
		SAME(slot.base_gfn, 0x100);
		SAME(ms_gfn_to_hva(vm, 1, 0x100), hva_for(1, 1));
		SAME(atomic_load(&closing), 1);
		usleep(20);
	}
	ms_read_unlock(vm);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	SAME(atomic_load(&closing), 2);
	SAME(ms_gfn_to_hva(vm, 0, 0x207), MS_HVA_ERR_BAD);
	SAME(ms_nr_memslots(vm), 0);
	atomic_store(&closing, 0);
	check_empty(vm);
	ms_vm_destroy(vm);
}

/* Destroying a VM that was not closed frees each slot once. */
static void test_destroy_alone(void)
{
	struct ms_vm *vm = laid_out();

	ms_vm_destroy(vm);
	ms_vm_destroy(NULL);
}

/* The last frames of the largest possible slot: offsets in bytes need 43 bits. */
static void test_far_frames(void)
{
	struct ms_vm *vm = new_vm(1);
	uint64_t npages = MS_MEM_MAX_NR_PAGES, base = 0x12345, hva = (uint64_t)1 << 45;
	region_t r = region(0, 0, base, npages, 0);
	struct ms_hva_hit hit;

	r.userspace_addr = hva;
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	for (uint64_t page = 1; page < npages; page = 2 * page + 1) {
		uint64_t at = hva + page * PAGE, in[1] = { base + page }, out[1];
		struct ms_batch batch = { .in = in, .in_stride = 8, .out = out, .out_stride = 8, .n = 1 };

		SAME(ms_gfn_to_hva(vm, 0, base + page), at);
		ms_gfn_to_hva_many(vm, 0, &batch, true);
		SAME(out[0], at);
		SAME(ms_hva_to_gfns(vm, at + 5, &hit, 1), 1);
		SAME(hit.gfn, base + page);
	}
	SAME(ms_gfn_to_hva(vm, 0, base + npages - 1), hva + (npages - 1) * PAGE);
	SAME(ms_gfn_to_hva(vm, 0, base + npages), MS_HVA_ERR_BAD);
	end_vm(vm);
}

/* All checks of a VM's content. */
static void test_layout(void)
{
	struct ms_vm *vm = laid_out();

	test_gfn(vm);
	test_id(vm);
	test_ranges(vm);
	test_all_slots(vm);
	test_hva(vm);
	test_batches(vm);
	test_odd_batches(vm);
	test_batch_in_place(vm);
	test_marks(vm);
	check_sound(vm);
	end_vm(vm);
}

static void test_all(void)
{
	test_layout();
	test_set_hint();
	if (design()->shares_slots) { /* the hint of an array is an index, not a slot */
		test_set_hint_carried();
		test_set_hint_on_invalid();
	}
	test_vcpu_hint();
	test_vcpu_hint_dropped();
	test_vcpu_hint_of_old_generation();
	test_vcpus_are_reused();
	test_vcpu_switch();
	test_vcpu_hint_locked();
	test_vcpu_hit_only_reads();
	test_vcpu_of_empty_vm();
	test_vcpu_crowd();
	test_one_state();
	test_one_place();
	test_spaces_in_step();
	test_close_during_a_section();
	test_destroy_alone();
	test_far_frames();
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	gather_gfns();
	gather_hvas();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		test_all();
	return test_done("lookup", answers, "answers");
}
