/* SPDX-License-Identifier: MIT */
/*
 * test_index_schedules.c - one schedule for each way in which a batch, its index and a writer could harm each other.
 *
 * As test_schedules.c, but only for design "tree", whose sets have indexes.  The numbers are those of
 * docs/reliability.md; H26: no writer waits for a batch.
 */
#include "script.h"

#include <sys/wait.h>

#include "vm_index.h"

#define SPACES 2
#define NR 100u /* slots of 8 pages, ten frames apart */
#define MANY 3000u /* too many slots for an index to pay in a batch of LONG */
#define STEP 10u
#define NPAGES 8u
#define LONG (2 * MS_BATCH_PIECE + 100) /* three pieces */
#define POLLED (2 * MS_BATCH_POLL)

static struct ms_vm *vm;
static struct ms_vcpu *vcpu;
static struct actor reader, second, writer;

/* The frames of a batch, one in each slot in turn, and its answers. */
struct answers {
	size_t n, nr_slots;
	uint64_t in[POLLED], out[POLLED];
	int r;
};

static struct answers first, other;

/* ---- readers ---- */

static void run_batch(struct answers *a)
{
	struct ms_batch batch = { a->in, 8, a->out, 8, a->n, NULL, NULL };

	for (size_t i = 0; i < a->n; i++)
		a->in[i] = i % a->nr_slots * STEP + 3;
	memset(a->out, 0, a->n * sizeof(*a->out));
	a->r = ms_gfn_to_hva_many(vm, 0, &batch, true);
}

static void run_first(struct actor *me)
{
	(void)me;
	run_batch(&first);
}

static void run_other(struct actor *me)
{
	(void)me;
	run_batch(&other);
}

static void look_up(struct actor *me)
{
	me->hva = ms_gfn_to_hva(vm, 0, 53);
}

static void look_up_by_vcpu(struct actor *me)
{
	me->hva = ms_vcpu_gfn_to_hva(vcpu, 53);
}

/* The answers match the state in which the slots with ids from `from` to end - 1 are deleted. */
static void check_answers(const struct answers *a, uint32_t from, uint32_t end)
{
	CHECK_EQ(a->r, 0);
	for (size_t i = 0; i < a->n; i++) {
		uint32_t id = (uint32_t)(i % a->nr_slots);

		CHECK_EQ(a->out[i], id >= from && id < end ? MS_HVA_ERR_BAD : hva_for(0, id) + 3 * PAGE);
	}
}

/* Lookups of every kind match that state now. */
static void check_now(uint32_t from, uint32_t end)
{
	static const enum ms_index_policy policies[] = { MS_INDEX_OFF, MS_INDEX_WALK, MS_INDEX_AUTO, MS_INDEX_EAGER };
	enum ms_index_policy policy = ms_index_policy(vm);

	check_sound(vm);
	for (size_t i = 0; i < ARRAY_SIZE(policies); i++) {
		ms_set_index_policy(vm, policies[i]);
		run_batch(&other);
		check_answers(&other, from, end);
		CHECK_EQ(ms_gfn_to_hva(vm, 0, 53), from <= 5 && end > 5 ? MS_HVA_ERR_BAD : hva_for(0, 5) + 3 * PAGE);
	}
	check_sound(vm);
	ms_set_index_policy(vm, policy);
}

/* ---- writers ---- */

static int delete(uint32_t id)
{
	return set(vm, 0, id, 0, 0, 0);
}

static void delete_5(struct actor *me)
{
	me->r = delete(5);
}

static void create_one(struct actor *me)
{
	me->r = set(vm, 0, 3500, 100000, 1, 0);
}

static void close_vm(struct actor *me)
{
	me->r = ms_vm_close(vm, NULL);
}

/* More changes than a patch can note: the sets drop the base of the next index. */
static void change_many(uint32_t id)
{
	for (uint32_t i = 0; i <= PATCH_MAX; i++)
		CHECK_EQ(delete(id + i), 0);
}

/* ---- before and after ---- */

static void load(size_t nr)
{
	struct ms_memslot *slots = calloc(nr, sizeof(*slots));

	CHECK(slots);
	for (uint32_t id = 0; id < nr; id++)
		slots[id] = (struct ms_memslot){ id * STEP, NPAGES, hva_for(0, id), id, 0, 0, 0 };
	CHECK_EQ(ms_load_memslots(vm, 0, slots, nr, NULL), 0);
	free(slots);
}

static void begin(const char *name, size_t nr_slots, size_t n)
{
	script_begin(name);
	vm = new_vm(SPACES);
	load(nr_slots);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	first.n = n;
	other.n = 2 * nr_slots; /* short while there are few slots */
	first.nr_slots = other.nr_slots = nr_slots;
	ms_set_index_policy(vm, MS_INDEX_EAGER);
}

/* The same, with an index. */
static void begin_indexed(const char *name, size_t n)
{
	begin(name, NR, n);
	run_batch(&other);
	check_answers(&other, 0, 0);
	CHECK(set_index(vm_active_set(vm, 0)));
}

static void begin_either(const char *name, bool indexed, size_t n)
{
	if (indexed)
		begin_indexed(name, n);
	else
		begin(name, NR, n);
}

static void stop_batch(uint32_t stop)
{
	act_until(&reader, run_first, stop);
}

/* The batch has the answers of the state in which it began. */
static void finish_batch(void)
{
	finish(&reader);
	check_answers(&first, 0, 0);
}

static void end(void)
{
	ms_vcpu_destroy(vcpu);
	script_end_vm(vm);
}

static uint64_t blocks(void)
{
	return stats_of(vm).blocks;
}

static uint64_t refs(const struct flat_index *index)
{
	return atomic_load(&index->refs);
}

/* ---- an index that a batch has found or holds ---- */

/* H1, H31: the writer waits for a reader that uses the index of a set inside its section before it detaches the
 * index. */
static void found_inside(void (*run)(struct actor *me), void (*change)(struct actor *me))
{
	struct memslot_set *old;
	struct flat_index *index;

	begin_indexed("H1 H31: an index in use inside a section", NR);
	old = vm_active_set(vm, 0);
	index = set_index(old);
	act_until(&reader, run, POINT_READER_INDEX_FOUND);
	act_until_waits(&writer, change, vm);
	CHECK(set_index(old) == index && refs(index) >= 1);
	finish(&reader);
	if (run == run_first)
		check_answers(&first, 0, 0);
	else
		CHECK_EQ(reader.hva, hva_for(0, 5) + 3 * PAGE);
	await_end(&writer);
	CHECK_EQ(writer.r, 0);
	if (!vm->closed)
		check_now(5, change == delete_5 ? 6 : 5);
	end();
}

/* H1, H15, H26: a batch holds a reference and is outside of sections.  Changes do not wait, and the batch keeps the
 * state in which it began. */
static void held_across_changes(void)
{
	begin_indexed("H1 H15 H26: changes during a batch that holds an index", LONG);
	stop_batch(POINT_READER_INDEX_HELD);
	CHECK_EQ(delete(5), 0);
	CHECK_EQ(delete(6), 0);
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	check_now(5, 7);
	finish_batch();
	check_now(5, 7);
	end();
}

/* H1: a batch has the last reference and frees the index, once. */
static void held_by_the_batch_alone(void)
{
	struct flat_index *index;
	uint64_t before, size;

	begin_indexed("H1: a batch has the last reference to an index", LONG);
	index = set_index(vm_active_set(vm, 0));
	stop_batch(POINT_READER_INDEX_HELD);
	change_many(5);
	CHECK_EQ(set(vm, 0, 5, 50, NPAGES, 0), 0); /* both sets have dropped their bases by now */
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	CHECK_EQ(refs(index), 1);
	before = blocks();
	size = stats_of(vm).bytes;
	finish_batch();
	CHECK_EQ(blocks(), before - 1);
	CHECK(stats_of(vm).bytes < size);
	check_now(6, 6 + PATCH_MAX);
	end();
}

/* H31: the VM is closed during a batch; the index lives until the batch has ended. */
static void held_across_close(void)
{
	uint64_t before;

	begin_indexed("H31: a close during a batch that holds an index", LONG);
	stop_batch(POINT_READER_INDEX_HELD);
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	before = blocks();
	finish_batch();
	CHECK_EQ(blocks(), before - 1);
	check_empty(vm);
	end();
}

static int end_at_once(void *opaque)
{
	(void)opaque;
	CHECK_EQ(thread_self.sections, 0);
	return 1;
}

/* A batch that its poll ends drops its reference; only the frames that were answered count. */
static void ended_by_poll(bool in_place)
{
	struct ms_batch batch = { in_place ? first.out : first.in, 8, first.out, 8, POLLED, end_at_once, NULL };
	struct flat_index *index;
	uint64_t before;

	begin_indexed("a poll ends its batch", POLLED);
	run_batch(&first);
	index = set_index(vm_active_set(vm, 0));
	before = stats_of(vm).indexed;
	memcpy(first.out, first.in, sizeof(first.out));
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), -EINTR);
	CHECK_EQ(refs(index), 1);
	CHECK_EQ(stats_of(vm).indexed - before, MS_BATCH_POLL);
	CHECK_EQ(first.out[MS_BATCH_POLL - 1], hva_for(0, (MS_BATCH_POLL - 1) % NR) + 3 * PAGE);
	CHECK_EQ(first.out[MS_BATCH_POLL], first.in[MS_BATCH_POLL]);
	end();
}

/* ---- an index in the making ---- */

/* Neither set has an index: the one that was made is of an old state. */
static void check_not_published(void)
{
	for (uint32_t i = 0; i < 2; i++)
		CHECK(!set_index(&vm->as[0].set[i]));
	check_sound(vm);
}

/* H12, H15: the state changes while its index is made: the batch uses it, no other batch gets it.  After a change of
 * two swaps the set is the same one again, and only its generation differs. */
static void offered_to_another_state(bool two_swaps)
{
	begin("H12 H15: an index of a state that is over", NR, LONG);
	stop_batch(POINT_READER_INDEX_MADE);
	if (two_swaps)
		CHECK_EQ(delete(5), 0);
	else
		CHECK_EQ(set(vm, 0, 200, 5000, 1, 0), 0);
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	finish_batch();
	check_not_published();
	check_now(5, two_swaps ? 6 : 5);
	end();
}

/* H12: the slots change and change back: it is a new state all the same. */
static void offered_after_changing_back(void)
{
	begin("H12: the slots change and change back", NR, LONG);
	stop_batch(POINT_READER_INDEX_MADE);
	CHECK_EQ(delete(5), 0);
	CHECK_EQ(set(vm, 0, 5, 50, NPAGES, 0), 0);
	finish_batch();
	check_not_published();
	check_now(0, 0);
	end();
}

/* H1: a reader that is late in its section publishes an index in the set that the writer is about to edit.  The writer
 * detaches the index first and keeps it as the base for the next one. */
static void offered_to_an_old_set(void (*change)(struct actor *me))
{
	struct memslot_set *old;

	begin("H1: an index for a set that has just been replaced", NR, NR);
	stop_batch(POINT_READER_INDEX_OFFERED);
	old = vm_active_set(vm, 0);
	act_until_waits(&writer, change, vm);
	CHECK(old != vm_active_set(vm, 0) && !set_index(old));
	go_until(&reader, POINT_READER_LEFT);
	await_end(&writer);
	CHECK_EQ(writer.r, 0);
	CHECK(!set_index(old));
	finish_batch();
	if (!vm->closed)
		check_now(5, change == delete_5 ? 6 : 5);
	end();
}

/* H1: the writer detaches the index while a batch that found it goes on with a reference. */
static void detached_during_a_batch(void)
{
	struct flat_index *index;

	begin_indexed("H1: an index is detached during a batch", LONG);
	index = set_index(vm_active_set(vm, 0));
	act_until(&writer, delete_5, POINT_WRITER_DETACHES_INDEX);
	CHECK(refs(index) >= 1);
	stop_batch(POINT_READER_INDEX_HELD);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	finish(&reader);
	check_answers(&first, 5, 6); /* the slot was INVALID between the swaps */
	check_now(5, 6);
	end();
}

/* Two readers make an index: the second one to offer it uses its own and drops it. */
static void made_twice(bool patched)
{
	uint64_t before, made;

	begin("two readers make an index", NR, LONG);
	first.n = NR;
	if (patched) {
		run_batch(&other);
		CHECK_EQ(delete(99), 0);
	}
	made = stats_of(vm).index_builds + stats_of(vm).index_patches;
	before = blocks();
	stop_batch(POINT_READER_INDEX_MADE);
	act_until(&second, run_other, POINT_READER_INDEX_MADE);
	go_until(&reader, POINT_READER_INDEX_HELD);
	go_until(&second, POINT_READER_INDEX_HELD);
	CHECK_EQ(stats_of(vm).index_builds + stats_of(vm).index_patches, made + 2);
	CHECK_EQ(blocks(), before + 2 + 2); /* with the records of two readers */
	finish(&second);
	finish(&reader);
	check_answers(&first, 99, patched ? 100 : 99);
	check_answers(&other, 99, patched ? 100 : 99);
	CHECK_EQ(blocks(), before + 1 + 2);
	CHECK(set_index(vm_active_set(vm, 0)));
	end();
}

/* H1, H15: a reader derives an index from an older one and the writer's notes, while the writer adds notes, and drops
 * them. */
static void derived_during_changes(bool many)
{
	begin_indexed("H1 H15: an index derived during changes", NR);
	CHECK_EQ(delete(5), 0);
	stop_batch(POINT_READER_INDEX_PLANNED);
	CHECK_EQ(delete(6), 0);
	if (many)
		change_many(7);
	check_sound(vm);
	finish(&reader);
	check_answers(&first, 5, 6);
	CHECK_EQ(stats_of(vm).index_patches, 1);
	check_not_published();
	check_now(5, many ? 8 + PATCH_MAX : 7);
	end();
}

/* ---- pieces ---- */

/* H15, H26: whenever changes overtake a batch, it restarts and sees one state.  No change waits, except for the last
 * attempt. */
static void overtaken(int times)
{
	uint32_t gone = 5;

	begin("H15 H26: changes overtake a batch", MANY, LONG);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	stop_batch(POINT_READER_PIECE_OVER);
	if (times > 0) {
		CHECK_EQ(delete(gone++), 0);
		go_until(&reader, POINT_READER_INDEX_GATHERED);
	}
	for (int i = 1; i < times && i < 3; i++) { /* the last attempt reads all slots in one section */
		CHECK_EQ(delete(gone++), 0);
		go_until(&reader, i < 2 ? POINT_READER_INDEX_GATHERED : POINT_READER_INDEX_MADE);
	}
	if (times > 0 && times < 3) {
		CHECK_EQ(stats_of(vm).index_builds, 0);
		go_until(&reader, POINT_READER_INDEX_MADE);
	}
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	finish(&reader);
	check_answers(&first, 5, gone);
	CHECK_EQ(stats_of(vm).index_builds, times > 0);
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	check_now(5, gone);
	end();
}

/* H15: as before, with a change of one swap, which makes the other set active. */
static void overtaken_by_one_swap(void)
{
	begin("H15: one swap overtakes a batch", MANY, LONG);
	ms_set_index_policy(vm, MS_INDEX_OFF);
	stop_batch(POINT_READER_PIECE_OVER);
	CHECK_EQ(set(vm, 0, MANY + 1, MANY * STEP, 1, 0), 0);
	go_until(&reader, POINT_READER_PIECE_OVER); /* it has noticed the change */
	act(&writer, delete_5, NO_STOP);
	await_end(&writer);
	finish(&reader);
	check_answers(&first, 5, 6); /* in one section: the policy allows no index */
	CHECK_EQ(stats_of(vm).index_builds, 0);
	end();
}

/* The end of a grace period does not make a new state. */
static void settled_between_pieces(void)
{
	begin("H12: a grace period ends between two pieces", MANY, LONG);
	ms_set_index_policy(vm, MS_INDEX_OFF);
	act_until(&second, look_up, POINT_READER_VIEW_LOADED);
	act_until_waits(&writer, create_one, vm);
	stop_batch(POINT_READER_PIECE_OVER);
	finish(&second);
	await_end(&writer);
	go_until(&reader, POINT_READER_PIECE_OVER);
	go_until(&reader, POINT_READER_PIECE_OVER); /* two pieces of three: it has not restarted */
	finish_batch();
	end();
}

/* ---- the policy ---- */

static void policy_between(uint32_t stop, bool indexed)
{
	uint64_t before;

	begin_either("the policy changes during a batch", indexed, NR);
	stop_batch(stop);
	ms_set_index_policy(vm, MS_INDEX_OFF);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 53), hva_for(0, 5) + 3 * PAGE);
	finish_batch();
	before = stats_of(vm).indexed;
	run_batch(&first); /* there may be an index, but it is not used */
	check_answers(&first, 0, 0);
	for (uint32_t id = 0; id < NR; id++) {
		CHECK_EQ(ms_gfn_to_hva(vm, 0, id * STEP), hva_for(0, id));
		CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, id * STEP), hva_for(0, id));
	}
	CHECK_EQ(stats_of(vm).indexed, before);
	CHECK_EQ(delete(5), 0);
	check_now(5, 6);
	end();
}

/* ---- hooks ---- */

static int refuse;

/* Between the swaps: batches make an index of this state, use it and offer it; after the next swap one is derived from
 * it. */
static void batch_in_hook(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)active;
	(void)old;
	for (int i = 0; i < 2; i++) {
		run_batch(&other);
		check_answers(&other, 5, 6);
	}
	CHECK(set_index(vm_active_set(vm, 0)));
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 53), MS_HVA_ERR_BAD);
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, 53), MS_HVA_ERR_BAD);
}

/* The roll-back needs no memory: its notes may get lost. */
static int refuse_or_not(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	memory_fail(&vm->memory, refuse != 0, true);
	return refuse;
}

/* H10, H27, H28: a batch from a hook while another batch holds the index of the old state. */
static void batch_from_hook(int refused, bool indexed)
{
	struct ms_listener listener = { .flush = batch_in_hook, .prepare = refuse_or_not };

	begin_either("H10 H27 H28: a batch from a hook", indexed, LONG);
	refuse = refused;
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	stop_batch(indexed ? POINT_READER_INDEX_HELD : POINT_READER_INDEX_MADE);
	CHECK_EQ(delete(5), refused);
	memory_fail(&vm->memory, 0, false);
	check_sound(vm);
	finish_batch();
	CHECK_EQ(ms_remove_listener(vm, &listener, NULL), 0);
	check_now(5, refused ? 5 : 6);
	end();
}

static int leave_open(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	CHECK_EQ(ms_read_lock(vm), 0);
	return 0;
}

/* H1, H27: a section that a hook left open goes on in the new state, and the next writer waits for it. */
static void section_from_a_hook(uint32_t id)
{
	struct ms_listener listener = { .prepare = leave_open };

	begin_indexed("H1 H27: a section that a hook left open", NR);
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	CHECK_EQ(id < NR ? delete(id) : set(vm, 0, id, 5000, 1, 0), 0);
	run_batch(&first);
	check_answers(&first, id, id + 1);
	vm->nr_listeners = 0; /* a thread inside a section may not lock the VM to remove the listener */
	act_until_waits(&writer, delete_5, vm);
	run_batch(&first);
	check_answers(&first, id, id + 1);
	ms_read_unlock(vm);
	await_end(&writer);
	vm->nr_listeners = 1;
	CHECK_EQ(ms_remove_listener(vm, &listener, NULL), 0);
	check_sound(vm);
	end();
}

/* ---- no memory; child processes ---- */

static _Atomic uint64_t looked_up; /* relaxed, like `enough`: they must not order the threads */
static _Atomic bool enough;

static void look_up_until_enough(struct actor *me)
{
	for (uint64_t i = 0; !atomic_load_explicit(&enough, memory_order_relaxed); i++) {
		uint64_t id = i / 3 % NR;

		CHECK_EQ(ms_gfn_to_hva(vm, 0, id * STEP + 3), hva_for(0, (uint32_t)id) + 3 * PAGE);
		atomic_store_explicit(&looked_up, i, memory_order_relaxed);
	}
	me->r = 0;
}

static void await_lookups(uint64_t nr)
{
	uint64_t end = atomic_load_explicit(&looked_up, memory_order_relaxed) + nr;

	while (atomic_load_explicit(&looked_up, memory_order_relaxed) < end)
		sched_yield();
}

/* H13 of records: readers without a record share one, with its hint of the last lookup.  One of them stops at the end
 * of its section; the other one goes on meanwhile. */
static void readers_without_records(void)
{
	begin_indexed("H13: readers share a record", NR);
	memory_fail(&vm->memory, 1, true);
	atomic_store(&looked_up, 0);
	atomic_store(&enough, false);
	act(&second, look_up_until_enough, NO_STOP);
	act_until(&reader, look_up, POINT_READER_LEAVES);
	await_lookups(2000);
	atomic_store_explicit(&enough, true, memory_order_relaxed);
	await_end(&second);
	finish(&reader);
	CHECK_EQ(reader.hva, hva_for(0, 5) + 3 * PAGE);
	memory_fail(&vm->memory, 0, false);
	check_now(0, 0);
	end();
}

/* The child runs batches and destroys its copy of the VM.  It leaks the memory of a change that was in progress. */
static int in_child(uint32_t from, uint32_t end_id)
{
	bool half_a_change = from != end_id;
	uint64_t before;

	alarm(SCRIPT_SECONDS / 2); /* before the script's own watchdog, which waits for the child */
	this_actor = NULL;
	for (int i = 0; i < 2; i++) {
		run_batch(&other);
		check_answers(&other, from, end_id);
	}
	ms_vcpu_destroy(vcpu);
	before = blocks();
	ms_vm_destroy(vm);
	if (half_a_change)
		CHECK_EQ(blocks(), before);
	return 0;
}

static void fork_now(uint32_t from, uint32_t end_id)
{
	pid_t child = fork();
	int status;

	if (!child)
		_exit(in_child(from, end_id));
	CHECK(child > 0);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
}

/* H24: a fork during a batch that holds an index or makes one, and during a change. */
static void fork_during_batch(bool indexed, uint32_t writer_stop)
{
	if (TEST_SANITIZED) /* a sanitizer's own threads and locks do not survive a fork */
		return;
	begin_either("H24: a fork during a batch", indexed, LONG);
	stop_batch(indexed ? POINT_READER_INDEX_HELD : POINT_READER_INDEX_MADE);
	if (writer_stop != NO_STOP) {
		act_until(&writer, delete_5, writer_stop);
		fork_now(5, 6);
		finish(&writer);
	} else {
		fork_now(0, 0);
	}
	finish_batch();
	end();
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 6 * SCRIPT_SECONDS);
	found_inside(run_first, delete_5);
	found_inside(run_first, create_one);
	found_inside(run_first, close_vm);
	found_inside(look_up, delete_5);
	found_inside(look_up_by_vcpu, delete_5);
	held_across_changes();
	held_by_the_batch_alone();
	held_across_close();
	ended_by_poll(false);
	ended_by_poll(true);
	offered_to_another_state(false);
	offered_to_another_state(true);
	offered_after_changing_back();
	offered_to_an_old_set(delete_5);
	offered_to_an_old_set(create_one);
	offered_to_an_old_set(close_vm);
	detached_during_a_batch();
	made_twice(false);
	made_twice(true);
	derived_during_changes(false);
	derived_during_changes(true);
	for (int times = 0; times <= 3; times++)
		overtaken(times);
	overtaken_by_one_swap();
	settled_between_pieces();
	policy_between(POINT_READER_VIEW_LOADED, true);
	policy_between(POINT_READER_INDEX_FOUND, true);
	policy_between(POINT_READER_LEFT, false); /* an index pays, but does not exist yet */
	policy_between(POINT_READER_INDEX_PLANNED, false);
	policy_between(POINT_READER_INDEX_MADE, false);
	batch_from_hook(0, false);
	batch_from_hook(0, true);
	batch_from_hook(-EPERM, false);
	batch_from_hook(-EPERM, true);
	section_from_a_hook(7);
	section_from_a_hook(200);
	readers_without_records();
	fork_during_batch(true, NO_STOP);
	fork_during_batch(false, NO_STOP);
	fork_during_batch(true, POINT_WRITER_APPLIED);
	fork_during_batch(false, POINT_WRITER_INVALIDATED);
	return test_done("index schedules", scripts, "scripts");
}
