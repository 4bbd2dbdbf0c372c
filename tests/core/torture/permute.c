/* SPDX-License-Identifier: MIT */
/*
 * permute.c - transactions that permute the members of the group (oracle.h).
 *
 * Each member takes the place of another one.  In no state is one of them INVALID, and every state has all four.  So a
 * reader that sees an intermediate state gets an answer that is right in no state.
 *
 * Most transactions permute the members in the places that they have.  Others move them into the free place too, and
 * split, merge, resize or replace a member, or change its log, in the same transaction.  Some are refused.
 */
#include "writer.h"

#include <errno.h>

uint32_t orders_made;

static uint64_t place_of_member(const struct transaction *t, uint32_t member)
{
	return place_of_slot(t->word[GROUP + member]);
}

static bool is_part_of(uint64_t word, uint32_t member)
{
	return word & PRESENT && member_of(word) == member;
}

/* ---- the steps ---- */

static void swap_places(uint64_t *a, uint64_t *b)
{
	uint64_t place = *a;

	*a = *b;
	*b = place;
}

/* The places of the members after the transaction, and the free one. */
static void draw_places(const struct transaction *t, uint64_t place[GROUP_PLACES])
{
	uint64_t n = rng_below(&self->rng, 4) ? MEMBERS : GROUP_PLACES;

	place[MEMBERS] = GROUP_PLACES * (GROUP_PLACES - 1) / 2;
	for (uint32_t member = 0; member < MEMBERS; member++) {
		place[member] = place_of_member(t, member);
		place[MEMBERS] -= place[member];
	}
	for (uint64_t i = n - 1; i > 0; i--)
		swap_places(&place[i], &place[rng_below(&self->rng, i + 1)]);
}

static void add_permutation(struct transaction *t)
{
	uint64_t place[GROUP_PLACES];

	draw_places(t, place);
	for (uint32_t id = GROUP; id <= UPPER_PART; id++) {
		uint64_t word = t->word[id];

		if (word && place_of_slot(word) != place[member_of(word)])
			add_move(t, id, with_field(word, PLACE_AT, 3, place[member_of(word)]));
	}
}

static void add_split(struct transaction *t, uint32_t member)
{
	uint64_t word = t->word[GROUP + member];
	struct ms_step *step = add_step(t, MS_STEP_SPLIT, GROUP + member);

	step->other = UPPER_PART;
	step->guest_phys_addr = (base_of(GROUP + member, word) + PART_BEGIN) * MS_PAGE_SIZE;
	t->word[UPPER_PART] = with_field(word, FIRST_AT, 6, PART_BEGIN);
	t->word[GROUP + member] = with_field(word, LAST_AT, 6, PART_BEGIN - 1);
}

static void add_merge(struct transaction *t)
{
	uint32_t member = member_of(t->word[UPPER_PART]);

	add_step(t, MS_STEP_MERGE, GROUP + member)->other = UPPER_PART;
	t->word[GROUP + member] = with_field(t->word[GROUP + member], LAST_AT, 6, last_of(t->word[UPPER_PART]));
	t->word[UPPER_PART] = 0;
}

/* The last page of the member is another one of its upper half. */
static void add_resize(struct transaction *t, uint32_t member)
{
	uint32_t id = is_part_of(t->word[UPPER_PART], member) ? UPPER_PART : GROUP + member;
	uint64_t word = with_field(t->word[id], LAST_AT, 6, PART_BEGIN + rng_below(&self->rng, PART_BEGIN));

	add_step(t, MS_STEP_RESIZE, id)->memory_size = npages_of(word) * MS_PAGE_SIZE;
	t->word[id] = word;
}

static void add_flags(struct transaction *t, uint32_t member)
{
	for (uint32_t id = GROUP; id <= UPPER_PART; id++) {
		if (!is_part_of(t->word[id], member))
			continue;
		t->word[id] ^= LOGS;
		add_step(t, MS_STEP_SET_FLAGS, id)->flags = flags_of(t->word[id]);
	}
}

static uint64_t new_member(uint32_t member, uint64_t place, uint64_t flags)
{
	uint64_t word = PRESENT | GROUPED | new_incarnation() | flags;

	word = with_field(word, MEMBER_AT, 2, member);
	return with_field(with_field(word, PLACE_AT, 3, place), LAST_AT, 6, PLACE_PAGES - 1);
}

/* A new slot with the id of the member takes its place, or the place that the transaction moved it to. */
static void add_replacement(struct transaction *t, uint32_t member)
{
	uint64_t word = t->word[GROUP + member];

	for (uint32_t id = GROUP; id <= UPPER_PART; id++)
		if (is_part_of(t->word[id], member)) {
			add_step(t, MS_STEP_DELETE, id);
			t->word[id] = 0;
		}
	add_create(t, GROUP + member, new_member(member, place_of_slot(word), word & (LOGS | READONLY | BACKED)));
}

static void add_change_of_one(struct transaction *t)
{
	uint32_t member = (uint32_t)rng_below(&self->rng, MEMBERS);
	uint64_t how = rng_below(&self->rng, 5);

	if (how == 0)
		add_resize(t, member);
	else if (how == 1)
		add_flags(t, member);
	else if (how == 2)
		add_replacement(t, member);
	else if (t->word[UPPER_PART])
		add_merge(t);
	else
		add_split(t, member);
}

/* One member moves to the place of another, which stays there. */
static void add_conflict(struct transaction *t)
{
	uint32_t a = (uint32_t)rng_below(&self->rng, MEMBERS);
	uint32_t b = (a + 1 + (uint32_t)rng_below(&self->rng, MEMBERS - 1)) % MEMBERS;
	uint64_t word = t->word[GROUP + a];

	add_move(t, GROUP + a, with_field(word, PLACE_AT, 3, place_of_member(t, b)));
}

/* ---- the transactions ---- */

/* The number of the order of the members, below 24: each digit counts the members behind that have a lower place. */
static unsigned order_of(uint32_t as_id)
{
	unsigned order = 0;

	for (uint32_t i = 0; i < MEMBERS; i++) {
		unsigned lower = 0;

		for (uint32_t j = i + 1; j < MEMBERS; j++)
			lower += place_of_slot(now_word[as_id][GROUP + j]) < place_of_slot(now_word[as_id][GROUP + i]);
		order = order * (MEMBERS - i) + lower;
	}
	return order;
}

static void permute(uint32_t as_id)
{
	uint64_t how = rng_below(&self->rng, 16);
	struct transaction t;

	doing("a permutation");
	begin_transaction(&t, as_id);
	if (how < 4)
		add_change_of_one(&t);
	add_permutation(&t);
	if (how >= 4 && how < 8)
		add_change_of_one(&t);
	if (how == 15)
		add_conflict(&t);
	carry_out(&t, how == 15 ? -EEXIST : how == 14 ? -EPERM : 0);
	self->permutations += how < 14 && t.nr;
	self->changes++;
	orders_made |= (uint32_t)1 << order_of(as_id);
}

/* A page of a member that the writer has written is in its log after the permutation. */
static void permute_written(uint32_t as_id)
{
	uint32_t id = GROUP + (uint32_t)rng_below(&self->rng, MEMBERS);
	uint64_t before = now_word[as_id][id], after, page = rng_below(&self->rng, PART_BEGIN);
	bool writes = before & LOGS && before & BACKED && !(before & READONLY);

	if (writes)
		CHECK_EQ(write_words(as_id, id, page * MS_PAGE_SIZE, 8), 0);
	permute(as_id);
	after = now_word[as_id][id];
	if (writes && after & LOGS && incarnation_of(after) == incarnation_of(before) &&
	    !(harvest(as_id, id) >> page & 1))
		wrong("lost marks of a slot that moved", as_id, id, before, after);
}

void change_group(uint32_t as_id)
{
	uint64_t how = rng_below(&self->rng, 16);

	if (how == 0)
		do_write(as_id, GROUP + (uint32_t)rng_below(&self->rng, MEMBERS));
	else if (how == 1)
		permute_written(as_id);
	else
		permute(as_id);
}

/* One member is READONLY, two have logs; the last two are raw where slots may be raw. */
void group_prepare(uint32_t as_id)
{
	static const uint64_t flags[MEMBERS] = { LOGS, 0, LOGS, READONLY };
	struct transaction t;

	begin_transaction(&t, as_id);
	for (uint32_t member = 0; member < MEMBERS; member++) {
		bool backed = backings_only(as_id) || member < MEMBERS / 2;

		add_create(&t, GROUP + member, new_member(member, member, flags[member] | (backed ? BACKED : 0)));
	}
	carry_out(&t, 0);
}
