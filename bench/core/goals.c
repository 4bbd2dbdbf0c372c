/* SPDX-License-Identifier: MIT */
/*
 * goals.c - the yardsticks of goals P5, P6 and P7 that need C, measured together with the engine in one run.
 *
 *   P5  searches by gfn, in a plain red-black tree with KVM's slot layout and branches, and in the engine's tree:
 *       random, hot, and hot with a last_used_slot, as both use their trees.  In both, slots are at random places.
 *       Hot lookups of whole calls: ms_gfn_to_hva() and ms_vcpu_gfn_to_hva()
 *   P6  delete + create: the bare edits of three indexes in two sets, and the whole call
 *   P7  a lookup by id
 *
 * goals ROUNDS N...: all numbers of slots take turns in each round.  Prints one JSON object: for each number of slots
 * and each measurement an array with the nanoseconds of one call in each round.
 */
#define _POSIX_C_SOURCE 199309L
#include <string.h>

#include "private/measure.h"
#include "tree_set.h"

#include "common.h"
#include "kvm_tree.h"

#define QUERIES 100000
#define EDITS 10000
#define SLOTS_MAX 32764

enum figure {
	KVM_RANDOM,
	OUR_RANDOM,
	KVM_HOT,
	OUR_HOT,
	KVM_HINTED,
	OUR_HINTED,
	VM_CALLS,
	VCPU_CALLS,
	BARE_EDITS,
	CHANGES,
	IDS,
	NR_FIGURES
};

static const char *const figure_name[NR_FIGURES] = {
	"kvm_random", "our_random", "kvm_hot",    "our_hot", "kvm_hinted", "our_hinted",
	"vm_calls",   "vcpu_calls", "bare_edits", "changes", "ids",
};

struct bench {
	size_t n;
	struct ms_memslot *slots; /* by gfn */
	const struct ms_memslot **by_id;
	struct kvm_set kvm;
	struct address_space bare; /* two sets of the tree design, without an engine */
	struct memory memory;
	struct ms_vm *vm;
	struct ms_vcpu *vcpu;
	uint64_t random[QUERIES], hot[QUERIES], hot_hva[QUERIES], ids[QUERIES];
	double *ns[NR_FIGURES];
};

static uint64_t kvm_answer[QUERIES], our_answer[QUERIES];
static uint64_t ignored; /* the engine's own measurement, by another clock */

/* ---- slots in both trees ---- */

static void put_into_both(struct bench *b, const struct ms_memslot *s, struct kvm_slot *kvm, struct memslot *slot)
{
	kvm->base_gfn = slot->base_gfn = s->base_gfn;
	kvm->npages = slot->npages = s->npages;
	slot->hva = (struct interval){ s->userspace_addr, s->userspace_addr + (s->npages << 12) - 1 };
	slot->id = s->id;
	kvm_insert(&b->kvm, kvm);
	for (int k = 0; k < 2; k++)
		DESIGN_OF(tree).replace(&b->bare.set[k], NULL, slot);
}

static void init_bare_sets(struct bench *b)
{
	memory_init(&b->memory);
	for (uint32_t i = 0; i < 2; i++) {
		b->bare.set[i].node_idx = i;
		DESIGN_OF(tree).init(&b->bare.set[i]);
	}
	check(!DESIGN_OF(tree).begin(&b->memory, &b->bare, &b->bare.set[0], b->n), "room in the first set");
	DESIGN_OF(tree).follow(&b->memory, &b->bare, &b->bare.set[1]);
	DESIGN_OF(tree).end(&b->memory, &b->bare, &b->bare.set[1]);
}

/* Slots are allocated and inserted in random order. */
static void fill(struct bench *b)
{
	void **kvm = must(calloc(b->n, sizeof(*kvm))), **ours = must(calloc(b->n, sizeof(*ours)));
	void **order = must(calloc(b->n, sizeof(*order)));

	for (size_t i = 0; i < b->n; i++) {
		kvm[i] = must(calloc(1, sizeof(struct kvm_slot)));
		ours[i] = must(DESIGN_OF(tree).alloc_slot(&b->memory));
		order[i] = &b->slots[i];
	}
	shuffle(kvm, b->n);
	shuffle(ours, b->n);
	shuffle(order, b->n);
	for (size_t i = 0; i < b->n; i++)
		put_into_both(b, order[i], kvm[i], ours[i]);
	free(kvm);
	free(ours);
	free(order);
}

static struct bench *make_bench(size_t n, size_t rounds)
{
	struct bench *b = must(calloc(1, sizeof(*b)));
	uint64_t end;

	b->n = n;
	b->slots = must(calloc(n, sizeof(*b->slots)));
	b->by_id = must(calloc(n, sizeof(*b->by_id)));
	end = make_slots(b->slots, n);
	for (size_t i = 0; i < n; i++)
		b->by_id[b->slots[i].id] = &b->slots[i];
	init_bare_sets(b);
	fill(b);
	b->vm = make_vm(b->slots, n);
	check(!ms_vcpu_create(b->vm, &b->vcpu, NULL), "a vCPU");
	random_gfns(b->random, QUERIES, end);
	hot_gfns(b->hot, QUERIES, b->slots, n);
	for (size_t i = 0; i < QUERIES; i++)
		b->hot_hva[i] = right_hva(b->slots, n, b->hot[i]);
	random_gfns(b->ids, QUERIES, n);
	for (int f = 0; f < NR_FIGURES; f++)
		b->ns[f] = must(calloc(rounds, sizeof(double)));
	return b;
}

/* ---- P5 ---- */

#define NONE (~(uint64_t)0)

static void kvm_searches(struct bench *b, const uint64_t *gfns)
{
	for (size_t i = 0; i < QUERIES; i++) {
		const struct kvm_slot *slot = kvm_search(&b->kvm, gfns[i]);

		kvm_answer[i] = slot ? slot->base_gfn : NONE;
	}
}

static void our_searches(struct bench *b, const uint64_t *gfns)
{
	for (size_t i = 0; i < QUERIES; i++) {
		const struct memslot *slot = tree_search(&b->bare.set[0], gfns[i]);

		our_answer[i] = slot ? slot->base_gfn : NONE;
	}
}

static void kvm_hinted(struct bench *b, const uint64_t *gfns)
{
	for (size_t i = 0; i < QUERIES; i++) {
		const struct kvm_slot *slot = kvm_find_hinted(&b->kvm, gfns[i]);

		kvm_answer[i] = slot ? slot->base_gfn : NONE;
	}
}

/* Moves the hint at each search, as the KVM yardstick does.  The engine does not: see search.h. */
static inline const struct memslot *find_hinted(struct memslot_set *set, uint64_t gfn)
{
	struct memslot *slot = atomic_load_explicit(&set->last_used_slot, memory_order_relaxed);

	if (slot && memslot_contains(slot, gfn))
		return slot;
	slot = tree_search(set, gfn);
	if (slot)
		atomic_store_explicit(&set->last_used_slot, slot, memory_order_relaxed);
	return slot;
}

static void our_hinted(struct bench *b, const uint64_t *gfns)
{
	for (size_t i = 0; i < QUERIES; i++) {
		const struct memslot *slot = find_hinted(&b->bare.set[0], gfns[i]);

		our_answer[i] = slot ? slot->base_gfn : NONE;
	}
}

typedef void searches_fn(struct bench *b, const uint64_t *gfns);

static double time_searches(searches_fn *searches, struct bench *b, const uint64_t *gfns)
{
	double start = now_ns();

	searches(b, gfns);
	return (now_ns() - start) / QUERIES;
}

static void search_both(struct bench *b, size_t round, enum figure kvm, searches_fn *theirs, searches_fn *ours,
			const uint64_t *gfns)
{
	b->ns[kvm][round] = time_searches(theirs, b, gfns);
	b->ns[kvm + 1][round] = time_searches(ours, b, gfns);
	check(!memcmp(kvm_answer, our_answer, sizeof(our_answer)), "both trees find the same");
}

static void vm_calls(struct bench *b, const uint64_t *gfns)
{
	for (size_t i = 0; i < QUERIES; i++)
		our_answer[i] = ms_gfn_to_hva(b->vm, 0, gfns[i]);
}

static void vcpu_calls(struct bench *b, const uint64_t *gfns)
{
	for (size_t i = 0; i < QUERIES; i++)
		our_answer[i] = ms_vcpu_gfn_to_hva(b->vcpu, gfns[i]);
}

/* An untimed pass comes first: the lines of the slots are in the caches then, whichever of the two comes first. */
static void call_one(struct bench *b, size_t round, bool by_vcpu)
{
	searches_fn *calls = by_vcpu ? vcpu_calls : vm_calls;

	calls(b, b->hot);
	b->ns[by_vcpu ? VCPU_CALLS : VM_CALLS][round] = time_searches(calls, b, b->hot);
	check(!memcmp(our_answer, b->hot_hva, sizeof(our_answer)), "hot lookups");
}

/* ---- P6, P7 ---- */

static double time_bare_edits(struct bench *b)
{
	double start = now_ns();

	for (size_t i = 0; i < EDITS; i++) {
		struct memslot *slot = DESIGN_OF(tree).find(&b->bare.set[0], (uint32_t)b->ids[i]);

		for (int k = 0; k < 2; k++)
			DESIGN_OF(tree).replace(&b->bare.set[k], slot, NULL);
		for (int k = 0; k < 2; k++)
			DESIGN_OF(tree).replace(&b->bare.set[k], NULL, slot);
	}
	return (now_ns() - start) / EDITS;
}

static double time_changes(struct bench *b)
{
	uint32_t errors = 0;
	double start = now_ns();

	for (size_t i = 0; i < EDITS; i++) {
		const struct ms_memslot *s = b->by_id[b->ids[i]];
		struct ms_userspace_memory_region r = { .slot = s->id };

		errors |= (uint32_t)ms_set_user_memory_region(b->vm, &r, NULL);
		r.guest_phys_addr = s->base_gfn << 12;
		r.userspace_addr = s->userspace_addr;
		r.memory_size = s->npages << 12;
		errors |= (uint32_t)ms_set_user_memory_region(b->vm, &r, NULL);
	}
	start = (now_ns() - start) / EDITS;
	check(!errors, "every change is made");
	return start;
}

static double time_ids(struct bench *b)
{
	double start = now_ns();

	ms_time_id_to_memslot(b->vm, 0, b->ids, QUERIES, QUERIES, our_answer, &ignored);
	start = (now_ns() - start) / QUERIES;
	for (size_t i = 0; i < QUERIES; i++)
		check(our_answer[i] == b->by_id[b->ids[i]]->userspace_addr, "a slot by its id");
	return start;
}

/* ---- rounds ---- */

static void run_round(struct bench *b, size_t round)
{
	search_both(b, round, KVM_RANDOM, kvm_searches, our_searches, b->random);
	search_both(b, round, KVM_HOT, kvm_searches, our_searches, b->hot);
	search_both(b, round, KVM_HINTED, kvm_hinted, our_hinted, b->hot);
	for (size_t i = 0; i < 2; i++) /* each of the two comes first in every other round */
		call_one(b, round, (round + i) % 2);
	b->ns[BARE_EDITS][round] = time_bare_edits(b);
	b->ns[CHANGES][round] = time_changes(b);
	b->ns[IDS][round] = time_ids(b);
}

#include "rounds.h"

int main(int argc, char **argv)
{
	return run_rounds(argc, argv, "goals", SLOTS_MAX, "1 to 32,764 slots");
}
