/*
 * entry.S - the ways into a 32-bit runtime and back to ring 3.
 *
 * As for 64 bits: every entry builds a struct frame (rt.h) on the current thread's
 * kernel stack and calls trap_dispatch, which returns the frame to continue with. FS
 * holds the KPCR in the kernel, the TEB in user mode.
 *
 * KPCR offsets used here are the same in every build: NtTib.StackBase 04h. Those of
 * the KVA shadow differ; the builder patches the displacements listed in `patches`.
 */
#include "../rt/thunks.h"

#define PCR_STACK 0x04
#define PATCHED 0x7fffffff
#define VECTOR_SYSCALL 0x100
#define KERNEL_FS 0x30
#define USER_CODE 0x1b
#define USER_DATA 0x23

/* Of struct frame. */
#define F_FS     4
#define F_AX     40
#define F_VECTOR 44
#define F_IP     52
#define F_CS     56
#define F_FLAGS  60
#define F_SP     64
#define F_SS     68

	.code32
	.section .header, "ax"
	.globl rt_start
rt_start:
	.quad 0x0031545247545645
	.long text_end - rt_start
	.long text_end - rt_start
	.long data_end - rt_start
	.long memory_end - rt_start
	.long cpu_entry - rt_start
	.long sysenter_entry - rt_start
	.long 0
	.long vectors + 16 * 0x2e - rt_start
	.long vectors - rt_start
	.long kvas_start - rt_start
	.long kvas_end - rt_start
	.long shadow_sysenter - rt_start
	.long 0
	.long shadow_vectors - rt_start
	.long patches - rt_start
	.long (patches_end - patches) / 8

	.balign 8
patches:
	.long patch0 - 4 - rt_start, 0
	.long patch1 - 4 - rt_start, 0
	.long patch2 - 4 - rt_start, 1
patches_end:

	.text
	.globl cpu_entry
cpu_entry:
	sub	$4, %esp
	push	$0
	push	%esi
	push	%edi
	call	cpu_main
	ud2

	/* The kernel takes interrupts in these few instructions of the idle loop and
	   nowhere else. */
	.globl idle_wait, idle_breathe
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

	.macro push_general
	push	%ecx
	push	%edx
	push	%ebx
	push	%ebp
	push	%esi
	push	%edi
	push	%ds
	push	%es
	.endm

	/* edx: the user's stack, with the return address of the call to this system call
	   on top. ecx is free. Where to go back to is the same for all. */
sysenter_entry:
	mov	$KERNEL_FS, %ecx
	mov	%ecx, %fs
	mov	%fs:PCR_STACK, %esp
sysenter_frame:
	push	$USER_DATA
	push	%edx
	push	$0x202
	push	$USER_CODE
	push	$0
	push	$0
	push	$VECTOR_SYSCALL
	push	%eax
	push_general
	push	$0x3b
	push	%gs
	jmp	trap_framed

	/* Stack: vector, error, eip, cs, ... */
trap_entry:
	push	%eax
	push_general
	push	%fs
	push	%gs
	mov	$KERNEL_FS, %eax
	mov	%eax, %fs
trap_framed:
	mov	$USER_DATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	cld
	mov	%esp, %eax
	and	$-16, %esp
	sub	$16, %esp
	mov	%eax, (%esp)
	call	trap_dispatch
	/* eax: the frame to go on with. Stand on its stack, then let others in. */
	mov	%eax, %esp
	mov	%eax, %ebx
	and	$-16, %esp
	call	kernel_unlock
	mov	%ebx, %esp
	testb	$3, F_CS(%esp)
	jz	1f
	cmpl	$0, F_VECTOR(%esp)
	jne	shadow_exit
1:	pop	%gs
	pop	%fs
	pop	%es
	pop	%ds
	pop	%edi
	pop	%esi
	pop	%ebp
	pop	%ebx
	pop	%edx
	pop	%ecx
	pop	%eax
	add	$8, %esp
	iret

	.balign 16
vectors:
	thunks	trap_entry

	/*
	 * KVA shadow. These pages alone of the runtime are in the user page tables.
	 */
	.section .kvas, "ax"
shadow_sysenter:
	mov	$KERNEL_FS, %ecx
	mov	%ecx, %fs
	mov	%fs:PATCHED, %ecx
patch0:
	mov	%ecx, %cr3
	mov	%fs:PCR_STACK, %esp
	jmp	sysenter_frame

	/* Stack: vector, error, eip, cs, eflags, esp, ss: on the transition stack. */
shadow_trap:
	testb	$3, 12(%esp)
	jz	trap_entry
	push	%eax
	push	%fs
	mov	$KERNEL_FS, %eax
	mov	%eax, %fs
	mov	%fs:PATCHED, %eax
patch1:
	mov	%eax, %cr3
	mov	%fs:PCR_STACK, %eax
	xchg	%eax, %esp
	pushl	%ss:32(%eax)
	pushl	%ss:28(%eax)
	pushl	%ss:24(%eax)
	pushl	%ss:20(%eax)
	pushl	%ss:16(%eax)
	pushl	%ss:12(%eax)
	pushl	%ss:8(%eax)
	pushl	%ss:4(%eax)
	push_general
	pushl	%ss:(%eax)
	push	%gs
	jmp	trap_framed

	/* The frame's vector member holds the user CR3 to leave with. What is needed after
	   the change lies on the transition stack, below its top. */
shadow_exit:
	mov	%fs:PATCHED, %eax
patch2:
	mov	F_SS(%esp), %ecx
	mov	%ecx, %ss:-4(%eax)
	mov	F_SP(%esp), %ecx
	mov	%ecx, %ss:-8(%eax)
	mov	F_FLAGS(%esp), %ecx
	mov	%ecx, %ss:-12(%eax)
	mov	F_CS(%esp), %ecx
	mov	%ecx, %ss:-16(%eax)
	mov	F_IP(%esp), %ecx
	mov	%ecx, %ss:-20(%eax)
	mov	F_AX(%esp), %ecx
	mov	%ecx, %ss:-24(%eax)
	mov	F_FS(%esp), %ecx
	mov	%ecx, %ss:-28(%eax)
	mov	F_VECTOR(%esp), %ecx
	mov	%ecx, %ss:-32(%eax)
	pop	%gs
	add	$4, %esp
	pop	%es
	pop	%ds
	pop	%edi
	pop	%esi
	pop	%ebp
	pop	%ebx
	pop	%edx
	pop	%ecx
	lea	-32(%eax), %esp
	pop	%eax
	mov	%eax, %cr3
	pop	%fs
	pop	%eax
	iret

	.balign 16
shadow_vectors:
	thunks	shadow_trap
