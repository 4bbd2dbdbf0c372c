/* SPDX-License-Identifier: MIT */
/*
 * test_snapshot.c - the VM of a snapshot: INVALID slots, references to backings, loads that fail; and the backings of a
 * state, taken next to changes.
 */
#include "fixture.h"

#include "private/snapshot.h"

#define SLOTS 60u
#define SPACES 3u
#define SPACE 2u

static char memory[SLOTS / 3][PAGE] __attribute__((aligned(4096)));
static struct ms_backing *backings[SLOTS]; /* of every third slot */
static struct ms_memslot rows[SLOTS];
static uint64_t released, steps;

static void release(void *opaque)
{
	(void)opaque;
	released++;
}

/* Ascending gfns; every fifth slot is INVALID, others have logs or are READONLY. */
static void make_rows(void)
{
	for (uint32_t i = 0; i < SLOTS; i++) {
		rows[i] = (struct ms_memslot){ i * 3, 1 + i % 2, hva_for(SPACE, i), i * 7 % SLOTS, SPACE, i % 4, 0 };
		if (i % 5 == 0)
			rows[i].flags |= MS_MEMSLOT_INVALID;
		backings[i] = NULL;
		if (i % 3)
			continue;
		rows[i].npages = 1;
		rows[i].userspace_addr = (uintptr_t)memory[i / 3];
		memset(memory[i / 3], (int)i, PAGE);
		CHECK_EQ(ms_backing_create(memory[i / 3], PAGE, 0, release, NULL, &backings[i]), 0);
	}
}

static void put_backings(struct ms_backing **list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		ms_backing_put(list[i]);
}

static uint64_t refs(uint32_t i)
{
	return atomic_load(&backings[i]->refs);
}

static struct ms_vm *vm_of_snapshot(void)
{
	struct ms_config config = default_config(SPACES);

	config.gpa_bits = 64;
	config.user_mem_slots = MS_USER_MEM_SLOTS_MAX;
	config.hva_end_max = MS_HVA_ERR_MIN - 1;
	return vm_with(&config);
}

static void check_lookups(struct ms_vm *vm)
{
	struct ms_memslot found;

	check_sound(vm);
	for (uint32_t i = 0; i < SLOTS; i++, steps++) {
		bool invalid = rows[i].flags & MS_MEMSLOT_INVALID;

		CHECK_EQ(ms_gfn_to_memslot(vm, SPACE, rows[i].base_gfn, &found), 0);
		CHECK(same_slot(&found, &rows[i]));
		CHECK_EQ(ms_id_to_memslot(vm, SPACE, rows[i].id, &found), 0);
		CHECK(same_slot(&found, &rows[i]));
		CHECK_EQ(ms_gfn_to_hva_prot(vm, SPACE, rows[i].base_gfn, NULL),
			 invalid ? MS_HVA_ERR_BAD : rows[i].userspace_addr);
		CHECK_EQ(ms_is_visible_gfn(vm, SPACE, rows[i].base_gfn), !invalid);
	}
}

/* The batch makes an index, which leaves the INVALID slots out. */
static void check_batch(struct ms_vm *vm)
{
	uint64_t gfns[4 * SLOTS], hvas[4 * SLOTS];
	struct ms_batch batch = { gfns, 8, hvas, 8, ARRAY_SIZE(gfns), NULL, NULL };

	for (uint64_t i = 0; i < ARRAY_SIZE(gfns); i++)
		gfns[i] = i;
	ms_set_index_policy(vm, MS_INDEX_EAGER);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(ms_gfn_to_hva_many(vm, SPACE, &batch, false), 0);
	CHECK_EQ(stats_of(vm).index_builds, 1);
	for (uint64_t i = 0; i < ARRAY_SIZE(gfns); i++)
		CHECK_EQ(hvas[i], ms_gfn_to_hva_prot(vm, SPACE, i, NULL));
}

static void check_reads(struct ms_vm *vm)
{
	for (uint32_t i = 0; i < SLOTS; i++) {
		bool readable = backings[i] && !(rows[i].flags & MS_MEMSLOT_INVALID);
		uint8_t byte = 0;

		CHECK_EQ(ms_read_guest_u8(vm, SPACE, rows[i].base_gfn * PAGE, &byte, NULL), readable ? 0 : -EFAULT);
		CHECK_EQ(byte, readable ? i : 0);
	}
}

/* The load runs inside a section of another VM, in which no VM can be changed. */
static void filled_vm(void)
{
	struct ms_vm *vm = vm_of_snapshot(), *other = new_vm(1);

	CHECK_EQ(ms_read_lock(other), 0);
	CHECK_EQ(ms_load_memslots(vm, SPACE, rows, 1, NULL), -EDEADLK);
	CHECK_EQ(ms_load_snapshot(vm, SPACE, rows, backings, SLOTS, NULL), 0);
	CHECK_EQ(ms_read_unlock(other), 0);
	ms_vm_destroy(other);
	for (uint32_t i = 0; i < SLOTS; i += 3)
		CHECK_EQ(refs(i), 2);
	check_lookups(vm);
	check_batch(vm);
	check_reads(vm);
	CHECK_EQ(stats_of(vm).bytes < 64 * 1024, true); /* no logs */
	ms_vm_destroy(vm);
	for (uint32_t i = 0; i < SLOTS; i += 3)
		CHECK_EQ(refs(i), 1);
}

/* Without backings nothing is readable.  An empty list and a list with a conflict are no special cases. */
static void other_lists(void)
{
	struct ms_vm *vm = vm_of_snapshot();
	struct ms_memslot twice[2] = { rows[0], rows[0] };
	uint8_t byte;

	CHECK_EQ(ms_load_snapshot(vm, SPACE, twice, NULL, 2, NULL), -EEXIST);
	CHECK_EQ(ms_nr_memslots(vm), 0);
	CHECK_EQ(ms_load_snapshot(vm, SPACE, NULL, NULL, 0, NULL), 0);
	CHECK_EQ(ms_load_snapshot(vm, SPACE, rows, NULL, SLOTS, NULL), 0);
	check_lookups(vm);
	CHECK_EQ(ms_read_guest_u8(vm, SPACE, rows[3].base_gfn * PAGE, &byte, NULL), -EFAULT);
	ms_vm_destroy(vm);
}

static void load_without_memory(void)
{
	bool reached = true;

	for (uint64_t nth = 1; reached; nth++, steps++) {
		struct ms_vm *vm = vm_of_snapshot();
		int r;

		memory_fail(&vm->memory, nth, false);
		r = ms_load_snapshot(vm, SPACE, rows, backings, SLOTS, NULL);
		reached = atomic_load(&vm->memory.attempts) >= nth;
		memory_fail(&vm->memory, 0, false);
		CHECK(!r || r == -ENOMEM);
		CHECK_EQ(ms_nr_memslots(vm), r ? 0 : SLOTS);
		CHECK_EQ(refs(3), r ? 1 : 2);
		check_sound(vm);
		end_vm(vm);
		CHECK_EQ(refs(3), 1);
	}
}

/* ---- the backings of a state ---- */

/* map_backing() chooses the places, so the slots are those of the rows that have a backing, and some others. */
static struct ms_vm *live_vm(void)
{
	struct ms_vm *vm = new_vm(SPACES);

	for (uint32_t i = 0; i < SLOTS; i++) {
		region_t r = region(SPACE, rows[i].id, rows[i].base_gfn, rows[i].npages, 0);

		r.userspace_addr = rows[i].userspace_addr;
		if (backings[i])
			CHECK_EQ(ms_map_backing(vm, &r, backings[i], NULL, NULL), 0);
		else
			CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	}
	return vm;
}

static void backings_of_a_state(void)
{
	struct ms_vm *vm = live_vm();
	struct ms_backing *found[SLOTS + 1];
	uint64_t before = released;

	CHECK_EQ(ms_memslots_backings(vm, SPACE, found, SLOTS - 1), 0);
	CHECK_EQ(ms_memslots_backings(vm, SPACE, NULL, 0), 0);
	CHECK_EQ(ms_memslots_backings(vm, 0, found, SLOTS), 0);
	CHECK_EQ(ms_memslots_backings(vm, SPACES, found, SLOTS), 0);
	CHECK_EQ(refs(0), 2);
	CHECK_EQ(ms_memslots_backings(vm, SPACE, found, SLOTS + 1), SLOTS / 3);
	for (uint32_t i = 0; i < SLOTS; i++)
		CHECK_EQ(found[i], backings[i]);
	CHECK_EQ(refs(0), 3);
	ms_vm_destroy(vm);
	put_backings(backings, SLOTS);
	CHECK_EQ(released, before);
	put_backings(found, SLOTS);
	CHECK_EQ(released, before + SLOTS / 3);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 60);
	make_rows();
	filled_vm();
	other_lists();
	load_without_memory();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		backings_of_a_state();
		make_rows();
	}
	put_backings(backings, SLOTS);
	return test_done("snapshot", steps, "steps");
}
