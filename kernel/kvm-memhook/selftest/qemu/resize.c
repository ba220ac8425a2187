// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that QEMU takes away and gives back while a client has it mapped:
 *
 *   kmh-resize QEMU-PID QMP-SOCKET CONSOLE-LOG
 *
 * The guest (lab/resize.sh) keeps writing to its memory and says on its console
 * how much it has. A thread reads every page through the module's mapping all
 * the time. After each change QEMU is stopped and all of its RAM compared: the
 * mapping and READ against the QEMU process's own memory. What has gone must
 * fault and be refused, and the host must have it back.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "../harness.h"
#include "../vmm.h"
#include "qmp.h"

#define PAGE		4096ULL
#define MIB		(1ULL << 20)
#define SPAN		(8ULL << 30)	/* of guest-physical space that is mapped */
#define MAX_SLOTS	64U
#define BALLOON_LOW	224		/* MiB the guest is left with */
#define BALLOON_FULL	384		/* MiB it has (lab/resize.sh) */
#define DIMM		128		/* MiB plugged and unplugged */
#define ROUNDS		2
#define GUEST_STANDS	90		/* seconds without a word from the guest */
#define NO_RESULT	75		/* exit: the guest stands still */

static int pid, qmp, memhook;
static long said = -1;	/* the guest's count when it was looked at last; -1 after a pause */
static time_t said_at;
static const char *console;
static const volatile uint8_t *map;

/* -- what reads all the time -- */

static __thread sigjmp_buf on_bus;
static atomic_ulong reads, faults, passes;
static atomic_int done;

static void bus(int sig)
{
	siglongjmp(on_bus, sig);
}

static int faulted(uint64_t gpa)
{
	if (sigsetjmp(on_bus, 0))
		return 1;
	(void)map[gpa];
	return 0;
}

/* The low RAM, and where memory is plugged. */
static const uint64_t watched[][2] = {
	{ 0, BALLOON_FULL * MIB }, { 4ULL << 30, (4ULL << 30) + 768 * MIB },
};

static void *reader(void *arg)
{
	while (!done) {
		for (size_t w = 0; w < 2; w++)
			for (uint64_t a = watched[w][0]; a < watched[w][1] && !done; a += PAGE) {
				/* Where nothing is, one page in 256 is enough to see it come. */
				if (!faulted(a)) {
					reads++;
				} else {
					faults++;
					a += 255 * PAGE;
				}
			}
		passes++;
		usleep(20000); /* the lab has one processor for this, QEMU and the guest */
	}
	return arg;
}

/* The reader has been everywhere since now. */
static void wait_for_reader(void)
{
	unsigned long from = passes;

	while (passes < from + 2)
		usleep(20000);
}

/* -- comparing -- */

static uint32_t slots(struct kvm_memhook_slot *to)
{
	struct kvm_memhook_slots s = { .slots = (uintptr_t)to, .count = MAX_SLOTS };

	WANT_EQ(ioctl(memhook, KVM_MEMHOOK_GET_SLOTS, &s), 0);
	return s.count;
}

static void of_qemu(uint64_t hva, void *buf, size_t len)
{
	struct iovec to = { buf, len }, from = { (void *)hva, len };

	WANT_EQ(process_vm_readv(pid, &to, 1, &from, 1, 0), len);
}

static void differs(const char *what, const char *when, uint64_t gpa, const uint8_t *got, const uint8_t *want)
{
	size_t i = 0;

	while (got[i] == want[i])
		i++;
	FAIL("%s: %s at %#llx has %#x, QEMU has %#x", when, what, (unsigned long long)gpa + i, got[i], want[i]);
}

/* Stops the guest and compares all of its RAM; returns how many bytes that was. */
static uint64_t compare(const char *when)
{
	static uint8_t want[MIB], got[MIB];
	struct kvm_memhook_slot s[MAX_SLOTS];
	uint64_t total = 0;
	uint32_t n;

	qmp_do(qmp, "stop");
	n = slots(s);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t hva = qmp_hva(qmp, s[i].gpa);

		if (!hva)
			FAIL("%s: QEMU has no RAM at %#llx, the module has", when, (unsigned long long)s[i].gpa);
		WANT_EQ(qmp_hva(qmp, s[i].gpa + s[i].size - PAGE), hva + s[i].size - PAGE);
		for (uint64_t off = 0, part; off < s[i].size; off += part) {
			uint64_t gpa = s[i].gpa + off;

			part = s[i].size - off < MIB ? s[i].size - off : MIB;
			of_qemu(hva + off, want, part);
			if (memcmp((const void *)(map + gpa), want, part))
				differs("the mapping", when, gpa, (const uint8_t *)map + gpa, want);
			WANT_EQ(memhook_read(memhook, gpa, got, part), 0);
			if (memcmp(got, want, part))
				differs("READ", when, gpa, got, want);
			total += part;
		}
	}
	qmp_do(qmp, "cont");
	said = -1;
	return total;
}

/* All of RAM against what QEMU's monitor saves of it; holes are errors. */
static void compare_saved(void)
{
	static uint8_t want[MIB];
	struct kvm_memhook_slot s[MAX_SLOTS];
	char file[] = "/tmp/kmh-saved.XXXXXX";
	uint64_t total = 0, end = 0, holes = 0;
	uint32_t n;
	int fd = mkstemp(file);
	uint8_t byte;

	WANT(fd >= 0);
	qmp_do(qmp, "stop");
	n = slots(s);
	for (uint32_t i = 0; i < n; i++) {
		qmp_do(qmp, "pmemsave %#llx %#llx \\\"%s\\\"", (unsigned long long)s[i].gpa,
		       (unsigned long long)s[i].size, file);
		for (uint64_t off = 0, part; off < s[i].size; off += part) {
			uint64_t gpa = s[i].gpa + off;
			int saved = open(file, O_RDONLY);

			part = s[i].size - off < MIB ? s[i].size - off : MIB;
			WANT_EQ(pread(saved, want, part, off), part);
			close(saved);
			if (memcmp((const void *)(map + gpa), want, part))
				differs("the mapping", "pmemsave", gpa, (const uint8_t *)map + gpa, want);
			total += part;
		}
		/* Slots ascend; between two of them there is nothing. */
		if (end && s[i].gpa > end) {
			holes++;
			WANT(faulted(end));
			WANT(faulted(s[i].gpa - 1));
			WANT_EQ(memhook_read(memhook, end, &byte, 1), -ENXIO);
			WANT_EQ(memhook_read(memhook, s[i].gpa - 1, &byte, 1), -ENXIO);
		}
		end = s[i].gpa + s[i].size;
	}
	unlink(file);
	close(fd);
	qmp_do(qmp, "cont");
	said = -1;
	printf("paused: %llu MiB in %u slots equal what pmemsave wrote; %llu holes are errors\n",
	       (unsigned long long)(total / MIB), n, (unsigned long long)holes);
	WANT(total >= BALLOON_FULL * MIB);
	WANT(holes > 0);
}

/* -- what the host has and the guest says -- */

/* MiB of its own memory that QEMU occupies. */
static long occupied(void)
{
	char path[64], text[4096], *at;
	int fd;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	fd = open(path, O_RDONLY);
	n = read(fd, text, sizeof(text) - 1);
	WANT(n > 0);
	close(fd);
	text[n] = 0;
	at = strstr(text, "RssAnon:");
	WANT(at);
	return atol(at + 8) / 1024;
}

/* What the guest said last: MEM <MiB it has> <count>. */
static void guest_says(long *mib, long *count)
{
	char text[4097], *at, *last = NULL;
	int fd = open(console, O_RDONLY);
	off_t size = lseek(fd, 0, SEEK_END);
	ssize_t n = pread(fd, text, sizeof(text) - 1, size > 4096 ? size - 4096 : 0);

	WANT(n >= 0);
	close(fd);
	text[n] = 0;
	for (at = text; (at = strstr(at, "MEM ")) && strchr(at, '\n'); at++)
		last = at;
	*mib = *count = 0;
	if (last)
		sscanf(last, "MEM %ld %ld", mib, count);
}

/*
 * Waits a moment for the guest, which is somewhere in its loop. QEMU's emulation
 * of SVM can deliver an injected interrupt twice, and a Linux that it happens to
 * in the wrong place stands still for ever (docs/MODULE.md): that is no result.
 */
static void wait_a_moment(void)
{
	long mib, count;

	usleep(50000);
	guest_says(&mib, &count);
	if (count != said) {
		said = count;
		said_at = time(NULL);
	} else if (time(NULL) - said_at > GUEST_STANDS) {
		fprintf(stderr, "the guest stands still: it said nothing for %d s\n", GUEST_STANDS);
		_exit(NO_RESULT);
	}
}

/* The guest has written to its memory all over again. */
static void wait_for_guest(void)
{
	long mib, from, count;

	guest_says(&mib, &from);
	do {
		wait_a_moment();
		guest_says(&mib, &count);
	} while (count < from + 2);
}

/* The guest's memory is within a few MiB of what it is to be. */
static void wait_for_size(long low, long high)
{
	long mib, count;

	do {
		wait_a_moment();
		guest_says(&mib, &count);
	} while (mib < low || mib > high);
}

static int monitor_says(const char *command, const char *text)
{
	return strstr(qmp_human(qmp, "%s", command), text) != NULL;
}

static void wait_for_monitor(const char *command, const char *text)
{
	while (!monitor_says(command, text))
		wait_a_moment();
}

/* -- the changes -- */

static void balloon(int round)
{
	char full[32], low[32];
	long before, after;
	uint64_t bytes;

	snprintf(full, sizeof(full), "actual=%d", BALLOON_FULL);
	snprintf(low, sizeof(low), "actual=%d", BALLOON_LOW);
	wait_for_guest();
	wait_for_reader();
	before = occupied();
	qmp_do(qmp, "balloon %d", BALLOON_LOW);
	wait_for_monitor("info balloon", low);
	bytes = compare("balloon inflated");
	wait_for_reader();
	after = occupied();
	/* Nor has reading the pages brought them back. */
	if (before - after < (BALLOON_FULL - BALLOON_LOW) / 4)
		FAIL("the balloon took %d MiB of the guest, QEMU has gone from %ld MiB to %ld only",
		     BALLOON_FULL - BALLOON_LOW, before, after);
	printf("round %d: balloon: QEMU has %ld MiB, then %ld; %llu MiB equal\n", round, before, after,
	       (unsigned long long)(bytes / MIB));
	qmp_do(qmp, "balloon %d", BALLOON_FULL);
	wait_for_monitor("info balloon", full);
	compare("balloon deflated");
	wait_for_guest();
	compare("balloon deflated and used");
}

/* The guest-physical address of the device, from "info memory-devices". */
static uint64_t dimm_address(void)
{
	const char *at = strstr(qmp_human(qmp, "info memory-devices"), "\\\"dimm1\\\"");

	WANT(at);
	at = strstr(at, " addr: 0x");
	WANT(at);
	return strtoull(at + 7, NULL, 16);
}

/* Does QEMU still have that memory? What it maps there next is smaller, or not writable. */
static int mapped_by_qemu(uint64_t hva, uint64_t size)
{
	char path[64], text[512];
	int found = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	f = fopen(path, "r");
	WANT(f);
	while (fgets(text, sizeof(text), f)) {
		unsigned long from, to;
		char mode[8];

		if (sscanf(text, "%lx-%lx %7s", &from, &to, mode) == 3 && mode[1] == 'w' &&
		    hva >= from && hva + size <= to)
			found = 1;
	}
	fclose(f);
	return found;
}

static void all_gone(const char *when, uint64_t gpa, uint64_t size)
{
	uint8_t byte;

	for (uint64_t a = gpa; a < gpa + size; a += PAGE) {
		if (!faulted(a))
			FAIL("%s: the mapping still has a page at %#llx", when, (unsigned long long)a);
		if (memhook_read(memhook, a, &byte, 1) != -ENXIO)
			FAIL("%s: READ at %#llx is no -ENXIO", when, (unsigned long long)a);
	}
}

/* Plugs a DIMM, lets the guest use it, and unplugs it. */
static void dimm(int round)
{
	uint64_t gpa, hva;
	long mib, count;
	long before = occupied(), full, after;

	guest_says(&mib, &count);
	qmp_do(qmp, "object_add memory-backend-ram,id=ram1,size=%dM", DIMM);
	qmp_do(qmp, "device_add pc-dimm,id=dimm1,memdev=ram1");
	gpa = dimm_address();
	hva = qmp_hva(qmp, gpa);
	WANT(hva);
	wait_for_size(mib + DIMM - 16, mib + DIMM + 16);
	wait_for_guest();
	wait_for_reader();
	WANT(!faulted(gpa) && !faulted(gpa + DIMM * MIB - 1));
	compare("memory plugged");
	full = occupied();

	qmp_do(qmp, "device_del dimm1");
	while (monitor_says("info memory-devices", "dimm1"))
		wait_a_moment();
	if (round % 2) {
		/* The slot has gone, QEMU's memory is still there: SYNC is to be called. */
		WANT_EQ(ioctl(memhook, KVM_MEMHOOK_SYNC), 0);
		all_gone("unplugged, SYNC", gpa, DIMM * MIB);
	}
	qmp_do(qmp, "object_del ram1");
	while (mapped_by_qemu(hva, DIMM * MIB))
		usleep(20000);
	all_gone("unplugged", gpa, DIMM * MIB);
	compare("memory unplugged");
	wait_for_size(mib - 16, mib + 16);
	after = occupied();
	printf("round %d: memory plugged at %#llx, unplugged: QEMU has %ld MiB, %ld, %ld\n", round,
	       (unsigned long long)gpa, before, full, after);
	/* What the guest itself uses less or more of its first memory is small. */
	if (full > before + DIMM / 4 && after > full - DIMM / 4)
		FAIL("the host has not got back what was unplugged");
	WANT(full > before);
}

/* Asks virtio-mem for a size; its region stays, the blocks come and go. */
static void virtio_mem(int round)
{
	long mib, count, before = occupied(), full, after;

	guest_says(&mib, &count);
	qmp_do(qmp, "qom-set vmem0 requested-size %lluM", (unsigned long long)DIMM);
	wait_for_size(mib + DIMM - 16, mib + DIMM + 16);
	wait_for_guest();
	wait_for_reader();
	compare("virtio-mem plugged");
	full = occupied();
	qmp_do(qmp, "qom-set vmem0 requested-size 0");
	while (*qmp_human(qmp, "qom-get vmem0 size") != '0')
		wait_a_moment();
	compare("virtio-mem unplugged");
	wait_for_reader();
	after = occupied();
	printf("round %d: virtio-mem grown and shrunk: QEMU has %ld MiB, %ld, %ld\n", round, before, full, after);
	if (full > before + DIMM / 4 && after > full - DIMM / 4)
		FAIL("the host has not got back what virtio-mem gave up");
	WANT(full > before);
}

/* -- */

static int attach(void)
{
	int pidfd = syscall(SYS_pidfd_open, pid, 0), fd, vm;

	WANT(pidfd >= 0);
	for (fd = 0; fd < 1024; fd++) {
		char path[64], to[64] = "";

		snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
		if (readlink(path, to, sizeof(to) - 1) > 0 && !strcmp(to, "anon_inode:kvm-vm"))
			break;
	}
	vm = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	WANT(vm >= 0);
	fd = memhook_attach(vm);
	WANT(fd >= 0);
	close(vm);
	close(pidfd);
	return fd;
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = bus, .sa_flags = SA_NODEFER };
	pthread_t thread;

	if (argc != 4) {
		fprintf(stderr, "usage: kmh-resize QEMU-PID QMP-SOCKET CONSOLE-LOG\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(1500); /* a hang is a failure */
	sigaction(SIGBUS, &sa, NULL);
	pid = atoi(argv[1]);
	qmp = qmp_connect(argv[2]);
	console = argv[3];
	memhook = attach();
	map = mmap(NULL, SPAN, PROT_READ, MAP_SHARED, memhook, 0);
	WANT(map != MAP_FAILED);

	wait_for_guest();
	compare_saved();
	WANT_EQ(pthread_create(&thread, NULL, reader, NULL), 0);
	for (int round = 1; round <= ROUNDS; round++) {
		balloon(round);
		dimm(round);
		virtio_mem(round);
	}
	done = 1;
	pthread_join(thread, NULL);
	printf("the reader read %lu pages in %lu passes and met %lu holes\n", reads, passes, faults);
	WANT(reads > 0 && faults > 0);
	return 0;
}
