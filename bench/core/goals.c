/* SPDX-License-Identifier: MIT */
/*
 * goals.c - the yardsticks of goals P5, P6 and P7 that only C can hold, and this engine beside them in the same run.
 *
 *   P5  a random search by gfn in a plain red-black tree whose slots have KVM's layout, with KVM's two branches a node
 *   P6  the bare edits of a delete and a create: three indexes, two sets, no validation, allocation or swap
 *   P7  a lookup by id at 64 slots
 *
 * Prints one JSON object of medians in nanoseconds, by goal, who and number of slots; bench/goals.py makes ratios of them.
 */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tree_set.h"

#define ROUNDS 15
#define QUERIES 200000
#define EDITS 20000
#define SLOTS_MAX 32764

/* As struct kvm_memory_slot has them: chains, interval nodes, gfn nodes, then the frames; 264 bytes in all. */
struct kvm_slot {
	void *id_node[4];
	uint64_t hva_node[2][6];
	struct rb_node gfn_node[2];
	uint64_t base_gfn, npages;
	uint64_t rest[9];
};

static struct kvm_slot *kvm_slots[SLOTS_MAX];
static struct rb_root kvm_tree;
static struct ms_memslot slots[SLOTS_MAX];
static uint64_t query[QUERIES], answer[QUERIES], ns[QUERIES], sum;
static uint64_t state;

static uint64_t random_below(uint64_t n)
{
	state += 0x9E3779B97F4A7C15u;
	return ((state ^ state >> 29) * 0xBF58476D1CE4E5B9u >> 16) % n;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values)
{
	qsort(values, ROUNDS, sizeof(*values), by_value);
	return values[ROUNDS / 2];
}

static void shuffle(void **items, size_t n)
{
	for (size_t i = n; i > 1; i--) {
		size_t j = random_below(i);
		void *item = items[i - 1];

		items[i - 1] = items[j];
		items[j] = item;
	}
}

static void kvm_insert(struct kvm_slot *slot)
{
	struct rb_node *parent = NULL, *node = kvm_tree.node;
	int dir = 0;

	while (node) {
		parent = node;
		dir = slot->base_gfn >= container_of(node, struct kvm_slot, gfn_node[0])->base_gfn;
		node = node->child[dir];
	}
	rb_insert(&kvm_tree, parent, dir, &slot->gfn_node[0]);
}

static const struct kvm_slot *kvm_search(uint64_t gfn)
{
	const struct rb_node *node = kvm_tree.node;

	while (node) {
		const struct kvm_slot *slot = container_of((uintptr_t)node, struct kvm_slot, gfn_node[0]);

		if (gfn >= slot->base_gfn) {
			if (gfn < slot->base_gfn + slot->npages)
				return slot;
			node = node->child[1];
		} else {
			node = node->child[0];
		}
	}
	return NULL;
}

/* Slots of 1 to 512 pages with holes, allocated and inserted in random order, the same for both. */
static void fill(struct memslot_set *set, size_t n, struct memory *memory)
{
	static struct memslot *ours[SLOTS_MAX];
	uint64_t gfn = 0;

	for (size_t i = 0; i < n; i++) {
		slots[i] = (struct ms_memslot){ .base_gfn = gfn, .npages = 1 + random_below(512), .id = (uint32_t)i };
		gfn += slots[i].npages + random_below(128);
		kvm_slots[i] = malloc(sizeof(struct kvm_slot));
		ours[i] = DESIGN_OF(tree).alloc_slot(memory);
	}
	shuffle((void **)kvm_slots, n);
	shuffle((void **)ours, n);
	kvm_tree.node = NULL;
	for (size_t i = 0; i < n; i++) {
		size_t at = (i * 7919) % n; /* prime, and no divisor of n */
		struct memslot *slot = ours[at];

		kvm_slots[at]->base_gfn = slot->base_gfn = slots[at].base_gfn;
		kvm_slots[at]->npages = slot->npages = slots[at].npages;
		slot->hva = (struct interval){ slots[at].base_gfn << 12, ((slots[at].base_gfn + slot->npages) << 12) - 1 };
		slot->id = (uint32_t)at;
		kvm_insert(kvm_slots[at]);
		DESIGN_OF(tree).replace(&set[0], NULL, slot);
		DESIGN_OF(tree).replace(&set[1], NULL, slot);
	}
	for (size_t i = 0; i < QUERIES; i++)
		query[i] = random_below(gfn);
}

static double time_kvm_search(void)
{
	double start = now();

	for (size_t i = 0; i < QUERIES; i++) {
		const struct kvm_slot *slot = kvm_search(query[i]);

		answer[i] = slot ? slot->base_gfn : ~(uint64_t)0;
	}
	return (now() - start) / QUERIES;
}

static double time_our_search(const struct memslot_set *set)
{
	double start = now();

	for (size_t i = 0; i < QUERIES; i++) {
		const struct memslot *slot = tree_search(set, query[i]);

		if ((slot ? slot->base_gfn : ~(uint64_t)0) != answer[i])
			abort(); /* both must find the same */
	}
	return (now() - start) / QUERIES;
}

static double time_bare_edits(struct memslot_set *set, size_t n)
{
	double start = now();

	for (size_t i = 0; i < EDITS; i++) {
		struct memslot *slot = DESIGN_OF(tree).find(&set[0], (uint32_t)(query[i] % n));

		for (int k = 0; k < 2; k++)
			DESIGN_OF(tree).replace(&set[k], slot, NULL);
		for (int k = 0; k < 2; k++)
			DESIGN_OF(tree).replace(&set[k], NULL, slot);
	}
	return (now() - start) / EDITS;
}

static double time_changes(struct ms_vm *vm, size_t n)
{
	double start = now();

	for (size_t i = 0; i < EDITS; i++) {
		const struct ms_memslot *s = &slots[query[i] % n];
		struct ms_userspace_memory_region r = { .slot = s->id };

		sum += (uint64_t)(uint32_t)ms_set_user_memory_region(vm, &r, NULL);
		r.guest_phys_addr = r.userspace_addr = s->base_gfn << 12;
		r.memory_size = s->npages << 12;
		sum += (uint64_t)(uint32_t)ms_set_user_memory_region(vm, &r, NULL);
	}
	return (now() - start) / EDITS;
}

static double time_ids(struct ms_vm *vm, size_t n)
{
	for (size_t i = 0; i < QUERIES; i++)
		query[i] %= n;
	ms_time_id_to_memslot(vm, 0, query, QUERIES, QUERIES, answer, ns);
	return (double)ns[0] / QUERIES;
}

static struct ms_vm *make_vm(size_t n)
{
	struct ms_config config;
	struct ms_vm *vm;

	ms_config_init(&config);
	for (size_t i = 0; i < n; i++)
		slots[i].userspace_addr = slots[i].base_gfn << 12;
	if (ms_vm_create(&config, &vm) || ms_load_memslots(vm, 0, slots, n, NULL))
		abort();
	return vm;
}

static void measure(size_t n, const char *end)
{
	static struct memslot_set set[2];
	struct memory memory;
	double kvm[ROUNDS], ours[ROUNDS], bare[ROUNDS], whole[ROUNDS], ids[ROUNDS];
	struct ms_vm *vm;

	memory_init(&memory);
	for (uint32_t i = 0; i < 2; i++) {
		set[i].node_idx = i;
		DESIGN_OF(tree).init(&set[i]);
		for (unsigned bits = ID_HASH_BITS_MIN, old; (size_t)1 << bits < n; bits++)
			id_hash_rehash(&set[i].ids, calloc((size_t)2 << bits, sizeof(void *)), bits + 1, &old);
	}
	fill(set, n, &memory);
	vm = make_vm(n);
	for (int i = 0; i < ROUNDS; i++) {
		kvm[i] = time_kvm_search();
		ours[i] = time_our_search(&set[0]);
		bare[i] = time_bare_edits(set, n);
		whole[i] = time_changes(vm, n);
	}
	for (int i = 0; i < ROUNDS; i++)
		ids[i] = time_ids(vm, n);
	if (sum)
		abort(); /* every change was made */
	printf(" \"%zu\": {\"kvm_search\": %.2f, \"search\": %.2f, \"bare_edits\": %.2f, \"changes\": %.2f, \"id\": %.2f}%s\n", n,
	       median(kvm), median(ours), median(bare), median(whole), median(ids), end);
}

int main(void)
{
	puts("{");
	measure(8, ",");
	measure(64, ",");
	measure(509, ",");
	measure(4096, ",");
	measure(SLOTS_MAX, "");
	puts("}");
	return 0;
}
