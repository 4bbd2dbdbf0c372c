/* SPDX-License-Identifier: MIT */
/*
 * flat_many.h - many lookups in one flat index, with the vector instructions of this CPU.
 *
 * flat_kernel.h has the steps.  All kernels give the same answers.
 *
 * Locking: none.  The caller has a reference, or is in a read section of the set that has the index.
 * Cost: 1 to 3 ns a lookup while the index fits the caches, for any number of slots; 2 to 4 ns for ids.
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
