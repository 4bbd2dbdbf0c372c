/* SPDX-License-Identifier: MIT */
/*
 * flat_kernel.h - the table of kernels for flat_many.h, and the steps that they share.
 *
 * A kernel handles whole blocks of lookups.  front_*() finds the buckets and search() the records; both are inlined
 * into each kernel.  The last step, from records to answers, is different in each.
 */
#ifndef MS_FLAT_KERNEL_H
#define MS_FLAT_KERNEL_H

#include "flat_index.h"
#include "include/memslots.h"

#define always_inline inline __attribute__((always_inline))

/* The number of lookups in a block: enough to fill the reorder buffer of a CPU; more if loads go to a far cache, and
 * still more if they go to memory. */
#define BLOCK ((size_t)16)
#define BLOCK_LARGE ((size_t)32)
#define BLOCK_LARGER ((size_t)64)

/* n is a multiple of BLOCK_LARGE.  deny is FLAT_READONLY if the caller will write, else 0. */
typedef void flat_kernel_fn(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
			    uint64_t deny);

struct flat_kernel {
	const char *name;
	flat_kernel_fn *blocks;
	flat_kernel_fn *few; /* for an index with f->few */
	/* From this many lookups on, a padded block is faster than single lookups; measured. */
	size_t worth_blocks, worth_few;
	bool (*usable)(void);
};

extern const struct flat_kernel flat_portable;
#if defined(__x86_64__) && defined(__GNUC__)
#define MS_X86_KERNELS 1
extern const struct flat_kernel flat_avx2, flat_avx512;
flat_kernel_fn flat_avx2_blocks; /* AVX-512 uses it too */
#endif

struct block {
	uint64_t x[BLOCK_LARGER];
	uint32_t within[BLOCK_LARGER]; /* flat_within() of x */
	uint32_t place[BLOCK_LARGER];  /* first of the segment, then of the bucket, at last of the record */
};

/* The guest physical address of an input: of a page for a gfn (shift 0), unchanged for a gpa (MS_PAGE_SHIFT). */
static always_inline uint64_t address_of(uint64_t in, unsigned shift)
{
	return in << (MS_PAGE_SHIFT - shift);
}

/* From gfns to buckets, in an index of one segment.  The body is the same as in buckets_of(), but keeps the segment in
 * registers.  One function for both would be 2 to 3 % slower. */
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

/* From gfns to segments: a binary search in which all lookups of the block take each step together. */
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

/* Up to this many segments a vector kernel compares the gfn with all of them, without a binary search. */
#define SEGMENTS_COMPARED 32

/* From buckets to records.  If records are in memory, the next record is prefetched too: it may be on another line. */
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

/* Calls `blocks` with constants for everything that is the same in all blocks.  The compiler makes a loop for each. */
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
