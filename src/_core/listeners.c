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

void ms_forget_listeners(struct ms_vm *vm)
{
	if (!vm)
		return;
	vm->nr_listeners = 0;
	vm->has_last_listener = false;
}

/* ---- the hooks ---- */

/* Whether the listener has the hook.  A struct of an earlier version ends before prepare_many. */
static bool prepares_lists(const struct ms_listener *l)
{
	return l->size >= SIZE_UP_TO(struct ms_listener, prepare_many) && l->prepare_many;
}

static int prepare_each(const struct ms_listener *l, const struct ms_change *changes, size_t n, size_t *done)
{
	int r = 0;

	while (!r && l->prepare && *done < n) {
		r = l->prepare(l->opaque, &changes[*done]);
		*done += !r;
	}
	return r;
}

/* Only a listener with `prepare` can refuse one change of several. */
static int prepare_list(const struct ms_listener *l, const struct ms_change *changes, size_t n, struct prepared *done,
			size_t *refused)
{
	bool whole = prepares_lists(l);
	int r = whole ? l->prepare_many(l->opaque, changes, n) : prepare_each(l, changes, n, &done->changes);

	if (r) {
		*refused = !whole ? done->changes : n > 1 ? n : 0;
		return r;
	}
	done->changes = 0;
	done->listeners++;
	return 0;
}

int listeners_prepare(struct ms_vm *vm, const struct ms_change *changes, size_t n, struct prepared *done,
		      size_t *refused, struct ms_error *err)
{
	int r = 0;

	slots_lock_enter_hook(&vm->slots_lock);
	while (!r && done->listeners < vm->nr_listeners)
		r = prepare_list(vm->listeners[done->listeners], changes, n, done, refused);
	slots_lock_leave_hook(&vm->slots_lock);
	return r ? vm_refuse(err, r < 0 ? -r : EINVAL, MS_RULE_LISTENER_REFUSED, 0, NULL) : 0;
}

static void abort_each(const struct ms_listener *l, const struct ms_change *changes, size_t *done)
{
	while (*done > 0) {
		const struct ms_change *change = &changes[--*done];

		if (l->abort)
			l->abort(l->opaque, change);
	}
}

void listeners_abort(struct ms_vm *vm, const struct ms_change *changes, size_t n, struct prepared *done)
{
	slots_lock_enter_hook(&vm->slots_lock);
	for (;;) {
		if (done->changes)
			abort_each(vm->listeners[done->listeners], changes, &done->changes);
		if (!done->listeners)
			break;
		done->listeners--;
		done->changes = n;
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

static bool has_flush(const struct ms_change *change)
{
	return change->kind == MS_DELETE || change->kind == MS_MOVE || change->kind == MS_RESIZE;
}

static void flush_each(const struct ms_listener *l, const struct ms_change *changes, size_t n)
{
	for (size_t i = 0; l->flush && i < n; i++) {
		struct ms_memslot active = changes[i].new_slot;

		if (!has_flush(&changes[i]))
			continue;
		if (changes[i].kind == MS_DELETE) {
			active = changes[i].old_slot;
			active.flags |= MS_MEMSLOT_INVALID;
		}
		l->flush(l->opaque, &active, &changes[i].old_slot);
	}
}

void listeners_flush_list(struct ms_vm *vm, const struct ms_change *changes, size_t n)
{
	slots_lock_enter_hook(&vm->slots_lock);
	for (size_t i = 0; i < vm->nr_listeners; i++)
		flush_each(vm->listeners[i], changes, n);
	slots_lock_leave_hook(&vm->slots_lock);
}

static void commit_each(const struct ms_listener *l, const struct ms_change *changes, size_t n)
{
	for (size_t i = 0; l->commit && i < n; i++)
		l->commit(l->opaque, &changes[i]);
}

void listeners_commit(struct ms_vm *vm, const struct ms_change *changes, size_t n)
{
	slots_lock_enter_hook(&vm->slots_lock);
	for (size_t i = 0; i < vm->nr_listeners; i++)
		commit_each(vm->listeners[i], changes, n);
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
