/* SPDX-License-Identifier: MIT */
/*
 * test_thread_ends.c - a thread ends inside a hook of its change, or inside the report of a reader that delays it.
 *
 * The next call that takes slots_lock finishes the change without hooks.  If the thread has ended before the last swap
 * of the change, the VM is as before the change; otherwise as after it.  The thread that finishes the change may end in
 * a report too.  The same holds for a close, and for an update whose thread ends in the report of its end
 * (test_update.c has the steps).
 */
#include "fixture.h"

#include <pthread.h>
#include <sched.h>

#if MS_ADDRESS_SANITIZED
#include <sanitizer/asan_interface.h>
#endif

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define LISTENERS 2
#define SPACES 2u
#define SPACE 1u

static struct ms_vm *vm;
static uint64_t endings;

/* ---- the user's code ---- */

enum call { FLUSH, PREPARE, ABORT, COMMIT, REPORT };

static _Thread_local bool may_end; /* false in the main thread: its end would end the test with status 0 */
static unsigned calls, end_at;     /* the thread ends in hook call number end_at; 0: in none */
static enum call last;
static bool refuse;                /* the second listener refuses the change of such a thread */

static unsigned hooks; /* in all threads */

static void call(enum call kind)
{
	hooks++;
	if (!may_end)
		return;
	last = kind;
	if (++calls == end_at)
		pthread_exit(NULL);
}

static _Atomic bool wants_reader, has_reader; /* between the two swaps of a change */

static void await_reader(void)
{
	if (!may_end || !atomic_load(&wants_reader))
		return;
	atomic_store(&has_reader, false);
	atomic_store(&wants_reader, false);
	while (!atomic_load(&has_reader))
		sched_yield();
}

static void on_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)active;
	(void)old;
	call(FLUSH);
}

static int on_prepare(void *opaque, const struct ms_change *change)
{
	(void)change;
	call(PREPARE);
	if (!opaque)
		await_reader();
	return refuse && may_end && opaque ? -EPERM : 0;
}

static void on_abort(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	call(ABORT);
}

static void on_commit(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	call(COMMIT);
}

static void on_report(void *opaque, const struct ms_stall *stall)
{
	(void)opaque;
	(void)stall;
	last = REPORT;
	if (may_end)
		pthread_exit(NULL);
}

static const struct ms_listener listeners[LISTENERS] = {
	{ LISTENER_SIZE, (void *)0, on_prepare, on_abort, on_flush, on_commit },
	{ LISTENER_SIZE, (void *)1, on_prepare, on_abort, on_flush, on_commit },
};

/* ---- the changes ---- */

static int create_one(void)
{
	return set(vm, SPACE, 9, 0x900, 70, LOG);
}

static int delete_one(void)
{
	return set(vm, SPACE, 1, 0, 0, 0);
}

static int move_one(void)
{
	return set(vm, SPACE, 1, 0x900, 70, LOG);
}

static int log_one(void)
{
	return set(vm, SPACE, 2, 0x200, 70, LOG);
}

static int load_three(void)
{
	struct ms_memslot slots[3];

	for (uint32_t i = 0; i < 3; i++)
		slots[i] = (struct ms_memslot){ 0x900 - 0x80 * i, 70, hva_for(SPACE, 10 + i), 10 + i, SPACE, LOG, 0 };
	return ms_load_memslots(vm, SPACE, slots, 3, NULL);
}

/* The memory of slot 1 and of slot 9. */
static struct ms_backing *backing;

static int map(struct ms_vm *of, uint32_t id, uint64_t gfn)
{
	region_t r = region(SPACE, 1, gfn, 70, LOG);

	r.slot = id;
	return ms_map_backing(of, &r, backing, NULL, NULL);
}

static int map_one(void)
{
	return map(vm, 9, 0x900);
}

/* A CREATE, a DELETE and every kind of change between them: slot 1 in two parts, slot 2 in the place of its first part.
 * */
static int change_all(void)
{
	static const struct ms_step steps[] = {
		{ .kind = MS_STEP_SPLIT, .slot = 1, .other = 5, .guest_phys_addr = 0x110 * PAGE },
		{ .kind = MS_STEP_MOVE, .slot = 1, .guest_phys_addr = 0x500 * PAGE },
		{ .kind = MS_STEP_SPLIT, .slot = 5, .other = 6, .guest_phys_addr = 0x120 * PAGE },
		{ .kind = MS_STEP_DELETE, .slot = 5 },
		{ .kind = MS_STEP_MOVE, .slot = 2, .guest_phys_addr = 0xc0 * PAGE },
		{ .kind = MS_STEP_RESIZE, .slot = 2, .memory_size = 8 * PAGE },
	};

	return ms_change_memslots(vm, SPACE, steps, ARRAY_SIZE(steps), NULL);
}

static const struct change_case {
	int (*make)(void);
	unsigned swaps;
	bool flushes_late; /* after the last swap */
} changes[] = {
	{ create_one, 1, false }, { delete_one, 2, false }, { move_one, 2, false },  { log_one, 1, false },
	{ load_three, 1, false }, { map_one, 1, false },    { change_all, 1, true },
};

static struct ms_vm *vm_with_slots(void)
{
	struct ms_vm *of = new_vm(SPACES);
	struct ms_vcpu *vcpu;

	CHECK_EQ(ms_vcpu_create(of, &vcpu, NULL), 0); /* for a later call to reuse */
	ms_vcpu_destroy(vcpu);
	CHECK_EQ(map(of, 1, 0x100), 0);
	CHECK_EQ(set(of, SPACE, 2, 0x200, 70, 0), 0);
	CHECK_EQ(set(of, 0, 1, 0x100, 70, LOG), 0);
	ms_mark_page_dirty(of, SPACE, 0x103);
	for (int i = 0; i < LISTENERS; i++)
		CHECK_EQ(ms_add_listener(of, &listeners[i], NULL), 0);
	return of;
}

/* The VM after a change whose thread does not end. */
static struct picture picture_after(const struct change_case *c, struct ms_stats *held)
{
	struct picture after;

	vm = vm_with_slots();
	CHECK_EQ(c->make(), 0);
	after = picture_of(vm);
	*held = held_by(vm);
	end_vm(vm);
	return after;
}

/* ---- the next call that takes slots_lock ---- */

enum taker { BY_CHECK, BY_REFUSED, BY_UPDATE, BY_VCPU, BY_CLOSE, BY_DESTROY, NR_TAKERS };

static void take(enum taker taker)
{
	struct ms_update *u;
	struct ms_vcpu *vcpu;

	if (taker == BY_CHECK) {
		check_sound(vm);
	} else if (taker == BY_REFUSED) {
		CHECK_EQ(set(vm, SPACE, 1, 1, 1, 8), -EINVAL);
	} else if (taker == BY_UPDATE) {
		CHECK_EQ(ms_update_begin(vm, SPACE, &u, NULL), 0);
		CHECK_EQ(ms_update_end(u, true, NULL), 0);
	} else if (taker == BY_VCPU) {
		CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
		ms_vcpu_destroy(vcpu);
	} else if (taker == BY_CLOSE) {
		CHECK_EQ(ms_vm_close(vm, NULL), 0);
	} else {
		ms_vm_destroy(vm); /* asserts that all memory is freed */
	}
}

static bool takes(enum taker taker)
{
	return taker != BY_UPDATE || design_is("tree");
}

static void *take_and_end(void *taker)
{
	may_end = true;
	take((enum taker)(uintptr_t)taker);
	CHECK(!"the thread ends in a report");
	return NULL;
}

static void check_after(const struct picture *want, const struct ms_stats *held)
{
	struct picture is = picture_of(vm);

	CHECK(same_picture(&is, want));
	CHECK_EQ(held_by(vm).bytes, held->bytes);
	CHECK_EQ(held_by(vm).blocks, held->blocks);
	CHECK_EQ(set(vm, SPACE, 30, 0xf00, 1, LOG), 0); /* the lock is free */
	CHECK_EQ(set(vm, SPACE, 30, 0, 0, 0), 0);
	check_sound(vm);
	end_vm(vm);
}

/* ---- in hooks ---- */

static bool ended; /* false: the change has fewer hook calls than end_at */

static void *make_change(void *of)
{
	const struct change_case *c = of;

	may_end = true;
	ended = true;
	calls = 0;
	CHECK_EQ(c->make(), refuse ? -EPERM : 0);
	ended = false;
	return NULL;
}

static void check_taken(enum taker taker, bool completed, const struct picture *before, const struct ms_stats *held)
{
	uint64_t was_refused = stats_of(vm).refused;
	unsigned before_it = hooks;

	take(taker);
	CHECK_EQ(hooks, before_it);
	if (taker == BY_DESTROY)
		return;
	if (taker == BY_CLOSE) {
		end_vm(vm);
		return;
	}
	CHECK_EQ(stats_of(vm).refused - was_refused, !completed + (taker == BY_REFUSED));
	check_after(before, held);
}

/* Returns whether the change has a hook call number end_at. */
static bool end_in_hook(const struct change_case *c, enum taker taker)
{
	struct picture before, after;
	struct ms_stats held_before, held_after;
	bool completed;

	after = picture_after(c, &held_after);
	vm = vm_with_slots();
	before = picture_of(vm);
	held_before = held_by(vm);
	by_another_thread(make_change, c);
	if (!ended) {
		end_vm(vm);
		return false;
	}
	CHECK(atomic_load(&vm->slots_lock.pending_end)); /* else the next call would wait forever */
	completed = last == COMMIT || (last == FLUSH && c->flushes_late);
	check_taken(taker, completed, completed ? &after : &before, completed ? &held_after : &held_before);
	endings++;
	return true;
}

static void test_hooks(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(changes); i++)
		for (unsigned k = 0; k < 2 * NR_TAKERS; k++) {
			refuse = k % 2;
			for (end_at = 1; takes(k / 2) && end_in_hook(&changes[i], k / 2); end_at++)
				;
			CHECK(!takes(k / 2) || end_at >= 4); /* two prepares, and an abort or commits */
		}
	end_at = 0;
	refuse = false;
}

/* ---- in reports ---- */

static void start(pthread_t *thread, void *(*fn)(void *), const void *arg)
{
	CHECK_EQ(pthread_create(thread, NULL, fn, (void *)(uintptr_t)arg), 0);
}

/* Makes the change in a thread that ends in a report of its swap number `swap`.  This thread is the reader that delays
 * the swap. */
static void end_at_swap(const struct change_case *c, unsigned swap)
{
	pthread_t thread;

	atomic_store(&wants_reader, swap == 2);
	atomic_store(&has_reader, false);
	if (swap == 1)
		CHECK_EQ(ms_read_lock(vm), 0);
	start(&thread, make_change, c);
	if (swap == 2) {
		while (atomic_load(&wants_reader))
			sched_yield();
		CHECK_EQ(ms_read_lock(vm), 0);
		atomic_store(&has_reader, true);
	}
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK(ended && last == REPORT);
}

/* After the first thread, `more_ends` threads take over the wait one after the other, and each ends in its report. */
static void end_in_report(const struct change_case *c, unsigned swap, unsigned more_ends, enum taker taker)
{
	bool completed = swap == c->swaps && !refuse;
	struct picture before, after;
	struct ms_stats held_before, held_after;

	after = picture_after(c, &held_after);
	vm = vm_with_slots();
	CHECK_EQ(ms_set_stall_report(vm, 1, on_report, NULL, NULL), 0);
	CHECK_EQ(ms_read_lock(vm), 0); /* makes the record of this thread */
	ms_read_unlock(vm);
	before = picture_of(vm);
	held_before = held_by(vm);
	end_at_swap(c, swap);
	for (unsigned i = 0; i < more_ends; i++) {
		by_another_thread(take_and_end, (void *)(uintptr_t)BY_CHECK);
		CHECK(atomic_load(&vm->slots_lock.pending_end));
	}
	ms_read_unlock(vm);
	if (taker == BY_CLOSE || taker == BY_DESTROY)
		check_taken(taker, completed, NULL, NULL);
	else
		check_taken(taker, completed, completed ? &after : &before, completed ? &held_after : &held_before);
	endings += 1 + more_ends;
}

static void test_reports(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(changes); i++)
		for (unsigned k = 0; k < 12; k++) {
			unsigned swap = 1 + k % 2, more_ends = k / 4;

			refuse = k / 2 % 2;
			if (swap <= changes[i].swaps && !(refuse && changes[i].swaps == 1))
				end_in_report(&changes[i], swap, more_ends,
					      k % NR_TAKERS == BY_UPDATE ? BY_CHECK : k % NR_TAKERS);
		}
	refuse = false;
}

/* ---- in the report of a close ---- */

static void *close_and_end(void *unused)
{
	may_end = true;
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	CHECK(!"the thread ends in a report");
	return unused;
}

static void test_close(void)
{
	for (unsigned k = 0; k < 2 * NR_TAKERS; k++) {
		if (k / 2 == BY_UPDATE || k / 2 == BY_CHECK || k / 2 == BY_REFUSED || k / 2 == BY_VCPU)
			continue; /* -EBADF, below */
		vm = vm_with_slots();
		CHECK_EQ(ms_set_stall_report(vm, 1, on_report, NULL, NULL), 0);
		CHECK_EQ(ms_read_lock(vm), 0);
		by_another_thread(close_and_end, NULL);
		if (k % 2)
			by_another_thread(take_and_end, (void *)(uintptr_t)BY_CLOSE);
		ms_read_unlock(vm);
		take(k / 2);
		if (k / 2 != BY_DESTROY)
			end_vm(vm);
		endings++;
	}
	vm = vm_with_slots();
	CHECK_EQ(ms_set_stall_report(vm, 1, on_report, NULL, NULL), 0);
	CHECK_EQ(ms_read_lock(vm), 0);
	by_another_thread(close_and_end, NULL);
	ms_read_unlock(vm);
	CHECK_EQ(set(vm, SPACE, 1, 1, 1, 0), -EBADF);
	CHECK_EQ(ms_gfn_to_hva(vm, SPACE, 0x100), MS_HVA_ERR_BAD);
	end_vm(vm);
}

/* ---- in a hook of the end of the VM ---- */

static unsigned closed_calls, end_at_closed; /* the thread ends in closed hook number end_at_closed */

static void on_closed(void *opaque)
{
	(void)opaque;
	if (++closed_calls == end_at_closed)
		pthread_exit(NULL);
}

static void *close_vm(void *unused)
{
	ms_vm_close(vm, NULL);
	CHECK(!"the thread ends in a hook");
	return unused;
}

static void *destroy_vm(void *unused)
{
	ms_vm_destroy(vm);
	CHECK(!"the thread ends in a hook");
	return unused;
}

static struct ms_listener ends[2] = {
	{ LISTENER_SIZE, .closed = on_closed },
	{ LISTENER_SIZE, .closed = on_closed },
};

static void make_vm_that_ends(void)
{
	vm = vm_with_slots();
	for (int i = 0; i < 2; i++)
		CHECK_EQ(ms_add_listener(vm, &ends[i], NULL), 0);
	CHECK_EQ(atomic_load(&backing->refs), 2);
	closed_calls = 0;
}

/* The next call that takes the lock frees the slots, without a further hook. */
static void test_closed_by_close(enum taker taker)
{
	make_vm_that_ends();
	by_another_thread(close_vm, NULL);
	CHECK(atomic_load(&vm->slots_lock.pending_end));
	CHECK_EQ(atomic_load(&backing->refs), 2);
	CHECK_EQ(ms_gfn_to_hva(vm, SPACE, 0x100), MS_HVA_ERR_BAD);
	if (taker == BY_REFUSED) {
		CHECK_EQ(set(vm, SPACE, 1, 1, 1, 0), -EBADF);
		CHECK_EQ(atomic_load(&backing->refs), 1);
	}
	if (taker != BY_DESTROY)
		end_vm(vm);
	else
		ms_vm_destroy(vm);
}

/* The end of the thread frees the VM. */
static void test_closed_by_destroy(void)
{
	make_vm_that_ends();
	by_another_thread(destroy_vm, NULL);
#if MS_ADDRESS_SANITIZED
	CHECK(__asan_address_is_poisoned(vm)); /* it is freed */
#endif
}

static void test_closed(void)
{
	static const enum taker takers[] = { BY_REFUSED, BY_CLOSE, BY_DESTROY };

	for (end_at_closed = 1; end_at_closed <= 2; end_at_closed++)
		for (size_t k = 0; k <= ARRAY_SIZE(takers); k++, endings++) {
			if (k < ARRAY_SIZE(takers))
				test_closed_by_close(takers[k]);
			else
				test_closed_by_destroy();
			CHECK_EQ(closed_calls, end_at_closed);
			CHECK_EQ(atomic_load(&backing->refs), 1);
		}
}

/* ---- in a hook of a VM inside a hook of another ---- */

static struct ms_vm *outer;

static int change_inner(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	if (may_end)
		set(vm, SPACE, 9, 0x900, 70, LOG);
	return 0;
}

static void *change_outer(void *unused)
{
	may_end = true;
	calls = 0;
	CHECK_EQ(set(outer, 0, 3, 3, 1, 0), 0);
	CHECK(!"the thread ends in the inner hook");
	return unused;
}

static void test_nested(void)
{
	static const struct ms_listener nests = { LISTENER_SIZE, .prepare = change_inner };

	vm = vm_with_slots();
	outer = new_vm(1);
	CHECK_EQ(ms_add_listener(outer, &nests, NULL), 0);
	end_at = 1;
	by_another_thread(change_outer, NULL);
	end_at = 0;
	CHECK_EQ(ms_nr_memslots(vm) + ms_nr_memslots(outer), 3);
	check_sound(vm);
	check_sound(outer);
	CHECK_EQ(set(outer, 0, 3, 3, 1, 0), 0);
	end_vm(outer);
	end_vm(vm);
	endings++;
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	CHECK_EQ(ms_backing_create((void *)(uintptr_t)hva_for(SPACE, 1), 70 * PAGE, 0, NULL, NULL, &backing), 0);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		test_hooks();
		test_reports();
		test_close();
		test_closed();
		test_nested();
	}
	CHECK_EQ(atomic_load(&backing->refs), 1);
	ms_backing_put(backing);
	return test_done("thread ends", endings, "threads that ended in hooks and reports");
}
