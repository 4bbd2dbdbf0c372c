/* SPDX-License-Identifier: MIT */
/*
 * batch.c - the calls of readers for many gfns at once.
 *
 * All answers of a call come from one published state.  A writer need not wait for a long call:
 *
 *   one section  a batch of up to MS_BATCH_PIECE lookups, or up to INDEXED_PIECE of them by index.  The index answers
 *                the frames without marks, and a walk of the set the others (overlay.h)
 *   index        a longer batch holds the index and a copy of the slots that have changed since (held_index.h); it
 *                needs no section meanwhile
 *   pieces       without an index the batch walks the set (batch_walk.h), MS_BATCH_PIECE lookups in each section; all
 *                sections must see the same state
 *   retry        if they do not, the batch starts again with an index that is made for it
 *   one section  if this index cannot be made, the retry is one section, and a writer waits for it
 *
 * If the output of a batch overwrites its input, the walk reads from a copy of the input, so that it can start again.
 *
 * Locking: none.  Between pieces, outside of sections, the batch calls the poll function of the caller.
 * Cost: 2 to 4 ns a lookup with an index; without one see batch_walk.h.
 */
#include <errno.h>
#include <string.h>

#include "batch_walk.h"
#include "flat_many.h"
#include "held_index.h"

/* The number of lookups that are copied through buffers on the stack at once, if the arrays have strides. */
#define CHUNK ((size_t)256)

/* The number of lookups by index that take as long as MS_BATCH_PIECE lookups that walk, or less. */
#define INDEXED_PIECE ((size_t)4 * MS_BATCH_PIECE)

/* Next to a writer that never stops, the second piece of a walk already sees another state, and the first one has been
 * for nothing.  So it is short.  No poll follows it. */
#define FIRST_PIECE ((size_t)512)

/* Arrays of C, as an index reads and writes them. */
static bool is_plain(const struct job *job)
{
	const struct ms_batch *batch = job->batch;
	size_t out = job->kind == GFN_TO_ID ? sizeof(int32_t) : sizeof(uint64_t);

	return batch->in_stride == sizeof(uint64_t) && batch->out_stride == (ptrdiff_t)out &&
	       (uintptr_t)batch->in % sizeof(uint64_t) == 0 && (uintptr_t)batch->out % out == 0;
}

static int poll(const struct job *job)
{
	return job->batch->poll && job->batch->poll(job->batch->opaque) ? -EINTR : 0;
}

/* ---- from an index ---- */

static void answer_plain(const struct job *job, const struct flat_index *index, size_t from, size_t n)
{
	if (job->kind == GFN_TO_ID)
		flat_ids(index, (const uint64_t *)job->batch->in + from, (int32_t *)job->batch->out + from, n);
	else
		flat_hvas(index, (const uint64_t *)job->batch->in + from, (uint64_t *)job->batch->out + from, n,
			  shift_of(job), job->write);
}

static void answer_chunk(const struct job *job, const struct flat_index *index, size_t from, size_t n)
{
	const struct ms_batch batch = *job->batch; /* no store of a result changes it */
	uint64_t values[CHUNK];
	int32_t ids[CHUNK];

	for (size_t i = 0; i < n; i++)
		values[i] = value_at(&batch, from + i);
	if (job->kind == GFN_TO_ID)
		flat_ids(index, values, ids, n);
	else
		flat_hvas(index, values, values, n, shift_of(job), job->write);
	for (size_t i = 0; i < n; i++)
		if (job->kind == GFN_TO_ID)
			put_id(&batch, from + i, ids[i]);
		else
			put_hva(&batch, from + i, values[i]);
}

/* All answers of the index, marked frames included. */
static void answer_by_index(const struct job *job, const struct flat_index *index, size_t from, size_t n)
{
	if (is_plain(job)) {
		answer_plain(job, index, from, n);
		return;
	}
	for (size_t i = 0; i < n; i += CHUNK)
		answer_chunk(job, index, from + i, at_most(n - i, CHUNK));
}

/* So many values are tested together for a mark; most of these groups have none. */
#define GROUP ((size_t)16)

/* A test of the values of a batch for marks.  All marked values are in the hull.  If the hull is narrow, it is tested
 * instead of the marks, because that needs no load. */
struct mark_test {
	struct overlay_marks marks;
	bool narrow;
	uint64_t first, length; /* of the hull, in units of values */
};

static struct mark_test mark_test_of(struct overlay_marks marks, bool narrow, struct gfn_range hull, unsigned shift)
{
	struct mark_test t = { .marks = marks, .narrow = narrow, .length = ~(uint64_t)0 };

	if (narrow) {
		t.first = hull.begin << shift;
		t.length = (hull.end - hull.begin) << shift;
	}
	return t;
}

static struct mark_test test_in_section(const struct job *job, const struct overlay *o, const struct memslot_set *set)
{
	struct gfn_range hull;
	bool narrow = overlay_hull(o, set->node_idx, &hull);

	return mark_test_of(overlay_marks(o, shift_of(job)), narrow, hull, shift_of(job));
}

static struct mark_test test_of_held(const struct job *job, const struct held_index *held)
{
	struct overlay_marks marks = overlay_marks(held->overlay, shift_of(job));
	struct gfn_range hull = { held->parts[0].entry.base_gfn, held->parts[held->nr - 1].end };

	marks.marks = held->marks;
	return mark_test_of(marks, overlay_is_narrow(held->overlay, &hull), hull, shift_of(job));
}

/* One subtraction more than a comparison of unsigned numbers, but vectors of SSE2 can do it. */
static bool any_in_hull(uint64_t first, uint64_t length, const uint64_t *in, size_t n)
{
	uint64_t inside = 0;

	for (size_t i = 0; i < n; i++) {
		uint64_t x = in[i] - first;

		inside |= (x - length) & ~x;
	}
	return inside >> 63;
}

static bool any_marked_plain(const struct mark_test *t, const uint64_t *in, size_t n)
{
	struct overlay_marks marks = t->marks;
	uint64_t marked = 0;
	size_t i = 0;

	if (t->narrow)
		return any_in_hull(t->first, t->length, in, n);
	for (; i + 4 <= n; i += 4)
		marked |= overlay_mark_of(&marks, in[i]) | overlay_mark_of(&marks, in[i + 1]) |
			  overlay_mark_of(&marks, in[i + 2]) | overlay_mark_of(&marks, in[i + 3]);
	for (; i < n; i++)
		marked |= overlay_mark_of(&marks, in[i]);
	return marked & 1;
}

/* Without branches, because marks are hard to predict. */
static void add_marked(const struct mark_test *t, const struct ms_batch *batch, size_t from, size_t n,
		       struct some *some)
{
	struct overlay_marks marks = t->marks;
	size_t nr = some->nr; /* no store of a value changes it */

	for (size_t i = from; i < from + n; i++) {
		uint64_t value = value_at(batch, i);

		some->value[nr] = value;
		some->at[nr] = i;
		nr += (value - t->first < t->length) & overlay_mark_of(&marks, value);
	}
	some->nr = nr;
}

/* The values [from, from + n), n <= SOME_MAX, that are marked. */
static void find_marked(const struct job *job, const struct mark_test *t, size_t from, size_t n, struct some *some)
{
	bool plain = is_plain(job);

	some->nr = 0;
	for (size_t i = from, group; i < from + n; i += group) {
		group = at_most(from + n - i, GROUP);
		if (!plain || any_marked_plain(t, (const uint64_t *)job->batch->in + i, group))
			add_marked(t, job->batch, i, group, some);
	}
}

/* ---- from an index, inside a section ---- */

/* The number of lookups that used the index, or a search.  The others used the hint. */
struct used {
	size_t indexed, searched;
};

/* The index answers all frames, then the walk answers the marked ones again.  If most of them are marked, the walk
 * alone is faster. */
static void answer_in_section(const struct job *job, const struct look *look, const struct flat_index *index,
			      const struct mark_test *t, size_t from, size_t n, struct used *used)
{
	struct some some;

	find_marked(job, t, from, n, &some);
	if (some.nr > n / 2) {
		used->searched += batch_walk(job, look, from, n);
		return;
	}
	answer_by_index(job, index, from, n);
	used->indexed += n - some.nr;
	used->searched += batch_walk_some(job, look, &some);
}

/* Returns the number of lookups that were searched for. */
static size_t run_by_overlay(const struct job *job, const struct look *look, const struct overlay *o)
{
	size_t n = job->batch->n;
	struct mark_test t = test_in_section(job, o, look->set);
	struct used used = { 0 };

	point(READER_INDEX_FOUND);
	if (overlay_answers_all(o, look->set->node_idx)) {
		answer_by_index(job, o->index, 0, n);
		used.indexed = n;
	}
	for (size_t i = used.indexed; i < n; i += SOME_MAX)
		answer_in_section(job, look, o->index, &t, i, at_most(n - i, SOME_MAX), &used);
	srcu_count(look->section.reader, SRCU_INDEXED, used.indexed);
	return used.searched;
}

/* ---- from an index, outside of sections ---- */

static void answer_part(const struct job *job, const struct held_index *held, const struct mark_test *t, size_t from,
			size_t n)
{
	struct some some;

	find_marked(job, t, from, n, &some);
	answer_by_index(job, held->index, from, n);
	for (size_t i = 0; i < some.nr; i++) {
		const struct held_part *part = held_index_find(held, some.value[i] >> shift_of(job));

		if (part)
			batch_put_entry(job, some.at[i], part->is_hole ? NULL : &part->entry, some.value[i]);
	}
}

static void answer_held(const struct job *job, const struct held_index *held, size_t from, size_t n)
{
	struct mark_test t;

	if (!held_index_has_parts(held)) {
		answer_by_index(job, held->index, from, n);
		return;
	}
	t = test_of_held(job, held);
	for (size_t i = 0; i < n; i += SOME_MAX)
		answer_part(job, held, &t, from + i, at_most(n - i, SOME_MAX));
}

static int run_by_held(const struct job *job, const struct held_index *held)
{
	size_t n = job->batch->n, done = 0;
	struct srcu_section section;
	int r = 0;

	point(READER_INDEX_HELD);
	while (!r && done < n) {
		size_t part = at_most(n - done, MS_BATCH_POLL);

		answer_held(job, held, done, part);
		done += part;
		r = done < n ? poll(job) : 0;
	}
	section = srcu_read_lock(&job->vm->srcu); /* finds the record in which this thread counts */
	srcu_count(section.reader, SRCU_INDEXED, done);
	srcu_read_unlock(&job->vm->srcu, section);
	return r;
}

/* ---- from a walk ---- */

static int run_in_one_section(const struct job *job)
{
	struct look look = look_begin(job->vm, job->as_id);

	batch_walk(job, &look, 0, job->batch->n);
	look_end(job->vm, look);
	return 0;
}

/* -EAGAIN: a writer has published another state between two pieces. */
static int run_in_pieces(const struct job *job)
{
	size_t n = job->batch->n, piece;
	struct state first = { 0 };

	for (size_t done = 0; done < n; done += piece) {
		struct look look = look_begin(job->vm, job->as_id);
		bool same = !done || same_state(job->vm, first, state_of(look.set));

		piece = at_most(n - done, done ? MS_BATCH_PIECE : FIRST_PIECE);
		if (!done)
			first = state_of(look.set);
		if (same)
			batch_walk(job, &look, done, piece);
		look_end(job->vm, look);
		point(READER_PIECE_OVER);
		if (!same)
			return -EAGAIN;
		if (done && done + piece < n && poll(job))
			return -EINTR;
	}
	return 0;
}

/* ---- whole batches ---- */

static int run_with(const struct job *job, struct held_index *held)
{
	int r = run_by_held(job, held);

	held_index_put(held);
	return r;
}

static bool is_brief(const struct job *job)
{
	return job->batch->n <= MS_BATCH_BRIEF;
}

static const struct overlay *usable_index(const struct job *job, const struct look *look)
{
	return may_index(job->vm) ? set_index(look->set) : NULL;
}

/* Ends the section.  The lookups that walk in it count towards the next index. */
static int finish_by_overlay(const struct job *job, const struct look *look, const struct overlay *o)
{
	bool due = vm_index_is_due(job->vm, look->set, run_by_overlay(job, look, o));

	look_end(job->vm, *look);
	if (due)
		vm_index_make(job->vm, job->as_id, is_brief(job));
	return 0;
}

/* A short batch is one section.  If there is no index, it is made first if it pays. */
static int run_short(const struct job *job)
{
	struct look look = look_begin(job->vm, job->as_id);
	const struct overlay *o = usable_index(job, &look);

	if (!o && vm_index_is_due(job->vm, look.set, job->batch->n)) {
		look_end(job->vm, look);
		vm_index_make(job->vm, job->as_id, is_brief(job));
		look = look_begin(job->vm, job->as_id);
		o = usable_index(job, &look);
	}
	if (o)
		return finish_by_overlay(job, &look, o);
	batch_walk(job, &look, 0, job->batch->n);
	look_end(job->vm, look);
	return 0;
}

/* A batch of INDEXED_PIECE lookups, of which few walk, takes no longer than MS_BATCH_PIECE that walk.  So it is one
 * section too.  There the marks suffice, even if the list of edited ranges has overflowed.  Returns false if there is
 * no index, or if more than a quarter of the slots has changed since it was begun. */
static bool run_as_one_piece(const struct job *job)
{
	struct look look = look_begin(job->vm, job->as_id);
	const struct overlay *o = usable_index(job, &look);

	if (o && overlay_has_few_marks(o, 4)) {
		finish_by_overlay(job, &look, o);
		return true;
	}
	look_end(job->vm, look);
	return false;
}

/* There is no index.  The output must not overwrite the input, because the batch may start again. */
static int run_walked(const struct job *job)
{
	struct held_index held;
	int r = run_in_pieces(job);

	if (r != -EAGAIN)
		return r;
	return held_index_make(job->vm, job->as_id, &held) ? run_with(job, &held) : run_in_one_section(job);
}

/* The output overwrites the input: the walk reads from a copy of the input. */
static int run_copied(const struct job *job)
{
	struct ms_batch batch = *job->batch;
	struct job copied = *job;
	size_t size = batch.n * sizeof(uint64_t);
	uint64_t *in = memory_zalloc(&job->vm->memory, size);
	int r;

	if (!in)
		return run_in_one_section(job);
	for (size_t i = 0; i < batch.n; i++)
		in[i] = value_at(job->batch, i);
	batch.in = in;
	batch.in_stride = sizeof(*in);
	copied.batch = &batch;
	r = run_walked(&copied);
	memory_free(&job->vm->memory, in, size);
	return r;
}

static int run_long(const struct job *job)
{
	struct held_index held;

	if (job->batch->n <= INDEXED_PIECE && run_as_one_piece(job))
		return 0;
	if (held_index_get(job->vm, job->as_id, job->batch->n, &held))
		return run_with(job, &held);
	return job->batch->in == job->batch->out ? run_copied(job) : run_walked(job);
}

/* More values than any array has would overflow a size. */
static int check_batch(const struct ms_batch *batch, bool has_out)
{
	if (!batch || (batch->n && (!batch->in || (has_out && !batch->out))))
		return -EFAULT;
	return batch->n > SIZE_MAX / sizeof(uint64_t) ? -EINVAL : 0;
}

static int run_job(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, enum kind kind, bool write)
{
	struct job job = { .vm = vm, .as_id = as_id, .kind = kind, .write = write, .batch = batch };
	int r = check_batch(batch, true);

	if (unlikely(r))
		return r;
	if (unlikely(as_id >= vm->config.address_spaces)) {
		batch_answer_holes(&job);
		return 0;
	}
	return batch->n <= MS_BATCH_PIECE ? run_short(&job) : run_long(&job);
}

int ms_gfn_to_hva_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write)
{
	return run_job(vm, as_id, batch, GFN_TO_HVA, write);
}

int ms_gpa_to_hva_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write)
{
	return run_job(vm, as_id, batch, GPA_TO_HVA, write);
}

int ms_gfn_to_slot_id_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch)
{
	return run_job(vm, as_id, batch, GFN_TO_ID, false);
}

int ms_mark_page_dirty_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch)
{
	struct job job = { .vm = vm, .as_id = as_id, .kind = MARK, .batch = batch };
	int r = check_batch(batch, false);

	for (size_t done = 0; !r && as_id < vm->config.address_spaces && done < batch->n; done += MS_BATCH_PIECE) {
		struct look look = look_begin(vm, as_id);

		batch_walk(&job, &look, done, at_most(batch->n - done, MS_BATCH_PIECE));
		look_end(vm, look);
		if (done + MS_BATCH_PIECE < batch->n)
			r = poll(&job);
	}
	return r;
}
