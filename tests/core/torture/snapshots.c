/* SPDX-License-Identifier: MIT */
/*
 * snapshots.c - the readers' copies of all slots, as a Snapshot of the binding makes them, and their previews of
 * transactions.
 *
 * A copy of the slots of one section has a state, which the generation names.  All later answers from the copy must be
 * right in this state, also the bytes of guest memory, because the copy holds references to the memory.
 */
#include "reader.h"

#include <errno.h>

#include "private/preview.h"
#include "private/snapshot.h"

#define RARELY 8 /* one of so many; the others return at once */

static void put_backings(struct ms_backing **backings, size_t n)
{
	for (size_t i = 0; i < n; i++)
		ms_backing_put(backings[i]);
}

/* The oracle knows no row of the keeper. */
static void drop_keeper(struct call *c)
{
	size_t kept = 0;

	for (size_t i = 0; i < c->n; i++)
		if (c->slot[i].id != KEEPER)
			c->slot[kept++] = c->slot[i];
	c->n = kept;
}

/* ---- snapshots ---- */

static struct ms_vm *vm_of_rows(const struct call *c, struct ms_backing **backings)
{
	struct ms_config config = *ms_vm_config(vm);
	struct ms_vm *frozen;

	config.backend = "tree";
	CHECK_EQ(ms_vm_create(&config, &frozen), 0);
	CHECK_EQ(ms_load_snapshot(frozen, c->as_id, c->slot, backings, c->n, NULL), 0);
	return frozen;
}

static void look_up_in(struct ms_vm *frozen, struct call *c, uint64_t state)
{
	struct ms_batch batch;

	fill_batch(c, false);
	batch = (struct ms_batch){ c->in + c->at, 8 * c->step, c->out + c->at, 8 * c->step, .n = c->n };
	CHECK_EQ(ms_gfn_to_hva_many(frozen, c->as_id, &batch, c->write), 0);
	end_call_in(c, state, match_hvas, c->n);
}

static void read_from(struct ms_vm *frozen, struct call *c, uint64_t state)
{
	c->what = "a read from a snapshot";
	c->at = 0;
	c->gpa = c->in[0] % gfns_in_play() << MS_PAGE_SHIFT;
	c->bytes = 2 * MS_PAGE_SIZE;
	c->write = c->one_value = false;
	c->result = ms_read_guest(frozen, c->as_id, c->gpa, c->out, c->bytes, &c->err);
	end_call_in(c, state, match_copy, 0);
	self->copies++;
	self->copied += c->result ? c->err.done : c->bytes;
}

/* In one section; returns its state. */
static uint64_t copy_slots(struct call *c, struct ms_backing **backings)
{
	uint64_t state;

	CHECK_EQ(ms_read_lock(vm), 0);
	state = state_of(ms_generation(vm, c->as_id));
	c->n = ms_memslots(vm, c->as_id, c->slot, PLACES);
	ms_memslots_backings(vm, c->as_id, backings, c->n);
	ms_read_unlock(vm);
	return state;
}

void try_snapshot(struct call *c, const struct inside *in)
{
	struct ms_backing *backings[PLACES] = { NULL };
	struct ms_vm *frozen;
	uint64_t state;
	size_t rows;

	if (rng_below(&self->rng, RARELY))
		return;
	begin_call(c, in, "a snapshot");
	state = copy_slots(c, backings);
	rows = c->n;
	frozen = vm_of_rows(c, backings);
	drop_keeper(c);
	c->start = 0;
	c->end = ~(uint64_t)0;
	end_call_in(c, state, match_gfn_range, 1);
	look_up_in(frozen, c, state);
	read_from(frozen, c, state);
	ms_vm_destroy(frozen);
	put_backings(backings, rows);
}

/* ---- previews ---- */

/* The slots after a transaction that moves each member.  No reader sees this state. */
void try_preview(struct call *c, const struct inside *in)
{
	struct ms_backing *backings[PLACES];
	struct ms_preview preview = { .rows = c->slot, .backings = backings, .room = PLACES };
	struct ms_step steps[MEMBERS];
	int r;

	if (in->is || rng_below(&self->rng, RARELY))
		return;
	begin_call(c, in, "ms_preview_memslots");
	for (uint32_t i = 0; i < MEMBERS; i++)
		steps[i] = (struct ms_step){ .kind = MS_STEP_MOVE,
					     .slot = GROUP + i,
					     .guest_phys_addr = preview_gfn(GROUP + i) * MS_PAGE_SIZE };
	r = ms_preview_memslots(vm, c->as_id, steps, MEMBERS, &preview, NULL);
	if (r == -EBADF && atomic_load_explicit(&stop, memory_order_relaxed))
		return; /* the VM is closed */
	CHECK_EQ(r, 0);
	c->n = preview.nr;
	put_backings(backings, c->n);
	drop_keeper(c);
	end_call_in(c, state_of(preview.generation), match_preview, 1);
}
