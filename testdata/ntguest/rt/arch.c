/*
 * arch.c - what of a processor only 64-bit code has: system registers, segment
 * bases, the form of a thread's first frame.
 */
#include "rt.h"

struct cpu *this_cpu(void)
{
	u32 n;
	__asm__ volatile("mov %%gs:0x1a4, %0" : "=r"(n)); /* KPCR.Prcb.Number */
	return &cpus[n];
}

struct table_pointer {
	u16 limit;
	u64 base;
} __attribute__((packed));

/* System registers as NT sets them: the STAR layout gives 33/2b on SYSRET. */
void cpu_setup(struct cpu *c)
{
	const struct nt_cpu *b = c->boot;
	struct table_pointer gdt = { b->gdt_limit, b->gdt }, idt = { b->idt_limit, b->idt };
	u64 cr4;

	__asm__ volatile("lgdt %0; lidt %1" : : "m"(gdt), "m"(idt));
	__asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %1, %%fs; mov %0, %%gs; mov %2, %%ss"
			 : : "r"(0x2b), "r"(0x53), "r"(0x18));
	__asm__ volatile("pushq $0x10; lea 1f(%%rip), %%rax; push %%rax; lretq; 1:" : : : "rax", "memory");
	*at8(b->gdt + 0x45) = 0x89; /* TSS available: ltr wants it so */
	__asm__ volatile("ltr %w0" : : "r"(0x40));
	wrmsr(0xc0000101, b->kpcr);                  /* GS_BASE */
	wrmsr(0xc0000102, 0);                        /* KERNEL_GS_BASE: user's, while in the kernel */
	wrmsr(0xc0000081, 0x0023001000000000ULL);    /* STAR */
	wrmsr(0xc0000082, boot->flags & NT_BOOT_KVA_SHADOW ? boot->syscall64_shadow : boot->syscall64);
	wrmsr(0xc0000083, boot->syscall32);
	wrmsr(0xc0000084, 0x4700);                   /* SFMASK */
	__asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
	__asm__ volatile("mov %0, %%cr4" : : "r"(cr4 | 0x80)); /* PGE */
	*at64(b->tss + 4) = b->shadow_stack ? b->shadow_stack : b->boot_stack;
	*at64(b->kpcr + 0x1a8) = b->boot_stack;      /* Prcb.RspBase */
	if (boot->flags & NT_BOOT_KVA_SHADOW) {
		set64(b->kpcr, boot->off.pcr_kernel_dtb, boot->system_dtb);
		set64(b->kpcr, boot->off.pcr_rsp_shadow, b->shadow_stack);
	}
	__asm__ volatile("fninit");
}

void cpu_report(struct cpu *c)
{
	put_str(" gs ");
	put_hex(rdmsr(0xc0000101));
	put_str(" other gs ");
	put_hex(rdmsr(0xc0000102));
	put_str(" stack ");
	put_hex(*at64(c->boot->kpcr + 0x1a8));
}

/* Give t a frame that enters ring 3 at ip. */
void thread_setup(struct thread *t, u64 ip, u64 sp, u64 arg0, u64 arg1)
{
	struct frame *f = (struct frame *)(t->stack_top - sizeof *f);

	memset(f, 0, sizeof *f);
	f->ip = ip;
	f->cs = 0x33;
	f->flags = 0x202;
	f->sp = sp;
	f->ss = 0x2b;
	f->cx = arg0;
	f->dx = arg1;
	t->frame = f;
	memset(t->fx, 0, sizeof t->fx);
	*(u16 *)t->fx = 0x27f;        /* x87: 53-bit precision, as NT starts threads */
	*(u32 *)(t->fx + 24) = 0x1f80; /* MXCSR */
	set64(t->ethread, boot->off.kt_kernel_stack, (u64)f);
}

/* FS base of a 32-bit thread: the descriptor behind selector 0x53. */
static void set_teb32(struct cpu *c, u32 base)
{
	u64 d = c->boot->gdt + 0x50;

	*(u16 *)(d + 2) = (u16)base;
	*at8(d + 4) = (u8)(base >> 16);
	*at8(d + 7) = (u8)(base >> 24);
	__asm__ volatile("mov %0, %%fs" : : "r"(0x53));
}

/* Make ready for t in ring 3, and for its way back. */
void thread_load(struct cpu *c, struct thread *t, u64 cr3)
{
	*at64(c->boot->kpcr + 0x1a8) = t->stack_top;
	if (!c->boot->shadow_stack)
		*at64(c->boot->tss + 4) = t->stack_top;
	wrmsr(0xc0000102, t->teb);
	if (t->wow64)
		set_teb32(c, (u32)t->teb32);
	if (boot->flags & NT_BOOT_KVA_SHADOW)
		set64(c->boot->kpcr, boot->off.pcr_kernel_dtb, cr3 | KERNEL_PCID);
	if (c->cr3 != cr3) {
		c->cr3 = cr3;
		write_cr3(boot->flags & NT_BOOT_KVA_SHADOW ? cr3 | KERNEL_PCID : cr3);
	}
}
