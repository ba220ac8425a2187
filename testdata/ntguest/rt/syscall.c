/*
 * syscall.c - the NT system calls that the guest's programs use.
 *
 * The numbers are those of user/sysnum.h.
 */
#include "rt.h"
#include "../user/sysnum.h"

#define CURRENT_THREAD ((usize)-2)
#define MEM_RELEASE 0x8000
#define PROCESS_TERMINATE 1
#define PROCESS_VM_OPERATION 8
#define PROCESS_SET_QUOTA 0x100
#define PROCESS_QUERY_LIMITED 0x1000
#define PROCESS_ALL_ACCESS 0x1fffffu
#define SYNCHRONIZE 0x100000
#define PARAMETERS_IMAGE_PATH (sizeof(usize) == 8 ? 0x60 : 0x38) /* RTL_USER_PROCESS_PARAMETERS.ImagePathName */

struct unicode_string {
	u16 length, maximum;
	usize buffer;
};

/*
 * Argument n: as Windows x64 passes them in r10, rdx, r8, r9, then on the user stack
 * from [rsp+28h] on; in 32-bit code all on the stack, which edx points to: to the
 * arguments for INT 2Eh, with two return addresses before them for SYSENTER. 0 where
 * it cannot be read.
 */
usize arg(struct proc *p, struct frame *f, u32 n)
{
	usize v = 0, at;
#ifdef __x86_64__
	switch (n) {
	case 1: return f->r10;
	case 2: return f->dx;
	case 3: return f->r8;
	case 4: return f->r9;
	}
	at = f->sp + 0x28 + 8 * (n - 5);
#else
	at = f->dx + 4 * (n - 1) + (f->vector == VECTOR_SYSCALL ? 8 : 0);
#endif
	return user_read(p, &v, at, sizeof v) ? 0 : v;
}

/* A word of user memory, 0 or -1. */
static int read_word(struct proc *p, u64 *to, usize va)
{
	*to = 0;
	return user_read(p, to, va, sizeof(usize));
}

/* Have the thread repeat this call when churn goes on. */
static void park(struct thread *t, struct frame *f)
{
	f->ip -= 2; /* SYSCALL, SYSENTER and INT 2Eh are two bytes long */
	t->parked = 1;
	thread_wait(t, 0);
}

/* The base name of a UNICODE_STRING path in user memory, as ASCII. */
static u32 read_name(struct proc *p, u64 string, char *name, u64 room)
{
	struct unicode_string us;
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
	usize parameters = arg(self, f, 9), handle = 0, zero = 0;
	u32 status = read_name(self, parameters + PARAMETERS_IMAGE_PATH, name, sizeof name);
	struct proc *p;

	if (status)
		return status;
	if (user_write(self, arg(self, f, 1), &zero, sizeof zero) || user_write(self, arg(self, f, 2), &zero, sizeof zero))
		return STATUS_ACCESS_VIOLATION;
	p = proc_start(name, self->id.pid, 0, &status);
	if (!p)
		return status;
	status = handle_open(self, p->id.eprocess, PROCESS_ALL_ACCESS, &handle);
	if (status)
		return status;
	p->handles++;
	user_write(self, arg(self, f, 1), &handle, sizeof handle);
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
	u32 status = process_of(t->proc, arg(t->proc, f, 1), SYNCHRONIZE, &target);
	usize timeout = arg(t->proc, f, 3);

	if (status)
		return status;
	if (timeout) {
		status = deadline(t->proc, timeout, &until);
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
	usize va_at = arg(self, f, 2), size_at = arg(self, f, 3);
	u32 old = 0, status = process_of(self, arg(self, f, 1), PROCESS_VM_OPERATION, &target);

	if (status)
		return status;
	if (read_word(self, &va, va_at) || read_word(self, &size, size_at))
		return STATUS_ACCESS_VIOLATION;
	status = user_protect(target, va, size, (u32)arg(self, f, 4), &old);
	if (status)
		return status;
	if (user_write(self, arg(self, f, 5), &old, 4))
		return STATUS_ACCESS_VIOLATION;
	size = ((va & PAGE_MASK) + size + PAGE_MASK) & ~PAGE_MASK;
	va &= ~PAGE_MASK;
	user_write(self, va_at, &va, sizeof(usize));
	user_write(self, size_at, &size, sizeof(usize));
	return 0;
}

static u32 allocate(struct proc *self, struct frame *f)
{
	struct proc *target;
	u64 va, size;
	usize va_at = arg(self, f, 2), size_at = arg(self, f, 4);
	u32 status = process_of(self, arg(self, f, 1), PROCESS_VM_OPERATION, &target);

	if (status)
		return status;
	if (read_word(self, &va, va_at) || read_word(self, &size, size_at))
		return STATUS_ACCESS_VIOLATION;
	if (va)
		return STATUS_CONFLICTING_ADDRESSES; /* only NULL: the kernel chooses */
	status = user_alloc(target, &va, &size, (u32)arg(self, f, 6));
	if (status)
		return status;
	if (user_write(self, va_at, &va, sizeof(usize)) || user_write(self, size_at, &size, sizeof(usize)))
		return STATUS_ACCESS_VIOLATION;
	return 0;
}

static u32 release(struct proc *self, struct frame *f)
{
	struct proc *target;
	u64 va, size;
	usize size_at = arg(self, f, 3);
	u32 status = process_of(self, arg(self, f, 1), PROCESS_VM_OPERATION, &target);

	if (status)
		return status;
	if (read_word(self, &va, arg(self, f, 2)) || read_word(self, &size, size_at))
		return STATUS_ACCESS_VIOLATION;
	if ((u32)arg(self, f, 4) != MEM_RELEASE || size)
		return STATUS_INVALID_PARAMETER;
	status = user_free(target, &va, &size);
	if (status)
		return status;
	user_write(self, size_at, &size, sizeof(usize));
	return 0;
}

/* ProcessBasicInformation only. */
static u32 query_information(struct proc *self, struct frame *f)
{
	struct proc *target;
	usize info[6];
	u32 length = sizeof info, status = process_of(self, arg(self, f, 1), PROCESS_QUERY_LIMITED, &target);

	if (status)
		return status;
	if (arg(self, f, 2) != 0)
		return STATUS_INVALID_INFO_CLASS;
	if (arg(self, f, 4) != sizeof info)
		return STATUS_INFO_LENGTH_MISMATCH;
	info[0] = target->id.exit_status;
	info[1] = (usize)target->id.peb;
	info[2] = (1 << boot->ncpu) - 1;
	info[3] = 8;
	info[4] = target->id.pid;
	info[5] = target->id.ppid;
	if (user_write(self, arg(self, f, 3), info, sizeof info))
		return STATUS_ACCESS_VIOLATION;
	usize at = arg(self, f, 5);
	if (at && user_write(self, at, &length, 4))
		return STATUS_ACCESS_VIOLATION;
	return 0;
}

/* Only what SetProcessWorkingSetSize(-1, -1) asks: empty the working set. */
static u32 set_information(struct proc *self, struct frame *f)
{
	struct proc *target;
	usize quota[4];
	u32 status = process_of(self, arg(self, f, 1), PROCESS_SET_QUOTA, &target);

	if (status)
		return status;
	if (arg(self, f, 2) != 1 || arg(self, f, 4) < sizeof quota)
		return STATUS_INVALID_INFO_CLASS;
	if (user_read(self, quota, arg(self, f, 3), sizeof quota))
		return STATUS_ACCESS_VIOLATION;
	if (quota[2] != (usize)-1 || quota[3] != (usize)-1)
		return STATUS_INVALID_PARAMETER;
	trim(target);
	return 0;
}

/* NtDisplayString: a line of a user program on the serial port. */
static u32 display(struct proc *p, u64 string)
{
	struct unicode_string us;

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
	usize handle = arg(t->proc, f, 1);
	u32 code = (u32)arg(t->proc, f, 2), status;

	if (handle == 0) {
		terminate_others(t, code);
		return 0;
	}
	status = process_of(t->proc, handle, PROCESS_TERMINATE, &target);
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
	u32 number = (u32)f->ax, status = 0;
	usize thread;
	u64 until;

	stat_syscalls++;
	p->syscalls++;
	if (churn_off && (number == SYS_NtCreateUserProcess ||
			  (number == SYS_NtTerminateProcess && arg(p, f, 1) == CURRENT_PROCESS &&
			   (u32)arg(p, f, 2) != STATUS_VIRUS_INFECTED))) {
		park(t, f);
		return;
	}
	switch (number) {
	case SYS_NtTerminateProcess: status = terminate(c, f); break;
	case SYS_NtTerminateThread:
		thread = arg(p, f, 1);
		if (thread && thread != CURRENT_THREAD) {
			status = STATUS_INVALID_HANDLE;
			break;
		}
		t->ending = 1;
		t->exit_status = (u32)arg(p, f, 2);
		break;
	case SYS_NtOpenProcess: status = open_process(p, f); break;
	case SYS_NtClose: status = handle_close(p, arg(p, f, 1)); break;
	case SYS_NtYieldExecution: c->resched = 1; break;
	case SYS_NtDelayExecution:
		status = deadline(p, arg(p, f, 2), &until);
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
		status = user_write(p, arg(p, f, 1), &system_time, 8) ? STATUS_ACCESS_VIOLATION : 0;
		break;
	case SYS_NtDisplayString: status = display(p, arg(p, f, 1)); break;
	default: status = STATUS_INVALID_SYSTEM_SERVICE;
	}
	f->ax = status;
}
