/* SPDX-License-Identifier: MIT */
/*
 * test_backing.c - host memory that slots keep alive: who holds it, and when and where it is released.
 *
 * The release function of each backing counts its calls, and checks that it runs outside of every lock and section.
 */
#include "fixture.h"

#include "backing.h"
#include "update.h"

#define PAGES 64u

struct memory_of {
	struct ms_backing *backing;
	unsigned released;
	struct ms_vm *called; /* release makes a change of this VM */
	int result;
};

static void on_release(void *opaque)
{
	struct memory_of *m = opaque;

	m->released++;
	CHECK_EQ(thread_self.sections, 0);
	CHECK_EQ(thread_self.hooks, 0);
	if (m->called)
		m->result = set(m->called, 0, 60, 0x9000, 1, 0);
}

/* PAGES pages at a host address that nobody reads. */
static void make(struct memory_of *m, uint32_t flags)
{
	*m = (struct memory_of){ .released = 0 };
	CHECK_EQ(ms_backing_create((void *)(uintptr_t)HVA_BASE, PAGES * PAGE, flags, on_release, m, &m->backing), 0);
}

static region_t pages_of(uint32_t id, uint64_t gfn, uint64_t first, uint64_t npages, uint32_t flags)
{
	region_t r = region(0, id, gfn, npages, flags);

	r.userspace_addr = HVA_BASE + first * PAGE;
	return r;
}

static int map(struct ms_vm *vm, struct memory_of *m, uint32_t id, uint64_t gfn, uint64_t npages, uint32_t flags)
{
	region_t r = pages_of(id, gfn, 0, npages, flags);

	return ms_map_backing(vm, &r, m->backing, NULL, NULL);
}

static uint64_t refs(const struct memory_of *m)
{
	return atomic_load(&m->backing->refs);
}

static void test_changes_keep_the_backing(void)
{
	struct ms_vm *vm = new_vm(1);
	struct memory_of m;

	make(&m, 0);
	CHECK_EQ(map(vm, &m, 1, 0x100, PAGES, 0), 0);
	CHECK_EQ(refs(&m), 2);
	CHECK_EQ(ms_move_memslot(vm, 0, 1, 0x200 * PAGE, NULL), 0);
	CHECK_EQ(refs(&m), 2);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 1, MS_MEM_LOG_DIRTY_PAGES, 0, NULL), 0);
	CHECK_EQ(refs(&m), 2);
	check_sound(vm);
	ms_backing_put(m.backing);
	CHECK_EQ(m.released, 0);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	CHECK_EQ(m.released, 1);
	ms_vm_destroy(vm);
}

int main(void)
{
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		test_changes_keep_the_backing();
	CHECK_EQ(memory_blocks(&backing_memory), 0);
	return 0;
}
