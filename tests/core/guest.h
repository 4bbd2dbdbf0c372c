/* SPDX-License-Identifier: MIT */
/*
 * guest.h - shared by the tests of guest memory: host memory with a known content, and slots that hold it.
 *
 * Each byte of a memory has a value that depends on the memory's number and on its offset, so a byte from another place
 * is noticed.
 */
#ifndef MS_GUEST_TEST_H
#define MS_GUEST_TEST_H

#include "fixture.h"

#include <sys/mman.h>

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define READONLY MS_MEM_READONLY

struct guest {
	unsigned char *at;
	size_t size;
	uint32_t number;
	int fd;
	struct ms_backing *backing;
	unsigned *released; /* counts the releases; may be NULL */
};

static inline unsigned char guest_byte(uint32_t number, size_t offset)
{
	return (unsigned char)(offset * 13 + offset / PAGE * 5 + number * 101 + 1);
}

static inline void guest_release(void *opaque)
{
	struct guest *g = opaque;

	munmap(g->at, g->size);
	close(g->fd);
	if (g->released)
		++*g->released;
	free(g);
}

/* The memory is a file, so that it can be truncated.  The caller has a reference. */
static inline struct guest *guest_new(uint32_t number, size_t pages)
{
	struct guest *g = calloc(1, sizeof(*g));

	CHECK(g);
	g->size = pages * PAGE;
	g->number = number;
	g->fd = memfd_create("guest", 0);
	CHECK(g->fd >= 0);
	CHECK_EQ(ftruncate(g->fd, (off_t)g->size), 0);
	g->at = mmap(NULL, g->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
	CHECK(g->at != MAP_FAILED);
	for (size_t i = 0; i < g->size; i++)
		g->at[i] = guest_byte(number, i);
	CHECK_EQ(ms_backing_create(g->at, g->size, 0, guest_release, g, &g->backing), 0);
	return g;
}

/* Maps npages pages, from `first` on, at gfn. */
static inline int guest_map_part(struct ms_vm *vm, const struct guest *g, uint32_t id, uint64_t gfn, uint64_t first,
				 uint64_t npages, uint32_t flags)
{
	region_t r = region(0, id, gfn, npages, flags);

	r.userspace_addr = (uint64_t)(uintptr_t)g->at + first * PAGE;
	return ms_map_backing(vm, &r, g->backing, NULL, NULL);
}

static inline void guest_map(struct ms_vm *vm, const struct guest *g, uint32_t id, uint64_t gfn, uint32_t flags)
{
	CHECK_EQ(guest_map_part(vm, g, id, gfn, 0, g->size / PAGE, flags), 0);
}

/* A new memory in a new slot, which alone holds it. */
static inline struct guest *guest_slot(struct ms_vm *vm, uint32_t id, uint64_t gfn, size_t pages, uint32_t flags)
{
	struct guest *g = guest_new(id, pages);

	guest_map(vm, g, id, gfn, flags);
	ms_backing_put(g->backing);
	return g;
}

/* The dirty bits of the first 64 pages of a slot, which are cleared; ~0 if it has no log. */
static inline uint64_t guest_dirty(struct ms_vm *vm, uint32_t id)
{
	uint64_t bits[64];
	size_t nwords;

	return ms_get_dirty_log(vm, 0, id, bits, ARRAY_SIZE(bits), &nwords, NULL) ? ~(uint64_t)0 : bits[0];
}

/* A call of guest memory must fail like this.  0 for rule: it must succeed. */
static inline void check_refused(int r, const struct ms_error *err, enum ms_rule rule, uint64_t gpa, uint64_t done)
{
	CHECK_EQ(r, !rule ? 0 : rule == MS_RULE_FORKED ? -EIO : -EFAULT);
	if (!rule)
		return;
	CHECK_EQ(err->rule, rule);
	CHECK_EQ(err->gpa, gpa);
	CHECK_EQ(err->done, done);
}

#endif
