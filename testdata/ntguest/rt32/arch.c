/*
 * arch.c - what of a processor only 32-bit code has: descriptors, the task state,
 * SYSENTER, the form of a thread's first frame.
 */
#include "../rt/rt.h"

#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_CODE 0x1b
#define USER_DATA 0x23
#define TASK 0x28
#define KERNEL_FS 0x30 /* KPCR */
#define USER_FS 0x3b   /* TEB */

#define PCR_STACK 0x04  /* NtTib.StackBase: the current thread's kernel stack */
#define PCR_NUMBER 0x51

struct cpu *this_cpu(void)
{
	u8 n;
	__asm__ volatile("movb %%fs:%c1, %0" : "=q"(n) : "i"(PCR_NUMBER));
	return &cpus[n];
}

struct table_pointer {
	u16 limit;
	u32 base;
} __attribute__((packed));

static void set_base(u64 gdt, u32 selector, u32 base)
{
	u64 d = gdt + (selector & ~7u);

	*PTR(u16, d + 2) = (u16)base;
	*at8(d + 4) = (u8)(base >> 16);
	*at8(d + 7) = (u8)(base >> 24);
}

void cpu_setup(struct cpu *c)
{
	const struct nt_cpu *b = c->boot;
	struct table_pointer gdt = { b->gdt_limit, (u32)b->gdt }, idt = { b->idt_limit, (u32)b->idt };
	u64 stack = b->shadow_stack ? b->shadow_stack : b->boot_stack;
	u32 cr4;

	__asm__ volatile("lgdt %0; lidt %1" : : "m"(gdt), "m"(idt));
	__asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %1, %%fs; mov %2, %%gs; mov %3, %%ss"
			 : : "r"(USER_DATA), "r"(KERNEL_FS), "r"(0), "r"(KERNEL_DATA));
	__asm__ volatile("push %0; call 1f; 1: addl $2f - 1b, (%%esp); lret; 2:" : : "i"(KERNEL_CODE) : "memory");
	*at8(b->gdt + TASK + 5) = 0x89; /* TSS available: ltr wants it so */
	__asm__ volatile("ltr %w0" : : "r"(TASK));
	wrmsr(0x174, KERNEL_CODE);
	wrmsr(0x175, stack);
	wrmsr(0x176, boot->syscall64);
	__asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
	if (!(boot->flags & NT_BOOT_KVA_SHADOW))
		__asm__ volatile("mov %0, %%cr4" : : "r"(cr4 | 0x80)); /* PGE */
	*at32(b->tss + 4) = (u32)stack;
	*at32(b->kpcr + PCR_STACK) = (u32)b->boot_stack;
	if (boot->flags & NT_BOOT_KVA_SHADOW) {
		set_word(b->kpcr, boot->off.pcr_kernel_dtb, boot->system_dtb);
		set_word(b->kpcr, boot->off.pcr_rsp_shadow, b->shadow_stack);
	}
	__asm__ volatile("fninit");
}

void cpu_report(struct cpu *c)
{
	put_str(" stack ");
	put_hex(*at32(c->boot->kpcr + PCR_STACK));
	put_str(" cr3 ");
	put_hex(read_cr3());
}

/* Give t a frame that enters ring 3 at ip. Its stack has the arguments already; they
   are in eax and ebx too, where Windows has them. */
void thread_setup(struct thread *t, u64 ip, u64 sp, u64 arg0, u64 arg1)
{
	struct frame *f = PTR(struct frame, t->stack_top) - 1;

	memset(f, 0, sizeof *f);
	f->ip = (u32)ip;
	f->cs = USER_CODE;
	f->flags = 0x202;
	f->sp = (u32)sp;
	f->ss = f->ds = f->es = USER_DATA;
	f->fs = USER_FS;
	f->ax = (u32)arg0;
	f->bx = (u32)arg1;
	t->frame = f;
	memset(t->fx, 0, sizeof t->fx);
	*(u16 *)t->fx = 0x27f;         /* x87: 53-bit precision, as NT starts threads */
	*(u32 *)(t->fx + 24) = 0x1f80; /* MXCSR */
	set_word(t->ethread, boot->off.kt_kernel_stack, (u32)f);
}

/* Make ready for t in ring 3, and for its way back. */
void thread_load(struct cpu *c, struct thread *t, u64 cr3)
{
	*at32(c->boot->kpcr + PCR_STACK) = (u32)t->stack_top;
	if (!c->boot->shadow_stack)
		*at32(c->boot->tss + 4) = (u32)t->stack_top;
	set_base(c->boot->gdt, USER_FS, (u32)t->teb);
	if (boot->flags & NT_BOOT_KVA_SHADOW)
		set_word(c->boot->kpcr, boot->off.pcr_kernel_dtb, cr3);
	if (c->cr3 != cr3) {
		c->cr3 = cr3;
		write_cr3(cr3);
	}
}
