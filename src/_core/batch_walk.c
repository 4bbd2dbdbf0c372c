/* SPDX-License-Identifier: MIT */
/*
 * batch_walk.c - see batch_walk.h.
 */
#include "batch_walk.h"

#include "search.h"

static void mark_or_put(const struct job *job, size_t i, const struct memslot *slot, uint64_t gfn)
{
	if (job->kind == MARK)
		mark(slot, gfn);
	else
		put_hva(job->batch, i, (uintptr_t)slot);
}

static void emit(const struct job *job, size_t i, const struct memslot *slot, uint64_t value)
{
	uint64_t gfn = value >> shift_of(job), hva;

	if (job->kind == GFN_TO_ID) {
		put_id(job->batch, i, slot && !(slot->flags & MS_MEMSLOT_INVALID) ? (int32_t)slot->id : -1);
	} else if (job->kind >= MARK) {
		mark_or_put(job, i, slot, gfn);
	} else {
		hva = translate(slot, gfn, job->write);
		put_hva(job->batch, i, hva < MS_HVA_ERR_MIN ? hva + (value - (gfn << shift_of(job))) : hva);
	}
}

/* Lookups that the hint did not answer, collected until there are SEARCH_LANES of them. */
struct pending {
	uint64_t gfn[SEARCH_LANES], value[SEARCH_LANES];
	size_t at[SEARCH_LANES];
	size_t nr;
};

static void search_pending(const struct job *job, struct memslot_set *set, struct pending *p, uint64_t *counts)
{
	struct memslot *slots[SEARCH_LANES], *repeated = NULL;

	job->vm->design->search_many(set, p->gfn, slots, p->nr);
	for (size_t i = 0; i < p->nr; i++) {
		counts[slots[i] ? SRCU_HIT_SEARCH : SRCU_MISS]++;
		if (i && slots[i] == slots[i - 1])
			repeated = slots[i];
		emit(job, p->at[i], slots[i], p->value[i]);
	}
	point(READER_SLOT_FOUND);
	if (repeated)
		move_hint(set, repeated);
	p->nr = 0;
}

static void add_pending(struct pending *p, size_t i, uint64_t gfn, uint64_t value)
{
	p->gfn[p->nr] = gfn;
	p->value[p->nr] = value;
	p->at[p->nr++] = i;
}

/* Two random gfns in succession are rarely so near to each other, so a run of lookups in one slot begins. */
static bool is_near(uint64_t gfn, uint64_t before)
{
	return gfn - before + 64 < 128;
}

/* Searches for the slot of a run.  It becomes the hint if it also contains the gfn before. */
static const struct memslot *search_for_run(const struct job *job, struct memslot_set *set, uint64_t before,
					    uint64_t gfn, uint64_t *counts)
{
	struct memslot *slot = search(job->vm, set, gfn);

	counts[slot ? SRCU_HIT_SEARCH : SRCU_MISS]++;
	point(READER_SLOT_FOUND);
	if (slot && memslot_contains(slot, before))
		move_hint(set, slot);
	return slot;
}

/* A walk that searches for many gfns together. */
struct together {
	const struct job *job;
	struct memslot_set *set;
	uint64_t *counts;
	struct pending p;
	uint64_t before; /* the last gfn */
	bool in_hole; /* this run is in a hole, so no slot can become the hint */
};

static void together_begin(struct together *t, const struct job *job, const struct look *look, uint64_t *counts)
{
	t->job = job;
	t->set = look->set;
	t->counts = counts;
	t->p.nr = 0;
	t->before = ~(uint64_t)0;
	t->in_hole = false;
}

/* The hint has answered n values; gfn is the last one. */
static inline void together_hit(struct together *t, uint64_t gfn, size_t n)
{
	t->counts[SRCU_HIT_LAST_USED] += n;
	t->in_hole = false;
	t->before = gfn;
}

/* The hint does not answer this value. */
static inline void together_search(struct together *t, size_t i, uint64_t gfn, uint64_t value)
{
	const struct memslot *slot;

	if (is_near(gfn, t->before) && !t->in_hole) {
		slot = search_for_run(t->job, t->set, t->before, gfn, t->counts);
		emit(t->job, i, slot, value);
		t->in_hole = !slot;
	} else {
		add_pending(&t->p, i, gfn, value);
		if (t->p.nr == SEARCH_LANES)
			search_pending(t->job, t->set, &t->p, t->counts);
	}
	t->before = gfn;
}

static inline void together_add(struct together *t, size_t i, uint64_t value)
{
	uint64_t gfn = value >> shift_of(t->job);
	const struct memslot *slot = hint_for(t->set, gfn);

	if (!slot) {
		together_search(t, i, gfn, value);
		return;
	}
	emit(t->job, i, slot, value);
	together_hit(t, gfn, 1);
}

/* Answers values from i on, up to the first that is not in the slot of the hint.  Returns the place of that one.  It
 * stores nothing but the answers: a mark is an atomic operation, which waits for all stores before it. */
static inline size_t together_run(struct together *t, size_t i, size_t end)
{
	const struct memslot *slot = atomic_load_explicit(&t->set->last_used_slot, memory_order_relaxed);
	const struct job *job = t->job;
	uint64_t gfn = 0, value;
	size_t first = i;

	for (; slot && i < end; i++) {
		value = value_at(job->batch, i);
		if (!memslot_contains(slot, value >> shift_of(job)))
			break;
		gfn = value >> shift_of(job);
		emit(job, i, slot, value);
	}
	if (i > first)
		together_hit(t, gfn, i - first);
	return i;
}

static void together_end(struct together *t)
{
	if (t->p.nr)
		search_pending(t->job, t->set, &t->p, t->counts);
}

static void walk_together(const struct job *job, const struct look *look, size_t from, size_t n, uint64_t *counts)
{
	struct together t;

	together_begin(&t, job, look, counts);
	for (size_t i = from, end = from + n; (i = together_run(&t, i, end)) < end; i++) {
		uint64_t value = value_at(job->batch, i);

		together_search(&t, i, value >> shift_of(job), value);
	}
	together_end(&t);
}

static void walk_one_by_one(const struct job *job, const struct look *look, size_t from, size_t n, uint64_t *counts)
{
	struct srcu_reader *reader = look->section.reader;

	for (size_t i = from; i < from + n; i++) {
		uint64_t value = value_at(job->batch, i);
		enum srcu_count found;
		const struct memslot *slot = find_hinted(job->vm, look->set, reader, value >> shift_of(job), &found);

		counts[found]++;
		emit(job, i, slot, value);
	}
}

static bool searches_together(const struct ms_vm *vm)
{
	return vm->design->search_many &&
	       atomic_load_explicit(&vm->index_policy, memory_order_relaxed) != MS_INDEX_WALK;
}

static void count_all(const struct look *look, const uint64_t *counts)
{
	for (unsigned i = 0; i < SRCU_NR_COUNTS; i++)
		if (counts[i])
			srcu_count(look->section.reader, i, counts[i]);
}

static size_t searches(const uint64_t *counts)
{
	return counts[SRCU_HIT_SEARCH] + counts[SRCU_MISS];
}

size_t batch_walk(const struct job *job, const struct look *look, size_t from, size_t n)
{
	uint64_t counts[SRCU_NR_COUNTS] = { 0 };

	if (searches_together(job->vm))
		walk_together(job, look, from, n, counts);
	else
		walk_one_by_one(job, look, from, n, counts);
	count_all(look, counts);
	return searches(counts);
}

size_t batch_walk_some(const struct job *job, const struct look *look, const struct some *some)
{
	uint64_t counts[SRCU_NR_COUNTS] = { 0 };
	struct together t;

	together_begin(&t, job, look, counts);
	for (size_t i = 0; i < some->nr; i++)
		together_add(&t, some->at[i], some->value[i]);
	together_end(&t);
	count_all(look, counts);
	return searches(counts);
}

/* The guest address of a gfn, or the value itself if it is a gpa. */
static uint64_t address_of_value(const struct job *job, uint64_t value)
{
	return job->kind == GPA_TO_HVA ? value : value << MS_PAGE_SHIFT;
}

void batch_put_entry(const struct job *job, size_t i, const struct flat_entry *entry, uint64_t value)
{
	uint64_t deny = job->write ? FLAT_READONLY : 0, first;

	if (job->kind == GFN_TO_ID) {
		put_id(job->batch, i, entry ? (int32_t)entry->id : -1);
	} else if (!entry) {
		put_hva(job->batch, i, MS_HVA_ERR_BAD);
	} else if (entry->hva & deny) {
		put_hva(job->batch, i, MS_HVA_ERR_RO_BAD);
	} else {
		first = entry->base_gfn << MS_PAGE_SHIFT;
		put_hva(job->batch, i, (entry->hva & ~FLAT_DELTA_FLAGS) + address_of_value(job, value) - first);
	}
}

void batch_answer_holes(const struct job *job)
{
	for (size_t i = 0; i < job->batch->n; i++)
		emit(job, i, NULL, value_at(job->batch, i));
}
