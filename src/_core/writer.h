/* SPDX-License-Identifier: MIT */
/*
 * writer.h - the one way that every change goes: a list of changes passes through both sets of an address space.
 *
 * The caller holds slots_lock and fills struct writer.  region.c makes a list of one, load.c a list of creates.
 *
 *   admit       validate in KVM's order, classify, allocate        (errors: nothing has happened)
 *   begin       the inactive set becomes the private one, with room for the new slots
 *   stage       optional, per change: new_slot enters the private set before carry_out()
 *   carry_out   invalidate  DELETE and MOVE: an INVALID copy into the inactive set, swap, flush
 *               prepare     dirty log, gpa limit, listeners        (errors: abort, roll back)
 *               apply       the inactive set gets the new slots, swap
 *               propagate   the other set gets the same edits; both are alike again
 *               commit      totals, listeners; slots that no reader can reach are freed
 *   end         gives back what begin took
 *
 * Where old, inv (the INVALID copy) and new_slot are, A being active at the start:
 *
 *                     CREATE          DELETE            MOVE              FLAGS_ONLY
 *   invalidate        -               A: old  B: inv    A: old  B: inv    -
 *   apply             B: new          A: -              A: new            B: new
 *   propagate         A: new          B: -              B: new            A: new
 *   swaps             1               2                 2                 1
 *
 * A thread may end inside a hook or a stall report.  Then the next call that takes slots_lock finishes the change, without
 * hooks: it rolls the change back until apply, and completes it afterwards (enum writer_step).
 *
 * Each swap moves the generation by the number of address spaces.  Roll-back allocates nothing: it swaps back and
 * puts old where inv was, so a refused DELETE or MOVE has made two swaps.
 *
 * The table holds where the sets share their slots.  Where each set stores copies of its own (see memslot_set.h),
 * begin() makes the inactive set a copy of the active one, the same edits are made in it, and propagate does nothing.
 *
 * Locking: slots_lock throughout.
 * Cost: O(log n) for each change and one grace period for each swap of the list.
 */
#ifndef MS_WRITER_H
#define MS_WRITER_H

#include "vm.h"

/* The VM's writer, without a change in its list, which has room for one.  Under slots_lock. */
static inline struct writer *writer_of(struct ms_vm *vm, uint32_t as_id, struct ms_error *err)
{
	struct writer *w = &vm->writer;

	*w = (struct writer){ .vm = vm, .as_id = as_id, .change = &w->single, .err = err };
	return w;
}

/* Names the entry of the list in the error, and passes r on. */
static inline int at_entry(const struct writer *w, int r, uint32_t entry)
{
	if (r && w->err)
		w->err->index = entry;
	return r;
}

/* Checks 10 to 18 against `set`: the slot of this id is to have these values, none if npages is 0.  A change that does
 * nothing becomes a noop.  *c owns nothing after a failure. */
int writer_admit(const struct writer *w, struct change *c, const struct memslot_set *set,
		 const struct ms_memslot *value);

/* Frees the slots of an admitted change that is not carried out. */
void writer_discard(const struct writer *w, struct change *c);

/* Before the first edit; `more` is the number of slots that are new.  After it end() must follow, also on failure. */
int writer_begin(const struct writer *w, size_t more);
void writer_end(const struct writer *w);

/* Puts the new slot of an admitted CREATE into the private set, with its dirty log: a set that stores copies does not
 * look at the writer's slot again.  *c is discarded after a failure. */
int writer_stage(const struct writer *w, struct change *c);

/* Carries out admitted changes after begin().  After an error everything is as it was, except the generation. */
int writer_carry_out(struct writer *w);

/* Under slots_lock, after a change that was refused: counts it, and frees what the pool has added for it. */
static inline void writer_refused(struct ms_vm *vm)
{
	count_add(&vm->counts.refused, 1);
	memory_pool_trim(&vm->memory);
}

/* Takes back the staged changes of a list that is not carried out, and discards them. */
void writer_roll_back_staged(struct writer *w);

/* Frees the memory of the list. */
void writer_release(struct writer *w);

#endif
