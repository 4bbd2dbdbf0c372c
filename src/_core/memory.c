/* SPDX-License-Identifier: MIT */
#include "memory.h"

#include <stdlib.h>
#include <string.h>

void memory_init(struct memory *m)
{
	memset(m, 0, sizeof(*m));
}

void memory_fail(struct memory *m, uint64_t nth, bool onward)
{
	atomic_store_explicit(&m->asked, 0, memory_order_relaxed);
	m->fail_from = nth;
	m->fail_onward = onward;
}

static bool must_fail(struct memory *m)
{
	uint64_t nth = atomic_fetch_add_explicit(&m->asked, 1, memory_order_relaxed) + 1;

	if (likely(!m->fail_from))
		return false;
	return m->fail_onward ? nth >= m->fail_from : nth == m->fail_from;
}

static void *count_in(struct memory *m, void *block, size_t size)
{
	if (block) {
		atomic_fetch_add_explicit(&m->bytes, size, memory_order_relaxed);
		atomic_fetch_add_explicit(&m->blocks, 1, memory_order_relaxed);
	}
	return block;
}

static size_t whole_lines(size_t size)
{
	return (size + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
}

/* calloc, so that the pages of a large bitmap stay untouched until a bit is set. */
void *memory_zalloc(struct memory *m, size_t size)
{
	return must_fail(m) ? NULL : count_in(m, calloc(1, size), size);
}

void *memory_zalloc_lines(struct memory *m, size_t size)
{
	void *block;

	if (size > whole_lines(size)) /* it wrapped */
		return NULL;
	size = whole_lines(size);
	block = must_fail(m) ? NULL : aligned_alloc(CACHE_LINE, size);
	if (block)
		memset(block, 0, size);
	return count_in(m, block, size);
}

#ifdef MEMSLOTS_POISON
/* For tests: whoever still looks at the block finds nothing that makes sense.  The empty asm keeps a compiler that
 * knows free() from leaving out the memset. */
static void poison(void *block, size_t size)
{
	memset(block, 0xDB, size);
	__asm__ volatile("" : : "r"(block) : "memory");
}
#else
static void poison(const void *block, size_t size)
{
	(void)block;
	(void)size;
}
#endif

void memory_free(struct memory *m, void *block, size_t size)
{
	if (!block)
		return;
	atomic_fetch_sub_explicit(&m->bytes, size, memory_order_relaxed);
	atomic_fetch_sub_explicit(&m->blocks, 1, memory_order_relaxed);
	poison(block, size);
	free(block);
}

void memory_free_lines(struct memory *m, void *block, size_t size)
{
	memory_free(m, block, whole_lines(size));
}
