/* SPDX-License-Identifier: MIT */
/*
 * writer.c - the changes: CREATE, DELETE, MOVE, flags, loads, transactions, the steps of an update, each made or
 * refused; harvests and writes to guest memory.  permute.c has the transactions of the group.
 *
 * Each change notes its states before it begins, and that they are over after it (oracle.h).
 */
#include "writer.h"

#include <errno.h>

uint64_t now_word[SPACES][KEEPER + 1];
static uint64_t last_incarnation;
static bool refuse, in_transaction;

/* A change of one slot, through `nr` states. */
struct plan {
	uint32_t as_id, id;
	uint64_t first; /* the state before */
	unsigned nr;
};

static struct plan plan; /* the one in progress */

static void note_states(uint32_t as_id, uint32_t id, const uint64_t *word, unsigned nr)
{
	plan = (struct plan){ as_id, id, atomic_load_explicit(&noted[as_id], memory_order_relaxed), nr };
	for (unsigned i = 0; i < nr; i++)
		note_word(as_id, id, plan.first + 1 + i, word[i]);
	atomic_store_explicit(&noted[as_id], plan.first + nr, memory_order_release);
	now_word[as_id][id] = word[nr - 1];
}

/* The grace period of the i-th state of the plan is over. */
static void grace_over(unsigned i)
{
	atomic_store_explicit(&over[plan.as_id], plan.first + i, memory_order_release);
}

static void on_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	CHECK(in_transaction || active->flags & MS_MEMSLOT_INVALID);
	CHECK(!(old->flags & MS_MEMSLOT_INVALID));
	grace_over(1);
}

static int on_prepare(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	return refuse ? -EPERM : 0;
}

static const struct ms_listener listener = { LISTENER_SIZE, .prepare = on_prepare, .flush = on_flush };

static struct ms_userspace_memory_region region_for(uint32_t as_id, uint32_t id, uint64_t word)
{
	return (struct ms_userspace_memory_region){
		.slot = id,
		.as_id = as_id,
		.flags = flags_of(word),
		.guest_memfd = -1,
		.guest_phys_addr = base_of(id, word) * MS_PAGE_SIZE,
		.memory_size = word & PRESENT ? npages_of(word) * MS_PAGE_SIZE : 0,
		.userspace_addr = hva_for(as_id, id, word),
	};
}

static void change(uint32_t as_id, uint32_t id, const uint64_t *word, unsigned nr, uint64_t asked, int result)
{
	struct ms_userspace_memory_region region = region_for(as_id, id, asked);

	note_states(as_id, id, word, nr);
	refuse = result != 0;
	CHECK_EQ(ms_set_user_memory_region(vm, &region, NULL), result);
	refuse = false;
	grace_over(nr);
	self->changes++;
}

/* ---- changes of one slot ---- */

/* A few areas are in use, unless the engine keeps references forever. */
uint64_t new_incarnation(void)
{
	CHECK(memory_in_use() < MEMORY_AREAS);
	do
		last_incarnation++;
	while (!memory_is_free(last_incarnation));
	return last_incarnation << INCARNATION_SHIFT;
}

static uint64_t new_word(void)
{
	uint64_t how = rng_next(&self->rng);

	return PRESENT | new_incarnation() | (how & (LOGS | AT_SECOND)) | (how % 7 ? 0 : READONLY);
}

/* In rounds with few ids, address space 0 has backings only. */
bool backings_only(uint32_t as_id)
{
	return as_id == 0 && ids_in_play <= FEW_IDS;
}

static void create_backed(uint32_t as_id, uint32_t id, uint64_t word)
{
	struct ms_userspace_memory_region region = region_for(as_id, id, word);
	struct ms_backing *backing = memory_new(as_id, id, word);

	note_states(as_id, id, &word, 1);
	CHECK_EQ(ms_map_backing(vm, &region, backing, NULL, NULL), 0);
	ms_backing_put(backing);
	grace_over(1);
	self->changes++;
}

static void do_create(uint32_t as_id, uint32_t id)
{
	uint64_t word = new_word();

	doing("a create");
	if (backings_only(as_id) || rng_below(&self->rng, 2))
		create_backed(as_id, id, word | BACKED);
	else
		change(as_id, id, &word, 1, word, 0);
}

/* DELETE and MOVE, made or refused: both pass through INVALID. */
static void do_two_swaps(uint32_t as_id, uint32_t id, uint64_t asked, bool refused)
{
	uint64_t old = now_word[as_id][id], word[2] = { old | INVALID, refused ? old : asked };

	doing(asked ? "a move" : "a delete");
	change(as_id, id, word, 2, asked, refused ? -EPERM : 0);
}

static void do_flags(uint32_t as_id, uint32_t id)
{
	uint64_t word = now_word[as_id][id] ^ LOGS;

	doing("a change of flags");
	change(as_id, id, &word, 1, word, 0);
}

/* Loads all ids that are absent, in one swap. */
static void do_load(uint32_t as_id)
{
	struct ms_memslot slots[IDS];
	size_t nr = 0;

	doing("a load");
	plan = (struct plan){ as_id, 0, atomic_load_explicit(&noted[as_id], memory_order_relaxed), 1 };
	for (uint32_t id = 0; id < ids_in_play; id++) {
		uint64_t word;

		if (now_word[as_id][id])
			continue;
		word = now_word[as_id][id] = new_word();
		note_word(as_id, id, plan.first + 1, word);
		slots[nr++] = (struct ms_memslot){
			base_of(id, word), npages_of(word), hva_for(as_id, id, word), id, as_id, flags_of(word), 0
		};
	}
	if (!nr)
		return;
	atomic_store_explicit(&noted[as_id], plan.first + 1, memory_order_release);
	CHECK_EQ(ms_load_memslots(vm, as_id, slots, nr, NULL), 0);
	grace_over(1);
	self->changes++;
}

/* ---- transactions ---- */

void begin_transaction(struct transaction *t, uint32_t as_id)
{
	*t = (struct transaction){ .as_id = as_id };
	memcpy(t->word, now_word[as_id], sizeof(t->word));
}

struct ms_step *add_step(struct transaction *t, enum ms_step_kind kind, uint32_t id)
{
	CHECK(t->nr < ARRAY_SIZE(t->steps));
	t->steps[t->nr] = (struct ms_step){ .kind = kind, .slot = id };
	return &t->steps[t->nr++];
}

void add_move(struct transaction *t, uint32_t id, uint64_t word)
{
	add_step(t, MS_STEP_MOVE, id)->guest_phys_addr = base_of(id, word) * MS_PAGE_SIZE;
	t->word[id] = word;
}

void add_create(struct transaction *t, uint32_t id, uint64_t word)
{
	struct ms_userspace_memory_region region = region_for(t->as_id, id, word);
	struct ms_step *step = add_step(t, MS_STEP_CREATE, id);

	step->flags = region.flags;
	step->guest_phys_addr = region.guest_phys_addr;
	step->memory_size = region.memory_size;
	step->userspace_addr = region.userspace_addr;
	if (word & BACKED)
		step->backing = t->backings[t->nr_backings++] = memory_new(t->as_id, id, word);
	t->word[id] = word;
}

/* The steps may leave everything as it is.  Then nobody can refuse them, and they make no state. */
static bool changes_anything(const struct transaction *t)
{
	return memcmp(t->word, now_word[t->as_id], sizeof(t->word)) != 0;
}

/* Notes one state with all changes. */
static void note_transaction(const struct transaction *t)
{
	uint64_t first = atomic_load_explicit(&noted[t->as_id], memory_order_relaxed);

	plan = (struct plan){ t->as_id, 0, first, changes_anything(t) };
	for (uint32_t id = 0; id < KEEPER; id++)
		if (t->word[id] != now_word[t->as_id][id])
			note_word(t->as_id, id, first + 1, t->word[id]);
	memcpy(now_word[t->as_id], t->word, sizeof(t->word));
	atomic_store_explicit(&noted[t->as_id], first + plan.nr, memory_order_release);
}

void carry_out(struct transaction *t, int result)
{
	if (result == -EPERM && !changes_anything(t))
		result = 0;
	if (!result)
		note_transaction(t);
	in_transaction = true;
	refuse = result == -EPERM;
	CHECK_EQ(ms_change_memslots(vm, t->as_id, t->steps, t->nr, NULL), result);
	in_transaction = refuse = false;
	for (size_t i = 0; i < t->nr_backings; i++)
		ms_backing_put(t->backings[i]);
	if (!result)
		grace_over(plan.nr);
}

/* A slot moves, goes, or another one of the same id takes its place; a slot that is absent comes. */
static void add_change(struct transaction *t, uint32_t id)
{
	uint64_t word = t->word[id], how = rng_below(&self->rng, 8);

	if (word && how < 5) {
		add_move(t, id, word ^ AT_SECOND);
		return;
	}
	if (word)
		add_step(t, MS_STEP_DELETE, id);
	t->word[id] = 0;
	if (!word || how < 7)
		add_create(t, id, new_word() | (backings_only(t->as_id) || rng_below(&self->rng, 2) ? BACKED : 0));
}

/* Four slots change in one state: a reader that sees one of the changes sees all. */
static void do_transaction(uint32_t as_id, uint32_t first, bool refused)
{
	struct transaction t;

	doing("a transaction");
	begin_transaction(&t, as_id);
	for (uint32_t i = 0; i < 4; i++)
		add_change(&t, (first + i) % ids_in_play);
	carry_out(&t, refused ? -EPERM : 0);
	self->changes++;
}

/* ---- dirty logs and guest memory ---- */

uint64_t harvest(uint32_t as_id, uint32_t id)
{
	bool logs = now_word[as_id][id] & LOGS;
	uint64_t word = 0, npages = npages_of(now_word[as_id][id]);
	size_t nwords;

	CHECK_EQ(ms_get_dirty_log(vm, as_id, id, &word, 1, &nwords, NULL), logs ? 0 : -ENOENT);
	CHECK(npages == 64 || !(word >> npages));
	CHECK_EQ(ms_clear_dirty_log(vm, as_id, id, 0, (uint32_t)npages, &word, 1, NULL), logs ? 0 : -ENOENT);
	self->bits += (uint64_t)__builtin_popcountll(word);
	return word;
}

static void do_harvest(uint32_t as_id, uint32_t id)
{
	doing("a dirty log");
	harvest(as_id, id);
}

static uint64_t pages_between(uint64_t first, uint64_t last)
{
	return (~(uint64_t)0 >> (63 - (last - first))) << first;
}

int write_words(uint32_t as_id, uint32_t id, uint64_t offset, uint64_t n)
{
	static uint64_t words[SLOT_BYTES / 8];
	uint64_t word = now_word[as_id][id], ticks = rng_below(&self->rng, TICKS + 1);

	for (uint64_t i = 0; i < n / 8; i++)
		words[i] = stamp_for(as_id, id, word) + offset + 8 * i + ticks;
	return ms_write_guest(vm, as_id, base_of(id, word) * MS_PAGE_SIZE + offset, words, n, NULL);
}

/* Short, or up to the whole slot.  If the slot has a log, the next harvest has all pages: only the writer harvests. */
void do_write(uint32_t as_id, uint32_t id)
{
	uint64_t word = now_word[as_id][id], size = npages_of(word) * MS_PAGE_SIZE;
	uint64_t offset = rng_below(&self->rng, size / 8) * 8, most = (size - offset) / 8;
	uint64_t n = 8 * (1 + rng_below(&self->rng, rng_below(&self->rng, 4) && most > 999 ? 999 : most));
	bool refused = !(word & BACKED) || word & READONLY;
	uint64_t pages = pages_between(offset / MS_PAGE_SIZE, (offset + n - 1) / MS_PAGE_SIZE);

	doing("a write to guest memory");
	CHECK_EQ(write_words(as_id, id, offset, n), refused ? -EFAULT : 0);
	if (!refused && word & LOGS && pages & ~harvest(as_id, id))
		wrong("lost marks of a write", as_id, id, plan.first, plan.first);
	self->copies++;
	self->copied += refused ? 0 : n;
}

/* ---- the keeper ---- */

static uint64_t keeper_pages; /* KEEPER_PAGES, or a multiple; the readers' parts are the first ones */

static struct ms_userspace_memory_region keeper_region(void)
{
	return (struct ms_userspace_memory_region){
		.slot = KEEPER,
		.as_id = KEEPER_SPACE,
		.flags = MS_MEM_LOG_DIRTY_PAGES,
		.guest_memfd = -1,
		.guest_phys_addr = KEEPER_GFN * MS_PAGE_SIZE,
		.memory_size = keeper_pages * MS_PAGE_SIZE,
		.userspace_addr = KEEPER_HVA,
	};
}

/* A DELETE or a MOVE that is refused: the log stays in use throughout. */
static void do_keeper_refused(void)
{
	struct ms_userspace_memory_region region = keeper_region();
	static const uint64_t words[2];

	doing("the keeper, refused");
	if (rng_below(&self->rng, 2))
		region.memory_size = 0;
	else
		region.guest_phys_addr *= 2;
	note_states(KEEPER_SPACE, KEEPER, words, 2);
	refuse = true;
	CHECK_EQ(ms_set_user_memory_region(vm, &region, NULL), -EPERM);
	refuse = false;
	grace_over(2);
	self->changes++;
}

/* A transaction gives the keeper another size, and with it another log, which takes the bits of the former one. */
static void do_keeper_resize(void)
{
	uint64_t pages = KEEPER_PAGES * (1 + rng_below(&self->rng, KEEPER_GROWS));
	struct ms_step step = { .kind = MS_STEP_RESIZE, .slot = KEEPER, .memory_size = pages * MS_PAGE_SIZE };
	static const uint64_t words[1];

	doing("the keeper, resized");
	if (pages == keeper_pages)
		return;
	keeper_pages = pages;
	note_states(KEEPER_SPACE, KEEPER, words, 1);
	in_transaction = true;
	CHECK_EQ(ms_change_memslots(vm, KEEPER_SPACE, &step, 1, NULL), 0);
	in_transaction = false;
	grace_over(1);
	self->changes++;
}

/* The marks that a reader had finished before this harvest are in it, or in a harvest since the reader's last round. */
static void check_part(struct worker *reader, uint64_t marked, const uint64_t *words)
{
	uint64_t all = ~(uint64_t)0;

	for (size_t i = 0; i < PART_WORDS; i++) {
		reader->harvested[i] |= words[i];
		all &= reader->harvested[i];
	}
	if (marked == atomic_load_explicit(&reader->found, memory_order_relaxed))
		return;
	if (all != ~(uint64_t)0)
		wrong("lost marks", KEEPER_SPACE, reader->number, 0, 0);
	self->marks += PART_PAGES;
	memset(reader->harvested, 0, sizeof(reader->harvested));
	atomic_store_explicit(&reader->found, marked, memory_order_release);
}

static void do_keeper_harvest(void)
{
	static uint64_t words[KEEPER_GROWS * KEEPER_WORDS];
	uint64_t marked[READERS_MAX];
	size_t nwords;

	doing("the keeper's dirty log");
	for (unsigned i = 0; i < READERS_MAX; i++)
		marked[i] = atomic_load_explicit(&workers[1 + i].marked, memory_order_acquire);
	CHECK_EQ(ms_get_dirty_log(vm, KEEPER_SPACE, KEEPER, words, ARRAY_SIZE(words), &nwords, NULL), 0);
	CHECK_EQ(nwords, keeper_pages / 64);
	CHECK_EQ(ms_clear_dirty_log(vm, KEEPER_SPACE, KEEPER, 0, (uint32_t)keeper_pages, words, nwords, NULL), 0);
	for (unsigned i = 0; i < nr_readers; i++)
		check_part(&workers[1 + i], marked[i], words + i * PART_WORDS);
}

/* ---- other changes ---- */

/* The dual-set steps: logging on or off, kept or rolled back after the swap. */
static void do_steps(uint32_t as_id, uint32_t id, bool keep)
{
	uint64_t old = now_word[as_id][id], word[2] = { old ^ LOGS, old };
	struct ms_slot *slot, *draft = NULL;
	struct ms_memslot values;
	struct ms_update *u;

	doing("the steps of an update");
	note_states(as_id, id, word, keep ? 1 : 2);
	CHECK_EQ(ms_update_begin(vm, as_id, &u, NULL), 0);
	slot = ms_update_find(u, true, id);
	CHECK_EQ(ms_update_value(u, slot, &values), 0);
	values.flags = flags_of(word[0]);
	CHECK_EQ(ms_update_copy(u, slot, &values, &draft, NULL), 0);
	CHECK_EQ(ms_update_replace(u, slot, draft, NULL), 0);
	CHECK_EQ(ms_update_swap(u, NULL), 0);
	grace_over(1);
	if (keep)
		CHECK_EQ(ms_update_replace(u, slot, draft, NULL), 0);
	CHECK_EQ(ms_update_end(u, keep, NULL), 0);
	grace_over(keep ? 1 : 2);
	self->changes++;
}

static void check_sound(void)
{
	struct ms_violation violation = { .text = "" };

	if (!ms_check(vm, &violation, NULL))
		return;
	fprintf(stderr, "torture: %s: %s\n", violation.invariant, violation.text);
	self->wrong++;
}

/* Requests that make no state: one that changes nothing, one that breaks a rule; and ms_check(). */
static void do_nothing(uint32_t as_id, uint32_t id)
{
	struct ms_userspace_memory_region region = region_for(as_id, id, now_word[as_id][id]);

	doing("a change that makes no state");
	if (rng_below(&self->rng, 64) == 0)
		check_sound();
	CHECK_EQ(ms_set_user_memory_region(vm, &region, NULL), 0);
	region.guest_phys_addr++;
	CHECK_EQ(ms_set_user_memory_region(vm, &region, NULL), -EINVAL);
	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, rng_below(&self->rng, 2), NULL), 0);
}

static void change_one(void)
{
	uint32_t as_id = (uint32_t)rng_below(&self->rng, SPACES), id = (uint32_t)rng_below(&self->rng, ids_in_play);
	uint64_t word = now_word[as_id][id], how = rng_below(&self->rng, 100);

	if (!rng_below(&self->rng, 8))
		change_group(as_id);
	else if (!rng_below(&self->rng, 6))
		do_transaction(as_id, id, how < 5);
	else if (!word && (how < 90 || backings_only(as_id)))
		do_create(as_id, id);
	else if (!word)
		do_load(as_id);
	else if (how < 30)
		do_two_swaps(as_id, id, 0, false);
	else if (how < 60)
		do_two_swaps(as_id, id, word ^ AT_SECOND, false);
	else if (how < 65)
		do_two_swaps(as_id, id, how % 2 ? 0 : word ^ AT_SECOND, true);
	else if (how < 80)
		do_flags(as_id, id);
	else if (how < 84)
		do_harvest(as_id, id);
	else if (how < 90)
		do_write(as_id, id);
	else if (how < 96 && !strcmp(backend, "tree"))
		do_steps(as_id, id, how < 93);
	else
		do_nothing(as_id, id);
}

/* During lookups, which find only holes from then on: one more state in each address space. */
static void do_close(void)
{
	doing("the close");
	for (uint32_t as_id = 0; as_id < SPACES; as_id++) {
		uint64_t state = atomic_load_explicit(&noted[as_id], memory_order_relaxed) + 1;

		for (uint32_t id = 0; id < KEEPER; id++)
			note_word(as_id, id, state, 0);
		atomic_store_explicit(&noted[as_id], state, memory_order_release);
	}
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		atomic_fetch_add_explicit(&over[as_id], 1, memory_order_release);
}

void write_on(void)
{
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		uint64_t how = rng_below(&self->rng, 64);

		if (how == 0)
			do_keeper_refused();
		else if (how < 3)
			do_keeper_harvest();
		else if (how == 3)
			do_keeper_resize();
		else if (how == 4)
			flip_policy_or_kernel(&self->rng);
		else if (ids_in_play)
			change_one();
		else
			change_group((uint32_t)rng_below(&self->rng, SPACES));
	}
	check_sound();
	do_close();
}

void writer_prepare(void)
{
	struct ms_userspace_memory_region keeper;

	keeper_pages = KEEPER_PAGES;
	keeper = keeper_region();
	CHECK_EQ(ms_set_user_memory_region(vm, &keeper, NULL), 0);
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	memset(now_word, 0, sizeof(now_word));
	last_incarnation += MEMORY_AREAS; /* no content of a former round is right in this one */
	oracle_reset();
	noted[KEEPER_SPACE] = over[KEEPER_SPACE] = 1;
	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		group_prepare(as_id);
}
