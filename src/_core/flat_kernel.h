/* SPDX-License-Identifier: MIT */
/*
 * flat_kernel.h - the steps that all kernels of flat_many.h share, and the kernels.
 *
 * A kernel is asked for whole blocks; front() and search() are inlined into each, the last step is its own.
 */
#ifndef MS_FLAT_KERNEL_H
#define MS_FLAT_KERNEL_H

#include "flat_index.h"
#include "include/memslots.h"

#define always_inline inline __attribute__((always_inline))

/* Lookups of a block: enough to fill the reorder buffer; more where loads go to a far cache, or to memory. */
#define BLOCK ((size_t)16)
#define BLOCK_LARGE ((size_t)32)
#define BLOCK_LARGER ((size_t)64)

/* n is a multiple of BLOCK_LARGE; deny is FLAT_READONLY for writers and 0 for readers. */
typedef void flat_kernel_fn(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
			    uint64_t deny);

struct flat_kernel {
	const char *name;
	flat_kernel_fn *blocks;
	flat_kernel_fn *few; /* for f->few */
	size_t worth_blocks, worth_few; /* by measurement: a block of so many, filled up, is quicker than one by one */
	bool (*usable)(void);
};

extern const struct flat_kernel flat_portable;
#if defined(__x86_64__) && defined(__GNUC__)
#define MS_X86_KERNELS 1
extern const struct flat_kernel flat_avx2, flat_avx512;
flat_kernel_fn flat_avx2_blocks; /* AVX-512 has no better one */
#endif

struct block {
	uint64_t x[BLOCK_LARGER];
	uint32_t within[BLOCK_LARGER]; /* their buckets */
	uint32_t place[BLOCK_LARGER];  /* of the segment, of the bucket, of the record */
};

/* What a gfn that is no gpa must be shifted by to be an address; its own low bits where it is one. */
static always_inline uint64_t address_of(uint64_t in, unsigned shift)
{
	return in << (MS_PAGE_SHIFT - shift);
}

/* From gfns to buckets, where there is one segment.  Its body is that of buckets_of(), with the segment in registers: a
 * function for both costs 2 to 3 %. */
static always_inline void front_one(const struct flat_index *f, struct block *b, const uint64_t *in, unsigned shift,
				    size_t size)
{
	const struct flat_segment segment = *f->segments;
	uint32_t place_mask = f->place_mask;

	for (size_t i = 0; i < size; i++) {
		uint64_t x = (in[i] >> shift) - segment.first;

		x = x < segment.extent ? x : segment.extent;
		b->x[i] = x;
		b->within[i] = flat_within(x, segment.shift, place_mask);
		b->place[i] = (uint32_t)(x >> segment.shift);
	}
}

/* Where there are several: a binary search that all lookups of the block make in step. */
static always_inline void segments_of(const struct flat_index *f, struct block *b, const uint64_t *in, unsigned shift,
				      size_t size)
{
	const uint64_t *firsts = f->firsts;

	for (size_t i = 0; i < size; i++)
		b->place[i] = 0;
	for (uint32_t nr = f->nr_segments, half; nr > 1; nr -= half) {
		half = nr / 2;
		for (size_t i = 0; i < size; i++) {
			uint32_t right = firsts[b->place[i] + half] <= in[i] >> shift;

			opaque(right);
			b->place[i] += half & -right;
		}
	}
}

/* From segments to buckets. */
static always_inline void buckets_of(const struct flat_index *f, struct block *b, const uint64_t *in, unsigned shift,
				     size_t size)
{
	const struct flat_segment *segments = f->segments;

	for (size_t i = 0; i < size; i++) {
		const struct flat_segment *segment = &segments[b->place[i]];
		uint64_t x = (in[i] >> shift) - segment->first;

		x = x < segment->extent ? x : segment->extent;
		b->x[i] = x;
		b->within[i] = flat_within(x, segment->shift, f->place_mask);
		b->place[i] = segment->bucket + (uint32_t)(x >> segment->shift);
	}
}

static always_inline void front_many(const struct flat_index *f, struct block *b, const uint64_t *in, unsigned shift,
				     size_t size)
{
	segments_of(f, b, in, shift, size);
	buckets_of(f, b, in, shift, size);
}

/* So few segments are compared with all at once where there are vectors. */
#define SEGMENTS_COMPARED 32

/* From buckets to records.  In memory the next record is worth a prefetch too: its line may be another one. */
static always_inline void search(const struct flat_index *f, struct block *b, size_t size)
{
	const uint32_t *buckets = f->buckets;
	const struct flat_record *records = f->records;
	uint32_t place_mask = f->place_mask;

	for (size_t i = 0; size > BLOCK && i < size; i++)
		__builtin_prefetch(&buckets[b->place[i]]);
	for (size_t i = 0; i < size; i++) {
		b->place[i] = flat_step(buckets[b->place[i]], b->within[i], place_mask);
		__builtin_prefetch(&records[b->place[i]]);
		if (size > BLOCK_LARGE)
			__builtin_prefetch(&records[b->place[i] + 1]);
	}
	for (size_t i = 0; i < size; i++)
		b->place[i] = flat_settle(f, records, b->place[i], (uint32_t)b->x[i]);
}

/* Calls `blocks` with constants for what does not change from block to block: the compiler makes a loop of each. */
#define EACH_CASE(blocks) \
	do { \
		size_t most = f->larger ? n & ~(BLOCK_LARGER - 1) : 0; \
\
		if (most && f->nr_segments > 1) \
			blocks(f, in, out, most, shift, deny, BLOCK_LARGER, false); \
		else if (most) \
			blocks(f, in, out, most, shift, deny, BLOCK_LARGER, true); \
		in += most; \
		out += most; \
		n -= most; \
		if (f->nr_segments > 1) \
			blocks(f, in, out, n, shift, deny, BLOCK_LARGE, false); \
		else if (f->large) \
			blocks(f, in, out, n, shift, deny, BLOCK_LARGE, true); \
		else if (shift) \
			blocks(f, in, out, n, MS_PAGE_SHIFT, deny, BLOCK, true); \
		else \
			blocks(f, in, out, n, 0, deny, BLOCK, true); \
	} while (0)

#endif
