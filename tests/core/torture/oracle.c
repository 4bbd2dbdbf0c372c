/* SPDX-License-Identifier: MIT */
/* See oracle.h. */
#include "oracle.h"

#include <errno.h>

/* The last HISTORY words of an id, each with its first state. */
#define HISTORY 1024u

struct history {
	struct {
		_Atomic uint64_t from, word;
	} entry[HISTORY];
	_Atomic uint64_t nr;
};

static struct history history[SPACES][KEEPER + 1];
_Atomic uint64_t noted[SPACES];
_Atomic uint64_t over[SPACES];

void oracle_reset(void)
{
	memset(history, 0, sizeof(history));
	memset(noted, 0, sizeof(noted));
	memset(over, 0, sizeof(over));
}

void note_word(uint32_t as_id, uint32_t id, uint64_t from, uint64_t word)
{
	struct history *h = &history[as_id][id];
	uint64_t nr = atomic_load_explicit(&h->nr, memory_order_relaxed);

	atomic_store_explicit(&h->entry[nr % HISTORY].from, from, memory_order_release);
	atomic_store_explicit(&h->entry[nr % HISTORY].word, word, memory_order_release);
	atomic_store_explicit(&h->nr, nr + 1, memory_order_release);
}

/* The word of the id in a state; false: the history does not go back that far.  An entry that the writer overwrites is
 * detected: the writer stores the new value after the count that covers it. */
static bool word_in(uint32_t as_id, uint32_t id, uint64_t state, uint64_t *word)
{
	struct history *h = &history[as_id][id];
	uint64_t nr = atomic_load_explicit(&h->nr, memory_order_acquire);

	for (uint64_t i = nr; i-- > 0;) {
		uint64_t from = atomic_load_explicit(&h->entry[i % HISTORY].from, memory_order_acquire);

		*word = atomic_load_explicit(&h->entry[i % HISTORY].word, memory_order_acquire);
		if (atomic_load_explicit(&h->nr, memory_order_acquire) - i >= HISTORY)
			return false;
		if (from <= state)
			return true;
	}
	*word = 0;
	return true;
}

/* ---- calls ---- */

struct call *new_call(void)
{
	struct call *c = calloc(1, sizeof(*c));

	CHECK(c);
	c->in = calloc(BATCH_MAX, sizeof(*c->in));
	c->out = calloc(BATCH_MAX, sizeof(*c->out));
	c->ids = calloc(BATCH_MAX, sizeof(*c->ids));
	CHECK(c->in && c->out && c->ids);
	return c;
}

void free_call(struct call *c)
{
	free(c->in);
	free(c->out);
	free(c->ids);
	free(c);
}

/* The slots of a place in one state: at most a member of the group and its upper part. */
struct tenants {
	unsigned nr;
	uint32_t id[2];
	uint64_t word[2];
};

/* Adds the slot with this id if it is there.  False: unknown, as in word_in(). */
static bool add_tenant(struct tenants *t, uint32_t as_id, uint32_t id, uint64_t place, uint64_t state)
{
	uint64_t word;

	if (!word_in(as_id, id, state, &word))
		return false;
	if (word & PRESENT && base_of(id, word) / PLACE_PAGES == place) {
		t->id[t->nr] = id;
		t->word[t->nr++] = word;
	}
	return true;
}

/* By ascending gfn. */
static bool tenants_of(struct tenants *t, uint32_t as_id, uint64_t place, uint64_t state)
{
	t->nr = 0;
	if (place >= PLACES)
		return true;
	if (place >= GROUP_PLACES)
		return add_tenant(t, as_id, (uint32_t)(place - GROUP_PLACES) / 2, place, state);
	for (uint32_t id = GROUP; id <= UPPER_PART; id++)
		if (!add_tenant(t, as_id, id, place, state))
			return false;
	return true;
}

/* The slot that has the gfn in the state; *word is 0 for a hole.  False: unknown, as in word_in(). */
static bool at_gfn(uint32_t as_id, uint64_t gfn, uint64_t state, uint32_t *id, uint64_t *word)
{
	struct tenants t;

	*id = 0;
	*word = 0;
	if (!tenants_of(&t, as_id, gfn / PLACE_PAGES, state))
		return false;
	for (unsigned i = 0; i < t.nr; i++)
		if (gfn - base_of(t.id[i], t.word[i]) < npages_of(t.word[i])) {
			*id = t.id[i];
			*word = t.word[i];
		}
	return true;
}

static uint64_t right_hva(uint32_t as_id, uint32_t id, uint64_t gfn, uint64_t word, bool write)
{
	if (!(word & PRESENT) || word & INVALID)
		return MS_HVA_ERR_BAD;
	if (write && word & READONLY)
		return MS_HVA_ERR_RO_BAD;
	return hva_for(as_id, id, word) + (gfn - base_of(id, word)) * MS_PAGE_SIZE;
}

enum verdict match_hvas(const struct call *c, uint64_t state)
{
	for (size_t i = 0; i < c->n; i++) {
		size_t at = place_of(c, i);
		uint64_t word, hva;
		uint32_t id;

		if (!at_gfn(c->as_id, c->in[at], state, &id, &word))
			return UNKNOWN;
		hva = right_hva(c->as_id, id, c->in[at], word, c->write);
		if (c->out[at] != (hva < MS_HVA_ERR_MIN ? hva + c->low : hva))
			return DIFFERS;
	}
	return MATCHES;
}

enum verdict match_prot(const struct call *c, uint64_t state)
{
	enum verdict verdict = match_hvas(c, state);
	uint64_t word;
	uint32_t id;

	if (verdict != MATCHES || c->out[0] >= MS_HVA_ERR_MIN)
		return verdict;
	if (!at_gfn(c->as_id, c->in[0], state, &id, &word))
		return UNKNOWN;
	return c->writable == !(word & READONLY) ? MATCHES : DIFFERS;
}

enum verdict match_ids(const struct call *c, uint64_t state)
{
	for (size_t i = 0; i < c->n; i++) {
		size_t at = place_of(c, i);
		uint64_t word;
		uint32_t id;

		if (!at_gfn(c->as_id, c->in[at], state, &id, &word))
			return UNKNOWN;
		if (c->ids[at] != (word & PRESENT && !(word & INVALID) ? (int32_t)id : -1))
			return DIFFERS;
	}
	return MATCHES;
}

enum verdict match_visible(const struct call *c, uint64_t state)
{
	uint64_t word;
	uint32_t id;

	if (!at_gfn(c->as_id, c->in[0], state, &id, &word))
		return UNKNOWN;
	return (bool)c->out[0] == (word & PRESENT && !(word & INVALID)) ? MATCHES : DIFFERS;
}

static bool is_slot(const struct ms_memslot *slot, uint32_t as_id, uint32_t id, uint64_t word)
{
	return slot->id == id && slot->as_id == as_id && slot->base_gfn == base_of(id, word) &&
	       slot->npages == npages_of(word) && slot->userspace_addr == hva_for(as_id, id, word) &&
	       slot->flags == flags_of(word);
}

enum verdict match_slot(const struct call *c, uint64_t state)
{
	uint64_t word;
	uint32_t id;

	if (!at_gfn(c->as_id, c->in[0], state, &id, &word))
		return UNKNOWN;
	if (!(word & PRESENT))
		return c->n ? DIFFERS : MATCHES;
	return c->n && is_slot(&c->slot[0], c->as_id, id, word) ? MATCHES : DIFFERS;
}

enum verdict match_id(const struct call *c, uint64_t state)
{
	uint64_t word;

	if (!word_in(c->as_id, (uint32_t)c->in[0], state, &word))
		return UNKNOWN;
	if (!(word & PRESENT))
		return c->n ? DIFFERS : MATCHES;
	return c->n && is_slot(&c->slot[0], c->as_id, (uint32_t)c->in[0], word) ? MATCHES : DIFFERS;
}

static bool in_gfn_range(const struct call *c, uint32_t id, uint64_t word)
{
	uint64_t base = base_of(id, word);

	return c->start < c->end && base < c->end && base + npages_of(word) > c->start;
}

enum verdict match_gfn_range(const struct call *c, uint64_t state)
{
	struct tenants t;
	size_t nr = 0;

	for (uint64_t place = 0; place < PLACES; place++) {
		if (!tenants_of(&t, c->as_id, place, state))
			return UNKNOWN;
		for (unsigned i = 0; i < t.nr; i++)
			if (in_gfn_range(c, t.id[i], t.word[i]) &&
			    (nr >= c->n || !is_slot(&c->slot[nr++], c->as_id, t.id[i], t.word[i])))
				return DIFFERS;
	}
	return nr == c->n ? MATCHES : DIFFERS;
}

/* The slot where the preview has it. */
static bool is_moved_slot(const struct ms_memslot *slot, uint32_t as_id, uint32_t id, uint64_t word)
{
	struct ms_memslot there = *slot;

	if (there.base_gfn != preview_gfn(id))
		return false;
	there.base_gfn = base_of(id, word);
	return is_slot(&there, as_id, id, word);
}

enum verdict match_preview(const struct call *c, uint64_t state)
{
	size_t nr = 0;

	for (uint32_t id = 0; id < KEEPER; id++) {
		bool moves = id >= GROUP && id < UPPER_PART;
		uint64_t word;
		size_t i = 0;

		if (!word_in(c->as_id, id, state, &word))
			return UNKNOWN;
		if (!(word & PRESENT))
			continue;
		while (i < c->n && !(moves ? is_moved_slot : is_slot)(&c->slot[i], c->as_id, id, word))
			i++;
		if (i == c->n)
			return DIFFERS;
		nr++;
	}
	return nr == c->n ? MATCHES : DIFFERS;
}

static bool has_byte(uint32_t as_id, uint32_t id, uint64_t word, uint64_t start, uint64_t last)
{
	uint64_t hva = hva_for(as_id, id, word);

	return word & PRESENT && hva <= last && hva + npages_of(word) * MS_PAGE_SIZE > start;
}

enum verdict match_hva_range(const struct call *c, uint64_t state)
{
	size_t nr = 0;

	for (uint32_t id = 0; id < KEEPER; id++) {
		uint64_t word;
		size_t i = 0;

		if (!word_in(c->as_id, id, state, &word))
			return UNKNOWN;
		if (!has_byte(c->as_id, id, word, c->start, c->end))
			continue;
		while (i < c->n && !is_slot(&c->slot[i], c->as_id, id, word))
			i++;
		if (i == c->n || (i && c->slot[i - 1].userspace_addr >= c->slot[i].userspace_addr))
			return DIFFERS;
		nr++;
	}
	return nr == c->n ? MATCHES : DIFFERS;
}

/* ---- copies ---- */

static enum ms_rule rule_for(uint64_t word, bool write)
{
	if (!(word & PRESENT) || word & INVALID)
		return MS_RULE_GUEST_HOLE;
	if (write && word & READONLY)
		return MS_RULE_GUEST_READONLY;
	return word & BACKED ? MS_RULE_NONE : MS_RULE_GUEST_RAW;
}

static bool is_byte(unsigned char got, uint64_t gpa, uint64_t stamp)
{
	uint64_t right = stamp + gpa % SLOT_BYTES / 8 * 8, shift = gpa % 8 * 8;

	return !((got ^ right >> shift) & (shift ? 0xff : 0xff & ~TICKS));
}

static bool is_word(const unsigned char *got, uint64_t gpa, uint64_t stamp)
{
	uint64_t word;

	memcpy(&word, got, sizeof(word));
	return !((word ^ (stamp + gpa % SLOT_BYTES)) & ~TICKS);
}

/* Whether the bytes are those of the incarnation with this stamp, in the page of gpa. */
static bool are_bytes(const unsigned char *got, uint64_t gpa, size_t n, uint64_t stamp)
{
	size_t i = 0;

	for (; i < n && (gpa + i) % 8; i++)
		if (!is_byte(got[i], gpa + i, stamp))
			return false;
	for (; n - i >= 8; i += 8)
		if (!is_word(got + i, gpa + i, stamp))
			return false;
	for (; i < n; i++)
		if (!is_byte(got[i], gpa + i, stamp))
			return false;
	return true;
}

static bool has_bytes(const struct call *c)
{
	return !c->write && !(c->one_value && c->result);
}

/* Page by page, from *done on.  *rule is the first refusal. */
static enum verdict match_bytes(const struct call *c, uint64_t state, uint64_t gpa, size_t n, const void *bytes,
				size_t *done, enum ms_rule *rule)
{
	const unsigned char *got = bytes;

	for (size_t piece; *done < n; *done += piece) {
		uint64_t at = gpa + *done, word;
		uint32_t id;

		piece = MS_PAGE_SIZE - at % MS_PAGE_SIZE;
		piece = piece < n - *done ? piece : n - *done;
		if (!at_gfn(c->as_id, at >> MS_PAGE_SHIFT, state, &id, &word))
			return UNKNOWN;
		*rule = rule_for(word, c->write);
		if (*rule)
			return MATCHES;
		if (has_bytes(c) && !are_bytes(got + *done, at, piece, stamp_for(c->as_id, id, word)))
			return DIFFERS;
	}
	return MATCHES;
}

static enum verdict match_result(const struct call *c, enum ms_rule rule, uint64_t gpa, uint64_t done)
{
	if (!rule)
		return c->result ? DIFFERS : MATCHES;
	return c->result == -EFAULT && c->err.rule == rule && c->err.gpa == gpa && c->err.done == done ? MATCHES :
													 DIFFERS;
}

enum verdict match_copy(const struct call *c, uint64_t state)
{
	enum ms_rule rule = MS_RULE_NONE;
	size_t done = 0;
	enum verdict verdict = match_bytes(c, state, c->gpa, c->bytes, c->out, &done, &rule);

	return verdict == MATCHES ? match_result(c, rule, c->gpa + done, done) : verdict;
}

enum verdict match_values(const struct call *c, uint64_t state)
{
	for (size_t i = 0; i < c->n; i++) {
		uint64_t gpa = c->in[place_of(c, i)];
		enum ms_rule rule = MS_RULE_NONE;
		size_t done = 0;
		enum verdict verdict = match_bytes(c, state, gpa, 8, &c->out[place_of(c, i)], &done, &rule);

		if (verdict != MATCHES)
			return verdict;
		if (rule)
			return c->result && c->err.index == i ? match_result(c, rule, gpa + done, 8 * i + done) :
								DIFFERS;
	}
	return match_result(c, MS_RULE_NONE, 0, 0);
}

/* ---- all states of a call ---- */

/* A call that more changes overtook is checked against this many states only. */
#define STATES_MAX 1024u

/* The newest of the states from `from` to `last` that all answers match, or NO_STATE. */
static uint64_t matching_state(const struct call *c, match_fn *match, uint64_t from, uint64_t last, bool *known)
{
	for (uint64_t state = last + 1; state-- > from;) {
		enum verdict verdict = match(c, state);

		if (verdict == MATCHES)
			return state;
		*known &= verdict == DIFFERS;
	}
	return NO_STATE;
}

/* The thread has seen the oldest of these states that the answers may match, or a newer one. */
static void note_seen(const struct call *c, match_fn *match, uint64_t from, uint64_t newest)
{
	while (from < newest && match(c, from) == DIFFERS)
		from++;
	if (from > self->seen[c->as_id])
		self->seen[c->as_id] = from;
}

/* An answer that matches one of the 64 states before the call's first one is out of date. */
static void report_mismatch(const struct call *c, match_fn *match)
{
	bool known = true;
	uint64_t older = c->lo > 64 ? c->lo - 64 : 0, state = NO_STATE;

	if (c->lo)
		state = matching_state(c, match, older, c->lo - 1, &known);
	wrong(state == NO_STATE ? c->what : "an answer that is out of date", c->as_id, c->in[c->at], c->lo, c->hi);
}

uint64_t check_call(const struct call *c, match_fn *match, uint64_t answers)
{
	uint64_t from = c->hi - c->lo < STATES_MAX ? c->lo : c->hi - STATES_MAX, state;
	bool known = from == c->lo;

	self->lookups += answers;
	state = matching_state(c, match, from, c->hi, &known);
	if (state != NO_STATE) {
		note_seen(c, match, from, state);
		return state;
	}
	if (known)
		report_mismatch(c, match);
	else
		self->unchecked++;
	return NO_STATE;
}
