/*
 * worker.c - a short-lived program: some work, some sleep, exit with status 0.
 */
#include "program.h"
#include "compute.h"

u32 WINAPI start(void *peb)
{
	(void)peb;
	for (u32 i = 0; i < 8; i++) {
		if (compute(200000, i))
			return 0xdead0001;
		Sleep(100);
	}
	return 0;
}
