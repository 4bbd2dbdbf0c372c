/* SPDX-License-Identifier: MIT */
/*
 * flat_avx2.c - the kernel for CPUs with AVX2: four lookups at a time before and after search().
 */
#include "flat_kernel.h"

#ifdef MS_X86_KERNELS
#include <immintrin.h>

#define TARGET __attribute__((target("avx2")))
#define LANES ((size_t)4)

static bool usable(void)
{
	return __builtin_cpu_supports("avx2");
}

static TARGET always_inline __m256i splat(uint64_t value)
{
	return _mm256_set1_epi64x((long long)value);
}

static TARGET always_inline __m256i load(const uint64_t *at)
{
	return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

static TARGET always_inline void store(uint64_t *at, __m256i value)
{
	_mm256_storeu_si256((__m256i *)(void *)at, value);
}

/* AVX2 compares signed numbers.  With the top bit of both numbers flipped, the result is that of unsigned ones. */
static TARGET always_inline __m256i flip_top_bit(__m256i value)
{
	return _mm256_xor_si256(value, splat((uint64_t)1 << 63));
}

/* The place of a segment is the number of segments, without the first one, that begin at or before the gfn.  Each of
 * them adds -1, the result of its comparison. */
static TARGET always_inline void front_many_avx2(const struct flat_index *f, struct block *b, const uint64_t *in,
						 unsigned shift, size_t size)
{
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift);
	uint64_t before[BLOCK_LARGER];

	for (size_t i = 0; i < size; i += LANES) {
		__m256i gfn = flip_top_bit(_mm256_srl_epi64(load(in + i), gfn_shift)), minus = _mm256_setzero_si256();

		for (uint32_t k = 1; k < f->nr_segments; k++) {
			__m256i first = flip_top_bit(splat(f->firsts[k] - 1));

			minus = _mm256_add_epi64(minus, _mm256_cmpgt_epi64(gfn, first));
		}
		store(before + i, minus);
	}
	for (size_t i = 0; i < size; i++)
		b->place[i] = (uint32_t)-before[i];
	buckets_of(f, b, in, shift, size);
}

static TARGET always_inline __m256i answers(__m256i delta, __m256i address, __m256i hit, __m256i deny)
{
	__m256i hva = _mm256_add_epi64(_mm256_andnot_si256(splat(FLAT_DELTA_FLAGS), delta), address);
	__m256i allowed = _mm256_cmpeq_epi64(_mm256_and_si256(delta, deny), _mm256_setzero_si256());

	hva = _mm256_blendv_epi8(splat(MS_HVA_ERR_RO_BAD), hva, allowed);
	return _mm256_blendv_epi8(splat(MS_HVA_ERR_BAD), hva, hit);
}

/* Two records of 16 bytes in one register. */
static TARGET always_inline __m256i records_at(const struct flat_record *records, uint32_t a, uint32_t b)
{
	const __m128i *r = (const __m128i *)(const void *)records;

	return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_load_si128(r + a)), _mm_load_si128(r + b), 1);
}

/* The unpack instructions work within each half of a register.  To get the lookups in order, lanes 0 and 2 must come
 * from `a`, lanes 1 and 3 from `c`. */
static TARGET always_inline void back_avx2(const struct flat_index *f, const struct block *b, const uint64_t *in,
					   uint64_t *out, unsigned shift, uint64_t deny, size_t size)
{
	__m256i low = splat(UINT32_MAX), denied = splat(deny);
	__m128i address_shift = _mm_cvtsi32_si128(MS_PAGE_SHIFT - (int)shift);

	for (size_t i = 0; i < size; i += LANES) {
		__m256i a = records_at(f->records, b->place[i], b->place[i + 2]);
		__m256i c = records_at(f->records, b->place[i + 1], b->place[i + 3]);
		__m256i range = _mm256_unpacklo_epi64(a, c), delta = _mm256_unpackhi_epi64(a, c);
		__m256i page = _mm256_sub_epi64(load(b->x + i), _mm256_and_si256(range, low));
		__m256i hit = _mm256_cmpgt_epi64(_mm256_srli_epi64(range, 32), page); /* x >= rel: no negative page */
		__m256i address = _mm256_sll_epi64(load(in + i), address_shift);

		store(out + i, answers(delta, address, hit, denied));
	}
}

static TARGET always_inline void blocks_of(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n,
					   unsigned shift, uint64_t deny, size_t size, bool one)
{
	struct block b;

	for (size_t i = 0; i < n; i += size) {
		if (one)
			front_one(f, &b, in + i, shift, size);
		else if (f->nr_segments <= SEGMENTS_COMPARED)
			front_many_avx2(f, &b, in + i, shift, size);
		else
			front_many(f, &b, in + i, shift, size);
		search(f, &b, size);
		back_avx2(f, &b, in + i, out + i, shift, deny, size);
	}
}

TARGET void flat_avx2_blocks(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
			     uint64_t deny)
{
	EACH_CASE(blocks_of);
}

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
	for (size_t i = 0; i < n; i += LANES) {
		__m256i value = load(in + i), gfn = flip_top_bit(_mm256_srl_epi64(value, gfn_shift));
		__m256i begun = _mm256_or_si256(_mm256_cmpgt_epi64(gfn, before[0]), splat(-(uint64_t)!f->few->base[0]));
		__m256i none = flip_top_bit(_mm256_setzero_si256());
		__m256i last = _mm256_blendv_epi8(none, end[0], begun), found = delta[0];

		for (size_t k = 1; k < FLAT_FEW; k++) {
			__m256i mask = _mm256_cmpgt_epi64(gfn, before[k]);

			last = _mm256_blendv_epi8(last, end[k], mask);
			found = _mm256_blendv_epi8(found, delta[k], mask);
		}
		store(out + i,
		      answers(found, _mm256_sll_epi64(value, address_shift), _mm256_cmpgt_epi64(last, gfn), denied));
	}
}

const struct flat_kernel flat_avx2 = {
	.name = "avx2",
	.blocks = flat_avx2_blocks,
	.few = few,
	.worth_blocks = 16,
	.worth_few = 8,
	.usable = usable,
};
#endif
