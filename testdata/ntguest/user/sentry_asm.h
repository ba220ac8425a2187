/*
 * sentry_asm.h - the part of sentry.c that owns all registers.
 *
 * watch_context copies a struct watched to the stack pointer, loads every register
 * from it, steps them all with instructions that change no flag, stores what came
 * out, makes a system call if told one, stores again and copies everything back.
 */
#ifndef SENTRY_ASM_H
#define SENTRY_ASM_H
#include "nt.h"

#define SENTRY_COUNT 120 /* at most 255: a byte counts it */
#define SENTRY_TIMES (8 * SENTRY_COUNT) /* steps of each register */

/* Offsets are known to the assembly code. General registers come in the order of
   register_name in sentry.c, then RFLAGS, then RSP. */
struct watched {
	u64 stack[64];          /* 000: the bytes at RSP and above */
	u64 gpr[15], flags;     /* 200 */
	u64 xmm[32];            /* 280: 16 registers */
	u64 step[32];           /* 380: added to them */
	u64 st[8];              /* 480: x87 as integers, or MMX */
	u32 mxcsr;              /* 4c0 */
	u16 cw, mmx;            /* 4c4 */
	u64 target, arg1, arg2; /* 4c8: call to make, or 0 */
	u64 count, slot;        /* 4e0 */
	u64 origin, saved;      /* 4f0 */
	u8 fx_in[512];          /* 500 */
	u8 fx_out[512];         /* 700 */
	u8 fx_after[512];       /* 900 */
	u64 out[17];            /* b00 */
	u64 after[17];          /* b88 */
	u64 rsp;                /* c10 */
	u64 first;              /* c18: the generator's state before stack[] was filled */
	u8 fx_saved[512];       /* c20 */
} __attribute__((aligned(16)));

_Static_assert(__builtin_offsetof(struct watched, fx_saved) == 0xc20 && sizeof(struct watched) == 0xe20, "offsets of the assembly code");

void watch_context(struct watched *);

/* What a step adds to general register i. */
static inline u64 sentry_step(u32 i)
{
	return 0x01234567 + 0x02468ace * (u64)i;
}

#define S_(x) #x
#define S(x) S_(x)
#define GPR_LOAD(i, reg) "	movq 0x200+8*" #i "(%rsp), %" #reg "\n"
#define GPR_STEP(i, reg) "	leaq 0x01234567+0x02468ace*" #i "(%" #reg "), %" #reg "\n"
#define GPR_STORE(at, i, reg) "	movq %" #reg ", " at "+8*" #i "(%rsp)\n"
#define XMM_LOAD(i) "	movdqa 0x280+16*" #i "(%rsp), %xmm" #i "\n"
#define XMM_STEP(i) "	paddq 0x380+16*" #i "(%rsp), %xmm" #i "\n"
#define ALL_GPR(m) m(0, rax) m(1, rbx) m(2, rcx) m(3, rdx) m(4, rsi) m(5, rdi) m(6, rbp) m(7, r8) m(8, r9) \
	m(9, r10) m(10, r11) m(11, r12) m(12, r13) m(13, r14) m(14, r15)
#define ALL_XMM(m) m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) m(12) m(13) m(14) m(15)
#define GPR_OUT(i, reg) GPR_STORE("0xb00", i, reg)
#define GPR_AFTER(i, reg) GPR_STORE("0xb88", i, reg)
/* Nothing here changes a flag: LEA, SSE, MOV, PUSH and POP. */
#define STEP ALL_GPR(GPR_STEP) ALL_XMM(XMM_STEP) "	pushq %rbx\n	pushq %r11\n	popq %r11\n	popq %rbx\n"

__asm__(".text\n.balign 16\n.globl watch_context\nwatch_context:\n"
	"	pushq %rbx\n	pushq %rbp\n	pushq %rsi\n	pushq %rdi\n"
	"	pushq %r12\n	pushq %r13\n	pushq %r14\n	pushq %r15\n"
	"	movq %rsp, %rax\n	subq $0xe20, %rsp\n	andq $-16, %rsp\n"
	"	movq %rcx, %rdx\n	movq %rcx, %rsi\n	movq %rsp, %rdi\n	movl $0xe20/8, %ecx\n"
	"	rep movsq\n"
	"	movq %rdx, 0x4f0(%rsp)\n	movq %rax, 0x4f8(%rsp)\n	movq %rsp, 0xc10(%rsp)\n"
	"	fxsave64 0xc20(%rsp)\n"
	"	fninit\n"
	"	cmpw $0, 0x4c6(%rsp)\n	jne 1f\n"
	"	fildq 0x480(%rsp)\n	fildq 0x488(%rsp)\n	fildq 0x490(%rsp)\n	fildq 0x498(%rsp)\n"
	"	fildq 0x4a0(%rsp)\n	fildq 0x4a8(%rsp)\n	fildq 0x4b0(%rsp)\n	fildq 0x4b8(%rsp)\n"
	"	jmp 2f\n"
	"1:	movq 0x480(%rsp), %mm0\n	movq 0x488(%rsp), %mm1\n	movq 0x490(%rsp), %mm2\n	movq 0x498(%rsp), %mm3\n"
	"	movq 0x4a0(%rsp), %mm4\n	movq 0x4a8(%rsp), %mm5\n	movq 0x4b0(%rsp), %mm6\n	movq 0x4b8(%rsp), %mm7\n"
	"2:	fldcw 0x4c4(%rsp)\n	ldmxcsr 0x4c0(%rsp)\n"
	ALL_XMM(XMM_LOAD)
	"	fxsave64 0x500(%rsp)\n"
	"	pushq 0x278(%rsp)\n	popfq\n"
	ALL_GPR(GPR_LOAD)
	".balign 16\n.globl sentry_steps\nsentry_steps:\n"
	"3:\n"
	STEP STEP STEP STEP STEP STEP STEP STEP
	".globl sentry_count\nsentry_count:\n"
	/* The count is a byte, so that a wrong one ends soon too. */
	"	movq %rcx, 0x4e8(%rsp)\n	movzbl 0x4e0(%rsp), %ecx\n	leaq -1(%rcx), %rcx\n	movb %cl, 0x4e0(%rsp)\n"
	"	jrcxz 4f\n"
	"	movq 0x4e8(%rsp), %rcx\n	jmp 3b\n"
	"4:	movq 0x4e8(%rsp), %rcx\n"
	"	fxsave64 0x700(%rsp)\n"
	ALL_GPR(GPR_OUT)
	"	pushfq\n	popq 0xb78(%rsp)\n	movq %rsp, 0xb80(%rsp)\n"
	"	pushq $2\n	popfq\n"
	"	movq 0x4c8(%rsp), %rax\n	testq %rax, %rax\n	jz 5f\n"
	"	movq 0x4d0(%rsp), %rcx\n	movq 0x4d8(%rsp), %rdx\n"
	"	subq $0x20, %rsp\n	call *%rax\n	addq $0x20, %rsp\n"
	ALL_GPR(GPR_AFTER)
	"	movq %rsp, 0xc08(%rsp)\n"
	"	fxsave64 0x900(%rsp)\n"
	"5:	fxrstor64 0xc20(%rsp)\n"
	"	movq %rsp, %rsi\n	movq 0x4f0(%rsp), %rdi\n	movq 0x4f8(%rsp), %rdx\n	movl $0xe20/8, %ecx\n"
	"	rep movsq\n"
	"	movq %rdx, %rsp\n"
	"	popq %r15\n	popq %r14\n	popq %r13\n	popq %r12\n"
	"	popq %rdi\n	popq %rsi\n	popq %rbp\n	popq %rbx\n"
	"	ret\n"
	/* From the one to the other no register is without use. */
	".section .drectve\n.ascii \" -export:sentry_steps -export:sentry_count\"\n.text\n");

#endif
