/*
 * service.c - a service with nothing to do: it waits for ever. Most processes of
 * a real system are like this; they cannot be reached while they run, as they
 * do not.
 */
#include "program.h"

static volatile u32 started; /* its page is written once: copy-on-write */

u32 WINAPI start(void *peb)
{
	(void)peb;
	started = GetCurrentProcessId();
	for (;;)
		WaitForSingleObject(NT_CURRENT_PROCESS, ~0u);
}
