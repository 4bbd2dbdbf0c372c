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
#define MANY 9000u /* too many slots for an index to pay in a batch of LONG */
#define STEP 10u
#define NPAGES 8u
#define LONG (4 * MS_BATCH_PIECE + 100) /* too long for one section; five pieces */
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
	me->r = set(vm, 0, 9500, 100000, 1, 0);
}

static int create(uint32_t id)
{
	return set(vm, 0, id, id * STEP, NPAGES, 0);
}

static void create_5(struct actor *me)
{
	me->r = create(5);
}

static void close_vm(struct actor *me)
{
	me->r = ms_vm_close(vm, NULL);
}

/* More slots come than the lists of differences have room for.  Then slot 200 comes and goes until the list of edited
 * ranges has overflowed; in turn at different places. */
static void change_often(void)
{
	uint32_t room = set_index(vm_active_set(vm, 0))->room;

	for (uint32_t i = 0; i <= OVERLAY_EDITS_MAX; i++)
		CHECK_EQ(set(vm, 0, 201 + i, 6000 + i, 1, 0), 0);
	for (uint32_t i = 0; i <= room; i++) {
		CHECK_EQ(set(vm, 0, 200, 5000 + i % 64, 1, 0), 0);
		CHECK_EQ(delete(200), 0);
	}
	CHECK(overlay_has_overflowed(set_index(vm_active_set(vm, 0))));
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

/* The batch has the answers of the state in which the slots [from, end_id) are deleted. */
static void finish_batch(uint32_t from, uint32_t end_id)
{
	finish(&reader);
	check_answers(&first, from, end_id);
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

static uint64_t refs(const struct overlay *index)
{
	return atomic_load(&index->refs);
}

static uint64_t made(void)
{
	return stats_of(vm).index_builds + stats_of(vm).index_patches;
}

/* ---- an index that a batch has found or holds ---- */

/* H1, H31: the writer waits for a reader that uses the index inside its section before it edits the set or frees the
 * index. */
static void found_inside(void (*run)(struct actor *me), void (*change)(struct actor *me))
{
	struct overlay *index;

	begin_indexed("H1 H31: an index in use inside a section", NR);
	index = set_index(vm_active_set(vm, 0));
	act_until(&reader, run, POINT_READER_INDEX_FOUND);
	act_until_waits(&writer, change, vm);
	CHECK_EQ(refs(index), 1);
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

/* H1: a reader uses an index that another reader replaces.  The writer frees it after its grace period. */
static void replaced_while_in_use(void (*run)(struct actor *me))
{
	struct overlay *index;

	begin_indexed("H1: an index is replaced while a reader uses it", NR);
	CHECK_EQ(delete(6), 0);
	index = set_index(vm_active_set(vm, 0));
	act_until(&reader, run, POINT_READER_INDEX_FOUND);
	run_batch(&other);
	check_answers(&other, 6, 7);
	CHECK(set_index(vm_active_set(vm, 0)) != index);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	act_until_waits(&writer, delete_5, vm);
	CHECK_EQ(refs(index), 1);
	finish(&reader);
	if (run == run_first)
		check_answers(&first, 6, 7);
	else
		CHECK_EQ(reader.hva, hva_for(0, 5) + 3 * PAGE);
	await_end(&writer);
	CHECK(!atomic_load(&vm->as[0].overlays.retired) && !vm->as[0].overlays.expiring);
	check_now(5, 7);
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
	finish_batch(0, 0);
	check_now(5, 7);
	end();
}

/* H1, H15: a batch holds an index and a copy of the slots that have changed since.  Later changes, also of these slots,
 * are not in its answers. */
static void held_with_changes(void)
{
	begin_indexed("H1 H15: a batch holds an index with changes", LONG);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	CHECK_EQ(delete(5), 0);
	CHECK_EQ(delete(6), 0);
	CHECK_EQ(set(vm, 0, 7, 70, NPAGES, MS_MEM_LOG_DIRTY_PAGES), 0);
	stop_batch(POINT_READER_INDEX_HELD);
	CHECK_EQ(set(vm, 0, 5, 50, NPAGES, 0), 0);
	CHECK_EQ(delete(7), 0);
	CHECK_EQ(delete(8), 0);
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	finish_batch(5, 7);
	CHECK_EQ(made(), 1);
	check_sound(vm);
	CHECK_EQ(set(vm, 0, 5, 0, 0, 0), 0);
	check_now(5, 9);
	end();
}

/* H1: so many changes that a batch cannot copy the slots: it makes a new index. */
static void held_after_many_changes(void)
{
	begin_indexed("H1: too many changes for a batch to copy", LONG);
	change_often();
	CHECK_EQ(delete(5), 0);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	run_batch(&first);
	check_answers(&first, 5, 6);
	CHECK_EQ(made(), 2);
	check_now(5, 6);
	end();
}

/* H1: a batch has the last reference and frees the index, once. */
static void held_by_the_batch_alone(void)
{
	struct overlay *index;
	uint64_t before, size;

	begin_indexed("H1: a batch has the last reference to an index", LONG);
	index = set_index(vm_active_set(vm, 0));
	stop_batch(POINT_READER_INDEX_HELD);
	CHECK_EQ(delete(5), 0);
	run_batch(&other);
	CHECK(set_index(vm_active_set(vm, 0)) != index);
	CHECK_EQ(refs(index), 2);
	CHECK_EQ(delete(6), 0); /* its grace period is the first one since the index was replaced */
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	CHECK_EQ(refs(index), 1);
	before = blocks();
	size = stats_of(vm).bytes;
	finish_batch(0, 0);
	CHECK_EQ(blocks(), before - 2);
	CHECK(stats_of(vm).bytes < size);
	check_now(5, 7);
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
	finish_batch(0, 0);
	CHECK_EQ(blocks(), before - 2);
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
	struct overlay *index;
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

static void change_of_two_swaps(void)
{
	CHECK_EQ(delete(5), 0);
}

static void change_of_one_swap(void)
{
	CHECK_EQ(set(vm, 0, 200, 5000, 1, 0), 0);
}

static void change_and_change_back(void)
{
	CHECK_EQ(delete(5), 0);
	CHECK_EQ(set(vm, 0, 5, 50, NPAGES, 0), 0);
}

/* H12, H15: slots change while the index is made, before or after it has gathered them.  The index serves all later
 * states, because the changes are marked. */
static void changed_while_made(uint32_t stop, void (*change)(void))
{
	bool deletes = change == change_of_two_swaps;

	begin("H12 H15: changes while an index is made", NR, LONG);
	stop_batch(stop);
	change();
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	finish_batch(5, deletes ? 6 : 5);
	CHECK_EQ(made(), 1);
	CHECK(set_index(vm_active_set(vm, 0)) && set_index(vm_active_set(vm, 0)) == set_index(vm_inactive_set(vm, 0)));
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	run_batch(&other);
	check_answers(&other, 5, deletes ? 6 : 5);
	check_now(5, deletes ? 6 : 5);
	end();
}

static void delete_6(struct actor *me)
{
	me->r = delete(6);
}

/* H15: while a new index replaces the current one, a change marks each overlay that lookups may use. */
static void changed_while_published(uint32_t stop, bool derived)
{
	begin_either("H15: a change while an index is published", derived, LONG);
	if (derived)
		CHECK_EQ(delete(6), 0);
	stop_batch(stop);
	CHECK_EQ(delete(5), 0);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	run_batch(&other);
	check_answers(&other, 5, derived ? 7 : 6);
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	ms_set_index_policy(vm, MS_INDEX_EAGER);
	finish_batch(5, derived ? 7 : 6);
	check_now(5, derived ? 7 : 6);
	end();
}

/* H15: the index becomes the current one between the two looks of a writer that marks its edit. */
static void published_while_marked(bool derived)
{
	begin_either("H15: an index is published while the writer marks", derived, LONG);
	if (derived)
		CHECK_EQ(delete(6), 0);
	stop_batch(POINT_READER_INDEX_MADE);
	act_until(&writer, delete_5, POINT_WRITER_MARKS);
	finish_batch(6, derived ? 7 : 6);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	go_until(&writer, POINT_WRITER_INVALIDATED); /* only one of its edits is made */
	run_batch(&other);
	check_answers(&other, 5, 6 + derived);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	run_batch(&other);
	check_answers(&other, 5, 6 + derived);
	check_now(5, 6 + derived);
	end();
}

/* H15: as before, with a new slot, which each edit marks only once. */
static void published_while_a_new_slot_is_marked(void)
{
	begin("H15: an index is published while the writer marks a new slot", NR, NR);
	stop_batch(POINT_READER_INDEX_MADE);
	act_until(&writer, create_one, POINT_WRITER_MARKS);
	finish_batch(0, 0);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	go_until(&writer, POINT_WRITER_APPLIED);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 100000), hva_for(0, 9500));
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 100000), hva_for(0, 9500));
	check_now(0, 0);
	end();
}

/* H15: a change has made an edit, which is not marked, before an index was begun.  The index is not made before the
 * change is over. */
static void begun_during_a_change(uint32_t stop)
{
	bool published = stop != POINT_WRITER_PUBLISHES && stop != POINT_WRITER_MARKS;

	begin("H15: an index is begun during a change", NR, LONG);
	act_until(&writer, delete_5, stop);
	for (int i = 0; i < 2; i++) {
		run_batch(&other);
		check_answers(&other, 5, published ? 6 : 5);
		CHECK_EQ(made(), 0);
	}
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	run_batch(&other);
	check_answers(&other, 5, 6);
	CHECK(made() > 0);
	check_now(5, 6);
	end();
}

/* H15, H31: an index is begun while the VM is being closed.  It is never made. */
static void begun_during_close(void)
{
	begin("H15 H31: an index is begun during a close", NR, LONG);
	act_until(&writer, close_vm, POINT_WRITER_PUBLISHES);
	run_batch(&other);
	check_answers(&other, 0, 0);
	finish(&writer);
	CHECK_EQ(writer.r, 0);
	for (int i = 0; i < 2; i++) {
		run_batch(&other);
		check_answers(&other, 0, NR);
	}
	CHECK_EQ(made(), 0);
	ms_vcpu_destroy(vcpu);
	ms_vm_destroy(vm);
	script_end();
}

/* H15: a change begins just when an index is begun.  Either the writer sees the coming overlay, or the reader sees the
 * change. */
static void begun_together(uint32_t stop)
{
	begin("H15: an index and a change begin together", NR, NR);
	stop_batch(POINT_READER_INDEX_BEGUN);
	act_until(&writer, delete_5, stop);
	finish(&reader);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	if (stop == POINT_WRITER_PUBLISHES) {
		go_until(&writer, POINT_WRITER_INVALIDATED); /* only one of its edits is made */
		run_batch(&other);
		check_answers(&other, 5, 6);
	}
	finish(&writer);
	run_batch(&other);
	check_answers(&other, 5, 6);
	check_now(5, 6);
	end();
}

/* The next change is under way when the index that waited for the one before is made.  It is not disturbed. */
static void made_during_the_next_change(void)
{
	begin("H15: an index is made during the next change", NR, NR);
	act_until(&writer, delete_5, POINT_WRITER_PUBLISHES);
	run_batch(&other);
	finish(&writer);
	act_until(&writer, delete_6, POINT_WRITER_INVALIDATED);
	run_batch(&other);
	check_answers(&other, 5, 7);
	CHECK_EQ(made(), 1);
	finish(&writer);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	run_batch(&other);
	check_answers(&other, 5, 7);
	check_now(5, 7);
	end();
}

/* One reader makes an index; another one, for which it would pay too, does not wait and walks. */
static void made_by_one(bool derived)
{
	uint64_t before;

	begin_either("H26: two readers need an index", derived, LONG);
	if (derived)
		CHECK_EQ(delete(99), 0);
	before = made();
	stop_batch(POINT_READER_INDEX_MADE);
	act(&second, run_other, NO_STOP);
	await_end(&second);
	check_answers(&other, 99, derived ? 100 : 99);
	CHECK_EQ(made(), before);
	finish_batch(99, derived ? 100 : 99);
	CHECK_EQ(made(), before + 1);
	end();
}

/* H1, H15: a reader copies slots from the current index while changes mark it. */
static void derived_during_changes(bool many)
{
	begin_indexed("H1 H15: an index derived during changes", NR);
	CHECK_EQ(delete(5), 0);
	stop_batch(POINT_READER_INDEX_GATHERED);
	CHECK_EQ(delete(6), 0);
	if (many)
		change_often();
	check_sound(vm);
	finish(&reader);
	check_answers(&first, 5, 6);
	CHECK_EQ(stats_of(vm).index_patches, 1);
	check_now(5, 7);
	end();
}

/* ---- slots that are again as the index has them ---- */

/* Every frame has the answer of the index, and none of these is marked. */
static void check_restored(uint64_t begin_gfn, uint64_t end_gfn)
{
	const struct memslot_set *active = vm_active_set(vm, 0);
	const struct overlay *o = set_index(active);

	CHECK(overlay_answers_all(o, active->node_idx) && !overlay_any_marked(o, begin_gfn, end_gfn));
	CHECK_EQ(atomic_load(&o->nr_marked), 0);
}

/* H15: a slot comes back.  Its marks go when both sets have it again, and not while readers use the set without it. */
static void comes_back(void)
{
	begin_indexed("H15: a deleted slot comes back", NR);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	CHECK_EQ(delete(5), 0);
	act_until(&writer, create_5, POINT_WRITER_PUBLISHES);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 53), MS_HVA_ERR_BAD);
	run_batch(&other);
	check_answers(&other, 5, 6);
	go_until(&writer, POINT_WRITER_APPLIED);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 53), hva_for(0, 5) + 3 * PAGE);
	run_batch(&other);
	check_answers(&other, 0, 0);
	finish(&writer);
	check_restored(50, 60);
	CHECK_EQ(made(), 1);
	check_now(0, 0);
	end();
}

/* H15: a batch holds an index and the copy of a deleted slot.  The slot comes back, and its marks go. */
static void held_while_a_slot_comes_back(void)
{
	begin_indexed("H15: a slot comes back during a batch that holds an index", LONG);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	CHECK_EQ(delete(5), 0);
	stop_batch(POINT_READER_INDEX_HELD);
	CHECK_EQ(create(5), 0);
	check_restored(50, 60);
	finish_batch(5, 6);
	CHECK_EQ(made(), 1);
	check_now(0, 0);
	end();
}

/* H15: a slot is gone when an index is made, and comes back afterwards.  The index has the state in which it was
 * begun. */
static void gathered_while_gone(uint32_t id, bool derived)
{
	begin_either("H15: a slot is gone while an index is made", derived, LONG);
	CHECK_EQ(set(vm, 0, 200, 5000, 1, 0), 0);
	stop_batch(POINT_READER_INDEX_BEGUN);
	CHECK_EQ(delete(id), 0);
	go_until(&reader, POINT_READER_INDEX_GATHERED);
	CHECK_EQ(id == 200 ? set(vm, 0, 200, 5000, 1, 0) : create(id), 0);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	finish_batch(0, 0);
	check_restored(id * STEP, (id + 1) * STEP);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 5000), hva_for(0, 200));
	check_now(0, 0);
	end();
}

/* H15: as before, with a slot that is not in the state in which the index was begun. */
static void gathered_while_there(uint32_t id, bool derived)
{
	begin_either("H15: a slot is there while an index is made", derived, LONG);
	CHECK_EQ(delete(5), 0);
	stop_batch(POINT_READER_INDEX_BEGUN);
	CHECK_EQ(id == 200 ? set(vm, 0, 200, 5000, 1, 0) : create(id), 0);
	go_until(&reader, POINT_READER_INDEX_GATHERED);
	CHECK_EQ(delete(id), 0);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	finish_batch(5, 6);
	check_restored(id * STEP, (id + 1) * STEP);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 5000), MS_HVA_ERR_BAD);
	check_now(5, 6);
	end();
}

/* H15: the lists of differences are full when the slots of an index are gathered.  Between two pieces a slot changes,
 * the new one begins in the first piece and ends in the second.  The index leaves it out. */
static void edited_between_pieces(void)
{
	const uint32_t last = VM_INDEX_PIECE - 1; /* of the first piece */

	begin("H15: a slot is edited between two pieces of the walk for an index", MANY, LONG);
	stop_batch(POINT_READER_INDEX_BEGUN);
	for (uint32_t i = 0; i <= OVERLAY_EDITS_MAX; i++)
		CHECK_EQ(set(vm, 0, MANY + i, 200000 + i, 1, 0), 0);
	go_until(&reader, POINT_READER_INDEX_GATHERED);
	CHECK_EQ(delete(last), 0);
	CHECK_EQ(delete(last + 1), 0);
	CHECK_EQ(set(vm, 0, last, (uint64_t)last * STEP, STEP + NPAGES, 0), 0);
	finish(&reader);
	CHECK_EQ(first.r, 0);
	CHECK_EQ(made(), 1);
	check_sound(vm);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	for (uint64_t gfn = (last - 1) * STEP; gfn < (uint64_t)(last + 3) * STEP; gfn++) {
		bool is_new = gfn >= last * STEP && gfn < last * STEP + STEP + NPAGES;
		uint64_t id = is_new ? last : gfn / STEP, page = is_new ? gfn - last * STEP : gfn % STEP;
		uint64_t want = is_new || page < NPAGES ? hva_for(0, (uint32_t)id) + page * PAGE : MS_HVA_ERR_BAD;

		CHECK_EQ(ms_gfn_to_hva(vm, 0, gfn), want);
	}
	end();
}

/* Every answer of a batch of n equal frames.  A long one holds the index and copies the slots that it does not know. */
static void check_every_frame(uint64_t gfn, size_t n, uint64_t hva)
{
	static uint64_t in[LONG], out[LONG];
	struct ms_batch batch = { in, 8, out, 8, n, NULL, NULL };

	for (size_t i = 0; i < n; i++)
		in[i] = gfn;
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(out[i], hva);
}

/* H15: while an index is made, a transaction moves slot 7 over a part of slot 5, which stays, and is refused.  The
 * lists of differences are full, so edited ranges are listed.  The refused place of slot 7 is none of them: slot 5 was
 * not edited, and must be in the index. */
static void refused_over_a_slot_that_stays(uint64_t gfn)
{
	struct ms_step step = { .kind = MS_STEP_MOVE, .slot = 7, .guest_phys_addr = gfn * PAGE };
	const struct overlay *o;

	begin("H15: a refused move over a slot while an index is made", 4 * NR, LONG);
	stop_batch(POINT_READER_INDEX_BEGUN);
	for (uint32_t i = 0; i <= OVERLAY_EDITS_MAX; i++)
		CHECK_EQ(set(vm, 0, 4 * NR + i, 6000 + i, 1, 0), 0);
	CHECK_EQ(ms_change_memslots(vm, 0, &step, 1, NULL), -EEXIST);
	finish_batch(0, 0);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	o = set_index(vm_active_set(vm, 0));
	CHECK(o && overlay_nr_ranges(o) && overlay_has_all_ranges(o));
	check_sound(vm);
	for (uint32_t page = 0; page < NPAGES; page++)
		check_every_frame(5 * STEP + page, LONG, hva_for(0, 5) + page * PAGE);
	check_now(0, 0);
	end();
}

/* H15: as before, with a slot that grows over slot 5 where it is.  Few ranges are listed, which are near to each other,
 * so that a short batch uses the index for all frames around them. */
static void refused_growth_over_a_slot_that_stays(void)
{
	struct ms_step step = { .kind = MS_STEP_RESIZE, .slot = 4, .memory_size = 17 * PAGE };
	struct gfn_range hull;
	const struct overlay *o;

	begin("H15: a refused growth over a slot while an index is made", 4 * NR, LONG);
	stop_batch(POINT_READER_INDEX_BEGUN);
	CHECK_EQ(delete(3), 0);
	for (uint32_t i = 0; i < OVERLAY_EDITS_MAX; i++)
		CHECK_EQ(set(vm, 0, 4 * NR + i, 3 * STEP + i, 1, 0), 0);
	CHECK_EQ(ms_change_memslots(vm, 0, &step, 1, NULL), -EEXIST);
	finish(&reader);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	o = set_index(vm_active_set(vm, 0));
	CHECK(o && overlay_nr_ranges(o) && overlay_hull(o, 0, &hull) && hull.end <= 5 * STEP);
	check_sound(vm);
	for (uint32_t page = 0; page < NPAGES; page++) {
		check_every_frame(5 * STEP + page, 64, hva_for(0, 5) + page * PAGE);
		check_every_frame(5 * STEP + page, LONG, hva_for(0, 5) + page * PAGE);
	}
	end();
}

/* H15: a slot is gone when a piece of a build passes it in the former index; it is the last one of the piece.  It comes
 * back, and loses its marks, before the next piece begins. */
static void comes_back_between_pieces(void)
{
	const uint32_t last = VM_INDEX_PIECE - 1, other_gone = MANY - 10;

	begin("H15: a slot comes back between two pieces of a derived index", MANY, LONG);
	run_batch(&other);
	CHECK_EQ(delete(other_gone), 0);
	stop_batch(POINT_READER_INDEX_BEGUN);
	CHECK_EQ(delete(last), 0);
	go_until(&reader, POINT_READER_INDEX_GATHERED);
	CHECK(!vm->as[0].build.gathered && vm->as[0].build.next.id == last + 1);
	CHECK_EQ(create(last), 0);
	finish_batch(other_gone, other_gone + 1);
	CHECK_EQ(stats_of(vm).index_patches, 1);
	check_restored(last * STEP, last * STEP + NPAGES);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, last * STEP), hva_for(0, last));
	check_sound(vm);
	end();
}

/* H15: an index is begun during a change, so the overlay has missed one of its edits.  The lists of differences and the
 * marks begin after the change. */
static void differences_after_a_missed_edit(uint32_t stop)
{
	begin("H15: differences of an index that is begun during a change", NR, NR);
	act_until(&writer, delete_5, stop);
	run_batch(&other);
	finish(&writer);
	run_batch(&other);
	check_answers(&other, 5, 6);
	CHECK_EQ(made(), 1);
	check_restored(50, 60);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	check_sound(vm);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(create(5), 0);
		run_batch(&other);
		check_answers(&other, 0, 0);
		CHECK_EQ(delete(5), 0);
		run_batch(&other);
		check_answers(&other, 5, 6);
		CHECK(overlay_answers_all(set_index(vm_active_set(vm, 0)), vm_active_set(vm, 0)->node_idx));
		check_sound(vm);
	}
	CHECK_EQ(made(), 1);
	check_now(5, 6);
	end();
}

/* ---- pieces ---- */

/* H15, H26: changes overtake a batch.  It starts again with an index, which further changes do not disturb. */
static void overtaken(int times)
{
	uint32_t gone = 5;

	begin("H15 H26: changes overtake a batch", MANY, LONG);
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	stop_batch(POINT_READER_PIECE_OVER);
	for (int i = 0; i < times; i++) {
		CHECK_EQ(delete(gone++), 0);
		CHECK_EQ(set(vm, 0, MANY + (uint32_t)i, 200000 + (uint64_t)i, 1, 0), 0);
		go_until(&reader, POINT_READER_INDEX_GATHERED);
	}
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	finish_batch(5, gone);
	CHECK_EQ(made(), times > 0);
	CHECK_EQ(stats_of(vm).grace_waits, 0);
	check_now(5, gone);
	end();
}

static uint64_t walked(void)
{
	struct ms_stats s = stats_of(vm);

	return s.hits_last_used + s.hits_search + s.misses;
}

/* H15: as before, with a change of one swap, which makes the other set active.  H26: the lookups before it, which are
 * made again, are few. */
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
	CHECK(walked() > LONG && walked() < LONG + MS_BATCH_PIECE / 4);
	CHECK_EQ(made(), 0);
	end();
}

/* H15: changes overtake a batch while another reader makes the index: the batch makes one for itself. */
static void overtaken_without_the_shared_index(void)
{
	begin("H15: the index of an overtaken batch", MANY, LONG);
	other.n = LONG;
	ms_set_index_policy(vm, MS_INDEX_AUTO);
	stop_batch(POINT_READER_PIECE_OVER);
	ms_set_index_policy(vm, MS_INDEX_EAGER);
	act_until(&second, run_other, POINT_READER_INDEX_GATHERED);
	CHECK_EQ(delete(5), 0);
	finish_batch(5, 6);
	CHECK_EQ(made(), 1);
	CHECK(!set_index(vm_active_set(vm, 0)));
	finish(&second);
	check_answers(&other, 5, 6);
	CHECK_EQ(made(), 2);
	check_now(5, 6);
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
	go_until(&reader, POINT_READER_PIECE_OVER); /* it has not restarted */
	finish_batch(0, 0);
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
	finish_batch(0, 0);
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
static uint64_t made_before_hook;

/* Between the swaps: batches use the index that there is; a new one must wait until this change is over. */
static void batch_in_hook(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)active;
	(void)old;
	for (int i = 0; i < 2; i++) {
		run_batch(&other);
		check_answers(&other, 5, 6);
	}
	CHECK_EQ(made(), made_before_hook);
	CHECK_EQ(ms_gfn_to_hva(vm, 0, 53), MS_HVA_ERR_BAD);
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, 53), MS_HVA_ERR_BAD);
}

/* The roll-back needs no memory. */
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
	struct ms_listener listener = { LISTENER_SIZE, .flush = batch_in_hook, .prepare = refuse_or_not };

	begin_either("H10 H27 H28: a batch from a hook", indexed, LONG);
	refuse = refused;
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	stop_batch(indexed ? POINT_READER_INDEX_HELD : POINT_READER_INDEX_MADE);
	made_before_hook = made();
	CHECK_EQ(delete(5), refused);
	memory_fail(&vm->memory, 0, false);
	check_sound(vm);
	finish_batch(5, indexed || refused ? 5 : 6);
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
	struct ms_listener listener = { LISTENER_SIZE, .prepare = leave_open };

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

/* ---- random changes between the pieces of builds ---- */

#define LARGE 5000u /* too many slots for a lookup to make an index in more than one piece */
#define HOT 3u
#define GONE (~(uint64_t)0)

static struct rng rng;
static uint32_t hot[HOT];   /* the slots that change */
static uint64_t place[LARGE]; /* their gfns, or GONE */

/* A short batch that walks, because a hot slot is marked, advances a build by one piece.  Few pieces in one change, so
 * that several changes may lie between two pieces. */
static void advance_builds(void)
{
	uint64_t in[HOT], out[HOT];
	struct ms_batch batch = { in, 8, out, 8, HOT, NULL, NULL };

	for (uint32_t i = 0; i < HOT; i++)
		in[i] = hot[i] * STEP + 3;
	if (!rng_below(&rng, 4))
		CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
}

static int advance_and_refuse(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	advance_builds();
	return refuse;
}

static void advance_in_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)active;
	(void)old;
	advance_builds();
}

static void advance_after(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	advance_builds();
}

/* Most slots that come back are as before. */
static uint64_t place_after(uint32_t id)
{
	if (place[id] != GONE && rng_below(&rng, 3))
		return GONE;
	return id * STEP + (rng_below(&rng, 6) ? 0 : rng_below(&rng, 3));
}

static void change_a_hot_slot(void)
{
	uint32_t id = hot[rng_below(&rng, HOT)];
	uint64_t gfn = place_after(id);
	int r;

	refuse = rng_below(&rng, 4) ? 0 : -EPERM;
	r = gfn == GONE ? delete(id) : set(vm, 0, id, gfn, NPAGES, 0);
	CHECK(!r || r == refuse);
	if (!r)
		place[id] = gfn;
}

/* The slots are gone for a while, perhaps in several states, and come back. */
static void update_hot_slots(void)
{
	struct ms_update *u;

	CHECK_EQ(ms_update_begin(vm, 0, &u, NULL), 0);
	for (uint32_t i = 0; i < HOT; i++) {
		struct ms_slot *slot = ms_update_find(u, false, hot[i]);

		if (slot)
			CHECK_EQ(ms_update_replace(u, slot, NULL, NULL), 0);
		if (rng_below(&rng, 2))
			CHECK_EQ(ms_update_swap(u, NULL), 0);
		advance_builds();
	}
	CHECK_EQ(ms_update_end(u, false, NULL), 0);
}

static uint64_t hva_of_hot(uint32_t id, uint64_t gfn)
{
	return gfn - place[id] < NPAGES ? hva_for(0, id) + (gfn - place[id]) * PAGE : MS_HVA_ERR_BAD;
}

static void check_hot_slots(void)
{
	uint64_t in[HOT * STEP], out[HOT * STEP];
	struct ms_batch batch = { in, 8, out, 8, HOT * STEP, NULL, NULL };

	for (uint32_t i = 0; i < HOT * STEP; i++) {
		in[i] = hot[i / STEP] * STEP + i % STEP;
		CHECK_EQ(ms_gfn_to_hva(vm, 0, in[i]), hva_of_hot(hot[i / STEP], in[i]));
	}
	if (rng_below(&rng, 8))
		return;
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	for (uint32_t i = 0; i < HOT * STEP; i++)
		CHECK_EQ(out[i], hva_of_hot(hot[i / STEP], in[i]));
}

/* Around the end of the second piece, because a build often begins together with its first one; the last slot is
 * anywhere. */
static void draw_hot_slots(void)
{
	for (uint32_t i = 0; i < HOT - 1; i++)
		hot[i] = 2 * VM_INDEX_PIECE - 3 + (uint32_t)rng_below(&rng, 4);
	hot[HOT - 1] = 1 + (uint32_t)rng_below(&rng, LARGE - 1);
}

/* H15: slots near the ends of pieces come, go and move, also in changes that are refused, between the pieces of builds
 * and during them. */
static void random_changes_between_pieces(void)
{
	struct ms_listener listener = { LISTENER_SIZE, .prepare = advance_and_refuse, .flush = advance_in_flush,
					.commit = advance_after, .abort = advance_after };
	uint64_t rounds = test_times(10000);

	begin("H15: random changes between the pieces of builds", LARGE, LARGE);
	rng = rng_stream(1);
	for (uint32_t id = 0; id < LARGE; id++)
		place[id] = id * STEP;
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	for (uint64_t i = 0; i < rounds; i++) {
		if (i % 50 == 0)
			draw_hot_slots();
		if (rng_below(&rng, 8))
			change_a_hot_slot();
		else
			update_hot_slots();
		advance_builds();
		check_hot_slots();
		if (rng_below(&rng, 64) == 0)
			check_sound(vm);
	}
	CHECK(stats_of(vm).index_patches >= rounds / 100);
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
	finish_batch(5, writer_stop != NO_STOP && !indexed ? 6 : 5);
	end();
}

int main(int argc, char **argv)
{
	static const uint32_t making[] = { POINT_READER_INDEX_GATHERED, POINT_READER_INDEX_STEPPED,
					   POINT_READER_INDEX_MADE };

	test_init(argc, argv, 6 * SCRIPT_SECONDS);
	found_inside(run_first, delete_5);
	found_inside(run_first, create_one);
	found_inside(run_first, close_vm);
	found_inside(look_up, delete_5);
	found_inside(look_up_by_vcpu, delete_5);
	replaced_while_in_use(run_first);
	replaced_while_in_use(look_up);
	replaced_while_in_use(look_up_by_vcpu);
	held_across_changes();
	held_with_changes();
	held_after_many_changes();
	held_by_the_batch_alone();
	held_across_close();
	ended_by_poll(false);
	ended_by_poll(true);
	for (size_t i = 0; i < ARRAY_SIZE(making); i++) {
		changed_while_made(making[i], change_of_two_swaps);
		changed_while_made(making[i], change_of_one_swap);
		changed_while_made(making[i], change_and_change_back);
	}
	for (int derived = 0; derived < 2; derived++) {
		changed_while_published(POINT_READER_INDEX_OFFERED, derived);
		changed_while_published(POINT_READER_INDEX_MOVED, derived);
		published_while_marked(derived);
		made_by_one(derived);
		derived_during_changes(derived);
	}
	published_while_a_new_slot_is_marked();
	begun_during_a_change(POINT_WRITER_PUBLISHES);
	begun_during_a_change(POINT_WRITER_INVALIDATED);
	begun_during_a_change(POINT_WRITER_APPLIED);
	begun_during_a_change(POINT_WRITER_PROPAGATED);
	begun_during_close();
	begun_together(POINT_WRITER_PUBLISHES);
	begun_together(POINT_WRITER_INVALIDATED);
	begun_together(POINT_WRITER_PROPAGATED);
	made_during_the_next_change();
	comes_back();
	held_while_a_slot_comes_back();
	for (int derived = 0; derived < 2; derived++) {
		gathered_while_gone(5, derived);
		gathered_while_gone(99, derived);
		gathered_while_gone(200, derived);
		gathered_while_there(5, derived);
		gathered_while_there(200, derived);
	}
	edited_between_pieces();
	refused_over_a_slot_that_stays(5 * STEP - 1);
	refused_over_a_slot_that_stays(5 * STEP + 1);
	refused_growth_over_a_slot_that_stays();
	comes_back_between_pieces();
	random_changes_between_pieces();
	differences_after_a_missed_edit(POINT_WRITER_INVALIDATED);
	differences_after_a_missed_edit(POINT_WRITER_APPLIED);
	differences_after_a_missed_edit(POINT_WRITER_PROPAGATED);
	for (int times = 0; times <= 3; times++)
		overtaken(times);
	overtaken_without_the_shared_index();
	overtaken_by_one_swap();
	settled_between_pieces();
	policy_between(POINT_READER_VIEW_LOADED, true);
	policy_between(POINT_READER_INDEX_FOUND, true);
	policy_between(POINT_READER_LEFT, false); /* an index pays, but does not exist yet */
	policy_between(POINT_READER_INDEX_BEGUN, false);
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
