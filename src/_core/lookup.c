/* SPDX-License-Identifier: MIT */
/*
 * lookup.c - the calls of readers: lookups by gfn, hva, id and range, lookups of a vCPU, and dirty marks.
 *
 * Every call is one read section (look.h).  search.h finds the slot of a gfn.  batch.c has the calls for many gfns.
 *
 * Locking: none; nothing here waits.
 */
#include <errno.h>
#include <stdlib.h>

#include "search.h"

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

/* The shared record has no section of ms_read_lock()'s. */
int ms_read_unlock(struct ms_vm *vm)
{
	struct srcu_reader *reader = srcu_reader(&vm->srcu);

	if (unlikely(srcu_is_shared(reader) || !reader->depth))
		return -EPERM;
	srcu_read_unlock(&vm->srcu, (struct srcu_section){ .reader = reader });
	thread_flush_tasks();
	return 0;
}

/* ---- by gfn ---- */

/* ____gfn_to_memslot(), and counts the result. */
static inline struct memslot *lookup(const struct ms_vm *vm, const struct look *look, uint64_t gfn)
{
	enum srcu_count found = SRCU_MISS;
	struct memslot *slot = look->set ? find_hinted(vm, look->set, look->section.reader, gfn, &found) : NULL;

	srcu_count(look->section.reader, found, 1);
	return slot;
}

/* Whether the thread has made another SEARCHES_PER_REPORT searches. */
static inline bool report_is_due(const struct srcu_reader *reader, enum srcu_count found)
{
	return found == SRCU_HIT_SEARCH &&
	       unlikely(atomic_load_explicit(&reader->count[found], memory_order_relaxed) % SEARCHES_PER_REPORT == 0);
}

/* An index contains no pointers to slots.  If a slot is found twice in a row, it is searched for in the set and becomes
 * the hint. */
static inline uint64_t hva_by_index(const struct ms_vm *vm, const struct look *look, const struct flat_index *index,
				    uint64_t gfn, bool write)
{
	uint32_t piece;
	uint64_t delta = flat_word(index, gfn, &piece);

	point(READER_INDEX_FOUND);
	if (!(delta & FLAT_HOLE) && unlikely(found_again(look->section.reader, &index->deltas[piece]))) {
		struct memslot *slot = search(vm, look->set, gfn);

		point(READER_SLOT_FOUND);
		move_hint(look->set, slot);
	}
	return translate_delta(delta, gfn, write);
}

static inline uint64_t hva_without_hint(const struct ms_vm *vm, const struct look *look, uint64_t gfn, bool write,
					enum srcu_count *found)
{
	const struct flat_index *index = index_for_one(vm, look->set, gfn);
	const struct memslot *slot;

	*found = SRCU_INDEXED;
	if (likely(index))
		return hva_by_index(vm, look, index, gfn, write);
	slot = search_and_hint(vm, look->set, look->section.reader, gfn);
	*found = slot ? SRCU_HIT_SEARCH : SRCU_MISS;
	return translate(slot, gfn, write);
}

/* Counts a lookup that the hint has not answered, and ends its section. */
static inline void end_lookup(struct ms_vm *vm, struct look look, uint32_t as_id, enum srcu_count found)
{
	bool report;

	srcu_count(look.section.reader, found, 1);
	report = report_is_due(look.section.reader, found);
	look_end(vm, look);
	if (unlikely(report))
		vm_index_report_searches(vm, as_id);
}

/* The rest of a lookup that the hint does not answer.  Ends the section of the caller. */
static inline uint64_t finish_lookup(struct ms_vm *vm, struct look look, uint32_t as_id, uint64_t gfn, bool write)
{
	enum srcu_count found = SRCU_MISS;
	uint64_t hva = look.set ? hva_without_hint(vm, &look, gfn, write, &found) : MS_HVA_ERR_BAD;

	end_lookup(vm, look, as_id, found);
	return hva;
}

/* The end of a lookup that the slot of a hint answers. */
static inline uint64_t end_with_hint(struct ms_vm *vm, struct look look, const struct memslot *slot, uint64_t gfn,
				     bool write)
{
	uint64_t hva = translate(slot, gfn, write);

	srcu_count(look.section.reader, SRCU_HIT_LAST_USED, 1);
	look_end(vm, look);
	return hva;
}

/*
 * The fast paths of ms_gfn_to_hva() and ms_vcpu_gfn_to_hva() do little but load and store, and each saved register is
 * one more load and one more store.  So a call is the last thing that they do, and its arguments fit into registers.
 */

static out_of_line uint64_t finish_fast_lookup(struct ms_vm *vm, uint32_t as_id, uint64_t gfn,
					       struct srcu_reader *reader, struct memslot_set *set)
{
	return finish_lookup(vm, look_of(reader, set), as_id, gfn, true);
}

static out_of_line uint64_t wake_writer_and_return(struct ms_vm *vm, uint64_t hva)
{
	srcu_wake_writer(&vm->srcu);
	return hva;
}

static inline uint64_t leave_with_hint(struct ms_vm *vm, struct srcu_reader *reader, const struct memslot *slot,
				       uint64_t gfn)
{
	uint64_t hva = translate(slot, gfn, true);

	srcu_count_own(reader, SRCU_HIT_LAST_USED, 1);
	point(READER_LEAVES);
	srcu_end_outermost(reader);
	if (srcu_writer_sleeps(&vm->srcu))
		hva = wake_writer_and_return(vm, hva);
	point(READER_LEFT);
	return hva;
}

/* The general path of a lookup of an address. */
static out_of_line uint64_t gfn_to_hva(struct ms_vm *vm, uint32_t as_id, uint64_t gfn, bool write)
{
	struct look look = look_begin(vm, as_id);
	const struct memslot *slot = look.set ? hint_for(look.set, gfn) : NULL;

	return slot ? end_with_hint(vm, look, slot, gfn, write) : finish_lookup(vm, look, as_id, gfn, write);
}

static int copy_out(const struct memslot *slot, struct ms_memslot *out)
{
	if (!slot)
		return -ENOENT;
	if (out)
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

/* The fast path: the record of the thread is in its cache, the thread is outside of sections of this VM, and the slot
 * of the hint contains the gfn.  Everything else is in other functions, to keep this one short. */
uint64_t ms_gfn_to_hva(struct ms_vm *vm, uint32_t as_id, uint64_t gfn)
{
	struct srcu_reader *reader = srcu_cached_reader(&vm->srcu);
	const struct memslot *slot;
	struct memslot_set *set;

	if (unlikely(!reader || reader->depth || as_id >= vm->config.address_spaces))
		return gfn_to_hva(vm, as_id, gfn, true);
	srcu_enter(&vm->srcu, reader);
	set = vm_active_set(vm, as_id);
	point(READER_VIEW_LOADED);
	slot = hint_for(set, gfn);
	if (unlikely(!slot))
		return finish_fast_lookup(vm, as_id, gfn, reader, set);
	return leave_with_hint(vm, reader, slot, gfn);
}

uint64_t ms_gfn_to_hva_prot(struct ms_vm *vm, uint32_t as_id, uint64_t gfn, bool *writable)
{
	struct look look = look_begin(vm, as_id);
	const struct memslot *slot = lookup(vm, &look, gfn);
	uint64_t hva = translate(slot, gfn, false);

	if (writable && hva < MS_HVA_ERR_MIN)
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

/* ---- ranges ---- */

struct slots_out {
	struct ms_memslot *out;
	size_t room, nr;
};

static void put_slot(void *context, const struct memslot *slot)
{
	struct slots_out *to = context;

	point(READER_WALKS);
	if (to->out && to->nr < to->room)
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
		sorted = vm->design->hva_range(look.set, start, last, put_slot, &to);
	look_end(vm, look);
	if (out && !sorted && to.nr > 1 && to.nr <= room)
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

	if (to->out && to->nr < to->room)
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

		if (out && !sorted && to.nr > 1 && to.nr <= room)
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

/* kvm_vcpu_gfn_to_memslot(): the hint of the vCPU is used only if it was stored with the present generation of the set,
 * which is read inside the section.  The hint of the set is neither used nor changed. */
static inline struct memslot *vcpu_hint_for(const struct ms_vcpu *vcpu, const struct memslot_set *set, uint64_t gfn)
{
	uint64_t generation = atomic_load_explicit(&set->generation, memory_order_relaxed); /* G */
	struct memslot *slot;

	point(VCPU_GENERATION_LOADED);
	return vcpu_hint_read(&vcpu->hint, generation, &slot) && memslot_contains(slot, gfn) ? slot : NULL;
}

static struct memslot *vcpu_search(struct ms_vcpu *vcpu, const struct memslot_set *set, uint64_t gfn,
				   enum srcu_count *found)
{
	uint64_t generation = atomic_load_explicit(&set->generation, memory_order_relaxed); /* G */
	struct memslot *slot = search(vcpu->vm, set, gfn);

	*found = SRCU_MISS;
	if (slot)
		*found = vcpu_hint_store(&vcpu->hint, generation, slot) ? SRCU_HIT_SEARCH : SRCU_VCPU_BYPASS;
	return slot;
}

static inline uint32_t vcpu_as_id(const struct ms_vcpu *vcpu)
{
	return atomic_load_explicit(&vcpu->as_id, memory_order_relaxed);
}

static struct look vcpu_look_begin(struct ms_vcpu *vcpu)
{
	return look_begin(vcpu->vm, vcpu_as_id(vcpu));
}

int ms_vcpu_gfn_to_memslot(struct ms_vcpu *vcpu, uint64_t gfn, struct ms_memslot *out)
{
	struct look look = vcpu_look_begin(vcpu);
	const struct memslot *slot = vcpu_hint_for(vcpu, look.set, gfn);
	enum srcu_count found = SRCU_HIT_LAST_USED;
	int r;

	if (!slot)
		slot = vcpu_search(vcpu, look.set, gfn, &found);
	srcu_count(look.section.reader, found, 1);
	r = copy_out(slot, out);
	look_end(vcpu->vm, look);
	return r;
}

/* If a vCPU finds the same slot twice in a row, it is searched for in the set, and becomes its hint. */
static uint64_t vcpu_hva_by_index(struct ms_vcpu *vcpu, const struct look *look, const struct flat_index *index,
				  uint64_t gfn, enum srcu_count *found)
{
	uint32_t piece;
	uint64_t delta = flat_word(index, gfn, &piece);
	bool again = same_as_last(&vcpu->last_found, &index->deltas[piece]);

	point(READER_INDEX_FOUND);
	if (!(delta & FLAT_HOLE) && again)
		return translate(vcpu_search(vcpu, look->set, gfn, found), gfn, true);
	*found = SRCU_INDEXED;
	return translate_delta(delta, gfn, true);
}

static uint64_t vcpu_hva_without_hint(struct ms_vcpu *vcpu, const struct look *look, uint64_t gfn,
				      enum srcu_count *found)
{
	const struct flat_index *index = index_for_one(vcpu->vm, look->set, gfn);

	if (index)
		return vcpu_hva_by_index(vcpu, look, index, gfn, found);
	return translate(vcpu_search(vcpu, look->set, gfn, found), gfn, true);
}

static void remember_reader(struct ms_vcpu *vcpu, struct srcu_reader *reader)
{
	if (atomic_load_explicit(&vcpu->reader, memory_order_relaxed) != reader)
		atomic_store_explicit(&vcpu->reader, reader, memory_order_release);
}

/* As finish_lookup().  A lookup that its hint answers writes nothing to the vCPU, so the reader is stored here. */
static inline uint64_t finish_vcpu_lookup(struct ms_vcpu *vcpu, struct look look, uint64_t gfn)
{
	enum srcu_count found;
	uint64_t hva = vcpu_hva_without_hint(vcpu, &look, gfn, &found);

	remember_reader(vcpu, look.section.reader);
	end_lookup(vcpu->vm, look, vcpu_as_id(vcpu), found);
	return hva;
}

/* The general path of a lookup of an address. */
static out_of_line uint64_t vcpu_gfn_to_hva(struct ms_vcpu *vcpu, uint64_t gfn)
{
	struct look look = vcpu_look_begin(vcpu);
	const struct memslot *slot = vcpu_hint_for(vcpu, look.set, gfn);

	return slot ? end_with_hint(vcpu->vm, look, slot, gfn, true) : finish_vcpu_lookup(vcpu, look, gfn);
}

static out_of_line uint64_t finish_fast_vcpu_lookup(struct ms_vcpu *vcpu, uint64_t gfn, struct srcu_reader *reader,
						    struct memslot_set *set)
{
	return finish_vcpu_lookup(vcpu, look_of(reader, set), gfn);
}

/* The fast path, as that of ms_gfn_to_hva(): the thread is the one that used the vCPU last. */
uint64_t ms_vcpu_gfn_to_hva(struct ms_vcpu *vcpu, uint64_t gfn)
{
	struct ms_vm *vm = vcpu->vm;
	struct srcu_reader *reader = atomic_load_explicit(&vcpu->reader, memory_order_acquire);
	uint32_t as_id = vcpu_as_id(vcpu);
	const struct memslot *slot;
	struct memslot_set *set;

	if (unlikely(!srcu_is_own(reader) || reader->depth))
		return vcpu_gfn_to_hva(vcpu, gfn);
	srcu_enter(&vm->srcu, reader);
	set = vm_active_set(vm, as_id);
	opaque(set); /* one register for it, not two */
	point(READER_VIEW_LOADED);
	slot = vcpu_hint_for(vcpu, set, gfn);
	if (unlikely(!slot))
		return finish_fast_vcpu_lookup(vcpu, gfn, reader, set);
	return leave_with_hint(vm, reader, slot, gfn);
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
	return vcpu_as_id(vcpu);
}

/* ---- dirty pages ---- */

void ms_mark_page_dirty(struct ms_vm *vm, uint32_t as_id, uint64_t gfn)
{
	struct look look = look_begin(vm, as_id);

	mark(lookup(vm, &look, gfn), gfn);
	look_end(vm, look);
}

/* ---- the backing of a slot ---- */

/* Inside the section the slot holds its reference. */
int ms_id_to_backing(struct ms_vm *vm, uint32_t as_id, uint32_t id, struct ms_memslot *out, struct ms_backing **backing)
{
	struct look look = look_begin(vm, as_id);
	const struct memslot *slot = look.set ? vm->design->find(look.set, id) : NULL;

	*backing = slot ? backing_get(slot->backing) : NULL;
	copy_out(slot, out);
	look_end(vm, look);
	return slot ? 0 : -ENOENT;
}
