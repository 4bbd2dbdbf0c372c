/* SPDX-License-Identifier: MIT */
/*
 * test_schedules.c - one schedule for each way in which a reader and a writer could harm each other.
 *
 * Each script stops real threads at named points of the engine (script.h), lets another thread run, goes on, and checks
 * the answers.  Its name has the numbers of the hazards of docs/reliability.md that it rules out.  Freed memory is
 * poisoned, so an answer from a freed slot is wrong in every build; ms_check() finds a hint or a link to one.
 * Everything runs on every design.
 */
#include "script.h"

#include <sys/wait.h>

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define ID 1u
#define OTHER 2u
#define NEXT 3u /* takes the place of ID in an exchange */
#define NPAGES 16u
#define OLD_GFN 0x100u
#define NEW_GFN 0x500u
#define GFN (OLD_GFN + 4)
#define MOVED (NEW_GFN + 4)
#define SPACES 2

static struct ms_vm *vm;
static struct ms_vcpu *vcpu;
static struct actor reader, second, writer;

/* The answer for the fifth page of the slot; without one (id 0), that of a hole. */
static uint64_t hva_in(uint32_t as_id, uint32_t id)
{
	return id ? hva_for(as_id, id) + (GFN - OLD_GFN) * PAGE : MS_HVA_ERR_BAD;
}

/* ---- readers ---- */

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

/* ---- writers ---- */

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
	struct ms_memslot slots[] = {
		{ 0x900, 1, hva_for(0, 9), 9, 0, 0, 0 },
		{ 0x910, 1, hva_for(0, 10), 10, 0, LOG, 0 },
	};

	me->r = ms_load_memslots(vm, 0, slots, ARRAY_SIZE(slots), NULL);
}

/* Deletes the slot and creates another one at the same frames. */
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

/* A DELETE by KVM's steps. */
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

/* ID with four more pages at each end; GFN keeps its host page. */
static struct ms_slot *grown(struct ms_update *u, struct ms_slot *old)
{
	struct ms_memslot value;
	struct ms_slot *draft = NULL;

	CHECK_EQ(ms_update_value(u, old, &value), 0);
	value.base_gfn -= 4;
	value.userspace_addr -= 4 * PAGE;
	value.npages += 8;
	CHECK_EQ(ms_update_copy(u, old, &value, &draft, NULL), 0);
	return draft;
}

/* A change of size, which only an update can make. */
static void grow_by_steps(struct actor *me)
{
	struct ms_update *u;
	struct ms_slot *old, *new_slot;

	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	old = ms_update_find(u, true, ID);
	new_slot = grown(u, old);
	CHECK_EQ(ms_update_replace(u, old, new_slot, NULL), 0);
	CHECK_EQ(ms_update_activate(u, old, new_slot, NULL), 0);
	me->r = ms_update_end(u, true, NULL);
}

/* ---- transactions ---- */

static void resize(struct actor *me)
{
	static const struct ms_step step = { .kind = MS_STEP_RESIZE, .slot = ID, .memory_size = (NPAGES + 9) * PAGE };

	me->r = ms_change_memslots(vm, 0, &step, 1, NULL);
}

/* The pages up to GFN move, and the others become a slot of their own. */
static void split_and_move(struct actor *me)
{
	static const struct ms_step steps[] = {
		{ .kind = MS_STEP_SPLIT, .slot = ID, .other = 40, .guest_phys_addr = (GFN + 1) * PAGE },
		{ .kind = MS_STEP_MOVE, .slot = ID, .guest_phys_addr = NEW_GFN * PAGE },
	};

	me->r = ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), NULL);
}

/* ID gets four more pages at its beginning. */
static void merge(struct actor *me)
{
	const struct ms_step steps[] = {
		{ .kind = MS_STEP_CREATE,
		  .slot = 40,
		  .flags = LOG,
		  .guest_phys_addr = (OLD_GFN - 4) * PAGE,
		  .memory_size = 4 * PAGE,
		  .userspace_addr = hva_for(0, ID) - 4 * PAGE },
		{ .kind = MS_STEP_MERGE, .slot = ID, .other = 40 },
	};

	me->r = ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), NULL);
}

/* Another slot takes the place that ID leaves, in steps of the wrong order. */
static void take_place(struct actor *me)
{
	const struct ms_step steps[] = {
		{ .kind = MS_STEP_CREATE,
		  .slot = NEXT,
		  .guest_phys_addr = OLD_GFN * PAGE,
		  .memory_size = NPAGES * PAGE,
		  .userspace_addr = hva_for(0, NEXT) },
		{ .kind = MS_STEP_MOVE, .slot = ID, .guest_phys_addr = NEW_GFN * PAGE },
	};

	me->r = ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), NULL);
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
	ms_vcpu_destroy(vcpu);
	script_end_vm(vm);
}

/* Lookups of every kind find the slot with this id at the frame, or a hole (id 0). */
static void check_at(uint32_t as_id, uint64_t gfn, uint32_t id)
{
	uint64_t hva = hva_in(as_id, id), answer = 0;
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

/* Checks both sets: a change in between makes the other one active. */
static void check_at_in_both(uint32_t as_id, uint64_t gfn, uint32_t id)
{
	check_at(as_id, gfn, id);
	CHECK_EQ(set(vm, as_id, 30, 0xB00, 1, 0), 0);
	check_at(as_id, gfn, id);
	check_sound(vm);
	CHECK_EQ(set(vm, as_id, 30, 0, 0, 0), 0);
}

/* ---- changes, each of which must wait for the readers inside ---- */

static const struct change_case {
	const char *name;
	void (*run)(struct actor *me);
	uint32_t then_old, then_new; /* the ids at GFN and at MOVED afterwards */
	bool steps;
} changes[] = {
	{ "create", create, ID, 0, false },
	{ "delete", delete, 0, 0, false },
	{ "move", move, 0, ID, false },
	{ "flags", change_flags, ID, 0, false },
	{ "load", load, ID, 0, false },
	{ "exchange", exchange, NEXT, 0, false },
	{ "delete by steps", delete_by_steps, 0, 0, true },
	{ "grow by steps", grow_by_steps, ID, 0, true },
	{ "resize", resize, ID, 0, false },
	{ "split and move", split_and_move, 0, ID, false },
	{ "merge", merge, ID, 0, false },
	{ "take a place", take_place, NEXT, ID, false },
	{ "close", close_vm, 0, 0, false },
};

static void check_after(const struct change_case *change)
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

/* ---- one reader during one change ---- */

/* The reader stops at a point, the change begins, the reader goes on.  A script names what differs from that. */
struct script {
	const char *name;
	void (*read)(struct actor *me);
	uint32_t stop;
	void (*check)(const struct change_case *change); /* the reader's answers, after both have ended */
	void (*prepare)(void);                      /* before the reader starts */
	void (*before_change)(void);                /* while the reader is stopped */
	void (*while_waiting)(const struct change_case *change);
	bool outside;   /* the reader is outside of sections: the change does not wait for it */
	bool tree_only; /* it needs indexes */
};

static void check_old_hva(const struct change_case *change)
{
	(void)change;
	CHECK_EQ(reader.hva, hva_in(0, ID));
}

static void check_new_hva(const struct change_case *change)
{
	CHECK_EQ(reader.hva, hva_in(0, change->then_old));
}

/* A walk sees one state from its first slot to its last. */
static void check_old_walk(const struct change_case *change)
{
	(void)change;
	CHECK_EQ(reader.nr, 2);
	CHECK(reader.slot[0].id == ID && reader.slot[1].id == OTHER);
	CHECK(reader.slot[0].base_gfn == OLD_GFN && reader.slot[0].flags == LOG);
}

/* The writer leaves the bank that the reader has loaded, before the reader counts itself in. */
static void flip(uint32_t times)
{
	for (uint32_t i = 0; i < times; i++)
		CHECK_EQ(set(vm, 1, 20 + i, 0xA00 + i, 1, 0), 0);
	go_until(&reader, POINT_READER_VIEW_LOADED);
}

static void flip_once(void)
{
	flip(1);
}

static void flip_twice(void)
{
	flip(2);
}

static void store_vcpu_hint(void)
{
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, GFN), hva_in(0, ID));
}

static void look_up_in_section(struct actor *me)
{
	CHECK_EQ(ms_read_lock(vm), 0);
	me->hva = ms_gfn_to_hva(vm, 0, GFN);
	me->r = ms_gfn_to_memslot(vm, 0, MOVED, &me->slot[0]);
	me->nr = ms_memslots(vm, 0, me->slot, ARRAY_SIZE(me->slot));
	ms_read_unlock(vm);
}

/* The reader has left the first nested section.  The writer goes on waiting while the reader leaves two more. */
static void leave_nested_sections(const struct change_case *change)
{
	(void)change;
	go_until(&reader, POINT_READER_LEFT);
	CHECK_EQ(atomic_load(&writer.ended), 0);
	go_until(&reader, POINT_READER_LEFT);
	CHECK_EQ(atomic_load(&writer.ended), 0);
	check_waits(&writer, vm);
}

/* Every answer in the section comes from the state that its first lookup saw. */
static void check_old_section(const struct change_case *change)
{
	check_old_hva(change);
	CHECK_EQ(reader.r, -ENOENT);
	CHECK(reader.nr == 2 && reader.slot[0].id == ID && reader.slot[0].flags == LOG);
}

/* The log of ID has one bit, that of GFN. */
static void check_marked(void)
{
	struct ms_memslot slot;
	uint64_t word = 0;
	size_t nwords;

	CHECK_EQ(ms_id_to_memslot(vm, 0, ID, &slot), 0);
	CHECK_EQ(ms_get_dirty_log(vm, 0, ID, &word, 1, &nwords, NULL), 0);
	CHECK_EQ(word, (uint64_t)1 << ((hva_in(0, ID) - slot.userspace_addr) / PAGE));
}

/* The mark is in the log if the page goes on being logged. */
static void check_mark(const struct change_case *change)
{
	if (change->run != delete && change->run != change_flags && change->run != exchange &&
	    change->run != delete_by_steps && change->run != close_vm)
		check_marked();
}

static void die_inside(struct actor *me)
{
	CHECK_EQ(ms_read_lock(vm), 0);
	me->hva = ms_gfn_to_hva(vm, 0, GFN);
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

/* The child looks up, and its changes are refused. */
static void fork_and_look_up(const struct change_case *change)
{
	pid_t child;
	int status;

	if (TEST_SANITIZED) /* a sanitizer's own threads and locks do not survive a fork */
		return;
	child = fork();
	if (!child)
		_exit(in_child(change->run == close_vm ? MS_HVA_ERR_BAD : hva_in(0, OTHER)));
	CHECK(child > 0);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
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

/* The answers of a state with these ids at GFN, at MOVED and at 0x204. */
static void check_batch(uint32_t at_old, uint32_t at_new, uint32_t other)
{
	CHECK_EQ(batch_out[0], hva_in(0, at_old));
	CHECK_EQ(batch_out[1], hva_in(0, at_new));
	CHECK_EQ(batch_out[2], hva_in(0, at_old));
	CHECK_EQ(batch_out[3], hva_in(0, other));
	CHECK_EQ(batch_out[4], hva_in(0, at_new));
}

static void index_eagerly(void)
{
	ms_set_index_policy(vm, MS_INDEX_EAGER);
}

/* The batch that made the index, and one that uses it, have the answers of the new state. */
static void check_batches(const struct change_case *change)
{
	uint32_t other = vm->closed ? 0 : OTHER;

	check_batch(change->then_old, change->then_new, other);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	look_up_batch(NULL);
	check_batch(change->then_old, change->then_new, other);
}

static const struct script one_reader[] = {
	{ "H1 H2 H31: a change waits for a lookup", look_up, POINT_READER_VIEW_LOADED, .check = check_old_hva },
	{ "H1 H30: a change waits for a walk", walk, POINT_READER_WALKS, .check = check_old_walk },
	{ "H1 H30: a change waits for a walk by hva", walk_host, POINT_READER_WALKS, .check = check_old_walk },
	{ "H7: a hint is stored while a change waits", look_up, POINT_READER_SLOT_FOUND, .check = check_old_hva },
	{ "H3: a reader counts itself in after a flip", look_up, POINT_READER_BANK_LOADED, .check = check_old_hva,
	  .before_change = flip_once },
	{ "H3: a reader counts itself in after two flips", look_up, POINT_READER_BANK_LOADED, .check = check_old_hva,
	  .before_change = flip_twice },
	{ "H11: a vCPU has loaded its generation", look_up_by_vcpu, POINT_VCPU_GENERATION_LOADED,
	  .check = check_old_hva, .prepare = store_vcpu_hint },
	{ "H11: a vCPU has compared its generation", look_up_by_vcpu, POINT_VCPU_HINT_MATCHES, .check = check_old_hva,
	  .prepare = store_vcpu_hint },
	{ "H11: a vCPU has loaded its hint", look_up_by_vcpu, POINT_VCPU_HINT_LOADED, .check = check_old_hva,
	  .prepare = store_vcpu_hint },
	{ "H11: a vCPU is storing its hint", look_up_by_vcpu, POINT_VCPU_HINT_HALF_STORED, .check = check_old_hva },
	{ "H15 H19: a section sees one state", look_up_in_section, POINT_READER_LEFT, .check = check_old_section,
	  .while_waiting = leave_nested_sections },
	{ "H15: an index is made while its set is replaced", look_up_batch, POINT_READER_INDEX_MADE,
	  .check = check_batches, .prepare = index_eagerly, .outside = true, .tree_only = true },
	{ "H16: a page is marked while its log may end", mark, POINT_READER_MARKS, .check = check_mark },
	{ "H23: a thread ends inside a section", die_inside, POINT_READER_LEFT, .check = check_old_hva },
	{ "H24: a fork with a reader and a writer active", look_up, POINT_READER_VIEW_LOADED, .check = check_old_hva,
	  .while_waiting = fork_and_look_up },
	{ "H8: a reader writes nothing after it has left", look_up, POINT_READER_LEFT, .check = check_old_hva,
	  .outside = true },
	{ "H11: a vCPU has not yet entered its section", look_up_by_vcpu, POINT_READER_BANK_LOADED,
	  .check = check_new_hva, .prepare = store_vcpu_hint, .outside = true },
};

/* A change that must not wait runs in this thread: if it waited, the test would hang. */
static void begin_change(const struct script *script, const struct change_case *change)
{
	if (!script->outside) {
		act_until_waits(&writer, change->run, vm);
		return;
	}
	change->run(&writer);
	CHECK_EQ(stats_of(vm).grace_waits, 0);
}

static void run_script(const struct script *script, const struct change_case *change)
{
	char name[128];

	snprintf(name, sizeof(name), "%s (%s)", script->name, change->name);
	begin(name);
	if (script->prepare)
		script->prepare();
	act_until(&reader, script->read, script->stop);
	if (script->before_change)
		script->before_change();
	begin_change(script, change);
	if (script->while_waiting)
		script->while_waiting(change);
	finish(&reader);
	if (!script->outside)
		await_end(&writer);
	script->check(change);
	if (!vm->closed)
		check_sound(vm);
	check_after(change);
	end();
}

/* ---- scripts with other steps ---- */

/* H7: both sets have the slot as their hint before the change. */
static void hints_in_both(const struct change_case *change)
{
	begin("H7: hints of both sets");
	check_at_in_both(0, GFN, ID);
	change->run(&writer);
	check_after(change);
	end();
}

/* H25: a reader that comes after the swap sees the new set, and the writer does not wait for it. */
static void newcomer_inside(void)
{
	begin("H25: the writer does not wait for a newcomer");
	act_until(&second, look_up_slot_twice, POINT_READER_LEFT); /* a drain looks at the reader's record first */
	act_until(&reader, look_up_slot, POINT_READER_VIEW_LOADED);
	act_until_waits(&writer, change_flags, vm);
	go_until(&second, POINT_READER_VIEW_LOADED);
	finish_both(&reader, &writer);
	finish(&second);
	CHECK_EQ(reader.slot[0].flags, LOG);
	CHECK_EQ(second.slot[0].flags, 0);
	end();
}

/* H5: the reader leaves after the flip, through the bank that it entered. */
static void leaves_after_flip(void)
{
	begin("H5: a reader leaves the bank that it entered");
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act_until(&writer, create, POINT_WRITER_FLIPPED);
	go_until(&reader, POINT_READER_LEFT); /* not to its end: that would complete its counts */
	finish(&writer);
	for (struct srcu_reader *r = atomic_load(&vm->srcu.readers); r; r = r->next)
		for (int bank = 0; bank < 2; bank++)
			CHECK_EQ(atomic_load(&r->lock[bank]), atomic_load(&r->unlock[bank]));
	finish(&reader);
	end();
}

/* H4: two readers share a record; one leaves and enters again between two reads of the writer, the other stays. */
static void leapfrog(void)
{
	begin("H4: two readers in one record");
	memory_fail(&vm->memory, 1, true); /* all readers share one record, the only one that a drain reads */
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act_until(&second, look_up, POINT_READER_BANK_LOADED);
	memory_fail(&vm->memory, 0, false);
	act_until(&writer, delete, POINT_WRITER_FLIPPED);
	go_until(&writer, POINT_WRITER_READS_COUNTS);
	finish(&second);
	go(&writer, NO_STOP);
	check_waits(&writer, vm);
	finish_both(&reader, &writer);
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

/* H9, H10: lookups find the INVALID slot and store it as a hint; then it is freed. */
static void between_the_swaps(const struct change_case *change)
{
	begin("H9 H10: between the swaps");
	act_until(&writer, change->run, POINT_WRITER_INVALIDATED);
	check_invisible();
	finish(&writer);
	check_after(change);
	end();
}

/* H2, H9: one reader in the old set, one in the set with the INVALID copy; each swap waits for its reader. */
static void a_reader_for_each_swap(const struct change_case *change)
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

/* H12: a set that is published again must not have its earlier generation. */
static void generation_before_publish(void)
{
	begin("H12: the generation is stored before the set is published");
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, GFN), hva_in(0, ID)); /* stores a hint with this set's generation */
	act_until(&writer, delete, POINT_WRITER_INVALIDATED);
	go_until(&writer, POINT_WRITER_PUBLISHED);
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, GFN), MS_HVA_ERR_BAD);
	CHECK(ms_generation(vm, 0) & MS_GEN_UPDATE_IN_PROGRESS);
	finish(&writer);
	CHECK(!(ms_generation(vm, 0) & MS_GEN_UPDATE_IN_PROGRESS));
	end();
}

/* H12, H14: two address spaces never have the same generation, after any changes. */
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

/* ---- two threads on one vCPU ---- */

static void look_up_in(uint32_t as_id, uint32_t id)
{
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, as_id), 0);
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, GFN), hva_in(as_id, id));
}

/* H13: a thread has stored the generation of space 1, and the slot is still that of space 0.  The second thread does
 * not use this hint, and does not wait. */
static void hint_half_stored(void)
{
	uint64_t hits;

	begin("H13: a hint of a vCPU is half stored");
	look_up_in(0, ID);
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, 1), 0);
	act_until(&reader, look_up_by_vcpu, POINT_VCPU_HINT_HALF_STORED);
	look_up_in(1, ID);
	CHECK_EQ(stats_of(vm).vcpu_bypasses, 1);
	finish(&reader);
	CHECK_EQ(reader.hva, hva_in(1, ID));
	hits = stats_of(vm).hits_last_used;
	look_up_in(1, ID);
	CHECK_EQ(stats_of(vm).hits_last_used, hits + 1);
	CHECK_EQ(stats_of(vm).vcpu_bypasses, 1);
	end();
}

/* H13: a thread reads a hint of space 1.  Another thread replaces it by one of space 0, and then stores it again. */
static void hint_replaced(uint32_t stop, bool again)
{
	begin("H13: a hint of a vCPU is replaced while it is read");
	look_up_in(1, ID);
	act_until(&reader, look_up_by_vcpu, stop);
	look_up_in(0, ID);
	if (again)
		look_up_in(1, ID);
	finish(&reader);
	CHECK_EQ(reader.hva, hva_in(1, ID));
	CHECK_EQ(stats_of(vm).vcpu_bypasses, 0);
	end();
}

/* H11, H13: a thread in the old state has compared its generation.  Another thread stores a hint of the new state. */
static void hint_replaced_during_change(const struct change_case *change)
{
	begin("H11 H13: a hint of a vCPU is replaced during a change");
	look_up_in(0, ID);
	act_until(&reader, look_up_by_vcpu, POINT_VCPU_HINT_MATCHES);
	act_until_waits(&writer, change->run, vm);
	ms_vcpu_gfn_to_hva(vcpu, GFN); /* next to a move or a delete, it stores the INVALID copy */
	finish_both(&reader, &writer);
	CHECK_EQ(reader.hva, hva_in(0, ID));
	check_after(change);
	end();
}

/* H13, S3: a thread that uses a vCPU after another one counts in its own record. */
static void reader_of_a_vcpu(void)
{
	struct srcu_reader *record;
	uint64_t before;

	begin("H13: a vCPU has the record of another thread");
	act_until(&reader, look_up_by_vcpu, POINT_READER_LEFT);
	record = atomic_load(&vcpu->reader);
	CHECK(!srcu_is_shared(record));
	CHECK(atomic_load(&record->owner) != thread_number());
	before = atomic_load(&record->lock[0]) + atomic_load(&record->lock[1]);
	look_up_in(0, ID);
	CHECK_EQ(atomic_load(&record->lock[0]) + atomic_load(&record->lock[1]), before);
	finish(&reader);
	end();
}

static void look_up_first(struct actor *me)
{
	CHECK_EQ(thread_self.number, 0);
	look_up_by_vcpu(me);
	me->r = thread_self.number != 0;
}

/* H13, S3: a record without owner is not the record of a thread without number. */
static void record_without_owner(void)
{
	begin("H13: a vCPU has a record without owner");
	act(&reader, look_up_by_vcpu, NO_STOP);
	await_end(&reader);
	CHECK_EQ(atomic_load(&atomic_load(&vcpu->reader)->owner), SRCU_FREE);
	act(&second, look_up_first, NO_STOP);
	await_end(&second);
	CHECK_EQ(second.hva, hva_in(0, ID));
	CHECK_EQ(second.r, 1); /* it has taken a record */
	end();
}

/* ---- batches ---- */

/* H15: a batch during a move finds the slot at one place, never at both. */
static void batch_across(void)
{
	begin("H15: a batch sees one state");
	act_until(&reader, look_up_batch, POINT_READER_VIEW_LOADED);
	act(&writer, move, POINT_WRITER_INVALIDATED);
	check_waits(&writer, vm);
	finish(&reader);
	check_batch(ID, 0, OTHER);
	await_stop(&writer);
	look_up_batch(NULL);
	check_batch(0, 0, OTHER); /* the state with the INVALID slot */
	finish(&writer);
	look_up_batch(NULL);
	check_batch(0, ID, OTHER);
	end();
}

/* ---- dirty pages ---- */

/* H16: a bit that is set while a harvest reads and clears its word is in this harvest or in the next. */
static void mark_across_harvest(void)
{
	uint64_t word = 0;
	size_t nwords;

	begin("H16: a mark during a harvest");
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

/* ---- the summary of a large log ---- */

#define LARGE 5u
#define LARGE_GFN 0x100000u
#define LARGE_PAGES DIRTY_SUMMARY_MIN
#define MARKED (LARGE_GFN + 1000)
#define NEIGHBOUR (MARKED + 1) /* in the same line */

static void mark_large(struct actor *me)
{
	(void)me;
	ms_mark_page_dirty(vm, 0, MARKED);
}

static void mark_neighbour(struct actor *me)
{
	(void)me;
	ms_mark_page_dirty(vm, 0, NEIGHBOUR);
}

/* me->nr counts the pages of the large slot, and me->hva has bit 0 for MARKED and bit 1 for NEIGHBOUR. */
static void harvest_ranges(struct actor *me)
{
	struct ms_gfn_range out[8];
	uint64_t gfn = LARGE_GFN;
	size_t n;

	me->nr = 0;
	me->hva = 0;
	me->r = ms_harvest_dirty(vm, 0, true, &gfn, out, ARRAY_SIZE(out), &n, NULL);
	for (size_t i = 0; i < n; i++) {
		me->nr += out[i].npages;
		me->hva |= (uint64_t)(MARKED - out[i].gfn < out[i].npages);
		me->hva |= (uint64_t)(NEIGHBOUR - out[i].gfn < out[i].npages) << 1;
	}
}

static void begin_large(const char *name)
{
	begin(name);
	CHECK_EQ(set(vm, 0, LARGE, LARGE_GFN, LARGE_PAGES, LOG), 0);
}

/* Checks that a harvest finds exactly these pages, and one after it none. */
static void check_harvest(uint64_t pages)
{
	struct actor me = { 0 };

	harvest_ranges(&me);
	CHECK_EQ(me.r, 0);
	CHECK_EQ(me.hva, pages);
	CHECK_EQ(me.nr, (uint64_t)__builtin_popcountll(pages));
	harvest_ranges(&me);
	CHECK_EQ(me.nr, 0);
}

/* H16: a mark that has set its bit, and not yet the summary, is in this harvest or in the next.  ms_check() waits until
 * it is over. */
static void mark_stops_in_summary(enum point point)
{
	struct actor other = { 0 };

	begin_large("H16: a harvest while a mark has not reached the summary");
	act_until(&reader, mark_large, point);
	harvest_ranges(&other);
	finish(&reader);
	check_harvest(1 & ~other.hva);
	CHECK_EQ(ms_check(vm, NULL, NULL), 0);
	end();
}

static void check_all(struct actor *me)
{
	me->r = ms_check(vm, NULL, NULL);
}

/* H16: a mark that relies on the summary, just before a clear takes its line out, is in the next harvest. */
static void clear_marked(struct actor *me)
{
	uint64_t bits[2] = { ~(uint64_t)0, ~(uint64_t)0 };
	uint64_t first = (MARKED - LARGE_GFN) / 64 * 64;

	me->r = ms_clear_dirty_log(vm, 0, LARGE, first, 128, bits, 2, NULL);
}

static void mark_across_clear(void)
{
	begin_large("H16: a mark of a line that a clear takes out of the summary");
	ms_mark_page_dirty(vm, 0, MARKED);
	act_until(&writer, clear_marked, POINT_WRITER_DROPS_LINE);
	mark_neighbour(NULL);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	check_harvest(2);
	CHECK_EQ(ms_check(vm, NULL, NULL), 0);
	end();
}

static void check_during_mark(void)
{
	begin_large("H16: a check while a mark has not reached the summary");
	act_until(&reader, mark_large, POINT_READER_NOTES_LOWER);
	act_until_waits(&writer, check_all, vm);
	finish_both(&reader, &writer);
	CHECK_EQ(writer.r, 0);
	check_harvest(1);
	end();
}

/* H16: a mark is complete although another one of the same line, which was first, is not: it does not rely on it. */
static void second_mark_of_a_line(enum point point)
{
	struct actor other = { 0 };

	begin_large("H16: a complete mark next to one that has not reached the summary");
	act_until(&reader, mark_large, point);
	act(&second, mark_neighbour, NO_STOP);
	await_end(&second);
	harvest_ranges(&other);
	CHECK(other.hva & 2);
	finish(&reader);
	check_harvest(1 & ~other.hva);
	end();
}

/* H16: a mark between the summary and the line, or inside the line, of a harvest.  A bit is found once. */
static void mark_across_ranges(enum point point)
{
	begin_large("H16: a mark while a harvest has taken out the summary");
	ms_mark_page_dirty(vm, 0, NEIGHBOUR);
	act_until(&writer, harvest_ranges, point);
	mark_large(NULL);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	CHECK(writer.hva & 2);
	check_harvest(1 & ~writer.hva);
	end();
}

static struct ms_update *half_done;

/* Publishes the grown slot, and goes no further. */
static void publish_grown(void)
{
	struct ms_slot *old;

	CHECK_EQ(ms_update_begin(vm, 0, &half_done, NULL), 0);
	old = ms_update_find(half_done, true, ID);
	CHECK_EQ(ms_update_replace(half_done, old, grown(half_done, old), NULL), 0);
	CHECK_EQ(ms_update_swap(half_done, NULL), 0);
}

static void grow_and_roll_back(struct actor *me)
{
	publish_grown();
	me->r = ms_update_end(half_done, false, NULL);
}

static void grow_and_abandon(struct actor *me)
{
	publish_grown();
	ms_update_abandon(half_done);
	me->r = ms_check(vm, NULL, NULL); /* takes the lock, and so ends the update */
}

/* H16: a page of the grown slot is marked while the slot of the beginning is published again. */
static void mark_across_roll_back(void (*roll_back)(struct actor *me))
{
	begin("H16: a mark during the roll-back of a change of size");
	act_until(&writer, roll_back, POINT_WRITER_GRACE_OVER);
	act_until(&reader, mark, POINT_READER_MARKS);
	go(&writer, NO_STOP);
	check_waits(&writer, vm);
	finish_both(&reader, &writer);
	CHECK_EQ(writer.r, 0);
	check_marked();
	check_at_in_both(0, GFN, ID);
	end();
}

/* ---- changes that would deadlock, newcomers ---- */

/* H18: a change inside a section fails immediately. */
static void change_in_section(const struct change_case *change)
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

/* H18, H27, H28: a hook looks up, tries a change, which fails immediately, and refuses.  The roll-back waits for the
 * reader of the set with the INVALID slot before it edits that set. */
static void refused_in_hook(const struct change_case *change)
{
	struct actor hook = { 0 };
	struct ms_listener listener = { LISTENER_SIZE, .opaque = &hook, .prepare = change_and_refuse };
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

/* H21: while a writer waits, a thread that never read in this VM gets its record. */
static void first_lookup_while_writer_waits(void)
{
	begin("H21: a newcomer gets a record while a writer waits");
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act_until_waits(&writer, delete, vm);
	act(&second, look_up, NO_STOP);
	await_end(&second);
	CHECK_EQ(second.hva, MS_HVA_ERR_BAD);
	finish_both(&reader, &writer);
	end();
}

/* ---- all of them ---- */

static void each_change(const struct change_case *change)
{
	if (change->steps && !design_is("tree"))
		return;
	for (size_t i = 0; i < ARRAY_SIZE(one_reader); i++)
		if (!one_reader[i].tree_only || design_is("tree"))
			run_script(&one_reader[i], change);
	hints_in_both(change);
	hint_replaced_during_change(change);
	change_in_section(change);
	if (change->run != delete && change->run != move)
		return;
	between_the_swaps(change);
	a_reader_for_each_swap(change);
	refused_in_hook(change);
}

static void once(void)
{
	newcomer_inside();
	leaves_after_flip();
	leapfrog();
	generation_before_publish();
	generations_of_two_spaces();
	hint_half_stored();
	for (int again = 0; again < 2; again++) {
		hint_replaced(POINT_VCPU_HINT_MATCHES, again);
		hint_replaced(POINT_VCPU_HINT_LOADED, again);
	}
	reader_of_a_vcpu();
	record_without_owner();
	batch_across();
	mark_across_harvest();
	mark_across_clear();
	mark_stops_in_summary(POINT_READER_NOTES_LOWER);
	mark_stops_in_summary(POINT_READER_NOTES_UPPER);
	second_mark_of_a_line(POINT_READER_NOTES_LOWER);
	second_mark_of_a_line(POINT_READER_NOTES_UPPER);
	check_during_mark();
	mark_across_ranges(POINT_WRITER_TAKES_LINES);
	mark_across_ranges(POINT_WRITER_HARVESTS);
	first_lookup_while_writer_waits();
	if (!design_is("tree"))
		return;
	mark_across_roll_back(grow_and_roll_back);
	mark_across_roll_back(grow_and_abandon);
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
