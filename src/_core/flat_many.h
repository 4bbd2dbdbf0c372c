/* SPDX-License-Identifier: MIT */
/*
 * flat_many.h - many lookups in one flat index, with the vector instructions of this CPU.
 *
 * The loads of one lookup depend on each other; those of different lookups do not.  So a block of lookups takes each
 * step together, and their loads overlap.  The search is scalar on every CPU, because a gather costs more than the
 * loads that it replaces.  The steps before and after it use vectors if there are any.  All kernels give the same
 * answers.
 *
 * Locking: none.  The caller has a reference, or is in a read section of the set that has the index.
 * Cost: 1 to 4 ns a lookup while the index fits the caches, for any number of slots; 3 to 5 ns for ids.
 */
#ifndef MS_FLAT_MANY_H
#define MS_FLAT_MANY_H

#include "flat_index.h"

/* out[i] becomes the answer of gfn_to_hva_many() to the gfn in[i] >> shift, plus the low bits of in[i].  shift is 0 for
 * gfns and MS_PAGE_SHIFT for gpas.  out may be in. */
void flat_hvas(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift, bool write);

/* out[i] becomes the id of the slot that contains gfns[i], or -1. */
void flat_ids(const struct flat_index *f, const uint64_t *gfns, int32_t *out, size_t n);

#endif
