/* SPDX-License-Identifier: MIT */
/*
 * vcpu.c - creates and destroys vCPUs.  lookup.c uses their hints.
 *
 * Locking: ms_vcpu_create() takes slots_lock, ms_vcpu_destroy() takes no lock (row "vCPU given back").
 */
#include "vm.h"

/* Returns a vCPU that was given back, or a new one, or NULL without memory.  The list never shrinks. */
static struct ms_vcpu *obtain_vcpu(struct ms_vm *vm)
{
	struct ms_vcpu *vcpu = vm->vcpus;

	while (vcpu && !atomic_load_explicit(&vcpu->given_back, memory_order_acquire))
		vcpu = vcpu->next;
	if (!vcpu && (vcpu = memory_zalloc_lines(&vm->memory, sizeof(*vcpu)))) {
		vcpu->vm = vm;
		atomic_store_explicit(&vcpu->reader, &vm->srcu.shared, memory_order_relaxed);
		vcpu->next = vm->vcpus;
		vm->vcpus = vcpu;
	}
	return vcpu;
}

int ms_vcpu_create(struct ms_vm *vm, struct ms_vcpu **out, struct ms_error *err)
{
	int r = out ? vm_lock(vm, err) : null_buffer(err);

	if (out)
		*out = NULL;
	if (r)
		return r;
	*out = obtain_vcpu(vm);
	if (*out) {
		vcpu_hint_drop(&(*out)->hint);
		atomic_store_explicit(&(*out)->as_id, 0, memory_order_relaxed);
		atomic_store_explicit(&(*out)->given_back, 0, memory_order_relaxed);
	} else {
		r = no_memory(err);
	}
	vm_unlock(vm);
	return r;
}

void ms_vcpu_destroy(struct ms_vcpu *vcpu)
{
	if (vcpu)
		atomic_store_explicit(&vcpu->given_back, 1, memory_order_release);
}
