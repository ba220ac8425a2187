/*
 * cpu.c - processors: local APIC, the big lock, bugchecks.
 */
#include "rt.h"
#include "pte.h"

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
	return PTR(volatile u32, boot->hyper + LAPIC_PAGE * PAGE + reg);
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
	pte_t *pte = self_pte(page);

	*pte = (pte_t)((rdmsr(0x1b) & 0xffffff000ULL) | PTE_NX | 0x1b); /* PCD, PWT */
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
