/* SPDX-License-Identifier: MIT */
/*
 * listeners.c - see listeners.h.
 */
#include "listeners.h"

#include <errno.h>
#include <string.h>

static size_t find_listener(const struct ms_vm *vm, const struct ms_listener *listener)
{
	size_t i = 0;

	while (i < vm->nr_listeners && vm->listeners[i] != listener)
		i++;
	return i;
}

static int append_listener(struct ms_vm *vm, const struct ms_listener *listener, struct ms_error *err)
{
	size_t size = vm->nr_listeners * sizeof(*vm->listeners);
	const struct ms_listener **list = memory_zalloc(&vm->memory, size + sizeof(*list));

	if (!list)
		return no_memory(err);
	if (size)
		memcpy(list, vm->listeners, size);
	memory_free(&vm->memory, vm->listeners, vm->listeners_size);
	list[vm->nr_listeners++] = listener;
	vm->listeners = list;
	vm->listeners_size = size + sizeof(*list);
	return 0;
}

/* The size of struct ms_listener in the first version that had a size. */
#define LISTENER_SIZE_MIN SIZE_UP_TO(struct ms_listener, commit)

static int check_size(const struct ms_listener *listener, struct ms_error *err)
{
	if (listener->size >= LISTENER_SIZE_MIN)
		return 0;
	return vm_refuse(err, EINVAL, MS_RULE_STRUCT_SIZE, LISTENER_SIZE_MIN, NULL);
}

int ms_add_listener(struct ms_vm *vm, const struct ms_listener *listener, struct ms_error *err)
{
	int r = listener ? check_size(listener, err) : null_buffer(err);

	if (!r)
		r = vm_lock(vm, err);
	if (r)
		return r;
	if (find_listener(vm, listener) < vm->nr_listeners)
		r = vm_refuse(err, EEXIST, MS_RULE_LISTENER_EXISTS, 0, NULL);
	else
		r = append_listener(vm, listener, err);
	vm_unlock(vm);
	return r;
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
		for (vm->nr_listeners--; i < vm->nr_listeners; i++)
			vm->listeners[i] = vm->listeners[i + 1];
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
