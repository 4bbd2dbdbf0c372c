/* SPDX-License-Identifier: MIT */
/*
 * build_info.c - describes this build, for `memslots info` and for the records of measurements.
 */
#include "include/memslots.h"
#include "namespace.h"

#ifdef __clang__
#define COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define COMPILER "gcc " __VERSION__
#else
#define COMPILER "unknown"
#endif

#ifdef NDEBUG
#define ASSERTS "off"
#else
#define ASSERTS "on"
#endif

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZER "address"
#elif defined(__SANITIZE_THREAD__)
#define SANITIZER "thread"
#else
#define SANITIZER "none"
#endif

const char *ms_build_info(void)
{
	return "compiler=" COMPILER "; asserts=" ASSERTS "; sanitizer=" SANITIZER;
}
