/*
 * thrash.c - page faults for ever and nothing else: it touches new pages, gives up its
 * working set, touches them again and frees them, and never sleeps.
 */
#include "program.h"
#include "fault.h"

u32 WINAPI start(void *peb)
{
	(void)peb;
	for (;;)
		if (fault_pages(16))
			ExitProcess(0xdead0001);
}
