/* SPDX-License-Identifier: MIT */
/*
 * holds.c - see holds.h for the invariants.
 *
 * The fields of a retired slot that nobody reads any more, those of `hva`, are the link of its list and the epoch.
 */
#include "holds.h"

/* A bit of memslot.sets: the slot stays in a set, which frees it. */
#define KEPT_IN_SET ((uint8_t)0x10)

void holds_init(struct holds *h, struct srcu *srcu, struct memory *memory, const struct memslot_design *design)
{
	*h = (struct holds){ .srcu = srcu, .memory = memory, .design = design };
}

/* Two threads may be the first ones. */
uint64_t holds_first(struct holds *h)
{
	uint64_t epoch = 0;

	return atomic_compare_exchange_strong_explicit(&h->epoch, &epoch, 1, memory_order_relaxed,
						       memory_order_relaxed) ?
		       1 :
		       epoch;
}

/* ---- lists ---- */

static struct memslot *next_of(const struct memslot *slot)
{
	return (struct memslot *)(uintptr_t)slot->hva.start;
}

static void set_next(struct memslot *slot, const struct memslot *next)
{
	slot->hva.start = (uintptr_t)next;
}

static uint64_t epoch_of(const struct memslot *slot)
{
	return slot->hva.last;
}

/* Adds a chain of slots to a list. */
static void push(_Atomic(struct memslot *) *list, struct memslot *first, struct memslot *last)
{
	struct memslot *head = atomic_load_explicit(list, memory_order_relaxed);

	do
		set_next(last, head);
	while (!atomic_compare_exchange_weak_explicit(list, &head, first, memory_order_seq_cst, memory_order_relaxed));
}

static struct memslot *take_all(_Atomic(struct memslot *) *list)
{
	return atomic_exchange_explicit(list, NULL, memory_order_seq_cst);
}

/* ---- drops ---- */

/* In the end the next holder of slots_lock may free the slot. */
static void drop(struct holds *h, struct memslot *slot)
{
	backing_put(slot->backing);
	if (slot->dirty)
		dirty_log_unpin(h->memory, slot->dirty);
	slot->backing = NULL;
	slot->dirty = NULL;
	if (slot->sets & KEPT_IN_SET)
		atomic_fetch_sub_explicit(&h->nr_kept, 1, memory_order_release);
	else
		push(&h->emptied, slot, slot);
}

/* Drops the references of the slots that were retired before the oldest hold.  Puts the others back, and returns
 * whether one of these can be dropped by now: a hold that has ended meanwhile has not seen them in the list. */
static bool drop_some(struct holds *h, struct memslot *slot)
{
	uint64_t oldest = srcu_oldest_hold(h->srcu), least = SRCU_NO_HOLD;
	struct memslot *first = NULL, *last = NULL, *next;

	for (; slot; slot = next) {
		next = next_of(slot);
		if (epoch_of(slot) < oldest) {
			drop(h, slot);
			continue;
		}
		least = epoch_of(slot) < least ? epoch_of(slot) : least;
		last = last ? last : slot;
		set_next(slot, first);
		first = slot;
	}
	if (!first)
		return false;
	point(READER_PUTS_BACK);
	push(&h->retired, first, last);
	return least < srcu_oldest_hold(h->srcu);
}

void holds_release(struct holds *h)
{
	struct memslot *slots;

	do
		slots = take_all(&h->retired);
	while (slots && drop_some(h, slots));
}

static void free_emptied(struct holds *h)
{
	for (struct memslot *slot = take_all(&h->emptied), *next; slot; slot = next) {
		next = next_of(slot);
		h->design->free_slot(h->memory, slot);
	}
}

void holds_tidy_up(struct holds *h)
{
	if (atomic_load_explicit(&h->retired, memory_order_relaxed))
		holds_release(h);
	if (atomic_load_explicit(&h->emptied, memory_order_relaxed))
		free_emptied(h);
}

void holds_deinit(struct holds *h)
{
	for (struct memslot *slot = take_all(&h->retired), *next; slot; slot = next) {
		next = next_of(slot);
		drop(h, slot);
	}
	free_emptied(h);
}

/* ---- retirements ---- */

static bool is_held(const struct holds *h)
{
	return srcu_oldest_hold(h->srcu) != SRCU_NO_HOLD;
}

/* The slot gives its place in the log up now: that needs slots_lock. */
static void retire(struct holds *h, struct memslot *slot)
{
	if (!dirty_log_leave(slot->dirty))
		slot->dirty = NULL;
	slot->hva.last = atomic_load_explicit(&h->epoch, memory_order_relaxed);
	push(&h->retired, slot, slot);
}

/* A hold that ends now may have missed the slots. */
static void end_epoch(struct holds *h)
{
	atomic_store_explicit(&h->epoch, atomic_load_explicit(&h->epoch, memory_order_relaxed) + 1,
			      memory_order_relaxed);
	point(WRITER_RETIRED);
	holds_release(h);
}

void holds_keep(struct holds *h, struct memslot *slot)
{
	if (!(slot->backing || slot->dirty) || !is_held(h)) {
		memslot_free(h->design, h->memory, slot);
		return;
	}
	retire(h, slot);
	end_epoch(h);
}

bool holds_retire_set(struct holds *h, const struct memslot_set *set)
{
	struct memslot *slot, *next;

	if (!atomic_load_explicit(&h->epoch, memory_order_relaxed) || !is_held(h))
		return false;
	for (slot = h->design->first_from(set, 0); slot; slot = next) {
		next = h->design->next(set, slot);
		slot->sets |= KEPT_IN_SET;
		atomic_fetch_add_explicit(&h->nr_kept, 1, memory_order_relaxed);
		retire(h, slot);
	}
	end_epoch(h);
	return true;
}
