/*
 * pte.c - page table entries as Windows writes them, and the protection in them.
 */
#include "rt.h"
#include "pte.h"

/* PAGE_* by MM protection number (bits 5..7 of a non-present PTE). */
u32 page_of_mm(u32 mm)
{
	u32 prot = PAGE_NOACCESS;

	switch (mm & 7) {
	case 1: prot = PAGE_READONLY; break;
	case 2: prot = PAGE_EXECUTE; break;
	case 3: prot = PAGE_EXECUTE_READ; break;
	case 4: prot = PAGE_READWRITE; break;
	case 5: prot = PAGE_WRITECOPY; break;
	case 6: prot = PAGE_EXECUTE_READWRITE; break;
	case 7: prot = PAGE_EXECUTE_WRITECOPY; break;
	}
	if ((mm & 0x18) == 0x18)
		return PAGE_NOACCESS;
	return mm & 0x10 ? prot | PAGE_GUARD : prot;
}

u32 mm_of_page(u32 prot)
{
	u32 mm = 0x18;

	switch (prot & 0xff) {
	case PAGE_READONLY: mm = 1; break;
	case PAGE_EXECUTE: mm = 2; break;
	case PAGE_EXECUTE_READ: mm = 3; break;
	case PAGE_READWRITE: mm = 4; break;
	case PAGE_WRITECOPY: mm = 5; break;
	case PAGE_EXECUTE_READWRITE: mm = 6; break;
	case PAGE_EXECUTE_WRITECOPY: mm = 7; break;
	}
	return prot & PAGE_GUARD && mm != 0x18 ? mm | 0x10 : mm;
}

/* Flag bits of a valid user PTE with that protection. */
u64 pte_flags(u32 prot)
{
	u64 f = PTE_V | PTE_USER | PTE_ACCESSED;

	if (prot & (PAGE_READWRITE | PAGE_EXECUTE_READWRITE))
		f |= PTE_HW_WRITE | PTE_DIRTY | PTE_SW_WRITE;
	if (prot & (PAGE_WRITECOPY | PAGE_EXECUTE_WRITECOPY))
		f |= PTE_COW;
	if (!(prot & ANY_EXEC))
		f |= PTE_NX;
	return f;
}

/* The protection a valid PTE grants. One that has no bit for it does not say that its
   page may be executed. */
u32 prot_of_pte(u64 pte)
{
	int x = PTE_NX && !(pte & PTE_NX);

	if (pte & PTE_COW)
		return x ? PAGE_EXECUTE_WRITECOPY : PAGE_WRITECOPY;
	if (pte & PTE_HW_WRITE)
		return x ? PAGE_EXECUTE_READWRITE : PAGE_READWRITE;
	return x ? PAGE_EXECUTE_READ : PAGE_READONLY;
}

u64 invalid_pfn(u64 pte)
{
	if (boot->invalid_pte_mask && !(pte & boot->swizzle_bit))
		pte ^= boot->invalid_pte_mask;
	return PFN(pte);
}

u64 transition_pte(u64 pfn, u32 prot)
{
	return (pfn << 12 ^ boot->invalid_pte_mask) | PTE_TRANSITION | (u64)mm_of_page(prot) << 5;
}

int is_transition(u64 pte)
{
	if (pte >> 47 == 0x1ffff)
		return 0; /* the address of a subsection as it is, which any of these bits can be of */
	return (pte & (PTE_V | PTE_TRANSITION | PTE_PROTO)) == PTE_TRANSITION;
}
