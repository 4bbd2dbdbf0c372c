/* SPDX-License-Identifier: MIT */
/*
 * preview.h - what the binding needs to show a transaction before it happens, and to base one on a state that it has
 * read before.  It is not installed.
 */
#ifndef MS_PREVIEW_H
#define MS_PREVIEW_H

#include <memslots.h>

/* A slot that a list of steps names. */
struct ms_resolved {
	struct ms_memslot value; /* npages is 0 if a step has ended the slot */
	uint32_t step; /* the last one that gave the slot its place or ended it; without one, the last that names it */
};

/* [lock] The slots that the steps of ms_change_memslots() name, after all steps.  It checks the values of each step, and
 * no places.  Writes up to `room` slots; *nr is the number of all. */
int ms_resolve_steps(struct ms_vm *vm, uint32_t as_id, const struct ms_step *steps, size_t n, struct ms_resolved *out,
		     size_t room, size_t *nr, struct ms_error *err);

/* All slots by ascending base_gfn.  Each backing, or NULL, is a reference. */
struct ms_preview {
	struct ms_memslot *rows;
	struct ms_backing **backings;
	size_t room, nr; /* if nr > room, nothing is written */
	uint64_t generation; /* of the state before the steps */
};

/* [lock] The slots that ms_change_memslots() would publish.  It refuses what ms_change_memslots() refuses, except for
 * the listeners, which it does not call.  Nothing changes. */
int ms_preview_memslots(struct ms_vm *vm, uint32_t as_id, const struct ms_step *steps, size_t n,
			struct ms_preview *preview, struct ms_error *err);

/* [lock] ms_change_memslots() if the address space has this generation.  Otherwise -EAGAIN without a rule. */
int ms_change_memslots_at(struct ms_vm *vm, uint32_t as_id, uint64_t generation, const struct ms_step *steps, size_t n,
			  struct ms_error *err);

/* [lock] ms_load_memslots() of slots with backings, if the address space has this generation.  Otherwise -EAGAIN without
 * a rule.  backings[i], or NULL, is that of slots[i], which lies inside it; backings may be NULL. */
int ms_load_backed(struct ms_vm *vm, uint32_t as_id, uint64_t generation, const struct ms_memslot *slots,
		   struct ms_backing *const *backings, size_t n, struct ms_error *err);

#endif
