/* SPDX-License-Identifier: MIT */
/*
 * guest_pins.h - the pieces of a range of guest memory, kept alive for a copy that needs no read section.
 *
 * The pieces of one or two ranges are collected in one section, so they come from one published state.  Each piece
 * holds a reference to the backing of its slot and, for a write, a pin of the dirty log.  Then the section ends: no
 * change waits for the copy.
 *
 * A raw slot has nothing to hold: only a section delays the change after which its caller frees the memory.  So with a
 * raw piece the section stays open until guest_pins_put(), and a change waits for the copy.
 *
 * Meanwhile the slot may be moved, resized or deleted, or get another log, or its pages may get another slot.  So a
 * write marks its pages inside a new section: in the pinned log and, if the state is another one by now, in every log
 * that has the same host pages.  A change that publishes another log later waits for this section, and takes the bits
 * over if the logs are related.  Marks that are made while no slot has the pages are in no later log.
 *
 * A call with many addresses that cannot use a hold (guest_many.c) takes all slots instead, except for INVALID ones.
 * Then each piece is a whole slot.
 *
 * Invariants
 *   K1  the pieces ascend.  Those of a range have no gap, begin at gpa, and have `bytes` bytes together;
 *   K2  if bytes < n, `refusal` says why the byte behind the last piece cannot be accessed;
 *   K3  a page that a write has completed is marked in every log that has the page when the section of the mark begins,
 *       and in the logs that are related to the pinned one;
 *   K4  the host memory of all pieces stays: each piece holds a backing, or the section is open.
 *
 * Locking: none.  Ordering: rows "backing references" and "dirty log pins" of docs/locking.md.
 * Cost: O(log n) and O(1) for each piece; no allocation up to GUEST_PINS_FEW pieces.
 */
#ifndef MS_GUEST_PINS_H
#define MS_GUEST_PINS_H

#include "guest_run.h"

/* A range of MS_GUEST_SHORT bytes has pages of at most so many slots. */
#define GUEST_PINS_FEW (MS_GUEST_SHORT / 4096 + 1)

struct guest_piece {
	struct ms_memslot slot;
	uint64_t gpa;
	char *host;
	size_t bytes;
	struct ms_backing *backing;
	struct dirty_log *log;
};

/* Why a range has no further piece. */
struct guest_refusal {
	enum ms_rule rule;
	struct ms_memslot slot; /* all 0 in a hole */
};

struct guest_pins {
	struct ms_vm *vm;
	uint32_t as_id;
	bool write, holds;
	uint64_t gpa;
	size_t n, bytes;
	struct guest_refusal refusal;
	struct state state; /* in which the pieces were collected */
	size_t nr, room, wanted, nr_logged, nr_raw;
	bool in_section; /* the section `look` stays open until guest_pins_put() (K4) */
	struct look look;
	struct guest_piece *pieces; /* `few`, or an allocated array */
	struct guest_piece few[GUEST_PINS_FEW];
};

/* Prepares the range [gpa, gpa + n), n > 0. */
void guest_pins_init(struct guest_pins *pins, struct ms_vm *vm, uint32_t as_id, uint64_t gpa, size_t n, bool write);

/* Inside a section, for at most MS_GUEST_SHORT bytes: collects the pieces without references. */
void guest_pins_look(struct guest_pins *pins, const struct look *look);

/* Takes references to all slots of the address space.  0, or -ENOMEM: nothing is held.  May leave a section open. */
int guest_pins_take_all(struct guest_pins *pins);

/* The slot that contains gpa, or NULL.  For guest_pins_take_all().  O(log nr). */
const struct guest_piece *guest_pins_find(const struct guest_pins *pins, uint64_t gpa);

/* The rule that refuses an access of the piece, or 0.  NULL is a hole. */
enum ms_rule guest_pins_rule(const struct guest_pins *pins, const struct guest_piece *piece);

/* After a write: whether any slot has a log, at the beginning or by now. */
bool guest_pins_need_marks(const struct guest_pins *pins);

/* Takes references to the pieces of `nr` ranges of one address space, in one section.  0, or -ENOMEM: nothing is held.
 * May leave a section open. */
int guest_pins_take(struct guest_pins *pins, size_t nr);
/* Drops the references of `nr` ranges that were taken together, and ends their section.  It may call a release function
 * of the user. */
void guest_pins_put(struct guest_pins *pins, size_t nr);

/* Inside a section of the set: marks the pages of the host memory [start, start + n), n > 0, in every log of the set
 * that has them, except for the log `marked`. */
void guest_mark_present(const struct ms_vm *vm, const struct memslot_set *set, uint64_t start, size_t n,
			const struct dirty_log *marked);

/* Marks the pages of [at, at + n) of the piece, n > 0, which are written (K3). */
void guest_pins_mark(const struct guest_pins *pins, const struct guest_piece *piece, size_t at, size_t n);

#endif
