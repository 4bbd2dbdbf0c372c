/* SPDX-License-Identifier: MIT */
/*
 * rounds.h - the main loop of a program `NAME ROUNDS N...`: all numbers of slots take turns in each round.  It prints
 * one JSON object: for each number of slots and each figure an array with its value in each round.
 *
 * Before the include: struct bench with the members n and ns, NR_FIGURES, figure_name, make_bench() and run_round().
 */
#ifndef BENCH_ROUNDS_H
#define BENCH_ROUNDS_H

#include "common.h"

#define SIZES_MAX 8

static void print_bench(const struct bench *b, size_t rounds, const char *end)
{
	printf("\"%zu\": {", b->n);
	for (int f = 0; f < NR_FIGURES; f++) {
		printf("\"%s\": [", figure_name[f]);
		for (size_t i = 0; i < rounds; i++)
			printf("%.3f%s", b->ns[f][i], i + 1 < rounds ? ", " : "]");
		fputs(f + 1 < NR_FIGURES ? ", " : "}", stdout);
	}
	puts(end);
}

/* Returns the exit status.  `which` describes the numbers from 1 to `most`. */
static int run_rounds(int argc, char **argv, const char *name, size_t most, const char *which)
{
	size_t rounds = argc > 2 ? strtoul(argv[1], NULL, 10) : 0;
	struct bench *bench[SIZES_MAX];
	int sizes = argc - 2;

	if (!rounds || sizes > SIZES_MAX) {
		fprintf(stderr, "%s ROUNDS N... (up to %d numbers of slots)\n", name, SIZES_MAX);
		return 2;
	}
	for (int i = 0; i < sizes; i++) {
		size_t n = strtoul(argv[i + 2], NULL, 10);

		check(n > 0 && n <= most, which);
		bench[i] = make_bench(n, rounds);
	}
	for (size_t round = 0; round < rounds; round++)
		for (int i = 0; i < sizes; i++)
			run_round(bench[i], round);
	puts("{");
	for (int i = 0; i < sizes; i++)
		print_bench(bench[i], rounds, i + 1 < sizes ? "," : "");
	puts("}");
	return 0;
}

#endif
