/* SPDX-License-Identifier: MIT */
/*
 * id_hash.h - a hash table from slot ids to slots, whose number of buckets grows with the number of entries.
 *
 * KVM always has 128 buckets, so that chains have 256 entries at 32,764 slots.  Here the owner calls
 * id_hash_bits_for(), allocates the buckets at a convenient time and passes them to id_hash_rehash().  Growth is
 * optional: without it the chains get longer, and the answers stay correct.  The first buckets are a member of the
 * hash, so that an empty hash needs no allocation.
 *
 * A link chains its struct into one hash.  The id lies at a fixed distance from the link.
 *
 * Invariants
 *   I1  an entry is in the bucket of its id;
 *   I2  no two entries have the same id;
 *   I3  nr is the number of entries.
 *
 * Locking: one writer and no reader, or readers and no writer.
 * Cost: find, add and del O(1) on average while there is a bucket for each entry; rehash O(n).
 */
#ifndef MS_ID_HASH_H
#define MS_ID_HASH_H

#include "compiler.h"

struct id_link {
	struct id_link *next;
};

#define ID_HASH_BITS_MIN 4
#define ID_HASH_BITS_MAX 31 /* MS_USER_MEM_SLOTS_MAX ids */

struct id_hash {
	struct id_link **buckets;
	unsigned bits;      /* the number of buckets is 1 << bits */
	size_t nr;
	ptrdiff_t distance; /* from a link to its id, in bytes */
	struct id_link *built_in[1 << ID_HASH_BITS_MIN];
};

void id_hash_init(struct id_hash *hash, ptrdiff_t distance);
void id_hash_add(struct id_hash *hash, struct id_link *link);
void id_hash_del(struct id_hash *hash, struct id_link *link);
void id_hash_replace(struct id_hash *hash, struct id_link *old, struct id_link *new_link); /* both have the same id */

static inline uint32_t id_of(const struct id_hash *hash, const struct id_link *link)
{
	return *(const uint32_t *)(const void *)((const char *)link + hash->distance);
}

/* Multiplication by 2^32 / the golden ratio spreads consecutive ids, the usual case, evenly. */
static inline struct id_link **id_hash_bucket(const struct id_hash *hash, uint32_t id)
{
	return &hash->buckets[(uint32_t)(id * 0x61C88647u) >> (32 - hash->bits)];
}

static inline struct id_link *id_hash_find(const struct id_hash *hash, uint32_t id)
{
	struct id_link *link = *id_hash_bucket(hash, id);

	while (link && id_of(hash, link) != id)
		link = link->next;
	return link;
}

/* Makes `to` a hash of the twins of the entries of `from`, which lie at the same distance from them.  The caller must
 * mirror each link.  If the numbers of buckets differ, returns false, and `to` has no entries; the caller must add each
 * link. */
bool id_hash_mirror(struct id_hash *to, const struct id_hash *from, ptrdiff_t distance);

static inline struct id_link *id_link_shifted(const struct id_link *link, ptrdiff_t distance)
{
	return link ? (struct id_link *)(void *)((char *)(uintptr_t)link + distance) : NULL;
}

static inline void id_link_mirror(struct id_link *to, const struct id_link *from)
{
	to->next = id_link_shifted(from->next, (const char *)to - (const char *)from);
}

/* The number of bits with which nr entries have a bucket each, but never fewer than the hash has now. */
unsigned id_hash_bits_for(const struct id_hash *hash, size_t nr);

static inline size_t id_hash_size(unsigned bits)
{
	return sizeof(struct id_link *) << bits;
}

/* Moves every entry to `buckets` (zeroed, id_hash_size(bits) bytes).  *old_bits becomes the former number of bits.
 * Returns the old buckets, which the caller frees; NULL if they were the built-in ones. */
struct id_link **id_hash_rehash(struct id_hash *hash, struct id_link **buckets, unsigned bits, unsigned *old_bits);

/* Returns the number of the first invariant that does not hold, or 0. */
int id_hash_check(const struct id_hash *hash);

#endif
