/* SPDX-License-Identifier: MIT */
/*
 * memory.h - the host memory of the slots that have a backing.
 *
 * Each incarnation has an area of its own in one window of addresses.  The release function fills the area with poison
 * and makes it inaccessible.  So a reader that uses it too late gets a wrong word or MS_RULE_GUEST_FAULT, which no
 * state allows.
 */
#ifndef MS_TORTURE_MEMORY_H
#define MS_TORTURE_MEMORY_H

#include "torture.h"

#define MEMORY_AREAS ((uint64_t)1024)
#define MEMORY_WINDOW (MEMORY_AREAS << 24) /* bytes of addresses, almost all unused */

extern unsigned char *memory_window; /* aligned to an area */

void memory_reserve(void);

/* Whether the incarnation's area is free: no slot and no reader holds the memory of a former one. */
bool memory_is_free(uint64_t incarnation);

/* Makes the memory of a slot of address space as_id, with its content.  The caller has a reference. */
struct ms_backing *memory_new(uint32_t as_id, uint32_t id, uint64_t word);

/* The number of backings that have not been released. */
uint64_t memory_in_use(void);

#endif
