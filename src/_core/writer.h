/* SPDX-License-Identifier: MIT */
/*
 * writer.h - the steps of every change.  A list of changes passes through both sets of one address space.
 *
 * The caller holds slots_lock and fills struct writer.  region.c makes a list of one change, load.c a list of creates,
 * transaction.c a list of any changes.
 *
 *   admit       validate in KVM's order, classify, allocate        (errors: nothing has changed)
 *   begin       prepare the inactive set, the private one, with room for the new slots
 *   stage       optional, per change: new_slot enters the private set before carry_out()
 *   carry_out   invalidate  DELETE and MOVE: an INVALID copy into the inactive set, swap, flush
 *               prepare     dirty log, gpa limit, listeners        (errors: abort, roll back)
 *               apply       put the new slots into the inactive set, swap
 *               propagate   make the same edits in the other set, so that both sets are alike again
 *               commit      totals, listeners; free the slots that no reader can reach
 *   end         release the memory of begin that is not needed any more
 *
 * Where old, inv (the INVALID copy) and new_slot are, A being active at the start:
 *
 *                     CREATE          DELETE            MOVE              FLAGS_ONLY
 *   invalidate        -               A: old  B: inv    A: old  B: inv    -
 *   apply             B: new          A: -              A: new            B: new
 *   propagate         A: new          B: -              B: new            A: new
 *   swaps             1               2                 2                 1
 *
 * A transaction has no INVALID copies.  All its edits are staged: first every old slot leaves the private set, then
 * every new one enters it, because one may have the place or the id of another.  Two kinds of changes exchange slots
 * at once: one that keeps its place and does not grow exchanges the two slots, and every other MOVE or RESIZE
 * exchanges them in each order except that by gfn, if the design can.  A short list that only permutes the places of
 * its slots makes all its edits at once, and needs no check of a place.  Then the listeners prepare, and the one
 * swap publishes all edits. propagate makes them in the same two halves.  Nothing is refused after the swap.
 *
 *   transaction            CREATE        DELETE      MOVE, RESIZE        FLAGS_ONLY
 *   stage, before the swap B: new        B: -        B: new              B: new
 *   propagate              A: new        A: -        A: new              A: new
 *
 * A thread may end inside a hook or a stall report.  Then the next call that takes slots_lock finishes the change,
 * without hooks.  It rolls the change back if apply has not published it yet, and completes it otherwise (enum
 * writer_step).
 *
 * Each swap increases the generation by the number of address spaces.  A roll-back allocates nothing: it swaps back and
 * replaces inv by old.  So a refused DELETE or MOVE has made two swaps.
 *
 * The table is valid where both sets share their slots.  Where each set stores copies (see memslot_set.h), begin()
 * makes the inactive set a copy of the active one, the steps make the same edits there, and propagate does nothing.
 *
 * Locking: slots_lock throughout.
 * Cost: O(log n) for each change and one grace period for each swap of the list.
 */
#ifndef MS_WRITER_H
#define MS_WRITER_H

#include "vm.h"

/* Returns the VM's writer with an empty list, which has room for one change.  Under slots_lock.  An assignment of the
 * whole struct would be one `rep stos` on x86, which costs 10 ns: 5 to 9 % of a change. */
static inline struct writer *writer_of(struct ms_vm *vm, uint32_t as_id, struct ms_error *err)
{
	struct writer *w = &vm->writer;

	w->vm = vm;
	w->err = err;
	w->change = w->few;
	w->nr = w->room = 0;
	w->scratch = NULL;
	w->scratch_size = 0;
	w->takes = NULL;
	w->nr_takes = w->takes_room = 0;
	w->values = NULL;
	w->prepared = (struct prepared){ 0 };
	w->built = NULL;
	w->nr_built = 0;
	w->as_id = as_id;
	w->entries = 0;
	w->step = WRITER_PREPARES;
	w->invalidated = w->removed = w->permuted = w->without_hooks = false;
	w->few[0] = (struct change){ 0 };
	return w;
}

/* If r is an error, writes the number of the list's entry into *err.  Returns r. */
static inline int at_entry(const struct writer *w, int r, uint32_t entry)
{
	if (r && w->err)
		w->err->index = entry;
	return r;
}

/* Checks 10 to 18 against `set`, for a change that gives these values to the slot with this id, or deletes it if npages
 * is 0.  Sets c->noop if nothing would change.  After a failure *c owns nothing. */
int writer_admit(const struct writer *w, struct change *c, const struct memslot_set *set,
		 const struct ms_memslot *value);

/* Makes the slots of a change whose kind, old and backing are set, without a dirty log and an INVALID copy: new_slot
 * has these values.  It checks nothing.  After a failure writer_discard() frees what is there. */
int writer_make(const struct writer *w, struct change *c, const struct ms_memslot *value);

/* Frees the slots of an admitted change that is not carried out. */
void writer_discard(const struct writer *w, struct change *c);

/* Call it before the first edit; `more` is the number of new slots.  writer_end() must follow, also after a failure. */
int writer_begin(const struct writer *w, size_t more);
void writer_end(const struct writer *w);

/* Gives the new slot of an admitted CREATE its dirty log, checks the gpa limit, and puts the slot into the private set.
 * The log comes first, because a set that stores copies does not read the writer's slot again.  After a failure *c is
 * discarded. */
int writer_stage(const struct writer *w, struct change *c);

/* Makes the edits of a transaction in the private set, and checks the places of the new slots, which have their logs
 * already.  After a failure writer_roll_back() undoes the edits.  w->err is not NULL. */
int writer_stage_list(struct writer *w);

/* Carries out the admitted changes after writer_begin().  An error restores everything except the generation. */
int writer_carry_out(struct writer *w);

/* After a refused change: counts it, and frees the memory that the pool has added for it.  Under slots_lock. */
static inline void writer_refused(struct ms_vm *vm)
{
	count_add(&vm->counts.refused, 1);
	memory_pool_trim(&vm->memory);
}

/* Removes the changes of the list from the private set, and discards them.  writer_carry_out() calls it after an error;
 * call it for a staged list that is not carried out. */
void writer_roll_back(struct writer *w);

/* Frees the memory of the list. */
void writer_release(struct writer *w);

#endif
