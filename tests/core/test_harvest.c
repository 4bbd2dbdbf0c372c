/* SPDX-License-Identifier: MIT */
/*
 * test_harvest.c - ms_harvest_dirty() and ms_merge_dirty_log(), compared with one array of guest pages.
 *
 * Small logs have no summary and large ones have one.  The harvests use arrays of any room, begin anywhere, and clear
 * or do not clear.  After each of them every log must equal the array, and ms_check() must find each summary complete.
 */
#include "fixture.h"

#define LOG MS_MEM_LOG_DIRTY_PAGES
#define SLOTS 6
#define PAGES_MAX (1u << 21) /* of all slots and holes together */

static struct ms_vm *vm;
static bool dirty[PAGES_MAX];
static uint64_t base[SLOTS], npages[SLOTS], end_gfn;
static struct ms_gfn_range out[PAGES_MAX / 2 + 1];
static uint64_t words[PAGES_MAX / 64 + 1];
static uint64_t steps;

/* ---- the slots ---- */

/* Sizes about the limits that matter: words, lines, the smallest summary. */
static uint64_t some_size(struct rng *rng)
{
	static const uint64_t limit[] = { 64, 256, 512, 1 << 15, DIRTY_SUMMARY_MIN, 3 << 17 };
	uint64_t about = limit[rng_below(rng, ARRAY_SIZE(limit))];

	return rng_below(rng, 4) ? about - 2 + rng_below(rng, 5) : 1 + rng_below(rng, about);
}

/* Half of the slots follow the one before without a hole.  Slot 1 has no log. */
static void create_slots(struct rng *rng)
{
	uint64_t gfn = rng_below(rng, 100);

	memset(dirty, 0, sizeof(dirty));
	for (uint32_t id = 0; id < SLOTS; id++) {
		gfn += rng_below(rng, 2) ? rng_below(rng, 100) : 0;
		base[id] = gfn;
		npages[id] = some_size(rng);
		gfn += npages[id];
		if (gfn > PAGES_MAX) {
			npages[id] = 0;
			gfn = base[id];
			continue;
		}
		region_t r = region(0, id, base[id], npages[id], id == 1 ? 0 : LOG);

		r.userspace_addr = HVA_BASE + base[id] * PAGE;
		CHECK_EQ(ms_set_user_memory_region(vm, &r, NULL), 0);
	}
	end_gfn = gfn;
}

static void mark(uint32_t id, uint64_t page)
{
	ms_mark_page_dirty(vm, 0, base[id] + page);
	dirty[base[id] + page] = id != 1;
}

/* Single pages, or a run.  The last pages of a slot matter. */
static void mark_some(struct rng *rng)
{
	uint32_t id = (uint32_t)rng_below(rng, SLOTS);
	uint64_t first, n;

	if (!npages[id])
		return;
	first = rng_below(rng, 4) ? rng_below(rng, npages[id]) : npages[id] - 1;
	n = rng_below(rng, 3) ? 1 : 1 + rng_below(rng, 600);
	for (; n && first < npages[id]; n--)
		mark(id, first++);
}

/* More dirty lines than one group has, all over the slots. */
static void mark_many(struct rng *rng)
{
	for (int i = 0; i < 150; i++) {
		uint32_t id = (uint32_t)rng_below(rng, SLOTS);

		if (npages[id])
			mark(id, rng_below(rng, npages[id]));
	}
}

/* ---- the expected ranges ---- */

static uint64_t next_dirty(uint64_t gfn)
{
	while (gfn < end_gfn && !dirty[gfn])
		gfn++;
	return gfn < end_gfn ? gfn : MS_GFN_END;
}

static uint64_t next_clean(uint64_t gfn)
{
	while (gfn < end_gfn && dirty[gfn])
		gfn++;
	return gfn;
}

/* Checks one call against the array, and returns where the next call goes on. */
static uint64_t harvest(uint64_t gfn, bool clear, size_t room)
{
	uint64_t at = gfn, expected = next_dirty(gfn);
	size_t n = ~(size_t)0;

	memset(out, 0xff, (room + 1) * sizeof(*out));
	CHECK_EQ(ms_harvest_dirty(vm, 0, clear, &at, room ? out : NULL, room, &n, NULL), 0);
	CHECK(n <= room);
	for (size_t i = 0; i < n; i++) {
		CHECK_EQ(out[i].gfn, expected);
		CHECK_EQ(out[i].npages, next_clean(expected) - expected);
		expected = next_dirty(out[i].gfn + out[i].npages);
	}
	for (size_t i = 0; clear && i < n; i++)
		memset(&dirty[out[i].gfn], 0, out[i].npages);
	CHECK_EQ(out[room].gfn, ~(uint64_t)0); /* nothing behind the array is written */
	CHECK_EQ(at, expected); /* a call stops early only if the array is full */
	steps++;
	return at;
}

static void check_all(void)
{
	struct ms_violation violation;

	CHECK_EQ(ms_check(vm, &violation, NULL), 0);
	CHECK_EQ(harvest(0, false, ARRAY_SIZE(out) - 1), MS_GFN_END);
}

/* Reads everything in pieces. */
static void harvest_in_pieces(struct rng *rng, bool clear)
{
	uint64_t gfn = 0;

	while (gfn != MS_GFN_END)
		gfn = harvest(gfn, clear, 1 + rng_below(rng, 40));
}

/* ---- other ways to change a log ---- */

static void get(uint32_t id)
{
	CHECK_EQ(ms_get_dirty_log(vm, 0, id, words, ARRAY_SIZE(words), NULL, NULL), 0);
	for (uint64_t page = 0; page < npages[id]; page++)
		CHECK_EQ(words[page / 64] >> page % 64 & 1, dirty[base[id] + page]);
	memset(&dirty[base[id]], 0, npages[id]);
}

/* The lower half of each byte, from some page on. */
static void clear_halves(struct rng *rng, uint32_t id)
{
	size_t nwords = dirty_log_words(npages[id]);
	uint64_t first = 64 * rng_below(rng, nwords);

	memset(words, 0x0f, nwords * sizeof(*words));
	CHECK_EQ(ms_clear_dirty_log(vm, 0, id, first, (uint32_t)(npages[id] - first), words, nwords - first / 64, NULL),
		 0);
	for (uint64_t page = first; page < npages[id]; page++)
		dirty[base[id] + page] &= page % 8 >= 4;
}

/* The bits behind the last page are ignored. */
static void merge(struct rng *rng, uint32_t id)
{
	size_t nwords = dirty_log_words(npages[id]);

	memset(words, 0, nwords * sizeof(*words));
	for (uint64_t i = rng_below(rng, 20); i; i--)
		words[rng_below(rng, nwords)] |= rng_below(rng, 2) ? ~(uint64_t)0 : rng_next(rng);
	words[nwords - 1] |= (uint64_t)1 << 63;
	CHECK_EQ(ms_merge_dirty_log(vm, 0, id, words, nwords, NULL), 0);
	for (uint64_t page = 0; page < npages[id]; page++)
		dirty[base[id] + page] |= words[page / 64] >> page % 64 & 1;
}

/* Often in the middle of dirty pages: a start has dirty neighbours in its word, its line and its lower word. */
static uint64_t some_start(struct rng *rng)
{
	uint64_t gfn = next_dirty(rng_below(rng, end_gfn + 2));

	return rng_below(rng, 4) ? gfn + rng_below(rng, 3) : rng_below(rng, end_gfn + 2);
}

static void harvest_some(struct rng *rng)
{
	switch (rng_below(rng, 4)) {
	case 0:
		harvest_in_pieces(rng, rng_below(rng, 2));
		break;
	case 1:
		harvest(0, true, ARRAY_SIZE(out) - 1);
		break;
	default:
		harvest(some_start(rng), rng_below(rng, 4), rng_below(rng, rng_below(rng, 2) ? 3 : 100));
	}
}

static void change_one_log(struct rng *rng)
{
	uint32_t id = (uint32_t)rng_below(rng, SLOTS);

	if (!npages[id] || id == 1)
		return;
	switch (rng_below(rng, 3)) {
	case 0:
		get(id);
		break;
	case 1:
		clear_halves(rng, id);
		break;
	default:
		merge(rng, id);
	}
}

static void one_vm(uint64_t number)
{
	struct rng rng = rng_stream(number);

	vm = new_vm(1);
	create_slots(&rng);
	for (int step = 0; step < 40; step++) {
		for (uint64_t n = rng_below(&rng, 12); n; n--)
			mark_some(&rng);
		if (!rng_below(&rng, 4))
			mark_many(&rng);
		if (rng_below(&rng, 4))
			harvest_some(&rng);
		else
			change_one_log(&rng);
		check_all();
	}
	ms_vm_destroy(vm);
}

/* ---- arguments ---- */

static int call(uint32_t as_id, uint64_t *gfn, struct ms_gfn_range *to, size_t room, size_t *n, enum ms_rule *rule)
{
	struct ms_error err = { 0 };
	int r = ms_harvest_dirty(vm, as_id, true, gfn, to, room, n, &err);

	*rule = err.rule;
	return r;
}

static void arguments(void)
{
	uint64_t gfn = 0, word[2] = { 5, 0 };
	enum ms_rule rule;
	struct ms_error err;
	size_t n;

	vm = new_vm(2);
	CHECK_EQ(set(vm, 1, 7, 100, 65, LOG), 0);
	CHECK_EQ(set(vm, 1, 8, 300, 65, 0), 0);
	CHECK_EQ(call(1, NULL, out, 1, &n, &rule), -EFAULT);
	CHECK_EQ(rule, MS_RULE_NULL_BUFFER);
	CHECK_EQ(call(1, &gfn, NULL, 1, &n, &rule), -EFAULT);
	CHECK_EQ(call(1, &gfn, out, 1, NULL, &rule), -EFAULT);
	CHECK_EQ(call(2, &gfn, out, 1, &n, &rule), -EINVAL);
	CHECK_EQ(rule, MS_RULE_AS_ID);
	CHECK_EQ(gfn, 0);
	CHECK_EQ(ms_merge_dirty_log(vm, 1, 7, word, 1, &err), -EINVAL);
	CHECK_EQ(err.rule, MS_RULE_BITMAP_SIZE);
	CHECK_EQ(err.limit, 2);
	CHECK_EQ(ms_merge_dirty_log(vm, 1, 7, NULL, 2, &err), -EFAULT);
	CHECK_EQ(ms_merge_dirty_log(vm, 1, 8, word, 2, &err), -ENOENT);
	CHECK_EQ(err.rule, MS_RULE_NO_DIRTY_LOG);
	CHECK_EQ(ms_merge_dirty_log(vm, 1, 7, word, 2, &err), 0);
	CHECK_EQ(call(0, &gfn, out, 1, &n, &rule), 0); /* another address space */
	CHECK_EQ(n, 0);
	gfn = MS_GFN_END;
	CHECK_EQ(call(1, &gfn, out, 1, &n, &rule), 0);
	CHECK_EQ(n, 0);
	gfn = 0;
	CHECK_EQ(call(1, &gfn, out, 1, &n, &rule), 0);
	CHECK(n == 1 && out[0].gfn == 100 && out[0].npages == 1 && gfn == 102);
	ms_vm_destroy(vm);
}

/* The last frames of a VM with the largest addresses. */
static void last_frame(void)
{
	struct ms_config config = default_config(1);
	uint64_t gfn = 0;
	size_t n;

	config.gpa_bits = 64;
	CHECK_EQ(ms_vm_create(&config, &vm), 0);
	CHECK_EQ(set(vm, 0, 0, MS_GFN_END - 65, 64, LOG), 0);
	ms_mark_page_dirty(vm, 0, MS_GFN_END - 2);
	CHECK_EQ(ms_harvest_dirty(vm, 0, true, &gfn, out, 1, &n, NULL), 0);
	CHECK(n == 1 && out[0].gfn == MS_GFN_END - 2 && out[0].npages == 1 && gfn == MS_GFN_END);
	ms_vm_destroy(vm);
}

int main(int argc, char **argv)
{
	test_init(argc, argv, 180);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		arguments();
		last_frame();
		for (uint64_t number = 0; number < test_times(40); number++)
			one_vm(number);
	}
	return test_done("harvest", steps, "harvests");
}
