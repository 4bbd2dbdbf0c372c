/* SPDX-License-Identifier: MIT */
/*
 * fib.c - P1: DPDK's rte_fib (DIR24_8) next to a batch of the engine, for the same slots and frames.
 *
 * rte_fib is a route table: it finds the longest prefix of a 32-bit key, and returns the number of the next hop.  Here
 * a key is a gfn and a next hop is the number of a slot.  The two differ in ways that favour rte_fib:
 *
 *   - its keys and its entries have 32 bits, and a lookup returns a number only; a batch takes 64-bit gfns and returns
 *     host addresses.  The figure "addresses" adds the step from number to address, so it compares equal results.  The
 *     32-bit keys are ready before the clock starts;
 *   - it has no READONLY, and nothing keeps its answers in one state while routes change;
 *   - a slot becomes up to 40 prefixes, and a change of a slot is as many changes;
 *   - its first table has 64 MiB for any number of slots.
 *
 * DPDK likes huge pages that an administrator has reserved.  This program runs without them, and asks for transparent
 * ones in their place.  It takes the fastest lookup function that the CPU has.
 *
 * fib ROUNDS QUERIES SLOTS prints one JSON object: for each figure an array with the nanoseconds of all QUERIES lookups
 * in each round.  The exit status is 3, with a reason, if DPDK does not start or the table does not fit.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_fib.h>
#include <rte_malloc.h>

#include "common.h"

enum figure { FIB, ADDRESSES, BATCH, NR_FIGURES };

static const char *const figure_name[] = { "fib", "addresses", "batch" };

struct bench {
	size_t n;
	struct ms_memslot *slots; /* by gfn */
	uint64_t *gfns, *expected, *hvas, *numbers;
	uint32_t *keys;
	uint64_t *deltas; /* by number of the slot: host address of frame 0, if the slot began there; n is a hole */
	struct rte_fib *fib;
	struct ms_vm *vm;
	double *ns[NR_FIGURES];
};

__attribute__((format(printf, 1, 2), noreturn)) static void give_up(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	exit(3);
}

/* ---- DPDK's start ---- */

#define HUGE_PAGE ((size_t)2 << 20)

static int first_cpu(void)
{
	cpu_set_t cpus;
	int cpu = 0;

	sched_getaffinity(0, sizeof(cpus), &cpus);
	while (!CPU_ISSET(cpu, &cpus))
		cpu++;
	return cpu;
}

static void start_dpdk(void)
{
	char lcores[32], *args[] = { "fib",         "--no-huge", "--no-pci", "--no-shconf", "--no-telemetry",
				     "--log-level", "error",     "--lcores", lcores,        "--force-max-simd-bitwidth",
				     "512" };

	snprintf(lcores, sizeof(lcores), "0@%d", first_cpu());
	if (rte_eal_init(sizeof(args) / sizeof(args[0]), args) < 0)
		give_up("DPDK does not start: %s\n", rte_strerror(rte_errno));
}

/* Adds memory with transparent huge pages, if the system has them, and returns the number that stands for it.  A slot
 * of the largest number needs 5 KB: prefixes in a tree, and two groups of the second table. */
static int add_memory(size_t nr_slots)
{
	size_t size = (128 + nr_slots / 400) * HUGE_PAGE;
	char *start = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(start != MAP_FAILED, "memory");
	start += -(uintptr_t)start % HUGE_PAGE;
	madvise(start, size, MADV_HUGEPAGE);
	if (rte_malloc_heap_create("slots") || rte_malloc_heap_memory_add("slots", start, size, NULL, 0, HUGE_PAGE))
		give_up("DPDK does not take memory: %s\n", rte_strerror(rte_errno));
	return rte_malloc_heap_get_socket("slots");
}

/* ---- prefixes ---- */

/* The largest aligned block that begins at `gfn` and ends at `end` or before. */
static uint64_t block_at(uint64_t gfn, uint64_t end)
{
	uint64_t size = gfn ? gfn & -gfn : (uint64_t)1 << 31;

	while (size > end - gfn)
		size /= 2;
	return size;
}

static uint64_t count_prefixes(const struct bench *b)
{
	uint64_t count = 0;

	for (size_t i = 0; i < b->n; i++)
		for (uint64_t gfn = b->slots[i].base_gfn, end = gfn + b->slots[i].npages; gfn < end; count++)
			gfn += block_at(gfn, end);
	return count;
}

/* Blocks of 256 keys that a slot covers in part.  Each takes a group of the second table. */
static uint32_t count_groups(const struct bench *b)
{
	uint64_t last = ~(uint64_t)0, count = 0;

	for (size_t i = 0; i < b->n; i++) {
		uint64_t ends[] = { b->slots[i].base_gfn, b->slots[i].base_gfn + b->slots[i].npages };

		for (int k = 0; k < 2; k++)
			if (ends[k] % 256 && ends[k] / 256 != last) {
				last = ends[k] / 256;
				count++;
			}
	}
	return (uint32_t)count;
}

static void add_slot(struct bench *b, size_t number)
{
	const struct ms_memslot *slot = &b->slots[number];
	uint64_t end = slot->base_gfn + slot->npages, size;

	for (uint64_t gfn = slot->base_gfn; gfn < end; gfn += size) {
		size = block_at(gfn, end);
		if (rte_fib_add(b->fib, (uint32_t)gfn, (uint8_t)(32 - __builtin_ctzll(size)), number))
			give_up("rte_fib_add() failed at %zu slots\n", b->n);
	}
}

static void choose_lookup(struct rte_fib *fib)
{
	if (rte_fib_select_lookup(fib, RTE_FIB_LOOKUP_DIR24_8_VECTOR_AVX512))
		check(!rte_fib_select_lookup(fib, RTE_FIB_LOOKUP_DEFAULT), "a lookup function of rte_fib");
}

static void make_fib(struct bench *b)
{
	struct rte_fib_conf conf = { .type = RTE_FIB_DIR24_8,
				     .default_nh = b->n, /* a hole */
				     .max_routes = 1 + (int)count_prefixes(b) };
	char name[32];

	conf.dir24_8.nh_sz = RTE_FIB_DIR24_8_4B;
	conf.dir24_8.num_tbl8 = 1 + count_groups(b);
	snprintf(name, sizeof(name), "slots%zu", b->n);
	b->fib = rte_fib_create(name, add_memory(b->n), &conf);
	if (!b->fib)
		give_up("rte_fib_create() failed at %zu slots: %s\n", b->n, rte_strerror(rte_errno));
	for (size_t i = 0; i < b->n; i++)
		add_slot(b, i);
	choose_lookup(b->fib);
}

/* ---- slots and gfns ---- */

static void *array(size_t n, size_t size)
{
	return must(calloc(n, size));
}

static void find_answers(struct bench *b, size_t queries)
{
	for (size_t i = 0; i < queries; i++) {
		b->keys[i] = (uint32_t)b->gfns[i];
		b->expected[i] = right_hva(b->slots, b->n, b->gfns[i]);
	}
	for (size_t i = 0; i < b->n; i++)
		b->deltas[i] = b->slots[i].userspace_addr - (b->slots[i].base_gfn << 12);
}

static void look_up_batch(struct bench *b, size_t queries)
{
	struct ms_batch batch = { b->gfns, sizeof(*b->gfns), b->hvas, sizeof(*b->hvas), queries };

	ms_gfn_to_hva_many(b->vm, 0, &batch, true);
}

static void make_index(struct bench *b, size_t queries)
{
	struct ms_stats stats;

	ms_set_index_policy(b->vm, MS_INDEX_EAGER);
	look_up_batch(b, queries);
	ms_get_stats(b->vm, &stats);
	check(stats.index_builds == 1, "the first batch makes an index");
}

static struct bench *make_bench(size_t n, size_t queries, size_t rounds)
{
	struct bench *b = array(1, sizeof(*b));
	uint64_t end;

	b->n = n;
	b->slots = array(n, sizeof(*b->slots));
	b->deltas = array(n + 1, sizeof(*b->deltas));
	end = make_slots(b->slots, n);
	if (end >> 32)
		give_up("the frames of %zu slots need more than 32 bits\n", n);
	b->gfns = array(queries, sizeof(*b->gfns));
	b->expected = array(queries, sizeof(*b->expected));
	b->hvas = array(queries, sizeof(*b->hvas));
	b->numbers = array(queries, sizeof(*b->numbers));
	b->keys = array(queries, sizeof(*b->keys));
	for (int f = 0; f < NR_FIGURES; f++)
		b->ns[f] = array(rounds, sizeof(double));
	random_gfns(b->gfns, queries, end);
	find_answers(b, queries);
	b->vm = make_vm(b->slots, n);
	make_index(b, queries);
	make_fib(b);
	return b;
}

static void end_bench(struct bench *b)
{
	void *arrays[] = { b->slots, b->deltas, b->gfns, b->expected, b->hvas, b->numbers, b->keys };

	for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++)
		free(arrays[i]);
	rte_fib_free(b->fib);
	ms_vm_destroy(b->vm);
}

/* ---- rounds ---- */

static void look_up_numbers(struct bench *b, size_t queries)
{
	check(!rte_fib_lookup_bulk(b->fib, b->keys, b->numbers, (int)queries), "a lookup by rte_fib");
}

/* There is no branch on a hole, because about a fifth of the lookups are misses that no branch predictor foresees. */
static void to_addresses(struct bench *b, size_t first, size_t end)
{
	for (size_t i = first; i < end; i++) {
		uint64_t hva = ((uint64_t)b->keys[i] << 12) + b->deltas[b->numbers[i]];
		uint64_t hole = -(uint64_t)(b->numbers[i] == b->n);

		__asm__("" : "+r"(hole)); /* the compiler must not make a branch of it */
		b->hvas[i] = (hva & ~hole) | (MS_HVA_ERR_BAD & hole);
	}
}

/* Small steps, so that the numbers are still in the first cache when they become addresses. */
#define STEP ((size_t)256)

static void look_up_addresses(struct bench *b, size_t queries)
{
	for (size_t i = 0; i < queries; i += STEP) {
		size_t end = i + STEP < queries ? i + STEP : queries;

		rte_fib_lookup_bulk(b->fib, &b->keys[i], &b->numbers[i], (int)(end - i));
		to_addresses(b, i, end);
	}
}

typedef void lookups_fn(struct bench *b, size_t queries);

static void time_lookups(struct bench *b, size_t round, enum figure figure, lookups_fn *look_up, size_t queries)
{
	double start;

	memset(b->hvas, 0, queries * sizeof(*b->hvas));
	start = now_ns();
	look_up(b, queries);
	b->ns[figure][round] = now_ns() - start;
	if (figure == FIB)
		to_addresses(b, 0, queries);
	check(!memcmp(b->hvas, b->expected, queries * sizeof(*b->hvas)), figure_name[figure]);
}

static void run_round(struct bench *b, size_t round, size_t queries)
{
	static lookups_fn *const look_up[] = { look_up_numbers, look_up_addresses, look_up_batch };

	for (size_t i = 0; i < NR_FIGURES; i++) {
		enum figure figure = (enum figure)((round + i) % NR_FIGURES);

		time_lookups(b, round, figure, look_up[figure], queries);
	}
}

static void print_bench(const struct bench *b, size_t rounds)
{
	for (int f = 0; f < NR_FIGURES; f++) {
		printf("%s\"%s\": [", f ? ", " : "{", figure_name[f]);
		for (size_t i = 0; i < rounds; i++)
			printf("%.0f%s", b->ns[f][i], i + 1 < rounds ? ", " : "]");
	}
	puts("}");
}

int main(int argc, char **argv)
{
	size_t rounds = argc == 4 ? strtoul(argv[1], NULL, 10) : 0,
	       queries = argc == 4 ? strtoul(argv[2], NULL, 10) : 0;
	size_t nr_slots = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;
	struct bench *b;

	if (!rounds || !queries || queries > INT32_MAX || !nr_slots) {
		fputs("fib ROUNDS QUERIES SLOTS\n", stderr);
		return 2;
	}
	start_dpdk();
	b = make_bench(nr_slots, queries, rounds);
	run_round(b, 0, queries); /* touches all memory; the next line overwrites its figures */
	for (size_t round = 0; round < rounds; round++)
		run_round(b, round, queries);
	print_bench(b, rounds);
	end_bench(b);
	return 0;
}
