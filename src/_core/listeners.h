/* SPDX-License-Identifier: MIT */
/*
 * listeners.h - calls the hooks of a VM's listeners.  memslots.h says when a change calls which hook.
 *
 * Locking: slots_lock protects the list, and is held during each hook.  A hook cannot change the same VM:
 * thread_self.hooks counts the hooks that a thread is inside of.
 */
#ifndef MS_LISTENERS_H
#define MS_LISTENERS_H

#include "vm.h"

/* All under slots_lock, in the thread of the change, which is watched (thread_watch()) if the VM has a listener. */

/*
 * A list of n changes reaches the listeners one after the other: the first listener gets all changes, then the second.
 * The caller keeps the list until the last of these calls.
 */

/* Calls prepare_many, or prepare for each change, until a listener refuses; *done counts what has succeeded.  After a
 * refusal *refused is the number of the change; n: the whole list.  A negative result of the hook is the error; any
 * other is -EINVAL. */
int listeners_prepare(struct ms_vm *vm, const struct ms_change *changes, size_t n, struct prepared *done,
		      size_t *refused, struct ms_error *err);

/* Calls abort for everything that *done counts, the last one first, and counts *done down to 0. */
void listeners_abort(struct ms_vm *vm, const struct ms_change *changes, size_t n, struct prepared *done);

/* Readers see `active`, the INVALID copy of old, now. */
void listeners_flush(struct ms_vm *vm, const struct memslot *active, const struct memslot *old);

/* The same for each change of a list that has published its last state with one swap: a deleted, moved or resized slot.
 * In place of a deleted slot the listeners get its INVALID copy. */
void listeners_flush_list(struct ms_vm *vm, const struct ms_change *changes, size_t n);

void listeners_commit(struct ms_vm *vm, const struct ms_change *changes, size_t n);

#endif
