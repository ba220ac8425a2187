/*
 * sched.c - one queue of ready threads, round robin, and the context switch.
 */
#include "rt.h"

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

static void switch_to(struct cpu *c, struct thread *next)
{
	struct thread *prev = c->current;
	u64 cr3 = next->idle ? boot->system_dtb : next->proc->id.dtb;
	u64 kpcr = c->boot->kpcr;

	if (!prev->idle) {
		__asm__ volatile(FXSAVE " %0" : "=m"(*prev->fx) : : "memory");
		set_word(prev->ethread, boot->off.kt_kernel_stack, (usize)prev->frame);
	}
	if (!next->idle)
		__asm__ volatile(FXRSTOR " %0" : : "m"(*next->fx) : "memory");
	c->current = next;
	next->cpu = (u8)c->number;
	set_state(next, T_RUNNING);
	set_word(kpcr, boot->off.pcr_current_thread, next->ethread);
	if (boot->off.kt_context_switches != NT_NONE)
		++*at32(next->ethread + boot->off.kt_context_switches);
	thread_load(c, next, cr3);
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
	f->vector = f->cs & 3 && t->proc->id.user_dtb ? (usize)t->proc->id.user_dtb | USER_PCID : 0;
	return f;
}

/* A KSYSTEM_TIME is written so that readers without a lock see it whole. */
static void set_time(u64 va, u64 v)
{
	*PTR(volatile u32, va + 8) = (u32)(v >> 32);
	*PTR(volatile u32, va) = (u32)v;
	*PTR(volatile u32, va + 4) = (u32)(v >> 32);
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
				t->frame->ax = STATUS_TIMEOUT;
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
