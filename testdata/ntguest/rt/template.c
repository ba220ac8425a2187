/*
 * template.c - processes that start while the guest runs: a copy of a template's
 * kernel structures at a new address, put right by fix-ups, and user pages that
 * come in on demand.
 */
#include "rt.h"

static u8 *slot_used, *stack_used;
static u64 serial_number;

void template_setup(void)
{
	slot_used = heap_alloc(boot->slots.count);
	memset(slot_used, 0, (usize)boot->slots.count);
	stack_used = heap_alloc(boot->stacks.count);
	memset(stack_used, 0, (usize)boot->stacks.count);
}

static u32 take(u8 *used, u64 count)
{
	for (u32 i = 0; i < count; i++)
		if (!used[i]) {
			used[i] = 1;
			return i;
		}
	return NT_NONE;
}

static struct thread *thread_new(void)
{
	for (u32 i = 0; i < MAX_THREADS; i++)
		if (threads[i].state == T_FREE && !threads[i].queued) {
			memset(&threads[i], 0, sizeof threads[i]);
			threads[i].stack_slot = NT_NONE;
			return &threads[i];
		}
	return NULL;
}

static struct proc *proc_new(void)
{
	for (u32 i = 0; i < MAX_PROCS; i++)
		if (procs[i].state == P_FREE) {
			memset(&procs[i], 0, sizeof procs[i]);
			procs[i].slot = NT_NONE;
			return &procs[i];
		}
	return NULL;
}

static const struct nt_template *template_by_name(const char *name)
{
	const struct nt_template *t = PTR(const struct nt_template, boot->templates.va);

	for (u64 i = 0; i < boot->templates.count; i++, t++) {
		u32 n = 0;
		while (n < sizeof t->name && name[n] && (name[n] | 32) == (t->name[n] | 32))
			n++;
		if (n < sizeof t->name && !name[n] && !t->name[n])
			return t;
	}
	return NULL;
}

static void list_append(u64 head, u64 entry)
{
	usize last = word_at(head)[1];

	word_at(entry)[0] = (usize)head;
	word_at(entry)[1] = last;
	word_at(last)[0] = (usize)entry;
	word_at(head)[1] = (usize)entry;
}

/* The value of a fix-up that is the same in kernel and user memory. */
static u64 fix_value(const struct proc *p, struct thread **ts, const struct nt_fixup *f)
{
	switch (f->kind) {
	case NT_FIX_PID:
	case NT_FIX_PID32: return p->id.pid + f->value;
	case NT_FIX_PPID: return p->id.ppid;
	case NT_FIX_TID:
	case NT_FIX_TID32: return ts[f->arg]->tid;
	case NT_FIX_DTB: return p->id.dtb + f->value;
	case NT_FIX_USER_DTB: return p->id.user_dtb + f->value;
	case NT_FIX_NOW: return p->id.create_time;
	case NT_FIX_STACK_TOP: return ts[f->arg]->stack_top + f->value;
	case NT_FIX_STACK_LIMIT: return ts[f->arg]->stack_limit + f->value;
	case NT_FIX_COUNTER64: return serial_number;
	}
	return 0;
}

/* First pass: what no other structure can see yet. */
static void fix_private(struct proc *p, struct thread **ts, const struct nt_fixup *f)
{
	u64 va = p->blob + f->at, delta = p->blob - p->tmpl->blob_base;

	switch (f->kind) {
	case NT_FIX_RELOC: *word_at(va) += (usize)delta; break;
	case NT_FIX_RELOC_CID: *at64(va) += delta << cid_shift(); break;
	case NT_FIX_NOW:
	case NT_FIX_COUNTER64: *at64(va) = fix_value(p, ts, f); break;
	case NT_FIX_PID32:
	case NT_FIX_TID32: *at32(va) = (u32)fix_value(p, ts, f); break;
	case NT_FIX_TYPE_INDEX: {
		u8 type = (u8)f->arg;
		if (boot->flags & NT_BOOT_OB_COOKIE)
			type ^= (u8)boot->ob_cookie ^ (u8)((p->blob + f->value) >> 8);
		*at8(va) = type;
		break;
	}
	case NT_FIX_LINK: case NT_FIX_CID_PROC: case NT_FIX_CID_THREAD:
	case NT_FIX_INC32: case NT_FIX_INC64: case NT_FIX_POOL_TAG:
		break;
	default:
		*word_at(va) = (usize)fix_value(p, ts, f);
	}
}

/* Second pass: make it known; at the end of its life the same, undone. */
static void fix_public(struct proc *p, struct thread **ts, const struct nt_fixup *f, int undo)
{
	u64 va = p->blob + f->at;

	switch (f->kind) {
	case NT_FIX_LINK:
		if (undo)
			list_remove(va);
		else
			list_append(f->value, va);
		break;
	case NT_FIX_CID_PROC:
		cid_set(p->id.pid, undo ? 0 : va);
		break;
	case NT_FIX_CID_THREAD:
		if (!undo) /* a thread's id is free when the thread ends */
			cid_set(ts[f->arg]->tid, va);
		break;
	case NT_FIX_INC32: *at32(f->value) += undo ? -1u : 1u; break;
	case NT_FIX_INC64: *at64(f->value) += undo ? -1ULL : 1ULL; break;
	}
}

/* Give back what proc_start took before it found something missing. */
static struct proc *start_failed(struct proc *p, struct thread **ts, u32 n)
{
	for (u32 i = 0; i < n; i++) {
		stack_used[ts[i]->stack_slot] = 0;
		ts[i]->state = T_FREE;
	}
	if (p && p->slot != NT_NONE)
		slot_used[p->slot] = 0;
	return NULL;
}

/* Is pid one that a new process can be given? */
static int pid_is_free(u32 pid)
{
	usize *e = cid_entry(pid);
	return e && !e[0] && !proc_by_pid(pid);
}

static struct proc *start(const char *name, u32 ppid, u32 pid, u32 *status)
{
	const struct nt_template *tm = template_by_name(name);
	const struct nt_template_thread *tt;
	const struct nt_fixup *fix;
	struct thread *ts[16];
	struct proc *p;

	if (!tm) {
		*status = STATUS_OBJECT_NAME_NOT_FOUND;
		return NULL;
	}
	if (pid && !pid_is_free(pid)) {
		*status = STATUS_INVALID_CID;
		return NULL;
	}
	*status = STATUS_INSUFFICIENT_RESOURCES;
	p = proc_new();
	if (!p || tm->threads.count > 16 || tm->blob_size > boot->slots.size)
		return NULL;
	p->slot = take(slot_used, boot->slots.count);
	if (p->slot == NT_NONE)
		return NULL;
	for (u32 i = 0; i < tm->threads.count; i++) {
		u32 s = take(stack_used, boot->stacks.count);
		ts[i] = s == NT_NONE ? NULL : thread_new();
		if (!ts[i]) {
			if (s != NT_NONE)
				stack_used[s] = 0;
			return start_failed(p, ts, i);
		}
		ts[i]->state = T_WAITING;
		ts[i]->stack_slot = s;
	}

	p->state = P_ALIVE;
	p->tmpl = tm;
	p->blob = boot->slots.va + p->slot * boot->slots.stride;
	p->regions = PTR(const struct nt_region, tm->regions.va);
	p->live_threads = (u32)tm->threads.count;
	p->id.regions = (u32)tm->regions.count;
	p->id.eprocess = p->blob + tm->eprocess;
	p->id.peb = tm->peb;
	p->id.peb32 = tm->peb32;
	p->id.create_time = system_time;
	p->id.exit_status = 0x103;
	p->id.ppid = ppid;
	p->id.session = tm->session;
	p->id.flags = tm->flags;
	p->id.protection = tm->protection;
	p->id.progress = tm->progress;
	p->id.account = tm->account;
	p->id.truth = tm->truth;
	p->id.truth_len = tm->truth_len;
	memcpy(p->id.name, tm->name, sizeof p->id.name - 1);
	serial_number++;
	p->id.pid = pid ? pid : cid_new();
	cid_set(p->id.pid, p->id.eprocess);
	kernel_map_new(p->blob, boot->slots.size);
	memcpy(PTR(void, p->blob), PTR(void, tm->blob), (usize)tm->blob_size);
	address_space_new(p);

	tt = PTR(const struct nt_template_thread, tm->threads.va);
	for (u32 i = 0; i < tm->threads.count; i++, tt++) {
		struct thread *t = ts[i];
		t->proc = p;
		t->ethread = p->blob + tt->ethread;
		t->teb = tt->teb;
		t->teb32 = tt->teb32;
		t->wow64 = tt->flags & NT_THREAD_WOW64 ? 1 : 0;
		t->stack_limit = boot->stacks.va + t->stack_slot * boot->stacks.stride;
		t->stack_top = t->stack_limit + boot->stacks.size;
		kernel_map_new(t->stack_limit, boot->stacks.size);
		t->tid = cid_new();
		cid_set(t->tid, t->ethread);
	}
	fix = PTR(const struct nt_fixup, tm->fixups.va);
	for (u64 i = 0; i < tm->fixups.count; i++)
		fix_private(p, ts, &fix[i]);
	for (u64 i = 0; i < tm->touch.count; i++) {
		u64 va = at64(tm->touch.va)[i];
		if (page_in(p, va, va & 1 ? ACCESS_WRITE : 0))
			bugcheck("template page cannot be made present", va, p->id.pid);
	}
	fix = PTR(const struct nt_fixup, tm->ufixups.va);
	for (u64 i = 0; i < tm->ufixups.count; i++) {
		u64 v = fix_value(p, ts, &fix[i]);
		if (user_write(p, fix[i].at, &v, fix[i].kind == NT_FIX_PID32 || fix[i].kind == NT_FIX_TID32 ? 4 : sizeof(usize)))
			bugcheck("user fix-up outside of the template", fix[i].at, p->id.pid);
	}
	fix = PTR(const struct nt_fixup, tm->fixups.va);
	for (u64 i = 0; i < tm->fixups.count; i++)
		fix_public(p, ts, &fix[i], 0);
	for (u64 i = 0; i < tm->fixups.count; i++)
		if (fix[i].kind == NT_FIX_POOL_TAG)
			*at32(p->blob + fix[i].at) = (u32)fix[i].value;
	put_event("START ", p);
	put_char('\n');
	tt = PTR(const struct nt_template_thread, tm->threads.va);
	for (u32 i = 0; i < tm->threads.count; i++, tt++) {
		thread_setup(ts[i], tt->rip, tt->rsp, tt->arg0, tt->arg1);
		if ((tt->flags & 0xff) == NT_THREAD_READY)
			thread_ready(ts[i]);
	}
	*status = 0;
	return p;
}

/* Where memory is short, processes that have ended are forgotten before their time. */
struct proc *proc_start(const char *name, u32 ppid, u32 pid, u32 *status)
{
	struct proc *p = start(name, ppid, pid, status);

	if (!p && *status == STATUS_INSUFFICIENT_RESOURCES && !churn_off && reap(1))
		p = start(name, ppid, pid, status);
	return p;
}

/* Delete a process's objects: what proc_start did, undone. */
void template_undo(struct proc *p)
{
	const struct nt_fixup *fix = PTR(const struct nt_fixup, p->tmpl->fixups.va);

	for (u64 k = 0; k < p->tmpl->fixups.count; k++)
		if (fix[k].kind == NT_FIX_POOL_TAG)
			*at32(p->blob + fix[k].at) = 0;
	for (u64 k = 0; k < p->tmpl->fixups.count; k++)
		fix_public(p, NULL, &fix[k], 1);
	cid_set(p->id.pid, 0);
	address_space_free(p);
	slot_used[p->slot] = 0;
	for (u32 k = 0; k < MAX_THREADS; k++)
		if (threads[k].state == T_ENDED && threads[k].proc == p) {
			stack_used[threads[k].stack_slot] = 0;
			threads[k].state = T_FREE;
		}
}
