/* SPDX-License-Identifier: MIT */
/*
 * test_watchdog.c - the watchdog of test.h ends a test that hangs, and lets a slow one go on.
 */
#include "test.h"

#include <sys/wait.h>

#define LIMIT 1 /* seconds */

static uint64_t wall_ns(void)
{
	struct timespec t;

	CHECK_EQ(clock_gettime(CLOCK_MONOTONIC, &t), 0);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void stand_still(void)
{
	for (;;)
		pause();
}

static void spin(void)
{
	for (;;)
		;
}

/* Needs longer than the limit, but uses a part of a processor only, as on a busy machine. */
static void be_slow(void)
{
	uint64_t end = wall_ns() + 5 * (uint64_t)LIMIT * 1000000000u / 2, used;

	while (wall_ns() < end) {
		used = test_cpu_ns() + 5000000;
		while (test_cpu_ns() < used)
			;
		usleep(20000);
	}
}

/* The exit status of a test with this body. */
static int status_of(void (*body)(void))
{
	char *argv[] = { (char[]){ "child" }, NULL };
	pid_t child = fork();
	int status = -1;

	if (!child) {
		CHECK(freopen("/dev/null", "w", stderr));
		test_init(1, argv, LIMIT);
		body();
		_exit(0);
	}
	CHECK(child > 0);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK(WIFEXITED(status));
	return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	if (!TEST_SANITIZED) { /* a sanitizer delays signals */
		CHECK_EQ(status_of(stand_still), 2);
		CHECK_EQ(status_of(spin), 2);
		CHECK_EQ(status_of(be_slow), 0);
	}
	return test_done("watchdog", TEST_SANITIZED ? 0 : 3, "children");
}
