/*
 * wow64.c - system calls of 32-bit programs: arguments widened, results
 * narrowed. Handles are sign-extended, so that -1 stays the current process.
 */
#include "nt.h"
#include "sysnum.h"

static handle wide_handle(u32 h)
{
	return (handle)(long long)(int)h;
}

static void *wide(u32 p)
{
	return (void *)(usize)p;
}

/* Calls with an in-out base address and an in-out size. */
static u32 memory_call(u32 number, const u32 *a)
{
	u32 *base32 = wide(a[1]), *size32 = wide(number == SYS_NtAllocateVirtualMemory ? a[3] : a[2]);
	void *base = wide(*base32);
	usize size = *size32;
	u32 status;

	if (number == SYS_NtAllocateVirtualMemory)
		status = NtAllocateVirtualMemory(wide_handle(a[0]), &base, 0, &size, a[4], a[5]);
	else if (number == SYS_NtFreeVirtualMemory)
		status = NtFreeVirtualMemory(wide_handle(a[0]), &base, &size, a[3]);
	else
		status = NtProtectVirtualMemory(wide_handle(a[0]), &base, &size, a[3], wide(a[4]));
	*base32 = (u32)(usize)base;
	*size32 = (u32)size;
	return status;
}

static u32 open_process(const u32 *a)
{
	const u32 *id32 = wide(a[3]);
	struct client_id id = { id32[0], id32[1] };
	u64 attributes[6] = { 48 };
	handle h = 0;
	u32 status = NtOpenProcess(&h, a[1], attributes, &id);

	*(u32 *)wide(a[0]) = (u32)(usize)h;
	return status;
}

static u32 set_information(const u32 *a)
{
	const int *quota32 = wide(a[2]);
	usize quota[6];

	if (a[1] != 1 || a[3] != 24)
		return 0xc0000003; /* STATUS_INVALID_INFO_CLASS */
	for (u32 i = 0; i < 6; i++)
		quota[i] = (usize)(long long)quota32[i];
	return NtSetInformationProcess(wide_handle(a[0]), 1, quota, sizeof quota);
}

static u32 query_information(const u32 *a)
{
	struct basic_information b;
	u32 *out = wide(a[2]), status;

	if (a[1] != 0 || a[3] != 24)
		return 0xc0000003; /* STATUS_INVALID_INFO_CLASS */
	status = NtQueryInformationProcess(wide_handle(a[0]), 0, &b, sizeof b, (void *)0);
	if (!status)
		for (u32 i = 0; i < 6; i++)
			out[i] = (u32)((usize *)&b)[i];
	return status;
}

static u32 display(const u32 *a)
{
	const u32 *us32 = wide(a[0]);
	struct unicode_string us = { (u16)us32[0], (u16)(us32[0] >> 16), wide(us32[1]) };
	return NtDisplayString(&us);
}

EXPORT u32 Wow64SystemServiceEx(u32 number, const u32 *a)
{
	switch (number) {
	case SYS_NtTerminateProcess: return NtTerminateProcess(wide_handle(a[0]), a[1]);
	case SYS_NtTerminateThread: return NtTerminateThread(wide_handle(a[0]), a[1]);
	case SYS_NtOpenProcess: return open_process(a);
	case SYS_NtClose: return NtClose(wide_handle(a[0]));
	case SYS_NtDelayExecution: return NtDelayExecution(a[0], wide(a[1]));
	case SYS_NtYieldExecution: return NtYieldExecution();
	case SYS_NtWaitForSingleObject: return NtWaitForSingleObject(wide_handle(a[0]), a[1], wide(a[2]));
	case SYS_NtAllocateVirtualMemory:
	case SYS_NtFreeVirtualMemory:
	case SYS_NtProtectVirtualMemory: return memory_call(number, a);
	case SYS_NtQueryInformationProcess: return query_information(a);
	case SYS_NtSetInformationProcess: return set_information(a);
	case SYS_NtQuerySystemTime: return NtQuerySystemTime(wide(a[0]));
	case SYS_NtDisplayString: return display(a);
	}
	return 0xc000001c; /* STATUS_INVALID_SYSTEM_SERVICE */
}

int DllMain(handle module, u32 reason, void *reserved)
{
	(void)module, (void)reason, (void)reserved;
	return 1;
}

/* A pointer, so that the file has something to relocate. */
__attribute__((used)) static void *volatile dll_main_at = (void *)DllMain;
