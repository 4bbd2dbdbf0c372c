/* SPDX-License-Identifier: MIT */
/*
 * torture.c - readers of every kind beside a writer that never stops; every answer is judged.
 *
 *	torture [-t seconds] [-s seed] [-r readers] [-b backend] [-o record] [-n name]
 *
 * Slots are incarnations: a CREATE makes a new one, whose host address tells its number, id and address space.  Each id
 * has two places in the guest, its own, so that a MOVE never meets another slot.  The writer notes, before it asks for
 * a change, which states readers may see from then on and in which order; the generation of a set is the number of
 * its state.  A reader
 *
 *	inside a section        knows the state by its generation, and each answer has one right value;
 *	outside of sections     has an answer that is right in one state of those from the last that was over before the
 *	                        call to the last that was noted after it: all answers of one call in the same state.
 *
 * A section that sees state s while the grace period after s has ended is wrong by itself: its age is in the histogram.
 *
 * Batches are of all sizes, in place and with strides, and asked by a poll that sleeps or ends them.  One slot keeps its
 * log throughout, and the writer finds each mark that batches make in it.  Whether an index answers, and by which
 * kernel, is for the seed to say, at whatever moment.
 *
 * What is freed is poisoned (memslots_points), so that an answer from there fits no state.  Threads pause at the named
 * points of the engine, as their own streams of the seed say.  A watchdog ends a run in which a thread stands still and
 * says who is where.  Findings are printed as they come; the last line is
 *
 *	torture: N lookups, N changes, N wrong
 */
#include "test.h"

#include "points.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "include/memslots.h"
#include "thread.h"

#define SPACES 2u
#define IDS 24u
#define FEW_IDS 7u /* of the ids, in every other round: as few as an index compares all at once */
#define PLACES (2 * IDS)
#define PLACE_PAGES 64u
#define GFNS ((uint64_t)PLACES * PLACE_PAGES)
#define READERS_MAX 4u
#define BATCH_MAX (2 * MS_BATCH_POLL + 5000)
#define STUCK_SECONDS 60
#define SAID_MAX 20 /* wrong answers that are printed */

/* ---- states ---- */

/* What is known of an id in one state; 0: there is no slot. */
#define PRESENT ((uint64_t)1)
#define LOGS ((uint64_t)2)
#define READONLY ((uint64_t)4)
#define INVALID ((uint64_t)8)
#define AT_SECOND ((uint64_t)16) /* of its two places */
#define INCARNATION_SHIFT 8

static uint64_t incarnation_of(uint64_t word)
{
	return word >> INCARNATION_SHIFT;
}

static uint64_t npages_of(uint64_t word)
{
	return incarnation_of(word) % 3 ? PLACE_PAGES : 1 + incarnation_of(word) % PLACE_PAGES;
}

static uint64_t base_of(uint32_t id, uint64_t word)
{
	return (2 * id + !!(word & AT_SECOND)) * (uint64_t)PLACE_PAGES;
}

/* Bits: page of the slot from 12, id from 18, address space 23, incarnation from 24. */
static uint64_t hva_for(uint32_t as_id, uint32_t id, uint64_t word)
{
	return incarnation_of(word) << 24 | (uint64_t)as_id << 23 | (uint64_t)id << 18;
}

/* One slot more, whose log is there from the first state to the close: no mark in it may be lost.  Each reader has a part
 * of its pages. */
#define KEEPER IDS
#define KEEPER_SPACE 1u
#define KEEPER_GFN ((uint64_t)1 << 30)
#define KEEPER_HVA ((uint64_t)1 << 62)
#define PART_WORDS 80u
#define PART_PAGES (PART_WORDS * 64) /* more than a piece of a batch */
#define KEEPER_WORDS (READERS_MAX * PART_WORDS)
#define KEEPER_PAGES (KEEPER_WORDS * 64)

static uint32_t flags_of(uint64_t word)
{
	return (word & LOGS ? MS_MEM_LOG_DIRTY_PAGES : 0) | (word & READONLY ? MS_MEM_READONLY : 0) |
	       (word & INVALID ? MS_MEMSLOT_INVALID : 0);
}

/* The last HISTORY words of an id, each with the state from which on it holds. */
#define HISTORY 1024u

struct history {
	struct {
		_Atomic uint64_t from, word;
	} entry[HISTORY];
	_Atomic uint64_t nr;
};

static struct history history[SPACES][IDS + 1];
static _Atomic uint64_t noted[SPACES]; /* the last state that readers may see */
static _Atomic uint64_t over[SPACES];  /* the last one whose grace period has passed: none before it can be seen */

static void note_word(uint32_t as_id, uint32_t id, uint64_t from, uint64_t word)
{
	struct history *h = &history[as_id][id];
	uint64_t nr = atomic_load_explicit(&h->nr, memory_order_relaxed);

	atomic_store_explicit(&h->entry[nr % HISTORY].from, from, memory_order_release);
	atomic_store_explicit(&h->entry[nr % HISTORY].word, word, memory_order_release);
	atomic_store_explicit(&h->nr, nr + 1, memory_order_release);
}

/* The word of the id in a state; false: it is no longer known.  An entry that is being written over is seen to be: its
 * new value comes after the count that says so. */
static bool word_in(uint32_t as_id, uint32_t id, uint64_t state, uint64_t *word)
{
	struct history *h = &history[as_id][id];
	uint64_t nr = atomic_load_explicit(&h->nr, memory_order_acquire);

	for (uint64_t i = nr; i-- > 0;) {
		uint64_t from = atomic_load_explicit(&h->entry[i % HISTORY].from, memory_order_acquire);

		*word = atomic_load_explicit(&h->entry[i % HISTORY].word, memory_order_acquire);
		if (atomic_load_explicit(&h->nr, memory_order_acquire) - i >= HISTORY)
			return false;
		if (from <= state)
			return true;
	}
	*word = 0;
	return true;
}

/* ---- the threads ---- */

struct worker {
	cache_aligned pthread_t thread;
	struct rng rng;
	uint32_t number; /* 0: the writer */
	uint32_t until_pause;
	struct ms_vcpu *vcpu;
	uint64_t last_hva; /* of a slot that was found */
	/* For the closing line; the owner's until it has ended. */
	uint64_t lookups, sections, changes, wrong, unjudged, bits, marks, polls, ended;
	uint64_t age[3], batch_age[3];
	/* For the watchdog. */
	_Atomic(const char *) doing;
	_Atomic uint64_t beats;
	_Atomic uint32_t inside, os_id;
	/* Rounds of marks in its part of the keeper: finished, and found by the writer in what he harvested since. */
	_Atomic uint64_t marked, found;
	uint64_t harvested[PART_WORDS]; /* the writer's */
};

static struct worker workers[1 + READERS_MAX];
static unsigned nr_readers;
static _Thread_local struct worker *self;

static struct ms_vm *vm;
static struct ms_vcpu *common_vcpu;
static const char *backend;
static _Atomic uint32_t stop, said;
enum { STOP_WRITING = 1, STOP_READING };
static uint32_t pause_every, ids_in_play;

static void doing(const char *what)
{
	atomic_store_explicit(&self->doing, what, memory_order_relaxed);
	atomic_fetch_add_explicit(&self->beats, 1, memory_order_relaxed);
}

static void take_a_break(struct rng *rng)
{
	uint64_t how = rng_below(rng, 32);
	struct timespec nap = { .tv_nsec = (long)(1000 + rng_below(rng, 60000)) };

	if (how == 0)
		nanosleep(&nap, NULL);
	else if (how < 12)
		sched_yield();
	else
		for (volatile uint64_t spin = rng_below(rng, 400); spin; spin--)
			;
}

/* Neither may change an answer, at whatever moment. */
static void flip_policy_or_kernel(struct rng *rng)
{
	static const enum ms_index_policy policies[] = { MS_INDEX_AUTO, MS_INDEX_EAGER, MS_INDEX_AUTO,
							 MS_INDEX_EAGER, MS_INDEX_OFF,	 MS_INDEX_WALK };
	const char *kernel = ms_simd_name(rng_below(rng, 3));

	ms_set_index_policy(vm, policies[rng_below(rng, ARRAY_SIZE(policies))]);
	if (kernel)
		CHECK_EQ(ms_set_simd(kernel), 0);
}

static void at_point(enum point point)
{
	(void)point;
	if (!self || --self->until_pause)
		return;
	self->until_pause = 1 + (uint32_t)rng_below(&self->rng, 2 * pause_every);
	if (!rng_below(&self->rng, 4))
		flip_policy_or_kernel(&self->rng);
	take_a_break(&self->rng);
}

static void wrong(const char *what, uint32_t as_id, uint64_t number, uint64_t lo, uint64_t hi)
{
	self->wrong++;
	if (atomic_fetch_add(&said, 1) < SAID_MAX)
		fprintf(stderr,
			"torture: WRONG: reader %u, %s of %" PRIu64 " in address space %" PRIu32 ", states %" PRIu64 " to %" PRIu64
			" (%s, %u readers, seed %" PRIu64 ")\n",
			self->number, what, number, as_id, lo, hi, backend, nr_readers, test_seed);
}

/* ---- judging ---- */

/* One call: what was asked, and what came. */
struct call {
	const char *what;
	uint32_t as_id;
	uint64_t lo, hi; /* the states in which it may be right */
	uint64_t begun;  /* the last state that was noted when it began */
	bool write;
	size_t n;
	uint64_t *in, *out; /* BATCH_MAX of each */
	int32_t *ids;
	ptrdiff_t step; /* of a batch: its first value is at place `at`, the next ones `step` places on */
	size_t at;
	uint64_t low;      /* bits of an address below its frame */
	bool ended;        /* by its poll */
	uint32_t sections; /* in which it was made */
	struct ms_memslot slot[PLACES + 1];
	uint64_t start, end;
};

static struct call *new_call(void)
{
	struct call *c = calloc(1, sizeof(*c));

	CHECK(c);
	c->in = calloc(BATCH_MAX, sizeof(*c->in));
	c->out = calloc(BATCH_MAX, sizeof(*c->out));
	c->ids = calloc(BATCH_MAX, sizeof(*c->ids));
	CHECK(c->in && c->out && c->ids);
	return c;
}

static void free_call(struct call *c)
{
	free(c->in);
	free(c->out);
	free(c->ids);
	free(c);
}

static size_t place_of(const struct call *c, size_t i)
{
	return c->at + (size_t)((ptrdiff_t)i * c->step);
}

enum verdict { RIGHT, NOT, UNKNOWN };
typedef enum verdict judge_fn(const struct call *call, uint64_t state);

/* The slot that has the gfn in the state: *word 0 for a hole. */
static bool at_gfn(uint32_t as_id, uint64_t gfn, uint64_t state, uint32_t *id, uint64_t *word)
{
	uint64_t place = gfn / PLACE_PAGES;

	*word = 0;
	*id = (uint32_t)(place / 2);
	if (place >= PLACES)
		return true;
	if (!word_in(as_id, *id, state, word))
		return false;
	if (place % 2 != !!(*word & AT_SECOND) || gfn % PLACE_PAGES >= npages_of(*word))
		*word = 0;
	return true;
}

static uint64_t right_hva(uint32_t as_id, uint32_t id, uint64_t gfn, uint64_t word, bool write)
{
	if (!(word & PRESENT) || word & INVALID)
		return MS_HVA_ERR_BAD;
	if (write && word & READONLY)
		return MS_HVA_ERR_RO_BAD;
	return hva_for(as_id, id, word) + gfn % PLACE_PAGES * MS_PAGE_SIZE;
}

static enum verdict judge_hvas(const struct call *c, uint64_t state)
{
	for (size_t i = 0; i < c->n; i++) {
		size_t at = place_of(c, i);
		uint64_t word, hva;
		uint32_t id;

		if (!at_gfn(c->as_id, c->in[at], state, &id, &word))
			return UNKNOWN;
		hva = right_hva(c->as_id, id, c->in[at], word, c->write);
		if (c->out[at] != (hva < MS_HVA_ERR_MIN ? hva + c->low : hva))
			return NOT;
	}
	return RIGHT;
}

static enum verdict judge_ids(const struct call *c, uint64_t state)
{
	for (size_t i = 0; i < c->n; i++) {
		size_t at = place_of(c, i);
		uint64_t word;
		uint32_t id;

		if (!at_gfn(c->as_id, c->in[at], state, &id, &word))
			return UNKNOWN;
		if (c->ids[at] != (word & PRESENT && !(word & INVALID) ? (int32_t)id : -1))
			return NOT;
	}
	return RIGHT;
}

static bool is_slot(const struct ms_memslot *slot, uint32_t as_id, uint32_t id, uint64_t word)
{
	return slot->id == id && slot->as_id == as_id && slot->base_gfn == base_of(id, word) &&
	       slot->npages == npages_of(word) && slot->userspace_addr == hva_for(as_id, id, word) &&
	       slot->flags == flags_of(word);
}

/* One slot, or none (n 0), by gfn. */
static enum verdict judge_slot(const struct call *c, uint64_t state)
{
	uint64_t word;
	uint32_t id;

	if (!at_gfn(c->as_id, c->in[0], state, &id, &word))
		return UNKNOWN;
	if (!(word & PRESENT))
		return c->n ? NOT : RIGHT;
	return c->n && is_slot(&c->slot[0], c->as_id, id, word) ? RIGHT : NOT;
}

static enum verdict judge_id(const struct call *c, uint64_t state)
{
	uint64_t word;

	if (!word_in(c->as_id, (uint32_t)c->in[0], state, &word))
		return UNKNOWN;
	if (!(word & PRESENT))
		return c->n ? NOT : RIGHT;
	return c->n && is_slot(&c->slot[0], c->as_id, (uint32_t)c->in[0], word) ? RIGHT : NOT;
}

/* All slots with a frame in [start, end), by gfn. */
static enum verdict judge_gfn_range(const struct call *c, uint64_t state)
{
	size_t nr = 0;

	for (uint32_t place = 0; place < PLACES; place++) {
		uint32_t id = place / 2;
		uint64_t word, base = place * (uint64_t)PLACE_PAGES;

		if (!word_in(c->as_id, id, state, &word))
			return UNKNOWN;
		if (!(word & PRESENT) || place % 2 != !!(word & AT_SECOND))
			continue;
		if (c->start >= c->end || base >= c->end || base + npages_of(word) <= c->start)
			continue;
		if (nr >= c->n || !is_slot(&c->slot[nr++], c->as_id, id, word))
			return NOT;
	}
	return nr == c->n ? RIGHT : NOT;
}

static bool has_byte(uint32_t as_id, uint32_t id, uint64_t word, uint64_t start, uint64_t last)
{
	uint64_t hva = hva_for(as_id, id, word);

	return word & PRESENT && hva <= last && hva + npages_of(word) * MS_PAGE_SIZE > start;
}

/* All slots with a byte in [start, end], by host address. */
static enum verdict judge_hva_range(const struct call *c, uint64_t state)
{
	size_t nr = 0;

	for (uint32_t id = 0; id < IDS; id++) {
		uint64_t word;
		size_t i = 0;

		if (!word_in(c->as_id, id, state, &word))
			return UNKNOWN;
		if (!has_byte(c->as_id, id, word, c->start, c->end))
			continue;
		while (i < c->n && !is_slot(&c->slot[i], c->as_id, id, word))
			i++;
		if (i == c->n || (i && c->slot[i - 1].userspace_addr >= c->slot[i].userspace_addr))
			return NOT;
		nr++;
	}
	return nr == c->n ? RIGHT : NOT;
}

/* How far back a call that many changes overtook is judged. */
#define STATES_MAX 1024u

#define NO_STATE (~(uint64_t)0)

/* The newest of the states from `from` to `last` in which all is right, or NO_STATE. */
static uint64_t state_that_fits(const struct call *c, judge_fn *fn, uint64_t from, uint64_t last, bool *known)
{
	for (uint64_t state = last + 1; state-- > from;) {
		enum verdict verdict = fn(c, state);

		if (verdict == RIGHT)
			return state;
		*known &= verdict == NOT;
	}
	return NO_STATE;
}

static void say_wrong(const struct call *c, judge_fn *fn)
{
	bool known = true;
	uint64_t older = c->lo > 64 ? c->lo - 64 : 0, state = NO_STATE;

	if (c->lo)
		state = state_that_fits(c, fn, older, c->lo - 1, &known);
	wrong(state == NO_STATE ? c->what : "an answer of an older state", c->as_id, c->in[c->at], c->lo, c->hi);
}

/* The state that the answers are of, or NO_STATE. */
static uint64_t judge(const struct call *c, judge_fn *fn, uint64_t answers)
{
	uint64_t from = c->hi - c->lo < STATES_MAX ? c->lo : c->hi - STATES_MAX, state;
	bool known = from == c->lo;

	self->lookups += answers;
	state = state_that_fits(c, fn, from, c->hi, &known);
	if (state != NO_STATE)
		return state;
	if (known)
		say_wrong(c, fn);
	else
		self->unjudged++;
	return NO_STATE;
}

/* ---- readers ---- */

static uint64_t gfns_in_play(void)
{
	return (uint64_t)ids_in_play * 2 * PLACE_PAGES;
}

/* Inside a section: its state; else none. */
struct inside {
	bool is;
	uint64_t state[SPACES];
};

static void begin_call(struct call *c, const struct inside *in, const char *what)
{
	doing(what);
	c->what = what;
	c->as_id = (uint32_t)rng_below(&self->rng, SPACES);
	c->lo = in->is ? in->state[c->as_id] : atomic_load_explicit(&over[c->as_id], memory_order_acquire);
	c->begun = in->is ? c->lo : atomic_load_explicit(&noted[c->as_id], memory_order_acquire);
	c->n = 1;
	c->step = 1;
	c->at = c->low = 0;
	c->in[0] = rng_below(&self->rng, gfns_in_play() + 8);
	c->write = true;
}

static uint64_t end_call(struct call *c, const struct inside *in, judge_fn *fn, uint64_t answers)
{
	c->hi = in->is ? c->lo : atomic_load_explicit(&noted[c->as_id], memory_order_acquire);
	return judge(c, fn, answers);
}

static void note_slot(const struct call *c)
{
	if (c->n)
		self->last_hva = c->slot[0].userspace_addr;
}

static void try_hva(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_gfn_to_hva");
	c->out[0] = ms_gfn_to_hva(vm, c->as_id, c->in[0]);
	end_call(c, in, judge_hvas, 1);
}

static void try_hva_prot(struct call *c, const struct inside *in)
{
	bool writable = false;

	begin_call(c, in, "ms_gfn_to_hva_prot");
	c->write = false;
	c->out[0] = ms_gfn_to_hva_prot(vm, c->as_id, c->in[0], &writable);
	end_call(c, in, judge_hvas, 1);
}

static void try_slot(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_gfn_to_memslot");
	c->n = !ms_gfn_to_memslot(vm, c->as_id, c->in[0], &c->slot[0]);
	end_call(c, in, judge_slot, 1);
	note_slot(c);
}

static void try_id(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_id_to_memslot");
	c->in[0] = rng_below(&self->rng, IDS);
	c->n = !ms_id_to_memslot(vm, c->as_id, (uint32_t)c->in[0], &c->slot[0]);
	end_call(c, in, judge_id, 1);
	note_slot(c);
}

/* Often near the frame before, so that the hint is used. */
static void try_vcpu(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_vcpu_gfn_to_hva");
	c->in[0] = rng_below(&self->rng, 4) ? c->in[0] % 256 : c->in[0];
	CHECK_EQ(ms_vcpu_set_as_id(self->vcpu, c->as_id), 0);
	c->out[0] = ms_vcpu_gfn_to_hva(self->vcpu, c->in[0]);
	end_call(c, in, judge_hvas, 1);
}

static void try_vcpu_slot(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_vcpu_gfn_to_memslot");
	c->in[0] %= 256;
	CHECK_EQ(ms_vcpu_set_as_id(self->vcpu, c->as_id), 0);
	c->n = !ms_vcpu_gfn_to_memslot(self->vcpu, c->in[0], &c->slot[0]);
	end_call(c, in, judge_slot, 1);
}

/* One for all readers, always in address space 0. */
static void try_common_vcpu(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_vcpu_gfn_to_hva of a vCPU in use");
	if (c->as_id)
		return;
	c->in[0] %= 256;
	c->out[0] = ms_vcpu_gfn_to_hva(common_vcpu, c->in[0]);
	end_call(c, in, judge_hvas, 1);
}

/* Mostly short ones; some are of several pieces, a few longer than what is answered between two polls. */
static size_t draw_size(void)
{
	uint64_t how = rng_below(&self->rng, 4096);

	if (how < 4)
		return MS_BATCH_POLL + rng_below(&self->rng, BATCH_MAX - MS_BATCH_POLL);
	if (how < 100)
		return rng_below(&self->rng, 4 * MS_BATCH_PIECE);
	return rng_below(&self->rng, 300);
}

static uint64_t draw_gfn(uint64_t near, size_t i)
{
	if (i % 2)
		return rng_below(&self->rng, 64) ? rng_below(&self->rng, gfns_in_play())
						 : rng_next(&self->rng) >> MS_PAGE_SHIFT;
	return (near + i) % gfns_in_play();
}

/* One after the other, with holes between them, or backwards. */
static void fill_batch(struct call *c, bool gpa)
{
	uint64_t near = rng_below(&self->rng, GFNS);

	c->n = draw_size();
	c->step = 2 * c->n <= BATCH_MAX ? (ptrdiff_t)rng_below(&self->rng, 4) - 1 : 1;
	c->step = c->step ? c->step : 1;
	c->at = c->step < 0 && c->n ? c->n - 1 : 0;
	c->low = gpa ? rng_below(&self->rng, MS_PAGE_SIZE) : 0;
	for (size_t i = 0; i < c->n; i++)
		c->in[place_of(c, i)] = draw_gfn(near, i);
}

/* Outside of sections, unless the call was made in one: yields, sleeps, flips what may be flipped, ends the call. */
static int poll_batch(void *opaque)
{
	struct call *c = opaque;

	self->polls++;
	atomic_fetch_add_explicit(&self->beats, 1, memory_order_relaxed);
	if (thread_self.sections != c->sections)
		wrong("a poll inside a section", c->as_id, thread_self.sections, c->lo, c->lo);
	if (!rng_below(&self->rng, 4))
		take_a_break(&self->rng);
	if (!rng_below(&self->rng, 8))
		flip_policy_or_kernel(&self->rng);
	c->ended = !rng_below(&self->rng, 32);
	return c->ended;
}

static struct ms_batch batch_of(struct call *c, const uint64_t *in, void *out, size_t out_size)
{
	ptrdiff_t stride = c->step * 8;

	c->ended = false;
	c->sections = thread_self.sections;
	return (struct ms_batch){
		.in = in + c->at, .in_stride = stride,
		.out = (char *)out + c->at * out_size, .out_stride = c->step * (ptrdiff_t)out_size,
		.n = c->n, .poll = rng_below(&self->rng, 4) ? poll_batch : NULL, .opaque = c,
	};
}

/* Of a batch that its poll ended one piece at least has its answers. */
static void end_batch(struct call *c, const struct inside *in, judge_fn *fn, int r)
{
	uint64_t n = c->n, state;

	if (r != (c->ended ? -EINTR : 0))
		wrong("the result of a batch", c->as_id, (uint64_t)-r, c->lo, c->lo);
	self->ended += c->ended;
	if (c->ended && c->n > MS_BATCH_PIECE)
		c->n = MS_BATCH_PIECE;
	state = end_call(c, in, fn, n);
	self->batch_age[state == NO_STATE ? 2 : state > c->begun]++;
}

static void try_batch(struct call *c, const struct inside *in)
{
	bool in_place = !rng_below(&self->rng, 4);
	struct ms_batch batch;

	begin_call(c, in, "ms_gfn_to_hva_many");
	fill_batch(c, false);
	c->write = rng_below(&self->rng, 2);
	for (size_t i = 0; in_place && i < c->n; i++)
		c->out[place_of(c, i)] = c->in[place_of(c, i)];
	batch = batch_of(c, in_place ? c->out : c->in, c->out, 8);
	end_batch(c, in, judge_hvas, ms_gfn_to_hva_many(vm, c->as_id, &batch, c->write));
}

/* In place. */
static void try_gpa_batch(struct call *c, const struct inside *in)
{
	struct ms_batch batch;

	begin_call(c, in, "ms_gpa_to_hva_many");
	fill_batch(c, true);
	for (size_t i = 0; i < c->n; i++)
		c->out[place_of(c, i)] = c->in[place_of(c, i)] << MS_PAGE_SHIFT | c->low;
	batch = batch_of(c, c->out, c->out, 8);
	end_batch(c, in, judge_hvas, ms_gpa_to_hva_many(vm, c->as_id, &batch, true));
}

static void try_id_batch(struct call *c, const struct inside *in)
{
	struct ms_batch batch;

	begin_call(c, in, "ms_gfn_to_slot_id_many");
	fill_batch(c, false);
	batch = batch_of(c, c->in, c->ids, 4);
	end_batch(c, in, judge_ids, ms_gfn_to_slot_id_many(vm, c->as_id, &batch));
}

static void try_gfn_range(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_memslots_in_gfn_range");
	c->start = c->in[0];
	c->end = c->start + rng_below(&self->rng, GFNS / 2);
	c->n = ms_memslots_in_gfn_range(vm, c->as_id, c->start, c->end, c->slot, PLACES);
	end_call(c, in, judge_gfn_range, 1);
}

static void try_all(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_memslots");
	c->start = 0;
	c->end = ~(uint64_t)0;
	c->n = ms_memslots(vm, c->as_id, c->slot, PLACES);
	if (c->n && c->slot[c->n - 1].id == KEEPER)
		c->n--;
	end_call(c, in, judge_gfn_range, 1);
	note_slot(c);
}

static void try_hva_range(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_memslots_in_hva_range");
	c->start = rng_below(&self->rng, 2) ? 0 : self->last_hva;
	c->end = rng_below(&self->rng, 2) ? KEEPER_HVA - 1 : c->start + (uint64_t)PLACE_PAGES * MS_PAGE_SIZE * IDS;
	c->n = ms_memslots_in_hva_range(vm, c->as_id, c->start, c->end, c->slot, PLACES);
	end_call(c, in, judge_hva_range, 1);
	note_slot(c);
}

/* The byte is one slot's at most: the address says whose. */
static void try_hva_to_gfns(struct call *c, const struct inside *in)
{
	uint64_t hva = self->last_hva + rng_below(&self->rng, PLACE_PAGES) * MS_PAGE_SIZE + 7;
	struct ms_hva_hit hit[2];

	begin_call(c, in, "ms_hva_to_gfns");
	c->as_id = hva >> 23 & 1;
	c->lo = in->is ? in->state[c->as_id] : atomic_load_explicit(&over[c->as_id], memory_order_acquire);
	c->start = c->end = hva;
	c->n = ms_hva_to_gfns(vm, hva, hit, ARRAY_SIZE(hit));
	if (c->n > 1)
		wrong("ms_hva_to_gfns: too many", c->as_id, hva, c->lo, c->lo);
	c->n = c->n > 1 ? 1 : c->n;
	c->slot[0] = hit[0].slot;
	if (c->n && hit[0].gfn - hit[0].slot.base_gfn != (hva - hit[0].slot.userspace_addr) >> MS_PAGE_SHIFT)
		wrong("ms_hva_to_gfns: gfn", c->as_id, hva, c->lo, c->lo);
	end_call(c, in, judge_hva_range, 1);
}

static enum verdict judge_visible(const struct call *c, uint64_t state)
{
	uint64_t word;
	uint32_t id;

	if (!at_gfn(c->as_id, c->in[0], state, &id, &word))
		return UNKNOWN;
	return (bool)c->out[0] == (word & PRESENT && !(word & INVALID)) ? RIGHT : NOT;
}

static void try_visible(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_is_visible_gfn");
	c->out[0] = ms_is_visible_gfn(vm, c->as_id, c->in[0]);
	end_call(c, in, judge_visible, 1);
}

static void try_mark(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_mark_page_dirty");
	ms_mark_page_dirty(vm, c->as_id, c->in[0]);
	fill_batch(c, false);
	ms_mark_page_dirty_many(vm, c->as_id, &(struct ms_batch){ c->in + c->at, 8 * c->step, .n = c->n });
}

/* Each page of the reader's part once, between others.  The writer finds them all before the next round. */
static void try_mark_part(struct call *c, const struct inside *in)
{
	uint64_t first = KEEPER_GFN + (self->number - 1) * (uint64_t)PART_PAGES;
	uint64_t start = rng_below(&self->rng, PART_PAGES);
	uint64_t round = atomic_load_explicit(&self->marked, memory_order_relaxed);
	struct ms_batch batch;

	if (round != atomic_load_explicit(&self->found, memory_order_acquire))
		return;
	begin_call(c, in, "ms_mark_page_dirty_many");
	c->n = 2 * PART_PAGES;
	for (size_t i = 0; i < c->n; i++)
		c->in[i] = i % 2 ? rng_below(&self->rng, GFNS) : first + (start + i / 2 * 31) % PART_PAGES;
	batch = batch_of(c, c->in, NULL, 0);
	if (ms_mark_page_dirty_many(vm, KEEPER_SPACE, &batch)) { /* its poll ended it: all once more */
		batch.poll = NULL;
		CHECK_EQ(ms_mark_page_dirty_many(vm, KEEPER_SPACE, &batch), 0);
	}
	atomic_store_explicit(&self->marked, round + 1, memory_order_release);
}

static uint64_t state_of(uint64_t generation)
{
	bool under_way = generation & MS_GEN_UPDATE_IN_PROGRESS;

	return (generation & ~MS_GEN_UPDATE_IN_PROGRESS) / SPACES + under_way;
}

typedef void try_fn(struct call *c, const struct inside *in);

static try_fn *const tries[] = {
	try_hva, try_slot, try_vcpu, try_batch, try_hva, try_vcpu, try_batch, try_id_batch,
	try_hva_prot, try_id, try_vcpu_slot, try_common_vcpu, try_gpa_batch, try_gfn_range, try_all, try_hva_range,
	try_hva_to_gfns, try_visible, try_mark, try_batch, try_mark_part,
};

static void try_one(struct call *c, const struct inside *in)
{
	tries[rng_below(&self->rng, ARRAY_SIZE(tries))](c, in);
}

static void read_states(struct inside *in)
{
	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		in->state[as_id] = state_of(ms_generation(vm, as_id));
}

/* At its end the section's state is the newest that is settled, or one newer that is not; an older one is wrong. */
static void check_section(const struct inside *in)
{
	struct inside now;

	read_states(&now);
	for (uint32_t as_id = 0; as_id < SPACES; as_id++) {
		uint64_t done = atomic_load_explicit(&over[as_id], memory_order_acquire), state = in->state[as_id];
		uint64_t age = done + 1 - state;

		if (now.state[as_id] != state)
			wrong("the generation of a section", as_id, 0, state, now.state[as_id]);
		if (age > 1)
			wrong("the age of a section", as_id, age, state, done);
		self->age[age > 1 ? 2 : age]++;
	}
}

static void try_section(struct call *c)
{
	struct inside in = { .is = true };

	doing("a section");
	CHECK_EQ(ms_read_lock(vm), 0);
	atomic_store_explicit(&self->inside, 1, memory_order_relaxed);
	read_states(&in);
	for (uint64_t i = rng_below(&self->rng, 6); i-- > 0;) {
		CHECK_EQ(ms_read_lock(vm), 0);
		try_one(c, &in);
		ms_read_unlock(vm);
	}
	try_one(c, &in);
	check_section(&in);
	ms_read_unlock(vm);
	atomic_store_explicit(&self->inside, 0, memory_order_relaxed);
	self->sections++;
}

/* A thread that lives for a few calls, in its maker's name, who waits for it; half of them end inside a section. */
static void *live_shortly(void *maker)
{
	struct inside outside = { 0 };
	struct call *call = new_call();

	self = maker;
	for (int i = 0; i < 8; i++)
		try_one(call, &outside);
	if (rng_below(&self->rng, 2))
		CHECK_EQ(ms_read_lock(vm) | ms_read_lock(vm), 0);
	free_call(call);
	return NULL;
}

static void make_a_thread(void)
{
	pthread_t thread;

	doing("a thread of its own");
	CHECK_EQ(pthread_create(&thread, NULL, live_shortly, self), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

static void take_another_vcpu(void)
{
	struct ms_vcpu *another;

	doing("another vCPU");
	if (ms_vcpu_create(vm, &another, NULL)) /* the VM has been closed */
		return;
	ms_vcpu_destroy(self->vcpu);
	self->vcpu = another;
}

static void read_on(void)
{
	static const struct inside outside;
	struct call *call = new_call();

	while (atomic_load_explicit(&stop, memory_order_relaxed) < STOP_READING) {
		uint64_t how = rng_below(&self->rng, 8192);

		if (how == 0)
			make_a_thread();
		else if (how == 1)
			take_another_vcpu();
		else if (how % 8)
			try_one(call, &outside);
		else
			try_section(call);
	}
	free_call(call);
}

/* ---- the writer ---- */

static uint64_t now_word[SPACES][IDS + 1]; /* the writer's own view */
static uint64_t last_incarnation;
static bool refuse;

/* A change of one slot, through `nr` states. */
struct plan {
	uint32_t as_id, id;
	uint64_t first; /* the state before */
	unsigned nr;
};

static struct plan plan; /* the one that is being carried out */

static void note_states(uint32_t as_id, uint32_t id, const uint64_t *word, unsigned nr)
{
	plan = (struct plan){ as_id, id, atomic_load_explicit(&noted[as_id], memory_order_relaxed), nr };
	for (unsigned i = 0; i < nr; i++)
		note_word(as_id, id, plan.first + 1 + i, word[i]);
	atomic_store_explicit(&noted[as_id], plan.first + nr, memory_order_release);
	now_word[as_id][id] = word[nr - 1];
}

/* The i-th state of the plan has had its grace period. */
static void is_over(unsigned i)
{
	atomic_store_explicit(&over[plan.as_id], plan.first + i, memory_order_release);
}

static void on_flush(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old)
{
	(void)opaque;
	CHECK(active->flags & MS_MEMSLOT_INVALID && !(old->flags & MS_MEMSLOT_INVALID));
	is_over(1);
}

static int on_prepare(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	return refuse ? -EPERM : 0;
}

static const struct ms_listener listener = { .prepare = on_prepare, .flush = on_flush };

static struct ms_userspace_memory_region region_for(uint32_t as_id, uint32_t id, uint64_t word)
{
	return (struct ms_userspace_memory_region){
		.slot = id, .as_id = as_id, .flags = flags_of(word), .guest_memfd = -1,
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
	is_over(nr);
	self->changes++;
}

static uint64_t new_word(void)
{
	uint64_t how = rng_next(&self->rng);

	return PRESENT | ++last_incarnation << INCARNATION_SHIFT | (how & (LOGS | AT_SECOND)) | (how % 7 ? 0 : READONLY);
}

static void do_create(uint32_t as_id, uint32_t id)
{
	uint64_t word = new_word();

	doing("a create");
	change(as_id, id, &word, 1, word, 0);
}

/* DELETE and MOVE, made or refused: through INVALID. */
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

/* The same id and address space, all that are not there, in one swap. */
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
		slots[nr++] = (struct ms_memslot){ base_of(id, word), npages_of(word), hva_for(as_id, id, word), id, as_id,
						   flags_of(word), 0 };
	}
	if (!nr)
		return;
	atomic_store_explicit(&noted[as_id], plan.first + 1, memory_order_release);
	CHECK_EQ(ms_load_memslots(vm, as_id, slots, nr, NULL), 0);
	is_over(1);
	self->changes++;
}

static void do_harvest(uint32_t as_id, uint32_t id)
{
	bool logs = now_word[as_id][id] & LOGS;
	uint64_t word = 0, npages = npages_of(now_word[as_id][id]);
	size_t nwords;

	doing("a dirty log");
	CHECK_EQ(ms_get_dirty_log(vm, as_id, id, &word, 1, &nwords, NULL), logs ? 0 : -ENOENT);
	CHECK(npages == 64 || !(word >> npages));
	CHECK_EQ(ms_clear_dirty_log(vm, as_id, id, 0, (uint32_t)npages, &word, 1, NULL), logs ? 0 : -ENOENT);
	self->bits += (uint64_t)__builtin_popcountll(word);
}

static struct ms_userspace_memory_region keeper_region(void)
{
	return (struct ms_userspace_memory_region){
		.slot = KEEPER, .as_id = KEEPER_SPACE, .flags = MS_MEM_LOG_DIRTY_PAGES, .guest_memfd = -1,
		.guest_phys_addr = KEEPER_GFN * MS_PAGE_SIZE,
		.memory_size = KEEPER_PAGES * (uint64_t)MS_PAGE_SIZE,
		.userspace_addr = KEEPER_HVA,
	};
}

/* A DELETE or a MOVE that is refused: its log is there throughout, INVALID or not. */
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
	is_over(2);
	self->changes++;
}

/* What a reader had marked before this harvest began is in it, or in those since the reader's last round. */
static void found_part(struct worker *reader, uint64_t marked, const uint64_t *words)
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
	static uint64_t words[KEEPER_WORDS];
	uint64_t marked[READERS_MAX];
	size_t nwords;

	doing("the keeper's dirty log");
	for (unsigned i = 0; i < READERS_MAX; i++)
		marked[i] = atomic_load_explicit(&workers[1 + i].marked, memory_order_acquire);
	CHECK_EQ(ms_get_dirty_log(vm, KEEPER_SPACE, KEEPER, words, KEEPER_WORDS, &nwords, NULL), 0);
	CHECK_EQ(nwords, KEEPER_WORDS);
	CHECK_EQ(ms_clear_dirty_log(vm, KEEPER_SPACE, KEEPER, 0, KEEPER_PAGES, words, KEEPER_WORDS, NULL), 0);
	for (unsigned i = 0; i < nr_readers; i++)
		found_part(&workers[1 + i], marked[i], words + i * PART_WORDS);
}

/* The dual-set steps: logging on or off, kept or taken back after the swap. */
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
	is_over(1);
	if (keep)
		CHECK_EQ(ms_update_replace(u, slot, draft, NULL), 0);
	CHECK_EQ(ms_update_end(u, keep, NULL), 0);
	is_over(keep ? 1 : 2);
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

/* What makes no state: a request that is refused by the rules, one that changes nothing, a look at all invariants. */
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

	if (!word && how < 90)
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
	else if (how < 90)
		do_harvest(as_id, id);
	else if (how < 96 && !strcmp(backend, "tree"))
		do_steps(as_id, id, how < 93);
	else
		do_nothing(as_id, id);
}

/* Beside the readers, who find holes from then on: one state more in each address space. */
static void do_close(void)
{
	doing("the close");
	for (uint32_t as_id = 0; as_id < SPACES; as_id++) {
		uint64_t state = atomic_load_explicit(&noted[as_id], memory_order_relaxed) + 1;

		for (uint32_t id = 0; id < IDS; id++)
			note_word(as_id, id, state, 0);
		atomic_store_explicit(&noted[as_id], state, memory_order_release);
	}
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	for (uint32_t as_id = 0; as_id < SPACES; as_id++)
		atomic_fetch_add_explicit(&over[as_id], 1, memory_order_release);
}

static void write_on(void)
{
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		uint64_t how = rng_below(&self->rng, 64);

		if (how == 0)
			do_keeper_refused();
		else if (how == 1)
			do_keeper_harvest();
		else if (how == 2)
			flip_policy_or_kernel(&self->rng);
		else
			change_one();
	}
	check_sound();
	do_close();
}

/* ---- the watchdog ---- */

static const char *name_of(uint32_t os_id)
{
	static const char *const names[] = { "the writer", "reader 1", "reader 2", "reader 3", "reader 4" };

	for (unsigned i = 0; i <= nr_readers; i++)
		if (atomic_load(&workers[i].os_id) == os_id)
			return names[i];
	return "nobody known";
}

static void on_stall(void *opaque, const struct ms_stall *stall)
{
	(void)opaque;
	fprintf(stderr, "torture: the writer has waited %" PRIu64 " ms for the section of %s\n", stall->waited_ns / 1000000,
		name_of(stall->thread_id));
}

static void say_who_is_where(void)
{
	fprintf(stderr, "torture: a thread has not moved for %d s (%s, seed %" PRIu64 ")\n", STUCK_SECONDS, backend, test_seed);
	for (unsigned i = 0; i <= nr_readers; i++)
		fprintf(stderr, "  %s%s: %s, %" PRIu64 " steps\n", name_of(atomic_load(&workers[i].os_id)),
			atomic_load(&workers[i].inside) ? ", inside a section of its own" : "",
			atomic_load(&workers[i].doing), atomic_load(&workers[i].beats));
	_exit(3);
}

static double seconds_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool all_move(uint64_t *before)
{
	bool moves = true;

	for (unsigned i = 0; i <= nr_readers; i++) {
		uint64_t beats = atomic_load_explicit(&workers[i].beats, memory_order_relaxed);

		moves &= beats != before[i];
		before[i] = beats;
	}
	return moves;
}

static void watch(double seconds)
{
	uint64_t before[1 + READERS_MAX] = { 0 };
	double end = seconds_now() + seconds, looked = seconds_now();
	struct timespec nap = { .tv_nsec = 20 * 1000000 };

	while (seconds_now() < end) {
		nanosleep(&nap, NULL);
		if (seconds_now() - looked < STUCK_SECONDS)
			continue;
		looked = seconds_now();
		if (!all_move(before))
			say_who_is_where();
	}
}

/* ---- a round: one VM, so many readers ---- */

static struct worker total;

static void *work(void *argument)
{
	self = argument;
	atomic_store(&self->os_id, thread_os_id());
	if (self->number)
		read_on();
	else
		write_on();
	atomic_store(&self->doing, "nothing any more");
	return NULL;
}

static void make_vm(void)
{
	struct ms_userspace_memory_region keeper = keeper_region();
	struct ms_config config;

	ms_config_init(&config);
	config.address_spaces = SPACES;
	config.user_mem_slots = IDS + 1;
	config.hva_end_max = (uint64_t)1 << 63;
	config.backend = backend;
	CHECK_EQ(ms_vm_create(&config, &vm), 0);
	CHECK_EQ(ms_set_user_memory_region(vm, &keeper, NULL), 0);
	CHECK_EQ(ms_add_listener(vm, &listener, NULL), 0);
	CHECK_EQ(ms_set_stall_report(vm, STUCK_SECONDS / 4 * 1000, on_stall, NULL, NULL), 0);
	CHECK_EQ(ms_vcpu_create(vm, &common_vcpu, NULL), 0);
	memset(history, 0, sizeof(history));
	memset(now_word, 0, sizeof(now_word));
	memset(noted, 0, sizeof(noted));
	memset(over, 0, sizeof(over));
	noted[KEEPER_SPACE] = over[KEEPER_SPACE] = 1;
}

/* All of them before the first starts: the writer looks at what readers have marked. */
static void prepare(unsigned number, uint64_t stream)
{
	struct worker *w = &workers[number];

	memset(w, 0, sizeof(*w));
	w->number = number;
	w->rng = rng_stream(stream);
	w->until_pause = 1;
	w->doing = "nothing yet";
	CHECK_EQ(ms_vcpu_create(vm, &w->vcpu, NULL), 0);
}

static void add_up(const struct worker *w)
{
	total.lookups += w->lookups;
	total.sections += w->sections;
	total.changes += w->changes;
	total.wrong += w->wrong;
	total.unjudged += w->unjudged;
	total.bits += w->bits;
	total.marks += w->marks;
	total.polls += w->polls;
	total.ended += w->ended;
	for (int i = 0; i < 3; i++) {
		total.age[i] += w->age[i];
		total.batch_age[i] += w->batch_age[i];
	}
}

static uint64_t waits, stalls, indexes, patches, indexed;

static void end_vm(void)
{
	struct ms_stats stats;

	ms_get_stats(vm, &stats);
	waits += stats.grace_waits;
	stalls += stats.stalls;
	indexes += stats.index_builds;
	patches += stats.index_patches;
	indexed += stats.indexed;
	ms_vm_destroy(vm);
}

static void ends_late(int signal_number)
{
	(void)signal_number;
	say_who_is_where();
}

static void join(struct worker *w)
{
	CHECK_EQ(pthread_join(w->thread, NULL), 0);
	ms_vcpu_destroy(w->vcpu);
	add_up(w);
}

static void play_round(uint64_t number, double seconds)
{
	make_vm();
	atomic_store(&stop, 0);
	for (unsigned i = 0; i <= nr_readers; i++)
		prepare(i, number * (1 + READERS_MAX) + i);
	for (unsigned i = 0; i <= nr_readers; i++)
		CHECK_EQ(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
	watch(seconds);
	alarm(STUCK_SECONDS);
	atomic_store(&stop, STOP_WRITING);
	join(&workers[0]);
	nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL); /* readers of a closed VM */
	atomic_store(&stop, STOP_READING);
	for (unsigned i = 1; i <= nr_readers; i++)
		join(&workers[i]);
	alarm(0);
	ms_vcpu_destroy(common_vcpu);
	end_vm();
}

/* ---- the run ---- */

static struct {
	double seconds;
	unsigned readers; /* 0: 1 to 4 in turn */
	const char *backend; /* NULL: all in turn, the tree twice as long */
	const char *record, *name;
} options = { .seconds = 3, .name = "torture" };

static void say_usage(void)
{
	fprintf(stderr, "usage: torture [-t seconds] [-s seed] [-r readers] [-b backend] [-o record] [-n name]\n");
	exit(2);
}

static void read_options(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "t:s:r:b:o:n:")) != -1) {
		switch (option) {
		case 't': options.seconds = strtod(optarg, NULL); break;
		case 's': test_seed = strtoull(optarg, NULL, 0); break;
		case 'r': options.readers = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'b': options.backend = optarg; break;
		case 'o': options.record = optarg; break;
		case 'n': options.name = optarg; break;
		default: say_usage();
		}
	}
	if (optind != argc || options.seconds <= 0 || options.readers > READERS_MAX)
		say_usage();
}

static double weight_of(const char *name)
{
	if (options.backend)
		return !strcmp(name, options.backend);
	return strcmp(name, "tree") ? 1 : 2;
}

static bool plays(unsigned readers)
{
	return !options.readers || options.readers == readers;
}

static double all_weights(void)
{
	double sum = 0;

	for (unsigned readers = 1; readers <= READERS_MAX; readers++)
		for (size_t i = 0; plays(readers) && ms_backend_name(i); i++)
			sum += weight_of(ms_backend_name(i));
	return sum;
}

static void play(void)
{
	static const uint32_t rates[] = { 300, 4000, 40 };
	double unit = options.seconds / all_weights();
	uint64_t round = 0;

	for (nr_readers = 1; nr_readers <= READERS_MAX; nr_readers++)
		for (size_t i = 0; plays(nr_readers) && (backend = ms_backend_name(i)); i++) {
			pause_every = rates[round % ARRAY_SIZE(rates)];
			ids_in_play = round / ARRAY_SIZE(rates) % 2 ? FEW_IDS : IDS;
			if (weight_of(backend) > 0)
				play_round(++round, unit * weight_of(backend));
		}
}

/* Where the tree was played for long there were indexes; else this run has tested none. */
static bool tested_indexes(void)
{
	bool tree = !options.backend || !strcmp(options.backend, "tree");

	return !tree || total.lookups < 1000000 || (indexed && indexes && patches);
}

static void append_record(void)
{
	FILE *record = fopen(options.record, "a");
	char date[32];
	time_t now = time(NULL);

	CHECK(record);
	strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
	if (ftell(record) == 0)
		fprintf(record, "date\tbuild\tseed\tseconds\tlookups\tsections\tchanges\twaits\tstalls\tunder way\tsettled\t"
				"too old\tunjudged\twrong\tindexed\tindexes\tof which derived\tmarks\n");
	fprintf(record, "%s\t%s\t%" PRIu64 "\t%.0f", date, options.name, test_seed, options.seconds);
	fprintf(record, "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64, total.lookups, total.sections,
		total.changes, waits, stalls);
	fprintf(record, "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64, total.age[0], total.age[1],
		total.age[2], total.unjudged, total.wrong);
	fprintf(record, "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\n", indexed, indexes + patches, patches,
		total.marks);
	CHECK_EQ(fclose(record), 0);
}

static void print_sums(void)
{
	printf("  %" PRIu64 " sections; %" PRIu64 " grace periods waited, %" PRIu64 " stalled; sections of a state that was ",
	       total.sections, waits, stalls);
	printf("under way %" PRIu64 ", settled %" PRIu64 ", too old %" PRIu64 "; %" PRIu64 " calls overtaken; %" PRIu64
	       " dirty bits; seed %" PRIu64 "\n",
	       total.age[0], total.age[1], total.age[2], total.unjudged, total.bits, test_seed);
	printf("  batches of a state that was known when they began %" PRIu64 ", of a later one %" PRIu64
	       ", wrong or overtaken %" PRIu64 "; %" PRIu64 " polls, which ended %" PRIu64 "\n",
	       total.batch_age[0], total.batch_age[1], total.batch_age[2], total.polls, total.ended);
	printf("  %" PRIu64 " answers by %" PRIu64 " indexes, %" PRIu64 " of them derived; %" PRIu64 " marks found again\n",
	       indexed, indexes + patches, patches, total.marks);
	printf("torture: %" PRIu64 " lookups, %" PRIu64 " changes, %" PRIu64 " wrong\n", total.lookups, total.changes,
	       total.wrong);
}

int main(int argc, char **argv)
{
	test_init(1, argv, 0); /* it has a watchdog of its own */
	read_options(argc, argv);
	signal(SIGALRM, ends_late);
	point_set_hook(at_point);
	play();
	if (options.record)
		append_record();
	print_sums();
	if (!tested_indexes())
		fprintf(stderr, "torture: no index answered, or none was derived\n");
	return total.wrong || !tested_indexes() ? 1 : 0;
}
