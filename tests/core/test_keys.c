/* SPDX-License-Identifier: MIT */
/*
 * test_keys.c - a process without free pthread keys, and a thread without memory for the value of a key.
 *
 * The library needs two keys, for the functions that run when a thread ends.  Without them ms_vm_create() fails, and
 * the library touches no key of other code.  The keys are created with the first VM, so each case is a process of its
 * own.
 * The linker redirects pthread_setspecific() and pthread_atfork() to this file (CMakeLists.txt).
 */
#include "fixture.h"

#include <pthread.h>
#include <sys/wait.h>

static uint64_t cases;

/* ---- functions of the C library that fail ---- */

int __real_pthread_setspecific(pthread_key_t key, const void *value);
int __real_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void));
int __wrap_pthread_setspecific(pthread_key_t key, const void *value);
int __wrap_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void));

static _Thread_local bool no_values;
static int atforks_until_failure = -1;

int __wrap_pthread_setspecific(pthread_key_t key, const void *value)
{
	return no_values ? ENOMEM : __real_pthread_setspecific(key, value);
}

int __wrap_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
	return atforks_until_failure-- == 0 ? ENOMEM : __real_pthread_atfork(prepare, parent, child);
}

/* ---- keys of other code ---- */

static pthread_key_t keys[4096];
static size_t nr_keys;
static _Atomic unsigned wrong_values;

static void check_own_value(void *value)
{
	if (value != &nr_keys)
		atomic_fetch_add(&wrong_values, 1);
}

/* Creates keys until only `spare` are left. */
static void take_keys(size_t spare)
{
	while (nr_keys < ARRAY_SIZE(keys) && !pthread_key_create(&keys[nr_keys], check_own_value))
		nr_keys++;
	CHECK(nr_keys > spare && nr_keys < ARRAY_SIZE(keys));
	while (spare--)
		CHECK_EQ(pthread_key_delete(keys[--nr_keys]), 0);
}

static void *keep_values(void *unused)
{
	struct ms_config config = default_config(1);
	struct ms_vm *vm;

	for (size_t i = 0; i < nr_keys; i++)
		CHECK_EQ(__real_pthread_setspecific(keys[i], &nr_keys), 0);
	CHECK_EQ(ms_vm_create(&config, &vm), -EAGAIN);
	CHECK(!vm);
	for (size_t i = 0; i < nr_keys; i++)
		CHECK_EQ(pthread_getspecific(keys[i]), &nr_keys);
	return unused;
}

static void use_vm(void)
{
	struct ms_vm *vm = new_vm(1);
	struct ms_update *u;

	CHECK_EQ(set(vm, 0, 1, 1, 1, 0), 0);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 1), hva_for(0, 1));
	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	CHECK_EQ(ms_update_end(u, true, NULL), 0);
	end_vm(vm);
}

/* When keys are free again, VMs work. */
static void no_keys(size_t spare)
{
	take_keys(spare);
	by_another_thread(keep_values, NULL);
	CHECK_EQ(atomic_load(&wrong_values), 0);
	take_keys(2);
	use_vm();
}

static void no_key_at_all(void)
{
	no_keys(0);
}

static void one_key_short(void)
{
	no_keys(1);
}

/* ---- no memory ---- */

static void no_atfork(int until)
{
	struct ms_config config = default_config(1);
	struct ms_vm *vm;

	atforks_until_failure = until;
	CHECK_EQ(ms_vm_create(&config, &vm), -ENOMEM);
	CHECK(!vm);
}

static void no_first_atfork(void)
{
	no_atfork(0);
}

static void no_second_atfork(void)
{
	no_atfork(1);
}

/* Without the value of the key no destructor would return a record of this thread.  So lookups use the shared record,
 * and ms_read_lock() fails. */
static void *look_without_values(void *of)
{
	struct ms_vm *vm = of;
	struct ms_update *u;
	struct ms_error err;
	uint64_t blocks = stats_of(vm).blocks;

	no_values = true;
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 1), hva_for(0, 1));
	CHECK_EQ(ms_read_lock(vm), -ENOMEM);
	CHECK_EQ(stats_of(vm).blocks, blocks);
	CHECK_EQ(ms_update_begin(vm, 0, &u, &err), -ENOMEM);
	CHECK_EQ(err.rule, MS_RULE_NO_MEMORY);
	CHECK_EQ(stats_of(vm).blocks, blocks);
	no_values = false;
	CHECK_EQ(ms_read_lock(vm), 0); /* the next section tries again */
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 1), hva_for(0, 1));
	return NULL; /* the section is open: the end of the thread ends it */
}

static void no_value(void)
{
	struct ms_vm *vm = new_vm(1);

	CHECK_EQ(set(vm, 0, 1, 1, 1, 0), 0);
	by_another_thread(look_without_values, vm);
	CHECK_EQ(set(vm, 0, 1, 0, 0, 0), 0);
	check_sound(vm);
	end_vm(vm);
}

static int count_call(void *opaque, const struct ms_change *change)
{
	(void)change;
	++*(unsigned *)opaque;
	return 0;
}

/* The change fails before it has called a hook or made a swap. */
static void check_unwatched(struct ms_vm *vm, region_t r)
{
	struct ms_error err = { 0 };
	struct picture before = picture_of(vm);
	struct ms_stats stats = held_by(vm);

	CHECK_EQ(ms_set_user_memory_region(vm, &r, &err), -ENOMEM);
	CHECK_EQ(err.rule, MS_RULE_NO_MEMORY);
	check_only_refused(vm, &before, &stats);
}

static void check_unwatched_load(struct ms_vm *vm)
{
	struct ms_memslot list[] = { { .base_gfn = 64, .npages = 1, .id = 7 },
				     { .base_gfn = 32, .npages = 1, .id = 8 } };
	struct picture before = picture_of(vm);
	struct ms_stats stats = held_by(vm);

	CHECK_EQ(ms_load_memslots(vm, 0, list, ARRAY_SIZE(list), NULL), -ENOMEM);
	check_only_refused(vm, &before, &stats);
}

/* A listener's hook may end the thread, so a change of a VM with listeners fails if the thread cannot be watched. */
static void *change_without_values(void *of)
{
	struct ms_vm *vm = of;

	no_values = true;
	check_unwatched(vm, region(0, 4, 8, 1, MS_MEM_LOG_DIRTY_PAGES));
	check_unwatched(vm, region(0, 2, 0, 0, 0));
	check_unwatched(vm, region(0, 2, 16, 2, 0));
	check_unwatched(vm, region(0, 2, 4, 2, MS_MEM_LOG_DIRTY_PAGES));
	check_unwatched_load(vm);
	no_values = false;
	return NULL;
}

static void no_value_for_a_change(void)
{
	unsigned calls = 0;
	struct ms_listener listener = { LISTENER_SIZE, .opaque = &calls, .prepare = count_call };

	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		struct ms_vm *vm = new_vm(1);

		for (uint32_t id = 1; id <= 3; id++)
			CHECK_EQ(set(vm, 0, id, 2 * id, 2, 0), 0);
		CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
		by_another_thread(change_without_values, vm);
		CHECK_EQ(calls, 0);
		CHECK_EQ(set(vm, 0, 2, 16, 2, 0), 0);
		CHECK_EQ(set(vm, 0, 2, 0, 0, 0), 0);
		CHECK_EQ(calls, 2);
		calls = 0;
		check_sound(vm);
		end_vm(vm);
	}
}

static void in_a_process(void (*test)(void))
{
	int status = -1;
	pid_t child;

	fflush(NULL);
	child = fork();
	if (!child) {
		alarm(60);
		test();
		exit(0);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	cases++;
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	in_a_process(no_key_at_all);
	in_a_process(one_key_short);
	in_a_process(no_first_atfork);
	in_a_process(no_second_atfork);
	in_a_process(no_value);
	in_a_process(no_value_for_a_change);
	return test_done("keys", cases, "processes");
}
