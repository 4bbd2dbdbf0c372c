/* SPDX-License-Identifier: MIT */
/*
 * flat_many.c - see flat_many.h; the steps of a lookup are in flat_kernel.h.
 */
#include "flat_many.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "flat_kernel.h"

/* ---- the portable kernel ---- */

/* There is no branch on `hit`: about a fifth of random lookups are misses, which no branch predictor foresees. */
static always_inline uint64_t answer(uint64_t hit, uint64_t delta, uint64_t address, uint64_t deny)
{
	uint64_t denied = (delta & deny) != 0, hva = (delta & ~FLAT_DELTA_FLAGS) + address;

	opaque(hit);
	opaque(denied);
	hva = (hva & (denied - 1)) | (MS_HVA_ERR_RO_BAD & -denied);
	return (hva & -hit) | (MS_HVA_ERR_BAD & (hit - 1));
}

/* From gfns to records. */
static always_inline void find_block(const struct flat_index *f, struct block *b, const uint64_t *in, unsigned shift,
				     size_t size, bool one)
{
	if (one)
		front_one(f, b, in, shift, size);
	else
		front_many(f, b, in, shift, size);
	search(f, b, size);
}

static always_inline void portable_blocks_of(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n,
					     unsigned shift, uint64_t deny, size_t size, bool one)
{
	const struct flat_record *records = f->records;
	struct block b;

	for (size_t i = 0; i < n; i += size) {
		find_block(f, &b, in + i, shift, size, one);
		for (size_t k = 0; k < size; k++) {
			const struct flat_record *record = &records[b.place[k]];

			out[i + k] = answer(b.x[k] - record->rel < record->npages, record->delta,
					    address_of(in[i + k], shift), deny);
		}
	}
}

static void portable_blocks(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
			    uint64_t deny)
{
	EACH_CASE(portable_blocks_of);
}

/* The place of a slot is the number of slots, without the first one, that begin at or before the gfn. */
static void portable_few(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
			 uint64_t deny)
{
	const struct flat_few few = *f->few;

	for (size_t i = 0; i < n; i++) {
		uint64_t gfn = in[i] >> shift, place = 0;

		for (size_t k = 1; k < FLAT_FEW; k++)
			place += few.base[k] <= gfn;
		out[i] = answer(gfn - few.base[place] < few.npages[place], few.delta[place], address_of(in[i], shift),
				deny);
	}
}

static bool always(void)
{
	return true;
}

const struct flat_kernel flat_portable = {
	.name = "portable",
	.blocks = portable_blocks,
	.few = portable_few,
	.worth_blocks = 24,
	.worth_few = 22,
	.usable = always,
};

/* ---- which kernel ---- */

static const struct flat_kernel *const kernels[] = {
#ifdef MS_X86_KERNELS
	&flat_avx512,
	&flat_avx2,
#endif
	&flat_portable,
};

static _Atomic(const struct flat_kernel *) chosen; /* row "kernel" */

static const struct flat_kernel *find_kernel(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(kernels); i++)
		if (kernels[i]->usable() && (!name || !strcmp(kernels[i]->name, name)))
			return kernels[i];
	return NULL;
}

/* MEMSLOTS_SIMD may select a kernel.  If it is unknown or this CPU lacks its instructions, the best one is used. */
static const struct flat_kernel *kernel(void)
{
	const struct flat_kernel *k = atomic_load_explicit(&chosen, memory_order_relaxed);

	if (unlikely(!k)) {
		const char *wanted = getenv("MEMSLOTS_SIMD");

		k = wanted ? find_kernel(wanted) : NULL;
		k = k ? k : find_kernel(NULL);
		atomic_store_explicit(&chosen, k, memory_order_relaxed);
	}
	return k;
}

const char *ms_simd(void)
{
	return kernel()->name;
}

int ms_set_simd(const char *name)
{
	const struct flat_kernel *k = find_kernel(name);

	if (!k)
		return -ENOSYS;
	atomic_store_explicit(&chosen, k, memory_order_relaxed);
	return 0;
}

const char *ms_simd_name(size_t i)
{
	for (size_t k = ARRAY_SIZE(kernels); k-- > 0;)
		if (kernels[k]->usable() && !i--)
			return kernels[k]->name;
	return NULL;
}

/* ---- many ---- */

/* Runs one block for n < BLOCK_LARGE lookups, padded with copies of the last one. */
static void run_padded_block(flat_kernel_fn *blocks, const struct flat_index *f, const uint64_t *in, uint64_t *out,
			     size_t n, unsigned shift, uint64_t deny)
{
	uint64_t gfns[BLOCK_LARGE], hvas[BLOCK_LARGE];

	for (size_t i = 0; i < BLOCK_LARGE; i++)
		gfns[i] = in[i < n ? i : n - 1];
	blocks(f, gfns, hvas, BLOCK_LARGE, shift, deny);
	memcpy(out, hvas, n * sizeof(*out));
}

void flat_hvas(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift, bool write)
{
	const struct flat_kernel *k = kernel();
	flat_kernel_fn *blocks = f->few ? k->few : k->blocks;
	uint64_t deny = write ? FLAT_READONLY : 0;
	size_t whole = n & ~(BLOCK_LARGE - 1);

	if (whole)
		blocks(f, in, out, whole, shift, deny);
	if (n - whole >= (f->few ? k->worth_few : k->worth_blocks))
		run_padded_block(blocks, f, in + whole, out + whole, n - whole, shift, deny);
	else
		for (size_t i = whole; i < n; i++)
			out[i] = flat_hva(flat_find(f, in[i] >> shift), address_of(in[i], shift), deny);
}

static always_inline void ids_of_blocks(const struct flat_index *f, const uint64_t *gfns, int32_t *out, size_t n,
					unsigned shift, uint64_t deny, size_t size, bool one)
{
	struct block b;

	(void)deny;
	for (size_t i = 0; i < n; i += size) {
		find_block(f, &b, gfns + i, shift, size, one);
		for (size_t k = 0; size > BLOCK && k < size; k++)
			__builtin_prefetch(&f->ids[b.place[k]]);
		for (size_t k = 0; k < size; k++) {
			const struct flat_record *record = &f->records[b.place[k]];
			uint32_t hit = b.x[k] - record->rel < record->npages;

			opaque(hit);
			out[i + k] = (int32_t)(f->ids[b.place[k]] | (hit - 1));
		}
	}
}

/* n is a multiple of BLOCK_LARGE. */
static void ids_of_whole_blocks(const struct flat_index *f, const uint64_t *in, int32_t *out, size_t n)
{
	const unsigned shift = 0;
	const uint64_t deny = 0;

	EACH_CASE(ids_of_blocks);
}

void flat_ids(const struct flat_index *f, const uint64_t *gfns, int32_t *out, size_t n)
{
	size_t whole = n & ~(BLOCK_LARGE - 1);

	ids_of_whole_blocks(f, gfns, out, whole);
	for (size_t i = whole; i < n; i++) {
		const struct flat_record *record = flat_find(f, gfns[i]);

		out[i] = record ? (int32_t)f->ids[record - f->records] : -1;
	}
}
