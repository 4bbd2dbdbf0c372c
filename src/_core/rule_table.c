/* SPDX-License-Identifier: MIT */
/*
 * rule_table.c - the names, texts and errnos of the rules, made from MS_RULES() of memslots.h.
 */
#include <errno.h>

#include "compiler.h"
#include "include/memslots.h"

#define ERRNOS_MAX 2

static const struct {
	const char *name, *text;
	int errnos[ERRNOS_MAX];
	bool any_errno;
} rules[] = {
#define RULE_ROW(rule, words, ...) \
	[MS_RULE_##rule] = { \
		.name = #rule, .text = words, .errnos = { __VA_ARGS__ }, .any_errno = !FIRST(__VA_ARGS__, 0) \
	},
#define FIRST(first, ...) first
	MS_RULES(RULE_ROW)
};

_Static_assert(ARRAY_SIZE(rules) == MS_RULE_NR, "each rule has a row");

static bool is_rule(enum ms_rule rule)
{
	return (unsigned)rule > MS_RULE_NONE && (unsigned)rule < MS_RULE_NR;
}

const char *ms_rule_name(enum ms_rule rule)
{
	return is_rule(rule) ? rules[rule].name : NULL;
}

const char *ms_rule_text(enum ms_rule rule)
{
	return is_rule(rule) ? rules[rule].text : NULL;
}

bool ms_rule_has_errno(enum ms_rule rule, int code)
{
	if (!is_rule(rule) || code <= 0)
		return false;
	for (size_t i = 0; i < ERRNOS_MAX; i++)
		if (rules[rule].errnos[i] == code)
			return true;
	return rules[rule].any_errno;
}
