/* SPDX-License-Identifier: MIT */
/*
 * compiler.h - macros for the features of compilers that the C language lacks, and the macros that every file needs.
 *
 * There are two levels of assertions.  ms_assert() is for cheap conditions; NDEBUG removes it.  Expensive conditions
 * belong in check.c, which runs only when ms_check() is called.
 */
#ifndef MS_COMPILER_H
#define MS_COMPILER_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "namespace.h"

#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Hides the value of an integer or a pointer from the compiler.  The compiler then cannot turn arithmetic with it into
 * a branch, and has it in one register. */
#if defined(__GNUC__)
#define opaque(value) __asm__("" : "+r"(value))
#else
#define opaque(value) ((void)(value))
#endif

/* Data that different cores write lies this far apart: one cache line of x86-64 and of most arm64 CPUs. */
#define CACHE_LINE 64
#define cache_aligned _Alignas(CACHE_LINE)

/* Keeps a slow path out of a caller that must stay short. */
#define out_of_line __attribute__((noinline))

/* Functions with target("avx2") or target("avx512f") can be compiled; __builtin_cpu_supports() says which can run. */
#if defined(__x86_64__) && defined(__GNUC__)
#define MS_X86_KERNELS 1
#endif

#define ms_assert(condition) assert(condition)

/* Sanitizers do not see the loads of assembly code, nor the blocks of a pool.  Code with either tests these macros.
 * gcc defines __SANITIZE_ADDRESS__ and __SANITIZE_THREAD__; clang has __has_feature() instead. */
#ifdef __has_feature
#define MS_HAS_FEATURE(feature) __has_feature(feature)
#else
#define MS_HAS_FEATURE(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || MS_HAS_FEATURE(address_sanitizer)
#define MS_ADDRESS_SANITIZED 1
#else
#define MS_ADDRESS_SANITIZED 0
#endif
#if defined(__SANITIZE_THREAD__) || MS_HAS_FEATURE(thread_sanitizer)
#define MS_THREAD_SANITIZED 1
#else
#define MS_THREAD_SANITIZED 0
#endif
#define MS_SANITIZED (MS_ADDRESS_SANITIZED || MS_THREAD_SANITIZED)

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static inline size_t at_most(size_t n, size_t limit)
{
	return n < limit ? n : limit;
}

/* The bytes of a struct from its begin to the end of the member. */
#define SIZE_UP_TO(type, member) (offsetof(type, member) + sizeof(((type *)0)->member))

#endif
