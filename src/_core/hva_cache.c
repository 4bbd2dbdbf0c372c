/* SPDX-License-Identifier: MIT */
/*
 * hva_cache.c - KVM's gfn_to_hva_cache: the translation of one guest range, kept while the slots stay as they are.
 *
 * The cache keeps the generation of the set that it was made from.  Inside a section that sees this generation, the
 * slot of the cache is a slot of the set, by the proof for a vCPU's hint (docs/locking.md): it holds for this pair of
 * generation and slot too, which one thread stores and reads.
 *
 * Locking: none; nothing here waits for a writer, except a release function of the user (backing.h).
 * Cost: a section, a comparison and the copy.
 */
#include "guest_fault.h"
#include "guest_run.h"

static uint64_t generation_of(const struct memslot_set *set)
{
	return atomic_load_explicit(&set->generation, memory_order_relaxed); /* G */
}

static int refuse_range(struct ms_error *err, uint64_t limit)
{
	return vm_refuse(err, EINVAL, MS_RULE_CACHE_RANGE, limit, NULL);
}

/* The rule for the error address of a cache. */
static enum ms_rule rule_of(uint64_t hva)
{
	return hva == MS_HVA_ERR_RO_BAD ? MS_RULE_GUEST_READONLY : MS_RULE_GUEST_HOLE;
}

/* Looks the pages [gfn, last] up, for writing.  After an error the cache has the slot and the address that failed. */
static enum ms_rule look_up(const struct ms_vm *vm, const struct look *look, struct ms_gfn_to_hva_cache *cache,
			    uint64_t gfn, uint64_t last)
{
	const struct memslot *slot;

	do {
		slot = guest_find(vm, look, gfn);
		cache->slot = slot;
		cache->hva = translate(slot, gfn, true);
		if (cache->hva >= MS_HVA_ERR_MIN)
			return rule_of(cache->hva);
		gfn = slot->base_gfn + slot->npages;
	} while (gfn <= last);
	return MS_RULE_NONE;
}

/* As KVM, accepts an empty range that does not begin a page. */
static bool is_range(uint64_t gpa, uint64_t len)
{
	return len ? gpa + len - 1 >= gpa : gpa % MS_PAGE_SIZE != 0;
}

/* __kvm_gfn_to_hva_cache_init().  All members are of this range and this generation, also after an error. */
static int init(const struct ms_vm *vm, const struct look *look, struct ms_gfn_to_hva_cache *cache, uint32_t as_id,
		uint64_t gpa, uint64_t len, struct ms_error *err)
{
	uint64_t first = gpa >> MS_PAGE_SHIFT, last = (gpa + len - 1) >> MS_PAGE_SHIFT;
	enum ms_rule rule;

	*cache = (struct ms_gfn_to_hva_cache){ generation_of(look->set), gpa, MS_HVA_ERR_BAD, len, NULL, as_id };
	if (!is_range(gpa, len))
		return refuse_range(err, 0);
	rule = look_up(vm, look, cache, first, last);
	if (rule)
		return guest_refuse(err, rule, guest_value(cache->slot), gpa, 0);
	if (first == last)
		cache->hva += gpa % MS_PAGE_SIZE;
	else
		cache->slot = NULL; /* the range is copied piece by piece */
	return 0;
}

int ms_gfn_to_hva_cache_init(struct ms_vm *vm, uint32_t as_id, struct ms_gfn_to_hva_cache *cache, uint64_t gpa,
			     uint64_t len, struct ms_error *err)
{
	struct look look;
	int r;

	if (as_id >= vm->config.address_spaces) {
		*cache = (struct ms_gfn_to_hva_cache){ .hva = MS_HVA_ERR_BAD }; /* an empty range of address space 0 */
		return vm_refuse(err, EINVAL, MS_RULE_AS_ID, vm->config.address_spaces, NULL);
	}
	look = look_begin(vm, as_id);
	r = init(vm, &look, cache, as_id, gpa, len, err);
	look_end(vm, look);
	return r;
}

/* Inside the section: the run of the copy.  1: there is none, because the range is copied piece by piece. */
static int run_of(const struct ms_vm *vm, const struct look *look, struct ms_gfn_to_hva_cache *cache, uint64_t offset,
		  size_t n, bool write, struct guest_run *run, struct ms_error *err)
{
	const struct memslot *slot;
	enum ms_rule rule;
	int r = 0;

	if (generation_of(look->set) != cache->generation)
		r = init(vm, look, cache, cache->as_id, cache->gpa, cache->len, err);
	if (r)
		return r;
	slot = cache->slot;
	if (cache->hva >= MS_HVA_ERR_MIN)
		return guest_refuse(err, rule_of(cache->hva), guest_value(slot), cache->gpa, 0);
	if (!slot)
		return 1;
	rule = guest_run_in(vm, slot, cache->gpa + offset, n, write, run);
	return rule ? guest_refuse(err, rule, guest_value(slot), run->gpa, 0) : 0;
}

/* Copies to `out`, or from `data` if that is NULL. */
static int copy_run(const struct guest_run *run, void *out, const void *data, size_t n, struct ms_error *err)
{
	size_t done = out ? guest_fault_read(out, run->host, n) : guest_fault_write(run->host, data, n);

	if (!out)
		guest_mark(run, guest_touched(done, n));
	if (done < n)
		return guest_refuse(err, MS_RULE_GUEST_FAULT, guest_value(run->slot), run->gpa + done, done);
	return 0;
}

static int copy_cached(struct ms_vm *vm, struct ms_gfn_to_hva_cache *cache, uint64_t offset, void *out,
		       const void *data, size_t n, struct ms_error *err)
{
	uint64_t gpa = cache->gpa + offset;
	struct guest_run run = { .slot = NULL };
	struct look look;
	int r;

	if (n > cache->len || offset > cache->len - n)
		return refuse_range(err, cache->len);
	look = look_begin(vm, cache->as_id);
	r = run_of(vm, &look, cache, offset, n, !out, &run, err);
	if (!r && n)
		r = copy_run(&run, out, data, n, err);
	look_end(vm, look);
	if (r <= 0)
		return r;
	return out ? ms_read_guest(vm, cache->as_id, gpa, out, n, err) :
		     ms_write_guest(vm, cache->as_id, gpa, data, n, err);
}

int ms_read_guest_cached(struct ms_vm *vm, struct ms_gfn_to_hva_cache *cache, uint64_t offset, void *out, size_t n,
			 struct ms_error *err)
{
	return n && !out ? null_buffer(err) : copy_cached(vm, cache, offset, out ? out : cache, NULL, n, err);
}

int ms_write_guest_cached(struct ms_vm *vm, struct ms_gfn_to_hva_cache *cache, uint64_t offset, const void *data,
			  size_t n, struct ms_error *err)
{
	return n && !data ? null_buffer(err) : copy_cached(vm, cache, offset, NULL, data, n, err);
}
