/* SPDX-License-Identifier: MIT */
/*
 * torture.h - readers of every kind and a writer that never stops; the oracle checks every answer.
 *
 *	torture [-t seconds] [-s seed] [-r readers] [-b backend] [-o record] [-n name] [-p]
 *
 *	oracle.c   the states that the writer makes, and whether the answers of a call match one of them
 *	memory.c   the host memory of slots, which is poisoned and taken away when it is released
 *	reader.c   the calls of the readers
 *	copies.c   their copies from and to guest memory
 *	snapshots.c  their copies of all slots, and previews of transactions
 *	writer.c   the changes of the writer
 *	permute.c  its transactions that permute a group of slots; with -p it makes no other changes
 *	main.c     options, one round for each number of readers and design, watchdog, record
 *
 * Threads pause at the named points of the engine (points.h) for times that the seed gives.  Freed memory is poisoned
 * (memslots_points), so an answer from there matches no state.  Wrong answers are printed when they are found; the last
 * line is
 *
 *	torture: N lookups, N copies, N changes, N wrong
 */
#ifndef MS_TORTURE_H
#define MS_TORTURE_H

#include "../test.h"

#include <pthread.h>
#include <stdatomic.h>

#include "include/memslots.h"
#include "thread.h"

#define READERS_MAX 4u
#define SPACES 2u
#define PART_WORDS 80u /* of a reader's part of the keeper's log: see oracle.h */
#define STUCK_SECONDS 60 /* without a step of some thread: the watchdog ends the run */

/* One thread.  Its owner writes the sums until the thread has ended. */
struct worker {
	cache_aligned pthread_t thread;
	struct rng rng;
	uint32_t number; /* 0: the writer */
	uint32_t until_pause;
	struct ms_vcpu *vcpu;
	uint64_t last_hva; /* of a slot that a lookup found */
	uint64_t seen[SPACES]; /* the newest state that a call has seen for certain */
	/* copied: bytes.  outlived: copies that ended after the grace period of their state. */
	uint64_t lookups, copies, copied, outlived, sections, changes, wrong, unchecked, bits, marks, polls, ended;
	uint64_t grouped, permutations; /* answers about the group; transactions that permuted it */
	uint64_t age[3], batch_age[3];
	/* For the watchdog. */
	_Atomic(const char *) doing;
	_Atomic uint64_t beats;
	_Atomic uint32_t inside, os_id;
	/* Rounds of marks in the reader's part of the keeper: finished, and found by the writer in its harvests. */
	_Atomic uint64_t marked, found;
	uint64_t harvested[PART_WORDS]; /* the writer's */
};

extern struct worker workers[1 + READERS_MAX];
extern unsigned nr_readers;
extern _Thread_local struct worker *self;

extern struct ms_vm *vm;
extern struct ms_vcpu *common_vcpu;
extern const char *backend;
extern uint32_t ids_in_play; /* 0: only the group */

#define ORDERS 24u /* of the members of the group */
extern uint32_t orders_made; /* a bit for each one that a state has had */

enum { STOP_WRITING = 1, STOP_READING };
extern _Atomic uint32_t stop;

/* Says what the thread is about to do, and counts a step for the watchdog. */
void doing(const char *what);

void pause_briefly(struct rng *rng);

/* Changes the index policy or the SIMD kernel; neither may change an answer, at any moment. */
void flip_policy_or_kernel(struct rng *rng);

/* Counts a wrong answer and prints it, unless many have been printed. */
void wrong(const char *what, uint32_t as_id, uint64_t number, uint64_t lo, uint64_t hi);

/* The threads' work until `stop`. */
void read_on(void);
void write_on(void);

/* Before the threads of a round start: the VM has a slot, the keeper, and a listener; the oracle knows that. */
void writer_prepare(void);

#endif
