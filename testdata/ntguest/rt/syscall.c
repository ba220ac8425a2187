/*
 * syscall.c - the NT system calls that the guest's programs use.
 *
 * Arguments come as Windows x64 passes them: r10, rdx, r8, r9, then the user
 * stack from [rsp+28h] on. The numbers are those of user/sysnum.h.
 */
#include "rt.h"
#include "../user/sysnum.h"

#define CURRENT_THREAD (~1ULL)
#define MEM_RELEASE 0x8000
#define PROCESS_TERMINATE 1
#define PROCESS_VM_OPERATION 8
#define PROCESS_SET_QUOTA 0x100
#define PROCESS_QUERY_LIMITED 0x1000
#define PROCESS_ALL_ACCESS 0x1fffffu
#define SYNCHRONIZE 0x100000
#define PARAMETERS_IMAGE_PATH 0x60 /* RTL_USER_PROCESS_PARAMETERS.ImagePathName */

/* Stack argument n, counted from 5. */
static u64 stack_arg(struct proc *p, struct frame *f, u32 n)
{
	u64 v = 0;
	if (user_read(p, &v, f->rsp + 0x28 + 8ULL * (n - 5), 8))
		return 0;
	return v;
}

/* Have the thread repeat this call when churn goes on. */
static void park(struct thread *t, struct frame *f)
{
	f->rip -= 2; /* SYSCALL and INT 2Eh are two bytes long */
	t->parked = 1;
	thread_wait(t, 0);
}

/* The base name of a UNICODE_STRING path in user memory, as ASCII. */
static u32 read_name(struct proc *p, u64 string, char *name, u64 room)
{
	struct { u16 length, maximum; u32 pad; u64 buffer; } us;
	u64 n = 0;

	if (user_read(p, &us, string, sizeof us))
		return STATUS_ACCESS_VIOLATION;
	for (u64 i = 0; i + 1 < us.length; i += 2) {
		u16 c;
		if (user_read(p, &c, us.buffer + i, 2))
			return STATUS_ACCESS_VIOLATION;
		if (c == '\\') {
			n = 0;
			continue;
		}
		if (n + 1 >= room || c == 0 || c > 126)
			return STATUS_OBJECT_NAME_NOT_FOUND;
		name[n++] = (char)c;
	}
	name[n] = 0;
	return n ? 0 : STATUS_OBJECT_NAME_NOT_FOUND;
}

/*
 * NtCreateUserProcess, simplified: of the eleven arguments the process handle,
 * the thread handle (set to 0) and the process parameters are used; the base
 * name of their ImagePathName chooses the template.
 */
static u32 create_process(struct proc *self, struct frame *f)
{
	char name[32];
	u64 parameters = stack_arg(self, f, 9), handle = 0, zero = 0;
	u32 status = read_name(self, parameters + PARAMETERS_IMAGE_PATH, name, sizeof name);
	struct proc *p;

	if (status)
		return status;
	if (user_write(self, f->r10, &zero, 8) || user_write(self, f->rdx, &zero, 8))
		return STATUS_ACCESS_VIOLATION;
	p = proc_start(name, self->id.pid, 0, &status);
	if (!p)
		return status;
	status = handle_open(self, p->id.eprocess, PROCESS_ALL_ACCESS, &handle);
	if (status)
		return status;
	p->handles++;
	user_write(self, f->r10, &handle, 8);
	return 0;
}

/* A wait or delay of *va (100 ns; negative: from now) as the tick it ends at. */
static u32 deadline(struct proc *p, u64 va, u64 *tick)
{
	long long t;

	if (user_read(p, &t, va, 8))
		return STATUS_ACCESS_VIOLATION;
	if (t < 0)
		t = -t;
	else
		t = (u64)t > system_time ? (long long)((u64)t - system_time) : 0;
	*tick = ticks + ((u64)t + TICK_100NS - 1) / TICK_100NS;
	if (*tick == ticks)
		++*tick;
	return 0;
}

static u32 wait_for(struct cpu *c, struct frame *f)
{
	struct thread *t = c->current;
	struct proc *target;
	u64 until = 0;
	u32 status = process_of(t->proc, f->r10, SYNCHRONIZE, &target);

	if (status)
		return status;
	if (f->r8) {
		status = deadline(t->proc, f->r8, &until);
		if (status)
			return status;
	}
	if (target->state == P_EXITED)
		return 0;
	t->wait_proc = target;
	thread_wait(t, until);
	return 0;
}

static u32 protect(struct proc *self, struct frame *f)
{
	struct proc *target;
	u64 va, size;
	u32 old = 0, status = process_of(self, f->r10, PROCESS_VM_OPERATION, &target);

	if (status)
		return status;
	if (user_read(self, &va, f->rdx, 8) || user_read(self, &size, f->r8, 8))
		return STATUS_ACCESS_VIOLATION;
	status = user_protect(target, va, size, (u32)f->r9, &old);
	if (status)
		return status;
	if (user_write(self, stack_arg(self, f, 5), &old, 4))
		return STATUS_ACCESS_VIOLATION;
	size = ((va & PAGE_MASK) + size + PAGE_MASK) & ~PAGE_MASK;
	va &= ~PAGE_MASK;
	user_write(self, f->rdx, &va, 8);
	user_write(self, f->r8, &size, 8);
	return 0;
}

static u32 allocate(struct proc *self, struct frame *f)
{
	struct proc *target;
	u64 va, size;
	u32 status = process_of(self, f->r10, PROCESS_VM_OPERATION, &target);

	if (status)
		return status;
	if (user_read(self, &va, f->rdx, 8) || user_read(self, &size, f->r9, 8))
		return STATUS_ACCESS_VIOLATION;
	if (va)
		return STATUS_CONFLICTING_ADDRESSES; /* only NULL: the kernel chooses */
	status = user_alloc(target, &va, &size, (u32)stack_arg(self, f, 6));
	if (status)
		return status;
	if (user_write(self, f->rdx, &va, 8) || user_write(self, f->r9, &size, 8))
		return STATUS_ACCESS_VIOLATION;
	return 0;
}

static u32 release(struct proc *self, struct frame *f)
{
	struct proc *target;
	u64 va, size;
	u32 status = process_of(self, f->r10, PROCESS_VM_OPERATION, &target);

	if (status)
		return status;
	if (user_read(self, &va, f->rdx, 8) || user_read(self, &size, f->r8, 8))
		return STATUS_ACCESS_VIOLATION;
	if ((u32)f->r9 != MEM_RELEASE || size)
		return STATUS_INVALID_PARAMETER;
	status = user_free(target, &va, &size);
	if (status)
		return status;
	user_write(self, f->r8, &size, 8);
	return 0;
}

/* ProcessBasicInformation only. */
static u32 query_information(struct proc *self, struct frame *f)
{
	struct proc *target;
	u64 info[6];
	u32 length = sizeof info, status = process_of(self, f->r10, PROCESS_QUERY_LIMITED, &target);

	if (status)
		return status;
	if (f->rdx != 0)
		return STATUS_INVALID_INFO_CLASS;
	if (f->r9 != sizeof info)
		return STATUS_INFO_LENGTH_MISMATCH;
	info[0] = target->id.exit_status;
	info[1] = target->id.peb;
	info[2] = (1 << boot->ncpu) - 1;
	info[3] = 8;
	info[4] = target->id.pid;
	info[5] = target->id.ppid;
	if (user_write(self, f->r8, info, sizeof info))
		return STATUS_ACCESS_VIOLATION;
	u64 at = stack_arg(self, f, 5);
	if (at && user_write(self, at, &length, 4))
		return STATUS_ACCESS_VIOLATION;
	return 0;
}

/* Only what SetProcessWorkingSetSize(-1, -1) asks: empty the working set. */
static u32 set_information(struct proc *self, struct frame *f)
{
	struct proc *target;
	u64 quota[4];
	u32 status = process_of(self, f->r10, PROCESS_SET_QUOTA, &target);

	if (status)
		return status;
	if (f->rdx != 1 || f->r9 < sizeof quota)
		return STATUS_INVALID_INFO_CLASS;
	if (user_read(self, quota, f->r8, sizeof quota))
		return STATUS_ACCESS_VIOLATION;
	if (quota[2] != ~0ULL || quota[3] != ~0ULL)
		return STATUS_INVALID_PARAMETER;
	trim(target);
	return 0;
}

/* NtDisplayString: a line of a user program on the serial port. */
static u32 display(struct proc *p, u64 string)
{
	struct { u16 length, maximum; u32 pad; u64 buffer; } us;

	if (user_read(p, &us, string, sizeof us) || us.length > 256)
		return STATUS_INVALID_PARAMETER;
	put_str("MSG ");
	put_dec(p->id.pid);
	put_char(' ');
	for (u64 i = 0; i + 1 < us.length; i += 2) {
		u16 ch;
		if (user_read(p, &ch, us.buffer + i, 2))
			break;
		put_char(ch >= 32 && ch < 127 ? (char)ch : '?');
	}
	put_char('\n');
	return 0;
}

/* Handle 0 means every other thread of the caller, as the first step of an exit. */
static void terminate_others(struct thread *self, u32 status)
{
	for (u32 i = 0; i < MAX_THREADS; i++) {
		struct thread *t = &threads[i];
		if (t == self || t->proc != self->proc)
			continue;
		if (t->state == T_READY || t->state == T_WAITING) {
			thread_terminate(t, status);
		} else if (t->state == T_RUNNING) {
			t->ending = 1;
			t->exit_status = status;
			cpus[t->cpu].resched = 1;
			poke(&cpus[t->cpu]);
		}
	}
}

static u32 terminate(struct cpu *c, struct frame *f)
{
	struct thread *t = c->current;
	struct proc *target;
	u32 code = (u32)f->rdx, status;

	if (f->r10 == 0) {
		terminate_others(t, code);
		return 0;
	}
	status = process_of(t->proc, f->r10, PROCESS_TERMINATE, &target);
	if (status)
		return status;
	if (target->state != P_ALIVE)
		return STATUS_PROCESS_IS_TERMINATING;
	if (target->id.flags & NT_PROC_KERNEL)
		return STATUS_ACCESS_DENIED;
	proc_terminate(target, code);
	return 0;
}

void syscall(struct cpu *c, struct frame *f)
{
	struct thread *t = c->current;
	struct proc *p = t->proc;
	u32 number = (u32)f->rax, status = 0;
	u64 until;

	stat_syscalls++;
	p->syscalls++;
	if (churn_off && (number == SYS_NtCreateUserProcess ||
			  (number == SYS_NtTerminateProcess && f->r10 == CURRENT_PROCESS &&
			   (u32)f->rdx != STATUS_VIRUS_INFECTED))) {
		park(t, f);
		return;
	}
	switch (number) {
	case SYS_NtTerminateProcess: status = terminate(c, f); break;
	case SYS_NtTerminateThread:
		if (f->r10 && f->r10 != CURRENT_THREAD) {
			status = STATUS_INVALID_HANDLE;
			break;
		}
		t->ending = 1;
		t->exit_status = (u32)f->rdx;
		break;
	case SYS_NtOpenProcess: status = open_process(p, f); break;
	case SYS_NtClose: status = handle_close(p, f->r10); break;
	case SYS_NtYieldExecution: c->resched = 1; break;
	case SYS_NtDelayExecution:
		status = deadline(p, f->rdx, &until);
		if (!status)
			thread_wait(t, until);
		break;
	case SYS_NtWaitForSingleObject: status = wait_for(c, f); break;
	case SYS_NtCreateUserProcess: status = create_process(p, f); break;
	case SYS_NtProtectVirtualMemory: status = protect(p, f); break;
	case SYS_NtAllocateVirtualMemory: status = allocate(p, f); break;
	case SYS_NtFreeVirtualMemory: status = release(p, f); break;
	case SYS_NtQueryInformationProcess: status = query_information(p, f); break;
	case SYS_NtSetInformationProcess: status = set_information(p, f); break;
	case SYS_NtQuerySystemTime:
		status = user_write(p, f->r10, &system_time, 8) ? STATUS_ACCESS_VIOLATION : 0;
		break;
	case SYS_NtDisplayString: status = display(p, f->r10); break;
	default: status = STATUS_INVALID_SYSTEM_SERVICE;
	}
	f->rax = status;
}
