/* SPDX-License-Identifier: MIT */
/*
 * dirty_log.c - see dirty_log.h for the invariants.
 */
#include "dirty_log.h"

#include "points.h"

static size_t log_size(size_t nwords)
{
	return sizeof(struct dirty_log) + nwords * sizeof(uint64_t);
}

/* A word with its lowest n bits set. */
static uint64_t low_bits(int64_t n)
{
	if (n >= 64)
		return ~(uint64_t)0;
	return n > 0 ? ((uint64_t)1 << n) - 1 : 0;
}

/* A bit for each of the 64 pages from `page` on: whether the log has the page. */
static uint64_t pages_from(const struct dirty_log *log, int64_t page)
{
	return low_bits((int64_t)log->npages - page) & ~low_bits(-page);
}

static uint64_t word_at(const struct dirty_log *log, int64_t i)
{
	return (uint64_t)i < nwords_of(log) ? atomic_load_explicit(&log->live[i], memory_order_acquire) : 0;
}

/* The dirty bits of the 64 pages from `page` on; 0 for pages that the log does not have. */
static uint64_t bits_from(const struct dirty_log *log, int64_t page)
{
	unsigned shift = (uint64_t)page % 64;
	int64_t i = (page - (int64_t)shift) / 64;

	return word_at(log, i) >> shift | (shift ? word_at(log, i + 1) << (64 - shift) : 0);
}

static void merge(struct dirty_log *to, const struct dirty_log *from)
{
	int64_t page = to->first - from->first; /* the page of `from` at which `to` begins */

	for (size_t i = 0; i < nwords_of(to); i++, page += 64) {
		uint64_t bits = bits_from(from, page) & pages_from(to, 64 * (int64_t)i); /* D1 */

		if (bits)
			atomic_fetch_or_explicit(&to->live[i], bits, memory_order_release);
	}
}

static struct dirty_log *alloc_log(struct memory *memory, uint64_t npages)
{
	struct dirty_log *log = memory_zalloc(memory, log_size(dirty_log_words(npages)));

	if (!log)
		return NULL;
	log->npages = (uint32_t)npages;
	log->refs = 1;
	log->related = log;
	atomic_store_explicit(&log->pins, 1, memory_order_relaxed);
	return log;
}

/* Sets the bits of the pages that no related log has.  Readers cannot reach the log yet. */
static void set_new_pages(struct dirty_log *log)
{
	for (size_t i = 0; i < nwords_of(log); i++) {
		int64_t page = 64 * (int64_t)i;
		uint64_t bits = pages_from(log, page);

		for (const struct dirty_log *other = log->related; other != log; other = other->related)
			bits &= ~pages_from(other, page + log->first - other->first);
		atomic_store_explicit(&log->live[i], bits, memory_order_relaxed);
	}
}

struct dirty_log *dirty_log_create(struct memory *memory, uint64_t npages, bool initially_set)
{
	struct dirty_log *log = alloc_log(memory, npages);

	if (log && initially_set)
		set_new_pages(log);
	return log;
}

struct dirty_log *dirty_log_derive(struct memory *memory, struct dirty_log *from, int64_t first, uint64_t npages,
				   bool initially_set)
{
	struct dirty_log *log = alloc_log(memory, npages);

	if (!log)
		return NULL;
	log->first = from->first + first;
	log->related = from->related;
	from->related = log;
	if (initially_set)
		set_new_pages(log);
	for (const struct dirty_log *other = log->related; other != log; other = other->related)
		merge(log, other);
	return log;
}

void dirty_log_pass_on(const struct dirty_log *log)
{
	for (struct dirty_log *other = log->related; other != log; other = other->related)
		merge(other, log);
}

static void leave_ring(struct dirty_log *log)
{
	struct dirty_log *before = log->related;

	while (before->related != log)
		before = before->related;
	before->related = log->related;
}

struct dirty_log *dirty_log_get(struct dirty_log *log)
{
	if (log)
		log->refs++;
	return log;
}

void dirty_log_put(struct memory *memory, struct dirty_log *log)
{
	if (!log || --log->refs)
		return;
	leave_ring(log);
	dirty_log_unpin(memory, log);
}

void dirty_log_pin(struct dirty_log *log)
{
	atomic_fetch_add_explicit(&log->pins, 1, memory_order_relaxed);
}

void dirty_log_unpin(struct memory *memory, struct dirty_log *log)
{
	if (atomic_fetch_sub_explicit(&log->pins, 1, memory_order_acq_rel) == 1)
		memory_free(memory, log, log_size(nwords_of(log)));
}

void dirty_log_harvest(struct dirty_log *log, uint64_t *bitmap)
{
	for (size_t i = 0; i < nwords_of(log); i++) {
		uint64_t bits = atomic_load_explicit(&log->live[i], memory_order_relaxed);

		if (bits) {
			point(WRITER_HARVESTS);
			bits = atomic_exchange_explicit(&log->live[i], 0, memory_order_acq_rel);
		}
		if (bitmap)
			bitmap[i] = bits;
	}
}

void dirty_log_peek(const struct dirty_log *log, uint64_t *bitmap)
{
	for (size_t i = 0; i < nwords_of(log); i++)
		bitmap[i] = atomic_load_explicit(&log->live[i], memory_order_acquire);
}

void dirty_log_clear(struct dirty_log *log, size_t first_word, const uint64_t *bitmap, size_t nwords)
{
	for (size_t i = 0; i < nwords; i++)
		if (bitmap[i])
			atomic_fetch_and_explicit(&log->live[first_word + i], ~bitmap[i], memory_order_acq_rel);
}

int dirty_log_check(const struct dirty_log *log)
{
	int64_t i = (int64_t)nwords_of(log) - 1;

	return word_at(log, i) & ~pages_from(log, 64 * i) ? 1 : 0;
}
