/* SPDX-License-Identifier: MIT */
/*
 * test_faults.c - every allocation of every change fails once, and from it on, one after the other.
 *
 * A change that lacks memory says so and has changed nothing: not a slot, not a bit, not a block.  Buckets of the id
 * hash are the exception that they are meant to be: they are an offer, whose failure nobody hears of, and what a
 * refused change has added of them may stay.
 */
#include "fixture.h"

#include <pthread.h>

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define SPACES 2u
#define TARGET 1000u /* the slot that is changed; the others are 0 .. n - 1 */
#define LOADED 100u
#define USER_SLOTS 2200u

static struct ms_vm *vm;
static uint64_t injections, unheard;
static uint32_t loaded = LOADED;

/* ---- the changes ---- */

struct fault_case {
	const char *name;
	bool with_target; /* it is there before */
	uint32_t flags;   /* of the target before */
	int (*change)(struct ms_error *err);
	bool log_comes_late; /* its allocation fails after the first of two swaps */
};

static int set_target(uint64_t gfn, uint64_t npages, uint32_t flags, struct ms_error *err)
{
	region_t r = region(1, TARGET, gfn, npages, flags);

	return ms_set_user_memory_region(vm, &r, err);
}

static int create(struct ms_error *err)
{
	return set_target(0x100000, 70, 0, err);
}

static int create_with_log(struct ms_error *err)
{
	return set_target(0x100000, 70, LOG, err);
}

static int create_internal(struct ms_error *err)
{
	region_t r = region(1, USER_SLOTS, 0x100000, 70, 0);

	return ms_set_internal_memory_region(vm, &r, err);
}

static int delete(struct ms_error *err)
{
	return set_target(0x100000, 0, 0, err);
}

static int move(struct ms_error *err)
{
	return set_target(0x100020, 70, 0, err);
}

static int move_with_log(struct ms_error *err)
{
	return set_target(0x100020, 70, LOG, err);
}

static int flags_on(struct ms_error *err)
{
	return set_target(0x100000, 70, LOG, err);
}

static int flags_off(struct ms_error *err)
{
	return set_target(0x100000, 70, 0, err);
}

static int load(struct ms_error *err)
{
	struct ms_memslot list[LOADED];

	for (uint32_t i = 0; i < loaded; i++)
		list[i] = (struct ms_memslot){ 0x200000 + 100 * i, 70, HVA_BASE + i * PAGE, 2000 + i, 0,
					       i % 3 ? 0 : LOG, 0 };
	return ms_load_memslots(vm, 1, list, loaded, err);
}

static const struct ms_listener listener, first_listener;

static int add_listener(struct ms_error *err)
{
	return ms_add_listener(vm, &listener, err);
}

static struct ms_vcpu *vcpu;

static int create_vcpu(struct ms_error *err)
{
	return ms_vcpu_create(vm, &vcpu, err);
}

static const struct fault_case cases[] = {
	{ "create", false, 0, create, false },
	{ "create with log", false, 0, create_with_log, false },
	{ "create internal", false, 0, create_internal, false },
	{ "delete", true, LOG, delete, false },
	{ "move", true, LOG, move, false },
	{ "move, log goes on", true, LOG, move_with_log, false },
	{ "move, log on", true, 0, move_with_log, true },
	{ "log on", true, 0, flags_on, false },
	{ "log off", true, LOG, flags_off, false },
	{ "load", false, 0, load, false },
	{ "add listener", false, 0, add_listener, false },
	{ "vcpu", false, 0, create_vcpu, false },
};

static void make_vm(const struct fault_case *c, uint32_t n)
{
	struct ms_config config = default_config(SPACES);

	config.user_mem_slots = USER_SLOTS;
	vm = vm_with(&config);
	for (uint32_t id = 0; id < n; id++)
		CHECK_EQ(set(vm, 1, id, id * 80, 70, id % 5 ? 0 : LOG), 0);
	CHECK_EQ(set(vm, 0, 1, 0x100000, 70, LOG), 0);
	if (c->with_target)
		CHECK_EQ(set_target(0x100000, 70, c->flags, NULL), 0);
	for (uint64_t i = 0; i < 10; i++) {
		ms_mark_page_dirty(vm, 1, i * 33);
		ms_mark_page_dirty(vm, 1, 0x100000 + i * 7);
	}
	CHECK_EQ(ms_add_listener(vm, &first_listener, NULL), 0);
}

/* ---- what is held, but for buckets ---- */

struct held {
	uint64_t bytes, blocks;
};

static void less_buckets(struct held *h, const struct id_hash *hash)
{
	if (hash->buckets && hash->buckets != hash->built_in) {
		h->bytes -= id_hash_size(hash->bits);
		h->blocks--;
	}
}

static struct held held(void)
{
	struct ms_stats stats = held_by(vm);
	struct held h = { stats.bytes, stats.blocks };

	for (uint32_t as_id = 0; as_id < SPACES; as_id++) {
		CHECK(!vm->as[as_id].spare.buckets);
		less_buckets(&h, &vm->as[as_id].set[0].ids);
		less_buckets(&h, &vm->as[as_id].set[1].ids);
	}
	return h;
}

/* ---- one injection ---- */

struct before {
	struct picture picture;
	struct held held;
	uint64_t gen[SPACES];
	uint64_t nr_vcpus;
};

static struct before look_around(void)
{
	struct before b = { .picture = picture_of(vm), .held = held() };

	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		b.gen[as_id] = settled_generation(vm, as_id);
	return b;
}

/* Spec 3.8: a MOVE that lacks memory for its bitmap has swapped twice, everything else not at all. */
static void check_unchanged(const struct before *b, bool swapped)
{
	struct before now = look_around();

	CHECK(same_picture(&now.picture, &b->picture));
	CHECK_EQ(now.held.bytes, b->held.bytes);
	CHECK_EQ(now.held.blocks, b->held.blocks);
	CHECK_EQ(now.gen[0], b->gen[0]);
	CHECK_EQ(now.gen[1], b->gen[1] + (swapped ? 2 * SPACES : 0));
	CHECK_EQ(now.picture.generations == b->picture.generations, !swapped);
}

/* -> whether the failure was asked for at all. */
static bool inject(const struct fault_case *c, uint64_t nth, bool onward, int *r)
{
	struct before b = look_around();
	struct ms_error err = { 0 };
	uint64_t asked;

	memory_fail(&vm->memory, nth, onward);
	*r = c->change(&err);
	asked = atomic_load(&vm->memory.asked);
	memory_fail(&vm->memory, 0, false);
	if (*r) {
		CHECK_EQ(*r, -ENOMEM);
		CHECK_EQ(err.rule, MS_RULE_NO_MEMORY);
		check_unchanged(&b, c->log_comes_late && nth == allocation(MS_MOVE, FOR_LOG));
	}
	if (nth < 6 || nth % 16 == 0 || !*r) /* the many of a load are much alike */
		check_sound(vm);
	injections += asked >= nth;
	unheard += asked >= nth && !*r;
	return asked >= nth;
}

/* Each injection on a VM of its own; what failed then succeeds. */
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

/* On one VM, each after the other's failure: a refusal leaves nothing that the next would stumble over.  Only a
 * failure that nobody heard of needs a new VM. */
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
	static const uint32_t counts[] = { 0, 1, 5, 16, 17, 31, 32, 33, 100 };
	uint64_t before;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		before = injections;
		for (size_t j = 0; j < ARRAY_SIZE(counts); j++)
			for (int onward = 0; onward < 2; onward++) {
				fail_each(&cases[i], counts[j], onward);
				fail_in_a_row(&cases[i], counts[j], onward);
			}
		CHECK(injections > before);
	}
}

static void test_many_counts(void)
{
	uint64_t n = test_times(design_is("tree") ? 420 : 40);

	for (uint32_t count = 0; count < n; count++)
		for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
			for (int onward = 0; onward < 2; onward++)
				fail_in_a_row(&cases[i], count, onward);
}

/* The hash that could not grow still finds everything, and grows the next time. */
static void test_growth_unheard(void)
{
	const uint32_t n = 300;

	vm = new_vm(SPACES);
	for (uint32_t id = 0; id < n; id++) { /* the slot is the first allocation, buckets are what follows */
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

/* ---- what needs no memory ---- */

static void test_without_any(void)
{
	uint64_t words[2];
	size_t nwords;

	make_vm(&cases[4], 40);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	ms_gfn_to_hva(vm, 1, 0);
	ms_vcpu_destroy(vcpu);
	memory_fail(&vm->memory, 1, true);
	CHECK_EQ(set_target(0x100000, 70, LOG, NULL), 0); /* nothing to do */
	CHECK_EQ(set_target(0x100000, 71, LOG, NULL), -EINVAL);
	CHECK_EQ(ms_get_dirty_log(vm, 1, TARGET, words, 2, &nwords, NULL), 0);
	CHECK_EQ(ms_clear_dirty_log(vm, 1, TARGET, 0, 64, words, 1, NULL), 0);
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 3, NULL), 0);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0); /* the one that was given back */
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

/* A thread that cannot have a record of its own looks up all the same, but for sections that it would hold. */
static void *read_without_memory(void *arg)
{
	uint64_t gfn = 3, hva;
	struct ms_batch batch = { &gfn, 8, &hva, 8, 1 };
	struct ms_memslot slot;

	(void)arg;
	CHECK_EQ(ms_gfn_to_hva(vm, 1, 3), hva_for(1, 0) + 3 * PAGE);
	CHECK_EQ(ms_gfn_to_memslot(vm, 1, 80, &slot), 0);
	CHECK_EQ(slot.id, 1);
	ms_gfn_to_hva_many(vm, 1, &batch, true);
	CHECK_EQ(hva, hva_for(1, 0) + 3 * PAGE);
	CHECK_EQ(ms_read_lock(vm), -ENOMEM);
	CHECK_EQ(ms_read_lock(vm), -ENOMEM);
	CHECK_EQ(ms_remove_listener(vm, &first_listener, NULL), 0); /* no section has been left open */
	memory_fail(&vm->memory, 0, false);
	CHECK_EQ(set(vm, 1, 0, 0, 70, 0), 0);
	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(ms_gfn_to_hva(vm, 1, 3), hva_for(1, 0) + 3 * PAGE);
	ms_read_unlock(vm);
	return NULL;
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

/* Its own memory does not count yet when it is made, so the C library's is made to fail; sanitizers have another. */
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
}
#endif

int main(int argc, char **argv)
{
	test_init(argc, argv, 120);
	if (test_slow)
		loaded = LOADED / TEST_SLOWDOWN;
	test_vm();
	test_growth_unheard();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		test_changes();
		test_many_counts();
		test_without_any();
		test_reader();
	}
	printf("faults: %" PRIu64 " of them nobody needed to hear of\n", unheard);
	return test_done("faults", injections, "failed allocations");
}
