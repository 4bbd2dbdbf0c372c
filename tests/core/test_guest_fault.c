/* SPDX-License-Identifier: MIT */
/*
 * test_guest_fault.c - accesses of memory that is gone: truncated, unmapped or protected, at every byte of a copy.
 *
 * A fault outside of the guest memory must still reach the handler that was there before, or end the process.  These
 * cases run in child processes, because each of them needs a process in which no handler is installed yet.
 */
#include "test.h"

#include "guest_bytes.h"
#include "guest_fault.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>

#define PAGE ((size_t)4096)
#define PAGES 3

/* ---- memory with pages that are gone ---- */

enum loss { TRUNCATED, UNMAPPED, NO_ACCESS, NO_WRITE, LOSSES };

/* Three pages.  Those from `lost` on are gone; or, if `only`, the page `lost` alone (not for TRUNCATED). */
struct memory3 {
	unsigned char *at;
	int fd;
};

static unsigned char expected(size_t offset)
{
	return (unsigned char)(offset * 7 + offset / PAGE + 1);
}

static unsigned char content[PAGES * PAGE]; /* the bytes of new memory; constant once main() has begun */

static void content_init(void)
{
	for (size_t i = 0; i < sizeof(content); i++)
		content[i] = expected(i);
}

static struct memory3 memory_new(void)
{
	struct memory3 m = { .fd = memfd_create("test", 0) };

	CHECK(m.fd >= 0);
	CHECK_EQ(ftruncate(m.fd, PAGES * PAGE), 0);
	m.at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, m.fd, 0);
	CHECK(m.at != MAP_FAILED);
	memcpy(m.at, content, sizeof(content));
	return m;
}

/* A sanitizer's own threads may map memory into a hole at any time, and memory_end() would unmap it.  So its builds
 * have no holes. */
static void lose(const struct memory3 *m, enum loss loss, size_t lost, bool only)
{
	size_t size = only ? PAGE : (PAGES - lost) * PAGE;
	int protection = loss == NO_WRITE ? PROT_READ : PROT_NONE;

	if (loss == TRUNCATED)
		CHECK_EQ(ftruncate(m->fd, (off_t)(lost * PAGE)), 0);
	else if (loss == UNMAPPED && !TEST_SANITIZED)
		CHECK_EQ(munmap(m->at + lost * PAGE, size), 0);
	else
		CHECK_EQ(mprotect(m->at + lost * PAGE, size, protection), 0);
}

static void memory_end(const struct memory3 *m)
{
	munmap(m->at, PAGES * PAGE);
	close(m->fd);
}

/* ---- what a copy leaves ---- */

static uint64_t accesses;

/* A read of [from, end) with the page `lost` gone: the bytes before this page are there. */
static void check_read(const struct memory3 *m, size_t from, size_t end, size_t lost)
{
	static unsigned char out[PAGES * PAGE];
	size_t whole = end <= lost * PAGE ? end - from : from < lost * PAGE ? lost * PAGE - from : 0;

	CHECK_EQ(guest_fault_read(out, m->at + from, end - from), whole);
	CHECK(!memcmp(out, content + from, whole));
	accesses++;
}

/* Reads the memory by another mapping, so that lost pages of the first one do not matter. */
static void check_file(const struct memory3 *m, size_t from, size_t whole, unsigned char byte, size_t kept)
{
	static unsigned char file[PAGES * PAGE], want[PAGES * PAGE];

	memcpy(want, content, sizeof(want));
	memset(want + from, byte, whole);
	CHECK_EQ(pread(m->fd, file, kept, 0), (ssize_t)kept);
	CHECK(!memcmp(file, want, kept));
}

/* A write changes the bytes before the lost page, and no byte behind. */
static void check_write(enum loss loss, size_t from, size_t end, size_t lost, bool fill)
{
	static unsigned char data[PAGES * PAGE];
	struct memory3 m = memory_new();
	size_t whole = from < lost * PAGE ? lost * PAGE - from : 0;

	memset(data, 0xEE, sizeof(data));
	lose(&m, loss, lost, loss != TRUNCATED);
	CHECK_EQ(fill ? guest_fault_fill(m.at + from, 0xEE, end - from) :
			guest_fault_write(m.at + from, data, end - from),
		 whole);
	check_file(&m, from, whole, 0xEE, loss == TRUNCATED ? lost * PAGE : PAGES * PAGE);
	memory_end(&m);
	accesses++;
}

/* Every first byte around the boundary of the lost page, with a third of the ends, and every kind of loss. */
static void test_every_byte(void)
{
	for (enum loss loss = TRUNCATED; loss < LOSSES; loss++)
		for (size_t lost = 0; lost < PAGES; lost++) {
			struct memory3 m = memory_new();

			lose(&m, loss, lost, loss != TRUNCATED);
			for (size_t from = 0; from <= lost * PAGE && loss != NO_WRITE;
			     from += from % PAGE < PAGE - 40 ? 37 : 1)
				for (size_t end = lost * PAGE + 1 + from % 3; end < lost * PAGE + 20; end += 3)
					check_read(&m, from, end, lost);
			if (loss == NO_WRITE)
				check_read(&m, 0, PAGES * PAGE, PAGES);
			memory_end(&m);
		}
}

static void test_writes(void)
{
	for (enum loss loss = TRUNCATED; loss < LOSSES; loss++)
		for (size_t lost = 0; lost < PAGES; lost++)
			for (size_t before = 0; before < 9; before++) {
				size_t from = lost * PAGE > before ? lost * PAGE - before : 0;

				check_write(loss, from, lost * PAGE + 1 + before % 2, lost, before % 2);
				check_write(loss, 0, PAGES * PAGE, lost, before % 2);
			}
}

/* A long read is tried as a whole first. */
static void test_long_reads(void)
{
	enum { LONG = 20 };
	static unsigned char out[LONG * PAGE];
	int fd = memfd_create("long", 0);
	unsigned char *at;

	CHECK_EQ(ftruncate(fd, LONG * PAGE), 0);
	at = mmap(NULL, LONG * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(at != MAP_FAILED);
	for (size_t i = 0; i < LONG * PAGE; i++)
		at[i] = expected(i);
	for (size_t lost = LONG; lost > 0; lost--) {
		CHECK_EQ(ftruncate(fd, (off_t)(lost * PAGE)), 0);
		for (size_t from = 0; from < 3; from++) {
			memset(out, 0xEE, sizeof(out));
			CHECK_EQ(guest_fault_read(out, at + from, LONG * PAGE - 5),
				 lost * PAGE - (lost < LONG ? from : 5));
			CHECK(!memcmp(out, at + from, lost * PAGE - (lost < LONG ? from : 5)));
		}
	}
	munmap(at, LONG * PAGE);
	close(fd);
}

static void test_whole_accesses(void)
{
	struct memory3 m = memory_new();
	unsigned char out[PAGE];

	CHECK_EQ(guest_fault_read(out, m.at + 5, 0), 0);
	CHECK_EQ(guest_fault_read(out, m.at + 5, PAGE), PAGE);
	for (size_t i = 0; i < PAGE; i++)
		CHECK_EQ(out[i], expected(5 + i));
	CHECK_EQ(guest_fault_write(m.at + PAGE - 3, "abcdef", 6), 6);
	CHECK(!memcmp(m.at + PAGE - 3, "abcdef", 6));
	CHECK_EQ(guest_fault_fill(m.at + PAGE - 3, 'x', 6), 6);
	CHECK(!memcmp(m.at + PAGE - 4, (unsigned char[]){ expected(PAGE - 4), 'x', 'x' }, 3));
	memory_end(&m);
}

/* ---- moves ---- */

/* Moves n bytes of the first two pages; the reference is memmove() on a copy. */
static void check_move(size_t to, size_t from, size_t n)
{
	static unsigned char want[2 * PAGE];
	struct memory3 m = memory_new();
	bool to_gone;

	memcpy(want, m.at, sizeof(want));
	memmove(want + to, want + from, n);
	CHECK_EQ(guest_fault_move(m.at + to, m.at + from, n, to > from, &to_gone), n);
	CHECK(!memcmp(m.at, want, sizeof(want)));
	memory_end(&m);
	accesses++;
}

static void test_moves(void)
{
	for (size_t shift = 0; shift < 300; shift += 7)
		for (size_t n = 0; n < 2 * PAGE - shift; n += 1 + n / 3) {
			check_move(0, shift, n);
			check_move(shift, 0, n);
			check_move(2 * PAGE - n, 2 * PAGE - n - shift, n);
		}
}

/* The source comes to the lost page first, although the destination will have it too. */
static void test_lost_overlap(void)
{
	struct memory3 m = memory_new();
	bool to_gone = true;

	lose(&m, UNMAPPED, 2, true);
	CHECK_EQ(guest_fault_move(m.at, m.at + 100, 2 * PAGE + 100, false, &to_gone), 2 * PAGE - 100);
	CHECK(!to_gone);
	CHECK_EQ(guest_fault_move(m.at + 200, m.at, 2 * PAGE - 100, true, &to_gone), 0);
	CHECK(to_gone);
	memory_end(&m);
}

/* The first page is moved to the second, or the reverse, with one of them gone at the boundary. */
static void test_lost_moves(void)
{
	for (int backward = 0; backward < 2; backward++)
		for (int to_is_lost = 0; to_is_lost < 2; to_is_lost++) {
			struct memory3 m = memory_new(), other = memory_new();
			struct memory3 *to = to_is_lost ? &m : &other, *from = to_is_lost ? &other : &m;
			bool to_gone = !to_is_lost;
			size_t lost = backward ? 0 : 1, at = 100;

			lose(&m, UNMAPPED, lost, true);
			CHECK_EQ(guest_fault_move(to->at + at, from->at + at + 8, PAGE, backward, &to_gone),
				 backward ? at + (from == &m ? 8 : 0) : PAGE - at - (from == &m ? 8 : 0));
			CHECK_EQ(to_gone, to_is_lost);
			memory_end(&m);
			memory_end(&other);
		}
}

/* ---- values ---- */

static void test_values(void)
{
	struct memory3 m = memory_new();
	uint64_t value, mask;

	for (size_t size = 1; size <= 8; size *= 2)
		for (size_t offset = 0; offset < 16; offset++) {
			unsigned char behind = m.at[offset + size];

			mask = size == 8 ? ~(uint64_t)0 : ((uint64_t)1 << 8 * size) - 1;
			CHECK(guest_fault_store(m.at + offset, size, 0x8877665544332211u));
			CHECK(guest_fault_load(m.at + offset, size, &value));
			CHECK_EQ(value, 0x8877665544332211u & mask);
			for (size_t i = 0; i < size; i++)
				CHECK_EQ(m.at[offset + i], 0x11 * (i + 1));
			CHECK_EQ(m.at[offset + size], behind);
		}
	memory_end(&m);
}

static void test_lost_values(void)
{
	for (enum loss loss = TRUNCATED; loss <= NO_ACCESS; loss++) {
		struct memory3 m = memory_new();

		lose(&m, loss, 1, false);
		for (size_t size = 1; size <= 8; size *= 2)
			for (size_t offset = 0; offset < 16; offset++) {
				uint64_t value = 77;

				CHECK(!guest_fault_load(m.at + PAGE + offset, size, &value));
				CHECK_EQ(value, 77);
				CHECK(!guest_fault_store(m.at + PAGE + offset, size, 0));
				CHECK(guest_fault_load(m.at + PAGE - 16 + offset % (17 - size), size, &value));
			}
		memory_end(&m);
	}
}

/* An address that no pointer of the CPU can have gives a fault without an address. */
static void test_address_beyond_the_cpu(void)
{
	char *host = (char *)((uintptr_t)1 << 62);
	uint64_t value;

#if defined(__x86_64__) && !TEST_SANITIZED
	CHECK(!guest_fault_load(host, 8, &value));
	CHECK_EQ(guest_fault_read(&value, host, 8), 0);
#endif
	(void)host;
	(void)value;
}

/* The same for each side of a move, and for a range whose end is beyond. */
static void test_moves_beyond_the_cpu(void)
{
#if defined(__x86_64__) && !TEST_SANITIZED
	char *beyond = (char *)((uintptr_t)1 << 62);
	struct memory3 m = memory_new();
	bool to_gone = true;

	for (int backward = 0; backward < 2; backward++) {
		CHECK_EQ(guest_fault_move(m.at, beyond, PAGE, backward, &to_gone), 0);
		CHECK_EQ(to_gone, false);
		CHECK_EQ(guest_fault_move(beyond, m.at, PAGE, backward, &to_gone), 0);
		CHECK_EQ(to_gone, true);
	}
	memory_end(&m);
#endif
}

#if defined(__x86_64__) && !TEST_SANITIZED
/* The range begins below 2^47 and ends above. */
static void test_ends_beyond_the_cpu(void)
{
	static unsigned char out[16 * PAGE];
	char *host = (char *)(((uintptr_t)1 << 47) - 8 * PAGE);

	/* A long read may begin with its last bytes. */
	for (size_t n = 9 * PAGE; n <= 16 * PAGE; n += 7 * PAGE) {
		CHECK_EQ(guest_fault_read(out, host, n), 0);
		CHECK_EQ(guest_fault_write(host, out, n), 0);
		CHECK_EQ(guest_fault_fill(host, 1, n), 0);
	}
	CHECK_EQ(guest_fault_fill(host + 8 * PAGE - 4, 1, 8), 0);
	CHECK(!guest_fault_store(host + 8 * PAGE - 4, 8, 1)); /* one access on both sides */
}
#else
static void test_ends_beyond_the_cpu(void)
{
}
#endif

/* The memory of a slot whose userspace_addr is 0.  memcpy() refuses this address under UBSan. */
static void test_address_zero(void)
{
#if !TEST_SANITIZED
	struct memory3 m = memory_new();
	const uint64_t hosts[] = { (uint64_t)(uintptr_t)m.at, 0 };
	bool to_gone = true;
	uint64_t values[2];

	CHECK(!guest_fault_load(NULL, 8, values));
	CHECK(!guest_fault_store(NULL, 8, 1));
	CHECK_EQ(guest_fault_read(m.at, NULL, PAGES * PAGE), 0);
	CHECK_EQ(guest_fault_write(NULL, m.at, PAGES * PAGE), 0);
	CHECK_EQ(guest_fault_fill(NULL, 1, PAGE), 0);
	CHECK_EQ(guest_fault_move(m.at, NULL, PAGE, false, &to_gone), 0);
	CHECK(!to_gone);
	CHECK_EQ(guest_fault_move(NULL, m.at, PAGE, false, &to_gone), 0);
	CHECK(to_gone);
	CHECK_EQ(guest_fault_load_many(hosts, 2, values, 8), 1);
	CHECK_EQ(guest_fault_store_many(hosts, 2, values, 8), 1);
	memory_end(&m);
#endif
}

#define MANY 100

static void fill_hosts(const struct memory3 *m, uint64_t *hosts)
{
	for (size_t i = 0; i < MANY; i++)
		hosts[i] = (uint64_t)(uintptr_t)(m->at + i * 53 % (PAGE - 8));
}

static void test_many(void)
{
	struct memory3 m = memory_new();
	uint64_t hosts[MANY], out[2 * MANY + 1], want;

	fill_hosts(&m, hosts);
	lose(&m, UNMAPPED, 1, false);
	CHECK_EQ(guest_fault_load_many(hosts, MANY, (char *)out + 3, 16), MANY);
	for (size_t i = 0; i < MANY; i++) {
		memcpy(&want, (void *)(uintptr_t)hosts[i], 8);
		CHECK(!memcmp((char *)out + 3 + 16 * i, &want, 8));
	}
	for (size_t lost = 0; lost < MANY; lost++) {
		hosts[lost] += PAGE;
		CHECK_EQ(guest_fault_load_many(hosts, MANY, out, 8), lost);
		CHECK_EQ(guest_fault_store_many(hosts, MANY, out, 8), lost);
		hosts[lost] -= PAGE;
	}
	for (size_t i = 0; i < MANY; i++)
		out[MANY - 1 - i] = i * i;
	CHECK_EQ(guest_fault_store_many(hosts, 1, out + MANY - 10, -8), 1);
	memcpy(&want, (void *)(uintptr_t)hosts[0], 8);
	CHECK_EQ(want, 81);
	memory_end(&m);
}

/* ---- threads ---- */

static void *copy_gone(void *context)
{
	const struct memory3 *m = context;
	unsigned char out[PAGE];

	for (uint64_t i = 0, n = test_times(20000); i < n; i++) {
		CHECK_EQ(guest_fault_read(out, m->at + PAGE - 16, 32), 16);
		CHECK_EQ(guest_fault_read(out, m->at, 32), 32);
	}
	return NULL;
}

static void test_threads(void)
{
	struct memory3 m = memory_new();
	pthread_t threads[4];

	lose(&m, UNMAPPED, 1, false);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, copy_gone, &m), 0);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	memory_end(&m);
}

/* A handler of another signal interrupts a copy, and makes one of its own that fails.  The interrupted copy goes on. */
static const struct memory3 *interrupting;
static volatile sig_atomic_t interrupted;

static void copy_in_handler(int signal)
{
	unsigned char out[32];

	(void)signal;
	CHECK_EQ(guest_fault_read(out, interrupting->at + PAGE - 16, 32), 16);
	interrupted++;
}

static void test_copy_inside_a_copy(void)
{
	struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = { 0 };
	struct memory3 m = memory_new();
	size_t size = 1 << 20;
	unsigned char *data = malloc(size), *out = malloc(size);

	CHECK(data && out);
	memset(data, 3, size);
	lose(&m, UNMAPPED, 1, false);
	interrupting = &m;
	signal(SIGVTALRM, copy_in_handler);
	CHECK_EQ(setitimer(ITIMER_VIRTUAL, &often, NULL), 0);
	do
		CHECK_EQ(guest_fault_read(out, data, size), size);
	while (interrupted < 20 && !TEST_THREAD_SANITIZED); /* it defers signals of timers */
	CHECK_EQ(setitimer(ITIMER_VIRTUAL, &never, NULL), 0);
	CHECK(!memcmp(data, out, size));
	free(data);
	free(out);
	memory_end(&m);
}

/* The handler works on an alternate stack, and the thread can use the stack again after a fault. */
static void test_alternate_stack(void)
{
	size_t size = 64 * 1024;
	stack_t stack = { .ss_sp = malloc(size), .ss_size = size }, none = { .ss_flags = SS_DISABLE };
	struct memory3 m = memory_new();

	CHECK(stack.ss_sp);
	lose(&m, UNMAPPED, 1, false);
	CHECK_EQ(sigaltstack(&stack, NULL), 0);
	for (int i = 0; i < 1000; i++)
		check_read(&m, PAGE - 7, PAGE + 7, 1);
	CHECK_EQ(sigaltstack(&none, NULL), 0);
	free(stack.ss_sp);
	memory_end(&m);
}

static void test_mask_stays(void)
{
	struct memory3 m = memory_new();
	sigset_t before, after;

	lose(&m, UNMAPPED, 1, false);
	CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &before), 0);
	check_read(&m, PAGE - 7, PAGE + 7, 1);
	CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &after), 0);
	for (int i = 1; i < 32; i++)
		CHECK_EQ(sigismember(&before, i), sigismember(&after, i));
	memory_end(&m);
}

/* Floating point rounds as before the fault, both in SSE and in the x87. */
static void test_rounding_stays(void)
{
#if defined(__x86_64__)
	const uint32_t up = 0x5F80, nearest = 0x1F80;
	const uint16_t x87_up = 0x0B7F, x87_nearest = 0x037F;
	struct memory3 m = memory_new();
	uint32_t mxcsr;
	uint16_t x87;

	lose(&m, UNMAPPED, 1, false);
	__asm__ volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(up), "m"(x87_up));
	check_read(&m, PAGE - 7, PAGE + 7, 1);
	__asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(x87));
	__asm__ volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(nearest), "m"(x87_nearest));
	CHECK_EQ(mxcsr, up);
	CHECK_EQ(x87, x87_up);
	memory_end(&m);
#endif
}

/* A memory error (BUS_MCEERR_AR) reports the begin of the block that is gone.  A handler in between changes the fault
 * of a truncated page into such an error. */
static struct sigaction real;
static int block_bits, errors;

static void as_memory_error(int signal, siginfo_t *info, void *context)
{
	siginfo_t error = *info;

	error.si_code = BUS_MCEERR_AR;
	error.si_addr = (void *)((uintptr_t)info->si_addr >> block_bits << block_bits);
	error.si_addr_lsb = (short)block_bits;
	errors++;
	real.sa_sigaction(signal, &error, context);
}

static void test_memory_errors(void)
{
	struct sigaction action = { .sa_sigaction = as_memory_error, .sa_flags = SA_SIGINFO | SA_NODEFER };
	unsigned char out[PAGE];
	bool to_gone;

	sigemptyset(&action.sa_mask);
	CHECK_EQ(sigaction(SIGBUS, &action, &real), 0);
	for (block_bits = 12; block_bits <= 21; block_bits += 9) {
		struct memory3 m = memory_new(), other = memory_new();

		lose(&m, TRUNCATED, 1, false);
		check_read(&m, PAGE + 1, PAGE + 100, 1);
		CHECK_EQ(guest_fault_write(m.at + 2 * PAGE + 800, out, 8), 0);
		to_gone = true;
		CHECK_EQ(guest_fault_move(other.at, m.at + PAGE + 8, 100, false, &to_gone), 0);
		CHECK(!to_gone || block_bits > 12); /* a large block may have both sides */
		CHECK_EQ(guest_fault_move(m.at + PAGE + 8, other.at, 100, false, &to_gone), 0);
		CHECK_EQ(to_gone, true);
		to_gone = false;
		CHECK_EQ(guest_fault_move(m.at, other.at, 2 * PAGE, false, &to_gone), PAGE);
		CHECK_EQ(to_gone, true); /* also if the block has the first page, which is complete */
		memory_end(&m);
		memory_end(&other);
	}
	CHECK_EQ(errors, 10);
	CHECK_EQ(sigaction(SIGBUS, &real, NULL), 0);
}

/* ---- other handlers, each in a child process ---- */

#define SEEN 42 /* the exit status of a foreign handler */

static void exit_as_seen(int signal, siginfo_t *info, void *context)
{
	sigset_t mask;

	(void)context;
	CHECK(signal == SIGSEGV && info);
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	_exit(sigismember(&mask, SIGSEGV) && sigismember(&mask, SIGUSR1) ? SEEN : 1);
}

static void exit_as_seen_plain(int signal)
{
	_exit(signal == SIGSEGV ? SEEN : 1);
}

static struct sigaction ours;
static int chained;

/* A well-behaved handler that is installed later: it passes on all signals. */
static void pass_on(int signal, siginfo_t *info, void *context)
{
	chained++;
	ours.sa_sigaction(signal, info, context);
}

static void handle(void (*with_info)(int, siginfo_t *, void *), void (*plain)(int), int flags)
{
	struct sigaction action = { .sa_flags = flags };

	sigemptyset(&action.sa_mask);
	sigaddset(&action.sa_mask, SIGUSR1);
	if (with_info) {
		action.sa_sigaction = with_info;
		action.sa_flags |= SA_SIGINFO;
	} else {
		action.sa_handler = plain;
	}
	CHECK_EQ(sigaction(SIGSEGV, &action, &ours), 0);
}

/* Not a guest fault: the page before the guest memory of the copy is gone, and the copy writes there. */
static void fault_elsewhere(void)
{
	struct memory3 m = memory_new();

	lose(&m, UNMAPPED, 0, true);
	guest_fault_read(m.at + 8, m.at + PAGE, 64);
	_exit(0);
}

static void fault_without_copy(void)
{
	struct memory3 m = memory_new();

	lose(&m, UNMAPPED, 0, true);
	*(volatile unsigned char *)m.at = 1;
	_exit(0);
}

/* The stack pointer of the fault lies below the frame that the copy had, as during a copy. */
static out_of_line void write_below(volatile unsigned char *at)
{
	volatile unsigned char room[768];

	room[0] = 1;
	*at = room[0];
}

/* A copy of this memory has ended.  The handler has a stack of its own, so the frame of the copy stays as it was. */
static void fault_after_copy(void)
{
	static char handlers_stack[64 * 1024];
	stack_t stack = { .ss_sp = handlers_stack, .ss_size = sizeof(handlers_stack) };
	static volatile int returns;
	struct memory3 m = memory_new();
	unsigned char out[64];

	CHECK_EQ(sigaltstack(&stack, NULL), 0);
	lose(&m, UNMAPPED, 0, true);
	CHECK_EQ(guest_fault_read(out, m.at, 64), 0);
	if (++returns > 1)
		_exit(0);
	write_below(m.at);
	_exit(0);
}

#if defined(__x86_64__) && !TEST_SANITIZED
/* Another handler interrupts a copy and touches the guest memory of this copy, which is gone by then. */
static const struct memory3 *touched;
static size_t touched_size;

static void touch_in_handler(int signal)
{
	(void)signal;
	if (mprotect(touched->at, touched_size, PROT_NONE))
		_exit(1);
	(void)*(volatile unsigned char *)touched->at;
	_exit(0);
}

static void fault_inside_a_handler(bool alternate)
{
	static char handlers_stack[64 * 1024];
	stack_t stack = { .ss_sp = handlers_stack, .ss_size = sizeof(handlers_stack) };
	struct itimerval often = { { 0, 200 }, { 0, 200 } };
	struct sigaction action = { .sa_handler = touch_in_handler, .sa_flags = alternate ? SA_ONSTACK : 0 };
	struct memory3 m;
	char *out;

	touched_size = 1 << 20;
	m.at = mmap(NULL, touched_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	out = malloc(touched_size);
	CHECK(m.at != MAP_FAILED && out);
	memset(m.at, 1, touched_size);
	touched = &m;
	CHECK_EQ(sigaltstack(&stack, NULL), 0);
	CHECK_EQ(sigaction(SIGVTALRM, &action, NULL), 0);
	CHECK_EQ(setitimer(ITIMER_VIRTUAL, &often, NULL), 0);
	while (guest_fault_read(out, m.at, touched_size) == touched_size)
		;
	_exit(1); /* the handler was left */
}

static void fault_in_handler(void)
{
	fault_inside_a_handler(false);
}

static void fault_in_handler_with_a_stack(void)
{
	fault_inside_a_handler(true);
}
#endif

/* The signal comes from a process, during no copy. */
static void send_signal(void)
{
	raise(SIGSEGV);
	_exit(0);
}

static void first_foreign(void)
{
	handle(exit_as_seen, NULL, 0);
	guest_fault_prepare();
}

static void first_foreign_plain(void)
{
	handle(NULL, exit_as_seen_plain, 0);
	guest_fault_prepare();
}

static void later_foreign(void)
{
	guest_fault_prepare();
	handle(exit_as_seen, NULL, 0);
}

static void later_chaining(void)
{
	unsigned char out[32];
	struct memory3 m = memory_new();

	guest_fault_prepare();
	handle(pass_on, NULL, SA_NODEFER);
	lose(&m, UNMAPPED, 1, false);
	CHECK_EQ(guest_fault_read(out, m.at + PAGE - 16, 32), 16);
	CHECK_EQ(chained, 1);
}

static void both_foreign(void)
{
	handle(exit_as_seen, NULL, 0);
	later_chaining();
}

static void ignoring(void)
{
	handle(NULL, SIG_IGN, 0);
	guest_fault_prepare();
}

static void prepare(void)
{
	handle(NULL, SIG_DFL, 0);
	guest_fault_prepare();
	guest_fault_prepare();
}

static int status_of(void (*install)(void), void (*fault)(void))
{
	int status;
	pid_t child = fork();

	CHECK(child >= 0);
	if (!child) {
		install();
		fault();
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	return status;
}

static bool seen(int status)
{
	return WIFEXITED(status) && WEXITSTATUS(status) == SEEN;
}

static bool killed(int status)
{
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

static bool passed(int status)
{
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#if defined(__x86_64__) && !TEST_SANITIZED
/* The CPU gives no address for the data, and the guest memory has address 0. */
static void fault_of_the_data(void)
{
	guest_fault_write(NULL, (const void *)((uintptr_t)1 << 62), 8);
}
#endif

/* Must run before this process installs the handler. */
static void test_other_handlers(void)
{
	void (*const faults[])(void) = { fault_elsewhere, fault_without_copy, fault_after_copy, send_signal };

	for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
		CHECK(seen(status_of(first_foreign, faults[i])));
		CHECK(seen(status_of(first_foreign_plain, faults[i])));
		CHECK(seen(status_of(later_foreign, faults[i])));
		CHECK(seen(status_of(both_foreign, faults[i])));
		CHECK(killed(status_of(prepare, faults[i])));
		CHECK(killed(status_of(later_chaining, faults[i])) || TEST_SANITIZED);
	}
#if defined(__x86_64__) && !TEST_SANITIZED
	CHECK(seen(status_of(first_foreign, fault_of_the_data)));
	CHECK(seen(status_of(first_foreign, fault_in_handler)));
	CHECK(seen(status_of(first_foreign, fault_in_handler_with_a_stack)));
	CHECK(killed(status_of(prepare, fault_in_handler)));
#endif
	CHECK(killed(status_of(ignoring, fault_elsewhere)));
	CHECK(passed(status_of(ignoring, send_signal)));
}

/* Everything that copies more than a few bytes. */
static void test_copies(void)
{
	test_every_byte();
	test_writes();
	test_whole_accesses();
	test_long_reads();
	test_moves();
	test_lost_moves();
	test_lost_overlap();
	test_moves_beyond_the_cpu();
	test_ends_beyond_the_cpu();
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	content_init();
	test_other_handlers();
	guest_fault_prepare();
	if (!guest_bytes_has_vectors())
		puts("guest fault: NOT tested: copies by vectors; the CPU has no AVX2");
	for (int vectors = 0; vectors <= (int)guest_bytes_has_vectors(); vectors++) {
		guest_bytes_uses_vectors = vectors;
		test_copies();
	}
	test_values();
	test_lost_values();
	test_address_beyond_the_cpu();
	test_address_zero();
	test_memory_errors();
	test_many();
	test_threads();
	test_copy_inside_a_copy();
	test_alternate_stack();
	test_mask_stays();
	test_rounding_stays();
	return test_done("guest fault", accesses, "copies");
}
