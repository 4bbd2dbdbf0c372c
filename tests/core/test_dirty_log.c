/* SPDX-License-Identifier: MIT */
/*
 * test_dirty_log.c - dirty logs compared with a plain array, and marks that no harvest loses.
 */
#include "test.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "dirty_log.h"

#define PAGES_MAX ((1 << 20) + 1)

static struct memory memory;
static bool live[PAGES_MAX], taken[PAGES_MAX]; /* the log, and the bitmap of the caller, must equal them */
static uint64_t bitmap[(PAGES_MAX + 63) / 64];
static uint64_t marks;

static bool bit(uint64_t word, uint64_t page)
{
	return word >> page % 64 & 1;
}

static void check_equal(const struct dirty_log *log)
{
	CHECK_EQ(dirty_log_check(log), 0);
	CHECK_EQ(dirty_log_unnoted(log, 0), nwords_of(log));
	for (uint64_t page = 0; page < log->npages; page++) {
		CHECK_EQ(bit(atomic_load(&log->live[page / 64]), page), live[page]);
		CHECK_EQ(bit(bitmap[page / 64], page), taken[page]);
	}
}

/* ---- compared with the array ---- */

static struct dirty_log *create(uint64_t npages, bool initially_set)
{
	struct dirty_log *log = dirty_log_create(&memory, npages, initially_set);

	CHECK(log);
	CHECK_EQ(log->npages, npages);
	CHECK_EQ(nwords_of(log), (npages + 63) / 64);
	CHECK_EQ(log->refs, 1);
	memset(live, initially_set, sizeof(live));
	memset(taken, 0, sizeof(taken));
	memset(bitmap, 0, sizeof(bitmap));
	check_equal(log);
	return log;
}

static void destroy(struct dirty_log *log)
{
	dirty_log_put(&memory, log);
	CHECK_EQ(atomic_load(&memory.bytes) + atomic_load(&memory.blocks), 0);
}

static void mark_some(struct dirty_log *log, struct rng *rng, uint64_t times)
{
	for (; times; times--) {
		uint64_t page = rng_below(rng, 8) ? rng_below(rng, log->npages) : log->npages - 1;

		dirty_log_mark(log, page);
		live[page] = true;
		marks++;
	}
}

static void harvest(struct dirty_log *log)
{
	dirty_log_harvest(log, bitmap);
	memcpy(taken, live, log->npages);
	memset(live, 0, log->npages);
}

static void peek(struct dirty_log *log)
{
	dirty_log_peek(log, bitmap);
	memcpy(taken, live, log->npages);
}

/* The bitmap has the bits to clear, from its own bit 0 on. */
static void clear(struct dirty_log *log, struct rng *rng)
{
	size_t first = rng_below(rng, nwords_of(log)), nwords = rng_below(rng, nwords_of(log) - first + 1);

	for (uint64_t page = 0; page < log->npages; page++)
		taken[page] = rng_below(rng, 2);
	memset(bitmap, 0, nwords_of(log) * sizeof(*bitmap));
	for (uint64_t page = 0; page < log->npages; page++)
		bitmap[page / 64] |= (uint64_t)taken[page] << page % 64;
	dirty_log_clear(log, first, bitmap, nwords);
	for (uint64_t page = 0; page < nwords * 64; page++)
		if (first * 64 + page < log->npages && taken[page])
			live[first * 64 + page] = false;
}

static void one_size(uint64_t npages, bool initially_set, uint64_t rounds)
{
	struct dirty_log *log = create(npages, initially_set);
	struct rng rng = rng_stream(npages);

	for (; rounds; rounds--) {
		uint64_t what = rng_below(&rng, 3);

		mark_some(log, &rng, 1 + rng_below(&rng, npages < 100 ? 8 : npages / 16));
		if (what == 0)
			harvest(log);
		else if (what == 1)
			peek(log);
		else
			clear(log, &rng);
		check_equal(log);
	}
	harvest(log);
	harvest(log); /* nothing is harvested, but the bitmap is wiped */
	check_equal(log);
	destroy(log);
}

static void every_size(void)
{
	for (uint64_t npages = 1; npages <= 200; npages++)
		for (int set = 0; set < 2; set++)
			one_size(npages, set, npages % 64 < 2 || npages % 64 == 63 ? test_times(2000) : 20);
	for (uint64_t npages = DIRTY_SUMMARY_MIN - 1; npages <= DIRTY_SUMMARY_MIN + 1; npages++)
		one_size(npages, npages % 2, test_times(40));
	one_size(PAGES_MAX, false, test_times(8));
	one_size(PAGES_MAX, true, test_times(8));
}

/* Each page alone is one bit, and each has its own. */
static void every_page(void)
{
	struct dirty_log *log = create(130, false);

	for (uint64_t page = 0; page < 130; page++) {
		dirty_log_mark(log, page);
		live[page] = true;
		check_equal(log);
		harvest(log);
		check_equal(log);
	}
	destroy(log);
}

static void no_pages(void)
{
	for (int set = 0; set < 2; set++) {
		struct dirty_log *log = dirty_log_create(&memory, 0, set);

		CHECK(log);
		dirty_log_harvest(log, bitmap);
		dirty_log_peek(log, bitmap);
		CHECK_EQ(dirty_log_check(log), 0);
		destroy(log);
	}
}

static void references(void)
{
	struct dirty_log *log = create(65, false);

	CHECK_EQ(dirty_log_get(log), log);
	CHECK_EQ(dirty_log_get(log), log);
	CHECK_EQ(log->refs, 3);
	dirty_log_put(&memory, log);
	dirty_log_put(&memory, log);
	CHECK_EQ(log->refs, 1);
	CHECK_EQ(atomic_load(&memory.blocks), 1);
	dirty_log_mark(log, 64);
	destroy(log);
	CHECK(!dirty_log_get(NULL));
	dirty_log_put(&memory, NULL);
}

/* A pin keeps the log after its last slot is gone: the log has left its ring, and a mark does no harm. */
static void pins(void)
{
	struct dirty_log *log = create(65, false), *other = dirty_log_derive(&memory, log, 0, 64, false);

	CHECK(other);
	dirty_log_pin(log);
	dirty_log_pin(log);
	CHECK_EQ(atomic_load(&log->pins), 3);
	dirty_log_unpin(&memory, log);
	dirty_log_put(&memory, log);
	CHECK_EQ(atomic_load(&memory.blocks), 2);
	CHECK_EQ(other->related, other);
	dirty_log_mark(log, 64);
	CHECK_EQ(atomic_load(&log->live[1]), 1);
	dirty_log_unpin(&memory, log);
	CHECK_EQ(atomic_load(&memory.blocks), 1);
	destroy(other);
}

static void no_memory(void)
{
	struct dirty_log *log;

	memory_fail(&memory, 1, false);
	CHECK(!dirty_log_create(&memory, 100, true));
	CHECK_EQ(atomic_load(&memory.bytes), 0);
	log = create(100, true);
	memory_fail(&memory, 1, false);
	CHECK(!dirty_log_derive(&memory, log, 1, 50, true));
	CHECK_EQ(log->related, log);
	destroy(log);
}

/* ---- related logs, compared with one array of host pages ---- */

#define HOST_PAGES 1000u
#define RELATED_MAX 5u

static struct {
	struct dirty_log *log;
	uint64_t first, npages; /* host pages */
} member[RELATED_MAX];
static size_t nr_members;

static bool has_page(size_t i, uint64_t host)
{
	return host - member[i].first < member[i].npages;
}

static bool known(uint64_t host)
{
	bool any = false;

	for (size_t i = 0; i < nr_members; i++)
		any |= has_page(i, host);
	return any;
}

static void add_member(struct dirty_log *log, uint64_t first, uint64_t npages)
{
	CHECK(log);
	CHECK_EQ(log->npages, npages);
	CHECK_EQ(log->refs, 1);
	member[nr_members].log = log;
	member[nr_members].first = first;
	member[nr_members++].npages = npages;
}

/* The sizes that matter are those about a multiple of 64; far apart, near, and one inside of the other. */
static void derive_one(struct rng *rng, bool initially_set)
{
	size_t from = rng_below(rng, nr_members);
	uint64_t npages = 1 + (rng_below(rng, 2) ? rng_below(rng, 200) : 62 + rng_below(rng, 5));
	uint64_t first = rng_below(rng, 2) ? rng_below(rng, HOST_PAGES - npages) : member[from].first;
	int64_t shift = (int64_t)first - (int64_t)member[from].first;

	if (first + npages > HOST_PAGES)
		return;
	for (uint64_t host = first; host < first + npages; host++)
		if (!known(host))
			live[host] = initially_set;
	add_member(dirty_log_derive(&memory, member[from].log, shift, npages, initially_set), first, npages);
}

/* As readers mark the log of the slot that they see, until a swap is over. */
static void mark_and_pass_on(struct rng *rng)
{
	size_t i = rng_below(rng, nr_members);

	for (uint64_t n = rng_below(rng, 5); n > 0; n--, marks++) {
		uint64_t page = rng_below(rng, member[i].npages);

		dirty_log_mark(member[i].log, page);
		live[member[i].first + page] = true;
	}
	dirty_log_pass_on(member[i].log);
}

static void put_one(size_t i)
{
	dirty_log_put(&memory, member[i].log);
	member[i] = member[--nr_members];
}

static void check_members(void)
{
	size_t ring = 1;

	for (const struct dirty_log *log = member[0].log->related; log != member[0].log; log = log->related)
		ring++;
	CHECK_EQ(ring, nr_members);
	for (size_t i = 0; i < nr_members; i++) {
		CHECK_EQ(dirty_log_check(member[i].log), 0);
		for (uint64_t page = 0; page < member[i].npages; page++)
			CHECK_EQ(bit(atomic_load(&member[i].log->live[page / 64]), page), live[member[i].first + page]);
	}
}

static void related_logs(uint64_t number)
{
	struct rng rng = rng_stream(number);
	bool initially_set = number % 2;
	uint64_t npages = 1 + rng_below(&rng, 300), first = rng_below(&rng, HOST_PAGES - npages);

	nr_members = 0;
	memset(live, initially_set, HOST_PAGES);
	add_member(dirty_log_create(&memory, npages, initially_set), first, npages);
	for (int step = 0; step < 50; step++) {
		uint64_t what = rng_below(&rng, 4);

		if (what < 2)
			mark_and_pass_on(&rng);
		else if (what == 2 && nr_members < RELATED_MAX)
			derive_one(&rng, initially_set);
		else if (nr_members > 1)
			put_one(rng_below(&rng, nr_members));
		check_members();
	}
	while (nr_members)
		put_one(0);
	CHECK_EQ(atomic_load(&memory.bytes) + atomic_load(&memory.blocks), 0);
}

/* A slot that moves to the other end of the host's addresses, and back. */
static void far_apart(void)
{
	int64_t far = (int64_t)1 << 51;
	struct dirty_log *log = create(70, false), *high, *back;

	dirty_log_mark(log, 69);
	high = dirty_log_derive(&memory, log, far, 70, true);
	CHECK_EQ(atomic_load(&high->live[0]), ~(uint64_t)0);
	CHECK_EQ(atomic_load(&high->live[1]), 63);
	back = dirty_log_derive(&memory, high, 1 - far, 70, false);
	CHECK_EQ(atomic_load(&back->live[0]), 0);
	CHECK_EQ(atomic_load(&back->live[1]), 16);
	dirty_log_pass_on(high);
	CHECK_EQ(atomic_load(&log->live[0]) | atomic_load(&back->live[0]), 0);
	dirty_log_put(&memory, log);
	dirty_log_put(&memory, back);
	CHECK_EQ(high->related, high);
	destroy(high);
}

/* The bits that come from another log are in the summary, too. */
static void large_related(void)
{
	struct dirty_log *small = create(DIRTY_SUMMARY_MIN - 1, false), *large;

	dirty_log_mark(small, 700);
	large = dirty_log_derive(&memory, small, -5, DIRTY_SUMMARY_MIN + 7, true);
	CHECK(large);
	CHECK_EQ(atomic_load(&large->live[0]), 31);
	CHECK_EQ(atomic_load(&large->live[705 / 64]), (uint64_t)1 << 705 % 64);
	CHECK_EQ(atomic_load(&large->live[DIRTY_SUMMARY_MIN / 64]), 112); /* 4, 5 and 6 are new pages */
	CHECK_EQ(dirty_log_unnoted(large, 0), nwords_of(large));
	dirty_log_mark(small, 20000);
	dirty_log_pass_on(small);
	CHECK_EQ(atomic_load(&large->live[20005 / 64]), (uint64_t)1 << 20005 % 64);
	CHECK_EQ(dirty_log_unnoted(large, 0), nwords_of(large));
	dirty_log_put(&memory, small);
	destroy(large);
}

static size_t lines_in_summary(struct dirty_log *log)
{
	struct dirty_lines lines = dirty_lines_begin(log, 0, false);
	uint32_t line[DIRTY_LINES];
	size_t nr = 0;

	for (size_t n; (n = dirty_lines_next(&lines, line));)
		nr += n;
	return nr;
}

/* Lines that a clear has made clean leave the summary, except for line 0 with a half of its bits left. */
static void clear_drops_lines(void)
{
	struct dirty_log *log = create(PAGES_MAX, true);
	const size_t nwords = nwords_of(log);

	CHECK_EQ(lines_in_summary(log), dirty_line_of(nwords - 1) + 1);
	memset(bitmap, 0xff, nwords * sizeof(*bitmap));
	bitmap[3] = 0x0f0f0f0f;
	dirty_log_clear(log, 0, bitmap, nwords);
	CHECK_EQ(lines_in_summary(log), 1);
	dirty_log_clear(log, nwords - 1, bitmap + nwords - 1, 1); /* of lines that are clean */
	dirty_log_clear(log, 4, bitmap, 0);
	CHECK_EQ(lines_in_summary(log), 1);
	CHECK_EQ(dirty_log_unnoted(log, 0), nwords);
	bitmap[3] = ~(uint64_t)0;
	dirty_log_clear(log, 3, bitmap + 3, 1);
	CHECK_EQ(lines_in_summary(log), 0);
	dirty_log_mark(log, 70000);
	CHECK_EQ(lines_in_summary(log), 1);
	CHECK_EQ(dirty_log_unnoted(log, 0), nwords);
	destroy(log);
}

/* ---- a broken D1 or D6 ---- */

static void break_d6(void)
{
	struct dirty_log *log = create(PAGES_MAX, false);

	atomic_store(&log->live[9000], 1);
	CHECK_EQ(dirty_log_unnoted(log, 0), 9000);
	CHECK_EQ(dirty_log_unnoted(log, 9001), nwords_of(log));
	dirty_log_give_back(log, 9000, 0);
	CHECK_EQ(dirty_log_unnoted(log, 0), nwords_of(log));
	destroy(log);
}

static void break_d1(uint64_t npages)
{
	struct dirty_log *log = create(npages, true);

	for (uint64_t page = npages; page % 64; page++) {
		atomic_fetch_or(&log->live[page / 64], (uint64_t)1 << page % 64);
		CHECK_EQ(dirty_log_check(log), 1);
		atomic_fetch_and(&log->live[page / 64], ~((uint64_t)1 << page % 64));
		CHECK_EQ(dirty_log_check(log), 0);
	}
	destroy(log);
}

/* ---- threads: each mark is harvested once ---- */

#define MARKERS 3
#define SHARED_PAGES 3001 /* coprime to 64 and to MARKERS: every word has pages of every thread */

/* The threads use each stride-th page of the log.  With 1 the log is small; with 89 it has a summary; with 349 a line
 * has one or two of the pages. */
static uint64_t stride;

struct marker {
	pthread_t thread;
	unsigned number;
	_Atomic uint64_t marked; /* counted after the mark: every later harvest must find it */
};

static struct dirty_log *shared;
static struct marker marker[MARKERS];
static _Atomic uint64_t harvested[SHARED_PAGES]; /* a page is marked again after its last mark was harvested */
static uint64_t rounds;

/* Marks the thread's own pages that are due: their last mark is harvested, and they need another one.  Returns the
 * number of marks. */
static uint64_t mark_due(struct marker *m, uint64_t *done)
{
	uint64_t made = 0;

	for (uint64_t page = m->number; page < SHARED_PAGES; page += MARKERS)
		if (done[page] < rounds && atomic_load_explicit(&harvested[page], memory_order_acquire) == done[page]) {
			dirty_log_mark(shared, page * stride);
			done[page]++;
			made++;
			atomic_fetch_add_explicit(&m->marked, 1, memory_order_release);
		}
	return made;
}

static void *mark_pages(void *argument)
{
	struct marker *m = argument;
	uint64_t *done = calloc(SHARED_PAGES, sizeof(*done));
	uint64_t left = rounds * ((SHARED_PAGES - m->number + MARKERS - 1) / MARKERS);

	CHECK(done);
	while (left) {
		uint64_t made = mark_due(m, done);

		left -= made;
		if (!made)
			sched_yield();
	}
	free(done);
	return NULL;
}

static bool one_processor(void)
{
	cpu_set_t cpus;

	CHECK_EQ(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
	return CPU_COUNT(&cpus) == 1;
}

/* On one processor the marking threads run only when the harvester lets them.  On several it never yields: it must meet
 * them in the middle of a mark, and a thread that yields is seldom stopped there. */
static void yield_if_idle(bool idle)
{
	static int alone = -1;

	if (alone < 0)
		alone = one_processor();
	if (idle && alone)
		sched_yield();
}

static uint64_t all_marked(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < MARKERS; i++)
		sum += atomic_load_explicit(&marker[i].marked, memory_order_acquire);
	return sum;
}

/* As ms_harvest_dirty() with a full array does: half of the lines that the walk returns go back, and so do the lines
 * that it has not returned. */
static void take_lines(bool all)
{
	struct dirty_lines lines = dirty_lines_begin(shared, 0, true);
	uint32_t line[DIRTY_LINES];
	uint64_t bits[DIRTY_LINE_WORDS];

	memset(bitmap, 0, nwords_of(shared) * sizeof(*bitmap));
	for (size_t n; (n = dirty_lines_next(&lines, line));) {
		for (size_t i = 0; i < n; i++) {
			uint32_t set = i % 2 && !all ? 0 : dirty_line_take(shared, line[i], true, bits);

			if (i % 2 && !all)
				dirty_log_give_back(shared, dirty_line_start(line[i]), 0);
			for (; set; set &= set - 1)
				bitmap[dirty_line_start(line[i]) + (size_t)__builtin_ctz(set)] =
					bits[__builtin_ctz(set)];
		}
		if (!all)
			break;
	}
	if (!all)
		dirty_lines_end(&lines);
}

/* Takes bits out in several ways in turn.  Returns the number of pages. */
static uint64_t take_out(uint64_t turn)
{
	uint64_t nr = 0;

	if (turn % 4 == 1) {
		dirty_log_harvest(shared, bitmap);
	} else if (turn % 4 == 0) {
		dirty_log_peek(shared, bitmap);
		dirty_log_clear(shared, 0, bitmap, nwords_of(shared));
	} else {
		take_lines(turn % 4 == 3);
	}
	for (uint64_t page = 0; page < SHARED_PAGES; page++)
		if (bit(bitmap[page * stride / 64], page * stride)) {
			atomic_fetch_add_explicit(&harvested[page], 1, memory_order_release);
			nr++;
		}
	return nr;
}

static void conservation(uint64_t nth_page, uint64_t times)
{
	uint64_t all_taken = 0, before, now, all;

	stride = nth_page;
	rounds = times;
	for (int page = 0; page < SHARED_PAGES; page++)
		atomic_store(&harvested[page], 0);
	all = rounds * SHARED_PAGES;
	shared = create(SHARED_PAGES * stride, false);
	for (unsigned i = 0; i < MARKERS; i++) {
		atomic_store(&marker[i].marked, 0);
		marker[i].number = i;
		CHECK_EQ(pthread_create(&marker[i].thread, NULL, mark_pages, &marker[i]), 0);
	}
	for (uint64_t turn = 0; all_taken < all; turn++) {
		before = all_marked();
		now = take_out(turn);
		all_taken += now;
		CHECK(all_taken >= before || turn % 4 == 2); /* none lost */
		CHECK(all_taken <= all_marked() + MARKERS); /* none twice; each thread may be about to count one */
		yield_if_idle(!now);
	}
	for (int i = 0; i < MARKERS; i++)
		CHECK_EQ(pthread_join(marker[i].thread, NULL), 0);
	CHECK_EQ(take_out(0) + take_out(1), 0);
	for (uint64_t page = 0; page < SHARED_PAGES; page++)
		CHECK_EQ(atomic_load(&harvested[page]), rounds);
	CHECK_EQ(all_taken, all_marked());
	CHECK_EQ(dirty_log_check(shared), 0);
	CHECK_EQ(dirty_log_unnoted(shared, 0), nwords_of(shared));
	marks += all_taken;
	destroy(shared);
}

/* ---- one word: no mark or clear undoes a change that comes in the middle ---- */

static volatile sig_atomic_t interrupts;

static bool own_bit(uint64_t page)
{
	return bit(atomic_load_explicit(&shared->live[0], memory_order_relaxed), page);
}

/* A signal handler comes between any two instructions, also on one processor. */
static void interrupt(int signal_number)
{
	bool set = interrupts++ % 2;

	(void)signal_number;
	CHECK_EQ(own_bit(1), set);
	if (set)
		atomic_fetch_and(&shared->live[0], ~(uint64_t)2);
	else
		dirty_log_mark(shared, 1);
}

static void mark_and_clear(void)
{
	const uint64_t mask = (uint64_t)1 << 62;

	dirty_log_mark(shared, 62);
	CHECK(own_bit(62));
	dirty_log_clear(shared, 0, &mask, 1);
	CHECK(!own_bit(62));
}

static void one_word(uint64_t npages)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct itimerspec often = { .it_interval.tv_nsec = 20000, .it_value.tv_nsec = 20000 }, never = { 0 };
	sig_atomic_t enough = (sig_atomic_t)test_times(20000);
	timer_t timer;

	shared = create(npages, false);
	interrupts = 0;
	CHECK(signal(SIGUSR1, interrupt) != SIG_ERR);
	CHECK_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
	CHECK_EQ(timer_settime(timer, 0, &often, NULL), 0);
	for (uint64_t i = 0; interrupts < enough && i < test_times(400000000); i++)
		mark_and_clear();
	CHECK_EQ(timer_settime(timer, 0, &never, NULL), 0);
	CHECK_EQ(timer_delete(timer), 0);
	CHECK(signal(SIGUSR1, SIG_IGN) != SIG_ERR);
	CHECK_EQ(own_bit(1), interrupts % 2);
	destroy(shared);
}

/* ---- a harvest of a bit orders the writes before each mark, also if the bit was set already ---- */

static _Atomic uint64_t written[64], seen[64]; /* relaxed: only the log orders them */
static _Atomic uint64_t rounds_marked, rounds_seen;
static uint64_t write_rounds;

/* The second mark of a page must not rely on the first one: a harvest may be taking that out. */
static void *write_and_mark(void *unused)
{
	for (uint64_t round = 1; round <= write_rounds; round++) {
		for (uint64_t page = 0; page < 64; page++)
			for (uint64_t turn = 0; turn < 2; turn++) {
				atomic_store_explicit(&written[page], 2 * round + turn, memory_order_relaxed);
				dirty_log_mark(shared, page);
			}
		atomic_store_explicit(&rounds_marked, round, memory_order_release);
		while (atomic_load_explicit(&rounds_seen, memory_order_acquire) < round)
			sched_yield();
	}
	return unused;
}

/* Returns whether a page was marked. */
static bool check_harvested(void)
{
	dirty_log_harvest(shared, bitmap);
	for (uint64_t page = 0; page < 64; page++)
		if (bit(bitmap[0], page))
			atomic_store_explicit(&seen[page], atomic_load_explicit(&written[page], memory_order_relaxed),
					      memory_order_relaxed);
	return bitmap[0];
}

static void writes_are_seen(uint64_t npages)
{
	pthread_t thread;

	write_rounds = test_times(20000);
	atomic_store(&rounds_marked, 0);
	atomic_store(&rounds_seen, 0);
	shared = create(npages, false);
	CHECK_EQ(pthread_create(&thread, NULL, write_and_mark, NULL), 0);
	for (uint64_t round = 1; round <= write_rounds; round++) {
		while (atomic_load_explicit(&rounds_marked, memory_order_acquire) < round)
			yield_if_idle(!check_harvested());
		check_harvested();
		for (uint64_t page = 0; page < 64; page++)
			CHECK_EQ(atomic_load(&seen[page]), 2 * round + 1);
		atomic_store_explicit(&rounds_seen, round, memory_order_release);
	}
	CHECK_EQ(pthread_join(thread, NULL), 0);
	marks += 128 * write_rounds;
	destroy(shared);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 180);
	memory_init(&memory);
	no_pages();
	every_page();
	every_size();
	references();
	pins();
	no_memory();
	far_apart();
	large_related();
	clear_drops_lines();
	for (uint64_t i = 0; i < test_times(1000); i++)
		related_logs(i);
	break_d6();
	break_d1(1);
	break_d1(63);
	break_d1(65);
	break_d1(PAGES_MAX);
	conservation(1, test_times(1000));
	conservation(89, test_times(100));
	conservation(349, test_times(8));
	one_word(64);
	one_word(DIRTY_SUMMARY_MIN);
	writes_are_seen(64);
	writes_are_seen(DIRTY_SUMMARY_MIN);
	return test_done("dirty_log", marks, "marks");
}
