// SPDX-License-Identifier: GPL-2.0-only
#include <sys/ioctl.h>

#include "guest.h"
#include "harness.h"

static int get(int fd, int vcpu, struct kvm_memhook_regs *r)
{
	memset(r, 0, sizeof(*r));
	r->vcpu = vcpu;
	r->timeout_ms = 1000;
	return ioctl(fd, KVM_MEMHOOK_GET_REGS, r);
}

static void want_system(const struct kvm_memhook_regs *r, int vcpu)
{
	WANT_EQ(r->vcpu, vcpu);
	WANT_EQ(r->cr0, 0x80050033);
	WANT_EQ(r->cr3, G_PML4);
	WANT_EQ(r->cr4, 0x620);
	WANT_EQ(r->efer, 0xd01);
	WANT_EQ(r->lstar, 0xfffff80012345678ULL);
	WANT_EQ(r->kernel_gs_base, 0xfffff78000001000ULL);
	WANT_EQ(r->gs.base, TEB_VALUE + 0x1000 * vcpu);
	WANT_EQ(r->idt.base, 0x7000);
	WANT_EQ(r->idt.limit, 0xfff);
	WANT_EQ(r->gdt.base, 0x6000);
	WANT_EQ(r->cpl, 3);
	WANT_EQ(r->cs.selector, SEL_UCODE64);
}

static void at_rest(void)
{
	struct kvm_memhook_regs r;
	struct kvm_regs k;
	struct guest g;
	int fd;

	guest_create(&g, 2, CODE_CHECK);
	fd = memhook_attach(g.v.vm);
	/* Before the first entry, and after. */
	for (int i = 0; i < 2; i++) {
		WANT(get(fd, i, &r) == 0);
		want_system(&r, i);
	}
	guest_start(&g);
	guest_moves(&g, D_CHECKS);
	guest_stop(&g);
	for (int i = 0; i < 2; i++) {
		WANT(get(fd, i, &r) == 0);
		want_system(&r, i);
		WANT_EQ(r.flags, KVM_MEMHOOK_REGS_HALTED);
		/* KVM itself says the same. */
		WANT_EQ(ioctl(g.fd[i], KVM_GET_REGS, &k), 0);
		WANT_EQ(r.rip, k.rip);
		WANT_EQ(r.rflags, k.rflags);
		WANT_EQ(r.gpr[0], k.rax);
		WANT_EQ(r.gpr[1], k.rcx);
		WANT_EQ(r.gpr[4], k.rsp);
		WANT_EQ(r.gpr[15], k.r15);
	}
}

static void running(void)
{
	struct kvm_memhook_regs r;
	uint64_t ripped = 0;
	struct guest g;
	int fd;

	guest_create(&g, 2, CODE_CHECK);
	fd = memhook_attach(g.v.vm);
	guest_start(&g);
	guest_moves(&g, D_CHECKS);
	for (int i = 0; i < 100; i++) {
		WANT(get(fd, i & 1, &r) == 0);
		want_system(&r, i & 1);
		WANT(r.rip >= G_USER && r.rip < G_USER + 0x1000);
		WANT_EQ(r.gpr[4], G_STACK - 16);
		ripped |= r.rip;
	}
	guest_stop(&g);
	WANT_EQ(*guest_word(&g, D_BROKEN), 0);
	WANT(ripped != G_USER);
}

static void refused(void)
{
	struct kvm_memhook_regs r;
	struct guest g;
	int fd;

	guest_create(&g, 1, CODE_SPIN);
	fd = memhook_attach(g.v.vm);
	WANT_ERRNO(get(fd, 1, &r), ENOENT);
	WANT_ERRNO(get(fd, -1, &r), ENOENT);
	r = (struct kvm_memhook_regs){ .timeout_ms = 0 };
	WANT_ERRNO(ioctl(fd, KVM_MEMHOOK_GET_REGS, &r), EINVAL);
	r.timeout_ms = 1001;
	WANT_ERRNO(ioctl(fd, KVM_MEMHOOK_GET_REGS, &r), EINVAL);
	WANT_ERRNO(ioctl(fd, KVM_MEMHOOK_GET_REGS, NULL), EFAULT);
}

const struct test vcpu_tests[] = {
	{ "vcpu/at-rest", at_rest },
	{ "vcpu/running", running },
	{ "vcpu/refused", refused },
	{}
};
