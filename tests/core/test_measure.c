/* SPDX-License-Identifier: MIT */
/*
 * test_measure.c - calls that are timed in C give the same answers as single calls.
 *
 * For each kind of call, and for none, few and many of them, in groups of one, some, all and more than all: all answers
 * are right, the right number of times is written and nothing beyond, and each time is that of its own group, in
 * nanoseconds.
 */
#include "fixture.h"

#include <time.h>

#include "private/measure.h"

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define SPACES 2u
#define SPACE 1u
#define SLOTS 200u
#define NPAGES 8u
#define MANY 1000u
#define GUARD 0xFEEDFACECAFEBEEFu
#define ID_HOLE (~(uint64_t)0)

static struct ms_vm *vm;
static struct ms_vcpu *vcpu;
static struct rng rng;
static uint64_t calls;

static uint64_t now(void)
{
	struct timespec t;

	CHECK_EQ(clock_gettime(CLOCK_MONOTONIC, &t), 0);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Slots with holes between them, some READONLY; host addresses overlap in pairs. */
static void make_vm(void)
{
	vm = new_vm(SPACES);
	for (uint32_t id = 0; id < SLOTS; id++) {
		region_t r = region(SPACE, id, id * 2 * NPAGES, NPAGES, id % 5 ? 0 : MS_MEM_READONLY);

		r.userspace_addr = HVA_BASE + id / 2 * 16 * PAGE + id % 2 * 4 * PAGE;
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	}
	CHECK_EQ(set(vm, 0, 1, 0, 5, LOG), 0);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, SPACE), 0);
}

/* ---- the calls ---- */

static uint64_t in[MANY], last[MANY], out[MANY + 2], ns[MANY + 2];

static void time_gfns(size_t n, size_t group)
{
	ms_time_gfn_to_hva(vm, SPACE, in, n, group, out + 1, ns + 1);
}

static uint64_t gfn(size_t i)
{
	return ms_gfn_to_hva(vm, SPACE, in[i]);
}

static void time_vcpu(size_t n, size_t group)
{
	ms_time_vcpu_gfn_to_hva(vcpu, in, n, group, out + 1, ns + 1);
}

static uint64_t vcpu_gfn(size_t i)
{
	return ms_vcpu_gfn_to_hva(vcpu, in[i]);
}

static void time_ids(size_t n, size_t group)
{
	ms_time_id_to_memslot(vm, SPACE, in, n, group, out + 1, ns + 1);
}

static uint64_t id(size_t i)
{
	struct ms_memslot slot;

	return ms_id_to_memslot(vm, SPACE, (uint32_t)in[i], &slot) ? ID_HOLE : slot.userspace_addr;
}

static void time_ranges(size_t n, size_t group)
{
	ms_time_hva_range(vm, SPACE, in, last, n, group, out + 1, ns + 1);
}

static uint64_t range(size_t i)
{
	return ms_memslots_in_hva_range(vm, SPACE, in[i], last[i], NULL, 0);
}

static void time_nothing(size_t n, size_t group)
{
	(void)group;
	ms_time_nothing(n, ns + 1);
}

static const struct timed {
	void (*time)(size_t n, size_t group);
	uint64_t (*call)(size_t i);
	uint64_t from, below; /* arguments */
} timed[] = {
	{ time_gfns, gfn, 0, 2 * NPAGES * SLOTS + 100 },
	{ time_vcpu, vcpu_gfn, 0, 2 * NPAGES * SLOTS + 100 },
	{ time_ids, id, 0, SLOTS + 50 },
	{ time_ranges, range, HVA_BASE - 64 * PAGE, 8 * SLOTS * PAGE + 200 * PAGE },
	{ time_nothing, NULL, 0, 1 },
};

static void draw(const struct timed *t)
{
	for (size_t i = 0; i < MANY; i++) {
		in[i] = t->from + rng_below(&rng, t->below);
		last[i] = in[i] + rng_below(&rng, 40 * PAGE); /* one byte, or several slots */
	}
}

static size_t groups_of(size_t n, size_t group)
{
	return n / group + (n % group != 0);
}

/* Returns the sum of the times. */
static uint64_t check_times(size_t nr, uint64_t elapsed)
{
	uint64_t sum = 0;

	CHECK_EQ(ns[0], GUARD);
	for (size_t i = 1; i <= nr; i++) {
		CHECK(ns[i] <= elapsed);
		sum += ns[i];
	}
	CHECK(sum <= elapsed);
	for (size_t i = nr + 1; i < ARRAY_SIZE(ns); i++)
		CHECK_EQ(ns[i], GUARD);
	return sum;
}

static void check_answers(const struct timed *t, size_t n)
{
	uint64_t kinds = 0;

	CHECK_EQ(out[0], GUARD);
	for (size_t i = 0; i < n; i++) {
		uint64_t answer = t->call ? t->call(i) : GUARD;

		CHECK_EQ(out[i + 1], answer);
		kinds |= 1u << (answer % 61 % 32);
	}
	CHECK(n < MANY || !t->call || kinds & (kinds - 1)); /* the arguments make a difference */
	for (size_t i = n + 1; i < ARRAY_SIZE(out); i++)
		CHECK_EQ(out[i], GUARD);
}

static void check_timed(const struct timed *t, size_t n, size_t group)
{
	uint64_t start, sum;

	draw(t);
	for (size_t i = 0; i < ARRAY_SIZE(ns); i++)
		ns[i] = out[i] = GUARD;
	start = now();
	t->time(n, group);
	sum = check_times(groups_of(n, t->call ? group : 1), now() - start);
	CHECK(sum || n < MANY);
	check_answers(t, n);
	calls += n;
}

static const size_t numbers[] = { 0, 1, 6, 7, 8, 13, 14, 15, 500, MANY };

static void test_lookups(void)
{
	for (size_t t = 0; t < ARRAY_SIZE(timed); t++)
		for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
			size_t n = numbers[i], groups[] = { 1, 2, 7, n ? n : 1, n + 1, 10 * MANY, SIZE_MAX };

			for (size_t g = 0; g < ARRAY_SIZE(groups); g++)
				check_timed(&timed[t], n, groups[g]);
		}
}

/* The calls run in the order of their arguments: a vCPU's hint proves it. */
static void test_order(void)
{
	struct ms_stats before = stats_of(vm), after;

	for (size_t i = 0; i < MANY; i++)
		in[i] = i / (MANY / 10) * 2 * NPAGES;
	ms_vcpu_gfn_to_hva(vcpu, 3 * NPAGES * SLOTS);
	ms_time_vcpu_gfn_to_hva(vcpu, in, MANY, 7, out, ns);
	after = stats_of(vm);
	CHECK(after.hits_search - before.hits_search <= 10);
	CHECK(after.hits_last_used + after.hits_search + after.indexed >=
	      before.hits_last_used + before.hits_search + before.indexed + MANY);
}

/* With no calls nothing is read and nothing written. */
static void test_none(void)
{
	ms_time_gfn_to_hva(vm, SPACE, NULL, 0, 1, NULL, NULL);
	ms_time_vcpu_gfn_to_hva(vcpu, NULL, 0, 7, NULL, NULL);
	ms_time_id_to_memslot(vm, SPACE, NULL, 0, 1, NULL, NULL);
	ms_time_hva_range(vm, SPACE, NULL, NULL, 0, 100, NULL, NULL);
	ms_time_changes(vm, NULL, 0, 1, NULL, NULL);
	ms_time_nothing(0, NULL);
	CHECK_EQ(ms_time_chase(NULL, 1, 0, &(uint32_t){ 0 }) >> 40, 0);
}

/* A chase goes from place to place, continues where the last one ended, and counts entries modulo the size. */
static void test_chase(void)
{
	static const uint32_t chain[8] = { 3, 0, 5 + 8, 2, 0, ~0u - 7, 0, 0 };
	uint32_t at = 0;

	ms_time_chase(chain, 8, 2, &at);
	CHECK_EQ(at, 2);
	ms_time_chase(chain, 8, 1, &at);
	CHECK_EQ(at, 13);
	ms_time_chase(chain, 8, 1, &at);
	CHECK_EQ(at, ~0u - 7);
	ms_time_chase(chain, 8, 1, &at);
	CHECK_EQ(at, 3);
	ms_time_chase(chain, 8, 0, &at);
	CHECK_EQ(at, 3);
}

/* An address space that does not exist has holes only. */
static void test_no_space(void)
{
	in[0] = 0;
	last[0] = ~(uint64_t)0;
	ms_time_gfn_to_hva(vm, SPACES, in, 1, 1, out, ns);
	CHECK_EQ(out[0], MS_HVA_ERR_BAD);
	ms_time_id_to_memslot(vm, ~0u, in, 1, 1, out, ns);
	CHECK_EQ(out[0], ID_HOLE);
	ms_time_hva_range(vm, SPACES, in, last, 1, 1, out, ns);
	CHECK_EQ(out[0], 0);
}

/* ---- changes ---- */

enum { CHANGES = 300 };

static region_t changes[CHANGES];
static int32_t results[CHANGES + 2];

static void draw_changes(void)
{
	for (size_t i = 0; i < CHANGES; i++) {
		uint32_t which = (uint32_t)rng_below(&rng, 20);

		changes[i] = region(0, which, rng_below(&rng, 600), rng_below(&rng, 4) ? 1 + which : 0,
				    (uint32_t)rng_below(&rng, 10));
	}
}

static void check_changes(size_t n, size_t group)
{
	struct ms_vm *timed_vm = new_vm(1), *single = new_vm(1);
	struct picture by_time, one_by_one;
	uint64_t start, codes = 0;

	draw_changes();
	for (size_t i = 0; i < ARRAY_SIZE(ns); i++)
		ns[i] = GUARD;
	for (size_t i = 0; i < ARRAY_SIZE(results); i++)
		results[i] = 12345;
	start = now();
	ms_time_changes(timed_vm, changes, n, group, results + 1, ns + 1);
	check_times(groups_of(n, group), now() - start);
	for (size_t i = 0; i < n; i++) {
		CHECK_EQ(results[i + 1], ms_set_user_memory_region(single, &changes[i], NULL));
		codes |= 1u << -results[i + 1];
	}
	CHECK_EQ(results[0], 12345);
	for (size_t i = n + 1; i < ARRAY_SIZE(results); i++)
		CHECK_EQ(results[i], 12345);
	CHECK(n < CHANGES || (codes & 1 && codes & (1u << EINVAL) && codes & (1u << EEXIST)));
	by_time = picture_of(timed_vm);
	one_by_one = picture_of(single);
	CHECK(same_picture(&by_time, &one_by_one));
	CHECK_EQ(by_time.generations, one_by_one.generations);
	CHECK_EQ(stats_of(timed_vm).refused, stats_of(single).refused);
	check_sound(timed_vm);
	end_vm(timed_vm);
	end_vm(single);
	calls += n;
}

static void test_changes(void)
{
	static const size_t some[] = { 0, 1, 6, 7, 8, CHANGES };

	for (size_t i = 0; i < ARRAY_SIZE(some); i++) {
		size_t n = some[i], groups[] = { 1, 7, n ? n : 1, n + 1, SIZE_MAX };

		for (size_t g = 0; g < ARRAY_SIZE(groups); g++)
			check_changes(n, groups[g]);
	}
}

/* Where changes are not allowed, each of them fails. */
static void test_refused_changes(void)
{
	struct ms_vm *of = new_vm(1);

	draw_changes();
	CHECK_EQ(ms_read_lock(of), 0);
	ms_time_changes(of, changes, 10, 3, results, ns);
	ms_read_unlock(of);
	for (size_t i = 0; i < 10; i++)
		CHECK_EQ(results[i], -EDEADLK);
	CHECK_EQ(ms_vm_close(of, NULL), 0);
	ms_time_changes(of, changes, 10, 3, results, ns);
	for (size_t i = 0; i < 10; i++)
		CHECK_EQ(results[i], -EBADF);
	ms_vm_destroy(of);
}

/* ---- times of groups ---- */

#define SLOW_NS 3000000u
#define SLOW 4u /* the slow change */

static int sleep_in_prepare(void *opaque, const struct ms_change *change)
{
	static const struct timespec nap = { .tv_nsec = SLOW_NS };

	(void)opaque;
	if (change->new_slot.id == SLOW)
		CHECK_EQ(nanosleep(&nap, NULL), 0);
	return 0;
}

/* The group of the slow change has all of its time; the other groups together have at most the rest. */
static void test_slow_change(void)
{
	static const struct ms_listener sleeps = { LISTENER_SIZE, .prepare = sleep_in_prepare };

	for (size_t group = 1; group <= 12; group++) {
		struct ms_vm *of = new_vm(1);
		size_t nr = groups_of(10, group);
		uint64_t start, elapsed;

		CHECK_EQ(ms_add_listener(of, &sleeps, NULL), 0);
		for (uint32_t i = 0; i < 10; i++)
			changes[i] = region(0, i, i, 1, 0);
		for (size_t i = 0; i < ARRAY_SIZE(ns); i++)
			ns[i] = GUARD;
		start = now();
		ms_time_changes(of, changes, 10, group, results, ns + 1);
		elapsed = now() - start;
		check_times(nr, elapsed);
		CHECK(ns[1 + SLOW / group] >= SLOW_NS);
		end_vm(of);
	}
}

/* A wait during which the clock's seconds change. */
static uint64_t spent;

static int wait_for_next_second(void *opaque, const struct ms_change *change)
{
	static const struct timespec nap = { .tv_nsec = 1000000 };
	uint64_t start = now();

	(void)opaque;
	(void)change;
	while (now() / 1000000000u == start / 1000000000u)
		CHECK_EQ(nanosleep(&nap, NULL), 0);
	spent = now() - start;
	return 0;
}

static void test_seconds(void)
{
	static const struct ms_listener waits = { LISTENER_SIZE, .prepare = wait_for_next_second };
	struct ms_vm *of = new_vm(1);
	uint64_t start = now();

	CHECK_EQ(ms_add_listener(of, &waits, NULL), 0);
	changes[0] = region(0, 1, 1, 1, 0);
	ms_time_changes(of, changes, 1, 1, results, ns);
	CHECK(ns[0] >= spent && ns[0] <= now() - start);
	end_vm(of);
}

/* ---- build information ---- */

static void test_build_info(void)
{
	const char *info = ms_build_info();

#ifdef NDEBUG
	CHECK(strstr(info, "asserts=off; "));
#else
	CHECK(strstr(info, "asserts=on; "));
#endif
	CHECK_EQ(strncmp(info, "compiler=", 9), 0);
	CHECK(strstr(info, "compiler=gcc ") || strstr(info, "compiler=clang ") || strstr(info, "compiler=unknown"));
	CHECK_EQ(strstr(info, "sanitizer=thread") != NULL, TEST_THREAD_SANITIZED);
	CHECK_EQ(strstr(info, "sanitizer=address") != NULL, TEST_SANITIZED && !TEST_THREAD_SANITIZED);
	CHECK_EQ(strstr(info, "sanitizer=none") != NULL, !TEST_SANITIZED);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	rng = rng_stream(1);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		make_vm();
		test_lookups();
		test_order();
		test_none();
		test_chase();
		test_no_space();
		test_changes();
		test_refused_changes();
		ms_vcpu_destroy(vcpu);
		end_vm(vm);
	}
	design_name = "tree";
	test_slow_change();
	test_seconds();
	test_build_info();
	return test_done("measure", calls, "timed calls");
}
