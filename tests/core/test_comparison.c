/* SPDX-License-Identifier: MIT */
/*
 * test_comparison.c - comparisons of the slots of a VM with rows, against a comparison of each slot with each row.
 *
 * The guest memory has cells of CELL_PAGES frames.  A cell has a slot or none, and a row or none.
 */
#include "fixture.h"

#include "private/comparison.h"

#define CELLS 40u
#define CELL_PAGES 4u
#define SPACES 3u
#define SPACE 2u
#define GUARD 0x5A5A5A5Au

static char memory[CELLS][2 * PAGE] __attribute__((aligned(4096)));
static struct ms_backing *backings[CELLS];
static struct rng rng;

struct entry {
	struct ms_memslot value;
	struct ms_backing *backing;
};

static struct entry slots[CELLS], rows[CELLS];
static size_t nr_slots, nr_rows;

/* The arrays of a comparison, with one guarded entry behind each. */
static struct ms_memslot wanted[CELLS], gone[CELLS + 1];
static struct ms_backing *wanted_backings[CELLS], *gone_backings[CELLS + 1];
static uint32_t ids[CELLS + 1];

static void make_backings(void)
{
	for (uint32_t i = 0; i < CELLS; i++)
		CHECK_EQ(ms_backing_create(memory[i], sizeof(memory[i]), 0, NULL, NULL, &backings[i]), 0);
}

/* ---- slots and rows ---- */

static struct entry some_slot(uint32_t cell)
{
	struct ms_backing *backing = rng_below(&rng, 3) ? NULL : backings[cell];
	uint64_t hva = backing ? (uintptr_t)memory[cell] : hva_for(SPACE, cell);

	return (struct entry){ { cell * CELL_PAGES + rng_below(&rng, 2), 1 + rng_below(&rng, 2), hva, cell * 7 % CELLS,
				 SPACE, (uint32_t)rng_below(&rng, 4), 0 },
			       backing };
}

static void add_slot(struct ms_vm *vm, const struct entry *slot)
{
	region_t r = region(SPACE, slot->value.id, slot->value.base_gfn, slot->value.npages, slot->value.flags);

	r.userspace_addr = slot->value.userspace_addr;
	if (slot->backing)
		CHECK_EQ(ms_map_backing(vm, &r, slot->backing, NULL, NULL), 0);
	else
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
}

/* The row of a slot; one field of every third row differs. */
static struct entry some_row(struct entry row)
{
	switch (rng_below(&rng, 18)) {
	case 0:
		row.value.base_gfn ^= 1;
		break;
	case 1:
		row.value.npages ^= 3;
		break;
	case 2:
		row.value.userspace_addr += PAGE;
		break;
	case 3:
		row.value.flags ^= 1u << rng_below(&rng, 2);
		break;
	case 4:
		row.value.id += CELLS;
		break;
	case 5:
		row.backing = row.backing ? NULL : backings[0];
		break;
	}
	return row;
}

static struct ms_vm *make_slots_and_rows(void)
{
	struct ms_vm *vm = new_vm(SPACES);
	uint64_t density = 1 + rng_below(&rng, 8);

	CHECK_EQ(set(vm, 0, 1, 0, 1, 0), 0); /* a slot of another address space */
	nr_slots = nr_rows = 0;
	for (uint32_t cell = 0; cell < CELLS; cell++) {
		struct entry slot = some_slot(cell);
		uint64_t kind = rng_below(&rng, density + 2);

		if (kind != 1) {
			add_slot(vm, &slot);
			slots[nr_slots++] = slot;
		}
		if (kind != 0)
			rows[nr_rows++] = some_row(slot);
	}
	return vm;
}

/* ---- the model ---- */

static bool are_equal(const struct entry *slot, const struct entry *row, bool with_ids, bool with_backings)
{
	const struct ms_memslot *a = &slot->value, *b = &row->value;

	return a->base_gfn == b->base_gfn && a->npages == b->npages && a->userspace_addr == b->userspace_addr &&
	       a->flags == b->flags && (a->id == b->id || !with_ids) &&
	       (slot->backing == row->backing || !with_backings);
}

static uint32_t wanted_id(size_t row, bool with_ids, bool with_backings)
{
	for (size_t i = 0; i < nr_slots; i++)
		if (are_equal(&slots[i], &rows[row], with_ids, with_backings))
			return slots[i].value.id;
	return MS_SLOT_ANY;
}

static bool is_gone(size_t slot, bool with_ids, bool with_backings)
{
	for (size_t i = 0; i < nr_rows; i++)
		if (are_equal(&slots[slot], &rows[i], with_ids, with_backings))
			return false;
	return true;
}

/* ---- comparisons ---- */

static struct ms_comparison new_comparison(bool with_ids, bool with_backings)
{
	for (size_t i = 0; i < nr_rows; i++) {
		wanted[i] = rows[i].value;
		wanted_backings[i] = rows[i].backing;
	}
	memset(ids, 0x5A, sizeof(ids));
	memset(gone, 0x5A, sizeof(gone));
	return (struct ms_comparison){ .wanted = wanted,
				       .backings = with_backings ? wanted_backings : NULL,
				       .nr_wanted = nr_rows,
				       .with_ids = with_ids,
				       .ids = ids,
				       .gone = gone,
				       .gone_backings = gone_backings,
				       .room = nr_slots };
}

static void check_result(const struct ms_comparison *c, bool live)
{
	size_t nr = 0;

	for (size_t i = 0; i < nr_rows; i++)
		CHECK_EQ(ids[i], wanted_id(i, c->with_ids, c->backings));
	for (size_t i = 0; i < nr_slots; i++) {
		if (!is_gone(i, c->with_ids, c->backings))
			continue;
		CHECK(same_slot(&gone[nr], &slots[i].value));
		CHECK_EQ(gone_backings[nr], live ? slots[i].backing : NULL);
		nr++;
	}
	CHECK_EQ(c->nr_gone, nr);
	CHECK_EQ(ids[nr_rows], GUARD);
	CHECK_EQ(gone[nr_slots].id, GUARD);
}

static void compare_vm(struct ms_vm *vm, bool with_ids, bool with_backings)
{
	struct ms_comparison c = new_comparison(with_ids, with_backings);

	CHECK_EQ(ms_compare_memslots(vm, SPACE, &c), nr_slots);
	check_result(&c, true);
}

static void compare_arrays(bool with_ids)
{
	struct ms_comparison c = new_comparison(with_ids, false);
	struct ms_memslot now[CELLS];

	for (size_t i = 0; i < nr_slots; i++)
		now[i] = slots[i].value;
	ms_compare_rows(now, nr_slots, &c);
	check_result(&c, false);
}

/* With too little room nothing is written. */
static void without_room(struct ms_vm *vm)
{
	struct ms_comparison c = new_comparison(false, false);

	if (!nr_slots)
		return;
	c.room = nr_slots - 1;
	CHECK_EQ(ms_compare_memslots(vm, SPACE, &c), nr_slots);
	CHECK_EQ(ids[0], GUARD);
	CHECK_EQ(gone[0].id, GUARD);
}

/* Every row is new. */
static void without_slots(struct ms_vm *vm, uint32_t as_id)
{
	struct ms_comparison c = new_comparison(true, true);

	c.room = 0;
	CHECK_EQ(ms_compare_memslots(vm, as_id, &c), 0);
	CHECK_EQ(c.nr_gone, 0);
	for (size_t i = 0; i < nr_rows; i++)
		CHECK_EQ(ids[i], MS_SLOT_ANY);
	CHECK_EQ(ids[nr_rows], GUARD);
}

static uint64_t compare_some(uint64_t times)
{
	for (uint64_t i = 0; i < times; i++) {
		struct ms_vm *vm = make_slots_and_rows();

		for (unsigned k = 0; k < 4; k++)
			compare_vm(vm, k & 1, k & 2);
		compare_arrays(false);
		compare_arrays(true);
		without_room(vm);
		without_slots(vm, 1);
		without_slots(vm, SPACES);
		ms_vm_destroy(vm);
	}
	return times;
}

int main(int argc, char **argv)
{
	uint64_t times = 0;

	test_init(argc, argv, 60);
	rng = rng_stream(1);
	make_backings();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		times += compare_some(test_times(300));
	for (uint32_t i = 0; i < CELLS; i++)
		ms_backing_put(backings[i]);
	return test_done("comparison", times, "layouts");
}
