/* SPDX-License-Identifier: MIT */
/*
 * paths.c - hot paths that are no single lookup, for the ledger of instructions.  tools/ledger.py runs this program
 * twice with different numbers of calls; the difference of the instructions is the cost of the calls.
 *
 * paths CASE SLOTS N
 *   replace  delete a random slot and create it again: two changes
 *   move     move a random slot beyond all others and back: two changes
 *   flags    turn the dirty log of a random slot on and off: two changes
 *   id       ms_id_to_memslot() of a random slot
 *   mark     ms_mark_page_dirty() of a random page; every slot has a log
 *   batch    ms_gfn_to_hva_many() of BATCH random frames, by the index
 *
 * The program checks the state that it ends with, at a cost that does not depend on N.
 */
#include <string.h>

#include "common.h"

#define BATCH 4096
#define QUERIES 4096 /* a power of two; the loop repeats these slots and frames */

struct bench {
	struct ms_vm *vm;
	struct ms_memslot *slots;
	size_t n;
	uint64_t end;
	size_t chosen[QUERIES];
	uint64_t gfns[QUERIES], hvas[QUERIES];
};

static struct ms_userspace_memory_region region_of(const struct ms_memslot *slot)
{
	return (struct ms_userspace_memory_region){ .slot = slot->id,
						    .flags = slot->flags,
						    .guest_memfd = -1,
						    .guest_phys_addr = slot->base_gfn << 12,
						    .memory_size = slot->npages << 12,
						    .userspace_addr = slot->userspace_addr };
}

static void change(struct bench *b, struct ms_userspace_memory_region region)
{
	check(!ms_set_user_memory_region(b->vm, &region, NULL), "a change");
}

/* `first` is the first change; the second one makes the slot as it was. */
static void there_and_back(struct bench *b, struct ms_userspace_memory_region first, const struct ms_memslot *slot)
{
	change(b, first);
	change(b, region_of(slot));
}

static void replace(struct bench *b, size_t i)
{
	const struct ms_memslot *slot = &b->slots[b->chosen[i % QUERIES]];
	struct ms_userspace_memory_region first = region_of(slot);

	first.memory_size = 0;
	there_and_back(b, first, slot);
}

static void move(struct bench *b, size_t i)
{
	const struct ms_memslot *slot = &b->slots[b->chosen[i % QUERIES]];
	struct ms_userspace_memory_region first = region_of(slot);

	first.guest_phys_addr = b->end << 12;
	there_and_back(b, first, slot);
}

static void flags(struct bench *b, size_t i)
{
	const struct ms_memslot *slot = &b->slots[b->chosen[i % QUERIES]];
	struct ms_userspace_memory_region first = region_of(slot);

	first.flags = MS_MEM_LOG_DIRTY_PAGES;
	there_and_back(b, first, slot);
}

static void id(struct bench *b, size_t i)
{
	const struct ms_memslot *slot = &b->slots[b->chosen[i % QUERIES]];
	struct ms_memslot found;

	check(!ms_id_to_memslot(b->vm, 0, slot->id, &found) && found.base_gfn == slot->base_gfn, "a lookup by id");
}

static void mark(struct bench *b, size_t i)
{
	ms_mark_page_dirty(b->vm, 0, b->gfns[i % QUERIES]);
}

static void batch(struct bench *b, size_t i)
{
	struct ms_batch all = { b->gfns, sizeof(*b->gfns), b->hvas, sizeof(*b->hvas), BATCH };

	(void)i;
	check(!ms_gfn_to_hva_many(b->vm, 0, &all, true), "a batch");
}

static const struct path {
	const char *name;
	void (*call)(struct bench *b, size_t i);
	uint32_t flags; /* of all slots */
} paths[] = {
	{ "replace", replace, 0 },
	{ "move", move, 0 },
	{ "flags", flags, 0 },
	{ "id", id, 0 },
	{ "mark", mark, MS_MEM_LOG_DIRTY_PAGES },
	{ "batch", batch, 0 },
};

static const struct path *path_of(const char *name)
{
	for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++)
		if (!strcmp(paths[i].name, name))
			return &paths[i];
	return NULL;
}

static void begin(struct bench *b, const struct path *path)
{
	b->slots = must(calloc(b->n, sizeof(*b->slots)));
	b->end = make_slots(b->slots, b->n);
	for (size_t i = 0; i < b->n; i++)
		b->slots[i].flags = path->flags;
	b->vm = make_vm(b->slots, b->n);
	for (size_t i = 0; i < QUERIES; i++)
		b->chosen[i] = (size_t)random_below(b->n);
	random_gfns(b->gfns, QUERIES, b->end);
	check(!ms_set_index_policy(b->vm, !strcmp(path->name, "batch") ? MS_INDEX_EAGER : MS_INDEX_OFF), "a policy");
	batch(b, 0);
}

/* Every lookup must give the slots of the beginning, because each case undoes its changes. */
static void end(struct bench *b)
{
	batch(b, 0);
	for (size_t i = 0; i < QUERIES; i++)
		check(b->hvas[i] == right_hva(b->slots, b->n, b->gfns[i]), "the slots at the end");
	ms_vm_destroy(b->vm);
	free(b->slots);
}

int main(int argc, char **argv)
{
	static struct bench b;
	const struct path *path = argc == 4 ? path_of(argv[1]) : NULL;
	size_t calls = path ? strtoul(argv[3], NULL, 10) : 0;

	b.n = path ? strtoul(argv[2], NULL, 10) : 0;
	if (!b.n) {
		fputs("paths replace|move|flags|id|mark|batch SLOTS N\n", stderr);
		return 2;
	}
	begin(&b, path);
	for (size_t i = 0; i < calls; i++)
		path->call(&b, i);
	end(&b);
	return 0;
}
