/* SPDX-License-Identifier: MIT */
/*
 * batch.c - the calls of readers for many gfns at once.
 *
 * All answers of a call come from one published state.  A writer need not wait for a long call:
 *
 *   index        the batch holds a reference to an index, which contains the state; it needs no section meanwhile
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

#include "batch_walk.h"
#include "flat_many.h"
#include "vm_index.h"

/* The number of lookups that are copied through buffers on the stack at once, if the arrays have strides. */
#define CHUNK ((size_t)256)

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

static size_t at_most(size_t n, size_t limit)
{
	return n < limit ? n : limit;
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

static void answer_by_index(const struct job *job, const struct flat_index *index, size_t from, size_t n)
{
	if (is_plain(job)) {
		answer_plain(job, index, from, n);
		return;
	}
	for (size_t i = 0; i < n; i += CHUNK)
		answer_chunk(job, index, from + i, at_most(n - i, CHUNK));
}

static int run_by_index(const struct job *job, const struct flat_index *index)
{
	size_t n = job->batch->n, done = 0;
	struct srcu_section section;
	int r = 0;

	point(READER_INDEX_HELD);
	while (!r && done < n) {
		size_t part = at_most(n - done, MS_BATCH_POLL);

		answer_by_index(job, index, done, part);
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
	size_t n = job->batch->n;
	struct state first = { 0 };

	for (size_t done = 0; done < n; done += MS_BATCH_PIECE) {
		struct look look = look_begin(job->vm, job->as_id);
		bool same = !done || same_state(job->vm, first, state_of(look.set));

		if (!done)
			first = state_of(look.set);
		if (same)
			batch_walk(job, &look, done, at_most(n - done, MS_BATCH_PIECE));
		look_end(job->vm, look);
		point(READER_PIECE_OVER);
		if (!same)
			return -EAGAIN;
		if (done + MS_BATCH_PIECE < n && poll(job))
			return -EINTR;
	}
	return 0;
}

/* ---- whole batches ---- */

static int run_with(const struct job *job, struct flat_index *index)
{
	int r = run_by_index(job, index);

	flat_put(index);
	return r;
}

/* A short batch is one section, in which it can use an index without a reference. */
static int run_short(const struct job *job)
{
	struct look look = look_begin(job->vm, job->as_id);
	const struct flat_index *index = set_index(look.set);
	struct flat_index *held;

	if (index && may_index(job->vm)) {
		point(READER_INDEX_FOUND);
		answer_by_index(job, index, 0, job->batch->n);
		srcu_count(look.section.reader, SRCU_INDEXED, job->batch->n);
	} else if (!vm_index_pays(job->vm, look.set, job->batch->n, job->batch->n <= MS_BATCH_BRIEF)) {
		batch_walk(job, &look, 0, job->batch->n);
	} else {
		look_end(job->vm, look);
		held = vm_index_get(job->vm, job->as_id, 0);
		return held ? run_with(job, held) : run_in_one_section(job);
	}
	look_end(job->vm, look);
	return 0;
}

/* There is no index.  The output must not overwrite the input, because the batch may start again. */
static int run_walked(const struct job *job)
{
	struct flat_index *index;
	int r = run_in_pieces(job);

	if (r != -EAGAIN)
		return r;
	index = vm_index_make(job->vm, job->as_id);
	return index ? run_with(job, index) : run_in_one_section(job);
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
	struct flat_index *index = vm_index_get(job->vm, job->as_id, job->batch->n);

	if (index)
		return run_with(job, index);
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
