/* SPDX-License-Identifier: MIT */
/*
 * test_model.c - random changes and lookups compared with plain arrays, and many slots at once.
 *
 * The model is naive: a slot is an entry of an array, and a lookup tries them all.  Few ids, few pages and few host
 * addresses make overlaps, aliases and refusals as frequent as successes.  Some calls are misuses of the API, which
 * change nothing.
 */
#include "fixture.h"

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define RO MS_MEM_READONLY
#define IDS 24u
#define GFNS 512u
#define GPA_BITS 21u /* 512 pages */
#define NPAGES_MAX 100u
#define WORDS 2
#define SPACES_MAX 3

/* ---- the model ---- */

struct model_slot {
	bool used;
	uint64_t gfn, npages, hva;
	uint32_t flags;
	uint64_t bits[WORDS];
};

static struct model {
	uint32_t spaces;
	struct model_slot slot[SPACES_MAX][IDS];
	uint64_t generation[SPACES_MAX];
	uint64_t nr, pages, manual;
	uint64_t kinds[MS_FLAGS_ONLY + 1], noops, refused, swaps;
} model;

static struct ms_vm *vm;
static struct ms_vcpu *vcpu;
static struct rng rng;
static uint64_t lookups, compared;

static uint64_t below(uint64_t n)
{
	return rng_below(&rng, n);
}

static struct ms_memslot value_of(uint32_t as_id, uint32_t id)
{
	const struct model_slot *s = &model.slot[as_id][id];

	return (struct ms_memslot){ s->gfn, s->npages, s->hva, id, as_id, s->flags, 0 };
}

static bool holds(const struct model_slot *s, uint64_t gfn)
{
	return s->used && gfn >= s->gfn && gfn < s->gfn + s->npages;
}

/* The id of the slot at the gfn, or IDS. */
static uint32_t at(uint32_t as_id, uint64_t gfn)
{
	uint32_t id = 0;

	while (id < IDS && !(as_id < model.spaces && holds(&model.slot[as_id][id], gfn)))
		id++;
	return id;
}

static bool overlaps(uint32_t as_id, uint32_t but, uint64_t gfn, uint64_t npages)
{
	for (uint32_t id = 0; id < IDS; id++) {
		const struct model_slot *s = &model.slot[as_id][id];

		if (id != but && s->used && s->gfn < gfn + npages && gfn < s->gfn + s->npages)
			return true;
	}
	return false;
}

/* The right result of the request; *kind is the kind of change, *swaps the number of its swaps. */
static int expected_result(const region_t *r, enum ms_change_kind *kind, bool *noop, uint64_t *swaps)
{
	uint64_t gfn = r->guest_phys_addr / PAGE, npages = r->memory_size / PAGE;
	const struct model_slot *old;

	*swaps = 0;
	*noop = false;
	if (r->slot >= IDS || r->flags & ~(LOG | RO) || r->as_id >= model.spaces ||
	    (r->memory_size | r->guest_phys_addr | r->userspace_addr) % PAGE)
		return -EINVAL;
	old = &model.slot[r->as_id][r->slot];
	if (!npages) {
		*kind = MS_DELETE;
		*swaps = old->used ? 2 : 0;
		return old->used ? 0 : -EINVAL;
	}
	*kind = !old->used ? MS_CREATE : gfn != old->gfn ? MS_MOVE : MS_FLAGS_ONLY;
	*noop = old->used && gfn == old->gfn && r->flags == old->flags;
	if (old->used && (r->userspace_addr != old->hva || npages != old->npages || (r->flags ^ old->flags) & RO))
		return -EINVAL;
	if (*kind != MS_FLAGS_ONLY && overlaps(r->as_id, r->slot, gfn, npages))
		return -EEXIST;
	*swaps = *noop ? 0 : *kind == MS_MOVE ? 2 : 1;
	if (*kind == MS_FLAGS_ONLY || gfn + npages <= GFNS)
		return 0;
	*swaps = *kind == MS_MOVE ? 2 : 0; /* prepare refuses it */
	return -EINVAL;
}

static void renew_bits(struct model_slot *s)
{
	for (uint64_t page = 0; page < NPAGES_MAX; page++) {
		uint64_t bit = (uint64_t)1 << page % 64;

		s->bits[page / 64] &= ~bit;
		if (page < s->npages && model.manual & MS_DIRTY_LOG_INITIALLY_SET)
			s->bits[page / 64] |= bit;
	}
}

static void model_change(const region_t *r, enum ms_change_kind kind)
{
	struct model_slot *s = &model.slot[r->as_id][r->slot], old = *s;

	model.kinds[kind]++;
	if (kind == MS_DELETE) {
		memset(s, 0, sizeof(*s));
		model.nr--;
		model.pages -= old.npages;
		return;
	}
	s->used = true;
	s->gfn = r->guest_phys_addr / PAGE;
	s->npages = r->memory_size / PAGE;
	s->hva = r->userspace_addr;
	s->flags = r->flags;
	if (s->flags & LOG && !(old.flags & LOG))
		renew_bits(s);
	if (kind == MS_CREATE) {
		model.nr++;
		model.pages += s->npages;
	}
}

/* ---- operations ---- */

static uint64_t some_hva(void)
{
	return HVA_BASE + below(256) * PAGE;
}

static region_t random_region(void)
{
	uint32_t as_id = (uint32_t)below(model.spaces);

	return (region_t){
		.slot = (uint32_t)below(IDS),
		.as_id = as_id,
		.flags = (uint32_t)below(4),
		.guest_memfd = -1,
		.guest_phys_addr = below(GFNS) * PAGE,
		.memory_size = (1 + below(below(4) ? 12 : NPAGES_MAX)) * PAGE,
		.userspace_addr = some_hva(),
	};
}

/* A request equal to the slot, to be changed a little. */
static region_t region_of(uint32_t as_id, uint32_t id)
{
	const struct model_slot *s = &model.slot[as_id][id];
	region_t r = random_region();

	r.as_id = as_id;
	r.slot = id;
	if (s->used) {
		r.flags = s->flags;
		r.guest_phys_addr = s->gfn * PAGE;
		r.memory_size = s->npages * PAGE;
		r.userspace_addr = s->hva;
	}
	return r;
}

static void spoil(region_t *r)
{
	switch (below(7)) {
	case 0:
		r->slot = IDS + (uint32_t)below(5);
		break;
	case 1:
		r->flags |= 1u << (2 + below(30));
		r->flags &= ~MS_MEM_GUEST_MEMFD;
		r->flags |= 8;
		break;
	case 2:
		r->memory_size += 1 + below(PAGE - 1);
		break;
	case 3:
		r->guest_phys_addr += 1 + below(PAGE - 1);
		break;
	case 4:
		r->userspace_addr += 1 + below(PAGE - 1);
		break;
	case 5:
		r->as_id = model.spaces + (uint32_t)below(3);
		break;
	default:
		r->flags ^= RO;
	}
}

static region_t next_region(void)
{
	region_t r = region_of((uint32_t)below(model.spaces), (uint32_t)below(IDS));
	uint64_t what = below(16);

	if (what < 4)
		r = random_region();
	else if (what < 7)
		r.memory_size = 0;
	else if (what < 11)
		r.guest_phys_addr = below(GFNS) * PAGE;
	else if (what < 14)
		r.flags ^= LOG;
	if (what == 10)
		r.flags ^= LOG;
	if (what == 15)
		spoil(&r);
	return r;
}

static void do_set(void)
{
	region_t r = next_region();
	enum ms_change_kind kind = MS_CREATE;
	bool noop;
	uint64_t swaps;
	int want = expected_result(&r, &kind, &noop, &swaps), got = ms_set_user_memory_region(vm, &r, NULL);

	CHECK_EQ(got, want);
	model.refused += want != 0;
	model.swaps += swaps;
	if (swaps)
		model.generation[r.as_id] += swaps * model.spaces;
	if (!want && noop)
		model.noops++;
	else if (!want)
		model_change(&r, kind);
}

#define LOAD_MAX 6

/* All or none: the first wrong entry refuses the load. */
static void do_load(void)
{
	uint32_t as_id = (uint32_t)below(model.spaces);
	struct ms_memslot list[LOAD_MAX];
	struct model before = model;
	size_t n = 1 + below(LOAD_MAX);
	bool fits = true;
	int r;

	for (size_t i = 0; i < n; i++) {
		region_t e = random_region();

		e.as_id = as_id;
		e.guest_phys_addr %= (GFNS - NPAGES_MAX) * PAGE;
		list[i] = (struct ms_memslot){
			e.guest_phys_addr / PAGE, e.memory_size / PAGE, e.userspace_addr, e.slot, 9, e.flags, 0
		};
		fits &= !model.slot[as_id][e.slot].used && !overlaps(as_id, e.slot, list[i].base_gfn, list[i].npages);
		if (fits)
			model_change(&e, MS_CREATE);
	}
	r = ms_load_memslots(vm, as_id, list, n, NULL);
	CHECK(fits ? r == 0 : r == -EEXIST);
	if (fits) {
		model.swaps++;
		model.generation[as_id] += model.spaces;
	} else {
		model = before;
		model.refused++;
	}
}

static void do_mark(void)
{
	uint32_t as_id = (uint32_t)below(model.spaces + 1);
	uint64_t gfns[8];

	for (size_t i = 0; i < ARRAY_SIZE(gfns); i++) {
		uint32_t id;

		gfns[i] = below(GFNS + 4);
		id = at(as_id, gfns[i]);
		if (id < IDS && model.slot[as_id][id].flags & LOG) {
			uint64_t page = gfns[i] - model.slot[as_id][id].gfn;

			model.slot[as_id][id].bits[page / 64] |= (uint64_t)1 << page % 64;
		}
	}
	if (below(2))
		ms_mark_page_dirty_many(vm, as_id,
					&(struct ms_batch){ .in = gfns, .in_stride = 8, .n = ARRAY_SIZE(gfns) });
	else
		for (size_t i = 0; i < ARRAY_SIZE(gfns); i++)
			ms_mark_page_dirty(vm, as_id, gfns[i]);
}

static void do_get_log(uint32_t as_id, uint32_t id)
{
	struct model_slot *s = &model.slot[as_id][id];
	uint64_t words[WORDS] = { 0 };
	bool logs = s->used && s->flags & LOG;
	size_t nwords;

	CHECK_EQ(ms_get_dirty_log(vm, as_id, id, words, WORDS, &nwords, NULL), logs ? 0 : -ENOENT);
	CHECK_EQ(nwords, logs ? (s->npages + 63) / 64 : 0);
	for (size_t i = 0; i < nwords; i++) {
		CHECK_EQ(words[i], s->bits[i]);
		if (!model.manual)
			s->bits[i] = 0;
	}
}

static void do_clear_log(void)
{
	uint32_t as_id = (uint32_t)below(model.spaces), id = (uint32_t)below(IDS);
	struct model_slot *s = &model.slot[as_id][id];
	uint64_t first = 64 * below(2), mask = rng_next(&rng), left = s->npages - first;
	uint32_t num = below(2) ? 64 : (uint32_t)left;
	bool logs = s->used && s->flags & LOG, fits = first <= s->npages && num <= left && num <= 64;
	int r;

	if (num > 64)
		return;
	r = ms_clear_dirty_log(vm, as_id, id, first, num, &mask, num ? 1 : 0, NULL);
	CHECK_EQ(r, !logs ? -ENOENT : fits ? 0 : -EINVAL);
	if (!r && num)
		s->bits[first / 64] &= ~mask;
}

static void do_manual(void)
{
	static const uint64_t values[] = { 0, 1, 3 };

	model.manual = values[below(3)];
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, model.manual, NULL), 0);
}

/* ---- calls that a program should not make: each has an answer and changes nothing ---- */

static void misuse_changes(void)
{
	uint32_t far = model.spaces + (uint32_t)below(3);
	uint64_t word = 0;

	CHECK_EQ(ms_set_user_memory_region(vm, NULL, NULL), -EFAULT);
	CHECK_EQ(ms_load_memslots(vm, 0, NULL, 1 + below(9), NULL), -EFAULT);
	CHECK_EQ(ms_add_listener(vm, NULL, NULL), -EFAULT);
	CHECK_EQ(ms_remove_listener(vm, (const struct ms_listener *)(uintptr_t)rng_next(&rng), NULL), -ENOENT);
	CHECK_EQ(ms_vcpu_create(vm, NULL, NULL), -EFAULT);
	CHECK_EQ(ms_update_begin(vm, 0, NULL, NULL), -EFAULT);
	CHECK_EQ(ms_get_dirty_log(vm, far, 0, &word, 1, NULL, NULL), -EINVAL);
	CHECK_EQ(ms_clear_dirty_log(vm, far, 0, 0, 64, &word, 1, NULL), -EINVAL);
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 2 + 2 * below(9), NULL), -EINVAL);
}

static void misuse_lookups(void)
{
	uint32_t as_id = (uint32_t)below(model.spaces), far = model.spaces + (uint32_t)rng_next(&rng) % 1000;
	uint64_t gfn = below(GFNS);
	bool found = at(as_id, gfn) < IDS;

	CHECK_EQ(ms_gfn_to_memslot(vm, as_id, gfn, NULL), found ? 0 : -ENOENT);
	CHECK_EQ(ms_memslots_in_gfn_range(vm, as_id, gfn, gfn + 1, NULL, SIZE_MAX), found);
	CHECK_EQ(ms_gfn_to_hva(vm, far, gfn), MS_HVA_ERR_BAD);
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, far), -EINVAL);
	CHECK_EQ(ms_read_unlock(vm), -EPERM);
	CHECK_EQ(ms_set_index_policy(vm, (enum ms_index_policy)(MS_INDEX_WALK + 1 + below(1000))), -EINVAL);
}

/* Arrays that overlap their neighbours' bytes are right too. */
static void misuse_batches(void)
{
	uint32_t as_id = (uint32_t)below(model.spaces);
	unsigned char bytes[8 * 17 + 8], results[8 * 17 + 8];
	ptrdiff_t stride = 8 + (ptrdiff_t)below(10);
	size_t offset = below(8);
	struct ms_batch batch = { bytes + offset, stride, results + offset, stride, 8, NULL, NULL }, bad = batch;
	uint64_t gfns[8];
	int32_t id;

	for (size_t i = 0; i < ARRAY_SIZE(gfns); i++) {
		gfns[i] = below(GFNS + 4);
		memcpy(bytes + offset + i * (size_t)stride, &gfns[i], sizeof(gfns[i]));
	}
	CHECK_EQ(ms_gfn_to_slot_id_many(vm, as_id, &batch), 0);
	for (size_t i = 0; i < ARRAY_SIZE(gfns); i++) {
		memcpy(&id, results + offset + i * (size_t)stride, sizeof(id));
		CHECK_EQ(id, at(as_id, gfns[i]) < IDS ? (int32_t)at(as_id, gfns[i]) : -1);
	}
	bad.n = below(2) ? SIZE_MAX - below(100) : 1 + SIZE_MAX / 8 + below(100);
	CHECK_EQ(ms_gfn_to_hva_many(vm, as_id, &bad, true), -EINVAL);
	CHECK_EQ(ms_mark_page_dirty_many(vm, as_id, &bad), -EINVAL);
	bad.in = NULL;
	CHECK_EQ(ms_gpa_to_hva_many(vm, as_id, &bad, true), -EFAULT);
	CHECK_EQ(ms_gfn_to_hva_many(vm, as_id, NULL, true), -EFAULT);
}

static void do_misuse(void)
{
	uint64_t what = below(3);

	if (what == 0)
		misuse_changes();
	else if (what == 1)
		misuse_lookups();
	else
		misuse_batches();
}

static void do_something(void)
{
	uint64_t what = below(66);

	if (what < 50)
		do_set();
	else if (what < 56)
		do_mark();
	else if (what < 59)
		do_get_log((uint32_t)below(model.spaces), (uint32_t)below(IDS));
	else if (what < 61)
		do_clear_log();
	else if (what < 63)
		do_load();
	else if (what < 64)
		do_manual();
	else
		do_misuse();
}

/* ---- lookups ---- */

static void look_up_gfn(uint32_t as_id, uint64_t gfn)
{
	uint32_t id = at(as_id, gfn);
	struct ms_memslot got, want;
	uint64_t hva = MS_HVA_ERR_BAD;
	bool on_vcpu = below(2) && !ms_vcpu_set_as_id(vcpu, as_id);
	int r = on_vcpu ? ms_vcpu_gfn_to_memslot(vcpu, gfn, &got) : ms_gfn_to_memslot(vm, as_id, gfn, &got);

	CHECK_EQ(r, id < IDS ? 0 : -ENOENT);
	if (id < IDS) {
		want = value_of(as_id, id);
		CHECK(same_slot(&got, &want));
		hva = want.flags & RO ? MS_HVA_ERR_RO_BAD : want.userspace_addr + (gfn - want.base_gfn) * PAGE;
	}
	CHECK_EQ(on_vcpu ? ms_vcpu_gfn_to_hva(vcpu, gfn) : ms_gfn_to_hva(vm, as_id, gfn), hva);
}

static void look_up_id(uint32_t as_id, uint32_t id)
{
	bool there = as_id < model.spaces && id < IDS && model.slot[as_id][id].used;
	struct ms_memslot got, want;

	CHECK_EQ(ms_id_to_memslot(vm, as_id, id, &got), there ? 0 : -ENOENT);
	if (there) {
		want = value_of(as_id, id);
		CHECK(same_slot(&got, &want));
	}
}

static bool backs(const struct ms_memslot *slot, uint64_t start, uint64_t last)
{
	return slot->userspace_addr <= last && slot->userspace_addr + slot->npages * PAGE > start;
}

static bool hva_before(const struct ms_memslot *a, const struct ms_memslot *b)
{
	if (a->as_id != b->as_id)
		return a->as_id < b->as_id;
	if (a->userspace_addr != b->userspace_addr)
		return a->userspace_addr < b->userspace_addr;
	return a->base_gfn < b->base_gfn;
}

static size_t model_backs(uint32_t as_id, uint64_t start, uint64_t last)
{
	size_t n = 0;

	for (uint32_t id = 0; id < IDS; id++) {
		struct ms_memslot slot = value_of(as_id, id);

		n += model.slot[as_id][id].used && backs(&slot, start, last);
	}
	return n;
}

/* The number is right, each slot is a right one, and the order is strictly ascending: so these are all. */
static void look_up_hva(uint64_t hva)
{
	struct ms_hva_hit hits[SPACES_MAX * IDS];
	size_t n = ms_hva_to_gfns(vm, hva, hits, ARRAY_SIZE(hits)), want = 0;

	for (uint32_t as_id = 0; as_id < model.spaces; as_id++)
		want += model_backs(as_id, hva, hva);
	CHECK_EQ(n, want);
	for (size_t i = 0; i < n; i++) {
		struct ms_memslot slot = value_of(hits[i].slot.as_id, hits[i].slot.id);

		CHECK(same_slot(&hits[i].slot, &slot) && backs(&slot, hva, hva));
		CHECK_EQ(hits[i].gfn, slot.base_gfn + (hva - slot.userspace_addr) / PAGE);
		CHECK(!i || hva_before(&hits[i - 1].slot, &hits[i].slot));
	}
}

static void look_up_hva_range(uint32_t as_id, uint64_t start, uint64_t last)
{
	struct ms_memslot got[IDS];
	size_t n = ms_memslots_in_hva_range(vm, as_id, start, last, got, IDS);

	CHECK_EQ(n, start <= last ? model_backs(as_id, start, last) : 0);
	for (size_t i = 0; i < n; i++) {
		struct ms_memslot slot = value_of(as_id, got[i].id);

		CHECK(same_slot(&got[i], &slot) && backs(&slot, start, last));
		CHECK(!i || hva_before(&got[i - 1], &got[i]));
	}
}

static void look_up_gfn_range(uint32_t as_id, uint64_t start, uint64_t end)
{
	struct ms_memslot got[IDS];
	size_t n = ms_memslots_in_gfn_range(vm, as_id, start, end, got, IDS), want = 0;

	for (uint32_t id = 0; id < IDS; id++) {
		const struct model_slot *s = &model.slot[as_id][id];

		want += s->used && start < end && s->gfn < end && s->gfn + s->npages > start;
	}
	CHECK_EQ(n, want);
	for (size_t i = 0; i < n; i++) {
		struct ms_memslot slot = value_of(as_id, got[i].id);

		CHECK(same_slot(&got[i], &slot) && slot.base_gfn < end && slot.base_gfn + slot.npages > start);
		CHECK(!i || got[i - 1].base_gfn < got[i].base_gfn);
	}
}

static void look_up(void)
{
	uint32_t as_id = (uint32_t)below(model.spaces);

	switch (below(8)) {
	case 0:
		look_up_id((uint32_t)below(model.spaces + 1), (uint32_t)below(IDS + 4));
		break;
	case 1:
		look_up_hva(HVA_BASE + below(360 * PAGE));
		break;
	case 2:
		look_up_gfn_range(as_id, below(GFNS + 9), below(GFNS + 9));
		break;
	case 3:
		look_up_hva_range(as_id, HVA_BASE + below(360 * PAGE), HVA_BASE + below(360 * PAGE));
		break;
	default:
		look_up_gfn((uint32_t)below(model.spaces + 1), below(GFNS + 9));
	}
	lookups++;
}

/* ---- comparison of the whole state ---- */

static void compare_totals(void)
{
	struct ms_stats s = stats_of(vm);

	CHECK_EQ(ms_nr_memslots(vm), model.nr);
	CHECK_EQ(ms_nr_memslot_pages(vm), model.pages);
	CHECK_EQ(ms_manual_dirty_log_protect(vm), model.manual);
	CHECK_EQ(s.creates, model.kinds[MS_CREATE]);
	CHECK_EQ(s.deletes, model.kinds[MS_DELETE]);
	CHECK_EQ(s.moves, model.kinds[MS_MOVE]);
	CHECK_EQ(s.flag_changes, model.kinds[MS_FLAGS_ONLY]);
	CHECK_EQ(s.noops, model.noops);
	CHECK_EQ(s.refused, model.refused);
	CHECK_EQ(s.swaps, model.swaps);
}

static void compare_space(uint32_t as_id)
{
	look_up_gfn_range(as_id, 0, ~(uint64_t)0);
	look_up_hva_range(as_id, 0, ~(uint64_t)0);
	CHECK_EQ(ms_generation(vm, as_id), model.generation[as_id]);
	for (uint32_t id = 0; id < IDS; id++)
		look_up_id(as_id, id);
	for (uint64_t gfn = 0; gfn < GFNS + 2; gfn++)
		look_up_gfn(as_id, gfn);
}

/* Compares the bits without a harvest. */
static void compare_bits(void)
{
	uint64_t manual = model.manual, refused = model.refused;

	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 1, NULL), 0);
	model.manual = 1;
	for (uint32_t as_id = 0; as_id < model.spaces; as_id++)
		for (uint32_t id = 0; id < IDS; id++)
			do_get_log(as_id, id);
	model.manual = manual;
	CHECK_EQ(model.refused, refused);
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, manual, NULL), 0);
}

static void compare_all(void)
{
	compare_totals();
	for (uint32_t as_id = 0; as_id < model.spaces; as_id++)
		compare_space(as_id);
	compare_bits();
	check_sound(vm);
	compared++;
}

static void make_model(uint32_t spaces)
{
	struct ms_config config = default_config(spaces);

	config.user_mem_slots = IDS;
	config.gpa_bits = GPA_BITS;
	vm = vm_with(&config);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	memset(&model, 0, sizeof(model));
	model.spaces = spaces;
	for (uint32_t as_id = 0; as_id < spaces; as_id++)
		model.generation[as_id] = as_id;
}

static void run_model(uint32_t spaces, uint64_t operations)
{
	make_model(spaces);
	rng = rng_stream(spaces);
	for (uint64_t i = 0; i < operations; i++) {
		do_something();
		for (int j = 0; j < 4; j++)
			look_up();
		if (i % 16 == 0 || i < operations / 10)
			check_sound(vm);
		if (i % 2048 == 0)
			compare_all();
	}
	compare_all();
	for (int kind = MS_CREATE; kind <= MS_FLAGS_ONLY; kind++)
		CHECK(operations < 10000 || model.kinds[kind] > operations / 100);
	printf("model: %s, %u spaces: %" PRIu64 " creates, %" PRIu64 " deletes, %" PRIu64 " moves, %" PRIu64 " flags, "
	       "%" PRIu64 " no-ops, %" PRIu64 " refused\n",
	       design_name, spaces, model.kinds[MS_CREATE], model.kinds[MS_DELETE], model.kinds[MS_MOVE],
	       model.kinds[MS_FLAGS_ONLY], model.noops, model.refused);
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
}

/* ---- many slots ---- */

static uint32_t *shuffled(uint32_t n)
{
	uint32_t *order = malloc(n * sizeof(*order));

	CHECK(order != NULL);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t j = (uint32_t)below(i + 1);

		order[i] = order[j];
		order[j] = i;
	}
	return order;
}

/* Every third slot shares its host memory with the next one. */
static uint64_t many_hva(uint32_t id)
{
	return HVA_BASE + (uint64_t)(id - id % 3 % 2) * 2 * PAGE;
}

static struct ms_memslot many_slot(uint32_t id, uint64_t shift, uint32_t flags)
{
	return (struct ms_memslot){ (uint64_t)id * 2 + shift, 1, many_hva(id), id, 0, flags, 0 };
}

static void check_many(uint32_t n, uint64_t shift, uint32_t flags)
{
	struct ms_memslot *all = malloc(n * sizeof(*all));

	CHECK(all != NULL);
	check_sound(vm);
	CHECK_EQ(ms_nr_memslots(vm), n);
	CHECK_EQ(ms_nr_memslot_pages(vm), n);
	CHECK_EQ(ms_memslots(vm, 0, all, n), n);
	for (uint32_t id = 0; id < n; id++) {
		struct ms_memslot want = many_slot(id, shift, flags), got;

		CHECK(same_slot(&all[id], &want));
		CHECK_EQ(ms_id_to_memslot(vm, 0, id, &got), 0);
		CHECK(same_slot(&got, &want));
		CHECK_EQ(ms_gfn_to_hva(vm, 0, want.base_gfn), want.userspace_addr);
		CHECK_EQ(ms_gfn_to_hva(vm, 0, want.base_gfn ^ 1), MS_HVA_ERR_BAD); /* the pages between the slots */
	}
	free(all);
}

static void change_all(const uint32_t *order, uint32_t n, uint64_t shift, uint32_t flags, bool delete)
{
	for (uint32_t i = 0; i < n; i++) {
		struct ms_memslot slot = many_slot(order[i], shift, flags);
		region_t r = region(0, slot.id, slot.base_gfn, !delete, slot.flags);

		r.userspace_addr = slot.userspace_addr;
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	}
}

/* From 64 slots on, a slot costs at most 256 bytes, and 32 for the indexes, in any order of creation and
 * deletion. */
static void check_bytes(uint32_t n)
{
	CHECK(stats_of(vm).bytes <= (256 + 32) * (uint64_t)n);
}

static void run_growth(void)
{
	const uint32_t sizes[] = { 64, 65, 100, 500 };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct ms_memslot list[500];

		vm = new_vm(1);
		for (uint32_t id = 0; id < sizes[i]; id++)
			list[id] = many_slot(id, 0, 0);
		CHECK_EQ(ms_load_memslots(vm, 0, list, sizes[i], NULL), 0);
		check_bytes(sizes[i]);
		end_vm(vm);
	}
	vm = new_vm(1);
	for (uint32_t id = 0; id < 3000; id++) {
		CHECK_EQ(set(vm, 0, id, id, 1, 0), 0);
		CHECK_EQ(set(vm, 0, id / 2, 0, 0, 0), 0);
		CHECK_EQ(set(vm, 0, id / 2, id / 2, 1, 0), 0);
		if (id >= 63)
			check_bytes(id + 1);
	}
	end_vm(vm);
}

static void run_default_limit(void)
{
	uint32_t n = (uint32_t)test_times(MS_USER_MEM_SLOTS_DEFAULT), *order, *back;
	struct ms_stats empty;

	n = n < MS_USER_MEM_SLOTS_DEFAULT ? n : MS_USER_MEM_SLOTS_DEFAULT;
	vm = new_vm(1);
	ms_gfn_to_hva(vm, 0, 0);
	empty = stats_of(vm);
	rng = rng_stream(101);
	order = shuffled(n);
	back = shuffled(n);
	change_all(order, n, 0, 0, false);
	check_many(n, 0, 0);
	change_all(back, n, 1, 0, false);
	check_many(n, 1, 0);
	change_all(order, n, 1, LOG, false);
	check_many(n, 1, LOG);
	change_all(order, n, 0, 0, false);
	check_many(n, 0, 0);
	change_all(back, n, 0, 0, true);
	check_sound(vm);
	CHECK_EQ(ms_nr_memslots(vm), 0);
	CHECK_EQ(stats_of(vm).swaps, 8 * (uint64_t)n);
	CHECK(stats_of(vm).blocks <= empty.blocks + 2); /* the buckets of two hashes */
	end_vm(vm);
	free(order);
	free(back);
}

static void change_some(uint32_t n)
{
	for (uint64_t i = 0; i < test_times(20000); i++) {
		uint32_t id = (uint32_t)below(n);
		struct ms_memslot slot = many_slot(id, 1, LOG);
		region_t r = region(0, id, slot.base_gfn, 1, slot.flags);

		r.userspace_addr = slot.userspace_addr;
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
		r = region(0, id, 0, 0, 0);
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
		slot = many_slot(id, 0, 0);
		r = region(0, id, slot.base_gfn, 1, slot.flags);
		r.userspace_addr = slot.userspace_addr;
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	}
}

static void run_million(void)
{
	uint32_t n = (uint32_t)test_times(1000000), *order;
	struct ms_config config = default_config(1);
	struct ms_memslot *list;
	struct ms_stats stats;

	config.user_mem_slots = n;
	vm = vm_with(&config);
	rng = rng_stream(102);
	order = shuffled(n);
	list = malloc(n * sizeof(*list));
	CHECK(list != NULL);
	for (uint32_t i = 0; i < n; i++)
		list[i] = many_slot(order[i], 0, 0);
	CHECK_EQ(ms_load_memslots(vm, 0, list, n, NULL), 0);
	free(list);
	free(order);
	CHECK_EQ(stats_of(vm).swaps, 1);
	change_some(n);
	check_many(n, 0, 0);
	stats = stats_of(vm);
	printf("model: %u slots: %.1f bytes a slot\n", n, (double)stats.bytes / n);
	CHECK(n < 100000 || stats.bytes / n < 256);
	end_vm(vm);
}

int main(int argc, char **argv)
{
	uint64_t operations, done = 0;

	test_init(argc, argv, 240);
	operations = test_times(1000000);
	run_growth();
	run_default_limit();
	run_million();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		uint64_t n = design_is("tree") ? operations : operations / 4;

		run_model(1, n / 2);
		run_model(SPACES_MAX, n - n / 2);
		done += n;
	}
	printf("model: %" PRIu64 " lookups, %" PRIu64 " full comparisons\n", lookups, compared);
	return test_done("model", done, "operations");
}
