/* SPDX-License-Identifier: MIT */
/*
 * test_vcpu_hint.c - threads that share the hint of a vCPU, in every order that the memory model of C11 allows.
 *
 * vcpu_hint.h is compiled into this program with its atomic operations turned into those of a model.  In the model a
 * location has a list of messages, in modification order, and a thread has a view: the newest message of each location
 * that it must have seen.  A load may return any message that is not older than the view.  A store may go to any place
 * behind the view.  A message of a release has the view of its thread, and an acquire joins it to the view of the
 * reader.  A list of choices decides a run, and the test tries all lists, depth first.
 *
 * The threads run one after the other, the reader last.  This loses no order: the reader stores nothing, so each
 * message that it could have read earlier is still there.  The writers run in each order, and a later one may store
 * behind the view of an earlier one.  Loads of values that are stored later in the run are not modelled.
 */
#include "test.h"

#include <stdatomic.h>

#include "memslot_set.h"

#define NR_LOCATIONS 3u
#define MESSAGES_MAX 8u
#define CHOICES_MAX 64u

static void model_load(const void *at, memory_order order);
static void model_store(const void *at, memory_order order);
static bool model_exchange(const void *at, uint64_t *expected, uint64_t desired, memory_order order);

#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_compare_exchange_strong_explicit
#ifdef __clang__
#define plain_load(at) __c11_atomic_load(at, __ATOMIC_RELAXED)
#define plain_store(at, value) __c11_atomic_store(at, value, __ATOMIC_RELAXED)
#else
#define plain_load(at) __atomic_load_n(at, __ATOMIC_RELAXED)
#define plain_store(at, value) __atomic_store_n(at, value, __ATOMIC_RELAXED)
#endif
#define atomic_load_explicit(at, order) (model_load(at, order), plain_load(at))
#define atomic_store_explicit(at, value, order) (plain_store(at, value), model_store(at, order))
#define atomic_compare_exchange_strong_explicit(at, expected, desired, order, failure) \
	((void)(failure), model_exchange(at, expected, desired, order))

#include "vcpu_hint.h"

/* ---- choices ---- */

static unsigned choice[CHOICES_MAX], alternatives[CHOICES_MAX], nr_choices, depth;

static unsigned choose(unsigned n)
{
	if (depth == nr_choices) {
		CHECK(nr_choices < CHOICES_MAX);
		choice[nr_choices] = 0;
		alternatives[nr_choices++] = n;
	}
	CHECK_EQ(alternatives[depth], n);
	return choice[depth++];
}

/* Moves to the next list of choices.  Returns false after the last one. */
static bool next_choices(void)
{
	while (nr_choices && choice[nr_choices - 1] + 1 == alternatives[nr_choices - 1])
		nr_choices--;
	if (nr_choices)
		choice[nr_choices - 1]++;
	depth = 0;
	return nr_choices;
}

/* ---- the model ---- */

/* The position of a message in each location. */
struct view {
	unsigned newest[NR_LOCATIONS];
};

struct message {
	uint64_t value;
	struct view view;
	bool follows; /* an exchange has stored it: no message may come between it and the one before it */
};

static struct message messages[NR_LOCATIONS][MESSAGES_MAX];
static unsigned nr_messages[NR_LOCATIONS];
static struct view views[4], *self;

static struct vcpu_hint hint;

static unsigned location_of(const void *at)
{
	if (at == &hint.version)
		return 0;
	CHECK(at == &hint.slot || at == &hint.generation);
	return at == &hint.slot ? 1 : 2;
}

static bool acquires(memory_order order)
{
	return order == memory_order_acquire || order == memory_order_acq_rel || order == memory_order_seq_cst;
}

static bool releases(memory_order order)
{
	return order == memory_order_release || order == memory_order_acq_rel || order == memory_order_seq_cst;
}

static void join(struct view *view, const struct view *other)
{
	for (unsigned i = 0; i < NR_LOCATIONS; i++)
		if (view->newest[i] < other->newest[i])
			view->newest[i] = other->newest[i];
}

static void see(unsigned location, unsigned position, memory_order order)
{
	self->newest[location] = position;
	if (acquires(order))
		join(self, &messages[location][position].view);
}

/* Every view that has passed the position keeps its message. */
static void make_room(unsigned location, unsigned position)
{
	for (unsigned i = 0; i < ARRAY_SIZE(views); i++)
		views[i].newest[location] += views[i].newest[location] >= position;
	for (unsigned l = 0; l < NR_LOCATIONS; l++)
		for (unsigned i = 0; i < nr_messages[l]; i++)
			messages[l][i].view.newest[location] += messages[l][i].view.newest[location] >= position;
	CHECK(nr_messages[location] < MESSAGES_MAX);
	for (unsigned i = nr_messages[location]++; i > position; i--)
		messages[location][i] = messages[location][i - 1];
}

static void put(unsigned location, unsigned position, uint64_t value, struct view inherited, memory_order order)
{
	struct message *message = &messages[location][position];

	make_room(location, position);
	self->newest[location] = position;
	*message = (struct message){ .value = value, .view = inherited };
	message->view.newest[location] = position;
	if (releases(order))
		join(&message->view, self);
}

static bool is_followed(unsigned location, unsigned position)
{
	return position + 1 < nr_messages[location] && messages[location][position + 1].follows;
}

static void model_load(const void *at, memory_order order)
{
	unsigned location = location_of(at), oldest = self->newest[location];
	unsigned position = oldest + choose(nr_messages[location] - oldest);

	see(location, position, order);
	memcpy((void *)(uintptr_t)at, &messages[location][position].value, sizeof(uint64_t));
}

static void model_store(const void *at, memory_order order)
{
	unsigned location = location_of(at), places[MESSAGES_MAX], nr = 0;
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	for (unsigned i = self->newest[location]; i < nr_messages[location]; i++)
		if (!is_followed(location, i))
			places[nr++] = i + 1;
	put(location, places[choose(nr)], value, (struct view){ 0 }, order);
}

static bool model_exchange(const void *at, uint64_t *expected, uint64_t desired, memory_order order)
{
	unsigned location = location_of(at), places[MESSAGES_MAX], nr = 0, position;
	const struct message *message;

	for (unsigned i = self->newest[location]; i < nr_messages[location]; i++)
		if (messages[location][i].value != *expected || !is_followed(location, i))
			places[nr++] = i;
	position = places[choose(nr)];
	message = &messages[location][position];
	see(location, position, message->value == *expected ? order : memory_order_relaxed);
	if (message->value != *expected) {
		*expected = message->value;
		return false;
	}
	put(location, position + 1, desired, message->view, order); /* it goes on with the release sequence */
	messages[location][position + 1].follows = true;
	return true;
}

/* ---- runs ---- */

#define NR_GENERATIONS 3
static struct memslot slots[NR_GENERATIONS]; /* by generation */
static uint64_t runs, hits, stores, bypasses;

/* Slot and generation 0 are stored, and every thread has seen that. */
static void begin_run(void)
{
	const uint64_t first[NR_LOCATIONS] = { 0, (uintptr_t)&slots[0], 0 };

	memset(views, 0, sizeof(views));
	for (unsigned i = 0; i < NR_LOCATIONS; i++) {
		messages[i][0] = (struct message){ .value = first[i] };
		nr_messages[i] = 1;
	}
}

static void store_hint(struct view *thread, uint64_t generation)
{
	self = thread;
	if (vcpu_hint_store(&hint, generation, &slots[generation]))
		stores++;
	else
		bypasses++;
}

static void read_hint(struct view *thread, uint64_t generation)
{
	struct memslot *slot;

	self = thread;
	if (!vcpu_hint_read(&hint, generation, &slot))
		return;
	CHECK(slot == &slots[generation]);
	hits++;
}

static uint64_t last_value(unsigned location)
{
	return messages[location][nr_messages[location] - 1].value;
}

/* After the last store the hint is a pair, and another thread can store one. */
static void check_at_rest(void)
{
	CHECK_EQ(last_value(0) % 2, 0);
	CHECK_EQ(last_value(1), (uintptr_t)&slots[last_value(2)]);
}

/* Each writer stores its generation and the slot of that generation.  Then the reader looks for `wanted`. */
static void try_all(const uint64_t *writers, unsigned nr, uint64_t wanted)
{
	do {
		begin_run();
		for (unsigned i = 0; i < nr; i++)
			store_hint(&views[i], writers[i]);
		check_at_rest();
		read_hint(&views[nr], wanted);
		runs++;
	} while (next_choices());
}

int main(int argc, char **argv)
{
	static const uint64_t writers[][3] = { { 1 }, { 1, 2 }, { 1, 0 }, { 1, 1 }, { 1, 2, 0 } };
	static const unsigned nr[] = { 1, 2, 2, 2, 3 };

	test_init(argc, argv, 60);
	for (unsigned i = 0; i < ARRAY_SIZE(nr); i++)
		for (uint64_t wanted = 0; wanted < NR_GENERATIONS; wanted++)
			try_all(writers[i], nr[i], wanted);
	CHECK(hits && stores && bypasses);
	return test_done("the hint of a vCPU", runs, "runs");
}
