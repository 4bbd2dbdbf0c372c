/* SPDX-License-Identifier: MIT */
/*
 * next_to.c - P9: a reader next to a writer, and the writer next to this reader.
 *
 * next_to ROUNDS MS SLOTS measures each combination of these for MS milliseconds in each round:
 *
 *   path       index: the default policy, with an index when the round begins;  walk: the plain walk
 *   reader     lookups: ms_gfn_to_hva();  batches: ms_gfn_to_hva_many() of BATCH gfns
 *   neighbour  alone, or a thread that
 *              spin: only computes;
 *              one: deletes and creates one slot and never stops;  random: the same, with a random slot each time;
 *              paced: as one, with RATE changes per second;  paced_random: as random, with RATE changes per second
 *
 * Prints one JSON object.  For each combination it has arrays with a number for each round: lookups per second, changes
 * per second, and the median of a change in nanoseconds.
 *
 * The reader never waits, so it is timed by its processor time.  Every answer is checked, outside of that time.
 */
#define _POSIX_C_SOURCE 199309L
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "common.h"

#define BATCH 10000
#define GFNS 50000 /* in one piece of timed work; a multiple of BATCH */
#define RATE 300000
#define LATE_MAX 1000000 /* ns that a paced writer catches up */
#define SAMPLES_MAX ((size_t)1 << 20)

enum path { INDEX, WALK, NR_PATHS };
enum reading { LOOKUPS, BATCHES, NR_READINGS };
enum neighbour { ALONE, SPIN, ONE, RANDOM, PACED, PACED_RANDOM, NR_NEIGHBOURS };

static const char *const path_name[] = { "index", "walk" };
static const char *const reading_name[] = { "lookups", "batches" };
static const char *const neighbour_name[] = { "alone", "spin", "one", "random", "paced", "paced_random" };

struct figures {
	double *lookups, *changes, *change_ns; /* by round */
};

static struct ms_memslot *slots; /* by gfn */
static size_t nr_slots;
static struct ms_vm *vms[NR_PATHS];
static struct figures figures[NR_PATHS][NR_READINGS][NR_NEIGHBOURS];

static uint64_t wall_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- the reader ---- */

static uint64_t gfns[GFNS], hvas[GFNS], expected[GFNS];
static const struct ms_memslot *owner[GFNS]; /* of the gfn; NULL in a hole */

static void find_answers(void)
{
	for (size_t i = 0; i < GFNS; i++) {
		owner[i] = slot_of_gfn(slots, nr_slots, gfns[i]);
		expected[i] = right_hva(slots, nr_slots, gfns[i]);
	}
}

static void look_up(struct ms_vm *vm)
{
	for (size_t i = 0; i < GFNS; i++)
		hvas[i] = ms_gfn_to_hva(vm, 0, gfns[i]);
}

static void look_up_batches(struct ms_vm *vm)
{
	for (size_t i = 0; i < GFNS; i += BATCH) {
		struct ms_batch batch = { &gfns[i], sizeof(*gfns), &hvas[i], sizeof(*hvas), BATCH };

		ms_gfn_to_hva_many(vm, 0, &batch, true);
	}
}

/* Whether the neighbour deletes this slot at times. */
static bool comes_and_goes(enum neighbour neighbour, const struct ms_memslot *slot)
{
	bool one = neighbour == ONE || neighbour == PACED, any = neighbour == RANDOM || neighbour == PACED_RANDOM;

	return slot && (any || (one && slot == &slots[nr_slots / 2]));
}

static void check_lookups(enum neighbour neighbour)
{
	for (size_t i = 0; i < GFNS; i++)
		check(hvas[i] == expected[i] || (hvas[i] == MS_HVA_ERR_BAD && comes_and_goes(neighbour, owner[i])),
		      "a lookup");
}

/* All answers of a batch come from one state, and a state lacks at most one slot. */
static void check_batch(enum neighbour neighbour, size_t first)
{
	const struct ms_memslot *lacks = NULL;

	for (size_t i = first; i < first + BATCH; i++)
		if (hvas[i] != expected[i])
			lacks = owner[i];
	check(!lacks || comes_and_goes(neighbour, lacks), "a slot that no thread deletes");
	for (size_t i = first; i < first + BATCH; i++)
		check(hvas[i] == (lacks && owner[i] == lacks ? MS_HVA_ERR_BAD : expected[i]), "a batch");
}

static void check_answers(enum reading reading, enum neighbour neighbour)
{
	if (reading == LOOKUPS)
		check_lookups(neighbour);
	for (size_t i = 0; reading == BATCHES && i < GFNS; i += BATCH)
		check_batch(neighbour, i);
}

/* Returns lookups per second of the reader's processor time. */
static double read_for(uint64_t ns, struct ms_vm *vm, enum reading reading, enum neighbour neighbour)
{
	uint64_t end = wall_ns() + ns;
	double lookups = 0, spent = 0, start;

	do {
		start = now_ns();
		(reading == LOOKUPS ? look_up : look_up_batches)(vm);
		spent += now_ns() - start;
		lookups += GFNS;
		check_answers(reading, neighbour);
	} while (wall_ns() < end);
	return lookups / spent * 1e9;
}

/* ---- the other thread ---- */

struct other {
	pthread_t thread;
	enum neighbour kind;
	struct ms_vm *vm;
	uint64_t random, next_ns, spun;
	uint32_t *change_ns;
	size_t nr_samples;
	_Atomic uint64_t changes; /* while `counts` is set */
	_Atomic bool started, counts, stop;
};

static struct other other;

static void note_change(uint64_t ns)
{
	if (!atomic_load_explicit(&other.counts, memory_order_relaxed))
		return;
	atomic_fetch_add_explicit(&other.changes, 1, memory_order_relaxed);
	if (other.nr_samples < SAMPLES_MAX)
		other.change_ns[other.nr_samples++] = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

/* A late writer catches up, but not what it has lost because another process had its processor. */
static void wait_for_turn(void)
{
	uint64_t now = wall_ns();

	if (now > other.next_ns + LATE_MAX)
		other.next_ns = now;
	while (now < other.next_ns)
		now = wall_ns();
	other.next_ns += 1000000000u / RATE;
}

static void change(struct ms_userspace_memory_region region)
{
	uint64_t start;
	int r;

	if (other.kind == PACED || other.kind == PACED_RANDOM)
		wait_for_turn();
	start = wall_ns();
	r = ms_set_user_memory_region(other.vm, &region, NULL);
	note_change(wall_ns() - start);
	check(!r, "every change is made");
}

static const struct ms_memslot *next_victim(void)
{
	if (other.kind == ONE || other.kind == PACED)
		return &slots[nr_slots / 2];
	return &slots[random_of(&other.random) % nr_slots];
}

static void delete_and_create(void)
{
	const struct ms_memslot *slot = next_victim();

	change((struct ms_userspace_memory_region){ .slot = slot->id });
	change((struct ms_userspace_memory_region){ .slot = slot->id,
						    .guest_phys_addr = slot->base_gfn << 12,
						    .memory_size = slot->npages << 12,
						    .userspace_addr = slot->userspace_addr });
}

static void spin(void)
{
	for (int i = 0; i < 1000; i++)
		other.spun = (other.spun ^ other.spun >> 32) * 0x9E3779B97F4A7C15u + 1;
}

static void *run_other(void *unused)
{
	(void)unused;
	other.next_ns = wall_ns();
	while (!atomic_load_explicit(&other.stop, memory_order_relaxed)) {
		(other.kind == SPIN ? spin : delete_and_create)();
		atomic_store_explicit(&other.started, true, memory_order_relaxed);
	}
	return NULL;
}

static void start_other(struct ms_vm *vm, enum neighbour kind)
{
	uint32_t *samples = other.change_ns ? other.change_ns : must(calloc(SAMPLES_MAX, sizeof(*samples)));

	other = (struct other){ .kind = kind, .vm = vm, .random = 1, .change_ns = samples };
	if (kind == ALONE)
		return;
	check(!pthread_create(&other.thread, NULL, run_other, NULL), "a thread");
	while (!atomic_load_explicit(&other.started, memory_order_relaxed))
		;
}

static void stop_other(void)
{
	atomic_store_explicit(&other.stop, true, memory_order_relaxed);
	if (other.kind != ALONE)
		pthread_join(other.thread, NULL);
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static double median_change(void)
{
	if (!other.nr_samples)
		return 0;
	qsort(other.change_ns, other.nr_samples, sizeof(*other.change_ns), by_value);
	return other.change_ns[other.nr_samples / 2];
}

/* ---- rounds ---- */

/* Brings the index back that an earlier neighbour may have cost. */
static void make_index(struct ms_vm *vm)
{
	for (int i = 0; i < 4; i++)
		look_up_batches(vm);
	check_answers(BATCHES, ALONE);
}

static void measure(size_t round, uint64_t ns, enum path path, enum reading reading, enum neighbour neighbour)
{
	struct figures *f = &figures[path][reading][neighbour];
	uint64_t start;

	make_index(vms[path]);
	start_other(vms[path], neighbour);
	read_for(0, vms[path], reading, neighbour);
	atomic_store_explicit(&other.counts, true, memory_order_relaxed);
	start = wall_ns();
	f->lookups[round] = read_for(ns, vms[path], reading, neighbour);
	f->changes[round] =
		(double)atomic_load_explicit(&other.changes, memory_order_relaxed) * 1e9 / (double)(wall_ns() - start);
	stop_other();
	f->change_ns[round] = median_change();
}

/* Only the index has to live through changes at random and at a rate. */
static bool is_measured(enum path path, enum neighbour neighbour)
{
	return path == INDEX || neighbour <= ONE;
}

static void run_round(size_t round, uint64_t ns)
{
	for (enum reading reading = 0; reading < NR_READINGS; reading++)
		for (enum neighbour neighbour = 0; neighbour < NR_NEIGHBOURS; neighbour++)
			for (enum path path = 0; path < NR_PATHS; path++)
				if (is_measured(path, neighbour))
					measure(round, ns, path, reading, neighbour);
}

static double *by_round(size_t rounds)
{
	return must(calloc(rounds, sizeof(double)));
}

static void init(size_t rounds)
{
	uint64_t end;

	slots = must(calloc(nr_slots, sizeof(*slots)));
	end = make_slots(slots, nr_slots);
	random_gfns(gfns, GFNS, end);
	find_answers();
	for (enum path path = 0; path < NR_PATHS; path++) {
		vms[path] = make_vm(slots, nr_slots);
		for (enum reading r = 0; r < NR_READINGS; r++)
			for (enum neighbour n = 0; n < NR_NEIGHBOURS; n++)
				figures[path][r][n] =
					(struct figures){ by_round(rounds), by_round(rounds), by_round(rounds) };
	}
	ms_set_index_policy(vms[WALK], MS_INDEX_WALK);
}

static void print_array(const char *name, const double *values, size_t rounds, const char *end)
{
	printf("\"%s\": [", name);
	for (size_t i = 0; i < rounds; i++)
		printf("%.3f%s", values[i], i + 1 < rounds ? ", " : "]");
	fputs(end, stdout);
}

static void print_figures(size_t rounds)
{
	const char *comma = "{\n";

	for (enum path path = 0; path < NR_PATHS; path++)
		for (enum reading r = 0; r < NR_READINGS; r++)
			for (enum neighbour n = 0; n < NR_NEIGHBOURS; n++) {
				const struct figures *f = &figures[path][r][n];

				if (!is_measured(path, n))
					continue;
				printf("%s\"%s %s %s\": {", comma, path_name[path], reading_name[r], neighbour_name[n]);
				print_array("lookups", f->lookups, rounds, ", ");
				print_array("changes", f->changes, rounds, ", ");
				print_array("change_ns", f->change_ns, rounds, "}");
				comma = ",\n";
			}
	puts("\n}");
}

int main(int argc, char **argv)
{
	size_t rounds = argc == 4 ? strtoul(argv[1], NULL, 10) : 0;
	uint64_t ms = argc == 4 ? strtoul(argv[2], NULL, 10) : 0;

	nr_slots = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;
	if (!rounds || !ms || !nr_slots) {
		fprintf(stderr, "next_to ROUNDS MS SLOTS\n");
		return 2;
	}
	init(rounds);
	for (size_t round = 0; round < rounds; round++)
		run_round(round, ms * 1000000);
	print_figures(rounds);
	for (enum path path = 0; path < NR_PATHS; path++)
		ms_vm_destroy(vms[path]);
	return 0;
}
