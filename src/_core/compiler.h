/* SPDX-License-Identifier: MIT */
/*
 * compiler.h - what the C language leaves to its compilers.
 *
 * Two assert levels: ms_assert() is for what is cheap to know and is compiled in unless NDEBUG; what is expensive
 * to know belongs in check.c, which runs when somebody asks.
 */
#ifndef MS_COMPILER_H
#define MS_COMPILER_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "namespace.h"

#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* A compiler that cannot know what is in it makes no branches of it. */
#if defined(__GNUC__)
#define opaque(integer) __asm__("" : "+r"(integer))
#else
#define opaque(integer) ((void)(integer))
#endif

/* What one core writes and another reads is kept this far apart: one line of x86-64 and of most arm64. */
#define CACHE_LINE 64
#define cache_aligned _Alignas(CACHE_LINE)

/* Kept apart from a caller that must stay short. */
#define out_of_line __attribute__((noinline))

#define ms_assert(condition) assert(condition)

/* A sanitizer sees the loads of C, not those of assembly, and blocks of the C library, not those of a pool. */
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
#if MS_ADDRESS_SANITIZED || defined(__SANITIZE_THREAD__) || MS_HAS_FEATURE(thread_sanitizer)
#define MS_SANITIZED 1
#else
#define MS_SANITIZED 0
#endif

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#endif
