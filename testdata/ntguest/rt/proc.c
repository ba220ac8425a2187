/*
 * proc.c - how processes and threads begin and end.
 *
 * Those of the memory image are imported at boot; template.c makes the others.
 */
#include "rt.h"

#define LINGER_TICKS (3 * TICK_HZ) /* an exited process stays listed that long */

struct proc *procs;
static u32 ending; /* processes whose address space is still to be torn down */

void proc_import(void)
{
	const struct nt_proc *bp = PTR(const struct nt_proc, boot->procs.va);
	const struct nt_thread *bt = PTR(const struct nt_thread, boot->threads.va);

	procs = heap_alloc(MAX_PROCS * sizeof *procs);
	memset(procs, 0, MAX_PROCS * sizeof *procs);
	template_setup();
	if (boot->procs.count > MAX_PROCS || boot->threads.count > MAX_THREADS)
		bugcheck("too many processes or threads", boot->procs.count, boot->threads.count);
	for (u64 i = 0; i < boot->procs.count; i++) {
		struct proc *p = &procs[i];
		p->id = bp[i];
		p->slot = NT_NONE;
		p->regions = PTR(const struct nt_region, boot->regions.va) + bp[i].first_region;
		p->state = bp[i].flags & NT_PROC_EXITED ? P_EXITED : P_ALIVE;
	}
	for (u64 i = 0; i < boot->threads.count; i++) {
		struct thread *t = &threads[i];
		u32 state = bt[i].state & 0xff;
		t->proc = &procs[bt[i].proc];
		t->ethread = bt[i].ethread;
		t->teb = bt[i].teb;
		t->teb32 = bt[i].teb32;
		t->stack_top = bt[i].stack_top;
		t->stack_limit = bt[i].stack_limit;
		t->tid = bt[i].tid;
		t->stack_slot = NT_NONE;
		t->wow64 = bt[i].state & NT_THREAD_WOW64 ? 1 : 0;
		if (state == NT_THREAD_IDLE) {
			t->idle = 1;
			t->state = T_RUNNING;
			if (bt[i].arg0 < boot->ncpu)
				cpus[bt[i].arg0].idle = cpus[bt[i].arg0].current = t;
			continue;
		}
		t->proc->live_threads++;
		t->state = T_WAITING;
		if (state != NT_THREAD_KERNEL)
			thread_setup(t, bt[i].rip, bt[i].rsp, bt[i].arg0, bt[i].arg1);
		if (state == NT_THREAD_READY)
			thread_ready(t);
	}
}

struct proc *proc_by_pid(u32 pid)
{
	for (u32 i = 0; i < MAX_PROCS; i++)
		if (procs[i].state != P_FREE && procs[i].id.pid == pid)
			return &procs[i];
	return NULL;
}

struct proc *proc_by_object(u64 eprocess)
{
	for (u32 i = 0; i < MAX_PROCS; i++)
		if (procs[i].state != P_FREE && procs[i].id.eprocess == eprocess)
			return &procs[i];
	return NULL;
}

void list_remove(u64 entry)
{
	usize next = word_at(entry)[0], prev = word_at(entry)[1];

	if (!next || !prev)
		return;
	word_at(prev)[0] = next;
	word_at(next)[1] = prev;
	word_at(entry)[0] = word_at(entry)[1] = (usize)entry;
}

void put_event(const char *what, const struct proc *p)
{
	put_str(what);
	put_dec(p->id.pid);
	put_char(' ');
	for (u32 i = 0; i < sizeof p->id.name && p->id.name[i]; i++)
		put_char(p->id.name[i]);
}

/* End a thread that no processor runs, or the current one of this processor. */
void thread_terminate(struct thread *t, u32 status)
{
	struct proc *p = t->proc;
	const struct nt_off *o = &boot->off;

	if (t->state == T_ENDED)
		return;
	t->state = T_ENDED;
	t->wake_tick = 0;
	t->wait_proc = NULL;
	set8(t->ethread, o->kt_state, T_ENDED);
	set32(t->ethread, o->et_exit_status, status);
	set64(t->ethread, o->et_exit_time, system_time);
	if (o->kt_thread_list_entry != NT_NONE)
		list_remove(t->ethread + o->kt_thread_list_entry);
	if (o->et_thread_list_entry != NT_NONE)
		list_remove(t->ethread + o->et_thread_list_entry);
	cid_set(t->tid, 0);
	p->live_threads--;
	set32(p->id.eprocess, o->ep_active_threads, p->live_threads);
	if (p->live_threads == 0) {
		if (p->state == P_ALIVE)
			p->id.exit_status = status;
		p->state = P_ENDING;
		ending++;
	}
}

/* End all of p's threads; those on other processors end when they come in. */
void proc_terminate(struct proc *p, u32 status)
{
	if (p->state != P_ALIVE)
		return;
	if (p->id.flags & NT_PROC_CRITICAL)
		bugcheck("CRITICAL_PROCESS_DIED", p->id.eprocess, status);
	p->id.exit_status = status;
	set32(p->id.eprocess, boot->off.ep_exit_status, status);
	if (boot->off.ep_flags != NT_NONE)
		*at32(p->id.eprocess + boot->off.ep_flags) |= boot->off.ep_flag_exiting;
	for (u32 i = 0; i < MAX_THREADS; i++) {
		struct thread *t = &threads[i];
		if (t->state == T_FREE || t->state == T_ENDED || t->proc != p)
			continue;
		t->ending = 1;
		t->exit_status = status;
		if (t->state == T_RUNNING) {
			cpus[t->cpu].resched = 1;
			poke(&cpus[t->cpu]); /* this processor's own ends in leave() */
		}
	}
	for (u32 i = 0; i < MAX_THREADS; i++) {
		struct thread *t = &threads[i];
		if (t->proc == p && (t->state == T_READY || t->state == T_WAITING))
			thread_terminate(t, status);
	}
}

/* Tear down the address spaces of processes that no thread is left in. */
void proc_finish(void)
{
	const struct nt_off *o = &boot->off;

	for (u32 i = 0; ending && i < MAX_PROCS; i++) {
		struct proc *p = &procs[i];
		if (p->state != P_ENDING)
			continue;
		ending--;
		handle_close_all(p);
		address_space_clear(p);
		p->id.exit_time = system_time;
		set_word(p->id.eprocess, o->ep_vad_root, 0);
		set32(p->id.eprocess, o->ep_exit_status, p->id.exit_status);
		set64(p->id.eprocess, o->ep_exit_time, system_time);
		if (o->ep_flags != NT_NONE)
			*at32(p->id.eprocess + o->ep_flags) |= o->ep_flag_exiting | o->ep_flag_delete;
		p->state = P_EXITED;
		p->reap_tick = ticks + LINGER_TICKS;
		put_event("EXIT ", p);
		put_char(' ');
		put_hex(p->id.exit_status);
		put_char('\n');
		for (u32 j = 0; j < MAX_THREADS; j++) {
			struct thread *t = &threads[j];
			if (t->state == T_WAITING && t->wait_proc == p) {
				t->frame->ax = STATUS_SUCCESS;
				thread_ready(t);
			}
		}
	}
}

/*
 * Delete the objects of processes that have been over for a while, or all that are
 * over, but for those that a handle holds. Processes of the memory image stay:
 * something always holds one.
 */
u32 reap(int all)
{
	u32 n = 0;

	for (u32 i = 0; i < MAX_PROCS; i++) {
		struct proc *p = &procs[i];
		if (p->state != P_EXITED || !p->tmpl || p->handles || (!all && p->reap_tick > ticks))
			continue;
		template_undo(p);
		p->state = P_FREE;
		n++;
	}
	return n;
}
