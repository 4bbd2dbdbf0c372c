/* SPDX-License-Identifier: MIT */
/*
 * flat_blocks.h - the steps of flat_kernel.h put together, once for each set of instructions.
 *
 * The file that includes it defines TARGET, the attribute of its functions, and these steps:
 *
 *   scale_one()      scale, in an index of one segment; `piece` of the block is not written
 *   scale_several()  scale, with more segments
 *   place()          place; returns a mask of the lookups in over-full buckets, whose pieces are wrong.  `one`: there
 *                    is one segment
 *   piece_in_list()  flat_piece_in_list()
 *   answer()         answer
 */
#include "flat_kernel.h"

/* Corrects the pieces of lookups in over-full buckets.  Bit i of `overfull` is lookup i.  Where holes separate the
 * slots, a block has three to eight of them, so there is no other branch here.  With several segments they are rare. */
static TARGET always_inline void correct(const struct flat_index *f, struct block *b, const uint64_t *in,
					 unsigned shift, uint64_t overfull)
{
	for (; overfull; overfull &= overfull - 1) {
		size_t i = (size_t)__builtin_ctzll(overfull);
		uint64_t x = flat_x(&f->only, in[i] >> shift);

		b->piece[i] = piece_in_list(f, f->buckets[b->scaled[i] >> 32], (uint32_t)x);
	}
}

static out_of_line void correct_several(const struct flat_index *f, struct block *b, const uint64_t *in, unsigned shift,
					uint64_t overfull)
{
	for (; overfull; overfull &= overfull - 1) {
		size_t i = (size_t)__builtin_ctzll(overfull);

		b->piece[i] = flat_piece(f, in[i] >> shift);
	}
}

/* From gfns to pieces. */
static TARGET always_inline void find(const struct flat_index *f, struct block *b, const uint64_t *in, unsigned shift,
				      size_t size)
{
	uint64_t overfull;

	if (f->nr_segments == 1) {
		scale_one(f, b, in, shift, size);
		correct(f, b, in, shift, place(f, b, size, true));
	} else {
		scale_several(f, b, in, shift, size);
		overfull = place(f, b, size, false);
		if (unlikely(overfull))
			correct_several(f, b, in, shift, overfull);
	}
}

static TARGET always_inline void hvas_of_block(const struct flat_index *f, const uint64_t *in, uint64_t *out,
					       unsigned shift, uint64_t deny, size_t size)
{
	struct block b;

	find(f, &b, in, shift, size);
	answer(f, &b, in, out, shift, deny, size);
}

/* The CPU's own prefetching of the input is late if the index takes most of the first-level cache. */
static always_inline void prefetch_block(const uint64_t *in)
{
	for (size_t i = 0; i < BLOCK; i += CACHE_LINE / sizeof(*in))
		__builtin_prefetch(in + i);
}

/* The compiler makes a loop of whole blocks, whose size is a constant. */
static TARGET void hvas(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
			uint64_t deny)
{
	for (; n >= BLOCK; n -= BLOCK, in += BLOCK, out += BLOCK) {
		if (n >= 3 * BLOCK)
			prefetch_block(in + 2 * BLOCK);
		hvas_of_block(f, in, out, shift, deny, BLOCK);
	}
	if (n)
		hvas_of_block(f, in, out, shift, deny, n);
}

static TARGET void ids(const struct flat_index *f, const uint64_t *gfns, int32_t *out, size_t n)
{
	struct block b;

	for (size_t size; n; n -= size, gfns += size, out += size) {
		size = n < BLOCK ? n : BLOCK;
		find(f, &b, gfns, 0, size);
		for (size_t i = 0; i < size; i++)
			out[i] = id_of(f, (uint32_t)b.piece[i]);
	}
}
