/* SPDX-License-Identifier: MIT */
/*
 * dirty_summary.c - see dirty_summary.h for the invariant and for the order of the accesses.
 */
#include "dirty_summary.h"

#include "points.h"

static _Atomic uint64_t *lower_of(struct dirty_summary summary)
{
	return summary.upper + summary.nr_upper;
}

static uint64_t bit_of(size_t i)
{
	return (uint64_t)1 << (i % 64);
}

/* A bit that is set costs a load only, so that marking threads share the cache line. */
static void set_bit(_Atomic uint64_t *words, size_t i)
{
	if (!dirty_summary_bit(words, i))
		atomic_fetch_or_explicit(&words[i / 64], bit_of(i), memory_order_seq_cst);
}

void dirty_summary_set(struct dirty_summary summary, size_t line)
{
	set_bit(lower_of(summary), line);
	point(READER_NOTES_UPPER);
	set_bit(summary.upper, line / 64);
}

/* The upper bit may stay for a lower word that is 0: it costs a look at one word. */
void dirty_summary_drop(struct dirty_summary summary, size_t line)
{
	atomic_fetch_and_explicit(&lower_of(summary)[line / 64], ~bit_of(line), memory_order_seq_cst);
}

/* ---- the walk ---- */

static uint64_t take(const struct dirty_walk *walk, _Atomic uint64_t *word)
{
	uint64_t bits = atomic_load_explicit(word, memory_order_seq_cst);

	return bits && walk->clear ? atomic_exchange_explicit(word, 0, memory_order_seq_cst) : bits;
}

static void put_back(const struct dirty_walk *walk, _Atomic uint64_t *word, uint64_t bits)
{
	if (bits && walk->clear)
		atomic_fetch_or_explicit(word, bits, memory_order_seq_cst);
}

/* Takes the next upper word out.  The walk comes to its lower words soon. */
static void take_upper(struct dirty_walk *walk)
{
	const _Atomic uint64_t *lower = lower_of(walk->summary) + 64 * walk->next;

	walk->upper_bits = take(walk, &walk->summary.upper[walk->next++]);
	for (size_t i = 0; walk->upper_bits && i < 64; i += CACHE_LINE / sizeof(*lower))
		if (walk->upper_bits >> i & 0xff)
			__builtin_prefetch((const void *)&lower[i], 1);
}

static bool take_lower(struct dirty_walk *walk)
{
	while (!walk->upper_bits) {
		if (walk->next >= walk->summary.nr_upper)
			return false;
		take_upper(walk);
	}
	walk->lower = 64 * (walk->next - 1) + (size_t)__builtin_ctzll(walk->upper_bits);
	walk->upper_bits &= walk->upper_bits - 1;
	walk->lower_bits = take(walk, &lower_of(walk->summary)[walk->lower]);
	point(WRITER_TAKES_LINES);
	return true;
}

/* The bits of `word` that stand for something before bit i go back. */
static uint64_t skip(const struct dirty_walk *walk, _Atomic uint64_t *word, uint64_t bits, size_t i)
{
	uint64_t before = bit_of(i) - 1;

	put_back(walk, word, bits & before);
	return bits & ~before;
}

struct dirty_walk dirty_walk_begin(struct dirty_summary summary, size_t line, bool clear)
{
	size_t lower = line / 64;
	struct dirty_walk walk = { .summary = summary, .clear = clear, .next = lower / 64 };

	if (!line || walk.next >= summary.nr_upper)
		return walk;
	take_upper(&walk);
	walk.upper_bits = skip(&walk, &summary.upper[lower / 64], walk.upper_bits, lower % 64);
	if (!(walk.upper_bits & bit_of(lower)))
		return walk;
	take_lower(&walk);
	walk.lower_bits = skip(&walk, &lower_of(summary)[lower], walk.lower_bits, line % 64);
	put_back(&walk, &summary.upper[lower / 64], bit_of(lower)); /* for the lines before `line` */
	return walk;
}

size_t dirty_walk_next(struct dirty_walk *walk, uint32_t *lines, size_t room)
{
	size_t n = 0;

	while (n < room && (walk->lower_bits || take_lower(walk)))
		for (; n < room && walk->lower_bits; walk->lower_bits &= walk->lower_bits - 1)
			lines[n++] = (uint32_t)(64 * walk->lower + (size_t)__builtin_ctzll(walk->lower_bits));
	return n;
}

void dirty_walk_end(const struct dirty_walk *walk)
{
	put_back(walk, &lower_of(walk->summary)[walk->lower], walk->lower_bits);
	if (walk->lower_bits)
		put_back(walk, &walk->summary.upper[walk->lower / 64], bit_of(walk->lower));
	if (walk->next)
		put_back(walk, &walk->summary.upper[walk->next - 1], walk->upper_bits);
}
