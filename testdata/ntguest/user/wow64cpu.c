/*
 * wow64cpu.c - the way between 32-bit and 64-bit code of a WOW64 process.
 * It must be mapped below 4 GiB. TEB32.WOW32Reserved (fs:[C0h]) points to
 * KiFastSystemCall; the 64-bit stack is remembered in TLS slot 1 of the TEB
 * (gs:[1488h]) while 32-bit code runs.
 */
#include "nt.h"

/* In: ecx = 32-bit start address, edx = 32-bit stack pointer. */
__asm__(".text\n.balign 16\n.globl CpuStartThread\nCpuStartThread:\n"
	"	andq $-16, %rsp\n"
	"	movq %rsp, %gs:0x1488\n"
	"	pushq $0x2b\n"
	"	pushq %rdx\n"
	"	pushfq\n"
	"	pushq $0x23\n"
	"	movl %ecx, %ecx\n"
	"	pushq %rcx\n"
	"	iretq\n");

/* 32-bit code. Stack: return into ntdll, return to its caller, arguments. */
__asm__(".text\n.balign 16\n.globl KiFastSystemCall\nKiFastSystemCall:\n"
	"	.code32\n"
	"	call 1f\n"
	"1:	popl %edx\n"
	"	addl $CpuReturnFromSimulatedCode - 1b, %edx\n"
	"	pushl $0x33\n"
	"	pushl %edx\n"
	"	lret\n"
	"	.code64\n");

__asm__(".text\n.balign 16\n.globl CpuReturnFromSimulatedCode\nCpuReturnFromSimulatedCode:\n"
	"	movl %esp, %r8d\n"
	"	movq %gs:0x1488, %rsp\n"
	"	pushq %r8\n"
	"	subq $0x28, %rsp\n"
	"	movl %eax, %ecx\n"
	"	leaq 8(%r8), %rdx\n"
	"	call Wow64SystemServiceEx\n"
	"	addq $0x28, %rsp\n"
	"	popq %r8\n"
	"	movl (%r8), %ecx\n"
	"	addq $4, %r8\n"
	"	pushq $0x2b\n"
	"	pushq %r8\n"
	"	pushfq\n"
	"	pushq $0x23\n"
	"	pushq %rcx\n"
	"	iretq\n");

int DllMain(handle module, u32 reason, void *reserved)
{
	(void)module, (void)reason, (void)reserved;
	return 1;
}

/* A pointer, so that the file has something to relocate. */
__attribute__((used)) static void *volatile dll_main_at = (void *)DllMain;
