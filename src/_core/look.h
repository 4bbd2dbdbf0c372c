/* SPDX-License-Identifier: MIT */
/*
 * look.h - one read section and the set that it sees.
 *
 * A lookup counts in, loads the active word once, searches that set, and counts out.  Inside a section that
 * ms_read_lock() has opened, a lookup uses the word that this section loaded.
 *
 * Ordering: A of vm.h.  Locking: none; nothing here waits.
 */
#ifndef MS_LOOK_H
#define MS_LOOK_H

#include "vm.h"

struct look {
	struct srcu_section section;
	struct memslot_set *set; /* NULL if the address space does not exist */
};

static inline uint64_t section_view(struct ms_vm *vm, const struct srcu_section *section)
{
	return likely(section->outermost) ? atomic_load_explicit(&vm->active, memory_order_seq_cst) /* A */
					    :
					    section->reader->view;
}

static inline struct look look_begin(struct ms_vm *vm, uint32_t as_id)
{
	struct look look = { .section = srcu_read_lock(&vm->srcu) };

	if (likely(as_id < vm->config.address_spaces))
		look.set = vm_set_in_view(vm, as_id, section_view(vm, &look.section));
	point(READER_VIEW_LOADED);
	return look;
}

/* For a section that srcu_enter() has opened. */
static inline struct look look_of(struct srcu_reader *reader, struct memslot_set *set)
{
	return (struct look){ { .reader = reader, .bank = reader->bank, .outermost = true }, set };
}

static inline void look_end(struct ms_vm *vm, struct look look)
{
	point(READER_LEAVES);
	srcu_read_unlock(&vm->srcu, look.section);
	point(READER_LEFT);
}

/*
 * Identifies a published state.  A call that needs several sections compares states, to know whether a writer has
 * published another one in between.  The generation during a swap and the settled one after it are the same state.
 */
struct state {
	const struct memslot_set *set;
	uint64_t generation;
};

static inline struct state state_of(const struct memslot_set *set)
{
	return (struct state){ set, atomic_load_explicit(&set->generation, memory_order_relaxed) }; /* G */
}

static inline bool same_state(const struct ms_vm *vm, struct state a, struct state b)
{
	uint64_t settled = (a.generation & ~MS_GEN_UPDATE_IN_PROGRESS) + vm->config.address_spaces;

	return a.set == b.set &&
	       (a.generation == b.generation || (a.generation & MS_GEN_UPDATE_IN_PROGRESS && b.generation == settled));
}

#endif
