/*
 * nt.h - the little of the Windows API that the guest's programs use. Written
 * for 64- and 32-bit code; sizes follow the target.
 */
#ifndef NT_H
#define NT_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef __SIZE_TYPE__ usize;
typedef void *handle;

#define WINAPI __attribute__((stdcall)) /* ignored for x86-64 */
#define EXPORT __declspec(dllexport)
#define NT_CURRENT_PROCESS ((handle)(usize)-1)
#define PAGE_NOACCESS 1
#define PAGE_READONLY 2
#define PAGE_READWRITE 4
#define PAGE_EXECUTE_READ 0x20
#define MEM_COMMIT_RESERVE 0x3000
#define MEM_RELEASE 0x8000

struct unicode_string {
	u16 length, maximum; /* bytes */
	const u16 *buffer;
};

struct client_id {
	usize process, thread;
};

/* RTL_USER_PROCESS_PARAMETERS, as far as process creation reads it. */
struct process_parameters {
	u32 maximum, length;
	u8 reserved[sizeof(void *) == 8 ? 0x58 : 0x30];
	struct unicode_string image_path; /* 60h, or 38h in 32-bit code */
	struct unicode_string command_line;
};

/* PROCESS_BASIC_INFORMATION, class 0 of NtQueryInformationProcess. */
struct basic_information {
	usize exit_status, peb, affinity, priority, pid, parent;
};

u32 WINAPI NtTerminateProcess(handle, u32);
u32 WINAPI NtTerminateThread(handle, u32);
u32 WINAPI NtOpenProcess(handle *, u32, void *, struct client_id *);
u32 WINAPI NtClose(handle);
u32 WINAPI NtDelayExecution(u32, const long long *);
u32 WINAPI NtYieldExecution(void);
u32 WINAPI NtWaitForSingleObject(handle, u32, const long long *);
u32 WINAPI NtAllocateVirtualMemory(handle, void **, usize, usize *, u32, u32);
u32 WINAPI NtFreeVirtualMemory(handle, void **, usize *, u32);
u32 WINAPI NtProtectVirtualMemory(handle, void **, usize *, u32, u32 *);
u32 WINAPI NtQueryInformationProcess(handle, u32, void *, u32, u32 *);
u32 WINAPI NtSetInformationProcess(handle, u32, void *, u32);
u32 WINAPI NtQuerySystemTime(long long *);
u32 WINAPI NtCreateUserProcess(handle *, handle *, u32, u32, void *, void *, u32, u32,
			       struct process_parameters *, void *, void *);
u32 WINAPI NtDisplayString(const struct unicode_string *);

void WINAPI Sleep(u32 milliseconds);
void WINAPI ExitProcess(u32 status);
int WINAPI SwitchToThread(void);
u64 WINAPI GetTickCount64(void);
void *WINAPI VirtualAlloc(void *, usize, u32, u32);
int WINAPI VirtualFree(void *, usize, u32);
int WINAPI VirtualProtect(void *, usize, u32, u32 *);
int WINAPI SetProcessWorkingSetSize(handle, usize, usize);
u32 WINAPI WaitForSingleObject(handle, u32);
handle WINAPI OpenProcess(u32, int, u32);
int WINAPI TerminateProcess(handle, u32);
int WINAPI CloseHandle(handle);
u32 WINAPI GetCurrentProcessId(void);
u32 WINAPI GetProcessId(handle);
int WINAPI GetExitCodeProcess(handle, u32 *);
/* Not in Windows: CreateProcessW without the nine arguments nobody needs here. */
handle WINAPI StartProgram(const u16 *name);
void WINAPI OutputDebugStringW(const u16 *);

#endif
