// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "guest.h"
#include "harness.h"

/* The guest's code, position-independent, copied to G_USER. */
__asm__(".pushsection .rodata\n"
	"guest_begin:\n"
	/* #PF: note it; make the lazy 2 MiB page present if that is what was touched. */
	"guest_fault:\n"
	"	push %rax\n"
	"	mov %cr2, %rax\n"
	"	mov %rax, 0x30028\n"
	"	shr $21, %rax\n"
	"	cmp $2, %rax\n"
	"	jne 1f\n"
	"	movq $0x400087, 0x3010\n"
	"1:	mov 8(%rsp), %rax\n"
	"	mov %rax, 0x30030\n"
	"	lock incq 0x30020\n"
	"	pop %rax\n"
	"	add $8, %rsp\n"
	"	iretq\n"
	"guest_spin:\n"
	"1:	lock incq 0x30000\n"
	"	jmp 1b\n"
	"guest_spin32:\n"
	"	.code32\n"
	"1:	lock incl 0x30000\n"
	"	jmp 1b\n"
	"	.code64\n"
	"guest_other_:\n"
	"	mov %rcx, 0x30010\n"
	"1:	lock incq 0x30008\n"
	"	jmp 1b\n"
	"guest_park_:\n"
	"	jmp guest_park_\n"
	/* Everything has a known value at every instruction of the inner loop but ECX. */
	"guest_check:\n"
	"	mov $0x1111, %eax; mov $0x2222, %edx; mov $0x3333, %ebx; mov $0x4444, %ebp\n"
	"	mov $0x5555, %esi; mov $0x6666, %edi; mov $0x7777, %r8d; mov $0x8888, %r9d\n"
	"	mov $0x9999, %r10d; mov $0xaaaa, %r11d; mov $0xbbbb, %r12d; mov $0xcccc, %r13d\n"
	"	mov $0xdddd, %r14d; mov $0xeeee, %r15d\n"
	"	movq %rax, %xmm0; movq %rdx, %xmm5; movq %rbx, %xmm9; movq %r15, %xmm15\n"
	"	fninit; fld1; fldpi\n"
	"	mov $2000, %ecx\n"
	"1:	stc\n"
	"	nop; nop; nop; nop\n"
	"	jnc 9f\n"
	"	dec %ecx\n"
	"	jnz 1b\n"
	"	cmp $0x1111, %rax; jne 9f; cmp $0x2222, %rdx; jne 9f; cmp $0x3333, %rbx; jne 9f\n"
	"	cmp $0x4444, %rbp; jne 9f; cmp $0x5555, %rsi; jne 9f; cmp $0x6666, %rdi; jne 9f\n"
	"	cmp $0x7777, %r8; jne 9f; cmp $0x8888, %r9; jne 9f; cmp $0x9999, %r10; jne 9f\n"
	"	cmp $0xaaaa, %r11; jne 9f; cmp $0xbbbb, %r12; jne 9f; cmp $0xcccc, %r13; jne 9f\n"
	"	cmp $0xdddd, %r14; jne 9f; cmp $0xeeee, %r15; jne 9f; cmp $0x37ff0, %rsp; jne 9f\n"
	"	movq %xmm0, %rcx; cmp %rax, %rcx; jne 9f; movq %xmm5, %rcx; cmp %rdx, %rcx; jne 9f\n"
	"	movq %xmm9, %rcx; cmp %rbx, %rcx; jne 9f; movq %xmm15, %rcx; cmp %r15, %rcx; jne 9f\n"
	"	fldpi; fcomip %st(1), %st; jne 9f; fstp %st(0)\n"
	"	fld1; fcomip %st(1), %st; jne 9f; fstp %st(0)\n"
	"	lock incq 0x30038\n"
	"	jmp guest_check\n"
	"9:	lock incq 0x30018\n"
	"	jmp guest_check\n"
	/* CPUID is intercepted. */
	"guest_exits:\n"
	"1:	xor %eax, %eax\n"
	"	cpuid\n"
	"	lock incq 0x30000\n"
	"	jmp 1b\n"
	"guest_kernel:\n"
	"1:	lock incq 0x30000\n"
	"	jmp 1b\n"
	"guest_end:\n"
	".popsection\n");

extern const uint8_t guest_begin[], guest_fault[], guest_spin[], guest_spin32[], guest_other_[],
	guest_park_[], guest_check[], guest_exits[], guest_kernel[], guest_end[];

uint64_t guest_other(void) { return G_USER + (guest_other_ - guest_begin); }
uint64_t guest_park(void) { return G_USER + (guest_park_ - guest_begin); }

volatile uint64_t *guest_word(struct guest *g, int index)
{
	return (volatile uint64_t *)(g->v.low + G_DATA) + index;
}

void guest_moves(struct guest *g, int index)
{
	uint64_t was = *guest_word(g, index);

	for (int i = 0; i < 5000; i++) {
		usleep(2000);
		if (*guest_word(g, index) != was)
			return;
	}
	FAIL("the guest's word %d stands still at %#llx", index, (unsigned long long)was);
}

static void put(struct guest *g, uint64_t gpa, uint64_t v)
{
	memcpy(g->v.low + gpa, &v, 8);
}

static void set_msr(int fd, uint32_t index, uint64_t data)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} m = { .h.nmsrs = 1, .e = { .index = index, .data = data } };

	WANT_EQ(ioctl(fd, KVM_SET_MSRS, &m), 1);
}

static void set_memory(struct guest *g)
{
	memcpy(g->v.low + G_USER, guest_begin, guest_end - guest_begin);
	/* Present, writable, user; the first 4 MiB in large pages, the third one absent. */
	for (int half = 0; half < 2; half++) {
		put(g, G_PML4 + 8 * 256 * half, 0x2007);
		put(g, G_PML4_B + 8 * 256 * half, 0x2007);
	}
	put(g, 0x2000, 0x3007);
	put(g, 0x3000, 0x000087);
	put(g, 0x3008, 0x200087);
	put(g, 0x6008, 0x00209b0000000000);	/* 08: kernel code, 64-bit */
	put(g, 0x6010, 0x00cf93000000ffff);	/* 10: kernel data */
	put(g, 0x6018, 0x00cffb000000ffff);	/* 1b: user code, 32-bit */
	put(g, 0x6020, 0x00cff3000000ffff);	/* 23: user data */
	put(g, 0x6028, 0x0020fb0000000000);	/* 2b: user code, 64-bit */
	/* IDT: #PF through an interrupt gate to the handler. */
	uint64_t h = G_UPPER + G_USER + (guest_fault - guest_begin);
	put(g, 0x7000 + 14 * 16, (h & 0xffff) | 0x08ULL << 16 | 0x8e00ULL << 32 | (h >> 16 & 0xffff) << 48);
	put(g, 0x7000 + 14 * 16 + 8, h >> 32);
}

static struct kvm_segment segment(uint16_t sel, uint8_t type, int dpl, int l, int db)
{
	return (struct kvm_segment){ .selector = sel, .limit = 0xffffffff, .type = type, .present = 1,
				     .dpl = dpl, .s = 1, .l = l, .db = db, .g = 1 };
}

static void set_vcpu(struct guest *g, int i, enum guest_code code)
{
	const uint8_t *start[] = { guest_spin, guest_spin32, guest_check, guest_exits, guest_kernel };
	int user = code != CODE_KERNEL, dpl = user ? 3 : 0;
	uint64_t tss = 0x8000 + 0x100 * i, stack = 0xa000 + 0x1000 * (i + 1);
	struct kvm_regs r = { .rflags = 2, .rsp = G_STACK - 16,
			      .rip = G_USER + (start[code] - guest_begin) };
	struct kvm_sregs s;
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(cpuid->entries[0]));

	cpuid->nent = 256;
	WANT_EQ(ioctl(g->v.kvm, KVM_GET_SUPPORTED_CPUID, cpuid), 0);
	WANT_EQ(ioctl(g->fd[i], KVM_SET_CPUID2, cpuid), 0);
	free(cpuid);
	put(g, tss + 4, stack);
	WANT_EQ(ioctl(g->fd[i], KVM_GET_SREGS, &s), 0);
	s.cs = code == CODE_SPIN32 ? segment(SEL_UCODE32, 11, 3, 0, 1) :
	       segment(user ? SEL_UCODE64 : 0x08, 11, dpl, 1, 0);
	s.ss = segment(user ? 0x23 : 0x10, 3, dpl, 0, 1);
	s.ds = s.es = s.fs = s.gs = segment(0x23, 3, 3, 0, 1);
	s.gs.base = TEB_VALUE + 0x1000 * i;
	s.tr = (struct kvm_segment){ .base = tss, .limit = 0x67, .selector = 0x30, .type = 11, .present = 1 };
	s.gdt = (struct kvm_dtable){ .base = 0x6000, .limit = 0x3f };
	s.idt = (struct kvm_dtable){ .base = 0x7000, .limit = 0xfff };
	s.cr0 = 0x80050033;	/* PG AM WP NE ET MP PE */
	s.cr3 = G_PML4;
	s.cr4 = 0x620;		/* PAE OSFXSR OSXMMEXCPT */
	s.efer = 0xd01;		/* SCE LME LMA NXE */
	WANT_EQ(ioctl(g->fd[i], KVM_SET_SREGS, &s), 0);
	WANT_EQ(ioctl(g->fd[i], KVM_SET_REGS, &r), 0);
	set_msr(g->fd[i], 0xc0000082, 0xfffff80012345678);	/* LSTAR */
	set_msr(g->fd[i], 0xc0000102, 0xfffff78000001000);	/* KERNEL_GS_BASE */
}

void guest_create(struct guest *g, int vcpus, enum guest_code code)
{
	memset(g, 0, sizeof(*g));
	vmm_create(&g->v, -1);
	set_memory(g);
	g->vcpus = vcpus;
	for (int i = 0; i < vcpus; i++) {
		g->fd[i] = ioctl(g->v.vm, KVM_CREATE_VCPU, i);
		WANT(g->fd[i] >= 0);
		g->run[i] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd[i], 0);
		WANT(g->run[i] != MAP_FAILED);
		set_vcpu(g, i, code);
	}
}

void guest_set_cr3(struct guest *g, int vcpu, uint64_t cr3)
{
	struct kvm_sregs s;

	WANT_EQ(ioctl(g->fd[vcpu], KVM_GET_SREGS, &s), 0);
	s.cr3 = cr3;
	WANT_EQ(ioctl(g->fd[vcpu], KVM_SET_SREGS, &s), 0);
}

struct start {
	struct guest *g;
	int vcpu;
};

static void *vcpu_loop(void *arg)
{
	struct start s = *(struct start *)arg;

	free(arg);
	while (!s.g->stop) {
		struct kvm_run *run = s.g->run[s.vcpu];

		if (ioctl(s.g->fd[s.vcpu], KVM_RUN, 0) == 0)
			FAIL("vCPU %d: exit reason %u", s.vcpu, run->exit_reason);
		if (errno != EINTR)
			FAIL("vCPU %d: KVM_RUN: %s", s.vcpu, strerror(errno));
	}
	return NULL;
}

static void nothing(int sig)
{
	(void)sig;
}

void guest_start(struct guest *g)
{
	struct sigaction sa = { .sa_handler = nothing };

	sigaction(SIGUSR1, &sa, NULL);
	g->stop = 0;
	for (int i = 0; i < g->vcpus; i++) {
		struct start *s = malloc(sizeof(*s));

		*s = (struct start){ g, i };
		g->run[i]->immediate_exit = 0;
		WANT_EQ(pthread_create(&g->thread[i], NULL, vcpu_loop, s), 0);
	}
}

void guest_stop(struct guest *g)
{
	g->stop = 1;
	for (int i = 0; i < g->vcpus; i++) {
		g->run[i]->immediate_exit = 1;
		pthread_kill(g->thread[i], SIGUSR1);
		pthread_join(g->thread[i], NULL);
	}
}
