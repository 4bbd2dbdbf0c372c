/* SPDX-License-Identifier: MIT */
/* flat_avx512.c - the kernel for CPUs with AVX-512: eight lookups at a time before and after the search. */
#include "flat_kernel.h"

#ifdef MS_X86_KERNELS
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw")))
#define LANES ((size_t)8)

static bool usable(void)
{
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
	       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}

/* One segment, as most layouts have. */
static TARGET always_inline void front_512(const struct flat_index *f, struct block *b, const uint64_t *in,
					   unsigned shift, size_t size)
{
	const struct flat_segment *segment = f->segments;
	__m512i first = _mm512_set1_epi64((long long)segment->first);
	__m512i extent = _mm512_set1_epi64((long long)segment->extent);
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift), bucket_shift = _mm_cvtsi32_si128((int)segment->shift);

	for (size_t i = 0; i < size; i += LANES) {
		__m512i gfn = _mm512_srl_epi64(_mm512_loadu_si512(in + i), gfn_shift);
		__m512i x = _mm512_min_epu64(_mm512_sub_epi64(gfn, first), extent);

		_mm512_storeu_si512(b->x + i, x);
		_mm256_storeu_si256((__m256i *)(void *)(b->place + i),
				    _mm512_cvtepi64_epi32(_mm512_srl_epi64(x, bucket_shift)));
	}
}

/* The place is how many segments begin at or before the gfn, the first left out. */
static TARGET always_inline void front_many_512(const struct flat_index *f, struct block *b, const uint64_t *in,
						unsigned shift, size_t size)
{
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift);

	for (size_t i = 0; i < size; i += LANES) {
		__m512i gfn = _mm512_srl_epi64(_mm512_loadu_si512(in + i), gfn_shift), place = _mm512_setzero_si512();

		for (uint32_t k = 1; k < f->nr_segments; k++) {
			__mmask8 begun = _mm512_cmple_epu64_mask(_mm512_set1_epi64((long long)f->firsts[k]), gfn);

			place = _mm512_mask_add_epi64(place, begun, place, _mm512_set1_epi64(1));
		}
		_mm256_storeu_si256((__m256i *)(void *)(b->place + i), _mm512_cvtepi64_epi32(place));
	}
	buckets_of(f, b, in, shift, size);
}

/* The answers of eight hits and misses. */
static TARGET always_inline __m512i answers(__m512i delta, __m512i address, __mmask8 hit, __m512i deny)
{
	__m512i hva = _mm512_add_epi64(_mm512_andnot_si512(_mm512_set1_epi64(FLAT_DELTA_FLAGS), delta), address);

	hva = _mm512_mask_mov_epi64(hva, _mm512_test_epi64_mask(delta, deny),
				    _mm512_set1_epi64((long long)MS_HVA_ERR_RO_BAD));
	return _mm512_mask_mov_epi64(_mm512_set1_epi64((long long)MS_HVA_ERR_BAD), hit, hva);
}

/* Four records of 16 bytes, as one vector. */
static TARGET always_inline __m512i records_at(const struct flat_record *records, const uint32_t *place)
{
	const __m128i *r = (const __m128i *)(const void *)records;
	__m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_load_si128(r + place[0])),
					      _mm_load_si128(r + place[1]), 1);
	__m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_load_si128(r + place[2])),
					       _mm_load_si128(r + place[3]), 1);

	return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

static TARGET always_inline void back_512(const struct flat_index *f, const struct block *b, const uint64_t *in,
					  uint64_t *out, unsigned shift, uint64_t deny, size_t size)
{
	__m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
	__m512i low = _mm512_set1_epi64(UINT32_MAX), denied = _mm512_set1_epi64((long long)deny);
	__m128i address_shift = _mm_cvtsi32_si128(MS_PAGE_SHIFT - (int)shift);

	for (size_t i = 0; i < size; i += LANES) {
		__m512i a = records_at(f->records, b->place + i), c = records_at(f->records, b->place + i + 4);
		__m512i range = _mm512_permutex2var_epi64(a, even, c), delta = _mm512_permutex2var_epi64(a, odd, c);
		__m512i page = _mm512_sub_epi64(_mm512_loadu_si512(b->x + i), _mm512_and_si512(range, low));
		__mmask8 hit = _mm512_cmplt_epu64_mask(page, _mm512_srli_epi64(range, 32));
		__m512i address = _mm512_sll_epi64(_mm512_loadu_si512(in + i), address_shift);

		_mm512_storeu_si512(out + i, answers(delta, address, hit, denied));
	}
}

static TARGET always_inline void blocks_of(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n,
					   unsigned shift, uint64_t deny, size_t size, bool one)
{
	struct block b;

	for (size_t i = 0; i < n; i += size) {
		if (one)
			front_512(f, &b, in + i, shift, size);
		else if (f->nr_segments <= SEGMENTS_COMPARED)
			front_many_512(f, &b, in + i, shift, size);
		else
			front_many(f, &b, in + i, shift, size);
		search(f, &b, size, size == BLOCK_LARGE);
		back_512(f, &b, in + i, out + i, shift, deny, size);
	}
}

static TARGET void blocks(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
			  uint64_t deny)
{
	EACH_CASE(blocks_of);
}

/* All slots in three registers: a lane's place is how many slots begin at or before its gfn. */
static TARGET void few(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
		       uint64_t deny)
{
	__m512i bases = _mm512_loadu_si512(f->few->base), npages = _mm512_loadu_si512(f->few->npages);
	__m512i deltas = _mm512_loadu_si512(f->few->delta), one = _mm512_set1_epi64(1);
	__m512i denied = _mm512_set1_epi64((long long)deny), base[FLAT_FEW];
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift), address_shift = _mm_cvtsi32_si128(MS_PAGE_SHIFT - (int)shift);

	for (size_t k = 0; k < FLAT_FEW; k++)
		base[k] = _mm512_set1_epi64((long long)f->few->base[k]);
	for (size_t i = 0; i < n; i += LANES) {
		__m512i value = _mm512_loadu_si512(in + i), gfn = _mm512_srl_epi64(value, gfn_shift);
		__m512i place = _mm512_setzero_si512(), page;
		__mmask8 hit;

		for (size_t k = 1; k < FLAT_FEW; k++)
			place = _mm512_mask_add_epi64(place, _mm512_cmple_epu64_mask(base[k], gfn), place, one);
		page = _mm512_sub_epi64(gfn, _mm512_permutexvar_epi64(place, bases));
		hit = _mm512_cmplt_epu64_mask(page, _mm512_permutexvar_epi64(place, npages));
		_mm512_storeu_si512(out + i, answers(_mm512_permutexvar_epi64(place, deltas),
						     _mm512_sll_epi64(value, address_shift), hit, denied));
	}
}

const struct flat_kernel flat_avx512 = { "avx512", blocks, few, usable };
#endif
