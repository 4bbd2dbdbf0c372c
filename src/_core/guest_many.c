/* SPDX-License-Identifier: MIT */
/*
 * guest_many.c - reads and writes many values of guest memory at once.
 *
 * All values of a call come from one published state:
 *
 *   one section  up to CHUNK values.  A change waits for a section, and each value may be a page fault
 *   pieces       a longer read is CHUNK values in each section; all sections must see the same state
 *   references   if they do not, the read starts again and holds all slots (guest_pins.h).  A write cannot start again,
 *                and a read whose output overwrites its input cannot either: they hold the slots from the beginning
 *
 * The references cost 40 ns for each slot.  So up to MS_BATCH_PIECE values that cannot start again are one section, if
 * the set has more than one slot for 8 of them.  A read without memory for the references is one section of any length.
 *
 * A chunk of values is translated first: by the index, by a walk, or by the slots that are held.  Then the values are
 * copied in one loop.  If a value of the chunk crosses a page or is refused, the chunk is done value by value.
 *
 * The address of an index is used only if each slot of the set has a backing, or the VM dereferences raw addresses.
 *
 * Locking: none; nothing here waits for a writer, except a release function of the user (backing.h).
 * Cost: the translation (batch.c), and the access of the memory.  The holding of all slots is O(slots).
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
	const struct ms_batch *batch;
	struct look look;              /* the open section, if pins is NULL */
	const struct guest_pins *pins; /* all slots of the state, or NULL */
	size_t searched;               /* in this section, next to those that the index answered */
	struct ms_error *err;
};

/* The values [from, from + n) of a batch. */
struct chunk {
	size_t from, n;
	uint64_t gpas[CHUNK];
	uint64_t hosts[CHUNK];
};

static char *out_at(const struct many *m, size_t i)
{
	return (char *)m->batch->out + (ptrdiff_t)i * m->batch->out_stride;
}

/* ---- value by value ---- */

/* Host memory of a part of a value: in a slot of the section, or in a piece that is held. */
struct part {
	struct guest_run run;
	const struct guest_piece *piece;
};

static enum ms_rule find_part(const struct many *m, uint64_t gpa, size_t n, struct part *part)
{
	enum ms_rule rule;

	if (!m->pins)
		return guest_run_first(m->vm, &m->look, gpa, n, m->write, &part->run);
	part->piece = guest_pins_find(m->pins, gpa);
	part->run = (struct guest_run){ .gpa = gpa };
	rule = guest_pins_rule(m->pins, part->piece);
	if (!rule) {
		part->run.host = part->piece->host + (gpa - part->piece->gpa);
		part->run.bytes = at_most(n, part->piece->bytes - (size_t)(gpa - part->piece->gpa));
	}
	return rule;
}

static struct ms_memslot slot_of_part(const struct many *m, const struct part *part)
{
	if (!m->pins)
		return guest_value(part->run.slot);
	return part->piece ? part->piece->slot : (struct ms_memslot){ 0 };
}

static void mark_value(const struct many *m, const struct part *part, size_t n)
{
	if (!m->pins)
		guest_mark(&part->run, n);
	else
		guest_pins_mark(m->pins, part->piece, (size_t)(part->run.host - part->piece->host), n);
}

static size_t copy_part(const struct many *m, const struct part *part, char *value)
{
	size_t n = part->run.bytes;
	uint64_t word;

	if (n == sizeof(word) && (uintptr_t)part->run.host % sizeof(word) == 0) { /* one access */
		memcpy(&word, value, n);
		if (!(m->write ? guest_fault_store(part->run.host, n, word) :
				 guest_fault_load(part->run.host, n, &word)))
			return 0;
		memcpy(value, &word, n);
		return n;
	}
	return m->write ? guest_fault_write(part->run.host, value, n) : guest_fault_read(value, part->run.host, n);
}

/* Returns the rule that refuses the value, or 0.  *done and *part say where. */
static enum ms_rule access_value(const struct many *m, uint64_t gpa, char *value, size_t *done, struct part *part)
{
	enum ms_rule rule;
	size_t n;

	for (*done = 0; *done < sizeof(uint64_t); *done += n) {
		rule = find_part(m, gpa + *done, sizeof(uint64_t) - *done, part);
		if (rule)
			return rule;
		n = copy_part(m, part, value + *done);
		if (m->write)
			mark_value(m, part, guest_touched(n, part->run.bytes));
		if (n < part->run.bytes) {
			*done += n;
			return MS_RULE_GUEST_FAULT;
		}
	}
	return MS_RULE_NONE;
}

static int access_one_by_one(const struct many *m, const struct chunk *c, size_t first)
{
	for (size_t k = first; k < c->n; k++) {
		size_t i = c->from + k, done;
		struct part part = { .piece = NULL };
		char value[sizeof(uint64_t)];
		enum ms_rule rule;
		int r;

		memcpy(value, out_at(m, i), sizeof(value));
		rule = access_value(m, c->gpas[k], value, &done, &part);
		if (rule) {
			r = guest_refuse(m->err, rule, slot_of_part(m, &part), c->gpas[k] + done,
					 i * sizeof(uint64_t) + done);
			if (m->err)
				m->err->index = (uint32_t)i;
			return r;
		}
		if (!m->write)
			memcpy(out_at(m, i), value, sizeof(value));
	}
	return 0;
}

/* ---- a chunk at once ---- */

static void translate_by_pins(const struct many *m, struct chunk *c)
{
	for (size_t k = 0; k < c->n; k++) {
		const struct guest_piece *piece = guest_pins_find(m->pins, c->gpas[k]);

		c->hosts[k] = guest_pins_rule(m->pins, piece) ?
				      MS_HVA_ERR_BAD :
				      (uint64_t)(uintptr_t)piece->host + (c->gpas[k] - piece->gpa);
	}
}

static void translate_marked(struct many *m, const struct overlay *o, struct chunk *c)
{
	for (size_t k = 0; k < c->n; k++) {
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
	flat_hvas(o->index, c->gpas, c->hosts, c->n, MS_PAGE_SHIFT, m->write);
	srcu_count(m->look.section.reader, SRCU_INDEXED, c->n);
	if (overlay_has_marks(o))
		translate_marked(m, o, c);
}

static void walk(const struct many *m, struct chunk *c, enum kind kind, const uint64_t *in)
{
	struct ms_batch batch = { in, sizeof(*in), c->hosts, sizeof(*c->hosts), c->n, NULL, NULL };
	struct job job = { .vm = m->vm, .as_id = m->as_id, .kind = kind, .write = m->write, .batch = &batch };

	batch_walk(&job, &m->look, 0, c->n);
}

static const struct overlay *usable_index(const struct many *m)
{
	return may_index(m->vm) ? set_index(m->look.set) : NULL;
}

static void translate_chunk(struct many *m, struct chunk *c)
{
	const struct overlay *o = m->pins ? NULL : usable_index(m);

	if (m->pins)
		translate_by_pins(m, c);
	else if (o)
		translate_by_index(m, o, c);
	else
		walk(m, c, GPA_TO_HVA, c->gpas);
}

/* Whether each value is in one page and has an address. */
static bool all_simple(const struct chunk *c)
{
	uint64_t complex = 0;

	for (size_t k = 0; k < c->n; k++)
		complex |=
			(c->gpas[k] % MS_PAGE_SIZE > MS_PAGE_SIZE - sizeof(uint64_t)) | (c->hosts[k] >= MS_HVA_ERR_MIN);
	return !complex;
}

/* Whether no slot of the section needs a look of its own. */
static bool may_use_addresses(const struct many *m)
{
	const struct memslot_set *set = m->look.set;

	if (m->pins)
		return true;
	if (!set || (set->nr_raw && !m->vm->config.dereference_raw_addresses))
		return false;
	return !m->write || !set->nr_logged || !guest_marks_are_lost(m->vm);
}

static void mark_pinned_chunk(const struct many *m, const struct chunk *c, size_t n)
{
	if (!guest_pins_need_marks(m->pins))
		return;
	for (size_t k = 0; k < n; k++) {
		const struct guest_piece *piece = guest_pins_find(m->pins, c->gpas[k]);

		guest_pins_mark(m->pins, piece, (size_t)(c->gpas[k] - piece->gpa), sizeof(uint64_t));
	}
}

/* Marks the pages of the first n values, which are written. */
static void mark_chunk(const struct many *m, struct chunk *c, size_t n)
{
	if (m->pins) {
		mark_pinned_chunk(m, c, n);
	} else if (m->look.set->nr_logged) {
		uint64_t gfns[CHUNK];
		size_t all = c->n;

		for (size_t k = 0; k < n; k++)
			gfns[k] = c->gpas[k] >> MS_PAGE_SHIFT;
		c->n = n;
		walk(m, c, MARK, gfns);
		c->n = all;
	}
}

static int access_chunk(struct many *m, size_t from, size_t n)
{
	struct chunk c = { .from = from, .n = n };
	size_t done = 0;

	for (size_t k = 0; k < n; k++)
		c.gpas[k] = value_at(m->batch, from + k);
	if (may_use_addresses(m)) {
		translate_chunk(m, &c);
		if (likely(all_simple(&c)))
			done = m->write ? guest_fault_store_many(c.hosts, n, out_at(m, from), m->batch->out_stride) :
					  guest_fault_load_many(c.hosts, n, out_at(m, from), m->batch->out_stride);
		if (m->write)
			mark_chunk(m, &c, done);
	}
	return done < n ? access_one_by_one(m, &c, done) : 0;
}

static int access_chunks(struct many *m, size_t from, size_t n)
{
	int r = 0;

	for (size_t done = 0; !r && done < n; done += CHUNK)
		r = access_chunk(m, from + done, at_most(n - done, CHUNK));
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

/* After the first `done` values, outside of all sections. */
static int poll(const struct many *m, size_t done)
{
	const struct ms_batch *batch = m->batch;

	if (done % MS_BATCH_PIECE || done >= batch->n || !batch->poll)
		return 0;
	return batch->poll(batch->opaque) ? end_by(m->err, -EINTR) : 0;
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

static int run_in_one_section(struct many *m)
{
	int r;

	m->look = look_begin(m->vm, m->as_id);
	r = access_chunks(m, 0, m->batch->n);
	look_end(m->vm, m->look);
	return r;
}

static int run_with(struct many *m, const struct guest_pins *pins)
{
	size_t n = m->batch->n;
	int r = 0;

	m->pins = pins;
	for (size_t done = 0; !r && done < n; done += MS_BATCH_POLL) {
		r = access_chunks(m, done, at_most(n - done, MS_BATCH_POLL));
		if (!r && !pins->in_section)
			r = poll(m, done + MS_BATCH_POLL);
	}
	return r;
}

static int run_held(struct many *m)
{
	struct guest_pins pins;
	int r;

	guest_pins_init(&pins, m->vm, m->as_id, 0, 0, m->write);
	if (guest_pins_take_all(&pins))
		return m->write && m->batch->n > MS_BATCH_PIECE ? no_memory(m->err) : run_in_one_section(m);
	r = run_with(m, &pins);
	guest_pins_put(&pins, 1);
	return r;
}

/* The values of a section.  The searches for marked frames count towards the next index. */
static int access_in_section(struct many *m, size_t from, size_t n, bool *due)
{
	int r;

	m->searched = 0;
	r = access_chunks(m, from, n);
	*due = m->searched && vm_index_is_due(m->vm, m->look.set, m->searched);
	return r;
}

/* -EAGAIN: a writer has published another state between two pieces. */
static int run_in_sections(struct many *m)
{
	struct state first = { 0 };
	size_t n = m->batch->n;
	int r = 0;

	for (size_t done = 0; !r && done < n; done += CHUNK) {
		bool due = false;

		m->look = look_begin(m->vm, m->as_id);
		if (!done && m->look.set)
			first = state_of(m->look.set);
		if (done && m->look.set && !same_state(m->vm, first, state_of(m->look.set)))
			r = -EAGAIN;
		else
			r = access_in_section(m, done, at_most(n - done, CHUNK), &due);
		look_end(m->vm, m->look);
		if (due)
			vm_index_make(m->vm, m->as_id, n <= MS_BATCH_BRIEF);
		point(READER_PIECE_OVER);
		if (!r)
			r = poll(m, done + CHUNK);
	}
	return r;
}

/* Whether references to all slots cost little, next to n values. */
static bool are_few_slots(const struct many *m, size_t n)
{
	struct look look = look_begin(m->vm, m->as_id);
	bool few = !look.set || look.set->nr <= n / 8;

	look_end(m->vm, look);
	return few;
}

static int run_many(struct many *m)
{
	size_t n = m->batch->n;
	bool once = m->write || m->batch->in == m->batch->out;
	int r;

	make_index_if_due(m, n);
	if (n > CHUNK && once)
		return n > MS_BATCH_PIECE || are_few_slots(m, n) ? run_held(m) : run_in_one_section(m);
	r = run_in_sections(m);
	return r == -EAGAIN ? run_held(m) : r;
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
