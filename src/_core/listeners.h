/* SPDX-License-Identifier: MIT */
/*
 * listeners.h - calls the flush hooks of a VM's listeners.  writer.c calls the other hooks.
 *
 * Locking: slots_lock protects the list, and is held during each hook.  A hook cannot change the same VM:
 * thread_self.hooks counts the hooks that a thread is inside of.
 */
#ifndef MS_LISTENERS_H
#define MS_LISTENERS_H

#include "vm.h"

/* Calls flush of each listener.  Readers see `active`, the INVALID copy of old, now.  Under slots_lock. */
void vm_flush(struct ms_vm *vm, const struct memslot *active, const struct memslot *old);

#endif
