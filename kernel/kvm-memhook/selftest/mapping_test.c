// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "harness.h"
#include "vmm.h"

static sigjmp_buf on_bus;

static void bus(int sig)
{
	siglongjmp(on_bus, sig);
}

static void catch_bus(void)
{
	struct sigaction sa = { .sa_handler = bus, .sa_flags = SA_NODEFER };

	sigaction(SIGBUS, &sa, NULL);
}

/* Does reading there raise SIGBUS? */
static int faults(const volatile uint8_t *p)
{
	if (sigsetjmp(on_bus, 1))
		return 1;
	(void)*p;
	return 0;
}

static uint64_t word(const volatile uint8_t *map, uint64_t gpa)
{
	return *(const volatile uint64_t *)(map + gpa);
}

#define SPAN (HIGH_GPA + HIGH_SIZE + (16 << 20))

static volatile uint8_t *map_all(int fd)
{
	void *p = mmap(NULL, SPAN, PROT_READ, MAP_SHARED, fd, 0);

	WANT(p != MAP_FAILED);
	return p;
}

static void content(int memfd)
{
	volatile uint8_t *m;
	struct vmm v;
	int fd;

	catch_bus();
	vmm_create(&v, memfd);
	vmm_fill(&v);
	fd = memhook_attach(v.vm);
	WANT(fd >= 0);
	m = map_all(fd);
	for (uint64_t a = 0; a < LOW_SIZE; a += 8)
		if (word(m, a) != pattern(a))
			FAIL("at %#lx: got %#lx, want %#lx", a, word(m, a), pattern(a));
	for (uint64_t a = HIGH_GPA; a < HIGH_GPA + HIGH_SIZE; a += 512)
		WANT_EQ(word(m, a), pattern(a));
	WANT_EQ(word(m, ROM_GPA + 8), pattern(ROM_GPA + 8));
	WANT(faults(m + LOW_SIZE));
	WANT(faults(m + 0xfee00000));
	WANT(faults(m + HIGH_GPA + HIGH_SIZE));
	/* What the guest, here its VMM, writes is seen at once. */
	for (uint64_t a = 0; a < LOW_SIZE; a += 4096) {
		*(volatile uint64_t *)(v.low + a) = a;
		WANT_EQ(word(m, a), a);
	}
}

static void anonymous(void) { content(-1); }
static void shared(void) { content(memfd_create("ram", 0)); }

static void only_readable(void)
{
	struct vmm v;
	void *p;
	int fd;

	vmm_create(&v, -1);
	fd = memhook_attach(v.vm);
	WANT_EQ(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED, 1);
	WANT_EQ(errno, EACCES);
	WANT_EQ(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0) == MAP_FAILED, 1);
	WANT_EQ(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED, 1);
	p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	WANT(p != MAP_FAILED);
	WANT_ERRNO(mprotect(p, 4096, PROT_READ | PROT_WRITE), EACCES);
}

/* Balloon: the VMM gives pages back, then they are used again. */
static void follows_discard(int memfd, int advice)
{
	volatile uint8_t *m;
	struct vmm v;
	int fd;

	vmm_create(&v, memfd);
	vmm_fill(&v);
	fd = memhook_attach(v.vm);
	m = map_all(fd);
	for (int round = 0; round < 200; round++) {
		uint64_t a = round * 0x5000 % LOW_SIZE;

		*(uint64_t *)(v.low + a) = round + 1;
		WANT_EQ(word(m, a), round + 1);
		WANT_EQ(madvise(v.low + a, 4096, advice), 0);
		WANT_EQ(word(m, a), 0);
		*(uint64_t *)(v.low + a) = ~round;
		WANT_EQ(word(m, a), ~(uint64_t)round);
	}
}

static void discard_anonymous(void) { follows_discard(-1, MADV_DONTNEED); }
static void discard_shared(void) { follows_discard(memfd_create("ram", 0), MADV_REMOVE); }

/* Copy on write: after a fork the VMM's page moves, and the mapping with it. */
static void follows_cow(void)
{
	volatile uint8_t *m;
	struct vmm v;
	int fd, status;
	pid_t pid;

	vmm_create(&v, -1);
	vmm_fill(&v);
	fd = memhook_attach(v.vm);
	m = map_all(fd);
	WANT_EQ(word(m, 0x3000), pattern(0x3000));
	pid = fork();
	if (!pid) {
		pause();
		_exit(0);
	}
	for (uint64_t a = 0; a < LOW_SIZE; a += 4096) {
		WANT_EQ(word(m, a), pattern(a));
		*(uint64_t *)(v.low + a) = ~a;
		WANT_EQ(word(m, a), ~a);
	}
	kill(pid, SIGKILL);
	WANT_EQ(waitpid(pid, &status, 0), pid);
}

/* Hot unplug: the slot goes first, then the memory. Then other memory comes. */
static void follows_unplug(void)
{
	volatile uint8_t *m;
	struct vmm v;
	uint8_t *other;
	int fd;

	catch_bus();
	vmm_create(&v, -1);
	vmm_fill(&v);
	fd = memhook_attach(v.vm);
	m = map_all(fd);
	WANT_EQ(word(m, HIGH_GPA), pattern(HIGH_GPA));
	vmm_slot(&v, 2, HIGH_GPA, 0, v.high, 0);
	WANT_EQ(munmap(v.high, HIGH_SIZE), 0);
	WANT(faults(m + HIGH_GPA));

	other = mmap(NULL, HIGH_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*(uint64_t *)other = 0x0123456789abcdef;
	vmm_slot(&v, 2, HIGH_GPA, HIGH_SIZE, other, 0);
	WANT_EQ(word(m, HIGH_GPA), 0x0123456789abcdef);

	/* Only the slot goes, the memory stays: that takes a SYNC. */
	vmm_slot(&v, 2, HIGH_GPA, 0, other, 0);
	WANT_EQ(ioctl(fd, KVM_MEMHOOK_SYNC), 0);
	WANT(faults(m + HIGH_GPA));
	WANT_EQ(word(m, 0x1000), pattern(0x1000));
}

/* A VMM that moves pages about while several readers fault them in. */
static void storm(void)
{
	volatile uint8_t *m;
	struct vmm v;
	pid_t readers[3];
	int fd, status;

	vmm_create(&v, -1);
	fd = memhook_attach(v.vm);
	m = map_all(fd);
	/* Each page holds its number or, freshly discarded, zeros. */
	for (int r = 0; r < 3; r++) {
		readers[r] = fork();
		if (!readers[r]) {
			/* Mappings are not inherited (VM_DONTCOPY): make one. */
			m = map_all(fd);
			for (uint64_t n = 0; n < 200000; n++) {
				uint64_t a = (n * 7919 * 4096 + r * 4096) % LOW_SIZE;
				uint64_t w = word(m, a);

				if (w && w != a + 1)
					FAIL("page %#lx holds %#lx", a, w);
			}
			_exit(0);
		}
	}
	for (int n = 0; n < 20000; n++) {
		uint64_t a = (uint64_t)n * 4096 * 13 % LOW_SIZE;

		*(uint64_t *)(v.low + a) = a + 1;
		WANT_EQ(word(m, a), a + 1);
		if (n % 3 == 0) {
			WANT_EQ(madvise(v.low + a, 4096, MADV_DONTNEED), 0);
			WANT_EQ(word(m, a), 0);
		}
	}
	for (int r = 0; r < 3; r++) {
		WANT_EQ(waitpid(readers[r], &status, 0), readers[r]);
		WANT_EQ(status, 0);
	}
}

const struct test mapping_tests[] = {
	{ "mapping/anonymous", anonymous },
	{ "mapping/shared", shared },
	{ "mapping/only-readable", only_readable },
	{ "mapping/discard-anonymous", discard_anonymous },
	{ "mapping/discard-shared", discard_shared },
	{ "mapping/copy-on-write", follows_cow },
	{ "mapping/unplug", follows_unplug },
	{ "mapping/storm", storm },
	{ 0 },
};
