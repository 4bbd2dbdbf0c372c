/* SPDX-License-Identifier: MIT */
/*
 * id_hash.c - see id_hash.h for the invariants I1 to I3.
 */
#include "id_hash.h"

#include <string.h>

void id_hash_init(struct id_hash *hash, ptrdiff_t distance)
{
	memset(hash, 0, sizeof(*hash));
	hash->buckets = hash->built_in;
	hash->bits = ID_HASH_BITS_MIN;
	hash->distance = distance;
}

static void push(struct id_hash *hash, struct id_link *link)
{
	struct id_link **bucket = id_hash_bucket(hash, id_of(hash, link));

	link->next = *bucket;
	*bucket = link;
}

void id_hash_add(struct id_hash *hash, struct id_link *link)
{
	push(hash, link);
	hash->nr++;
}

/* The pointer that points to link: its bucket, or `next` of the entry before it. */
static struct id_link **link_at(const struct id_hash *hash, const struct id_link *link)
{
	struct id_link **at = id_hash_bucket(hash, id_of(hash, link));

	while (*at != link)
		at = &(*at)->next;
	return at;
}

void id_hash_del(struct id_hash *hash, struct id_link *link)
{
	*link_at(hash, link) = link->next;
	hash->nr--;
}

void id_hash_replace(struct id_hash *hash, struct id_link *old, struct id_link *new_link)
{
	*link_at(hash, old) = new_link;
	new_link->next = old->next;
}

bool id_hash_mirror(struct id_hash *to, const struct id_hash *from, ptrdiff_t distance)
{
	if (to->bits != from->bits) {
		memset(to->buckets, 0, id_hash_size(to->bits));
		to->nr = 0;
		return false;
	}
	for (size_t i = 0; i < (size_t)1 << to->bits; i++)
		to->buckets[i] = id_link_shifted(from->buckets[i], distance);
	to->nr = from->nr;
	return true;
}

unsigned id_hash_bits_for(const struct id_hash *hash, size_t nr)
{
	unsigned bits = hash->bits;

	while (bits < ID_HASH_BITS_MAX && nr > (size_t)1 << bits)
		bits++;
	return bits;
}

struct id_link **id_hash_rehash(struct id_hash *hash, struct id_link **buckets, unsigned bits, unsigned *old_bits)
{
	struct id_link **old = hash->buckets;

	*old_bits = hash->bits;
	hash->buckets = buckets;
	hash->bits = bits;
	for (size_t i = 0; i < (size_t)1 << *old_bits; i++)
		for (struct id_link *link = old[i], *next; link; link = next) {
			next = link->next;
			push(hash, link);
		}
	return old == hash->built_in ? NULL : old;
}

static int check_bucket(const struct id_hash *hash, size_t i, size_t *nr)
{
	const struct id_link *link, *other;

	for (link = hash->buckets[i]; link; link = link->next)
		if (++*nr > hash->nr) /* also ends the loop over a circular chain */
			return 3;
	for (link = hash->buckets[i]; link; link = link->next) {
		if (id_hash_bucket(hash, id_of(hash, link)) != &hash->buckets[i])
			return 1;
		for (other = link->next; other; other = other->next)
			if (id_of(hash, other) == id_of(hash, link))
				return 2;
	}
	return 0;
}

int id_hash_check(const struct id_hash *hash)
{
	size_t nr = 0;
	int broken = 0;

	for (size_t i = 0; !broken && i < (size_t)1 << hash->bits; i++)
		broken = check_bucket(hash, i, &nr);
	return broken ? broken : nr == hash->nr ? 0 : 3;
}
