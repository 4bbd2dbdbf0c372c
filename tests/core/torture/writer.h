/* SPDX-License-Identifier: MIT */
/*
 * writer.h - shared by the changes of the writer.
 */
#ifndef MS_TORTURE_WRITER_H
#define MS_TORTURE_WRITER_H

#include "oracle.h"

extern uint64_t now_word[SPACES][KEEPER + 1]; /* the writer's own view */

/* The bits of a new incarnation, whose area is free. */
uint64_t new_incarnation(void);

/* Whether each slot of the address space has a backing, so that reads of many values may use an index. */
bool backings_only(uint32_t as_id);

/* ---- transactions ---- */

struct transaction {
	uint32_t as_id;
	struct ms_step steps[16];
	size_t nr;
	struct ms_backing *backings[MEMBERS];
	size_t nr_backings;
	uint64_t word[KEEPER]; /* afterwards */
};

void begin_transaction(struct transaction *t, uint32_t as_id);
struct ms_step *add_step(struct transaction *t, enum ms_step_kind kind, uint32_t id);

/* The slot with this id moves to the place of `word`. */
void add_move(struct transaction *t, uint32_t id, uint64_t word);

/* Adds a CREATE of the whole incarnation. */
void add_create(struct transaction *t, uint32_t id, uint64_t word);

/* Notes the state, if one id changes, and carries the steps out.  With another result than 0 there is no state; the
 * listener refuses with -EPERM. */
void carry_out(struct transaction *t, int result);

/* ---- dirty logs and guest memory ---- */

/* Gets and clears the slot's dirty bits; 0 if it has no log. */
uint64_t harvest(uint32_t as_id, uint32_t id);

/* Writes words at [offset, offset + n) of the slot, with their stamp and with other ticks. */
int write_words(uint32_t as_id, uint32_t id, uint64_t offset, uint64_t n);

/* Writes a part of the slot.  If it has a log, its harvest has the pages. */
void do_write(uint32_t as_id, uint32_t id);

/* ---- the group (permute.c) ---- */

/* Creates the members, before the threads of a round start. */
void group_prepare(uint32_t as_id);
void change_group(uint32_t as_id);

#endif
