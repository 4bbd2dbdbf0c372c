/* SPDX-License-Identifier: MIT */
/*
 * flat_kernel.h - the table of kernels for flat_many.h, and the parts that all of them share.
 *
 *   step     from    to                                     loads
 *   scale    gfns    scaled x: the bucket and a fraction
 *   place    those   numbers of pieces                      buckets
 *   answer   those   host addresses                         deltas
 *
 * The loads of one lookup depend on each other; those of different lookups do not.  So a block of lookups takes each
 * step together, and their loads overlap.  The arithmetic uses vectors.  The loads are plain loads, which fill a
 * register one lane after the other: a gather costs more, and so does a vector load of values that were stored one by
 * one.  The steps are different in each kernel; flat_blocks.h puts them together.
 */
#ifndef MS_FLAT_KERNEL_H
#define MS_FLAT_KERNEL_H

#include "flat_index.h"
#include "include/memslots.h"

#define always_inline inline __attribute__((always_inline))

/* The number of lookups in a block: the bits of a mask.  A kernel takes them by LANES. */
#define BLOCK ((size_t)64)
#define LANES ((size_t)8)

/* n is a multiple of LANES.  deny is FLAT_READONLY if the caller will write, else 0. */
typedef void flat_hvas_fn(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
			  uint64_t deny);

typedef void flat_ids_fn(const struct flat_index *f, const uint64_t *gfns, int32_t *out, size_t n);

struct flat_kernel {
	const char *name;
	flat_hvas_fn *hvas;
	flat_hvas_fn *few; /* for an index with f->few */
	flat_ids_fn *ids;
	/* From so many lookups on, few() for LANES of them is faster than single lookups; measured. */
	size_t worth_padding;
	bool (*usable)(void);
};

extern const struct flat_kernel flat_portable;
#ifdef MS_X86_KERNELS
extern const struct flat_kernel flat_avx2, flat_avx512;

/* The high half of a word in memory, in one load. */
static always_inline uint32_t high_half(const uint64_t *word)
{
	typedef uint32_t __attribute__((may_alias)) half;

	return ((const half *)word)[1];
}
#endif

struct block {
	cache_aligned uint64_t scaled[BLOCK]; /* flat_scaled(); the high half is the number of a bucket of the index */
	uint64_t word[BLOCK]; /* only the portable kernel: the words of the buckets */
	uint64_t piece[BLOCK]; /* with several segments: first of the segment; then numbers of pieces of the index */
};

/* The guest physical address of an input: of a page for a gfn (shift 0), unchanged for a gpa (MS_PAGE_SHIFT). */
static always_inline uint64_t address_of(uint64_t in, unsigned shift)
{
	return in << (MS_PAGE_SHIFT - shift);
}

/* ---- steps of all kernels ---- */

/* Up to this many segments a vector kernel compares the gfn with all of them, without a search. */
#define SEGMENTS_COMPARED 32

static always_inline void put_scaled(struct block *b, size_t i, const struct flat_segment *segment, uint64_t gfn)
{
	b->scaled[i] = flat_scaled(segment, flat_x(segment, gfn)) + ((uint64_t)segment->bucket << 32);
	b->piece[i] = segment->piece;
}

/* With several segments: a binary search in which all lookups of the block take each step together. */
static always_inline void scale_many(const struct flat_index *f, struct block *b, const uint64_t *in, unsigned shift,
				     size_t size)
{
	const uint64_t *firsts = f->firsts;

	for (size_t i = 0; i < size; i++)
		b->piece[i] = 0;
	for (uint32_t nr = f->nr_segments, half; nr > 1; nr -= half) {
		half = nr / 2;
		for (size_t i = 0; i < size; i++) {
			uint64_t right = firsts[b->piece[i] + half] <= in[i] >> shift;

			opaque(right);
			b->piece[i] += half & -right;
		}
	}
	for (size_t i = 0; i < size; i++)
		put_scaled(b, i, &f->segments[b->piece[i]], in[i] >> shift);
}

/* There is no branch on a hole: about a fifth of random lookups are misses, which no branch predictor foresees. */
static always_inline int32_t id_of(const struct flat_index *f, uint32_t piece)
{
	uint64_t delta = f->deltas[piece];
	uint32_t hole = (uint32_t)((delta & FLAT_HOLE) / FLAT_HOLE);

	opaque(hole);
	return (int32_t)(flat_id(f, flat_slot(f, delta, piece)) | -hole);
}

#endif
