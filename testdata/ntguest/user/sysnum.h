/*
 * sysnum.h - system call numbers, shared by ntdll's stubs and the runtime.
 * They are those of Windows 10.0.19041; the guest uses them for every build, as
 * callers must take them from ntdll anyway.
 */
#ifndef SYSNUM_H
#define SYSNUM_H
#define SYS_NtWaitForSingleObject    0x04
#define SYS_NtClose                  0x0f
#define SYS_NtAllocateVirtualMemory  0x18
#define SYS_NtQueryInformationProcess 0x19
#define SYS_NtSetInformationProcess  0x1c
#define SYS_NtFreeVirtualMemory      0x1e
#define SYS_NtOpenProcess            0x26
#define SYS_NtTerminateProcess       0x2c
#define SYS_NtDelayExecution         0x34
#define SYS_NtYieldExecution         0x46
#define SYS_NtProtectVirtualMemory   0x50
#define SYS_NtTerminateThread        0x53
#define SYS_NtQuerySystemTime        0x5a
#define SYS_NtCreateUserProcess      0xc8
#define SYS_NtDisplayString          0xe0
#endif
