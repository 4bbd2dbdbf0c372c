/* SPDX-License-Identifier: MIT */
/*
 * test_region.c - KVM's rules in KVM's order, the effects of changes, limits as parameters.
 *
 * A product proves the order: each value of each field that a rule reads, combined with a lack of memory, a listener
 * that refuses, and a total that is about to overflow.  The test knows which rules a request breaks, each checked
 * alone; the first of them must be the answer.  At the end one request has broken each pair of rules, except for the
 * pairs that exclude each other.  All of it runs on every design.
 */
#include "fixture.h"

#include <fcntl.h>
#include <limits.h>

/* ---- the rules in the order of the specification ---- */

enum position {
	P_SLOT_ID,
	P_FLAGS,
	P_SIZE_ALIGN,
	P_GPA_ALIGN,
	P_HVA_ALIGN,
	P_HVA_RANGE,
	P_GMEM_OFFSET,
	P_AS_ID,
	P_GPA_WRAP,
	P_NPAGES,
	P_NO_SUCH_SLOT,
	P_TOTAL,
	P_GMEM_EXISTING,
	P_HVA_CHANGE,
	P_SIZE_CHANGE,
	P_FLAGS_TOGGLE,
	P_OVERLAP,
	P_NO_SLOT_MEMORY,
	P_GMEM_FD,
	P_NO_COPY_MEMORY,
	P_NO_LOG_MEMORY,
	P_GPA_LIMIT,
	P_LISTENER,
	P_NR
};

static const struct {
	const char *name;
	enum ms_rule rule;
	int code;
} position[P_NR] = {
	[P_SLOT_ID] = { "SLOT_ID", MS_RULE_SLOT_ID, EINVAL },
	[P_FLAGS] = { "FLAGS", MS_RULE_FLAGS, EINVAL },
	[P_SIZE_ALIGN] = { "SIZE_ALIGN", MS_RULE_SIZE_ALIGN, EINVAL },
	[P_GPA_ALIGN] = { "GPA_ALIGN", MS_RULE_GPA_ALIGN, EINVAL },
	[P_HVA_ALIGN] = { "HVA_ALIGN", MS_RULE_HVA_ALIGN, EINVAL },
	[P_HVA_RANGE] = { "HVA_RANGE", MS_RULE_HVA_RANGE, EINVAL },
	[P_GMEM_OFFSET] = { "GMEM_OFFSET", MS_RULE_GMEM_OFFSET, EINVAL },
	[P_AS_ID] = { "AS_ID", MS_RULE_AS_ID, EINVAL },
	[P_GPA_WRAP] = { "GPA_WRAP", MS_RULE_GPA_WRAP, EINVAL },
	[P_NPAGES] = { "NPAGES", MS_RULE_NPAGES, EINVAL },
	[P_NO_SUCH_SLOT] = { "NO_SUCH_SLOT", MS_RULE_NO_SUCH_SLOT, EINVAL },
	[P_TOTAL] = { "TOTAL_PAGES", MS_RULE_TOTAL_PAGES, EINVAL },
	[P_GMEM_EXISTING] = { "GMEM_EXISTING", MS_RULE_GMEM_EXISTING, EINVAL },
	[P_HVA_CHANGE] = { "HVA_CHANGE", MS_RULE_HVA_CHANGE, EINVAL },
	[P_SIZE_CHANGE] = { "SIZE_CHANGE", MS_RULE_SIZE_CHANGE, EINVAL },
	[P_FLAGS_TOGGLE] = { "FLAGS_TOGGLE", MS_RULE_FLAGS_TOGGLE, EINVAL },
	[P_OVERLAP] = { "OVERLAP", MS_RULE_OVERLAP, EEXIST },
	[P_NO_SLOT_MEMORY] = { "no memory: slot", MS_RULE_NO_MEMORY, ENOMEM },
	[P_GMEM_FD] = { "GMEM_FD", MS_RULE_GMEM_FD, EBADF },
	[P_NO_COPY_MEMORY] = { "no memory: INVALID copy", MS_RULE_NO_MEMORY, ENOMEM },
	[P_NO_LOG_MEMORY] = { "no memory: dirty log", MS_RULE_NO_MEMORY, ENOMEM },
	[P_GPA_LIMIT] = { "GPA_LIMIT", MS_RULE_GPA_LIMIT, EINVAL },
	[P_LISTENER] = { "LISTENER_REFUSED", MS_RULE_LISTENER_REFUSED, ENXIO },
};

#define SLOTS 16u
#define GPA_BITS 30u
#define SPACES 2u

/* The slots of the product's VM; the last one is internal. */
static const struct ms_memslot placed[] = {
	{ 0x100, 16, HVA_BASE + (1ull << 20), 1, 0, MS_MEM_LOG_DIRTY_PAGES, 0 },
	{ 0x200, 16, HVA_BASE + (2ull << 20), 2, 0, MS_MEM_READONLY, 0 },
	{ 0x300, 16, HVA_BASE + (3ull << 20), 3, 0, 0, 0 },
	{ 0x210, 16, HVA_BASE + (1ull << 32) + (1ull << 20), 1, 1, 0, 0 },
	{ 0x110, 16, HVA_BASE + (1ull << 32) + (2ull << 20), 2, 1, MS_MEM_READONLY | MS_MEM_LOG_DIRTY_PAGES, 0 },
	{ 0x400, 1, HVA_BASE + ((uint64_t)SLOTS << 20), SLOTS, 0, 0, 0 },
};

enum kind { K_CREATE = MS_CREATE, K_DELETE, K_MOVE, K_FLAGS, K_NOOP, K_NOTHING };

struct environment {
	bool total_wraps;
	bool refuses;
	unsigned fails; /* the number of the allocation that fails, from 1; 0: none */
	bool onward;    /* and all later ones */
};

static const struct environment environments[] = {
#define WITH_MEMORY(fails, onward) \
	{ 0, 0, fails, onward }, { 0, 1, fails, onward }, { 1, 0, fails, onward }, \
	{ \
		1, 1, fails, onward \
	}
	WITH_MEMORY(0, 0), WITH_MEMORY(1, 0), WITH_MEMORY(2, 0),
	WITH_MEMORY(3, 0), WITH_MEMORY(1, 1), WITH_MEMORY(2, 1),
#undef WITH_MEMORY
};

/* Where sets store their own copies, there are other allocations in between; test_faults.c fails those. */
static size_t nr_environments(void)
{
	return design()->shares_slots ? ARRAY_SIZE(environments) : 4;
}

struct request {
	region_t r;
	struct environment env;
	/* Derived. */
	const struct ms_memslot *old, *in_the_way;
	enum kind kind;
	bool breaks[P_NR];
	int first; /* position, or P_NR */
};

typedef unsigned __int128 wide;

static bool is_off(uint64_t bytes)
{
	return bytes % 4096 != 0;
}

static const struct ms_memslot *find_placed(uint32_t as_id, uint32_t id)
{
	for (size_t i = 0; i < ARRAY_SIZE(placed); i++)
		if (placed[i].as_id == as_id && placed[i].id == id)
			return &placed[i];
	return NULL;
}

/* The lowest other slot that the request would overlap. */
static const struct ms_memslot *find_in_the_way(const region_t *r)
{
	wide start = r->guest_phys_addr / PAGE, end = start + r->memory_size / PAGE;
	const struct ms_memslot *lowest = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(placed); i++) {
		const struct ms_memslot *slot = &placed[i];

		if (slot->as_id != r->as_id || slot->id == r->slot || slot->base_gfn >= end ||
		    slot->base_gfn + slot->npages <= start)
			continue;
		if (!lowest || slot->base_gfn < lowest->base_gfn)
			lowest = slot;
	}
	return lowest;
}

static enum kind kind_of(const struct request *q)
{
	if (!q->r.memory_size)
		return q->old ? K_DELETE : K_NOTHING;
	if (!q->old)
		return K_CREATE;
	if (q->r.guest_phys_addr / PAGE != q->old->base_gfn)
		return K_MOVE;
	return q->r.flags != q->old->flags ? K_FLAGS : K_NOOP;
}

static bool is_change(const struct request *q)
{
	return q->kind != K_NOOP && q->kind != K_NOTHING;
}

static bool makes_slot(const struct request *q)
{
	return is_change(q) && q->kind != K_DELETE;
}

static bool makes_log(const struct request *q)
{
	bool had = q->old && (q->old->flags & MS_MEM_LOG_DIRTY_PAGES);

	return makes_slot(q) && !had && (q->r.flags & MS_MEM_LOG_DIRTY_PAGES);
}

static bool fails(const struct request *q, enum purpose purpose)
{
	unsigned nth = is_change(q) ? allocation((enum ms_change_kind)q->kind, purpose) : 0;

	return nth && q->env.fails && (q->env.onward ? nth >= q->env.fails : nth == q->env.fails);
}

static uint32_t allowed_flags(uint32_t flags)
{
	return flags & MS_MEM_GUEST_MEMFD ? MS_MEM_GUEST_MEMFD :
					    MS_MEM_LOG_DIRTY_PAGES | MS_MEM_READONLY | MS_MEM_GUEST_MEMFD;
}

static void broken_by_request(struct request *q)
{
	const region_t *r = &q->r;
	const wide top = (wide)1 << 64;
	bool gmem = r->flags & MS_MEM_GUEST_MEMFD;

	q->breaks[P_SLOT_ID] = r->slot >= SLOTS;
	q->breaks[P_FLAGS] = r->flags & ~allowed_flags(r->flags);
	q->breaks[P_SIZE_ALIGN] = is_off(r->memory_size);
	q->breaks[P_GPA_ALIGN] = is_off(r->guest_phys_addr);
	q->breaks[P_HVA_ALIGN] = is_off(r->userspace_addr);
	q->breaks[P_HVA_RANGE] = (wide)r->userspace_addr + r->memory_size > MS_HVA_END_MAX_DEFAULT;
	q->breaks[P_GMEM_OFFSET] =
		gmem && (is_off(r->guest_memfd_offset) || (wide)r->guest_memfd_offset + r->memory_size >= top);
	q->breaks[P_AS_ID] = r->as_id >= SPACES;
	q->breaks[P_GPA_WRAP] = (wide)r->guest_phys_addr + r->memory_size >= top;
	q->breaks[P_NPAGES] = r->memory_size / PAGE > MS_MEM_MAX_NR_PAGES;
}

static void broken_by_slots(struct request *q)
{
	const region_t *r = &q->r;
	bool changes = r->memory_size && q->old, gmem = r->flags & MS_MEM_GUEST_MEMFD;

	q->breaks[P_NO_SUCH_SLOT] = q->kind == K_NOTHING;
	q->breaks[P_TOTAL] = q->kind == K_CREATE && q->env.total_wraps;
	q->breaks[P_GMEM_EXISTING] = changes && gmem;
	q->breaks[P_HVA_CHANGE] = changes && r->userspace_addr != q->old->userspace_addr;
	q->breaks[P_SIZE_CHANGE] = changes && r->memory_size / PAGE != q->old->npages;
	q->breaks[P_FLAGS_TOGGLE] = changes && ((r->flags ^ q->old->flags) & MS_MEM_READONLY);
	q->breaks[P_OVERLAP] = (q->kind == K_CREATE || q->kind == K_MOVE) && q->in_the_way;
	q->breaks[P_GMEM_FD] = makes_slot(q) && gmem;
}

static void broken_in_preparation(struct request *q)
{
	wide end = (wide)q->r.guest_phys_addr + q->r.memory_size;

	q->breaks[P_NO_SLOT_MEMORY] = fails(q, FOR_SLOT);
	q->breaks[P_NO_COPY_MEMORY] = fails(q, FOR_COPY);
	q->breaks[P_NO_LOG_MEMORY] = makes_log(q) && fails(q, FOR_LOG);
	q->breaks[P_GPA_LIMIT] = (q->kind == K_CREATE || q->kind == K_MOVE) && end > (wide)1 << GPA_BITS;
	q->breaks[P_LISTENER] = q->env.refuses && is_change(q);
}

static void find_broken_rules(struct request *q)
{
	q->old = find_placed(q->r.as_id, q->r.slot);
	q->in_the_way = find_in_the_way(&q->r);
	q->kind = kind_of(q);
	broken_by_request(q);
	broken_by_slots(q);
	broken_in_preparation(q);
	q->first = 0;
	while (q->first < P_NR && !q->breaks[q->first])
		q->first++;
}

/* ---- the VM of the product ---- */

static bool refusing;

static int prepare(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	return refusing ? -ENXIO : 0;
}

static const struct ms_listener listener = { LISTENER_SIZE, .prepare = prepare };

static region_t region_of(const struct ms_memslot *slot)
{
	region_t r = region(slot->as_id, slot->id, slot->base_gfn, slot->npages, slot->flags);

	r.userspace_addr = slot->userspace_addr;
	return r;
}

static struct ms_vm *product_vm(void)
{
	struct ms_config config = default_config(SPACES);
	struct ms_vm *vm;

	config.user_mem_slots = SLOTS;
	config.gpa_bits = GPA_BITS;
	vm = vm_with(&config);
	for (size_t i = 0; i < ARRAY_SIZE(placed); i++) {
		region_t r = region_of(&placed[i]);

		CHECK_EQ((r.slot < SLOTS ? ms_set_user_memory_region : ms_set_internal_memory_region)(vm, &r, NULL), 0);
	}
	ms_mark_page_dirty(vm, 0, 0x105);
	ms_mark_page_dirty(vm, 1, 0x11f);
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	return vm;
}

/* The total is raised so far that `npages` more would overflow, and restored. */
static int call_in_environment(struct ms_vm *vm, const struct request *q, struct ms_error *err)
{
	uint64_t pages = ms_nr_memslot_pages(vm);
	int r;

	if (q->env.total_wraps)
		atomic_store(&vm->counts.nr_memslot_pages, ~(uint64_t)0);
	memory_fail(&vm->memory, q->env.fails, q->env.onward);
	refusing = q->env.refuses;
	r = ms_set_user_memory_region(vm, &q->r, err);
	refusing = false;
	memory_fail(&vm->memory, 0, false);
	if (r && q->env.total_wraps)
		atomic_store(&vm->counts.nr_memslot_pages, pages);
	return r;
}

static void explain(const struct request *q, const struct ms_error *err, int r)
{
	fprintf(stderr,
		"slot %u as %u flags %#x gpa %#" PRIx64 " size %#" PRIx64 " hva %#" PRIx64 " offset %#" PRIx64
		" allocation %u refuses %d: got %d by rule %d, want %s\n",
		q->r.slot, q->r.as_id, q->r.flags, q->r.guest_phys_addr, q->r.memory_size, q->r.userspace_addr,
		q->r.guest_memfd_offset, q->env.fails, q->env.refuses, r, (int)err->rule,
		q->first < P_NR ? position[q->first].name : "success");
}

static uint64_t limit_of(const struct request *q)
{
	switch (q->first) {
	case P_SLOT_ID:
		return SLOTS;
	case P_FLAGS:
		return allowed_flags(q->r.flags);
	case P_HVA_RANGE:
		return MS_HVA_END_MAX_DEFAULT;
	case P_AS_ID:
		return SPACES;
	case P_NPAGES:
		return MS_MEM_MAX_NR_PAGES;
	case P_GPA_LIMIT:
		return (uint64_t)1 << GPA_BITS;
	default:
		return 0;
	}
}

static const struct ms_memslot *other_of(const struct request *q)
{
	if (q->first >= P_GMEM_EXISTING && q->first <= P_FLAGS_TOGGLE)
		return q->old;
	return q->first == P_OVERLAP ? q->in_the_way : NULL;
}

static void check_error(const struct request *q, const struct ms_error *err)
{
	const struct ms_memslot *other = other_of(q);

	CHECK_EQ(err->limit, limit_of(q));
	CHECK_EQ(err->index, 0);
	CHECK(other ? same_slot(&err->other, other) : no_slot(&err->other));
}

/* Spec 3.8: only a DELETE or MOVE that prepare refused has advanced its own generation, by two swaps. */
static uint64_t advance_of(const struct request *q)
{
	bool prepared = q->first >= P_NO_LOG_MEMORY, copied = q->kind == K_DELETE || q->kind == K_MOVE;

	return prepared && copied ? 2 * SPACES : 0;
}

static void check_refused(struct ms_vm *vm, struct request *q)
{
	struct picture before = picture_of(vm), after;
	struct ms_stats stats = held_by(vm), now;
	uint64_t gen[SPACES] = { settled_generation(vm, 0), settled_generation(vm, 1) }, idx = atomic_load(&vm->active);
	struct ms_error err = { 0 };
	int r = call_in_environment(vm, q, &err);

	if (r != -position[q->first].code || err.rule != position[q->first].rule)
		explain(q, &err, r);
	CHECK_EQ(r, -position[q->first].code);
	CHECK_EQ(err.rule, position[q->first].rule);
	check_error(q, &err);
	after = picture_of(vm);
	now = held_by(vm);
	CHECK(same_picture(&before, &after));
	CHECK_EQ(now.bytes, stats.bytes);
	CHECK_EQ(now.blocks, stats.blocks);
	CHECK_EQ(now.refused, stats.refused + 1);
	CHECK_EQ(atomic_load(&vm->active), idx);
	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		CHECK_EQ(settled_generation(vm, as_id), gen[as_id] + (as_id == q->r.as_id ? advance_of(q) : 0));
	CHECK(advance_of(q) || before.generations == after.generations);
}

static void check_result(struct ms_vm *vm, const struct request *q)
{
	struct ms_memslot want = { q->r.guest_phys_addr / PAGE,
				   q->r.memory_size / PAGE,
				   q->r.userspace_addr,
				   q->r.slot,
				   q->r.as_id,
				   q->r.flags,
				   0 },
			  got;
	int r = ms_id_to_memslot(vm, q->r.as_id, q->r.slot, &got);

	CHECK_EQ(r, q->kind == K_DELETE ? -ENOENT : 0);
	CHECK(r || same_slot(&got, &want));
	CHECK_EQ(ms_nr_memslots(vm), ARRAY_SIZE(placed) + (q->kind == K_CREATE) - (q->kind == K_DELETE));
}

/* Returns the VM for the next request. */
static struct ms_vm *check_accepted(struct ms_vm *vm, struct request *q)
{
	struct picture before = picture_of(vm), after;
	struct ms_stats s, was = stats_of(vm);
	struct ms_error err = { 0 };
	int r = call_in_environment(vm, q, &err);

	if (r)
		explain(q, &err, r);
	CHECK_EQ(r, 0);
	s = stats_of(vm);
	CHECK_EQ(s.creates - was.creates, q->kind == K_CREATE);
	CHECK_EQ(s.deletes - was.deletes, q->kind == K_DELETE);
	CHECK_EQ(s.moves - was.moves, q->kind == K_MOVE);
	CHECK_EQ(s.flag_changes - was.flag_changes, q->kind == K_FLAGS);
	CHECK_EQ(s.noops - was.noops, q->kind == K_NOOP);
	if (q->env.total_wraps)
		atomic_store(&vm->counts.nr_memslot_pages, before.pages);
	if (q->kind == K_NOOP) {
		after = picture_of(vm);
		CHECK(same_picture(&before, &after) && before.generations == after.generations);
		return vm;
	}
	check_result(vm, q);
	ms_vm_destroy(vm);
	return product_vm();
}

/* ---- the product ---- */

static uint64_t seen[P_NR][P_NR]; /* [i][i]: broken alone */
static uint64_t requests, accepted;

static const uint32_t ids[] = { 1, 2, 3, 9, SLOTS, SLOTS + 7, ~0u };
static const uint32_t as_ids[] = { 0, 1, 2, ~0u };
static const uint32_t flag_values[] = {
	0,
	MS_MEM_LOG_DIRTY_PAGES,
	MS_MEM_READONLY,
	MS_MEM_LOG_DIRTY_PAGES | MS_MEM_READONLY,
	MS_MEM_GUEST_MEMFD,
	MS_MEM_GUEST_MEMFD | MS_MEM_LOG_DIRTY_PAGES,
	MS_MEM_GUEST_MEMFD | MS_MEM_READONLY,
	1u << 3,
	MS_MEMSLOT_INVALID,
};
static const uint64_t sizes[] = {
	0, 16 * PAGE, PAGE, 16 * PAGE + 1, 1, PAGE << 19, PAGE << 31, (PAGE << 31) + 512, -PAGE, -(uint64_t)1,
};
static const uint64_t gpas[] = {
	0x100 * PAGE,
	0x208 * PAGE,
	0x1000 * PAGE,
	0x1000 * PAGE + 8,
	0x208 * PAGE + 2048,
	((uint64_t)1 << GPA_BITS) - PAGE,
	(uint64_t)1 << GPA_BITS,
	-PAGE,
	-(uint64_t)1,
};
static const uint64_t hvas[] = {
	0, PAGE, 1, MS_HVA_END_MAX_DEFAULT, MS_HVA_END_MAX_DEFAULT - PAGE, -PAGE, -(uint64_t)1,
};
static const uint64_t offsets[] = { 0, 1, -PAGE };

static void note(const struct request *q)
{
	unsigned others = 0;

	for (int j = q->first + 1; j < P_NR; j++)
		if (q->breaks[j]) {
			seen[q->first][j]++;
			others++;
		}
	seen[q->first][q->first] += !others;
}

static struct ms_vm *try_request(struct ms_vm *vm, struct request *q, size_t env)
{
	q->env = environments[env];
	find_broken_rules(q);
	requests++;
	if (q->first == P_NR) {
		accepted++;
		return check_accepted(vm, q);
	}
	check_refused(vm, q);
	note(q);
	return vm;
}

/* A request that is wrong by itself meets one environment in turn, a good one meets all. */
static struct ms_vm *try_environments(struct ms_vm *vm, struct request *q)
{
	static unsigned turn;

	q->env = (struct environment){ 0 };
	find_broken_rules(q);
	if (q->first < P_OVERLAP && !q->breaks[P_GMEM_EXISTING])
		return try_request(vm, q, turn++ % nr_environments());
	for (size_t env = 0; env < nr_environments(); env++)
		vm = try_request(vm, q, env);
	return vm;
}

/* The small values of `hvas` are distances from the slot's own address. */
static struct request request_number(uint64_t n)
{
	struct request q = { .r = { .guest_memfd = -1 } };
	uint64_t hva;

	q.r.slot = ids[n % ARRAY_SIZE(ids)];
	n /= ARRAY_SIZE(ids);
	q.r.as_id = as_ids[n % ARRAY_SIZE(as_ids)];
	n /= ARRAY_SIZE(as_ids);
	q.r.flags = flag_values[n % ARRAY_SIZE(flag_values)];
	n /= ARRAY_SIZE(flag_values);
	q.r.memory_size = sizes[n % ARRAY_SIZE(sizes)];
	n /= ARRAY_SIZE(sizes);
	q.r.guest_phys_addr = gpas[n % ARRAY_SIZE(gpas)];
	n /= ARRAY_SIZE(gpas);
	hva = hvas[n % ARRAY_SIZE(hvas)];
	n /= ARRAY_SIZE(hvas);
	q.r.userspace_addr = hva > PAGE ? hva : hva_for(q.r.as_id & 1, q.r.slot & 31) + hva;
	q.r.guest_memfd_offset = offsets[n % ARRAY_SIZE(offsets)];
	return q;
}

/* Pairs that no request can break, and rules (twice the same) that no request can break alone. */
static bool exclude_each_other(int i, int j)
{
	static const struct {
		int i, j;
	} pairs[] = {
		/* a wrong address space has no slots, */
		{ P_AS_ID, P_GMEM_EXISTING },
		{ P_AS_ID, P_HVA_CHANGE },
		{ P_AS_ID, P_SIZE_CHANGE },
		{ P_AS_ID, P_FLAGS_TOGGLE },
		{ P_AS_ID, P_OVERLAP },
		{ P_AS_ID, P_NO_COPY_MEMORY },
		/* a wrong guest_memfd or logging flag is refused as a flag, */
		{ P_GMEM_OFFSET, P_NO_LOG_MEMORY },
		{ P_GMEM_EXISTING, P_NO_LOG_MEMORY },
		{ P_GMEM_FD, P_NO_LOG_MEMORY },
		/* a guest_memfd for an existing slot is always refused, */
		{ P_GMEM_EXISTING, P_GMEM_EXISTING },
		{ P_HVA_CHANGE, P_GMEM_FD },
		{ P_SIZE_CHANGE, P_GMEM_FD },
		{ P_FLAGS_TOGGLE, P_GMEM_FD },
		/* a range that overflows or is too large is above the guest's addresses too, where there is no slot
		 * (but see test_gpa_limits() for 64 bits), */
		{ P_GPA_WRAP, P_GPA_WRAP },
		{ P_NPAGES, P_NPAGES },
		{ P_GPA_WRAP, P_OVERLAP },
		/* a slot that does not exist cannot be deleted, so it is not created, changed, moved, allocated or
		 * prepared, */
		{ P_NO_SUCH_SLOT, P_TOTAL },
		{ P_NO_SUCH_SLOT, P_GMEM_EXISTING },
		{ P_NO_SUCH_SLOT, P_HVA_CHANGE },
		{ P_NO_SUCH_SLOT, P_SIZE_CHANGE },
		{ P_NO_SUCH_SLOT, P_FLAGS_TOGGLE },
		{ P_NO_SUCH_SLOT, P_OVERLAP },
		{ P_NO_SUCH_SLOT, P_NO_SLOT_MEMORY },
		{ P_NO_SUCH_SLOT, P_GMEM_FD },
		{ P_NO_SUCH_SLOT, P_NO_COPY_MEMORY },
		{ P_NO_SUCH_SLOT, P_NO_LOG_MEMORY },
		{ P_NO_SUCH_SLOT, P_GPA_LIMIT },
		{ P_NO_SUCH_SLOT, P_LISTENER },
		/* a delete has no size that overflows or is too large, */
		{ P_SIZE_ALIGN, P_NO_SUCH_SLOT },
		{ P_GPA_WRAP, P_NO_SUCH_SLOT },
		{ P_NPAGES, P_NO_SUCH_SLOT },
		/* and an existing slot is not created, nor is a created one copied. */
		{ P_TOTAL, P_GMEM_EXISTING },
		{ P_TOTAL, P_HVA_CHANGE },
		{ P_TOTAL, P_SIZE_CHANGE },
		{ P_TOTAL, P_FLAGS_TOGGLE },
		{ P_TOTAL, P_NO_COPY_MEMORY },
		{ P_GMEM_FD, P_NO_COPY_MEMORY },
	};

	for (size_t k = 0; k < ARRAY_SIZE(pairs); k++)
		if (pairs[k].i == i && pairs[k].j == j)
			return true;
	return false;
}

static uint64_t check_pairs(void)
{
	uint64_t pairs = 0, wrong = 0;

	for (int i = 0; i < P_NR; i++)
		for (int j = i; j < P_NR; j++)
			if (!seen[i][j] == exclude_each_other(i, j)) {
				pairs += seen[i][j] && i != j;
			} else {
				fprintf(stderr, "%s before %s: %" PRIu64 " requests\n", position[i].name,
					position[j].name, seen[i][j]);
				wrong++;
			}
	CHECK_EQ(wrong, 0);
	return pairs;
}

/* AddressSanitizer needs seconds, other tools need minutes: they run a sample, without the proof of pairs. */
#if defined(__SANITIZE_ADDRESS__)
#define FAST_SANITIZER true
#else
#define FAST_SANITIZER false
#endif

static uint64_t test_order(void)
{
	uint64_t all = ARRAY_SIZE(ids) * ARRAY_SIZE(as_ids) * ARRAY_SIZE(flag_values) * ARRAY_SIZE(sizes) *
		       ARRAY_SIZE(gpas) * ARRAY_SIZE(hvas) * ARRAY_SIZE(offsets);
	uint64_t step = test_slow && !FAST_SANITIZER ? 8 * TEST_SLOWDOWN + 1 : 1;
	struct ms_vm *vm = product_vm();

	memset(seen, 0, sizeof(seen));
	for (uint64_t n = 0; n < all; n += step) {
		struct request q = request_number(n);

		vm = try_environments(vm, &q);
	}
	check_sound(vm);
	end_vm(vm);
	return step > 1 || nr_environments() < ARRAY_SIZE(environments) ? 0 : check_pairs();
}

/* ---- the effects of changes ---- */

static struct ms_memslot slot_by_id(struct ms_vm *vm, uint32_t as_id, uint32_t id)
{
	struct ms_memslot slot = { 0 };

	CHECK_EQ(ms_id_to_memslot(vm, as_id, id, &slot), 0);
	return slot;
}

static void check_slot_is(struct ms_vm *vm, uint32_t id, uint64_t gfn, uint64_t npages, uint32_t flags)
{
	struct ms_memslot slot = slot_by_id(vm, 0, id), by_gfn;

	CHECK_EQ(slot.base_gfn, gfn);
	CHECK_EQ(slot.npages, npages);
	CHECK_EQ(slot.flags, flags);
	CHECK_EQ(slot.userspace_addr, hva_for(0, id));
	CHECK_EQ(ms_gfn_to_memslot(vm, 0, gfn + npages - 1, &by_gfn), 0);
	CHECK(same_slot(&slot, &by_gfn));
	check_sound(vm);
}

static void test_create_and_delete(void)
{
	struct ms_vm *vm = new_vm(1);
	region_t r = region(0, 5, 0x10, 0, 0);

	CHECK_EQ(set(vm, 0, 5, 0x10, 4, 0), 0);
	check_slot_is(vm, 5, 0x10, 4, 0);
	CHECK_EQ(set(vm, 0, 6, 0x14, 4, MS_MEM_READONLY), 0); /* adjacent */
	check_slot_is(vm, 6, 0x14, 4, MS_MEM_READONLY);
	CHECK_EQ(ms_nr_memslots(vm), 2);
	CHECK_EQ(ms_nr_memslot_pages(vm), 8);

	r.guest_phys_addr = 77 * PAGE; /* a delete checks these values and ignores them */
	r.userspace_addr = 0;
	r.flags = MS_MEM_GUEST_MEMFD;
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), -EINVAL);
	CHECK_EQ(ms_nr_memslots(vm), 1);
	CHECK_EQ(ms_nr_memslot_pages(vm), 4);
	CHECK_EQ(set(vm, 0, 6, 0, 0, 0), 0);
	CHECK_EQ(ms_nr_memslot_pages(vm), 0);
	check_sound(vm);
	end_vm(vm);
}

static void test_move(void)
{
	struct ms_vm *vm = new_vm(1);

	CHECK_EQ(set(vm, 0, 1, 0x100, 16, 0), 0);
	CHECK_EQ(set(vm, 0, 2, 0x200, 16, 0), 0);
	CHECK_EQ(set(vm, 0, 1, 0x108, 16, 0), 0); /* overlaps half of its old place */
	check_slot_is(vm, 1, 0x108, 16, 0);
	CHECK_EQ(set(vm, 0, 1, 0x0f9, 16, 0), 0);
	check_slot_is(vm, 1, 0x0f9, 16, 0);
	CHECK_EQ(set(vm, 0, 1, 0x1f1, 16, 0), -EEXIST);
	CHECK_EQ(set(vm, 0, 1, 0x20f, 16, 0), -EEXIST);
	check_slot_is(vm, 1, 0x0f9, 16, 0);
	CHECK_EQ(set(vm, 0, 1, 0x1f0, 16, 0), 0); /* adjacent to the other slot */
	CHECK_EQ(set(vm, 0, 1, 0x210, 16, 0), 0); /* past the other slot */
	check_slot_is(vm, 1, 0x210, 16, 0);
	CHECK_EQ(set(vm, 0, 1, 0, 16, MS_MEM_LOG_DIRTY_PAGES), 0); /* moves and changes flags at once */
	check_slot_is(vm, 1, 0, 16, MS_MEM_LOG_DIRTY_PAGES);
	CHECK_EQ(set(vm, 0, 1, 1, 16, 0), 0);
	check_slot_is(vm, 1, 1, 16, 0);
	CHECK_EQ(stats_of(vm).moves, 6);
	CHECK_EQ(ms_nr_memslot_pages(vm), 32);
	end_vm(vm);
}

static void test_flags_and_noop(void)
{
	struct ms_vm *vm = new_vm(1);
	uint64_t gen;

	CHECK_EQ(set(vm, 0, 1, 0x100, 16, MS_MEM_READONLY), 0);
	CHECK_EQ(set(vm, 0, 1, 0x100, 16, MS_MEM_READONLY | MS_MEM_LOG_DIRTY_PAGES), 0);
	check_slot_is(vm, 1, 0x100, 16, MS_MEM_READONLY | MS_MEM_LOG_DIRTY_PAGES);
	gen = ms_generation(vm, 0);
	CHECK_EQ(set(vm, 0, 1, 0x100, 16, MS_MEM_READONLY | MS_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(ms_generation(vm, 0), gen);
	CHECK_EQ(stats_of(vm).noops, 1);
	CHECK_EQ(set(vm, 0, 1, 0x100, 16, MS_MEM_READONLY), 0);
	CHECK_EQ(ms_generation(vm, 0), gen + 1);
	CHECK_EQ(stats_of(vm).flag_changes, 2);
	check_slot_is(vm, 1, 0x100, 16, MS_MEM_READONLY);
	end_vm(vm);
}

static void test_shared_hva_and_spaces(void)
{
	struct ms_vm *vm = new_vm(3);
	region_t r = region(0, 1, 0x100, 16, 0);

	for (r.as_id = 0; r.as_id < 3; r.as_id++) /* the same in each space: slots of different spaces never conflict */
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	r.as_id = 1;
	r.slot = 2;
	r.guest_phys_addr = 0x200 * PAGE; /* nor do host addresses */
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	CHECK_EQ(ms_nr_memslots(vm), 4);
	CHECK_EQ(slot_by_id(vm, 2, 1).as_id, 2);
	check_sound(vm);
	end_vm(vm);
}

/* ---- the life of a bitmap ---- */

static uint64_t log_word(struct ms_vm *vm, uint32_t id, size_t word)
{
	uint64_t words[4] = { 0 };
	size_t nwords;

	CHECK_EQ(ms_get_dirty_log(vm, 0, id, words, ARRAY_SIZE(words), &nwords, NULL), 0);
	CHECK(word < nwords);
	return words[word];
}

static void test_bitmap_life(void)
{
	const uint32_t log = MS_MEM_LOG_DIRTY_PAGES;
	struct ms_vm *vm = new_vm(1);

	CHECK_EQ(set(vm, 0, 1, 0x100, 100, 0), 0);
	ms_mark_page_dirty(vm, 0, 0x103); /* the slot has no log */
	CHECK_EQ(set(vm, 0, 1, 0x100, 100, log), 0);
	CHECK_EQ(log_word(vm, 1, 0), 0);
	ms_mark_page_dirty(vm, 0, 0x105);
	ms_mark_page_dirty(vm, 0, 0x163);
	CHECK_EQ(set(vm, 0, 1, 0x120, 100, log), 0); /* a MOVE keeps the log */
	ms_mark_page_dirty(vm, 0, 0x122);
	CHECK_EQ(set(vm, 0, 1, 0x900, 100, log), 0);
	CHECK_EQ(set(vm, 0, 1, 0x900, 100, log), 0);
	CHECK_EQ(log_word(vm, 1, 0), 1u << 5 | 1u << 2);
	ms_mark_page_dirty(vm, 0, 0x963);
	CHECK_EQ(set(vm, 0, 1, 0x900, 100, 0), 0); /* off and on makes a new log */
	CHECK_EQ(set(vm, 0, 1, 0x900, 100, log), 0);
	CHECK_EQ(log_word(vm, 1, 1), 0);
	ms_mark_page_dirty(vm, 0, 0x900);
	CHECK_EQ(set(vm, 0, 1, 0x100, 100, 0), 0); /* a MOVE that switches the log off, and one that switches it on */
	CHECK_EQ(set(vm, 0, 1, 0x900, 100, log), 0);
	CHECK_EQ(log_word(vm, 1, 0), 0);
	check_sound(vm);
	end_vm(vm);
}

static void test_initially_set(void)
{
	const uint64_t tail = ((uint64_t)1 << 36) - 1, all = ~(uint64_t)0;
	struct ms_vm *vm = new_vm(1);
	uint64_t mask = all;

	CHECK_EQ(set(vm, 0, 1, 0x100, 100, MS_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 3, NULL), 0);
	CHECK_EQ(log_word(vm, 1, 0), 0); /* only for logs that are created later */
	CHECK_EQ(set(vm, 0, 2, 0x200, 100, MS_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(log_word(vm, 2, 0), all);
	CHECK_EQ(log_word(vm, 2, 1), tail);
	CHECK_EQ(ms_clear_dirty_log(vm, 0, 2, 0, 64, &mask, 1, NULL), 0);
	CHECK_EQ(log_word(vm, 2, 0), 0);
	CHECK_EQ(set(vm, 0, 2, 0x300, 100, MS_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(log_word(vm, 2, 0), 0);
	CHECK_EQ(log_word(vm, 2, 1), tail);
	CHECK_EQ(set(vm, 0, 2, 0x300, 100, 0), 0);
	CHECK_EQ(set(vm, 0, 2, 0x300, 100, MS_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(log_word(vm, 2, 0), all);
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 0, NULL), 0);
	CHECK_EQ(log_word(vm, 2, 0), all); /* GET clears again */
	CHECK_EQ(log_word(vm, 2, 0), 0);
	check_sound(vm);
	end_vm(vm);
}

static void test_manual_protect_values(void)
{
	struct ms_vm *vm = new_vm(1);
	struct ms_error err;

	for (uint64_t value = 0; value < 9; value++) {
		uint64_t was = ms_manual_dirty_log_protect(vm);
		bool good = value == 0 || value == 1 || value == 3;

		CHECK_EQ(ms_set_manual_dirty_log_protect(vm, value, &err), good ? 0 : -EINVAL);
		CHECK(good || err.rule == MS_RULE_MANUAL_PROTECT);
		CHECK_EQ(ms_manual_dirty_log_protect(vm), good ? value : was);
	}
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, (uint64_t)1 << 32 | 1, NULL), -EINVAL);
	end_vm(vm);
}

/* ---- GET and CLEAR ---- */

static struct ms_vm *vm_with_logs(void)
{
	struct ms_vm *vm = new_vm(2);

	CHECK_EQ(set(vm, 0, 1, 0x100, 200, MS_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(set(vm, 0, 2, 0x400, 200, 0), 0);
	for (uint64_t i = 0; i < 200; i++)
		ms_mark_page_dirty(vm, 0, 0x100 + i);
	return vm;
}

static void check_get(struct ms_vm *vm, uint32_t as_id, uint32_t id, int want, enum ms_rule rule)
{
	struct ms_error err = { 0 };
	uint64_t words[4];
	size_t nwords = 99;

	CHECK_EQ(ms_get_dirty_log(vm, as_id, id, words, 4, &nwords, &err), want);
	CHECK_EQ(err.rule, rule);
	CHECK_EQ(nwords, 0);
}

static void test_get_refused(void)
{
	struct ms_vm *vm = vm_with_logs();
	struct picture before = picture_of(vm), after;
	struct ms_error err = { 0 };
	uint64_t words[4];
	size_t nwords = 0;

	check_get(vm, 2, MS_USER_MEM_SLOTS_DEFAULT, -EINVAL, MS_RULE_AS_ID);
	check_get(vm, 0, MS_USER_MEM_SLOTS_DEFAULT, -EINVAL, MS_RULE_SLOT_ID);
	check_get(vm, 1, 1, -ENOENT, MS_RULE_NO_SUCH_SLOT);
	check_get(vm, 0, 2, -ENOENT, MS_RULE_NO_DIRTY_LOG);
	CHECK_EQ(ms_get_dirty_log(vm, 0, 1, words, 3, &nwords, &err), -ENOBUFS);
	CHECK_EQ(err.rule, MS_RULE_BITMAP_SIZE);
	CHECK_EQ(err.limit, 4);
	CHECK_EQ(nwords, 4);
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));

	CHECK_EQ(ms_get_dirty_log(vm, 0, 1, NULL, 0, &nwords, &err), -EFAULT); /* harvests the bits, and loses them */
	CHECK_EQ(err.rule, MS_RULE_NULL_BUFFER);
	CHECK_EQ(log_word(vm, 1, 0), 0);
	end_vm(vm);
}

static void test_null_buffer_in_manual_mode(void)
{
	struct ms_vm *vm = vm_with_logs();
	size_t nwords;

	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 1, NULL), 0);
	CHECK_EQ(ms_get_dirty_log(vm, 0, 1, NULL, 0, &nwords, NULL), -EFAULT);
	CHECK_EQ(log_word(vm, 1, 0), ~(uint64_t)0);
	end_vm(vm);
}

struct clear_case {
	uint32_t as_id, id;
	uint64_t first;
	uint32_t num;
	bool null;
	size_t nwords;
	int want;
	enum ms_rule rule;
};

static const struct clear_case clear_cases[] = {
	{ 0, 1, 0, 64, false, 1, 0, 0 },
	{ 0, 1, 64, 128, false, 2, 0, 0 },
	{ 0, 1, 128, 72, false, 2, 0, 0 },
	{ 0, 1, 128, 64, false, 1, 0, 0 },
	{ 0, 1, 192, 8, false, 1, 0, 0 },
	{ 0, 1, 192, 0, false, 0, 0, 0 },
	{ 0, 1, 0, 0, true, 0, 0, 0 },
	{ 0, 1, 0, 200, false, 4, 0, 0 },
	{ 0, 1, 192, 7, false, 1, -EINVAL, MS_RULE_CLEAR_RANGE },
	{ 0, 1, 192, 9, false, 1, -EINVAL, MS_RULE_CLEAR_RANGE },
	{ 0, 1, 192, 64, false, 1, -EINVAL, MS_RULE_CLEAR_RANGE },
	{ 0, 1, 0, 72, false, 2, -EINVAL, MS_RULE_CLEAR_RANGE },
	{ 0, 1, 256, 0, false, 0, -EINVAL, MS_RULE_CLEAR_RANGE },
	{ 0, 1, (uint64_t)1 << 63, 0, true, 0, -EINVAL, MS_RULE_CLEAR_RANGE },
	{ 0, 1, 0, ~0u, true, 0, -EINVAL, MS_RULE_CLEAR_RANGE },
	{ 0, 1, 0, 64, true, 1, -EFAULT, MS_RULE_NULL_BUFFER },
	{ 0, 1, 0, 64, true, 9, -EFAULT, MS_RULE_NULL_BUFFER },
	{ 0, 1, 0, 64, false, 0, -EINVAL, MS_RULE_BITMAP_SIZE },
	{ 0, 1, 0, 64, false, 2, -EINVAL, MS_RULE_BITMAP_SIZE },
	/* each with a later field wrong as well */
	{ 2, MS_USER_MEM_SLOTS_DEFAULT, 1, 7, true, 0, -EINVAL, MS_RULE_AS_ID },
	{ 0, MS_USER_MEM_SLOTS_DEFAULT, 1, 7, true, 0, -EINVAL, MS_RULE_SLOT_ID },
	{ 1, 1, 1, 7, true, 0, -EINVAL, MS_RULE_FIRST_PAGE },
	{ 0, 2, 63, 7, true, 0, -EINVAL, MS_RULE_FIRST_PAGE },
	{ 0, 1, 65, 7, true, 0, -EINVAL, MS_RULE_FIRST_PAGE },
	{ 1, 1, 64, 7, true, 0, -ENOENT, MS_RULE_NO_SUCH_SLOT },
	{ 0, 2, 64, 7, true, 0, -ENOENT, MS_RULE_NO_DIRTY_LOG },
	{ 0, 1, 64, 7, true, 0, -EINVAL, MS_RULE_CLEAR_RANGE },
};

static void check_cleared(struct ms_vm *vm, const struct clear_case *c)
{
	uint64_t words[4];
	size_t nwords;

	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 1, NULL), 0);
	CHECK_EQ(ms_get_dirty_log(vm, 0, 1, words, 4, &nwords, NULL), 0);
	for (uint64_t page = 0; page < 200; page++) {
		bool cleared = page >= c->first && page < c->first + c->num && page % 3;

		CHECK_EQ(words[page / 64] >> page % 64 & 1, !cleared);
	}
	CHECK_EQ(words[3] >> 8, 0);
}

static void test_clear(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(clear_cases); i++) {
		const struct clear_case *c = &clear_cases[i];
		struct ms_vm *vm = vm_with_logs();
		struct picture before = picture_of(vm), after;
		struct ms_error err = { 0 };
		uint64_t mask[4] = { 0 };

		for (uint64_t bit = 0; bit < 256; bit++) /* bits beyond the last page are ignored */
			if ((c->first + bit) % 3)
				mask[bit / 64] |= (uint64_t)1 << bit % 64;
		CHECK_EQ(ms_clear_dirty_log(vm, c->as_id, c->id, c->first, c->num, c->null ? NULL : mask, c->nwords,
					    &err),
			 c->want);
		CHECK_EQ(err.rule, c->rule);
		after = picture_of(vm);
		if (c->want || !c->num)
			CHECK(same_picture(&before, &after));
		else
			check_cleared(vm, c);
		check_sound(vm);
		ms_vm_destroy(vm);
	}
}

/* The end of a slot of whole words is a first page that a clear may name, with no page behind it. */
static void test_clear_nothing_at_the_end(void)
{
	struct ms_vm *vm = new_vm(1);

	CHECK_EQ(set(vm, 0, 1, 0x10, 64, MS_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(ms_clear_dirty_log(vm, 0, 1, 64, 0, NULL, 0, NULL), 0);
	CHECK_EQ(ms_clear_dirty_log(vm, 0, 1, 128, 0, NULL, 0, NULL), -EINVAL);
	ms_vm_destroy(vm);
}

/* ---- internal slots ---- */

static void check_internal(struct ms_vm *vm, region_t r, int want, enum ms_rule rule, uint64_t limit)
{
	struct picture before = picture_of(vm), after;
	struct ms_error err = { 0 };

	CHECK_EQ(ms_set_internal_memory_region(vm, &r, &err), want);
	CHECK_EQ(err.rule, rule);
	CHECK_EQ(err.limit, limit);
	after = picture_of(vm);
	CHECK_EQ(same_picture(&before, &after), want != 0);
}

static void test_internal_slots(void)
{
	const uint32_t first = MS_USER_MEM_SLOTS_DEFAULT;
	struct ms_vm *vm = new_vm(1);
	uint64_t refused = stats_of(vm).refused;

	CHECK_EQ(set(vm, 0, 1, 0x100, 16, 0), 0);
	check_internal(vm, region(0, first - 1, 0x200, 1, 0), -EINVAL, MS_RULE_SLOT_ID, first + 3);
	check_internal(vm, region(0, first + 3, 0x200, 1, 0), -EINVAL, MS_RULE_SLOT_ID, first + 3);
	check_internal(vm, region(0, first, 0x200, 1, MS_MEM_LOG_DIRTY_PAGES), -EINVAL, MS_RULE_FLAGS, 0);
	check_internal(vm, region(0, first, 0x10f, 1, 0), -EEXIST, MS_RULE_OVERLAP, 0);
	CHECK_EQ(stats_of(vm).refused, refused + 4);
	for (uint32_t i = 0; i < MS_INTERNAL_MEM_SLOTS; i++)
		check_internal(vm, region(0, first + i, 0x200 + i, 1, 0), 0, MS_RULE_NONE, 0);
	CHECK_EQ(set(vm, 0, first, 0x200, 1, 0), -EINVAL); /* users may not change it */
	CHECK_EQ(set(vm, 0, 2, 0x201, 1, 0), -EEXIST);
	CHECK(!ms_is_visible_gfn(vm, 0, 0x201));
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 0x201), hva_for(0, first + 1));
	CHECK_EQ(ms_nr_memslots(vm), 4);
	check_internal(vm, region(0, first, 0x300, 1, 0), 0, MS_RULE_NONE, 0); /* moves */
	check_internal(vm, region(0, first, 0, 0, 0), 0, MS_RULE_NONE, 0);
	check_internal(vm, region(0, first, 0, 0, 0), -EINVAL, MS_RULE_NO_SUCH_SLOT, 0);
	check_sound(vm);
	end_vm(vm);
}

/* ---- load ---- */

static struct ms_memslot entry(uint32_t id, uint64_t gfn, uint64_t npages, uint32_t flags)
{
	return (struct ms_memslot){ gfn, npages, hva_for(0, id), id, 0, flags, 0 };
}

static void test_load(void)
{
	struct ms_memslot list[40], got[40];
	struct ms_vm *vm = new_vm(2);
	uint64_t gen;

	for (uint32_t i = 0; i < 40; i++)
		list[i] = entry(39 - i, (uint64_t)i * 7, 1 + i % 7, i % 3 ? 0 : MS_MEM_LOG_DIRTY_PAGES);
	gen = ms_generation(vm, 1);
	CHECK_EQ(ms_load_memslots(vm, 1, list, 40, NULL), 0);
	CHECK_EQ(ms_generation(vm, 1), gen + 2); /* one swap */
	CHECK_EQ(stats_of(vm).swaps, 1);
	CHECK_EQ(stats_of(vm).creates, 40);
	CHECK_EQ(ms_memslots(vm, 1, got, 40), 40);
	for (uint32_t i = 0; i < 40; i++) {
		list[i].as_id = 1;
		CHECK(same_slot(&got[i], &list[i]));
	}
	CHECK_EQ(ms_memslots(vm, 0, NULL, 0), 0);
	CHECK_EQ(ms_load_memslots(vm, 1, NULL, 0, NULL), 0);
	CHECK_EQ(stats_of(vm).swaps, 1);
	list[0] = entry(0, 0, MS_MEM_MAX_NR_PAGES, 0); /* as large as a slot may be */
	CHECK_EQ(ms_load_memslots(vm, 0, list, 1, NULL), 0);
	check_sound(vm);
	end_vm(vm);
}

/* Entry 3 is refused, also where it and an earlier entry exclude each other. */
static void check_load_refused(struct ms_vm *vm, struct ms_memslot bad, int want, enum ms_rule rule, uint32_t other_id)
{
	struct ms_memslot list[5] = { entry(10, 0x1000, 16, 0), entry(11, 0x1010, 16, MS_MEM_LOG_DIRTY_PAGES),
				      entry(12, 0x900, 16, 0), bad, entry(13, 0x2000, 1, 0) };
	struct picture before = picture_of(vm);
	struct ms_stats stats = held_by(vm);
	struct ms_error err = { 0 };

	CHECK_EQ(ms_load_memslots(vm, 0, list, 5, &err), want);
	CHECK_EQ(err.rule, rule);
	CHECK(err.index == 3 && err.other.id == other_id);
	check_only_refused(vm, &before, &stats);
}

static void test_load_refused(void)
{
	struct ms_vm *vm = new_vm(1);
	struct ms_error err;

	CHECK_EQ(set(vm, 0, 1, 0x100, 16, MS_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(ms_load_memslots(vm, 1, NULL, 0, &err), -EINVAL);
	CHECK_EQ(err.rule, MS_RULE_AS_ID);
	CHECK_EQ(err.limit, 1);
	check_load_refused(vm, entry(MS_USER_MEM_SLOTS_DEFAULT, 0x5000, 1, 0), -EINVAL, MS_RULE_SLOT_ID, 0);
	check_load_refused(vm, entry(14, 0x5000, 1, 8), -EINVAL, MS_RULE_FLAGS, 0);
	check_load_refused(vm, entry(14, 0x5000, 0, 0), -EINVAL, MS_RULE_NPAGES, 0);
	check_load_refused(vm, entry(14, 0x5000, (uint64_t)1 << 31, 0), -EINVAL, MS_RULE_NPAGES, 0);
	check_load_refused(vm, entry(14, 0x5000, (uint64_t)1 << 52, 0), -EINVAL, MS_RULE_NPAGES, 0);
	check_load_refused(vm, entry(14, (uint64_t)1 << 52, 1, 0), -EINVAL, MS_RULE_GPA_WRAP, 0);
	check_load_refused(vm, entry(14, ((uint64_t)1 << 52) - 1, 1, 0), -EINVAL, MS_RULE_GPA_WRAP, 0);
	check_load_refused(vm, entry(1, 0x5000, 1, 0), -EEXIST, MS_RULE_DUPLICATE_ID, 1);
	check_load_refused(vm, entry(11, 0x5000, 1, 0), -EEXIST, MS_RULE_DUPLICATE_ID, 11);
	check_load_refused(vm, entry(14, 0x10f, 1, 0), -EEXIST, MS_RULE_OVERLAP, 1);
	check_load_refused(vm, entry(14, 0x101f, 1, 0), -EEXIST, MS_RULE_OVERLAP, 11);
	check_load_refused(vm, entry(14, 0x5000, 1, MS_MEM_GUEST_MEMFD), -EBADF, MS_RULE_GMEM_FD, 0);
	end_vm(vm);
}

#define BEYOND ((uint64_t)1 << (MS_GPA_BITS_DEFAULT - MS_PAGE_SHIFT))

/* Each entry after the good first one is bad; whichever two follow it, the error names the first of them. */
static void test_load_names_the_first(void)
{
	static const struct {
		struct ms_memslot slot;
		int want;
		enum ms_rule rule;
	} bad[] = {
		{ { 0x5000, 1, 0x1000, 14, 0, 8, 0 }, -EINVAL, MS_RULE_FLAGS },
		{ { 0x6000, 0, 0x1000, 15, 0, 0, 0 }, -EINVAL, MS_RULE_NPAGES },
		{ { 0x7000, 1, 0x1000, 1, 0, 0, 0 }, -EEXIST, MS_RULE_DUPLICATE_ID },
		{ { 0x108, 1, 0x1000, 16, 0, 0, 0 }, -EEXIST, MS_RULE_OVERLAP },
		{ { 0x8000, 1, 0x1000, 10, 0, 0, 0 }, -EEXIST, MS_RULE_DUPLICATE_ID },
		{ { 0x1001, 1, 0x1000, 17, 0, 0, 0 }, -EEXIST, MS_RULE_OVERLAP },
		{ { 0xfff, 2, 0x1000, 18, 0, 0, 0 }, -EEXIST, MS_RULE_OVERLAP },
		{ { 0x10, 1, 0x1000, 19, 0, MS_MEM_GUEST_MEMFD, 0 }, -EBADF, MS_RULE_GMEM_FD },
		{ { BEYOND, 1, 0x1000, 20, 0, 0, 0 }, -EINVAL, MS_RULE_GPA_LIMIT },
		{ { BEYOND - 1, 2, 0x1000, 21, 0, MS_MEM_LOG_DIRTY_PAGES, 0 }, -EINVAL, MS_RULE_GPA_LIMIT },
	};
	struct ms_vm *vm = new_vm(1);
	struct ms_stats stats;

	CHECK_EQ(set(vm, 0, 1, 0x100, 16, MS_MEM_LOG_DIRTY_PAGES), 0);
	stats = held_by(vm);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		for (size_t j = 0; j < ARRAY_SIZE(bad); j++) {
			struct ms_memslot list[] = { entry(10, 0x1000, 16, 0), bad[i].slot, bad[j].slot };
			struct ms_error err = { 0 };

			CHECK_EQ(ms_load_memslots(vm, 0, list, 3, &err), bad[i].want);
			CHECK_EQ(err.index, 1);
			CHECK_EQ(err.rule, bad[i].rule);
			CHECK_EQ(ms_load_memslots(vm, 0, list, 3, NULL), bad[i].want);
			CHECK_EQ(held_by(vm).blocks, stats.blocks);
			check_sound(vm);
		}
	end_vm(vm);
}

/* No guest_memfd exists outside KVM: EINVAL for a file that is open, EBADF for one that is not or only names a path. */
static void test_guest_memfd(void)
{
	struct ms_userspace_memory_region r = {
		.slot = 3,
		.flags = MS_MEM_GUEST_MEMFD,
		.guest_phys_addr = 0x100000,
		.memory_size = 0x1000,
	};
	struct ms_vm *vm = new_vm(1);
	struct ms_error err;
	int closed = dup(0), path = open("/", O_PATH), file = open("/dev/null", O_RDONLY);

	CHECK(closed >= 0 && path >= 0 && file >= 0);
	close(closed);
	for (int i = 0; i < 5; i++) {
		int fd = (const int[]){ -1, closed, INT_MAX, path, file }[i];

		r.guest_memfd = fd;
		CHECK_EQ(ms_set_user_memory_region(vm, &r, &err), fd == file ? -EINVAL : -EBADF);
		CHECK_EQ(err.rule, MS_RULE_GMEM_FD);
		CHECK_EQ(err.limit, fd == file);
	}
	close(path);
	close(file);
	CHECK_EQ(ms_nr_memslots(vm), 0);
	check_sound(vm);
	end_vm(vm);
}

/* The guest address limit is checked late, but belongs to an entry like any other rule. */
static void test_load_beyond_gpa_limit(void)
{
	struct ms_config config = default_config(1);
	struct ms_vm *vm;

	config.gpa_bits = 36;
	vm = vm_with(&config);
	check_load_refused(vm, entry(14, (uint64_t)1 << 24, 1, 0), -EINVAL, MS_RULE_GPA_LIMIT, 0);
	{
		struct ms_memslot list[] = { entry(10, 0, 1, 0), entry(11, (uint64_t)1 << 24, 1, 0),
					     entry(12, (uint64_t)1 << 25, 1, 0) };
		struct ms_error err;

		CHECK_EQ(ms_load_memslots(vm, 0, list, 3, &err), -EINVAL);
		CHECK_EQ(err.rule, MS_RULE_GPA_LIMIT);
		CHECK_EQ(err.index, 1);
	}
	end_vm(vm);
}

static int refuse_id_14(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	return change->new_slot.id == 14 ? -ENXIO : 0;
}

static void test_load_refused_by_listener(void)
{
	static const struct ms_listener picky = { LISTENER_SIZE, .prepare = refuse_id_14 };
	struct ms_vm *vm = new_vm(1);

	CHECK_EQ(ms_add_listener(vm, &picky, NULL), 0);
	check_load_refused(vm, entry(14, 0x5000, 1, MS_MEM_LOG_DIRTY_PAGES), -ENXIO, MS_RULE_LISTENER_REFUSED, 0);
	end_vm(vm);
}

/* ---- limits as parameters ---- */

static struct ms_vm *vm_of(uint32_t spaces, uint32_t slots, uint32_t gpa_bits, uint64_t hva_end_max)
{
	struct ms_config config = default_config(spaces);
	struct ms_vm *vm;

	config.user_mem_slots = slots;
	config.gpa_bits = gpa_bits;
	config.hva_end_max = hva_end_max;
	vm = vm_with(&config);
	CHECK_EQ(ms_vm_config(vm)->address_spaces, spaces);
	CHECK_EQ(ms_vm_config(vm)->user_mem_slots, slots);
	CHECK_EQ(ms_vm_config(vm)->gpa_bits, gpa_bits);
	CHECK_EQ(ms_vm_config(vm)->hva_end_max, hva_end_max);
	return vm;
}

static void test_slot_limits(void)
{
	static const uint32_t limits[] = { 1, 2, 1000000, MS_USER_MEM_SLOTS_MAX };

	size_t n = ARRAY_SIZE(limits) - design_is("array"); /* the array has a table of all ids */

	for (size_t i = 0; i < n; i++) {
		struct ms_vm *vm = vm_of(1, limits[i], 52, MS_HVA_END_MAX_DEFAULT);
		region_t r = region(0, limits[i] - 1, 1, 1, 0);
		struct ms_error err;

		r.userspace_addr = 0;
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
		r.guest_phys_addr = 2 * PAGE;
		r.slot = limits[i];
		CHECK_EQ(ms_set_user_memory_region(vm, &r, &err), -EINVAL);
		CHECK_EQ(err.rule, MS_RULE_SLOT_ID);
		CHECK_EQ(err.limit, limits[i]);
		r.slot = limits[i] + 2;
		CHECK_EQ(ms_set_internal_memory_region(vm, &r, NULL), 0);
		check_sound(vm);
		ms_vm_destroy(vm);
	}
}

/* Two pages from the last slot's place on.  With 64 bits they overflow; that rule comes before the overlap, and the
 * overlap before the limit. */
static void check_top(struct ms_vm *vm, uint32_t bits, uint64_t last)
{
	region_t r = region(0, 3, last, 2, 0);
	struct ms_error err;

	CHECK_EQ(ms_set_user_memory_region(vm, &r, &err), bits == 64 ? -EINVAL : -EEXIST);
	CHECK_EQ(err.rule, bits == 64 ? MS_RULE_GPA_WRAP : MS_RULE_OVERLAP);
	r = region(0, 3, 0, ((uint64_t)1 << 31) + 1, 0);
	CHECK_EQ(ms_set_user_memory_region(vm, &r, &err), -EINVAL);
	CHECK_EQ(err.rule, MS_RULE_NPAGES);
}

static void test_gpa_limits(void)
{
	static const uint32_t bits[] = { 13, 36, 52, 63, 64 };

	for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
		struct ms_vm *vm = vm_of(1, 16, bits[i], MS_HVA_END_MAX_DEFAULT);
		uint64_t end = (uint64_t)1 << (bits[i] - 12), last = bits[i] == 64 ? end - 2 : end - 1;
		region_t r = region(0, 1, last, 1, 0);
		struct ms_error err;

		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
		CHECK_EQ(ms_gfn_to_hva(vm, 0, last), hva_for(0, 1));
		r = region(0, 2, last + 1, 1, 0);
		CHECK_EQ(ms_set_user_memory_region(vm, &r, &err), -EINVAL);
		CHECK_EQ(err.rule, bits[i] == 64 ? MS_RULE_GPA_WRAP : MS_RULE_GPA_LIMIT);
		CHECK_EQ(err.limit, bits[i] == 64 ? 0 : (uint64_t)1 << bits[i]);
		r = region(0, 2, 0, last, 0);
		CHECK_EQ(ms_set_user_memory_region(vm, &r, &err), bits[i] < 44 ? 0 : -EINVAL);
		check_top(vm, bits[i], last);
		check_sound(vm);
		ms_vm_destroy(vm);
	}
}

static void test_hva_limits(void)
{
	static const uint64_t ends[] = { PAGE, 16 * PAGE, 0x7ffffffff000, (uint64_t)1 << 56, MS_HVA_ERR_MIN - PAGE };

	for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
		struct ms_vm *vm = vm_of(1, 16, 52, ends[i]);
		region_t r = region(0, 1, 0, 1, 0);
		struct ms_error err;

		r.userspace_addr = ends[i] - PAGE;
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
		CHECK_EQ(ms_gfn_to_hva(vm, 0, 0), ends[i] - PAGE);
		r = region(0, 2, 1, 1, 0);
		r.userspace_addr = ends[i];
		CHECK_EQ(ms_set_user_memory_region(vm, &r, &err), -EINVAL);
		CHECK_EQ(err.rule, MS_RULE_HVA_RANGE);
		CHECK_EQ(err.limit, ends[i]);
		check_sound(vm);
		ms_vm_destroy(vm);
	}
}

static void test_space_limits(void)
{
	static const uint32_t spaces[] = { 1, 2, 3, 64 };

	for (size_t i = 0; i < ARRAY_SIZE(spaces); i++) {
		uint32_t n = spaces[i];
		struct ms_vm *vm = vm_of(n, 16, 52, MS_HVA_END_MAX_DEFAULT);

		for (uint32_t as_id = 0; as_id < n; as_id++) {
			CHECK_EQ(ms_generation(vm, as_id), as_id);
			CHECK_EQ(set(vm, as_id, 3, 7, 1, 0), 0);
			CHECK_EQ(ms_gfn_to_hva(vm, as_id, 7), hva_for(as_id, 3));
			CHECK_EQ(ms_generation(vm, as_id), n + as_id);
		}
		CHECK_EQ(set(vm, n, 3, 7, 1, 0), -EINVAL);
		CHECK_EQ(ms_nr_memslots(vm), n);
		check_sound(vm);
		CHECK_EQ(set(vm, n - 1, 3, 7, 0, 0), 0);
		CHECK_EQ(ms_generation(vm, n - 1), 4 * n - 1);
		CHECK_EQ(ms_nr_memslots(vm), n - 1);
		ms_vm_destroy(vm);
	}
}

static void check_config(struct ms_config config, int want)
{
	struct ms_vm *vm = (struct ms_vm *)(uintptr_t)1;

	CHECK_EQ(ms_vm_create(&config, &vm), want);
	CHECK(want ? !vm : vm != NULL);
	ms_vm_destroy(vm);
}

static void test_configs(void)
{
	struct ms_config good, c;

	ms_config_init(&good);
	CHECK_EQ(good.address_spaces, 1);
	CHECK_EQ(good.user_mem_slots, 32764);
	CHECK_EQ(good.gpa_bits, 52);
	CHECK_EQ(good.hva_end_max, 0x7ffffffff000);
	CHECK_EQ(strcmp(good.backend, "tree"), 0);
	CHECK_EQ(strcmp(ms_backend_name(0), "tree"), 0);
	CHECK(!ms_backend_name(1000));
	check_config(good, 0);
#define BAD(field, value, want) (c = good, c.field = (value), check_config(c, want))
	BAD(address_spaces, 0, -EINVAL);
	BAD(address_spaces, 65, -EINVAL);
	BAD(address_spaces, 64, 0);
	BAD(user_mem_slots, 0, -EINVAL);
	BAD(user_mem_slots, MS_USER_MEM_SLOTS_MAX + 1, -EINVAL);
	BAD(user_mem_slots, ~0u, -EINVAL);
	BAD(gpa_bits, 12, -EINVAL);
	BAD(gpa_bits, 65, -EINVAL);
	BAD(gpa_bits, 0, -EINVAL);
	BAD(hva_end_max, MS_PAGE_SIZE - 1, -EINVAL);
	BAD(hva_end_max, ~(uint64_t)0, -EINVAL);
	BAD(hva_end_max, MS_HVA_ERR_MIN + 1, -EINVAL);
	BAD(backend, "no such design", -ENOSYS);
	BAD(backend, "", -ENOSYS);
	BAD(size, 0, -EINVAL);
	BAD(size, sizeof(c) - 1, -EINVAL);
#undef BAD
}

/* A caller that was compiled with a later header, whose structs have one more member. */
struct later_config {
	struct ms_config now;
	uint64_t more;
};

struct later_stats {
	struct ms_stats now;
	uint64_t more;
};

static void test_sizes(void)
{
	struct later_config config = { .more = 7 };
	struct later_stats stats = { .more = 7 };
	struct ms_config small = { .size = 7 };
	struct ms_vm *vm;

	CHECK_EQ(ms_config_init_sized(&small, sizeof(small) - 1), -EINVAL);
	CHECK_EQ(ms_config_init_sized(NULL, sizeof(small)), -EFAULT);
	CHECK_EQ(small.size, 7); /* nothing is written */
	CHECK_EQ(ms_config_init_sized(&config.now, sizeof(config)), 0);
	CHECK_EQ(config.now.size, sizeof(config));
	CHECK_EQ(config.more, 0);
	config.more = 9;
	config.now.dereference_raw_addresses = true;
	CHECK_EQ(ms_vm_create(&config.now, &vm), 0);
	CHECK_EQ(ms_vm_config(vm)->size, sizeof(struct ms_config));
	CHECK(ms_vm_config(vm)->dereference_raw_addresses);
	CHECK_EQ(ms_get_stats_sized(vm, &stats.now, offsetof(struct ms_stats, resizes) - 1), -EINVAL);
	CHECK_EQ(ms_get_stats_sized(vm, NULL, sizeof(stats.now)), -EFAULT);
	CHECK_EQ(stats.now.size, 0);
	CHECK_EQ(ms_get_stats_sized(vm, &stats.now, sizeof(stats)), 0);
	CHECK_EQ(stats.now.size, sizeof(stats.now));
	CHECK(stats.now.bytes > 0 && stats.now.blocks > 0);
	CHECK_EQ(stats.more, 7);
	ms_vm_destroy(vm);
	CHECK_EQ(ms_config_init(&small), 0);
	CHECK_EQ(small.size, sizeof(small));
	CHECK(!small.dereference_raw_addresses);
}

static void test_all(void)
{
	test_create_and_delete();
	test_move();
	test_flags_and_noop();
	test_shared_hva_and_spaces();
	test_bitmap_life();
	test_initially_set();
	test_manual_protect_values();
	test_get_refused();
	test_null_buffer_in_manual_mode();
	test_clear();
	test_clear_nothing_at_the_end();
	test_load();
	test_load_refused();
	test_load_names_the_first();
	test_guest_memfd();
	test_slot_limits();
	test_hva_limits();
	test_space_limits();
	test_internal_slots();
	test_gpa_limits();
	test_load_refused_by_listener();
	test_load_beyond_gpa_limit();
}

int main(int argc, char **argv)
{
	uint64_t pairs = 0;

	test_init(argc, argv, 60);
	test_configs();
	test_sizes();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		test_all();
		pairs += test_order();
	}
	printf("region: %" PRIu64 " requests, %" PRIu64 " of them accepted\n", requests, accepted);
	return test_done("region", pairs, "pairs of rules in order");
}
