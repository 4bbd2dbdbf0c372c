/* SPDX-License-Identifier: MIT */
/*
 * test_guest_pins.c - long copies, and changes of the slots in the middle of them.
 *
 * A long copy stops before its first byte, when it holds its references.  Meanwhile the slot is deleted, moved, resized
 * or gets another log.  No change waits; the copy completes in the memory of its own state; no mark is lost; nothing is
 * released early or left behind.
 */
#include "script.h"

#include "guest.h"

#define PAGES 40u /* of a slot: two of them are a long copy */
#define N (30 * PAGE)
#define GPA (0x100 * PAGE + 100)

static struct ms_vm *vm;
static struct guest *g;
static unsigned released;
static unsigned char data[2 * PAGES * PAGE], out[2 * PAGES * PAGE];
static struct ms_error error;

static void begin(const char *name, uint32_t flags)
{
	script_begin(name);
	vm = new_vm(1);
	released = 0;
	g = guest_slot(vm, 1, 0x100, PAGES, flags);
	g->released = &released;
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (unsigned char)(i * 3 + 5);
	memset(out, 0xEE, sizeof(out));
}

static void end(void)
{
	script_end_vm(vm);
	CHECK_EQ(released, 1);
}

static void read_long(struct actor *me)
{
	me->r = ms_read_guest(vm, 0, GPA, out, N, &error);
}

static void write_long(struct actor *me)
{
	me->r = ms_write_guest(vm, 0, GPA, data, N, &error);
}

static void fill_long(struct actor *me)
{
	me->r = ms_fill_guest(vm, 0, GPA, N, 0x5A, &error);
}

static void copy_long(struct actor *me)
{
	me->r = ms_copy_guest(vm, 0, GPA + 8, GPA, N, &error);
}

static bool is_read(size_t at)
{
	for (size_t i = 0; i < N; i++)
		if (out[i] != guest_byte(1, at + i))
			return false;
	return true;
}

/* The pages of a long access. */
#define MARKED ((((uint64_t)1 << 31) - 1))

/* ---- deletes ---- */

static void test_delete_in_a_read(void)
{
	struct actor reader;

	begin("the slot is deleted before a long read copies", 0);
	act_until(&reader, read_long, POINT_READER_PINNED);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0); /* it does not wait */
	CHECK_EQ(released, 0);
	finish(&reader);
	CHECK_EQ(reader.r, 0);
	CHECK(is_read(100));
	CHECK_EQ(released, 1);
	end();
}

static void test_delete_in_a_write(void)
{
	void (*const runs[])(struct actor *me) = { write_long, fill_long, copy_long };

	for (size_t i = 0; i < ARRAY_SIZE(runs); i++) {
		struct actor writer;

		begin("the slot is deleted before a long write copies", LOG);
		act_until(&writer, runs[i], POINT_READER_PINNED);
		CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
		CHECK_EQ(released, 0);
		finish(&writer);
		CHECK_EQ(writer.r, 0);
		CHECK_EQ(released, 1);
		end();
	}
}

static void test_close_in_a_write(void)
{
	struct actor writer;

	begin("the VM is closed before a long write copies", LOG);
	act_until(&writer, write_long, POINT_READER_PINNED);
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	end();
}

/* ---- marks ---- */

static void check_written(uint32_t id)
{
	CHECK(!memcmp(g->at + 100, data, N));
	CHECK_EQ(guest_dirty(vm, id), MARKED);
}

static void test_move(void)
{
	struct actor writer;

	begin("the slot is moved before a long write copies", LOG);
	act_until(&writer, write_long, POINT_READER_PINNED);
	CHECK_EQ(ms_move_memslot(vm, 0, 1, 0x900 * PAGE, NULL), 0);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	check_written(1);
	end();
}

static void test_new_log(void)
{
	struct actor writer;

	begin("logging is switched on before a long write copies", 0);
	act_until(&writer, write_long, POINT_READER_PINNED);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 1, LOG, 0, NULL), 0);
	CHECK_EQ(guest_dirty(vm, 1), 0);
	finish(&writer);
	check_written(1);
	end();
}

static void test_other_log(void)
{
	struct actor writer;

	begin("logging is switched off and on before a long write copies", LOG);
	act_until(&writer, write_long, POINT_READER_PINNED);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 1, 0, LOG, NULL), 0);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 1, LOG, 0, NULL), 0);
	CHECK_EQ(ms_move_memslot(vm, 0, 1, 0x900 * PAGE, NULL), 0);
	finish(&writer);
	check_written(1);
	end();
}

/* The log is harvested between the write and its mark: the next harvest finds the mark. */
static void test_harvest(void)
{
	struct actor writer;

	begin("a harvest comes before the mark of a long write", LOG);
	act_until(&writer, write_long, POINT_READER_MARKS);
	CHECK(!memcmp(g->at + 100, data, N));
	CHECK_EQ(guest_dirty(vm, 1), 0);
	finish(&writer);
	check_written(1);
	end();
}

/* Another slot has the id by now, with the same memory or without. */
static void test_other_slot(void)
{
	struct actor writer;
	struct guest *other;

	begin("another slot takes the id before a long write copies", LOG);
	act_until(&writer, write_long, POINT_READER_PINNED);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	other = guest_slot(vm, 1, 0x100, PAGES, LOG);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	CHECK_EQ(guest_dirty(vm, 1), 0);
	for (size_t i = 0; i < other->size; i++)
		CHECK_EQ(other->at[i], guest_byte(1, i));
	end();
}

/* Two slots with other ids have the pages by now, at other places: one of them has the pages from 5 on. */
static void test_other_ids(void)
{
	struct actor writer;

	begin("other slots get the memory before a long write copies", LOG);
	act_until(&writer, write_long, POINT_READER_PINNED);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	CHECK_EQ(guest_map_part(vm, g, 7, 0x900, 0, PAGES, LOG), 0);
	CHECK_EQ(guest_map_part(vm, g, 8, 0x100, 5, 20, LOG), 0);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	check_written(7);
	CHECK_EQ(guest_dirty(vm, 8), ((uint64_t)1 << 20) - 1);
	end();
}

/* No slot has the memory at the time of the mark: a later slot begins clean. */
static void test_mark_in_a_hole(void)
{
	struct actor writer;

	begin("another slot gets the memory after the mark of a long write", LOG);
	act_until(&writer, write_long, POINT_READER_PINNED);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	ms_backing_get(g->backing);
	finish(&writer);
	guest_map(vm, g, 7, 0x100, LOG);
	ms_backing_put(g->backing);
	CHECK(!memcmp(g->at + 100, data, N));
	CHECK_EQ(guest_dirty(vm, 7), 0);
	end();
}

/* ---- a check ---- */

#define LARGE_GFN 0x100000u
#define LARGE_SIZE (DIRTY_SUMMARY_MIN * PAGE)

static void release_large(void *opaque)
{
	munmap(opaque, LARGE_SIZE);
}

static void large_slot(void)
{
	void *at = mmap(NULL, LARGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	region_t r = region(0, 2, LARGE_GFN, DIRTY_SUMMARY_MIN, LOG);
	struct ms_backing *backing;

	CHECK(at != MAP_FAILED);
	r.userspace_addr = (uint64_t)(uintptr_t)at;
	CHECK_EQ(ms_backing_create(at, LARGE_SIZE, 0, release_large, at, &backing), 0);
	CHECK_EQ(ms_map_backing(vm, &r, backing, NULL, NULL), 0);
	ms_backing_put(backing);
}

static void write_large(struct actor *me)
{
	me->r = ms_write_guest(vm, 0, LARGE_GFN * PAGE, data, N, &error);
}

static void check_vm(struct actor *me)
{
	me->r = ms_check(vm, NULL, NULL);
}

/* A mark in the summary of a large log is inside a section: the check waits for it. */
static void test_check_during_a_mark(void)
{
	struct actor writer, checker;

	begin("a check while a long write marks a large log", 0);
	large_slot();
	act_until(&writer, write_large, POINT_READER_NOTES_LOWER);
	act_until_waits(&checker, check_vm, vm);
	finish_both(&writer, &checker);
	CHECK_EQ(writer.r, 0);
	CHECK_EQ(checker.r, 0);
	CHECK_EQ(ms_check(vm, NULL, NULL), 0);
	end();
}

/* ---- updates ---- */

static struct ms_memslot value_of(uint64_t gfn, uint64_t first, uint64_t npages)
{
	return (struct ms_memslot){ gfn, npages, (uint64_t)(uintptr_t)g->at + first * PAGE, 1, 0, LOG, 0 };
}

/* Replaces slot 1 by the pages [first, first + npages) of its memory at gfn, in one swap. */
static struct ms_update *resize_begin(uint64_t gfn, uint64_t first, uint64_t npages, struct ms_slot **old,
				      struct ms_slot **draft)
{
	struct ms_memslot value = value_of(gfn, first, npages);
	struct ms_update *update;

	CHECK_EQ(ms_update_begin(vm, 0, &update, NULL), 0);
	*old = ms_update_find(update, true, 1);
	CHECK_EQ(ms_update_copy(update, *old, &value, draft, NULL), 0);
	CHECK_EQ(ms_update_replace(update, *old, *draft, NULL), 0);
	return update;
}

static void resize(uint64_t gfn, uint64_t first, uint64_t npages)
{
	struct ms_slot *old, *draft;
	struct ms_update *update = resize_begin(gfn, first, npages, &old, &draft);

	CHECK_EQ(ms_update_activate(update, old, draft, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
}

/* The resized slot has the pages 5 to 24 of the old one; the write covers 0 to 30 of them. */
static void test_resize(void)
{
	struct actor writer;

	begin("the slot is resized before a long write copies", LOG);
	act_until(&writer, write_long, POINT_READER_PINNED);
	resize(0x105, 5, 20);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	CHECK(!memcmp(g->at + 100, data, N));
	CHECK_EQ(guest_dirty(vm, 1), ((uint64_t)1 << 20) - 1);
	end();
}

/* The pages that the write has are none of those that the resized slot has. */
static void test_resize_away(void)
{
	struct actor writer;

	begin("the slot is cut before a long write copies", LOG);
	act_until(&writer, write_long, POINT_READER_PINNED);
	resize(0x100, 35, 5);
	finish(&writer);
	CHECK_EQ(guest_dirty(vm, 1), 0);
	end();
}

/* The write ends while the update is open, before or after its swap, and the update is kept or rolled back. */
static void test_open_update(bool swapped, bool keep)
{
	struct ms_slot *old, *draft;
	struct ms_update *update;
	struct actor writer;

	begin("a long write ends inside an update", LOG);
	act_until(&writer, write_long, POINT_READER_PINNED);
	update = resize_begin(0x102, 2, 20, &old, &draft);
	if (swapped)
		CHECK_EQ(ms_update_swap(update, NULL), 0);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	if (keep)
		CHECK_EQ((swapped ? ms_update_replace : ms_update_activate)(update, old, draft, NULL), 0);
	CHECK_EQ(ms_update_end(update, keep, NULL), 0);
	CHECK_EQ(guest_dirty(vm, 1), keep ? ((uint64_t)1 << 20) - 1 : MARKED);
	end();
}

/* The write ends while the published state has no slot: its marks are in the pinned log only. */
static void test_gap(void)
{
	struct ms_memslot value;
	struct ms_slot *old, *draft;
	struct ms_update *update;
	struct actor writer;

	begin("a long write ends while an update has published a hole", LOG);
	value = value_of(0x102, 2, 20);
	act_until(&writer, write_long, POINT_READER_PINNED);
	CHECK_EQ(ms_update_begin(vm, 0, &update, NULL), 0);
	old = ms_update_find(update, true, 1);
	CHECK_EQ(ms_update_copy(update, old, &value, &draft, NULL), 0);
	CHECK_EQ(ms_update_replace(update, old, NULL, NULL), 0);
	CHECK_EQ(ms_update_swap(update, NULL), 0);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	CHECK_EQ(ms_update_replace(update, old, NULL, NULL), 0);
	CHECK_EQ(ms_update_replace(update, NULL, draft, NULL), 0);
	CHECK_EQ(ms_update_swap(update, NULL), 0);
	CHECK_EQ(ms_update_replace(update, NULL, draft, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	CHECK_EQ(guest_dirty(vm, 1), ((uint64_t)1 << 20) - 1);
	end();
}

/* ---- room, and no memory ---- */

#define SMALL 100u

static void small_slots(void)
{
	begin("a long copy of many slots", 0);
	for (uint32_t id = 2; id < 2 + SMALL; id++)
		CHECK_EQ(guest_map_part(vm, g, id, 0x1000 + id, id % PAGES, 1, id % 2 ? LOG : 0), 0);
}

static void check_small_read(void)
{
	for (uint32_t i = 0; i < 60; i++)
		for (size_t k = 0; k < PAGE; k++)
			CHECK_EQ(out[i * PAGE + k], guest_byte(1, (i + 2) % PAGES * PAGE + k));
}

static void read_small(struct actor *me)
{
	me->r = ms_read_guest(vm, 0, 0x1002 * PAGE, out, 60 * PAGE, &error);
}

static void test_many_pieces(void)
{
	struct ms_stats before;

	small_slots();
	CHECK_EQ(ms_read_guest(vm, 0, 0x1002 * PAGE, out, 1, NULL), 0); /* the record of this thread */
	before = stats_of(vm);
	CHECK_EQ(ms_read_guest(vm, 0, 0x1002 * PAGE, out, 60 * PAGE, NULL), 0);
	check_small_read();
	CHECK_EQ(ms_copy_guest(vm, 0, 0x1002 * PAGE, 0x1012 * PAGE, 60 * PAGE, NULL), 0);
	CHECK_EQ(stats_of(vm).blocks, before.blocks);
	CHECK_EQ(stats_of(vm).bytes, before.bytes);
	end();
}

static void test_no_memory(void)
{
	struct ms_stats before;
	uint64_t refs;

	small_slots();
	CHECK_EQ(ms_read_guest(vm, 0, 0x1002 * PAGE, out, 1, NULL), 0);
	before = stats_of(vm);
	refs = atomic_load(&g->backing->refs);
	memset(out, 0xEE, sizeof(out));
	memory_fail(&vm->memory, 1, true);
	CHECK_EQ(ms_read_guest(vm, 0, 0x1002 * PAGE, out, 60 * PAGE, &error), -ENOMEM);
	CHECK_EQ(error.rule, MS_RULE_NO_MEMORY);
	CHECK_EQ(out[0], 0xEE);
	CHECK_EQ(ms_copy_guest(vm, 0, GPA, 0x1002 * PAGE, 60 * PAGE, &error), -ENOMEM);
	CHECK_EQ(ms_copy_guest(vm, 0, 0x1002 * PAGE, GPA, 30 * PAGE, &error), -ENOMEM);
	CHECK_EQ(ms_read_guest(vm, 0, GPA, out, N, NULL), 0); /* one piece needs no memory */
	memory_fail(&vm->memory, 0, false);
	CHECK_EQ(atomic_load(&g->backing->refs), refs);
	CHECK_EQ(stats_of(vm).blocks, before.blocks);
	end();
}

static void test_delete_of_many(void)
{
	struct actor reader;

	small_slots();
	act_until(&reader, read_small, POINT_READER_PINNED);
	for (uint32_t id = 1; id < 2 + SMALL; id++)
		CHECK_EQ(ms_delete_memslot(vm, 0, id, NULL), 0);
	CHECK_EQ(released, 0);
	finish(&reader);
	CHECK_EQ(reader.r, 0);
	check_small_read();
	end();
}

/* ---- raw slots ---- */

static unsigned char *raw;

/* After a delete of a raw slot, its memory may be freed.  Slot 2 follows slot 1, which has a backing. */
static void begin_raw(const char *name)
{
	struct ms_config config = default_config(1);
	region_t r = region(0, 2, 0x100 + PAGES, PAGES, LOG);

	script_begin(name);
	config.dereference_raw_addresses = true;
	vm = vm_with(&config);
	released = 0;
	g = guest_slot(vm, 1, 0x100, PAGES, LOG);
	g->released = &released;
	raw = aligned_alloc(PAGE, PAGES * PAGE);
	CHECK(raw);
	memset(raw, 7, PAGES * PAGE);
	r.userspace_addr = (uint64_t)(uintptr_t)raw;
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
}

static void delete_raw(struct actor *me)
{
	me->r = ms_delete_memslot(vm, 0, 2, NULL);
	free(raw);
}

/* The first half is in slot 1, the other in the raw slot. */
#define MIXED_GPA ((0x100 + PAGES / 2) * PAGE)

static void read_raw(struct actor *me)
{
	me->r = ms_read_guest(vm, 0, MIXED_GPA, out, PAGES * PAGE, &error);
}

static void write_raw(struct actor *me)
{
	me->r = ms_write_guest(vm, 0, MIXED_GPA, data, PAGES * PAGE, &error);
}

static void copy_to_raw(struct actor *me)
{
	me->r = ms_copy_guest(vm, 0, (0x100 + PAGES) * PAGE, 0x100 * PAGE, 30 * PAGE, &error);
}

static void copy_from_raw(struct actor *me)
{
	me->r = ms_copy_guest(vm, 0, 0x100 * PAGE, (0x100 + PAGES) * PAGE, 30 * PAGE, &error);
}

static void test_raw_slots(void)
{
	void (*const runs[])(struct actor *me) = { read_raw, write_raw, copy_to_raw, copy_from_raw };

	for (size_t i = 0; i < ARRAY_SIZE(runs); i++) {
		struct actor copier, writer;

		begin_raw("the raw slot is deleted before a long copy copies");
		act_until(&copier, runs[i], POINT_READER_PINNED);
		act_until_waits(&writer, delete_raw, vm);
		finish_both(&copier, &writer);
		CHECK_EQ(copier.r, 0);
		CHECK_EQ(writer.r, 0);
		if (runs[i] == read_raw)
			CHECK_EQ(out[PAGES * PAGE - 1], 7);
		end();
	}
}

/* ---- many values ---- */

#define VALUES (2 * MS_BATCH_PIECE)

static uint64_t gpas[VALUES], values[VALUES];
static const struct ms_batch batch = { gpas, 8, values, 8, VALUES, NULL, NULL };

static void choose(void)
{
	for (size_t i = 0; i < VALUES; i++) {
		gpas[i] = 0x100 * PAGE + i * 8 % (PAGES * PAGE);
		values[i] = i;
	}
}

static void read_values(struct actor *me)
{
	me->r = ms_read_guest_u64_many(vm, 0, &batch, &error);
}

static void write_values(struct actor *me)
{
	me->r = ms_write_guest_u64_many(vm, 0, &batch, &error);
}

/* After the first section the slot gets other memory: all values come from there. */
static void test_overtaken_values(void)
{
	struct guest *other;
	struct actor reader;

	begin("a long read of values is overtaken", 0);
	choose();
	other = guest_new(9, PAGES);
	act_until(&reader, read_values, POINT_READER_PIECE_OVER);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	guest_map(vm, other, 1, 0x100, 0);
	go_until(&reader, POINT_READER_PINNED);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	finish(&reader);
	CHECK_EQ(reader.r, 0);
	for (size_t i = 0; i < VALUES; i++)
		CHECK(!memcmp(&values[i], other->at + (gpas[i] - 0x100 * PAGE), 8));
	ms_backing_put(other->backing);
	end();
}

static void test_values_of_a_deleted_slot(void)
{
	struct actor writer;

	begin("the slot is deleted before many values are written", LOG);
	choose();
	act_until(&writer, write_values, POINT_READER_PINNED);
	CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
	CHECK_EQ(released, 0);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	end();
}

static void test_values_and_a_new_log(void)
{
	struct actor writer;

	begin("logging is switched on before many values are written", 0);
	choose();
	act_until(&writer, write_values, POINT_READER_PINNED);
	CHECK_EQ(ms_set_memslot_flags(vm, 0, 1, LOG, 0, NULL), 0);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	CHECK_EQ(guest_dirty(vm, 1), ((uint64_t)1 << (VALUES * 8 / PAGE)) - 1);
	end();
}

static void test_short_sections_of_values(void)
{
	struct actor reader;
	size_t read = 0;

	begin("a long read of values is over in its first section", 0);
	choose();
	act_until(&reader, read_values, POINT_READER_PIECE_OVER);
	for (size_t i = 0; i < VALUES; i++)
		read += values[i] != i;
	CHECK(read > 0 && read <= 512);
	finish(&reader);
	CHECK_EQ(reader.r, 0);
	end();
}

static const struct ms_batch some = { gpas, 8, values, 8, 600, NULL, NULL };

static void write_some(struct actor *me)
{
	me->r = ms_write_guest_u64_many(vm, 0, &some, &error);
}

static void test_raw_values(void)
{
	void (*const runs[])(struct actor *me) = { write_values, write_some };
	const enum point stops[] = { POINT_READER_PINNED, POINT_READER_MARKS };

	for (size_t i = 0; i < ARRAY_SIZE(runs); i++) {
		struct actor copier, writer;

		begin_raw("the raw slot is deleted before many values are written");
		choose();
		gpas[9] = (0x100 + PAGES) * PAGE;
		act_until(&copier, runs[i], stops[i]);
		act_until_waits(&writer, delete_raw, vm);
		finish_both(&copier, &writer);
		CHECK_EQ(copier.r, 0);
		CHECK_EQ(writer.r, 0);
		end();
	}
}

/* A read that is overtaken and finds no memory for its references. */
static void test_no_memory_for_a_read(void)
{
	struct actor reader;

	small_slots();
	choose();
	act_until(&reader, read_values, POINT_READER_PIECE_OVER);
	CHECK_EQ(ms_delete_memslot(vm, 0, 2, NULL), 0);
	memory_fail(&vm->memory, 1, true);
	finish(&reader);
	memory_fail(&vm->memory, 0, false);
	CHECK_EQ(reader.r, 0);
	for (size_t i = 0; i < VALUES; i++)
		CHECK(!memcmp(&values[i], g->at + (gpas[i] - 0x100 * PAGE), 8));
	end();
}

static void test_no_memory_for_values(void)
{
	small_slots();
	choose();
	memory_fail(&vm->memory, 1, true);
	CHECK_EQ(ms_write_guest_u64_many(vm, 0, &batch, &error), -ENOMEM);
	CHECK_EQ(error.rule, MS_RULE_NO_MEMORY);
	memory_fail(&vm->memory, 0, false);
	for (size_t i = 0; i < g->size; i++)
		CHECK_EQ(g->at[i], guest_byte(1, i));
	end();
}

/* ---- many ranges ---- */

#define RANGES 3000u

static uint64_t starts[RANGES], ends[RANGES], offsets[RANGES + 1];

static void find_ranges(struct actor *me)
{
	me->r = (int)ms_memslots_in_gfn_range_many(vm, 0, starts, ends, RANGES, NULL, 0, offsets);
}

/* An overtaken call starts again in pieces: a change waits for one piece, not for all ranges. */
static void test_overtaken_ranges(void)
{
	struct actor reader;

	begin("a call with many ranges is overtaken", 0);
	for (size_t i = 0; i < RANGES; i++) {
		starts[i] = 0x100;
		ends[i] = 0x101;
	}
	act_until(&reader, find_ranges, POINT_READER_PIECE_OVER);
	CHECK_EQ(ms_move_memslot(vm, 0, 1, 0x900 * PAGE, NULL), 0);
	go_until(&reader, POINT_READER_PIECE_OVER); /* another state */
	go_until(&reader, POINT_READER_PIECE_OVER); /* the first piece again */
	CHECK_EQ(ms_move_memslot(vm, 0, 1, 0x100 * PAGE, NULL), 0);
	finish(&reader);
	CHECK_EQ(reader.r, RANGES);
	CHECK_EQ(offsets[RANGES], RANGES);
	end();
}

/* ---- short copies ---- */

static void read_short(struct actor *me)
{
	me->r = ms_read_guest(vm, 0, GPA, out, 100, &error);
}

static void delete_slot(struct actor *me)
{
	me->r = ms_delete_memslot(vm, 0, 1, NULL);
}

/* A short copy is one section: a delete waits for it. */
static void test_short_copy(void)
{
	struct actor reader, writer;

	begin("a delete waits for a short copy", 0);
	act_until(&reader, read_short, POINT_READER_SLOT_FOUND);
	act_until_waits(&writer, delete_slot, vm);
	CHECK_EQ(released, 0);
	finish_both(&reader, &writer);
	CHECK_EQ(reader.r, 0);
	CHECK(!memcmp(out, (unsigned char[]){ guest_byte(1, 100), guest_byte(1, 101) }, 2));
	CHECK_EQ(released, 1);
	end();
}

/* ---- one published state ---- */

#define HALF 20u /* pages of each of two slots, in each of two states */

static struct guest *two_halves;

/* In state s, both slots have memory that is filled with the byte s. */
static void publish(unsigned state)
{
	struct ms_update *update;
	struct ms_slot *old[2], *draft[2];

	CHECK_EQ(ms_update_begin(vm, 0, &update, NULL), 0);
	for (uint32_t i = 0; i < 2; i++) {
		struct ms_memslot value = { 0x4000 + i * HALF,
					    HALF,
					    (uint64_t)(uintptr_t)two_halves->at + (state * 2 + i) * HALF * PAGE,
					    10 + i,
					    0,
					    0,
					    0 };

		old[i] = ms_update_find(update, true, 10 + i);
		CHECK_EQ(ms_update_copy(update, old[i], &value, &draft[i], NULL), 0);
		CHECK_EQ(ms_update_replace(update, old[i], draft[i], NULL), 0);
	}
	CHECK_EQ(ms_update_activate(update, old[0], draft[0], NULL), 0); /* swaps */
	CHECK_EQ(ms_update_replace(update, old[1], draft[1], NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
}

static _Atomic bool stop;
static _Atomic uint64_t copies;

static void check_all(const unsigned char *bytes, size_t n)
{
	for (size_t i = 1; i < n; i++)
		CHECK_EQ(bytes[i], bytes[0]);
	atomic_fetch_add(&copies, 1);
}

static void *read_across(void *context)
{
	static _Thread_local unsigned char bytes[2 * HALF * PAGE];
	static _Thread_local uint64_t where[2 * MS_BATCH_PIECE], read[2 * MS_BATCH_PIECE];
	struct ms_batch many = { where, 8, read, 8, 2 * MS_BATCH_PIECE, NULL, NULL };
	uint64_t middle = (0x4000 + HALF) * PAGE;

	(void)context;
	for (size_t i = 0; i < 2 * MS_BATCH_PIECE; i++)
		where[i] = 0x4000 * PAGE + i * 4088 % (2 * HALF * PAGE - 8);
	while (!atomic_load(&stop)) {
		CHECK_EQ(ms_read_guest(vm, 0, middle - 40, bytes, 80, NULL), 0);
		check_all(bytes, 80);
		CHECK_EQ(ms_read_guest(vm, 0, 0x4000 * PAGE, bytes, sizeof(bytes), NULL), 0);
		check_all(bytes, sizeof(bytes));
		CHECK_EQ(ms_read_guest_u64_many(vm, 0, &many, NULL), 0);
		check_all((const unsigned char *)read, sizeof(read));
	}
	return NULL;
}

static void test_one_state(void)
{
	pthread_t readers[2];

	vm = new_vm(1);
	two_halves = guest_new(3, 4 * HALF);
	memset(two_halves->at, 1, 2 * HALF * PAGE);
	memset(two_halves->at + 2 * HALF * PAGE, 2, 2 * HALF * PAGE);
	for (uint32_t i = 0; i < 2; i++)
		CHECK_EQ(guest_map_part(vm, two_halves, 10 + i, 0x4000 + i * HALF, i * HALF, HALF, 0), 0);
	atomic_store(&stop, false);
	for (size_t i = 0; i < ARRAY_SIZE(readers); i++)
		CHECK_EQ(pthread_create(&readers[i], NULL, read_across, NULL), 0);
	for (uint64_t i = 0, n = test_times(4000); i < n; i++)
		publish(i % 2);
	atomic_store(&stop, true);
	for (size_t i = 0; i < ARRAY_SIZE(readers); i++)
		CHECK_EQ(pthread_join(readers[i], NULL), 0);
	ms_backing_put(two_halves->backing);
	end_vm(vm);
}

/* ---- copies next to deletes ---- */

/* A delete releases the memory: the page of another incarnation, or of none, would be noticed.  A hole is no error. */
static void *copy_until_stop(void *context)
{
	static _Thread_local unsigned char bytes[PAGES * PAGE];
	size_t n = (size_t)(uintptr_t)context;

	while (!atomic_load(&stop)) {
		struct ms_error err = { .done = 0 };
		int r = ms_read_guest(vm, 0, 0x100 * PAGE, bytes, n, &err);

		CHECK(!r || err.rule == MS_RULE_GUEST_HOLE);
		if (!r)
			check_all(bytes, n);
		r = ms_write_guest(vm, 0, 0x200 * PAGE, bytes, n, &err);
		CHECK(!r || err.rule == MS_RULE_GUEST_HOLE);
	}
	return NULL;
}

/* Under AddressSanitizer a use of the released memory is an error of its own. */
static void free_memory(void *opaque)
{
	memset(opaque, 0xDD, PAGES * PAGE);
	free(opaque);
}

static void map_filled(uint32_t id, uint64_t gfn, unsigned char byte)
{
	void *memory = aligned_alloc(PAGE, PAGES * PAGE);
	struct ms_backing *backing;
	region_t r = region(0, id, gfn, PAGES, id == 2 ? LOG : 0);

	CHECK(memory);
	memset(memory, byte, PAGES * PAGE);
	CHECK_EQ(ms_backing_create(memory, PAGES * PAGE, 0, free_memory, memory, &backing), 0);
	r.userspace_addr = (uint64_t)(uintptr_t)memory;
	CHECK_EQ(ms_map_backing(vm, &r, backing, NULL, NULL), 0);
	ms_backing_put(backing);
}

static void test_copies_next_to_deletes(void)
{
	const size_t sizes[] = { 3 * PAGE, PAGES * PAGE };
	pthread_t threads[2];

	vm = new_vm(1);
	atomic_store(&stop, false);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, copy_until_stop, (void *)(uintptr_t)sizes[i]), 0);
	for (uint64_t i = 0, n = test_times(3000); i < n; i++) {
		map_filled(1, 0x100, (unsigned char)(i % 200));
		map_filled(2, 0x200, 0);
		CHECK_EQ(ms_delete_memslot(vm, 0, 1, NULL), 0);
		CHECK_EQ(ms_delete_memslot(vm, 0, 2, NULL), 0);
	}
	atomic_store(&stop, true);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	end_vm(vm);
}

static void test_all(void)
{
	test_delete_in_a_read();
	test_delete_in_a_write();
	test_close_in_a_write();
	test_move();
	test_new_log();
	test_other_log();
	test_harvest();
	test_other_slot();
	test_other_ids();
	test_mark_in_a_hole();
	test_check_during_a_mark();
	test_many_pieces();
	test_no_memory();
	test_delete_of_many();
	test_overtaken_values();
	test_values_of_a_deleted_slot();
	test_values_and_a_new_log();
	test_no_memory_for_values();
	test_raw_slots();
	test_short_sections_of_values();
	test_raw_values();
	test_no_memory_for_a_read();
	test_overtaken_ranges();
	test_short_copy();
}

static void test_updates(void)
{
	test_resize();
	test_resize_away();
	for (int i = 0; i < 4; i++)
		test_open_update(i & 1, i & 2);
	test_gap();
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		test_all();
	design_name = "tree";
	test_updates();
	test_init(argc, argv, 120);
	test_one_state();
	test_copies_next_to_deletes();
	return test_done("guest pins", scripts, "scripts");
}
