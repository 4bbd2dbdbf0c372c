/* SPDX-License-Identifier: MIT */
/*
 * test_transaction.c - random lists of steps, compared with a plain model of the slots.
 *
 * The model knows each slot by its values, its backing and its dirty pages.  It applies the same steps, and predicts
 * the result of the call, the changes that a listener gets, their last bits, and the state afterwards: all slots, ids,
 * host addresses, dirty logs, totals and generations.  Allocations and listeners fail at random.  A refused
 * call has changed nothing.
 */
#include "fixture.h"

#include "backing.h"
#include "dirty_log.h"

#define SPACES 2u
#define IDS 20u
#define GPA_BITS 21u
#define END_GFN ((uint64_t)1 << (GPA_BITS - MS_PAGE_SHIFT))
#define PAGES_MAX 70u
#define HOST_PAGES 320u /* no slot has a later one */
#define WORDS_MAX ((HOST_PAGES + 63) / 64)
#define LOG MS_MEM_LOG_DIRTY_PAGES
#define READONLY MS_MEM_READONLY
#define STEPS_MAX 8u
#define ITEMS_MAX (IDS + 3 * STEPS_MAX)
#define BACKINGS 3u

static struct rng rng;
static struct ms_vm *vm;
static struct ms_backing *backings[BACKINGS]; /* the first is NULL */
static uint64_t kept, circles, without_memory, refused_by_listener, noops, answers[MS_RULE_NR];

/* ---- the model ---- */

struct bits {
	bool of[HOST_PAGES]; /* by the host page */
};

/* A slot of the present state, or of the state that the steps make. */
struct item {
	struct ms_memslot v;
	struct ms_backing *backing;
	bool exists, touched, placed;
	int old;          /* the slot of the present state that it continues, or -1 */
	uint32_t sources; /* a bit for each slot of the present state */
	uint32_t step;
	struct bits dirty; /* of a slot with a log */
};

static struct item slots[SPACES][IDS]; /* at rest; `exists` */
static struct item items[ITEMS_MAX];
static size_t nr_items;
static uint32_t space;

static uint64_t end_of(const struct ms_memslot *v)
{
	return v->base_gfn + v->npages;
}

static uint64_t host_page(const struct ms_memslot *v)
{
	return (v->userspace_addr - HVA_BASE) / PAGE;
}

static bool same_value(const struct ms_memslot *a, const struct ms_memslot *b)
{
	return same_slot(a, b);
}

static void begin_model(void)
{
	nr_items = 0;
	for (uint32_t i = 0; i < IDS; i++) {
		if (!slots[space][i].exists)
			continue;
		items[nr_items] = slots[space][i];
		items[nr_items].old = (int)i;
		items[nr_items].sources = 1u << i;
		items[nr_items].touched = items[nr_items].placed = false;
		nr_items++;
	}
}

static struct item *by_id(uint32_t id)
{
	for (size_t i = 0; i < nr_items; i++)
		if (items[i].exists && items[i].v.id == id)
			return &items[i];
	return NULL;
}

static uint32_t free_id(void)
{
	uint32_t id = 0;

	while (id < IDS && by_id(id))
		id++;
	return id;
}

/* The refusal that the model expects. */
struct want {
	int code;
	enum ms_rule rule;
	uint64_t limit;
	struct ms_memslot other;
};

static struct want refusal(int code, enum ms_rule rule, uint64_t limit, const struct item *other)
{
	struct want want = { code, rule, limit, { 0 } };

	if (other)
		want.other = other->v;
	return want;
}

static const struct want no_refusal;

static struct want want_value(uint32_t id, uint32_t flags, uint64_t gpa, uint64_t size, uint64_t hva)
{
	uint32_t allowed = flags & MS_MEM_GUEST_MEMFD ? MS_MEM_GUEST_MEMFD : LOG | READONLY | MS_MEM_GUEST_MEMFD;

	if (id >= IDS)
		return refusal(-EINVAL, MS_RULE_SLOT_ID, IDS, NULL);
	if (flags & ~allowed)
		return refusal(-EINVAL, MS_RULE_FLAGS, allowed, NULL);
	if (size % PAGE)
		return refusal(-EINVAL, MS_RULE_SIZE_ALIGN, 0, NULL);
	if (gpa % PAGE)
		return refusal(-EINVAL, MS_RULE_GPA_ALIGN, 0, NULL);
	if (hva % PAGE)
		return refusal(-EINVAL, MS_RULE_HVA_ALIGN, 0, NULL);
	if (hva + size < hva || hva + size > MS_HVA_END_MAX_DEFAULT)
		return refusal(-EINVAL, MS_RULE_HVA_RANGE, MS_HVA_END_MAX_DEFAULT, NULL);
	if (gpa + size < gpa)
		return refusal(-EINVAL, MS_RULE_GPA_WRAP, 0, NULL);
	if (size / PAGE > MS_MEM_MAX_NR_PAGES || !size)
		return refusal(-EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, NULL);
	return no_refusal;
}

static struct want want_backing(const struct ms_backing *b, uint32_t flags, uint64_t hva, uint64_t size)
{
	if (b && !backing_has(b, hva, size))
		return refusal(-EINVAL, MS_RULE_BACKING_RANGE, backing_end(b), NULL);
	if (b && backing_is_readonly(b) && !(flags & READONLY))
		return refusal(-EINVAL, MS_RULE_BACKING_READONLY, 0, NULL);
	return no_refusal;
}

/* Finds the slot of a step. */
static struct want want_slot(uint32_t id, struct item **item)
{
	*item = by_id(id);
	if (id >= IDS)
		return refusal(-EINVAL, MS_RULE_SLOT_ID, IDS, NULL);
	return *item ? no_refusal : refusal(-EINVAL, MS_RULE_NO_SUCH_SLOT, 0, NULL);
}

static struct want want_new_id(uint32_t *id)
{
	if (*id == MS_SLOT_ANY) {
		*id = free_id();
		return *id < IDS ? no_refusal : refusal(-ENOSPC, MS_RULE_NO_FREE_SLOT, IDS, NULL);
	}
	if (*id >= IDS)
		return refusal(-EINVAL, MS_RULE_SLOT_ID, IDS, NULL);
	return by_id(*id) ? refusal(-EEXIST, MS_RULE_DUPLICATE_ID, 0, by_id(*id)) : no_refusal;
}

static void place(struct item *item, uint32_t step)
{
	item->step = step;
	item->touched = item->placed = true;
}

static struct item *add_item(const struct ms_memslot *v, struct ms_backing *backing, uint32_t sources, uint32_t step)
{
	struct item *item = &items[nr_items++];

	CHECK(nr_items <= ITEMS_MAX);
	*item = (struct item){ .v = *v, .backing = backing, .exists = true, .old = -1, .sources = sources };
	place(item, step);
	return item;
}

static struct want do_create(const struct ms_step *s, uint32_t step)
{
	struct ms_memslot v = {
		s->guest_phys_addr / PAGE, s->memory_size / PAGE, s->userspace_addr, s->slot, space, s->flags, 0
	};
	struct want want = no_refusal;

	if (v.id == MS_SLOT_ANY)
		want = want_new_id(&v.id);
	if (!want.code)
		want = want_value(v.id, s->flags, s->guest_phys_addr, s->memory_size, s->userspace_addr);
	if (!want.code && s->flags & MS_MEM_GUEST_MEMFD)
		want = refusal(-EBADF, MS_RULE_GMEM_FD, 0, NULL);
	if (!want.code)
		want = want_backing(s->backing, s->flags, s->userspace_addr, s->memory_size);
	if (!want.code)
		want = want_new_id(&v.id);
	if (!want.code)
		add_item(&v, s->backing, 0, step);
	return want;
}

static struct want do_split(const struct ms_step *s, uint32_t step, struct item *item)
{
	uint64_t gfn = s->guest_phys_addr / PAGE;
	struct ms_memslot v = item->v;
	struct want want;

	if (s->guest_phys_addr % PAGE)
		return refusal(-EINVAL, MS_RULE_GPA_ALIGN, 0, NULL);
	if (gfn <= v.base_gfn || gfn >= end_of(&v))
		return refusal(-EINVAL, MS_RULE_SPLIT, 0, item);
	v.id = s->other;
	want = want_new_id(&v.id);
	if (want.code)
		return want;
	v.userspace_addr += (gfn - v.base_gfn) * PAGE;
	v.npages = end_of(&v) - gfn;
	v.base_gfn = gfn;
	item->v.npages = gfn - item->v.base_gfn;
	place(item, step);
	add_item(&v, item->backing, item->sources, step);
	return no_refusal;
}

static struct want do_merge(uint32_t step, struct item *item, struct item *other)
{
	bool up = end_of(&item->v) == other->v.base_gfn, down = end_of(&other->v) == item->v.base_gfn;
	struct item *low = up ? item : other, *high = up ? other : item;

	if (item == other || (!up && !down))
		return refusal(-EINVAL, MS_RULE_MERGE_PLACE, 0, other);
	if (low->v.userspace_addr + low->v.npages * PAGE != high->v.userspace_addr)
		return refusal(-EINVAL, MS_RULE_MERGE_HVA, 0, other);
	if (low->v.flags != high->v.flags)
		return refusal(-EINVAL, MS_RULE_MERGE_FLAGS, 0, other);
	if (low->backing != high->backing)
		return refusal(-EINVAL, MS_RULE_MERGE_BACKING, 0, other);
	item->v = (struct ms_memslot){ low->v.base_gfn,
				       low->v.npages + high->v.npages,
				       low->v.userspace_addr,
				       item->v.id,
				       space,
				       item->v.flags,
				       0 };
	item->sources |= other->sources;
	place(item, step);
	place(other, step);
	other->exists = false;
	return no_refusal;
}

static struct want punch_item(const struct ms_step *s, uint32_t step, struct item *item)
{
	uint64_t gfn = s->guest_phys_addr / PAGE, end = gfn + s->memory_size / PAGE, n;
	struct ms_memslot v = item->v;
	struct want want;

	if (v.base_gfn < gfn && end_of(&v) > end) {
		v.id = s->other;
		want = want_new_id(&v.id);
		if (want.code)
			return want;
		n = end - v.base_gfn;
		v = (struct ms_memslot){ end, v.npages - n, v.userspace_addr + n * PAGE, v.id, space, v.flags, 0 };
		item->v.npages = gfn - item->v.base_gfn;
		place(item, step);
		add_item(&v, item->backing, item->sources, step);
		return no_refusal;
	}
	place(item, step);
	if (v.base_gfn < gfn) {
		item->v.npages = gfn - v.base_gfn;
	} else if (end_of(&v) > end) {
		n = end - v.base_gfn;
		item->v.base_gfn += n;
		item->v.npages -= n;
		item->v.userspace_addr += n * PAGE;
	} else {
		item->exists = false;
	}
	return no_refusal;
}

/* The order of the cuts does not matter: see is_ambiguous(). */
static struct want do_punch(const struct ms_step *s, uint32_t step)
{
	uint64_t gfn = s->guest_phys_addr / PAGE, end = gfn + s->memory_size / PAGE;
	struct want want = no_refusal;

	if (s->memory_size % PAGE)
		return refusal(-EINVAL, MS_RULE_SIZE_ALIGN, 0, NULL);
	if (s->guest_phys_addr % PAGE)
		return refusal(-EINVAL, MS_RULE_GPA_ALIGN, 0, NULL);
	if (s->guest_phys_addr + s->memory_size < s->guest_phys_addr)
		return refusal(-EINVAL, MS_RULE_GPA_WRAP, 0, NULL);
	if (!s->memory_size)
		return refusal(-EINVAL, MS_RULE_NPAGES, MS_MEM_MAX_NR_PAGES, NULL);
	for (size_t i = 0, nr = nr_items; !want.code && i < nr; i++)
		if (items[i].exists && items[i].v.base_gfn < end && gfn < end_of(&items[i].v))
			want = punch_item(s, step, &items[i]);
	return want;
}

static bool changes_flags(const struct ms_step *s)
{
	return s->kind == MS_STEP_SET_FLAGS || s->kind == MS_STEP_CHANGE_FLAGS;
}

static uint32_t wanted_flags(const struct ms_step *s, const struct item *item)
{
	if (s->kind == MS_STEP_CHANGE_FLAGS)
		return (item->v.flags & ~s->other) | s->flags;
	return s->kind == MS_STEP_SET_FLAGS ? s->flags : item->v.flags;
}

static struct want set_values(const struct ms_step *s, uint32_t step, struct item *item)
{
	uint64_t gpa = s->kind == MS_STEP_MOVE ? s->guest_phys_addr : item->v.base_gfn * PAGE;
	uint64_t size = s->kind == MS_STEP_RESIZE ? s->memory_size : item->v.npages * PAGE;
	uint32_t flags = wanted_flags(s, item);
	struct want want = want_value(item->v.id, flags, gpa, size, item->v.userspace_addr);

	if (!want.code && flags & MS_MEM_GUEST_MEMFD)
		want = refusal(-EINVAL, MS_RULE_GMEM_EXISTING, 0, item);
	if (!want.code && (flags ^ item->v.flags) & READONLY)
		want = refusal(-EINVAL, MS_RULE_FLAGS_TOGGLE, 0, item);
	if (!want.code && s->kind == MS_STEP_RESIZE)
		want = want_backing(item->backing, flags, item->v.userspace_addr, size);
	if (want.code)
		return want;
	item->v.base_gfn = gpa / PAGE;
	item->v.npages = size / PAGE;
	item->v.flags = flags;
	if (!changes_flags(s))
		place(item, step);
	else if (!item->placed)
		item->step = step;
	item->touched = true;
	return no_refusal;
}

static struct want apply_step(const struct ms_step *s, uint32_t step)
{
	struct item *item, *other;
	struct want want;

	if (s->kind > MS_STEP_CHANGE_FLAGS)
		return refusal(-EINVAL, MS_RULE_STEP_KIND, MS_STEP_CHANGE_FLAGS, NULL);
	if (s->kind == MS_STEP_CREATE)
		return do_create(s, step);
	if (s->kind == MS_STEP_PUNCH)
		return do_punch(s, step);
	want = want_slot(s->slot, &item);
	if (want.code)
		return want;
	if (s->kind == MS_STEP_MERGE) {
		want = want_slot(s->other, &other);
		return want.code ? want : do_merge(step, item, other);
	}
	if (s->kind == MS_STEP_SPLIT)
		return do_split(s, step, item);
	if (s->kind != MS_STEP_DELETE)
		return set_values(s, step, item);
	place(item, step);
	item->exists = false;
	return no_refusal;
}

/* ---- the final state of the model ---- */

static const struct item *old_of(const struct item *item)
{
	return item->old < 0 ? NULL : &slots[space][item->old];
}

static bool is_changed(const struct item *item)
{
	const struct item *old = old_of(item);

	return item->exists ? !old || !same_value(&item->v, &old->v) : old != NULL;
}

static bool overlap(const struct ms_memslot *a, const struct ms_memslot *b)
{
	return a->base_gfn < end_of(b) && b->base_gfn < end_of(a);
}

static bool same_pages(const struct item *a, const struct item *b)
{
	return a->v.userspace_addr == b->v.userspace_addr && a->v.npages == b->v.npages;
}

static bool has_page(const struct item *item, uint64_t page)
{
	return page - host_page(&item->v) < item->v.npages;
}

static bool shares_log(const struct item *item)
{
	const struct item *old = old_of(item);

	return item->exists && old && item->v.flags & LOG && old->v.flags & LOG && same_pages(item, old);
}

static void final_bits(struct item *item)
{
	bool initially_set = ms_manual_dirty_log_protect(vm) & MS_DIRTY_LOG_INITIALLY_SET;
	const struct item *old = old_of(item);
	struct bits bits = { { 0 } };

	if (!is_changed(item)) {
		item->dirty = old->dirty;
		return;
	}
	for (uint64_t page = host_page(&item->v); item->v.flags & LOG && has_page(item, page); page++) {
		bool known = false;

		for (uint32_t i = 0; i < IDS; i++) {
			const struct item *source = &slots[space][i];

			if (!(item->sources >> i & 1) || !(source->v.flags & LOG) || !has_page(source, page))
				continue;
			known = true;
			bits.of[page] |= source->dirty.of[page];
		}
		bits.of[page] |= !known && initially_set;
	}
	item->dirty = bits;
}

/* Whether a new log has the page of the old slot. */
static bool is_taken(int old, uint64_t page)
{
	for (size_t i = 0; i < nr_items; i++)
		if (items[i].exists && is_changed(&items[i]) && items[i].v.flags & LOG && items[i].sources >> old & 1 &&
		    has_page(&items[i], page) && !(items[i].old == old && shares_log(&items[i])))
			return true;
	return false;
}

/* ---- the listener ---- */

static struct ms_change seen[ITEMS_MAX];
static uint64_t seen_words[ITEMS_MAX][WORDS_MAX];
static size_t nr_seen, nr_flushed, nr_committed, nr_aborted;
static int64_t refuse_at; /* the change that prepare refuses, or -1 */

static int prepare(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	if ((int64_t)nr_seen == refuse_at)
		return -EPERM;
	CHECK(nr_seen < ITEMS_MAX);
	seen[nr_seen++] = *change;
	return 0;
}

static void abort_hook(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	CHECK(!memcmp(&seen[nr_seen - ++nr_aborted], change, sizeof(*change)));
}

static void flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	struct ms_memslot slot;

	(void)opaque;
	while (seen[nr_flushed].kind == MS_CREATE || seen[nr_flushed].kind == MS_FLAGS_ONLY)
		nr_flushed++;
	CHECK(nr_flushed < nr_seen && same_slot(&seen[nr_flushed].old_slot, old));
	if (seen[nr_flushed].kind == MS_DELETE) {
		slot = *old;
		slot.flags |= MS_MEMSLOT_INVALID;
		CHECK(same_slot(active, &slot));
	} else {
		CHECK(same_slot(active, &seen[nr_flushed].new_slot));
		CHECK_EQ(ms_id_to_memslot(vm, space, active->id, &slot), 0);
		CHECK(same_slot(active, &slot));
	}
	nr_flushed++;
}

static void commit(void *opaque, const struct ms_change *change)
{
	struct ms_change *at = &seen[nr_committed];

	(void)opaque;
	CHECK_EQ(at->kind, change->kind);
	CHECK(same_slot(&at->old_slot, &change->old_slot) && same_slot(&at->new_slot, &change->new_slot));
	*at = *change;
	if (change->dirty)
		memcpy(seen_words[nr_committed], change->dirty, change->nr_dirty_words * sizeof(uint64_t));
	nr_committed++;
}

static const struct ms_listener listener = { LISTENER_SIZE, NULL, prepare, abort_hook, flush, commit, NULL };

static enum ms_change_kind kind_of(const struct item *item)
{
	const struct item *old = old_of(item);

	if (!item->exists)
		return MS_DELETE;
	if (!old)
		return MS_CREATE;
	if (!same_pages(item, old))
		return MS_RESIZE;
	return item->v.base_gfn != old->v.base_gfn ? MS_MOVE : MS_FLAGS_ONLY;
}

/* The last bits of the pages of the old slot that no new log has. */
static void check_last_bits(const struct item *item, size_t at)
{
	const struct item *old = old_of(item);
	uint64_t words[WORDS_MAX] = { 0 }, any = 0, taken = 0;

	if (!old || !(old->v.flags & LOG) || shares_log(item)) {
		CHECK(!seen[at].dirty);
		return;
	}
	for (uint64_t i = 0; i < old->v.npages; i++) {
		bool is = is_taken(item->old, host_page(&old->v) + i);

		taken += is;
		words[i / 64] |= (uint64_t)(!is && old->dirty.of[host_page(&old->v) + i]) << i % 64;
	}
	for (size_t i = 0; i < WORDS_MAX; i++)
		any |= words[i];
	CHECK_EQ(seen[at].dirty != NULL, any || !taken);
	if (!seen[at].dirty)
		return;
	CHECK_EQ(seen[at].nr_dirty_words, (old->v.npages + 63) / 64);
	for (size_t i = 0; i < seen[at].nr_dirty_words; i++)
		CHECK_EQ(seen_words[at][i], words[i]);
}

static size_t find_seen(const struct item *item)
{
	const struct item *old = old_of(item);
	static const struct ms_memslot none;

	for (size_t i = 0; i < nr_seen; i++)
		if (seen[i].kind == kind_of(item) && same_slot(&seen[i].old_slot, old ? &old->v : &none) &&
		    same_slot(&seen[i].new_slot, item->exists ? &item->v : &none))
			return i;
	CHECK(!"the listener gets the change");
	return 0;
}

static void check_listener(void)
{
	size_t nr = 0, flushes = 0;

	for (size_t i = 0; i < nr_items; i++)
		if (is_changed(&items[i])) {
			check_last_bits(&items[i], find_seen(&items[i]));
			flushes += kind_of(&items[i]) != MS_CREATE && kind_of(&items[i]) != MS_FLAGS_ONLY;
			nr++;
		}
	CHECK_EQ(nr_seen, nr);
	CHECK_EQ(nr_committed, nr);
	CHECK(nr_flushed >= flushes && nr_flushed <= nr);
}

/* ---- the state of the VM ---- */

static void check_log(const struct item *item)
{
	const struct memslot *slot = vm->design->find(vm_active_set(vm, space), item->v.id);
	uint64_t words[WORDS_MAX];

	CHECK_EQ(slot->dirty != NULL, (item->v.flags & LOG) != 0);
	CHECK_EQ(slot->backing, item->backing);
	if (!slot->dirty)
		return;
	dirty_log_peek(slot->dirty, words);
	for (uint64_t i = 0; i < item->v.npages; i++)
		CHECK_EQ(words[i / 64] >> i % 64 & 1, item->dirty.of[host_page(&item->v) + i]);
}

static void check_ids(void)
{
	struct ms_memslot slot;
	uint32_t id = 0;

	for (uint32_t i = 0; i < IDS; i++) {
		CHECK_EQ(ms_id_to_memslot(vm, space, i, &slot), slots[space][i].exists ? 0 : -ENOENT);
		CHECK(!slots[space][i].exists || same_slot(&slot, &slots[space][i].v));
		if (slots[space][i].exists)
			check_log(&slots[space][i]);
	}
	while (id < IDS && slots[space][id].exists)
		id++;
	CHECK_EQ(ms_free_slot_id(vm, space, &id, NULL), id < IDS ? 0 : -ENOSPC);
	CHECK(id >= IDS || !slots[space][id].exists);
}

static uint64_t want_hva(uint64_t gfn)
{
	for (uint32_t i = 0; i < IDS; i++)
		if (slots[space][i].exists && gfn - slots[space][i].v.base_gfn < slots[space][i].v.npages)
			return slots[space][i].v.flags & READONLY ?
				       MS_HVA_ERR_RO_BAD :
				       slots[space][i].v.userspace_addr + (gfn - slots[space][i].v.base_gfn) * PAGE;
	return MS_HVA_ERR_BAD;
}

static void check_lookups(void)
{
	uint64_t gfns[END_GFN], hvas[END_GFN];
	struct ms_batch batch = { .in = gfns, .in_stride = 8, .out = hvas, .out_stride = 8, .n = END_GFN };

	for (uint64_t gfn = 0; gfn < END_GFN; gfn++)
		gfns[gfn] = gfn;
	CHECK_EQ(ms_gfn_to_hva_many(vm, space, &batch, true), 0);
	for (uint64_t gfn = 0; gfn < END_GFN; gfn++)
		CHECK_EQ(hvas[gfn], want_hva(gfn));
	for (int i = 0; i < 8; i++) {
		uint64_t gfn = rng_below(&rng, END_GFN);

		CHECK_EQ(ms_gfn_to_hva(vm, space, gfn), want_hva(gfn));
	}
}

static void check_host_page(void)
{
	uint64_t page = rng_below(&rng, HOST_PAGES);
	struct ms_hva_hit hits[SPACES * IDS];
	size_t nr = ms_hva_to_gfns(vm, HVA_BASE + page * PAGE, hits, SPACES * IDS), want = 0;

	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		for (uint32_t i = 0; i < IDS; i++)
			want += slots[as_id][i].exists && has_page(&slots[as_id][i], page);
	CHECK_EQ(nr, want);
	for (size_t i = 0; i < nr; i++) {
		const struct item *item = &slots[hits[i].slot.as_id][hits[i].slot.id];

		CHECK(item->exists && same_slot(&item->v, &hits[i].slot));
		CHECK_EQ(hits[i].gfn, item->v.base_gfn + page - host_page(&item->v));
	}
}

static void check_state(void)
{
	uint64_t nr = 0, pages = 0;

	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		for (uint32_t i = 0; i < IDS; i++)
			if (slots[as_id][i].exists) {
				nr++;
				pages += slots[as_id][i].v.npages;
			}
	CHECK_EQ(ms_nr_memslots(vm), nr);
	CHECK_EQ(ms_nr_memslot_pages(vm), pages);
	check_ids();
	check_lookups();
	check_host_page();
	check_sound(vm);
}

/* ---- random steps ---- */

static bool one_in(uint64_t n)
{
	return !rng_below(&rng, n);
}

/* Mostly the id of a slot of the model. */
static uint32_t any_id(void)
{
	uint32_t id = (uint32_t)rng_below(&rng, IDS);

	if (one_in(150))
		return IDS + (uint32_t)rng_below(&rng, 3);
	for (uint32_t i = 0; i < IDS && !one_in(150) && !by_id(id); i++)
		id = (id + 1) % IDS;
	return id;
}

static uint32_t any_new_id(void)
{
	return one_in(3) ? MS_SLOT_ANY : one_in(30) ? any_id() : free_id();
}

static uint64_t any_gpa(void)
{
	uint64_t gpa = rng_below(&rng, END_GFN - 8) * PAGE;

	return one_in(250) ? gpa + 1 : one_in(250) ? 0 - PAGE : one_in(250) ? END_GFN * PAGE : gpa;
}

static uint64_t any_size(void)
{
	uint64_t size = (1 + rng_below(&rng, one_in(4) ? PAGES_MAX : 12)) * PAGE;

	return one_in(250) ? 0 : one_in(250) ? size + 8 : size;
}

static uint64_t inside(uint32_t id)
{
	const struct item *item = by_id(id);

	uint64_t npages = item ? item->v.npages : 1;

	if (!item || npages == 1 || one_in(30))
		return any_gpa();
	return (item->v.base_gfn + 1 + rng_below(&rng, npages - !one_in(20))) * PAGE;
}

static uint32_t any_flags(void)
{
	uint32_t flags = one_in(2) ? LOG : 0;

	return one_in(8) ? flags | READONLY : one_in(250) ? MS_MEM_GUEST_MEMFD : one_in(250) ? 8 : flags;
}

/* Two neighbours, in any order, if there are any. */
static void neighbours(uint32_t *slot, uint32_t *other)
{
	size_t n = rng_below(&rng, 1 + nr_items);

	*other = any_id();
	for (size_t k = 0; k < nr_items; k++)
		for (size_t j = 0; j < nr_items; j++) {
			const struct item *a = &items[(k + n) % nr_items], *b = &items[j];

			if (!a->exists || !b->exists || end_of(&a->v) != b->v.base_gfn)
				continue;
			*slot = one_in(2) ? a->v.id : b->v.id;
			*other = *slot == a->v.id ? b->v.id : a->v.id;
			return;
		}
}

/* A MERGE mostly follows a SPLIT or a CREATE next to another slot. */
static void create_next_to(struct ms_step *s)
{
	const struct item *item = by_id(any_id());

	if (!item || one_in(3) || host_page(&item->v) + item->v.npages + PAGES_MAX > HOST_PAGES)
		return;
	s->guest_phys_addr = end_of(&item->v) * PAGE;
	s->userspace_addr = item->v.userspace_addr + item->v.npages * PAGE;
	s->flags = one_in(8) ? s->flags : item->v.flags;
	s->backing = one_in(8) ? s->backing : item->backing;
}

static struct ms_step any_step(void)
{
	struct ms_step s = {
		.kind = (uint32_t)rng_below(&rng, MS_STEP_CHANGE_FLAGS + 1),
		.slot = any_id(),
		.flags = any_flags(),
		.guest_phys_addr = any_gpa(),
		.memory_size = any_size(),
		.userspace_addr = HVA_BASE + rng_below(&rng, HOST_PAGES - PAGES_MAX) * PAGE + one_in(200),
		.other = any_new_id(),
		.backing = backings[rng_below(&rng, BACKINGS)],
	};

	if (s.backing && backing_is_readonly(s.backing) && !one_in(20))
		s.flags |= READONLY;
	if (nr_items < 6 || one_in(8))
		s.kind = MS_STEP_CREATE;
	if (s.kind == MS_STEP_CREATE) {
		s.slot = any_new_id();
		create_next_to(&s);
	}
	if (s.kind == MS_STEP_SPLIT)
		s.guest_phys_addr = inside(s.slot);
	if (s.kind == MS_STEP_MERGE)
		neighbours(&s.slot, &s.other);
	if (s.kind == MS_STEP_SET_FLAGS && by_id(s.slot) && !one_in(40))
		s.flags = (s.flags & LOG) | (by_id(s.slot)->v.flags & READONLY);
	if (s.kind == MS_STEP_CHANGE_FLAGS) {
		s.flags = one_in(40) ? s.flags : s.flags & LOG;
		s.other = one_in(40) ? any_flags() : LOG;
	}
	if (s.kind == MS_STEP_PUNCH) {
		s.guest_phys_addr = inside(s.slot);
		s.memory_size = (1 + rng_below(&rng, one_in(4) ? 60 : 6)) * PAGE;
	}
	if (s.kind == MS_STEP_RESIZE && by_id(s.slot) && host_page(&by_id(s.slot)->v) + PAGES_MAX > HOST_PAGES)
		s.memory_size = PAGE;
	if (one_in(500))
		s.kind = MS_STEP_CHANGE_FLAGS + 1;
	return s;
}

#define CIRCLE_MAX 5u /* one more than the engine makes at once */

/* The number of the next slot after `from` that exists, with npages pages if there is one and `equal` is set. */
static size_t next_in_circle(size_t from, uint64_t npages, bool equal)
{
	for (int exact = equal; exact >= 0; exact--)
		for (size_t k = 1; k <= nr_items; k++) {
			const struct item *item = &items[(from + k) % nr_items];

			if (item->exists && (!exact || item->v.npages == npages))
				return (from + k) % nr_items;
		}
	return from;
}

/* Moves up to CIRCLE_MAX slots in a circle.  Rarely a slot is in it twice, or two slots move to one place. */
static size_t make_circle(struct ms_step *to)
{
	size_t n = nr_items ? 2 + rng_below(&rng, CIRCLE_MAX - 1) : 0, at = nr_items ? rng_below(&rng, nr_items) : 0;
	bool equal = !one_in(5);

	for (size_t i = 0; i < n; i++) {
		at = next_in_circle(at, items[at].v.npages, equal);
		to[i] = (struct ms_step){ .kind = MS_STEP_MOVE, .slot = items[at].v.id };
		to[i ? i - 1 : n - 1].guest_phys_addr = items[at].v.base_gfn * PAGE;
	}
	if (n)
		to[n - 1].guest_phys_addr = by_id(to[0].slot) ? by_id(to[0].slot)->v.base_gfn * PAGE : 0;
	if (n && one_in(10))
		to[rng_below(&rng, n)].guest_phys_addr = to[0].guest_phys_addr;
	return n;
}

/* Whether the order of the cuts decides which id a second part gets: a slot has pages on both sides of the hole, and
 * another one has pages in it too, and may end there.  Such slots overlap. */
static bool is_ambiguous(const struct ms_step *s)
{
	uint64_t gfn = s->guest_phys_addr / PAGE, end = gfn + s->memory_size / PAGE;
	size_t cut = 0, split = 0;

	for (size_t i = 0; s->kind == MS_STEP_PUNCH && i < nr_items; i++) {
		if (!items[i].exists || items[i].v.base_gfn >= end || gfn >= end_of(&items[i].v))
			continue;
		cut++;
		split += items[i].v.base_gfn < gfn && end < end_of(&items[i].v);
	}
	return split && cut > 1;
}

/* ---- one transaction ---- */

static struct ms_step steps[STEPS_MAX];
static size_t nr_steps, circle; /* of the steps, circle: the slots that move in a circle, or 0 */

/* Returns the step that the model refuses, or nr_steps. */
static size_t make_steps(struct want *want)
{
	size_t refused;

	*want = no_refusal;
	circle = one_in(4) ? make_circle(steps) : 0;
	nr_steps = circle ? circle : 1 + rng_below(&rng, STEPS_MAX);
	for (refused = 0; refused < nr_steps; refused++) {
		if (!circle)
			do
				steps[refused] = any_step();
			while (is_ambiguous(&steps[refused]));
		*want = apply_step(&steps[refused], (uint32_t)refused);
		if (want->code)
			break;
	}
	for (size_t i = refused + 1; i < nr_steps; i++)
		steps[i] = any_step();
	return refused;
}

static bool beyond_limit(const struct item *item)
{
	return item->exists && is_changed(item) && end_of(&item->v) > END_GFN;
}

static const struct item *first_bad_limit(void)
{
	for (size_t i = 0; i < nr_items; i++)
		if (beyond_limit(&items[i]))
			return &items[i];
	return NULL;
}

static bool have_overlap(void)
{
	for (size_t i = 0; i < nr_items; i++)
		for (size_t j = 0; j < i; j++)
			if (items[i].exists && items[j].exists && overlap(&items[i].v, &items[j].v))
				return true;
	return false;
}

/* The refused step gave a slot its place, and `other` has its frames.  Of two steps the later one is refused. */
/* Such a slot can change its flags, but no step has given it another place. */
static bool keeps_place(const struct item *item)
{
	const struct item *old = old_of(item);

	return old && old->v.base_gfn == item->v.base_gfn && old->v.npages == item->v.npages &&
	       old->v.userspace_addr == item->v.userspace_addr;
}

static void check_overlap_error(const struct ms_error *err)
{
	for (size_t i = 0; i < nr_items; i++) {
		const struct item *other = &items[i];

		if (!other->exists || !same_slot(&other->v, &err->other))
			continue;
		for (size_t j = 0; j < nr_items; j++)
			if (j != i && items[j].exists && !keeps_place(&items[j]) && items[j].step == err->index &&
			    overlap(&items[j].v, &other->v)) {
				CHECK(keeps_place(other) || other->step <= err->index);
				return;
			}
	}
	CHECK(!"the error names both parties");
}

static void check_limit_error(const struct ms_error *err)
{
	CHECK_EQ(err->limit, END_GFN * PAGE);
	for (size_t i = 0; i < nr_items; i++)
		if (beyond_limit(&items[i]) && items[i].step == err->index)
			return;
	CHECK(!"the error names the step");
}

static bool changes_anything(void)
{
	bool any = false;

	for (size_t i = 0; i < nr_items; i++)
		any |= is_changed(&items[i]);
	return any;
}

static void accept(void)
{
	struct item next[IDS] = { 0 };

	for (size_t i = 0; i < nr_items; i++)
		if (items[i].exists)
			final_bits(&items[i]);
	if (changes_anything()) {
		check_listener();
		circles += circle > 0;
	}
	for (size_t i = 0; i < nr_items; i++)
		if (items[i].exists)
			next[items[i].v.id] = items[i];
	memcpy(slots[space], next, sizeof(next));
	kept++;
}

static void check_refusal(int r, const struct ms_error *err, const struct want *want, size_t refused)
{
	answers[err->rule]++;
	if (want->code) {
		CHECK_EQ(r, want->code);
		CHECK_EQ(err->rule, want->rule);
		CHECK_EQ(err->limit, want->limit);
		CHECK(same_slot(&err->other, &want->other));
		CHECK_EQ(err->index, refused);
	} else if (first_bad_limit()) {
		CHECK_EQ(r, -EINVAL);
		CHECK_EQ(err->rule, MS_RULE_GPA_LIMIT);
		check_limit_error(err);
	} else if (have_overlap()) {
		CHECK_EQ(r, -EEXIST);
		CHECK_EQ(err->rule, MS_RULE_OVERLAP);
		check_overlap_error(err);
	} else {
		CHECK_EQ(r, -EPERM);
		CHECK_EQ(err->rule, MS_RULE_LISTENER_REFUSED);
		CHECK_EQ(nr_aborted, refuse_at);
		CHECK_EQ(nr_committed + nr_flushed, 0);
		refused_by_listener++;
	}
}

static void mark_some(void)
{
	for (uint32_t i = 0; i < IDS; i++) {
		struct item *item = &slots[space][i];
		uint64_t page;

		if (!item->exists || !(item->v.flags & LOG) || one_in(2))
			continue;
		page = rng_below(&rng, item->v.npages);
		ms_mark_page_dirty(vm, space, item->v.base_gfn + page);
		item->dirty.of[host_page(&item->v) + page] = true;
	}
}

/* Else the bits of a log that begins with all bits would never be 0. */
static void clear_some(void)
{
	for (uint32_t i = 0; i < IDS; i++) {
		struct item *item = &slots[space][i];
		uint64_t words[WORDS_MAX];
		size_t nwords;

		if (!item->exists || !(item->v.flags & LOG) || !one_in(8))
			continue;
		CHECK_EQ(ms_get_dirty_log(vm, space, i, words, WORDS_MAX, &nwords, NULL), 0);
		CHECK_EQ(ms_clear_dirty_log(vm, space, i, 0, (uint32_t)item->v.npages, words, nwords, NULL), 0);
		memset(&item->dirty.of[host_page(&item->v)], 0, item->v.npages * sizeof(item->dirty.of[0]));
	}
}

static void start_listener(void)
{
	nr_seen = nr_flushed = nr_committed = nr_aborted = 0;
	memset(seen, 0, sizeof(seen));
	refuse_at = one_in(8) ? (int64_t)rng_below(&rng, 4) : -1;
}

static void transaction(void)
{
	uint64_t armed = one_in(6) ? 1 + rng_below(&rng, 20) : 0;
	struct ms_stats before_stats;
	struct picture before;
	struct ms_error err = { 0 };
	struct want want;
	uint64_t generation;
	size_t refused;
	int r;

	space = (uint32_t)rng_below(&rng, SPACES);
	clear_some();
	mark_some();
	begin_model();
	refused = make_steps(&want);
	start_listener();
	generation = ms_generation(vm, space); /* before the statistics: the first lookup takes memory */
	before = picture_of(vm);
	before_stats = held_by(vm);
	memory_fail(&vm->memory, armed, one_in(2));
	r = ms_change_memslots(vm, space, steps, nr_steps, &err);
	memory_fail(&vm->memory, 0, false);
	if (r == -ENOMEM) {
		CHECK(armed);
		CHECK_EQ(err.rule, MS_RULE_NO_MEMORY);
		CHECK(err.index <= nr_steps);
		without_memory++;
	} else if (r) {
		check_refusal(r, &err, &want, refused);
	} else {
		CHECK(!want.code && !first_bad_limit() && !have_overlap());
		noops += !changes_anything();
		CHECK_EQ(ms_generation(vm, space), generation + (changes_anything() ? SPACES : 0));
		accept();
	}
	if (r)
		check_only_refused(vm, &before, &before_stats);
	check_state();
}

/* ---- all designs ---- */

static void start_vm(void)
{
	struct ms_config config = default_config(SPACES);

	config.user_mem_slots = IDS;
	config.gpa_bits = GPA_BITS;
	vm = vm_with(&config);
	memset(slots, 0, sizeof(slots));
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	CHECK_EQ(ms_set_index_policy(vm, one_in(2) ? MS_INDEX_EAGER : MS_INDEX_AUTO), 0);
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, one_in(2) ? 3 : 0, NULL), 0);
}

static void test_random(uint64_t times)
{
	for (uint64_t i = 0; i < times; i++) {
		if (i % 500 == 0) {
			if (i)
				end_vm(vm);
			start_vm();
		}
		transaction();
	}
	end_vm(vm);
}

static struct ms_backing *new_backing(uint64_t first, uint64_t npages, uint32_t flags)
{
	void *start = (void *)(uintptr_t)(HVA_BASE + first * PAGE);
	struct ms_backing *b;

	CHECK_EQ(ms_backing_create(start, npages * PAGE, flags, NULL, NULL, &b), 0);
	return b;
}

/* ---- a slot with pages of three slots ---- */

static void test_merge_of_three(void)
{
	static const struct ms_step merges[] = {
		{ .kind = MS_STEP_MERGE, .slot = 0, .other = 1 },
		{ .kind = MS_STEP_MERGE, .slot = 0, .other = 2 },
	};
	struct ms_config config;
	struct ms_vm *three;
	uint64_t word = 0;
	size_t nwords;

	CHECK_EQ(ms_config_init(&config), 0);
	CHECK_EQ(ms_vm_create(&config, &three), 0);
	for (uint32_t i = 0; i < 3; i++) {
		struct ms_userspace_memory_region region = {
			.slot = i,
			.flags = LOG,
			.guest_phys_addr = 2 * i * PAGE,
			.memory_size = 2 * PAGE,
			.userspace_addr = HVA_BASE + 2 * i * PAGE,
		};

		CHECK_EQ(ms_set_user_memory_region(three, &region, NULL), 0);
		ms_mark_page_dirty(three, 0, 2 * i + 1);
	}
	CHECK_EQ(ms_change_memslots(three, 0, merges, ARRAY_SIZE(merges), NULL), 0);
	CHECK_EQ(ms_get_dirty_log(three, 0, 0, &word, 1, &nwords, NULL), 0);
	CHECK_EQ(word, 0x2a); /* one page of each */
	ms_vm_destroy(three);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 120);
	rng.state = test_seed;
	backings[1] = new_backing(0, HOST_PAGES, 0);
	backings[2] = new_backing(60, 160, MS_BACKING_READONLY);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		test_random(test_times(4000));
	test_merge_of_three();
	ms_backing_put(backings[1]);
	ms_backing_put(backings[2]);
	CHECK(kept && circles && without_memory && refused_by_listener && noops);
	for (int i = 1; i < MS_RULE_NR; i++)
		if (answers[i])
			printf("%s %" PRIu64 ", ", ms_rule_name((enum ms_rule)i), answers[i]);
	printf("\nkept %" PRIu64 " (%" PRIu64 " circles), no memory %" PRIu64 ", listener %" PRIu64 ", noops %" PRIu64
	       "\n",
	       kept, circles, without_memory, refused_by_listener, noops);
	return test_done("transactions", kept, "kept");
}
