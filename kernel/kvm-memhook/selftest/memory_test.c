// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "harness.h"
#include "vmm.h"

static uint8_t buf[LOW_SIZE + 4096];

static void check(uint64_t gpa, const uint8_t *got, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++) {
		uint64_t a = gpa + i, w = pattern(a & ~7ULL);
		uint8_t want = w >> (a % 8 * 8);

		if (got[i] != want)
			FAIL("guest-physical %#lx: got %#x, want %#x", a, got[i], want);
	}
}

static void read_everything(void)
{
	static const struct { uint64_t gpa; uint32_t len; } ok[] = {
		{ 0, LOW_SIZE }, { 1, 1 }, { 4095, 2 }, { 0x1fff8, 0x20010 },
		{ LOW_SIZE - 1, 1 }, { ROM_GPA, ROM_SIZE }, { HIGH_GPA, HIGH_SIZE },
		{ ROM_GPA + ROM_SIZE - 100, 200 }, /* ROM and the RAM above 4 GiB adjoin */
		{ HIGH_GPA + 12345, 54321 },
	};
	struct vmm v;
	int fd;

	vmm_create(&v, -1);
	vmm_fill(&v);
	fd = memhook_attach(v.vm);
	WANT(fd >= 0);
	for (size_t i = 0; i < sizeof(ok) / sizeof(*ok); i++) {
		memset(buf, 0xcc, sizeof(buf));
		WANT_EQ(memhook_read(fd, ok[i].gpa, buf, ok[i].len), 0);
		check(ok[i].gpa, buf, ok[i].len);
		WANT_EQ(buf[ok[i].len], 0xcc);
	}
}

static void holes_are_errors(void)
{
	static const struct { uint64_t gpa; uint32_t len; int error; } bad[] = {
		{ LOW_SIZE, 1, -ENXIO }, { LOW_SIZE - 8, 16, -ENXIO }, { 0xfee00000, 4, -ENXIO },
		{ HIGH_GPA + HIGH_SIZE, 1, -ENXIO }, { 1ULL << 52, 8, -ENXIO },
		{ ~0ULL, 1, -EINVAL }, { ~0ULL - 100, 200, -EINVAL },
		{ 0, 0, -EINVAL }, { 0, KVM_MEMHOOK_MAX_RANGE_BYTES + 1, -EINVAL },
	};
	struct vmm v;
	int fd;

	vmm_create(&v, -1);
	fd = memhook_attach(v.vm);
	WANT(fd >= 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		WANT_EQ(memhook_read(fd, bad[i].gpa, buf, bad[i].len), bad[i].error);
		WANT_EQ(memhook_write(fd, bad[i].gpa, buf, bad[i].len), bad[i].error);
	}
	/* A bad buffer is the caller's error, and good ones beside it are served. */
	WANT_EQ(memhook_read(fd, 0, (void *)8, 8), -EFAULT);
}

static void write_is_seen(void)
{
	static const char text[] = "written through the module";
	struct vmm v;
	int fd;

	vmm_create(&v, -1);
	vmm_fill(&v);
	fd = memhook_attach(v.vm);
	WANT_EQ(memhook_write(fd, 0x2ff8, text, sizeof(text)), 0);
	WANT_EQ(memcmp(v.low + 0x2ff8, text, sizeof(text)), 0);
	check(0x2000, v.low + 0x2000, 0xff8);
	check(0x2ff8 + sizeof(text), v.low + 0x2ff8 + sizeof(text), 0x1000);
	WANT_EQ(memhook_write(fd, ROM_GPA, text, sizeof(text)), -EROFS);
	check(ROM_GPA, v.rom, ROM_SIZE);
}

static void vectors(void)
{
	static struct kvm_memhook_range r[KVM_MEMHOOK_MAX_RANGES];
	struct kvm_memhook_rw rw = { .ranges = (uintptr_t)r, .count = KVM_MEMHOOK_MAX_RANGES };
	struct vmm v;
	int fd;

	vmm_create(&v, -1);
	vmm_fill(&v);
	fd = memhook_attach(v.vm);
	for (size_t i = 0; i < KVM_MEMHOOK_MAX_RANGES; i++) {
		/* Every seventh lies in the hole. */
		r[i].gpa = i % 7 == 3 ? LOW_SIZE + i * 4096 : i * 4096 + i;
		r[i].buf = (uintptr_t)&buf[i * 64];
		r[i].len = 64;
	}
	WANT_EQ(ioctl(fd, KVM_MEMHOOK_READ, &rw), 0);
	WANT_EQ(rw.failed, (KVM_MEMHOOK_MAX_RANGES + 3) / 7);
	for (size_t i = 0; i < KVM_MEMHOOK_MAX_RANGES; i++) {
		WANT_EQ(r[i].error, i % 7 == 3 ? -ENXIO : 0);
		if (!r[i].error)
			check(r[i].gpa, &buf[i * 64], 64);
	}
}

static void slots(void)
{
	struct kvm_memhook_slot s[8];
	struct kvm_memhook_slots arg = { .slots = (uintptr_t)s, .count = 8 };
	struct vmm v;
	uint64_t gen;
	int fd;

	vmm_create(&v, -1);
	fd = memhook_attach(v.vm);
	WANT_EQ(ioctl(fd, KVM_MEMHOOK_GET_SLOTS, &arg), 0);
	WANT_EQ(arg.count, 3);
	WANT_EQ(s[0].gpa, LOW_GPA);
	WANT_EQ(s[0].size, LOW_SIZE);
	WANT_EQ(s[1].gpa, ROM_GPA);
	WANT_EQ(s[1].flags, KVM_MEMHOOK_SLOT_READONLY);
	WANT_EQ(s[2].gpa, HIGH_GPA);
	WANT_EQ(s[2].size, HIGH_SIZE);
	gen = arg.generation;

	vmm_slot(&v, 2, HIGH_GPA, 0, v.high, 0);
	arg.count = 1;
	WANT_ERRNO(ioctl(fd, KVM_MEMHOOK_GET_SLOTS, &arg), ENOSPC);
	WANT_EQ(arg.count, 2);
	WANT(arg.generation != gen);
	WANT_EQ(memhook_read(fd, HIGH_GPA, buf, 8), -ENXIO);
}

const struct test memory_tests[] = {
	{ "memory/read-everything", read_everything },
	{ "memory/holes-are-errors", holes_are_errors },
	{ "memory/write-is-seen", write_is_seen },
	{ "memory/vectors", vectors },
	{ "memory/slots", slots },
	{ 0 },
};
