/*
 * syscheck.c - checks the system calls as a program sees them, and above all that
 * they keep every register they should. It ends with 0, or with DEAD02xx where xx
 * says which check failed.
 */
#include "program.h"

#define STATUS_INVALID_HANDLE 0xc0000008
#define STATUS_INVALID_CID 0xc000000b
#define STATUS_PROCESS_IS_TERMINATING 0xc000010a
#define STATUS_INVALID_PAGE_PROTECTION 0xc0000045
#define STATUS_INVALID_PARAMETER 0xc000000d
#define STATUS_INVALID_PARAMETER_MIX 0xc0000030
#define STATUS_ACCESS_DENIED 0xc0000022
#define TERMINATE_QUERY_WAIT 0x101001
#define STATUS_VIRUS_INFECTED 0xc0000906

static void check(u32 number, int good)
{
	if (!good)
		ExitProcess(0xdead0200 + number);
}

/* In: rax = system call, rcx and rdx = arguments. Returns how many registers of
   those that a system call keeps came back changed. */
u32 registers_changed(u32 number, usize a, const void *b, u32 *status);
__asm__(".text\n.balign 16\n.globl registers_changed\nregisters_changed:\n"
	"	pushq %rbx\n	pushq %rbp\n	pushq %rsi\n	pushq %rdi\n"
	"	pushq %r12\n	pushq %r13\n	pushq %r14\n	pushq %r15\n"
	"	subq $0xb8, %rsp\n"
	"	movups %xmm6, 0x20(%rsp)\n	movups %xmm7, 0x30(%rsp)\n	movups %xmm15, 0x40(%rsp)\n"
	"	movq %r9, 0x60(%rsp)\n"
	"	movl %ecx, %eax\n	movq %rdx, %r10\n	movq %r8, %rdx\n"
	"	movl $0x1111, %ebx\n	movl $0x2222, %ebp\n	movl $0x3333, %esi\n	movl $0x4444, %edi\n"
	"	movl $0x5555, %r8d\n	movl $0x6666, %r9d\n	movl $0x7777, %r12d\n	movl $0x8888, %r13d\n"
	"	movl $0x9999, %r14d\n	movl $0xaaaa, %r15d\n"
	"	movq %rbx, %xmm0\n	movq %rbp, %xmm6\n	movq %rsi, %xmm7\n	movq %rdi, %xmm15\n"
	"	movq %rdx, 0x68(%rsp)\n	movq %r10, 0x70(%rsp)\n	movq %rsp, 0x78(%rsp)\n"
	"	syscall\n"
	"	movl %eax, 0x80(%rsp)\n"
	"	xorl %eax, %eax\n"
	".macro differs a, b\n	xorl %ecx, %ecx\n	cmpq \\a, \\b\n	setne %cl\n	addl %ecx, %eax\n.endm\n"
	"	differs $0x1111, %rbx\n	differs $0x2222, %rbp\n	differs $0x3333, %rsi\n	differs $0x4444, %rdi\n"
	"	differs $0x5555, %r8\n	differs $0x6666, %r9\n	differs $0x7777, %r12\n	differs $0x8888, %r13\n"
	"	differs $0x9999, %r14\n	differs $0xaaaa, %r15\n"
	"	differs 0x68(%rsp), %rdx\n	differs 0x70(%rsp), %r10\n	differs 0x78(%rsp), %rsp\n"
	"	movq %xmm0, %rdx\n	differs $0x1111, %rdx\n	movq %xmm6, %rdx\n	differs $0x2222, %rdx\n"
	"	movq %xmm7, %rdx\n	differs $0x3333, %rdx\n	movq %xmm15, %rdx\n	differs $0x4444, %rdx\n"
	"	movl 0x80(%rsp), %ecx\n	movq 0x60(%rsp), %rdx\n	movl %ecx, (%rdx)\n"
	"	movups 0x20(%rsp), %xmm6\n	movups 0x30(%rsp), %xmm7\n	movups 0x40(%rsp), %xmm15\n"
	"	addq $0xb8, %rsp\n"
	"	popq %r15\n	popq %r14\n	popq %r13\n	popq %r12\n"
	"	popq %rdi\n	popq %rsi\n	popq %rbp\n	popq %rbx\n"
	"	ret\n");

/* The way of a system call through INT 2Eh keeps rcx and r11 too. */
static int int2e_keeps(void)
{
	usize c = 0xcccc, a = 0x46; /* NtYieldExecution */
	register usize r11 __asm__("r11") = 0xbbbb;

	__asm__ volatile("int $0x2e" : "+a"(a), "+c"(c), "+r"(r11) : : "memory");
	return c == 0xcccc && r11 == 0xbbbb && a == 0;
}

static void check_registers(void)
{
	long long delay = -100000; /* 10 ms: other threads run in between */
	u32 status = 1;

	check(1, registers_changed(0x34, 0, &delay, &status) == 0 && status == 0);
	check(2, registers_changed(0x46, 0, 0, &status) == 0);
	check(3, registers_changed(0x0f, 0x7777, 0, &status) == 0 && status == STATUS_INVALID_HANDLE);
	check(4, registers_changed(0xfff, 0, 0, &status) == 0 && status == 0xc000001c);
	check(5, int2e_keeps());
}

/* What NtOpenProcess refuses, and what a handle does not grant. */
static void check_access(u32 pid)
{
	struct client_id id = { pid, 0 }, thread = { pid, pid }, system = { 4, 0 };
	u32 attributes[12] = { 48 }, status;
	handle h = 0;

	attributes[0] = 40;
	check(60, NtOpenProcess(&h, 1, attributes, &id) == STATUS_INVALID_PARAMETER);
	attributes[0] = 48;
	attributes[6] = 1;
	check(61, NtOpenProcess(&h, 1, attributes, &id) == STATUS_INVALID_PARAMETER);
	attributes[6] = 0;
	attributes[4] = 0x1000;
	check(62, NtOpenProcess(&h, 1, attributes, &id) == STATUS_INVALID_PARAMETER_MIX);
	attributes[4] = 0;
	check(63, NtOpenProcess(&h, 1, attributes, 0) == STATUS_INVALID_PARAMETER_MIX);
	check(64, NtOpenProcess(&h, 1, attributes, &thread) == STATUS_INVALID_CID);
	check(65, NtOpenProcess(&h, 0x1000, attributes, &system) == STATUS_ACCESS_DENIED);
	check(66, NtOpenProcess(&h, 0, attributes, &id) == STATUS_ACCESS_DENIED && h == 0);
	h = OpenProcess(0x1000, 0, pid);
	check(67, h != 0 && GetExitCodeProcess(h, &status) && status == 0x103);
	check(68, NtTerminateProcess(h, 1) == STATUS_ACCESS_DENIED && WaitForSingleObject(h, 1) == STATUS_ACCESS_DENIED);
	check(69, CloseHandle(h));
	h = OpenProcess(1, 0, pid);
	check(70, h != 0 && !GetExitCodeProcess(h, &status) && CloseHandle(h));
	h = OpenProcess(0x2000000, 0, pid); /* MAXIMUM_ALLOWED */
	check(71, WaitForSingleObject(h, 1) == 0x102 && GetExitCodeProcess(h, &status) && CloseHandle(h));
}

/* A process opened by its id, ended through the handle, and its status. */
static void check_process(const u16 *name)
{
	struct client_id nobody = { 0xfffffff0, 0 };
	u32 attributes[12] = { 48 }, status = 0, pid;
	handle created = StartProgram(name), h = 0;

	check(10, created != 0);
	pid = GetProcessId(created);
	check(11, pid != 0 && pid != GetCurrentProcessId());
	check(12, GetExitCodeProcess(created, &status) && status == 0x103);
	check(13, CloseHandle(created) && !CloseHandle(created));
	check(14, NtOpenProcess(&h, 1, attributes, &nobody) == STATUS_INVALID_CID);
	check_access(pid);
	h = OpenProcess(TERMINATE_QUERY_WAIT, 0, pid);
	check(15, h != 0);
	check(16, WaitForSingleObject(h, 50) == 0x102);
	check(17, NtTerminateProcess(h, STATUS_VIRUS_INFECTED) == 0);
	check(18, WaitForSingleObject(h, 10000) == 0);
	check(19, NtTerminateProcess(h, 1) == STATUS_PROCESS_IS_TERMINATING);
	check(20, GetExitCodeProcess(h, &status) && status == STATUS_VIRUS_INFECTED);
	check(21, CloseHandle(h) && NtTerminateProcess(h, 1) == STATUS_INVALID_HANDLE);
}

static void check_memory(void)
{
	u8 *m = VirtualAlloc(0, 0x5000, MEM_COMMIT_RESERVE, PAGE_READWRITE), *n;
	void *at = m;
	usize size = 1;
	u32 old = 0;

	check(30, m != 0 && ((usize)m & 0xffff) == 0);
	m[0x4fff] = 7;
	check(31, m[0] == 0 && m[0x4fff] == 7);
	at = m + 0x1010;
	check(32, NtProtectVirtualMemory(NT_CURRENT_PROCESS, &at, &size, PAGE_READONLY, &old) == 0 &&
	      at == m + 0x1000 && size == 0x1000 && old == PAGE_READWRITE);
	check(33, NtProtectVirtualMemory(NT_CURRENT_PROCESS, &at, &size, 3, &old) == STATUS_INVALID_PAGE_PROTECTION);
	n = VirtualAlloc(0, 0x1000, MEM_COMMIT_RESERVE, PAGE_READWRITE);
	check(34, n != 0 && (n + 0x1000 <= m || n >= m + 0x5000));
	check(35, VirtualFree(m, 0, MEM_RELEASE) && !VirtualFree(m, 0, MEM_RELEASE));
	check(36, VirtualAlloc(0, 0x5000, MEM_COMMIT_RESERVE, PAGE_READWRITE) == m && m[0x4fff] == 0);
}

/* Pointers that lead nowhere are refused, and do no harm. */
static void check_bad_pointers(void)
{
	struct client_id id = { GetCurrentProcessId(), 0 };
	u32 attributes[12] = { 48 };

	check(40, NtOpenProcess((handle *)0x10, 1, attributes, &id) == 0xc0000005);
	check(41, NtOpenProcess((handle *)0xfffff78000000000, 1, attributes, &id) == 0xc0000005);
	check(42, NtDelayExecution(0, (void *)0x7ffffffff000) == 0xc0000005);
	check(43, NtQuerySystemTime((void *)0x8000000000000000) == 0xc0000005);
	check(44, NtQuerySystemTime((void *)(0x7ffe0000)) == 0xc0000005); /* read-only */
}

u32 WINAPI start(void *peb)
{
	static const u16 burn[] = u"C:\\Program Files\\Test\\burn.exe", service[] = u"service.exe";
	long long time = 0;

	(void)peb;
	check_registers();
	check_memory();
	check_bad_pointers();
	check(50, NtQuerySystemTime(&time) == 0 && time > 0x1d00000000000000 / 16);
	check_process(burn);
	check_process(service);
	return 0;
}
