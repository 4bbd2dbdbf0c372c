/* SPDX-License-Identifier: MIT */
/* main.c - options, rounds, watchdog and record of the torture test: see torture.h. */
#include "oracle.h"

#include "points.h"

#include <sched.h>
#include <time.h>

#define REPORTED_MAX 20 /* wrong answers that are printed */

struct worker workers[1 + READERS_MAX];
unsigned nr_readers;
_Thread_local struct worker *self;

struct ms_vm *vm;
struct ms_vcpu *common_vcpu;
const char *backend;
uint32_t ids_in_play;
_Atomic uint32_t stop;
static _Atomic uint32_t reported;
static uint32_t pause_every;

/* ---- for all threads ---- */

void doing(const char *what)
{
	atomic_store_explicit(&self->doing, what, memory_order_relaxed);
	atomic_fetch_add_explicit(&self->beats, 1, memory_order_relaxed);
}

void pause_briefly(struct rng *rng)
{
	uint64_t how = rng_below(rng, 32);
	struct timespec nap = { .tv_nsec = (long)(1000 + rng_below(rng, 60000)) };

	if (how == 0)
		nanosleep(&nap, NULL);
	else if (how < 12)
		sched_yield();
	else
		for (volatile uint64_t spin = rng_below(rng, 400); spin; spin--)
			;
}

void flip_policy_or_kernel(struct rng *rng)
{
	static const enum ms_index_policy policies[] = { MS_INDEX_AUTO,  MS_INDEX_EAGER, MS_INDEX_AUTO,
							 MS_INDEX_EAGER, MS_INDEX_OFF,   MS_INDEX_WALK };
	const char *kernel = ms_simd_name(rng_below(rng, 3));

	ms_set_index_policy(vm, policies[rng_below(rng, ARRAY_SIZE(policies))]);
	if (kernel)
		CHECK_EQ(ms_set_simd(kernel), 0);
}

/* A call that holds memory from here on pauses more often: the writer shall delete its slots meanwhile. */
static void at_point(enum point point)
{
	if (!self)
		return;
	if ((point == POINT_READER_PINNED || point == POINT_READER_HELD) && rng_below(&self->rng, 2))
		pause_briefly(&self->rng);
	if (--self->until_pause)
		return;
	self->until_pause = 1 + (uint32_t)rng_below(&self->rng, 2 * pause_every);
	if (!rng_below(&self->rng, 4))
		flip_policy_or_kernel(&self->rng);
	pause_briefly(&self->rng);
}

void wrong(const char *what, uint32_t as_id, uint64_t number, uint64_t lo, uint64_t hi)
{
	self->wrong++;
	if (atomic_fetch_add(&reported, 1) < REPORTED_MAX)
		fprintf(stderr,
			"torture: WRONG: reader %u, %s of %" PRIu64 " in address space %" PRIu32 ", states %" PRIu64
			" to %" PRIu64 " (%s, %u readers, seed %" PRIu64 ")\n",
			self->number, what, number, as_id, lo, hi, backend, nr_readers, test_seed);
}

/* ---- the watchdog ---- */

static const char *name_of(uint32_t os_id)
{
	static const char *const names[] = { "the writer", "reader 1", "reader 2", "reader 3", "reader 4" };

	for (unsigned i = 0; i <= nr_readers; i++)
		if (atomic_load(&workers[i].os_id) == os_id)
			return names[i];
	return "an unknown thread";
}

static void on_stall(void *opaque, const struct ms_stall *stall)
{
	(void)opaque;
	fprintf(stderr, "torture: the writer has waited %" PRIu64 " ms for a section of %s\n",
		stall->waited_ns / 1000000, name_of(stall->thread_id));
}

static void report_stuck(void)
{
	fprintf(stderr, "torture: a thread has not moved for %d s (%s, seed %" PRIu64 ")\n", STUCK_SECONDS, backend,
		test_seed);
	for (unsigned i = 0; i <= nr_readers; i++)
		fprintf(stderr, "  %s%s: %s, %" PRIu64 " steps\n", name_of(atomic_load(&workers[i].os_id)),
			atomic_load(&workers[i].inside) ? ", inside a section of its own" : "",
			atomic_load(&workers[i].doing), atomic_load(&workers[i].beats));
	_exit(3);
}

static double seconds_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool all_threads_moved(uint64_t *before)
{
	bool moves = true;

	for (unsigned i = 0; i <= nr_readers; i++) {
		uint64_t beats = atomic_load_explicit(&workers[i].beats, memory_order_relaxed);

		moves &= beats != before[i];
		before[i] = beats;
	}
	return moves;
}

static void watch(double seconds)
{
	uint64_t before[1 + READERS_MAX] = { 0 };
	double end = seconds_now() + seconds, looked = seconds_now();
	struct timespec nap = { .tv_nsec = 20 * 1000000 };

	while (seconds_now() < end) {
		nanosleep(&nap, NULL);
		if (seconds_now() - looked < STUCK_SECONDS)
			continue;
		looked = seconds_now();
		if (!all_threads_moved(before))
			report_stuck();
	}
}

/* ---- a round: one VM, some readers ---- */

static struct worker total;

static void *work(void *argument)
{
	self = argument;
	atomic_store(&self->os_id, thread_os_id());
	if (self->number)
		read_on();
	else
		write_on();
	atomic_store(&self->doing, "finished");
	return NULL;
}

static void make_vm(void)
{
	struct ms_config config;

	ms_config_init(&config);
	config.address_spaces = SPACES;
	config.user_mem_slots = KEEPER + 1;
	config.hva_end_max = (uint64_t)1 << 63;
	config.backend = backend;
	CHECK_EQ(ms_vm_create(&config, &vm), 0);
	writer_prepare();
	CHECK_EQ(ms_set_stall_report(vm, STUCK_SECONDS / 4 * 1000, on_stall, NULL, NULL), 0);
	CHECK_EQ(ms_vcpu_create(vm, &common_vcpu, NULL), 0);
}

/* All workers are prepared before the first thread starts: the writer reads the marks of the readers. */
static void prepare(unsigned number, uint64_t stream)
{
	struct worker *w = &workers[number];

	memset(w, 0, sizeof(*w));
	w->number = number;
	w->rng = rng_stream(stream);
	w->until_pause = 1;
	w->doing = "not started";
	CHECK_EQ(ms_vcpu_create(vm, &w->vcpu, NULL), 0);
}

static void add_up(const struct worker *w)
{
	total.lookups += w->lookups;
	total.copies += w->copies;
	total.copied += w->copied;
	total.outlived += w->outlived;
	total.sections += w->sections;
	total.changes += w->changes;
	total.wrong += w->wrong;
	total.unchecked += w->unchecked;
	total.bits += w->bits;
	total.marks += w->marks;
	total.polls += w->polls;
	total.ended += w->ended;
	total.grouped += w->grouped;
	total.permutations += w->permutations;
	for (int i = 0; i < 3; i++) {
		total.age[i] += w->age[i];
		total.batch_age[i] += w->batch_age[i];
	}
}

static uint64_t waits, stalls, indexes, patches, indexed;

static void end_vm(void)
{
	struct ms_stats stats;

	ms_get_stats(vm, &stats);
	waits += stats.grace_waits;
	stalls += stats.stalls;
	indexes += stats.index_builds;
	patches += stats.index_patches;
	indexed += stats.indexed;
	ms_vm_destroy(vm);
	if (memory_in_use()) {
		fprintf(stderr, "torture: %" PRIu64 " backings were not released (%s, seed %" PRIu64 ")\n",
			memory_in_use(), backend, test_seed);
		total.wrong++;
	}
}

static void on_alarm(int signal_number)
{
	(void)signal_number;
	report_stuck();
}

static void join(struct worker *w)
{
	CHECK_EQ(pthread_join(w->thread, NULL), 0);
	ms_vcpu_destroy(w->vcpu);
	add_up(w);
}

static void play_round(uint64_t number, double seconds)
{
	make_vm();
	atomic_store(&stop, 0);
	for (unsigned i = 0; i <= nr_readers; i++)
		prepare(i, number * (1 + READERS_MAX) + i);
	for (unsigned i = 0; i <= nr_readers; i++)
		CHECK_EQ(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
	watch(seconds);
	alarm(STUCK_SECONDS);
	atomic_store(&stop, STOP_WRITING);
	join(&workers[0]);
	nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL); /* readers look up in the closed VM */
	atomic_store(&stop, STOP_READING);
	for (unsigned i = 1; i <= nr_readers; i++)
		join(&workers[i]);
	alarm(0);
	ms_vcpu_destroy(common_vcpu);
	end_vm();
}

/* ---- the run ---- */

static struct {
	double seconds;
	unsigned readers; /* 0: 1 to 4 in turn */
	const char *backend; /* NULL: all in turn, the tree for twice as long */
	const char *record, *name;
	bool permutations; /* no other changes */
} options = { .seconds = 3, .name = "torture" };

static void print_usage(void)
{
	fprintf(stderr, "usage: torture [-t seconds] [-s seed] [-r readers] [-b backend] [-o record] [-n name] [-p]\n");
	exit(2);
}

static void read_options(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "t:s:r:b:o:n:p")) != -1) {
		switch (option) {
		case 't':
			options.seconds = strtod(optarg, NULL);
			break;
		case 's':
			test_seed = strtoull(optarg, NULL, 0);
			break;
		case 'r':
			options.readers = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'b':
			options.backend = optarg;
			break;
		case 'o':
			options.record = optarg;
			break;
		case 'n':
			options.name = optarg;
			break;
		case 'p':
			options.permutations = true;
			break;
		default:
			print_usage();
		}
	}
	if (optind != argc || options.seconds <= 0 || options.readers > READERS_MAX)
		print_usage();
}

static double weight_of(const char *name)
{
	if (options.backend)
		return !strcmp(name, options.backend);
	return strcmp(name, "tree") ? 1 : 2;
}

static bool in_run(unsigned readers)
{
	return !options.readers || options.readers == readers;
}

static double all_weights(void)
{
	double sum = 0;

	for (unsigned readers = 1; readers <= READERS_MAX; readers++)
		for (size_t i = 0; in_run(readers) && ms_backend_name(i); i++)
			sum += weight_of(ms_backend_name(i));
	return sum;
}

static void play(void)
{
	static const uint32_t rates[] = { 300, 4000, 40 };
	double unit = options.seconds / all_weights();
	uint64_t round = 0;

	for (nr_readers = 1; nr_readers <= READERS_MAX; nr_readers++)
		for (size_t i = 0; in_run(nr_readers) && (backend = ms_backend_name(i)); i++) {
			pause_every = rates[round % ARRAY_SIZE(rates)];
			ids_in_play = options.permutations ? 0 : round / ARRAY_SIZE(rates) % 2 ? FEW_IDS : IDS;
			if (weight_of(backend) > 0)
				play_round(++round, unit * weight_of(backend));
		}
}

/* A long run of the tree must have used indexes; else the run has not tested them. */
static bool tested_indexes(void)
{
	bool tree = !options.backend || !strcmp(options.backend, "tree");

	return !tree || total.lookups < 1000000 || (indexed && indexes && patches);
}

/* So many permutations must have made every order of the members. */
static bool tested_permutations(void)
{
	return total.permutations < 2000 || (orders_made == ((uint32_t)1 << ORDERS) - 1 && total.grouped);
}

static void append_record(void)
{
	FILE *record = fopen(options.record, "a");
	char date[32];
	time_t now = time(NULL);

	CHECK(record);
	strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
	if (ftell(record) == 0)
		fprintf(record,
			"date\tbuild\tseed\tseconds\tlookups\tsections\tchanges\twaits\tstalls\tunder way\tsettled\t"
			"too old\tunchecked\twrong\tindexed\tindexes\tof which derived\tmarks\tcopies\tpermutations\t"
			"answers about permuted slots\n");
	fprintf(record, "%s\t%s\t%" PRIu64 "\t%.0f", date, options.name, test_seed, options.seconds);
	fprintf(record, "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64, total.lookups, total.sections,
		total.changes, waits, stalls);
	fprintf(record, "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64, total.age[0], total.age[1],
		total.age[2], total.unchecked, total.wrong);
	fprintf(record, "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64, indexed, indexes + patches,
		patches, total.marks, total.copies);
	fprintf(record, "\t%" PRIu64 "\t%" PRIu64 "\n", total.permutations, total.grouped);
	CHECK_EQ(fclose(record), 0);
}

static void print_sums(void)
{
	printf("  %" PRIu64 " sections; %" PRIu64 " grace periods waited, %" PRIu64
	       " stalled; sections of a state that was ",
	       total.sections, waits, stalls);
	printf("under way %" PRIu64 ", settled %" PRIu64 ", too old %" PRIu64 "; %" PRIu64 " calls overtaken; %" PRIu64
	       " dirty bits; seed %" PRIu64 "\n",
	       total.age[0], total.age[1], total.age[2], total.unchecked, total.bits, test_seed);
	printf("  batches of a state that was known when they began %" PRIu64 ", of a later one %" PRIu64
	       ", wrong or overtaken %" PRIu64 "; %" PRIu64 " polls, which ended %" PRIu64 "\n",
	       total.batch_age[0], total.batch_age[1], total.batch_age[2], total.polls, total.ended);
	printf("  %" PRIu64 " answers by %" PRIu64 " indexes, %" PRIu64 " of them derived; %" PRIu64
	       " marks found again\n",
	       indexed, indexes + patches, patches, total.marks);
	printf("  %" PRIu64 " MiB of guest memory copied; %" PRIu64
	       " copies ended after the grace period of their state\n",
	       total.copied >> 20, total.outlived);
	printf("  %" PRIu64 " permutations of %u slots, into %d of %u orders; %" PRIu64 " answers about these slots\n",
	       total.permutations, MEMBERS, __builtin_popcount(orders_made), ORDERS, total.grouped);
	printf("torture: %" PRIu64 " lookups, %" PRIu64 " copies, %" PRIu64 " changes, %" PRIu64 " wrong\n",
	       total.lookups, total.copies, total.changes, total.wrong);
}

int main(int argc, char **argv)
{
	test_init(1, argv, 0); /* watch() is the watchdog */
	read_options(argc, argv);
	signal(SIGALRM, on_alarm);
	memory_reserve();
	point_set_hook(at_point);
	play();
	if (options.record)
		append_record();
	print_sums();
	if (!tested_indexes())
		fprintf(stderr, "torture: no index answered, or none was derived\n");
	if (!tested_permutations())
		fprintf(stderr, "torture: an order of the permuted slots is missing\n");
	return total.wrong || !tested_indexes() || !tested_permutations() ? 1 : 0;
}
