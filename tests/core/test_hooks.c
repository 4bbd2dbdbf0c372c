/* SPDX-License-Identifier: MIT */
/*
 * test_hooks.c - the steps of each change: its swaps and generations, and the arguments, views and rights of its hooks.
 *
 * Three listeners note each call with its arguments and with the answers of lookups at that time.  For each kind of
 * change and each way to refuse it, the notes, the swaps and the generations are compared with the tables of KVM.
 */
#include "fixture.h"

#include <pthread.h>
#include <sys/wait.h>

#define LISTENERS 3
#define LOG MS_MEM_LOG_DIRTY_PAGES
#define NPAGES 16u
#define OLD_GFN 0x100u
#define ID 7u

/* ---- notes ---- */

enum call { PREPARE, ABORT, FLUSH, COMMIT };

struct sight {
	bool found, visible, writable;
	struct ms_memslot slot;
	uint64_t hva, hva_prot;
	int32_t id;
};

struct note {
	enum call call;
	int listener;
	enum ms_change_kind kind;
	struct ms_memslot old_slot, new_slot; /* FLUSH: the old slot and the active one */
	struct sight at_old, at_new;          /* in the first page of the old place and of the new one */
	struct ms_memslot by_id;
	bool has_id;
	size_t in_range;
	uint64_t generation, nr, pages, creates, deletes, moves, flag_changes;
};

static struct ms_vm *vm;
static struct ms_vcpu *vcpu;
static uint32_t space;
static uint64_t new_gfn;
static int refuser; /* the listener that refuses, or -1 */
static struct note notes[32];
static size_t nr_notes;

static struct sight look(uint64_t gfn)
{
	struct sight s = { 0 };
	struct ms_batch batch = { &gfn, 8, &s.id, 4, 1, NULL, NULL };
	struct ms_memslot by_vcpu = { 0 };

	s.found = !ms_gfn_to_memslot(vm, space, gfn, &s.slot);
	CHECK_EQ(ms_vcpu_gfn_to_memslot(vcpu, gfn, &by_vcpu), s.found ? 0 : -ENOENT);
	CHECK(same_slot(&by_vcpu, &s.slot));
	s.visible = ms_is_visible_gfn(vm, space, gfn);
	s.hva = ms_gfn_to_hva(vm, space, gfn);
	CHECK_EQ(ms_vcpu_gfn_to_hva(vcpu, gfn), s.hva);
	s.hva_prot = ms_gfn_to_hva_prot(vm, space, gfn, &s.writable);
	ms_gfn_to_slot_id_many(vm, space, &batch);
	return s;
}

static struct note *add_note(enum call call, const void *opaque)
{
	struct note *n = &notes[nr_notes++];
	struct ms_stats stats = stats_of(vm);

	CHECK(nr_notes < ARRAY_SIZE(notes));
	*n = (struct note){ .call = call, .listener = (int)(intptr_t)opaque };
	n->at_old = look(OLD_GFN);
	n->at_new = look(new_gfn);
	n->has_id = !ms_id_to_memslot(vm, space, ID, &n->by_id);
	n->in_range = ms_memslots_in_gfn_range(vm, space, OLD_GFN, OLD_GFN + 1, NULL, 0);
	n->generation = ms_generation(vm, space);
	n->nr = ms_nr_memslots(vm);
	n->pages = ms_nr_memslot_pages(vm);
	n->creates = stats.creates;
	n->deletes = stats.deletes;
	n->moves = stats.moves;
	n->flag_changes = stats.flag_changes;
	return n;
}

static struct note *note_change(enum call call, const void *opaque, const struct ms_change *change)
{
	struct note *n = add_note(call, opaque);

	n->kind = change->kind;
	n->old_slot = change->old_slot;
	n->new_slot = change->new_slot;
	return n;
}

static int on_prepare(void *opaque, const struct ms_change *change)
{
	note_change(PREPARE, opaque, change);
	return (int)(intptr_t)opaque == refuser ? -EPERM : 0;
}

static void on_abort(void *opaque, const struct ms_change *change)
{
	note_change(ABORT, opaque, change);
}

static void on_commit(void *opaque, const struct ms_change *change)
{
	note_change(COMMIT, opaque, change);
}

static void on_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	struct note *n = add_note(FLUSH, opaque);

	n->new_slot = *active;
	n->old_slot = *old;
}

static const struct ms_listener listeners[LISTENERS] = {
	{ LISTENER_SIZE, (void *)0, on_prepare, on_abort, on_flush, on_commit },
	{ LISTENER_SIZE, (void *)1, on_prepare, on_abort, on_flush, on_commit },
	{ LISTENER_SIZE, (void *)2, on_prepare, on_abort, on_flush, on_commit },
};

/* ---- the cases ---- */

enum how { ACCEPTED, BY_RULES, BY_SLOT_MEMORY, BY_COPY_MEMORY, BY_LOG_MEMORY, BY_GPA_LIMIT, BY_LISTENER };

struct hook_case {
	const char *name;
	enum ms_change_kind kind;
	bool noop;
	uint32_t flags_before, flags_after;
	uint64_t to; /* MOVE: the new place */
	enum how how;
	int code;
};

#define FAR 0x900u
#define BEYOND ((uint64_t)1 << 24) /* above 36 bits */

static const struct hook_case cases[] = {
	{ "create", MS_CREATE, false, 0, 0, 0, ACCEPTED, 0 },
	{ "create with log", MS_CREATE, false, 0, LOG, 0, ACCEPTED, 0 },
	{ "create refused by a rule", MS_CREATE, false, 0, 8, 0, BY_RULES, -EINVAL },
	{ "create without memory", MS_CREATE, false, 0, 0, 0, BY_SLOT_MEMORY, -ENOMEM },
	{ "create without memory for the log", MS_CREATE, false, 0, LOG, 0, BY_LOG_MEMORY, -ENOMEM },
	{ "create beyond the guest's addresses", MS_CREATE, false, 0, LOG, BEYOND, BY_GPA_LIMIT, -EINVAL },
	{ "create refused", MS_CREATE, false, 0, LOG, 0, BY_LISTENER, -EPERM },
	{ "delete", MS_DELETE, false, 0, 0, 0, ACCEPTED, 0 },
	{ "delete with log", MS_DELETE, false, LOG, 0, 0, ACCEPTED, 0 },
	{ "delete refused by a rule", MS_DELETE, false, 0, 8, 0, BY_RULES, -EINVAL },
	{ "delete without memory", MS_DELETE, false, LOG, 0, 0, BY_COPY_MEMORY, -ENOMEM },
	{ "delete refused", MS_DELETE, false, LOG, 0, 0, BY_LISTENER, -EPERM },
	{ "move", MS_MOVE, false, 0, 0, FAR, ACCEPTED, 0 },
	{ "move onto itself", MS_MOVE, false, LOG, LOG, OLD_GFN + NPAGES / 2, ACCEPTED, 0 },
	{ "move, log on", MS_MOVE, false, 0, LOG, FAR, ACCEPTED, 0 },
	{ "move, log off", MS_MOVE, false, LOG, 0, FAR, ACCEPTED, 0 },
	{ "move refused by a rule", MS_MOVE, false, LOG, MS_MEM_READONLY, FAR, BY_RULES, -EINVAL },
	{ "move without memory", MS_MOVE, false, 0, 0, FAR, BY_SLOT_MEMORY, -ENOMEM },
	{ "move without memory for the copy", MS_MOVE, false, 0, 0, FAR, BY_COPY_MEMORY, -ENOMEM },
	{ "move without memory for the log", MS_MOVE, false, 0, LOG, FAR, BY_LOG_MEMORY, -ENOMEM },
	{ "move beyond the guest's addresses", MS_MOVE, false, LOG, LOG, BEYOND, BY_GPA_LIMIT, -EINVAL },
	{ "move refused", MS_MOVE, false, LOG, LOG, FAR, BY_LISTENER, -EPERM },
	{ "move, log on, refused", MS_MOVE, false, 0, LOG, FAR, BY_LISTENER, -EPERM },
	{ "log on", MS_FLAGS_ONLY, false, 0, LOG, 0, ACCEPTED, 0 },
	{ "log off", MS_FLAGS_ONLY, false, LOG, 0, 0, ACCEPTED, 0 },
	{ "flags refused by a rule", MS_FLAGS_ONLY, false, 0, MS_MEM_READONLY, 0, BY_RULES, -EINVAL },
	{ "flags without memory", MS_FLAGS_ONLY, false, 0, LOG, 0, BY_SLOT_MEMORY, -ENOMEM },
	{ "log on without memory", MS_FLAGS_ONLY, false, 0, LOG, 0, BY_LOG_MEMORY, -ENOMEM },
	{ "log on refused", MS_FLAGS_ONLY, false, 0, LOG, 0, BY_LISTENER, -EPERM },
	{ "log off refused", MS_FLAGS_ONLY, false, LOG, 0, 0, BY_LISTENER, -EPERM },
	{ "nothing", MS_FLAGS_ONLY, true, LOG, LOG, 0, ACCEPTED, 0 },
};

static bool copies(const struct hook_case *c)
{
	return c->kind == MS_DELETE || c->kind == MS_MOVE;
}

static bool in_prepare(const struct hook_case *c)
{
	return c->how >= BY_LOG_MEMORY;
}

/* Spec 3.8. */
static uint64_t swaps_of(const struct hook_case *c)
{
	if (c->noop)
		return 0;
	if (copies(c))
		return c->how == ACCEPTED || in_prepare(c) ? 2 : 0;
	return c->how == ACCEPTED;
}

static struct ms_memslot slot_at(const struct hook_case *c, bool after)
{
	uint64_t gfn = after && c->to ? c->to : OLD_GFN;

	if (after ? c->kind == MS_DELETE : c->kind == MS_CREATE)
		return (struct ms_memslot){ 0 };
	return (struct ms_memslot){ gfn, NPAGES, hva_for(space, ID),
				    ID,  space,  after ? c->flags_after : c->flags_before,
				    0 };
}

static region_t request_of(const struct hook_case *c)
{
	uint64_t npages = c->kind == MS_DELETE ? 0 : NPAGES;

	return region(space, ID, c->to ? c->to : OLD_GFN, npages, c->flags_after);
}

static void arm(const struct hook_case *c)
{
	if (c->how >= BY_SLOT_MEMORY && c->how <= BY_LOG_MEMORY)
		memory_fail(&vm->memory, allocation(c->kind, (enum purpose)(c->how - BY_SLOT_MEMORY)), false);
}

static void make_vm(const struct hook_case *c, uint32_t spaces, uint32_t as_id)
{
	struct ms_config config = default_config(spaces);

	config.gpa_bits = 36;
	vm = vm_with(&config);
	space = as_id;
	new_gfn = c->to ? c->to : OLD_GFN;
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, as_id), 0);
	for (uint32_t i = 0; i < spaces; i++) /* neighbours, and a slot in each space */
		CHECK_EQ(set(vm, i, 1, OLD_GFN - 8, 8, LOG), 0);
	if (c->kind != MS_CREATE)
		CHECK_EQ(set(vm, as_id, ID, OLD_GFN, NPAGES, c->flags_before), 0);
	ms_mark_page_dirty(vm, as_id, OLD_GFN + 3);
	look(OLD_GFN); /* stores hints, and makes the thread's record */
	nr_notes = 0;
}

/* ---- the right notes ---- */

static void check_sight(const struct sight *s, const struct ms_memslot *slot, uint64_t gfn)
{
	bool there = slot->npages && gfn - slot->base_gfn < slot->npages;
	bool valid = there && !(slot->flags & MS_MEMSLOT_INVALID);
	uint64_t hva = valid ? slot->userspace_addr + (gfn - slot->base_gfn) * PAGE : MS_HVA_ERR_BAD;

	CHECK_EQ(s->found, there);
	CHECK(!there || same_slot(&s->slot, slot));
	CHECK_EQ(s->visible, valid);
	CHECK_EQ(s->hva, hva);
	CHECK_EQ(s->hva_prot, hva);
	CHECK_EQ(s->writable, valid);
	CHECK_EQ(s->id, valid ? (int32_t)ID : -1);
}

/* The slot that readers see: before the change, during it, or after it. */
static struct ms_memslot published(const struct hook_case *c, enum call call)
{
	struct ms_memslot slot = slot_at(c, call == COMMIT);

	if (call != COMMIT && copies(c))
		slot.flags |= MS_MEMSLOT_INVALID;
	return slot;
}

static void check_totals(const struct hook_case *c, const struct note *n, const struct ms_stats *before,
			 uint32_t spaces)
{
	bool after = n->call == COMMIT, member = after ? c->kind != MS_DELETE : c->kind != MS_CREATE;

	CHECK_EQ(n->nr, spaces + member);
	CHECK_EQ(n->pages, 8 * spaces + (member ? NPAGES : 0));
	CHECK_EQ(n->creates - before->creates, after && c->kind == MS_CREATE);
	CHECK_EQ(n->deletes - before->deletes, after && c->kind == MS_DELETE);
	CHECK_EQ(n->moves - before->moves, after && c->kind == MS_MOVE);
	CHECK_EQ(n->flag_changes - before->flag_changes, after && c->kind == MS_FLAGS_ONLY);
}

static void check_arguments(const struct hook_case *c, const struct note *n)
{
	struct ms_memslot old = slot_at(c, false), new_slot = slot_at(c, true), inv = old;

	inv.flags |= MS_MEMSLOT_INVALID;
	CHECK(same_slot(&n->old_slot, &old));
	CHECK(same_slot(&n->new_slot, n->call == FLUSH ? &inv : &new_slot));
	CHECK(n->call == FLUSH || n->kind == c->kind);
}

static void check_note(const struct hook_case *c, const struct note *n, enum call call, int listener)
{
	struct ms_memslot slot = published(c, call);

	CHECK_EQ(n->call, call);
	CHECK_EQ(n->listener, listener);
	check_arguments(c, n);
	check_sight(&n->at_old, &slot, OLD_GFN);
	check_sight(&n->at_new, &slot, new_gfn);
	CHECK_EQ(n->has_id, slot.npages != 0);
	CHECK(!n->has_id || same_slot(&n->by_id, &slot));
	CHECK_EQ(n->in_range, OLD_GFN - slot.base_gfn < slot.npages);
}

/* flush of all listeners; prepare up to the one that refuses; then abort in reverse from the one before it, or commit
 * of all. */
static void check_notes(const struct hook_case *c, const struct ms_stats *before, uint32_t spaces, uint64_t generation)
{
	bool listened = c->how == ACCEPTED || c->how == BY_LISTENER;
	int called = c->how == BY_LISTENER ? refuser + 1 : LISTENERS;
	size_t i = 0;

	for (int l = 0; swaps_of(c) == 2 && l < LISTENERS; l++)
		check_note(c, &notes[i++], FLUSH, l);
	for (int l = 0; !c->noop && listened && l < called; l++)
		check_note(c, &notes[i++], PREPARE, l);
	for (int l = refuser - 1; c->how == BY_LISTENER && l >= 0; l--)
		check_note(c, &notes[i++], ABORT, l);
	for (int l = 0; !c->noop && c->how == ACCEPTED && l < LISTENERS; l++)
		check_note(c, &notes[i++], COMMIT, l);
	CHECK_EQ(nr_notes, i);
	for (i = 0; i < nr_notes; i++) {
		uint64_t swaps = notes[i].call == COMMIT ? swaps_of(c) : copies(c);

		check_totals(c, &notes[i], before, spaces);
		CHECK_EQ(notes[i].generation, generation + swaps * spaces);
	}
}

static uint64_t nr_cases;

static void run_case(const struct hook_case *c, uint32_t spaces, uint32_t as_id)
{
	uint64_t gen[2], idx[2];
	struct picture before, after;
	struct ms_stats stats, now;
	region_t r;

	make_vm(c, spaces, as_id);
	for (int l = 0; l < LISTENERS; l++)
		CHECK_EQ(ms_add_listener(vm, &listeners[l], NULL), 0);
	for (uint32_t i = 0; i < spaces; i++) {
		gen[i] = ms_generation(vm, i);
		idx[i] = active_idx(vm, i);
	}
	before = picture_of(vm);
	stats = stats_of(vm);
	r = request_of(c);
	arm(c);
	CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), c->code);
	memory_fail(&vm->memory, 0, false);
	now = stats_of(vm);
	check_notes(c, &stats, spaces, gen[as_id]);
	CHECK_EQ(now.swaps - stats.swaps, swaps_of(c));
	for (uint32_t i = 0; i < spaces; i++) {
		CHECK_EQ(ms_generation(vm, i) - gen[i], i == as_id ? swaps_of(c) * spaces : 0);
		CHECK_EQ(active_idx(vm, i) ^ idx[i], i == as_id ? swaps_of(c) & 1 : 0);
	}
	after = picture_of(vm);
	CHECK_EQ(same_picture(&before, &after), c->how != ACCEPTED || c->noop);
	if (c->how != ACCEPTED)
		CHECK_EQ(now.blocks, stats.blocks);
	check_sound(vm);
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
	nr_cases++;
}

static void test_cases(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		for (uint32_t spaces = 1; spaces <= 2; spaces++)
			for (uint32_t as_id = 0; as_id < spaces; as_id++) {
				bool by_listener = cases[i].how == BY_LISTENER;

				refuser = by_listener ? 0 : -1;
				do
					run_case(&cases[i], spaces, as_id);
				while (by_listener && ++refuser < LISTENERS);
			}
	refuser = -1;
}

/* ---- bit 63 ---- */

/* While a swap waits for a reader, the generation has bit 63; hooks see generations without it. */
static uint64_t published_while_waiting;
static _Atomic int reader_step;

static void *hold_section(void *arg)
{
	struct ms_vm *of = arg;
	uint64_t was = atomic_load(&of->active);

	CHECK_EQ(ms_read_lock(of), 0);
	atomic_store(&reader_step, 1);
	while (atomic_load(&of->active) == was || !atomic_load(&of->srcu.waiting)) /* published, and the writer waits */
		usleep(100);
	CHECK_EQ(ms_generation(of, 0), 0); /* the set of the section */
	published_while_waiting = atomic_load(&vm_active_set(of, 0)->generation);
	ms_read_unlock(of);
	return NULL;
}

static void test_generation_during_swap(void)
{
	struct ms_vm *of = new_vm(1);
	pthread_t reader;

	atomic_store(&reader_step, 0);
	CHECK_EQ(pthread_create(&reader, NULL, hold_section, of), 0);
	while (!atomic_load(&reader_step))
		usleep(100);
	CHECK_EQ(set(of, 0, 1, 1, 1, 0), 0);
	CHECK_EQ(pthread_join(reader, NULL), 0);
	CHECK_EQ(published_while_waiting, MS_GEN_UPDATE_IN_PROGRESS);
	CHECK_EQ(ms_generation(of, 0), 1);
	CHECK_EQ(stats_of(of).grace_waits, 1);
	ms_vm_destroy(of);
}

/* ---- the list of listeners ---- */

static int calls[2];

static int count_prepare(void *opaque, const struct ms_change *change)
{
	(void)change;
	calls[(intptr_t)opaque]++;
	return 0;
}

static void test_listener_list(void)
{
	static const struct ms_listener nothing = { LISTENER_SIZE },
					one = { LISTENER_SIZE, .opaque = (void *)0, .prepare = count_prepare },
					two = { LISTENER_SIZE, .opaque = (void *)1, .prepare = count_prepare };
	struct ms_vm *of = new_vm(1);
	struct ms_error err;

	calls[0] = calls[1] = 0;
	CHECK_EQ(ms_remove_listener(of, &one, &err), -ENOENT);
	CHECK_EQ(ms_add_listener(of, &nothing, NULL), 0);
	CHECK_EQ(ms_add_listener(of, &one, NULL), 0);
	CHECK_EQ(ms_add_listener(of, &one, &err), -EEXIST);
	CHECK_EQ(ms_add_listener(of, &two, NULL), 0);
	CHECK_EQ(set(of, 0, 1, 1, 1, 0), 0);
	CHECK_EQ(set(of, 0, 1, 2, 1, LOG), 0);
	CHECK_EQ(ms_remove_listener(of, &one, NULL), 0);
	CHECK_EQ(ms_remove_listener(of, &one, &err), -ENOENT);
	CHECK_EQ(set(of, 0, 1, 0, 0, 0), 0);
	CHECK_EQ(calls[0], 2);
	CHECK_EQ(calls[1], 3);
	CHECK_EQ(ms_remove_listener(of, &two, NULL), 0);
	CHECK_EQ(ms_remove_listener(of, &nothing, NULL), 0);
	CHECK_EQ(ms_add_listener(of, &two, NULL), 0);
	CHECK_EQ(set(of, 0, 1, 1, 1, 0), 0);
	CHECK_EQ(calls[1], 4);
	ms_vm_destroy(of);
}

/* ---- the listener behind the others ---- */

#define NAMED 4

static char called[16]; /* the names of the listeners, in the order of the calls of prepare */
static size_t nr_called;

static int note_name(void *opaque, const struct ms_change *change)
{
	(void)change;
	CHECK(nr_called < sizeof(called) - 1);
	called[nr_called++] = *(const char *)opaque;
	return 0;
}

static const struct ms_listener named[NAMED] = {
	{ LISTENER_SIZE, .opaque = "a", .prepare = note_name },
	{ LISTENER_SIZE, .opaque = "b", .prepare = note_name },
	{ LISTENER_SIZE, .opaque = "c", .prepare = note_name },
	{ LISTENER_SIZE, .opaque = "d", .prepare = note_name },
};

/* Makes a change; its prepare hooks are those of the listeners with these names, in this order. */
static void check_order(struct ms_vm *of, const char *names)
{
	static uint64_t gfn;

	memset(called, 0, sizeof(called));
	nr_called = 0;
	CHECK_EQ(set(of, 0, 1, ++gfn, 1, 0), 0);
	if (strcmp(called, names))
		fprintf(stderr, "%s was called, not %s\n", called, names);
	CHECK(!strcmp(called, names));
}

static void test_last_listener(void)
{
	struct ms_vm *of = new_vm(1);
	struct ms_error err;

	CHECK_EQ(ms_add_listener_last(of, &named[3], NULL), 0); /* the only one: the first and the last */
	check_order(of, "d");
	CHECK_EQ(ms_add_listener(of, &named[0], NULL), 0);
	CHECK_EQ(ms_add_listener(of, &named[1], NULL), 0);
	check_order(of, "abd");
	CHECK_EQ(ms_add_listener_last(of, &named[2], &err), -EEXIST); /* one only */
	CHECK_EQ(err.rule, MS_RULE_LAST_LISTENER);
	CHECK_EQ(ms_add_listener_last(of, &named[3], &err), -EEXIST);
	CHECK_EQ(err.rule, MS_RULE_LISTENER_EXISTS);
	CHECK_EQ(ms_add_listener(of, &named[3], &err), -EEXIST);
	CHECK_EQ(err.rule, MS_RULE_LISTENER_EXISTS);
	check_order(of, "abd");
	CHECK_EQ(ms_remove_listener(of, &named[0], NULL), 0);
	CHECK_EQ(ms_add_listener(of, &named[0], NULL), 0);
	check_order(of, "bad");
	CHECK_EQ(ms_remove_listener(of, &named[3], NULL), 0);
	CHECK_EQ(ms_add_listener_last(of, &named[1], &err), -EEXIST); /* b is not the last one, but it was added */
	CHECK_EQ(err.rule, MS_RULE_LISTENER_EXISTS);
	CHECK_EQ(ms_add_listener_last(of, &named[2], NULL), 0);
	CHECK_EQ(ms_add_listener(of, &named[3], NULL), 0);
	check_order(of, "badc");
	for (int i = 0; i < NAMED; i++)
		CHECK_EQ(ms_remove_listener(of, &named[i], NULL), 0);
	CHECK_EQ(ms_add_listener(of, &named[1], NULL), 0); /* the place is free, and nothing of it is left */
	CHECK_EQ(ms_add_listener(of, &named[0], NULL), 0);
	check_order(of, "ba");
	end_vm(of);
}

static void test_last_listener_without_memory(void)
{
	struct ms_vm *of = new_vm(1);
	struct ms_error err;

	CHECK_EQ(ms_add_listener(of, &named[0], NULL), 0);
	memory_fail(&of->memory, 1, false);
	CHECK_EQ(ms_add_listener_last(of, &named[1], &err), -ENOMEM);
	CHECK_EQ(err.rule, MS_RULE_NO_MEMORY);
	memory_fail(&of->memory, 0, false);
	CHECK_EQ(ms_add_listener_last(of, &named[2], NULL), 0); /* the place is still free */
	check_order(of, "ac");
	end_vm(of);
}

static int refuse_with_positive(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	return 1;
}

/* A load makes many changes in an order of its own: it prepares each entry, then commits each in the same order, or
 * aborts the prepared ones in reverse.  The totals are right before the first commit. */
static struct {
	enum call call;
	uint32_t id;
} load_log[64];
static size_t load_calls;
static uint32_t id_to_refuse;

static void log_call(enum call call, const struct ms_change *change)
{
	CHECK(load_calls < ARRAY_SIZE(load_log));
	CHECK_EQ(change->kind, MS_CREATE);
	load_log[load_calls].call = call;
	load_log[load_calls++].id = change->new_slot.id;
}

static int load_prepare(void *opaque, const struct ms_change *change)
{
	CHECK(!ms_is_visible_gfn(*(struct ms_vm **)opaque, 0, change->new_slot.base_gfn));
	log_call(PREPARE, change);
	return change->new_slot.id == id_to_refuse ? -EPERM : 0;
}

static void load_abort(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	log_call(ABORT, change);
}

static void load_commit(void *opaque, const struct ms_change *change)
{
	struct ms_vm *of = *(struct ms_vm **)opaque;

	CHECK_EQ(ms_nr_memslots(of), 5);
	for (uint64_t gfn = 0; gfn < 5 * 16; gfn++)
		CHECK(ms_is_visible_gfn(of, 0, gfn));
	log_call(COMMIT, change);
}

static void check_refused_load(void)
{
	size_t prepared = 0;

	while (prepared < load_calls && load_log[prepared].call == PREPARE)
		prepared++;
	CHECK_EQ(load_log[prepared - 1].id, id_to_refuse);
	CHECK_EQ(load_calls, 2 * prepared - 1);
	for (size_t i = prepared; i < load_calls; i++) {
		CHECK_EQ(load_log[i].call, ABORT);
		CHECK_EQ(load_log[i].id, load_log[2 * prepared - 2 - i].id);
	}
	load_calls = 0;
}

static void check_done_load(void)
{
	uint64_t ids = 0;

	CHECK_EQ(load_calls, 10);
	for (size_t i = 0; i < 5; i++) {
		CHECK_EQ(load_log[i].call, PREPARE);
		CHECK_EQ(load_log[i + 5].call, COMMIT);
		CHECK_EQ(load_log[i + 5].id, load_log[i].id);
		ids |= (uint64_t)1 << load_log[i].id;
	}
	CHECK_EQ(ids, 31u << 10);
	load_calls = 0;
}

static void test_load_hooks(void)
{
	static struct ms_vm *of;
	static struct ms_listener l = { LISTENER_SIZE, &of, load_prepare, load_abort, NULL, load_commit };
	static const struct ms_listener positive = { LISTENER_SIZE, .prepare = refuse_with_positive };
	struct ms_memslot list[5];

	of = new_vm(1);
	for (uint32_t i = 0; i < 5; i++)
		list[i] = (struct ms_memslot){ 16 * i, 16, hva_for(0, 10 + i), 10 + i, 0, LOG, 0 };
	load_calls = 0;
	CHECK_EQ(ms_add_listener(of, &l, NULL), 0);
	for (id_to_refuse = 10; id_to_refuse < 15; id_to_refuse++) {
		CHECK_EQ(ms_load_memslots(of, 0, list, 5, NULL), -EPERM);
		check_refused_load();
		CHECK_EQ(ms_generation(of, 0), 0);
		CHECK_EQ(ms_nr_memslots(of), 0);
		check_sound(of);
	}
	CHECK_EQ(ms_load_memslots(of, 0, list, 5, NULL), 0);
	check_done_load();
	CHECK_EQ(ms_generation(of, 0), 1);
	CHECK_EQ(ms_add_listener(of, &positive, NULL), 0); /* a positive number refuses, too */
	CHECK(set(of, 0, 1, 0x900, 1, 0) < 0);
	CHECK_EQ(ms_nr_memslots(of), 5);
	end_vm(of);
}

/* ---- calls that take the lock, in places where they may not ---- */

static const struct ms_listener spare = { LISTENER_SIZE };

static int map_memory(struct ms_vm *of, struct ms_error *err)
{
	region_t r = region(0, 50, 0x5000, 1, 0);
	struct ms_backing *backing;
	int result;

	CHECK_EQ(ms_backing_create((void *)(uintptr_t)r.userspace_addr, PAGE, 0, NULL, NULL, &backing), 0);
	result = ms_map_backing(of, &r, backing, NULL, err);
	ms_backing_put(backing);
	return result;
}

#define CLOSE_CALL 20u /* the last one */

/* Makes the i-th [lock] call; returns its result, or 1 if there is no such call. */
static int lock_call(unsigned i, struct ms_vm *of, struct ms_error *err)
{
	region_t r = region(0, 50, 0x5000, 1, 0), bad = region(9, ~0u, 1, 1, 8);
	struct ms_memslot one = { 0x5000, 1, HVA_BASE, 50, 0, 0, 0 };
	uint64_t words[1] = { 0 };
	size_t nwords;
	struct ms_vcpu *out;
	struct ms_update *update;
	uint32_t id;

	switch (i) {
	case 0:
		return ms_set_user_memory_region(of, &r, err);
	case 1:
		return ms_set_user_memory_region(of, &bad, err); /* refused before its fields are checked */
	case 2:
		r.slot = MS_USER_MEM_SLOTS_DEFAULT;
		return ms_set_internal_memory_region(of, &r, err);
	case 3:
		return ms_set_internal_memory_region(of, &bad, err);
	case 4:
		return ms_load_memslots(of, 0, &one, 1, err);
	case 5:
		return ms_load_memslots(of, 9, &one, 1, err);
	case 6:
		return ms_add_listener(of, &spare, err);
	case 7:
		return ms_remove_listener(of, &spare, err);
	case 8:
		return ms_vcpu_create(of, &out, err);
	case 9:
		return ms_get_dirty_log(of, 0, 1, words, 1, &nwords, err);
	case 10:
		return ms_clear_dirty_log(of, 0, 1, 0, 8, words, 1, err);
	case 11:
		return ms_set_manual_dirty_log_protect(of, 1, err);
	case 12:
		return ms_check(of, NULL, err);
	case 13:
		return ms_update_begin(of, 0, &update, err);
	case 14:
		return ms_delete_memslot(of, 0, 1, err);
	case 15:
		return ms_move_memslot(of, 0, 1, 0x6000 * PAGE, err);
	case 16:
		return ms_set_memslot_flags(of, 0, 1, 0, LOG, err);
	case 17:
		return ms_free_slot_id(of, 0, &id, err);
	case 18:
		return map_memory(of, err);
	case 19:
		return ms_add_listener_last(of, &spare, err);
	case CLOSE_CALL:
		return ms_vm_close(of, err);
	default:
		return 1;
	}
}

static unsigned check_lock_calls(struct ms_vm *of, int want, enum ms_rule rule, bool and_close)
{
	struct picture before = picture_of(of), after;
	struct ms_error err;
	unsigned i = 0;
	int r;

	for (err.rule = 0; (r = lock_call(i, of, &err)) != 1; i++, err.rule = 0) {
		if (i == CLOSE_CALL && !and_close)
			break;
		if (r == -ENOSYS && err.rule == MS_RULE_BACKEND && i == 13 && !design_is("tree"))
			continue;
		if (r != want || err.rule != rule)
			fprintf(stderr, "[lock] call %u\n", i);
		CHECK_EQ(r, want);
		CHECK_EQ(err.rule, rule);
	}
	after = picture_of(of);
	CHECK(same_picture(&before, &after));
	CHECK_EQ(before.generations, after.generations);
	return i;
}

static struct ms_vm *self, *other_vm;
static unsigned forbidden_calls, hooks_seen[4];
static bool refuse_once;

static void forbid(enum call call)
{
	forbidden_calls += check_lock_calls(self, -EDEADLK, MS_RULE_HOOK, true);
	hooks_seen[call]++;
}

static int forbid_prepare(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	forbid(PREPARE);
	return 0;
}

static void forbid_abort(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	forbid(ABORT);
}

static void forbid_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)active;
	(void)old;
	forbid(FLUSH);
}

static void forbid_commit(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	forbid(COMMIT);
}

static int maybe_refuse(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	return refuse_once ? -EPERM : 0;
}

static void test_change_from_own_hook(void)
{
	static const struct ms_listener forbids = { LISTENER_SIZE, NULL,         forbid_prepare,
						    forbid_abort,  forbid_flush, forbid_commit };
	static const struct ms_listener refuses = { LISTENER_SIZE, .prepare = maybe_refuse };

	self = new_vm(2);
	CHECK_EQ(set(self, 0, 1, 1, 8, LOG), 0);
	CHECK_EQ(ms_add_listener(self, &forbids, NULL), 0);
	CHECK_EQ(ms_add_listener(self, &refuses, NULL), 0);
	CHECK_EQ(set(self, 0, 2, 0x100, 16, LOG), 0);
	CHECK_EQ(set(self, 0, 2, 0x200, 16, 0), 0);
	refuse_once = true;
	CHECK_EQ(set(self, 0, 2, 0x300, 16, LOG), -EPERM);
	CHECK_EQ(set(self, 0, 2, 0x200, 16, LOG), -EPERM);
	refuse_once = false;
	CHECK_EQ(set(self, 0, 2, 0x200, 16, LOG), 0);
	CHECK_EQ(set(self, 0, 2, 0, 0, 0), 0);
	for (int call = PREPARE; call <= COMMIT; call++)
		CHECK(hooks_seen[call] >= 2);
	check_sound(self); /* and now the lock is free again */
	end_vm(self);
}

/* ---- another VM ---- */

static void change_other(void)
{
	struct ms_memslot slot;

	CHECK_EQ(set(other_vm, 0, 3, 0x30, 2, LOG), 0);
	CHECK_EQ(set(other_vm, 0, 3, 0x40, 2, 0), 0);
	CHECK_EQ(ms_gfn_to_memslot(other_vm, 0, 0x41, &slot), 0);
	CHECK_EQ(set(other_vm, 0, 3, 0, 0, 0), 0);
	check_sound(other_vm);
}

static int change_in_prepare(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	change_other();
	return refuse_once ? -EPERM : 0;
}

static void change_in_commit(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	change_other();
}

static void change_in_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	(void)active;
	(void)old;
	change_other();
}

/* The inner change would change the outer VM: that would deadlock. */
static int change_back(void *opaque, const struct ms_change *change)
{
	struct ms_error err;

	(void)opaque;
	(void)change;
	CHECK_EQ(ms_set_user_memory_region(self, &(region_t){ .memory_size = PAGE }, &err), -EDEADLK);
	CHECK_EQ(err.rule, MS_RULE_HOOK);
	return 0;
}

static void test_change_of_another_vm(void)
{
	static const struct ms_listener changes = { LISTENER_SIZE,   NULL, change_in_prepare, NULL, change_in_flush,
						    change_in_commit };
	static const struct ms_listener comes_back = { LISTENER_SIZE, .prepare = change_back };

	self = new_vm(1);
	other_vm = new_vm(1);
	CHECK_EQ(ms_add_listener(self, &changes, NULL), 0);
	CHECK_EQ(ms_add_listener(other_vm, &comes_back, NULL), 0);
	CHECK_EQ(set(self, 0, 1, 0x100, 16, LOG), 0);
	CHECK_EQ(set(self, 0, 1, 0x200, 16, LOG), 0);
	refuse_once = true;
	CHECK_EQ(set(self, 0, 1, 0x300, 16, LOG), -EPERM);
	refuse_once = false;
	CHECK_EQ(set(self, 0, 1, 0, 0, 0), 0);
	CHECK_EQ(stats_of(other_vm).creates, 10);
	check_sound(self);
	check_sound(other_vm);
	end_vm(self);
	end_vm(other_vm);
}

/* Two threads, each in a hook of its VM, each change the other's VM: neither may wait. */
static pthread_barrier_t both;

struct rival {
	struct ms_vm *mine, *theirs;
};

static int change_other_vm(void *opaque, const struct ms_change *change)
{
	struct rival *rival = opaque;
	struct ms_error err;

	(void)change;
	pthread_barrier_wait(&both);
	for (unsigned i = 0; i <= CLOSE_CALL; i++) {
		int r = lock_call(i, rival->theirs, &err);

		if (i == 13 && !design_is("tree")) { /* the design does not have it */
			CHECK_EQ(r, -ENOSYS);
			continue;
		}
		CHECK_EQ(r, -EBUSY);
		CHECK_EQ(err.rule, MS_RULE_HOOK_BUSY);
	}
	pthread_barrier_wait(&both);
	return 0;
}

static void *change_own_vm(void *arg)
{
	struct rival *rival = arg;

	CHECK_EQ(set(rival->mine, 0, 1, 0x100, 16, 0), 0);
	return NULL;
}

static void test_two_threads_in_hooks(void)
{
	struct ms_vm *vms[2] = { new_vm(1), new_vm(1) };
	struct rival rivals[2] = { { vms[0], vms[1] }, { vms[1], vms[0] } };
	struct ms_listener l[2] = { { LISTENER_SIZE, .opaque = &rivals[0], .prepare = change_other_vm },
				    { LISTENER_SIZE, .opaque = &rivals[1], .prepare = change_other_vm } };
	pthread_t thread[2];

	CHECK_EQ(pthread_barrier_init(&both, NULL, 2), 0);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(ms_add_listener(vms[i], &l[i], NULL), 0);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&thread[i], NULL, change_own_vm, &rivals[i]), 0);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(ms_nr_memslots(vms[i]), 1);
		check_sound(vms[i]);
		end_vm(vms[i]);
	}
	pthread_barrier_destroy(&both);
}

/* ---- read sections, forks, close ---- */

static void test_change_in_section(void)
{
	struct ms_vm *read = new_vm(1), *unread = new_vm(1);

	CHECK_EQ(set(read, 0, 1, 1, 8, LOG), 0);
	CHECK_EQ(ms_read_lock(read), 0);
	check_lock_calls(read, -EDEADLK, MS_RULE_READ_SECTION, true);
	check_lock_calls(unread, -EDEADLK, MS_RULE_READ_SECTION, true);
	CHECK_EQ(ms_read_lock(read), 0);
	ms_read_unlock(read);
	check_lock_calls(unread, -EDEADLK, MS_RULE_READ_SECTION, true); /* the outer section is still open */
	CHECK_EQ(ms_gfn_to_hva(read, 0, 8), hva_for(0, 1) + 7 * PAGE);
	ms_read_unlock(read);
	CHECK_EQ(set(read, 0, 1, 2, 8, LOG), 0);
	CHECK_EQ(set(unread, 0, 1, 2, 8, LOG), 0);
	ms_vm_destroy(read);
	ms_vm_destroy(unread);
}

static void in_child(struct ms_vm *of)
{
	struct ms_memslot slot;
	struct ms_vm *own;

	CHECK_EQ(ms_gfn_to_memslot(of, 0, 8, &slot), 0);
	CHECK_EQ(ms_gfn_to_hva(of, 0, 8), hva_for(0, 1) + 7 * PAGE);
	CHECK_EQ(ms_gfn_to_hva(of, 0, 9), MS_HVA_ERR_BAD);
	ms_mark_page_dirty(of, 0, 8);
	check_lock_calls(of, -EIO, MS_RULE_FORKED, true);
	CHECK_EQ(ms_read_lock(of), 0);
	check_lock_calls(of, -EIO, MS_RULE_FORKED, true);
	ms_read_unlock(of);
	own = new_vm(1);
	CHECK_EQ(set(own, 0, 1, 1, 1, 0), 0); /* a VM of the child itself works */
	ms_vm_destroy(own);
	_exit(0);
}

static void test_fork(void)
{
	struct ms_vm *of = new_vm(1);
	int status = -1;
	pid_t child;

	CHECK_EQ(set(of, 0, 1, 1, 8, LOG), 0);
	fflush(NULL);
	child = fork();
	if (!child)
		in_child(of);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	CHECK_EQ(set(of, 0, 1, 2, 8, LOG), 0); /* the parent goes on */
	check_sound(of);
	ms_vm_destroy(of);
}

static void check_holes(struct ms_vm *of, struct ms_vcpu *on)
{
	struct ms_memslot slot;
	struct ms_hva_hit hit;

	for (uint32_t as_id = 0; as_id < 2; as_id++) {
		CHECK_EQ(ms_gfn_to_memslot(of, as_id, 1, &slot), -ENOENT);
		CHECK_EQ(ms_id_to_memslot(of, as_id, 1, &slot), -ENOENT);
		CHECK_EQ(ms_gfn_to_hva(of, as_id, 1), MS_HVA_ERR_BAD);
		CHECK_EQ(ms_memslots(of, as_id, &slot, 1), 0);
		CHECK_EQ(ms_memslots_in_hva_range(of, as_id, 0, ~(uint64_t)0, &slot, 1), 0);
		ms_mark_page_dirty(of, as_id, 1);
	}
	CHECK_EQ(ms_hva_to_gfns(of, hva_for(0, 1), &hit, 1), 0);
	CHECK_EQ(ms_vcpu_gfn_to_hva(on, 1), MS_HVA_ERR_BAD);
	CHECK_EQ(ms_nr_memslots(of), 0);
	CHECK_EQ(ms_nr_memslot_pages(of), 0);
}

static void test_close(void)
{
	struct ms_vm *of = new_vm(2);
	struct ms_vcpu *on;
	struct ms_error err;

	CHECK_EQ(ms_vcpu_create(of, &on, NULL), 0);
	for (uint32_t as_id = 0; as_id < 2; as_id++)
		for (uint32_t id = 1; id < 100; id++)
			CHECK_EQ(set(of, as_id, id, id, 1, LOG), 0);
	CHECK_EQ(ms_add_listener(of, &listeners[0], NULL), 0);
	CHECK_EQ(ms_gfn_to_hva(of, 1, 99), hva_for(1, 99));
	CHECK_EQ(ms_vcpu_gfn_to_hva(on, 1), hva_for(0, 1));
	vm = of;
	vcpu = on;
	nr_notes = 0;
	CHECK_EQ(ms_vm_close(of, &err), 0);
	CHECK_EQ(nr_notes, 0); /* no hooks */
	check_holes(of, on);
	check_lock_calls(of, -EBADF, MS_RULE_CLOSED, false);
	CHECK_EQ(ms_vm_close(of, &err), 0);
	check_holes(of, on);
	ms_vcpu_destroy(on);
	check_empty(of);
	ms_vm_destroy(of);
}

/* ---- the hook `closed` ---- */

static struct {
	struct ms_vm *of;
	struct ms_backing *backing;
	unsigned calls[2], released;
} ending;

static void on_release(void *opaque)
{
	(void)opaque;
	CHECK(ending.calls[0] && ending.calls[1]);
	ending.released++;
}

/* Every reader has left the slots, and no slot has been freed. */
static void on_closed(void *opaque)
{
	size_t i = (size_t)(uintptr_t)opaque;
	struct ms_error err;

	CHECK_EQ(ending.calls[0], i); /* in order */
	ending.calls[i]++;
	CHECK(!ending.released);
	for (uint32_t as_id = 0; as_id < 2; as_id++) {
		CHECK_EQ(ms_gfn_to_hva(ending.of, as_id, 0x10), MS_HVA_ERR_BAD);
		CHECK_EQ(ms_memslots(ending.of, as_id, NULL, 0), 0);
	}
	CHECK_EQ(ms_nr_memslots(ending.of), 0);
	CHECK_EQ(atomic_load(&ending.backing->refs), 2);
	check_lock_calls(ending.of, -EDEADLK, MS_RULE_HOOK, true);
	CHECK_EQ(ms_set_user_memory_region(ending.of, NULL, &err), -EFAULT);
	ms_vm_destroy(ending.of); /* does nothing in a hook of the same VM */
}

static const struct ms_listener end_listeners[2] = {
	{ LISTENER_SIZE, .opaque = (void *)0, .closed = on_closed },
	{ LISTENER_SIZE, .opaque = (void *)1, .closed = on_closed },
};

static void make_ending_vm(void)
{
	static const struct ms_listener nothing = { LISTENER_SIZE },
					old = { offsetof(struct ms_listener, prepare_many), .closed = on_closed };
	region_t r = region(0, 1, 0x10, 4, LOG);

	memset(&ending, 0, sizeof(ending));
	ending.of = new_vm(2);
	CHECK_EQ(ms_backing_create((void *)(uintptr_t)r.userspace_addr, 4 * PAGE, 0, on_release, NULL, &ending.backing),
		 0);
	CHECK_EQ(ms_map_backing(ending.of, &r, ending.backing, NULL, NULL), 0);
	CHECK_EQ(set(ending.of, 1, 2, 0x10, 4, 0), 0);
	CHECK_EQ(ms_add_listener_last(ending.of, &end_listeners[1], NULL), 0);
	CHECK_EQ(ms_add_listener(ending.of, &nothing, NULL), 0);
	CHECK_EQ(ms_add_listener(ending.of, &old, NULL), 0); /* a struct that ends before the hook */
	CHECK_EQ(ms_add_listener(ending.of, &end_listeners[0], NULL), 0);
}

static void check_ended_once(void)
{
	CHECK_EQ(ending.calls[0], 1);
	CHECK_EQ(ending.calls[1], 1);
	CHECK_EQ(atomic_load(&ending.backing->refs), 1);
	ms_backing_put(ending.backing);
	CHECK_EQ(ending.released, 1);
}

static void test_closed_by_close(void)
{
	make_ending_vm();
	CHECK_EQ(ms_vm_close(ending.of, NULL), 0);
	CHECK_EQ(ms_vm_close(ending.of, NULL), 0);
	ms_vm_destroy(ending.of);
	check_ended_once();
}

static void test_closed_by_destroy(void)
{
	struct ms_update *update;

	make_ending_vm();
	ms_vm_destroy(ending.of);
	check_ended_once();
	make_ending_vm(); /* with an open read section, which ends with the VM */
	CHECK_EQ(ms_read_lock(ending.of), 0);
	ms_vm_destroy(ending.of);
	CHECK_EQ(thread_self.sections, 0);
	check_ended_once();
	if (!design_is("tree"))
		return;
	make_ending_vm(); /* with an open update */
	CHECK_EQ(ms_update_begin(ending.of, 1, &update, NULL), 0);
	ms_vm_destroy(ending.of);
	check_ended_once();
}

static void leave_section_open(void *opaque)
{
	CHECK_EQ(ms_read_lock(opaque), 0);
}

/* Such a section ends with the VM.  Otherwise the thread could change no other VM any more. */
static void test_section_of_closed_hook(void)
{
	struct ms_vm *of = new_vm(1);
	struct ms_listener l = { LISTENER_SIZE, .opaque = of, .closed = leave_section_open };

	CHECK_EQ(ms_add_listener(of, &l, NULL), 0);
	ms_vm_destroy(of);
	CHECK_EQ(thread_self.sections, 0);
}

static void *begin_update_and_stay(void *unused)
{
	struct ms_update *update;

	CHECK_EQ(ms_update_begin(ending.of, 1, &update, NULL), 0);
	pthread_barrier_wait(&both);
	pthread_barrier_wait(&both);
	return unused;
}

/* Another thread owns slots_lock when the VM ends.  The hooks still run as in a call that owns the lock. */
static void test_closed_with_update_of_another_thread(void)
{
	pthread_t thread;

	if (!design_is("tree"))
		return;
	make_ending_vm();
	CHECK_EQ(pthread_barrier_init(&both, NULL, 2), 0);
	CHECK_EQ(pthread_create(&thread, NULL, begin_update_and_stay, NULL), 0);
	pthread_barrier_wait(&both);
	ms_vm_destroy(ending.of);
	check_ended_once();
	pthread_barrier_wait(&both);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	pthread_barrier_destroy(&both);
}

/* The child's copy of the VM ends without hooks: the parent calls them. */
static void test_closed_in_child(void)
{
	int status = -1;
	pid_t child;

	make_ending_vm();
	fflush(NULL);
	child = fork();
	if (!child) {
		ending.calls[0] = ending.calls[1] = 7; /* a call would find another number */
		ms_vm_destroy(ending.of);
		_exit(ending.calls[0] == 7 && ending.calls[1] == 7 ? 0 : 1);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	ms_vm_destroy(ending.of);
	check_ended_once();
}

static _Atomic bool reader_left;

static void *read_until_closed(void *unused)
{
	CHECK_EQ(ms_read_lock(ending.of), 0);
	atomic_store(&reader_step, 2);
	while (!atomic_load(&ending.of->srcu.waiting))
		usleep(100);
	CHECK(ms_gfn_to_hva(ending.of, 0, 0x10) != MS_HVA_ERR_BAD); /* its section sees the slots until its end */
	atomic_store(&reader_left, true);
	ms_read_unlock(ending.of);
	return unused;
}

static void check_reader_left(void *opaque)
{
	(void)opaque;
	CHECK(atomic_load(&reader_left));
	ending.calls[0]++;
	ending.calls[1]++;
}

static void test_closed_waits_for_readers(void)
{
	static const struct ms_listener l = { LISTENER_SIZE, .closed = check_reader_left };
	pthread_t reader;

	make_ending_vm();
	CHECK_EQ(ms_remove_listener(ending.of, &end_listeners[0], NULL), 0); /* a removed listener gets no call */
	CHECK_EQ(ms_remove_listener(ending.of, &end_listeners[1], NULL), 0);
	CHECK_EQ(ms_add_listener(ending.of, &l, NULL), 0);
	atomic_store(&reader_step, 0);
	atomic_store(&reader_left, false);
	CHECK_EQ(pthread_create(&reader, NULL, read_until_closed, NULL), 0);
	while (!atomic_load(&reader_step))
		usleep(100);
	CHECK_EQ(ms_vm_close(ending.of, NULL), 0);
	CHECK_EQ(pthread_join(reader, NULL), 0);
	ms_vm_destroy(ending.of);
	check_ended_once();
}

static void test_closed(void)
{
	test_closed_by_close();
	test_closed_by_destroy();
	test_section_of_closed_hook();
	test_closed_with_update_of_another_thread();
	test_closed_in_child();
	test_closed_waits_for_readers();
}

static void test_all(void)
{
	test_last_listener();
	test_last_listener_without_memory();
	test_closed();
	test_cases();
	test_generation_during_swap();
	test_listener_list();
	test_load_hooks();
	test_change_of_another_vm();
	test_close();
	test_change_in_section();
	test_change_from_own_hook();
	test_two_threads_in_hooks();
	test_fork();
}

/* ---- the last bits of a log ---- */

struct last_bits {
	uint64_t words[2];
	size_t nr, commits;
};

static int no_bits_yet(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	CHECK(!change->dirty);
	CHECK_EQ(change->nr_dirty_words, 0);
	return 0;
}

static void keep_bits(void *opaque, const struct ms_change *change)
{
	struct last_bits *last = opaque;

	last->commits++;
	last->nr = change->nr_dirty_words;
	CHECK_EQ(!change->dirty, !last->nr);
	if (change->dirty)
		memcpy(last->words, change->dirty, last->nr * sizeof(*last->words));
}

/* Marks page 69 and makes the change.  bits: the last bits that commit gets; NULL: none, because the log stays. */
static void end_log(struct ms_vm *of, struct last_bits *last, uint64_t gfn, uint64_t new_base, uint64_t npages,
		    uint32_t flags, const uint64_t *bits)
{
	size_t commits = last->commits;

	ms_mark_page_dirty(of, 0, gfn + 69);
	CHECK_EQ(set(of, 0, 1, new_base, npages, flags), 0);
	CHECK_EQ(last->commits, commits + 1);
	CHECK_EQ(last->nr, bits ? 2 : 0);
	if (bits)
		CHECK(!memcmp(last->words, bits, sizeof(last->words)));
}

/* A delete ends the log, and so does a change that switches logging off.  A move keeps it. */
static void test_last_bits(void)
{
	static const uint64_t bits[2] = { 0, 32 };
	struct last_bits last = { 0 };
	struct ms_listener l = { LISTENER_SIZE, &last, no_bits_yet, NULL, NULL, keep_bits };
	struct ms_vm *of = new_vm(1);

	CHECK_EQ(ms_add_listener(of, &l, NULL), 0);
	CHECK_EQ(set(of, 0, 1, 0, 70, LOG), 0);
	end_log(of, &last, 0, 100, 70, LOG, NULL);
	end_log(of, &last, 100, 100, 0, 0, bits);
	CHECK_EQ(set(of, 0, 1, 0, 70, LOG), 0);
	end_log(of, &last, 0, 0, 70, 0, bits);
	CHECK_EQ(set(of, 0, 1, 0, 70, LOG), 0);
	end_log(of, &last, 0, 100, 70, 0, bits);
	end_log(of, &last, 100, 100, 0, 0, NULL);
	ms_vm_destroy(of);
}

static void never_closed(void *opaque)
{
	(void)opaque;
	CHECK(!"a listener that was forgotten is called");
}

/* The listener is gone before its VM. */
static void test_forgotten_listener(void)
{
	struct ms_listener *l = calloc(1, sizeof(*l));
	struct ms_vm *of = new_vm(1);

	CHECK(l);
	*l = (struct ms_listener){ .size = sizeof(*l), .closed = never_closed };
	CHECK_EQ(ms_add_listener_last(of, l, NULL), 0);
	CHECK_EQ(set(of, 0, 1, 0, 70, LOG), 0);
	ms_forget_listeners(of);
	memset(l, 0xff, sizeof(*l));
	free(l);
	ms_vm_destroy(of);
	ms_forget_listeners(NULL);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	refuser = -1;
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		test_all();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		test_last_bits();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		test_forgotten_listener();
	printf("hooks: %u calls refused inside them\n", forbidden_calls);
	return test_done("hooks", nr_cases, "changes");
}
