/* SPDX-License-Identifier: MIT */
/*
 * stall_report.c - see stall_report.h.
 */
#include "stall_report.h"

#include <inttypes.h>
#include <stdio.h>

static void print_stall(const struct ms_stall *stall)
{
	uint64_t ms = stall->waited_ns / 1000000;
	char reader[32] = "a thread that is not known";

	if (stall->thread_id)
		snprintf(reader, sizeof(reader), "thread %" PRIu32, stall->thread_id);
	fprintf(stderr, "memslots: a change has waited for %" PRIu64 ".%03" PRIu64 " s for the read section of %s\n",
		ms / 1000, ms % 1000, reader);
}

static void stalled(void *opaque, uint32_t os_id, uint64_t waited_ns, uint32_t report)
{
	const struct stall_report *r = opaque;
	struct ms_stall stall = { .thread_id = os_id, .report = report, .waited_ns = waited_ns };

	if (!r->report) {
		print_stall(&stall);
		return;
	}
	if (!thread_watch()) /* without memory this report is omitted; the next one tries again */
		return;
	slots_lock_enter_hook(r->lock);
	r->report(r->opaque, &stall);
	slots_lock_leave_hook(r->lock);
}

void stall_report_set(struct stall_report *r, struct srcu *srcu, uint32_t after_ms, ms_stall_fn *report, void *opaque)
{
	*r = (struct stall_report){ r->lock, report, opaque };
	srcu->stall = (struct srcu_stall){ (uint64_t)after_ms * 1000000, stalled, r };
}
