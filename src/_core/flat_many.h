/* SPDX-License-Identifier: MIT */
/*
 * flat_many.h - many lookups in one flat index, as wide as this CPU allows.
 *
 * The loads of a lookup depend on each other, those of different lookups do not: a block of lookups goes through each
 * step together, so that their loads overlap.  The search itself is scalar on every CPU, since gathers cost more than
 * the loads they replace; what comes before and after it is vector work where there are vectors.  Every level gives
 * the same answers.
 *
 * Cost: 1 to 4 ns a lookup while the index fits the caches, whatever its size; ids 3 to 5.
 */
#ifndef MS_FLAT_MANY_H
#define MS_FLAT_MANY_H

#include "flat_index.h"

/* Answers as gfn_to_hva_many() gives them.  in[i] >> shift is a gfn, and its low bits are carried over to out[i]: shift
 * is 0 for gfns, MS_PAGE_SHIFT for gpas.  out may be in.  */
void flat_hvas(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift, bool write);

/* Ids, -1 in holes. */
void flat_ids(const struct flat_index *f, const uint64_t *gfns, int32_t *out, size_t n);

#endif
