/* SPDX-License-Identifier: MIT */
/*
 * tree_set.c - the design "tree".  See memslot_set.h for the invariants and for the calls of a design.
 */
#include "tree_set.h"

#include <string.h>

#define HOOK_TO_INTERVAL(idx) \
	((ptrdiff_t)offsetof(struct tree_slot, slot.hva) - (ptrdiff_t)offsetof(struct tree_slot, hva_hook[idx]))
#define LINK_TO_ID(idx) \
	((ptrdiff_t)offsetof(struct tree_slot, slot.id) - (ptrdiff_t)offsetof(struct tree_slot, id_link[idx]))

static const ptrdiff_t hook_to_interval[2] = { HOOK_TO_INTERVAL(0), HOOK_TO_INTERVAL(1) };
static const ptrdiff_t link_to_id[2] = { LINK_TO_ID(0), LINK_TO_ID(1) };

/* Slots that begin at the same host address are in the order of their gfns. */
static bool lower_gfn(const struct interval *a, const struct interval *b)
{
	return container_of((uintptr_t)a, struct memslot, hva)->base_gfn <
	       container_of((uintptr_t)b, struct memslot, hva)->base_gfn;
}

static void tree_init(struct memslot_set *set)
{
	set->gfn_tree = (struct rb_root){ 0 };
	interval_tree_init(&set->hva_tree, hook_to_interval[set->node_idx], lower_gfn);
	id_hash_init(&set->ids, link_to_id[set->node_idx]);
	set->nr = set->nr_raw = set->nr_logged = 0;
}

static struct memslot *tree_alloc_slot(struct memory *memory)
{
	struct tree_slot *slot = memory_pool_alloc(memory, sizeof(*slot));

	if (!slot)
		return NULL;
	slot->slot = (struct memslot){ 0 }; /* nodes and links get their values when they are linked */
	return &slot->slot;
}

static void tree_free_slot(struct memory *memory, struct memslot *slot)
{
	memory_pool_free(memory, tree_slot_of(slot), sizeof(struct tree_slot));
}

/* By numbers: there may be nothing where the pointer points to. */
static bool tree_has_slot(const struct memory *memory, const struct memslot *slot)
{
	uintptr_t block = (uintptr_t)slot - offsetof(struct tree_slot, slot);

	return memory_pool_has(memory, (const void *)block, sizeof(struct tree_slot));
}

static struct memslot *slot_or_null(const struct rb_node *node, uint32_t idx)
{
	return node ? slot_of_gfn_node(node, idx) : NULL;
}

static struct memslot *slot_of_hook(const struct memslot_set *set, const struct interval_hook *hook)
{
	return container_of(interval_of(&set->hva_tree, hook), struct memslot, hva);
}

static struct memslot *tree_search_call(const struct memslot_set *set, uint64_t gfn)
{
	return tree_search(set, gfn);
}

/* ---- many searches at once ---- */

/* From this many slots on, lanes are faster: the tree does not fit the first-level cache. */
#define LANES_MIN_SLOTS 256

/* A lane that has ended stays at this node, which has no children and contains no gfn.  It is also the floor of a lane
 * that has found none.  Only for gfn 2^64 - 1 it replaces another floor, and no slot contains that gfn. */
static const struct tree_slot lane_end = { .slot.base_gfn = UINT64_MAX };

struct lanes {
	const struct rb_node *node[SEARCH_LANES], *floor[SEARCH_LANES];
};

/* Returns next, or end if next is NULL.  Compilers make a branch here, which is mispredicted at the end of a lane. */
static inline const struct rb_node *next_or(const struct rb_node *next, const struct rb_node *end)
{
#if TREE_BY_HAND
	__asm__("testq %[next], %[next]\n\tcmoveq %[end], %[next]" : [next] "+r"(next) : [end] "r"(end) : "cc");
	return next;
#else
	return next ? next : end;
#endif
}

/* Moves each lane one level down.  Returns whether some lane has not ended.  The next node of a lane is one cache line;
 * it is loaded while the other lanes move. */
static inline bool lanes_step(struct lanes *lanes, uint32_t idx, const uint64_t *gfns, size_t n)
{
	const struct rb_node *end = &lane_end.gfn_node[idx];
	uintptr_t going = 0;

	for (size_t i = 0; i < n; i++) {
		const struct rb_node *next = tree_step(lanes->node[i], idx, gfns[i], &lanes->floor[i]);

		going |= (uintptr_t)next;
		next = next_or(next, end);
		__builtin_prefetch(slot_of_gfn_node(next, idx));
		lanes->node[i] = next;
	}
	return going;
}

/* Inlined once for each constant idx. */
static inline void search_lanes(const struct memslot_set *set, uint32_t idx, const uint64_t *gfns,
				struct memslot **slots, size_t n)
{
	struct lanes lanes;

	for (size_t i = 0; i < n; i++) {
		lanes.node[i] = set->gfn_tree.node;
		lanes.floor[i] = &lane_end.gfn_node[idx];
	}
	while (lanes_step(&lanes, idx, gfns, n))
		;
	for (size_t i = 0; i < n; i++) {
		struct memslot *slot = slot_of_gfn_node(lanes.floor[i], idx);

		slots[i] = memslot_contains(slot, gfns[i]) ? slot : NULL;
	}
}

/* All searches take each step together, so that their waits for memory overlap. */
static void tree_search_many(const struct memslot_set *set, const uint64_t *gfns, struct memslot **slots, size_t n)
{
	ms_assert(n <= SEARCH_LANES);
	if (set->nr < LANES_MIN_SLOTS)
		for (size_t i = 0; i < n; i++)
			slots[i] = tree_search(set, gfns[i]);
	else if (set->node_idx)
		search_lanes(set, 1, gfns, slots, n);
	else
		search_lanes(set, 0, gfns, slots, n);
}

static struct memslot *tree_find(const struct memslot_set *set, uint32_t id)
{
	struct id_link *link = id_hash_find(&set->ids, id);

	return link ? &container_of(link - set->node_idx, struct tree_slot, id_link[0])->slot : NULL;
}

static struct memslot *tree_next(const struct memslot_set *set, const struct memslot *slot)
{
	return slot_or_null(rb_next(&tree_slot_of(slot)->gfn_node[set->node_idx]), set->node_idx);
}

static struct memslot *tree_first_from(const struct memslot_set *set, uint64_t gfn)
{
	struct memslot *slot = tree_floor(set, gfn);

	if (!slot)
		return slot_or_null(rb_first(&set->gfn_tree), set->node_idx);
	return memslot_contains(slot, gfn) ? slot : tree_next(set, slot);
}

static bool tree_hva_range(const struct memslot_set *set, uint64_t start, uint64_t last, memslot_visit_fn *visit,
			   void *context)
{
	const struct interval_hook *hook = interval_tree_first(&set->hva_tree, start, last);

	for (; hook; hook = interval_tree_next(&set->hva_tree, hook, start, last))
		visit(context, slot_of_hook(set, hook));
	return true;
}

static void gfn_insert(struct memslot_set *set, struct tree_slot *new_slot)
{
	struct rb_node *parent = NULL, *node = set->gfn_tree.node;
	int dir = 0;

	while (node) {
		parent = node;
		dir = new_slot->slot.base_gfn >= slot_of_gfn_node(node, set->node_idx)->base_gfn;
		node = rb_child(node, dir);
	}
	rb_insert(&set->gfn_tree, parent, dir, &new_slot->gfn_node[set->node_idx]);
}

static void unlink_slot(struct memslot_set *set, struct memslot *old)
{
	struct tree_slot *slot = tree_slot_of(old);
	uint32_t idx = set->node_idx;

	id_hash_del(&set->ids, &slot->id_link[idx]);
	interval_tree_del(&set->hva_tree, &slot->hva_hook[idx]);
	rb_erase(&set->gfn_tree, &slot->gfn_node[idx]);
	memslot_leaves(set, old);
}

static void link_slot(struct memslot_set *set, struct memslot *new_slot)
{
	struct tree_slot *slot = tree_slot_of(new_slot);

	id_hash_add(&set->ids, &slot->id_link[set->node_idx]);
	interval_tree_add(&set->hva_tree, &slot->hva_hook[set->node_idx]);
	gfn_insert(set, slot);
	memslot_joins(set, new_slot);
}

/* new_slot takes the position of old in the hash and in the hva tree, which keeps its shape.  O(1). */
static void relink_slot(struct memslot_set *set, struct memslot *old, struct memslot *new_slot)
{
	struct tree_slot *from = tree_slot_of(old), *to = tree_slot_of(new_slot);
	uint32_t idx = set->node_idx;

	carry_last_used_slot(set, old, new_slot);
	id_hash_replace(&set->ids, &from->id_link[idx], &to->id_link[idx]);
	interval_tree_replace(&set->hva_tree, &from->hva_hook[idx], &to->hva_hook[idx]);
	memslot_leaves(set, old);
	memslot_joins(set, new_slot);
}

static bool has_start(const struct memslot_set *set, struct rb_node *node, uint64_t start)
{
	return node && interval_of(&set->hva_tree, container_of(node, struct interval_hook, rb))->start == start;
}

/* Slots that begin at the same host address lie next to each other in the hva tree, in the order of their gfns. */
static bool tree_exchange(struct memslot_set *set, struct memslot *old, struct memslot *new_slot)
{
	const struct rb_node *node = &tree_slot_of(old)->hva_hook[set->node_idx].rb;

	if (has_start(set, rb_prev(node), old->hva.start) || has_start(set, rb_next(node), old->hva.start))
		return false;
	relink_slot(set, old, new_slot);
	return true;
}

static void tree_replace_by_gfn(struct memslot_set *set, struct memslot *old, struct memslot *new_slot)
{
	uint32_t idx = set->node_idx;

	if (old && new_slot)
		rb_replace(&set->gfn_tree, &tree_slot_of(old)->gfn_node[idx], &tree_slot_of(new_slot)->gfn_node[idx]);
	else if (old)
		rb_erase(&set->gfn_tree, &tree_slot_of(old)->gfn_node[idx]);
	else
		gfn_insert(set, tree_slot_of(new_slot));
}

/* For a slot that keeps id and hva.start.  Returns false if tree_exchange() does; then nothing is done. */
static bool move_slot(struct memslot_set *set, struct memslot *old, struct memslot *new_slot)
{
	if (old->base_gfn == new_slot->base_gfn) {
		relink_slot(set, old, new_slot);
		tree_replace_by_gfn(set, old, new_slot);
		return true;
	}
	if (!tree_exchange(set, old, new_slot))
		return false;
	tree_replace_by_gfn(set, old, NULL);
	tree_replace_by_gfn(set, NULL, new_slot);
	return true;
}

/* kvm_replace_memslot(): if old is NULL, adds new_slot; if new_slot is NULL, removes old. */
static void tree_replace(struct memslot_set *set, struct memslot *old, struct memslot *new_slot)
{
	if (old && new_slot && old->hva.start == new_slot->hva.start && old->id == new_slot->id &&
	    move_slot(set, old, new_slot))
		return;
	if (old) {
		carry_last_used_slot(set, old, new_slot);
		unlink_slot(set, old);
	}
	if (new_slot)
		link_slot(set, new_slot);
}

/* ---- many slots at once ---- */

/* The slots in the order of one of the two trees. */
struct row {
	const struct sort_item *items;
	uint32_t idx;
};

static struct tree_slot *slot_of_item(const struct sort_item *item)
{
	return tree_slot_of(item->item);
}

static struct rb_node *gfn_node_at(const void *context, size_t i)
{
	const struct row *row = context;

	return &slot_of_item(&row->items[i])->gfn_node[row->idx];
}

static struct rb_node *hva_node_at(const void *context, size_t i)
{
	const struct row *row = context;

	return &slot_of_item(&row->items[i])->hva_hook[row->idx].rb;
}

/* The slots of a set are in its twin too, before it gets new ones. */
static bool is_new(const struct memslot_set *set, const struct memslot *slot)
{
	return !memslot_is_in(slot, &as_of(set)->set[!set->node_idx]);
}

static void leave(struct memslot_set *set, struct tree_slot *slot)
{
	id_hash_del(&set->ids, &slot->id_link[set->node_idx]);
	memslot_leaves(set, &slot->slot);
	memslot_count(set, &slot->slot, -1u);
}

static bool join(struct memslot_set *set, struct tree_slot *slot)
{
	if (id_hash_find(&set->ids, slot->slot.id))
		return false;
	id_hash_add(&set->ids, &slot->id_link[set->node_idx]);
	memslot_joins(set, &slot->slot);
	memslot_count(set, &slot->slot, 1);
	return true;
}

/* Adds the new slots to the hash, or none of them. */
static bool join_all(struct memslot_set *set, const struct sort_item *items, size_t n)
{
	size_t i = 0;

	while (i < n && (!is_new(set, items[i].item) || join(set, slot_of_item(&items[i]))))
		i++;
	if (i == n)
		return true;
	while (i-- > 0)
		if (is_new(set, items[i].item))
			leave(set, slot_of_item(&items[i]));
	return false;
}

/* O(n), and the trees are balanced. */
static bool tree_build(struct memslot_set *private, const struct sort_item *by_gfn, const struct sort_item *by_hva,
		       size_t n)
{
	struct row gfns = { by_gfn, private->node_idx }, hvas = { by_hva, private->node_idx };

	if (!join_all(private, by_gfn, n))
		return false;
	rb_build(&private->gfn_tree, n, gfn_node_at, &gfns);
	interval_tree_build(&private->hva_tree, n, hva_node_at, &hvas);
	return true;
}

/* The distance from a member of a slot that belongs to the other set to the one of this set. */
static ptrdiff_t from_twin(const struct memslot_set *set, size_t size)
{
	return set->node_idx ? (ptrdiff_t)size : -(ptrdiff_t)size;
}

static void mirror_slot(struct memslot_set *private, struct tree_slot *slot, bool has_buckets)
{
	uint32_t idx = private->node_idx;

	rb_mirror(&slot->gfn_node[idx], &slot->gfn_node[!idx]);
	interval_tree_mirror(&slot->hva_hook[idx], &slot->hva_hook[!idx]);
	if (has_buckets)
		id_link_mirror(&slot->id_link[idx], &slot->id_link[!idx]);
	else
		id_hash_add(&private->ids, &slot->id_link[idx]);
	slot->slot.sets = 3;
}

/* Readers may use the active set: only the nodes of the private one are written. */
static void tree_mirror(struct memslot_set *private, const struct memslot_set *active, const struct sort_item *by_gfn,
			size_t n)
{
	bool has_buckets = id_hash_mirror(&private->ids, &active->ids, from_twin(private, sizeof(struct id_link)));

	for (size_t i = 0; i < n; i++)
		mirror_slot(private, slot_of_item(&by_gfn[i]), has_buckets);
	private->gfn_tree.node = rb_shifted(active->gfn_tree.node, from_twin(private, sizeof(struct rb_node)));
	private->hva_tree.root.node =
		rb_shifted(active->hva_tree.root.node, from_twin(private, sizeof(struct interval_hook)));
	private->nr = active->nr;
	private->nr_raw = active->nr_raw;
	private->nr_logged = active->nr_logged;
}

/* ---- more buckets ---- */

/*
 * The hash of the private set grows before the first edit; that of its twin in follow(), when the change has succeeded.
 * Until then `old` waits: the hash gets it back if the change is refused, so that a refused change leaves no more
 * memory in use than before.
 */
struct growth {
	struct id_link **old; /* of the private set; NULL: they are built in */
	unsigned old_bits;
	unsigned twin_bits;
	struct id_link **twin; /* NULL: the twin needs none, or there was no memory */
};

static struct id_link **alloc_buckets(struct memory *memory, const struct memslot_set *set, size_t more, unsigned *bits)
{
	*bits = id_hash_bits_for(&set->ids, set->nr + more);
	return *bits > set->ids.bits ? memory_zalloc(memory, id_hash_size(*bits)) : NULL;
}

static void free_buckets(struct memory *memory, struct id_link **buckets, unsigned bits)
{
	memory_free(memory, buckets, id_hash_size(bits));
}

static void free_growth(struct memory *memory, struct address_space *as)
{
	memory_free(memory, as->spare, sizeof(struct growth));
	as->spare = NULL;
}

static struct growth *grow(struct memory *memory, struct memslot_set *private, struct memslot_set *twin, size_t more)
{
	struct growth *g = memory_zalloc(memory, sizeof(*g));
	unsigned bits;
	struct id_link **buckets = g ? alloc_buckets(memory, private, more, &bits) : NULL;

	if (!buckets) {
		memory_free(memory, g, sizeof(*g));
		return NULL;
	}
	g->twin = alloc_buckets(memory, twin, more, &g->twin_bits);
	g->old = id_hash_rehash(&private->ids, buckets, bits, &g->old_bits);
	return g;
}

/* The hash works with too few buckets.  Therefore a failed allocation is no error. */
static int tree_begin(struct memory *memory, struct address_space *as, struct memslot_set *private, size_t more)
{
	if (more > 1)
		memory_pool_reserve(memory, more);
	if (unlikely(id_hash_bits_for(&private->ids, private->nr + more) != private->ids.bits))
		as->spare = grow(memory, private, &as->set[!private->node_idx], more);
	return 0;
}

/* The change has succeeded.  After a MOVE `private` is the set of begin(), which has its buckets. */
static void tree_follow(struct memory *memory, struct address_space *as, struct memslot_set *private)
{
	struct growth *g = as->spare;

	if (likely(!g))
		return;
	atomic_fetch_add_explicit(&as->hash_grows, 1, memory_order_relaxed);
	free_buckets(memory, g->old, g->old_bits);
	if (g->twin && g->twin_bits > private->ids.bits)
		g->twin = id_hash_rehash(&private->ids, g->twin, g->twin_bits, &g->twin_bits);
	free_buckets(memory, g->twin, g->twin_bits);
	free_growth(memory, as);
}

/* The change was refused, and `private` is the set of begin(). */
static void shrink_again(struct memory *memory, struct memslot_set *private, const struct growth *g)
{
	struct id_link **old = g->old ? g->old : private->ids.built_in, **grown;
	unsigned bits;

	memset(old, 0, id_hash_size(g->old_bits));
	grown = id_hash_rehash(&private->ids, old, g->old_bits, &bits);
	free_buckets(memory, grown, bits);
	free_buckets(memory, g->twin, g->twin_bits);
}

static void tree_end(struct memory *memory, struct address_space *as, struct memslot_set *private)
{
	memory_pool_reserve(memory, 0);
	if (unlikely(as->spare)) {
		shrink_again(memory, private, as->spare);
		free_growth(memory, as);
	}
}

static void free_all(struct memory *memory, struct memslot_set *set)
{
	for (size_t i = 0; i < (size_t)1 << set->ids.bits; i++)
		for (struct id_link *link = set->ids.buckets[i], *next; link; link = next) {
			next = link->next;
			memslot_free(&DESIGN_OF(tree), memory,
				     &container_of(link - set->node_idx, struct tree_slot, id_link[0])->slot);
		}
}

static void tree_empty(struct memory *memory, struct memslot_set *set, bool free_slots)
{
	if (free_slots)
		free_all(memory, set);
	if (set->ids.buckets != set->ids.built_in)
		memory_free(memory, set->ids.buckets, id_hash_size(set->ids.bits));
	tree_init(set);
}

static bool lower_base(const struct rb_root *root, const struct rb_node *a, const struct rb_node *b)
{
	uint32_t idx = container_of(root, struct memslot_set, gfn_tree)->node_idx;

	return slot_of_gfn_node(a, idx)->base_gfn < slot_of_gfn_node(b, idx)->base_gfn;
}

/* R: the gfn tree, and the nodes of the hva tree; T: the intervals of the hva tree; I: the id hash. */
static int tree_check(const struct memslot_set *set, char *letter)
{
	int broken = rb_check(&set->gfn_tree, lower_base);

	*letter = 'R';
	if (broken)
		return broken;
	broken = interval_tree_check(&set->hva_tree);
	if (broken >= INTERVAL_TREE_BROKEN_T1) {
		*letter = 'T';
		return broken - INTERVAL_TREE_BROKEN_T1 + 1;
	}
	if (broken)
		return broken;
	*letter = 'I';
	return id_hash_check(&set->ids);
}

const struct memslot_design DESIGN_OF(tree) = {
	.name = "tree",
	.shares_slots = true,
	.indexed = true,
	.costs = { .gfn = COST_LOG, .id = COST_LOG, .hva = COST_LOG, .change = COST_LOG },
	.init = tree_init,
	.alloc_slot = tree_alloc_slot,
	.free_slot = tree_free_slot,
	.has_slot = tree_has_slot,
	.search = tree_search_call,
	.search_many = tree_search_many,
	.find = tree_find,
	.first_from = tree_first_from,
	.next = tree_next,
	.hva_range = tree_hva_range,
	.begin = tree_begin,
	.replace = tree_replace,
	.exchange = tree_exchange,
	.replace_by_gfn = tree_replace_by_gfn,
	.build = tree_build,
	.mirror = tree_mirror,
	.follow = tree_follow,
	.end = tree_end,
	.empty = tree_empty,
	.check = tree_check,
};
