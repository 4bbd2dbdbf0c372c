/* SPDX-License-Identifier: MIT */
/*
 * test.h - shared by the C tests: checks, seeded random numbers, number of repetitions, a watchdog.
 *
 *   int main(int argc, char **argv)
 *   {
 *           uint64_t steps;
 *
 *           test_init(argc, argv, 60);                  seed, scale, a limit of 60 seconds of CPU time
 *           steps = try_things(test_times(100000));
 *           return test_done("things", steps, "steps");
 *   }
 *
 * A failure prints file, line, both values and the seed, and ends the process.  The seed is argv[1], else
 * MEMSLOTS_SEED, else fixed.  MEMSLOTS_TEST_SCALE multiplies the number of repetitions (1 unless set, fractions are
 * fine).  Sanitizers divide it by TEST_SLOWDOWN; MEMSLOTS_TEST_SLOW=1 does the same for any other slow tool.
 *
 * Include it first: it requests all extensions of the C library.  Checks work under NDEBUG and in every thread.
 */
#ifndef MS_TEST_H
#define MS_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TEST_SEED 20211206 /* the day on which the tree-based memslots were merged */
#define TEST_SLOWDOWN 8

#ifdef __has_feature /* Clang has no __SANITIZE_* macros */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif

#ifdef __SANITIZE_THREAD__
#define TEST_THREAD_SANITIZED 1
#else
#define TEST_THREAD_SANITIZED 0
#endif

#ifdef __SANITIZE_ADDRESS__
#define TEST_SANITIZED 1
#else
#define TEST_SANITIZED TEST_THREAD_SANITIZED
#endif

/* Weak, so that a program of several files has one of each. */
#define TEST_SHARED __attribute__((weak))

TEST_SHARED uint64_t test_seed = TEST_SEED;
TEST_SHARED double test_scale = 1;
TEST_SHARED bool test_slow = TEST_SANITIZED;

/* Not exit(): any thread may fail while other threads hold locks. */
static inline void test_fail(void)
{
	fprintf(stderr, "  seed %" PRIu64 " (argv[1] or MEMSLOTS_SEED repeats it)\n", test_seed);
	fflush(NULL);
	_exit(1);
}

static inline void test_check(bool holds, const char *file, int line, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "%s:%d: %s does not hold\n", file, line, what);
	test_fail();
}

static inline void test_check_eq(uint64_t a, uint64_t b, const char *file, int line, const char *what_a,
				 const char *what_b)
{
	if (a == b)
		return;
	fprintf(stderr, "%s:%d: %s is not %s: %" PRId64 " (0x%" PRIx64 ") is not %" PRId64 " (0x%" PRIx64 ")\n", file,
		line, what_a, what_b, (int64_t)a, a, (int64_t)b, b);
	test_fail();
}

/* The first member of a listener's initializer. */
#define LISTENER_SIZE .size = sizeof(struct ms_listener)

#define CHECK(condition) test_check(condition, __FILE__, __LINE__, #condition)

/* For integers or pointers.  Both are compared as 64 bits; a negative int is sign-extended. */
#define CHECK_EQ(a, b) test_check_eq((uint64_t)(a), (uint64_t)(b), __FILE__, __LINE__, #a, #b)

/* splitmix64: all seeds are equally good, and the state is one word. */
struct rng {
	uint64_t state;
};

static inline uint64_t rng_next(struct rng *rng)
{
	uint64_t z = rng->state += 0x9E3779B97F4A7C15u;

	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
	return z ^ (z >> 31);
}

/* One of 0 to n - 1; n is not 0. */
static inline uint64_t rng_below(struct rng *rng, uint64_t n)
{
	return rng_next(rng) % n;
}

/* A stream of this run's seed, by number: one for each thread or part of a test. */
static inline struct rng rng_stream(uint64_t number)
{
	struct rng rng = { .state = test_seed };

	rng.state = rng_next(&rng) ^ number;
	rng_next(&rng);
	return rng;
}

/* The number of repetitions for n in a run of scale 1. */
static inline uint64_t test_times(uint64_t n)
{
	double times = (double)n * test_scale / (test_slow ? TEST_SLOWDOWN : 1);

	return times < 1 ? 1 : (uint64_t)times;
}

static unsigned test_limit;   /* seconds */
static uint64_t test_cpu_seen; /* CPU time at the watchdog's last look, in ns */

static inline uint64_t test_cpu_ns(void)
{
	struct timespec t = { 0 };

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A busy machine makes a test slow but lets it run: only a test that stands still, or has used its limit in CPU time
 * of all threads, hangs.  A test that got less than 1 % of a processor since the last look stands still. */
static inline void test_watch(int signal_number)
{
	static const char message[] = "the watchdog ended a test that hangs\n";
	uint64_t now = test_cpu_ns(), second = 1000000000u;

	(void)signal_number;
	if (now < test_limit * second && now >= test_cpu_seen + test_limit * (second / 100)) {
		test_cpu_seen = now;
		alarm(test_limit);
		return;
	}
	_exit(write(STDERR_FILENO, message, sizeof(message) - 1) < 0 ? 3 : 2);
}

/* The limit is for scale 1 and far from tight: it turns a hang into a failure. */
static inline void test_init(int argc, char **argv, unsigned limit_seconds)
{
	const char *seed = argc > 1 ? argv[1] : getenv("MEMSLOTS_SEED");
	const char *scale = getenv("MEMSLOTS_TEST_SCALE"), *slow = getenv("MEMSLOTS_TEST_SLOW");

	if (seed && *seed)
		test_seed = strtoull(seed, NULL, 0);
	if (scale && strtod(scale, NULL) > 0)
		test_scale = strtod(scale, NULL);
	if (slow && *slow && strcmp(slow, "0") != 0)
		test_slow = true;
	test_limit = test_scale > 1 ? (unsigned)(limit_seconds * test_scale) : limit_seconds;
	signal(SIGALRM, test_watch);
	alarm(test_limit);
}

/* Prints the last line and returns main()'s value. */
static inline int test_done(const char *name, uint64_t count, const char *what)
{
	printf("%s: %" PRIu64 " %s, seed %" PRIu64 "\n", name, count, what, test_seed);
	return 0;
}

#endif
