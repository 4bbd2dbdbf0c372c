/* SPDX-License-Identifier: MIT */
/*
 * guest_pins.c - see guest_pins.h for the invariants.
 */
#include "guest_pins.h"

void guest_pins_init(struct guest_pins *pins, struct ms_vm *vm, uint32_t as_id, uint64_t gpa, size_t n, bool write)
{
	pins->vm = vm;
	pins->as_id = as_id;
	pins->write = write;
	pins->holds = pins->in_section = false;
	pins->gpa = gpa;
	pins->n = n;
	pins->nr = 0;
	pins->room = GUEST_PINS_FEW;
	pins->pieces = pins->few;
}

/* ---- collecting, inside a section ---- */

static void add_piece(struct guest_pins *pins, const struct guest_run *run)
{
	struct guest_piece *piece = &pins->pieces[pins->nr++];
	struct dirty_log *log = pins->write ? run->slot->dirty : NULL;

	piece->slot = memslot_value(run->slot);
	piece->gpa = run->gpa;
	piece->host = run->host;
	piece->bytes = run->bytes;
	piece->backing = run->slot->backing;
	piece->log = log;
	pins->nr_logged += log != NULL;
	pins->nr_raw += !piece->backing && pins->vm->config.dereference_raw_addresses;
	if (!pins->holds)
		return;
	backing_get(piece->backing);
	if (log)
		dirty_log_pin(log);
}

/* Collects the pieces for which there is room, and counts all of them. */
static void collect(struct guest_pins *pins, const struct look *look)
{
	struct guest_run run;
	enum ms_rule rule = guest_run_first(pins->vm, look, pins->gpa, pins->n, pins->write, &run);

	pins->bytes = pins->nr = pins->wanted = pins->nr_logged = pins->nr_raw = 0;
	if (look->set)
		pins->state = state_of(look->set);
	while (!rule) {
		if (pins->wanted++ < pins->room)
			add_piece(pins, &run);
		pins->bytes += run.bytes;
		if (pins->bytes == pins->n)
			break;
		rule = guest_run_next(pins->vm, look, pins->n - pins->bytes, pins->write, &run);
	}
	pins->refusal.rule = rule;
	pins->refusal.slot = rule && run.slot ? memslot_value(run.slot) : (struct ms_memslot){ 0 };
}

void guest_pins_look(struct guest_pins *pins, const struct look *look)
{
	collect(pins, look);
	ms_assert(pins->wanted == pins->nr);
}

/* The same for all slots. */
static void collect_all(struct guest_pins *pins, const struct look *look)
{
	const struct memslot_design *design = pins->vm->design;
	const struct memslot *slot = look->set ? design->first_from(look->set, 0) : NULL;

	pins->nr = pins->wanted = pins->nr_logged = pins->nr_raw = 0;
	if (look->set)
		pins->state = state_of(look->set);
	for (; slot; slot = design->next(look->set, slot)) {
		uint64_t gpa = slot->base_gfn << MS_PAGE_SHIFT;
		struct guest_run run = { slot, gpa, guest_host(slot, gpa), (size_t)memslot_bytes(slot) };

		if (!(slot->flags & MS_MEMSLOT_INVALID) && pins->wanted++ < pins->room)
			add_piece(pins, &run);
	}
}

/* ---- taking references ---- */

static void drop_pieces(struct guest_pins *pins)
{
	for (size_t i = 0; i < pins->nr && pins->holds; i++) {
		backing_put(pins->pieces[i].backing);
		if (pins->pieces[i].log)
			dirty_log_unpin(&pins->vm->memory, pins->pieces[i].log);
	}
	pins->nr = 0;
}

static void free_pieces(struct guest_pins *pins)
{
	if (pins->pieces != pins->few)
		memory_free(&pins->vm->memory, pins->pieces, pins->room * sizeof(*pins->pieces));
	pins->pieces = pins->few;
	pins->room = GUEST_PINS_FEW;
}

/* Room for the pieces that collect() has counted, and for some that a writer may add meanwhile. */
static bool make_room(struct guest_pins *pins)
{
	size_t room = pins->wanted + pins->wanted / 4;
	struct guest_piece *pieces;

	if (pins->wanted <= pins->room)
		return true;
	pieces = memory_zalloc(&pins->vm->memory, room * sizeof(*pieces));
	if (!pieces)
		return false;
	free_pieces(pins);
	pins->pieces = pieces;
	pins->room = room;
	return true;
}

typedef void collect_fn(struct guest_pins *pins, const struct look *look);

/* Returns whether all pieces are held.  The first range keeps the section of all (K4). */
static bool try_take(struct guest_pins *pins, size_t nr, collect_fn *fn)
{
	struct look look = look_begin(pins->vm, pins->as_id);
	bool fits = true, raw = false;

	for (size_t i = 0; i < nr; i++) {
		pins[i].holds = true;
		fn(&pins[i], &look);
		fits &= pins[i].wanted == pins[i].nr;
		raw |= pins[i].nr_raw > 0;
	}
	pins->in_section = fits && raw;
	pins->look = look;
	if (!pins->in_section)
		look_end(pins->vm, look);
	return fits;
}

static int take(struct guest_pins *pins, size_t nr, collect_fn *fn)
{
	bool room = true;

	while (!try_take(pins, nr, fn)) {
		for (size_t i = 0; i < nr; i++) {
			drop_pieces(&pins[i]);
			room = room && make_room(&pins[i]);
		}
		thread_flush_tasks();
		if (room)
			continue;
		for (size_t i = 0; i < nr; i++)
			free_pieces(&pins[i]);
		return -ENOMEM;
	}
	point(READER_PINNED);
	return 0;
}

int guest_pins_take(struct guest_pins *pins, size_t nr)
{
	return take(pins, nr, collect);
}

int guest_pins_take_all(struct guest_pins *pins)
{
	return take(pins, 1, collect_all);
}

void guest_pins_put(struct guest_pins *pins, size_t nr)
{
	if (pins->in_section)
		look_end(pins->vm, pins->look);
	for (size_t i = 0; i < nr; i++) {
		drop_pieces(&pins[i]);
		free_pieces(&pins[i]);
	}
	thread_flush_tasks();
}

/* ---- accesses ---- */

const struct guest_piece *guest_pins_find(const struct guest_pins *pins, uint64_t gpa)
{
	const struct guest_piece *piece = pins->pieces;

	for (size_t nr = pins->nr, half; nr > 1; nr -= half) {
		half = nr / 2;
		piece += piece[half].gpa <= gpa ? half : 0;
	}
	return pins->nr && gpa - piece->gpa < piece->bytes ? piece : NULL;
}

enum ms_rule guest_pins_rule(const struct guest_pins *pins, const struct guest_piece *piece)
{
	if (!piece)
		return MS_RULE_GUEST_HOLE;
	return guest_rule(pins->vm, piece->slot.flags, !piece->backing, piece->log, pins->write);
}

/* ---- marks ---- */

/* The pages of the host range [start, end) that the slot has; at least one. */
static void mark_host(struct dirty_log *log, const struct interval *hva, uint64_t start, uint64_t end)
{
	uint64_t first = start > hva->start ? start : hva->start, last = end - 1 < hva->last ? end - 1 : hva->last;
	uint64_t page = (first - hva->start) >> MS_PAGE_SHIFT;

	dirty_log_mark_range(log, page, ((last - hva->start) >> MS_PAGE_SHIFT) - page + 1);
}

/* Host memory that is written, and the log in which it is marked already. */
struct written {
	uint64_t start, end;
	const struct dirty_log *marked;
};

static void mark_other_log(void *context, const struct memslot *slot)
{
	const struct written *w = context;

	if (slot->dirty && slot->dirty != w->marked)
		mark_host(slot->dirty, &slot->hva, w->start, w->end);
}

static void mark_pinned_log(const struct guest_piece *piece, const struct written *w)
{
	uint64_t base = piece->slot.userspace_addr;
	struct interval hva = { base, base + (piece->slot.npages << MS_PAGE_SHIFT) - 1 };

	if (piece->log)
		mark_host(piece->log, &hva, w->start, w->end);
}

void guest_mark_present(const struct ms_vm *vm, const struct memslot_set *set, uint64_t start, size_t n,
			const struct dirty_log *marked)
{
	struct written w = { start, start + n, marked };

	vm->design->hva_range(set, w.start, w.end - 1, mark_other_log, &w);
}

/* If the state is another one by now, the pages may have other logs. */
static void mark_present_logs(const struct guest_pins *pins, const struct look *look, const struct written *w)
{
	if (!same_state(pins->vm, pins->state, state_of(look->set)))
		guest_mark_present(pins->vm, look->set, w->start, w->end - w->start, w->marked);
}

bool guest_pins_need_marks(const struct guest_pins *pins)
{
	struct look look = look_begin(pins->vm, pins->as_id);
	bool same = !look.set || same_state(pins->vm, pins->state, state_of(look.set));

	look_end(pins->vm, look);
	return pins->nr_logged || !same;
}

/* Without references the caller is inside the section that found the pieces. */
void guest_pins_mark(const struct guest_pins *pins, const struct guest_piece *piece, size_t at, size_t n)
{
	uint64_t start = (uint64_t)(uintptr_t)piece->host + at;
	struct written w = { start, start + n, piece->log };
	struct look look;

	point(READER_MARKS);
	if (!pins->holds) {
		mark_pinned_log(piece, &w);
		return;
	}
	look = look_begin(pins->vm, pins->as_id);
	mark_pinned_log(piece, &w);
	mark_present_logs(pins, &look, &w);
	look_end(pins->vm, look);
}
