/* SPDX-License-Identifier: MIT */
/*
 * batch_walk.h - answers a batch of gfns from a set, without an index.
 *
 * Lookups that the hint does not answer are collected until there are enough to search the tree for all of them at once
 * (SEARCH_LANES).  If a run of lookups in one slot begins, this slot is searched for immediately and becomes the hint.
 * With a design that has no search_many, or with the policy "walk", gfns are looked up one after the other.
 *
 * Locking: none.  The caller is in a read section of the set.
 * Cost: as search_many of the design; less if the hint answers.
 */
#ifndef MS_BATCH_WALK_H
#define MS_BATCH_WALK_H

#include <string.h>

#include "look.h"

/* GFN_TO_SLOT puts the pointer to the slot, or NULL.  It is for a caller that stays in the section. */
enum kind { GFN_TO_HVA, GPA_TO_HVA, GFN_TO_ID, MARK, GFN_TO_SLOT };

struct job {
	struct ms_vm *vm;
	uint32_t as_id;
	enum kind kind;
	bool write;
	const struct ms_batch *batch;
};

/* Values and results lie anywhere: a copy of eight bytes is one load or one store. */
static inline uint64_t value_at(const struct ms_batch *batch, size_t i)
{
	uint64_t value;

	memcpy(&value, (const char *)batch->in + (ptrdiff_t)i * batch->in_stride, sizeof(value));
	return value;
}

static inline void put_hva(const struct ms_batch *batch, size_t i, uint64_t hva)
{
	memcpy((char *)batch->out + (ptrdiff_t)i * batch->out_stride, &hva, sizeof(hva));
}

static inline void put_id(const struct ms_batch *batch, size_t i, int32_t id)
{
	memcpy((char *)batch->out + (ptrdiff_t)i * batch->out_stride, &id, sizeof(id));
}

static inline unsigned shift_of(const struct job *job)
{
	return job->kind == GPA_TO_HVA ? MS_PAGE_SHIFT : 0;
}

/* Answers the lookups [from, from + n) of the batch, inside a section of the set, and counts them.  Returns how many of
 * them the hint did not answer. */
size_t batch_walk(const struct job *job, const struct look *look, size_t from, size_t n);

/* Some values of a batch: their places in it, and the values, which the answers of others may have overwritten. */
#define SOME_MAX ((size_t)1024)
struct some {
	size_t nr;
	uint64_t value[SOME_MAX + 1];
	size_t at[SOME_MAX + 1];
};

/* The same for these lookups; the design must have search_many. */
size_t batch_walk_some(const struct job *job, const struct look *look, const struct some *some);

/* Puts the answer for a value whose gfn is in this slot, or if NULL, in a hole. */
void batch_put_entry(const struct job *job, size_t i, const struct flat_entry *entry, uint64_t value);

/* Answers the whole batch with holes, because its address space does not exist. */
void batch_answer_holes(const struct job *job);

#endif
