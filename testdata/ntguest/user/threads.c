/*
 * threads.c - several threads in one address space, all of which begin here:
 * in turn they compute, sleep, wait for ever, write a shared page and fault.
 */
#include "program.h"
#include "compute.h"
#include "fault.h"

static u32 next;
volatile u32 shared[4096];

u32 WINAPI start(void *peb)
{
	u32 me = __atomic_fetch_add(&next, 1, __ATOMIC_SEQ_CST);
	(void)peb;
	for (;;) {
		switch (me % 5) {
		case 0:
			if (compute(200000, me))
				ExitProcess(0xdead0001);
			Sleep(30);
			break;
		case 1:
			progress++;
			Sleep(50);
			break;
		case 2:
			WaitForSingleObject(NT_CURRENT_PROCESS, ~0u);
			break;
		case 3:
			for (u32 i = 0; i < 4096; i += 64)
				shared[i + me % 16]++;
			Sleep(20);
			break;
		default:
			if (fault_pages(4))
				ExitProcess(0xdead0001);
			Sleep(10);
		}
	}
}
