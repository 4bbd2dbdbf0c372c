/* SPDX-License-Identifier: MIT */
/*
 * test_load.c - loads that build the sets of design "tree", against loads into design "list", which adds slot by slot.
 *
 * Both VMs get the same loads and changes.  After each of them they have the same slots by gfn, host address and id,
 * and the same result: the errno, the rule, the entry and the other slot.  The checks of ms_check() hold for each built
 * tree, also after later changes of it.
 */
#include "fixture.h"

#define PLACES 400u
#define NPAGES 4u
#define DISTANCE 6u
#define ENTRIES_MAX (PLACES + 4)

static struct ms_vm *vm, *other;
static struct ms_memslot list[ENTRIES_MAX];
static uint64_t loads, refusals;

static uint64_t hva_of_place(uint32_t place)
{
	return HVA_BASE + (uint64_t)(place * 7919u % PLACES / 2) * NPAGES * PAGE; /* two places share each address */
}

static struct ms_memslot value_of(uint32_t place, uint32_t id, uint32_t flags)
{
	return (struct ms_memslot){ .base_gfn = (uint64_t)place * DISTANCE,
				    .npages = NPAGES,
				    .userspace_addr = hva_of_place(place),
				    .id = id,
				    .flags = flags };
}

static bool is_free(uint32_t place)
{
	struct ms_memslot found;

	return ms_gfn_to_memslot(vm, 0, (uint64_t)place * DISTANCE, &found) == -ENOENT;
}

static void shuffle(struct rng *rng, size_t n)
{
	for (size_t i = n; i > 1; i--) {
		size_t j = rng_below(rng, i);
		struct ms_memslot entry = list[i - 1];

		list[i - 1] = list[j];
		list[j] = entry;
	}
}

/* Up to n free places, and for each an id that belongs to the place.  The order is rising, falling or random. */
static size_t fill_list(struct rng *rng, size_t n)
{
	static const uint32_t steps[] = { 1, PLACES - 1, 7, PLACES - 7 }; /* each of them visits all places */
	uint32_t first = (uint32_t)rng_below(rng, PLACES), step = steps[rng_below(rng, ARRAY_SIZE(steps))];
	size_t nr = 0;

	for (uint32_t i = 0; i < PLACES && nr < n; i++) {
		uint32_t place = (first + i * step) % PLACES;

		if (is_free(place))
			list[nr++] = value_of(place, place * 31 % PLACES, rng_below(rng, 4) == 0);
	}
	if (rng_below(rng, 2))
		shuffle(rng, nr);
	return nr;
}

/* Makes one entry conflict with a slot or with another entry, or break a rule. */
static void plant(struct rng *rng, size_t n)
{
	struct ms_memslot *entry = &list[rng_below(rng, n)], *twin = &list[rng_below(rng, n)];

	switch (rng_below(rng, 9)) {
	case 0:
		entry->id = twin->id;
		break;
	case 1:
		entry->id = (uint32_t)rng_below(rng, PLACES);
		break;
	case 2:
		entry->base_gfn = twin->base_gfn + rng_below(rng, NPAGES);
		break;
	case 3:
		entry->npages += rng_below(rng, 2 * DISTANCE);
		break;
	case 4:
		entry->base_gfn = (uint64_t)1 << (52 - MS_PAGE_SHIFT);
		break;
	case 5:
		entry->flags |= 8u << rng_below(rng, 2);
		break;
	case 6:
	case 7: /* perhaps over the begin or the end of a slot */
		entry->base_gfn = rng_below(rng, PLACES * DISTANCE);
		break;
	default:
		entry->flags = MS_MEM_GUEST_MEMFD;
	}
}

/* ---- both VMs ---- */

typedef size_t list_fn(struct ms_vm *from, struct ms_memslot *out, size_t room);

static size_t by_gfn(struct ms_vm *from, struct ms_memslot *out, size_t room)
{
	return ms_memslots(from, 0, out, room);
}

static size_t by_hva(struct ms_vm *from, struct ms_memslot *out, size_t room)
{
	return ms_memslots_in_hva_range(from, 0, 0, ~(uint64_t)0, out, room);
}

static void compare_lists(list_fn *fn)
{
	static struct ms_memslot a[ENTRIES_MAX], b[ENTRIES_MAX];
	size_t n = fn(vm, a, ENTRIES_MAX);

	CHECK_EQ(fn(other, b, ENTRIES_MAX), n);
	CHECK(n <= ENTRIES_MAX);
	for (size_t i = 0; i < n; i++) {
		struct ms_memslot by_id;

		CHECK(same_slot(&a[i], &b[i]));
		CHECK_EQ(ms_id_to_memslot(vm, 0, a[i].id, &by_id), 0);
		CHECK(same_slot(&a[i], &by_id));
	}
}

/* A batch of gfns, by the index of the tree; the marks of the load may hide no slot. */
static void compare_batch(struct rng *rng)
{
	uint64_t gfns[MS_BATCH_BRIEF + 40], a[ARRAY_SIZE(gfns)], b[ARRAY_SIZE(gfns)];
	struct ms_batch batch = { gfns, 8, a, 8, ARRAY_SIZE(gfns), NULL, NULL };

	for (size_t i = 0; i < ARRAY_SIZE(gfns); i++)
		gfns[i] = rng_below(rng, PLACES * DISTANCE + 2);
	CHECK_EQ(ms_gfn_to_hva_many(vm, 0, &batch, true), 0);
	batch.out = b;
	CHECK_EQ(ms_gfn_to_hva_many(other, 0, &batch, true), 0);
	CHECK(!memcmp(a, b, sizeof(a)));
}

static void compare(struct rng *rng)
{
	check_sound(vm);
	compare_lists(by_gfn);
	compare_lists(by_hva);
	compare_batch(rng);
}

static int load_both(size_t n)
{
	struct ms_error err[2] = { { 0 }, { 0 } };
	int r = ms_load_memslots(vm, 0, list, n, &err[0]);

	CHECK_EQ(ms_load_memslots(other, 0, list, n, &err[1]), r);
	CHECK_EQ(err[0].rule, err[1].rule);
	CHECK_EQ(err[0].index, err[1].index);
	CHECK_EQ(err[0].limit, err[1].limit);
	CHECK(same_slot(&err[0].other, &err[1].other));
	loads++;
	refusals += r != 0;
	return r;
}

static void change_both(struct rng *rng)
{
	uint32_t place = (uint32_t)rng_below(rng, PLACES), id = place * 31 % PLACES;
	uint64_t gpa = rng_below(rng, PLACES) * DISTANCE * PAGE;

	if (rng_below(rng, 3))
		CHECK_EQ(ms_delete_memslot(vm, 0, id, NULL), ms_delete_memslot(other, 0, id, NULL));
	else
		CHECK_EQ(ms_move_memslot(vm, 0, id, gpa, NULL), ms_move_memslot(other, 0, id, gpa, NULL));
}

static struct ms_vm *new_vm_of(const char *name)
{
	design_name = name;
	return new_vm(1);
}

/* Loads of all sizes into sets of all sizes: some are built, others are staged. */
static void random_loads(uint64_t stream)
{
	struct rng rng = rng_stream(stream);
	size_t most = stream % 2 ? PLACES : 24; /* half of the sets stay small */

	vm = new_vm_of("tree");
	other = new_vm_of("list");
	CHECK_EQ(ms_set_index_policy(vm, MS_INDEX_EAGER), 0);
	for (int i = 0; i < 12; i++) {
		size_t n = fill_list(&rng, i && rng_below(&rng, 3) ? rng_below(&rng, 12) : rng_below(&rng, most));

		if (n && rng_below(&rng, 3) == 0)
			plant(&rng, n);
		load_both(n);
		compare(&rng);
		for (uint64_t left = rng_below(&rng, rng_below(&rng, 4) ? 8 : 2 * PLACES); left; left--)
			change_both(&rng);
		compare(&rng);
	}
	end_vm(vm);
	end_vm(other);
}

/* One slot, and then one slot at each place around it. */
static void loads_of_one(void)
{
	struct rng rng = rng_stream(1);

	for (uint64_t base = 4; base < 20; base++) {
		vm = new_vm_of("tree");
		other = new_vm_of("list");
		list[0] = value_of(2, 0, 0);
		CHECK_EQ(load_both(1), 0);
		compare(&rng);
		list[0] = value_of(3, 1, 0);
		list[0].base_gfn = base;
		CHECK_EQ(load_both(1), base + NPAGES <= 2 * DISTANCE || base >= 2 * DISTANCE + NPAGES ? 0 : -EEXIST);
		compare(&rng);
		end_vm(vm);
		end_vm(other);
	}
}

/* ---- refusals after the set was built, and without memory ---- */

static uint64_t prepared, refused_at;

static int refuse_one(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	return ++prepared == refused_at ? -ECANCELED : 0;
}

static const struct ms_listener refusing = { LISTENER_SIZE, .prepare = refuse_one };

/* Slots in every third place. */
static void make_set(uint32_t m)
{
	vm = new_vm_of("tree");
	for (uint32_t i = 0; i < m; i++)
		list[i] = value_of(3 * i, i, i % 4 == 0);
	CHECK_EQ(ms_load_memslots(vm, 0, list, m, NULL), 0);
}

static void make_list(uint32_t m, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		list[i] = value_of(3 * (i % 100) + 1 + i / 100, m + i, i % 4 == 0);
}

static void load_with_refusing_listener(uint32_t m, uint32_t n)
{
	for (refused_at = 1; refused_at <= n; refused_at += 1 + n / 7) {
		struct picture before;
		struct ms_stats held;

		make_set(m);
		make_list(m, n);
		CHECK_EQ(ms_add_listener(vm, &refusing, NULL), 0);
		before = picture_of(vm);
		held = held_by(vm);
		prepared = 0;
		CHECK_EQ(ms_load_memslots(vm, 0, list, n, NULL), -ECANCELED);
		check_only_refused(vm, &before, &held);
		CHECK_EQ(ms_remove_listener(vm, &refusing, NULL), 0);
		CHECK_EQ(ms_load_memslots(vm, 0, list, n, NULL), 0);
		check_sound(vm);
		end_vm(vm);
	}
}

/* Returns whether the load made so many allocations.  Some may fail without an error: those of larger buckets. */
static bool load_without_memory(uint32_t m, uint32_t n, uint64_t nth, bool onward)
{
	struct picture before;
	struct ms_stats held;
	bool reached;
	int r;

	make_set(m);
	make_list(m, n);
	before = picture_of(vm);
	held = held_by(vm);
	memory_fail(&vm->memory, nth, onward);
	r = ms_load_memslots(vm, 0, list, n, NULL);
	reached = atomic_load(&vm->memory.attempts) >= nth;
	memory_fail(&vm->memory, 0, false);
	if (r) {
		CHECK_EQ(r, -ENOMEM);
		check_only_refused(vm, &before, &held);
		CHECK_EQ(ms_load_memslots(vm, 0, list, n, NULL), 0);
	}
	CHECK_EQ(ms_nr_memslots(vm), m + n);
	check_sound(vm);
	end_vm(vm);
	return reached;
}

static void loads_without_memory(uint32_t m, uint32_t n)
{
	for (int onward = 0; onward < 2; onward++)
		for (uint64_t nth = 1; load_without_memory(m, n, nth, onward); nth += 1 + nth / 12)
			;
}

/* The list ends where its array ends, so a sanitizer sees a read behind it. */
static void load_of_the_last_entries(void)
{
	struct ms_memslot *last = &list[ENTRIES_MAX - 3];

	for (uint32_t i = 0; i < 3; i++)
		last[i] = (struct ms_memslot){ 16 * i, 16, hva_for(0, i), i, 0, 0, 0 };
	for (int design = 0; (design_name = ms_backend_name((size_t)design)); design++) {
		vm = new_vm(1);
		CHECK_EQ(ms_load_memslots(vm, 0, last, 3, NULL), 0);
		CHECK_EQ(ms_nr_memslots(vm), 3);
		end_vm(vm);
		loads++;
	}
	design_name = "tree";
}

int main(int argc, char **argv)
{
	uint64_t times;

	test_init(argc, argv, 120);
	times = test_times(60);
	for (uint64_t i = 0; i < times; i++)
		random_loads(i);
	CHECK(refusals > loads / 20 && refusals < loads / 2);
	loads_of_one();
	load_of_the_last_entries();
	load_with_refusing_listener(0, 50);
	load_with_refusing_listener(60, 150);
	loads_without_memory(0, 40);
	loads_without_memory(60, 40);
	loads_without_memory(100, 150);
	return test_done("load", loads, "loads");
}
