/* SPDX-License-Identifier: MIT */
/*
 * vm.c - see vm.h.
 */
#include "vm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guest_fault.h"

static const struct memslot_design *const designs[] = {
#define DESIGN(name) &DESIGN_OF(name),
#include "designs.h"
#undef DESIGN
};

int vm_refuse(struct ms_error *err, int code, enum ms_rule rule, uint64_t limit, const struct memslot *other)
{
	ms_assert(ms_rule_has_errno(rule, code));
	if (err) {
		*err = (struct ms_error){ .rule = rule, .limit = limit };
		if (other)
			err->other = memslot_value(other);
	}
	return -code;
}

/* ---- slots_lock ---- */

/* Whether the thread holds slots_lock for a hook and not for an update.  Outside of hooks it was an update, even if
 * vm->update is NULL: a collector in another thread may have ended it in the meantime. */
static bool in_hook_without_update(struct ms_vm *vm)
{
	return thread_self.hooks && !atomic_load_explicit(&vm->update, memory_order_relaxed);
}

/* Refuses a call that would deadlock on itself, and any call in a forked child. */
static int check_may_lock(struct ms_vm *vm, struct ms_error *err)
{
	if (unlikely(vm->forks != process_forks()))
		return vm_refuse(err, EIO, MS_RULE_FORKED, 0, NULL);
	if (unlikely(thread_self.sections))
		return vm_refuse(err, EDEADLK, MS_RULE_READ_SECTION, 0, NULL);
	if (unlikely(slots_lock_is_own(&vm->slots_lock)))
		return vm_refuse(err, EDEADLK, in_hook_without_update(vm) ? MS_RULE_HOOK : MS_RULE_UPDATE, 0, NULL);
	return 0;
}

/* Inside a hook of another VM the lock is only tried: hooks of several VMs could wait for each other in a circle. */
static int take_lock(struct ms_vm *vm, struct ms_error *err)
{
	int r = check_may_lock(vm, err);

	if (r || slots_lock_try(&vm->slots_lock))
		return r;
	if (thread_self.hooks)
		return vm_refuse(err, EBUSY, MS_RULE_HOOK_BUSY, 0, NULL);
	return slots_lock_wait(&vm->slots_lock) ? 0 : vm_refuse(err, EINTR, MS_RULE_INTERRUPTED, 0, NULL);
}

int vm_lock(struct ms_vm *vm, struct ms_error *err)
{
	int r = take_lock(vm, err);

	if (r)
		return r;
	holds_tidy(&vm->holds);
	if (likely(!vm->closed))
		return 0;
	vm_unlock(vm);
	return vm_refuse(err, EBADF, MS_RULE_CLOSED, 0, NULL);
}

void vm_unlock(struct ms_vm *vm)
{
	slots_lock_release(&vm->slots_lock);
	thread_flush_tasks(); /* the releases of backings; one of them may destroy the VM */
}

/* ---- the swap ---- */

void vm_swap_begin(struct ms_vm *vm, uint32_t as_id)
{
	struct memslot_set *active = vm_active_set(vm, as_id), *next = vm_inactive_set(vm, as_id);
	uint64_t gen = atomic_load_explicit(&active->generation, memory_order_relaxed);
	uint64_t view = atomic_load_explicit(&vm->active, memory_order_relaxed);

	overlays_capture(&vm->as[as_id].overlays);
	atomic_store_explicit(&next->generation, gen | MS_GEN_UPDATE_IN_PROGRESS, memory_order_relaxed); /* G */
	point(WRITER_PUBLISHES);
	atomic_store_explicit(&vm->active, view ^ (uint64_t)1 << as_id, memory_order_seq_cst);           /* A */
	point(WRITER_PUBLISHED);
}

/* A hook may have left a read section of this VM open in the calling thread.  A wait for this section would never end,
 * so the grace period leaves it out.  During the wait, in a stall report, the section still sees the former state.
 * Afterwards it sees the new state, because the writer is going to edit the former set.  If the report has ended the
 * section, the store to own->view has no effect: each new section loads its own view. */
static void synchronize(struct ms_vm *vm)
{
	struct srcu_reader *own = unlikely(thread_self.sections) ? srcu_reader(&vm->srcu) : NULL;

	if (likely(!own) || srcu_is_shared(own)) {
		synchronize_srcu(&vm->srcu);
		return;
	}
	synchronize_srcu_others(&vm->srcu, own);
	own->view = atomic_load_explicit(&vm->active, memory_order_seq_cst); /* A */
}

void vm_swap_end(struct ms_vm *vm, uint32_t as_id)
{
	struct memslot_set *active = vm_active_set(vm, as_id);
	uint64_t gen = atomic_load_explicit(&active->generation, memory_order_relaxed) & ~MS_GEN_UPDATE_IN_PROGRESS;

	synchronize(vm);
	point(WRITER_GRACE_OVER);
	overlays_expire(&vm->as[as_id].overlays);
	atomic_store_explicit(&active->generation, gen + vm->config.address_spaces, memory_order_relaxed); /* G */
}

bool vm_is_swapping(const struct ms_vm *vm, uint32_t as_id)
{
	uint64_t view = atomic_load_explicit(&vm->active, memory_order_relaxed);
	const struct memslot_set *active = vm_set_in_view(vm, as_id, view);

	return atomic_load_explicit(&active->generation, memory_order_relaxed) & MS_GEN_UPDATE_IN_PROGRESS;
}

void vm_swap(struct ms_vm *vm, uint32_t as_id)
{
	vm_swap_begin(vm, as_id);
	vm_swap_end(vm, as_id);
}

/* ---- stall reports ---- */

int ms_set_stall_report(struct ms_vm *vm, uint32_t after_ms, ms_stall_fn *report, void *opaque, struct ms_error *err)
{
	int r = vm_lock(vm, err);

	if (r)
		return r;
	stall_report_set(&vm->stall_report, &vm->srcu, after_ms, report, opaque);
	vm_unlock(vm);
	return 0;
}

/* ---- create, close and destroy ---- */

/* The size of struct ms_config in the first version that had a size. */
#define CONFIG_SIZE_MIN SIZE_UP_TO(struct ms_config, stall_opaque)

/* The size of the members that both the caller and this library have. */
static size_t common_size(size_t size)
{
	return size < sizeof(struct ms_config) ? size : sizeof(struct ms_config);
}

int ms_config_init_sized(struct ms_config *config, size_t size)
{
	struct ms_config defaults = {
		.size = size,
		.address_spaces = 1,
		.user_mem_slots = MS_USER_MEM_SLOTS_DEFAULT,
		.gpa_bits = MS_GPA_BITS_DEFAULT,
		.hva_end_max = MS_HVA_END_MAX_DEFAULT,
		.backend = designs[0]->name,
	};

	if (!config)
		return -EFAULT;
	if (size < CONFIG_SIZE_MIN)
		return -EINVAL;
	memset(config, 0, size);
	memcpy(config, &defaults, common_size(size));
	return 0;
}

const struct memslot_design *vm_design(size_t i)
{
	return i < ARRAY_SIZE(designs) ? designs[i] : NULL;
}

const char *ms_backend_name(size_t i)
{
	return i < ARRAY_SIZE(designs) ? designs[i]->name : NULL;
}

static const struct memslot_design *find_design(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(designs); i++)
		if (!strcmp(designs[i]->name, name))
			return designs[i];
	return NULL;
}

static bool in_limits(const struct ms_config *config)
{
	return config->size >= CONFIG_SIZE_MIN && config->backend && config->address_spaces >= 1 &&
	       config->address_spaces <= MS_ADDRESS_SPACES_MAX && config->user_mem_slots >= 1 &&
	       config->user_mem_slots <= MS_USER_MEM_SLOTS_MAX && config->gpa_bits > MS_PAGE_SHIFT &&
	       config->gpa_bits <= 64 && config->hva_end_max >= MS_PAGE_SIZE && config->hva_end_max < MS_HVA_ERR_MIN;
}

static void init_address_space(const struct ms_vm *vm, struct address_space *as, uint64_t as_id)
{
	as->config = &vm->config;
	for (uint32_t idx = 0; idx < 2; idx++) {
		as->set[idx].node_idx = idx;
		atomic_store_explicit(&as->set[idx].generation, as_id, memory_order_relaxed);
		if (vm->design->init)
			vm->design->init(&as->set[idx]);
	}
}

static int alloc_sets(struct ms_vm *vm)
{
	vm->as = memory_zalloc_lines(&vm->memory, vm->config.address_spaces * sizeof(*vm->as));
	if (!vm->as)
		return -ENOMEM;
	for (uint32_t i = 0; i < vm->config.address_spaces; i++)
		init_address_space(vm, &vm->as[i], i);
	return 0;
}

static int init_vm(struct ms_vm *vm, const struct ms_config *config, const struct memslot_design *design)
{
	int r;

	memset(vm, 0, sizeof(*vm));
	vm->design = design;
	ms_config_init(&vm->config);
	memcpy(&vm->config, config, common_size(config->size));
	vm->config.size = sizeof(vm->config);
	vm->config.backend = design->name;
	vm->forks = process_forks();
	memory_init(&vm->memory);
	r = srcu_init(&vm->srcu, &vm->memory);
	if (r)
		return r;
	r = alloc_sets(vm);
	if (r) {
		srcu_deinit(&vm->srcu);
		return r;
	}
	holds_init(&vm->holds, &vm->srcu, &vm->memory, vm->design);
	if (vm->config.dereference_raw_addresses)
		guest_fault_prepare();
	vm->stall_report.lock = &vm->slots_lock;
	stall_report_set(&vm->stall_report, &vm->srcu, MS_STALL_AFTER_MS_DEFAULT, config->report_stall,
			 config->stall_opaque);
	return 0;
}

int ms_vm_create(const struct ms_config *config, struct ms_vm **out)
{
	const struct memslot_design *design;
	struct ms_vm *vm;
	int r;

	if (!out)
		return -EFAULT;
	*out = NULL;
	if (!config)
		return -EFAULT;
	if (!in_limits(config))
		return -EINVAL;
	design = find_design(config->backend);
	if (!design)
		return -ENOSYS;
	r = thread_prepare();
	if (r)
		return r;
	vm = aligned_alloc(CACHE_LINE, sizeof(*vm));
	if (!vm)
		return -ENOMEM;
	r = init_vm(vm, config, design);
	if (r)
		free(vm);
	else
		*out = vm;
	return r;
}

static void empty_set(struct ms_vm *vm, struct memslot_set *set, bool free_slots)
{
	vm->design->empty(&vm->memory, set, free_slots);
	atomic_store_explicit(&set->last_used_slot, NULL, memory_order_relaxed);
}

/* Only for the reader that has set build->busy, and for the last thread that uses the VM. */
static void discard_build(struct index_build *build)
{
	flat_builder_destroy(build->builder);
	build->builder = NULL;
	overlay_put(build->base);
	build->base = NULL;
}

/* Retires the indexes, before a set without slots is published.  A build that is running cannot be stopped, so every
 * block of its overlay is marked.  A build that is begun later waits for the end of this change, which never comes. */
static void retire_indexes(struct address_space *as)
{
	overlays_begin_change(&as->overlays);
	overlays_spend(&as->overlays);
	overlays_retire(&as->overlays, atomic_exchange_explicit(&as->overlays.current, NULL, memory_order_seq_cst));
	for (int i = 0; i < 2; i++)
		atomic_store_explicit(&as->set[i].index, NULL, memory_order_relaxed);
	if (atomic_exchange_explicit(&as->build.busy, 1, memory_order_acquire))
		return;
	discard_build(&as->build);
	overlays_retire(&as->overlays, atomic_exchange_explicit(&as->overlays.coming, NULL, memory_order_seq_cst));
	atomic_store_explicit(&as->build.running, 0, memory_order_relaxed);
	atomic_store_explicit(&as->build.busy, 0, memory_order_release);
}

/* No reader sees the slots of the inactive set.  A call that is in no section may still hold them. */
static void empty_former_set(struct ms_vm *vm, uint32_t as_id)
{
	struct memslot_set *set = vm_inactive_set(vm, as_id);

	vm->as[as_id].kept = holds_retire_set(&vm->holds, set);
	if (!vm->as[as_id].kept)
		empty_set(vm, set, true);
}

/* After this no reader sees a slot of the address space.  The set that readers have left still has all slots. */
static void empty_address_space(struct ms_vm *vm, uint32_t as_id)
{
	retire_indexes(&vm->as[as_id]);
	empty_set(vm, vm_inactive_set(vm, as_id), false);
	vm_swap(vm, as_id);
}

static void empty_address_spaces(struct ms_vm *vm)
{
	for (; vm->nr_emptied < vm->config.address_spaces; vm->nr_emptied++)
		empty_address_space(vm, vm->nr_emptied);
	vm->closed = true;
	atomic_store_explicit(&vm->counts.nr_memslots, 0, memory_order_relaxed);
	atomic_store_explicit(&vm->counts.nr_memslot_pages, 0, memory_order_relaxed);
}

static void free_former_sets(struct ms_vm *vm)
{
	for (uint32_t i = 0; i < vm->config.address_spaces; i++)
		empty_former_set(vm, i);
}

/* A later close frees the slots that a hold needed at the first one. */
static void free_kept(struct ms_vm *vm)
{
	for (uint32_t i = 0; i < vm->config.address_spaces && !holds_have_kept(&vm->holds); i++) {
		if (vm->as[i].kept)
			empty_set(vm, vm_inactive_set(vm, i), true);
		vm->as[i].kept = false;
	}
}

/* The closing thread has ended in a stall report or in a closed hook.  In the first case the swap of one address space
 * is still to be finished.  The hooks are not called again. */
static void finish_close(struct slots_lock *lock)
{
	struct ms_vm *vm = container_of(lock, struct ms_vm, slots_lock);

	if (!vm->closed && vm_is_swapping(vm, vm->nr_emptied))
		vm_swap_end(vm, vm->nr_emptied++);
	empty_address_spaces(vm);
	free_former_sets(vm);
}

static void close_locked(struct ms_vm *vm)
{
	vm->slots_lock.finish = finish_close;
	empty_address_spaces(vm);
	vm_call_closed_hooks(vm);
	free_former_sets(vm);
}

int ms_vm_close(struct ms_vm *vm, struct ms_error *err)
{
	int r = take_lock(vm, err);

	if (r)
		return r;
	holds_tidy(&vm->holds);
	if (!vm->closed && vm_has_closed_hooks(vm) && !thread_watch())
		r = no_memory(err);
	else if (vm->closed)
		free_kept(vm);
	else
		close_locked(vm);
	vm_unlock(vm);
	return r;
}

void vm_free_deferred(struct ms_vm *vm, bool all)
{
	struct deferred_free *deferred, **link = &vm->deferred_frees;

	while ((deferred = *link)) {
		if (!all && !atomic_load_explicit(&deferred->given_back, memory_order_acquire)) {
			link = &deferred->next;
			continue;
		}
		*link = deferred->next;
		memory_free(&vm->memory, deferred, deferred->size);
	}
}

/* Frees all objects to which callers may have kept pointers: deferred objects and vCPUs. */
static void free_kept_objects(struct ms_vm *vm)
{
	vm_free_deferred(vm, true);
	for (struct ms_vcpu *vcpu = vm->vcpus, *next; vcpu; vcpu = next) {
		next = vcpu->next;
		memory_free_lines(&vm->memory, vcpu, sizeof(*vcpu));
	}
}

static bool is_of_parent(const struct ms_vm *vm)
{
	return vm->forks != process_forks();
}

/* Whether fork() copied this VM in the middle of a change or an update.  The thread that would complete it may exist in
 * the parent only, so ms_vm_destroy() leaves the copy as it is. */
static bool is_unfinished_copy(const struct ms_vm *vm)
{
	return is_of_parent(vm) && (atomic_load_explicit(&vm->update, memory_order_relaxed) ||
				    atomic_load_explicit(&vm->slots_lock.state, memory_order_relaxed));
}

/* Whether the thread is inside a hook or a stall report of its own call, which will use the VM again. */
static bool inside_own_call(const struct ms_vm *vm)
{
	return slots_lock_is_own(&vm->slots_lock) && vm_is_in_step(vm);
}

/* A build that a thread of the parent was advancing stays as it is. */
static void free_indexes(const struct ms_vm *vm, struct address_space *as)
{
	bool is_busy = atomic_load_explicit(&as->build.busy, memory_order_acquire);

	ms_assert(!is_busy || is_of_parent(vm));
	(void)vm;
	if (!is_busy)
		discard_build(&as->build);
	overlays_free(&as->overlays);
}

/* Both sets share their slots, unless the inactive one has kept those of a close. */
static void empty_both_sets(struct ms_vm *vm, uint32_t as_id)
{
	empty_set(vm, vm_inactive_set(vm, as_id), vm->as[as_id].kept);
	empty_set(vm, vm_active_set(vm, as_id), true);
}

static void free_vm(struct ms_vm *vm)
{
	holds_deinit(&vm->holds);
	for (uint32_t i = 0; i < vm->config.address_spaces; i++) {
		free_indexes(vm, &vm->as[i]);
		empty_both_sets(vm, i);
	}
	srcu_deinit(&vm->srcu);
	free_kept_objects(vm);
	memory_free(&vm->memory, vm->listeners, vm->listeners_size);
	memory_free_lines(&vm->memory, vm->as, vm->config.address_spaces * sizeof(*vm->as));
	/* In a forked child no thread releases the indexes that other threads of the parent used or were making. */
	ms_assert(is_of_parent(vm) || (!memory_blocks(&vm->memory) && !vm->memory.pool.room));
	free(vm);
	thread_flush_tasks();
}

/* The thread of ms_vm_destroy() has ended in a closed hook. */
static void thread_ended_in_destroy(struct thread_hook *hook)
{
	struct ms_vm *vm = container_of(hook, struct ms_vm, end_hook);

	free_former_sets(vm);
	free_vm(vm);
}

/* Closes the VM as ms_vm_close() does.  No section is open, so no swap waits.  Without memory to watch the thread, the
 * VM would stay in memory if a hook ended the thread.  A hook may leave a section open, which nobody can end later. */
static void close_with_hooks(struct ms_vm *vm)
{
	slots_lock_seize(&vm->slots_lock);
	thread_watch();
	thread_hook_enter(&vm->end_hook, thread_ended_in_destroy);
	close_locked(vm);
	thread_hook_leave(&vm->end_hook);
	srcu_end_sections(&vm->srcu);
}

/* A garbage collector may call this in any place, so it must not wait.  No thread can return to a section of this VM.
 * Therefore srcu_end_sections() ends all sections first.  After it the grace periods of an update that is open or was
 * dropped find no reader. */
void ms_vm_destroy(struct ms_vm *vm)
{
	if (!vm || is_unfinished_copy(vm) || inside_own_call(vm))
		return;
	srcu_end_sections(&vm->srcu);
	vm_end_update(vm);
	slots_lock_run_pending_end(&vm->slots_lock);
	if (!vm->closed && vm_has_closed_hooks(vm) && !is_of_parent(vm))
		close_with_hooks(vm);
	free_vm(vm);
}

const struct ms_config *ms_vm_config(const struct ms_vm *vm)
{
	return &vm->config;
}

int ms_set_index_policy(struct ms_vm *vm, enum ms_index_policy policy)
{
	if ((unsigned)policy > MS_INDEX_WALK)
		return -EINVAL;
	atomic_store_explicit(&vm->index_policy, policy, memory_order_relaxed);
	return 0;
}

enum ms_index_policy ms_index_policy(const struct ms_vm *vm)
{
	return atomic_load_explicit(&vm->index_policy, memory_order_relaxed);
}

uint64_t ms_nr_memslots(const struct ms_vm *vm)
{
	return atomic_load_explicit(&vm->counts.nr_memslots, memory_order_relaxed);
}

uint64_t ms_nr_memslot_pages(const struct ms_vm *vm)
{
	return atomic_load_explicit(&vm->counts.nr_memslot_pages, memory_order_relaxed);
}

uint64_t ms_manual_dirty_log_protect(const struct ms_vm *vm)
{
	return atomic_load_explicit(&vm->manual_dirty_log_protect, memory_order_relaxed);
}
