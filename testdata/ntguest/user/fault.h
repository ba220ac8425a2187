/*
 * fault.h - page faults that a program's own memory causes, demand-zero and soft.
 */
#ifndef FAULT_H
#define FAULT_H
#include "nt.h"

/* Returns 0, or 1 when memory was not to be had or did not keep what it held. Counts
   in progress (program.h). */
static int fault_pages(u32 pages)
{
	volatile u8 *m = VirtualAlloc(0, pages * 4096, MEM_COMMIT_RESERVE, PAGE_READWRITE);
	int wrong = !m;

	for (u32 i = 0; m && i < pages; i++, progress++) {
		wrong |= m[i * 4096 + 9] != 0;
		m[i * 4096 + 9] = (u8)(i + 1);
	}
	if (!m || !SetProcessWorkingSetSize(NT_CURRENT_PROCESS, -1, -1))
		return 1;
	for (u32 i = 0; i < pages; i++, progress++)
		wrong |= m[i * 4096 + 9] != (u8)(i + 1);
	return !VirtualFree((void *)m, 0, MEM_RELEASE) || wrong;
}

#endif
