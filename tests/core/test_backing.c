/* SPDX-License-Identifier: MIT */
/*
 * test_backing.c - host memory that slots keep alive: who holds it, and when, where and how often it is released.
 *
 * Every release checks that its thread is outside of sections, hooks and locks.  The tests in the middle of the file
 * run on each design; those of updates run on the tree.
 */
#include "script.h"

#include "backing.h"

#include <sys/wait.h>

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define READONLY MS_MEM_READONLY
#define PAGES 64u

static _Atomic uint64_t releases; /* in this process */

/* One backing and the calls of its release function. */
struct held {
	struct ms_backing *backing;
	unsigned released;
	struct ms_vm *changes; /* release creates a slot of this VM */
	int r;                 /* the result */
};

static struct ms_vm *shared; /* with another thread */
static unsigned depth, deepest; /* of the calls of on_release() */

static void on_release(void *opaque)
{
	struct held *h = opaque;

	deepest = ++depth > deepest ? depth : deepest;
	h->released++;
	releases++;
	CHECK_EQ(thread_self.sections, 0);
	CHECK_EQ(thread_self.hooks, 0);
	if (h->changes) {
		CHECK(!slots_lock_is_own(&h->changes->slots_lock));
		h->r = set(h->changes, 0, 1000, 0x90000, 1, 0);
	}
	depth--;
}

/* The memory is an address range that nobody reads. */
static void hold(struct held *h, uint32_t flags)
{
	*h = (struct held){ .r = 1 };
	CHECK_EQ(ms_backing_create((void *)(uintptr_t)HVA_BASE, PAGES * PAGE, flags, on_release, h, &h->backing), 0);
}

static uint64_t refs(const struct held *h)
{
	return atomic_load(&h->backing->refs);
}

/* A slot of the pages [first, first + npages) of the memory. */
static region_t part(uint32_t id, uint64_t gfn, uint64_t first, uint64_t npages, uint32_t flags)
{
	region_t r = region(0, id, gfn, npages, flags);

	r.userspace_addr = HVA_BASE + first * PAGE;
	return r;
}

static int map(struct ms_vm *vm, const struct held *h, uint32_t id, uint64_t gfn, uint32_t flags)
{
	region_t r = part(id, gfn, 0, PAGES, flags);

	return ms_map_backing(vm, &r, h->backing, NULL, NULL);
}

/* Only slots hold the memory. */
static struct ms_vm *vm_that_holds(struct held *h, uint32_t slots)
{
	struct ms_vm *vm = new_vm(1);

	hold(h, 0);
	for (uint32_t id = 0; id < slots; id++)
		CHECK_EQ(map(vm, h, id, 0x100 * (id + 1), id % 2 ? LOG : 0), 0);
	CHECK_EQ(refs(h), slots + 1);
	ms_backing_put(h->backing);
	CHECK_EQ(h->released, 0);
	check_sound(vm);
	return vm;
}

/* ---- a backing alone ---- */

static int create(uint64_t start, uint64_t size, uint32_t flags)
{
	struct ms_backing *backing = (struct ms_backing *)(uintptr_t)1;
	int r = ms_backing_create((void *)(uintptr_t)start, size, flags, NULL, NULL, &backing);

	CHECK_EQ(r == 0, backing != NULL);
	ms_backing_put(backing); /* nobody wants to hear of its release */
	return r;
}

static void test_create(void)
{
	struct held h;

	CHECK_EQ(create(PAGE, PAGE, 0), 0);
	CHECK_EQ(create(PAGE, 5 * PAGE, MS_BACKING_READONLY), 0);
	CHECK_EQ(create(0 - 2 * PAGE, PAGE, 0), 0);
	CHECK_EQ(create(0, PAGE, 0), -EINVAL);
	CHECK_EQ(create(PAGE + 8, PAGE, 0), -EINVAL);
	CHECK_EQ(create(PAGE, 0, 0), -EINVAL);
	CHECK_EQ(create(PAGE, PAGE + 1, 0), -EINVAL);
	CHECK_EQ(create(PAGE, PAGE, 2), -EINVAL);
	CHECK_EQ(create(0 - 2 * PAGE, 2 * PAGE, 0), -EINVAL); /* its end is 2^64 */
	CHECK_EQ(create(0 - 2 * PAGE, 3 * PAGE, 0), -EINVAL);
	CHECK_EQ(ms_backing_create((void *)PAGE, PAGE, 0, NULL, NULL, NULL), -EFAULT);
	CHECK(!ms_backing_get(NULL));
	ms_backing_put(NULL);
	hold(&h, 0);
	CHECK(ms_backing_get(h.backing) == h.backing);
	ms_backing_put(h.backing);
	CHECK_EQ(h.released, 0);
	ms_backing_put(h.backing);
	CHECK_EQ(h.released, 1);
}

/* ---- the slots that hold it ---- */

static void test_changes_keep_it(void)
{
	struct held h;
	struct ms_vm *vm = vm_that_holds(&h, 3);
	region_t raw = part(1, 0x900, 0, PAGES, 0);

	CHECK_EQ(ms_move_memslot(vm, 0, 1, 0x800 * PAGE, NULL), 0);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 0, LOG, 0, NULL), 0);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 0, 0, LOG, NULL), 0);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 0, 0, LOG, NULL), 0); /* changes nothing */
	CHECK_EQ(refs(&h), 3);
	check_sound(vm);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	CHECK_EQ(refs(&h), 2);
	CHECK_EQ(ms_set_user_memory_region(vm, &raw, NULL), 0); /* the same pages, but raw */
	CHECK_EQ(refs(&h), 2);
	CHECK_EQ(ms_delete_memslot(vm, 0, 0, NULL), 0);
	CHECK_EQ(h.released, 0);
	CHECK_EQ(ms_delete_memslot(vm, 0, 2, NULL), 0);
	CHECK_EQ(h.released, 1);
	check_sound(vm);
	end_vm(vm);
}

static void test_several_vms(void)
{
	struct ms_vm *vm[3];
	struct held h;

	hold(&h, 0);
	for (int i = 0; i < 3; i++) {
		vm[i] = new_vm(1);
		CHECK_EQ(map(vm[i], &h, 5, 0x100, 0), 0);
		CHECK_EQ(map(vm[i], &h, 6, 0x200, 0), 0);
		check_sound(vm[i]);
	}
	CHECK_EQ(refs(&h), 7);
	ms_backing_put(h.backing);
	CHECK_EQ(ms_vm_close(vm[0], NULL), 0);
	ms_vm_destroy(vm[1]);
	CHECK_EQ(h.released, 0);
	CHECK_EQ(refs(&h), 2);
	CHECK_EQ(ms_delete_memslot(vm[2], 0, 5, NULL), 0);
	ms_vm_destroy(vm[2]);
	CHECK_EQ(h.released, 1);
	ms_vm_destroy(vm[0]);
}

/* ---- the rules ---- */

static void check_refused(struct ms_vm *vm, const struct held *h, region_t r, int code, enum ms_rule rule,
			  uint64_t limit)
{
	struct picture before = picture_of(vm), after;
	uint64_t had = refs(h), refused = stats_of(vm).refused;
	uint32_t id = 12345;
	struct ms_error err = { 0 };

	CHECK_EQ(ms_map_backing(vm, &r, h->backing, &id, &err), code);
	CHECK_EQ(err.rule, rule);
	CHECK_EQ(err.limit, limit);
	CHECK_EQ(id, 12345);
	CHECK_EQ(refs(h), had);
	CHECK_EQ(stats_of(vm).refused, refused + 1);
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
}

static void test_map_refused(void)
{
	const uint64_t end = HVA_BASE + PAGES * PAGE;
	struct ms_vm *vm = new_vm(1);
	struct held h;
	region_t r;

	hold(&h, 0);
	CHECK_EQ(map(vm, &h, 5, 0x100, 0), 0);
	check_refused(vm, &h, part(6, 0x200, 0, PAGES + 1, 0), -EINVAL, MS_RULE_BACKING_RANGE, end);
	check_refused(vm, &h, part(6, 0x200, 1, PAGES, 0), -EINVAL, MS_RULE_BACKING_RANGE, end);
	check_refused(vm, &h, part(6, 0x200, -(uint64_t)1, 2, 0), -EINVAL, MS_RULE_BACKING_RANGE, end);
	check_refused(vm, &h, part(6, 0x200, PAGES, 1, 0), -EINVAL, MS_RULE_BACKING_RANGE, end);
	check_refused(vm, &h, part(6, 0x200, 1000, 1, 0), -EINVAL, MS_RULE_BACKING_RANGE, end);
	check_refused(vm, &h, part(6, 0x200, 0, 0, 0), -EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES);
	check_refused(vm, &h, part(5, 0x200, 0, 0, 0), -EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES);
	check_refused(vm, &h, part(5, 0x200, 0, PAGES, 0), -EEXIST, MS_RULE_DUPLICATE_ID, 0);
	check_refused(vm, &h, part(5, 0x100, 0, PAGES, 0), -EEXIST, MS_RULE_DUPLICATE_ID, 0);
	check_refused(vm, &h, part(6, 0x101, 0, 1, 0), -EEXIST, MS_RULE_OVERLAP, 0);
	check_refused(vm, &h, part(32764, 0x200, 0, 1, 0), -EINVAL, MS_RULE_SLOT_ID, 32764);
	check_refused(vm, &h, part(6, 0x200, 0, 1, 8), -EINVAL, MS_RULE_FLAGS, 7);
	check_refused(vm, &h, part(6, (uint64_t)1 << 40, 0, 1, 0), -EINVAL, MS_RULE_GPA_LIMIT, (uint64_t)1 << 52);
	r = part(MS_SLOT_ANY, 0x200, 0, 1, 0);
	r.as_id = 1;
	check_refused(vm, &h, r, -EINVAL, MS_RULE_AS_ID, 1);
	r = part(6, 0x200, 0, 1, 0);
	r.guest_phys_addr++;
	check_refused(vm, &h, r, -EINVAL, MS_RULE_GPA_ALIGN, 0);
	CHECK_EQ(ms_set_user_memory_region(vm, &(region_t){ .slot = MS_SLOT_ANY, .memory_size = PAGE }, NULL), -EINVAL);
	CHECK_EQ(refs(&h), 2);
	ms_backing_put(h.backing);
	end_vm(vm);
	CHECK_EQ(h.released, 1);
}

static void test_readonly(void)
{
	struct ms_vm *vm = new_vm(1);
	struct ms_error err;
	struct held h;

	hold(&h, MS_BACKING_READONLY);
	check_refused(vm, &h, part(6, 0x200, 0, 1, 0), -EINVAL, MS_RULE_BACKING_READONLY, 0);
	check_refused(vm, &h, part(6, 0x200, 0, 1, LOG), -EINVAL, MS_RULE_BACKING_READONLY, 0);
	CHECK_EQ(map(vm, &h, 6, 0x200, READONLY | LOG), 0);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 6, 0, READONLY, &err), -EINVAL);
	CHECK_EQ(err.rule, MS_RULE_FLAGS_TOGGLE);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 6, 0, LOG, NULL), 0);
	check_sound(vm);
	ms_backing_put(h.backing);
	CHECK_EQ(ms_delete_memslot(vm, 0, 6, NULL), 0);
	CHECK_EQ(h.released, 1);
	end_vm(vm);
	hold(&h, 0); /* a READONLY slot of memory that can be written */
	vm = new_vm(1);
	CHECK_EQ(map(vm, &h, 6, 0x200, READONLY), 0);
	ms_backing_put(h.backing);
	ms_vm_destroy(vm);
	CHECK_EQ(h.released, 1);
}

static void test_null(void)
{
	struct ms_vm *vm = new_vm(1);
	region_t r = part(6, 0x200, 0, 1, 0);
	struct ms_error err;
	struct held h;

	hold(&h, 0);
	CHECK_EQ(ms_map_backing(vm, NULL, h.backing, NULL, &err), -EFAULT);
	CHECK_EQ(err.rule, MS_RULE_NULL_BUFFER);
	CHECK_EQ(ms_map_backing(vm, &r, NULL, NULL, &err), -EFAULT);
	CHECK_EQ(err.rule, MS_RULE_NULL_BUFFER);
	CHECK_EQ(ms_map_backing(vm, &r, h.backing, NULL, NULL), 0);
	ms_backing_put(h.backing);
	ms_vm_destroy(vm);
	CHECK_EQ(h.released, 1);
}

/* ---- refused changes ---- */

static int refuse(void *opaque, const struct ms_change *change)
{
	(void)change;
	CHECK_EQ(releases, *(uint64_t *)opaque);
	return -EPERM;
}

static void test_refused_by_a_listener(void)
{
	struct held h, other;
	struct ms_vm *vm = vm_that_holds(&h, 2);
	uint64_t before = releases;
	struct ms_listener refuses = { LISTENER_SIZE, .opaque = &before, .prepare = refuse };

	hold(&other, 0);
	CHECK_EQ(ms_add_listener(vm, &refuses, NULL), 0);
	CHECK_EQ(map(vm, &other, 7, 0x900, LOG), -EPERM);
	CHECK_EQ(refs(&other), 1);
	CHECK_EQ(ms_move_memslot(vm, 0, 0, 0x900 * PAGE, NULL), -EPERM);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 0, LOG, 0, NULL), -EPERM);
	CHECK_EQ(ms_delete_memslot(vm, 0, 0, NULL), -EPERM);
	CHECK_EQ(refs(&h), 2);
	check_sound(vm);
	CHECK_EQ(ms_remove_listener(vm, &refuses, NULL), 0);
	ms_backing_put(other.backing);
	CHECK_EQ(other.released, 1);
	end_vm(vm);
	CHECK_EQ(h.released, 1);
}

/* ---- the place of the release ---- */

static void test_release_changes_the_vm(void)
{
	struct held h;
	struct ms_vm *vm = vm_that_holds(&h, 1);

	h.changes = vm;
	CHECK_EQ(ms_delete_memslot(vm, 0, 0, NULL), 0);
	CHECK_EQ(h.released, 1);
	CHECK_EQ(h.r, 0);
	CHECK_EQ(ms_nr_memslots(vm), 1);
	end_vm(vm);

	vm = vm_that_holds(&h, 1);
	h.changes = vm;
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	CHECK_EQ(h.released, 1);
	CHECK_EQ(h.r, -EBADF);
	ms_vm_destroy(vm);

	vm = vm_that_holds(&h, 3);
	h.changes = new_vm(1);
	ms_vm_destroy(vm);
	CHECK_EQ(h.released, 1);
	CHECK_EQ(h.r, 0);
	end_vm(h.changes);
}

/* Many releases, each of which makes a change: they do not nest. */
static void test_releases_do_not_nest(void)
{
	enum { MANY = 500 };
	static struct held h[MANY];
	struct ms_vm *vm = new_vm(1), *other = new_vm(1);

	for (uint32_t i = 0; i < MANY; i++) {
		hold(&h[i], 0);
		h[i].changes = other;
		CHECK_EQ(map(vm, &h[i], i, 0x100 * i, 0), 0);
		ms_backing_put(h[i].backing);
	}
	deepest = 0;
	end_vm(vm);
	CHECK_EQ(deepest, 1);
	for (uint32_t i = 0; i < MANY; i++)
		CHECK_EQ(h[i].released, 1);
	end_vm(other);
}

/* A section of another VM, and one of the same VM. */
static void test_put_inside_a_section(void)
{
	struct held h, unmapped;
	struct ms_vm *vm = vm_that_holds(&h, 1), *read = new_vm(1);

	hold(&unmapped, 0);
	CHECK_EQ(ms_read_lock(read), 0);
	CHECK_EQ(ms_read_lock(read), 0);
	ms_vm_destroy(vm);
	ms_backing_put(unmapped.backing);
	CHECK_EQ(ms_read_unlock(read), 0);
	CHECK_EQ(h.released + unmapped.released, 0);
	h.changes = read;
	CHECK_EQ(ms_read_unlock(read), 0);
	CHECK_EQ(h.released, 1);
	CHECK_EQ(unmapped.released, 1);
	CHECK_EQ(h.r, 0);
	end_vm(read);
}

/* The section ends with its VM. */
static void test_destroy_inside_a_section(void)
{
	struct held h;
	struct ms_vm *vm = vm_that_holds(&h, 1);

	CHECK_EQ(ms_read_lock(vm), 0);
	ms_vm_destroy(vm);
	CHECK_EQ(h.released, 1);
}

/* ---- hooks ---- */

struct nested {
	struct ms_vm *vm;
	struct held *h, *unmapped;
	unsigned calls;
};

static void delete_inside(struct nested *n)
{
	if (n->calls++) /* the release makes a change of the hook's VM */
		return;
	CHECK_EQ(ms_vm_close(n->vm, NULL), 0);
	if (n->unmapped->backing)
		ms_backing_put(n->unmapped->backing);
	n->unmapped->backing = NULL;
	CHECK_EQ(n->h->released + n->unmapped->released, 0);
}

static int delete_in_prepare(void *opaque, const struct ms_change *change)
{
	(void)change;
	delete_inside(opaque);
	return -EPERM;
}

static void delete_in_commit(void *opaque, const struct ms_change *change)
{
	(void)change;
	delete_inside(opaque);
}

static void delete_in_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)active;
	(void)old;
	delete_inside(opaque);
}

static void release_after_hook(struct ms_listener l, int r)
{
	struct ms_vm *outer = new_vm(1);
	struct held h, unmapped;
	struct nested n = { vm_that_holds(&h, 3), &h, &unmapped, 0 };

	hold(&unmapped, 0);
	h.changes = outer;
	CHECK_EQ(set(outer, 0, 3, 0x300, 1, 0), 0);
	l.opaque = &n;
	CHECK_EQ(ms_add_listener(outer, &l, NULL), 0);
	CHECK_EQ(ms_delete_memslot(outer, 0, 3, NULL), r);
	CHECK(n.calls > 0);
	CHECK_EQ(h.released, 1);
	CHECK_EQ(unmapped.released, 1);
	CHECK_EQ(h.r, l.prepare ? -EPERM : 0);
	ms_vm_destroy(outer);
	ms_vm_destroy(n.vm);
}

/* A hook drops the last references to memory of another VM.  The release makes a change of the hook's VM. */
static void test_put_inside_a_hook(void)
{
	release_after_hook((struct ms_listener){ LISTENER_SIZE, .prepare = delete_in_prepare }, -EPERM);
	release_after_hook((struct ms_listener){ LISTENER_SIZE, .flush = delete_in_flush }, 0);
	release_after_hook((struct ms_listener){ LISTENER_SIZE, .commit = delete_in_commit }, 0);
}

/* ---- the end of a thread ---- */

static int end_in_prepare(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	pthread_exit(NULL);
}

static void end_in_commit(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	pthread_exit(NULL);
}

static void end_in_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)active;
	(void)old;
	pthread_exit(NULL);
}

static void *delete_slot_0(void *vm)
{
	ms_delete_memslot(vm, 0, 0, NULL);
	CHECK(false); /* a hook has ended the thread */
	return NULL;
}

/* The next call that takes the lock finishes the change and releases the memory. */
static void release_by_the_next_call(struct ms_listener l, bool deleted)
{
	struct held h;
	struct ms_vm *vm = vm_that_holds(&h, 1);

	h.changes = vm;
	CHECK_EQ(ms_add_listener(vm, &l, NULL), 0);
	by_another_thread(delete_slot_0, vm);
	CHECK_EQ(h.released, 0);
	CHECK_EQ(ms_remove_listener(vm, &l, NULL), 0);
	CHECK_EQ(h.released, deleted);
	CHECK_EQ(ms_nr_memslots(vm), 1); /* slot 0, or that of the release */
	check_sound(vm);
	h.changes = NULL;
	ms_vm_destroy(vm);
	CHECK_EQ(h.released, 1);
}

static struct nested ending;

static int drop_and_end(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	delete_inside(&ending);
	pthread_exit(NULL);
}

static void *change_outer(void *outer)
{
	set(outer, 0, 3, 0x300, 1, 0);
	CHECK(false);
	return NULL;
}

/* The thread ends before it can leave the hook, so its end releases the memory. */
static void test_end_of_a_thread_with_tasks(void)
{
	struct ms_listener l = { LISTENER_SIZE, .prepare = drop_and_end };
	struct ms_vm *outer = new_vm(1);
	struct held h, unmapped;

	ending = (struct nested){ vm_that_holds(&h, 3), &h, &unmapped, 0 };
	hold(&unmapped, 0);
	CHECK_EQ(ms_add_listener(outer, &l, NULL), 0);
	h.released = unmapped.released = 0;
	by_another_thread(change_outer, outer);
	CHECK_EQ(h.released, 1);
	CHECK_EQ(unmapped.released, 1);
	check_sound(outer);
	ms_vm_destroy(outer);
	ms_vm_destroy(ending.vm);
}

static void *put_in_a_section_and_end(void *held)
{
	struct held *h = held;

	CHECK_EQ(ms_read_lock(shared), 0);
	ms_backing_put(h->backing);
	CHECK_EQ(h->released, 0);
	return NULL;
}

/* The end of the thread ends its section, then it releases the memory. */
static void test_end_inside_a_section(void)
{
	struct held h;

	hold(&h, 0);
	shared = new_vm(1);
	h.changes = shared;
	by_another_thread(put_in_a_section_and_end, &h);
	CHECK_EQ(h.released, 1);
	CHECK_EQ(h.r, 0);
	end_vm(shared);
}

static void test_ends_of_threads(void)
{
	release_by_the_next_call((struct ms_listener){ LISTENER_SIZE, .prepare = end_in_prepare }, false);
	release_by_the_next_call((struct ms_listener){ LISTENER_SIZE, .flush = end_in_flush }, false);
	release_by_the_next_call((struct ms_listener){ LISTENER_SIZE, .commit = end_in_commit }, true);
}

/* ---- a reader that still sees the slot ---- */

static struct held seen;

static void look_up(struct actor *me)
{
	me->hva = ms_gfn_to_hva(shared, 0, 0x100);
}

static void delete_it(struct actor *me)
{
	me->r = ms_delete_memslot(shared, 0, 0, NULL);
}

static void close_it(struct actor *me)
{
	me->r = ms_vm_close(shared, NULL);
}

/* The reader has found the slot and has not left: the memory lives. */
static void release_after_the_reader(void (*end)(struct actor *me))
{
	struct actor reader, writer;

	shared = vm_that_holds(&seen, 1);
	script_begin("memory is released after its last reader");
	act_until(&reader, look_up, POINT_READER_SLOT_FOUND);
	act_until_waits(&writer, end, shared);
	CHECK_EQ(seen.released, 0);
	go_until(&reader, POINT_READER_LEAVES);
	CHECK_EQ(seen.released, 0);
	finish_both(&reader, &writer);
	CHECK_EQ(writer.r, 0);
	CHECK_EQ(reader.hva, HVA_BASE);
	CHECK_EQ(seen.released, 1);
	script_end_vm(shared);
}

static void test_grace_period(void)
{
	release_after_the_reader(delete_it);
	release_after_the_reader(close_it);
}

/* ---- updates ---- */

static struct ms_slot *copy(struct ms_update *u, struct ms_slot *old, uint64_t first, uint64_t npages, uint32_t flags,
			    int want)
{
	struct ms_memslot v = { 0x800, npages, HVA_BASE + first * PAGE, 0, 0, flags, 0 };
	struct ms_slot *draft = NULL;
	struct ms_error err;

	CHECK_EQ(ms_update_copy(u, old, &v, &draft, &err), want);
	CHECK(!want || err.rule == MS_RULE_BACKING_READONLY);
	return draft;
}

static const struct ms_backing *backing_of(const struct ms_slot *slot)
{
	return ((const struct memslot *)(const void *)slot)->backing;
}

static void test_drafts(void)
{
	struct held h;
	struct ms_vm *vm = vm_that_holds(&h, 1);
	struct ms_update *u;
	struct ms_slot *old, *draft, *inv;

	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	old = ms_update_find(u, true, 0);
	CHECK(backing_of(copy(u, old, 0, PAGES, 0, 0)) == h.backing);
	CHECK(backing_of(copy(u, old, 1, PAGES - 1, LOG, 0)) == h.backing);
	CHECK(backing_of(copy(u, old, PAGES - 1, 1, READONLY, 0)) == h.backing);
	CHECK_EQ(refs(&h), 4);
	CHECK(!backing_of(copy(u, old, 1, PAGES, 0, 0)));
	CHECK(!backing_of(copy(u, old, -(uint64_t)1, PAGES, 0, 0)));
	CHECK(!backing_of(copy(u, NULL, 0, PAGES, 0, 0)));
	draft = copy(u, old, 2, 2, 0, 0);
	CHECK_EQ(ms_update_invalidate(u, old, &inv, NULL), 0);
	CHECK_EQ(refs(&h), 6);
	CHECK_EQ(ms_update_replace(u, old, draft, NULL), 0);
	CHECK_EQ(ms_update_activate(u, inv, draft, NULL), 0);
	CHECK_EQ(refs(&h), 6); /* removed slots and drafts are kept until the end */
	CHECK_EQ(ms_update_end(u, true, NULL), 0);
	CHECK_EQ(refs(&h), 1);
	CHECK_EQ(h.released, 0);
	check_sound(vm);
	end_vm(vm);
	CHECK_EQ(h.released, 1);
}

static void test_readonly_draft(void)
{
	struct ms_vm *vm = new_vm(1);
	struct ms_update *u;
	struct ms_slot *old;
	struct held h;

	hold(&h, MS_BACKING_READONLY);
	CHECK_EQ(map(vm, &h, 0, 0x100, READONLY), 0);
	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	old = ms_update_find(u, true, 0);
	copy(u, old, 0, 4, 0, -EINVAL);
	CHECK_EQ(refs(&h), 2);
	CHECK(backing_of(copy(u, old, 0, 4, READONLY, 0)) == h.backing);
	CHECK(!backing_of(copy(u, old, PAGES, 4, 0, 0)));
	CHECK_EQ(ms_update_end(u, false, NULL), 0);
	CHECK_EQ(refs(&h), 2);
	ms_backing_put(h.backing);
	end_vm(vm);
	CHECK_EQ(h.released, 1);
}

/* Removes the slot that holds the memory. */
static void remove_slot(struct ms_update *u)
{
	struct ms_slot *old = ms_update_find(u, true, 0), *inv;

	CHECK_EQ(ms_update_invalidate(u, old, &inv, NULL), 0);
	CHECK_EQ(ms_update_replace(u, old, NULL, NULL), 0);
	CHECK_EQ(ms_update_activate(u, inv, NULL, NULL), 0);
}

/* The thread holds slots_lock between the steps.  So the memory that it drops there is released at the end. */
static void test_put_between_steps(void)
{
	struct held h, unmapped;
	struct ms_vm *vm = vm_that_holds(&h, 1), *other = new_vm(1);
	struct ms_update *u;

	for (int keep = 0; keep < 2; keep++) {
		hold(&unmapped, 0);
		unmapped.changes = vm;
		CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
		remove_slot(u);
		ms_backing_put(unmapped.backing);
		CHECK_EQ(set(other, 0, 1, 0x100 * (keep + 1), 1, 0), 0); /* takes and releases another lock */
		CHECK_EQ(h.released + unmapped.released, 0);
		CHECK_EQ(ms_update_end(u, keep, NULL), 0);
		CHECK_EQ(unmapped.released, 1);
		CHECK_EQ(unmapped.r, 0);
		CHECK_EQ(h.released, keep);
		check_sound(vm);
	}
	end_vm(vm);
	end_vm(other);
}

static struct ms_update *open_update;

static void abandon_in_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)active;
	(void)old;
	ms_update_abandon(open_update);
	CHECK_EQ(*(unsigned *)opaque, 0);
}

/* The thread leaves its lock, held, to the next call.  It is outside of the update, so the memory is released. */
static void test_put_before_the_update_is_abandoned(bool in_flush)
{
	struct held h, unmapped;
	struct ms_listener abandons = { LISTENER_SIZE, .opaque = &unmapped.released, .flush = abandon_in_flush };
	struct ms_vm *vm = vm_that_holds(&h, 1);
	struct ms_slot *inv;

	hold(&unmapped, 0);
	if (in_flush)
		CHECK_EQ(ms_add_listener(vm, &abandons, NULL), 0);
	CHECK_EQ(ms_update_begin(vm, 0, &open_update, NULL), 0);
	ms_backing_put(unmapped.backing);
	if (!in_flush)
		remove_slot(open_update);
	CHECK_EQ(unmapped.released, 0);
	if (in_flush)
		CHECK_EQ(ms_update_invalidate(open_update, ms_update_find(open_update, true, 0), &inv, NULL), 0);
	else
		ms_update_abandon(open_update);
	CHECK_EQ(unmapped.released, 1);
	check_sound(vm);
	CHECK_EQ(refs(&h), 1);
	ms_vm_destroy(vm);
}

static void *begin_and_leave(void *of)
{
	struct ms_update *u;

	CHECK_EQ(ms_update_begin(of, 0, &u, NULL), 0);
	remove_slot(u);
	return u;
}

static void *begin_put_and_leave(void *unmapped)
{
	struct held *h = unmapped;
	void *u = begin_and_leave(shared);

	ms_backing_put(h->backing);
	CHECK_EQ(h->released, 0);
	return u;
}

/* The end of the update's thread rolls back under ends_lock.  The memory that the thread has dropped is released after
 * that lock. */
static void test_end_of_an_update(void)
{
	struct held h, unmapped;
	pthread_t thread;
	void *u;

	shared = vm_that_holds(&h, 1);
	hold(&unmapped, 0);
	unmapped.changes = new_vm(1);
	CHECK_EQ(pthread_create(&thread, NULL, begin_put_and_leave, &unmapped), 0);
	CHECK_EQ(pthread_join(thread, &u), 0);
	CHECK_EQ(unmapped.released, 1);
	CHECK_EQ(unmapped.r, 0);
	ms_update_abandon(u);
	check_sound(shared);
	CHECK_EQ(refs(&h), 1);
	end_vm(shared);
	CHECK_EQ(h.released, 1);
	end_vm(unmapped.changes);
}

/* A draft that is given up, and a VM that is destroyed with an open update. */
static void test_abandoned_update(void)
{
	struct held h;
	struct ms_vm *vm = vm_that_holds(&h, 1);
	struct ms_update *u;

	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	remove_slot(u);
	ms_update_abandon(u);
	check_sound(vm);
	CHECK_EQ(refs(&h), 1);
	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	copy(u, ms_update_find(u, true, 0), 0, 1, 0, 0);
	ms_vm_destroy(vm);
	CHECK_EQ(h.released, 1);
}

/* ---- random changes ---- */

#define MODEL_VMS 2
#define MODEL_IDS 12u
#define MODEL_MEMORIES 3u

/* The model: which memory each slot holds (0: no memory, raw; i: memory i - 1), or NONE without a slot. */
#define NONE 100u

static struct ms_vm *model_vm[MODEL_VMS];
static unsigned model[MODEL_VMS][MODEL_IDS];
static struct held memories[MODEL_MEMORIES];

static uint64_t model_gfn(uint32_t id)
{
	return 0x100 * (id + 1);
}

static void check_model(void)
{
	uint64_t want[MODEL_MEMORIES] = { 0 };

	for (unsigned v = 0; v < MODEL_VMS; v++)
		for (uint32_t id = 0; id < MODEL_IDS; id++) {
			struct ms_vm *vm = model_vm[v];
			const struct memslot *slot = vm->design->find(vm_active_set(vm, 0), id);
			unsigned m = model[v][id];

			CHECK_EQ(slot != NULL, m != NONE);
			if (!slot)
				continue;
			CHECK(slot->backing == (m ? memories[m - 1].backing : NULL));
			if (m)
				want[m - 1]++;
		}
	for (unsigned m = 0; m < MODEL_MEMORIES; m++) {
		CHECK_EQ(memories[m].released, 0);
		CHECK_EQ(refs(&memories[m]), want[m] + 1);
	}
}

static void create_randomly(struct rng *rng, unsigned v, uint32_t id)
{
	unsigned m = (unsigned)rng_below(rng, MODEL_MEMORIES + 1);
	region_t r = part(id, model_gfn(id), rng_below(rng, 8), 1 + rng_below(rng, 8), rng_below(rng, 2) ? LOG : 0);
	int result = m ? ms_map_backing(model_vm[v], &r, memories[m - 1].backing, NULL, NULL) :
			 ms_set_user_memory_region(model_vm[v], &r, NULL);

	CHECK(model[v][id] != NONE || result == 0);
	if (model[v][id] == NONE)
		model[v][id] = m;
}

static void delete_randomly(unsigned v, uint32_t id)
{
	CHECK_EQ(ms_delete_memslot(model_vm[v], 0, id, NULL), model[v][id] == NONE ? -EINVAL : 0);
	model[v][id] = NONE;
}

static void change_randomly(struct rng *rng, unsigned v, uint32_t id)
{
	uint64_t gfn = model_gfn(id) + rng_below(rng, 2) * 0x20;
	int want = model[v][id] == NONE ? -EINVAL : 0;

	if (rng_below(rng, 2))
		CHECK_EQ(ms_move_memslot(model_vm[v], 0, id, gfn * PAGE, NULL), want);
	else
		CHECK_EQ(ms_set_memslot_flags(model_vm[v], 0, id, LOG, rng_below(rng, 2) ? LOG : 0, NULL), want);
}

/* Makes drafts of some slots and puts some of the drafts into both sets.  Then keeps, ends or abandons the update. */
static void update_randomly(struct rng *rng, unsigned v)
{
	unsigned next[MODEL_IDS];
	bool keep = rng_below(rng, 2);
	struct ms_update *u;

	memcpy(next, model[v], sizeof(next));
	CHECK_EQ(ms_update_begin(model_vm[v], 0, &u, NULL), 0);
	for (uint32_t id = 0; id < MODEL_IDS; id++) {
		uint64_t first = rng_below(rng, PAGES + 8), npages = 1 + rng_below(rng, 16);
		struct ms_memslot value = { model_gfn(id), npages, HVA_BASE + first * PAGE, id, 0, 0, 0 };
		struct ms_slot *old = ms_update_find(u, true, id), *draft;

		if (rng_below(rng, 3))
			continue;
		CHECK_EQ(ms_update_copy(u, old, &value, &draft, NULL), 0);
		if (rng_below(rng, 2))
			continue;
		CHECK_EQ(ms_update_replace(u, old, draft, NULL), 0);
		CHECK_EQ(ms_update_activate(u, old, draft, NULL), 0);
		next[id] = old && first + npages <= PAGES ? next[id] : 0;
	}
	if (rng_below(rng, 4) == 0) {
		ms_update_abandon(u);
		keep = false;
	} else {
		CHECK_EQ(ms_update_end(u, keep, NULL), 0);
	}
	if (keep)
		memcpy(model[v], next, sizeof(next));
	check_sound(model_vm[v]);
}

static void test_random_changes(uint64_t steps)
{
	struct rng rng = rng_stream(1);

	for (unsigned m = 0; m < MODEL_MEMORIES; m++)
		hold(&memories[m], 0);
	for (unsigned v = 0; v < MODEL_VMS; v++) {
		model_vm[v] = new_vm(1);
		for (uint32_t id = 0; id < MODEL_IDS; id++)
			model[v][id] = NONE;
	}
	for (uint64_t i = 0; i < steps; i++) {
		unsigned v = (unsigned)rng_below(&rng, MODEL_VMS);
		uint32_t id = (uint32_t)rng_below(&rng, MODEL_IDS);
		uint64_t what = rng_below(&rng, 10);

		if (what < 4)
			create_randomly(&rng, v, id);
		else if (what < 6)
			delete_randomly(v, id);
		else if (what < 9)
			change_randomly(&rng, v, id);
		else if (design_is("tree"))
			update_randomly(&rng, v);
		check_model();
		check_sound(model_vm[v]);
	}
	for (unsigned m = 0; m < MODEL_MEMORIES; m++)
		ms_backing_put(memories[m].backing);
	for (unsigned v = 0; v < MODEL_VMS; v++)
		end_vm(model_vm[v]);
	for (unsigned m = 0; m < MODEL_MEMORIES; m++)
		CHECK_EQ(memories[m].released, 1);
}

/* ---- readers that keep the memory ---- */

/* A reader takes a reference inside its section and uses the memory outside. */
struct content {
	uint64_t word; /* not atomic: only the references order its accesses */
	struct ms_backing *backing;
};

static _Atomic uint32_t stop;
static uint64_t pins;

static void on_last(void *opaque)
{
	struct content *c = opaque;

	CHECK_EQ(c->word, 42);
	c->word = 0;
	releases++;
	free(c);
}

static void use_memory(uint64_t *nr)
{
	struct ms_backing *backing = NULL;
	const struct memslot *slot;

	CHECK_EQ(ms_read_lock(shared), 0);
	slot = shared->design->search(vm_active_set(shared, 0), 0x100);
	if (slot)
		backing = backing_get(slot->backing);
	CHECK_EQ(ms_read_unlock(shared), 0);
	if (backing) {
		CHECK_EQ(((struct content *)backing->opaque)->word, 42);
		++*nr;
	}
	ms_backing_put(backing);
}

static void *use_memory_often(void *nr)
{
	while (!atomic_load(&stop))
		use_memory(nr);
	return NULL;
}

static void map_new_memory(void)
{
	struct content *c = calloc(1, sizeof(*c));
	region_t r = part(0, 0x100, 0, PAGES, 0);

	CHECK(c);
	c->word = 42;
	CHECK_EQ(ms_backing_create((void *)(uintptr_t)HVA_BASE, PAGES * PAGE, 0, on_last, c, &c->backing), 0);
	CHECK_EQ(ms_map_backing(shared, &r, c->backing, NULL, NULL), 0);
	ms_backing_put(c->backing);
}

#define READERS 2

static void test_readers_keep_it(uint64_t changes)
{
	pthread_t readers[READERS];
	uint64_t nr[READERS] = { 0 };

	shared = new_vm(1);
	atomic_store(&stop, 0);
	for (int i = 0; i < READERS; i++)
		CHECK_EQ(pthread_create(&readers[i], NULL, use_memory_often, &nr[i]), 0);
	for (uint64_t i = 0; i < changes; i++) {
		map_new_memory();
		CHECK_EQ(ms_delete_memslot(shared, 0, 0, NULL), 0);
	}
	map_new_memory();
	use_memory(&pins);
	atomic_store(&stop, 1);
	for (int i = 0; i < READERS; i++) {
		CHECK_EQ(pthread_join(readers[i], NULL), 0);
		pins += nr[i];
	}
	end_vm(shared);
}

/* ---- fork ---- */

/* Parent and child have a copy of the counts each. */
static void test_fork(void)
{
	struct held h;
	struct ms_vm *vm = vm_that_holds(&h, 2);
	region_t r = part(9, 0x900, 0, 1, 0);
	uint64_t before = releases;
	int status;
	pid_t child;

	fflush(NULL);
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		struct ms_vm *own = new_vm(1);

		CHECK_EQ(ms_map_backing(vm, &r, h.backing, NULL, NULL), -EIO);
		CHECK_EQ(ms_delete_memslot(vm, 0, 0, NULL), -EIO);
		CHECK_EQ(ms_map_backing(own, &r, h.backing, NULL, NULL), 0);
		ms_vm_destroy(vm);
		CHECK_EQ(h.released, 0);
		check_sound(own);
		ms_vm_destroy(own);
		CHECK_EQ(h.released, 1);
		_exit(releases == before + 1 ? 0 : 1);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	CHECK_EQ(releases, before);
	CHECK_EQ(refs(&h), 2);
	end_vm(vm);
	CHECK_EQ(h.released, 1);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	test_create();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		test_changes_keep_it();
		test_several_vms();
		test_map_refused();
		test_readonly();
		test_null();
		test_refused_by_a_listener();
		test_release_changes_the_vm();
		test_releases_do_not_nest();
		test_put_inside_a_section();
		test_destroy_inside_a_section();
		test_put_inside_a_hook();
		test_ends_of_threads();
		test_end_of_a_thread_with_tasks();
		test_end_inside_a_section();
		test_grace_period();
		test_random_changes(test_times(20000));
		test_readers_keep_it(test_times(3000));
		test_fork();
	}
	design_name = "tree";
	test_drafts();
	test_readonly_draft();
	test_put_between_steps();
	test_put_before_the_update_is_abandoned(false);
	test_put_before_the_update_is_abandoned(true);
	test_end_of_an_update();
	test_abandoned_update();
	CHECK_EQ(memory_blocks(&backing_memory), 0);
	printf("backings: %" PRIu64 " references of readers\n", pins);
	return test_done("backings", releases, "releases");
}
