/* SPDX-License-Identifier: MIT */
/*
 * test_guest_copy.c - copies from guest memory to guest memory, against memmove().
 *
 * Short copies run in one section, long ones with references.  Source and destination overlap or not, cross slots, and
 * meet holes, READONLY slots and memory that is gone.
 */
#include "guest.h"

static uint64_t copies;

/* ---- a layout: pages 0 to 59, and a hole behind them ---- */

#define NPAGES 60u
#define FIRST 0x100u
#define GPA(offset) (FIRST * PAGE + (uint64_t)(offset))

static const struct {
	size_t page, pages;
	uint32_t flags;
} layout[] = { { 0, 10, LOG }, { 10, 5, 0 }, { 15, 2, READONLY }, { 17, 43, LOG } };

static struct ms_vm *vm;
static struct guest *memory[ARRAY_SIZE(layout)];
static unsigned char content[NPAGES * PAGE], before[NPAGES * PAGE];

static void open_layout(void)
{
	vm = new_vm(1);
	for (uint32_t i = 0; i < ARRAY_SIZE(layout); i++) {
		memory[i] = guest_slot(vm, i, FIRST + layout[i].page, layout[i].pages, layout[i].flags);
		memcpy(content + layout[i].page * PAGE, memory[i]->at, memory[i]->size);
	}
}

static void check_content(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(layout); i++)
		CHECK(!memcmp(memory[i]->at, content + layout[i].page * PAGE, memory[i]->size));
}

/* The bytes from `at` on that can be accessed. */
static size_t reach(size_t at, size_t n, bool write, enum ms_rule *rule)
{
	size_t end = write && at < 17 * PAGE ? 15 * PAGE : NPAGES * PAGE;

	*rule = write && at < 17 * PAGE ? MS_RULE_GUEST_READONLY : MS_RULE_GUEST_HOLE;
	if (at >= end)
		return 0;
	return n < end - at ? n : end - at;
}

/* The dirty pages of a logged slot after a write of [at, at + n). */
static uint64_t pages_in(size_t i, size_t at, size_t n)
{
	uint64_t bits = 0;

	for (size_t page = 0; page < layout[i].pages; page++) {
		size_t start = (layout[i].page + page) * PAGE;

		bits |= (uint64_t)(start < at + n && start + PAGE > at && n) << page;
	}
	return bits;
}

static void check_copy(size_t dst, size_t src, size_t n)
{
	enum ms_rule dst_rule, src_rule;
	size_t dst_bytes = reach(dst, n, true, &dst_rule), src_bytes = reach(src, n, false, &src_rule);
	bool by_src = src_bytes <= dst_bytes;
	size_t done = by_src ? src_bytes : dst_bytes;
	struct ms_error err;
	int r = ms_copy_guest(vm, 0, GPA(dst), GPA(src), n, &err);

	check_refused(r, &err, done == n ? 0 : by_src ? src_rule : dst_rule, GPA((by_src ? src : dst) + done), done);
	memmove(content + dst, content + src, done);
	check_content();
	CHECK_EQ(guest_dirty(vm, 0), pages_in(0, dst, done));
	CHECK_EQ(guest_dirty(vm, 3), pages_in(3, dst, done));
	copies++;
}

static void test_random(void)
{
	struct rng rng = rng_stream(2);

	for (uint64_t i = 0, n = test_times(1500); i < n; i++) {
		size_t src = rng_below(&rng, NPAGES * PAGE), dst = rng_below(&rng, NPAGES * PAGE);
		size_t size = rng_below(&rng, i % 2 ? 40 * PAGE : 3 * PAGE);

		if (i % 3 == 0) /* they overlap */
			dst = src + rng_below(&rng, 5000) > 2500 ? src - (src > 2500 ? 2500 : src) : src;
		if (i % 5 == 0) /* the same place in their pages */
			dst = dst / PAGE * PAGE + src % PAGE;
		check_copy(dst, src, size);
	}
}

/* Every distance around a page, in both directions, short and long. */
static void test_overlaps(void)
{
	for (size_t n = 3 * PAGE; n < 40 * PAGE; n += 17 * PAGE + 5)
		for (size_t distance = 0; distance < 2 * PAGE; distance += distance < 20 ? 1 : 777) {
			check_copy(17 * PAGE + 9 + distance, 17 * PAGE + 9, n);
			check_copy(17 * PAGE + 9, 17 * PAGE + 9 + distance, n);
		}
}

static void test_small(void)
{
	CHECK_EQ(ms_copy_guest(vm, 0, GPA(0), ~(uint64_t)0, 0, NULL), 0);
	check_copy(9, 9, 1);
	check_copy(PAGE, 0, 1);
	check_copy(PAGE, PAGE - 1, 2);
	check_copy(NPAGES * PAGE, 0, 1);
	check_copy(0, NPAGES * PAGE, 1);
	check_copy(15 * PAGE, NPAGES * PAGE, 1); /* both are refused: the source first */
	check_copy(15 * PAGE - 1, 3, 4 * PAGE);
}

/* ---- memory that is gone ---- */

/* The first `kept` pages of slot 3 are left. */
static void lose_pages(size_t kept)
{
	CHECK_EQ(ftruncate(memory[3]->fd, (off_t)(kept * PAGE)), 0);
}

static void restore_pages(size_t kept)
{
	CHECK_EQ(ftruncate(memory[3]->fd, 43 * PAGE), 0);
	memcpy(memory[3]->at + kept * PAGE, content + (17 + kept) * PAGE, (43 - kept) * PAGE);
}

/* The source is gone from page 17 + kept on, or the destination is. */
static void check_lost_up(size_t n, bool dst_is_lost)
{
	size_t kept = n / PAGE / 2, here = 17 * PAGE + 100, lost = 17 * PAGE + kept * PAGE;
	size_t other = dst_is_lost ? 17 * PAGE + 300 : 50, done = (lost - here);
	size_t dst = dst_is_lost ? here : other, src = dst_is_lost ? other : here;
	struct ms_error err;

	if (dst_is_lost) { /* both are in slot 3, and the source reaches the lost page first */
		dst = 40;
		src = 17 * PAGE + 300;
		done = lost - src;
		n = n < 9 * PAGE ? n : 9 * PAGE;
		if (done >= n)
			return;
	} else {
		done = lost - here < 14 * PAGE ? done : 14 * PAGE;
	}
	lose_pages(kept);
	check_refused(ms_copy_guest(vm, 0, GPA(dst), GPA(src), n, &err), &err, MS_RULE_GUEST_FAULT, GPA(src + done),
		      done);
	memmove(content + dst, content + src, done);
	restore_pages(kept);
	check_content();
	CHECK_EQ(guest_dirty(vm, 0), pages_in(0, dst, done + 1));
	CHECK_EQ(guest_dirty(vm, 3), pages_in(3, dst, done + 1));
}

static void test_lost(void)
{
	struct ms_error err;

	check_lost_up(4 * PAGE, false);
	check_lost_up(4 * PAGE, true);
	lose_pages(3);
	check_refused(ms_copy_guest(vm, 0, GPA(20 * PAGE - 10), GPA(0), 20, &err), &err, MS_RULE_GUEST_FAULT,
		      GPA(20 * PAGE), 10); /* the destination */
	memmove(content + 20 * PAGE - 10, content, 10);
	check_refused(ms_copy_guest(vm, 0, GPA(18 * PAGE + 8), GPA(18 * PAGE), 2 * PAGE, &err), &err,
		      MS_RULE_GUEST_FAULT, GPA(20 * PAGE), 0); /* backward: the last 8 bytes of the destination */
	restore_pages(3);
	check_content();
	CHECK_EQ(guest_dirty(vm, 3), 1u << 2 | 1u << 3); /* the page that is gone too */
	/* Backward, with the source of the first bytes gone: the bytes behind are complete, and marked. */
	memcpy(before, content, sizeof(content));
	CHECK_EQ(mprotect(memory[3]->at, PAGE, PROT_NONE), 0);
	check_refused(ms_copy_guest(vm, 0, GPA(18 * PAGE), GPA(18 * PAGE - 8), 20 * PAGE, &err), &err,
		      MS_RULE_GUEST_FAULT, GPA(18 * PAGE - 8), 0);
	CHECK_EQ(mprotect(memory[3]->at, PAGE, PROT_READ | PROT_WRITE), 0);
	memmove(content + 18 * PAGE + 8, content + 18 * PAGE, 20 * PAGE - 8);
	check_content();
	CHECK_EQ(guest_dirty(vm, 3), (((uint64_t)1 << 20) - 1) << 1);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		open_layout();
		test_small();
		test_random();
		test_overlaps();
		test_lost();
		check_sound(vm);
		end_vm(vm);
	}
	return test_done("guest copy", copies, "copies");
}
