/* SPDX-License-Identifier: MIT */
/*
 * test_guest_memory.c - copies from and to guest memory, against a reference that copies byte by byte.
 *
 * Every rule of KVM, at every byte of a page boundary: adjacent slots, holes, READONLY, INVALID slots, host memory that
 * is gone.  The calls run on each design.
 */
#include "guest.h"

#include <sys/wait.h>

static uint64_t calls;

/* ---- a layout ----
 *
 *   pages 0x10 to 0x12  slot 1, logged
 *         0x13 to 0x14  slot 2, adjacent
 *         0x15          slot 3, READONLY and logged
 *         0x16          hole
 *         0x17          slot 4, raw
 *         0x18 to 0x19  slot 5, logged
 */
#define FIRST 0x10u
#define NPAGES 10u
#define GPA(page, offset) ((uint64_t)(FIRST + (page)) * PAGE + (uint64_t)(int64_t)(offset))

static struct ms_vm *vm;
static struct guest *memory[6];
/* The content of the pages of the layout, and the rules that refuse an access. */
static unsigned char content[NPAGES * PAGE];
static const enum ms_rule refuses_read[NPAGES] = { [6] = MS_RULE_GUEST_HOLE, [7] = MS_RULE_GUEST_RAW };
static const enum ms_rule refuses_write[NPAGES] = { [5] = MS_RULE_GUEST_READONLY,
						    [6] = MS_RULE_GUEST_HOLE,
						    [7] = MS_RULE_GUEST_RAW };

static void add(uint32_t id, size_t page, size_t pages, uint32_t flags)
{
	memory[id] = guest_slot(vm, id, FIRST + page, pages, flags);
	memcpy(content + page * PAGE, memory[id]->at, pages * PAGE);
}

static void open_layout(void)
{
	vm = new_vm(1);
	add(1, 0, 3, LOG);
	add(2, 3, 2, 0);
	add(3, 5, 1, READONLY | LOG);
	CHECK_EQ(set(vm, 0, 4, FIRST + 7, 1, LOG), 0);
	add(5, 8, 2, LOG);
}

static void close_layout(void)
{
	check_sound(vm);
	end_vm(vm);
}

/* The number of bytes from `at` on that an access of n bytes completes, and the rule that ends it. */
static size_t complete(const enum ms_rule *refuses, size_t at, size_t n, enum ms_rule *rule)
{
	size_t done = 0;

	*rule = MS_RULE_NONE;
	while (done < n && !*rule) {
		size_t page = (at + done) / PAGE, part = PAGE - (at + done) % PAGE;

		*rule = page < NPAGES ? refuses[page] : MS_RULE_GUEST_HOLE;
		if (!*rule)
			done += part < n - done ? part : n - done;
	}
	return done;
}

static void check_read(size_t at, size_t n)
{
	static unsigned char out[NPAGES * PAGE + 8 * PAGE];
	struct ms_error err;
	enum ms_rule rule;
	size_t done = complete(refuses_read, at, n, &rule);

	memset(out, 0xEE, n + 1);
	check_refused(ms_read_guest(vm, 0, GPA(0, at), out, n, &err), &err, rule, GPA(0, at) + done, done);
	CHECK(!memcmp(out, content + at, done));
	CHECK(done == n || rule == MS_RULE_GUEST_FAULT || out[done] == 0xEE);
	CHECK_EQ(out[n], 0xEE);
	calls++;
}

/* The dirty pages that a write of [at, at + done) marks, as bits of the layout. */
static uint64_t pages_of(size_t at, size_t done)
{
	uint64_t bits = 0;

	for (size_t page = at / PAGE; done && page <= (at + done - 1) / PAGE; page++)
		bits |= (uint64_t)1 << page;
	return bits;
}

static void check_marks(uint64_t pages)
{
	CHECK_EQ(guest_dirty(vm, 1), pages & 7);
	CHECK_EQ(guest_dirty(vm, 2), ~(uint64_t)0);
	CHECK_EQ(guest_dirty(vm, 3), 0);
	CHECK_EQ(guest_dirty(vm, 4), 0);
	CHECK_EQ(guest_dirty(vm, 5), pages >> 8 & 3);
}

static void check_content(void)
{
	static const size_t first[] = { 0, 0, 3, 5, 0, 8 };

	for (uint32_t id = 1; id <= 5; id++)
		if (memory[id])
			CHECK(!memcmp(memory[id]->at, content + first[id] * PAGE, memory[id]->size));
}

static void check_write(size_t at, size_t n, bool fill)
{
	static unsigned char data[NPAGES * PAGE + 8 * PAGE], next;
	struct ms_error err;
	enum ms_rule rule;
	size_t done = complete(refuses_write, at, n, &rule);
	int r;

	next++;
	for (size_t i = 0; i < n; i++)
		data[i] = fill ? next : (unsigned char)(next + 3 * i);
	r = fill ? ms_fill_guest(vm, 0, GPA(0, at), n, next, &err) : ms_write_guest(vm, 0, GPA(0, at), data, n, &err);
	check_refused(r, &err, rule, GPA(0, at) + done, done);
	memcpy(content + at, data, done);
	check_content();
	check_marks(pages_of(at, done));
	calls++;
}

/* Ranges that begin or end at every byte around every page boundary. */
static void test_ranges(void)
{
	for (size_t boundary = 0; boundary < NPAGES; boundary++)
		for (size_t before = 0; before <= 9; before++)
			for (size_t behind = 0; behind <= 9; behind += boundary == 0 ? 1 : 3) {
				if (before > boundary * PAGE)
					continue;
				check_read(boundary * PAGE - before, before + behind);
				check_write(boundary * PAGE - before, before + behind, behind & 1);
			}
}

static void test_long_ranges(void)
{
	struct rng rng = rng_stream(1);

	check_read(0, NPAGES * PAGE);
	check_write(0, NPAGES * PAGE, false);
	check_write(8 * PAGE, 2 * PAGE + 1, false); /* the hole behind the last slot */
	for (uint64_t i = 0, n = test_times(400); i < n; i++) {
		size_t at = rng_below(&rng, NPAGES * PAGE), size = rng_below(&rng, 6 * PAGE);

		check_read(at, size);
		check_write(at, size, rng_below(&rng, 2));
	}
}

static void test_nothing(void)
{
	struct ms_error err;

	CHECK_EQ(ms_read_guest(vm, 0, GPA(6, 0), NULL, 0, NULL), 0); /* no lookup: it would find a hole */
	CHECK_EQ(ms_write_guest(vm, 0, GPA(6, 0), NULL, 0, NULL), 0);
	CHECK_EQ(ms_fill_guest(vm, 9, ~(uint64_t)0, 0, 0, NULL), 0);
	CHECK_EQ(ms_read_guest(vm, 0, GPA(0, 0), NULL, 1, &err), -EFAULT);
	CHECK_EQ(err.rule, MS_RULE_NULL_BUFFER);
	CHECK_EQ(ms_write_guest(vm, 0, GPA(0, 0), NULL, 1, &err), -EFAULT);
	CHECK_EQ(err.rule, MS_RULE_NULL_BUFFER);
	CHECK_EQ(ms_read_guest_u32(vm, 0, GPA(0, 0), NULL, &err), -EFAULT);
	CHECK_EQ(err.rule, MS_RULE_NULL_BUFFER);
	check_marks(0);
}

/* The last byte of the address space, and an address space that does not exist. */
static void test_edges(void)
{
	char out[16];
	struct ms_error err;

	check_refused(ms_read_guest(vm, 0, ~(uint64_t)0, out, 16, &err), &err, MS_RULE_GUEST_HOLE, ~(uint64_t)0, 0);
	check_refused(ms_write_guest(vm, 1, GPA(0, 0), out, 16, &err), &err, MS_RULE_GUEST_HOLE, GPA(0, 0), 0);
	check_refused(ms_fill_guest(vm, 7, GPA(0, 8), 1, 1, &err), &err, MS_RULE_GUEST_HOLE, GPA(0, 8), 0);
	check_refused(ms_read_guest(vm, 0, GPA(7, 4), out, 2, &err), &err, MS_RULE_GUEST_RAW, GPA(7, 4), 0);
	CHECK_EQ(err.other.id, 4);
	check_refused(ms_fill_guest(vm, 0, GPA(5, 4), 2, 0, &err), &err, MS_RULE_GUEST_READONLY, GPA(5, 4), 0);
	CHECK_EQ(err.other.id, 3);
	CHECK_EQ(ms_read_guest(vm, 0, ~(uint64_t)0, out, 16, NULL), -EFAULT);
}

/* ---- values ---- */

static int read_value(uint64_t gpa, size_t size, uint64_t *value, struct ms_error *err)
{
	uint8_t u8 = 0;
	uint16_t u16 = 0;
	uint32_t u32 = 0;
	int r = size == 1 ? ms_read_guest_u8(vm, 0, gpa, &u8, err) :
		size == 2 ? ms_read_guest_u16(vm, 0, gpa, &u16, err) :
		size == 4 ? ms_read_guest_u32(vm, 0, gpa, &u32, err) :
			    ms_read_guest_u64(vm, 0, gpa, value, err);

	if (size < 8)
		*value = (uint64_t)u8 | u16 | u32;
	return r;
}

static int write_value(uint64_t gpa, size_t size, uint64_t value, struct ms_error *err)
{
	return size == 1 ? ms_write_guest_u8(vm, 0, gpa, (uint8_t)value, err) :
	       size == 2 ? ms_write_guest_u16(vm, 0, gpa, (uint16_t)value, err) :
	       size == 4 ? ms_write_guest_u32(vm, 0, gpa, (uint32_t)value, err) :
			   ms_write_guest_u64(vm, 0, gpa, value, err);
}

static void check_value(size_t at, size_t size)
{
	uint64_t value = 0, want = 0, written = 0x8070605040302010u + at;
	struct ms_error err;
	enum ms_rule rule;
	size_t done = complete(refuses_read, at, size, &rule);

	check_refused(read_value(GPA(0, at), size, &value, &err), &err, rule, GPA(0, at) + done, done);
	memcpy(&want, content + at, rule ? 0 : size);
	CHECK_EQ(value, want);
	done = complete(refuses_write, at, size, &rule);
	check_refused(write_value(GPA(0, at), size, written, &err), &err, rule, GPA(0, at) + done, done);
	memcpy(content + at, &written, done);
	check_content();
	check_marks(pages_of(at, done));
	calls++;
}

static void test_values(void)
{
	for (size_t boundary = 0; boundary < NPAGES; boundary++)
		for (size_t size = 1; size <= 8; size *= 2)
			for (int offset = boundary ? -9 : 0; offset < 10; offset += boundary < 2 ? 1 : 2)
				check_value(boundary * PAGE + (size_t)offset, size);
}

/* ---- states of slots ---- */

static unsigned flushes;

/* Readers see the INVALID copy of slot 2 now. */
static void read_invalid(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	unsigned char out[16];
	struct ms_error err;
	uint64_t value;

	(void)opaque;
	CHECK(active->flags & MS_MEMSLOT_INVALID && old->id == 2);
	check_refused(ms_read_guest(vm, 0, GPA(3, -8), out, 16, &err), &err, MS_RULE_GUEST_HOLE, GPA(3, 0), 8);
	check_refused(ms_write_guest(vm, 0, GPA(3, 0), out, 16, &err), &err, MS_RULE_GUEST_HOLE, GPA(3, 0), 0);
	check_refused(ms_read_guest_u64(vm, 0, GPA(3, 0), &value, &err), &err, MS_RULE_GUEST_HOLE, GPA(3, 0), 0);
	flushes++;
}

static void test_invalid(void)
{
	static const struct ms_listener listener = { .size = sizeof(listener), .flush = read_invalid };
	unsigned char out[16];
	struct ms_error err;

	flushes = 0;
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	CHECK_EQ(ms_move_memslot(vm, 0, 2, GPA(20, 0), NULL), 0);
	CHECK_EQ(flushes, 1);
	CHECK_EQ(ms_read_guest(vm, 0, GPA(20, 5), out, 16, NULL), 0);
	CHECK(!memcmp(out, content + 3 * PAGE + 5, 16));
	check_refused(ms_read_guest(vm, 0, GPA(3, -8), out, 16, &err), &err, MS_RULE_GUEST_HOLE, GPA(3, 0), 8);
	CHECK_EQ(ms_remove_listener(vm, &listener, NULL), 0);
	CHECK_EQ(ms_move_memslot(vm, 0, 2, GPA(3, 0), NULL), 0);
}

/* Inside a read section a copy sees the state of this section. */
static void test_section(void)
{
	unsigned char out[16];

	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(ms_read_guest(vm, 0, GPA(3, -8), out, 16, NULL), 0);
	CHECK(!memcmp(out, content + 3 * PAGE - 8, 16));
	CHECK_EQ(ms_read_unlock(vm), 0);
}

/* ---- host memory that is gone ---- */

static void test_truncated(void)
{
	unsigned char out[2 * PAGE];
	struct ms_error err;
	uint64_t value;

	CHECK_EQ(ftruncate(memory[1]->fd, 2 * PAGE), 0);
	for (int before = 1; before < 20; before++) {
		uint64_t gpa = GPA(2, -before), gone = GPA(2, 0);

		check_refused(ms_read_guest(vm, 0, gpa, out, 20, &err), &err, MS_RULE_GUEST_FAULT, gone, before);
		CHECK_EQ(err.other.id, 1);
		CHECK(!memcmp(out, content + 2 * PAGE - before, before));
		check_refused(ms_write_guest(vm, 0, gpa, out, 20, &err), &err, MS_RULE_GUEST_FAULT, gone, before);
		check_marks(2 | 4); /* the page that is gone too */
		check_refused(ms_fill_guest(vm, 0, gone, 20, 0, &err), &err, MS_RULE_GUEST_FAULT, gone, 0);
		check_refused(ms_write_guest_u64(vm, 0, gone, 0, &err), &err, MS_RULE_GUEST_FAULT, gone, 0);
		check_marks(4);
		check_refused(ms_read_guest_u16(vm, 0, gone, (uint16_t *)out, &err), &err, MS_RULE_GUEST_FAULT, gone,
			      0);
		check_refused(ms_read_guest_u64(vm, 0, gone - 4, &value, &err), &err, MS_RULE_GUEST_FAULT, gone, 4);
	}
	CHECK(!memcmp(memory[1]->at, content, 2 * PAGE));
	CHECK_EQ(ftruncate(memory[1]->fd, 3 * PAGE), 0);
	memcpy(memory[1]->at + 2 * PAGE, content + 2 * PAGE, PAGE);
	CHECK_EQ(ms_vm_close(vm, NULL), 0); /* no section is left open */
	ms_vm_destroy(vm);
}

/* ---- raw slots ---- */

static void test_raw_with_permission(void)
{
	static _Alignas(4096) unsigned char raw[2 * PAGE];
	struct ms_config config = default_config(1);
	region_t r = region(0, 3, FIRST, 2, LOG), nowhere = region(0, 4, FIRST + 2, 1, 0);
	unsigned char out[8];
	struct ms_error err;

	config.dereference_raw_addresses = true;
	vm = vm_with(&config);
	r.userspace_addr = (uint64_t)(uintptr_t)raw;
	nowhere.userspace_addr = PAGE;
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	CHECK_EQ(ms_set_user_memory_region(vm, &nowhere, NULL), 0);
	CHECK_EQ(ms_write_guest(vm, 0, GPA(1, -4), "abcdefgh", 8, NULL), 0);
	CHECK(!memcmp(raw + PAGE - 4, "abcdefgh", 8));
	CHECK_EQ(ms_read_guest(vm, 0, GPA(1, -4), out, 8, NULL), 0);
	CHECK(!memcmp(out, "abcdefgh", 8));
	CHECK_EQ(guest_dirty(vm, 3), 3);
	check_refused(ms_read_guest(vm, 0, GPA(2, -4), out, 8, &err), &err, MS_RULE_GUEST_FAULT, GPA(2, 0), 4);
	end_vm(vm);
}

/* ---- a forked child ---- */

static int child_of_fork(void)
{
	struct ms_error err;
	unsigned char out[16];

	CHECK_EQ(ms_read_guest(vm, 0, GPA(0, 0), out, 16, NULL), 0);
	CHECK(!memcmp(out, content, 16));
	check_refused(ms_write_guest(vm, 0, GPA(0, 0), out, 16, &err), &err, MS_RULE_FORKED, GPA(0, 0), 0);
	CHECK_EQ(err.other.id, 1);
	check_refused(ms_write_guest_u8(vm, 0, GPA(0, 0), 1, &err), &err, MS_RULE_FORKED, GPA(0, 0), 0);
	CHECK_EQ(ms_write_guest(vm, 0, GPA(3, 0), out, 16, NULL), 0); /* without a log */
	check_refused(ms_fill_guest(vm, 0, GPA(8, -1), 2, 0, &err), &err, MS_RULE_GUEST_RAW, GPA(8, -1), 0);
	return 0;
}

static void test_fork(void)
{
	int status;
	pid_t child = fork();

	CHECK(child >= 0);
	if (!child)
		_exit(child_of_fork());
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
	CHECK(!memcmp(memory[2]->at, content, 16)); /* the memory is shared with the child */
	memcpy(content + 3 * PAGE, content, 16);
	check_marks(0);
}

static void test_all(void)
{
	open_layout();
	test_ranges();
	test_long_ranges();
	test_nothing();
	test_edges();
	test_values();
	test_invalid();
	test_section();
	test_fork();
	close_layout();
	open_layout();
	test_truncated();
	test_raw_with_permission();
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		test_all();
	return test_done("guest memory", calls, "calls");
}
