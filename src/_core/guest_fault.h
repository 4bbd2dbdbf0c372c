/* SPDX-License-Identifier: MIT */
/*
 * guest_fault.h - reads and writes host memory that may be gone.  A fault ends the access instead of the process.
 *
 * The file behind a mapping can be truncated, and its pages can be unmapped or protected, while a copy runs.  The
 * kernel then sends SIGBUS or SIGSEGV to the thread of the copy.  A handler turns this signal into the end of the copy,
 * if it is a fault of an address inside the guest memory of the copy that is under way.  Every other signal goes to the
 * handler that was there before: a bug stays a crash, and reports of faulthandler or of a sanitizer still appear.
 *
 * The guest side of an access is split at page boundaries, and its pages are accessed by ascending address.  So after a
 * fault all pages before the one that is gone are complete, and no page behind it has changed.  A long read is first
 * tried as a whole, because a copy of single pages has a begin and an end for each of them.  A write has an aligned
 * destination, so it loses little.
 *
 * Invariants
 *   F1  guest_guard is the guard of the innermost access of the thread, on the thread's stack, or NULL;
 *   F2  the handler leaves an access only to the frame that set its guard, and that frame is still running.
 *
 * The handler of another signal may interrupt a copy.  A fault of this handler is not one of the copy, even in the same
 * guest memory: its stack pointer is far below the frame of the copy, or on another stack (x86-64 without sanitizers).
 * A copy that this handler makes has a guard of its own.
 *
 * Limits:
 *   - A handler that somebody installs later, and that does not call its predecessor, wins.  So does the kernel if the
 *     thread blocks SIGSEGV or SIGBUS: it then ends the process.
 *   - A handler that interrupts a copy must return.  If it leaves by siglongjmp(), F1 and F2 end: the guard of the copy
 *     stays, and a later fault in this memory would jump into a frame that has ended.
 *   - The former handler is called as it was installed, except for SA_RESETHAND: it stays installed.
 *   - A fault leaves a thread with the default rights of the CPU's protection keys (PKRU), if it has changed them.
 *   - If the former handler's owner restores what it found, for example faulthandler.disable() after the first backing,
 *     the handler of this file is lost.  faulthandler may be enabled before or later, but then it must stay enabled.
 *
 * Locking: none.  The handler reads a thread-local pointer and the former handlers, which are constant by then.
 * Ordering (row "guest words"): a value of 1, 2, 4 or 8 bytes that is naturally aligned is one access.  A load is an
 * acquire and a store a release, so that a ring in guest memory works.
 * Cost: 3 to 5 ns for the guard of a whole access, and 1 % to 5 % of the time of a long write for the split into pages.
 */
#ifndef MS_GUEST_FAULT_H
#define MS_GUEST_FAULT_H

#include "compiler.h"

/* A read of so many bytes is first tried as a whole. */
#define GUEST_READ_WHOLE ((size_t)32 << 10)

/* Installs the handler.  Any number of calls; the first one counts. */
void guest_fault_prepare(void);

/* Each copies n bytes and returns the number of bytes that are complete: n, or up to the page that is gone. */
size_t guest_fault_read(void *out, const void *host, size_t n);
size_t guest_fault_write(void *host, const void *data, size_t n);
size_t guest_fault_fill(void *host, uint8_t byte, size_t n);

/*
 * Copies from guest memory to guest memory.  The two ranges may overlap: `backward` copies by descending address, for a
 * destination above its source.  Both ranges are split at their page boundaries.  Returns the number of bytes that are
 * complete, from the first byte on or, backward, from the last one.  If that is less than n, *to_gone says which of the
 * two sides is gone.
 */
size_t guest_fault_move(void *to, const void *from, size_t n, bool backward, bool *to_gone);

/* Little-endian values of `size` bytes: 1, 2, 4 or 8, inside one page.  Return false if the memory is gone. */
bool guest_fault_load(const void *host, size_t size, uint64_t *value);
bool guest_fault_store(void *host, size_t size, uint64_t value);

/* Loads or stores n values of 8 bytes, each inside one page, at the addresses of `hosts`.  The other side has a stride
 * in bytes and any alignment.  Returns the number of values that are complete. */
size_t guest_fault_load_many(const uint64_t *hosts, size_t n, void *out, ptrdiff_t stride);
size_t guest_fault_store_many(const uint64_t *hosts, size_t n, const void *data, ptrdiff_t stride);

#endif
