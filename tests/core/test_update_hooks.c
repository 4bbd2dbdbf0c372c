/* SPDX-License-Identifier: MIT */
/*
 * test_update_hooks.c - the hooks that the end of an update calls: their order, refusals, and a thread that ends in
 * one.
 *
 * One update makes a change of each kind.  Two listeners write each call into a trace.  test_update_model.c compares
 * the changes of random updates with a model.
 */
#include "fixture.h"

#include <pthread.h>

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define SPACES 2u
#define SPACE 1u
#define NPAGES 70u
#define CHANGES 5

static struct ms_vm *vm;
static struct ms_update *update;
static struct ms_backing *backing;
static uint64_t ends;

/* ---- the listeners ---- */

static char trace[512];
static unsigned calls, refuse_at, end_at; /* the numbers of calls of hooks, from 1; 0: none */
static char last_hook;
static _Thread_local bool may_end; /* false in the main thread */

/* Appends listener, hook and slot, such as "aP3 ". */
static void note(const void *listener, char hook, uint32_t id)
{
	size_t length = strlen(trace);

	CHECK(length + 16 < sizeof(trace));
	snprintf(trace + length, sizeof(trace) - length, "%s%c%u ", (const char *)listener, hook, id);
	last_hook = hook;
	if (++calls == end_at && may_end)
		pthread_exit(NULL);
}

static uint32_t changed_id(const struct ms_change *change)
{
	return change->new_slot.npages ? change->new_slot.id : change->old_slot.id;
}

static int on_prepare(void *opaque, const struct ms_change *change)
{
	note(opaque, 'P', changed_id(change));
	CHECK_EQ(ms_gfn_to_hva(vm, SPACE, change->new_slot.base_gfn), /* readers see the new state already */
		 change->new_slot.npages ? change->new_slot.userspace_addr : MS_HVA_ERR_BAD);
	CHECK(!change->dirty);
	return calls == refuse_at ? -EPERM : 0;
}

static void on_abort(void *opaque, const struct ms_change *change)
{
	note(opaque, 'A', changed_id(change));
}

static void on_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	CHECK_EQ(active->id, old->id);
	note(opaque, 'F', old->id);
}

static struct ms_change committed[CHANGES];
static uint64_t last_bits[CHANGES][2];

static bool is_used(const struct ms_change *change)
{
	return change->old_slot.npages || change->new_slot.npages;
}

static void on_commit(void *opaque, const struct ms_change *change)
{
	uint32_t id = changed_id(change);
	size_t i = 0;

	while (i < CHANGES && is_used(&committed[i]) && changed_id(&committed[i]) != id)
		i++;
	CHECK(i < CHANGES);
	committed[i] = *change;
	if (change->dirty)
		memcpy(last_bits[i], change->dirty, change->nr_dirty_words * sizeof(uint64_t));
	CHECK(atomic_load(&backing->refs) >= 2); /* no slot was freed */
	note(opaque, 'C', id);
}

static int on_prepare_many(void *opaque, const struct ms_change *changes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		CHECK(changed_id(&changes[i]) < 10);
	note(opaque, 'M', (uint32_t)n);
	return calls == refuse_at ? -EPERM : 0;
}

static const struct ms_listener one_by_one = {
	LISTENER_SIZE, "a", on_prepare, on_abort, on_flush, on_commit, NULL, NULL
};
static const struct ms_listener at_once = { LISTENER_SIZE, "b",       on_prepare,      on_abort,
					    on_flush,      on_commit, on_prepare_many, NULL };

static void forget(void)
{
	memset(trace, 0, sizeof(trace));
	memset(committed, 0, sizeof(committed));
	memset(last_bits, 0, sizeof(last_bits));
	calls = 0;
}

static void check_trace(const char *want)
{
	if (strcmp(trace, want))
		fprintf(stderr, "the hooks were %s\n          not %s\n", trace, want);
	CHECK(!strcmp(trace, want));
}

/* ---- the update ---- */

static struct ms_memslot value_of(uint32_t id, uint64_t gfn, uint64_t npages, uint32_t flags)
{
	return (struct ms_memslot){ gfn, npages, hva_for(SPACE, id), id, SPACE, flags, 0 };
}

/* Slots 1 to 5; slot 1 has the backing, slots 1 and 3 have logs with a dirty page. */
static void make_vm(void)
{
	region_t r = region(SPACE, 1, 0x100, NPAGES, LOG);

	vm = new_vm(SPACES);
	CHECK_EQ(ms_backing_create((void *)(uintptr_t)r.userspace_addr, NPAGES * PAGE, 0, NULL, NULL, &backing), 0);
	CHECK_EQ(ms_map_backing(vm, &r, backing, NULL, NULL), 0);
	for (uint32_t id = 2; id <= 5; id++)
		CHECK_EQ(set(vm, SPACE, id, 0x100 * id, NPAGES, id == 3 ? LOG : 0), 0);
	ms_mark_page_dirty(vm, SPACE, 0x100 + 1);
	ms_mark_page_dirty(vm, SPACE, 0x300 + 3);
	ms_mark_page_dirty(vm, SPACE, 0x300 + 68);
	CHECK_EQ(ms_gfn_to_hva(vm, SPACE, 0), MS_HVA_ERR_BAD); /* makes the record of this thread */
	CHECK_EQ(ms_add_listener(vm, &one_by_one, NULL), 0);
	CHECK_EQ(ms_add_listener_last(vm, &at_once, NULL), 0);
	forget();
}

static void end_vm_and_backing(void)
{
	end_vm(vm);
	CHECK_EQ(atomic_load(&backing->refs), 1);
	ms_backing_put(backing);
	ends++;
}

static struct ms_slot *old_slot(uint32_t id)
{
	return ms_update_find(update, true, id);
}

static struct ms_slot *draft_of(uint32_t id, struct ms_memslot value)
{
	struct ms_slot *draft = NULL;

	CHECK_EQ(ms_update_copy(update, old_slot(id), &value, &draft, NULL), 0);
	return draft;
}

#define EDITS 5

static struct ms_slot *edits[EDITS][2];

static void edit_all(void)
{
	for (size_t i = 0; i < EDITS; i++)
		CHECK_EQ(ms_update_replace(update, edits[i][0], edits[i][1], NULL), 0);
}

/* Slot 9 is new, 4 logs, 2 moves, 3 loses its last 6 pages, 1 goes.  The listeners get the deletes first. */
static void make_edits(void)
{
	struct ms_slot *all[EDITS][2] = {
		{ NULL, draft_of(9, value_of(9, 0x900, 1, 0)) },
		{ old_slot(4), draft_of(4, value_of(4, 0x400, NPAGES, LOG)) },
		{ old_slot(2), draft_of(2, value_of(2, 0x5000, NPAGES, 0)) },
		{ old_slot(3), draft_of(3, value_of(3, 0x300, 64, LOG)) },
		{ old_slot(1), NULL },
	};

	memcpy(edits, all, sizeof(edits));
	edit_all();
	CHECK_EQ(ms_update_swap(update, NULL), 0);
	edit_all();
}

static int run(bool keep, struct ms_error *err)
{
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	make_edits();
	CHECK_EQ(calls, 0);
	return ms_update_end(update, keep, err);
}

#define PREPARES "aP1 aP4 aP2 aP3 aP9 "
#define COMMITS(listener) listener "C1 " listener "C4 " listener "C2 " listener "C3 " listener "C9 "
#define ALL_CALLS (PREPARES "bM5 aF2 bF2 aF3 bF3 aF1 bF1 " COMMITS("a") COMMITS("b"))
#define NR_CALLS (5 + 1 + 6 + 10)

static const struct ms_change *commit_of(uint32_t id)
{
	size_t i = 0;

	while (i < CHANGES && changed_id(&committed[i]) != id)
		i++;
	CHECK(i < CHANGES);
	return &committed[i];
}

static void check_commit(uint32_t id, enum ms_change_kind kind, struct ms_memslot old, struct ms_memslot new_slot)
{
	const struct ms_change *change = commit_of(id);

	CHECK_EQ(change->kind, kind);
	CHECK(same_slot(&change->old_slot, &old) && same_slot(&change->new_slot, &new_slot));
}

/* The last bits of a slot, or none. */
static void check_bits(uint32_t id, size_t nr, uint64_t first, uint64_t second)
{
	const struct ms_change *change = commit_of(id);

	CHECK_EQ(change->nr_dirty_words, nr);
	CHECK_EQ(change->dirty != NULL, nr != 0);
	CHECK_EQ(last_bits[change - committed][0], first);
	CHECK_EQ(last_bits[change - committed][1], second);
}

static const struct ms_memslot none;

/* ---- an end that is kept ---- */

static void test_order(void)
{
	make_vm();
	CHECK_EQ(run(true, NULL), 0);
	check_trace(ALL_CALLS);
	check_commit(1, MS_DELETE, value_of(1, 0x100, NPAGES, LOG), none);
	check_commit(2, MS_MOVE, value_of(2, 0x200, NPAGES, 0), value_of(2, 0x5000, NPAGES, 0));
	check_commit(3, MS_RESIZE, value_of(3, 0x300, NPAGES, LOG), value_of(3, 0x300, 64, LOG));
	check_commit(4, MS_FLAGS_ONLY, value_of(4, 0x400, NPAGES, 0), value_of(4, 0x400, NPAGES, LOG));
	check_commit(9, MS_CREATE, none, value_of(9, 0x900, 1, 0));
	check_sound(vm);
	end_vm_and_backing();
}

/* The last bits of a deleted slot are all of its bits; those of a resized slot are the bits of the pages that it lost.
 * */
static void test_last_bits(void)
{
	uint64_t word;

	make_vm();
	CHECK_EQ(run(true, NULL), 0);
	check_bits(1, 2, 2, 0);
	check_bits(3, 2, 0, 16);
	for (uint32_t id = 2; id <= 9; id += id == 2 ? 2 : 5)
		check_bits(id, 0, 0, 0);
	CHECK_EQ(ms_get_dirty_log(vm, SPACE, 3, &word, 1, NULL, NULL), 0);
	CHECK_EQ(word, 8); /* the other page keeps its bit */
	end_vm_and_backing();
}

/* A slot that grows loses no page.  One whose log is switched off gives all of its bits. */
static void test_last_bits_of_others(void)
{
	make_vm();
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	edits[0][0] = old_slot(3);
	edits[0][1] = draft_of(3, value_of(3, 0x300, NPAGES + 1, LOG));
	edits[1][0] = old_slot(1);
	edits[1][1] = draft_of(1, value_of(1, 0x100, NPAGES, 0));
	for (size_t i = 0; i < 4; i++) {
		CHECK_EQ(ms_update_replace(update, edits[i % 2][0], edits[i % 2][1], NULL), 0);
		if (i == 1)
			CHECK_EQ(ms_update_swap(update, NULL), 0);
	}
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	check_trace("aP3 aP1 bM2 aF3 bF3 aC3 aC1 bC3 bC1 ");
	check_bits(3, 0, 0, 0);
	check_bits(1, 2, 2, 0);
	end_vm_and_backing();
}

/* The new slot begins one page below the old one, and has all dirty pages.  A second draft of the slot is not used. */
static void test_last_bits_of_pages_below(void)
{
	struct ms_memslot below = value_of(3, 0x300 - 1, NPAGES, LOG);
	struct ms_slot *draft;

	below.userspace_addr -= PAGE;
	make_vm();
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	draft = draft_of(3, below);
	draft_of(3, value_of(3, 0x300, 1, LOG));
	CHECK_EQ(ms_update_replace(update, old_slot(3), draft, NULL), 0);
	CHECK_EQ(ms_update_activate(update, old_slot(3), draft, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	check_bits(3, 0, 0, 0);
	end_vm_and_backing();
}

/* invalidate() has called the flush hooks of its slot already. */
static void test_invalidated(void)
{
	struct ms_slot *slot, *inv;

	make_vm();
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	slot = old_slot(5);
	CHECK_EQ(ms_update_invalidate(update, slot, &inv, NULL), 0);
	check_trace("aF5 bF5 ");
	CHECK_EQ(ms_update_replace(update, slot, NULL, NULL), 0);
	CHECK_EQ(ms_update_activate(update, inv, NULL, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	check_trace("aF5 bF5 aP5 bM1 aC5 bC5 ");
	forget();
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	slot = old_slot(4);
	CHECK_EQ(ms_update_invalidate(update, slot, &inv, NULL), 0);
	CHECK_EQ(ms_update_swap(update, NULL), 0); /* readers see the slot again */
	CHECK_EQ(ms_update_replace(update, inv, NULL, NULL), 0);
	CHECK_EQ(ms_update_activate(update, slot, NULL, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	check_trace("aF4 bF4 aP4 bM1 aF4 bF4 aC4 bC4 ");
	end_vm_and_backing();
}

/* Steps that leave the slots as they were, and an update without steps. */
static void test_no_changes(void)
{
	struct ms_slot *draft, *slot;

	make_vm();
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	slot = old_slot(3);
	draft = draft_of(3, value_of(3, 0x300, NPAGES, LOG)); /* the same values, and the same log */
	CHECK_EQ(ms_update_replace(update, slot, draft, NULL), 0);
	CHECK_EQ(ms_update_activate(update, slot, draft, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	check_trace("");
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	slot = old_slot(3);
	CHECK_EQ(ms_update_replace(update, slot, NULL, NULL), 0);
	draft = draft_of(77, value_of(3, 0x300, NPAGES, LOG)); /* the same values in a new slot */
	CHECK_EQ(ms_update_replace(update, NULL, draft, NULL), 0);
	CHECK_EQ(ms_update_activate(update, slot, draft, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	check_trace("aP3 aP3 bM2 aC3 aC3 bC3 bC3 ");
	check_sound(vm);
	end_vm_and_backing();
}

/* ---- ends without a change ---- */

static void test_rolled_back(void)
{
	struct picture before, after;
	struct ms_slot *slot;

	make_vm();
	before = picture_of(vm);
	CHECK_EQ(run(false, NULL), 0);
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	make_edits();
	ms_update_abandon(update);
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	slot = old_slot(2);
	CHECK_EQ(ms_update_replace(update, slot, NULL, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), -EINVAL); /* the sets differ */
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	check_trace("");
	end_vm_and_backing();
}

/* ---- refusals ---- */

static void test_refusals(void)
{
	static const char *const traces[] = { "aP1 ",
					      "aP1 aP4 aA1 ",
					      "aP1 aP4 aP2 aA4 aA1 ",
					      "aP1 aP4 aP2 aP3 aA2 aA4 aA1 ",
					      PREPARES "aA3 aA2 aA4 aA1 ",
					      PREPARES "bM5 aA9 aA3 aA2 aA4 aA1 " };
	struct picture before, after;
	struct ms_error err;
	struct ms_stats held;
	uint64_t gen;

	for (refuse_at = 1; refuse_at <= ARRAY_SIZE(traces); refuse_at++) {
		make_vm();
		before = picture_of(vm);
		held = held_by(vm);
		gen = ms_generation(vm, SPACE);
		CHECK_EQ(run(true, &err), -EPERM);
		CHECK_EQ(err.rule, MS_RULE_LISTENER_REFUSED);
		check_trace(traces[refuse_at - 1]);
		after = picture_of(vm);
		CHECK(same_picture(&before, &after));
		CHECK_EQ(held_by(vm).blocks, held.blocks);
		CHECK_EQ(ms_generation(vm, SPACE), gen + 2 * SPACES); /* the update's swap, and that of the roll-back */
		CHECK_EQ(ms_gfn_to_hva(vm, SPACE, 0x200), hva_for(SPACE, 2));
		check_sound(vm);
		forget();
		refuse_at += 100;
		CHECK_EQ(run(true, &err), 0); /* the next one is accepted */
		refuse_at -= 100;
		end_vm_and_backing();
	}
	refuse_at = 0;
}

/* The roll-back waits for a reader that sees the refused state. */
static void test_readers_see_the_roll_back(void)
{
	make_vm();
	refuse_at = 1;
	CHECK_EQ(run(true, NULL), -EPERM);
	refuse_at = 0;
	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(ms_gfn_to_hva(vm, SPACE, 0x5000), MS_HVA_ERR_BAD);
	CHECK_EQ(ms_gfn_to_hva(vm, SPACE, 0x900), MS_HVA_ERR_BAD);
	ms_read_unlock(vm);
	end_vm_and_backing();
}

/* The end of an update needs no memory, with or without a change. */
static void test_without_memory(void)
{
	make_vm();
	CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
	make_edits();
	memory_fail(&vm->memory, 1, true);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	memory_fail(&vm->memory, 0, false);
	check_trace(ALL_CALLS);
	end_vm_and_backing();
}

/* A step without memory fails and changes nothing; later steps and the end go on.  Each allocation fails once. */
static void test_steps_without_memory(void)
{
	for (unsigned attempt = 1, failed = 1; failed; attempt++) {
		make_vm();
		CHECK_EQ(ms_update_begin(vm, SPACE, &update, NULL), 0);
		memory_fail(&vm->memory, attempt, false);
		failed = 0;
		for (uint32_t id = 10; id < 30; id++) {
			struct ms_memslot value = value_of(id, 0x900 + id, 1, 0);
			struct ms_slot *draft = NULL;
			int r = ms_update_copy(update, NULL, &value, &draft, NULL);

			CHECK(!r || r == -ENOMEM);
			failed += r != 0;
		}
		memory_fail(&vm->memory, 0, false);
		make_edits();
		CHECK_EQ(ms_update_end(update, true, NULL), 0);
		check_trace(ALL_CALLS);
		check_sound(vm);
		end_vm_and_backing();
		CHECK(attempt < 100);
	}
}

/* ---- a thread ends in a hook of its update's end ---- */

static void *end_update_and_end(void *unused)
{
	may_end = true;
	run(true, NULL);
	CHECK(!"the thread ends in a hook");
	return unused;
}

enum taker { BY_CHECK, BY_SET, BY_BEGIN, BY_CLOSE, BY_DESTROY, NR_TAKERS };

static void take(enum taker taker)
{
	if (taker == BY_CHECK)
		check_sound(vm);
	else if (taker == BY_SET)
		CHECK_EQ(set(vm, SPACE, 5, 0x500, NPAGES, 0), 0); /* changes nothing */
	else if (taker == BY_BEGIN) {
		CHECK_EQ(ms_update_begin(vm, 0, &update, NULL), 0);
		CHECK_EQ(ms_update_end(update, true, NULL), 0);
	} else if (taker == BY_CLOSE)
		CHECK_EQ(ms_vm_close(vm, NULL), 0);
	else
		ms_vm_destroy(vm);
}

static struct picture picture_after(struct ms_stats *held)
{
	struct picture after;

	make_vm();
	CHECK_EQ(run(true, NULL), 0);
	after = picture_of(vm);
	*held = held_by(vm);
	end_vm_and_backing();
	return after;
}

/* The next call that takes the lock rolls the update back, or completes it if it is kept, without hooks. */
static void end_in_hook(enum taker taker)
{
	struct picture before, after, is;
	struct ms_stats held_before, held_after;
	uint64_t blocks;
	bool completed;

	after = picture_after(&held_after);
	make_vm();
	before = picture_of(vm);
	held_before = held_by(vm);
	by_another_thread(end_update_and_end, NULL);
	CHECK_EQ(calls, end_at);
	CHECK(atomic_load(&vm->slots_lock.pending_end)); /* else the next call would wait forever */
	completed = last_hook == 'F' || last_hook == 'C';
	take(taker);
	CHECK_EQ(calls, end_at);
	if (taker == BY_DESTROY) {
		CHECK_EQ(atomic_load(&backing->refs), 1);
		ms_backing_put(backing);
		return;
	}
	is = picture_of(vm);
	if (taker != BY_CLOSE) {
		take(BY_BEGIN); /* frees the update of the thread */
		CHECK(same_picture(&is, completed ? &after : &before));
		blocks = (completed ? held_after : held_before).blocks + (end_at > 1); /* the thread has looked up */
		CHECK_EQ(held_by(vm).blocks, blocks);
		CHECK_EQ(atomic_load(&backing->refs), completed ? 1 : 2);
		check_sound(vm);
	}
	end_vm_and_backing();
}

static void test_ending_in_hooks(void)
{
	for (enum taker taker = 0; taker < NR_TAKERS; taker++) {
		for (end_at = 1; end_at <= NR_CALLS; end_at++)
			end_in_hook(taker);
		refuse_at = 6; /* then the calls from number 7 on are aborts */
		for (end_at = 7; end_at <= 11; end_at++) {
			struct picture before, after;

			make_vm();
			before = picture_of(vm);
			by_another_thread(end_update_and_end, NULL);
			CHECK_EQ(last_hook, 'A');
			take(taker);
			CHECK_EQ(calls, end_at);
			if (taker == BY_DESTROY) {
				ms_backing_put(backing);
				continue;
			}
			after = picture_of(vm);
			CHECK(taker == BY_CLOSE || same_picture(&before, &after));
			end_vm_and_backing();
		}
		refuse_at = 0;
	}
	end_at = 0;
}

/* ---- hooks that use the update ---- */

static void use_update(void *opaque, const struct ms_change *change)
{
	struct ms_error err;
	struct ms_slot *out;

	(void)opaque;
	(void)change;
	CHECK_EQ(ms_update_swap(update, &err), -EDEADLK);
	CHECK_EQ(err.rule, MS_RULE_HOOK);
	CHECK_EQ(ms_update_end(update, true, &err), -EDEADLK);
	CHECK_EQ(ms_update_invalidate(update, NULL, &out, &err), -EDEADLK);
	CHECK_EQ(ms_vm_close(vm, &err), -EDEADLK);
	ms_update_abandon(update); /* has no effect: the end is running */
	ms_vm_destroy(vm); /* nor has this */
	calls++;
}

static int use_in_prepare(void *opaque, const struct ms_change *change)
{
	use_update(opaque, change);
	return 0;
}

static void test_update_in_hooks(void)
{
	static const struct ms_listener uses = { LISTENER_SIZE, .prepare = use_in_prepare, .commit = use_update };

	make_vm();
	CHECK_EQ(ms_remove_listener(vm, &one_by_one, NULL), 0);
	CHECK_EQ(ms_remove_listener(vm, &at_once, NULL), 0);
	CHECK_EQ(ms_add_listener(vm, &uses, NULL), 0);
	CHECK_EQ(run(true, NULL), 0);
	CHECK_EQ(calls, 2 * CHANGES);
	CHECK_EQ(ms_nr_memslots(vm), 5);
	check_sound(vm);
	end_vm_and_backing();
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	test_order();
	test_last_bits();
	test_last_bits_of_others();
	test_last_bits_of_pages_below();
	test_invalidated();
	test_no_changes();
	test_rolled_back();
	test_refusals();
	test_readers_see_the_roll_back();
	test_without_memory();
	test_steps_without_memory();
	test_ending_in_hooks();
	test_update_in_hooks();
	return test_done("update hooks", ends, "updates ended");
}
