/* SPDX-License-Identifier: MIT */
/*
 * vm.h - the VM: two sets for each address space, the word that says which of them are active, and the writers' lock.
 *
 * Of the layers from here on, the writers (writer.c, update.c) and the readers (lookup.c, batch.c) share only this file
 * and vm_index.h.
 *
 * One word has a bit for each address space, which says which set is active.  A read section loads the word once, so it
 * sees all address spaces as they were at one moment.  Only vm_swap_begin() changes the word.
 *
 * Ordering (rows "active" and "generation" of docs/locking.md)
 *   A  a reader counts itself in, then loads `active`; the writer stores `active`, then reads the counts: seq_cst;
 *   G  the writer stores the new generation, with the in-flight bit, before `active`, and the settled generation after
 *      the grace period.
 * Locking: slots_lock serialises all calls except lookups and marks.  It is taken inside no other lock, except the
 * slots_lock of another VM whose hook is running.  There it is only tried.  It must not be taken inside a read section,
 * because its holder waits for read sections.
 */
#ifndef MS_VM_H
#define MS_VM_H

#include <errno.h>

#include "change.h"
#include "holds.h"
#include "slots_lock.h"
#include "stall_report.h"
#include "vcpu_hint.h"

/* The first member of an object that is freed later, because a caller may still have a pointer to it: an update whose
 * thread has ended. */
struct deferred_free {
	struct deferred_free *next;         /* under slots_lock */
	size_t size;                  /* of the whole object */
	_Atomic uint32_t given_back;  /* no caller has a pointer to it; row "deferred free" */
};

struct vm_counts { /* row "counters": relaxed, written under slots_lock */
	_Atomic uint64_t change[MS_RESIZE + 1];
	_Atomic uint64_t noops, refused;
	_Atomic uint64_t nr_memslots, nr_memslot_pages;
};

struct ms_vm {
	cache_aligned _Atomic uint64_t active; /* bit as_id: node_idx of the active set */
	const struct memslot_design *design;
	struct address_space *as;
	struct ms_config config;
	uint64_t forks; /* process_forks() at creation */
	_Atomic uint32_t index_policy; /* enum ms_index_policy; row "policy" */

	struct srcu srcu;
	struct memory memory;
	_Atomic uint64_t index_builds, index_patches; /* row "counters" */
	struct holds holds;

	cache_aligned struct slots_lock slots_lock;
	/* The members from here on are used under slots_lock. */
	bool closed;
	bool frozen; /* the VM of a snapshot: it may have INVALID slots, and no slot has a dirty log */
	uint32_t nr_emptied; /* by ms_vm_close(): the address spaces that have published a set without slots */
	_Atomic(struct ms_update *) update; /* the open update, which holds the lock, or NULL; row "pending end" */
	struct deferred_free *deferred_frees;
	const struct ms_listener **listeners;
	size_t nr_listeners, listeners_size; /* listeners_size: of the allocation, in bytes */
	bool has_last_listener; /* the last one of the list stays behind the others */
	struct thread_hook end_hook; /* around the closed hooks that ms_vm_destroy() calls */
	struct ms_vcpu *vcpus;
	_Atomic uint64_t manual_dirty_log_protect;
	struct stall_report stall_report;
	struct vm_counts counts;
	struct writer writer; /* of the present change */
	struct ms_change single_value; /* for the listeners of a list of one change */
};

_Static_assert(offsetof(struct ms_vm, config.user_mem_slots) < CACHE_LINE &&
		       offsetof(struct ms_vm, srcu) % CACHE_LINE == 0,
	       "a lookup reads two cache lines of its VM: the first of the VM and the first of srcu");
_Static_assert(offsetof(struct ms_vm, memory) / CACHE_LINE > offsetof(struct ms_vm, srcu.shared) / CACHE_LINE + 1,
	       "the counters of allocations share no cache line with the shared reader record");

struct ms_vcpu {
	struct ms_vm *vm;
	_Atomic(struct srcu_reader *) reader; /* a hint: of the thread that used the vCPU last (row "vCPU reader") */
	struct vcpu_hint hint;
	_Atomic(const void *) last_found; /* a record of an index; only compared */
	_Atomic uint32_t as_id;         /* always of an address space that exists */
	_Atomic uint32_t given_back;    /* no caller has it: ms_vcpu_create() may reuse it */
	struct ms_vcpu *next;           /* the list of all vCPUs of the VM, under slots_lock */
};

/* A policy with this bit neither uses nor makes an index. */
#define VM_INDEX_NEVER MS_INDEX_OFF
_Static_assert((MS_INDEX_OFF & MS_INDEX_WALK) == VM_INDEX_NEVER && !((MS_INDEX_AUTO | MS_INDEX_EAGER) & VM_INDEX_NEVER),
	       "OFF and WALK must share a bit that AUTO and EAGER lack");

/* One past the last frame that a slot may have. */
static inline uint64_t vm_end_gfn(const struct ms_config *config)
{
	return (uint64_t)1 << (config->gpa_bits - MS_PAGE_SHIFT);
}

static inline struct memslot_set *vm_set_in_view(const struct ms_vm *vm, uint32_t as_id, uint64_t view)
{
	return &vm->as[as_id].set[view >> as_id & 1];
}

static inline struct memslot_set *vm_active_set(const struct ms_vm *vm, uint32_t as_id)
{
	return vm_set_in_view(vm, as_id, atomic_load_explicit(&vm->active, memory_order_seq_cst)); /* A */
}

/* Of the active set.  Under slots_lock it is settled. */
static inline uint64_t vm_generation(const struct ms_vm *vm, uint32_t as_id)
{
	return atomic_load_explicit(&vm_active_set(vm, as_id)->generation, memory_order_relaxed); /* G */
}

/* Whether a change may be based on the state of this generation.  Also true for an as_id that a rule will refuse. */
static inline bool vm_is_at(const struct ms_vm *vm, uint32_t as_id, uint64_t generation)
{
	return as_id >= vm->config.address_spaces || vm_generation(vm, as_id) == generation;
}

/* For the writer: no other thread changes `active` while it holds slots_lock. */
static inline struct memslot_set *vm_inactive_set(const struct ms_vm *vm, uint32_t as_id)
{
	return vm_set_in_view(vm, as_id, ~atomic_load_explicit(&vm->active, memory_order_relaxed));
}

/* Publishes the inactive set of as_id, and returns when no reader uses the former active set.  Under slots_lock. */
void vm_swap(struct ms_vm *vm, uint32_t as_id);

/* The two halves of vm_swap().  A thread that must not wait calls the first half and leaves slots_lock, held; the next
 * thread that takes the lock calls the second half. */
void vm_swap_begin(struct ms_vm *vm, uint32_t as_id);
void vm_swap_end(struct ms_vm *vm, uint32_t as_id);

/* The i-th design of this build; NULL after the last. */
const struct memslot_design *vm_design(size_t i);
/* Whether the second half of a swap is still to be done. */
bool vm_is_swapping(const struct ms_vm *vm, uint32_t as_id);

/* Takes slots_lock for a change.  On failure *err has the rule that refused. */
int vm_lock(struct ms_vm *vm, struct ms_error *err);
void vm_unlock(struct ms_vm *vm);

/* Rolls back the open update, if any, in place of its thread.  ms_vm_destroy() calls it (update.c). */
void vm_end_update(struct ms_vm *vm);

/* Whether a listener has the hook `closed`; calls this hook of each listener (listeners.c). */
bool vm_has_closed_hooks(const struct ms_vm *vm);
void vm_call_closed_hooks(struct ms_vm *vm);

/* Whether a call that holds slots_lock is running.  Returns false for an update that is open and between two steps. */
bool vm_is_in_step(const struct ms_vm *vm);

/* Frees the deferred objects that were given back, or all.  Under slots_lock, or when no call can use the VM. */
void vm_free_deferred(struct ms_vm *vm, bool all);

/* Puts the rule into *err, which may be NULL, and returns -code. */
int vm_refuse(struct ms_error *err, int code, enum ms_rule rule, uint64_t limit, const struct memslot *other);

static inline int no_memory(struct ms_error *err)
{
	return vm_refuse(err, ENOMEM, MS_RULE_NO_MEMORY, 0, NULL);
}

static inline int null_buffer(struct ms_error *err)
{
	return vm_refuse(err, EFAULT, MS_RULE_NULL_BUFFER, 0, NULL);
}

#endif
