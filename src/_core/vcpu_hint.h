/* SPDX-License-Identifier: MIT */
/*
 * vcpu_hint.h - the hint of a vCPU: the slot that it found last, and the generation of the set that had the slot.
 *
 * KVM calls them last_used_slot and last_used_slot_gen.  Any number of threads may use one hint.  A lookup that hits
 * only reads.  A lookup that has searched stores the pair, unless another thread is storing one.  Nothing waits.
 *
 * Invariants
 *   V1  `version` is odd while a thread stores slot and generation; it never has the same value again;
 *   V2  the slot was in the set that had the generation; the thread that stored the pair has read both in one section.
 *
 * Inside a section, a hint with the generation of the set that the section sees is a live slot of this set.
 * docs/locking.md has the proof.
 *
 * Ordering (row "vCPU")
 *   A reader loads `version`, the generation, the slot, and `version` again.  If it has seen a generation or a slot of
 *   a later pair, its second load of `version` returns a greater value.  For this each load before the last one is an
 *   acquire, and the stores of the pair are releases.
 */
#ifndef MS_VCPU_HINT_H
#define MS_VCPU_HINT_H

#include "memslot_set.h"
#include "points.h"

struct vcpu_hint {
	_Atomic uint64_t version;
	_Atomic(struct memslot *) slot;
	_Atomic uint64_t generation;
};

/* No set ever has this generation: it would take 2^63 swaps. */
#define VCPU_NO_GENERATION (~(uint64_t)0)

/* If the hint has the generation of the set, puts its slot into *slot and returns true.  If it returns false, the slot
 * may be freed: nothing may read through the pointer.  An odd `version` equals no later one whose lowest bit is
 * cleared. */
static inline bool vcpu_hint_read(const struct vcpu_hint *hint, uint64_t generation, struct memslot **slot)
{
	uint64_t even = atomic_load_explicit(&hint->version, memory_order_acquire) & ~(uint64_t)1;

	if (unlikely(atomic_load_explicit(&hint->generation, memory_order_acquire) != generation))
		return false;
	point(VCPU_HINT_MATCHES);
	*slot = atomic_load_explicit(&hint->slot, memory_order_acquire);
	point(VCPU_HINT_LOADED);
	return likely(atomic_load_explicit(&hint->version, memory_order_relaxed) == even);
}

/* Returns false, and stores nothing, if another thread is storing a hint. */
static inline bool vcpu_hint_store(struct vcpu_hint *hint, uint64_t generation, struct memslot *slot)
{
	uint64_t even = atomic_load_explicit(&hint->version, memory_order_relaxed) & ~(uint64_t)1;

	if (!atomic_compare_exchange_strong_explicit(&hint->version, &even, even + 1, memory_order_acquire,
						     memory_order_relaxed))
		return false;
	atomic_store_explicit(&hint->generation, generation, memory_order_release);
	point(VCPU_HINT_HALF_STORED);
	atomic_store_explicit(&hint->slot, slot, memory_order_release);
	atomic_store_explicit(&hint->version, even + 2, memory_order_release);
	return true;
}

/* No other thread may use the hint. */
static inline void vcpu_hint_drop(struct vcpu_hint *hint)
{
	atomic_store_explicit(&hint->generation, VCPU_NO_GENERATION, memory_order_relaxed);
}

#endif
