/* SPDX-License-Identifier: MIT */
/*
 * check.c - checks every invariant of a VM and reports the first one that does not hold.
 *
 * The letters stand for files: R rbtree.h, T interval_tree.h, I id_hash.h, D dirty_log.h, B backing.h, M memslot_set.h,
 * A array_set.c, L list_set.c.  The links of a tree are checked before anything else follows them.
 *
 * Locking: slots_lock, so that no set is being edited.  Readers may run meanwhile.
 * Cost: O(n + words of the dirty logs), except for the chains of a hash that could not grow.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "tree_set.h"
#include "vm_index.h"

struct walk {
	struct ms_vm *vm;
	struct ms_violation *violation;
	uint32_t as_id;
	uint64_t nr, pages; /* the sums over the address spaces so far */
};

__attribute__((format(printf, 4, 5))) static int broken(struct walk *w, char letter, int number, const char *format,
							...)
{
	va_list args;

	snprintf(w->violation->invariant, sizeof(w->violation->invariant), "%c%d", letter, number);
	va_start(args, format);
	vsnprintf(w->violation->text, sizeof(w->violation->text), format, args);
	va_end(args);
	return -EUCLEAN;
}

/* A mark that is under way has set its bit and has not noted its line yet.  It is over after a grace period. */
static bool mark_under_way(const struct walk *w, const struct dirty_log *log, size_t word)
{
	synchronize_srcu(&w->vm->srcu);
	return dirty_log_unnoted(log, word) != word;
}

static int check_summary(struct walk *w, const struct memslot *slot)
{
	const struct dirty_log *log = slot->dirty;

	for (size_t i = dirty_log_unnoted(log, 0); i < nwords_of(log); i = dirty_log_unnoted(log, i + 1))
		if (!mark_under_way(w, log, i))
			return broken(w, 'D', 6, "slot %" PRIu32 ": the summary of its dirty log lacks word %zu",
				      slot->id, i);
	return 0;
}

static int check_dirty_log(struct walk *w, const struct memslot *slot)
{
	bool logs = slot->flags & MS_MEM_LOG_DIRTY_PAGES && !w->vm->frozen;

	if (logs != !!slot->dirty || (slot->dirty && slot->dirty->npages != slot->npages))
		return broken(w, 'M', 8,
			      "slot %" PRIu32 " of address space %" PRIu32 ": its flags do not match its dirty log",
			      slot->id, w->as_id);
	if (slot->dirty && dirty_log_check(slot->dirty))
		return broken(w, 'D', 1, "slot %" PRIu32 ": its dirty log has bits from page %" PRIu32 " on", slot->id,
			      slot->npages);
	if (slot->dirty && slot->dirty->refs != 1)
		return broken(w, 'D', 2, "slot %" PRIu32 ": its dirty log has %" PRIu32 " references instead of 1",
			      slot->id, slot->dirty->refs);
	if (slot->dirty && slot->dirty->related != slot->dirty)
		return broken(w, 'D', 5, "slot %" PRIu32 ": its dirty log is related to another one at rest", slot->id);
	return slot->dirty ? check_summary(w, slot) : 0;
}

static bool slot_in_limits(const struct walk *w, const struct memslot *slot)
{
	const struct ms_config *config = &w->vm->config;
	uint64_t size = memslot_bytes(slot);

	return slot->id < config->user_mem_slots + MS_INTERNAL_MEM_SLOTS && slot->as_id == w->as_id &&
	       slot->npages >= 1 && slot->npages <= MS_MEM_MAX_NR_PAGES &&
	       slot->base_gfn + slot->npages <= vm_end_gfn(config) && slot->hva.last - slot->hva.start == size - 1 &&
	       slot->hva.last < config->hva_end_max && !((slot->hva.start | size) % MS_PAGE_SIZE);
}

static int check_backing(struct walk *w, const struct memslot *slot)
{
	const struct ms_backing *backing = slot->backing;

	if (!backing)
		return 0;
	if (!backing_has(backing, slot->hva.start, memslot_bytes(slot)))
		return broken(w, 'B', 2, "slot %" PRIu32 ": its pages are not inside its backing", slot->id);
	if (backing_is_readonly(backing) && !(slot->flags & MS_MEM_READONLY))
		return broken(w, 'B', 2, "slot %" PRIu32 " is writable, but its backing is READONLY", slot->id);
	return 0;
}

static int check_slot(struct walk *w, const struct memslot *slot)
{
	if (slot->flags & MS_MEMSLOT_INVALID && !w->vm->frozen)
		return broken(w, 'M', 5, "slot %" PRIu32 " of address space %" PRIu32 " is INVALID outside of a change",
			      slot->id, w->as_id);
	if (!slot_in_limits(w, slot))
		return broken(w, 'M', 9, "slot %" PRIu32 " of address space %" PRIu32 " exceeds a limit", slot->id,
			      w->as_id);
	return check_backing(w, slot) ? -EUCLEAN : check_dirty_log(w, slot);
}

static int check_membership(struct walk *w, const struct memslot_set *set, const struct memslot *slot)
{
	if (w->vm->design->shares_slots && slot->sets != 3)
		return broken(w, 'M', slot->sets & 1u << set->node_idx ? 2 : 3,
			      "slot %" PRIu32 " of address space %" PRIu32 " has the mask of sets %#x instead of 0x3",
			      slot->id, w->as_id, slot->sets);
	if (w->vm->design->find(set, slot->id) != slot)
		return broken(w, 'M', 3, "slot %" PRIu32 " of address space %" PRIu32 " is not found by its id",
			      slot->id, w->as_id);
	return 0;
}

static int check_slots(struct walk *w, const struct memslot_set *set, uint64_t *pages)
{
	const struct memslot_design *design = w->vm->design;
	const struct memslot *previous = NULL, *slot = design->first_from(set, 0);
	size_t nr = 0;
	int r = 0;

	for (; slot && !r; previous = slot, slot = design->next(set, slot)) {
		if (previous && previous->base_gfn + previous->npages > slot->base_gfn)
			return broken(w, 'M', 1,
				      "slots %" PRIu32 " and %" PRIu32 " of address space %" PRIu32 " overlap",
				      previous->id, slot->id, w->as_id);
		r = check_membership(w, set, slot);
		if (!r)
			r = check_slot(w, slot);
		*pages += slot->npages;
		nr++;
	}
	if (!r && nr != set->nr)
		return broken(w, 'M', 3,
			      "set %" PRIu32 " of address space %" PRIu32 " has %zu slots, but its nr is %zu",
			      set->node_idx, w->as_id, nr, set->nr);
	return r;
}

static bool has_slot(const struct walk *w, const struct memslot_set *set, const struct memslot *wanted)
{
	const struct memslot *slot = w->vm->design->first_from(set, 0);

	while (slot && slot != wanted)
		slot = w->vm->design->next(set, slot);
	return slot;
}

struct hva_walk {
	const struct memslot_design *design;
	const struct memslot_set *set;
	size_t nr;
	bool has_other;
};

static void visit_hva(void *context, const struct memslot *slot)
{
	struct hva_walk *walk = context;

	walk->nr++;
	walk->has_other |= walk->design->find(walk->set, slot->id) != slot;
}

/* If a search by hva finds only slots of the set, and as many as the set has, it finds the same slots as one by gfn. */
static int check_search_by_hva(struct walk *w, const struct memslot_set *set)
{
	struct hva_walk walk = { .design = w->vm->design, .set = set };

	walk.design->hva_range(set, 0, ~(uint64_t)0, visit_hva, &walk);
	if (walk.has_other || walk.nr != set->nr)
		return broken(w, 'M', 3,
			      "set %" PRIu32 " of address space %" PRIu32 " finds other slots by hva than by gfn",
			      set->node_idx, w->as_id);
	return 0;
}

static int check_set(struct walk *w, const struct memslot_set *set, uint64_t *pages)
{
	const struct memslot *hint = atomic_load_explicit(&set->last_used_slot, memory_order_relaxed);
	char letter;
	int number = w->vm->design->check(set, &letter), r;

	if (number)
		return broken(w, letter, number, "does not hold in set %" PRIu32 " of address space %" PRIu32,
			      set->node_idx, w->as_id);
	r = check_slots(w, set, pages);
	if (!r)
		r = check_search_by_hva(w, set);
	if (!r && hint && !has_slot(w, set, hint))
		return broken(w, 'M', 6,
			      "last_used_slot of set %" PRIu32 " of address space %" PRIu32 " is not in this set",
			      set->node_idx, w->as_id);
	if (!r && !set_index_is_valid(w->vm, set))
		r = broken(w, 'M', 11, "the index of set %" PRIu32 " of address space %" PRIu32 " has other slots",
			   set->node_idx, w->as_id);
	return r;
}

static int check_generations(struct walk *w)
{
	uint64_t n = w->vm->config.address_spaces;
	uint64_t active = atomic_load_explicit(&vm_active_set(w->vm, w->as_id)->generation, memory_order_relaxed);
	uint64_t inactive = atomic_load_explicit(&vm_inactive_set(w->vm, w->as_id)->generation, memory_order_relaxed);

	if ((active | inactive) & MS_GEN_UPDATE_IN_PROGRESS || active % n != w->as_id || inactive % n != w->as_id ||
	    inactive > active)
		return broken(w, 'M', 7, "address space %" PRIu32 " has generations %" PRIu64 " and %" PRIu64, w->as_id,
			      active, inactive);
	return 0;
}

static int check_kinds(struct walk *w, const struct memslot_set *set)
{
	const struct memslot_design *design = w->vm->design;
	uint32_t raw = 0, logged = 0;

	for (const struct memslot *slot = design->first_from(set, 0); slot; slot = design->next(set, slot)) {
		raw += !slot->backing;
		logged += slot->dirty != NULL;
	}
	if (raw != set->nr_raw || logged != set->nr_logged)
		return broken(w, 'M', 3,
			      "set %" PRIu32 " of address space %" PRIu32 " has %" PRIu32 " raw and %" PRIu32
			      " logged slots, but counts %" PRIu32 " and %" PRIu32,
			      set->node_idx, w->as_id, raw, logged, set->nr_raw, set->nr_logged);
	return 0;
}

static int check_used_ids(struct walk *w)
{
	const struct address_space *as = &w->vm->as[w->as_id];
	const struct memslot_set *set = vm_active_set(w->vm, w->as_id);
	uint32_t id = 0;

	while (id < as->used_below && w->vm->design->find(set, id))
		id++;
	if (id < as->used_below)
		return broken(w, 'M', 12, "id %" PRIu32 " of address space %" PRIu32 " is free, but below %" PRIu32, id,
			      w->as_id, as->used_below);
	return 0;
}

static int check_address_space(struct walk *w)
{
	struct address_space *as = &w->vm->as[w->as_id];
	const struct memslot_set *active = vm_active_set(w->vm, w->as_id), *inactive = vm_inactive_set(w->vm, w->as_id);
	uint64_t pages[2] = { 0, 0 };
	int r = check_generations(w);

	for (int idx = 0; !r && idx < 2; idx++)
		r = check_set(w, &as->set[idx], &pages[idx]);
	if (!r && w->vm->design->shares_slots && (as->set[0].nr != as->set[1].nr || pages[0] != pages[1]))
		return broken(w, 'M', 2, "the sets of address space %" PRIu32 " differ: %zu and %zu slots", w->as_id,
			      as->set[0].nr, as->set[1].nr);
	if (!r && !w->vm->design->shares_slots && inactive->nr)
		return broken(w, 'M', 2,
			      "the inactive set of address space %" PRIu32 " has %zu slots outside of a change",
			      w->as_id, inactive->nr);
	if (!r)
		r = check_kinds(w, active);
	if (!r)
		r = check_kinds(w, inactive);
	if (!r)
		r = check_used_ids(w);
	w->nr += active->nr;
	w->pages += pages[active->node_idx];
	return r;
}

/* ---- references of backings ---- */

/* `seen` of every backing is 0 unless a check is busy.  VMs share backings, so this flag is global.  It is tried. */
static _Atomic uint32_t references_busy; /* row "reference check" */

typedef int backing_visit_fn(struct walk *w, struct ms_backing *backing);

static int visit_backings(struct walk *w, backing_visit_fn *visit)
{
	const struct memslot_design *design = w->vm->design;
	int r = 0;

	for (uint32_t as_id = 0; as_id < w->vm->config.address_spaces; as_id++) {
		const struct memslot_set *set = vm_active_set(w->vm, as_id);

		for (const struct memslot *slot = design->first_from(set, 0); slot; slot = design->next(set, slot))
			if (slot->backing && visit(w, slot->backing))
				r = -EUCLEAN;
	}
	return r;
}

static int see_backing(struct walk *w, struct ms_backing *backing)
{
	(void)w;
	backing->seen++;
	return 0;
}

/* The other holders of the backing only make refs larger. */
static int compare_references(struct walk *w, struct ms_backing *backing)
{
	uint64_t refs = atomic_load_explicit(&backing->refs, memory_order_relaxed), seen = backing->seen;

	backing->seen = 0;
	if (seen > refs)
		return broken(w, 'B', 1, "the backing at %#" PRIx64 " has %" PRIu64 " references and %" PRIu64 " slots",
			      backing->start, refs, seen);
	return 0;
}

/* If another thread is in here, this check leaves the references out. */
static int check_references(struct walk *w)
{
	int r;

	if (atomic_exchange_explicit(&references_busy, 1, memory_order_acquire))
		return 0;
	visit_backings(w, see_backing);
	r = visit_backings(w, compare_references);
	atomic_store_explicit(&references_busy, 0, memory_order_release);
	return r;
}

static int check_totals(struct walk *w)
{
	if (w->nr != ms_nr_memslots(w->vm) || w->pages != ms_nr_memslot_pages(w->vm))
		return broken(w, 'M', 4,
			      "there are %" PRIu64 " slots with %" PRIu64
			      " pages, but the totals of the VM are %" PRIu64 " and %" PRIu64,
			      w->nr, w->pages, ms_nr_memslots(w->vm), ms_nr_memslot_pages(w->vm));
	return 0;
}

/* The generation of a hint shows its address space: no two address spaces have the same generation (M7).  A hint that a
 * thread is storing is not checked. */
static int check_hint(struct walk *w, const struct ms_vcpu *vcpu)
{
	for (w->as_id = 0; w->as_id < w->vm->config.address_spaces; w->as_id++) {
		const struct memslot_set *set = vm_active_set(w->vm, w->as_id);
		uint64_t generation = atomic_load_explicit(&set->generation, memory_order_relaxed);
		struct memslot *slot;

		if (vcpu_hint_read(&vcpu->hint, generation, &slot) && !has_slot(w, set, slot))
			return broken(w, 'M', 10, "last_used_slot of a vCPU is not in address space %" PRIu32,
				      w->as_id);
	}
	return 0;
}

static int check_vcpus(struct walk *w)
{
	int r = 0;

	for (const struct ms_vcpu *vcpu = w->vm->vcpus; vcpu && !r; vcpu = vcpu->next)
		r = check_hint(w, vcpu);
	return r;
}

int ms_check(struct ms_vm *vm, struct ms_violation *violation, struct ms_error *err)
{
	struct ms_violation unused;
	struct walk w = { .vm = vm, .violation = violation ? violation : &unused };
	int r = vm_lock(vm, err);

	if (r)
		return r;
	for (; !r && w.as_id < vm->config.address_spaces; w.as_id++)
		r = check_address_space(&w);
	if (!r)
		r = check_references(&w);
	if (!r)
		r = check_totals(&w);
	if (!r)
		r = check_vcpus(&w);
	vm_unlock(vm);
	return r;
}
