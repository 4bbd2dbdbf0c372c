/* SPDX-License-Identifier: MIT */
/*
 * reader.c - the calls of the readers: every lookup of the header, in sections and outside, in threads of any length.
 *
 * Batches have all sizes, in place and with strides; a poll sleeps, or ends the batch.  The policy and the kernel of
 * indexes change at any moment.  A reader marks each page of its part of the keeper, and waits until the writer has
 * found these marks before it begins again.
 */
#include "reader.h"

#include <errno.h>

/* Outside of sections: the newest state that readers or this thread have seen for certain. */
static void note_lower_bound(struct call *c, const struct inside *in)
{
	uint64_t done = atomic_load_explicit(&over[c->as_id], memory_order_acquire);

	c->lo = done > self->seen[c->as_id] ? done : self->seen[c->as_id];
	if (in->is)
		c->lo = in->state[c->as_id];
}

void begin_call(struct call *c, const struct inside *in, const char *what)
{
	doing(what);
	c->what = what;
	c->as_id = (uint32_t)rng_below(&self->rng, SPACES);
	note_lower_bound(c, in);
	c->begun = in->is ? c->lo : atomic_load_explicit(&noted[c->as_id], memory_order_acquire);
	c->n = 1;
	c->step = 1;
	c->at = c->low = 0;
	c->in[0] = rng_below(&self->rng, gfns_in_play() + 8);
	c->write = true;
}

static void count_grouped(const struct call *c, match_fn *match, uint64_t answers)
{
	if (match == match_id)
		self->grouped += c->in[0] >= GROUP;
	if (match == match_hvas || match == match_ids || match == match_slot || match == match_prot ||
	    match == match_visible)
		for (uint64_t i = 0; i < answers; i++)
			self->grouped += c->in[place_of(c, i)] < GROUP_PLACES * PLACE_PAGES;
}

uint64_t end_call(struct call *c, const struct inside *in, match_fn *match, uint64_t answers)
{
	c->hi = in->is ? c->lo : atomic_load_explicit(&noted[c->as_id], memory_order_acquire);
	count_grouped(c, match, answers);
	return check_call(c, match, answers);
}

void end_call_in(struct call *c, uint64_t state, match_fn *match, uint64_t answers)
{
	if (state < c->lo)
		wrong("an old state", c->as_id, c->in[c->at], c->lo, state);
	c->lo = c->hi = state;
	count_grouped(c, match, answers);
	check_call(c, match, answers);
}

static void note_slot(const struct call *c)
{
	if (c->n)
		self->last_hva = c->slot[rng_below(&self->rng, c->n)].userspace_addr;
}

/* ---- single lookups ---- */

static void try_hva(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_gfn_to_hva");
	c->out[0] = ms_gfn_to_hva(vm, c->as_id, c->in[0]);
	end_call(c, in, match_hvas, 1);
}

static void try_hva_prot(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_gfn_to_hva_prot");
	c->write = false;
	c->writable = rng_below(&self->rng, 2); /* the call must overwrite either value */
	c->out[0] = ms_gfn_to_hva_prot(vm, c->as_id, c->in[0], &c->writable);
	end_call(c, in, match_prot, 1);
}

static void try_slot(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_gfn_to_memslot");
	c->n = !ms_gfn_to_memslot(vm, c->as_id, c->in[0], &c->slot[0]);
	end_call(c, in, match_slot, 1);
	note_slot(c);
}

static void try_id(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_id_to_memslot");
	c->in[0] = rng_below(&self->rng, 2) ? rng_below(&self->rng, KEEPER) : GROUP + rng_below(&self->rng, MEMBERS);
	c->n = !ms_id_to_memslot(vm, c->as_id, (uint32_t)c->in[0], &c->slot[0]);
	end_call(c, in, match_id, 1);
	note_slot(c);
}

/* Often near the last frame, so that the vCPU's hint is used. */
static void try_vcpu(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_vcpu_gfn_to_hva");
	c->in[0] = rng_below(&self->rng, 4) ? c->in[0] % NEAR_GFNS : c->in[0];
	CHECK_EQ(ms_vcpu_set_as_id(self->vcpu, c->as_id), 0);
	c->out[0] = ms_vcpu_gfn_to_hva(self->vcpu, c->in[0]);
	end_call(c, in, match_hvas, 1);
}

static void try_vcpu_slot(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_vcpu_gfn_to_memslot");
	c->in[0] %= NEAR_GFNS;
	CHECK_EQ(ms_vcpu_set_as_id(self->vcpu, c->as_id), 0);
	c->n = !ms_vcpu_gfn_to_memslot(self->vcpu, c->in[0], &c->slot[0]);
	end_call(c, in, match_slot, 1);
}

/* One vCPU for all readers, always in address space 0. */
static void try_common_vcpu(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_vcpu_gfn_to_hva of a vCPU in use");
	if (c->as_id)
		return;
	c->in[0] %= NEAR_GFNS;
	c->out[0] = ms_vcpu_gfn_to_hva(common_vcpu, c->in[0]);
	end_call(c, in, match_hvas, 1);
}

static void try_visible(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_is_visible_gfn");
	c->out[0] = ms_is_visible_gfn(vm, c->as_id, c->in[0]);
	end_call(c, in, match_visible, 1);
}

/* ---- batches ---- */

/* Most are short, some have several pieces, a few are longer than the answers between two polls. */
size_t draw_size(void)
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
		return rng_below(&self->rng, 64) ? rng_below(&self->rng, gfns_in_play()) :
						   rng_next(&self->rng) >> MS_PAGE_SHIFT;
	return (near + i) % gfns_in_play();
}

void fill_batch(struct call *c, bool gpa)
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

/* It runs outside of sections, unless the call was made in one.  It sleeps, flips policy or kernel, ends the batch. */
static int poll_batch(void *opaque)
{
	struct call *c = opaque;

	self->polls++;
	atomic_fetch_add_explicit(&self->beats, 1, memory_order_relaxed);
	if (thread_self.sections != c->sections)
		wrong("a poll inside a section", c->as_id, thread_self.sections, c->lo, c->lo);
	if (!rng_below(&self->rng, 4))
		pause_briefly(&self->rng);
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
		.in = in + c->at,
		.in_stride = stride,
		.out = (char *)out + c->at * out_size,
		.out_stride = c->step * (ptrdiff_t)out_size,
		.n = c->n,
		.poll = rng_below(&self->rng, 4) ? poll_batch : NULL,
		.opaque = c,
	};
}

/* A batch that its poll ended has the answers of its first piece at least. */
static void end_batch(struct call *c, const struct inside *in, match_fn *match, int r)
{
	uint64_t n = c->n, state;

	if (r != (c->ended ? -EINTR : 0))
		wrong("the result of a batch", c->as_id, (uint64_t)-r, c->lo, c->lo);
	self->ended += c->ended;
	if (c->ended && c->n > MS_BATCH_PIECE)
		c->n = MS_BATCH_PIECE;
	state = end_call(c, in, match, n);
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
	end_batch(c, in, match_hvas, ms_gfn_to_hva_many(vm, c->as_id, &batch, c->write));
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
	end_batch(c, in, match_hvas, ms_gpa_to_hva_many(vm, c->as_id, &batch, true));
}

static void try_id_batch(struct call *c, const struct inside *in)
{
	struct ms_batch batch;

	begin_call(c, in, "ms_gfn_to_slot_id_many");
	fill_batch(c, false);
	batch = batch_of(c, c->in, c->ids, 4);
	end_batch(c, in, match_ids, ms_gfn_to_slot_id_many(vm, c->as_id, &batch));
}

/* ---- ranges ---- */

static void try_gfn_range(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_memslots_in_gfn_range");
	c->start = c->in[0];
	c->end = c->start + rng_below(&self->rng, GFNS / 2);
	c->n = ms_memslots_in_gfn_range(vm, c->as_id, c->start, c->end, c->slot, PLACES);
	end_call(c, in, match_gfn_range, 1);
}

static void try_all(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_memslots");
	c->start = 0;
	c->end = ~(uint64_t)0;
	c->n = ms_memslots(vm, c->as_id, c->slot, PLACES);
	if (c->n && c->slot[c->n - 1].id == KEEPER)
		c->n--;
	end_call(c, in, match_gfn_range, 1);
	note_slot(c);
}

static void try_hva_range(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_memslots_in_hva_range");
	c->start = rng_below(&self->rng, 2) ? 0 : self->last_hva;
	c->end = rng_below(&self->rng, 2) ? KEEPER_HVA - 1 : c->start + (uint64_t)PLACE_PAGES * MS_PAGE_SIZE * IDS;
	c->n = ms_memslots_in_hva_range(vm, c->as_id, c->start, c->end, c->slot, PLACES);
	end_call(c, in, match_hva_range, 1);
	note_slot(c);
}

/* At most one slot has the byte; the address contains the slot's address space. */
static void try_hva_to_gfns(struct call *c, const struct inside *in)
{
	uint64_t hva = self->last_hva + rng_below(&self->rng, PLACE_PAGES) * MS_PAGE_SIZE + 7;
	struct ms_hva_hit hit[2];

	begin_call(c, in, "ms_hva_to_gfns");
	c->as_id = hva >> 23 & 1;
	note_lower_bound(c, in);
	c->start = c->end = hva;
	c->n = ms_hva_to_gfns(vm, hva, hit, ARRAY_SIZE(hit));
	if (c->n > 1)
		wrong("ms_hva_to_gfns: too many", c->as_id, hva, c->lo, c->lo);
	c->n = c->n > 1 ? 1 : c->n;
	c->slot[0] = hit[0].slot;
	if (c->n && hit[0].gfn - hit[0].slot.base_gfn != (hva - hit[0].slot.userspace_addr) >> MS_PAGE_SHIFT)
		wrong("ms_hva_to_gfns: gfn", c->as_id, hva, c->lo, c->lo);
	end_call(c, in, match_hva_range, 1);
}

/* ---- marks ---- */

static void try_mark(struct call *c, const struct inside *in)
{
	begin_call(c, in, "ms_mark_page_dirty");
	ms_mark_page_dirty(vm, c->as_id, c->in[0]);
	fill_batch(c, false);
	ms_mark_page_dirty_many(vm, c->as_id, &(struct ms_batch){ c->in + c->at, 8 * c->step, .n = c->n });
}

/* Marks each page of the reader's part once, among others.  The writer finds all of them before the next round. */
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

/* ---- one reader ---- */

static try_fn *const tries[] = {
	try_hva,       try_slot,      try_vcpu,      try_batch,     try_hva,         try_vcpu,
	try_batch,     try_id_batch,  try_hva_prot,  try_id,        try_vcpu_slot,   try_common_vcpu,
	try_gpa_batch, try_gfn_range, try_all,       try_hva_range, try_hva_to_gfns, try_visible,
	try_mark,      try_batch,     try_mark_part, try_copy,      try_copy,        try_copy,
	try_copy,      try_copy,      try_copy,      try_snapshot,  try_preview,
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

/* At its end the section has the newest state whose grace period is over, or the one after it; none older. */
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

/* A short thread makes a few calls in the name of its maker, which waits for it; half of these threads end inside a
 * section. */
static void *short_thread(void *maker)
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

static void run_short_thread(void)
{
	pthread_t thread;

	doing("a thread of its own");
	CHECK_EQ(pthread_create(&thread, NULL, short_thread, self), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

static void replace_vcpu(void)
{
	struct ms_vcpu *another;

	doing("another vCPU");
	if (ms_vcpu_create(vm, &another, NULL)) /* the VM has been closed */
		return;
	ms_vcpu_destroy(self->vcpu);
	self->vcpu = another;
}

void read_on(void)
{
	static const struct inside outside;
	struct call *call = new_call();

	while (atomic_load_explicit(&stop, memory_order_relaxed) < STOP_READING) {
		uint64_t how = rng_below(&self->rng, 8192);

		if (how == 0)
			run_short_thread();
		else if (how == 1)
			replace_vcpu();
		else if (how % 8)
			try_one(call, &outside);
		else
			try_section(call);
	}
	free_call(call);
}
