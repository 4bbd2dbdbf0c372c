/* SPDX-License-Identifier: MIT */
/*
 * test_srcu_schedules.c - read sections and grace periods in every order of their steps.
 *
 * srcu.c is compiled into this program with each of its atomic operations, locks and sleeps turned into a place where
 * another thread may go on.  The threads are coroutines of one real thread.  A list of choices decides a run, so the
 * test can try all lists, depth first: every schedule with at most `preemptions` switches away from a thread that could
 * have gone on.  Faults of this kind need two or three such switches; a stress test meets them by luck only.
 *
 * The steps are sequentially consistent: the test proves the algorithm, not the memory orders that srcu.h uses.
 */
#include "test.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <ucontext.h>

#include "memory.h"
#include "thread.h"

static void step(void);       /* another thread may go on here */
static void store_step(void); /* ... and here, after a store, in some scenarios */
static void wait_step(void);  /* ... and should: this thread waits for something */
static void nap(const _Atomic uint32_t *word, uint32_t value);
static void wake_all(const _Atomic uint32_t *word);
static int yields;
#define YIELDS yields
static uint64_t clock_ns; /* advances with each read */
static void mutual_lock(pthread_mutex_t *mutex);
static void mutual_unlock(pthread_mutex_t *mutex);

#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_fetch_add_explicit
#undef thread_wait
#undef thread_wake_all
#undef thread_clock_ns
#ifdef __clang__
#define atomic_load_explicit(at, order) (step(), __c11_atomic_load(at, order))
#define atomic_store_explicit(at, value, order) (step(), __c11_atomic_store(at, value, order), store_step())
#define atomic_fetch_add_explicit(at, n, order) (step(), __c11_atomic_fetch_add(at, n, order))
#else
#define atomic_load_explicit(at, order) (step(), __atomic_load_n(at, order))
#define atomic_store_explicit(at, value, order) (step(), __atomic_store_n(at, value, order), store_step())
#define atomic_fetch_add_explicit(at, n, order) (step(), __atomic_fetch_add(at, n, order))
#endif
#define sched_yield() wait_step()
#define thread_wait(word, value, us) nap(word, value)
#define thread_wake_all(word) wake_all(word)
#define thread_clock_ns() (++clock_ns)
#define pthread_mutex_lock(mutex) mutual_lock(mutex)
#define pthread_mutex_unlock(mutex) mutual_unlock(mutex)

#include "srcu.c"

/* ---- coroutines ---- */

#define FIBERS_MAX 3
#define STACK_SIZE 65536
#define STEPS_MAX 5000 /* a run has some hundred; more than this is a hang */

struct fiber {
	ucontext_t context;
	void (*run)(void);
	bool done;
	bool waits; /* no other thread has made a step since it began to wait */
	const _Atomic uint32_t *asleep_on; /* until a thread wakes it; NULL: it is awake */
	struct thread self;
	struct srcu_cache cache[SRCU_CACHED];
	_Alignas(64) char stack[STACK_SIZE];
};

static struct fiber fibers[FIBERS_MAX];
static unsigned nr_fibers, running;
static ucontext_t outside;
static bool exploring, after_stores, naps_end_by_wakeups;
static unsigned steps, preemptions, preemptions_max;
static uint64_t operations, locks; /* of all threads, in all runs */

/* ---- choices ---- */

struct choice {
	uint8_t nr, taken;
};

static struct choice path[STEPS_MAX];
static unsigned path_length, path_at;

static unsigned choose(unsigned nr)
{
	if (nr < 2)
		return 0;
	if (path_at == path_length) {
		CHECK(path_length < STEPS_MAX);
		path[path_length++] = (struct choice){ .nr = (uint8_t)nr };
	}
	return path[path_at++].taken;
}

/* The next list of choices in order; false: there is none. */
static bool next_path(void)
{
	while (path_length && path[path_length - 1].taken + 1 == path[path_length - 1].nr)
		path_length--;
	if (!path_length)
		return false;
	path[path_length - 1].taken++;
	return true;
}

/* ---- switches ---- */

static void leave_identity(struct fiber *fiber)
{
	fiber->self = thread_self;
	memcpy(fiber->cache, srcu_cache, sizeof(srcu_cache));
}

static void enter_identity(struct fiber *fiber)
{
	thread_self = fiber->self;
	memcpy(srcu_cache, fiber->cache, sizeof(srcu_cache));
}

static void switch_to(unsigned next)
{
	unsigned from = running;

	if (next == from)
		return;
	leave_identity(&fibers[from]);
	running = next;
	enter_identity(&fibers[next]);
	CHECK_EQ(swapcontext(&fibers[from].context, &fibers[next].context), 0);
}

/* The threads that could go on, in turn from the running one. */
static unsigned runnable_others(unsigned *list)
{
	unsigned nr = 0;

	for (unsigned i = 1; i < nr_fibers; i++) {
		unsigned fiber = (running + i) % nr_fibers;

		if (!fibers[fiber].done && !fibers[fiber].waits && !fibers[fiber].asleep_on)
			list[nr++] = fiber;
	}
	return nr;
}

static void count_step(void)
{
	CHECK(++steps < STEPS_MAX);
}

/* The running thread goes on: the others may find their condition met. */
static void wake_waiting(void)
{
	for (unsigned i = 0; i < nr_fibers; i++)
		fibers[i].waits = false;
}

static void step(void)
{
	unsigned list[FIBERS_MAX], nr, taken;

	operations++;
	if (!exploring)
		return;
	count_step();
	nr = preemptions < preemptions_max ? runnable_others(list) : 0;
	taken = choose(1 + nr);
	if (taken) {
		preemptions++;
		switch_to(list[taken - 1]);
	}
	wake_waiting();
}

/* A switch to the next thread in turn is not a preemption. */
static void wait_step(void)
{
	unsigned list[FIBERS_MAX], nr, taken;

	if (!exploring)
		return;
	count_step();
	fibers[running].waits = true;
	nr = runnable_others(list);
	taken = choose(preemptions < preemptions_max || !nr ? nr : 1);
	preemptions += taken > 0;
	if (nr)
		switch_to(list[taken]);
	fibers[running].waits = false;
}

static void store_step(void)
{
	if (after_stores)
		step();
}

/* Another thread goes on until one wakes this thread.  If no other thread can go on, the wake-up was lost, and only the
 * end of the nap would wake the writer. */
static void sleep_on(const _Atomic uint32_t *word)
{
	unsigned list[FIBERS_MAX], nr, taken;

	fibers[running].asleep_on = word;
	while (fibers[running].asleep_on) {
		count_step();
		wake_waiting();
		nr = runnable_others(list);
		CHECK(nr);
		taken = choose(preemptions < preemptions_max ? nr : 1);
		preemptions += taken > 0;
		switch_to(list[taken]);
	}
}

/* As a futex: compares and falls asleep in one step, and other threads may go on before. */
static void nap(const _Atomic uint32_t *word, uint32_t value)
{
	if (!naps_end_by_wakeups) {
		wait_step();
		return;
	}
	step();
	if (exploring && *word == value)
		sleep_on(word);
}

static void wake_all(const _Atomic uint32_t *word)
{
	step();
	for (unsigned i = 0; i < nr_fibers; i++)
		if (fibers[i].asleep_on == word)
			fibers[i].asleep_on = NULL;
}

static bool locked;

static void mutual_lock(pthread_mutex_t *mutex)
{
	(void)mutex;
	locks++;
	step();
	while (locked)
		wait_step();
	locked = true;
}

static void mutual_unlock(pthread_mutex_t *mutex)
{
	(void)mutex;
	locked = false;
}

/* The thread has ended: any other may be next. */
static void end_fiber(void)
{
	unsigned list[FIBERS_MAX], nr;

	fibers[running].done = true;
	wake_waiting();
	nr = runnable_others(list);
	if (nr)
		switch_to(list[choose(nr)]);
	setcontext(&outside);
}

static void fiber_main(void)
{
	fibers[running].run();
	end_fiber();
}

/* ---- the threads ---- */

#define UPDATES_MAX 3

static struct srcu domain;
static struct memory memory;
static struct {
	bool dead;
} thing[UPDATES_MAX + 1];
static unsigned current, updates;

static void look(void)
{
	unsigned seen;

	step();
	seen = current;
	step();
	CHECK(!thing[seen].dead);
	step();
	CHECK(!thing[seen].dead);
}

static void read_once(void)
{
	struct srcu_section section = srcu_read_lock(&domain);

	look();
	srcu_read_unlock(&domain, section);
}

static void read_twice(void)
{
	read_once();
	read_once();
}

static void read_nested(void)
{
	struct srcu_section outer = srcu_read_lock(&domain);
	unsigned seen = current;

	read_once();
	CHECK(!thing[seen].dead);
	look();
	srcu_read_unlock(&domain, outer);
}

/* The thread ends inside sections; its record is free for the next thread. */
static void die_inside(void)
{
	srcu_read_lock(&domain);
	srcu_read_lock(&domain);
	look();
	take_back_all((void *)(uintptr_t)thread_self.number);
	thread_self.sections = 0;
}

static void read_and_end(void)
{
	read_once();
	take_back_all((void *)(uintptr_t)thread_self.number);
}

/* The report of a waiting writer reads, in the writer's own record. */
static unsigned reports;

static void read_in_report(void *opaque, uint32_t os_id, uint64_t waited_ns, uint32_t report)
{
	(void)os_id;
	CHECK(opaque == &reports && waited_ns && report);
	reports++;
	read_once();
}

static void write_all(void)
{
	for (unsigned i = 0; i < updates; i++) {
		step();
		current = i + 1;
		synchronize_srcu(&domain);
		step();
		thing[i].dead = true;
	}
}

/* ---- scenarios ---- */

enum records {
	OWN,   /* the readers have their records before they start */
	NEW,   /* the readers get their records in their first section */
	MIXED, /* only the second reader does; another thread may also go on directly after a store */
	SHARED /* the readers get no records: there is no memory */
};

enum writer {
	YIELDING, /* as in the engine: a reader leaves before the writer would sleep */
	SLEEPING, /* the writer sleeps immediately */
	WOKEN,    /* ... and only a wake-up ends its sleep */
	REPORTING /* it sleeps immediately and reports that it waits */
};

struct scenario {
	const char *name;
	enum records records;
	unsigned preemptions;
	unsigned updates;
	void (*reader[FIBERS_MAX - 1])(void);
	enum writer writer;
};

static const struct scenario scenarios[] = {
	{ "one reader", OWN, 4, 2, { read_twice }, YIELDING },
	{ "one reader, three changes", OWN, 3, 3, { read_twice }, YIELDING },
	{ "nested sections", OWN, 4, 2, { read_nested }, YIELDING },
	{ "two readers", OWN, 3, 2, { read_once, read_once }, YIELDING },
	{ "two readers, twice", OWN, 2, 2, { read_twice, read_twice }, YIELDING },
	{ "a newcomer", NEW, 4, 2, { read_once }, YIELDING },
	{ "two newcomers", NEW, 3, 1, { read_once, read_once }, YIELDING },
	{ "a newcomer takes a record that was given back", NEW, 3, 1, { read_and_end, read_once }, YIELDING },
	{ "a thread dies inside", NEW, 2, 2, { die_inside, read_once }, YIELDING },
	{ "two in the shared record", SHARED, 3, 1, { read_once, read_once }, YIELDING },
	{ "two in the shared record, twice", SHARED, 2, 2, { read_twice, read_twice }, YIELDING },
	{ "nested in the shared record", SHARED, 2, 2, { read_nested, read_once }, YIELDING },
	{ "the writer sleeps immediately", OWN, 4, 2, { read_twice }, SLEEPING },
	{ "the writer sleeps immediately, two readers", OWN, 2, 2, { read_once, read_twice }, SLEEPING },
	{ "the writer sleeps immediately, in the shared record", SHARED, 2, 2, { read_twice, read_once }, SLEEPING },
	{ "a wake-up before the nap", OWN, 3, 2, { read_twice }, WOKEN },
	{ "a wake-up before the nap, two readers", OWN, 2, 1, { read_once, read_twice }, WOKEN },
	{ "a wake-up before the nap, in the shared record", SHARED, 2, 1, { read_once, read_once }, WOKEN },
	{ "a new record while the writer scans the list", MIXED, 2, 1, { read_once, read_once }, YIELDING },
	{ "a report that reads", OWN, 3, 2, { read_twice }, REPORTING },
	{ "a report that reads, of newcomers", NEW, 2, 2, { read_nested, read_once }, REPORTING },
	{ "a report that reads, in the shared record", SHARED, 2, 2, { read_twice, read_once }, REPORTING },
};

static void prepare_fiber(unsigned i, void (*run)(void), bool newcomer)
{
	struct fiber *fiber = &fibers[i];

	fiber->run = run;
	fiber->done = fiber->waits = false;
	fiber->asleep_on = NULL;
	fiber->self = (struct thread){ 0 };
	memset(fiber->cache, 0, sizeof(fiber->cache));
	enter_identity(fiber);
	if (!newcomer)
		srcu_find_reader(&domain);
	leave_identity(fiber);
	CHECK_EQ(getcontext(&fiber->context), 0);
	fiber->context.uc_stack.ss_sp = fiber->stack;
	fiber->context.uc_stack.ss_size = sizeof(fiber->stack);
	fiber->context.uc_link = NULL;
	makecontext(&fiber->context, fiber_main, 0);
}

static bool has_record(const struct scenario *scenario, unsigned reader)
{
	return scenario->records == OWN || (scenario->records == MIXED && reader == 0);
}

static void prepare(const struct scenario *scenario)
{
	memory_init(&memory);
	CHECK_EQ(srcu_init(&domain, &memory), 0);
	memory_fail(&memory, scenario->records == SHARED, true);
	yields = scenario->writer == YIELDING ? 8 : 0;
	naps_end_by_wakeups = scenario->writer == WOKEN;
	after_stores = scenario->records == MIXED;
	if (scenario->writer == REPORTING)
		domain.stall = (struct srcu_stall){ 1, read_in_report, &reports };
	clock_ns = 0;
	memset(thing, 0, sizeof(thing));
	current = steps = preemptions = path_at = 0;
	updates = scenario->updates;
	preemptions_max = scenario->preemptions - (test_slow && scenario->preemptions > 2);
	prepare_fiber(0, write_all, true);
	for (nr_fibers = 1; nr_fibers < FIBERS_MAX && scenario->reader[nr_fibers - 1]; nr_fibers++)
		prepare_fiber(nr_fibers, scenario->reader[nr_fibers - 1], !has_record(scenario, nr_fibers - 1));
}

static void run(void)
{
	exploring = true;
	running = choose(nr_fibers);
	enter_identity(&fibers[running]);
	CHECK_EQ(swapcontext(&outside, &fibers[running].context), 0);
	exploring = false;
}

static void finish(void)
{
	for (unsigned i = 0; i < nr_fibers; i++)
		CHECK(fibers[i].done);
	for (struct srcu_reader *r = domain.readers; r; r = r->next) {
		CHECK_EQ(r->lock[0], r->unlock[0]);
		CHECK_EQ(r->lock[1], r->unlock[1]);
		CHECK_EQ(r->depth, 0);
	}
	CHECK_EQ(domain.periods, updates);
	CHECK_EQ(domain.waiting, 0);
	srcu_deinit(&domain);
	CHECK_EQ(memory.blocks, 0);
}

static uint64_t explore(const struct scenario *scenario)
{
	uint64_t schedules = 0;

	printf("  %s: ", scenario->name);
	fflush(stdout);
	path_length = reports = 0;
	do {
		prepare(scenario);
		run();
		finish();
		schedules++;
	} while (next_path());
	CHECK_EQ(scenario->writer == REPORTING, reports > 0);
	printf("%" PRIu64 " schedules\n", schedules);
	return schedules;
}

/* ---- many domains, many threads ---- */

/* Two domains whose numbers collide in a thread's cache. */
static struct srcu colliding[SRCU_CACHED + 1];
static struct srcu *const pair[2] = { &colliding[0], &colliding[SRCU_CACHED] };

static void new_thread(void)
{
	thread_self = (struct thread){ 0 };
	memset(srcu_cache, 0, sizeof(srcu_cache));
}

static struct srcu_reader *records[2];

/* The operations of one section in each domain.  Each uses the thread's own record and takes no lock. */
static uint64_t sections_cost(void)
{
	uint64_t before = operations, locks_before = locks;

	for (int i = 0; i < 2; i++) {
		struct srcu_section section = srcu_read_lock(pair[i]);

		CHECK_EQ(section.reader, records[i]);
		srcu_read_unlock(pair[i], section);
	}
	CHECK_EQ(locks, locks_before);
	return operations - before;
}

static void idle_threads(unsigned nr)
{
	struct thread self = thread_self;

	for (unsigned i = 0; i < nr; i++) {
		new_thread();
		for (int d = 0; d < 4; d++) { /* the second time it finds its record */
			struct srcu_reader *r = srcu_find_reader(pair[d % 2]);

			CHECK(r != records[d % 2] && r->owner == thread_self.number);
		}
	}
	new_thread();
	thread_self = self;
}

static void records_are_found_without_a_lock(void)
{
	uint64_t cost;

	memory_init(&memory);
	for (int i = 0; i <= SRCU_CACHED; i++)
		CHECK_EQ(srcu_init(&colliding[i], &memory), 0);
	new_thread();
	for (int d = 0; d < 2; d++)
		records[d] = srcu_find_reader(pair[d]);
	sections_cost(); /* the first call finds the records by a search */
	cost = sections_cost();
	idle_threads(SRCU_RECENT - 1);
	CHECK_EQ(sections_cost(), cost); /* for any number of threads with unused records */
	idle_threads(1);        /* its number collides with this thread's: one search, and then no more */
	CHECK(sections_cost() > cost);
	CHECK_EQ(sections_cost(), cost);
	new_thread();
	for (int i = 0; i <= SRCU_CACHED; i++)
		srcu_deinit(&colliding[i]);
	CHECK_EQ(memory.blocks, 0);
}

int main(int argc, char **argv)
{
	uint64_t schedules = 0;

	test_init(argc, argv, 120);
	if (TEST_THREAD_SANITIZED)
		puts("  no schedules: this sanitizer cannot follow coroutines");
	for (size_t i = 0; !TEST_THREAD_SANITIZED && i < ARRAY_SIZE(scenarios); i++)
		schedules += explore(&scenarios[i]);
	records_are_found_without_a_lock();
	return test_done("srcu_schedules", schedules, "schedules");
}
