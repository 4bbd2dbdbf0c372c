/* SPDX-License-Identifier: MIT */
/*
 * test_layout_steps.c - lists of steps that test_transaction.c does not make: many steps of one slot, and host
 * addresses on both sides of 2^63.
 */
#include "fixture.h"

#include "layout_steps.h"
#include "writer.h"

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define NPAGES 32u
#define MIDDLE (NPAGES / 2)
#define PAIRS 12u
#define HALF ((uint64_t)1 << 63)

static struct ms_step create(uint64_t hva)
{
	return (struct ms_step){
		.kind = MS_STEP_CREATE, .slot = 1, .flags = LOG, .memory_size = NPAGES * PAGE, .userspace_addr = hva
	};
}

static struct ms_step split(void)
{
	return (struct ms_step){ .kind = MS_STEP_SPLIT, .slot = 1, .other = 2, .guest_phys_addr = MIDDLE * PAGE };
}

static struct ms_step merge(uint32_t slot, uint32_t other)
{
	return (struct ms_step){ .kind = MS_STEP_MERGE, .slot = slot, .other = other };
}

static bool is_dirty(struct ms_vm *vm, uint32_t id, uint64_t page)
{
	uint64_t words[2];
	size_t nwords;

	CHECK_EQ(ms_get_dirty_log(vm, 0, id, words, ARRAY_SIZE(words), &nwords, NULL), 0);
	return words[page / 64] >> page % 64 & 1;
}

/* Each pair of steps adds a few sources at most.  They doubled the sources once: 60 steps took all memory. */
static void test_splits_and_merges(void)
{
	struct ms_vm *vm = new_vm(1);
	const struct writer *w = writer_of(vm, 0, NULL);
	struct layout layout;
	struct ms_step steps[2 * PAIRS], first = create(HVA_BASE);

	CHECK_EQ(ms_change_memslots(vm, 0, &first, 1, NULL), 0);
	ms_mark_page_dirty(vm, 0, MIDDLE + 1);
	for (size_t i = 0; i < PAIRS; i++) {
		steps[2 * i] = split();
		steps[2 * i + 1] = merge(1, 2);
	}
	CHECK_EQ(layout_resolve(&layout, w, steps, 2 * PAIRS), 0);
	CHECK(layout.sources.nr <= 4 * PAIRS);
	layout_free(&layout);

	steps[2 * PAIRS - 1] = merge(2, 1); /* now the slot has pages of another log */
	CHECK_EQ(ms_change_memslots(vm, 0, steps, 2 * PAIRS, NULL), 0);
	CHECK(is_dirty(vm, 2, MIDDLE + 1));
	check_sound(vm);
	end_vm(vm);
}

/* Two slots trade places.  The model and the list of changes need no memory of their own. */
static void test_short_list_allocates_only_slots(void)
{
	struct ms_vm *vm = new_vm(1);
	struct ms_step steps[2] = { create(HVA_BASE), create(HVA_BASE) };
	uint64_t first = steps[0].guest_phys_addr, second = first + steps[0].memory_size;

	steps[1].slot++;
	steps[1].guest_phys_addr = second;
	CHECK_EQ(ms_change_memslots(vm, 0, steps, 2, NULL), 0);
	for (uint32_t i = 0; i < 2; i++)
		steps[i] = (struct ms_step){
			.kind = MS_STEP_MOVE,
			.slot = steps[i].slot,
			.guest_phys_addr = i ? first : second,
		};
	memory_fail(&vm->memory, UINT64_MAX, false); /* only counts */
	CHECK_EQ(ms_change_memslots(vm, 0, steps, 2, NULL), 0);
	CHECK_EQ(atomic_load(&vm->memory.attempts), 2);
	memory_fail(&vm->memory, 0, false);
	check_sound(vm);
	end_vm(vm);
}

/* Slots 1, 3 and 4 are neighbours in guest and host memory, and page 20 of each is dirty. */
static struct ms_vm *vm_with_neighbours(void)
{
	struct ms_vm *vm = new_vm(1);

	CHECK_EQ(ms_set_manual_dirty_log_protect(vm, 1, NULL), 0); /* to read a log does not clear it */
	for (uint32_t i = 0; i < 3; i++) {
		struct ms_step step = create(HVA_BASE + i * NPAGES * PAGE);

		step.slot = i ? 2 + i : 1;
		step.guest_phys_addr = i * NPAGES * PAGE;
		CHECK_EQ(ms_change_memslots(vm, 0, &step, 1, NULL), 0);
		ms_mark_page_dirty(vm, 0, i * NPAGES + 20);
	}
	return vm;
}

/* As above, of a slot that has two more sources from the start. */
static void test_splits_of_a_merged_slot(void)
{
	struct ms_vm *vm = vm_with_neighbours();
	struct layout layout;
	const struct writer *w = writer_of(vm, 0, NULL);
	struct ms_step steps[2 + 2 * PAIRS] = { merge(1, 3), merge(1, 4) };

	for (size_t i = 0; i < PAIRS; i++) {
		steps[2 + 2 * i] = split();
		steps[3 + 2 * i] = merge(1, 2);
	}
	CHECK_EQ(layout_resolve(&layout, w, steps, ARRAY_SIZE(steps)), 0);
	CHECK(layout.sources.nr <= 4 * PAIRS);
	layout_free(&layout);
	end_vm(vm);
}

/* The second part gets the bits of each slot that had its pages. */
static void test_bits_of_three_slots(void)
{
	struct ms_vm *vm = vm_with_neighbours();
	struct ms_step steps[] = { merge(1, 3), merge(1, 4), split() };

	CHECK_EQ(ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), NULL), 0);
	for (uint32_t i = 0; i < 3; i++)
		CHECK(is_dirty(vm, 2, i * NPAGES + 20 - MIDDLE));
	check_sound(vm);
	end_vm(vm);
}

static struct ms_step move(uint32_t slot, uint64_t place)
{
	return (struct ms_step){ .kind = MS_STEP_MOVE, .slot = slot, .guest_phys_addr = place * NPAGES * PAGE };
}

/* The order of two slots with one host address is that of their gfns: a move may change it, in both directions. */
static void test_moves_of_equal_host_addresses(void)
{
	static const uint64_t places[] = { 0, 3, 0, 2, 3 };
	struct ms_vm *vm = new_vm(1);
	struct ms_step steps[2] = { create(HVA_BASE), create(HVA_BASE) };

	steps[0].guest_phys_addr = NPAGES * PAGE;
	steps[1].guest_phys_addr = 2 * NPAGES * PAGE;
	steps[1].slot = 2;
	CHECK_EQ(ms_change_memslots(vm, 0, steps, 2, NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		steps[0] = move(2, places[i]);
		steps[1] = move(1, places[i]);
		CHECK_EQ(ms_change_memslots(vm, 0, steps, 2, NULL), -EEXIST);
		check_sound(vm);
		CHECK_EQ(ms_change_memslots(vm, 0, steps, 1, NULL), 0);
		check_sound(vm);
	}
	end_vm(vm);
}

/* Moves two slots to each other's places. */
static void trade(struct ms_vm *vm, uint32_t first, uint64_t its_place, uint32_t second, uint64_t place)
{
	struct ms_step steps[] = { move(first, place), move(second, its_place) };

	CHECK_EQ(ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), NULL), 0);
	check_sound(vm);
}

/* Slots 1 and 3 begin at the same host address, so neither can keep its place in that order without a look at gfns.
 * Slot 2 can. */
static void test_trades_of_equal_host_addresses(void)
{
	struct ms_vm *vm = new_vm(1);
	struct ms_step steps[3] = { create(HVA_BASE), create(HVA_BASE + 4 * NPAGES * PAGE), create(HVA_BASE) };

	for (uint32_t i = 0; i < 3; i++) {
		steps[i].slot = i + 1;
		steps[i].guest_phys_addr = i * NPAGES * PAGE;
	}
	CHECK_EQ(ms_change_memslots(vm, 0, steps, ARRAY_SIZE(steps), NULL), 0);
	trade(vm, 2, 1, 3, 2);
	trade(vm, 1, 0, 3, 1);
	trade(vm, 2, 2, 1, 1);
	end_vm(vm);
}

static struct ms_vm *vm_with_high_addresses(void)
{
	struct ms_config config = default_config(1);
	struct ms_step first = create(HALF - MIDDLE * PAGE);
	struct ms_vm *vm;

	config.hva_end_max = MS_HVA_ERR_MIN - 1;
	vm = vm_with(&config);
	CHECK_EQ(ms_change_memslots(vm, 0, &first, 1, NULL), 0);
	ms_mark_page_dirty(vm, 0, MIDDLE + 1);
	return vm;
}

static void test_split_of_high_addresses(void)
{
	struct ms_vm *vm = vm_with_high_addresses();
	struct ms_step step = split();

	CHECK_EQ(ms_change_memslots(vm, 0, &step, 1, NULL), 0);
	CHECK(!is_dirty(vm, 1, 1) && is_dirty(vm, 2, 1));
	end_vm(vm);
}

/* The same by an update, in one slot. */
static void test_update_of_high_addresses(void)
{
	struct ms_vm *vm = vm_with_high_addresses();
	struct ms_memslot value = {
		.base_gfn = MIDDLE, .npages = MIDDLE, .userspace_addr = HALF, .id = 1, .flags = LOG
	};
	struct ms_slot *old, *draft;
	struct ms_update *update;

	CHECK_EQ(ms_update_begin(vm, 0, &update, NULL), 0);
	old = ms_update_find(update, true, 1);
	CHECK_EQ(ms_update_copy(update, old, &value, &draft, NULL), 0);
	CHECK_EQ(ms_update_replace(update, old, draft, NULL), 0);
	CHECK_EQ(ms_update_activate(update, old, draft, NULL), 0);
	CHECK_EQ(ms_update_end(update, true, NULL), 0);
	CHECK(is_dirty(vm, 1, 1));
	end_vm(vm);
}

int main(int argc, char **argv)
{
	uint64_t designs = 0;

	test_init(argc, argv, 60);
	for (; (design_name = ms_backend_name(designs)); designs++) {
		test_splits_and_merges();
		test_moves_of_equal_host_addresses();
		test_trades_of_equal_host_addresses();
		test_splits_of_a_merged_slot();
		test_bits_of_three_slots();
		test_split_of_high_addresses();
	}
	design_name = "tree";
	test_short_list_allocates_only_slots();
	test_update_of_high_addresses();
	return test_done("layout steps", designs, "designs");
}
