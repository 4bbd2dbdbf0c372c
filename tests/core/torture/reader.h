/* SPDX-License-Identifier: MIT */
/*
 * reader.h - shared by the calls of the readers.
 */
#ifndef MS_TORTURE_READER_H
#define MS_TORTURE_READER_H

#include "oracle.h"

/* Inside a section: its state in each address space. */
struct inside {
	bool is;
	uint64_t state[SPACES];
};

typedef void try_fn(struct call *c, const struct inside *in);

static inline uint64_t state_of(uint64_t generation)
{
	bool under_way = generation & MS_GEN_UPDATE_IN_PROGRESS;

	return (generation & ~MS_GEN_UPDATE_IN_PROGRESS) / SPACES + under_way;
}

static inline uint64_t gfns_in_play(void)
{
	return (GROUP_PLACES + 2 * (uint64_t)ids_in_play) * PLACE_PAGES;
}

/* Draws an address space and a frame, and notes the states from which on the answers may be. */
void begin_call(struct call *c, const struct inside *in, const char *what);

/* Checks the answers.  Returns the state that they match, or NO_STATE. */
uint64_t end_call(struct call *c, const struct inside *in, match_fn *match, uint64_t answers);

/* The same, for answers of one state, which the call knows. */
void end_call_in(struct call *c, uint64_t state, match_fn *match, uint64_t answers);

/* The size of a batch: most are short, some have several pieces. */
size_t draw_size(void);

/* Draws the values of a batch: one after another, with gaps between them, or backwards. */
void fill_batch(struct call *c, bool gpa);

/* One of the copies from and to guest memory (copies.c). */
try_fn try_copy;

/* All slots of a state, and lookups in them; the slots that a transaction would make (snapshots.c). */
try_fn try_snapshot, try_preview;

#endif
