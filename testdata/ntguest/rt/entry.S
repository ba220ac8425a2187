/*
 * entry.S - the ways into the runtime and back to ring 3.
 *
 * Every entry builds a struct frame (rt.h) on the current thread's kernel stack
 * and calls trap_dispatch, which returns the frame to continue with: maybe
 * another thread's, on another stack. The big lock is held from trap_dispatch
 * until the new stack is in use, so that no other processor can run a thread
 * whose stack is still stood on.
 *
 * KPCR offsets used here are the same in every supported build:
 * UserRsp 10h, Prcb.RspBase 1A8h. Those of the KVA shadow differ; the builder
 * patches the displacements listed in `patches`.
 */
#include "thunks.h"

#define PCR_USER_RSP 0x10
#define PCR_RSP_BASE 0x1a8
#define PATCHED 0x7fffffff
#define VECTOR_SYSCALL 0x100

#define F_CS     144
#define F_VECTOR 120

	.section .header, "ax"
	.globl rt_start
rt_start:
	.quad 0x0031545247545645
	.long text_end - rt_start
	.long text_end - rt_start
	.long data_end - rt_start
	.long memory_end - rt_start
	.long cpu_entry - rt_start
	.long syscall64_entry - rt_start
	.long syscall32_entry - rt_start
	.long vectors + 16 * 0x2e - rt_start
	.long vectors - rt_start
	.long kvas_start - rt_start
	.long kvas_end - rt_start
	.long shadow_syscall64 - rt_start
	.long shadow_syscall32 - rt_start
	.long shadow_vectors - rt_start
	.long patches - rt_start
	.long (patches_end - patches) / 8

	.balign 8
patches:
	.long patch0 - 4 - rt_start, 2
	.long patch1 - 4 - rt_start, 0
	.long patch2 - 4 - rt_start, 2
	.long patch3 - 4 - rt_start, 0
	.long patch4 - 4 - rt_start, 1
	.long patch5 - 4 - rt_start, 2
	.long patch6 - 4 - rt_start, 0
	.long patch7 - 4 - rt_start, 2
patches_end:

	.text
	.globl cpu_entry
cpu_entry:
	call	cpu_main
	ud2

	.macro push_registers
	push	%rax
	push	%rbx
	push	%rcx
	push	%rdx
	push	%rsi
	push	%rdi
	push	%rbp
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	.endm

	.macro pop_registers_but_rax
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rbp
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%rcx
	pop	%rbx
	.endm

syscall64_entry:
	swapgs
	mov	%rsp, %gs:PCR_USER_RSP
	mov	%gs:PCR_RSP_BASE, %rsp
syscall64_frame:
	push	$0x2b
	push	%gs:PCR_USER_RSP
	push	%r11
	push	$0x33
	push	%rcx
	push	$0
	push	$VECTOR_SYSCALL
	jmp	trap_in_kernel_gs

	/* SYSCALL from compatibility mode is no NT system call: #UD. */
syscall32_entry:
	swapgs
	mov	%rsp, %gs:PCR_USER_RSP
	mov	%gs:PCR_RSP_BASE, %rsp
syscall32_frame:
	push	$0x2b
	push	%gs:PCR_USER_RSP
	push	%r11
	push	$0x23
	push	%rcx
	push	$0
	push	$6
	jmp	trap_in_kernel_gs

	/*
	 * The kernel takes interrupts in these few instructions of the idle loop
	 * and nowhere else.
	 */
	.globl idle_wait, idle_breathe
idle_start:
idle_wait:
	sti
	hlt
	cli
	ret
idle_breathe:
	sti
	nop
	cli
	ret
idle_end:

	/*
	 * For an interrupt (not an exception) of the kernel elsewhere: go back as if
	 * it had not been. No processor does that, but QEMU's emulation of SVM does:
	 * it can deliver one that was injected into a nested guest a second time,
	 * whatever IF says. GS may be the user's there, and the stack too.
	 */
	.macro drop_stray_interrupt
	cmpq	$0x30, (%rsp)
	jb	9f
	push	%rax
	lea	idle_start(%rip), %rax
	neg	%rax
	add	24(%rsp), %rax
	cmp	$idle_end - idle_start, %rax
	pop	%rax
	jb	9f
	add	$16, %rsp
	iretq
9:
	.endm

	/* Stack: vector, error, rip, cs, ... */
trap_entry:
	testb	$3, 24(%rsp)
	jnz	1f
	drop_stray_interrupt
	jmp	trap_in_kernel_gs
1:	swapgs
trap_in_kernel_gs:
	push_registers
	cld
	mov	%rsp, %rdi
	call	trap_dispatch
	/* rax: the frame to go on with. Stand on its stack, then let others in. */
	mov	%rax, %rsp
	call	kernel_unlock
	testb	$3, F_CS(%rsp)
	jz	1f
	cmpq	$0, F_VECTOR(%rsp)
	jne	shadow_exit
	swapgs
1:	pop_registers_but_rax
	pop	%rax
	add	$16, %rsp
	iretq

	.balign 16
vectors:
	thunks	trap_entry

	/*
	 * KVA shadow. This page alone of the runtime is in the user page tables.
	 */
	.section .kvas, "ax"
shadow_syscall64:
	swapgs
	mov	%rsp, %gs:PATCHED
patch0:
	mov	%gs:PATCHED, %rsp
patch1:
	mov	%rsp, %cr3
	mov	%gs:PATCHED, %rsp
patch2:
	mov	%rsp, %gs:PCR_USER_RSP
	mov	%gs:PCR_RSP_BASE, %rsp
	jmp	syscall64_frame

shadow_syscall32:
	swapgs
	mov	%rsp, %gs:PATCHED
patch5:
	mov	%gs:PATCHED, %rsp
patch6:
	mov	%rsp, %cr3
	mov	%gs:PATCHED, %rsp
patch7:
	mov	%rsp, %gs:PCR_USER_RSP
	mov	%gs:PCR_RSP_BASE, %rsp
	jmp	syscall32_frame

	/* Stack: vector, error, rip, cs, rflags, rsp, ss: on the transition stack. */
shadow_trap:
	testb	$3, 24(%rsp)
	jz	1f
	push	%rax
	swapgs
	mov	%gs:PATCHED, %rax
patch3:
	mov	%rax, %cr3
	mov	%gs:PCR_RSP_BASE, %rax
	xchg	%rax, %rsp
	push	56(%rax)
	push	48(%rax)
	push	40(%rax)
	push	32(%rax)
	push	24(%rax)
	push	16(%rax)
	push	8(%rax)
	mov	(%rax), %rax
	jmp	trap_in_kernel_gs
1:	drop_stray_interrupt
	jmp	trap_entry

	/* The frame's vector member holds the user CR3 to leave with. */
shadow_exit:
	pop_registers_but_rax
	mov	%gs:PATCHED, %rax
patch4:
	xchg	%rax, %rsp
	push	56(%rax)
	push	48(%rax)
	push	40(%rax)
	push	32(%rax)
	push	24(%rax)
	push	(%rax)
	mov	8(%rax), %rax
	swapgs
	mov	%rax, %cr3
	pop	%rax
	iretq

	.balign 16
shadow_vectors:
	thunks	shadow_trap
