/* SPDX-License-Identifier: MIT */
/*
 * stall_report.h - hands a reader that stays in its section to the VM's function, or to stderr.
 *
 * The writer calls it in the middle of a grace period.  For changes the function is a hook: a change from there would
 * wait for the one that is waiting.
 *
 * Locking: set and called under slots_lock.
 */
#ifndef MS_STALL_REPORT_H
#define MS_STALL_REPORT_H

#include "include/memslots.h"
#include "slots_lock.h"
#include "srcu.h"

struct stall_report {
	struct slots_lock *lock; /* of the writer that waits */
	ms_stall_fn *report; /* NULL: a line to stderr */
	void *opaque;
};

/* Readers of the domain are reported to report(opaque) after after_ms; 0: never.  r->lock is set. */
void stall_report_set(struct stall_report *r, struct srcu *srcu, uint32_t after_ms, ms_stall_fn *report, void *opaque);

#endif
