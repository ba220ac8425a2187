/*
 * pte.h - bits of a page table entry, the processor's and Windows' own: 9
 * copy-on-write, 10 prototype, 11 write (valid) or transition (not valid), 5..9 the
 * protection where it is not valid. PAGE_* are those of the Windows API.
 */
#ifndef PTE_H
#define PTE_H
#include "rt.h"

#if defined(__x86_64__) || defined(PAE)
#define INDEX_BITS 9
#else
#define INDEX_BITS 10
#endif
#define TABLE_ENTRIES (1u << INDEX_BITS)
#define TABLE_SPAN (TABLE_ENTRIES * PAGE) /* bytes that a page table maps */

#define PTE_V 1ULL
#define PTE_HW_WRITE 2ULL
#define PTE_USER 4ULL
#define PTE_ACCESSED 0x20ULL
#define PTE_DIRTY 0x40ULL
#define PTE_COW 0x200ULL
#define PTE_PROTO 0x400ULL
#define PTE_TRANSITION 0x800ULL
#define PTE_SW_WRITE 0x800ULL
#if defined(__x86_64__) || defined(PAE)
#define PTE_NX 0x8000000000000000ULL
#else
#define PTE_NX 0ULL
#endif
#define PFN(pte) (((pte) >> 12) & 0xfffffffffULL)

#define PAGE_NOACCESS 1
#define PAGE_READONLY 2
#define PAGE_READWRITE 4
#define PAGE_WRITECOPY 8
#define PAGE_EXECUTE 0x10
#define PAGE_EXECUTE_READ 0x20
#define PAGE_EXECUTE_READWRITE 0x40
#define PAGE_EXECUTE_WRITECOPY 0x80
#define PAGE_GUARD 0x100
#define ANY_WRITE (PAGE_READWRITE | PAGE_WRITECOPY | PAGE_EXECUTE_READWRITE | PAGE_EXECUTE_WRITECOPY)
#define ANY_EXEC (PAGE_EXECUTE | PAGE_EXECUTE_READ | PAGE_EXECUTE_READWRITE | PAGE_EXECUTE_WRITECOPY)

u32 page_of_mm(u32 mm);     /* PAGE_* by the protection number of a PTE or VAD */
u32 mm_of_page(u32 prot);
u64 pte_flags(u32 prot);    /* of a valid user PTE with that protection */
u32 prot_of_pte(u64 pte);   /* what a valid PTE grants */
u64 invalid_pfn(u64 pte);   /* frame of a transition PTE */
u64 transition_pte(u64 pfn, u32 prot);
int is_transition(u64 pte);

#endif
