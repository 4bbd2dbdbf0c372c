/* SPDX-License-Identifier: MIT */
/*
 * dirty_harvest.c - reads the dirty pages of all slots of an address space as ranges.
 *
 * The lines of a log come from its summary in groups, so that the cache misses of a group overlap.  If the caller's
 * array is full, the bits that were taken out and not reported go back.
 *
 * Locking: slots_lock.  Readers may mark pages meanwhile.
 * Cost: O(log n + slots + dirty lines).
 */
#include <errno.h>

#include "rules.h"

struct harvest {
	struct ms_gfn_range *out;
	size_t n, room;
	uint64_t next; /* the end of the last range; when the array is full: the first gfn that is not reported */
	bool clear;
	bool full;
};

/* Adds a range, or joins it to the last one.  false: the array is full. */
static inline bool add_range(struct harvest *h, uint64_t gfn, uint64_t npages)
{
	if (h->n && gfn == h->next) {
		h->out[h->n - 1].npages += npages;
	} else if (likely(h->n < h->room)) {
		h->out[h->n++] = (struct ms_gfn_range){ gfn, npages };
	} else {
		h->next = gfn;
		h->full = true;
		return false;
	}
	h->next = gfn + npages;
	return true;
}

/* Reports the bits of a word, whose bit 0 is `gfn`.  Returns the bits that the array has no room for. */
static inline uint64_t report_word(struct harvest *h, uint64_t gfn, uint64_t bits)
{
	while (bits) {
		unsigned first = (unsigned)__builtin_ctzll(bits);
		uint64_t beyond = ~(bits >> first); /* 0: all 64 pages */
		unsigned n = beyond ? (unsigned)__builtin_ctzll(beyond) : 64;

		if (unlikely(!add_range(h, gfn + first, n)))
			return bits;
		bits &= first + n < 64 ? ~(uint64_t)0 << (first + n) : 0;
	}
	return 0;
}

static void give_back(const struct harvest *h, struct dirty_log *log, size_t word, uint64_t bits)
{
	if (h->clear && bits)
		dirty_log_give_back(log, word, bits);
}

/* Reports the words that `set` names.  false: the array is full, and the other bits of the line went back. */
static bool report_line(struct harvest *h, const struct memslot *slot, size_t line, const uint64_t *bits, uint32_t set)
{
	size_t word = dirty_line_start(line);

	for (; set; set &= set - 1) {
		size_t i = (size_t)__builtin_ctz(set);
		uint64_t left = unlikely(h->full) ? bits[i] : report_word(h, slot->base_gfn + 64 * (word + i), bits[i]);

		give_back(h, slot->dirty, word + i, left);
	}
	return !h->full;
}

/* The line of `page`, without the pages before it.  Those go back, and the line stays in the summary. */
static bool harvest_line_from(struct harvest *h, const struct memslot *slot, uint64_t page)
{
	size_t line = dirty_line_of(page / 64), word = dirty_line_start(line);
	uint64_t bits[DIRTY_LINE_WORDS];
	uint32_t set = dirty_line_take(slot->dirty, line, h->clear, bits);

	for (size_t i = 0; i < DIRTY_LINE_WORDS; i++) {
		uint64_t first = 64 * (word + i), before;

		if (!(set >> i & 1) || first >= page)
			continue;
		before = page - first < 64 ? ((uint64_t)1 << (page - first)) - 1 : ~(uint64_t)0;
		give_back(h, slot->dirty, word + i, bits[i] & before);
		bits[i] &= ~before;
	}
	return report_line(h, slot, line, bits, set);
}

/* Lines that were taken out of a log. */
struct group {
	size_t n;
	uint32_t line[DIRTY_LINES];
	uint32_t set[DIRTY_LINES];
	uint64_t bits[DIRTY_LINES][DIRTY_LINE_WORDS];
};

/* An exchange waits for all stores before it, so a group is taken as a whole before its ranges are stored. */
static void take_group(const struct harvest *h, struct dirty_log *log, struct group *group)
{
	for (size_t i = 0; i < group->n; i++)
		group->set[i] = dirty_line_take(log, group->line[i], h->clear, group->bits[i]);
}

static bool report_group(struct harvest *h, const struct memslot *slot, const struct group *group)
{
	for (size_t i = 0; i < group->n; i++)
		report_line(h, slot, group->line[i], group->bits[i], group->set[i]);
	return !h->full;
}

/* Puts the lines back that were not reported: those of a group that was not taken, and those of the walk. */
static void stop(const struct harvest *h, struct dirty_lines *lines, const struct group *next)
{
	for (size_t i = 0; h->clear && i < next->n; i++)
		dirty_log_give_back(lines->log, dirty_line_start(next->line[i]), 0);
	dirty_lines_end(lines);
}

/* The lines of the next group are on their way to the cache while the present group is reported. */
static bool harvest_lines(struct harvest *h, const struct memslot *slot, size_t from)
{
	struct dirty_lines lines = dirty_lines_begin(slot->dirty, from, h->clear);
	struct group group[2], *now = &group[0], *next = &group[1], *done;

	now->n = dirty_lines_next(&lines, now->line);
	while (now->n) {
		take_group(h, lines.log, now);
		next->n = dirty_lines_next(&lines, next->line);
		if (unlikely(!report_group(h, slot, now))) {
			stop(h, &lines, next);
			return false;
		}
		done = now;
		now = next;
		next = done;
	}
	return true;
}

/* false: the array is full. */
static bool harvest_slot(struct harvest *h, const struct memslot *slot, uint64_t gfn)
{
	uint64_t page = gfn > slot->base_gfn ? gfn - slot->base_gfn : 0;

	if (!page)
		return harvest_lines(h, slot, 0);
	return harvest_line_from(h, slot, page) && harvest_lines(h, slot, dirty_line_of(page / 64) + 1);
}

static void harvest_slots(struct ms_vm *vm, uint32_t as_id, struct harvest *h, uint64_t *gfn)
{
	const struct memslot_set *set = vm_active_set(vm, as_id);
	const struct memslot *slot = vm->design->first_from(set, *gfn);
	bool full = false;

	for (; slot && !full; slot = vm->design->next(set, slot))
		full = slot->dirty && !harvest_slot(h, slot, *gfn);
	*gfn = full ? h->next : MS_GFN_END;
}

int ms_harvest_dirty(struct ms_vm *vm, uint32_t as_id, bool clear, uint64_t *gfn, struct ms_gfn_range *out, size_t room,
		     size_t *n, struct ms_error *err)
{
	struct harvest h = { .out = out, .room = room, .clear = clear };
	int r;

	if (!gfn || !n || (!out && room))
		return null_buffer(err);
	*n = 0;
	if (rules_as_id(vm, as_id, err))
		return -EINVAL;
	r = vm_lock(vm, err);
	if (r)
		return r;
	harvest_slots(vm, as_id, &h, gfn);
	vm_unlock(vm);
	*n = h.n;
	return 0;
}
