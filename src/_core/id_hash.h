/* SPDX-License-Identifier: MIT */
/*
 * id_hash.h - slot id -> slot, in chained buckets whose number follows the number of entries.
 *
 * KVM keeps 128 buckets for ever, which makes chains of 256 at 32,764 slots.  Here the owner asks with
 * id_hash_wants(), allocates when it suits it, and hands the new buckets to id_hash_rehash(): growth is an offer,
 * and a hash that never got it still answers right.  The first buckets are built in, so that an empty hash needs
 * no allocation.
 *
 * A link chains its struct into one hash; the id lies at a fixed distance from the link.
 *
 * Invariants
 *   I1  an entry is in the bucket of its id;
 *   I2  no id is there twice;
 *   I3  nr is the number of entries.
 *
 * Locking: one writer, or readers and no writer.
 * Cost: find, add, del O(1) on average while the buckets follow the entries; rehash O(n).
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
	unsigned bits;      /* there are 1 << bits buckets */
	size_t nr;
	ptrdiff_t distance; /* from a link to its id, in bytes */
	struct id_link *built_in[1 << ID_HASH_BITS_MIN];
};

void id_hash_init(struct id_hash *hash, ptrdiff_t distance);
void id_hash_add(struct id_hash *hash, struct id_link *link);
void id_hash_del(struct id_hash *hash, struct id_link *link);
void id_hash_replace(struct id_hash *hash, struct id_link *old, struct id_link *new_link); /* of the same id */

static inline uint32_t id_of(const struct id_hash *hash, const struct id_link *link)
{
	return *(const uint32_t *)(const void *)((const char *)link + hash->distance);
}

/* Multiplicative hashing by 2^32 / the golden ratio: neighbouring ids, the usual case, spread evenly. */
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

/* The bits for nr entries, at one entry a bucket or less; not below what the hash has. */
unsigned id_hash_wants(const struct id_hash *hash, size_t nr);

static inline size_t id_hash_size(unsigned bits)
{
	return sizeof(struct id_link *) << bits;
}

/* Moves every entry to `buckets` (zeroed, id_hash_size(bits) bytes) and returns the old ones for the caller to
 * free, with their number of bits in *old_bits; NULL when they were the built-in ones. */
struct id_link **id_hash_rehash(struct id_hash *hash, struct id_link **buckets, unsigned bits, unsigned *old_bits);

/* The number of the first invariant that does not hold, 0 when all do. */
int id_hash_check(const struct id_hash *hash);

#endif
