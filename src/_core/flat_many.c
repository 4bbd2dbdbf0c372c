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

#define TARGET

static always_inline void scale_one(const struct flat_index *f, struct block *b, const uint64_t *in, unsigned shift,
				    size_t size)
{
	const struct flat_segment segment = f->only;

	const uint64_t *buckets = f->buckets;

	for (size_t i = 0; i < size; i++) {
		uint64_t scaled = flat_scaled(&segment, flat_x(&segment, in[i] >> shift));

		b->scaled[i] = scaled;
		b->word[i] = buckets[scaled >> 32];
	}
}

static void scale_several(const struct flat_index *f, struct block *b, const uint64_t *in, unsigned shift, size_t size)
{
	scale_many(f, b, in, shift, size);
	for (size_t i = 0; i < size; i++)
		b->word[i] = f->buckets[b->scaled[i] >> 32];
}

static always_inline uint64_t place(const struct flat_index *f, struct block *b, size_t size, bool one)
{
	(void)f;
	uint64_t overfull = 0;

	for (size_t i = 0; i < size; i++) {
		uint64_t word = b->word[i], piece = flat_piece_in(word, b->scaled[i]);

		opaque(piece);
		b->piece[i] = one ? piece : b->piece[i] + piece;
		overfull |= (uint64_t)flat_overfull(word) << i;
	}
	return overfull;
}

/* All bits of `hole` are 1, or all are 0.  There is no branch on it, as in id_of(). */
static always_inline uint64_t answer_one(uint64_t hole, uint64_t delta, uint64_t address, uint64_t deny)
{
	uint64_t denied = -(delta & deny), hva = (delta & ~FLAT_DELTA_FLAGS) + address;

	opaque(denied);
	opaque(hole);
	hva = (hva & ~denied) | (MS_HVA_ERR_RO_BAD & denied);
	return (hva & ~hole) | (MS_HVA_ERR_BAD & hole);
}

static always_inline void answer(const struct flat_index *f, const struct block *b, const uint64_t *in, uint64_t *out,
				 unsigned shift, uint64_t deny, size_t size)
{
	uint64_t deltas[BLOCK];

	for (size_t i = 0; i < size; i++)
		deltas[i] = f->deltas[b->piece[i]];
	for (size_t i = 0; i < size; i++)
		out[i] = answer_one(-((deltas[i] & FLAT_HOLE) / FLAT_HOLE), deltas[i], address_of(in[i], shift), deny);
}

#define piece_in_list flat_piece_in_list
#include "flat_blocks.h"

/* The place of a slot is the number of slots, without the first one, that begin at or before the gfn. */
static void portable_few(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift,
			 uint64_t deny)
{
	const struct flat_few slots = *f->few;

	for (size_t i = 0; i < n; i++) {
		uint64_t gfn = in[i] >> shift, place = 0, hit;

		for (size_t k = 1; k < FLAT_FEW; k++)
			place += slots.base[k] <= gfn;
		hit = gfn - slots.base[place] < slots.npages[place];
		out[i] = answer_one(hit - 1, slots.delta[place], address_of(in[i], shift), deny);
	}
}

static bool always(void)
{
	return true;
}

const struct flat_kernel flat_portable = {
	.name = "portable",
	.hvas = hvas,
	.few = portable_few,
	.ids = ids,
	.worth_padding = LANES,
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

/* Answers n < LANES lookups, padded with copies of the last one. */
static void few_padded(flat_hvas_fn *few, const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n,
		       unsigned shift, uint64_t deny)
{
	uint64_t gfns[LANES], hvas[LANES];

	for (size_t i = 0; i < LANES; i++)
		gfns[i] = in[i < n ? i : n - 1];
	few(f, gfns, hvas, LANES, shift, deny);
	memcpy(out, hvas, n * sizeof(*out));
}

/* Eight lookups at once from registers are worth padding; with loads they cost as much as seven single lookups. */
void flat_hvas(const struct flat_index *f, const uint64_t *in, uint64_t *out, size_t n, unsigned shift, bool write)
{
	const struct flat_kernel *k = kernel();
	size_t whole = n & ~(LANES - 1);
	uint64_t deny = write ? FLAT_READONLY : 0;
	uint32_t piece;

	if (whole)
		(f->few ? k->few : k->hvas)(f, in, out, whole, shift, deny);
	if (f->few && n - whole >= k->worth_padding)
		few_padded(k->few, f, in + whole, out + whole, n - whole, shift, deny);
	else
		for (size_t i = whole; i < n; i++)
			out[i] = flat_answer(flat_word(f, in[i] >> shift, &piece), address_of(in[i], shift), deny);
}

void flat_ids(const struct flat_index *f, const uint64_t *gfns, int32_t *out, size_t n)
{
	size_t whole = n & ~(LANES - 1);

	if (whole)
		kernel()->ids(f, gfns, out, whole);
	for (size_t i = whole; i < n; i++)
		out[i] = id_of(f, flat_piece(f, gfns[i]));
}
