/*
 * stub.S - from firmware to a 32-bit NT guest's kernel address space.
 *
 * Loaded at physical 1 MiB (boot32.bin). The first processor enters in protected mode
 * without paging (PVH), the others in real mode at the page of TRAMPOLINE. Both end at
 * rt_entry with edi = nt_boot, esi = processor number, on the stack the header names.
 * The builder fills the header; see struct nt_stub_header.
 */
#define TRAMPOLINE 0x8000
#define STACK_SLOTS 4
#define LOW(sym) (TRAMPOLINE + sym - trampoline)

	.section .text, "ax"
	.code32
	.globl start
start:
	.quad 0x00425453564d4156
	.long pvh_entry, 0
	.long stub_end - start, 0
system_dtb:	.quad 0
rt_entry:	.quad 0
nt_boot:	.quad 0
pae:		.quad 0
stacks:		.fill STACK_SLOTS, 8, 0

pvh_entry:
	cli
	cld
	/*
	 * Page tables of our own: those of the guest's system address space, but for the
	 * first entry of the (first) page directory, which maps the first 2 or 4 MiB to
	 * themselves.
	 */
	mov	system_dtb, %esi
	cmpl	$0, pae
	je	1f
	mov	$boot_root, %edi
	mov	$8, %ecx
	rep	movsl
	mov	boot_root, %esi
	and	$0xfffff000, %esi
	movl	$boot_directory + 1, boot_root
1:	mov	$boot_directory, %edi
	mov	$1024, %ecx
	rep	movsl
	movl	$0x83, boot_directory
	movl	$0, boot_directory + 4
	mov	$trampoline, %esi
	mov	$TRAMPOLINE, %edi
	mov	$trampoline_end - trampoline, %ecx
	rep	movsb
	lgdt	gdt_pointer
	ljmp	$0x08, $1f
1:	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	/* fallthrough: processor 0 */

	/* Any processor, flat segments, no paging. */
enter_paging:
	mov	%cr4, %eax
	or	$0x610, %eax		/* PSE, OSFXSR, OSXMMEXCPT */
	mov	$boot_directory, %ebx
	cmpl	$0, pae
	je	1f
	or	$0x20, %eax		/* PAE */
	mov	$boot_root, %ebx
1:	mov	%eax, %cr4
	mov	%ebx, %cr3
	cmpl	$0, pae
	je	1f
	mov	$0xc0000080, %ecx
	rdmsr
	or	$0x800, %eax		/* NXE */
	wrmsr
1:	mov	%cr0, %eax
	and	$0x9fffffff, %eax	/* caches on */
	and	$~4, %eax		/* EM off */
	or	$0x80010023, %eax	/* PG, WP, NE, MP, PE */
	mov	%eax, %cr0
	jmp	1f
1:	mov	$1, %eax
	lock xadd %eax, next_cpu
	cmp	$STACK_SLOTS, %eax
	jae	2f
	mov	%eax, %esi
	mov	stacks(,%esi,8), %esp
	test	%esp, %esp
	jz	2f
	mov	nt_boot, %edi
	xor	%ebp, %ebp
	jmp	*rt_entry
2:	cli
	hlt
	jmp	2b

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
	ljmpl	$0x08, $LOW(trampoline32)
	.code32
trampoline32:
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$enter_paging, %eax
	jmp	*%eax
	.balign 8
gdt_pointer_low:
	.word	gdt_end - gdt - 1
	.long	gdt
trampoline_end:

	.balign 8
gdt:	.quad 0
	.quad 0x00cf9b000000ffff	/* 08: code */
	.quad 0x00cf93000000ffff	/* 10: data */
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
	.balign 4
next_cpu:	.long 0

	.balign 4096
boot_directory:	.fill 4096
boot_root:	.fill 4096
stub_end:
