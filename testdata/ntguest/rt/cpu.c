/*
 * cpu.c - processors: system registers, local APIC, the big lock, bugchecks.
 */
#include "rt.h"

#define LAPIC_PAGE 60 /* hyper page that maps the local APIC */
#define LAPIC_ID 0x20
#define LAPIC_EOI 0xb0
#define LAPIC_SVR 0xf0
#define LAPIC_ICR_LOW 0x300
#define LAPIC_ICR_HIGH 0x310
#define LAPIC_TIMER 0x320
#define LAPIC_TIMER_INIT 0x380
#define LAPIC_TIMER_NOW 0x390
#define LAPIC_TIMER_DIV 0x3e0
#define TRAMPOLINE_PAGE 8

struct cpu cpus[NT_MAX_CPU];
static volatile u32 big_lock;
static u32 timer_count;

static volatile u32 *lapic(u32 reg)
{
	return (volatile u32 *)(boot->hyper + LAPIC_PAGE * PAGE + reg);
}

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

/* The big lock. While it spins, a processor still answers flush requests. */
void kernel_lock(struct cpu *c)
{
	for (;;) {
		u32 one = 1;
		if (c->flush) {
			write_cr3(read_cr3());
			c->flush = 0;
		}
		__asm__ volatile("xchg %0, %1" : "+r"(one), "+m"(big_lock) : : "memory");
		if (!one)
			return;
		while (big_lock && !c->flush)
			__asm__ volatile("pause");
	}
}

void kernel_unlock(void)
{
	__asm__ volatile("" : : : "memory");
	big_lock = 0;
}

static void send(u32 apic_id, u32 command)
{
	while (*lapic(LAPIC_ICR_LOW) & 0x1000)
		__asm__ volatile("pause");
	*lapic(LAPIC_ICR_HIGH) = apic_id << 24;
	*lapic(LAPIC_ICR_LOW) = command;
}

/* Make a processor look at its run queue. */
void poke(struct cpu *c)
{
	if (c->online && c != this_cpu())
		send(c->lapic_id, 0x4000 | (u32)boot->ipi_vector);
}

/* Every other processor in p's address space forgets its translations. */
void flush_remote(const struct proc *p)
{
	struct cpu *me = this_cpu();
	for (u32 i = 0; i < boot->ncpu; i++) {
		struct cpu *c = &cpus[i];
		if (c == me || !c->online || c->cr3 != p->id.dtb)
			continue;
		c->flush = 1;
		poke(c);
		while (c->flush)
			__asm__ volatile("pause");
	}
}

static void pit_wait_10ms(void)
{
	outb(0x61, (inb(0x61) & ~2) | 1);
	outb(0x43, 0xb0); /* channel 2, both bytes, mode 0 */
	outb(0x42, 11932 & 0xff);
	outb(0x42, 11932 >> 8);
	while (!(inb(0x61) & 0x20))
		;
}

/* Timer counts per tick, from the PIT; all processors share the bus clock. */
void lapic_calibrate(void)
{
	*lapic(LAPIC_TIMER_DIV) = 3; /* by 16 */
	*lapic(LAPIC_TIMER) = 0x10000;
	*lapic(LAPIC_TIMER_INIT) = 0xffffffff;
	pit_wait_10ms();
	u32 per_10ms = 0xffffffff - *lapic(LAPIC_TIMER_NOW);
	*lapic(LAPIC_TIMER_INIT) = 0;
	timer_count = (u32)((u64)per_10ms * 100 / TICK_HZ);
	if (timer_count < 1000)
		bugcheck("local APIC timer does not run", per_10ms, 0);
}

void lapic_setup(struct cpu *c)
{
	u64 page = boot->hyper + LAPIC_PAGE * PAGE;
	u64 *pte = self_pte(page);

	*pte = (rdmsr(0x1b) & 0xffffff000ULL) | 0x8000000000000000ULL | 0x1b; /* PCD, PWT */
	invlpg(page);
	wrmsr(0x1b, rdmsr(0x1b) | 0x800);
	*lapic(LAPIC_SVR) = 0x1ff;
	c->lapic_id = lapic_id();
	if (c->number == 0) {
		outb(0x21, 0xff); /* no interrupts from the two PICs */
		outb(0xa1, 0xff);
		lapic_calibrate();
	}
	*lapic(LAPIC_TIMER_DIV) = 3;
	*lapic(LAPIC_TIMER) = 0x20000 | (u32)boot->timer_vector; /* periodic */
	*lapic(LAPIC_TIMER_INIT) = timer_count;
}

u32 lapic_id(void)
{
	return *lapic(LAPIC_ID) >> 24;
}

void lapic_eoi(void)
{
	*lapic(LAPIC_EOI) = 0;
}

/* INIT, then start-up IPIs at the trampoline page, to all but this one. */
void lapic_start_others(void)
{
	send(0, 0xc4500);
	pit_wait_10ms();
	for (int i = 0; i < 2; i++) {
		send(0, 0xc4600 | TRAMPOLINE_PAGE);
		pit_wait_10ms();
	}
}

/* The end: say why, at once and without the lock, and stop every processor. */
_Noreturn void bugcheck(const char *what, u64 a, u64 b)
{
	static volatile u32 once;
	u32 one = 1;

	__asm__ volatile("cli; xchg %0, %1" : "+r"(one), "+m"(once) : : "memory");
	if (!one) {
		put_str("\nBUGCHECK ");
		put_str(what);
		put_char(' ');
		put_hex(a);
		put_char(' ');
		put_hex(b);
		put_char('\n');
		while (serial_pending())
			serial_drain(~0u);
		*lapic(LAPIC_ICR_HIGH) = 0;
		*lapic(LAPIC_ICR_LOW) = 0xc4400; /* NMI to the others: they stop too */
	}
	for (;;)
		__asm__ volatile("cli; hlt");
}
