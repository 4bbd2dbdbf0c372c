/* SPDX-License-Identifier: MIT */
/*
 * dirty_ioctl.c - KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, and the merge of a log.
 *
 * The rules are checked in the order of KVM.
 *
 * Locking: slots_lock, which also protects the slot.  Readers may mark pages meanwhile.
 */
#include <errno.h>

#include "rules.h"

/* Finds the slot, which must have a log.  Checks in the order of KVM_GET_DIRTY_LOG. */
static int find_logged(struct ms_vm *vm, uint32_t as_id, uint32_t id, struct memslot **slot, struct ms_error *err)
{
	if (rules_as_id(vm, as_id, err))
		return -EINVAL;
	if (id >= vm->config.user_mem_slots)
		return vm_refuse(err, EINVAL, MS_RULE_SLOT_ID, vm->config.user_mem_slots, NULL);
	*slot = vm->design->find(vm_active_set(vm, as_id), id);
	if (!*slot)
		return vm_refuse(err, ENOENT, MS_RULE_NO_SUCH_SLOT, 0, NULL);
	if (!(*slot)->dirty)
		return vm_refuse(err, ENOENT, MS_RULE_NO_DIRTY_LOG, 0, *slot);
	return 0;
}

static int get_log(struct ms_vm *vm, struct dirty_log *log, uint64_t *bitmap, size_t room, size_t *nwords,
		   struct ms_error *err)
{
	*nwords = nwords_of(log);
	if (bitmap && room < nwords_of(log))
		return vm_refuse(err, ENOBUFS, MS_RULE_BITMAP_SIZE, nwords_of(log), NULL);
	if (!ms_manual_dirty_log_protect(vm))
		dirty_log_harvest(log, bitmap);
	else if (bitmap)
		dirty_log_peek(log, bitmap);
	return bitmap ? 0 : null_buffer(err);
}

int ms_get_dirty_log(struct ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t *bitmap, size_t room, size_t *nwords,
		     struct ms_error *err)
{
	struct memslot *logged = NULL;
	size_t unwanted;
	int r = vm_lock(vm, err);

	nwords = nwords ? nwords : &unwanted;
	*nwords = 0;
	if (r)
		return r;
	r = find_logged(vm, as_id, slot, &logged, err);
	if (!r)
		r = get_log(vm, logged->dirty, bitmap, room, nwords, err);
	vm_unlock(vm);
	return r;
}

static bool clear_range_ok(uint64_t npages, uint64_t first, uint32_t num)
{
	if (first > npages || num > npages - first)
		return false;
	return num == npages - first || num % 64 == 0;
}

static int clear_log(struct dirty_log *log, uint64_t first, uint32_t num, const uint64_t *bitmap, size_t nwords,
		     struct ms_error *err)
{
	size_t want = dirty_log_words(num);

	if (!clear_range_ok(log->npages, first, num))
		return vm_refuse(err, EINVAL, MS_RULE_CLEAR_RANGE, log->npages, NULL);
	if (!bitmap && want)
		return null_buffer(err);
	if (bitmap && nwords != want)
		return vm_refuse(err, EINVAL, MS_RULE_BITMAP_SIZE, want, NULL);
	dirty_log_clear(log, (size_t)(first / 64), bitmap, want);
	return 0;
}

int ms_clear_dirty_log(struct ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t first_page, uint32_t num_pages,
		       const uint64_t *bitmap, size_t nwords, struct ms_error *err)
{
	struct memslot *logged = NULL;
	int r = vm_lock(vm, err);

	if (r)
		return r;
	r = find_logged(vm, as_id, slot, &logged, err);
	if (r != -EINVAL && first_page % 64) /* KVM checks this before it finds the slot: EINVAL instead of ENOENT */
		r = vm_refuse(err, EINVAL, MS_RULE_FIRST_PAGE, 64, NULL);
	if (!r)
		r = clear_log(logged->dirty, first_page, num_pages, bitmap, nwords, err);
	vm_unlock(vm);
	return r;
}

static int merge_log(struct dirty_log *log, const uint64_t *words, size_t nwords, struct ms_error *err)
{
	if (!words)
		return null_buffer(err);
	if (nwords != nwords_of(log))
		return vm_refuse(err, EINVAL, MS_RULE_BITMAP_SIZE, nwords_of(log), NULL);
	dirty_log_merge(log, words);
	return 0;
}

int ms_merge_dirty_log(struct ms_vm *vm, uint32_t as_id, uint32_t slot, const uint64_t *words, size_t nwords,
		       struct ms_error *err)
{
	struct memslot *logged = NULL;
	int r = vm_lock(vm, err);

	if (r)
		return r;
	r = find_logged(vm, as_id, slot, &logged, err);
	if (!r)
		r = merge_log(logged->dirty, words, nwords, err);
	vm_unlock(vm);
	return r;
}

int ms_set_manual_dirty_log_protect(struct ms_vm *vm, uint64_t value, struct ms_error *err)
{
	int r = vm_lock(vm, err);

	if (r)
		return r;
	if (value == 0 || value == MS_DIRTY_LOG_MANUAL_PROTECT_ENABLE ||
	    value == (MS_DIRTY_LOG_MANUAL_PROTECT_ENABLE | MS_DIRTY_LOG_INITIALLY_SET))
		atomic_store_explicit(&vm->manual_dirty_log_protect, value, memory_order_relaxed);
	else
		r = vm_refuse(err, EINVAL, MS_RULE_MANUAL_PROTECT, 0, NULL);
	vm_unlock(vm);
	return r;
}
