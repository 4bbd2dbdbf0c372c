/* SPDX-License-Identifier: MIT */
/*
 * copies.c - the readers' copies: values, short and long reads, many values, and writes.
 *
 * The words of guest memory name their slot, its incarnation and the place in it (oracle.h).  So each copy is checked
 * as any other answer: its bytes and its result must be right in one state.
 *
 * A reader writes the low bytes of a word only.  They are the same for all incarnations, except for the bits TICKS,
 * which no check compares.  So a write needs no knowledge of the slot.
 */
#include "reader.h"

#include <errno.h>

static void end_copy(struct call *c, const struct inside *in, match_fn *match)
{
	uint64_t state = end_call(c, in, match, 0);

	self->copies++;
	self->copied += c->result ? c->err.done : c->bytes;
	if (!c->result && state < atomic_load_explicit(&over[c->as_id], memory_order_acquire))
		self->outlived++;
}

/* The frame of a page of a live slot, if there is one: the slot may change before the copy. */
static uint64_t draw_live_frame(struct call *c)
{
	size_t n = ms_memslots_in_gfn_range(vm, c->as_id, 0, gfns_in_play(), c->slot, PLACES);
	const struct ms_memslot *slot;

	if (!n)
		return c->in[0];
	slot = &c->slot[rng_below(&self->rng, n)];
	return slot->base_gfn + rng_below(&self->rng, slot->npages);
}

static void begin_copy(struct call *c, const struct inside *in, const char *what)
{
	begin_call(c, in, what);
	c->gpa = draw_live_frame(c) << MS_PAGE_SHIFT;
	c->in[0] = c->gpa;
	c->write = c->one_value = false;
}

/* Bytes in a page: of a whole word, or any. */
static uint64_t draw_offset(void)
{
	return rng_below(&self->rng, 4) ? rng_below(&self->rng, MS_PAGE_SIZE / 8) * 8 :
					  rng_below(&self->rng, MS_PAGE_SIZE);
}

static void try_value(struct call *c, const struct inside *in)
{
	begin_copy(c, in, "ms_read_guest_u64");
	c->gpa += draw_offset();
	c->bytes = 8;
	c->one_value = true;
	c->result = ms_read_guest_u64(vm, c->as_id, c->gpa, c->out, &c->err);
	end_copy(c, in, match_copy);
}

static void read_bytes(struct call *c, const struct inside *in, size_t n)
{
	c->bytes = n;
	memset(c->out, 0, n);
	c->result = ms_read_guest(vm, c->as_id, c->gpa, c->out, n, &c->err);
	end_copy(c, in, match_copy);
}

/* A few pages, or from the middle of a place into the next one. */
static void try_short(struct call *c, const struct inside *in)
{
	begin_copy(c, in, "a short ms_read_guest");
	c->gpa += draw_offset();
	if (rng_below(&self->rng, 4))
		read_bytes(c, in, rng_below(&self->rng, 3 * MS_PAGE_SIZE));
	else
		read_bytes(c, in, rng_below(&self->rng, MS_GUEST_SHORT + 1));
}

/* Mostly inside a place from its beginning on, else into the next ones. */
static void try_long(struct call *c, const struct inside *in)
{
	uint64_t most = rng_below(&self->rng, 4) ? SLOT_BYTES : 3 * SLOT_BYTES;

	begin_copy(c, in, "a long ms_read_guest");
	if (rng_below(&self->rng, 4))
		c->gpa -= c->gpa % SLOT_BYTES;
	read_bytes(c, in, MS_GUEST_SHORT + 1 + rng_below(&self->rng, most - MS_GUEST_SHORT));
}

/* From up to 3 places that have had a live slot. */
static void try_values(struct call *c, const struct inside *in)
{
	uint64_t base[3], most = rng_below(&self->rng, 16) ? 1000 : 4 * MS_BATCH_PIECE;
	struct ms_batch batch;

	begin_copy(c, in, "ms_read_guest_u64_many");
	for (size_t i = 0; i < ARRAY_SIZE(base); i++)
		base[i] = rng_below(&self->rng, 2) ? c->gpa : draw_live_frame(c) << MS_PAGE_SHIFT;
	c->n = 1 + rng_below(&self->rng, most);
	for (size_t i = 0; i < c->n; i++)
		c->in[i] = base[i % ARRAY_SIZE(base)] + draw_offset() / 8 * 8;
	c->bytes = 8 * c->n;
	memset(c->out, 0, c->bytes);
	batch = (struct ms_batch){ c->in, 8, c->out, 8, .n = c->n };
	c->result = ms_read_guest_u64_many(vm, c->as_id, &batch, &c->err);
	end_copy(c, in, match_values);
}

/* The low two bytes of a word contain only bits of the offset in the slot, and TICKS. */
static void try_write(struct call *c, const struct inside *in)
{
	uint64_t ticks = rng_below(&self->rng, TICKS + 1);

	begin_copy(c, in, "a write to guest memory");
	c->gpa += draw_offset() / 8 * 8;
	c->write = true;
	c->bytes = 1 + rng_below(&self->rng, 2);
	if (c->bytes == 1)
		c->result = ms_write_guest_u8(vm, c->as_id, c->gpa, (uint8_t)(c->gpa + ticks), &c->err);
	else
		c->result = ms_write_guest_u16(vm, c->as_id, c->gpa, (uint16_t)(c->gpa + ticks), &c->err);
	end_copy(c, in, match_copy);
}

void try_copy(struct call *c, const struct inside *in)
{
	uint64_t how = rng_below(&self->rng, 32);

	if (how < 8)
		try_value(c, in);
	else if (how < 14)
		try_short(c, in);
	else if (how < 18)
		try_values(c, in);
	else if (how < 22)
		try_write(c, in);
	else
		try_long(c, in);
}
