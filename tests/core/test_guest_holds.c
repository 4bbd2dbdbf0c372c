/* SPDX-License-Identifier: MIT */
/*
 * test_guest_holds.c - many values, and changes of the slots between their translation and their copy.
 *
 * A call stops outside of its section, when it holds all memory.  Meanwhile slots are deleted, moved or get another
 * log, or the VM is closed.  No change waits; the call completes in the memory of its own state; no mark is lost; the
 * memory is released when the last hold that may use it has ended, and not later, although other holds go on.
 *
 * The last part has real page faults that block (userfaultfd).
 */
#include "script.h"

#include "guest.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PAGES 40u
#define GFN 0x100u
#define OTHER_GFN 0x400u
#define MOST 1000000u

static struct ms_vm *vm;
static struct guest *g, *other;
static unsigned released, other_released;
static enum ms_index_policy policy;
static uint64_t gpas[MOST], values[MOST];
static size_t nr_values;
static struct ms_error error;

/* Value i lies at byte 8 i of the slot, modulo its size. */
static uint64_t offset_of(size_t i)
{
	return i * 8 % (PAGES * PAGE);
}

static struct ms_batch batch(void)
{
	return (struct ms_batch){ gpas, 8, values, 8, nr_values, NULL, NULL };
}

static void choose(size_t n)
{
	nr_values = n;
	for (size_t i = 0; i < n; i++) {
		gpas[i] = GFN * PAGE + offset_of(i);
		values[i] = i * 0x0101010101010101u + 3;
	}
}

/* With the policy EAGER the set has an index. */
static void make_index(void)
{
	static uint64_t hvas[4];
	struct ms_batch few = { gpas, 8, hvas, 8, 4, NULL, NULL };

	CHECK_EQ(ms_set_index_policy(vm, policy), 0);
	for (size_t i = 0; i < 4; i++)
		gpas[i] = GFN * PAGE;
	for (int i = 0; i < 3; i++)
		CHECK_EQ(ms_gpa_to_hva_many(vm, 0, &few, false), 0);
	CHECK_EQ(!!vm_active_set(vm, 0)->index, policy == MS_INDEX_EAGER && vm->design->indexed);
}

/* Slot 1 is at GFN and slot 2 at OTHER_GFN. */
static void begin(const char *name, uint32_t flags, size_t n)
{
	script_begin(name);
	vm = new_vm(1);
	released = other_released = 0;
	g = guest_slot(vm, 1, GFN, PAGES, flags);
	g->released = &released;
	other = guest_slot(vm, 2, OTHER_GFN, PAGES, 0);
	other->released = &other_released;
	make_index();
	choose(n);
	error = (struct ms_error){ .rule = MS_RULE_NONE };
}

static void end(void)
{
	script_end_vm(vm);
	CHECK_EQ(released, 1);
	CHECK_EQ(other_released, 1);
}

static void read_values(struct actor *me)
{
	struct ms_batch b = batch();

	me->r = ms_read_guest_u64_many(vm, 0, &b, &error);
}

static void write_values(struct actor *me)
{
	struct ms_batch b = batch();

	me->r = ms_write_guest_u64_many(vm, 0, &b, &error);
}

/* Without other data: values of the other slot, for a second holder. */
static void read_other(struct actor *me)
{
	uint64_t gpa = OTHER_GFN * PAGE + 8, value = 0;
	struct ms_batch b = { &gpa, 8, &value, 8, 1, NULL, NULL };

	me->r = ms_read_guest_u64_many(vm, 0, &b, NULL);
	me->hva = value;
}

static void delete_1(struct actor *me)
{
	me->r = ms_delete_memslot(vm, 0, 1, NULL);
}

static uint64_t guest_word(uint32_t number, size_t offset)
{
	uint64_t word = 0;

	for (size_t i = 0; i < 8; i++)
		word |= (uint64_t)guest_byte(number, offset + i) << 8 * i;
	return word;
}

static void check_read(void)
{
	for (size_t i = 0; i < nr_values; i++)
		CHECK_EQ(values[i], guest_word(1, offset_of(i)));
}

static void check_written(void)
{
	for (size_t i = 0; i < nr_values; i++)
		CHECK(!memcmp(g->at + offset_of(i), &values[i], 8));
}

/* The dirty bits of the first n values. */
static uint64_t marks_of(size_t n)
{
	return ((uint64_t)1 << (n * 8 + PAGE - 1) / PAGE) - 1;
}

/* ---- a delete between translation and copy ---- */

/* One section translates so many values. */
static const size_t lengths[] = { 1, 2, 511, 512, 513, 4096 };

static void test_delete_in_a_read(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		struct actor reader;

		begin("the slot is deleted before the values are read", 0, lengths[i]);
		act_until(&reader, read_values, POINT_READER_HELD);
		for (size_t more = 512; more < lengths[i]; more += 512)
			go_until(&reader, POINT_READER_HELD);
		CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0); /* it does not wait */
		CHECK_EQ(released, 0);
		finish(&reader);
		CHECK_EQ(reader.r, 0);
		check_read();
		CHECK_EQ(released, 1);
		end();
	}
}

static void test_delete_in_a_write(void)
{
	for (size_t i = 0; i < 2 * ARRAY_SIZE(lengths); i++) {
		struct actor writer;

		begin("the slot is deleted before the values are written", i % 2 ? LOG : 0, lengths[i / 2]);
		ms_backing_get(g->backing);
		act_until(&writer, write_values, POINT_READER_HELD);
		CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
		finish(&writer);
		CHECK_EQ(writer.r, 0);
		check_written();
		CHECK_EQ(released, 0);
		ms_backing_put(g->backing);
		end();
	}
}

/* The values replace the gpas, so the call cannot start again. */
static void read_in_place(struct actor *me)
{
	struct ms_batch b = { gpas, 8, gpas, 8, nr_values, NULL, NULL };

	me->r = ms_read_guest_u64_many(vm, 0, &b, &error);
}

static void test_delete_in_a_read_in_place(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		struct actor reader;

		begin("the slot is deleted before values replace their gpas", 0, lengths[i]);
		act_until(&reader, read_in_place, POINT_READER_HELD);
		CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
		finish(&reader);
		CHECK_EQ(reader.r, 0);
		for (size_t k = 0; k < nr_values; k++)
			CHECK_EQ(gpas[k], guest_word(1, offset_of(k)));
		end();
	}
}

/* Later values are in another state, so the read starts again, and finds a hole. */
static void test_overtaken(void)
{
	struct actor reader;

	begin("the slot is deleted between two sections of a read", 0, 1000);
	act_until(&reader, read_values, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	finish(&reader);
	check_refused(reader.r, &error, MS_RULE_GUEST_HOLE, GFN * PAGE, 0);
	CHECK_EQ(released, 1);
	end();
}

/* Each value crosses a page boundary, most of them a slot boundary too.  Only the translation knows both slots. */
static void test_crossing_values(void)
{
	struct actor reader;

	begin("the slots of crossing values are deleted before the copy", 0, 250);
	CHECK_EQ(guest_map_part(vm, g, 3, 0x1000, 3, 1, 0), 0);
	CHECK_EQ(guest_map_part(vm, g, 4, 0x1001, 9, 1, 0), 0);
	for (size_t i = 0; i < nr_values; i++)
		gpas[i] = i % 3 ? 0x1001 * PAGE - 1 - i % 7 : (GFN + 1) * PAGE - 4;
	act_until(&reader, read_values, POINT_READER_HELD);
	for (uint32_t id = 1; id <= 4; id++)
		if (id != 2)
			CHECK_EQ(ms_delete_memslot(vm, 0, id, NULL), 0);
	CHECK_EQ(released, 0);
	finish(&reader);
	CHECK_EQ(reader.r, 0);
	for (size_t i = 0; i < nr_values; i++)
		for (size_t k = 0, first = 1 + i % 7; k < 8; k++)
			CHECK_EQ((unsigned char)(values[i] >> 8 * k),
				 i % 3 ? guest_byte(1, k < first ? 4 * PAGE - first + k : 9 * PAGE + k - first) :
					 guest_byte(1, PAGE - 4 + k));
	end();
}

static void test_close(void)
{
	for (int i = 0; i < 2; i++) {
		struct actor caller;

		begin("the VM is closed before the values are copied", LOG, 512);
		act_until(&caller, i ? write_values : read_values, POINT_READER_HELD);
		CHECK_EQ(ms_vm_close(vm, NULL), 0);
		CHECK_EQ(released + other_released, 0);
		CHECK_EQ(ms_vm_close(vm, NULL), 0);
		finish(&caller);
		CHECK_EQ(caller.r, 0);
		CHECK_EQ(released + other_released, 2);
		if (!i)
			check_read();
		end();
	}
}

/* ---- the ends of holds ---- */

static void test_last_hold(void)
{
	struct actor first, second;

	begin("two calls hold a slot that is deleted", 0, 9);
	act_until(&first, read_values, POINT_READER_HELD);
	act_until(&second, read_other, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	finish(&second);
	CHECK_EQ(released, 0);
	finish(&first);
	CHECK_EQ(released, 1);
	check_read();
	end();
}

/* A hold that begins after the delete does not keep the memory: holds that overlap delay no release for ever. */
static void test_overlapping_holds(void)
{
	struct actor callers[8];

	begin("later holds do not keep the memory of earlier deletes", 0, 9);
	act_until(&callers[0], read_other, POINT_READER_HELD);
	for (unsigned i = 1; i < ARRAY_SIZE(callers); i++) {
		struct guest *slot = guest_slot(vm, 10 + i, 0x1000 + i * PAGES, PAGES, LOG);
		unsigned count = 0;

		slot->released = &count;
		nr_actors = 0;
		CHECK_EQ(ms_delete_memslot(vm, 0, 10 + i, NULL), 0);
		act_until(&callers[i], read_other, POINT_READER_HELD);
		CHECK_EQ(count, 0);
		finish(&callers[i - 1]);
		CHECK_EQ(count, 1);
		CHECK_EQ(callers[i - 1].hva, guest_word(2, 8));
	}
	finish(&callers[ARRAY_SIZE(callers) - 1]);
	end();
}

/* Of two deletes the older one is over first. */
static void test_two_epochs(void)
{
	struct actor first, second;

	begin("each hold keeps the memory of its own time", 0, 9);
	act_until(&first, read_values, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	act_until(&second, read_other, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 2, NULL), 0);
	finish(&first);
	CHECK_EQ(released, 1);
	CHECK_EQ(other_released, 0);
	finish(&second);
	CHECK_EQ(other_released, 1);
	end();
}

/* The hold is over before the writer looks for it. */
static void test_end_before_the_retirement(void)
{
	struct actor reader;

	begin("a hold ends before a delete looks for holds", 0, 9);
	act_until(&reader, read_values, POINT_READER_HOLD_OVER);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	CHECK_EQ(released, 1);
	finish(&reader);
	end();
}

/* The hold ends, and has not looked into the list yet, when the writer looks again. */
static void test_end_during_the_retirement(void)
{
	struct actor reader, writer;

	begin("a hold ends between the two looks of a delete", 0, 9);
	act_until(&reader, read_values, POINT_READER_HELD);
	act_until(&writer, delete_1, POINT_WRITER_RETIRED);
	go_until(&reader, POINT_READER_HOLD_OVER);
	finish(&writer);
	CHECK_EQ(released, 1);
	finish(&reader);
	CHECK_EQ(released, 1);
	end();
}

/* The hold finds the slot in the list before the writer looks again. */
static void test_release_during_the_retirement(void)
{
	struct actor reader, writer;

	begin("a hold releases the memory inside the delete", 0, 9);
	act_until(&reader, read_values, POINT_READER_HELD);
	act_until(&writer, delete_1, POINT_WRITER_RETIRED);
	finish(&reader);
	CHECK_EQ(released, 1);
	finish(&writer);
	CHECK_EQ(released, 1);
	end();
}

/* The first one has taken the list when the second one looks into it. */
static void test_ends_side_by_side(void)
{
	struct actor first, second;

	begin("the last hold finds the list empty, because another one has taken it", 0, 9);
	act_until(&first, read_values, POINT_READER_HELD);
	act_until(&second, read_other, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	go_until(&first, POINT_READER_PUTS_BACK);
	finish(&second);
	CHECK_EQ(released, 0);
	finish(&first);
	CHECK_EQ(released, 1);
	end();
}

/* A call is about to put two slots back.  Meanwhile the hold of the older one ends, so the call drops this one. */
static void test_two_epochs_put_back(void)
{
	struct actor first, second, third;

	begin("of two slots that are put back, one can be dropped by then", 0, 9);
	for (uint32_t id = 10; id < 12; id++)
		CHECK_EQ(guest_map_part(vm, g, id, 0x1000 + id, id - 10, 1, 0), 0);
	act_until(&first, read_values, POINT_READER_HELD);
	act_until(&second, read_other, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 10, NULL), 0);
	act_until(&third, read_other, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 11, NULL), 0);
	go_until(&first, POINT_READER_PUTS_BACK);
	finish(&second);
	CHECK_EQ(atomic_load(&g->backing->refs), 3);
	finish(&first);
	CHECK_EQ(atomic_load(&g->backing->refs), 2);
	finish(&third);
	CHECK_EQ(atomic_load(&g->backing->refs), 1);
	end();
}

/* Some slots of the list may be dropped, others not. */
static void test_many_retired(void)
{
	struct actor first, second;
	struct ms_stats before;

	begin("many slots are deleted while two calls hold", 0, 9);
	for (uint32_t id = 10; id < 30; id++)
		CHECK_EQ(guest_map_part(vm, g, id, 0x1000 + id, id - 10, 1, id % 2 ? LOG : 0), 0);
	before = held_by(vm);
	act_until(&first, read_values, POINT_READER_HELD);
	for (uint32_t id = 10; id < 20; id++)
		CHECK_EQ(ms_delete_memslot(vm, 0, id, NULL), 0);
	act_until(&second, read_other, POINT_READER_HELD);
	for (uint32_t id = 20; id < 30; id++)
		CHECK_EQ(ms_delete_memslot(vm, 0, id, NULL), 0);
	CHECK_EQ(atomic_load(&g->backing->refs), 21);
	finish(&first);
	CHECK_EQ(atomic_load(&g->backing->refs), 11);
	finish(&second);
	CHECK_EQ(atomic_load(&g->backing->refs), 1);
	CHECK_EQ(ms_check(vm, NULL, NULL), 0); /* frees the slots */
	if (vm->design->shares_slots && policy == MS_INDEX_OFF)
		CHECK_EQ(held_by(vm).blocks, before.blocks - 30 + 2); /* 10 logs; the records of two threads */
	CHECK_EQ(atomic_load(&vm->holds.retired), NULL);
	CHECK_EQ(atomic_load(&vm->holds.emptied), NULL);
	end();
}

/* A refused move publishes an INVALID copy, and takes it back. */
static int refuse(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	return -1;
}

static void test_refused_move(void)
{
	struct ms_listener listener = { LISTENER_SIZE, .prepare = refuse };
	struct actor reader;

	begin("a move is refused before the values are read", 0, 9);
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	act_until(&reader, read_values, POINT_READER_HELD);
	CHECK(ms_move_memslot(vm, 0, 1, 0x900 * PAGE, NULL) < 0);
	finish(&reader);
	CHECK_EQ(reader.r, 0);
	check_read();
	CHECK_EQ(released, 0);
	CHECK_EQ(ms_remove_listener(vm, &listener, NULL), 0);
	end();
}

/* ---- threads, VMs and processes that end ---- */

static void exit_when_held(enum point point)
{
	at_point(point);
	if (this_actor && point == POINT_READER_HELD)
		pthread_exit(NULL);
}

/* The thread is inside the call and never comes back. */
static void test_end_of_a_thread(void)
{
	struct actor reader;

	begin("the thread of a hold ends", LOG, 9);
	point_set_hook(exit_when_held);
	act_until(&reader, read_values, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	CHECK_EQ(released, 0);
	go(&reader, NO_STOP);
	CHECK_EQ(pthread_join(reader.thread, NULL), 0);
	CHECK_EQ(ms_check(vm, NULL, NULL), 0); /* the next call that takes slots_lock */
	CHECK_EQ(released, 1);
	end();
}

/* The end of the VM drops what is left. */
static void test_end_of_the_vm(void)
{
	struct actor reader;

	begin("the VM ends after the thread of a hold", LOG, 9);
	point_set_hook(exit_when_held);
	act_until(&reader, read_values, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	go(&reader, NO_STOP);
	CHECK_EQ(pthread_join(reader.thread, NULL), 0);
	CHECK_EQ(released + other_released, 0);
	ms_vm_destroy(vm); /* no call has taken slots_lock since */
	point_set_hook(NULL);
	CHECK_EQ(released, 1);
	CHECK_EQ(other_released, 1);
}

/* The child has the list, but not the thread that holds. */
static int child(void)
{
	uint64_t gpa = OTHER_GFN * PAGE, value;
	struct ms_batch b = { &gpa, 8, &value, 8, 1, NULL, NULL };

	if (ms_read_guest_u64_many(vm, 0, &b, NULL) || value != guest_word(2, 0) || !released)
		return 1;
	ms_vm_destroy(vm);
	return other_released != 1;
}

static void test_fork(void)
{
	struct actor reader;
	int status = 0;
	pid_t pid;

	if (TEST_SANITIZED) {
		puts("guest holds: NOT tested under sanitizers: fork() next to a call that holds");
		return;
	}
	begin("a process forks while another thread holds", LOG, 9);
	act_until(&reader, read_values, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	pid = fork();
	if (!pid)
		_exit(child());
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
	finish(&reader);
	check_read();
	CHECK_EQ(released, 1);
	end();
}

/* ---- marks ---- */

static void check_marked(size_t n)
{
	check_written();
	CHECK_EQ(guest_dirty(vm, 1), marks_of(n));
}

static const enum point stops[] = { POINT_READER_HELD, POINT_READER_MARKS };

static void test_move(void)
{
	for (size_t i = 0; i < 4; i++) {
		struct actor writer;

		begin("the slot is moved before the values are written or marked", LOG, i / 2 ? 3000 : 300);
		act_until(&writer, write_values, stops[i % 2]);
		CHECK_EQ(ms_move_memslot(vm, 0, 1, 0x900 * PAGE, NULL), 0);
		CHECK_EQ(guest_dirty(vm, 1), 0);
		finish(&writer);
		CHECK_EQ(writer.r, 0);
		check_marked(nr_values);
		end();
	}
}

static void test_new_log(void)
{
	for (size_t i = 0; i < 4; i++) {
		struct actor writer;

		begin("logging is switched on before the values are written or marked", 0, i / 2 ? 3000 : 300);
		act_until(&writer, write_values, stops[i % 2]);
		CHECK_EQ(ms_set_memslot_flags(vm, 0, 1, LOG, 0, NULL), 0);
		finish(&writer);
		check_marked(nr_values);
		end();
	}
}

static void test_other_log(void)
{
	for (size_t i = 0; i < 2; i++) {
		struct actor writer;

		begin("logging is switched off and on before the values are written or marked", LOG, 3000);
		act_until(&writer, write_values, stops[i]);
		CHECK_EQ(ms_set_memslot_flags(vm, 0, 1, 0, LOG, NULL), 0);
		CHECK_EQ(ms_set_memslot_flags(vm, 0, 1, LOG, 0, NULL), 0);
		finish(&writer);
		check_marked(nr_values);
		end();
	}
}

/* The log of the deleted slot is still there when the call marks it. */
static void test_mark_after_a_delete(void)
{
	for (size_t i = 0; i < 2; i++) {
		struct actor writer;

		begin("the slot is deleted before the values are written or marked", LOG, 3000);
		ms_backing_get(g->backing);
		act_until(&writer, write_values, stops[i]);
		CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
		finish(&writer);
		CHECK_EQ(writer.r, 0);
		check_written();
		guest_map(vm, g, 1, GFN, LOG);
		CHECK_EQ(guest_dirty(vm, 1), 0);
		ms_backing_put(g->backing);
		end();
	}
}

/* Other slots have the memory by now, at other places: one of them has the pages from 5 on. */
static void test_other_ids(void)
{
	struct actor writer;

	begin("other slots get the memory before the values are written", LOG, PAGES * PAGE / 8 / 5);
	act_until(&writer, write_values, POINT_READER_HELD);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	CHECK_EQ(guest_map_part(vm, g, 7, 0x900, 0, PAGES, LOG), 0);
	CHECK_EQ(guest_map_part(vm, g, 8, 0x100, 5, 20, LOG), 0);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	check_written();
	CHECK_EQ(guest_dirty(vm, 7), marks_of(nr_values));
	CHECK_EQ(guest_dirty(vm, 8), marks_of(nr_values) >> 5);
	end();
}

/* A value that crosses from a slot with a log into one without, or back, marks the right page. */
static void test_marks_of_crossing_values(void)
{
	struct actor writer;

	begin("crossing values are marked after a move", 0, 2);
	CHECK_EQ(guest_map_part(vm, g, 3, 0x1000, 3, 2, LOG), 0);
	CHECK_EQ(guest_map_part(vm, g, 4, 0x1002, 9, 2, 0), 0);
	CHECK_EQ(guest_map_part(vm, g, 5, 0x1004, 12, 2, LOG), 0);
	gpas[0] = 0x1002 * PAGE - 3;
	gpas[1] = 0x1004 * PAGE - 5;
	act_until(&writer, write_values, POINT_READER_HELD);
	CHECK_EQ(ms_move_memslot(vm, 0, 3, 0x2000 * PAGE, NULL), 0);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 4, LOG, 0, NULL), 0);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	CHECK(!memcmp(g->at + 5 * PAGE - 3, &values[0], 3) && !memcmp(g->at + 9 * PAGE, (char *)&values[0] + 3, 5));
	CHECK(!memcmp(g->at + 11 * PAGE - 5, &values[1], 5) && !memcmp(g->at + 12 * PAGE, (char *)&values[1] + 5, 3));
	CHECK_EQ(guest_dirty(vm, 3), 2);
	CHECK_EQ(guest_dirty(vm, 4), 3);
	CHECK_EQ(guest_dirty(vm, 5), 1);
	end();
}

/* The write ends while an update has published a hole: its marks are in the noted log only, and go on from there. */
static void test_gap(void)
{
	struct ms_memslot value;
	struct ms_slot *old, *draft;
	struct ms_update *update;
	struct actor writer;

	begin("values are written while an update has published a hole", LOG, 3000);
	value = (struct ms_memslot){ 0x102, 20, (uint64_t)(uintptr_t)g->at + 2 * PAGE, 1, 0, LOG, 0 };
	act_until(&writer, write_values, POINT_READER_HELD);
	CHECK_EQ(ms_update_begin(vm, 0, &update, NULL), 0);
	old = ms_update_find(update, true, 1);
	CHECK_EQ(ms_update_copy(update, old, &value, &draft, NULL), 0);
	CHECK_EQ(ms_update_replace(update, old, NULL, NULL), 0);
	CHECK_EQ(ms_update_swap(update, NULL), 0);
	finish(&writer);
	CHECK_EQ(ms_update_replace(update, old, NULL, NULL), 0);
	CHECK_EQ(ms_update_replace(update, NULL, draft, NULL), 0);
	CHECK_EQ(ms_update_swap(update, NULL), 0);
	CHECK_EQ(ms_update_replace(update, NULL, draft, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	check_written();
	CHECK_EQ(guest_dirty(vm, 1), marks_of(3000) >> 2);
	end();
}

/* The update ends while the call holds: its old slot is retired too. */
static void test_update(void)
{
	struct ms_memslot value;
	struct ms_slot *old, *draft;
	struct ms_update *update;
	struct actor writer;

	begin("an update gives the slot other memory before the values are written", LOG, 512);
	value = (struct ms_memslot){ GFN, 1, (uint64_t)(uintptr_t)values & ~(uint64_t)4095, 1, 0, LOG, 0 };
	ms_backing_get(g->backing);
	act_until(&writer, write_values, POINT_READER_HELD);
	CHECK_EQ(ms_update_begin(vm, 0, &update, NULL), 0);
	old = ms_update_find(update, true, 1);
	CHECK_EQ(ms_update_copy(update, old, &value, &draft, NULL), 0);
	CHECK_EQ(ms_update_replace(update, old, draft, NULL), 0);
	CHECK_EQ(ms_update_activate(update, old, draft, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	CHECK_EQ(atomic_load(&g->backing->refs), 2);
	finish(&writer);
	CHECK_EQ(atomic_load(&g->backing->refs), 1);
	check_written();
	CHECK_EQ(guest_dirty(vm, 1), 0);
	ms_backing_put(g->backing);
	end();
}

/* A change of the log waits for the section of the mark, so it takes the bit over. */
static void check_vm(struct actor *me)
{
	me->r = ms_check(vm, NULL, NULL);
}

#define LARGE_SIZE (DIRTY_SUMMARY_MIN * PAGE)

static void release_large(void *opaque)
{
	munmap(opaque, LARGE_SIZE);
}

static void test_check_during_a_mark(void)
{
	void *at = mmap(NULL, LARGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	region_t r = region(0, 9, 0x100000, DIRTY_SUMMARY_MIN, LOG);
	struct ms_backing *backing;
	struct actor writer, checker;

	begin("a check while many values are marked in a large log", 0, 9);
	CHECK(at != MAP_FAILED);
	r.userspace_addr = (uint64_t)(uintptr_t)at;
	CHECK_EQ(ms_backing_create(at, LARGE_SIZE, 0, release_large, at, &backing), 0);
	CHECK_EQ(ms_map_backing(vm, &r, backing, NULL, NULL), 0);
	ms_backing_put(backing);
	for (size_t i = 0; i < nr_values; i++)
		gpas[i] += (0x100000 - GFN) * PAGE;
	act_until(&writer, write_values, POINT_READER_NOTES_LOWER);
	act_until_waits(&checker, check_vm, vm);
	finish_both(&writer, &checker);
	CHECK_EQ(writer.r, 0);
	CHECK_EQ(checker.r, 0);
	end();
}

/* ---- refusals and faults ---- */

/* The refusal is that of the state of the call. */
static void test_refused(void)
{
	for (int write = 0; write < 2; write++) {
		struct actor caller;

		begin("the slots change after a value is refused", 0, 300);
		gpas[200] = 0x3000 * PAGE - 3; /* no slot there */
		gpas[250] = 0x5000 * PAGE;
		act_until(&caller, write ? write_values : read_values, POINT_READER_HELD);
		CHECK_EQ(ms_move_memslot(vm, 0, 1, 0x2FFF * PAGE, NULL), 0);
		finish(&caller);
		check_refused(caller.r, &error, MS_RULE_GUEST_HOLE, 0x3000 * PAGE - 3, 1600);
		CHECK_EQ(error.index, 200);
		nr_values = 200;
		if (write)
			check_written();
		else
			check_read();
		end();
	}
}

/* The memory is gone.  The error names the slot unless the state is another one by now. */
static void test_fault(bool write, bool moved)
{
	struct actor caller;

	begin("memory is truncated before the copy", LOG, 2000);
	gpas[500] = (GFN + 20) * PAGE - 3;
	act_until(&caller, write ? write_values : read_values, POINT_READER_HELD);
	CHECK_EQ(ftruncate(g->fd, 20 * PAGE), 0);
	if (moved) {
		CHECK_EQ(ms_move_memslot(vm, 0, 1, 0x900 * PAGE, NULL), 0);
		CHECK_EQ(guest_map_part(vm, other, 3, GFN + 10, 0, 20, 0), 0); /* another slot has the gpa */
	}
	finish(&caller);
	check_refused(caller.r, &error, MS_RULE_GUEST_FAULT, (GFN + 20) * PAGE, 8 * 500 + 3);
	CHECK_EQ(error.index, 500);
	CHECK_EQ(error.other.npages, moved ? 0 : PAGES);
	CHECK_EQ(error.other.id, moved ? 0 : 1);
	if (write)
		CHECK_EQ(guest_dirty(vm, 1), 1 | (uint64_t)3 << 19);
	end();
}

/* ---- calls that stay in their section ---- */

static void begin_raw(const char *name, size_t n)
{
	static _Alignas(4096) unsigned char memory[PAGES * PAGE];
	struct ms_config config = default_config(1);
	region_t r = region(0, 1, GFN, PAGES, 0);

	script_begin(name);
	config.dereference_raw_addresses = true;
	vm = vm_with(&config);
	CHECK_EQ(ms_set_index_policy(vm, policy), 0);
	memset(memory, 7, sizeof(memory));
	r.userspace_addr = (uint64_t)(uintptr_t)memory;
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	choose(n);
}

/* The second section is that of the values, and it has copied them when it leaves. */
static void check_in_section(struct actor *reader)
{
	struct actor writer;

	act_until(reader, read_values, POINT_READER_LEAVES);
	go_until(reader, POINT_READER_LEAVES);
	act_until_waits(&writer, delete_1, vm);
	finish_both(reader, &writer);
	CHECK_EQ(reader->r, 0);
	CHECK_EQ(writer.r, 0);
}

static void test_raw(void)
{
	struct actor reader;

	begin_raw("a raw slot is deleted before a few values are read", 9);
	check_in_section(&reader);
	for (size_t i = 0; i < nr_values; i++)
		CHECK_EQ(values[i], 0x0707070707070707u);
	script_end_vm(vm);
}

/* A thread without a record has no place for a hold. */
static void test_no_record(void)
{
	struct actor reader;

	begin("a thread without a record reads a few values", 0, 9);
	memory_fail(&vm->memory, 1, true);
	act_until(&reader, read_values, POINT_READER_LEAVES);
	go_until(&reader, POINT_READER_LEAVES);
	memory_fail(&vm->memory, 0, false);
	check_read();
	finish(&reader);
	end();
}

static void test_no_memory_for_a_chunk(void)
{
	struct actor writer, deleter;

	begin("values are written without memory for the chunk", LOG, 3000);
	act_until(&writer, write_values, POINT_READER_LEAVES); /* the thread has its record */
	memory_fail(&vm->memory, 1, true);
	go_until(&writer, POINT_READER_MARKS);
	memory_fail(&vm->memory, 0, false);
	ms_backing_get(g->backing);
	act_until_waits(&deleter, delete_1, vm);
	finish_both(&writer, &deleter);
	CHECK_EQ(writer.r, 0);
	check_written();
	ms_backing_put(g->backing);
	end();
}

/* ---- many values next to deletes ---- */

static _Atomic bool stop;

static void fill_and_free(void *opaque)
{
	memset(opaque, 0xDD, PAGES * PAGE);
	free(opaque);
}

/* Slot 1 has the same byte everywhere, another one each time; slot 2 has a log. */
static void map_filled(uint32_t id, unsigned char byte)
{
	void *memory = aligned_alloc(PAGE, PAGES * PAGE);
	region_t r = region(0, id, id * GFN, PAGES, id == 2 ? LOG : 0);
	struct ms_backing *backing;

	CHECK(memory);
	memset(memory, byte, PAGES * PAGE);
	CHECK_EQ(ms_backing_create(memory, PAGES * PAGE, 0, fill_and_free, memory, &backing), 0);
	r.userspace_addr = (uint64_t)(uintptr_t)memory;
	CHECK_EQ(ms_map_backing(vm, &r, backing, NULL, NULL), 0);
	ms_backing_put(backing);
}

#define SOME 1000u

/* Another incarnation, or released memory, would be noticed; AddressSanitizer sees each use of it.  A hole is no error.
 * */
static void *copy_until_stop(void *context)
{
	static _Thread_local uint64_t from[SOME], to[SOME], read[SOME];
	size_t n = (size_t)(uintptr_t)context;
	struct ms_batch in = { from, 8, read, 8, n, NULL, NULL }, out = { to, 8, read, 8, n, NULL, NULL };

	for (size_t i = 0; i < n; i++) {
		from[i] = GFN * PAGE + i * 4093 % (PAGES * PAGE - 8);
		to[i] = 2 * GFN * PAGE + i * 4093 % (PAGES * PAGE - 8);
	}
	while (!atomic_load(&stop)) {
		struct ms_error err = { .done = 0 };
		int r = ms_read_guest_u64_many(vm, 0, &in, &err);

		CHECK(!r || err.rule == MS_RULE_GUEST_HOLE);
		for (size_t i = 0; !r && i < n; i++)
			CHECK_EQ(read[i], read[0] % 256 * 0x0101010101010101u);
		CHECK(r || (unsigned char)read[0] < 200);
		r = ms_write_guest_u64_many(vm, 0, &out, &err);
		CHECK(!r || err.rule == MS_RULE_GUEST_HOLE);
	}
	return NULL;
}

static void test_values_next_to_deletes(void)
{
	const size_t sizes[] = { 400, SOME };
	pthread_t threads[ARRAY_SIZE(sizes)];

	script_begin("values are copied next to deletes");
	vm = new_vm(1);
	CHECK_EQ(ms_set_index_policy(vm, policy), 0);
	atomic_store(&stop, false);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, copy_until_stop, (void *)(uintptr_t)sizes[i]), 0);
	for (uint64_t i = 0, n = test_times(150); i < n; i++) {
		map_filled(1, (unsigned char)(i % 200));
		map_filled(2, 0);
		CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
		CHECK_EQ(ms_delete_memslot(vm, 0, 2, NULL), 0);
	}
	atomic_store(&stop, true);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	CHECK_EQ(atomic_load(&vm->holds.retired), NULL);
	script_end_vm(vm);
}

/* ---- page faults that block ---- */

#define BLOCKED 7u /* the page whose fault blocks */

static int faults; /* a userfaultfd */
static unsigned char *lazy;
static _Atomic unsigned lazy_released;

/* Returns false if this process may not use one. */
static bool open_faults(void)
{
	struct uffdio_api api = { .api = UFFD_API };

	faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	return faults >= 0 && !ioctl(faults, UFFDIO_API, &api);
}

/* Gives the memory a page, with the content of a guest's page.  Threads that wait for it go on. */
static void provide(size_t page)
{
	static _Alignas(4096) unsigned char content[PAGE];
	struct uffdio_copy copy = { (uintptr_t)lazy + page * PAGE, (uintptr_t)content, PAGE, 0, 0 };

	for (size_t i = 0; i < PAGE; i++)
		content[i] = guest_byte(1, page * PAGE + i);
	CHECK_EQ(ioctl(faults, UFFDIO_COPY, &copy), 0);
}

static void await_fault(void)
{
	struct uffd_msg message;

	CHECK_EQ(read(faults, &message, sizeof(message)), sizeof(message));
	CHECK_EQ(message.event, UFFD_EVENT_PAGEFAULT);
	CHECK_EQ(message.arg.pagefault.address / PAGE, (uintptr_t)lazy / PAGE + BLOCKED);
}

static void release_lazy(void *opaque)
{
	(void)opaque;
	munmap(lazy, PAGES * PAGE);
	atomic_fetch_add(&lazy_released, 1);
}

static struct ms_backing *lazy_slot(void)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	region_t r = region(0, 1, GFN, PAGES, 0);
	struct ms_backing *backing;

	lazy = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(lazy != MAP_FAILED);
	reg.range = (struct uffdio_range){ (uintptr_t)lazy, PAGES * PAGE };
	CHECK_EQ(ioctl(faults, UFFDIO_REGISTER, &reg), 0);
	for (size_t page = 0; page < PAGES; page++)
		if (page != BLOCKED)
			provide(page);
	CHECK_EQ(ms_backing_create(lazy, PAGES * PAGE, 0, release_lazy, NULL, &backing), 0);
	r.userspace_addr = (uintptr_t)lazy;
	CHECK_EQ(ms_map_backing(vm, &r, backing, NULL, NULL), 0);
	return backing;
}

static struct ms_backing *begin_lazy(const char *name)
{
	struct ms_backing *backing;

	script_begin(name);
	vm = new_vm(1);
	atomic_store(&lazy_released, 0);
	backing = lazy_slot();
	other = guest_slot(vm, 2, OTHER_GFN, PAGES, 0);
	other->released = NULL;
	make_index();
	return backing;
}

/* The slot is deleted while a page fault of the call blocks. */
static void delete_in_a_fault(void (*run)(struct actor *me), struct actor *caller)
{
	act(caller, run, NO_STOP);
	await_fault();
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	CHECK_EQ(ms_move_memslot(vm, 0, 2, 0x900 * PAGE, NULL), 0);
	CHECK_EQ(atomic_load(&lazy_released), 0);
	CHECK_EQ(atomic_load(&caller->ended), 0);
	provide(BLOCKED);
	await_end(caller);
}

/* Value `at` lies in the page whose fault blocks. */
static void choose_around(size_t n, size_t at)
{
	nr_values = n;
	for (size_t i = 0; i < n; i++) {
		gpas[i] = (GFN + (i % 2 ? 3 : 9)) * PAGE + i % 512 * 8;
		values[i] = ~(uint64_t)i;
	}
	gpas[at] = (GFN + BLOCKED) * PAGE + 80;
}

static void test_blocked_read(size_t n, size_t at)
{
	struct actor reader;

	ms_backing_put(begin_lazy("a page fault of a read of values blocks"));
	choose_around(n, at);
	delete_in_a_fault(read_values, &reader);
	if (n > 512 && at < n / 2) { /* the next values are in another state */
		check_refused(reader.r, &error, MS_RULE_GUEST_HOLE, gpas[0], 0);
	} else {
		CHECK_EQ(reader.r, 0);
		for (size_t i = 0; i < n; i++)
			CHECK_EQ(values[i], guest_word(1, gpas[i] - GFN * PAGE));
	}
	CHECK_EQ(atomic_load(&lazy_released), 1);
	script_end_vm(vm);
}

static void test_blocked_write(size_t n, size_t at)
{
	struct ms_backing *backing = begin_lazy("a page fault of a write of values blocks");
	struct actor writer;

	choose_around(n, at);
	delete_in_a_fault(write_values, &writer);
	CHECK_EQ(writer.r, 0);
	CHECK_EQ(atomic_load(&backing->refs), 1);
	for (size_t i = n > 512 ? n - 512 : 0; i < n; i++)
		CHECK(!memcmp(lazy + (gpas[i] - GFN * PAGE), &values[i], 8));
	CHECK(!memcmp(lazy + (gpas[at] - GFN * PAGE), &values[at], 8));
	ms_backing_put(backing);
	script_end_vm(vm);
}

static unsigned char bytes[PAGES * PAGE];

static void read_long(struct actor *me)
{
	me->r = ms_read_guest(vm, 0, GFN * PAGE, bytes, sizeof(bytes), NULL);
}

static void write_long(struct actor *me)
{
	me->r = ms_write_guest(vm, 0, GFN * PAGE, bytes, sizeof(bytes), NULL);
}

static void test_blocked_copy(bool write)
{
	struct ms_backing *backing = begin_lazy("a page fault of a long copy blocks");
	struct actor copier;

	memset(bytes, 0x5A, sizeof(bytes));
	delete_in_a_fault(write ? write_long : read_long, &copier);
	CHECK_EQ(copier.r, 0);
	CHECK(!memcmp(bytes, lazy, sizeof(bytes)));
	CHECK_EQ(bytes[99], write ? 0x5A : guest_byte(1, 99));
	CHECK_EQ(atomic_load(&backing->refs), 1);
	ms_backing_put(backing);
	script_end_vm(vm);
}

static void test_blocked_calls(void)
{
	const size_t sizes[] = { 1, 512, 513, 5000, test_slow ? MOST / 10 : MOST };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		test_blocked_read(sizes[i], sizes[i] - 1);
		test_blocked_read(sizes[i], 0);
		test_blocked_write(sizes[i], sizes[i] - 1);
		test_blocked_write(sizes[i], 0);
	}
	test_blocked_copy(false);
	test_blocked_copy(true);
}

/* ---- all of them ---- */

static void test_holds(void)
{
	test_delete_in_a_read();
	test_delete_in_a_write();
	test_delete_in_a_read_in_place();
	test_overtaken();
	test_crossing_values();
	test_close();
	test_last_hold();
	test_overlapping_holds();
	test_two_epochs();
	test_end_before_the_retirement();
	test_end_during_the_retirement();
	test_release_during_the_retirement();
	test_ends_side_by_side();
	test_two_epochs_put_back();
	test_many_retired();
	test_refused_move();
	test_end_of_a_thread();
	test_end_of_the_vm();
	test_fork();
}

static void test_marks(void)
{
	test_move();
	test_new_log();
	test_other_log();
	test_mark_after_a_delete();
	test_other_ids();
	test_marks_of_crossing_values();
	test_check_during_a_mark();
	test_refused();
	for (int i = 0; i < 4; i++)
		test_fault(i & 1, i & 2);
}

static void test_sections(void)
{
	test_raw();
	test_no_record();
	test_no_memory_for_a_chunk();
}

int main(int argc, char **argv)
{
	bool blocks = open_faults();

	test_init(argc, argv, 60);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		for (policy = MS_INDEX_OFF;; policy = MS_INDEX_EAGER) {
			test_holds();
			test_marks();
			if (policy == MS_INDEX_OFF)
				test_sections();
			if (design_is("tree")) {
				test_gap();
				test_update();
			}
			test_values_next_to_deletes();
			if (blocks)
				test_blocked_calls();
			if (policy == MS_INDEX_EAGER || !design_is("tree"))
				break;
		}
	if (!blocks)
		puts("guest holds: NOT tested: page faults that block; userfaultfd is refused");
	return test_done("guest holds", scripts, "scripts");
}
