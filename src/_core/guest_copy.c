/* SPDX-License-Identifier: MIT */
/*
 * guest_copy.c - copies guest memory to guest memory.
 *
 * The pieces of both ranges are collected first, in one section.  So a hole in one of them ends the copy at the same
 * place in both directions.  A copy to a higher address that overlaps its source begins with the last bytes.
 *
 * Locking: none; nothing here waits for a writer, except a release function of the user (backing.h).
 * Cost: as guest_memory.c.
 */
#include "guest_fault.h"
#include "guest_pins.h"

/* A place in the pieces of a range. */
struct place {
	const struct guest_piece *piece;
	size_t offset; /* 0 to the size of the piece */
};

/* A copy that is under way. */
struct move {
	const struct guest_pins *pins; /* of the destination */
	struct place dst, src;
	size_t n, done;
	bool backward;
	bool dst_gone; /* after a fault; otherwise the source is gone */
};

/* Steps to the next piece at the end of a piece.  Returns the bytes that are left in it. */
static size_t rest_behind(struct place *at)
{
	if (at->offset == at->piece->bytes)
		*at = (struct place){ at->piece + 1, 0 };
	return at->piece->bytes - at->offset;
}

/* The same in the other direction. */
static size_t rest_before(struct place *at)
{
	if (!at->offset)
		*at = (struct place){ at->piece - 1, at->piece[-1].bytes };
	return at->offset;
}

/* The place behind the first n bytes. */
static struct place place_behind(const struct guest_pins *pins, size_t n)
{
	const struct guest_piece *piece = pins->pieces;

	while (n > piece->bytes)
		n -= piece++->bytes;
	return (struct place){ piece, n };
}

/* Copies as far as both pieces reach.  Returns whether all these bytes are complete. */
static bool move_up(struct move *m)
{
	size_t part = at_most(at_most(rest_behind(&m->dst), rest_behind(&m->src)), m->n - m->done);
	size_t moved = guest_fault_move(m->dst.piece->host + m->dst.offset, m->src.piece->host + m->src.offset, part,
					false, &m->dst_gone);

	guest_pins_mark(m->pins, m->dst.piece, m->dst.offset, guest_touched(moved, part));
	m->dst.offset += moved;
	m->src.offset += moved;
	m->done += moved;
	return moved == part;
}

static bool move_down(struct move *m)
{
	size_t part = at_most(at_most(rest_before(&m->dst), rest_before(&m->src)), m->n - m->done);
	size_t moved = guest_fault_move(m->dst.piece->host + m->dst.offset - part,
					m->src.piece->host + m->src.offset - part, part, true, &m->dst_gone);
	size_t touched = guest_touched(moved, part);

	guest_pins_mark(m->pins, m->dst.piece, m->dst.offset - touched, touched);
	m->dst.offset -= moved;
	m->src.offset -= moved;
	m->done += moved;
	return moved == part;
}

/* In a copy backward the piece that is gone ends at the place; it begins at a page boundary of one of the ranges. */
static int refuse_fault(const struct move *m, struct ms_error *err)
{
	const struct place *at = m->dst_gone ? &m->dst : &m->src;
	uint64_t gpa = at->piece->gpa + at->offset;
	uint64_t dst_end = m->dst.piece->gpa + m->dst.offset, src_end = m->src.piece->gpa + m->src.offset;
	size_t part = at_most((dst_end - 1) % MS_PAGE_SIZE + 1, (src_end - 1) % MS_PAGE_SIZE + 1);

	if (m->backward)
		gpa -= at_most(part, m->n - m->done);
	return guest_refuse(err, MS_RULE_GUEST_FAULT, at->piece->slot, gpa, m->backward ? 0 : m->done);
}

/* Copies the bytes that both ranges have. */
static int move_all(const struct guest_pins *dst, const struct guest_pins *src, size_t n, struct ms_error *err)
{
	struct move m = { .pins = dst, .n = n, .backward = dst->gpa - src->gpa - 1 < n - 1 };

	if (!n)
		return 0;
	m.dst = m.backward ? place_behind(dst, n) : (struct place){ dst->pieces, 0 };
	m.src = m.backward ? place_behind(src, n) : (struct place){ src->pieces, 0 };
	while (m.done < n)
		if (!(m.backward ? move_down(&m) : move_up(&m)))
			return refuse_fault(&m, err);
	return 0;
}

static int move_pieces(const struct guest_pins *dst, const struct guest_pins *src, struct ms_error *err)
{
	size_t n = at_most(dst->bytes, src->bytes);
	const struct guest_pins *shorter = src->bytes == n ? src : dst;
	int r = move_all(dst, src, n, err);

	if (r || n == dst->n)
		return r;
	return guest_refuse(err, shorter->refusal.rule, shorter->refusal.slot, shorter->gpa + n, n);
}

static int move_in_section(struct guest_pins *pins, struct ms_error *err)
{
	struct look look = look_begin(pins->vm, pins->as_id);
	int r;

	guest_pins_look(&pins[0], &look);
	guest_pins_look(&pins[1], &look);
	r = move_pieces(&pins[0], &pins[1], err);
	look_end(pins->vm, look);
	return r;
}

static int move_pinned(struct guest_pins *pins, struct ms_error *err)
{
	int r;

	if (guest_pins_take(pins, 2))
		return no_memory(err);
	r = move_pieces(&pins[0], &pins[1], err);
	guest_pins_put(pins, 2);
	return r;
}

int ms_copy_guest(struct ms_vm *vm, uint32_t as_id, uint64_t dst_gpa, uint64_t src_gpa, size_t n, struct ms_error *err)
{
	struct guest_pins pins[2];

	if (!n)
		return 0;
	guest_pins_init(&pins[0], vm, as_id, dst_gpa, n, true);
	guest_pins_init(&pins[1], vm, as_id, src_gpa, n, false);
	return n <= MS_GUEST_SHORT ? move_in_section(pins, err) : move_pinned(pins, err);
}
