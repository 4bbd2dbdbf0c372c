/* SPDX-License-Identifier: MIT */
/*
 * test_guest_bytes.c - copies by vectors: every alignment of both sides, every length of a step, nothing around it.
 */
#include "test.h"

#include "guest_bytes.h"

#define SLACK ((size_t)192) /* bytes on both sides that must stay */
#define LONGEST (GUEST_VECTORS_MIN + 300)

static char source[LONGEST + 2 * SLACK], target[LONGEST + 2 * SLACK], want[LONGEST + 2 * SLACK];
static uint64_t copies;

static void check_copy(size_t to, size_t from, size_t n)
{
	memset(target, 0x5A, sizeof(target));
	memset(want, 0x5A, sizeof(want));
	memcpy(want + to, source + from, n);
	guest_bytes_by_vectors(target + to, source + from, n);
	CHECK(!memcmp(target, want, sizeof(want)));
	copies++;
}

/* The steps depend on the address of the target modulo a line of the cache, and on the length. */
static void test_alignments(void)
{
	for (size_t to = SLACK / 2; to < SLACK / 2 + CACHE_LINE; to++)
		for (size_t n = GUEST_VECTORS_MIN; n < LONGEST; n += 1 + (n + to) % 3)
			check_copy(to, SLACK - to % 67, n);
	for (size_t from = 0; from < SLACK; from++)
		check_copy(SLACK, from, GUEST_VECTORS_MIN + from);
}

/* Below, between and above the two sizes; the result is that of memcpy() in each case. */
static void test_choice(void)
{
	size_t sizes[] = { 0, 1, GUEST_VECTORS_MIN - 1, GUEST_VECTORS_MIN, GUEST_VECTORS_END - 1, GUEST_VECTORS_END };
	size_t most = GUEST_VECTORS_END + 1;
	char *from = malloc(most), *to = malloc(most);

	for (size_t i = 0; i < most; i++)
		from[i] = (char)(i * 7 + i / 251);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		memset(to, 0, most);
		guest_bytes_copy(to + 1, from, sizes[i]);
		CHECK(!memcmp(to + 1, from, sizes[i]));
		CHECK(!to[0] && (sizes[i] + 1 == most || !to[sizes[i] + 1]));
		copies++;
	}
	free(from);
	free(to);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	for (size_t i = 0; i < sizeof(source); i++)
		source[i] = (char)((uint32_t)i * 2654435761u >> 24);
	if (guest_bytes_has_vectors())
		test_alignments();
	else
		puts("guest bytes: NOT tested: copies by vectors; the CPU has no AVX2");
	for (int vectors = 0; vectors <= (int)guest_bytes_has_vectors(); vectors++) {
		guest_bytes_uses_vectors = vectors;
		test_choice();
	}
	return test_done("guest bytes", copies, "copies");
}
