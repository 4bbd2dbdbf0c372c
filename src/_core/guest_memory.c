/* SPDX-License-Identifier: MIT */
/*
 * guest_memory.c - copies bytes and values from and to guest memory.
 *
 * Up to MS_GUEST_SHORT bytes, a call translates and copies run by run in one read section.  A longer call takes
 * references to all its runs in one section, and copies outside, unless a slot is raw (guest_pins.h).
 *
 * Locking: none; nothing here waits for a writer, except a release function of the user (backing.h).
 * Cost: a lookup and the guard of guest_fault.h; long copies take the time of memcpy().
 */
#include <string.h>

#include "guest_fault.h"
#include "guest_pins.h"

/* One call: `out` is for a read, `data` for a write, neither for a fill. */
struct access {
	struct ms_vm *vm;
	uint32_t as_id;
	uint8_t byte;
	uint64_t gpa;
	size_t n;
	char *out;
	const char *data;
};

static inline bool is_write(const struct access *a)
{
	return !a->out;
}

/* Copies the n bytes at the offset `at` of the call.  Returns how many of them are complete. */
static inline size_t copy(const struct access *a, char *host, size_t at, size_t n)
{
	if (a->out)
		return guest_fault_read(a->out + at, host, n);
	return a->data ? guest_fault_write(host, a->data + at, n) : guest_fault_fill(host, a->byte, n);
}

/* ---- in one section ---- */

/* Copies a run, and adds its complete bytes to *done. */
static inline enum ms_rule copy_run(const struct access *a, const struct guest_run *run, size_t *done)
{
	size_t copied = copy(a, run->host, *done, run->bytes);

	if (is_write(a))
		guest_mark(run, guest_touched(copied, run->bytes));
	*done += copied;
	return likely(copied == run->bytes) ? MS_RULE_NONE : MS_RULE_GUEST_FAULT;
}

static inline int copy_in_section(const struct access *a, struct ms_error *err)
{
	struct look look = look_begin(a->vm, a->as_id);
	size_t done = 0;
	struct guest_run run;
	enum ms_rule rule = guest_run_first(a->vm, &look, a->gpa, a->n, is_write(a), &run);
	int r = 0;

	while (!rule && !(rule = copy_run(a, &run, &done)) && done < a->n)
		rule = guest_run_next(a->vm, &look, a->n - done, is_write(a), &run);
	if (unlikely(rule))
		r = guest_refuse(err, rule, guest_value(run.slot), a->gpa + done, done);
	look_end(a->vm, look);
	return r;
}

/* ---- with references ---- */

/* A long write marks its pages after so many bytes.  So a change that ends the log meanwhile reports most of them. */
#define MARKED_AT_ONCE ((size_t)1 << 20)

/* Copies a piece, and adds its complete bytes to *done.  Returns whether all are. */
static bool copy_piece(const struct access *a, const struct guest_pins *pins, const struct guest_piece *piece,
		       size_t *done)
{
	size_t step = is_write(a) ? MARKED_AT_ONCE : piece->bytes;

	for (size_t at = 0, n; at < piece->bytes; at += n) {
		size_t copied;

		n = at_most(piece->bytes - at, step);
		copied = copy(a, piece->host + at, *done, n);
		if (is_write(a))
			guest_pins_mark(pins, piece, at, guest_touched(copied, n));
		*done += copied;
		if (copied < n)
			return false;
	}
	return true;
}

static int copy_pieces(const struct access *a, const struct guest_pins *pins, struct ms_error *err)
{
	size_t done = 0;

	for (size_t i = 0; i < pins->nr; i++)
		if (!copy_piece(a, pins, &pins->pieces[i], &done))
			return guest_refuse(err, MS_RULE_GUEST_FAULT, pins->pieces[i].slot, a->gpa + done, done);
	if (done < a->n)
		return guest_refuse(err, pins->refusal.rule, pins->refusal.slot, a->gpa + done, done);
	return 0;
}

static out_of_line int copy_pinned(const struct access *a, struct ms_error *err)
{
	struct guest_pins pins;
	int r;

	guest_pins_init(&pins, a->vm, a->as_id, a->gpa, a->n, is_write(a));
	if (guest_pins_take(&pins, 1))
		return no_memory(err);
	r = copy_pieces(a, &pins, err);
	guest_pins_put(&pins, 1);
	return r;
}

static inline int run_access(const struct access *a, struct ms_error *err)
{
	return likely(a->n <= MS_GUEST_SHORT) ? copy_in_section(a, err) : copy_pinned(a, err);
}

int ms_read_guest(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, void *out, size_t n, struct ms_error *err)
{
	if (unlikely(!n))
		return 0;
	if (unlikely(!out))
		return null_buffer(err);
	return run_access(&(struct access){ .vm = vm, .as_id = as_id, .gpa = gpa, .n = n, .out = out }, err);
}

int ms_write_guest(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, const void *data, size_t n, struct ms_error *err)
{
	if (unlikely(!n))
		return 0;
	if (unlikely(!data))
		return null_buffer(err);
	return run_access(&(struct access){ .vm = vm, .as_id = as_id, .gpa = gpa, .n = n, .data = data }, err);
}

int ms_fill_guest(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, size_t n, uint8_t byte, struct ms_error *err)
{
	if (unlikely(!n))
		return 0;
	return run_access(&(struct access){ .vm = vm, .as_id = as_id, .gpa = gpa, .n = n, .byte = byte }, err);
}

/* ---- values ---- */

static inline bool in_one_page(uint64_t gpa, size_t size)
{
	return gpa % MS_PAGE_SIZE <= MS_PAGE_SIZE - size;
}

static inline int read_value(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, size_t size, uint64_t *value,
			     struct ms_error *err)
{
	struct guest_run run;
	enum ms_rule rule;
	struct look look;
	int r = 0;

	if (unlikely(!in_one_page(gpa, size)))
		return ms_read_guest(vm, as_id, gpa, value, size, err);
	look = look_begin(vm, as_id);
	rule = guest_run_first(vm, &look, gpa, size, false, &run);
	if (!rule && unlikely(!guest_fault_load(run.host, size, value)))
		rule = MS_RULE_GUEST_FAULT;
	if (unlikely(rule))
		r = guest_refuse(err, rule, guest_value(run.slot), gpa, 0);
	look_end(vm, look);
	return r;
}

static inline int write_value(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, size_t size, uint64_t value,
			      struct ms_error *err)
{
	struct guest_run run;
	enum ms_rule rule;
	struct look look;
	int r = 0;

	if (unlikely(!in_one_page(gpa, size)))
		return ms_write_guest(vm, as_id, gpa, &value, size, err);
	look = look_begin(vm, as_id);
	rule = guest_run_first(vm, &look, gpa, size, true, &run);
	if (!rule && unlikely(!guest_fault_store(run.host, size, value)))
		rule = MS_RULE_GUEST_FAULT;
	if (likely(!rule) || rule == MS_RULE_GUEST_FAULT)
		mark(run.slot, gpa >> MS_PAGE_SHIFT);
	if (unlikely(rule))
		r = guest_refuse(err, rule, guest_value(run.slot), gpa, 0);
	look_end(vm, look);
	return r;
}

#define VALUE_CALLS(bits) \
	int ms_read_guest_u##bits(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint##bits##_t *value, \
				  struct ms_error *err) \
	{ \
		uint64_t read = 0; \
		int r = value ? read_value(vm, as_id, gpa, sizeof(*value), &read, err) : null_buffer(err); \
\
		if (!r) \
			*value = (uint##bits##_t)read; \
		return r; \
	} \
\
	int ms_write_guest_u##bits(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint##bits##_t value, \
				   struct ms_error *err) \
	{ \
		return write_value(vm, as_id, gpa, sizeof(value), value, err); \
	}

VALUE_CALLS(8)
VALUE_CALLS(16)
VALUE_CALLS(32)
VALUE_CALLS(64)
