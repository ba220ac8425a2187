// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "events.h"
#include "harness.h"

#define RCX (1U << 1)

static int started(struct guest *g, int vcpus, enum guest_code code)
{
	int fd;

	guest_create(g, vcpus, code);
	fd = memhook_attach(g->v.vm);
	WANT(fd >= 0);
	guest_start(g);
	guest_moves(g, code == CODE_CHECK ? D_CHECKS : D_SPIN);
	return fd;
}

static struct kvm_memhook_action to_other(uint64_t cookie, uint64_t argument)
{
	struct kvm_memhook_action a = action(KVM_MEMHOOK_ACTION_REDIRECT, cookie);

	a.set = KVM_MEMHOOK_SET_RIP | RCX;
	a.rip = guest_other();
	a.gpr[1] = argument;
	return a;
}

static void redirect(void)
{
	struct kvm_memhook_action a = to_other(1, 0x1234);
	struct kvm_memhook_event ev;
	struct guest g;
	int fd = started(&g, 1, CODE_SPIN);

	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 1);
	WANT_EQ(ev.dtb, G_PML4);
	WANT_EQ(ev.teb, TEB_VALUE);
	WANT_EQ(ev.cpl, 3);
	WANT_EQ(ev.code64, 1);
	WANT_EQ(ev.count, 1);
	WANT(ev.rip >= G_USER && ev.rip < G_USER + 0x1000);
	guest_moves(&g, D_OTHER);
	WANT_EQ(*guest_word(&g, D_ARG), 0x1234);
	want_silence(fd, 20);
	guest_stop(&g);
}

static void every_thread(void)
{
	struct kvm_memhook_action a = to_other(2, 9);
	struct kvm_memhook_event ev;
	uint64_t seen = 0;
	struct guest g;
	int fd = started(&g, 2, CODE_SPIN);

	a.flags = KVM_MEMHOOK_ACTION_ALL_THREADS;
	a.timeout_ms = 3000;
	WANT_EQ(action_add(fd, &a), 0);
	for (unsigned i = 1; i <= 2; i++) {
		want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 2);
		WANT_EQ(ev.count, i);
		seen |= 1ULL << (ev.teb - TEB_VALUE) / 0x1000;
	}
	WANT_EQ(seen, 3);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_EXPIRED, 2);
	WANT_EQ(ev.count, 2);
	guest_stop(&g);
}

/* Another address space, another thread, another place, another mode: never delivered. */
static void filtered(void)
{
	struct kvm_memhook_action a;
	struct kvm_memhook_event ev;
	struct guest g;
	int fd = started(&g, 1, CODE_SPIN);

	for (int i = 0; i < 5; i++) {
		a = to_other(10 + i, 0);
		a.timeout_ms = 300;
		switch (i) {
		case 0: a.dtb = G_PML4_B; break;
		case 1: a.flags = KVM_MEMHOOK_ACTION_TEB; a.teb = TEB_VALUE + 1; break;
		case 2: a.flags = KVM_MEMHOOK_ACTION_RIP_RANGE; a.rip_min = 1; a.rip_max = G_USER - 1; break;
		case 3: a.flags = KVM_MEMHOOK_ACTION_CODE32; break;
		case 4: a.dtb = G_PML4_B; a.user_dtb = G_PML4_B | 0xfff; break;
		}
		WANT_EQ(action_add(fd, &a), 0);
		want_event(fd, &ev, KVM_MEMHOOK_EVENT_EXPIRED, 10 + i);
		WANT_EQ(ev.count, 0);
	}
	WANT_EQ(*guest_word(&g, D_OTHER), 0);
	/* The KVA-shadow DTB serves as well; flag bits do not count. */
	a = to_other(20, 0);
	a.dtb = G_PML4_B;
	a.user_dtb = G_PML4 | 0x8000000000000001ULL;
	a.flags = KVM_MEMHOOK_ACTION_TEB | KVM_MEMHOOK_ACTION_RIP_RANGE | KVM_MEMHOOK_ACTION_CODE64;
	a.teb = TEB_VALUE;
	a.rip_min = G_USER;
	a.rip_max = G_USER + 0xfff;
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 20);
	guest_stop(&g);
}

/* Nothing is delivered to the kernel. */
static void not_in_the_kernel(void)
{
	struct kvm_memhook_action a = to_other(1, 0);
	struct kvm_memhook_event ev;
	struct guest g;
	int fd = started(&g, 1, CODE_KERNEL);

	a.timeout_ms = 500;
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_EXPIRED, 1);
	WANT_EQ(*guest_word(&g, D_OTHER), 0);
	guest_stop(&g);
}

static void to_64_bit_code(void)
{
	struct kvm_memhook_action a = to_other(1, 77);
	struct kvm_memhook_event ev;
	struct guest g;
	int fd = started(&g, 1, CODE_SPIN32);

	a.flags = KVM_MEMHOOK_ACTION_CODE32;
	a.set |= KVM_MEMHOOK_SET_CODE64;
	a.cs = SEL_UCODE64;
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 1);
	WANT_EQ(ev.code64, 0);
	WANT_EQ(ev.cs, SEL_UCODE32);
	guest_moves(&g, D_OTHER);
	WANT_EQ(*guest_word(&g, D_ARG), 77);
	a = action(KVM_MEMHOOK_ACTION_CAPTURE, 2);
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 2);
	WANT_EQ(ev.code64, 1);
	WANT_EQ(ev.cs, SEL_UCODE64);
	guest_stop(&g);
}

static void guard(struct kvm_memhook_action *a, uint64_t mask, uint64_t value)
{
	a->guards = 1;
	a->guard[0] = (struct kvm_memhook_guard){ .gpa = G_DATA + 8 * D_GUARD, .mask = mask, .value = value };
}

static void guarded(void)
{
	struct kvm_memhook_action a;
	struct kvm_memhook_event ev;
	struct guest g;
	int fd = started(&g, 1, CODE_SPIN);

	*guest_word(&g, D_GUARD) = 0xabcd1234;
	a = to_other(1, 1);
	guard(&a, 0xffff, 0x1235);
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_CANCELLED, 1);
	WANT_EQ(ev.reason, KVM_MEMHOOK_REASON_GUARD);
	WANT_EQ(*guest_word(&g, D_OTHER), 0);
	a = to_other(2, 2);
	guard(&a, 0xffff, 0x1234);
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 2);
	guest_moves(&g, D_OTHER);
	/* A guard where there is no memory. */
	a = to_other(3, 3);
	guard(&a, ~0ULL, 0);
	a.guard[0].gpa = 1ULL << 40;
	WANT_ERRNO(action_add(fd, &a), ENXIO);
	guest_stop(&g);
}

/* The VMM gives the guard's page away and takes another: the guard follows. */
static void guard_follows(void)
{
	struct kvm_memhook_action a;
	struct kvm_memhook_event ev;
	struct guest g;
	int fd = started(&g, 1, CODE_SPIN);
	uint64_t *word = (uint64_t *)(g.v.high + 0x10000);

	for (int i = 0; i < 50; i++) {
		*word = 5;
		a = to_other(100 + i, 0);
		a.dtb = G_PML4_B; /* waits */
		a.guards = 1;
		a.guard[0] = (struct kvm_memhook_guard){ .gpa = HIGH_GPA + 0x10000, .mask = ~0ULL, .value = 5 };
		WANT_EQ(action_add(fd, &a), 0);
		WANT_EQ(madvise(word, 4096, MADV_DONTNEED), 0);
		*word = i & 1 ? 5 : 6;
		guest_stop(&g);
		guest_set_cr3(&g, 0, G_PML4_B);
		guest_start(&g);
		want_event(fd, &ev, i & 1 ? KVM_MEMHOOK_EVENT_APPLIED : KVM_MEMHOOK_EVENT_CANCELLED, 100 + i);
		guest_stop(&g);
		guest_set_cr3(&g, 0, G_PML4);
		guest_start(&g);
	}
	guest_stop(&g);
}

static void page_in(void)
{
	struct kvm_memhook_action a = action(KVM_MEMHOOK_ACTION_PAGE_IN, 1);
	struct kvm_memhook_event ev;
	uint64_t pde;
	struct guest g;
	int fd = started(&g, 1, CODE_CHECK);

	a.address = G_LAZY + 0x123;
	a.error_code = 4;
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 1);
	guest_moves(&g, D_CHECKS);
	memcpy(&pde, g.v.low + 0x3010, 8);
	WANT_EQ(pde & 1, 1);
	WANT_EQ(*guest_word(&g, D_FAULTS), 1);
	WANT_EQ(*guest_word(&g, D_CR2), G_LAZY + 0x123);
	WANT_EQ(*guest_word(&g, D_ERROR), 4);
	WANT_EQ(*guest_word(&g, D_BROKEN), 0);
	/* A page that is there: a fault more, and nothing else. */
	for (int i = 0; i < 200; i++) {
		a.cookie = 2 + i;
		a.address = G_DATA;
		a.error_code = i & 1 ? 6 : 20;
		WANT_EQ(action_add(fd, &a), 0);
		want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 2 + i);
	}
	guest_moves(&g, D_CHECKS);
	WANT_EQ(*guest_word(&g, D_FAULTS), 201);
	WANT_EQ(*guest_word(&g, D_BROKEN), 0);
	guest_stop(&g);
}

/* Held, the guest executes nothing; released, it goes on as if nothing had been. */
static void hold(void)
{
	struct kvm_memhook_action a = action(KVM_MEMHOOK_ACTION_HOLD, 1);
	struct kvm_memhook_event ev;
	uint64_t was, pml4e;
	struct guest g;
	int fd = started(&g, 2, CODE_CHECK);

	for (int i = 0; i < 20; i++) {
		a.cookie = i;
		a.timeout_ms = i & 1 ? 200 : 20000;
		WANT_EQ(action_add(fd, &a), 0);
		want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, i);
		was = *guest_word(&g, D_CHECKS);
		usleep(50000);
		WANT_EQ(*guest_word(&g, D_CHECKS), was);
		memcpy(&pml4e, g.v.low + G_PML4, 8);
		WANT_EQ(pml4e >> 63, 1);
		if (i & 1) {
			want_event(fd, &ev, KVM_MEMHOOK_EVENT_EXPIRED, i);
		} else {
			WANT_EQ(action_cancel(fd, i), 1);
			want_event(fd, &ev, KVM_MEMHOOK_EVENT_CANCELLED, i);
		}
		memcpy(&pml4e, g.v.low + G_PML4, 8);
		WANT_EQ(pml4e >> 63, 0);
		guest_moves(&g, D_CHECKS);
	}
	/* A guard that fails before: never applied; while it lasts: released. */
	*guest_word(&g, D_GUARD) = 5;
	a.cookie = 50;
	a.timeout_ms = 20000;
	guard(&a, ~0ULL, 6);
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_CANCELLED, 50);
	WANT_EQ(ev.reason, KVM_MEMHOOK_REASON_GUARD);
	guest_moves(&g, D_CHECKS);
	a.cookie = 51;
	guard(&a, ~0ULL, 5);
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 51);
	was = *guest_word(&g, D_CHECKS);
	usleep(50000);
	WANT_EQ(*guest_word(&g, D_CHECKS), was);
	*guest_word(&g, D_GUARD) = 6;
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_CANCELLED, 51);
	WANT_EQ(ev.reason, KVM_MEMHOOK_REASON_GUARD);
	memcpy(&pml4e, g.v.low + G_PML4, 8);
	WANT_EQ(pml4e >> 63, 0);
	guest_moves(&g, D_CHECKS);
	/* The client goes: released. */
	a.guards = 0;
	memset(a.guard, 0, sizeof(a.guard));
	a.cookie = 99;
	a.timeout_ms = 60000;
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 99);
	close(fd);
	guest_moves(&g, D_CHECKS);
	WANT(*guest_word(&g, D_FAULTS) > 0);
	guest_stop(&g);
	WANT_EQ(*guest_word(&g, D_BROKEN), 0);
}

static void park(int fd, uint64_t cookie, struct kvm_memhook_event *ev)
{
	struct kvm_memhook_action a = action(KVM_MEMHOOK_ACTION_REDIRECT, cookie);

	a.flags = KVM_MEMHOOK_ACTION_SAVE | KVM_MEMHOOK_ACTION_CODE64;
	a.set = KVM_MEMHOOK_SET_RIP;
	a.rip = guest_park();
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, ev, KVM_MEMHOOK_EVENT_APPLIED, cookie);
}

/* A thread is parked, made to run something else, and given its context back. */
static void borrow(void)
{
	struct kvm_memhook_event ev, before;
	struct kvm_memhook_action a;
	struct guest g;
	int fd = started(&g, 1, CODE_CHECK);

	for (int i = 0; i < 100; i++) {
		uint64_t other = *guest_word(&g, D_OTHER);

		park(fd, 1, &before);
		/* Send it elsewhere, with other registers, flags and stack. */
		a = to_other(2, i);
		a.flags = KVM_MEMHOOK_ACTION_PARKED;
		a.saved = 1;
		a.set |= 0xffff | KVM_MEMHOOK_SET_RFLAGS;
		a.rflags = 0xcd5;
		WANT_EQ(action_add(fd, &a), 0);
		want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 2);
		WANT_EQ(ev.rip, guest_park());
		for (int r = 0; r < 16; r++)
			WANT_EQ(ev.gpr[r], before.gpr[r]);
		guest_moves(&g, D_OTHER);
		WANT_EQ(*guest_word(&g, D_ARG), (uint64_t)i);
		WANT(*guest_word(&g, D_OTHER) != other);
		/* Back at the park address. */
		a = action(KVM_MEMHOOK_ACTION_REDIRECT, 3);
		a.set = KVM_MEMHOOK_SET_RIP;
		a.rip = guest_park();
		WANT_EQ(action_add(fd, &a), 0);
		want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 3);
		a = action(KVM_MEMHOOK_ACTION_CAPTURE, 4);
		a.flags = KVM_MEMHOOK_ACTION_PARKED;
		a.saved = 1;
		WANT_EQ(action_add(fd, &a), 0);
		want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 4);
		WANT_EQ(ev.gpr[1], (uint64_t)i);
		a = action(KVM_MEMHOOK_ACTION_RESTORE, 5);
		a.saved = 1;
		WANT_EQ(action_add(fd, &a), 0);
		want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 5);
		guest_moves(&g, D_CHECKS);
	}
	guest_stop(&g);
	WANT_EQ(*guest_word(&g, D_BROKEN), 0);
}

/* The client closes, or dies, while threads are parked: the module gives their contexts back. */
static void given_back(void)
{
	struct kvm_memhook_event ev;
	struct guest g;
	int status;

	guest_create(&g, 2, CODE_CHECK);
	guest_start(&g);
	for (int i = 0; i < 20; i++) {
		pid_t pid = fork();

		WANT(pid >= 0);
		if (!pid) {
			int fd = memhook_attach(g.v.vm);

			park(fd, 1, &ev);
			if (i & 1)
				park(fd, 2, &ev);
			kill(getpid(), SIGKILL);
		}
		WANT_EQ(waitpid(pid, &status, 0), pid);
		WANT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		guest_moves(&g, D_CHECKS);
		usleep(20000);
	}
	guest_stop(&g);
	WANT_EQ(*guest_word(&g, D_BROKEN), 0);
}

/* Many clients at once, several actions each, on two vCPUs. */
static void many(void)
{
	struct guest g;
	int status;

	guest_create(&g, 2, CODE_CHECK);
	guest_start(&g);
	for (int c = 0; c < 4; c++) {
		pid_t pid = fork();

		WANT(pid >= 0);
		if (!pid) {
			int fd = memhook_attach(g.v.vm);
			struct kvm_memhook_event ev;

			for (int i = 0; i < 60; i++) {
				struct kvm_memhook_action a = action(KVM_MEMHOOK_ACTION_PAGE_IN, 1);

				a.address = G_DATA;
				a.error_code = 4;
				WANT_EQ(action_add(fd, &a), 0);
				a.cookie = 2;
				a.type = KVM_MEMHOOK_ACTION_CAPTURE;
				a.error_code = a.address = 0;
				WANT_EQ(action_add(fd, &a), 0);
				for (int k = 0; k < 2; k++) {
					WANT_EQ(event_next(fd, &ev, 60000), 0);
					WANT_EQ(ev.type, KVM_MEMHOOK_EVENT_APPLIED);
				}
			}
			_exit(0);
		}
	}
	for (int c = 0; c < 4; c++) {
		WANT(wait(&status) > 0);
		WANT_EQ(status, 0);
	}
	guest_moves(&g, D_CHECKS);
	guest_stop(&g);
	WANT_EQ(*guest_word(&g, D_BROKEN), 0);
	WANT_EQ(*guest_word(&g, D_FAULTS), 240);
}

static void refused(void)
{
	struct kvm_memhook_action a;
	struct kvm_memhook_event ev;
	struct guest g;
	int fd = started(&g, 1, CODE_SPIN);

#define BAD(type, err, ...) do { a = action(KVM_MEMHOOK_ACTION_ ## type, 1); __VA_ARGS__; WANT_ERRNO(action_add(fd, &a), err); } while (0)
	WANT_ERRNO(action_add(fd, NULL), EFAULT);
	BAD(CAPTURE, EINVAL, a.type = 0);
	BAD(CAPTURE, EINVAL, a.type = 6);
	BAD(CAPTURE, EINVAL, a.timeout_ms = 0);
	BAD(CAPTURE, EINVAL, a.timeout_ms = 600001);
	BAD(CAPTURE, EINVAL, a.flags = 1U << 7);
	BAD(CAPTURE, EINVAL, a.set = 1);
	BAD(CAPTURE, EINVAL, a.reserved = 1);
	BAD(CAPTURE, EINVAL, a.flags = KVM_MEMHOOK_ACTION_CODE64 | KVM_MEMHOOK_ACTION_CODE32);
	BAD(CAPTURE, EINVAL, a.flags = KVM_MEMHOOK_ACTION_SAVE);
	BAD(CAPTURE, ENOENT, a.flags = KVM_MEMHOOK_ACTION_PARKED; a.saved = 4);
	BAD(CAPTURE, EINVAL, a.guards = 5);
	BAD(CAPTURE, EINVAL, a.guards = 1);
	BAD(CAPTURE, EINVAL, a.guard[0].gpa = 8);
	BAD(CAPTURE, EINVAL, guard(&a, 1, 2));
	BAD(CAPTURE, EINVAL, guard(&a, 1, 1); a.guard[0].gpa++);
	BAD(REDIRECT, EINVAL, a.set = 0);
	BAD(REDIRECT, EINVAL, a.set = 1U << 19);
	BAD(REDIRECT, EINVAL, a.set = KVM_MEMHOOK_SET_RIP; a.rip = 1ULL << 56);
	BAD(REDIRECT, EINVAL, a.set = KVM_MEMHOOK_SET_CODE64; a.cs = 0x33);
	BAD(REDIRECT, EINVAL, a.set = KVM_MEMHOOK_SET_CODE64 | KVM_MEMHOOK_SET_RIP; a.cs = 0x30);
	BAD(REDIRECT, EINVAL, a.set = KVM_MEMHOOK_SET_RIP; a.cs = 0x33);
	BAD(REDIRECT, EINVAL, a.set = KVM_MEMHOOK_SET_RIP | 1; a.flags = KVM_MEMHOOK_ACTION_SAVE);
	BAD(PAGE_IN, EINVAL, a.error_code = 0);
	BAD(PAGE_IN, EINVAL, a.error_code = 5);
	BAD(PAGE_IN, EINVAL, a.error_code = 0x16);
	BAD(PAGE_IN, EINVAL, a.error_code = 4; a.address = 0xffff800000000000ULL);
	BAD(PAGE_IN, EINVAL, a.error_code = 4; a.flags = KVM_MEMHOOK_ACTION_ALL_THREADS);
	BAD(RESTORE, ENOENT, a.saved = 3);
	BAD(HOLD, EINVAL, a.flags = KVM_MEMHOOK_ACTION_TEB);
	/* A RIP that the processor would not take. */
	a = to_other(1, 0);
	a.rip = 1ULL << 50;
	WANT_EQ(action_add(fd, &a), 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_CANCELLED, 1);
	WANT_EQ(ev.reason, KVM_MEMHOOK_REASON_STATE);
	/* One cookie, one action; and a number of them. */
	a = to_other(1, 0);
	a.dtb = G_PML4_B;
	for (unsigned i = 0; i < KVM_MEMHOOK_MAX_ACTIONS; i++) {
		a.cookie = 1000 + i;
		WANT_EQ(action_add(fd, &a), 0);
		if (!i)
			WANT_ERRNO(action_add(fd, &a), EEXIST);
	}
	a.cookie = 1;
	WANT_ERRNO(action_add(fd, &a), EDQUOT);
	WANT_EQ(action_cancel(fd, 5), 0);
	struct kvm_memhook_cancel c = { .flags = KVM_MEMHOOK_CANCEL_ALL };
	WANT_EQ(ioctl(fd, KVM_MEMHOOK_CANCEL, &c), 0);
	WANT_EQ(c.cancelled, KVM_MEMHOOK_MAX_ACTIONS);
	/* Contexts too are counted, pending ones included. */
	a = action(KVM_MEMHOOK_ACTION_REDIRECT, 1);
	a.flags = KVM_MEMHOOK_ACTION_SAVE;
	a.set = KVM_MEMHOOK_SET_RIP;
	a.rip = guest_park();
	a.dtb = G_PML4_B;
	for (unsigned i = 0; i < KVM_MEMHOOK_MAX_SAVED; i++) {
		a.cookie = 2000 + i;
		WANT_EQ(action_add(fd, &a), 0);
	}
	a.cookie = 1;
	WANT_ERRNO(action_add(fd, &a), EDQUOT);
	guest_stop(&g);
}

/* The VM's process ends with actions pending, a thread parked, a process held. */
static void vm_gone(void)
{
	for (int i = 0; i < 10; i++) {
		struct kvm_memhook_event ev;
		int ready[2], status, pidfd, vm, fd;
		pid_t pid;

		WANT_EQ(pipe(ready), 0);
		pid = fork();
		if (!pid) {
			struct guest g;

			guest_create(&g, 2, CODE_CHECK);
			guest_start(&g);
			guest_moves(&g, D_CHECKS);
			WANT_EQ(write(ready[1], &g.v.vm, sizeof(int)), sizeof(int));
			for (;;)
				pause();
		}
		WANT_EQ(read(ready[0], &vm, sizeof(vm)), sizeof(vm));
		close(ready[0]);
		close(ready[1]);
		pidfd = syscall(SYS_pidfd_open, pid, 0);
		vm = syscall(SYS_pidfd_getfd, pidfd, vm, 0);
		WANT(vm >= 0);
		close(pidfd);
		fd = memhook_attach(vm);
		close(vm);
		park(fd, 1, &ev);
		struct kvm_memhook_action a = action(i & 1 ? KVM_MEMHOOK_ACTION_HOLD : KVM_MEMHOOK_ACTION_CAPTURE, 2);
		if (!(i & 1))
			a.dtb = G_PML4_B;
		WANT_EQ(action_add(fd, &a), 0);
		if (i & 1)
			want_event(fd, &ev, KVM_MEMHOOK_EVENT_APPLIED, 2);
		kill(pid, SIGKILL);
		do
			WANT_EQ(event_next(fd, &ev, 60000), 0);
		while (ev.type != KVM_MEMHOOK_EVENT_GONE);
		WANT_EQ(waitpid(pid, &status, 0), pid);
		WANT_ERRNO(action_add(fd, &a), ESRCH);
		close(fd);
	}
}

/* Random ioctls: a fixed number of rounds, always from the same seed. */
static void malformed(void)
{
	const unsigned long cmds[] = { KVM_MEMHOOK_GET_INFO, KVM_MEMHOOK_GET_SLOTS, KVM_MEMHOOK_READ, KVM_MEMHOOK_WRITE,
				       KVM_MEMHOOK_SYNC, KVM_MEMHOOK_GET_REGS, KVM_MEMHOOK_SET_HOOKS,
				       KVM_MEMHOOK_ADD_ACTION, KVM_MEMHOOK_CANCEL, KVM_MEMHOOK_GET_API, 0xb7ff };
	static uint64_t buf[128];
	struct kvm_memhook_event ev;
	struct guest g;
	int fd = started(&g, 1, CODE_CHECK);

	srand(4711);
	for (int i = 0; i < 20000; i++) {
		unsigned long cmd = cmds[rand() % (sizeof(cmds) / sizeof(*cmds))];

		/* Mostly small numbers, which get further than random ones. */
		for (int k = 0; k < 128; k++)
			switch (rand() % 8) {
			case 0: buf[k] = (uint64_t)rand() << 33 ^ rand(); break;
			case 1: buf[k] = rand() % 8 | (uint64_t)(rand() % 8) << 32; break;
			case 2: buf[k] = (uintptr_t)buf; break;
			default: buf[k] = 0;
			}
		if (cmd == KVM_MEMHOOK_ADD_ACTION) {
			struct kvm_memhook_action *a = (void *)buf;

			/* Of what is well formed only what cannot disturb the guest's check. */
			if (a->type != KVM_MEMHOOK_ACTION_CAPTURE && a->type != KVM_MEMHOOK_ACTION_HOLD && rand() % 2)
				a->dtb = G_PML4_B;
			if (a->type == KVM_MEMHOOK_ACTION_REDIRECT)
				a->dtb = a->user_dtb = G_PML4_B;
			if (a->timeout_ms > 50)
				a->timeout_ms = rand() % 50;
		}
		if (cmd == KVM_MEMHOOK_WRITE)
			memset(buf + 4, 0, sizeof(buf) - 32); /* the guest's own memory stays as it is */
		if (cmd == KVM_MEMHOOK_GET_REGS)
			((struct kvm_memhook_regs *)buf)->timeout_ms %= 3;
		ioctl(fd, cmd, rand() % 50 ? buf : NULL);
		while (i % 64 == 0 && !event_next(fd, &ev, 0))
			;
	}
	close(fd);
	guest_moves(&g, D_CHECKS);
	guest_stop(&g);
	WANT_EQ(*guest_word(&g, D_BROKEN), 0);
}

const struct test action_tests[] = {
	{ "action/redirect", redirect },
	{ "action/every-thread", every_thread },
	{ "action/filtered", filtered },
	{ "action/not-in-the-kernel", not_in_the_kernel },
	{ "action/to-64-bit-code", to_64_bit_code },
	{ "action/guarded", guarded },
	{ "action/guard-follows", guard_follows },
	{ "action/page-in", page_in },
	{ "action/hold", hold },
	{ "action/borrow", borrow },
	{ "action/given-back", given_back },
	{ "action/many", many },
	{ "action/refused", refused },
	{ "action/vm-gone", vm_gone },
	{ "action/malformed", malformed },
	{}
};
