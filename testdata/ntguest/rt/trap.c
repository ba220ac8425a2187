/*
 * trap.c - what happens on every entry into the kernel.
 */
#include "rt.h"

/* An exception that nothing handles: the process ends with its status. */
static void exception(struct thread *t, struct frame *f, u32 status, u64 address)
{
	put_str("EXCEPTION ");
	put_dec(t->proc->id.pid);
	put_char(' ');
	put_dec(t->tid);
	put_char(' ');
	put_hex(status);
	put_str(" rip=");
	put_hex(f->ip);
	put_str(" address=");
	put_hex(address);
	put_char('\n');
	proc_terminate(t->proc, status);
}

static u32 status_of(u64 vector)
{
	switch (vector) {
	case 0: return STATUS_INTEGER_DIVIDE_BY_ZERO;
	case 1: case 3: return STATUS_BREAKPOINT;
	case 6: return STATUS_ILLEGAL_INSTRUCTION;
	case 0x29: return 0xC0000409; /* fast fail */
	case 0x2c: return 0xC0000420; /* assertion */
	}
	return STATUS_PRIVILEGED_INSTRUCTION;
}

static void page_fault(struct thread *t, struct frame *f, u64 va, u32 error)
{
	u32 status;

	stat_faults++;
	t->proc->faults++;
	status = page_in(t->proc, va, error & (ACCESS_WRITE | ACCESS_EXEC));
	if (status)
		exception(t, f, status, va);
}

/* The page fault that a command asked for, at whatever instruction t is: as when a
   hypervisor injects one. */
static void asked_fault(struct thread *t, struct frame *f)
{
	struct proc *p = t->proc;
	u64 va = p->fault_at;

	if (!va || !(f->cs & 3) || t->ending)
		return;
	p->fault_at = 0;
	page_fault(t, f, va, 4);
	put_event("FAULT ", p);
	put_char(' ');
	put_hex(va);
	put_char('\n');
}

struct frame *trap_dispatch(struct frame *f)
{
	struct cpu *c = this_cpu();
	u64 cr2 = read_cr2(), vector = f->vector;
	struct thread *t;

	if (vector == 2) /* another processor bugchecked */
		for (;;)
			__asm__ volatile("cli; hlt");
	kernel_lock(c);
	t = c->current;
	t->frame = f;
	if (vector == boot->timer_vector) {
		lapic_eoi();
		tick(c);
		asked_fault(t, f);
	} else if (vector == boot->ipi_vector) {
		lapic_eoi();
	} else if (vector > 0x2f && vector < 0x100) {
		if (vector != 0xff) /* spurious ones want no EOI */
			lapic_eoi();
	} else if (!(f->cs & 3)) {
		put_str("trap in the kernel, vector ");
		put_dec(vector);
		put_str(" error ");
		put_hex(f->error);
		put_str(" cr2 ");
		put_hex(cr2);
		cpu_report(c);
		put_str(" local APIC ");
		put_dec(lapic_id());
		put_char('\n');
		bugcheck("KMODE_EXCEPTION_NOT_HANDLED", f->ip, f->ip - (usize)&trap_dispatch);
	} else if (t->ending) {
		; /* leave() ends it */
	} else if (vector == 14) {
		page_fault(t, f, cr2, (u32)f->error);
	} else if (vector == VECTOR_SYSCALL || vector == 0x2e) {
#ifdef __x86_64__
		syscall(c, f);
		if (vector == VECTOR_SYSCALL) {
			f->cx = f->ip;
			f->r11 = f->flags;
		}
#else
		if (vector == VECTOR_SYSCALL) /* SYSENTER says nothing of where it was */
			f->ip = (u32)boot->syscall64_shadow;
		syscall(c, f);
#endif
	} else {
		exception(t, f, status_of(vector), f->ip);
	}
	return leave(c);
}
