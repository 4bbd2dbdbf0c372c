/* SPDX-License-Identifier: MIT */
/*
 * stall_report.h - reports a reader that delays a writer: to the VM's function, or to stderr.
 *
 * The writer makes the report in the middle of a grace period.  For changes the function is a hook.  A change from it
 * would wait for the writer that is waiting.
 *
 * Locking: set and called under slots_lock.
 */
#ifndef MS_STALL_REPORT_H
#define MS_STALL_REPORT_H

#include "include/memslots.h"
#include "slots_lock.h"
#include "srcu.h"

struct stall_report {
	struct slots_lock *lock; /* the lock of the VM */
	ms_stall_fn *report; /* NULL: print a line to stderr */
	void *opaque;
};

/* From now on a reader of the domain is reported when a writer has waited for it for after_ms; 0: never.  r->lock is
 * set already. */
void stall_report_set(struct stall_report *r, struct srcu *srcu, uint32_t after_ms, ms_stall_fn *report, void *opaque);

#endif
