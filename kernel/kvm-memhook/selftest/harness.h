/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A minimal test harness: a test is a function that returns, or fails an
 * assertion and ends the program's test. What a test needs and does not find is
 * a failure too, since the lab has it all.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct test {
	const char *name;
	void (*run)(void);
};

#define FAIL(...) do { \
	fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
	fprintf(stderr, __VA_ARGS__); \
	fprintf(stderr, "\n"); \
	_exit(1); \
} while (0)

/* got and want are evaluated once and printed on failure. */
#define WANT_EQ(got_, want_) do { \
	long long g__ = (long long)(got_), w__ = (long long)(want_); \
	if (g__ != w__) \
		FAIL("%s: got %lld (%#llx), want %lld (%#llx)", #got_, g__, g__, w__, w__); \
} while (0)

#define WANT(cond) do { \
	if (!(cond)) \
		FAIL("%s is false (errno %d, %s)", #cond, errno, strerror(errno)); \
} while (0)

/* A call that must fail with that errno. */
#define WANT_ERRNO(call, want_) do { \
	errno = 0; \
	long long r__ = (long long)(call); \
	if (r__ != -1) \
		FAIL("%s: got %lld, want errno %s", #call, r__, #want_); \
	if (errno != (want_)) \
		FAIL("%s: got errno %d (%s), want %s", #call, errno, strerror(errno), #want_); \
} while (0)

extern const struct test memory_tests[], mapping_tests[], lifetime_tests[];
extern const struct test vcpu_tests[], action_tests[], hook_tests[];

#endif
