/* SPDX-License-Identifier: MIT */
/*
 * batch_walk.c - see batch_walk.h.
 */
#include "batch_walk.h"

#include "search.h"

static void emit(const struct job *job, size_t i, const struct memslot *slot, uint64_t value)
{
	uint64_t gfn = value >> shift_of(job), hva;

	if (job->kind == GFN_TO_ID) {
		put_id(job->batch, i, slot && !(slot->flags & MS_MEMSLOT_INVALID) ? (int32_t)slot->id : -1);
	} else if (job->kind == MARK) {
		mark(slot, gfn);
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

static void walk_together(const struct job *job, struct memslot_set *set, size_t from, size_t n, uint64_t *counts)
{
	struct pending p = { .nr = 0 };
	uint64_t before = ~(uint64_t)0;
	bool in_hole = false; /* this run is in a hole, so no slot can become the hint */

	for (size_t i = from, gfn; i < from + n; i++, before = gfn) {
		uint64_t value = value_at(job->batch, i);
		const struct memslot *slot;

		gfn = value >> shift_of(job);
		slot = hint_for(set, gfn);
		if (slot) {
			counts[SRCU_HIT_LAST_USED]++;
			emit(job, i, slot, value);
			in_hole = false;
		} else if (is_near(gfn, before) && !in_hole) {
			slot = search_for_run(job, set, before, gfn, counts);
			emit(job, i, slot, value);
			in_hole = !slot;
		} else {
			add_pending(&p, i, gfn, value);
			if (p.nr == SEARCH_LANES)
				search_pending(job, set, &p, counts);
		}
	}
	if (p.nr)
		search_pending(job, set, &p, counts);
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

void batch_walk(const struct job *job, const struct look *look, size_t from, size_t n)
{
	uint64_t counts[SRCU_NR_COUNTS] = { 0 };

	if (searches_together(job->vm))
		walk_together(job, look->set, from, n, counts);
	else
		walk_one_by_one(job, look, from, n, counts);
	for (unsigned i = 0; i < SRCU_NR_COUNTS; i++)
		if (counts[i])
			srcu_count(look->section.reader, i, counts[i]);
}

void batch_answer_holes(const struct job *job)
{
	for (size_t i = 0; i < job->batch->n; i++)
		emit(job, i, NULL, value_at(job->batch, i));
}
