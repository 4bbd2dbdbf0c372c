/* SPDX-License-Identifier: MIT */
/*
 * comparison.h - what the binding needs to compare the slots of an address space with the rows of a layout.  It is not
 * installed.
 *
 * A row and a slot are equal if base_gfn, npages, userspace_addr and flags are equal; in addition the ids with
 * `with_ids`, and the backings with `backings`.  The comparison walks the slots and the rows once, by ascending
 * base_gfn, and writes only the ids and the slots that differ.  So most slots of a large layout are read, not copied.
 *
 * Rows that do not ascend give wrong answers, and never an access outside of the arrays.
 */
#ifndef MS_COMPARISON_H
#define MS_COMPARISON_H

#include <memslots.h>

struct ms_comparison {
	/* The rows, by ascending base_gfn.  The caller sets these members. */
	const struct ms_memslot *wanted;
	struct ms_backing *const *backings; /* of each row, or NULL: a slot with any backing can be equal */
	size_t nr_wanted;
	bool with_ids;
	/* The results. */
	uint32_t *ids; /* for each row the id of the equal slot, or MS_SLOT_ANY */
	struct ms_memslot *gone; /* the slots without an equal row, by ascending base_gfn */
	struct ms_backing **gone_backings; /* to compare only: there is no reference */
	size_t nr_gone;
	size_t room; /* of `gone` and `gone_backings`; with less than all slots nothing is compared */
};

/* Compares with the slots of an address space, and returns their number: if that is larger than `room`, nothing is
 * compared.  Inside a read section they are the slots of ms_memslots().  O(n). */
size_t ms_compare_memslots(struct ms_vm *vm, uint32_t as_id, struct ms_comparison *c);

/* The same for n slots in an array, by ascending base_gfn.  They have no backings, and n <= room. */
void ms_compare_rows(const struct ms_memslot *slots, size_t n, struct ms_comparison *c);

#endif
