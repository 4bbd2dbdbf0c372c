/* SPDX-License-Identifier: MIT */
/*
 * fixture.h - shared by the tests of whole VMs: requests in pages, and pictures of a VM to compare.
 *
 * picture_of() reads the VM's fields without a lookup: it moves no hint and allocates nothing, so a test may call it
 * while allocations are made to fail.
 */
#ifndef MS_FIXTURE_H
#define MS_FIXTURE_H

#include "test.h"

#include "tree_set.h"
#include "vm.h"

#include <errno.h>
#include <pthread.h>

typedef struct ms_userspace_memory_region region_t;

#define PAGE MS_PAGE_SIZE
#define HVA_BASE ((uint64_t)1 << 44)

/* The host address contains id and address space, so it identifies the slot. */
static inline uint64_t hva_for(uint32_t as_id, uint32_t id)
{
	return HVA_BASE + ((uint64_t)as_id << 32) + ((uint64_t)id << 20);
}

static inline region_t region(uint32_t as_id, uint32_t id, uint64_t gfn, uint64_t npages, uint32_t flags)
{
	return (region_t){
		.slot = id,
		.as_id = as_id,
		.flags = flags,
		.guest_memfd = -1,
		.guest_phys_addr = gfn * PAGE,
		.memory_size = npages * PAGE,
		.userspace_addr = hva_for(as_id, id),
	};
}

static inline int set(struct ms_vm *vm, uint32_t as_id, uint32_t id, uint64_t gfn, uint64_t npages, uint32_t flags)
{
	region_t r = region(as_id, id, gfn, npages, flags);

	return ms_set_user_memory_region(vm, &r, NULL);
}

/* Every design gives the same answers.  A test runs on each of them with
 *	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) */
static const char *design_name = "tree";

static inline bool design_is(const char *name)
{
	return !strcmp(design_name, name);
}

static inline const struct memslot_design *design(void)
{
	size_t i = 0;

	while (strcmp(ms_backend_name(i), design_name))
		i++;
	return vm_design(i);
}

/* Thousands of slots take such a design too long. */
static inline bool design_walks(void)
{
	return design()->costs.change == COST_WALK;
}

static inline struct ms_config default_config(uint32_t address_spaces)
{
	struct ms_config config;

	ms_config_init(&config);
	config.address_spaces = address_spaces;
	config.backend = design_name;
	return config;
}

static inline struct ms_vm *vm_with(const struct ms_config *config)
{
	struct ms_vm *vm;

	CHECK_EQ(ms_vm_create(config, &vm), 0);
	return vm;
}

static inline struct ms_vm *new_vm(uint32_t address_spaces)
{
	struct ms_config config = default_config(address_spaces);

	return vm_with(&config);
}

/* The number of the allocation of a change that is for this purpose; 0: there is none.  Where sets store their own
 * copies, the writer keeps a copy of the old slot, and the new set comes before the log.  The hash of the
 * tree must not grow meanwhile. */
enum purpose { FOR_SLOT, FOR_COPY, FOR_LOG };

static inline unsigned allocation(enum ms_change_kind kind, enum purpose purpose)
{
	bool copies = !design()->shares_slots, invalid = kind == MS_DELETE || kind == MS_MOVE;
	unsigned slot = (copies && kind != MS_CREATE) + (kind != MS_DELETE), copy = slot + invalid;

	if (purpose == FOR_SLOT)
		return kind != MS_DELETE ? slot : 0;
	if (purpose == FOR_COPY)
		return invalid ? copy : 0;
	return kind != MS_DELETE ? copy + copies + 1 : 0;
}

static inline struct ms_stats stats_of(struct ms_vm *vm)
{
	struct ms_stats stats;

	ms_get_stats(vm, &stats);
	return stats;
}

/* The statistics with the blocks in use instead of the pool's chunks: free blocks depend on earlier changes. */
static inline struct ms_stats held_by(struct ms_vm *vm)
{
	const struct memory_pool *pool = &vm->memory.pool;
	struct ms_stats stats = stats_of(vm);

	stats.bytes += atomic_load(&pool->blocks) * sizeof(struct tree_slot) - pool->bytes;
	return stats;
}

static inline void check_sound(struct ms_vm *vm)
{
	struct ms_violation violation = { .text = "" };
	int r = ms_check(vm, &violation, NULL);

	if (r)
		fprintf(stderr, "%s: %s (design %s)\n", violation.invariant, violation.text, vm->design->name);
	CHECK_EQ(r, 0);
}

static inline bool same_slot(const struct ms_memslot *a, const struct ms_memslot *b)
{
	return a->base_gfn == b->base_gfn && a->npages == b->npages && a->userspace_addr == b->userspace_addr &&
	       a->id == b->id && a->as_id == b->as_id && a->flags == b->flags && a->reserved == b->reserved;
}

static inline bool no_slot(const struct ms_memslot *slot)
{
	return same_slot(slot, &(struct ms_memslot){ 0 });
}

/* ---- the indexes of an address space ---- */

#define OVERLAYS_MAX 64

/* At rest: all overlays that hold memory, and their number.  No index is half made. */
static inline size_t overlays_of(const struct address_space *as, const struct overlay **found)
{
	const struct overlay *current = atomic_load(&as->overlays.current);
	size_t nr = 0;

	CHECK(!as->build.builder && !as->build.base && !as->overlays.expiring);
	found[nr] = atomic_load(&as->overlays.coming);
	nr += found[nr] != NULL;
	found[nr] = current;
	nr += current != NULL;
	for (const struct overlay *o = atomic_load(&as->overlays.retired); o; o = o->next) {
		CHECK(nr < OVERLAYS_MAX);
		found[nr++] = o;
	}
	return nr;
}

/* Adds up the memory of all these overlays and their indexes. */
static inline void count_overlays(const struct address_space *as, uint64_t *blocks, uint64_t *bytes)
{
	const struct overlay *found[OVERLAYS_MAX];
	size_t nr = overlays_of(as, found);

	for (size_t i = 0; i < nr; i++) {
		*blocks += 1 + (found[i]->index != NULL);
		*bytes += whole_lines(found[i]->size) + (found[i]->index ? whole_lines(found[i]->index->size) : 0);
	}
}

/* A VM without slots has only its sets, the records of its readers, its vCPUs, its list of listeners, and the deferred
 * frees of updates whose threads have ended. */
static inline void check_empty(struct ms_vm *vm)
{
	struct ms_stats stats = stats_of(vm);
	uint64_t blocks = 1 + (vm->listeners != NULL), bytes = 0;

	/* A reader that was making an index when the VM was closed has retired it. */
	for (uint32_t i = 0; i < vm->config.address_spaces; i++) {
		CHECK(!atomic_load(&vm->as[i].overlays.coming) && !atomic_load(&vm->as[i].overlays.current));
		count_overlays(&vm->as[i], &blocks, &bytes);
	}

	for (struct srcu_reader *r = atomic_load(&vm->srcu.readers); r; r = r->next)
		blocks += r != &vm->srcu.shared;
	for (struct ms_vcpu *vcpu = vm->vcpus; vcpu; vcpu = vcpu->next)
		blocks++;
	for (const struct deferred_free *d = vm->deferred_frees; d; d = d->next)
		blocks++;
	CHECK_EQ(stats.blocks, blocks);
	CHECK_EQ(vm->memory.pool.bytes, 0);
}

/* Ends the VM and proves that nothing leaked; ms_vm_destroy() alone does not. */
static inline void end_vm(struct ms_vm *vm)
{
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	check_empty(vm);
	ms_vm_destroy(vm);
}

/* Calls fn(arg) in a new thread, and waits until this thread has ended. */
static inline void by_another_thread(void *(*fn)(void *), const void *arg)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, fn, (void *)(uintptr_t)arg), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

/* ---- pictures ---- */

struct picture {
	uint64_t slots;       /* all values and dirty bits of both sets of each address space */
	uint64_t generations; /* of each address space, and which set is active */
	uint64_t nr, pages;
	uint64_t manual;
	uint64_t listeners;
};

static inline uint64_t mix(uint64_t hash, uint64_t value)
{
	return (hash ^ value) * 0x9E3779B97F4A7C15u + (hash >> 29);
}

static inline uint64_t mix_log(uint64_t hash, const struct dirty_log *log)
{
	for (size_t i = 0; i < nwords_of(log); i++)
		hash = mix(hash, atomic_load(&log->live[i]));
	return mix(hash, log->npages);
}

static inline uint64_t mix_set(uint64_t hash, const struct ms_vm *vm, const struct memslot_set *from)
{
	const struct memslot *slot = vm->design->first_from(from, 0);

	for (; slot; slot = vm->design->next(from, slot)) {
		hash = mix(mix(mix(hash, slot->base_gfn), slot->npages), slot->hva.start);
		hash = mix(mix(mix(mix(hash, slot->id), slot->as_id), slot->flags), slot->hva.last);
		hash = slot->dirty ? mix_log(hash, slot->dirty) : mix(hash, 0);
	}
	return mix(hash, from->nr);
}

static inline struct picture picture_of(struct ms_vm *vm)
{
	struct picture p = { .nr = ms_nr_memslots(vm), .pages = ms_nr_memslot_pages(vm) };

	p.manual = ms_manual_dirty_log_protect(vm);
	p.listeners = vm->nr_listeners;
	for (uint32_t as_id = 0; as_id < vm->config.address_spaces; as_id++) {
		p.slots = mix_set(p.slots, vm, &vm->as[as_id].set[0]);
		p.slots = mix_set(p.slots, vm, &vm->as[as_id].set[1]);
		p.generations = mix(p.generations, atomic_load(&vm->as[as_id].set[0].generation));
		p.generations = mix(p.generations, atomic_load(&vm->as[as_id].set[1].generation));
	}
	p.generations = mix(p.generations, atomic_load(&vm->active));
	return p;
}

/* True if a failed call has changed nothing.  The generations are not compared: a DELETE or MOVE that prepare refuses
 * changes them. */
static inline bool same_picture(const struct picture *a, const struct picture *b)
{
	return a->slots == b->slots && a->nr == b->nr && a->pages == b->pages && a->manual == b->manual &&
	       a->listeners == b->listeners;
}

/* After a refused call: it is counted, and nothing else has changed since `before` and `held` (held_by()). */
static inline void check_only_refused(struct ms_vm *vm, const struct picture *before, const struct ms_stats *held)
{
	struct picture after = picture_of(vm);
	struct ms_stats now = held_by(vm);

	CHECK(same_picture(before, &after));
	CHECK_EQ(after.generations, before->generations);
	CHECK_EQ(now.blocks, held->blocks);
	CHECK_EQ(now.bytes, held->bytes);
	CHECK_EQ(now.refused, held->refused + 1);
	check_sound(vm);
}

static inline uint64_t settled_generation(struct ms_vm *vm, uint32_t as_id)
{
	return atomic_load(&vm_active_set(vm, as_id)->generation);
}

static inline uint32_t active_idx(struct ms_vm *vm, uint32_t as_id)
{
	return vm_active_set(vm, as_id)->node_idx;
}

#endif
