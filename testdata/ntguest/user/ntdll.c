/*
 * ntdll.c - the guest's ntdll: system call stubs byte for byte as Windows 10
 * lays them out, thread start, and nothing else.
 */
#include "nt.h"
#include "sysnum.h"

#define STR2(x) #x
#define STR(x) STR2(x)

#ifdef __x86_64__
/* KUSER_SHARED_DATA.SystemCall (7FFE0308h) chooses between SYSCALL and INT 2Eh. */
#define STUB(name, args)                                       \
	__asm__(".text\n.balign 32\n.globl " #name "\n" #name ":\n"    \
		"	.byte 0x4c, 0x8b, 0xd1\n" /* mov r10, rcx, as Microsoft's assembler encodes it */ \
		"	movl $" STR(SYS_##name) ", %eax\n"             \
		"	testb $1, 0x7ffe0308\n"                        \
		"	jne 1f\n"                                      \
		"	syscall\n"                                     \
		"	ret\n"                                         \
		"1:	int $0x2e\n"                                   \
		"	ret\n")
#elif defined(NATIVE)
/* 32-bit Windows: SYSENTER, or in one of the stubs INT 2Eh, by the same registers. */
#define STUB_BY(name, args, way)                               \
	__asm__(".text\n.balign 16\n.globl _" #name "@" #args "\n"     \
		"_" #name "@" #args ":\n"                              \
		"	movl $" STR(SYS_##name) ", %eax\n"             \
		"	call _" #way "\n"                              \
		"	ret $" #args "\n")
#define STUB(name, args) STUB_BY(name, args, KiFastSystemCall)

__asm__(".text\n.balign 16\n.globl _KiFastSystemCall\n_KiFastSystemCall:\n"
	"	movl %esp, %edx\n"
	"	sysenter\n"
	".globl _KiFastSystemCallRet\n_KiFastSystemCallRet:\n"
	"	ret\n"
	".balign 16\n.globl _KiIntSystemCall\n_KiIntSystemCall:\n"
	"	leal 8(%esp), %edx\n"
	"	int $0x2e\n"
	"	ret\n"
	".section .drectve\n.ascii \" -export:KiFastSystemCall -export:KiFastSystemCallRet -export:KiIntSystemCall\"\n.text\n");
#else
/* WOW64: TEB.WOW32Reserved leads to the switch into 64-bit code. */
#define STUB(name, args)                                       \
	__asm__(".text\n.balign 16\n.globl _" #name "@" #args "\n"     \
		"_" #name "@" #args ":\n"                              \
		"	movl $" STR(SYS_##name) ", %eax\n"             \
		"	call *%fs:0xc0\n"                              \
		"	ret $" #args "\n")
#endif

STUB(NtTerminateProcess, 8);
STUB(NtTerminateThread, 8);
STUB(NtOpenProcess, 16);
STUB(NtClose, 4);
#ifdef NATIVE
STUB_BY(NtDelayExecution, 8, KiIntSystemCall);
#else
STUB(NtDelayExecution, 8);
#endif
STUB(NtYieldExecution, 0);
STUB(NtWaitForSingleObject, 12);
STUB(NtAllocateVirtualMemory, 24);
STUB(NtFreeVirtualMemory, 16);
STUB(NtProtectVirtualMemory, 20);
STUB(NtQueryInformationProcess, 20);
STUB(NtSetInformationProcess, 16);
STUB(NtQuerySystemTime, 4);
STUB(NtCreateUserProcess, 44);
STUB(NtDisplayString, 4);

/* Every thread begins here: rcx (or the stack) has the start address. */
EXPORT void WINAPI RtlUserThreadStart(u32 (WINAPI *start)(void *), void *argument)
{
	NtTerminateProcess(NT_CURRENT_PROCESS, start(argument));
	for (;;)
		;
}

EXPORT void WINAPI LdrInitializeThunk(void)
{
}

EXPORT usize WINAPI RtlStringLength(const u16 *s)
{
	usize n = 0;
	while (s[n])
		n++;
	return n;
}

int WINAPI DllMain(handle module, u32 reason, void *reserved)
{
	(void)module, (void)reason, (void)reserved;
	return 1;
}

/* A pointer, so that the file has something to relocate. */
__attribute__((used)) static void *volatile dll_main_at = (void *)DllMain;
