/* SPDX-License-Identifier: MIT */
/* See memory.h. */
#include "oracle.h"

#include <sys/mman.h>

#define POISON 0xdb

unsigned char *memory_window;
static _Atomic bool used[MEMORY_AREAS];
static _Atomic uint64_t in_use;

struct memory {
	unsigned char *at;
	size_t size;
	uint64_t area;
};

static void *map(void *at, uint64_t size, int protection, int flags)
{
	void *p = mmap(at, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

void memory_reserve(void)
{
	uint64_t align = (uint64_t)1 << INCARNATION_AT;
	char *p = map(NULL, MEMORY_WINDOW + align, PROT_NONE, 0);

	memory_window = (unsigned char *)(p + (align - (uintptr_t)p % align) % align);
}

bool memory_is_free(uint64_t incarnation)
{
	return !atomic_load_explicit(&used[incarnation % MEMORY_AREAS], memory_order_acquire);
}

uint64_t memory_in_use(void)
{
	return atomic_load(&in_use);
}

static void release(void *opaque)
{
	struct memory *m = opaque;

	memset(m->at, POISON, m->size);
	map(m->at, m->size, PROT_NONE, MAP_FIXED);
	atomic_store_explicit(&used[m->area], false, memory_order_release);
	atomic_fetch_sub(&in_use, 1);
	free(m);
}

static void fill(const struct memory *m, uint64_t stamp)
{
	for (uint64_t offset = 0; offset < m->size; offset += 8) {
		uint64_t word = stamp + offset;

		memcpy(m->at + offset, &word, sizeof(word));
	}
}

struct ms_backing *memory_new(uint32_t as_id, uint32_t id, uint64_t word)
{
	struct memory *m = malloc(sizeof(*m));
	struct ms_backing *backing;

	CHECK(m);
	m->at = (unsigned char *)(uintptr_t)hva_for(as_id, id, word);
	m->size = npages_of(word) * MS_PAGE_SIZE;
	m->area = incarnation_of(word) % MEMORY_AREAS;
	CHECK(!atomic_exchange(&used[m->area], true));
	atomic_fetch_add(&in_use, 1);
	map(m->at, m->size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_POPULATE);
	fill(m, stamp_for(as_id, id, word));
	CHECK_EQ(ms_backing_create(m->at, m->size, 0, release, m, &backing), 0);
	return backing;
}
