/* SPDX-License-Identifier: MIT */
/*
 * flat_avx2.c - the kernel for CPUs with AVX2: four lookups at a time.
 */
#include "flat_kernel.h"

#ifdef MS_X86_KERNELS
#include <immintrin.h>

#define TARGET __attribute__((target("avx2")))
#define HALF (LANES / 2) /* the lookups in one register */

static bool usable(void)
{
	return __builtin_cpu_supports("avx2");
}

static TARGET always_inline __m256i splat(uint64_t value)
{
	return _mm256_set1_epi64x((long long)value);
}

static TARGET always_inline __m256i load(const void *at)
{
	return _mm256_loadu_si256((const __m256i *)at);
}

static TARGET always_inline void store(uint64_t *at, __m256i value)
{
	_mm256_storeu_si256((__m256i *)(void *)at, value);
}

/* AVX2 compares signed numbers.  With the top bit of both numbers flipped, the result is that of unsigned ones. */
#define TOP_BIT ((uint64_t)1 << 63)

static TARGET always_inline __m256i flip_top_bit(__m256i value)
{
	return _mm256_xor_si256(value, splat(TOP_BIT));
}

/* b where the top bit of `where` is set, else a. */
static TARGET always_inline __m256i choose(__m256i a, __m256i b, __m256i where)
{
	return _mm256_castpd_si256(
		_mm256_blendv_pd(_mm256_castsi256_pd(a), _mm256_castsi256_pd(b), _mm256_castsi256_pd(where)));
}

/* Four plain loads of buckets, and of deltas.  A gather costs more. */
static TARGET always_inline __m256i buckets_at(const uint64_t *buckets, const uint64_t *scaled)
{
	return _mm256_set_epi64x((long long)buckets[high_half(scaled + 3)], (long long)buckets[high_half(scaled + 2)],
				 (long long)buckets[high_half(scaled + 1)], (long long)buckets[high_half(scaled)]);
}

static TARGET always_inline __m256i deltas_at(const uint64_t *deltas, const uint64_t *piece)
{
	return _mm256_set_epi64x((long long)deltas[piece[3]], (long long)deltas[piece[2]], (long long)deltas[piece[1]],
				 (long long)deltas[piece[0]]);
}

/* ---- steps ---- */

/* x * scale.  The top bit of x is flipped; the product takes only the low half of x. */
static TARGET always_inline __m256i scaled_of(__m256i x, __m256i extent, __m256i factor)
{
	__m256i inside = _mm256_cmpgt_epi64(flip_top_bit(extent), x);

	return _mm256_mul_epu32(choose(extent, x, inside), factor);
}

static TARGET always_inline void scale_one(const struct flat_index *f, struct block *b, const uint64_t *in,
					   unsigned shift, size_t size)
{
	__m256i first = splat(f->only.first + TOP_BIT), extent = splat(f->only.extent), factor = splat(f->only.scale);
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift);

	for (size_t i = 0; i < size; i += HALF) {
		__m256i x = _mm256_sub_epi64(_mm256_srl_epi64(load(in + i), gfn_shift), first);

		store(b->scaled + i, scaled_of(x, extent, factor));
	}
}

/* The number of a segment is the number of segments, without the first one, that begin at or before the gfn.  Each of
 * them adds -1, the result of its comparison. */
static TARGET always_inline void segments_of(const struct flat_index *f, struct block *b, const uint64_t *in,
					     __m128i gfn_shift, size_t size)
{
	for (size_t i = 0; i < size; i += HALF) {
		__m256i gfn = flip_top_bit(_mm256_srl_epi64(load(in + i), gfn_shift)), minus = _mm256_setzero_si256();

		for (uint32_t k = 1; k < f->nr_segments; k++) {
			__m256i before = flip_top_bit(splat(f->firsts[k] - 1));

			minus = _mm256_add_epi64(minus, _mm256_cmpgt_epi64(gfn, before));
		}
		store(b->piece + i, _mm256_sub_epi64(_mm256_setzero_si256(), minus));
	}
}

/* The first three words of four segments. */
struct words {
	__m256i first, shape, place;
};

static TARGET always_inline struct words words_of(const struct flat_segment *segments, const uint64_t *number)
{
	__m256i r0 = load(&segments[number[0]]), r1 = load(&segments[number[1]]);
	__m256i r2 = load(&segments[number[2]]), r3 = load(&segments[number[3]]);
	__m256i even01 = _mm256_unpacklo_epi64(r0, r1), even23 = _mm256_unpacklo_epi64(r2, r3);
	__m256i odd01 = _mm256_unpackhi_epi64(r0, r1), odd23 = _mm256_unpackhi_epi64(r2, r3);

	return (struct words){
		.first = _mm256_permute2x128_si256(even01, even23, 0x20),
		.shape = _mm256_permute2x128_si256(odd01, odd23, 0x20),
		.place = _mm256_permute2x128_si256(even01, even23, 0x31),
	};
}

static TARGET out_of_line void scale_several(const struct flat_index *f, struct block *b, const uint64_t *in,
					     unsigned shift, size_t size)
{
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift);
	__m256i low = splat(UINT32_MAX);

	if (f->nr_segments > SEGMENTS_COMPARED) {
		scale_many(f, b, in, shift, size);
		return;
	}
	segments_of(f, b, in, gfn_shift, size);
	for (size_t i = 0; i < size; i += HALF) {
		struct words w = words_of(f->segments, b->piece + i);
		__m256i x = _mm256_sub_epi64(_mm256_srl_epi64(load(in + i), gfn_shift), w.first);
		__m256i scaled = scaled_of(flip_top_bit(x), _mm256_srli_epi64(w.shape, 32), w.shape);

		store(b->scaled + i, _mm256_add_epi64(scaled, _mm256_andnot_si256(low, w.place)));
		store(b->piece + i, _mm256_and_si256(low, w.place));
	}
}

/* Each begin behind x adds -1, the result of its comparison. */
static TARGET always_inline uint64_t place(const struct flat_index *f, struct block *b, size_t size, bool one)
{
	__m256i at_bits = splat(FLAT_AT_BITS), mask = splat(FLAT_PIECE_MASK), all = splat(FLAT_BEGINS);
	__m256i not_full = splat(FLAT_OVERFULL - 1);
	uint64_t overfull = 0;

	for (size_t i = 0; i < size; i += HALF) {
		__m256i word = buckets_at(f->buckets, b->scaled + i), middle = _mm256_slli_epi64(word, FLAT_BEGIN_BITS);
		__m256i low = _mm256_slli_epi64(word, 2 * FLAT_BEGIN_BITS);
		__m256i at = _mm256_or_si256(_mm256_slli_epi64(load(b->scaled + i), FLAT_AT_SHIFT), at_bits);
		__m256i behind = _mm256_add_epi64(_mm256_cmpgt_epi64(word, at), _mm256_cmpgt_epi64(middle, at));
		__m256i piece = _mm256_add_epi64(_mm256_and_si256(word, mask), all);

		behind = _mm256_add_epi64(behind, _mm256_cmpgt_epi64(low, at));
		piece = _mm256_add_epi64(piece, behind);
		if (!one)
			piece = _mm256_add_epi64(piece, load(b->piece + i));
		store(b->piece + i, piece);
		overfull |= (uint64_t)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(word, not_full))) << i;
	}
	return overfull;
}

/* One load and one comparison for all begins of a list, which follow their number.  Other lanes are 0, as if they began
 * at or before x. */
static TARGET always_inline uint32_t piece_in_list(const struct flat_index *f, uint64_t word, uint32_t x)
{
	const uint32_t *list = flat_list(f, word);
	__m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, INT32_MAX), begin, before;

	if (unlikely(*list > 7))
		return flat_piece_in_list(f, word, x);
	begin = _mm256_maskload_epi32((const int *)list, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)*list + 1), lane));
	before = _mm256_cmpeq_epi32(_mm256_min_epu32(begin, _mm256_set1_epi32((int)x)), begin);
	return (uint32_t)(word & FLAT_PIECE_MASK) + *list - 8 +
	       (uint32_t)__builtin_popcount((unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(before)));
}

_Static_assert(FLAT_READONLY == 1 && FLAT_HOLE == 2, "these bits of a delta move to the top of its word");

/* The answers for slots. */
static TARGET always_inline __m256i answers(__m256i delta, __m256i address, __m256i deny)
{
	__m256i hva = _mm256_add_epi64(_mm256_andnot_si256(splat(FLAT_DELTA_FLAGS), delta), address);

	return choose(hva, splat(MS_HVA_ERR_RO_BAD), _mm256_slli_epi64(_mm256_and_si256(delta, deny), 63));
}

static TARGET always_inline void answer(const struct flat_index *f, const struct block *b, const uint64_t *in,
					uint64_t *out, unsigned shift, uint64_t deny, size_t size)
{
	__m128i address_shift = _mm_cvtsi32_si128(MS_PAGE_SHIFT - (int)shift);

	for (size_t i = 0; i < size; i += HALF) {
		__m256i delta = deltas_at(f->deltas, b->piece + i);
		__m256i hva = answers(delta, _mm256_sll_epi64(load(in + i), address_shift), splat(deny));

		store(out + i, choose(hva, splat(MS_HVA_ERR_BAD), _mm256_slli_epi64(delta, 62)));
	}
}

#include "flat_blocks.h"

/* ---- few slots ---- */

/* Each slot that begins at or before the gfn overwrites the values of the slot before it. */
static TARGET void few(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
		       uint64_t deny)
{
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift);
	__m128i address_shift = _mm_cvtsi32_si128(MS_PAGE_SHIFT - (int)shift);
	__m256i before[FLAT_FEW], end[FLAT_FEW], delta[FLAT_FEW], denied = splat(deny);

	for (size_t k = 0; k < FLAT_FEW; k++) {
		before[k] = flip_top_bit(splat(f->few->base[k] - 1)); /* wraps for base 0: `begun` corrects it */
		end[k] = flip_top_bit(splat(f->few->base[k] + f->few->npages[k]));
		delta[k] = splat(f->few->delta[k]);
	}
	for (size_t i = 0; i < n; i += HALF) {
		__m256i value = load(in + i), gfn = flip_top_bit(_mm256_srl_epi64(value, gfn_shift));
		__m256i begun = _mm256_or_si256(_mm256_cmpgt_epi64(gfn, before[0]), splat(-(uint64_t)!f->few->base[0]));
		__m256i last = choose(splat(TOP_BIT), end[0], begun), found = delta[0];

		for (size_t k = 1; k < FLAT_FEW; k++) {
			__m256i mask = _mm256_cmpgt_epi64(gfn, before[k]);

			last = choose(last, end[k], mask);
			found = choose(found, delta[k], mask);
		}
		found = answers(found, _mm256_sll_epi64(value, address_shift), denied);
		store(out + i, choose(splat(MS_HVA_ERR_BAD), found, _mm256_cmpgt_epi64(last, gfn)));
	}
}

const struct flat_kernel flat_avx2 = {
	.name = "avx2",
	.hvas = hvas,
	.few = few,
	.ids = ids,
	.worth_padding = 4,
	.usable = usable,
};
#endif
