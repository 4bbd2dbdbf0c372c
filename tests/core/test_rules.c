/* SPDX-License-Identifier: MIT */
/*
 * test_rules.c - the table of rules: each rule has its own name, its own text, and one or two errnos.
 *
 * vm_refuse() asserts that its errno belongs to its rule, so every other test checks the errnos too.
 */
#include "fixture.h"

#include <ctype.h>

#define UNKNOWN_ERRNO 4000

static const int errnos[] = {
	EINVAL, ENOENT, EEXIST, EBADF, ENOMEM, EFAULT, EBUSY, EIO, ENOSYS, EDEADLK, EINTR, ENOBUFS, ENOSPC,
};

static void check_words(const char *name, const char *text)
{
	CHECK(name && name[0] && text && strlen(text) > 8);
	for (const char *c = name; *c; c++)
		CHECK(isupper((unsigned char)*c) || *c == '_');
	CHECK(text[strlen(text) - 1] != '.');
}

/* A listener's prepare may return any errno, so its rule allows all of them. */
static void check_errnos(enum ms_rule rule)
{
	bool any = ms_rule_has_errno(rule, UNKNOWN_ERRNO);
	size_t nr = 0;

	for (size_t i = 0; i < ARRAY_SIZE(errnos); i++)
		nr += ms_rule_has_errno(rule, errnos[i]);
	CHECK_EQ(any, rule == MS_RULE_LISTENER_REFUSED);
	CHECK(any || nr == 1 || nr == 2);
	CHECK(!ms_rule_has_errno(rule, 0) && !ms_rule_has_errno(rule, -EINVAL));
}

static void check_rule(enum ms_rule rule)
{
	check_words(ms_rule_name(rule), ms_rule_text(rule));
	check_errnos(rule);
	for (unsigned other = MS_RULE_NONE + 1; other < rule; other++) {
		CHECK(strcmp(ms_rule_name(rule), ms_rule_name(other)));
		CHECK(strcmp(ms_rule_text(rule), ms_rule_text(other)));
	}
}

static void check_no_rule(unsigned number)
{
	CHECK(!ms_rule_name(number) && !ms_rule_text(number));
	CHECK(!ms_rule_has_errno(number, EINVAL) && !ms_rule_has_errno(number, UNKNOWN_ERRNO));
}

int main(int argc, char **argv)
{
	uint64_t rules = 0;

	test_init(argc, argv, 10);
	for (unsigned rule = MS_RULE_NONE + 1; rule < MS_RULE_NR; rule++, rules++)
		check_rule(rule);
	check_no_rule(MS_RULE_NONE);
	check_no_rule(MS_RULE_NR);
	check_no_rule(~0u);
	CHECK_EQ(strcmp(ms_rule_name(MS_RULE_SLOT_ID), "SLOT_ID"), 0);
	CHECK_EQ(strcmp(ms_rule_name(MS_RULE_INTERRUPTED), "INTERRUPTED"), 0);
	CHECK(ms_rule_has_errno(MS_RULE_HOOK, EDEADLK) && !ms_rule_has_errno(MS_RULE_HOOK, EBUSY));
	return test_done("rules", rules, "rules");
}
