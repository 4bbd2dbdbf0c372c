/* SPDX-License-Identifier: MIT */
/*
 * guest_bytes.c - see guest_bytes.h.
 */
#include "guest_bytes.h"

bool guest_bytes_uses_vectors;

#ifdef MS_X86_KERNELS
/* Guest memory may change during a copy.  That is no race of the engine, so ThreadSanitizer must not see it. */
#define TARGET __attribute__((target("avx2"), no_sanitize("thread")))

/* Not the type of <immintrin.h>: without optimization its functions need more stack than FRAMES_MAX of guest_fault.c
 * allows. */
typedef char vector __attribute__((vector_size(32), aligned(1), may_alias));

#define STEP (4 * sizeof(vector))

bool guest_bytes_has_vectors(void)
{
	return __builtin_cpu_supports("avx2");
}

void guest_bytes_prepare(void)
{
	guest_bytes_uses_vectors = guest_bytes_has_vectors() && __builtin_cpu_is("amd");
}

/* All loads come first: the CPU then has several of them under way.  Not always_inline: without optimization each copy
 * would have its own place in the frame. */
static TARGET inline void copy_step(char *to, const char *from)
{
	const vector *in = (const void *)from;
	vector *out = (void *)to, a = in[0], b = in[1], c = in[2], d = in[3];

	out[0] = a;
	out[1] = b;
	out[2] = c;
	out[3] = d;
}

/* The first and the last step may overlap the aligned ones. */
TARGET void guest_bytes_by_vectors(char *to, const char *from, size_t n)
{
	copy_step(to, from);
	for (size_t at = CACHE_LINE - (uintptr_t)to % CACHE_LINE; at < n - STEP; at += STEP)
		copy_step(to + at, from + at);
	copy_step(to + n - STEP, from + n - STEP);
}
#else
bool guest_bytes_has_vectors(void)
{
	return false;
}

void guest_bytes_prepare(void)
{
}

void guest_bytes_by_vectors(char *to, const char *from, size_t n)
{
	memcpy(to, from, n);
}
#endif
