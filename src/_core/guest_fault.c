/* SPDX-License-Identifier: MIT */
/*
 * guest_fault.c - see guest_fault.h for the invariants F1 and F2.
 */
#define _GNU_SOURCE
#include "guest_fault.h"

#include "guest_bytes.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__BYTE_ORDER__)
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values in guest memory have the byte order of the host");
#endif

#define PAGE_BYTES ((size_t)4096)

/* No address of guest memory: a slot ends below it.  Address 0 is one, of a slot whose userspace_addr is 0. */
#define NO_ADDRESS UINTPTR_MAX

/* An access that is under way.  `done` and the ranges change after sigsetjmp(), so they are volatile. */
struct guard {
	struct guard *outer;
	volatile uintptr_t begin[2]; /* the guest memory of the access; the second range is for a move */
	size_t size[2];
	volatile size_t done;
	bool backward;
	uintptr_t gone; /* the address of the fault */
	sigjmp_buf env;
};

/* F1.  The handler may be in a shared object: initial-exec needs no call and no allocation there. */
static _Thread_local struct guard *guest_guard __attribute__((tls_model("initial-exec")));

/* ---- the handler ---- */

static const int signals[] = { SIGSEGV, SIGBUS };
static struct sigaction previous[ARRAY_SIZE(signals)]; /* constant once the handler is installed */

static const struct sigaction *previous_of(int signal)
{
	return &previous[signal == signals[1]];
}

/* The next byte of range i. */
static uintptr_t next_byte(const struct guard *guard, int i)
{
	return guard->begin[i] + (guard->backward ? guard->size[i] - guard->done - 1 : guard->done);
}

/* A byte of range i in the block of 2^bits bytes around the address, or NO_ADDRESS.  It is the next byte if the block
 * has it: so a move finds its lost side. */
static uintptr_t byte_gone(const struct guard *guard, int i, uintptr_t address, int bits)
{
	uintptr_t block = address >> bits << bits, begin = guard->begin[i], next = next_byte(guard, i);

	if (next >> bits << bits == block && next - begin < guard->size[i])
		return next;
	if (block < begin && begin - block < (uintptr_t)1 << bits)
		return guard->size[i] ? begin : NO_ADDRESS;
	return address - begin < guard->size[i] ? address : NO_ADDRESS;
}

/* A memory error reports the begin of the block that is gone. */
static int block_bits(int signal, const siginfo_t *info)
{
	return signal == SIGBUS && info->si_code == BUS_MCEERR_AR ? info->si_addr_lsb & 63 : 0;
}

/* The CPU cannot use addresses from 2^47 on, or a part of them, at all. */
static bool ends_beyond(const struct guard *guard, int i)
{
	return guard->size[i] && (guard->begin[i] + guard->size[i] - 1) >> 47;
}

/* A fault of such an address comes without the address.  A move reads the page before it writes. */
static uintptr_t gone_beyond(const struct guard *guard)
{
	if (!ends_beyond(guard, 0) && !ends_beyond(guard, 1))
		return NO_ADDRESS;
	return next_byte(guard, guard->size[1] && next_byte(guard, 1) >> 47);
}

/* A fault without an address has this code, and si_addr is 0: it is not a fault of host address 0. */
static bool has_address(const siginfo_t *info)
{
	return info->si_code != SI_KERNEL;
}

/* The guest address at which the access ends, or NO_ADDRESS: this is no fault of the access.  A signal that a process
 * has sent has si_code <= 0, and no address. */
static uintptr_t guest_fault(const struct guard *guard, int signal, const siginfo_t *info)
{
	uintptr_t address = (uintptr_t)info->si_addr, gone = NO_ADDRESS;
	int bits = block_bits(signal, info);

	if (info->si_code <= 0)
		return NO_ADDRESS;
	if (!has_address(info))
		return gone_beyond(guard);
	for (int i = 0; gone == NO_ADDRESS && i < 2; i++)
		gone = byte_gone(guard, i, address, bits);
	return gone;
}

/* Whether the access itself was interrupted, and not a handler that has interrupted it.  The guard lies in the frame of
 * the access.  The frames below it have less than 800 bytes together, except under a sanitizer.  The kernel puts at
 * least 1100 bytes on the stack for a handler. */
#if defined(__x86_64__) && !MS_SANITIZED
#define FRAMES_MAX 1024

static bool is_in_access(const struct guard *guard, const void *context)
{
	const ucontext_t *interrupted = context;

	return (uintptr_t)guard - (uintptr_t)interrupted->uc_mcontext.gregs[REG_RSP] < FRAMES_MAX;
}
#else
static bool is_in_access(const struct guard *guard, const void *context)
{
	(void)guard;
	(void)context;
	return true;
}
#endif

/* The kernel starts a handler with the default rounding and exceptions of floating point.  siglongjmp() does not
 * restore those of the thread.  Valgrind does not save them, and does not set the flag. */
#if defined(__x86_64__)
#define SAVED_BY_XSAVE 1ul /* UC_FP_XSTATE in the headers of Linux, which cannot be included next to <ucontext.h> */

static void restore_rounding(const void *context)
{
	const ucontext_t *interrupted = context;

	if (!(interrupted->uc_flags & SAVED_BY_XSAVE))
		return;
	__asm__ volatile("ldmxcsr %0\n\tfldcw %1"
			 :
			 : "m"(interrupted->uc_mcontext.fpregs->mxcsr), "m"(interrupted->uc_mcontext.fpregs->cwd));
}
#else
static void restore_rounding(const void *context)
{
	(void)context;
}
#endif

/* The signal ends the process as if there had been no handler: a fault happens again after the return. */
static void do_default(int signal, const siginfo_t *info)
{
	struct sigaction action = { .sa_handler = SIG_DFL };

	sigaction(signal, &action, NULL);
	if (info->si_code <= 0)
		raise(signal);
}

/* The former handler runs with the signals blocked that it has asked for. */
static void call(const struct sigaction *action, int signal, siginfo_t *info, void *context)
{
	sigset_t blocked = action->sa_mask, before;

	if (!(action->sa_flags & SA_NODEFER))
		sigaddset(&blocked, signal);
	pthread_sigmask(SIG_BLOCK, &blocked, &before);
	if (action->sa_flags & SA_SIGINFO)
		action->sa_sigaction(signal, info, context);
	else
		action->sa_handler(signal);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void forward(int signal, siginfo_t *info, void *context)
{
	const struct sigaction *action = previous_of(signal);
	bool has_handler =
		action->sa_flags & SA_SIGINFO || (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);

	if (has_handler)
		call(action, signal, info, context);
	else if (action->sa_handler == SIG_DFL || info->si_code > 0) /* nobody can ignore a fault */
		do_default(signal, info);
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
	struct guard *guard = guest_guard;
	uintptr_t gone = guard && is_in_access(guard, context) ? guest_fault(guard, signal, info) : NO_ADDRESS;

	if (gone == NO_ADDRESS) {
		forward(signal, info, context);
		return;
	}
	guard->gone = gone;
	restore_rounding(context);
	siglongjmp(guard->env, 1); /* F2 */
}

/* SA_NODEFER and an empty mask: siglongjmp() does not restore the mask of the thread, which would cost a system call
 * at each access.  The former handler is known before the new one can run. */
static void install(int signal, struct sigaction *former)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK };

	sigemptyset(&action.sa_mask);
	sigaction(signal, NULL, former);
	sigaction(signal, &action, NULL);
}

static void install_all(void)
{
	guest_bytes_prepare();
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		install(signals[i], &previous[i]);
}

void guest_fault_prepare(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, install_all);
}

/* ---- guards ---- */

/* The compiler moves no access of guest memory over it. */
static inline void fence(void)
{
	atomic_signal_fence(memory_order_seq_cst);
}

static inline void enter(struct guard *guard)
{
	guest_guard = guard;
	fence();
}

static inline void leave(const struct guard *guard)
{
	fence();
	guest_guard = guard->outer;
}

static inline void set_done(struct guard *guard, size_t done)
{
	fence();
	guard->done = done;
}

/* ThreadSanitizer blocks all signals while a handler runs.  Elsewhere the mask is unchanged, see install(). */
#define SAVES_MASK MS_THREAD_SANITIZED

/* True: access the memory now.  It becomes false if the access ends in a fault.  The caller calls leave() in both
 * cases. */
#define guarded(guard) (!sigsetjmp((guard)->env, SAVES_MASK) && (enter(guard), true))

/* Field by field: there is no need to clear `env`. */
static inline void guard_init(struct guard *guard, const void *host, size_t size)
{
	guard->outer = guest_guard;
	guard->backward = false;
	guard->begin[0] = (uintptr_t)host;
	guard->size[0] = size;
	guard->begin[1] = guard->size[1] = 0;
	guard->done = 0;
}

/* ---- bytes ---- */

/* The number of bytes from the address to the end of its page, but at most n. */
static inline size_t in_page(const void *host, size_t n)
{
	return at_most(n, PAGE_BYTES - (uintptr_t)host % PAGE_BYTES);
}

/* Not inline: sigsetjmp() forbids to keep changing variables in registers. */
static out_of_line void read_pages(struct guard *guard, char *out, const char *host, size_t n)
{
	for (size_t done = 0, part; done < n; done += part) {
		part = in_page(host + done, n - done);
		guest_bytes_copy(out + done, host + done, part);
		set_done(guard, done + part);
	}
}

static out_of_line void write_pages(struct guard *guard, char *host, const char *data, size_t n)
{
	for (size_t done = 0, part; done < n; done += part) {
		part = in_page(host + done, n - done);
		guest_bytes_copy(host + done, data + done, part);
		set_done(guard, done + part);
	}
}

static out_of_line void fill_pages(struct guard *guard, char *host, uint8_t byte, size_t n)
{
	for (size_t done = 0, part; done < n; done += part) {
		part = in_page(host + done, n - done);
		memset(host + done, byte, part);
		set_done(guard, done + part);
	}
}

static size_t read_by_pages(void *out, const void *host, size_t n)
{
	struct guard guard;

	guard_init(&guard, host, n);
	if (guarded(&guard))
		read_pages(&guard, out, host, n);
	leave(&guard);
	return guard.done;
}

/* In any order.  Returns whether all bytes are complete. */
static bool read_whole(void *out, const void *host, size_t n)
{
	struct guard guard;

	guard_init(&guard, host, n);
	if (guarded(&guard)) {
		guest_bytes_copy(out, host, n);
		set_done(&guard, n);
	}
	leave(&guard);
	return guard.done;
}

/* After a fault, the pages show which bytes are complete. */
size_t guest_fault_read(void *out, const void *host, size_t n)
{
	if (n >= GUEST_READ_WHOLE && likely(read_whole(out, host, n)))
		return n;
	return read_by_pages(out, host, n);
}

size_t guest_fault_write(void *host, const void *data, size_t n)
{
	struct guard guard;

	guard_init(&guard, host, n);
	if (guarded(&guard))
		write_pages(&guard, host, data, n);
	leave(&guard);
	return guard.done;
}

size_t guest_fault_fill(void *host, uint8_t byte, size_t n)
{
	struct guard guard;

	guard_init(&guard, host, n);
	if (guarded(&guard))
		fill_pages(&guard, host, byte, n);
	leave(&guard);
	return guard.done;
}

/* The number of bytes before the address that lie in one page, but at most n. */
static inline size_t in_page_before(const void *end, size_t n)
{
	return at_most(n, ((uintptr_t)end - 1) % PAGE_BYTES + 1);
}

/* The next bytes of a move: each of their two parts is in one page. */
struct step {
	size_t at, size;
};

static inline struct step step_of(const char *to, const char *from, size_t n, bool backward, size_t done)
{
	size_t left = n - done, size;

	if (!backward)
		return (struct step){ done, in_page(to + done, in_page(from + done, left)) };
	size = in_page_before(to + left, in_page_before(from + left, left));
	return (struct step){ left - size, size };
}

/* Only ranges that overlap need memmove(). */
static inline void move_part(char *to, const char *from, size_t n)
{
	uintptr_t above = (uintptr_t)to - (uintptr_t)from;

	if (above >= n && -above >= n)
		guest_bytes_copy(to, from, n);
	else
		memmove(to, from, n);
}

static out_of_line void move_pages(struct guard *guard, char *to, const char *from, size_t n)
{
	struct step step;

	for (size_t done = 0; done < n; done += step.size) {
		step = step_of(to, from, n, guard->backward, done);
		move_part(to + step.at, from + step.at, step.size);
		set_done(guard, done + step.size);
	}
}

/* If the ranges overlap, an address may be in both.  The step decides: its two parts are in different pages, or the
 * page of both is gone. */
static bool is_to_gone(const struct guard *guard, const char *to, const char *from, size_t n)
{
	struct step step = step_of(to, from, n, guard->backward, guard->done);

	return guard->gone - (uintptr_t)(to + step.at) < step.size;
}

size_t guest_fault_move(void *to, const void *from, size_t n, bool backward, bool *to_gone)
{
	struct guard guard;

	guard_init(&guard, to, n);
	guard.begin[1] = (uintptr_t)from;
	guard.size[1] = n;
	guard.backward = backward;
	if (guarded(&guard))
		move_pages(&guard, to, from, n);
	else
		*to_gone = is_to_gone(&guard, to, from, n);
	leave(&guard);
	return guard.done;
}

/* ---- values ---- */

static inline bool is_aligned(const void *host, size_t size)
{
	return (uintptr_t)host % size == 0;
}

/* ThreadSanitizer holds a lock of its own during an atomic access, and a fault would leave it locked. */
#if MS_THREAD_SANITIZED
#define UNSEEN __attribute__((no_sanitize("thread"))) out_of_line
#define LOAD(type) (*(const volatile type *)host)
#define STORE(type) (*(volatile type *)host = (type)value)
#else
#define UNSEEN inline
#define LOAD(type) atomic_load_explicit((const volatile _Atomic type *)host, memory_order_acquire)
#define STORE(type) atomic_store_explicit((volatile _Atomic type *)host, (type)value, memory_order_release)
#endif

/* Row "guest words". */
static UNSEEN uint64_t load_aligned(const void *host, size_t size)
{
	switch (size) {
	case 1:
		return LOAD(uint8_t);
	case 2:
		return LOAD(uint16_t);
	case 4:
		return LOAD(uint32_t);
	default:
		return LOAD(uint64_t);
	}
}

static UNSEEN void store_aligned(void *host, size_t size, uint64_t value)
{
	switch (size) {
	case 1:
		STORE(uint8_t);
		break;
	case 2:
		STORE(uint16_t);
		break;
	case 4:
		STORE(uint32_t);
		break;
	default:
		STORE(uint64_t);
	}
}

static inline uint64_t load_any(const void *host, size_t size)
{
	uint64_t value = 0;

	if (likely(is_aligned(host, size)))
		return load_aligned(host, size);
	fence();
	memcpy(&value, host, size);
	return value;
}

static inline void store_any(void *host, size_t size, uint64_t value)
{
	fence();
	if (likely(is_aligned(host, size)))
		store_aligned(host, size, value);
	else
		memcpy(host, &value, size);
}

bool guest_fault_load(const void *host, size_t size, uint64_t *value)
{
	struct guard guard;

	guard_init(&guard, host, size);
	if (guarded(&guard)) {
		*value = load_any(host, size);
		set_done(&guard, size);
	}
	leave(&guard);
	return guard.done;
}

bool guest_fault_store(void *host, size_t size, uint64_t value)
{
	struct guard guard;

	guard_init(&guard, host, size);
	if (guarded(&guard)) {
		store_any(host, size, value);
		set_done(&guard, size);
	}
	leave(&guard);
	return guard.done;
}

static out_of_line void load_all(struct guard *guard, const uint64_t *hosts, size_t n, char *out, ptrdiff_t stride)
{
	for (size_t i = 0; i < n; i++, out += stride) {
		uint64_t value;

		guard->begin[0] = (uintptr_t)hosts[i];
		value = load_any((const void *)(uintptr_t)hosts[i], sizeof(value));
		memcpy(out, &value, sizeof(value));
		set_done(guard, i + 1);
	}
}

static out_of_line void store_all(struct guard *guard, const uint64_t *hosts, size_t n, const char *data,
				  ptrdiff_t stride)
{
	for (size_t i = 0; i < n; i++, data += stride) {
		uint64_t value;

		memcpy(&value, data, sizeof(value));
		guard->begin[0] = (uintptr_t)hosts[i];
		store_any((void *)(uintptr_t)hosts[i], sizeof(value), value);
		set_done(guard, i + 1);
	}
}

size_t guest_fault_load_many(const uint64_t *hosts, size_t n, void *out, ptrdiff_t stride)
{
	struct guard guard;

	guard_init(&guard, NULL, sizeof(uint64_t));
	if (guarded(&guard))
		load_all(&guard, hosts, n, out, stride);
	leave(&guard);
	return guard.done;
}

size_t guest_fault_store_many(const uint64_t *hosts, size_t n, const void *data, ptrdiff_t stride)
{
	struct guard guard;

	guard_init(&guard, NULL, sizeof(uint64_t));
	if (guarded(&guard))
		store_all(&guard, hosts, n, data, stride);
	leave(&guard);
	return guard.done;
}
