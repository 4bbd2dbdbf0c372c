/* SPDX-License-Identifier: MIT */
/*
 * guest_ranges.c - the host memory of ranges of guest memory, and the slots of many ranges.
 *
 * A call with many ranges answers in pieces of RANGES_PIECE slots, with a read section each, so that a writer does not
 * wait for all of them.  If the state changes between two pieces, the call starts again; the last time in one section.
 *
 * Locking: none; nothing here waits.
 * Cost: a lookup for each range, and one step for each slot.
 */
#include "guest_run.h"

/* ---- one range ---- */

struct ranges_out {
	struct ms_host_range *out;
	size_t room, nr;
	struct ms_host_range last; /* number nr - 1 */
};

static void put_range(struct ranges_out *to, uint64_t hva, uint64_t length, bool first)
{
	if (!first && to->last.hva + to->last.length == hva) {
		to->last.length += length;
	} else {
		to->last = (struct ms_host_range){ hva, length };
		to->nr++;
	}
	if (to->out && to->nr <= to->room)
		to->out[to->nr - 1] = to->last;
}

/* The bytes of the slot from gpa on that have an address for this use. */
static uint64_t bytes_of(const struct memslot *slot, uint64_t gpa, uint64_t n, bool write)
{
	uint64_t gfn = gpa >> MS_PAGE_SHIFT;

	return translate(slot, gfn, write) < MS_HVA_ERR_MIN ? guest_bytes_in(slot, gpa, n) : 0;
}

/* Adds the ranges of [gpa, gpa + n), and returns the number of bytes before the first hole. */
static uint64_t add_ranges(const struct ms_vm *vm, const struct look *look, uint64_t gpa, uint64_t n, bool write,
			   struct ranges_out *to)
{
	const struct memslot *slot = n ? guest_find(vm, look, gpa >> MS_PAGE_SHIFT) : NULL;
	uint64_t done = 0, part;

	while (slot && (part = bytes_of(slot, gpa + done, n - done, write))) {
		put_range(to, (uint64_t)(uintptr_t)guest_host(slot, gpa + done), part, !done);
		done += part;
		slot = done < n ? guest_next(vm, look, slot) : NULL;
	}
	return done;
}

size_t ms_host_ranges(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint64_t n, bool write, struct ms_host_range *out,
		      size_t room, uint64_t *hole)
{
	struct look look = look_begin(vm, as_id);
	struct ranges_out to = { .out = out, .room = room };
	uint64_t done = add_ranges(vm, &look, gpa, n, write, &to);

	look_end(vm, look);
	if (hole)
		*hole = gpa + done;
	return to.nr;
}

/* ---- many ranges ---- */

/* A call with many ranges: each answers one of them. */
struct ranges_job {
	struct ms_vm *vm;
	uint32_t as_id;
	const uint64_t *first, *second; /* gpas and sizes, or starts and ends */
	size_t n;
	bool write;
	struct ranges_out hosts;
	struct ms_memslot *slots;
	size_t room, nr;
	uint64_t *offsets, *holes;
};

/* A section answers so many ranges, or fewer if they have more slots. */
#define RANGES_PIECE ((size_t)1024)

#define RANGES_TRIES 4

typedef size_t answer_fn(struct ranges_job *job, const struct look *look, size_t i);

static size_t answer_hosts(struct ranges_job *job, const struct look *look, size_t i)
{
	size_t before = job->hosts.nr;
	uint64_t done = add_ranges(job->vm, look, job->first[i], job->second[i], job->write, &job->hosts);

	if (job->holes)
		job->holes[i] = job->first[i] + done;
	job->nr = job->hosts.nr;
	return 1 + job->nr - before;
}

static size_t answer_slots(struct ranges_job *job, const struct look *look, size_t i)
{
	const struct memslot_design *design = job->vm->design;
	uint64_t start = job->first[i], end = job->second[i];
	const struct memslot *slot = look->set && start < end ? design->first_from(look->set, start) : NULL;
	size_t before = job->nr;

	for (; slot && slot->base_gfn < end; slot = design->next(look->set, slot), job->nr++)
		if (job->slots && job->nr < job->room)
			job->slots[job->nr] = memslot_value(slot);
	return 1 + job->nr - before;
}

static void start(struct ranges_job *job)
{
	job->nr = job->hosts.nr = 0;
}

/* Answers from range i on, in one section; at most `work` ranges and slots.  Returns the next range. */
static size_t answer_piece(struct ranges_job *job, const struct look *look, answer_fn *answer, size_t i, size_t work)
{
	for (size_t done = 0; i < job->n && done < work; i++) {
		if (job->offsets)
			job->offsets[i] = job->nr;
		done += answer(job, look, i);
	}
	return i;
}

static bool run_in_pieces(struct ranges_job *job, answer_fn *answer)
{
	struct state first = { 0 };
	bool same = true;

	start(job);
	for (size_t i = 0; same && i < job->n;) {
		struct look look = look_begin(job->vm, job->as_id);

		if (look.set && !i)
			first = state_of(look.set);
		same = !look.set || same_state(job->vm, first, state_of(look.set));
		if (same)
			i = answer_piece(job, &look, answer, i, RANGES_PIECE);
		look_end(job->vm, look);
		point(READER_PIECE_OVER);
	}
	return same;
}

static void run_in_one_section(struct ranges_job *job, answer_fn *answer)
{
	struct look look = look_begin(job->vm, job->as_id);

	start(job);
	answer_piece(job, &look, answer, 0, SIZE_MAX);
	look_end(job->vm, look);
}

static size_t run_ranges(struct ranges_job *job, answer_fn *answer)
{
	bool complete = false;

	if (!job->first || !job->second)
		job->n = 0;
	for (int i = 0; !complete && i < RANGES_TRIES; i++)
		complete = run_in_pieces(job, answer);
	if (!complete)
		run_in_one_section(job, answer);
	if (job->offsets)
		job->offsets[job->n] = job->nr;
	return job->nr;
}

size_t ms_host_ranges_many(struct ms_vm *vm, uint32_t as_id, const uint64_t *gpas, const uint64_t *sizes, size_t n,
			   bool write, struct ms_host_range *out, size_t room, uint64_t *offsets, uint64_t *holes)
{
	struct ranges_job job = { .vm = vm, .as_id = as_id, .first = gpas, .second = sizes, .n = n, .write = write };

	job.hosts = (struct ranges_out){ .out = out, .room = room };
	job.offsets = offsets;
	job.holes = holes;
	return run_ranges(&job, answer_hosts);
}

size_t ms_memslots_in_gfn_range_many(struct ms_vm *vm, uint32_t as_id, const uint64_t *starts, const uint64_t *ends,
				     size_t n, struct ms_memslot *out, size_t room, uint64_t *offsets)
{
	struct ranges_job job = { .vm = vm, .as_id = as_id, .first = starts, .second = ends, .n = n, .slots = out };

	job.room = room;
	job.offsets = offsets;
	return run_ranges(&job, answer_slots);
}
