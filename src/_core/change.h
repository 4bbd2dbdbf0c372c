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
	uint32_t prepared; /* the number of listeners whose prepare has succeeded */
	uint32_t entry;    /* of a load: the number of the entry, for the error */
	int32_t guest_memfd; /* of the request */
	struct ms_backing *backing; /* of the request, for a new slot; or NULL */
	uint8_t kind;      /* enum ms_change_kind */
	bool staged;       /* new_slot is in the inactive set already */
	bool noop;         /* the slot has these values already */
};

/* The part that is left if the thread ends in a hook or a stall report of this step. */
enum writer_step {
	WRITER_PREPARES,   /* all of the roll-back */
	WRITER_ROLLS_BACK, /* the roll-back, from the end of its swap on */
	WRITER_APPLIES,    /* the rest of the change, from the end of its last swap on */
	WRITER_COMMITS     /* the commits from number `committed` on */
};

struct ms_vm;

struct writer {
	struct ms_vm *vm;
	struct ms_error *err;
	struct change *change; /* &single, or an allocated array of `room` changes */
	size_t nr, room;
	void *scratch; /* memory of a load */
	size_t scratch_size;
	const struct sort_item *built; /* or NULL: all slots, by gfn, of the inactive set that was built for a load */
	size_t nr_built;
	size_t committed;
	uint32_t as_id;
	uint8_t step;     /* enum writer_step */
	bool invalidated; /* the INVALID copies are published */
	bool without_hooks; /* the thread that began the change has ended */
	struct change single;
};

#endif
