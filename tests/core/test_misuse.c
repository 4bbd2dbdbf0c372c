/* SPDX-License-Identifier: MIT */
/*
 * test_misuse.c - calls that a program should not make: the error of each, and that it changes nothing.
 *
 * Handles of other updates and other VMs, and pointers that are no handles; NULL in place of memory; numbers out of
 * range; an unlock without a lock.  A misuse that the engine does not notice corrupts memory, so this test also runs
 * under AddressSanitizer.  test_update_model.c mixes bad handles with good ones.
 */
#include "fixture.h"

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define SPACES 2u
#define IDS 40u

static uint64_t refused;

static struct ms_vm *vm_with_slots(void)
{
	struct ms_vm *vm = new_vm(SPACES);

	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		for (uint32_t id = 0; id < IDS; id++)
			CHECK_EQ(set(vm, as_id, id + as_id, 16 * id, 8, id % 2 ? LOG : 0), 0);
	return vm;
}

static struct ms_update *begin_update(struct ms_vm *vm, uint32_t as_id)
{
	struct ms_update *u;

	CHECK_EQ(ms_update_begin(vm, as_id, &u, NULL), 0);
	return u;
}

/* ---- pointers that are no handles of an update ---- */

static const struct ms_memslot value = { 0x5000, 1, HVA_BASE, 900, 0, LOG, 0 };

static void check_rule(int r, const struct ms_error *err, int code, enum ms_rule rule)
{
	CHECK_EQ(r, code);
	CHECK_EQ(err->rule, rule);
	CHECK(no_slot(&err->other)); /* nothing was read through it */
	refused++;
}

/* Passes the bad handle in each parameter of each step. */
static void check_bad_handle(struct ms_update *u, struct ms_slot *bad_handle)
{
	struct ms_slot *own = ms_update_find(u, true, 5), *out = NULL;
	struct ms_memslot got;
	struct ms_error err;

	check_rule(ms_update_replace(u, bad_handle, NULL, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_replace(u, NULL, bad_handle, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_replace(u, own, bad_handle, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_replace(u, bad_handle, own, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_activate(u, bad_handle, NULL, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_activate(u, NULL, bad_handle, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_invalidate(u, bad_handle, &out, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_copy(u, bad_handle, &value, &out, &err), &err, -EINVAL, MS_RULE_HANDLE);
	CHECK(!out);
	CHECK_EQ(ms_update_value(u, bad_handle, &got), -EINVAL);
}

/* Pointers that a program may pass by mistake in place of a handle. */
#define BAD_HANDLES_MAX 400

struct bad_handles {
	struct ms_slot *slot[BAD_HANDLES_MAX];
	size_t nr;
};

static void add_bad_handle(struct bad_handles *s, const void *pointer)
{
	CHECK(s->nr < BAD_HANDLES_MAX);
	s->slot[s->nr++] = (struct ms_slot *)(uintptr_t)pointer;
}

static void add_set(struct bad_handles *s, struct ms_update *u)
{
	struct ms_slot *slots[IDS];
	size_t nr = ms_update_slots(u, true, slots, IDS);

	for (size_t i = 0; i < nr && i < IDS; i++)
		add_bad_handle(s, slots[i]);
}

/* A draft, an INVALID copy and a removed slot.  The end of this update frees them, before the test uses the handles. */
static void add_freed(struct bad_handles *s, struct ms_vm *vm)
{
	struct ms_slot *draft, *inv, *removed;
	struct ms_update *u = begin_update(vm, 0);

	CHECK_EQ(ms_update_copy(u, NULL, &value, &draft, NULL), 0);
	CHECK_EQ(ms_update_invalidate(u, ms_update_find(u, true, 3), &inv, NULL), 0);
	removed = ms_update_find(u, false, 7);
	CHECK_EQ(ms_update_replace(u, removed, NULL, NULL), 0);
	CHECK_EQ(ms_update_swap(u, NULL), 0);
	CHECK_EQ(ms_update_replace(u, ms_update_find(u, false, 7), NULL, NULL), 0);
	CHECK_EQ(ms_update_replace(u, ms_update_find(u, true, 3), NULL, NULL), -EINVAL); /* it is in the other set */
	CHECK_EQ(ms_update_replace(u, ms_update_find(u, false, 3), NULL, NULL), 0);
	CHECK_EQ(ms_update_swap(u, NULL), 0);
	CHECK_EQ(ms_update_replace(u, ms_update_find(u, false, 3), NULL, NULL), 0);
	CHECK_EQ(ms_update_end(u, true, NULL), 0);
	add_bad_handle(s, draft);
	add_bad_handle(s, inv);
	add_bad_handle(s, removed);
}

/* Numbers, addresses inside a slot and close to it, other memory of the VM and of the program. */
static void add_numbers(struct bad_handles *s, struct ms_vm *vm)
{
	static const uint64_t numbers[] = {
		1, 7, 8, 64, 4096, 1u << 31, UINT64_MAX, UINT64_MAX - 71, (uint64_t)1 << 63
	};
	const struct memslot *slot = vm->design->find(vm_active_set(vm, 0), 9);

	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
		add_bad_handle(s, (const void *)(uintptr_t)numbers[i]);
	for (intptr_t away = -64; away <= 64; away += 8)
		if (away)
			add_bad_handle(s, (const void *)((intptr_t)slot + away));
	add_bad_handle(s, vm);
	add_bad_handle(s, vm->as);
	add_bad_handle(s, s);
	add_bad_handle(s, "a text");
}

static void test_bad_handles(void)
{
	struct ms_vm *vm = vm_with_slots(), *other = vm_with_slots();
	struct ms_update *theirs = begin_update(other, 0), *u;
	struct bad_handles s = { .nr = 0 };
	struct picture before, after;

	add_set(&s, theirs);
	add_freed(&s, vm);
	u = begin_update(vm, 1);
	add_set(&s, u); /* handles of an update of another address space, which has ended */
	CHECK_EQ(ms_update_end(u, true, NULL), 0);
	add_numbers(&s, vm);
	before = picture_of(vm);
	u = begin_update(vm, 0);
	for (size_t i = 0; i < s.nr; i++)
		check_bad_handle(u, s.slot[i]);
	CHECK_EQ(ms_update_end(u, true, NULL), 0);
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	CHECK_EQ(before.generations, after.generations);
	CHECK_EQ(ms_update_end(theirs, true, NULL), 0);
	check_sound(vm);
	check_sound(other);
	end_vm(other);
	end_vm(vm);
}

/* Handles of another VM that was destroyed, with all of its memory. */
static void test_handles_of_a_destroyed_vm(void)
{
	struct ms_vm *vm = vm_with_slots(), *other = vm_with_slots();
	struct bad_handles s = { .nr = 0 };
	struct ms_update *u;

	add_set(&s, begin_update(other, 0));
	ms_vm_destroy(other);
	u = begin_update(vm, 0);
	for (size_t i = 0; i < s.nr; i++)
		check_bad_handle(u, s.slot[i]);
	CHECK_EQ(ms_update_end(u, true, NULL), 0);
	end_vm(vm);
}

/* After a step has refused a draft, an old handle with the draft's address is still invalid. */
static void test_address_of_a_refused_draft(void)
{
	const struct ms_memslot far = {
		((uint64_t)1 << 40) - 1, 2, HVA_BASE, 900, 0, LOG, 0
	}; /* beyond the last page */
	struct ms_vm *vm = vm_with_slots();
	struct ms_update *u = begin_update(vm, 0);
	struct ms_slot *draft, *again;
	struct ms_error err;

	CHECK_EQ(ms_update_copy(u, NULL, &value, &draft, NULL), 0);
	CHECK_EQ(ms_update_end(u, true, NULL), 0);
	u = begin_update(vm, 0);
	CHECK_EQ(ms_update_copy(u, NULL, &far, &again, &err), -EINVAL);
	CHECK_EQ(err.rule, MS_RULE_GPA_LIMIT);
	check_bad_handle(u, draft);
	memory_fail(&vm->memory, 2, false); /* the log */
	CHECK_EQ(ms_update_copy(u, NULL, &value, &again, &err), -ENOMEM);
	memory_fail(&vm->memory, 0, false);
	check_bad_handle(u, draft);
	CHECK_EQ(ms_update_copy(u, NULL, &value, &again, NULL), 0);
	CHECK_EQ(again, draft); /* now the same address is a valid handle */
	CHECK_EQ(ms_update_replace(u, NULL, draft, NULL), 0);
	CHECK_EQ(ms_update_end(u, false, NULL), 0);
	end_vm(vm);
}

/* The handle of a slot that steps have removed from both sets is valid until the end. */
static void test_removed_slot_is_a_handle(void)
{
	struct ms_vm *vm = vm_with_slots();
	struct ms_update *u = begin_update(vm, 0);
	struct ms_slot *slot = ms_update_find(u, true, 5), *copy;
	struct ms_memslot got;

	CHECK_EQ(ms_update_replace(u, slot, NULL, NULL), 0);
	CHECK_EQ(ms_update_activate(u, slot, NULL, NULL), 0);
	CHECK(!ms_update_find(u, true, 5) && !ms_update_find(u, false, 5));
	CHECK_EQ(ms_update_value(u, slot, &got), 0);
	CHECK_EQ(got.id, 5);
	CHECK_EQ(ms_update_copy(u, slot, &got, &copy, NULL), 0);
	CHECK_EQ(ms_update_replace(u, NULL, slot, NULL), 0);
	CHECK_EQ(ms_update_end(u, false, NULL), 0);
	check_sound(vm);
	end_vm(vm);
}

/* ---- no update ---- */

static void test_no_update(void)
{
	struct ms_slot *out = NULL;
	struct ms_memslot got;
	struct ms_error err;

	check_rule(ms_update_replace(NULL, NULL, NULL, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_activate(NULL, NULL, NULL, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_swap(NULL, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_invalidate(NULL, NULL, &out, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_copy(NULL, NULL, &value, &out, &err), &err, -EINVAL, MS_RULE_HANDLE);
	check_rule(ms_update_end(NULL, true, &err), &err, -EINVAL, MS_RULE_HANDLE);
	CHECK_EQ(ms_update_value(NULL, NULL, &got), -EINVAL);
	CHECK_EQ(ms_update_slots(NULL, true, &out, 1), 0);
	CHECK(!ms_update_find(NULL, true, 1));
	ms_update_abandon(NULL);
	ms_vm_destroy(NULL);
	ms_vcpu_destroy(NULL);
	CHECK(!out);
}

/* ---- NULL in place of memory ---- */

static void test_null_in_update(void)
{
	struct ms_vm *vm = vm_with_slots();
	struct ms_update *u;
	struct ms_slot *slot, *out;
	struct ms_error err;
	uint64_t gen;

	check_rule(ms_update_begin(vm, 0, NULL, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	check_sound(vm); /* the lock is free */
	u = begin_update(vm, 0);
	slot = ms_update_find(u, true, 5);
	gen = ms_generation(vm, 0);
	check_rule(ms_update_copy(u, slot, NULL, &out, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	check_rule(ms_update_copy(u, slot, &value, NULL, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	check_rule(ms_update_invalidate(u, slot, NULL, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	CHECK_EQ(ms_generation(vm, 0), gen);
	CHECK_EQ(ms_update_value(u, slot, NULL), -EFAULT);
	CHECK_EQ(ms_update_slots(u, true, NULL, SIZE_MAX), IDS);
	CHECK_EQ(ms_update_end(u, true, NULL), 0);
	end_vm(vm);
}

static void test_null_in_changes(struct ms_vm *vm)
{
	/* the first version of the struct ended here */
	static const struct ms_listener small = { .size = offsetof(struct ms_listener, prepare_many) - 1 };
	struct picture before = picture_of(vm), after;
	struct ms_error err;

	check_rule(ms_set_user_memory_region(vm, NULL, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	check_rule(ms_set_internal_memory_region(vm, NULL, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	check_rule(ms_load_memslots(vm, 0, NULL, 1, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	check_rule(ms_load_memslots(vm, 0, NULL, SIZE_MAX, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	check_rule(ms_load_memslots(vm, 0, &value, (size_t)1 << 61, &err), &err, -ENOMEM, MS_RULE_NO_MEMORY);
	check_rule(ms_load_memslots(vm, 0, &value, SIZE_MAX, &err), &err, -ENOMEM, MS_RULE_NO_MEMORY);
	CHECK_EQ(ms_load_memslots(vm, 0, NULL, 0, NULL), 0);
	check_rule(ms_free_slot_id(vm, 0, NULL, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	check_rule(ms_add_listener(vm, NULL, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	check_rule(ms_add_listener(vm, &small, &err), &err, -EINVAL, MS_RULE_STRUCT_SIZE);
	CHECK_EQ(err.limit, offsetof(struct ms_listener, prepare_many));
	check_rule(ms_add_listener_last(vm, NULL, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	check_rule(ms_add_listener_last(vm, &small, &err), &err, -EINVAL, MS_RULE_STRUCT_SIZE);
	check_rule(ms_remove_listener(vm, NULL, &err), &err, -ENOENT, MS_RULE_NO_SUCH_LISTENER);
	check_rule(ms_vcpu_create(vm, NULL, &err), &err, -EFAULT, MS_RULE_NULL_BUFFER);
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
}

static void test_null_in_logs(struct ms_vm *vm)
{
	uint64_t word;

	ms_mark_page_dirty(vm, 0, 16);
	CHECK_EQ(ms_get_dirty_log(vm, 0, 1, &word, 1, NULL, NULL), 0);
	CHECK_EQ(word, 1);
	CHECK_EQ(ms_get_dirty_log(vm, 0, 1, NULL, 0, NULL, NULL), -EFAULT);
	CHECK_EQ(ms_get_dirty_log(vm, SPACES, 1, &word, 1, NULL, NULL), -EINVAL);
	CHECK_EQ(ms_clear_dirty_log(vm, 0, 1, 0, 8, NULL, SIZE_MAX, NULL), -EFAULT);
	CHECK_EQ(ms_clear_dirty_log(vm, 0, 1, 0, 8, &word, SIZE_MAX, NULL), -EINVAL);
	CHECK_EQ(ms_check(vm, NULL, NULL), 0);
}

/* Lookups return their result also if the buffer for the slots is NULL. */
static void test_null_in_lookups(struct ms_vm *vm)
{
	struct ms_vcpu *vcpu;

	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	CHECK_EQ(ms_gfn_to_memslot(vm, 0, 17, NULL), 0);
	CHECK_EQ(ms_gfn_to_memslot(vm, 0, 9, NULL), -ENOENT);
	CHECK_EQ(ms_id_to_memslot(vm, 0, 3, NULL), 0);
	CHECK_EQ(ms_vcpu_gfn_to_memslot(vcpu, 17, NULL), 0);
	CHECK_EQ(ms_gfn_to_hva_prot(vm, 0, 17, NULL), hva_for(0, 1) + PAGE);
	CHECK_EQ(ms_memslots(vm, 0, NULL, SIZE_MAX), IDS);
	CHECK_EQ(ms_memslots_in_gfn_range(vm, 0, 0, 32, NULL, 5), 2);
	CHECK_EQ(ms_memslots_in_hva_range(vm, 0, 0, UINT64_MAX, NULL, SIZE_MAX), IDS);
	CHECK_EQ(ms_hva_to_gfns(vm, hva_for(0, 1), NULL, SIZE_MAX), 1);
	ms_vcpu_destroy(vcpu);
}

static void test_null(void)
{
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		struct ms_vm *vm = vm_with_slots();

		test_null_in_changes(vm);
		test_null_in_logs(vm);
		test_null_in_lookups(vm);
		check_sound(vm);
		end_vm(vm);
	}
	design_name = "tree";
	CHECK_EQ(ms_set_simd("no such level"), -ENOSYS);
	CHECK_EQ(ms_set_simd(""), -ENOSYS);
	CHECK_EQ(ms_set_simd(NULL), 0);
	for (size_t i = 0; ms_simd_name(i); i++)
		CHECK(ms_simd_name(i + 1) || !strcmp(ms_simd(), ms_simd_name(i))); /* the best one */
	CHECK(!ms_simd_name(SIZE_MAX) && !ms_backend_name(SIZE_MAX));
}

/* ---- numbers out of range ---- */

static void check_no_space(struct ms_vm *vm, struct ms_vcpu *vcpu, uint32_t as_id)
{
	region_t r = region(0, 1, 1, 1, 0);
	uint64_t in = 17, out = 0;
	struct ms_batch batch = { .in = &in, .out = &out, .n = 1 };
	struct ms_memslot slot;
	struct ms_update *u;
	struct ms_error err;
	bool writable;

	r.as_id = as_id;
	check_rule(ms_set_user_memory_region(vm, &r, &err), &err, -EINVAL, MS_RULE_AS_ID);
	check_rule(ms_load_memslots(vm, as_id, &value, 1, &err), &err, -EINVAL, MS_RULE_AS_ID);
	check_rule(ms_update_begin(vm, as_id, &u, &err), &err, -EINVAL, MS_RULE_AS_ID);
	check_rule(ms_get_dirty_log(vm, as_id, 1, &out, 1, NULL, &err), &err, -EINVAL, MS_RULE_AS_ID);
	check_rule(ms_clear_dirty_log(vm, as_id, 1, 0, 8, &out, 1, &err), &err, -EINVAL, MS_RULE_AS_ID);
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, as_id), -EINVAL);
	CHECK_EQ(ms_gfn_to_memslot(vm, as_id, 17, &slot), -ENOENT);
	CHECK_EQ(ms_id_to_memslot(vm, as_id, 1, &slot), -ENOENT);
	CHECK_EQ(ms_gfn_to_hva(vm, as_id, 17), MS_HVA_ERR_BAD);
	CHECK_EQ(ms_gfn_to_hva_prot(vm, as_id, 17, &writable), MS_HVA_ERR_BAD);
	CHECK(!ms_is_visible_gfn(vm, as_id, 17));
	CHECK_EQ(ms_gfn_to_hva_many(vm, as_id, &batch, true), 0);
	CHECK_EQ(out, MS_HVA_ERR_BAD);
	CHECK_EQ(ms_mark_page_dirty_many(vm, as_id, &batch), 0);
	ms_mark_page_dirty(vm, as_id, 17);
	CHECK_EQ(ms_memslots(vm, as_id, NULL, 0) + ms_memslots_in_hva_range(vm, as_id, 0, UINT64_MAX, NULL, 0), 0);
	CHECK_EQ(ms_generation(vm, as_id), 0);
}

static void check_policies(struct ms_vm *vm)
{
	static const int64_t none[] = { -1, MS_INDEX_WALK + 1, 77, INT32_MIN, INT32_MAX };

	CHECK_EQ(ms_set_index_policy(vm, MS_INDEX_EAGER), 0);
	for (size_t i = 0; i < ARRAY_SIZE(none); i++) {
		CHECK_EQ(ms_set_index_policy(vm, (enum ms_index_policy)none[i]), -EINVAL);
		CHECK_EQ(ms_index_policy(vm), MS_INDEX_EAGER);
	}
	for (int policy = MS_INDEX_AUTO; policy <= MS_INDEX_WALK; policy++) {
		CHECK_EQ(ms_set_index_policy(vm, (enum ms_index_policy)policy), 0);
		CHECK_EQ(ms_index_policy(vm), policy);
	}
}

static void test_numbers(void)
{
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		struct ms_vm *vm = vm_with_slots();
		struct picture before = picture_of(vm), after;
		struct ms_vcpu *vcpu;

		CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
		for (unsigned bit = 1; bit < 33; bit++)
			check_no_space(vm, vcpu, (uint32_t)((uint64_t)1 << bit) - (bit == 32));
		CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, 17), hva_for(0, 1) + PAGE);
		ms_vcpu_destroy(vcpu);
		check_policies(vm);
		after = picture_of(vm);
		CHECK(same_picture(&before, &after));
		check_sound(vm);
		end_vm(vm);
	}
	design_name = "tree";
}

/* ---- a VM that cannot be made ---- */

static void check_no_vm(const struct ms_config *config, int code)
{
	struct ms_vm *vm = (struct ms_vm *)(uintptr_t)config;

	CHECK_EQ(ms_vm_create(config, &vm), code);
	CHECK(!vm);
	CHECK_EQ(ms_vm_create(config, NULL), -EFAULT);
	refused++;
}

static void test_no_vm(void)
{
	struct ms_config config = default_config(1);

	CHECK_EQ(ms_vm_create(NULL, NULL), -EFAULT);
	check_no_vm(NULL, -EFAULT);
	config.backend = NULL;
	check_no_vm(&config, -EINVAL);
	config.backend = "";
	check_no_vm(&config, -ENOSYS);
	config.backend = "forest";
	check_no_vm(&config, -ENOSYS);
}

/* ---- an unlock without a lock ---- */

static void *unlock_alone(void *vm)
{
	CHECK_EQ(ms_read_unlock(vm), -EPERM); /* the first call of this thread in the VM */
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 17), hva_for(0, 1) + PAGE);
	CHECK_EQ(ms_read_unlock(vm), -EPERM);
	CHECK_EQ(set(vm, 0, 90, 0x9000, 1, 0), 0); /* the thread is in no section now */
	CHECK_EQ(set(vm, 0, 90, 0, 0, 0), 0);
	return NULL;
}

/* An unlock fails if the open section belongs to another thread or another VM, or has ended. */
static void test_unlock(void)
{
	struct ms_vm *vm = vm_with_slots(), *other = vm_with_slots();

	by_another_thread(unlock_alone, vm);
	CHECK_EQ(ms_read_lock(other), 0);
	CHECK_EQ(ms_read_unlock(vm), -EPERM);
	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(ms_read_unlock(vm), 0);
	CHECK_EQ(ms_read_unlock(vm), 0);
	CHECK_EQ(ms_read_unlock(vm), -EPERM);
	CHECK_EQ(set(vm, 0, 90, 0x9000, 1, 0), -EDEADLK); /* the section of the other VM is as it was */
	CHECK_EQ(ms_read_unlock(other), 0);
	CHECK_EQ(thread_self.sections, 0);
	for (int i = 0; i < 5; i++)
		CHECK_EQ(ms_read_unlock(other), -EPERM);
	CHECK_EQ(set(other, 0, 90, 0x9000, 1, 0), 0); /* returns: no section is open */
	CHECK_EQ(set(vm, 0, 90, 0x9000, 1, 0), 0);
	check_sound(vm);
	end_vm(vm);
	end_vm(other);
}

static void *unlock_without_memory(void *of)
{
	struct ms_vm *vm = of;

	memory_fail(&vm->memory, 1, true); /* no record for this thread */
	CHECK_EQ(ms_read_lock(vm), -ENOMEM);
	CHECK_EQ(ms_read_unlock(vm), -EPERM);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 17), hva_for(0, 1) + PAGE);
	memory_fail(&vm->memory, 0, false);
	CHECK_EQ(set(vm, 0, 90, 0x9000, 1, 0), 0);
	return NULL;
}

static void test_unlock_without_memory(void)
{
	struct ms_vm *vm = vm_with_slots();

	by_another_thread(unlock_without_memory, vm);
	check_sound(vm);
	end_vm(vm);
}

/* ---- a listener of another VM ---- */

static unsigned commits;

static void on_commit(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	commits++;
}

static void test_listener_of_another_vm(void)
{
	static const struct ms_listener listener = { LISTENER_SIZE, .commit = on_commit };
	struct ms_vm *vm = vm_with_slots(), *other = vm_with_slots();
	struct ms_error err;

	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	check_rule(ms_remove_listener(other, &listener, &err), &err, -ENOENT, MS_RULE_NO_SUCH_LISTENER);
	CHECK_EQ(set(other, 0, 90, 0x9000, 1, 0), 0);
	CHECK_EQ(commits, 0);
	CHECK_EQ(ms_add_listener(other, &listener, NULL), 0); /* a listener may serve several VMs */
	check_rule(ms_add_listener(vm, &listener, &err), &err, -EEXIST, MS_RULE_LISTENER_EXISTS);
	CHECK_EQ(ms_remove_listener(vm, &listener, NULL), 0);
	CHECK_EQ(set(vm, 0, 90, 0x9000, 1, 0), 0);
	CHECK_EQ(commits, 0);
	CHECK_EQ(set(other, 0, 90, 0, 0, 0), 0);
	CHECK_EQ(commits, 1);
	end_vm(vm);
	end_vm(other);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	test_bad_handles();
	test_handles_of_a_destroyed_vm();
	test_address_of_a_refused_draft();
	test_removed_slot_is_a_handle();
	test_no_update();
	test_null_in_update();
	test_null();
	test_numbers();
	test_no_vm();
	test_unlock();
	test_unlock_without_memory();
	test_listener_of_another_vm();
	return test_done("misuse", refused, "calls refused");
}
