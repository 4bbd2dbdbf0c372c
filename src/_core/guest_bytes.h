/* SPDX-License-Identifier: MIT */
/*
 * guest_bytes.h - copies bytes as fast as the CPU can, where memcpy() does not.
 *
 * Above 2,112 bytes and up to the size of the second-level cache, many versions of the GNU C library copy by the
 * instruction "rep movsb" on AMD CPUs.  It takes 14 to 36 times as long as vectors if the destination lies 1 to 15
 * bytes above the source, modulo 4,096.  At 16 bytes, where malloc() puts a large buffer, it takes up to 3 times as
 * long.  So copies of these sizes use vectors there (row P11 of docs/benchmarks.md).  All others use memcpy().
 *
 * Locking: none.  guest_bytes_prepare() returns before a slot with memory is published.  guest_bytes_uses_vectors is
 * constant from then on.
 * Cost: O(n), with at most 254 bytes copied twice.
 */
#ifndef MS_GUEST_BYTES_H
#define MS_GUEST_BYTES_H

#include <string.h>

#include "compiler.h"

/* Below the first size, and from the second one on, memcpy() uses vectors too. */
#define GUEST_VECTORS_MIN ((size_t)2112)
#define GUEST_VECTORS_END ((size_t)1 << 20)

extern bool guest_bytes_uses_vectors;

/* Whether guest_bytes_by_vectors() can run on this CPU. */
bool guest_bytes_has_vectors(void);

/* Chooses vectors on AMD CPUs that have them.  Must not run while another thread copies. */
void guest_bytes_prepare(void);

/* n >= GUEST_VECTORS_MIN.  The two ranges do not overlap. */
void guest_bytes_by_vectors(char *to, const char *from, size_t n);

/* The two ranges do not overlap.  The bytes are copied in any order. */
static inline void guest_bytes_copy(char *to, const char *from, size_t n)
{
	if (n - GUEST_VECTORS_MIN < GUEST_VECTORS_END - GUEST_VECTORS_MIN && guest_bytes_uses_vectors)
		guest_bytes_by_vectors(to, from, n);
	else
		memcpy(to, from, n);
}

#endif
