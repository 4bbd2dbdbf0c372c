/* SPDX-License-Identifier: MIT */
/*
 * test_check.c - breaks each invariant of a live VM; ms_check() must name that one and no other.
 *
 * Each breaker changes one thing and restores it; the VM is sound before and after each.  A list at the end has the
 * numbers of all invariants in the headers: each must have a breaker.
 */
#include "fixture.h"

#include "tree_set.h"

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define SLOTS 40u
#define BACKED 31u /* the slot that holds the backing */

static struct ms_vm *vm;
static struct ms_vcpu *vcpu;
static struct ms_backing *backing;

static void map(uint32_t id, uint64_t gfn)
{
	region_t r = region(1, id, gfn, 100, 0);

	CHECK_EQ(ms_backing_create((void *)(uintptr_t)r.userspace_addr, r.memory_size, 0, NULL, NULL, &backing), 0);
	CHECK_EQ(ms_map_backing(vm, &r, backing, NULL, NULL), 0);
}

/* SLOTS slots of 100 pages in space 1, some with a log, created in an order that makes full trees; a few in space 0. */
static void make_vm(void)
{
	vm = new_vm(2);
	CHECK_EQ(ms_vcpu_create(vm, &vcpu, NULL), 0);
	for (uint32_t i = 0; i < SLOTS; i++) {
		uint32_t id = i * 7 % SLOTS;

		if (id == BACKED)
			map(id, 0x1000 + id * 128);
		else
			CHECK_EQ(set(vm, 1, id, 0x1000 + id * 128, 100, id % 4 ? 0 : LOG), 0);
	}
	for (uint32_t id = 0; id < 5; id++)
		CHECK_EQ(set(vm, 0, id, id * 16, 16, 0), 0);
	CHECK_EQ(set(vm, 1, 1, 0x900, 100, 0), 0);
	CHECK_EQ(ms_vcpu_set_as_id(vcpu, 1), 0);
	ms_vcpu_gfn_to_hva(vcpu, 0x900);
	ms_gfn_to_hva(vm, 1, 0x900);
}

static struct memslot_set *set_of(int idx)
{
	return &vm->as[1].set[idx];
}

static struct memslot *slot_of(uint32_t id)
{
	return vm->design->find(vm_active_set(vm, 1), id);
}

static struct tree_slot *tree_of(uint32_t id)
{
	return tree_slot_of(slot_of(id));
}

/* ---- overwriting and restoring ---- */

/* The bytes that the breaker has overwritten; some breakers overwrite several. */
static struct {
	void *at;
	unsigned char bytes[sizeof(struct memslot)];
	size_t size;
} saved[16];
static size_t nr_saved;

static void poke(void *at, const void *value, size_t size)
{
	CHECK(nr_saved < ARRAY_SIZE(saved) && size <= sizeof(saved[0].bytes));
	saved[nr_saved].at = at;
	saved[nr_saved].size = size;
	memcpy(saved[nr_saved++].bytes, at, size);
	memcpy(at, value, size);
}

#define POKE(lvalue, value) \
	do { \
		__typeof__(lvalue) poked = (value); \
		poke((void *)(uintptr_t)&(lvalue), &poked, sizeof(poked)); \
	} while (0)

/* A bit-field has no address. */
#define POKE_BITS(slot, member, value) \
	do { \
		struct memslot poked = *(slot); \
		poked.member = (value); \
		poke(slot, &poked, sizeof(poked)); \
	} while (0)

static void unpoke(void)
{
	while (nr_saved > 0) {
		nr_saved--;
		memcpy(saved[nr_saved].at, saved[nr_saved].bytes, saved[nr_saved].size);
	}
}

/* ---- the breakers ---- */

static bool red(const struct rb_node *node)
{
	return node && !(node->parent_color & RB_BLACK);
}

static struct rb_node *gfn_root(int idx)
{
	return set_of(idx)->gfn_tree.node;
}

static struct rb_node *hva_root(int idx)
{
	return set_of(idx)->hva_tree.root.node;
}

static struct rb_node *some_red(struct rb_node *node)
{
	struct rb_node *found = NULL;

	if (!node || red(node))
		return node;
	for (int dir = 0; !found && dir < 2; dir++)
		found = some_red(node->child[dir]);
	return found;
}

static void root_red(struct rb_node *root)
{
	POKE(root->parent_color, root->parent_color & ~RB_BLACK);
}

static void root_has_parent(struct rb_node *root)
{
	POKE(root->parent_color, (uintptr_t)root->child[0] | RB_BLACK);
}

static struct rb_node *red_with_child(struct rb_node *node)
{
	struct rb_node *found = NULL;

	if (!node)
		return NULL;
	if (red(node) && node->child[0])
		return node;
	for (int dir = 0; !found && dir < 2; dir++)
		found = red_with_child(node->child[dir]);
	return found;
}

static void red_below_red(struct rb_node *root)
{
	struct rb_node *child = red_with_child(root)->child[0];

	POKE(child->parent_color, child->parent_color & ~RB_BLACK);
}

static void extra_black(struct rb_node *root)
{
	struct rb_node *node = some_red(root);

	POKE(node->parent_color, node->parent_color | RB_BLACK);
}

static void wrong_parent(struct rb_node *root)
{
	struct rb_node *node = root->child[0]->child[1];

	POKE(node->parent_color, (uintptr_t)root | (node->parent_color & RB_BLACK));
}

/* The R family, in the gfn tree and in the hva tree of either set. */
#define TREE_BREAKER(name, breaker) \
	static void gfn_##name(int idx) \
	{ \
		breaker(gfn_root(idx)); \
	} \
	static void hva_##name(int idx) \
	{ \
		breaker(hva_root(idx)); \
	}

TREE_BREAKER(root_red, root_red)
TREE_BREAKER(root_has_parent, root_has_parent)
TREE_BREAKER(red_below_red, red_below_red)
TREE_BREAKER(extra_black, extra_black)
TREE_BREAKER(wrong_parent, wrong_parent)

/* By its base, slot 3 is behind slot 4. */
static void base_out_of_order(int idx)
{
	(void)idx;
	POKE(slot_of(3)->base_gfn, slot_of(4)->base_gfn + 200);
}

static void base_equal(int idx)
{
	(void)idx;
	POKE(slot_of(3)->base_gfn, slot_of(4)->base_gfn);
}

static void subtree_last_low(int idx)
{
	struct interval_hook *top = container_of(hva_root(idx), struct interval_hook, rb);

	POKE(top->subtree_last, top->subtree_last - 1);
}

static void subtree_last_high(int idx)
{
	POKE(tree_of(9)->hva_hook[idx].subtree_last, ~(uint64_t)0);
}

static void start_out_of_order(int idx)
{
	(void)idx;
	POKE(slot_of(8)->hva.start, hva_for(1, 10));
}

static void id_in_wrong_bucket(int idx)
{
	(void)idx;
	POKE(slot_of(6)->id, 1000);
}

/* Two slots of one bucket have the same id: slot 6 gets the id of another slot in its bucket. */
static void id_twice(int idx)
{
	struct id_hash *hash = &set_of(idx)->ids;

	for (size_t i = 0; i < (size_t)1 << hash->bits; i++) {
		struct id_link *link = hash->buckets[i];

		if (link && link->next) {
			uint32_t *id = (uint32_t *)(void *)((char *)link + hash->distance);

			POKE(*id, id_of(hash, link->next));
			return;
		}
	}
	CHECK(!"two ids share a bucket");
}

static void id_of_another(int idx)
{
	(void)idx;
	POKE(slot_of(6)->id, 7);
}

static void id_count(int idx)
{
	POKE(set_of(idx)->ids.nr, SLOTS + 1);
}

static void id_unlinked(int idx)
{
	struct id_link **bucket = id_hash_bucket(&set_of(idx)->ids, 6);

	POKE(*bucket, (*bucket)->next);
}

static void bit_beyond(int idx)
{
	(void)idx;
	POKE(slot_of(4)->dirty->live[1], (uint64_t)1 << 36); /* page 100 of pages 0 to 99 */
}

static void two_owners(int idx)
{
	(void)idx;
	POKE(slot_of(4)->dirty->refs, 2);
}

static void no_owner(int idx)
{
	(void)idx;
	POKE(slot_of(4)->dirty->refs, 0);
}

static void overlap(int idx)
{
	(void)idx;
	POKE(slot_of(20)->base_gfn, slot_of(19)->base_gfn + 99);
}

/* A call restores what POKE() cannot. */
static void (*restore)(void);
static struct memslot *original, *twin;
static int edited;

/* One set loses a slot, and the slot's own account (`sets`) agrees. */
static void restore_slot(void)
{
	vm->design->replace(set_of(edited), NULL, original);
}

static void in_one_set(int idx)
{
	original = slot_of(12);
	edited = idx;
	vm->design->replace(set_of(idx), original, NULL);
	restore = restore_slot;
}

/* The same, but the slot's own account does not agree. */
static void unknown_to_one_set(int idx)
{
	in_one_set(idx);
	POKE(original->sets, 3);
}

/* The same number of slots and of pages, but one slot is another object. */
static void restore_original(void)
{
	vm->design->replace(set_of(edited), twin, original);
	memslot_free(vm->design, &vm->memory, twin);
}

static void other_object(int idx)
{
	original = slot_of(13);
	edited = idx;
	twin = vm->design->alloc_slot(&vm->memory);
	memslot_copy(twin, original);
	vm->design->replace(set_of(idx), original, twin);
	restore = restore_original;
}

/* At rest, an inactive set that stores its own copies has none. */
static void empty_inactive(void)
{
	vm->design->end(&vm->memory, &vm->as[1], vm_inactive_set(vm, 1));
}

static void copies_at_rest(int idx)
{
	(void)idx;
	CHECK_EQ(vm->design->begin(&vm->memory, &vm->as[1], vm_inactive_set(vm, 1), 0), 0);
	restore = empty_inactive;
}

/* Each index is sound, but one of them lacks a slot. */
static void restore_hva_index(void)
{
	interval_tree_add(&set_of(edited)->hva_tree, &tree_slot_of(original)->hva_hook[edited]);
}

static void hva_index_differs(int idx)
{
	original = slot_of(12);
	edited = idx;
	interval_tree_del(&set_of(idx)->hva_tree, &tree_of(12)->hva_hook[idx]);
	restore = restore_hva_index;
}

static void not_by_its_own_account(int idx)
{
	POKE(slot_of(12)->sets, (uint8_t)(idx ? 0 : 2));
}

static void set_count(int idx)
{
	POKE(set_of(idx)->nr, SLOTS - 1);
}

static void raw_count(int idx)
{
	POKE(set_of(idx)->nr_raw, set_of(idx)->nr_raw + 1);
}

static void logged_count(int idx)
{
	POKE(set_of(idx)->nr_logged, set_of(idx)->nr_logged + 1);
}

static void wrong_nr(int idx)
{
	(void)idx;
	POKE(vm->counts.nr_memslots, SLOTS + 6);
}

static void wrong_pages(int idx)
{
	(void)idx;
	POKE(vm->counts.nr_memslot_pages, 0);
}

static void invalid_at_rest(int idx)
{
	(void)idx;
	POKE_BITS(slot_of(22), flags, MS_MEMSLOT_INVALID);
}

/* A copy of a member looks like one. */
static struct tree_slot stranger;

static void strange_hint(int idx)
{
	stranger.slot = *slot_of(1);
	POKE(set_of(idx)->last_used_slot, &stranger.slot);
}

static void hint_of_other_space(int idx)
{
	POKE(set_of(idx)->last_used_slot, vm->design->find(vm_active_set(vm, 0), 1));
}

static void unsettled(int idx)
{
	POKE(set_of(idx)->generation, set_of(idx)->generation | MS_GEN_UPDATE_IN_PROGRESS);
}

static void wrong_residue(int idx)
{
	POKE(set_of(idx)->generation, set_of(idx)->generation - 1);
}

static void inactive_is_newer(int idx)
{
	uint64_t newer = vm_active_set(vm, 1)->generation + 2;

	(void)idx;
	POKE(vm_inactive_set(vm, 1)->generation, newer);
}

static void logs_without_flag(int idx)
{
	(void)idx;
	POKE_BITS(slot_of(4), flags, 0);
}

static void flag_without_log(int idx)
{
	(void)idx;
	POKE_BITS(slot_of(5), flags, LOG);
}

static void log_of_other_size(int idx)
{
	(void)idx;
	POKE(slot_of(4)->dirty->npages, 101);
}

/* The ring is whole: the log of slot 4 and another one that no slot has. */
static void related_log(int idx)
{
	static struct dirty_log other;

	(void)idx;
	other.related = slot_of(4)->dirty;
	POKE(slot_of(4)->dirty->related, &other);
}

static void id_beyond(int idx)
{
	(void)idx;
	POKE(vm->config.user_mem_slots, SLOTS - 5); /* three slots are internal */
}

static void wrong_space(int idx)
{
	(void)idx;
	POKE_BITS(slot_of(22), as_id, 0);
}

static void no_pages(int idx)
{
	(void)idx;
	POKE(slot_of(22)->npages, 0);
}

static void last_does_not_follow(int idx)
{
	(void)idx;
	POKE(slot_of(22)->npages, 99);
}

static void beyond_gpa_limit(int idx)
{
	(void)idx;
	POKE(vm->config.gpa_bits, 24);
}

static void beyond_hva_limit(int idx)
{
	(void)idx;
	POKE(vm->config.hva_end_max, hva_for(1, SLOTS - 1) + 50 * PAGE);
}

static void strange_vcpu_hint(int idx)
{
	(void)idx;
	stranger.slot = *slot_of(1);
	CHECK_EQ(vcpu->hint.generation, vm_active_set(vm, 1)->generation);
	POKE(vcpu->hint.slot, &stranger.slot);
}

static void vcpu_hint_of_other_space(int idx)
{
	(void)idx;
	POKE(vcpu->hint.slot, vm->design->find(vm_active_set(vm, 0), 1));
}

static void too_few_references(int idx)
{
	(void)idx;
	POKE(backing->refs, 0);
}

static void pages_behind_the_backing(int idx)
{
	(void)idx;
	POKE(backing->size, 99 * PAGE);
}

static void pages_before_the_backing(int idx)
{
	(void)idx;
	POKE(backing->start, backing->start + PAGE);
}

static void writable_slot_of_readonly_memory(int idx)
{
	(void)idx;
	POKE(backing->flags, MS_BACKING_READONLY);
}

static void free_id_below(int idx)
{
	(void)idx;
	POKE(vm->as[1].used_below, SLOTS + 1);
}

/* The designs that a breaker is for. */
#define TREE 1u
#define ARRAY 2u
#define LIST 4u
#define ALL (TREE | ARRAY | LIST)

static const struct {
	const char *number;
	void (*apply)(int idx);
	unsigned designs;
} breakers[] = {
	{ "R1", gfn_root_red, TREE },
	{ "R1", hva_root_red, TREE },
	{ "R1", gfn_root_has_parent, TREE },
	{ "R1", hva_root_has_parent, TREE },
	{ "R2", gfn_red_below_red, TREE },
	{ "R2", hva_red_below_red, TREE },
	{ "R3", gfn_extra_black, TREE },
	{ "R3", hva_extra_black, TREE },
	{ "R4", gfn_wrong_parent, TREE },
	{ "R4", hva_wrong_parent, TREE },
	{ "R5", base_out_of_order, TREE },
	{ "R5", base_equal, TREE },
	{ "T1", subtree_last_low, TREE },
	{ "T1", subtree_last_high, TREE },
	{ "T2", start_out_of_order, TREE },
	{ "I1", id_in_wrong_bucket, TREE },
	{ "I2", id_twice, TREE },
	{ "I3", id_count, TREE },
	{ "I3", id_unlinked, TREE },
	{ "A1", base_out_of_order, ARRAY },
	{ "A1", base_equal, ARRAY },
	{ "A2", id_in_wrong_bucket, ARRAY },
	{ "A2", id_of_another, ARRAY },
	{ "L1", base_out_of_order, LIST },
	{ "L1", base_equal, LIST },
	{ "D1", bit_beyond, ALL },
	{ "D2", two_owners, ALL },
	{ "D2", no_owner, ALL },
	{ "D5", related_log, ALL },
	{ "B1", too_few_references, ALL },
	{ "B2", pages_behind_the_backing, ALL },
	{ "B2", pages_before_the_backing, ALL },
	{ "B2", writable_slot_of_readonly_memory, ALL },
	{ "M1", overlap, ALL },
	{ "M2", in_one_set, TREE | LIST },
	{ "M2", unknown_to_one_set, TREE | LIST },
	{ "M2", other_object, TREE | LIST },
	{ "M2", copies_at_rest, ARRAY },
	{ "M3", not_by_its_own_account, TREE | LIST },
	{ "M3", set_count, ALL },
	{ "M3", raw_count, ALL },
	{ "M3", logged_count, ALL },
	{ "M3", hva_index_differs, TREE },
	{ "M3", id_of_another, LIST },
	{ "M4", wrong_nr, ALL },
	{ "M4", wrong_pages, ALL },
	{ "M5", invalid_at_rest, ALL },
	{ "M6", strange_hint, ALL },
	{ "M6", hint_of_other_space, ALL },
	{ "M7", unsettled, ALL },
	{ "M7", wrong_residue, ALL },
	{ "M7", inactive_is_newer, ALL },
	{ "M8", logs_without_flag, ALL },
	{ "M8", flag_without_log, ALL },
	{ "M8", log_of_other_size, ALL },
	{ "M9", id_beyond, ALL },
	{ "M9", wrong_space, ALL },
	{ "M9", no_pages, ALL },
	{ "M9", last_does_not_follow, ALL },
	{ "M9", beyond_gpa_limit, ALL },
	{ "M9", beyond_hva_limit, ALL },
	{ "M10", strange_vcpu_hint, ALL },
	{ "M10", vcpu_hint_of_other_space, ALL },
	{ "M12", free_id_below, ALL },
};

static const char *const numbers[] = {
	"R1", "R2", "R3", "R4", "R5", "T1", "T2", "I1", "I2", "I3", "A1", "A2", "L1",  "D1",  "D2",
	"D5", "B1", "B2", "M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M9", "M10", "M12",
};

static void restore_all(void)
{
	unpoke();
	if (restore)
		restore();
	restore = NULL;
}

static void check_breaker(size_t i, int idx)
{
	struct ms_violation v = { "", "" };
	int r;

	check_sound(vm);
	breakers[i].apply(idx);
	r = ms_check(vm, &v, NULL);
	if (r != -EUCLEAN || strcmp(v.invariant, breakers[i].number))
		fprintf(stderr, "%s, breaker %zu in set %d: expected %s, got %s (%s)\n", design_name, i, idx,
			breakers[i].number, v.invariant, v.text);
	CHECK_EQ(r, -EUCLEAN);
	CHECK_EQ(strcmp(v.invariant, breakers[i].number), 0);
	CHECK(v.text[0] && strlen(v.text) < sizeof(v.text));
	CHECK_EQ(ms_check(vm, NULL, NULL), -EUCLEAN);
	restore_all();
	check_sound(vm);
}

static void check_numbers(void)
{
	for (size_t n = 0; n < ARRAY_SIZE(numbers); n++) {
		size_t times = 0;

		for (size_t i = 0; i < ARRAY_SIZE(breakers); i++)
			times += !strcmp(breakers[i].number, numbers[n]);
		if (!times)
			fprintf(stderr, "no breaker for %s\n", numbers[n]);
		CHECK(times > 0);
	}
}

/* A chain that is a ring enters each slot twice: I2 or I3, either is right, but the walk must end. */
static void check_ring(int idx, bool behind_first)
{
	struct id_hash *hash = &set_of(idx)->ids;
	struct ms_violation v;
	size_t i = 0;

	while (!hash->buckets[i] || !hash->buckets[i]->next)
		i++;
	if (behind_first)
		POKE(hash->buckets[i]->next->next, hash->buckets[i]->next);
	else
		POKE(hash->buckets[i]->next, hash->buckets[i]);
	CHECK_EQ(ms_check(vm, &v, NULL), -EUCLEAN);
	CHECK_EQ(v.invariant[0], 'I');
	restore_all();
	check_sound(vm);
}

/* Stale hints are sound: no lookup follows a hint of an older generation, even to a freed slot. */
static void test_stale_is_sound(void)
{
	CHECK_EQ(set(vm, 1, 1, 0x900, 0, 0), 0);
	CHECK(vcpu->hint.slot);
	check_sound(vm);
	CHECK_EQ(set(vm, 1, 1, 0x900, 100, 0), 0);
	ms_vcpu_gfn_to_hva(vcpu, 0x900);
	check_sound(vm);
}

static unsigned this_design(void)
{
	return design_is("tree") ? TREE : design_is("array") ? ARRAY : design_is("list") ? LIST : 0;
}

static uint64_t test_design(void)
{
	uint64_t broken = 0;

	make_vm();
	for (size_t i = 0; i < ARRAY_SIZE(breakers); i++)
		for (int idx = 0; breakers[i].designs & this_design() && idx < 2; idx++, broken++)
			check_breaker(i, idx);
	test_stale_is_sound();
	for (int n = 0; design_is("tree") && n < 4; n++)
		check_ring(n & 1, n & 2);
	ms_vcpu_destroy(vcpu);
	end_vm(vm);
	CHECK_EQ(backing->refs, 1);
	CHECK_EQ(backing->seen, 0);
	ms_backing_put(backing);
	return broken;
}

/* A bit that the summary of a large log lacks is D6. */
static void summary_lacks_a_line(void)
{
	struct ms_violation violation;
	struct dirty_log *log;

	vm = new_vm(1);
	CHECK_EQ(set(vm, 0, 0, 0, DIRTY_SUMMARY_MIN, MS_MEM_LOG_DIRTY_PAGES), 0);
	log = vm->design->find(vm_active_set(vm, 0), 0)->dirty;
	atomic_store(&log->live[100], 1);
	CHECK_EQ(ms_check(vm, &violation, NULL), -EUCLEAN);
	CHECK(!strcmp(violation.invariant, "D6") && strstr(violation.text, "word 100"));
	dirty_log_pin(log); /* a long write makes its marks inside sections too */
	CHECK_EQ(ms_check(vm, &violation, NULL), -EUCLEAN);
	dirty_log_unpin(&vm->memory, log);
	ms_mark_page_dirty(vm, 0, 64 * 101); /* in the same line */
	CHECK_EQ(ms_check(vm, &violation, NULL), 0);
	ms_vm_destroy(vm);
	vm = NULL;
}

int main(int argc, char **argv)
{
	uint64_t broken = 0;

	test_init(argc, argv, 10);
	check_numbers();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		broken += test_design();
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++)
		summary_lacks_a_line();
	return test_done("check", broken, "broken invariants named");
}
