/* SPDX-License-Identifier: MIT */
/*
 * build_info.c - describes this build, for `memslots info` and for the records of measurements.
 */
#include "compiler.h"
#include "include/memslots.h"

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

#if MS_ADDRESS_SANITIZED
#define SANITIZER "address"
#elif MS_THREAD_SANITIZED
#define SANITIZER "thread"
#else
#define SANITIZER "none"
#endif

const char *ms_build_info(void)
{
	return "compiler=" COMPILER "; asserts=" ASSERTS "; sanitizer=" SANITIZER;
}
