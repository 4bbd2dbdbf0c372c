/* SPDX-License-Identifier: MIT */
/*
 * rules.h - KVM's rules for the fields and the place of a slot, in KVM's order.
 *
 * Each function returns 0, or a negative errno with the rule in *err.  Every kind of change uses the same functions.
 *
 * Locking: rules_unused_id() and rules_overlap() read a set, so the caller holds slots_lock.
 * Cost: in the tree O(1), and O(log n) for rules_overlap().
 */
#ifndef MS_RULES_H
#define MS_RULES_H

#include "vm.h"

/* Checks 1 to 9, which need the request alone.  The id must be in [first_id, end_id). */
int rules_request(const struct ms_vm *vm, const struct ms_userspace_memory_region *region, uint32_t first_id,
		  uint32_t end_id, struct ms_error *err);

/* The same checks for a user's slot of address space as_id that is given as a value.  It must have pages. */
int rules_value(const struct ms_vm *vm, const struct ms_memslot *value, uint32_t as_id, struct ms_error *err);

/* The address space exists. */
static inline int rules_as_id(const struct ms_vm *vm, uint32_t as_id, struct ms_error *err)
{
	uint32_t nr = vm->config.address_spaces;

	return as_id < nr ? 0 : vm_refuse(err, EINVAL, MS_RULE_AS_ID, nr, NULL);
}

/* No slot of the set except `old`, which may be NULL, has this id. */
int rules_unused_id(const struct ms_vm *vm, const struct memslot_set *set, uint32_t id, const struct memslot *old,
		    struct ms_error *err);

/* *id is the lowest id of a user's slot that no slot of the active set has.  Without one it is user_mem_slots, and the
 * call is refused. */
int rules_free_id(const struct ms_vm *vm, uint32_t as_id, uint32_t *id, struct ms_error *err);

/* Check 15: no slot of the set except the one with this id overlaps [base, base + npages). */
int rules_overlap(const struct ms_vm *vm, const struct memslot_set *set, uint64_t base, uint64_t npages, uint32_t id,
		  struct ms_error *err);

/* Check 17.  Outside of KVM there is no guest_memfd, so every slot with MS_MEM_GUEST_MEMFD is refused. */
int rules_guest_memfd(uint32_t flags, int32_t guest_memfd, struct ms_error *err);

/* The pages of the slot lie inside its backing, and a slot of a READONLY backing is READONLY (B2 of backing.h). */
int rules_backing(const struct ms_backing *backing, const struct ms_memslot *value, struct ms_error *err);

/* Part of check 20: a slot ends at or below 2^gpa_bits. */
int rules_gpa_limit(const struct ms_vm *vm, const struct memslot *slot, struct ms_error *err);

#endif
