/* SPDX-License-Identifier: MIT */
/*
 * test_srcu.c - read sections and grace periods between real threads.
 *
 * A reader writes an ordinary variable in its section: -fsanitize=thread then proves that synchronize_srcu() orders it.
 * test_srcu_schedules.c tries each order of steps; this file has real threads that sleep, end, end inside a section,
 * share a record and fork.
 */
#include "test.h"

#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <time.h>

#include "srcu.h"

static struct memory memory;
static struct srcu domain;
static uint64_t sections;

static void start(pthread_t *thread, void *(*run)(void *), void *argument)
{
	CHECK_EQ(pthread_create(thread, NULL, run, argument), 0);
}

static void join(pthread_t thread)
{
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

static void run_thread(void *(*run)(void *), void *argument)
{
	pthread_t thread;

	start(&thread, run, argument);
	join(thread);
}

static void wait_for(_Atomic uint32_t *word, uint32_t value)
{
	while (atomic_load(word) != value)
		sched_yield();
}

/* Waits until the writer sleeps or has returned. */
static void wait_for_writer(void)
{
	while (!atomic_load(&domain.waiting) && !atomic_load(&domain.periods))
		sched_yield();
}

static void nap_ms(long ms)
{
	struct timespec nap = { .tv_nsec = ms * 1000000 };

	nanosleep(&nap, NULL);
}

static void domain_init(void)
{
	memory_init(&memory);
	CHECK_EQ(srcu_init(&domain, &memory), 0);
}

static size_t nr_records(struct srcu *s)
{
	size_t nr = 0;

	for (struct srcu_reader *r = atomic_load(&s->readers); r; r = r->next)
		nr++;
	return nr;
}

static bool is_record_of(struct srcu *s, const struct srcu_reader *reader)
{
	const struct srcu_reader *r = atomic_load(&s->readers);

	while (r && r != reader)
		r = r->next;
	return r;
}

static void check_dry(struct srcu *s)
{
	for (struct srcu_reader *r = atomic_load(&s->readers); r; r = r->next) {
		CHECK_EQ(r->lock[0], r->unlock[0]);
		CHECK_EQ(r->lock[1], r->unlock[1]);
		CHECK_EQ(r->depth, 0);
	}
}

static void domain_deinit(void)
{
	check_dry(&domain);
	CHECK_EQ(thread_self.sections, 0);
	srcu_deinit(&domain);
	CHECK_EQ(atomic_load(&memory.bytes) + atomic_load(&memory.blocks), 0);
}

/* ---- one thread ---- */

static void check_record(struct srcu_section section, uint32_t depth, uint32_t bank, uint64_t in, uint64_t out)
{
	struct srcu_reader *r = section.reader;

	CHECK_EQ(r->depth, depth);
	CHECK_EQ(thread_self.sections, depth);
	CHECK_EQ(r->lock[bank], in);
	CHECK_EQ(r->unlock[bank], out);
	sections++;
}

static void nest(uint32_t bank, uint64_t before)
{
	struct srcu_section a, b, c;

	a = srcu_read_lock(&domain);
	CHECK(a.outermost && !srcu_is_shared(a.reader));
	CHECK_EQ(a.bank, bank);
	check_record(a, 1, bank, before + 1, before);
	b = srcu_read_lock(&domain);
	c = srcu_read_lock(&domain);
	CHECK(!b.outermost && !c.outermost);
	CHECK(b.reader == a.reader && c.reader == a.reader);
	check_record(a, 3, bank, before + 1, before);
	srcu_read_unlock(&domain, c);
	srcu_read_unlock(&domain, b);
	check_record(a, 1, bank, before + 1, before);
	b = srcu_read_lock(&domain);
	CHECK(!b.outermost);
	srcu_read_unlock(&domain, a); /* the outer one first: S1 holds in any order */
	check_record(b, 1, bank, before + 1, before);
	srcu_read_unlock(&domain, b);
	check_record(b, 0, bank, before + 1, before + 1);
}

static void nesting(void)
{
	domain_init();
	for (uint32_t round = 0; round < 6; round++) {
		nest(round % 2, round / 2);
		synchronize_srcu(&domain);
		CHECK_EQ(domain.bank, (round + 1) % 2);
	}
	CHECK_EQ(nr_records(&domain), 2);
	domain_deinit();
}

static void no_readers(void)
{
	domain_init();
	for (uint64_t i = 1; i <= 100; i++) {
		synchronize_srcu(&domain);
		CHECK_EQ(domain.periods, i);
		CHECK_EQ(domain.bank, i % 2);
	}
	CHECK_EQ(domain.waits, 0);
	CHECK_EQ(nr_records(&domain), 1); /* a writer needs no record */
	domain_deinit();
}

/* More domains than a thread caches, with open sections in all of them, and a writer for each. */
#define DOMAINS (3 * SRCU_CACHED + 1)

static void many_domains(void)
{
	static struct srcu many[DOMAINS];
	struct srcu_section section[DOMAINS];

	memory_init(&memory);
	for (int i = 0; i < DOMAINS; i++)
		CHECK_EQ(srcu_init(&many[i], &memory), 0);
	for (int round = 0; round < 50; round++) {
		for (int i = 0; i < DOMAINS; i++) {
			section[i] = srcu_read_lock(&many[i]);
			CHECK(section[i].outermost && is_record_of(&many[i], section[i].reader));
			CHECK_EQ(thread_self.sections, i + 1);
			if (i + 1 < DOMAINS)
				synchronize_srcu(&many[i + 1]); /* it has no reader inside */
		}
		for (int i = 0; i < DOMAINS; i++)
			srcu_read_unlock(&many[i], section[i]);
		sections += DOMAINS;
	}
	for (int i = 0; i < DOMAINS; i++) {
		CHECK_EQ(nr_records(&many[i]), 2);
		check_dry(&many[i]);
	}
	for (int i = 0; i < DOMAINS; i++)
		srcu_deinit(&many[(i + 5) % DOMAINS]); /* from the middle of the list of domains too */
	CHECK_EQ(atomic_load(&memory.blocks), 0);
}

/* ---- a writer waits for the readers inside, and for no others ---- */

/* A reader that stays inside until the writer sleeps. */
struct guest {
	pthread_t thread;
	_Atomic uint32_t inside;
	bool fail; /* no memory for a record */
	int left;  /* ordinary: written last inside, read after the grace period */
};

static void *stay_until_awaited(void *argument)
{
	struct guest *guest = argument;
	struct srcu_section section = srcu_read_lock(&domain);

	CHECK_EQ(srcu_is_shared(section.reader), guest->fail);
	atomic_store(&guest->inside, 1);
	wait_for_writer();
	nap_ms(2); /* longer than a nap of the writer, which waits for it */
	CHECK_EQ(domain.periods, 0);
	guest->left = 1;
	srcu_read_unlock(&domain, section);
	return NULL;
}

static void waits_for(unsigned guests, bool shared)
{
	struct guest guest[4] = { 0 };

	domain_init();
	if (shared)
		memory_fail(&memory, 1, true);
	for (unsigned i = 0; i < guests; i++) {
		guest[i].fail = shared;
		start(&guest[i].thread, stay_until_awaited, &guest[i]);
		wait_for(&guest[i].inside, 1);
	}
	synchronize_srcu(&domain);
	for (unsigned i = 0; i < guests; i++)
		CHECK_EQ(guest[i].left, 1);
	for (unsigned i = 0; i < guests; i++)
		join(guest[i].thread);
	CHECK_EQ(domain.periods, 1);
	CHECK_EQ(domain.waits, 1);
	CHECK_EQ(domain.waiting, 0);
	CHECK_EQ(nr_records(&domain), shared ? 1 : 1 + guests);
	sections += guests;
	domain_deinit();
}

/* Two readers that leave in turn, so that one of them is always inside. */
struct relay {
	pthread_t thread;
	uint32_t number;
};

static _Atomic uint32_t relay_turn, relay_inside, relay_stop;

static void *relay(void *argument)
{
	struct relay *me = argument;
	struct srcu_section section = srcu_read_lock(&domain);

	atomic_fetch_add(&relay_inside, 1);
	while (!atomic_load(&relay_stop)) {
		if (atomic_load(&relay_turn) != me->number) {
			sched_yield();
			continue;
		}
		srcu_read_unlock(&domain, section);
		section = srcu_read_lock(&domain);
		atomic_store(&relay_turn, !me->number);
	}
	srcu_read_unlock(&domain, section);
	return NULL;
}

static void stream_of_readers(bool shared)
{
	struct relay me[2] = { { .number = 0 }, { .number = 1 } };
	uint64_t rounds = test_times(300);

	domain_init();
	if (shared)
		memory_fail(&memory, 1, true);
	atomic_store(&relay_inside, 0);
	atomic_store(&relay_stop, 0);
	atomic_store(&relay_turn, 2); /* no reader's turn: both enter first */
	for (int i = 0; i < 2; i++)
		start(&me[i].thread, relay, &me[i]);
	wait_for(&relay_inside, 2);
	atomic_store(&relay_turn, 0);
	for (uint64_t i = 0; i < rounds; i++)
		synchronize_srcu(&domain);
	CHECK_EQ(domain.periods, rounds);
	atomic_store(&relay_stop, 1);
	for (int i = 0; i < 2; i++)
		join(me[i].thread);
	sections += domain.shared.lock[0] + domain.shared.lock[1];
	domain_deinit();
}

static _Atomic uint32_t written;

static void *write_once(void *unused)
{
	synchronize_srcu(&domain);
	atomic_store(&written, 1);
	return unused;
}

/* A nested section that begins after the flip is in the bank of the outermost one. */
static void nested_across_a_flip(void)
{
	struct srcu_section outer, inner;
	pthread_t writer;

	domain_init();
	atomic_store(&written, 0);
	outer = srcu_read_lock(&domain);
	start(&writer, write_once, NULL);
	wait_for(&domain.bank, 1);
	for (int i = 0; i < 3; i++) {
		inner = srcu_read_lock(&domain);
		CHECK(!inner.outermost);
		srcu_read_unlock(&domain, inner);
		nap_ms(2);
		CHECK_EQ(atomic_load(&written), 0);
	}
	CHECK_EQ(outer.reader->lock[1], 0);
	srcu_read_unlock(&domain, outer);
	join(writer);
	CHECK_EQ(atomic_load(&written), 1);
	CHECK_EQ(outer.reader->unlock[0], 1);
	domain_deinit();
}

/* ---- threads end ---- */

static void *end_inside(void *argument)
{
	struct guest *guest = argument;

	srcu_read_lock(&domain);
	srcu_read_lock(&domain);
	if (guest) {
		atomic_store(&guest->inside, 1);
		wait_for_writer();
		guest->left = 1;
	}
	return NULL;
}

static void check_given_back(void)
{
	for (struct srcu_reader *r = atomic_load(&domain.readers); r; r = r->next)
		CHECK(r->owner == SRCU_FREE || r == &domain.shared);
	check_dry(&domain);
}

static void dead_threads(void)
{
	domain_init();
	for (uint32_t round = 0; round < 4; round++) { /* in either bank */
		run_thread(end_inside, NULL);
		check_given_back();
		synchronize_srcu(&domain);
		CHECK_EQ(domain.waits, 0);
		CHECK_EQ(domain.bank, (round + 1) % 2);
	}
	CHECK_EQ(nr_records(&domain), 2);
	domain_deinit();
}

/* The same while a writer waits for the thread. */
static void awaited_thread_ends(void)
{
	struct guest guest = { 0 };

	domain_init();
	start(&guest.thread, end_inside, &guest);
	wait_for(&guest.inside, 1);
	synchronize_srcu(&domain);
	CHECK_EQ(guest.left, 1);
	CHECK_EQ(domain.waits, 1);
	join(guest.thread);
	check_given_back();
	CHECK_EQ(nr_records(&domain), 2);
	domain_deinit();
}

static void *read_a_little(void *unused)
{
	for (int i = 0; i < 5; i++) {
		struct srcu_section section = srcu_read_lock(&domain);

		CHECK(section.outermost && !srcu_is_shared(section.reader));
		CHECK_EQ(section.reader->owner, thread_number());
		srcu_count(section.reader, SRCU_MISS, 3);
		srcu_read_unlock(&domain, section);
	}
	return unused;
}

/* Records serve one thread after another: there are as many as threads that lived at the same time. */
static void records_are_reused(void)
{
	enum { AT_ONCE = 4 };
	uint64_t rounds = test_times(1000) / AT_ONCE + 1;
	pthread_t thread[AT_ONCE];

	domain_init();
	for (uint64_t round = 0; round < rounds; round++) {
		for (int i = 0; i < AT_ONCE; i++)
			start(&thread[i], read_a_little, NULL);
		if (round % 16 == 0)
			synchronize_srcu(&domain);
		for (int i = 0; i < AT_ONCE; i++)
			join(thread[i]);
		CHECK(nr_records(&domain) <= 1 + AT_ONCE);
		CHECK_EQ(atomic_load(&memory.blocks), nr_records(&domain) - 1);
	}
	check_given_back();
	CHECK_EQ(srcu_total(&domain, SRCU_MISS), rounds * AT_ONCE * 5 * 3);
	sections += rounds * AT_ONCE * 5;
	domain_deinit();
}

/* A section after the thread's record was given back: in a destructor of other thread-specific data. */
static pthread_key_t late_key;

static void read_late(void *left)
{
	uint32_t *times = left;

	read_a_little(NULL);
	if (--*times) /* set again, so that it runs after the engine's own destructor */
		pthread_setspecific(late_key, times);
}

static void *end_late(void *times)
{
	pthread_setspecific(late_key, times);
	return read_a_little(NULL);
}

static void sections_of_destructors(void)
{
	/* POSIX promises four rounds of destructors; the thread sanitizer is gone before the last one. */
	uint32_t rounds = TEST_THREAD_SANITIZED ? 1 : 3, times = rounds;

	domain_init();
	CHECK_EQ(pthread_key_create(&late_key, read_late), 0);
	run_thread(end_late, &times);
	CHECK_EQ(times, 0);
	CHECK_EQ(pthread_key_delete(late_key), 0);
	synchronize_srcu(&domain);
	CHECK_EQ(srcu_total(&domain, SRCU_MISS), (1 + rounds) * 5 * 3);
	CHECK_EQ(nr_records(&domain), 2);
	domain_deinit();
}

/* A domain ends while threads with records in it live; another one starts at the same address; then the threads end. */
static _Atomic uint32_t stage, arrived;

static void *live_longer(void *unused)
{
	for (uint32_t next = 1; next <= 4; next++) {
		read_a_little(NULL);
		atomic_fetch_add(&arrived, 1);
		wait_for(&stage, next);
	}
	return unused;
}

static void domains_end_first(void)
{
	enum { NR = 3 };
	pthread_t thread[NR];

	atomic_store(&stage, 0);
	atomic_store(&arrived, 0);
	domain_init();
	for (int i = 0; i < NR; i++)
		start(&thread[i], live_longer, NULL);
	for (uint32_t next = 1; next <= 4; next++) {
		wait_for(&arrived, next * NR);
		CHECK_EQ(srcu_total(&domain, SRCU_MISS), NR * 5 * 3);
		CHECK_EQ(nr_records(&domain), 1 + NR);
		domain_deinit();
		if (next < 4)
			domain_init();
		atomic_store(&stage, next);
	}
	for (int i = 0; i < NR; i++)
		join(thread[i]);
}

/* ---- no memory ---- */

static void *wait_and_leave(void *argument)
{
	struct guest *guest = argument;
	struct srcu_section section = srcu_read_lock(&domain);

	CHECK(srcu_is_shared(section.reader) && section.outermost);
	atomic_store(&guest->inside, 1);
	wait_for(&guest->inside, 2);
	guest->left = 1;
	srcu_read_unlock(&domain, section);
	return NULL;
}

/* Two readers in the shared record: one has left and entered again, the other is still inside. */
static void two_in_the_shared_record(void)
{
	struct guest guest = { 0 };
	struct srcu_section section;
	pthread_t writer;

	domain_init();
	memory_fail(&memory, 1, true);
	atomic_store(&written, 0);
	start(&guest.thread, wait_and_leave, &guest);
	wait_for(&guest.inside, 1);
	start(&writer, write_once, NULL);
	wait_for(&domain.bank, 1);
	for (int i = 0; i < 200; i++) {
		section = srcu_read_lock(&domain);
		CHECK(srcu_is_shared(section.reader) && section.bank == 1);
		srcu_read_unlock(&domain, section);
	}
	nap_ms(3);
	CHECK_EQ(atomic_load(&written), 0);
	atomic_store(&guest.inside, 2);
	join(writer);
	CHECK_EQ(guest.left, 1);
	join(guest.thread);
	CHECK_EQ(domain.shared.lock[1], 200);
	domain_deinit();
}

/* As soon as there is memory, a thread gets its own record instead of the shared one, inside a section too. */
static void memory_comes_back(void)
{
	struct srcu_section a, b, c;

	domain_init();
	memory_fail(&memory, 1, true);
	a = srcu_read_lock(&domain);
	b = srcu_read_lock(&domain);
	CHECK(srcu_is_shared(a.reader) && srcu_is_shared(b.reader));
	CHECK(a.outermost && b.outermost);
	CHECK_EQ(thread_self.sections, 2);
	srcu_count(a.reader, SRCU_HIT_SEARCH, 5);
	memory_fail(&memory, 0, false);
	c = srcu_read_lock(&domain);
	CHECK(!srcu_is_shared(c.reader) && c.outermost);
	srcu_count(c.reader, SRCU_HIT_SEARCH, 7);
	srcu_read_unlock(&domain, c);
	srcu_read_unlock(&domain, b);
	CHECK_EQ(domain.shared.lock[0] - domain.shared.unlock[0], 1);
	srcu_read_unlock(&domain, a);
	CHECK_EQ(thread_self.sections, 0);
	CHECK_EQ(srcu_total(&domain, SRCU_HIT_SEARCH), 12);
	domain_deinit();
}

/* ---- the end of a domain ---- */

static void *stay(void *argument)
{
	struct guest *guest = argument;
	struct srcu_section section = srcu_read_lock(&domain);

	CHECK_EQ(srcu_is_shared(section.reader), guest->fail);
	atomic_store(&guest->inside, 1);
	wait_for(&guest->inside, 2);
	return NULL;
}

static void stall_fails(void *what, uint32_t os_id, uint64_t waited_ns, uint32_t report)
{
	(void)os_id;
	(void)waited_ns;
	(void)report;
	fprintf(stderr, "%s waits for a section that has ended\n", (const char *)what);
	test_fail();
}

static void let_stall_fail(char *what)
{
	domain.stall = (struct srcu_stall){ 1000000, stall_fails, what };
}

static void stays(struct guest *guest, bool shared)
{
	memory_fail(&memory, shared, true);
	guest->fail = shared;
	start(&guest->thread, stay, guest);
	wait_for(&guest->inside, 1);
	memory_fail(&memory, 0, false);
}

/* In either bank, with and without a record, and in the calling thread's own sections. */
static void ends_with_open_sections(void)
{
	struct guest guest[4] = { 0 };

	domain_init();
	for (int i = 0; i < 2; i++)
		stays(&guest[i], i);
	domain.bank = 1;
	for (int i = 2; i < 4; i++)
		stays(&guest[i], i == 3);
	srcu_read_lock(&domain);
	let_stall_fail("the end of a domain");
	srcu_end_sections(&domain);
	synchronize_srcu(&domain);
	synchronize_srcu(&domain);
	CHECK_EQ(domain.waits, 0);
	srcu_deinit(&domain);
	thread_self.sections = 0;
	for (int i = 0; i < 4; i++) {
		atomic_store(&guest[i].inside, 2);
		join(guest[i].thread);
	}
	CHECK_EQ(atomic_load(&memory.bytes) + atomic_load(&memory.blocks), 0);
	sections += 5;
}

/* ---- counts ---- */

#define COUNTERS 3

static void *count_much(void *times)
{
	for (uint64_t i = 0; i < *(uint64_t *)times; i++) {
		struct srcu_section section = srcu_read_lock(&domain);

		srcu_count(section.reader, (enum srcu_count)(i % SRCU_NR_COUNTS), i % 5);
		srcu_read_unlock(&domain, section);
	}
	return NULL;
}

static void counts(bool shared)
{
	uint64_t times = test_times(100000), total[SRCU_NR_COUNTS] = { 0 };
	pthread_t thread[COUNTERS];

	domain_init();
	if (shared)
		memory_fail(&memory, 1, true);
	for (int i = 0; i < COUNTERS; i++)
		start(&thread[i], count_much, &times);
	for (int i = 0; i < COUNTERS; i++)
		join(thread[i]);
	for (uint64_t i = 0; i < times; i++)
		total[i % SRCU_NR_COUNTS] += COUNTERS * (i % 5);
	for (int i = 0; i < SRCU_NR_COUNTS; i++)
		CHECK_EQ(srcu_total(&domain, (enum srcu_count)i), total[i]);
	CHECK_EQ(nr_records(&domain) > 1, !shared);
	sections += COUNTERS * times;
	domain_deinit();
}

/* ---- a child process ---- */

static _Atomic uint64_t domains_made;
static bool forking;

static void *hold_until_stopped(void *unused)
{
	while (!atomic_load(&relay_stop)) {
		struct srcu *s = calloc(1, sizeof(*s) + CACHE_LINE);
		struct srcu *lined = (void *)(((uintptr_t)s + CACHE_LINE - 1) & ~(uintptr_t)(CACHE_LINE - 1));

		CHECK_EQ(srcu_init(lined, &memory), 0); /* takes the lock that a fork must not leave locked */
		srcu_deinit(lined);
		free(s);
		atomic_fetch_add(&domains_made, 1);
	}
	return unused;
}

/* The last step before a fork, since it was registered first: the lock is held, and other threads can only wait for
 * it. */
static void just_before_fork(void)
{
	uint64_t made = atomic_load(&domains_made);

	if (!forking)
		return;
	usleep(1000);
	CHECK(atomic_load(&domains_made) - made <= 1);
}

static void in_child(void)
{
	static struct srcu other;

	read_a_little(NULL);
	synchronize_srcu(&domain);
	CHECK_EQ(srcu_init(&other, &memory), 0);
	synchronize_srcu(&other);
	srcu_deinit(&other);
	_exit(0);
}

/* A fork while another thread changes the list of domains: the child's lock is free. */
static void forks(void)
{
	pthread_t thread;

	if (TEST_SANITIZED) /* a sanitizer's own threads and locks do not survive a fork */
		return;
	domain_init();
	atomic_store(&relay_stop, 0);
	start(&thread, hold_until_stopped, NULL);
	forking = true;
	for (int i = 0; i < 100; i++) {
		pid_t child = fork();
		int status;

		if (!child) {
			alarm(30);
			in_child();
		}
		CHECK(child > 0);
		CHECK_EQ(waitpid(child, &status, 0), child);
		CHECK_EQ(status, 0);
	}
	forking = false;
	atomic_store(&relay_stop, 1);
	join(thread);
	domain_deinit();
}

/* In the child, sections of other threads end, those in the shared record too; the forking thread's own section goes
 * on. */
static void sections_end_in_child(void)
{
	struct guest guest[2] = { 0 };
	struct srcu_section own;
	pid_t child;
	int status;

	if (TEST_SANITIZED)
		return;
	domain_init();
	for (int i = 0; i < 2; i++)
		stays(&guest[i], i);
	own = srcu_read_lock(&domain);
	child = fork();
	if (!child) {
		let_stall_fail("a child");
		synchronize_srcu_others(&domain, own.reader);
		CHECK_EQ(own.reader->depth, 1);
		CHECK_EQ(own.reader->lock[own.bank] - own.reader->unlock[own.bank], 1);
		srcu_read_unlock(&domain, own);
		synchronize_srcu(&domain);
		_exit(0);
	}
	CHECK(child > 0);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	srcu_read_unlock(&domain, own);
	for (struct srcu_reader *r = atomic_load(&domain.readers); r; r = r->next)
		CHECK_EQ(r->lock[0] - r->unlock[0], r != own.reader); /* they are open in the parent */
	srcu_end_sections(&domain);
	for (int i = 0; i < 2; i++) {
		atomic_store(&guest[i].inside, 2);
		join(guest[i].thread);
	}
	domain_deinit();
	sections += 3;
}

/* ---- stress ---- */

#define READERS 3

/* The protected object.  Its variables are ordinary: after the grace period they belong to the writer. */
struct thing {
	uint64_t value;
	uint64_t complement;
};

static _Atomic(struct thing *) current;
static _Atomic uint32_t writer_done;

static void check_thing(const struct thing *thing)
{
	CHECK_EQ(thing->complement, ~thing->value);
}

static uint64_t look(struct rng *rng)
{
	struct srcu_section section = srcu_read_lock(&domain);
	const struct thing *thing = atomic_load_explicit(&current, memory_order_seq_cst); /* A */
	uint64_t how = rng_below(rng, 64), value = thing->value;

	check_thing(thing);
	if (how == 0)
		sched_yield();
	if (how < 8) {
		struct srcu_section inner = srcu_read_lock(&domain);

		/* A nested section sees at least the state of its outermost one. */
		CHECK(atomic_load_explicit(&current, memory_order_seq_cst)->value >= value);
		srcu_read_unlock(&domain, inner);
	}
	for (uint64_t spin = 0; spin < how; spin++)
		check_thing(thing);
	CHECK_EQ(thing->value, value);
	srcu_read_unlock(&domain, section);
	return value;
}

static void *look_much(void *argument)
{
	struct rng rng = rng_stream((uint64_t)(uintptr_t)argument);
	uint64_t last = 0, value;
	uintptr_t looks = 0;

	for (; !atomic_load_explicit(&writer_done, memory_order_relaxed); looks++) {
		value = look(&rng);
		if (!looks)
			atomic_fetch_add(&arrived, 1);
		CHECK(value >= last); /* the value never decreases */
		last = value;
	}
	return (void *)looks;
}

static struct thing *new_thing(uint64_t value)
{
	struct thing *thing = malloc(sizeof(*thing));

	CHECK(thing);
	*thing = (struct thing){ value, ~value };
	return thing;
}

static void change_much(uint64_t times)
{
	for (uint64_t i = 1; i <= times; i++) {
		struct thing *old = atomic_load(&current);

		atomic_store_explicit(&current, new_thing(i), memory_order_seq_cst); /* A */
		synchronize_srcu(&domain);
		old->value = old->complement = 0xDEAD;
		free(old);
	}
}

static void stress(bool shared)
{
	pthread_t thread[READERS];
	void *looks;

	domain_init();
	if (shared)
		memory_fail(&memory, 1, true);
	atomic_store(&writer_done, 0);
	atomic_store(&arrived, 0);
	atomic_store(&current, new_thing(0));
	for (uintptr_t i = 0; i < READERS; i++)
		start(&thread[i], look_much, (void *)(i + 1));
	wait_for(&arrived, READERS);
	change_much(test_times(shared ? 3000 : 6000));
	atomic_store(&writer_done, 1);
	for (int i = 0; i < READERS; i++) {
		CHECK_EQ(pthread_join(thread[i], &looks), 0);
		sections += (uintptr_t)looks;
	}
	CHECK_EQ(nr_records(&domain), shared ? 1 : 1 + READERS);
	printf("  %" PRIu64 " changes with %d readers%s, %" PRIu64 " of them waited\n", atomic_load(&domain.periods),
	       READERS, shared ? " in the shared record" : "", atomic_load(&domain.waits));
	free(atomic_load(&current));
	domain_deinit();
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	pthread_atfork(just_before_fork, NULL, NULL);
	nesting();
	no_readers();
	many_domains();
	for (unsigned guests = 1; guests <= 4; guests++) {
		waits_for(guests, false);
		waits_for(guests, true);
	}
	stream_of_readers(false);
	stream_of_readers(true);
	nested_across_a_flip();
	dead_threads();
	awaited_thread_ends();
	records_are_reused();
	sections_of_destructors();
	domains_end_first();
	two_in_the_shared_record();
	memory_comes_back();
	ends_with_open_sections();
	counts(false);
	counts(true);
	forks();
	sections_end_in_child();
	stress(false);
	stress(true);
	return test_done("srcu", sections, "sections");
}
