/*
 * sched.c - one queue of ready threads, round robin, and the context switch.
 */
#include "rt.h"

/* With KVA shadow NT tags CR3 so; without CR4.PCIDE the tags have no effect. */
#define KERNEL_PCID 2
#define USER_PCID 1
#define KUSER_INTERRUPT_TIME 0x08
#define KUSER_SYSTEM_TIME 0x14
#define KUSER_TICK_COUNT 0x320

struct thread *threads;
volatile u64 ticks;
u64 system_time;
u32 frozen, freeze_asked, churn_off;
u64 stat_switches, stat_faults, stat_syscalls;

static u16 *queue;
static u32 queue_head, queue_tail; /* free running; a thread is queued at most once */

void sched_setup(void)
{
	queue = heap_alloc(MAX_THREADS * sizeof *queue);
	threads = heap_alloc(MAX_THREADS * sizeof *threads);
	memset(threads, 0, MAX_THREADS * sizeof *threads);
	system_time = *at32(boot->kuser + KUSER_SYSTEM_TIME) | (u64)*at32(boot->kuser + KUSER_SYSTEM_TIME + 4) << 32;
}

static void enqueue(struct thread *t)
{
	if (!t->queued) {
		t->queued = 1;
		queue[queue_head++ % MAX_THREADS] = (u16)(t - threads);
	}
}

/* The next ready thread, or NULL. Entries of threads that ended are dropped. */
static struct thread *dequeue(void)
{
	while (queue_tail != queue_head) {
		struct thread *t = &threads[queue[queue_tail++ % MAX_THREADS]];
		t->queued = 0;
		if (t->state == T_READY)
			return t;
	}
	return NULL;
}

static void set_state(struct thread *t, u32 state)
{
	t->state = (u8)state;
	set8(t->ethread, boot->off.kt_state, (u8)state);
}

void thread_ready(struct thread *t)
{
	set_state(t, T_READY);
	t->wake_tick = 0;
	t->wait_proc = NULL;
	t->parked = 0;
	enqueue(t);
	for (u32 i = 0; i < boot->ncpu; i++) {
		if (cpus[i].online && cpus[i].current->idle && !frozen) {
			cpus[i].resched = 1;
			poke(&cpus[i]);
			break;
		}
	}
}

/* The current thread of some processor stops running; leave() switches. */
void thread_wait(struct thread *t, u64 wake_tick)
{
	set_state(t, T_WAITING);
	set8(t->ethread, boot->off.kt_wait_reason, wake_tick && !t->wait_proc ? 4 : 6);
	t->wake_tick = wake_tick;
}

/* Give t a frame that enters ring 3 at rip. */
void thread_setup(struct thread *t, u64 rip, u64 rsp, u64 arg0, u64 arg1)
{
	struct frame *f = (struct frame *)(t->stack_top - sizeof *f);

	memset(f, 0, sizeof *f);
	f->rip = rip;
	f->cs = 0x33;
	f->rflags = 0x202;
	f->rsp = rsp;
	f->ss = 0x2b;
	f->rcx = arg0;
	f->rdx = arg1;
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

static void switch_to(struct cpu *c, struct thread *next)
{
	struct thread *prev = c->current;
	u64 cr3 = next->idle ? boot->system_dtb : next->proc->id.dtb;
	u64 kpcr = c->boot->kpcr;

	if (!prev->idle) {
		__asm__ volatile("fxsaveq %0" : "=m"(*prev->fx) : : "memory");
		set64(prev->ethread, boot->off.kt_kernel_stack, (u64)prev->frame);
	}
	if (!next->idle)
		__asm__ volatile("fxrstorq %0" : : "m"(*next->fx) : "memory");
	c->current = next;
	next->cpu = (u8)c->number;
	set_state(next, T_RUNNING);
	set64(kpcr, boot->off.pcr_current_thread, next->ethread);
	if (boot->off.kt_context_switches != NT_NONE)
		++*at32(next->ethread + boot->off.kt_context_switches);
	*at64(kpcr + 0x1a8) = next->stack_top;
	if (!c->boot->shadow_stack)
		*at64(c->boot->tss + 4) = next->stack_top;
	wrmsr(0xc0000102, next->teb);
	if (next->wow64)
		set_teb32(c, (u32)next->teb32);
	if (boot->flags & NT_BOOT_KVA_SHADOW)
		set64(kpcr, boot->off.pcr_kernel_dtb, cr3 | KERNEL_PCID);
	if (c->cr3 != cr3) {
		c->cr3 = cr3;
		write_cr3(boot->flags & NT_BOOT_KVA_SHADOW ? cr3 | KERNEL_PCID : cr3);
	}
	stat_switches++;
}

/* Choose what this processor goes on with; returns its frame. */
struct frame *leave(struct cpu *c)
{
	struct thread *t = c->current, *next;
	struct frame *f;

	if (t->ending && t->state == T_RUNNING)
		thread_terminate(t, t->exit_status);
	if (t->state != T_RUNNING || c->resched || t->idle) {
		c->resched = 0;
		next = frozen ? NULL : dequeue();
		if (!next && t->state == T_RUNNING && !t->idle && !frozen)
			next = t;
		if (!next)
			next = c->idle;
		if (next != t) {
			if (t->state == T_RUNNING) {
				set_state(t, T_READY);
				if (!t->idle)
					enqueue(t);
			}
			switch_to(c, next);
		}
	}
	proc_finish();
	t = c->current;
	f = t->frame;
	f->vector = f->cs & 3 && t->proc->id.user_dtb ? t->proc->id.user_dtb | USER_PCID : 0;
	return f;
}

/* A KSYSTEM_TIME is written so that readers without a lock see it whole. */
static void set_time(u64 va, u64 v)
{
	*(volatile u32 *)(va + 8) = (u32)(v >> 32);
	*(volatile u32 *)va = (u32)v;
	*(volatile u32 *)(va + 4) = (u32)(v >> 32);
}

static void heartbeat(void)
{
	static u64 seq;
	u64 alive = 0;

	for (u32 i = 0; i < MAX_PROCS; i++)
		alive += procs[i].state == P_ALIVE;
	put_str("HB ");
	put_dec(++seq);
	put_char(' ');
	put_dec(ticks);
	put_str(" switches=");
	put_dec(stat_switches);
	put_str(" faults=");
	put_dec(stat_faults);
	put_str(" syscalls=");
	put_dec(stat_syscalls);
	put_str(" processes=");
	put_dec(alive);
	put_str(" free=");
	put_dec(frames_free());
	put_char('\n');
}

static void answer_freeze(void)
{
	if (frozen)
		for (u32 i = 0; i < boot->ncpu; i++)
			if (cpus[i].online && !cpus[i].current->idle)
				return;
	freeze_asked = 0;
	put_str("FROZEN ");
	put_dec(frozen);
	put_char('\n');
}

/* The timer. Processor 0 keeps the time and looks after the serial line. */
void tick(struct cpu *c)
{
	struct thread *t = c->current;

	if (!t->idle)
		t->ticks++;
	c->resched = 1;
	if (c->number)
		return;
	ticks++;
	system_time += TICK_100NS;
	set_time(boot->kuser + KUSER_SYSTEM_TIME, system_time);
	set_time(boot->kuser + KUSER_INTERRUPT_TIME, ticks * TICK_100NS);
	set_time(boot->kuser + KUSER_TICK_COUNT, ticks);
	for (u32 i = 0; i < MAX_THREADS; i++) {
		t = &threads[i];
		if (t->state == T_WAITING && t->wake_tick && t->wake_tick <= ticks) {
			if (t->wait_proc)
				t->frame->rax = STATUS_TIMEOUT;
			thread_ready(t);
		}
	}
	if (!churn_off)
		reap(0);
	if (ticks % TICK_HZ == 0)
		heartbeat();
	if (freeze_asked)
		answer_freeze();
	serial_poll();
	serial_drain(2048);
}
