/*
 * threads.c - several threads in one address space, all of which begin here:
 * in turn they compute, sleep, wait for ever, and write a shared page.
 */
#include "program.h"
#include "compute.h"

static u32 next;
volatile u32 shared[4096];

u32 WINAPI start(void *peb)
{
	u32 me = __atomic_fetch_add(&next, 1, __ATOMIC_SEQ_CST);
	(void)peb;
	for (;;) {
		switch (me % 4) {
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
		default:
			for (u32 i = 0; i < 4096; i += 64)
				shared[i + me % 16]++;
			Sleep(20);
		}
	}
}
