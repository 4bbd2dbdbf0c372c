/* SPDX-License-Identifier: MIT */
/*
 * listeners.h - the hooks of a VM's listeners that a swap calls.  writer.c calls the others.
 *
 * Locking: slots_lock for the list and around every hook.  No change of the same VM can be made inside a hook:
 * thread_self.hooks counts them.
 */
#ifndef MS_LISTENERS_H
#define MS_LISTENERS_H

#include "vm.h"

/* Calls flush of every listener: readers now see `active`, the INVALID copy of old.  Under slots_lock. */
void vm_flush(struct ms_vm *vm, const struct memslot *active, const struct memslot *old);

#endif
