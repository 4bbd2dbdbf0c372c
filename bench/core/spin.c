/* SPDX-License-Identifier: MIT */
/*
 * spin.c - the yardstick of P9: a loop that reads 8 bytes, computes, and writes 8 bytes, as a batch of lookups does.
 * Threads share no data.  The gain of two threads over one shows how well the machine can scale at this moment.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#define WORDS 65536 /* for each thread; in and out together have 1 MiB */
#define STEPS 8     /* multiplications in a chain: a few nanoseconds, as for a lookup */

struct work {
	uint64_t passes, sum;
	uint64_t in[WORDS], out[WORDS];
};

static uint64_t mixed(uint64_t x)
{
	for (int i = 0; i < STEPS; i++)
		x = (x ^ x >> 32) * 0x9E3779B97F4A7C15u;
	return x;
}

static void *spin(void *arg)
{
	struct work *w = arg;

	for (uint64_t pass = 0; pass < w->passes; pass++) {
		for (size_t i = 0; i < WORDS; i++)
			w->out[i] = mixed(w->in[i] + pass);
		w->sum += w->out[pass % WORDS];
	}
	return NULL;
}

/* Runs `passes` passes in each thread.  Returns the sum of the results, or 0 if a thread cannot be started. */
uint64_t bench_spin(unsigned threads, uint64_t passes)
{
	pthread_t thread[64];
	struct work *work = calloc(threads, sizeof(*work));
	uint64_t sum = 0;
	unsigned started = 0;

	for (; work && threads <= 64 && started < threads; started++) {
		work[started].passes = passes;
		for (size_t i = 0; i < WORDS; i++)
			work[started].in[i] = i;
		if (pthread_create(&thread[started], NULL, spin, &work[started]))
			break;
	}
	for (unsigned i = 0; i < started; i++) {
		pthread_join(thread[i], NULL);
		sum += work[i].sum;
	}
	free(work);
	return started == threads ? sum : 0;
}
