/* SPDX-License-Identifier: MIT */
/*
 * points.c - see points.h.
 */
#include "points.h"

#ifdef MEMSLOTS_POINTS
#include <stdatomic.h>

static _Atomic(point_hook_fn *) installed; /* row "points" */

void point_set_hook(point_hook_fn *hook)
{
	atomic_store_explicit(&installed, hook, memory_order_relaxed);
}

void point_reached(enum point point)
{
	point_hook_fn *hook = atomic_load_explicit(&installed, memory_order_relaxed);

	if (hook)
		hook(point);
}
#endif
