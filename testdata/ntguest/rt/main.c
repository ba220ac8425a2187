/*
 * main.c - start-up of each processor, and its idle loop.
 */
#include "rt.h"

const struct nt_boot *boot;

static void setup(void)
{
	if (boot->magic != NT_BOOT_MAGIC || boot->version != NT_BOOT_VERSION || boot->size != sizeof *boot)
		for (;;)
			__asm__ volatile("cli; hlt"); /* no line to complain on yet */
	mm_setup();
	serial_setup();
	sched_setup();
	put_str("NT test guest: ");
	put_dec(frames_free());
	put_str(" free frames, ");
	proc_import();
	put_dec(boot->procs.count);
	put_str(" processes, ");
	put_dec(boot->templates.count);
	put_str(" templates\n");
	serial_drain(256);
	for (u32 i = 0; i < boot->ncpu; i++)
		if (!cpus[i].idle)
			bugcheck("no idle thread for processor", i, 0);
}

static _Noreturn void idle(struct cpu *c)
{
	for (;;) {
		if (c->number == 0 && serial_pending()) {
			serial_drain(128);
			idle_breathe();
		} else {
			idle_wait();
		}
	}
}

/* From entry.S, on the boot stack, interrupts off, the boot page tables loaded. */
_Noreturn void cpu_main(const struct nt_boot *b, u64 number)
{
	struct cpu *c = &cpus[number];

	write_cr3(b->system_dtb);
	if (number == 0)
		boot = b;
	if (number >= b->ncpu)
		for (;;)
			__asm__ volatile("cli; hlt");
	c->number = (u32)number;
	c->boot = &b->cpu[number];
	c->cr3 = b->system_dtb;
	cpu_setup(c);
	if (number == 0)
		setup();
	lapic_setup(c);
	kernel_lock(c);
	c->online = 1;
	put_str("processor ");
	put_dec(number);
	put_str(" up\n");
	kernel_unlock();
	if (number == 0 && b->ncpu > 1)
		lapic_start_others();
	idle(c);
}
