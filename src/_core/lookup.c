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
	const struct flat_index *index = set_index(look->set);
	const struct memslot *slot;

	*found = SRCU_INDEXED;
	if (index && likely(index->for_one) && likely(may_index(vm)))
		return hva_by_index(vm, look, index, gfn, write);
	slot = search_and_hint(vm, look->set, look->section.reader, gfn);
	*found = slot ? SRCU_HIT_SEARCH : SRCU_MISS;
	return translate(slot, gfn, write);
}

/* The rest of a lookup that the hint does not answer.  Ends the section of the caller. */
static out_of_line uint64_t finish_lookup(struct ms_vm *vm, struct look look, uint32_t as_id, uint64_t gfn, bool write)
{
	enum srcu_count found = SRCU_MISS;
	uint64_t hva = look.set ? hva_without_hint(vm, &look, gfn, write, &found) : MS_HVA_ERR_BAD;
	bool report;

	srcu_count(look.section.reader, found, 1);
	report = report_is_due(look.section.reader, found);
	look_end(vm, look);
	if (unlikely(report))
		vm_index_report_searches(vm, as_id);
	return hva;
}

/* The general path of a lookup of an address. */
static out_of_line uint64_t gfn_to_hva(struct ms_vm *vm, uint32_t as_id, uint64_t gfn, bool write)
{
	struct look look = look_begin(vm, as_id);
	const struct memslot *slot = look.set ? hint_for(look.set, gfn) : NULL;
	uint64_t hva;

	if (!slot)
		return finish_lookup(vm, look, as_id, gfn, write);
	hva = translate(slot, gfn, write);
	srcu_count(look.section.reader, SRCU_HIT_LAST_USED, 1);
	look_end(vm, look);
	return hva;
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
	uint64_t hva;

	if (unlikely(!reader || reader->depth || as_id >= vm->config.address_spaces))
		return gfn_to_hva(vm, as_id, gfn, true);
	srcu_enter(&vm->srcu, reader);
	set = vm_active_set(vm, as_id);
	point(READER_VIEW_LOADED);
	slot = hint_for(set, gfn);
	if (unlikely(!slot))
		return finish_lookup(vm, look_of(reader, set), as_id, gfn, true);
	hva = translate(slot, gfn, true);
	srcu_count_own(reader, SRCU_HIT_LAST_USED, 1);
	point(READER_LEAVES);
	srcu_leave(&vm->srcu, reader);
	point(READER_LEFT);
	return hva;
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
static struct memslot *vcpu_hint(struct ms_vcpu *vcpu, const struct memslot_set *set, uint64_t gfn)
{
	uint64_t gen = atomic_load_explicit(&set->generation, memory_order_relaxed); /* G */
	struct memslot *slot;

	point(VCPU_GENERATION_LOADED);
	if (gen != vcpu->last_used_slot_gen) {
		vcpu->last_used_slot = NULL;
		vcpu->last_used_slot_gen = gen;
	}
	slot = vcpu->last_used_slot;
	point(VCPU_HINT_LOADED);
	return slot && memslot_contains(slot, gfn) ? slot : NULL;
}

static struct memslot *find_with_hint(struct ms_vcpu *vcpu, const struct look *look, uint64_t gfn,
				      enum srcu_count *found)
{
	struct memslot *slot = vcpu_hint(vcpu, look->set, gfn);

	*found = SRCU_HIT_LAST_USED;
	if (slot)
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

/* If a vCPU finds the same slot twice in a row, it is searched for in the set, and becomes its hint. */
static uint64_t vcpu_hva_by_index(struct ms_vcpu *vcpu, const struct look *look, const struct flat_index *index,
				  uint64_t gfn, enum srcu_count *found)
{
	uint32_t piece;
	uint64_t delta = flat_word(index, gfn, &piece);

	point(READER_INDEX_FOUND);
	if (!(delta & FLAT_HOLE) && &index->deltas[piece] == vcpu->last_found)
		return translate(find_with_hint(vcpu, look, gfn, found), gfn, true);
	vcpu->last_found = &index->deltas[piece];
	*found = SRCU_INDEXED;
	return translate_delta(delta, gfn, true);
}

/* Only for the thread that has vcpu_try_use(). */
static uint64_t vcpu_hva(struct ms_vcpu *vcpu, const struct look *look, uint64_t gfn, enum srcu_count *found)
{
	const struct memslot *slot = vcpu_hint(vcpu, look->set, gfn);
	const struct flat_index *index;

	*found = SRCU_HIT_LAST_USED;
	if (slot)
		return translate(slot, gfn, true);
	index = set_index(look->set);
	if (index && index->for_one && may_index(vcpu->vm))
		return vcpu_hva_by_index(vcpu, look, index, gfn, found);
	return translate(find_with_hint(vcpu, look, gfn, found), gfn, true);
}

uint64_t ms_vcpu_gfn_to_hva(struct ms_vcpu *vcpu, uint64_t gfn)
{
	struct look look = vcpu_look_begin(vcpu);
	enum srcu_count found = SRCU_VCPU_BYPASS;
	uint64_t hva;
	bool report;

	if (likely(vcpu_try_use(vcpu))) {
		hva = vcpu_hva(vcpu, &look, gfn, &found);
		vcpu_put(vcpu);
	} else {
		hva = translate(search(vcpu->vm, look.set, gfn), gfn, true);
	}
	srcu_count(look.section.reader, found, 1);
	report = report_is_due(look.section.reader, found);
	look_end(vcpu->vm, look);
	if (unlikely(report))
		vm_index_report_searches(vcpu->vm, ms_vcpu_as_id(vcpu));
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

void ms_mark_page_dirty(struct ms_vm *vm, uint32_t as_id, uint64_t gfn)
{
	struct look look = look_begin(vm, as_id);

	mark(lookup(vm, &look, gfn), gfn);
	look_end(vm, look);
}
