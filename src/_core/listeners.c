/* SPDX-License-Identifier: MIT */
/*
 * listeners.c - see listeners.h.
 */
#include "listeners.h"

#include <errno.h>

static size_t find_listener(const struct ms_vm *vm, const struct ms_listener *listener)
{
	size_t i = 0;

	while (i < vm->nr_listeners && vm->listeners[i] != listener)
		i++;
	return i;
}

/* Puts the listener before the item `place` of the list. */
static int insert_listener(struct ms_vm *vm, const struct ms_listener *listener, size_t place, struct ms_error *err)
{
	size_t size = (vm->nr_listeners + 1) * sizeof(*vm->listeners);
	const struct ms_listener **list = memory_zalloc(&vm->memory, size);

	if (!list)
		return no_memory(err);
	for (size_t i = 0; i < vm->nr_listeners; i++)
		list[i + (i >= place)] = vm->listeners[i];
	memory_free(&vm->memory, vm->listeners, vm->listeners_size);
	list[place] = listener;
	vm->listeners = list;
	vm->listeners_size = size;
	vm->nr_listeners++;
	return 0;
}

static int put_listener(struct ms_vm *vm, const struct ms_listener *listener, bool last, struct ms_error *err)
{
	int r;

	if (find_listener(vm, listener) < vm->nr_listeners)
		return vm_refuse(err, EEXIST, MS_RULE_LISTENER_EXISTS, 0, NULL);
	if (last && vm->has_last_listener)
		return vm_refuse(err, EEXIST, MS_RULE_LAST_LISTENER, 0, NULL);
	r = insert_listener(vm, listener, vm->nr_listeners - vm->has_last_listener, err);
	vm->has_last_listener |= last && !r;
	return r;
}

/* The size of struct ms_listener in the first version that had a size. */
#define LISTENER_SIZE_MIN SIZE_UP_TO(struct ms_listener, commit)

static int check_size(const struct ms_listener *listener, struct ms_error *err)
{
	if (listener->size >= LISTENER_SIZE_MIN)
		return 0;
	return vm_refuse(err, EINVAL, MS_RULE_STRUCT_SIZE, LISTENER_SIZE_MIN, NULL);
}

static int add_listener(struct ms_vm *vm, const struct ms_listener *listener, bool last, struct ms_error *err)
{
	int r = listener ? check_size(listener, err) : null_buffer(err);

	if (!r)
		r = vm_lock(vm, err);
	if (r)
		return r;
	r = put_listener(vm, listener, last, err);
	vm_unlock(vm);
	return r;
}

int ms_add_listener(struct ms_vm *vm, const struct ms_listener *listener, struct ms_error *err)
{
	return add_listener(vm, listener, false, err);
}

int ms_add_listener_last(struct ms_vm *vm, const struct ms_listener *listener, struct ms_error *err)
{
	return add_listener(vm, listener, true, err);
}

static void delete_listener(struct ms_vm *vm, size_t i)
{
	vm->nr_listeners--;
	if (i == vm->nr_listeners)
		vm->has_last_listener = false;
	for (; i < vm->nr_listeners; i++)
		vm->listeners[i] = vm->listeners[i + 1];
}

/* Needs no memory.  So once it has the lock, it fails only if the listener is not in the list. */
int ms_remove_listener(struct ms_vm *vm, const struct ms_listener *listener, struct ms_error *err)
{
	int r = vm_lock(vm, err);
	size_t i;

	if (r)
		return r;
	i = find_listener(vm, listener);
	if (i == vm->nr_listeners)
		r = vm_refuse(err, ENOENT, MS_RULE_NO_SUCH_LISTENER, 0, NULL);
	else
		delete_listener(vm, i);
	vm_unlock(vm);
	return r;
}

/* ---- the hooks ---- */

int listeners_prepare(struct ms_vm *vm, const struct ms_change *change, uint32_t *prepared, struct ms_error *err)
{
	int r = 0;

	slots_lock_enter_hook(&vm->slots_lock);
	while (!r && *prepared < vm->nr_listeners) {
		const struct ms_listener *l = vm->listeners[*prepared];

		r = l->prepare ? l->prepare(l->opaque, change) : 0;
		*prepared += !r;
	}
	slots_lock_leave_hook(&vm->slots_lock);
	return r ? vm_refuse(err, r < 0 ? -r : EINVAL, MS_RULE_LISTENER_REFUSED, 0, NULL) : 0;
}

void listeners_abort(struct ms_vm *vm, const struct ms_change *change, uint32_t *prepared)
{
	slots_lock_enter_hook(&vm->slots_lock);
	while (*prepared > 0) {
		const struct ms_listener *l = vm->listeners[--*prepared];

		if (l->abort)
			l->abort(l->opaque, change);
	}
	slots_lock_leave_hook(&vm->slots_lock);
}

void listeners_flush(struct ms_vm *vm, const struct memslot *active, const struct memslot *old)
{
	struct ms_memslot active_value, old_value;

	if (likely(!vm->nr_listeners))
		return;
	active_value = memslot_value(active);
	old_value = memslot_value(old);
	slots_lock_enter_hook(&vm->slots_lock);
	for (size_t i = 0; i < vm->nr_listeners; i++) {
		const struct ms_listener *l = vm->listeners[i];

		if (l->flush)
			l->flush(l->opaque, &active_value, &old_value);
	}
	slots_lock_leave_hook(&vm->slots_lock);
}

void listeners_commit(struct ms_vm *vm, const struct ms_change *change)
{
	slots_lock_enter_hook(&vm->slots_lock);
	for (size_t i = 0; i < vm->nr_listeners; i++) {
		const struct ms_listener *l = vm->listeners[i];

		if (l->commit)
			l->commit(l->opaque, change);
	}
	slots_lock_leave_hook(&vm->slots_lock);
}

/* ---- the end of the VM ---- */

/* A struct of an earlier version ends before this member. */
static bool has_closed(const struct ms_listener *l)
{
	return l->size >= SIZE_UP_TO(struct ms_listener, closed) && l->closed;
}

bool vm_has_closed_hooks(const struct ms_vm *vm)
{
	size_t i = 0;

	while (i < vm->nr_listeners && !has_closed(vm->listeners[i]))
		i++;
	return i < vm->nr_listeners;
}

void vm_call_closed_hooks(struct ms_vm *vm)
{
	slots_lock_enter_hook(&vm->slots_lock);
	for (size_t i = 0; i < vm->nr_listeners; i++)
		if (has_closed(vm->listeners[i]))
			vm->listeners[i]->closed(vm->listeners[i]->opaque);
	slots_lock_leave_hook(&vm->slots_lock);
}
