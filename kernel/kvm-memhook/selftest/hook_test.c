// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "events.h"
#include "harness.h"

static int set(int fd, uint32_t mask, const uint64_t *dtb, uint32_t count, uint32_t period_us)
{
	struct kvm_memhook_hooks h = { .mask = mask, .count = count, .dtb = (uintptr_t)dtb, .period_us = period_us };

	return ioctl(fd, KVM_MEMHOOK_SET_HOOKS, &h);
}

static void run_with(struct guest *g, uint64_t cr3)
{
	guest_set_cr3(g, 0, cr3);
	guest_start(g);
	guest_moves(g, D_SPIN);
	guest_stop(g);
}

static void new_dtb(void)
{
	struct kvm_memhook_event ev;
	struct guest g;
	int fd;

	guest_create(&g, 1, CODE_SPIN);
	fd = memhook_attach(g.v.vm);
	WANT_EQ(set(fd, KVM_MEMHOOK_HOOK_NEW_DTB, NULL, 0, 0), 0);
	run_with(&g, G_PML4);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_NEW_DTB, 0);
	WANT_EQ(ev.dtb, G_PML4);
	WANT_EQ(ev.cpl, 3);
	WANT_EQ(ev.teb, TEB_VALUE);
	run_with(&g, G_PML4_B | 1ULL << 3); /* PWT is no part of the DTB */
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_NEW_DTB, 0);
	WANT_EQ(ev.dtb, G_PML4_B);
	run_with(&g, G_PML4);
	want_silence(fd, 50);
	/* A new set has seen nothing; none at all reports nothing. */
	WANT_EQ(set(fd, KVM_MEMHOOK_HOOK_NEW_DTB, NULL, 0, 500), 0);
	run_with(&g, G_PML4);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_NEW_DTB, 0);
	WANT_EQ(set(fd, 0, NULL, 0, 0), 0);
	run_with(&g, G_PML4_B);
	want_silence(fd, 50);
}

static void watched(void)
{
	const uint64_t b = G_PML4_B | 0x18;
	struct kvm_memhook_event ev;
	struct guest g;
	int fd;

	guest_create(&g, 1, CODE_SPIN);
	fd = memhook_attach(g.v.vm);
	WANT_EQ(set(fd, KVM_MEMHOOK_HOOK_SWITCH | KVM_MEMHOOK_HOOK_USER, &b, 1, 1000), 0);
	run_with(&g, G_PML4);
	want_silence(fd, 50);
	run_with(&g, G_PML4_B);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_SWITCH, 0);
	WANT_EQ(ev.dtb, G_PML4_B);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_USER, 0);
	/* Once, until something else was loaded. */
	run_with(&g, G_PML4_B);
	want_silence(fd, 50);
	run_with(&g, G_PML4);
	run_with(&g, G_PML4_B);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_SWITCH, 0);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_USER, 0);
}

static void ring(void)
{
	struct kvm_memhook_ring *r;
	struct kvm_memhook_event ev, *events;
	struct kvm_memhook_info info;
	struct guest g;
	int fd;

	guest_create(&g, 1, CODE_SPIN);
	fd = memhook_attach(g.v.vm);
	r = mmap(NULL, 4096 + sizeof(ev) * KVM_MEMHOOK_RING_EVENTS, PROT_READ | PROT_WRITE, MAP_SHARED, fd, KVM_MEMHOOK_RING_OFFSET);
	WANT(r != MAP_FAILED);
	WANT_EQ(r->capacity, KVM_MEMHOOK_RING_EVENTS);
	WANT_EQ(r->event_size, sizeof(ev));
	events = (void *)r + r->events_offset;
	WANT_EQ(set(fd, KVM_MEMHOOK_HOOK_NEW_DTB, NULL, 0, 0), 0);
	run_with(&g, G_PML4);
	WANT_EQ(__atomic_load_n(&r->head, __ATOMIC_ACQUIRE), 1);
	WANT_EQ(events[0].type, KVM_MEMHOOK_EVENT_NEW_DTB);
	WANT_EQ(events[0].dtb, G_PML4);
	r->tail = 1;
	WANT_ERRNO(fcntl(fd, F_SETFL, O_NONBLOCK) ? 0 : read(fd, &ev, sizeof(ev)), EAGAIN);
	/* A reader that writes nonsense hurts itself alone. */
	r->tail = 0x80000000;
	WANT_ERRNO(read(fd, &ev, sizeof(ev)), EAGAIN);
	r->tail = r->head;
	/* More events than there is room for are counted. */
	for (int i = 0; i < 3000; i++) {
		struct kvm_memhook_action a = action(KVM_MEMHOOK_ACTION_CAPTURE, 7);

		WANT_EQ(action_add(fd, &a), 0);
		WANT_EQ(action_cancel(fd, 7), 1);
	}
	WANT_EQ(r->head - r->tail, KVM_MEMHOOK_RING_EVENTS);
	WANT_EQ(r->lost, 3000 - KVM_MEMHOOK_RING_EVENTS);
	WANT_EQ(ioctl(fd, KVM_MEMHOOK_GET_INFO, &info), 0);
	WANT_EQ(info.events_lost, 3000 - KVM_MEMHOOK_RING_EVENTS);
	for (unsigned i = 0; i < KVM_MEMHOOK_RING_EVENTS; i++)
		WANT_EQ(read(fd, &ev, sizeof(ev)), sizeof(ev));
	WANT_ERRNO(read(fd, &ev, sizeof(ev)), EAGAIN);
	WANT_ERRNO(read(fd, &ev, sizeof(ev) - 1), EINVAL);
	WANT(mmap(NULL, 1 << 20, PROT_READ, MAP_SHARED, fd, KVM_MEMHOOK_RING_OFFSET) == MAP_FAILED);
	WANT(mmap(NULL, 1 << 14, PROT_READ, MAP_PRIVATE, fd, KVM_MEMHOOK_RING_OFFSET) == MAP_FAILED);
	WANT(mmap(NULL, 1 << 14, PROT_READ, MAP_SHARED, fd, KVM_MEMHOOK_RING_OFFSET - 4096) == MAP_FAILED);
}

static void gone(void)
{
	struct kvm_memhook_event ev;
	struct pollfd p;
	int vm, fd, status;
	pid_t pid = vmm_spawn(&vm);

	fd = memhook_attach(vm);
	p = (struct pollfd){ .fd = fd, .events = POLLIN };
	WANT_EQ(poll(&p, 1, 0), 0);
	kill(pid, SIGKILL);
	want_event(fd, &ev, KVM_MEMHOOK_EVENT_GONE, 0);
	WANT_EQ(waitpid(pid, &status, 0), pid);
	WANT_EQ(read(fd, &ev, sizeof(ev)), 0);
	WANT_EQ(poll(&p, 1, 0), 1);
	WANT_EQ(p.revents, POLLHUP);
}

static void refused(void)
{
	uint64_t dtb[KVM_MEMHOOK_MAX_WATCHES + 1] = {};
	struct kvm_memhook_hooks h = {};
	struct guest g;
	int fd;

	guest_create(&g, 1, CODE_SPIN);
	fd = memhook_attach(g.v.vm);
	WANT_ERRNO(set(fd, 8, NULL, 0, 0), EINVAL);
	WANT_ERRNO(set(fd, 2, dtb, KVM_MEMHOOK_MAX_WATCHES + 1, 0), EINVAL);
	WANT_ERRNO(set(fd, 2, NULL, 1, 0), EFAULT);
	WANT_ERRNO(set(fd, 0, dtb, 1, 0), EINVAL);
	WANT_ERRNO(set(fd, 1, NULL, 0, 499), EINVAL);
	WANT_ERRNO(set(fd, 1, NULL, 0, 1000001), EINVAL);
	h.reserved = 1;
	WANT_ERRNO(ioctl(fd, KVM_MEMHOOK_SET_HOOKS, &h), EINVAL);
	WANT_ERRNO(ioctl(fd, KVM_MEMHOOK_SET_HOOKS, NULL), EFAULT);
	WANT_EQ(set(fd, 2, dtb, KVM_MEMHOOK_MAX_WATCHES, 0), 0);
}

static long parameter(const char *name)
{
	char path[128], text[32] = {};
	int fd;

	snprintf(path, sizeof(path), "/sys/module/kmh_sample/parameters/%s", name);
	fd = open(path, O_RDONLY);
	WANT(fd >= 0);
	WANT(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	return text[0] == 'Y' ? 1 : strtol(text, NULL, 10);
}

/* The sample module hooks a VM from within the kernel. */
static void from_a_module(void)
{
	const char *path = getenv("KMH_SAMPLE");
	char option[32];
	struct guest g;
	int ko;

	WANT(path);
	ko = open(path, O_RDONLY | O_CLOEXEC);
	WANT(ko >= 0);
	WANT_ERRNO(syscall(SYS_finit_module, ko, "vm_fd=-1", 0), EBADF);
	guest_create(&g, 1, CODE_SPIN);
	snprintf(option, sizeof(option), "vm_fd=%d", g.v.vm);
	WANT_EQ(syscall(SYS_finit_module, ko, option, 0), 0);
	WANT_ERRNO(syscall(SYS_delete_module, "kvm_memhook", O_NONBLOCK), EWOULDBLOCK);
	run_with(&g, G_PML4);
	run_with(&g, G_PML4_B);
	run_with(&g, G_PML4);
	WANT_EQ(parameter("address_spaces"), 2);
	WANT_EQ(parameter("gone"), 0);
	WANT_EQ(syscall(SYS_delete_module, "kmh_sample", O_NONBLOCK), 0);
}

const struct test hook_tests[] = {
	{ "hook/new-dtb", new_dtb },
	{ "hook/watched", watched },
	{ "hook/ring", ring },
	{ "hook/gone", gone },
	{ "hook/refused", refused },
	{ "hook/from-a-module", from_a_module },
	{}
};
