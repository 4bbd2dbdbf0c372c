/* SPDX-License-Identifier: MIT */
/*
 * flat_avx512.c - the kernel for CPUs with AVX-512: eight lookups at a time.
 */
#include "flat_kernel.h"

#ifdef MS_X86_KERNELS
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f")))

static bool usable(void)
{
	return __builtin_cpu_supports("avx512f");
}

static TARGET always_inline __m512i splat(uint64_t value)
{
	return _mm512_set1_epi64((long long)value);
}

/* Eight plain loads of buckets, and of deltas.  A gather costs more. */
static TARGET always_inline __m512i buckets_at(const uint64_t *buckets, const uint64_t *scaled)
{
#define BUCKET(k) (long long)buckets[high_half(scaled + (k))]
	return _mm512_set_epi64(BUCKET(7), BUCKET(6), BUCKET(5), BUCKET(4), BUCKET(3), BUCKET(2), BUCKET(1), BUCKET(0));
#undef BUCKET
}

static TARGET always_inline __m512i deltas_at(const uint64_t *deltas, const uint64_t *piece)
{
#define DELTA(k) (long long)deltas[piece[k]]
	return _mm512_set_epi64(DELTA(7), DELTA(6), DELTA(5), DELTA(4), DELTA(3), DELTA(2), DELTA(1), DELTA(0));
#undef DELTA
}

/* ---- steps ---- */

static TARGET always_inline void scale_one(const struct flat_index *f, struct block *b, const uint64_t *in,
					   unsigned shift, size_t size)
{
	__m512i first = splat(f->only.first), extent = splat(f->only.extent), factor = splat(f->only.scale);
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift);

	for (size_t i = 0; i < size; i += LANES) {
		__m512i x = _mm512_sub_epi64(_mm512_srl_epi64(_mm512_loadu_si512(in + i), gfn_shift), first);

		_mm512_store_si512(b->scaled + i, _mm512_mul_epu32(_mm512_min_epu64(x, extent), factor));
	}
}

/* The segments of eight lookups: the number of segments, without the first one, that begin at or before the gfn. */
static TARGET always_inline __m512i segments_of(const struct flat_index *f, __m512i gfn)
{
	__m512i segment = _mm512_setzero_si512(), one = splat(1);

	for (uint32_t k = 1; k < f->nr_segments; k++)
		segment =
			_mm512_mask_add_epi64(segment, _mm512_cmple_epu64_mask(splat(f->firsts[k]), gfn), segment, one);
	return segment;
}

/* One word of the segments of eight lookups.  `at` has the words of eight segments at a time. */
static TARGET always_inline __m512i look_up(const __m512i at[4], __m512i segment)
{
	__m512i low = _mm512_permutex2var_epi64(at[0], segment, at[1]);
	__m512i high = _mm512_permutex2var_epi64(at[2], segment, at[3]);

	return _mm512_mask_mov_epi64(low, _mm512_test_epi64_mask(segment, splat(16)), high);
}

static TARGET always_inline void load_table(__m512i at[4], const uint64_t *words, uint32_t nr)
{
	for (uint32_t k = 0; k < SEGMENTS_COMPARED / LANES; k++) {
		uint32_t left = nr > k * LANES ? nr - k * (uint32_t)LANES : 0;

		at[k] = _mm512_maskz_loadu_epi64((__mmask8)(left < LANES ? (1u << left) - 1 : 255), words + k * LANES);
	}
}

static TARGET out_of_line void scale_several(const struct flat_index *f, struct block *b, const uint64_t *in,
					     unsigned shift, size_t size)
{
	__m512i first[4], shape[4], place[4], high = splat(~(uint64_t)UINT32_MAX), low = splat(UINT32_MAX);
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift);

	if (f->nr_segments > SEGMENTS_COMPARED) {
		scale_many(f, b, in, shift, size);
		return;
	}
	load_table(first, f->firsts, f->nr_segments);
	load_table(shape, flat_shapes(f), f->nr_segments);
	load_table(place, flat_places(f), f->nr_segments);
	for (size_t i = 0; i < size; i += LANES) {
		__m512i gfn = _mm512_srl_epi64(_mm512_loadu_si512(in + i), gfn_shift), segment = segments_of(f, gfn);
		__m512i x = _mm512_sub_epi64(gfn, look_up(first, segment));
		__m512i scale_extent = look_up(shape, segment), piece_bucket = look_up(place, segment);
		__m512i scaled;

		x = _mm512_min_epu64(x, _mm512_srli_epi64(scale_extent, 32));
		scaled = _mm512_mul_epu32(x, scale_extent);
		_mm512_store_si512(b->scaled + i, _mm512_add_epi64(scaled, _mm512_and_si512(piece_bucket, high)));
		_mm512_store_si512(b->piece + i, _mm512_and_si512(piece_bucket, low));
	}
}

static TARGET always_inline uint64_t place(const struct flat_index *f, struct block *b, size_t size, bool one)
{
	__m512i at_bits = splat(FLAT_AT_BITS), mask = splat(FLAT_PIECE_MASK), full = splat(FLAT_OVERFULL);
	__m512i next = splat(1);
	uint64_t overfull = 0;

	for (size_t i = 0; i < size; i += LANES) {
		__m512i word = buckets_at(f->buckets, b->scaled + i), scaled = _mm512_load_si512(b->scaled + i);
		__m512i at = _mm512_or_si512(_mm512_slli_epi64(scaled, FLAT_AT_SHIFT), at_bits);
		__m512i piece = _mm512_and_si512(word, mask), middle = _mm512_slli_epi64(word, FLAT_BEGIN_BITS);
		__m512i low = _mm512_slli_epi64(word, 2 * FLAT_BEGIN_BITS);

		piece = _mm512_mask_add_epi64(piece, _mm512_cmpge_epi64_mask(at, word), piece, next);
		piece = _mm512_mask_add_epi64(piece, _mm512_cmpge_epi64_mask(at, middle), piece, next);
		piece = _mm512_mask_add_epi64(piece, _mm512_cmpge_epi64_mask(at, low), piece, next);
		if (!one)
			piece = _mm512_add_epi64(piece, _mm512_load_si512(b->piece + i));
		_mm512_store_si512(b->piece + i, piece);
		overfull |= (uint64_t)_mm512_cmpge_epi64_mask(word, full) << i;
	}
	return overfull;
}

/* One load and one comparison for all begins of a list, which follow their number. */
static TARGET always_inline uint32_t piece_in_list(const struct flat_index *f, uint64_t word, uint32_t x)
{
	const uint32_t *list = flat_list(f, word);
	__mmask16 begins, before;
	__m512i begin;

	if (unlikely(*list > 15))
		return flat_piece_in_list(f, word, x);
	begins = (__mmask16)((2u << *list) - 2);
	begin = _mm512_maskz_loadu_epi32(begins, list);
	before = _mm512_mask_cmple_epu32_mask(begins, begin, _mm512_set1_epi32((int)x));
	return (uint32_t)(word & FLAT_PIECE_MASK) + (uint32_t)__builtin_popcount(before);
}

static TARGET always_inline __m512i answers(__m512i delta, __m512i address, __mmask8 hole, __m512i deny)
{
	__m512i hva = _mm512_add_epi64(_mm512_andnot_si512(splat(FLAT_DELTA_FLAGS), delta), address);

	hva = _mm512_mask_mov_epi64(hva, _mm512_test_epi64_mask(delta, deny), splat(MS_HVA_ERR_RO_BAD));
	return _mm512_mask_mov_epi64(hva, hole, splat(MS_HVA_ERR_BAD));
}

static TARGET always_inline void answer(const struct flat_index *f, const struct block *b, const uint64_t *in,
					uint64_t *out, unsigned shift, uint64_t deny, size_t size)
{
	__m128i address_shift = _mm_cvtsi32_si128(MS_PAGE_SHIFT - (int)shift);

	for (size_t i = 0; i < size; i += LANES) {
		__m512i address = _mm512_sll_epi64(_mm512_loadu_si512(in + i), address_shift);
		__m512i delta = deltas_at(f->deltas, b->piece + i);
		__mmask8 hole = _mm512_test_epi64_mask(delta, splat(FLAT_HOLE));

		_mm512_storeu_si512(out + i, answers(delta, address, hole, splat(deny)));
	}
}

#include "flat_blocks.h"

/* ---- few slots ---- */

/* Three registers contain all slots.  The place of a slot is the number of slots, without the first one, that begin at
 * or before the gfn. */
static TARGET void few(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
		       uint64_t deny)
{
	__m512i bases = _mm512_loadu_si512(f->few->base), npages = _mm512_loadu_si512(f->few->npages);
	__m512i deltas = _mm512_loadu_si512(f->few->delta), one = splat(1), base[FLAT_FEW];
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift);
	__m128i address_shift = _mm_cvtsi32_si128(MS_PAGE_SHIFT - (int)shift);

	for (size_t k = 0; k < FLAT_FEW; k++)
		base[k] = splat(f->few->base[k]);
	for (size_t i = 0; i < n; i += LANES) {
		__m512i value = _mm512_loadu_si512(in + i), gfn = _mm512_srl_epi64(value, gfn_shift);
		__m512i place = _mm512_setzero_si512(), page;
		__mmask8 hole;

		for (size_t k = 1; k < FLAT_FEW; k++)
			place = _mm512_mask_add_epi64(place, _mm512_cmple_epu64_mask(base[k], gfn), place, one);
		page = _mm512_sub_epi64(gfn, _mm512_permutexvar_epi64(place, bases));
		hole = _mm512_cmpge_epu64_mask(page, _mm512_permutexvar_epi64(place, npages));
		_mm512_storeu_si512(out + i, answers(_mm512_permutexvar_epi64(place, deltas),
						     _mm512_sll_epi64(value, address_shift), hole, splat(deny)));
	}
}

const struct flat_kernel flat_avx512 = {
	.name = "avx512",
	.hvas = hvas,
	.few = few,
	.ids = ids,
	.worth_padding = 6,
	.usable = usable,
};
#endif
