/* SPDX-License-Identifier: MIT */
/*
 * dirty_log.c - see dirty_log.h for the invariants D1 and D2.
 */
#include "dirty_log.h"

#include "points.h"

static size_t log_size(size_t nwords)
{
	return sizeof(struct dirty_log) + 2 * nwords * sizeof(uint64_t);
}

/* The bits of the last word that stand for pages (D1). */
static uint64_t tail_mask(uint64_t npages)
{
	return npages % 64 ? ((uint64_t)1 << (npages % 64)) - 1 : ~(uint64_t)0;
}

static void set_all(struct dirty_log *log)
{
	for (size_t i = 0; i < log->nwords; i++)
		atomic_store_explicit(&log->live[i], i + 1 < log->nwords ? ~(uint64_t)0 : tail_mask(log->npages),
				      memory_order_relaxed);
}

struct dirty_log *dirty_log_create(struct memory *memory, uint64_t npages, bool initially_set)
{
	size_t nwords = dirty_log_words(npages);
	struct dirty_log *log = memory_zalloc(memory, log_size(nwords));

	if (!log)
		return NULL;
	log->npages = npages;
	log->nwords = nwords;
	log->refs = 1;
	log->scratch = (uint64_t *)(void *)(log->live + nwords);
	if (initially_set)
		set_all(log);
	return log;
}

struct dirty_log *dirty_log_get(struct dirty_log *log)
{
	if (log)
		log->refs++;
	return log;
}

void dirty_log_put(struct memory *memory, struct dirty_log *log)
{
	if (log && --log->refs == 0)
		memory_free(memory, log, log_size(log->nwords));
}

void dirty_log_harvest(struct dirty_log *log)
{
	for (size_t i = 0; i < log->nwords; i++) {
		log->scratch[i] = 0;
		if (atomic_load_explicit(&log->live[i], memory_order_relaxed)) {
			point(WRITER_HARVESTS);
			log->scratch[i] = atomic_exchange_explicit(&log->live[i], 0, memory_order_acq_rel);
		}
	}
}

void dirty_log_peek(struct dirty_log *log)
{
	for (size_t i = 0; i < log->nwords; i++)
		log->scratch[i] = atomic_load_explicit(&log->live[i], memory_order_acquire);
}

void dirty_log_clear(struct dirty_log *log, size_t first_word, size_t nwords)
{
	for (size_t i = 0; i < nwords; i++)
		if (log->scratch[i])
			atomic_fetch_and_explicit(&log->live[first_word + i], ~log->scratch[i], memory_order_acq_rel);
}

int dirty_log_check(const struct dirty_log *log)
{
	uint64_t last = log->nwords ? atomic_load_explicit(&log->live[log->nwords - 1], memory_order_relaxed) : 0;

	return last & ~tail_mask(log->npages) ? 1 : 0;
}
