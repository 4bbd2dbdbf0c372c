/* SPDX-License-Identifier: MIT */
/*
 * guest_many.c - reads and writes many values of guest memory at once.
 *
 * All values of a call come from one published state, and no change waits for a page fault of a value:
 *
 *   hold    a section translates a chunk of values, and begins a hold (holds.h).  The values are copied outside of the
 *           section.  The hold keeps the host memory and the dirty logs, for any number of slots
 *   chunks  a longer read is CHUNK values in each section; all sections must see the same state.  The hold ends before
 *           each poll
 *   once    a write cannot start again, and a read whose output overwrites its input cannot either.  So one section
 *           translates all values, up to MS_BATCH_PIECE of them
 *   pins    more values that cannot start again, and a read that another state has overtaken, hold all slots by
 *           references instead (guest_pins.h).  This costs 40 ns for each slot
 *
 * Four kinds of calls copy inside the section, and a change waits for them: those of a VM that dereferences raw
 * addresses and has a raw slot, because only a section protects raw memory; those of a thread without a record of its
 * own (srcu.h); those without memory for the chunk, or for the references of a read; and those inside a section of the
 * caller.
 *
 * A value that crosses a page boundary is two pieces, each of which is translated.  The translation ends at the first
 * piece that is refused.  The address of an index is used only if each slot of the set has a backing, or the VM
 * dereferences raw addresses.
 *
 * The log of each piece is noted in the section of the translation.  The marks follow the copy, in a section of their
 * own: in these logs and, if the state is another one by now, in every log that has the same host pages (K3 of
 * guest_pins.h).
 *
 * Locking: none; nothing here waits for a writer, except a release function of the user (backing.h).
 * Cost: the translation (batch.c), and the access of the memory.  The pins of all slots are O(slots).
 */
#include <string.h>

#include "batch_walk.h"
#include "flat_many.h"
#include "guest_fault.h"
#include "guest_pins.h"

#define CHUNK ((size_t)512)

struct many {
	struct ms_vm *vm;
	uint32_t as_id;
	bool write;
	bool left; /* the section of the chunk is over: the hold keeps the memory */
	const struct ms_batch *batch;
	struct look look;              /* the open section, if there is one */
	struct state state;            /* of all values, unless pins has it */
	struct hold hold;
	const struct guest_pins *pins; /* all slots of the state, or NULL */
	size_t searched;               /* in this section, next to those that the index answered */
	struct ms_error *err;
};

/* The page that a piece is written to: page number `page` of the log, which may be NULL. */
struct mark {
	union {
		struct dirty_log *log;
		uint64_t slot; /* while find_logs() runs: a pointer */
	};
	uint64_t page;
};

/* Some values of a batch, as pieces: a piece is the part of a value in one page. */
struct chunk {
	size_t from, n;         /* the values */
	size_t nr, room;        /* the pieces; after the translation, those before the first that is refused */
	bool whole;             /* each value is one piece */
	bool logged;            /* `marks` has the logs of all pieces */
	uint64_t *gpas, *hosts; /* of each piece, and of the refused one */
	struct mark *marks;     /* for a write */
	enum ms_rule rule;      /* refuses the piece behind the last one; or 0 */
	struct ms_memslot slot; /* of that piece */
};

/* The memory of a chunk. */
struct few {
	uint64_t gpas[CHUNK], hosts[CHUNK];
	struct mark marks[CHUNK];
};

static char *out_at(const struct many *m, size_t i)
{
	return (char *)m->batch->out + (ptrdiff_t)i * m->batch->out_stride;
}

/* ---- pieces ---- */

static bool crosses_page(uint64_t gpa)
{
	return gpa % MS_PAGE_SIZE > MS_PAGE_SIZE - sizeof(uint64_t);
}

/* The bytes of a value in the page of gpa, of which `left` are left. */
static size_t bytes_of_piece(uint64_t gpa, size_t left)
{
	return at_most(left, MS_PAGE_SIZE - gpa % MS_PAGE_SIZE);
}

static struct chunk chunk_in(struct few *few)
{
	return (struct chunk){ .room = CHUNK, .gpas = few->gpas, .hosts = few->hosts, .marks = few->marks };
}

/* Adds the pieces of the values as far as there is room. */
static void fill_crossing(const struct many *m, struct chunk *c, size_t n)
{
	for (c->n = c->nr = 0; c->n < n; c->n++) {
		uint64_t gpa = value_at(m->batch, c->from + c->n);

		if (c->room - c->nr < 1u + crosses_page(gpa))
			break;
		c->gpas[c->nr++] = gpa;
		if (crosses_page(gpa))
			c->gpas[c->nr++] = gpa + bytes_of_piece(gpa, sizeof(uint64_t));
	}
	c->whole = c->nr == c->n;
}

/* Fills the chunk with at most n values from `from` on.  At least one value has room.  Aligned values cross no page. */
static void fill_chunk(const struct many *m, struct chunk *c, size_t from, size_t n)
{
	uint64_t *gpas = c->gpas, any = 0;

	c->from = from;
	c->n = c->nr = n = at_most(n, c->room);
	c->whole = true;
	for (size_t k = 0; k < n; k++) {
		gpas[k] = value_at(m->batch, from + k);
		any |= gpas[k];
	}
	if (unlikely(any % sizeof(uint64_t)))
		fill_crossing(m, c, n);
}

/* ---- translation: in a section, or by pins ---- */

static void translate_by_pins(const struct many *m, struct chunk *c)
{
	for (size_t k = 0; k < c->nr; k++) {
		const struct guest_piece *piece = guest_pins_find(m->pins, c->gpas[k]);

		c->hosts[k] = guest_pins_rule(m->pins, piece) ?
				      MS_HVA_ERR_BAD :
				      (uint64_t)(uintptr_t)piece->host + (c->gpas[k] - piece->gpa);
	}
}

static void translate_marked(struct many *m, const struct overlay *o, struct chunk *c)
{
	for (size_t k = 0; k < c->nr; k++) {
		uint64_t gfn = c->gpas[k] >> MS_PAGE_SHIFT, hva;

		if (likely(!overlay_marked(o, gfn)))
			continue;
		m->searched++;
		hva = translate(search(m->vm, m->look.set, gfn), gfn, m->write);
		c->hosts[k] = hva < MS_HVA_ERR_MIN ? hva + c->gpas[k] % MS_PAGE_SIZE : hva;
	}
}

static void translate_by_index(struct many *m, const struct overlay *o, struct chunk *c)
{
	flat_hvas(o->index, c->gpas, c->hosts, c->nr, MS_PAGE_SHIFT, m->write);
	srcu_count(m->look.section.reader, SRCU_INDEXED, c->nr);
	if (!overlay_answers_all(o, m->look.set->node_idx))
		translate_marked(m, o, c);
}

static void walk(const struct many *m, enum kind kind, const struct ms_batch *batch)
{
	struct job job = { .vm = m->vm, .as_id = m->as_id, .kind = kind, .write = m->write, .batch = batch };

	batch_walk(&job, &m->look, 0, batch->n);
}

static void translate_by_walk(const struct many *m, const struct chunk *c)
{
	struct ms_batch batch = { c->gpas, sizeof(*c->gpas), c->hosts, sizeof(*c->hosts), c->nr, NULL, NULL };

	walk(m, GPA_TO_HVA, &batch);
}

/* Looks at each slot, up to the first that is refused. */
static void translate_by_slots(const struct many *m, struct chunk *c)
{
	struct guest_run run;

	for (size_t k = 0; k < c->nr; k++) {
		bool refused = guest_run_first(m->vm, &m->look, c->gpas[k], 1, m->write, &run);

		c->hosts[k] = refused ? MS_HVA_ERR_BAD : (uint64_t)(uintptr_t)run.host;
		if (refused)
			c->nr = k + 1;
	}
}

/* Whether no slot of the section needs a look of its own. */
static bool may_use_addresses(const struct many *m)
{
	const struct memslot_set *set = m->look.set;

	if (!set || (set->nr_raw && !m->vm->config.dereference_raw_addresses))
		return false;
	return !m->write || !set->nr_logged || !guest_marks_are_lost(m->vm);
}

static const struct overlay *usable_index(const struct many *m)
{
	return may_index(m->vm) ? set_index(m->look.set) : NULL;
}

static void translate_chunk(struct many *m, struct chunk *c)
{
	const struct overlay *o;

	if (m->pins)
		translate_by_pins(m, c);
	else if (!may_use_addresses(m))
		translate_by_slots(m, c);
	else if ((o = usable_index(m)))
		translate_by_index(m, o, c);
	else
		translate_by_walk(m, c);
}

static enum ms_rule rule_at(const struct many *m, uint64_t gpa, struct ms_memslot *slot)
{
	const struct guest_piece *piece;
	struct guest_run run;
	enum ms_rule rule;

	if (m->pins) {
		piece = guest_pins_find(m->pins, gpa);
		*slot = piece ? piece->slot : (struct ms_memslot){ 0 };
		return guest_pins_rule(m->pins, piece);
	}
	rule = guest_run_first(m->vm, &m->look, gpa, 1, m->write, &run);
	*slot = guest_value(run.slot);
	return rule;
}

/* Cuts the pieces at the first that is refused.  An error has more leading ones than most addresses. */
static void find_refused(const struct many *m, struct chunk *c)
{
	const uint64_t *hosts = c->hosts;
	uint64_t any = 0;

	c->rule = MS_RULE_NONE;
	for (size_t k = 0, n = c->nr; k < n; k++)
		any |= hosts[k];
	for (size_t k = 0; unlikely(any >= MS_HVA_ERR_MIN) && !c->rule && k < c->nr; k++) {
		if (hosts[k] < MS_HVA_ERR_MIN)
			continue;
		c->nr = k;
		c->rule = rule_at(m, c->gpas[k], &c->slot);
	}
}

/* Notes the logs of the pieces of a write.  Outside of the section the slots may be freed. */
static void find_logs(const struct many *m, struct chunk *c)
{
	struct ms_batch batch = {
		&c->marks->page, sizeof(*c->marks), &c->marks->slot, sizeof(*c->marks), c->nr, NULL, NULL
	};

	c->logged = m->write && !m->pins && c->nr && m->look.set->nr_logged;
	if (!c->logged)
		return;
	for (size_t k = 0; k < c->nr; k++)
		c->marks[k].page = c->gpas[k] >> MS_PAGE_SHIFT;
	walk(m, GFN_TO_SLOT, &batch);
	for (size_t k = 0; k < c->nr; k++) {
		const struct memslot *slot = (const void *)(uintptr_t)c->marks[k].slot;

		c->marks[k].log = slot->dirty;
		c->marks[k].page -= slot->base_gfn;
	}
}

static void plan(struct many *m, struct chunk *c)
{
	translate_chunk(m, c);
	find_refused(m, c);
	find_logs(m, c);
}

/* ---- marks ---- */

static void mark_pinned(const struct many *m, const struct chunk *c, size_t n)
{
	if (!n || !guest_pins_need_marks(m->pins))
		return;
	for (size_t k = 0; k < n; k++) {
		const struct guest_piece *piece = guest_pins_find(m->pins, c->gpas[k]);

		guest_pins_mark(m->pins, piece, (size_t)(c->gpas[k] - piece->gpa), 1);
	}
}

static void mark_noted(const struct chunk *c, size_t n)
{
	for (size_t k = 0; c->logged && k < n; k++)
		if (c->marks[k].log)
			dirty_log_mark(c->marks[k].log, c->marks[k].page);
}

/* In another state the pages may have other logs. */
static void mark_present(const struct many *m, const struct chunk *c, size_t n, const struct memslot_set *set)
{
	for (size_t k = 0; k < n; k++)
		guest_mark_present(m->vm, set, c->hosts[k], 1, c->logged ? c->marks[k].log : NULL);
}

/* After the section of the translation. */
static void mark_held(const struct many *m, const struct chunk *c, size_t n)
{
	struct look look = look_begin(m->vm, m->as_id);

	mark_noted(c, n);
	if (!same_state(m->vm, m->state, state_of(look.set)))
		mark_present(m, c, n, look.set);
	look_end(m->vm, look);
}

/* Marks the first n pieces, which are written. */
static void mark_pieces(const struct many *m, const struct chunk *c, size_t n)
{
	if (!m->write || !n)
		return;
	point(READER_MARKS);
	if (m->pins)
		mark_pinned(m, c, n);
	else if (m->left)
		mark_held(m, c, n);
	else
		mark_noted(c, n);
}

/* ---- copies ---- */

static bool copy_piece(const struct many *m, char *host, char *value, size_t n)
{
	uint64_t word;

	if (n == sizeof(word) && (uintptr_t)host % sizeof(word) == 0) { /* one access */
		memcpy(&word, value, n);
		if (!(m->write ? guest_fault_store(host, n, word) : guest_fault_load(host, n, &word)))
			return false;
		memcpy(value, &word, n);
		return true;
	}
	return (m->write ? guest_fault_write(host, value, n) : guest_fault_read(value, host, n)) == n;
}

/* The slot of a piece whose memory is gone; all 0 if it is known in another state only. */
static struct ms_memslot slot_of_piece(struct many *m, uint64_t gpa)
{
	struct ms_memslot slot = { 0 };

	if (!m->left) {
		rule_at(m, gpa, &slot);
		return slot;
	}
	m->look = look_begin(m->vm, m->as_id);
	if (same_state(m->vm, m->state, state_of(m->look.set)))
		rule_at(m, gpa, &slot);
	look_end(m->vm, m->look);
	return slot;
}

/* Where a copy is: in a value of the chunk, at a piece, before byte `at` of the value. */
struct place {
	size_t value, piece, at;
};

static int refuse_at(const struct many *m, const struct chunk *c, const struct place *p, enum ms_rule rule,
		     struct ms_memslot slot)
{
	size_t i = c->from + p->value;
	int r = guest_refuse(m->err, rule, slot, c->gpas[p->piece], i * sizeof(uint64_t) + p->at);

	if (m->err)
		m->err->index = (uint32_t)i;
	return r;
}

/* Copies the pieces of a value, up to one that is refused or gone.  Returns whether the value is complete. */
static bool copy_value(const struct many *m, const struct chunk *c, struct place *p, bool *gone)
{
	char value[sizeof(uint64_t)], *out = out_at(m, c->from + p->value);
	size_t n;

	memcpy(value, out, sizeof(value));
	for (p->at = 0; p->at < sizeof(value); p->at += n, p->piece++) {
		if (p->piece == c->nr)
			return false;
		n = bytes_of_piece(c->gpas[p->piece], sizeof(value) - p->at);
		*gone = !copy_piece(m, (char *)(uintptr_t)c->hosts[p->piece], value + p->at, n);
		if (*gone)
			return false;
	}
	if (!m->write)
		memcpy(out, value, sizeof(value));
	return true;
}

/* Value by value, from the place on. */
static int copy_values(struct many *m, const struct chunk *c, struct place p)
{
	bool gone = false;

	while (p.value < c->n && copy_value(m, c, &p, &gone))
		p.value++;
	mark_pieces(m, c, p.piece + gone);
	if (gone)
		return refuse_at(m, c, &p, MS_RULE_GUEST_FAULT, slot_of_piece(m, c->gpas[p.piece]));
	return p.value < c->n ? refuse_at(m, c, &p, c->rule, c->slot) : 0;
}

/* If each value is one piece, one loop copies those before the first that is gone or refused. */
static int copy_chunk(struct many *m, const struct chunk *c)
{
	struct place p = { 0, 0, 0 };

	if (likely(c->whole))
		p.value = m->write ? guest_fault_store_many(c->hosts, c->nr, out_at(m, c->from), m->batch->out_stride) :
				     guest_fault_load_many(c->hosts, c->nr, out_at(m, c->from), m->batch->out_stride);
	p.piece = p.value;
	return copy_values(m, c, p);
}

/* ---- sections ---- */

/* Whether a hold keeps all memory that the section sees. */
static bool may_leave(const struct many *m)
{
	const struct memslot_set *set = m->look.set;

	return set && !(set->nr_raw && m->vm->config.dereference_raw_addresses) &&
	       !srcu_is_shared(m->look.section.reader);
}

static void hold_and_leave(struct many *m)
{
	if (!m->hold.reader)
		m->hold = hold_begin(&m->vm->holds, m->look.section.reader);
	look_end(m->vm, m->look);
	point(READER_HELD);
}

/* Whether the section sees the state of the call.  The first section decides which one this is. */
static bool is_in_state(struct many *m, const struct chunk *c)
{
	if (!m->look.set)
		return true;
	if (!c->from)
		m->state = state_of(m->look.set);
	return same_state(m->vm, m->state, state_of(m->look.set));
}

/* The searches for marked frames count towards the next index. */
static bool index_is_due(const struct many *m)
{
	return m->searched && vm_index_is_due(m->vm, m->look.set, m->searched);
}

static int copy_planned(struct many *m, const struct chunk *c)
{
	int r;

	m->left = may_leave(m);
	if (m->left)
		hold_and_leave(m);
	r = copy_chunk(m, c);
	if (!m->left)
		look_end(m->vm, m->look);
	return r;
}

/* One section, and the copy.  -EAGAIN: a writer has published another state since the values before. */
static int access_chunk(struct many *m, struct chunk *c)
{
	bool due;
	int r;

	m->look = look_begin(m->vm, m->as_id);
	m->searched = 0;
	if (!is_in_state(m, c)) {
		look_end(m->vm, m->look);
		return -EAGAIN;
	}
	plan(m, c);
	due = index_is_due(m);
	r = copy_planned(m, c);
	if (due)
		vm_index_make(m->vm, m->as_id, m->batch->n <= MS_BATCH_BRIEF);
	return r;
}

/* ---- whole calls ---- */

/* Ends a call with details that name no value. */
static int end_by(struct ms_error *err, int r)
{
	if (err)
		*err = (struct ms_error){ .rule = MS_RULE_NONE };
	return r;
}

static void end_hold(struct many *m)
{
	hold_end(&m->vm->holds, &m->hold);
}

/* After the first `done` values, outside of all sections. */
static int poll(struct many *m, size_t done)
{
	const struct ms_batch *batch = m->batch;

	if (done % MS_BATCH_PIECE || done >= batch->n || !batch->poll)
		return 0;
	end_hold(m);
	return batch->poll(batch->opaque) ? end_by(m->err, -EINTR) : 0;
}

/* The next values of the batch, up to a place of poll(). */
static void fill_next(const struct many *m, struct chunk *c, size_t done)
{
	fill_chunk(m, c, done, at_most(m->batch->n - done, MS_BATCH_PIECE - done % MS_BATCH_PIECE));
}

/* Makes an index first, if it pays for n values. */
static void make_index_if_due(const struct many *m, size_t n)
{
	struct look look = look_begin(m->vm, m->as_id);
	bool due = look.set && may_index(m->vm) && !set_index(look.set) && vm_index_is_due(m->vm, look.set, n);

	look_end(m->vm, look);
	if (due)
		vm_index_make(m->vm, m->as_id, m->batch->n <= MS_BATCH_BRIEF);
}

/* A call without memory: a change waits for all its values. */
static int run_in_one_section(struct many *m)
{
	struct few few;
	struct chunk c = chunk_in(&few);
	int r = 0;

	m->left = false;
	m->look = look_begin(m->vm, m->as_id);
	for (size_t done = 0; !r && done < m->batch->n; done += c.n) {
		fill_next(m, &c, done);
		plan(m, &c);
		r = copy_chunk(m, &c);
	}
	look_end(m->vm, m->look);
	return r;
}

static int run_with(struct many *m, const struct guest_pins *pins)
{
	struct few few;
	struct chunk c = chunk_in(&few);
	int r = 0;

	m->left = false;
	m->pins = pins;
	for (size_t done = 0; !r && done < m->batch->n; done += c.n) {
		fill_next(m, &c, done);
		plan(m, &c);
		r = copy_chunk(m, &c);
		if (!r && !pins->in_section && (done + c.n) % MS_BATCH_POLL == 0)
			r = poll(m, done + c.n);
	}
	return r;
}

static int run_pinned(struct many *m)
{
	struct guest_pins pins;
	int r;

	guest_pins_init(&pins, m->vm, m->as_id, 0, 0, m->write);
	if (guest_pins_take_all(&pins))
		return m->write ? no_memory(m->err) : run_in_one_section(m);
	r = run_with(m, &pins);
	guest_pins_put(&pins, 1);
	return r;
}

static int run_in_chunks(struct many *m)
{
	struct few few;
	struct chunk c = chunk_in(&few);
	int r = 0;

	for (size_t done = 0; !r && done < m->batch->n; done += c.n) {
		fill_next(m, &c, done);
		r = access_chunk(m, &c);
		point(READER_PIECE_OVER);
		if (!r)
			r = poll(m, done + c.n);
	}
	end_hold(m);
	return r == -EAGAIN ? run_pinned(m) : r;
}

/* ---- calls that cannot start again ---- */

static size_t count_pieces(const struct many *m)
{
	size_t nr = m->batch->n;

	for (size_t i = 0; i < m->batch->n; i++)
		nr += crosses_page(value_at(m->batch, i));
	return nr;
}

/* All values in one chunk.  -ENOSPC: it has too little room. */
static int access_all(struct many *m, struct chunk *c)
{
	int r = -ENOSPC;

	fill_chunk(m, c, 0, m->batch->n);
	if (c->n == m->batch->n) {
		r = access_chunk(m, c);
		end_hold(m);
	}
	return r;
}

static int access_all_in_few(struct many *m)
{
	struct few few;
	struct chunk c = chunk_in(&few);

	return access_all(m, &c);
}

/* With room for nr pieces. */
static int access_all_in_block(struct many *m, size_t nr)
{
	struct memory *memory = &m->vm->memory;
	size_t size = nr * sizeof(struct few) / CHUNK;
	uint64_t *block = memory_alloc_lines(memory, size);
	struct chunk c = { .room = nr, .gpas = block };
	int r;

	if (!block)
		return run_in_one_section(m);
	c.hosts = c.gpas + nr;
	c.marks = (void *)(c.hosts + nr);
	r = access_all(m, &c);
	memory_free_lines(memory, block, size);
	return r;
}

/* Most values cross no page. */
static int run_at_once(struct many *m)
{
	size_t n = m->batch->n;
	int r = n <= CHUNK ? access_all_in_few(m) : access_all_in_block(m, n);

	return r == -ENOSPC ? access_all_in_block(m, count_pieces(m)) : r;
}

static int run_many(struct many *m)
{
	bool once = m->write || m->batch->in == m->batch->out;

	make_index_if_due(m, m->batch->n);
	if (!once)
		return run_in_chunks(m);
	return m->batch->n <= MS_BATCH_PIECE ? run_at_once(m) : run_pinned(m);
}

static int check_and_run(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write,
			 struct ms_error *err)
{
	struct many m = { .vm = vm, .as_id = as_id, .write = write, .batch = batch, .err = err };

	if (!batch || (batch->n && (!batch->in || !batch->out)))
		return null_buffer(err);
	if (batch->n > SIZE_MAX / sizeof(uint64_t))
		return end_by(err, -EINVAL);
	return batch->n ? run_many(&m) : 0;
}

int ms_read_guest_u64_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, struct ms_error *err)
{
	return check_and_run(vm, as_id, batch, false, err);
}

int ms_write_guest_u64_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, struct ms_error *err)
{
	return check_and_run(vm, as_id, batch, true, err);
}
