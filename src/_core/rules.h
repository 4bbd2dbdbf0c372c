/* SPDX-License-Identifier: MIT */
/*
 * rules.h - KVM's rules for what a slot may be, in KVM's order.
 *
 * Each returns 0, or refuses with the errno and the rule in *err.  Every kind of change uses the same rules.
 */
#ifndef MS_RULES_H
#define MS_RULES_H

#include "vm.h"

/* Checks 1 to 9, which look at the request alone; ids are those in [first_id, end_id). */
int rules_request(const struct ms_vm *vm, const struct ms_userspace_memory_region *region, uint32_t first_id,
		  uint32_t end_id, struct ms_error *err);

/* The same for a user's slot of address space as_id that is given as a value: one that has pages. */
int rules_value(const struct ms_vm *vm, const struct ms_memslot *value, uint32_t as_id, struct ms_error *err);

/* No slot of the set has this id; `old`, which may be NULL, does not count.  O(1). */
int rules_unused_id(const struct ms_vm *vm, const struct memslot_set *set, uint32_t id, const struct memslot *old,
		    struct ms_error *err);

/* Check 15: [base, base + npages) against the slots of a set.  `id` is not in its own way.  O(log n). */
int rules_overlap(const struct ms_vm *vm, const struct memslot_set *set, uint64_t base, uint64_t npages, uint32_t id,
		  struct ms_error *err);

/* Check 17.  No guest_memfd exists outside KVM, so an open file is not one. */
int rules_guest_memfd(uint32_t flags, int32_t guest_memfd, struct ms_error *err);

/* Part of check 20: a slot ends at or below 2^gpa_bits. */
int rules_gpa_limit(const struct ms_vm *vm, const struct memslot *slot, struct ms_error *err);

#endif
