/* SPDX-License-Identifier: MIT */
/*
 * flat_avx512.c - the kernel for CPUs with AVX-512: eight lookups at a time among a few slots in registers.
 *
 * Larger indexes use the kernel of flat_avx2.c.  Eight lanes before and after search() are no faster than four
 * (docs/benchmarks.md).
 */
#include "flat_kernel.h"

#ifdef MS_X86_KERNELS
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f")))
#define LANES ((size_t)8)

static bool usable(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512f");
}

/* The answers to eight lookups. */
static TARGET always_inline __m512i answers(__m512i delta, __m512i address, __mmask8 hit, __m512i deny)
{
	__m512i hva = _mm512_add_epi64(_mm512_andnot_si512(_mm512_set1_epi64(FLAT_DELTA_FLAGS), delta), address);

	hva = _mm512_mask_mov_epi64(hva, _mm512_test_epi64_mask(delta, deny),
				    _mm512_set1_epi64((long long)MS_HVA_ERR_RO_BAD));
	return _mm512_mask_mov_epi64(_mm512_set1_epi64((long long)MS_HVA_ERR_BAD), hit, hva);
}

/* Three registers contain all slots.  The place of a slot is the number of slots, without the first one, that begin at
 * or before the gfn. */
static TARGET void few(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
		       uint64_t deny)
{
	__m512i bases = _mm512_loadu_si512(f->few->base), npages = _mm512_loadu_si512(f->few->npages);
	__m512i deltas = _mm512_loadu_si512(f->few->delta), one = _mm512_set1_epi64(1);
	__m512i denied = _mm512_set1_epi64((long long)deny), base[FLAT_FEW];
	__m128i gfn_shift = _mm_cvtsi32_si128((int)shift);
	__m128i address_shift = _mm_cvtsi32_si128(MS_PAGE_SHIFT - (int)shift);

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

const struct flat_kernel flat_avx512 = {
	.name = "avx512",
	.blocks = flat_avx2_blocks,
	.few = few,
	.worth_blocks = 16,
	.worth_few = 7,
	.usable = usable,
};
#endif
