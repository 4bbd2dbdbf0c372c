/* SPDX-License-Identifier: MIT */
/*
 * change.h - the data of the changes that a VM's writer is making.  writer.h has the steps.
 *
 * The VM holds this data, not the stack of the thread that makes the change.  If that thread ends in a hook, the next
 * call that takes slots_lock finishes the change (writer.c).
 *
 * Locking: slots_lock.
 */
#ifndef MS_CHANGE_H
#define MS_CHANGE_H

#include "memslot_set.h"

struct change {
	struct memslot *old, *inv, *new_slot;
	uint32_t entry;    /* of a list: the number of the entry, for the error */
	int32_t guest_memfd; /* of the request */
	struct ms_backing *backing; /* for new_slot, or NULL */
	uint8_t kind;      /* enum ms_change_kind */
	bool staged;       /* the inactive set has the edit already */
	bool noop;         /* the slot has these values already */
	bool exchanged;    /* of a transaction: new_slot has the place of old in the inactive set, except by gfn */
	bool shared_bits;  /* of a transaction: logs of new slots have taken bits from the log of old */
};

/* Of a transaction: a new log that has pages of an old one. */
struct log_take {
	struct dirty_log *to, *from;
	int64_t page;      /* page 0 of `to` is this page of `from`; may be negative */
	uint64_t first, n; /* the pages of `from` that `to` has; at least one */
	bool from_ends;    /* no slot has `from` afterwards */
};

/* The hooks that have prepared a list of changes: the first `listeners` have prepared all of them, and the next one has
 * prepared the first `changes` of them. */
struct prepared {
	size_t listeners, changes;
};

/* The part that is left if the thread ends in a hook or a stall report of this step. */
enum writer_step {
	WRITER_PREPARES,   /* all of the roll-back */
	WRITER_ROLLS_BACK, /* the roll-back, from the end of its swap on */
	WRITER_APPLIES,    /* the rest of the change, from the end of its last swap on */
	WRITER_COMMITS     /* the frees */
};

struct ms_vm;

/* A list of so many changes needs no allocation. */
#define WRITER_FEW 4

struct writer {
	struct ms_vm *vm;
	struct ms_error *err;
	struct change *change; /* few, or an allocated array of `room` changes */
	size_t nr, room;
	void *scratch; /* memory of a load */
	size_t scratch_size;
	struct log_take *takes; /* of a transaction */
	size_t nr_takes, takes_room;
	struct ms_change *values; /* of the changes, for listeners; &vm->single_value, or an allocated array */
	struct prepared prepared;
	const struct sort_item *built; /* or NULL: all slots, by gfn, of the inactive set that was built for a load */
	size_t nr_built;
	uint32_t as_id;
	uint32_t entries; /* of the caller's list */
	uint8_t step;     /* enum writer_step */
	bool invalidated; /* the INVALID copies are published */
	bool removed;     /* of a transaction: its edits have begun */
	bool permuted;    /* of a transaction: all its edits were made at once, see permute() */
	bool without_hooks; /* the thread that began the change has ended */
	struct change few[WRITER_FEW];
};

#endif
