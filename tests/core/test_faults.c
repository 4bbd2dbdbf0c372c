/* SPDX-License-Identifier: MIT */
/*
 * test_faults.c - each allocation of each change fails in turn: alone, and together with all later ones.
 *
 * A change without memory fails with an error and has changed nothing: no slot, no bit, no block.  In every design a
 * refused change leaves no more memory in use than before.  Only indexes are not counted: lookups make them.  A failed
 * allocation of buckets for the id hash is silent, because the hash works without more of them.  An update in steps
 * that is rolled back keeps such buckets.
 *
 * The linker redirects every call of memory.h's allocators to this file (--wrap), so that each place in the sources
 * that allocates is known by its address, counted, and named at the end.  Roll-backs and ends must not allocate: they
 * run while every allocation would fail.
 */
#include "fixture.h"

#include "backing.h"

#include <pthread.h>

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define SPACES 2u
#define TARGET 20000u /* the slot that is changed; the others are 0 to n - 1 */
#define TARGET_GFN 0x200000u
#define FIRST_NEW 21000u
#define LOADED 100u
#define USER_SLOTS 22000u

static struct ms_vm *vm;
static uint64_t injections, silent;
static uint32_t loaded = LOADED;

/* ---- the places that allocate ---- */

struct site {
	uintptr_t at; /* the call returns to it */
	uint64_t calls, once, onward;
};

static struct site sites[64];
static size_t nr_sites;
static uint64_t fail_call; /* the number of the call that fails, in whichever memory; 0: none */

static struct site *site_at(uintptr_t at)
{
	size_t i = 0;

	while (i < nr_sites && sites[i].at != at)
		i++;
	CHECK(i < ARRAY_SIZE(sites));
	if (i == nr_sites)
		sites[nr_sites++].at = at;
	return &sites[i];
}

static void *counted(const struct memory *m, void *block, void *caller)
{
	struct site *site = site_at((uintptr_t)caller);

	site->calls++;
	site->once += !block && !m->fail_onward;
	site->onward += !block && m->fail_onward;
	return block;
}

static bool fails_here(void)
{
	return fail_call && --fail_call == 0;
}

#define WRAPPED(name) \
	extern void *__real_ms_##name(struct memory *m, size_t size) __attribute__((weak)); \
	void *__wrap_ms_##name(struct memory *m, size_t size); \
	void *__wrap_ms_##name(struct memory *m, size_t size) \
	{ \
		return counted(m, fails_here() ? NULL : __real_ms_##name(m, size), __builtin_return_address(0)); \
	}

WRAPPED(memory_zalloc)
WRAPPED(memory_zalloc_lines)
WRAPPED(memory_alloc_lines)
WRAPPED(memory_pool_alloc)

/* ---- the changes ---- */

struct fault_case {
	const char *name;
	bool with_target; /* the slot exists before the change */
	uint32_t flags;   /* of the target before the change */
	int (*change)(struct ms_error *err);
	bool log_comes_late; /* its allocation fails after the first of two swaps */
	bool of_tree;        /* only the tree has it; the number of its swaps varies */
};

static int set_target(uint64_t gfn, uint64_t npages, uint32_t flags, struct ms_error *err)
{
	region_t r = region(1, TARGET, gfn, npages, flags);

	return ms_set_user_memory_region(vm, &r, err);
}

/* The memory of the target, with pages around it.  Only references to it are counted: nobody reads it. */
static struct ms_backing *backing;

static int map_target(uint32_t flags, struct ms_error *err)
{
	region_t r = region(1, TARGET, TARGET_GFN, 70, flags);

	return ms_map_backing(vm, &r, backing, NULL, err);
}

static int map_memory(struct ms_error *err)
{
	return map_target(0, err);
}

static int map_with_log(struct ms_error *err)
{
	return map_target(LOG, err);
}

static int create(struct ms_error *err)
{
	return set_target(TARGET_GFN, 70, 0, err);
}

static int create_with_log(struct ms_error *err)
{
	return set_target(TARGET_GFN, 70, LOG, err);
}

static int create_internal(struct ms_error *err)
{
	region_t r = region(1, USER_SLOTS, TARGET_GFN, 70, 0);

	return ms_set_internal_memory_region(vm, &r, err);
}

static int delete(struct ms_error *err)
{
	return set_target(TARGET_GFN, 0, 0, err);
}

static int move(struct ms_error *err)
{
	return set_target(TARGET_GFN + 0x20, 70, 0, err);
}

static int move_with_log(struct ms_error *err)
{
	return set_target(TARGET_GFN + 0x20, 70, LOG, err);
}

static int flags_on(struct ms_error *err)
{
	return set_target(TARGET_GFN, 70, LOG, err);
}

static int flags_off(struct ms_error *err)
{
	return set_target(TARGET_GFN, 70, 0, err);
}

static int load(struct ms_error *err)
{
	struct ms_memslot list[LOADED];

	for (uint32_t i = 0; i < loaded; i++)
		list[i] = (struct ms_memslot){ 0x300000 + 100 * i, 70, HVA_BASE + i * PAGE, FIRST_NEW + i, 0,
					       i % 3 ? 0 : LOG,    0 };
	return ms_load_memslots(vm, 1, list, loaded, err);
}

static const struct ms_listener listener = { LISTENER_SIZE }, first_listener = { LISTENER_SIZE };

static int add_listener(struct ms_error *err)
{
	return ms_add_listener(vm, &listener, err);
}

static struct ms_vcpu *vcpu;

static int create_vcpu(struct ms_error *err)
{
	return ms_vcpu_create(vm, &vcpu, err);
}

/* A MOVE to another size and ten CREATEs in steps: more edits and drafts than the first lists have room for. */
#define DRAFTS 10u

static struct ms_update *update;
static struct ms_slot *draft[DRAFTS], *old_slot, *moved, *inv;

static int copy_draft(uint32_t i, struct ms_error *err)
{
	struct ms_memslot value = { .base_gfn = 0x300000 + 100 * i,
				    .npages = 70,
				    .userspace_addr = HVA_BASE,
				    .id = FIRST_NEW + i,
				    .as_id = 1,
				    .flags = i % 2 ? LOG : 0 };

	return ms_update_copy(update, NULL, &value, &draft[i], err);
}

static int copy_target(struct ms_error *err)
{
	struct ms_memslot value;

	CHECK_EQ(ms_update_value(update, old_slot, &value), 0);
	value.base_gfn += 0x20;
	value.userspace_addr -= PAGE;
	value.npages += 60; /* needs a log of its own */
	return ms_update_copy(update, old_slot, &value, &moved, err);
}

static int step(uint32_t i, struct ms_error *err)
{
	if (i < 2 * DRAFTS)
		return i % 2 ? ms_update_replace(update, NULL, draft[i / 2], err) : copy_draft(i / 2, err);
	i -= 2 * DRAFTS;
	if (i == 0)
		return ms_update_invalidate(update, old_slot, &inv, err);
	if (i == 1)
		return copy_target(err);
	if (i == 2)
		return ms_update_replace(update, old_slot, moved, err);
	if (i < 3 + DRAFTS)
		return ms_update_replace(update, NULL, draft[i - 3], err);
	return ms_update_activate(update, inv, moved, err);
}

#define STEPS (2 * DRAFTS + 3 + DRAFTS + 1)

/* A step without memory does nothing; the end, which rolls back, allocates nothing. */
static int update_in_steps(struct ms_error *err)
{
	int r = ms_update_begin(vm, 1, &update, err);
	uint64_t asked;

	if (r)
		return r;
	old_slot = ms_update_find(update, true, TARGET);
	for (uint32_t i = 0; !r && i < STEPS; i++) {
		struct picture before = picture_of(vm), after;

		r = step(i, err);
		after = picture_of(vm);
		CHECK(!r || same_picture(&before, &after));
	}
	asked = atomic_load(&vm->memory.attempts);
	CHECK_EQ(ms_update_end(update, !r, NULL), 0);
	CHECK_EQ(atomic_load(&vm->memory.attempts), asked);
	return r;
}

/* The target in parts, with more slots and steps than the first lists have room for: 12 items and 2 new logs. */
#define CHANGES 12u

static int transaction(struct ms_error *err)
{
	struct ms_step steps[CHANGES] = {
		{ .kind = MS_STEP_SPLIT,
		  .slot = TARGET,
		  .other = FIRST_NEW,
		  .guest_phys_addr = (TARGET_GFN + 9) * PAGE },
		{ .kind = MS_STEP_SPLIT,
		  .slot = FIRST_NEW,
		  .other = FIRST_NEW + 1,
		  .guest_phys_addr = (TARGET_GFN + 20) * PAGE },
		{ .kind = MS_STEP_DELETE, .slot = FIRST_NEW },
		{ .kind = MS_STEP_MOVE, .slot = TARGET, .guest_phys_addr = (TARGET_GFN + 11) * PAGE },
	};

	for (uint32_t i = 4; i < CHANGES; i++)
		steps[i] = (struct ms_step){ .kind = MS_STEP_CREATE,
					     .slot = FIRST_NEW + i,
					     .guest_phys_addr = (0x300000 + 100 * i) * PAGE,
					     .memory_size = 70 * PAGE,
					     .userspace_addr = HVA_BASE };
	return ms_change_memslots(vm, 1, steps, CHANGES, err);
}

/* The target is one change, the second split is undone by the delete, and the creates. */
#define CHANGES_MADE (CHANGES - 2u)

static const struct fault_case cases[] = {
	{ "create", false, 0, create, false, false },
	{ "create with log", false, 0, create_with_log, false, false },
	{ "create internal", false, 0, create_internal, false, false },
	{ "delete", true, LOG, delete, false, false },
	{ "move", true, LOG, move, false, false },
	{ "move, log goes on", true, LOG, move_with_log, false, false },
	{ "move, log on", true, 0, move_with_log, true, false },
	{ "log on", true, 0, flags_on, false, false },
	{ "log off", true, LOG, flags_off, false, false },
	{ "map", false, 0, map_memory, false, false },
	{ "map with log", false, 0, map_with_log, false, false },
	{ "load", false, 0, load, false, false },
	{ "add listener", false, 0, add_listener, false, false },
	{ "vcpu", false, 0, create_vcpu, false, false },
	{ "transaction", true, LOG, transaction, false, false },
	{ "update", true, LOG, update_in_steps, false, true },
};

static bool in_design(const struct fault_case *c)
{
	return !c->of_tree || design_is("tree");
}

/* Slots 0 to n - 1, in one load if there are many. */
static void fill(uint32_t n)
{
	struct ms_memslot *list = calloc(n + 1, sizeof(*list));

	CHECK(list);
	for (uint32_t id = 0; id < n; id++)
		list[id] = (struct ms_memslot){ id * 80, 70, hva_for(1, id), id, 0, id % 5 ? 0 : LOG, 0 };
	if (n > 100)
		CHECK_EQ(ms_load_memslots(vm, 1, list, n, NULL), 0);
	else
		for (uint32_t id = 0; id < n; id++)
			CHECK_EQ(set(vm, 1, id, id * 80, 70, list[id].flags), 0);
	free(list);
}

static bool indexed; /* the set that changes has an index */

static void make_index(void)
{
	uint64_t gfn = 0, hva;
	struct ms_batch batch = { &gfn, 0, &hva, 0, MS_BATCH_BRIEF + 1, NULL, NULL };

	ms_set_index_policy(vm, MS_INDEX_EAGER);
	CHECK_EQ(ms_gfn_to_hva_many(vm, 1, &batch, true), 0);
	CHECK_EQ(stats_of(vm).index_builds, vm->as[1].set[0].nr > 0);
}

static void make_vm(const struct fault_case *c, uint32_t n)
{
	struct ms_config config = default_config(SPACES);

	config.user_mem_slots = USER_SLOTS;
	vm = vm_with(&config);
	fill(n);
	CHECK_EQ(set(vm, 0, 1, TARGET_GFN, 70, LOG), 0);
	if (c->with_target)
		CHECK_EQ(map_target(c->flags, NULL), 0);
	for (uint64_t i = 0; i < 10; i++) {
		ms_mark_page_dirty(vm, 1, i * 33);
		ms_mark_page_dirty(vm, 1, TARGET_GFN + i * 7);
	}
	CHECK_EQ(ms_add_listener(vm, &first_listener, NULL), 0);
	if (indexed)
		make_index();
}

/* ---- the memory in use, without indexes ---- */

struct held {
	uint64_t bytes, blocks;
	uint64_t chunks; /* bytes of the pool's */
	uint64_t buckets;
};

static void less_buckets(struct held *h, const struct id_hash *hash)
{
	if (hash->buckets && hash->buckets != hash->built_in) {
		h->bytes -= id_hash_size(hash->bits);
		h->buckets += id_hash_size(hash->bits);
		h->blocks--;
	}
}

static void less_indexes(struct held *h)
{
	uint64_t blocks = 0, bytes = 0;

	for (uint32_t i = 0; i < SPACES; i++)
		count_overlays(&vm->as[i], &blocks, &bytes);
	h->blocks -= blocks;
	h->bytes -= bytes;
}

static struct held held(void)
{
	struct ms_stats stats = held_by(vm);
	struct held h = { stats.bytes, stats.blocks, vm->memory.pool.bytes, 0 };

	for (uint32_t as_id = 0; as_id < SPACES; as_id++) {
		CHECK(!vm->as[as_id].spare);
		less_buckets(&h, &vm->as[as_id].set[0].ids);
		less_buckets(&h, &vm->as[as_id].set[1].ids);
	}
	less_indexes(&h);
	return h;
}

/* ---- one injection ---- */

struct before {
	struct picture picture;
	struct held held;
	uint64_t gen[SPACES];
	uint64_t nr_vcpus;
	uint64_t refs; /* of the backing */
};

static struct before state_now(void)
{
	struct before b = { .picture = picture_of(vm), .held = held(), .refs = atomic_load(&backing->refs) };

	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		b.gen[as_id] = settled_generation(vm, as_id);
	return b;
}

/* Spec 3.8: a MOVE without memory for its bitmap has swapped twice, any other change not at all. */
static void check_unchanged(const struct before *b, bool swapped, bool any_swaps, bool of_update)
{
	struct before now = state_now();

	CHECK(same_picture(&now.picture, &b->picture));
	CHECK_EQ(now.refs, b->refs);
	CHECK_EQ(now.held.bytes, b->held.bytes);
	CHECK_EQ(now.held.blocks, b->held.blocks);
	CHECK(now.held.chunks <= b->held.chunks);
	CHECK(now.held.buckets == b->held.buckets || of_update);
	CHECK_EQ(now.gen[0], b->gen[0]);
	if (any_swaps)
		return;
	CHECK_EQ(now.gen[1], b->gen[1] + (swapped ? 2 * SPACES : 0));
	CHECK_EQ(now.picture.generations == b->picture.generations, !swapped);
}

/* True if the failure comes after the first of two swaps.  The writer allocates nothing for an index. */
static bool fails_late(const struct fault_case *c, uint64_t nth)
{
	return c->log_comes_late && nth == allocation(MS_MOVE, FOR_LOG);
}

/* Returns whether an allocation failed. */
static bool inject(const struct fault_case *c, uint64_t nth, bool onward, int *r)
{
	struct before b = state_now();
	struct ms_error err = { 0 };
	uint64_t asked;

	memory_fail(&vm->memory, nth, onward);
	*r = c->change(&err);
	asked = atomic_load(&vm->memory.attempts);
	memory_fail(&vm->memory, 0, false);
	if (*r) {
		CHECK_EQ(*r, -ENOMEM);
		CHECK_EQ(err.rule, MS_RULE_NO_MEMORY);
		check_unchanged(&b, fails_late(c, nth), c->of_tree, c->of_tree);
	}
	if (nth < 6 || nth % 16 == 0 || !*r) /* the many allocations of a load are alike */
		check_sound(vm);
	injections += asked >= nth;
	silent += asked >= nth && !*r;
	return asked >= nth;
}

/* Each injection has its own VM; the change succeeds when it is repeated. */
static void fail_each(const struct fault_case *c, uint32_t n, bool onward)
{
	bool fired = true;
	int r;

	for (uint64_t nth = 1; fired; nth++) {
		make_vm(c, n);
		fired = inject(c, nth, onward, &r);
		CHECK(fired || !r);
		if (r)
			CHECK_EQ(c->change(NULL), 0);
		check_sound(vm);
		ms_vcpu_destroy(vcpu);
		vcpu = NULL;
		end_vm(vm);
	}
	CHECK(injections > 0);
}

/* The injections share a VM: a refusal leaves nothing that disturbs the next one.  Only a silent failure needs a new
 * VM, since the change was made. */
static void fail_in_a_row(const struct fault_case *c, uint32_t n, bool onward)
{
	bool fired = true;
	int r;

	make_vm(c, n);
	for (uint64_t nth = 1; fired; nth++) {
		fired = inject(c, nth, onward, &r);
		if (r)
			continue;
		ms_vcpu_destroy(vcpu);
		vcpu = NULL;
		end_vm(vm);
		if (fired)
			make_vm(c, n);
	}
}

static void test_changes(void)
{
	static const uint32_t counts[] = { 0, 1, 8, 16, 17, 31, 32, 33, 100 };
	uint64_t before;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		if (!in_design(&cases[i]))
			continue;
		before = injections;
		for (size_t j = 0; j < ARRAY_SIZE(counts); j++)
			for (int onward = 0; onward < 2; onward++) {
				fail_each(&cases[i], counts[j], onward);
				fail_in_a_row(&cases[i], counts[j], onward);
			}
		CHECK(injections > before);
	}
}

static void fail_all_in_a_row(uint32_t n)
{
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		for (int onward = 0; onward < 2 && in_design(&cases[i]); onward++)
			fail_in_a_row(&cases[i], n, onward);
}

/* A set with an index. */
static void test_changes_with_an_index(void)
{
	static const uint32_t counts[] = { 0, 1, 8, 33, 100 };

	if (!design_is("tree"))
		return;
	indexed = true;
	for (size_t j = 0; j < ARRAY_SIZE(counts); j++) {
		fail_all_in_a_row(counts[j]);
		for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
			for (int onward = 0; onward < 2; onward++)
				fail_each(&cases[i], counts[j], onward);
	}
	indexed = false;
}

static void test_many_counts(void)
{
	uint64_t n = test_times(design_is("tree") ? 420 : 40);

	for (uint32_t count = 0; count < n; count++)
		fail_all_in_a_row(count);
}

/* Thousands of slots, on both sides of the sizes at which the hash grows; fewer for a design that walks. */
static void test_large(void)
{
	static const uint32_t counts[] = { 1000, 512, 513, 1024, 1025, 4096, 4097, 8192, 8193, 10000 };
	size_t n = test_slow ? 2 : design_walks() ? 3 : ARRAY_SIZE(counts);
	uint32_t were = loaded;

	loaded = 10; /* the many allocations of a load are alike */
	for (size_t i = 0; i < n; i++)
		fail_all_in_a_row(counts[i]);
	loaded = were;
}

/* ---- roll-back needs no memory ---- */

#define LISTENERS 3u

static uint64_t refusals;
static uint32_t prepares, aborts, refuse_at; /* the prepare of the change that refuses, and their number */

static int starve(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	if (prepares++ < refuse_at)
		return 0;
	memory_fail(&vm->memory, 1, true);
	return -EPERM;
}

static void count_abort(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	aborts++;
}

/* Returns whether the change had that many prepares.  There is no memory after the refusal, and nothing must be
 * allocated. */
static bool refuse_one(const struct fault_case *c, uint32_t at)
{
	struct before b = state_now();
	struct ms_error err = { 0 };
	int r;

	prepares = aborts = 0;
	refuse_at = at;
	r = c->change(&err);
	if (!r)
		return false;
	CHECK_EQ(r, -EPERM);
	CHECK_EQ(err.rule, MS_RULE_LISTENER_REFUSED);
	CHECK_EQ(atomic_load(&vm->memory.attempts), 0);
	memory_fail(&vm->memory, 0, false);
	CHECK_EQ(prepares, at + 1);
	CHECK_EQ(aborts, at);
	check_unchanged(&b, false, true, false);
	refusals++;
	return true;
}

static bool has_hooks(const struct fault_case *c)
{
	return c->change != add_listener && c->change != create_vcpu && !c->of_tree;
}

static uint32_t changes_of(const struct fault_case *c)
{
	return c->change == load ? loaded : c->change == transaction ? CHANGES_MADE : 1;
}

/* Each of three listeners, and each slot of a load, refuses in turn; then none does. */
static void refuse_each(const struct fault_case *c, uint32_t n)
{
	static const struct ms_listener listeners[LISTENERS] = {
		{ LISTENER_SIZE, .prepare = starve, .abort = count_abort },
		{ LISTENER_SIZE, .prepare = starve, .abort = count_abort },
		{ LISTENER_SIZE, .prepare = starve, .abort = count_abort },
	};
	uint64_t before = refusals;
	uint32_t at = 0;

	make_vm(c, n);
	for (uint32_t i = 0; i < LISTENERS; i++)
		CHECK_EQ(ms_add_listener(vm, &listeners[i], NULL), 0);
	while (refuse_one(c, at))
		at++;
	CHECK_EQ(refusals - before, (uint64_t)LISTENERS * changes_of(c));
	check_sound(vm);
	end_vm(vm);
}

/* The roll-back of a set with an index needs no memory either. */
static void test_refusals(void)
{
	static const uint32_t counts[] = { 0, 1, 8, 100, 1000, 10000 };
	size_t n = test_slow ? 4 : design_walks() ? 5 : ARRAY_SIZE(counts);

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		for (size_t j = 0; j < n && has_hooks(&cases[i]); j++)
			for (int with_index = 0; with_index <= design_is("tree"); with_index++) {
				indexed = with_index;
				refuse_each(&cases[i], counts[j]);
			}
	indexed = false;
}

/* The end of an update rolls back any number of its steps without memory; so does the deferred end of an abandoned
 * one. */
static void roll_back_steps(uint32_t n, uint32_t steps, bool abandon)
{
	static const struct fault_case *const c = &cases[ARRAY_SIZE(cases) - 1];
	struct before b;

	CHECK(c->of_tree);
	make_vm(c, n);
	b = state_now();
	CHECK_EQ(ms_update_begin(vm, 1, &update, NULL), 0);
	old_slot = ms_update_find(update, true, TARGET);
	for (uint32_t i = 0; i < steps; i++)
		CHECK_EQ(step(i, NULL), 0);
	memory_fail(&vm->memory, 1, true);
	if (abandon)
		ms_update_abandon(update);
	else
		CHECK_EQ(ms_update_end(update, false, NULL), 0);
	check_sound(vm); /* takes the lock and so runs the deferred end */
	CHECK_EQ(atomic_load(&vm->memory.attempts), 0);
	memory_fail(&vm->memory, 0, false);
	check_unchanged(&b, false, true, true);
	refusals++;
	end_vm(vm);
}

static void test_roll_back(void)
{
	static const uint32_t counts[] = { 0, 8, 100, 1000 };

	for (size_t i = 0; i < ARRAY_SIZE(counts) && design_is("tree"); i++)
		for (uint32_t steps = 0; steps <= STEPS; steps++)
			for (int how = 0; how < 4; how++) {
				indexed = how / 2;
				roll_back_steps(counts[i], steps, how % 2);
			}
	indexed = false;
}

/* A hash that could not grow still finds everything, and grows the next time. */
static void test_growth_fails(void)
{
	const uint32_t n = 300;

	vm = new_vm(SPACES);
	for (uint32_t id = 0; id < n; id++) { /* the slot is the first allocation, the buckets are the later ones */
		memory_fail(&vm->memory, 2, true);
		CHECK_EQ(set(vm, 1, id, id, 1, 0), 0);
		memory_fail(&vm->memory, 0, false);
		check_sound(vm);
	}
	CHECK_EQ(stats_of(vm).hash_grows, 0);
	for (uint32_t id = 0; id < n; id++) {
		struct ms_memslot slot;

		CHECK_EQ(ms_id_to_memslot(vm, 1, id, &slot), 0);
		CHECK_EQ(slot.base_gfn, id);
	}
	CHECK_EQ(set(vm, 1, n, n, 1, 0), 0);
	CHECK_EQ(set(vm, 1, n + 1, n + 1, 1, 0), 0);
	CHECK(stats_of(vm).hash_grows > 0);
	CHECK(vm->as[1].set[0].ids.bits >= 9 && vm->as[1].set[1].ids.bits >= 9);
	check_sound(vm);
	end_vm(vm);
}

/* ---- calls that need no memory ---- */

static void test_without_memory(void)
{
	uint64_t words[2];
	size_t nwords;

	make_vm(&cases[4], 40);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	ms_gfn_to_hva(vm, 1, 0);
	ms_vcpu_destroy(vcpu);
	memory_fail(&vm->memory, 1, true);
	CHECK_EQ(set_target(TARGET_GFN, 70, LOG, NULL), 0); /* no change */
	CHECK_EQ(set_target(TARGET_GFN, 71, LOG, NULL), -EINVAL);
	CHECK_EQ(ms_get_dirty_log(vm, 1, TARGET, words, 2, &nwords, NULL), 0);
	CHECK_EQ(ms_clear_dirty_log(vm, 1, TARGET, 0, 64, words, 1, NULL), 0);
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 3, NULL), 0);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0); /* reuses the one that was destroyed */
	CHECK_EQ(ms_remove_listener(vm, &first_listener, NULL), 0);
	CHECK_EQ(ms_load_memslots(vm, 1, NULL, 0, NULL), 0);
	check_sound(vm);
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	CHECK_EQ(ms_gfn_to_hva(vm, 1, 0), MS_HVA_ERR_BAD);
	memory_fail(&vm->memory, 0, false);
	ms_vcpu_destroy(vcpu);
	vcpu = NULL;
	ms_vm_destroy(vm);
}

/* A thread that gets no record can look up, but cannot open a section. */
static void *read_without_memory(void *arg)
{
	uint64_t gfn = 3, hva;
	struct ms_batch batch = { &gfn, 8, &hva, 8, 1, NULL, NULL };
	struct ms_memslot slot;

	(void)arg;
	CHECK_EQ(ms_gfn_to_hva(vm, 1, 3), hva_for(1, 0) + 3 * PAGE);
	CHECK_EQ(ms_gfn_to_memslot(vm, 1, 80, &slot), 0);
	CHECK_EQ(slot.id, 1);
	ms_gfn_to_hva_many(vm, 1, &batch, true);
	CHECK_EQ(hva, hva_for(1, 0) + 3 * PAGE);
	CHECK_EQ(ms_read_lock(vm), -ENOMEM);
	CHECK_EQ(ms_read_lock(vm), -ENOMEM);
	CHECK_EQ(ms_remove_listener(vm, &first_listener, NULL), 0); /* no section is open */
	memory_fail(&vm->memory, 0, false);
	CHECK_EQ(set(vm, 1, 0, 0, 70, 0), 0);
	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(ms_gfn_to_hva(vm, 1, 3), hva_for(1, 0) + 3 * PAGE);
	ms_read_unlock(vm);
	return NULL;
}

/* ---- the first lookup of a thread ---- */

struct look {
	const char *name;
	void (*look)(void);
};

static void look_hva(void)
{
	CHECK_EQ(ms_gfn_to_hva(vm, 1, 3), hva_for(1, 0) + 3 * PAGE);
}

static void look_slot(void)
{
	struct ms_memslot slot;

	CHECK_EQ(ms_gfn_to_memslot(vm, 1, 3, &slot), 0);
	CHECK_EQ(ms_id_to_memslot(vm, 1, 4, &slot), 0);
	CHECK_EQ(slot.base_gfn, 320);
}

static void look_ranges(void)
{
	struct ms_memslot slots[8];
	struct ms_hva_hit hits[8];

	CHECK_EQ(ms_memslots(vm, 1, slots, 8), 5);
	CHECK_EQ(ms_memslots_in_gfn_range(vm, 1, 0, 81, slots, 8), 2);
	CHECK_EQ(ms_memslots_in_hva_range(vm, 1, hva_for(1, 0), hva_for(1, 0), slots, 8), 1);
	CHECK_EQ(ms_hva_to_gfns(vm, hva_for(1, 1), hits, 8), 1);
}

static void look_many(void)
{
	uint64_t gfns[3] = { 3, 400, 79 }, hvas[3];
	struct ms_batch batch = { gfns, 8, hvas, 8, 3, NULL, NULL };

	ms_gfn_to_hva_many(vm, 1, &batch, true);
	CHECK_EQ(hvas[0], hva_for(1, 0) + 3 * PAGE);
	CHECK_EQ(hvas[2], MS_HVA_ERR_BAD);
}

static void look_and_mark(void)
{
	uint64_t words[2];
	size_t nwords;

	ms_mark_page_dirty(vm, 1, 69);
	CHECK_EQ(ms_get_dirty_log(vm, 1, 0, words, 2, &nwords, NULL), 0);
	CHECK_EQ(words[1] >> 5 & 1, 1);
}

static void look_by_vcpu(void)
{
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, 1), 0);
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, 3), hva_for(1, 0) + 3 * PAGE);
}

static void look_in_section(void)
{
	CHECK_EQ(ms_read_lock(vm), -ENOMEM);
	CHECK_EQ(ms_remove_listener(vm, &first_listener, NULL), 0); /* no section is open */
	CHECK_EQ(ms_add_listener(vm, &first_listener, NULL), vm->memory.fail_onward ? -ENOMEM : 0);
}

/* Without memory, opening a section fails; a lookup never does. */
static const struct look looks[] = {
	{ "hva", look_hva },       { "slot", look_slot },    { "ranges", look_ranges },      { "many", look_many },
	{ "mark", look_and_mark }, { "vcpu", look_by_vcpu }, { "section", look_in_section },
};

static void *look_first(void *look)
{
	((const struct look *)look)->look();
	return NULL;
}

static void test_first_looks(void)
{
	for (size_t i = 0; i < 2 * ARRAY_SIZE(looks); i++) {
		const struct look *look = &looks[i / 2];
		pthread_t thread;

		make_vm(&cases[0], 5);
		CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
		memory_fail(&vm->memory, 1, i % 2);
		CHECK_EQ(pthread_create(&thread, NULL, look_first, (void *)(uintptr_t)look), 0);
		CHECK_EQ(pthread_join(thread, NULL), 0);
		CHECK(atomic_load(&vm->memory.attempts) >= 1);
		memory_fail(&vm->memory, 0, false);
		injections++;
		check_sound(vm);
		ms_vcpu_destroy(vcpu);
		vcpu = NULL;
		end_vm(vm);
	}
}

/* ---- the index of many lookups ---- */

#define LOOKUPS 200u

/* Slot `gone` is deleted; n: none is. */
static void batch_of_many(uint32_t n, uint32_t gone)
{
	uint64_t gfns[LOOKUPS], hvas[LOOKUPS] = { 0 };
	struct ms_batch batch = { .in = gfns, .in_stride = 8, .out = hvas, .out_stride = 8, .n = LOOKUPS };

	for (uint64_t i = 0; i < LOOKUPS; i++)
		gfns[i] = i % n * 80 + i % 75;
	CHECK_EQ(ms_gfn_to_hva_many(vm, 1, &batch, true), 0);
	for (uint64_t i = 0; i < LOOKUPS; i++)
		CHECK_EQ(hvas[i], i % 75 < 70 && i % n != gone ? hva_for(1, i % n) + i % 75 * PAGE : MS_HVA_ERR_BAD);
}

/* A batch that is too long for one section.  It holds the index, and copies the slots that have changed since. */
static void long_batch(uint32_t n, uint32_t gone)
{
	static uint64_t gfns[4 * MS_BATCH_PIECE + 1], hvas[4 * MS_BATCH_PIECE + 1];
	struct ms_batch batch = { .in = gfns, .in_stride = 8, .out = hvas, .out_stride = 8, .n = ARRAY_SIZE(gfns) };

	for (uint64_t i = 0; i < ARRAY_SIZE(gfns); i++)
		gfns[i] = i % n * 80 + i % 75;
	CHECK_EQ(ms_gfn_to_hva_many(vm, 1, &batch, true), 0);
	for (uint64_t i = 0; i < ARRAY_SIZE(gfns); i++)
		CHECK_EQ(hvas[i], i % 75 < 70 && i % n != gone ? hva_for(1, i % n) + i % 75 * PAGE : MS_HVA_ERR_BAD);
}

/* Single lookups, enough for an index to pay; they make it.  The slots alternate, so the hint answers none. */
static void single_lookups(uint32_t n, uint32_t gone)
{
	for (uint64_t i = 0; i < 1024 + 16 * (uint64_t)n; i++)
		CHECK_EQ(ms_gfn_to_hva(vm, 1, i % n * 80), i % n != gone ? hva_for(1, i % n) : MS_HVA_ERR_BAD);
}

static const struct index_case {
	bool derived; /* there is an index of the state before */
	void (*look_up)(uint32_t n, uint32_t gone);
	enum ms_index_policy policy;
} index_cases[] = {
	{ false, batch_of_many, MS_INDEX_EAGER }, { true, batch_of_many, MS_INDEX_EAGER },
	{ false, long_batch, MS_INDEX_AUTO },     { true, long_batch, MS_INDEX_AUTO },
	{ false, single_lookups, MS_INDEX_AUTO },
};

static uint64_t indexes(void)
{
	return stats_of(vm).index_builds + stats_of(vm).index_patches;
}

/* An index is optional: without memory the answers are right, nothing leaks, and the next lookup makes it.  Returns
 * whether an allocation failed. */
static bool fail_index(const struct index_case *c, uint32_t n, uint64_t nth, bool onward)
{
	uint32_t gone = c->derived ? 0 : n;
	struct held was;
	uint64_t made;
	bool fired;

	make_vm(&cases[0], n);
	ms_gfn_to_hva(vm, 1, 0); /* the thread has its record */
	ms_set_index_policy(vm, MS_INDEX_EAGER);
	if (c->derived) {
		batch_of_many(n, n);
		CHECK_EQ(set(vm, 1, gone, 0, 0, 0), 0);
	}
	ms_set_index_policy(vm, c->policy);
	made = indexes();
	was = held();
	memory_fail(&vm->memory, nth, onward);
	c->look_up(n, gone);
	fired = atomic_load(&vm->memory.attempts) >= nth;
	memory_fail(&vm->memory, 0, false);
	if (fired && onward) { /* no index was made */
		struct held is = held();

		CHECK_EQ(indexes(), made);
		CHECK(is.bytes == was.bytes && is.blocks == was.blocks);
	}
	injections += fired;
	silent += fired;
	c->look_up(n, gone);
	ms_set_index_policy(vm, MS_INDEX_EAGER);
	batch_of_many(n, gone);
	if (design_is("tree"))
		CHECK(indexes() > made);
	check_sound(vm);
	end_vm(vm);
	return fired;
}

static void test_index(uint32_t n)
{
	for (size_t i = 0; i < ARRAY_SIZE(index_cases) && (n <= 1000 || index_cases[i].look_up != single_lookups); i++)
		for (int onward = 0; onward < 2; onward++)
			for (uint64_t nth = 1; fail_index(&index_cases[i], n, nth, onward); nth++)
				;
}

static void test_indexes(void)
{
	static const uint32_t counts[] = { 2, 8, 100, 1000, 10000 };
	size_t n = test_slow ? 4 : ARRAY_SIZE(counts);

	for (size_t i = 0; i < n; i++)
		if (counts[i] <= 1000 || !design_walks())
			test_index(counts[i]);
}

#define FAR 40u /* slots so far apart that each is a segment of the index, and more than a builder has room for */

static void batch_of_far_slots(void)
{
	uint64_t gfns[FAR], hvas[FAR];
	struct ms_batch batch = { .in = gfns, .in_stride = 8, .out = hvas, .out_stride = 8, .n = FAR };

	for (uint64_t i = 0; i < FAR; i++)
		gfns[i] = (i + 1) << 33;
	CHECK_EQ(ms_gfn_to_hva_many(vm, 1, &batch, true), 0);
	for (uint32_t i = 0; i < FAR; i++)
		CHECK_EQ(hvas[i], hva_for(1, FIRST_NEW + i));
}

static bool fail_index_of_far_slots(uint64_t nth, bool onward)
{
	bool fired;

	make_vm(&cases[0], 1);
	ms_set_index_policy(vm, MS_INDEX_EAGER);
	for (uint32_t i = 0; i < FAR; i++)
		CHECK_EQ(set(vm, 1, FIRST_NEW + i, (i + 1ull) << 33, 1, 0), 0);
	memory_fail(&vm->memory, nth, onward);
	batch_of_far_slots();
	fired = atomic_load(&vm->memory.attempts) >= nth;
	memory_fail(&vm->memory, 0, false);
	batch_of_far_slots();
	check_sound(vm);
	end_vm(vm);
	injections += fired;
	silent += fired;
	return fired;
}

static void test_far_slots(void)
{
	for (int onward = 0; onward < 2; onward++)
		for (uint64_t nth = 1; fail_index_of_far_slots(nth, onward); nth++)
			;
}

/* ---- the copy that a batch makes of an input that it overwrites ---- */

#define OVERWRITTEN (2 * MS_BATCH_PIECE + 1)

/* Without memory for the copy, the batch is answered in one section. */
static void test_copy(bool fails)
{
	static uint64_t values[OVERWRITTEN];
	struct ms_batch batch = { values, 8, values, 8, OVERWRITTEN, NULL, NULL };
	struct held was, is;

	make_vm(&cases[0], 5);
	ms_gfn_to_hva(vm, 1, 0); /* the thread has its record */
	ms_set_index_policy(vm, MS_INDEX_OFF);
	for (uint64_t i = 0; i < OVERWRITTEN; i++)
		values[i] = i % 5 * 80 + i % 75;
	was = held();
	memory_fail(&vm->memory, fails ? 1 : 2, true);
	CHECK_EQ(ms_gfn_to_hva_many(vm, 1, &batch, true), 0);
	CHECK_EQ(atomic_load(&vm->memory.attempts), 1);
	memory_fail(&vm->memory, 0, false);
	is = held();
	CHECK(is.bytes == was.bytes && is.blocks == was.blocks);
	for (uint64_t i = 0; i < OVERWRITTEN; i++)
		CHECK_EQ(values[i], i % 75 < 70 ? hva_for(1, i % 5) + i % 75 * PAGE : MS_HVA_ERR_BAD);
	injections += fails;
	silent += fails;
	end_vm(vm);
}

/* ---- the pieces of a long copy of guest memory ---- */

#define PIECES 40u

static void test_pieces(bool fails)
{
	static _Alignas(4096) unsigned char memory[PIECES * PAGE], out[PIECES * PAGE];
	struct ms_config config = default_config(SPACES);
	struct held was, is;
	struct ms_error err;

	config.dereference_raw_addresses = true;
	vm = vm_with(&config);
	for (uint32_t id = 0; id < PIECES; id++) {
		region_t r = region(0, id, id, 1, 0);

		r.userspace_addr = (uint64_t)(uintptr_t)memory + (PIECES - 1 - id) * PAGE;
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	}
	memset(memory, 7, sizeof(memory));
	memset(out, 0, sizeof(out));
	ms_gfn_to_hva(vm, 0, 0); /* the thread has its record */
	was = held();
	memory_fail(&vm->memory, fails ? 1 : 2, true);
	CHECK_EQ(ms_read_guest(vm, 0, 0, out, sizeof(out), &err), fails ? -ENOMEM : 0);
	CHECK_EQ(atomic_load(&vm->memory.attempts), 1);
	memory_fail(&vm->memory, 0, false);
	is = held();
	CHECK(is.bytes == was.bytes && is.blocks == was.blocks);
	CHECK(!fails || err.rule == MS_RULE_NO_MEMORY);
	for (size_t i = 0; i < sizeof(out); i++)
		CHECK_EQ(out[i], fails ? 0 : 7);
	injections += fails;
	end_vm(vm);
}

/* ---- the chunk of a write of many values ---- */

#define WRITTEN 600u

/* Without memory for the chunk, the write is one section. */
static void test_chunk(bool fails)
{
	static _Alignas(4096) uint64_t memory[8 * PAGE / 8];
	static uint64_t gpas[WRITTEN], values[WRITTEN];
	struct ms_batch batch = { gpas, 8, values, 8, WRITTEN, NULL, NULL };
	struct ms_config config = default_config(SPACES);
	region_t r = region(0, 0, 0, 8, MS_MEM_LOG_DIRTY_PAGES);
	struct held was, is;

	config.dereference_raw_addresses = true;
	vm = vm_with(&config);
	r.userspace_addr = (uint64_t)(uintptr_t)memory;
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	for (uint64_t i = 0; i < WRITTEN; i++) {
		gpas[i] = 8 * i;
		values[i] = i + 7;
	}
	memset(memory, 0, sizeof(memory));
	ms_gfn_to_hva(vm, 0, 0); /* the thread has its record */
	ms_set_index_policy(vm, MS_INDEX_OFF);
	was = held();
	memory_fail(&vm->memory, fails ? 1 : 2, true);
	CHECK_EQ(ms_write_guest_u64_many(vm, 0, &batch, NULL), 0);
	CHECK_EQ(atomic_load(&vm->memory.attempts), 1);
	memory_fail(&vm->memory, 0, false);
	is = held();
	CHECK(is.bytes == was.bytes && is.blocks == was.blocks);
	CHECK(!memcmp(memory, values, sizeof(values)));
	CHECK_EQ(memory[WRITTEN], 0);
	injections += fails;
	silent += fails;
	end_vm(vm);
}

static void test_reader(void)
{
	struct ms_stats was;
	pthread_t thread;

	make_vm(&cases[0], 5);
	was = stats_of(vm);
	memory_fail(&vm->memory, 1, true);
	CHECK_EQ(pthread_create(&thread, NULL, read_without_memory, NULL), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(stats_of(vm).hits_last_used + stats_of(vm).hits_search, was.hits_last_used + was.hits_search + 4);
	check_sound(vm);
	ms_vm_destroy(vm);
}

/* ---- a VM ---- */

/* The sets are allocated from the VM's own memory, before a test can make that fail. */
static void test_vm_without_memory(void)
{
	struct ms_config config = default_config(SPACES);

	fail_call = 1;
	CHECK_EQ(ms_vm_create(&config, &vm), -ENOMEM);
	CHECK(!vm && !fail_call);
	injections++;
}

static void test_backing_without_memory(void)
{
	fail_call = 1;
	CHECK_EQ(ms_backing_create((void *)PAGE, PAGE, 0, NULL, NULL, &backing), -ENOMEM);
	CHECK(!backing && !fail_call);
	injections++;
	CHECK_EQ(ms_backing_create((void *)(uintptr_t)(hva_for(1, TARGET) - 16 * PAGE), 256 * PAGE, 0, NULL, NULL,
				   &backing),
		 0);
}

/* A new VM's own memory cannot be made to fail yet, so the C library's allocator is; sanitizers replace it. */
#if defined(__GLIBC__) && !TEST_SANITIZED
#include <malloc.h>

extern void __libc_free(void *block);

static uint64_t until_failure; /* 0: never */
static bool watching;
static void *live[8];

static void note_block(const void *was, void *is)
{
	size_t i = 0;

	while (i < ARRAY_SIZE(live) && live[i] != was)
		i++;
	if (i < ARRAY_SIZE(live))
		live[i] = is;
}

static size_t nr_live(void)
{
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(live); i++)
		n += live[i] != NULL;
	return n;
}

void *aligned_alloc(size_t alignment, size_t size)
{
	void *block = until_failure && --until_failure == 0 ? NULL : memalign(alignment, size);

	if (watching && block)
		note_block(NULL, block);
	return block;
}

void free(void *block)
{
	if (watching && block)
		note_block(block, NULL);
	__libc_free(block);
}

static void test_vm(void)
{
	struct ms_config config;
	uint64_t nth = 0;
	int r;

	if (getenv("MEMSLOTS_VALGRIND")) { /* valgrind replaces the allocator */
		puts("faults: NOT tested under valgrind: failures of the C library's own allocator");
		return;
	}
	ms_config_init(&config);
	watching = true;
	do {
		until_failure = ++nth;
		r = ms_vm_create(&config, &vm);
		injections += !until_failure;
		until_failure = 0;
		CHECK(r == -ENOMEM ? !vm : !r);
		CHECK_EQ(nr_live(), r ? 0 : 2); /* the VM and its sets */
		ms_vm_destroy(vm);
		CHECK_EQ(nr_live(), 0);
	} while (r);
	CHECK_EQ(nth, 3);
	watching = false;
}
#else
static void test_vm(void)
{
	puts("faults: NOT tested in this build: failures of the C library's own allocator");
}
#endif

/* ---- the places by name ---- */

extern char __executable_start;

/* Each place that allocated, with the number of its calls and failures.  There are as many places as calls in the
 * sources. */
#define PLACES 64

static char places[PLACES][128];
static size_t nr_places;

static bool name_sites(void)
{
	char command[4096], exe[1024], function[48], at[24];
	ssize_t length = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	int used;
	FILE *names;

	exe[length > 0 ? length : 0] = 0;
	used = snprintf(command, sizeof(command), "addr2line -fs -e '%s'", exe);
	for (size_t i = 0; i < nr_sites; i++)
		used += snprintf(command + used, sizeof(command) - (size_t)used, " 0x%zx",
				 (size_t)(sites[i].at - 1 - (uintptr_t)&__executable_start));
	names = popen(command, "r");
	while (names && nr_places < nr_sites && fscanf(names, "%40s %20s%*[^\n]", function, at) == 2)
		snprintf(places[nr_places++], sizeof(places[0]), "%s, %s", function, at);
	return names && !pclose(names) && nr_places == nr_sites && !strchr(places[0], '?');
}

static bool named_before(size_t i)
{
	for (size_t j = 0; j < i; j++)
		if (!strcmp(places[i], places[j]))
			return true;
	return false;
}

static struct site at_place(size_t i)
{
	struct site sum = { 0 };

	for (size_t j = i; j < nr_sites; j++)
		if (!strcmp(places[i], places[j])) {
			sum.calls += sites[j].calls;
			sum.once += sites[j].once;
			sum.onward += sites[j].onward;
		}
	return sum;
}

/* The calls of the allocators in the sources, without memory.c. */
static uint64_t count_in_sources(void)
{
	uint64_t n = 0;
	char line[64];
	FILE *found =
		popen("cat $(ls " MEMSLOTS_CORE "/*.[ch] | grep -v '/memory\\.') | "
		      "grep -c 'memory_zalloc(\\|memory_zalloc_lines(\\|memory_alloc_lines(\\|memory_pool_alloc('",
		      "r");

	if (found && fgets(line, sizeof(line), found))
		n = strtoull(line, NULL, 10);
	if (found)
		pclose(found);
	return n;
}

static void print_sites(void)
{
	bool named = name_sites();
	uint64_t distinct = 0;

	printf("%-40s %12s %12s %12s\n", "place", "calls", "failed alone", "and later");
	for (size_t i = 0; i < nr_sites; i++) {
		struct site site = named ? at_place(i) : sites[i];

		if (!named)
			snprintf(places[i], sizeof(places[i]), "+0x%zx",
				 (size_t)(sites[i].at - (uintptr_t)&__executable_start));
		else if (named_before(i))
			continue;
		distinct++;
		printf("%-40s %12" PRIu64 " %12" PRIu64 " %12" PRIu64 "\n", places[i], site.calls, site.once,
		       site.onward);
		CHECK(site.once + site.onward > 0);
	}
	if (named)
		CHECK_EQ(distinct, count_in_sources());
	else
		puts("no addr2line, or no debug information: NOT compared with the sources");
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 240);
	if (test_slow)
		loaded = LOADED / TEST_SLOWDOWN;
	test_vm();
	test_backing_without_memory();
	test_growth_fails();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		test_changes();
		test_changes_with_an_index();
		test_many_counts();
		test_large();
		test_refusals();
		test_roll_back();
		test_without_memory();
		test_reader();
		test_first_looks();
		test_indexes();
		test_far_slots();
		test_copy(true);
		test_copy(false);
		test_pieces(true);
		test_pieces(false);
		test_chunk(true);
		test_chunk(false);
		test_vm_without_memory();
	}
	CHECK_EQ(atomic_load(&backing->refs), 1);
	ms_backing_put(backing);
	CHECK_EQ(memory_blocks(&backing_memory), 0);
	print_sites();
	printf("faults: %" PRIu64 "roll-backs without any memory, none allocated\n", refusals);
	printf("faults: %" PRIu64 "silent ones among the failed allocations\n", silent);
	return test_done("faults", injections, "failed allocations");
}
