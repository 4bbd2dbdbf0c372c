/* SPDX-License-Identifier: MIT */
/*
 * test_vm.c - calls that wait for slots_lock, and polls that end the wait; a change whose hook leaves a section open.
 */
#include "fixture.h"

#include <pthread.h>
#include <sched.h>

static struct ms_vm *vm;
static uint64_t calls;

/* ---- a thread that holds the lock, and polls ---- */

static _Atomic bool held, let_go;
static _Atomic uint32_t polls;
static uint32_t polls_to_wait; /* the number of polls that return 0 */

static void *hold(void *unused)
{
	struct ms_update *update;

	CHECK_EQ(ms_update_begin(vm, 0, &update, NULL), 0);
	atomic_store(&held, true);
	while (!atomic_load(&let_go))
		sched_yield();
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	return unused;
}

static int poll_counts(void)
{
	return atomic_fetch_add(&polls, 1) >= polls_to_wait;
}

static int poll_lets_go(void)
{
	if (atomic_fetch_add(&polls, 1) == 3)
		atomic_store(&let_go, true);
	return 0;
}

/* A poll may make any call, of another VM and of this one. */
static int poll_calls(void)
{
	struct ms_vm *other = new_vm(1);

	CHECK_EQ(set(other, 0, 1, 1, 1, 0), 0);
	end_vm(other);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 1), hva_for(0, 1));
	if (atomic_fetch_add(&polls, 1))
		return 0;
	atomic_store(&let_go, true);
	CHECK_EQ(set(vm, 0, 7, 700, 1, 0), 0);
	return 0;
}

static pthread_t begin_hold(ms_poll_fn *poll)
{
	pthread_t thread;

	vm = new_vm(1);
	CHECK_EQ(set(vm, 0, 1, 1, 1, MS_MEM_LOG_DIRTY_PAGES), 0);
	atomic_store(&held, false);
	atomic_store(&let_go, false);
	atomic_store(&polls, 0);
	ms_set_poll(poll);
	CHECK_EQ(pthread_create(&thread, NULL, hold, NULL), 0);
	while (!atomic_load(&held))
		sched_yield();
	return thread;
}

static void end_hold(pthread_t thread)
{
	atomic_store(&let_go, true);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	ms_set_poll(NULL);
	CHECK_EQ(set(vm, 0, 9, 900, 1, 0), 0); /* the lock still works */
	check_sound(vm);
	end_vm(vm);
}

/* ---- all calls that take the lock ---- */

static const struct ms_listener listener = { LISTENER_SIZE };

static int call_set(struct ms_error *err)
{
	region_t r = region(0, 2, 20, 1, 0);

	return ms_set_user_memory_region(vm, &r, err);
}

static int call_load(struct ms_error *err)
{
	struct ms_memslot slot = { 20, 1, HVA_BASE, 2, 0, 0, 0 };

	return ms_load_memslots(vm, 0, &slot, 1, err);
}

static int call_listener(struct ms_error *err)
{
	return ms_add_listener(vm, &listener, err);
}

static int call_vcpu(struct ms_error *err)
{
	struct ms_vcpu *vcpu;

	return ms_vcpu_create(vm, &vcpu, err);
}

static int call_get_log(struct ms_error *err)
{
	uint64_t word;
	size_t nwords;

	return ms_get_dirty_log(vm, 0, 1, &word, 1, &nwords, err);
}

static int call_protect(struct ms_error *err)
{
	return ms_set_manual_dirty_log_protect(vm, 1, err);
}

static int call_begin(struct ms_error *err)
{
	struct ms_update *update;

	return ms_update_begin(vm, 0, &update, err);
}

static int call_check(struct ms_error *err)
{
	struct ms_violation violation;

	return ms_check(vm, &violation, err);
}

static int call_close(struct ms_error *err)
{
	return ms_vm_close(vm, err);
}

static int (*const takers[])(struct ms_error *err) = { call_set,     call_load,  call_listener, call_vcpu, call_get_log,
						       call_protect, call_begin, call_check,    call_close };

/* A poll ends the wait, at the first call or later: -EINTR, and nothing has changed. */
static void test_poll_ends_the_wait(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(takers); i++)
		for (polls_to_wait = 0; polls_to_wait < 3; polls_to_wait++) {
			pthread_t thread = begin_hold(poll_counts);
			struct picture before = picture_of(vm), after;
			struct ms_error err = { 0 };

			CHECK_EQ(takers[i](&err), -EINTR);
			CHECK_EQ(err.rule, MS_RULE_INTERRUPTED);
			CHECK_EQ(atomic_load(&polls), polls_to_wait + 1);
			after = picture_of(vm);
			CHECK(same_picture(&before, &after));
			CHECK_EQ(before.generations, after.generations);
			end_hold(thread);
			calls++;
		}
}

static void test_poll_does_not_end_the_wait(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(takers) - 1; i++) {
		struct ms_error err = { 0 };
		pthread_t thread;

		if (takers[i] == call_begin) /* the update would have to end first */
			continue;
		thread = begin_hold(poll_lets_go);
		CHECK_EQ(takers[i](&err), 0);
		CHECK(atomic_load(&polls) >= 4);
		if (takers[i] == call_listener)
			CHECK_EQ(ms_remove_listener(vm, &listener, NULL), 0);
		end_hold(thread);
		calls++;
	}
}

static void test_poll_that_calls(void)
{
	pthread_t thread = begin_hold(poll_calls);
	struct ms_error err;

	CHECK_EQ(call_set(&err), 0);
	CHECK_EQ(ms_nr_memslots(vm), 3);
	end_hold(thread);
	calls++;
}

/* A call that does not wait calls no poll. */
static void test_no_wait_no_poll(void)
{
	polls_to_wait = 0;
	atomic_store(&polls, 0);
	ms_set_poll(poll_counts);
	vm = new_vm(1);
	CHECK_EQ(call_set(NULL), 0);
	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(call_set(NULL), -EDEADLK);
	ms_read_unlock(vm);
	CHECK_EQ(atomic_load(&polls), 0);
	ms_set_poll(NULL);
	end_vm(vm);
	calls++;
}

/* ---- a section that a hook leaves open ---- */

static int enter(void *times, const struct ms_change *change)
{
	(void)change;
	for (uintptr_t i = 0; i < (uintptr_t)times; i++)
		CHECK_EQ(ms_read_lock(vm), 0);
	return 0;
}

static void *change_elsewhere(void *done)
{
	CHECK_EQ(set(vm, 0, 5, 500, 1, 0), 0);
	atomic_store((_Atomic bool *)done, true);
	return NULL;
}

/* The change, and its second swap, do not wait for their own thread; changes of other threads do. */
static void test_section_left_open(uintptr_t times)
{
	const struct ms_listener enters = { LISTENER_SIZE, .opaque = (void *)times, .prepare = enter };
	_Atomic bool done = false;
	pthread_t thread;

	vm = new_vm(1);
	CHECK_EQ(set(vm, 0, 1, 1, 1, 0), 0);
	CHECK_EQ(ms_add_listener(vm, &enters, NULL), 0);
	CHECK_EQ(set(vm, 0, 1, 10, 1, 0), 0);
	CHECK_EQ(set(vm, 0, 1, 1, 1, 0), -EDEADLK);
	CHECK_EQ(ms_remove_listener(vm, &enters, NULL), -EDEADLK);
	CHECK_EQ(pthread_create(&thread, NULL, change_elsewhere, &done), 0);
	usleep(20000);
	for (uintptr_t i = 1; i < times; i++)
		ms_read_unlock(vm);
	CHECK(!atomic_load(&done));
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 500), MS_HVA_ERR_BAD); /* though the set that is edited now has it */
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 10), hva_for(0, 1));
	ms_read_unlock(vm);
	/* The other change runs the hook too, in its own thread, which then ends. */
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK(atomic_load(&done));
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 10), hva_for(0, 1));
	CHECK_EQ(ms_remove_listener(vm, &enters, NULL), 0);
	check_sound(vm);
	end_vm(vm);
	calls++;
}

/* ---- destroying a VM while a section stays open ---- */

static void stall_fails(void *unused, const struct ms_stall *stall)
{
	(void)unused;
	(void)stall;
	CHECK(!"the end of a VM waits for a reader");
}

/* The thread outlives the VM and does not use it again. */
static void *stay_inside(void *hva)
{
	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 1), *(const uint64_t *)hva);
	atomic_store(&held, true);
	while (!atomic_load(&let_go))
		sched_yield();
	return NULL;
}

/* Abandons the update.  The roll-back is published, but its grace period is deferred; inside a section of another VM
 * the whole end is deferred. */
static void abandon_update(struct ms_update *update, bool in_section)
{
	struct ms_vm *other = new_vm(1);

	if (in_section)
		CHECK_EQ(ms_read_lock(other), 0);
	ms_update_abandon(update);
	if (in_section)
		ms_read_unlock(other);
	end_vm(other);
	CHECK(atomic_load(&vm->slots_lock.pending_end));
}

static void test_destroy_during_a_section(bool in_section)
{
	uint64_t hva = in_section ? MS_HVA_ERR_BAD : hva_for(0, 1);
	struct ms_update *update;
	pthread_t thread;

	vm = new_vm(1);
	CHECK_EQ(set(vm, 0, 1, 1, 1, MS_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(ms_set_stall_report(vm, 1, stall_fails, NULL, NULL), 0);
	CHECK_EQ(ms_update_begin(vm, 0, &update, NULL), 0);
	CHECK_EQ(ms_update_replace(update, ms_update_find(update, true, 1), NULL, NULL), 0);
	CHECK_EQ(ms_update_swap(update, NULL), 0);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 1), MS_HVA_ERR_BAD);
	abandon_update(update, in_section);
	atomic_store(&held, false);
	atomic_store(&let_go, false);
	CHECK_EQ(pthread_create(&thread, NULL, stay_inside, &hva), 0);
	while (!atomic_load(&held))
		sched_yield();
	ms_vm_destroy(vm); /* asserts that nothing is left */
	atomic_store(&let_go, true);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	calls++;
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		test_no_wait_no_poll();
		test_section_left_open(1);
		test_section_left_open(3);
	}
	design_name = "tree";
	test_poll_ends_the_wait();
	test_poll_does_not_end_the_wait();
	test_poll_that_calls();
	test_destroy_during_a_section(false);
	test_destroy_during_a_section(true);
	return test_done("vm", calls, "calls that may wait");
}
