/*
 * stub.S - from firmware to the NT guest's kernel address space.
 *
 * Loaded at physical 1 MiB (boot.bin). The first processor enters in 32-bit
 * protected mode without paging (PVH), the others in real mode at the page of
 * TRAMPOLINE. Both end in long mode at rt_entry with rdi = nt_boot, rsi =
 * processor number, on the stack the header names. The builder fills the
 * header; see struct nt_stub_header.
 */
#define TRAMPOLINE 0x8000
#define STACK_SLOTS 4
#define LOW(sym) (TRAMPOLINE + sym - trampoline)

	.section .text, "ax"
	.code32
	.globl start
start:
	.quad 0x00425453564d4156
	.quad pvh_entry
	.quad stub_end - start
system_dtb:	.quad 0
rt_entry:	.quad 0
nt_boot:	.quad 0
la57:		.quad 0
stacks:		.fill STACK_SLOTS, 8, 0

pvh_entry:
	cli
	cld
	/*
	 * A page table of our own: entry 0 maps the first 2 MiB to themselves,
	 * the upper half is that of the guest's system address space. With 5-level
	 * paging there is one table more above.
	 */
	mov	$boot_pdpt + 3, %eax
	mov	%eax, boot_pml4
	mov	$boot_pd + 3, %eax
	mov	%eax, boot_pdpt
	movl	$0x83, boot_pd
	mov	$boot_pml4, %edi
	cmpl	$0, la57
	je	3f
	mov	$boot_pml4 + 3, %eax
	mov	%eax, boot_pml5
	mov	$boot_pml5, %edi
3:	mov	%edi, boot_root
	mov	system_dtb, %esi
	add	$2048, %esi
	add	$2048, %edi
	mov	$512, %ecx
	rep	movsl
	/* The self-map entry of the copy still shows the system's tables: right. */
	mov	$trampoline, %esi
	mov	$TRAMPOLINE, %edi
	mov	$trampoline_end - trampoline, %ecx
	rep	movsb
	lgdt	gdt_pointer
	ljmp	$0x10, $1f
1:	mov	$0x18, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	/* fallthrough: processor 0 */
	jmp	enter_long_mode

	/* Any processor, 32-bit protected mode, flat segments, no paging. */
enter_long_mode:
	mov	%cr4, %eax
	or	$0x620, %eax		/* PAE, OSFXSR, OSXMMEXCPT */
	cmpl	$0, la57
	je	4f
	or	$0x1000, %eax		/* LA57 */
4:	mov	%eax, %cr4
	mov	boot_root, %eax
	mov	%eax, %cr3
	mov	$0xc0000080, %ecx
	rdmsr
	or	$0x901, %eax		/* SCE, LME, NXE */
	wrmsr
	mov	%cr0, %eax
	and	$0x9fffffff, %eax	/* caches on */
	and	$~4, %eax		/* EM off */
	or	$0x80010023, %eax	/* PG, WP, NE, MP, PE */
	mov	%eax, %cr0
	ljmp	$0x20, $2f
	.code64
2:	mov	$1, %eax
	lock xadd %eax, next_cpu(%rip)
	cmp	$STACK_SLOTS, %eax
	jae	3f
	mov	%eax, %esi
	lea	stacks(%rip), %rcx
	mov	(%rcx,%rsi,8), %rsp
	test	%rsp, %rsp
	jz	3f
	mov	nt_boot(%rip), %rdi
	xor	%ebp, %ebp
	jmp	*rt_entry(%rip)
3:	cli
	hlt
	jmp	3b

	/* Copied to TRAMPOLINE; a started processor begins here in real mode. */
	.code16
trampoline:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	lgdtl	LOW(gdt_pointer_low)
	mov	%cr0, %eax
	or	$1, %eax
	mov	%eax, %cr0
	ljmpl	$0x10, $LOW(trampoline32)
	.code32
trampoline32:
	mov	$0x18, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$enter_long_mode, %eax
	jmp	*%eax
	.balign 8
gdt_pointer_low:
	.word	gdt_end - gdt - 1
	.long	gdt
trampoline_end:

	.balign 8
gdt:	.quad 0, 0
	.quad 0x00cf9b000000ffff	/* 10: 32-bit code */
	.quad 0x00cf93000000ffff	/* 18: data */
	.quad 0x00af9b000000ffff	/* 20: 64-bit code */
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
	.balign 4
next_cpu:	.long 0
boot_root:	.long 0

	.balign 4096
boot_pml5:	.fill 4096
boot_pml4:	.fill 4096
boot_pdpt:	.fill 4096
boot_pd:	.fill 4096
stub_end:
