/* SPDX-License-Identifier: MIT */
/*
 * backing.c - see backing.h for the invariants.
 */
#include "backing.h"

#include <errno.h>

#include "guest_fault.h"

struct memory backing_memory;

static bool can_back(uint64_t start, uint64_t size, uint32_t flags)
{
	return start && size && !((start | size) % MS_PAGE_SIZE) && start + size > start &&
	       !(flags & ~MS_BACKING_READONLY);
}

int ms_backing_create(void *start, size_t size, uint32_t flags, ms_release_fn *release, void *opaque,
		      struct ms_backing **out)
{
	uint64_t address = (uintptr_t)start;
	struct ms_backing *backing;

	if (!out)
		return -EFAULT;
	*out = NULL;
	if (!can_back(address, size, flags))
		return -EINVAL;
	guest_fault_prepare();
	backing = memory_zalloc(&backing_memory, sizeof(*backing));
	if (!backing)
		return -ENOMEM;
	backing->start = address;
	backing->size = size;
	backing->flags = flags;
	backing->release = release;
	backing->opaque = opaque;
	atomic_store_explicit(&backing->refs, 1, memory_order_relaxed);
	*out = backing;
	return 0;
}

/* The release function may create a backing at the same place, so *backing is freed first. */
static void run_release(struct thread_task *task)
{
	struct ms_backing *backing = container_of(task, struct ms_backing, task);
	ms_release_fn *release = backing->release;
	void *opaque = backing->opaque;

	memory_free(&backing_memory, backing, sizeof(*backing));
	if (release)
		release(opaque);
}

void backing_drop(struct ms_backing *backing)
{
	if (atomic_fetch_sub_explicit(&backing->refs, 1, memory_order_acq_rel) == 1)
		thread_task_add(&backing->task, run_release);
}

struct ms_backing *ms_backing_get(struct ms_backing *backing)
{
	return backing_get(backing);
}

void ms_backing_put(struct ms_backing *backing)
{
	backing_put(backing);
	thread_flush_tasks();
}

void *ms_backing_opaque(const struct ms_backing *backing)
{
	return backing->opaque;
}
