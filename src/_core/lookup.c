/* SPDX-License-Identifier: MIT */
/*
 * lookup.c - the only reader: by gfn, hva, id, range; per vCPU; in batches; marks dirty pages.
 *
 * Every call is one read section: count in, load the active word once, look in that set, count out.  Inside a section
 * that ms_read_lock() opened the word is the one that the section saw first.
 *
 * A lookup by gfn asks the set's last_used_slot, then the design.  The hint is written inside the section only: the
 * writer mends it after the grace period (rule "last_used_slot" of docs/locking.md), and a late write would name a
 * slot that is gone.
 *
 * Locking: none; nothing here waits.
 */
#include <errno.h>
#include <stdlib.h>

#include "tree_set.h"
#include "vm.h"

struct look {
	struct srcu_section section;
	struct memslot_set *set; /* NULL: there is no such address space */
};

static inline uint64_t section_view(struct ms_vm *vm, const struct srcu_section *section)
{
	return likely(section->outermost) ? atomic_load_explicit(&vm->active, memory_order_seq_cst) /* A */
					  : section->reader->view;
}

static inline struct look look_begin(struct ms_vm *vm, uint32_t as_id)
{
	struct look look = { .section = srcu_read_lock(&vm->srcu) };

	if (likely(as_id < vm->config.address_spaces))
		look.set = vm_set_in_view(vm, as_id, section_view(vm, &look.section));
	return look;
}

static inline void look_end(struct ms_vm *vm, struct look look)
{
	srcu_read_unlock(&vm->srcu, look.section);
}

int ms_read_lock(struct ms_vm *vm)
{
	struct srcu_section section = srcu_read_lock(&vm->srcu);

	if (unlikely(srcu_is_shared(section.reader))) {
		srcu_read_unlock(&vm->srcu, section);
		return -ENOMEM;
	}
	if (section.outermost)
		section.reader->view = section_view(vm, &section);
	return 0;
}

void ms_read_unlock(struct ms_vm *vm)
{
	srcu_read_unlock(&vm->srcu, (struct srcu_section){ .reader = srcu_reader(&vm->srcu) });
}

/* ---- by gfn ---- */

/* The tree is the design of nearly every VM: its search is inline, the others cost a call. */
static inline struct memslot *search(const struct ms_vm *vm, const struct memslot_set *set, uint64_t gfn)
{
	return likely(vm->design == &DESIGN_OF(tree)) ? tree_search(set, gfn) : vm->design->search(set, gfn);
}

static inline struct memslot *find_hinted(const struct ms_vm *vm, struct memslot_set *set, uint64_t gfn,
					  enum srcu_count *found)
{
	struct memslot *slot = atomic_load_explicit(&set->last_used_slot, memory_order_relaxed);

	*found = SRCU_HIT_LAST_USED;
	if (slot && memslot_contains(slot, gfn))
		return slot;
	slot = search(vm, set, gfn);
	*found = slot ? SRCU_HIT_SEARCH : SRCU_MISS;
	if (slot)
		atomic_store_explicit(&set->last_used_slot, slot, memory_order_relaxed);
	return slot;
}

/* ____gfn_to_memslot(), counted. */
static inline struct memslot *lookup(const struct ms_vm *vm, const struct look *look, uint64_t gfn)
{
	enum srcu_count found = SRCU_MISS;
	struct memslot *slot = look->set ? find_hinted(vm, look->set, gfn, &found) : NULL;

	srcu_count(look->section.reader, found, 1);
	return slot;
}

/* __gfn_to_hva_many() for one page: the rule of section "gfn to hva". */
static inline uint64_t translate(const struct memslot *slot, uint64_t gfn, bool write)
{
	if (!slot || unlikely(slot->flags & MS_MEMSLOT_INVALID))
		return MS_HVA_ERR_BAD;
	if (write && (slot->flags & MS_MEM_READONLY))
		return MS_HVA_ERR_RO_BAD;
	return hva_of(slot, gfn);
}

static int copy_out(const struct memslot *slot, struct ms_memslot *out)
{
	if (!slot)
		return -ENOENT;
	*out = memslot_value(slot);
	return 0;
}

int ms_gfn_to_memslot(struct ms_vm *vm, uint32_t as_id, uint64_t gfn, struct ms_memslot *out)
{
	struct look look = look_begin(vm, as_id);
	int r = copy_out(lookup(vm, &look, gfn), out);

	look_end(vm, look);
	return r;
}

int ms_id_to_memslot(struct ms_vm *vm, uint32_t as_id, uint32_t id, struct ms_memslot *out)
{
	struct look look = look_begin(vm, as_id);
	int r = copy_out(look.set ? vm->design->find(look.set, id) : NULL, out);

	look_end(vm, look);
	return r;
}

uint64_t ms_gfn_to_hva(struct ms_vm *vm, uint32_t as_id, uint64_t gfn)
{
	struct look look = look_begin(vm, as_id);
	uint64_t hva = translate(lookup(vm, &look, gfn), gfn, true);

	look_end(vm, look);
	return hva;
}

uint64_t ms_gfn_to_hva_prot(struct ms_vm *vm, uint32_t as_id, uint64_t gfn, bool *writable)
{
	struct look look = look_begin(vm, as_id);
	const struct memslot *slot = lookup(vm, &look, gfn);
	uint64_t hva = translate(slot, gfn, false);

	if (hva < MS_HVA_ERR_MIN)
		*writable = !(slot->flags & MS_MEM_READONLY);
	look_end(vm, look);
	return hva;
}

bool ms_is_visible_gfn(struct ms_vm *vm, uint32_t as_id, uint64_t gfn)
{
	struct look look = look_begin(vm, as_id);
	const struct memslot *slot = lookup(vm, &look, gfn);
	bool visible = slot && slot->id < vm->config.user_mem_slots && !(slot->flags & MS_MEMSLOT_INVALID);

	look_end(vm, look);
	return visible;
}

/* ---- batches ---- */

static inline uint64_t batch_in(const struct ms_batch *batch, size_t i)
{
	return *(const uint64_t *)(const void *)((const char *)batch->in + (ptrdiff_t)i * batch->in_stride);
}

static inline void *batch_out(const struct ms_batch *batch, size_t i)
{
	return (char *)batch->out + (ptrdiff_t)i * batch->out_stride;
}

typedef void emit_fn(const struct ms_batch *batch, size_t i, const struct memslot *slot, uint64_t in, bool write);

/* Inlined with each emit: shift is how far an input lies from its gfn. */
static inline void look_up_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write,
				unsigned shift, emit_fn *emit)
{
	struct look look = look_begin(vm, as_id);
	uint64_t counts[SRCU_NR_COUNTS] = { 0 };

	for (size_t i = 0; i < batch->n; i++) {
		uint64_t in = batch_in(batch, i);
		enum srcu_count found = SRCU_MISS;
		const struct memslot *slot = look.set ? find_hinted(vm, look.set, in >> shift, &found) : NULL;

		counts[found]++;
		emit(batch, i, slot, in, write);
	}
	for (unsigned i = 0; i < SRCU_NR_COUNTS; i++)
		srcu_count(look.section.reader, i, counts[i]);
	look_end(vm, look);
}

static inline void emit_gfn(const struct ms_batch *batch, size_t i, const struct memslot *slot, uint64_t gfn, bool write)
{
	*(uint64_t *)batch_out(batch, i) = translate(slot, gfn, write);
}

static inline void emit_gpa(const struct ms_batch *batch, size_t i, const struct memslot *slot, uint64_t gpa, bool write)
{
	uint64_t hva = translate(slot, gpa >> MS_PAGE_SHIFT, write);

	*(uint64_t *)batch_out(batch, i) = hva < MS_HVA_ERR_MIN ? hva + gpa % MS_PAGE_SIZE : hva;
}

static inline void emit_id(const struct ms_batch *batch, size_t i, const struct memslot *slot, uint64_t gfn, bool write)
{
	(void)gfn;
	(void)write;
	*(int32_t *)batch_out(batch, i) = slot && !(slot->flags & MS_MEMSLOT_INVALID) ? (int32_t)slot->id : -1;
}

void ms_gfn_to_hva_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write)
{
	look_up_many(vm, as_id, batch, write, 0, emit_gfn);
}

void ms_gpa_to_hva_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write)
{
	look_up_many(vm, as_id, batch, write, MS_PAGE_SHIFT, emit_gpa);
}

void ms_gfn_to_slot_id_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch)
{
	look_up_many(vm, as_id, batch, false, 0, emit_id);
}

/* ---- ranges ---- */

struct slots_out {
	struct ms_memslot *out;
	size_t room, nr;
};

static void put_slot(struct slots_out *to, const struct memslot *slot)
{
	if (to->nr < to->room)
		to->out[to->nr] = memslot_value(slot);
	to->nr++;
}

size_t ms_memslots_in_gfn_range(struct ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t end, struct ms_memslot *out,
				size_t room)
{
	struct look look = look_begin(vm, as_id);
	struct slots_out to = { out, room, 0 };
	const struct memslot *slot = look.set && start < end ? vm->design->first_from(look.set, start) : NULL;

	for (; slot && slot->base_gfn < end; slot = vm->design->next(look.set, slot))
		put_slot(&to, slot);
	look_end(vm, look);
	return to.nr;
}

static void visit_slot(void *to, const struct memslot *slot)
{
	put_slot(to, slot);
}

static int by_hva(const struct ms_memslot *a, const struct ms_memslot *b)
{
	if (a->userspace_addr != b->userspace_addr)
		return a->userspace_addr < b->userspace_addr ? -1 : 1;
	return a->base_gfn < b->base_gfn ? -1 : 1;
}

static int compare_slots(const void *a, const void *b)
{
	return by_hva(a, b);
}

size_t ms_memslots_in_hva_range(struct ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t last, struct ms_memslot *out,
				size_t room)
{
	struct look look = look_begin(vm, as_id);
	struct slots_out to = { out, room, 0 };
	bool sorted = true;

	if (look.set && start <= last)
		sorted = vm->design->hva_range(look.set, start, last, visit_slot, &to);
	look_end(vm, look);
	if (!sorted && to.nr > 1 && to.nr <= room)
		qsort(out, to.nr, sizeof(*out), compare_slots);
	return to.nr;
}

size_t ms_memslots(struct ms_vm *vm, uint32_t as_id, struct ms_memslot *out, size_t room)
{
	return ms_memslots_in_gfn_range(vm, as_id, 0, ~(uint64_t)0, out, room);
}

struct hits_out {
	uint64_t hva;
	struct ms_hva_hit *out;
	size_t room, nr;
};

static void put_hit(void *context, const struct memslot *slot)
{
	struct hits_out *to = context;

	if (to->nr < to->room)
		to->out[to->nr] = (struct ms_hva_hit){
			.slot = memslot_value(slot),
			.gfn = slot->base_gfn + ((to->hva - slot->hva.start) >> MS_PAGE_SHIFT),
		};
	to->nr++;
}

static int compare_hits(const void *a, const void *b)
{
	const struct ms_hva_hit *x = a, *y = b;

	return by_hva(&x->slot, &y->slot);
}

size_t ms_hva_to_gfns(struct ms_vm *vm, uint64_t hva, struct ms_hva_hit *out, size_t room)
{
	struct srcu_section section = srcu_read_lock(&vm->srcu);
	uint64_t view = section_view(vm, &section);
	struct hits_out to = { hva, out, room, 0 };

	for (uint32_t as_id = 0; as_id < vm->config.address_spaces; as_id++) {
		size_t first = to.nr;
		bool sorted = vm->design->hva_range(vm_set_in_view(vm, as_id, view), hva, hva, put_hit, &to);

		if (!sorted && to.nr > 1 && to.nr <= room)
			qsort(out + first, to.nr - first, sizeof(*out), compare_hits);
	}
	srcu_read_unlock(&vm->srcu, section);
	return to.nr;
}

uint64_t ms_generation(struct ms_vm *vm, uint32_t as_id)
{
	struct look look = look_begin(vm, as_id);
	uint64_t gen = look.set ? atomic_load_explicit(&look.set->generation, memory_order_relaxed) : 0; /* G */

	look_end(vm, look);
	return gen;
}

/* ---- vCPUs ---- */

/* kvm_vcpu_gfn_to_memslot(): the hint is only followed when it was stored under the set's own generation, which is
 * read inside the section; the set's hint is left alone. */
static struct memslot *find_with_hint(struct ms_vcpu *vcpu, const struct look *look, uint64_t gfn, enum srcu_count *found)
{
	uint64_t gen = atomic_load_explicit(&look->set->generation, memory_order_relaxed); /* G */
	struct memslot *slot;

	if (gen != vcpu->last_used_slot_gen) {
		vcpu->last_used_slot = NULL;
		vcpu->last_used_slot_gen = gen;
	}
	*found = SRCU_HIT_LAST_USED;
	slot = vcpu->last_used_slot;
	if (slot && memslot_contains(slot, gfn))
		return slot;
	slot = search(vcpu->vm, look->set, gfn);
	*found = slot ? SRCU_HIT_SEARCH : SRCU_MISS;
	if (slot)
		vcpu->last_used_slot = slot;
	return slot;
}

static struct memslot *vcpu_lookup(struct ms_vcpu *vcpu, const struct look *look, uint64_t gfn)
{
	enum srcu_count found;
	struct memslot *slot;

	if (likely(vcpu_try_use(vcpu))) {
		slot = find_with_hint(vcpu, look, gfn, &found);
		vcpu_put(vcpu);
	} else {
		slot = search(vcpu->vm, look->set, gfn);
		found = SRCU_VCPU_BYPASS;
	}
	srcu_count(look->section.reader, found, 1);
	return slot;
}

static struct look vcpu_look_begin(struct ms_vcpu *vcpu)
{
	return look_begin(vcpu->vm, atomic_load_explicit(&vcpu->as_id, memory_order_relaxed));
}

int ms_vcpu_gfn_to_memslot(struct ms_vcpu *vcpu, uint64_t gfn, struct ms_memslot *out)
{
	struct look look = vcpu_look_begin(vcpu);
	int r = copy_out(vcpu_lookup(vcpu, &look, gfn), out);

	look_end(vcpu->vm, look);
	return r;
}

uint64_t ms_vcpu_gfn_to_hva(struct ms_vcpu *vcpu, uint64_t gfn)
{
	struct look look = vcpu_look_begin(vcpu);
	uint64_t hva = translate(vcpu_lookup(vcpu, &look, gfn), gfn, true);

	look_end(vcpu->vm, look);
	return hva;
}

int ms_vcpu_set_as_id(struct ms_vcpu *vcpu, uint32_t as_id)
{
	if (as_id >= vcpu->vm->config.address_spaces)
		return -EINVAL;
	atomic_store_explicit(&vcpu->as_id, as_id, memory_order_relaxed);
	return 0;
}

uint32_t ms_vcpu_as_id(const struct ms_vcpu *vcpu)
{
	return atomic_load_explicit(&vcpu->as_id, memory_order_relaxed);
}

/* ---- dirty pages ---- */

static inline void mark(const struct memslot *slot, uint64_t gfn)
{
	if (slot && slot->dirty)
		dirty_log_mark(slot->dirty, gfn - slot->base_gfn);
}

void ms_mark_page_dirty(struct ms_vm *vm, uint32_t as_id, uint64_t gfn)
{
	struct look look = look_begin(vm, as_id);

	mark(lookup(vm, &look, gfn), gfn);
	look_end(vm, look);
}

static inline void emit_mark(const struct ms_batch *batch, size_t i, const struct memslot *slot, uint64_t gfn,
			     bool write)
{
	(void)batch;
	(void)i;
	(void)write;
	mark(slot, gfn);
}

void ms_mark_page_dirty_many(struct ms_vm *vm, uint32_t as_id, const void *gfns, ptrdiff_t stride, size_t n)
{
	struct ms_batch batch = { .in = gfns, .in_stride = stride, .n = n };

	look_up_many(vm, as_id, &batch, true, 0, emit_mark);
}

static uint64_t hash_grows(const struct ms_vm *vm)
{
	uint64_t total = 0;

	for (uint32_t i = 0; i < vm->config.address_spaces; i++)
		total += atomic_load_explicit(&vm->as[i].hash_grows, memory_order_relaxed);
	return total;
}

void ms_get_stats(struct ms_vm *vm, struct ms_stats *out)
{
	struct vm_counts *c = &vm->counts;

	*out = (struct ms_stats){
		.hits_last_used = srcu_total(&vm->srcu, SRCU_HIT_LAST_USED),
		.hits_search = srcu_total(&vm->srcu, SRCU_HIT_SEARCH),
		.misses = srcu_total(&vm->srcu, SRCU_MISS),
		.vcpu_bypasses = srcu_total(&vm->srcu, SRCU_VCPU_BYPASS),
		.creates = atomic_load_explicit(&c->change[MS_CREATE], memory_order_relaxed),
		.deletes = atomic_load_explicit(&c->change[MS_DELETE], memory_order_relaxed),
		.moves = atomic_load_explicit(&c->change[MS_MOVE], memory_order_relaxed),
		.flag_changes = atomic_load_explicit(&c->change[MS_FLAGS_ONLY], memory_order_relaxed),
		.noops = atomic_load_explicit(&c->noops, memory_order_relaxed),
		.refused = atomic_load_explicit(&c->refused, memory_order_relaxed),
		.swaps = atomic_load_explicit(&vm->srcu.periods, memory_order_relaxed),
		.grace_waits = atomic_load_explicit(&vm->srcu.waits, memory_order_relaxed),
		.hash_grows = hash_grows(vm),
		.bytes = atomic_load_explicit(&vm->memory.bytes, memory_order_relaxed),
		.blocks = memory_blocks(&vm->memory),
	};
}
