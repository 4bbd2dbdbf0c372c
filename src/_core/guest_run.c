/* SPDX-License-Identifier: MIT */
/*
 * guest_run.c - see guest_run.h.
 */
#include "guest_run.h"

int guest_refuse(struct ms_error *err, enum ms_rule rule, struct ms_memslot slot, uint64_t gpa, size_t done)
{
	int r = vm_refuse(err, rule == MS_RULE_FORKED ? EIO : EFAULT, rule, 0, NULL);

	if (err) {
		err->other = slot;
		err->gpa = gpa;
		err->done = done;
	}
	return r;
}
