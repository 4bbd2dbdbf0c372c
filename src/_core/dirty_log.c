/* SPDX-License-Identifier: MIT */
/*
 * dirty_log.c - see dirty_log.h for the invariants.
 */
#include "dirty_log.h"

#include <string.h>

#include "points.h"

static bool has_summary(const struct dirty_log *log)
{
	return log->npages >= DIRTY_SUMMARY_MIN;
}

static size_t nr_lines(uint64_t npages)
{
	return npages ? dirty_line_of(dirty_log_words(npages) - 1) + 1 : 0;
}

static size_t large_size(uint64_t npages)
{
	size_t n = nr_lines(npages);

	return n * CACHE_LINE + (dirty_summary_upper(n) + dirty_summary_lower(n)) * sizeof(uint64_t);
}

static size_t small_size(uint64_t npages)
{
	return sizeof(struct dirty_log) + dirty_log_words(npages) * sizeof(uint64_t);
}

static struct dirty_summary summary_of(const struct dirty_log *log)
{
	size_t n = nr_lines(log->npages);

	return (struct dirty_summary){ (_Atomic uint64_t *)(void *)((char *)(uintptr_t)log + n * CACHE_LINE),
				       dirty_summary_upper(n) };
}

/* Another bit of a word that is set may be a mark under way, so the line is noted in any case. */
static void set_bits(struct dirty_log *log, size_t i, uint64_t bits)
{
	if (has_summary(log)) {
		atomic_fetch_or_explicit(&log->live[i], bits, memory_order_seq_cst);
		point(READER_NOTES_LOWER);
		dirty_summary_note(summary_of(log), dirty_line_of(i));
	} else {
		atomic_fetch_or_explicit(&log->live[i], bits, memory_order_release);
	}
}

/* A word with its lowest n bits set. */
static uint64_t low_bits(int64_t n)
{
	if (n >= 64)
		return ~(uint64_t)0;
	return n > 0 ? ((uint64_t)1 << n) - 1 : 0;
}

void dirty_log_mark_range(struct dirty_log *log, uint64_t first, uint64_t n)
{
	for (uint64_t end = first + n, part; first < end; first += part) {
		part = 64 - first % 64 < end - first ? 64 - first % 64 : end - first;
		set_bits(log, first / 64, low_bits((int64_t)part) << (first % 64));
	}
}

void dirty_log_mark_large(struct dirty_log *log, uint64_t page)
{
	set_bits(log, page / 64, (uint64_t)1 << (page % 64));
}

/* A bit for each of the 64 pages from `page` on: whether the log has the page. */
static uint64_t pages_from(const struct dirty_log *log, int64_t page)
{
	return low_bits((int64_t)log->npages - page) & ~low_bits(-page);
}

static uint64_t word_at(const struct dirty_log *log, int64_t i)
{
	return (uint64_t)i < nwords_of(log) ? atomic_load_explicit(&log->live[i], memory_order_acquire) : 0;
}

/* The dirty bits of the 64 pages from `page` on; 0 for pages that the log does not have. */
static uint64_t bits_from(const struct dirty_log *log, int64_t page)
{
	unsigned shift = (uint64_t)page % 64;
	int64_t i = (page - (int64_t)shift) / 64;

	return word_at(log, i) >> shift | (shift ? word_at(log, i + 1) << (64 - shift) : 0);
}

static void merge(struct dirty_log *to, const struct dirty_log *from)
{
	int64_t page = to->first - from->first; /* the page of `from` at which `to` begins */

	for (size_t i = 0; i < nwords_of(to); i++, page += 64) {
		uint64_t bits = bits_from(from, page) & pages_from(to, 64 * (int64_t)i); /* D1 */

		if (bits)
			set_bits(to, i, bits);
	}
}

static struct dirty_log *alloc_log(struct memory *memory, uint64_t npages)
{
	struct dirty_log *log = npages < DIRTY_SUMMARY_MIN ? memory_zalloc(memory, small_size(npages)) :
							     memory_zalloc_lazy(memory, large_size(npages));

	if (!log)
		return NULL;
	log->npages = (uint32_t)npages;
	log->refs = 1;
	log->related = log;
	atomic_store_explicit(&log->pins, 1, memory_order_relaxed);
	return log;
}

/* Sets the bits of the pages that no related log has.  Readers cannot reach the log yet. */
static void set_new_pages(struct dirty_log *log)
{
	for (size_t i = 0; i < nwords_of(log); i++) {
		int64_t page = 64 * (int64_t)i;
		uint64_t bits = pages_from(log, page);

		for (const struct dirty_log *other = log->related; other != log; other = other->related)
			bits &= ~pages_from(other, page + log->first - other->first);
		set_bits(log, i, bits);
	}
}

struct dirty_log *dirty_log_create(struct memory *memory, uint64_t npages, bool initially_set)
{
	struct dirty_log *log = alloc_log(memory, npages);

	if (log && initially_set)
		set_new_pages(log);
	return log;
}

struct dirty_log *dirty_log_derive(struct memory *memory, struct dirty_log *from, int64_t first, uint64_t npages,
				   bool initially_set)
{
	struct dirty_log *log = alloc_log(memory, npages);

	if (!log)
		return NULL;
	log->first = from->first + first;
	log->related = from->related;
	from->related = log;
	if (initially_set)
		set_new_pages(log);
	for (const struct dirty_log *other = log->related; other != log; other = other->related)
		merge(log, other);
	return log;
}

void dirty_log_pass_on(const struct dirty_log *log)
{
	for (struct dirty_log *other = log->related; other != log; other = other->related)
		merge(other, log);
}

static void leave_ring(struct dirty_log *log)
{
	struct dirty_log *before = log->related;

	while (before->related != log)
		before = before->related;
	before->related = log->related;
}

struct dirty_log *dirty_log_get(struct dirty_log *log)
{
	if (log)
		log->refs++;
	return log;
}

void dirty_log_put(struct memory *memory, struct dirty_log *log)
{
	if (!log || --log->refs)
		return;
	leave_ring(log);
	dirty_log_unpin(memory, log);
}

void dirty_log_pin(struct dirty_log *log)
{
	atomic_fetch_add_explicit(&log->pins, 1, memory_order_relaxed);
}

void dirty_log_unpin(struct memory *memory, struct dirty_log *log)
{
	if (atomic_fetch_sub_explicit(&log->pins, 1, memory_order_acq_rel) != 1)
		return;
	if (has_summary(log))
		memory_free_lazy(memory, log, large_size(log->npages));
	else
		memory_free(memory, log, small_size(log->npages));
}

/* ---- line by line ---- */

struct dirty_lines dirty_lines_begin(struct dirty_log *log, size_t line, bool clear)
{
	struct dirty_lines lines = { .log = log, .next = line };

	if (has_summary(log))
		lines.walk = dirty_walk_begin(summary_of(log), line, clear);
	return lines;
}

static size_t all_lines(struct dirty_lines *lines, uint32_t *out)
{
	size_t n = 0, end = nr_lines(lines->log->npages);

	for (; n < DIRTY_LINES && lines->next < end; lines->next++)
		out[n++] = (uint32_t)lines->next;
	return n;
}

size_t dirty_lines_next(struct dirty_lines *lines, uint32_t *out)
{
	size_t n;

	if (!has_summary(lines->log))
		return all_lines(lines, out);
	n = dirty_walk_next(&lines->walk, out, DIRTY_LINES);
	for (size_t i = 0; i < n; i++)
		__builtin_prefetch((const char *)lines->log + (size_t)out[i] * CACHE_LINE);
	return n;
}

void dirty_lines_end(const struct dirty_lines *lines)
{
	if (has_summary(lines->log))
		dirty_walk_end(&lines->walk);
}

static size_t words_in(const struct dirty_log *log, size_t line)
{
	size_t start = dirty_line_start(line), left = nwords_of(log) - start;
	size_t room = line ? DIRTY_LINE_WORDS : dirty_line_start(1);

	return left < room ? left : room;
}

static inline uint32_t read_word(const _Atomic uint64_t *words, unsigned i, uint64_t *bits)
{
	bits[i] = atomic_load_explicit(&words[i], memory_order_seq_cst);
	return (uint32_t)!!bits[i] << i;
}

_Static_assert(DIRTY_LINE_WORDS == 8, "read_line() names each word of a line");

/* Without a loop it takes half the time. */
static uint32_t read_line(const _Atomic uint64_t *words, uint64_t *bits)
{
	return read_word(words, 0, bits) | read_word(words, 1, bits) | read_word(words, 2, bits) |
	       read_word(words, 3, bits) | read_word(words, 4, bits) | read_word(words, 5, bits) |
	       read_word(words, 6, bits) | read_word(words, 7, bits);
}

static uint32_t read_part(const _Atomic uint64_t *words, size_t n, uint64_t *bits)
{
	uint32_t set = 0;

	for (unsigned i = 0; i < n; i++)
		set |= read_word(words, i, bits);
	return set;
}

/* Most words are 0, and an exchange costs more than a load. */
uint32_t dirty_line_take(struct dirty_log *log, size_t line, bool clear, uint64_t *bits)
{
	_Atomic uint64_t *words = &log->live[dirty_line_start(line)];
	size_t n = words_in(log, line);
	uint32_t set = likely(n == DIRTY_LINE_WORDS) ? read_line(words, bits) : read_part(words, n, bits);

	for (uint32_t left = clear ? set : 0; left; left &= left - 1) {
		point(WRITER_HARVESTS);
		bits[__builtin_ctz(left)] =
			atomic_exchange_explicit(&words[__builtin_ctz(left)], 0, memory_order_seq_cst);
	}
	return set;
}

void dirty_log_give_back(struct dirty_log *log, size_t word, uint64_t bits)
{
	set_bits(log, word, bits);
}

/* ---- all at once ---- */

/* Moves the bits of one line into the bitmap, in which they are 0. */
static void harvest_line(struct dirty_log *log, size_t line, uint64_t *bitmap)
{
	uint64_t bits[DIRTY_LINE_WORDS];
	uint32_t set = dirty_line_take(log, line, true, bits);

	for (; bitmap && set; set &= set - 1)
		bitmap[dirty_line_start(line) + (size_t)__builtin_ctz(set)] = bits[__builtin_ctz(set)];
}

void dirty_log_harvest(struct dirty_log *log, uint64_t *bitmap)
{
	struct dirty_lines lines = dirty_lines_begin(log, 0, true);
	uint32_t line[DIRTY_LINES];

	if (bitmap)
		memset(bitmap, 0, nwords_of(log) * sizeof(*bitmap));
	for (size_t n; (n = dirty_lines_next(&lines, line));)
		for (size_t i = 0; i < n; i++)
			harvest_line(log, line[i], bitmap);
}

void dirty_log_merge(struct dirty_log *log, const uint64_t *words)
{
	for (size_t i = 0; i < nwords_of(log); i++) {
		uint64_t bits = words[i] & pages_from(log, 64 * (int64_t)i); /* D1 */

		if (bits)
			set_bits(log, i, bits);
	}
}

void dirty_log_peek(const struct dirty_log *log, uint64_t *bitmap)
{
	for (size_t i = 0; i < nwords_of(log); i++)
		bitmap[i] = atomic_load_explicit(&log->live[i], memory_order_acquire);
}

static bool is_clean(struct dirty_log *log, size_t line)
{
	uint64_t bits[DIRTY_LINE_WORDS];

	return !dirty_line_take(log, line, false, bits);
}

/* The second look is for a mark that found the line in the summary, after the first look. */
static void drop_clean_line(struct dirty_log *log, size_t line)
{
	if (!dirty_summary_has(summary_of(log), line) || !is_clean(log, line))
		return;
	point(WRITER_DROPS_LINE);
	dirty_summary_drop(summary_of(log), line);
	if (!is_clean(log, line))
		dirty_summary_note(summary_of(log), line);
}

/* Most words have no such bit, and a locked instruction costs more than a load.  A mark that comes after the load comes
 * after the clear.  Returns whether a bit was cleared. */
static bool clear_words(_Atomic uint64_t *words, const uint64_t *bitmap, size_t nwords)
{
	bool any = false;

	for (size_t i = 0; i < nwords; i++)
		if (bitmap[i] & atomic_load_explicit(&words[i], memory_order_acquire)) {
			atomic_fetch_and_explicit(&words[i], ~bitmap[i], memory_order_acq_rel);
			any = true;
		}
	return any;
}

void dirty_log_clear(struct dirty_log *log, size_t first_word, const uint64_t *bitmap, size_t nwords)
{
	for (size_t done = 0, n; done < nwords; done += n) {
		size_t line = dirty_line_of(first_word + done), to_end = dirty_line_start(line + 1) - first_word - done;

		n = nwords - done < to_end ? nwords - done : to_end;
		if (clear_words(&log->live[first_word + done], bitmap + done, n) && has_summary(log))
			drop_clean_line(log, line);
	}
}

int dirty_log_check(const struct dirty_log *log)
{
	int64_t i = (int64_t)nwords_of(log) - 1;

	return word_at(log, i) & ~pages_from(log, 64 * i) ? 1 : 0;
}

size_t dirty_log_unnoted(const struct dirty_log *log, size_t word)
{
	size_t end = nwords_of(log);

	if (!has_summary(log))
		return end;
	while (word < end && (!word_at(log, (int64_t)word) || dirty_summary_has(summary_of(log), dirty_line_of(word))))
		word++;
	return word;
}
