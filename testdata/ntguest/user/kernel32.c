/*
 * kernel32.c - the Win32 calls of the guest's programs, over ntdll.
 */
#include "nt.h"

usize WINAPI RtlStringLength(const u16 *);

static u64 volatile *const tick_count = (u64 volatile *)0x7ffe0320; /* KUSER_SHARED_DATA */

EXPORT void WINAPI Sleep(u32 milliseconds)
{
	long long t = -10000LL * milliseconds;
	NtDelayExecution(0, &t);
}

EXPORT void WINAPI ExitProcess(u32 status)
{
	NtTerminateProcess(0, status);
	NtTerminateProcess(NT_CURRENT_PROCESS, status);
	for (;;)
		;
}

EXPORT int WINAPI SwitchToThread(void)
{
	return NtYieldExecution() == 0;
}

EXPORT u64 WINAPI GetTickCount64(void)
{
	return *tick_count * 1000 / 64;
}

EXPORT void *WINAPI VirtualAlloc(void *at, usize size, u32 type, u32 protect)
{
	return NtAllocateVirtualMemory(NT_CURRENT_PROCESS, &at, 0, &size, type, protect) ? (void *)0 : at;
}

EXPORT int WINAPI VirtualFree(void *at, usize size, u32 type)
{
	return NtFreeVirtualMemory(NT_CURRENT_PROCESS, &at, &size, type) == 0;
}

EXPORT int WINAPI VirtualProtect(void *at, usize size, u32 protect, u32 *old)
{
	return NtProtectVirtualMemory(NT_CURRENT_PROCESS, &at, &size, protect, old) == 0;
}

/* Both limits -1: give up every page that can be brought back. */
EXPORT int WINAPI SetProcessWorkingSetSize(handle process, usize minimum, usize maximum)
{
	usize quota[6] = { 0, 0, minimum, maximum, 0, 0 };
	return NtSetInformationProcess(process, 1, quota, sizeof quota) == 0;
}

EXPORT u32 WINAPI WaitForSingleObject(handle h, u32 milliseconds)
{
	long long t = -10000LL * milliseconds;
	return NtWaitForSingleObject(h, 0, milliseconds == ~0u ? (void *)0 : &t);
}

EXPORT handle WINAPI OpenProcess(u32 access, int inherit, u32 pid)
{
	u32 attributes[12] = { sizeof(void *) == 8 ? 48 : 24 };
	struct client_id id = { pid, 0 };
	handle h = 0;
	(void)inherit;
	return NtOpenProcess(&h, access, attributes, &id) ? (void *)0 : h;
}

EXPORT int WINAPI TerminateProcess(handle h, u32 status)
{
	return NtTerminateProcess(h, status) == 0;
}

EXPORT int WINAPI CloseHandle(handle h)
{
	return NtClose(h) == 0;
}

EXPORT u32 WINAPI GetCurrentProcessId(void)
{
	usize pid; /* TEB.ClientId.UniqueProcess */
#ifdef __x86_64__
	__asm__("movq %%gs:0x40, %0" : "=r"(pid));
#else
	__asm__("movl %%fs:0x20, %0" : "=r"(pid));
#endif
	return (u32)pid;
}

EXPORT u32 WINAPI GetProcessId(handle h)
{
	struct basic_information b;
	return NtQueryInformationProcess(h, 0, &b, sizeof b, (void *)0) ? 0 : (u32)b.pid;
}

EXPORT int WINAPI GetExitCodeProcess(handle h, u32 *status)
{
	struct basic_information b;
	if (NtQueryInformationProcess(h, 0, &b, sizeof b, (void *)0))
		return 0;
	*status = (u32)b.exit_status;
	return 1;
}

EXPORT handle WINAPI StartProgram(const u16 *name)
{
	struct process_parameters p;
	handle process = 0, thread = 0;
	u8 *z = (u8 *)&p;

	for (usize i = 0; i < sizeof p; i++)
		((volatile u8 *)z)[i] = 0;
	p.maximum = p.length = sizeof p;
	p.image_path.length = (u16)(2 * RtlStringLength(name));
	p.image_path.maximum = (u16)(p.image_path.length + 2);
	p.image_path.buffer = name;
	p.command_line = p.image_path;
	if (NtCreateUserProcess(&process, &thread, 0x1fffff, 0x1fffff, 0, 0, 0, 0, &p, 0, 0))
		return 0;
	return process;
}

EXPORT void WINAPI OutputDebugStringW(const u16 *s)
{
	struct unicode_string us;
	us.length = (u16)(2 * RtlStringLength(s));
	us.maximum = us.length;
	us.buffer = s;
	NtDisplayString(&us);
}

int WINAPI DllMain(handle module, u32 reason, void *reserved)
{
	(void)module, (void)reason, (void)reserved;
	return 1;
}

/* A pointer, so that the file has something to relocate. */
__attribute__((used)) static void *volatile dll_main_at = (void *)DllMain;
