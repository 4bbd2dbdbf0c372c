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

/* Calls prepare of each listener until one refuses.  *prepared counts those that did not.  A negative result of prepare
 * is the error; any other is -EINVAL. */
int listeners_prepare(struct ms_vm *vm, const struct ms_change *change, uint32_t *prepared, struct ms_error *err);

/* Calls abort of the first *prepared listeners, the last one first, and counts *prepared down to 0. */
void listeners_abort(struct ms_vm *vm, const struct ms_change *change, uint32_t *prepared);

/* Readers see `active`, the INVALID copy of old, now. */
void listeners_flush(struct ms_vm *vm, const struct memslot *active, const struct memslot *old);

void listeners_commit(struct ms_vm *vm, const struct ms_change *change);

#endif
