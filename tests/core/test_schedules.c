/* SPDX-License-Identifier: MIT */
/*
 * test_schedules.c - one schedule for each way in which a reader and a writer could hurt each other.
 *
 * Each script stops real threads at named points of the engine (script.h), lets another one run, goes on, and looks at
 * the answers.  It bears the numbers of the hazards of docs/reliability.md that it rules out.  What is freed is
 * poisoned, so that an answer from a slot that is gone is wrong in every build; ms_check() finds a hint or a link that
 * leads to one.  Everything runs on every design.
 */
#include "script.h"

#include <sys/wait.h>

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define ID 1u
#define OTHER 2u
#define NEXT 3u /* comes where ID was */
#define NPAGES 16u
#define OLD_GFN 0x100u
#define NEW_GFN 0x500u
#define GFN (OLD_GFN + 4)
#define MOVED (NEW_GFN + 4)
#define SPACES 2

static struct ms_vm *vm;
static struct ms_vcpu *vcpu;
static struct actor reader, second, writer;

static uint64_t hva_in(uint32_t as_id, uint32_t id)
{
	return hva_for(as_id, id) + (GFN - OLD_GFN) * PAGE;
}

/* ---- what readers do ---- */

static void look_up(struct actor *me)
{
	me->hva = ms_gfn_to_hva(vm, 0, GFN);
}

static void look_up_slot(struct actor *me)
{
	me->r = ms_gfn_to_memslot(vm, 0, GFN, &me->slot[0]);
}

static void look_up_slot_twice(struct actor *me)
{
	look_up_slot(me);
	look_up_slot(me);
}

static void look_up_by_vcpu(struct actor *me)
{
	me->hva = ms_vcpu_gfn_to_hva(vcpu, GFN);
}

static void walk(struct actor *me)
{
	me->nr = ms_memslots(vm, 0, me->slot, ARRAY_SIZE(me->slot));
}

static void walk_host(struct actor *me)
{
	me->nr = ms_memslots_in_hva_range(vm, 0, 0, ~(uint64_t)0, me->slot, ARRAY_SIZE(me->slot));
}

static void mark(struct actor *me)
{
	(void)me;
	ms_mark_page_dirty(vm, 0, GFN);
}

/* ---- what writers do ---- */

static void create(struct actor *me)
{
	me->r = set(vm, 0, 9, 0x900, NPAGES, 0);
}

static void delete(struct actor *me)
{
	me->r = set(vm, 0, ID, 0, 0, 0);
}

static void move(struct actor *me)
{
	me->r = set(vm, 0, ID, NEW_GFN, NPAGES, LOG);
}

static void change_flags(struct actor *me)
{
	me->r = set(vm, 0, ID, OLD_GFN, NPAGES, 0);
}

static void load(struct actor *me)
{
	struct ms_memslot slots[] = { { 0x900, 1, hva_for(0, 9), 9, 0, 0, 0 }, { 0x910, 1, hva_for(0, 10), 10, 0, LOG, 0 } };

	me->r = ms_load_memslots(vm, 0, slots, ARRAY_SIZE(slots), NULL);
}

/* The slot goes, and another comes to the same frames. */
static void exchange(struct actor *me)
{
	me->r = set(vm, 0, ID, 0, 0, 0);
	if (!me->r)
		me->r = set(vm, 0, NEXT, OLD_GFN, NPAGES, 0);
}

static void close_vm(struct actor *me)
{
	me->r = ms_vm_close(vm, NULL);
}

/* KVM's steps of a DELETE, by hand. */
static void delete_by_steps(struct actor *me)
{
	struct ms_update *u;
	struct ms_slot *inv = NULL;

	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	CHECK_EQ(ms_update_invalidate(u, ms_update_find(u, true, ID), &inv, NULL), 0);
	CHECK_EQ(ms_update_replace(u, ms_update_find(u, false, ID), NULL, NULL), 0);
	CHECK_EQ(ms_update_swap(u, NULL), 0);
	CHECK_EQ(ms_update_replace(u, inv, NULL, NULL), 0);
	me->r = ms_update_end(u, true, NULL);
}

static void harvest(struct actor *me)
{
	me->r = ms_get_dirty_log(vm, 0, ID, &me->hva, 1, &me->nr, NULL);
}

/* ---- before and after ---- */

static void begin(const char *name)
{
	script_begin(name);
	vm = new_vm(SPACES);
	CHECK_EQ(set(vm, 0, ID, OLD_GFN, NPAGES, LOG), 0);
	CHECK_EQ(set(vm, 0, OTHER, 0x200, NPAGES, 0), 0);
	CHECK_EQ(set(vm, 1, ID, OLD_GFN, NPAGES, 0), 0);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
}

static void end(void)
{
	if (!vm->closed)
		check_sound(vm);
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
	CHECK_EQ(thread_self.sections + thread_self.hooks, 0);
	script_end();
}

/* What lookups of every kind answer for one frame: the slot with this id, or nothing. */
static void check_at(uint32_t as_id, uint64_t gfn, uint32_t id)
{
	uint64_t hva = id ? hva_in(as_id, id) : MS_HVA_ERR_BAD, answer = 0;
	struct ms_batch batch = { &gfn, 8, &answer, 8, 1, NULL, NULL };
	int32_t found = 0;
	struct ms_memslot slot;

	for (int i = 0; i < 2; i++) { /* by search, then by hint */
		CHECK_EQ(ms_gfn_to_hva(vm, as_id, gfn), hva);
		CHECK_EQ(ms_vcpu_set_as_id(vcpu, as_id), 0);
		CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, gfn), hva);
	}
	ms_gfn_to_hva_many(vm, as_id, &batch, true);
	CHECK_EQ(answer, hva);
	batch.out = &found;
	batch.out_stride = 4;
	ms_gfn_to_slot_id_many(vm, as_id, &batch);
	CHECK_EQ(found, id ? (int32_t)id : -1);
	CHECK_EQ(ms_is_visible_gfn(vm, as_id, gfn), id != 0);
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, 0), 0);
	if (id) {
		CHECK_EQ(ms_gfn_to_memslot(vm, as_id, gfn, &slot), 0);
		CHECK(slot.id == id && slot.as_id == as_id && !(slot.flags & MS_MEMSLOT_INVALID));
	}
}

/* Both sets: the next change makes the other one active. */
static void check_at_in_both(uint32_t as_id, uint64_t gfn, uint32_t id)
{
	check_at(as_id, gfn, id);
	CHECK_EQ(set(vm, as_id, 30, 0xB00, 1, 0), 0);
	check_at(as_id, gfn, id);
	check_sound(vm);
	CHECK_EQ(set(vm, as_id, 30, 0, 0, 0), 0);
}

/* ---- changes, each of which must wait for whoever is inside ---- */

static const struct change {
	const char *name;
	void (*run)(struct actor *me);
	uint32_t then_old, then_new; /* which id is at GFN and at MOVED afterwards */
	bool steps;
} changes[] = {
	{ "create", create, ID, 0, false },
	{ "delete", delete, 0, 0, false },
	{ "move", move, 0, ID, false },
	{ "flags", change_flags, ID, 0, false },
	{ "load", load, ID, 0, false },
	{ "exchange", exchange, NEXT, 0, false },
	{ "delete by steps", delete_by_steps, 0, 0, true },
	{ "close", close_vm, 0, 0, false },
};

static void check_after(const struct change *change)
{
	CHECK_EQ(writer.r, 0);
	check_at(0, GFN, change->then_old);
	check_at(0, MOVED, change->then_new);
	if (vm->closed)
		return;
	check_at_in_both(0, GFN, change->then_old);
	check_at_in_both(0, MOVED, change->then_new);
	check_at_in_both(1, GFN, ID);
}

/* H1, H2, H31: a reader has loaded the set, and the writer changes, moves on to the next swap or frees. */
static void waits_for_lookup(const struct change *change)
{
	begin("H1 H2 H31: a change waits for a lookup");
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act(&writer, change->run, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	CHECK_EQ(reader.hva, hva_in(0, ID));
	await_end(&writer);
	check_after(change);
	end();
}

/* H1, H30: a walk goes through one state from its first slot to its last. */
static void waits_for_walk(const struct change *change, void (*run)(struct actor *me), bool first_is_id)
{
	begin("H1 H30: a change waits for a walk");
	act_until(&reader, run, POINT_READER_WALKS);
	act(&writer, change->run, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	CHECK_EQ(reader.nr, 2);
	CHECK(reader.slot[!first_is_id].id == ID && reader.slot[!first_is_id].base_gfn == OLD_GFN);
	CHECK(reader.slot[!first_is_id].flags == LOG && reader.slot[first_is_id].id == OTHER);
	await_end(&writer);
	check_after(change);
	end();
}

/* H7: the reader has found the slot and stores it as a hint while the writer waits; the hint must not stay. */
static void late_hint(const struct change *change)
{
	begin("H7: a hint that is stored late");
	act_until(&reader, look_up, POINT_READER_SLOT_FOUND);
	act(&writer, change->run, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	CHECK_EQ(reader.hva, hva_in(0, ID));
	await_end(&writer);
	check_after(change);
	end();
}

/* H7: both sets have the slot as their hint before the change. */
static void hints_in_both(const struct change *change)
{
	begin("H7: hints of both sets");
	check_at_in_both(0, GFN, ID);
	change->run(&writer);
	check_after(change);
	end();
}

/* H8: the reader has left; the writer need not wait; what the reader still does must not hurt. */
static void after_leaving(const struct change *change)
{
	begin("H8: nothing is written after leaving");
	act_until(&reader, look_up, POINT_READER_LEFT);
	change->run(&writer);
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	finish(&reader);
	CHECK_EQ(reader.hva, hva_in(0, ID));
	if (!vm->closed)
		check_sound(vm);
	check_after(change);
	end();
}

/* H3: counted in by a bank that a flip, or two, have left since it was loaded. */
static void late_count(const struct change *change, int flips)
{
	begin("H3: a reader that counts itself in late");
	act_until(&reader, look_up, POINT_READER_BANK_LOADED);
	for (int i = 0; i < flips; i++)
		CHECK_EQ(set(vm, 1, 20 + (uint32_t)i, 0xA00 + (uint64_t)i, 1, 0), 0);
	go_until(&reader, POINT_READER_VIEW_LOADED);
	act(&writer, change->run, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	CHECK_EQ(reader.hva, hva_in(0, ID));
	await_end(&writer);
	check_after(change);
	end();
}

/* H11: the vCPU has the slot as its hint; a lookup on it is stopped somewhere; the slot goes. */
static void vcpu_inside(const struct change *change, uint32_t stop)
{
	begin("H11: a vCPU inside a section");
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, GFN), hva_in(0, ID));
	act_until(&reader, look_up_by_vcpu, stop);
	act(&writer, change->run, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	CHECK_EQ(reader.hva, hva_in(0, ID));
	await_end(&writer);
	check_after(change);
	end();
}

/* H11: ... before it is inside: it must look at the generation of the set that it will see. */
static void vcpu_before(const struct change *change)
{
	begin("H11: a vCPU before its section");
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, GFN), hva_in(0, ID));
	act_until(&reader, look_up_by_vcpu, POINT_READER_BANK_LOADED);
	change->run(&writer);
	finish(&reader);
	CHECK_EQ(reader.hva, change->then_old ? hva_in(0, change->then_old) : MS_HVA_ERR_BAD);
	check_after(change);
	end();
}

/* H25: who comes after the swap sees the new set and is not waited for. */
static void newcomer_inside(void)
{
	begin("H25: newcomers are not waited for");
	act_until(&second, look_up_slot_twice, POINT_READER_LEFT); /* its record comes after the reader's in a drain */
	act_until(&reader, look_up_slot, POINT_READER_VIEW_LOADED);
	act(&writer, change_flags, NO_STOP);
	check_waits(&writer, vm);
	go_until(&second, POINT_READER_VIEW_LOADED);
	finish(&reader);
	await_end(&writer);
	finish(&second);
	CHECK_EQ(reader.slot[0].flags, LOG);
	CHECK_EQ(second.slot[0].flags, 0);
	end();
}

/* H5: the reader leaves after the flip, by the bank that it entered. */
static void leaves_after_flip(void)
{
	begin("H5: out of the bank that it came into");
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act_until(&writer, create, POINT_WRITER_FLIPPED);
	go_until(&reader, POINT_READER_LEFT); /* not to its end: that would mend its counts */
	finish(&writer);
	for (struct srcu_reader *r = atomic_load(&vm->srcu.readers); r; r = r->next)
		for (int bank = 0; bank < 2; bank++)
			CHECK_EQ(atomic_load(&r->lock[bank]), atomic_load(&r->unlock[bank]));
	finish(&reader);
	end();
}

/* H4: in one record, one reader leaves and comes between the two looks of a writer, while another stays. */
static void leapfrog(void)
{
	begin("H4: two readers in one record");
	memory_fail(&vm->memory, 1, true); /* no records: all share one, the only one that a drain looks at */
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act_until(&second, look_up, POINT_READER_BANK_LOADED);
	memory_fail(&vm->memory, 0, false);
	act_until(&writer, delete, POINT_WRITER_FLIPPED);
	go_until(&writer, POINT_WRITER_READS_COUNTS);
	finish(&second);
	go(&writer, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	await_end(&writer);
	CHECK_EQ(reader.hva, hva_in(0, ID));
	check_at_in_both(0, GFN, 0);
	end();
}

/* ---- between the two swaps of a DELETE or MOVE ---- */

static void check_invisible(void)
{
	struct ms_memslot slot;
	struct ms_hva_hit hit;
	bool writable;

	check_at(0, GFN, 0);
	check_at(0, MOVED, 0);
	CHECK_EQ(ms_gfn_to_hva_prot(vm, 0, GFN, &writable), MS_HVA_ERR_BAD);
	CHECK_EQ(ms_gfn_to_memslot(vm, 0, GFN, &slot), 0);
	CHECK_EQ(slot.flags, LOG | MS_MEMSLOT_INVALID);
	CHECK_EQ(ms_id_to_memslot(vm, 0, ID, &slot), 0);
	CHECK_EQ(slot.flags, LOG | MS_MEMSLOT_INVALID);
	CHECK_EQ(ms_hva_to_gfns(vm, hva_in(0, ID), &hit, 1), 1);
	CHECK_EQ(hit.slot.flags, LOG | MS_MEMSLOT_INVALID);
	check_at(1, GFN, ID);
}

/* H9, H10: lookups see an INVALID slot and make a hint of it; it is freed afterwards. */
static void between_the_swaps(const struct change *change)
{
	begin("H9 H10: between the swaps");
	act_until(&writer, change->run, POINT_WRITER_INVALIDATED);
	check_invisible();
	finish(&writer);
	check_after(change);
	end();
}

/* H2, H9: two readers, one in the old set, one in the set with the INVALID copy; each swap waits for its own. */
static void a_reader_for_each_swap(const struct change *change)
{
	begin("H2 H9: a reader for each swap");
	act_until(&reader, look_up_slot, POINT_READER_VIEW_LOADED);
	act(&writer, change->run, POINT_WRITER_INVALIDATED);
	check_waits(&writer, vm);
	act_until(&second, look_up_slot, POINT_READER_SLOT_FOUND);
	finish(&reader);
	await_stop(&writer);
	go(&writer, NO_STOP);
	check_waits(&writer, vm);
	finish(&second);
	CHECK_EQ(reader.slot[0].flags, LOG);
	CHECK_EQ(second.slot[0].flags, LOG | MS_MEMSLOT_INVALID);
	await_end(&writer);
	check_after(change);
	end();
}

/* H12: a set that is published again must not carry the generation that it had before. */
static void generation_before_publish(void)
{
	begin("H12: the generation comes first");
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, GFN), hva_in(0, ID)); /* a hint of this set's generation */
	act_until(&writer, delete, POINT_WRITER_INVALIDATED);
	go_until(&writer, POINT_WRITER_PUBLISHED);
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, GFN), MS_HVA_ERR_BAD);
	CHECK(ms_generation(vm, 0) & MS_GEN_UPDATE_IN_PROGRESS);
	finish(&writer);
	CHECK(!(ms_generation(vm, 0) & MS_GEN_UPDATE_IN_PROGRESS));
	end();
}

/* H12, H14: two address spaces never have the same generation, however many changes each has seen. */
static void generations_of_two_spaces(void)
{
	begin("H12 H14: two address spaces");
	for (uint32_t i = 0; i < 8; i++) {
		CHECK(ms_generation(vm, 0) != ms_generation(vm, 1));
		check_at(0, GFN, ID);
		check_at(1, GFN, ID);
		CHECK_EQ(set(vm, i % 3 == 0, 20 + i, 0xA00 + i, 1, 0), 0);
	}
	end();
}

/* H13: a second thread on a vCPU does without the hint, and does not wait. */
static void two_on_one_vcpu(void)
{
	begin("H13: two threads on one vCPU");
	act_until(&reader, look_up_by_vcpu, POINT_VCPU_HINT_LOADED);
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, GFN), hva_in(0, ID));
	CHECK_EQ(stats_of(vm).vcpu_bypasses, 1);
	finish(&reader);
	CHECK_EQ(reader.hva, hva_in(0, ID));
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, GFN), hva_in(0, ID));
	CHECK_EQ(stats_of(vm).vcpu_bypasses, 1);
	end();
}

/* ---- sections and batches ---- */

static void look_up_in_section(struct actor *me)
{
	CHECK_EQ(ms_read_lock(vm), 0);
	me->hva = ms_gfn_to_hva(vm, 0, GFN);
	me->r = ms_gfn_to_memslot(vm, 0, MOVED, &me->slot[0]);
	me->nr = ms_memslots(vm, 0, me->slot, ARRAY_SIZE(me->slot));
	ms_read_unlock(vm);
}

/* H15, H19: everything in a section comes from the state that it saw first, nested sections included, and the writer
 * waits for its end, not for that of a nested one. */
static void section_across(const struct change *change)
{
	begin("H15 H19: one section, one state");
	act_until(&reader, look_up_in_section, POINT_READER_LEFT); /* of the first nested section */
	act(&writer, change->run, NO_STOP);
	check_waits(&writer, vm);
	go_until(&reader, POINT_READER_LEFT);
	CHECK_EQ(atomic_load(&writer.ended), 0);
	go_until(&reader, POINT_READER_LEFT);
	CHECK_EQ(atomic_load(&writer.ended), 0);
	check_waits(&writer, vm);
	finish(&reader);
	CHECK_EQ(reader.hva, hva_in(0, ID));
	CHECK_EQ(reader.r, -ENOENT);
	CHECK(reader.nr == 2 && reader.slot[0].id == ID && reader.slot[0].flags == LOG);
	await_end(&writer);
	check_after(change);
	end();
}

#define BATCH 5
static const uint64_t batch_in[BATCH] = { GFN, MOVED, GFN, 0x204, MOVED };
static uint64_t batch_out[BATCH];

static void look_up_batch(struct actor *me)
{
	struct ms_batch batch = { batch_in, 8, batch_out, 8, BATCH, NULL, NULL };

	(void)me;
	ms_gfn_to_hva_many(vm, 0, &batch, true);
}

static void check_batch(uint64_t at_old, uint64_t at_new)
{
	CHECK_EQ(batch_out[0], at_old);
	CHECK_EQ(batch_out[1], at_new);
	CHECK_EQ(batch_out[2], at_old);
	CHECK_EQ(batch_out[3], hva_in(0, OTHER));
	CHECK_EQ(batch_out[4], at_new);
}

/* H15: a batch over a move has the slot at one place, and never at both. */
static void batch_across(void)
{
	begin("H15: one batch, one state");
	act_until(&reader, look_up_batch, POINT_READER_VIEW_LOADED);
	act(&writer, move, POINT_WRITER_INVALIDATED);
	check_waits(&writer, vm);
	finish(&reader);
	check_batch(hva_in(0, ID), MS_HVA_ERR_BAD);
	await_stop(&writer);
	look_up_batch(NULL);
	check_batch(MS_HVA_ERR_BAD, MS_HVA_ERR_BAD); /* INVALID is a state of its own */
	finish(&writer);
	look_up_batch(NULL);
	check_batch(MS_HVA_ERR_BAD, hva_in(0, ID));
	end();
}

/* ---- dirty pages ---- */

/* H16: the reader has found the slot and not yet marked the page; the mark is in the log that the slot keeps. */
static void mark_across_move(void)
{
	uint64_t word = 0;
	size_t nwords;

	begin("H16: a mark beside a move");
	act_until(&reader, mark, POINT_READER_MARKS);
	act(&writer, move, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	await_end(&writer);
	CHECK_EQ(ms_get_dirty_log(vm, 0, ID, &word, 1, &nwords, NULL), 0);
	CHECK_EQ(word, (uint64_t)1 << (GFN - OLD_GFN));
	end();
}

/* H16: ... that goes with the slot, or with its flag: it must not go under the reader. */
static void mark_across(const struct change *change)
{
	begin("H16: a mark beside the end of its log");
	act_until(&reader, mark, POINT_READER_MARKS);
	act(&writer, change->run, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	await_end(&writer);
	check_after(change);
	end();
}

/* H16: a bit that is set between a harvest's look and its taking is in this harvest or in the next. */
static void mark_across_harvest(void)
{
	uint64_t word = 0;
	size_t nwords;

	begin("H16: a mark beside a harvest");
	ms_mark_page_dirty(vm, 0, OLD_GFN);
	act_until(&writer, harvest, POINT_WRITER_HARVESTS);
	mark(NULL);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	CHECK_EQ(ms_get_dirty_log(vm, 0, ID, &word, 1, &nwords, NULL), 0);
	CHECK_EQ(writer.hva | word, 1 | (uint64_t)1 << (GFN - OLD_GFN));
	CHECK_EQ(writer.hva & word, 0);
	end();
}

/* ---- who would wait for himself, and who is not there any more ---- */

/* H18: a change inside a section is refused at once. */
static void change_in_section(const struct change *change)
{
	struct ms_error err = { 0 };

	begin("H18: a change inside a section");
	CHECK_EQ(ms_read_lock(vm), 0);
	if (!change->steps) {
		change->run(&writer);
		CHECK_EQ(writer.r, -EDEADLK);
	}
	CHECK_EQ(ms_vm_close(vm, &err), -EDEADLK);
	CHECK_EQ(err.rule, MS_RULE_READ_SECTION);
	ms_read_unlock(vm);
	check_at(0, GFN, ID);
	end();
}

static int change_and_refuse(void *opaque, const struct ms_change *change)
{
	struct actor *me = opaque;

	(void)change;
	me->r = set(vm, 0, OTHER, 0, 0, 0);
	CHECK_EQ(me->r, -EDEADLK);
	check_invisible();
	return -EPERM;
}

/* H18, H27, H28: a hook looks, changes (refused at once) and refuses; a reader of the INVALID set is waited for before
 * the roll-back edits it. */
static void refused_in_hook(const struct change *change)
{
	struct actor hook = { 0 };
	struct ms_listener listener = { .opaque = &hook, .prepare = change_and_refuse };
	struct picture before, after;

	begin("H18 H27 H28: a hook that changes and refuses");
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	before = picture_of(vm);
	act_until(&writer, change->run, POINT_WRITER_INVALIDATED);
	act_until(&reader, look_up_slot, POINT_READER_SLOT_FOUND);
	go(&writer, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	CHECK_EQ(reader.slot[0].flags, LOG | MS_MEMSLOT_INVALID);
	await_end(&writer);
	CHECK_EQ(writer.r, -EPERM);
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	CHECK_EQ(ms_remove_listener(vm, &listener, NULL), 0);
	check_at_in_both(0, GFN, ID);
	end();
}

/* H21: a writer waits; a thread that never read in this VM gets its record all the same. */
static void first_lookup_beside_waiting_writer(void)
{
	begin("H21: a newcomer's record beside a waiting writer");
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act(&writer, delete, NO_STOP);
	check_waits(&writer, vm);
	act(&second, look_up, NO_STOP);
	await_end(&second);
	CHECK_EQ(second.hva, MS_HVA_ERR_BAD);
	finish(&reader);
	await_end(&writer);
	end();
}

static void die_inside(struct actor *me)
{
	CHECK_EQ(ms_read_lock(vm), 0);
	me->hva = ms_gfn_to_hva(vm, 0, GFN);
}

/* H23: the thread ends inside its section: the writer goes on. */
static void reader_dies(const struct change *change)
{
	begin("H23: a thread ends inside a section");
	act_until(&reader, die_inside, POINT_READER_LEFT);
	act(&writer, change->run, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	await_end(&writer);
	check_after(change);
	end();
}

static int in_child(uint64_t other_hva)
{
	struct ms_error err = { 0 };

	alarm(SCRIPT_SECONDS / 2); /* before the script's own watchdog, which waits for the child */
	if (ms_gfn_to_hva(vm, 0, 0x204) != other_hva || ms_gfn_to_hva(vm, 1, GFN) != hva_in(1, ID))
		return 10;
	if (set(vm, 0, 9, 0x900, 1, 0) != -EIO || ms_vm_close(vm, &err) != -EIO || err.rule != MS_RULE_FORKED)
		return 11;
	vm = new_vm(1);
	return set(vm, 0, ID, OLD_GFN, NPAGES, 0) ? 12 : 0;
}

/* H24: a child of a process in which a reader is inside and a writer waits: it looks, and is refused a change. */
static void fork_beside(const struct change *change)
{
	pid_t child;
	int status;

	if (TEST_SANITIZED) /* a sanitizer's own threads and locks do not survive a fork */
		return;
	begin("H24: a fork beside a reader and a writer");
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act(&writer, change->run, NO_STOP);
	check_waits(&writer, vm);
	child = fork();
	if (!child)
		_exit(in_child(change->run == close_vm ? MS_HVA_ERR_BAD : hva_in(0, OTHER)));
	CHECK(child > 0);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	finish(&reader);
	await_end(&writer);
	check_after(change);
	end();
}

/* ---- indexes ---- */

static void begin_eager(const char *name)
{
	begin(name);
	ms_set_index_policy(vm, MS_INDEX_EAGER);
}

/* H15: an index that was made of a state that is over is the maker's alone: nobody else gets it. */
static void index_comes_late(void)
{
	begin_eager("H15: an index of a state that is over");
	act_until(&reader, look_up_batch, POINT_READER_LEFT); /* of the section that says that an index pays, */
	go_until(&reader, POINT_READER_LEFT);                 /* of the one that plans it, */
	go_until(&reader, POINT_READER_LEFT);                 /* and of the one that reads the slots */
	CHECK_EQ(set(vm, 0, ID, NEW_GFN, NPAGES, LOG), 0);
	finish(&reader);
	check_batch(hva_in(0, ID), MS_HVA_ERR_BAD);
	look_up_batch(NULL);
	check_batch(MS_HVA_ERR_BAD, hva_in(0, ID));
	check_sound(vm);
	end();
}

/* H15: one that is offered inside a section is of the set that the section sees, and the writer waits. */
static void index_offered_beside_writer(void)
{
	begin_eager("H15: an index that is offered while its set goes");
	act_until(&reader, look_up_batch, POINT_READER_INDEX_OFFERED);
	act(&writer, move, NO_STOP);
	check_waits(&writer, vm);
	finish(&reader);
	await_end(&writer);
	check_batch(hva_in(0, ID), MS_HVA_ERR_BAD);
	look_up_batch(NULL);
	check_batch(MS_HVA_ERR_BAD, hva_in(0, ID));
	check_sound(vm);
	end();
}

/* H26, H30: who holds an index holds up no writer, and keeps it while the set that it came from drops it. */
static void index_held_beside_writer(void)
{
	begin_eager("H26 H30: an index that is held while its set goes");
	act_until(&reader, look_up_batch, POINT_READER_INDEX_HELD);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(set(vm, 0, ID, i % 2 ? OLD_GFN : NEW_GFN, NPAGES, LOG), 0);
		look_up_batch(NULL); /* an index of its own for each */
		check_batch(i % 2 ? hva_in(0, ID) : MS_HVA_ERR_BAD, i % 2 ? MS_HVA_ERR_BAD : hva_in(0, ID));
	}
	memset(batch_out, 0, sizeof(batch_out));
	finish(&reader);
	check_batch(hva_in(0, ID), MS_HVA_ERR_BAD);
	check_sound(vm);
	end();
}

/* ---- all of them ---- */

static uint64_t scripts;

static void each_change(const struct change *change)
{
	bool two_swaps = change->run == delete || change->run == move;

	if (change->steps && !design_is("tree"))
		return;
	waits_for_lookup(change);
	waits_for_walk(change, walk, true);
	waits_for_walk(change, walk_host, true);
	late_hint(change);
	hints_in_both(change);
	after_leaving(change);
	late_count(change, 1);
	late_count(change, 2);
	vcpu_inside(change, POINT_VCPU_GENERATION_LOADED);
	vcpu_inside(change, POINT_VCPU_HINT_LOADED);
	vcpu_before(change);
	section_across(change);
	mark_across(change);
	change_in_section(change);
	reader_dies(change);
	fork_beside(change);
	scripts += 16 - TEST_SANITIZED;
	if (!two_swaps)
		return;
	between_the_swaps(change);
	a_reader_for_each_swap(change);
	refused_in_hook(change);
	scripts += 3;
}

static void once(void)
{
	newcomer_inside();
	leaves_after_flip();
	leapfrog();
	generation_before_publish();
	generations_of_two_spaces();
	two_on_one_vcpu();
	batch_across();
	mark_across_move();
	mark_across_harvest();
	first_lookup_beside_waiting_writer();
	scripts += 10;
	if (!design_is("tree"))
		return;
	index_comes_late();
	index_offered_beside_writer();
	index_held_beside_writer();
	scripts += 3;
}

int main(int argc, char **argv)
{
	test_init(argc, argv, SCRIPT_SECONDS);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		for (size_t c = 0; c < ARRAY_SIZE(changes); c++)
			each_change(&changes[c]);
		once();
	}
	return test_done("schedules", scripts, "scripts");
}
